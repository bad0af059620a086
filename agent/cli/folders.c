// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/cli/folders.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>
#include <time.h>

enum { ASK_TIMEOUT_S = 20, LOOK_MS = 500, END_S = 20 };

#define ROOT "/folders"

/* ---- versions are sent ---- */

static size_t copy_works(struct folders *f, struct worktree ***ret_works)
{
	size_t count;

	pthread_mutex_lock(&f->lock);
	count = f->work_count;
	*ret_works = calloc(count + 1, sizeof(**ret_works));
	if (!*ret_works)
		cli_out_of_memory();
	if (count)
		memcpy(*ret_works, f->works, count * sizeof(**ret_works));
	pthread_mutex_unlock(&f->lock);
	return count;
}

static bool is_dirty(struct worktree *w)
{
	bool dirty;

	pthread_mutex_lock(&w->lock);
	dirty = w->dirty_ms != 0 && !w->read_only;
	pthread_mutex_unlock(&w->lock);
	return dirty;
}

static void *send_thread(void *ctx)
{
	struct folders *f = ctx;
	bool stop;

	for (;;) {
		_cleanup_free_ struct worktree **works = NULL;
		struct timespec until;
		size_t count = copy_works(f, &works);

		pthread_mutex_lock(&f->lock);
		stop = f->stop;
		pthread_mutex_unlock(&f->lock);
		for (size_t i = 0; i < count; i++) /* failures are noted in its status */
			if (stop ? is_dirty(works[i]) : worktree_is_due(works[i]))
				(void)!worktree_commit(works[i], 0, false);
		if (stop)
			break;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += LOOK_MS * 1000000L;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		pthread_mutex_lock(&f->lock);
		if (!f->stop)
			pthread_cond_timedwait(&f->wake, &f->lock, &until);
		pthread_mutex_unlock(&f->lock);
	}
	return NULL;
}

int folders_begin(struct folders *f)
{
	int r = -pthread_create(&f->thread, NULL, send_thread, f);

	f->running = r == 0;
	return r;
}

void folders_end(struct folders *f)
{
	struct timespec until;

	pthread_mutex_lock(&f->lock);
	f->stop = true;
	pthread_cond_signal(&f->wake);
	pthread_mutex_unlock(&f->lock);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += END_S;
	/* What is not sent by then lies in the working copy; its thread cannot be cut short. */
	if (f->running && pthread_timedjoin_np(f->thread, NULL, &until) != 0)
		_exit(CLI_OK);
	for (size_t i = 0; i < f->work_count; i++)
		worktree_close(f->works[i]);
	free(f->works);
	for (size_t i = 0; i < f->count; i++)
		free(f->rows[i].job.kept);
	free(f->rows);
	f->rows = NULL;
	f->count = f->work_count = 0;
}

/* ---- which folders there are ---- */

static int ask(struct folders *f, const char *id, struct cli_reply *reply)
{
	struct cli_request request = { .verb = "folder-list", .timeout_s = ASK_TIMEOUT_S };
	int r;

	request.body = js_new();
	js_put_text(request.body, "folder", id);
	r = cli_send(f->cli, &request, reply);
	json_object_put(request.body);
	return r == CLI_OK ? 0 : -EAGAIN;
}

static void open_work(struct folders *f, struct folder_row *row)
{
	struct worktree **bigger, *w;
	int r = worktree_open(f->cli, row->id, row->every_s, row->seq, &w);

	if (r < 0) {
		cli_complain(row->name,
			     r == -EBUSY ? "another mount writes it: read-only here" : strerror(-r),
			     NULL);
		row->here = false;
		return;
	}
	pthread_mutex_lock(&f->lock);
	bigger = reallocarray(f->works, f->work_count + 1, sizeof(*bigger));
	if (!bigger)
		cli_out_of_memory();
	f->works = bigger;
	f->works[f->work_count++] = w;
	pthread_mutex_unlock(&f->lock);
	row->work = w;
}

static struct folder_row *row_of(struct folders *f, const char *id)
{
	struct folder_row *bigger;

	for (size_t i = 0; i < f->count; i++)
		if (!strcmp(f->rows[i].id, id))
			return &f->rows[i];
	bigger = reallocarray(f->rows, f->count + 1, sizeof(*bigger));
	if (!bigger)
		cli_out_of_memory();
	f->rows = bigger;
	bigger[f->count] = (struct folder_row){ .here = true };
	return &bigger[f->count++];
}

static void fill_row(struct folders *f, struct json_object *json)
{
	const char *name = js_text(json, "label", js_text(json, "name", "")),
		   *id = js_text(json, "folder", "");
	bool here = js_bool(json, "here", false) && js_int(json, "uid", -1) == (int64_t)getuid();
	struct folder_row *row;

	if (!*name || *name == '.' || strpbrk(name, "/@") || strlen(name) >= sizeof(row->name) ||
	    strlen(id) != 32)
		return;
	row = row_of(f, id);
	row->listed = true;
	if (!*row->id) {
		strcpy(row->id, id);
		strcpy(row->job.id, id);
		row->job.of_folder = true;
	}
	snprintf(row->name, sizeof(row->name), "%s", name);
	row->every_s = js_int(json, "every_s", 30);
	if (row->seq != js_int(json, "seq", 0))
		row->job.asked_ms = 0; /* there are new versions */
	row->seq = js_int(json, "seq", 0);
	if (here && row->work)
		row->work->read_only = false;
	else if (here && row->here)
		open_work(f, row);
}

/* A folder that is gone stays to be read if there is a copy of it here. */
static void sweep(struct folders *f)
{
	for (size_t i = 0; i < f->count;) {
		struct folder_row *row = &f->rows[i];

		if (row->listed || row->work) {
			if (!row->listed)
				row->work->read_only = true;
			i++;
			continue;
		}
		free(row->job.kept);
		f->rows[i] = f->rows[--f->count];
	}
}

/* Without an answer what was known goes on: working copies need no decampd to be written. */
static void refresh(struct folders *f)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct json_object *list;
	int r;

	if (f->asked_ms && work_now_ms() - f->asked_ms < TREE_STALE_MS)
		return;
	r = ask(f, NULL, &reply);
	f->asked_ms = work_now_ms(); /* after it: it may have waited long */
	if (r < 0)
		return;
	list = js_member(reply.json, "folders");
	for (size_t i = 0; i < f->count; i++)
		f->rows[i].listed = false;
	for (size_t i = 0; i < js_length(list); i++)
		fill_row(f, js_item(list, i));
	sweep(f);
}

static void refresh_versions(struct folders *f, struct folder_row *row)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct json_object *list;

	if (row->job.asked_ms || ask(f, row->id, &reply) < 0)
		return;
	list = js_member(js_item(js_member(reply.json, "folders"), 0), "versions");
	free(row->job.kept);
	row->job.kept_count = 0;
	row->job.kept = calloc(js_length(list) + 1, sizeof(*row->job.kept));
	if (!row->job.kept)
		cli_out_of_memory();
	for (size_t i = 0; i < js_length(list); i++) {
		struct cli_kept *k = &row->job.kept[row->job.kept_count++];
		struct json_object *one = js_item(list, i);

		k->seq = js_int(one, "seq", 0);
		k->wall_ms = js_int(one, "wall_ms", 0);
		snprintf(k->manifest, sizeof(k->manifest), "%s", js_text(one, "manifest", ""));
	}
	if (row->job.kept_count > 0 || row->seq == 0)
		row->job.asked_ms = work_now_ms();
}

void folders_init(struct folders *f, const struct cli *cli, struct tree *tree)
{
	*f = (struct folders){ .cli = cli, .tree = tree };
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->wake, NULL);
	refresh(f);
}

/* ---- names ---- */

bool folders_is_below(const char *path)
{
	size_t n = strlen(ROOT);

	return path && !strncmp(path, ROOT, n) && (!path[n] || path[n] == '/');
}

static int find_version(struct folders *f, struct folder_row *row, const char *number,
			const char *rest, struct folders_node *node)
{
	refresh_versions(f, row);
	for (size_t i = 0; i < row->job.kept_count; i++) {
		char text[24];

		snprintf(text, sizeof(text), "%lld", (long long)row->job.kept[i].seq);
		if (strcmp(text, number))
			continue;
		node->type = FOLDERS_VERSION;
		return tree_find_version(f->tree, &row->job, &row->job.kept[i], rest, &node->node);
	}
	return -ENOENT;
}

static struct folder_row *row_named(struct folders *f, const char *name)
{
	for (size_t i = 0; i < f->count; i++)
		if (!strcmp(f->rows[i].name, name))
			return &f->rows[i];
	return NULL;
}

int folders_find(struct folders *f, const char *path, struct folders_node *ret_node)
{
	struct folders_node node = { .type = FOLDERS_ROOT };
	char part[200], *at;
	size_t n;
	int r = 0;

	path += strlen(ROOT);
	path += strspn(path, "/");
	if (*path) {
		n = strcspn(path, "/");
		if (n >= sizeof(part))
			return -ENOENT;
		memcpy(part, path, n);
		part[n] = '\0';
		path += n;
		path += strspn(path, "/");
		at = strrchr(part, '@');
		if (at)
			*at++ = '\0';
		node.row = row_named(f, part);
		/* A working copy waits for nobody: decampd may, where others do not answer. */
		if (at || !node.row || !node.row->work) {
			refresh(f);
			node.row = row_named(f, part);
		}
		/* One that fsync(2) made a moment ago: somebody knows its number sooner than we. */
		if (at && node.row && strtoll(at, NULL, 10) > node.row->seq) {
			f->asked_ms = 0;
			refresh(f);
			node.row = row_named(f, part);
		}
		if (!node.row)
			return -ENOENT;
		if (at)
			r = find_version(f, node.row, at, path, &node);
		else if (node.row->work)
			node.type = FOLDERS_WORK;
		else
			node.type = node.row->seq ? FOLDERS_LINK : FOLDERS_EMPTY;
		if ((node.type == FOLDERS_LINK || node.type == FOLDERS_EMPTY) && *path)
			r = -ENOENT;
		node.work = node.row->work;
		node.path = path;
	}
	if (r == 0)
		*ret_node = node;
	return r;
}

int folders_list(struct folders *f, void (*add)(void *ctx, const char *name), void *ctx)
{
	refresh(f);
	for (size_t i = 0; i < f->count; i++) {
		struct folder_row *row = &f->rows[i];
		char name[200];

		refresh_versions(f, row);
		add(ctx, row->name);
		for (size_t k = 0; k < row->job.kept_count; k++) {
			snprintf(name, sizeof(name), "%s@%lld", row->name,
				 (long long)row->job.kept[k].seq);
			add(ctx, name);
		}
	}
	return 0;
}

int folders_list_work(const struct folders_node *n, void (*add)(void *ctx, const char *name),
		      void *ctx)
{
	int fd = openat(n->work->tree_fd, *n->path ? n->path : ".",
			O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_closedir_ DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!dir) {
		int r = -errno;

		close_fdp(&fd);
		return r;
	}
	while ((entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			add(ctx, entry->d_name);
	return 0;
}
