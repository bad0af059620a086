/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sorted lists of page ranges, and where the content of each page lies.
 *
 * A run is `count` pages from page number `start` (address / 4096); `from` is the kind << 56 | the
 * first block. Runs of a list do not overlap, and neighbours that go on in both are one run: the
 * list is as long as the memory is fragmented, not as it is large.
 *
 * Threading: none. Errors: -ENOMEM.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/util/cleanup.h"

enum run_kind {
	RUN_KIND_NONE = 0,  /* of no content: zero, or what the file says */
	RUN_KIND_NEW = 1,   /* = RUN_NEW of mem.h */
	RUN_KIND_OLD = 2,   /* = RUN_OLD */
	RUN_KIND_GUARD = 3, /* MADV_GUARD_INSTALL */
};

#define RUN_BLOCK_MASK ((1ULL << 56) - 1)

struct run {
	uint64_t start, count, from;
};

struct runs {
	struct run *v;
	size_t count, room;
};

static inline uint64_t run_from(enum run_kind kind, uint64_t block)
{
	return (uint64_t)kind << 56 | block;
}

static inline enum run_kind run_kind(uint64_t from)
{
	return (enum run_kind)(from >> 56);
}

/* `from` of a page further on in a run. */
static inline uint64_t run_from_at(uint64_t from, uint64_t offset)
{
	enum run_kind kind = run_kind(from);

	return kind == RUN_KIND_NEW || kind == RUN_KIND_OLD ? from + offset : from;
}

void runs_deinit(struct runs *r);
/* At the end: start is not before the end of the last run. */
int runs_add(struct runs *r, uint64_t start, uint64_t count, uint64_t from) _must_check_;
/* What lies in top replaces what base had there; RUN_KIND_NONE takes it away if drop is set. */
int runs_overlay(struct runs *base, const struct runs *top, bool drop) _must_check_;
/* By start; runs stay as they are. */
void runs_sort(struct runs *r);
/* Sorts runs that were added out of order (not by runs_add) and joins them; kinds do not matter. */
void runs_normalise(struct runs *r);
/* Any order; call runs_normalise() before anything else. */
int runs_push(struct runs *r, uint64_t start, uint64_t count) _must_check_;
/* Index of the run that holds the page or, if none does, of the next one. */
size_t runs_find(const struct runs *r, uint64_t page);
/* True if some page of the range is in a run. */
bool runs_touch(const struct runs *r, uint64_t start, uint64_t count);
/* `from` of a page; RUN_KIND_NONE if it has none. */
uint64_t runs_at(const struct runs *r, uint64_t page);
