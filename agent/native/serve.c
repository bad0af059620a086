// SPDX-License-Identifier: LGPL-2.1-or-later
/* decamp-capture's side of the socket: orders come in, snapshots go out. */
#include "agent/native/serve.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "agent/native/fence.h"
#include "agent/native/take.h"
#include "agent/util/io.h"

enum { FMODE_WRITE_BIT = 2 };

struct server {
	int sock;
	struct taker *taker;
	uint32_t number; /* of the last question */
	char *reason;	 /* of the snapshot under way */
	FILE *records;
	int records_fd;
};

static int send_news(struct server *s, const struct native_news *news, size_t size, int fd)
{
	return send_with_fd(s->sock, news, size, fd);
}

/* The answer to the newest question; < 0: what it says, or -ECONNRESET, -ETIMEDOUT. */
static int wait_answer(struct server *s)
{
	uint64_t end = now_boot_ns() + (uint64_t)NATIVE_PAUSE_MS * 1000000;

	for (;;) {
		_cleanup_close_ int fd = -1;
		uint64_t now = now_boot_ns();
		struct native_order order;
		ssize_t n;

		if (now >= end)
			return -ETIMEDOUT;
		n = recv_with_fd(s->sock, &order, sizeof(order), &fd,
				 (int)((end - now) / 1000000) + 1);
		if (n == -EAGAIN)
			continue;
		if (n <= 0)
			return -ECONNRESET;
		if (n != sizeof(order) || order.op != NATIVE_ANSWER)
			return -EBADMSG;
		if (order.number == s->number)
			return order.status;
	}
}

static int question(struct server *s, uint32_t op)
{
	struct native_news news = { .op = op, .number = ++s->number, .status = sched_getcpu() };

	return send_news(s, &news, NATIVE_NEWS_HEAD, -1);
}

static int called_off(struct server *s, int r, const char *when)
{
	if (r < 0 && !s->reason[0])
		snprintf(s->reason, NATIVE_REASON_MAX, "decampd %s %s: the job was let go",
			 r == -ETIMEDOUT  ? "did not answer" :
			 r == -ECONNRESET ? "ended" :
					    "called the snapshot off",
			 when);
	/* Must not look like a race of ours, which would be tried again. */
	return r == -EAGAIN ? -ECANCELED : r;
}

static int on_before(void *ctx)
{
	struct server *s = ctx;
	int r = question(s, NATIVE_BEFORE);

	if (r == 0)
		r = wait_answer(s);
	return called_off(s, r, "before the pause");
}

static int on_frozen(void *ctx)
{
	struct server *s = ctx;

	return called_off(s, question(s, NATIVE_FROZEN), "in the pause");
}

static int on_collected(void *ctx)
{
	struct server *s = ctx;

	return called_off(s, wait_answer(s), "in the pause");
}

static int put_record(struct server *s, const char *path, unsigned int flags, uint64_t value)
{
	static const char zeros[8];
	size_t length = strlen(path) + 1, size = sizeof(struct native_record) + length;
	struct native_record record = { .size = (uint32_t)((size + 7) & ~(size_t)7),
					.flags = flags,
					.value = value };

	if (fwrite(&record, sizeof(record), 1, s->records) != 1 ||
	    fwrite(path, length, 1, s->records) != 1 ||
	    (record.size > size && fwrite(zeros, record.size - size, 1, s->records) != 1))
		return -ENOSPC;
	return 0;
}

/* Paths of files, as the kernel names them; what has no name is CRIU's matter. */
static int put_path(struct server *s, const char *path, unsigned int flags)
{
	static const char gone[] = " (deleted)";
	size_t length = strlen(path);

	if (path[0] != '/' ||
	    (length >= sizeof(gone) - 1 && !strcmp(path + length - (sizeof(gone) - 1), gone)))
		return 0;
	return put_record(s, path, flags, 0);
}

/*
 * The records hold no path of STATE_PATH_MAX or more. The link still says the same unless the job
 * closed the file since, and then its path matters to nobody but the closure, which may miss it.
 */
static int put_long(struct server *s, const char *link, uint64_t ino, unsigned int flags)
{
	char path[PATH_MAX];
	struct stat st;
	ssize_t n = readlink(link, path, sizeof(path) - 1);

	if (n < 0 || stat(link, &st) < 0 || (ino && st.st_ino != ino))
		return 0;
	path[n] = '\0';
	return put_path(s, path, flags);
}

static int put_maps(struct server *s, const struct native_task *task)
{
	uint64_t last_file = 0;
	unsigned int last_flags = 0;
	int r = 0;

	for (size_t i = 0; r == 0 && i < task->vma_count; i++) {
		const struct state_vma *v = &task->vmas[i];
		unsigned int flags = v->vm_flags & 8 ? NATIVE_USE_SHARED_MAP : 0; /* VM_SHARED */
		char link[96];

		if (!v->file || v->nlink == 0 || !S_ISREG(v->mode) ||
		    (v->file == last_file && flags == last_flags))
			continue;
		last_file = v->file;
		last_flags = flags;
		if (v->path[0]) {
			r = put_path(s, v->path, flags);
			continue;
		}
		snprintf(link, sizeof(link), "/proc/%d/map_files/%llx-%llx", task->pid,
			 (unsigned long long)v->start, (unsigned long long)v->end);
		r = put_long(s, link, v->ino, flags);
	}
	return r;
}

static int put_descriptors(struct server *s, const struct native_task *task)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < task->fd_count; i++) {
		const struct state_fd *f = &task->fds[i];
		unsigned int flags = f->f_mode & FMODE_WRITE_BIT ? NATIVE_USE_WRITABLE : 0;
		char link[96];

		if (f->nlink == 0 || (!S_ISREG(f->mode) && !S_ISDIR(f->mode)))
			continue;
		if (S_ISDIR(f->mode))
			flags = NATIVE_USE_FOLDER;
		if (f->path[0]) {
			r = put_path(s, f->path, flags);
			continue;
		}
		snprintf(link, sizeof(link), "/proc/%d/fd/%d", task->pid, f->fd);
		r = put_long(s, link, f->ino, flags);
	}
	return r;
}

static int put_links(struct server *s, const struct native_task *task)
{
	char link[64];
	int r;

	snprintf(link, sizeof(link), "/proc/%d/exe", task->pid);
	r = task->state->exe[0] ? put_path(s, task->state->exe, 0) : put_long(s, link, 0, 0);
	snprintf(link, sizeof(link), "/proc/%d/cwd", task->pid);
	if (r == 0)
		r = task->state->cwd[0] ? put_path(s, task->state->cwd, NATIVE_USE_FOLDER) :
					  put_long(s, link, 0, NATIVE_USE_FOLDER);
	return r;
}

static int put_task(struct server *s, const struct native_tree *tree,
		    const struct native_task *task)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < task->thread_count; i++)
		r = put_record(s, "", 0, (uint64_t)task->threads[i].inner_tid);
	if (r == 0 && task->thread_count == 0)
		r = put_record(s, "", 0, (uint64_t)task->inner_pid);
	if (r < 0 || task->zombie || !task->state)
		return r;
	r = put_links(s, task);
	if (r == 0 && tree_is_first_vm(tree, task))
		r = put_maps(s, task);
	if (r == 0 && tree_is_first_files(tree, task))
		r = put_descriptors(s, task);
	return r;
}

static int on_after(void *ctx, struct native_tree *tree)
{
	struct server *s = ctx;
	int r = 0;

	s->records_fd = memfd_new("decamp-files");
	if (s->records_fd < 0)
		return s->records_fd;
	s->records = fdopen(fcntl(s->records_fd, F_DUPFD_CLOEXEC, 0), "w");
	if (!s->records)
		return -errno;
	for (size_t i = 0; r == 0 && i < tree->task_count; i++)
		r = put_task(s, tree, &tree->tasks[i]);
	if (fclose(take_ptr(s->records)) != 0 && r == 0)
		r = -errno;
	return r;
}

/* *ret_wanted: the caller frees. */
static int receive_wanted(struct server *s, size_t count, struct native_wanted **ret_wanted)
{
	_cleanup_free_ struct native_wanted *wanted = NULL;
	_cleanup_close_ int fd = -1;
	struct native_order order;
	ssize_t n;
	int r;

	*ret_wanted = NULL;
	if (count == 0)
		return 0;
	if (count > NATIVE_WANTED_MAX)
		return -E2BIG;
	n = recv_with_fd(s->sock, &order, sizeof(order), &fd, NATIVE_PAUSE_MS);
	if (n != sizeof(order) || order.op != NATIVE_WANTED || fd < 0)
		return -EBADMSG;
	wanted = malloc(count * sizeof(*wanted));
	if (!wanted)
		return -ENOMEM;
	r = pread_full(fd, wanted, count * sizeof(*wanted), 0);
	if (r == 0)
		*ret_wanted = take_ptr(wanted);
	return r;
}

static int send_done(struct server *s, int status, struct native_news *news, int fd)
{
	news->op = NATIVE_DONE;
	news->status = status;
	return send_news(s, news, sizeof(*news), fd);
}

static int take(struct server *s, const struct native_order *order, int images)
{
	_cleanup_free_ struct native_wanted *wanted = NULL;
	struct take_order t = { .images = images,
				.base = order->base,
				.shell_job = order->shell_job,
				.own_ipc_ns = order->own_ipc_ns,
				.wanted_count = order->wanted_count,
				.deadline_ms = order->deadline_ms,
				.traced = order->traced,
				.before = on_before,
				.frozen = on_frozen,
				.collected = on_collected,
				.after = on_after,
				.ctx = s };
	struct native_news news = { 0 };
	bool lost;
	int r = receive_wanted(s, order->wanted_count, &wanted);

	if (r < 0)
		return r;
	t.wanted = wanted;
	s->reason = news.reason;
	s->records_fd = -1;
	r = take_snapshot(s->taker, &t, &news.result, news.reason);
	lost = r == -ENOTRECOVERABLE;
	r = send_done(s, r, &news, r == 0 ? s->records_fd : -1);
	close_fdp(&s->records_fd);
	/* Only the end of the tracer lets go of a thread that hangs in the kernel. */
	if (lost)
		_exit(EXIT_FAILURE);
	return r;
}

/* Memory pressure must not hit the one who can still let the job go; a refusal costs no more. */
static void settle(int nice_rounds)
{
	if (write_kernel_file("/proc/self/oom_score_adj", "-1000") < 0)
		(void)!write_kernel_file("/proc/self/oom_score_adj", "-500");
	if (nice_rounds)
		(void)!setpriority(PRIO_PROCESS, 0, nice_rounds);
}

static int start(struct server *s, const struct native_order *order, int fence_dir)
{
	struct take_config config = { .root = order->root,
				      .fence_dir = fence_dir < 0 ? NULL : &fence_dir,
				      .mem = order->mem };
	struct native_news news = { 0 };
	int r = -EPROTO;

	if (order->version == NATIVE_VERSION && !s->taker) {
		settle(order->nice_rounds);
		r = take_create(&config, &s->taker, news.reason);
	} else {
		snprintf(news.reason, NATIVE_REASON_MAX,
			 "decamp-capture is of another version than decampd");
	}
	return send_done(s, r, &news, -1);
}

static int check(struct server *s)
{
	struct native_news news = { 0 };
	int r = take_check(s->taker, news.reason);

	return send_done(s, r, &news, -1);
}

static int mend_fence(struct server *s, int fence_dir)
{
	struct native_fence fence;
	struct native_news news = { 0 };
	int r = fence_open(fence_dir, &fence);

	if (r == 0) {
		if (fence_is_up(&fence))
			(void)!fence_mend(&fence); /* our end follows, and frees who is stuck */
		fence_close(&fence);
	}
	return send_done(s, r, &news, -1);
}

static int obey(struct server *s, const struct native_order *order, int fd)
{
	switch (order->op) {
	case NATIVE_START:
		return start(s, order, fd);
	case NATIVE_MEND:
		return fd >= 0 ? mend_fence(s, fd) : -EBADMSG;
	case NATIVE_CHECK:
		return s->taker ? check(s) : -EBADMSG;
	case NATIVE_TAKE:
		return s->taker && fd >= 0 ? take(s, order, fd) : -EBADMSG;
	case NATIVE_ANSWER: /* to a question of an attempt that was given up */
		return 0;
	default:
		return -EBADMSG;
	}
}

int serve_main(int sock)
{
	struct server s = { .sock = sock, .records_fd = -1 };
	int r = 0;

	/* Not inherited by anybody; a write to a closed socket is an error, not an end. */
	if (fcntl(sock, F_SETFD, FD_CLOEXEC) < 0)
		return -errno;
	signal(SIGPIPE, SIG_IGN);
	while (r == 0) {
		_cleanup_close_ int fd = -1;
		struct native_order order;
		ssize_t n = recv_with_fd(sock, &order, sizeof(order), &fd, -1);

		if (n == 0 || n == -ECONNRESET)
			break;
		r = n == sizeof(order) ? obey(&s, &order, fd) : -EBADMSG;
	}
	take_destroy(s.taker);
	return r == -EPIPE ? 0 : r;
}
