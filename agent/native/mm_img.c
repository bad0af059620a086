// SPDX-License-Identifier: LGPL-2.1-or-later
/* mm-PID.img: addresses, auxiliary vector and VMAs, as CRIU 4.2 reads them. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "agent/native/img.h"
#include "agent/native/mem.pb-c.h"
#include "agent/native/mem_internal.h"

/* Status bits of a VMA entry. */
enum {
	STATUS_REGULAR = 1 << 0,
	STATUS_VDSO = 1 << 3,
	STATUS_HEAP = 1 << 5,
	STATUS_FILE_PRIVATE = 1 << 6,
	STATUS_FILE_SHARED = 1 << 7,
	STATUS_ANON_SHARED = 1 << 8,
	STATUS_ANON_PRIVATE = 1 << 9,
	STATUS_SYSVIPC = 1 << 10,
	STATUS_VVAR = 1 << 12,
	STATUS_GUARD = 1 << 16,
};

enum {
	FLAG_DROPPABLE = 0x08, /* MAP_DROPPABLE; newer than our headers */
	THP_DISABLED_BIT = 24, /* of mm_flags */
};

static uint64_t madv_of(uint64_t vm_flags)
{
	static const struct {
		uint64_t flag;
		int advice;
	} all[] = {
		{ VMA_SEQ_READ, MADV_SEQUENTIAL },   { VMA_RAND_READ, MADV_RANDOM },
		{ VMA_DONTCOPY, MADV_DONTFORK },     { VMA_DONTDUMP, MADV_DONTDUMP },
		{ VMA_MERGEABLE, MADV_MERGEABLE },   { VMA_HUGEPAGE, MADV_HUGEPAGE },
		{ VMA_NOHUGEPAGE, MADV_NOHUGEPAGE }, { VMA_WIPEONFORK, MADV_WIPEONFORK },
	};
	uint64_t madv = 0;

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		if (vm_flags & all[i].flag)
			madv |= 1ULL << all[i].advice;
	return madv;
}

static uint32_t flags_of(const struct state_vma *v)
{
	uint32_t flags = v->vm_flags & VMA_SHARED ? MAP_SHARED : MAP_PRIVATE;

	if (v->vm_flags & VMA_DROPPABLE && !v->file)
		flags = FLAG_DROPPABLE;
	if (v->vm_flags & VMA_GROWSDOWN)
		flags |= MAP_GROWSDOWN;
	if (v->vm_flags & VMA_LOCKED)
		flags |= MAP_LOCKED;
	if (v->vm_flags & VMA_NORESERVE)
		flags |= MAP_NORESERVE;
	return flags;
}

static bool is_vvar(const struct state_vma *v)
{
	return !v->file && v->vm_flags & VMA_PFNMAP;
}

/* Which of CRIU's sorts of maps it is, and the file's id. */
static void set_sort(const struct native_task *task, const struct mem_mm *mm, size_t i,
		     NatMm__Vma *e)
{
	const struct state_vma *v = &task->vmas[i];
	uint32_t extra = task->vma_status ? task->vma_status[i] : 0;

	e->status = STATUS_REGULAR | extra;
	if (task->vma_file_ids)
		e->shmid = task->vma_file_ids[i];
	if (!v->file) {
		e->flags |= MAP_ANONYMOUS;
		e->status |= STATUS_ANON_PRIVATE;
		if (mm->proxy.vdso ? v->start == mm->proxy.vdso : vma_is_vdso(task, v))
			e->status |= STATUS_VDSO;
		else if (mm->proxy.vdso ? v->start == mm->proxy.vvar : is_vvar(v))
			e->status |= STATUS_VVAR;
		else if (v->start <= task->state->brk && v->end >= task->state->start_brk)
			e->status |= STATUS_HEAP;
		return;
	}
	e->pgoff = v->offset;
	if (extra & STATUS_SYSVIPC) {
		e->flags |= MAP_ANONYMOUS;
		e->status |= STATUS_ANON_SHARED;
	} else if (!(extra & (STATUS_FILE_PRIVATE | STATUS_FILE_SHARED | STATUS_ANON_SHARED))) {
		e->status |= v->vm_flags & VMA_SHARED ? STATUS_FILE_SHARED : STATUS_FILE_PRIVATE;
	}
	e->has_fdflags = 1;
	e->fdflags = v->vm_flags & VMA_SHARED && v->vm_flags & VMA_MAYWRITE ? O_RDWR : O_RDONLY;
}

static void fill_vma(const struct native_task *task, const struct mem_mm *mm, size_t i,
		     NatMm__Vma *e)
{
	const struct state_vma *v = &task->vmas[i];

	nat_mm__vma__init(e);
	e->start = v->start;
	e->end = v->end;
	e->fd = -1;
	e->prot = (v->vm_flags & VMA_READ ? PROT_READ : 0) |
		  (v->vm_flags & VMA_WRITE ? PROT_WRITE : 0) |
		  (v->vm_flags & VMA_EXEC ? PROT_EXEC : 0);
	e->flags = flags_of(v);
	e->madv = madv_of(v->vm_flags);
	e->has_madv = e->madv != 0;
	set_sort(task, mm, i, e);
}

/* Guarded pages are entries of their own, after all others. */
static size_t add_guards(const struct runs *map, NatMm__Vma *v)
{
	size_t n = 0;

	for (size_t i = 0; i < map->count; i++) {
		if (run_kind(map->v[i].from) != RUN_KIND_GUARD)
			continue;
		if (v) {
			nat_mm__vma__init(&v[n]);
			v[n].start = map->v[i].start * NATIVE_PAGE;
			v[n].end = v[n].start + map->v[i].count * NATIVE_PAGE;
			v[n].status = STATUS_GUARD;
		}
		n++;
	}
	return n;
}

static size_t fill_vmas(const struct native_task *task, const struct mem_mm *mm, NatMm__Vma *v)
{
	size_t n = 0;

	for (size_t i = 0; i < task->vma_count; i++) {
		/* What the job's vdso jumps into, CRIU maps anew. */
		if (mm->proxy.vdso &&
		    (vma_is_vdso(task, &task->vmas[i]) || is_vvar(&task->vmas[i])))
			continue;
		fill_vma(task, mm, i, &v[n]);
		/* The kernel's vvar is one area to CRIU, of however many parts. */
		if (n && is_vvar(&task->vmas[i]) && v[n - 1].status & STATUS_VVAR &&
		    v[n - 1].end == v[n].start)
			v[n - 1].end = v[n].end;
		else
			n++;
	}
	return n + add_guards(&mm->space.map, v + n);
}

/* CRIU holds an image with more words for corrupted; the kernel ends what it is given by itself. */
enum { CRIU_AUXV_MAX = 44 };

static size_t auxv_count(const struct state_process *s)
{
	size_t n = 0;

	while (n + 2 <= CRIU_AUXV_MAX && s->auxv[n])
		n += 2;
	return n + 2 <= CRIU_AUXV_MAX ? n + 2 : n;
}

static void fill_mm(const struct native_task *task, NatMm__Mm *mm)
{
	const struct state_process *s = task->state;

	mm->start_code = s->start_code;
	mm->end_code = s->end_code;
	mm->start_data = s->start_data;
	mm->end_data = s->end_data;
	mm->start_stack = s->start_stack;
	mm->start_brk = s->start_brk;
	mm->brk = s->brk;
	mm->arg_start = s->arg_start;
	mm->arg_end = s->arg_end;
	mm->env_start = s->env_start;
	mm->env_end = s->env_end;
	mm->exe_file_id = task->exe_id;
	mm->n_auxv = auxv_count(s);
	mm->auxv = (uint64_t *)(uintptr_t)s->auxv;
	mm->has_dumpable = 1;
	mm->dumpable = (int32_t)s->dumpable;
	mm->has_thp_disabled = 1;
	mm->thp_disabled = s->mm_flags >> THP_DISABLED_BIT & 1;
}

int mm_write(struct native_tree *tree, struct native_task *task, const struct mem_mm *mm)
{
	size_t count = task->vma_count + add_guards(&mm->space.map, NULL);
	_cleanup_free_ NatMm__Vma *vmas = calloc(count + 1, sizeof(*vmas));
	_cleanup_free_ NatMm__Vma **list = calloc(count + 1, sizeof(*list));
	NatMm__Mm image = NAT_MM__MM__INIT;
	struct img *i;
	char name[64];
	int r;

	if (!task->state)
		return -EINVAL;
	if (!vmas || !list)
		return -ENOMEM;
	fill_mm(task, &image);
	image.n_vmas = fill_vmas(task, mm, vmas);
	for (size_t n = 0; n < image.n_vmas; n++)
		list[n] = &vmas[n];
	image.vmas = list;
	snprintf(name, sizeof(name), "mm-%d", task->inner_pid);
	r = img_create(tree->images, name, &i);
	if (r < 0)
		return r;
	img_put(i, &image.base);
	return img_close(i);
}
