// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "agent/native/freeze_internal.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum { TICK_NS = 1000000 };

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void arm(struct freeze_tick *t)
{
	struct itimerspec once = { .it_value.tv_nsec = TICK_NS };

	timer_settime(t->timer, 0, &once, NULL);
}

/*
 * No interval timer: where the handler takes longer than that, as with many thousand threads or in
 * a slow guest, the next signal would be there before it returns, and the thread get nowhere.
 */
static void on_tick(int signo, siginfo_t *si, void *context)
{
	struct freeze_tick *t = si->si_value.sival_ptr;
	int saved = errno;

	(void)signo;
	(void)context;
	if (si->si_code == SI_TIMER && t) {
		if (t->fn)
			t->fn(t->ctx);
		arm(t);
	}
	errno = saved;
}

static sigset_t only(int signo)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signo);
	return set;
}

int tick_start(struct freeze_tick *t, int deadline_ms, void (*fn)(void *ctx), void *ctx)
{
	struct sigaction sa = { .sa_sigaction = on_tick, .sa_flags = SA_SIGINFO };
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID };
	sigset_t set;

	*t = (struct freeze_tick){ .signal = SIGRTMAX - 3, .fn = fn, .ctx = ctx };
	t->deadline_ns = now_ns() + (uint64_t)(deadline_ms > 0 ? deadline_ms : 1) * 1000000;
	ev.sigev_signo = t->signal;
	ev.sigev_value.sival_ptr = t;
	ev.sigev_notify_thread_id = gettid();
	if (timer_create(CLOCK_MONOTONIC, &ev, &t->timer) < 0)
		return -errno;
	/* No SA_RESTART: the very point is that a wait returns. */
	sigemptyset(&sa.sa_mask);
	sigaction(t->signal, &sa, &t->old_action);
	set = only(t->signal);
	pthread_sigmask(SIG_UNBLOCK, &set, &t->old_mask);
	t->armed = true;
	arm(t);
	return 0;
}

/* One that is on its way already must not meet the old action, which may be to end us. */
void tick_stop(struct freeze_tick *t)
{
	struct timespec zero = { 0 };
	sigset_t set = only(t->signal);

	if (!t->armed)
		return;
	t->armed = false;
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	timer_delete(t->timer);
	while (sigtimedwait(&set, NULL, &zero) > 0)
		;
	sigaction(t->signal, &t->old_action, NULL);
	pthread_sigmask(SIG_SETMASK, &t->old_mask, NULL);
}

bool tick_over(const struct freeze_tick *t)
{
	return now_ns() >= t->deadline_ns;
}
