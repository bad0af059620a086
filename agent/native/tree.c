/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "agent/native/tree.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>

#include "agent/native/freeze_internal.h"

enum {
	ARENA_ALIGN = 64,
	ARENA_CHUNK_MIN = 1 << 20,
	ROOM_MIN = 16,
};

/* One mapping; the first bytes of it are this. */
struct arena_chunk {
	struct arena_chunk *next;
	size_t size, used;
};

struct native_arena {
	struct arena_chunk *first, *current;
};

static size_t round_up(size_t n, size_t to)
{
	return (n + to - 1) & ~(to - 1);
}

/* Touched and, if the rights are there, locked: no page fault in a pause. */
static struct arena_chunk *chunk_create(size_t bytes)
{
	size_t size = round_up(bytes + ARENA_ALIGN, ARENA_CHUNK_MIN);
	struct arena_chunk *c;

	c = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1,
		 0);
	if (c == MAP_FAILED)
		return NULL;
	(void)mlock(c, size);
	c->size = size;
	c->used = ARENA_ALIGN;
	return c;
}

int arena_create(size_t bytes, struct native_arena **ret_arena)
{
	_cleanup_free_ struct native_arena *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	if (bytes > SIZE_MAX / 2)
		return -EINVAL;
	a->first = a->current = chunk_create(bytes);
	if (!a->first)
		return -ENOMEM;
	*ret_arena = take_ptr(a);
	return 0;
}

void arena_destroy(struct native_arena *a)
{
	struct arena_chunk *c, *next;

	if (!a)
		return;
	for (c = a->first; c; c = next) {
		next = c->next;
		munmap(c, c->size);
	}
	free(a);
}

/* Cleared here and not when memory is given out: this is never called in a pause. */
void arena_reset(struct native_arena *a)
{
	struct arena_chunk *c;

	for (c = a->first; c; c = c->next) {
		memset((char *)c + ARENA_ALIGN, 0, c->used - ARENA_ALIGN);
		c->used = ARENA_ALIGN;
	}
	a->current = a->first;
}

void *arena_alloc(struct native_arena *a, size_t size)
{
	struct arena_chunk *c = a->current;
	void *p;

	if (size > SIZE_MAX / 2)
		return NULL;
	size = round_up(size ? size : 1, ARENA_ALIGN);
	while (c->size - c->used < size) {
		if (!c->next)
			c->next = chunk_create(size);
		if (!c->next)
			return NULL;
		a->current = c = c->next;
	}
	p = (char *)c + c->used;
	c->used += size;
	return p;
}

int native_fail(struct native_tree *tree, int r, const char *fmt, ...)
{
	va_list ap;

	if (!tree->reason || tree->reason[0])
		return r;
	va_start(ap, fmt);
	vsnprintf(tree->reason, NATIVE_REASON_MAX, fmt, ap);
	va_end(ap);
	return r;
}

struct native_task *tree_find(const struct native_tree *tree, pid_t pid)
{
	for (size_t i = 0; i < tree->task_count; i++)
		if (tree->tasks[i].pid == pid)
			return &tree->tasks[i];
	return NULL;
}

struct native_task *tree_find_inner(const struct native_tree *tree, pid_t inner_pid)
{
	for (size_t i = 0; i < tree->task_count; i++)
		if (tree->tasks[i].inner_pid == inner_pid)
			return &tree->tasks[i];
	return NULL;
}

bool tree_is_first_vm(const struct native_tree *tree, const struct native_task *task)
{
	const struct native_task *t;

	if (task->zombie)
		return false;
	for (t = tree->tasks; t < task; t++)
		if (!t->zombie && t->vm_id == task->vm_id)
			return false;
	return true;
}

bool tree_is_first_files(const struct native_tree *tree, const struct native_task *task)
{
	const struct native_task *t;

	if (task->zombie)
		return false;
	for (t = tree->tasks; t < task; t++)
		if (!t->zombie && t->files_id == task->files_id)
			return false;
	return true;
}

static int grow_tasks(struct native_tree *tree)
{
	size_t room = tree->task_room ? tree->task_room * 2 : ROOM_MIN;
	struct native_task *tasks = arena_alloc(tree->arena, room * sizeof(*tasks));

	if (!tasks)
		return native_fail(tree, -ENOMEM, "no memory for %zu processes", room);
	for (size_t i = 0; i < tree->task_count; i++) {
		struct native_task *t = &tasks[i];

		*t = tree->tasks[i];
		if (t->parent)
			t->parent = &tasks[t->parent - tree->tasks];
		for (size_t k = 0; k < t->thread_count; k++)
			t->threads[k].task = t;
	}
	tree->tasks = tasks;
	tree->task_room = room;
	return 0;
}

int tree_add_task(struct native_tree *tree, pid_t pid, pid_t parent_pid,
		  struct native_task **ret_task)
{
	struct native_task *t;
	int r;

	if (tree->task_count >= NATIVE_TASKS_MAX)
		return native_fail(tree, -EOPNOTSUPP, "the job has more than %d processes",
				   NATIVE_TASKS_MAX);
	if (tree->task_count >= tree->task_room) {
		r = grow_tasks(tree);
		if (r < 0)
			return r;
	}
	t = &tree->tasks[tree->task_count];
	*t = (struct native_task){
		.pid = pid,
		.parent = parent_pid ? tree_find(tree, parent_pid) : NULL,
	};
	tree->task_count++;
	*ret_task = t;
	return 0;
}

int tree_add_thread(struct native_tree *tree, struct native_task *task, pid_t tid,
		    struct native_thread **ret_thread)
{
	struct native_thread *threads;
	size_t room;

	if (task->thread_count >= NATIVE_THREADS_MAX)
		return native_fail(tree, -EOPNOTSUPP, "process %d has more than %d threads",
				   task->pid, NATIVE_THREADS_MAX);
	if (task->thread_count >= task->thread_room) {
		room = task->thread_room ? task->thread_room * 2 : ROOM_MIN / 4;
		threads = arena_alloc(tree->arena, room * sizeof(*threads));
		if (!threads)
			return native_fail(tree, -ENOMEM, "no memory for %zu threads", room);
		if (task->thread_count)
			memcpy(threads, task->threads, task->thread_count * sizeof(*threads));
		task->threads = threads;
		task->thread_room = room;
	}
	threads = &task->threads[task->thread_count];
	*threads = (struct native_thread){ .task = task, .tid = tid, .busy = true };
	task->thread_count++;
	*ret_thread = threads;
	return 0;
}

struct native_thread *task_find_thread(const struct native_task *task, pid_t tid)
{
	for (size_t i = 0; i < task->thread_count; i++)
		if (task->threads[i].tid == tid)
			return &task->threads[i];
	return NULL;
}

struct native_thread *task_find_next(const struct native_task *task, pid_t tid, size_t *hint)
{
	for (size_t n = 0; n < task->thread_count; n++) {
		size_t i = (*hint + n) % task->thread_count;

		if (task->threads[i].tid == tid) {
			*hint = i + 1;
			return &task->threads[i];
		}
	}
	return NULL;
}

static void compact_threads(struct native_task *task)
{
	size_t kept = 0;

	for (size_t i = 0; i < task->thread_count; i++) {
		if (!task->threads[i].tid)
			continue;
		if (kept != i)
			task->threads[kept] = task->threads[i];
		kept++;
	}
	task->thread_count = kept;
	/* The leader first, as everybody expects; /proc lists it so, but for an exec meanwhile. */
	for (size_t i = 1; i < kept; i++) {
		struct native_thread leader = task->threads[i];

		if (leader.tid != task->pid)
			continue;
		task->threads[i] = task->threads[0];
		task->threads[0] = leader;
	}
}

/* Parents of those that stay, stay: list_update() has given new parents to orphans. */
void tree_compact(struct native_tree *tree)
{
	size_t kept = 0;

	for (size_t i = 0; i < tree->task_count; i++) {
		struct native_task *t = &tree->tasks[i];

		if (!t->pid)
			continue;
		compact_threads(t);
		if (kept != i) {
			for (size_t k = 0; k < tree->task_count; k++)
				if (tree->tasks[k].parent == t)
					tree->tasks[k].parent = &tree->tasks[kept];
			tree->tasks[kept] = *t;
			t->pid = 0;
		}
		t = &tree->tasks[kept++];
		for (size_t k = 0; k < t->thread_count; k++)
			t->threads[k].task = t;
	}
	tree->task_count = kept;
}
