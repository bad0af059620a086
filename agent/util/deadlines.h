/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How long threads of a snapshot had yet to sleep in calls with a relative timeout: a file beside the
 * images, written by the native engine, read by our plugin inside CRIU (agent/image/plugin). Times
 * are those left at the pause, so that no clock of either host matters.
 *
 *   file = head  deadline*count      all little-endian, as it lies in memory
 *
 * Errors: -EBADMSG for anything but a whole, well-formed file. Threading: reentrant.
 */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/util/cleanup.h"

/* In the folder that deadlines_plugin_dir() gives. */
#define DEADLINES_PLUGIN "decamp.so"
#define DEADLINES_FILE "deadlines.decamp" /* no image: CRIU's tools would not know it */
/* Written beside it by the plugin: "DONE of TOTAL", and why the first of the others is not done. */
#define DEADLINES_REPORT "deadlines.report"

enum {
	DEADLINES_MAGIC = 0x6c646364, /* "dcdl" */
	DEADLINES_VERSION = 1,
	DEADLINES_MAX = 65536,
	DEADLINES_REPORT_MAX = 256, /* bytes */
};

struct deadlines_head {
	uint32_t magic, version, count, reserved;
};

struct deadline {
	int32_t pid, tid; /* as the job sees them */
	uint32_t call;	  /* its number: deadlines_is_timed() */
	uint32_t reserved;
	uint64_t left_ns; /* below 2^63 */
};

_Static_assert(sizeof(struct deadlines_head) == 16, "file format");
_Static_assert(sizeof(struct deadline) == 24, "file format");

#define DEADLINES_BYTES_MAX \
	(sizeof(struct deadlines_head) + DEADLINES_MAX * sizeof(struct deadline))

/* Beside the keeper, wherever that is installed; truncated if too long. */
void deadlines_plugin_dir(const char *keeper, char ret_path[PATH_MAX]);
/* One of the calls that the kernel restarts until a deadline: x86-64's number. */
bool deadlines_is_timed(uint32_t call);
/* *ret_deadlines lies in bytes, which must be aligned for it. */
int deadlines_parse(const void *bytes, size_t size, const struct deadline **ret_deadlines,
		    size_t *ret_count) _must_check_;
