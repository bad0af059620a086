// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The part of the pause that is about memory. Nothing of the target or of the tracker is changed
 * here, but by mem_settle(): a snapshot that is called off loses no write.
 *
 *   written ranges (fast scan) -> which of it is populated, and how -> read
 *   VMAs that nobody follows, private maps of files among them: all that is populated
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "agent/native/track.h"

/*
 * How to ask for the pages of a range: all of them; those of anonymous memory, which is faster; not
 * at all, since it has none of its own and what was stored of that place holds no longer.
 */
enum { QUERY_WHOLE = 1, QUERY_ANON = 2, QUERY_NONE = 4 };

/* One mm in the pause. */
struct stop {
	struct native_mem *m;
	struct mem_mm *mm;
	const struct native_task *task;
};

int mem_populated(const struct native_mem *m, const struct mem_mm *mm, uint64_t start, uint64_t end,
		  struct regions *out)
{
	struct scan s = { .anyof = PAGE_PRESENT | PAGE_SWAPPED, .report = m->features.report };

	if (!m->features.scan)
		return scan_words(mm->pagemap, start, end, out);
	return scan_pages(mm->pagemap, &s, start, end, out);
}

bool vma_is_vdso(const struct native_task *task, const struct state_vma *v)
{
	if (!vma_has_pages(v) || !vma_is_anon(v))
		return false;
	return (task->state && task->state->vdso == v->start) || !strcmp(v->path, "[vdso]");
}

static bool is_tracked(const struct stop *st, const struct state_vma *v)
{
	return st->mm->ops && st->mm->ops->tracks(st->mm, v);
}

static int add_region(struct regions *r, uint64_t start, uint64_t end, uint64_t categories)
{
	int err = regions_reserve(r, 1);

	if (err == 0)
		r->v[r->count++] = (struct region){ start, end, categories };
	return err;
}

/* How to ask for each of the regions from `first` on; the VMAs begin at index `vma`. */
static void set_kinds(struct stop *st, size_t first, size_t vma)
{
	const struct native_task *t = st->task;

	for (; first < st->m->written.count; first++) {
		struct region *v = &st->m->written.v[first];

		while (vma + 1 < t->vma_count && t->vmas[vma].end <= v->start)
			vma++;
		/* One that goes on into the next VMA is asked for in full. */
		v->categories =
			vma_is_anon(&t->vmas[vma]) && v->end <= t->vmas[vma].end ? QUERY_ANON : 0;
	}
}

/* A VMA that nobody follows. Neighbours at once: a call costs as much as many pages. */
static int add_untracked(struct native_mem *m, size_t first, const struct state_vma *v)
{
	struct region *last = m->written.count > first ? &m->written.v[m->written.count - 1] : NULL;
	uint64_t how = vma_reverts(v) && v->traits & STATE_VMA_NO_OWN ? QUERY_NONE : QUERY_WHOLE;

	if (m->config.broken & MEM_BROKEN_UNTRACKED ||
	    (m->config.broken & MEM_BROKEN_FILES && vma_reverts(v)))
		return 0;
	if (last && last->categories == how && last->end == v->start) {
		last->end = v->end;
		return 0;
	}
	return add_region(&m->written, v->start, v->end, how);
}

/*
 * May one call of the scan go on from `end` into this VMA? PAGEMAP_SCAN passes over a gap at no
 * cost; /proc/PID/pagemap has a word for each page of it, and it may be half an address space.
 */
static bool joins(const struct stop *st, uint64_t end, const struct state_vma *v)
{
	return (st->m->features.scan || v->start == end) && is_tracked(st, v) && vma_has_pages(v);
}

/* Fast scan of neighbours that the tracker follows; other VMAs as they are. */
static int find_written(struct stop *st)
{
	const struct native_task *t = st->task;
	struct native_mem *m = st->m;
	int r = 0;

	for (size_t i = 0; i < t->vma_count && r == 0; i++) {
		const struct state_vma *v = &t->vmas[i];
		uint64_t end = v->end;
		size_t first, vma;

		if (!vma_has_pages(v) || vma_is_vdso(t, v))
			continue;
		if (!is_tracked(st, v)) {
			r = add_untracked(m, st->mm->written_first, v);
			continue;
		}
		first = m->written.count;
		vma = i;
		for (; i + 1 < t->vma_count && joins(st, end, &t->vmas[i + 1]); i++)
			end = t->vmas[i + 1].end;
		r = st->mm->ops->written(m, st->mm, v->start, end, &m->written);
		set_kinds(st, first, vma);
	}
	return r;
}

/* Without a look at the VMAs as they are now: what was followed at the last round, no more. */
static int find_written_broken(struct stop *st)
{
	struct native_mem *m = st->m;
	int r = 0;

	for (size_t i = 0; i < st->mm->covered.count && r == 0; i++) {
		uint64_t start = st->mm->covered.v[i].start * NATIVE_PAGE, end;
		size_t first = m->written.count;

		end = start + st->mm->covered.v[i].count * NATIVE_PAGE;
		for (size_t k = 0; k < st->task->vma_count && r == 0; k++) {
			const struct state_vma *v = &st->task->vmas[k];

			if (is_tracked(st, v) && v->start < end && v->end > start)
				r = st->mm->ops->written(m, st->mm,
							 v->start > start ? v->start : start,
							 v->end < end ? v->end : end, &m->written);
		}
		for (; first < m->written.count; first++)
			m->written.v[first].categories = 0;
	}
	return r;
}

/* Populated pages of one range of what was found; in whole ranges also those not written. */
static int query(struct stop *st, uint64_t start, uint64_t end, uint64_t how)
{
	struct native_mem *m = st->m;
	struct scan s = { .mask = PAGE_WRITTEN,
			  .anyof = PAGE_PRESENT | PAGE_SWAPPED,
			  .report = m->features.report };

	if (how & QUERY_ANON)
		s.report &= ~(uint64_t)PAGE_FILE;
	/* The bit means something only to the backend that sets it. */
	if (how & QUERY_WHOLE || st->mm->ops != &track_uffd)
		return mem_populated(m, st->mm, start, end, &m->kinds);
	return scan_pages(st->mm->pagemap, &s, start, end, &m->kinds);
}

/* The written ranges of this mm, and the missed ones, in m->kinds. */
static int find_kinds(struct stop *st)
{
	const struct region *v = st->m->written.v + st->mm->written_first;
	size_t count = st->mm->written_end - st->mm->written_first;
	bool exact = st->mm->space.missed.count || (st->mm->ops && st->mm->ops != &track_uffd);
	struct runs all = { 0 };
	int r = 0;

	runs_normalise(&st->mm->space.missed);
	if (exact) {
		/* Rare. With what was missed the lists are merged; then the bit says nothing. */
		for (size_t i = 0; i < count && r == 0; i++)
			r = runs_push(&all, v[i].start / NATIVE_PAGE,
				      (v[i].end - v[i].start) / NATIVE_PAGE);
		for (size_t i = 0; i < st->mm->space.missed.count && r == 0; i++)
			r = runs_push(&all, st->mm->space.missed.v[i].start,
				      st->mm->space.missed.v[i].count);
		runs_normalise(&all);
		for (size_t i = 0; i < all.count && r == 0; i++)
			r = query(st, all.v[i].start * NATIVE_PAGE,
				  (all.v[i].start + all.v[i].count) * NATIVE_PAGE, QUERY_WHOLE);
		runs_deinit(&all);
		return r;
	}
	for (size_t i = 0; i < count && r == 0; i++) {
		uint64_t start = v[i].start, end = v[i].end, how = v[i].categories;

		if (how & QUERY_NONE)
			continue;
		for (; !(how & QUERY_WHOLE) && i + 1 < count && v[i + 1].categories == how &&
		       v[i + 1].start - end <= (uint64_t)COALESCE_PAGES * NATIVE_PAGE;
		     i++)
			end = v[i + 1].end;
		r = query(st, start, end, how);
	}
	return r;
}

/* Backends that do not tell what was given back, or tell nothing: everything that is there. */
static int list_all(struct stop *st)
{
	int r = 0;

	for (size_t i = 0; i < st->task->vma_count && r == 0; i++) {
		const struct state_vma *v = &st->task->vmas[i];
		uint64_t start = v->start / NATIVE_PAGE;

		if (!vma_has_pages(v) || vma_is_vdso(st->task, v))
			continue;
		r = mem_populated(st->m, st->mm, v->start, v->end, &st->m->holes);
		if (r == 0)
			r = runs_add(&st->mm->listed, start, v->end / NATIVE_PAGE - start, 0);
	}
	return r;
}

/* struct vdso_mark of CRIU's parasite-vdso.h, version 3: it lies over the ELF header. */
struct vdso_mark {
	char signature[8];
	uint64_t vdso, version, vvar, runtime_vvar;
};

/* A mark that names no memory is no mark: the job may write what it likes there. */
static struct mem_proxy find_proxy(const struct native_task *task, const struct state_vma *vdso)
{
	struct vdso_mark mark;
	struct iovec local = { &mark, sizeof(mark) };
	struct iovec remote = { (void *)(uintptr_t)vdso->start, sizeof(mark) };

	if (process_vm_readv(task->pid, &local, 1, &remote, 1, 0) != (ssize_t)sizeof(mark) ||
	    memcmp(mark.signature, "CRIUvDSO", sizeof(mark.signature)) != 0)
		return (struct mem_proxy){ 0 };
	for (size_t i = 0; i < task->vma_count; i++) {
		const struct state_vma *v = &task->vmas[i];

		if (v != vdso && v->start == mark.vdso && vma_has_pages(v) && vma_is_anon(v))
			return (struct mem_proxy){ mark.vdso, mark.vvar };
	}
	return (struct mem_proxy){ 0 };
}

static int copy_vdso(struct stop *st)
{
	st->mm->proxy = (struct mem_proxy){ 0 };
	for (size_t i = 0; i < st->task->vma_count; i++) {
		const struct state_vma *v = &st->task->vmas[i];

		if (!vma_is_vdso(st->task, v))
			continue;
		st->mm->proxy = find_proxy(st->task, v);
		if (st->mm->proxy.vdso)
			return 0;
		return batch_add(st->m, st->mm, v->start / NATIVE_PAGE,
				 (v->end - v->start) / NATIVE_PAGE, BATCH_READABLE);
	}
	return 0;
}

static uint32_t lap(uint64_t *at)
{
	uint64_t now = mem_clock_ns(), from = *at;

	*at = now;
	return (uint32_t)((now - from) / 1000);
}

/* Everything is read and compared. */
static int stop_compare(struct stop *st)
{
	struct native_mem *m = st->m;
	uint64_t at = mem_clock_ns();
	int r;

	r = list_all(st);
	m->counts.list_us += lap(&at);
	if (r == 0)
		r = copy_vdso(st);
	if (r == 0)
		r = mem_copy_kinds(m, st->mm, st->task, st->task->vmas, st->task->vma_count,
				   m->holes.v + st->mm->holes_first,
				   m->holes.count - st->mm->holes_first);
	m->counts.copy_us += lap(&at);
	return r;
}

static int stop_tracked(struct stop *st)
{
	struct native_mem *m = st->m;
	uint64_t at = mem_clock_ns();
	bool broken = m->config.broken & MEM_BROKEN_VMA_DIFF && st->mm->ops;
	int r;

	m->kinds.count = 0;
	r = broken ? find_written_broken(st) : find_written(st);
	st->mm->written_end = m->written.count;
	m->counts.scan_us += lap(&at);
	if (r == 0)
		r = find_kinds(st);
	m->counts.list_us += lap(&at);
	if (r == 0 && st->mm->ops && st->mm->ops->hollow)
		r = list_all(st);
	m->counts.holes_us += lap(&at);
	if (r == 0)
		r = copy_vdso(st);
	if (r == 0)
		r = mem_copy_kinds(m, st->mm, st->task, st->task->vmas, st->task->vma_count,
				   m->kinds.v, m->kinds.count);
	m->counts.copy_us += lap(&at);
	return r;
}

/* The mm that this process has now; one that nobody knows is whole. */
static int meet(struct native_mem *m, const struct native_task *task, struct mem_mm **ret_mm)
{
	struct mem_mm *mm = mem_find(m, task->pid);
	uint64_t identity = task->state ? task->state->mm : 0;
	char path[64];

	if (mm && identity && mm->identity && mm->identity != identity) {
		mem_retire(m, mm);
		mm = NULL;
	}
	if (!mm) {
		mm = mem_new_mm(m, task->pid);
		if (!mm)
			return -ENOMEM;
		mm->identity = identity;
		snprintf(path, sizeof(path), "/proc/%d/pagemap", task->pid);
		mm->pagemap = open(path, O_RDONLY | O_CLOEXEC);
		if (mm->pagemap < 0)
			return -errno;
	}
	mm->seen = true;
	*ret_mm = mm;
	return 0;
}

static int collect_one(struct native_mem *m, struct native_tree *tree,
		       const struct native_task *task)
{
	struct stop st = { .m = m, .task = task };
	struct batch first;
	int r;

	r = meet(m, task, &st.mm);
	if (r < 0)
		return r;
	first = m->batch;
	st.mm->written_first = st.mm->written_end = m->written.count;
	st.mm->holes_first = st.mm->holes_end = m->holes.count;
	st.mm->guards.count = st.mm->listed.count = 0;
	r = st.mm->ops && st.mm->ops->compare ? stop_compare(&st) : stop_tracked(&st);
	/* An exec between pre-copy and now: the old memory is gone, the new one is not known. */
	if (r == -ESRCH && st.mm->ops) {
		if (m->batch.count < first.count) /* it was full, and flushed */
			return -EAGAIN;
		m->batch.count = m->batch.read_from = first.count;
		m->batch.used = first.used;
		m->written.count = st.mm->written_first;
		m->holes.count = st.mm->holes_first;
		mem_retire(m, st.mm);
		return collect_one(m, tree, task);
	}
	st.mm->written_end = m->written.count;
	st.mm->holes_end = m->holes.count;
	return r;
}

/* As the look had the VMAs: the pause looks again. What is found is forgotten. */
void mem_rehearse(struct native_mem *m, struct native_tree *tree)
{
	for (size_t i = 0; i < tree->task_count; i++) {
		struct stop st = { .m = m, .task = &tree->tasks[i] };

		st.mm = mem_find(m, st.task->pid);
		m->written.count = 0;
		if (!st.task->zombie && st.mm && st.mm->ops == &track_uffd)
			(void)!find_written(&st);
	}
	m->written.count = 0;
}

int mem_collect(struct native_mem *m, struct native_tree *tree)
{
	int r = mem_check(tree);

	if (r < 0)
		return r;
	m->batch.paused = true;
	m->batch.forked = tree->task_count > 1;
	m->written.count = m->holes.count = 0;
	m->counts.scan_us = m->counts.list_us = m->counts.copy_us = m->counts.holes_us = 0;
	for (size_t i = 0; i < tree->task_count; i++) {
		const struct native_task *task = &tree->tasks[i];

		if (task->zombie || !task->vma_count)
			continue;
		r = collect_one(m, tree, task);
		if (r < 0)
			return native_fail(tree, r, "memory of process %d cannot be read: %s",
					   task->pid, strerror(-r));
	}
	m->collected = true;
	return 0;
}

/* Of those alone that stood in the pause: another one may be gone, and its id somebody else's. */
int mem_settle(struct native_mem *m, const struct native_tree *tree)
{
	int r = 0, cleared = 0;

	for (size_t i = 0; r == 0 && i < tree->task_count; i++) {
		const struct native_task *task = &tree->tasks[i];
		struct mem_mm *mm = mem_find(m, task->pid);

		if (task->zombie || !task->vma_count || !mm || !mm->ops || !mm->ops->settled)
			continue;
		m->settled = true;
		cleared = 1;
		r = mm->ops->settled(m, mm);
		if (r == 0 && mm->ops->listed)
			r = mm->ops->listed(mm, task->vmas, task->vma_count);
	}
	if (r == -ENOENT) /* killed, and waited for */
		r = -ESRCH;
	return r < 0 ? r : cleared;
}
