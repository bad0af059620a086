// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Write tracking by the kernel's soft-dirty bits. Reading and clearing them are two steps, so they
 * are cleared only while the job stands, or before all of it is copied: no rounds of pre-copy. New
 * VMAs read as dirty; pages that were given back do not, hence "hollow".
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "agent/native/track.h"
#include "agent/util/io.h"

#define NO_DISTANCE UINT64_MAX /* distances are whole pages */

static int clear_bits(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	return write_kernel_file(path, "4");
}

static bool page_is_dirty(int pagemap, const void *p)
{
	struct regions out = { 0 };
	uint64_t at = (uintptr_t)p & ~(uint64_t)(NATIVE_PAGE - 1);
	bool dirty = scan_words(pagemap, at, at + NATIVE_PAGE, &out) == 0 && out.count == 1 &&
		     out.v[0].categories & PAGE_SOFT_DIRTY;

	regions_deinit(&out);
	return dirty;
}

/* A kernel without soft-dirty accepts the write and never shows the bit, or always. */
static bool soft_probe(const struct native_mem *m)
{
	_cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	volatile char *p =
		mmap(NULL, NATIVE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool clean, dirty;

	(void)m;
	if (p == MAP_FAILED)
		return false;
	p[0] = 1;
	clean = fd >= 0 && clear_bits(getpid()) == 0 && !page_is_dirty(fd, (const void *)p);
	p[0] = 2;
	dirty = clean && page_is_dirty(fd, (const void *)p);
	munmap((void *)p, NATIVE_PAGE);
	return clean && dirty;
}

static int soft_attach(struct native_mem *m, struct mem_mm *mm)
{
	(void)m;
	mm->cleared = false;
	return 0;
}

static int soft_cover(struct native_mem *m, struct mem_mm *mm, const struct state_vma *vmas,
		      size_t count, struct runs *ret_new)
{
	(void)m;
	(void)vmas;
	(void)count;
	(void)ret_new;
	if (mm->cleared)
		return 0;
	/* What is copied now is all there is; what is written from here on has its bit. */
	mm->full = true;
	mm->cleared = true;
	return clear_bits(mm->pid);
}

/*
 * mremap(2) of 2 MiB and more moves whole page tables, which leaves the bits in them as they were
 * (commit 2c91bd4a4e2e, Linux 5.0): a clean page is the one that was stored for its place only if
 * what lies there now lay nowhere else when the bits were cleared. Where memory was written first
 * tells one piece from another, as the kernel keeps that through all moves.
 */
static bool soft_tracks(const struct mem_mm *mm, const struct state_vma *vma)
{
	uint64_t first = (vma->start - vma->moved) / NATIVE_PAGE;
	uint64_t end = first + (vma->end - vma->start) / NATIVE_PAGE;

	if (!mm->cleared || vma_reverts(vma))
		return false;
	if (vma->moved && runs_touch(&mm->stayed, first, end - first))
		return false;
	for (size_t i = runs_find(&mm->moved, first); i < mm->moved.count; i++) {
		if (mm->moved.v[i].start >= end)
			break;
		if (mm->moved.v[i].from != vma->moved)
			return false;
	}
	return true;
}

/* What two VMAs had been at first is one run that matches none. */
static void part_moved(struct runs *moved)
{
	size_t kept = 0;

	runs_sort(moved);
	for (size_t i = 0; i < moved->count; i++) {
		struct run *run = &moved->v[i], *last = kept ? &moved->v[kept - 1] : NULL;
		uint64_t end = run->start + run->count;

		if (!last || last->start + last->count <= run->start) {
			moved->v[kept++] = *run;
			continue;
		}
		if (end > last->start + last->count)
			last->count = end - last->start;
		last->from = NO_DISTANCE;
	}
	moved->count = kept;
}

static int soft_listed(struct mem_mm *mm, const struct state_vma *vmas, size_t count)
{
	int r = 0;

	mm->stayed.count = mm->moved.count = mm->listed_at.count = 0;
	for (size_t i = 0; i < count && r == 0; i++) {
		const struct state_vma *v = &vmas[i];
		struct runs *to = v->moved ? &mm->moved : &mm->stayed;

		if (!vma_has_pages(v) || vma_reverts(v))
			continue;
		r = runs_push(to, (v->start - v->moved) / NATIVE_PAGE,
			      (v->end - v->start) / NATIVE_PAGE);
		if (r == 0) {
			to->v[to->count - 1].from = v->moved;
			r = runs_push(&mm->listed_at, v->start / NATIVE_PAGE,
				      (v->end - v->start) / NATIVE_PAGE);
		}
	}
	part_moved(&mm->moved);
	runs_normalise(&mm->listed_at);
	return r;
}

/*
 * A list of a process that runs is from several instants: what moves meanwhile may be in none of them, so
 * that it was never copied. Anything else that was not there then has been written since.
 */
static bool was_listed(const struct mem_mm *mm, const struct region *v)
{
	uint64_t first = v->start / NATIVE_PAGE;
	size_t i = runs_find(&mm->listed_at, first);
	const struct run *run = i < mm->listed_at.count ? &mm->listed_at.v[i] : NULL;

	return run && run->start <= first && run->start + run->count >= v->end / NATIVE_PAGE;
}

/* PAGEMAP_SCAN does not tell every zero page from others: it only says where words are worth it. */
static int words_of_populated(const struct mem_mm *mm, uint64_t start, uint64_t end,
			      struct regions *out)
{
	struct scan s = { .anyof = PAGE_PRESENT | PAGE_SWAPPED, .report = PAGE_PRESENT };
	struct regions populated = { 0 };
	int r = scan_pages(mm->pagemap, &s, start, end, &populated);

	for (size_t i = 0; r == 0 && i < populated.count; i++)
		r = scan_words(mm->pagemap, populated.v[i].start, populated.v[i].end, out);
	regions_deinit(&populated);
	return r;
}

static int soft_written(struct native_mem *m, struct mem_mm *mm, uint64_t start, uint64_t end,
			struct regions *out)
{
	size_t first = out->count, kept = first;
	int r = m->features.scan ? words_of_populated(mm, start, end, out) :
				   scan_words(mm->pagemap, start, end, out);

	/* Given back and read since: the zero page, which never has the bit. */
	for (size_t i = first; i < out->count; i++)
		if (out->v[i].categories & (PAGE_SOFT_DIRTY | PAGE_MAYBE_ZERO) ||
		    !was_listed(mm, &out->v[i]))
			out->v[kept++] = out->v[i];
	out->count = kept;
	return r;
}

static int soft_settled(struct native_mem *m, struct mem_mm *mm)
{
	(void)m;
	return clear_bits(mm->pid);
}

static void soft_detach(struct mem_mm *mm)
{
	mm->cleared = false;
}

const struct track_ops track_soft = {
	.name = "soft-dirty",
	.hollow = true,
	.probe = soft_probe,
	.attach = soft_attach,
	.cover = soft_cover,
	.tracks = soft_tracks,
	.written = soft_written,
	.settled = soft_settled,
	.listed = soft_listed,
	.detach = soft_detach,
};
