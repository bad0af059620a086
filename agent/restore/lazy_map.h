/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which block of a memory image belongs at which address of one address space, while the process
 * maps, moves and drops. Addresses and blocks count pages of 4 KiB. Threading: none.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/util/cleanup.h"

struct lazy_run {
	uint64_t page, count, block;
};

struct lazy_map {
	struct lazy_run *runs; /* by block, none overlap */
	size_t count, capacity;
	bool moved; /* addresses are not in the order of blocks any more */
};

void lazy_map_deinit(struct lazy_map *m);
/* Blocks rise from call to call. */
int lazy_map_append(struct lazy_map *m, uint64_t page, uint64_t count, uint64_t block) _must_check_;
int lazy_map_copy(const struct lazy_map *m, struct lazy_map *ret_copy) _must_check_;
/* False: nothing of the image belongs there. */
bool lazy_map_find(const struct lazy_map *m, uint64_t page, uint64_t *ret_block);
/* Unmapped, or dropped by madvise: zeros from now on. */
int lazy_map_drop(struct lazy_map *m, uint64_t page, uint64_t count) _must_check_;
int lazy_map_move(struct lazy_map *m, uint64_t from, uint64_t to, uint64_t count) _must_check_;
/*
 * The first run that has one of the blocks block...block + count - 1, as its part of them; false if
 * there is none.
 */
bool lazy_map_place(const struct lazy_map *m, uint64_t block, uint64_t count,
		    struct lazy_run *ret_part);
