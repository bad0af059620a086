// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/cli/tree.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>
#include <time.h>

#include "agent/cli/version.h"

enum { ASK_TIMEOUT_S = 60, NAME_ID_DIGITS = 8, BLOCK = 512 };

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000 + 1;
}

static bool is_stale(uint64_t asked_ms)
{
	return asked_ms == 0 || now_ms() - asked_ms > TREE_STALE_MS;
}

static int errno_of(int exit_code)
{
	switch (exit_code) {
	case CLI_NO_JOB:
		return -ENOENT;
	case CLI_NOT_PERMITTED:
		return -EACCES;
	case CLI_TIMED_OUT:
		return -EAGAIN;
	case CLI_UNREACHABLE:
		return -ENOTCONN;
	default:
		return -EIO;
	}
}

/* ---- views ---- */

static void view_destroy(struct tree_view *v)
{
	for (size_t i = 0; i < v->core_count; i++)
		elf_core_destroy(v->cores[i].core);
	free(v->cores);
	checkpoint_done(&v->checkpoint);
	free(v);
}

static void view_unref(struct tree_view *v)
{
	if (v && --v->refs == 0)
		view_destroy(v);
}

static void find_processes(struct tree_view *v)
{
	_cleanup_free_ pid_t *pids = NULL;
	char reason[EXPORT_REASON_MAX];
	size_t count;

	/* Without images there are no cores, and no error. */
	if (export_pids(&v->checkpoint.set, &pids, &count, reason) < 0)
		return;
	v->cores = calloc(count, sizeof(*v->cores));
	if (!v->cores)
		cli_out_of_memory();
	v->core_count = count;
	for (size_t i = 0; i < count; i++)
		v->cores[i].pid = pids[i];
}

/* With a reference for the caller. */
static int view_open(struct tree *t, const struct tree_job *job, const struct cli_kept *kept,
		     struct tree_view **ret_view)
{
	struct cli_reply reply;
	struct tree_view *v;
	size_t row = 0;
	int r;

	for (size_t i = 0; i < TREE_VIEWS_MAX; i++) {
		v = t->views[i];
		if (v && !strcmp(v->checkpoint.job, job->id) &&
		    !strcmp(v->checkpoint.manifest, kept->manifest)) {
			v->used = ++t->uses;
			v->refs++;
			*ret_view = v;
			return 0;
		}
		if (!v || (t->views[row] && v->used < t->views[row]->used))
			row = i;
	}
	v = calloc(1, sizeof(*v));
	if (!v)
		cli_out_of_memory();
	if (job->of_folder)
		r = checkpoint_open_version(t->cli, job->id, kept->manifest, &v->checkpoint,
					    &reply);
	else
		r = checkpoint_open(t->cli, job->id, 0, kept->manifest, true, &v->checkpoint,
				    &reply);
	cli_reply_done(&reply);
	if (r != CLI_OK) {
		free(v);
		return errno_of(r);
	}
	find_processes(v);
	view_unref(t->views[row]);
	t->views[row] = v;
	v->used = ++t->uses;
	v->refs = 2; /* the table's and the caller's */
	*ret_view = v;
	return 0;
}

/* ---- jobs ---- */

static void jobs_free(struct tree *t)
{
	for (size_t i = 0; i < t->job_count; i++)
		free(t->jobs[i].kept);
	free(t->jobs);
	t->jobs = NULL;
	t->job_count = 0;
}

static bool name_fits(const char *name)
{
	return *name && *name != '.' && !strchr(name, '/') && strlen(name) <= 64;
}

static bool name_is_alone(struct json_object *jobs, size_t index)
{
	const char *name = js_text(js_item(jobs, index), "name", "");

	if (!strcmp(name, "folders")) /* that name is taken */
		return false;
	for (size_t i = 0; i < js_length(jobs); i++)
		if (i != index && !strcmp(js_text(js_item(jobs, i), "name", ""), name))
			return false;
	return true;
}

static int refresh_jobs(struct tree *t)
{
	struct cli_request request = { .verb = "ps", .timeout_s = ASK_TIMEOUT_S };
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct json_object *jobs;
	int r;

	if (!is_stale(t->asked_ms))
		return 0;
	request.body = js_new();
	r = cli_send(t->cli, &request, &reply);
	json_object_put(request.body);
	if (r != CLI_OK)
		return errno_of(r);
	jobs = js_member(reply.json, "jobs");
	jobs_free(t);
	t->jobs = calloc(js_length(jobs) + 1, sizeof(*t->jobs));
	if (!t->jobs)
		cli_out_of_memory();
	for (size_t i = 0; i < js_length(jobs); i++) {
		const char *name = js_text(js_item(jobs, i), "name", "");
		const char *id = js_text(js_item(jobs, i), "job", "");
		struct tree_job *job = &t->jobs[t->job_count];

		if (!name_fits(name) || strlen(id) != sizeof(job->id) - 1)
			continue;
		strcpy(job->id, id);
		if (name_is_alone(jobs, i))
			snprintf(job->name, sizeof(job->name), "%s", name);
		else
			snprintf(job->name, sizeof(job->name), "%s.%.*s", name, NAME_ID_DIGITS, id);
		t->job_count++;
	}
	t->asked_ms = now_ms();
	return 0;
}

/* A job without a checkpoint is an empty folder. */
static int refresh_kept(struct tree *t, struct tree_job *job)
{
	struct cli_checkpoint c;
	struct cli_reply reply;
	int r;

	if (!is_stale(job->asked_ms))
		return 0;
	r = checkpoint_open(t->cli, job->id, 0, NULL, false, &c, &reply);
	if (r != CLI_OK &&
	    strcmp(js_text(js_member(reply.json, "error"), "code", ""), "no-checkpoint")) {
		cli_reply_done(&reply);
		return errno_of(r);
	}
	cli_reply_done(&reply);
	free(job->kept);
	job->kept = NULL;
	job->kept_count = 0;
	if (r == CLI_OK) {
		job->kept = take_ptr(c.kept);
		job->kept_count = c.kept_count;
		checkpoint_done(&c);
	}
	job->asked_ms = now_ms();
	return 0;
}

void tree_init(struct tree *t, const struct cli *cli)
{
	*t = (struct tree){ .cli = cli };
}

void tree_deinit(struct tree *t)
{
	for (size_t i = 0; i < TREE_VIEWS_MAX; i++)
		view_unref(t->views[i]);
	jobs_free(t);
}

void tree_release(struct tree *t, struct tree_node *node)
{
	(void)t;
	view_unref(node->view);
	node->view = NULL;
}

/* ---- names ---- */

/* Cuts the next part off; *path is what follows it. False: there is none. */
static bool next_part(const char **path, char *ret_part, size_t size)
{
	size_t n;

	*path += strspn(*path, "/");
	n = strcspn(*path, "/");
	if (n == 0 || n >= size)
		return false;
	memcpy(ret_part, *path, n);
	ret_part[n] = '\0';
	*path += n;
	*path += strspn(*path, "/");
	return true;
}

/* The first entry of the files below a folder; set->count if there is none. */
static size_t first_below(const struct export_set *set, const char *folder)
{
	size_t low = 0, high = set->count, n = strlen(folder);

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const struct export_file *f = &set->files[middle];
		int order = f->kind != FILE_UPPER ? (f->kind < FILE_UPPER ? -1 : 1) :
						    strncmp(f->path, folder, n);

		if (order == 0 && n > 0 && f->path[n] != '/')
			order = f->path[n] < '/' ? -1 : 1;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool is_below(const struct export_file *f, const char *folder)
{
	size_t n = strlen(folder);

	return f->kind == FILE_UPPER && !strncmp(f->path, folder, n) && f->path[n] == '/' &&
	       f->path[n + 1];
}

static int set_file(struct tree_node *node, const struct export_file *f)
{
	if (!f || (f->type != EXPORT_FILE && (f->type != EXPORT_LINK || !f->target)))
		return -ENOENT;
	node->type = f->type == EXPORT_FILE ? TREE_FILE : TREE_LINK;
	node->file = f;
	return 0;
}

static int find_file(struct tree_node *node, const char *rest)
{
	const struct export_set *set = &node->view->checkpoint.set;
	const struct export_file *f;
	size_t i;

	if (snprintf(node->folder, sizeof(node->folder), "%s%s", *rest ? "/" : "", rest) >=
	    (int)sizeof(node->folder))
		return -ENAMETOOLONG;
	f = export_find(set, FILE_UPPER, *rest ? node->folder : "/");
	i = first_below(set, node->folder);
	if (*rest && f && f->type != EXPORT_FOLDER)
		return set_file(node, f);
	if (*rest && !f && (i == set->count || !is_below(&set->files[i], node->folder)))
		return -ENOENT;
	node->type = TREE_FOLDER;
	node->file = f;
	return 0;
}

/* "core" is the root's, "core.PID" any process's. */
static int find_core(struct tree_node *node, const char *name)
{
	const struct tree_view *v = node->view;

	for (size_t i = 0; i < v->core_count; i++) {
		char full[32];

		snprintf(full, sizeof(full), "core.%d", v->cores[i].pid);
		if (strcmp(name, full) && (i > 0 || strcmp(name, "core")))
			continue;
		node->type = TREE_CORE;
		node->core = &v->cores[i];
		return 0;
	}
	return -ENOENT;
}

static int find_in_checkpoint(struct tree_node *node, const char *rest)
{
	const struct cli_checkpoint *c = &node->view->checkpoint;
	char part[64];

	node->type = TREE_CHECKPOINT;
	if (!*rest)
		return 0;
	if (!next_part(&rest, part, sizeof(part)))
		return -ENOENT;
	if (!strcmp(part, "files"))
		return find_file(node, rest);
	if (!strcmp(part, "images") && !*rest) {
		node->type = TREE_IMAGES;
		return 0;
	}
	if (!strcmp(part, "images"))
		return set_file(node, export_find(&c->set, FILE_IMAGE, rest));
	if (*rest)
		return -ENOENT;
	if (!strcmp(part, "log") && c->stdout_path)
		return set_file(node, export_find(&c->set, FILE_UPPER, c->stdout_path));
	if (!strcmp(part, "log.err") && c->stderr_path)
		return set_file(node, export_find(&c->set, FILE_UPPER, c->stderr_path));
	return find_core(node, part);
}

static int find_in_job(struct tree *t, struct tree_node *node, const char *rest)
{
	char part[32];
	int r;

	node->type = TREE_JOB;
	if (!*rest)
		return 0;
	r = refresh_kept(t, node->job);
	if (r < 0)
		return r;
	if (!next_part(&rest, part, sizeof(part)))
		return -ENOENT;
	if (!strcmp(part, "latest") && !*rest && node->job->kept_count > 0) {
		node->type = TREE_LATEST;
		return 0;
	}
	for (size_t i = 0; i < node->job->kept_count; i++) {
		char name[32];

		snprintf(name, sizeof(name), "%lld", (long long)node->job->kept[i].seq);
		if (strcmp(name, part))
			continue;
		node->kept = &node->job->kept[i];
		node->type = TREE_CHECKPOINT;
		if (!*rest) /* its name alone needs no list */
			return 0;
		r = view_open(t, node->job, node->kept, &node->view);
		return r == 0 ? find_in_checkpoint(node, rest) : r;
	}
	return -ENOENT;
}

int tree_find(struct tree *t, const char *path, struct tree_node *ret_node)
{
	struct tree_node node = { .type = TREE_ROOT };
	char part[96];
	int r = refresh_jobs(t);

	if (r < 0)
		return r;
	if (strspn(path, "/") < strlen(path)) {
		if (!next_part(&path, part, sizeof(part)))
			return -ENOENT;
		for (size_t i = 0; i < t->job_count && !node.job; i++)
			if (!strcmp(t->jobs[i].name, part))
				node.job = &t->jobs[i];
		r = node.job ? find_in_job(t, &node, path) : -ENOENT;
	}
	if (r < 0)
		tree_release(t, &node);
	else
		*ret_node = node;
	return r;
}

int tree_find_version(struct tree *t, const struct tree_job *folder, const struct cli_kept *kept,
		      const char *path, struct tree_node *ret_node)
{
	struct tree_node node = { .type = TREE_FOLDER, .kept = kept };
	int r = view_open(t, folder, kept, &node.view);

	if (r == 0)
		r = find_file(&node, path);
	if (r < 0)
		tree_release(t, &node);
	else
		*ret_node = node;
	return r;
}

/* ---- what is there ---- */

static struct timespec time_of(int64_t ms)
{
	return (struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };
}

void tree_stat(const struct tree_node *node, struct stat *ret_stat)
{
	struct stat st = { .st_uid = getuid(), .st_gid = getgid(), .st_nlink = 1 };

	st.st_mode = S_IFDIR | 0500;
	if (node->kept)
		st.st_mtim = time_of(node->kept->wall_ms);
	if (node->file)
		st.st_mtim = time_of(node->file->mtime_ms);
	if (node->type == TREE_FILE) {
		st.st_mode = S_IFREG | 0400 | (node->file->mode & 0111 ? 0100 : 0);
		st.st_size = (off_t)version_file_size(node->file);
	} else if (node->type == TREE_CORE) {
		st.st_mode = S_IFREG | 0400;
		st.st_size = node->core->core ? (off_t)elf_core_size(node->core->core) : 0;
	} else if (node->type == TREE_LINK || node->type == TREE_LATEST) {
		st.st_mode = S_IFLNK | 0777;
		st.st_size = node->file ? (off_t)strlen(node->file->target) : 0;
	}
	/* Of a version as it was written, so that a copy of it is one; writing fails all the same. */
	if (node->view && node->view->checkpoint.of_folder && node->file && node->type != TREE_LINK)
		st.st_mode = (st.st_mode & S_IFMT) | (node->file->mode & 0777);
	st.st_blocks = (st.st_size + BLOCK - 1) / BLOCK;
	*ret_stat = st;
}

int tree_make_core(struct tree_node *node)
{
	char reason[EXPORT_REASON_MAX];

	if (node->core->core)
		return 0;
	return elf_core_create(&node->view->checkpoint.set, node->core->pid, false,
			       &node->core->core, reason);
}

int tree_read(const struct tree_node *node, uint64_t offset, void *ret_bytes, size_t size)
{
	if (node->type == TREE_CORE)
		return elf_core_read(node->core->core, offset, ret_bytes, size);
	return export_read(&node->view->checkpoint.set, node->file, offset, ret_bytes, size);
}

/* ---- folders ---- */

/* The name in a folder that an entry below it stands for; NULL: none, or told by another entry. */
static const char *child_of(const struct export_set *set, const struct export_file *f, size_t n,
			    char ret_name[256])
{
	const char *name = f->path + n + 1;
	size_t length = strcspn(name, "/");

	if (length >= 256)
		return NULL;
	memcpy(ret_name, name, length);
	ret_name[length] = '\0';
	if (name[length]) {
		char path[TREE_PATH_MAX];

		/* A folder on the way that has an entry of its own. */
		snprintf(path, sizeof(path), "%.*s", (int)(n + 1 + length), f->path);
		return export_find(set, FILE_UPPER, path) ? NULL : ret_name;
	}
	/* What is gone or odd is not shown. */
	if (f->type != EXPORT_FILE && f->type != EXPORT_FOLDER &&
	    (f->type != EXPORT_LINK || !f->target))
		return NULL;
	return ret_name;
}

static void list_folder(const struct tree_node *node, void (*add)(void *ctx, const char *name),
			void *ctx)
{
	const struct export_set *set = &node->view->checkpoint.set;
	size_t n = strlen(node->folder);
	char last[256] = "", name[256];

	for (size_t i = first_below(set, node->folder); i < set->count; i++) {
		const struct export_file *f = &set->files[i];

		if (!is_below(f, node->folder)) {
			if (n == 0 && f->kind == FILE_UPPER && !strcmp(f->path, "/"))
				continue; /* the folder itself */
			break;
		}
		if (!child_of(set, f, n, name) || !strcmp(name, last))
			continue;
		strcpy(last, name);
		add(ctx, name);
	}
}

static void list_checkpoint(const struct tree_node *node, void (*add)(void *ctx, const char *name),
			    void *ctx)
{
	const struct cli_checkpoint *c = &node->view->checkpoint;
	const struct export_set *set = &c->set;

	add(ctx, "files");
	if (c->stdout_path && export_find(set, FILE_UPPER, c->stdout_path))
		add(ctx, "log");
	if (c->stderr_path && export_find(set, FILE_UPPER, c->stderr_path))
		add(ctx, "log.err");
	if (node->view->core_count == 0)
		return;
	add(ctx, "images");
	add(ctx, "core");
	for (size_t i = 1; i < node->view->core_count; i++) {
		char name[32];

		snprintf(name, sizeof(name), "core.%d", node->view->cores[i].pid);
		add(ctx, name);
	}
}

static int list_job(struct tree *t, struct tree_node *node,
		    void (*add)(void *ctx, const char *name), void *ctx)
{
	int r = refresh_kept(t, node->job);

	for (size_t i = 0; r == 0 && i < node->job->kept_count; i++) {
		char name[32];

		snprintf(name, sizeof(name), "%lld", (long long)node->job->kept[i].seq);
		add(ctx, name);
	}
	if (r == 0 && node->job->kept_count > 0)
		add(ctx, "latest");
	return r;
}

int tree_list(struct tree *t, struct tree_node *node, void (*add)(void *ctx, const char *name),
	      void *ctx)
{
	int r = 0;

	if (node->type == TREE_CHECKPOINT && !node->view)
		r = view_open(t, node->job, node->kept, &node->view);
	if (r < 0)
		return r;
	switch (node->type) {
	case TREE_ROOT:
		for (size_t i = 0; i < t->job_count; i++)
			add(ctx, t->jobs[i].name);
		return 0;
	case TREE_JOB:
		return list_job(t, node, add, ctx);
	case TREE_CHECKPOINT:
		list_checkpoint(node, add, ctx);
		return 0;
	case TREE_IMAGES:
		for (size_t i = 0; i < node->view->checkpoint.set.count; i++)
			if (node->view->checkpoint.set.files[i].kind == FILE_IMAGE)
				add(ctx, node->view->checkpoint.set.files[i].path);
		return 0;
	case TREE_FOLDER:
		list_folder(node, add, ctx);
		return 0;
	default:
		return -ENOTDIR;
	}
}
