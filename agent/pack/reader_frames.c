// SPDX-License-Identifier: LGPL-2.1-or-later
/* One pack: fetched, checked, opened frame by frame, handed over. */
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "agent/pack/reader_internal.h"
#include "agent/util/io.h"

enum {
	FRAME_ROOM = PACK_FRAME_RAW + PACK_FRAME_SLACK,
	LENT_MAX = OV_PACK_MAX / 3, /* file, checked copy, and now and then somebody else's file */
	ROOM_STEP = 1 << 20,
	HASH_PIECE = 128 << 10,
};

int worker_init(struct worker *me)
{
	me->lent = me->fd = -1;
	me->frame = malloc(FRAME_ROOM);
	me->scratch = malloc(FRAME_ROOM);
	if (!me->frame || !me->scratch) {
		free(me->frame);
		free(me->scratch);
		return -ENOMEM;
	}
	return 0;
}

static void forget_lent(struct worker *me)
{
	close_fdp(&me->lent);
	me->lent = -1;
	free(take_ptr(me->room));
	me->room_size = 0;
}

void worker_deinit(struct worker *me)
{
	worker_forget(me);
	key_wipe(me->frame, FRAME_ROOM);
	key_wipe(me->scratch, FRAME_ROOM);
	key_wipe(me->block, sizeof(me->block));
	key_wipe(&me->delta, sizeof(me->delta));
	forget_lent(me);
	free(me->frame);
	free(me->scratch);
	free(me->wants);
}

void worker_forget(struct worker *me)
{
	if (me->mapped)
		munmap(me->bytes, me->size);
	else if (me->bytes != me->room)
		free(me->bytes);
	me->bytes = NULL;
	me->mapped = false;
	if (me->fd != me->lent)
		close_fdp(&me->fd);
	me->fd = -1;
}

/* Nobody can change it between the check and the use: it is sealed, or a copy of our own. */
static int take_bytes(struct worker *me, int fd, uint32_t size)
{
	_cleanup_free_ uint8_t *bytes = NULL;
	struct stat st;
	int e;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size != (off_t)size)
		return -EBADMSG;
	me->size = size;
	if (memfd_is_sealed(fd)) {
		void *map = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);

		if (map == MAP_FAILED)
			return -errno;
		me->bytes = map;
		me->mapped = true;
		return 0;
	}
	bytes = malloc(size);
	if (!bytes)
		return -ENOMEM;
	e = pread_full(fd, bytes, size, 0);
	if (e == 0)
		me->bytes = take_ptr(bytes);
	return e;
}

/*
 * The file that serves one pack after the other: its pages are not made and given back each time.
 * What is not bound is copied out of it whole.
 */
static int lend(struct worker *me, uint32_t size, bool bound)
{
	uint32_t room = (size + ROOM_STEP - 1) / ROOM_STEP * ROOM_STEP;

	if (size > LENT_MAX) {
		forget_lent(me);
		return -1;
	}
	if (!bound && me->room_size < size) {
		free(me->room);
		me->room = malloc(room);
		me->room_size = me->room ? room : 0;
	}
	if (me->lent < 0)
		me->lent = memfd_new("pack");
	/* Without either, it comes in a file of the other half's. */
	return (bound || me->room) && me->lent >= 0 ? me->lent : -1;
}

/* Each piece is hashed while the cache has it. What is hashed is the copy. */
static int copy_lent(struct worker *me, uint32_t size, struct object_hash *ret_hash)
{
	EVP_MD_CTX *sha = EVP_MD_CTX_new();
	int e = sha && EVP_DigestInit_ex(sha, EVP_sha256(), NULL) == 1 ? 0 : -ENOMEM;

	for (uint32_t at = 0; e == 0 && at < size; at += HASH_PIECE) {
		uint32_t part = size - at < HASH_PIECE ? size - at : HASH_PIECE;

		e = pread_full(me->lent, me->room + at, part, at);
		if (e == 0 && EVP_DigestUpdate(sha, me->room + at, part) != 1)
			e = -ENOMEM;
	}
	if (e == 0 && EVP_DigestFinal_ex(sha, ret_hash->b, NULL) != 1)
		e = -ENOMEM;
	EVP_MD_CTX_free(sha);
	me->bytes = me->room;
	me->size = size;
	return e == -ENODATA ? -EBADMSG : e;
}

/* Without a salt its hash alone says that it is the manifest's. */
static int take_hashed(struct worker *me, int fd, uint32_t size, const struct object_hash *hash)
{
	struct object_hash actual;
	int e;

	if (fd == me->lent) {
		e = copy_lent(me, size, &actual);
	} else {
		e = take_bytes(me, fd, size);
		if (e == 0)
			object_hash_of(me->bytes, size, &actual);
	}
	return e == 0 && memcmp(&actual, hash, sizeof(actual)) != 0 ? -EBADMSG : e;
}

int reader_fetch(struct pack_reader *r, struct worker *me, uint32_t pack)
{
	bool bound = manifest_pack_bound(r->c.manifest, pack);
	struct node_id holders[OV_HOLDERS_MAX];
	struct object_hash hash;
	uint32_t size, holder_count;
	int e, fd;

	manifest_object(r->c.manifest, pack, &hash, &size, &holder_count, holders);
	fd = lend(me, size, bound);
	e = r->c.fetch(r->c.fetch_ctx, &hash, size, holders, holder_count, &fd);
	me->size = size;
	me->spoilt = false;
	me->fd = fd; /* it is closed with the rest, unless it is lent */
	if (e == 0 && !bound)
		e = take_hashed(me, fd, size, &hash);
	if (e < 0) {
		worker_forget(me);
		forget_lent(me); /* somebody may still write to it */
	}
	return e;
}

bool reader_was_deceived(const struct pack_reader *r, struct worker *me, uint32_t pack)
{
	struct node_id holders[OV_HOLDERS_MAX];
	struct object_hash hash, actual;
	uint32_t size, holder_count;

	if (!me->spoilt || me->bytes)
		return false;
	manifest_object(r->c.manifest, pack, &hash, &size, &holder_count, holders);
	return content_hash_fd(me->fd, size, me->scratch, actual.b) < 0 ||
	       memcmp(&actual, &hash, sizeof(actual)) != 0;
}

/* ---- what a packer learns ---- */

/*
 * All blocks of an open frame, whether they are wanted now or not: they may come again. Of a
 * difference, what it is one to; its content once it is whole.
 */
static int seed_frame(struct pack_reader *r, const struct worker *me, const struct pack_view *v,
		      uint32_t pack, uint32_t frame)
{
	uint32_t blocks = v->table.frames[frame].blocks;
	struct packer *seed = r->c.seed;
	struct block_hash hashes[PACK_FRAME_BLOCKS];
	int e = 0;

	for (uint32_t i = 0; i < blocks; i++)
		if (me->bases[i].pack == PACK_BASE_NONE)
			hashes[i] = packer_hash(seed, me->frame + (size_t)i * PACK_BLOCK);
	pthread_mutex_lock(&r->seed_lock);
	if (seed->packs[pack].frames_known >> frame & 1)
		blocks = 0; /* of an earlier time: a pack may be read more than once */
	for (uint32_t i = 0; i < blocks && e == 0; i++) {
		struct delta_info info = { .slot = frame * PACK_FRAME_BLOCKS + i,
					   .base_slot = me->bases[i].slot };

		if (me->bases[i].pack == PACK_BASE_NONE)
			e = block_index_insert(&seed->index, hashes[i], pack, info.slot);
		/* One whose base is not of this checkpoint is not needed by it either. */
		else if (links_pack(&r->links, r->c.manifest, &v->table.bases[me->bases[i].pack],
				    &info.base_pack) == 0)
			e = pack_delta_add(&seed->packs[pack], &info);
	}
	if (e == 0)
		seed->packs[pack].frames_known |= (uint64_t)1 << frame;
	pthread_mutex_unlock(&r->seed_lock);
	return e;
}

static int seed_content(struct pack_reader *r, const struct worker *me, const struct want *want)
{
	struct packer *seed = r->c.seed;
	struct block_hash hash;
	int e;

	if (!seed)
		return 0;
	hash = packer_hash(seed, me->block);
	pthread_mutex_lock(&r->seed_lock);
	e = block_index_insert(&seed->index, hash, want->origin_pack, want->origin_slot);
	pthread_mutex_unlock(&r->seed_lock);
	return e;
}

/* ---- one frame ---- */

static int open_frame(struct pack_reader *r, struct worker *me, const struct pack_view *v,
		      uint32_t pack, uint32_t frame)
{
	int e = pack_view_frame(v, frame, me->frame, me->scratch, me->bases);

	me->spoilt = e < 0;
	if (e == 0 && r->c.seed)
		e = seed_frame(r, me, v, pack, frame);
	return e;
}

/* What is kept for the end, as the other blocks are welcome now; 0 or an error that ends it all. */
static int put_off(const struct pack_reader *r, int e, struct leftover *left)
{
	if (e == -ENOBUFS)
		left->deferred = true;
	else if (e == -EAGAIN && r->on_demand)
		left->again = true;
	else
		return e;
	return 0;
}

/* Blocks from i on that are left and whole. */
static uint32_t whole_run(const struct worker *me, const struct placement *p, uint32_t i)
{
	uint32_t n = 0;

	while (i + n < p->count && p->left >> (i + n) & 1 &&
	       me->bases[(p->slot + i + n) % PACK_FRAME_BLOCKS].pack == PACK_BASE_NONE)
		n++;
	return n;
}

static int hand_over_run(struct pack_reader *r, const struct worker *me, struct placement *p,
			 uint32_t i, uint32_t n)
{
	uint32_t slot = (p->slot + i) % PACK_FRAME_BLOCKS;
	uint64_t mask = n == 64 ? UINT64_MAX : (((uint64_t)1 << n) - 1) << i;
	int e = r->c.sink(r->c.ctx, p->file, p->block + i, n,
			  me->frame + (size_t)slot * PACK_BLOCK);

	if (e < 0)
		return e;
	pthread_mutex_lock(&r->lock);
	p->left &= ~mask;
	r->done_bytes += (uint64_t)n * PACK_BLOCK;
	pthread_mutex_unlock(&r->lock);
	return 0;
}

static int hand_over_placement(struct pack_reader *r, struct worker *me, const struct pack_view *v,
			       struct placement *p, struct leftover *left)
{
	uint32_t n;

	for (uint32_t i = 0; i < p->count; i += n) {
		uint32_t slot = (p->slot + i) % PACK_FRAME_BLOCKS;
		int e = 0;

		n = whole_run(me, p, i);
		if (n > 0) {
			e = hand_over_run(r, me, p, i, n);
		} else {
			n = 1;
			if (p->left >> i & 1)
				e = want_add(r, me, v, p, i, me->frame + (size_t)slot * PACK_BLOCK);
		}
		e = put_off(r, e, left);
		if (e < 0)
			return e;
	}
	return 0;
}

static int hand_over_want(struct pack_reader *r, struct worker *me, const struct pack_view *v,
			  struct work *w, struct want *want, struct leftover *left)
{
	uint32_t slot = want->slot % PACK_FRAME_BLOCKS;
	const uint8_t *bytes = me->frame + (size_t)slot * PACK_BLOCK;
	int e;

	if (me->bases[slot].pack != PACK_BASE_NONE)
		return want_move(r, me, v, want, bytes);
	want_resolve(me, want, bytes);
	e = r->c.sink(r->c.ctx, want->file, want->block, 1, me->block);
	if (e == 0)
		e = seed_content(r, me, want);
	if (e == 0)
		want_end(r, want);
	else
		want_put_back(r, w, want);
	return put_off(r, e, left);
}

/* ---- one pack ---- */

static int hand_over_frame(struct pack_reader *r, struct worker *me, const struct pack_view *v,
			   struct work *w, uint32_t frame, struct leftover *left)
{
	int e;

	reader_give_way(r, w);
	e = open_frame(r, me, v, w->pack, frame);
	for (size_t i = 0; e == 0 && i < w->count; i++) {
		struct placement *p = &r->items[w->first + i];

		if (p->slot / PACK_FRAME_BLOCKS == frame && p->left != 0)
			e = hand_over_placement(r, me, v, p, left);
	}
	for (size_t i = 0; e == 0 && i < me->want_count; i++)
		if (me->wants[i] && me->wants[i]->slot / PACK_FRAME_BLOCKS == frame)
			e = hand_over_want(r, me, v, w, take_ptr(me->wants[i]), left);
	return e;
}

/* A bit for each frame of which something is wanted. */
static uint64_t frames_wanted(const struct pack_reader *r, const struct worker *me,
			      const struct work *w)
{
	uint64_t frames = 0;

	for (size_t i = 0; i < w->count; i++)
		if (r->items[w->first + i].left != 0)
			frames |= (uint64_t)1 << r->items[w->first + i].slot / PACK_FRAME_BLOCKS;
	for (size_t i = 0; i < me->want_count; i++)
		frames |= (uint64_t)1 << me->wants[i]->slot / PACK_FRAME_BLOCKS;
	return frames;
}

static int hand_over_view(struct pack_reader *r, struct worker *me, const struct pack_view *v,
			  struct work *w, struct leftover *left)
{
	uint32_t first = reader_first_frame(r, w), count = v->header.frame_count;
	uint64_t frames;
	int e = wants_take(r, me, w);

	frames = e == 0 ? frames_wanted(r, me, w) : 0;
	for (uint32_t i = 0; i < count && e == 0; i++) {
		uint32_t frame = (first + i) % count;

		if (frames >> frame & 1)
			e = hand_over_frame(r, me, v, w, frame, left);
	}
	return e;
}

int reader_hand_over(struct pack_reader *r, struct worker *me, struct work *w,
		     struct leftover *left)
{
	const Decamp__Pack *pack = r->c.manifest->pb->packs[w->pack];
	struct pack_view v;
	int e;

	if (me->bytes)
		e = manifest_view_open(r->c.manifest, w->pack, r->c.job_key, me->bytes, me->size,
				       &v);
	else
		e = manifest_view_open_file(r->c.manifest, w->pack, r->c.job_key, me->fd, &v);
	me->spoilt = e < 0;
	if (e < 0)
		return e;
	/* Frames are full but the last, so a slot below block_count lies in a frame below count. */
	e = v.header.block_count == pack->blocks ? hand_over_view(r, me, &v, w, left) : -EBADMSG;
	key_wipe(&v.key, sizeof(v.key));
	return e;
}
