// SPDX-License-Identifier: LGPL-2.1-or-later
/* The group of an object's shards, on the wire and in the store's index. */
#include <errno.h>
#include <string.h>

#include "overlay/net/frame.h"
#include "overlay/shard.h"

enum { FIXED_BYTES = 16 + 24 + 32 + 8 + 16 };

static uint32_t take32(const uint8_t **p)
{
	uint32_t v = (uint32_t)(net_u64_decode(*p) & UINT32_MAX);

	*p += 4;
	return v;
}

static void take_bytes(const uint8_t **p, void *to, size_t size)
{
	memcpy(to, *p, size);
	*p += size;
}

static bool is_sane(const struct ov_group *group)
{
	uint32_t count = group->k + group->m;

	if (group->size == 0 || group->size > OV_PACK_MAX || group->revision == 0)
		return false;
	for (uint32_t i = 0; i < count; i++) {
		if (node_id_is_zero(&group->holders[i]))
			return false;
		for (uint32_t j = 0; j < i; j++)
			if (node_id_equal(&group->holders[i], &group->holders[j]) ||
			    !memcmp(&group->shards[i], &group->shards[j], sizeof(group->shards[i])))
				return false;
	}
	return true;
}

int net_group_decode(const uint8_t *bytes, size_t size, struct ov_group *ret_group)
{
	struct ov_group group = { 0 };
	const uint8_t *p = bytes;
	uint32_t count;

	/* Behind the fixed part there is at least one shard: 32-bit fields may be read as 64. */
	if (size <= FIXED_BYTES + 8)
		return -EBADMSG;
	take_bytes(&p, &group.job, sizeof(group.job));
	group.token.counter = net_u64_decode(p);
	p += 8;
	take_bytes(&p, &group.token.node, sizeof(group.token.node));
	take_bytes(&p, &group.hash, sizeof(group.hash));
	group.seq = net_u64_decode(p);
	p += 8;
	group.size = take32(&p);
	group.k = take32(&p);
	group.m = take32(&p);
	group.revision = take32(&p);
	count = group.k + group.m;
	if (!shard_scheme_valid(group.k, group.m) ||
	    size != FIXED_BYTES + count * (sizeof(group.shards[0]) + sizeof(group.holders[0])))
		return -EBADMSG;
	take_bytes(&p, group.shards, count * sizeof(group.shards[0]));
	take_bytes(&p, group.holders, count * sizeof(group.holders[0]));
	if (!is_sane(&group))
		return -EBADMSG;
	*ret_group = group;
	return 0;
}

static bool is_newer(const struct ov_group *a, const struct ov_group *b)
{
	if (a->revision != b->revision)
		return a->revision > b->revision;
	return memcmp(a->holders, b->holders, sizeof(a->holders)) > 0;
}

bool net_group_supersedes(const struct ov_group *group, const struct ov_group *known)
{
	return is_newer(group, known) && group->k == known->k && group->m == known->m &&
	       !memcmp(&group->hash, &known->hash, sizeof(group->hash)) &&
	       !memcmp(&group->job, &known->job, sizeof(group->job)) &&
	       !memcmp(group->shards, known->shards, sizeof(group->shards));
}

static uint8_t *add_bytes(uint8_t *p, const void *bytes, size_t size)
{
	memcpy(p, bytes, size);
	return p + size;
}

static uint8_t *add32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> 8 * i);
	return p + 4;
}

size_t net_group_encode(const struct ov_group *group, uint8_t bytes[static NET_GROUP_MAX])
{
	uint32_t count = group->k + group->m < OV_SHARDS_MAX ? group->k + group->m : OV_SHARDS_MAX;
	uint8_t *p = add_bytes(bytes, &group->job, sizeof(group->job));

	net_u64_encode(group->token.counter, p);
	p = add_bytes(p + 8, &group->token.node, sizeof(group->token.node));
	p = add_bytes(p, &group->hash, sizeof(group->hash));
	net_u64_encode(group->seq, p);
	p = add32(p + 8, group->size);
	p = add32(p, group->k);
	p = add32(p, group->m);
	p = add32(p, group->revision);
	p = add_bytes(p, group->shards, count * sizeof(group->shards[0]));
	p = add_bytes(p, group->holders, count * sizeof(group->holders[0]));
	return (size_t)(p - bytes);
}
