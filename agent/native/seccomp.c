// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Filters of system calls, read by ptrace from the stopped threads, and seccomp.img.
 *
 * A chain is in the image from the newest filter to the oldest, each one but the first naming the
 * one before it; a thread names the last, where the restorer begins. A chain that all threads of a
 * process share is put in place by its first thread for all of them.
 */
#include <errno.h>
#include <linux/filter.h>
#include <string.h>
#include <sys/ptrace.h>

#include "agent/native/img.h"
#include "agent/native/state_internal.h"

/* Since Linux 4.4 and 4.16; their numbers are not in every header. */
#define GET_FILTER 0x420c
#define GET_METADATA 0x420d

enum { MODE_FILTER = 2, FLAG_TSYNC = 1, CHAINS_MAX = 256, FILTERS_MAX = 64 };

struct metadata {
	uint64_t index, flags;
};

struct filter {
	struct sock_filter *code;
	uint32_t length; /* instructions */
	uint32_t flags;
};

struct chain {
	uint64_t identity;
	struct filter *filters; /* newest first */
	uint32_t count, first;	/* first: index in the image of the newest */
	bool shared;		/* by all threads of the process */
	const struct native_task *task;
};

struct native_filters {
	struct chain chains[CHAINS_MAX];
	size_t chain_count;
	uint32_t filter_count;
};

static bool shares_chain(const struct native_task *task)
{
	for (size_t i = 1; i < task->thread_count; i++) {
		const struct state_thread *s = task->threads[i].state;

		if (!s || s->seccomp_filter != task->threads[0].state->seccomp_filter)
			return false;
	}
	return true;
}

static struct chain *find_chain(const struct native_filters *f, const struct native_thread *t)
{
	for (size_t i = 0; i < f->chain_count; i++) {
		const struct chain *c = &f->chains[i];

		if (c->identity == t->state->seccomp_filter && c->task == t->task)
			return (struct chain *)c;
	}
	return NULL;
}

static int read_filter(struct native_tree *tree, const struct native_thread *t, uint32_t index,
		       struct filter *f)
{
	struct metadata metadata = { .index = index };
	long length = ptrace(GET_FILTER, t->tid, index, NULL);

	if (length <= 0 || length > BPF_MAXINSNS)
		return native_fail(tree, -EOPNOTSUPP,
				   "thread %d: its seccomp filters cannot be read: %s", t->tid,
				   length < 0 ? strerror(errno) : "too long");
	f->code = arena_alloc(tree->arena, (size_t)length * sizeof(*f->code));
	if (!f->code)
		return -ENOMEM;
	if (ptrace(GET_FILTER, t->tid, index, f->code) != length)
		return -EIO;
	f->length = (uint32_t)length;
	if (ptrace(GET_METADATA, t->tid, sizeof(metadata), &metadata) >= 0)
		f->flags = (uint32_t)metadata.flags;
	return 0;
}

static int add_chain(struct native_tree *tree, const struct native_thread *t)
{
	uint32_t count = t->state->seccomp_filter_count;
	struct native_filters *f = tree->filters;
	struct chain *c;
	int r = 0;

	if (count == 0 || count > FILTERS_MAX || f->chain_count == CHAINS_MAX)
		return native_fail(tree, -EOPNOTSUPP, "thread %d has %u seccomp filters", t->tid,
				   count);
	c = &f->chains[f->chain_count];
	*c = (struct chain){ .identity = t->state->seccomp_filter,
			     .task = t->task,
			     .count = count,
			     .first = f->filter_count,
			     .shared = shares_chain(t->task) };
	c->filters = arena_alloc(tree->arena, count * sizeof(*c->filters));
	if (!c->filters)
		return -ENOMEM;
	/* The kernel counts from the oldest one. */
	for (uint32_t i = 0; r == 0 && i < count; i++) {
		r = read_filter(tree, t, i, &c->filters[count - 1 - i]);
		if (c->shared)
			c->filters[count - 1 - i].flags |= FLAG_TSYNC;
	}
	if (r < 0)
		return r;
	f->filter_count += count;
	f->chain_count++;
	return 0;
}

static int collect_thread(struct native_tree *tree, const struct native_thread *t)
{
	if (!t->state || t->state->seccomp_mode != MODE_FILTER)
		return 0;
	if (!tree->filters)
		tree->filters = arena_alloc(tree->arena, sizeof(*tree->filters));
	if (!tree->filters)
		return -ENOMEM;
	return find_chain(tree->filters, t) ? 0 : add_chain(tree, t);
}

int seccomp_collect(struct native_tree *tree)
{
	int r = 0;

	tree->filters = NULL;
	for (size_t i = 0; i < tree->task_count && r == 0; i++) {
		const struct native_task *task = &tree->tasks[i];

		for (size_t k = 0; !task->zombie && k < task->thread_count && r == 0; k++)
			r = collect_thread(tree, &task->threads[k]);
	}
	return r;
}

int seccomp_index(const struct native_tree *tree, const struct native_thread *t)
{
	const struct chain *c;

	if (!tree->filters || t->state->seccomp_mode != MODE_FILTER)
		return -1;
	c = find_chain(tree->filters, t);
	if (!c || (c->shared && t->tid != t->task->pid))
		return -1;
	return (int)(c->first + c->count - 1);
}

static void fill_chain(const struct chain *c, NatCore__SeccompFilter *entries,
		       NatCore__SeccompFilter **list)
{
	for (uint32_t i = 0; i < c->count; i++) {
		NatCore__SeccompFilter *e = &entries[c->first + i];

		nat_core__seccomp_filter__init(e);
		e->filter.data = (uint8_t *)c->filters[i].code;
		e->filter.len = c->filters[i].length * sizeof(struct sock_filter);
		e->has_flags = true;
		e->flags = c->filters[i].flags;
		e->has_prev = i > 0;
		e->prev = c->first + i - 1;
		list[c->first + i] = e;
	}
}

int seccomp_write(struct native_tree *tree)
{
	const struct native_filters *f = tree->filters;
	_cleanup_free_ NatCore__SeccompFilter *entries = NULL;
	_cleanup_free_ NatCore__SeccompFilter **list = NULL;
	NatCore__Seccomp seccomp;
	struct img *image;
	int r;

	if (!f || f->filter_count == 0)
		return 0;
	entries = calloc(f->filter_count, sizeof(*entries));
	list = calloc(f->filter_count, sizeof(*list));
	if (!entries || !list)
		return -ENOMEM;
	for (size_t i = 0; i < f->chain_count; i++)
		fill_chain(&f->chains[i], entries, list);
	nat_core__seccomp__init(&seccomp);
	seccomp.n_filters = f->filter_count;
	seccomp.filters = list;
	r = img_create(tree->images, "seccomp", &image);
	if (r < 0)
		return r;
	img_put(image, &seccomp.base);
	return img_close(image);
}
