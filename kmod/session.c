// SPDX-License-Identifier: GPL-2.0-only
/*
 * The freeze. Each thread gets a callback that runs before its next return to user mode (task_work),
 * and there it waits. TWA_RESUME leaves alone who sleeps: his callback runs when he has woken up by
 * himself, or when PARK wakes him as a signal would.
 *
 * The tree is walked again and again until nobody new was found after all stood still. Who is born
 * meanwhile gets his callback before he first runs, in the tracepoint of fork(2).
 */
#include "internal.h"

/*
 * Real-time kernels would sleep on our lock in the tracepoint. Without CONFIG_TASKS_RCU
 * synchronize_rcu_tasks() waits for nobody who was preempted in a callback.
 */
#if !defined(CONFIG_X86_64) || !defined(CONFIG_SMP) || defined(CONFIG_PREEMPT_RT) || \
	(defined(CONFIG_PREEMPTION) && !defined(CONFIG_TASKS_RCU))
#error "decamp.ko is for x86-64 with several processors, not real-time, with CONFIG_TASKS_RCU if preemptible"
#endif

#include <linux/delay.h>
#include <linux/hashtable.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/tracepoint.h>
#include <linux/wait.h>

/* "I" in /proc: killable, no load, no hung task. Suspend may come and go meanwhile. */
#define STATE_PARKED (TASK_KILLABLE | TASK_NOLOAD | TASK_FREEZABLE)

#ifndef PF_USER_WORKER /* since 6.4 */
#define PF_USER_WORKER 0
#endif
#define NO_USER_MODE (PF_KTHREAD | PF_IO_WORKER | PF_USER_WORKER)

DEFINE_SPINLOCK(decamp_lock);
static DEFINE_HASHTABLE(members, 12); /* by thread, under decamp_lock */
static atomic_t sessions_count = ATOMIC_INIT(0);
static struct tracepoint *fork_tracepoint;

/* Under decamp_lock. */
static struct member *find_member(const struct task_struct *t)
{
	struct member *m;

	hash_for_each_possible(members, m, by_task, (unsigned long)t)
		if (m->task == t)
			return m;
	return NULL;
}

/* Under decamp_lock. */
static void member_free(struct member *m)
{
	hash_del(&m->by_task);
	put_task_struct(m->task);
	kfree(m);
}

/* The current thread shall end: no user instruction of it will run. */
static bool is_dying(void)
{
	return current->flags & PF_EXITING || fatal_signal_pending(current) ||
	       READ_ONCE(current->signal->flags) & SIGNAL_GROUP_EXIT;
}

/* In the thread. If it need not wait, its callback is over, and m may be gone. */
static bool must_wait(struct member *m)
{
	bool must;

	spin_lock(&decamp_lock);
	must = m->session && !m->session->over && !is_dying();
	m->switches = current->nvcsw;
	smp_store_release(&m->parked, must); /* pairs with state_of() */
	m->queued = must;
	if (!must && !m->session)
		member_free(m);
	spin_unlock(&decamp_lock);
	return must;
}

/* In the thread. When it wakes up the next session may have taken over already. */
static void park(struct callback_head *callback)
{
	struct member *m = container_of(callback, struct member, callback);

	for (;;) {
		set_current_state(STATE_PARKED);
		if (!must_wait(m))
			break;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
	module_put(THIS_MODULE); /* session_exit() waits until we are out of here */
}

/* 1: added, 0: known. Under decamp_lock. t is held by RCU, or has not run yet. */
static int add_thread(struct session *s, struct task_struct *t)
{
	struct member *m = find_member(t);

	if (s->over)
		return -EOWNERDEAD;
	if (t->flags & NO_USER_MODE || is_global_init(t))
		return -EOPNOTSUPP;
	if (m && m->session)
		return m->session == s ? 0 : -EBUSY;
	if (!m) {
		m = kzalloc(sizeof(*m), GFP_ATOMIC | __GFP_NOWARN);
		if (!m)
			return -ENOMEM;
		m->task = get_task_struct(t);
		hash_add(members, &m->by_task, (unsigned long)t);
		init_task_work(&m->callback, park);
		/* The callback may begin at once; it waits for the lock. Refused: as good as ended. */
		m->queued = task_work_add(t, &m->callback, TWA_RESUME) == 0;
		if (m->queued)
			__module_get(THIS_MODULE);
	}
	m->session = s;
	m->parked = false; /* one that was just thawed wakes up once more */
	list_add_tail_rcu(&m->node, &s->members);
	return 1;
}

/* Number of threads added. Under RCU. */
static int add_process(struct session *s, struct task_struct *p)
{
	struct task_struct *t;
	int added = 0, r;

	if (same_thread_group(p, current))
		return -EDEADLK;
	for_each_thread(p, t) {
		spin_lock(&decamp_lock);
		r = add_thread(s, t);
		spin_unlock(&decamp_lock);
		if (r < 0)
			return r;
		added += r;
	}
	return added;
}

static struct member *member_of(struct session *s, const struct task_struct *t)
{
	struct member *m;

	spin_lock(&decamp_lock);
	m = find_member(t);
	if (m && m->session != s)
		m = NULL;
	spin_unlock(&decamp_lock);
	return m;
}

/*
 * Number of threads added. A process is in the tree if its main thread is, or the thread that is its
 * parent now. The root goes by its number: exec(2) may give that to another thread.
 */
static int scan(struct session *s, pid_t root)
{
	struct task_struct *p;
	int added = 0, r = -ESRCH;

	rcu_read_lock();
	for_each_process(p) {
		if (task_tgid_vnr(p) != root && !member_of(s, p) &&
		    !member_of(s, rcu_dereference(p->real_parent)))
			continue;
		r = add_process(s, p);
		if (r < 0)
			break;
		added += r;
	}
	rcu_read_unlock();
	return r < 0 ? r : added;
}

static bool all_stand(struct session *s)
{
	struct member *m;

	list_for_each_entry_rcu(m, &s->members, node, true)
		if (state_of(m) > DECAMP_GONE)
			return false;
	return true;
}

/*
 * Until m is parked, or, without m, until all stand. Who falls asleep in the kernel tells nobody: so we
 * look, less and less often.
 */
static int wait_for(struct session *s, const struct member *m, ktime_t end)
{
	unsigned int us = 10;

	while (m ? state_of(m) != DECAMP_PARKED : !all_stand(s)) {
		if (m && !READ_ONCE(m->queued))
			return -ESRCH;
		if (fatal_signal_pending(current))
			return -EINTR;
		if (READ_ONCE(s->over))
			return -EOWNERDEAD;
		if (ktime_after(ktime_get(), end))
			return -ETIMEDOUT;
		usleep_range(us, 2 * us);
		us = min(us * 2, 500U);
	}
	return 0;
}

static void thaw(struct session *s)
{
	struct member *m;

	spin_lock(&decamp_lock);
	if (!s->over)
		atomic_dec(&sessions_count);
	WRITE_ONCE(s->over, true);
	list_for_each_entry(m, &s->members, node)
		if (m->parked)
			wake_up_process(m->task);
	spin_unlock(&decamp_lock);
}

static void lease_over(struct work_struct *work)
{
	thaw(container_of(to_delayed_work(work), struct session, lease));
}

struct session *session_freeze(const struct decamp_freeze *args)
{
	ktime_t end = ktime_add_ms(ktime_get(), args->timeout_ms);
	struct session *s;
	int r;

	if (args->pid <= 0 || args->lease_ms < DECAMP_LEASE_MS_MIN ||
	    args->lease_ms > DECAMP_LEASE_MS_MAX)
		return ERR_PTR(-EINVAL);
	s = kzalloc(sizeof(*s), GFP_KERNEL_ACCOUNT);
	if (!s)
		return ERR_PTR(-ENOMEM);
	INIT_LIST_HEAD(&s->members);
	INIT_DELAYED_WORK(&s->lease, lease_over);
	atomic_inc(&sessions_count);
	schedule_delayed_work(&s->lease, msecs_to_jiffies(args->lease_ms));
	while ((r = scan(s, args->pid)) > 0) {
		r = wait_for(s, NULL, end);
		if (r)
			break;
	}
	/* At the end of the time the caller decides, by what the threads do. */
	if (!r || r == -ETIMEDOUT)
		return s;
	session_release(s);
	return ERR_PTR(r);
}

void session_release(struct session *s)
{
	struct member *m, *next;

	cancel_delayed_work_sync(&s->lease);
	thaw(s);
	spin_lock(&decamp_lock);
	list_for_each_entry_safe(m, next, &s->members, node) {
		m->session = NULL;
		if (!m->queued)
			member_free(m);
	}
	spin_unlock(&decamp_lock);
	kfree(s);
}

struct member *session_find(struct session *s, pid_t tid)
{
	struct task_struct *t;
	struct member *m;

	rcu_read_lock();
	t = pid_task(find_vpid(tid), PIDTYPE_PID);
	m = t ? member_of(s, t) : NULL;
	rcu_read_unlock();
	return m;
}

/* What task_work_add() does with TWA_SIGNAL, for a callback that is queued already. */
static void wake(struct task_struct *t)
{
	struct wait_queue_entry entry = { .private = t };

	set_tsk_thread_flag(t, TIF_NOTIFY_SIGNAL);
	if (!default_wake_function(&entry, TASK_INTERRUPTIBLE, 0, NULL))
		kick_process(t);
}

int session_park(struct session *s, const struct decamp_park *args)
{
	ktime_t end = ktime_add_ms(ktime_get(), args->timeout_ms);
	struct member *m = session_find(s, args->tid);

	if (!m)
		return -ESRCH;
	if (state_of(m) != DECAMP_PARKED)
		wake(m->task);
	return wait_for(s, m, end);
}

/* In the parent, before the child first runs. */
static void on_fork(void *unused, struct task_struct *parent, struct task_struct *child)
{
	struct member *m;

	if (!atomic_read(&sessions_count))
		return;
	spin_lock(&decamp_lock);
	m = find_member(parent);
	if (m && m->session && add_thread(m->session, child) < 0)
		WRITE_ONCE(m->session->missed, true);
	spin_unlock(&decamp_lock);
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
