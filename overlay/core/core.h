/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The sans-IO heart of the overlay: membership, the guardian's register, leases, placement.
 *
 *   event -> core_step() -> update: writes, messages, answers, events for the agent
 *
 * No socket, no disk, no clock, no randomness but the seed, no malloc: time arrives in the event,
 * work leaves in the update, all memory is given at init. The driver (overlay/overlay.c in the
 * product, tests/unit and tests/sim in tests) carries updates out by one rule: *all writes of an
 * update are durable before any of its messages, answers or events leaves*.
 *
 * Membership: full table; SWIM probes with suspicion and incarnation numbers; anti-entropy.
 * A record enters the table only with a node_card that verify_card accepts.
 * Guardian: per job a single-value Paxos register with ballots on five acceptors (three in a small
 * cluster; live successors of hash(job) on the ring, rooms of their own first); one that is gone
 * or leaves is replaced: a sealed value names the set that goes on with it. Lease test at ACCEPT (rule A1); renewals without disk writes (A2); after a restart every hold starts anew
 * (A4). The lowest-ranked live acceptor is the job's active guardian: on a lapsed hold, an IDLE
 * value, it picks a worker by resource match and proposes TAKEOVER naming it. It keeps telling
 * the home host of a DONE job until COLLECTED.
 *
 * Threading: none; one caller at a time. Update memory is lent until the next step.
 * Sources: SWIM (DSN'02), Lifeguard, CASPaxos, PaxosLease, Chkpt2Chkpt 3.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "overlay/types.h"

struct core; /* opaque; core_size() bytes */

enum {
	CORE_MESSAGE_MAX = 16384, /* bytes of one core message */
	CORE_RECORD_MAX = 8192,	  /* bytes of one durable acceptor record */
	CORE_PLACE_MAX = 64,	  /* peers named for one object */
};

struct core_config {
	struct node_card card; /* self */
	char advertise_addr[OV_ADDR_MAX];
	uint16_t port;
	uint16_t reserved;
	uint32_t probe_ms, suspect_ms, renew_ms, lease_ms, hold_ms; /* as in struct ov_start */
	uint64_t seed;						    /* of all random choices */
	uint64_t incarnation; /* larger than in any earlier life of this id (wall clock ms) */
	/*
	 * What this disk remembers to have announced, plus one. A peer that knows of an incarnation
	 * between this and this life's has heard what the disk has forgotten: it is an older copy,
	 * and so are its promises (rule A5). The incarnation rises within hold_ms of each write of
	 * a register. 0: none of this.
	 */
	uint64_t lost_from;
	/* Pure check of a card's signature and dates; ctx is the driver's. */
	bool (*verify_card)(void *ctx, const struct node_card *card);
	void *ctx;
	/*
	 * NULL, or core_scratch_size() bytes that cores of one thread share: their updates are then
	 * valid until the next step of any of them.
	 */
	struct core_scratch *scratch;
};

enum core_event_type {
	CORE_EV_TICK = 1, /* time passed: called at core_deadline() or later */
	CORE_EV_MESSAGE,  /* bytes from an authenticated peer */
	CORE_EV_REQUEST,  /* the agent's request */
	CORE_EV_RECORD,	  /* a durable record read back at start, before any other event */
	CORE_EV_REPORT,	  /* what this host says of itself */
	CORE_EV_LEAVE,	  /* announce leaving */
	CORE_EV_GREET,	  /* send our member record to this node (a connection to a seed came up):
			   * node + its verified card */
};

enum core_request {
	CORE_REQ_CREATE = 1, /* value */
	CORE_REQ_CAS,	     /* value */
	CORE_REQ_HOLD,	     /* value.job, value.token */
	CORE_REQ_DROP,	     /* value.job */
	CORE_REQ_GET,	     /* value.job */
	/*
	 * value.job, value.target. With value.token, the one under which this host was granted the
	 * job, it is the owner's claim: the target is this host, and -ESTALE unless it owns the job.
	 */
	CORE_REQ_TAKE,
};

struct core_event {
	enum core_event_type type;
	uint64_t now_ms;     /* monotonic; never goes back */
	uint64_t boot_ns;    /* CLOCK_BOOTTIME of the same instant: only copied into leases */
	struct node_id node; /* MESSAGE: sender; GREET: the peer */
	const void *bytes;   /* MESSAGE, RECORD: borrowed for the call */
	size_t size;
	enum core_request request;
	uint64_t request_id; /* chosen by the driver, echoed in the answer */
	const struct job_value *value;
	const struct member_state_report *report;
	const struct node_card *card; /* GREET */
	const char *addr;	      /* GREET: where it was reached, may be NULL */
	uint16_t port;
};

struct core_send {
	struct node_id to;
	size_t size;
	const void *bytes;
};

/* What is left of a job that is over: its acceptors were these when one of them forgot it. */
struct core_tombstone {
	uint32_t state; /* JOB_STATE_COLLECTED or JOB_STATE_KILLED */
	uint32_t acceptor_count;
	struct fence_token token;
	struct node_id acceptors[OV_REPLICAS_MAX];
};

struct core_write { /* replace (size > 0) or delete (size 0) the record of this job */
	struct job_id job;
	size_t size;
	const void *bytes;
	bool is_over; /* with size 0: its chosen end is why; in the same transaction as that */
	struct core_tombstone tombstone;
};

struct core_answer {
	uint64_t request_id;
	int32_t status; /* as in overlay/ipc.h */
	uint32_t has_value;
	struct job_value value;	    /* CREATE, CAS, GET, TAKE */
	uint64_t run_until_boot_ns; /* HOLD */
};

enum core_notice_type {
	CORE_LEASE = 1,
	CORE_LOST,
	CORE_GRANT,
	CORE_DONE,
	CORE_MEMBER,
	/*
	 * See lost_from; member.incarnation is the one that is known to others. The core has left
	 * and answers for no register any more; its id must never be used again.
	 */
	CORE_ROLLED_BACK,
};

struct core_notice {
	enum core_notice_type type;
	struct job_value value; /* GRANT, DONE; job and token in LEASE, LOST; not of MEMBER */
	uint64_t run_until_boot_ns;
	struct member_info member;
};

struct core_update {
	uint32_t write_count, send_count, answer_count, notice_count;
	const struct core_write *writes;
	const struct core_send *sends;
	const struct core_answer *answers;
	const struct core_notice *notices;
};

/* What was refused since init, and why. */
struct core_refusals {
	uint64_t messages; /* not understood, or in the name of this host or of nobody */
	uint64_t cards;	   /* in records of members: forged, expired, of another cluster */
	uint64_t old_lives; /* a host told of itself under an older incarnation than is known of it */
	uint64_t replies;   /* to an earlier round of renewals: late, or said again */
};

size_t core_size(void);
size_t core_scratch_size(void);

/* memory: core_size() bytes, zeroed by the caller, aligned as malloc does. */
int core_init(struct core *core, const struct core_config *config, uint64_t now_ms);

/* 0, or -EBADMSG for an undecodable message or record (the update is then empty). */
int core_step(struct core *core, const struct core_event *event,
	      const struct core_update **ret_update);

const struct core_refusals *core_refusals(const struct core *core);

/* When core_step(TICK) is due next, in now_ms terms; a step may make it later, too. */
uint64_t core_deadline(const struct core *core);

/*
 * A hint for who has many cores in turn: asks for the memory that an event of this core will need.
 * from: the sender of a message, or NULL. Stage 0 first; stage 1 once that had time to arrive.
 */
void core_prefetch(const struct core *core, const struct node_id *from, uint32_t stage);

/* Member table: row by index (self included), or NULL past the end. Valid until the next step. */
const struct member_info *core_member(const struct core *core, uint32_t index, uint64_t now_ms);
const struct node_card *core_card(const struct core *core, const struct node_id *id);
/*
 * Address to dial; false if unknown or left. A dead member has one too: it is still probed, rarely,
 * so that the halves of a healed partition meet again.
 */
bool core_address(const struct core *core, const struct node_id *id, const char **ret_addr,
		  uint16_t *ret_port);

/* The register copies this host keeps as acceptor or owner, for OV_JOB_LIST; NULL past the end. */
const struct job_value *core_register(const struct core *core, uint32_t index);

/*
 * Peers for a new object, best first: live, willing, with enough room, never `exclude`; the first
 * three as holders.h says, the rest for who refuses. Returns how many of `max` were written.
 */
uint32_t core_place(const struct core *core, const struct object_hash *hash, uint64_t size,
		    const struct node_id *exclude, uint32_t max, struct node_id *ret_nodes);

struct core_place_rule; /* holders.h */

/*
 * Peers for more copies of an object of which this host is a holder, best first; at most
 * CORE_PLACE_MAX. 0 if none are missing, or if it is for another holder to make them: the first
 * of the list that is there does. A holder that announces its leaving is not counted on.
 */
uint32_t core_place_repair(const struct core *core, const struct core_place_rule *rule,
			   const struct object_hash *hash, uint64_t size,
			   const struct node_id *holders, uint32_t count, uint32_t *ret_there,
			   struct node_id *ret_nodes);

/*
 * This host is a holder: may it give its copy up if room is needed? ret_stable: copies that are
 * there on hosts that stay, for core_give_up_before(). vouched, unless it is NULL: of the holders
 * those whose bit is not set count as away.
 */
bool core_place_surplus(const struct core *core, const struct core_place_rule *rule,
			const struct node_id *holders, uint32_t count, const uint32_t *vouched,
			uint32_t *ret_stable);

/* Live members, this host included, in the order in which they are named as a job's acceptors. */
uint32_t core_ring(const struct core *core, const struct job_id *job, uint32_t max,
		   struct node_id *ret_nodes);

/*
 * Peers' tombstones of a job: true if a majority of the acceptors that one of them names have one.
 * says[i] is what nodes[i] has; state 0: nothing. An end that was chosen is final, so more than that
 * one acceptor knew it is not needed for the truth of it; it is for not going by one host's word.
 */
bool core_is_over(const struct core_tombstone *says, const struct node_id *nodes, uint32_t count);
