/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Arithmetic on the ring of 2^128 positions: a node's position is its id, read big-endian.
 *
 * All of it is modulo 2^128 and total: any two positions have a clockwise distance. An interval
 * whose ends are the same is the whole ring without (or, half-open, with) that point.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "overlay/types.h"

struct ring_key {
	uint64_t high, low;
};

static inline uint64_t ring_word(const uint8_t *bytes)
{
	uint64_t word;

	__builtin_memcpy(&word, bytes, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	word = __builtin_bswap64(word);
#endif
	return word;
}

static inline struct ring_key ring_of(const struct node_id *id)
{
	return (struct ring_key){ ring_word(id->b), ring_word(id->b + 8) };
}

/* Clockwise, from a to b. */
static inline struct ring_key ring_distance(struct ring_key a, struct ring_key b)
{
	return (struct ring_key){ b.high - a.high - (b.low < a.low), b.low - a.low };
}

static inline bool ring_less(struct ring_key a, struct ring_key b)
{
	return a.high != b.high ? a.high < b.high : a.low < b.low;
}

static inline bool ring_equal(struct ring_key a, struct ring_key b)
{
	return a.high == b.high && a.low == b.low;
}

/* x in (a, b) */
static inline bool ring_between(struct ring_key a, struct ring_key x, struct ring_key b)
{
	if (ring_equal(x, a) || ring_equal(x, b))
		return false;
	return ring_equal(a, b) || ring_less(ring_distance(a, x), ring_distance(a, b));
}

/* x in (a, b] */
static inline bool ring_within(struct ring_key a, struct ring_key x, struct ring_key b)
{
	return ring_equal(x, b) || ring_between(a, x, b);
}

/* a + 2^(127 - index) */
static inline struct ring_key ring_finger(struct ring_key a, uint32_t index)
{
	uint64_t high = index < 64 ? UINT64_C(1) << (63 - index) : 0;
	uint64_t low = index < 64 ? 0 : UINT64_C(1) << (127 - index);
	struct ring_key sum = { a.high + high, a.low + low };

	sum.high += sum.low < a.low;
	return sum;
}
