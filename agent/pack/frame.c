// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <string.h>
#include <zstd.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"

enum {
	VERSION_MIN = 1, /* without deltas and without bases in the table */
	TABLE_HEADER = 8,
	TAIL_MAX = PACK_TABLE_MAX + AEAD_TAG + PACK_PAD, /* behind the frames */
};

struct frame_ad pack_frame_ad(const struct pack_header *h, const struct job_id *job, uint64_t seq,
			      uint32_t number)
{
	struct frame_ad ad = { .version = h->version, .number = number, .job = *job, .seq = seq };

	memcpy(ad.magic, h->magic, sizeof(ad.magic));
	memcpy(ad.salt, h->salt, sizeof(ad.salt));
	return ad;
}

int pack_frame_key(const struct secret_key *job_key, const struct pack_header *h,
		   struct secret_key *ret_key)
{
	return key_derive(job_key, h->salt, sizeof(h->salt), "decamp pack frame v1", ret_key);
}

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
	if (memcmp(h.magic, PACK_MAGIC, sizeof(h.magic)) != 0 || h.version < VERSION_MIN ||
	    h.version > PACK_VERSION || !all_zero(h.reserved, sizeof(h.reserved)))
		return -EBADMSG;
	if (h.frame_count < 1 || h.frame_count > PACK_FRAMES_MAX || h.block_count < 1 ||
	    h.block_count > PACK_BLOCKS_MAX || h.total_size != size)
		return -EBADMSG;
	end = (uint64_t)h.table_offset + h.table_size;
	if (h.table_offset < sizeof(h) || end > size || size - end >= PACK_PAD ||
	    h.table_size < TABLE_HEADER + AEAD_TAG || h.table_size > PACK_TABLE_MAX + AEAD_TAG)
		return -EBADMSG;
	*ret_header = h;
	return 0;
}

static bool frame_valid(const struct pack_frame *f, uint32_t version, bool last, uint64_t offset)
{
	uint32_t raw_size = (uint32_t)f->blocks * PACK_BLOCK, body_max = raw_size;

	if (f->offset != offset || f->blocks < 1 || f->blocks > PACK_FRAME_BLOCKS)
		return false;
	if (!last && f->blocks != PACK_FRAME_BLOCKS)
		return false;
	if (f->flags & ~(PACK_FRAME_STORED | (version > 1 ? PACK_FRAME_MIXED : 0)))
		return false;
	if (f->flags & PACK_FRAME_MIXED)
		body_max += MIXED_HEADER;
	if (f->flags == PACK_FRAME_STORED)
		return f->size == raw_size + AEAD_TAG;
	return f->size > AEAD_TAG && f->size <= body_max + AEAD_TAG;
}

size_t pack_table_encode(const struct pack_table *table, uint32_t frame_count, uint8_t *out)
{
	uint32_t version = PACK_VERSION;
	uint8_t *at = out;

	memcpy(at, &version, 4);
	memcpy(at + 4, &frame_count, 4);
	at += TABLE_HEADER;
	memcpy(at, table->frames, frame_count * sizeof(table->frames[0]));
	at += frame_count * sizeof(table->frames[0]);
	memcpy(at, &table->base_count, 4);
	memcpy(at + 4, table->bases, table->base_count * sizeof(table->bases[0]));
	return (size_t)(at - out) + 4 + table->base_count * sizeof(table->bases[0]);
}

/* The packs that deltas refer to. */
static int bases_decode(const uint8_t *bytes, size_t size, uint32_t version,
			struct pack_table *table)
{
	table->base_count = 0;
	if (version < 2)
		return size == 0 ? 0 : -EBADMSG;
	if (size < 4)
		return -EBADMSG;
	memcpy(&table->base_count, bytes, 4);
	if (table->base_count > PACK_BASES_MAX ||
	    size != 4 + table->base_count * sizeof(table->bases[0])) {
		table->base_count = 0;
		return -EBADMSG;
	}
	memcpy(table->bases, bytes + 4, table->base_count * sizeof(table->bases[0]));
	return 0;
}

int pack_table_decode(const uint8_t *bytes, size_t size, const struct pack_header *header,
		      struct pack_table *ret_table)
{
	struct pack_table table;
	uint64_t offset = sizeof(*header), blocks = 0;
	uint32_t version, count;
	size_t frames;

	if (size < TABLE_HEADER || header->frame_count > PACK_FRAMES_MAX)
		return -EBADMSG;
	memcpy(&version, bytes, 4);
	memcpy(&count, bytes + 4, 4);
	frames = count * sizeof(table.frames[0]);
	if (version != header->version || count != header->frame_count ||
	    size < TABLE_HEADER + frames)
		return -EBADMSG;
	memcpy(table.frames, bytes + TABLE_HEADER, frames);
	for (uint32_t i = 0; i < count; i++) {
		if (!frame_valid(&table.frames[i], version, i + 1 == count, offset))
			return -EBADMSG;
		offset += table.frames[i].size;
		blocks += table.frames[i].blocks;
	}
	if (offset != header->table_offset || blocks != header->block_count ||
	    bases_decode(bytes + TABLE_HEADER + frames, size - TABLE_HEADER - frames, version,
			 &table) < 0)
		return -EBADMSG;
	memcpy(ret_table->frames, table.frames, frames);
	memcpy(ret_table->bases, table.bases, table.base_count * sizeof(table.bases[0]));
	ret_table->base_count = table.base_count;
	return 0;
}

/* A part of the pack, into a room of our own. */
static int view_read(const struct pack_view *v, uint32_t offset, uint32_t size, uint8_t *to)
{
	int r;

	if (v->bytes) {
		memcpy(to, v->bytes + offset, size);
		return 0;
	}
	r = pread_full(v->fd, to, size, offset);
	return r == -ENODATA ? -EBADMSG : r;
}

/* v says where the pack lies; its header is not authenticated before this has returned 0. */
static int view_open(struct pack_view *v, const struct pack_header *h, const struct secret_key *key,
		     const struct job_id *job, uint64_t seq)
{
	struct table_ad ad = { .header = *h, .job = *job, .seq = seq };
	uint32_t tail_size = h->total_size - h->table_offset;
	uint8_t tail[TAIL_MAX];
	int r = view_read(v, h->table_offset, tail_size, tail);

	if (r == 0 && !all_zero(tail + h->table_size, tail_size - h->table_size))
		r = -EBADMSG;
	if (r == 0)
		r = aead_open(key, PACK_TABLE_NUMBER, &ad, sizeof(ad), tail, h->table_size, tail);
	if (r == 0)
		r = pack_table_decode(tail, h->table_size - AEAD_TAG, h, &v->table);
	if (r < 0)
		return r;
	v->job = *job;
	v->seq = seq;
	v->key = *key;
	v->header = *h;
	return 0;
}

static int view_open_own(struct pack_view *v, size_t size, const struct job_id *job,
			 const struct secret_key *job_key, uint64_t seq)
{
	uint8_t bytes[sizeof(struct pack_header)];
	struct pack_header header;
	struct secret_key key;
	int r = size < sizeof(bytes) ? -EBADMSG : view_read(v, 0, sizeof(bytes), bytes);

	if (r == 0)
		r = pack_header_decode(bytes, size, &header);
	if (r == 0)
		r = pack_frame_key(job_key, &header, &key);
	if (r < 0)
		return r;
	r = view_open(v, &header, &key, job, seq);
	key_wipe(&key, sizeof(key));
	return r;
}

int pack_view_open(struct pack_view *v, const void *bytes, size_t size, const struct job_id *job,
		   const struct secret_key *job_key, uint64_t seq)
{
	v->bytes = bytes;
	v->fd = -1;
	return view_open_own(v, size, job, job_key, seq);
}

int pack_view_open_file(struct pack_view *v, int fd, size_t size, const struct job_id *job,
			const struct secret_key *job_key, uint64_t seq)
{
	v->bytes = NULL;
	v->fd = fd;
	return view_open_own(v, size, job, job_key, seq);
}

int pack_view_open_shared(struct pack_view *v, const void *bytes, size_t size,
			  const struct secret_key *key)
{
	static const struct job_id nobody;
	struct pack_header header;
	int r = pack_header_decode(bytes, size, &header);

	v->bytes = bytes;
	v->fd = -1;
	return r < 0 ? r : view_open(v, &header, key, &nobody, 0);
}

/* Out of a file it is opened where it was read to: nobody changes it between check and use. */
static int frame_open(const struct pack_view *v, uint32_t frame, uint8_t *out)
{
	const struct pack_frame *f = &v->table.frames[frame];
	struct frame_ad ad = pack_frame_ad(&v->header, &v->job, v->seq, frame);
	const uint8_t *sealed = out;
	int r = 0;

	if (v->bytes)
		sealed = v->bytes + f->offset;
	else
		r = view_read(v, f->offset, f->size, out);
	return r < 0 ? r : aead_open(&v->key, frame, &ad, sizeof(ad), sealed, f->size, out);
}

static int frame_plain(const struct pack_view *v, uint32_t frame, uint8_t *out, uint8_t *scratch)
{
	const struct pack_frame *f = &v->table.frames[frame];
	size_t raw_size = (size_t)f->blocks * PACK_BLOCK, n;
	int r = frame_open(v, frame, f->flags & PACK_FRAME_STORED ? out : scratch);

	if (r < 0 || f->flags & PACK_FRAME_STORED)
		return r;
	n = ZSTD_decompress(out, raw_size, scratch, f->size - AEAD_TAG);
	return ZSTD_isError(n) || n != raw_size ? -EBADMSG : 0;
}

/* The body of a mixed frame is decoded in scratch, behind which nothing of it may lie. */
static int frame_mixed(const struct pack_view *v, uint32_t frame, uint8_t *out, uint8_t *scratch,
		       struct pack_base *ret_bases)
{
	const struct pack_frame *f = &v->table.frames[frame];
	bool stored = f->flags & PACK_FRAME_STORED;
	size_t n = f->size - AEAD_TAG;
	int r = frame_open(v, frame, stored ? scratch : out);

	if (r < 0)
		return r;
	if (!stored) {
		n = ZSTD_decompress(scratch, (size_t)f->blocks * PACK_BLOCK + MIXED_HEADER, out, n);
		if (ZSTD_isError(n))
			return -EBADMSG;
	}
	return mixed_body_decode(scratch, n, f->blocks, v->table.base_count, out, ret_bases);
}

int pack_view_frame(const struct pack_view *v, uint32_t frame, uint8_t *out, uint8_t *scratch,
		    struct pack_base ret_bases[PACK_FRAME_BLOCKS])
{
	if (frame >= v->header.frame_count)
		return -EBADMSG;
	if (v->table.frames[frame].flags & PACK_FRAME_MIXED)
		return frame_mixed(v, frame, out, scratch, ret_bases);
	for (uint32_t i = 0; i < v->table.frames[frame].blocks; i++)
		ret_bases[i] = (struct pack_base){ PACK_BASE_NONE, 0 };
	return frame_plain(v, frame, out, scratch);
}
