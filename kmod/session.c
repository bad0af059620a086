// SPDX-License-Identifier: GPL-2.0-only
/*
 * The freeze. Each thread gets a callback that runs before its next return to user mode (task_work),
 * and there it waits. TWA_RESUME leaves alone who sleeps: his callback runs when he has woken up by
 * himself. TWA_SIGNAL, for plain freezes and PARK, wakes him as a signal would.
 *
 * The tree is walked again and again until nobody new was found after all stood still. Who is born
 * meanwhile gets his callback before he first runs, in the tracepoint of fork(2).
 */
#include "internal.h"

#ifdef CONFIG_PREEMPT_RT
#error "decamp.ko takes sleeping locks in a tracepoint: not for real-time kernels"
#endif
/* Without it synchronize_rcu_tasks() waits for nobody who was preempted in a callback. */
#if defined(CONFIG_PREEMPTION) && !defined(CONFIG_TASKS_RCU)
#error "decamp.ko cannot be unloaded safely from a preemptible kernel without CONFIG_TASKS_RCU"
#endif

#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/task_work.h>
#include <linux/tracepoint.h>

/* "I" in /proc: killable, no load, no hung task. Suspend may come and go meanwhile. */
#define STATE_PARKED (TASK_KILLABLE | TASK_NOLOAD | TASK_FREEZABLE)

#ifndef PF_USER_WORKER /* since 6.4 */
#define PF_USER_WORKER 0
#endif

struct hold {
	struct callback_head callback;
	struct hlist_node node;	  /* in holds */
	struct task_struct *task; /* no reference: the callback runs before it can end */
	struct member *member;	  /* NULL: its session is over */
};

/* Does nothing; queued with TWA_SIGNAL it makes a sleeper come and find the other one. */
struct nudge {
	struct callback_head callback;
};

DEFINE_SPINLOCK(decamp_lock);
static DEFINE_HASHTABLE(holds, 10); /* by thread, under decamp_lock */
static unsigned int holds_count;
static atomic_t sessions_count = ATOMIC_INIT(0);
static struct tracepoint *fork_tracepoint;

static struct hold *find_hold(const struct task_struct *t)
{
	struct hold *h;

	hash_for_each_possible(holds, h, node, (unsigned long)t)
		if (h->task == t)
			return h;
	return NULL;
}

static struct member *find_member(struct session *s, const struct task_struct *t)
{
	struct member *m;

	hash_for_each_possible(s->by_task, m, by_task, (unsigned long)t)
		if (m->task == t)
			return m;
	return NULL;
}

static bool has_group(struct session *s, const struct signal_struct *group)
{
	struct member *m;

	hash_for_each_possible(s->by_group, m, by_group, (unsigned long)group)
		if (m->task->signal == group)
			return true;
	return false;
}

static void session_free(struct kref *ref)
{
	kfree(container_of(ref, struct session, ref));
}

/* The current thread shall end: no user instruction of it will run. */
static bool is_dying(void)
{
	return current->flags & PF_EXITING || fatal_signal_pending(current) ||
	       READ_ONCE(current->signal->flags) & SIGNAL_GROUP_EXIT;
}

/* The session to wait for, or NULL: h is out of the table then, and nobody else knows it. */
static struct session *hold_enter(struct hold *h)
{
	struct session *s = NULL;
	struct member *m;

	spin_lock(&decamp_lock);
	m = h->member;
	if (m && !is_dying()) {
		m->parked = true;
		s = m->session;
		kref_get(&s->ref);
	} else {
		if (m) {
			m->parked = false;
			m->dying = true;
			m->hold = NULL;
		}
		hash_del(&h->node);
		holds_count--;
	}
	spin_unlock(&decamp_lock);
	return s;
}

/* In the thread. When it wakes up the next session may have taken over its hold already. */
static void park(struct callback_head *callback)
{
	struct hold *h = container_of(callback, struct hold, callback);
	struct session *s;

	while ((s = hold_enter(h))) {
		DEFINE_WAIT(wait);

		for (;;) {
			prepare_to_wait(&s->thaw, &wait, STATE_PARKED);
			if (READ_ONCE(s->over) || is_dying())
				break;
			schedule();
		}
		finish_wait(&s->thaw, &wait);
		kref_put(&s->ref, session_free);
	}
	kfree(h);
	module_put(THIS_MODULE); /* session_exit() waits until we are out of here */
}

static void nudged(struct callback_head *callback)
{
	kfree(container_of(callback, struct nudge, callback));
	module_put(THIS_MODULE);
}

/* 0 also if the thread is ending. */
static int nudge(struct task_struct *t, gfp_t gfp)
{
	struct nudge *n = kmalloc(sizeof(*n), gfp);

	if (!n)
		return -ENOMEM;
	init_task_work(&n->callback, nudged);
	__module_get(THIS_MODULE);
	if (task_work_add(t, &n->callback, TWA_SIGNAL) < 0)
		nudged(&n->callback);
	return 0;
}

/* Under decamp_lock. Takes *new_hold if it was needed. */
static int take_hold(struct session *s, struct member *m, struct hold **new_hold)
{
	struct hold *h = find_hold(m->task);

	if (h && h->member)
		return -EBUSY;
	if (h) {
		int r = s->plain ? nudge(m->task, GFP_ATOMIC | __GFP_NOWARN) : 0;

		if (r < 0)
			return r;
	} else {
		h = *new_hold;
		init_task_work(&h->callback, park);
		/* The callback may begin at once; it waits for the lock. */
		if (task_work_add(m->task, &h->callback, s->plain ? TWA_SIGNAL : TWA_RESUME) < 0)
			return 0; /* it is past all of its callbacks: it has as good as ended */
		__module_get(THIS_MODULE);
		h->task = m->task;
		hash_add(holds, &h->node, (unsigned long)h->task);
		holds_count++;
		*new_hold = NULL;
	}
	h->member = m;
	m->hold = h;
	return 0;
}

/* Under decamp_lock. Takes *new_member if the thread is a new one: returns 1. */
static int attach(struct session *s, struct task_struct *t, struct member **new_member,
		  struct hold **new_hold)
{
	struct member *m = *new_member;
	int r;

	if (s->over)
		return -EOWNERDEAD;
	if (find_member(s, t))
		return 0;
	if (s->members_count == DECAMP_THREADS_MAX)
		return -E2BIG;
	m->session = s;
	m->task = t;
	m->worker = t->flags & (PF_IO_WORKER | PF_USER_WORKER);
	r = m->worker ? 0 : take_hold(s, m, new_hold);
	if (r < 0)
		return r;
	get_task_struct(t);
	if (!has_group(s, t->signal))
		hash_add(s->by_group, &m->by_group, (unsigned long)t->signal);
	hash_add(s->by_task, &m->by_task, (unsigned long)t);
	list_add_tail_rcu(&m->node, &s->members);
	s->members_count++;
	*new_member = NULL;
	return 1;
}

/* 1: added, 0: known. t is held by RCU, or has not run yet. */
static int add_thread(struct session *s, struct task_struct *t)
{
	struct member *m;
	struct hold *h;
	bool known;
	int r;

	spin_lock(&decamp_lock);
	known = find_member(s, t);
	spin_unlock(&decamp_lock);
	if (known)
		return 0;
	m = kzalloc(sizeof(*m), GFP_ATOMIC | __GFP_NOWARN);
	h = kzalloc(sizeof(*h), GFP_ATOMIC | __GFP_NOWARN);
	r = -ENOMEM;
	if (m && h) {
		spin_lock(&decamp_lock);
		r = attach(s, t, &m, &h);
		spin_unlock(&decamp_lock);
	}
	kfree(m);
	kfree(h);
	return r;
}

/* Number of threads added. Under RCU. */
static int add_process(struct session *s, struct task_struct *p)
{
	struct task_struct *t;
	int added = 0, r;

	if (p->flags & PF_KTHREAD || is_global_init(p))
		return -EINVAL;
	if (same_thread_group(p, current))
		return -EDEADLK;
	for_each_thread(p, t) {
		r = add_thread(s, t);
		if (r < 0)
			return r;
		added += r;
	}
	return added;
}

static int add_roots(struct session *s, const s32 *roots, u32 count)
{
	int r = 0;

	for (u32 i = 0; r >= 0 && i < count; i++) {
		struct pid *pid = find_get_pid(roots[i]);
		struct task_struct *p = get_pid_task(pid, PIDTYPE_TGID);

		put_pid(pid);
		if (!p)
			return -ESRCH;
		rcu_read_lock();
		r = add_process(s, p);
		rcu_read_unlock();
		put_task_struct(p);
	}
	return r;
}

/* A thread is its process's: whichever of them is the parent now. */
static bool is_below(struct session *s, struct task_struct *p)
{
	bool is;

	spin_lock(&decamp_lock);
	is = has_group(s, p->signal) || has_group(s, rcu_dereference(p->real_parent)->signal);
	spin_unlock(&decamp_lock);
	return is;
}

/* Number of threads added. */
static int scan(struct session *s)
{
	struct task_struct *p;
	int added = 0, r;

	rcu_read_lock();
	for_each_process(p) {
		if (!is_below(s, p))
			continue;
		r = add_process(s, p);
		if (r < 0) {
			added = r;
			break;
		}
		added += r;
	}
	rcu_read_unlock();
	return added;
}

/* Who falls asleep in the kernel tells nobody: so we look, less and less often. */
static int wait_to_look(struct session *s, ktime_t end, unsigned int *us)
{
	if (fatal_signal_pending(current))
		return -EINTR;
	if (READ_ONCE(s->over))
		return -EOWNERDEAD;
	if (ktime_after(ktime_get(), end))
		return -ETIMEDOUT;
	usleep_range(*us, 2 * *us);
	*us = min(*us * 2, 500U);
	return 0;
}

/* 0: all stand still. */
static int settle(struct session *s, ktime_t end, struct decamp_counts *counts)
{
	unsigned int us = 10;
	int r;

	do {
		state_count(s, counts);
		if (!counts->running && !counts->blocked)
			return 0;
		r = wait_to_look(s, end, &us);
	} while (!r);
	return r;
}

int session_freeze(struct session *s, const s32 *roots, struct decamp_freeze *args)
{
	ktime_t end = ktime_add_ms(ktime_get(), args->timeout_ms);
	int r = add_roots(s, roots, args->roots_count);

	while (r >= 0) {
		r = scan(s);
		args->passes++;
		if (r < 0 || (!r && args->passes > 1))
			break;
		r = settle(s, end, &args->counts);
	}
	/* At the end of the time the caller decides, by the counts. */
	return r == -ETIMEDOUT ? 0 : r;
}

struct member *session_find(struct session *s, pid_t tid)
{
	struct pid *pid = find_get_pid(tid);
	struct task_struct *t = get_pid_task(pid, PIDTYPE_PID);
	struct member *m = NULL;

	put_pid(pid);
	if (!t)
		return NULL;
	spin_lock(&decamp_lock);
	m = find_member(s, t);
	spin_unlock(&decamp_lock);
	put_task_struct(t);
	return m;
}

int session_park(struct session *s, pid_t tid, u32 timeout_ms)
{
	ktime_t end = ktime_add_ms(ktime_get(), timeout_ms);
	struct member *m = session_find(s, tid);
	enum decamp_state state;
	unsigned int us = 10;
	int r;

	if (!m)
		return -ESRCH;
	if (m->worker)
		return -EINVAL;
	r = state_of(m) == DECAMP_PARKED ? 0 : nudge(m->task, GFP_KERNEL);
	while (!r) {
		state = state_of(m);
		if (state == DECAMP_PARKED)
			break;
		r = state == DECAMP_GONE ? -ESRCH : wait_to_look(s, end, &us);
	}
	return r;
}

static void thaw(struct session *s)
{
	struct member *m;

	spin_lock(&decamp_lock);
	if (!s->over)
		atomic_dec(&sessions_count);
	WRITE_ONCE(s->over, true);
	list_for_each_entry(m, &s->members, node) {
		if (m->hold)
			m->hold->member = NULL;
		m->hold = NULL;
	}
	spin_unlock(&decamp_lock);
	wake_up_all(&s->thaw);
}

static void lease_over(struct work_struct *work)
{
	thaw(container_of(to_delayed_work(work), struct session, lease));
}

void session_lease(struct session *s, u32 lease_ms)
{
	mod_delayed_work(system_wq, &s->lease, msecs_to_jiffies(lease_ms));
}

struct session *session_create(u32 flags)
{
	struct session *s = kzalloc(sizeof(*s), GFP_KERNEL_ACCOUNT);

	if (!s)
		return NULL;
	kref_init(&s->ref);
	INIT_LIST_HEAD(&s->members);
	init_waitqueue_head(&s->thaw);
	INIT_DELAYED_WORK(&s->lease, lease_over);
	s->plain = flags & DECAMP_FREEZE_PLAIN;
	atomic_inc(&sessions_count);
	return s;
}

void session_release(struct session *s)
{
	struct member *m, *next;

	cancel_delayed_work_sync(&s->lease);
	thaw(s);
	list_for_each_entry_safe(m, next, &s->members, node) {
		put_task_struct(m->task);
		kfree(m);
	}
	kref_put(&s->ref, session_free);
}

/* In the parent, before the child first runs. */
static void on_fork(void *unused, struct task_struct *parent, struct task_struct *child)
{
	struct session *s = NULL;
	struct hold *h;
	int r;

	if (!atomic_read(&sessions_count))
		return;
	spin_lock(&decamp_lock);
	h = find_hold(parent);
	if (h && h->member) {
		s = h->member->session;
		kref_get(&s->ref);
	}
	spin_unlock(&decamp_lock);
	if (!s)
		return;
	r = add_thread(s, child);
	if (r < 0 && r != -EOWNERDEAD)
		WRITE_ONCE(s->missed, true);
	kref_put(&s->ref, session_free);
}

unsigned int session_pending(void)
{
	return READ_ONCE(holds_count);
}

static void find_fork(struct tracepoint *tp, void *unused)
{
	if (!strcmp(tp->name, "sched_process_fork"))
		fork_tracepoint = tp;
}

int session_init(void)
{
	for_each_kernel_tracepoint(find_fork, NULL);
	if (!fork_tracepoint)
		return -ENOENT;
	return tracepoint_probe_register(fork_tracepoint, on_fork, NULL);
}

void session_exit(void)
{
	tracepoint_probe_unregister(fork_tracepoint, on_fork, NULL);
	tracepoint_synchronize_unregister();
	/* A callback that gave back the module may have been preempted before its last instruction. */
	synchronize_rcu_tasks();
}
