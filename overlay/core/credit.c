// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/core/credit.h"

#include <errno.h>
#include <string.h>

#include "overlay/ipc.h"

#define NONE UINT16_MAX

_Static_assert(CREDIT_HOLDERS_MAX < NONE && CREDIT_JOBS_MAX < NONE, "indices fit");

static uint64_t add(uint64_t sum, uint64_t more)
{
	return more > CORE_CREDIT_MAX - sum ? CORE_CREDIT_MAX : sum + more;
}

static bool has_bit(const uint8_t *bits, uint32_t i)
{
	return bits[i / 8] >> i % 8 & 1;
}

static void set_bit(uint8_t *bits, uint32_t i)
{
	bits[i / 8] = (uint8_t)(bits[i / 8] | 1u << i % 8);
}

static bool counts_for(const struct credit_object *object, uint16_t holder)
{
	for (uint16_t i = 0; i < object->holder_count; i++)
		if (object->holders[i] == holder)
			return true;
	return false;
}

/* --- rows ------------------------------------------------------------------------------ */

static uint16_t find_holder(const struct core_credit *credit, const struct node_id *id)
{
	for (uint32_t i = 0; i < credit->holder_count; i++)
		if (node_id_equal(&credit->holders[i].id, id))
			return (uint16_t)i;
	return NONE;
}

/* One that knows all and keeps nothing: should it come back, its receipt brings the row back. */
static uint16_t spare_holder(struct core_credit *credit)
{
	uint8_t used[(CREDIT_HOLDERS_MAX + 7) / 8] = { 0 };

	for (uint32_t i = 0; i < credit->object_count; i++)
		for (uint16_t h = 0; h < credit->objects[i].holder_count; h++)
			set_bit(used, credit->objects[i].holders[h]);
	for (uint32_t i = 0; i < credit->holder_count; i++) {
		const struct credit_holder *row = &credit->holders[i];

		if (has_bit(used, i) || row->due || row->in_flight)
			continue;
		for (uint32_t j = 0; j < CREDIT_JOBS_MAX; j++)
			credit->jobs[j].restored_by[i / 8] &= (uint8_t) ~(1u << i % 8);
		return (uint16_t)i;
	}
	return NONE;
}

static uint16_t add_holder(struct core_credit *credit, const struct node_id *id)
{
	uint16_t at = find_holder(credit, id);

	if (at != NONE)
		return at;
	at = credit->holder_count < CREDIT_HOLDERS_MAX ? (uint16_t)credit->holder_count++ :
							 spare_holder(credit);
	if (at != NONE)
		credit->holders[at] = (struct credit_holder){ .id = *id };
	return at;
}

static uint16_t find_job(const struct core_credit *credit, const struct job_id *id)
{
	for (uint32_t i = 0; i < CREDIT_JOBS_MAX; i++)
		if (credit->jobs[i].objects && memcmp(&credit->jobs[i].id, id, sizeof(*id)) == 0)
			return (uint16_t)i;
	return NONE;
}

static void remove_object(struct core_credit *credit, uint32_t i)
{
	credit->jobs[credit->objects[i].job].objects--;
	credit->objects[i] = credit->objects[--credit->object_count];
}

/* Of two incarnations: what passed between them may have been paid by another host. */
static void restart(struct core_credit *credit, uint16_t job, const struct fence_token *token,
		    uint64_t now_ms)
{
	credit->jobs[job].token = *token;
	memset(credit->jobs[job].restored_by, 0, sizeof(credit->jobs[job].restored_by));
	for (uint32_t i = 0; i < credit->object_count; i++)
		if (credit->objects[i].job == job)
			credit->objects[i].since_ms = now_ms;
}

/* False if this token is an older one. No token: it is sent before the register exists. */
static bool enter(struct core_credit *credit, uint16_t job, const struct fence_token *token,
		  uint64_t now_ms)
{
	struct credit_job *row = &credit->jobs[job];
	static const struct fence_token none;
	int order = fence_token_compare(token, &row->token);

	if (order == 0 || fence_token_compare(token, &none) == 0)
		return true;
	if (fence_token_compare(&row->token, &none) == 0)
		row->token = *token;
	else if (order > 0)
		restart(credit, job, token, now_ms);
	return order > 0;
}

static uint16_t add_job(struct core_credit *credit, const struct credit_seen *seen, uint64_t now_ms)
{
	uint16_t at = find_job(credit, &seen->job);

	if (at != NONE)
		return enter(credit, at, &seen->token, now_ms) ? at : NONE;
	for (at = 0; at < CREDIT_JOBS_MAX && credit->jobs[at].objects; at++)
		;
	if (at == CREDIT_JOBS_MAX) {
		credit->uncounted++;
		return NONE;
	}
	credit->jobs[at] = (struct credit_job){ .id = seen->job, .token = seen->token };
	return at;
}

/* --- what is seen ---------------------------------------------------------------------- */

/* Those of whom this object does not count yet. */
static void pick_new(struct core_credit *credit, const struct credit_seen *seen,
		     struct credit_object *object)
{
	uint16_t rows[OV_HOLDERS_MAX];

	for (uint32_t i = 0; i < seen->holder_count; i++)
		rows[i] = add_holder(credit, &seen->holders[i]);
	for (uint32_t i = 0; i < credit->object_count; i++) {
		struct credit_object *other = &credit->objects[i];

		if (other->job != object->job ||
		    memcmp(other->hash, object->hash, sizeof(other->hash)) != 0)
			continue;
		if (object->seq > other->seq)
			other->seq = object->seq; /* as its holder's: a later RETAIN drops it */
		for (uint32_t h = 0; h < seen->holder_count; h++)
			if (rows[h] != NONE && counts_for(other, rows[h]))
				rows[h] = NONE;
	}
	for (uint32_t h = 0; h < seen->holder_count; h++)
		if (rows[h] != NONE && !counts_for(object, rows[h]))
			object->holders[object->holder_count++] = rows[h];
}

static bool is_sane(const struct credit_seen *seen)
{
	return seen->size > 0 && seen->size <= OV_PACK_MAX && seen->holder_count > 0 &&
	       seen->holder_count <= OV_HOLDERS_MAX;
}

/* Returns the job's row, or NONE. */
static uint16_t hold(struct core_credit *credit, const struct credit_seen *seen, uint64_t now_ms)
{
	struct credit_object object = { .seq = seen->seq, .since_ms = now_ms, .size = seen->size };

	if (!is_sane(seen))
		return NONE;
	object.job = add_job(credit, seen, now_ms);
	if (object.job == NONE)
		return NONE;
	memcpy(object.hash, &seen->hash, sizeof(object.hash));
	pick_new(credit, seen, &object);
	if (object.holder_count > 0 && credit->object_count == CREDIT_OBJECTS_MAX) {
		credit->uncounted++;
	} else if (object.holder_count > 0) {
		credit->objects[credit->object_count++] = object;
		credit->jobs[object.job].objects++;
	}
	return object.job;
}

void core_credit_put(struct core_credit *credit, const struct credit_seen *seen, uint64_t now_ms)
{
	(void)hold(credit, seen, now_ms);
}

void core_credit_got(struct core_credit *credit, const struct credit_seen *seen, uint64_t now_ms)
{
	uint16_t holder, job;

	if (!is_sane(seen) || seen->holder_count != 1)
		return;
	job = hold(credit, seen, now_ms);
	holder = add_holder(credit, seen->holders);
	if (holder == NONE)
		return;
	credit->holders[holder].restored_bytes =
		add(credit->holders[holder].restored_bytes, seen->size);
	credit->holders[holder].due = true;
	/* Many objects are one restore. */
	if (job == NONE || has_bit(credit->jobs[job].restored_by, holder))
		return;
	set_bit(credit->jobs[job].restored_by, holder);
	credit->holders[holder].restores = add(credit->holders[holder].restores, 1);
}

static bool is_named(const struct credit_retain *retain, const struct credit_object *object)
{
	uint32_t low = 0, high = retain->hash_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		int order = memcmp(&retain->hashes[middle], object->hash, sizeof(object->hash));

		if (order == 0)
			return true;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

static void pay(struct credit_holder *holder, uint32_t size, uint64_t since_ms, uint64_t now_ms)
{
	uint64_t ms = now_ms > since_ms ? now_ms - since_ms : 0;

	if (ms > CREDIT_INTERVAL_MAX_MS)
		ms = CREDIT_INTERVAL_MAX_MS;
	holder->byte_ms += ms * size; /* at most 2^25 * 2^30 */
	if (holder->byte_ms < CREDIT_HOUR_MS)
		return;
	holder->byte_hours = add(holder->byte_hours, holder->byte_ms / CREDIT_HOUR_MS);
	holder->byte_ms %= CREDIT_HOUR_MS;
	holder->due = true;
}

void core_credit_retained(struct core_credit *credit, const struct credit_retain *retain,
			  uint64_t now_ms)
{
	uint8_t answered[(CREDIT_HOLDERS_MAX + 7) / 8] = { 0 };
	uint16_t job = find_job(credit, &retain->job), at;

	if (job == NONE || !enter(credit, job, &retain->token, now_ms))
		return;
	for (uint32_t i = 0; i < retain->answered_count; i++) {
		at = find_holder(credit, &retain->answered[i]);
		if (at != NONE)
			set_bit(answered, at);
	}
	for (uint32_t i = credit->object_count; i-- > 0;) {
		struct credit_object *object = &credit->objects[i];

		if (object->job != job)
			continue;
		for (uint16_t h = 0; h < object->holder_count; h++)
			if (has_bit(answered, object->holders[h]))
				pay(&credit->holders[object->holders[h]], object->size,
				    object->since_ms, now_ms);
		object->since_ms = now_ms;
		if (object->seq <= retain->upto_seq && !is_named(retain, object))
			remove_object(credit, i);
	}
}

void core_credit_forget(struct core_credit *credit, const struct job_id *job)
{
	uint16_t at = find_job(credit, job);

	for (uint32_t i = credit->object_count; at != NONE && i-- > 0;)
		if (credit->objects[i].job == at)
			remove_object(credit, i);
}

void core_credit_sweep(struct core_credit *credit, uint64_t now_ms)
{
	for (uint32_t i = credit->object_count; i-- > 0;)
		if (now_ms > credit->objects[i].since_ms &&
		    now_ms - credit->objects[i].since_ms > CREDIT_INTERVAL_MAX_MS)
			remove_object(credit, i);
}

/* --- receipts -------------------------------------------------------------------------- */

bool core_credit_due(const struct core_credit *credit, uint32_t index)
{
	return index < credit->holder_count && credit->holders[index].due;
}

void core_credit_receipt(struct core_credit *credit, uint32_t index, const struct node_id *self,
			 uint64_t wall_ms, struct core_receipt *ret_receipt)
{
	struct credit_holder *row = &credit->holders[index];

	if (!row->from_wall_ms)
		row->from_wall_ms = wall_ms;
	row->epoch = add(row->epoch, 1);
	row->due = false;
	row->in_flight = true;
	*ret_receipt = (struct core_receipt){ .submitter = *self,
					      .holder = row->id,
					      .epoch = row->epoch,
					      .byte_hours = row->byte_hours,
					      .restored_bytes = row->restored_bytes,
					      .restores = row->restores,
					      .from_wall_ms = row->from_wall_ms,
					      .until_wall_ms = wall_ms };
}

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/*
 * This disk has lost what it knew of the holder. A row of which this is the first receipt began at
 * nothing, so what it has comes on top; any other may be an older copy of what is shown.
 */
static void learn(struct credit_holder *row, bool first, const struct core_receipt *kept)
{
	uint64_t (*join)(uint64_t a, uint64_t b) = first ? add : larger;

	row->byte_hours = join(row->byte_hours, kept->byte_hours);
	row->restored_bytes = join(row->restored_bytes, kept->restored_bytes);
	row->restores = join(row->restores, kept->restores);
	row->epoch = larger(row->epoch, kept->epoch);
	row->from_wall_ms = kept->from_wall_ms;
	row->due = true;
}

void core_credit_settled(struct core_credit *credit, const struct core_receipt *sent,
			 const struct core_receipt *kept)
{
	uint16_t at = find_holder(credit, &sent->holder);
	struct credit_holder *row;

	if (at == NONE)
		return;
	row = &credit->holders[at];
	if (!row->in_flight || row->epoch != sent->epoch)
		return;
	row->in_flight = false;
	if (!kept || !node_id_equal(&kept->submitter, &sent->submitter) ||
	    !node_id_equal(&kept->holder, &sent->holder))
		row->due = true;
	else if (memcmp(kept, sent, offsetof(struct core_receipt, signature)) != 0)
		learn(row, sent->epoch == 1, kept);
}
