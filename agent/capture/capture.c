// SPDX-License-Identifier: LGPL-2.1-or-later
#define LOG_TAG "capture"
#include "agent/capture/capture.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "agent/capture/internal.h"
#include "agent/image/criu.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { CRIU_TRIES = 5 };

static int copy_inputs(struct capture *c, const char *const *inputs)
{
	size_t count = 0;

	while (inputs && inputs[count])
		count++;
	c->inputs = calloc(count + 1, sizeof(*c->inputs));
	if (!c->inputs)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++) {
		c->inputs[i] = strdup(inputs[i]);
		if (!c->inputs[i])
			return -ENOMEM;
	}
	return 0;
}

int capture_create(const struct capture_config *config, struct capture **ret_capture)
{
	struct capture *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->config = *config;
	c->state_dir = realpath(config->state_dir, NULL);
	r = c->state_dir ? 0 : -errno;
	c->cwd = strdup(config->cwd ? config->cwd : "/");
	c->cgroup_dir = config->cgroup_dir ? strdup(config->cgroup_dir) : NULL;
	if (r == 0 && (!c->cwd || (config->cgroup_dir && !c->cgroup_dir)))
		r = -ENOMEM;
	if (r == 0)
		r = copy_inputs(c, config->inputs);
	if (r < 0) {
		capture_destroy(c);
		return r;
	}
	c->config.state_dir = c->state_dir;
	c->config.cwd = c->cwd;
	c->config.cgroup_dir = c->cgroup_dir;
	c->config.inputs = (const char *const *)c->inputs;
	*ret_capture = c;
	return 0;
}

void capture_destroy(struct capture *c)
{
	if (!c)
		return;
	for (size_t i = 0; c->inputs && c->inputs[i]; i++)
		free(c->inputs[i]);
	free(c->inputs);
	free(c->state_dir);
	free(c->cwd);
	free(c->cgroup_dir);
	capture_native_stop(c);
	past_deinit(&c->past);
	free(c);
}

static int remove_content(int folder)
{
	int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_closedir_ DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *item;
	int r = 0;

	if (!dir) {
		r = -errno;
		close_fdp(&fd);
		return r;
	}
	while (r == 0 && (item = readdir(dir)))
		if (strcmp(item->d_name, ".") && strcmp(item->d_name, ".."))
			r = remove_tree_at(folder, item->d_name);
	return r;
}

int capture_empty_images(struct take *t)
{
	int r = remove_content(t->s->images);

	return r < 0 ? capture_fail(t->reason, r, "the spool folder %s cannot be emptied",
				    t->request->spool_dir) :
		       0;
}

static int open_spool(struct take *t)
{
	static const char *const folders[] = { "images", "files" };
	struct snapshot *s = t->s;
	int *fds[] = { &s->images, &s->files };

	s->spool = open(t->request->spool_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->spool < 0)
		return -errno;
	for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
		if (mkdirat(s->spool, folders[i], 0700) < 0)
			return -errno;
		*fds[i] = openat(s->spool, folders[i],
				 O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (*fds[i] < 0)
			return -errno;
	}
	/* CRIU reaches the folder by descriptor; above it stays root's alone. */
	if (t->request->unprivileged_dump &&
	    fchown(s->images, t->request->uid, t->request->gid) < 0)
		return -errno;
	return 0;
}

int capture_make_layers(struct take *t)
{
	struct mounts *layers = &t->s->layers;

	mounts_deinit(layers);
	layers->v = calloc(KEEPER_MOUNTS_MAX, sizeof(*layers->v));
	if (!layers->v)
		return -ENOMEM;
	layers->room = KEEPER_MOUNTS_MAX;
	layers->v[layers->count++] = (struct mount_row){ 0, strdup("/"), strdup("") };
	for (size_t i = 0; i < t->view.use_count; i++) {
		const struct file_use *use = &t->view.uses[i];
		const struct mount_row *row = mounts_find(&t->proc, use->path, NULL), *known;

		if (!row || !(use->flags & (USE_WRITABLE | USE_SHARED_MAP)) ||
		    mounts_excludes(&t->proc, use->path))
			continue;
		known = mounts_find(layers, row->path, NULL);
		if (known && !strcmp(known->path, row->path))
			continue;
		if (layers->count == KEEPER_MOUNTS_MAX)
			return -E2BIG;
		layers->v[layers->count] = (struct mount_row){ (unsigned int)layers->count,
							       strdup(row->path), strdup("") };
		layers->count++;
	}
	for (size_t i = 0; i < layers->count; i++) {
		if (!layers->v[i].path || !layers->v[i].fstype)
			return -ENOMEM;
	}
	return 0;
}

int capture_check_orphan(struct take *t)
{
	pid_t orphan = 0;

	if (!t->c->config.adopted && t->status.init_pid > 0)
		orphan = t->ready.children >= 0 && t->ready.made ?
				 proc_find_orphan_in(t->ready.children, t->status.init_pid,
						     t->status.main_pid) :
				 proc_find_orphan(t->status.init_pid, t->status.main_pid);
	if (orphan <= 0)
		return 0;
	t->ours = true;
	return capture_fail(
		t->reason, -EOPNOTSUPP,
		"process %d of the job has left its main process (a daemon of its own): "
		"a checkpoint would lose it; let the job wait for it",
		orphan);
}

static int look_at_tree(struct take *t)
{
	int r = capture_check_orphan(t);

	if (r < 0)
		return r;
	r = proc_view_read(&t->view, t->status.main_pid, true);
	if (r < 0)
		return capture_fail(t->reason, r, "the job's processes (main %d) cannot be read",
				    t->status.main_pid);
	return t->c->config.adopted ? capture_make_layers(t) : 0;
}

int capture_make_room(struct take *t)
{
	entries_deinit(&t->walked);
	/* What a new file or two needs more is taken on the way. */
	return entries_reserve(&t->walked, t->c->past.count + t->c->past.count / 4 + 64);
}

int capture_copy_files(struct take *t)
{
	struct walk w = { .entries = &t->walked,
			  .ready = t->ready.made ? &t->ready : NULL,
			  .past = &t->c->past,
			  .view = &t->view,
			  .layers = &t->s->layers,
			  .freeze = t->s->freeze,
			  .spool_files = t->s->files,
			  .copies = t->copies,
			  .shared = t->shared,
			  .shared_count = t->shared_count,
			  .shared_known = t->shared != NULL,
			  .copy_all = t->c->copy_all,
			  .ended = t->request->files_only,
			  .reason = t->reason };
	int r;

	r = w.ready ? 0 : capture_make_room(t);
	if (r < 0)
		return capture_fail(t->reason, r, "the job's files");
	if (t->c->config.adopted && t->request->files_only) {
		r = 0; /* its files are the host's, where they are already */
	} else if (t->c->config.adopted) {
		r = walk_open_files(&w, &t->proc);
	} else {
		r = walk_uppers(&w, t->c->state_dir);
		if (r == 0 && !t->request->files_only)
			r = walk_shm(&w, t->status.main_pid);
	}
	if (!t->shared)
		free(w.shared);
	t->copies = w.copies;
	if (r < 0 && !t->reason[0])
		capture_fail(t->reason, r, "the job's files cannot be read");
	return r;
}

/* Now, while the engine still holds the tasks: when it lets go, they must not run. */
int capture_stay_frozen(struct take *t)
{
	int r;

	if (t->request->after != CAPTURE_STAY_FROZEN)
		return 0;
	r = keeper_freeze(t->request->keeper, 0);
	if (r < 0)
		return capture_fail(t->reason, r, "the job's cgroup cannot be frozen");
	t->froze = true;
	return 0;
}

/*
 * CRIU works inside the tasks and cannot in a frozen cgroup: a job that was frozen by request is
 * thawed for the moment between this and the seizure.
 */
static int on_before(void *ctx)
{
	struct take *t = ctx;
	int r;

	if (t->status.lease_frozen)
		return capture_fail(t->reason, -EAGAIN,
				    "the job is frozen until its lease is renewed");
	r = t->status.frozen ? keeper_thaw(t->request->keeper) : 0;
	return r < 0 ? capture_fail(t->reason, r, "the job's cgroup cannot be thawed") : 0;
}

/* All tasks stand still and all images are written. The job waits: copy, and nothing else. */
static int on_frozen(void *ctx)
{
	struct take *t = ctx;
	uint64_t begin_ns = now_boot_ns();
	int r;

	clock_gettime(CLOCK_REALTIME, &t->s->freeze);
	t->s->info.wall_ms = now_wall_ms();
	r = look_at_tree(t);
	if (r == 0)
		r = capture_copy_files(t);
	if (r == 0)
		r = capture_stay_frozen(t);
	t->s->info.files_us = (now_boot_ns() - begin_ns) / 1000;
	return r;
}

static void init_closure(struct take *t, struct closure *ret)
{
	*ret = (struct closure){ .entries = &t->s->entries,
				 .past = &t->c->past,
				 .lower = &t->s->lower,
				 .layers = &t->s->layers,
				 .proc = &t->proc,
				 .state_dir = t->c->state_dir,
				 .copy_all = t->c->copy_all,
				 .adopted = t->c->config.adopted,
				 .reason = t->reason };
}

/* Before the freeze, so that a working directory that is too big costs the job nothing. */
static int collect_inputs(struct take *t)
{
	struct closure closure;
	uint64_t bytes = 0;
	int r;

	init_closure(t, &closure);
	/* Once restored, a job has just what was carried along, whatever this host has there. */
	r = closure_add_list(&closure);
	if (r != -ENOENT)
		return r < 0 ? capture_fail(t->reason, r, "the list of carried files") : 0;
	r = 0;
	if (t->c->config.carry_cwd)
		r = closure_add_tree(&closure, t->c->cwd, &bytes, t->c->config.closure_max_bytes);
	for (size_t i = 0; r == 0 && t->c->inputs[i]; i++)
		r = closure_add_tree(&closure, t->c->inputs[i], &bytes,
				     t->c->config.closure_max_bytes);
	return r;
}

static int prepare(struct take *t)
{
	int r = keeper_status(t->request->keeper, &t->status);

	if (r < 0)
		return capture_fail(t->reason, r, "the job's keeper does not answer");
	if (!t->status.running || t->status.main_pid <= 0)
		return capture_fail(t->reason, -ESRCH, "the job has ended");
	r = open_spool(t);
	if (r < 0)
		return capture_fail(t->reason, r, "the spool folder %s cannot be used",
				    t->request->spool_dir);
	r = lower_open_root(&t->s->lower);
	if (r == 0)
		r = mounts_read_proc(&t->proc, t->status.main_pid);
	if (r == 0 && !t->c->config.adopted)
		r = mounts_read_layers(&t->s->layers, t->c->state_dir);
	if (r == 0)
		r = proc_hostname(t->status.main_pid, t->hostname, sizeof(t->hostname));
	/* The notes for CRIU are needed before it starts; the frozen look is taken anew. */
	if (r == 0)
		r = proc_view_read(&t->view, t->status.main_pid, false);
	if (r < 0)
		return capture_fail(t->reason, r, "the job's process %d cannot be read",
				    t->status.main_pid);
	return collect_inputs(t);
}

static int look_anew(struct take *t)
{
	int r;

	proc_view_deinit(&t->view);
	r = proc_view_read(&t->view, t->status.main_pid, false);
	if (r < 0)
		return capture_fail(t->reason, r, "the job's process %d cannot be read",
				    t->status.main_pid);
	return capture_empty_images(t);
}

/*
 * Who ends while CRIU comes makes it give up: then anew, without him. A job that is frozen by request
 * cannot be waited for: nobody ends in it, and it must not run on between two tries.
 */
static int run_criu(struct take *t, const struct criu_dump *order, struct criu_times *times,
		    char why[CRIU_REASON_MAX])
{
	int r = 0;

	for (int i = 0; i < CRIU_TRIES; i++) {
		r = i ? look_anew(t) : 0;
		if (r == 0 && !t->status.frozen)
			r = capture_await_whole(&t->view, t->reason);
		proc_view_deinit(&t->view);
		if (r < 0)
			return r;
		r = criu_run_dump(t->request->keeper, order, times, why);
		if (r == 0 || t->reason[0] || t->status.frozen ||
		    !strstr(why, "Zombies with threads"))
			break;
	}
	return r;
}

static int dump_criu(struct take *t)
{
	struct criu_times times = { 0 };
	char images[PATH_MAX], why[CRIU_REASON_MAX] = "";
	struct criu_dump order = { .criu = t->request->criu,
				   .pid = t->c->config.adopted ? t->status.main_pid :
								 t->view.root_inner,
				   .images_dir = images,
				   .shell_job = t->view.shell_job,
				   .unprivileged = t->request->unprivileged_dump,
				   .uid = t->request->uid,
				   .gid = t->request->gid,
				   .before = on_before,
				   .frozen = on_frozen,
				   .ctx = t };
	int r = capture_check_objects(&t->view, t->reason);

	if (r < 0)
		return r;
	if (snprintf(images, sizeof(images), "%s/images", t->request->spool_dir) >=
	    (int)sizeof(images))
		return capture_fail(t->reason, -ENAMETOOLONG, "spool folder");
	r = run_criu(t, &order, &times, why);
	if (r < 0 && !t->reason[0]) {
		if (strstr(why, strerror(ENOSPC)))
			return capture_fail(t->reason, -ENOSPC,
					    "the spool folder %s is too small for the job's memory "
					    "(CRIU: %s): free some space there",
					    t->request->spool_dir, why);
		return capture_fail(t->reason, r, "CRIU cannot dump the job (%s)", why);
	}
	t->s->info.pause_us = times.wall_us;
	t->s->info.freeze_us = times.freezing_us;
	snprintf(t->s->info.engine, sizeof(t->s->info.engine), "criu");
	return r;
}

/* Leaves no trace of native's attempt. */
static int begin_anew(struct take *t)
{
	int r;

	snprintf(t->s->info.fallback, sizeof(t->s->info.fallback), "%s", t->reason);
	t->reason[0] = '\0';
	/* CRIU works inside the tasks and cannot in a frozen cgroup. */
	r = t->froze ? keeper_thaw(t->request->keeper) : 0;
	if (r < 0)
		return capture_fail(t->reason, r, "the job's cgroup cannot be thawed");
	t->froze = false;
	entries_deinit(&t->walked);
	ready_drop(&t->ready);
	free(take_ptr(t->shared));
	return look_anew(t);
}

/* Native first; whatever it does not cover, or fails at, is CRIU's. */
static int dump(struct take *t)
{
	enum capture_engine engine = t->request->engine;
	int r = -EOPNOTSUPP;

	if (!t->request->native || !t->request->native[0]) {
		if (engine == CAPTURE_NATIVE)
			return capture_fail(t->reason, r, "there is no native engine here");
		engine = CAPTURE_CRIU;
	}
	if (engine != CAPTURE_CRIU) {
		r = capture_native(t);
		if (r == 0 || engine == CAPTURE_NATIVE || t->ours ||
		    proc_is_gone(t->status.main_pid))
			return r;
		r = begin_anew(t);
		if (r < 0)
			return r;
	}
	r = dump_criu(t);
	if (r < 0 && t->s->info.fallback[0]) {
		size_t n = strlen(t->reason);

		snprintf(t->reason + n, CAPTURE_REASON_MAX - n, "; the native engine: %s",
			 t->s->info.fallback);
	}
	return r;
}

/* The job runs on, or stands in its cgroup; this looks at what cannot change any more. */
static int complete(struct take *t)
{
	struct closure closure;
	int r;

	if (t->froze) {
		r = keeper_freeze(t->request->keeper, KEEPER_CALL_MS);
		if (r < 0)
			return capture_fail(t->reason, r, "the job's cgroup does not freeze");
	}
	r = entries_move(&t->s->entries, &t->walked);
	if (r < 0)
		return capture_fail(t->reason, r, "the job's files");
	t->s->info.tasks = (uint32_t)t->view.inner_count;
	init_closure(t, &closure);
	r = closure_add_view(&closure, &t->view);
	if (r < 0)
		return capture_fail(t->reason, r, "the files that the job uses cannot be listed");
	r = snapshot_add_images(t->s);
	if (r < 0)
		return capture_fail(t->reason, r, "the images in %s cannot be read",
				    t->request->spool_dir);
	r = capture_kernel_need(t->s->images, &t->s->info.kernel_need);
	if (r < 0)
		return capture_fail(t->reason, r, "the images in %s cannot be read",
				    t->request->spool_dir);
	r = snapshot_make_meta(t->s, &t->view, t->hostname, t->c->cwd);
	if (r < 0)
		return capture_fail(t->reason, r, "the notes for restore");
	return 0;
}

/* The end of a job: what its upper layers hold, without tasks or memory. */
static int take_files(struct take *t)
{
	char name[HOST_NAME_MAX + 1] = "";
	int r = open_spool(t);

	if (r < 0)
		return capture_fail(t->reason, r, "the spool folder %s cannot be used",
				    t->request->spool_dir);
	if (gethostname(name, sizeof(name) - 1) < 0)
		return -errno;
	r = mounts_read_layers(&t->s->layers, t->c->state_dir);
	if (r < 0)
		return capture_fail(t->reason, r, "the list of mounts in %s cannot be read",
				    t->c->state_dir);
	clock_gettime(CLOCK_REALTIME, &t->s->freeze);
	t->s->info.wall_ms = now_wall_ms();
	snprintf(t->s->info.engine, sizeof(t->s->info.engine), "files");
	r = capture_copy_files(t);
	if (r == 0)
		r = entries_move(&t->s->entries, &t->walked);
	return r < 0 ? r : snapshot_make_meta(t->s, &t->view, name, t->c->cwd);
}

static int take_all(struct take *t)
{
	int r = prepare(t);

	if (r == 0)
		r = dump(t);
	return r < 0 ? r : complete(t);
}

int capture_take(struct capture *c, const struct capture_request *request,
		 struct snapshot **ret_snapshot, char reason[CAPTURE_REASON_MAX])
{
	struct take t = { .c = c, .request = request, .reason = reason };
	int r, again = 0;

	reason[0] = '\0';
	t.s = calloc(1, sizeof(*t.s));
	if (!t.s)
		return capture_fail(reason, -ENOMEM, "capture");
	t.s->capture = c;
	t.s->spool = t.s->images = t.s->files = t.s->lower.root = -1;
	r = request->files_only ? take_files(&t) : take_all(&t);
	proc_view_deinit(&t.view);
	mounts_deinit(&t.proc);
	entries_deinit(&t.walked);
	ready_drop(&t.ready);
	free(t.shared);
	if (r < 0) {
		/* Whatever failed first: there is nothing left to capture. */
		if (t.status.main_pid > 0 && proc_is_gone(t.status.main_pid))
			r = capture_fail(reason, -ESRCH, "the job ended during its checkpoint");
		/* A capture that failed must leave the job as it was (G1). */
		if (t.status.frozen)
			again = keeper_freeze(request->keeper, KEEPER_CALL_MS);
		else if (t.froze)
			again = keeper_thaw(request->keeper);
		if (again < 0)
			log_error("after a failed capture: the keeper does not answer");
		snapshot_destroy(t.s);
		return r;
	}
	*ret_snapshot = t.s;
	return 0;
}

int capture_learn_restored(struct capture *c)
{
	struct entries entries = { 0 };
	struct mounts layers = { 0 };
	char reason[CAPTURE_REASON_MAX] = "";
	struct walk w = { .entries = &entries,
			  .past = &c->past,
			  .layers = &layers,
			  .ended = true,
			  .reason = reason };
	int r = mounts_read_layers(&layers, c->state_dir);

	clock_gettime(CLOCK_REALTIME, &w.freeze);
	if (r == 0)
		r = walk_uppers(&w, c->state_dir);
	if (r == 0)
		r = past_learn(&c->past, &entries);
	free(w.shared);
	entries_deinit(&entries);
	mounts_deinit(&layers);
	return r;
}
