// SPDX-License-Identifier: LGPL-2.1-or-later
/* decampd's side of decamp-capture: start it, drive a snapshot, outlive its death. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "agent/keeper/keeper.h"
#include "agent/native/fence.h"
#include "agent/native/protocol.h"
#include "agent/util/io.h"

enum { START_MS = 60000, STOP_MS = 10000, RECORDS_MAX = 256 << 20 };

struct native {
	pid_t pid;
	int sock;
	int error; /* out of step or gone: no more calls */
};

extern char **environ;

static int set_actions(posix_spawn_file_actions_t *actions, int sock)
{
	int r = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDWR, 0);

	if (r == 0)
		r = posix_spawn_file_actions_adddup2(actions, 0, 1);
	if (r == 0)
		r = posix_spawn_file_actions_adddup2(actions, sock, NATIVE_FD);
	if (r == 0)
		r = posix_spawn_file_actions_addclosefrom_np(actions, NATIVE_FD + 1);
	return -r;
}

/* posix_spawn: decampd has threads and locks, and may be big. */
static int spawn(const char *binary, int sock, pid_t *ret_pid)
{
	static char name[] = "decamp-capture";
	char *argv[] = { name, NULL };
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, all;
	int r;

	sigemptyset(&none);
	sigfillset(&all);
	if (posix_spawn_file_actions_init(&actions))
		return -ENOMEM;
	if (posix_spawnattr_init(&attr)) {
		posix_spawn_file_actions_destroy(&actions);
		return -ENOMEM;
	}
	r = set_actions(&actions, sock);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
						POSIX_SPAWN_SETSIGDEF);
	if (r == 0)
		r = -posix_spawn(ret_pid, binary, &actions, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&actions);
	return r;
}

/* News of decamp-capture; -ECONNRESET when it is gone. */
static int receive(struct native *n, struct native_news *ret_news, int *ret_fd, int timeout_ms)
{
	_cleanup_close_ int fd = -1;
	ssize_t size = recv_with_fd(n->sock, ret_news, sizeof(*ret_news), &fd, timeout_ms);
	bool head_only;

	if (size == -EAGAIN)
		return -ETIMEDOUT;
	if (size <= 0)
		return -ECONNRESET;
	if (size < (ssize_t)NATIVE_NEWS_HEAD)
		return -EBADMSG;
	head_only = ret_news->op == NATIVE_BEFORE || ret_news->op == NATIVE_FROZEN;
	if (!head_only && size != sizeof(*ret_news))
		return -EBADMSG;
	if (ret_news->op == NATIVE_DONE)
		ret_news->reason[NATIVE_REASON_MAX - 1] = '\0';
	if (ret_fd)
		*ret_fd = take_fd(fd);
	return 0;
}

static int send_order(struct native *n, const struct native_order *order, int fd)
{
	int r = send_with_fd(n->sock, order, sizeof(*order), fd);

	return r == -EPIPE ? -ECONNRESET : r;
}

/* After this the process is no longer believed; its end lets go of the job. */
static int give_up(struct native *n, int r, char reason[NATIVE_REASON_MAX])
{
	n->error = r;
	if (n->pid > 0)
		kill(n->pid, SIGKILL);
	if (!reason[0])
		snprintf(reason, NATIVE_REASON_MAX, "decamp-capture %s",
			 r == -ETIMEDOUT  ? "does not answer" :
			 r == -ECONNRESET ? "died" :
					    "is out of step");
	return r;
}

/* A question with one answer. */
static int ask(struct native *n, const struct native_order *order, int fd, uint32_t op,
	       struct native_news *ret_news, char reason[NATIVE_REASON_MAX])
{
	int r = send_order(n, order, fd);

	if (r == 0)
		r = receive(n, ret_news, NULL, START_MS);
	if (r == 0 && ret_news->op != op)
		r = -EBADMSG;
	if (r < 0)
		return give_up(n, r, reason);
	if (op == NATIVE_DONE && ret_news->status < 0)
		memcpy(reason, ret_news->reason, NATIVE_REASON_MAX);
	return ret_news->status;
}

static int launch(const char *binary, struct native **ret_native, char reason[NATIVE_REASON_MAX])
{
	struct native *n = calloc(1, sizeof(*n));
	int pair[2], r;

	reason[0] = '\0';
	if (!n)
		return -ENOMEM;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		r = -errno;
		free(n);
		return r;
	}
	r = spawn(binary, pair[1], &n->pid);
	close(pair[1]);
	n->sock = pair[0];
	if (r < 0) {
		n->pid = 0;
		snprintf(reason, NATIVE_REASON_MAX, "%s cannot be started: %s", binary,
			 strerror(-r));
		native_stop(n);
		return r;
	}
	*ret_native = n;
	return 0;
}

/* -1: no fence. */
static int open_fence(const char *cgroup)
{
	char path[PATH_MAX];

	if (!cgroup || snprintf(path, sizeof(path), "%s/" KEEPER_TASKS, cgroup) >= PATH_MAX)
		return -1;
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* Nobody is there to mend: a call that says EINTR is less than a job that stands. */
static void lower_fence(int dir)
{
	struct native_fence fence;

	if (dir >= 0 && fence_open(dir, &fence) == 0) {
		fence_lower(&fence);
		fence_close(&fence);
	}
}

int native_start(const struct native_config *config, struct native **ret_native,
		 char reason[NATIVE_REASON_MAX])
{
	struct native_order order = { .op = NATIVE_START,
				      .version = NATIVE_VERSION,
				      .root = config->root,
				      .nice_rounds = config->nice_rounds,
				      .mem = config->mem };
	struct native_news news;
	struct native *n = NULL;
	_cleanup_close_ int fence = open_fence(config->cgroup);
	int r = launch(config->binary, &n, reason);

	if (r == 0)
		r = ask(n, &order, fence, NATIVE_DONE, &news, reason);
	if (r < 0) {
		native_stop(n);
		lower_fence(fence);
		return r;
	}
	*ret_native = n;
	return 0;
}

static bool is_up(int dir)
{
	struct native_fence fence;
	bool up;

	if (dir < 0 || fence_open(dir, &fence) < 0)
		return false;
	up = fence_is_up(&fence);
	fence_close(&fence);
	return up;
}

void native_mend(const char *binary, const char *cgroup)
{
	struct native_order order = { .op = NATIVE_MEND };
	_cleanup_close_ int fence = open_fence(cgroup);
	char reason[NATIVE_REASON_MAX];
	struct native_news news;
	struct native *n = NULL;
	int r;

	if (!is_up(fence))
		return;
	r = launch(binary, &n, reason);
	if (r == 0)
		r = ask(n, &order, fence, NATIVE_DONE, &news, reason);
	if (r < 0)
		lower_fence(fence);
	native_stop(n);
}

void native_stop(struct native *n)
{
	uint64_t end = now_boot_ns() + (uint64_t)STOP_MS * 1000000;
	pid_t got = 0;

	if (!n)
		return;
	close_fdp(&n->sock);
	while (n->pid > 0 && got == 0) {
		struct timespec nap = { .tv_nsec = 1000000 };

		got = waitpid(n->pid, NULL, WNOHANG);
		if (got < 0 && errno == EINTR)
			got = 0;
		if (got == 0 && now_boot_ns() > end)
			kill(n->pid, SIGKILL);
		if (got == 0)
			nanosleep(&nap, NULL);
	}
	free(n);
}

bool native_alive(const struct native *n)
{
	struct pollfd p = { .fd = n->sock, .events = POLLIN };

	/* It never speaks first: whatever is to be read now is its end. */
	return !n->error && poll(&p, 1, 0) == 0;
}

static int send_wanted(struct native *n, const struct native_take *take)
{
	struct native_order order = { .op = NATIVE_WANTED };
	_cleanup_close_ int fd = -1;
	int r;

	if (take->wanted_count == 0)
		return 0;
	fd = memfd_new("decamp-wanted");
	if (fd < 0)
		return fd;
	r = pwrite_full(fd, take->wanted, take->wanted_count * sizeof(*take->wanted), 0);
	return r < 0 ? r : send_order(n, &order, fd);
}

static int answer(struct native *n, uint32_t number, int status)
{
	struct native_order order = { .op = NATIVE_ANSWER, .number = number, .status = status };

	return send_order(n, &order, -1);
}

/* One record, checked; -EBADMSG. */
static int give_record(const struct native_take *take, const struct native_record *record)
{
	size_t room = record->size - sizeof(*record);

	if (!memchr(record->path, '\0', room))
		return -EBADMSG;
	if (record->path[0])
		return take->use ? take->use(take->ctx, record->path, record->flags) : 0;
	return take->thread ? take->thread(take->ctx, (pid_t)record->value) : 0;
}

static int give_records(const struct native_take *take, int fd)
{
	struct stat st;
	uint8_t *bytes;
	size_t at = 0, size;
	int r = 0;

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size <= 0 || st.st_size > RECORDS_MAX)
		return -EBADMSG;
	size = (size_t)st.st_size;
	bytes = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (bytes == MAP_FAILED)
		return -errno;
	while (r == 0 && at < size) {
		const struct native_record *record = (const void *)(bytes + at);

		if (size - at < sizeof(*record) || record->size <= sizeof(*record) ||
		    record->size % 8 || record->size > size - at) {
			r = -EBADMSG;
			break;
		}
		r = give_record(take, record);
		at += record->size;
	}
	munmap(bytes, size);
	return r;
}

static int finish(const struct native_take *take, const struct native_news *news, int fd,
		  struct native_result *ret_result, char reason[NATIVE_REASON_MAX])
{
	int r;

	if (news->status < 0) {
		memcpy(reason, news->reason, NATIVE_REASON_MAX);
		return news->status;
	}
	r = give_records(take, fd);
	if (r < 0) {
		snprintf(reason, NATIVE_REASON_MAX, "the list of files in use: %s", strerror(-r));
		return r;
	}
	*ret_result = news->result;
	return 0;
}

/*
 * To another processor than the tracer's, which is busy in the pause: to find that out then takes
 * longer than the work there, and what before() has touched is in the caches of this one. Whoever
 * calls undoes it.
 */
static void step_aside(int tracer_processor, const cpu_set_t *usual)
{
	cpu_set_t others = *usual;

	if (tracer_processor < 0 || tracer_processor >= CPU_SETSIZE)
		return;
	CPU_CLR(tracer_processor, &others);
	if (CPU_COUNT(&others))
		(void)sched_setaffinity(0, sizeof(others), &others);
}

/* One snapshot, to its end. usual: the processors of this thread. */
static int follow(struct native *n, const struct native_take *take, const cpu_set_t *usual,
		  struct native_result *ret_result, char reason[NATIVE_REASON_MAX])
{
	struct native_news news;
	int r = 0;

	while (r == 0) {
		_cleanup_close_ int fd = -1;

		r = receive(n, &news, &fd, NATIVE_TAKE_MS);
		if (r == 0 && news.op == NATIVE_DONE)
			return finish(take, &news, fd, ret_result, reason);
		if (r == 0 && news.op == NATIVE_BEFORE) {
			step_aside(news.status, usual);
			r = answer(n, news.number, take->before ? take->before(take->ctx) : 0);
		} else if (r == 0 && news.op == NATIVE_FROZEN) {
			r = answer(n, news.number, take->frozen ? take->frozen(take->ctx) : 0);
		} else if (r == 0) {
			r = -EBADMSG;
		}
	}
	return give_up(n, r, reason);
}

const char *native_mostly(const struct native_result *result)
{
	uint64_t waited = (uint64_t)result->blocked_us + result->queued_us;
	const struct {
		const char *what;
		uint64_t us;
	} parts[] = {
		{ "disk", result->blocked_us },
		{ "processor", result->queued_us },
		{ "freeze", result->freeze_us > waited ? result->freeze_us - waited : 0 },
		{ "state", (uint64_t)result->state_us + result->regs_us + result->files_us },
		{ "memory", (uint64_t)result->scan_us + result->copy_us },
		{ "files", result->wait_us },
		{ "thaw", result->thaw_us },
		{ "retries", result->earlier_us },
	};
	size_t most = 0;

	for (size_t i = 1; i < ARRAY_SIZE(parts); i++)
		if (parts[i].us > parts[most].us)
			most = i;
	/* Each processor's share of what was stolen is not known: half is enough to say so. */
	if (most == 1 && result->stolen_us >= result->queued_us / 2)
		return "stolen";
	return parts[most].what;
}

int native_take(struct native *n, const struct native_take *take, struct native_result *ret_result,
		char reason[NATIVE_REASON_MAX])
{
	struct native_order order = { .op = NATIVE_TAKE,
				      .base = take->base,
				      .shell_job = take->shell_job,
				      .own_ipc_ns = take->own_ipc_ns,
				      .deadline_ms = take->deadline_ms,
				      .traced = take->traced,
				      .wanted_count = (uint32_t)take->wanted_count };
	cpu_set_t usual;
	int r = n->error;

	reason[0] = '\0';
	if (r == 0 && take->wanted_count > NATIVE_WANTED_MAX)
		return -E2BIG;
	/* Fails with more processors than the set has: then this thread stays where it is. */
	if (sched_getaffinity(0, sizeof(usual), &usual) < 0)
		CPU_ZERO(&usual);
	if (r == 0)
		r = send_order(n, &order, take->images);
	if (r == 0)
		r = send_wanted(n, take);
	if (r < 0)
		return give_up(n, r, reason);
	r = follow(n, take, &usual, ret_result, reason);
	if (CPU_COUNT(&usual))
		(void)sched_setaffinity(0, sizeof(usual), &usual);
	return r;
}

int native_check(const char *binary, pid_t root, char reason[NATIVE_REASON_MAX])
{
	struct native_config config = { .binary = binary, .root = root };
	struct native_order order = { .op = NATIVE_CHECK };
	struct native_news news;
	struct native *n;
	int r = native_start(&config, &n, reason);

	if (r < 0)
		return r;
	r = ask(n, &order, -1, NATIVE_DONE, &news, reason);
	native_stop(n);
	return r;
}
