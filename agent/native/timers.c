// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The kernel half gives the times at which timers expire; an image says how much time is left. The
 * arithmetic is that of the kernel's timer_gettime(2) and getitimer(2).
 */
#include <errno.h>
#include <time.h>

#include "agent/native/state_internal.h"

/* Kinds of CPU clocks, and their place in a clock's number (linux/posix-timers.h). */
enum { CPU_PROF, CPU_VIRT, CPU_SCHED, CPU_FD, CPU_KINDS = 3, CPU_THREAD = 4 };

enum {
	NONE = 1, /* SIGEV_NONE */
};

static int now_of(clockid_t clock, uint64_t *ret_ns)
{
	struct timespec ts;

	if (clock_gettime(clock, &ts) < 0)
		return -errno;
	*ret_ns = (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
	return 0;
}

static clockid_t cpu_clock(uint32_t id, int kind)
{
	return (clockid_t)(~id << 3 | (unsigned int)kind);
}

/* A timer that has expired is due at once, or at its next beat if its signal is already waiting. */
static uint64_t time_left(uint64_t expires, uint64_t now, uint64_t interval, bool signalled)
{
	if (expires > now)
		return expires - now;
	if (interval && signalled)
		return interval - (now - expires) % interval;
	return 1;
}

static int itimers_left(struct native_tree *tree, struct state_process *p)
{
	uint64_t now = 0;
	int r;

	/* The signal of a timer that beats is due: its next beat is set when the signal is taken. */
	p->real.value_ns = !p->real_armed ? 0 :
					    time_left(p->real.value_ns, tree->freeze_mono_ns,
						      p->real.interval_ns, p->real_armed == 2);
	if (p->virt.value_ns) {
		r = now_of(cpu_clock(p->host_pid, CPU_VIRT), &now);
		if (r < 0)
			return r;
		p->virt.value_ns = time_left(p->virt.value_ns, now, 0, false);
	}
	if (p->prof.value_ns) {
		r = now_of(cpu_clock(p->host_pid, CPU_PROF), &now);
		if (r < 0)
			return r;
		p->prof.value_ns = time_left(p->prof.value_ns, now, 0, false);
	}
	return 0;
}

static int timer_now(struct native_tree *tree, const struct state_process *p,
		     const struct state_posix_timer *t, uint64_t *ret_now)
{
	int kind = t->clock & CPU_KINDS;

	switch (t->base_clock) {
	case CLOCK_MONOTONIC:
		*ret_now = tree->freeze_mono_ns;
		return 0;
	case CLOCK_REALTIME:
	case CLOCK_REALTIME_ALARM:
		*ret_now = tree->freeze_wall_ns;
		return 0;
	case CLOCK_BOOTTIME:
	case CLOCK_BOOTTIME_ALARM:
		*ret_now = tree->freeze_boot_ns;
		return 0;
	case CLOCK_TAI:
		return now_of(CLOCK_TAI, ret_now);
	}
	if (t->clock >= 0)
		return native_fail(tree, -EOPNOTSUPP, "timer %d of process %u uses clock %d", t->id,
				   p->host_pid, t->clock);
	/* A restored timer belongs to the process, or to its first thread which makes it anew. */
	if (kind == CPU_FD || t->own_thread != p->host_pid)
		return native_fail(tree, -EOPNOTSUPP,
				   "timer %d of process %u uses the clock of another thread or "
				   "device",
				   t->id, p->host_pid);
	return now_of(cpu_clock(t->own_thread, kind | (t->clock & CPU_THREAD)), ret_now);
}

static int timer_left(struct native_tree *tree, const struct state_process *p,
		      struct state_posix_timer *t)
{
	bool silent = (t->notify & ~4) == NONE;
	uint64_t now = 0;
	int r;

	r = timer_now(tree, p, t, &now);
	if (r < 0)
		return r;
	if (t->clock < 0) {
		if (t->value_ns)
			t->value_ns = time_left(t->value_ns, now, t->interval_ns, t->armed != 1);
	} else if (silent && (t->interval_ns || t->value_ns > now)) {
		/* Such a timer never fires; only its reader asks how it stands. */
		t->value_ns = time_left(t->value_ns, now, t->interval_ns, true);
	} else if (silent || (!t->armed && !t->interval_ns)) {
		t->value_ns = 0;
	} else {
		t->value_ns = time_left(t->value_ns, now, t->interval_ns, t->armed != 1);
	}
	return 0;
}

int state_time_left(struct native_tree *tree, struct state_process *p)
{
	int r = itimers_left(tree, p);

	if (r == 0 && p->timer_count > STATE_TIMERS_MAX)
		r = native_fail(tree, -EOPNOTSUPP, "process %u has more than %d timers",
				p->host_pid, STATE_TIMERS_MAX);
	for (uint32_t i = 0; r == 0 && i < p->timer_count; i++)
		r = timer_left(tree, p, &p->timers[i]);
	return r;
}
