// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>

#include "agent/cli/cli.h"

static const struct table_column node_columns[] = {
	{ .title = "NAME" },
	{ .title = "ROOM" },
	{ .title = "STATE" },
	{ .title = "SEEN", .right = true },
	{ .title = "LOAD", .right = true },
	{ .title = "FREE MEM", .right = true },
	{ .title = "STORE", .right = true },
	{ .title = "STORE FREE", .right = true },
	{ .title = "JOBS", .right = true },
	{ .title = "ADDRESS" },
	{ .title = "FLAGS", .flexible = true },
	{ .title = "TAGS", .flexible = true }, /* if any machine has one */
};

static void add_node(struct table *t, struct json_object *node)
{
	const char *state = js_text(node, "state", "?");
	_cleanup_free_ char *flags = js_join(js_member(node, "flags"), "");
	bool self = js_bool(node, "self", false);

	table_row(t);
	table_cell(t, COLOUR_BOLD, "%s%s", js_text(node, "name", "?"), self ? " (this one)" : "");
	table_cell(t, COLOUR_NONE, "%s", js_text(node, "room", ""));
	table_cell(t, state_colour(state), "%s", state);
	if (self)
		table_cell(t, COLOUR_NONE, "now");
	else
		table_cell(t, COLOUR_NONE, "%s ago", text_age(js_int(node, "silent_ms", 0)).s);
	table_cell(t, COLOUR_NONE, "%.2f", js_double(node, "load", 0));
	table_cell(t, COLOUR_NONE, "%s", text_size(js_int(node, "mem_free", 0)).s);
	table_cell(t, COLOUR_NONE, "%s", text_size(js_int(node, "store_used", 0)).s);
	table_cell(t, COLOUR_NONE, "%s", text_size(js_int(node, "store_free", 0)).s);
	table_cell(t, COLOUR_NONE, "%lld", (long long)js_int(node, "jobs", 0));
	table_cell(t, COLOUR_NONE, "%s", js_text(node, "addr", ""));
	table_cell(t, COLOUR_NONE, "%s", flags);
	table_cell(t, COLOUR_NONE, "%s", js_text(node, "tags", ""));
}

int verb_nodes(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	_cleanup_(table_deinit) struct table t = { 0 };
	struct json_object *nodes;
	bool tags = false;
	int r = cli_parse(cli, NULL, argc, argv);

	if (r >= 0)
		return r;
	r = cli_call(cli, "nodes", js_new(), &reply);
	if (r != CLI_OK)
		return r;
	if (cli->json) {
		js_print(reply.json);
		return CLI_OK;
	}
	nodes = js_member(reply.json, "nodes");
	for (size_t i = 0; i < js_length(nodes); i++)
		tags |= *js_text(js_item(nodes, i), "tags", "") != '\0';
	table_init(&t, node_columns, ARRAY_SIZE(node_columns) - !tags);
	for (size_t i = 0; i < js_length(nodes); i++)
		add_node(&t, js_item(nodes, i));
	table_print(&t, cli);
	return CLI_OK;
}
