// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Trees of all kinds are stopped whole and let go unharmed: spinning and sleeping threads, jobs that
 * were stopped or frozen before, pending signals; and what is refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "agent/native/fence.h"
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
	MEASURED = 30,
	QUEUED = 20,
	STARVED_MAX = 20,
	SPARE_MS = 8000,
	SHORT_MS = 1000, /* a deadline that passes */
	OWN_MS = 50,	 /* far above what is meant: sanitizers */
	BEST_MS = 500,
	AWAIT_MS = 20000,
	CALM_MS = 50, /* patience with one that waits for longer */
};

static uint64_t now_us(void)
{
	return now_boot_ns() / 1000;
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
		freeze_lab_thread(spin, page);
	spin(page);
}

static long sum(const struct freeze_page *page)
{
	long n = 0;

	for (int i = 0; i < FREEZE_LAB_SLOTS; i++)
		n += atomic_load(&page->count[i]);
	return n;
}

static bool grows(const struct freeze_page *page)
{
	long before = sum(page);

	for (int ms = 0; ms < slow(AWAIT_MS); ms++) {
		if (sum(page) > before)
			return true;
		freeze_lab_sleep_us(1000);
	}
	return false;
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
		assert_true(grows(lab->page));
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
		freeze_lab_thread(sleeper, page);
	sleeper(page);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t own_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/*
 * Prints the medians: whole, and the parts of it. On a busy machine these are what others leave; of
 * the tracer's own time, and of the best case, something can be said.
 */
static void measure(struct freeze_lab *lab, const char *what, pid_t pid)
{
	uint64_t whole[MEASURED], freeze[MEASURED], regs[MEASURED], thaw[MEASURED], own[MEASURED];

	for (int i = 0; i < MEASURED; i++) {
		uint64_t t0, t1, t2, t3, own0;

		arena_reset(lab->arena);
		lab->tree = (struct native_tree){ .root = pid,
						  .arena = lab->arena,
						  .reason = lab->reason };
		assert_int_equal(tree_list(&lab->tree), 0);
		own0 = own_ns();
		assert_int_equal(freeze_tree(&lab->tree, slow(FREEZE_LAB_DEADLINE_MS)), 0);
		t0 = lab->tree.stop_ns;
		t1 = now_boot_ns();
		assert_int_equal(regs_collect(&lab->tree), 0);
		t2 = now_boot_ns();
		thaw_tree(&lab->tree);
		t3 = now_boot_ns();
		own[i] = own_ns() - own0;
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
	qsort(own, MEASURED, sizeof(*own), by_value);
	print_message(
		"%s: %.0f us = freeze %.0f + registers %.0f + thaw %.0f; best %.0f, worst %.0f; "
		"tracer's own %.0f\n",
		what, (double)whole[MEASURED / 2] / 1e3, (double)freeze[MEASURED / 2] / 1e3,
		(double)regs[MEASURED / 2] / 1e3, (double)thaw[MEASURED / 2] / 1e3,
		(double)whole[0] / 1e3, (double)whole[MEASURED - 1] / 1e3,
		(double)own[MEASURED / 2] / 1e3);
	assert_true(own[MEASURED / 2] < slow(OWN_MS) * 1000000ull);
	assert_true(whole[0] < slow(BEST_MS) * 1000000ull);
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
	siginfo_t ended;

	if (fork() == 0)
		_exit(3);
	(void)waitid(P_ALL, 0, &ended, WEXITED | WNOWAIT);
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
			assert_true(ms < slow(AWAIT_MS));
			freeze_lab_sleep_us(1000);
		}
	}
	freeze_lab_sleep_us(5000);
	assert_int_equal(sum(lab->page), before);
	kill(pid, SIGCONT);
	assert_true(grows(lab->page));
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
	bool frozen, thawed;
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
	frozen = freeze_lab_await_frozen(folder);
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
	thawed = grows(lab->page);
	freeze_lab_end(pid);
	for (int ms = 0; rmdir(folder) < 0 && ms < slow(AWAIT_MS); ms++)
		freeze_lab_sleep_us(1000);
	assert_true(frozen);
	assert_int_equal(before, 0);
	assert_true(thawed);
}

/* Signals */

static void holds_signals(struct freeze_page *page)
{
	sigset_t all;

	freeze_lab_count_signals(page);
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

/* Waits */

struct slow_handler {
	volatile long steps;
	long seen;
	int starved, worst; /* in a row: on a busy machine the next tick may be due now and then */
};

/* Takes longer than the time between two ticks. Gives up where nothing happens between them. */
static void take_long(void *ctx)
{
	struct slow_handler *h = ctx;
	uint64_t until = now_us() + 3000;

	h->starved = h->steps == h->seen ? h->starved + 1 : 0;
	h->worst = h->starved > h->worst ? h->starved : h->worst;
	if (h->starved > slow(STARVED_MAX))
		return;
	h->seen = h->steps;
	while (now_us() < until)
		;
}

static void test_slow_handler(void **state)
{
	struct slow_handler h = { .seen = -1 };
	struct freeze_tick tick;

	(void)state;
	assert_int_equal(tick_start(&tick, slow(300), take_long, &h), 0);
	while (!tick_over(&tick) || (h.seen <= 0 && h.worst <= slow(STARVED_MAX)))
		h.steps++;
	tick_stop(&tick);
	assert_in_range(h.worst, 0, slow(STARVED_MAX));
	assert_true(h.seen > 0);
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
		uint64_t from = now_us(), took_us;
		int r = freeze_lab_try(lab, pid, slow(SHORT_MS));

		took_us = now_us() - from;
		if (!strstr(lab->reason, "vfork")) {
			print_message("%s\n", lab->reason);
			_exit(1);
		}
		/* The lingering does not take longer where the machine is slow. */
		if (took_us < (uint64_t)slow(SHORT_MS - 10) * 1000 ||
		    took_us > (uint64_t)(slow(SHORT_MS) + FREEZE_LINGER_MS + SPARE_MS) * 1000)
			_exit(2);
		/* What took so long was a wait in the kernel. */
		if (lab->tree.blocked_ns < (uint64_t)slow(SHORT_MS) * 1000000 / 2)
			_exit(4);
		_exit(r == -ENOTRECOVERABLE ? 0 : 3);
	}
	assert_int_equal(waitpid(t, &status, 0), t);
	assert_int_equal(status, 0);
	atomic_store(&lab->page->stop, 1);
	for (int ms = 0; !atomic_load(&lab->page->count[0]); ms++) {
		assert_true(ms < slow(AWAIT_MS));
		freeze_lab_sleep_us(1000);
	}
	freeze_lab_freeze(lab, pid);
	thaw_tree(&lab->tree);
	freeze_lab_end(pid);
}

/* Who waits in the kernel is waited for while all others run. */
/* A fence of a plain file: whoever waits for calm asks for the mutex of all cgroups once. */
static void test_calm_asks_for_the_fence(void **state)
{
	struct freeze_lab *lab = *state;
	char dir[] = "/tmp/calm-XXXXXX", path[64], byte = 'x';
	struct native_fence fence;
	uint64_t waited_ns;
	int fd;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/cgroup.freeze", dir);
	close(creat(path, 0600));
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(fence_open(fd, &fence), 0);
	lab->tree =
		(struct native_tree){ .arena = lab->arena, .reason = lab->reason, .fence = &fence };
	assert_true(freeze_await_calm(&lab->tree, 0, &waited_ns));
	assert_int_equal(pread(fence.freeze, &byte, 1, 0), 1);
	assert_int_equal(byte, '0');
	/* One that is up stays up. */
	assert_int_equal(pwrite(fence.freeze, "1", 1, 0), 1);
	assert_true(freeze_await_calm(&lab->tree, 0, &waited_ns));
	assert_true(fence_is_up(&fence));
	fence_close(&fence);
	close(fd);
	unlink(path);
	rmdir(dir);
}

static void test_calm(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, hangs_in_vfork);
	uint64_t waited_ns;

	freeze_lab_await_ready(lab, 1);
	arena_reset(lab->arena);
	lab->tree = (struct native_tree){ .root = pid, .arena = lab->arena, .reason = lab->reason };
	assert_int_equal(tree_list(&lab->tree), 0);
	for (int ms = 0; freeze_lab_state(pid) != 'D'; ms++) {
		assert_true(ms < slow(AWAIT_MS));
		freeze_lab_sleep_us(1000);
	}
	assert_false(freeze_await_calm(&lab->tree, CALM_MS * UINT64_C(1000000), &waited_ns));
	assert_true(waited_ns >= CALM_MS * UINT64_C(1000000));
	assert_int_equal(atomic_load(&lab->page->count[0]), 0);
	atomic_store(&lab->page->stop, 1);
	assert_true(freeze_await_calm(&lab->tree, (uint64_t)slow(AWAIT_MS) * 1000000, &waited_ns));
	assert_int_not_equal(freeze_lab_state(pid), 'D');
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
	freeze_lab_thread(outlives, page);
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
	assert_int_equal(freeze_lab_try(lab, pid, FREEZE_LAB_DEADLINE_MS), -EOPNOTSUPP);
	assert_non_null(strstr(lab->reason, "traced by"));
	freeze_lab_end(t);
	freeze_lab_freeze(lab, pid);
	thaw_tree(&lab->tree);
	freeze_lab_end(pid);
	assert_int_equal(freeze_lab_try(lab, pid, FREEZE_LAB_DEADLINE_MS), -ESRCH);
	assert_int_equal(freeze_lab_try(lab, getpid(), FREEZE_LAB_DEADLINE_MS), -EOPNOTSUPP);

	pid = freeze_lab_start(lab, leader_ends);
	freeze_lab_await_ready(lab, 1);
	while (freeze_lab_state(pid) != 'Z')
		freeze_lab_sleep_us(1000);
	assert_int_equal(freeze_lab_try(lab, pid, FREEZE_LAB_DEADLINE_MS), -EOPNOTSUPP);
	assert_non_null(strstr(lab->reason, "main thread"));
	assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
	freeze_lab_end(pid);
}

#define frozen_test(f) cmocka_unit_test_setup_teardown(f, freeze_lab_setup, freeze_lab_teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_arena),
		cmocka_unit_test(test_slow_handler),
		frozen_test(test_spinners),
		frozen_test(test_times),
		frozen_test(test_tree),
		frozen_test(test_group_stop),
		frozen_test(test_frozen_cgroup),
		frozen_test(test_pending_signals),
		frozen_test(test_killed_job),
		frozen_test(test_deadline),
		frozen_test(test_calm_asks_for_the_fence),
		frozen_test(test_calm),
		frozen_test(test_refused),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
