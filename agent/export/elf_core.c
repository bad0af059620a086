// SPDX-License-Identifier: LGPL-2.1-or-later
/* One process -> program headers and runs of bytes; any range of the core from these. */
#include <errno.h>
#include <gelf.h>
#include <libelf.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "agent/export/internal.h"
#include "agent/util/io.h"

enum {
	/* Zeros between pages of one mapping: up to here a hole, beyond a segment of its own. */
	HOLE_MAX = 1 << 20,
};

struct segment {
	uint64_t start, memsz, filesz;
	uint64_t at; /* of its first byte, counted from the beginning of the pages */
	uint32_t flags;
	bool closed; /* nothing is appended any more */
};

/* Bytes of the core that lie in a file of the checkpoint. */
struct core_run {
	uint64_t at, size;
	const struct export_file *file;
	uint64_t from;
};

struct elf_core {
	const struct export_set *set;
	bool with_files;
	char *reason; /* while it is made */
	struct task task;
	struct segment *segments;
	size_t segment_count, segment_room;
	struct core_run *runs; /* ascending, apart */
	size_t run_count, run_room;
	uint64_t pages_size;
	uint8_t *head; /* everything before the pages, padded to a page */
	uint64_t head_size;
};

/* ---- segments ---- */

static int open_segment(struct elf_core *c, uint64_t start, uint32_t flags, struct segment **ret)
{
	if (c->segment_count == c->segment_room) {
		size_t room = c->segment_room ? 2 * c->segment_room : 256;
		struct segment *bigger = reallocarray(c->segments, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		c->segments = bigger;
		c->segment_room = room;
	}
	if (c->segment_count == CORE_SEGMENTS_MAX)
		return export_fail(c->reason, -E2BIG, "its memory is in more than %d pieces",
				   CORE_SEGMENTS_MAX);
	*ret = &c->segments[c->segment_count++];
	**ret = (struct segment){ .start = start, .at = c->pages_size, .flags = flags };
	return 0;
}

/* The segment that ends where start begins and may grow, or NULL. */
static struct segment *growing(const struct elf_core *c, uint64_t start)
{
	struct segment *last = c->segment_count ? &c->segments[c->segment_count - 1] : NULL;

	return last && !last->closed && last->start + last->memsz == start ? last : NULL;
}

static int add_run(struct elf_core *c, const struct core_run *run)
{
	struct core_run *last = c->run_count ? &c->runs[c->run_count - 1] : NULL;

	if (last && last->file == run->file && last->at + last->size == run->at &&
	    last->from + last->size == run->from) {
		last->size += run->size;
		return 0;
	}
	if (c->run_count == c->run_room) {
		size_t room = c->run_room ? 2 * c->run_room : 256;
		struct core_run *bigger = reallocarray(c->runs, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		c->runs = bigger;
		c->run_room = room;
	}
	c->runs[c->run_count++] = *run;
	return 0;
}

/* size bytes of pages that the checkpoint has; the file may end within the last one. */
static int add_pages(struct elf_core *c, uint64_t start, uint64_t size, uint32_t flags,
		     const struct export_file *file, uint64_t from)
{
	struct core_run run = { .size = size, .file = file, .from = from };
	struct segment *s = growing(c, start);
	int r = 0;

	if (!s || s->memsz - s->filesz > HOLE_MAX)
		r = open_segment(c, start, flags, &s);
	if (r < 0)
		return r;
	run.at = s->at + (start - s->start);
	s->memsz = s->filesz = start - s->start + size;
	c->pages_size = s->at + s->filesz;
	if (run.size > file->size - from)
		run.size = file->size - from;
	return add_run(c, &run);
}

static int add_zeros(struct elf_core *c, uint64_t start, uint64_t size, uint32_t flags)
{
	struct segment *s = growing(c, start);
	int r = 0;

	if (!s)
		r = open_segment(c, start, flags, &s);
	if (r == 0)
		s->memsz += size;
	return r;
}

/* What a debugger is to read from the file itself. */
static int add_absent(struct elf_core *c, uint64_t start, uint64_t size, uint32_t flags)
{
	struct segment *s;
	int r = open_segment(c, start, flags, &s);

	if (r < 0)
		return r;
	s->memsz = size;
	s->closed = true;
	return 0;
}

/* ---- VMAs ---- */

static uint32_t flags_of(const NatMm__Vma *v)
{
	return (v->prot & PROT_READ ? PF_R : 0) | (v->prot & PROT_WRITE ? PF_W : 0) |
	       (v->prot & PROT_EXEC ? PF_X : 0);
}

/* As the checkpoint has it: written by the job, or carried along. */
static const struct export_file *content_of(const struct elf_core *c, const struct task_file *file)
{
	const struct export_file *found = NULL;

	if (!file || file->is_memfd)
		return NULL;
	found = export_find(c->set, FILE_UPPER, file->name);
	if (!found)
		found = export_find(c->set, FILE_CLOSURE, file->name);
	return found && found->type == EXPORT_FILE ? found : NULL;
}

/*
 * Pages of a file's mapping that were not changed. Between pages that were, short stretches go in
 * as well: the kernel dumps the whole mapping then, and a program's data stays in one piece.
 */
static int add_file_part(struct elf_core *c, const NatMm__Vma *v, bool changed, uint64_t start,
			 uint64_t end)
{
	bool whole = c->with_files || (changed && end - start <= HOLE_MAX);
	const struct export_file *file = content_of(c, task_file_of(&c->task, v));
	uint64_t from = v->pgoff + (start - v->start), size = end - start;
	uint32_t flags = flags_of(v);
	int r;

	/* The first page tells a debugger which program this is; the kernel writes it, too. */
	if (!whole && from == 0 && size > EXPORT_PAGE)
		size = EXPORT_PAGE;
	if (!file || from >= file->size || (!whole && from > 0))
		return add_absent(c, start, end - start, flags);
	if (size > file->size - from) /* beyond its last page a mapping has nothing */
		size = (file->size - from + EXPORT_PAGE - 1) / EXPORT_PAGE * EXPORT_PAGE;
	r = add_pages(c, start, size, flags, file, from);
	if (r == 0 && start + size < end)
		r = add_absent(c, start + size, end - start - size, flags);
	return r;
}

static int add_shared_part(struct elf_core *c, const NatMm__Vma *v, const struct page_map *map,
			   uint64_t start, uint64_t end)
{
	uint64_t shift = v->pgoff - v->start; /* address -> place in the object, modulo 2^64 */
	int r = 0;

	for (size_t i = page_map_find(map, start + shift); start < end && r == 0; i++) {
		uint64_t at = i < map->count ? map->runs[i].at - shift : end;
		uint64_t stop = i < map->count ? at + map->runs[i].size : end;

		if (i < map->count && map->runs[i].at < start + shift)
			at = start;
		if (i < map->count && map->runs[i].at >= end + shift)
			at = stop = end;
		if (stop > end)
			stop = end;
		if (at > start)
			r = add_zeros(c, start, at - start, flags_of(v));
		if (r == 0 && stop > at)
			r = add_pages(c, at, stop - at, flags_of(v), map->file,
				      map->runs[i].from + (at + shift - map->runs[i].at));
		start = stop;
	}
	return r;
}

/* What the process has no page of its own for. */
static int add_gap(struct elf_core *c, const NatMm__Vma *v, const struct page_map *shared,
		   bool changed, uint64_t start, uint64_t end)
{
	if (start == end)
		return 0;
	if (shared)
		return add_shared_part(c, v, shared, start, end);
	if (v->status & (VMA_IS_FILE_PRIVATE | VMA_IS_FILE_SHARED))
		return add_file_part(c, v, changed, start, end);
	if (v->status & VMA_IS_ANON_PRIVATE)
		return add_zeros(c, start, end - start, flags_of(v));
	return add_absent(c, start, end - start, flags_of(v)); /* the kernel's own pages */
}

static int add_vma(struct elf_core *c, const NatMm__Vma *v)
{
	const struct page_map *own = &c->task.pages, *shared;
	size_t first = page_map_find(own, v->start);
	bool changed = first < own->count && own->runs[first].at < v->end;
	uint64_t at = v->start;
	int r = task_shared_of(&c->task, v, &shared);

	/* Segments do not reach over the ends of VMAs. */
	if (c->segment_count)
		c->segments[c->segment_count - 1].closed = true;
	for (size_t i = first; r == 0 && i < own->count; i++) {
		const struct page_run *p = &own->runs[i];
		uint64_t start = p->at < at ? at : p->at, end = p->at + p->size;

		if (start >= v->end)
			break;
		if (end > v->end)
			end = v->end;
		r = add_gap(c, v, shared, changed, at, start);
		if (r == 0)
			r = add_pages(c, start, end - start, flags_of(v), own->file,
				      p->from + (start - p->at));
		at = end;
	}
	return r == 0 ? add_gap(c, v, shared, changed, at, v->end) : r;
}

/* ---- reading ---- */

static size_t find_run(const struct elf_core *c, uint64_t at)
{
	size_t low = 0, high = c->run_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (c->runs[middle].at + c->runs[middle].size <= at)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Bytes of the pages, from `at` of them on. */
static int read_pages(const struct elf_core *c, uint64_t at, uint8_t *to, size_t size)
{
	uint64_t end = at + size;

	memset(to, 0, size);
	for (size_t i = find_run(c, at); i < c->run_count && c->runs[i].at < end; i++) {
		const struct core_run *run = &c->runs[i];
		uint64_t from = run->at > at ? run->at : at, stop = run->at + run->size;
		int r;

		if (stop > end)
			stop = end;
		r = export_read(c->set, run->file, run->from + (from - run->at), to + (from - at),
				(size_t)(stop - from));
		if (r < 0)
			return r;
	}
	return 0;
}

static size_t read_args(const void *ctx, char *ret_args, size_t size)
{
	const struct elf_core *c = ctx;
	uint64_t start = c->task.mm->arg_start, end = c->task.mm->arg_end;

	for (size_t i = 0; i < c->segment_count; i++) {
		const struct segment *s = &c->segments[i];

		if (start < s->start || start - s->start >= s->filesz || end <= start)
			continue;
		if (size > end - start)
			size = (size_t)(end - start);
		if (size > s->filesz - (start - s->start))
			size = (size_t)(s->filesz - (start - s->start));
		return read_pages(c, s->at + (start - s->start), (uint8_t *)ret_args, size) == 0 ?
			       size :
			       0;
	}
	return 0;
}

/* ---- the head ---- */

static int write_headers(const struct elf_core *c, Elf *elf, size_t notes_size, uint64_t *ret_size)
{
	size_t count = c->segment_count + 1;
	uint64_t at = sizeof(Elf64_Ehdr) + count * sizeof(Elf64_Phdr);
	uint64_t pages = (at + notes_size + EXPORT_PAGE - 1) / EXPORT_PAGE * EXPORT_PAGE;
	GElf_Phdr p = { .p_type = PT_NOTE, .p_offset = at, .p_filesz = notes_size, .p_align = 4 };
	GElf_Ehdr e = { .e_type = ET_CORE, .e_machine = EM_X86_64, .e_version = EV_CURRENT };

	if (!gelf_newehdr(elf, ELFCLASS64))
		return -ENOMEM;
	elf_flagelf(elf, ELF_C_SET, ELF_F_LAYOUT);
	e.e_ident[EI_DATA] = ELFDATA2LSB;
	e.e_ident[EI_CLASS] = ELFCLASS64;
	e.e_phoff = sizeof(Elf64_Ehdr);
	e.e_ehsize = sizeof(Elf64_Ehdr);
	if (!gelf_update_ehdr(elf, &e) || !gelf_newphdr(elf, count) ||
	    !gelf_update_phdr(elf, 0, &p))
		return -ENOMEM;
	for (size_t i = 0; i < c->segment_count; i++) {
		const struct segment *s = &c->segments[i];

		p = (GElf_Phdr){ .p_type = PT_LOAD,
				 .p_flags = s->flags,
				 .p_offset = pages + s->at,
				 .p_vaddr = s->start,
				 .p_filesz = s->filesz,
				 .p_memsz = s->memsz,
				 .p_align = EXPORT_PAGE };
		if (!gelf_update_phdr(elf, (int)i + 1, &p))
			return -ENOMEM;
	}
	if (elf_update(elf, ELF_C_WRITE) < 0)
		return -EIO;
	*ret_size = pages;
	return (int)at;
}

static int make_head(struct elf_core *c)
{
	_cleanup_free_ uint8_t *notes = NULL;
	_cleanup_close_ int fd = memfd_new("core");
	size_t notes_size;
	uint64_t size = 0;
	int r = fd < 0 ? fd : notes_build(&c->task, read_args, c, &notes, &notes_size), headers;
	Elf *elf;

	if (r < 0)
		return r;
	elf_version(EV_CURRENT);
	elf = elf_begin(fd, ELF_C_WRITE, NULL);
	if (!elf)
		return -ENOMEM;
	headers = write_headers(c, elf, notes_size, &size);
	elf_end(elf);
	if (headers < 0)
		return headers;
	c->head = calloc(1, size);
	if (!c->head)
		return -ENOMEM;
	r = pread_full(fd, c->head, (size_t)headers, 0);
	if (r < 0)
		return r;
	memcpy(c->head + headers, notes, notes_size);
	c->head_size = size;
	return 0;
}

/* ---- what callers see ---- */

static int lay_out(struct elf_core *c, pid_t pid)
{
	const NatMm__Mm *mm;
	int r = task_load(&c->task, pid);

	if (r < 0)
		return r;
	mm = c->task.mm;
	for (size_t i = 0; i < mm->n_vmas && r == 0; i++)
		if (!(mm->vmas[i]->status & VMA_IS_GUARD))
			r = add_vma(c, mm->vmas[i]);
	return r == 0 ? make_head(c) : r;
}

int elf_core_create(const struct export_set *set, pid_t pid, bool with_files,
		    struct elf_core **ret_core, char reason[EXPORT_REASON_MAX])
{
	struct elf_core *c = calloc(1, sizeof(*c));
	int r;

	reason[0] = '\0';
	if (!c)
		return -ENOMEM;
	c->set = set;
	c->with_files = with_files;
	c->reason = reason;
	c->task.set = set;
	c->task.reason = reason;
	r = lay_out(c, pid);
	if (r < 0) {
		elf_core_destroy(c);
		return r;
	}
	*ret_core = c;
	return 0;
}

void elf_core_destroy(struct elf_core *c)
{
	if (!c)
		return;
	task_deinit(&c->task);
	free(c->segments);
	free(c->runs);
	free(c->head);
	free(c);
}

uint64_t elf_core_size(const struct elf_core *c)
{
	return c->head_size + c->pages_size;
}

size_t elf_core_thread_count(const struct elf_core *c)
{
	return c->task.thread_count;
}

int elf_core_read(const struct elf_core *c, uint64_t offset, void *ret_bytes, size_t size)
{
	uint8_t *to = ret_bytes;

	if (offset > elf_core_size(c) || size > elf_core_size(c) - offset)
		return -EINVAL;
	if (offset < c->head_size) {
		size_t n = (size_t)(c->head_size - offset);

		n = n < size ? n : size;
		memcpy(to, c->head + offset, n);
		to += n;
		offset += n;
		size -= n;
	}
	return size ? read_pages(c, offset - c->head_size, to, size) : 0;
}

bool elf_core_next(const struct elf_core *c, uint64_t offset, uint64_t *ret_from,
		   uint64_t *ret_size)
{
	const struct core_run *run;
	uint64_t at;
	size_t i;

	if (offset < c->head_size) {
		*ret_from = offset;
		*ret_size = c->head_size - offset;
		return true;
	}
	at = offset - c->head_size;
	i = find_run(c, at);
	if (i == c->run_count)
		return false;
	run = &c->runs[i];
	at = run->at > at ? run->at : at;
	*ret_from = c->head_size + at;
	*ret_size = run->at + run->size - at;
	return true;
}
