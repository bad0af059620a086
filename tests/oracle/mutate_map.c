// SPDX-License-Identifier: LGPL-2.1-or-later
#include "mutate.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* Regions may grow in place by up to this many pages; their files are larger from the start. */
enum { GROW_PAGES = 128, HUGE_PAGES = 512 };

#define SLOT_BYTES (1UL << 32)
#define WINDOW_BYTES (1UL << 40)
#define RESERVE_BYTES (SLOT_BYTES / 4)

uint8_t *slot_base(unsigned int worker, unsigned int slot)
{
	return (uint8_t *)(0x100000000000UL + worker * WINDOW_BYTES + slot * SLOT_BYTES);
}

static size_t kind_pages(enum kind kind)
{
	return kind == KIND_THP ? THP_PAGES : kind == KIND_HUGETLB ? 2 * HUGE_PAGES : REGION_PAGES;
}

static int scratch_fd(const struct worker *w)
{
	uint8_t page[PAGE];
	uint64_t rng = w->rng;
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/map-%u-%llx", w->folder, w->index,
		 (unsigned long long)rng);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	for (size_t i = 0; i < REGION_PAGES + GROW_PAGES; i++) {
		for (size_t j = 0; j < PAGE; j += 8)
			memcpy(page + j, &(uint64_t){ draw(&rng) }, 8);
		if (pwrite(fd, page, PAGE, (off_t)(i * PAGE)) != PAGE)
			break;
	}
	return fd;
}

static int kind_fd(const struct worker *w, const struct region *r, enum kind kind)
{
	int fd;

	switch (kind) {
	case KIND_FILE:
	case KIND_FILE_SHARED:
		/* Files are made once for each slot: a new one each time would fill the disk. */
		return r->fd >= 0 ? r->fd : scratch_fd(w);
	case KIND_MEMFD:
	case KIND_MEMFD_PRIVATE:
		fd = memfd_create("mutate", MFD_CLOEXEC);
		if (fd >= 0 && ftruncate(fd, (REGION_PAGES + GROW_PAGES) * PAGE) < 0)
			die("ftruncate");
		return fd;
	default:
		return -1;
	}
}

static int kind_flags(enum kind kind)
{
	switch (kind) {
	case KIND_SHARED:
		return MAP_SHARED | MAP_ANONYMOUS;
	case KIND_MEMFD:
	case KIND_FILE_SHARED:
		return MAP_SHARED;
	case KIND_FILE:
	case KIND_MEMFD_PRIVATE:
		return MAP_PRIVATE;
	case KIND_HUGETLB:
		return MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
	case KIND_RESERVE:
		return MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	default:
		return MAP_PRIVATE | MAP_ANONYMOUS;
	}
}

void region_map(struct worker *w, struct region *r, enum kind kind)
{
	size_t pages = kind_pages(kind);
	size_t bytes = kind == KIND_RESERVE ? RESERVE_BYTES : pages * PAGE;
	int prot = kind == KIND_RESERVE ? PROT_NONE : PROT_READ | PROT_WRITE;
	void *at;

	r->kind = kind;
	r->fd = kind_fd(w, r, kind);
	at = mmap(r->at, bytes, prot, kind_flags(kind) | MAP_FIXED, r->fd, 0);
	if (at == MAP_FAILED && kind == KIND_HUGETLB) { /* none free */
		r->kind = KIND_ANON;
		at = mmap(r->at, bytes, prot, kind_flags(KIND_ANON) | MAP_FIXED, -1, 0);
	}
	if (at == MAP_FAILED)
		die("mmap");
	if (kind == KIND_THP)
		madvise(at, bytes, MADV_HUGEPAGE);
	if (r->kind == KIND_HUGETLB) /* a copy would need pages of its own, and die without */
		madvise(at, bytes, MADV_DONTFORK);
	if (kind == KIND_RESERVE && mprotect(at, pages * PAGE, PROT_READ | PROT_WRITE) < 0)
		die("mprotect");
	r->pages = pages;
}

static bool keeps_fd(enum kind kind)
{
	return kind == KIND_FILE || kind == KIND_FILE_SHARED;
}

/* As it was when it was made: another kind would need another slot. */
static void map_again(struct worker *w, struct region *r)
{
	if (r->fd >= 0 && !keeps_fd(r->kind)) {
		close(r->fd);
		r->fd = -1;
	}
	region_map(w, r, r->kind);
}

/* A random range of a region. */
static uint8_t *range(struct worker *w, const struct region *r, size_t max, size_t *ret_bytes)
{
	size_t first = below(&w->rng, r->pages), count = 1 + below(&w->rng, max);

	if (count > r->pages - first)
		count = r->pages - first;
	*ret_bytes = count * PAGE;
	return r->at + first * PAGE;
}

/* All of it gone, and mapped anew; now and then at another place of its slot. */
void op_remap(struct worker *w, struct region *r)
{
	size_t bytes = r->kind == KIND_RESERVE ? RESERVE_BYTES : (r->pages + GROW_PAGES) * PAGE;

	munmap(r->at, r->kind == KIND_HUGETLB ? r->pages * PAGE : bytes);
	map_again(w, r);
}

/* A hole in the middle for a moment, then new memory there: one or three VMAs. */
void op_unmap(struct worker *w, struct region *r)
{
	size_t bytes;
	uint8_t *at = range(w, r, 32, &bytes);
	off_t off = r->fd >= 0 ? at - r->at : 0;

	munmap(at, bytes);
	if (below(&w->rng, 2))
		usleep(below(&w->rng, 300));
	/* A hole in a shared anonymous region can only be filled with an object of its own. */
	if (mmap(at, bytes, PROT_READ | PROT_WRITE, kind_flags(r->kind) | MAP_FIXED, r->fd, off) ==
	    MAP_FAILED)
		die("mmap in a hole");
	if (below(&w->rng, 2))
		memset(at, (int)draw(&w->rng), bytes);
}

/* Over what is there, without a hole in time. */
void op_fixed(struct worker *w, struct region *r)
{
	size_t bytes;
	uint8_t *at = range(w, r, 64, &bytes);

	if (mmap(at, bytes, PROT_READ | PROT_WRITE, kind_flags(r->kind) | MAP_FIXED, r->fd,
		 r->fd >= 0 ? at - r->at : 0) == MAP_FAILED)
		die("mmap over a mapping");
	if (below(&w->rng, 2))
		at[below(&w->rng, bytes)] = (uint8_t)draw(&w->rng);
}

static void grow_and_shrink(struct worker *w, struct region *r)
{
	size_t old = r->pages * PAGE, more = (1 + below(&w->rng, GROW_PAGES)) * PAGE;
	void *at;

	/* Fails where the region consists of several mappings: that is as good. */
	at = mremap(r->at, old, old + more, 0);
	if (at == MAP_FAILED)
		return;
	memset(r->at + old, (int)draw(&w->rng), more);
	if (below(&w->rng, 2))
		usleep(below(&w->rng, 500));
	munmap(r->at + old, more);
}

/* A part is swapped with a part of elsewhere: the content moves, the addresses stay. */
static void exchange(struct worker *w, struct region *r)
{
	size_t bytes;
	uint8_t *at = range(w, r, 16, &bytes), *aside = r->at + SLOT_BYTES / 2;

	if (mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, aside) == MAP_FAILED)
		goto fill;
	if (below(&w->rng, 2))
		usleep(below(&w->rng, 300));
	aside[below(&w->rng, bytes)] = (uint8_t)draw(&w->rng);
	if (mremap(aside, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
		   r->at + (size_t)(at - r->at)) != MAP_FAILED)
		return;
	munmap(aside, bytes);
fill:
	if (mmap(at, bytes, PROT_READ | PROT_WRITE, kind_flags(r->kind) | MAP_FIXED, r->fd,
		 r->fd >= 0 ? at - r->at : 0) == MAP_FAILED)
		die("mmap after a move");
}

/* MREMAP_DONTUNMAP leaves an empty mapping behind; the content is moved back over it. */
static void leave_empty(struct worker *w, struct region *r)
{
	size_t bytes;
	uint8_t *at = range(w, r, 16, &bytes), *aside = r->at + SLOT_BYTES / 2;

	if (mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, aside) ==
	    MAP_FAILED)
		return;
	usleep(below(&w->rng, 500));
	if (below(&w->rng, 2)) {
		munmap(aside, bytes);
		return;
	}
	if (mremap(aside, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at) != MAP_FAILED)
		return;
	/* Of several mappings; kernels since 6.17 move these too, but not if a tracker follows them. */
	if (errno != EFAULT)
		die("mremap back");
	munmap(aside, bytes);
}

void op_move(struct worker *w, struct region *r)
{
	switch (below(&w->rng, 3)) {
	case 0:
		grow_and_shrink(w, r);
		break;
	case 1:
		exchange(w, r);
		break;
	default:
		leave_empty(w, r);
	}
}

void op_protect(struct worker *w, struct region *r)
{
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_EXEC };
	size_t bytes;
	uint8_t *at = range(w, r, 64, &bytes);

	mprotect(at, bytes, prots[below(&w->rng, 3)]);
	if (below(&w->rng, 3) == 0)
		usleep(below(&w->rng, 1000));
	mprotect(at, bytes, PROT_READ | PROT_WRITE);
	if (below(&w->rng, 2))
		at[below(&w->rng, bytes)]++;
}

void op_dontneed(struct worker *w, struct region *r)
{
	size_t bytes;
	uint8_t *at = range(w, r, below(&w->rng, 8) ? 16 : r->pages, &bytes);

	madvise(at, bytes, MADV_DONTNEED);
	if (below(&w->rng, 3) == 0)
		at[below(&w->rng, bytes)] = (uint8_t)draw(&w->rng);
}

void op_free(struct worker *w, struct region *r)
{
	size_t bytes;
	uint8_t *at = range(w, r, 16, &bytes);

	madvise(at, bytes, MADV_FREE);
	if (below(&w->rng, 3) == 0)
		at[below(&w->rng, bytes)] = (uint8_t)draw(&w->rng);
}

void op_remove(struct worker *w, struct region *r)
{
	size_t bytes;
	uint8_t *at = range(w, r, 16, &bytes);

	madvise(at, bytes, MADV_REMOVE);
}

void op_punch(struct worker *w, struct region *r)
{
	size_t bytes;
	uint8_t *at = range(w, r, 16, &bytes);

	if (r->fd >= 0)
		(void)!fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at - r->at,
				 (off_t)bytes);
}

void op_guard(struct worker *w, struct region *r)
{
	size_t bytes;
	uint8_t *at = range(w, r, 8, &bytes);

	/* Both end at the first VMA that is locked, with those before it done. */
	madvise(at, bytes, MADV_GUARD_INSTALL);
	usleep(below(&w->rng, 2000));
	madvise(at, bytes, MADV_GUARD_REMOVE);
	if (below(&w->rng, 2))
		*at = (uint8_t)draw(&w->rng);
}

void op_lock(struct worker *w, struct region *r)
{
	size_t bytes;
	uint8_t *at = range(w, r, 8, &bytes);

	if (mlock(at, bytes) == 0 && below(&w->rng, 8))
		munlock(at, bytes);
}

void op_advise(struct worker *w, struct region *r)
{
	static const int advice[] = { MADV_COLLAPSE, MADV_POPULATE_READ, MADV_POPULATE_WRITE,
				      MADV_COLD, MADV_PAGEOUT };
	size_t bytes;
	uint8_t *at = range(w, r, r->pages, &bytes);

	madvise(at, bytes, advice[below(&w->rng, 5)]);
}

/* Islands of memory far out in a reservation; some are given back. */
void op_reserve(struct worker *w, struct region *r)
{
	size_t island = 1 + below(&w->rng, 16), bytes = (1 + below(&w->rng, 8)) * PAGE;
	uint8_t *at = r->at + island * (RESERVE_BYTES / 32);

	if (below(&w->rng, 4) == 0) {
		if (mmap(at, 8 * PAGE, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
			 0) == MAP_FAILED)
			die("mmap of a reservation");
		return;
	}
	if (mprotect(at, bytes, PROT_READ | PROT_WRITE) < 0)
		die("mprotect of a reservation");
	at[below(&w->rng, bytes)] = (uint8_t)draw(&w->rng);
}

/* The program break is the process' own: one worker uses it. */
void op_brk(struct worker *w, struct region *r)
{
	static uint8_t *mine;
	static size_t size;
	uint8_t *top = sbrk(0);

	(void)r;
	if (w->index || w->child)
		return;
	if (size && mine + size == top && below(&w->rng, 2)) {
		sbrk(-(intptr_t)size);
		size = 0;
		return;
	}
	if (size && mine + size == top) {
		mine[below(&w->rng, size)] = (uint8_t)draw(&w->rng);
		return;
	}
	size = (1 + below(&w->rng, 64)) * PAGE;
	mine = sbrk((intptr_t)size);
	if (mine == (void *)-1)
		size = 0;
	else
		memset(mine, (int)draw(&w->rng), size);
}

static unsigned int recurse(struct worker *w, size_t depth)
{
	volatile uint8_t frame[3 * PAGE];

	frame[below(&w->rng, sizeof(frame))] = (uint8_t)depth;
	if (depth)
		return recurse(w, depth - 1) + frame[0];
	usleep(below(&w->rng, 200));
	return frame[0];
}

void op_stack(struct worker *w, struct region *r)
{
	(void)r;
	recurse(w, below(&w->rng, 32));
}
