// SPDX-License-Identifier: LGPL-2.1-or-later
/* Whole files of a manifest, and what a packer learns from one. */
#include <errno.h>
#include <string.h>

#include "agent/pack/internal.h"
#include "agent/pack/reader.h"
#include "agent/util/io.h"

struct unpack {
	const struct manifest *m;
	const struct secret_key *job_key;
	const int *fds;
	void *fetch_ctx;
	void (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);
};

static bool wanted(const struct unpack *u, size_t index)
{
	const Decamp__File *f = u->m->pb->files[index];

	return u->fds[index] >= 0 && S_ISREG(f->mode) && f->hardlink == 0;
}

/* Empty, then as long as it will be: all that is not written is a hole. */
static int prepare(const struct unpack *u, struct reader_range **ret_ranges, size_t *ret_count)
{
	_cleanup_free_ struct reader_range *ranges = calloc(u->m->pb->n_files + 1, sizeof(*ranges));
	size_t count = 0;

	if (!ranges)
		return -ENOMEM;
	for (size_t i = 0; i < u->m->pb->n_files; i++) {
		if (!wanted(u, i))
			continue;
		if (ftruncate(u->fds[i], 0) < 0 ||
		    ftruncate(u->fds[i], (off_t)u->m->pb->files[i]->size) < 0)
			return -errno;
		ranges[count++] = (struct reader_range){ .file = (uint32_t)i, .count = UINT64_MAX };
	}
	*ret_ranges = take_ptr(ranges);
	*ret_count = count;
	return 0;
}

static int write_blocks(void *ctx, uint32_t file, uint64_t block, uint32_t count,
			const uint8_t *bytes)
{
	const struct unpack *u = ctx;
	uint64_t size = u->m->pb->files[file]->size, at = block * PACK_BLOCK;
	uint64_t n = (uint64_t)count * PACK_BLOCK;

	/* The last block was padded. */
	if (n > size - at)
		n = size - at;
	return pwrite_full(u->fds[file], bytes, (size_t)n, (off_t)at);
}

static void show_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
	const struct unpack *u = ctx;

	u->progress(u->fetch_ctx, done_bytes, total_bytes);
}

static int read_all(struct unpack *u, pack_fetch_fn fetch, struct packer *seed)
{
	struct reader_config config = { .manifest = u->m,
					.job_key = u->job_key,
					.fetch = fetch,
					.fetch_ctx = u->fetch_ctx,
					.seed = seed,
					.sink = write_blocks,
					.progress = u->progress ? show_progress : NULL,
					.ctx = u };
	_cleanup_free_ struct reader_range *ranges = NULL;
	struct pack_reader *reader = NULL;
	size_t count = 0;
	int r = prepare(u, &ranges, &count);

	if (r == 0)
		r = reader_create(&config, ranges, count, &reader);
	if (r == 0)
		r = reader_run(reader);
	reader_destroy(reader);
	return r;
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
		int r = pack_info_read(m, i, &seed->packs[i]);

		if (r < 0)
			return r;
		seed->packs[i].uid = ++seed->last_uid;
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

/* A pack with deltas of which a live frame was not read refers to packs that are not known. */
static void seed_forget_unread(struct packer *seed, const struct manifest *m)
{
	for (size_t i = 0; i < seed->last.count; i++) {
		const struct extent_list *list = &seed->last.items[i].extents;

		for (size_t j = 0; j < list->count; j++) {
			const struct extent *e = &list->items[j];

			if (e->pack == PACK_ZERO || !m->pb->packs[e->pack]->deltas)
				continue;
			for (uint32_t k = e->slot / PACK_FRAME_BLOCKS;
			     k <= (e->slot + e->count - 1) / PACK_FRAME_BLOCKS; k++)
				if (!(seed->packs[e->pack].frames_known >> k & 1))
					packer_forget(seed, &seed->packs[e->pack]);
		}
	}
}

/* The length of each chain. */
static int seed_chains(struct packer *seed)
{
	for (size_t i = 0; i < seed->pack_count; i++) {
		struct pack_info *info = &seed->packs[i];

		for (size_t j = 0; j < info->delta_count; j++) {
			struct delta_info *d = &info->deltas[j];
			const struct delta_info *up = d;

			for (d->depth = 0; up; d->depth++) {
				if (d->depth >= PACK_CHAIN_MAX)
					return -EBADMSG;
				up = pack_delta_find(&seed->packs[up->base_pack], up->base_slot);
			}
		}
	}
	return 0;
}

int packer_seed_begin(struct packer *seed, const struct manifest *m)
{
	if (seed->active || memcmp(&seed->job, &m->head.job, sizeof(seed->job)) != 0)
		return -EINVAL;
	packer_reset(seed);
	if (seed_packs(seed, m) < 0) {
		packer_reset(seed);
		return -ENOMEM;
	}
	seed->seeding = true;
	return 0;
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
		seed->objects[i] = (struct pack_object){ seed->packs[i].hash, seed->packs[i].size };
	seed->objects[n].hash = m->hash; /* its size is its reference's */
	seed->object_count = n + 1;
	seed->unswept = true;
	seed_forget_unread(seed, m);
	r = seed_chains(seed);
	if (r == 0)
		r = packer_count_live(seed, &seed->last);
	if (r == 0)
		packer_retire(seed);
	return r;
}

int packer_seed_end(struct packer *seed, const struct manifest *m)
{
	int r = seed_finish(seed, m);

	seed->seeding = false;
	if (r < 0)
		packer_reset(seed);
	return r;
}

void packer_seed_abort(struct packer *seed)
{
	packer_reset(seed);
}

int manifest_unpack(const struct manifest *m, const struct secret_key *job_key, const int *fds,
		    pack_fetch_fn fetch, void *ctx, struct packer *seed,
		    void (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes))
{
	struct unpack u = {
		.m = m, .job_key = job_key, .fds = fds, .fetch_ctx = ctx, .progress = progress
	};
	/* Else the caller began, and has more to teach. */
	bool begins = seed && !seed->seeding;
	int r = begins ? packer_seed_begin(seed, m) : 0;

	if (r == -EINVAL)
		return r;
	if (r == 0)
		r = read_all(&u, fetch, seed);
	if (r == 0)
		r = verify_contents(&u);
	if (r == 0 && begins)
		r = packer_seed_end(seed, m);
	if (r < 0 && seed)
		packer_reset(seed);
	return r;
}
