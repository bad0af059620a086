// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What others did for this host: noted where it is seen, kept on the disk, and now and then said to
 * them in receipts under this host's own key. See docs/credit.md.
 *
 *   a round: who is owed one, and is there? -> made, signed -> saved -> sent one by one
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/half.h"
#include "overlay/net/internal.h"
#include "overlay/shard.h"

enum { ROUND_MS = 600 * 1000, BOOK_SAVE_MS = 500, STALL_MS = 15 * 1000 };

static const char ledger_name[] = "credit", book_name[] = "receipts";

/* Signed together: what this is, in which cluster, and the words. The use comes first, see tls.h. */
#define USE "decamp credit receipt"

struct words {
	char use[32];
	uint8_t cluster_public[32];
	uint8_t receipt[CORE_RECEIPT_BYTES]; /* only CORE_RECEIPT_SIGNED of it */
};

enum { WORDS_BYTES = 64 + CORE_RECEIPT_SIGNED };
_Static_assert(offsetof(struct words, receipt) == 64, "no padding");

static void words_of(const struct overlay *overlay, const struct core_receipt *receipt,
		     struct words *ret_words)
{
	*ret_words = (struct words){ .use = USE };
	memcpy(ret_words->cluster_public, overlay->credit.cluster_public,
	       sizeof(ret_words->cluster_public));
	core_receipt_encode(receipt, ret_words->receipt);
}

bool credit_signed_by(const struct overlay *overlay, const struct core_receipt *receipt,
		      const uint8_t key[static 32])
{
	struct words words;

	words_of(overlay, receipt, &words);
	return net_tls_verify(key, &words, WORDS_BYTES, receipt->signature);
}

static int sign(const struct overlay *overlay, struct core_receipt *receipt)
{
	struct words words;

	words_of(overlay, receipt, &words);
	return net_tls_sign(overlay->credit.secret, &words, WORDS_BYTES, receipt->signature);
}

/* It stands still in no suspend and jumps with no wall clock. */
static uint64_t boot_ms(void)
{
	return now_boot_ns() / 1000000;
}

/* --- what is seen ---------------------------------------------------------------------- */

static bool seen_of(const struct overlay *overlay, const struct ov_object *object,
		    struct node_id others[static OV_HOLDERS_MAX], struct credit_seen *ret_seen)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < object->holder_count && i < OV_HOLDERS_MAX; i++)
		if (!node_id_equal(&object->holders[i], &overlay->self))
			others[count++] = object->holders[i];
	*ret_seen = (struct credit_seen){ .job = object->job,
					  .token = object->token,
					  .hash = object->hash,
					  .seq = object->seq,
					  .size = object->size,
					  .holder_count = count,
					  .holders = others };
	return overlay->credit.credit && count > 0;
}

void credit_put(struct overlay *overlay, const struct ov_object *object)
{
	struct node_id others[OV_HOLDERS_MAX];
	struct credit_seen seen;

	if (!seen_of(overlay, object, others, &seen))
		return;
	core_credit_put(overlay->credit.credit, &seen, boot_ms());
	overlay->credit.changed = true;
}

void credit_got(struct overlay *overlay, const struct ov_object *object)
{
	static const struct fence_token none;
	struct node_id others[OV_HOLDERS_MAX];
	struct credit_seen seen;

	if (fence_token_compare(&object->token, &none) == 0 ||
	    !seen_of(overlay, object, others, &seen))
		return;
	core_credit_got(overlay->credit.credit, &seen, boot_ms());
	overlay->credit.changed = true;
}

void credit_coded(struct overlay *overlay, const struct ov_group *group)
{
	struct ov_object shard = { .job = group->job,
				   .token = group->token,
				   .seq = group->seq,
				   .size = shard_bytes(group->size, group->k) };
	uint32_t count = group->k + group->m;

	shard_group_name(&group->hash, &shard.hash);
	for (uint32_t i = 0; i < count; i += shard.holder_count) {
		uint32_t left = count - i;

		shard.holder_count = left < OV_HOLDERS_MAX ? left : OV_HOLDERS_MAX;
		memcpy(shard.holders, &group->holders[i],
		       shard.holder_count * sizeof(shard.holders[0]));
		credit_put(overlay, &shard);
	}
}

void credit_gathered(struct overlay *overlay, const struct ov_object *object,
		     const struct ov_group *group, const struct node_id *served)
{
	static const struct node_id none;
	struct ov_object shard = { .job = object->job,
				   .token = object->token,
				   .seq = object->seq,
				   .size = shard_bytes(group->size, group->k),
				   .holder_count = 1 };

	shard_group_name(&group->hash, &shard.hash);
	for (uint32_t i = 0; i < group->k + group->m; i++) {
		if (node_id_equal(&served[i], &none))
			continue;
		shard.holders[0] = served[i];
		credit_got(overlay, &shard);
	}
}

static int compare_hashes(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct object_hash));
}

void credit_retained(struct overlay *overlay, const struct ov_retain *retain, int hashes_fd,
		     const struct node_id *answered, uint32_t answered_count, bool lost)
{
	struct credit *c = &overlay->credit;
	_cleanup_free_ struct object_hash *hashes = NULL;
	struct credit_retain words = { .job = retain->job,
				       .token = retain->token,
				       .upto_seq = retain->upto_seq,
				       .hash_count = 2 * retain->count,
				       .answered = answered,
				       .answered_count = answered_count };
	size_t size = retain->count * sizeof(*hashes);

	if (!c->credit)
		return;
	c->changed = true;
	if (lost) {
		core_credit_forget(c->credit, &retain->job);
		return;
	}
	hashes = malloc(2 * size + 1);
	if (!hashes || (size > 0 && pread_full(hashes_fd, hashes, size, 0) < 0))
		return; /* paid by the next one, which bridges the time */
	/* Who names an object keeps its shards, too. */
	for (uint32_t i = 0; i < retain->count; i++)
		shard_group_name(&hashes[i], &hashes[retain->count + i]);
	qsort(hashes, words.hash_count, sizeof(*hashes), compare_hashes);
	words.hashes = hashes;
	core_credit_retained(c->credit, &words, boot_ms());
}

/* --- to the disk ----------------------------------------------------------------------- */

struct save {
	struct store_task task;
	struct overlay *overlay;
	bool ledger, book, round; /* round: its receipts leave then */
	size_t ledger_size, book_size;
	int status;
	uint8_t ledger_bytes[CREDIT_BYTES_MAX];
	uint8_t book_bytes[CORE_BOOK_BYTES_MAX];
};

static void save_run(struct store_task *task)
{
	struct save *save = container_of(task, struct save, task);
	struct store *store = save->overlay->store;

	if (save->ledger)
		save->status =
			store_own_save(store, ledger_name, save->ledger_bytes, save->ledger_size);
	if (save->book && save->status == 0)
		save->status = store_own_save(store, book_name, save->book_bytes, save->book_size);
}

static void send_next(struct overlay *overlay);
static void drop_sends(struct overlay *overlay);

static void save_done(struct store_task *task)
{
	struct save *save = container_of(task, struct save, task);
	struct overlay *overlay = save->overlay;
	struct credit *c = &overlay->credit;
	bool failed = task->cancelled || save->status < 0;

	c->saving = c->book_saving = false;
	c->changed |= failed && save->ledger;
	c->book_changed |= failed && save->book;
	if (!task->cancelled) {
		if (failed)
			log_errno(save->status, "credit: save");
		/* Who came since then and brought nothing new is done, too. */
		if (save->book && !c->book_changed)
			c->owed_saving = c->owed_count;
		if (save->book)
			book_saved(overlay, save->status);
		if (save->round && failed)
			drop_sends(overlay);
		else if (save->round)
			send_next(overlay);
	}
	free(save);
}

static void fill(struct overlay *overlay, struct save *save)
{
	struct credit *c = &overlay->credit;

	save->ledger = c->changed;
	save->book = c->book_changed;
	if (save->ledger)
		save->ledger_size = core_credit_encode(c->credit, &overlay->self, boot_ms(),
						       save->ledger_bytes);
	if (save->book)
		save->book_size = core_book_encode(c->book, &overlay->self, save->book_bytes);
	c->changed = c->book_changed = false;
}

static int save_start(struct overlay *overlay, bool round)
{
	struct credit *c = &overlay->credit;
	struct save *save = calloc(1, sizeof(*save));
	int r;

	if (!save)
		return -ENOMEM;
	save->task.run = save_run;
	save->task.done = save_done;
	save->overlay = overlay;
	save->round = round;
	fill(overlay, save);
	r = store_worker_submit(overlay->worker, &save->task);
	if (r < 0) {
		c->changed |= save->ledger;
		c->book_changed |= save->book;
		free(save);
		return r;
	}
	if (save->book)
		c->owed_saving = c->owed_count;
	c->saving = true;
	c->book_saving = save->book;
	return 0;
}

/* --- receipts -------------------------------------------------------------------------- */

static void drop_sends(struct overlay *overlay)
{
	struct credit *c = &overlay->credit;

	for (; c->send_at < c->send_count; c->send_at++)
		core_credit_settled(c->credit, &c->sends[c->send_at], NULL);
	free(c->sends);
	c->sends = NULL;
	c->send_count = c->send_at = 0;
}

static int no_stream(void *ctx, uint32_t total, const uint8_t *bytes, size_t size)
{
	(void)ctx;
	(void)total;
	(void)bytes;
	(void)size;
	return -EBADMSG;
}

static void send_done(void *ctx, int status, const uint8_t *bytes, size_t size)
{
	struct overlay *overlay = ctx;
	struct credit *c = &overlay->credit;
	const struct core_receipt *sent = &c->sends[c->send_at];
	struct core_receipt kept;
	bool good = status == 0 && core_receipt_decode(bytes, size, &kept) == 0 &&
		    credit_signed_by(overlay, &kept, c->public);

	if (!good)
		log_debug("credit: peer=%02x%02x status=%d", sent->holder.b[0], sent->holder.b[1],
			  status);
	core_credit_settled(c->credit, sent, good ? &kept : NULL);
	c->changed = true;
	c->calling = false;
	c->send_at++;
	send_next(overlay);
}

static const struct net_caller send_caller = { .data = no_stream, .done = send_done };

static void send_next(struct overlay *overlay)
{
	struct credit *c = &overlay->credit;
	uint8_t bytes[CORE_RECEIPT_BYTES];
	struct net_call call = { .op = NET_OP_RECEIPT, .receipt = bytes };

	for (; c->send_at < c->send_count; c->send_at++) {
		const struct core_receipt *receipt = &c->sends[c->send_at];

		core_receipt_encode(receipt, bytes);
		if (net_call(overlay->net, &receipt->holder, &call, -1, STALL_MS, &send_caller,
			     overlay, &c->call_id) == 0) {
			c->calling = true;
			return;
		}
		core_credit_settled(c->credit, receipt, NULL);
	}
	drop_sends(overlay);
}

/* Those who are away are owed it on. */
static void make_receipt(struct overlay *overlay, const struct node_id *holder)
{
	struct credit *c = &overlay->credit;
	struct core_receipt *receipt = &c->sends[c->send_count];

	for (uint32_t i = 0; i < c->credit->holder_count; i++) {
		if (!core_credit_due(c->credit, i) ||
		    !node_id_equal(&c->credit->holders[i].id, holder))
			continue;
		core_credit_receipt(c->credit, i, &overlay->self, now_wall_ms(), receipt);
		if (sign(overlay, receipt) == 0)
			c->send_count++;
		else
			core_credit_settled(c->credit, receipt, NULL);
	}
}

static void start_round(struct overlay *overlay)
{
	struct credit *c = &overlay->credit;
	const struct member_info *row;

	core_credit_sweep(c->credit, boot_ms());
	c->sends = calloc(CREDIT_HOLDERS_MAX, sizeof(*c->sends));
	for (uint32_t i = 0; c->sends && c->send_count < CREDIT_HOLDERS_MAX &&
			     (row = core_member(overlay->core, i, net_now_ms()));
	     i++)
		if (row->state == MEMBER_ALIVE && !row->is_self)
			make_receipt(overlay, &row->id);
	c->changed |= c->send_count > 0;
	if (c->send_count == 0) {
		drop_sends(overlay);
		if (c->changed)
			(void)save_start(overlay, false);
	} else if (save_start(overlay, true) < 0) {
		drop_sends(overlay);
	}
}

void credit_save(struct overlay *overlay)
{
	struct credit *c = &overlay->credit;
	uint64_t now_ms = net_now_ms();

	if (c->saving || !c->book_changed || now_ms < c->book_next_ms)
		return;
	c->book_next_ms = now_ms + BOOK_SAVE_MS;
	if (save_start(overlay, false) < 0)
		log_debug("credit: no task");
}

void credit_tick(struct overlay *overlay, uint64_t now_ms)
{
	struct credit *c = &overlay->credit;

	if (!c->credit)
		return;
	credit_save(overlay);
	if (now_ms < c->next_ms || c->saving || c->sends)
		return;
	c->next_ms = now_ms + c->round_ms;
	start_round(overlay);
}

/* --- life ------------------------------------------------------------------------------ */

static int load(struct overlay *overlay, uint8_t *bytes)
{
	struct credit *c = &overlay->credit;
	size_t size = 0;
	int r = store_own_load(overlay->store, ledger_name, bytes, CREDIT_BYTES_MAX, &size), other;

	if (r == 0)
		r = core_credit_decode(bytes, size, &overlay->self, boot_ms(), c->credit);
	other = store_own_load(overlay->store, book_name, bytes, CREDIT_BYTES_MAX, &size);
	if (other == 0)
		other = core_book_decode(bytes, size, &overlay->self, c->book);
	if (r == 0 || r == -ENOENT)
		r = other;
	return r;
}

void credit_start(struct overlay *overlay, const struct ov_identity *identity,
		  const struct ov_start *start)
{
	struct credit *c = &overlay->credit;
	uint8_t *bytes = malloc(CREDIT_BYTES_MAX);
	int r;

	c->credit = calloc(1, sizeof(*c->credit));
	c->book = calloc(1, sizeof(*c->book));
	if (!bytes || !c->credit || !c->book) {
		log_errno(-ENOMEM, "credit");
		free(bytes);
		credit_stop(overlay);
		return;
	}
	memcpy(c->secret, identity->tls_secret, sizeof(c->secret));
	memcpy(c->public, identity->card.tls_public, sizeof(c->public));
	memcpy(c->cluster_public, identity->cluster_public, sizeof(c->cluster_public));
	c->round_ms = start->credit_round_ms ? start->credit_round_ms : ROUND_MS;
	c->next_ms = net_now_ms() + c->round_ms;
	r = load(overlay, bytes);
	/* Under a new id, or after rot: the receipts that others keep say what was. */
	if (r == -ESTALE)
		log_info("credit of an earlier id is dropped");
	else if (r < 0 && r != -ENOENT)
		log_errno(r, "credit: read; it begins anew");
	free(bytes);
}

/* The worker has ended: nothing older can be written over this. */
void credit_stop(struct overlay *overlay)
{
	struct credit *c = &overlay->credit;
	struct save *save =
		c->credit && (c->changed || c->book_changed) ? calloc(1, sizeof(*save)) : NULL;

	if (c->calling)
		net_call_cancel(overlay->net, c->call_id);
	if (save) {
		save->overlay = overlay;
		fill(overlay, save);
		save_run(&save->task);
		if (save->status < 0)
			log_errno(save->status, "credit: save");
		free(save);
	}
	free(c->sends);
	free(c->credit);
	free(c->book);
	OPENSSL_cleanse(c, sizeof(*c));
}
