/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the module share.
 *
 *   session --> member (one per thread) <--> hold (its callback in the thread) --> thread
 *
 * A member lives as long as its session's file. A hold lives as long as its callback is queued in
 * the thread or runs there: nothing exported takes a callback back, so the hold of a thread that goes on
 * sleeping outlives its session, and the next session takes it over.
 *
 * decamp_lock guards the links between members and holds and the tables; it is innermost but for the
 * scheduler's own. While member->hold is set, its thread can neither end nor reach user mode: on its way
 * it must pass through the callback, which takes the lock.
 */
#pragma once

#include <linux/hashtable.h>
#include <linux/kref.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "uapi/decamp.h"

struct hold;

struct member {
	struct list_head node; /* session->members */
	struct hlist_node by_task, by_group;
	struct session *session;
	struct task_struct *task; /* a reference */
	struct hold *hold;	  /* under decamp_lock */
	bool parked, worker, dying;
};

struct session {
	struct kref ref;	  /* the file, and threads parked in it */
	struct list_head members; /* grows only, until the file is released */
	unsigned int members_count;
	bool plain, over, missed;
	wait_queue_head_t thaw;
	struct delayed_work lease;
	DECLARE_HASHTABLE(by_task, 8);
	DECLARE_HASHTABLE(by_group, 6); /* one member for each process */
};

extern spinlock_t decamp_lock;

/* session.c */
int session_init(void);
void session_exit(void);
unsigned int session_pending(void);
struct session *session_create(u32 flags);
/* Thaws, frees; for the file's release. */
void session_release(struct session *s);
void session_lease(struct session *s, u32 lease_ms);
int session_freeze(struct session *s, const s32 *roots, struct decamp_freeze *args);
int session_park(struct session *s, pid_t tid, u32 timeout_ms);
/* Valid until the session is released; NULL: none such. */
struct member *session_find(struct session *s, pid_t tid);

/* state.c */
enum decamp_state state_of(const struct member *m);
void state_count(struct session *s, struct decamp_counts *ret_counts);
int state_threads(struct session *s, struct decamp_threads *args);
int state_xstate(struct session *s, struct decamp_xstate *args);

/* uffd.c; flags: of these only */
#define DECAMP_UFFD_FLAGS (O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)
int uffd_create(const struct decamp_uffd *args);
