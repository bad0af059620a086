// SPDX-License-Identifier: LGPL-2.1-or-later
/* One pack: fetched, checked, opened frame by frame, handed over. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "agent/pack/reader_internal.h"
#include "agent/util/io.h"

int worker_init(struct worker *me)
{
	me->frame = malloc(PACK_FRAME_RAW);
	me->scratch = malloc(PACK_FRAME_RAW + AEAD_TAG);
	if (!me->frame || !me->scratch) {
		free(me->frame);
		free(me->scratch);
		return -ENOMEM;
	}
	return 0;
}

void worker_deinit(struct worker *me)
{
	worker_forget(me);
	key_wipe(me->frame, PACK_FRAME_RAW);
	key_wipe(me->scratch, PACK_FRAME_RAW);
	free(me->frame);
	free(me->scratch);
}

void worker_forget(struct worker *me)
{
	if (me->mapped)
		munmap(me->bytes, me->size);
	else
		free(me->bytes);
	me->bytes = NULL;
	me->mapped = false;
}

/* Nobody can change it between the check and the use: it is sealed, or a copy of our own. */
static int take_bytes(struct worker *me, int fd, uint32_t size)
{
	_cleanup_free_ uint8_t *bytes = NULL;
	int e;

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

int reader_fetch(struct pack_reader *r, struct worker *me, uint32_t pack)
{
	_cleanup_close_ int fd = -1;
	struct node_id holders[OV_HOLDERS_MAX];
	struct object_hash hash, actual;
	uint32_t size, holder_count;
	struct stat st;
	int e;

	manifest_object(r->c.manifest, pack, &hash, &size, &holder_count, holders);
	e = r->c.fetch(r->c.fetch_ctx, &hash, size, holders, holder_count, &fd);
	if (e < 0)
		return e;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size != (off_t)size)
		return -EBADMSG;
	e = take_bytes(me, fd, size);
	if (e < 0)
		return e;
	object_hash_of(me->bytes, size, &actual);
	if (memcmp(&actual, &hash, sizeof(actual)) == 0)
		return 0;
	worker_forget(me);
	return -EBADMSG;
}

/* All blocks of an open frame, whether they are wanted now or not: they may come again. */
static int seed_frame(struct pack_reader *r, const struct worker *me, uint32_t pack, uint32_t frame,
		      uint32_t blocks)
{
	struct packer *seed = r->c.seed;
	struct block_hash hashes[PACK_FRAME_BLOCKS];
	int e = 0;

	for (uint32_t i = 0; i < blocks; i++)
		hashes[i] = packer_hash(seed, me->frame + (size_t)i * PACK_BLOCK);
	pthread_mutex_lock(&r->seed_lock);
	for (uint32_t i = 0; i < blocks && e == 0; i++)
		e = block_index_insert(&seed->index, hashes[i], pack,
				       frame * PACK_FRAME_BLOCKS + i);
	pthread_mutex_unlock(&r->seed_lock);
	return e;
}

static int open_frame(struct pack_reader *r, struct worker *me, const struct pack_view *v,
		      uint32_t pack, uint32_t frame)
{
	int e = pack_view_frame(v, frame, me->frame, me->scratch);

	if (e == 0 && r->c.seed)
		e = seed_frame(r, me, pack, frame, v->frames[frame].blocks);
	return e;
}

/* -EAGAIN of the sink is kept for the end: the other blocks are welcome now. */
static int hand_over_part(struct pack_reader *r, struct worker *me, const struct pack_view *v,
			  const struct work *w, size_t from, size_t to, bool *again)
{
	uint32_t current = UINT32_MAX;

	for (size_t i = from; i < to; i++) {
		const struct placement *p = &r->items[w->first + i];
		uint32_t frame = p->slot / PACK_FRAME_BLOCKS;
		int e = 0;

		if (frame != current) {
			reader_give_way(r, w);
			e = open_frame(r, me, v, w->pack, frame);
			current = frame;
		}
		if (e == 0)
			e = r->c.sink(r->c.ctx, p->file, p->block, p->count,
				      me->frame +
					      (size_t)(p->slot % PACK_FRAME_BLOCKS) * PACK_BLOCK);
		if (e == -EAGAIN && r->on_demand)
			*again = true;
		else if (e < 0)
			return e;
	}
	return 0;
}

static int hand_over_view(struct pack_reader *r, struct worker *me, const struct pack_view *v,
			  const struct work *w)
{
	uint32_t frame = reader_first_frame(r, w);
	bool again = false;
	size_t start = 0;
	int e;

	while (start < w->count && r->items[w->first + start].slot / PACK_FRAME_BLOCKS < frame)
		start++;
	e = hand_over_part(r, me, v, w, start, w->count, &again);
	if (e == 0)
		e = hand_over_part(r, me, v, w, 0, start, &again);
	return e == 0 && again ? -EAGAIN : e;
}

int reader_hand_over(struct pack_reader *r, struct worker *me, const struct work *w)
{
	const Decamp__Pack *pack = r->c.manifest->pb->packs[w->pack];
	struct pack_view v;
	int e;

	e = pack_view_open(&v, me->bytes, me->size, &r->c.manifest->head.job, r->c.job_key,
			   pack->seq);
	if (e < 0)
		return e;
	/* Frames are full but the last, so a slot below block_count lies in a frame below count. */
	e = v.header.block_count == pack->blocks ? hand_over_view(r, me, &v, w) : -EBADMSG;
	key_wipe(&v.key, sizeof(v.key));
	return e;
}
