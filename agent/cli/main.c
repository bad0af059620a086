// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * decamp(1): picks a verb from a table.
 */
#include <curl/curl.h>
#include <errno.h>
#include <json-c/json.h>
#include <locale.h>
#include <string.h>
#include <sys/ioctl.h>

#include "agent/cli/cli.h"

static int verb_version(struct cli *cli, int argc, char **argv);
static int verb_help(struct cli *cli, int argc, char **argv);

static const struct cli_verb verbs[] = {
	{ "run", "[--] COMMAND [ARG]...", "Start a program as a job that survives its machine.",
	  "decamp run --name sim1 --input params.csv -- ./simulate 1000", 1, -1, true, verb_run },
	{ "adopt", "PID", "Make a job of a program that already runs.",
	  "decamp adopt --name sim2 4711", 1, 1, false, verb_adopt },
	{ "ps", "", "List your jobs (root: everyone's).", "decamp ps -a", 0, 0, false, verb_ps },
	{ "show", "JOB", "Tell all about a job: where it is and how safe its work is.",
	  "decamp show sim1", 1, 1, false, verb_show },
	{ "why", "JOB", "Tell for each machine why a job may not go there, and what it waits for.",
	  "decamp why sim1", 1, 1, false, verb_why },
	{ "logs", "JOB", "Print what a job wrote.", "decamp logs -f sim1", 1, 1, false, verb_logs },
	{ "history", "JOB", "List a job's checkpoints and moves.", "decamp history sim1", 1, 1,
	  false, verb_history },
	{ "recover", "JOB", "Tell what is left of a job whose guardians are gone; changes nothing.",
	  "decamp recover sim1", 1, 1, false, verb_recover },
	{ "wait", "JOB", "Wait for a job's end and exit with its code.",
	  "decamp wait sim1 && echo done", 1, 1, false, verb_wait },
	{ "ckpt", "JOB", "Take a checkpoint now.", "decamp ckpt sim1", 1, 1, false, verb_ckpt },
	{ "migrate", "JOB [HOST]", "Move a running job to another machine.",
	  "decamp migrate sim1 lab-07", 1, 2, false, verb_migrate },
	{ "restore", "JOB[@CHECKPOINT]", "Bring a lost or ended job back from a checkpoint.",
	  "decamp restore sim1@17 --on lab-07", 1, 1, false, verb_restore },
	{ "freeze", "JOB", "Stop a job where it is; it keeps its memory.", "decamp freeze sim1", 1,
	  1, false, verb_freeze },
	{ "thaw", "JOB", "Let a frozen job go on.", "decamp thaw sim1", 1, 1, false, verb_thaw },
	{ "kill", "JOB", "End a job, or send it a signal.", "decamp kill -s USR1 sim1", 1, 1, false,
	  verb_kill },
	{ "ls", "JOB", "List the files that a job wrote, as of its last checkpoint.",
	  "decamp ls sim1", 1, 1, false, verb_ls },
	{ "cat", "JOB:PATH", "Print a file of a job as of its last checkpoint.",
	  "decamp cat sim1:/home/ada/out.csv >out.csv", 1, 1, false, verb_cat },
	{ "export", "JOB[@CHECKPOINT]", "Save a checkpoint as an ELF core, or its files or images.",
	  "decamp export sim1@17 --core sim1.core && gdb ./simulate sim1.core", 1, 1, false,
	  verb_export },
	{ "mount", "DIR", "Show kept checkpoints as read-only files, and writable folders.",
	  "decamp mount ~/decamp", 1, 1, false, verb_mount },
	{ "folder create", "NAME",
	  "Make a folder whose files are kept, in versions, on other machines.",
	  "decamp folder create thesis --keep 16", 1, 1, false, verb_folder_create },
	{ "folder delete", "NAME", "Give up a folder and all its versions.",
	  "decamp folder delete thesis", 1, 1, false, verb_folder_delete },
	{ "folder", "[NAME]", "List your writable folders, and what of them is not sent yet.",
	  "decamp folder", 0, 1, false, verb_folder },
	{ "check", "PID", "Tell whether a process could be checkpointed; changes nothing.",
	  "decamp check 4711", 1, 1, false, verb_check },
	{ "nodes", "", "List the machines of the cluster.", "decamp nodes --credit", 0, 0, false,
	  verb_nodes },
	{ "vacate", "", "Send all jobs away from this machine (root).", "decamp vacate --undo", 0,
	  0, false, verb_vacate },
	{ "doctor", "", "Tell what this machine can do and what it lacks.", "decamp doctor", 0, 0,
	  false, verb_doctor },
	{ "cluster init", "", "Found a cluster with this machine as its first (root).",
	  "decamp cluster init --room lab", 0, 0, false, verb_cluster_init },
	{ "cluster invite", "", "Print a token with which one machine may join (root).",
	  "decamp cluster invite --ttl 3600", 0, 0, false, verb_cluster_invite },
	{ "cluster join", "TOKEN|-", "Join a cluster; \"-\" reads the token from stdin (root).",
	  "decamp cluster join decamp1-XXXX --room lab", 1, 1, false, verb_cluster_join },
	{ "version", "", "Print the version.", "decamp version", 0, 0, false, verb_version },
	{ "help", "[VERB]", "Print this list, or how a verb is used.", "decamp help run", 0, 2,
	  false, verb_help },
};

static int verb_version(struct cli *cli, int argc, char **argv)
{
	int r = cli_parse(cli, NULL, argc, argv);

	if (r >= 0)
		return r;
	if (cli->json)
		puts("{\"version\":\"" CLI_VERSION "\"}");
	else
		puts("decamp " CLI_VERSION);
	return CLI_OK;
}

/* All verbs, or those that begin with a word. */
static void print_verbs(const char *family)
{
	size_t length = strlen(family);

	printf("Usage: decamp [--socket PATH] [--json] %s...\n\n", *family ? family : "VERB ");
	if (!*family)
		puts("Keeps long-running programs alive across machines.\n");
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (strncmp(verbs[i].name, family, length) == 0)
			printf("  %-15s %s\n", verbs[i].name, verbs[i].summary);
	}
	puts("\n\"decamp VERB --help\" tells more; see also decamp(1).");
}

/* Finds a verb of one or two words; *ret_words are used up. */
static const struct cli_verb *find_verb(int argc, char **argv, int *ret_words)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs) && argc > 0; i++) {
		const char *space = strchr(verbs[i].name, ' ');
		size_t length = space ? (size_t)(space - verbs[i].name) : strlen(verbs[i].name);

		if (strlen(argv[0]) != length || strncmp(argv[0], verbs[i].name, length) != 0)
			continue;
		if (space && (argc < 2 || strcmp(argv[1], space + 1) != 0))
			continue;
		*ret_words = space ? 2 : 1;
		return &verbs[i];
	}
	return NULL;
}

static int no_such_verb(const char *word)
{
	cli_complain(word, "no such verb", "\"decamp help\" lists them.");
	return CLI_USAGE;
}

static int call_verb(struct cli *cli, int argc, char **argv)
{
	int words;
	const struct cli_verb *verb = find_verb(argc, argv, &words);

	if (verb) {
		cli->verb = verb;
		return verb->fn(cli, argc - words + 1, argv + words - 1);
	}
	if (strcmp(argv[0], "cluster") == 0 &&
	    (argc == 1 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
		print_verbs("cluster ");
		return argc == 1 ? CLI_USAGE : CLI_OK;
	}
	if (strcmp(argv[0], "cluster") == 0)
		cli_complain(argv[1], "no such verb of \"cluster\"", "Try init, invite or join.");
	return strcmp(argv[0], "cluster") == 0 ? CLI_USAGE : no_such_verb(argv[0]);
}

static int verb_help(struct cli *cli, int argc, char **argv)
{
	char *call[] = { NULL, "--help", NULL };
	int words, r = cli_parse(cli, NULL, argc, argv);
	const struct cli_verb *verb;

	if (r >= 0)
		return r;
	if (cli->arg_count == 0 || (cli->arg_count == 1 && !strcmp(cli->args[0], "cluster"))) {
		print_verbs(cli->arg_count ? "cluster " : "");
		return CLI_OK;
	}
	verb = find_verb(cli->arg_count, cli->args, &words);
	if (!verb || words != cli->arg_count)
		return no_such_verb(cli->args[cli->arg_count - 1]);
	cli->verb = verb;
	call[0] = cli->args[0];
	return verb->fn(cli, 2, call);
}

static void look_at_terminal(struct cli *cli)
{
	const char *no_colour = getenv("NO_COLOR"), *term = getenv("TERM");
	struct winsize size;

	cli->out_tty = isatty(STDOUT_FILENO);
	cli->err_tty = isatty(STDERR_FILENO);
	cli->colour = cli->out_tty && !(no_colour && *no_colour) &&
		      !(term && strcmp(term, "dumb") == 0);
	if (ioctl(cli->out_tty ? STDOUT_FILENO : STDERR_FILENO, TIOCGWINSZ, &size) == 0 &&
	    (cli->out_tty || cli->err_tty))
		cli->width = size.ws_col;
}

/* Options before the verb; returns how many words they took, or minus an exit code. */
static int early_options(struct cli *cli, int argc, char **argv)
{
	int i = 1;

	for (; i < argc && argv[i][0] == '-'; i++) {
		if (strcmp(argv[i], "--json") == 0) {
			cli->json = true;
		} else if (strcmp(argv[i], "--socket") == 0 && i + 1 < argc) {
			cli->socket = argv[++i];
		} else if (strncmp(argv[i], "--socket=", 9) == 0) {
			cli->socket = argv[i] + 9;
		} else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
			argv[i] = "help";
			break;
		} else if (strcmp(argv[i], "--version") == 0) {
			argv[i] = "version";
			break;
		} else {
			cli_complain(argv[i], "unknown option", "\"decamp help\" tells more.");
			return -CLI_USAGE;
		}
	}
	return i;
}

int main(int argc, char **argv)
{
	const char *socket = getenv("DECAMP_SOCKET");
	struct cli cli = { .socket = socket && *socket ? socket : CLI_SOCKET };
	int first, r;

	setlocale(LC_ALL, "");
	setlocale(LC_NUMERIC, "C");
	look_at_terminal(&cli);
	first = early_options(&cli, argc, argv);
	if (first < 0)
		return -first;
	if (first >= argc) {
		print_verbs("");
		return CLI_USAGE;
	}
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != 0)
		cli_out_of_memory();
	r = call_verb(&cli, argc - first, argv + first);
	if ((fflush(stdout) != 0 || ferror(stdout)) && r == CLI_OK) {
		cli_complain("stdout", strerror(errno), NULL);
		r = CLI_FAILED;
	}
	curl_global_cleanup();
	return r;
}
