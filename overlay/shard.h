/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reed-Solomon shards of an object: pure functions on bytes.
 *
 *   object, zero-padded = k payloads -> m more, each a sum over GF(2^8) of the k
 *   shard = head (64 bytes), payload; an object like any other, named by the SHA-256 of itself
 *
 * Any k of the k + m give the others back, bit by bit, so that a shard that was made again has the
 * name of the one that was lost. The k first are the object itself, cut in pieces. Format and
 * matrix: docs/formats.md. What is coded is ciphertext; no key is needed anywhere here.
 *
 * Threading: none of it keeps anything.
 */
#pragma once

#include "overlay/types.h"

enum {
	SHARD_HEAD_BYTES = 64,
	SHARD_ALIGN = 64, /* payloads are a multiple of this */
};

struct shard_head {
	uint32_t k, m, index;
	uint32_t size;		 /* of the whole object */
	struct object_hash hash; /* likewise */
};

/* 4+2, 4+4 and 8+8: nothing else is made or believed. */
bool shard_scheme_valid(uint32_t k, uint32_t m);
uint32_t shard_payload_bytes(uint32_t size, uint32_t k);
/* Head and payload; the largest is that of OV_PACK_MAX with k = 4. */
uint32_t shard_bytes(uint32_t size, uint32_t k);

void shard_head_encode(const struct shard_head *head, uint8_t bytes[static SHARD_HEAD_BYTES]);
/* Of a whole shard: its size must be what its head says. -EBADMSG. */
int shard_decode(const void *bytes, size_t size, struct shard_head *ret_head)
	__attribute__((warn_unused_result));

/* All k + m of an object, head->index aside. ret_shards: each shard_bytes() of room. */
int shard_encode(const struct shard_head *head, const uint8_t *object, uint8_t *const *ret_shards)
	__attribute__((warn_unused_result));

/*
 * Makes those in the mask `want` from k of those in `have`, heads included; shards: by index, with
 * room for what is wanted. -ENODATA: fewer than k. head: what all their heads say, but for index.
 */
int shard_rebuild(const struct shard_head *head, uint32_t have, uint32_t want,
		  uint8_t *const *shards) __attribute__((warn_unused_result));

/* The object from its k first shards, into size bytes. */
void shard_join(const struct shard_head *head, uint8_t *const *shards, uint8_t *ret_object);

/* What a RETAIN names instead of an object of which only shards are needed any more. */
void shard_group_name(const struct object_hash *hash, struct object_hash *ret_name);
