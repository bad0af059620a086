// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"

/* ---- life ---- */

static int derive_hash_secret(struct packer *p)
{
	/* A job can collide with nobody but itself: nobody else knows how its blocks hash. */
	for (uint8_t i = 0; i < sizeof(p->hash_secret) / KEY_BYTES; i++) {
		struct secret_key part;
		int r = key_derive(&p->job_key, &i, 1, "decamp pack block hash v1", &part);

		if (r < 0)
			return r;
		memcpy(p->hash_secret + (size_t)i * KEY_BYTES, part.b, KEY_BYTES);
		key_wipe(&part, sizeof(part));
	}
	return 0;
}

int packer_create(const struct job_id *job, const struct secret_key *job_key,
		  struct packer **ret_packer)
{
	struct packer *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	p->job = *job;
	p->job_key = *job_key;
	p->budget = PACKER_BUDGET_DEFAULT;
	p->object_file = -1;
	level_init(&p->levels, 0, 0);
	block_cache_init(&p->cache, p->budget.cache_bytes, 0, NULL);
	r = derive_hash_secret(p);
	if (r < 0) {
		packer_destroy(p);
		return r;
	}
	*ret_packer = p;
	return 0;
}

void packer_reset(struct packer *p)
{
	block_index_deinit(&p->index);
	file_list_deinit(&p->last);
	file_list_deinit(&p->now);
	for (size_t i = 0; i < p->pack_count; i++)
		pack_info_clear(&p->packs[i]);
	free(p->packs);
	p->packs = NULL;
	p->pack_count = 0;
	block_cache_deinit(&p->cache);
	free(p->objects);
	p->objects = NULL;
	p->object_count = 0;
	p->seeding = false;
	memset(&p->counts, 0, sizeof(p->counts));
}

static void release_buffers(struct packer *p)
{
	if (!p->read_buffer)
		return;
	key_wipe(p->read_buffer, READ_CHUNK);
	free(p->read_buffer);
	p->read_buffer = NULL;
	close_fdp(&p->object_file);
	p->object_file = -1;
	pack_writer_deinit(&p->writer);
	shared_writer_destroy(take_ptr(p->sharing));
}

void packer_destroy(struct packer *p)
{
	if (!p)
		return;
	packer_abort(p);
	packer_reset(p);
	release_buffers(p);
	key_wipe(p, sizeof(*p));
	free(p);
}

int packer_set_budget(struct packer *p, const struct packer_budget *budget)
{
	if (p->active)
		return -EBUSY;
	if (budget->cache_dir && strlen(budget->cache_dir) >= sizeof(p->cache.dir))
		return -ENAMETOOLONG;
	if (p->budget.cache_bytes != budget->cache_bytes ||
	    p->budget.cache_disk_bytes != budget->cache_disk_bytes ||
	    strcmp(p->cache.dir, budget->cache_dir ?: "") != 0) {
		block_cache_deinit(&p->cache);
		block_cache_init(&p->cache, budget->cache_bytes, budget->cache_disk_bytes,
				 budget->cache_dir);
	}
	if (p->budget.link_bytes_per_s != budget->link_bytes_per_s ||
	    p->budget.cpu_percent != budget->cpu_percent)
		level_init(&p->levels, budget->link_bytes_per_s, budget->cpu_percent);
	p->index.bytes_max = budget->index_bytes;
	p->budget = *budget;
	p->budget.cache_dir = p->cache.dir;
	return 0;
}

void packer_share(struct packer *p, const struct secret_key *key, pack_store_fn store)
{
	p->share_key = *key;
	p->store_shared = store;
}

void packer_set_link(struct packer *p, uint64_t link_bytes_per_s)
{
	if (link_bytes_per_s > 0)
		atomic_store(&p->levels.link_bytes_per_s, link_bytes_per_s);
}

static void stop_threads(struct packer *p)
{
	sealers_destroy(take_ptr(p->sealers));
	storer_destroy(take_ptr(p->storer));
}

static int start_threads(struct packer *p, void *ctx)
{
	int r;

	if (p->budget.threads == 0)
		return 0;
	r = sealers_create(p->budget.threads, &p->sealers);
	if (r == 0)
		r = storer_create(ctx, &p->storer);
	return r;
}

/* Contents have what the index leaves. */
static void fit_cache(struct packer *p)
{
	uint64_t all = p->budget.cache_bytes, index = block_index_bytes(&p->index);

	block_cache_fit(&p->cache, all - (index < all / 2 ? index : all / 2));
}

int packer_begin(struct packer *p, const struct fence_token *token, uint64_t seq,
		 pack_store_fn store, void *ctx)
{
	int r;

	if (p->active || seq == 0)
		return -EINVAL;
	/* Buffers live from begin to finish or abort: an idle job costs its index only. */
	p->read_buffer = malloc(READ_CHUNK);
	if (!p->read_buffer)
		return -ENOMEM;
	r = start_threads(p, ctx);
	if (r == 0)
		r = pack_writer_init(&p->writer, &p->levels, p->sealers);
	if (r < 0) {
		stop_threads(p);
		free(p->read_buffer);
		p->read_buffer = NULL;
		return r;
	}
	fit_cache(p);
	p->active = true;
	p->failed = 0;
	p->seq = seq;
	p->token = *token;
	p->store = store;
	p->store_ctx = ctx;
	p->writing = false;
	p->extents = 0;
	memset(&p->counts, 0, sizeof(p->counts));
	return 0;
}

static int wait_stored(struct packer *p, uint32_t leave);

void packer_abort(struct packer *p)
{
	if (!p->active)
		return;
	if (p->writing)
		pack_writer_cancel(&p->writer);
	(void)!wait_stored(p, 0); /* what was stored all the same stays known */
	stop_threads(p);
	for (size_t i = 0; i < p->pack_count; i++) {
		if (p->packs[i].state != PACK_OPEN)
			continue;
		pack_info_clear(&p->packs[i]);
		p->writing = true; /* something to sweep */
	}
	if (p->writing)
		packer_sweep(p);
	p->writing = false;
	file_list_deinit(&p->now);
	release_buffers(p);
	p->active = false;
}

void packer_counts(const struct packer *p, struct packer_counts *ret_counts)
{
	*ret_counts = p->counts;
	ret_counts->level = level_now(&p->levels);
}

int packer_objects(const struct packer *p, struct object_hash **ret_hashes, size_t *ret_count)
{
	struct object_hash *copy = malloc((p->object_count + 1) * sizeof(*copy));

	if (!copy)
		return -ENOMEM;
	for (size_t i = 0; i < p->object_count; i++)
		copy[i] = p->objects[i].hash;
	*ret_hashes = copy;
	*ret_count = p->object_count;
	return 0;
}

int packer_sized_objects(const struct packer *p, struct pack_object **ret_objects,
			 size_t *ret_count)
{
	struct pack_object *copy = malloc((p->object_count + 1) * sizeof(*copy));

	if (!copy)
		return -ENOMEM;
	if (p->object_count > 0)
		memcpy(copy, p->objects, p->object_count * sizeof(*copy));
	*ret_objects = copy;
	*ret_count = p->object_count;
	return 0;
}

/* ---- packs ---- */

int packer_new_pack(struct packer *p, uint32_t *ret_pack)
{
	struct pack_info *bigger;
	size_t count = p->pack_count;

	for (size_t i = 0; i < count; i++) {
		if (p->packs[i].state != PACK_UNUSED)
			continue;
		pack_info_clear(&p->packs[i]);
		p->packs[i].uid = ++p->last_uid;
		*ret_pack = (uint32_t)i;
		return 0;
	}
	if (count >= MANIFEST_PACKS_MAX)
		return -EFBIG;
	bigger = reallocarray(p->packs, count + 16, sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	memset(bigger + count, 0, 16 * sizeof(*bigger));
	p->packs = bigger;
	p->pack_count = count + 16;
	p->packs[count].uid = ++p->last_uid;
	*ret_pack = (uint32_t)count;
	return 0;
}

static int store_file(void *ctx, int file, struct stored_pack *pack)
{
	int r = ftruncate(file, pack->size) < 0 ? -errno : 0;

	if (r == 0)
		r = pwrite_full(file, pack->bytes, pack->size, 0);
	if (r < 0)
		return r;
	object_hash_of(pack->bytes, pack->size, &pack->hash);
	r = pack->store(ctx, file, &pack->hash, pack->size, &pack->holder_count, pack->holders);
	if (r < 0)
		return r;
	pack->there = (uint32_t)r;
	return pack->holder_count < 1 || pack->holder_count > OV_HOLDERS_MAX ||
			       pack->there > pack->holder_count ?
		       -EPROTO :
		       0;
}

int pack_store_object(void *ctx, int *file, struct stored_pack *pack)
{
	int r;

	if (*file < 0)
		*file = memfd_new("decamp-object");
	r = *file < 0 ? *file : store_file(ctx, *file, pack);
	if (r < 0) { /* of a call that failed somebody may still be reading */
		close_fdp(file);
		*file = -1;
	}
	return r;
}

int packer_store_object(struct packer *p, const void *bytes, uint32_t size,
			struct object_hash *ret_hash, uint32_t *ret_holder_count,
			struct node_id *ret_holders)
{
	struct stored_pack object = { .store = p->store, .bytes = bytes, .size = size };
	int r = pack_store_object(p->store_ctx, &p->object_file, &object);

	if (r < 0)
		return r;
	p->counts.sent_bytes += size;
	*ret_hash = object.hash;
	*ret_holder_count = object.holder_count;
	memcpy(ret_holders, object.holders, sizeof(object.holders));
	return 0;
}

uint64_t pack_sent_bytes(const struct stored_pack *stored)
{
	uint32_t sent = stored->holder_count - stored->there;

	return (uint64_t)stored->size * sent / stored->holder_count;
}

static int pack_stored(struct packer *p, const struct stored_pack *stored)
{
	struct pack_info *info = &p->packs[stored->pack];

	free(stored->own);
	if (stored->result < 0) {
		p->failed = p->failed < 0 ? p->failed : stored->result;
		return p->failed;
	}
	info->state = PACK_KNOWN;
	info->seq = p->seq;
	info->size = stored->size;
	info->hash = stored->hash;
	info->holder_count = stored->holder_count;
	memcpy(info->holders, stored->holders, sizeof(stored->holders));
	p->counts.sent_bytes += pack_sent_bytes(stored);
	p->counts.packs_new++;
	return p->failed;
}

/* Of the packs that are being stored, all but the last `leave` are stored or have failed. */
static int wait_stored(struct packer *p, uint32_t leave)
{
	struct stored_pack stored;

	while (p->storer && storer_take(p->storer, leave, &stored))
		(void)!pack_stored(p, &stored);
	return p->failed;
}

int packer_store_pack(struct packer *p, const struct stored_pack *pack)
{
	struct stored_pack stored = *pack;
	int r = wait_stored(p, STORER_PACKS - 1);

	if (r < 0) {
		free(stored.own);
		return r;
	}
	if (p->storer) {
		storer_submit(p->storer, &stored);
		return 0;
	}
	stored.result = pack_store_object(p->store_ctx, &p->object_file, &stored);
	return pack_stored(p, &stored);
}

/* The open pack goes to the store, which may still be busy with it on return. */
static int close_pack(struct packer *p)
{
	struct stored_pack stored = { .store = p->store, .pack = p->open_pack };
	struct pack_info *info = &p->packs[p->open_pack];
	int r;

	r = pack_writer_end(&p->writer, &stored.bytes, &stored.size);
	if (r < 0) {
		p->failed = r;
		return r;
	}
	info->blocks = p->writer.header.block_count;
	info->salted = true;
	memcpy(info->salt, p->writer.header.salt, sizeof(info->salt));
	p->writing = false;
	return packer_store_pack(p, &stored);
}

int packer_flush(struct packer *p)
{
	int r = p->writing ? close_pack(p) : 0;

	return r < 0 ? r : wait_stored(p, 0);
}

static int open_pack(struct packer *p)
{
	uint32_t pack;
	int r;

	if (p->writing)
		return 0;
	r = packer_new_pack(p, &pack);
	if (r == 0)
		r = pack_writer_begin(&p->writer, &p->job, &p->job_key, p->seq);
	if (r < 0)
		return r;
	p->packs[pack].state = PACK_OPEN;
	p->open_pack = pack;
	p->writing = true;
	return 0;
}

/* As a delta if the choice is one, and its pack takes one more base. */
static int write_block(struct packer *p, const uint8_t *block, const struct base_choice *choice,
		       uint32_t *ret_slot, bool *ret_full)
{
	int r = -ENOSPC;

	if (choice->delta) {
		struct delta_info info = choice->info;

		r = pack_writer_delta(&p->writer, choice->delta, &p->packs[info.base_pack].hash,
				      info.base_slot, ret_slot, ret_full);
		if (r == 0) {
			info.slot = *ret_slot;
			r = pack_delta_add(&p->packs[p->open_pack], &info);
			p->counts.delta_bytes += PACK_BLOCK;
			return r;
		}
	}
	return r == -ENOSPC ? pack_writer_block(&p->writer, block, ret_slot, ret_full) : r;
}

static int new_block(struct packer *p, const uint8_t *block, struct block_hash hash,
		     struct old_file *old, uint32_t *ret_pack, uint32_t *ret_slot)
{
	uint64_t index_bytes = block_index_bytes(&p->index);
	struct base_choice choice;
	bool full = false;
	int r;

	r = open_pack(p);
	if (r < 0)
		return r;
	packer_choose_base(p, block, old, &choice);
	*ret_pack = p->open_pack;
	r = write_block(p, block, &choice, ret_slot, &full);
	if (r == 0)
		r = block_index_insert(&p->index, hash, *ret_pack, *ret_slot);
	if (r < 0) {
		/* The writer and what we know of it may differ now. */
		p->failed = r;
		return r;
	}
	if (block_index_bytes(&p->index) != index_bytes)
		fit_cache(p);
	packer_keep_content(p, block, &choice, *ret_slot);
	p->counts.new_bytes += PACK_BLOCK;
	return full ? close_pack(p) : 0;
}

int packer_block(struct packer *p, const uint8_t *block, struct block_hash hash,
		 struct old_file *old, uint32_t *ret_pack, uint32_t *ret_slot)
{
	if (block_index_find(&p->index, hash, ret_pack, ret_slot))
		return 0;
	return new_block(p, block, hash, old, ret_pack, ret_slot);
}

int packer_rewrite(struct packer *p, const uint8_t *block, uint32_t *ret_pack, uint32_t *ret_slot)
{
	struct block_hash hash = packer_hash(p, block);
	bool full = false;
	int r;

	if (p->failed)
		return p->failed;
	if (block_index_find(&p->index, hash, ret_pack, ret_slot))
		return 0;
	r = open_pack(p);
	if (r < 0)
		return r;
	*ret_pack = p->open_pack;
	r = pack_writer_block(&p->writer, block, ret_slot, &full);
	if (r == 0)
		r = block_index_insert(&p->index, hash, *ret_pack, *ret_slot);
	if (r < 0) {
		p->failed = r;
		return r;
	}
	p->counts.new_bytes += PACK_BLOCK;
	return full ? close_pack(p) : 0;
}

/* ---- files ---- */

static int input_check(const struct pack_input *in)
{
	bool regular = S_ISREG(in->st.st_mode);

	if (!manifest_path_valid(in->kind, in->path) ||
	    !manifest_xattrs_valid(in->xattrs, in->xattrs ? in->xattrs_size : 0))
		return -EINVAL;
	if (S_ISLNK(in->st.st_mode) &&
	    (!in->link_target || !*in->link_target || strlen(in->link_target) >= PATH_MAX))
		return -EINVAL;
	if (regular && (in->st.st_size < 0 || (uint64_t)in->st.st_size > PACK_FILE_MAX))
		return -EFBIG;
	return 0;
}

int packer_extent(struct packer *p, struct extent_list *list, uint32_t pack, uint32_t slot,
		  uint32_t count)
{
	size_t before = list->count;
	int r = extent_append(list, pack, slot, count);

	p->extents += list->count - before;
	if (r == 0 && p->budget.extents_max && p->extents > p->budget.extents_max)
		r = -EOVERFLOW;
	return r;
}

static uint32_t find_hardlink(const struct packer *p, const struct pack_input *in)
{
	uint64_t hash = (uint64_t)in->st.st_ino;
	size_t cursor = 0;
	uint32_t i;

	if (in->st.st_nlink < 2 || S_ISDIR(in->st.st_mode))
		return 0;
	while (slotmap_next(&p->now.by_inode, hash, &cursor, &i)) {
		const struct packed_file *f = &p->now.items[i];

		if (i < p->now.count && f->kind == in->kind && f->st.st_dev == in->st.st_dev &&
		    f->st.st_ino == in->st.st_ino &&
		    (f->st.st_mode & S_IFMT) == (in->st.st_mode & S_IFMT))
			return i + 1;
	}
	return 0;
}

/* Content as it was in the checkpoint before. */
static int reuse_content(struct packer *p, const struct pack_input *in, struct packed_file *f)
{
	const struct packed_file *old = file_list_find(&p->last, in->kind, in->path);

	if (old && old->hardlink != 0)
		old = &p->last.items[old->hardlink - 1];
	if (!old || !S_ISREG(old->st.st_mode) || old->st.st_size != in->st.st_size)
		return -ENOENT;
	for (size_t i = 0; i < old->extents.count; i++) {
		const struct extent *e = &old->extents.items[i];
		bool usable;
		int r;

		if (e->pack != PACK_ZERO &&
		    (packer_usable_run(p, e->pack, e->slot, e->count, &usable) < e->count ||
		     !usable))
			return -ENOENT;
		r = packer_extent(p, &f->extents, e->pack, e->slot, e->count);
		if (r < 0)
			return r;
	}
	memcpy(f->content_hash, old->content_hash, sizeof(f->content_hash));
	return 0;
}

static int fill_file(struct packer *p, const struct pack_input *in, struct packed_file *f)
{
	int r;

	f->kind = in->kind;
	f->st = in->st;
	f->path = strdup(in->path);
	if (!f->path)
		return -ENOMEM;
	if (in->xattrs && in->xattrs_size > 0) {
		f->xattrs = malloc(in->xattrs_size);
		if (!f->xattrs)
			return -ENOMEM;
		memcpy(f->xattrs, in->xattrs, in->xattrs_size);
		f->xattrs_size = in->xattrs_size;
	}
	if (S_ISLNK(in->st.st_mode)) {
		f->link_target = strdup(in->link_target);
		if (!f->link_target)
			return -ENOMEM;
	}
	f->hardlink = find_hardlink(p, in);
	if (f->hardlink != 0) {
		const struct packed_file *first = &p->now.items[f->hardlink - 1];

		f->st.st_size = first->st.st_size;
		memcpy(f->content_hash, first->content_hash, sizeof(f->content_hash));
		return 0;
	}
	if (!S_ISREG(in->st.st_mode))
		return 0;
	if (in->runs)
		r = packer_add_runs(p, in, &f->extents);
	else if (in->fd < 0)
		r = reuse_content(p, in, f);
	else if (packer_shares(p, in))
		r = packer_share_file(p, in, &f->extents, f->content_hash);
	else
		r = packer_read_file(p, in, &f->extents, f->content_hash);
	if (r == 0)
		p->counts.raw_bytes += (uint64_t)in->st.st_size;
	return r;
}

int packer_add(struct packer *p, const struct pack_input *in)
{
	struct packed_file file = { 0 };
	int r;

	if (!p->active)
		return -EINVAL;
	if (p->failed)
		return p->failed;
	r = input_check(in);
	if (r < 0)
		return r;
	if (p->now.count >= MANIFEST_FILES_MAX)
		return -EFBIG;
	if (file_list_find(&p->now, in->kind, in->path))
		return -EEXIST;
	r = fill_file(p, in, &file);
	if (r == 0)
		r = file_list_append_take(&p->now, &file);
	if (r < 0) {
		p->extents -= file.extents.count;
		packed_file_deinit(&file);
	}
	return r;
}
