/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Large files to which objects are appended; each lies in an extent of its own.
 *
 *   <state_dir>/segments/<8 hex>   extents, each at a multiple of 4096, in no order of meaning
 *
 * An extent is reserved when its object begins to arrive and written while others are, too. It is
 * never written twice. One that is released is punched out of its file, so that the disk has the
 * room at once and nothing is ever rewritten; a file without extents is unlinked. Where the file
 * system cannot punch, each object gets a file of its own.
 *
 * After a sync that failed nobody knows what is on the disk of what was written since the one
 * before, and the next one says nothing about it: such a segment takes no more, and what arrives
 * in it fails.
 *
 * Threading: any. Limits: SEGMENTS_MAX files, SEGMENT_BYTES each.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "overlay/store/io.h"

enum {
	SEGMENT_BYTES = 256 << 20,
	SEGMENTS_MAX = 1 << 20,
	SEGMENT_ALIGN = 4096,
};

struct extent {
	uint32_t segment; /* from 1 on */
	uint32_t size;	  /* of the object; the disk takes extent_room() */
	uint64_t offset;
};

struct segments;

static inline uint64_t extent_room(uint32_t size)
{
	return ((uint64_t)size + SEGMENT_ALIGN - 1) / SEGMENT_ALIGN * SEGMENT_ALIGN;
}

/* Looks at what is there; state_fd is borrowed for the call. */
int segments_open(const struct store_io *io, int state_fd, struct segments **ret_segments)
	__attribute__((warn_unused_result));
void segments_close(struct segments *segments);
/* The folder, valid until segments_close(). */
int segments_fd(const struct segments *segments);

/*
 * At open, before anything else: the extents that are needed, by segment and offset. ret_hollow[i] says
 * that extents[i] is not wholly in its file. All other room is given back.
 */
int segments_settle(struct segments *segments, const struct extent *extents, uint32_t count,
		    bool *ret_hollow) __attribute__((warn_unused_result));

/* Room for an object that arrives. */
int segments_reserve(struct segments *segments, uint32_t size, struct extent *ret_extent)
	__attribute__((warn_unused_result));
/* Only of an extent that is reserved and neither kept nor released yet. */
int segments_write(struct segments *segments, const struct extent *extent, uint32_t at,
		   const void *bytes, size_t size) __attribute__((warn_unused_result));
/* Makes durable what was written to these; status[i] < 0: extents[i] is lost. */
void segments_sync(struct segments *segments, const struct extent *extents, uint32_t count,
		   int *status);
/* A reserved extent has arrived: it stays. */
void segments_keep(struct segments *segments, const struct extent *extent);
/* A reserved extent that will not be kept, or one that was (is_kept). */
void segments_release(struct segments *segments, const struct extent *extent, bool is_kept);
/*
 * A reserved extent of which the index may or may not speak after a failure: its room stays taken
 * until the next open, which knows.
 */
void segments_abandon(struct segments *segments, const struct extent *extent);

/* -ENOENT: no such file any more. */
int segments_open_extent(struct segments *segments, const struct extent *extent, int *ret_fd)
	__attribute__((warn_unused_result));
/* Its file is not what it was: nothing more goes there. */
void segments_distrust(struct segments *segments, const struct extent *extent);
/* The file holds the whole extent, by its size. */
bool segments_has(struct segments *segments, const struct extent *extent);

/* Bytes that are given back by nobody: a punch failed. */
uint64_t segments_dead_bytes(struct segments *segments);
uint32_t segments_count(struct segments *segments);
