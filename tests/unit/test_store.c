// SPDX-License-Identifier: LGPL-2.1-or-later
/* The store on a real disk: what is kept, what is refused, what survives a kill. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay/store/io.h"
#include "overlay/store/store.h"

enum { QUOTA = 64 << 20 };

struct fixture {
	char dir[64];
	struct store *store;
};

static void open_store(struct fixture *f)
{
	assert_int_equal(store_open(f->dir, &f->store), 0);
	store_set_limits(f->store, QUOTA, 0);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	strcpy(f->dir, "/tmp/store-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	open_store(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	store_close(f->store);
	assert_int_equal(remove_tree_at(AT_FDCWD, f->dir), 0);
	free(f);
	return 0;
}

static void reopen(struct fixture *f)
{
	store_close(f->store);
	open_store(f);
}

static void fill(uint8_t *bytes, uint32_t size, uint32_t salt)
{
	uint32_t x = salt * 2 + 1;

	for (uint32_t i = 0; i < size; i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		bytes[i] = (uint8_t)(x >> 3);
	}
	for (uint32_t i = 0; i < size && i < sizeof(salt); i++)
		bytes[i] = (uint8_t)(salt >> 8 * i);
}

static struct ov_object describe(uint8_t *bytes, uint32_t size, uint32_t salt, uint8_t job,
				 uint64_t seq)
{
	struct ov_object object = { .size = size, .seq = seq, .job.b[0] = job, .token.counter = 10 };

	fill(bytes, size, salt);
	SHA256(bytes, size, object.hash.b);
	return object;
}

static int put(struct store *store, const struct ov_object *object, const uint8_t *bytes)
{
	struct store_put *put = NULL;
	int r = store_put_begin(store, object, &put);

	for (uint32_t done = 0; r == 0 && done < object->size; done += 1000) {
		uint32_t left = object->size - done;

		r = store_put_write(put, bytes + done, left < 1000 ? left : 1000);
	}
	if (r == 0)
		return store_put_commit(put);
	store_put_abort(put);
	return r;
}

static struct ov_object put_new(struct store *store, uint32_t size, uint32_t salt, uint8_t job,
				uint64_t seq)
{
	uint8_t *bytes = malloc(size);
	struct ov_object object;

	assert_non_null(bytes);
	object = describe(bytes, size, salt, job, seq);
	assert_int_equal(put(store, &object, bytes), 0);
	free(bytes);
	return object;
}

static int get(struct store *store, const struct ov_object *object)
{
	uint8_t *bytes = malloc(object->size);
	struct object_hash hash;
	uint32_t size = 0;
	int fd = -1, r = store_get(store, &object->hash, &fd, &size);

	assert_non_null(bytes);
	if (r == 0) {
		assert_int_equal(size, object->size);
		assert_true(memfd_is_sealed(fd));
		assert_int_equal(pread_full(fd, bytes, size, 0), 0);
		SHA256(bytes, size, hash.b);
		assert_memory_equal(&hash, &object->hash, sizeof(hash));
		close(fd);
	}
	free(bytes);
	return r;
}

static struct store_stats stats_of(struct store *store)
{
	struct store_stats stats;

	store_get_stats(store, &stats);
	return stats;
}

/* Where an object lies, found by its first bytes: which file, and at which offset. */
static uint64_t place_of(const struct fixture *f, const struct ov_object *object, char path[256])
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct object_hash hash;
	struct dirent *entry;
	uint8_t *bytes = malloc(object->size);

	assert_non_null(bytes);
	snprintf(path, 256, "%s/segments", f->dir);
	dir = opendir(path);
	assert_non_null(dir);
	while ((entry = readdir(dir))) {
		_cleanup_close_ int fd = -1;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, 256, "%s/segments/%.8s", f->dir, entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		assert_true(fd >= 0);
		for (uint64_t at = 0; pread_full(fd, bytes, object->size, (off_t)at) == 0;
		     at += 4096) {
			SHA256(bytes, object->size, hash.b);
			if (memcmp(&hash, &object->hash, sizeof(hash)) != 0)
				continue;
			free(bytes);
			return at;
		}
	}
	fail();
	return 0;
}

static void overwrite(const char *path, uint64_t offset, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pwrite_full(fd, text, strlen(text), (off_t)offset), 0);
	close(fd);
}

/* What the segments take of the disk. */
static uint64_t disk_bytes(const struct fixture *f)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;
	uint64_t bytes = 0;
	char path[256];

	snprintf(path, sizeof(path), "%s/segments", f->dir);
	dir = opendir(path);
	assert_non_null(dir);
	while ((entry = readdir(dir))) {
		struct stat st;

		if (entry->d_name[0] == '.')
			continue;
		assert_int_equal(fstatat(dirfd(dir), entry->d_name, &st, 0), 0);
		bytes += (uint64_t)st.st_blocks * 512;
	}
	return bytes;
}

static void test_put_get(void **state)
{
	struct fixture *f = *state;
	struct ov_object a = put_new(f->store, 1, 1, 1, 1), b = put_new(f->store, 1 << 20, 2, 1, 1);
	struct ov_object absent = { .size = 5, .hash.b[0] = 9 };

	assert_int_equal(get(f->store, &a), 0);
	assert_int_equal(get(f->store, &b), 0);
	assert_int_equal(get(f->store, &absent), -ENOENT);
	assert_int_equal(stats_of(f->store).objects, 2);
	assert_int_equal(stats_of(f->store).object_bytes, (1 << 20) + 1);
	/* The same again is one object. */
	put_new(f->store, 1 << 20, 2, 1, 2);
	assert_int_equal(stats_of(f->store).objects, 2);
	reopen(f);
	assert_int_equal(get(f->store, &b), 0);
	assert_int_equal(stats_of(f->store).objects, 2);
	assert_int_equal(stats_of(f->store).object_bytes, (1 << 20) + 1);
}

static void test_put_refusals(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[4096];
	struct ov_object object = describe(bytes, sizeof(bytes), 1, 1, 1), bad;
	struct store_put *p = NULL;

	bad = object;
	bad.size = 0;
	assert_int_equal(put(f->store, &bad, bytes), -EINVAL);
	bad.size = OV_PACK_MAX + 1;
	assert_int_equal(put(f->store, &bad, bytes), -EINVAL);
	bad = object;
	bad.hash.b[31] ^= 1;
	assert_int_equal(put(f->store, &bad, bytes), -EBADMSG);
	assert_int_equal(stats_of(f->store).bad_objects, 1);
	/* Too long, too short. */
	assert_int_equal(store_put_begin(f->store, &object, &p), 0);
	assert_int_equal(store_put_write(p, bytes, 4000), 0);
	assert_int_equal(store_put_write(p, bytes, 97), -EBADMSG);
	assert_int_equal(store_put_commit(p), -ENODATA);
	assert_int_equal(stats_of(f->store).objects, 0);
	/* An older incarnation. */
	assert_int_equal(put(f->store, &object, bytes), 0);
	object.token.counter = 9;
	assert_int_equal(put(f->store, &object, bytes), -ESTALE);
	object.token.counter = 0;
	assert_int_equal(put(f->store, &object, bytes), 0);
}

static void test_quota(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = malloc(1 << 20);
	struct ov_object a = describe(bytes, 1 << 20, 1, 1, 1), b;
	struct store_put *p = NULL;

	assert_non_null(bytes);
	store_set_limits(f->store, (2 << 20) - 1, 0);
	assert_int_equal(put(f->store, &a, bytes), 0);
	b = describe(bytes, 1 << 20, 2, 1, 1);
	assert_int_equal(put(f->store, &b, bytes), -ENOSPC);
	/* What is still arriving counts. */
	store_set_limits(f->store, 3 << 20, 0);
	assert_int_equal(store_put_begin(f->store, &b, &p), 0);
	b = describe(bytes, (1 << 20) - 1, 3, 1, 1);
	assert_int_equal(store_room_bytes(f->store), 1 << 20);
	assert_int_equal(put(f->store, &b, bytes), 0);
	b = describe(bytes, 2, 4, 1, 1);
	assert_int_equal(put(f->store, &b, bytes), -ENOSPC);
	store_put_abort(p);
	assert_int_equal(put(f->store, &b, bytes), 0);
	/* Disk that is never touched. */
	store_set_limits(f->store, UINT64_MAX / 2, UINT64_MAX / 2);
	b = describe(bytes, 3, 5, 1, 1);
	assert_int_equal(put(f->store, &b, bytes), -ENOSPC);
	assert_int_equal(store_room_bytes(f->store), 0);
	free(bytes);
}

static void test_retain(void **state)
{
	struct fixture *f = *state;
	struct ov_object old = put_new(f->store, 1000, 1, 1, 1);
	struct ov_object kept = put_new(f->store, 1000, 2, 1, 1);
	struct ov_object fresh = put_new(f->store, 1000, 3, 1, 7);
	struct ov_object other = put_new(f->store, 1000, 4, 2, 1);
	struct ov_object shared = put_new(f->store, 1000, 5, 1, 1);
	struct object_hash list[] = { fresh.hash, kept.hash };
	struct ov_retain retain = { .job = old.job, .token = old.token, .upto_seq = 5, .count = 2 };
	uint32_t dropped = 0;

	put_new(f->store, 1000, 5, 2, 1);
	assert_int_equal(store_retain(f->store, &retain, list, &dropped), 0);
	assert_int_equal(dropped, 1);
	assert_int_equal(get(f->store, &old), -ENOENT);
	assert_int_equal(get(f->store, &kept), 0);
	assert_int_equal(get(f->store, &fresh), 0);
	assert_int_equal(get(f->store, &other), 0);
	assert_int_equal(get(f->store, &shared), 0);
	assert_int_equal(stats_of(f->store).objects, 4);
	/* A newer incarnation, then the old one again. */
	retain.token.counter = 11;
	assert_int_equal(store_retain(f->store, &retain, list, &dropped), 0);
	retain.token.counter = 10;
	retain.count = 0;
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), -ESTALE);
	reopen(f);
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), -ESTALE);
	assert_int_equal(get(f->store, &kept), 0);
	/* The end of the job: everything of it goes, and nothing of the other. */
	retain.token.counter = 11;
	retain.upto_seq = UINT64_MAX;
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), 0);
	assert_int_equal(dropped, 2);
	assert_int_equal(get(f->store, &shared), 0);
	assert_int_equal(stats_of(f->store).objects, 2);
	assert_int_equal(stats_of(f->store).object_bytes, 2000);
	retain.count = STORE_RETAIN_MAX + 1;
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), -EINVAL);
}

/* Who else has it: kept across a restart, gone with the reference, refused from a job that was lost. */
static void test_holders(void **state)
{
	struct fixture *f = *state;
	struct ov_object words[3] = { put_new(f->store, 1000, 1, 1, 1),
				      put_new(f->store, 1000, 2, 1, 4),
				      put_new(f->store, 1000, 3, 2, 2) };
	struct ov_retain retain = { .job = words[0].job, .token.counter = 11, .upto_seq = 3 };
	struct store_item *items;
	uint32_t count = 77, dropped = 0;

	for (uint32_t i = 0; i < 3; i++) {
		words[i].holder_count = 2;
		words[i].holders[1].b[0] = (uint8_t)(i + 1);
	}
	words[2].hash.b[0] ^= 1; /* not here */
	assert_int_equal(store_set_holders(f->store, words, 3), 0);
	reopen(f);
	assert_int_equal(store_list_held(f->store, &items, &count), 0);
	assert_int_equal(count, 2);
	for (uint32_t i = 0; i < count; i++) {
		assert_int_equal(items[i].newest, items[i].object.seq == 4);
		assert_int_equal(items[i].object.size, 1000);
		assert_int_equal(items[i].object.holder_count, 2);
		assert_int_equal(items[i].object.holders[1].b[0], items[i].newest ? 2 : 1);
	}
	free(items);
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), 0);
	words[1].holders[1].b[0] = 99; /* under the token that was lost just now */
	assert_int_equal(store_set_holders(f->store, &words[1], 1), 0);
	assert_int_equal(store_list_held(f->store, &items, &count), 0);
	assert_int_equal(count, 1);
	assert_int_equal(items[0].object.holders[1].b[0], 2);
	free(items);
}

/* A host's own record: replaced whole, refused if larger than it should be. */
static void test_own_record(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[8];
	size_t size = 0;

	assert_int_equal(store_own_load(f->store, "habits", bytes, sizeof(bytes), &size), -ENOENT);
	assert_int_equal(store_own_save(f->store, "habits", "12345678", 8), 0);
	assert_int_equal(store_own_save(f->store, "habits", "abcd", 4), 0);
	reopen(f);
	assert_int_equal(store_own_load(f->store, "habits", bytes, sizeof(bytes), &size), 0);
	assert_int_equal(size, 4);
	assert_memory_equal(bytes, "abcd", 4);
	assert_int_equal(store_own_load(f->store, "habits", bytes, 3, &size), -EBADMSG);
}

static void test_retain_many(void **state)
{
	enum { COUNT = 150 };
	struct fixture *f = *state;
	struct ov_object objects[COUNT];
	struct object_hash list[COUNT / 2];
	struct ov_retain retain = { .upto_seq = 1, .count = COUNT / 2, .token.counter = 10 };
	uint32_t dropped = 0;

	for (uint32_t i = 0; i < COUNT; i++) {
		objects[i] = put_new(f->store, 100, i, 3, 1);
		if (i % 2)
			list[i / 2] = objects[i].hash;
	}
	retain.job = objects[0].job;
	assert_int_equal(store_retain(f->store, &retain, list, &dropped), 0);
	assert_int_equal(dropped, COUNT / 2);
	for (uint32_t i = 0; i < COUNT; i++)
		assert_int_equal(get(f->store, &objects[i]), i % 2 ? 0 : -ENOENT);
}

static void test_rot(void **state)
{
	struct fixture *f = *state;
	struct ov_object a = put_new(f->store, 300000, 1, 1, 1), b = put_new(f->store, 10, 2, 1, 1);
	struct ov_object c = put_new(f->store, 10, 3, 1, 1), d;
	char path[256];

	overwrite(path, place_of(f, &a, path) + 299999, "x");
	assert_int_equal(get(f->store, &a), -ENOENT);
	assert_int_equal(get(f->store, &a), -ENOENT);
	assert_int_equal(stats_of(f->store).bad_objects, 1);
	assert_int_equal(stats_of(f->store).rotten, 1);
	assert_int_equal(stats_of(f->store).objects, 2);
	assert_int_equal(stats_of(f->store).disk_bytes, 2 * 4096);
	assert_int_equal(disk_bytes(f), 2 * 4096);
	/* Cut short, behind the end, and gone altogether. */
	assert_int_equal(truncate(path, (off_t)place_of(f, &b, path) + 9), 0);
	assert_int_equal(get(f->store, &b), -ENOENT);
	assert_int_equal(get(f->store, &c), -ENOENT);
	d = put_new(f->store, 10, 4, 1, 1);
	(void)place_of(f, &d, path);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(get(f->store, &d), -ENOENT);
	assert_int_equal(stats_of(f->store).bad_objects, 4);
	assert_int_equal(stats_of(f->store).object_bytes, 0);
	/* It can come again, and not to a file without a name. */
	put_new(f->store, 300000, 1, 1, 1);
	assert_int_equal(get(f->store, &a), 0);
	reopen(f);
	assert_int_equal(get(f->store, &a), 0);
}

/* An object that comes again heals the one that is here. */
static void test_heal(void **state)
{
	struct fixture *f = *state;
	struct ov_object a = put_new(f->store, 300000, 1, 1, 1);
	char path[256];

	overwrite(path, place_of(f, &a, path) + 5, "x");
	put_new(f->store, 300000, 1, 1, 1);
	assert_int_equal(get(f->store, &a), 0);
	assert_int_equal(stats_of(f->store).objects, 1);
	assert_int_equal(stats_of(f->store).disk_bytes, 74 * 4096);
	assert_int_equal(disk_bytes(f), 74 * 4096);
}

static void test_reconcile(void **state)
{
	struct fixture *f = *state;
	struct ov_object a = put_new(f->store, 10000, 1, 1, 1),
			 b = put_new(f->store, 1000, 2, 1, 1);
	struct ov_object c = put_new(f->store, 9000, 3, 1, 1);
	struct store_put *arriving = NULL;
	char path[256], stray[256];
	uint64_t at = place_of(f, &c, path);
	int fd;

	/* Room that nobody speaks of: between objects, behind them, and a file of its own. */
	assert_int_equal(store_give_up(f->store, &b.job, &b.hash), 0);
	store_close(f->store);
	overwrite(path, 12288, "orphan");
	overwrite(path, at + 50000, "orphan");
	snprintf(stray, sizeof(stray), "%s/segments/000000aa", f->dir);
	fd = open(stray, O_WRONLY | O_CREAT, 0600);
	assert_true(fd >= 0);
	close(fd);
	open_store(f);
	assert_int_equal(stats_of(f->store).objects, 2);
	assert_int_equal(access(stray, F_OK), -1);
	assert_int_equal(disk_bytes(f), 6 * 4096);
	assert_int_equal(get(f->store, &a), 0);
	assert_int_equal(get(f->store, &c), 0);
	/* What is appended now does not fall into what is there. */
	b = put_new(f->store, 5000, 2, 1, 1);
	assert_int_equal(get(f->store, &a), 0);
	assert_int_equal(get(f->store, &b), 0);
	assert_int_equal(get(f->store, &c), 0);
	/* A row without its object. */
	at = place_of(f, &b, path);
	store_close(f->store);
	assert_int_equal(truncate(path, (off_t)at + 4999), 0);
	open_store(f);
	assert_int_equal(stats_of(f->store).objects, 2);
	assert_int_equal(get(f->store, &b), -ENOENT);
	assert_int_equal(get(f->store, &c), 0);
	/* Its reference is gone too: nothing is counted twice. */
	put_new(f->store, 5000, 2, 1, 1);
	assert_int_equal(
		store_retain(f->store,
			     &(struct ov_retain){ .job = a.job, .token = a.token, .upto_seq = 1 },
			     NULL, &(uint32_t){ 0 }),
		0);
	assert_int_equal(stats_of(f->store).objects, 0);
	assert_int_equal(disk_bytes(f), 0);
	assert_int_equal(store_put_begin(f->store, &a, &arriving), 0);
	store_put_abort(arriving);
}

/* Several at once: one sync, and what is wrong with one is not the others' fault. */
static void test_group(void **state)
{
	enum { COUNT = 16, SIZE = 5000 };
	struct fixture *f = *state;
	struct ov_object objects[COUNT];
	struct store_put *puts[COUNT];
	uint8_t bytes[SIZE];
	int status[COUNT];

	put_new(f->store, 10, 99, 2, 1);
	for (uint32_t i = 0; i < COUNT; i++) {
		objects[i] = describe(bytes, SIZE, i == 7 ? 6 : i, 1, 1);
		if (i == 3)
			objects[i].hash.b[0] ^= 1;
		if (i == 4) {
			objects[i].job.b[0] = 2; /* of which a newer token is known at commit */
			objects[i].token.counter = 10;
		}
		assert_int_equal(store_put_begin(f->store, &objects[i], &puts[i]), 0);
		assert_int_equal(store_put_write(puts[i], bytes, i == 5 ? SIZE - 1 : SIZE), 0);
	}
	assert_int_equal(
		store_retain(f->store,
			     &(struct ov_retain){ .job.b[0] = 2, .token.counter = 11, .count = 0 },
			     NULL, &(uint32_t){ 0 }),
		0);
	store_puts_commit(puts, COUNT, status);
	for (uint32_t i = 0; i < COUNT; i++) {
		int expected = i == 3 ? -EBADMSG : i == 4 ? -ESTALE : i == 5 ? -ENODATA : 0;

		assert_int_equal(status[i], expected);
		assert_int_equal(get(f->store, &objects[i]), expected ? -ENOENT : 0);
	}
	assert_int_equal(stats_of(f->store).put_syncs, 2);
	assert_int_equal(stats_of(f->store).objects, 1 + COUNT - 4);
	assert_int_equal(stats_of(f->store).disk_bytes, 4096 + (COUNT - 4) * 8192);
	/* ext4 counts a block of its own for a file of many pieces. */
	assert_in_range(disk_bytes(f), 4096 + (COUNT - 4) * 8192, 8192 + (COUNT - 4) * 8192);
	reopen(f);
	assert_int_equal(stats_of(f->store).objects, 1 + COUNT - 4);
	assert_int_equal(get(f->store, &objects[7]), 0);
}

/* All is read in turn; what is lost is remembered until it is told, or comes again. */
static void test_scrub(void **state)
{
	enum { COUNT = 5, SIZE = 9000 };
	struct fixture *f = *state;
	struct ov_object objects[COUNT], lost[4];
	struct object_hash at = { 0 };
	uint32_t size, count = 77, rotten_count = 0;
	bool rotten;
	char path[256];

	for (uint32_t i = 0; i < COUNT; i++) {
		objects[i] = put_new(f->store, SIZE, i, 1, 1);
		objects[i].holder_count = 2;
		objects[i].holders[0].b[0] = 1;
		objects[i].holders[1].b[0] = 2;
	}
	assert_int_equal(store_set_holders(f->store, objects, COUNT - 1), 0);
	/* Nothing is due: each was read when it came. */
	assert_int_equal(store_scrub(f->store, 3600 * 1000, &at, &size, &rotten), -ENOENT);
	overwrite(path, place_of(f, &objects[2], path) + SIZE - 3, "rot");
	overwrite(path, place_of(f, &objects[4], path) + 4096, "rot");
	for (uint32_t i = 0; i < COUNT; i++) {
		assert_int_equal(store_scrub(f->store, 0, &at, &size, &rotten), 0);
		assert_int_equal(size, SIZE);
		rotten_count += rotten;
	}
	assert_int_equal(store_scrub(f->store, 0, &at, &size, &rotten), -ENOENT);
	assert_int_equal(rotten_count, 2);
	assert_int_equal(stats_of(f->store).rotten, 2);
	assert_int_equal(stats_of(f->store).scrubbed, COUNT);
	assert_int_equal(stats_of(f->store).scrubbed_bytes, COUNT * SIZE);
	assert_int_equal(stats_of(f->store).objects, COUNT - 2);
	/* Of the last one nobody said who else has it. */
	reopen(f);
	assert_int_equal(store_list_lost(f->store, 4, lost, &count), 0);
	assert_int_equal(count, 1);
	assert_memory_equal(&lost[0].hash, &objects[2].hash, sizeof(lost[0].hash));
	assert_int_equal(lost[0].token.counter, objects[2].token.counter);
	assert_int_equal(lost[0].holder_count, 2);
	assert_int_equal(lost[0].holders[1].b[0], 2);
	put_new(f->store, SIZE, 2, 1, 1);
	assert_int_equal(store_list_lost(f->store, 4, lost, &count), 0);
	assert_int_equal(count, 0);
	/* Found by a reader, and told. */
	overwrite(path, place_of(f, &objects[1], path), "rot");
	assert_int_equal(get(f->store, &objects[1]), -ENOENT);
	assert_int_equal(store_list_lost(f->store, 4, lost, &count), 0);
	assert_int_equal(count, 1);
	assert_int_equal(store_lost_done(f->store, &lost[0].job, &lost[0].hash), 0);
	assert_int_equal(store_list_lost(f->store, 4, lost, &count), 0);
	assert_int_equal(count, 0);
}

/* One daemon at a time, and it is said which. */
static void test_lock(void **state)
{
	struct fixture *f = *state;
	char why[STORE_WHY_MAX], pid[32];
	struct store *second = NULL;

	assert_int_equal(store_open_io(f->dir, &store_io_disk, why, &second), -EBUSY);
	assert_null(second);
	snprintf(pid, sizeof(pid), "process %d ", (int)getpid());
	assert_non_null(strstr(why, pid));
	put_new(f->store, 1000, 1, 1, 1);
	store_close(f->store);
	assert_int_equal(store_open_io(f->dir, &store_io_disk, why, &f->store), 0);
}

static void write_text(const char *dir, const char *name, const char *text)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, text, strlen(text)), 0);
	close(fd);
}

/* Names, sizes and times of all that is there. */
static void describe_tree(const char *dir, uint8_t digest[32])
{
	char command[400];
	FILE *pipe;
	size_t size;
	char text[8192];

	snprintf(
		command, sizeof(command),
		"cd %s && find . -type f -exec sha256sum {} + | sort; find . -printf '%%p %%s %%T@\n' "
		"| sort",
		dir);
	pipe = popen(command, "re");
	assert_non_null(pipe);
	size = fread(text, 1, sizeof(text), pipe);
	assert_int_equal(pclose(pipe), 0);
	assert_true(size > 100 && size < sizeof(text));
	SHA256((uint8_t *)text, size, digest);
}

/* A store from the future is refused and not touched; so is one whose version cannot be read. */
static void test_future(void **state)
{
	struct fixture *f = *state;
	struct ov_object a = put_new(f->store, 1000, 1, 1, 1);
	uint8_t before[32], after[32];
	char why[STORE_WHY_MAX];

	store_close(f->store);
	f->store = NULL;
	write_text(f->dir, "store-format", "decamp store 3\n");
	describe_tree(f->dir, before);
	assert_int_equal(store_open_io(f->dir, &store_io_disk, why, &f->store), -EPROTONOSUPPORT);
	assert_non_null(strstr(why, "version 3"));
	describe_tree(f->dir, after);
	assert_memory_equal(before, after, sizeof(before));
	write_text(f->dir, "store-format", "something else");
	describe_tree(f->dir, before);
	assert_int_equal(store_open_io(f->dir, &store_io_disk, why, &f->store), -EBADMSG);
	describe_tree(f->dir, after);
	assert_memory_equal(before, after, sizeof(before));
	write_text(f->dir, "store-format", "decamp store 2\n");
	open_store(f);
	assert_int_equal(get(f->store, &a), 0);
}

static int count_records(void *ctx, const struct job_id *job, const void *bytes, size_t size)
{
	uint32_t *sum = ctx;

	assert_int_equal(((const uint8_t *)bytes)[0], job->b[0]);
	*sum += (uint32_t)size;
	return 0;
}

static int fail_record(void *ctx, const struct job_id *job, const void *bytes, size_t size)
{
	(void)ctx;
	(void)job;
	(void)bytes;
	(void)size;
	return -EBADMSG;
}

static void test_records(void **state)
{
	struct fixture *f = *state;
	uint8_t one[100] = { 1 }, two[CORE_RECORD_MAX] = { 2 };
	struct core_write writes[] = { { .job.b[0] = 1, .size = sizeof(one), .bytes = one },
				       { .job.b[0] = 2, .size = sizeof(two), .bytes = two },
				       { .job.b[0] = 3 } };
	uint64_t first = 0, second = 0;
	uint32_t sum = 0;

	assert_int_equal(store_write_records(f->store, writes, 3), 0);
	assert_int_equal(store_write_records(f->store, NULL, 0), 0);
	reopen(f);
	assert_int_equal(store_each_record(f->store, count_records, &sum), 0);
	assert_int_equal(sum, sizeof(one) + sizeof(two));
	assert_int_equal(store_each_record(f->store, fail_record, NULL), -EBADMSG);
	writes[0].size = 0;
	assert_int_equal(store_write_records(f->store, writes, 1), 0);
	sum = 0;
	assert_int_equal(store_each_record(f->store, count_records, &sum), 0);
	assert_int_equal(sum, sizeof(two));
	assert_int_equal(store_next_incarnation(f->store, 1000, &first), 0);
	assert_int_equal(first, 1000);
	reopen(f);
	/* The wall clock was set back. */
	assert_int_equal(store_next_incarnation(f->store, 5, &second), 0);
	assert_int_equal(second, 1001);
	/* The host has a new id: the registers go, its own words stay. */
	assert_int_equal(store_drop_records(f->store), 0);
	reopen(f);
	sum = 0;
	assert_int_equal(store_each_record(f->store, count_records, &sum), 0);
	assert_int_equal(sum, 0);
	assert_int_equal(store_next_incarnation(f->store, 5, &second), 0);
	assert_int_equal(second, 1002);
}

/* Puts for ever; says the number of each object once it is acknowledged. */
static void put_until_killed(const char *dir, int report)
{
	struct store *store = NULL;
	uint8_t bytes[20000];

	if (store_open(dir, &store) < 0)
		_exit(1);
	store_set_limits(store, UINT64_MAX / 2, 0);
	for (uint32_t i = 0;; i++) {
		struct ov_object object = describe(bytes, sizeof(bytes), i, 1, 1);
		struct core_write record = { .job.b = { (uint8_t)i, (uint8_t)(i >> 8) },
					     .size = 1,
					     .bytes = (uint8_t[]){ (uint8_t)i } };

		if (put(store, &object, bytes) < 0 || store_write_records(store, &record, 1) < 0 ||
		    write_full(report, &i, sizeof(i)) < 0)
			_exit(2);
	}
}

static void test_kill(void **state)
{
	struct fixture *f = *state;

	store_close(f->store);
	f->store = NULL;
	for (int round = 0; round < 8; round++) {
		struct timespec ts = { .tv_nsec = 30000000 + round * 17000000 };
		uint32_t last, count = 0, sum = 0;
		uint8_t bytes[20000];
		int pipes[2];
		pid_t pid;

		assert_int_equal(pipe(pipes), 0);
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			put_until_killed(f->dir, pipes[1]);
		close(pipes[1]);
		nanosleep(&ts, NULL);
		assert_int_equal(kill(pid, SIGKILL), 0);
		assert_int_equal(waitpid(pid, NULL, 0), pid);
		while (read(pipes[0], &last, sizeof(last)) == sizeof(last))
			count = last + 1;
		close(pipes[0]);
		open_store(f);
		for (uint32_t i = 0; i < count; i++) {
			struct ov_object object = describe(bytes, sizeof(bytes), i, 1, 1);

			assert_int_equal(get(f->store, &object), 0);
		}
		assert_int_equal(stats_of(f->store).bad_objects, 0);
		assert_int_equal(store_each_record(f->store, count_records, &sum), 0);
		assert_true(sum >= count);
		store_close(f->store);
		f->store = NULL;
	}
	open_store(f);
}

/* A copy that others count on, and one that goes for want of room. */
static void test_give_up(void **state)
{
	struct fixture *f = *state;
	struct ov_object a = put_new(f->store, 9000, 1, 1, 5), b = put_new(f->store, 8000, 2, 1, 5);
	struct ov_object shared = a;
	uint8_t bytes[9000];
	char path[256];

	fill(bytes, sizeof(bytes), 1);
	shared.job.b[0] = 2;
	assert_int_equal(put(f->store, &shared, bytes), 0);
	assert_int_equal(store_vouch(f->store, &a.job, &a.hash), 0);
	assert_int_equal(store_vouch(f->store, &shared.job, &b.hash), -ENOENT);
	/* The other job has it still. */
	assert_int_equal(store_give_up(f->store, &a.job, &a.hash), 0);
	assert_int_equal(store_vouch(f->store, &a.job, &a.hash), -ENOENT);
	assert_int_equal(store_vouch(f->store, &shared.job, &a.hash), 0);
	assert_int_equal(store_give_up(f->store, &a.job, &a.hash), -ENOENT);
	assert_int_equal(get(f->store, &a), 0);
	assert_int_equal(store_give_up(f->store, &shared.job, &a.hash), 0);
	assert_int_equal(get(f->store, &a), -ENOENT);
	assert_int_equal(stats_of(f->store).objects, 1);
	assert_int_equal(stats_of(f->store).object_bytes, 8000);
	reopen(f);
	assert_int_equal(stats_of(f->store).objects, 1);
	/* Nobody vouches for a file that is gone. */
	(void)place_of(f, &b, path);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(store_vouch(f->store, &b.job, &b.hash), -ENOENT);
}

static struct core_write burial(uint8_t job, uint32_t state)
{
	struct core_write write = { .job.b[0] = job, .is_over = true };

	write.tombstone.state = state;
	write.tombstone.acceptor_count = 1;
	write.tombstone.acceptors[0].b[2] = 7;
	return write;
}

/* Jobs that are over: what others are told, and that nothing of them is taken again. */
static void test_jobs(void **state)
{
	struct core_write write = burial(3, JOB_STATE_COLLECTED);
	struct fixture *f = *state;
	struct ov_object a = put_new(f->store, 5000, 1, 3, 5);
	struct ov_object b = put_new(f->store, 5000, 2, 4, 5);
	struct ov_retain retain = { .job = b.job, .token.counter = 10, .upto_seq = 9, .count = 1 };
	struct store_verdict verdict;
	struct store_job *jobs = NULL;
	uint32_t count = 0, dropped = 0;
	uint8_t bytes[5000];

	(void)put_new(f->store, 5000, 3, 4, 6);
	assert_int_equal(store_verdict(f->store, &a.job, &verdict), 0);
	assert_int_equal(verdict.tombstone.state, 0);
	assert_true(verdict.heard_ago_ms == UINT64_MAX); /* a PUT may be a repairer's */
	assert_int_equal(store_retain(f->store, &retain, &b.hash, &dropped), 0);
	assert_int_equal(dropped, 1);
	assert_int_equal(store_verdict(f->store, &b.job, &verdict), 0);
	assert_true(verdict.heard_ago_ms < 60000);

	assert_int_equal(store_job_quiet(f->store, &a.job, 1000), 0);
	reopen(f);
	assert_int_equal(store_list_jobs(f->store, &jobs, &count), 0);
	assert_int_equal(count, 2);
	assert_memory_equal(&jobs[0].job, &a.job, sizeof(a.job)); /* the quiet one */
	assert_int_equal(jobs[0].quiet_ms, 1000);
	assert_int_equal(jobs[0].heard_wall_ms, 0);
	assert_true(jobs[1].heard_wall_ms > 0);
	free(jobs);
	assert_int_equal(store_job_heard(f->store, &a.job), 0);
	assert_int_equal(store_list_jobs(f->store, &jobs, &count), 0);
	assert_int_equal(jobs[0].quiet_ms, 0);
	free(jobs);

	assert_int_equal(store_write_records(f->store, &write, 1), 0);
	reopen(f);
	assert_int_equal(store_verdict(f->store, &a.job, &verdict), 0);
	assert_memory_equal(&verdict.tombstone, &write.tombstone, sizeof(write.tombstone));
	/* Dropped, but not known to be over: it may come back. */
	assert_int_equal(store_drop_job(f->store, &a.job, false, &dropped), 0);
	assert_int_equal(dropped, 1);
	assert_int_equal(get(f->store, &a), -ENOENT);
	assert_int_equal(get(f->store, &b), 0);
	a = put_new(f->store, 5000, 1, 3, 5);
	assert_int_equal(store_drop_job(f->store, &a.job, true, &dropped), 0);
	fill(bytes, sizeof(bytes), 1);
	assert_int_equal(put(f->store, &a, bytes), -ESTALE);
	a.token.counter = 0;
	assert_int_equal(put(f->store, &a, bytes), -ESTALE);
	reopen(f);
	assert_int_equal(put(f->store, &a, bytes), -ESTALE);
	/* The owner's last word: a repair that comes late brings nothing back. */
	retain.count = 0;
	retain.upto_seq = UINT64_MAX;
	assert_int_equal(store_retain(f->store, &retain, NULL, &dropped), 0);
	assert_int_equal(dropped, 1);
	fill(bytes, sizeof(bytes), 2);
	assert_int_equal(put(f->store, &b, bytes), -ESTALE);
	assert_int_equal(stats_of(f->store).objects, 0);
}

static struct ov_object put_manifest(struct store *store, uint8_t job, uint64_t token, uint64_t seq)
{
	struct ov_object object;
	uint8_t bytes[500];

	fill(bytes, sizeof(bytes), (uint32_t)(100 * token + seq));
	memcpy(bytes, "DECAMPMF", 8);
	object = (struct ov_object){ .size = sizeof(bytes), .seq = seq, .job.b[0] = job };
	object.token.counter = token;
	SHA256(bytes, sizeof(bytes), object.hash.b);
	assert_int_equal(put(store, &object, bytes), 0);
	return object;
}

static void test_newest(void **state)
{
	struct fixture *f = *state;
	struct ov_object found[STORE_NEWEST_MAX], old, newest;
	uint32_t count = 77;

	(void)put_new(f->store, 500, 1, 1, 90);	 /* a pack */
	(void)put_manifest(f->store, 2, 99, 99); /* another job's */
	assert_int_equal(store_newest(f->store, &(struct job_id){ { 1 } }, found, &count), 0);
	assert_int_equal(count, 0);
	old = put_manifest(f->store, 1, 10, 70);
	for (uint64_t seq = 60; seq < 69; seq++)
		newest = put_manifest(f->store, 1, 11, seq);
	assert_int_equal(store_newest(f->store, &old.job, found, &count), 0);
	assert_int_equal(count, STORE_NEWEST_MAX);
	assert_memory_equal(&found[0].hash, &newest.hash, sizeof(newest.hash));
	for (uint32_t i = 0; i < count; i++) {
		assert_int_equal(found[i].seq,
				 68 - i); /* the older token's is out, higher or not */
		assert_int_equal(found[i].token.counter, 11);
		assert_int_equal(found[i].size, 500);
	}
	assert_int_equal(store_newest(f->store, &(struct job_id){ { 3 } }, found, &count), 0);
	assert_int_equal(count, 0);
}

static void test_short(void **state)
{
	struct fixture *f = *state;
	uint64_t margin = QUOTA / 8, room = QUOTA; /* less than the largest object */

	assert_int_equal(store_short_bytes(f->store), 0);
	for (uint32_t i = 0; room >= margin; i++) {
		assert_int_equal(store_short_bytes(f->store), 0);
		(void)put_new(f->store, 3 << 20, i, 1, 1);
		room -= 3 << 20;
	}
	assert_int_equal(store_short_bytes(f->store), margin - room);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_put_get, setup, teardown),
		cmocka_unit_test_setup_teardown(test_put_refusals, setup, teardown),
		cmocka_unit_test_setup_teardown(test_quota, setup, teardown),
		cmocka_unit_test_setup_teardown(test_holders, setup, teardown),
		cmocka_unit_test_setup_teardown(test_own_record, setup, teardown),
		cmocka_unit_test_setup_teardown(test_retain, setup, teardown),
		cmocka_unit_test_setup_teardown(test_retain_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rot, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reconcile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_heal, setup, teardown),
		cmocka_unit_test_setup_teardown(test_group, setup, teardown),
		cmocka_unit_test_setup_teardown(test_scrub, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lock, setup, teardown),
		cmocka_unit_test_setup_teardown(test_future, setup, teardown),
		cmocka_unit_test_setup_teardown(test_records, setup, teardown),
		cmocka_unit_test_setup_teardown(test_give_up, setup, teardown),
		cmocka_unit_test_setup_teardown(test_jobs, setup, teardown),
		cmocka_unit_test_setup_teardown(test_newest, setup, teardown),
		cmocka_unit_test_setup_teardown(test_short, setup, teardown),
		cmocka_unit_test_setup_teardown(test_kill, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
