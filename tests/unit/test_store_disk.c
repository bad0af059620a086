// SPDX-License-Identifier: LGPL-2.1-or-later
/* What the store does with its disk: segments, groups, rot, versions, its lock. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay/store/io.h"
#include "store_lab.h"

static void test_rot(void **state)
{
	struct store_lab *f = *state;
	struct ov_object a = store_lab_put_new(f->store, 300000, 1, 1, 1),
			 b = store_lab_put_new(f->store, 10, 2, 1, 1);
	struct ov_object c = store_lab_put_new(f->store, 10, 3, 1, 1), d;
	char path[256];

	store_lab_overwrite(path, store_lab_place(f, &a, path) + 299999, "x");
	assert_int_equal(store_lab_get(f->store, &a), -ENOENT);
	assert_int_equal(store_lab_get(f->store, &a), -ENOENT);
	assert_int_equal(store_lab_stats(f->store).bad_objects, 1);
	assert_int_equal(store_lab_stats(f->store).rotten, 1);
	assert_int_equal(store_lab_stats(f->store).objects, 2);
	assert_int_equal(store_lab_stats(f->store).disk_bytes, 2 * 4096);
	assert_int_equal(store_lab_disk_bytes(f), 2 * 4096);
	/* Cut short, behind the end, and gone altogether. */
	assert_int_equal(truncate(path, (off_t)store_lab_place(f, &b, path) + 9), 0);
	assert_int_equal(store_lab_get(f->store, &b), -ENOENT);
	assert_int_equal(store_lab_get(f->store, &c), -ENOENT);
	d = store_lab_put_new(f->store, 10, 4, 1, 1);
	(void)store_lab_place(f, &d, path);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(store_lab_get(f->store, &d), -ENOENT);
	assert_int_equal(store_lab_stats(f->store).bad_objects, 4);
	assert_int_equal(store_lab_stats(f->store).object_bytes, 0);
	/* It can come again, and not to a file without a name. */
	store_lab_put_new(f->store, 300000, 1, 1, 1);
	assert_int_equal(store_lab_get(f->store, &a), 0);
	store_lab_reopen(f);
	assert_int_equal(store_lab_get(f->store, &a), 0);
}

/* An object that comes again heals the one that is here. */
static void test_heal(void **state)
{
	struct store_lab *f = *state;
	struct ov_object a = store_lab_put_new(f->store, 300000, 1, 1, 1);
	char path[256];

	store_lab_overwrite(path, store_lab_place(f, &a, path) + 5, "x");
	store_lab_put_new(f->store, 300000, 1, 1, 1);
	assert_int_equal(store_lab_get(f->store, &a), 0);
	assert_int_equal(store_lab_stats(f->store).objects, 1);
	assert_int_equal(store_lab_stats(f->store).disk_bytes, 74 * 4096);
	assert_int_equal(store_lab_disk_bytes(f), 74 * 4096);
}

static void test_reconcile(void **state)
{
	struct store_lab *f = *state;
	struct ov_object a = store_lab_put_new(f->store, 10000, 1, 1, 1),
			 b = store_lab_put_new(f->store, 1000, 2, 1, 1);
	struct ov_object c = store_lab_put_new(f->store, 9000, 3, 1, 1);
	struct store_put *arriving = NULL;
	char path[256], stray[256];
	uint64_t at = store_lab_place(f, &c, path);
	int fd;

	/* Room that nobody speaks of: between objects, behind them, and a file of its own. */
	assert_int_equal(store_give_up(f->store, &b.job, &b.hash), 0);
	store_close(f->store);
	store_lab_overwrite(path, 12288, "orphan");
	store_lab_overwrite(path, at + 50000, "orphan");
	snprintf(stray, sizeof(stray), "%s/segments/000000aa", f->dir);
	fd = open(stray, O_WRONLY | O_CREAT, 0600);
	assert_true(fd >= 0);
	close(fd);
	store_lab_open(f);
	assert_int_equal(store_lab_stats(f->store).objects, 2);
	assert_int_equal(access(stray, F_OK), -1);
	assert_int_equal(store_lab_disk_bytes(f), 6 * 4096);
	assert_int_equal(store_lab_get(f->store, &a), 0);
	assert_int_equal(store_lab_get(f->store, &c), 0);
	/* What is appended now does not fall into what is there. */
	b = store_lab_put_new(f->store, 5000, 2, 1, 1);
	assert_int_equal(store_lab_get(f->store, &a), 0);
	assert_int_equal(store_lab_get(f->store, &b), 0);
	assert_int_equal(store_lab_get(f->store, &c), 0);
	/* A row without its object. */
	at = store_lab_place(f, &b, path);
	store_close(f->store);
	assert_int_equal(truncate(path, (off_t)at + 4999), 0);
	store_lab_open(f);
	assert_int_equal(store_lab_stats(f->store).objects, 2);
	assert_int_equal(store_lab_get(f->store, &b), -ENOENT);
	assert_int_equal(store_lab_get(f->store, &c), 0);
	/* Its reference is gone too: nothing is counted twice. */
	store_lab_put_new(f->store, 5000, 2, 1, 1);
	assert_int_equal(
		store_retain(f->store,
			     &(struct ov_retain){ .job = a.job, .token = a.token, .upto_seq = 1 },
			     NULL, &(uint32_t){ 0 }),
		0);
	assert_int_equal(store_lab_stats(f->store).objects, 0);
	assert_int_equal(store_lab_disk_bytes(f), 0);
	assert_int_equal(store_put_begin(f->store, &a, &arriving), 0);
	store_put_abort(arriving);
}

/* Several at once: one sync, and what is wrong with one is not the others' fault. */
static void test_group(void **state)
{
	enum { COUNT = 16, SIZE = 5000 };
	struct store_lab *f = *state;
	struct ov_object objects[COUNT];
	struct store_put *puts[COUNT];
	uint8_t bytes[SIZE];
	int status[COUNT];

	store_lab_put_new(f->store, 10, 99, 2, 1);
	for (uint32_t i = 0; i < COUNT; i++) {
		objects[i] = store_lab_describe(bytes, SIZE, i == 7 ? 6 : i, 1, 1);
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
		assert_int_equal(store_lab_get(f->store, &objects[i]), expected ? -ENOENT : 0);
	}
	assert_int_equal(store_lab_stats(f->store).put_syncs, 2);
	assert_int_equal(store_lab_stats(f->store).objects, 1 + COUNT - 4);
	assert_int_equal(store_lab_stats(f->store).disk_bytes, 4096 + (COUNT - 4) * 8192);
	/* ext4 counts a block of its own for a file of many pieces. */
	assert_in_range(store_lab_disk_bytes(f), 4096 + (COUNT - 4) * 8192,
			8192 + (COUNT - 4) * 8192);
	store_lab_reopen(f);
	assert_int_equal(store_lab_stats(f->store).objects, 1 + COUNT - 4);
	assert_int_equal(store_lab_get(f->store, &objects[7]), 0);
}

/* All is read in turn; what is lost is remembered until it is told, or comes again. */
static void test_scrub(void **state)
{
	enum { COUNT = 5, SIZE = 9000 };
	struct store_lab *f = *state;
	struct ov_object objects[COUNT], lost[4];
	struct object_hash at = { 0 };
	uint32_t size, count = 77, rotten_count = 0;
	bool rotten;
	char path[256];

	for (uint32_t i = 0; i < COUNT; i++) {
		objects[i] = store_lab_put_new(f->store, SIZE, i, 1, 1);
		objects[i].holder_count = 2;
		objects[i].holders[0].b[0] = 1;
		objects[i].holders[1].b[0] = 2;
	}
	assert_int_equal(store_set_holders(f->store, objects, COUNT - 1), 0);
	/* Nothing is due: each was read when it came. */
	assert_int_equal(store_scrub(f->store, 3600 * 1000, &at, &size, &rotten), -ENOENT);
	store_lab_overwrite(path, store_lab_place(f, &objects[2], path) + SIZE - 3, "rot");
	store_lab_overwrite(path, store_lab_place(f, &objects[4], path) + 4096, "rot");
	for (uint32_t i = 0; i < COUNT; i++) {
		assert_int_equal(store_scrub(f->store, 0, &at, &size, &rotten), 0);
		assert_int_equal(size, SIZE);
		rotten_count += rotten;
	}
	assert_int_equal(store_scrub(f->store, 0, &at, &size, &rotten), -ENOENT);
	assert_int_equal(rotten_count, 2);
	assert_int_equal(store_lab_stats(f->store).rotten, 2);
	assert_int_equal(store_lab_stats(f->store).scrubbed, COUNT);
	assert_int_equal(store_lab_stats(f->store).scrubbed_bytes, COUNT * SIZE);
	assert_int_equal(store_lab_stats(f->store).objects, COUNT - 2);
	/* Of the last one nobody said who else has it. */
	store_lab_reopen(f);
	assert_int_equal(store_list_lost(f->store, 4, lost, &count), 0);
	assert_int_equal(count, 1);
	assert_memory_equal(&lost[0].hash, &objects[2].hash, sizeof(lost[0].hash));
	assert_int_equal(lost[0].token.counter, objects[2].token.counter);
	assert_int_equal(lost[0].holder_count, 2);
	assert_int_equal(lost[0].holders[1].b[0], 2);
	store_lab_put_new(f->store, SIZE, 2, 1, 1);
	assert_int_equal(store_list_lost(f->store, 4, lost, &count), 0);
	assert_int_equal(count, 0);
	/* Found by a reader, and told. */
	store_lab_overwrite(path, store_lab_place(f, &objects[1], path), "rot");
	assert_int_equal(store_lab_get(f->store, &objects[1]), -ENOENT);
	assert_int_equal(store_list_lost(f->store, 4, lost, &count), 0);
	assert_int_equal(count, 1);
	assert_int_equal(store_lost_done(f->store, &lost[0].job, &lost[0].hash), 0);
	assert_int_equal(store_list_lost(f->store, 4, lost, &count), 0);
	assert_int_equal(count, 0);
}

/* One daemon at a time, and it is said which. */
static void test_lock(void **state)
{
	struct store_lab *f = *state;
	char why[STORE_WHY_MAX], pid[32];
	struct store *second = NULL;

	assert_int_equal(store_open_io(f->dir, &store_io_disk, why, &second), -EBUSY);
	assert_null(second);
	snprintf(pid, sizeof(pid), "process %d ", (int)getpid());
	assert_non_null(strstr(why, pid));
	store_lab_put_new(f->store, 1000, 1, 1, 1);
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
	struct store_lab *f = *state;
	struct ov_object a = store_lab_put_new(f->store, 1000, 1, 1, 1);
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
	store_lab_open(f);
	assert_int_equal(store_lab_get(f->store, &a), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_rot, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_heal, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_reconcile, store_lab_setup,
						store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_group, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_scrub, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_lock, store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(test_future, store_lab_setup, store_lab_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
