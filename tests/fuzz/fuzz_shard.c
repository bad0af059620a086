// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: overlay/shard.c
/*
 * A shard as a peer returns it: what decodes must encode to the same bytes, and k of its kind,
 * whatever their payloads, must give the rest, from which any other k give the same again.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/shard.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

enum { SMALL = 4096 };

static void use(struct shard_head *head, const uint8_t *bytes, size_t size)
{
	uint32_t n = head->k + head->m, all = (1u << n) - 1, low = (1u << head->k) - 1;
	uint8_t *made[OV_SHARDS_MAX] = { NULL }, *again[OV_SHARDS_MAX] = { NULL };
	uint8_t *object = malloc(head->size);

	if (!object)
		abort();
	for (uint32_t i = 0; i < n; i++) {
		made[i] = malloc(size);
		again[i] = calloc(1, size);
		if (!made[i] || !again[i])
			abort();
		memcpy(made[i], bytes, size);
		made[i][size - 1] ^= (uint8_t)i;
	}
	if (shard_rebuild(head, low, all & ~low, made) < 0)
		abort();
	for (uint32_t i = head->m; i < n; i++)
		memcpy(again[i], made[i], size);
	if (shard_rebuild(head, all & ~((1u << head->m) - 1), (1u << head->m) - 1, again) < 0)
		abort();
	for (uint32_t i = 0; i < n; i++)
		if (memcmp(made[i] + SHARD_HEAD_BYTES, again[i] + SHARD_HEAD_BYTES,
			   size - SHARD_HEAD_BYTES))
			abort();
	shard_join(head, made, object);
	for (uint32_t i = 0; i < n; i++) {
		free(made[i]);
		free(again[i]);
	}
	free(object);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	uint8_t again[SHARD_HEAD_BYTES];
	struct shard_head head;

	if (shard_decode(bytes, size, &head) < 0)
		return 0;
	shard_head_encode(&head, again);
	if (memcmp(again, bytes, sizeof(again)) != 0)
		abort();
	if (size <= SMALL)
		use(&head, bytes, size);
	return 0;
}
