// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/core/receipt.h"

#include <errno.h>
#include <string.h>

#include "overlay/core/codec.h"

enum { VERSION = 1, MAGIC = 0x314b4243 /* "CBK1" */, HEAD_BYTES = 24 };

static uint8_t *put(uint8_t *at, uint64_t value, uint32_t size)
{
	for (uint32_t i = 0; i < size; i++)
		*at++ = (uint8_t)(value >> 8 * i);
	return at;
}

static uint64_t take(const uint8_t **at, uint32_t size)
{
	uint64_t value = 0;

	for (uint32_t i = 0; i < size; i++)
		value |= (uint64_t) * (*at)++ << 8 * i;
	return value;
}

static uint8_t *put_bytes(uint8_t *at, const void *bytes, size_t size)
{
	memcpy(at, bytes, size);
	return at + size;
}

static void take_bytes(const uint8_t **at, void *to, size_t size)
{
	memcpy(to, *at, size);
	*at += size;
}

void core_receipt_encode(const struct core_receipt *receipt, uint8_t bytes[CORE_RECEIPT_BYTES])
{
	uint8_t *at = put(bytes, VERSION, 8);

	at = put_bytes(at, &receipt->submitter, sizeof(receipt->submitter));
	at = put_bytes(at, &receipt->holder, sizeof(receipt->holder));
	at = put(at, receipt->epoch, 8);
	at = put(at, receipt->byte_hours, 8);
	at = put(at, receipt->restored_bytes, 8);
	at = put(at, receipt->restores, 8);
	at = put(at, receipt->from_wall_ms, 8);
	at = put(at, receipt->until_wall_ms, 8);
	put_bytes(at, receipt->signature, sizeof(receipt->signature));
}

static bool is_sane(const struct core_receipt *receipt)
{
	return receipt->epoch > 0 && receipt->epoch <= CORE_CREDIT_MAX &&
	       receipt->byte_hours <= CORE_CREDIT_MAX &&
	       receipt->restored_bytes <= CORE_CREDIT_MAX && receipt->restores <= CORE_CREDIT_MAX &&
	       memcmp(&receipt->submitter, &receipt->holder, sizeof(receipt->holder)) != 0;
}

int core_receipt_decode(const void *bytes, size_t size, struct core_receipt *ret_receipt)
{
	struct core_receipt receipt;
	const uint8_t *at = bytes;

	if (size != CORE_RECEIPT_BYTES || take(&at, 8) != VERSION)
		return -EBADMSG;
	take_bytes(&at, &receipt.submitter, sizeof(receipt.submitter));
	take_bytes(&at, &receipt.holder, sizeof(receipt.holder));
	receipt.epoch = take(&at, 8);
	receipt.byte_hours = take(&at, 8);
	receipt.restored_bytes = take(&at, 8);
	receipt.restores = take(&at, 8);
	receipt.from_wall_ms = take(&at, 8);
	receipt.until_wall_ms = take(&at, 8);
	take_bytes(&at, receipt.signature, sizeof(receipt.signature));
	if (!is_sane(&receipt))
		return -EBADMSG;
	*ret_receipt = receipt;
	return 0;
}

/* Where it is, or where it would go. */
static uint32_t place_of(const struct core_book *book, const struct node_id *submitter)
{
	uint32_t low = 0, high = book->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (memcmp(&book->rows[middle].submitter, submitter, sizeof(*submitter)) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

const struct core_receipt *core_book_find(const struct core_book *book,
					  const struct node_id *submitter)
{
	const struct core_receipt *row = &book->rows[place_of(book, submitter)];

	if (row == book->rows + book->count ||
	    memcmp(&row->submitter, submitter, sizeof(*submitter)) != 0)
		return NULL;
	return row;
}

int core_book_add(struct core_book *book, const struct core_receipt *receipt)
{
	uint32_t at = place_of(book, &receipt->submitter);
	struct core_receipt *row = &book->rows[at];

	if (!core_book_find(book, &receipt->submitter)) {
		if (book->count == CORE_BOOK_MAX)
			return -ENOSPC;
		memmove(row + 1, row, (book->count - at) * sizeof(*row));
		book->count++;
		*row = *receipt;
		return 0;
	}
	if (memcmp(row, receipt, sizeof(*row)) == 0)
		return -EALREADY;
	if (receipt->epoch <= row->epoch || receipt->byte_hours < row->byte_hours ||
	    receipt->restored_bytes < row->restored_bytes || receipt->restores < row->restores)
		return -ESTALE;
	*row = *receipt;
	return 0;
}

void core_book_drop(struct core_book *book, uint32_t index)
{
	struct core_receipt *row = &book->rows[index];

	book->count--;
	memmove(row, row + 1, (book->count - index) * sizeof(*row));
}

size_t core_book_encode(const struct core_book *book, const struct node_id *owner,
			uint8_t bytes[CORE_BOOK_BYTES_MAX])
{
	uint8_t *at = put(bytes, MAGIC, 4);

	at = put(at, book->count, 4);
	at = put_bytes(at, owner, sizeof(*owner));
	for (uint32_t i = 0; i < book->count; i++, at += CORE_RECEIPT_BYTES)
		core_receipt_encode(&book->rows[i], at);
	at = put(at, core_checksum(bytes, (size_t)(at - bytes)), 8);
	return (size_t)(at - bytes);
}

static int decode_rows(const uint8_t *at, uint32_t count, const struct node_id *owner,
		       struct core_book *book)
{
	for (uint32_t i = 0; i < count; i++, at += CORE_RECEIPT_BYTES) {
		struct core_receipt *row = &book->rows[i];

		if (core_receipt_decode(at, CORE_RECEIPT_BYTES, row) < 0 ||
		    memcmp(&row->holder, owner, sizeof(*owner)) != 0)
			return -EBADMSG;
		if (i > 0 && memcmp(&row[-1].submitter, &row->submitter, sizeof(*owner)) >= 0)
			return -EBADMSG;
	}
	book->count = count;
	return 0;
}

int core_book_decode(const void *bytes, size_t size, const struct node_id *owner,
		     struct core_book *ret_book)
{
	const uint8_t *at = bytes, *sum;
	uint64_t count;

	ret_book->count = 0;
	if (size < HEAD_BYTES + 8 || take(&at, 4) != MAGIC)
		return -EBADMSG;
	count = take(&at, 4);
	if (count > CORE_BOOK_MAX || size != HEAD_BYTES + count * CORE_RECEIPT_BYTES + 8)
		return -EBADMSG;
	sum = (const uint8_t *)bytes + size - 8;
	if (take(&sum, 8) != core_checksum(bytes, size - 8))
		return -EBADMSG;
	if (memcmp(at, owner, sizeof(*owner)) != 0)
		return -ESTALE;
	return decode_rows(at + sizeof(*owner), (uint32_t)count, owner, ret_book);
}
