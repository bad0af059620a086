// SPDX-License-Identifier: LGPL-2.1-or-later
/* Which pack is read when, and by whom. What becomes of its frames: reader_frames.c. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "agent/pack/reader_internal.h"
#include "agent/util/io.h"

/* ---- what lies where ---- */

static int place(struct pack_reader *r, const struct placement *p)
{
	if (r->count == r->capacity) {
		size_t capacity = r->capacity ? r->capacity * 2 : 256;
		struct placement *bigger = reallocarray(r->items, capacity, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		r->items = bigger;
		r->capacity = capacity;
	}
	r->items[r->count++] = *p;
	r->total_bytes += (uint64_t)p->count * PACK_BLOCK;
	return 0;
}

/* `count` slots of one extent, cut where frames end. */
static int place_extent(struct pack_reader *r, struct placement p, uint32_t slot, uint64_t count)
{
	while (count > 0) {
		uint64_t n = PACK_FRAME_BLOCKS - slot % PACK_FRAME_BLOCKS;
		int e;

		n = n < count ? n : count;
		p.slot = (uint16_t)slot;
		p.count = (uint16_t)n;
		e = place(r, &p);
		if (e < 0)
			return e;
		slot += (uint32_t)n;
		p.block += n;
		count -= n;
	}
	return 0;
}

static int place_range(struct pack_reader *r, const struct reader_range *range)
{
	const Decamp__File *f = r->c.manifest->pb->files[range->file];
	uint64_t at = 0, end = range->first + range->count;

	for (size_t i = 0; i < f->n_extent_pack && at < end; at += f->extent_count[i++]) {
		uint64_t first = at > range->first ? at : range->first;
		uint64_t last = at + f->extent_count[i] < end ? at + f->extent_count[i] : end;
		struct placement p = { .pack = f->extent_pack[i],
				       .file = range->file,
				       .block = first };
		int e;

		if (last <= first || p.pack == PACK_ZERO)
			continue;
		e = place_extent(r, p, f->extent_slot[i] + (uint32_t)(first - at), last - first);
		if (e < 0)
			return e;
	}
	return 0;
}

static int compare_placements(const void *a, const void *b)
{
	const struct placement *x = a, *y = b;

	if (x->pack != y->pack)
		return x->pack < y->pack ? -1 : 1;
	if (x->slot != y->slot)
		return x->slot < y->slot ? -1 : 1;
	return 0;
}

static int compare_blocks(const void *a, const void *b, void *ctx)
{
	const struct placement *items = ctx, *x = items + *(const uint32_t *)a,
			       *y = items + *(const uint32_t *)b;

	if (x->file != y->file)
		return x->file < y->file ? -1 : 1;
	return x->block < y->block ? -1 : x->block > y->block;
}

/* Newest first; packs of one checkpoint as they were written. */
static int compare_seqs(const void *a, const void *b, void *ctx)
{
	const struct pack_reader *r = ctx;
	const struct work *x = a, *y = b;
	uint64_t xs = r->c.manifest->pb->packs[x->pack]->seq,
		 ys = r->c.manifest->pb->packs[y->pack]->seq;

	if (xs != ys)
		return xs > ys ? -1 : 1;
	return x->pack < y->pack ? -1 : x->pack > y->pack;
}

static int make_work(struct pack_reader *r)
{
	size_t packs = r->c.manifest->pb->n_packs;

	if (r->count > UINT32_MAX)
		return -EFBIG;
	if (r->count > 0)
		qsort(r->items, r->count, sizeof(*r->items), compare_placements);
	r->work = calloc(packs + 1, sizeof(*r->work));
	r->work_of = calloc(packs + 1, sizeof(*r->work_of));
	r->urgent = calloc(packs + 1, sizeof(*r->urgent));
	r->by_block = calloc(r->count + 1, sizeof(*r->by_block));
	if (!r->work || !r->work_of || !r->urgent || !r->by_block)
		return -ENOMEM;
	for (size_t i = 0; i < r->count; i++) {
		struct work *last = r->work_count ? &r->work[r->work_count - 1] : NULL;

		r->by_block[i] = (uint32_t)i;
		if (last && last->pack == r->items[i].pack)
			last->count++;
		else
			r->work[r->work_count++] =
				(struct work){ .pack = r->items[i].pack, .first = i, .count = 1 };
	}
	return 0;
}

static void sort_for_demand(struct pack_reader *r)
{
	qsort_r(r->by_block, r->count, sizeof(*r->by_block), compare_blocks, r->items);
	qsort_r(r->work, r->work_count, sizeof(*r->work), compare_seqs, r);
	for (size_t i = 0; i < r->work_count; i++)
		r->work_of[r->work[i].pack] = (uint32_t)i;
}

int reader_create(const struct reader_config *config, const struct reader_range *ranges,
		  size_t count, struct pack_reader **ret_reader)
{
	struct pack_reader *r = calloc(1, sizeof(*r));
	pthread_condattr_t attr;
	int e = 0;

	if (!r)
		return -ENOMEM;
	r->c = *config;
	pthread_mutex_init(&r->lock, NULL);
	pthread_mutex_init(&r->seed_lock, NULL);
	pthread_mutex_init(&r->starved_lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&r->changed, &attr);
	pthread_condattr_destroy(&attr);
	for (size_t i = 0; e == 0 && i < count; i++)
		e = place_range(r, &ranges[i]);
	if (e == 0)
		e = make_work(r);
	if (e < 0) {
		reader_destroy(r);
		return e;
	}
	*ret_reader = r;
	return 0;
}

void reader_destroy(struct pack_reader *r)
{
	if (!r)
		return;
	reader_cancel(r);
	for (size_t i = 0; i < r->thread_count; i++)
		pthread_join(r->threads[i], NULL);
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->lock);
	pthread_mutex_destroy(&r->seed_lock);
	pthread_mutex_destroy(&r->starved_lock);
	free(r->items);
	free(r->work);
	free(r->work_of);
	free(r->urgent);
	free(r->by_block);
	free(r);
}

/* ---- who reads what ---- */

static bool is_over(const struct pack_reader *r)
{
	return r->cancelled || r->error < 0 || r->done == r->work_count;
}

static struct work *next_urgent(struct pack_reader *r)
{
	while (r->urgent_first != r->urgent_last) {
		struct work *w = &r->work[r->urgent[r->urgent_first++ % (r->work_count + 1)]];

		if (w->state == WORK_TODO)
			return w;
	}
	return NULL;
}

/*
 * While somebody waits for a page, the network and the processors are left to that. Who just waited
 * mostly does again: so for a moment one thread goes on, and the others wait too.
 */
static bool background_may(const struct pack_reader *r)
{
	if (!r->on_demand)
		return true;
	if (!r->let_go || r->urgent_open > 0)
		return false;
	return r->background == 0 || now_boot_ns() - r->urgent_ns > READER_QUIET_MS * 1000000ull;
}

static struct work *next_of_all(struct pack_reader *r)
{
	if (!background_may(r))
		return NULL;
	for (size_t i = 0; i < r->work_count; i++) {
		struct work *w = &r->work[(r->next + i) % r->work_count];

		if (w->state != WORK_TODO)
			continue;
		r->next = (r->next + i + 1) % r->work_count;
		w->background = true;
		r->background++;
		return w;
	}
	return NULL;
}

static void wait_for_work(struct pack_reader *r, bool urgent_only)
{
	struct timespec until;

	/* Quiet comes by itself. */
	if (!urgent_only && r->on_demand && r->let_go && r->urgent_open == 0) {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += READER_QUIET_MS * 1000000;
		if (until.tv_nsec >= 1000000000) {
			until.tv_sec++;
			until.tv_nsec -= 1000000000;
		}
		pthread_cond_timedwait(&r->changed, &r->lock, &until);
	} else {
		pthread_cond_wait(&r->changed, &r->lock);
	}
}

/* NULL: all is done, or it is to end. */
static struct work *next_work(struct pack_reader *r, bool urgent_only)
{
	struct work *w = NULL;

	pthread_mutex_lock(&r->lock);
	while (!is_over(r)) {
		w = next_urgent(r);
		if (!w && !urgent_only)
			w = next_of_all(r);
		if (w) {
			w->state = WORK_BUSY;
			break;
		}
		wait_for_work(r, urgent_only);
	}
	pthread_mutex_unlock(&r->lock);
	return w;
}

static void work_done(struct pack_reader *r, struct work *w, int error)
{
	pthread_mutex_lock(&r->lock);
	if (w->urgent)
		r->urgent_open--;
	if (w->background)
		r->background--;
	w->urgent = w->background = false;
	w->state = error == 0 ? WORK_DONE : WORK_TODO;
	if (error == 0) {
		r->done++;
		for (size_t i = 0; i < w->count; i++)
			r->done_bytes += (uint64_t)r->items[w->first + i].count * PACK_BLOCK;
		if (r->c.progress)
			r->c.progress(r->c.ctx, r->done_bytes, r->total_bytes);
	} else if ((error != -EAGAIN || !r->on_demand) && r->error == 0) {
		r->error = error;
	}
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

/* Between two frames of a pack that nobody waits for. */
void reader_give_way(struct pack_reader *r, const struct work *w)
{
	if (!r->on_demand)
		return;
	pthread_mutex_lock(&r->lock);
	while (!is_over(r) && !w->urgent && r->urgent_open > 0)
		pthread_cond_wait(&r->changed, &r->lock);
	pthread_mutex_unlock(&r->lock);
}

uint32_t reader_first_frame(struct pack_reader *r, const struct work *w)
{
	uint32_t frame;

	pthread_mutex_lock(&r->lock);
	frame = w->urgent ? w->frame : 0;
	pthread_mutex_unlock(&r->lock);
	return frame;
}

/* False: it is to end. */
static bool pause_before_retry(struct pack_reader *r)
{
	struct timespec until;
	bool go_on;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += READER_RETRY_MS / 1000;
	pthread_mutex_lock(&r->lock);
	while (!is_over(r) && pthread_cond_timedwait(&r->changed, &r->lock, &until) == 0)
		;
	go_on = !is_over(r);
	pthread_mutex_unlock(&r->lock);
	return go_on;
}

/* Told once when the first thread gets nothing, and once when the last one gets something again. */
static void count_starving(struct pack_reader *r, int by, int error)
{
	pthread_mutex_lock(&r->starved_lock);
	r->starving += by;
	if (r->c.starved && r->starving == (by > 0 ? 1 : 0))
		r->c.starved(r->c.ctx, by > 0 ? error : 0);
	pthread_mutex_unlock(&r->starved_lock);
}

/* Nobody answered in time, which is so of a host that itself stood still for a while. */
static bool may_come_back(int error)
{
	return error == -ENOENT || error == -EAGAIN || error == -EHOSTUNREACH;
}

static int fetch_patiently(struct pack_reader *r, struct worker *me, const struct work *w)
{
	bool starving = false;
	int e;

	for (int tries = 1;; tries++) {
		e = reader_fetch(r, me, w->pack);
		if (e == 0 || (!r->on_demand && (tries == READER_TRIES || !may_come_back(e))))
			break;
		if (!starving && r->on_demand)
			count_starving(r, 1, e);
		starving = r->on_demand;
		if (!pause_before_retry(r)) {
			e = r->on_demand ? -ECANCELED : e;
			break;
		}
	}
	/* Called off: nobody needs to hear that all is well. */
	if (starving && e == 0)
		count_starving(r, -1, 0);
	return e;
}

static void work_off(struct pack_reader *r, bool urgent_only)
{
	struct worker me = { 0 };
	struct work *w;
	int e = worker_init(&me);

	if (e < 0) {
		pthread_mutex_lock(&r->lock);
		if (!r->thread_count || !r->on_demand)
			r->error = r->error < 0 ? r->error : e;
		pthread_cond_broadcast(&r->changed);
		pthread_mutex_unlock(&r->lock);
		return;
	}
	while ((w = next_work(r, urgent_only))) {
		e = fetch_patiently(r, &me, w);
		if (e == 0)
			e = reader_hand_over(r, &me, w);
		worker_forget(&me);
		work_done(r, w, e);
	}
	worker_deinit(&me);
}

static void *reader_thread(void *arg)
{
	struct pack_reader *r = arg;
	bool urgent_only;

	/* One of them is always free for what somebody waits for. */
	pthread_mutex_lock(&r->lock);
	urgent_only = r->on_demand && r->workers++ == 0;
	pthread_mutex_unlock(&r->lock);
	work_off(r, urgent_only);
	return NULL;
}

static void start_threads(struct pack_reader *r, size_t max)
{
	while (r->thread_count < max &&
	       pthread_create(&r->threads[r->thread_count], NULL, reader_thread, r) == 0)
		r->thread_count++;
}

int reader_run(struct pack_reader *r)
{
	size_t others = r->work_count < READER_THREADS ? r->work_count : READER_THREADS;

	if (r->work_count == 0)
		return 0;
	start_threads(r, others - 1);
	work_off(r, false);
	return reader_wait(r, -1);
}

int reader_start(struct pack_reader *r)
{
	r->on_demand = true;
	sort_for_demand(r);
	start_threads(r, READER_THREADS);
	/* One alone would serve urgent packs only. */
	return r->thread_count >= 2 ? 0 : -EAGAIN;
}

void reader_let_go(struct pack_reader *r)
{
	pthread_mutex_lock(&r->lock);
	r->let_go = true;
	r->urgent_ns = now_boot_ns(); /* the first faults come now */
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

static const struct placement *find(const struct pack_reader *r, uint32_t file, uint64_t block)
{
	size_t low = 0, high = r->count;

	/* The last one that does not begin behind it. */
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const struct placement *p = &r->items[r->by_block[middle]];

		if (p->file < file || (p->file == file && p->block <= block))
			low = middle + 1;
		else
			high = middle;
	}
	if (low > 0) {
		const struct placement *p = &r->items[r->by_block[low - 1]];

		if (p->file == file && block - p->block < p->count)
			return p;
	}
	return NULL;
}

enum reader_answer reader_urge(struct pack_reader *r, uint32_t file, uint64_t block)
{
	const struct placement *p = find(r, file, block);
	enum reader_answer answer = READER_COMING;
	struct work *w;

	if (!p)
		return READER_ZERO;
	w = &r->work[r->work_of[p->pack]];
	pthread_mutex_lock(&r->lock);
	if (w->state == WORK_DONE) {
		answer = READER_THERE;
	} else if (!w->urgent) {
		w->urgent = true;
		r->urgent_ns = now_boot_ns();
		w->frame = (uint32_t)((p->slot + (block - p->block)) / PACK_FRAME_BLOCKS);
		r->urgent_open++;
		if (w->state == WORK_TODO)
			r->urgent[r->urgent_last++ % (r->work_count + 1)] = (uint32_t)(w - r->work);
		pthread_cond_broadcast(&r->changed);
	}
	pthread_mutex_unlock(&r->lock);
	return answer;
}

int reader_wait(struct pack_reader *r, int timeout_ms)
{
	struct timespec until;
	int e = 0, result;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (timeout_ms > 0 ? timeout_ms : 0) / 1000;
	until.tv_nsec += (timeout_ms > 0 ? timeout_ms : 0) % 1000 * 1000000L;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&r->lock);
	while (!is_over(r) && e == 0)
		e = timeout_ms < 0 ? pthread_cond_wait(&r->changed, &r->lock) :
				     pthread_cond_timedwait(&r->changed, &r->lock, &until);
	result = r->error < 0		  ? r->error :
		 r->done == r->work_count ? 1 :
		 r->cancelled		  ? -ECANCELED :
					    0;
	pthread_mutex_unlock(&r->lock);
	/* reader_run() has no other results than 0 and an error. */
	return result == 1 && !r->on_demand ? 0 : result;
}

void reader_cancel(struct pack_reader *r)
{
	pthread_mutex_lock(&r->lock);
	r->cancelled = true;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}
