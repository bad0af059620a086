// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <string.h>

#include "agent/cli/cli.h"

static void add_ckpt(struct table *t, struct json_object *c)
{
	bool restorable = js_bool(c, "restorable", false);

	table_row(t);
	table_cell(t, COLOUR_NONE, "%s", text_when(js_int(c, "wall_ms", 0)).s);
	table_cell(t, COLOUR_BOLD, "%lld", (long long)js_int(c, "seq", 0));
	table_cell(t, COLOUR_NONE, "%s", js_text(c, "host", "?"));
	table_cell(t, COLOUR_NONE, "%s", js_text(c, "reason", ""));
	table_cell(t, COLOUR_NONE, "%s", js_text(c, "engine", ""));
	table_cell(t, COLOUR_NONE, "%s", text_us(js_int(c, "pause_us", 0)).s);
	table_cell(t, COLOUR_NONE, "%s", js_text(c, "pause_mostly", ""));
	table_cell(t, COLOUR_NONE, "%s", text_us(js_int(c, "total_us", 0)).s);
	table_cell(t, COLOUR_NONE, "%s", text_size(js_int(c, "mem_bytes", 0)).s);
	table_cell(t, COLOUR_NONE, "%s", text_size(js_int(c, "file_bytes", 0)).s);
	table_cell(t, COLOUR_NONE, "%s", text_size(js_int(c, "new_bytes", 0)).s);
	table_cell(t, COLOUR_NONE, "%s", text_size(js_int(c, "delta_bytes", 0)).s);
	table_cell(t, COLOUR_NONE, "%s", text_size(js_int(c, "sent_bytes", 0)).s);
	table_cell(t, restorable ? COLOUR_GOOD : COLOUR_DIM, "%s", restorable ? "yes" : "no");
}

static void add_move(struct table *t, struct json_object *m)
{
	table_row(t);
	table_cell(t, COLOUR_NONE, "%s", text_when(js_int(m, "wall_ms", 0)).s);
	table_span(t, "moved %s -> %s: %s; from checkpoint %lld, %s repeated, back after %s",
		   js_text(m, "from", "?"), js_text(m, "to", "?"), js_text(m, "reason", ""),
		   (long long)js_int(m, "from_seq", 0), text_us(js_int(m, "lost_ms", 0) * 1000).s,
		   text_us(js_int(m, "resume_ms", 0) * 1000).s);
}

static int by_time(const void *a, const void *b)
{
	int64_t x = js_int(*(struct json_object *const *)a, "wall_ms", 0);
	int64_t y = js_int(*(struct json_object *const *)b, "wall_ms", 0);

	return x < y ? -1 : x > y;
}

/* Both lists in one, oldest first; moves are known by their "from_seq". */
static void print_history(const struct cli *cli, struct json_object *ckpts,
			  struct json_object *moves)
{
	static const struct table_column columns[] = {
		{ .title = "TIME" },
		{ .title = "CKPT", .right = true },
		{ .title = "HOST" },
		{ .title = "REASON", .flexible = true },
		{ .title = "ENGINE" },
		{ .title = "PAUSE", .right = true },
		{ .title = "MOSTLY" },
		{ .title = "TOTAL", .right = true },
		{ .title = "MEMORY", .right = true },
		{ .title = "FILES", .right = true },
		{ .title = "NEW", .right = true },
		{ .title = "DELTA", .right = true },
		{ .title = "SENT", .right = true },
		{ .title = "RESTORABLE" },
	};
	_cleanup_(table_deinit) struct table t;
	size_t ckpt_count = js_length(ckpts), move_count = js_length(moves);
	_cleanup_free_ struct json_object **rows =
		calloc(ckpt_count + move_count + 1, sizeof(struct json_object *));

	if (!rows)
		cli_out_of_memory();
	for (size_t i = 0; i < ckpt_count; i++)
		rows[i] = js_item(ckpts, i);
	for (size_t i = 0; i < move_count; i++)
		rows[ckpt_count + i] = js_item(moves, i);
	qsort(rows, ckpt_count + move_count, sizeof(struct json_object *), by_time);
	table_init(&t, columns, ARRAY_SIZE(columns));
	for (size_t i = 0; i < ckpt_count + move_count; i++) {
		if (js_has(rows[i], "seq"))
			add_ckpt(&t, rows[i]);
		else
			add_move(&t, rows[i]);
	}
	table_print(&t, cli);
}

int verb_history(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	int r = cli_call_job(cli, "history", argc, argv, &reply);

	if (r >= 0)
		return r;
	if (cli->json)
		js_print(reply.json);
	else
		print_history(cli, js_member(reply.json, "checkpoints"),
			      js_member(reply.json, "moves"));
	return CLI_OK;
}
