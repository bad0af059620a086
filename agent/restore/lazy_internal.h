/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of lazy restore share.
 *
 *   lazy.c        life: plan, thread, end        lazy_faults.c  one address space: faults, events
 *   lazy_images.c the images, cut in two         lazy_map.c     addresses
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "agent/restore/lazy.h"
#include "agent/restore/lazy_images.h"

enum { LAZY_ZERO_MAX = 4096 };

/* A process of the job, as long as something of its memory may be missing. */
struct space {
	int uffd;
	uint32_t file;
	atomic_bool gone; /* it ended, or began another program */
	struct lazy_map map;
	/* Faults of pages that are zero, which could not be answered before an event was read. */
	uint64_t zeros[LAZY_ZERO_MAX];
	size_t zero_count;
};

struct restore_lazy {
	struct lazy_plan plan;
	struct pack_reader *reader;
	struct packer *seed;
	const struct manifest *manifest;
	struct lazy_events events;
	struct keeper *keeper; /* that holds the userfaultfds */
	char *marker;
	int listen, sock, stop_fd;
	atomic_bool complete; /* CRIU is through: all mappings are registered */
	atomic_bool filling;  /* so they are, and nobody can have unmapped any */
	atomic_int error;
	atomic_ullong there;
	pthread_t thread;
	bool threaded, reading; /* the thread, the reader's */
	/*
	 * Written by the thread alone, with this lock. Whoever puts pages in holds it for reading: after
	 * an event was read, no page is put where the event took one away.
	 */
	pthread_rwlock_t lock;
	struct space *spaces[LAZY_SPACES_MAX];
	size_t space_count;
};

/* lazy_faults.c */

/* Takes the uffd and the map. The caller has the lock for writing, or is alone. */
int space_add(struct restore_lazy *lazy, int uffd_take, uint32_t file,
	      struct lazy_map *map_take) _must_check_;
void space_free(struct space *s);
/* All that waits on this uffd: faults are urged or answered, events change the map. */
int space_serve(struct restore_lazy *lazy, struct space *s) _must_check_;
/* The reader's sink. */
int lazy_put(void *ctx, uint32_t file, uint64_t block, uint32_t count, const uint8_t *bytes);
