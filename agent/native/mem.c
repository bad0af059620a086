// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/mem.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "agent/native/track.h"

enum {
	REGIONS_ROOM = 32768, /* made before the first pause */
};

uint64_t mem_clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

void space_forget(struct mem_space *s)
{
	s->map.count = s->fresh.count = s->drops.count = s->puts.count = s->missed.count = 0;
	s->hash_count = 0;
}

void space_deinit(struct mem_space *s)
{
	runs_deinit(&s->map);
	runs_deinit(&s->fresh);
	runs_deinit(&s->drops);
	runs_deinit(&s->puts);
	runs_deinit(&s->missed);
	free(s->hashes);
	s->hashes = NULL;
}

int space_unknow(struct mem_space *s, uint64_t start, uint64_t count)
{
	struct run run = { start, count, run_from(RUN_KIND_NONE, 0) };

	return runs_overlay(&s->fresh, &(struct runs){ .v = &run, .count = 1 }, false);
}

static size_t place_of(const struct native_mem *m, pid_t pid)
{
	size_t low = 0, high = m->mm_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (m->mms[mid]->pid < pid)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

struct mem_mm *mem_find(const struct native_mem *m, pid_t pid)
{
	size_t i = place_of(m, pid);

	return i < m->mm_count && m->mms[i]->pid == pid ? m->mms[i] : NULL;
}

static int make_room(struct mem_mm ***v, size_t count, size_t *room)
{
	size_t more = *room ? *room * 2 : 16;
	struct mem_mm **grown;

	if (count < *room)
		return 0;
	grown = reallocarray(*v, more, sizeof(**v));
	if (!grown)
		return -ENOMEM;
	*v = grown;
	*room = more;
	return 0;
}

struct mem_mm *mem_new_mm(struct native_mem *m, pid_t pid)
{
	size_t i = place_of(m, pid);
	struct mem_mm *mm;

	/* Room among the dead as well: retiring must not fail. */
	if (make_room(&m->mms, m->mm_count, &m->mm_room) < 0 ||
	    make_room(&m->dead, m->dead_count + m->mm_count + 1, &m->dead_room) < 0)
		return NULL;
	mm = calloc(1, sizeof(*mm));
	if (!mm)
		return NULL;
	mm->pid = pid;
	mm->uffd = mm->pagemap = mm->memory = -1;
	mm->full = true;
	mm->space.pages_id = ++m->last_pages_id;
	memmove(m->mms + i + 1, m->mms + i, (m->mm_count - i) * sizeof(*m->mms));
	m->mms[i] = mm;
	m->mm_count++;
	return mm;
}

void mem_retire(struct native_mem *m, struct mem_mm *mm)
{
	size_t i = place_of(m, mm->pid);

	m->mm_count--;
	memmove(m->mms + i, m->mms + i + 1, (m->mm_count - i) * sizeof(*m->mms));
	m->dead[m->dead_count++] = mm;
}

void mem_bury(struct native_mem *m)
{
	uint64_t start = mem_clock_ns();

	if (!m->dead_count)
		return;
	for (size_t i = 0; i < m->dead_count; i++) {
		struct mem_mm *mm = m->dead[i];

		if (mm->ops)
			mm->ops->detach(mm);
		if (mm->pagemap >= 0)
			close(mm->pagemap);
		if (mm->memory >= 0)
			close(mm->memory);
		runs_deinit(&mm->covered);
		runs_deinit(&mm->stayed);
		runs_deinit(&mm->moved);
		runs_deinit(&mm->listed_at);
		runs_deinit(&mm->guards);
		runs_deinit(&mm->listed);
		space_deinit(&mm->space);
		free(mm);
	}
	m->dead_count = 0;
	m->counts.detach_us += (uint32_t)((mem_clock_ns() - start) / 1000);
}

static int choose_tracker(struct native_mem *m)
{
	static const struct track_ops *const all[] = {
		[TRACK_UFFD] = &track_uffd,
		[TRACK_SOFT_DIRTY] = &track_soft,
		[TRACK_HASH] = &track_hash,
	};

	if (m->config.tracker != TRACK_AUTO) {
		if ((size_t)m->config.tracker >= ARRAY_SIZE(all))
			return -EINVAL;
		m->ops = all[m->config.tracker];
		return m->ops->probe(m) ? 0 : -EOPNOTSUPP;
	}
	for (size_t i = TRACK_UFFD; i < ARRAY_SIZE(all) && !m->ops; i++)
		if (all[i]->probe(m))
			m->ops = all[i];
	return 0;
}

static int touch_regions(struct regions *r)
{
	int err = regions_reserve(r, REGIONS_ROOM);

	if (err == 0)
		memset(r->v, 0, r->room * sizeof(*r->v));
	return err;
}

int mem_create(const struct native_mem_config *config, struct native_mem **ret_mem)
{
	struct native_mem *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->config = *config;
	m->spool.fd = -1;
	scan_probe(&m->features);
	r = choose_tracker(m);
	if (r == 0)
		r = batch_create(&m->batch, config->buffer_bytes);
	if (r == 0) {
		m->scratch = calloc(SCRATCH_PAGES, NATIVE_PAGE);
		r = m->scratch ? touch_regions(&m->written) : -ENOMEM;
	}
	if (r == 0)
		r = touch_regions(&m->kinds);
	if (r == 0)
		r = touch_regions(&m->holes);
	if (r < 0) {
		mem_destroy(m);
		return r;
	}
	*ret_mem = m;
	return 0;
}

void mem_destroy(struct native_mem *m)
{
	if (!m)
		return;
	while (m->mm_count)
		mem_retire(m, m->mms[m->mm_count - 1]);
	mem_bury(m);
	objects_destroy(m);
	spool_close(&m->spool);
	batch_destroy(&m->batch);
	regions_deinit(&m->written);
	regions_deinit(&m->kinds);
	regions_deinit(&m->holes);
	free(m->scratch);
	free(m->mms);
	free(m->dead);
	free(m);
}

void mem_forget(struct native_mem *m)
{
	for (size_t i = 0; i < m->mm_count; i++) {
		space_forget(&m->mms[i]->space);
		m->mms[i]->full = true;
	}
	for (size_t i = 0; i < m->object_count; i++)
		space_forget(&m->objects[i]->space);
	batch_reset(&m->batch);
	spool_close(&m->spool);
	m->taking = m->collected = m->settled = false;
}

void mem_counts(const struct native_mem *m, struct native_mem_counts *ret_counts)
{
	*ret_counts = m->counts;
}

/*
 * Written ranges and missed pages: what was stored of them holds no longer. The pause has read them
 * all; where it compares, only what differs was stored anew, and the rest still holds.
 */
static int drop_written(const struct native_mem *m, struct mem_mm *mm)
{
	struct runs gone = { 0 };
	int r = 0;

	for (size_t i = mm->written_first; i < mm->written_end && r == 0; i++) {
		const struct region *v = &m->written.v[i];

		r = runs_push(&gone, v->start / NATIVE_PAGE, (v->end - v->start) / NATIVE_PAGE);
	}
	for (size_t i = 0; !mm->space.compare && i < mm->space.missed.count && r == 0; i++)
		r = runs_push(&gone, mm->space.missed.v[i].start, mm->space.missed.v[i].count);
	runs_normalise(&gone);
	if (r == 0)
		r = runs_overlay(&mm->space.fresh, &gone, false);
	runs_deinit(&gone);
	return r;
}

/* Of what was listed, the pages that the list does not show as having content of their own. */
static int drop_unlisted(const struct native_mem *m, struct mem_mm *mm)
{
	struct runs gone = { 0 };
	size_t h = mm->holes_first;
	int r = 0;

	for (size_t i = 0; i < mm->listed.count && r == 0; i++) {
		uint64_t at = mm->listed.v[i].start, end = at + mm->listed.v[i].count;

		for (; h < mm->holes_end && r == 0; h++) {
			const struct region *v = &m->holes.v[h];
			uint64_t start = v->start / NATIVE_PAGE;

			if (start >= end)
				break;
			if (v->categories & (PAGE_FILE | PAGE_PFNZERO))
				continue;
			if (start > at)
				r = runs_add(&gone, at, start - at, 0);
			at = v->end / NATIVE_PAGE;
		}
		if (at < end && r == 0)
			r = runs_add(&gone, at, end - at, 0);
	}
	if (r == 0)
		r = runs_overlay(&mm->space.fresh, &gone, false);
	runs_deinit(&gone);
	return r;
}

/* Nothing outside of the private VMAs of the frozen instant. */
static int drop_unmapped(struct mem_mm *mm, const struct native_task *task)
{
	struct runs gone = { 0 };
	uint64_t at = 0;
	int r = 0;

	for (size_t i = 0; i < task->vma_count && r == 0; i++) {
		const struct state_vma *v = &task->vmas[i];

		if (!vma_has_pages(v))
			continue;
		if (v->start / NATIVE_PAGE > at)
			r = runs_add(&gone, at, v->start / NATIVE_PAGE - at, 0);
		at = v->end / NATIVE_PAGE;
	}
	if (r == 0)
		r = runs_add(&gone, at, UINT64_MAX / NATIVE_PAGE - at, 0);
	if (r == 0)
		r = runs_overlay(&mm->space.fresh, &gone, false);
	runs_deinit(&gone);
	return r;
}

static int write_one(struct native_mem *m, struct native_tree *tree, struct native_task *task)
{
	struct mem_mm *mm = mem_find(m, task->pid);
	char name[64];
	int r;

	if (!mm)
		return -ESTALE;
	r = drop_unmapped(mm, task);
	if (r == 0)
		r = drop_unlisted(m, mm);
	if (r == 0)
		r = drop_written(m, mm);
	if (r == 0)
		r = runs_overlay(&mm->space.fresh, &mm->guards, false);
	if (r == 0)
		r = space_settle(&mm->space);
	if (r == 0)
		r = runs_overlay(&mm->space.map, &mm->space.fresh, true);
	if (r < 0)
		return r;
	mm->space.fresh.count = mm->space.missed.count = 0;
	if (task->state)
		mm->identity = task->state->mm;
	snprintf(name, sizeof(name), "pagemap-%d", task->inner_pid);
	r = space_write(m, tree, &mm->space, name);
	return r == 0 ? mm_write(tree, task, mm) : r;
}

static int write_all(struct native_mem *m, struct native_tree *tree)
{
	int r;

	if (!m->taking || !m->collected)
		return -ESTALE;
	r = batch_flush(m);
	for (size_t i = 0; i < tree->task_count && r == 0; i++) {
		struct native_task *task = &tree->tasks[i];

		if (!task->zombie && task->vma_count)
			r = write_one(m, tree, task);
	}
	return r == 0 ? objects_write(m, tree) : r;
}

int mem_write(struct native_mem *m, struct native_tree *tree)
{
	int r = write_all(m, tree);

	if (r < 0) {
		mem_forget(m);
		return native_fail(tree, r, "memory: the images cannot be written: %s",
				   strerror(-r));
	}
	m->counts.new_bytes = m->spool.blocks * NATIVE_PAGE;
	for (size_t i = m->mm_count; i-- > 0;)
		if (!m->mms[i]->seen)
			mem_retire(m, m->mms[i]);
	mem_bury(m);
	spool_close(&m->spool);
	m->taking = m->collected = m->settled = false;
	return 0;
}
