// SPDX-License-Identifier: LGPL-2.1-or-later
#define LOG_TAG "restore"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "agent/restore/internal.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { RESULTS_GROUPS_MAX = 1024, RESULTS_BATCH_FILES = 1024 };
#define RESULTS_BATCH_BYTES ((uint64_t)4 << 30) /* disk that one batch may need at a time */

struct results {
	const struct results_request *request;
	struct notes notes;
	struct delivery *items;
	size_t count;
	size_t *content;     /* items[i]'s file in the manifest that has its content */
	const char **sorted; /* paths of items */
	gid_t groups[RESULTS_GROUPS_MAX];
	int group_count;
	size_t file_count;
};

/* ---- what there is to do ---- */

/* Scratch space and devices; but a job that was submitted there wants its files back. */
static bool stays_behind(const struct results *s, const char *path)
{
	static const char *const folders[] = { "/tmp", "/var/tmp", "/run", "/var/run",
					       "/dev", "/proc",	   "/sys" };

	if (restore_is_below(path, s->request->cwd))
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
		if (restore_is_below(path, folders[i]))
			return true;
	}
	return false;
}

static bool is_opaque(const struct manifest_file *f)
{
	static const char name[] = "trusted.overlay.opaque";

	return f->xattrs_size > sizeof(name) &&
	       memmem(f->xattrs, f->xattrs_size, name, sizeof(name)) != NULL;
}

static int push(struct results *s, enum deliver_kind kind, const char *path,
		const struct manifest_file *f, size_t content)
{
	struct delivery *d = &s->items[s->count];

	*d = (struct delivery){ .kind = kind, .path = strdup(path), .file = *f, .fd = -1 };
	if (!d->path)
		return -ENOMEM;
	s->content[s->count++] = content;
	return 0;
}

static int full_path(const struct results *s, const char *path, char full[PATH_MAX])
{
	const struct notes_mount *mount;
	const char *rest;
	int r = notes_split(&s->notes, path, &mount, &rest);

	if (r < 0)
		return r;
	if (!*rest)
		return 1;
	return snprintf(full, PATH_MAX, "%s/%s", strcmp(mount->path, "/") ? mount->path : "",
			rest) < PATH_MAX ?
		       0 :
		       -ENAMETOOLONG;
}

/*
 * A user gets what his job wrote. Files of other owners in the upper layer were carried there from
 * the submitting host, perhaps unreadable to him: they are no result.
 */
static bool is_of_user(const struct results *s, const struct manifest_file *f)
{
	return s->request->uid == 0 || f->st.st_uid == s->request->uid ||
	       restore_is_whiteout(&f->st);
}

/* Removals come after everything was written: a file that was moved is never nowhere. */
static int collect_pass(struct results *s, bool removals)
{
	for (size_t i = 0; i < s->file_count; i++) {
		struct manifest_file f;
		char path[PATH_MAX];
		int r;

		manifest_file(s->request->manifest, i, &f);
		if (f.kind != FILE_UPPER || restore_is_shm(f.path) || !is_of_user(s, &f))
			continue;
		r = full_path(s, f.path, path);
		if (r < 0)
			return r;
		if (r > 0 || stays_behind(s, path))
			continue;
		if (removals && restore_is_whiteout(&f.st))
			r = push(s, DELIVER_REMOVE, path, &f, i);
		else if (removals && S_ISDIR(f.st.st_mode) && is_opaque(&f))
			r = push(s, DELIVER_CLEAR, path, &f, i);
		else if (!removals && S_ISREG(f.st.st_mode))
			r = push(s, DELIVER_FILE, path, &f, i);
		else if (!removals && S_ISLNK(f.st.st_mode) && f.link_target)
			r = push(s, DELIVER_LINK, path, &f, i);
		else if (!removals && S_ISDIR(f.st.st_mode))
			r = push(s, DELIVER_FOLDER, path, &f, i);
		if (r < 0)
			return r;
	}
	return 0;
}

struct by_path {
	const char *path;
	size_t index;
};

static int compare_by_path(const void *a, const void *b)
{
	return strcmp(((const struct by_path *)a)->path, ((const struct by_path *)b)->path);
}

/* A hard link has no content of its own in the manifest: its first name does. */
static int resolve_links(struct results *s)
{
	_cleanup_free_ struct by_path *index = calloc(s->file_count + 1, sizeof(*index));
	size_t n = 0;

	if (!index)
		return -ENOMEM;
	for (size_t i = 0; i < s->file_count; i++) {
		struct manifest_file f;

		manifest_file(s->request->manifest, i, &f);
		if (f.kind == FILE_UPPER)
			index[n++] = (struct by_path){ f.path, i };
	}
	qsort(index, n, sizeof(*index), compare_by_path);
	for (size_t i = 0; i < s->count; i++) {
		struct by_path key = { s->items[i].file.hardlink, 0 };
		const struct by_path *first;

		if (!key.path)
			continue;
		first = bsearch(&key, index, n, sizeof(*index), compare_by_path);
		if (!first)
			return -EBADMSG;
		s->content[i] = first->index;
	}
	return 0;
}

static int compare_text(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool is_ours(const void *ctx, const char *path)
{
	const struct results *s = ctx;

	return bsearch(&path, s->sorted, s->count, sizeof(*s->sorted), compare_text) != NULL;
}

static int collect(struct results *s)
{
	int r;

	s->file_count = manifest_file_count(s->request->manifest);
	s->items = calloc(s->file_count + 1, sizeof(*s->items));
	s->content = calloc(s->file_count + 1, sizeof(*s->content));
	s->sorted = calloc(s->file_count + 1, sizeof(*s->sorted));
	if (!s->items || !s->content || !s->sorted)
		return -ENOMEM;
	r = collect_pass(s, false);
	if (r == 0)
		r = collect_pass(s, true);
	if (r == 0)
		r = resolve_links(s);
	for (size_t i = 0; i < s->count; i++)
		s->sorted[i] = s->items[i].path;
	qsort(s->sorted, s->count, sizeof(*s->sorted), compare_text);
	return r;
}

/* ---- the child ---- */

static int compare_fds(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* Leaves stdio (for the log), the report's pipe and the contents. */
static void close_others(const struct deliver_order *order, int pipe_fd)
{
	int fds[RESULTS_BATCH_FILES + 1];
	unsigned int next = 3;
	size_t n = 0;

	fds[n++] = pipe_fd;
	for (size_t i = 0; i < order->count && n < ARRAY_SIZE(fds); i++) {
		if (order->items[i].fd >= 0)
			fds[n++] = order->items[i].fd;
	}
	qsort(fds, n, sizeof(*fds), compare_fds);
	for (size_t i = 0; i < n; i++) {
		if ((unsigned int)fds[i] > next)
			close_range(next, (unsigned int)fds[i] - 1, 0);
		next = (unsigned int)fds[i] + 1;
	}
	close_range(next, ~0U, 0);
}

static bool become_user(const struct results *s)
{
	uid_t uid = s->request->uid;
	gid_t gid = s->request->gid;

	/* The child has a copy of the daemon's memory: nobody may look into it. */
	if (prctl(PR_SET_DUMPABLE, 0) < 0)
		return false;
	if (geteuid() != 0)
		return uid == geteuid();
	if (setgroups((size_t)s->group_count, s->groups) < 0 || setresgid(gid, gid, gid) < 0 ||
	    setresuid(uid, uid, uid) < 0)
		return false;
	return prctl(PR_SET_DUMPABLE, 0) == 0;
}

static void run_child(const struct results *s, const struct deliver_order *order, int out)
{
	struct results_report report = { 0 };

	/* Its copy of the key is of no use to what follows. */
	key_wipe((void *)s->request->job_key, sizeof(*s->request->job_key));
	close_others(order, out);
	umask(022);
	if (!become_user(s))
		_exit(1);
	deliver(order, &report);
	_exit(write_full(out, &report, sizeof(report)) == 0 ? 0 : 1);
}

static int deliver_as_user(const struct results *s, const struct deliver_order *order,
			   struct results_report *ret_report)
{
	_cleanup_close_ int in = -1, out = -1;
	int pipes[2], status = 0, r;
	pid_t child;

	if (pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	in = pipes[0];
	out = pipes[1];
	child = fork();
	if (child < 0)
		return -errno;
	if (child == 0)
		run_child(s, order, out);
	close(take_fd(out));
	r = read_full(in, ret_report, sizeof(*ret_report));
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return r < 0 || status != 0 ? -EIO : 0;
}

/* ---- batches ---- */

static void add_report(struct results_report *sum, const struct results_report *part)
{
	if (sum->set_aside == 0 && part->set_aside > 0)
		memcpy(sum->first_set_aside, part->first_set_aside, sizeof(sum->first_set_aside));
	sum->written += part->written;
	sum->deleted += part->deleted;
	sum->set_aside += part->set_aside;
	sum->failed += part->failed;
}

static int open_temporary(void)
{
	/* Without a name from the start: nothing to remove, nothing to find. */
	int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	return fd < 0 ? memfd_new("results") : fd;
}

/* Gives each file of items[from, to) its content's fd; hard links share one. */
static int open_contents(struct results *s, size_t from, size_t to, int *fds)
{
	for (size_t i = from; i < to; i++) {
		size_t at = s->content[i];

		if (s->items[i].kind != DELIVER_FILE)
			continue;
		if (fds[at] < 0) {
			fds[at] = open_temporary();
			if (fds[at] < 0)
				return fds[at];
		}
		s->items[i].fd = fds[at];
	}
	return 0;
}

static int deliver_batch(struct results *s, size_t from, size_t to, int *fds,
			 struct results_report *sum)
{
	struct deliver_order order = { .request = s->request,
				       .items = s->items + from,
				       .count = to - from,
				       .is_ours = is_ours,
				       .ctx = s };
	struct results_report part;
	int r = open_contents(s, from, to, fds);

	if (r == 0)
		r = manifest_unpack(s->request->manifest, s->request->job_key, fds,
				    s->request->fetch, s->request->fetch_ctx, NULL, NULL);
	if (r == 0)
		r = deliver_as_user(s, &order, &part);
	if (r == 0)
		add_report(sum, &part);
	for (size_t i = from; i < to; i++) {
		close_fdp(&fds[s->content[i]]);
		fds[s->content[i]] = -1;
		s->items[i].fd = -1;
	}
	return r;
}

static bool is_removal(const struct delivery *d)
{
	return d->kind == DELIVER_REMOVE || d->kind == DELIVER_CLEAR;
}

static size_t batch_end(const struct results *s, size_t from, size_t max)
{
	uint64_t bytes = 0;
	size_t files = 0, at = from;

	for (; at < s->count; at++) {
		const struct delivery *d = &s->items[at];

		if (is_removal(d) != is_removal(&s->items[from]))
			break;
		if (d->kind != DELIVER_FILE)
			continue;
		bytes += (uint64_t)d->file.st.st_size;
		if (files > 0 && (files == max || bytes > RESULTS_BATCH_BYTES))
			break;
		files++;
	}
	return at;
}

static int deliver_all(struct results *s, struct results_report *sum)
{
	_cleanup_free_ int *fds = malloc((s->file_count + 1) * sizeof(*fds));
	size_t max = restore_open_max();
	size_t from = 0;

	if (!fds)
		return -ENOMEM;
	for (size_t i = 0; i < s->file_count; i++)
		fds[i] = -1;
	max = max > RESULTS_BATCH_FILES ? RESULTS_BATCH_FILES : max;
	while (from < s->count) {
		size_t to = batch_end(s, from, max);
		int r;

		/* What could not be written home exists nowhere else: then nothing is removed. */
		if (is_removal(&s->items[from]) && sum->failed > 0)
			break;
		r = deliver_batch(s, from, to, fds, sum);
		if (r < 0)
			return r;
		from = to;
	}
	return 0;
}

/* Group memberships are this host's: a folder of the user's group may be the place to write. */
static void find_groups(struct results *s)
{
	char buf[16384];
	struct passwd pw, *found = NULL;

	s->groups[0] = s->request->gid;
	s->group_count = 1;
	if (getpwuid_r(s->request->uid, &pw, buf, sizeof(buf), &found) != 0 || !found)
		return;
	s->group_count = RESULTS_GROUPS_MAX;
	if (getgrouplist(found->pw_name, s->request->gid, s->groups, &s->group_count) < 0)
		s->group_count = 1;
}

int restore_results(const struct results_request *request, struct results_report *ret_report)
{
	struct results s = { .request = request };
	struct results_report sum = { 0 };
	int r = notes_parse(manifest_head(request->manifest)->meta_json, &s.notes);

	if (r < 0)
		return log_errno(r, "results: the notes of the checkpoint");
	find_groups(&s);
	r = collect(&s);
	if (r == 0)
		r = deliver_all(&s, &sum);
	for (size_t i = 0; i < s.count; i++)
		free(s.items[i].path);
	free(s.items);
	free(s.content);
	free(s.sorted);
	notes_deinit(&s.notes);
	if (r < 0)
		return log_errno(r, "results: for %s", request->cwd);
	*ret_report = sum;
	return 0;
}
