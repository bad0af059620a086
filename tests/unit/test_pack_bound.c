// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Who opens a pack takes nothing for it that is not it, whether the manifest binds it by its salt, and
 * its frames alone say so, or only by its hash: bits flipped anywhere, other packs of the same
 * checkpoint, bytes that change while it is read.
 */
#include <stdlib.h>

#include "agent/pack/reader.h"
#include "tests/unit/pack_lab.h"

enum { BLOCKS_MAX = 3000 };

struct world {
	struct lab *lab;
	uint8_t *bytes; /* of the only file */
	size_t blocks;
	struct manifest *m;
	/* What is fetched. */
	uint32_t flip_at;
	uint8_t flip;	  /* 0: nothing */
	int instead;	  /* this object for all packs; -1: each its own */
	bool own_file;	  /* into the reader's */
	int lent;	  /* its number */
	uint8_t *rewrite; /* all of it after the first blocks were handed over */
	uint32_t rewrite_size;
	/* What was handed over. */
	uint8_t times[BLOCKS_MAX];
	size_t handed;
};

static struct world *make(struct lab *lab, size_t blocks)
{
	struct world *w = calloc(1, sizeof(*w));
	int fd;

	assert_true(w && blocks <= BLOCKS_MAX);
	w->lab = lab;
	w->blocks = blocks;
	w->instead = w->lent = -1;
	w->bytes = malloc(blocks * PACK_BLOCK);
	lab_fill_random(w->bytes, blocks * PACK_BLOCK);
	fd = lab_content_fd(w->bytes, blocks * PACK_BLOCK);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	lab_finish(lab);
	close(fd);
	w->m = lab_open_manifest(lab);
	for (size_t i = 0; i < w->m->pb->n_packs; i++)
		assert_true(manifest_pack_bound(w->m, (uint32_t)i));
	return w;
}

static void end(struct world *w)
{
	manifest_destroy(w->m);
	free(w->bytes);
	free(w);
}

/* As those who wrote manifests before salts stood in them. */
static void unbind(struct manifest *m)
{
	for (size_t i = 0; i < m->pb->n_packs; i++)
		m->pb->packs[i]->salt.len = 0;
}

static void bind(struct manifest *m)
{
	for (size_t i = 0; i < m->pb->n_packs; i++)
		m->pb->packs[i]->salt.len = PACK_SALT;
}

static int fetch(void *ctx, const struct object_hash *hash, uint32_t size,
		 const struct node_id *holders, uint32_t holder_count, int *memfd)
{
	struct world *w = ctx;
	int i = w->instead >= 0 ? w->instead : lab_find(&w->lab->store, hash);
	int fd = w->own_file ? *memfd : memfd_new("pack");

	(void)holders, (void)holder_count;
	assert_true(i >= 0 && fd >= 0);
	assert_int_equal(w->lab->store.objects[i].size, size);
	assert_int_equal(pwrite_full(fd, w->lab->store.objects[i].bytes, size, 0), 0);
	if (w->flip) {
		uint8_t byte = w->lab->store.objects[i].bytes[w->flip_at] ^ w->flip;

		assert_int_equal(pwrite_full(fd, &byte, 1, w->flip_at), 0);
	}
	w->lent = fd;
	*memfd = fd;
	return 0;
}

static int sink(void *ctx, uint32_t file, uint64_t block, uint32_t count, const uint8_t *bytes)
{
	struct world *w = ctx;

	assert_int_equal(file, 0);
	assert_true(block + count <= w->blocks);
	assert_memory_equal(bytes, w->bytes + block * PACK_BLOCK, (size_t)count * PACK_BLOCK);
	for (uint32_t i = 0; i < count; i++)
		assert_int_equal(w->times[block + i]++, 0);
	w->handed += count;
	if (w->rewrite)
		assert_int_equal(pwrite_full(w->lent, w->rewrite, w->rewrite_size, 0), 0);
	return 0;
}

static int read_blocks(struct world *w, uint64_t first, uint64_t count)
{
	struct reader_range range = { .file = 0, .first = first, .count = count };
	struct reader_config config = { .manifest = w->m,
					.job_key = &w->lab->job_key,
					.fetch = fetch,
					.fetch_ctx = w,
					.sink = sink,
					.ctx = w };
	struct pack_reader *r;
	int e;

	memset(w->times, 0, sizeof(w->times));
	w->handed = 0;
	assert_int_equal(reader_create(&config, &range, 1, &r), 0);
	e = reader_run(r);
	reader_destroy(r);
	return e;
}

static const struct lab_store *store_of(const struct world *w)
{
	return &w->lab->store;
}

static void flip_all(struct world *w)
{
	uint32_t size = store_of(w)->objects[0].size;

	w->flip = 0;
	assert_int_equal(read_blocks(w, 0, UINT64_MAX), 0);
	assert_int_equal(w->handed, w->blocks);
	for (uint32_t i = 0; i < size; i++) {
		w->flip_at = i;
		w->flip = (uint8_t)(1 << (i % 8));
		assert_int_equal(read_blocks(w, 0, UINT64_MAX), -EBADMSG);
	}
}

/* All of a pack is wanted: every byte of it counts. */
static void test_every_byte(void **state)
{
	struct world *w = make(*state, 1);

	flip_all(w);
	assert_int_equal(w->handed, 0);
	w->own_file = true;
	flip_all(w);
	unbind(w->m);
	flip_all(w);
	end(w);
}

/* What does not count changes nothing that is handed over. */
static void test_other_frames_do_no_harm(void **state)
{
	enum { BLOCKS = 200, WANTED = 1, FIRST = 70, COUNT = 30, STEP = 997 };
	struct world *w = make(*state, BLOCKS);
	const uint8_t *pack = store_of(w)->objects[0].bytes;
	uint32_t size = store_of(w)->objects[0].size, harmless = 0, found = 0;
	struct pack_view v;

	assert_int_equal(pack_view_open(&v, pack, size, &w->lab->job, &w->lab->job_key, 1), 0);
	assert_int_equal(v.header.frame_count, 4);
	w->own_file = true;
	for (uint32_t at = 0; at < size; at += at < 64 || at >= v.header.table_offset ? 1 : STEP) {
		const struct pack_frame *f = &v.table.frames[WANTED];
		bool counts = at < 64 || at >= v.header.table_offset ||
			      (at >= f->offset && at < f->offset + f->size);

		w->flip_at = at;
		w->flip = (uint8_t)(1 << (at % 8));
		bind(w->m);
		assert_int_equal(read_blocks(w, FIRST, COUNT), counts ? -EBADMSG : 0);
		assert_int_equal(w->handed, counts ? 0 : COUNT);
		found += counts;
		harmless += !counts;
		unbind(w->m);
		assert_int_equal(read_blocks(w, FIRST, COUNT), -EBADMSG);
		assert_int_equal(w->handed, 0);
	}
	assert_true(found > 64 && harmless > 100);
	end(w);
}

/*
 * Packs of one checkpoint have one key to begin with, one job, one number, and if nothing in them gets
 * smaller, one size: that one of them is another one only its salt says, or its hash.
 */
static void test_swapped(void **state)
{
	struct lab *lab = *state;
	struct world *w = make(lab, 2500);
	const Decamp__Manifest *pb = w->m->pb;
	struct pack_view v;

	assert_true(pb->n_packs >= 3);
	assert_int_equal(pb->packs[0]->size, pb->packs[1]->size);
	assert_int_equal(pb->packs[0]->blocks, pb->packs[1]->blocks);
	assert_int_equal(pb->packs[0]->seq, pb->packs[1]->seq);
	/* In itself the wrong one is good. */
	assert_int_equal(pack_view_open(&v, lab->store.objects[1].bytes, pb->packs[0]->size,
					&lab->job, &lab->job_key, pb->packs[0]->seq),
			 0);
	w->own_file = true;
	for (int pass = 0; pass < 2; pass++) {
		for (int other = 0; other < 2; other++) {
			/* Blocks of the pack that is given instead are not asked for. */
			w->instead = other;
			assert_int_equal(read_blocks(w, other ? 0 : 1024, 1024), -EBADMSG);
			assert_int_equal(w->handed, 0);
			assert_int_equal(read_blocks(w, other ? 1024 : 0, 1024), 0);
			assert_int_equal(w->handed, 1024);
		}
		unbind(w->m);
	}
	end(w);
}

/* The file is the other half's as well. What it writes there late is found, and nothing of it used. */
static void test_changed_meanwhile(void **state)
{
	struct lab *lab = *state;
	struct world *w = make(lab, 2500);
	uint32_t size = w->m->pb->packs[0]->size;
	uint8_t *noise = malloc(size);

	memset(noise, 0xa5, size);
	w->own_file = true;
	w->rewrite_size = size;
	for (int pass = 0; pass < 2; pass++) {
		w->rewrite = pass ? lab->store.objects[1].bytes : noise;
		assert_int_equal(read_blocks(w, 0, 1024), -EBADMSG);
		assert_int_equal(w->handed, PACK_FRAME_BLOCKS);
	}
	/* Bound by its hash, it was copied whole before. */
	unbind(w->m);
	assert_int_equal(read_blocks(w, 0, 1024), 0);
	assert_int_equal(w->handed, 1024);
	free(noise);
	end(w);
}

/* Next checkpoint by who has just read this one: it names the same packs, as bound as they were. */
static void carry_on(struct world *w, bool bound)
{
	struct lab *lab = w->lab;
	int back = memfd_new("back"), more = lab_content_fd(w->bytes, w->blocks * PACK_BLOCK);
	struct packer *seed, *first = lab->packer;
	struct manifest *m;
	uint8_t block[PACK_BLOCK];

	lab_fill_random(block, sizeof(block));
	assert_int_equal(pwrite_full(more, block, sizeof(block), 0), 0);
	assert_int_equal(packer_create(&lab->job, &lab->job_key, &seed), 0);
	assert_int_equal(
		manifest_unpack(w->m, &lab->job_key, &back, lab_get, &lab->store, seed, NULL), 0);
	lab->packer = seed;
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", more), 0);
	lab_finish(lab);
	m = lab_open_manifest(lab);
	assert_true(m->pb->n_packs > w->m->pb->n_packs);
	for (size_t i = 0; i < m->pb->n_packs; i++) {
		const Decamp__Pack *pack = m->pb->packs[i];
		bool is_new = pack->seq == lab->seq;
		struct object_hash hash;
		int at;

		memcpy(hash.b, pack->hash.data, sizeof(hash));
		at = lab_find(&lab->store, &hash);
		assert_true(at >= 0);
		assert_int_equal(pack->salt.len, bound || is_new ? PACK_SALT : 0);
		if (pack->salt.len)
			assert_memory_equal(pack->salt.data, lab->store.objects[at].bytes + 16,
					    PACK_SALT);
	}
	manifest_destroy(m);
	memcpy(w->bytes, block, sizeof(block));
	lab_check_file(lab, "a", w->bytes, w->blocks * PACK_BLOCK);
	lab->packer = first;
	packer_destroy(seed);
	close(back);
	close(more);
}

static void test_salts_are_carried_on(void **state)
{
	for (int bound = 0; bound < 2; bound++) {
		struct world *w = make(*state, 300);

		if (!bound)
			unbind(w->m);
		carry_on(w, bound);
		end(w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_every_byte),
		TEST(test_other_frames_do_no_harm),
		TEST(test_swapped),
		TEST(test_changed_meanwhile),
		TEST(test_salts_are_carried_on),
	};

	return cmocka_run_group_tests_name("pack_bound", tests, NULL, NULL);
}
