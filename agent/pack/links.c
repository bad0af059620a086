// SPDX-License-Identifier: LGPL-2.1-or-later
/* From a difference to its base: packs by their names. */
#define LOG_TAG "pack"
#include <errno.h>
#include <string.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

static uint64_t name_hash(const void *name)
{
	uint64_t hash;

	memcpy(&hash, name, sizeof(hash));
	return hash;
}

int links_init(struct slotmap *links, const struct manifest *m)
{
	bool any = false;
	int r = 0;

	*links = (struct slotmap){ 0 };
	for (size_t i = 0; i < m->pb->n_packs; i++)
		any |= m->pb->packs[i]->deltas;
	for (size_t i = 0; any && r == 0 && i < m->pb->n_packs; i++)
		r = slotmap_insert(links, name_hash(m->pb->packs[i]->hash.data), (uint32_t)i);
	if (r < 0)
		slotmap_deinit(links);
	return r;
}

int links_pack(const struct slotmap *links, const struct manifest *m,
	       const struct object_hash *name, uint32_t *ret_pack)
{
	size_t cursor = 0;
	uint32_t at;

	while (slotmap_next(links, name_hash(name), &cursor, &at)) {
		if (memcmp(m->pb->packs[at]->hash.data, name, sizeof(*name)) != 0)
			continue;
		*ret_pack = at;
		return 0;
	}
	return -ENOENT;
}

/* What a holder changed is found before: this is a checkpoint that was written wrongly. */
static int refuse(const struct manifest *m, uint32_t pack, uint32_t slot,
		  const struct object_hash *base, const char *why)
{
	char names[2][2 * sizeof(base->b) + 1];

	hex_encode(m->pb->packs[pack]->hash.data, sizeof(base->b), names[0]);
	hex_encode(base, sizeof(base->b), names[1]);
	log_warn("read: pack=%.16s block=%u base=%.16s: %s", names[0], slot, names[1], why);
	return -EBADMSG;
}

int links_base(const struct slotmap *links, const struct manifest *m, const struct pack_view *v,
	       const struct base_ref *from, struct base_ref *ret_base)
{
	const struct object_hash *name = &v->table.bases[from->ref.pack];
	struct base_ref base = { .slot = from->ref.slot, .depth = from->depth + 1 };

	if (links_pack(links, m, name, &base.pack) < 0)
		return refuse(m, from->pack, from->slot, name, "the base is not of the checkpoint");
	/* Strictly earlier: no circles. */
	if (m->pb->packs[base.pack]->seq >= m->pb->packs[from->pack]->seq)
		return refuse(m, from->pack, from->slot, name, "the base is not older");
	if (base.slot >= m->pb->packs[base.pack]->blocks)
		return refuse(m, from->pack, from->slot, name, "the base has no such block");
	if (base.depth > PACK_CHAIN_MAX)
		return refuse(m, from->pack, from->slot, name, "the chain is too long");
	*ret_base = base;
	return 0;
}
