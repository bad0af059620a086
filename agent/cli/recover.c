// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <string.h>

#include "agent/cli/cli.h"

static void print_found(const struct cli *cli, struct json_object *list)
{
	static const struct table_column columns[] = {
		{ .title = "TIME" },
		{ .title = "CKPT", .right = true },
		{ .title = "TOKEN", .right = true },
		{ .title = "COPIES", .right = true },
		{ .title = "COMMITTED" },
		{ .title = "MANIFEST" },
	};
	_cleanup_(table_deinit) struct table t;

	table_init(&t, columns, ARRAY_SIZE(columns));
	for (size_t i = 0; i < js_length(list); i++) {
		struct json_object *c = js_item(list, i);

		table_row(&t);
		table_cell(&t, COLOUR_NONE, "%s", text_when(js_int(c, "wall_ms", 0)).s);
		table_cell(&t, COLOUR_BOLD, "%lld", (long long)js_int(c, "seq", 0));
		table_cell(&t, COLOUR_NONE, "%lld", (long long)js_int(c, "token", 0));
		table_cell(&t, COLOUR_NONE, "%lld", (long long)js_int(c, "holders", 0));
		table_cell(&t, COLOUR_NONE, "%s",
			   js_bool(c, "committed", false) ? "yes" : "not known");
		table_cell(&t, COLOUR_NONE, "%.16s", js_text(c, "manifest", "?"));
	}
	table_print(&t, cli);
}

static const char *advice(const char *standing)
{
	if (strcmp(standing, "answers") == 0)
		return "Its guardians answer: decamp restore brings it back.";
	if (strcmp(standing, "unknown") == 0)
		return "No member knows its register.";
	return "No majority of its guardians answers. It goes on when they return, and not before.";
}

int verb_recover(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	int r = cli_call_job(cli, "recover", argc, argv, &reply);

	if (r >= 0)
		return r;
	if (cli->json) {
		js_print(reply.json);
		return CLI_OK;
	}
	print_found(cli, js_member(reply.json, "checkpoints"));
	puts(advice(js_text(reply.json, "register", "")));
	return CLI_OK;
}
