// SPDX-License-Identifier: LGPL-2.1-or-later
/* Blocks that are sent as differences to their last version, and what must stay for them. */
#include <errno.h>

#include "tests/unit/pack_lab.h"

enum { BLOCKS = 200, SIZE = BLOCKS * PACK_BLOCK };

struct image {
	uint8_t bytes[SIZE];
	int fd;
};

static struct image *new_image(void)
{
	struct image *m = malloc(sizeof(*m));

	assert_non_null(m);
	lab_fill_random(m->bytes, SIZE);
	m->fd = lab_content_fd(m->bytes, SIZE);
	return m;
}

static void free_image(struct image *m)
{
	close(m->fd);
	free(m);
}

/* Some words of every step-th block. */
static void change(struct image *m, size_t step, size_t words)
{
	for (size_t i = 0; i < BLOCKS; i += step)
		for (size_t j = 0; j < words; j++)
			lab_fill_random(m->bytes + i * PACK_BLOCK + (i * 37 + j * 101) % 512 * 8,
					8);
	assert_int_equal(pwrite_full(m->fd, m->bytes, SIZE, 0), 0);
}

static struct packer_counts checkpoint(struct lab *lab, const struct image *m)
{
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", m->fd), 0);
	return lab_finish(lab);
}

static uint32_t longest_chain(const struct packer *p)
{
	uint32_t longest = 0;

	for (size_t i = 0; i < p->pack_count; i++)
		for (size_t j = 0; j < p->packs[i].delta_count; j++)
			if (p->packs[i].deltas[j].depth > longest)
				longest = p->packs[i].deltas[j].depth;
	return longest;
}

/* Of the file's blocks, how many contents are there. */
static size_t in_cache(struct packer *p, const struct image *m)
{
	size_t found = 0;

	for (size_t i = 0; i < BLOCKS; i++) {
		const uint8_t *block = m->bytes + i * PACK_BLOCK, *there;
		uint32_t pack, slot;

		assert_true(block_index_find(&p->index, packer_hash(p, block), &pack, &slot));
		there = block_cache_get(&p->cache, pack_cache_key(p, pack, slot));
		if (there)
			assert_memory_equal(there, block, PACK_BLOCK);
		found += there != NULL;
	}
	return found;
}

/* In any order, some of them twice: each slot's own, and nothing for the others. */
static void test_deltas_are_found(void **state)
{
	struct pack_info info = { 0 };
	uint32_t depth[PACK_BLOCKS_MAX] = { 0 };
	size_t count = 0;

	(void)state;
	assert_null(pack_delta_find(&info, 0));
	for (uint32_t i = 1; i <= 3000; i++) {
		struct delta_info d = { .slot = (uint32_t)rand() % PACK_BLOCKS_MAX, .depth = i };

		if (i < 400)
			d.slot = i * 3; /* in order */
		count += depth[d.slot] == 0;
		depth[d.slot] = i;
		assert_int_equal(pack_delta_add(&info, &d), 0);
		assert_int_equal(info.delta_count, count);
	}
	for (uint32_t slot = 0; slot < PACK_BLOCKS_MAX; slot++) {
		const struct delta_info *d = pack_delta_find(&info, slot);

		assert_int_equal(d ? d->depth : 0, depth[slot]);
		assert_true(!d || d->slot == slot);
	}
	for (size_t i = 1; i < info.delta_count; i++)
		assert_true(info.deltas[i - 1].slot < info.deltas[i].slot);
	assert_null(pack_delta_find(&info, PACK_BLOCKS_MAX));
	assert_int_equal(pack_delta_add(&info, &(struct delta_info){ .slot = PACK_BLOCKS_MAX }),
			 -EINVAL);
	pack_info_clear(&info);
}

/* By hand, and by both ways to compute it: words in runs, alone, all and none. */
static void test_differences_are_exact(void **state)
{
	uint64_t now[PACK_BLOCK_WORDS], base[PACK_BLOCK_WORDS], mask[PACK_BLOCK_WORDS];
	struct block_delta d[2];

	(void)state;
	for (size_t round = 0; round < 3000; round++) {
		uint32_t count = 0, at = 0;

		lab_fill_random((uint8_t *)now, sizeof(now));
		memcpy(base, now, sizeof(base));
		for (size_t i = 0; i < round % 700; i++) {
			at = rand() % 3 ? at + 1 : (uint32_t)rand();
			base[at % PACK_BLOCK_WORDS] ^= (uint64_t)1 << rand() % 64;
		}
		block_delta((uint8_t *)now, (uint8_t *)base, &d[0]);
		block_delta_plain((uint8_t *)now, (uint8_t *)base, &d[1]);
		for (size_t k = 0; k < 2; k++, count = 0) {
			for (size_t i = 0; i < PACK_BLOCK_WORDS; i++) {
				bool differs = now[i] != base[i];

				assert_int_equal(d[k].map[i / 64] >> i % 64 & 1, differs);
				if (differs)
					assert_int_equal(d[k].words[count++], now[i] ^ base[i]);
			}
			assert_int_equal(d[k].count, count);
			block_delta_mask((uint8_t *)d[k].map, (uint8_t *)d[k].words,
					 (uint8_t *)mask);
			for (size_t i = 0; i < PACK_BLOCK_WORDS; i++)
				assert_int_equal(mask[i], now[i] ^ base[i]);
		}
	}
}

static void test_small_changes_cost_little(void **state)
{
	struct lab *lab = *state;
	struct image *m = new_image();
	struct packer_counts counts;

	counts = checkpoint(lab, m);
	assert_int_equal(counts.delta_bytes, 0);
	change(m, 2, 4);
	counts = checkpoint(lab, m);
	assert_int_equal(counts.new_bytes, SIZE / 2);
	assert_int_equal(counts.delta_bytes, SIZE / 2);
	/* 100 blocks, 32 random bytes each. */
	assert_true(counts.sent_bytes < 12 * 1024);
	assert_int_equal(counts.packs, 2);
	lab_check_file(lab, "a", m->bytes, SIZE);
	/* Blocks that have nothing to do with what was there. */
	lab_fill_random(m->bytes, SIZE / 4);
	change(m, BLOCKS, 1);
	counts = checkpoint(lab, m);
	assert_true(counts.delta_bytes == 0 && counts.new_bytes == SIZE / 4);
	lab_check_file(lab, "a", m->bytes, SIZE);
	free_image(m);
}

static void test_chains_are_bounded(void **state)
{
	struct lab *lab = *state;
	struct image *m = new_image();
	uint64_t whole = 0;

	checkpoint(lab, m);
	for (int i = 0; i < 60; i++) {
		struct packer_counts counts;

		/* Other words each time: the last version is always nearer than the whole one. */
		lab_fill_random(m->bytes + 5 * PACK_BLOCK + (size_t)(i % 16) * 256, 256);
		lab_fill_random(m->bytes + 9 * PACK_BLOCK + (size_t)(i % 64) * 64, 64);
		change(m, BLOCKS, 1);
		counts = checkpoint(lab, m);
		whole += (counts.new_bytes - counts.delta_bytes) / PACK_BLOCK;
		lab_check_file(lab, "a", m->bytes, SIZE);
		assert_true(longest_chain(lab->packer) <= PACK_CHAIN_MAX);
	}
	assert_true(longest_chain(lab->packer) > 1);
	/* Some had to be sent whole again, most not. */
	assert_true(whole > 0 && whole < 40);
	free_image(m);
}

static struct packer_counts change_word(struct lab *lab, struct image *m, size_t word)
{
	lab_fill_random(m->bytes + 5 * PACK_BLOCK + word * 8, 8);
	assert_int_equal(pwrite_full(m->fd, m->bytes, SIZE, 0), 0);
	return checkpoint(lab, m);
}

/* A few words more each time: the whole block stays the base, and nothing else is kept. */
static void test_near_blocks_make_no_chain(void **state)
{
	struct lab *lab = *state;
	struct image *m = new_image();

	checkpoint(lab, m);
	for (size_t i = 0; i < PACK_DELTA_NEAR; i++) {
		struct packer_counts counts = change_word(lab, m, i * 16);

		assert_int_equal(counts.delta_bytes, PACK_BLOCK);
		assert_int_equal(longest_chain(lab->packer), 1);
		lab_check_file(lab, "a", m->bytes, SIZE);
	}
	assert_int_equal(lab->packer->cache.memory.high, BLOCKS);
	/* One word too many: that version is kept, and is the next one's base. */
	change_word(lab, m, PACK_DELTA_NEAR * 16);
	change_word(lab, m, PACK_DELTA_NEAR * 16);
	assert_int_equal(longest_chain(lab->packer), 2);
	lab_check_file(lab, "a", m->bytes, SIZE);
	free_image(m);
}

static void test_chains_are_as_short_as_told(void **state)
{
	struct lab *lab = *state;
	struct packer_budget budget = PACKER_BUDGET_DEFAULT;
	struct image *m = new_image();

	for (uint32_t max = 1; max <= 3; max++) {
		uint32_t longest = 0;

		budget.chain_max = max;
		assert_int_equal(packer_set_budget(lab->packer, &budget), 0);
		lab_fill_random(m->bytes, SIZE);
		for (int i = 0; i < 8; i++) {
			lab_fill_random(m->bytes + 5 * PACK_BLOCK + (size_t)i * 256, 256);
			change(m, BLOCKS, 1);
			checkpoint(lab, m);
			lab_check_file(lab, "a", m->bytes, SIZE);
			if (longest_chain(lab->packer) > longest)
				longest = longest_chain(lab->packer);
		}
		assert_int_equal(longest, max);
	}
	free_image(m);
}

static void test_base_stays_as_long_as_it_is_needed(void **state)
{
	struct lab *lab = *state;
	struct image *m = new_image();
	struct packer_counts counts;
	struct object_hash first;

	checkpoint(lab, m);
	first = lab->store.objects[0].hash;
	change(m, 1, 2); /* every block: no extent names the first pack any more */
	counts = checkpoint(lab, m);
	assert_int_equal(counts.delta_bytes, SIZE);
	for (int i = 0; i < 3; i++) {
		struct object_hash *hashes;
		size_t count, found = 0;

		assert_int_equal(packer_objects(lab->packer, &hashes, &count), 0);
		for (size_t j = 0; j < count; j++)
			found += !memcmp(&hashes[j], &first, sizeof(first));
		free(hashes);
		assert_int_equal(found, 1);
		lab_check_file(lab, "a", m->bytes, SIZE);
		counts = checkpoint(lab, m);
		assert_int_equal(counts.new_bytes, 0);
	}
	/* Other blocks: neither the deltas nor their bases are needed. */
	lab_fill_random(m->bytes, SIZE);
	change(m, BLOCKS, 1);
	counts = checkpoint(lab, m);
	assert_int_equal(counts.packs, 1);
	lab_check_file(lab, "a", m->bytes, SIZE);
	free_image(m);
}

/* The pack with the bases is the only one with holder 3 (pack_lab: 2 + number of puts). */
static bool alive_but_first_pack(void *ctx, const struct node_id *node)
{
	(void)ctx;
	return node->b[0] != 3 && node->b[0] != 1;
}

static void test_delta_without_base_counts_as_new(void **state)
{
	struct lab *lab = *state;
	struct image *m = new_image();
	struct pack_wanted *wanted;
	struct pack_run run = { (uint64_t)PACK_RUN_OLD << 56, BLOCKS };
	struct packer_counts counts;
	struct pack_input in;
	size_t count;

	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "pages-1.img", m->fd), 0);
	lab_finish(lab);
	change(m, 4, 2);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "pages-1.img", m->fd), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.delta_bytes, SIZE / 4);
	assert_int_equal(packer_wanted(lab->packer, 1000, &wanted, &count), 0);
	assert_int_equal(count, 0);
	free(wanted);

	packer_forget_weak(lab->packer, 1, alive_but_first_pack, NULL);
	assert_int_equal(packer_wanted(lab->packer, 1000, &wanted, &count), 0);
	assert_int_equal(count, 1);
	assert_true(wanted[0].first == 0 && wanted[0].count == BLOCKS);
	free(wanted);
	lab_begin(lab);
	in = lab_input_of(FILE_IMAGE, "pages-1.img", S_IFREG | 0600, -1);
	in.st.st_size = SIZE;
	in.runs = &run;
	in.run_count = 1;
	assert_int_equal(packer_add(lab->packer, &in), -ENOENT);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "pages-1.img", m->fd), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, SIZE);
	assert_int_equal(counts.delta_bytes, 0);
	lab_check_file(lab, "pages-1.img", m->bytes, SIZE);
	free_image(m);
}

static void test_runs_find_their_versions(void **state)
{
	struct lab *lab = *state;
	struct image *m = new_image();
	struct pack_run runs[] = { { (uint64_t)PACK_RUN_OLD << 56, 50 },
				   { (uint64_t)PACK_RUN_NEW << 56 | 50, 10 },
				   { (uint64_t)PACK_RUN_OLD << 56 | 60, BLOCKS - 60 } };
	struct packer_counts counts;
	struct pack_input in;

	checkpoint(lab, m);
	change(m, 5, 3);
	/* What lies between the runs is what it was. */
	for (size_t i = 0; i < BLOCKS; i++)
		if (i < 50 || i >= 60)
			assert_int_equal(pread_full(lab->store.count ? m->fd : -1,
						    m->bytes + i * PACK_BLOCK, PACK_BLOCK,
						    (off_t)(i * PACK_BLOCK)),
					 0);
	lab_begin(lab);
	in = lab_input_of(FILE_IMAGE, "a", S_IFREG | 0600, m->fd);
	in.runs = runs;
	in.run_count = ARRAY_SIZE(runs);
	assert_int_equal(packer_add(lab->packer, &in), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 2 * PACK_BLOCK);
	assert_int_equal(counts.delta_bytes, 2 * PACK_BLOCK);
	free_image(m);
}

static void test_restored_job_goes_on(void **state)
{
	struct lab *lab = *state;
	struct image *m = new_image();
	struct packer_counts counts;
	struct packer *seed;

	for (int i = 0; i < 4; i++) {
		checkpoint(lab, m);
		change(m, 3, 1);
	}
	checkpoint(lab, m);
	assert_true(longest_chain(lab->packer) >= 1);
	assert_int_equal(packer_create(&lab->job, &lab->job_key, &seed), 0);
	lab_check_file_seeding(lab, "a", m->bytes, SIZE, seed);
	assert_int_equal(longest_chain(seed), longest_chain(lab->packer));
	packer_destroy(lab->packer);
	lab->packer = seed;
	/* All blocks are known, deltas as well; then there is no cache yet, and then there is. */
	counts = checkpoint(lab, m);
	assert_int_equal(counts.new_bytes, 0);
	for (int i = 0; i < 2; i++) {
		change(m, 3, 1);
		counts = checkpoint(lab, m);
		assert_int_equal(counts.delta_bytes, i ? counts.new_bytes : 0);
		lab_check_file(lab, "a", m->bytes, SIZE);
	}
	free_image(m);
}

static void test_without_cache_there_are_no_deltas(void **state)
{
	struct lab *lab = *state;
	struct packer_budget budget = { .cache_bytes = 0 };
	struct image *m = new_image();
	struct packer_counts counts;

	assert_int_equal(packer_set_budget(lab->packer, &budget), 0);
	checkpoint(lab, m);
	change(m, 1, 1);
	counts = checkpoint(lab, m);
	assert_true(counts.new_bytes == SIZE && counts.delta_bytes == 0);
	/* Too small for all of it: some blocks have a base, and nothing else changes. */
	budget.cache_bytes = SIZE / 2 > (1 << 21) ? SIZE / 2 : 1 << 21;
	assert_int_equal(packer_set_budget(lab->packer, &budget), 0);
	for (int i = 0; i < 4; i++) {
		change(m, 1, 1);
		counts = checkpoint(lab, m);
		lab_check_file(lab, "a", m->bytes, SIZE);
	}
	lab_begin(lab);
	assert_int_equal(packer_set_budget(lab->packer, &budget), -EBUSY);
	packer_abort(lab->packer);
	free_image(m);
}

static void test_every_bit_of_a_delta_pack_counts(void **state)
{
	static uint8_t out[PACK_FRAME_RAW + PACK_FRAME_SLACK];
	static uint8_t scratch[PACK_FRAME_RAW + PACK_FRAME_SLACK];
	static struct pack_view v;
	struct pack_base bases[PACK_FRAME_BLOCKS];
	struct lab *lab = *state;
	struct image *m = new_image();
	uint8_t *bytes;
	uint32_t size;

	checkpoint(lab, m);
	change(m, 8, 2);
	checkpoint(lab, m);
	bytes = lab->store.objects[2].bytes;
	size = lab->store.objects[2].size;
	for (uint32_t i = 0; i <= size; i++) {
		int r;

		if (i < size)
			bytes[i] ^= (uint8_t)(1 << (i % 8));
		r = pack_view_open(&v, bytes, size, &lab->job, &lab->job_key, 2);
		for (uint32_t j = 0; r == 0 && j < v.header.frame_count; j++)
			r = pack_view_frame(&v, j, out, scratch, bases);
		assert_int_equal(r, i < size ? -EBADMSG : 0);
		if (i < size)
			bytes[i] ^= (uint8_t)(1 << (i % 8));
	}
	assert_int_equal(v.table.base_count, 1);
	assert_int_equal(bases[0].pack, 0);
	free_image(m);
}

/* One delta (words 0 and 511), one whole block. */
static size_t good_body(uint8_t *body)
{
	uint64_t which = 1, word = 0x1122334455667788;
	uint16_t ref[2] = { 2, 77 };

	memset(body, 0, 8 + 4 + 64);
	memcpy(body, &which, 8);
	memcpy(body + 8, ref, 4);
	body[12] = 1;
	body[12 + 63] = 0x80;
	memset(body + 76, 'x', PACK_BLOCK);
	memcpy(body + 76 + PACK_BLOCK, &word, 8);
	memcpy(body + 84 + PACK_BLOCK, &word, 8);
	return 92 + PACK_BLOCK;
}

static void test_bodies_are_checked(void **state)
{
	static uint8_t body[2 * PACK_BLOCK], out[64 * PACK_BLOCK];
	struct pack_base bases[PACK_FRAME_BLOCKS];
	size_t size = good_body(body);

	(void)state;
	assert_int_equal(mixed_body_decode(body, size, 2, 3, out, bases), 0);
	assert_true(bases[0].pack == 2 && bases[0].slot == 77);
	assert_int_equal(bases[1].pack, PACK_BASE_NONE);
	assert_true(out[0] == 0x88 && out[8] == 0 && out[4095] == 0x11 && out[4096] == 'x');
	for (size_t i = 0; i < size; i++)
		assert_int_equal(mixed_body_decode(body, i, 2, 3, out, bases), -EBADMSG);
	assert_int_equal(mixed_body_decode(body, size + 8, 2, 3, out, bases), -EBADMSG);
	assert_int_equal(mixed_body_decode(body, size, 1, 3, out, bases), -EBADMSG);
	assert_int_equal(mixed_body_decode(body, size, 3, 3, out, bases), -EBADMSG);
	assert_int_equal(mixed_body_decode(body, size, 2, 2, out, bases), -EBADMSG);
	assert_int_equal(mixed_body_decode(body, size, 65, 3, out, bases), -EBADMSG);
	body[11] = 0xff; /* slot */
	assert_int_equal(mixed_body_decode(body, size, 2, 3, out, bases), -EBADMSG);
	size = good_body(body);
	body[0] = 4; /* a delta behind the last block */
	assert_int_equal(mixed_body_decode(body, size, 2, 3, out, bases), -EBADMSG);
	body[0] = 0; /* no delta at all */
	assert_int_equal(mixed_body_decode(body, size, 2, 3, out, bases), -EBADMSG);
	size = good_body(body);
	body[20] = 1; /* a word more */
	assert_int_equal(mixed_body_decode(body, size, 2, 3, out, bases), -EBADMSG);
}

/* As version 1 wrote it: one frame, stored. */
static void test_version_1_is_read(void **state)
{
	static struct pack_view v;
	static uint8_t out[PACK_FRAME_RAW + PACK_FRAME_SLACK];
	static uint8_t scratch[PACK_FRAME_RAW + PACK_FRAME_SLACK];
	struct lab *lab = *state;
	struct pack_header h = { .version = 1, .frame_count = 1, .block_count = 1 };
	struct pack_base bases[PACK_FRAME_BLOCKS];
	uint8_t bytes[2 * PACK_BLOCK] = { 0 }, block[PACK_BLOCK], plain[20] = { 1, 0, 0, 0, 1 };
	struct pack_frame frame = { 64, PACK_BLOCK + AEAD_TAG, 1, PACK_FRAME_STORED };
	struct secret_key key;
	struct frame_ad ad;
	struct table_ad table = { .job = lab->job, .seq = 1 };

	lab_fill_random(block, sizeof(block));
	memcpy(h.magic, "DECAMPPK", 8);
	assert_int_equal(pack_frame_key(&lab->job_key, &h, &key), 0);
	ad = pack_frame_ad(&h, &lab->job, 1, 0);
	assert_int_equal(aead_seal(&key, 0, &ad, sizeof(ad), block, sizeof(block), bytes + 64), 0);
	memcpy(plain + 8, &frame, sizeof(frame));
	h.table_offset = 64 + frame.size;
	h.table_size = sizeof(plain) + AEAD_TAG;
	h.total_size = sizeof(bytes);
	table.header = h;
	assert_int_equal(aead_seal(&key, UINT32_MAX, &table, sizeof(table), plain, sizeof(plain),
				   bytes + h.table_offset),
			 0);
	memcpy(bytes, &h, sizeof(h));
	assert_int_equal(pack_view_open(&v, bytes, sizeof(bytes), &lab->job, &lab->job_key, 1), 0);
	assert_int_equal(pack_view_frame(&v, 0, out, scratch, bases), 0);
	assert_memory_equal(out, block, sizeof(block));
	assert_int_equal(bases[0].pack, PACK_BASE_NONE);
	/* The future is refused. */
	bytes[8] = 3;
	assert_int_equal(pack_view_open(&v, bytes, sizeof(bytes), &lab->job, &lab->job_key, 1),
			 -EBADMSG);
}

/*
 * All of it new at each checkpoint: what replaced such contents is kept for a sample only, until
 * differences to what is kept pay again.
 */
static void test_unlike_contents_are_sampled(void **state)
{
	struct lab *lab = *state;
	struct image *m = new_image();
	size_t kept[40];

	for (size_t i = 0; i < ARRAY_SIZE(kept); i++) {
		checkpoint(lab, m);
		kept[i] = in_cache(lab->packer, m);
		lab_fill_random(m->bytes, SIZE);
		assert_int_equal(pwrite_full(m->fd, m->bytes, SIZE, 0), 0);
	}
	assert_int_equal(kept[0], BLOCKS);
	assert_int_equal(kept[1], BLOCKS);
	assert_in_range(kept[39], BLOCKS / 9, BLOCKS / 7);
	checkpoint(lab, m);
	for (size_t i = 0; i < 300 && in_cache(lab->packer, m) < BLOCKS; i++) {
		change(m, 1, 40);
		checkpoint(lab, m);
		lab_fill_random(m->bytes, SIZE);
		assert_int_equal(pwrite_full(m->fd, m->bytes, SIZE, 0), 0);
		checkpoint(lab, m);
	}
	assert_int_equal(in_cache(lab->packer, m), BLOCKS);
	lab_check_file(lab, "a", m->bytes, SIZE);
	free_image(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_differences_are_exact),
		cmocka_unit_test(test_deltas_are_found),
		TEST(test_small_changes_cost_little),
		TEST(test_chains_are_bounded),
		TEST(test_near_blocks_make_no_chain),
		TEST(test_chains_are_as_short_as_told),
		TEST(test_base_stays_as_long_as_it_is_needed),
		TEST(test_delta_without_base_counts_as_new),
		TEST(test_runs_find_their_versions),
		TEST(test_restored_job_goes_on),
		TEST(test_without_cache_there_are_no_deltas),
		TEST(test_unlike_contents_are_sampled),
		TEST(test_every_bit_of_a_delta_pack_counts),
		TEST(test_bodies_are_checked),
		TEST(test_version_1_is_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
