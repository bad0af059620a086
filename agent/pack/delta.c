// SPDX-License-Identifier: LGPL-2.1-or-later
/* Difference of two blocks: which of their 512 words differ, and the exclusive or of those. */
#include <errno.h>
#include <string.h>

#include "agent/pack/internal.h"

void block_delta(const uint8_t *now, const uint8_t *base, struct block_delta *ret_delta)
{
	struct block_delta *d = ret_delta;
	uint32_t n = 0;

	/* Without a branch: which words differ cannot be foretold. */
	for (size_t i = 0; i < ARRAY_SIZE(d->map); i++) {
		uint64_t a[64], b[64], bits = 0;

		memcpy(a, now + i * sizeof(a), sizeof(a));
		memcpy(b, base + i * sizeof(b), sizeof(b));
		for (size_t j = 0; j < 64; j++) {
			uint64_t x = a[j] ^ b[j];

			d->words[n] = x;
			bits |= (uint64_t)(x != 0) << j;
			n += x != 0;
		}
		d->map[i] = bits;
	}
	d->count = n;
}

void block_delta_mask(const uint8_t *map, const uint8_t *words, uint8_t *ret_mask)
{
	memset(ret_mask, 0, PACK_BLOCK);
	for (size_t i = 0; i < PACK_BLOCK_MAP / 8; i++) {
		uint64_t bits;

		memcpy(&bits, map + i * 8, 8);
		for (; bits != 0; bits &= bits - 1) {
			size_t word = i * 64 + (size_t)__builtin_ctzll(bits);

			memcpy(ret_mask + word * 8, words, 8);
			words += 8;
		}
	}
}

/* ---- the body of a mixed frame ---- */

static size_t count_words(const uint8_t *maps, size_t size)
{
	size_t n = 0;

	for (size_t i = 0; i < size; i += 8) {
		uint64_t bits;

		memcpy(&bits, maps + i, 8);
		n += (size_t)__builtin_popcountll(bits);
	}
	return n;
}

int mixed_body_decode(const uint8_t *body, size_t size, uint32_t blocks, uint32_t base_count,
		      uint8_t *ret_blocks, struct pack_base *ret_bases)
{
	const uint8_t *refs = body + MIXED_HEADER, *maps, *full, *words;
	size_t deltas, heads;
	uint64_t which;

	if (size < MIXED_HEADER || blocks < 1 || blocks > PACK_FRAME_BLOCKS)
		return -EBADMSG;
	memcpy(&which, body, sizeof(which));
	deltas = (size_t)__builtin_popcountll(which);
	if (deltas < 1 || (blocks < 64 && which >> blocks != 0))
		return -EBADMSG;
	heads = MIXED_HEADER + deltas * (MIXED_REF + PACK_BLOCK_MAP);
	if (size < heads + (blocks - deltas) * PACK_BLOCK)
		return -EBADMSG;
	maps = refs + deltas * MIXED_REF;
	full = body + heads;
	words = full + (blocks - deltas) * PACK_BLOCK;
	if (count_words(maps, deltas * PACK_BLOCK_MAP) * 8 != (size_t)(body + size - words))
		return -EBADMSG;
	for (uint32_t i = 0; i < blocks; i++) {
		struct pack_base *base = &ret_bases[i];

		*base = (struct pack_base){ PACK_BASE_NONE, 0 };
		if (!(which >> i & 1)) {
			memcpy(ret_blocks + (size_t)i * PACK_BLOCK, full, PACK_BLOCK);
			full += PACK_BLOCK;
			continue;
		}
		memcpy(&base->pack, refs, 2);
		memcpy(&base->slot, refs + 2, 2);
		if (base->pack >= base_count || base->slot >= PACK_BLOCKS_MAX)
			return -EBADMSG;
		block_delta_mask(maps, words, ret_blocks + (size_t)i * PACK_BLOCK);
		words += count_words(maps, PACK_BLOCK_MAP) * 8;
		refs += MIXED_REF;
		maps += PACK_BLOCK_MAP;
	}
	return 0;
}
