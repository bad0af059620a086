/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Kernel objects that no engine can checkpoint, told by the link of a descriptor below /proc/PID/fd.
 * Not all there are: whatever this does not know is found by the engines, which may have stopped the
 * job by then. Threading: reentrant.
 */
#pragma once

struct unsaved_object {
	const char *link;	   /* how it begins */
	const char *reason, *next; /* "is an io_uring, which cannot be saved", what to do */
};

/* NULL: none that is known. */
const struct unsaved_object *unsaved_object(const char *link);
