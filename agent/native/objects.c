// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Shared memory objects: whoever maps or writes them, no mm tells of it. So each is read and hashed
 * whole in the pause, and only what differs is copied; pre-copy reads what the job maps.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/native/mem_internal.h"

enum { OBJECT_PAGES_MAX = 1ULL << 40 >> 12 };

static struct mem_object *find_object(const struct native_mem *m, uint64_t dev, uint64_t ino)
{
	for (size_t i = 0; i < m->object_count; i++)
		if (m->objects[i]->dev == dev && m->objects[i]->ino == ino)
			return m->objects[i];
	return NULL;
}

static struct mem_object *add_object(struct native_mem *m, uint64_t dev, uint64_t ino)
{
	size_t room = m->object_room ? m->object_room * 2 : 16;
	struct mem_object *o, **v;

	if (m->object_count == m->object_room) {
		v = reallocarray(m->objects, room, sizeof(*v));
		if (!v)
			return NULL;
		m->objects = v;
		m->object_room = room;
	}
	o = calloc(1, sizeof(*o));
	if (!o)
		return NULL;
	o->dev = dev;
	o->ino = ino;
	o->space.compare = true;
	o->space.pages_id = ++m->last_pages_id;
	m->objects[m->object_count++] = o;
	return o;
}

static void free_object(struct mem_object *o)
{
	space_deinit(&o->space);
	free(o);
}

void objects_destroy(struct native_mem *m)
{
	for (size_t i = 0; i < m->object_count; i++)
		free_object(m->objects[i]);
	free(m->objects);
	m->objects = NULL;
	m->object_count = 0;
}

/* What lies beyond the end of the file reads as zero. */
static int read_pages(int fd, uint64_t page, size_t count, uint8_t *to)
{
	size_t size = count * NATIVE_PAGE, done = 0;

	while (done < size) {
		ssize_t n = pread(fd, to + done, size - done, (off_t)(page * NATIVE_PAGE + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	memset(to + done, 0, size - done);
	return 0;
}

/* Pages of the scratch buffer, all changed, into the batch. */
static int put_changed(struct native_mem *m, struct mem_space *s, uint64_t page,
		       const uint8_t *from, size_t count)
{
	while (count) {
		uint8_t *to;
		size_t n;
		int r = batch_room(m, s, page, count, &to, &n);

		if (r < 0)
			return r;
		memcpy(to, from, n * NATIVE_PAGE);
		if (m->batch.paused)
			m->counts.residue_bytes += n * NATIVE_PAGE;
		page += n;
		from += n * NATIVE_PAGE;
		count -= n;
	}
	return 0;
}

static int read_chunk(struct native_mem *m, struct mem_space *s, int fd, uint64_t page,
		      size_t count)
{
	size_t changed = 0; /* that many before n */
	int r = read_pages(fd, page, count, m->scratch);

	for (size_t n = 0; n <= count && r == 0; n++) {
		const uint8_t *p = m->scratch + n * NATIVE_PAGE;

		if (n < count && !space_knows(m, s, page + n, XXH3_128bits(p, NATIVE_PAGE))) {
			changed++;
			continue;
		}
		r = put_changed(m, s, page + n - changed, p - changed * NATIVE_PAGE, changed);
		changed = 0;
	}
	m->counts.read_bytes += count * NATIVE_PAGE;
	return r;
}

/* Nothing is known of it: no use in hashing before it is written. */
static int read_new(struct native_mem *m, struct mem_space *s, int fd, uint64_t page, size_t count)
{
	while (count) {
		uint8_t *to;
		size_t n;
		int r = batch_room(m, s, page, count, &to, &n);

		if (r == 0)
			r = read_pages(fd, page, n, to);
		if (r < 0)
			return r;
		if (m->batch.paused)
			m->counts.residue_bytes += n * NATIVE_PAGE;
		m->counts.read_bytes += n * NATIVE_PAGE;
		page += n;
		count -= n;
	}
	return 0;
}

static int read_range(struct native_mem *m, struct mem_space *s, int fd, uint64_t page,
		      uint64_t count)
{
	bool known = s->map.count || s->fresh.count;
	int r = 0;

	while (count && r == 0) {
		size_t n = count < SCRATCH_PAGES ? (size_t)count : SCRATCH_PAGES;

		r = known ? read_chunk(m, s, fd, page, n) : read_new(m, s, fd, page, n);
		page += n;
		count -= n;
	}
	return r;
}

/* Reads what differs from what is known; holes are noted as gone. */
static int read_object(struct native_mem *m, struct mem_object *o, int fd)
{
	uint64_t pages = (o->size + NATIVE_PAGE - 1) / NATIVE_PAGE, at = 0;
	int r = 0;

	if (pages > OBJECT_PAGES_MAX)
		return -EFBIG;
	while (at < pages && r == 0) {
		off_t found = lseek(fd, (off_t)(at * NATIVE_PAGE), SEEK_DATA), hole;
		uint64_t start, end;

		if (found < 0 && errno == ENXIO)
			break;
		start = found < 0 ? at : (uint64_t)found / NATIVE_PAGE;
		hole = found < 0 ? -1 : lseek(fd, found, SEEK_HOLE);
		end = hole < 0 ? pages : ((uint64_t)hole + NATIVE_PAGE - 1) / NATIVE_PAGE;
		if (start >= pages)
			break;
		if (end > pages)
			end = pages;
		if (start > at)
			r = runs_add(&o->space.drops, at, start - at, 0);
		if (r == 0)
			r = read_range(m, &o->space, fd, start, end - start);
		at = end;
	}
	if (r == 0)
		r = runs_add(&o->space.drops, at, RUN_BLOCK_MASK - at, 0);
	return r;
}

/* A file of our own: seeking in the borrowed one would move the job's position. */
static int reopen(int fd)
{
	char path[64];
	int own;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	own = open(path, O_RDONLY | O_CLOEXEC);
	return own < 0 ? -errno : own;
}

int mem_add_object(struct native_mem *m, struct native_tree *tree, uint32_t shmid, uint64_t dev,
		   uint64_t ino, uint64_t size, int fd)
{
	struct mem_object *o = find_object(m, dev, ino);
	_cleanup_close_ int own = -1;
	uint64_t start = mem_clock_ns();
	int r;

	if (o && o->seen)
		return 0;
	if (!o)
		o = add_object(m, dev, ino);
	own = o ? reopen(fd) : -ENOMEM;
	if (own < 0)
		return native_fail(tree, own, "shared memory %u cannot be opened: %s", shmid,
				   strerror(-own));
	m->batch.paused = true;
	o->seen = true;
	o->shmid = shmid;
	o->size = size;
	if (m->config.broken & MEM_BROKEN_SHMEM && o->precopied)
		return 0;
	r = read_object(m, o, own);
	m->counts.object_us += (uint32_t)((mem_clock_ns() - start) / 1000);
	if (r < 0)
		return native_fail(tree, r, "shared memory %u cannot be read: %s", shmid,
				   strerror(-r));
	return 0;
}

/* Memory without a name that files.h will announce as an object. */
static bool is_object(const struct native_mem *m, const struct state_vma *v)
{
	if (!v->file || !S_ISREG(v->mode) || v->nlink)
		return false;
	if (find_object(m, v->dev, v->ino))
		return true;
	return v->vm_flags & VMA_SHARED && !(v->vm_flags & (VMA_HUGETLB | VMA_IO | VMA_PFNMAP)) &&
	       (!strncmp(v->path, "/memfd:", 7) || !strncmp(v->path, "/SYSV", 5) ||
		!strcmp(v->path, "/dev/zero (deleted)"));
}

static int precopy_one(struct native_mem *m, const struct native_task *task,
		       const struct state_vma *v)
{
	struct mem_object *o = find_object(m, v->dev, v->ino);
	_cleanup_close_ int fd = -1;
	struct stat st;
	char path[96];
	int r;

	if (o && o->precopied)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", task->pid,
		 (unsigned long long)v->start, (unsigned long long)v->end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	/* It was unmapped just now, or is of a kind that cannot be opened: the pause does it. */
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_ino != v->ino)
		return 0;
	if (!o)
		o = add_object(m, v->dev, v->ino);
	if (!o)
		return -ENOMEM;
	o->size = (uint64_t)st.st_size;
	o->precopied = true;
	r = read_object(m, o, fd);
	if (r == 0)
		r = batch_flush(m);
	return r == 0 ? space_settle(&o->space) : r;
}

int objects_precopy(struct native_mem *m, const struct native_task *task,
		    const struct state_vma *vmas, size_t count)
{
	int r = 0;

	for (size_t i = 0; i < count && r == 0; i++)
		if (is_object(m, &vmas[i]))
			r = precopy_one(m, task, &vmas[i]);
	return r;
}

static int write_one(struct native_mem *m, struct native_tree *tree, struct mem_object *o)
{
	char name[64];
	int r = space_settle(&o->space);

	if (r == 0)
		r = runs_overlay(&o->space.map, &o->space.fresh, true);
	if (r < 0)
		return r;
	o->space.fresh.count = 0;
	snprintf(name, sizeof(name), "pagemap-shmem-%u", o->shmid);
	return space_write(m, tree, &o->space, name);
}

int objects_write(struct native_mem *m, struct native_tree *tree)
{
	size_t kept = 0;
	int r = 0;

	for (size_t i = 0; i < m->object_count; i++) {
		struct mem_object *o = m->objects[i];

		if (!o->seen) {
			free_object(o);
			continue;
		}
		m->objects[kept++] = o;
		if (r == 0)
			r = write_one(m, tree, o);
	}
	m->object_count = kept;
	return r;
}
