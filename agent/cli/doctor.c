// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>

#include "agent/cli/cli.h"

static void print_features(const struct cli *cli, struct json_object *features)
{
	static const struct table_column columns[] = {
		{ .title = "FEATURE" },
		{ .title = "HAVE" },
		{ .title = "DECAMP USES" },
		{ .title = "WHY", .flexible = true },
	};
	_cleanup_(table_deinit) struct table t;

	table_init(&t, columns, ARRAY_SIZE(columns));
	for (size_t i = 0; i < js_length(features); i++) {
		struct json_object *feature = js_item(features, i);
		bool have = js_bool(feature, "have", false);

		table_row(&t);
		table_cell(&t, COLOUR_BOLD, "%s", js_text(feature, "name", "?"));
		table_cell(&t, have ? COLOUR_GOOD : COLOUR_BUSY, "%s", have ? "yes" : "no");
		table_cell(&t, COLOUR_NONE, "%s", js_text(feature, "use", ""));
		table_cell(&t, COLOUR_NONE, "%s", js_text(feature, "why", ""));
	}
	table_print(&t, cli);
}

/* Text as it is; of an object its members, one a line. */
static void print_cluster(struct json_object *cluster)
{
	if (json_object_is_type(cluster, json_type_object)) {
		json_object_object_foreach(cluster, key, value)
		{
			const char *text = json_object_get_string(value);

			printf("cluster %s: %s\n", key, text ? text : "none");
		}
	} else if (cluster) {
		printf("cluster: %s\n", json_object_get_string(cluster));
	}
}

static void print_problem(struct json_object *problem)
{
	_cleanup_free_ char *text = NULL;
	const char *next = js_text(problem, "next", "");

	if (json_object_is_type(problem, json_type_object)) {
		if (asprintf(&text, "%s: %s", js_text(problem, "object", "?"),
			     js_text(problem, "reason", "?")) < 0)
			cli_out_of_memory();
	} else if (asprintf(&text, "%s", json_object_get_string(problem)) < 0) {
		cli_out_of_memory();
	}
	text_clean(text);
	printf("- %s\n", text);
	if (*next)
		printf("  %s\n", next);
}

static void print_list(const char *title, struct json_object *list)
{
	if (js_length(list) > 0)
		printf("\n%s:\n", title);
	for (size_t i = 0; i < js_length(list); i++)
		print_problem(js_item(list, i));
}

int verb_doctor(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	int r = cli_parse(cli, NULL, argc, argv);
	bool ok;

	if (r >= 0)
		return r;
	r = cli_call(cli, "doctor", js_new(), &reply);
	if (r != CLI_OK)
		return r;
	ok = js_bool(reply.json, "ok", false);
	if (cli->json) {
		js_print(reply.json);
		return ok ? CLI_OK : CLI_FAILED;
	}
	print_features(cli, js_member(reply.json, "features"));
	print_list("Warnings", js_member(reply.json, "warnings"));
	putchar('\n');
	print_cluster(js_member(reply.json, "cluster"));
	puts(ok ? "This machine can run, checkpoint and restore jobs." :
		  "This machine lacks something that decamp needs.");
	return ok ? CLI_OK : CLI_FAILED;
}

int verb_check(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct json_object *body;
	int64_t pid = 0;
	int r = cli_parse(cli, NULL, argc, argv);
	bool ok;

	if (r >= 0)
		return r;
	r = cli_number(cli, "PID", cli->args[0], 1, INT32_MAX, &pid);
	if (r != CLI_OK)
		return r;
	body = js_new();
	js_put_int(body, "pid", pid);
	r = cli_call(cli, "check", body, &reply);
	if (r != CLI_OK)
		return r;
	ok = js_bool(reply.json, "ok", false);
	if (cli->json) {
		js_print(reply.json);
		return ok ? CLI_OK : CLI_FAILED;
	}
	printf("%lld (%s): %s\n", (long long)pid, js_text(reply.json, "name", "?"),
	       ok ? "can be checkpointed" : "cannot be checkpointed");
	if (ok)
		printf("engine: %s\n", js_text(reply.json, "engine", "?"));
	if (ok && *js_text(reply.json, "native_reason", ""))
		printf("not native: %s\n", js_text(reply.json, "native_reason", ""));
	print_list("Problems", js_member(reply.json, "problems"));
	print_list("Notes", js_member(reply.json, "notes"));
	return ok ? CLI_OK : CLI_FAILED;
}
