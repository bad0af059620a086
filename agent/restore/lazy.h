/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A restored job runs before its memory is there.
 *
 *   images --lazy_plan_make--> small pages-N.img, pagemap with holes | which block lies where
 *   CRIU --lazy-pages.socket--> pid, userfaultfd (one per process)
 *   page fault -> reader_urge(); reader -> UFFDIO_COPY; after CRIU's end the rest in the background
 *
 * What is lazy: private anonymous mappings of at least LAZY_PAGES_MIN pages, but stacks and locked
 * memory. Pages that are zero come as zeros when they are touched.
 *
 * Never a wrong byte: a page is put in only after its frame has authenticated; where none can be
 * had the process waits. The keeper holds the userfaultfds too, so that the end of decampd cannot
 * turn missing pages into zeros: it freezes the job then, which is restored anew. The marker
 * LAZY_MARKER in the job's state folder says that a job is not all there.
 *
 * Threading: one thread of its own for faults and events, and the reader's; the functions here
 * belong to the job's thread. Source: userfaultfd(2), ioctl_userfaultfd(2), CRIU 4.2's uffd.c (the
 * socket's protocol).
 */
#pragma once

#include "agent/keeper/keeper.h"
#include "agent/pack/reader.h"

enum {
	LAZY_PAGES_MIN = 256,	/* smaller mappings are restored at once */
	LAZY_SPACES_MAX = 4096, /* processes, those forked meanwhile included */
};

#define LAZY_MARKER "lazy"

/* What is told, and asked, while memory comes; from any thread. */
struct lazy_events {
	/* Nobody gives a pack (error < 0); somebody does again (0). */
	void (*starved)(void *ctx, int error);
	/* restore_lazy_wait() has an answer. Must not call anything of here. */
	void (*finished)(void *ctx);
	void *ctx;
};

struct restore_lazy;

/* 1: the job is all there; 0: not yet; < 0: it never will be, end it. timeout_ms < 0: for ever. */
int restore_lazy_wait(struct restore_lazy *lazy, int timeout_ms) _must_check_;
/* Bytes that are there and that there will be. */
void restore_lazy_progress(struct restore_lazy *lazy, uint64_t *ret_done, uint64_t *ret_total);
/*
 * Once it is all there (restore_lazy_wait() said 1): lets go of the job's memory, completes the
 * seed. Else the job must be dead by now. NULL is allowed. Frees.
 */
void restore_lazy_end(struct restore_lazy *lazy);
/* decampd ends before that: the keeper freezes the job and lets nobody take it for whole. Frees. */
void restore_lazy_leave(struct restore_lazy *lazy);
/* Is what lies in state_dir a job that was not all there when decampd ended? */
bool restore_is_partial(const char *state_dir);
