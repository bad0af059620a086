// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: agent/pack/chunk.c
/*
 * bytes = note:12 stored_size:u64 table. A table that decodes covers content and stored file
 * exactly, and each byte of the content is found in its chunk. The rest is cut, too.
 */
#include <stdlib.h>
#include <string.h>

#include "agent/pack/chunk.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void check_table(const struct chunk_table *t, const struct chunk_note *note,
			uint64_t stored_size)
{
	for (uint32_t i = 0; i < t->count; i++) {
		const struct chunk_place *p = &t->places[i];

		if (p[1].offset <= p->offset || p[1].stored < p->stored + p[1].offset - p->offset ||
		    p[1].stored > stored_size || p->stored % CHUNK_ALIGN)
			abort();
		if (chunk_table_find(t, p->offset) != i ||
		    chunk_table_find(t, p[1].offset - 1) != i)
			abort();
	}
	if (t->count != note->count || t->places[t->count].offset != note->size)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	uint8_t xattr[CHUNK_XATTR_BYTES];
	struct chunk_note note = { 0 };
	struct chunk_table table;
	struct chunker chunker;
	uint64_t stored;

	(void)chunk_note_of(bytes, size);
	chunker_init(&chunker);
	for (size_t at = 0, n; at < size; at += n) {
		n = chunker_cut(&chunker, bytes + at, size - at);
		if (n < 1 || n > CHUNK_MAX || n > size - at)
			abort();
	}
	if (size < CHUNK_NOTE_BYTES + sizeof(stored))
		return 0;
	chunk_note_encode(&note, xattr);
	memcpy(xattr + sizeof(xattr) - CHUNK_NOTE_BYTES, bytes, CHUNK_NOTE_BYTES);
	note = chunk_note_of(xattr, sizeof(xattr));
	memcpy(&stored, bytes + CHUNK_NOTE_BYTES, sizeof(stored));
	bytes += CHUNK_NOTE_BYTES + sizeof(stored);
	size -= CHUNK_NOTE_BYTES + sizeof(stored);
	if (chunk_table_decode(bytes, size, &note, stored, &table) < 0)
		return 0;
	check_table(&table, &note, stored);
	chunk_table_deinit(&table);
	return 0;
}
