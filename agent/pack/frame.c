// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <string.h>
#include <zstd.h>

#include "agent/pack/internal.h"

#define PACK_MAGIC "DECAMPPK"

enum {
	PACK_VERSION = 1,
	TABLE_VERSION = 1,
	TABLE_HEADER = 8,
	TABLE_MAX = TABLE_HEADER + PACK_FRAMES_MAX * sizeof(struct pack_frame),
	OUT_MAX = sizeof(struct pack_header) + PACK_SEALED_FLUSH + PACK_FRAME_RAW + AEAD_TAG +
		  TABLE_MAX + AEAD_TAG + PACK_PAD,
};

/* The table's nonce number; frames count from 0. */
#define TABLE_NUMBER UINT32_MAX

_Static_assert((int)OUT_MAX <= (int)OV_PACK_MAX, "a pack fits the overlay's limit");

/* Associated data of a frame: it opens at its own place of its own pack only. */
struct frame_ad {
	char magic[8];
	uint32_t version;
	uint32_t number;
	uint8_t salt[16];
	struct job_id job;
	uint64_t seq;
};
_Static_assert(sizeof(struct frame_ad) == 56, "no padding");

struct table_ad {
	struct pack_header header;
	struct job_id job;
	uint64_t seq;
};
_Static_assert(sizeof(struct table_ad) == 88, "no padding");

static struct frame_ad frame_ad(const struct pack_header *h, const struct job_id *job, uint64_t seq,
				uint32_t number)
{
	struct frame_ad ad = { .version = h->version, .number = number, .job = *job, .seq = seq };

	memcpy(ad.magic, h->magic, sizeof(ad.magic));
	memcpy(ad.salt, h->salt, sizeof(ad.salt));
	return ad;
}

static int pack_key(const struct secret_key *job_key, const struct pack_header *h,
		    struct secret_key *ret_key)
{
	return key_derive(job_key, h->salt, sizeof(h->salt), "decamp pack frame v1", ret_key);
}

/* ---- writing ---- */

int pack_writer_init(struct pack_writer *w)
{
	memset(w, 0, sizeof(*w));
	w->out = malloc(OUT_MAX);
	w->raw = malloc(PACK_FRAME_RAW);
	w->scratch = malloc(PACK_FRAME_RAW);
	w->zstd = ZSTD_createCCtx();
	if (w->out && w->raw && w->scratch && w->zstd)
		return 0;
	pack_writer_deinit(w);
	return -ENOMEM;
}

void pack_writer_deinit(struct pack_writer *w)
{
	free(w->out);
	if (w->raw)
		key_wipe(w->raw, PACK_FRAME_RAW);
	free(w->raw);
	free(w->scratch);
	ZSTD_freeCCtx(w->zstd);
	key_wipe(&w->key, sizeof(w->key));
	memset(w, 0, sizeof(*w));
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
	r = pack_key(job_key, &w->header, &w->key);
	if (r < 0)
		return r;
	w->out_size = sizeof(struct pack_header);
	w->raw_blocks = 0;
	return 0;
}

static int seal_frame(struct pack_writer *w)
{
	uint32_t number = w->header.frame_count;
	size_t raw_size = (size_t)w->raw_blocks * PACK_BLOCK;
	struct frame_ad ad = frame_ad(&w->header, &w->job, w->seq, number);
	struct pack_frame *f = &w->frames[number];
	const uint8_t *plain = w->scratch;
	size_t size;
	int r;

	/* What does not get smaller is stored; zstd says so by running out of room. */
	size = ZSTD_compressCCtx(w->zstd, w->scratch, raw_size - 1, w->raw, raw_size,
				 PACK_ZSTD_LEVEL);
	f->flags = 0;
	if (ZSTD_isError(size)) {
		plain = w->raw;
		size = raw_size;
		f->flags = PACK_FRAME_STORED;
	}
	r = aead_seal(&w->key, number, &ad, sizeof(ad), plain, size, w->out + w->out_size);
	if (r < 0)
		return r;
	f->offset = (uint32_t)w->out_size;
	f->size = (uint32_t)size + AEAD_TAG;
	f->blocks = (uint16_t)w->raw_blocks;
	w->out_size += f->size;
	w->header.frame_count++;
	w->raw_blocks = 0;
	return 0;
}

int pack_writer_block(struct pack_writer *w, const uint8_t *block, uint32_t *ret_slot,
		      bool *ret_full)
{
	uint32_t slot = w->header.block_count;

	memcpy(w->raw + (size_t)w->raw_blocks * PACK_BLOCK, block, PACK_BLOCK);
	w->raw_blocks++;
	w->header.block_count++;
	if (w->raw_blocks == PACK_FRAME_BLOCKS) {
		int r = seal_frame(w);

		if (r < 0)
			return r;
	}
	*ret_slot = slot;
	*ret_full = w->header.block_count == PACK_BLOCKS_MAX || w->out_size >= PACK_SEALED_FLUSH;
	return 0;
}

int pack_writer_end(struct pack_writer *w, const uint8_t **ret_bytes, uint32_t *ret_size)
{
	struct table_ad ad = { .job = w->job, .seq = w->seq };
	uint32_t count, version = TABLE_VERSION;
	uint8_t table[TABLE_MAX];
	size_t size, used;
	int r;

	if (w->raw_blocks > 0) {
		r = seal_frame(w);
		if (r < 0)
			return r;
	}
	count = w->header.frame_count;
	memcpy(table, &version, 4);
	memcpy(table + 4, &count, 4);
	memcpy(table + TABLE_HEADER, w->frames, count * sizeof(w->frames[0]));
	size = TABLE_HEADER + count * sizeof(w->frames[0]);

	w->header.table_offset = (uint32_t)w->out_size;
	w->header.table_size = (uint32_t)size + AEAD_TAG;
	used = w->out_size + w->header.table_size;
	w->header.total_size = (uint32_t)((used + PACK_PAD - 1) / PACK_PAD * PACK_PAD);
	ad.header = w->header;
	r = aead_seal(&w->key, TABLE_NUMBER, &ad, sizeof(ad), table, size, w->out + w->out_size);
	if (r < 0)
		return r;
	memset(w->out + used, 0, w->header.total_size - used);
	memcpy(w->out, &w->header, sizeof(w->header));
	*ret_bytes = w->out;
	*ret_size = w->header.total_size;
	return 0;
}

/* ---- reading ---- */

static bool all_zero(const uint8_t *bytes, size_t size)
{
	uint8_t seen = 0;

	for (size_t i = 0; i < size; i++)
		seen |= bytes[i];
	return seen == 0;
}

int pack_header_decode(const uint8_t *bytes, size_t size, struct pack_header *ret_header)
{
	struct pack_header h;
	uint64_t end;

	if (size < sizeof(h) || size > OV_PACK_MAX)
		return -EBADMSG;
	memcpy(&h, bytes, sizeof(h));
	if (memcmp(h.magic, PACK_MAGIC, sizeof(h.magic)) != 0 || h.version != PACK_VERSION ||
	    !all_zero(h.reserved, sizeof(h.reserved)))
		return -EBADMSG;
	if (h.frame_count < 1 || h.frame_count > PACK_FRAMES_MAX || h.block_count < 1 ||
	    h.block_count > PACK_BLOCKS_MAX || h.total_size != size)
		return -EBADMSG;
	end = (uint64_t)h.table_offset + h.table_size;
	if (h.table_offset < sizeof(h) || end > size || size - end >= PACK_PAD ||
	    h.table_size != TABLE_HEADER + h.frame_count * sizeof(struct pack_frame) + AEAD_TAG)
		return -EBADMSG;
	if (!all_zero(bytes + end, (size_t)(size - end)))
		return -EBADMSG;
	*ret_header = h;
	return 0;
}

static bool frame_valid(const struct pack_frame *f, bool last, uint64_t offset)
{
	uint32_t raw_size = (uint32_t)f->blocks * PACK_BLOCK;

	if (f->offset != offset || f->blocks < 1 || f->blocks > PACK_FRAME_BLOCKS)
		return false;
	if (!last && f->blocks != PACK_FRAME_BLOCKS)
		return false;
	if (f->flags == PACK_FRAME_STORED)
		return f->size == raw_size + AEAD_TAG;
	return f->flags == 0 && f->size > AEAD_TAG && f->size < raw_size + AEAD_TAG;
}

int pack_table_decode(const uint8_t *bytes, size_t size, const struct pack_header *header,
		      struct pack_frame ret_frames[PACK_FRAMES_MAX])
{
	struct pack_frame frames[PACK_FRAMES_MAX];
	uint64_t offset = sizeof(*header), blocks = 0;
	uint32_t version, count;

	if (size < TABLE_HEADER || header->frame_count > PACK_FRAMES_MAX)
		return -EBADMSG;
	memcpy(&version, bytes, 4);
	memcpy(&count, bytes + 4, 4);
	if (version != TABLE_VERSION || count != header->frame_count ||
	    size != TABLE_HEADER + count * sizeof(frames[0]))
		return -EBADMSG;
	memcpy(frames, bytes + TABLE_HEADER, count * sizeof(frames[0]));
	for (uint32_t i = 0; i < count; i++) {
		if (!frame_valid(&frames[i], i + 1 == count, offset))
			return -EBADMSG;
		offset += frames[i].size;
		blocks += frames[i].blocks;
	}
	if (offset != header->table_offset || blocks != header->block_count)
		return -EBADMSG;
	memcpy(ret_frames, frames, count * sizeof(frames[0]));
	return 0;
}

int pack_view_open(struct pack_view *v, const void *bytes, size_t size, const struct job_id *job,
		   const struct secret_key *job_key, uint64_t seq)
{
	struct table_ad ad = { .job = *job, .seq = seq };
	struct pack_view view = { .bytes = bytes, .job = *job, .seq = seq };
	uint8_t table[TABLE_MAX];
	int r;

	r = pack_header_decode(bytes, size, &view.header);
	if (r < 0)
		return r;
	r = pack_key(job_key, &view.header, &view.key);
	if (r < 0)
		return r;
	ad.header = view.header;
	r = aead_open(&view.key, TABLE_NUMBER, &ad, sizeof(ad),
		      view.bytes + view.header.table_offset, view.header.table_size, table);
	if (r == 0)
		r = pack_table_decode(table, view.header.table_size - AEAD_TAG, &view.header,
				      view.frames);
	if (r == 0)
		*v = view;
	key_wipe(&view.key, sizeof(view.key));
	return r;
}

int pack_view_frame(const struct pack_view *v, uint32_t frame, uint8_t *out, uint8_t *scratch)
{
	const struct pack_frame *f = &v->frames[frame];
	struct frame_ad ad = frame_ad(&v->header, &v->job, v->seq, frame);
	bool stored;
	size_t raw_size, n;
	int r;

	if (frame >= v->header.frame_count)
		return -EBADMSG;
	stored = f->flags == PACK_FRAME_STORED;
	raw_size = (size_t)f->blocks * PACK_BLOCK;
	r = aead_open(&v->key, frame, &ad, sizeof(ad), v->bytes + f->offset, f->size,
		      stored ? out : scratch);
	if (r < 0 || stored)
		return r;
	n = ZSTD_decompress(out, raw_size, scratch, f->size - AEAD_TAG);
	return ZSTD_isError(n) || n != raw_size ? -EBADMSG : 0;
}
