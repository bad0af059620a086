// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * decamp-keeper: started by keeper_start() only, with fixed arguments. See keeper.h and
 * docs/keeper.md.
 */
#include "agent/keeper/warden.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#include "agent/util/io.h"

enum { STARTED_FD = 3, ARGUMENTS = 8 };

void warden_log(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	dprintf(STDERR_FILENO, "keeper: ");
	vdprintf(STDERR_FILENO, fmt, args);
	dprintf(STDERR_FILENO, "\n");
	va_end(args);
}

/* Empty arguments stand for what is not given. */
static const char *given(const char *text)
{
	return *text ? text : NULL;
}

static int parse_arguments(int argc, char **argv, struct warden_config *config)
{
	if (argc != ARGUMENTS)
		return -EINVAL;
	*config = (struct warden_config){
		.run_dir = argv[1],
		.state_dir = given(argv[2]),
		.cgroup_dir = given(argv[3]),
		.hostname = argv[4],
		.adopted = atoi(argv[5]) != 0,
		.adopt_pid = atoi(argv[6]),
		.helper_pid = atoi(argv[7]),
		.started_fd = STARTED_FD,
	};
	return config->adopted ? 0 : config->state_dir ? 0 : -EINVAL;
}

static int open_files(struct warden *w)
{
	int log;

	umask(077);
	if (close_range(STARTED_FD + 1, ~0U, 0) < 0 || fcntl(STARTED_FD, F_SETFD, FD_CLOEXEC) < 0 ||
	    chdir("/") < 0)
		return -errno;
	w->run_fd = open(w->config.run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (w->run_fd < 0)
		return -errno;
	log = openat(w->run_fd, "keeper.log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log < 0)
		return -errno;
	dup2(log, STDOUT_FILENO);
	dup2(log, STDERR_FILENO);
	close(log);
	return 0;
}

/* Nothing but SIGKILL ends a keeper: it stays when its daemon, session or unit goes. */
static int open_events(struct warden *w)
{
	sigset_t set;

	sigfillset(&set);
	if (sigprocmask(SIG_SETMASK, &set, NULL) < 0)
		return -errno;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	w->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	w->timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	return w->signal_fd < 0 || w->timer_fd < 0 ? -errno : 0;
}

/* As good a warden as the host lets it be. */
static void be_prompt(void)
{
	struct sched_param param = { .sched_priority = 1 };

	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &param) < 0)
		warden_log("priority: stay at normal: %s", strerror(errno));
	if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
		warden_log("memory: not locked: %s", strerror(errno));
}

static int wait_ready(struct warden *w, char step[KEEPER_STEP_MAX])
{
	struct init_msg msg;
	int r = keeper_receive(w->init_sock, &msg, sizeof(msg), NULL, 0, NULL);

	if (r < 0)
		return r;
	snprintf(step, KEEPER_STEP_MAX, "%s", msg.step);
	return msg.op == INIT_READY ? msg.status : -EBADMSG;
}

static int start_init(struct warden *w, char step[KEEPER_STEP_MAX])
{
	int pair[2], r;
	pid_t pid;

	snprintf(step, KEEPER_STEP_MAX, "namespaces");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	pid = raw_clone(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS, &w->init_pidfd,
			-1, 0);
	if (pid == 0) {
		close(pair[0]);
		init_main(&w->config, pair[1]);
	}
	close(pair[1]);
	w->init_sock = pair[0];
	if (pid < 0)
		return pid;
	w->init_pid = pid;
	r = wait_ready(w, step);
	if (r < 0)
		return r;
	snprintf(step, KEEPER_STEP_MAX, "PID namespace");
	if (fcntl(w->init_sock, F_SETFL, O_NONBLOCK) < 0 || setns(w->init_pidfd, CLONE_NEWPID) < 0)
		return -errno;
	return 0;
}

static int adopt(struct warden *w, char step[KEEPER_STEP_MAX])
{
	snprintf(step, KEEPER_STEP_MAX, "process to adopt");
	w->main_pidfd = (int)syscall(SYS_pidfd_open, w->config.adopt_pid, 0);
	if (w->main_pidfd < 0)
		return -errno;
	w->main_pid = w->config.adopt_pid;
	return freezer_adopt_tree(w, w->main_pid);
}

static int start(struct warden *w, char step[KEEPER_STEP_MAX])
{
	char text[16];
	int r;

	snprintf(step, KEEPER_STEP_MAX, "run folder");
	r = open_files(w);
	if (r == 0)
		r = open_events(w);
	if (r < 0)
		return r;
	snprintf(step, KEEPER_STEP_MAX, "cgroup");
	r = freezer_open(w);
	if (r < 0)
		return r;
	freezer_leave_daemon(w);
	r = w->config.adopted ? adopt(w, step) : start_init(w, step);
	if (r < 0)
		return r;
	be_prompt();
	snprintf(step, KEEPER_STEP_MAX, "socket");
	r = server_listen(w);
	if (r < 0)
		return r;
	snprintf(text, sizeof(text), "%d\n", getpid());
	return write_file_atomic_at(w->run_fd, "keeper.pid", text, strlen(text), 0600);
}

int main(int argc, char **argv)
{
	/* Too big for a stack that is locked in memory page by page. */
	static struct warden w;
	struct keeper_started started = { 0 };

	w.run_fd = w.listen_fd = w.signal_fd = w.timer_fd = -1;
	w.cgroup_fd = w.freeze_fd = w.events_fd = w.tasks_fd = -1;
	w.init_pidfd = w.init_sock = w.main_pidfd = -1;
	prctl(PR_SET_NAME, "decamp-keeper");
	started.status = parse_arguments(argc, argv, &w.config);
	if (started.status == 0)
		started.status = start(&w, started.step);
	(void)!write_full(STARTED_FD, &started, sizeof(started));
	close(STARTED_FD);
	if (started.status < 0) {
		warden_log("start: %s: %s", started.step, strerror(-started.status));
		return 1;
	}
	server_loop(&w);
	return 0;
}
