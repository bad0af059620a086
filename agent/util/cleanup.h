/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Scope guards: a resource is released when its variable leaves the scope.
 * Source: the habit of drgn's cleanup.h and systemd's macro.h, written anew.
 */
#pragma once

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))
#define _must_check_ __attribute__((warn_unused_result))
#define _printf_(a, b) __attribute__((format(printf, a, b)))

static inline void freep(void *p)
{
	free(*(void **)p);
}

static inline void close_fdp(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void fclosep(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void closedirp(DIR **d)
{
	if (*d)
		closedir(*d);
}

#define _cleanup_free_ _cleanup_(freep)
#define _cleanup_close_ _cleanup_(close_fdp)
#define _cleanup_fclose_ _cleanup_(fclosep)
#define _cleanup_closedir_ _cleanup_(closedirp)

/* Hand a guarded value on: the guard lets go of it. */
#define take_fd(fd)                 \
	({                          \
		int *_fdp = &(fd);  \
		int _taken = *_fdp; \
		*_fdp = -1;         \
		_taken;             \
	})
#define take_ptr(p)                        \
	({                                 \
		__auto_type _pp = &(p);    \
		__auto_type _taken = *_pp; \
		*_pp = NULL;               \
		_taken;                    \
	})

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
