// SPDX-License-Identifier: LGPL-2.1-or-later
/* Difference of two blocks: which of their 512 words differ, and the exclusive or of those. */
#include <errno.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif
#include <string.h>

#include "agent/pack/internal.h"

enum { LINE_WORDS = 8, MAP_WORDS = 64 };

/* Most lines of a page that changed did not. */
void block_delta_plain(const uint8_t *now, const uint8_t *base, struct block_delta *ret_delta)
{
	struct block_delta *d = ret_delta;
	uint32_t n = 0;

	memset(d->map, 0, sizeof(d->map));
	for (size_t i = 0; i < PACK_BLOCK_WORDS; i += LINE_WORDS) {
		uint64_t x[LINE_WORDS], y[LINE_WORDS], seen = 0, bits = 0;

		memcpy(x, now + i * 8, sizeof(x));
		memcpy(y, base + i * 8, sizeof(y));
		for (size_t j = 0; j < LINE_WORDS; j++)
			seen |= x[j] ^= y[j];
		if (seen == 0)
			continue;
		/* Without a branch: which words differ cannot be foretold. */
		for (size_t j = 0; j < LINE_WORDS; j++) {
			d->words[n] = x[j];
			bits |= (uint64_t)(x[j] != 0) << j;
			n += x[j] != 0;
		}
		d->map[i / MAP_WORDS] |= bits << i % MAP_WORDS;
	}
	d->count = n;
}

#ifdef __x86_64__

/* A line at a time; less than half of the time where much differs. */
__attribute__((target("avx512f,popcnt"))) static void
block_delta_wide(const uint8_t *now, const uint8_t *base, struct block_delta *d)
{
	uint32_t n = 0;

	memset(d->map, 0, sizeof(d->map));
	for (size_t i = 0; i < PACK_BLOCK_WORDS; i += LINE_WORDS) {
		__m512i x = _mm512_xor_si512(_mm512_loadu_si512(now + i * 8),
					     _mm512_loadu_si512(base + i * 8));
		__mmask8 differ = _mm512_test_epi64_mask(x, x);

		/* n <= i: there is room for a line. */
		_mm512_storeu_si512(d->words + n, _mm512_maskz_compress_epi64(differ, x));
		d->map[i / MAP_WORDS] |= (uint64_t)differ << i % MAP_WORDS;
		n += (uint32_t)__builtin_popcount(differ);
	}
	d->count = n;
}

void block_delta(const uint8_t *now, const uint8_t *base, struct block_delta *ret_delta)
{
	if (__builtin_cpu_supports("avx512f"))
		block_delta_wide(now, base, ret_delta);
	else
		block_delta_plain(now, base, ret_delta);
}

#else

void block_delta(const uint8_t *now, const uint8_t *base, struct block_delta *ret_delta)
{
	block_delta_plain(now, base, ret_delta);
}

#endif

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
