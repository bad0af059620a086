/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The contract between the two halves of decampd.
 *
 *   agent (root)  <==  SOCK_SEQPACKET socketpairs  ==>  overlay (user decamp, no capabilities)
 *
 * One datagram = struct ov_msg, always whole, with at most one fd. Bulk data passes as sealed
 * memfds: a pack, a manifest, an array of the structs of types.h; and what OV_OBJECT_GET writes to
 * a file of the agent's, who copies it before he looks. The overlay half only ever gets ciphertext
 * and the plain structs of types.h.
 *
 * The *main channel* exists from the fork. On it the agent sends requests and the overlay
 * answers each (same `call`) and also sends events (OV_EV_*, call 0). OV_CHANNEL passes the end
 * of a new socketpair: a *side channel* for a worker thread, on which the thread does one blocking
 * request at a time (ov_call) and no event ever arrives. Closing it ends it.
 *
 * The agent treats the overlay half as hostile: it checks every field, and believes no object
 * before the manifest and pack decoders have authenticated it. Errors: `status` is 0 or -errno:
 *   -ESTALE    the token is no longer the job's: this incarnation lost the job
 *   -EAGAIN    no majority of the register (or no holder) answered in time: try again
 *   -ENOENT    no such job, object or member
 *   -ENOSPC    no peer has room       -EHOSTUNREACH  no live peer fits
 *   -EBADMSG   what came back failed its check      -EPERM  not admitted / no cluster yet
 */
#pragma once

#include <stddef.h>

#include "overlay/types.h"

enum ov_op {
	/* agent -> overlay: requests, each answered */
	OV_CHANNEL = 1,	  /* fd: the overlay's end of a new side channel; no answer */
	OV_CLUSTER_START, /* u.start; fd: memfd of struct ov_identity. Begin to serve and gossip. */
	OV_JOB_CREATE, /* u.value: epoch 0 with owner = self, state HELD; -> u.value with token */
	OV_JOB_CAS,    /* u.value: proposed if its token is still the job's; -> committed value.
			     * ADVANCE: same owner and token, new history[0];
			     * RELEASE: state IDLE, owner 0 (owner froze the job first);
			     * DONE/KILLED/COLLECTED likewise */
	OV_JOB_HOLD,   /* u.job {job, token}: renew the lease until dropped; answers after the
			     * first round: u.lease, or -ESTALE */
	OV_JOB_DROP,   /* u.job: stop renewing */
	OV_JOB_GET,    /* u.job {job}: quorum read -> u.value */
	OV_JOB_LIST,   /* -> fd: memfd of struct job_value[] (u.count), newest seen by any
			     * reachable member; a job without a majority is listed all the same */
	OV_JOB_TAKE,   /* u.value {job}, u.value.target: guardian function by hand (restore --on):
			     * ask to make target the owner now; refused with -EBUSY while a lease
			     * of another owner runs. With u.value.token it is the owner's claim:
			     * target is this host, granted the job under that token and about to
			     * restore it; -ESTALE unless it is still the owner.
			     * -> u.value with the new token */
	OV_OBJECT_PUT, /* u.object, fd: memfd -> u.object.holders: who fsynced it. The memory is
			     * read no more after success, and must not change before.
			     * Asks for `copies` on distinct live hosts, never self unless alone;
			     * success if at least one holds it, the agent decides what is enough */
	OV_OBJECT_GET, /* u.object {job, hash, size, holders}, fd: -1, or a memfd that may be
			     * written from its begin -> hash checked; fd: sealed memfd, or -1: it
			     * lies in the caller's, which is written no more after success. Named holders first, then any member that has it. With u.object.token
			     * the job is being restored under it, which earns them credit */
	OV_OBJECT_RETAIN, /* u.retain, fd: memfd of struct object_hash[]: holders may drop all other
			     * objects of this job that were put with seq <= upto_seq */
	OV_OBJECT_CODE, /* u.group {job, token, hash, seq, size, k, m; 0, 0: whichever pays}, fd: the
			 * object -> u.group: each shard fsynced by its holder, all of whom know the
			 * group. Copies stay until a RETAIN names shard_group_name() instead of
			 * the object. -EHOSTUNREACH: too few hosts that stay, copies are better */
	OV_MEMBERS,	/* -> fd: memfd of struct member_info[] (u.count) */
	OV_CARD_GET,	/* u.order.node -> u.card */
	OV_REPORT,	/* u.report: what this host says of itself from now on */
	OV_ORDER_CALL,	/* u.order {node, bytes}: to that host's agent -> its u.order reply */
	OV_ORDER_REPLY, /* u.order {call_id, bytes}: our agent's answer to OV_EV_ORDER; no answer */
	OV_INVITE,	/* u.invite {token_id, psk, expires}: answer a joiner that proves psk */
	OV_JOIN,	/* u.join {addr, port, token_id, psk, bytes} -> u.join.bytes: as joiner */
	OV_JOIN_REPLY,	/* u.join {call_id, bytes}: answer to OV_EV_JOIN; no answer */
	OV_LEAVE,	/* announce leaving; then the overlay may be ended */
	OV_STATS,	/* -> u.stats */
	OV_JOB_NEWEST,	/* u.job {job} -> fd: memfd of struct ov_found[] (u.count), newest first:
			 * manifests that reachable members keep for it. Claims only: whoever has
			 * the job's key opens them and believes what stands inside */
	OV_CREDIT,	/* -> u.credits, fd: memfd of struct ov_credit[] (u.credits.count), of every
			 * member: sums of the receipts that live members keep and this half has
			 * verified. -EBUSY: one is under way */

	/* overlay -> agent: events on the main channel */
	OV_EV_LEASE = 64, /* u.lease: a renewal round succeeded; run until then */
	OV_EV_LOST,	  /* u.job: the token is no longer ours: kill and discard */
	OV_EV_GRANT,	  /* u.value: this host is the job's new owner: TAKE, HOLD, restore */
	OV_EV_DONE,	  /* u.value: we are home: fetch the results, then CAS to COLLECTED */
	OV_EV_ORDER,	  /* u.order {call_id, node, bytes}: another agent's sealed message */
	OV_EV_JOIN,	  /* u.join {call_id, token_id, bytes}: a joiner's sealed request */
	OV_EV_MEMBER,	  /* u.member: somebody came, left, or changed */
};

/* For OV_CLUSTER_START: all that the overlay half needs to be a member. Its own TLS key is the
 * only secret in it. */
struct ov_identity {
	struct node_card card;
	uint8_t tls_secret[32];	    /* Ed25519 seed */
	uint8_t cluster_public[32]; /* Ed25519 key that signs cards */
	uint8_t cluster_id[16];
	uint32_t seed_count;
	uint32_t reserved;
	struct {
		char addr[OV_ADDR_MAX];
		uint16_t port;
		uint16_t reserved[3];
	} seeds[16]; /* hosts to greet first */
};

struct ov_start {
	char listen_addr[OV_ADDR_MAX];	  /* "0.0.0.0" or one address */
	char advertise_addr[OV_ADDR_MAX]; /* what peers dial */
	uint16_t port;
	uint16_t reserved;
	uint32_t probe_ms;	       /* one SWIM probe round */
	uint32_t suspect_ms;	       /* silence until dead */
	uint32_t renew_ms;	       /* lease renewal */
	uint32_t lease_ms;	       /* L_o: the owner runs this long after a renewal was sent */
	uint32_t hold_ms;	       /* L_a >= 1.001 * (L_o + freeze delay) */
	uint64_t quota_bytes;	       /* disk for other hosts' packs */
	uint64_t reserve_bytes;	       /* free disk that is never touched */
	uint8_t closed_hours[168 / 8]; /* a bit per local hour of the week, from Thursday 00:00 */
	uint8_t reserved2[3];
	/* Repair of others' packs; 0: 2 MB/s, 5 minutes, half an hour, a day. */
	uint64_t repair_bytes_s;
	uint32_t repair_round_ms, repair_lazy_ms, repair_gone_ms;
	/* Asking for jobs of which nothing is heard; 0: an hour, 7 days. */
	uint32_t pull_round_ms, pull_forget_ms;
	/* Reading what nobody reads; 0: 2 MB/s, what was not read for 7 days. */
	uint32_t scrub_bytes_s, scrub_age_ms;
	/* Receipts to those who keep packs; 0: every 10 minutes. */
	uint32_t credit_round_ms;
	uint32_t reserved3;
};

struct ov_job {
	struct job_id job;
	struct fence_token token;
};

struct ov_lease {
	struct job_id job;
	struct fence_token token;
	uint64_t run_until_boot_ns;
};

struct ov_object {
	struct job_id job;
	struct fence_token token;
	struct object_hash hash;
	uint64_t seq; /* checkpoint number that the object belongs to */
	uint32_t size;
	uint32_t copies;
	uint32_t holder_count;
	uint32_t link_kib_s; /* a PUT's answer: how fast objects leave this host; 0: not known */
	uint32_t offer;	     /* a PUT: holders may have it for another job: they are asked first */
	uint32_t sent;	     /* a PUT's answer: copies that were sent; the other holders had it */
	struct node_id holders[OV_HOLDERS_MAX];
};

/* A manifest that a member keeps, as it was told when it got it. */
struct ov_found {
	struct fence_token token;
	uint64_t seq;
	struct object_hash manifest;
	uint32_t size;
	uint32_t holder_count;
	struct node_id holders[OV_HOLDERS_MAX];
};
enum { OV_FOUND_MAX = 64 };

/*
 * An object that is kept as shards, any k of which make it whole; docs/erasure.md. shards[i] is an
 * object of its own, on holders[i].
 */
struct ov_group {
	struct job_id job;
	struct fence_token token;
	struct object_hash hash; /* of the whole object */
	uint64_t seq;
	uint32_t size;
	uint32_t k, m;
	uint32_t revision; /* the higher one counts */
	struct object_hash shards[OV_SHARDS_MAX];
	struct node_id holders[OV_SHARDS_MAX];
};

struct ov_retain {
	struct job_id job;
	struct fence_token token;
	uint64_t upto_seq;
	uint32_t count;
	uint32_t reserved;
};

struct ov_order {
	struct node_id node;
	uint64_t call_id;
	uint32_t timeout_ms;
	uint32_t size;
	uint8_t bytes[OV_ORDER_MAX];
};

struct ov_invite {
	uint8_t token_id[16];
	uint8_t psk[32];
	uint64_t expires_wall_ms;
};

struct ov_join {
	uint64_t call_id;
	uint8_t token_id[16];
	uint8_t psk[32];
	char addr[OV_ADDR_MAX];
	uint16_t port;
	uint16_t reserved;
	uint32_t size;
	uint8_t bytes[OV_ORDER_MAX];
};

/* What peers and strangers sent and was refused, since the overlay half began. */
struct ov_refusals {
	uint64_t strangers; /* connections: no card, a forged one, another cluster's, garbage */
	uint64_t frames;    /* members' connections that ended for what they carried */
	uint64_t messages, cards, old_lives, replies; /* see struct core_refusals */
	uint64_t receipts; /* of credit: forged, of another pair, older than the one kept */
};

struct ov_credit_sum {
	uint64_t byte_hours, restored_bytes, restores;
};

/* What a member has done for others and others for it, as far as signed receipts are shown. */
struct ov_credit {
	struct node_id id;
	uint32_t answered; /* it has shown its receipts: else `given` is nothing */
	uint32_t forged;   /* shown by it and not true */
	uint32_t receipts; /* that are in `given` */
	uint32_t unverified_count;
	struct ov_credit_sum given, taken;
	struct ov_credit_sum unverified; /* said by hosts that no member table knows any more */
};

struct ov_credits {
	uint64_t count;
	uint64_t forged, foreign, older; /* refused here since the overlay half began */
};

struct ov_stats {
	uint64_t objects, object_bytes;	     /* in this host's store */
	uint64_t sent_bytes, received_bytes; /* by TLS payload */
	uint64_t bad_objects;		     /* failed the hash on read or receipt */
	uint32_t peers_connected;
	uint32_t registers; /* jobs for which this host is an acceptor */
	struct ov_refusals refusals;
	uint64_t disk_bytes;	 /* what the objects take, and what could not be given back */
	uint64_t rotten_objects; /* of the bad ones: were whole when they came */
	uint64_t scrubbed_objects, scrubbed_bytes; /* read by nobody's wish */
	uint64_t link_bytes_per_s;		   /* see overlay/link.h; 0: not known */
};

struct ov_msg {
	uint32_t op; /* enum ov_op; an answer repeats it */
	int32_t status;
	uint64_t call; /* chosen by the agent; 0 in events */
	union {
		struct ov_start start;
		struct job_value value;
		struct ov_job job;
		struct ov_lease lease;
		struct ov_object object;
		struct ov_retain retain;
		struct ov_group group;
		struct ov_order order;
		struct ov_invite invite;
		struct ov_join join;
		struct ov_stats stats;
		struct ov_credits credits;
		struct node_card card;
		struct member_info member;
		struct member_state_report report;
		uint64_t count;
	} u;
};

/*
 * One blocking request on a side channel: sends *msg with send_fd (or -1), waits for the answer
 * into *msg. ret_fd may be NULL. Returns the transport's error or msg->status.
 */
int ov_call(int channel, struct ov_msg *msg, int send_fd, int *ret_fd, int timeout_ms)
	__attribute__((warn_unused_result));

/* Makes a side channel over the main one, from any thread; the caller closes it. */
int ov_open_channel(int main_channel) __attribute__((warn_unused_result));

static inline int fence_token_compare(const struct fence_token *a, const struct fence_token *b)
{
	if (a->counter != b->counter)
		return a->counter < b->counter ? -1 : 1;
	return __builtin_memcmp(&a->node, &b->node, sizeof(a->node));
}

static inline bool node_id_equal(const struct node_id *a, const struct node_id *b)
{
	return __builtin_memcmp(a, b, sizeof(*a)) == 0;
}

static inline bool node_id_is_zero(const struct node_id *a)
{
	static const struct node_id zero;

	return node_id_equal(a, &zero);
}
