// SPDX-License-Identifier: LGPL-2.1-or-later
/* Memory that native does not cover, with the reason by name. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/native/mem_internal.h"

static int refuse(struct native_tree *tree, const struct native_task *task,
		  const struct state_vma *v, const char *what)
{
	return native_fail(tree, -EOPNOTSUPP, "memory at %llx of process %d %s",
			   (unsigned long long)v->start, task->pid, what);
}

static bool starts_with(const char *s, const char *with)
{
	return strncmp(s, with, strlen(with)) == 0;
}

static int check_file(struct native_tree *tree, const struct native_task *task,
		      const struct state_vma *v)
{
	if (starts_with(v->path, "anon_inode:[io_uring]"))
		return refuse(tree, task, v, "is a ring of an io_uring");
	if (starts_with(v->path, "/[aio]"))
		return refuse(tree, task, v, "is a ring of asynchronous I/O");
	if (!S_ISREG(v->mode))
		return refuse(tree, task, v, "is a map of a device or another special file");
	return 0;
}

static int check_vma(struct native_tree *tree, const struct native_task *task,
		     const struct state_vma *v)
{
	if (v->vm_flags & VMA_HUGETLB)
		return refuse(tree, task, v, "is of huge pages (hugetlbfs)");
	if (v->vm_flags & VMA_UFFD_MISSING)
		return refuse(tree, task, v, "is watched by a userfaultfd of the job");
	if (v->vm_flags & VMA_SHADOW_STACK)
		return refuse(tree, task, v, "is a shadow stack");
	if (v->file)
		return check_file(tree, task, v);
	if (v->vm_flags & (VMA_IO | VMA_MIXEDMAP) && !(v->vm_flags & VMA_PFNMAP))
		return refuse(tree, task, v, "belongs to the kernel or a device");
	return 0;
}

static int check_fds(struct native_tree *tree, const struct native_task *task)
{
	for (size_t i = 0; i < task->fd_count; i++) {
		const struct state_fd *f = &task->fds[i];

		if (starts_with(f->path, "anon_inode:[userfaultfd]"))
			return native_fail(tree, -EOPNOTSUPP,
					   "descriptor %d of process %d is a userfaultfd", f->fd,
					   task->pid);
		if (starts_with(f->path, "anon_inode:[io_uring]"))
			return native_fail(tree, -EOPNOTSUPP,
					   "descriptor %d of process %d is an io_uring", f->fd,
					   task->pid);
	}
	return 0;
}

/* Requests in flight write to memory that no fault tells of. */
static int check_rings(struct native_tree *tree, const struct native_task *task)
{
	if (task->state && task->state->aio_contexts)
		return native_fail(tree, -EOPNOTSUPP, "process %d uses asynchronous I/O (io_setup)",
				   task->pid);
	for (size_t i = 0; i < task->thread_count; i++)
		if (task->threads[i].state && task->threads[i].state->io_uring)
			return native_fail(tree, -EOPNOTSUPP,
					   "thread %d of process %d uses io_uring",
					   task->threads[i].tid, task->pid);
	return 0;
}

int mem_check(struct native_tree *tree)
{
	int r = 0;

	for (size_t i = 0; i < tree->task_count && r == 0; i++) {
		const struct native_task *task = &tree->tasks[i];

		if (task->zombie)
			continue;
		r = check_rings(tree, task);
		if (r == 0)
			r = check_fds(tree, task);
		for (size_t k = 0; k < task->vma_count && r == 0; k++)
			r = check_vma(tree, task, &task->vmas[k]);
		if (r == 0 && !tree_is_first_vm(tree, task))
			r = native_fail(tree, -EOPNOTSUPP,
					"process %d shares its memory with another process",
					task->pid);
	}
	return r;
}
