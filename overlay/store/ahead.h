/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A thread that tells the disk to begin with what was written while more of it still arrives, so
 * that the sync at the end finds little left. Advice only: it promises nothing, its errors are the
 * sync's to find, and what does not fit its queue is left to the sync.
 *
 * Threading: any. Limit: AHEAD_MAX pieces that wait.
 */
#pragma once

#include <stdint.h>

enum { AHEAD_MAX = 64 };

struct ahead;

int ahead_create(struct ahead **ret_ahead) __attribute__((warn_unused_result));
/* Waits for the piece that is under way. NULL is allowed. */
void ahead_destroy(struct ahead *ahead);
/* fd is duplicated. Does not wait. */
void ahead_write(struct ahead *ahead, int fd, uint64_t offset, uint64_t size);
