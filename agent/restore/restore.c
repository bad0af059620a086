// SPDX-License-Identifier: LGPL-2.1-or-later
#define LOG_TAG "restore"
#include "agent/restore/restore.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>

#include "agent/image/criu.h"
#include "agent/restore/internal.h"
#include "agent/restore/lazy_images.h"
#include "agent/restore/maps.h"
#include "agent/util/deadlines.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { HELPER_PIDS_SPARE = 1000, COPY_CHUNK = 256 << 10 };

static void show_step(const struct restore_request *q, const char *step)
{
	if (q->progress)
		q->progress(q->ctx, step, 0, 0);
}

struct readiness {
	const struct restore_request *q;
	const struct notes *notes;
	struct restore_lazy *fill; /* whose memory must be there first; or NULL */
	int fill_result;
};

static int call_ready(void *ctx)
{
	struct readiness *ready = ctx;
	const struct restore_request *q = ready->q;

	if (ready->fill)
		ready->fill_result = lazy_fill(ready->fill, q);
	if (ready->fill_result < 0)
		return ready->fill_result;
	affinity_restore(ready->notes, q->keeper.cgroup_dir);
	return q->ready ? q->ready(q->ctx) : 0;
}

/* Ends everything that was started; the caller's error stays. */
static void end_keeper(struct keeper *k)
{
	if (keeper_kill(k) < 0 || keeper_quit(k) < 0)
		log_warn("end: the keeper of a failed restore does not answer");
	keeper_detach(k);
}

static int start_keeper(const struct restore_request *q, const struct notes *n,
			struct keeper **ret_keeper, char *reason)
{
	struct keeper_config config = q->keeper;
	int r;

	config.adopted = false;
	config.state_dir = q->state_dir;
	if (!config.hostname || !config.hostname[0])
		config.hostname = n->hostname;
	/* An adopted job brings its PIDs along: helpers must keep out of their way. */
	config.helper_pid = n->low_pids ? n->pid_max + HELPER_PIDS_SPARE : 0;
	show_step(q, "namespaces");
	r = keeper_start(&config, ret_keeper);
	if (r < 0)
		return restore_fail(reason, r, "the job's keeper does not start (its log is in %s)",
				    config.run_dir);
	return 0;
}

static void tell_sleeps(const struct restore_request *q, const struct criu_restored *r)
{
	char text[RESTORE_SLEEPS_MAX] = "";

	if (r->timed && r->in_time == r->timed)
		snprintf(text, sizeof(text), "all %u go on until their deadlines", r->timed);
	else if (r->timed)
		snprintf(text, sizeof(text), "%u of %u go on until their deadlines: %s", r->in_time,
			 r->timed, r->not_in_time);
	else if (r->not_in_time[0])
		snprintf(text, sizeof(text), "begun in full: %s", r->not_in_time);
	if (text[0] && r->in_time == r->timed && r->timed)
		log_debug("timed calls: %s", text);
	else if (text[0])
		log_warn("timed calls: %s", text);
	if (q->ret_sleeps)
		memcpy(q->ret_sleeps, text, sizeof(text));
}

static int run_criu(const struct restore_request *q, const struct notes *n, struct keeper *k,
		    struct restore_lazy *lazy, char *reason)
{
	char why[CRIU_REASON_MAX] = "", plugin[PATH_MAX];
	struct readiness ready = { .q = q, .notes = n, .fill = q->ret_lazy ? NULL : lazy };
	struct criu_restore order = { .criu = q->criu,
				      .images_dir = q->images_dir,
				      .shell_job = n->shell_job,
				      .lazy = lazy != NULL,
				      .plugin_dir = plugin,
				      .ready = call_ready,
				      .ctx = &ready };
	struct criu_restored restored;
	int r;

	deadlines_plugin_dir(q->keeper.binary, plugin);
	show_step(q, "restoring");
	r = criu_run_restore(k, &order, &restored, why);
	if (ready.fill_result < 0)
		return restore_fail(reason, ready.fill_result,
				    "the job's memory cannot be fetched");
	if (r < 0)
		return restore_fail(reason, r, "CRIU cannot restore the job (%s)", why);
	tell_sleeps(q, &restored);
	/* Point of no return: the job runs, and the keeper watches it since before it did. */
	return 0;
}

static int fill_shm(struct layout *l, struct keeper *k)
{
	struct keeper_status status;
	int r = keeper_status(k, &status);

	if (r < 0)
		return restore_fail(l->reason, r, "the job's keeper does not answer");
	return layout_make_shm(l, status.init_pid);
}

static bool wants_lazy(const struct restore_request *q)
{
	uint64_t bytes = 0, min = q->lazy_min_bytes ? q->lazy_min_bytes : RESTORE_LAZY_BYTES;

	for (size_t i = 0; (q->ret_lazy || q->direct) && i < manifest_file_count(q->manifest);
	     i++) {
		struct manifest_file f;

		manifest_file(q->manifest, i, &f);
		if (f.kind == FILE_IMAGE && lazy_is_pages_image(f.path))
			bytes += (uint64_t)f.st.st_size;
	}
	return (q->ret_lazy || q->direct) && bytes >= min;
}

/* One restore on its way. */
struct attempt {
	struct restore_request q; /* the caller's, but for the fetcher */
	const struct restore_request *original;
	struct layout *l;
	const struct notes *notes;
	struct recent *recent;
	struct restore_lazy *lazy; /* NULL: none */
	pthread_t thread;
	bool threaded;
	int lazy_result;
};

/* What must be there at once is fetched while the namespaces are made. */
static void *make_lazy(void *arg)
{
	struct attempt *a = arg;

	a->lazy_result = lazy_make(a->original, a->recent, a->l->images, &a->lazy);
	return NULL;
}

static void begin_lazy(struct attempt *a)
{
	if (!a->l->lazy)
		return;
	a->threaded = pthread_create(&a->thread, NULL, make_lazy, a) == 0;
	if (!a->threaded)
		make_lazy(a);
}

/* fits: the rest went well so far. */
static int end_lazy(struct attempt *a, bool fits, char *reason)
{
	int r;

	if (a->threaded)
		pthread_join(a->thread, NULL);
	a->threaded = false;
	if (a->lazy_result < 0)
		return fits ? restore_fail(reason, a->lazy_result,
					   "the job's first memory cannot be fetched") :
			      a->lazy_result;
	/* Only small mappings, or shared ones: then all of it is there. */
	if (a->lazy && !lazy_is_needed(a->lazy))
		lazy_abandon(take_ptr(a->lazy));
	if (!a->lazy || !fits)
		return 0;
	r = lazy_start(a->lazy, a->q.keeper.run_dir);
	return r < 0 ? restore_fail(reason, r, "the job's memory cannot be served on demand") : 0;
}

static int adapt_maps(struct layout *l, char *reason)
{
	int r = maps_undrop(l->images);

	return r < 0 ? restore_fail(reason, r, "the job's mappings cannot be read") : 0;
}

static int start_job(struct attempt *a, struct keeper **ret_keeper, char *reason)
{
	struct keeper *k;
	int r, e;

	begin_lazy(a);
	r = start_keeper(&a->q, a->notes, &k, reason);
	if (r < 0) {
		(void)!end_lazy(a, false, reason);
		return r;
	}
	r = fill_shm(a->l, k);
	e = end_lazy(a, r == 0, reason);
	if (r == 0)
		r = e;
	if (r == 0 && !maps_have_droppable())
		r = adapt_maps(a->l, reason);
	if (r == 0)
		r = run_criu(&a->q, a->notes, k, a->lazy, reason);
	if (r < 0) {
		end_keeper(k);
		return r;
	}
	*ret_keeper = k;
	return 0;
}

static int lay_out_and_start(struct attempt *a, struct keeper **ret_keeper, char *reason)
{
	int r = 0;

	if (a->l->lazy && a->q.seed)
		r = packer_seed_begin(a->q.seed, a->q.manifest);
	if (r == 0)
		r = layout_make(a->l);
	if (r == 0)
		r = start_job(a, ret_keeper, reason);
	if (r < 0) {
		lazy_abandon(a->lazy);
		if (a->l->lazy && a->q.seed)
			packer_seed_abort(a->q.seed);
		return r;
	}
	if (a->l->lazy && !a->lazy && a->q.seed && packer_seed_end(a->q.seed, a->q.manifest) < 0)
		log_warn("the next checkpoint sends everything");
	if (a->lazy && a->q.ret_lazy)
		*a->q.ret_lazy = a->lazy;
	else
		restore_lazy_end(a->lazy); /* it is all there */
	return 0;
}

/* All but the checks before. */
static int restore_checked(const struct restore_request *q, struct layout *l,
			   const struct notes *notes, struct keeper **ret_keeper, char *reason)
{
	struct attempt a = { .q = *q, .original = q, .l = l, .notes = notes };
	int r = recent_create(q->fetch, q->fetch_ctx, &a.recent);

	if (r < 0)
		return r;
	show_step(q, "laying out");
	a.q.fetch = recent_fetch;
	a.q.fetch_ctx = a.recent;
	l->request = &a.q;
	l->lazy = wants_lazy(q);
	r = lay_out_and_start(&a, ret_keeper, reason);
	recent_destroy(a.recent);
	l->request = q;
	return r;
}

int restore_job(const struct restore_request *request, struct keeper **ret_keeper,
		char reason[RESTORE_REASON_MAX])
{
	struct layout l = { .request = request, .reason = reason };
	struct notes notes = { 0 };
	int r;

	reason[0] = '\0';
	if (request->ret_lazy)
		*request->ret_lazy = NULL;
	r = notes_parse(manifest_head(request->manifest)->meta_json, &notes);
	if (r == 0 && notes.root_pid == 0)
		r = -ENODATA;
	if (r < 0) {
		notes_deinit(&notes);
		return restore_fail(reason, r,
				    r == -ENODATA ? "the checkpoint holds files only: the job had "
						    "ended" :
						    "the notes of the checkpoint are not readable");
	}
	l.notes = &notes;
	r = layout_clear(request->state_dir);
	if (r < 0) {
		notes_deinit(&notes);
		return restore_fail(reason, r, "what an earlier run left in %s cannot be removed",
				    request->state_dir);
	}
	r = restore_checked(request, &l, &notes, ret_keeper, reason);
	layout_deinit(&l);
	notes_deinit(&notes);
	if (r < 0 && layout_clear(request->state_dir) < 0)
		log_warn("clear: %s: files of a failed restore stay", request->state_dir);
	return r;
}

static int copy_out(int from, int to, uint64_t size)
{
	_cleanup_free_ uint8_t *buf = malloc(COPY_CHUNK);

	if (!buf)
		return -ENOMEM;
	for (uint64_t at = 0; at < size;) {
		size_t n = size - at > COPY_CHUNK ? COPY_CHUNK : (size_t)(size - at);
		int r = pread_full(from, buf, n, (off_t)at);

		if (r == 0)
			r = write_full(to, buf, n);
		if (r < 0)
			return r;
		at += n;
	}
	return 0;
}

/* The file that holds the content: itself, or the earlier link of the same inode. */
static int content_index(const struct manifest *m, size_t index, struct manifest_file *ret_file,
			 size_t *ret_index)
{
	if (index >= manifest_file_count(m))
		return -ENOENT;
	manifest_file(m, index, ret_file);
	for (size_t i = 0; ret_file->hardlink && i < index; i++) {
		struct manifest_file f;

		manifest_file(m, i, &f);
		if (f.kind != ret_file->kind || strcmp(f.path, ret_file->hardlink))
			continue;
		index = i;
		*ret_file = f;
		break;
	}
	if (!S_ISREG(ret_file->st.st_mode))
		return -EINVAL;
	*ret_index = index;
	return 0;
}

int restore_file(const struct manifest *m, const struct secret_key *job_key, size_t index,
		 pack_fetch_fn fetch, void *fetch_ctx, int out_fd)
{
	size_t count = manifest_file_count(m);
	_cleanup_free_ int *fds = malloc((count + 1) * sizeof(*fds));
	_cleanup_close_ int temporary = -1;
	struct manifest_file f;
	int r;

	if (!fds)
		return -ENOMEM;
	r = content_index(m, index, &f, &index);
	if (r < 0)
		return r;
	for (size_t i = 0; i < count; i++)
		fds[i] = -1;
	/* out_fd may be a pipe, and nothing may be shown before all of it is verified. */
	temporary = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (temporary < 0)
		temporary = memfd_new("file");
	if (temporary < 0)
		return temporary;
	fds[index] = temporary;
	r = manifest_unpack(m, job_key, fds, fetch, fetch_ctx, NULL, NULL);
	return r < 0 ? r : copy_out(temporary, out_fd, (uint64_t)f.st.st_size);
}
