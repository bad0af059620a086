// SPDX-License-Identifier: LGPL-2.1-or-later
#define LOG_TAG "criu"
#include "agent/image/criu.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "agent/image/criu_text.h"
#include "agent/image/criu_rpc.pb-c.h"
#include "agent/util/deadlines.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum {
	CRIU_SOCK_FD = 3, /* in CRIU */
	CRIU_IMAGES_FD = 4,
	CRIU_PLUGIN_FD = 5,
	CRIU_MESSAGE_MAX = 64 << 10,
	CRIU_LOG_MAX = 16 << 20,
	CRIU_STATS_MAX = 64 << 10,
	CRIU_LOG_LEVEL = 2, /* warnings */
	CRIU_LOG_LEVEL_DEBUG = 4,
	CRIU_LAST_LINES = 100,
	CRIU_EXIT_MS = 10000,
	/* Nothing from CRIU for so long: it hangs. Memory of hundreds of GiB takes minutes. */
	CRIU_SILENCE_MS = 30 * 60 * 1000,
	CRIU_GHOST_MAX = 1 << 30,
};

#define LOG_FILE "criu.log"
#define STATS_FILE "stats-dump"

/* One swrk process and what we saw of it. */
struct session {
	struct keeper *keeper;
	int sock, pidfd, images_fd, plugin_fd; /* plugin_fd: its folder; -1: none */
	uint32_t spawn_id;
	int (*before)(void *ctx); /* at pre-dump: nothing is stopped yet */
	int (*callback)(void *ctx);
	void *ctx;
	const char *callback_at; /* notification at which the callback runs */
	int callback_result;
	bool watch;	/* tell the keeper the root's PID before the callback */
	pid_t root_pid; /* of a restored tree; 0: not known yet */
	uint64_t freeze_ns, answer_ns;
	bool answered;
	bool success;
	char message[CRIU_REASON_MAX]; /* of CRIU's answer */
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static int send_request(struct session *s, const Swrk__Request *request)
{
	size_t size = swrk__request__get_packed_size(request);
	_cleanup_free_ uint8_t *buf = malloc(size);

	if (!buf)
		return -ENOMEM;
	swrk__request__pack(request, buf);
	return send_with_fd(s->sock, buf, size, -1);
}

static int reply_notify(struct session *s, bool success)
{
	Swrk__Request request = SWRK__REQUEST__INIT;

	request.type = SWRK__KIND__NOTIFY;
	request.has_notify_success = true;
	request.notify_success = success;
	return send_request(s, &request);
}

/* Before anything of the restored tree runs, so that not even an exit at once is missed. */
static int watch_root(struct session *s, const Swrk__Notification *n)
{
	if (!s->watch)
		return 0;
	if (!n->has_pid || n->pid <= 0)
		return -EBADMSG;
	s->root_pid = n->pid;
	return keeper_expect(s->keeper, n->pid);
}

static int on_notify(struct session *s, const Swrk__Notification *n)
{
	const char *script = n && n->script ? n->script : "";
	int r = 0;

	if (!strcmp(script, s->callback_at)) {
		r = watch_root(s, n);
		if (r == 0 && s->callback)
			r = s->callback(s->ctx);
		s->callback_result = r < 0 ? r : 0;
	}
	/* CRIU seizes the tasks as soon as it has this reply. */
	if (!strcmp(script, "pre-dump")) {
		r = s->before ? s->before(s->ctx) : 0;
		s->callback_result = r < 0 ? r : 0;
		s->freeze_ns = now_ns();
	}
	return reply_notify(s, r >= 0);
}

static void on_answer(struct session *s, const Swrk__Answer *a)
{
	s->answered = true;
	s->answer_ns = now_ns();
	s->success = a->success;
	if (a->restore && s->root_pid == 0)
		s->root_pid = a->restore->pid;
	snprintf(s->message, sizeof(s->message), "%s", a->cr_errmsg ? a->cr_errmsg : "");
	criu_clean_text(s->message);
}

static int on_message(struct session *s, const uint8_t *buf, size_t size)
{
	Swrk__Answer *a = swrk__answer__unpack(NULL, size, buf);
	int r = 0;

	if (!a)
		return -EBADMSG;
	if (a->type == SWRK__KIND__NOTIFY)
		r = on_notify(s, a->notify);
	else
		on_answer(s, a);
	swrk__answer__free_unpacked(a, NULL);
	return r;
}

/* 1: a message waits; 0: CRIU is gone without one. */
static int wait_message(struct session *s)
{
	struct pollfd pfds[] = { { .fd = s->sock, .events = POLLIN },
				 { .fd = s->pidfd, .events = POLLIN } };
	int r;

	do {
		r = poll(pfds, ARRAY_SIZE(pfds), CRIU_SILENCE_MS);
	} while (r < 0 && errno == EINTR);
	if (r <= 0)
		return r < 0 ? -errno : -ETIMEDOUT;
	return pfds[0].revents & POLLIN ? 1 : 0;
}

/* Serves CRIU until its answer. The socket's other end may outlive CRIU in a child of it. */
static int serve(struct session *s)
{
	_cleanup_free_ uint8_t *buf = malloc(CRIU_MESSAGE_MAX);

	if (!buf)
		return -ENOMEM;
	while (!s->answered) {
		int fd = -1, r = wait_message(s);
		ssize_t n;

		if (r <= 0)
			return r < 0 ? r : -EIO;
		n = recv_with_fd(s->sock, buf, CRIU_MESSAGE_MAX, &fd, 0);
		close_fdp(&fd);
		if (n <= 0)
			return n < 0 ? (int)n : -EIO;
		r = on_message(s, buf, (size_t)n);
		if (r < 0)
			return r;
	}
	return 0;
}

static int spawn(struct session *s, const char *criu, struct keeper_helper *helper)
{
	char *plain[] = { "criu", "swrk", "3", NULL };
	char *with_plugin[] = { "criu", "-L", "/proc/self/fd/5", "swrk", "3", NULL };
	_cleanup_close_ int theirs = -1;
	int pair[2], fds[3], r;

	_Static_assert(CRIU_SOCK_FD == 3 && CRIU_PLUGIN_FD == 5, "arguments above");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	s->sock = pair[0];
	theirs = pair[1];
	fds[CRIU_SOCK_FD - 3] = theirs;
	fds[CRIU_IMAGES_FD - 3] = s->images_fd;
	helper->binary = criu;
	fds[CRIU_PLUGIN_FD - 3] = s->plugin_fd;
	helper->argv = s->plugin_fd < 0 ? plain : with_plugin;
	helper->fds = fds;
	helper->fd_count = s->plugin_fd < 0 ? 2 : 3;
	helper->stdio_fd = -1;
	r = keeper_spawn_helper(s->keeper, helper, &s->pidfd, &s->spawn_id);
	return r;
}

static int reap(struct session *s)
{
	int status;
	int r = keeper_reap(s->keeper, s->spawn_id, CRIU_EXIT_MS, &status);

	/* It has answered, or it is dead, or its answer made no sense: nothing is stopped any more,
	 * or only its end can let go of it. */
	if (r == -ETIMEDOUT) {
		syscall(SYS_pidfd_send_signal, s->pidfd, SIGKILL, NULL, 0);
		r = keeper_reap(s->keeper, s->spawn_id, CRIU_EXIT_MS, &status);
	}
	return r < 0 ? r : status;
}

static void init_options(Swrk__Options *o)
{
	swrk__options__init(o);
	/* By path, since CRIU looks up an fd under the PID of its socket's peer, which is 0 for a
	 * peer in an outer PID namespace. */
	o->images_dir_fd = -1;
	o->images_dir = "/proc/self/fd/4";
	_Static_assert(CRIU_IMAGES_FD == 4, "path above");
	o->has_log_level = true;
	o->log_level = log_shows(LOG_DEBUG_) ? CRIU_LOG_LEVEL_DEBUG : CRIU_LOG_LEVEL;
	o->log_file = LOG_FILE;
	o->has_notify_scripts = true;
	o->notify_scripts = true;
	o->has_file_locks = true;
	o->file_locks = true;
	o->has_manage_cgroups_mode = true;
	o->manage_cgroups_mode = SWRK__CGROUP_MODE__CGROUP_IGNORE;
	o->has_ghost_limit = true;
	o->ghost_limit = CRIU_GHOST_MAX;
	/* Connections are not carried along, so there is nothing to lock. */
	o->has_network_lock = true;
	o->network_lock = SWRK__NETWORK_LOCK__LOCK_SKIP;
}

static void show_line(const char *text)
{
	log_debug("%s", text);
}

/* The folder of a failed restore is removed, log and all: what there is to say is said here. */
static void read_log(const struct session *s, char reason[CRIU_REASON_MAX])
{
	_cleanup_free_ char *log = NULL;

	if (read_file_at(s->images_fd, LOG_FILE, CRIU_LOG_MAX, &log, NULL) < 0)
		return;
	criu_parse_reason(log, reason);
	criu_last_lines(log, CRIU_LAST_LINES, show_line);
}

/* The whole life of one CRIU: 0 if it said that it did what it was asked. */
static int run(struct session *s, const char *criu, const char *images_dir,
	       struct keeper_helper *helper, const Swrk__Request *request,
	       char reason[CRIU_REASON_MAX])
{
	int r, status;

	reason[0] = '\0';
	s->images_fd = open(images_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->images_fd < 0) {
		snprintf(reason, CRIU_REASON_MAX, "image folder: %s", strerror(errno));
		return -errno;
	}
	r = spawn(s, criu, helper);
	if (r < 0) {
		snprintf(reason, CRIU_REASON_MAX, "criu cannot be started: %s", strerror(-r));
		return r;
	}
	r = send_request(s, request);
	if (r == 0)
		r = serve(s);
	/* Its end of file tells a CRIU that is still there to stop and let go. */
	close_fdp(&s->sock);
	s->sock = -1;
	status = reap(s);
	if (r == 0 && s->success)
		return 0;
	read_log(s, reason);
	if (s->callback_result < 0) {
		snprintf(reason, CRIU_REASON_MAX, "called off: %s", strerror(-s->callback_result));
		return s->callback_result;
	}
	if (!s->answered && status >= 0)
		criu_add_reason(reason, "criu ended early, wait status", status);
	else if (reason[0] == '\0')
		snprintf(reason, CRIU_REASON_MAX, "%s", s->message[0] ? s->message : "criu failed");
	return r < 0 && r != -EPIPE && r != -ECONNRESET ? r : -EIO;
}

static void session_deinit(struct session *s)
{
	close_fdp(&s->sock);
	close_fdp(&s->pidfd);
	close_fdp(&s->images_fd);
	close_fdp(&s->plugin_fd);
}

/* They are CRIU's, not the job's: the folder holds images only after a success. */
static void drop_side_files(int images_fd)
{
	unlinkat(images_fd, LOG_FILE, 0);
	unlinkat(images_fd, STATS_FILE, 0);
	unlinkat(images_fd, "stats-restore", 0);
	unlinkat(images_fd, DEADLINES_REPORT, 0);
}

static void read_times(const struct session *s, struct criu_times *ret_times)
{
	_cleanup_free_ char *bytes = NULL;
	struct criu_times times = { 0 };
	size_t size;

	if (read_file_at(s->images_fd, STATS_FILE, CRIU_STATS_MAX, &bytes, &size) == 0 &&
	    criu_parse_stats((const uint8_t *)bytes, size, &times) < 0)
		times = (struct criu_times){ 0 };
	times.wall_us = s->freeze_ns ? (s->answer_ns - s->freeze_ns) / 1000 : 0;
	*ret_times = times;
}

int criu_run_dump(struct keeper *k, const struct criu_dump *dump, struct criu_times *ret_times,
		  char reason[CRIU_REASON_MAX])
{
	struct session s = { .keeper = k,
			     .sock = -1,
			     .pidfd = -1,
			     .images_fd = -1,
			     .plugin_fd = -1,
			     .before = dump->before,
			     .callback = dump->frozen,
			     .ctx = dump->ctx,
			     .callback_at = "post-dump" };
	/* From another IPC namespace CRIU saves the job's whole one, System V objects included. */
	struct keeper_helper helper = {
		.host_ipc = true, .as_user = dump->unprivileged, .uid = dump->uid, .gid = dump->gid
	};
	Swrk__Request request = SWRK__REQUEST__INIT;
	Swrk__Options o;
	int r;

	init_options(&o);
	request.type = SWRK__KIND__DUMP;
	request.opts = &o;
	o.has_pid = true;
	o.pid = dump->pid;
	o.has_leave_running = true;
	o.leave_running = true;
	o.has_shell_job = true;
	o.shell_job = dump->shell_job;
	o.has_unprivileged = true;
	o.unprivileged = dump->unprivileged;
	r = run(&s, dump->criu, dump->images_dir, &helper, &request, reason);
	if (r == 0) {
		read_times(&s, ret_times);
		drop_side_files(s.images_fd);
	}
	session_deinit(&s);
	return r;
}

/* Its folder; -1: there is nothing for it to do, or it is not there, which why says. */
static int open_plugin(const struct criu_restore *restore, char why[CRIU_WHY_MAX])
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/" DEADLINES_FILE, restore->images_dir);
	if (access(path, F_OK) < 0)
		return -1;
	snprintf(path, sizeof(path), "%s/" DEADLINES_PLUGIN,
		 restore->plugin_dir ? restore->plugin_dir : "");
	fd = access(path, R_OK) < 0 ? -1 :
				      open(restore->plugin_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		snprintf(why, CRIU_WHY_MAX, "there is no plugin: %.100s: %s", path,
			 strerror(errno));
	return fd;
}

/* What the plugin says; false: it was never loaded. */
static bool read_report(int images_fd, struct criu_restored *ret)
{
	_cleanup_free_ char *text = NULL;
	int n = 0;

	if (read_file_at(images_fd, DEADLINES_REPORT, DEADLINES_REPORT_MAX, &text, NULL) < 0)
		return false;
	if (sscanf(text, "%u of %u\n%n", &ret->in_time, &ret->timed, &n) != 2 || n == 0)
		n = 0;
	criu_clean_text(text);
	snprintf(ret->not_in_time, sizeof(ret->not_in_time), "%s", text + n);
	return true;
}

/* One restore. *ret_retry: it failed before anything was made, as the plugin could not be loaded. */
static int restore_once(struct keeper *k, const struct criu_restore *restore, int plugin_fd,
			struct criu_restored *ret, bool *ret_retry, char reason[CRIU_REASON_MAX])
{
	struct session s = { .keeper = k,
			     .sock = -1,
			     .pidfd = -1,
			     .images_fd = -1,
			     .plugin_fd = plugin_fd,
			     .callback = restore->ready,
			     .ctx = restore->ctx,
			     .callback_at = "post-restore",
			     .watch = true };
	struct keeper_helper helper = { .in_cgroup = true };
	Swrk__Request request = SWRK__REQUEST__INIT;
	Swrk__Options o;
	bool loaded;
	int r;

	init_options(&o);
	request.type = SWRK__KIND__RESTORE;
	request.opts = &o;
	o.has_shell_job = true;
	o.shell_job = restore->shell_job;
	o.has_lazy_pages = restore->lazy;
	o.lazy_pages = restore->lazy;
	r = run(&s, restore->criu, restore->images_dir, &helper, &request, reason);
	loaded = plugin_fd >= 0 && s.images_fd >= 0 && read_report(s.images_fd, ret);
	*ret_retry = r < 0 && plugin_fd >= 0 && !loaded && s.root_pid <= 0;
	if (r == 0)
		r = keeper_watch(k, s.root_pid);
	else if (s.root_pid && keeper_expect(k, 0) < 0)
		criu_add_reason(reason, "its remains must be killed, PID", s.root_pid);
	if (r == 0) {
		drop_side_files(s.images_fd);
		ret->pid = s.root_pid;
	}
	session_deinit(&s);
	return r;
}

int criu_run_restore(struct keeper *k, const struct criu_restore *restore,
		     struct criu_restored *ret_restored, char reason[CRIU_REASON_MAX])
{
	struct criu_restored restored = { 0 };
	int plugin_fd = open_plugin(restore, restored.not_in_time), r;
	bool retry;

	r = restore_once(k, restore, plugin_fd, &restored, &retry, reason);

	if (r < 0 && retry) {
		snprintf(restored.not_in_time, sizeof(restored.not_in_time),
			 "the plugin cannot be loaded: %.150s", reason);
		r = restore_once(k, restore, -1, &restored, &retry, reason);
	}
	if (r == 0)
		*ret_restored = restored;
	return r;
}
