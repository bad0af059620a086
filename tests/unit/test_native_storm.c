// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Freezes in a storm: of threads and processes that are born, of vfork and exec, of signals; and
 * tracers that are killed at any moment. The tree is stopped whole, and goes on unharmed.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#include "agent/util/io.h"
#include "tests/unit/freeze_lab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { STORM_FREEZES = 40, SIGNAL_FREEZES = 150, KILLED_TRACERS = 40 };

extern char **environ;

static uint64_t now_us(void)
{
	return now_boot_ns() / 1000;
}

static atomic_long *counter(struct freeze_page *page)
{
	static _Thread_local atomic_long *mine;

	if (!mine)
		mine = &page->count[atomic_fetch_add(&page->ready, 1) % FREEZE_LAB_SLOTS];
	return mine;
}

static _Noreturn void *spin(void *arg)
{
	struct freeze_page *page = arg;

	for (;;)
		atomic_fetch_add(counter(page), 1);
}

static _Noreturn void *sleeper(void *arg)
{
	(void)counter(arg);
	for (;;)
		pause();
}

static void *mayfly(void *arg)
{
	struct freeze_page *page = arg;

	atomic_fetch_add(&page->count[0], 1);
	/* A chain: who looks for the threads that are here finds others. */
	freeze_lab_thread(mayfly, page);
	return NULL;
}

static void thread_storm(struct freeze_page *page)
{
	for (int i = 0; i < 3; i++)
		freeze_lab_thread(mayfly, page);
	sleeper(page);
}

static void fork_storm(struct freeze_page *page)
{
	(void)counter(page);
	for (;;) {
		pid_t pid = fork();

		if (pid == 0) {
			freeze_lab_die_with_parent();
			if (fork() == 0) {
				freeze_lab_die_with_parent();
				_exit(0);
			}
			while (wait(NULL) > 0)
				;
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			atomic_store(&page->wrong, errno);
		atomic_fetch_add(&page->count[0], 1);
	}
}

static void spawn_storm(struct freeze_page *page)
{
	char *argv[] = { (char *)"true", NULL };
	int status;
	pid_t pid;

	(void)counter(page);
	for (;;) {
		if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ) ||
		    waitpid(pid, &status, 0) != pid || status)
			atomic_store(&page->wrong, errno ? errno : -1);
		atomic_fetch_add(&page->count[0], 1);
	}
}

static atomic_int all_there;

/* Not before: a clone(2) that meets an exec of its process fails with EAGAIN, tracer or not. */
static void *run_true(void *arg)
{
	(void)arg;
	while (!atomic_load(&all_there))
		sched_yield();
	execl("/bin/true", "true", NULL);
	_exit(9);
}

/* Not the main thread calls exec: it takes the number of the main thread, all others must end. */
static void exec_storm(struct freeze_page *page)
{
	int status;

	(void)counter(page);
	for (;;) {
		pid_t pid = fork();

		if (pid == 0) {
			freeze_lab_die_with_parent();
			for (int i = 0; i < 6; i++)
				freeze_lab_thread(i == 3 ? run_true : spin, page);
			atomic_store(&all_there, 1);
			for (;;)
				pause();
		}
		if (pid < 0)
			atomic_store(&page->wrong, 1000 + errno);
		else if (waitpid(pid, &status, 0) != pid)
			atomic_store(&page->wrong, 2000 + errno);
		else if (status)
			atomic_store(&page->wrong, 10000 + status);
		atomic_fetch_add(&page->count[0], 1);
	}
}

static void storm(struct freeze_lab *lab, const char *what, void (*fn)(struct freeze_page *page))
{
	pid_t pid = freeze_lab_start(lab, fn);
	uint64_t us = 0, worst = 0;
	long before;

	freeze_lab_await_ready(lab, 1);
	for (int i = 0; i < STORM_FREEZES; i++) {
		uint64_t from = now_us();
		int r = freeze_lab_try(lab, pid, FREEZE_LAB_DEADLINE_MS);

		from = now_us() - from;
		us += from;
		worst = from > worst ? from : worst;
		if (r < 0)
			fail_msg("%s: %s: %s", what, strerror(-r), lab->reason);
		freeze_lab_check_stopped(pid);
		r = regs_collect(&lab->tree);
		thaw_tree(&lab->tree);
		if (r < 0)
			fail_msg("%s: %s: %s", what, strerror(-r), lab->reason);
		freeze_lab_sleep_us(3000);
	}
	before = atomic_load(&lab->page->count[0]);
	/* It goes on, and nothing failed in it. */
	for (int ms = 0; atomic_load(&lab->page->count[0]) <= before + 3; ms++) {
		assert_true(ms < FREEZE_LAB_DEADLINE_MS);
		freeze_lab_sleep_us(1000);
	}
	print_message("%s: %llu us each, worst %llu; it got to %ld\n", what,
		      (unsigned long long)us / STORM_FREEZES, (unsigned long long)worst,
		      atomic_load(&lab->page->count[0]));
	if (atomic_load(&lab->page->wrong))
		fail_msg("%s: %d", what, atomic_load(&lab->page->wrong));
	freeze_lab_end(pid);
}

static void test_births(void **state)
{
	struct freeze_lab *lab = *state;

	storm(lab, "threads that start threads", thread_storm);
	storm(lab, "fork", fork_storm);
	storm(lab, "vfork and exec", spawn_storm);
	storm(lab, "exec among threads", exec_storm);
}

/* Signals */

/* Main thread: handlers. Second: epoll_wait with these blocked, woken by none of the ignored. */
static _Noreturn void *waits_for_ever(void *arg)
{
	struct freeze_page *page = arg;
	struct epoll_event ev;
	sigset_t set;
	int ep = epoll_create1(0);

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	(void)counter(page);
	for (;;) {
		(void)epoll_wait(ep, &ev, 1, -1);
		atomic_store(&page->wrong, errno);
	}
}

static void takes_signals(struct freeze_page *page)
{
	freeze_lab_count_signals(page);
	freeze_lab_thread(waits_for_ever, page);
	for (int i = 0;; i++) {
		if (i == 0)
			(void)counter(page);
		/* Half of the time in a call that is interrupted, half in user code. */
		for (volatile int k = 0; k < 100000; k++)
			;
		freeze_lab_sleep_us(100);
	}
}

static void sender(struct freeze_page *page, pid_t to)
{
	int sent = 0;

	freeze_lab_die_with_parent();
	while (!atomic_load(&page->stop)) {
		if (sigqueue(to, SIGRTMIN, (union sigval){ .sival_int = sent }) == 0)
			atomic_store(&page->value[0], ++sent);
		/* By default ignored: but for a tracer, nobody would be woken. */
		kill(to, SIGWINCH);
		kill(to, SIGCHLD);
		freeze_lab_sleep_us(30);
	}
	_exit(0);
}

static void test_signal_storm(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, takes_signals), from;

	freeze_lab_await_ready(lab, 2);
	from = fork();
	if (from == 0)
		sender(lab->page, pid);
	for (int i = 0; i < SIGNAL_FREEZES; i++) {
		freeze_lab_freeze(lab, pid);
		freeze_lab_sleep_us(100);
		thaw_tree(&lab->tree);
		freeze_lab_sleep_us(500);
	}
	atomic_store(&lab->page->stop, 1);
	assert_int_equal(waitpid(from, NULL, 0), from);
	for (int ms = 0; atomic_load(&lab->page->count[1]) < lab->page->value[0]; ms++) {
		assert_true(ms < FREEZE_LAB_DEADLINE_MS);
		freeze_lab_sleep_us(1000);
	}
	print_message("%ld signals\n", lab->page->value[0]);
	assert_int_equal(atomic_load(&lab->page->count[1]), lab->page->value[0]);
	assert_int_equal(atomic_load(&lab->page->wrong), 0);
	freeze_lab_end(pid);
}

/* Tracers that are killed */

/* A sum that lives in vector registers, of any width that the compiler has. */
typedef uint64_t lanes __attribute__((vector_size(32)));

__attribute__((target("avx2"))) static void checksum(struct freeze_page *page)
{
	static const uint64_t prime = 0x9e3779b97f4a7c15;
	lanes expected = { 0 };

	for (long round = 0; !atomic_load(&page->stop); round++) {
		lanes a = { 1, 2, 3, 4 };

		for (int i = 0; i < 200000; i++) {
			a = (a ^ (a >> 7)) * prime + (uint64_t)i;
			__asm__ volatile("" : "+x"(a));
		}
		if (round == 0) {
			expected = a;
			(void)counter(page);
		}
		for (int k = 0; k < 4; k++)
			if (a[k] != expected[k])
				atomic_store(&page->wrong, 1);
		atomic_fetch_add(&page->count[3], 1);
	}
}

static _Noreturn void *receiver(void *arg)
{
	(void)arg;
	for (;;)
		pause();
}

static void computes(struct freeze_page *page)
{
	sigset_t set;

	freeze_lab_count_signals(page);
	freeze_lab_thread(receiver, page);
	sigfillset(&set);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	if (__builtin_cpu_supports("avx2"))
		checksum(page);
	else
		atomic_store(&page->wrong, 2);
	(void)counter(page);
}

static void tracer(pid_t pid)
{
	struct freeze_lab lab;

	freeze_lab_die_with_parent();
	freeze_lab_init(&lab);
	for (;;) {
		int r = freeze_lab_try(&lab, pid, FREEZE_LAB_DEADLINE_MS);

		if (r == 0)
			r = regs_collect(&lab.tree);
		if (r < 0)
			_exit(1);
		thaw_tree(&lab.tree);
	}
}

static void test_killed_tracer(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, computes);
	long before, sent = 0;

	freeze_lab_await_ready(lab, 1);
	if (atomic_load(&lab->page->wrong) == 2) {
		freeze_lab_end(pid);
		print_message("skipped: the processor has no AVX2\n");
		skip();
	}
	srandom(1);
	for (int i = 0; i < KILLED_TRACERS; i++) {
		pid_t t = fork();

		assert_true(t >= 0);
		if (t == 0)
			tracer(pid);
		for (int k = 0; k < 5; k++) {
			freeze_lab_sleep_us((unsigned int)random() % 2000);
			assert_int_equal(sigqueue(pid, SIGRTMIN,
						  (union sigval){ .sival_int = (int)sent }),
					 0);
			sent++;
		}
		freeze_lab_end(t);
	}
	before = atomic_load(&lab->page->count[3]);
	for (int ms = 0; atomic_load(&lab->page->count[1]) < sent; ms++) {
		assert_true(ms < slow(FREEZE_LAB_DEADLINE_MS));
		freeze_lab_sleep_us(1000);
	}
	assert_int_equal(atomic_load(&lab->page->count[1]), sent);
	assert_true(freeze_lab_state(pid) == 'R' || freeze_lab_state(pid) == 'S');
	/* It computes on. */
	for (int ms = 0; atomic_load(&lab->page->count[3]) <= before; ms++) {
		assert_true(ms < slow(FREEZE_LAB_DEADLINE_MS));
		freeze_lab_sleep_us(1000);
	}
	atomic_store(&lab->page->stop, 1);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(atomic_load(&lab->page->wrong), 0);
}

#define frozen_test(f) cmocka_unit_test_setup_teardown(f, freeze_lab_setup, freeze_lab_teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		frozen_test(test_births),
		frozen_test(test_signal_storm),
		frozen_test(test_killed_tracer),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
