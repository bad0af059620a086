// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What this host did for others, by their receipts; and what all members have to show. Who asks
 * checks every signature himself: a host that keeps a book can leave out, but not add.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/half.h"
#include "overlay/net/internal.h"

/* --- receipts that come ---------------------------------------------------------------- */

/* Rows of submitters that no member table knows: nobody could check them any more. */
static void make_room(struct overlay *overlay)
{
	struct core_book *book = overlay->credit.book;

	for (uint32_t i = book->count; i-- > 0;)
		if (!core_card(overlay->core, &book->rows[i].submitter))
			core_book_drop(book, i);
}

static int take_receipt(struct overlay *overlay, const struct node_id *from, const uint8_t *bytes)
{
	struct credit *c = &overlay->credit;
	const struct node_card *card = core_card(overlay->core, from);
	struct core_receipt receipt;
	int r;

	if (core_receipt_decode(bytes, CORE_RECEIPT_BYTES, &receipt) < 0) {
		c->forged++;
		return -EBADMSG;
	}
	if (!node_id_equal(&receipt.submitter, from) ||
	    !node_id_equal(&receipt.holder, &overlay->self)) {
		c->foreign++;
		return -EPERM;
	}
	if (!card)
		return -EAGAIN; /* its row has not come yet */
	if (!credit_signed_by(overlay, &receipt, card->tls_public)) {
		c->forged++;
		return -EBADMSG;
	}
	r = core_book_add(c->book, &receipt);
	if (r == -ENOSPC) {
		make_room(overlay);
		r = core_book_add(c->book, &receipt);
	}
	c->book_changed |= r == 0;
	c->older += r == -ESTALE;
	return r == -ESTALE || r == -EALREADY ? 0 : r;
}

/* Answered with what is kept, once that is on the disk: who knows it sends it no more. */
int serve_receipt(struct overlay *overlay, uint64_t served, const struct node_id *from,
		  const struct net_call *call)
{
	struct credit *c = &overlay->credit;
	struct owed_reply *owed = &c->owed[c->owed_count];
	int r;

	if (!c->credit || c->owed_count == OVERLAY_RECEIPTS_MAX)
		return -EAGAIN;
	r = take_receipt(overlay, from, call->receipt);
	if (r < 0)
		return r;
	owed->served = served;
	core_receipt_encode(core_book_find(c->book, from), owed->kept);
	c->owed_count++;
	if (!c->book_changed && !c->book_saving) {
		c->owed_saving = c->owed_count;
		book_saved(overlay, 0);
	} else {
		credit_save(overlay);
	}
	return 0;
}

void book_saved(struct overlay *overlay, int status)
{
	struct credit *c = &overlay->credit;

	for (uint32_t i = 0; i < c->owed_saving; i++)
		net_reply(overlay->net, c->owed[i].served, status, c->owed[i].kept,
			  status < 0 ? 0 : CORE_RECEIPT_BYTES, -1, 0);
	c->owed_count -= c->owed_saving;
	memmove(c->owed, c->owed + c->owed_saving, c->owed_count * sizeof(c->owed[0]));
	c->owed_saving = 0;
}

int serve_credit(struct overlay *overlay, uint64_t served)
{
	const struct core_book *book = overlay->credit.book;
	_cleanup_close_ int fd = memfd_new("receipts");
	uint8_t bytes[CORE_RECEIPT_BYTES];
	int r = fd < 0 ? fd : 0;

	if (!book)
		return -EAGAIN;
	for (uint32_t i = 0; i < book->count && r == 0; i++) {
		core_receipt_encode(&book->rows[i], bytes);
		r = write_full(fd, bytes, sizeof(bytes));
	}
	if (r == 0)
		r = memfd_seal(fd);
	if (r < 0)
		return r;
	net_reply(overlay->net, served, 0, NULL, 0, fd, book->count * CORE_RECEIPT_BYTES);
	return 0;
}

/* --- what all have to show ------------------------------------------------------------- */

struct shown {
	uint32_t row; /* of the submitter */
	struct ov_credit_sum sum;
};

/* One member's receipts, until all of them have come. */
struct find_leg {
	uint8_t part[CORE_RECEIPT_BYTES];
	uint32_t part_size, count, forged, unverified_count;
	struct node_id last;
	struct ov_credit_sum unverified;
	struct shown *shown;
	uint32_t shown_count;
};

struct find_op {
	struct request *request;
	struct fan fan;
	struct find_leg legs[OVERLAY_FAN_WIDTH];
	uint32_t verified, row_count;
	struct ov_credit rows[OV_MEMBERS_MAX]; /* by id, ascending */
};

static void find_cancel(struct request *request)
{
	struct find_op *op = request->state;

	fan_free(&op->fan);
	for (uint32_t i = 0; i < OVERLAY_FAN_WIDTH; i++)
		free(op->legs[i].shown);
	request->overlay->credit.asking = false;
	free(op);
}

static int compare_rows(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct node_id));
}

static struct ov_credit *row_of(struct find_op *op, const struct node_id *id)
{
	return bsearch(id, op->rows, op->row_count, sizeof(op->rows[0]), compare_rows);
}

static uint64_t sum_of(uint64_t a, uint64_t b)
{
	return b > UINT64_MAX - a ? UINT64_MAX : a + b;
}

static void add_sum(struct ov_credit_sum *sum, const struct ov_credit_sum *more)
{
	sum->byte_hours = sum_of(sum->byte_hours, more->byte_hours);
	sum->restored_bytes = sum_of(sum->restored_bytes, more->restored_bytes);
	sum->restores = sum_of(sum->restores, more->restores);
}

static struct find_leg *leg_of(struct fan_leg *leg)
{
	struct find_op *op = leg->fan->owner;

	return &op->legs[leg - leg->fan->legs];
}

static void find_begin(struct fan_leg *leg)
{
	struct find_leg *part = leg_of(leg);

	free(part->shown);
	*part = (struct find_leg){ 0 };
}

/* Of a host that is a member, and true? */
static void judge(struct find_op *op, struct find_leg *leg, const struct core_receipt *receipt)
{
	struct overlay *overlay = op->request->overlay;
	const struct node_card *card = core_card(overlay->core, &receipt->submitter);
	const struct ov_credit *row = row_of(op, &receipt->submitter);
	struct ov_credit_sum sum = { receipt->byte_hours, receipt->restored_bytes,
				     receipt->restores };

	if (!card || !row || op->verified >= OVERLAY_CREDIT_VERIFY_MAX) {
		add_sum(&leg->unverified, &sum);
		leg->unverified_count++;
		return;
	}
	op->verified++;
	if (!credit_signed_by(overlay, receipt, card->tls_public)) {
		leg->forged++;
		return;
	}
	leg->shown[leg->shown_count++] =
		(struct shown){ .row = (uint32_t)(row - op->rows), .sum = sum };
}

static int find_receipt(struct fan_leg *leg, struct find_leg *part)
{
	struct core_receipt receipt;
	int r = core_receipt_decode(part->part, sizeof(part->part), &receipt);

	/* In order, so that none is shown twice. */
	if (r < 0 || !node_id_equal(&receipt.holder, &leg->node) ||
	    (part->count > 0 && memcmp(&part->last, &receipt.submitter, sizeof(part->last)) >= 0))
		return -EBADMSG;
	part->last = receipt.submitter;
	part->count++;
	judge(leg->fan->owner, part, &receipt);
	return 0;
}

static int find_data(struct fan_leg *leg, uint32_t total, const uint8_t *bytes, size_t size)
{
	struct find_leg *part = leg_of(leg);

	if (total % CORE_RECEIPT_BYTES != 0 || total / CORE_RECEIPT_BYTES > CORE_BOOK_MAX)
		return -EBADMSG;
	if (!part->shown)
		part->shown = calloc(total / CORE_RECEIPT_BYTES, sizeof(*part->shown));
	if (!part->shown)
		return -ENOMEM;
	while (size > 0) {
		size_t room = sizeof(part->part) - part->part_size;
		size_t take = size < room ? size : room;
		int r = 0;

		memcpy(part->part + part->part_size, bytes, take);
		part->part_size += (uint32_t)take;
		bytes += take;
		size -= take;
		if (part->part_size == sizeof(part->part)) {
			part->part_size = 0;
			r = find_receipt(leg, part);
		}
		if (r < 0)
			return r;
	}
	return 0;
}

static void merge(struct find_op *op, const struct find_leg *leg, const struct node_id *holder)
{
	struct ov_credit *row = row_of(op, holder);

	if (!row)
		return; /* it became a member meanwhile */
	row->answered = 1;
	row->forged = leg->forged;
	row->receipts = leg->shown_count;
	row->unverified_count = leg->unverified_count;
	row->unverified = leg->unverified;
	for (uint32_t i = 0; i < leg->shown_count; i++) {
		add_sum(&row->given, &leg->shown[i].sum);
		add_sum(&op->rows[leg->shown[i].row].taken, &leg->shown[i].sum);
	}
}

static bool find_result(struct fan_leg *leg, int status)
{
	if (status == 0)
		merge(leg->fan->owner, leg_of(leg), &leg->node);
	return status == 0;
}

static void find_finished(struct fan *fan)
{
	struct find_op *op = fan->owner;
	struct request *request = op->request;
	const struct credit *c = &request->overlay->credit;
	_cleanup_close_ int fd = memfd_new("credit");
	int r = fd < 0 ? fd : write_full(fd, op->rows, op->row_count * sizeof(op->rows[0]));

	if (r == 0)
		r = memfd_seal(fd);
	memset(&request->msg.u, 0, sizeof(request->msg.u));
	request->msg.u.credits = (struct ov_credits){ .count = op->row_count,
						      .forged = c->forged,
						      .foreign = c->foreign,
						      .older = c->older };
	request_finish(request, r, r < 0 ? -1 : take_fd(fd));
}

static const struct fan_ops find_ops = { .data = find_data,
					 .begin = find_begin,
					 .result = find_result,
					 .finished = find_finished };

/* This host's own; it was long on a disk. */
static int find_own(struct find_op *op)
{
	struct overlay *overlay = op->request->overlay;
	const struct core_book *book = overlay->credit.book;
	struct find_leg leg = { .shown = calloc(book->count + 1, sizeof(*leg.shown)) };

	if (!leg.shown)
		return -ENOMEM;
	for (uint32_t i = 0; i < book->count; i++)
		judge(op, &leg, &book->rows[i]);
	merge(op, &leg, &overlay->self);
	free(leg.shown);
	return 0;
}

static int find_start(struct find_op *op)
{
	struct overlay *overlay = op->request->overlay;
	const struct member_info *row;
	int r;

	while (op->row_count < OV_MEMBERS_MAX &&
	       (row = core_member(overlay->core, op->row_count, net_now_ms())))
		op->rows[op->row_count++].id = row->id;
	qsort(op->rows, op->row_count, sizeof(op->rows[0]), compare_rows);
	r = find_own(op);
	if (r < 0)
		return r;
	op->fan.target_count = driver_live_peers(overlay, &op->fan.targets);
	return fan_start(&op->fan);
}

void credit_find(struct request *request)
{
	struct overlay *overlay = request->overlay;
	struct find_op *op = NULL;
	int r = overlay->credit.asking ? -EBUSY : 0;

	if (r == 0)
		r = overlay->credit.credit && (op = calloc(1, sizeof(*op))) ? 0 : -ENOMEM;
	if (r == 0) {
		op->request = request;
		op->fan = (struct fan){ .overlay = overlay,
					.ops = &find_ops,
					.owner = op,
					.call = { .op = NET_OP_CREDIT },
					.stream_fd = -1,
					.stall_ms = OVERLAY_LIST_STALL_MS,
					.wanted = UINT32_MAX };
		overlay->credit.asking = true;
		request->state = op;
		request->cancel = find_cancel;
		r = find_start(op);
	}
	if (r < 0)
		request_finish(request, r, -1);
}
