// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <string.h>

#include "agent/cli/cli.h"

static void add_state(struct table *t, struct json_object *job)
{
	const char *state = js_text(job, "state", "?");
	int64_t done = js_int(job, "step_done", 0), total = js_int(job, "step_total", 0);
	enum cli_colour colour = state_colour(state);

	if (strcmp(state, "done") == 0 || strcmp(state, "collected") == 0)
		table_cell(t, js_int(job, "exit_status", 0) ? COLOUR_BAD : colour, "%s (%s)", state,
			   text_end(job).s);
	else if (*js_text(job, "step", "") && total > 0 && done >= 0 && done <= total)
		table_cell(t, colour, "%s %d %%", state,
			   (int)(100.0 * (double)done / (double)total));
	else
		table_cell(t, colour, "%s", state);
}

static void add_ckpt(struct table *t, struct json_object *job)
{
	int64_t seq = js_int(job, "seq", 0);

	if (seq <= 0)
		table_cell(t, COLOUR_BUSY, "none");
	else
		table_cell(t, COLOUR_NONE, "#%lld, %s", (long long)seq,
			   text_age(js_int(job, "ckpt_age_ms", 0)).s);
}

static void print_jobs(const struct cli *cli, struct json_object *jobs)
{
	static const struct table_column columns[] = {
		{ .title = "NAME" },
		{ .title = "JOB" },
		{ .title = "USER" },
		{ .title = "STATE" },
		{ .title = "HOST" },
		{ .title = "CKPT" },
		{ .title = "COMMAND", .flexible = true },
	};
	_cleanup_(table_deinit) struct table t;

	table_init(&t, columns, ARRAY_SIZE(columns));
	for (size_t i = 0; i < js_length(jobs); i++) {
		struct json_object *job = js_item(jobs, i);

		table_row(&t);
		table_cell(&t, COLOUR_BOLD, "%s", js_text(job, "name", "?"));
		table_cell(&t, COLOUR_NONE, "%.8s", js_text(job, "job", "?"));
		table_cell(&t, COLOUR_NONE, "%s", js_text(job, "user", "?"));
		add_state(&t, job);
		table_cell(&t, COLOUR_NONE, "%s", js_text(job, "host", "-"));
		add_ckpt(&t, job);
		table_cell(&t, COLOUR_NONE, "%s", js_text(job, "command", ""));
	}
	table_print(&t, cli);
}

int verb_ps(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	bool all = false;
	const struct cli_option options[] = {
		{ "all", 'a', NULL, "also jobs that have ended", .flag = &all },
		{ 0 },
	};
	struct json_object *body;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	body = js_new();
	js_put_bool(body, "all", all);
	r = cli_call(cli, "ps", body, &reply);
	if (r != CLI_OK)
		return r;
	if (cli->json)
		js_print(reply.json);
	else
		print_jobs(cli, js_member(reply.json, "jobs"));
	if (cli->err_tty && !cli->json && js_length(js_member(reply.json, "jobs")) == 0)
		fprintf(stderr, "No jobs%s. Start one with \"decamp run -- COMMAND\".\n",
			all ? "" : " at work");
	return CLI_OK;
}
