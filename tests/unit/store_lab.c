// SPDX-License-Identifier: LGPL-2.1-or-later
#include "store_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "agent/util/io.h"

void store_lab_open(struct store_lab *f)
{
	assert_int_equal(store_open(f->dir, &f->store), 0);
	store_set_limits(f->store, STORE_LAB_QUOTA, 0);
}

int store_lab_setup(void **state)
{
	struct store_lab *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	strcpy(f->dir, "/tmp/store-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	store_lab_open(f);
	*state = f;
	return 0;
}

int store_lab_teardown(void **state)
{
	struct store_lab *f = *state;

	store_close(f->store);
	assert_int_equal(remove_tree_at(AT_FDCWD, f->dir), 0);
	free(f);
	return 0;
}

void store_lab_reopen(struct store_lab *f)
{
	store_close(f->store);
	store_lab_open(f);
}

void store_lab_fill(uint8_t *bytes, uint32_t size, uint32_t salt)
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

struct ov_object store_lab_describe(uint8_t *bytes, uint32_t size, uint32_t salt, uint8_t job,
				    uint64_t seq)
{
	struct ov_object object = { .size = size, .seq = seq, .job.b[0] = job, .token.counter = 10 };

	store_lab_fill(bytes, size, salt);
	SHA256(bytes, size, object.hash.b);
	return object;
}

int store_lab_put(struct store *store, const struct ov_object *object, const uint8_t *bytes)
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

struct ov_object store_lab_put_new(struct store *store, uint32_t size, uint32_t salt, uint8_t job,
				   uint64_t seq)
{
	uint8_t *bytes = malloc(size);
	struct ov_object object;

	assert_non_null(bytes);
	object = store_lab_describe(bytes, size, salt, job, seq);
	assert_int_equal(store_lab_put(store, &object, bytes), 0);
	free(bytes);
	return object;
}

int store_lab_get(struct store *store, const struct ov_object *object)
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

struct store_stats store_lab_stats(struct store *store)
{
	struct store_stats stats;

	store_get_stats(store, &stats);
	return stats;
}

uint64_t store_lab_place(const struct store_lab *f, const struct ov_object *object, char path[256])
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

void store_lab_overwrite(const char *path, uint64_t offset, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pwrite_full(fd, text, strlen(text), (off_t)offset), 0);
	close(fd);
}

uint64_t store_lab_disk_bytes(const struct store_lab *f)
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
