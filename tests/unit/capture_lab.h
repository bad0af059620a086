/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For the tests of capture and restore: a store in memory, a cluster of one host, one job, and the
 * way from a snapshot to a manifest. Functions assert.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "agent/capture/capture.h"
#include "agent/pack/pack.h"

enum { CAPTURE_LAB_OBJECTS_MAX = 1024 };

struct capture_lab {
	struct {
		struct object_hash hash;
		int fd;
	} objects[CAPTURE_LAB_OBJECTS_MAX];
	size_t count;
	int fail; /* fetches give this error */
	struct job_id job;
	struct secret_key job_key, sign_seed, cluster_seed;
	uint8_t cluster_public[32];
	struct node_card card;
	struct fence_token token;
	struct packer *packer;
	struct ckpt_ref ref;
	uint64_t seq;
};

void capture_lab_init(struct capture_lab *lab);
void capture_lab_deinit(struct capture_lab *lab);
/* pack_fetch_fn; ctx is the lab. */
int capture_lab_fetch(void *ctx, const struct object_hash *hash, uint32_t size,
		      const struct node_id *holders, uint32_t holder_count, int *ret_memfd);

void capture_lab_begin(struct capture_lab *lab);
/* For snapshot_each(); ctx is the lab. */
int capture_lab_add(void *ctx, const struct snapshot_file *file);
void capture_lab_finish(struct capture_lab *lab, const char *meta_json);
/* All of it, and accepted. -ESTALE: the job, let run, changed a file that is not copied: take anew. */
int capture_lab_try(struct capture_lab *lab, struct capture *c, struct snapshot *s,
		    struct packer_counts *ret_counts);
struct packer_counts capture_lab_pack(struct capture_lab *lab, struct capture *c,
				      struct snapshot *s);
struct manifest *capture_lab_manifest(struct capture_lab *lab);
/* Index of a file in a manifest, -1 if it is not there. */
long capture_lab_find(const struct manifest *m, enum file_kind kind, const char *path);

/* Small files. */
void lab_write(const char *text, const char *path_fmt, ...) _printf_(2, 3);
/* The caller frees it; NULL if there is no such file. */
char *lab_read(const char *path_fmt, ...) _printf_(1, 2);
