// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/take.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "agent/native/fence.h"
#include "agent/native/files.h"
#include "agent/native/freeze.h"
#include "agent/native/freeze_internal.h"
#include "agent/native/gentle.h"
#include "agent/native/state.h"
#include "agent/native/stray.h"
#include "agent/util/io.h"

enum {
	TAKE_PATIENCE_US = 5000,
	TAKE_ARENA_BYTES = 4 << 20,
	TAKE_FREEZE_MS = 2000,
	TAKE_CALM_NS = 2000000000, /* of one snapshot: its attempts share it */
	TAKE_CALM_SHORT_NS = 5000000,
	TAKE_CALM_ROUNDS = 4,
	TAKE_REHEARSE_NS = 2000000,
	TAKE_REHEARSE_PAGES = 3, /* each costs the pause some 10 us */
	TAKE_GENTLE_TRIES = 3,
	TAKE_LEAKS_KEPT = 64, /* snapshots for which one call that leaks EINTR is remembered */
};

struct taker {
	pid_t root;
	struct native_fence fence;
	bool gentle; /* there is a kernel module that freezes */
	struct native_arena *arena;
	struct native_state *state;
	struct native_mem *mem;
	uint64_t last_id;	 /* of the last complete snapshot */
	uint64_t stray;		 /* see stray.h */
	uint64_t scan_ns;	 /* what the last pause took to find what was written */
	unsigned int leaks;	 /* snapshots to come with a fence in any case */
	unsigned int gentle_off; /* snapshots to come without the module: it was of no use */
};

/* One snapshot on its way. */
struct attempt {
	struct taker *t;
	const struct take_order *order;
	struct native_tree tree;
	struct native_files *files;
	struct native_result result;
	unsigned int gentle_left; /* attempts by the module */
	uint64_t stolen_us;	  /* list_stolen_us() before the stop */
	uint64_t calm_ns;	  /* waited for threads that could not have stopped */
	uint64_t look_ns;	  /* what the look at the tasks took */
	uint64_t last_ns;	  /* end of the last step */
	uint64_t stop_ns;
};

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* Of this thread; leaves out what a virtual machine's host stole, if the kernel is told of it. */
static uint64_t ran_ns(void)
{
	struct timespec ts = { 0 };

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static uint32_t lap(struct attempt *a)
{
	uint64_t now = clock_ns(), from = a->last_ns;

	a->last_ns = now;
	return (uint32_t)((now - from) / 1000);
}

static uint64_t cpu_us(void)
{
	struct rusage u;

	if (getrusage(RUSAGE_SELF, &u) < 0)
		return 0;
	return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000 +
	       (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

int take_create(const struct take_config *config, struct taker **ret_taker,
		char reason[NATIVE_REASON_MAX])
{
	struct taker *t = calloc(1, sizeof(*t));
	int r;

	reason[0] = '\0';
	if (!t)
		return -ENOMEM;
	t->root = config->root;
	t->leaks = TAKE_LEAKS_KEPT; /* until its stops have shown otherwise */
	t->fence = NATIVE_NO_FENCE;
	t->gentle = gentle_works();
	/* Refused rights make it slower, never wrong. */
	(void)freeze_prepare_self();
	r = config->fence_dir ? fence_open(*config->fence_dir, &t->fence) : 0;
	/* The one before us was killed in the midst of a freeze. */
	if (fence_is_up(&t->fence) && fence_mend(&t->fence) < 0)
		r = -ENOTRECOVERABLE;
	if (r == 0 || r == -EOPNOTSUPP)
		r = arena_create(TAKE_ARENA_BYTES, &t->arena);
	if (r == 0)
		r = state_create(&t->state, reason);
	if (r == 0)
		r = mem_create(&config->mem, &t->mem);
	if (r < 0) {
		if (!reason[0])
			snprintf(reason, NATIVE_REASON_MAX,
				 "the native engine cannot start here: %s", strerror(-r));
		take_destroy(t);
		return r;
	}
	*ret_taker = t;
	return 0;
}

void take_destroy(struct taker *t)
{
	if (!t)
		return;
	if (t->mem)
		mem_destroy(t->mem);
	if (t->state)
		state_destroy(t->state);
	if (t->arena)
		arena_destroy(t->arena);
	fence_close(&t->fence);
	free(t);
}

static void reset_tree(struct attempt *a, char *reason)
{
	arena_reset(a->t->arena);
	a->tree = (struct native_tree){ .root = a->t->root, .arena = a->t->arena };
	a->tree.fence = &a->t->fence;
	a->tree.expects_leaks = a->t->leaks > 0;
	a->tree.may_gentle = a->gentle_left > 0;
	a->tree.images = a->order ? a->order->images : -1;
	a->tree.shell_job = a->order && a->order->shell_job;
	a->tree.own_ipc_ns = a->order && a->order->own_ipc_ns;
	a->tree.reason = reason;
}

/* What can be refused without stopping anything. */
static int look(struct attempt *a)
{
	int r = tree_list(&a->tree);

	a->look_ns = clock_ns();
	if (r == 0)
		r = state_prepare(a->t->state, &a->tree);
	if (r == 0)
		r = state_collect(a->t->state, &a->tree);
	a->look_ns = clock_ns() - a->look_ns;
	if (r == 0)
		r = stray_check(&a->tree, &a->t->stray);
	if (r == 0)
		r = state_check(&a->tree);
	if (r == 0)
		r = files_check(&a->tree);
	if (r == 0)
		r = mem_check(&a->tree);
	return r;
}

/*
 * To enter the job's IPC namespace takes as long as everything else about its files: only where
 * there is something in it. Several namespaces are refused by whoever enters.
 */
static bool has_ipc_objects(const struct native_tree *tree)
{
	const struct state_process *first = NULL;

	for (size_t i = 0; i < tree->task_count; i++) {
		const struct state_process *p = tree->tasks[i].state;

		if (tree->tasks[i].zombie || !p)
			continue;
		if (!first)
			first = p;
		if (p->ipc_objects || p->ns_ipc != first->ns_ipc)
			return true;
	}
	return false;
}

static int call(const struct take_order *o, int (*fn)(void *ctx))
{
	return fn ? fn(o->ctx) : 0;
}

/* Who sleeps in a call that ends is not held before it has written to memory. */
static int settle(struct attempt *a)
{
	int r = a->tree.gentle ? gentle_verify(&a->tree) : 0;

	if (r < 0)
		return r;
	r = mem_settle(a->t->mem, &a->tree);
	if (r < 0)
		return native_fail(&a->tree, r, "dirty bits cannot be cleared: %s", strerror(-r));
	if (r == 1)
		r = a->tree.gentle ? gentle_verify(&a->tree) : 0;
	return r;
}

static int collect(struct attempt *a)
{
	struct native_result *res = &a->result;
	uint64_t begin_ns = a->last_ns, ran = ran_ns();
	int r = call(a->order, a->order->frozen);

	if (r < 0)
		return r;
	r = state_collect(a->t->state, &a->tree);
	if (r == 0)
		r = state_check(&a->tree);
	if (r == 0 && a->tree.own_ipc_ns)
		a->tree.own_ipc_ns = has_ipc_objects(&a->tree);
	res->state_us = lap(a);
	if (r == 0)
		r = regs_collect(&a->tree);
	res->regs_us = lap(a);
	if (r == 0)
		r = files_collect(&a->tree, a->t->mem, &a->files);
	res->files_us = lap(a);
	if (r == 0)
		r = mem_collect(a->t->mem, &a->tree);
	res->copy_us = lap(a);
	ran = ran_ns() - ran;
	if (a->last_ns - begin_ns > ran)
		res->away_us = (uint32_t)((a->last_ns - begin_ns - ran) / 1000);
	/* What was read while a call ended need not fit together. */
	if (r < 0 && a->tree.gentle && gentle_verify(&a->tree) == -EAGAIN)
		return -EAGAIN;
	/* By ptrace nobody can move any more: it is done beside what `collected` waits for. */
	if (r == 0 && !a->tree.gentle)
		r = settle(a);
	res->copy_us += lap(a);
	if (r == 0)
		r = call(a->order, a->order->collected);
	res->wait_us = lap(a);
	if (r == 0 && a->tree.gentle)
		r = settle(a);
	res->copy_us += lap(a);
	return r;
}

static void let_go(struct attempt *a)
{
	thaw_tree(&a->tree);
	a->result.thaw_us = (uint32_t)((a->tree.go_ns - a->last_ns) / 1000);
	a->result.pause_us = (a->tree.go_ns - a->stop_ns) / 1000 + a->result.earlier_us;
	a->last_ns = clock_ns();
	freeze_lower();
	alarm(0);
}

static void note_stop(struct attempt *a)
{
	struct native_result *res = &a->result;
	bool gentle = a->tree.gentle;

	snprintf(res->stopped_by, sizeof(res->stopped_by), "%s", gentle ? "module" : "ptrace");
	if (gentle)
		res->not_gentle[0] = '\0';
	else if (a->tree.not_gentle[0])
		memcpy(res->not_gentle, a->tree.not_gentle, sizeof(res->not_gentle));
}

/* The pause. On success with order->hold the job still stands. */
static int stop_and_collect(struct attempt *a)
{
	int r;

	/* Should anything below never return: without a tracer the kernel lets the job go. */
	alarm(TAKE_STUCK_S);
	r = freeze_tree(&a->tree,
			a->order->deadline_ms > 0 ? a->order->deadline_ms : TAKE_FREEZE_MS);
	a->result.earlier_us += a->tree.vain_ns / 1000;
	a->t->leaks = a->tree.leaks ? TAKE_LEAKS_KEPT : a->t->leaks - (a->t->leaks > 0);
	/* The listing before it, while the job ran, is no part of the pause. */
	a->stop_ns = a->last_ns = a->tree.stop_ns;
	a->result.freeze_us = lap(a);
	a->result.blocked_us = (uint32_t)(a->tree.blocked_ns / 1000);
	a->result.queued_us = (uint32_t)(a->tree.queued_ns / 1000);
	/* Stopped for nothing, and perhaps for as long as it waits in that call. */
	if (a->tree.may_gentle && !a->tree.gentle)
		a->t->gentle_off = TAKE_GENTLE_OFF;
	if (r < 0) {
		if (a->tree.stop_ns)
			a->result.earlier_us += (clock_ns() - a->tree.stop_ns) / 1000;
		freeze_lower();
		alarm(0);
		return r;
	}
	note_stop(a);
	r = collect(a);
	/* Too many of them, and ptrace is asked: in its way of stopping nobody moves. */
	if ((r == -EAGAIN || r == -ETIMEDOUT) && a->tree.gentle) {
		a->gentle_left = r == -EAGAIN ? a->gentle_left - 1 : 0;
		r = -EAGAIN;
		snprintf(a->result.not_gentle, sizeof(a->result.not_gentle), "%s", a->tree.reason);
	}
	if (r < 0 || !a->order->hold)
		let_go(a);
	else
		alarm(0);
	if (r < 0)
		a->result.earlier_us = a->result.pause_us;
	return r;
}

static int write_images(struct attempt *a)
{
	int r = mem_write(a->t->mem, &a->tree);

	if (r == 0)
		r = files_write(a->files);
	if (r == 0)
		r = state_write(&a->tree);
	if (r == 0 && a->order->after)
		r = a->order->after(a->order->ctx, &a->tree);
	if (a->order->hold)
		let_go(a);
	return r;
}

static void count(struct attempt *a)
{
	struct native_result *res = &a->result;

	mem_counts(a->t->mem, &res->mem);
	/* What mem_collect() took beyond its own scans went into copying. */
	a->t->scan_ns = (uint64_t)res->mem.scan_us * 1000;
	res->scan_us = res->mem.scan_us + res->mem.list_us + res->mem.holes_us;
	res->copy_us -= res->scan_us < res->copy_us ? res->scan_us : res->copy_us;
	res->tasks = (uint32_t)a->tree.task_count;
	res->threads = 0;
	for (size_t i = 0; i < a->tree.task_count; i++)
		res->threads += (uint32_t)a->tree.tasks[i].thread_count;
}

/*
 * What the pause will run through is run through once more just before it: code and data are in the
 * caches then. Not where the job would write more meanwhile than that is worth.
 */
static void rehearse(struct attempt *a)
{
	uint64_t length_ns = a->look_ns + a->t->scan_ns;
	struct native_mem_counts counts;

	mem_counts(a->t->mem, &counts);
	if (length_ns > TAKE_REHEARSE_NS ||
	    counts.dirty_rate * length_ns / 1000000000 > TAKE_REHEARSE_PAGES)
		return;
	state_rehearse(a->t->state, &a->tree);
	mem_rehearse(a->t->mem, &a->tree);
}

/*
 * A stop waits for each thread, and for one that waits for a disk as long as that takes: sooner the
 * job runs on for so long. Not where it is to stand from now on.
 */
static bool await_calm(struct attempt *a)
{
	uint64_t waited_ns = 0;

	if (a->order->traced || a->order->hold || a->calm_ns >= TAKE_CALM_NS)
		return true;
	/* Who loses the processor between this look and the stop has looked for nothing. */
	freeze_raise();
	(void)freeze_await_calm(&a->tree, TAKE_CALM_NS - a->calm_ns, &waited_ns);
	a->calm_ns += waited_ns;
	if (waited_ns < TAKE_CALM_SHORT_NS)
		return true;
	freeze_lower();
	return false;
}

/* The last looks and copies while it runs; anew, if they are old when it may be stopped. */
static int approach(struct attempt *a)
{
	int r = 0;

	for (int i = 0; r == 0 && i < TAKE_CALM_ROUNDS; i++) {
		r = call(a->order, a->order->before);
		a->stolen_us = list_stolen_us();
		/* Last, so that little is written between this and the stop. */
		if (r == 0)
			r = mem_catch_up(a->t->mem, a->t->state, &a->tree);
		if (r < 0)
			return r;
		rehearse(a);
		if (await_calm(a))
			break;
	}
	return r;
}

static int attempt(struct attempt *a, char *reason)
{
	int r;

	reset_tree(a, reason);
	r = look(a);
	a->tree.may_gentle = a->tree.may_gentle && r == 0 && gentle_covers(&a->tree);
	if (r == 0)
		r = mem_precopy(a->t->mem, a->t->state, &a->tree, a->order->wanted,
				a->order->wanted_count);
	if (r == 0)
		r = approach(a);
	if (r == 0)
		r = stop_and_collect(a);
	a->result.stolen_us = (uint32_t)(list_stolen_us() - a->stolen_us);
	/* Another one than the job itself has ended meanwhile. */
	if (r == -ESRCH && kill(a->t->root, 0) == 0)
		r = -EAGAIN;
	return r;
}

int take_snapshot(struct taker *t, const struct take_order *order, struct native_result *ret_result,
		  char reason[NATIVE_REASON_MAX])
{
	struct attempt a = { .t = t, .order = order };
	uint64_t cpu = cpu_us();
	int r = -EAGAIN;

	/* Held until all is written it would stand for longer than a lease. */
	if (t->gentle && !order->traced && !order->hold && !t->gentle_off)
		a.gentle_left = TAKE_GENTLE_TRIES;
	if (t->gentle_off) {
		t->gentle_off--;
		snprintf(a.result.not_gentle, sizeof(a.result.not_gentle),
			 "the module was of no use a moment ago");
	}
	if (!order->base || order->base != t->last_id)
		mem_forget(t->mem);
	t->last_id = 0;
	for (int i = 0; r == -EAGAIN && i < TAKE_ATTEMPTS; i++) {
		reason[0] = '\0';
		/* A child between vfork(2) and exec, bytes on their way: gone after a moment. */
		if (i > 0)
			usleep(TAKE_PATIENCE_US * (useconds_t)i);
		r = attempt(&a, reason);
		if (r == -EAGAIN)
			files_destroy(take_ptr(a.files));
	}
	if (r == -EAGAIN)
		r = -EOPNOTSUPP;
	if (r == 0) {
		count(&a);
		r = write_images(&a);
	}
	if (a.files)
		files_destroy(a.files);
	if (r < 0) {
		/* What was scanned is no longer known to be dirty. */
		mem_forget(t->mem);
		if (!reason[0])
			snprintf(reason, NATIVE_REASON_MAX, "the snapshot failed: %s",
				 strerror(-r));
		return r;
	}
	a.result.cpu_us = cpu_us() - cpu;
	a.result.calm_us = (uint32_t)(a.calm_ns / 1000);
	a.result.id = t->last_id = now_boot_ns();
	mem_counts(t->mem, &a.result.mem);
	*ret_result = a.result;
	return 0;
}

int take_check(struct taker *t, char reason[NATIVE_REASON_MAX])
{
	struct attempt a = { .t = t };
	int r;

	reason[0] = '\0';
	reset_tree(&a, reason);
	r = look(&a);
	if (r < 0 && !reason[0])
		snprintf(reason, NATIVE_REASON_MAX, "the job cannot be looked at: %s",
			 strerror(-r));
	return r;
}
