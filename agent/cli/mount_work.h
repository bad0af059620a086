/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What may be done to a working copy through the mount: calls of the kernel's, on the user's own
 * files. Each tells the worktree which files are open for writing and that something changed.
 * Names stand still while a version looks at them: whoever changes one holds the worktree's lock.
 */
#pragma once

#include "agent/cli/folders.h"

/* An open file of a working copy. */
struct work_file {
	struct worktree *work;
	int fd;
	uint64_t ino;
	bool writes;
};

int work_stat(const struct folders_node *n, struct stat *ret_stat) _must_check_;
int work_open(const struct folders_node *n, int flags, mode_t mode,
	      struct work_file *ret_file) _must_check_;
void work_close(struct work_file *file);
int work_write(struct work_file *file, const char *bytes, size_t size, off_t offset) _must_check_;
int work_sync(struct work_file *file) _must_check_;
/* n may be NULL where the file is open. */
int work_truncate(const struct folders_node *n, struct work_file *file, off_t size) _must_check_;
int work_mkdir(const struct folders_node *n, mode_t mode) _must_check_;
int work_unlink(const struct folders_node *n, bool folder) _must_check_;
int work_symlink(const char *target, const struct folders_node *n) _must_check_;
int work_rename(const struct folders_node *from, const struct folders_node *to,
		unsigned int flags) _must_check_;
int work_chmod(const struct folders_node *n, mode_t mode) _must_check_;
int work_times(const struct folders_node *n, const struct timespec times[2]) _must_check_;
