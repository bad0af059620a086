// SPDX-License-Identifier: LGPL-2.1-or-later
/* Folders of one name, made on hosts that did not know of each other's: how they are told apart. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "tests/unit/folder_lab.h"

enum { ALICE = 1000, BOB = 1001 };

/* "LABEL@HOST ..", sorted by label, of all that a user is shown, or of those that ref names. */
static const char *labels(struct folder_lab *lab, uid_t uid, const char *ref)
{
	static char text[2000];
	struct json_object *body = json_object_new_object(), *json, *folders, *label, *host;

	if (ref)
		json_object_object_add(body, "folder", json_object_new_string(ref));
	assert_int_equal(folder_lab_ask(lab, uid, "folder-list", body, &json), 0);
	assert_true(json_object_object_get_ex(json, "folders", &folders));
	text[0] = '\0';
	for (size_t i = 0; i < json_object_array_length(folders); i++) {
		struct json_object *one = json_object_array_get_idx(folders, i);
		size_t at = strlen(text);

		assert_true(json_object_object_get_ex(one, "label", &label));
		assert_true(json_object_object_get_ex(one, "host", &host));
		snprintf(text + at, sizeof(text) - at, "%s%s@%s", at ? " " : "",
			 json_object_get_string(label), json_object_get_string(host));
	}
	json_object_put(json);
	return text;
}

/* The error's code, and its reason; "" if all went well. */
static const char *ask(struct folder_lab *lab, uid_t uid, const char *verb, const char *ref,
		       char reason[300])
{
	struct json_object *body = json_object_new_object(), *json, *error, *text;

	json_object_object_add(body, "folder", json_object_new_string(ref));
	(void)!folder_lab_ask(lab, uid, verb, body, &json);
	reason[0] = '\0';
	if (json_object_object_get_ex(json, "error", &error) &&
	    json_object_object_get_ex(error, "reason", &text))
		snprintf(reason, 300, "%s", json_object_get_string(text));
	return folder_lab_code(json);
}

static void the_oldest_keeps_the_name(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "thesis", 0);
	struct job_value swap;

	assert_string_equal(labels(lab, ALICE, NULL), "thesis@host1");
	folder_lab_foreign(lab, 1, ALICE, "thesis", 1000);
	folder_lab_foreign(lab, 2, ALICE, "other", 500);
	assert_string_equal(labels(lab, ALICE, NULL),
			    "other@host3 thesis@host2 thesis~host1@host1");
	/* In whatever order they are heard of. */
	swap = lab->registers[0];
	lab->registers[0] = lab->registers[1];
	lab->registers[1] = swap;
	assert_string_equal(labels(lab, ALICE, NULL),
			    "other@host3 thesis@host2 thesis~host1@host1");
	folder_lab_foreign(lab, 2, ALICE, "thesis", UINT64_C(1) << 60);
	assert_string_equal(labels(lab, ALICE, "thesis"),
			    "thesis@host2 thesis~host1@host1 thesis~host3@host3");
	assert_string_equal(labels(lab, ALICE, "thesis~host1"), "thesis~host1@host1");
	assert_string_equal(labels(lab, ALICE, "thesis~host2"), "thesis@host2");
	assert_string_equal(labels(lab, ALICE, f->job->hex), "thesis~host1@host1");
	folder_unref(lab->a, f);
}

/* Made within one millisecond: by their ids then. */
static void ids_decide_at_last(void **state)
{
	struct folder_lab *lab = *state;
	struct job_value *x = folder_lab_foreign(lab, 1, ALICE, "f", 1000);
	struct job_value *y = folder_lab_foreign(lab, 2, ALICE, "f", 1000);
	bool first = memcmp(&x->job, &y->job, sizeof(x->job)) < 0;

	assert_string_equal(labels(lab, ALICE, NULL),
			    first ? "f@host2 f~host3@host3" : "f@host3 f~host2@host2");
}

/* Two of one host (it was away for good and was made anew), and one of a host that nobody knows. */
static void hosts_that_tell_nothing(void **state)
{
	struct folder_lab *lab = *state;
	struct job_value *values[3];
	char expected[300], hex[3][33];

	for (size_t i = 0; i < 3; i++) {
		struct job_value *v = folder_lab_foreign(lab, 1, ALICE, "f", 1000 + i);

		hex_encode(&v->job, sizeof(v->job), hex[i]);
		values[i] = v;
	}
	memset(&values[2]->home, 0x77, sizeof(values[2]->home));
	snprintf(expected, sizeof(expected), "f@host2 f~%.8s@host2 f~%.8s@?", hex[1], hex[2]);
	assert_string_equal(labels(lab, ALICE, NULL), expected);
	/* A name that is no name for people is none of a folder's. */
	strcpy(lab->members[1].hostname, "a/b");
	values[1]->home = lab->members[2].id;
	snprintf(expected, sizeof(expected), "f@a/b f~host3@host3 f~%.8s@?", hex[2]);
	assert_string_equal(labels(lab, ALICE, NULL), expected);
}

static void users_do_not_meet(void **state)
{
	struct folder_lab *lab = *state;

	folder_lab_foreign(lab, 1, BOB, "f", 1000);
	folder_lab_foreign(lab, 2, ALICE, "f", 2000);
	assert_string_equal(labels(lab, ALICE, NULL), "f@host3");
	assert_string_equal(labels(lab, BOB, NULL), "f@host2");
	assert_string_equal(labels(lab, 0, NULL), "f@host2 f~host3@host3");
}

static void commands_say_which(void **state)
{
	struct folder_lab *lab = *state;
	struct folder *f = folder_lab_make(lab, ALICE, "thesis", 0);
	char reason[300];

	folder_lab_foreign(lab, 1, ALICE, "thesis", 1000);
	assert_string_equal(ask(lab, ALICE, "folder-delete", "thesis", reason), "ambiguous");
	assert_non_null(strstr(reason, "thesis~host2, thesis~host1"));
	assert_string_equal(ask(lab, ALICE, "folder-begin", "thesis", reason), "ambiguous");
	assert_string_equal(ask(lab, ALICE, "folder-begin", "thesis~host1", reason), "");
	assert_string_equal(ask(lab, ALICE, "folder-delete", "thesis~host2", reason), "not-here");
	assert_non_null(strstr(reason, "host2"));
	assert_string_equal(ask(lab, ALICE, "folder-delete", "thesis~host3", reason),
			    "no-such-folder");
	assert_string_equal(ask(lab, BOB, "folder-delete", "thesis~host1", reason),
			    "no-such-folder");
	assert_string_equal(ask(lab, BOB, "folder-delete", f->job->hex, reason), "no-such-folder");
	assert_string_equal(labels(lab, ALICE, NULL), "thesis@host2 thesis~host1@host1");
	/* Both stood all the time; one goes, and the other one needs no other name. */
	assert_string_equal(ask(lab, ALICE, "folder-delete", "thesis~host1", reason), "");
	assert_string_equal(labels(lab, ALICE, NULL), "thesis@host2");
	assert_string_equal(ask(lab, ALICE, "folder-delete", "thesis", reason), "not-here");
	folder_unref(lab->a, f);
}

/* The name is taken for as long as one of them is there. */
static void no_third_one(void **state)
{
	struct folder_lab *lab = *state;
	struct json_object *body = json_object_new_object(), *json;

	folder_lab_foreign(lab, 1, ALICE, "f", 1000);
	folder_lab_foreign(lab, 2, ALICE, "f", 2000);
	json_object_object_add(body, "name", json_object_new_string("f"));
	assert_int_equal(folder_lab_ask(lab, ALICE, "folder-create", body, &json), -EEXIST);
	assert_string_equal(folder_lab_code(json), "name-taken");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FOLDER_TEST(the_oldest_keeps_the_name), FOLDER_TEST(ids_decide_at_last),
		FOLDER_TEST(hosts_that_tell_nothing),	FOLDER_TEST(users_do_not_meet),
		FOLDER_TEST(commands_say_which),	FOLDER_TEST(no_third_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
