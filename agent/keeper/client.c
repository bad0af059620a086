// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "agent/keeper/keeper.h"
#include "agent/keeper/protocol.h"
#include "agent/util/io.h"

enum { START_MS = 60000, STARTED_FD = 3 };

struct keeper {
	int sock;
	int event_fd;
	int error; /* the connection is out of step or gone: no more calls */
	char step[KEEPER_STEP_MAX];
};

/* One request and its answer. *ret_fd is -1 or an fd that the caller owns. */
static int call(struct keeper *k, const struct keeper_request *request, const int *fds,
		int fd_count, int timeout_ms, struct keeper_reply *ret_reply, int *ret_fd)
{
	struct pollfd pfd = { .fd = k->sock, .events = POLLIN };
	uint64_t end = now_boot_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000;
	int fd = -1, count = 0, r;

	if (k->error)
		return k->error;
	r = keeper_send(k->sock, request, sizeof(*request), fds, fd_count);
	while (r == 0) {
		uint64_t now = now_boot_ns();
		int left = timeout_ms < 0 ? -1 : now >= end ? 0 : (int)((end - now) / 1000000) + 1;

		r = poll(&pfd, 1, left);
		if (r > 0)
			break;
		r = r == 0 ? -ETIMEDOUT : errno == EINTR ? 0 : -errno;
	}
	if (r > 0)
		r = keeper_receive(k->sock, ret_reply, sizeof(*ret_reply), &fd, 1, &count);
	if (r == 0 && ret_reply->op != request->op)
		r = -EBADMSG;
	if (r < 0) {
		k->error = r == -EPIPE ? -ECONNRESET : r;
		return k->error;
	}
	if (count && (!ret_fd || ret_reply->status < 0)) {
		close(fd);
		count = 0;
	}
	if (ret_fd)
		*ret_fd = count ? fd : -1;
	return ret_reply->status;
}

static int call_simple(struct keeper *k, const struct keeper_request *request, int timeout_ms)
{
	struct keeper_reply answer;

	return call(k, request, NULL, 0, timeout_ms, &answer, NULL);
}

static int open_connection(int run_fd)
{
	struct sockaddr_un address;
	unsigned size = keeper_address(run_fd, &address);
	_cleanup_close_ int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (sock < 0)
		return -errno;
	if (connect(sock, (struct sockaddr *)&address, size) < 0)
		return -errno;
	return take_fd(sock);
}

int keeper_attach(const char *run_dir, struct keeper **ret_keeper)
{
	_cleanup_close_ int run_fd = open(run_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct keeper_request request = { .op = KEEPER_OP_HELLO, .version = KEEPER_VERSION };
	struct keeper_reply answer;
	struct keeper *k;
	int r;

	if (run_fd < 0)
		return -errno;
	k = calloc(1, sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->event_fd = -1;
	k->sock = open_connection(run_fd);
	r = k->sock < 0 ? k->sock :
			  call(k, &request, NULL, 0, KEEPER_CALL_MS, &answer, &k->event_fd);
	if (r == 0 && k->event_fd < 0)
		r = -EBADMSG;
	if (r < 0) {
		keeper_detach(k);
		return r;
	}
	*ret_keeper = k;
	return 0;
}

void keeper_detach(struct keeper *k)
{
	if (!k)
		return;
	close_fdp(&k->sock);
	close_fdp(&k->event_fd);
	free(k);
}

struct start_arguments {
	char numbers[3][16];
	char *argv[9];
};

static void set_arguments(const struct keeper_config *c, struct start_arguments *a)
{
	const char *const argv[] = { "decamp-keeper",
				     c->run_dir,
				     c->state_dir ? c->state_dir : "",
				     c->cgroup_dir ? c->cgroup_dir : "",
				     c->hostname ? c->hostname : "localhost",
				     a->numbers[0],
				     a->numbers[1],
				     a->numbers[2],
				     NULL };

	snprintf(a->numbers[0], sizeof(a->numbers[0]), "%d", c->adopted);
	snprintf(a->numbers[1], sizeof(a->numbers[1]), "%d", c->adopt_pid);
	snprintf(a->numbers[2], sizeof(a->numbers[2]), "%d", c->helper_pid);
	memcpy(a->argv, argv, sizeof(argv));
}

/* In a forked child of a program with threads: nothing but system calls. */
static void __attribute__((noreturn)) exec_keeper(const char *binary, char *const argv[], int fd)
{
	static char *const env[] = { NULL };
	struct keeper_started started = { .step = "execute" };
	int null;

	setsid();
	/* An orphan from birth: its death is not the daemon's to reap. */
	if (fork() != 0)
		_exit(0);
	null = open("/dev/null", O_RDWR);
	if (null >= 0 && dup2(null, 0) == 0 && dup2(null, 1) == 1 && dup2(null, 2) == 2 &&
	    (fd == STARTED_FD ? fcntl(fd, F_SETFD, 0) : dup2(fd, STARTED_FD)) >= 0)
		execve(binary, argv, env);
	started.status = -errno;
	(void)!write(fd, &started, sizeof(started));
	_exit(127);
}

static int read_started(int fd, struct keeper_started *ret_started)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	int r = poll(&pfd, 1, START_MS);

	if (r == 0)
		return -ETIMEDOUT;
	if (r < 0)
		return -errno;
	r = read_full(fd, ret_started, sizeof(*ret_started));
	return r == -ENODATA ? -EIO : r;
}

static int launch(const struct keeper_config *config)
{
	struct keeper_started started;
	struct start_arguments arguments;
	_cleanup_close_ int report = -1;
	int pipe_fds[2];
	pid_t pid;

	set_arguments(config, &arguments);
	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return -errno;
	report = pipe_fds[0];
	pid = fork();
	if (pid == 0)
		exec_keeper(config->binary, arguments.argv, pipe_fds[1]);
	close(pipe_fds[1]);
	if (pid < 0)
		return -errno;
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	int r = read_started(report, &started);

	return r < 0 ? r : started.status;
}

int keeper_start(const struct keeper_config *config, struct keeper **ret_keeper)
{
	struct keeper *k;
	int r = keeper_attach(config->run_dir, &k);

	if (r == 0) {
		keeper_detach(k);
		return -EBUSY;
	}
	if (!config->adopted && !config->state_dir)
		return -EINVAL;
	r = launch(config);
	return r < 0 ? r : keeper_attach(config->run_dir, ret_keeper);
}

static const char *path_or_empty(const char *path)
{
	return path ? path : "";
}

static uint32_t size_of_path(const char *path)
{
	return path ? (uint32_t)strlen(path) + 1 : 0;
}

/* The order as a memfd: it may be bigger than a datagram. */
static int write_order(const struct keeper_command *c, int fd)
{
	const char *paths[4] = { c->cwd, c->stdin_path, c->stdout_path, c->stderr_path };
	struct keeper_run_order o = { .argv_size = (uint32_t)c->argv_size,
				      .env_size = (uint32_t)c->env_size,
				      .uid = c->uid,
				      .gid = c->gid,
				      .group_count = c->group_count,
				      .have_rlimits = c->have_rlimits,
				      .umask = c->umask };
	int r;

	for (size_t i = 0; i < 4; i++)
		o.path_size[i] = size_of_path(paths[i]);
	memcpy(o.groups, c->groups, sizeof(o.groups));
	_Static_assert(sizeof(o.rlim_cur) == sizeof(c->rlim_cur), "same count of limits");
	memcpy(o.rlim_cur, c->rlim_cur, sizeof(o.rlim_cur));
	memcpy(o.rlim_max, c->rlim_max, sizeof(o.rlim_max));
	r = write_full(fd, &o, sizeof(o));
	if (r == 0)
		r = write_full(fd, c->argv, c->argv_size);
	if (r == 0)
		r = write_full(fd, c->env, c->env_size);
	for (size_t i = 0; r == 0 && i < 4; i++)
		r = write_full(fd, path_or_empty(paths[i]), o.path_size[i]);
	return r;
}

int keeper_run(struct keeper *k, const struct keeper_command *command, const char **ret_step)
{
	struct keeper_request request = { .op = KEEPER_OP_RUN };
	struct keeper_reply answer = { 0 };
	_cleanup_close_ int order = -1;
	int r;

	*ret_step = "command";
	if (command->argv_size == 0 || command->argv_size > KEEPER_ARGS_MAX ||
	    command->env_size > KEEPER_ARGS_MAX || command->group_count > KEEPER_GROUPS_MAX)
		return -E2BIG;
	order = memfd_new("decamp-run");
	if (order < 0)
		return order;
	r = write_order(command, order);
	if (r < 0)
		return r;
	r = call(k, &request, &order, 1, KEEPER_CALL_MS, &answer, NULL);
	memcpy(k->step, answer.u.step, sizeof(k->step) - 1);
	*ret_step = k->step[0] ? k->step : "keeper";
	return r;
}

int keeper_watch(struct keeper *k, pid_t main_pid)
{
	struct keeper_request request = { .op = KEEPER_OP_WATCH, .u.pid = main_pid };

	return call_simple(k, &request, KEEPER_CALL_MS);
}

int keeper_expect(struct keeper *k, pid_t main_pid)
{
	struct keeper_request request = { .op = KEEPER_OP_EXPECT, .u.pid = main_pid };

	return call_simple(k, &request, KEEPER_CALL_MS);
}

static int add_text(struct keeper_spawn_order *o, const char *text)
{
	size_t size = strlen(text) + 1;

	if (size > sizeof(o->text) - o->text_size)
		return -E2BIG;
	memcpy(o->text + o->text_size, text, size);
	o->text_size += (uint32_t)size;
	return 0;
}

int keeper_spawn_helper(struct keeper *k, const struct keeper_helper *h, int *ret_pidfd,
			uint32_t *ret_spawn_id)
{
	struct keeper_request request = { .op = KEEPER_OP_SPAWN };
	struct keeper_spawn_order *o = &request.u.spawn;
	struct keeper_reply answer;
	int fds[KEEPER_FDS_MAX + 1], count = 0, pidfd = -1, r;

	if (h->fd_count > KEEPER_FDS_MAX)
		return -E2BIG;
	o->uid = h->uid;
	o->gid = h->gid;
	o->flags = (h->in_cgroup ? KEEPER_SPAWN_IN_CGROUP : 0) |
		   (h->host_ipc ? KEEPER_SPAWN_HOST_IPC : 0) |
		   (h->as_user ? KEEPER_SPAWN_AS_USER : 0) |
		   (h->stdio_fd >= 0 ? KEEPER_SPAWN_STDIO : 0);
	r = add_text(o, h->binary);
	for (; r == 0 && h->argv[o->arg_count]; o->arg_count++)
		r = o->arg_count == KEEPER_SPAWN_ARGS_MAX ? -E2BIG :
							    add_text(o, h->argv[o->arg_count]);
	if (r < 0)
		return r;
	if (h->stdio_fd >= 0)
		fds[count++] = h->stdio_fd;
	for (int i = 0; i < h->fd_count; i++)
		fds[count++] = h->fds[i];
	r = call(k, &request, fds, count, KEEPER_CALL_MS, &answer, &pidfd);
	if (r < 0)
		return r;
	if (pidfd < 0)
		return -EBADMSG;
	*ret_pidfd = pidfd;
	*ret_spawn_id = answer.u.spawn_id;
	return 0;
}

int keeper_spawn(struct keeper *k, const char *binary, char *const argv[], const int *fds,
		 int fd_count, int stdio_fd, bool in_cgroup, int *ret_pidfd, uint32_t *ret_spawn_id)
{
	struct keeper_helper helper = { .binary = binary,
					.argv = argv,
					.fds = fds,
					.fd_count = fd_count,
					.stdio_fd = stdio_fd,
					.in_cgroup = in_cgroup };

	return keeper_spawn_helper(k, &helper, ret_pidfd, ret_spawn_id);
}

int keeper_reap(struct keeper *k, uint32_t spawn_id, int timeout_ms, int *ret_status)
{
	struct keeper_request request = { .op = KEEPER_OP_REAP };
	struct keeper_reply answer;
	int r;

	request.u.reap.spawn_id = spawn_id;
	request.u.reap.timeout_ms = timeout_ms;
	r = call(k, &request, NULL, 0, timeout_ms < 0 ? -1 : timeout_ms + 1000, &answer, NULL);
	if (r == 0)
		*ret_status = answer.u.wait_status;
	return r;
}

int keeper_freeze(struct keeper *k, int timeout_ms)
{
	struct keeper_request request = { .op = KEEPER_OP_FREEZE, .u.timeout_ms = timeout_ms };

	return call_simple(k, &request, (timeout_ms > 0 ? timeout_ms : KEEPER_CALL_MS) + 1000);
}

int keeper_thaw(struct keeper *k)
{
	struct keeper_request request = { .op = KEEPER_OP_THAW };

	return call_simple(k, &request, KEEPER_CALL_MS);
}

int keeper_kill(struct keeper *k)
{
	struct keeper_request request = { .op = KEEPER_OP_KILL };

	return call_simple(k, &request, KEEPER_CALL_MS);
}

int keeper_signal(struct keeper *k, int signal)
{
	struct keeper_request request = { .op = KEEPER_OP_SIGNAL, .u.signal = signal };

	return call_simple(k, &request, KEEPER_CALL_MS);
}

int keeper_quit(struct keeper *k)
{
	struct keeper_request request = { .op = KEEPER_OP_QUIT };

	return call_simple(k, &request, KEEPER_CALL_MS);
}

int keeper_lease(struct keeper *k, uint64_t deadline_boot_ns)
{
	struct keeper_request request = { .op = KEEPER_OP_LEASE,
					  .u.deadline_boot_ns = deadline_boot_ns };

	return call_simple(k, &request, KEEPER_CALL_MS);
}

int keeper_hold(struct keeper *k, int fd)
{
	struct keeper_request request = { .op = KEEPER_OP_HOLD };
	struct keeper_reply answer;

	return call(k, &request, &fd, fd >= 0, KEEPER_CALL_MS, &answer, NULL);
}

int keeper_status(struct keeper *k, struct keeper_status *ret_status)
{
	struct keeper_request request = { .op = KEEPER_OP_STATUS };
	struct keeper_reply answer;
	eventfd_t count;
	int r;

	/* Before the question: an event that comes after it is announced again. */
	(void)!eventfd_read(k->event_fd, &count);
	r = call(k, &request, NULL, 0, KEEPER_CALL_MS, &answer, NULL);
	if (r == 0)
		*ret_status = answer.u.status;
	return r;
}

int keeper_event_fd(struct keeper *k)
{
	return k->event_fd;
}
