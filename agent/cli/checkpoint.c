// SPDX-License-Identifier: LGPL-2.1-or-later
/* A checkpoint as decampd tells it: its list of files, and parts of them. */
#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/cli/cli.h"

enum { READ_TIMEOUT_S = 300 };

static int errno_of(int exit_code)
{
	switch (exit_code) {
	case CLI_NOT_PERMITTED:
		return -EPERM;
	case CLI_NO_JOB:
		return -ENOENT;
	case CLI_TIMED_OUT:
		return -ETIMEDOUT;
	default:
		return -EIO;
	}
}

static int read_part(void *ctx, const struct export_file *file, uint64_t offset, void *ret_bytes,
		     size_t size)
{
	struct cli_checkpoint *c = ctx;
	struct cli_request request = { .verb = "read",
				       .raw = true,
				       .bytes = ret_bytes,
				       .bytes_max = size,
				       .timeout_s = READ_TIMEOUT_S };
	struct cli_reply reply;
	int r;

	request.body = js_new();
	js_put_text(request.body, c->of_folder ? "folder" : "job", c->job);
	js_put_text(request.body, "manifest", c->manifest);
	js_put_int(request.body, "file", (int64_t)file->index);
	js_put_int(request.body, "offset", (int64_t)offset);
	js_put_int(request.body, "size", (int64_t)size);
	r = cli_send(c->cli, &request, &reply);
	json_object_put(request.body);
	if (r == CLI_OK && reply.raw_size == size) {
		cli_reply_done(&reply);
		return 0;
	}
	if (r == CLI_OK) {
		snprintf(reply.reason, sizeof(reply.reason), "the answer is too short");
		r = CLI_FAILED;
	}
	cli_reply_done(&c->failure);
	c->failure = reply;
	c->failed = r;
	return errno_of(r);
}

/* ---- the list ---- */

static enum file_kind kind_of(const char *word)
{
	return !strcmp(word, "image") ? FILE_IMAGE :
	       !strcmp(word, "file")  ? FILE_UPPER :
					FILE_CLOSURE;
}

static enum export_type type_of(const char *word)
{
	static const char *const words[] = {
		[EXPORT_FILE] = "file", [EXPORT_FOLDER] = "dir",      [EXPORT_LINK] = "link",
		[EXPORT_FIFO] = "fifo", [EXPORT_DELETED] = "deleted",
	};

	for (size_t i = EXPORT_FILE; i < ARRAY_SIZE(words); i++)
		if (!strcmp(words[i], word))
			return (enum export_type)i;
	return EXPORT_OTHER;
}

static char *copy_text(struct json_object *json, const char *key)
{
	const char *text = js_text(json, key, NULL);
	char *copy = text ? strdup(text) : NULL;

	if (text && !copy)
		cli_out_of_memory();
	return copy;
}

static void add_files(struct cli_checkpoint *c, struct json_object *files)
{
	size_t count = js_length(files);
	struct export_file *bigger =
		reallocarray(c->set.files, c->set.count + count + 1, sizeof(*bigger));

	if (!bigger)
		cli_out_of_memory();
	c->set.files = bigger;
	for (size_t i = 0; i < count; i++) {
		struct json_object *json = js_item(files, i);
		struct export_file *f = &c->set.files[c->set.count];

		*f = (struct export_file){ .index = (uint64_t)js_int(json, "file", 0),
					   .kind = kind_of(js_text(json, "kind", "")),
					   .type = type_of(js_text(json, "type", "")),
					   .path = copy_text(json, "path"),
					   .target = copy_text(json, "target"),
					   .hardlink = copy_text(json, "hardlink"),
					   .size = (uint64_t)js_int(json, "size", 0),
					   .mode = (uint32_t)js_int(json, "mode", 0),
					   .uid = (uint32_t)js_int(json, "uid", 0),
					   .gid = (uint32_t)js_int(json, "gid", 0),
					   .mtime_ms = js_int(json, "mtime_ms", 0),
					   .content_size =
						   (uint64_t)js_int(json, "content_size", 0),
					   .chunks = (uint32_t)js_int(json, "chunks", 0) };
		if (f->path)
			c->set.count++;
	}
}

static void fill_head(struct cli_checkpoint *c, struct json_object *json)
{
	struct json_object *kept = js_member(json, "kept");

	snprintf(c->job, sizeof(c->job), "%s", js_text(json, "job", ""));
	snprintf(c->manifest, sizeof(c->manifest), "%s", js_text(json, "manifest", ""));
	snprintf(c->arch, sizeof(c->arch), "%s", js_text(json, "arch", ""));
	c->name = copy_text(json, "name");
	c->stdout_path = copy_text(json, "stdout");
	c->stderr_path = copy_text(json, "stderr");
	c->seq = js_int(json, "seq", 0);
	c->wall_ms = js_int(json, "wall_ms", 0);
	c->kept = calloc(js_length(kept) + 1, sizeof(*c->kept));
	if (!c->kept)
		cli_out_of_memory();
	for (; c->kept_count < js_length(kept); c->kept_count++) {
		struct json_object *one = js_item(kept, c->kept_count);
		struct cli_kept *k = &c->kept[c->kept_count];

		k->seq = js_int(one, "seq", 0);
		k->wall_ms = js_int(one, "wall_ms", 0);
		snprintf(k->manifest, sizeof(k->manifest), "%s", js_text(one, "manifest", ""));
	}
}

/* One page of the list; the first one tells which manifest the others are asked of. */
static int ask(struct cli_checkpoint *c, const char *job, int64_t seq, const char *manifest,
	       int64_t from, struct cli_reply *reply)
{
	struct cli_request request = { .verb = "snapshot", .timeout_s = READ_TIMEOUT_S };
	int r;

	request.body = js_new();
	js_put_text(request.body, c->of_folder ? "folder" : "job", job);
	js_put_text(request.body, "manifest", manifest);
	if (seq)
		js_put_int(request.body, "seq", seq);
	js_put_int(request.body, "from", from);
	r = cli_send(c->cli, &request, reply);
	json_object_put(request.body);
	return r;
}

static int open_any(struct cli_checkpoint c, const char *job, int64_t seq, const char *manifest,
		    bool with_files, struct cli_checkpoint *ret_checkpoint, struct cli_reply *reply)
{
	int64_t next = 0;
	int r = ask(&c, job, seq, manifest, with_files ? 0 : MANIFEST_FILES_MAX, reply);

	if (r == CLI_OK)
		fill_head(&c, reply->json);
	while (r == CLI_OK && with_files) {
		add_files(&c, js_member(reply->json, "files"));
		c.images_refused |= js_bool(reply->json, "images_refused", false);
		/* Always further on, or it would never end. */
		if (js_int(reply->json, "next", 0) <= next)
			break;
		next = js_int(reply->json, "next", 0);
		cli_reply_done(reply);
		r = ask(&c, c.job, 0, c.manifest, next, reply);
	}
	if (r != CLI_OK) {
		checkpoint_done(&c);
		return r;
	}
	export_files_sort(c.set.files, c.set.count);
	*ret_checkpoint = c;
	ret_checkpoint->set.read = read_part;
	ret_checkpoint->set.ctx = ret_checkpoint;
	return CLI_OK;
}

int checkpoint_open(const struct cli *cli, const char *job, int64_t seq, const char *manifest,
		    bool with_files, struct cli_checkpoint *ret_checkpoint, struct cli_reply *reply)
{
	return open_any((struct cli_checkpoint){ .cli = cli }, job, seq, manifest, with_files,
			ret_checkpoint, reply);
}

int checkpoint_open_version(const struct cli *cli, const char *folder, const char *manifest,
			    struct cli_checkpoint *ret_checkpoint, struct cli_reply *reply)
{
	return open_any((struct cli_checkpoint){ .cli = cli, .of_folder = true }, folder, 0,
			manifest, true, ret_checkpoint, reply);
}

void checkpoint_done(struct cli_checkpoint *c)
{
	export_files_free(c->set.files, c->set.count);
	free(c->name);
	free(c->stdout_path);
	free(c->stderr_path);
	free(c->kept);
	cli_reply_done(&c->failure);
	*c = (struct cli_checkpoint){ 0 };
}
