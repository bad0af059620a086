// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * PID 1 of the job. It reaps, and reports how the main process ended; then it ends everything else
 * by ending itself. It dies with the keeper: a job without its warden must not run (G3).
 */
#include "agent/keeper/warden.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/util/io.h"

enum { INIT_SOCK_FD = 3, EXPECT_POLL_MS = 100 };

struct init {
	const struct warden_config *config;
	int sock;
	int signal_fd;
	pid_t main_pid; /* 0: none yet */
	bool expected;	/* main_pid is being restored: its end is not reported yet */
	bool main_ended;
	int status;	    /* of the ended one */
	uint64_t report_ns; /* when to report it at the latest */
	bool reported;
};

static void answer(struct init *in, uint32_t op, int status, const char *step, int fd)
{
	struct init_msg msg = { .op = op, .status = status, .pid = in->main_pid };

	snprintf(msg.step, sizeof(msg.step), "%s", step);
	/* The keeper is gone if this fails, and so are we in a moment. */
	(void)!keeper_send(in->sock, &msg, sizeof(msg), &fd, fd >= 0);
}

static void reap(struct init *in)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid != in->main_pid || in->main_ended)
			continue;
		in->main_ended = true;
		in->status = status;
		in->report_ns = now_boot_ns() + (uint64_t)KEEPER_EXPECT_MS * 1000000;
	}
}

static void report_end(struct init *in)
{
	if (!in->main_ended || (in->expected && now_boot_ns() < in->report_ns))
		return;
	in->reported = true;
	answer(in, INIT_EXITED, in->status, "", -1);
}

/* Highest PID of the job, so that its next child counts on from there after a restore. */
static pid_t highest_pid(void)
{
	_cleanup_closedir_ DIR *proc = opendir("/proc");
	struct dirent *entry;
	long highest = KEEPER_FIRST_PID;

	while (proc && (entry = readdir(proc))) {
		char path[300];
		_cleanup_closedir_ DIR *tasks = NULL;
		struct dirent *task;

		if (atol(entry->d_name) <= 0)
			continue;
		/* Threads have numbers of the same kind. */
		snprintf(path, sizeof(path), "/proc/%s/task", entry->d_name);
		tasks = opendir(path);
		while (tasks && (task = readdir(tasks))) {
			long tid = atol(task->d_name);

			highest = tid > highest ? tid : highest;
		}
	}
	return (pid_t)highest;
}

static int raise_last_pid(void)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", highest_pid());
	return write_kernel_file("/proc/sys/kernel/ns_last_pid", text);
}

static void on_run(struct init *in, const int *fds, int fd_count)
{
	_cleanup_close_ int pidfd = -1;
	const char *step = "state";
	pid_t pid = in->main_pid ? -EBUSY : 0;

	if (pid == 0 && fd_count > 0)
		pid = run_start(fds[0], fd_count > 1 ? fds[1] : -1, &pidfd, &step);
	if (pid > 0)
		in->main_pid = pid;
	answer(in, INIT_RUN, pid < 0 ? pid : 0, step, pidfd);
}

static void on_expect(struct init *in, pid_t pid)
{
	_cleanup_close_ int pidfd = -1;
	int r = 0;

	if (pid == 0) {
		r = in->expected || !in->main_pid ? 0 : -EBUSY;
		if (r == 0)
			in->main_pid = in->expected = in->main_ended = 0;
	} else if (in->main_pid) {
		r = -EBUSY;
	} else {
		pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
		r = pidfd < 0 ? -errno : raise_last_pid();
	}
	if (r == 0 && pid) {
		in->main_pid = pid;
		in->expected = true;
	}
	answer(in, INIT_EXPECT, r, "", r == 0 ? pidfd : -1);
}

static void on_watch(struct init *in, pid_t pid)
{
	_cleanup_close_ int pidfd = -1;
	int r = 0;

	if (in->main_pid && in->main_pid != pid)
		r = -EBUSY;
	if (r == 0 && !in->main_pid) {
		pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
		r = pidfd < 0 ? -errno : raise_last_pid();
	}
	if (r == 0) {
		in->main_pid = pid;
		in->expected = false;
	}
	answer(in, INIT_WATCH, r, "", r == 0 ? pidfd : -1);
}

static bool is_helper(const struct init *in, pid_t pid)
{
	pid_t first = in->config->helper_pid ? in->config->helper_pid : KEEPER_HELPER_FIRST_PID;

	return pid == 1 || (pid >= first && pid < first + KEEPER_HELPER_PIDS);
}

/* Without a cgroup: every process by signal, until a pass finds no new one. */
static int signal_all(const struct init *in, int sig)
{
	pid_t highest_before = -1;

	for (int pass = 0; pass < 100; pass++) {
		_cleanup_closedir_ DIR *proc = opendir("/proc");
		struct dirent *entry;
		pid_t sum = 0;

		if (!proc)
			return -errno;
		while ((entry = readdir(proc))) {
			pid_t pid = atoi(entry->d_name);

			if (pid <= 0 || is_helper(in, pid))
				continue;
			sum += pid;
			kill(pid, sig);
		}
		if (sum == highest_before)
			return 0;
		highest_before = sum;
	}
	return -EAGAIN;
}

static void on_message(struct init *in)
{
	struct init_msg msg;
	int fds[2], count = 0;
	int r = keeper_receive(in->sock, &msg, sizeof(msg), fds, 2, &count);

	if (r == -EAGAIN)
		return;
	if (r < 0)
		_exit(1);
	switch (msg.op) {
	case INIT_RUN:
		on_run(in, fds, count);
		break;
	case INIT_WATCH:
		on_watch(in, msg.pid);
		break;
	case INIT_EXPECT:
		on_expect(in, msg.pid);
		break;
	case INIT_STOP:
		answer(in, INIT_STOP, signal_all(in, SIGSTOP), "", -1);
		break;
	case INIT_CONT:
		answer(in, INIT_CONT, signal_all(in, SIGCONT), "", -1);
		break;
	default:
		answer(in, msg.op, -EINVAL, "", -1);
	}
	while (count > 0)
		close(fds[--count]);
}

static void __attribute__((noreturn)) serve(struct init *in)
{
	struct pollfd pfds[] = { { .fd = in->sock, .events = POLLIN },
				 { .fd = in->signal_fd, .events = POLLIN } };

	while (!in->reported) {
		struct signalfd_siginfo info;

		if (poll(pfds, ARRAY_SIZE(pfds), in->main_ended ? EXPECT_POLL_MS : -1) < 0 &&
		    errno != EINTR)
			_exit(1);
		if (pfds[1].revents)
			(void)!read(in->signal_fd, &info, sizeof(info));
		if (pfds[0].revents)
			on_message(in);
		reap(in);
		report_end(in);
	}
	kill(-1, SIGKILL);
	_exit(0);
}

static int open_signals(struct init *in)
{
	sigset_t all;

	sigfillset(&all);
	if (sigprocmask(SIG_SETMASK, &all, NULL) < 0)
		return -errno;
	sigemptyset(&all);
	sigaddset(&all, SIGCHLD);
	in->signal_fd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	return in->signal_fd < 0 ? -errno : 0;
}

void init_main(const struct warden_config *config, int sock)
{
	/* All else is the keeper's, and would hold on to the host's mounts. */
	struct init in = { .config = config, .sock = dup3(sock, INIT_SOCK_FD, O_CLOEXEC) };
	const char *step = "signals";
	int r;

	close_range(INIT_SOCK_FD + 1, ~0U, 0);
	prctl(PR_SET_NAME, "decamp-init");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setsid();
	r = open_signals(&in);
	if (r == 0) {
		step = "host name";
		if (sethostname(config->hostname, strlen(config->hostname)) < 0)
			r = -errno;
	}
	if (r == 0)
		r = mounts_build(config, &step);
	answer(&in, INIT_READY, r, step, -1);
	if (r < 0)
		_exit(1);
	serve(&in);
}
