/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Backends that know which pages of an address space were written.
 *
 * The job runs in attach, cover, round and detach; it stands in tracks, written and settled. All
 * of them may find that the memory has ended meanwhile: -ESRCH.
 */
#pragma once

#include "agent/native/mem_internal.h"

struct track_ops {
	const char *name;
	bool hollow;  /* written() does not report pages that were given back: list all there are */
	bool compare; /* written() reports everything: pages are compared by hash */
	bool (*probe)(const struct native_mem *m);
	int (*attach)(struct native_mem *m, struct mem_mm *mm);
	/* VMAs as they are now. ret_new: those that are new to it, of which nothing is known. */
	int (*cover)(struct native_mem *m, struct mem_mm *mm, const struct state_vma *vmas,
		     size_t count, struct runs *ret_new);
	/* Populated pages written since the last round, with the categories of report. NULL: no rounds. */
	int (*round)(struct native_mem *m, struct mem_mm *mm, uint64_t start, uint64_t end,
		     uint64_t report, struct regions *out);
	/* The VMA is followed since the last cover() at least. */
	bool (*tracks)(const struct mem_mm *mm, const struct state_vma *vma);
	/* Ranges written since the last round, populated or not; changes nothing. */
	int (*written)(struct native_mem *m, struct mem_mm *mm, uint64_t start, uint64_t end,
		       struct regions *out);
	/* The pause has read all that written() named: the next interval begins. May be NULL. */
	int (*settled)(struct native_mem *m, struct mem_mm *mm);
	/* All VMAs, listed after the first cover() and after settled(). May be NULL. */
	int (*listed)(struct mem_mm *mm, const struct state_vma *vmas, size_t count);
	void (*detach)(struct mem_mm *mm);
};

extern const struct track_ops track_uffd;
extern const struct track_ops track_soft;
extern const struct track_ops track_hash;
