// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <string.h>

#include "agent/cli/cli.h"

enum { TTL_MAX_S = 30 * 86400, TOKEN_MAX = 1024 };

/* What this machine is to be in the cluster. */
struct place {
	const char *room, *addr, *port;
};

#define ROOM_OPTION(p)                                                                          \
	{                                                                                       \
		"room", 0, "NAME", "machines of one room may fail together", .value = &(p).room \
	}
#define ADDR_OPTION(p)                                                                          \
	{                                                                                       \
		"addr", 0, "ADDRESS", "where the others reach this machine", .value = &(p).addr \
	}
#define PORT_OPTION(p)                                                           \
	{                                                                        \
		"port", 0, "PORT", "TCP port for the others", .value = &(p).port \
	}

/* Releases body. */
static int enter(const struct cli *cli, const char *verb, const struct place *place,
		 struct json_object *body)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	int64_t port = 0;
	int r = cli_number(cli, "--port", place->port, 1, 65535, &port);

	if (r != CLI_OK) {
		json_object_put(body);
		return r;
	}
	js_put_text(body, "room", place->room);
	js_put_text(body, "addr", place->addr);
	if (place->port)
		js_put_int(body, "port", port);
	r = cli_call_long(cli, verb, body, "cluster", &reply);
	if (r != CLI_OK)
		return r;
	if (cli->json)
		js_print(reply.json);
	else
		printf("cluster: %s\nnode:    %s\n", js_text(reply.json, "cluster", "?"),
		       js_text(reply.json, "node", "?"));
	return CLI_OK;
}

int verb_cluster_init(struct cli *cli, int argc, char **argv)
{
	struct place place = { 0 };
	const struct cli_option options[] = {
		ROOM_OPTION(place),
		ADDR_OPTION(place),
		PORT_OPTION(place),
		{ 0 },
	};
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	r = enter(cli, "cluster-init", &place, js_new());
	if (r == CLI_OK && cli->err_tty && !cli->json)
		fputs("Invite the next machine with \"decamp cluster invite\".\n", stderr);
	return r;
}

int verb_cluster_invite(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	const char *ttl_text = NULL;
	const struct cli_option options[] = {
		{ "ttl", 0, "SECONDS", "how long the invitation is good", .value = &ttl_text },
		{ 0 },
	};
	struct json_object *body;
	int64_t ttl = 0;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	r = cli_number(cli, "--ttl", ttl_text, 1, TTL_MAX_S, &ttl);
	if (r != CLI_OK)
		return r;
	body = js_new();
	if (ttl_text)
		js_put_int(body, "ttl_s", ttl);
	r = cli_call(cli, "cluster-invite", body, &reply);
	if (r != CLI_OK)
		return r;
	if (cli->json)
		js_print(reply.json);
	else
		puts(js_text(reply.json, "token", ""));
	if (cli->err_tty && !cli->json)
		fputs("Good for one machine. On it, as root: decamp cluster join TOKEN\n", stderr);
	return CLI_OK;
}

int verb_cluster_join(struct cli *cli, int argc, char **argv)
{
	struct place place = { 0 };
	const struct cli_option options[] = {
		ROOM_OPTION(place),
		ADDR_OPTION(place),
		PORT_OPTION(place),
		{ 0 },
	};
	char line[TOKEN_MAX] = "";
	const char *token;
	struct json_object *body;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	token = cli->args[0];
	/* A token is a secret: the command line shows it to every user of the machine. */
	if (strcmp(token, "-") == 0) {
		if (!fgets(line, sizeof(line), stdin))
			return cli_usage(cli, "no token on the standard input");
		line[strcspn(line, " \t\r\n")] = '\0';
		token = line;
	}
	body = js_new();
	js_put_text(body, "token", token);
	return enter(cli, "cluster-join", &place, body);
}
