// SPDX-License-Identifier: LGPL-2.1-or-later
/* The list of a folder's versions, and what a mount finds of a working copy. */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "agent/job/folder.h"
#include "agent/util/io.h"

static void list_travels(void **state)
{
	struct folder_version older[FOLDER_KEEP_MAX - 1] = { 0 }, read[FOLDER_KEEP_MAX];
	const struct folder_version own = { .sync = true, .files = 7, .bytes = 1 << 30 };
	const struct ckpt_ref ref = { .seq = 99, .manifest_size = 5000 };
	struct json_object *meta;
	size_t count = 0;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(older); i++) {
		older[i].ref = (struct ckpt_ref){ .seq = 98 - i,
						  .manifest_size = 4096 + (uint32_t)i,
						  .holder_count = (uint32_t)(i % 6),
						  .wall_ms = 1000 + i };
		memset(&older[i].ref.manifest, (int)i, sizeof(older[i].ref.manifest));
		for (uint32_t k = 0; k < older[i].ref.holder_count; k++)
			memset(&older[i].ref.holders[k], (int)(i + k), sizeof(struct node_id));
		older[i].files = i;
		older[i].bytes = UINT64_C(1) << i;
		older[i].sent = 7 * i;
	}
	meta = folder_versions_encode(&own, older, ARRAY_SIZE(older));
	assert_int_equal(
		folder_versions_decode(json_object_to_json_string(meta), &ref, read, &count), 0);
	json_object_put(meta);
	assert_int_equal(count, FOLDER_KEEP_MAX);
	assert_int_equal(read[0].ref.seq, 99);
	assert_true(read[0].sync);
	assert_int_equal(read[0].bytes, 1 << 30);
	assert_memory_equal(&read[1], older, sizeof(older));
}

static void list_is_checked(void **state)
{
	static const char hash[] =
		"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
	static const char *const rows[] = {
		"",
		"[]",
		"{}",
		"{\"folder\":[]}",
		"{\"folder\":{}}",
		"{\"folder\":{\"older\":{}}}",
		"{\"folder\":{\"older\":[3]}}",
		"{\"folder\":{\"older\":[{\"seq\":1,\"size\":9,\"holders\":[],\"manifest\":\"0\"}]}}",
		"{\"folder\":{\"older\":[{\"seq\":0,\"size\":9,\"holders\":[],\"manifest\":\"%s\"}]}}",
		"{\"folder\":{\"older\":[{\"seq\":1,\"size\":0,\"holders\":[],\"manifest\":\"%s\"}]}}",
		"{\"folder\":{\"older\":[{\"seq\":1,\"size\":99999999,\"holders\":[],"
		"\"manifest\":\"%s\"}]}}",
		"{\"folder\":{\"older\":[{\"seq\":1,\"size\":9,\"holders\":[1],\"manifest\":\"%s\"}]}}",
		"{\"folder\":{\"older\":[{\"seq\":1,\"size\":9,\"holders\":{},\"manifest\":\"%s\"}]}}",
	};
	const struct ckpt_ref ref = { .seq = 2 };
	struct folder_version read[FOLDER_KEEP_MAX];
	size_t count = 77;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		char text[1000];
		char *at = strstr(rows[i], "%s");

		if (at)
			snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - rows[i]), rows[i], hash,
				 at + 2);
		else
			snprintf(text, sizeof(text), "%s", rows[i]);
		assert_int_equal(folder_versions_decode(text, &ref, read, &count), -EBADMSG);
		assert_int_equal(count, 77);
	}
}

/* One more than there may be: not a byte behind the array. */
static void list_is_bounded(void **state)
{
	struct folder_version older[FOLDER_KEEP_MAX], read[FOLDER_KEEP_MAX];
	const struct folder_version own = { 0 };
	const struct ckpt_ref ref = { .seq = 99 };
	struct json_object *meta;
	size_t count;

	(void)state;
	memset(older, 0, sizeof(older));
	for (size_t i = 0; i < ARRAY_SIZE(older); i++)
		older[i].ref = (struct ckpt_ref){ .seq = 1, .manifest_size = 1 };
	meta = folder_versions_encode(&own, older, ARRAY_SIZE(older));
	assert_int_equal(folder_versions_decode(json_object_to_json_string(meta), &ref, read,
						&count),
			 -EBADMSG);
	json_object_put(meta);
}

/* Not even a host with those very tags; that is how no guardian gives a folder away. */
static void no_host_fits(void **state)
{
	struct member_state_report report = { .cores = 64, .tags = "decamp-folder" };
	char error[NEEDS_ERROR_MAX];
	uint8_t program[OV_NEEDS_MAX];
	uint32_t blame;
	size_t size;

	(void)state;
	assert_int_equal(needs_compile(FOLDER_NEEDS, program, &size, error), 0);
	assert_true(core_needs_valid(program, size));
	assert_false(core_needs_met(program, size, &report, UINT64_MAX, &blame));
	report.tags[0] = '\0';
	assert_false(core_needs_met(program, size, &report, UINT64_MAX, &blame));
}

/* ---- limits of making one ---- */

static int reserve(struct agent *a, uid_t uid, const char *name, struct folder **ret_folder)
{
	struct job_value value = { .state = JOB_STATE_HELD };
	struct job_seal seal = { .uid = uid, .flags = JOB_SEAL_FOLDER };
	int r = random_bytes(&value.job, sizeof(value.job));

	assert_int_equal(r, 0);
	snprintf(seal.name, sizeof(seal.name), "%s", name);
	r = folder_reserve(a, &value, &seal, ret_folder);
	if (r == 0)
		pthread_mutex_unlock(&(*ret_folder)->lock);
	return r;
}

static void leave(struct agent *a, struct folder *f)
{
	folder_leave(f);
	folder_unref(a, f);
}

static void room_is_counted(void **state)
{
	struct agent *a = calloc(1, sizeof(*a));
	struct folder *folders[FOLDERS_MAX], *more;
	char name[20];

	(void)state;
	assert_non_null(a);
	strcpy(a->config.state_dir, "/nonexistent");
	a->config.pack_cpu_percent = 100;
	for (int i = 0; i < FOLDERS_MAX; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		assert_int_equal(reserve(a, (uid_t)(i / FOLDER_USER_MAX), name, &folders[i]), 0);
	}
	assert_int_equal(reserve(a, 0, "f0", &more), -EEXIST);
	assert_int_equal(reserve(a, 0, "g", &more), -EDQUOT);
	assert_int_equal(reserve(a, 9, "f0", &more), -ENOSPC);
	for (int i = 0; i < FOLDERS_MAX; i++)
		leave(a, folders[i]);
	/* Made and ended again and again: the register remembers each for a while. */
	for (int i = 0; i < FOLDER_CREATES_USER - FOLDER_USER_MAX; i++) {
		assert_int_equal(reserve(a, 0, "g", &more), 0);
		leave(a, more);
	}
	assert_int_equal(reserve(a, 0, "g", &more), -EBUSY);
	assert_int_equal(reserve(a, 9, "g", &more), 0);
	leave(a, more);
	free(a);
}

/* What is "as before" counts as what is sent. */
static void bytes_are_counted(void **state)
{
	struct pack_input in = { .path = "0/x", .st = { .st_mode = S_IFREG | 0644 } };
	struct agent *a = calloc(1, sizeof(*a));
	struct folder *f;

	(void)state;
	assert_non_null(a);
	strcpy(a->config.state_dir, "/nonexistent");
	a->config.pack_cpu_percent = 100;
	a->config.folder_bytes = 100;
	assert_int_equal(reserve(a, 0, "f", &f), 0);
	in.st.st_size = 101;
	assert_int_equal(upload_add(f, &in, false), -EDQUOT);
	f->upload.bytes = 60;
	in.st.st_size = 41;
	assert_int_equal(upload_add(f, &in, false), -EDQUOT);
	in.st.st_size = 40;
	assert_int_equal(upload_add(f, &in, false), -ENOENT);
	a->config.folder_bytes = 0;
	assert_int_equal(upload_begin(f, 0, ""), -EOPNOTSUPP);
	leave(a, f);
	free(a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(list_travels),	   cmocka_unit_test(list_is_checked),
		cmocka_unit_test(list_is_bounded), cmocka_unit_test(no_host_fits),
		cmocka_unit_test(room_is_counted), cmocka_unit_test(bytes_are_counted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
