// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/cli/cli.h"

enum { EVERY_MAX_S = 30 * 86400 };

/* Options that run and adopt share. */
struct terms {
	const char *name, *every, *fence, *needs;
};

#define NAME_OPTION(t)                                                            \
	{                                                                         \
		"name", 'n', "NAME", "what the job is called", .value = &(t).name \
	}
#define EVERY_OPTION(t)                                                                            \
	{                                                                                          \
		"every", 0, "SECONDS", "checkpoint at this interval; default: found by measuring", \
			.value = &(t).every                                                        \
	}
#define FENCE_OPTION(t)                                                                 \
	{                                                                               \
		"fence", 0, "strict|commit", "strict: never two live copies (default)", \
			.value = &(t).fence                                             \
	}

#define NEEDS_OPTION(t)                                                                     \
	{                                                                                   \
		"needs", 0, "EXPR", "go on only where this holds, as \"gpu && mem >= 8G\"", \
			.value = &(t).needs                                                 \
	}

static int put_terms(const struct cli *cli, const struct terms *terms, struct json_object *body)
{
	int64_t every = 0;
	int r = cli_number(cli, "--every", terms->every, 1, EVERY_MAX_S, &every);

	if (r != CLI_OK)
		return r;
	if (terms->fence && strcmp(terms->fence, "strict") != 0 &&
	    strcmp(terms->fence, "commit") != 0)
		return cli_usage(cli, "--fence is strict or commit, not \"%s\"", terms->fence);
	js_put_text(body, "name", terms->name);
	if (terms->every)
		js_put_int(body, "every_s", every);
	js_put_text(body, "fence", terms->fence);
	js_put_text(body, "needs", terms->needs);
	return CLI_OK;
}

static bool same_name(const char *a, const char *b)
{
	size_t length = strcspn(a, "=");

	return strncmp(a, b, length + 1) == 0;
}

/* The caller's environment, with --env on top; our own variables say nothing to a job. */
static int put_env(const struct cli *cli, const struct cli_list *extra, struct json_object *body)
{
	_cleanup_(cli_list_done) struct cli_list env = { 0 };
	size_t inherited = 0;

	for (size_t i = 0; i < extra->count; i++) {
		if (!strchr(extra->items[i], '=') || *extra->items[i] == '=')
			return cli_usage(cli, "--env: \"%s\" is not NAME=VALUE", extra->items[i]);
	}
	while (environ[inherited])
		inherited++;
	env.items = calloc(inherited + extra->count + 1, sizeof(*env.items));
	if (!env.items)
		cli_out_of_memory();
	for (size_t i = 0; i < inherited; i++) {
		bool keep = strncmp(environ[i], "DECAMP_", 7) != 0 && strchr(environ[i], '=');

		for (size_t k = 0; k < extra->count; k++)
			keep = keep && !same_name(extra->items[k], environ[i]);
		if (keep)
			env.items[env.count++] = environ[i];
	}
	for (size_t i = 0; i < extra->count; i++) {
		bool last = true;

		for (size_t k = i + 1; k < extra->count; k++)
			last = last && !same_name(extra->items[i], extra->items[k]);
		if (last)
			env.items[env.count++] = extra->items[i];
	}
	js_put_list(body, "env", env.items, env.count);
	return CLI_OK;
}

static void put_path(struct json_object *body, const char *key, const char *path)
{
	_cleanup_free_ char *absolute = path ? cli_absolute(path) : NULL;

	js_put_text(body, key, absolute);
}

static void put_inputs(struct json_object *body, const struct cli_list *inputs)
{
	char **paths = calloc(inputs->count + 1, sizeof(*paths));

	if (!paths)
		cli_out_of_memory();
	for (size_t i = 0; i < inputs->count; i++)
		paths[i] = cli_absolute(inputs->items[i]);
	js_put_list(body, "inputs", (const char *const *)paths, inputs->count);
	for (size_t i = 0; i < inputs->count; i++)
		free(paths[i]);
	free(paths);
}

/* Tells the job's name; returns how the program ends. */
static int started(const struct cli *cli, const struct cli_reply *reply, bool wait)
{
	const char *name = js_text(reply->json, "name", "");
	const char *job = js_text(reply->json, "job", name);

	if (cli->json && !wait)
		js_print(reply->json);
	else if (!cli->json)
		puts(name);
	if (!cli->json && js_has(reply->json, "note"))
		cli_complain(name, js_text(reply->json, "note", ""), NULL);
	if (cli->err_tty && !cli->json)
		fprintf(stderr, "See its output with \"decamp logs -f %s\".\n", name);
	fflush(stdout);
	return wait ? wait_for_job(cli, job, cli->json) : CLI_OK;
}

static int ask_long(const struct cli *cli, const char *verb, struct json_object *body,
		    struct cli_reply *reply)
{
	struct cli_request request = { .verb = verb, .body = body };
	int r = cli_send(cli, &request, reply);

	if (r != CLI_OK)
		cli_tell(cli, reply);
	return r;
}

int verb_run(struct cli *cli, int argc, char **argv)
{
	_cleanup_(cli_list_done) struct cli_list env = { 0 };
	_cleanup_(cli_list_done) struct cli_list inputs = { 0 };
	_cleanup_reply_ struct cli_reply reply = { 0 };
	_cleanup_free_ char *file_text = NULL;
	const char *cwd = NULL, *input = NULL, *file = NULL;
	bool no_cwd = false, wait = false;
	struct terms terms = { 0 };
	const struct cli_option options[] = {
		NAME_OPTION(terms),
		EVERY_OPTION(terms),
		FENCE_OPTION(terms),
		NEEDS_OPTION(terms),
		{ "cwd", 0, "DIR", "start in this folder; default: the current one",
		  .value = &cwd },
		{ "no-cwd", 0, NULL, "do not take the start folder's files along",
		  .flag = &no_cwd },
		{ "input", 0, "PATH", "take this file or folder along; may be repeated",
		  .list = &inputs },
		{ "env", 0, "NAME=VALUE", "set a variable; may be repeated", .list = &env },
		{ "file", 0, "FILE", "a job file: these options, one a line as \"name = value\"",
		  .value = &file },
		{ "stdin", 0, "FILE", "standard input; default: empty", .value = &input },
		{ "wait", 'w', NULL, "wait for the end and exit with the job's code",
		  .flag = &wait },
		{ 0 },
	};
	struct json_object *body;
	mode_t mask;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	r = cli_job_file(cli, options, file, &file_text);
	if (r != CLI_OK)
		return r;
	body = js_new();
	mask = umask(0);
	umask(mask);
	js_put_list(body, "argv", (const char *const *)cli->args, (size_t)cli->arg_count);
	put_path(body, "cwd", cwd ? cwd : ".");
	put_path(body, "stdin", input);
	put_inputs(body, &inputs);
	js_put_bool(body, "carry_cwd", !no_cwd);
	js_put_int(body, "umask", mask);
	r = put_env(cli, &env, body);
	r = r == CLI_OK ? put_terms(cli, &terms, body) : r;
	r = r == CLI_OK ? ask_long(cli, "run", body, &reply) : r;
	json_object_put(body);
	return r == CLI_OK ? started(cli, &reply, wait) : r;
}

int verb_adopt(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct terms terms = { 0 };
	const struct cli_option options[] = {
		NAME_OPTION(terms),
		EVERY_OPTION(terms),
		FENCE_OPTION(terms),
		NEEDS_OPTION(terms),
		{ 0 },
	};
	struct json_object *body;
	int64_t pid = 0;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	r = cli_number(cli, "PID", cli->args[0], 1, INT32_MAX, &pid);
	if (r != CLI_OK)
		return r;
	body = js_new();
	js_put_int(body, "pid", pid);
	r = put_terms(cli, &terms, body);
	r = r == CLI_OK ? ask_long(cli, "adopt", body, &reply) : r;
	json_object_put(body);
	return r == CLI_OK ? started(cli, &reply, false) : r;
}
