/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For the tests of pack: a store in memory, a cluster of one host, one job. Functions assert; a
 * test that gets a lab from setup() need not check what they return.
 */
#pragma once

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"

enum { OBJECTS_MAX = 1024 };

struct lab_store {
	pthread_mutex_t lock; /* a packer with threads puts several at a time */
	struct {
		struct object_hash hash;
		uint8_t *bytes;
		uint32_t size;
	} objects[OBJECTS_MAX];
	size_t count;
	atomic_uint gets; /* several threads fetch */
	int fail;	  /* this error from now on */
	int fail_after;	  /* so many puts, then -EHOSTUNREACH; 0: never */
	bool lie;	  /* flip a bit of what is fetched */
};

struct lab {
	struct lab_store store;
	struct job_id job;
	struct secret_key job_key, sign_seed, cluster_seed;
	uint8_t cluster_public[32];
	struct node_card card;
	struct fence_token token;
	struct packer *packer;
	struct ckpt_ref ref;
	uint64_t seq;
};

/* pack_store_fn and pack_fetch_fn; ctx is the struct lab_store. */
int lab_put(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
	    uint32_t *ret_holder_count, struct node_id *ret_holders);
/* Index of an object or -ENOENT. */
int lab_find(const struct lab_store *s, const struct object_hash *hash);
int lab_get(void *ctx, const struct object_hash *hash, uint32_t size, const struct node_id *holders,
	    uint32_t holder_count, int *ret_memfd);
/* For cmocka_unit_test_setup_teardown(). */
int lab_setup(void **state);
int lab_teardown(void **state);

/* Content and inputs. The same numbers in each run. */
void lab_fill_random(uint8_t *bytes, size_t size);
int lab_content_fd(const void *bytes, size_t size);
struct pack_input lab_input_of(enum file_kind kind, const char *path, mode_t mode, int fd);

/* One checkpoint: begin, add..., finish. */
void lab_begin(struct lab *lab);
int lab_add(struct lab *lab, enum file_kind kind, const char *path, int fd);
struct packer_counts lab_finish(struct lab *lab);
int lab_try_finish(struct lab *lab);
struct manifest *lab_open_manifest(struct lab *lab);
/* Unpacks one file of the last checkpoint and compares it. */
void lab_check_file(struct lab *lab, const char *path, const void *bytes, size_t size);
void lab_check_file_seeding(struct lab *lab, const char *path, const void *bytes, size_t size,
			    struct packer *seed);

#define TEST(name) cmocka_unit_test_setup_teardown(name, lab_setup, lab_teardown)
