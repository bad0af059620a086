// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The tracer dies between the stop of a thread and the mending of its call. Without a fence the call
 * returns EINTR; behind one the job stands until somebody has mended it, and then sees nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/native/fence.h"
#include "agent/util/io.h"
#include "tests/unit/freeze_lab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum {
	WAITERS = 4,
	TEARS = 20,
	KILLS = 150,
	KILL_WITHIN_US = 1500,
	WAIT_MS = 50,
	AWAIT_MS = 30000,
	LOOKS = 300,
	THREADS_MAX = 8,
	VFORKS = 7
};

struct fence_lab {
	struct freeze_lab lab;
	char folder[128];
	struct native_fence fence;
	pid_t victim;
	bool expects; /* a call that leaks, whatever the look before the stop says */
};

static void tell(struct freeze_page *page, int n, long r)
{
	if (r < 0 && errno == EINTR)
		page->wrong++;
	page->count[n]++;
}

static void *in_epoll(void *arg)
{
	int fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event;

	for (;;)
		tell(arg, 0, epoll_wait(fd, &event, 1, WAIT_MS));
	return NULL;
}

static void *in_signal(void *arg)
{
	struct timespec limit = { .tv_nsec = WAIT_MS * 1000000 };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	for (;;)
		tell(arg, 1, sigtimedwait(&set, NULL, &limit));
	return NULL;
}

static void *in_receive(void *arg)
{
	struct timeval limit = { .tv_usec = WAIT_MS * 1000 };
	int pair[2];
	char c;

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0 ||
	    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0)
		_exit(1);
	for (;;)
		tell(arg, 2, recv(pair[0], &c, 1, 0));
	return NULL;
}

/* The main thread too is in a call that leaks: injections go there. */
static void waiters(struct freeze_page *page)
{
	void *(*const fns[])(void *) = { in_epoll, in_signal, in_receive };
	int fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event;
	pthread_t t;

	for (size_t i = 0; i < ARRAY_SIZE(fns); i++)
		if (pthread_create(&t, NULL, fns[i], page))
			_exit(1);
	page->ready++;
	for (;;)
		tell(page, 3, epoll_wait(fd, &event, 1, WAIT_MS));
}

/* Now asleep, now not: a look says little about the moment after it. */
static void napper(struct freeze_page *page)
{
	int fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event;
	struct timespec nap = { .tv_nsec = 100000 };

	page->ready++;
	for (;;) {
		for (volatile int i = 0; i < 100000; i++)
			;
		tell(page, 0, epoll_pwait2(fd, &event, 1, &nap, NULL));
	}
}

static void counter(struct freeze_page *page)
{
	page->ready++;
	for (;;)
		page->count[0]++;
}

static bool write_to(const struct fence_lab *f, const char *name, long value)
{
	char path[256], number[32];

	snprintf(path, sizeof(path), "%s/%s", f->folder, name);
	snprintf(number, sizeof(number), "%ld", value);
	return write_kernel_file(path, number) == 0;
}

static bool make_cgroup(struct fence_lab *f)
{
	static const char *const roots[] = { "/sys/fs/cgroup/unified", "/sys/fs/cgroup" };
	_cleanup_close_ int dir = -1;

	for (size_t i = 0; i < ARRAY_SIZE(roots) && dir < 0; i++) {
		char procs[128];

		snprintf(procs, sizeof(procs), "%s/cgroup.procs", roots[i]);
		snprintf(f->folder, sizeof(f->folder), "%s/test-fence-%d", roots[i], getpid());
		if (access(procs, W_OK) == 0 && mkdir(f->folder, 0755) == 0)
			dir = open(f->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	f->fence = NATIVE_NO_FENCE;
	return dir >= 0 && fence_open(dir, &f->fence) == 0;
}

static int setup(void **state)
{
	struct fence_lab *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	freeze_lab_init(&f->lab);
	*state = f;
	if (!make_cgroup(f))
		return 0;
	f->victim = freeze_lab_start(&f->lab, waiters);
	freeze_lab_await_ready(&f->lab, 1);
	return write_to(f, "cgroup.procs", f->victim) ? 0 : -1;
}

static int teardown(void **state)
{
	struct fence_lab *f = *state;

	fence_lower(&f->fence);
	freeze_lab_deinit(&f->lab);
	fence_close(&f->fence);
	for (int ms = 0; f->folder[0] && rmdir(f->folder) < 0 && errno == EBUSY && ms < AWAIT_MS;
	     ms++)
		freeze_lab_sleep_us(1000);
	free(f);
	return 0;
}

static void need_fence(const struct fence_lab *f)
{
	if (f->fence.freeze < 0) {
		print_message("skipped: no cgroup v2 to freeze\n");
		skip();
	}
}

static size_t threads_of(pid_t pid, pid_t tids[THREADS_MAX])
{
	char path[64];
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *e;
	size_t count = 0;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && (e = readdir(dir)) && count < THREADS_MAX)
		if (atol(e->d_name) > 0)
			tids[count++] = (pid_t)atol(e->d_name);
	return count;
}

/* All threads of the victim are torn out of their calls by somebody who is killed before he mends. */
static void tear(struct fence_lab *f, bool fenced)
{
	pid_t tids[THREADS_MAX], pid = fork();
	size_t count;
	int status;

	assert_true(pid >= 0);
	if (pid) {
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		return;
	}
	count = threads_of(f->victim, tids);
	if (count != WAITERS || (fenced && !fence_raise(&f->fence)))
		_exit(1);
	for (size_t i = 0; i < count; i++)
		if (ptrace(PTRACE_SEIZE, tids[i], 0, 0) < 0 ||
		    ptrace(PTRACE_INTERRUPT, tids[i], 0, 0) < 0 ||
		    waitpid(tids[i], &status, __WALL) != tids[i])
			_exit(2);
	kill(getpid(), SIGKILL);
}

/* Everybody makes calls again; how many there were in all. */
static void check_alive(struct fence_lab *f)
{
	for (int n = 0; n < WAITERS; n++) {
		long before = f->lab.page->count[n];

		for (int ms = 0; f->lab.page->count[n] < before + 2; ms++) {
			if (ms > AWAIT_MS)
				fail_msg("thread %d of the victim stands", n);
			freeze_lab_sleep_us(1000);
		}
	}
}

static void test_torn_without(void **state)
{
	struct fence_lab *f = *state;

	need_fence(f);
	for (int i = 0; i < TEARS; i++) {
		freeze_lab_sleep_us(10000);
		tear(f, false);
	}
	check_alive(f);
	print_message("without a fence: %d calls said EINTR\n", f->lab.page->wrong);
	assert_true(f->lab.page->wrong > 0);
}

static void test_torn(void **state)
{
	struct fence_lab *f = *state;

	need_fence(f);
	for (int i = 0; i < TEARS; i++) {
		long before = 0;

		freeze_lab_sleep_us(10000);
		tear(f, true);
		assert_true(fence_is_up(&f->fence));
		for (int n = 0; n < WAITERS; n++)
			before += f->lab.page->count[n];
		freeze_lab_sleep_us(i ? 1000 : 3 * WAIT_MS * 1000);
		for (int n = 0; n < WAITERS; n++)
			before -= f->lab.page->count[n];
		assert_int_equal(before, 0);
		assert_int_equal(fence_mend(&f->fence), 0);
		assert_false(fence_is_up(&f->fence));
	}
	check_alive(f);
	assert_int_equal(f->lab.page->wrong, 0);
}

static int get_ppid(void *ctx, struct injection *i)
{
	const uint64_t args[6] = { 0 };

	return inject_syscall(i, SYS_getppid, args, ctx);
}

/* Works on the victim until it is killed. The look before a stop counts alone only if !f->expects. */
static _Noreturn void work(struct fence_lab *f, bool injects)
{
	const struct native_tree tree = { .fence = &f->fence };
	int64_t parent;

	for (;;) {
		if (injects) {
			int r = inject(f->victim, &tree, get_ppid, &parent);

			/* It may give up where the victim gets nothing of a busy machine. */
			if (r < 0 && r != -EOPNOTSUPP)
				_exit(1);
			continue;
		}
		arena_reset(f->lab.arena);
		f->lab.tree = (struct native_tree){ .root = f->victim,
						    .arena = f->lab.arena,
						    .reason = f->lab.reason,
						    .fence = &f->fence,
						    .expects_leaks = f->expects };
		if (freeze_tree(&f->lab.tree, FREEZE_LAB_DEADLINE_MS) < 0)
			_exit(1);
		thaw_tree(&f->lab.tree);
	}
}

static void kill_at_random(struct fence_lab *f, bool injects)
{
	unsigned int up = 0;

	for (int i = 0; i < KILLS; i++) {
		pid_t pid = fork();
		int status;

		assert_true(pid >= 0);
		if (pid == 0)
			work(f, injects);
		freeze_lab_sleep_us((unsigned int)(3000 + random() % KILL_WITHIN_US));
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		if (fence_is_up(&f->fence)) {
			up++;
			assert_int_equal(fence_mend(&f->fence), 0);
		}
	}
	print_message("killed %d times, %u of them behind the fence\n", KILLS, up);
	assert_int_equal(f->lab.page->wrong, 0);
}

static void test_killed(void **state)
{
	struct fence_lab *f = *state;

	need_fence(f);
	f->expects = true;
	kill_at_random(f, false);
	check_alive(f);
}

static void test_killed_in_injection(void **state)
{
	need_fence(*state);
	kill_at_random(*state, true);
	check_alive(*state);
}

/* As take.c: at the first stops, and after stops that met such calls, the look does not count. */
static void test_expected(void **state)
{
	struct fence_lab *f = *state;
	long before;

	need_fence(f);
	kill(f->victim, SIGKILL);
	f->victim = freeze_lab_start(&f->lab, napper);
	freeze_lab_await_ready(&f->lab, 1);
	assert_true(write_to(f, "cgroup.procs", f->victim));
	f->expects = true;
	kill_at_random(f, false);
	before = f->lab.page->count[0];
	for (int ms = 0; f->lab.page->count[0] == before; ms++) {
		assert_true(ms < AWAIT_MS);
		freeze_lab_sleep_us(1000);
	}
}

static void freeze_once(struct fence_lab *f, pid_t root)
{
	arena_reset(f->lab.arena);
	f->lab.tree = (struct native_tree){
		.root = root, .arena = f->lab.arena, .reason = f->lab.reason, .fence = &f->fence
	};
	assert_int_equal(freeze_tree(&f->lab.tree, FREEZE_LAB_DEADLINE_MS), 0);
	thaw_tree(&f->lab.tree);
}

static void test_seen(void **state)
{
	struct fence_lab *f = *state;

	/* All of them may just wait for a processor. */
	for (int i = 0; i == 0 || !f->lab.tree.leaks; i++) {
		assert_true(i < LOOKS);
		freeze_once(f, f->victim);
		freeze_lab_sleep_us(3000);
	}
	freeze_once(f, freeze_lab_start(&f->lab, counter));
	assert_false(f->lab.tree.leaks);
}

/* The fence is for the stop alone: down again while the threads stand. */
static void test_lowered(void **state)
{
	struct fence_lab *f = *state;

	need_fence(f);
	for (int i = 0; i < TEARS; i++) {
		f->lab.tree.fence = &f->fence;
		arena_reset(f->lab.arena);
		f->lab.tree = (struct native_tree){ .root = f->victim,
						    .arena = f->lab.arena,
						    .reason = f->lab.reason,
						    .fence = &f->fence };
		assert_int_equal(freeze_tree(&f->lab.tree, FREEZE_LAB_DEADLINE_MS), 0);
		assert_false(fence_is_up(&f->fence));
		freeze_lab_check_stopped(f->victim);
		thaw_tree(&f->lab.tree);
		freeze_lab_sleep_us(5000);
	}
	check_alive(f);
	assert_int_equal(f->lab.page->wrong, 0);
}

/* Parent and child in vfork(2): the parent cannot stop before the child has run, which stands. */
static void in_vfork(struct freeze_page *page)
{
	page->ready++;
	for (;; page->count[VFORKS]++) {
		pid_t pid = vfork();

		if (pid == 0) {
			usleep(300000);
			_exit(0);
		}
		waitpid(pid, NULL, 0);
	}
}

static void test_vfork(void **state)
{
	struct fence_lab *f = *state;
	pid_t parent;

	need_fence(f);
	parent = freeze_lab_start(&f->lab, in_vfork);
	assert_true(write_to(f, "cgroup.procs", parent));
	for (int i = 0; i < 5; i++) {
		long before = f->lab.page->count[VFORKS];

		for (int ms = 0; freeze_lab_state(parent) != 'D'; ms++) {
			assert_true(ms < AWAIT_MS);
			freeze_lab_sleep_us(1000);
		}
		assert_true(fence_raise(&f->fence));
		freeze_lab_sleep_us(20000);
		assert_int_equal(fence_mend(&f->fence), 0);
		for (int ms = 0; f->lab.page->count[VFORKS] == before; ms++) {
			if (ms > AWAIT_MS)
				fail_msg("the parent stands");
			freeze_lab_sleep_us(1000);
		}
	}
}

/* Somebody in the cgroup who is not of the tree: he must not be held, let alone torn out of a call. */
static void test_stranger(void **state)
{
	struct fence_lab *f = *state;
	struct native_tree tree = { .arena = f->lab.arena, .reason = f->lab.reason };
	pid_t stranger;

	need_fence(f);
	tree.root = f->victim;
	assert_int_equal(tree_list(&tree), 0);
	assert_true(fence_covers(&f->fence, &tree));
	stranger = freeze_lab_start(&f->lab, counter);
	assert_true(write_to(f, "cgroup.procs", stranger));
	assert_false(fence_covers(&f->fence, &tree));
	assert_true(write_to(f, "cgroup.procs", f->victim));
}

#define fence_test(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		fence_test(test_torn_without), fence_test(test_torn),
		fence_test(test_killed),       fence_test(test_killed_in_injection),
		fence_test(test_lowered),      fence_test(test_stranger),
		fence_test(test_vfork),	       fence_test(test_expected),
		fence_test(test_seen),
	};

	if (geteuid() != 0) {
		print_message("SKIP: tracing the victims needs root\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
