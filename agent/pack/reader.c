// SPDX-License-Identifier: LGPL-2.1-or-later
/* Which pack is read when, and by whom. What becomes of its frames: reader_frames.c. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "agent/pack/reader_internal.h"
#include "agent/util/io.h"

int reader_create(const struct reader_config *config, const struct reader_range *ranges,
		  size_t count, struct pack_reader **ret_reader)
{
	struct pack_reader *r = calloc(1, sizeof(*r));
	pthread_condattr_t attr;
	int e;

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
	e = reader_plan(r, ranges, count);
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
	wants_deinit(r);
	slotmap_deinit(&r->links);
	free(r->items);
	free(r->work);
	free(r->work_of);
	free(r->deltas);
	free(r->by_block);
	free(r);
}

/* ---- who reads what ---- */

static bool is_over(const struct pack_reader *r)
{
	return r->cancelled || r->error < 0 || r->open == 0;
}

void reader_urge_work(struct pack_reader *r, struct work *w, uint32_t frame)
{
	r->urgent_ns = now_boot_ns();
	if (w->urgent)
		return;
	w->urgent = ++r->urged;
	w->frame = frame;
	r->urgent_open++;
	pthread_cond_broadcast(&r->changed);
}

void reader_reopen(struct pack_reader *r, struct work *w)
{
	size_t index = (size_t)(w - r->work);

	if (w->state != WORK_DONE)
		return; /* of a busy one, work_done() sees it */
	w->state = WORK_TODO;
	r->open++;
	if (index < r->next)
		r->next = index;
	pthread_cond_broadcast(&r->changed);
}

/* Who began to wait first. */
static struct work *next_urgent(const struct pack_reader *r)
{
	struct work *first = NULL;

	for (size_t i = r->next; r->urgent_open > 0 && i < r->work_count; i++) {
		struct work *w = &r->work[i];

		if (w->state == WORK_TODO && w->urgent && (!first || w->urgent < first->urgent))
			first = w;
	}
	return first;
}

/*
 * While somebody waits for a page, the network and the processors are left to that. Who just waited
 * mostly does again: so for a moment one thread goes on, and the others wait too.
 */
static bool background_may(const struct pack_reader *r)
{
	if (!r->on_demand)
		return true;
	if (r->urgent_open > 0)
		return false;
	if (r->c.ahead)
		return true;
	if (!r->let_go)
		return false;
	return r->background == 0 || now_boot_ns() - r->urgent_ns > READER_QUIET_MS * 1000000ull;
}

/* What was put off waits until older packs have taken enough differences away. */
static bool must_wait(const struct pack_reader *r, const struct work *w)
{
	uint64_t max = r->c.wants_max ? r->c.wants_max : READER_WANTS_MAX;

	return w->deferred && !w->wants && r->wants_bytes > max / 2;
}

static struct work *next_of_all(struct pack_reader *r)
{
	if (!background_may(r))
		return NULL;
	while (r->next < r->work_count && r->work[r->next].state != WORK_TODO)
		r->next++;
	for (size_t i = r->next; i < r->work_count; i++) {
		struct work *w = &r->work[i];

		if (w->state != WORK_TODO || must_wait(r, w))
			continue;
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
	if (!urgent_only && r->on_demand && !r->c.ahead && r->let_go && r->urgent_open == 0) {
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
		if (!w && (!urgent_only || (r->c.ahead && r->let_go)))
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

/* Whether all of it is done, and what somebody waits for if not. */
static void work_settle(struct pack_reader *r, struct work *w, const struct leftover *left)
{
	w->passed = true;
	w->deferred = left->deferred;
	if (!left->again && !left->deferred && !w->wants) {
		w->state = WORK_DONE;
		r->open--;
		return;
	}
	w->state = WORK_TODO;
	if ((size_t)(w - r->work) < r->next)
		r->next = (size_t)(w - r->work);
	for (const struct want *want = w->wants; want; want = want->next)
		if (want->urgent)
			reader_urge_work(r, w, want->slot / PACK_FRAME_BLOCKS);
}

static void work_done(struct pack_reader *r, struct work *w, int error, const struct leftover *left)
{
	pthread_mutex_lock(&r->lock);
	if (w->urgent)
		r->urgent_open--;
	if (w->background)
		r->background--;
	w->urgent = 0;
	w->background = false;
	if (error == 0) {
		work_settle(r, w, left);
		if (r->c.progress)
			r->c.progress(r->c.ctx, r->done_bytes, r->total_bytes);
	} else {
		w->state = WORK_TODO;
		r->error = r->error < 0 ? r->error : error;
	}
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

/* May a pack that has differences to w's blocks be read before w? */
static bool newer_is_open(const struct pack_reader *r, const struct work *w)
{
	for (size_t i = 0; i < r->delta_count && r->deltas[i]->seq > w->seq; i++) {
		const struct work *newer = r->deltas[i];

		/*
		 * On demand threads pick what is urgent, so not to wait for what nobody reads. Else who
		 * puts a newer pack on the list reads it next.
		 */
		if (!newer->passed &&
		    (newer->state == WORK_BUSY || (newer->state == WORK_TODO && !r->on_demand)))
			return true;
	}
	return false;
}

/* What is fetched already waits, so that all differences to its blocks are known. */
static void await_newer(struct pack_reader *r, const struct work *w)
{
	pthread_mutex_lock(&r->lock);
	while (!is_over(r) && !w->urgent && newer_is_open(r, w))
		pthread_cond_wait(&r->changed, &r->lock);
	pthread_mutex_unlock(&r->lock);
}

/* What is fetched ahead waits until there is a place for it. False: it is to end. */
static bool await_let_go(struct pack_reader *r, const struct work *w)
{
	bool go_on;

	if (!r->c.ahead)
		return true;
	pthread_mutex_lock(&r->lock);
	while (!is_over(r) && !r->let_go && !w->urgent)
		pthread_cond_wait(&r->changed, &r->lock);
	go_on = !is_over(r);
	pthread_mutex_unlock(&r->lock);
	return go_on;
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

/* Nobody waits for a pack that nobody gives. */
static void pass_over(struct pack_reader *r, struct work *w)
{
	pthread_mutex_lock(&r->lock);
	w->passed = true;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

/* Until the next try; false: it is to end. */
static bool starve(struct pack_reader *r, struct worker *me, struct work *w, int error)
{
	if (!me->starving && r->on_demand) {
		pass_over(r, w);
		count_starving(r, 1, error);
	}
	me->starving = r->on_demand;
	return pause_before_retry(r);
}

static int fetch_patiently(struct pack_reader *r, struct worker *me, struct work *w)
{
	unsigned int tries_max = r->c.tries_max;
	int e;

	if (tries_max == 0 && !r->on_demand)
		tries_max = READER_TRIES;
	for (unsigned int tries = 1;; tries++) {
		e = reader_fetch(r, me, w->pack);
		if (e == 0 || (tries_max > 0 && (tries >= tries_max || !may_come_back(e))))
			break;
		if (!starve(r, me, w, e)) {
			e = r->on_demand ? -ECANCELED : e;
			break;
		}
	}
	/* Called off: nobody needs to hear that all is well. */
	if (me->starving && e == 0) {
		me->starving = false;
		count_starving(r, -1, 0);
	}
	return e;
}

/* A false pack may show while it is opened: to who waits until it comes it is as none. */
static int read_pack(struct pack_reader *r, struct worker *me, struct work *w,
		     struct leftover *left)
{
	int e;

	for (;;) {
		e = fetch_patiently(r, me, w);
		if (e == 0 && !await_let_go(r, w))
			e = -ECANCELED;
		if (e < 0)
			return e;
		await_newer(r, w);
		e = reader_hand_over(r, me, w, left);
		if (e != -EBADMSG || !r->on_demand || r->c.tries_max > 0 ||
		    !reader_was_deceived(r, me, w->pack))
			return e;
		wants_put_back(r, me, w);
		worker_forget(me);
		if (!starve(r, me, w, e))
			return -ECANCELED;
	}
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
		struct leftover left = { 0 };

		e = read_pack(r, &me, w, &left);
		worker_forget(&me);
		work_done(r, w, e, &left);
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
	size_t others = r->delta_count == 0 && r->open < READER_THREADS ? r->open : READER_THREADS;

	if (r->open == 0)
		return 0;
	start_threads(r, others - 1);
	work_off(r, false);
	return reader_wait(r, -1);
}

int reader_start(struct pack_reader *r)
{
	int e = reader_plan_demand(r);

	if (e < 0)
		return e;
	r->on_demand = true;
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

static struct work *work_of(const struct pack_reader *r, uint32_t pack)
{
	return &r->work[r->work_of[pack]];
}

enum reader_answer reader_urge(struct pack_reader *r, uint32_t file, uint64_t block)
{
	struct placement *p = reader_find(r, file, block);
	enum reader_answer answer = READER_COMING;
	struct want *want;
	uint64_t bit;

	if (!p)
		return READER_ZERO;
	bit = (uint64_t)1 << (block - p->block);
	pthread_mutex_lock(&r->lock);
	want = want_find(r, file, block);
	if (p->left & bit) {
		p->urged |= bit;
		reader_urge_work(r, work_of(r, p->pack),
				 (uint32_t)(p->slot + (block - p->block)) / PACK_FRAME_BLOCKS);
	} else if (want) {
		want->urgent = true;
		reader_urge_work(r, work_of(r, want->pack), want->slot / PACK_FRAME_BLOCKS);
	} else {
		answer = READER_THERE;
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
	result = r->error < 0 ? r->error : r->open == 0 ? 1 : r->cancelled ? -ECANCELED : 0;
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
