// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "agent/cli/cli.h"

enum { POLL_FIRST_MS = 100, POLL_MAX_MS = 1000, SILENT_MAX_MS = 300000, LOST_MAX_MS = 10000 };

struct waiter {
	const struct cli *cli;
	char job[64]; /* as given, then the full id, which no later job can share */
	unsigned int pause_ms, silent_ms, lost_ms;
	int interrupt_fd; /* Ctrl-C */
	bool answered;
	bool print_json;
};

/* Beside exit codes, which may be any that a job ends with. */
enum { ASK_AGAIN = -1, ASK_INTERRUPTED = -2 };

static int end_code(struct json_object *job)
{
	int status = (int)js_int(job, "exit_status", 0);

	if (js_has(job, "exit_status") && WIFSIGNALED(status))
		return 128 + WTERMSIG(status);
	if (js_has(job, "exit_code"))
		return (int)js_int(job, "exit_code", 0) & 0xff;
	if (js_has(job, "exit_status"))
		return WEXITSTATUS(status);
	return strcmp(js_text(job, "state", ""), "killed") == 0 ? 128 + SIGKILL : 0;
}

static int give_up_lost(const struct waiter *w, struct json_object *job)
{
	if (w->print_json)
		js_print(job);
	cli_complain(js_text(job, "name", w->job), js_text(job, "message", "the job is lost"),
		     "\"decamp restore JOB\" brings it back from a checkpoint.");
	return CLI_FAILED;
}

/* Returns an exit code or ASK_AGAIN. */
static int judge(struct waiter *w, struct json_object *job)
{
	const char *state = js_text(job, "state", "");

	w->answered = true;
	w->silent_ms = 0;
	snprintf(w->job, sizeof(w->job), "%s", js_text(job, "job", w->job));
	if (state_is_end(state)) {
		if (w->print_json)
			js_print(job);
		return end_code(job);
	}
	w->lost_ms = strcmp(state, "lost") == 0 ? w->lost_ms + w->pause_ms : 0;
	return w->lost_ms > LOST_MAX_MS ? give_up_lost(w, job) : ASK_AGAIN;
}

static int ask(struct waiter *w)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct cli_request request = { .verb = "show",
				       .timeout_s = CLI_TIMEOUT_S,
				       .interrupt_fd = w->interrupt_fd };
	int r;

	request.body = js_new();
	js_put_text(request.body, "job", w->job);
	r = cli_send(w->cli, &request, &reply);
	json_object_put(request.body);
	if (r == CLI_OK)
		return judge(w, reply.json);
	if (r == CLI_INTERRUPTED)
		return ASK_INTERRUPTED;
	/* Stopping decampd leaves jobs running, so a daemon that restarts is waited for. */
	if (w->answered && (r == CLI_UNREACHABLE || r == CLI_TIMED_OUT)) {
		if (w->silent_ms == 0)
			cli_complain(w->cli->socket, "decampd does not answer; still waiting",
				     NULL);
		w->silent_ms += w->pause_ms;
		if (w->silent_ms < SILENT_MAX_MS)
			return ASK_AGAIN;
	}
	cli_tell(w->cli, &reply);
	return r;
}

int wait_for_job(const struct cli *cli, const char *job, bool print_json)
{
	struct waiter w = { .cli = cli, .pause_ms = POLL_FIRST_MS, .print_json = print_json };
	struct pollfd interrupt = { .events = POLLIN };
	_cleanup_close_ int fd = -1;
	sigset_t set;
	int r;

	if (snprintf(w.job, sizeof(w.job), "%s", job) >= (int)sizeof(w.job)) {
		cli_complain(job, "no job has so long a name", NULL);
		return CLI_NO_JOB;
	}
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC);
	interrupt.fd = fd;
	w.interrupt_fd = fd;
	while ((r = ask(&w)) == ASK_AGAIN) {
		if (poll(&interrupt, 1, (int)w.pause_ms) > 0)
			r = ASK_INTERRUPTED;
		if (r == ASK_INTERRUPTED)
			break;
		w.pause_ms = w.pause_ms * 3 / 2 > POLL_MAX_MS ? POLL_MAX_MS : w.pause_ms * 3 / 2;
	}
	if (r != ASK_INTERRUPTED)
		return r;
	cli_complain(job, "the job runs on", "\"decamp wait\" waits for it again.");
	return CLI_INTERRUPTED;
}

int verb_wait(struct cli *cli, int argc, char **argv)
{
	int r = cli_parse(cli, NULL, argc, argv);

	return r >= 0 ? r : wait_for_job(cli, cli->args[0], cli->json);
}
