// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Write tracking by the kernel's soft-dirty bits. Reading and clearing them are two steps, so they
 * are cleared only while the job stands, or before all of it is copied: no rounds of pre-copy. New
 * and moved VMAs read as dirty; pages that were given back do not, hence "hollow".
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "agent/native/track.h"
#include "agent/util/io.h"

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

static bool soft_tracks(const struct mem_mm *mm, const struct state_vma *vma)
{
	(void)vma;
	return mm->cleared;
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
		if (out->v[i].categories & (PAGE_SOFT_DIRTY | PAGE_MAYBE_ZERO))
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
	.detach = soft_detach,
};
