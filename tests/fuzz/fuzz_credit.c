/* SPDX-License-Identifier: LGPL-2.1-or-later */
// sources: overlay/core/receipt.c overlay/core/credit.c overlay/core/credit_codec.c
/*
 * A receipt from a peer; the book and the ledger from a disk, as they are and behind a right
 * checksum. What decodes must encode to the same bytes, and bear use without leaving its bounds.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/core/codec.h"
#include "overlay/core/credit.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

enum { HEAD_BYTES = 16, INPUT_MAX = 1 << 16 };

static struct core_credit credit;
static struct core_book book;
static uint8_t
	again[CREDIT_BYTES_MAX > CORE_BOOK_BYTES_MAX ? CREDIT_BYTES_MAX : CORE_BOOK_BYTES_MAX];
static const struct node_id owner = { { 1 } };

static void must(bool good)
{
	if (!good)
		abort();
}

static void use_receipt(const uint8_t *bytes, size_t size)
{
	struct core_receipt receipt;

	if (core_receipt_decode(bytes, size, &receipt) < 0)
		return;
	core_receipt_encode(&receipt, again);
	must(memcmp(again, bytes, size) == 0);
	book.count = 0;
	must(core_book_add(&book, &receipt) == 0);
	receipt.epoch--;
	must(core_book_add(&book, &receipt) < 0);
	must(core_book_find(&book, &receipt.submitter)->epoch == receipt.epoch + 1);
}

static void use_book(const uint8_t *bytes, size_t size)
{
	struct core_receipt receipt;
	uint32_t count;

	if (core_book_decode(bytes, size, &owner, &book) < 0) {
		must(book.count == 0);
		return;
	}
	must(core_book_encode(&book, &owner, again) == size && memcmp(again, bytes, size) == 0);
	count = book.count;
	for (uint32_t i = 0; i < count; i++) {
		receipt = book.rows[i];
		must(core_book_find(&book, &receipt.submitter) == &book.rows[i]);
		must(core_book_add(&book, &receipt) < 0);
	}
	must(book.count == count);
}

static void use_ledger(const uint8_t *bytes, size_t size, uint64_t now_ms)
{
	struct credit_retain retain = { 0 };
	struct core_receipt receipt;
	struct node_id answered;

	if (core_credit_decode(bytes, size, &owner, now_ms, &credit) < 0) {
		must(credit.holder_count == 0 && credit.object_count == 0);
		return;
	}
	must(core_credit_encode(&credit, &owner, now_ms, again) == size);
	/* Ages grow to the bound with a clock near its beginning; all else is as it was. */
	if (now_ms >= CREDIT_INTERVAL_MAX_MS)
		must(memcmp(again, bytes, size) == 0);
	if (credit.holder_count == 0)
		return;
	answered = credit.holders[0].id;
	retain.answered = &answered;
	retain.answered_count = 1;
	retain.upto_seq = UINT64_MAX;
	for (uint32_t i = 0; i < 4 && credit.object_count; i++) {
		retain.job = credit.jobs[credit.objects[0].job].id;
		retain.token = credit.jobs[credit.objects[0].job].token;
		core_credit_retained(&credit, &retain, now_ms + 1000);
	}
	core_credit_sweep(&credit, UINT64_MAX);
	core_credit_receipt(&credit, 0, &owner, now_ms, &receipt);
	must(receipt.byte_hours <= CORE_CREDIT_MAX && !core_credit_due(&credit, 0));
	core_credit_settled(&credit, &receipt, NULL);
}

/* The first 8 bytes are the time; the rest is a record whose sum is made right. */
static void sealed(const uint8_t *bytes, size_t size)
{
	static uint8_t copy[INPUT_MAX];
	uint64_t now_ms, sum;

	if (size < HEAD_BYTES || size > sizeof(copy))
		return;
	memcpy(&now_ms, bytes, sizeof(now_ms));
	memcpy(copy, bytes + 8, size - 8);
	sum = core_checksum(copy, size - 16);
	memcpy(copy + size - 16, &sum, sizeof(sum));
	use_book(copy, size - 8);
	use_ledger(copy, size - 8, now_ms >> 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	use_receipt(bytes, size);
	use_book(bytes, size);
	use_ledger(bytes, size, UINT64_C(1) << 40);
	sealed(bytes, size);
	return 0;
}
