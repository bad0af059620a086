// SPDX-License-Identifier: LGPL-2.1-or-later
/* A program blocked in a system call sees nothing of a freeze. */
#include "tests/kmod/kmod.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/wait.h>

#include "tests/unit/blocking_calls.h"

enum {
	ROUNDS = 5,
	EARLY_US = 8000, /* socket timeouts count in ticks */
	LATE_MS = 700,
	SHORT_FREEZES = 150,
};

static struct slot *slots;

static void on_usr1(int signo)
{
	(void)signo;
}

static void call(const struct blocking *b, struct slot *s)
{
	struct sigaction sa = { .sa_handler = on_usr1 };
	uint64_t from;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigaction(SIGUSR1, &sa, NULL);
	s->pid = getpid();
	from = now_ns();
	errno = 0;
	s->result = b->block(s);
	s->us = (now_ns() - from) / 1000;
	atomic_store(&s->done, 1);
	_exit(0);
}

static void all_calls(void *unused)
{
	(void)unused;
	for (size_t i = 0; i < blocking_count; i++)
		if (fork() == 0)
			call(&blocking_calls[i], &slots[i]);
	while (wait(NULL) > 0 || errno == EINTR)
		;
}

static void prepare(void)
{
	char folder[] = "/tmp/kmod-XXXXXX";

	CHECK(mkdtemp(folder));
	slots = mmap(NULL, sizeof(*slots) * blocking_count, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(slots != MAP_FAILED);
	for (size_t i = 0; i < blocking_count; i++) {
		slots[i].fd[0] = slots[i].fd[1] = slots[i].id = -1;
		snprintf(slots[i].path, sizeof(slots[i].path), "%s/%zu", folder, i);
		if (blocking_calls[i].prepare)
			blocking_calls[i].prepare(&slots[i]);
	}
}

/* Calls with a time of their own may end; others that do were disturbed. */
static size_t count_early(uint64_t from)
{
	bool in_time = now_ns() - from < BLOCKING_TIMED_MS * 1000000ULL;
	size_t early = 0;

	for (size_t i = 0; i < blocking_count; i++) {
		if (!atomic_load(&slots[i].done) || (blocking_calls[i].timed && !in_time))
			continue;
		case_note("disturbed: %s: %s", blocking_calls[i].name,
			  strerror((int)slots[i].result));
		early++;
	}
	return early;
}

/* Who only sleeps and looks at the clock: how late is anybody on this machine? */
static void watch_lateness(void *unused)
{
	(void)unused;
	for (;;) {
		uint64_t from = now_ns();
		unsigned int us;

		sleep_ms(1);
		us = (unsigned int)((now_ns() - from) / 1000);
		if (us > atomic_load(&shared->words[0]))
			atomic_store(&shared->words[0], us);
	}
}

/* In its time? Ticks of a machine that stood still are counted late, so either way. */
static bool is_in_time(const struct slot *s)
{
	int64_t late_us = atomic_load(&shared->words[0]), us = (int64_t)s->us;
	int64_t timed_us = BLOCKING_TIMED_MS * 1000;

	if (us >= timed_us - EARLY_US - late_us && us <= timed_us + LATE_MS * 1000 + 2 * late_us)
		return true;
	case_note("took %lld us, sleepers are late by %lld us", (long long)us, (long long)late_us);
	return false;
}

static size_t count_wrong(void)
{
	size_t wrong = 0;

	for (size_t i = 0; i < blocking_count; i++)
		AWAIT(atomic_load(&slots[i].done));
	sleep_ms(50); /* the witness has seen what they have */
	for (size_t i = 0; i < blocking_count; i++) {
		const struct blocking *b = &blocking_calls[i];
		const struct slot *s = &slots[i];

		if (!s->result && (!b->timed || is_in_time(s)))
			continue;
		case_note("%s: %s", b->name, strerror((int)s->result));
		wrong++;
	}
	return wrong;
}

/* Frozen for 20 ms, five times. Gentle: the times of all timed calls are as if nothing had been. */
static size_t disturb(bool parked)
{
	pid_t stem, witness = victim(watch_lateness, NULL);
	uint64_t from;
	size_t early;

	prepare();
	from = now_ns();
	stem = victim(all_calls, NULL);
	for (size_t i = 0; i < blocking_count; i++)
		AWAIT(slots[i].pid && (state_in_proc(slots[i].pid) == 'S' || slots[i].done));
	for (int i = 0; i < ROUNDS; i++) {
		int session = parked ? freeze_parked(stem, NULL) : freeze_all(stem, NULL);

		sleep_ms(20);
		close(session);
		sleep_ms(5);
	}
	early = count_early(from);
	case_note("%zu of %zu disturbed", early, blocking_count);
	if (!early && !parked) {
		for (size_t i = 0; i < blocking_count; i++)
			if (blocking_calls[i].release)
				blocking_calls[i].release(&slots[i]);
		early = count_wrong();
	}
	for (size_t i = 0; i < blocking_count; i++)
		blocking_remove(&blocking_calls[i], &slots[i]);
	victim_end(stem);
	victim_end(witness);
	return early;
}

static void case_gentle(void)
{
	CHECK_INT(disturb(false), 0);
}

/* That the test finds something: to take all out of their calls does disturb. */
static void case_parked(void)
{
	CHECK(disturb(true) > 0);
}

/* Falls asleep and wakes up all the time: most freezes hit it on the way into or out of its call. */
static void *short_sleeps(void *errors)
{
	struct epoll_event ev;
	int ep = epoll_create1(0);

	for (;;) {
		if (epoll_wait(ep, &ev, 1, 1) != 0)
			atomic_fetch_add((atomic_int *)errors, 1);
		for (int i = 0; i < 20000; i++)
			__asm__ volatile("");
		atomic_fetch_add(&shared->counters[0], 1);
	}
	return NULL;
}

static void short_sleepers(void *unused)
{
	pthread_t thread;

	(void)unused;
	for (int i = 0; i < 4; i++)
		CHECK_INT(pthread_create(&thread, NULL, short_sleeps, &shared->flags[0]), 0);
}

static void case_short(void)
{
	pid_t pid = victim(short_sleepers, NULL);

	check_moves();
	for (int i = 0; i < SHORT_FREEZES; i++) {
		close(freeze_all(pid, NULL));
		sleep_ms((unsigned int)i % 3);
	}
	check_moves();
	CHECK_INT(atomic_load(&shared->flags[0]), 0);
	victim_end(pid);
}

const struct kmod_case transparent_cases[] = {
	{ "blocking calls, gentle: none is disturbed", case_gentle },
	{ "blocking calls, all parked: some are", case_parked },
	{ "threads that fall asleep all the time", case_short },
	{ 0 },
};
