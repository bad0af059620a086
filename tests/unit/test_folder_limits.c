// SPDX-License-Identifier: LGPL-2.1-or-later
/* Each limit of docs/folder.md that decampd keeps: up to it all goes well, beyond it nothing is left. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/pack/internal.h"
#include "tests/unit/folder_lab.h"

enum { ALICE = 1000, BOB = 1001, CAROL = 1002 };

static int64_t begin(struct folder_lab *lab, struct folder *f, const char **ret_code)
{
	struct json_object *body = json_object_new_object(), *json, *upload;
	int64_t number = 0;

	json_object_object_add(body, "folder", json_object_new_string(f->job->hex));
	json_object_object_add(body, "base",
			       json_object_new_int64((int64_t)f->versions[0].ref.seq));
	(void)!folder_lab_ask(lab, f->job->spec.uid, "folder-begin", body, &json);
	if (json_object_object_get_ex(json, "upload", &upload))
		number = json_object_get_int64(upload);
	*ret_code = folder_lab_code(json);
	return number;
}

static int64_t must_begin(struct folder_lab *lab, struct folder *f)
{
	const char *code;
	int64_t upload = begin(lab, f, &code);

	assert_string_equal(code, "");
	assert_true(upload > 0);
	return upload;
}

static struct json_object *upload_body(const struct folder *f, int64_t upload)
{
	struct json_object *body = json_object_new_object();

	json_object_object_add(body, "folder", json_object_new_string(f->job->hex));
	json_object_object_add(body, "upload", json_object_new_int64(upload));
	return body;
}

static struct json_object *entry(const char *type, const char *path)
{
	struct json_object *json = json_object_new_object();

	json_object_object_add(json, "path", json_object_new_string(path));
	json_object_object_add(json, "type", json_object_new_string(type));
	json_object_object_add(json, "mode", json_object_new_int(0755));
	return json;
}

static const char *add(struct folder_lab *lab, struct folder *f, int64_t upload,
		       struct json_object *entries_take)
{
	struct json_object *body = upload_body(f, upload), *json;

	json_object_object_add(body, "entries", entries_take);
	(void)!folder_lab_ask(lab, f->job->spec.uid, "folder-add", body, &json);
	return folder_lab_code(json);
}

static const char *add_one(struct folder_lab *lab, struct folder *f, int64_t upload,
			   struct json_object *entry_take)
{
	struct json_object *entries = json_object_new_array();

	json_object_array_add(entries, entry_take);
	return add(lab, f, upload, entries);
}

static const char *commit(struct folder_lab *lab, struct folder *f, int64_t upload, bool sync)
{
	struct json_object *body = upload_body(f, upload), *json;

	json_object_object_add(body, "sync", json_object_new_boolean(sync));
	(void)!folder_lab_ask(lab, f->job->spec.uid, "folder-commit", body, &json);
	return folder_lab_code(json);
}

/* ---- entries and names ---- */

static void entries_are_bounded(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "f", 0);
	int64_t upload = must_begin(lab, f);
	char name[20];

	for (int i = 0; i < FOLDER_FILES_MAX;) {
		struct json_object *entries = json_object_new_array();

		for (int k = 0; k < 2048; k++, i++) {
			snprintf(name, sizeof(name), "d%d", i);
			json_object_array_add(entries, entry("dir", name));
		}
		assert_string_equal(add(lab, f, upload, entries), "");
	}
	assert_int_equal(f->upload.entries, FOLDER_FILES_MAX);
	assert_string_equal(add_one(lab, f, upload, entry("dir", "more")), "too-many");
	assert_string_equal(commit(lab, f, upload, false), "try-again"); /* it was given up */
	assert_int_equal(f->version_count, 0);
	folder_unref(lab->a, f);
}

static void messages_are_bounded(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "f", 0);
	struct json_object *body = upload_body(f, must_begin(lab, f)), *json;
	struct json_object *entries = json_object_new_array();
	char name[20];

	for (int i = 0; i < 2049; i++) {
		snprintf(name, sizeof(name), "d%d", i);
		json_object_array_add(entries, entry("dir", name));
	}
	json_object_object_add(body, "entries", entries);
	assert_int_equal(folder_lab_ask(lab, ALICE, "folder-add", body, &json), -EINVAL);
	json_object_put(json);
	assert_int_equal(f->upload.entries, 0);
	folder_unref(lab->a, f);
}

/* A path of parts of 200 characters, `size` in all. */
static void make_path(char *path, size_t size)
{
	memset(path, 'p', size);
	for (size_t i = 200; i + 1 < size; i += 201)
		path[i] = '/';
	path[size] = '\0';
}

static void paths_are_bounded(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "f", 0);
	char path[5000];

	/* What the mount allows, and what the kernel does, "0/" and the end included. */
	for (size_t size = 3999; size <= 4093; size += 94) {
		make_path(path, size);
		assert_string_equal(add_one(lab, f, must_begin(lab, f), entry("dir", path)), "");
	}
	make_path(path, 4094);
	assert_string_equal(add_one(lab, f, must_begin(lab, f), entry("dir", path)), "bad-request");
	memset(path, 'n', 256);
	path[256] = '\0';
	assert_string_equal(add_one(lab, f, must_begin(lab, f), entry("dir", path)), "bad-request");
	path[255] = '\0';
	assert_string_equal(add_one(lab, f, must_begin(lab, f), entry("dir", path)), "");
	folder_unref(lab->a, f);
}

static void names_are_bounded(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "f", 0);
	int64_t upload = must_begin(lab, f);
	size_t cost = 2 + 1 + 4000 + 64; /* "0/l", its target, and what one costs in any case */
	const char *code = "";
	char target[4001], name[20];
	size_t count = 0;

	memset(target, 't', 4000);
	target[4000] = '\0';
	for (; !*code && count < FOLDER_FILES_MAX; count += !*code) {
		struct json_object *link;

		snprintf(name, sizeof(name), "%05zu", count);
		link = entry("link", name);
		json_object_object_add(link, "target", json_object_new_string(target));
		code = add_one(lab, f, upload, link);
	}
	assert_string_equal(code, "too-many");
	assert_int_equal(count, FOLDER_NAMES_MAX / (cost + 4));
	folder_unref(lab->a, f);
}

/* ---- contents ---- */

static struct json_object *file_of(const char *name, int64_t size)
{
	struct json_object *json = entry("file", name);

	json_object_object_add(json, "size", json_object_new_int64(size));
	return json;
}

static void a_file_is_bounded(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "f", 0);
	struct json_object *body, *json;
	int64_t upload;
	uint8_t byte = 1;

	lab->a->config.folder_bytes = 2 * FOLDER_FILE_MAX;
	upload = must_begin(lab, f);
	/* As large as may be: decampd has none of it, and asks for it. */
	assert_string_equal(add_one(lab, f, upload, file_of("a", FOLDER_FILE_MAX)), "");
	assert_string_equal(add_one(lab, f, upload, file_of("a", FOLDER_FILE_MAX + 1)),
			    "bad-request");
	body = upload_body(f, must_begin(lab, f));
	json_object_object_add(body, "offset", json_object_new_int64(FOLDER_FILE_MAX + 1));
	json_object_object_add(body, "bytes", json_object_new_string("YWJj"));
	assert_int_equal(folder_lab_ask(lab, ALICE, "folder-write", body, &json), -EINVAL);
	json_object_put(json);
	/* No more than the room there was when it began. */
	(void)must_begin(lab, f);
	pthread_mutex_lock(&f->lock);
	assert_in_range(f->upload.spool_max, 1, UINT64_MAX);
	f->upload.spool_max = 1;
	assert_int_equal(upload_write(f, 0, &byte, 1), 0);
	assert_int_equal(upload_write(f, 1, &byte, 1), -ENOSPC);
	pthread_mutex_unlock(&f->lock);
	folder_unref(lab->a, f);
}

/* Seven blocks, every second one of zeros. */
static const char *add_scattered(struct folder_lab *lab, struct folder *f, int64_t upload)
{
	uint8_t block[PACK_BLOCK];
	struct json_object *json;
	int r = 0;

	pthread_mutex_lock(&f->lock);
	for (uint64_t i = 0; r == 0 && i < 7; i++) {
		memset(block, i % 2 ? 0 : (int)i + 1, sizeof(block));
		r = upload_write(f, i * sizeof(block), block, sizeof(block));
	}
	pthread_mutex_unlock(&f->lock);
	assert_int_equal(r, 0);
	json = file_of("scattered", 7 * PACK_BLOCK);
	json_object_object_add(json, "fresh", json_object_new_int(1));
	return add_one(lab, f, upload, json);
}

static void pieces_are_bounded(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "f", 0);
	struct packer_budget budget = f->job->packer->budget;

	assert_int_equal(budget.extents_max, FOLDER_EXTENTS_MAX);
	budget.extents_max = 7;
	assert_int_equal(packer_set_budget(f->job->packer, &budget), 0);
	assert_string_equal(add_scattered(lab, f, must_begin(lab, f)), "");
	budget.extents_max = 6;
	upload_abort(f);
	assert_int_equal(packer_set_budget(f->job->packer, &budget), 0);
	assert_string_equal(add_scattered(lab, f, must_begin(lab, f)), "too-many");
	assert_int_equal(f->upload.number, 0);
	folder_unref(lab->a, f);
}

/* ---- uploads ---- */

static void uploads_are_bounded(void **state)
{
	static const uid_t users[] = { ALICE, ALICE, BOB, BOB, CAROL, ALICE };
	struct folder_lab *lab = *state;
	struct folder *f[ARRAY_SIZE(users)];
	const char *code;
	char name[4];

	for (size_t i = 0; i < ARRAY_SIZE(users); i++) {
		snprintf(name, sizeof(name), "f%zu", i);
		f[i] = folder_lab_make(lab, users[i], name, 0);
	}
	(void)must_begin(lab, f[0]);
	(void)must_begin(lab, f[1]);
	(void)begin(lab, f[5], &code); /* hers are two */
	assert_string_equal(code, "busy");
	(void)must_begin(lab, f[1]); /* anew, for the same folder */
	(void)must_begin(lab, f[2]);
	(void)must_begin(lab, f[3]);
	(void)begin(lab, f[4], &code); /* four in all */
	assert_string_equal(code, "busy");
	pthread_mutex_lock(&f[0]->lock);
	upload_abort(f[0]);
	pthread_mutex_unlock(&f[0]->lock);
	(void)must_begin(lab, f[4]);
	for (size_t i = 0; i < ARRAY_SIZE(users); i++)
		folder_unref(lab->a, f[i]);
}

static void idle_uploads_are_given_up(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "f", 0);
	uint64_t second = UINT64_C(1000000000);
	int64_t upload = must_begin(lab, f);
	unsigned int tries = 0;

	while (lab->a->folders_at_work) /* what its making woke */
		usleep(1000);
	f->upload.used_boot_ns -= FOLDER_IDLE_S / 2 * second;
	folders_tick(lab->a);
	assert_false(lab->a->folders_at_work);
	/* Whoever goes on with it has his time anew. */
	assert_string_equal(add_one(lab, f, upload, entry("dir", "d")), "");
	f->upload.used_boot_ns -= FOLDER_IDLE_S / 2 * second;
	folders_tick(lab->a);
	assert_false(lab->a->folders_at_work);
	f->upload.used_boot_ns -= (FOLDER_IDLE_S / 2 + 1) * second;
	folders_tick(lab->a);
	while (f->upload.number && tries++ < 60000)
		usleep(1000);
	assert_int_equal(f->upload.number, 0);
	assert_string_equal(add_one(lab, f, upload, entry("dir", "e")), "try-again");
	folder_unref(lab->a, f);
}

/* ---- versions ---- */

static void make_version(struct folder_lab *lab, struct folder *f, const char *name, bool sync)
{
	int64_t upload = must_begin(lab, f);

	assert_string_equal(add_one(lab, f, upload, entry("dir", name)), "");
	assert_string_equal(commit(lab, f, upload, sync), "");
}

static size_t objects_there(const struct folder_lab *lab)
{
	size_t count = 0;

	for (size_t i = 0; i < lab->object_count; i++)
		count += lab->objects[i].bytes != NULL;
	return count;
}

static void versions_are_bounded(void **state)
{
	static const uint32_t keeps[] = { 1, 3, FOLDER_KEEP_MAX };
	struct folder_lab *lab = *state;
	char name[20];

	for (size_t i = 0; i < ARRAY_SIZE(keeps); i++) {
		size_t before = objects_there(lab);
		struct folder *f;

		snprintf(name, sizeof(name), "k%zu", i);
		f = folder_lab_make(lab, ALICE, name, keeps[i]);
		for (uint32_t n = 1; n <= keeps[i] + 5; n++) {
			snprintf(name, sizeof(name), "d%u", n);
			make_version(lab, f, name, false);
			assert_int_equal(f->version_count, n < keeps[i] ? n : keeps[i]);
			assert_int_equal(f->versions[0].ref.seq, n);
			/* Folders have no packs: each version is its manifest. */
			assert_int_equal(objects_there(lab) - before, f->version_count);
		}
		/* One of fsync(2) gives way to the next one, and does not push others out. */
		make_version(lab, f, "s1", true);
		make_version(lab, f, "s2", true);
		make_version(lab, f, "s3", true);
		assert_int_equal(f->version_count, keeps[i]);
		if (keeps[i] > 1)
			assert_int_equal(f->versions[1].ref.seq, keeps[i] + 5);
		folder_unref(lab->a, f);
	}
}

static void keep_is_checked(void **state)
{
	static const struct {
		int64_t keep;
		const char *code;
	} rows[] = { { 0, "bad-request" },
		     { 1, "" },
		     { FOLDER_KEEP_MAX, "" },
		     { FOLDER_KEEP_MAX + 1, "bad-request" } };
	struct folder_lab *lab = *state;
	struct json_object *json;
	char name[20];

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct json_object *body = json_object_new_object();

		snprintf(name, sizeof(name), "k%zu", i);
		json_object_object_add(body, "name", json_object_new_string(name));
		json_object_object_add(body, "keep", json_object_new_int64(rows[i].keep));
		(void)!folder_lab_ask(lab, ALICE, "folder-create", body, &json);
		assert_string_equal(folder_lab_code(json), rows[i].code);
	}
}

/* ---- making them ---- */

static const char *create(struct folder_lab *lab, uid_t uid, const char *name)
{
	struct json_object *body = json_object_new_object(), *json;

	json_object_object_add(body, "name", json_object_new_string(name));
	(void)!folder_lab_ask(lab, uid, "folder-create", body, &json);
	return folder_lab_code(json);
}

static const char *delete (struct folder_lab *lab, uid_t uid, const char *name)
{
	struct json_object *body = json_object_new_object(), *json;

	json_object_object_add(body, "folder", json_object_new_string(name));
	(void)!folder_lab_ask(lab, uid, "folder-delete", body, &json);
	return folder_lab_code(json);
}

/* Ended ones count for ten minutes: 16 of a user, 64 of all; then there is room again. */
static void makes_are_bounded(void **state)
{
	struct folder_lab *lab = *state;

	for (int i = 0; i < FOLDER_CREATES_MAX; i++) {
		uid_t user = (uid_t)(ALICE + i / FOLDER_CREATES_USER);

		lab->register_count = 0; /* what has ended is of no interest here */
		assert_string_equal(create(lab, user, "f"), "");
		assert_string_equal(delete (lab, user, "f"), "");
		if (i == FOLDER_CREATES_USER - 1)
			assert_string_equal(create(lab, user, "f"), "busy");
	}
	lab->register_count = 0;
	assert_string_equal(create(lab, 4000, "f"), "busy");
	for (int i = 0; i < FOLDER_CREATES_MAX; i++)
		lab->a->folder_creates[i].boot_ns -= FOLDER_CREATES_S / 2 * UINT64_C(1000000000);
	assert_string_equal(create(lab, 4000, "f"), "busy");
	lab->a->folder_creates[0].boot_ns -= FOLDER_CREATES_S / 2 * UINT64_C(1000000000);
	assert_string_equal(create(lab, 4000, "f"), "");
	assert_string_equal(create(lab, 4000, "g"), "busy");
}

static void folders_are_bounded(void **state)
{
	struct folder_lab *lab = *state;
	char name[20];

	for (int i = 0; i < FOLDERS_MAX; i++) {
		uid_t user = (uid_t)(ALICE + i / FOLDER_USER_MAX);

		snprintf(name, sizeof(name), "f%d", i);
		assert_string_equal(create(lab, user, name), "");
		if (i % FOLDER_USER_MAX == FOLDER_USER_MAX - 1)
			assert_string_equal(create(lab, user, "more"), "too-many");
	}
	assert_string_equal(create(lab, CAROL, "f"), "too-many");
	/* Refused, they left nothing in the register. */
	assert_int_equal(lab->register_count, FOLDERS_MAX);
	assert_string_equal(delete (lab, ALICE, "f0"), "");
	assert_string_equal(create(lab, CAROL, "f"), "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FOLDER_TEST(entries_are_bounded),  FOLDER_TEST(messages_are_bounded),
		FOLDER_TEST(paths_are_bounded),	   FOLDER_TEST(names_are_bounded),
		FOLDER_TEST(a_file_is_bounded),	   FOLDER_TEST(pieces_are_bounded),
		FOLDER_TEST(uploads_are_bounded),  FOLDER_TEST(idle_uploads_are_given_up),
		FOLDER_TEST(versions_are_bounded), FOLDER_TEST(keep_is_checked),
		FOLDER_TEST(makes_are_bounded),	   FOLDER_TEST(folders_are_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
