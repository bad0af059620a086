/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the kernel says of the pages of a process: PAGEMAP_SCAN or, where it is missing, the words
 * of /proc/PID/pagemap. The same categories either way.
 *
 * Threading: none. Errors: -errno; -ESRCH: the memory that the descriptor belongs to has ended.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/util/cleanup.h"

/* Categories of a page, as PAGEMAP_SCAN numbers them. */
enum {
	PAGE_WPALLOWED = 1 << 0,
	PAGE_WRITTEN = 1 << 1,
	PAGE_FILE = 1 << 2,
	PAGE_PRESENT = 1 << 3,
	PAGE_SWAPPED = 1 << 4,
	PAGE_PFNZERO = 1 << 5,
	PAGE_HUGE = 1 << 6,
	PAGE_SOFT_DIRTY = 1 << 7,
	PAGE_GUARD = 1 << 8,
	PAGE_MAYBE_ZERO =
		1 << 16, /* ours, of scan_words(): no file's, and not the process's alone */
};

enum {
	SCAN_WP = 1 << 0,	     /* protect what is reported */
	SCAN_CHECK_WPASYNC = 1 << 1, /* never used but by a mutant: it loses reports */
};

/* As the kernel lays it out: struct page_region. */
struct region {
	uint64_t start, end, categories;
};

struct regions {
	struct region *v;
	size_t count, room;
};

struct scan {
	uint64_t flags;
	uint64_t inverted, mask, anyof, report;
	size_t call_max; /* regions per call; 0: as many as there is room for */
	bool one_call;	 /* never ask again: only for a mutant */
};

/* What a kernel has; GUARD is known only to newer ones. */
struct scan_features {
	bool scan;	 /* PAGEMAP_SCAN */
	uint64_t report; /* PRESENT, SWAPPED, FILE, PFNZERO and, where known, GUARD */
};

void scan_probe(struct scan_features *ret_features);
/* Appends what matches in [start, end). */
int scan_pages(int pagemap, const struct scan *s, uint64_t start, uint64_t end,
	       struct regions *out) _must_check_;
/* Of one VMA, without PAGEMAP_SCAN: 8 bytes for each of its pages, 128 MiB in all. */
#define SCAN_WORDS_SPAN_MAX (64ULL << 30)

/* Without PAGEMAP_SCAN: populated pages with their categories, SOFT_DIRTY ones marked. */
int scan_words(int pagemap, uint64_t start, uint64_t end, struct regions *out) _must_check_;

int regions_reserve(struct regions *r, size_t more) _must_check_;
void regions_deinit(struct regions *r);
