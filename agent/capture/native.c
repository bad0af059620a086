// SPDX-License-Identifier: LGPL-2.1-or-later
/* The native engine as capture drives it: one decamp-capture per job, its snapshots, their files. */
#define LOG_TAG "capture"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum {
	TRACERS_MAX = 3,
	REHEARSE_FILES_MAX = 4096,
	FREEZE_MS = 2000,
	NICE_ROUNDS = 5,
	BUFFER_BYTES = 32 << 20,
	PAUSE_TARGET_US = 1000
};

_Static_assert(NATIVE_USE_SHARED_MAP == (int)USE_SHARED_MAP &&
		       NATIVE_USE_WRITABLE == (int)USE_WRITABLE &&
		       NATIVE_USE_FOLDER == (int)USE_FOLDER,
	       "one set of flags");

/* A snapshot on its way; frozen: what decamp-capture saw in the pause. */
struct native_try {
	struct take *t;
	struct proc_view frozen;
};

void capture_native_stop(struct capture *c)
{
	native_stop(c->native);
	c->native = NULL;
	c->native_base = 0;
}

static int keep_lack(struct capture *c, int r, const char *why)
{
	if (r == -EOPNOTSUPP || r == -ENOENT)
		snprintf(c->native_lack, sizeof(c->native_lack), "%s", why);
	return r;
}

/* One that follows this main process; after a restore the job has another. */
static int ensure_running(struct take *t)
{
	struct capture *c = t->c;
	struct native_config config = { .binary = t->request->native,
					.root = t->status.main_pid,
					.cgroup = c->config.cgroup_dir,
					.nice_rounds = NICE_ROUNDS,
					.mem = { .buffer_bytes = BUFFER_BYTES,
						 .pause_target_us = PAUSE_TARGET_US } };
	int r;

	if (c->native && c->native_root == t->status.main_pid && native_alive(c->native))
		return 0;
	capture_native_stop(c);
	if (c->native_lack[0]) {
		snprintf(t->reason, CAPTURE_REASON_MAX, "%s", c->native_lack);
		return -EOPNOTSUPP;
	}
	r = native_start(&config, &c->native, t->reason);
	if (r < 0)
		return keep_lack(c, r, t->reason);
	c->native_root = t->status.main_pid;
	return 0;
}

/* What the walk can know before the pause. */
static int find_shared(struct take *t)
{
	struct walk w = { .view = &t->view, .layers = &t->s->layers };
	int r = 0;

	free(take_ptr(t->shared));
	t->shared_count = 0;
	if (t->c->config.adopted)
		return 0; /* its walk looks at what is open anyway */
	r = walk_find_shared(&w, t->c->state_dir);
	if (r == 0 && !w.shared)
		w.shared = calloc(1, sizeof(*w.shared));
	if (r == 0 && !w.shared)
		r = -ENOMEM;
	if (r < 0) {
		free(w.shared);
		return r;
	}
	t->shared = w.shared;
	t->shared_count = w.shared_count;
	return 0;
}

/*
 * Real-time for the pause, where it is allowed: on a busy machine the job would stand and wait until
 * this thread gets its turn to copy files.
 */
static void raise_priority(bool up)
{
	struct sched_param param = { .sched_priority = up ? 1 : 0 };

	(void)sched_setscheduler(0, up ? SCHED_FIFO | SCHED_RESET_ON_FORK : SCHED_OTHER, &param);
}

/*
 * The pause's walk once more just before it, while the job runs: what it looks at is in the kernel's
 * caches and the processor's then. Errors are those of files that come and go.
 */
static void rehearse(struct take *t)
{
	struct entries entries = { 0 };
	char reason[CAPTURE_REASON_MAX];
	struct walk w = { .entries = &entries,
			  .layers = &t->s->layers,
			  .past = &t->c->past,
			  .copy_all = t->c->copy_all,
			  .shared = t->shared,
			  .shared_count = t->shared_count,
			  .shared_known = true,
			  .rehearsal = true,
			  .scratch = t->ready.stage,
			  .reason = reason };

	if (t->c->config.adopted || t->c->past.count > REHEARSE_FILES_MAX)
		return;
	if (walk_uppers(&w, t->c->state_dir) == 0)
		(void)!walk_shm(&w, t->status.main_pid);
	entries_deinit(&entries);
	if (t->ready.children >= 0)
		(void)!proc_find_orphan_in(t->ready.children, t->status.init_pid,
					   t->status.main_pid);
	ready_expect(&t->ready, w.large_bytes);
}

static int make_ready(struct take *t)
{
	int r = capture_make_room(t);

	if (r < 0)
		return r;
	entries_touch(&t->walked);
	ready_drop(&t->ready);
	return ready_make(&t->ready, t->c->state_dir, &t->s->layers, t->status.main_pid,
			  t->c->config.adopted ? 0 : t->status.init_pid);
}

static int on_before(void *ctx)
{
	struct native_try *try = ctx;
	struct take *t = try->t;
	int r;

	t->reason[0] = '\0';
	r = keeper_status(t->request->keeper, &t->status);
	if (r == 0 && t->status.lease_frozen) {
		t->ours = true;
		return capture_fail(t->reason, -EAGAIN,
				    "the job is frozen until its lease is renewed");
	}
	proc_view_deinit(&t->view);
	if (r == 0)
		r = proc_view_read(&t->view, t->status.main_pid, true);
	if (r == 0 && t->c->config.adopted)
		r = capture_make_layers(t);
	if (r == 0)
		r = find_shared(t);
	if (r < 0)
		return capture_fail(t->reason, r, "the job's processes (main %d) cannot be read",
				    t->status.main_pid);
	r = make_ready(t);
	if (r < 0)
		return capture_fail(t->reason, r, "the job's files");
	/* Of common priority: it may read a lot. */
	raise_priority(false);
	rehearse(t);
	raise_priority(true);
	return 0;
}

/* All tasks stand still, native is reading them. The job waits: copy, and nothing else. */
static int on_frozen(void *ctx)
{
	struct native_try *try = ctx;
	struct take *t = try->t;
	uint64_t begin_ns = now_boot_ns();
	int r;

	clock_gettime(CLOCK_REALTIME, &t->s->freeze);
	t->s->info.wall_ms = now_wall_ms();
	r = capture_check_orphan(t);
	if (r == 0)
		r = capture_copy_files(t);
	if (r == 0)
		r = capture_stay_frozen(t);
	/* No other engine would do better with the job's files. */
	t->ours = r < 0;
	t->s->info.files_us = (now_boot_ns() - begin_ns) / 1000;
	return r;
}

static int on_use(void *ctx, const char *path, unsigned int flags)
{
	struct native_try *try = ctx;

	return proc_view_add_use(&try->frozen, path, flags);
}

static int on_thread(void *ctx, pid_t inner_tid)
{
	struct native_try *try = ctx;

	return proc_view_add_thread(&try->frozen, inner_tid);
}

static bool was_seen(const struct proc_view *view, const struct file_use *use)
{
	size_t i;

	return paths_find(&view->use_index, 0, use->path, &i) &&
	       (view->uses[i].flags & use->flags) == use->flags;
}

/* All names of the inode: its next change may leave size and times as they are. */
static void unsettle(struct entries *entries, const struct stat *st)
{
	for (size_t i = 0; i < entries->count; i++) {
		struct entry *e = &entries->v[i];

		if (S_ISREG(e->st.st_mode) && e->st.st_ino == st->st_ino &&
		    e->st.st_dev == st->st_dev)
			e->unsettled = true;
	}
}

/*
 * A file mapped or opened between the look and the freeze. The walk treated it as an ordinary one.
 * If it was copied, all is well, but for the next time. If it was held for unchanged, only the
 * file system's word stands against a write through the fresh mapping: not enough.
 */
static int check_new_use(struct take *t, const struct file_use *use)
{
	const char *rest = "";
	const struct mount_row *row = mounts_find(&t->s->layers, use->path, &rest);
	char path[PATH_MAX];
	struct entry *e;
	size_t i;

	if (!row || snprintf(path, sizeof(path), "%u/%s", row->n, rest) >= (int)sizeof(path))
		return 0;
	if (!paths_find(&t->walked.index, SNAPSHOT_UPPER, path, &i))
		return t->c->config.adopted && !mounts_excludes(&t->proc, use->path) ? -EAGAIN : 0;
	if (!(use->flags & USE_SHARED_MAP))
		return 0;
	e = &t->walked.v[i];
	if (e->content == CONTENT_UNCHANGED)
		return -EAGAIN;
	unsettle(&t->walked, &e->st);
	return 0;
}

static int compare_views(struct take *t, const struct proc_view *frozen)
{
	for (size_t i = 0; i < frozen->use_count; i++) {
		const struct file_use *use = &frozen->uses[i];
		int r;

		if (!(use->flags & (USE_SHARED_MAP | USE_WRITABLE)) || was_seen(&t->view, use))
			continue;
		r = check_new_use(t, use);
		if (r < 0)
			return capture_fail(t->reason, r,
					    "the job began to use %s in the moment of its freeze",
					    use->path);
	}
	return 0;
}

static bool has_own_ipc(pid_t pid)
{
	char path[64];
	struct stat ours, theirs;

	snprintf(path, sizeof(path), "/proc/%d/ns/ipc", pid);
	return stat("/proc/self/ns/ipc", &ours) == 0 && stat(path, &theirs) == 0 &&
	       ours.st_ino != theirs.st_ino;
}

static int run(struct native_try *try, struct native_result *ret_result)
{
	struct take *t = try->t;
	struct capture *c = t->c;
	struct native_take order = { .images = t->s->images,
				     .base = t->request->forget ? 0 : c->native_base,
				     .shell_job = t->view.shell_job,
				     .own_ipc_ns = has_own_ipc(t->status.main_pid),
				     .wanted = t->request->wanted,
				     .wanted_count = t->request->wanted_count,
				     .deadline_ms = FREEZE_MS,
				     .traced = t->request->after == CAPTURE_STAY_FROZEN,
				     .before = on_before,
				     .frozen = on_frozen,
				     .use = on_use,
				     .thread = on_thread,
				     .ctx = try };
	char why[NATIVE_REASON_MAX];
	int r;

	if (!order.base)
		order.wanted_count = 0;
	c->native_base = 0; /* until this one is accepted */
	r = native_take(c->native, &order, ret_result, why);
	raise_priority(false);
	if (r == -ENOSPC && !t->reason[0])
		capture_fail(t->reason, r,
			     "the spool folder %s is too small for the job: free some space there",
			     t->request->spool_dir);
	if (r < 0 && !t->reason[0])
		snprintf(t->reason, CAPTURE_REASON_MAX, "%s", why[0] ? why : strerror(-r));
	/* It died, or does not follow: the next capture has a new one. */
	if (r == -ECONNRESET || r == -ETIMEDOUT || r == -EBADMSG) {
		capture_native_stop(c);
		/* Whatever comes next, another tracer or CRIU, the job must not stand behind a fence. */
		native_mend(t->request->native, c->config.cgroup_dir);
	}
	return r;
}

/* No other engine would do better with a spool that is full. */
static int flush(struct take *t)
{
	int r = ready_flush(&t->ready, &t->walked, t->s->files, &t->copies, t->reason);

	t->ours = r < 0;
	return r;
}

int capture_native(struct take *t)
{
	struct native_try try = { .t = t };
	struct native_result result = { 0 };
	bool shell_job = t->view.shell_job;
	pid_t root_inner = t->view.root_inner;
	int r = -ECONNRESET;

	/* A tracer that was killed says nothing about the job. */
	for (int i = 0; r == -ECONNRESET && !t->ours && i < TRACERS_MAX; i++) {
		t->reason[0] = '\0';
		proc_view_deinit(&try.frozen);
		r = i ? capture_empty_images(t) : 0;
		if (r == 0)
			r = ensure_running(t);
		if (r == 0)
			r = run(&try, &result);
	}
	if (r == 0)
		r = flush(t);
	if (r == 0)
		r = compare_views(t, &try.frozen);
	if (r < 0) {
		proc_view_deinit(&try.frozen);
		return r;
	}
	try.frozen.pins = t->view.pins;
	t->view.pins = (struct pins){ 0 };
	proc_view_deinit(&t->view);
	t->view = try.frozen;
	t->view.shell_job = shell_job;
	t->view.root_inner = root_inner;
	t->s->native_id = result.id;
	t->s->info.native = result;
	t->s->info.pause_us = result.pause_us;
	t->s->info.freeze_us = result.freeze_us;
	snprintf(t->s->info.engine, sizeof(t->s->info.engine), "native");
	return 0;
}
