// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * memfds and shared anonymous memory. CRIU 4.2 writes both as memfds: the latter is an unlinked
 * file "/dev/zero" of the kernel's own tmpfs.
 *
 *   memfd.img: MemfdInode <- files.img: MemfdFile, one for each open file and one for all maps
 *   pagemap-shmem-<shmid>.img: the content (mem.h)
 */
#include "agent/native/shm_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/mman.h>

#include "agent/native/ipc.pb-c.h"

enum {
	GET_SEALS = 1034, /* F_GET_SEALS */
	SEAL_SEAL = 1,
	VM_SHARED_BIT = 0x8, /* of state_vma.vm_flags */
	LINK_BYTES = 4096,
	/* System V ids end below; a memfd's shmid must never be one of theirs. */
	SHMID_FIRST = 1U << 31,
};

enum shm_kind { KIND_NONE, KIND_MEMFD, KIND_ANON, KIND_SYSV, KIND_HUGE, KIND_SECRET };

static const char deleted_mark[] = " (deleted)";
static const char memfd_mark[] = "/memfd:";

/* Only files without a name: what a user makes of such names has one, or had one elsewhere. */
static enum shm_kind kind_of(uint32_t mode, uint32_t nlink, const char *path)
{
	if (!S_ISREG(mode) || nlink != 0 || path[0] != '/')
		return KIND_NONE;
	if (strncmp(path, memfd_mark, strlen(memfd_mark)) == 0)
		return KIND_MEMFD;
	if (strcmp(path, "/dev/zero (deleted)") == 0)
		return KIND_ANON;
	if (strncmp(path, "/SYSV", 5) == 0)
		return KIND_SYSV;
	if (strncmp(path, "/anon_hugepage", 14) == 0)
		return KIND_HUGE;
	if (strncmp(path, "/secretmem", 10) == 0)
		return KIND_SECRET;
	return KIND_NONE;
}

/* The device that memfds lie on, as records show it; 0: not known. */
static uint32_t shm_device(void)
{
	_cleanup_close_ int fd = memfd_create("decamp", MFD_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return 0;
	return major(st.st_dev) << 20 | minor(st.st_dev);
}

static bool match(const struct state_fd *fd, const char *path)
{
	return kind_of(fd->mode, fd->nlink, path) != KIND_NONE;
}

/* A long name leaves the record without a path: the device tells. */
static bool match_vma(const struct state_vma *vma)
{
	if (!vma->file)
		return false;
	if (!vma->path[0] && S_ISREG(vma->mode) && vma->nlink == 0)
		return vma->dev == shm_device();
	return kind_of(vma->mode, vma->nlink, vma->path) != KIND_NONE;
}

static struct shm_area *area_of(struct native_files *f)
{
	struct shm_area *a = f->area_facts[AREA_SHM];

	if (!a) {
		a = arena_alloc(f->tree->arena, sizeof(*a));
		if (!a)
			return NULL;
		a->last = &a->first;
		a->device = shm_device();
		f->area_facts[AREA_SHM] = a;
	}
	return a;
}

static size_t bucket_of(uint64_t ino)
{
	return (size_t)(ino * 0x9e3779b97f4a7c15 >> 32) % SHM_BUCKETS;
}

struct shm_object *shm_find(const struct shm_area *a, bool sysv, uint64_t ino)
{
	struct shm_object *o = a->buckets[bucket_of(ino)];

	while (o && (o->ino != ino || o->sysv != sysv))
		o = o->chain;
	return o;
}

static bool has_shmid(const struct shm_area *a, uint32_t shmid)
{
	for (const struct shm_object *o = a->first; o; o = o->next)
		if (!o->sysv && o->shmid == shmid)
			return true;
	return false;
}

static struct shm_object *add_object(struct native_files *f, struct shm_area *a, bool sysv,
				     uint32_t dev, uint64_t ino)
{
	struct shm_object *o = arena_alloc(f->tree->arena, sizeof(*o));
	size_t b = bucket_of(ino);

	if (!o)
		return NULL;
	o->sysv = sysv;
	o->dev = dev;
	o->ino = ino;
	o->chain = a->buckets[b];
	a->buckets[b] = o;
	o->shmid = (uint32_t)ino;
	if (!sysv) {
		o->inode_id = files_new_id(f);
		/* The same in each snapshot; inode numbers are 64 bits wide. */
		o->shmid = SHMID_FIRST | (uint32_t)ino;
		if (ino >> 31)
			while (has_shmid(a, o->shmid))
				o->shmid = SHMID_FIRST | (o->shmid + 1);
	}
	*a->last = o;
	a->last = &o->next;
	return o;
}

int shm_open_map(const struct native_task *task, uint64_t start, uint64_t end)
{
	char path[96];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", task->pid,
		 (unsigned long long)start, (unsigned long long)end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* "/memfd:NAME (deleted)" -> NAME; the kernel's own "/dev/zero" keeps its slash. */
static char *copy_name(struct native_files *f, const char *path)
{
	size_t length = strlen(path), mark = strlen(deleted_mark);
	char *name;

	if (length >= mark && strcmp(path + length - mark, deleted_mark) == 0)
		length -= mark;
	if (strncmp(path, memfd_mark, strlen(memfd_mark)) == 0) {
		path += strlen(memfd_mark);
		length -= strlen(memfd_mark);
	}
	name = arena_alloc(f->tree->arena, length + 1);
	if (name)
		memcpy(name, path, length);
	return name;
}

/* What the inode is like, and its content. */
static int fill(struct native_files *f, struct shm_object *o, int fd, const char *path)
{
	int seals = fcntl(fd, GET_SEALS);
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	o->size = (uint64_t)st.st_size;
	o->uid = st.st_uid;
	o->gid = st.st_gid;
	o->mode = st.st_mode;
	o->seals = seals < 0 ? SEAL_SEAL : (uint32_t)seals;
	o->name = copy_name(f, path);
	if (!o->name)
		return -ENOMEM;
	if (o->size == 0)
		return 0;
	return mem_add_object(f->mem, f->tree, o->shmid, o->dev, o->ino, o->size, fd);
}

static int refuse_kind(struct native_files *f, struct native_open *o, enum shm_kind kind,
		       const struct shm_area *a)
{
	if (kind == KIND_SECRET)
		return files_refuse(f, o, "is secret memory");
	if (kind == KIND_HUGE || (a && o->fd->dev != a->device))
		return files_refuse(f, o,
				    "is memory of huge pages, or a deleted file named like it");
	if (kind == KIND_SYSV)
		return files_refuse(f, o, "is a System V segment opened as a file");
	return 0;
}

static int check(struct native_files *f, struct native_open *o)
{
	struct shm_area *a = area_of(f);

	return a ? refuse_kind(f, o, kind_of(o->fd->mode, o->fd->nlink, o->path), a) : -ENOMEM;
}

static int collect_new(struct native_files *f, struct native_open *o, struct shm_object *object)
{
	int fd, r = open_local(f, o, &fd);

	return r < 0 ? r : fill(f, object, fd, o->path);
}

static int collect(struct native_files *f, struct native_open *o)
{
	struct shm_area *a = area_of(f);
	struct shm_object *object;
	int r = check(f, o);

	if (r < 0)
		return r;
	object = shm_find(a, false, o->fd->ino);
	if (!object) {
		object = add_object(f, a, false, o->fd->dev, o->fd->ino);
		r = object ? collect_new(f, o, object) : -ENOMEM;
		open_local_close(o);
	}
	if (r < 0)
		return native_fail(f->tree, r, "descriptor %d of process %d: a memfd: %s",
				   o->fd->fd, o->task->pid, strerror(-r));
	o->type = NAT_FILES__FILE_TYPE__MEMFD;
	o->facts = object;
	return 0;
}

static int refuse_map(struct native_files *f, const struct native_task *task,
		      const struct state_vma *vma, const char *what)
{
	return native_fail(f->tree, -EOPNOTSUPP, "process %d maps %s at %llx: %s",
			   task->inner_pid ? task->inner_pid : task->pid, vma->path,
			   (unsigned long long)vma->start, what);
}

static bool continues(const struct state_vma *before, const struct state_vma *v)
{
	return before->end == v->start && before->ino == v->ino && before->dev == v->dev &&
	       v->offset == before->offset + (before->end - before->start);
}

/* shmat(2) attaches all of a segment: a restore cannot make a part of it. */
static bool is_whole(const struct native_task *task, size_t i)
{
	const struct state_vma *v = &task->vmas[i];
	uint64_t last = v->offset + (v->end - v->start);
	uint64_t size = (v->size + NATIVE_PAGE - 1) & ~(uint64_t)(NATIVE_PAGE - 1);

	if (v->offset != 0 && (i == 0 || !continues(v - 1, v)))
		return false;
	return last == size || (i + 1 < task->vma_count && continues(v, v + 1));
}

static int collect_segment(struct native_files *f, struct shm_area *a, struct native_task *task,
			   size_t i)
{
	const struct state_vma *v = &task->vmas[i];
	struct shm_object *o = shm_find(a, true, v->ino);

	if (!f->tree->own_ipc_ns)
		return refuse_map(f, task, v, "a System V segment of the host's IPC namespace");
	if (v->ino > INT32_MAX)
		return refuse_map(f, task, v, "a System V segment with a strange id");
	if (!is_whole(task, i))
		return refuse_map(f, task, v, "a part of a System V segment");
	if (!o) {
		o = add_object(f, a, true, v->dev, v->ino);
		if (!o)
			return -ENOMEM;
		o->task = task;
		o->start = v->start;
		o->end = v->end;
	}
	task->vma_file_ids[i] = (uint32_t)v->ino;
	task->vma_status[i] |= SHM_ANON_SHARED | SHM_SYSVIPC;
	return 0;
}

/* Its name, when the record has no room for it. */
static const char *path_of(const struct native_task *task, const struct state_vma *v, char *text,
			   size_t size)
{
	char link[96];
	ssize_t n;

	if (v->path[0])
		return v->path;
	snprintf(link, sizeof(link), "/proc/%d/map_files/%llx-%llx", task->pid,
		 (unsigned long long)v->start, (unsigned long long)v->end);
	n = readlink(link, text, size - 1);
	if (n < 0)
		return NULL;
	text[n] = '\0';
	return text;
}

static int collect_mapped(struct native_files *f, struct native_task *task,
			  const struct state_vma *v, struct shm_object *o, const char *path)
{
	_cleanup_close_ int fd = shm_open_map(task, v->start, v->end);

	return fd < 0 ? fd : fill(f, o, fd, path);
}

static int collect_vma(struct native_files *f, struct native_task *task, size_t i)
{
	const struct state_vma *v = &task->vmas[i];
	struct shm_area *a = area_of(f);
	char text[LINK_BYTES];
	const char *path = path_of(task, v, text, sizeof(text));
	enum shm_kind kind = path ? kind_of(v->mode, v->nlink, path) : KIND_NONE;
	struct shm_object *o;
	int r = 0;

	if (!a)
		return -ENOMEM;
	if (kind == KIND_NONE || kind == KIND_SECRET || kind == KIND_HUGE || v->dev != a->device)
		return refuse_map(f, task, v, "memory of a kind that is not covered");
	if (kind == KIND_SYSV)
		return collect_segment(f, a, task, i);
	o = shm_find(a, false, v->ino);
	if (!o) {
		o = add_object(f, a, false, v->dev, v->ino);
		r = o ? collect_mapped(f, task, v, o, path) : -ENOMEM;
	}
	if (r < 0)
		return native_fail(f->tree, r, "process %d maps %s: %s", task->pid, path,
				   strerror(-r));
	if (!o->map_id)
		o->map_id = files_new_id(f);
	task->vma_file_ids[i] = o->map_id;
	task->vma_status[i] |= SHM_MEMFD |
			       (v->vm_flags & VM_SHARED_BIT ? SHM_FILE_SHARED : SHM_FILE_PRIVATE);
	return 0;
}

static int collect_all(struct native_files *f)
{
	struct shm_area *a;

	if (!f->tree->own_ipc_ns)
		return 0;
	a = area_of(f);
	return a ? sysv_collect(f, a) : -ENOMEM;
}

static void put_file(struct native_files *f, const struct native_open *o, uint32_t map_id,
		     const struct shm_object *object)
{
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__MemfdFile m = NAT_FILES__MEMFD_FILE__INIT;
	NatFiles__Fown fown = NAT_FILES__FOWN__INIT;

	m.inode_id = object->inode_id;
	m.fown = &fown;
	file.memfd = &m;
	if (o) {
		open_fown(o, &fown);
		m.id = o->id;
		m.flags = open_flags(o);
		m.pos = o->fd->pos;
		files_put(f, o, &file);
		return;
	}
	m.id = file.id = map_id;
	file.type = NAT_FILES__FILE_TYPE__MEMFD;
	files_put_entry(f, &file);
}

static int write_one(struct native_files *f, struct native_open *o)
{
	put_file(f, o, 0, o->facts);
	return 0;
}

static void put_inode(struct img *image, const struct shm_object *o)
{
	NatIpc__MemfdInode m = NAT_IPC__MEMFD_INODE__INIT;

	m.name = o->name;
	m.uid = o->uid;
	m.gid = o->gid;
	m.size = o->size;
	m.shmid = o->shmid;
	m.seals = o->seals;
	m.inode_id = o->inode_id;
	m.has_mode = true;
	m.mode = o->mode;
	img_put(image, &m.base);
}

static int write_all(struct native_files *f)
{
	const struct shm_area *a = f->area_facts[AREA_SHM];
	struct img *image = NULL;
	int r = 0;

	for (const struct shm_object *o = a ? a->first : NULL; o; o = o->next) {
		if (o->sysv)
			continue;
		if (!image)
			r = img_create(f->tree->images, "memfd", &image);
		if (r < 0)
			return r;
		put_inode(image, o);
		if (o->map_id)
			put_file(f, NULL, o->map_id, o);
	}
	if (image)
		r = img_close(image);
	return r < 0 || !a ? r : sysv_write(f, a);
}

static void destroy(struct native_files *f)
{
	struct shm_area *a = f->area_facts[AREA_SHM];

	if (a)
		sysv_destroy(a);
}

const struct native_area area_shm = {
	.index = AREA_SHM,
	.name = "shared memory",
	.match = match,
	.match_vma = match_vma,
	.check = check,
	.collect = collect,
	.collect_vma = collect_vma,
	.collect_all = collect_all,
	.write = write_one,
	.write_all = write_all,
	.destroy = destroy,
};
