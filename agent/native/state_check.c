// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What an image of a task cannot say, or what the restorer would not bring back. Each check names
 * the task and the thing; in the pause they only look at what has been read.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "agent/native/state_internal.h"

enum {
	FLAG_EXITING = 0x4,    /* PF_EXITING */
	FLAG_IO_WORKER = 0x10, /* PF_IO_WORKER */
	FEATURE_SHADOW_STACK = 1,
	LABEL_MAX = 256,
};

/* Policies that newer kernels have. */
enum { POLICY_DEADLINE = 6 };

#define REFUSE(tree, ...) native_fail(tree, -EOPNOTSUPP, __VA_ARGS__)

static int check_thread(struct native_tree *tree, const struct native_task *task,
			const struct native_thread *t)
{
	const struct state_thread *s = t->state;
	int tid = t->tid;

	if (s->ptraced && s->ptraced != (uint32_t)getpid())
		return REFUSE(tree, "thread %d is traced by process %d", tid, (int)s->ptraced);
	if (s->flags & FLAG_IO_WORKER)
		return REFUSE(tree, "process %d has a worker of an io_uring", task->pid);
	/* It has let go of them already. Only a look while the job runs can meet such a one. */
	if (s->flags & FLAG_EXITING)
		return t->stopped ? native_fail(tree, -EAGAIN, "thread %d is ending", tid) : 0;
	if (s->files != task->state->files || s->fs != task->state->fs)
		return REFUSE(tree, "thread %d does not share the %s of its process", tid,
			      s->fs != task->state->fs ? "folders" : "descriptors");
	if (s->policy >= POLICY_DEADLINE)
		return REFUSE(tree, "thread %d has scheduling policy %u", tid, s->policy);
	if (s->creds.group_count > STATE_GROUPS_MAX)
		return REFUSE(tree, "thread %d is in more than %d groups", tid, STATE_GROUPS_MAX);
	if (s->seccomp_mode > 2 || s->seccomp_listener)
		return REFUSE(tree, "another process decides on the system calls of thread %d",
			      tid);
	if (s->syscall_dispatch)
		return REFUSE(tree, "thread %d intercepts its own system calls", tid);
	if (s->arch_features & FEATURE_SHADOW_STACK)
		return REFUSE(tree, "thread %d has a shadow stack", tid);
	/* The restorer stops what it makes by this signal, and takes it for its own. */
	if ((s->pending | task->state->shared_pending) >> (SIGTRAP - 1) & 1)
		return REFUSE(tree, "a SIGTRAP waits for thread %d", tid);
	if (s->segments)
		return REFUSE(tree, "thread %d uses segment descriptors", tid);
	return 0;
}

static int check_threads(struct native_tree *tree, const struct native_task *task)
{
	bool leader = false;
	int r = 0;

	for (size_t i = 0; r == 0 && i < task->thread_count; i++) {
		const struct native_thread *t = &task->threads[i];

		/* One that has ended since the list was made. */
		if (!t->state && !t->stopped)
			continue;
		if (!t->state || t->state->exit_state)
			return REFUSE(tree, "thread %d of process %d has ended, others have not",
				      t->tid, task->pid);
		leader = leader || t->tid == task->pid;
		r = check_thread(tree, task, t);
	}
	if (r == 0 && !leader)
		return REFUSE(tree, "the first thread of process %d has ended, others have not",
			      task->pid);
	return r;
}

static int check_shared(struct native_tree *tree, const struct native_task *task)
{
	for (const struct native_task *t = tree->tasks; t < task; t++) {
		const char *what = NULL;

		if (t->zombie)
			continue;
		/* As a rule between vfork(2) and exec: gone when it is looked at again. */
		if (t->vm_id == task->vm_id)
			return native_fail(tree, -EAGAIN, "processes %d and %d share their memory",
					   t->pid, task->pid);
		if (t->fs_id == task->fs_id)
			what = "folders";
		else if (t->sighand_id == task->sighand_id)
			what = "signal handlers";
		if (what)
			return REFUSE(tree, "processes %d and %d share their %s", t->pid, task->pid,
				      what);
	}
	return 0;
}

static int check_namespaces(struct native_tree *tree, const struct native_task *task)
{
	const struct state_process *p = task->state, *root = tree->tasks[0].state;
	const char *what = NULL;

	if (p->ns_pid != root->ns_pid || p->ns_pid_children != p->ns_pid)
		what = "PID";
	else if (p->ns_mnt != root->ns_mnt)
		what = "mount";
	else if (p->ns_net != root->ns_net)
		what = "network";
	else if (p->ns_uts != root->ns_uts)
		what = "UTS";
	else if (p->ns_ipc != root->ns_ipc)
		what = "IPC";
	else if (p->ns_user != root->ns_user)
		what = "user";
	else if (p->ns_cgroup != root->ns_cgroup)
		what = "cgroup";
	else if (p->ns_time != root->ns_time || p->ns_time_children != p->ns_time)
		what = "time";
	if (what)
		return REFUSE(tree, "process %d has a %s namespace of its own", task->pid, what);
	return 0;
}

/* A session is restored by its leader, which forks; others can only be born into it. */
static int check_session(struct native_tree *tree, const struct native_task *task)
{
	const struct state_process *p = task->state;
	const struct native_task *t;

	if (p->sid == 0 || p->pgid == 0)
		return REFUSE(tree, "the leader of process %d's %s is outside of its PID namespace",
			      task->pid, p->sid == 0 ? "session" : "process group");
	if (!task->parent) {
		/* Without a folder of images this is only a question. */
		if (p->sid != task->inner_pid && !tree->shell_job && tree->images >= 0)
			return REFUSE(tree, "process %d is in a session that began outside",
				      task->pid);
		return 0;
	}
	if (p->sid == task->inner_pid || !task->parent->parent)
		return 0;
	for (t = task->parent; t; t = t->parent) {
		if (t->state->sid == p->sid)
			return 0;
	}
	return REFUSE(tree, "the leader of process %d's session has ended", task->pid);
}

/* The label of a security module would be lost. Only before the freeze: it reads a file. */
static int check_label(struct native_tree *tree, const struct native_task *task)
{
	char path[64], label[LABEL_MAX + 1];
	_cleanup_close_ int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/attr/current", task->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, label, LABEL_MAX);
	if (n <= 0)
		return 0;
	label[n] = '\0';
	label[strcspn(label, "\n")] = '\0';
	if (label[0] == '\0' || !strcmp(label, "unconfined") || !strcmp(label, "kernel"))
		return 0;
	return REFUSE(tree, "process %d is confined by a security module (%s)", task->pid, label);
}

/* Whole, not its first thread alone: it can be left out, of a look while the job runs. */
static bool is_ending(const struct native_task *task)
{
	const struct state_process *p = task->state;

	return p->ending && (task->zombie || p->group_exit || p->thread_count <= 1);
}

static int check_zombie(struct native_tree *tree, const struct native_task *task)
{
	if (task->state->ending > 1)
		return native_fail(tree, -EAGAIN, "process %d has been reaped", task->pid);
	return check_session(tree, task);
}

static int check_task(struct native_tree *tree, const struct native_task *task)
{
	const struct state_process *p = task->state;
	bool stopped = tree->tasks[0].thread_count > 0 && tree->tasks[0].threads[0].stopped;
	int r;

	if (!stopped && is_ending(task))
		return 0;
	if (task->zombie)
		return check_zombie(tree, task);
	if (task->inner_pid == 1)
		return REFUSE(tree, "process %d is the init of its PID namespace", task->pid);
	if (p->task_size && p->task_size <= UINT32_MAX)
		return REFUSE(tree, "process %d is a 32-bit program", task->pid);
	if (p->ldt)
		return REFUSE(tree, "process %d has a local descriptor table", task->pid);
	r = check_threads(tree, task);
	if (r == 0)
		r = check_shared(tree, task);
	if (r == 0)
		r = check_namespaces(tree, task);
	if (r == 0)
		r = check_session(tree, task);
	if (r == 0 && !stopped)
		r = check_label(tree, task);
	return r;
}

int state_check(struct native_tree *tree)
{
	int r = 0;

	if (tree->task_count == 0)
		return native_fail(tree, -ESRCH, "there is no process");
	if (tree->tasks[0].zombie)
		return native_fail(tree, -ESRCH, "process %d has ended", tree->tasks[0].pid);
	for (size_t i = 0; r == 0 && i < tree->task_count; i++) {
		if (!tree->tasks[i].state)
			return native_fail(tree, -ESRCH, "process %d: no state of it",
					   tree->tasks[i].pid);
		r = check_task(tree, &tree->tasks[i]);
	}
	return r;
}
