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

static void print_nodes(const struct cli *cli, struct json_object *nodes)
{
	_cleanup_(table_deinit) struct table t = { 0 };
	bool tags = false;

	for (size_t i = 0; i < js_length(nodes); i++)
		tags |= *js_text(js_item(nodes, i), "tags", "") != '\0';
	table_init(&t, node_columns, ARRAY_SIZE(node_columns) - !tags);
	for (size_t i = 0; i < js_length(nodes); i++)
		add_node(&t, js_item(nodes, i));
	table_print(&t, cli);
}

static const struct table_column credit_columns[] = {
	{ .title = "NAME" },
	{ .title = "STATE" },
	{ .title = "KEPT", .right = true }, /* for others */
	{ .title = "SERVED", .right = true },
	{ .title = "USED", .right = true }, /* of others */
	{ .title = "FETCHED", .right = true },
	{ .title = "BALANCE", .right = true },
	{ .title = "REMARKS", .flexible = true },
};

static void add_sum(struct table *t, struct json_object *sum, bool known)
{
	if (!known) {
		table_cell(t, COLOUR_DIM, "?");
		table_cell(t, COLOUR_DIM, "?");
		return;
	}
	table_cell(t, COLOUR_NONE, "%s h", text_size(js_int(sum, "byte_hours", 0)).s);
	table_cell(t, COLOUR_NONE, "%lld (%s)", (long long)js_int(sum, "restores", 0),
		   text_size(js_int(sum, "restored_bytes", 0)).s);
}

static void add_balance(struct table *t, int64_t given, int64_t taken)
{
	bool owes = taken > given;

	table_cell(t, owes ? COLOUR_BUSY : COLOUR_NONE, "%s%s h",
		   owes		 ? "-" :
		   given > taken ? "+" :
				   "",
		   text_size(owes ? taken - given : given - taken).s);
}

static void add_remarks(struct table *t, struct json_object *credit)
{
	long long unverified = js_int(credit, "unverified_receipts", 0);
	long long forged = js_int(credit, "forged_receipts", 0);
	char text[160] = "";

	if (!js_bool(credit, "answered", false))
		snprintf(text, sizeof(text), "does not show its receipts");
	else if (forged)
		snprintf(text, sizeof(text), "shows %lld forged", forged);
	else if (unverified)
		snprintf(text, sizeof(text), "and %s h that cannot be verified",
			 text_size(js_int(js_member(credit, "unverified"), "byte_hours", 0)).s);
	table_cell(t, forged ? COLOUR_BAD : COLOUR_NONE, "%s", text);
}

static void print_credit(const struct cli *cli, struct json_object *nodes)
{
	_cleanup_(table_deinit) struct table t = { 0 };

	table_init(&t, credit_columns, ARRAY_SIZE(credit_columns));
	for (size_t i = 0; i < js_length(nodes); i++) {
		struct json_object *node = js_item(nodes, i), *credit = js_member(node, "credit");
		struct json_object *given = js_member(credit, "given");
		struct json_object *taken = js_member(credit, "taken");
		const char *state = js_text(node, "state", "?");
		bool answered = js_bool(credit, "answered", false);

		table_row(&t);
		table_cell(&t, COLOUR_BOLD, "%s%s", js_text(node, "name", "?"),
			   js_bool(node, "self", false) ? " (this one)" : "");
		table_cell(&t, state_colour(state), "%s", state);
		add_sum(&t, given, answered);
		add_sum(&t, taken, credit != NULL);
		if (answered)
			add_balance(&t, js_int(given, "byte_hours", 0),
				    js_int(taken, "byte_hours", 0));
		else
			table_cell(&t, COLOUR_DIM, "?");
		add_remarks(&t, credit);
	}
	table_print(&t, cli);
}

int verb_nodes(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	bool credit = false;
	const struct cli_option options[] = {
		{ "credit", 0, NULL, "what each kept for others, and others for it, by receipts",
		  .flag = &credit },
		{ 0 },
	};
	struct json_object *body;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	body = js_new();
	if (credit)
		js_put_bool(body, "credit", true);
	r = cli_call(cli, "nodes", body, &reply);
	if (r != CLI_OK)
		return r;
	if (cli->json)
		js_print(reply.json);
	else if (credit)
		print_credit(cli, js_member(reply.json, "nodes"));
	else
		print_nodes(cli, js_member(reply.json, "nodes"));
	return CLI_OK;
}
