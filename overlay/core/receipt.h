/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What one host says that another has stored and served for it, and the book of all that was
 * said of this host. See docs/credit.md.
 *
 *   receipt = version:u32 zero:u32 submitter holder epoch byte_hours restored_bytes restores
 *             from_wall_ms until_wall_ms signature          little-endian, CORE_RECEIPT_BYTES
 *   book    = magic:u32 count:u32 owner, count receipts by submitter, fnv64:u64
 *
 * Counters are cumulative since the pair first met, so of two receipts of a pair the newer one,
 * by its epoch, says all that the older said. No receipt takes anything back. The signature is
 * the submitter's over what stands before it; who calls has checked it. The times are for people:
 * nothing here depends on a clock.
 *
 * Threading: pure functions on one struct.
 */
#pragma once

#include <stddef.h>

#include "overlay/types.h"

enum {
	CORE_RECEIPT_SIGNED = 88, /* bytes before the signature */
	CORE_RECEIPT_BYTES = CORE_RECEIPT_SIGNED + 64,
	CORE_BOOK_MAX = OV_MEMBERS_MAX, /* submitters: one row of each */
	CORE_BOOK_BYTES_MAX = 24 + CORE_BOOK_MAX * CORE_RECEIPT_BYTES + 8,
};

/* Beyond this a counter is refused, so that the sum of a pair never overflows. */
#define CORE_CREDIT_MAX (UINT64_C(1) << 62)

struct core_receipt {
	struct node_id submitter, holder;
	uint64_t epoch; /* from 1 on */
	uint64_t byte_hours, restored_bytes, restores;
	uint64_t from_wall_ms, until_wall_ms;
	uint8_t signature[64];
};
_Static_assert(sizeof(struct core_receipt) == 32 + 48 + 64, "no padding");

void core_receipt_encode(const struct core_receipt *receipt, uint8_t bytes[CORE_RECEIPT_BYTES]);
/* -EBADMSG for another size or version, a counter beyond its bound, or a pair that is none. */
int core_receipt_decode(const void *bytes, size_t size, struct core_receipt *ret_receipt)
	__attribute__((warn_unused_result));

struct core_book {
	uint32_t count;
	struct core_receipt rows[CORE_BOOK_MAX]; /* by submitter, ascending */
};

/* NULL if there is none. Valid until the book is changed. */
const struct core_receipt *core_book_find(const struct core_book *book,
					  const struct node_id *submitter);
/*
 * -EALREADY the very same is here; -ESTALE one that is at least as new is here, or this one
 * takes something back; -ENOSPC too many submitters.
 */
int core_book_add(struct core_book *book, const struct core_receipt *receipt)
	__attribute__((warn_unused_result));
void core_book_drop(struct core_book *book, uint32_t index);

size_t core_book_encode(const struct core_book *book, const struct node_id *owner,
			uint8_t bytes[CORE_BOOK_BYTES_MAX]);
/* -EBADMSG for what is not whole; -ESTALE if it is another owner's. The output is empty then. */
int core_book_decode(const void *bytes, size_t size, const struct node_id *owner,
		     struct core_book *ret_book) __attribute__((warn_unused_result));
