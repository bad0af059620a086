// SPDX-License-Identifier: LGPL-2.1-or-later
/* What a folder is said to take and to have sent is what lies on holders, and what went there. */
#include <errno.h>
#include <openssl/evp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "tests/unit/folder_lab.h"

enum { ALICE = 1000, SIZE = 90000 };

static int64_t number_of(struct json_object *json, const char *key)
{
	struct json_object *part;

	return json_object_object_get_ex(json, key, &part) ? json_object_get_int64(part) : -1;
}

static struct json_object *ask(struct folder_lab *lab, const char *verb,
			       struct json_object *body_take)
{
	struct json_object *json;

	assert_int_equal(folder_lab_ask(lab, ALICE, verb, body_take, &json), 0);
	return json;
}

static struct json_object *body_of(const char *id, int64_t upload)
{
	struct json_object *body = json_object_new_object();

	json_object_object_add(body, "folder", json_object_new_string(id));
	if (upload)
		json_object_object_add(body, "upload", json_object_new_int64(upload));
	return body;
}

/* A version with one file, of that seed's bytes. */
static void make_version(struct folder_lab *lab, const char *id, unsigned int seed)
{
	static unsigned char text[SIZE * 2];
	static uint8_t bytes[SIZE];
	struct json_object *body = body_of(id, 0), *json, *entries, *entry;
	int64_t upload;

	srandom(seed);
	for (size_t i = 0; i < SIZE; i++)
		bytes[i] = (uint8_t)random();
	EVP_EncodeBlock(text, bytes, SIZE);
	json_object_object_add(body, "copy", json_object_new_string("c"));
	json = ask(lab, "folder-begin", body);
	upload = number_of(json, "upload");
	json_object_put(json);
	entry = json_object_new_object();
	json_object_object_add(entry, "path", json_object_new_string("f"));
	json_object_object_add(entry, "type", json_object_new_string("file"));
	json_object_object_add(entry, "mode", json_object_new_int(0644));
	json_object_object_add(entry, "size", json_object_new_int(SIZE));
	json_object_object_add(entry, "bytes", json_object_new_string((const char *)text));
	entries = json_object_new_array();
	json_object_array_add(entries, entry);
	body = body_of(id, upload);
	json_object_object_add(body, "entries", entries);
	json_object_put(ask(lab, "folder-add", body));
	json_object_put(ask(lab, "folder-commit", body_of(id, upload)));
}

/* Of all that was put: what is there still; what was put for one version. */
static int64_t bytes_there(const struct folder_lab *lab)
{
	int64_t sum = 0;

	for (size_t i = 0; i < lab->object_count; i++)
		sum += lab->objects[i].bytes ? lab->objects[i].size : 0;
	return sum;
}

static int64_t bytes_put(const struct folder_lab *lab, uint64_t seq)
{
	int64_t sum = 0;

	for (size_t i = 0; i < lab->object_count; i++)
		sum += lab->objects[i].seq == seq ? lab->objects[i].size : 0;
	return sum;
}

static void check_list(struct folder_lab *lab, const char *id, uint64_t seq, size_t kept)
{
	struct json_object *json = ask(lab, "folder-list", body_of(id, 0)), *rows, *row, *versions;

	assert_true(json_object_object_get_ex(json, "folders", &rows));
	row = json_object_array_get_idx(rows, 0);
	assert_int_equal(number_of(row, "stored_bytes"), bytes_there(lab));
	assert_int_equal(number_of(row, "sent_bytes"), bytes_put(lab, seq));
	assert_true(json_object_object_get_ex(row, "versions", &versions));
	assert_int_equal(json_object_array_length(versions), kept);
	for (size_t i = 0; i < kept; i++)
		assert_int_equal(number_of(json_object_array_get_idx(versions, i), "sent_bytes"),
				 bytes_put(lab, seq - i));
	json_object_put(json);
}

static bool is_known(struct folder_lab *lab, const char *id)
{
	struct json_object *json = ask(lab, "folder-list", body_of(id, 0)), *rows;
	bool known;

	assert_true(json_object_object_get_ex(json, "folders", &rows));
	known = number_of(json_object_array_get_idx(rows, 0), "stored_bytes") >= 0;
	json_object_put(json);
	return known;
}

static void sums_are_right(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "f", 3);
	unsigned int tries = 0;
	char id[33];

	strcpy(id, f->job->hex);
	folder_unref(lab->a, f);
	check_list(lab, id, 0, 0);
	make_version(lab, id, 1);
	check_list(lab, id, 1, 1);
	assert_in_range(bytes_there(lab), SIZE, 2 * SIZE);
	make_version(lab, id, 1); /* what is known is not sent again */
	check_list(lab, id, 2, 2);
	assert_in_range(bytes_put(lab, 2), 1, SIZE / 4);
	make_version(lab, id, 2);
	check_list(lab, id, 3, 3);
	assert_in_range(bytes_there(lab), 2 * SIZE, 3 * SIZE);
	/* decampd has to read it anew, and says nothing before. */
	folder_lab_die(lab);
	folder_lab_start(lab);
	while (!is_known(lab, id) && tries++ < 60000)
		usleep(1000);
	check_list(lab, id, 3, 3);
	make_version(lab, id, 3);
	make_version(lab, id, 3);
	make_version(lab, id, 3);
	check_list(lab, id, 6, 3); /* of the first two contents nothing is left */
	assert_in_range(bytes_there(lab), SIZE, 2 * SIZE);
}

/* A holder that has a manifest no more: the sum is not guessed, and all else goes on. */
static void unknown_is_not_said(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "f", 3);
	struct folder_lab_object *lost = NULL;
	char id[33];

	strcpy(id, f->job->hex);
	make_version(lab, id, 1);
	make_version(lab, id, 2);
	for (size_t i = 0; i < lab->object_count; i++)
		if (!memcmp(&lab->objects[i].hash, &f->versions[1].ref.manifest,
			    sizeof(lab->objects[i].hash)))
			lost = &lab->objects[i];
	folder_unref(lab->a, f);
	assert_non_null(lost);
	free(take_ptr(lost->bytes));
	folder_lab_die(lab);
	folder_lab_start(lab);
	while (lab->a->folders_at_work)
		usleep(1000);
	assert_false(is_known(lab, id));
	make_version(lab, id, 3);
	assert_false(is_known(lab, id));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FOLDER_TEST(sums_are_right),
		FOLDER_TEST(unknown_is_not_said),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
