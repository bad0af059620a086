// SPDX-License-Identifier: LGPL-2.1-or-later
/* Files of the system go into packs that all jobs of a cluster share; nobody else's files do. */
#include "tests/unit/pack_lab.h"

enum { LIBRARY = (9 << 20) + 1234, SMALL = 130 << 10 };

static const struct secret_key cluster = { { 77 } };

static int put_there(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		     uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	bool there = lab_find(ctx, hash) >= 0;
	int r = lab_put(ctx, memfd, hash, size, ret_holder_count, ret_holders);

	return r == 0 && there ? (int)*ret_holder_count : r;
}

static void use_key(struct lab *lab, const struct secret_key *key)
{
	packer_share(lab->packer, key, put_there);
}

/* Another job, another user's key; what it stores goes where the first one's went. */
static void other_job(struct lab *lab, struct packer **ret_first)
{
	*ret_first = lab->packer;
	memset(lab->job.b, 17, sizeof(lab->job.b));
	memset(lab->job_key.b, 18, sizeof(lab->job_key.b));
	assert_int_equal(packer_create(&lab->job, &lab->job_key, &lab->packer), 0);
	lab->seq = 0;
}

static uint8_t *library(size_t size, int *ret_fd)
{
	uint8_t *bytes = calloc(1, size + PACK_BLOCK);

	lab_fill_random(bytes, size);
	for (size_t i = 0; i + 512 <= size; i += 512)
		memset(bytes + i, (int)(i >> 14), 400);
	/* Zeros on both sides of where a pack ends, and all of a frame. */
	if (size == LIBRARY)
		memset(bytes + (3 << 20), 0, 2 << 20);
	*ret_fd = lab_content_fd(bytes, size);
	return bytes;
}

static int add(struct lab *lab, enum file_kind kind, const char *path, mode_t mode, uid_t uid,
	       int fd)
{
	struct pack_input in = lab_input_of(kind, path, S_IFREG | mode, fd);

	in.st.st_uid = uid;
	return packer_add(lab->packer, &in);
}

static struct packer_counts checkpoint(struct lab *lab, int fd)
{
	lab_begin(lab);
	assert_int_equal(add(lab, FILE_CLOSURE, "usr/lib/a.so", 0755, 0, fd), 0);
	return lab_finish(lab);
}

static size_t shared_packs(struct lab *lab)
{
	struct manifest *m = lab_open_manifest(lab);
	size_t shared = 0;

	for (size_t i = 0; i < m->pb->n_packs; i++) {
		shared += m->pb->packs[i]->shared_key.len > 0;
		for (size_t j = 0; j < i; j++)
			assert_memory_not_equal(m->pb->packs[i]->hash.data,
						m->pb->packs[j]->hash.data,
						sizeof(struct object_hash));
	}
	manifest_destroy(m);
	return shared;
}

static void test_two_jobs_store_one(void **state)
{
	struct lab *lab = *state;
	struct packer *first;
	struct packer_counts counts;
	size_t before;
	int fd;
	uint8_t *bytes = library(LIBRARY, &fd);

	use_key(lab, &cluster);
	counts = checkpoint(lab, fd);
	assert_int_equal(shared_packs(lab), 2);
	assert_int_equal(counts.packs_new, 2);
	assert_true(counts.sent_bytes > LIBRARY / 8);
	before = lab->store.count;
	other_job(lab, &first);
	use_key(lab, &cluster);
	counts = checkpoint(lab, fd);
	/* Two packs that are there, and a manifest. */
	assert_int_equal(lab->store.count, before + 3);
	assert_true(counts.sent_bytes < 4096);
	assert_int_equal(counts.packs_new, 2);
	lab_check_file(lab, "usr/lib/a.so", bytes, LIBRARY);
	packer_destroy(first);
	close(fd);
	free(bytes);
}

/* Another cluster's key, or none, shares nothing; the packs of one cluster are of no use to another. */
static void test_key_is_needed(void **state)
{
	static const struct secret_key other = { { 78 } };
	struct lab *lab = *state;
	struct packer *first;
	struct manifest *m;
	int fd;
	uint8_t *bytes = library(SMALL, &fd);

	use_key(lab, &cluster);
	checkpoint(lab, fd);
	assert_int_equal(shared_packs(lab), 1);
	m = lab_open_manifest(lab);
	other_job(lab, &first);
	use_key(lab, &other);
	assert_true(checkpoint(lab, fd).sent_bytes > 4096);
	assert_int_equal(shared_packs(lab), 1);
	for (size_t i = 0; i < lab->store.count; i++) {
		struct pack_view v;
		int r = pack_view_open_shared(
			&v, lab->store.objects[i].bytes, lab->store.objects[i].size,
			(struct secret_key *)m->pb->packs[0]->shared_key.data);

		/* The key opens the pack that it is for: the first object, and no other. */
		assert_int_equal(r, i == 0 ? 0 : -EBADMSG);
	}
	manifest_destroy(m);
	packer_destroy(first);
	close(fd);
	free(bytes);
}

static void test_whose_files_are_shared(void **state)
{
	static const struct {
		enum file_kind kind;
		mode_t mode;
		uid_t uid;
		size_t size;
		bool shared;
	} cases[] = {
		{ FILE_CLOSURE, 0755, 0, SMALL, true },
		{ FILE_CLOSURE, 0644, 0, SMALL, true },
		{ FILE_CLOSURE, 0755, 1000, SMALL, false }, /* a user's own program */
		{ FILE_CLOSURE, 0640, 0, SMALL, false },    /* not for all to read */
		{ FILE_CLOSURE, 0664, 0, SMALL, false },    /* not root's alone to write */
		{ FILE_CLOSURE, 0646, 0, SMALL, false },
		{ FILE_CLOSURE, 0755, 0, 64 << 10, false }, /* small */
		{ FILE_UPPER, 0755, 0, SMALL, false },	    /* written by the job */
		{ FILE_IMAGE, 0755, 0, SMALL, false },
	};
	struct lab *lab = *state;

	use_key(lab, &cluster);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const char *path = cases[i].kind == FILE_UPPER ? "0/f" : "f";
		int fd;
		uint8_t *bytes = library(cases[i].size, &fd);

		packer_reset(lab->packer);
		lab_begin(lab);
		assert_int_equal(add(lab, cases[i].kind, path, cases[i].mode, cases[i].uid, fd), 0);
		lab_finish(lab);
		assert_int_equal(shared_packs(lab), cases[i].shared);
		lab_check_file(lab, path, bytes, cases[i].size);
		close(fd);
		free(bytes);
	}
}

/* A manifest that has no shared pack is one that hosts of before can read. */
static void test_manifest_version(void **state)
{
	struct lab *lab = *state;
	uint32_t version;
	int fd;
	uint8_t *bytes = library(SMALL, &fd);

	checkpoint(lab, fd);
	memcpy(&version, lab->store.objects[lab_find(&lab->store, &lab->ref.manifest)].bytes + 8,
	       4);
	assert_int_equal(version, 2);
	use_key(lab, &cluster);
	packer_reset(lab->packer);
	checkpoint(lab, fd);
	memcpy(&version, lab->store.objects[lab_find(&lab->store, &lab->ref.manifest)].bytes + 8,
	       4);
	assert_int_equal(version, 3);
	close(fd);
	free(bytes);
}

/* Memory that is a part of the library refers to it. */
static void test_memory_refers(void **state)
{
	struct lab *lab = *state;
	struct packer_counts counts;
	int fd, image;
	uint8_t *bytes = library(LIBRARY, &fd);

	use_key(lab, &cluster);
	lab_begin(lab);
	assert_int_equal(add(lab, FILE_CLOSURE, "usr/lib/a.so", 0755, 0, fd), 0);
	image = lab_content_fd(bytes + 16 * PACK_BLOCK, 256 * PACK_BLOCK);
	assert_int_equal(lab_add(lab, FILE_IMAGE, "pages-1.img", image), 0);
	counts = lab_finish(lab);
	assert_int_equal(counts.packs_new, 2);
	lab_check_file(lab, "pages-1.img", bytes + 16 * PACK_BLOCK, 256 * PACK_BLOCK);
	close(image);
	close(fd);
	free(bytes);
}

static bool nobody_alive(void *ctx, const struct node_id *node)
{
	(void)ctx, (void)node;
	return false;
}

/* Its holders die; the same pack goes to others, and is named once. A file twice is one pack, too. */
static void test_stored_again(void **state)
{
	struct lab *lab = *state;
	struct packer_counts counts;
	size_t before;
	int fd;
	uint8_t *bytes = library(SMALL, &fd);

	use_key(lab, &cluster);
	checkpoint(lab, fd);
	packer_forget_weak(lab->packer, 2, nobody_alive, NULL);
	lab_begin(lab);
	assert_int_equal(add(lab, FILE_CLOSURE, "usr/lib/a.so", 0755, 0, -1), -ENOENT);
	packer_abort(lab->packer);
	lab->seq--;
	before = lab->store.count;
	lab_begin(lab);
	assert_int_equal(add(lab, FILE_CLOSURE, "usr/lib/a.so", 0755, 0, fd), 0);
	assert_int_equal(add(lab, FILE_CLOSURE, "usr/lib/b.so", 0755, 0, fd), 0);
	counts = lab_finish(lab);
	assert_int_equal(lab->store.count, before + 2);
	assert_int_equal(counts.packs, 1);
	assert_int_equal(shared_packs(lab), 1);
	lab_check_file(lab, "usr/lib/b.so", bytes, SMALL);
	/* And if it cannot be stored again, the checkpoint fails and nothing is lost. */
	packer_forget_weak(lab->packer, 2, nobody_alive, NULL);
	lab->store.fail = -EHOSTUNREACH;
	lab_begin(lab);
	assert_int_equal(add(lab, FILE_CLOSURE, "usr/lib/a.so", 0755, 0, fd), -EHOSTUNREACH);
	packer_abort(lab->packer);
	lab->store.fail = 0;
	lab->seq--;
	assert_int_equal(checkpoint(lab, fd).packs, 1);
	lab_check_file(lab, "usr/lib/a.so", bytes, SMALL);
	close(fd);
	free(bytes);
}

/* The next host knows the packs by the manifest, with their keys. */
static void test_takeover(void **state)
{
	struct lab *lab = *state;
	struct packer *first = lab->packer, *next;
	int fd;
	uint8_t *bytes = library(LIBRARY, &fd);

	use_key(lab, &cluster);
	checkpoint(lab, fd);
	assert_int_equal(packer_create(&lab->job, &lab->job_key, &next), 0);
	lab_check_file_seeding(lab, "usr/lib/a.so", bytes, LIBRARY, next);
	lab->packer = next;
	use_key(lab, &cluster);
	/* Unchanged, and then with its content once more: the same packs. */
	for (int i = 0; i < 2; i++) {
		struct pack_input in =
			lab_input_of(FILE_CLOSURE, "usr/lib/a.so", S_IFREG | 0755, i ? fd : -1);

		in.st.st_uid = 0;
		in.st.st_size = LIBRARY;
		lab_begin(lab);
		assert_int_equal(packer_add(lab->packer, &in), 0);
		assert_int_equal(lab_finish(lab).packs_new, 0);
		assert_int_equal(shared_packs(lab), 2);
		lab_check_file(lab, "usr/lib/a.so", bytes, LIBRARY);
	}
	packer_destroy(first);
	close(fd);
	free(bytes);
}

/* Each store of a checkpoint fails once, with and without threads; then all is well. */
static void test_stores_fail(void **state)
{
	struct lab *lab = *state;
	int fd;
	uint8_t *bytes = library(LIBRARY, &fd);

	for (uint32_t threads = 0; threads <= 2; threads++) {
		struct packer_budget budget = PACKER_BUDGET_DEFAULT;

		budget.threads = threads;
		use_key(lab, &cluster);
		assert_int_equal(packer_set_budget(lab->packer, &budget), 0);
		for (int n = 1; n <= 3; n++) {
			int r;

			/* What was stored before another one failed stays known. */
			packer_reset(lab->packer);
			lab->store.fail_after = n;
			lab_begin(lab);
			r = add(lab, FILE_CLOSURE, "usr/lib/a.so", 0755, 0, fd);
			if (r == 0)
				r = lab_try_finish(lab);
			assert_int_equal(r, -EHOSTUNREACH);
			packer_abort(lab->packer);
			lab->store.fail = 0;
			lab->seq--;
		}
		checkpoint(lab, fd);
		assert_int_equal(shared_packs(lab), 2);
		lab_check_file(lab, "usr/lib/a.so", bytes, LIBRARY);
	}
	close(fd);
	free(bytes);
}

/* A flipped bit anywhere in the object, or a key that is wrong by one bit, opens nothing. */
static void test_hostile(void **state)
{
	struct lab *lab = *state;
	struct secret_key key;
	struct pack_view v;
	struct manifest *m;
	uint8_t *object;
	uint32_t size;
	int fd;
	uint8_t *bytes = library(SMALL, &fd);

	use_key(lab, &cluster);
	checkpoint(lab, fd);
	m = lab_open_manifest(lab);
	memcpy(key.b, m->pb->packs[0]->shared_key.data, sizeof(key.b));
	object = lab->store.objects[0].bytes;
	size = lab->store.objects[0].size;
	assert_int_equal(pack_view_open_shared(&v, object, size, &key), 0);
	for (uint32_t i = 0; i < size; i += 61) {
		uint8_t *out = malloc(PACK_FRAME_RAW + PACK_FRAME_SLACK);
		uint8_t *scratch = malloc(PACK_FRAME_RAW + PACK_FRAME_SLACK);
		struct pack_base bases[PACK_FRAME_BLOCKS];
		int r;

		object[i] ^= 4;
		r = pack_view_open_shared(&v, object, size, &key);
		for (uint32_t f = 0; r == 0 && f < v.header.frame_count; f++)
			r = pack_view_frame(&v, f, out, scratch, bases);
		assert_int_equal(r, -EBADMSG);
		object[i] ^= 4;
		free(out);
		free(scratch);
	}
	key.b[31] ^= 1;
	assert_int_equal(pack_view_open_shared(&v, object, size, &key), -EBADMSG);
	assert_int_equal(pack_view_open(&v, object, size, &lab->job, &lab->job_key, 1), -EBADMSG);
	manifest_destroy(m);
	close(fd);
	free(bytes);
}

static bool manifest_refused(struct lab *lab, const Decamp__Manifest *pb)
{
	(void)lab;
	return manifest_check(pb) == -EBADMSG;
}

static void test_manifest_checks(void **state)
{
	struct lab *lab = *state;
	Decamp__Pack *pack;
	struct manifest *m;
	int fd;
	uint8_t *bytes = library(SMALL, &fd);

	use_key(lab, &cluster);
	checkpoint(lab, fd);
	m = lab_open_manifest(lab);
	pack = m->pb->packs[0];
	assert_false(manifest_refused(lab, m->pb));
	pack->shared_key.len = 31;
	assert_true(manifest_refused(lab, m->pb));
	pack->shared_key.len = 32;
	pack->deltas = true;
	assert_true(manifest_refused(lab, m->pb));
	pack->deltas = false;
	pack->data_shards = 4;
	pack->parity_shards = 2;
	assert_true(manifest_refused(lab, m->pb));
	pack->data_shards = pack->parity_shards = 0;
	assert_false(manifest_refused(lab, m->pb));
	/* It is named by its hash alone. */
	assert_int_equal(pack->salt.len, 0);
	pack->salt = (ProtobufCBinaryData){ .len = PACK_SALT, .data = pack->shared_key.data };
	assert_true(manifest_refused(lab, m->pb));
	pack->salt = (ProtobufCBinaryData){ 0 };
	manifest_destroy(m);
	close(fd);
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_two_jobs_store_one),
		TEST(test_key_is_needed),
		TEST(test_whose_files_are_shared),
		TEST(test_manifest_version),
		TEST(test_memory_refers),
		TEST(test_stored_again),
		TEST(test_takeover),
		TEST(test_stores_fail),
		TEST(test_hostile),
		TEST(test_manifest_checks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
