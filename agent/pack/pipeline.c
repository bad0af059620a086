// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Threads behind packer_add(): sealers compress and encrypt frames, storers name packs and store
 * them. Both queues are short, so that what is on its way is bounded; who fills them waits. Two
 * packs are on their way, so that one is sent while the holders of the other one sync it. Who waits
 * for a frame seals those that nobody has begun with.
 *
 *   packer_add: read, hash, compare -> frame -> [sealers] -> pack -> [storer: SHA-256, store()]
 *
 * Frames are taken back in order, sealers_frames() behind, and so are packs, STORER_PACKS behind: what
 * is written, and which pack's error counts, does not depend on who was faster. Beside a pack that
 * fails the next one may have been stored; what was stored stays known.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "agent/pack/internal.h"

struct sealers {
	pthread_mutex_t lock;
	pthread_cond_t work, done;
	struct frame_job *queue[PIPELINE_FRAMES]; /* waiting for a thread */
	size_t first, count;
	bool stop;
	pthread_t threads[PIPELINE_SEALERS_MAX];
	struct frame_scratch scratch[PIPELINE_SEALERS_MAX];
	struct frame_scratch own; /* of the thread that waits */
	unsigned int thread_count;
	unsigned int numbered; /* threads that have taken their number */
};

/* Seals the frame that waits longest, of at least one. Unlocks meanwhile. */
static void seal_next(struct sealers *s, struct frame_scratch *scratch)
{
	struct frame_job *f = s->queue[s->first];

	s->first = (s->first + 1) % PIPELINE_FRAMES;
	s->count--;
	pthread_mutex_unlock(&s->lock);
	frame_job_seal(f, scratch);
	pthread_mutex_lock(&s->lock);
	f->sealed = true;
	pthread_cond_broadcast(&s->done);
}

static void *seal_thread(void *arg)
{
	struct sealers *s = arg;
	struct frame_scratch *scratch;

	pthread_mutex_lock(&s->lock);
	scratch = &s->scratch[s->numbered++];
	for (;;) {
		while (s->count == 0 && !s->stop)
			pthread_cond_wait(&s->work, &s->lock);
		if (s->count == 0)
			break;
		seal_next(s, scratch);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

void sealers_destroy(struct sealers *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_broadcast(&s->work);
	pthread_mutex_unlock(&s->lock);
	for (unsigned int i = 0; i < s->thread_count; i++)
		pthread_join(s->threads[i], NULL);
	for (unsigned int i = 0; i < PIPELINE_SEALERS_MAX; i++)
		frame_scratch_deinit(&s->scratch[i]);
	frame_scratch_deinit(&s->own);
	pthread_cond_destroy(&s->work);
	pthread_cond_destroy(&s->done);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int sealers_create(unsigned int threads, struct sealers **ret_sealers)
{
	struct sealers *s = calloc(1, sizeof(*s));
	int r = 0;

	if (!s)
		return -ENOMEM;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->work, NULL);
	pthread_cond_init(&s->done, NULL);
	if (threads > PIPELINE_SEALERS_MAX)
		threads = PIPELINE_SEALERS_MAX;
	for (unsigned int i = 0; i < threads && r == 0; i++)
		r = frame_scratch_init(&s->scratch[i]);
	for (unsigned int i = 0; i < threads && r == 0; i++) {
		r = -pthread_create(&s->threads[i], NULL, seal_thread, s);
		s->thread_count += r == 0;
	}
	if (r < 0 && s->thread_count == 0) {
		sealers_destroy(s);
		return r;
	}
	*ret_sealers = s; /* fewer than asked for will do */
	return 0;
}

uint32_t sealers_frames(const struct sealers *s)
{
	uint32_t frames = s->thread_count * 2 + 2;

	return frames < PIPELINE_FRAMES ? frames : PIPELINE_FRAMES;
}

void sealers_submit(struct sealers *s, struct frame_job *f)
{
	pthread_mutex_lock(&s->lock);
	f->sealed = false;
	s->queue[(s->first + s->count++) % PIPELINE_FRAMES] = f;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

void sealers_wait(struct sealers *s, struct frame_job *f)
{
	pthread_mutex_lock(&s->lock);
	while (!f->sealed) {
		if (s->count > 0 && (s->own.zstd || frame_scratch_init(&s->own) == 0))
			seal_next(s, &s->own);
		else
			pthread_cond_wait(&s->done, &s->lock);
	}
	pthread_mutex_unlock(&s->lock);
}

/* ---- storing ---- */

struct storer {
	pthread_mutex_t lock;
	pthread_cond_t work, done;
	pthread_t threads[STORER_PACKS];
	unsigned int thread_count;
	void *ctx;
	bool stop;
	struct stored_pack packs[STORER_PACKS]; /* a ring: at work, then their results */
	bool stored[STORER_PACKS];
	uint32_t submitted, begun, taken; /* counts of all times */
};

static void *store_thread(void *arg)
{
	_cleanup_close_ int file = -1;
	struct storer *s = arg;

	pthread_mutex_lock(&s->lock);
	for (;;) {
		uint32_t at;

		while (s->begun == s->submitted && !s->stop)
			pthread_cond_wait(&s->work, &s->lock);
		if (s->begun == s->submitted)
			break;
		at = s->begun++ % STORER_PACKS;
		pthread_mutex_unlock(&s->lock);
		s->packs[at].result = pack_store_object(s->ctx, &file, &s->packs[at]);
		pthread_mutex_lock(&s->lock);
		s->stored[at] = true;
		pthread_cond_signal(&s->done);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

int storer_create(void *ctx, struct storer **ret_storer)
{
	struct storer *s = calloc(1, sizeof(*s));
	int r = 0;

	if (!s)
		return -ENOMEM;
	s->ctx = ctx;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->work, NULL);
	pthread_cond_init(&s->done, NULL);
	for (unsigned int i = 0; i < STORER_PACKS && r == 0; i++) {
		r = -pthread_create(&s->threads[i], NULL, store_thread, s);
		s->thread_count += r == 0;
	}
	if (s->thread_count == 0) {
		storer_destroy(s);
		return r;
	}
	*ret_storer = s; /* one will do */
	return 0;
}

bool storer_take(struct storer *s, uint32_t leave, struct stored_pack *ret_pack)
{
	uint32_t at = s->taken % STORER_PACKS;

	/* submitted and taken change in this thread only. */
	if (s->submitted - s->taken <= leave)
		return false;
	pthread_mutex_lock(&s->lock);
	while (!s->stored[at])
		pthread_cond_wait(&s->done, &s->lock);
	*ret_pack = s->packs[at];
	s->taken++;
	pthread_mutex_unlock(&s->lock);
	return true;
}

void storer_submit(struct storer *s, const struct stored_pack *pack)
{
	uint32_t at = s->submitted % STORER_PACKS;

	pthread_mutex_lock(&s->lock);
	s->packs[at] = *pack;
	s->stored[at] = false;
	s->submitted++;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

void storer_destroy(struct storer *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_broadcast(&s->work);
	pthread_mutex_unlock(&s->lock);
	for (unsigned int i = 0; i < s->thread_count; i++)
		pthread_join(s->threads[i], NULL);
	pthread_cond_destroy(&s->work);
	pthread_cond_destroy(&s->done);
	pthread_mutex_destroy(&s->lock);
	free(s);
}
