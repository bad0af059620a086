/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk that lets one call fail, ends the process at it, or loses power.
 *
 * The calls themselves are done on real files, without real syncs. Beside them the disk keeps what a
 * power cut would leave: of each file the content at its last sync, plus what was written since;
 * of all folders the names at their last sync, plus the changes since. At a cut each change since
 * then is kept, dropped or, if it is a write, torn: any of its sectors of 512 bytes are there.
 * Neither a file's sync makes its name durable, nor a folder's sync any content.
 *
 * One per process: a scenario runs in a child. Not for more than one thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "overlay/store/io.h"

enum disk_fault {
	DISK_NONE,
	DISK_EIO, /* this call */
	DISK_ENOSPC,
	DISK_LATE,	/* this call is done, but says EIO; so does the next one, which is not */
	DISK_SHORT,	/* half of this write */
	DISK_EIO_ON,	/* this call and all that follow */
	DISK_ENOSPC_ON, /* likewise, of calls that need room */
	DISK_KILL,	/* SIGKILL instead of this call */
	DISK_CUT,	/* the power goes during this call */
	DISK_FAULTS,
};

struct disk_plan {
	enum disk_fault fault;
	uint32_t at;	 /* call, from 1 on */
	uint32_t seed;	 /* of what a cut keeps */
	bool cut_at_end; /* disk_end() is a power cut, too */
};

/* Counts from now on, below root; at a cut what is left is written to `after`, and exit_code is it. */
void disk_arm(const char *root, const char *after, const struct disk_plan *plan, int exit_code);
const struct store_io *disk_io(void);
uint32_t disk_calls(void);
/* The scenario is over. */
void disk_end(void);

/* LMDB's calls, from where the test catches them. */
ssize_t disk_lmdb_pwrite(int fd, const void *bytes, size_t size, off_t offset);
ssize_t disk_lmdb_writev(int fd, const struct iovec *parts, int count);
int disk_lmdb_fdatasync(int fd);
