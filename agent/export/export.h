/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A checkpoint as files for people and their tools: ELF cores, made of CRIU's images.
 *
 *   decampd -- verbs "snapshot", "read" --> struct export_set -> struct elf_core -> any range of bytes
 *
 * All of this runs in the caller's own process, with his rights: the daemon serves verified bytes
 * of his own checkpoint and knows nothing of cores. A core is laid out from the small images; its
 * pages are read when they are asked for, so memory does not grow with the job's.
 *
 *   core = ELF header, program headers | notes | pages, in the order of the VMAs
 *   PT_LOAD  a stretch of a VMA: filesz up to the last page that the checkpoint has, then zeros;
 *            of a file's mapping what was not changed: filesz 0, as the kernel writes it
 *
 * Limits: CORE_*; an image that is read whole: IMAGE_BYTES_MAX. Errors: -errno, with words in
 * reason. -EOPNOTSUPP: not x86-64, or no memory in this checkpoint. Threading: an object belongs to
 * one thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/pack/pack.h"

enum {
	EXPORT_REASON_MAX = 256,
	EXPORT_READ_MAX = 2 << 20, /* bytes that are asked for at once */
	CORE_THREADS_MAX = 1 << 16,
	CORE_SEGMENTS_MAX = 65500, /* what an ELF header's 16 bits can count */
};

enum export_type {
	EXPORT_FILE = 1,
	EXPORT_FOLDER,
	EXPORT_LINK,
	EXPORT_FIFO,
	EXPORT_DELETED,
	EXPORT_OTHER
};

struct export_file {
	uint64_t index; /* the manifest's number of it */
	enum file_kind kind;
	enum export_type type;
	char *path;	/* absolute as the job sees it; an image's name */
	char *target;	/* of a symlink, or NULL */
	char *hardlink; /* path of an earlier file that this is a link to, or NULL */
	uint64_t size;
	uint32_t mode, uid, gid;
	int64_t mtime_ms;
	/* Of a folder's version: the content's size and pieces, if it is stored in chunks. */
	uint64_t content_size;
	uint32_t chunks;
};

/* By kind, then path: a folder comes before what is in it. */
void export_files_sort(struct export_file *files, size_t count);

/* One checkpoint; its files are sorted. read() gives exactly size <= EXPORT_READ_MAX bytes, verified, or -errno. */
struct export_set {
	struct export_file *files;
	size_t count;
	int (*read)(void *ctx, const struct export_file *file, uint64_t offset, void *ret_bytes,
		    size_t size);
	void *ctx;
};

/* The file of this kind and path, or NULL. */
const struct export_file *export_find(const struct export_set *set, enum file_kind kind,
				      const char *path);
/* Any range inside of the file. */
int export_read(const struct export_set *set, const struct export_file *file, uint64_t offset,
		void *ret_bytes, size_t size) _must_check_;
void export_files_free(struct export_file *files, size_t count);

/* The job's processes, the root first; the caller frees them. */
int export_pids(const struct export_set *set, pid_t **ret_pids, size_t *ret_count,
		char reason[EXPORT_REASON_MAX]) _must_check_;

struct elf_core;

/*
 * with_files: also what mappings of files show unchanged, where the checkpoint has the file. The set
 * is borrowed until elf_core_destroy().
 */
int elf_core_create(const struct export_set *set, pid_t pid, bool with_files,
		    struct elf_core **ret_core, char reason[EXPORT_REASON_MAX]) _must_check_;
void elf_core_destroy(struct elf_core *c);
uint64_t elf_core_size(const struct elf_core *c);
size_t elf_core_thread_count(const struct elf_core *c);
/* Exactly size bytes below elf_core_size(). */
int elf_core_read(const struct elf_core *c, uint64_t offset, void *ret_bytes,
		  size_t size) _must_check_;
/* The next stretch at or after offset that is not a hole; false: there is none. */
bool elf_core_next(const struct elf_core *c, uint64_t offset, uint64_t *ret_from,
		   uint64_t *ret_size);
