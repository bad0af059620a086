// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The keeper's poll loop. A request that cannot be answered at once leaves its connection `waiting`
 * with a deadline; whatever may end the wait (a message of PID 1, a death, a freeze confirmed, the
 * deadline) is followed by settle(), which answers all that can be answered.
 */
#include "agent/keeper/warden.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "agent/util/io.h"

enum {
	FREEZE_POLL_MS = 1,
	FREEZE_RETRY_MS = 100,
	EXEC_MS = KEEPER_CALL_MS - 1000,
	POLLFDS_MAX = 6 + WARDEN_CONNS_MAX + WARDEN_SPAWNS_MAX,
};

/* A thawed job may take its time until it runs into what a killed CRIU left in it. */
static const uint64_t SUSPECT_NS = 10000000000;

int server_listen(struct warden *w)
{
	struct sockaddr_un address;
	unsigned size = keeper_address(w->run_fd, &address);

	w->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (w->listen_fd < 0)
		return -errno;
	if (unlinkat(w->run_fd, "keeper.sock", 0) < 0 && errno != ENOENT)
		return -errno;
	/* The umask of the keeper makes it 0600. */
	if (bind(w->listen_fd, (struct sockaddr *)&address, size) < 0 ||
	    listen(w->listen_fd, 8) < 0)
		return -errno;
	for (int i = 0; i < WARDEN_CONNS_MAX; i++)
		w->conns[i].fd = w->conns[i].event_fd = -1;
	for (int i = 0; i < WARDEN_SPAWNS_MAX; i++)
		w->spawns[i].exec_fd = w->spawns[i].pidfd = -1;
	return 0;
}

static void announce(struct conn *c)
{
	uint64_t one = 1;

	(void)!write(c->event_fd, &one, sizeof(one));
}

static void announce_all(struct warden *w)
{
	for (int i = 0; i < WARDEN_CONNS_MAX; i++) {
		if (w->conns[i].fd >= 0)
			announce(&w->conns[i]);
	}
}

/* Nobody will reap it: it goes when it ends. */
static void abandon(struct spawn *s)
{
	s->owner = -1;
	forget_fd(&s->exec_fd);
	if (s->ended)
		spawn_free(s);
}

/*
 * decampd was giving a restored job its memory and is gone. The held descriptors keep what is
 * missing from being taken for zeros, and nothing of the job shall run until somebody looks.
 */
static void source_is_gone(struct warden *w)
{
	w->held_owner = -1;
	w->freeze_wanted = true;
	if (freezer_apply(w) < 0)
		warden_log("memory: cannot freeze, will try again");
}

static void drop(struct warden *w, struct conn *c)
{
	int index = (int)(c - w->conns);

	if (w->held_count > 0 && w->held_owner == index)
		source_is_gone(w);

	forget_fd(&c->fd);
	forget_fd(&c->event_fd);
	*c = (struct conn){ .fd = -1, .event_fd = -1 };
	/* A CRIU without its master sees its socket close and lets the job go on. */
	for (int i = 0; i < WARDEN_SPAWNS_MAX; i++) {
		struct spawn *s = &w->spawns[i];

		if (!s->used || s->owner != index)
			continue;
		abandon(s);
	}
}

static void reply(struct warden *w, struct conn *c, struct keeper_reply *answer, int fd)
{
	c->waiting = 0;
	if (keeper_send(c->fd, answer, sizeof(*answer), &fd, fd >= 0) < 0)
		drop(w, c);
}

static void reply_status(struct warden *w, struct conn *c, uint32_t op, int status)
{
	struct keeper_reply answer = { .op = op, .status = status };

	reply(w, c, &answer, -1);
}

static void wait_for(struct conn *c, uint32_t op, int timeout_ms)
{
	c->waiting = op;
	c->deadline_ns = timeout_ms < 0 ? UINT64_MAX :
					  now_boot_ns() + (uint64_t)timeout_ms * 1000000;
}

static struct conn *find_waiting(struct warden *w, uint32_t op)
{
	for (int i = 0; i < WARDEN_CONNS_MAX; i++) {
		if (w->conns[i].fd >= 0 && w->conns[i].waiting == op)
			return &w->conns[i];
	}
	return NULL;
}

static void fill_status(struct warden *w, struct keeper_status *s)
{
	bool confirmed = freezer_check(w);

	*s = (struct keeper_status){
		.keeper_pid = getpid(),
		.init_pid = w->init_pid,
		.main_pid = w->main_pid,
		.exit_status = w->exit_status,
		.running = w->main_pid > 0,
		.exited = w->exited,
		.exit_suspect = w->exit_suspect,
		.exit_status_known = w->exit_status_known,
		.frozen = w->freeze_wanted && confirmed,
		.lease_frozen = w->lease_frozen && confirmed,
		.freeze_by_signal = w->cgroup_fd < 0,
		.lease_boot_ns = w->lease_boot_ns,
		.freeze_worst_us = w->freeze_worst_us,
	};
}

static void set_lease(struct warden *w, uint64_t deadline_boot_ns)
{
	struct itimerspec spec = { 0 };

	w->lease_boot_ns = deadline_boot_ns;
	spec.it_value.tv_sec = (time_t)(deadline_boot_ns / 1000000000);
	spec.it_value.tv_nsec = (long)(deadline_boot_ns % 1000000000);
	timerfd_settime(w->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
	w->lease_frozen = deadline_boot_ns != 0 && deadline_boot_ns <= now_boot_ns();
}

static int on_lease(struct warden *w, uint64_t deadline_boot_ns)
{
	bool before = w->lease_frozen;
	int r;

	set_lease(w, deadline_boot_ns);
	r = freezer_apply(w);
	if (before != w->lease_frozen)
		announce_all(w);
	return r;
}

static void on_lease_end(struct warden *w)
{
	uint64_t ticks;
	int r;

	if (read(w->timer_fd, &ticks, sizeof(ticks)) < 0 || w->lease_boot_ns == 0 ||
	    w->lease_boot_ns > now_boot_ns())
		return;
	w->lease_frozen = true;
	r = freezer_apply(w);
	if (r < 0)
		warden_log("lease: cannot freeze, will try again: %s", strerror(-r));
	announce_all(w);
}

static void main_ended(struct warden *w, bool known, int status)
{
	if (w->exited)
		return;
	w->exited = true;
	w->exit_status_known = known;
	w->exit_status = status;
	w->exit_suspect = status != 0 && w->helper_killed_ns &&
			  now_boot_ns() - w->helper_killed_ns < SUSPECT_NS;
	w->main_pid = 0;
	announce_all(w);
}

/* Host view of a process: the keeper's /proc knows what the pidfd is in its own terms. */
static pid_t pid_of(int pidfd)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *at;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	if (read_file_at(AT_FDCWD, path, 4096, &text, NULL) < 0)
		return 0;
	at = strstr(text, "Pid:");
	return at ? atoi(at + 4) : 0;
}

static void main_started(struct warden *w, int pidfd, pid_t inside)
{
	pid_t pid = pid_of(pidfd);

	forget_fd(&w->main_pidfd);
	w->main_pidfd = pidfd;
	w->main_pid = pid > 0 ? pid : 0;
	w->main_inside = inside;
}

static void on_init_message(struct warden *w, const struct init_msg *msg, int fd)
{
	uint32_t op = msg->op == INIT_RUN    ? KEEPER_OP_RUN :
		      msg->op == INIT_EXPECT ? KEEPER_OP_EXPECT :
					       KEEPER_OP_WATCH;
	struct keeper_reply answer = { .op = op, .status = msg->status };
	struct conn *c;

	switch (msg->op) {
	case INIT_EXITED:
		main_ended(w, true, msg->status);
		break;
	case INIT_RUN:
	case INIT_WATCH:
	case INIT_EXPECT:
		if (msg->op == INIT_EXPECT && msg->status == 0 && msg->pid == 0) {
			forget_fd(&w->main_pidfd);
			w->main_pid = w->main_inside = 0;
		}
		if (fd >= 0)
			main_started(w, dup(fd), msg->pid);
		memcpy(answer.u.step, msg->step, sizeof(answer.u.step));
		c = find_waiting(w, op);
		if (c)
			reply(w, c, &answer, -1);
		break;
	case INIT_STOP:
		if (w->freezing) {
			w->freeze_worst_us = (now_boot_ns() - w->freeze_start_ns) / 1000;
			w->freezing = false;
		}
		break;
	default:
		break;
	}
}

int server_handle_init(struct warden *w)
{
	struct init_msg msg;
	int fd = -1, count = 0;
	int r = keeper_receive(w->init_sock, &msg, sizeof(msg), &fd, 1, &count);

	if (r < 0)
		return r;
	on_init_message(w, &msg, count ? fd : -1);
	if (count)
		close(fd);
	return 0;
}

static void init_ended(struct warden *w)
{
	while (server_handle_init(w) == 0)
		;
	w->init_pid = 0;
	forget_fd(&w->init_sock);
	/* Killed with all the rest, or from outside; what ran then died of SIGKILL. */
	if (w->main_pidfd >= 0)
		main_ended(w, true, SIGKILL);
}

static void on_child(struct warden *w)
{
	struct signalfd_siginfo info;
	int status;

	while (read(w->signal_fd, &info, sizeof(info)) > 0)
		;
	for (int i = 0; i < WARDEN_SPAWNS_MAX; i++) {
		struct spawn *s = &w->spawns[i];

		if (!s->used || s->ended || waitpid(s->pid, &status, WNOHANG) != s->pid)
			continue;
		s->ended = true;
		s->status = status;
		if (WIFSIGNALED(status))
			w->helper_killed_ns = now_boot_ns();
		if (s->owner < 0)
			spawn_free(s);
	}
	if (w->init_pid && waitpid(w->init_pid, &status, WNOHANG) == w->init_pid)
		init_ended(w);
}

static int forward_run(struct warden *w, const int *fds, int fd_count)
{
	struct init_msg msg = { .op = INIT_RUN };
	int out[2] = { fd_count ? fds[0] : -1, w->tasks_fd };

	if (fd_count != 1)
		return -EBADMSG;
	if (!w->init_pid || w->main_pid || w->exited)
		return -EBUSY;
	return keeper_send(w->init_sock, &msg, sizeof(msg), out, w->tasks_fd >= 0 ? 2 : 1);
}

static int forward_watch(struct warden *w, uint32_t op, pid_t pid)
{
	struct init_msg msg = { .op = op, .pid = pid };

	/* A restored job may be over already: then its status is known and there is no PID 1. */
	if (w->exited && w->main_inside == pid)
		return 1;
	if (!w->init_pid)
		return -ESRCH;
	return keeper_send(w->init_sock, &msg, sizeof(msg), NULL, 0);
}

static int on_hold(struct warden *w, const struct conn *c, const int *fds, int fd_count)
{
	int fd;

	if (fd_count == 0) {
		while (w->held_count > 0)
			close(w->held[--w->held_count]);
		return 0;
	}
	if (fd_count != 1)
		return -EBADMSG;
	if (w->held_count == WARDEN_HELD_MAX)
		return -ENOSPC;
	fd = fcntl(fds[0], F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return -errno;
	w->held[w->held_count++] = fd;
	w->held_owner = (int)(c - w->conns);
	return 0;
}

static int on_signal(struct warden *w, int sig)
{
	if (w->main_pidfd < 0 || !w->main_pid)
		return -ESRCH;
	return syscall(SYS_pidfd_send_signal, w->main_pidfd, sig, NULL, 0) < 0 ? -errno : 0;
}

static void on_spawn(struct warden *w, struct conn *c, const struct keeper_request *q,
		     const int *fds, int fd_count)
{
	int r = spawn_start(w, &q->u.spawn, fds, fd_count, (int)(c - w->conns), &c->spawn_id);

	if (r < 0)
		reply_status(w, c, q->op, r);
	else
		wait_for(c, q->op, EXEC_MS);
}

static void on_hello(struct warden *w, struct conn *c, const struct keeper_request *q)
{
	struct keeper_reply answer = { .op = q->op };

	if (q->version != KEEPER_VERSION)
		answer.status = -EPROTONOSUPPORT;
	if (w->exited || w->lease_frozen)
		announce(c);
	reply(w, c, &answer, c->event_fd);
}

static void on_freeze(struct warden *w, struct conn *c, int timeout_ms)
{
	int r;

	w->freeze_wanted = true;
	r = freezer_apply(w);
	if (r < 0) {
		w->freeze_wanted = false;
		reply_status(w, c, KEEPER_OP_FREEZE, r);
		return;
	}
	wait_for(c, KEEPER_OP_FREEZE, timeout_ms > 0 ? timeout_ms : KEEPER_CALL_MS - 1000);
}

static void on_quit(struct warden *w, struct conn *c)
{
	if (w->main_pid) {
		reply_status(w, c, KEEPER_OP_QUIT, -EBUSY);
		return;
	}
	if (freezer_kill(w) < 0)
		warden_log("quit: cannot kill what is left");
	wait_for(c, KEEPER_OP_QUIT, KEEPER_CALL_MS - 1000);
}

static void dispatch(struct warden *w, struct conn *c, const struct keeper_request *q,
		     const int *fds, int fd_count)
{
	struct keeper_reply answer = { .op = q->op };
	int r = 0;

	switch (q->op) {
	case KEEPER_OP_HELLO:
		return on_hello(w, c, q);
	case KEEPER_OP_SPAWN:
		return on_spawn(w, c, q, fds, fd_count);
	case KEEPER_OP_FREEZE:
		return on_freeze(w, c, q->u.timeout_ms);
	case KEEPER_OP_QUIT:
		return on_quit(w, c);
	case KEEPER_OP_REAP:
		c->spawn_id = q->u.reap.spawn_id;
		return wait_for(c, q->op, q->u.reap.timeout_ms);
	case KEEPER_OP_RUN:
		r = forward_run(w, fds, fd_count);
		if (r == 0)
			return wait_for(c, q->op, KEEPER_CALL_MS - 1000);
		break;
	case KEEPER_OP_WATCH:
	case KEEPER_OP_EXPECT:
		r = w->config.adopted ?
			    -EINVAL :
			    forward_watch(w, q->op == KEEPER_OP_WATCH ? INIT_WATCH : INIT_EXPECT,
					  q->u.pid);
		if (r == 0)
			return wait_for(c, q->op, KEEPER_CALL_MS - 1000);
		r = r > 0 ? 0 : r;
		break;
	case KEEPER_OP_KILL:
		r = freezer_kill(w);
		if (r == 0)
			return wait_for(c, q->op, KEEPER_CALL_MS - 1000);
		break;
	case KEEPER_OP_THAW:
		w->freeze_wanted = false;
		r = freezer_apply(w);
		break;
	case KEEPER_OP_SIGNAL:
		r = on_signal(w, q->u.signal);
		break;
	case KEEPER_OP_LEASE:
		r = on_lease(w, q->u.deadline_boot_ns);
		break;
	case KEEPER_OP_HOLD:
		r = on_hold(w, c, fds, fd_count);
		break;
	case KEEPER_OP_STATUS:
		fill_status(w, &answer.u.status);
		break;
	default:
		r = -EOPNOTSUPP;
	}
	answer.status = r;
	reply(w, c, &answer, -1);
}

static void on_request(struct warden *w, struct conn *c)
{
	struct keeper_request q;
	int fds[KEEPER_FDS_MAX + 1], count = 0;
	int r = keeper_receive(c->fd, &q, sizeof(q), fds, KEEPER_FDS_MAX + 1, &count);

	if (r == -EAGAIN)
		return;
	/* One request at a time. */
	if (r < 0 || c->waiting)
		drop(w, c);
	else
		dispatch(w, c, &q, fds, count);
	while (count > 0)
		close(fds[--count]);
}

static void on_connect(struct warden *w)
{
	int fd = accept4(w->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != geteuid()) {
		close(fd);
		return;
	}
	for (int i = 0; i < WARDEN_CONNS_MAX; i++) {
		struct conn *c = &w->conns[i];

		if (c->fd >= 0)
			continue;
		c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (c->event_fd < 0)
			break;
		c->fd = fd;
		return;
	}
	close(fd);
}

static void settle_spawn(struct warden *w, struct conn *c, bool late)
{
	struct spawn *s = spawn_find(w, c->spawn_id);
	struct keeper_reply answer = { .op = c->waiting };
	int32_t error = 0;
	ssize_t n;

	if (!s || late) {
		if (s)
			abandon(s);
		return reply_status(w, c, c->waiting, s ? -ETIMEDOUT : -EIO);
	}
	n = read(s->exec_fd, &error, sizeof(error));
	if (n < 0)
		return;
	forget_fd(&s->exec_fd);
	if (n == sizeof(error)) {
		abandon(s);
		return reply_status(w, c, c->waiting, error < 0 ? error : -EIO);
	}
	answer.u.spawn_id = s->id;
	reply(w, c, &answer, s->pidfd);
}

static void settle_reap(struct warden *w, struct conn *c, bool late)
{
	struct spawn *s = spawn_find(w, c->spawn_id);
	struct keeper_reply answer = { .op = c->waiting };

	if (s && !s->ended) {
		if (late)
			reply_status(w, c, c->waiting, -ETIMEDOUT);
		return;
	}
	if (!s)
		return reply_status(w, c, c->waiting, -ECHILD);
	answer.u.wait_status = s->status;
	spawn_free(s);
	reply(w, c, &answer, -1);
}

static void settle_freeze(struct warden *w, struct conn *c, bool late)
{
	if (freezer_check(w) || w->exited)
		return reply_status(w, c, c->waiting, w->exited ? -ESRCH : 0);
	if (!late)
		return;
	w->freeze_wanted = false;
	if (freezer_apply(w) < 0)
		warden_log("freeze: cannot be taken back");
	reply_status(w, c, c->waiting, -ETIMEDOUT);
}

static void settle_end(struct warden *w, struct conn *c, bool late)
{
	bool quit = c->waiting == KEEPER_OP_QUIT;

	if (!freezer_empty(w)) {
		if (late)
			reply_status(w, c, c->waiting, -ETIMEDOUT);
		return;
	}
	if (quit) {
		freezer_remove(w);
		unlinkat(w->run_fd, "keeper.sock", 0);
		unlinkat(w->run_fd, "keeper.pid", 0);
		w->quit = true;
	}
	reply_status(w, c, c->waiting, 0);
}

static void settle(struct warden *w)
{
	uint64_t now = now_boot_ns();

	for (int i = 0; i < WARDEN_CONNS_MAX; i++) {
		struct conn *c = &w->conns[i];
		bool late = now >= c->deadline_ns;

		if (c->fd < 0 || !c->waiting)
			continue;
		if (c->waiting == KEEPER_OP_SPAWN)
			settle_spawn(w, c, late);
		else if (c->waiting == KEEPER_OP_REAP)
			settle_reap(w, c, late);
		else if (c->waiting == KEEPER_OP_FREEZE)
			settle_freeze(w, c, late);
		else if (c->waiting == KEEPER_OP_KILL || c->waiting == KEEPER_OP_QUIT)
			settle_end(w, c, late);
		else if (late || !w->init_pid)
			reply_status(w, c, c->waiting, late ? -ETIMEDOUT : -EIO);
	}
}

static void add_poll(struct pollfd *pfds, int *count, int fd, short events)
{
	pfds[(*count)++] = (struct pollfd){ .fd = fd, .events = events };
}

/* An earlier attempt failed. */
static bool freeze_is_due(const struct warden *w)
{
	return (w->freeze_wanted || w->lease_frozen) != w->freeze_applied;
}

/* Sleeps until the next deadline at most. */
static int sleep_ms(const struct warden *w)
{
	uint64_t now = now_boot_ns(), next = UINT64_MAX;
	bool busy = w->freezing && w->events_fd >= 0;

	for (int i = 0; i < WARDEN_CONNS_MAX; i++) {
		const struct conn *c = &w->conns[i];

		if (c->fd < 0 || !c->waiting)
			continue;
		next = c->deadline_ns < next ? c->deadline_ns : next;
		/* A cgroup that runs empty says so late or, the first time, never. */
		busy |= c->waiting == KEEPER_OP_KILL || c->waiting == KEEPER_OP_QUIT;
	}
	if (busy)
		return FREEZE_POLL_MS;
	if (freeze_is_due(w))
		return FREEZE_RETRY_MS;
	if (next == UINT64_MAX)
		return -1;
	return next <= now ? 0 : (int)((next - now) / 1000000) + 1;
}

static void on_adopted_end(struct warden *w)
{
	struct pollfd pfd = { .fd = w->main_pidfd, .events = POLLIN };

	if (poll(&pfd, 1, 0) > 0)
		main_ended(w, false, 0);
}

static void turn(struct warden *w)
{
	struct pollfd pfds[POLLFDS_MAX];
	int count = 0, conns_at, main_at;

	add_poll(pfds, &count, w->signal_fd, POLLIN);
	add_poll(pfds, &count, w->timer_fd, POLLIN);
	add_poll(pfds, &count, w->listen_fd, POLLIN);
	add_poll(pfds, &count, w->init_sock, POLLIN);
	main_at = count;
	add_poll(pfds, &count, w->config.adopted && !w->exited ? w->main_pidfd : -1, POLLIN);
	conns_at = count;
	for (int i = 0; i < WARDEN_CONNS_MAX; i++)
		add_poll(pfds, &count, w->conns[i].fd, POLLIN);
	for (int i = 0; i < WARDEN_SPAWNS_MAX; i++)
		add_poll(pfds, &count, w->spawns[i].exec_fd, POLLIN);
	if (poll(pfds, (nfds_t)count, sleep_ms(w)) < 0)
		return;
	/* The deadline first. */
	if (pfds[1].revents)
		on_lease_end(w);
	/* A helper's end before the job's, which may be its trace. */
	if (pfds[0].revents)
		on_child(w);
	if (pfds[3].revents && w->init_sock >= 0 && server_handle_init(w) == -EPIPE)
		forget_fd(&w->init_sock);
	if (pfds[main_at].revents)
		on_adopted_end(w);
	for (int i = 0; i < WARDEN_CONNS_MAX; i++) {
		if (pfds[conns_at + i].revents && w->conns[i].fd == pfds[conns_at + i].fd)
			on_request(w, &w->conns[i]);
	}
	if (pfds[2].revents)
		on_connect(w);
	if (freeze_is_due(w))
		(void)!freezer_apply(w);
	(void)freezer_check(w);
	settle(w);
}

void server_loop(struct warden *w)
{
	while (!w->quit)
		turn(w);
}
