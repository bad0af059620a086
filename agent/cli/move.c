// SPDX-License-Identifier: LGPL-2.1-or-later
#include <ctype.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/cli/cli.h"

static int call_for_job(const struct cli *cli, const char *verb, const char *job,
			struct json_object *body, struct cli_reply *reply)
{
	int r;

	js_put_text(body, "job", job);
	r = cli_call_long(cli, verb, body, job, reply);
	if (r == CLI_OK && cli->json)
		js_print(reply->json);
	return r;
}

int verb_ckpt(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	int r = cli_parse(cli, NULL, argc, argv);

	if (r >= 0)
		return r;
	r = call_for_job(cli, "ckpt", cli->args[0], js_new(), &reply);
	if (r == CLI_OK && !cli->json)
		printf("%s: checkpoint %lld is committed: paused %s, %s sent\n", cli->args[0],
		       (long long)js_int(reply.json, "seq", 0),
		       text_us(js_int(reply.json, "pause_us", 0)).s,
		       text_size(js_int(reply.json, "sent_bytes", 0)).s);
	return r;
}

static int tell_host(const struct cli *cli, const char *job, const struct cli_reply *reply)
{
	if (!cli->json)
		printf("%s: runs on %s\n", job, js_text(reply->json, "host", "?"));
	return CLI_OK;
}

int verb_migrate(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct json_object *body;
	int r = cli_parse(cli, NULL, argc, argv);

	if (r >= 0)
		return r;
	body = js_new();
	js_put_text(body, "host", cli->arg_count > 1 ? cli->args[1] : NULL);
	r = call_for_job(cli, "migrate", cli->args[0], body, &reply);
	return r == CLI_OK ? tell_host(cli, cli->args[0], &reply) : r;
}

char *cli_split_seq(char *job)
{
	char *at = strrchr(job, '@');

	if (!at || !at[1] || at == job)
		return NULL;
	for (const char *p = at + 1; *p; p++) {
		if (!isdigit((unsigned char)*p))
			return NULL;
	}
	*at = '\0';
	return at + 1;
}

int verb_restore(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	const char *host = NULL, *seq_text;
	const struct cli_option options[] = {
		{ "on", 0, "HOST", "on this machine; default: one is chosen", .value = &host },
		{ 0 },
	};
	struct json_object *body;
	int64_t seq = 0;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	seq_text = cli_split_seq(cli->args[0]);
	r = cli_number(cli, "the checkpoint", seq_text, 1, INT64_MAX, &seq);
	if (r != CLI_OK)
		return r;
	body = js_new();
	if (seq_text)
		js_put_int(body, "seq", seq);
	js_put_text(body, "host", host);
	r = call_for_job(cli, "restore", cli->args[0], body, &reply);
	return r == CLI_OK ? tell_host(cli, cli->args[0], &reply) : r;
}

int verb_vacate(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	bool undo = false;
	const struct cli_option options[] = {
		{ "undo", 0, NULL, "let this machine take jobs again", .flag = &undo },
		{ 0 },
	};
	struct json_object *body, *left;
	_cleanup_free_ char *names = NULL;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	body = js_new();
	js_put_bool(body, "undo", undo);
	r = cli_call_long(cli, "vacate", body, NULL, &reply);
	if (r != CLI_OK)
		return r;
	left = js_member(reply.json, "jobs_left");
	if (cli->json)
		js_print(reply.json);
	else if (undo)
		puts("this machine takes jobs again");
	else
		printf("%lld moved, %zu left here\n", (long long)js_int(reply.json, "moved", 0),
		       js_length(left));
	if (undo || js_length(left) == 0)
		return CLI_OK;
	fflush(stdout);
	names = js_join(left, "");
	cli_complain(names, "could not leave this machine", "\"decamp show JOB\" tells why.");
	return CLI_FAILED;
}
