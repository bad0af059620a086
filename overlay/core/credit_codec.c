// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The record of what this host owes, see credit.h:
 *
 *   holder = id byte_hours byte_ms:u32 restored_bytes restores epoch from_wall_ms flags:u32
 *   job    = id token
 *   object = hash seq age_ms:u32 size:u32 job:u16 count:u16, OV_HOLDERS_MAX indices of holders:u16
 */
#include <errno.h>
#include <string.h>

#include "overlay/core/codec.h"
#include "overlay/core/credit.h"

enum {
	MAGIC = 0x31544443, /* "CDT1" */
	HEAD_BYTES = 32,
	HOLDER_BYTES = 64,
	JOB_BYTES = 40,
	OBJECT_BYTES = CREDIT_HASH_BYTES + 20 + 2 * OV_HOLDERS_MAX,
	DUE = 1,
};

_Static_assert(OBJECT_BYTES == 46 && HOLDER_BYTES == 64 && JOB_BYTES == 40, "see credit.h");

/* One walk for both ways: what is written and what is read cannot differ. */
struct walk {
	uint8_t *out;	   /* or NULL */
	const uint8_t *in; /* or NULL */
};

static void number(struct walk *w, uint64_t *value, uint32_t size)
{
	uint64_t got = 0;

	for (uint32_t i = 0; i < size; i++) {
		if (w->out)
			*w->out++ = (uint8_t)(*value >> 8 * i);
		else
			got |= (uint64_t)*w->in++ << 8 * i;
	}
	if (w->in)
		*value = got;
}

static void bytes_of(struct walk *w, void *bytes, size_t size)
{
	if (w->out) {
		memcpy(w->out, bytes, size);
		w->out += size;
	} else {
		memcpy(bytes, w->in, size);
		w->in += size;
	}
}

static bool walk_holder(struct walk *w, struct credit_holder *row)
{
	/* A receipt on its way may never arrive: after a restart it is owed again. */
	uint64_t flags = row->due || row->in_flight ? DUE : 0;

	bytes_of(w, &row->id, sizeof(row->id));
	number(w, &row->byte_hours, 8);
	number(w, &row->byte_ms, 4);
	number(w, &row->restored_bytes, 8);
	number(w, &row->restores, 8);
	number(w, &row->epoch, 8);
	number(w, &row->from_wall_ms, 8);
	number(w, &flags, 4);
	row->due = flags & DUE;
	return flags <= DUE && row->byte_ms < CREDIT_HOUR_MS &&
	       row->byte_hours <= CORE_CREDIT_MAX && row->restored_bytes <= CORE_CREDIT_MAX &&
	       row->restores <= CORE_CREDIT_MAX && row->epoch <= CORE_CREDIT_MAX;
}

static void walk_job(struct walk *w, struct credit_job *row)
{
	bytes_of(w, &row->id, sizeof(row->id));
	number(w, &row->token.counter, 8);
	bytes_of(w, &row->token.node, sizeof(row->token.node));
}

static bool walk_object(struct walk *w, struct credit_object *object, uint64_t now_ms)
{
	uint64_t age_ms = now_ms > object->since_ms ? now_ms - object->since_ms : 0;
	uint64_t size = object->size, job = object->job, count = object->holder_count;

	if (age_ms > CREDIT_INTERVAL_MAX_MS)
		age_ms = CREDIT_INTERVAL_MAX_MS;
	bytes_of(w, object->hash, sizeof(object->hash));
	number(w, &object->seq, 8);
	number(w, &age_ms, 4);
	number(w, &size, 4);
	number(w, &job, 2);
	number(w, &count, 2);
	for (uint32_t i = 0; i < OV_HOLDERS_MAX; i++) {
		uint64_t holder = object->holders[i];

		number(w, &holder, 2);
		object->holders[i] = (uint16_t)holder;
	}
	if (w->out)
		return true;
	object->since_ms = now_ms > age_ms ? now_ms - age_ms : 0;
	object->size = (uint32_t)size;
	object->job = (uint16_t)job;
	object->holder_count = (uint16_t)count;
	return age_ms <= CREDIT_INTERVAL_MAX_MS && size > 0 && size <= OV_PACK_MAX && count > 0 &&
	       count <= OV_HOLDERS_MAX;
}

size_t core_credit_encode(const struct core_credit *credit, const struct node_id *owner,
			  uint64_t now_ms, uint8_t bytes[CREDIT_BYTES_MAX])
{
	struct walk w = { .out = bytes };
	uint64_t magic = MAGIC, holders = credit->holder_count, objects = credit->object_count;
	uint64_t jobs = 0, sum;
	uint16_t places[CREDIT_JOBS_MAX];
	struct node_id id = *owner;

	for (uint32_t i = 0; i < CREDIT_JOBS_MAX; i++) {
		places[i] = (uint16_t)jobs;
		jobs += credit->jobs[i].objects > 0;
	}
	number(&w, &magic, 4);
	number(&w, &holders, 4);
	number(&w, &jobs, 4);
	number(&w, &objects, 4);
	bytes_of(&w, &id, sizeof(id));
	for (uint32_t i = 0; i < holders; i++) {
		struct credit_holder row = credit->holders[i];

		(void)walk_holder(&w, &row);
	}
	for (uint32_t i = 0; i < CREDIT_JOBS_MAX; i++) {
		struct credit_job row = credit->jobs[i];

		if (row.objects)
			walk_job(&w, &row);
	}
	for (uint32_t i = 0; i < objects; i++) {
		struct credit_object object = credit->objects[i];

		object.job = places[object.job];
		(void)walk_object(&w, &object, now_ms);
	}
	sum = core_checksum(bytes, (size_t)(w.out - bytes));
	number(&w, &sum, 8);
	return (size_t)(w.out - bytes);
}

struct counts {
	uint64_t holders, jobs, objects;
};

static bool decode_object(struct walk *w, const struct counts *counts, uint64_t now_ms,
			  struct core_credit *credit, struct credit_object *object)
{
	if (!walk_object(w, object, now_ms) || object->job >= counts->jobs)
		return false;
	for (uint32_t i = 0; i < OV_HOLDERS_MAX; i++)
		if (i < object->holder_count ? object->holders[i] >= counts->holders :
					       object->holders[i] != 0)
			return false;
	credit->jobs[object->job].objects++;
	return true;
}

static int decode_rows(struct walk *w, const struct counts *counts, uint64_t now_ms,
		       struct core_credit *credit)
{
	for (uint32_t i = 0; i < counts->holders; i++)
		if (!walk_holder(w, &credit->holders[i]))
			return -EBADMSG;
	for (uint32_t i = 0; i < counts->jobs; i++)
		walk_job(w, &credit->jobs[i]);
	for (uint32_t i = 0; i < counts->objects; i++)
		if (!decode_object(w, counts, now_ms, credit, &credit->objects[i]))
			return -EBADMSG;
	for (uint32_t i = 0; i < counts->jobs; i++)
		if (!credit->jobs[i].objects)
			return -EBADMSG;
	credit->holder_count = (uint32_t)counts->holders;
	credit->object_count = (uint32_t)counts->objects;
	return 0;
}

static int check(struct walk *w, const uint8_t *bytes, size_t size, const struct node_id *owner,
		 struct counts *ret_counts)
{
	struct walk tail = { .in = bytes + size - 8 };
	uint64_t magic = 0, sum = 0;
	struct node_id id;

	number(w, &magic, 4);
	number(w, &ret_counts->holders, 4);
	number(w, &ret_counts->jobs, 4);
	number(w, &ret_counts->objects, 4);
	bytes_of(w, &id, sizeof(id));
	if (magic != MAGIC || ret_counts->holders > CREDIT_HOLDERS_MAX ||
	    ret_counts->jobs > CREDIT_JOBS_MAX || ret_counts->objects > CREDIT_OBJECTS_MAX ||
	    size != HEAD_BYTES + ret_counts->holders * HOLDER_BYTES + ret_counts->jobs * JOB_BYTES +
			    ret_counts->objects * OBJECT_BYTES + 8)
		return -EBADMSG;
	number(&tail, &sum, 8);
	if (sum != core_checksum(bytes, size - 8))
		return -EBADMSG;
	return memcmp(&id, owner, sizeof(id)) != 0 ? -ESTALE : 0;
}

int core_credit_decode(const void *bytes, size_t size, const struct node_id *owner, uint64_t now_ms,
		       struct core_credit *ret_credit)
{
	struct walk w = { .in = bytes };
	struct counts counts = { 0 };
	int r = -EBADMSG;

	memset(ret_credit, 0, sizeof(*ret_credit));
	if (size >= HEAD_BYTES + 8)
		r = check(&w, bytes, size, owner, &counts);
	if (r == 0)
		r = decode_rows(&w, &counts, now_ms, ret_credit);
	if (r < 0)
		memset(ret_credit, 0, sizeof(*ret_credit));
	return r;
}
