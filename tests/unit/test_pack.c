// SPDX-License-Identifier: LGPL-2.1-or-later
#include <stdio.h>
#include <sys/sysmacros.h>

#include "tests/unit/pack_lab.h"

static const uint8_t tree_xattrs[] = "user.a\0\3\0\0\0xyz"
				     "b\0\0\0\0"; /* the literal's own NUL ends the length of 0 */

enum { TREE_BIG = (1 << 20) - 100 };

static void add_tree(struct lab *lab, const uint8_t *bytes)
{
	int small = lab_content_fd(bytes, 5), big = lab_content_fd(bytes, TREE_BIG);
	int empty = memfd_new("empty");
	struct pack_input in;

	in = lab_input_of(FILE_UPPER, "0/dir", S_IFDIR | 01755, -1);
	in.xattrs = tree_xattrs;
	in.xattrs_size = sizeof(tree_xattrs);
	assert_int_equal(packer_add(lab->packer, &in), 0);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "pages-1.img", big), 0);
	in = lab_input_of(FILE_UPPER, "0/dir/small", S_IFREG | 04600, small);
	in.st.st_nlink = 2;
	in.st.st_ino = 77;
	assert_int_equal(packer_add(lab->packer, &in), 0);
	in.path = "0/other name\xff";
	assert_int_equal(packer_add(lab->packer, &in), 0);
	in = lab_input_of(FILE_UPPER, "0/link", S_IFLNK | 0777, -1);
	in.link_target = "../../etc/passwd";
	assert_int_equal(packer_add(lab->packer, &in), 0);
	in = lab_input_of(FILE_UPPER, "1/gone", S_IFCHR, -1);
	in.st.st_rdev = makedev(0, 0);
	assert_int_equal(packer_add(lab->packer, &in), 0);
	in = lab_input_of(FILE_UPPER, "1/pipe", S_IFIFO | 0600, -1);
	assert_int_equal(packer_add(lab->packer, &in), 0);
	assert_int_equal(lab_add(lab, FILE_CLOSURE, "usr/bin/prog", big), 0);
	assert_int_equal(lab_add(lab, FILE_UPPER, "1/empty", empty), 0);
	close(small);
	close(big);
	close(empty);
}

static void check_tree_files(const struct manifest *m)
{
	struct manifest_file f;

	assert_int_equal(manifest_file_count(m), 9);
	manifest_file(m, 0, &f);
	assert_int_equal(f.st.st_mode, S_IFDIR | 01755);
	assert_int_equal(f.xattrs_size, sizeof(tree_xattrs));
	assert_memory_equal(f.xattrs, tree_xattrs, sizeof(tree_xattrs));
	manifest_file(m, 2, &f);
	assert_null(f.hardlink);
	assert_int_equal(f.st.st_mode, S_IFREG | 04600);
	assert_int_equal(f.st.st_mtim.tv_sec, -5);
	assert_int_equal(f.st.st_mtim.tv_nsec, 999999999);
	assert_int_equal(f.st.st_uid, 1000);
	manifest_file(m, 3, &f);
	assert_string_equal(f.path, "0/other name\xff");
	assert_string_equal(f.hardlink, "0/dir/small");
	manifest_file(m, 4, &f);
	assert_string_equal(f.link_target, "../../etc/passwd");
	manifest_file(m, 5, &f);
	assert_true(S_ISCHR(f.st.st_mode) && f.st.st_rdev == 0);
	manifest_file(m, 6, &f);
	assert_true(S_ISFIFO(f.st.st_mode));
}

static void test_tree_of_all_kinds(void **state)
{
	struct lab *lab = *state;
	uint8_t *bytes = malloc(1 << 20);
	struct manifest *m;

	lab_fill_random(bytes, 1 << 20);
	lab_begin(lab);
	add_tree(lab, bytes);
	lab_finish(lab);
	assert_int_equal(lab->ref.seq, 1);
	assert_int_equal(lab->ref.holder_count, 2);
	lab_check_file(lab, "pages-1.img", bytes, TREE_BIG);
	lab_check_file(lab, "usr/bin/prog", bytes, TREE_BIG);
	lab_check_file(lab, "0/dir/small", bytes, 5);
	lab_check_file(lab, "1/empty", bytes, 0);

	m = lab_open_manifest(lab);
	check_tree_files(m);
	assert_string_equal(manifest_head(m)->meta_json, "{\"pids\":[1,2]}");
	assert_string_equal(manifest_head(m)->kernel, "6.1");
	assert_int_equal(manifest_head(m)->stats[0].pause_us, 800);
	assert_string_equal(manifest_head(m)->moves[0].to, "lab02");
	assert_memory_equal(&manifest_head(m)->token, &lab->token, sizeof(lab->token));
	manifest_destroy(m);
	free(bytes);
}

static void test_hard_links_unchanged(void **state)
{
	struct lab *lab = *state;
	struct packer_counts counts;
	struct pack_input in;
	uint8_t bytes[6000];
	int fd;

	lab_fill_random(bytes, sizeof(bytes));
	fd = lab_content_fd(bytes, sizeof(bytes));
	in = lab_input_of(FILE_UPPER, "0/a", S_IFREG | 0644, fd);
	in.st.st_ino = 5;
	in.st.st_nlink = 2;
	for (int round = 0; round < 2; round++) {
		lab_begin(lab);
		in.path = "0/a";
		assert_int_equal(packer_add(lab->packer, &in), 0);
		in.path = "0/b";
		assert_int_equal(packer_add(lab->packer, &in), 0);
		counts = lab_finish(lab);
		assert_int_equal(counts.new_bytes, round == 0 ? 8192 : 0);
		in.fd = -1;
	}
	/* The first name is gone: the second one knows the content. */
	in.st.st_nlink = 1;
	lab_begin(lab);
	assert_int_equal(packer_add(lab->packer, &in), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 0);
	lab_check_file(lab, "0/b", bytes, sizeof(bytes));
	close(fd);
}

static void test_sparse_file_stays_sparse(void **state)
{
	struct lab *lab = *state;
	int sparse = memfd_new("sparse"), back = memfd_new("back");
	struct packer_counts counts;
	struct manifest *m;
	struct stat st;
	char end[3];

	assert_int_equal(pwrite_full(sparse, "end", 3, (64 << 20) + 4093), 0);
	assert_int_equal(ftruncate(sparse, (100 << 20) + 1), 0);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_UPPER, "0/sparse", sparse), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 4096);
	assert_int_equal(counts.raw_bytes, (100 << 20) + 1);
	assert_true(counts.sent_bytes < 8192);
	m = lab_open_manifest(lab);
	assert_int_equal(pwrite_full(back, "rubbish", 7, 200 << 20), 0);
	assert_int_equal(manifest_unpack(m, &lab->job_key, &back, lab_get, &lab->store, NULL, NULL),
			 0);
	assert_int_equal(fstat(back, &st), 0);
	assert_int_equal(st.st_size, (100 << 20) + 1);
	assert_true(st.st_blocks <= 64);
	assert_int_equal(pread_full(back, end, 3, (64 << 20) + 4093), 0);
	assert_memory_equal(end, "end", 3);
	manifest_destroy(m);
	close(sparse);
	close(back);
}

static void test_second_checkpoint_sends_only_changes(void **state)
{
	enum { SIZE = 40 << 20 };
	struct lab *lab = *state;
	uint8_t *bytes = malloc(SIZE);
	struct packer_counts counts;
	struct object_hash *hashes;
	size_t count;
	int fd;

	lab_fill_random(bytes, SIZE);
	fd = lab_content_fd(bytes, SIZE);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "pages-1.img", fd), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, SIZE);
	/* Incompressible: stored, at most one percent on top. */
	assert_true(counts.sent_bytes < SIZE + SIZE / 100);
	assert_true(counts.packs_new >= 3);

	for (int i = 0; i < 3; i++)
		bytes[i * 10000000] ^= 1;
	close(fd);
	fd = lab_content_fd(bytes, SIZE);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "pages-1.img", fd), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 3 * 4096);
	assert_int_equal(counts.packs_new, 1);
	assert_true(counts.sent_bytes < 6 * 4096);
	lab_check_file(lab, "pages-1.img", bytes, SIZE);

	/* Moved by a block and doubled: nothing new. */
	assert_int_equal(pwrite_full(fd, bytes + 4096, SIZE - 4096, 0), 0);
	assert_int_equal(pwrite_full(fd, bytes, SIZE, SIZE), 0);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "moved", fd), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 0);
	assert_int_equal(counts.packs_new, 0);

	assert_int_equal(packer_objects(lab->packer, &hashes, &count), 0);
	assert_int_equal(count, counts.packs + 1);
	for (size_t i = 0; i < count; i++)
		assert_true(lab_find(&lab->store, &hashes[i]) >= 0);
	assert_memory_equal(&hashes[count - 1], &lab->ref.manifest, sizeof(hashes[0]));
	free(hashes);
	close(fd);
	free(bytes);
}

static void test_zstd_makes_text_small(void **state)
{
	enum { SIZE = 8 << 20 };
	struct lab *lab = *state;
	char *bytes = malloc(SIZE + 64);
	struct packer_counts counts;
	int fd;

	for (size_t i = 0; i < SIZE; i += 32)
		snprintf(bytes + i, 64, "line %24zu\n ", i);
	fd = lab_content_fd(bytes, SIZE);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "text", fd), 0);
	counts = lab_finish(lab);
	assert_true(counts.sent_bytes < SIZE / 4);
	lab_check_file(lab, "text", bytes, SIZE);
	close(fd);
	free(bytes);
}

static void test_unchanged_file_without_reading(void **state)
{
	struct lab *lab = *state;
	uint8_t bytes[10000];
	struct packer_counts counts;
	struct pack_input in;
	int fd;

	lab_fill_random(bytes, sizeof(bytes));
	fd = lab_content_fd(bytes, sizeof(bytes));
	lab_begin(lab);
	in = lab_input_of(FILE_CLOSURE, "usr/bin/prog", S_IFREG | 0755, fd);
	in.fd = -1;
	assert_int_equal(packer_add(lab->packer, &in), -ENOENT);
	in.fd = fd;
	assert_int_equal(packer_add(lab->packer, &in), 0);
	lab_finish(lab);

	lab_begin(lab);
	in.fd = -1;
	assert_int_equal(packer_add(lab->packer, &in), 0);
	in.path = "usr/bin/other";
	assert_int_equal(packer_add(lab->packer, &in), -ENOENT);
	in.path = "usr/bin/prog";
	in.kind = FILE_IMAGE;
	assert_int_equal(packer_add(lab->packer, &in), -ENOENT);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 0);
	lab_check_file(lab, "usr/bin/prog", bytes, sizeof(bytes));

	/* Another size cannot be the same content. */
	lab_begin(lab);
	in.kind = FILE_CLOSURE;
	in.st.st_size--;
	assert_int_equal(packer_add(lab->packer, &in), -ENOENT);
	packer_abort(lab->packer);
	close(fd);
}

/* What is known to be kept after a checkpoint, and what of that is live. */
static void kept_bytes(const struct lab *lab, uint64_t *ret_kept, uint64_t *ret_live)
{
	*ret_kept = *ret_live = 0;
	for (size_t i = 0; i < lab->packer->pack_count; i++) {
		const struct pack_info *info = &lab->packer->packs[i];

		if (info->state != PACK_KNOWN)
			continue;
		*ret_kept += info->size;
		*ret_live += (uint64_t)info->size * info->live / info->blocks;
	}
}

/* However a job writes, its holders keep at most twice what lives; and rewriting that costs little. */
static void test_half_may_be_dead(void **state)
{
	enum { BLOCKS = 4096, SIZE = BLOCKS * PACK_BLOCK, ROUNDS = 24 };
	struct lab *lab = *state;
	struct packer_budget budget = { .cache_bytes = 0 };
	uint8_t *bytes = malloc(SIZE), *block = malloc(PACK_BLOCK);
	uint64_t kept, live, sent = 0, written = 0, most = 0;
	unsigned int seed = 5;

	assert_int_equal(packer_set_budget(lab->packer, &budget), 0);
	lab_fill_random(bytes, SIZE);
	for (int round = 0; round < ROUNDS; round++) {
		int fd = lab_content_fd(bytes, SIZE);

		lab_begin(lab);
		assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
		sent += lab_finish(lab).sent_bytes;
		close(fd);
		kept_bytes(lab, &kept, &live);
		assert_true(kept <= 2 * live);
		most = kept * 100 / live > most ? kept * 100 / live : most;
		for (int i = 0; i < BLOCKS / 8; i++) {
			lab_fill_random(block, PACK_BLOCK);
			memcpy(bytes + (size_t)(rand_r(&seed) % BLOCKS) * PACK_BLOCK, block,
			       PACK_BLOCK);
		}
		written += round < ROUNDS - 1 ? SIZE / 8 : SIZE;
	}
	assert_true(most > 150);
	assert_true(sent < written + written / 4);
	free(block);
	free(bytes);
}

static void test_sparse_packs_are_forgotten(void **state)
{
	enum { SIZE = 4 << 20, KEPT = 100 * 4096 };
	struct lab *lab = *state;
	uint8_t *bytes = malloc(SIZE);
	struct packer_counts counts;
	struct object_hash old;
	struct pack_input in;
	struct manifest *m;
	int fd;

	lab_fill_random(bytes, SIZE);
	fd = lab_content_fd(bytes, SIZE);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	lab_finish(lab);
	old = lab->store.objects[0].hash;
	/* A tenth of the pack stays live: this manifest still uses it, the next does not. */
	assert_int_equal(ftruncate(fd, KEPT), 0);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 0);
	lab_check_file(lab, "a", bytes, KEPT);
	lab_begin(lab);
	in = lab_input_of(FILE_IMAGE, "a", S_IFREG | 0644, fd);
	in.fd = -1;
	assert_int_equal(packer_add(lab->packer, &in), -ENOENT);
	in.fd = fd;
	assert_int_equal(packer_add(lab->packer, &in), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, KEPT);
	m = lab_open_manifest(lab);
	assert_int_equal(manifest_object_count(m), 1);
	for (size_t i = 0; i < manifest_object_count(m); i++) {
		struct node_id holders[OV_HOLDERS_MAX];
		struct object_hash hash;
		uint32_t size, n;

		manifest_object(m, i, &hash, &size, &n, holders);
		assert_memory_not_equal(&hash, &old, sizeof(old));
	}
	manifest_destroy(m);
	lab_check_file(lab, "a", bytes, KEPT);
	close(fd);
	free(bytes);
}

static void test_packs_do_not_grow_without_end(void **state)
{
	enum { ROUNDS = 300, SIZE = ROUNDS * 4096 };
	struct lab *lab = *state;
	uint8_t *bytes = calloc(1, SIZE);
	struct packer_counts counts;
	uint32_t most = 0;
	int fd = memfd_new("growing");

	assert_int_equal(ftruncate(fd, SIZE), 0);
	for (size_t i = 0; i < ROUNDS; i++) {
		lab_fill_random(bytes + i * 4096, 4096);
		assert_int_equal(pwrite_full(fd, bytes + i * 4096, 4096, (off_t)i * 4096), 0);
		lab_begin(lab);
		assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
		counts = lab_finish(lab);
		most = counts.packs > most ? counts.packs : most;
	}
	assert_true(most > 200 && most <= PACKS_REFERENCED_MAX + 1);
	lab_check_file(lab, "a", bytes, SIZE);
	close(fd);
	free(bytes);
}

static bool alive_not_first(void *ctx, const struct node_id *node)
{
	(void)ctx;
	return node->b[0] != 1;
}

static void test_weak_packs_count_as_new(void **state)
{
	struct lab *lab = *state;
	uint8_t bytes[8192];
	struct packer_counts counts;
	int fd;

	lab_fill_random(bytes, sizeof(bytes));
	fd = lab_content_fd(bytes, sizeof(bytes));
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	lab_finish(lab);
	packer_forget_weak(lab->packer, 1, alive_not_first, NULL);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 0);
	packer_forget_weak(lab->packer, 2, alive_not_first, NULL);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 8192);
	assert_int_equal(counts.packs, 1);
	close(fd);
}

static void test_failed_store_forgets_what_was_not_stored(void **state)
{
	enum { SIZE = 6 << 20 };
	struct lab *lab = *state;
	uint8_t *bytes = malloc(SIZE);
	struct packer_counts counts;
	int fd;

	lab_fill_random(bytes, SIZE);
	fd = lab_content_fd(bytes, SIZE);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0); /* one pack stored, one open */
	lab->store.fail = -EHOSTUNREACH;
	assert_int_equal(lab_try_finish(lab), -EHOSTUNREACH);
	lab_begin(lab);
	lab_fill_random(bytes, SIZE);
	assert_int_equal(pwrite_full(fd, bytes, SIZE / 3 * 2, 0), 0);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "b", fd), -EHOSTUNREACH);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "c", fd), -EHOSTUNREACH);
	packer_abort(lab->packer);
	lab->store.fail = 0;

	assert_int_equal(pread_full(fd, bytes, SIZE, 0), 0);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	counts = lab_finish(lab);
	assert_true(counts.new_bytes == SIZE);
	lab_check_file(lab, "a", bytes, SIZE);
	close(fd);
	free(bytes);
}

static void test_seeded_packer_sends_only_changes(void **state)
{
	enum { SIZE = 9 << 20 };
	struct lab *lab = *state;
	uint8_t *bytes = malloc(SIZE);
	struct packer_counts counts;
	struct packer *seed;
	struct pack_input in;
	int fd;

	lab_fill_random(bytes, SIZE);
	fd = lab_content_fd(bytes, SIZE);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	assert_int_equal(lab_add(lab, FILE_CLOSURE, "bin/b", fd), 0);
	lab_finish(lab);

	assert_int_equal(packer_create(&lab->job, &lab->job_key, &seed), 0);
	lab_check_file_seeding(lab, "a", bytes, SIZE, seed);
	packer_destroy(lab->packer);
	lab->packer = seed;

	bytes[5000] ^= 1;
	assert_int_equal(pwrite_full(fd, bytes, SIZE, 0), 0);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	in = lab_input_of(FILE_CLOSURE, "bin/b", S_IFREG | 0755, fd);
	in.fd = -1;
	assert_int_equal(packer_add(lab->packer, &in), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.new_bytes, 4096);
	lab_check_file(lab, "a", bytes, SIZE);
	bytes[5000] ^= 1;
	lab_check_file(lab, "bin/b", bytes, SIZE);
	close(fd);
	free(bytes);
}

static void test_only_needed_packs_are_fetched(void **state)
{
	struct lab *lab = *state;
	uint8_t *bytes = malloc(12 << 20);
	int fd, tail;

	lab_fill_random(bytes, 12 << 20);
	fd = lab_content_fd(bytes, 12 << 20);
	tail = lab_content_fd(bytes + (12 << 20) - 4096, 4096);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "tail", tail), 0);
	lab_finish(lab);
	lab->store.gets = 0;
	lab_check_file(lab, "tail", bytes + (12 << 20) - 4096, 4096);
	assert_int_equal(lab->store.gets, 1);
	close(fd);
	close(tail);
	free(bytes);
}

static bool keep_even(const void *ctx, uint32_t pack, uint32_t slot)
{
	(void)ctx, (void)slot;
	return pack % 2 == 0;
}

static void test_index_survives_sweeps(void **state)
{
	enum { N = 20000 };
	struct block_index x = { 0 };
	size_t kept = 0;

	(void)state;
	/* Crowded on purpose: only 64 home slots. */
	for (uint32_t i = 0; i < N; i++) {
		struct block_hash hash = { (uint64_t)(i % 64) * 0x1000001, i };

		assert_int_equal(block_index_insert(&x, hash, i / 4096 * 3 + i % 3, i % 4096), 0);
	}
	block_index_sweep(&x, keep_even, NULL);
	for (uint32_t i = 0; i < N; i++) {
		struct block_hash hash = { (uint64_t)(i % 64) * 0x1000001, i };
		uint32_t pack, slot;

		if ((i / 4096 * 3 + i % 3) % 2 == 1) {
			assert_false(block_index_find(&x, hash, &pack, &slot));
			continue;
		}
		assert_true(block_index_find(&x, hash, &pack, &slot));
		assert_int_equal(pack, i / 4096 * 3 + i % 3);
		assert_int_equal(slot, i % 4096);
		kept++;
	}
	assert_int_equal(x.count, kept);
	block_index_deinit(&x);
}

static struct block_hash crowded_hash(uint64_t i, unsigned int shape)
{
	uint64_t mixed = (i + 1) * 0x9e3779b97f4a7c15u;

	/* Anywhere; a run that wraps around the end; a few homes at both ends of a table. */
	if (shape == 0)
		return (struct block_hash){ mixed >> 16, i };
	if (shape == 1)
		return (struct block_hash){ UINT32_MAX - i % 7, i };
	return (struct block_hash){ mixed >> 62 ? UINT32_MAX - i % 3 : i % 5 * 1024, i };
}

/* Growing happens in place, and everything is still found after each step of it. */
static void test_index_grows(void **state)
{
	enum { N = 9000 };

	(void)state;
	for (unsigned int shape = 0; shape < 3; shape++) {
		struct block_index x = { 0 };
		size_t mask = 0;

		for (uint32_t i = 0; i < N; i++) {
			assert_int_equal(block_index_insert(&x, crowded_hash(i, shape), i / 4096,
							    i % 4096),
					 0);
			if (x.mask == mask)
				continue;
			mask = x.mask;
			for (uint32_t j = 0; j <= i; j++) {
				uint32_t pack, slot;

				assert_true(
					block_index_find(&x, crowded_hash(j, shape), &pack, &slot));
				assert_int_equal(pack * 4096 + slot, j);
			}
		}
		assert_int_equal(x.count, N);
		assert_int_equal(mask, 16383);
		block_index_deinit(&x);
	}
}

/* What does not fit is not known, and nothing else comes of it. */
static void test_index_is_bounded(void **state)
{
	struct block_index x = { .bytes_max = 100000 };
	uint32_t pack, slot;

	(void)state;
	for (uint32_t i = 0; i < 10000; i++)
		assert_int_equal(block_index_insert(&x, crowded_hash(i, 0), 0, i % 4096), 0);
	assert_int_equal(x.mask, 4095);
	assert_int_equal(x.count, 3072);
	assert_true(block_index_find(&x, crowded_hash(3071, 0), &pack, &slot));
	assert_false(block_index_find(&x, crowded_hash(3072, 0), &pack, &slot));
	block_index_deinit(&x);
	assert_int_equal(x.bytes_max, 100000);
}

static void test_speed(void **state)
{
	enum { SIZE = 128 << 20 };
	struct lab *lab = *state;
	uint8_t *bytes = malloc(SIZE);
	struct packer_counts counts;
	int fd, back = memfd_new("back");
	struct manifest *m;
	uint64_t t;

	lab_fill_random(bytes, SIZE);
	/* Half of each block is zeros: compressible as memory is. */
	for (size_t i = 0; i < SIZE; i += 4096)
		memset(bytes + i + 2048, 0, 2048);
	fd = lab_content_fd(bytes, SIZE);
	free(bytes);
	for (int round = 0; round < 2; round++) {
		lab_begin(lab);
		t = now_boot_ns();
		assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
		counts = lab_finish(lab);
		t = now_boot_ns() - t;
		print_message("%s: %.2f GB/s, %.1f MiB sent\n", round ? "unchanged" : "all new",
			      (double)SIZE / (double)t, (double)counts.sent_bytes / (1 << 20));
	}
	m = lab_open_manifest(lab);
	t = now_boot_ns();
	assert_int_equal(manifest_unpack(m, &lab->job_key, &back, lab_get, &lab->store, NULL, NULL),
			 0);
	t = now_boot_ns() - t;
	print_message("unpack: %.2f GB/s\n", (double)SIZE / (double)t);
	manifest_destroy(m);
	close(fd);
	close(back);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_tree_of_all_kinds),
		TEST(test_hard_links_unchanged),
		TEST(test_sparse_file_stays_sparse),
		TEST(test_second_checkpoint_sends_only_changes),
		TEST(test_zstd_makes_text_small),
		TEST(test_unchanged_file_without_reading),
		TEST(test_sparse_packs_are_forgotten),
		TEST(test_half_may_be_dead),
		TEST(test_packs_do_not_grow_without_end),
		TEST(test_weak_packs_count_as_new),
		TEST(test_failed_store_forgets_what_was_not_stored),
		TEST(test_seeded_packer_sends_only_changes),
		TEST(test_only_needed_packs_are_fetched),
		TEST(test_index_survives_sweeps),
		TEST(test_index_grows),
		TEST(test_index_is_bounded),
		TEST(test_speed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
