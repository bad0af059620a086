// SPDX-License-Identifier: LGPL-2.1-or-later
/* What no engine can take is found before CRIU is started, and so before the job is stopped. */
#include <errno.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/capture/internal.h"

/* Newer than some of our build hosts; of every architecture. */
enum { NR_IO_URING_SETUP = 425, NR_LANDLOCK_CREATE_RULESET = 444, NR_MEMFD_SECRET = 447 };

static int make_ring(void)
{
	uint64_t params[15] = { 0 }; /* struct io_uring_params */

	return (int)syscall(NR_IO_URING_SETUP, 1, params);
}

static int make_userfaultfd(void)
{
	return (int)syscall(SYS_userfaultfd, 1); /* UFFD_USER_MODE_ONLY */
}

static int make_counter(void)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE,
					.size = sizeof(attr),
					.config = PERF_COUNT_SW_TASK_CLOCK };

	return (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}

static int make_ruleset(void)
{
	uint64_t handled = 1; /* LANDLOCK_ACCESS_FS_EXECUTE */

	return (int)syscall(NR_LANDLOCK_CREATE_RULESET, &handled, sizeof(handled), 0);
}

static int make_secret(void)
{
	return (int)syscall(NR_MEMFD_SECRET, 0);
}

static int make_event(void)
{
	return eventfd(0, 0);
}

static const struct {
	const char *name, *word; /* word of the refusal; NULL: none is due */
	int (*make)(void);
} kinds[] = {
	{ "eventfd", NULL, make_event },
	{ "io_uring", "io_uring", make_ring },
	{ "userfaultfd", "userfaultfd", make_userfaultfd },
	{ "perf event", "performance counter", make_counter },
	{ "landlock", "landlock", make_ruleset },
	{ "memfd_secret", "nobody else may read", make_secret },
};

/* A child whose own child has one; *ret_fd -1: not on this kernel. */
static pid_t start(int (*make)(void), int *ret_fd)
{
	int pair[2], fd = -1;
	pid_t pid;

	assert_int_equal(pipe(pair), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			fd = make();
			if (write(pair[1], &fd, sizeof(fd)) < 0)
				_exit(1);
		}
		for (;;)
			pause();
	}
	assert_int_equal(read(pair[0], ret_fd, sizeof(*ret_fd)), sizeof(*ret_fd));
	close(pair[0]);
	close(pair[1]);
	return pid;
}

static void test_named(void **state)
{
	unsigned int seen = 0;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		char reason[CAPTURE_REASON_MAX] = "", number[32];
		struct proc_view view = { 0 };
		int fd, status, r;
		pid_t pid = start(kinds[i].make, &fd);

		assert_int_equal(proc_view_read(&view, pid, false), 0);
		assert_int_equal(view.pid_count, 2);
		r = capture_check_objects(&view, reason);
		proc_view_deinit(&view);
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		print_message("%s: %s\n", kinds[i].name, fd < 0 ? "not here" : reason);
		if (fd < 0)
			continue;
		assert_int_equal(r, kinds[i].word ? -EOPNOTSUPP : 0);
		if (!kinds[i].word)
			continue;
		seen++;
		snprintf(number, sizeof(number), "descriptor %d of", fd);
		assert_non_null(strstr(reason, number));
		assert_non_null(strstr(reason, kinds[i].word));
	}
	assert_true(seen > 0);
}

/* Whoever has ended meanwhile has nothing open. */
static void test_gone(void **state)
{
	char reason[CAPTURE_REASON_MAX] = "";
	struct proc_view view = { 0 };
	int fd, status;
	pid_t pid = start(make_event, &fd);

	(void)state;
	assert_int_equal(proc_view_read(&view, pid, false), 0);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(capture_check_objects(&view, reason), 0);
	proc_view_deinit(&view);
}

/* Shared with the process: whether its end may come, and after how long. */
struct end {
	atomic_int may;
	useconds_t us;
};

static void *end_all(void *arg)
{
	const struct end *end = arg;

	while (!atomic_load(&end->may))
		usleep(1000);
	usleep(end->us);
	_exit(0);
}

/* Its first thread ends at once, its other one, and it, when it is told, after a while. */
static pid_t start_headless(struct end *end)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		pthread_t thread;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pthread_create(&thread, NULL, end_all, end);
		syscall(SYS_exit, 0);
	}
	while (!proc_is_headless(pid))
		usleep(1000);
	return pid;
}

static void test_headless(void **state)
{
	static const struct {
		useconds_t us;
		int error;
	} cases[] = { { 300000, 0 }, { 600000000, -EOPNOTSUPP } };
	struct end *end =
		mmap(NULL, sizeof(*end), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	(void)state;
	assert_true(end != MAP_FAILED);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char reason[CAPTURE_REASON_MAX] = "";
		struct proc_view view = { 0 };
		pid_t pid;

		atomic_store(&end->may, 0);
		end->us = cases[i].us;
		pid = start_headless(end);
		assert_false(proc_is_gone(pid));
		assert_int_equal(proc_view_read(&view, pid, false), 0);
		atomic_store(&end->may, 1);
		assert_int_equal(capture_await_whole(&view, reason), cases[i].error);
		proc_view_deinit(&view);
		if (cases[i].error)
			assert_non_null(strstr(reason, "first thread"));
		else
			assert_true(proc_is_gone(pid));
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, NULL, 0), pid);
	}
	munmap(end, sizeof(*end));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_named),
		cmocka_unit_test(test_gone),
		cmocka_unit_test(test_headless),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
