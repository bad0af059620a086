/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the module share.
 *
 *   session --> member, one per thread, with the callback that is queued in it --> thread
 *
 * A member belongs to its session until the session's file is released, and to its callback until that
 * has run; the later of the two frees it. Nothing exported takes a callback back, so that of a thread
 * that goes on sleeping outlives its session, and the next session takes the member over.
 *
 * decamp_lock guards the members and their table; it is innermost but for the scheduler's own. While
 * member->queued is set, its thread can neither end nor reach user mode: on its way it must pass through
 * the callback, which takes the lock.
 */
#pragma once

#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/task_work.h>
#include <linux/workqueue.h>

#include "uapi/decamp.h"

struct session {
	struct list_head members; /* grows only, until the file is released */
	struct delayed_work lease;
	bool over, missed;
};

struct member {
	struct callback_head callback;
	struct hlist_node by_task;
	struct list_head node;	  /* session->members */
	struct session *session;  /* NULL: released */
	struct task_struct *task; /* a reference */
	bool queued, parked;
	unsigned long switches; /* voluntary ones, before it parked */
};

extern spinlock_t decamp_lock;

/* session.c */
int session_init(void);
void session_exit(void);
struct session *session_freeze(const struct decamp_freeze *args);
/* Thaws, frees; for the file's release. */
void session_release(struct session *s);
int session_park(struct session *s, const struct decamp_park *args);
/* Valid until the session is released; NULL: none such. */
struct member *session_find(struct session *s, pid_t tid);

/* state.c */
enum decamp_state state_of(const struct member *m);
int state_threads(struct session *s, const struct decamp_threads *args);
int state_xstate(struct session *s, const struct decamp_xstate *args);

/* uffd.c */
int uffd_create(const struct decamp_uffd *args);
