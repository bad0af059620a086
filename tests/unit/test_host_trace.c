// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <systemd/sd-event.h>

#include <cmocka.h>

#include "agent/host/host.h"
#include "agent/util/io.h"

enum { SKIP_CODE = 77, WAIT_MS_MAX = 30000 };

static struct host_trace *trace;
static sd_event *event;

/* A child that waits until its pipe is closed, then runs fn; *ret_go closes it. */
static pid_t start_child(int (*fn)(void), int *ret_go)
{
	int fds[2];
	char byte;
	pid_t pid;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		close(fds[1]);
		if (read(fds[0], &byte, 1) < 0)
			_exit(99);
		_exit(fn());
	}
	close(fds[0]);
	*ret_go = fds[1];
	return pid;
}

static int end_with(pid_t pid, int go)
{
	int status = -1;

	close(go);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static int traced_status(pid_t pid)
{
	uint64_t end_ns = now_boot_ns() + WAIT_MS_MAX * UINT64_C(1000000);
	int status, r;

	do {
		assert_true(sd_event_run(event, 10000) >= 0);
		r = host_trace_exit_status(trace, pid, &status);
	} while (r == -ENOENT && now_boot_ns() < end_ns);
	assert_int_equal(r, 0);
	return status;
}

static int exit_zero(void)
{
	return 0;
}

static int exit_42(void)
{
	return 42;
}

static int die_of_segv(void)
{
	signal(SIGSEGV, SIG_DFL);
	raise(SIGSEGV);
	return 1;
}

static int die_of_term(void)
{
	raise(SIGTERM);
	return 1;
}

static void *nap(void *arg)
{
	usleep(20000);
	return arg;
}

static void *end_group(void *arg)
{
	(void)arg;
	usleep(5000);
	_exit(7);
}

/* Another thread ends the process while one more sleeps. */
static int exit_in_thread(void)
{
	pthread_t a, b;

	pthread_create(&a, NULL, nap, NULL);
	pthread_create(&b, NULL, end_group, NULL);
	pause();
	return 1;
}

static void statuses_are_those_of_wait(void **state)
{
	static int (*const fns[])(void) = { exit_zero, exit_42, die_of_segv, die_of_term,
					    exit_in_thread };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(fns); i++) {
		int go, status, seen;
		pid_t pid = start_child(fns[i], &go);

		assert_int_equal(host_trace_exit_status(trace, pid, &seen), -ENOENT);
		assert_int_equal(host_trace_follow(trace, pid), 0);
		assert_int_equal(host_trace_exit_status(trace, pid, &seen), -ENOENT);
		status = end_with(pid, go);
		/* A waiter that was told of the end by other means asks without the event loop. */
		assert_int_equal(host_trace_exit_status(trace, pid, &seen), 0);
		assert_int_equal(seen, status);
		host_trace_forget(trace, pid);
		assert_int_equal(host_trace_exit_status(trace, pid, &seen), -ENOENT);
	}
}

static void ends_arrive_through_the_event_loop(void **state)
{
	int go, status;
	pid_t pid = start_child(exit_42, &go);

	(void)state;
	assert_int_equal(host_trace_follow(trace, pid), 0);
	status = end_with(pid, go);
	assert_int_equal(traced_status(pid), status);
	host_trace_forget(trace, pid);
}

static int report_pipe[2], end_pipe[2];

static void await_end(void)
{
	char byte;

	if (read(end_pipe[0], &byte, 1) < 0)
		_exit(98);
}

/*
 * Forks a child that forks a grandchild and leaves it an orphan; reports its PID. The two that are
 * left end when the test closes its end of the pipe.
 */
static int fork_twice(void)
{
	int status;
	pid_t child;

	close(end_pipe[1]);
	child = fork();

	if (child == 0) {
		pid_t grandchild = fork();

		if (grandchild == 0) {
			await_end();
			_exit(33);
		}
		if (write(report_pipe[1], &grandchild, sizeof(grandchild)) < 0)
			_exit(99);
		_exit(11);
	}
	waitpid(child, &status, 0);
	if (write(report_pipe[1], &child, sizeof(child)) < 0)
		return 99;
	await_end();
	return WEXITSTATUS(status);
}

static void descendants_are_followed(void **state)
{
	pid_t pid, child, grandchild, members[8];
	size_t count = 0;
	int go;

	(void)state;
	assert_int_equal(pipe(report_pipe), 0);
	assert_int_equal(pipe(end_pipe), 0);
	pid = start_child(fork_twice, &go);
	assert_int_equal(host_trace_follow(trace, pid), 0);
	assert_int_equal(host_trace_members(trace, pid, members, 8, &count), 0);
	assert_int_equal(count, 1);
	assert_int_equal(members[0], pid);
	close(go);
	assert_int_equal(read_full(report_pipe[0], &grandchild, sizeof(grandchild)), 0);
	assert_int_equal(read_full(report_pipe[0], &child, sizeof(child)), 0);
	assert_int_equal(host_trace_members(trace, pid, members, 8, &count), 0);
	assert_int_equal(count, 2); /* itself and the orphan */
	assert_true(members[0] == grandchild || members[1] == grandchild);
	assert_int_equal(host_trace_members(trace, pid, members, 1, &count), -ENOSPC);
	assert_int_equal(WEXITSTATUS(traced_status(child)), 11);
	close(end_pipe[1]);
	assert_int_equal(WEXITSTATUS(traced_status(pid)), 11);
	assert_int_equal(WEXITSTATUS(traced_status(grandchild)), 33);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	host_trace_forget(trace, pid);
	assert_int_equal(host_trace_members(trace, pid, members, 8, &count), -ENOENT);
	assert_int_equal(host_trace_exit_status(trace, child, &go), -ENOENT);
	close(report_pipe[0]);
	close(report_pipe[1]);
	close(end_pipe[0]);
}

static void *exec_from_thread(void *arg)
{
	(void)arg;
	execl("/bin/sh", "sh", "-c", "exit 5", (char *)NULL);
	_exit(98);
}

static int exec_in_thread(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, exec_from_thread, NULL);
	pause();
	return 1;
}

/* The thread that calls execve() takes over the PID; its process is the same one. */
static void exec_by_another_thread_is_no_end(void **state)
{
	int go, status, seen;
	pid_t pid = start_child(exec_in_thread, &go);

	(void)state;
	assert_int_equal(host_trace_follow(trace, pid), 0);
	status = end_with(pid, go);
	assert_int_equal(WEXITSTATUS(status), 5);
	assert_int_equal(host_trace_exit_status(trace, pid, &seen), 0);
	assert_int_equal(seen, status);
	host_trace_forget(trace, pid);
}

static void others_are_not_followed(void **state)
{
	int go, seen;
	pid_t pid = start_child(exit_42, &go);

	(void)state;
	end_with(pid, go);
	assert_int_equal(host_trace_exit_status(trace, pid, &seen), -ENOENT);
	assert_int_equal(host_trace_follow(trace, pid), -ESRCH);
	assert_int_equal(host_trace_follow(trace, 0), -EINVAL);
	assert_int_equal(host_trace_follow(trace, -5), -EINVAL);
	host_trace_forget(trace, pid);
	host_trace_forget(trace, 0);
}

static void zombies_are_too_late(void **state)
{
	int go;
	pid_t pid = start_child(exit_42, &go);
	siginfo_t info;

	(void)state;
	close(go);
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	assert_int_equal(host_trace_follow(trace, pid), -ESRCH);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static int fork_many(void)
{
	for (int i = 0; i < 1000; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		if (pid > 0)
			waitpid(pid, NULL, 0);
	}
	return 3;
}

static void many_children_do_not_hide_the_root(void **state)
{
	int go, status, seen;
	pid_t pid = start_child(fork_many, &go);

	(void)state;
	assert_int_equal(host_trace_follow(trace, pid), 0);
	status = end_with(pid, go);
	assert_int_equal(WEXITSTATUS(status), 3);
	assert_int_equal(host_trace_exit_status(trace, pid, &seen), 0);
	assert_int_equal(seen, status);
	host_trace_forget(trace, pid);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(statuses_are_those_of_wait),
		cmocka_unit_test(ends_arrive_through_the_event_loop),
		cmocka_unit_test(descendants_are_followed),
		cmocka_unit_test(exec_by_another_thread_is_no_end),
		cmocka_unit_test(others_are_not_followed),
		cmocka_unit_test(zombies_are_too_late),
		cmocka_unit_test(many_children_do_not_hide_the_root),
	};
	char reason[256];
	int r;

	if (sd_event_default(&event) < 0)
		return 1;
	r = host_trace_start(event, &trace, reason);
	if (r == -EOPNOTSUPP) {
		printf("SKIP: %s\n", reason);
		sd_event_unref(event);
		return SKIP_CODE;
	}
	if (r < 0) {
		printf("host_trace_start: %s\n", reason);
		return 1;
	}
	r = cmocka_run_group_tests(tests, NULL, NULL);
	host_trace_stop(trace);
	sd_event_unref(event);
	return r;
}
