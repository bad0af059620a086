/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Judge of the native engine's memory: what a frozen process tree holds, read by means of its own,
 * against what the images of a chain of snapshots say, byte by byte.
 *
 *   frozen_read(root)  ──────────────┐ in the pause: maps, pagemap, process_vm_readv, files
 *                                    ├── oracle_compare() -> report
 *   store_add(images, last store) ───┘ afterwards: pages-N.runs resolved over the chain
 *
 * Nothing here uses the engine's code, PAGEMAP_SCAN or generated protobuf readers.
 *
 * Limits: FROZEN_* below. Threading: none. Functions return 0 or -errno, or complain in a report.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/util/cleanup.h"

enum {
	ORACLE_PAGE = 4096,
	FROZEN_TASKS_MAX = 256,
	FROZEN_VMAS_MAX = 1 << 17,
	FROZEN_PAGES_MAX = 1 << 22,
	FROZEN_FILES_MAX = 8192,
	FROZEN_SHARED_FILE_MAX = 64 << 20,
};

enum { PAGE_FILE = 1, PAGE_GUARD = 2 }; /* neither: memory of the process' own */

struct frozen_page {
	uint64_t vaddr;
	uint32_t flags;
	uint32_t block; /* of the buffer */
};

struct frozen_vma {
	uint64_t start, end, offset;
	int prot;
	bool shared;
	int32_t file;	     /* -1: none, absent pages are zero */
	size_t first, count; /* of pages; those present and guards, by address */
};

/* Content of a mapped file or shared memory object. */
struct frozen_file {
	uint64_t dev, ino, size;
	bool shm; /* memfd or shared anonymous: the images hold its content */
	uint32_t block;
};

struct frozen_task {
	pid_t pid;
	size_t first, count; /* of VMAs */
};

struct frozen {
	struct frozen_task tasks[FROZEN_TASKS_MAX];
	struct frozen_vma *vmas;
	struct frozen_page *pages;
	struct frozen_file *files;
	uint8_t *buffer; /* blocks */
	size_t task_count, vma_count, page_count, file_count, block_count, block_room;
};

int frozen_create(size_t buffer_bytes, struct frozen **ret_frozen) _must_check_;
void frozen_destroy(struct frozen *f);
/* All tasks of the tree, which stands still. What was read before is forgotten. */
int frozen_read(struct frozen *f, pid_t root) _must_check_;

/* The pages-N.img of one snapshot. */
struct store;

/* base: that of the last complete snapshot, NULL: none. -EBADMSG with a sentence in why. */
int store_load(int images, const struct store *base, struct store **ret_store,
	       char why[256]) _must_check_;
void store_destroy(struct store *s);
/* NULL if there is no such block. */
const uint8_t *store_block(const struct store *s, uint32_t pages_id, uint64_t block);

uint64_t store_blocks(const struct store *s, uint32_t pages_id);

struct image_run {
	uint64_t vaddr, pages, block;
};

struct image_vma {
	uint64_t start, end, shmid;
	uint32_t prot, status;
};

enum { IMAGE_VMA_GUARD = 1 << 16, IMAGE_VMA_MEMFD = 1 << 14 };

/* pagemap-NAME.img; runs are by address. */
struct image_pagemap {
	uint32_t pages_id;
	struct image_run *runs;
	size_t count;
};

int image_pagemap_load(int images, const char *name, struct image_pagemap *ret_map) _must_check_;
int image_vmas_load(int images, pid_t pid, struct image_vma **ret_vmas,
		    size_t *ret_count) _must_check_;
/* shmid of the memfd that is entry `id` of files.img. */
int image_memfd_shmid(int images, uint32_t id, uint32_t *ret_shmid) _must_check_;

struct oracle_report {
	uint64_t pages; /* compared */
	uint64_t wrong;
	char first[256]; /* the first one that is wrong */
};

void oracle_compare(const struct frozen *f, int images, const struct store *s,
		    struct oracle_report *report);
