// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"

/* A run of blocks of one frame that goes to one place of one file. */
struct placement {
	uint32_t pack, file;
	uint16_t slot, count;
	uint64_t block;
};

struct placement_list {
	struct placement *items;
	size_t count, capacity;
};

/* One pack on its way; the thread fetches it while the pack before is being written out. */
struct fetch {
	const struct manifest *m;
	pack_fetch_fn fn;
	void *ctx;
	uint32_t pack;
	pthread_t thread;
	bool running, threaded;
	int result;
	uint8_t *bytes;
	uint32_t size;
};

struct unpack {
	const struct manifest *m;
	const struct secret_key *job_key;
	const int *fds;
	struct packer *seed;
	struct placement_list placements;
	uint64_t done_bytes, total_bytes;
	uint8_t *frame, *scratch;
};

/* ---- what goes where ---- */

static int place(struct placement_list *list, const struct placement *p)
{
	if (list->count == list->capacity) {
		size_t capacity = list->capacity ? list->capacity * 2 : 256;
		struct placement *bigger = reallocarray(list->items, capacity, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		list->items = bigger;
		list->capacity = capacity;
	}
	list->items[list->count++] = *p;
	return 0;
}

static int place_file(struct unpack *u, uint32_t index)
{
	const Decamp__File *f = u->m->pb->files[index];
	uint64_t block = 0;

	for (size_t i = 0; i < f->n_extent_pack; i++) {
		uint32_t slot = f->extent_slot[i], left = f->extent_count[i];

		if (f->extent_pack[i] == PACK_ZERO) {
			block += left;
			continue;
		}
		while (left > 0) {
			uint32_t n = PACK_FRAME_BLOCKS - slot % PACK_FRAME_BLOCKS;
			struct placement p = { f->extent_pack[i], index, (uint16_t)slot, 0, block };
			int r;

			n = n < left ? n : left;
			p.count = (uint16_t)n;
			r = place(&u->placements, &p);
			if (r < 0)
				return r;
			u->total_bytes += (uint64_t)n * PACK_BLOCK;
			slot += n;
			block += n;
			left -= n;
		}
	}
	return 0;
}

static bool wanted(const struct unpack *u, size_t index)
{
	const Decamp__File *f = u->m->pb->files[index];

	return u->fds[index] >= 0 && S_ISREG(f->mode) && f->hardlink == 0;
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

static int prepare(struct unpack *u)
{
	for (size_t i = 0; i < u->m->pb->n_files; i++) {
		int r;

		if (!wanted(u, i))
			continue;
		/* Empty, then as long as it will be: all that is not written is a hole. */
		if (ftruncate(u->fds[i], 0) < 0 ||
		    ftruncate(u->fds[i], (off_t)u->m->pb->files[i]->size) < 0)
			return -errno;
		r = place_file(u, (uint32_t)i);
		if (r < 0)
			return r;
	}
	if (u->placements.count > 0)
		qsort(u->placements.items, u->placements.count, sizeof(struct placement),
		      compare_placements);
	return 0;
}

/* ---- fetching ---- */

static int fetch_bytes(struct fetch *f)
{
	_cleanup_close_ int fd = -1;
	_cleanup_free_ uint8_t *bytes = NULL;
	struct node_id holders[OV_HOLDERS_MAX];
	struct object_hash hash, actual;
	uint32_t holder_count;
	struct stat st;
	int r;

	manifest_object(f->m, f->pack, &hash, &f->size, &holder_count, holders);
	r = f->fn(f->ctx, &hash, f->size, holders, holder_count, &fd);
	if (r < 0)
		return r;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size != (off_t)f->size)
		return -EBADMSG;
	/* A copy of our own: nobody can change it between the check and the use. */
	bytes = malloc(f->size);
	if (!bytes)
		return -ENOMEM;
	r = pread_full(fd, bytes, f->size, 0);
	if (r < 0)
		return r;
	object_hash_of(bytes, f->size, &actual);
	if (memcmp(&actual, &hash, sizeof(actual)) != 0)
		return -EBADMSG;
	f->bytes = take_ptr(bytes);
	return 0;
}

static void *fetch_thread(void *arg)
{
	struct fetch *f = arg;

	f->result = fetch_bytes(f);
	return NULL;
}

static void fetch_start(struct fetch *f, uint32_t pack)
{
	f->pack = pack;
	f->bytes = NULL;
	f->running = true;
	f->threaded = pthread_create(&f->thread, NULL, fetch_thread, f) == 0;
	if (!f->threaded)
		fetch_thread(f);
}

/* The pack's bytes are the caller's. */
static int fetch_end(struct fetch *f, uint8_t **ret_bytes, uint32_t *ret_size)
{
	if (f->threaded)
		pthread_join(f->thread, NULL);
	f->running = false;
	if (f->result < 0)
		return f->result;
	*ret_bytes = take_ptr(f->bytes);
	*ret_size = f->size;
	return 0;
}

/* ---- writing ---- */

static int write_placement(struct unpack *u, const struct placement *p)
{
	uint64_t size = u->m->pb->files[p->file]->size, at = p->block * PACK_BLOCK;
	uint64_t n = (uint64_t)p->count * PACK_BLOCK;

	/* The last block was padded. */
	if (n > size - at)
		n = size - at;
	return pwrite_full(u->fds[p->file],
			   u->frame + (size_t)(p->slot % PACK_FRAME_BLOCKS) * PACK_BLOCK, (size_t)n,
			   (off_t)at);
}

static int seed_frame(struct unpack *u, uint32_t pack, uint32_t frame, uint32_t blocks)
{
	for (uint32_t i = 0; i < blocks; i++) {
		struct block_hash hash = packer_hash(u->seed, u->frame + (size_t)i * PACK_BLOCK);
		int r = block_index_insert(&u->seed->index, hash, pack,
					   frame * PACK_FRAME_BLOCKS + i);

		if (r < 0)
			return r;
	}
	return 0;
}

/* All placements of one pack: items[0..count). */
static int write_pack(struct unpack *u, const struct pack_view *v, const struct placement *items,
		      size_t count)
{
	uint32_t current = UINT32_MAX;

	for (size_t i = 0; i < count; i++) {
		const struct placement *p = &items[i];
		uint32_t frame = p->slot / PACK_FRAME_BLOCKS;
		int r;

		if (frame != current) {
			r = pack_view_frame(v, frame, u->frame, u->scratch);
			if (r == 0 && u->seed)
				r = seed_frame(u, p->pack, frame, v->frames[frame].blocks);
			if (r < 0)
				return r;
			current = frame;
		}
		r = write_placement(u, p);
		if (r < 0)
			return r;
		u->done_bytes += (uint64_t)p->count * PACK_BLOCK;
	}
	return 0;
}

static int unpack_pack(struct unpack *u, const uint8_t *bytes, uint32_t size,
		       const struct placement *items, size_t count)
{
	const Decamp__Pack *pack = u->m->pb->packs[items[0].pack];
	struct pack_view v;
	int r;

	r = pack_view_open(&v, bytes, size, &u->m->head.job, u->job_key, pack->seq);
	if (r < 0)
		return r;
	/* Frames are full but the last, so a slot below block_count lies in a frame below count. */
	r = v.header.block_count == pack->blocks ? write_pack(u, &v, items, count) : -EBADMSG;
	key_wipe(&v.key, sizeof(v.key));
	return r;
}

static size_t run_length(const struct placement_list *list, size_t start)
{
	size_t n = 1;

	while (start + n < list->count && list->items[start + n].pack == list->items[start].pack)
		n++;
	return n;
}

static int unpack_all(struct unpack *u, struct fetch *f,
		      void (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes))
{
	const struct placement_list *list = &u->placements;
	size_t at = 0;

	if (list->count > 0)
		fetch_start(f, list->items[0].pack);
	while (at < list->count) {
		size_t n = run_length(list, at);
		_cleanup_free_ uint8_t *bytes = NULL;
		uint32_t size;
		int r;

		r = fetch_end(f, &bytes, &size);
		if (r < 0)
			return r;
		if (at + n < list->count)
			fetch_start(f, list->items[at + n].pack);
		r = unpack_pack(u, bytes, size, list->items + at, n);
		if (r < 0)
			return r;
		if (progress)
			progress(f->ctx, u->done_bytes, u->total_bytes);
		at += n;
	}
	return 0;
}

static int verify_contents(const struct unpack *u)
{
	_cleanup_free_ uint8_t *buffer = malloc(READ_CHUNK);

	if (!buffer)
		return -ENOMEM;
	for (size_t i = 0; i < u->m->pb->n_files; i++) {
		const Decamp__File *f = u->m->pb->files[i];
		uint8_t hash[32];
		int r;

		if (!wanted(u, i) || f->kind == FILE_IMAGE)
			continue;
		r = content_hash_fd(u->fds[i], f->size, buffer, hash);
		if (r < 0)
			return r;
		if (memcmp(hash, f->content_hash.data, sizeof(hash)) != 0)
			return -EBADMSG;
	}
	return 0;
}

/* ---- seeding ---- */

static int seed_packs(struct packer *seed, const struct manifest *m)
{
	seed->packs = calloc(m->pb->n_packs + 1, sizeof(*seed->packs));
	if (!seed->packs)
		return -ENOMEM;
	seed->pack_count = m->pb->n_packs;
	for (size_t i = 0; i < m->pb->n_packs; i++) {
		struct pack_info *info = &seed->packs[i];

		manifest_object(m, i, &info->hash, &info->size, &info->holder_count, info->holders);
		info->state = PACK_KNOWN;
		info->seq = m->pb->packs[i]->seq;
		info->blocks = m->pb->packs[i]->blocks;
	}
	return 0;
}

static int seed_file(struct packer *seed, const Decamp__File *f)
{
	struct packed_file file = { .kind = (enum file_kind)f->kind, .hardlink = f->hardlink };
	int r = 0;

	file.path = strdup((const char *)f->path.data);
	if (!file.path)
		return -ENOMEM;
	file.st.st_mode = f->mode;
	file.st.st_size = (off_t)f->size;
	if (f->content_hash.len == sizeof(file.content_hash))
		memcpy(file.content_hash, f->content_hash.data, sizeof(file.content_hash));
	for (size_t i = 0; r == 0 && i < f->n_extent_pack; i++)
		r = extent_append(&file.extents, f->extent_pack[i], f->extent_slot[i],
				  f->extent_count[i]);
	if (r == 0)
		r = file_list_append_take(&seed->last, &file);
	if (r < 0)
		packed_file_deinit(&file);
	return r;
}

static int seed_finish(struct packer *seed, const struct manifest *m)
{
	size_t n = m->pb->n_packs;
	int r;

	for (size_t i = 0; i < m->pb->n_files; i++) {
		r = seed_file(seed, m->pb->files[i]);
		if (r < 0)
			return r;
	}
	seed->objects = calloc(n + 1, sizeof(*seed->objects));
	if (!seed->objects)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		seed->objects[i] = seed->packs[i].hash;
	seed->objects[n] = m->hash;
	seed->object_count = n + 1;
	r = packer_count_live(seed, &seed->last);
	if (r == 0)
		packer_retire(seed);
	return r;
}

int manifest_unpack(const struct manifest *m, const struct secret_key *job_key, const int *fds,
		    pack_fetch_fn fetch, void *ctx, struct packer *seed,
		    void (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes))
{
	struct unpack u = { .m = m, .job_key = job_key, .fds = fds, .seed = seed };
	struct fetch f = { .m = m, .fn = fetch, .ctx = ctx };
	int r = 0;

	if (seed && (seed->active || memcmp(&seed->job, &m->head.job, sizeof(seed->job)) != 0))
		return -EINVAL;
	if (seed) {
		packer_reset(seed);
		r = seed_packs(seed, m);
	}
	u.frame = malloc(PACK_FRAME_RAW);
	u.scratch = malloc(PACK_FRAME_RAW);
	if (!u.frame || !u.scratch)
		r = -ENOMEM;
	if (r == 0)
		r = prepare(&u);
	if (r == 0)
		r = unpack_all(&u, &f, progress);
	if (f.running && f.threaded)
		pthread_join(f.thread, NULL);
	free(f.bytes);
	if (r == 0)
		r = verify_contents(&u);
	if (r == 0 && seed)
		r = seed_finish(seed, m);
	if (r < 0 && seed)
		packer_reset(seed);
	free(u.placements.items);
	if (u.frame)
		key_wipe(u.frame, PACK_FRAME_RAW);
	if (u.scratch)
		key_wipe(u.scratch, PACK_FRAME_RAW);
	free(u.frame);
	free(u.scratch);
	return r;
}
