// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/cli/version.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/cli/worktree.h"
#include "agent/util/io.h"

int version_table(const struct export_set *set, const struct export_file *file,
		  struct chunk_table *ret_table)
{
	const struct chunk_note note = { .size = file->content_size, .count = file->chunks };
	_cleanup_free_ uint8_t *bytes = NULL;
	size_t size;
	int r;

	*ret_table = (struct chunk_table){ 0 };
	if (!file->chunks)
		return 0;
	r = chunk_table_size(&note, file->size, &size);
	if (r < 0)
		return r;
	bytes = malloc(size);
	if (!bytes)
		return -ENOMEM;
	for (size_t at = 0, n; r == 0 && at < size; at += n) {
		n = size - at < EXPORT_READ_MAX ? size - at : EXPORT_READ_MAX;
		r = export_read(set, file, file->size - size + at, bytes + at, n);
	}
	return r < 0 ? r : chunk_table_decode(bytes, size, &note, file->size, ret_table);
}

/* A run of chunks is fetched with the gaps between them: these are a hundredth of it. */
int version_read(const struct export_set *set, const struct export_file *file,
		 const struct chunk_table *table, uint64_t offset, void *ret_bytes, size_t size)
{
	_cleanup_free_ uint8_t *stored = NULL;
	uint8_t *out = ret_bytes;

	if (!table->count)
		return export_read(set, file, offset, ret_bytes, size);
	stored = malloc(EXPORT_READ_MAX);
	if (!stored)
		return -ENOMEM;
	while (size > 0) {
		uint32_t i = chunk_table_find(table, offset), last = i;
		uint64_t from = table->places[i].stored;
		int r;

		while (last + 1 < table->count && table->places[last + 1].offset < offset + size &&
		       table->places[last + 2].stored - from <= EXPORT_READ_MAX)
			last++;
		r = export_read(set, file, from, stored,
				(size_t)(table->places[last + 1].stored - from));
		if (r < 0)
			return r;
		for (; i <= last && size > 0; i++) {
			const struct chunk_place *p = &table->places[i];
			size_t n = (size_t)(p[1].offset - offset);

			n = n < size ? n : size;
			memcpy(out, stored + (p->stored - from) + (offset - p->offset), n);
			out += n;
			offset += n;
			size -= n;
		}
	}
	return 0;
}

/* ---- a whole version into an empty folder ---- */

static int copy_content(const struct export_set *set, const struct export_file *f, int fd)
{
	uint64_t size = version_file_size(f);
	_cleanup_free_ uint8_t *bytes = malloc(EXPORT_READ_MAX);
	struct chunk_table table;
	int r = bytes ? version_table(set, f, &table) : -ENOMEM;

	if (r < 0)
		return r;
	for (uint64_t at = 0; r == 0 && at < size; at += EXPORT_READ_MAX) {
		size_t n = size - at < EXPORT_READ_MAX ? (size_t)(size - at) : EXPORT_READ_MAX;

		r = version_read(set, f, &table, at, bytes, n);
		if (r == 0)
			r = write_full(fd, bytes, n);
	}
	chunk_table_deinit(&table);
	return r;
}

static int fetch_file(const struct export_set *set, const struct export_file *f, int tree_fd,
		      const char *path)
{
	const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT },
					   { .tv_sec = f->mtime_ms / 1000,
					     .tv_nsec = f->mtime_ms % 1000 * 1000000 } };
	_cleanup_close_ int fd =
		openat(tree_fd, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : copy_content(set, f, fd);

	if (r == 0 && (fchmod(fd, f->mode & 0777) < 0 || futimens(fd, times) < 0))
		r = -errno;
	return r;
}

static int fetch_one(const struct export_set *set, const struct export_file *f, int tree_fd,
		     struct work_list *list)
{
	const char *path = f->path + 1;
	struct work_entry e = { .stored = (int64_t)f->size, .chunks = f->chunks };
	struct stat st;
	int r = 0;

	if (f->type == EXPORT_FOLDER && mkdirat(tree_fd, path, 0700) < 0)
		r = -errno;
	else if (f->type == EXPORT_LINK && symlinkat(f->target, tree_fd, path) < 0)
		r = -errno;
	else if (f->type == EXPORT_FILE)
		r = fetch_file(set, f, tree_fd, path);
	if (r == 0 && fstatat(tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
		r = -errno;
	if (r < 0)
		return r;
	e.path = strdup(path);
	e.target = f->target ? strdup(f->target) : NULL;
	e.ino = st.st_ino;
	e.mode = st.st_mode & (S_IFMT | 0777);
	if (!S_ISDIR(st.st_mode)) {
		e.mtime_ns = st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec;
		e.ctime_ns = st.st_ctim.tv_sec * INT64_C(1000000000) + st.st_ctim.tv_nsec;
	}
	e.size = S_ISREG(st.st_mode) ? st.st_size : 0;
	return e.path ? work_list_add_take(list, &e) : -ENOMEM;
}

/* The folders' own modes last: one may not be writable. */
static int set_modes(const struct export_set *set, int tree_fd, struct work_list *list)
{
	for (size_t i = set->count; i > 0; i--) {
		const struct export_file *f = &set->files[i - 1];
		struct work_entry *e = f->type == EXPORT_FOLDER && f->path[1] ?
					       work_list_find(list, f->path + 1) :
					       NULL;

		if (!e)
			continue;
		if (fchmodat(tree_fd, e->path, f->mode & 0777, 0) < 0)
			return -errno;
		e->mode = S_IFDIR | (f->mode & 0777);
	}
	return 0;
}

int worktree_newest(const struct cli *cli, const char *id, int64_t *ret_seq, char ret_manifest[65])
{
	struct cli_request request = { .verb = "folder-list", .timeout_s = CLI_TIMEOUT_S };
	struct json_object *row, *newest;
	struct cli_reply reply;
	int r;

	request.body = js_new();
	js_put_text(request.body, "folder", id);
	r = cli_send(cli, &request, &reply);
	json_object_put(request.body);
	row = js_item(js_member(reply.json, "folders"), 0);
	newest = js_item(js_member(row, "versions"), 0);
	snprintf(ret_manifest, 65, "%s", js_text(newest, "manifest", ""));
	*ret_seq = js_int(newest, "seq", 0);
	/* Its newest version may be one that cannot be read now. */
	r = r != CLI_OK || js_int(row, "seq", -1) != *ret_seq ? -EIO : 0;
	cli_reply_done(&reply);
	return r;
}

int worktree_fetch(const struct cli *cli, const char *id, int tree_fd, struct work_list *list,
		   int64_t *ret_seq, char ret_manifest[65])
{
	struct cli_checkpoint c;
	struct cli_reply reply;
	int r = worktree_newest(cli, id, ret_seq, ret_manifest);

	if (r < 0 || !*ret_seq)
		return -EIO;
	r = checkpoint_open_version(cli, id, ret_manifest, &c, &reply);
	cli_reply_done(&reply);
	if (r != CLI_OK)
		return -EIO;
	r = 0;
	for (size_t i = 0; r == 0 && i < c.set.count; i++)
		if (c.set.files[i].kind == FILE_UPPER && c.set.files[i].path[1])
			r = fetch_one(&c.set, &c.set.files[i], tree_fd, list);
	work_list_sort(list);
	if (r == 0)
		r = set_modes(&c.set, tree_fd, list);
	checkpoint_done(&c);
	return r;
}
