/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests of folders: the agent half of a decampd without jobs, on a made-up network half that
 * keeps registers and objects in memory and loses what it is told to. Everything asserts (cmocka).
 *
 *   folder_lab_setup() -> folder_lab_start() { folder_lab_die(), _start() } -> folder_lab_teardown()
 *
 * The registers and objects outlast a start. Threading: the network half is a thread of its own;
 * the tests' thread reads its fields while no request is under way.
 */
#pragma once

#include "agent/job/folder.h"

enum { FOLDER_LAB_REGISTERS = 64, FOLDER_LAB_OBJECTS = 1024, FOLDER_LAB_CHANNELS = 64 };

enum folder_lab_fault {
	FAULT_NONE,
	FAULT_LOST,   /* it is done, and the channel is closed instead of an answer */
	FAULT_FAILED, /* it is done, and -EIO is the answer */
	FAULT_IDLE,   /* it is not done, and -EIO is the answer */
};

struct folder_lab_object {
	struct job_id job;
	struct object_hash hash;
	uint8_t *bytes; /* NULL: dropped by a RETAIN */
	uint32_t size;
	uint64_t seq;
};

struct folder_lab {
	char dir[64], socket[96];
	struct cluster *cluster;
	struct agent *a; /* NULL: decampd does not run */
	struct api *api;

	/* The network half. */
	pthread_t thread;
	int channels[FOLDER_LAB_CHANNELS]; /* the first one is the main one */
	size_t channel_count;
	struct job_value registers[FOLDER_LAB_REGISTERS];
	size_t register_count;
	struct folder_lab_object objects[FOLDER_LAB_OBJECTS];
	size_t object_count;
	struct member_info members[3];	 /* the first one is this host */
	enum folder_lab_fault cas_fault; /* of the next cas_faults ones */
	unsigned int cas_faults;
	/* decampd's: so many answers to folder-commit become errors, after all was done. */
	atomic_uint lose_commits;
};

/* For cmocka_unit_test_setup_teardown(): decampd runs. */
int folder_lab_setup(void **state);
int folder_lab_teardown(void **state);
void folder_lab_start(struct folder_lab *lab);
/* As by SIGKILL: nothing is said to anybody, nothing is written. */
void folder_lab_die(struct folder_lab *lab);

/* A folder of this user's here, ready; with a reference. keep 0: 8 versions. */
struct folder *folder_lab_make(struct folder_lab *lab, uid_t uid, const char *name, uint32_t keep);
/* A register's entry as that member would have made it. */
struct job_value *folder_lab_foreign(struct folder_lab *lab, size_t member, uid_t uid,
				     const char *name, uint64_t made_ms);
/* As taken up by decampd: with a reference, ready. */
struct folder *folder_lab_find(struct folder_lab *lab, const struct job_id *id);
const struct job_value *folder_lab_register(const struct folder_lab *lab, const struct job_id *id);
/* Runs a verb as that user; body_take may be NULL. The answer is the caller's. */
int folder_lab_ask(struct folder_lab *lab, uid_t uid, const char *verb,
		   struct json_object *body_take, struct json_object **ret_json);
/* "code" of an error, "" of another answer; the answer is released. */
const char *folder_lab_code(struct json_object *json_take);

#define FOLDER_TEST(name) \
	cmocka_unit_test_setup_teardown(name, folder_lab_setup, folder_lab_teardown)
