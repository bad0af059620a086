// SPDX-License-Identifier: LGPL-2.1-or-later
/* folder, folder create, folder delete: writable folders (docs/folder.md). */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/cli/worktree.h"
#include "agent/util/io.h"

enum { STATUS_MAX = 64 << 10 };

/* What the mount of this user says of its working copy: "copy" and "work" are added. */
static void add_work(struct json_object *folder)
{
	_cleanup_free_ char *path = NULL, *status = NULL, *text = NULL;
	struct json_object *json;
	char base[900];

	if (!js_bool(folder, "here", false) || js_int(folder, "uid", -1) != (int64_t)getuid() ||
	    worktree_base(base, sizeof(base)) < 0)
		return;
	if (asprintf(&path, "%s/%s/tree", base, js_text(folder, "folder", "")) < 0 ||
	    asprintf(&status, "%s/%s/status", base, js_text(folder, "folder", "")) < 0)
		cli_out_of_memory();
	if (access(path, F_OK) == 0)
		js_put_text(folder, "copy", path);
	if (read_file_at(AT_FDCWD, status, STATUS_MAX, &text, NULL) < 0)
		return;
	json = json_tokener_parse(text);
	if (json_object_is_type(json, json_type_object))
		json_object_object_add(folder, "work", json);
	else
		json_object_put(json);
}

/* What is not on other hosts, in words. */
static void add_unsent(struct table *t, struct json_object *folder)
{
	struct json_object *work = js_member(folder, "work");
	int64_t left = js_int(work, "interrupted", 0), open = js_int(work, "open", 0);
	const char *problem = js_text(work, "problem", "");

	if (*problem)
		table_cell(t, COLOUR_BAD, "since %s: %s", text_when(js_int(work, "since_ms", 0)).s,
			   problem);
	else if (left)
		table_cell(t, COLOUR_BAD, "%lld files were cut off in the middle", (long long)left);
	else if (js_bool(work, "dirty", false))
		table_cell(t, COLOUR_BUSY, "since %s", text_when(js_int(work, "since_ms", 0)).s);
	else if (open)
		table_cell(t, COLOUR_BUSY, "%lld files are open", (long long)open);
	else
		table_cell(t, COLOUR_NONE, "-");
}

static void add_size(struct table *t, struct json_object *folder, const char *key)
{
	table_cell(t, COLOUR_NONE, "%s",
		   js_has(folder, key) ? text_size(js_int(folder, key, 0)).s : "-");
}

static void print_folders(const struct cli *cli, struct json_object *folders)
{
	static const struct table_column columns[] = {
		{ .title = "NAME" },
		{ .title = "ID" },
		{ .title = "USER" },
		{ .title = "HOST" },
		{ .title = "STATE" },
		{ .title = "VERSION" },
		{ .title = "KEPT", .right = true },
		{ .title = "SIZE", .right = true },
		{ .title = "STORED", .right = true },
		{ .title = "SENT", .right = true },
		{ .title = "NOT SENT", .flexible = true },
	};
	_cleanup_(table_deinit) struct table t;

	table_init(&t, columns, ARRAY_SIZE(columns));
	for (size_t i = 0; i < js_length(folders); i++) {
		struct json_object *f = js_item(folders, i);
		int64_t seq = js_int(f, "seq", 0);

		table_row(&t);
		table_cell(&t, COLOUR_BOLD, "%s", js_text(f, "label", js_text(f, "name", "?")));
		table_cell(&t, COLOUR_NONE, "%.8s", js_text(f, "folder", "?"));
		table_cell(&t, COLOUR_NONE, "%s", js_text(f, "user", "?"));
		table_cell(&t, COLOUR_NONE, "%s", js_text(f, "host", "?"));
		table_cell(&t, COLOUR_NONE, "%s", js_text(f, "state", "?"));
		if (seq)
			table_cell(&t, COLOUR_NONE, "@%lld, %s", (long long)seq,
				   text_when(js_int(f, "wall_ms", 0)).s);
		else
			table_cell(&t, COLOUR_BUSY, "none");
		if (js_has(f, "kept"))
			table_cell(&t, COLOUR_NONE, "%lld", (long long)js_int(f, "kept", 0));
		else
			table_cell(&t, COLOUR_NONE, "-");
		add_size(&t, f, "bytes");
		add_size(&t, f, "stored_bytes");
		add_size(&t, f, "sent_bytes");
		add_unsent(&t, f);
	}
	table_print(&t, cli);
}

static void print_versions(const struct cli *cli, struct json_object *folder)
{
	static const struct table_column columns[] = {
		{ .title = "VERSION" },
		{ .title = "TIME" },
		{ .title = "ENTRIES", .right = true },
		{ .title = "SIZE", .right = true },
		{ .title = "SENT", .right = true },
		{ .title = "BY" },
	};
	struct json_object *versions = js_member(folder, "versions");
	_cleanup_(table_deinit) struct table t;

	table_init(&t, columns, ARRAY_SIZE(columns));
	for (size_t i = 0; i < js_length(versions); i++) {
		struct json_object *v = js_item(versions, i);

		table_row(&t);
		table_cell(&t, COLOUR_BOLD, "@%lld", (long long)js_int(v, "seq", 0));
		table_cell(&t, COLOUR_NONE, "%s", text_when(js_int(v, "wall_ms", 0)).s);
		table_cell(&t, COLOUR_NONE, "%lld", (long long)js_int(v, "files", 0));
		table_cell(&t, COLOUR_NONE, "%s", text_size(js_int(v, "bytes", 0)).s);
		add_size(&t, v, "sent_bytes");
		table_cell(&t, COLOUR_NONE, "%s", js_bool(v, "sync", false) ? "fsync" : "time");
	}
	table_print(&t, cli);
	if (*js_text(folder, "copy", ""))
		printf("working copy: %s\n", js_text(folder, "copy", ""));
}

int verb_folder(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct json_object *folders, *body;
	int r = cli_parse(cli, NULL, argc, argv);

	if (r >= 0)
		return r;
	body = js_new();
	js_put_text(body, "folder", cli->arg_count ? cli->args[0] : NULL);
	r = cli_call(cli, "folder-list", body, &reply);
	if (r != CLI_OK)
		return r;
	folders = js_member(reply.json, "folders");
	for (size_t i = 0; i < js_length(folders); i++)
		add_work(js_item(folders, i));
	if (cli->json)
		js_print(reply.json);
	else
		print_folders(cli, folders);
	if (!cli->json && cli->arg_count && js_length(folders) == 1) {
		puts("");
		print_versions(cli, js_item(folders, 0));
	}
	if (cli->err_tty && !cli->json && js_length(folders) == 0)
		fprintf(stderr, "No folders. Make one with \"decamp folder create NAME\".\n");
	return CLI_OK;
}

int verb_folder_create(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	const char *keep_text = NULL, *every_text = NULL;
	const struct cli_option options[] = {
		{ "keep", 0, "N", "keep the last N versions (8; 32 at most)", .value = &keep_text },
		{ "every", 0, "SECONDS", "time from a change to a new version (30)",
		  .value = &every_text },
		{ 0 },
	};
	int64_t keep = 0, every_s = 0;
	struct json_object *body;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	r = cli_number(cli, "--keep", keep_text, 1, 32, &keep);
	if (r == CLI_OK)
		r = cli_number(cli, "--every", every_text, 1, 86400, &every_s);
	if (r != CLI_OK)
		return r;
	body = js_new();
	js_put_text(body, "name", cli->args[0]);
	if (keep)
		js_put_int(body, "keep", keep);
	if (every_s)
		js_put_int(body, "every_s", every_s);
	r = cli_call(cli, "folder-create", body, &reply);
	if (r == CLI_OK && cli->json)
		js_print(reply.json);
	else if (r == CLI_OK)
		printf("%s is there. Mounted (decamp mount DIR), it is DIR/folders/%s.\n",
		       cli->args[0], cli->args[0]);
	return r;
}

int verb_folder_delete(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct json_object *body;
	char base[900];
	int r = cli_parse(cli, NULL, argc, argv);

	if (r >= 0)
		return r;
	body = js_new();
	js_put_text(body, "folder", cli->args[0]);
	r = cli_call(cli, "folder-delete", body, &reply);
	if (r != CLI_OK)
		return r;
	if (cli->json)
		js_print(reply.json);
	else if (worktree_base(base, sizeof(base)) == 0)
		printf("All its versions are given up. The working copy stays: %s/%s\n", base,
		       js_text(reply.json, "folder", ""));
	return CLI_OK;
}
