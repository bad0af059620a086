// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/pack_lab.h"

static int put_locked(struct lab_store *s, int memfd, const struct object_hash *hash, uint32_t size,
		      uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	struct object_hash actual;
	uint8_t *bytes;

	if (s->fail_after > 0 && --s->fail_after == 0)
		s->fail = -EHOSTUNREACH;
	if (s->fail)
		return s->fail;
	assert_true(s->count < OBJECTS_MAX);
	bytes = malloc(size);
	assert_int_equal(pread_full(memfd, bytes, size, 0), 0);
	object_hash_of(bytes, size, &actual);
	assert_memory_equal(&actual, hash, sizeof(actual));
	s->objects[s->count].hash = *hash;
	s->objects[s->count].bytes = bytes;
	s->objects[s->count++].size = size;
	*ret_holder_count = 2;
	memset(ret_holders, 0, 2 * sizeof(*ret_holders));
	ret_holders[0].b[0] = 1;
	ret_holders[1].b[0] = (uint8_t)(2 + s->count);
	return 0;
}

int lab_put(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
	    uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	struct lab_store *s = ctx;
	int r;

	pthread_mutex_lock(&s->lock);
	r = put_locked(s, memfd, hash, size, ret_holder_count, ret_holders);
	pthread_mutex_unlock(&s->lock);
	return r;
}

int lab_find(const struct lab_store *s, const struct object_hash *hash)
{
	for (size_t i = 0; i < s->count; i++)
		if (memcmp(&s->objects[i].hash, hash, sizeof(*hash)) == 0)
			return (int)i;
	return -ENOENT;
}

int lab_get(void *ctx, const struct object_hash *hash, uint32_t size, const struct node_id *holders,
	    uint32_t holder_count, int *ret_memfd)
{
	struct lab_store *s = ctx;
	int i = lab_find(s, hash), fd;

	if (s->fail || i < 0)
		return s->fail ? s->fail : i;
	assert_int_equal(size, s->objects[i].size);
	assert_int_equal(holder_count, 2);
	assert_int_equal(holders[0].b[0], 1);
	fd = memfd_new("test");
	assert_true(fd >= 0);
	assert_int_equal(pwrite_full(fd, s->objects[i].bytes, size, 0), 0);
	if (s->lie) {
		uint8_t byte = s->objects[i].bytes[size / 2] ^ 1;

		assert_int_equal(pwrite_full(fd, &byte, 1, size / 2), 0);
	}
	s->gets++;
	*ret_memfd = fd;
	return 0;
}

int lab_setup(void **state)
{
	struct lab *lab = calloc(1, sizeof(*lab));

	pthread_mutex_init(&lab->store.lock, NULL);
	memset(lab->job.b, 7, sizeof(lab->job.b));
	memset(lab->job_key.b, 8, sizeof(lab->job_key.b));
	memset(lab->sign_seed.b, 9, sizeof(lab->sign_seed.b));
	memset(lab->cluster_seed.b, 10, sizeof(lab->cluster_seed.b));
	lab->token.counter = 3;
	lab->token.node.b[0] = 4;
	lab->card.version = 1;
	lab->card.id.b[0] = 5;
	lab->card.issued_wall_ms = 1;
	lab->card.expires_wall_ms = 2; /* long ago: manifests stay valid */
	strcpy(lab->card.hostname, "lab01");
	assert_int_equal(sign_public(&lab->sign_seed, lab->card.sign_public), 0);
	assert_int_equal(sign_public(&lab->cluster_seed, lab->cluster_public), 0);
	assert_int_equal(node_card_sign(&lab->card, &lab->cluster_seed), 0);
	assert_int_equal(packer_create(&lab->job, &lab->job_key, &lab->packer), 0);
	*state = lab;
	return 0;
}

int lab_teardown(void **state)
{
	struct lab *lab = *state;

	packer_destroy(lab->packer);
	for (size_t i = 0; i < lab->store.count; i++)
		free(lab->store.objects[i].bytes);
	free(lab);
	return 0;
}

static uint64_t random_state = 88172645463325252u;

void lab_fill_random(uint8_t *bytes, size_t size)
{
	for (size_t i = 0; i + 8 <= size; i += 8) {
		random_state ^= random_state << 13;
		random_state ^= random_state >> 7;
		random_state ^= random_state << 17;
		memcpy(bytes + i, &random_state, 8);
	}
}

int lab_content_fd(const void *bytes, size_t size)
{
	int fd = memfd_new("content");

	assert_true(fd >= 0);
	assert_int_equal(pwrite_full(fd, bytes, size, 0), 0);
	return fd;
}

struct pack_input lab_input_of(enum file_kind kind, const char *path, mode_t mode, int fd)
{
	struct pack_input in = { .kind = kind, .path = path, .fd = fd };
	struct stat st;

	if (fd >= 0) {
		assert_int_equal(fstat(fd, &st), 0);
		in.st.st_size = st.st_size;
	}
	in.st.st_mode = mode;
	in.st.st_uid = 1000;
	in.st.st_gid = 100;
	in.st.st_nlink = 1;
	in.st.st_mtim.tv_sec = -5;
	in.st.st_mtim.tv_nsec = 999999999;
	return in;
}

void lab_begin(struct lab *lab)
{
	assert_int_equal(packer_begin(lab->packer, &lab->token, lab->seq + 1, lab_put, &lab->store),
			 0);
	lab->seq++;
}

int lab_add(struct lab *lab, enum file_kind kind, const char *path, int fd)
{
	struct pack_input in = lab_input_of(kind, path, S_IFREG | 0644, fd);

	return packer_add(lab->packer, &in);
}

static struct manifest_head head_of(const struct lab *lab)
{
	struct manifest_head head = { .job = lab->job, .token = lab->token, .seq = lab->seq };

	head.wall_ms = 1234567;
	head.host = lab->card.id;
	strcpy(head.engine, "native");
	strcpy(head.arch, "x86_64");
	strcpy(head.kernel, "6.1");
	head.meta_json = "{\"pids\":[1,2]}";
	head.spec_json = "{}";
	head.stat_count = 1;
	head.stats[0].seq = lab->seq;
	head.stats[0].pause_us = 800;
	strcpy(head.stats[0].reason, "interval");
	head.move_count = 1;
	strcpy(head.moves[0].to, "lab02");
	return head;
}

int lab_try_finish(struct lab *lab)
{
	struct manifest_head head = head_of(lab);

	return packer_finish(lab->packer, &head, &lab->sign_seed, &lab->card, &lab->ref);
}

struct packer_counts lab_finish(struct lab *lab)
{
	struct packer_counts counts;

	assert_int_equal(lab_try_finish(lab), 0);
	packer_counts(lab->packer, &counts);
	return counts;
}

struct manifest *lab_open_manifest(struct lab *lab)
{
	int i = lab_find(&lab->store, &lab->ref.manifest);
	struct manifest *m = NULL;

	assert_true(i >= 0);
	assert_int_equal(lab->store.objects[i].size, lab->ref.manifest_size);
	assert_int_equal(manifest_open(lab->store.objects[i].bytes, lab->ref.manifest_size,
				       &lab->ref.manifest, &lab->job_key, lab->cluster_public, &m),
			 0);
	return m;
}

void lab_check_file_seeding(struct lab *lab, const char *path, const void *bytes, size_t size,
			    struct packer *seed)
{
	struct manifest *m = lab_open_manifest(lab);
	size_t count = manifest_file_count(m);
	int *fds = malloc(count * sizeof(*fds));
	uint8_t *back = malloc(size + 1);
	int fd = memfd_new("back");
	bool found = false;
	struct stat st;

	for (size_t i = 0; i < count; i++) {
		struct manifest_file f;

		manifest_file(m, i, &f);
		fds[i] = strcmp(f.path, path) == 0 ? fd : -1;
		found |= fds[i] >= 0;
	}
	assert_true(found);
	assert_int_equal(manifest_unpack(m, &lab->job_key, fds, lab_get, &lab->store, seed, NULL),
			 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, size);
	assert_int_equal(pread_full(fd, back, size, 0), 0);
	assert_memory_equal(back, bytes, size);
	close(fd);
	free(back);
	free(fds);
	manifest_destroy(m);
}

void lab_check_file(struct lab *lab, const char *path, const void *bytes, size_t size)
{
	lab_check_file_seeding(lab, path, bytes, size, NULL);
}
