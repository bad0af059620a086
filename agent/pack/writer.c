// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <string.h>
#include <time.h>
/* For ZSTD_c_literalCompressionMode; a library without it compresses less at those levels. */
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

#include "agent/pack/internal.h"

enum {
	FRAME_OUT_MAX = PACK_BODY_MAX + AEAD_TAG,
	/* Frames on their way when the pack is found full are still of it. */
	OUT_MAX = sizeof(struct pack_header) + PACK_SEALED_FLUSH +
		  (PIPELINE_FRAMES + 2) * FRAME_OUT_MAX + PACK_TABLE_MAX + AEAD_TAG + PACK_PAD,
	PART_MIN = 1024, /* less is not worth a table of codes of its own */
	DELTA_WORDS_BYTES = PACK_FRAME_BLOCKS * PACK_DELTA_WORDS_MAX * 8,
};

_Static_assert((int)OUT_MAX <= (int)OV_PACK_MAX, "a pack fits the overlay's limit");
_Static_assert(MIXED_REF + PACK_BLOCK_MAP + PACK_DELTA_WORDS_MAX * 8 <= PACK_BLOCK,
	       "no delta is larger than its block");

/* ---- frames ---- */

int frame_job_init(struct frame_job *f)
{
	memset(f, 0, sizeof(*f));
	f->raw = malloc(PACK_FRAME_RAW);
	f->delta_words = malloc(DELTA_WORDS_BYTES);
	f->out = malloc(FRAME_OUT_MAX);
	if (f->raw && f->delta_words && f->out)
		return 0;
	frame_job_deinit(f);
	return -ENOMEM;
}

/* No more than was used: what was never touched would become memory by being wiped. */
static void wipe_free(void *bytes, size_t used)
{
	if (bytes)
		key_wipe(bytes, used);
	free(bytes);
}

static void note_used(size_t *used, size_t size)
{
	*used = *used > size ? *used : size;
}

static void frame_empty(struct frame_job *f)
{
	note_used(&f->raw_used, (size_t)f->full * PACK_BLOCK);
	note_used(&f->words_used, (size_t)f->words * 8);
	f->blocks = f->full = f->deltas = f->words = 0;
	f->which = 0;
}

void frame_job_deinit(struct frame_job *f)
{
	frame_empty(f);
	wipe_free(f->raw, f->raw_used);
	wipe_free(f->delta_words, f->words_used);
	free(f->out);
	key_wipe(f, sizeof(*f));
}

int frame_scratch_init(struct frame_scratch *s)
{
	s->zstd = ZSTD_createCCtx();
	s->body = malloc(PACK_BODY_MAX);
	s->packed = malloc(PACK_BODY_MAX);
	if (s->zstd && s->body && s->packed)
		return 0;
	frame_scratch_deinit(s);
	return -ENOMEM;
}

void frame_scratch_deinit(struct frame_scratch *s)
{
	ZSTD_freeCCtx(s->zstd);
	wipe_free(s->body, s->used);
	wipe_free(s->packed, s->used);
	memset(s, 0, sizeof(*s));
}

static size_t mixed_body(const struct frame_job *f, uint8_t *body)
{
	uint8_t *at = body;

	memcpy(at, &f->which, MIXED_HEADER);
	at += MIXED_HEADER;
	memcpy(at, f->refs, f->deltas * MIXED_REF);
	at += f->deltas * MIXED_REF;
	memcpy(at, f->maps, f->deltas * PACK_BLOCK_MAP);
	at += f->deltas * PACK_BLOCK_MAP;
	memcpy(at, f->raw, f->full * PACK_BLOCK);
	at += f->full * PACK_BLOCK;
	memcpy(at, f->delta_words, (size_t)f->words * 8);
	return (size_t)(at + (size_t)f->words * 8 - body);
}

static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/*
 * On memory images Huffman coding of literals takes a fifth off what levels from -1 to -5 leave, for
 * a twentieth of their speed; zstd leaves it out.
 */
static void set_level(struct frame_scratch *s, int level)
{
	if (level != s->level) {
		(void)ZSTD_CCtx_setParameter(s->zstd, ZSTD_c_compressionLevel, level);
		/* A smaller table of matches stays in the first cache: 1 % larger, much faster. */
		(void)ZSTD_CCtx_setParameter(s->zstd, ZSTD_c_hashLog, level == 1 ? 12 : 0);
		(void)ZSTD_CCtx_setParameter(s->zstd, ZSTD_c_literalCompressionMode,
					     level < 0 && level >= -5 ? ZSTD_lcm_huffman :
									ZSTD_lcm_auto);
		s->level = level;
	}
}

size_t frame_compress(struct frame_scratch *s, int level, const uint8_t *body, size_t size,
		      size_t words_size)
{
	size_t head = size - words_size, first, n;

	note_used(&s->used, size);
	if (level == 0)
		return 0;
	set_level(s, level);
	if (head < PART_MIN || words_size < PART_MIN)
		head = size;
	/* zstd says that it does not get smaller by running out of room. */
	first = ZSTD_compress2(s->zstd, s->packed, size - 1, body, head);
	if (ZSTD_isError(first) || head == size)
		return ZSTD_isError(first) ? 0 : first;
	n = ZSTD_compress2(s->zstd, s->packed + first, size - 1 - first, body + head, size - head);
	return ZSTD_isError(n) ? 0 : first + n;
}

void frame_job_seal(struct frame_job *f, struct frame_scratch *s)
{
	struct frame_ad ad = pack_frame_ad(&f->header, &f->job, f->seq, f->number);
	const uint8_t *body = f->raw, *plain = s->packed;
	size_t body_size = (size_t)f->full * PACK_BLOCK, size;
	uint64_t began = cpu_ns();

	f->frame = (struct pack_frame){ .blocks = (uint16_t)f->blocks };
	if (f->deltas > 0) {
		f->frame.flags |= PACK_FRAME_MIXED;
		body_size = mixed_body(f, s->body);
		body = s->body;
	}
	size = frame_compress(s, f->level, body, body_size, (size_t)f->words * 8);
	if (size == 0) {
		plain = body;
		size = body_size;
		f->frame.flags |= PACK_FRAME_STORED;
	}
	f->result = aead_seal(&f->key, f->number, &ad, sizeof(ad), plain, size, f->out);
	f->frame.size = (uint32_t)size + AEAD_TAG;
	f->body_size = body_size;
	f->cpu_ns = cpu_ns() - began;
}

/* ---- packs ---- */

int pack_writer_init(struct pack_writer *w, struct level_control *levels, struct sealers *sealers)
{
	int r = 0;

	memset(w, 0, sizeof(*w));
	w->levels = levels;
	w->sealers = sealers;
	w->ring = sealers ? sealers_frames(sealers) : 1;
	w->frames = calloc(w->ring, sizeof(*w->frames));
	for (size_t i = 0; i < (sealers ? ARRAY_SIZE(w->outs) : 1); i++) {
		w->outs[i] = malloc(OUT_MAX);
		if (!w->outs[i])
			r = -ENOMEM;
	}
	if (!w->frames)
		r = -ENOMEM;
	if (r == 0 && !sealers)
		r = frame_scratch_init(&w->scratch);
	if (r < 0)
		pack_writer_deinit(w);
	return r;
}

void pack_writer_deinit(struct pack_writer *w)
{
	for (size_t i = 0; i < ARRAY_SIZE(w->outs); i++)
		free(w->outs[i]);
	for (uint32_t i = 0; w->frames && i < w->ring; i++)
		frame_job_deinit(&w->frames[i]);
	free(w->frames);
	frame_scratch_deinit(&w->scratch);
	key_wipe(&w->key, sizeof(w->key));
	memset(w, 0, sizeof(*w));
}

/* The next frame of the ring, which has landed. Small checkpoints need few of them. */
static int frame_begin(struct pack_writer *w)
{
	struct frame_job *f = w->frame = &w->frames[w->frame_number % w->ring];

	if (!f->raw) {
		int r = frame_job_init(f);

		if (r < 0)
			return r;
	}

	f->header = w->header;
	f->job = w->job;
	f->seq = w->seq;
	f->key = w->key;
	f->number = w->frame_number;
	f->level = level_now(w->levels);
	frame_empty(f);
	return 0;
}

int pack_writer_begin(struct pack_writer *w, const struct job_id *job,
		      const struct secret_key *job_key, uint64_t seq)
{
	int r;

	w->job = *job;
	w->seq = seq;
	w->header = (struct pack_header){ .version = PACK_VERSION };
	memcpy(w->header.magic, PACK_MAGIC, sizeof(w->header.magic));
	r = random_bytes(w->header.salt, sizeof(w->header.salt));
	if (r < 0)
		return r;
	r = pack_frame_key(job_key, &w->header, &w->key);
	if (r < 0)
		return r;
	w->out_at = w->sealers ? (w->out_at + 1) % ARRAY_SIZE(w->outs) : 0;
	w->out = w->outs[w->out_at];
	w->out_size = sizeof(struct pack_header);
	w->table.base_count = 0;
	w->frame_number = w->frames_landed = 0;
	return frame_begin(w);
}

/* The oldest frame that is on its way -> out. */
static int land(struct pack_writer *w)
{
	struct frame_job *f = &w->frames[w->frames_landed % w->ring];

	if (w->sealers)
		sealers_wait(w->sealers, f);
	w->frames_landed++;
	if (f->result < 0)
		return f->result;
	level_note(w->levels, f->level, f->body_size, f->frame.size, f->cpu_ns);
	f->frame.offset = (uint32_t)w->out_size;
	w->table.frames[f->number] = f->frame;
	memcpy(w->out + w->out_size, f->out, f->frame.size);
	w->out_size += f->frame.size;
	w->header.frame_count++;
	return 0;
}

static int frame_end(struct pack_writer *w)
{
	int r = 0;

	if (w->sealers)
		sealers_submit(w->sealers, w->frame);
	else
		frame_job_seal(w->frame, &w->scratch);
	w->frame_number++;
	/* The ring's next frame is the oldest one. */
	if (w->frame_number - w->frames_landed == w->ring)
		r = land(w);
	return r < 0 ? r : frame_begin(w);
}

static int land_all(struct pack_writer *w)
{
	int r = 0;

	while (w->frames_landed < w->frame_number) {
		int result = land(w);

		r = r < 0 ? r : result;
	}
	return r;
}

void pack_writer_cancel(struct pack_writer *w)
{
	(void)!land_all(w);
}

static int block_end(struct pack_writer *w, uint32_t *ret_slot, bool *ret_full)
{
	uint32_t slot = w->header.block_count++;
	int r;

	w->frame->blocks++;
	if (w->frame->blocks == PACK_FRAME_BLOCKS) {
		r = frame_end(w);
		if (r < 0)
			return r;
	}
	*ret_slot = slot;
	*ret_full = w->header.block_count == PACK_BLOCKS_MAX || w->out_size >= PACK_SEALED_FLUSH;
	return 0;
}

int pack_writer_block(struct pack_writer *w, const uint8_t *block, uint32_t *ret_slot,
		      bool *ret_full)
{
	struct frame_job *f = w->frame;

	memcpy(f->raw + (size_t)f->full++ * PACK_BLOCK, block, PACK_BLOCK);
	return block_end(w, ret_slot, ret_full);
}

static int find_base(struct pack_writer *w, const struct object_hash *base, uint16_t *ret_index)
{
	struct pack_table *t = &w->table;
	uint32_t i = t->base_count;

	/* Neighbours have their bases in the same pack: the latest first. */
	while (i > 0 && memcmp(&t->bases[i - 1], base, sizeof(*base)) != 0)
		i--;
	if (i == 0) {
		if (t->base_count == PACK_BASES_MAX)
			return -ENOSPC;
		t->bases[t->base_count++] = *base;
		i = t->base_count;
	}
	*ret_index = (uint16_t)(i - 1);
	return 0;
}

int pack_writer_delta(struct pack_writer *w, const struct block_delta *delta,
		      const struct object_hash *base, uint32_t base_slot, uint32_t *ret_slot,
		      bool *ret_full)
{
	struct frame_job *f = w->frame;
	uint16_t ref[2] = { 0, (uint16_t)base_slot };
	int r = find_base(w, base, &ref[0]);

	if (r < 0)
		return r;
	memcpy(f->refs + (size_t)f->deltas * MIXED_REF, ref, MIXED_REF);
	memcpy(f->maps + (size_t)f->deltas * PACK_BLOCK_MAP, delta->map, PACK_BLOCK_MAP);
	memcpy(f->delta_words + (size_t)f->words * 8, delta->words, (size_t)delta->count * 8);
	f->which |= (uint64_t)1 << f->blocks;
	f->deltas++;
	f->words += delta->count;
	return block_end(w, ret_slot, ret_full);
}

int pack_writer_end(struct pack_writer *w, const uint8_t **ret_bytes, uint32_t *ret_size)
{
	struct table_ad ad = { .job = w->job, .seq = w->seq };
	uint8_t table[PACK_TABLE_MAX];
	size_t size, used;
	int r;

	if (w->frame->blocks > 0) {
		r = frame_end(w);
		if (r < 0)
			return r;
	}
	r = land_all(w);
	if (r < 0)
		return r;
	size = pack_table_encode(&w->table, w->header.frame_count, table);
	w->header.table_offset = (uint32_t)w->out_size;
	w->header.table_size = (uint32_t)size + AEAD_TAG;
	used = w->out_size + w->header.table_size;
	w->header.total_size = (uint32_t)((used + PACK_PAD - 1) / PACK_PAD * PACK_PAD);
	ad.header = w->header;
	r = aead_seal(&w->key, PACK_TABLE_NUMBER, &ad, sizeof(ad), table, size,
		      w->out + w->out_size);
	if (r < 0)
		return r;
	memset(w->out + used, 0, w->header.total_size - used);
	memcpy(w->out, &w->header, sizeof(w->header));
	*ret_bytes = w->out;
	*ret_size = w->header.total_size;
	return 0;
}
