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
	SETTLE_MS = 10000,
	DEADLINE_MS = 5000,
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

/* What a restore would load makes the same call again. */
static void check_image(const struct native_tree *tree, const struct slot *slots)
{
	for (size_t i = 0; i < blocking_count; i++) {
		const struct native_task *t = tree_find(tree, slots[i].pid);

		if (!t || t->thread_count != 1)
			fail_msg("%s: %s", blocking_calls[i].name,
				 t ? "more than one thread" : "its process is gone");
		if (blocking_calls[i].nr && (long)t->threads[0].regs.rax != blocking_calls[i].nr)
			fail_msg("%s: image has rax=%lld instead of %ld", blocking_calls[i].name,
				 t->threads[0].regs.rax, blocking_calls[i].nr);
	}
}

static void freeze_once(pid_t stem, struct native_arena *arena, const struct slot *slots)
{
	char reason[NATIVE_REASON_MAX] = "";
	struct native_tree tree = { .root = stem, .arena = arena, .reason = reason };
	int r;

	arena_reset(arena);
	r = freeze_tree(&tree, slow(DEADLINE_MS));
	if (r < 0)
		fail_msg("freeze: %s: %s", strerror(-r), reason);
	r = regs_collect(&tree);
	if (r == 0)
		check_image(&tree, slots);
	thaw_tree(&tree);
	if (r < 0)
		fail_msg("registers: %s: %s", strerror(-r), reason);
}

static void check_timed(const struct blocking *b, const struct slot *s, uint64_t frozen_us)
{
	uint64_t timed_us = (uint64_t)BLOCKING_TIMED_MS * 1000;
	uint64_t most = timed_us + (uint64_t)slow(LATE_MS) * 1000 + (b->full ? frozen_us : 0);

	if (s->us < timed_us - 2000 || s->us > most)
		fail_msg("%s took %llu us", b->name, (unsigned long long)s->us);
	print_message("%-28s %llu ms%s\n", b->name, (unsigned long long)s->us / 1000,
		      b->full ? " (starts anew at each freeze)" : "");
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

static void test_blocking_calls(void **state)
{
	struct slot *slots = blocking_prepare(folder);
	struct native_arena *arena = NULL;
	uint64_t from, late;
	pid_t stem;

	(void)state;
	assert_int_equal(arena_create(1 << 20, &arena), 0);
	from = now_us();
	late = from + (uint64_t)BLOCKING_TIMED_MS * 500;
	stem = blocking_start(slots);
	/* A timed call must not end between two rounds: on a slow machine there are fewer. */
	for (int round = 0; round < ROUNDS && (round < ROUNDS_MIN || now_us() < late); round++) {
		freeze_once(stem, arena, slots);
		if (round == ROUNDS_MIN / 2)
			inject_all(slots);
		sleep_us(ROUND_GAP_US);
		for (size_t i = 0; i < blocking_count; i++)
			if (atomic_load(&slots[i].done) &&
			    now_us() - from < (uint64_t)BLOCKING_TIMED_MS * 1000)
				fail_msg("%s returned early: %s", blocking_calls[i].name,
					 strerror((int)slots[i].result));
	}
	from = now_us() - from;
	blocking_release(slots);
	for (size_t i = 0; i < blocking_count; i++) {
		await_done(&blocking_calls[i], &slots[i]);
		if (blocking_calls[i].timed)
			check_timed(&blocking_calls[i], &slots[i], from);
	}
	assert_int_equal(waitpid(stem, NULL, 0), stem);
	arena_destroy(arena);
	blocking_end(slots);
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
