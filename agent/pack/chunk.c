// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/pack/chunk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * The highest bits have seen the most bytes: 64 of them. Two bits more than the average asks for
 * before it, two fewer after it, as the paper advises.
 */
#define MASK_BEFORE (~UINT64_C(0) << (64 - 18))
#define MASK_AFTER (~UINT64_C(0) << (64 - 14))

_Static_assert(CHUNK_AVERAGE == 1 << 16, "the masks are made for it");

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014): any numbers without a pattern would do. */
static uint64_t next_number(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

void chunker_init(struct chunker *c)
{
	uint64_t state = UINT64_C(0x646563616d70); /* never changes: else nothing is known again */

	for (size_t i = 0; i < ARRAY_SIZE(c->gear); i++)
		c->gear[i] = next_number(&state);
}

size_t chunker_cut(const struct chunker *c, const uint8_t *bytes, size_t size)
{
	size_t end = size < CHUNK_MAX ? size : CHUNK_MAX;
	size_t average = end < CHUNK_AVERAGE ? end : CHUNK_AVERAGE;
	uint64_t sum = 0;
	size_t i = CHUNK_MIN;

	if (size <= CHUNK_MIN)
		return size;
	for (; i < average; i++) {
		sum = (sum << 1) + c->gear[bytes[i]];
		if (!(sum & MASK_BEFORE))
			return i + 1;
	}
	for (; i < end; i++) {
		sum = (sum << 1) + c->gear[bytes[i]];
		if (!(sum & MASK_AFTER))
			return i + 1;
	}
	return end;
}

/* ---- the note ---- */

static void put_number(uint8_t *bytes, uint64_t number, size_t size)
{
	for (size_t i = 0; i < size; i++)
		bytes[i] = (uint8_t)(number >> (8 * i));
}

static uint64_t get_number(const uint8_t *bytes, size_t size)
{
	uint64_t number = 0;

	for (size_t i = 0; i < size; i++)
		number |= (uint64_t)bytes[i] << (8 * i);
	return number;
}

void chunk_note_encode(const struct chunk_note *note, uint8_t ret_xattr[CHUNK_XATTR_BYTES])
{
	uint8_t *at = ret_xattr + sizeof(CHUNK_NOTE_NAME);

	memcpy(ret_xattr, CHUNK_NOTE_NAME, sizeof(CHUNK_NOTE_NAME));
	put_number(at, CHUNK_NOTE_BYTES, 4);
	put_number(at + 4, note->size, 8);
	put_number(at + 12, note->count, 4);
}

struct chunk_note chunk_note_of(const uint8_t *xattrs, size_t size)
{
	struct chunk_note note = { 0 };
	const uint8_t *at;

	if (size != CHUNK_XATTR_BYTES || memcmp(xattrs, CHUNK_NOTE_NAME, sizeof(CHUNK_NOTE_NAME)))
		return note;
	at = xattrs + sizeof(CHUNK_NOTE_NAME);
	if (get_number(at, 4) != CHUNK_NOTE_BYTES)
		return note;
	note.size = get_number(at + 4, 8);
	note.count = (uint32_t)get_number(at + 12, 4);
	return note;
}

/* ---- the table ---- */

int chunk_table_size(const struct chunk_note *note, uint64_t stored_size, size_t *ret_size)
{
	uint64_t size = (uint64_t)note->count * 4;

	if (note->count < 2 || note->count > CHUNK_COUNT_MAX || size > stored_size ||
	    note->size > stored_size - size)
		return -EBADMSG;
	*ret_size = (size_t)size;
	return 0;
}

int chunk_table_decode(const uint8_t *bytes, size_t size, const struct chunk_note *note,
		       uint64_t stored_size, struct chunk_table *ret_table)
{
	_cleanup_free_ struct chunk_place *places = NULL;
	size_t expected;
	int r = chunk_table_size(note, stored_size, &expected);

	if (r < 0 || size != expected)
		return -EBADMSG;
	places = calloc((size_t)note->count + 1, sizeof(*places));
	if (!places)
		return -ENOMEM;
	for (uint32_t i = 0; i < note->count; i++) {
		uint64_t chunk = get_number(bytes + 4 * (size_t)i, 4);

		if (chunk < 1 || chunk > CHUNK_MAX)
			return -EBADMSG;
		places[i + 1].offset = places[i].offset + chunk;
		places[i + 1].stored = places[i].stored + chunk_padded(chunk);
	}
	if (places[note->count].offset != note->size ||
	    places[note->count].stored != stored_size - size)
		return -EBADMSG;
	ret_table->count = note->count;
	ret_table->places = take_ptr(places);
	return 0;
}

void chunk_table_deinit(struct chunk_table *table)
{
	free(table->places);
	*table = (struct chunk_table){ 0 };
}

uint32_t chunk_table_find(const struct chunk_table *table, uint64_t offset)
{
	uint32_t low = 0, high = table->count - 1;

	while (low < high) {
		uint32_t middle = low + (high - low + 1) / 2;

		if (table->places[middle].offset <= offset)
			low = middle;
		else
			high = middle - 1;
	}
	return low;
}
