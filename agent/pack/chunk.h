/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files cut where their content says so, so that what is the same is cut the same way wherever it
 * lies: a byte that is put in front changes the chunks around it only.
 *
 *   stored file = { chunk zero-padding }  table        each chunk begins at a multiple of 4096
 *   table       = { size:u32 }                         little-endian, one for each chunk
 *   note        = size:u64 count:u32                   of the content; an xattr of the stored file
 *
 * Packs know blocks of 4096 bytes again by their keyed hash (pack.h): since a chunk begins where a
 * block does, equal chunks are equal blocks. A file of one chunk is stored as it is, without table
 * and note. Cut points are found by FastCDC (Xia et al., ATC 2016): a rolling sum of Gear numbers,
 * with a harder condition before the average size and a softer one after it.
 *
 * Limits: below. Errors: -EBADMSG for a table that is none. Threading: pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/util/cleanup.h"

enum {
	CHUNK_MIN = 16 << 10, /* but for the last one */
	CHUNK_AVERAGE = 64 << 10,
	CHUNK_MAX = 256 << 10,
	CHUNK_ALIGN = 4096,
	CHUNK_COUNT_MAX = 1 << 20, /* of one file: 16 GiB at least */
	CHUNK_NOTE_BYTES = 12,
};
#define CHUNK_NOTE_NAME "user.decamp.chunks"
/* As struct pack_input wants xattrs: name, NUL, u32 size, value. */
enum { CHUNK_XATTR_BYTES = sizeof(CHUNK_NOTE_NAME) + 4 + CHUNK_NOTE_BYTES };

struct chunker {
	uint64_t gear[256];
};

void chunker_init(struct chunker *c);
/*
 * Bytes of the chunk that begins at `bytes`: all of them if there is no cut. size is CHUNK_MAX or
 * more, or what the file has left.
 */
size_t chunker_cut(const struct chunker *c, const uint8_t *bytes, size_t size);

static inline uint64_t chunk_padded(uint64_t size)
{
	return (size + CHUNK_ALIGN - 1) / CHUNK_ALIGN * CHUNK_ALIGN;
}

/* What a stored file's note says; count 0: none, the file is its content. */
struct chunk_note {
	uint64_t size;
	uint32_t count;
};
void chunk_note_encode(const struct chunk_note *note, uint8_t ret_xattr[CHUNK_XATTR_BYTES]);
/* Of valid xattrs (manifest_xattrs_valid()); anything else than one whole note is none. */
struct chunk_note chunk_note_of(const uint8_t *xattrs, size_t size);

/* Where each chunk lies. */
struct chunk_table {
	uint32_t count;
	struct chunk_place {
		uint64_t offset; /* in the content */
		uint64_t stored; /* in the stored file */
	} * places;		 /* count + 1: the last one is the end */
};

/* Bytes of the table at the end of the stored file; -EBADMSG if note and size cannot be true. */
int chunk_table_size(const struct chunk_note *note, uint64_t stored_size,
		     size_t *ret_size) _must_check_;
int chunk_table_decode(const uint8_t *bytes, size_t size, const struct chunk_note *note,
		       uint64_t stored_size, struct chunk_table *ret_table) _must_check_;
void chunk_table_deinit(struct chunk_table *table);
/* The chunk with this byte of the content, which has one. */
uint32_t chunk_table_find(const struct chunk_table *table, uint64_t offset);
