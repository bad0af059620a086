/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What reg.c and ghost.c share: names of regular files, and files that have lost theirs.
 *
 * A ghost is a file without a name that somebody still holds. Its content goes into a
 * ghost-file-N.img: copied in the pause if anybody can write to it, else kept open and copied
 * after it, with a look that it has not changed.
 */
#pragma once

#include "agent/native/files_internal.h"

#define REG_DELETED " (deleted)"

enum { REG_BUCKETS = 256, REG_SCAN_MAX = 65536 };

struct reg_ghost {
	struct reg_ghost *next;
	uint32_t id; /* of the image */
	struct stat st;
	int source; /* open for reading, content still to be copied; -1 */
	int copy;   /* nameless file with the content of the frozen instant; -1 */
};

struct reg_name {
	const char *path;
	struct reg_ghost *ghost; /* NULL: it is there */
};

/* Where a file is found while it has no name. */
struct reg_source {
	char link[96]; /* below /proc */
	uint32_t mode, nlink;
	bool writable;
	const struct native_task *task;
	const struct native_open *open; /* may be NULL */
};

/* An entry of files.img that is no descriptor's. */
struct reg_special {
	struct reg_special *next;
	const char *seen; /* path as found */
	struct reg_name name;
	const struct native_open *open; /* flags and owner; NULL: none */
	uint32_t id;			/* 0: not settled yet */
	bool sized;
	uint32_t mode;
	uint64_t size;
};

struct reg_mapped {
	struct reg_mapped *next;
	uint64_t file;
	struct reg_special *special;
};

struct reg_remap {
	struct reg_remap *next;
	uint32_t file_id, ghost_id;
};

struct reg_area {
	struct reg_special *specials[REG_BUCKETS]; /* by path */
	struct reg_mapped *mapped[REG_BUCKETS];	   /* by struct file */
	struct reg_ghost *ghosts;
	struct reg_remap *remaps;
	uint32_t next_ghost;
	int maps_fd; /* of maps_of */
	const struct native_task *maps_of;
};

int reg_area_get(struct native_files *f, struct reg_area **ret_area) _must_check_;

bool reg_is_deleted(const char *path);
/* The name that is left, or a ghost. */
int reg_lost_name(struct native_files *f, const struct reg_source *source, const char *seen,
		  struct reg_name *ret_name) _must_check_;
int reg_add_remap(struct native_files *f, uint32_t file_id,
		  const struct reg_ghost *ghost) _must_check_;
/* dev: major << 20 | minor. */
bool reg_is_ghost(const struct native_files *f, uint32_t dev, uint64_t ino);
/* Content as it is now, unless there is a copy already. */
int reg_ghost_copy(struct native_files *f, struct reg_ghost *g, const char *link) _must_check_;
/* remap-fpath.img and all ghost-file-N.img. */
int reg_write_ghosts(struct native_files *f) _must_check_;
void reg_destroy_ghosts(struct reg_area *a);
/* After the pause: -EOPNOTSUPP if a path does not lead to its file. */
int reg_check_mounts(struct native_files *f) _must_check_;
