// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Records of the iterators into the tree. Everything here runs in the pause: what is read is
 * copied to the arena, and pointed at.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "agent/native/freeze_internal.h"
#include "agent/native/gentle.h"
#include "agent/native/state_internal.h"
#include "agent/util/io.h"

_Static_assert(sizeof(struct state_thread) % 8 == 0, "records follow each other");
_Static_assert(sizeof(struct state_process) % 8 == 0, "records follow each other");
_Static_assert(sizeof(struct state_vma) % 8 == 0, "records follow each other");
_Static_assert(sizeof(struct state_fd) % 8 == 0, "records follow each other");

static bool is_stopped(const struct native_task *task)
{
	return task->thread_count > 0 && task->threads[0].stopped;
}

/* A thread of the kernel's that the tree does not have: born or ended while nobody stood. */
static int on_stranger(struct native_tree *tree, const struct native_task *task,
		       const struct state_thread *record)
{
	if (!is_stopped(task) || record->exit_state)
		return 0;
	return native_fail(tree, -EAGAIN, "thread %u of process %d was not stopped",
			   record->host_tid, task->pid);
}

static int take_records(struct native_tree *tree, struct native_task *task, uint8_t *records,
			size_t size)
{
	size_t at = 0, hint = 0;

	while (size - at >= sizeof(struct state_thread)) {
		struct state_thread *record = (struct state_thread *)(records + at);
		struct native_thread *thread = task_find_next(task, (pid_t)record->host_tid, &hint);
		int r = 0;

		at += sizeof(*record);
		if (thread) {
			thread->state = record;
			thread->inner_tid = record->tid;
		} else if (record->host_tid != (uint32_t)task->pid) {
			r = on_stranger(tree, task, record);
		}
		if (r < 0)
			return r;
		if (record->host_tid != record->host_tgid)
			continue;
		if (size - at < sizeof(struct state_process))
			return -EBADMSG;
		task->state = (struct state_process *)(records + at);
		at += sizeof(*task->state);
		task->inner_pid = record->tid;
		if (record->exit_state && task->thread_count <= 1)
			task->zombie = true;
		if (!record->exit_state)
			r = state_time_left(tree, (struct state_process *)task->state);
		if (r < 0)
			return r;
	}
	return at == size ? 0 : -EBADMSG;
}

static int copy_records(struct native_state *s, struct native_tree *tree, enum state_iterator kind,
			pid_t pid, bool prepared, uint8_t **ret_copy, size_t *ret_size)
{
	const uint8_t *records;
	uint8_t *copy;
	size_t size;
	int r = state_iterate(s, kind, pid, prepared, &records, &size);

	if (r == -EFBIG)
		return native_fail(tree, -EOPNOTSUPP,
				   "process %d has too many descriptors or mappings", pid);
	if (r < 0)
		return native_fail(tree, r, "reading the state of process %d: %s", pid,
				   strerror(-r));
	copy = arena_alloc(tree->arena, size);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, records, size);
	*ret_copy = copy;
	*ret_size = size;
	return 0;
}

static int collect_threads(struct native_state *s, struct native_tree *tree,
			   struct native_task *task)
{
	uint8_t *records;
	size_t size;
	int r = copy_records(s, tree, ITER_TASKS, task->pid, true, &records, &size);

	if (r == 0)
		r = take_records(tree, task, records, size);
	if (r < 0)
		return r;
	if (!task->state)
		return native_fail(tree, -ESRCH, "process %d has ended", task->pid);
	if (!task->zombie && !task->state->mm)
		return native_fail(tree, -EAGAIN, "process %d is about to end", task->pid);
	for (size_t i = 0; !task->zombie && i < task->thread_count; i++) {
		if (!task->threads[i].state && task->threads[i].stopped)
			return native_fail(tree, -ESRCH, "thread %d of process %d has ended",
					   task->threads[i].tid, task->pid);
	}
	return 0;
}

/* Threads with descriptors of their own come after the process, with its VMAs once more. */
size_t state_part_vmas(struct state_vma *vmas, size_t count)
{
	uint64_t last = 0, end = 0;
	size_t kept = 0;

	for (size_t i = 0; i < count && vmas[i].start >= last; i++) {
		struct state_vma *v = &vmas[kept];

		last = vmas[i].start;
		*v = vmas[i];
		if (v->start < end && v->file)
			v->offset += end - v->start;
		if (v->start < end)
			v->start = end;
		if (v->start >= v->end)
			continue;
		end = v->end;
		kept++;
	}
	return kept;
}

/* The same with their descriptors. */
static size_t count_ascending(const struct state_fd *fds, size_t count)
{
	for (size_t i = 1; i < count; i++) {
		if (fds[i].fd <= fds[i - 1].fd)
			return i;
	}
	return count;
}

static int read_vmas(struct native_state *s, struct native_tree *tree, pid_t pid, bool prepared,
		     const struct state_vma **ret_vmas, size_t *ret_count)
{
	uint8_t *records;
	size_t size;
	int r = copy_records(s, tree, ITER_VMAS, pid, prepared, &records, &size);

	if (r < 0)
		return r;
	if (size % sizeof(struct state_vma) != 0)
		return -EBADMSG;
	*ret_vmas = (const struct state_vma *)records;
	*ret_count = state_part_vmas((struct state_vma *)records, size / sizeof(struct state_vma));
	return 0;
}

static int read_fds(struct native_state *s, struct native_tree *tree, pid_t pid, bool prepared,
		    const struct state_fd **ret_fds, size_t *ret_count)
{
	uint8_t *records;
	size_t size;
	int r = copy_records(s, tree, ITER_FDS, pid, prepared, &records, &size);

	if (r < 0)
		return r;
	if (size % sizeof(struct state_fd) != 0)
		return -EBADMSG;
	*ret_fds = (const struct state_fd *)records;
	*ret_count = count_ascending(*ret_fds, size / sizeof(struct state_fd));
	return 0;
}

int state_read_vmas(struct native_state *s, struct native_tree *tree, pid_t pid,
		    const struct state_vma **ret_vmas, size_t *ret_count)
{
	return read_vmas(s, tree, pid, false, ret_vmas, ret_count);
}

int state_read_fds(struct native_state *s, struct native_tree *tree, pid_t pid,
		   const struct state_fd **ret_fds, size_t *ret_count)
{
	return read_fds(s, tree, pid, false, ret_fds, ret_count);
}

/* We are not among them: our last call is the read(2) of the iterator. */
int state_find_writers(struct native_state *s, bool *ret_any)
{
	const uint8_t *records;
	size_t size;
	int r = state_iterate(s, ITER_WRITERS, 0, false, &records, &size);

	if (r < 0)
		return r;
	*ret_any = size > 0;
	return 0;
}

/* Objects that several tasks share are rare: each task is compared with those before it. */
static struct native_task *first_with(struct native_tree *tree, struct native_task *task,
				      size_t member)
{
	uint64_t object = *(const uint64_t *)((const char *)task->state + member);

	for (struct native_task *t = tree->tasks; t < task; t++) {
		if (!t->zombie && *(const uint64_t *)((const char *)t->state + member) == object)
			return t;
	}
	return task;
}

#define FIRST_WITH(tree, task, member) \
	first_with(tree, task, offsetof(struct state_process, member))

static uint32_t number(const struct native_tree *tree, const struct native_task *first)
{
	return (uint32_t)(first - tree->tasks) + 1;
}

static int collect_objects(struct native_state *s, struct native_tree *tree,
			   struct native_task *task)
{
	struct native_task *vm = FIRST_WITH(tree, task, mm);
	struct native_task *files = FIRST_WITH(tree, task, files);
	int r = 0;

	task->vm_id = number(tree, vm);
	task->files_id = number(tree, files);
	task->fs_id = number(tree, FIRST_WITH(tree, task, fs));
	task->sighand_id = number(tree, FIRST_WITH(tree, task, sighand));
	if (vm == task) {
		r = read_vmas(s, tree, task->pid, true, &task->vmas, &task->vma_count);
	} else {
		task->vmas = vm->vmas;
		task->vma_count = vm->vma_count;
	}
	if (r == 0 && files == task) {
		r = read_fds(s, tree, task->pid, true, &task->fds, &task->fd_count);
	} else if (r == 0) {
		task->fds = files->fds;
		task->fd_count = files->fd_count;
	}
	return r;
}

/* Who has ended meanwhile is the pause's business. */
void state_rehearse(struct native_state *s, struct native_tree *tree)
{
	const uint8_t *records;
	size_t size;

	for (size_t i = 0; i < tree->task_count; i++) {
		if (tree->tasks[i].zombie)
			continue;
		for (int k = 0; k < ITER_KINDS; k++)
			(void)!state_iterate(s, (enum state_iterator)k, tree->tasks[i].pid, true,
					     &records, &size);
	}
	(void)!state_prepare(s, tree);
}

int state_collect(struct native_state *s, struct native_tree *tree)
{
	bool stopped = tree->task_count > 0 && is_stopped(&tree->tasks[0]);
	const char *what;
	int r = 0;

	state_read_clocks(s, tree);
	for (size_t i = 0; r == 0 && i < tree->task_count; i++)
		r = collect_threads(s, tree, &tree->tasks[i]);
	for (size_t i = 0; r == 0 && i < tree->task_count; i++) {
		if (!tree->tasks[i].zombie)
			r = collect_objects(s, tree, &tree->tasks[i]);
	}
	if (r == 0 && tree->task_count > 0 && !tree->tasks[0].zombie &&
	    state_is_foreign(s, tree->tasks[0].state, &what))
		r = native_fail(tree, -EOPNOTSUPP, "process %d is in a %s namespace of its own",
				tree->tasks[0].pid, what);
	if (r == 0 && tree->gentle)
		r = gentle_covers(tree) ? 0 : native_fail(tree, -EAGAIN, "%s", tree->not_gentle);
	else if (r == 0 && stopped)
		r = seccomp_collect(tree);
	/* A first look, while the job runs, has used up what the pause needs. */
	if (r == 0 && !stopped)
		r = state_prepare(s, tree);
	return r;
}
