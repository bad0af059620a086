// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/cli/worktree.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <pwd.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "agent/pack/keys.h"
#include "agent/util/io.h"

enum { INDEX_MAX = 128 << 20 };

uint64_t work_now_ms(void)
{
	return now_boot_ns() / 1000000;
}

/* ---- lists ---- */

static void entry_deinit(struct work_entry *e)
{
	free(e->path);
	free(e->target);
}

int work_list_add_take(struct work_list *list, struct work_entry *entry)
{
	size_t names =
		WORK_NAME_COST(strlen(entry->path) + (entry->target ? strlen(entry->target) : 0));

	if (list->count >= WORK_FILES_MAX || names > WORK_NAMES_MAX - list->names) {
		entry_deinit(entry);
		return -E2BIG;
	}
	if (list->count == list->room) {
		size_t room = list->room ? 2 * list->room : 256;
		struct work_entry *bigger = reallocarray(list->items, room, sizeof(*bigger));

		if (!bigger) {
			entry_deinit(entry);
			return -ENOMEM;
		}
		list->items = bigger;
		list->room = room;
	}
	list->items[list->count++] = *entry;
	list->names += names;
	return 0;
}

static int compare(const void *a, const void *b)
{
	return strcmp(((const struct work_entry *)a)->path, ((const struct work_entry *)b)->path);
}

void work_list_sort(struct work_list *list)
{
	if (list->count > 1)
		qsort(list->items, list->count, sizeof(*list->items), compare);
}

struct work_entry *work_list_find(const struct work_list *list, const char *path)
{
	const struct work_entry key = { .path = (char *)path };

	return list->count ? bsearch(&key, list->items, list->count, sizeof(key), compare) : NULL;
}

void work_list_deinit(struct work_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		entry_deinit(&list->items[i]);
	free(list->items);
	*list = (struct work_list){ 0 };
}

/* ---- what is there ---- */

static int64_t ns_of(struct timespec t)
{
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static int walk(int dir_fd, const char *path, struct work_list *list);

/* Apart from the walk, which calls itself: the text is large. */
static __attribute__((noinline)) int read_target(int dir_fd, const char *name, char **ret_target)
{
	char target[WORK_PATH_MAX];
	ssize_t n = readlinkat(dir_fd, name, target, sizeof(target) - 1);

	if (n < 0)
		return -errno;
	target[n] = '\0';
	*ret_target = strdup(target);
	return *ret_target ? 0 : -ENOMEM;
}

int work_path_check(const char *path)
{
	unsigned int depth = 1;

	if (strlen(path) >= WORK_PATH_MAX)
		return -ENAMETOOLONG;
	for (; *path; path++)
		depth += *path == '/';
	return depth > WORK_DEPTH_MAX ? -ENAMETOOLONG : 0;
}

static int walk_one(int dir_fd, const char *folder, const char *name, struct work_list *list)
{
	struct work_entry e = { 0 };
	struct stat st;
	int r;

	if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode) && !S_ISLNK(st.st_mode))
		return 0;
	if (asprintf(&e.path, "%s%s%s", folder, *folder ? "/" : "", name) < 0)
		return -ENOMEM;
	r = work_path_check(e.path);
	if (r == 0 && S_ISREG(st.st_mode) && st.st_size > WORK_FILE_MAX)
		r = -EFBIG;
	if (r == 0 && S_ISLNK(st.st_mode))
		r = read_target(dir_fd, name, &e.target);
	if (r < 0) {
		entry_deinit(&e);
		return r == -ENOENT ? 0 : r;
	}
	e.ino = st.st_ino;
	e.mode = st.st_mode & (S_IFMT | 0777);
	e.size = S_ISREG(st.st_mode) ? st.st_size : 0;
	e.mtime_ns = S_ISDIR(st.st_mode) ? 0 : ns_of(st.st_mtim);
	e.ctime_ns = S_ISDIR(st.st_mode) ? 0 : ns_of(st.st_ctim);
	if (S_ISDIR(st.st_mode)) {
		_cleanup_free_ char *path = strdup(e.path);
		int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

		r = fd < 0 || !path ? -errno : walk(fd, path, list);
		if (r < 0) {
			entry_deinit(&e);
			return r;
		}
	}
	return work_list_add_take(list, &e);
}

/* Takes the fd. */
static int walk(int dir_fd, const char *path, struct work_list *list)
{
	_cleanup_closedir_ DIR *dir = fdopendir(dir_fd);
	struct dirent *entry;
	int r = 0;

	if (!dir) {
		r = -errno;
		close(dir_fd);
		return r;
	}
	while (r == 0 && (errno = 0, entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			r = walk_one(dirfd(dir), path, entry->d_name, list);
	return r == 0 && errno ? -errno : r;
}

int worktree_walk(struct worktree *w, struct work_list *ret_list)
{
	struct work_list list = { 0 };
	int fd = openat(w->tree_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r = fd < 0 ? -errno : walk(fd, "", &list);

	w->entries = list.count;
	w->names = list.names;
	if (r < 0) {
		work_list_deinit(&list);
		return r;
	}
	work_list_sort(&list);
	*ret_list = list;
	return 0;
}

int worktree_has_room(const struct worktree *w, const char *path, const char *target)
{
	size_t names = WORK_NAME_COST(strlen(path) + (target ? strlen(target) : 0));
	int r = work_path_check(path);

	if (r < 0)
		return r;
	return w->entries >= WORK_FILES_MAX || w->names + names > WORK_NAMES_MAX ? -ENOSPC : 0;
}

void worktree_count(struct worktree *w, const char *path, const char *target)
{
	w->entries++;
	w->names += WORK_NAME_COST(strlen(path) + (target ? strlen(target) : 0));
}

void worktree_uncount(struct worktree *w, const char *path)
{
	size_t names = WORK_NAME_COST(strlen(path));

	w->entries -= w->entries > 0;
	w->names -= w->names < names ? w->names : names;
}

int worktree_may_move(struct worktree *w, const char *from, const char *to)
{
	struct work_list list = { 0 };
	struct stat st;
	int fd, r = work_path_check(to);

	if (r < 0 || fstatat(w->tree_fd, from, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
	    !S_ISDIR(st.st_mode))
		return r;
	fd = openat(w->tree_fd, from, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	r = fd < 0 ? -errno : walk(fd, to, &list);
	if (r == 0 && strlen(to) > strlen(from) &&
	    w->names + list.count * (strlen(to) - strlen(from)) > WORK_NAMES_MAX)
		r = -E2BIG;
	if (r == 0 && strlen(to) > strlen(from))
		w->names += list.count * (strlen(to) - strlen(from));
	work_list_deinit(&list);
	return r == -E2BIG ? -ENOSPC : r == -EFBIG ? 0 : r;
}

/* ---- writers ---- */

enum mark { MARK_NONE, MARK_OPEN, MARK_CLOSED };

/* One name at any time: the other one is renamed, or removed after. */
static void mark(const struct worktree *w, uint64_t ino, enum mark now)
{
	char open[48], closed[96];
	int fd;

	snprintf(open, sizeof(open), "writing/%llu", (unsigned long long)ino);
	snprintf(closed, sizeof(closed), "%s.%s", open, w->boot);
	if (now == MARK_CLOSED && renameat(w->dir_fd, open, w->dir_fd, closed) == 0)
		return;
	if (now == MARK_OPEN && renameat(w->dir_fd, closed, w->dir_fd, open) == 0)
		return;
	if (now == MARK_NONE) {
		(void)unlinkat(w->dir_fd, open, 0);
		(void)unlinkat(w->dir_fd, closed, 0);
		return;
	}
	fd = openat(w->dir_fd, now == MARK_OPEN ? open : closed, O_WRONLY | O_CREAT | O_CLOEXEC,
		    0600);
	close_fdp(&fd);
}

static int add_writer(struct worktree *w, const struct work_writer *writer)
{
	struct work_writer *bigger = reallocarray(w->writers, w->writer_count + 1, sizeof(*bigger));

	if (!bigger)
		return -ENOMEM;
	w->writers = bigger;
	w->writers[w->writer_count++] = *writer;
	return 0;
}

int worktree_writer_add(struct worktree *w, uint64_t ino)
{
	int r;

	for (size_t i = 0; i < w->writer_count; i++) {
		struct work_writer *writer = &w->writers[i];

		if (writer->ino != ino)
			continue;
		if (!writer->count)
			mark(w, ino, MARK_OPEN);
		writer->count += !writer->left;
		writer->left = writer->syncing = false;
		return 0;
	}
	r = add_writer(w, &(struct work_writer){ .ino = ino, .count = 1 });
	if (r == 0)
		mark(w, ino, MARK_OPEN);
	return r;
}

void worktree_writer_remove(struct worktree *w, uint64_t ino)
{
	for (size_t i = 0; i < w->writer_count; i++) {
		if (w->writers[i].ino != ino)
			continue;
		if (--w->writers[i].count == 0)
			mark(w, ino, MARK_CLOSED);
		return;
	}
}

static bool begin_sync(struct worktree *w, uint64_t *ret_changes)
{
	bool any = false;

	pthread_mutex_lock(&w->lock);
	*ret_changes = w->changes;
	for (size_t i = 0; i < w->writer_count; i++)
		if (w->writers[i].count == 0)
			any = w->writers[i].syncing = true;
	pthread_mutex_unlock(&w->lock);
	return any;
}

int worktree_sync(struct worktree *w, uint64_t *ret_changes)
{
	if (!begin_sync(w, ret_changes))
		return 0;
	if (syncfs(w->tree_fd) < 0)
		return -errno;
	pthread_mutex_lock(&w->lock);
	for (size_t i = 0; i < w->writer_count;) {
		if (!w->writers[i].syncing) {
			i++;
			continue;
		}
		mark(w, w->writers[i].ino, MARK_NONE);
		w->writers[i] = w->writers[--w->writer_count];
	}
	pthread_mutex_unlock(&w->lock);
	return fsync(w->writing_fd) < 0 ? -errno : 0;
}

bool worktree_is_held(const struct worktree *w, uint64_t ino)
{
	for (size_t i = 0; i < w->writer_count; i++)
		if (w->writers[i].ino == ino)
			return true;
	return false;
}

void worktree_changed(struct worktree *w)
{
	w->changes++;
	if (!w->dirty_ms) {
		w->dirty_ms = work_now_ms();
		worktree_save_status(w);
	}
}

bool worktree_is_due(struct worktree *w)
{
	uint64_t now = work_now_ms();
	bool due;

	pthread_mutex_lock(&w->lock);
	due = !w->read_only && w->dirty_ms && w->changes != w->sent_changes &&
	      now >= w->dirty_ms + (uint64_t)w->every_s * 1000 && now >= w->retry_ms;
	pthread_mutex_unlock(&w->lock);
	return due;
}

static const struct work_entry *entry_of(const struct work_list *list, uint64_t ino)
{
	for (size_t i = 0; i < list->count; i++)
		if (list->items[i].ino == ino && S_ISREG(list->items[i].mode))
			return &list->items[i];
	return NULL;
}

static bool is_sent(const struct worktree *w, const struct work_entry *e)
{
	const struct work_entry *old = work_list_find(&w->index, e->path);

	return old && work_entry_same(old, e);
}

/* What was open, or was closed before a cut and perhaps never came to the disk, is half written,
 * unless it is as in the newest version. */
static int take_mark(struct worktree *w, const char *name, const struct work_list *list)
{
	char *end;
	uint64_t ino = strtoull(name, &end, 10);
	const struct work_entry *e = list && ino ? entry_of(list, ino) : NULL;
	char open[24];

	if (!ino || worktree_is_held(w, ino))
		return 0;
	if (*end == '.' && !strcmp(end + 1, w->boot))
		return add_writer(w, &(struct work_writer){ .ino = ino });
	if (list && (!e || is_sent(w, e))) {
		(void)unlinkat(w->writing_fd, name, 0);
		return 0;
	}
	snprintf(open, sizeof(open), "%llu", (unsigned long long)ino);
	if (*end && renameat(w->writing_fd, name, w->writing_fd, open) < 0)
		return -errno;
	return add_writer(w, &(struct work_writer){ .ino = ino, .count = 1, .left = true });
}

/* A walk that fails is no reason to hide the files: each commit says why. */
static int find_left(struct worktree *w)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct work_list list = { 0 };
	struct dirent *entry;
	bool walked;
	int fd, r = 0;

	if (mkdirat(w->dir_fd, "writing", 0700) < 0 && errno != EEXIST)
		return -errno;
	w->writing_fd = openat(w->dir_fd, "writing", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fd = w->writing_fd < 0 ? -1 : fcntl(w->writing_fd, F_DUPFD_CLOEXEC, 0);
	dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir)
		return -errno;
	walked = worktree_walk(w, &list) == 0;
	while (r == 0 && (entry = readdir(dir)))
		r = take_mark(w, entry->d_name, walked ? &list : NULL);
	work_list_deinit(&list);
	return r;
}

/* ---- index and status ---- */

static struct json_object *entry_json(const struct work_entry *e)
{
	struct json_object *json = js_new();

	js_put_text(json, "path", e->path);
	js_put_text(json, "target", e->target);
	js_put_int(json, "ino", (int64_t)e->ino);
	js_put_int(json, "mode", e->mode);
	js_put_int(json, "size", e->size);
	js_put_int(json, "mtime_ns", e->mtime_ns);
	js_put_int(json, "ctime_ns", e->ctime_ns);
	js_put_int(json, "stored", e->stored);
	js_put_int(json, "chunks", e->chunks);
	return json;
}

static int save_json(int dir_fd, const char *name, struct json_object *json_take)
{
	const char *text = json_object_to_json_string_ext(json_take, JSON_C_TO_STRING_PLAIN);
	int r = text ? write_file_atomic_at(dir_fd, name, text, strlen(text), 0600) : -ENOMEM;

	json_object_put(json_take);
	return r;
}

static struct json_object *entries_json(const struct work_list *list)
{
	struct json_object *entries = json_object_new_array();

	for (size_t i = 0; i < list->count; i++)
		json_object_array_add(entries, entry_json(&list->items[i]));
	return entries;
}

int worktree_save_next(struct worktree *w)
{
	struct json_object *json = js_new();

	js_put_text(json, "copy", w->copy);
	js_put_text(json, "stamp", w->next_stamp);
	json_object_object_add(json, "entries", entries_json(&w->next));
	return save_json(w->dir_fd, "next", json);
}

int worktree_save_index(struct worktree *w)
{
	struct json_object *json = js_new();

	js_put_int(json, "seq", w->index_seq);
	js_put_text(json, "copy", w->copy);
	js_put_text(json, "manifest", w->index_manifest);
	json_object_object_add(json, "entries", entries_json(&w->index));
	return save_json(w->dir_fd, "index", json);
}

void worktree_drop_next(struct worktree *w)
{
	work_list_deinit(&w->next);
	w->next_stamp[0] = '\0';
	(void)unlinkat(w->dir_fd, "next", 0);
}

static int add_entry(struct work_list *list, struct json_object *json)
{
	const char *path = js_text(json, "path", NULL), *target = js_text(json, "target", NULL);
	struct work_entry e = { .path = path ? strdup(path) : NULL,
				.target = target ? strdup(target) : NULL,
				.ino = (uint64_t)js_int(json, "ino", 0),
				.mode = (uint32_t)js_int(json, "mode", 0),
				.size = js_int(json, "size", 0),
				.mtime_ns = js_int(json, "mtime_ns", 0),
				.ctime_ns = js_int(json, "ctime_ns", 0),
				.stored = js_int(json, "stored", 0),
				.chunks = (uint32_t)js_int(json, "chunks", 0) };

	if (!e.path)
		return -EBADMSG;
	return work_list_add_take(list, &e);
}

static void load_copy(struct worktree *w)
{
	_cleanup_free_ char *text = NULL;

	if (read_file_at(w->dir_fd, "copy", sizeof(w->copy), &text, NULL) == 0)
		snprintf(w->copy, sizeof(w->copy), "%s", text);
}

/* NULL: there is none, or it is no whole one. */
static struct json_object *load_list(struct worktree *w, const char *name,
				     struct work_list *ret_list)
{
	_cleanup_free_ char *text = NULL;
	struct json_object *json, *list;
	int r;

	if (read_file_at(w->dir_fd, name, INDEX_MAX, &text, NULL) < 0)
		return NULL;
	json = json_tokener_parse(text);
	list = js_member(json, "entries");
	r = list ? 0 : -EBADMSG;
	for (size_t i = 0; r == 0 && i < js_length(list); i++)
		r = add_entry(ret_list, js_item(list, i));
	if (r == 0) {
		work_list_sort(ret_list);
		return json;
	}
	work_list_deinit(ret_list);
	json_object_put(json);
	return NULL;
}

/* Without an index everything is sent again, and found to be known. */
static void load_index(struct worktree *w)
{
	struct json_object *json = load_list(w, "index", &w->index);

	if (json) {
		w->index_seq = js_int(json, "seq", 0);
		if (js_text(json, "copy", NULL))
			snprintf(w->copy, sizeof(w->copy), "%s", js_text(json, "copy", ""));
		snprintf(w->index_manifest, sizeof(w->index_manifest), "%s",
			 js_text(json, "manifest", ""));
		json_object_put(json);
	}
	json = load_list(w, "next", &w->next);
	snprintf(w->next_stamp, sizeof(w->next_stamp), "%s", js_text(json, "stamp", ""));
	/* That of another copy tells nothing of this one. */
	if (!*w->next_stamp || strcmp(js_text(json, "copy", ""), w->copy) != 0)
		worktree_drop_next(w);
	json_object_put(json);
}

void worktree_save_status(struct worktree *w)
{
	struct json_object *json = js_new();
	int64_t open = 0, left = 0;

	js_put_bool(json, "dirty", w->dirty_ms != 0);
	js_put_int(json, "since_ms",
		   w->dirty_ms ? (int64_t)(now_wall_ms() - (work_now_ms() - w->dirty_ms)) : 0);
	for (size_t i = 0; i < w->writer_count; i++) {
		left += w->writers[i].left;
		open += w->writers[i].count && !w->writers[i].left;
	}
	js_put_int(json, "open", open);
	js_put_int(json, "interrupted", left);
	js_put_text(json, "problem", w->problem);
	js_put_bool(json, "read_only", w->read_only);
	/* What cannot be told to others is no reason to refuse a write. */
	(void)!save_json(w->dir_fd, "status", json);
}

/* ---- life ---- */

int worktree_base(char *ret_path, size_t size)
{
	const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
	struct passwd *user;
	int n;

	if (state && *state == '/') {
		n = snprintf(ret_path, size, "%s/decamp/folders", state);
	} else {
		user = home && *home == '/' ? NULL : getpwuid(getuid());
		home = user ? user->pw_dir : home;
		if (!home || *home != '/')
			return -ENOENT;
		n = snprintf(ret_path, size, "%s/.local/state/decamp/folders", home);
	}
	return n < (int)size ? 0 : -ENAMETOOLONG;
}

static int new_copy(struct worktree *w)
{
	uint8_t bytes[16];
	int r = random_bytes(bytes, sizeof(bytes));

	if (r < 0)
		return r;
	hex_encode(bytes, sizeof(bytes), w->copy);
	return write_file_atomic_at(w->dir_fd, "copy", w->copy, strlen(w->copy), 0600);
}

/* A copy that was fetched is there when it is whole, and not before. */
static int make_tree(struct worktree *w, int64_t seq)
{
	_cleanup_close_ int fd = -1;
	int r = remove_tree_at(w->dir_fd, "tree.new");

	if (r == 0 && mkdirat(w->dir_fd, "tree.new", 0700) < 0)
		r = -errno;
	if (r < 0)
		return r;
	fd = openat(w->dir_fd, "tree.new", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	work_list_deinit(&w->index);
	w->index_seq = 0;
	worktree_drop_next(w);
	r = new_copy(w);
	if (r == 0 && seq)
		r = worktree_fetch(w->cli, w->id, fd, &w->index, &w->index_seq, w->index_manifest);
	if (r == 0)
		r = worktree_save_index(w);
	if (r == 0 && (syncfs(fd) < 0 || renameat(w->dir_fd, "tree.new", w->dir_fd, "tree") < 0))
		r = -errno;
	return r;
}

static int open_tree(struct worktree *w, int64_t seq)
{
	int r = 0;

	w->tree_fd = openat(w->dir_fd, "tree", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (w->tree_fd < 0 && errno == ENOENT) {
		r = make_tree(w, seq);
		if (r == 0)
			w->tree_fd = openat(w->dir_fd, "tree",
					    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	}
	return r < 0 ? r : w->tree_fd < 0 ? -errno : 0;
}

/* Unknown, it is no boot that was before. */
static void read_boot(struct worktree *w)
{
	_cleanup_close_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, w->boot, sizeof(w->boot) - 1);

	w->boot[n > 0 ? n : 0] = '\0';
	w->boot[strcspn(w->boot, "\n")] = '\0';
	if (!*w->boot)
		snprintf(w->boot, sizeof(w->boot), "%llu", (unsigned long long)now_wall_ms());
}

int worktree_open(const struct cli *cli, const char *id, int64_t every_s, int64_t seq,
		  struct worktree **ret_work)
{
	struct worktree *w = calloc(1, sizeof(*w));
	char base[900];
	int r;

	if (!w)
		return -ENOMEM;
	w->cli = cli;
	w->every_s = every_s;
	w->dir_fd = w->tree_fd = w->lock_fd = w->writing_fd = -1;
	read_boot(w);
	snprintf(w->id, sizeof(w->id), "%s", id);
	pthread_mutex_init(&w->lock, NULL);
	pthread_mutex_init(&w->commit_lock, NULL);
	r = worktree_base(base, sizeof(base));
	if (r == 0) {
		snprintf(w->dir, sizeof(w->dir), "%s/%s", base, id);
		r = mkdir_parents(w->dir, 0700);
	}
	if (r == 0) {
		w->dir_fd = open(w->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		w->lock_fd = w->dir_fd < 0 ?
				     -1 :
				     openat(w->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		r = w->lock_fd < 0 || flock(w->lock_fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
	}
	if (r == 0) {
		load_copy(w);
		load_index(w);
		r = open_tree(w, seq);
	}
	if (r == 0)
		r = find_left(w);
	if (r < 0) {
		worktree_close(w);
		return r == -EWOULDBLOCK ? -EBUSY : r;
	}
	w->changes = 1; /* what an earlier mount did not send is found by the first commit */
	w->dirty_ms = work_now_ms();
	worktree_save_status(w);
	*ret_work = w;
	return 0;
}

void worktree_close(struct worktree *w)
{
	if (!w)
		return;
	work_list_deinit(&w->index);
	work_list_deinit(&w->next);
	close_fdp(&w->tree_fd);
	close_fdp(&w->writing_fd);
	close_fdp(&w->lock_fd);
	close_fdp(&w->dir_fd);
	free(w->writers);
	pthread_mutex_destroy(&w->lock);
	pthread_mutex_destroy(&w->commit_lock);
	free(w);
}
