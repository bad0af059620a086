// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Packs that the jobs of a cluster share. An executable or a library that ten jobs run is kept once:
 * equal content gives equal objects, and peers know objects by their hash.
 *
 * So nothing of such a pack is random, or depends on the job. All of it is compressed first; the hash
 * of what will be sealed, with the cluster's key, gives the key to seal it with. Two packs have one
 * key only if they are the same (a synthetic initialisation vector, as in RFC 5297), whatever the
 * compressor is. Who has not the cluster's key can neither read nor recognise a file. The key of each
 * pack stands in the manifest, so a reader needs nothing but that.
 *
 * A pack holds blocks of one file. They are known to the index as others are: memory that is the same
 * refers to them.
 */
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#include "agent/pack/internal.h"

enum {
	SHARED_FILE_MIN = 128 << 10, /* smaller ones would be many small objects */
	SHARED_BLOCKS = 1024,
	SHARED_FRAMES = SHARED_BLOCKS / PACK_FRAME_BLOCKS,
	SHARED_LEVEL = 3, /* of zstd: one for all hosts */
	SHARED_OUT_MAX = sizeof(struct pack_header) + SHARED_FRAMES * (PACK_FRAME_RAW + AEAD_TAG) +
			 PACK_TABLE_MAX + AEAD_TAG + PACK_PAD,
};

_Static_assert((int)SHARED_FRAMES <= (int)PACK_FRAMES_MAX, "a pack has room for its frames");
_Static_assert((int)SHARED_OUT_MAX <= (int)OV_PACK_MAX, "a pack fits the overlay's limit");

struct shared_writer {
	struct frame_scratch scratch;
	uint8_t *raw; /* the frame being filled */
	uint32_t raw_blocks;
	uint8_t *out; /* NULL: no pack is open */
	size_t out_size;
	struct pack_header header;
	struct pack_table table;
	struct block_hash hashes[SHARED_BLOCKS];
	uint32_t *packs; /* of the file being read: its first, second... pack -> packer's id */
	size_t pack_count, pack_room;
};

void shared_writer_destroy(struct shared_writer *w)
{
	if (!w)
		return;
	frame_scratch_deinit(&w->scratch);
	if (w->raw)
		key_wipe(w->raw, PACK_FRAME_RAW);
	free(w->raw);
	free(w->out);
	free(w->packs);
	free(w);
}

static int writer_create(struct shared_writer **ret_writer)
{
	struct shared_writer *w = calloc(1, sizeof(*w));
	int r = w ? frame_scratch_init(&w->scratch) : -ENOMEM;

	if (r == 0) {
		w->raw = malloc(PACK_FRAME_RAW);
		r = w->raw ? 0 : -ENOMEM;
	}
	if (r < 0) {
		shared_writer_destroy(w);
		return r;
	}
	*ret_writer = w;
	return 0;
}

/* ---- one pack ---- */

static int pack_begin(struct shared_writer *w)
{
	w->out = malloc(SHARED_OUT_MAX);
	if (!w->out)
		return -ENOMEM;
	w->header = (struct pack_header){ .version = PACK_VERSION };
	memcpy(w->header.magic, PACK_MAGIC, sizeof(w->header.magic));
	w->out_size = sizeof(w->header);
	w->table.base_count = 0;
	w->raw_blocks = 0;
	return 0;
}

/* Compressed where it will lie once it is sealed. */
static void frame_close(struct shared_writer *w)
{
	struct pack_frame *f = &w->table.frames[w->header.frame_count++];
	size_t raw_size = (size_t)w->raw_blocks * PACK_BLOCK;
	size_t size = frame_compress(&w->scratch, SHARED_LEVEL, w->raw, raw_size, 0);

	*f = (struct pack_frame){ .offset = (uint32_t)w->out_size,
				  .blocks = (uint16_t)w->raw_blocks,
				  .flags = size == 0 ? PACK_FRAME_STORED : 0 };
	memcpy(w->out + w->out_size, size ? w->scratch.packed : w->raw, size ? size : raw_size);
	f->size = (uint32_t)(size ? size : raw_size) + AEAD_TAG;
	w->out_size += f->size;
	w->raw_blocks = 0;
}

static void pack_block(struct shared_writer *w, const uint8_t *block, struct block_hash hash)
{
	memcpy(w->raw + (size_t)w->raw_blocks++ * PACK_BLOCK, block, PACK_BLOCK);
	w->hashes[w->header.block_count++] = hash;
	if (w->raw_blocks == PACK_FRAME_BLOCKS)
		frame_close(w);
}

/* Of all that the key will seal, and where it will lie. */
static int pack_digest(const struct shared_writer *w, const uint8_t *table, size_t table_size,
		       uint8_t ret_digest[32])
{
	EVP_MD_CTX *sha = EVP_MD_CTX_new();
	bool good = sha && EVP_DigestInit_ex(sha, EVP_sha256(), NULL) == 1 &&
		    EVP_DigestUpdate(sha, &w->header, sizeof(w->header)) == 1 &&
		    EVP_DigestUpdate(sha, table, table_size) == 1;

	for (uint32_t i = 0; good && i < w->header.frame_count; i++)
		good = EVP_DigestUpdate(sha, w->out + w->table.frames[i].offset,
					w->table.frames[i].size - AEAD_TAG) == 1;
	good = good && EVP_DigestFinal_ex(sha, ret_digest, NULL) == 1;
	EVP_MD_CTX_free(sha);
	return good ? 0 : -EIO;
}

static int derive(struct shared_writer *w, const struct secret_key *share_key,
		  const uint8_t digest[32], struct secret_key *ret_key)
{
	struct secret_key salt;
	int r = key_derive(share_key, digest, 32, "decamp shared pack salt v1", &salt);

	if (r < 0)
		return r;
	memcpy(w->header.salt, salt.b, sizeof(w->header.salt));
	return key_derive(share_key, digest, 32, "decamp shared pack v1", ret_key);
}

static int seal_all(struct shared_writer *w, const struct secret_key *key, const uint8_t *table,
		    size_t table_size)
{
	static const struct job_id nobody;
	struct table_ad ad = { .header = w->header };
	int r = 0;

	for (uint32_t i = 0; i < w->header.frame_count && r == 0; i++) {
		struct frame_ad frame_ad = pack_frame_ad(&w->header, &nobody, 0, i);
		uint8_t *at = w->out + w->table.frames[i].offset;

		r = aead_seal(key, i, &frame_ad, sizeof(frame_ad), at,
			      w->table.frames[i].size - AEAD_TAG, at);
	}
	return r < 0 ? r :
		       aead_seal(key, PACK_TABLE_NUMBER, &ad, sizeof(ad), table, table_size,
				 w->out + w->header.table_offset);
}

/* The object is w->out, of header.total_size bytes. */
static int pack_end(struct shared_writer *w, const struct secret_key *share_key,
		    struct secret_key *ret_key)
{
	uint8_t table[PACK_TABLE_MAX], digest[32];
	size_t table_size, used;
	int r;

	if (w->raw_blocks > 0)
		frame_close(w);
	table_size = pack_table_encode(&w->table, w->header.frame_count, table);
	w->header.table_offset = (uint32_t)w->out_size;
	w->header.table_size = (uint32_t)table_size + AEAD_TAG;
	used = w->out_size + w->header.table_size;
	w->header.total_size = (uint32_t)((used + PACK_PAD - 1) / PACK_PAD * PACK_PAD);
	r = pack_digest(w, table, table_size, digest);
	if (r == 0)
		r = derive(w, share_key, digest, ret_key);
	if (r == 0)
		r = seal_all(w, ret_key, table, table_size);
	if (r < 0)
		return r;
	memset(w->out + used, 0, w->header.total_size - used);
	memcpy(w->out, &w->header, sizeof(w->header));
	return 0;
}

/* ---- packs of a packer ---- */

static bool find_pack(const struct packer *p, const struct object_hash *hash, uint32_t *ret_pack)
{
	for (size_t i = 0; i < p->pack_count; i++) {
		const struct pack_info *info = &p->packs[i];

		if (info->state == PACK_UNUSED || !info->shared_key ||
		    memcmp(&info->hash, hash, sizeof(*hash)) != 0)
			continue;
		*ret_pack = (uint32_t)i;
		return true;
	}
	return false;
}

static int new_pack(struct packer *p, const struct secret_key *key, const struct object_hash *hash,
		    uint32_t *ret_pack)
{
	struct shared_writer *w = p->sharing;
	struct stored_pack stored = { .store = p->store_shared, .size = w->header.total_size };
	struct pack_info *info;
	int r = packer_new_pack(p, ret_pack);

	if (r < 0)
		return r;
	info = &p->packs[*ret_pack];
	info->shared_key = malloc(sizeof(*info->shared_key));
	if (!info->shared_key)
		return -ENOMEM;
	*info->shared_key = *key;
	info->state = PACK_OPEN;
	info->hash = *hash;
	info->blocks = w->header.block_count;
	p->counts.new_bytes += (uint64_t)w->header.block_count * PACK_BLOCK;
	stored.pack = *ret_pack;
	stored.bytes = stored.own = take_ptr(w->out);
	return packer_store_pack(p, &stored);
}

/* Its holders are gone, or most of it was not needed any more: as the same pack once more. */
static int store_again(struct packer *p, uint32_t pack)
{
	struct pack_info *info = &p->packs[pack];
	struct stored_pack stored = { .store = p->store_shared,
				      .bytes = p->sharing->out,
				      .size = info->size };
	int r = pack_store_object(p->store_ctx, &p->object_file, &stored);

	if (r < 0) {
		p->failed = r;
		return r;
	}
	info->state = PACK_KNOWN;
	info->holder_count = stored.holder_count;
	memcpy(info->holders, stored.holders, sizeof(stored.holders));
	p->counts.sent_bytes += pack_sent_bytes(&stored);
	return 0;
}

static int publish(struct packer *p, const struct secret_key *key)
{
	struct shared_writer *w = p->sharing;
	struct object_hash hash;
	uint32_t pack;
	int r = 0;

	if (w->pack_count == w->pack_room) {
		size_t room = w->pack_room ? 2 * w->pack_room : 16;
		uint32_t *more = reallocarray(w->packs, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		w->packs = more;
		w->pack_room = room;
	}
	object_hash_of(w->out, w->header.total_size, &hash);
	if (!find_pack(p, &hash, &pack))
		r = new_pack(p, key, &hash, &pack);
	else if (p->packs[pack].state == PACK_FORGOTTEN)
		r = store_again(p, pack);
	for (uint32_t i = 0; i < w->header.block_count && r == 0; i++)
		r = block_index_insert(&p->index, w->hashes[i], pack, i);
	w->packs[w->pack_count++] = pack;
	return r;
}

static int close_pack(struct packer *p)
{
	struct shared_writer *w = p->sharing;
	struct secret_key key;
	int r = pack_end(w, &p->share_key, &key);

	if (r == 0)
		r = publish(p, &key);
	key_wipe(&key, sizeof(key));
	free(take_ptr(w->out));
	return r;
}

/* ---- files ---- */

bool packer_shares(const struct packer *p, const struct pack_input *in)
{
	return p->store_shared && in->kind == FILE_CLOSURE && in->st.st_uid == 0 &&
	       in->st.st_mode & S_IROTH && !(in->st.st_mode & (S_IWGRP | S_IWOTH)) &&
	       in->st.st_size >= SHARED_FILE_MIN;
}

int packer_share_blocks(struct packer *p, const uint8_t *bytes, size_t blocks,
			struct extent_list *extents)
{
	struct shared_writer *w = p->sharing;
	int r = 0;

	for (size_t i = 0; i < blocks && r == 0; i++, bytes += PACK_BLOCK) {
		if (block_is_zero(bytes)) {
			p->counts.zero_bytes += PACK_BLOCK;
			r = extent_append(extents, PACK_ZERO, 0, 1);
			continue;
		}
		if (!w->out)
			r = pack_begin(w);
		if (r == 0)
			r = extent_append(extents, (uint32_t)w->pack_count, w->header.block_count,
					  1);
		if (r < 0)
			break;
		pack_block(w, bytes, packer_hash(p, bytes));
		if (w->header.block_count == SHARED_BLOCKS)
			r = close_pack(p);
	}
	return r;
}

/* Packs by their order in the file -> by the packer's ids. */
static int name_packs(struct packer *p, const struct extent_list *from, struct extent_list *to)
{
	const struct shared_writer *w = p->sharing;
	int r = 0;

	for (size_t i = 0; i < from->count && r == 0; i++) {
		const struct extent *e = &from->items[i];

		r = packer_extent(p, to, e->pack == PACK_ZERO ? PACK_ZERO : w->packs[e->pack],
				  e->slot, e->count);
	}
	return r;
}

int packer_share_file(struct packer *p, const struct pack_input *in, struct extent_list *extents,
		      uint8_t ret_content_hash[32])
{
	uint64_t before = p->extents;
	struct extent_list found = { 0 };
	int r = p->sharing ? 0 : writer_create(&p->sharing);

	if (r < 0)
		return r;
	p->sharing->pack_count = 0;
	p->share_file = true;
	r = packer_read_file(p, in, &found, ret_content_hash);
	p->share_file = false;
	p->extents = before; /* those of `found` are no file's */
	if (r == 0 && p->sharing->out)
		r = close_pack(p);
	free(take_ptr(p->sharing->out));
	if (r == 0)
		r = name_packs(p, &found, extents);
	free(found.items);
	return r;
}

/* ---- the way back ---- */

bool manifest_pack_bound(const struct manifest *m, uint32_t pack)
{
	return m->pb->packs[pack]->salt.len == PACK_SALT;
}

/* Packs of one checkpoint differ in nothing else that their frames are authenticated with. */
static int check_salt(const Decamp__Pack *info, struct pack_view *v)
{
	if (info->salt.len == 0 || memcmp(v->header.salt, info->salt.data, PACK_SALT) == 0)
		return 0;
	key_wipe(&v->key, sizeof(v->key));
	return -EBADMSG;
}

int manifest_view_open(const struct manifest *m, uint32_t pack, const struct secret_key *job_key,
		       const void *bytes, size_t size, struct pack_view *v)
{
	const Decamp__Pack *info = m->pb->packs[pack];
	struct secret_key key;
	int r;

	if (info->shared_key.len == 0) {
		r = pack_view_open(v, bytes, size, &m->head.job, job_key, info->seq);
		return r == 0 ? check_salt(info, v) : r;
	}
	memcpy(key.b, info->shared_key.data, sizeof(key.b));
	r = pack_view_open_shared(v, bytes, size, &key);
	key_wipe(&key, sizeof(key));
	return r;
}

int manifest_view_open_file(const struct manifest *m, uint32_t pack,
			    const struct secret_key *job_key, int fd, struct pack_view *v)
{
	const Decamp__Pack *info = m->pb->packs[pack];
	int r;

	if (!manifest_pack_bound(m, pack))
		return -EINVAL;
	r = pack_view_open_file(v, fd, info->size, &m->head.job, job_key, info->seq);
	return r == 0 ? check_salt(info, v) : r;
}
