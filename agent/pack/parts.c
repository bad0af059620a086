// SPDX-License-Identifier: LGPL-2.1-or-later
/* Parts of a manifest's files, in any order. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"

#define NO_PACK UINT32_MAX

enum { FRAME_ROOM = PACK_FRAME_RAW + PACK_FRAME_SLACK };

/* A run of blocks of one frame, and where in the caller's buffer its first block would lie. */
struct piece {
	uint32_t pack;
	uint16_t slot, count;
	uint16_t depth; /* of the chain: 0 for the block itself, then what it is a difference to */
	int64_t at;	/* negative: the read begins inside of the first block */
};

struct manifest_reader {
	const struct manifest *m;
	struct secret_key job_key;
	pack_fetch_fn fetch;
	void *ctx;
	int spool; /* packs as they were fetched: ciphertext */
	uint64_t spool_size, spool_max;
	uint64_t *spooled; /* for each pack: 1 + its offset in the spool, or 0 */

	uint32_t pack; /* the one at hand, or NO_PACK */
	uint8_t *bytes;
	struct pack_view view;
	uint32_t frame; /* the one in raw, or NO_PACK */
	uint8_t *raw, *scratch;
	struct pack_base bases[PACK_FRAME_BLOCKS]; /* of that frame */
	struct slotmap links;			   /* from differences to their bases */

	/* Reading mostly goes on where it ended: no search from a file's beginning. */
	size_t cursor_file, cursor_extent;
	uint64_t cursor_block;

	struct piece *pieces;
	size_t piece_count, piece_room;
};

int manifest_reader_create(const struct manifest *m, const struct secret_key *job_key,
			   pack_fetch_fn fetch, void *ctx, int spool_take, uint64_t spool_max,
			   struct manifest_reader **ret_reader)
{
	struct manifest_reader *r = calloc(1, sizeof(*r));

	if (r) {
		*r = (struct manifest_reader){ .m = m,
					       .job_key = *job_key,
					       .fetch = fetch,
					       .ctx = ctx,
					       .spool = -1,
					       .spool_max = spool_max,
					       .pack = NO_PACK,
					       .frame = NO_PACK };
		r->spooled = calloc(m->pb->n_packs + 1, sizeof(*r->spooled));
		r->raw = malloc(FRAME_ROOM);
		r->scratch = malloc(FRAME_ROOM);
	}
	if (!r || !r->spooled || !r->raw || !r->scratch || links_init(&r->links, m) < 0) {
		manifest_reader_destroy(r);
		return -ENOMEM;
	}
	r->spool = spool_take;
	*ret_reader = r;
	return 0;
}

void manifest_reader_destroy(struct manifest_reader *r)
{
	if (!r)
		return;
	key_wipe(&r->job_key, sizeof(r->job_key));
	key_wipe(&r->view, sizeof(r->view));
	if (r->raw)
		key_wipe(r->raw, FRAME_ROOM);
	if (r->scratch)
		key_wipe(r->scratch, FRAME_ROOM);
	close_fdp(&r->spool);
	free(r->spooled);
	free(r->bytes);
	free(r->raw);
	free(r->scratch);
	free(r->pieces);
	slotmap_deinit(&r->links);
	free(r);
}

/* ---- packs ---- */

/* A spool that is full or failed only means that the pack is fetched again when it is needed. */
static void spool_pack(struct manifest_reader *r, uint32_t pack, const uint8_t *bytes, size_t size)
{
	if (r->spool < 0 || size > r->spool_max - r->spool_size ||
	    pwrite_full(r->spool, bytes, size, (off_t)r->spool_size) < 0)
		return;
	r->spooled[pack] = r->spool_size + 1;
	r->spool_size += size;
}

static int fetch_pack(struct manifest_reader *r, uint32_t pack, uint8_t *bytes)
{
	_cleanup_close_ int fd = -1;
	struct node_id holders[OV_HOLDERS_MAX];
	struct object_hash hash, actual;
	uint32_t holder_count, size;
	struct stat st;
	int e;

	manifest_object(r->m, pack, &hash, &size, &holder_count, holders);
	e = r->fetch(r->ctx, &hash, size, holders, holder_count, &fd);
	if (e < 0)
		return e;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size != (off_t)size)
		return -EBADMSG;
	e = pread_full(fd, bytes, size, 0);
	if (e < 0)
		return e;
	object_hash_of(bytes, size, &actual);
	if (memcmp(&actual, &hash, sizeof(actual)) != 0)
		return -EBADMSG;
	spool_pack(r, pack, bytes, size);
	return 0;
}

static int open_pack(struct manifest_reader *r, uint32_t pack)
{
	const Decamp__Pack *info = r->m->pb->packs[pack];
	_cleanup_free_ uint8_t *bytes = NULL;
	struct pack_view view;
	int e = -ENODATA;

	if (r->pack == pack)
		return 0;
	bytes = malloc(info->size);
	if (!bytes)
		return -ENOMEM;
	if (r->spooled[pack])
		e = pread_full(r->spool, bytes, info->size, (off_t)(r->spooled[pack] - 1));
	if (e < 0)
		e = fetch_pack(r, pack, bytes);
	if (e == 0)
		e = manifest_view_open(r->m, pack, &r->job_key, bytes, info->size, &view);
	if (e < 0)
		return e;
	free(r->bytes);
	r->bytes = take_ptr(bytes);
	r->view = view;
	r->pack = pack;
	r->frame = NO_PACK;
	key_wipe(&view.key, sizeof(view.key));
	/* Frames are full but the last, so a slot below block_count lies in a frame below count. */
	if (r->view.header.block_count == info->blocks)
		return 0;
	r->pack = NO_PACK;
	return -EBADMSG;
}

static int open_frame(struct manifest_reader *r, uint32_t pack, uint32_t frame)
{
	int e = open_pack(r, pack);

	if (e < 0 || r->frame == frame)
		return e;
	r->frame = NO_PACK;
	e = pack_view_frame(&r->view, frame, r->raw, r->scratch, r->bases);
	if (e == 0)
		r->frame = frame;
	return e;
}

/* ---- pieces ---- */

static int add_piece(struct manifest_reader *r, const struct piece *p)
{
	if (r->piece_count == r->piece_room) {
		size_t room = r->piece_room ? r->piece_room * 2 : 64;
		struct piece *bigger = reallocarray(r->pieces, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		r->pieces = bigger;
		r->piece_room = room;
	}
	r->pieces[r->piece_count++] = *p;
	return 0;
}

/* count blocks of a pack from slot on; at: of the first. */
static int add_pieces(struct manifest_reader *r, uint32_t pack, uint32_t slot, uint64_t count,
		      int64_t at)
{
	while (count > 0) {
		uint64_t n = PACK_FRAME_BLOCKS - slot % PACK_FRAME_BLOCKS;
		struct piece p = { .pack = pack, .slot = (uint16_t)slot, .at = at };
		int e;

		n = n < count ? n : count;
		p.count = (uint16_t)n;
		e = add_piece(r, &p);
		if (e < 0)
			return e;
		slot += (uint32_t)n;
		count -= n;
		at += (int64_t)n * PACK_BLOCK;
	}
	return 0;
}

/* All that lies in packs of the blocks from first up to end. */
static int collect(struct manifest_reader *r, size_t file, uint64_t first, uint64_t end, int64_t at)
{
	const Decamp__File *f = r->m->pb->files[file];
	bool go_on = r->cursor_file == file && r->cursor_block <= first;
	uint64_t block = go_on ? r->cursor_block : 0;
	size_t i = go_on ? r->cursor_extent : 0;

	r->piece_count = 0;
	for (; i < f->n_extent_pack && block < end; i++) {
		uint64_t next = block + f->extent_count[i];
		uint64_t from = block > first ? block : first, to = next < end ? next : end;
		int e = 0;

		if (block <= first) {
			r->cursor_file = file;
			r->cursor_extent = i;
			r->cursor_block = block;
		}
		if (from < to && f->extent_pack[i] != PACK_ZERO)
			e = add_pieces(r, f->extent_pack[i],
				       f->extent_slot[i] + (uint32_t)(from - block), to - from,
				       at + (int64_t)((from - first) * PACK_BLOCK));
		if (e < 0)
			return e;
		block = next;
	}
	return 0;
}

/* Each pack is opened once for a read, each frame too. */
static int compare_pieces(const void *a, const void *b)
{
	const struct piece *x = a, *y = b;

	if (x->pack != y->pack)
		return x->pack < y->pack ? -1 : 1;
	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* A difference and its base meet in the buffer, which begins as zeros: exclusive or asks no order. */
static void merge_piece(const struct manifest_reader *r, const struct piece *p, uint8_t *to,
			size_t size)
{
	int64_t from = p->at < 0 ? 0 : p->at, end = p->at + (int64_t)p->count * PACK_BLOCK;
	const uint8_t *raw = r->raw + (size_t)(p->slot % PACK_FRAME_BLOCKS) * PACK_BLOCK;

	if (end > (int64_t)size)
		end = (int64_t)size;
	for (int64_t i = from; i < end; i++)
		to[i] ^= raw[i - p->at];
}

/* Block i of a piece is a difference: its base belongs at the same place. */
static int add_base(struct manifest_reader *r, const struct piece *p, uint32_t i)
{
	struct base_ref base, from = { .pack = p->pack,
				       .slot = p->slot + i,
				       .depth = p->depth,
				       .ref = r->bases[(p->slot + i) % PACK_FRAME_BLOCKS] };
	struct piece piece = { .count = 1, .at = p->at + (int64_t)i * PACK_BLOCK };
	int e = links_base(&r->links, r->m, &r->view, &from, &base);

	if (e < 0)
		return e;
	piece.pack = base.pack;
	piece.slot = (uint16_t)base.slot;
	piece.depth = (uint16_t)base.depth;
	return add_piece(r, &piece);
}

static int read_piece(struct manifest_reader *r, struct piece p, uint8_t *to, size_t size)
{
	int e = open_frame(r, p.pack, p.slot / PACK_FRAME_BLOCKS);

	if (e < 0)
		return e;
	merge_piece(r, &p, to, size);
	for (uint32_t i = 0; i < p.count && e == 0; i++)
		if (r->bases[(p.slot + i) % PACK_FRAME_BLOCKS].pack != PACK_BASE_NONE)
			e = add_base(r, &p, i);
	return e;
}

/* Those there are, then their bases, and so on. */
static int read_pieces(struct manifest_reader *r, uint8_t *to, size_t size)
{
	size_t first = 0;
	int e = 0;

	while (first < r->piece_count && e == 0) {
		size_t end = r->piece_count;

		if (end - first > 1)
			qsort(r->pieces + first, end - first, sizeof(*r->pieces), compare_pieces);
		for (; first < end && e == 0; first++)
			e = read_piece(r, r->pieces[first], to, size);
	}
	return e;
}

int manifest_read(struct manifest_reader *r, size_t file, uint64_t offset, void *ret_bytes,
		  size_t size)
{
	const Decamp__File *f;
	int e;

	if (file >= r->m->pb->n_files || size > MANIFEST_READ_MAX)
		return -EINVAL;
	f = r->m->pb->files[file];
	if (f->hardlink) {
		file = f->hardlink - 1;
		f = r->m->pb->files[file];
	}
	if (!S_ISREG(f->mode) || offset > f->size || size > f->size - offset)
		return -EINVAL;
	if (size == 0)
		return 0;
	e = collect(r, file, offset / PACK_BLOCK, (offset + size - 1) / PACK_BLOCK + 1,
		    -(int64_t)(offset % PACK_BLOCK));
	if (e < 0)
		return e;
	memset(ret_bytes, 0, size);
	e = read_pieces(r, ret_bytes, size);
	if (e < 0)
		key_wipe(ret_bytes, size);
	return e;
}
