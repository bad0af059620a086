// SPDX-License-Identifier: LGPL-2.1-or-later
/* Packs that are kept as shards: which ones may be, what the manifest says, when they are weak. */
#include "overlay/ipc.h"
#include "pack_lab.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

enum { SIZE = 6 << 20, SIZE_MIN = 256 << 10, SHARDS = 6 };

static struct node_id holders[SHARDS];

static size_t count_old(struct packer *p, uint64_t age, struct pack_old *ret_first)
{
	struct pack_old *packs;
	size_t count;

	assert_int_equal(packer_old(p, age, SIZE_MIN, &packs, &count), 0);
	if (count > 0)
		*ret_first = packs[0];
	for (size_t i = 1; i < count; i++)
		assert_true(packs[i - 1].seq <= packs[i].seq);
	free(packs);
	return count;
}

static size_t count_coded(struct packer *p)
{
	struct object_hash *hashes;
	uint64_t bytes;
	size_t count;

	assert_int_equal(packer_coded(p, &hashes, &count, &bytes), 0);
	assert_true((count > 0) == (bytes > 0));
	free(hashes);
	return count;
}

static void checkpoint(struct lab *lab, const uint8_t *bytes, int number)
{
	int big = lab_content_fd(bytes, SIZE), small = lab_content_fd(&number, sizeof(number));

	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "big", big), 0);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "small", small), 0);
	lab_finish(lab);
	close(big);
	close(small);
}

/* Three checkpoints; the first pack is coded after the second. */
static uint8_t *make(struct lab *lab, struct pack_old *ret_pack)
{
	uint8_t *bytes = malloc(SIZE);
	struct node_id five[SHARDS] = { 0 };
	struct pack_old none;

	assert_non_null(bytes);
	lab_fill_random(bytes, SIZE);
	for (uint8_t i = 0; i < SHARDS; i++)
		holders[i].b[0] = (uint8_t)(10 + i);
	checkpoint(lab, bytes, 1);
	assert_int_equal(count_old(lab->packer, 1, &none), 0);
	checkpoint(lab, bytes, 2);
	assert_int_equal(count_old(lab->packer, 2, &none), 0);
	assert_int_equal(count_old(lab->packer, 1, ret_pack), 2);
	assert_int_equal(packer_set_coded(lab->packer, &ret_pack->hash, 5, 1, five), -EINVAL);
	assert_int_equal(packer_set_coded(lab->packer, &ret_pack->hash, 4, 2, holders), 0);
	memset(&none.hash, 7, sizeof(none.hash));
	assert_int_equal(packer_set_coded(lab->packer, &none.hash, 4, 2, holders), -ENOENT);
	assert_int_equal(count_old(lab->packer, 1, &none), 1);
	/* No manifest says so yet: copies stay. */
	assert_int_equal(count_coded(lab->packer), 0);
	checkpoint(lab, bytes, 3);
	assert_int_equal(count_coded(lab->packer), 1);
	return bytes;
}

/* The lab's store knows of two copies. */
static int fetch(void *ctx, const struct object_hash *hash, uint32_t size,
		 const struct node_id *named, uint32_t count, int *ret_memfd)
{
	struct node_id two[2] = { { .b = { 1 } } };

	if (count != OV_HOLDERS_MAX && (count != 2 || named[0].b[0] != 1))
		return -EINVAL;
	return lab_get(ctx, hash, size, two, 2, ret_memfd);
}

static void read_back(struct lab *lab, const uint8_t *bytes, struct packer *seed)
{
	struct manifest *m = lab_open_manifest(lab);
	uint8_t *back = malloc(SIZE);
	int fds[2] = { memfd_new("big"), memfd_new("small") };

	assert_non_null(back);
	assert_int_equal(manifest_file_count(m), 2);
	assert_int_equal(manifest_unpack(m, &lab->job_key, fds, fetch, &lab->store, seed, NULL), 0);
	assert_int_equal(pread_full(fds[0], back, SIZE, 0), 0);
	assert_memory_equal(back, bytes, SIZE);
	close(fds[0]);
	close(fds[1]);
	free(back);
	manifest_destroy(m);
}

static void the_manifest_says_so(void **state)
{
	struct lab *lab = *state;
	struct packer *seed;
	struct manifest *m;
	struct pack_old pack, other;
	uint8_t *bytes = make(lab, &pack);
	size_t coded = 0;

	m = lab_open_manifest(lab);
	for (size_t i = 0; i < manifest_object_count(m); i++) {
		struct node_id named[OV_HOLDERS_MAX];
		struct object_hash hash;
		uint32_t size, count;

		manifest_object(m, i, &hash, &size, &count, named);
		assert_int_equal(manifest_object_coded(m, i),
				 !memcmp(&hash, &pack.hash, sizeof(hash)));
		if (!manifest_object_coded(m, i))
			continue;
		coded++;
		assert_int_equal(count, OV_HOLDERS_MAX);
		assert_memory_equal(named, holders, sizeof(named));
	}
	assert_int_equal(coded, 1);
	manifest_destroy(m);
	/* The next owner knows it from there. */
	assert_int_equal(packer_create(&lab->job, &lab->job_key, &seed), 0);
	read_back(lab, bytes, seed);
	assert_int_equal(count_coded(seed), 1);
	seed->seq = lab->seq;
	assert_int_equal(count_old(seed, 1, &other), 1);
	assert_memory_not_equal(&other.hash, &pack.hash, sizeof(pack.hash));
	packer_destroy(seed);
	free(bytes);
}

/* Those of the first `count` shards; the lab's copies are on hosts that are always there. */
static bool is_alive(void *ctx, const struct node_id *node)
{
	for (int i = 0; i < SHARDS; i++)
		if (node_id_equal(&holders[i], node))
			return i < *(int *)ctx;
	return true;
}

static void shards_are_weak_when_too_few_live(void **state)
{
	struct lab *lab = *state;
	struct packer_counts before, after;
	struct pack_old pack;
	uint8_t *bytes = make(lab, &pack);
	int living = 4;

	packer_forget_weak(lab->packer, 1, is_alive, &living);
	checkpoint(lab, bytes, 4);
	packer_counts(lab->packer, &before);
	assert_true(before.new_bytes <= 2 * PACK_BLOCK);
	living = 3;
	packer_forget_weak(lab->packer, 1, is_alive, &living);
	checkpoint(lab, bytes, 5);
	packer_counts(lab->packer, &after);
	assert_true(after.new_bytes > pack.size / 2);
	assert_int_equal(count_coded(lab->packer), 0);
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(the_manifest_says_so),
		TEST(shards_are_weak_when_too_few_live),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
