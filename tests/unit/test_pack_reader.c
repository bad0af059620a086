// SPDX-License-Identifier: LGPL-2.1-or-later
/* Parts of a checkpoint's files, in any order, with and without a spool. */
#include <stdlib.h>

#include "tests/unit/pack_lab.h"

enum { BLOCKS = 5800, TAIL = 1234, SIZE = BLOCKS * PACK_BLOCK + TAIL, READS = 120 };

static const char path[] = "pages-1.img";

/* Random blocks, zeros, and blocks that repeat earlier ones. */
static uint8_t *make_content(void)
{
	uint8_t *bytes = calloc(1, SIZE + PACK_BLOCK);

	lab_fill_random(bytes, SIZE + 6);
	for (size_t i = 100; i < BLOCKS; i += 97)
		memset(bytes + i * PACK_BLOCK, 0, 13 * PACK_BLOCK);
	for (size_t i = 5000; i < 5600; i++)
		memcpy(bytes + i * PACK_BLOCK, bytes + (9999 - i) * PACK_BLOCK, PACK_BLOCK);
	memset(bytes + SIZE, 0, PACK_BLOCK);
	return bytes;
}

/* Two checkpoints, so that the last one refers to packs of both. */
static uint8_t *make_checkpoints(struct lab *lab)
{
	uint8_t *bytes = make_content();

	for (int round = 0; round < 2; round++) {
		int fd = lab_content_fd(bytes, SIZE), small = lab_content_fd("small", 5);

		lab_begin(lab);
		assert_int_equal(lab_add(lab, FILE_IMAGE, path, fd), 0);
		assert_int_equal(lab_add(lab, FILE_UPPER, "0/small", small), 0);
		lab_finish(lab);
		close(fd);
		close(small);
		if (round == 0)
			for (size_t i = 7; i < BLOCKS; i += 11)
				lab_fill_random(bytes + i * PACK_BLOCK, PACK_BLOCK);
	}
	return bytes;
}

static struct manifest_reader *open_reader(struct lab *lab, const struct manifest *m, bool spool,
					   uint64_t spool_max)
{
	struct manifest_reader *r;

	assert_int_equal(manifest_reader_create(m, &lab->job_key, lab_get, &lab->store,
						spool ? memfd_new("spool") : -1, spool_max, &r),
			 0);
	return r;
}

static void read_at_random(struct manifest_reader *r, const uint8_t *bytes)
{
	uint8_t *back = malloc(SIZE);

	srand(5);
	for (int i = 0; i < READS; i++) {
		size_t offset = (size_t)rand() % SIZE, size = (size_t)rand() % 300000;

		if (i % 3 == 0)
			size %= 5000;
		if (size > SIZE - offset)
			size = SIZE - offset;
		memset(back, 0xa5, size + 1);
		assert_int_equal(manifest_read(r, 0, offset, back, size), 0);
		assert_memory_equal(back, bytes + offset, size);
	}
	free(back);
}

static void test_any_order(void **state)
{
	struct lab *lab = *state;
	uint8_t *bytes = make_checkpoints(lab), small[5];
	struct manifest *m = lab_open_manifest(lab);
	struct manifest_reader *r = open_reader(lab, m, true, UINT64_MAX);

	lab->store.gets = 0;
	read_at_random(r, bytes);
	assert_true(manifest_object_count(m) > 4);
	/* With a spool no pack is fetched twice. */
	assert_true(lab->store.gets <= manifest_object_count(m));
	assert_int_equal(manifest_read(r, 1, 0, small, 5), 0);
	assert_memory_equal(small, "small", 5);
	manifest_reader_destroy(r);

	r = open_reader(lab, m, false, 0);
	for (size_t at = 0; at < SIZE; at += MANIFEST_READ_MAX) {
		size_t size = SIZE - at < MANIFEST_READ_MAX ? SIZE - at : MANIFEST_READ_MAX;
		uint8_t *back = malloc(size);

		assert_int_equal(manifest_read(r, 0, at, back, size), 0);
		assert_memory_equal(back, bytes + at, size);
		free(back);
	}
	manifest_reader_destroy(r);
	manifest_destroy(m);
	free(bytes);
}

/* A spool with room for two packs: the rest comes from the holders again, and is right. */
static void test_full_spool(void **state)
{
	struct lab *lab = *state;
	uint8_t *bytes = make_checkpoints(lab);
	struct manifest *m = lab_open_manifest(lab);
	struct manifest_reader *r = open_reader(lab, m, true, 10 << 20);

	lab->store.gets = 0;
	read_at_random(r, bytes);
	assert_true(lab->store.gets > manifest_object_count(m));
	manifest_reader_destroy(r);
	manifest_destroy(m);
	free(bytes);
}

static void test_refuse(void **state)
{
	struct lab *lab = *state;
	uint8_t *bytes = make_checkpoints(lab), *back = malloc(MANIFEST_READ_MAX + 1);
	struct manifest *m = lab_open_manifest(lab);
	struct manifest_reader *r = open_reader(lab, m, true, UINT64_MAX);

	assert_int_equal(manifest_read(r, 0, 0, back, MANIFEST_READ_MAX + 1), -EINVAL);
	assert_int_equal(manifest_read(r, 0, SIZE - 1, back, 2), -EINVAL);
	assert_int_equal(manifest_read(r, 0, SIZE + 1ULL, back, 0), -EINVAL);
	assert_int_equal(manifest_read(r, 0, UINT64_MAX, back, 1), -EINVAL);
	assert_int_equal(manifest_read(r, 2, 0, back, 1), -EINVAL);
	assert_int_equal(manifest_read(r, 0, SIZE, back, 0), 0);

	/* A holder that lies, one that is away; then all is well again. */
	lab->store.lie = true;
	memset(back, 1, 5000);
	assert_int_equal(manifest_read(r, 0, 0, back, 5000), -EBADMSG);
	for (int i = 0; i < 5000; i++)
		assert_int_equal(back[i], 0);
	lab->store.lie = false;
	lab->store.fail = -EHOSTUNREACH;
	assert_int_equal(manifest_read(r, 0, 0, back, 5000), -EHOSTUNREACH);
	lab->store.fail = 0;
	assert_int_equal(manifest_read(r, 0, 0, back, 5000), 0);
	assert_memory_equal(back, bytes, 5000);
	manifest_reader_destroy(r);
	manifest_destroy(m);
	free(back);
	free(bytes);
}

/* Whatever changes in the spool, no byte of it gets out. */
static void test_spool_is_not_trusted(void **state)
{
	struct lab *lab = *state;
	uint8_t *bytes = make_checkpoints(lab), *back = malloc(PACK_FRAME_RAW);
	struct manifest *m = lab_open_manifest(lab);
	struct manifest_reader *r;
	int spool = memfd_new("spool"), refused = 0;
	const uint64_t far = (uint64_t)BLOCKS / 2 * PACK_BLOCK;

	assert_int_equal(manifest_reader_create(m, &lab->job_key, lab_get, &lab->store, spool,
						UINT64_MAX, &r),
			 0);
	assert_int_equal(manifest_read(r, 0, 0, back, PACK_BLOCK), 0);
	assert_int_equal(manifest_read(r, 0, far, back, PACK_BLOCK), 0);
	for (off_t at = 100; at < 4 << 20; at += 200000) {
		uint8_t byte;

		assert_int_equal(pread_full(spool, &byte, 1, at), 0);
		byte ^= 0x40;
		assert_int_equal(pwrite_full(spool, &byte, 1, at), 0);
	}
	for (size_t at = 0; at < 200; at++) {
		int e = manifest_read(r, 0, at * PACK_BLOCK, back, PACK_BLOCK);

		if (e == 0)
			assert_memory_equal(back, bytes + at * PACK_BLOCK, PACK_BLOCK);
		else
			assert_int_equal(e, -EBADMSG);
		refused += e < 0;
	}
	assert_true(refused > 0);
	manifest_reader_destroy(r);
	manifest_destroy(m);
	free(back);
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = { TEST(test_any_order), TEST(test_full_spool),
					    TEST(test_refuse), TEST(test_spool_is_not_trusted) };

	return cmocka_run_group_tests_name("pack_reader", tests, NULL, NULL);
}
