/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The core's words on the wire and on disk, little-endian, field by field.
 *
 *   message = version:u8 type:u8 flags:u8 zero:u8, then the fields of its type in this order:
 *             seq subject digests summaries records job epoch acceptors previous ballot accepted token
 *             reason hold_left value next
 *   record  = magic:u32 version:u32 job epoch acceptors installed:u32 settled:u32 previous
 *             promised accepted value next fnv64:u64
 *
 * A ballot starts with its epoch, which names a set of acceptors. `next` is the set that a value
 * seals its epoch for (count 0: it does not), `previous` the set before this one.
 *
 *   type                          flags       says
 *   PING PING_REQ ACK GOSSIP                  membership; subject: who is asked after
 *   DIGEST -> SUMMARY -> SYNC, SUMMARY -> SYNC anti-entropy of the member table, see sync.c
 *   SUMMARY                       WANT_REPLY  all rows of the buckets in the mask seq; else: rows
 *                                             that the sender wants, and what it has of them
 *   PREPARE -> PROMISE | NACK     TAKEOVER: BUSY while a hold runs; READ: promise nothing
 *   ACCEPT -> ACCEPTED | NACK
 *   LEARN                                     this value was chosen at this ballot
 *   RENEW -> RENEWED | LOST                   lease of (job, token), round seq
 *   GRANT DONE                                chosen value, to the new owner / to the home host
 *   WHOHAS -> IHAVE                           acceptors of a job (count 0: not known here)
 *   INSTALL -> INSTALLED                      be an acceptor of this epoch, from this value on
 *   MOVED                         SETTLED     the job is at this epoch now. Not settled: the
 *                                             epoch before is sealed, and this is its value
 *   CLOSE -> CLOSED                           this epoch stands: keep no earlier one
 *
 * A decoder returns -EBADMSG for short, trailing or impossible bytes and never reads past size.
 * What it wrote to its output by then is unspecified but bounded, and so is the value of a message
 * whose type has none. Unused array tails are zero in a decoded value, so two values are equal
 * exactly when memcmp says so.
 * Threading: pure functions.
 */
#pragma once

#include <stddef.h>

#include "overlay/core/core.h"

enum {
	CORE_GOSSIP_RECORDS_MAX = 29, /* member records in one message */
	CORE_BUCKETS = 64,	      /* parts of the member table, by id, that are compared */
	CORE_SUMMARY_MAX = 256,	      /* rows named in one message */
	CORE_RECORD_BYTES_MAX = 4096, /* what an acceptor record really needs at most */
};

/* Epochs of one job: a member replaced every minute for a thousand years. */
#define CORE_EPOCH_MAX (UINT32_C(1) << 30)

/* Incarnations and ballot counters beyond this are refused, so that adding never overflows. */
#define CORE_COUNTER_MAX (UINT64_C(1) << 62)

enum core_message_type {
	CORE_MSG_PING = 1,
	CORE_MSG_ACK,
	CORE_MSG_PING_REQ,
	CORE_MSG_GOSSIP,
	CORE_MSG_DIGEST,
	CORE_MSG_SYNC,
	CORE_MSG_PREPARE,
	CORE_MSG_PROMISE,
	CORE_MSG_NACK,
	CORE_MSG_ACCEPT,
	CORE_MSG_ACCEPTED,
	CORE_MSG_LEARN,
	CORE_MSG_RENEW,
	CORE_MSG_RENEWED,
	CORE_MSG_LOST,
	CORE_MSG_GRANT,
	CORE_MSG_DONE,
	CORE_MSG_WHOHAS,
	CORE_MSG_IHAVE,
	CORE_MSG_INSTALL,
	CORE_MSG_INSTALLED,
	CORE_MSG_MOVED,
	CORE_MSG_CLOSE,
	CORE_MSG_CLOSED,
	CORE_MSG_SUMMARY,
	CORE_MSG_END,
};

enum core_message_flag {
	CORE_FLAG_WANT_REPLY = 1 << 0,
	CORE_FLAG_TAKEOVER = 1 << 1,
	CORE_FLAG_READ = 1 << 2,
	CORE_FLAG_SETTLED = 1 << 3,
};

enum core_nack_reason {
	CORE_NACK_PROMISED = 1, /* `accepted` holds the higher promise */
	CORE_NACK_BUSY,		/* rule A1: the held owner's time is not over for hold_left_ms */
	CORE_NACK_UNKNOWN,	/* no record of this job, or other acceptors in it */
	CORE_NACK_FULL,		/* no room for one more record */
};

/*
 * Ordered by epoch, number, life. `life` is the proposer's incarnation at start: a node that
 * restarted without memory of its earlier ballots can never utter one of them again. Number zero
 * is that of the value an epoch begins with.
 */
struct core_ballot {
	uint64_t epoch;
	struct fence_token number;
	uint64_t life;
};

struct core_acceptors {
	uint32_t count; /* 1..OV_REPLICAS_MAX, distinct; their order is the guardian's rank */
	struct node_id ids[OV_REPLICAS_MAX];
};

/* How much of a row is told. Who lacks the card of one that is not full waits for a SYNC. */
enum core_gossip_kind {
	CORE_GOSSIP_BRIEF = 0, /* id, incarnation and state; never of one that is alive */
	CORE_GOSSIP_FULL,
	CORE_GOSSIP_REPORT, /* all but the card */
};

struct core_gossip {
	struct node_id id;
	uint64_t incarnation;
	uint32_t state;
	uint32_t kind;
	struct node_card card;
	char addr[OV_ADDR_MAX];
	uint16_t port;
	struct member_state_report report;
};

/* What is known of a member, without what it says of itself; incarnation 0: nothing. */
struct core_summary {
	struct node_id id;
	uint64_t incarnation;
	uint32_t state; /* 0: nothing */
};

struct core_message {
	uint8_t type;
	uint8_t flags;
	uint64_t seq;
	struct node_id subject;
	struct job_id job;
	uint32_t epoch;
	struct core_acceptors acceptors, previous, next;
	struct core_ballot ballot;
	struct core_ballot accepted;
	struct fence_token token;
	uint32_t reason;
	uint32_t hold_left_ms;
	struct job_value value; /* this and what follows: unspecified if the type has none */
	uint64_t digests[CORE_BUCKETS];
	uint32_t summary_count;
	struct core_summary summaries[CORE_SUMMARY_MAX];
	uint32_t record_count;
	struct core_gossip records[CORE_GOSSIP_RECORDS_MAX];
};

/* What an acceptor must never forget. */
struct core_record {
	struct job_id job;
	uint32_t epoch;
	uint32_t installed; /* an acceptor of this epoch; else a signpost to it */
	uint32_t settled;   /* a majority of this epoch is installed */
	struct core_acceptors acceptors;
	struct core_acceptors previous; /* count 0: the epoch before can not come back */
	struct core_acceptors next;	/* of the value */
	struct core_ballot promised;
	struct core_ballot accepted;
	struct job_value value;
};

int core_ballot_compare(const struct core_ballot *a, const struct core_ballot *b);

/* Bytes written, or 0 if it is invalid or does not fit. */
size_t core_message_encode(const struct core_message *message, void *bytes, size_t max);
int core_message_decode(const void *bytes, size_t size, struct core_message *ret_message);

size_t core_record_encode(const struct core_record *record, void *bytes, size_t max);
int core_record_decode(const void *bytes, size_t size, struct core_record *ret_record);

/* Of bytes this host made itself (FNV-1a): finds torn writes, stops no forger. */
uint64_t core_checksum(const void *bytes, size_t size);

/* The same value with unused tails zeroed, or -EINVAL if a field is out of bounds. */
int core_value_normalize(const struct job_value *value, struct job_value *ret_value);
