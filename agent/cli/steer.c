// SPDX-License-Identifier: LGPL-2.1-or-later
#include <ctype.h>
#include <json-c/json.h>
#include <signal.h>
#include <string.h>
#include <strings.h>

#include "agent/cli/cli.h"

/* The three short verbs that change a job's state and answer with it. */
static int steer(const struct cli *cli, const char *verb, struct json_object *body)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	int r;

	js_put_text(body, "job", cli->args[0]);
	r = cli_call(cli, verb, body, &reply);
	if (r != CLI_OK)
		return r;
	if (cli->json)
		js_print(reply.json);
	else
		printf("%s: %s\n", cli->args[0], js_text(reply.json, "state", "?"));
	return CLI_OK;
}

int verb_freeze(struct cli *cli, int argc, char **argv)
{
	int r = cli_parse(cli, NULL, argc, argv);

	return r >= 0 ? r : steer(cli, "freeze", js_new());
}

int verb_thaw(struct cli *cli, int argc, char **argv)
{
	int r = cli_parse(cli, NULL, argc, argv);

	return r >= 0 ? r : steer(cli, "thaw", js_new());
}

/* "9", "KILL" or "SIGKILL"; 0: none of these. */
static int signal_number(const char *text)
{
	if (isdigit((unsigned char)*text)) {
		char *end;
		long n = strtol(text, &end, 10);

		return *end || n < 1 || n > SIGRTMAX ? 0 : (int)n;
	}
	if (strncasecmp(text, "SIG", 3) == 0)
		text += 3;
	for (int n = 1; n < SIGRTMIN; n++) {
		const char *name = sigabbrev_np(n);

		if (name && strcasecmp(name, text) == 0)
			return n;
	}
	return 0;
}

int verb_kill(struct cli *cli, int argc, char **argv)
{
	const char *name = NULL;
	const struct cli_option options[] = {
		{ "signal", 's', "SIGNAL", "send only this signal, by name or number",
		  .value = &name },
		{ 0 },
	};
	struct json_object *body;
	int number = 0, r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	if (name)
		number = signal_number(name);
	if (name && number == 0)
		return cli_usage(cli, "\"%s\" is no signal", name);
	body = js_new();
	if (name)
		js_put_int(body, "signal", number);
	return steer(cli, "kill", body);
}
