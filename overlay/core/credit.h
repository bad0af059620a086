/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this host owes others: byte-hours that they kept its jobs' objects, and restores that they
 * served. The only source is what this host saw itself. See docs/credit.md.
 *
 *   put, got  -> an object begins to count, of the holders that answered
 *   retained  -> a holder that answers is paid for what it kept since the last time; those that do
 *                not answer are not, and what was not named does not count any more
 *   due, receipt, settled -> a row of a holder goes to it, signed, with the next epoch
 *
 *   record = magic:u32 holders:u32 jobs:u32 objects:u32 owner, the rows, fnv64:u64
 *
 * Time is the boot clock's in ms, which never jumps, and only intervals of one life of the daemon
 * count; one counts for at most CREDIT_INTERVAL_MAX_MS. On disk an object has its age, so what
 * passed before a stop is paid later, and what passed while this host was off is not. One token
 * is one incarnation of a job: intervals between two do not count, as another host may have paid.
 *
 * Beyond a limit an object does not count: then too little is paid, never too much.
 * Threading: pure functions on one struct.
 */
#pragma once

#include "overlay/core/receipt.h"

enum {
	CREDIT_HOLDERS_MAX = OV_MEMBERS_MAX,
	CREDIT_JOBS_MAX = 256,
	CREDIT_OBJECTS_MAX = 16384,
	CREDIT_HASH_BYTES = 16,			   /* of an object's: nobody else can choose it */
	CREDIT_INTERVAL_MAX_MS = 7 * 86400 * 1000, /* between two answered RETAINs */
	CREDIT_HOUR_MS = 3600 * 1000,
	CREDIT_BYTES_MAX =
		32 + CREDIT_HOLDERS_MAX * 64 + CREDIT_JOBS_MAX * 40 + CREDIT_OBJECTS_MAX * 46 + 8,
};

struct credit_holder {
	struct node_id id;
	uint64_t byte_hours, byte_ms; /* byte_ms: what is left of an hour of one byte */
	uint64_t restored_bytes, restores;
	uint64_t epoch; /* of the last receipt made */
	uint64_t from_wall_ms;
	bool due;	/* it does not know all of this yet */
	bool in_flight; /* a receipt was made, and no answer to it came */
};

struct credit_job {
	struct job_id id;
	struct fence_token token;
	uint32_t objects;				   /* 0: the row is free */
	uint8_t restored_by[(CREDIT_HOLDERS_MAX + 7) / 8]; /* under this token; not on disk */
};

struct credit_object {
	uint8_t hash[CREDIT_HASH_BYTES];
	uint64_t seq, since_ms;
	uint32_t size;
	uint16_t job, holder_count;
	uint16_t holders[OV_HOLDERS_MAX];
};

struct core_credit {
	uint32_t holder_count, object_count;
	uint64_t uncounted; /* objects for which there was no room, since start */
	struct credit_holder holders[CREDIT_HOLDERS_MAX];
	struct credit_job jobs[CREDIT_JOBS_MAX];
	struct credit_object objects[CREDIT_OBJECTS_MAX];
};

/* An object of a job, and who was just seen to have it. */
struct credit_seen {
	struct job_id job;
	struct fence_token token;
	struct object_hash hash;
	uint64_t seq;
	uint32_t size;
	uint32_t holder_count; /* at most OV_HOLDERS_MAX; this host itself is none */
	const struct node_id *holders;
};

void core_credit_put(struct core_credit *credit, const struct credit_seen *seen, uint64_t now_ms);
/* It was fetched for a restore, and is what it should be. One holder. */
void core_credit_got(struct core_credit *credit, const struct credit_seen *seen, uint64_t now_ms);

/* hashes: what the job still needs, ascending. */
struct credit_retain {
	struct job_id job;
	struct fence_token token;
	uint64_t upto_seq;
	const struct object_hash *hashes;
	uint32_t hash_count, answered_count;
	const struct node_id *answered;
};
void core_credit_retained(struct core_credit *credit, const struct credit_retain *retain,
			  uint64_t now_ms);
/* The job is somebody else's now: its objects count no more. */
void core_credit_forget(struct core_credit *credit, const struct job_id *job);
/* What nobody retained for CREDIT_INTERVAL_MAX_MS does not count any more. */
void core_credit_sweep(struct core_credit *credit, uint64_t now_ms);

/* The holder at index is owed a receipt. */
bool core_credit_due(const struct core_credit *credit, uint32_t index);
/* Makes it, with an epoch that must be on the disk before the receipt leaves; not signed. */
void core_credit_receipt(struct core_credit *credit, uint32_t index, const struct node_id *self,
			 uint64_t wall_ms, struct core_receipt *ret_receipt);
/*
 * The receipt was not answered (kept is NULL), or the holder showed the one of this pair that it
 * keeps, rightly signed. Another one than that which was sent says what a lost disk forgot.
 */
void core_credit_settled(struct core_credit *credit, const struct core_receipt *sent,
			 const struct core_receipt *kept);

size_t core_credit_encode(const struct core_credit *credit, const struct node_id *owner,
			  uint64_t now_ms, uint8_t bytes[CREDIT_BYTES_MAX]);
/* -EBADMSG, -ESTALE: as core_book_decode(); the output is empty then. */
int core_credit_decode(const void *bytes, size_t size, const struct node_id *owner, uint64_t now_ms,
		       struct core_credit *ret_credit) __attribute__((warn_unused_result));
