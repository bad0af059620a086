// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/pack_lab.h"

static void test_inputs_are_checked(void **state)
{
	static const char *const bad[] = { "",	 "/",	 "/a",	 "a/",	   "a//b",
					   "..", "../a", "a/..", "a/../b", "." };
	struct lab *lab = *state;
	char long_name[300];
	int fd = memfd_new("x");
	struct pack_input in;

	lab_begin(lab);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		for (int kind = FILE_IMAGE; kind <= FILE_CLOSURE; kind++)
			assert_int_equal(lab_add(lab, kind, bad[i], fd), -EINVAL);
	memset(long_name, 'a', sizeof(long_name));
	long_name[sizeof(long_name) - 1] = 0;
	assert_int_equal(lab_add(lab, FILE_IMAGE, long_name, fd), -EINVAL);
	assert_int_equal(lab_add(lab, FILE_UPPER, "x/y", fd), -EINVAL);
	assert_int_equal(lab_add(lab, FILE_UPPER, "12345/y", fd), -EINVAL);
	assert_int_equal(lab_add(lab, FILE_UPPER, "12/y", fd), 0);
	assert_int_equal(lab_add(lab, FILE_UPPER, "12/y", fd), -EEXIST);
	assert_int_equal(lab_add(lab, FILE_CLOSURE, "12/y", fd), 0);
	in = lab_input_of(FILE_UPPER, "0/l", S_IFLNK | 0777, -1);
	assert_int_equal(packer_add(lab->packer, &in), -EINVAL);
	in.link_target = "";
	assert_int_equal(packer_add(lab->packer, &in), -EINVAL);
	in = lab_input_of(FILE_UPPER, "0/x", S_IFDIR | 0777, -1);
	in.xattrs = (const uint8_t *)"user.a\0\4\0\0\0xyz";
	in.xattrs_size = 14;
	assert_int_equal(packer_add(lab->packer, &in), -EINVAL);
	in = lab_input_of(FILE_IMAGE, "big", S_IFREG | 0600, fd);
	in.st.st_size = ((off_t)1 << 40) + 1;
	assert_int_equal(packer_add(lab->packer, &in), -EFBIG);
	in.st.st_size = 10; /* longer than the file is */
	assert_int_equal(packer_add(lab->packer, &in), -ENODATA);
	/* A file below a file. */
	assert_int_equal(lab_add(lab, FILE_UPPER, "12/y-z", fd), 0);
	assert_int_equal(lab_add(lab, FILE_UPPER, "12/y/z", fd), 0);
	assert_int_equal(lab_try_finish(lab), -EINVAL);
	close(fd);
}

static int lab_add_unchanged(struct lab *lab, const char *path, size_t size)
{
	struct pack_input in = lab_input_of(FILE_UPPER, path, S_IFREG | 0600, -1);

	in.st.st_size = (off_t)size;
	return packer_add(lab->packer, &in);
}

/* A checkpoint of one small file; leaves pack = object 0 and manifest = object 1. */
static void small_checkpoint(struct lab *lab)
{
	uint8_t bytes[5000];
	int fd;

	memset(bytes, 'x', sizeof(bytes));
	lab_fill_random(bytes, 4096);
	fd = lab_content_fd(bytes, sizeof(bytes));
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_UPPER, "0/a", fd), 0);
	lab_finish(lab);
	close(fd);
	assert_int_equal(lab->store.count, 2);
}

static int open_view_frames(const struct pack_view *v)
{
	static uint8_t out[PACK_FRAME_RAW + PACK_FRAME_SLACK];
	static uint8_t scratch[PACK_FRAME_RAW + PACK_FRAME_SLACK];
	struct pack_base bases[PACK_FRAME_BLOCKS];
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < v->header.frame_count; i++)
		r = pack_view_frame(v, i, out, scratch, bases);
	return r;
}

/* Out of memory and out of a file alike. */
static int open_all_frames(const struct lab *lab, const uint8_t *bytes, size_t size,
			   const struct job_id *job, const struct secret_key *key, uint64_t seq)
{
	int fd = lab_content_fd(bytes, size), r, r_file;
	struct pack_view v;

	(void)lab;
	r = pack_view_open(&v, bytes, size, job, key, seq);
	if (r == 0)
		r = open_view_frames(&v);
	r_file = pack_view_open_file(&v, fd, size, job, key, seq);
	if (r_file == 0)
		r_file = open_view_frames(&v);
	assert_int_equal(r, r_file);
	close(fd);
	return r;
}

/* Behind the hash: a holder that could make a second preimage would still get nowhere. */
static void test_every_bit_of_a_pack_counts(void **state)
{
	struct lab *lab = *state;
	uint8_t *bytes;
	uint32_t size;
	struct job_id other_job = { .b = { 1 } };
	struct secret_key other_key = { .b = { 1 } };

	small_checkpoint(lab);
	bytes = lab->store.objects[0].bytes;
	size = lab->store.objects[0].size;
	assert_int_equal(size % 4096, 0);
	assert_int_equal(open_all_frames(lab, bytes, size, &lab->job, &lab->job_key, 1), 0);
	for (uint32_t i = 0; i < size; i++) {
		bytes[i] ^= (uint8_t)(1 << (i % 8));
		assert_int_equal(open_all_frames(lab, bytes, size, &lab->job, &lab->job_key, 1),
				 -EBADMSG);
		bytes[i] ^= (uint8_t)(1 << (i % 8));
	}
	for (uint32_t i = 0; i < size; i++)
		assert_int_equal(open_all_frames(lab, bytes, i, &lab->job, &lab->job_key, 1),
				 -EBADMSG);
	assert_int_equal(open_all_frames(lab, bytes, size, &lab->job, &lab->job_key, 2), -EBADMSG);
	assert_int_equal(open_all_frames(lab, bytes, size, &other_job, &lab->job_key, 1), -EBADMSG);
	assert_int_equal(open_all_frames(lab, bytes, size, &lab->job, &other_key, 1), -EBADMSG);
}

static void test_frames_do_not_move(void **state)
{
	enum { SIZE = 1 << 20, FRAME = PACK_FRAME_RAW + AEAD_TAG };
	struct lab *lab = *state;
	uint8_t *bytes = malloc(SIZE), *a, *b, frame[FRAME];
	int fd;

	for (int i = 0; i < 2; i++) {
		lab_fill_random(bytes, SIZE);
		fd = lab_content_fd(bytes, SIZE);
		lab_begin(lab);
		assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
		lab_finish(lab);
		close(fd);
	}
	a = lab->store.objects[0].bytes;
	b = lab->store.objects[2].bytes;
	/* Between packs. */
	memcpy(frame, b + 64, FRAME);
	memcpy(b + 64, a + 64, FRAME);
	assert_int_equal(open_all_frames(lab, b, lab->store.objects[2].size, &lab->job,
					 &lab->job_key, 2),
			 -EBADMSG);
	/* Within one. */
	memcpy(b + 64, b + 64 + FRAME, FRAME);
	memcpy(b + 64 + FRAME, frame, FRAME);
	assert_int_equal(open_all_frames(lab, b, lab->store.objects[2].size, &lab->job,
					 &lab->job_key, 2),
			 -EBADMSG);
	free(bytes);
}

static int reopen(struct lab *lab, const uint8_t *bytes, size_t size, bool rehash)
{
	struct object_hash hash = lab->ref.manifest;
	struct manifest *m = NULL;
	int r;

	if (rehash)
		object_hash_of(bytes, size, &hash);
	r = manifest_open(bytes, size, &hash, &lab->job_key, lab->cluster_public, &m);
	manifest_destroy(m);
	return r;
}

static void test_every_bit_of_a_manifest_counts(void **state)
{
	struct lab *lab = *state;
	uint8_t *bytes;
	uint32_t size;

	small_checkpoint(lab);
	bytes = lab->store.objects[1].bytes;
	size = lab->store.objects[1].size;
	assert_int_equal(reopen(lab, bytes, size, false), 0);
	for (uint32_t i = 0; i < size; i++) {
		bytes[i] ^= (uint8_t)(1 << (i % 8));
		assert_int_equal(reopen(lab, bytes, size, false), -EBADMSG);
		assert_int_equal(reopen(lab, bytes, size, true), -EBADMSG);
		bytes[i] ^= (uint8_t)(1 << (i % 8));
	}
	for (uint32_t i = 0; i < size; i++) {
		assert_int_equal(reopen(lab, bytes, i, false), -EBADMSG);
		assert_int_equal(reopen(lab, bytes, i, true), -EBADMSG);
	}
}

static void test_manifest_of_others(void **state)
{
	struct lab *lab = *state;
	struct secret_key key = lab->job_key, forger = { .b = { 1, 2, 3 } };
	uint8_t public_key[32];
	const uint8_t *bytes;

	small_checkpoint(lab);
	bytes = lab->store.objects[1].bytes;
	/* Another job's key. */
	lab->job_key.b[0] ^= 1;
	assert_int_equal(reopen(lab, bytes, lab->store.objects[1].size, false), -EBADMSG);
	lab->job_key = key;
	/* Another cluster. */
	memcpy(public_key, lab->cluster_public, 32);
	assert_int_equal(sign_public(&forger, lab->cluster_public), 0);
	assert_int_equal(reopen(lab, bytes, lab->store.objects[1].size, false), -EBADMSG);
	memcpy(lab->cluster_public, public_key, 32);

	/* A card that the cluster did not sign, around a good signature of its own. */
	lab_begin(lab);
	assert_int_equal(sign_public(&forger, lab->card.sign_public), 0);
	lab->sign_seed = forger;
	assert_int_equal(node_card_sign(&lab->card, &forger), 0);
	lab_finish(lab);
	assert_int_equal(reopen(lab, lab->store.objects[2].bytes, lab->store.objects[2].size, true),
			 -EBADMSG);
	/* A good card, but the signature is not by its key. */
	assert_int_equal(sign_public(&lab->cluster_seed, lab->card.sign_public), 0);
	assert_int_equal(node_card_sign(&lab->card, &lab->cluster_seed), 0);
	lab_begin(lab);
	lab_finish(lab);
	assert_int_equal(reopen(lab, lab->store.objects[3].bytes, lab->store.objects[3].size, true),
			 -EBADMSG);
}

static void test_bad_objects_are_not_unpacked(void **state)
{
	struct lab *lab = *state;
	struct manifest *m;
	struct packer *seed;
	int fd = memfd_new("back");

	small_checkpoint(lab);
	m = lab_open_manifest(lab);
	assert_int_equal(packer_create(&lab->job, &lab->job_key, &seed), 0);
	lab->store.lie = true;
	assert_int_equal(manifest_unpack(m, &lab->job_key, &fd, lab_get, &lab->store, seed, NULL),
			 -EBADMSG);
	lab->store.lie = false;
	lab->store.fail = -EAGAIN;
	assert_int_equal(manifest_unpack(m, &lab->job_key, &fd, lab_get, &lab->store, seed, NULL),
			 -EAGAIN);
	lab->store.fail = 0;
	/* A content hash that does not fit what was written. */
	m->pb->files[0]->content_hash.data[3] ^= 1;
	assert_int_equal(manifest_unpack(m, &lab->job_key, &fd, lab_get, &lab->store, seed, NULL),
			 -EBADMSG);
	m->pb->files[0]->content_hash.data[3] ^= 1;
	assert_int_equal(manifest_unpack(m, &lab->job_key, &fd, lab_get, &lab->store, seed, NULL),
			 0);
	packer_destroy(seed);
	manifest_destroy(m);
	close(fd);
}

/* Each field of a decoded manifest, one after the other. */
static void test_semantic_checks(void **state)
{
	struct lab *lab = *state;
	struct manifest *m;
	Decamp__File *f;
	Decamp__Pack *p;

	small_checkpoint(lab);
	m = lab_open_manifest(lab);
	f = m->pb->files[0];
	p = m->pb->packs[0];
	assert_int_equal(manifest_check(m->pb), 0);
#define REFUSED(field, value)                                      \
	do {                                                       \
		__auto_type _old = (field);                        \
		(field) = (value);                                 \
		assert_int_equal(manifest_check(m->pb), -EBADMSG); \
		(field) = _old;                                    \
		assert_int_equal(manifest_check(m->pb), 0);        \
	} while (0)
	REFUSED(m->pb->seq, 0);
	REFUSED(m->pb->job.len, 15);
	REFUSED(m->pb->host.len, 0);
	REFUSED(m->pb->n_packs, 0);
	REFUSED(m->pb->engine, (char *)"sixteen letters.");
	REFUSED(m->pb->stats[0]->reason, (char *)"thirty-two letters or more of it.");
	REFUSED(p->hash.len, 31);
	REFUSED(p->size, 0);
	REFUSED(p->size, OV_PACK_MAX + 1);
	REFUSED(p->seq, 2);
	REFUSED(p->seq, 0);
	REFUSED(p->blocks, 1);
	REFUSED(p->blocks, PACK_BLOCKS_MAX + 1);
	REFUSED(p->holders.len, 0);
	REFUSED(p->holders.len, 17);
	REFUSED(p->salt.len, 15);
	REFUSED(p->salt.len, 17);
	REFUSED(f->kind, 0);
	REFUSED(f->kind, 4);
	REFUSED(f->kind, UINT32_MAX);
	REFUSED(f->mode, S_IFREG | 010000000);
	REFUSED(f->mode, 0);
	REFUSED(f->mode, S_IFDIR);
	REFUSED(f->mode, S_IFLNK);
	REFUSED(f->size, 8193);
	REFUSED(f->size, 4096);
	REFUSED(f->size, PACK_FILE_MAX + 1);
	REFUSED(f->mtime_nsec, 1000000000);
	REFUSED(f->rdev, 1);
	REFUSED(f->hardlink, 1);
	REFUSED(f->hardlink, UINT32_MAX);
	REFUSED(f->content_hash.len, 0);
	REFUSED(f->path.len, f->path.len - 1);
	REFUSED(f->path.data[1], 0);
	REFUSED(f->path.data[0], '/');
	REFUSED(f->n_extent_pack, 0);
	REFUSED(f->n_extent_count, 0);
	REFUSED(f->extent_pack[0], 1);
	REFUSED(f->extent_slot[0], 1);
	REFUSED(f->extent_slot[0], UINT32_MAX);
	REFUSED(f->extent_count[0], 0);
	REFUSED(f->extent_count[0], UINT32_MAX);
	REFUSED(f->link_target, f->path);
	REFUSED(f->xattrs, f->path);
#undef REFUSED
	manifest_destroy(m);
}

/* Pieces are counted over all files, whether they are read, known again or as before. */
static void test_pieces_are_bounded(void **state)
{
	struct packer_budget budget = PACKER_BUDGET_DEFAULT;
	struct lab *lab = *state;
	uint8_t bytes[8 * PACK_BLOCK] = { 0 };
	int scattered, whole;

	/* A block, a hole, a block..: eight pieces; and one of two blocks that are new. */
	for (size_t i = 0; i < sizeof(bytes); i += 2 * PACK_BLOCK)
		lab_fill_random(bytes + i, PACK_BLOCK);
	scattered = lab_content_fd(bytes, sizeof(bytes));
	lab_fill_random(bytes, sizeof(bytes));
	whole = lab_content_fd(bytes, 2 * PACK_BLOCK);
	budget.extents_max = 10;
	assert_int_equal(packer_set_budget(lab->packer, &budget), 0);
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_UPPER, "0/a", scattered), 0);
	assert_int_equal(lab_add(lab, FILE_UPPER, "0/b", scattered), -EOVERFLOW);
	/* What was refused does not count. */
	assert_int_equal(lab_add(lab, FILE_UPPER, "0/c", whole), 0);
	assert_int_equal(lab_add(lab, FILE_UPPER, "0/d", whole), 0);
	assert_int_equal(lab_add(lab, FILE_UPPER, "0/e", whole), -EOVERFLOW);
	lab_finish(lab);
	/* Each checkpoint has its own count; "as before" takes part in it. */
	lab_begin(lab);
	assert_int_equal(lab_add(lab, FILE_UPPER, "0/c", whole), 0);
	assert_int_equal(lab_add(lab, FILE_UPPER, "0/d", whole), 0);
	assert_int_equal(lab_add(lab, FILE_UPPER, "0/e", whole), 0);
	assert_int_equal(lab_add_unchanged(lab, "0/a", sizeof(bytes)), -EOVERFLOW);
	packer_abort(lab->packer);
	lab_begin(lab);
	assert_int_equal(lab_add_unchanged(lab, "0/a", sizeof(bytes)), 0);
	packer_abort(lab->packer);
	close(scattered);
	close(whole);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_inputs_are_checked), TEST(test_every_bit_of_a_pack_counts),
		TEST(test_frames_do_not_move), TEST(test_every_bit_of_a_manifest_counts),
		TEST(test_manifest_of_others), TEST(test_bad_objects_are_not_unpacked),
		TEST(test_semantic_checks),    TEST(test_pieces_are_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
