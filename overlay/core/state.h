/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The inside of struct core, shared by the core's own sources only.
 *
 *   core.c      the door: step, outbox, local delivery      member.c   table of members
 *   swim.c      probes, suspicion               sync.c     comparison of tables
 *   job.c       table of jobs, acceptor sets, learning      acceptor.c rules A1, A2, A4
 *   request.c   what is asked of the register
 *   proposer.c  operations on the register                  decide.c   what they propose
 *   lease.c     the owner's renewals
 *   guardian.c  lapsed, idle and ended jobs      epoch.c    acceptors that change
 *   place.c     rings and choices
 *
 * All times are now_ms of the events unless a name says boot_ns. No function here blocks or fails
 * for lack of room in the outbox: a message that does not fit is lost, as on a network.
 */
#pragma once

#include "overlay/core/codec.h"
#include "overlay/core/ring.h"
#include "overlay/ipc.h"

enum {
	CORE_OPS_MAX = 128,		   /* operations in flight on one node */
	CORE_PROBES = 3,		   /* members probed in one round; one in a large cluster */
	CORE_PROBES_FULL = 32,		   /* members up to which that many are probed */
	CORE_PROBES_MAX = 2 * CORE_PROBES, /* with those that are asked a second time */
	CORE_PACE_MEMBERS = 256,	   /* so many more members: probes come that much slower, */
	CORE_PACE_MAX = 3,		   /* but not slower than that */
	CORE_RELAYS_MAX = 32,		   /* probes on behalf of others */
	CORE_SENDS_MAX = 2048,		   /* messages of one step */
	CORE_ARENA_BYTES = 1 << 20,	   /* and their bytes */
	CORE_WRITES_MAX = 64,
	CORE_ANSWERS_MAX = 64,
	CORE_NOTICES_MAX = 64,
	CORE_BROADCAST_MAX = 64, /* members told at once; the rest hear it by gossip */
	CORE_INDEX_SLOTS = 4096, /* hash index, > 2 * the larger table */

	CORE_OP_TIMEOUT_MS = 8000, /* then -EAGAIN */
	CORE_RESEND_MS = 500,	   /* of a lost message; more seldom later */
	CORE_RELOCATE_MS = 4000,   /* the first wait of core_job_relocate(), and the last: */
	CORE_RELOCATE_MAX_MS = 64000,
	CORE_FAILURES_MAX = 5,		    /* the wait after a failure doubles so often: to 16 s */
	CORE_SETTLE_MS = 150,		    /* wait for promises beyond the quorum */
	CORE_RANK_MS = 2000,		    /* guardian of rank n waits n times this long */
	CORE_JOB_LOOK_MS = 5000,	    /* a job is looked at that often whatever is due */
	CORE_SETTLED_MS = 5000,		    /* since start: the member table is filled by then */
	CORE_GUARD_RETRY_MS = 1000,	    /* no worker fits: look again */
	CORE_BARREN_MAX = 3,		    /* that wait doubles so often: to 8 s */
	CORE_CONFIRM_MS = 10000,	    /* does the register say something newer? */
	CORE_DONE_NOTICE_MS = 3000,	    /* tell the home host again */
	CORE_TOMBSTONE_MS = 10 * 60 * 1000, /* ended jobs are remembered at least so long */
	CORE_REPLACE_MS = 60 * 1000,	    /* an acceptor that is silent for so long is replaced */
	CORE_MEMBERS_MS = 5000,		    /* how often that is looked at */
	CORE_SETTLE_EPOCH_MS = 1000,	   /* a change of acceptors that stands still is finished */
	CORE_CLOSE_MS = 3000,		   /* CLOSE again */
	CORE_JOIN_MS = 2000,		   /* asks to be installed, again */
	CORE_SIGNPOST_MS = 10 * 60 * 1000, /* a former acceptor asks whether the job still is */
	CORE_MINOR_REPORT_MS = 5000,	   /* gossip of mere load and memory changes */
};

enum { CORE_NONE = UINT32_MAX };

/* Rows of the member table that need something: never a walk over all rows for a few. */
struct row_set {
	uint16_t *rows;
	uint16_t *places; /* in rows, + 1; 0: not in it */
	uint32_t count;
};

/* One cache line is all that probing needs of a row: up to info.incarnation. */
struct member {
	uint64_t heard_ms;
	uint64_t suspect_until_ms;
	bool card_is_news; /* it rides along with its card */
	bool found_silent; /* suspected by this host itself, not by hearsay */
	uint32_t grants;   /* jobs we gave it since its last report */
	struct member_info info;
	struct node_card card;
	uint64_t digest; /* what this row is in the table's digest */
	uint64_t granted_ms;
	uint64_t reserved[8]; /* whole lines */
};
_Static_assert(offsetof(struct member, info.silent_ms) <= 64 && sizeof(struct member) % 64 == 0,
	       "the first line is enough, for every row if the table begins with a line");

struct probe {
	bool active, acked;
	struct node_id target;
	uint64_t seq;
	uint64_t since_ms;  /* of the first round in which it was asked */
	uint64_t first_seq; /* asked for the second time: 0, or the first one's */
};

struct relay {
	struct node_id origin, target;
	uint64_t origin_seq, seq, until_ms;
};

/* The owner's side of a lease. */
struct lease {
	bool active, waiting, had_quorum;
	struct fence_token token;
	uint64_t seq;
	uint64_t sent_ms, sent_boot_ns; /* of this round's first message: rule O1 */
	uint64_t resend_ms;
	uint64_t run_until_ms;
	uint32_t acked, lost; /* masks over the acceptors, this round */
	uint64_t request_id;
	uint64_t answer_by_ms;
};

struct job {
	bool used, has_record, dirty, known, attempted, lost_pending;
	bool over;   /* an end that nothing can follow is chosen: no record is made any more */
	bool buried; /* the write that is due deletes the record of such an end */
	struct job_id id;
	/*
	 * The newest epoch this host knows to stand, or that it is installed in; count 0: none yet.
	 * With has_record and not installed it is a signpost: a former acceptor, or one to be.
	 */
	uint32_t epoch;
	struct core_acceptors acceptors;
	uint64_t max_counter;	  /* of any ballot seen or made */
	uint64_t attempt_counter; /* of our CREATE, in this life */
	uint64_t attempt_hash;
	uint32_t locate_row;		    /* the next one to be asked who keeps it */
	uint64_t locate_ms, locate_wait_ms; /* of its own accord not before that; the wait then */
	uint64_t touched_ms;
	uint64_t ask_ms;   /* nothing is asked of its own accord before that */
	uint32_t failures; /* operations that found no quorum, one after another */

	/* acceptor: durable */
	bool installed; /* of this epoch (I6: who is not never answers for it) */
	bool settled;	/* a majority of this epoch is installed; or nothing is known but that */
	struct core_acceptors previous, next; /* see struct core_record */
	struct core_ballot promised, accepted;
	struct job_value value;
	/* acceptor: volatile */
	uint64_t hold_until_ms, changed_ms;
	uint64_t guard_ms, grant_ms, done_ms, confirm_ms, unknown_since_ms;
	uint64_t members_ms, replace_ms, close_ms;
	uint64_t join_ms; /* named as an acceptor, but not installed: asks to be; 0: no */
	uint32_t closed;  /* mask over previous */
	uint32_t barren;  /* so many times no worker was found */
	bool renewed;

	/* newest value known to be chosen (owner, home, proposer) */
	struct core_ballot known_ballot;
	struct job_value known_value;

	struct lease lease;
	struct fence_token lost_token;
};

enum op_kind { OP_CREATE = 1, OP_CAS, OP_GET, OP_TAKE, OP_TAKEOVER, OP_REPLACE, OP_SETTLE };
enum op_phase { OP_WAIT = 1, OP_LOCATE, OP_READ, OP_PREPARE, OP_ACCEPT, OP_INSTALL, OP_BACKOFF };

struct op {
	bool used, has_request, finishing;
	bool then_grant; /* GET: tell the agent that it owns what was read */
	bool claim;	 /* TAKE: the owner takes it over from itself */
	bool located;	 /* has asked everybody who keeps the job, in vain so far */
	enum op_kind kind;
	enum op_phase phase;
	uint32_t job;		 /* index */
	uint32_t tries, resends; /* resends: in this phase */
	uint64_t request_id;
	uint64_t order; /* ops of one job run in this order */
	uint64_t deadline_ms, resend_ms, settle_ms, start_ms;
	uint64_t deadline_boot_ns; /* the same, by a clock that runs while the host sleeps */
	/* This round's acceptors. Those of an unsettled epoch are asked by way of the one before. */
	uint32_t epoch;
	struct core_acceptors set;
	struct core_ballot ballot;
	uint32_t promised, accepted, busy, unknown; /* masks over the acceptors */
	uint32_t moved;				    /* they are in the next epoch, unsettled */
	uint32_t refused;			    /* they have promised a higher ballot */
	uint64_t busy_until_ms[OV_REPLICAS_MAX];    /* when the hold of each that is busy is over */
	struct fence_token expected;		    /* TAKEOVER: the incarnation seen lapsed */
	struct node_id old_owner;
	struct job_value wish;	  /* CAS, CREATE; target in TAKE */
	struct job_value sending; /* ACCEPT, INSTALL */
	struct core_acceptors sending_next, previous;
	bool previous_known;
	struct core_ballot seen[OV_REPLICAS_MAX];
	struct job_value values[OV_REPLICAS_MAX];
	struct core_acceptors nexts[OV_REPLICAS_MAX];
	uint8_t denied[OV_MEMBERS_MAX / 8]; /* members that do not know the job */
};

/*
 * What lives for one step only: the update and what it is made of. Cores of one thread may share
 * one, so that a thousand of them find it in the cache.
 */
struct core_scratch {
	struct core_update update;
	struct core_send sends[CORE_SENDS_MAX];
	struct core_write writes[CORE_WRITES_MAX];
	struct core_answer answers[CORE_ANSWERS_MAX];
	struct core_notice notices[CORE_NOTICES_MAX];
	uint32_t dirty[CORE_WRITES_MAX];
	uint32_t dirty_count;
	size_t arena_used;
	const uint8_t *sealed;
	size_t sealed_size;
	uint8_t arena[CORE_ARENA_BYTES];
	uint8_t records[CORE_WRITES_MAX][CORE_RECORD_BYTES_MAX];
	struct core_message in, out;
};

/* First what every step needs, close together; the tables follow. */
struct core {
	struct core_config config; /* the card, with our id, at its beginning */
	struct core_scratch *scratch;
	uint64_t now_ms, boot_ns, next_ms, born_ms;
	uint64_t random, seq;
	uint32_t member_count;
	uint32_t job_high; /* rows at and above were never used */
	uint32_t op_high;  /* operations at and above are free */
	uint32_t lost_count;
	uint32_t order_next, dead_row; /* dead_row: the last one passed over, 0: none */
	uint32_t next_row;	       /* the first of the next round */
	uint64_t round_ms, half_ms, dead_ping_ms, sync_ms, minor_ms;
	uint64_t suspects_ms;	   /* nothing is to be done for a suspect before */
	uint64_t hush_ms;	   /* rumours whose time is over are looked for then */
	uint64_t relayed_until_ms; /* no relay is waited for after that */
	uint64_t lost_life; /* rule A5: an incarnation that this host's disk has forgotten; 0: none */
	uint64_t wrote_ms; /* a register was written then that no incarnation told of yet; 0: none */
	bool left, self_minor, lost_told;
	bool jobs_touched; /* since the last tick: job_due_ms may be too late */
	uint64_t fetch_ms; /* when most of a table was asked for, the last time; of whom */
	struct node_id fetch_from;
	/* Rows that still ride along; that the agent is to hear of; that are suspected. */
	struct row_set hot, notify, suspects;
	struct probe probes[CORE_PROBES_MAX];

	uint64_t digests[CORE_BUCKETS];	    /* of all rows, kept up with every change */
	uint16_t bucket_rows[CORE_BUCKETS]; /* row + 1; the rest of the list: */
	uint16_t bucket_next[OV_MEMBERS_MAX];
	uint16_t member_index[CORE_INDEX_SLOTS]; /* row + 1 */
	uint16_t order[OV_MEMBERS_MAX]; /* in which rows are probed: shuffled each time through */
	/* Of rows in `hot`, close together: all of them are looked at, a few are told. */
	uint16_t transmits[OV_MEMBERS_MAX];	  /* how often a row still rides along */
	uint64_t spread_until_ms[OV_MEMBERS_MAX]; /* by then all have it, or compare tables */
	uint16_t set_rows[3][OV_MEMBERS_MAX], set_places[3][OV_MEMBERS_MAX];
	uint16_t ring[OV_MEMBERS_MAX];	       /* rows in ring order */
	uint64_t job_due_ms[OV_JOBS_MAX];      /* nothing is to be done for a job before */
	uint64_t reserved[6];		       /* a line's beginning */
	struct member members[OV_MEMBERS_MAX]; /* row 0: self */
	struct relay relays[CORE_RELAYS_MAX];
	uint32_t relay_next;

	struct job jobs[OV_JOBS_MAX];
	uint16_t job_index[CORE_INDEX_SLOTS];
	uint64_t counter_floor; /* ballots of forgotten rows */
	struct op ops[CORE_OPS_MAX];
	uint64_t op_order;
	struct core_refusals refusals;
	struct core_scratch own; /* unless the driver lent one */
};

_Static_assert(offsetof(struct core, members) % 64 == 0, "rows begin with a cache line");

static inline const struct node_id *core_self(const struct core *core)
{
	return &core->config.card.id;
}

/*
 * How many times slower than in a small cluster its members are probed. Nothing but placement
 * waits for the news of a death: a takeover waits for the hold. A death is known before that is
 * over even at the slowest pace, and the owner's machine is woken a third as often.
 */
static inline uint64_t core_pace(const struct core *core)
{
	uint32_t pace = 1 + core->member_count / CORE_PACE_MEMBERS;

	return pace < CORE_PACE_MAX ? pace : CORE_PACE_MAX;
}

static inline uint64_t core_round_ms(const struct core *core)
{
	return core->config.probe_ms * core_pace(core);
}

static inline uint64_t core_suspect_ms(const struct core *core)
{
	return core->config.suspect_ms * core_pace(core);
}

static inline bool core_job_id_equal(const struct job_id *a, const struct job_id *b)
{
	return __builtin_memcmp(a, b, sizeof(*a)) == 0;
}

/* core.c */
uint64_t core_mix(uint64_t x);
uint64_t core_random(struct core *core);
uint32_t core_below(struct core *core, uint32_t limit); /* 0 if limit is 0 */
void core_arm(struct core *core, uint64_t when_ms);
struct core_message *core_outbox_begin(struct core *core, enum core_message_type type);
void core_outbox_seal(struct core *core); /* encode what was begun, once for many receivers */
void core_outbox_to(struct core *core, const struct node_id *to);
void core_outbox_send(struct core *core, const struct node_id *to); /* seal + to */
struct core_answer *core_outbox_answer(struct core *core, uint64_t request_id, int status,
				       const struct job_value *value);
struct core_notice *core_outbox_notice(struct core *core, enum core_notice_type type);

/* member.c: the table */
/* Stage 0 before stage 1: what leads to a row, and so many bytes of it. Changes nothing. */
void core_member_prefetch(const struct core *core, const struct node_id *id, uint32_t stage,
			  size_t size);
/* Of the first so many rows in ring order, how many are before that position. */
uint32_t core_member_ring_place(const struct core *core, uint32_t count, struct ring_key key);
struct member *core_member_find(const struct core *core, const struct node_id *id);
bool core_member_is_alive(const struct core *core, const struct node_id *id);
int core_member_init(struct core *core);
void core_member_heard(struct core *core, const struct node_id *id);
/* True if it was news; spread: it rides along on our probes then. */
bool core_member_apply(struct core *core, const struct node_id *from,
		       const struct core_gossip *record, bool spread);
void core_member_set_add(struct core *core, struct row_set *set, const struct member *member);
void core_member_set_remove(struct core *core, struct row_set *set, const struct member *member);
void core_member_spread(struct core *core, struct member *member);
/* Tells everybody at once (up to a bound): what must not wait for the next probe round. */
void core_member_broadcast(struct core *core, struct member *about);
void core_member_hush(struct core *core, struct member *member);
void core_member_notify(struct core *core, struct member *member);
void core_member_changed(struct core *core, struct member *member);
void core_member_suspect_until(struct core *core, struct member *member, uint64_t until_ms);
void core_member_set_state(struct core *core, struct member *member, uint32_t state);
void core_member_add_record(struct core_message *m, const struct member *member);
void core_member_add_news(struct core_message *m, const struct member *member);
void core_member_send_digest(struct core *core, const struct node_id *to);
void core_member_compare(struct core *core, const struct node_id *from,
			 const struct core_message *m);
void core_member_summary(struct core *core, const struct node_id *from,
			 const struct core_message *m);
void core_member_report(struct core *core, const struct member_state_report *report);
void core_member_greet(struct core *core, const struct core_event *event);
void core_member_leave(struct core *core);

/* swim.c: the probing; sync.c */
void core_member_message(struct core *core, const struct node_id *from, struct core_message *m);
void core_member_tick(struct core *core);

/* job.c */
struct job *core_job_find(struct core *core, const struct job_id *id);
struct job *core_job_get(struct core *core,
			 const struct job_id *id); /* makes a row; NULL if full */
uint32_t core_job_row(const struct core *core, const struct job *job);
void core_job_forget(struct core *core, struct job *job);
bool core_job_mark_dirty(struct core *core, struct job *job); /* false: no room for its write now */
void core_job_saw(struct job *job, const struct core_ballot *ballot);
uint32_t core_job_quorum(const struct job *job);
uint32_t core_job_rank(const struct job *job, const struct node_id *id); /* or CORE_NONE */
uint32_t core_acceptors_rank(const struct core_acceptors *set, const struct node_id *id);
uint32_t core_acceptors_quorum(const struct core_acceptors *set);
/* A settled epoch: taken over if it is newer. True if it is the one this host goes by. */
bool core_job_move(struct core *core, struct job *job, uint32_t epoch,
		   const struct core_acceptors *set);
void core_job_learn(struct core *core, struct job *job, const struct core_ballot *ballot,
		    const struct job_value *value);
struct core_message *core_job_message(struct core *core, const struct job *job,
				      enum core_message_type type);
void core_job_locate(struct core *core, struct job *job);
/* The same when the acceptors that are known keep silent: more seldom each time, to once a minute. */
void core_job_relocate(struct core *core, struct job *job);
bool core_job_value_ended(const struct job_value *value);

/* acceptor.c */
/* next: NULL if the value seals nothing. */
bool core_acceptor_set_value(struct core *core, struct job *job, const struct core_ballot *ballot,
			     const struct job_value *value, const struct core_acceptors *next);
bool core_acceptor_holds(const struct core *core, const struct job *job);
int core_acceptor_load(struct core *core, const void *bytes, size_t size);
void core_acceptor_message(struct core *core, const struct node_id *from, struct core_message *m);

/* decide.c */
enum core_decision { DECIDE_END = 1, DECIDE_RETRY, DECIDE_SEND };
/* SEND: *ret_next, with *ret_set as its next acceptors unless that is empty. END: *ret_status. */
enum core_decision core_decide(struct core *core, struct op *op, const struct job_value *current,
			       struct job_value *ret_next, struct core_acceptors *ret_set,
			       int *ret_status);

/* proposer.c, request.c */
struct op *core_proposer_new(struct core *core, enum op_kind kind, struct job *job);
void core_proposer_enter(struct core *core, struct op *op);
void core_proposer_request(struct core *core, const struct core_event *event);
void core_proposer_takeover(struct core *core, struct job *job);
/* Another acceptor instead of one that is gone, or one more. */
void core_proposer_replace(struct core *core, struct job *job);
/* Finishes a change of acceptors that somebody began. */
void core_proposer_settle(struct core *core, struct job *job);
/* The job is at another epoch than its operations were begun in. */
void core_proposer_moved(struct core *core, struct job *job);
/* Learns what is chosen; then_grant: and gives it to the agent if this host owns it. */
void core_proposer_confirm(struct core *core, struct job *job, bool then_grant);
/* The agent of this host has asked for this state itself and waits for the answer. */
bool core_proposer_wishes(const struct core *core, const struct job *job, uint32_t state);
/* Of its own accord: takeover and replace are only begun if it is so. */
bool core_proposer_may_ask(const struct core *core, const struct job *job);
bool core_proposer_is_busy(const struct core *core, const struct job *job);
void core_proposer_message(struct core *core, const struct node_id *from, struct core_message *m);
void core_proposer_located(struct core *core, const struct job *job);
void core_proposer_denied(struct core *core, const struct node_id *from, const struct job_id *id);
void core_proposer_tick(struct core *core);
/* What the value becomes: 1 it is so already, 0 propose *ret_value, or -errno. */
int core_proposer_apply(const struct job_value *current, const struct job_value *wish,
			struct job_value *ret_value);

/* epoch.c */
void core_epoch_tell(struct core *core, const struct node_id *to, const struct job *job,
		     uint32_t epoch);
void core_epoch_announce(struct core *core, struct job *job, const struct core_acceptors *old);
void core_epoch_message(struct core *core, const struct node_id *from, struct core_message *m);
void core_epoch_named(struct core *core, const struct core_message *m);
void core_epoch_tick(struct core *core, struct job *job);

/* lease.c */
void core_lease_hold(struct core *core, const struct core_event *event);
void core_lease_drop(struct core *core, const struct core_event *event);
void core_lease_message(struct core *core, const struct node_id *from, struct core_message *m);
void core_lease_check(struct core *core, struct job *job, const struct job_value *chosen);
/* The acceptors are others now: renew with them. */
void core_lease_moved(struct core *core, struct job *job);
void core_lease_tick(struct core *core, struct job *job);

/* guardian.c */
void core_guardian_message(struct core *core, const struct node_id *from, struct core_message *m);
void core_guardian_tick(struct core *core, struct job *job);
void core_guardian_grant(struct core *core, struct job *job);
void core_guardian_granted(struct core *core, const struct job_value *value);

/* place.c */
void core_place_acceptors(const struct core *core, const struct job_id *id,
			  struct core_acceptors *ret_set);
/* The set with one member replaced or added, if that is due and somebody fits. */
bool core_place_replacement(const struct core *core, const struct job *job,
			    struct core_acceptors *ret_set);
/* -EHOSTUNREACH if nobody fits. `lapsed`: the owner went silent, prefer another. */
int core_place_worker(struct core *core, const struct job_value *value, bool lapsed,
		      struct node_id *ret_worker);
void core_place_granted(struct core *core, const struct node_id *worker);
struct core_copy;
/* What is known of a copy there. */
struct core_copy core_copy_at(const struct core *core, const struct node_id *id);
bool core_place_can_run(const struct member *member, const struct job_value *value);
