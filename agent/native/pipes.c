// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Pipes and FIFOs with their content, which tee(2) takes without touching it: the pages are shared
 * with a pipe of ours and read out when the job runs again. What the job appends meanwhile lies
 * beyond the length that we have.
 */
#include "agent/native/pipes_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>

enum { PIPE_BUCKETS = 64, PIPE_READ = 16384 };

/* A pipe, whatever number of ends of it the job has. */
struct pipe_object {
	struct pipe_object *next;
	uint64_t ino;
	uint32_t dev;
	bool fifo, read_end, write_end, taken;
	struct native_open *any; /* a reading end if there is one */
	uint32_t size, bytes;
	int content; /* our pipe with the same bytes, -1 */
};

struct pipe_open {
	struct pipe_object *pipe;
	uint32_t regf_id; /* FIFOs */
};

struct pipe_area {
	struct pipe_object *buckets[PIPE_BUCKETS];
	int spare[2]; /* an empty pipe of ours, -1 */
	uint32_t spare_size;
};

static bool match(const struct state_fd *fd, const char *path)
{
	(void)path;
	return S_ISFIFO(fd->mode);
}

static int area_get(struct native_files *f, struct pipe_area **ret_area)
{
	struct pipe_area *a = f->area_facts[AREA_PIPES];

	if (!a) {
		a = arena_alloc(f->tree->arena, sizeof(*a));
		if (!a)
			return -ENOMEM;
		a->spare[0] = a->spare[1] = -1;
		f->area_facts[AREA_PIPES] = a;
	}
	*ret_area = a;
	return 0;
}

static int object_of(struct native_files *f, struct native_open *o, struct pipe_object **ret_pipe)
{
	struct pipe_area *a;
	struct pipe_object *p;
	int r = area_get(f, &a);

	if (r < 0)
		return r;
	for (p = a->buckets[o->fd->ino % PIPE_BUCKETS]; p; p = p->next)
		if (p->ino == o->fd->ino && p->dev == o->fd->dev)
			break;
	if (!p) {
		p = arena_alloc(f->tree->arena, sizeof(*p));
		if (!p)
			return -ENOMEM;
		p->ino = o->fd->ino;
		p->dev = o->fd->dev;
		p->fifo = o->path[0] == '/';
		p->content = -1;
		p->next = a->buckets[p->ino % PIPE_BUCKETS];
		a->buckets[p->ino % PIPE_BUCKETS] = p;
	}
	*ret_pipe = p;
	return 0;
}

static int check_kind(struct native_files *f, struct native_open *o)
{
	if (!S_ISFIFO(o->fd->mode) || (o->path[0] != '/' && strncmp(o->path, "pipe:[", 6) != 0))
		return files_refuse(f, o, "is a pipe that cannot be named");
	if (o->fd->f_flags & O_DIRECT)
		return files_refuse(f, o, "is a pipe in packet mode");
	if (o->fd->ino > UINT32_MAX)
		return files_refuse(f, o, "has an inode number that images cannot hold");
	return 0;
}

static int collect(struct native_files *f, struct native_open *o)
{
	struct pipe_open *facts = arena_alloc(f->tree->arena, sizeof(*facts));
	uint32_t mode = o->fd->f_flags & O_ACCMODE;
	int r = facts ? check_kind(f, o) : -ENOMEM;

	if (r == 0)
		r = object_of(f, o, &facts->pipe);
	if (r < 0)
		return r;
	o->facts = facts;
	o->type = facts->pipe->fifo ? NAT_FILES__FILE_TYPE__FIFO : NAT_FILES__FILE_TYPE__PIPE;
	if (mode != O_WRONLY && !facts->pipe->read_end) {
		facts->pipe->read_end = true;
		facts->pipe->any = o;
	}
	if (mode != O_RDONLY)
		facts->pipe->write_end = true;
	if (!facts->pipe->any)
		facts->pipe->any = o;
	return facts->pipe->fifo && !f->checking ? files_reg_of(f, o, &facts->regf_id) : 0;
}

static int get_spare(struct native_files *f, struct pipe_area *a, uint32_t size)
{
	int n;

	if (a->spare[0] < 0) {
		if (pipe2(a->spare, O_CLOEXEC | O_NONBLOCK) < 0)
			return native_fail(f->tree, -errno, "pipe: %s", strerror(errno));
		n = fcntl(a->spare[0], F_GETPIPE_SZ);
		a->spare_size = n < 0 ? 0 : (uint32_t)n;
	}
	if (a->spare_size < size) {
		n = fcntl(a->spare[0], F_SETPIPE_SZ, size);
		if (n < 0)
			return native_fail(f->tree, -errno, "pipe of %u bytes: %s", size,
					   strerror(errno));
		a->spare_size = (uint32_t)n;
	}
	return 0;
}

/* *ret_bytes < 0: empty, and somebody can write; 0: empty for ever. */
static int take_content(struct native_files *f, struct pipe_object *p, int fd, ssize_t *ret_bytes)
{
	struct pipe_area *a;
	int r = area_get(f, &a);
	ssize_t n;

	if (r == 0)
		r = get_spare(f, a, p->size);
	if (r < 0)
		return r;
	n = tee(fd, a->spare[1], p->size, SPLICE_F_NONBLOCK);
	if (n < 0 && errno != EAGAIN)
		return files_refuse(f, p->any, "cannot be read: %s", strerror(errno));
	if (n > 0) {
		int queued = 0;

		if (ioctl(fd, FIONREAD, &queued) < 0 || queued != n)
			return files_refuse(f, p->any, "has %d bytes, of which %zd can be read",
					    queued, n);
		p->content = a->spare[0];
		p->bytes = (uint32_t)n;
		close_fdp(&a->spare[1]);
		a->spare[0] = a->spare[1] = -1;
	}
	*ret_bytes = n;
	return 0;
}

static bool polls(int fd, short event)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN | POLLOUT };

	return poll(&pfd, 1, 0) >= 0 && (pfd.revents & event);
}

/* An end that the job does not have must not exist, or restore would cut it off. */
static bool is_cut(const struct pipe_object *p, int fd, ssize_t bytes)
{
	if (!p->write_end && bytes != 0 && !(bytes > 0 && polls(fd, POLLHUP)))
		return true;
	return !p->read_end && !polls(fd, POLLERR);
}

static int collect_pipe(struct native_files *f, struct pipe_object *p)
{
	ssize_t bytes = -1;
	int fd, size, r = open_local(f, p->any, &fd);

	if (r < 0)
		return r;
	size = fcntl(fd, F_GETPIPE_SZ);
	if (size < 0)
		return files_refuse(f, p->any, "does not tell its size: %s", strerror(errno));
	p->size = (uint32_t)size;
	if (p->read_end)
		r = take_content(f, p, fd, &bytes);
	if (r == 0 && is_cut(p, fd, bytes))
		r = f->checking ?
			    pipe_check_holders(f, p->any, p->read_end) :
			    files_refuse(f, p->any, "is a pipe whose %s is outside of the job",
					 p->read_end ? "writer" : "reader");
	open_local_close(p->any);
	return r;
}

/*
 * The ends of a running job come and go while its processes are read one after the other, so only
 * somebody who is found with the other end counts.
 */
static int check_all(struct native_files *f)
{
	struct pipe_area *a = f->area_facts[AREA_PIPES];

	for (size_t i = 0; a && i < PIPE_BUCKETS; i++) {
		for (struct pipe_object *p = a->buckets[i]; p; p = p->next) {
			if ((!p->read_end || !p->write_end) && collect_pipe(f, p) == -EOPNOTSUPP)
				return -EOPNOTSUPP;
			/* Gone meanwhile: then it is no matter. */
			f->tree->reason[0] = '\0';
		}
	}
	return 0;
}

static int collect_all(struct native_files *f)
{
	struct pipe_area *a = f->area_facts[AREA_PIPES];
	int r = 0;

	if (!a)
		return 0;
	for (size_t i = 0; r == 0 && i < PIPE_BUCKETS; i++)
		for (struct pipe_object *p = a->buckets[i]; r == 0 && p; p = p->next)
			r = collect_pipe(f, p);
	return r;
}

static int write_open(struct native_files *f, struct native_open *o)
{
	const struct pipe_open *facts = o->facts;
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__Fown fown = NAT_FILES__FOWN__INIT;
	NatFiles__Pipe pipe_entry = NAT_FILES__PIPE__INIT;
	NatFiles__Fifo fifo = NAT_FILES__FIFO__INIT;

	if (facts->pipe->fifo) {
		fifo.id = o->id;
		fifo.pipe_id = (uint32_t)o->fd->ino;
		fifo.has_regf_id = true;
		fifo.regf_id = facts->regf_id;
		file.fifo = &fifo;
	} else {
		open_fown(o, &fown);
		pipe_entry.id = o->id;
		pipe_entry.pipe_id = (uint32_t)o->fd->ino;
		pipe_entry.flags = open_flags(o);
		pipe_entry.fown = &fown;
		file.pipe = &pipe_entry;
	}
	files_put(f, o, &file);
	return 0;
}

static int put_pipe(struct img *img, const struct pipe_object *p)
{
	NatFiles__PipeData e = NAT_FILES__PIPE_DATA__INIT;
	uint8_t buffer[PIPE_READ];
	uint32_t left = p->bytes;

	e.pipe_id = (uint32_t)p->ino;
	e.bytes = p->bytes;
	e.has_size = true;
	e.size = p->size;
	img_put(img, &e.base);
	while (left > 0) {
		ssize_t n = read(p->content, buffer, left < PIPE_READ ? left : PIPE_READ);

		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		img_put_raw(img, buffer, (size_t)n);
		left -= (uint32_t)n;
	}
	return 0;
}

static int write_content(struct native_files *f, const struct pipe_area *a, bool fifo)
{
	struct img *img = NULL;
	int r = 0, closed = 0;

	for (size_t i = 0; r == 0 && i < PIPE_BUCKETS; i++) {
		for (const struct pipe_object *p = a->buckets[i]; r == 0 && p; p = p->next) {
			if (p->fifo != fifo || !p->read_end)
				continue;
			if (!img)
				r = img_create(f->tree->images, fifo ? "fifo-data" : "pipes-data",
					       &img);
			if (r == 0)
				r = put_pipe(img, p);
		}
	}
	if (img)
		closed = img_close(img);
	return r < 0 ? r : closed;
}

static int write_all(struct native_files *f)
{
	const struct pipe_area *a = f->area_facts[AREA_PIPES];
	int r;

	if (!a)
		return 0;
	r = write_content(f, a, false);
	return r < 0 ? r : write_content(f, a, true);
}

static void destroy(struct native_files *f)
{
	struct pipe_area *a = f->area_facts[AREA_PIPES];

	if (!a)
		return;
	close_fdp(&a->spare[0]);
	close_fdp(&a->spare[1]);
	a->spare[0] = a->spare[1] = -1;
	for (size_t i = 0; i < PIPE_BUCKETS; i++) {
		for (struct pipe_object *p = a->buckets[i]; p; p = p->next) {
			close_fdp(&p->content);
			p->content = -1;
		}
	}
}

const struct native_area area_pipes = {
	.index = AREA_PIPES,
	.name = "pipes",
	.match = match,
	.check = collect,
	.check_all = check_all,
	.collect = collect,
	.collect_all = collect_all,
	.write = write_open,
	.write_all = write_all,
	.destroy = destroy,
};
