// SPDX-License-Identifier: LGPL-2.1-or-later
/* snapshot, read: what a kept checkpoint holds, and parts of it (docs/export.md). */
#define LOG_TAG "api"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "agent/job/readings.h"
#include "agent/pack/chunk.h"
#include "agent/util/io.h"

enum {
	PAGE_FILES = 4096, /* of one answer, or so many bytes of their names */
	PAGE_NAMES = 1 << 20,
	PART_MAX = 2 << 20, /* times API_CONNECTIONS_MAX: what readers can make us hold at most */
};

static const char *const
	kinds[] = { [FILE_IMAGE] = "image", [FILE_UPPER] = "file", [FILE_CLOSURE] = "closure" };

static void put_text(struct json_object *json, const char *key, const char *text)
{
	json_object_object_add(json, key, json_object_new_string(text));
}

static void put_int(struct json_object *json, const char *key, uint64_t value)
{
	json_object_object_add(json, key, json_object_new_int64((int64_t)value));
}

static void put_hash(struct json_object *json, const char *key, const void *bytes, size_t size)
{
	char hex[2 * sizeof(struct object_hash) + 1];

	hex_encode(bytes, size, hex);
	put_text(json, key, hex);
}

/* ---- which one ---- */

static struct json_object *kept_of(const struct target *t)
{
	struct json_object *kept = json_object_new_array();

	for (uint32_t i = 0; i < t->value.history_count; i++) {
		struct json_object *one = json_object_new_object();

		put_int(one, "seq", t->value.history[i].seq);
		put_int(one, "wall_ms", t->value.history[i].wall_ms);
		put_hash(one, "manifest", &t->value.history[i].manifest,
			 sizeof(struct object_hash));
		json_object_array_add(kept, one);
	}
	return kept;
}

static int not_kept(const struct target *t, int64_t seq, struct api_reply *reply)
{
	char list[128] = "";
	size_t at = 0;

	for (uint32_t i = t->value.history_count; i > 0; i--)
		at += (size_t)snprintf(list + at, sizeof(list) - at, "%s%llu", at ? ", " : "",
				       (unsigned long long)t->value.history[i - 1].seq);
	if (!t->value.history_count)
		return api_error(reply, -ENOENT, "no-checkpoint", t->seal.name,
				 "decamp ckpt JOB takes one", "it has no checkpoint%s",
				 t->value.state >= JOB_STATE_COLLECTED ? " any more" : " yet");
	return api_error(reply, -ENOENT, "no-such-checkpoint", t->seal.name,
			 "decamp history JOB lists them",
			 "checkpoint %lld is not kept; these are: %s", (long long)seq, list);
}

static bool is_of_folder(const struct api_call *call)
{
	return json_object_object_get_ex(call->body, "folder", NULL);
}

static int find_target(struct agent *a, const struct api_call *call, struct target *ret_target,
		       struct api_reply *reply)
{
	return is_of_folder(call) ? target_find_folder(a, call, ret_target, reply) :
				    target_find(a, call, ret_target, reply);
}

static int hash_of(const struct api_call *call, struct object_hash *ret_hash, bool *ret_given)
{
	const char *hex;
	int r = api_get_string(call, "manifest", 2 * sizeof(*ret_hash), &hex);

	*ret_given = r == 0 && hex;
	return *ret_given ? hex_decode(hex, ret_hash, sizeof(*ret_hash)) : r;
}

static int choose(const struct target *t, const struct api_call *call, struct object_hash *ret_hash,
		  struct api_reply *reply)
{
	int64_t seq;
	bool given;
	int r = hash_of(call, ret_hash, &given);

	if (r == 0)
		r = api_get_int(call, "seq", 0, INT64_MAX, 0, &seq);
	if (r < 0 || given)
		return r;
	for (uint32_t i = 0; i < t->value.history_count; i++) {
		if (seq && t->value.history[i].seq != (uint64_t)seq)
			continue;
		*ret_hash = t->value.history[i].manifest;
		return 0;
	}
	return not_kept(t, seq, reply);
}

static int open_target(struct target *t, const struct object_hash *hash,
		       struct reading **ret_reading, struct api_reply *reply)
{
	int r = reading_open(t, hash, ret_reading);

	if (r == -ENOENT)
		return api_error(reply, r, "no-such-checkpoint", t->seal.name,
				 "decamp history JOB lists those that are kept",
				 "that checkpoint is not kept any more");
	if (r == -EBUSY)
		return api_error(reply, r, "busy", t->seal.name, "try again in a moment",
				 "too many checkpoints are being looked into on this host");
	if (r < 0)
		return api_error(reply, r == -EPERM ? -EIO : r, "unreadable", t->seal.name,
				 "decamp nodes shows which hosts are away",
				 "its checkpoint cannot be read now: %s", strerror(-r));
	return 0;
}

/* ---- snapshot ---- */

static const char *type_of(mode_t mode)
{
	return S_ISREG(mode)  ? "file" :
	       S_ISDIR(mode)  ? "dir" :
	       S_ISLNK(mode)  ? "link" :
	       S_ISCHR(mode)  ? "deleted" :
	       S_ISFIFO(mode) ? "fifo" :
				"other";
}

/* As the job sees it; images have plain names. */
static bool path_of(const struct reading *s, const struct manifest_file *f, const char *path,
		    char *out, size_t size)
{
	if (f->kind == FILE_UPPER)
		return files_absolute_path(s->mounts, path, out, size);
	return snprintf(out, size, "%s%s", f->kind == FILE_CLOSURE ? "/" : "", path) < (int)size;
}

/* A file of a folder that is stored in chunks: what a reader must know to find them. */
static void describe_chunks(const struct manifest_file *f, struct json_object *json)
{
	struct chunk_note note = chunk_note_of(f->xattrs, f->xattrs_size);

	if (!note.count || !S_ISREG(f->st.st_mode))
		return;
	put_int(json, "content_size", note.size);
	put_int(json, "chunks", note.count);
}

static struct json_object *describe_file(const struct reading *s, size_t index)
{
	struct manifest_file f;
	struct json_object *json;
	char path[4200];

	manifest_file(s->manifest, index, &f);
	if (!path_of(s, &f, f.path, path, sizeof(path)))
		return NULL;
	json = json_object_new_object();
	put_int(json, "file", index);
	put_text(json, "kind", kinds[f.kind]);
	put_text(json, "path", path);
	put_text(json, "type", type_of(f.st.st_mode));
	put_int(json, "size", S_ISREG(f.st.st_mode) ? (uint64_t)f.st.st_size : 0);
	put_int(json, "mode", f.st.st_mode & 07777);
	put_int(json, "uid", f.st.st_uid);
	put_int(json, "gid", f.st.st_gid);
	put_int(json, "mtime_ms",
		(uint64_t)(f.st.st_mtim.tv_sec * 1000 + f.st.st_mtim.tv_nsec / 1000000));
	if (!strcmp(manifest_head(s->manifest)->engine, "folder"))
		describe_chunks(&f, json);
	if (f.link_target)
		put_text(json, "target", f.link_target);
	if (f.hardlink && path_of(s, &f, f.hardlink, path, sizeof(path)))
		put_text(json, "hardlink", path);
	return json;
}

static void describe_head(const struct target *t, const struct reading *s, struct json_object *json)
{
	const struct manifest_head *head = manifest_head(s->manifest);
	const char *cwd = strcmp(t->seal.cwd, "/") ? t->seal.cwd : "";
	char path[1200];

	put_hash(json, "job", &s->job, sizeof(s->job));
	put_text(json, "name", t->seal.name);
	put_hash(json, "manifest", &s->hash, sizeof(s->hash));
	put_int(json, "seq", head->seq);
	put_int(json, "wall_ms", head->wall_ms);
	put_text(json, "engine", head->engine);
	put_text(json, "arch", head->arch);
	put_text(json, "kernel", head->kernel);
	snprintf(path, sizeof(path), "%s/%s.out", cwd, t->seal.name);
	put_text(json, "stdout", path);
	snprintf(path, sizeof(path), "%s/%s.err", cwd, t->seal.name);
	put_text(json, "stderr", path);
	json_object_object_add(json, "kept", kept_of(t));
}

static size_t names_size(const struct manifest_file *f)
{
	return strlen(f->path) + (f->link_target ? strlen(f->link_target) : 0) +
	       (f->hardlink ? strlen(f->hardlink) : 0);
}

static int list_files(struct reading *s, const struct api_call *call, size_t from,
		      struct json_object *json)
{
	struct json_object *files = json_object_new_array();
	size_t count = manifest_file_count(s->manifest), i = from, names = 0;
	bool images_refused = false;
	int r = 0;

	for (; i < count && json_object_array_length(files) < PAGE_FILES && names < PAGE_NAMES;
	     i++) {
		struct manifest_file f;
		struct json_object *one;

		r = reading_may_read(s, call, i);
		manifest_file(s->manifest, i, &f);
		images_refused |= r < 0 && f.kind == FILE_IMAGE;
		if (r == -EPERM)
			continue;
		if (r < 0)
			break;
		one = describe_file(s, i);
		names += names_size(&f);
		if (one)
			json_object_array_add(files, one);
	}
	if (i < count)
		put_int(json, "next", i);
	json_object_object_add(json, "images_refused", json_object_new_boolean(images_refused));
	json_object_object_add(json, "files", files);
	return r == -EPERM ? 0 : r;
}

int verb_snapshot(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct object_hash hash;
	struct reading *s;
	struct target t;
	int64_t from;
	int r = find_target(agent, call, &t, reply);

	if (r < 0)
		return r;
	r = api_get_int(call, "from", 0, MANIFEST_FILES_MAX, 0, &from);
	if (r == 0)
		r = choose(&t, call, &hash, reply);
	if (r == 0)
		r = open_target(&t, &hash, &s, reply);
	if (r == 0) {
		reply->json = json_object_new_object();
		describe_head(&t, s, reply->json);
		r = list_files(s, call, (size_t)from, reply->json);
		reading_unref(agent, s);
		if (r < 0)
			r = api_error(reply, r, "unreadable", t.seal.name,
				      "decamp nodes shows which hosts are away",
				      "its checkpoint cannot be read now: %s", strerror(-r));
	}
	target_deinit(&t);
	return r;
}

/* ---- read ---- */

static int find_reading(struct agent *a, const struct api_call *call, struct reading **ret_reading,
			struct api_reply *reply)
{
	struct object_hash hash;
	struct job_id id;
	const char *hex;
	struct target t;
	bool given;
	int r = api_get_string(call, is_of_folder(call) ? "folder" : "job", 2 * sizeof(id), &hex);

	if (r == 0)
		r = hash_of(call, &hash, &given);
	if (r < 0 || !hex || !given || hex_decode(hex, &id, sizeof(id)) < 0)
		return api_error(reply, -EINVAL, "bad-request", "read",
				 "docs/api.md tells what belongs into it",
				 "job and manifest are to be given as snapshot told them");
	*ret_reading = reading_find(a, call, &id, &hash);
	if (*ret_reading)
		return 0;
	r = find_target(a, call, &t, reply);
	if (r < 0)
		return r;
	r = open_target(&t, &hash, ret_reading, reply);
	target_deinit(&t);
	return r;
}

/* A memfd, because that is what an answer can be streamed from. */
static int read_part(struct reading *s, size_t file, uint64_t offset, size_t size,
		     struct api_reply *reply)
{
	_cleanup_close_ int fd = memfd_new("part");
	void *bytes = NULL;
	int r;

	if (fd < 0)
		return fd;
	if (size && ftruncate(fd, (off_t)size) < 0)
		return -errno;
	if (size)
		bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (bytes == MAP_FAILED)
		return -errno;
	r = reading_read(s, file, offset, bytes, size);
	if (bytes)
		munmap(bytes, size);
	if (r < 0)
		return r;
	reply->stream_fd = take_fd(fd);
	reply->stream_size = size;
	return 0;
}

int verb_read(void *agent, const struct api_call *call, struct api_reply *reply)
{
	int64_t file, offset, size;
	struct reading *s;
	int r = find_reading(agent, call, &s, reply);

	if (r < 0)
		return r;
	r = api_get_int(call, "file", 0, MANIFEST_FILES_MAX, -1, &file);
	if (r == 0)
		r = api_get_int(call, "offset", 0, INT64_MAX, 0, &offset);
	if (r == 0)
		r = api_get_int(call, "size", 0, PART_MAX, 0, &size);
	if (r == 0 && (file < 0 || (size_t)file >= manifest_file_count(s->manifest)))
		r = -EINVAL;
	if (r == 0)
		r = reading_may_read(s, call, (size_t)file);
	if (r == 0)
		r = read_part(s, (size_t)file, (uint64_t)offset, (size_t)size, reply);
	if (r < 0 && r != -EINVAL && r != -EPERM)
		r = api_error(reply, r, "unreadable", "read",
			      "decamp nodes shows which hosts are away",
			      "a part of the checkpoint cannot be fetched now: %s", strerror(-r));
	reading_unref(agent, s);
	return r;
}
