// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/shard.h"

#include <errno.h>
#include <isa-l/erasure_code.h>
#include <openssl/sha.h>
#include <string.h>

static const char magic[8] = "DECAMPSH";

enum {
	VERSION = 1,
	AT_VERSION = 8,
	AT_K = 12,
	AT_M = 13,
	AT_INDEX = 14,
	AT_SIZE = 16,
	AT_HASH = 24,
	AT_END = 56,
	TABLE_BYTES = 32, /* ISA-L: for each coefficient */
};

bool shard_scheme_valid(uint32_t k, uint32_t m)
{
	return (k == 4 && (m == 2 || m == 4)) || (k == 8 && m == 8);
}

uint32_t shard_payload_bytes(uint32_t size, uint32_t k)
{
	uint32_t part = size / k + (size % k != 0);

	return (part + SHARD_ALIGN - 1) / SHARD_ALIGN * SHARD_ALIGN;
}

uint32_t shard_bytes(uint32_t size, uint32_t k)
{
	return SHARD_HEAD_BYTES + shard_payload_bytes(size, k);
}

static void put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

void shard_head_encode(const struct shard_head *head, uint8_t bytes[static SHARD_HEAD_BYTES])
{
	memset(bytes, 0, SHARD_HEAD_BYTES);
	memcpy(bytes, magic, sizeof(magic));
	put32(bytes + AT_VERSION, VERSION);
	bytes[AT_K] = (uint8_t)head->k;
	bytes[AT_M] = (uint8_t)head->m;
	bytes[AT_INDEX] = (uint8_t)head->index;
	put32(bytes + AT_SIZE, head->size);
	memcpy(bytes + AT_HASH, &head->hash, sizeof(head->hash));
}

int shard_decode(const void *data, size_t size, struct shard_head *ret_head)
{
	static const uint8_t zero[SHARD_HEAD_BYTES - AT_END];
	const uint8_t *bytes = data;
	struct shard_head head;

	if (size < SHARD_HEAD_BYTES || memcmp(bytes, magic, sizeof(magic)) != 0 ||
	    get32(bytes + AT_VERSION) != VERSION)
		return -EBADMSG;
	head.k = bytes[AT_K];
	head.m = bytes[AT_M];
	head.index = bytes[AT_INDEX];
	head.size = get32(bytes + AT_SIZE);
	memcpy(&head.hash, bytes + AT_HASH, sizeof(head.hash));
	if (!shard_scheme_valid(head.k, head.m) || head.index >= head.k + head.m ||
	    head.size == 0 || head.size > OV_PACK_MAX || bytes[AT_INDEX + 1] != 0 ||
	    get32(bytes + AT_SIZE + 4) != 0 || memcmp(bytes + AT_END, zero, sizeof(zero)) != 0 ||
	    size != shard_bytes(head.size, head.k))
		return -EBADMSG;
	*ret_head = head;
	return 0;
}

static void write_head(const struct shard_head *head, uint32_t index, uint8_t *shard)
{
	struct shard_head own = *head;

	own.index = index;
	shard_head_encode(&own, shard);
}

/* Bytes of the object that payload `index` has; the rest of it is zero. */
static uint32_t part_bytes(const struct shard_head *head, uint32_t index)
{
	uint64_t payload = shard_payload_bytes(head->size, head->k);
	uint64_t start = payload * index;

	if (start >= head->size)
		return 0;
	return head->size - start < payload ? (uint32_t)(head->size - start) : (uint32_t)payload;
}

int shard_encode(const struct shard_head *head, const uint8_t *object, uint8_t *const *ret_shards)
{
	uint32_t payload = shard_payload_bytes(head->size, head->k);
	uint32_t have = (1u << head->k) - 1, all = (1u << (head->k + head->m)) - 1;

	if (!shard_scheme_valid(head->k, head->m) || head->size == 0 || head->size > OV_PACK_MAX)
		return -EINVAL;
	for (uint32_t i = 0; i < head->k; i++) {
		uint32_t part = part_bytes(head, i);
		uint8_t *to = ret_shards[i] + SHARD_HEAD_BYTES;

		write_head(head, i, ret_shards[i]);
		if (part > 0)
			memcpy(to, object + (size_t)payload * i, part);
		memset(to + part, 0, payload - part);
	}
	return shard_rebuild(head, have, all & ~have, ret_shards);
}

/* From the rows of the matrix that are there: row `index` of the whole one as a sum of these. */
static void combine(const uint8_t *matrix, const uint8_t *inverse, uint32_t k, uint32_t index,
		    uint8_t *ret_row)
{
	if (index < k) {
		memcpy(ret_row, inverse + index * k, k);
		return;
	}
	for (uint32_t to = 0; to < k; to++) {
		uint8_t sum = 0;

		for (uint32_t i = 0; i < k; i++)
			sum ^= gf_mul(matrix[index * k + i], inverse[i * k + to]);
		ret_row[to] = sum;
	}
}

int shard_rebuild(const struct shard_head *head, uint32_t have, uint32_t want,
		  uint8_t *const *shards)
{
	uint8_t matrix[OV_SHARDS_MAX * OV_SHARDS_MAX / 2], there[OV_SHARDS_MAX * OV_SHARDS_MAX / 4];
	uint8_t inverse[sizeof(there)], rows[OV_SHARDS_MAX * OV_SHARDS_MAX / 2];
	uint8_t tables[sizeof(rows) * TABLE_BYTES];
	uint8_t *from[OV_SHARDS_MAX], *to[OV_SHARDS_MAX];
	uint32_t k = head->k, count = k + head->m, found = 0, wanted = 0;

	if (!shard_scheme_valid(k, head->m) || want & have || want >> count)
		return -EINVAL;
	gf_gen_cauchy1_matrix(matrix, (int)count, (int)k);
	for (uint32_t i = 0; i < count && found < k; i++) {
		if (!(have & 1u << i))
			continue;
		memcpy(there + found * k, matrix + i * k, k);
		from[found++] = shards[i] + SHARD_HEAD_BYTES;
	}
	if (found < k)
		return -ENODATA;
	/* Any k rows of a Cauchy matrix below the identity can be inverted. */
	if (gf_invert_matrix(there, inverse, (int)k) != 0)
		return -EIO;
	for (uint32_t i = 0; i < count; i++) {
		if (!(want & 1u << i))
			continue;
		if (wanted == OV_SHARDS_MAX / 2)
			return -EINVAL;
		combine(matrix, inverse, k, i, rows + wanted * k);
		write_head(head, i, shards[i]);
		to[wanted++] = shards[i] + SHARD_HEAD_BYTES;
	}
	if (wanted == 0)
		return 0;
	ec_init_tables((int)k, (int)wanted, rows, tables);
	ec_encode_data((int)shard_payload_bytes(head->size, k), (int)k, (int)wanted, tables, from,
		       to);
	return 0;
}

void shard_join(const struct shard_head *head, uint8_t *const *shards, uint8_t *ret_object)
{
	size_t payload = shard_payload_bytes(head->size, head->k);

	for (uint32_t i = 0; i < head->k; i++) {
		uint32_t part = part_bytes(head, i);

		if (part > 0)
			memcpy(ret_object + payload * i, shards[i] + SHARD_HEAD_BYTES, part);
	}
}

void shard_group_name(const struct object_hash *hash, struct object_hash *ret_name)
{
	static const char label[] = "decamp group of shards v1";
	uint8_t bytes[sizeof(label) + sizeof(*hash)];

	memcpy(bytes, label, sizeof(label));
	memcpy(bytes + sizeof(label), hash, sizeof(*hash));
	SHA256(bytes, sizeof(bytes), ret_name->b);
}
