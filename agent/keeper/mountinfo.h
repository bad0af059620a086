/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The mounts of this process that can be seen, parents before children, each path once.
 * Part of the keeper program. Limits: MOUNTINFO_ROWS_MAX rows; later ones are left out.
 * Source: proc_pid_mountinfo(5).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "agent/util/cleanup.h"

enum { MOUNTINFO_ROWS_MAX = 1024 };

struct mountinfo_row {
	int id;
	unsigned long flags; /* MS_NOSUID | MS_NODEV | MS_NOEXEC as far as set */
	char *path;
	char type[32];
};

/* In a row's type: not the host's, but wanted. */
#define MOUNTINFO_TYPE_OVERLAY "(overlay)"

struct mountinfo {
	size_t count;
	struct mountinfo_row *rows;
};

int mountinfo_read(struct mountinfo *ret_table) _must_check_;
/* Adds a mount point that must get an overlay, whatever the host has there. */
int mountinfo_add(struct mountinfo *table, const char *path, unsigned long flags) _must_check_;
void mountinfo_deinit(struct mountinfo *table);

enum mountinfo_class {
	MOUNT_CLASS_LOCAL,    /* gets an overlay */
	MOUNT_CLASS_NETWORK,  /* passes through, writable */
	MOUNT_CLASS_READONLY, /* shown read-only */
	MOUNT_CLASS_SKIP,
};
enum mountinfo_class mountinfo_classify(const struct mountinfo_row *row);

/* True for path itself and what is beneath it. An empty folder holds nothing. */
bool path_is_below(const char *path, const char *folder);
