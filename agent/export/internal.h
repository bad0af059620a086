/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the export stage share.
 *
 *   image.c  records of an image          task.c   images -> one process
 *   pages.c  pagemap images               notes.c  threads -> notes
 *   elf_core.c  process -> layout, ranges of bytes
 */
#pragma once

#include "agent/export/export.h"
#include "agent/export/image.h"
#include "agent/native/core.pb-c.h"
#include "agent/native/files.pb-c.h"
#include "agent/native/mem.pb-c.h"

enum { EXPORT_PAGE = 4096 };

int export_fail(char reason[EXPORT_REASON_MAX], int r, const char *fmt, ...) _printf_(3, 4);

/* ---- pages.c ---- */

/* Pages that an image has: at bytes of address space (or of a shared object), from where on. */
struct page_run {
	uint64_t at, size, from;
};

struct page_map {
	uint32_t shmid; /* of a shared object */
	const struct export_file *file;
	struct page_run *runs; /* ascending, apart */
	size_t count, room;
};

/* "pagemap-N.img" or "pagemap-shmem-N.img"; -ENOENT if there is none. */
int page_map_load(const struct export_set *set, const char *name, struct page_map *ret_map,
		  char *reason) _must_check_;
void page_map_deinit(struct page_map *m);
/* The first run that ends behind at; count if there is none. */
size_t page_map_find(const struct page_map *m, uint64_t at);

/* ---- task.c ---- */

/* Bits of a VMA's status, and its kinds. */
enum {
	VMA_IS_FILE_PRIVATE = 0x40,
	VMA_IS_FILE_SHARED = 0x80,
	VMA_IS_ANON_SHARED = 0x100,
	VMA_IS_ANON_PRIVATE = 0x200,
	VMA_IS_SYSVIPC = 0x400,
	VMA_IS_MEMFD = 0x4000,
	VMA_IS_GUARD = 0x10000,
};

struct task_file {
	uint32_t id;
	bool is_memfd;
	uint32_t shmid; /* of a memfd */
	char *name;
};

struct task {
	const struct export_set *set;
	char *reason;
	NatCore__Pstree *tree;
	NatCore__Core **threads; /* as in tree->threads; the first is the leader */
	size_t thread_count;
	NatMm__Mm *mm;
	struct task_file *files; /* by id */
	size_t file_count;
	struct page_map pages;
	struct page_map *shared;
	size_t shared_count;
};

int task_load(struct task *t, pid_t pid) _must_check_;
void task_deinit(struct task *t);
/* What a VMA maps, or NULL. */
const struct task_file *task_file_of(const struct task *t, const NatMm__Vma *v);
/* The pages of the shared object that a VMA maps; *ret_map NULL: it maps none, or an empty one. */
int task_shared_of(struct task *t, const NatMm__Vma *v,
		   const struct page_map **ret_map) _must_check_;

/* A whole small image, with a zero behind; the caller frees it. -ENOENT: there is none. */
int task_image(const struct export_set *set, const char *name, uint8_t **ret_bytes,
	       size_t *ret_size, char *reason) _must_check_;

/* ---- notes.c ---- */

/* The first bytes of the process's command line, or less. */
typedef size_t (*notes_args_fn)(const void *ctx, char *ret_args, size_t size);

/* The content of PT_NOTE; the caller frees it. */
int notes_build(const struct task *t, notes_args_fn args, const void *ctx, uint8_t **ret_bytes,
		size_t *ret_size) _must_check_;
