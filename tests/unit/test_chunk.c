// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "agent/pack/chunk.h"
#include "agent/pack/keys.h"

enum { CONTENT = 20 << 20, CHUNKS_MAX = CONTENT / CHUNK_MIN + 2 };

struct cut_file {
	size_t count;
	uint32_t sizes[CHUNKS_MAX];
	struct object_hash hashes[CHUNKS_MAX];
};

static struct cut_file *cut(const uint8_t *bytes, size_t size)
{
	struct cut_file *f = calloc(1, sizeof(*f));
	struct chunker c;

	assert_non_null(f);
	chunker_init(&c);
	for (size_t at = 0; at < size; f->count++) {
		size_t n = chunker_cut(&c, bytes + at, size - at);

		assert_in_range(n, 1, CHUNK_MAX);
		assert_true(n >= CHUNK_MIN || at + n == size);
		assert_true(f->count < CHUNKS_MAX);
		f->sizes[f->count] = (uint32_t)n;
		object_hash_of(bytes + at, n, &f->hashes[f->count]);
		at += n;
	}
	return f;
}

/* Bytes of b in chunks that a does not have. */
static size_t news(const struct cut_file *a, const struct cut_file *b)
{
	size_t sum = 0;

	for (size_t i = 0; i < b->count; i++) {
		bool known = false;

		for (size_t k = 0; k < a->count && !known; k++)
			known = !memcmp(&a->hashes[k], &b->hashes[i], sizeof(a->hashes[k]));
		sum += known ? 0 : b->sizes[i];
	}
	return sum;
}

static uint8_t *noise(size_t size)
{
	uint8_t *bytes = malloc(size);
	uint64_t x = 88172645463325252u;

	assert_non_null(bytes);
	for (size_t i = 0; i < size; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		bytes[i] = (uint8_t)x;
	}
	return bytes;
}

static void sizes(void **state)
{
	uint8_t *bytes = noise(CONTENT);
	struct cut_file *f = cut(bytes, CONTENT);
	size_t average = CONTENT / f->count;

	(void)state;
	printf("%zu chunks, %zu bytes on the average\n", f->count, average);
	assert_in_range(average, CHUNK_AVERAGE * 3 / 4, CHUNK_AVERAGE * 3 / 2);
	free(f);
	memset(bytes, 0, CONTENT);
	f = cut(bytes, CONTENT);
	assert_true(f->count <= CONTENT / CHUNK_MIN);
	free(f);
	free(bytes);
}

/* One byte, and an odd number of bytes, in front, in the middle, taken away. */
static void insertion(void **state)
{
	static const struct {
		size_t at, size;
	} rows[] = { { 0, 1 }, { 0, 1000003 }, { CONTENT / 2, 1 }, { CONTENT / 2, 777 } };
	uint8_t *bytes = noise(CONTENT), *more = malloc(2 * CONTENT);
	struct cut_file *before = cut(bytes, CONTENT);

	(void)state;
	assert_non_null(more);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct cut_file *after;
		size_t sum;

		memcpy(more, bytes, rows[i].at);
		memset(more + rows[i].at, 'x', rows[i].size);
		memcpy(more + rows[i].at + rows[i].size, bytes + rows[i].at, CONTENT - rows[i].at);
		after = cut(more, CONTENT + rows[i].size);
		sum = news(before, after);
		printf("%zu bytes at %zu: %zu bytes in new chunks\n", rows[i].size, rows[i].at,
		       sum);
		assert_in_range(sum, rows[i].size, rows[i].size + 4 * CHUNK_MAX);
		sum = news(after, before); /* the same, taken away again */
		assert_true(sum <= 4 * CHUNK_MAX);
		free(after);
	}
	free(before);
	free(more);
	free(bytes);
}

/* The same numbers for ever: else nothing that is stored is known again after an upgrade. */
static void cuts_stay(void **state)
{
	uint8_t *bytes = noise(1 << 20);
	struct cut_file *f = cut(bytes, 1 << 20);

	(void)state;
	assert_int_equal(f->sizes[0], 67727);
	assert_int_equal(f->sizes[1], 66157);
	free(f);
	free(bytes);
}

static void table(void **state)
{
	static const uint8_t bytes[] = { 0x00, 0x50, 0, 0, 1, 0x40, 0, 0, 7, 0, 0, 0 };
	const struct chunk_note note = { .size = 0x5000 + 0x4001 + 7, .count = 3 };
	const uint64_t stored = 0x5000 + 0x5000 + 0x1000 + sizeof(bytes);
	struct chunk_table t;
	size_t size;

	(void)state;
	assert_int_equal(chunk_table_size(&note, stored, &size), 0);
	assert_int_equal(size, sizeof(bytes));
	assert_int_equal(chunk_table_decode(bytes, size, &note, stored, &t), 0);
	assert_int_equal(chunk_table_find(&t, 0), 0);
	assert_int_equal(chunk_table_find(&t, 0x4fff), 0);
	assert_int_equal(chunk_table_find(&t, 0x5000), 1);
	assert_int_equal(chunk_table_find(&t, note.size - 1), 2);
	assert_int_equal(t.places[2].stored, 0xa000);
	chunk_table_deinit(&t);
	for (size_t i = 0; i < sizeof(bytes); i++) { /* no other table has these sums */
		uint8_t wrong[sizeof(bytes)];

		memcpy(wrong, bytes, sizeof(bytes));
		wrong[i] ^= 0x11;
		assert_int_equal(chunk_table_decode(wrong, size, &note, stored, &t), -EBADMSG);
	}
	assert_int_equal(chunk_table_decode(bytes, size - 4, &note, stored, &t), -EBADMSG);
	assert_int_equal(chunk_table_decode(bytes, size, &note, stored + 4096, &t), -EBADMSG);
}

static void note_is_exact(void **state)
{
	const struct chunk_note note = { .size = UINT64_C(0x123456789ab), .count = 77 };
	uint8_t xattr[CHUNK_XATTR_BYTES];
	struct chunk_note read;

	(void)state;
	chunk_note_encode(&note, xattr);
	read = chunk_note_of(xattr, sizeof(xattr));
	assert_int_equal(read.size, note.size);
	assert_int_equal(read.count, note.count);
	assert_int_equal(chunk_note_of(xattr, sizeof(xattr) - 1).count, 0);
	assert_int_equal(chunk_note_of(NULL, 0).count, 0);
	xattr[0] ^= 1;
	assert_int_equal(chunk_note_of(xattr, sizeof(xattr)).count, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes),	 cmocka_unit_test(insertion),
		cmocka_unit_test(cuts_stay),	 cmocka_unit_test(table),
		cmocka_unit_test(note_is_exact),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
