// SPDX-License-Identifier: LGPL-2.1-or-later
/* Packs that the peers keep as shards: which ones may become such, and what manifests say of them. */
#include <errno.h>
#include <string.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"
#include "overlay/shard.h"

/* Less than that is soon rewritten, and the work was for nothing. */
enum { LIVE_PERCENT_MIN = 60 };

static int compare_age(const void *a, const void *b)
{
	const struct pack_old *x = a, *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

int packer_old(const struct packer *p, uint64_t age, uint32_t size_min, struct pack_old **ret_packs,
	       size_t *ret_count)
{
	struct pack_old *packs = calloc(p->pack_count + 1, sizeof(*packs));
	size_t count = 0;

	if (!packs)
		return -ENOMEM;
	for (size_t i = 0; i < p->pack_count; i++) {
		const struct pack_info *info = &p->packs[i];

		if (info->state != PACK_KNOWN || info->k || info->shared_key ||
		    info->size < size_min || info->seq + age > p->seq ||
		    (uint64_t)info->live * 100 < (uint64_t)info->blocks * LIVE_PERCENT_MIN)
			continue;
		packs[count] = (struct pack_old){ .hash = info->hash,
						  .seq = info->seq,
						  .size = info->size,
						  .holder_count = info->holder_count };
		memcpy(packs[count++].holders, info->holders, sizeof(packs[0].holders));
	}
	qsort(packs, count, sizeof(*packs), compare_age);
	*ret_packs = packs;
	*ret_count = count;
	return 0;
}

int packer_set_coded(struct packer *p, const struct object_hash *hash, uint32_t k, uint32_t m,
		     const struct node_id *holders)
{
	if (!shard_scheme_valid(k, m))
		return -EINVAL;
	for (size_t i = 0; i < p->pack_count; i++) {
		struct pack_info *info = &p->packs[i];

		if (info->state != PACK_KNOWN || memcmp(&info->hash, hash, sizeof(*hash)) != 0)
			continue;
		info->k = k;
		info->m = m;
		info->holder_count = k + m;
		memcpy(info->holders, holders, (k + m) * sizeof(*holders));
		return 0;
	}
	return -ENOENT;
}

int packer_coded(const struct packer *p, struct object_hash **ret_hashes, size_t *ret_count,
		 uint64_t *ret_bytes)
{
	struct object_hash *hashes = calloc(p->pack_count + 1, sizeof(*hashes));
	uint64_t bytes = 0;
	size_t count = 0;

	if (!hashes)
		return -ENOMEM;
	for (size_t i = 0; i < p->pack_count; i++) {
		const struct pack_info *info = &p->packs[i];

		if (info->state == PACK_UNUSED || !info->coded_said)
			continue;
		hashes[count++] = info->hash;
		bytes += info->size;
	}
	*ret_hashes = hashes;
	*ret_count = count;
	*ret_bytes = bytes;
	return 0;
}

bool manifest_object_coded(const struct manifest *m, size_t index)
{
	return m->pb->packs[index]->data_shards != 0;
}

bool pack_holders_valid(const Decamp__Pack *p)
{
	size_t count = p->holders.len / sizeof(struct node_id);

	if (p->holders.len % sizeof(struct node_id) != 0)
		return false;
	if (p->data_shards == 0 && p->parity_shards == 0)
		return count >= 1 && count <= OV_HOLDERS_MAX;
	return shard_scheme_valid(p->data_shards, p->parity_shards) &&
	       count == p->data_shards + p->parity_shards;
}

int pack_info_read(const struct manifest *m, size_t index, struct pack_info *info)
{
	const Decamp__Pack *p = m->pb->packs[index];

	if (p->shared_key.len) {
		info->shared_key = malloc(sizeof(*info->shared_key));
		if (!info->shared_key)
			return -ENOMEM;
		memcpy(info->shared_key->b, p->shared_key.data, sizeof(info->shared_key->b));
	}
	memcpy(info->hash.b, p->hash.data, sizeof(info->hash.b));
	info->salted = p->salt.len != 0;
	if (info->salted)
		memcpy(info->salt, p->salt.data, sizeof(info->salt));
	info->state = PACK_KNOWN;
	info->size = p->size;
	info->seq = p->seq;
	info->blocks = p->blocks;
	info->k = p->data_shards;
	info->m = p->parity_shards;
	info->coded_said = info->k != 0;
	info->holder_count = (uint32_t)(p->holders.len / sizeof(struct node_id));
	memcpy(info->holders, p->holders.data, p->holders.len);
	return 0;
}
