// SPDX-License-Identifier: LGPL-2.1-or-later
#define LOG_TAG "restore"
#include "agent/restore/lazy.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "agent/restore/internal.h"
#include "agent/restore/lazy_internal.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum {
	RESTORE_FINISHED = 0x52535446, /* CRIU's word for "nothing more to come" */
	ZERO_RETRY_MS = 1,
	SHOW_MS = 500,
	UFFD_WAIT_MS = 5000,
};

#define SOCKET_NAME "lazy-pages.socket"

/* ---- what must be there at once ---- */

struct filler {
	const struct lazy_plan *plan;
	const struct manifest *m;
	int *fds; /* by file of the manifest; -1: none of ours */
};

static int write_run(const struct filler *f, uint32_t file, uint64_t block, uint64_t count,
		     const uint8_t *bytes)
{
	struct manifest_file info;
	uint64_t at = block * PACK_BLOCK, size = count * PACK_BLOCK;

	manifest_file(f->m, file, &info);
	/* A whole file's last block was padded; a cut image has whole pages only. */
	if (!lazy_plan_has(f->plan, file) && size > (uint64_t)info.st.st_size - at)
		size = (uint64_t)info.st.st_size - at;
	return pwrite_full(f->fds[file], bytes, (size_t)size, (off_t)at);
}

static int fill(void *ctx, uint32_t file, uint64_t block, uint32_t count, const uint8_t *bytes)
{
	const struct filler *f = ctx;
	const struct lazy_image *image = lazy_plan_has(f->plan, file);
	struct lazy_run part;
	uint64_t left = count;

	if (!image)
		return write_run(f, file, block, count, bytes);
	while (left > 0 && lazy_map_place(&image->now, block, left, &part)) {
		int r = write_run(f, file, part.page, part.count,
				  bytes + (part.block - block) * PACK_BLOCK);

		if (r < 0)
			return r;
		bytes += (part.block + part.count - block) * PACK_BLOCK;
		left -= part.block + part.count - block;
		block = part.block + part.count;
	}
	return 0;
}

/* Makes one pages image and appends its ranges. */
static int add_pages(const struct filler *f, int images_fd, uint32_t file,
		     struct reader_range *ranges, size_t *count)
{
	const struct lazy_image *image = lazy_plan_has(f->plan, file);
	struct manifest_file info;
	uint64_t size;
	int fd;

	manifest_file(f->m, file, &info);
	fd = place_regular(images_fd, info.path);
	if (fd < 0)
		return fd;
	f->fds[file] = fd;
	size = image ? image->now_pages * PACK_BLOCK : (uint64_t)info.st.st_size;
	if (ftruncate(fd, (off_t)size) < 0)
		return -errno;
	if (!image) {
		ranges[(*count)++] = (struct reader_range){ .file = file, .count = UINT64_MAX };
		return 0;
	}
	for (size_t i = 0; i < image->now.count; i++)
		ranges[(*count)++] = (struct reader_range){ .file = file,
							    .first = image->now.runs[i].block,
							    .count = image->now.runs[i].count };
	return 0;
}

static int read_now(const struct restore_request *q, struct recent *recent, struct filler *f,
		    const struct reader_range *ranges, size_t count)
{
	struct reader_config config = { .manifest = q->manifest,
					.job_key = q->job_key,
					.fetch = recent_fetch,
					.fetch_ctx = recent,
					.seed = q->seed,
					.sink = fill,
					.ctx = f };
	struct pack_reader *reader;
	int r = reader_create(&config, ranges, count, &reader);

	if (r < 0)
		return r;
	r = reader_run(reader);
	reader_destroy(reader);
	return r;
}

static int fill_now(const struct restore_request *q, struct recent *recent,
		    const struct lazy_plan *plan, int images_fd)
{
	size_t files = manifest_file_count(q->manifest), count = 0, runs = files;
	struct filler f = { .plan = plan, .m = q->manifest };
	_cleanup_free_ struct reader_range *ranges = NULL;
	int r = 0;

	for (size_t i = 0; i < plan->count; i++)
		runs += plan->images[i].now.count;
	ranges = calloc(runs + 1, sizeof(*ranges));
	f.fds = malloc((files + 1) * sizeof(*f.fds));
	if (!ranges || !f.fds)
		r = -ENOMEM;
	for (size_t i = 0; f.fds && i < files; i++)
		f.fds[i] = -1;
	for (size_t i = 0; i < files && r == 0; i++) {
		struct manifest_file info;

		manifest_file(q->manifest, i, &info);
		if (info.kind == FILE_IMAGE && lazy_is_pages_image(info.path))
			r = add_pages(&f, images_fd, (uint32_t)i, ranges, &count);
	}
	if (r == 0)
		r = read_now(q, recent, &f, ranges, count);
	for (size_t i = 0; f.fds && i < files; i++)
		close_fdp(&f.fds[i]);
	free(f.fds);
	return r;
}

/* ---- what comes later ---- */

static void on_starved(void *ctx, int error)
{
	struct restore_lazy *lazy = ctx;

	if (lazy->events.starved)
		lazy->events.starved(lazy->events.ctx, error);
}

static void on_reader_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
	struct restore_lazy *lazy = ctx;

	if (done_bytes == total_bytes && lazy->events.finished)
		lazy->events.finished(lazy->events.ctx);
}

/* sink, starved and progress get the restore_lazy, as all of them are called with one ctx. */
static int make_reader(const struct restore_request *q, struct restore_lazy *lazy)
{
	struct reader_config config = { .manifest = q->manifest,
					.job_key = q->job_key,
					.fetch = q->fetch,
					.fetch_ctx = q->fetch_ctx,
					.seed = q->seed,
					.sink = lazy_put,
					.tries_max = q->ret_lazy ? 0 : READER_TRIES,
					.ahead = !q->ret_lazy,
					.starved = on_starved,
					.progress = on_reader_progress,
					.ctx = lazy };
	_cleanup_free_ struct reader_range *ranges = NULL;
	size_t count = 0, n = 0;

	for (size_t i = 0; i < lazy->plan.count; i++)
		count += lazy->plan.images[i].later.count;
	ranges = calloc(count + 1, sizeof(*ranges));
	if (!ranges)
		return -ENOMEM;
	for (size_t i = 0; i < lazy->plan.count; i++) {
		const struct lazy_image *image = &lazy->plan.images[i];

		for (size_t k = 0; k < image->later.count; k++)
			ranges[n++] = (struct reader_range){ .file = image->file,
							     .first = image->later.runs[k].block,
							     .count = image->later.runs[k].count };
	}
	return reader_create(&config, ranges, n, &lazy->reader);
}

static int listen_in(int images_fd, int *ret_sock)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (sock < 0)
		return -errno;
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/" SOCKET_NAME,
		 images_fd);
	if (bind(sock, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(sock, 1) < 0)
		return -errno;
	*ret_sock = take_fd(sock);
	return 0;
}

static int write_marker(const char *state_dir, char **ret_path)
{
	_cleanup_free_ char *path = NULL;
	int fd;

	if (asprintf(&path, "%s/" LAZY_MARKER, state_dir) < 0)
		return -ENOMEM;
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	close(fd);
	*ret_path = take_ptr(path);
	return 0;
}

bool restore_is_partial(const char *state_dir)
{
	_cleanup_free_ char *path = NULL;

	/* Out of memory: better once more from the checkpoint than once with zeros. */
	return asprintf(&path, "%s/" LAZY_MARKER, state_dir) < 0 || access(path, F_OK) == 0;
}

/* let_go: the job is dead, or all of it is there. Else the keeper holds on, and freezes it. */
static void lazy_free(struct restore_lazy *lazy, bool let_go)
{
	uint64_t one = 1;

	if (lazy->error == 0)
		lazy->error = -ECANCELED;
	if (lazy->reader)
		reader_cancel(lazy->reader);
	if (lazy->threaded) {
		if (write(lazy->stop_fd, &one, sizeof(one)) < 0)
			log_errno(-errno, "lazy: stop");
		pthread_join(lazy->thread, NULL);
	}
	reader_destroy(lazy->reader);
	for (size_t i = 0; i < lazy->space_count; i++)
		space_free(lazy->spaces[i]);
	if (lazy->keeper && let_go && keeper_hold(lazy->keeper, -1) < 0)
		log_debug("lazy: the keeper is gone");
	keeper_detach(lazy->keeper);
	close_fdp(&lazy->listen);
	close_fdp(&lazy->sock);
	close_fdp(&lazy->stop_fd);
	lazy_plan_deinit(&lazy->plan);
	pthread_rwlock_destroy(&lazy->lock);
	free(lazy->marker);
	free(lazy);
}

int lazy_make(const struct restore_request *q, struct recent *recent, int images_fd,
	      struct restore_lazy **ret_lazy)
{
	struct restore_lazy *lazy = calloc(1, sizeof(*lazy));
	int r;

	if (!lazy)
		return -ENOMEM;
	lazy->listen = lazy->sock = lazy->stop_fd = -1;
	lazy->seed = q->seed;
	lazy->manifest = q->manifest;
	if (q->ret_lazy)
		lazy->events = q->lazy_events;
	pthread_rwlock_init(&lazy->lock, NULL);
	r = lazy_plan_make(images_fd, q->manifest, &lazy->plan);
	if (r == 0)
		r = fill_now(q, recent, &lazy->plan, images_fd);
	if (r == 0)
		r = make_reader(q, lazy);
	if (r == 0)
		r = listen_in(images_fd, &lazy->listen);
	if (r == 0)
		r = write_marker(q->state_dir, &lazy->marker);
	if (r == 0) {
		lazy->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = lazy->stop_fd < 0 ? -errno : 0;
	}
	/* The first packs come while CRIU makes the processes. */
	if (r == 0 && !q->ret_lazy && lazy_is_needed(lazy)) {
		r = reader_start(lazy->reader);
		lazy->reading = r == 0;
	}
	if (r < 0) {
		lazy_free(lazy, true);
		return r;
	}
	*ret_lazy = lazy;
	return 0;
}

/* ---- the thread ---- */

static int receive_uffd(int sock, int *ret_fd)
{
	struct pollfd pfd = { .fd = sock, .events = POLLIN };
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.bytes,
			      .msg_controllen = sizeof(control.bytes) };
	struct cmsghdr *c;

	if (poll(&pfd, 1, UFFD_WAIT_MS) <= 0 || recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) != 1)
		return -EPROTO;
	c = CMSG_FIRSTHDR(&msg);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS ||
	    c->cmsg_len != CMSG_LEN(sizeof(int)))
		return -EPROTO;
	memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
	return 0;
}

static int add_process(struct restore_lazy *lazy, pid_t pid)
{
	struct lazy_map map = { 0 };
	uint32_t file = UINT32_MAX;
	int fd, r = receive_uffd(lazy->sock, &fd);

	if (r < 0)
		return r;
	for (size_t i = 0; i < lazy->plan.count && r == 0; i++) {
		if (lazy->plan.images[i].pid != pid)
			continue;
		file = lazy->plan.images[i].file;
		r = lazy_map_copy(&lazy->plan.images[i].later, &map);
		break;
	}
	if (r < 0) {
		close(fd);
		return r;
	}
	pthread_rwlock_wrlock(&lazy->lock);
	r = space_add(lazy, fd, file, &map);
	pthread_rwlock_unlock(&lazy->lock);
	lazy_map_deinit(&map);
	return r;
}

/* CRIU's side of it: a PID and a descriptor for each process, a last word. */
static int on_criu(struct restore_lazy *lazy)
{
	int32_t word;
	ssize_t n = recv(lazy->sock, &word, sizeof(word), MSG_WAITALL);

	if (n == 0 || (n < 0 && errno == ECONNRESET)) {
		close_fdp(&lazy->sock);
		lazy->sock = -1;
		return 0;
	}
	if (n != sizeof(word))
		return -EPROTO;
	if (word == RESTORE_FINISHED) {
		lazy->complete = true;
		reader_let_go(lazy->reader);
		return 0;
	}
	return word < 0 ? 0 : add_process(lazy, word); /* negative: a zombie, it has no memory */
}

static int on_connect(struct restore_lazy *lazy)
{
	lazy->sock = accept4(lazy->listen, NULL, NULL, SOCK_CLOEXEC);
	if (lazy->sock < 0)
		return -errno;
	close_fdp(&lazy->listen);
	lazy->listen = -1;
	return 0;
}

/* 1: to end. */
static int turn(struct restore_lazy *lazy, struct pollfd *pfds)
{
	size_t count = lazy->space_count;
	int timeout_ms = -1, r = 0;

	pfds[0] = (struct pollfd){ .fd = lazy->stop_fd, .events = POLLIN };
	pfds[1] = (struct pollfd){ .fd = lazy->listen, .events = POLLIN };
	pfds[2] = (struct pollfd){ .fd = lazy->sock, .events = POLLIN };
	for (size_t i = 0; i < count; i++) {
		const struct space *s = lazy->spaces[i];

		pfds[3 + i] = (struct pollfd){ .fd = s->gone ? -1 : s->uffd, .events = POLLIN };
		if (s->zero_count > 0 && !s->gone)
			timeout_ms = ZERO_RETRY_MS;
	}
	if (poll(pfds, 3 + count, timeout_ms) < 0)
		return errno == EINTR ? 0 : -errno;
	if (pfds[0].revents)
		return 1;
	if (pfds[1].revents)
		r = on_connect(lazy);
	if (r == 0 && pfds[2].revents)
		r = on_criu(lazy);
	for (size_t i = 0; i < count && r == 0; i++) {
		if (pfds[3 + i].revents || lazy->spaces[i]->zero_count > 0)
			r = space_serve(lazy, lazy->spaces[i]);
	}
	return r;
}

static void *lazy_thread(void *arg)
{
	struct restore_lazy *lazy = arg;
	struct pollfd *pfds = calloc(LAZY_SPACES_MAX + 3, sizeof(*pfds));
	int r = pfds ? 0 : -ENOMEM;

	while (r == 0)
		r = turn(lazy, pfds);
	free(pfds);
	if (r > 0)
		return NULL;
	log_errno(r, "lazy: memory cannot be served");
	lazy->error = r;
	reader_cancel(lazy->reader);
	/* Nothing of it has run yet: an end with an error for CRIU, instead of waiting for ever. */
	if (!lazy->complete && keeper_kill(lazy->keeper) < 0)
		log_warn("lazy: the keeper does not answer");
	if (lazy->events.finished)
		lazy->events.finished(lazy->events.ctx);
	return NULL;
}

int lazy_start(struct restore_lazy *lazy, const char *run_dir)
{
	int r = keeper_attach(run_dir, &lazy->keeper);

	if (r == 0 && !lazy->reading)
		r = reader_start(lazy->reader);
	if (r == 0) {
		r = -pthread_create(&lazy->thread, NULL, lazy_thread, lazy);
		lazy->threaded = r == 0;
	}
	return r;
}

int lazy_fill(struct restore_lazy *lazy, const struct restore_request *q)
{
	int r = 0;

	lazy->filling = true;
	reader_let_go(lazy->reader);
	while (r == 0) {
		if (q->progress)
			q->progress(q->ctx, "memory", lazy->there,
				    lazy->plan.later_pages * PACK_BLOCK);
		r = restore_lazy_wait(lazy, SHOW_MS);
	}
	lazy->filling = false;
	return r < 0 ? r : 0;
}

bool lazy_is_needed(const struct restore_lazy *lazy)
{
	return lazy->plan.later_pages > 0;
}

void lazy_abandon(struct restore_lazy *lazy)
{
	if (!lazy)
		return;
	if (lazy->marker)
		unlink(lazy->marker);
	lazy_free(lazy, true);
}

/* ---- for the job's thread ---- */

int restore_lazy_wait(struct restore_lazy *lazy, int timeout_ms)
{
	int r = lazy->error < 0 ? lazy->error : reader_wait(lazy->reader, timeout_ms);

	return lazy->error < 0 ? lazy->error : r;
}

void restore_lazy_progress(struct restore_lazy *lazy, uint64_t *ret_done, uint64_t *ret_total)
{
	*ret_done = lazy->there;
	*ret_total = lazy->plan.later_pages * PACK_BLOCK;
}

void restore_lazy_end(struct restore_lazy *lazy)
{
	const struct manifest *manifest = lazy ? lazy->manifest : NULL;
	struct packer *seed = lazy ? lazy->seed : NULL;
	_cleanup_free_ char *marker = NULL;
	bool whole;

	if (!lazy)
		return;
	whole = restore_lazy_wait(lazy, 0) == 1;
	marker = take_ptr(lazy->marker);
	/* Its threads teach the seed until they are gone. */
	lazy_free(lazy, true);
	if (seed && whole && packer_seed_end(seed, manifest) < 0)
		log_warn("lazy: the next checkpoint sends everything");
	else if (seed && !whole)
		packer_seed_abort(seed);
	/* Last: a decampd that is killed before this begins the job anew. */
	if (whole && unlink(marker) < 0)
		log_errno(-errno, "lazy: %s", marker);
}

void restore_lazy_leave(struct restore_lazy *lazy)
{
	struct packer *seed = lazy->seed;

	lazy_free(lazy, false);
	if (seed)
		packer_seed_abort(seed);
}
