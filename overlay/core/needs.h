/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a job asks of a host, as a small program that travels in the job's register. It is made from
 * an expression (agent/job/needs.h has the grammar) and run against what a host says of itself.
 *
 *   program = item...        in postfix order, at most OV_NEEDS_MAX bytes
 *   item    = TAG length:u8 bytes...
 *           | COMPARE key:u8 relation:u8 value:u64    little-endian
 *           | NOT | AND | OR
 *
 * Tags and comparisons are the program's leaves, counted from 0 in their order. A run takes a step
 * per item, with a stack of NEEDS_DEPTH_MAX; there are no jumps. If the answer is no, the run also
 * tells whose fault it is: of AND the first side that is false, of OR both.
 *
 * A host's tags are one text, words with one blank between them. Threading: pure functions.
 */
#pragma once

#include <stddef.h>

#include "overlay/types.h"

enum {
	NEEDS_LEAVES_MAX = 32, /* a bit each in a run's blame */
	NEEDS_DEPTH_MAX = 16,
};

enum needs_op { NEEDS_TAG = 1, NEEDS_COMPARE, NEEDS_NOT, NEEDS_AND, NEEDS_OR };

enum needs_key {
	NEEDS_MEM = 1, /* bytes that are free now */
	NEEDS_CORES,
	NEEDS_ARCH,   /* enum cpu_arch; EQ and NE only */
	NEEDS_KERNEL, /* OV_KERNEL_VERSION() */
};

enum needs_relation { NEEDS_EQ = 1, NEEDS_NE, NEEDS_LT, NEEDS_LE, NEEDS_GT, NEEDS_GE };

struct needs_item {
	uint8_t op, key, relation, tag_size;
	uint64_t value;
	const uint8_t *tag; /* in the program, no NUL */
};

/* The item at *at, which is moved past it; false at the end or if there is no whole item. */
bool core_needs_next(const uint8_t *program, size_t size, size_t *at, struct needs_item *ret_item);

/* Whole items with known words, a stack that neither runs over nor under and ends with one truth. */
bool core_needs_valid(const uint8_t *program, size_t size);

/*
 * Does the host have it? mem_free_bytes stands for the report's. A program that is not valid is
 * never met; an empty one always. ret_blame: a bit per leaf at fault; 0 if met.
 */
bool core_needs_met(const uint8_t *program, size_t size, const struct member_state_report *report,
		    uint64_t mem_free_bytes, uint32_t *ret_blame);

/* The words of an expression that are no tags; 0 if it is another. */
uint8_t core_needs_key(const char *word, size_t length);
const char *core_needs_key_name(uint8_t key);

/* Of the text, at most OV_TAGS_MAX. */
size_t core_tags_length(const char tags[OV_TAGS_MAX]);
/* Letters, digits, '.', '_' and '-', beginning with a letter or digit; shorter than OV_TAG_MAX. */
bool core_tag_valid(const char *tag, size_t length);
bool core_tags_valid(const char *tags, size_t length);
bool core_tags_have(const char tags[OV_TAGS_MAX], const void *tag, size_t length);
