/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Mappings of a newer kernel, as this one can have them. Threading: none.
 */
#pragma once

#include <stdbool.h>

#include "agent/util/cleanup.h"

/* Does this kernel have memory that it may drop (MAP_DROPPABLE, Linux 6.11)? */
bool maps_have_droppable(void);
/*
 * In the mm images of this folder memory that may be dropped becomes ordinary memory: it is never
 * dropped, which its user cannot tell. The C library keeps there what it draws random numbers from
 * (glibc 2.41), zeros after a restore, and asks the kernel again. -EBADMSG for images that make no
 * sense; what was rewritten before an error stays so.
 */
int maps_undrop(int images_fd) _must_check_;
