// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Trees of all kinds are stopped whole and let go unharmed: spinning and sleeping threads, storms
 * of births, of signals, of exec; jobs that were stopped or frozen before; tracers that are killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "agent/native/freeze_internal.h"
#include "agent/util/io.h"
#include "tests/unit/freeze_lab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum {
	SPINNERS = 8,
	SLEEPERS = 64,
	TREE = 16,
	TREE_WIDTH = 3,
	STORM_FREEZES = 40,
	SIGNAL_FREEZES = 150,
	KILLED_TRACERS = 40,
	MEASURED = 30,
	QUEUED = 20,
	WHOLE_MS = 100, /* far above what is meant: two busy cores, sanitizers */
};

extern char **environ;

static uint64_t now_us(void)
{
	return now_boot_ns() / 1000;
}

static void thread_start(void *(*fn)(void *arg), void *arg)
{
	pthread_attr_t attr;
	pthread_t id;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 1 << 17);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&id, &attr, fn, arg))
		abort();
	pthread_attr_destroy(&attr);
}

static void test_arena(void **state)
{
	struct native_arena *a = NULL;
	char *p, *q;

	(void)state;
	assert_int_equal(arena_create(4096, &a), 0);
	for (int round = 0; round < 3; round++) {
		for (size_t size = 1; size < 4u << 20; size *= 3) {
			p = arena_alloc(a, size);
			assert_non_null(p);
			assert_int_equal((uintptr_t)p % 64, 0);
			for (size_t i = 0; i < size; i += 997)
				assert_int_equal(p[i], 0);
			memset(p, 0x5a, size);
		}
		arena_reset(a);
	}
	p = arena_alloc(a, 1);
	q = arena_alloc(a, 1);
	assert_true(q - p >= 64);
	assert_null(arena_alloc(a, SIZE_MAX));
	arena_destroy(a);
	arena_destroy(NULL);
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

static void spinners(struct freeze_page *page)
{
	for (int i = 1; i < SPINNERS; i++)
		thread_start(spin, page);
	spin(page);
}

static long sum(const struct freeze_page *page)
{
	long n = 0;

	for (int i = 0; i < FREEZE_LAB_SLOTS; i++)
		n += atomic_load(&page->count[i]);
	return n;
}

static void test_spinners(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, spinners);

	freeze_lab_await_ready(lab, SPINNERS);
	for (int i = 0; i < 10; i++) {
		long before;

		freeze_lab_freeze(lab, pid);
		before = sum(lab->page);
		assert_int_equal(lab->tree.task_count, 1);
		assert_int_equal(lab->tree.tasks[0].thread_count, SPINNERS);
		assert_int_equal(lab->tree.tasks[0].threads[0].tid, pid);
		freeze_lab_check_stopped(pid);
		freeze_lab_sleep_us(2000);
		assert_int_equal(sum(lab->page), before);
		thaw_tree(&lab->tree);
		freeze_lab_sleep_us(20000);
		assert_true(sum(lab->page) > before);
	}
	freeze_lab_end(pid);
}

static _Noreturn void *sleeper(void *arg)
{
	(void)counter(arg);
	for (;;)
		pause();
}

static void sleepers(struct freeze_page *page)
{
	for (int i = 1; i < SLEEPERS; i++)
		thread_start(sleeper, page);
	sleeper(page);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Prints the medians: whole, and the parts of it. */
static void measure(struct freeze_lab *lab, const char *what, pid_t pid)
{
	uint64_t whole[MEASURED], freeze[MEASURED], regs[MEASURED], thaw[MEASURED];

	for (int i = 0; i < MEASURED; i++) {
		uint64_t t0, t1, t2, t3;

		arena_reset(lab->arena);
		lab->tree = (struct native_tree){ .root = pid,
						  .arena = lab->arena,
						  .reason = lab->reason };
		assert_int_equal(tree_list(&lab->tree), 0);
		assert_int_equal(freeze_tree(&lab->tree, FREEZE_LAB_DEADLINE_MS), 0);
		t0 = lab->tree.stop_ns;
		t1 = now_boot_ns();
		assert_int_equal(regs_collect(&lab->tree), 0);
		t2 = now_boot_ns();
		thaw_tree(&lab->tree);
		t3 = now_boot_ns();
		/* Two clocks, which run alike but while the machine sleeps. */
		struct timespec mono;
		clock_gettime(CLOCK_MONOTONIC, &mono);
		t0 += now_boot_ns() - ((uint64_t)mono.tv_sec * 1000000000 + (uint64_t)mono.tv_nsec);
		whole[i] = t3 - t0;
		freeze[i] = t1 - t0;
		regs[i] = t2 - t1;
		thaw[i] = t3 - t2;
		freeze_lab_sleep_us(2000);
	}
	qsort(whole, MEASURED, sizeof(*whole), by_value);
	qsort(freeze, MEASURED, sizeof(*freeze), by_value);
	qsort(regs, MEASURED, sizeof(*regs), by_value);
	qsort(thaw, MEASURED, sizeof(*thaw), by_value);
	print_message("%s: %.0f us = freeze %.0f + registers %.0f + thaw %.0f; worst %.0f\n", what,
		      (double)whole[MEASURED / 2] / 1e3, (double)freeze[MEASURED / 2] / 1e3,
		      (double)regs[MEASURED / 2] / 1e3, (double)thaw[MEASURED / 2] / 1e3,
		      (double)whole[MEASURED - 1] / 1e3);
	assert_true(whole[MEASURED / 2] < WHOLE_MS * 1000000ull);
}

static void one_sleeper(struct freeze_page *page)
{
	sleeper(page);
}

static void test_times(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, sleepers);

	freeze_lab_await_ready(lab, SLEEPERS);
	measure(lab, "64 threads asleep", pid);
	freeze_lab_end(pid);
	pid = freeze_lab_start(lab, spinners);
	freeze_lab_await_ready(lab, SPINNERS);
	measure(lab, "8 threads spinning", pid);
	freeze_lab_end(pid);
	pid = freeze_lab_start(lab, one_sleeper);
	freeze_lab_await_ready(lab, 1);
	measure(lab, "1 thread asleep", pid);
	freeze_lab_end(pid);
}

/* 1 + 3 + 12 processes, and one zombie. */
static void family(struct freeze_page *page)
{
	int depth = 0, width = TREE_WIDTH;

	if (fork() == 0)
		_exit(3);
	for (int i = 0; i < width; i++) {
		if (fork())
			continue;
		freeze_lab_die_with_parent();
		if (++depth == 2)
			break;
		i = -1;
		width = TREE_WIDTH + 1;
	}
	(void)sleeper(page);
}

static void test_tree(void **state)
{
	struct freeze_lab *lab = *state;
	struct native_tree other;
	size_t zombies = 0, count;
	bool changed;
	pid_t left;
	pid_t pid = freeze_lab_start(lab, family);

	freeze_lab_await_ready(lab, TREE);
	freeze_lab_freeze(lab, pid);
	freeze_lab_check_stopped(pid);
	count = lab->tree.task_count;
	assert_int_equal(lab->tree.tasks[0].pid, pid);
	for (size_t i = 0; i < count; i++) {
		const struct native_task *t = &lab->tree.tasks[i];

		zombies += t->zombie;
		assert_int_equal(t->thread_count, 1);
		assert_ptr_equal(t->threads[0].task, t);
		assert_ptr_equal(tree_find(&lab->tree, t->pid), t);
		assert_true(i ? t->parent && t->parent < t : !t->parent);
	}
	assert_int_equal(zombies, 1);
	assert_int_equal(count, TREE + 1);
	thaw_tree(&lab->tree);
	/* The other way to list it sees the same. */
	other = (struct native_tree){ .root = pid, .arena = lab->arena, .reason = lab->reason };
	assert_int_equal(list_update(&other, true, &changed, &left), 0);
	assert_int_equal(other.task_count, count);
	for (size_t i = 0; i < count; i++)
		assert_non_null(tree_find(&other, lab->tree.tasks[i].pid));
	measure(lab, "tree of processes", pid);
	freeze_lab_end(pid);
}

/* Storms */

static void *mayfly(void *arg)
{
	struct freeze_page *page = arg;

	atomic_fetch_add(&page->count[0], 1);
	/* A chain: who looks for the threads that are here finds others. */
	thread_start(mayfly, page);
	return NULL;
}

static void thread_storm(struct freeze_page *page)
{
	for (int i = 0; i < 3; i++)
		thread_start(mayfly, page);
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
				thread_start(i == 3 ? run_true : spin, page);
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

static void test_storms(void **state)
{
	struct freeze_lab *lab = *state;

	storm(lab, "threads that start threads", thread_storm);
	storm(lab, "fork", fork_storm);
	storm(lab, "vfork and exec", spawn_storm);
	storm(lab, "exec among threads", exec_storm);
}

/* Jobs that stand already */

static void test_group_stop(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, spinners);
	int status;
	long before;

	freeze_lab_await_ready(lab, SPINNERS);
	kill(pid, SIGSTOP);
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	before = sum(lab->page);
	for (int i = 0; i < 5; i++) {
		freeze_lab_freeze(lab, pid);
		freeze_lab_check_stopped(pid);
		for (int k = 0; k < SPINNERS; k++)
			assert_true(lab->tree.tasks[0].threads[k].in_group_stop);
		thaw_tree(&lab->tree);
		for (int ms = 0; freeze_lab_state(pid) != 'T'; ms++) {
			assert_true(ms < 1000);
			freeze_lab_sleep_us(1000);
		}
	}
	freeze_lab_sleep_us(5000);
	assert_int_equal(sum(lab->page), before);
	kill(pid, SIGCONT);
	freeze_lab_sleep_us(50000);
	assert_true(sum(lab->page) > before);
	freeze_lab_end(pid);
}

static bool cgroup_write(const char *folder, const char *name, const char *value)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return write_kernel_file(path, value) == 0;
}

static void test_frozen_cgroup(void **state)
{
	static const char *const roots[] = { "/sys/fs/cgroup/unified", "/sys/fs/cgroup" };
	struct freeze_lab *lab = *state;
	char folder[128] = "", number[32];
	long before;
	pid_t pid;

	for (size_t i = 0; i < ARRAY_SIZE(roots) && !folder[0]; i++) {
		snprintf(folder, sizeof(folder), "%s/cgroup.procs", roots[i]);
		if (access(folder, W_OK) < 0) {
			folder[0] = '\0';
			continue;
		}
		snprintf(folder, sizeof(folder), "%s/test-freeze-%d", roots[i], getpid());
	}
	if (!folder[0] || mkdir(folder, 0755) < 0) {
		print_message("skipped: no cgroup v2 to freeze\n");
		skip();
	}
	pid = freeze_lab_start(lab, spinners);
	freeze_lab_await_ready(lab, SPINNERS);
	snprintf(number, sizeof(number), "%d", pid);
	if (!cgroup_write(folder, "cgroup.procs", number) ||
	    !cgroup_write(folder, "cgroup.freeze", "1")) {
		freeze_lab_end(pid);
		rmdir(folder);
		print_message("skipped: the cgroup cannot be frozen\n");
		skip();
	}
	freeze_lab_sleep_us(20000);
	before = sum(lab->page);
	for (int i = 0; i < 5; i++) {
		int r = freeze_lab_try(lab, pid, FREEZE_LAB_DEADLINE_MS);

		if (r == 0)
			r = regs_collect(&lab->tree);
		thaw_tree(&lab->tree);
		if (r < 0 || sum(lab->page) != before) {
			freeze_lab_end(pid);
			rmdir(folder);
			fail_msg("%s: %s", strerror(-r), lab->reason);
		}
		freeze_lab_sleep_us(2000);
	}
	before = sum(lab->page) - before;
	cgroup_write(folder, "cgroup.freeze", "0");
	freeze_lab_sleep_us(20000);
	freeze_lab_end(pid);
	freeze_lab_sleep_us(1000);
	for (int ms = 0; rmdir(folder) < 0 && ms < 1000; ms++)
		freeze_lab_sleep_us(1000);
	assert_int_equal(before, 0);
	assert_true(sum(lab->page) > 0);
}

/* Signals */

static struct freeze_page *handler_page;

static void on_queued(int signo, siginfo_t *si, void *context)
{
	(void)signo;
	(void)context;
	/* In order, each once. */
	if (si->si_value.sival_int != (int)atomic_fetch_add(&handler_page->count[1], 1))
		atomic_store(&handler_page->wrong, 1);
}

static void on_plain(int signo)
{
	(void)signo;
	atomic_fetch_add(&handler_page->count[2], 1);
}

static void install(struct freeze_page *page)
{
	struct sigaction queued = { .sa_sigaction = on_queued,
				    .sa_flags = SA_SIGINFO | SA_RESTART };
	struct sigaction plain = { .sa_handler = on_plain };

	handler_page = page;
	sigaction(SIGRTMIN, &queued, NULL);
	sigaction(SIGUSR1, &plain, NULL);
}

static void holds_signals(struct freeze_page *page)
{
	sigset_t all;

	install(page);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	(void)counter(page);
	while (!atomic_load(&page->stop))
		freeze_lab_sleep_us(1000);
	sigemptyset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	atomic_fetch_add(&page->ready, 1);
	for (;;)
		pause();
}

static void test_pending_signals(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, holds_signals);
	const struct native_task *t;

	freeze_lab_await_ready(lab, 1);
	for (int i = 0; i < QUEUED; i++)
		assert_int_equal(sigqueue(pid, SIGRTMIN, (union sigval){ .sival_int = i }), 0);
	assert_int_equal(syscall(SYS_tgkill, pid, pid, SIGUSR1), 0);
	for (int round = 0; round < 5; round++) {
		freeze_lab_freeze(lab, pid);
		t = &lab->tree.tasks[0];
		assert_int_equal(t->queued_count, QUEUED);
		for (int i = 0; i < QUEUED; i++) {
			assert_int_equal(t->queued[i].si_signo, SIGRTMIN);
			assert_int_equal(t->queued[i].si_value.sival_int, i);
		}
		assert_int_equal(t->threads[0].queued_count, 1);
		assert_int_equal(t->threads[0].queued[0].si_signo, SIGUSR1);
		assert_true(t->threads[0].sigmask >> (SIGUSR1 - 1) & 1);
		thaw_tree(&lab->tree);
	}
	atomic_store(&lab->page->stop, 1);
	freeze_lab_await_ready(lab, 2);
	assert_int_equal(atomic_load(&lab->page->count[1]), QUEUED);
	assert_int_equal(atomic_load(&lab->page->count[2]), 1);
	assert_int_equal(atomic_load(&lab->page->wrong), 0);
	freeze_lab_end(pid);
}

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
	install(page);
	thread_start(waits_for_ever, page);
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

	install(page);
	thread_start(receiver, page);
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
	freeze_lab_sleep_us(50000);
	assert_int_equal(atomic_load(&lab->page->count[1]), sent);
	assert_true(freeze_lab_state(pid) == 'R' || freeze_lab_state(pid) == 'S');
	assert_true(before > 0);
	atomic_store(&lab->page->stop, 1);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(atomic_load(&lab->page->wrong), 0);
}

/* A job that is killed while it stands: all of it goes, its parent hears of it. */
static void test_killed_job(void **state)
{
	struct freeze_lab *lab = *state;
	int status;

	for (int i = 0; i < 3; i++) {
		pid_t pid = freeze_lab_start(lab, spinners);

		freeze_lab_await_ready(lab, SPINNERS);
		freeze_lab_freeze(lab, pid);
		kill(pid, SIGKILL);
		if (i)
			freeze_lab_sleep_us(5000);
		thaw_tree(&lab->tree);
	}
	while (wait(&status) > 0)
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	lab->victim_count = 0;
}

/* What is refused */

static void hangs_in_vfork(struct freeze_page *page)
{
	pid_t pid = vfork();

	if (pid == 0) {
		atomic_fetch_add(&page->ready, 1);
		while (!atomic_load(&page->stop))
			freeze_lab_sleep_us(1000);
		_exit(0);
	}
	atomic_fetch_add(&page->count[0], 1);
	for (;;)
		pause();
}

/* The end of the tracer is what lets go of it, as freeze.h says: so it has a process of its own. */
static void test_deadline(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, hangs_in_vfork), t;
	int status;

	freeze_lab_await_ready(lab, 1);
	t = fork();
	if (t == 0) {
		uint64_t from = now_us();
		int r = freeze_lab_try(lab, pid, 100);

		if (!strstr(lab->reason, "vfork"))
			_exit(1);
		if (now_us() - from < 90000 || now_us() - from > 8000000)
			_exit(2);
		_exit(r == -ENOTRECOVERABLE ? 0 : 3);
	}
	assert_int_equal(waitpid(t, &status, 0), t);
	assert_int_equal(status, 0);
	atomic_store(&lab->page->stop, 1);
	for (int ms = 0; !atomic_load(&lab->page->count[0]); ms++) {
		assert_true(ms < 2000);
		freeze_lab_sleep_us(1000);
	}
	freeze_lab_freeze(lab, pid);
	thaw_tree(&lab->tree);
	freeze_lab_end(pid);
}

static void *outlives(void *arg)
{
	freeze_lab_sleep_us(1000);
	return sleeper(arg);
}

static void leader_ends(struct freeze_page *page)
{
	thread_start(outlives, page);
	syscall(SYS_exit, 0);
}

static void test_refused(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, one_sleeper), t;
	int status;

	freeze_lab_await_ready(lab, 1);
	t = fork();
	if (t == 0) {
		if (ptrace(PTRACE_SEIZE, pid, 0, 0) < 0)
			_exit(1);
		atomic_fetch_add(&lab->page->ready, 1);
		for (;;)
			pause();
	}
	freeze_lab_await_ready(lab, 2);
	assert_int_equal(freeze_lab_try(lab, pid, 1000), -EOPNOTSUPP);
	assert_non_null(strstr(lab->reason, "traced by"));
	freeze_lab_end(t);
	freeze_lab_freeze(lab, pid);
	thaw_tree(&lab->tree);
	freeze_lab_end(pid);
	assert_int_equal(freeze_lab_try(lab, pid, 1000), -ESRCH);
	assert_int_equal(freeze_lab_try(lab, getpid(), 1000), -EOPNOTSUPP);

	pid = freeze_lab_start(lab, leader_ends);
	freeze_lab_await_ready(lab, 1);
	while (freeze_lab_state(pid) != 'Z')
		freeze_lab_sleep_us(1000);
	assert_int_equal(freeze_lab_try(lab, pid, 1000), -EOPNOTSUPP);
	assert_non_null(strstr(lab->reason, "main thread"));
	assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
	freeze_lab_end(pid);
}

static int setup(void **state)
{
	static struct freeze_lab lab;

	freeze_lab_init(&lab);
	*state = &lab;
	return 0;
}

static int teardown(void **state)
{
	freeze_lab_deinit(*state);
	return 0;
}

#define frozen_test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_arena),	 frozen_test(test_spinners),
		frozen_test(test_times),	 frozen_test(test_tree),
		frozen_test(test_storms),	 frozen_test(test_group_stop),
		frozen_test(test_frozen_cgroup), frozen_test(test_pending_signals),
		frozen_test(test_signal_storm),	 frozen_test(test_killed_tracer),
		frozen_test(test_killed_job),	 frozen_test(test_deadline),
		frozen_test(test_refused),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
