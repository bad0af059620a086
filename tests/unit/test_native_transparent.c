// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A program blocked in a system call sees nothing of a freeze: no EINTR, no early return, no late
 * one. One process per call, all below one stem; the tree is frozen again and again, system calls
 * are injected, then each call is given what it waits for.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "agent/native/freeze.h"
#include "agent/util/io.h"
#include "tests/unit/blocking_calls.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum {
	ROUNDS = 20,
	ROUNDS_MIN = 3,
	ROUND_GAP_US = 12000,
	LATE_MS = 700, /* two busy cores, sanitizers */
	SETTLE_MS = 30000,
	DEADLINE_MS = 30000,
	STRETCH_MAX = 8,
};

static char folder[] = "/tmp/test-transparent-XXXXXX";

static uint64_t now_us(void)
{
	return now_boot_ns() / 1000;
}

static void sleep_us(unsigned int us)
{
	struct timespec ts = { .tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000L };

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

static int get_id(void *ctx, struct injection *i)
{
	const uint64_t args[6] = { 0 };
	int64_t pid = 0;
	int r = inject_syscall(i, SYS_getpid, args, &pid);

	*(int64_t *)ctx = pid;
	return r;
}

static void inject_all(const struct slot *slots)
{
	for (size_t i = 0; i < blocking_count; i++) {
		int64_t pid = 0;

		assert_int_equal(inject(slots[i].pid, NULL, get_id, &pid), 0);
		assert_int_equal(pid, slots[i].pid);
	}
}

static bool is_over(uint64_t from_us)
{
	return now_us() - from_us >= (uint64_t)BLOCKING_TIMED_MS * 1000;
}

/* What a restore would load makes the same call again. False: a timed one has ended. */
static bool check_image(const struct native_tree *tree, const struct slot *slots, uint64_t from_us)
{
	for (size_t i = 0; i < blocking_count; i++) {
		const struct native_task *t = tree_find(tree, slots[i].pid);

		if (blocking_calls[i].timed && is_over(from_us))
			return false;
		if (!t || t->thread_count != 1)
			fail_msg("%s: %s", blocking_calls[i].name,
				 t ? "more than one thread" : "its process is gone");
		if (blocking_calls[i].nr && (long)t->threads[0].regs.rax != blocking_calls[i].nr)
			fail_msg("%s: image has rax=%lld instead of %ld", blocking_calls[i].name,
				 t->threads[0].regs.rax, blocking_calls[i].nr);
	}
	return true;
}

static bool freeze_once(pid_t stem, struct native_arena *arena, const struct slot *slots,
			uint64_t from_us)
{
	bool in_time = true;
	char reason[NATIVE_REASON_MAX] = "";
	struct native_tree tree = { .root = stem, .arena = arena, .reason = reason };
	int r;

	arena_reset(arena);
	r = freeze_tree(&tree, slow(DEADLINE_MS));
	if (r < 0)
		fail_msg("freeze: %s: %s", strerror(-r), reason);
	r = regs_collect(&tree);
	if (r == 0)
		in_time = check_image(&tree, slots, from_us);
	thaw_tree(&tree);
	if (r < 0)
		fail_msg("registers: %s: %s", strerror(-r), reason);
	return in_time;
}

/* False: it was late. */
static bool check_timed(const struct blocking *b, const struct slot *s, uint64_t frozen_us)
{
	uint64_t timed_us = (uint64_t)BLOCKING_TIMED_MS * 1000;
	uint64_t late_us = (uint64_t)slow(LATE_MS) * 1000 * (unsigned int)blocking_stretch;

	if (s->us < timed_us - 2000)
		fail_msg("%s took %llu us", b->name, (unsigned long long)s->us);
	print_message("%-28s %llu ms%s\n", b->name, (unsigned long long)s->us / 1000,
		      b->full ? " (starts anew at each freeze)" : "");
	return s->us <= timed_us + late_us + (b->full ? frozen_us : 0);
}

static void await_done(const struct blocking *b, struct slot *s)
{
	for (int ms = 0; !atomic_load(&s->done); ms++) {
		if (ms > slow(SETTLE_MS))
			fail_msg("%s does not return", b->name);
		sleep_us(1000);
	}
	if (s->result)
		fail_msg("%s returned %s", b->name, strerror((int)s->result));
}

/* Returns whether it was done before a timed call ended. */
static bool freeze_often(pid_t stem, struct native_arena *arena, const struct slot *slots,
			 uint64_t from)
{
	uint64_t late = from + (uint64_t)BLOCKING_TIMED_MS * 500;

	/* A timed call must not end between two rounds: on a slow machine there are fewer. */
	for (int round = 0; round < ROUNDS && (round < ROUNDS_MIN || now_us() < late); round++) {
		if (!freeze_once(stem, arena, slots, from))
			return false;
		if (round == ROUNDS_MIN / 2)
			inject_all(slots);
		sleep_us(ROUND_GAP_US);
		for (size_t i = 0; i < blocking_count; i++)
			if (atomic_load(&slots[i].done) && !is_over(from))
				fail_msg("%s returned early: %s", blocking_calls[i].name,
					 strerror((int)slots[i].result));
	}
	return true;
}

/* False: what is timed was over too soon, or late, as on a busy machine. */
static bool goes_unnoticed(void)
{
	struct slot *slots = blocking_prepare(folder);
	struct native_arena *arena = NULL;
	uint64_t from = now_us();
	pid_t stem = blocking_start(slots);
	bool in_time;

	assert_int_equal(arena_create(1 << 20, &arena), 0);
	in_time = freeze_often(stem, arena, slots, from);
	from = now_us() - from;
	if (in_time)
		blocking_release(slots);
	else
		kill(stem, SIGKILL);
	for (size_t i = 0; i < blocking_count && in_time; i++) {
		await_done(&blocking_calls[i], &slots[i]);
		if (blocking_calls[i].timed)
			in_time = check_timed(&blocking_calls[i], &slots[i], from);
	}
	if (!in_time)
		kill(stem, SIGKILL);
	assert_int_equal(waitpid(stem, NULL, 0), stem);
	arena_destroy(arena);
	blocking_end(slots);
	assert_int_equal(remove_tree_at(AT_FDCWD, folder), 0);
	assert_int_equal(mkdir(folder, 0700), 0);
	return in_time;
}

static void test_blocking_calls(void **state)
{
	(void)state;
	while (!goes_unnoticed()) {
		print_message("again, with more time\n");
		blocking_stretch *= 2;
		assert_true(blocking_stretch <= STRETCH_MAX);
	}
}

static int setup(void **state)
{
	(void)state;
	/* A namespace of our own: what a failed test leaves goes with it. */
	(void)unshare(CLONE_NEWIPC);
	return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	return remove_tree_at(AT_FDCWD, folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_blocking_calls),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
