// SPDX-License-Identifier: LGPL-2.1-or-later
/* Pre-copy: the job runs, what it wrote since the last look is read, round by round. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/native/track.h"
#include "agent/util/io.h"

enum {
	COST_PAGE_NS = 2000,	 /* of one page in the pause: asking for it, reading it */
	PAUSE_TARGET_US = 1000,	 /* if the configuration has none */
	FREEZE_LEAD_NS = 300000, /* from the end of pre-copy to the stop */
	ROUND_WORTH = 100,	 /* a hundredth of the pause that is aimed at */
	ROUND_MIN_NS = 300000,	 /* what a round takes however little was written */
};

/*
 * Categories of what is followed. To know a page of a file from one of our own, the kernel looks at
 * each, which is slow: maps of files are not followed by who has rounds.
 */
static uint64_t mem_report(const struct native_mem *m)
{
	return m->features.report & ~(uint64_t)PAGE_FILE;
}

/* One mm in one round. */
struct look {
	struct native_mem *m;
	struct mem_mm *mm;
	const struct native_task *task;
	const struct state_vma *vmas;
	size_t vma_count;
	uint64_t pages; /* read */
};

static int reopen_pagemap(struct mem_mm *mm)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", mm->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	/* The old one is closed last: it is what keeps the identity from being used again. */
	if (mm->pagemap >= 0)
		close(mm->pagemap);
	mm->pagemap = fd;
	if (mm->memory >= 0)
		close(mm->memory);
	mm->memory = -1;
	return 0;
}

/* The mm of a process, known or attached to now. */
static int meet(struct native_mem *m, const struct native_task *task, struct mem_mm **ret_mm)
{
	struct mem_mm *mm = mem_find(m, task->pid);
	uint64_t identity = task->state ? task->state->mm : 0;
	int r;

	if (mm && identity && mm->identity != identity) {
		mem_retire(m, mm);
		mm = NULL;
	}
	if (!mm) {
		mm = mem_new_mm(m, task->pid);
		if (!mm)
			return -ENOMEM;
		mm->identity = identity;
	}
	mm->seen = true;
	r = reopen_pagemap(mm);
	if (r == 0 && !mm->ops) {
		mm->ops = m->ops;
		r = mm->ops->attach(m, mm);
		if (r < 0 && r != -ESRCH) {
			/* Seccomp, no free descriptor, ...: without tracking then. */
			mm->ops = &track_hash;
			r = mm->ops->attach(m, mm);
		}
	}
	*ret_mm = mm;
	return r;
}

/* One kind of pages, cut to one VMA. */
static int copy_kind(struct native_mem *m, struct mem_mm *mm, const struct state_vma *vma,
		     uint64_t start, uint64_t end, uint64_t categories)
{
	uint64_t page = start / NATIVE_PAGE, count = end / NATIVE_PAGE - page;
	struct runs *other = m->batch.paused ? &mm->guards : &mm->space.drops;

	if (categories & PAGE_GUARD)
		return runs_add(other, page, count, run_from(RUN_KIND_GUARD, 0));
	/* Content that the file has as well, or none at all. */
	if (categories & (PAGE_FILE | PAGE_PFNZERO) ||
	    !(categories & (PAGE_PRESENT | PAGE_SWAPPED)))
		return m->batch.paused ? 0 : runs_add(other, page, count, 0);
	return batch_add(m, mm, page, count,
			 (vma_is_anon(vma) ? BATCH_ZERO_IS_NONE : 0) |
				 (vma->vm_flags & VMA_READ ? BATCH_READABLE : 0) |
				 (vma_reverts(vma) ? BATCH_INHERITED : 0));
}

int mem_copy_kinds(struct native_mem *m, struct mem_mm *mm, const struct native_task *task,
		   const struct state_vma *vmas, size_t vma_count, const struct region *v,
		   size_t count)
{
	uint64_t done = 0;
	size_t k = 0;

	for (size_t i = 0; i < count; i++) {
		for (; k < vma_count && vmas[k].end <= v[i].start; k++)
			;
		for (size_t j = k; j < vma_count && vmas[j].start < v[i].end; j++) {
			uint64_t start = v[i].start > vmas[j].start ? v[i].start : vmas[j].start;
			uint64_t end = v[i].end < vmas[j].end ? v[i].end : vmas[j].end;
			int r;

			/* The pause reads the vdso by itself, whole. */
			if (!vma_has_pages(&vmas[j]) || vma_is_vdso(task, &vmas[j]))
				continue;
			/* A list made while the job runs may show one range twice: a VMA that grew. */
			if (start < done)
				start = done;
			if (start >= end)
				continue;
			done = end;
			r = copy_kind(m, mm, &vmas[j], start, end, v[i].categories);
			if (r < 0)
				return r;
		}
	}
	return batch_read(m, mm);
}

/* Reads what m->kinds holds, into the spool and the space. */
static int copy_found(struct look *l)
{
	struct native_mem *m = l->m;
	uint64_t pages = 0;
	int r = 0;

	for (size_t i = 0; i < m->kinds.count; i++)
		pages += (m->kinds.v[i].end - m->kinds.v[i].start) / NATIVE_PAGE;
	if (l->mm->direct) {
		/* A device may write to them until its call is over: read them in the pause. */
		for (size_t i = 0; i < m->kinds.count && r == 0; i++) {
			const struct region *k = &m->kinds.v[i];

			r = runs_push(&l->mm->space.missed, k->start / NATIVE_PAGE,
				      (k->end - k->start) / NATIVE_PAGE);
		}
	} else {
		r = mem_copy_kinds(m, l->mm, l->task, l->vmas, l->vma_count, m->kinds.v,
				   m->kinds.count);
		if (r == 0)
			r = batch_flush(m);
		if (r == 0)
			r = space_settle(&l->mm->space);
		l->pages += pages;
	}
	m->kinds.count = 0;
	return r;
}

/* All that is populated in these ranges. */
static int copy_ranges(struct look *l, const struct runs *ranges)
{
	int r = 0;

	for (size_t i = 0; i < ranges->count && r == 0; i++) {
		uint64_t start = ranges->v[i].start * NATIVE_PAGE;
		uint64_t end = start + ranges->v[i].count * NATIVE_PAGE;

		for (uint64_t at = start; at < end && r == 0; at += SCAN_STEP) {
			uint64_t to = end - at > SCAN_STEP ? at + SCAN_STEP : end;

			r = mem_populated(l->m, l->mm, at, to, &l->m->kinds);
			if (r == 0)
				r = copy_found(l);
		}
	}
	return r;
}

/* A mutant's: all that is followed at once, with what lies between. */
static int scan_mixed(struct look *l)
{
	const struct runs *c = &l->mm->covered;
	const struct run *last;

	if (!c->count)
		return 0;
	last = &c->v[c->count - 1];
	return l->mm->ops->round(l->m, l->mm, c->v[0].start * NATIVE_PAGE,
				 (last->start + last->count) * NATIVE_PAGE, l->m->features.report,
				 &l->m->kinds);
}

/*
 * Written pages of what the tracker follows, which they are no longer, and nothing besides: a VMA
 * that has grown since the list was made would be protected there, and not read.
 */
static int scan_written(struct look *l)
{
	const struct runs *covered = &l->mm->covered;
	int r = 0;

	if (!l->mm->ops->round)
		return 0;
	if (l->m->config.broken & MEM_BROKEN_CHECK_WPASYNC)
		return scan_mixed(l);
	for (size_t i = 0; i < covered->count && r == 0; i++) {
		uint64_t start = covered->v[i].start * NATIVE_PAGE;
		uint64_t end = start + covered->v[i].count * NATIVE_PAGE;

		for (uint64_t at = start; at < end && r == 0; at += SCAN_STEP) {
			uint64_t to = end - at > SCAN_STEP ? at + SCAN_STEP : end;

			r = l->mm->ops->round(l->m, l->mm, at, to, mem_report(l->m), &l->m->kinds);
		}
	}
	return r;
}

/* Open for writing to /proc/PID/mem, of whatever process. */
static bool is_proc_mem(const struct state_fd *fd)
{
	static const char name[] = "/mem";
	size_t length = strlen(fd->path);

	return (fd->f_flags & O_ACCMODE) != O_RDONLY && length >= sizeof(name) - 1 &&
	       !strncmp(fd->path, "/proc/", 6) &&
	       !strcmp(fd->path + length - (sizeof(name) - 1), name);
}

/*
 * A read with O_DIRECT pins pages, and the device writes to them unseen when they were protected
 * meanwhile; so does a process that writes to the memory of another one. The first has its file
 * open as long as it lasts, the second is in its system call: where there is neither after the
 * scan, all is over and what we read from here on is what they wrote.
 */
static int look_for_direct(struct look *l, struct native_state *s, struct native_tree *tree)
{
	const struct state_fd *fds;
	bool direct = false;
	size_t count;
	int r = state_find_writers(s, &direct);

	if (r == 0)
		r = state_read_fds(s, tree, l->mm->pid, &fds, &count);
	for (size_t i = 0; r == 0 && i < count; i++)
		direct |= is_proc_mem(&fds[i]) ||
			  ((fds[i].f_flags & O_DIRECT) && S_ISREG(fds[i].mode));
	l->mm->direct = direct;
	return r;
}

/* Blocks of the base that must be given again: their pages, to read. */
static int wanted_ranges(const struct mem_space *s, const struct native_wanted *wanted,
			 size_t wanted_count, struct runs *ret_ranges)
{
	int r = 0;

	for (size_t w = 0; w < wanted_count && r == 0; w++) {
		uint64_t first = wanted[w].first, end = first + wanted[w].count;

		if (wanted[w].pages_id != s->pages_id)
			continue;
		for (size_t i = 0; i < s->map.count && r == 0; i++) {
			const struct run *run = &s->map.v[i];
			uint64_t block = run->from & RUN_BLOCK_MASK, from, to;

			if (run_kind(run->from) != RUN_KIND_OLD)
				continue;
			from = block > first ? block : first;
			to = block + run->count < end ? block + run->count : end;
			if (from < to)
				r = runs_push(ret_ranges, run->start + (from - block), to - from);
		}
	}
	runs_normalise(ret_ranges);
	return r;
}

/* What is no longer known of a space that compares is stored again as if it were new. */
static int unknow_wanted(struct mem_space *s, const struct native_wanted *wanted,
			 size_t wanted_count, struct runs *ret_ranges)
{
	int r = wanted_ranges(s, wanted, wanted_count, ret_ranges);

	for (size_t i = 0; s->compare && i < ret_ranges->count && r == 0; i++)
		r = space_unknow(s, ret_ranges->v[i].start, ret_ranges->v[i].count);
	return r;
}

static int unknow_objects(struct native_mem *m, const struct native_wanted *wanted,
			  size_t wanted_count)
{
	struct runs ranges = { 0 };
	int r = 0;

	for (size_t i = 0; i < m->object_count && r == 0; i++) {
		ranges.count = 0;
		r = unknow_wanted(&m->objects[i]->space, wanted, wanted_count, &ranges);
	}
	runs_deinit(&ranges);
	return r;
}

static int private_ranges(const struct look *l, struct runs *ret_ranges)
{
	int r = 0;

	for (size_t i = 0; i < l->vma_count && r == 0; i++)
		/* The pause reads whole what the tracker does not follow. */
		if (vma_has_pages(&l->vmas[i]) &&
		    !(!l->mm->ops->compare && vma_reverts(&l->vmas[i])))
			r = runs_push(ret_ranges, l->vmas[i].start / NATIVE_PAGE,
				      (l->vmas[i].end - l->vmas[i].start) / NATIVE_PAGE);
	return r;
}

/* VMAs that the tracker has not followed until now: nothing is known of them, all is to be read. */
static int copy_new(struct look *l, const struct runs *ranges)
{
	int r = 0;

	for (size_t i = 0; i < ranges->count && r == 0; i++)
		r = space_unknow(&l->mm->space, ranges->v[i].start, ranges->v[i].count);
	return r == 0 ? copy_ranges(l, ranges) : r;
}

/* Before anything is stopped: words for so many pages would make the pause last too long. */
static int check_width(const struct look *l, struct native_tree *tree)
{
	for (size_t i = 0; i < l->vma_count && !l->m->features.scan; i++) {
		const struct state_vma *v = &l->vmas[i];

		if (vma_has_pages(v) && v->end - v->start > SCAN_WORDS_SPAN_MAX)
			return native_fail(tree, -EOPNOTSUPP,
					   "process %d has %llu GiB in one mapping: too much for a "
					   "kernel without PAGEMAP_SCAN",
					   l->task->pid,
					   (unsigned long long)(v->end - v->start) >> 30);
	}
	return 0;
}

static int precopy_mm(struct look *l, struct native_state *s, struct native_tree *tree,
		      const struct native_wanted *wanted, size_t wanted_count)
{
	struct runs fresh = { 0 }, again = { 0 }, all = { 0 };
	struct native_mem *m = l->m;
	struct mem_mm *mm = l->mm;
	bool full;
	int r;

	r = state_read_vmas(s, tree, mm->pid, &l->vmas, &l->vma_count);
	if (r == 0)
		r = check_width(l, tree);
	if (r == 0)
		r = mm->ops->cover(m, mm, l->vmas, l->vma_count, &fresh);
	/* What was mapped since that list may have been written, and its marks be cleared. */
	if (r == 0 && mm->full)
		r = state_read_vmas(s, tree, mm->pid, &l->vmas, &l->vma_count);
	if (r == 0 && mm->full && mm->ops->listed)
		r = mm->ops->listed(mm, l->vmas, l->vma_count);
	m->kinds.count = 0;
	if (r == 0)
		r = scan_written(l);
	if (r == 0)
		r = look_for_direct(l, s, tree);
	full = mm->full;
	if (r == 0)
		r = unknow_wanted(&mm->space, wanted, wanted_count, &again);
	if (r == 0 && full) {
		m->kinds.count = 0;
		r = private_ranges(l, &all);
		if (r == 0)
			r = copy_ranges(l, &all);
	} else if (r == 0) {
		r = copy_found(l);
		if (r == 0)
			r = copy_ranges(l, &again);
		if (r == 0)
			r = copy_new(l, &fresh);
	}
	if (r == 0)
		mm->full = false;
	runs_deinit(&fresh);
	runs_deinit(&again);
	runs_deinit(&all);
	return r;
}

/* A process that is gone or that execs meanwhile is no error: the pause decides what is true. */
static int gone(struct native_mem *m, pid_t pid, int r)
{
	struct mem_mm *mm = mem_find(m, pid);

	if (r != -ESRCH && r != -ENOENT)
		return r;
	m->kinds.count = 0;
	batch_reset(&m->batch);
	if (mm)
		mem_retire(m, mm);
	return 0;
}

static int one_round(struct native_mem *m, struct native_state *s, struct native_tree *tree,
		     const struct native_wanted *wanted, size_t wanted_count, uint32_t round,
		     uint64_t *ret_pages)
{
	uint64_t pages = 0;

	if (round == 0) {
		int r = unknow_objects(m, wanted, wanted_count);

		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < tree->task_count; i++) {
		const struct native_task *task = &tree->tasks[i];
		struct look l = { .m = m, .task = task };
		int r = 0;

		if (task->zombie || (task->state && !task->state->mm))
			continue;
		l.mm = mem_find(m, task->pid);
		if (round == 0) {
			uint64_t start = mem_clock_ns();

			r = meet(m, task, &l.mm);
			m->counts.attach_us += (uint32_t)((mem_clock_ns() - start) / 1000);
		}
		if (!l.mm || (round && !l.mm->ops->round))
			continue;
		if (r == 0)
			r = precopy_mm(&l, s, tree, wanted, round ? 0 : wanted_count);
		if (r == 0 && round == 0)
			r = objects_precopy(m, task, l.vmas, l.vma_count);
		r = gone(m, task->pid, r);
		if (r < 0)
			return r;
		pages += l.pages;
	}
	*ret_pages = pages;
	return 0;
}

/*
 * True if one more round makes the pause shorter by a share of what is aimed at that is worth it: what
 * is written while a round goes on is left for the pause, and the next one is shorter.
 */
static bool another_round(struct native_mem *m, uint32_t done, uint64_t pages, uint64_t last_pages,
			  uint64_t round_ns)
{
	uint32_t max = m->config.rounds_max ? m->config.rounds_max : ROUNDS_LIMIT;
	uint64_t target_us = m->config.pause_target_us ? m->config.pause_target_us :
							 PAUSE_TARGET_US;
	uint64_t left = m->counts.dirty_rate * (round_ns + FREEZE_LEAD_NS) / 1000000000;
	uint64_t next_ns = pages > left ? round_ns * left / pages : round_ns;
	bool small = left * COST_PAGE_NS <= target_us * 1000 / 4;
	bool shrinks = pages * 4 <= last_pages * 3;
	uint64_t spared = 0;

	if (next_ns < ROUND_MIN_NS)
		next_ns = ROUND_MIN_NS;
	if (next_ns < round_ns)
		spared = m->counts.dirty_rate * (round_ns - next_ns) / 1000000000;
	m->counts.bounded = false;
	if (done >= max || (small && spared * COST_PAGE_NS <= target_us * 1000 / ROUND_WORTH))
		return false;
	m->counts.bounded = !small && !shrinks;
	return shrinks;
}

static int begin(struct native_mem *m, struct native_tree *tree)
{
	int r = spool_open(&m->spool, tree->images);

	if (r < 0)
		return r;
	if (!m->taking)
		m->counts = (struct native_mem_counts){ .dirty_rate = m->counts.dirty_rate };
	snprintf(m->counts.tracker, sizeof(m->counts.tracker), "%s", m->ops->name);
	for (size_t i = 0; i < m->mm_count; i++) {
		struct mem_mm *mm = m->mms[i];

		/* A pause whose snapshot never came to be may have begun a new interval. */
		if (m->settled && mm->ops && mm->ops->settled)
			mm->full = true;
		mm->seen = false;
		mm->space.drops.count = mm->space.puts.count = 0;
	}
	for (size_t i = 0; i < m->object_count; i++) {
		struct mem_object *o = m->objects[i];

		o->seen = o->precopied = false;
		o->space.drops.count = o->space.puts.count = 0;
	}
	m->counts.residue_bytes = m->counts.object_us = 0;
	m->tree = tree;
	m->taking = true;
	m->collected = m->settled = false;
	m->batch.paused = false;
	m->batch.forked = tree->task_count > 1;
	batch_reset(&m->batch);
	mem_bury(m);
	return 0;
}

int mem_precopy(struct native_mem *m, struct native_state *s, struct native_tree *tree,
		const struct native_wanted *wanted, size_t wanted_count)
{
	uint64_t start;
	int r = begin(m, tree);

	if (r < 0)
		return native_fail(tree, r, "memory: the images cannot be written: %s",
				   strerror(-r));
	start = mem_clock_ns();
	r = one_round(m, s, tree, wanted, wanted_count, 0, &m->round_pages);
	if (r < 0)
		return native_fail(tree, r, "memory: pre-copy: %s", strerror(-r));
	m->scan_ns = start;
	m->counts.rounds++;
	return 0;
}

/* One at least: the first round's pages are those of a whole interval, its rate says nothing. */
int mem_catch_up(struct native_mem *m, struct native_state *s, struct native_tree *tree)
{
	uint64_t pages = m->round_pages, last_pages, start;
	uint32_t rounds = 1;

	if (!m->ops->round || m->config.rounds_max == 1)
		return 0;
	do {
		int r;

		last_pages = pages;
		start = mem_clock_ns();
		r = one_round(m, s, tree, NULL, 0, rounds, &pages);
		if (r < 0)
			return native_fail(tree, r, "memory: pre-copy: %s", strerror(-r));
		if (start > m->scan_ns)
			m->counts.dirty_rate = pages * 1000000000 / (start - m->scan_ns);
		m->scan_ns = start;
		rounds++;
		m->counts.rounds++;
	} while (another_round(m, rounds, pages, last_pages, mem_clock_ns() - start));
	return 0;
}
