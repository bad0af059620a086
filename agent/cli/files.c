// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/cli/cli.h"

/* "-rw-r--r--" as ls(1) shows it; the kind is decampd's word for what the entry is. */
static struct cli_text text_mode(int64_t mode, const char *kind)
{
	static const char letters[] = "rwxrwxrwx";
	struct cli_text text = { "----------" };

	if (strncmp(kind, "dir", 3) == 0 || S_ISDIR((mode_t)mode))
		text.s[0] = 'd';
	else if (strcmp(kind, "symlink") == 0 || strcmp(kind, "link") == 0)
		text.s[0] = 'l';
	for (int i = 0; i < 9; i++) {
		if (mode & (0400 >> i))
			text.s[1 + i] = letters[i];
	}
	return text;
}

static void print_files(const struct cli *cli, struct json_object *files)
{
	static const struct table_column columns[] = {
		{ .title = "MODE" },	{ .title = "SIZE", .right = true },
		{ .title = "CHANGED" }, { .title = "KIND" },
		{ .title = "PATH" },
	};
	_cleanup_(table_deinit) struct table t;

	table_init(&t, columns, ARRAY_SIZE(columns));
	for (size_t i = 0; i < js_length(files); i++) {
		struct json_object *file = js_item(files, i);
		const char *kind = js_text(file, "kind", "");

		table_row(&t);
		table_cell(&t, COLOUR_NONE, "%s", text_mode(js_int(file, "mode", 0), kind).s);
		table_cell(&t, COLOUR_NONE, "%s", text_size(js_int(file, "size", 0)).s);
		table_cell(&t, COLOUR_NONE, "%s", text_when(js_int(file, "mtime_ms", 0)).s);
		table_cell(&t, COLOUR_NONE, "%s", kind);
		table_cell(&t, COLOUR_NONE, "%s", js_text(file, "path", "?"));
	}
	table_print(&t, cli);
}

int verb_ls(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	int r = cli_call_job(cli, "ls", argc, argv, &reply);

	if (r >= 0)
		return r;
	if (cli->json)
		js_print(reply.json);
	else
		print_files(cli, js_member(reply.json, "files"));
	if (cli->err_tty && !cli->json)
		fprintf(stderr, "As of checkpoint %lld.\n",
			(long long)js_int(reply.json, "seq", 0));
	return CLI_OK;
}

int verb_cat(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct cli_request request = { .verb = "cat", .raw = true };
	char *colon;
	int r = cli_parse(cli, NULL, argc, argv);

	if (r >= 0)
		return r;
	colon = strchr(cli->args[0], ':');
	if (!colon || colon == cli->args[0] || !colon[1])
		return cli_usage(cli, "\"%s\" is not JOB:PATH", cli->args[0]);
	*colon = '\0';
	request.body = js_new();
	js_put_text(request.body, "job", cli->args[0]);
	js_put_text(request.body, "path", colon + 1);
	r = cli_send(cli, &request, &reply);
	json_object_put(request.body);
	if (r != CLI_OK)
		cli_tell(cli, &reply);
	return r;
}
