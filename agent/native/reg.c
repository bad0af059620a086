// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Regular files, folders, harmless devices: by descriptor, by mapping, as executable, working
 * directory and root. What has no name any more goes to ghost.c.
 *
 * Names come with the records, but for long ones and for files mapped from an overlay: those VMAs
 * have the file of a layer, which the job cannot name, and /proc is asked once for each.
 */
#include "agent/native/reg_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/major.h>
#include <string.h>
#include <sys/ioctl.h>

enum { REG_PATH_MAX = 4096 };

#define KERNEL_FMODE_LSEEK 0x4
#define KERNEL_FMODE_WRITE 0x2
#define KERNEL_VM_EXEC 0x4
#define KERNEL_VM_SHARED 0x8
#define KERNEL_VM_MAYWRITE 0x20

/* Linux 6.11; /proc/PID/maps answers for one address. */
struct procmap_query {
	uint64_t size, query_flags, query_addr;
	uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
	uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
	uint64_t vma_name_addr, build_id_addr;
};
#define PROCMAP_QUERY_IOCTL _IOWR('f', 17, struct procmap_query)

int reg_area_get(struct native_files *f, struct reg_area **ret_area)
{
	struct reg_area *a = f->area_facts[AREA_REG];

	if (!a) {
		a = arena_alloc(f->tree->arena, sizeof(*a));
		if (!a)
			return -ENOMEM;
		a->maps_fd = -1;
		a->next_ghost = 1;
		f->area_facts[AREA_REG] = a;
	}
	*ret_area = a;
	return 0;
}

static bool has_prefix(const char *path, const char *prefix)
{
	return strncmp(path, prefix, strlen(prefix)) == 0;
}

static bool is_under(const char *path, const char *folder)
{
	size_t length = strlen(folder);

	return !strncmp(path, folder, length) && (path[length] == '/' || path[length] == '\0');
}

/* Files of the kernel's own mounts: their names say nothing. */
static bool is_nameless(const char *path)
{
	static const char *const prefixes[] = { "/memfd:",  "/SYSV",	  "/[aio]",
						"/dmabuf:", "/secretmem", "/anon_hugepage" };

	for (size_t i = 0; i < ARRAY_SIZE(prefixes); i++)
		if (has_prefix(path, prefixes[i]))
			return true;
	return strcmp(path, "/dev/zero" REG_DELETED) == 0;
}

static bool match(const struct state_fd *fd, const char *path)
{
	return path[0] == '/' && (S_ISREG(fd->mode) || S_ISDIR(fd->mode) || S_ISLNK(fd->mode) ||
				  S_ISCHR(fd->mode) || S_ISBLK(fd->mode));
}

static bool match_vma(const struct state_vma *vma)
{
	return vma->file != 0;
}

/* null, zero, full, random, urandom, kmsg: the same everywhere. */
static bool is_harmless_device(const struct state_fd *fd)
{
	uint32_t minor_number = fd->rdev & 0xfffff;

	return S_ISCHR(fd->mode) && fd->rdev >> 20 == MEM_MAJOR &&
	       (minor_number == 3 || minor_number == 5 ||
		(minor_number >= 7 && minor_number <= 9) || minor_number == 11);
}

/* A file below /proc/PID must find that process when it is opened again. */
static int check_proc(struct native_files *f, const struct native_open *o, const char *path)
{
	const char *rest;
	char *end;
	long pid;

	if (!is_under(path, "/proc") || path[5] == '\0')
		return 0;
	pid = strtol(path + 6, &end, 10);
	if (end == path + 6 || (*end != '/' && *end != '\0'))
		return 0;
	rest = end;
	if (pid <= 0 || pid > INT32_MAX || !tree_find_inner(f->tree, (pid_t)pid))
		return o ? files_refuse(f, o, "is about a process outside of the job") :
			   native_fail(f->tree, -EOPNOTSUPP,
				       "%s is about a process outside of the job", path);
	/* Threads are made after the files. */
	if (has_prefix(rest, "/task/") && strtol(rest + 6, NULL, 10) != pid)
		return native_fail(f->tree, -EOPNOTSUPP, "%s is about a thread", path);
	return 0;
}

static int check(struct native_files *f, struct native_open *o)
{
	if (o->fd->f_flags & O_PATH)
		return is_nameless(o->path) ? files_refuse(f, o, "has no name") : 0;
	if (is_nameless(o->path))
		return files_refuse(f, o, "is of a kind that the native engine does not cover");
	if (S_ISBLK(o->fd->mode) || (S_ISCHR(o->fd->mode) && !is_harmless_device(o->fd)))
		return files_refuse(f, o, "is a device");
	if (f->checking)
		return 0;
	return check_proc(f, o, o->path);
}

/* The name to open it by, and what stands for it if it has none. */
static int name_open(struct native_files *f, struct native_open *o, struct reg_name *ret_name)
{
	struct reg_source source = {
		.mode = o->fd->mode,
		.writable = o->fd->f_mode & KERNEL_FMODE_WRITE,
		.task = o->task,
		.open = o,
	};

	*ret_name = (struct reg_name){ .path = o->path };
	if (!reg_is_deleted(o->path))
		return 0;
	snprintf(source.link, sizeof(source.link), "/proc/%d/fd/%d", o->task->pid, o->fd->fd);
	source.nlink = o->fd->nlink;
	return reg_lost_name(f, &source, o->path, ret_name);
}

static int collect(struct native_files *f, struct native_open *o)
{
	struct reg_name *name = arena_alloc(f->tree->arena, sizeof(*name));
	int r = name ? check(f, o) : -ENOMEM;

	if (r < 0)
		return r;
	o->type = NAT_FILES__FILE_TYPE__REG;
	o->facts = name;
	r = name_open(f, o, name);
	if (r == 0 && name->ghost)
		r = reg_add_remap(f, o->id, name->ghost);
	return r;
}

static uint32_t hash_path(const char *path)
{
	uint32_t h = 2166136261u;

	for (; *path; path++)
		h = (h ^ (uint8_t)*path) * 16777619u;
	return h % REG_BUCKETS;
}

/*
 * An entry that no descriptor shows; the one of the same name, if there is one. Deleted files may
 * share a name and still be different.
 */
static int add_special(struct native_files *f, const char *path, struct reg_special **ret_special)
{
	struct reg_special *s;
	struct reg_area *a;
	size_t size = strlen(path) + 1;
	int r = reg_area_get(f, &a);
	uint32_t h;
	char *copy;

	if (r < 0)
		return r;
	h = hash_path(path);
	for (s = reg_is_deleted(path) ? NULL : a->specials[h]; s; s = s->next)
		if (!s->open && !strcmp(s->seen, path))
			break;
	if (!s) {
		s = arena_alloc(f->tree->arena, sizeof(*s) + size);
		if (!s)
			return -ENOMEM;
		copy = (char *)(s + 1);
		memcpy(copy, path, size);
		s->seen = s->name.path = copy;
		s->next = a->specials[h];
		a->specials[h] = s;
	}
	*ret_special = s;
	return 0;
}

/* First use of a special entry: its id, and a ghost if it needs one. */
static int settle_special(struct native_files *f, struct reg_special *s, struct reg_source *source)
{
	int r = check_proc(f, NULL, s->seen);

	if (r == 0 && reg_is_deleted(s->seen))
		r = reg_lost_name(f, source, s->seen, &s->name);
	if (r < 0)
		return r;
	s->id = files_new_id(f);
	return s->name.ghost ? reg_add_remap(f, s->id, s->name.ghost) : 0;
}

int files_reg_of(struct native_files *f, struct native_open *o, uint32_t *ret_id)
{
	struct reg_special *s;
	struct reg_area *a;
	int r = reg_area_get(f, &a);
	uint32_t h;

	if (r < 0)
		return r;
	s = arena_alloc(f->tree->arena, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->open = o;
	s->seen = o->path;
	r = name_open(f, o, &s->name);
	if (r < 0)
		return r;
	s->id = files_new_id(f);
	if (s->name.ghost)
		r = reg_add_remap(f, s->id, s->name.ghost);
	if (r < 0)
		return r;
	h = hash_path(o->path);
	s->next = a->specials[h];
	a->specials[h] = s;
	*ret_id = s->id;
	return 0;
}

static int map_link(const struct native_task *task, const struct state_vma *vma, char link[96])
{
	return snprintf(link, 96, "/proc/%d/map_files/%llx-%llx", task->pid,
			(unsigned long long)vma->start, (unsigned long long)vma->end);
}

/* The path of a mapped file as the job knows it. */
static int vma_path(struct native_files *f, struct native_task *task, const struct state_vma *vma,
		    char path[REG_PATH_MAX])
{
	struct procmap_query q = {
		.size = sizeof(q),
		.query_addr = vma->start,
		.vma_name_size = REG_PATH_MAX,
		.vma_name_addr = (uintptr_t)path,
	};
	struct reg_area *a;
	char link[96];
	ssize_t n;
	int r = reg_area_get(f, &a);

	if (r < 0)
		return r;
	if (vma->path[0]) {
		memcpy(path, vma->path, sizeof(vma->path));
		return 0;
	}
	if (a->maps_of != task) {
		close_fdp(&a->maps_fd);
		snprintf(link, sizeof(link), "/proc/%d/maps", task->pid);
		a->maps_fd = open(link, O_RDONLY | O_CLOEXEC);
		a->maps_of = task;
	}
	if (a->maps_fd >= 0 && ioctl(a->maps_fd, PROCMAP_QUERY_IOCTL, &q) == 0 &&
	    q.vma_start == vma->start && q.vma_name_size > 1)
		return 0;
	map_link(task, vma, link);
	n = readlink(link, path, REG_PATH_MAX);
	if (n < 0 || n == REG_PATH_MAX)
		return native_fail(f->tree, n < 0 ? -errno : -EOPNOTSUPP, "%s: %s", link,
				   n < 0 ? strerror(errno) : "its path is too long");
	path[n] = '\0';
	return 0;
}

static int check_vma(struct native_files *f, const struct native_task *task,
		     const struct state_vma *vma, const char *path)
{
	bool zero = S_ISCHR(vma->mode) && !strcmp(path, "/dev/zero");

	if ((S_ISREG(vma->mode) || zero) && path[0] == '/' && !is_nameless(path))
		return 0;
	return native_fail(f->tree, -EOPNOTSUPP,
			   "memory at %llx of process %d is mapped from %.200s, which the native "
			   "engine does not cover",
			   (unsigned long long)vma->start, task->inner_pid, path);
}

static int settle_vma(struct native_files *f, struct native_task *task, const struct state_vma *vma,
		      struct reg_special **ret_special)
{
	struct reg_source source = { .mode = vma->mode, .nlink = vma->nlink, .task = task };
	char path[REG_PATH_MAX];
	struct reg_special *s;
	int r = vma_path(f, task, vma, path);

	if (r == 0)
		r = check_vma(f, task, vma, path);
	if (r == 0)
		r = add_special(f, path, &s);
	if (r < 0)
		return r;
	source.writable = vma->vm_flags & KERNEL_VM_SHARED && vma->vm_flags & KERNEL_VM_MAYWRITE;
	map_link(task, vma, source.link);
	if (!s->id)
		r = settle_special(f, s, &source);
	*ret_special = s;
	return r;
}

/* Two mappings of a ghost: whichever may be written to makes it copied now. */
static int note_writer(struct native_files *f, struct native_task *task,
		       const struct state_vma *vma, struct reg_special *s)
{
	char link[96];

	if (!s->name.ghost || !(vma->vm_flags & KERNEL_VM_SHARED) ||
	    !(vma->vm_flags & KERNEL_VM_MAYWRITE))
		return 0;
	map_link(task, vma, link);
	return reg_ghost_copy(f, s->name.ghost, link);
}

static int collect_vma(struct native_files *f, struct native_task *task, size_t i)
{
	const struct state_vma *vma = &task->vmas[i];
	size_t h = (size_t)((vma->file >> 6) * 0x9e3779b97f4a7c15 >> 32) % REG_BUCKETS;
	struct reg_mapped *m;
	struct reg_area *a;
	int r = reg_area_get(f, &a);

	if (r < 0)
		return r;
	for (m = a->mapped[h]; m && m->file != vma->file; m = m->next)
		;
	if (!m) {
		m = arena_alloc(f->tree->arena, sizeof(*m));
		if (!m)
			return -ENOMEM;
		m->file = vma->file;
		r = settle_vma(f, task, vma, &m->special);
		if (r < 0)
			return r;
		m->next = a->mapped[h];
		a->mapped[h] = m;
	}
	/* Another file under the name of a program's code must not be taken for it. */
	if (vma->vm_flags & KERNEL_VM_EXEC && S_ISREG(vma->mode)) {
		m->special->sized = true;
		m->special->size = vma->size;
		m->special->mode = vma->mode;
	}
	task->vma_file_ids[i] = m->special->id;
	return note_writer(f, task, vma, m->special);
}

/* exe, cwd, root: the record has the path only. */
static int collect_link(struct native_files *f, struct native_task *task, const char *word,
			const char *seen, uint32_t mode, uint32_t *ret_id)
{
	struct reg_source source = { .mode = mode, .task = task };
	char path[REG_PATH_MAX];
	struct reg_special *s;
	ssize_t n;
	int r;

	snprintf(source.link, sizeof(source.link), "/proc/%d/%s", task->pid, word);
	if (!seen[0]) {
		n = readlink(source.link, path, sizeof(path));
		if (n < 0 || n == sizeof(path))
			return native_fail(f->tree, n < 0 ? -errno : -EOPNOTSUPP, "%s: %s",
					   source.link, n < 0 ? strerror(errno) : "path too long");
		path[n] = '\0';
		seen = path;
	}
	if (seen[0] != '/')
		return native_fail(f->tree, -EOPNOTSUPP, "%s is %s, which cannot be named",
				   source.link, seen);
	r = add_special(f, seen, &s);
	if (r == 0 && !s->id)
		r = settle_special(f, s, &source);
	if (r == 0)
		*ret_id = s->id;
	return r;
}

static int collect_task(struct native_files *f, struct native_task *task)
{
	const struct state_process *p = task->state;
	int r;

	/* One mount namespace, or a path would mean two files. */
	if (f->tree->tasks[0].state && p->ns_mnt != f->tree->tasks[0].state->ns_mnt)
		return native_fail(f->tree, -EOPNOTSUPP,
				   "process %d has a mount namespace of its own", task->inner_pid);
	r = collect_link(f, task, "exe", p->exe, S_IFREG, &task->exe_id);
	if (r == 0)
		r = collect_link(f, task, "cwd", p->cwd, S_IFDIR, &task->cwd_id);
	if (r == 0)
		r = collect_link(f, task, "root", p->root, S_IFDIR, &task->root_id);
	return r;
}

static int collect_all(struct native_files *f)
{
	struct reg_area *a = f->area_facts[AREA_REG];
	int r = 0;

	for (size_t i = 0; r == 0 && i < f->tree->task_count; i++)
		if (!f->tree->tasks[i].zombie)
			r = collect_task(f, &f->tree->tasks[i]);
	a = f->area_facts[AREA_REG];
	if (a) {
		close_fdp(&a->maps_fd);
		a->maps_fd = -1;
		a->maps_of = NULL;
	}
	return r;
}

static uint64_t position(const struct native_open *o)
{
	/* What cannot seek must not be asked to. */
	if (!(o->fd->f_mode & KERNEL_FMODE_LSEEK) && !(o->fd->f_flags & O_PATH))
		return UINT64_MAX;
	if (S_ISCHR(o->fd->mode) && (o->fd->rdev & 0xfffff) == 11)
		return UINT64_MAX;
	return o->fd->pos;
}

static void fill(NatFiles__Reg *e, const struct reg_name *name, const struct native_open *o)
{
	e->name = (char *)name->path;
	if (o) {
		e->flags = open_flags(o);
		e->pos = position(o);
		open_fown(o, e->fown);
	}
}

static int write_open(struct native_files *f, struct native_open *o)
{
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__Fown fown = NAT_FILES__FOWN__INIT;
	NatFiles__Reg e = NAT_FILES__REG__INIT;

	e.id = o->id;
	e.fown = &fown;
	fill(&e, o->facts, o);
	file.reg = &e;
	files_put(f, o, &file);
	return 0;
}

static void write_special(struct native_files *f, const struct reg_special *s)
{
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__Fown fown = NAT_FILES__FOWN__INIT;
	NatFiles__Reg e = NAT_FILES__REG__INIT;

	file.type = NAT_FILES__FILE_TYPE__REG;
	file.id = e.id = s->id;
	e.fown = &fown;
	fill(&e, &s->name, s->open);
	if (s->sized) {
		e.has_size = e.has_mode = true;
		e.size = s->size;
		e.mode = s->mode;
	}
	file.reg = &e;
	files_put_entry(f, &file);
}

static int write_all(struct native_files *f)
{
	struct reg_area *a = f->area_facts[AREA_REG];
	int r = reg_check_mounts(f);

	if (r < 0 || !a)
		return r;
	for (size_t h = 0; h < REG_BUCKETS; h++)
		for (const struct reg_special *s = a->specials[h]; s; s = s->next)
			write_special(f, s);
	return reg_write_ghosts(f);
}

static void destroy(struct native_files *f)
{
	struct reg_area *a = f->area_facts[AREA_REG];

	if (!a)
		return;
	close_fdp(&a->maps_fd);
	a->maps_fd = -1;
	reg_destroy_ghosts(a);
}

const struct native_area area_reg = {
	.index = AREA_REG,
	.name = "files",
	.match = match,
	.match_vma = match_vma,
	.check = check,
	.collect = collect,
	.collect_vma = collect_vma,
	.collect_all = collect_all,
	.write = write_open,
	.write_all = write_all,
	.destroy = destroy,
};
