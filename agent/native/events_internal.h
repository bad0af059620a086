/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What events.c and inotify.c share: state that fdinfo tells in lines "key: value".
 */
#pragma once

#include "agent/native/files_internal.h"

enum {
	EVENTS_FDINFO_MAX = 16 << 20,
	KERNEL_O_LARGEFILE = 0100000, /* 0 in userspace headers */
};

/* What follows "key:" at the start of a line; NULL: there is no such line. */
const char *events_line(const char *text, const char *key);
/* The whole of fdinfo, on the arena. */
int events_read_all(struct native_files *f, struct native_open *o, char **ret_text) _must_check_;

int inotify_collect(struct native_files *f, struct native_open *o) _must_check_;
/* Once all other files are known. */
int inotify_find_paths(struct native_files *f, struct native_open *o) _must_check_;
int inotify_put(struct native_files *f, struct native_open *o, NatFiles__Fown *fown) _must_check_;
