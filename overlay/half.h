/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The inside of the overlay half, shared by the sources in overlay/ itself.
 *
 *   channel.c  datagrams of the agent: channels, requests in flight, answers
 *   driver.c   events into the core, updates out of it
 *   fan.c      one call to several peers        objects.c  PUT, RETAIN; get.c GET
 *   habits.c   when this host is on             repair.c   copies that are missing
 *   trim.c     copies that are too many         pull.c     jobs that are over
 *   relay.c    LIST, ORDER, JOIN, INVITE        serve.c    what peers ask of us
 *   refusals.c what is refused: counted, told   newest.c   manifests without a register
 *   scrub.c    rot that nobody has met          credit.c   what others did for this host
 *   book.c     what this host did for others    coded.h    objects kept as shards
 *   link.h     how fast objects leave
 *
 * A request in flight is a struct request, known by its id; whoever finishes something later
 * looks it up again, as its channel may have been closed meanwhile.
 */
#pragma once

#include <sys/queue.h>
#include <systemd/sd-event.h>

#include "overlay/core/credit.h"
#include "overlay/core/forecast.h"
#include "overlay/core/holders.h"
#include "overlay/link.h"
#include "overlay/net/net.h"
#include "overlay/overlay.h"
#include "overlay/store/store.h"
#include "overlay/store/worker.h"

enum {
	OVERLAY_CHANNELS_MAX = 256,
	OVERLAY_REQUESTS_MAX = 512,
	OVERLAY_EVENTS_SOFT_MAX = 1024, /* unread by the agent: repeated news are dropped */
	OVERLAY_EVENTS_MAX = 4096,	/* unread by the agent: it does not live any more */
	OVERLAY_REQUEST_MS = 60 * 1000,
	OVERLAY_LEAVE_MS = 300, /* for the last messages to leave */
	OVERLAY_PUT_STALL_MS = 10 * 1000,
	OVERLAY_GET_STALL_MS = 12 * 1000, /* not how long a slow holder costs: see SLOW below */
	OVERLAY_GET_WIDTH = 3,		  /* holders asked for one object at a time */
	OVERLAY_GET_LOOK_MS = 100,	  /* how often it is looked how they do */
	OVERLAY_GET_SLOW_MS = 500,	  /* nothing moved for so long: the next one is asked too */
	OVERLAY_GET_LONG_MS = 5000,	  /* drop by drop is no better */
	OVERLAY_LIARS_MAX = 16,
	OVERLAY_LIAR_MS = 10 * 60 * 1000,
	OVERLAY_LIST_STALL_MS = 3 * 1000,
	OVERLAY_ORDER_MS_MAX = 120 * 1000,
	OVERLAY_PUT_CANDIDATES_MAX = 32,
	OVERLAY_FAN_WIDTH = 16,
	OVERLAY_LIST_MAX = 4 * OV_JOBS_MAX,
	OVERLAY_READS_MAX = 32,		    /* objects being read for peers */
	OVERLAY_LENT_BYTES_MAX = 256 << 20, /* and read, but not sent yet */
	OVERLAY_HEARD_MAX = 128,
	OVERLAY_TELLS_MAX = 256,
	OVERLAY_REFUSALS_MS = 60 * 1000,
	OVERLAY_PINS_MAX = 256,
	OVERLAY_RING_MAX = 32,		   /* members asked whether they buried a job */
	OVERLAY_RECEIPTS_MAX = 64,	   /* of peers, waiting for the disk */
	OVERLAY_CREDIT_VERIFY_MAX = 65536, /* signatures looked at for one OV_CREDIT */
};

/* call_id of an order to ourselves, which has no peer to answer. */
#define OVERLAY_LOCAL_CALL (UINT64_C(1) << 63)
/* request_id of the one read of a register that is pull's own. */
#define OVERLAY_PULL_ID (UINT64_C(1) << 62)

struct queued_msg {
	STAILQ_ENTRY(queued_msg) next;
	int fd;
	struct ov_msg msg;
};

struct channel {
	LIST_ENTRY(channel) entry;
	struct overlay *overlay;
	int fd;
	bool is_main;
	sd_event_source *io;
	STAILQ_HEAD(, queued_msg) queue;
	unsigned int queued;
};

struct request {
	LIST_ENTRY(request) entry;
	struct overlay *overlay;
	struct channel *channel;
	uint64_t id;
	uint64_t deadline_ms;
	int deadline_status;
	int fd;	     /* what the agent sent along, or -1 */
	void *state; /* of the operation; cancel() frees it */
	void (*cancel)(struct request *request);
	struct ov_msg msg;
};

/* What this host has learned of itself; see core/forecast.h. */
struct habits {
	struct core_forecast forecast;
	uint8_t closed[FORECAST_CLOSED_BYTES];
	uint64_t noted_ms, saved_ms;
};

/* What peers said of who has what: to the disk in batches, as each costs a sync. */
struct heard {
	uint32_t count;
	uint64_t since_ms;
	struct ov_object objects[OVERLAY_HEARD_MAX];
};

/* One round at a time looks at all that lies here; one object at a time is sent. */
struct repair {
	struct core_place_rule rule;
	struct core_bucket bucket;
	uint32_t round_ms;
	uint64_t next_ms;
	struct store_item *items; /* of this round, in order */
	uint32_t count, at;
	bool listing;
	struct repair_op *op; /* the object on its way */
	struct heard heard;
	LIST_HEAD(, tell) tells; /* on their way */
	uint32_t tell_count;
};

struct surplus {
	struct core_repair_item rank;
	struct ov_object object;
};

/* A copy that another host counts on while it gives up its own. */
struct pin {
	struct job_id job;
	struct object_hash hash;
	uint64_t until_ms;
};

/* One copy at a time is given up. */
struct trim {
	struct surplus *items; /* of repair's last round, in order */
	uint32_t count, at;
	uint64_t surplus_bytes; /* of those that are left */
	struct trim_op *op;
	struct pin pins[OVERLAY_PINS_MAX];
};

/* One job at a time is asked for. */
struct pull {
	uint32_t round_ms, forget_ms;
	uint64_t round_at_ms, next_ms;
	uint64_t asked_ms, between_ms; /* the last round's start; to that from the one before */
	struct store_job *jobs;	       /* of this round */
	uint32_t count, at;
	struct pull_op *op;
};

/* One object at a time is read; then those are told of who had what was lost here. */
struct scrub {
	struct core_bucket bucket;
	uint32_t age_ms;
	uint64_t next_ms, tell_ms; /* the next pass; the next look at what was lost */
	uint64_t owed_bytes;	   /* read, but not taken from the bucket yet */
	struct object_hash at;
	struct scrub_op *op;
};

/* A peer that returned other bytes than it was asked for. */
struct liar {
	struct node_id node;
	uint64_t until_ms;
};

/* A receipt of a peer whose answer waits for the disk. */
struct owed_reply {
	uint64_t served;
	uint8_t kept[CORE_RECEIPT_BYTES];
};

/* Both ledgers; absent (credit is NULL) where there is no memory for them. */
struct credit {
	struct core_credit *credit; /* this host's debts */
	struct core_book *book;	    /* receipts of others */
	uint8_t secret[32], cluster_public[32], public[32];
	uint32_t round_ms;
	uint64_t next_ms, book_next_ms;
	bool saving, changed, book_changed;
	bool book_saving;	    /* the book is part of it */
	struct core_receipt *sends; /* of this round */
	uint32_t send_count, send_at;
	uint64_t call_id; /* of the one on its way */
	bool calling;
	struct owed_reply owed[OVERLAY_RECEIPTS_MAX];
	uint32_t owed_count, owed_saving; /* those in front are being saved */
	uint64_t forged, foreign, older;
	bool asking; /* an OV_CREDIT is under way */
};

/* Of groups, like repair; one at a time. */
struct rebuild {
	uint64_t next_ms;
	struct store_group *items; /* of this round, in order */
	uint32_t count, at;
	struct rebuild_op *op;
};

/* Of shards that another host has as well, one at a time. */
struct shed {
	struct store_group *items; /* of this round */
	uint32_t count, at;
	struct object_hash after; /* where the last look ended */
	struct shed_op *op;
};

struct overlay {
	sd_event *event;
	sd_event_source *core_timer, *sweep;
	struct channel *main;
	LIST_HEAD(, channel) channels;
	unsigned int channel_count;
	LIST_HEAD(, request) requests;
	unsigned int request_count;
	uint64_t next_id;
	struct store *store;
	struct store_worker *worker;
	struct net *net;
	unsigned int reads; /* objects being read for peers */
	/* from OV_CLUSTER_START on */
	struct core *core;
	struct node_id self;
	uint8_t cluster_public[32];
	uint64_t started_ms;
	struct member_state_report report;
	bool reported;
	uint64_t report_ms;
	uint64_t announced; /* the incarnation that the disk remembers: no higher one is spoken of */
	struct habits habits;
	struct repair repair;
	struct ov_refusals refusals_told;
	uint64_t refusals_ms; /* when they were told, 0: never */
	struct trim trim;
	struct pull pull;
	struct scrub scrub;
	struct liar liars[OVERLAY_LIARS_MAX];
	struct credit credit;
	struct rebuild rebuild;
	struct shed shed;
	uint32_t coded_ops; /* objects being put together or cut */
	struct link_speed link;
};

extern const struct net_handlers overlay_net_handlers;

/* channel.c */
int channel_add(struct overlay *overlay, int fd_take, bool is_main);
void channels_close(struct overlay *overlay);
/* An event for the agent. Repeated ones (leases, members) may be dropped if it does not read. */
void overlay_event(struct overlay *overlay, const struct ov_msg *msg);
struct request *request_find(struct overlay *overlay, uint64_t id);
/* Answers with request->msg.u as it stands, frees the request; fd_take may be -1. */
void request_finish(struct request *request, int status, int fd_take);
void requests_sweep(struct overlay *overlay, uint64_t now_ms);

/* driver.c */
int driver_start(struct overlay *overlay, const struct ov_identity *identity,
		 const struct ov_start *start);
/* A core request: answered by the core, at once or later. */
void driver_request(struct request *request, enum core_request kind);
void driver_report(struct overlay *overlay);
void driver_leave(struct overlay *overlay);
void driver_greet(struct overlay *overlay, const struct node_card *card, const char *addr,
		  uint16_t port);
void driver_message(struct overlay *overlay, const struct node_id *from, const void *bytes,
		    size_t size);
void driver_stop(struct overlay *overlay);
/* Reads a register for pull_answer(). */
void driver_pull(struct overlay *overlay, const struct job_id *job);
/* Other members that may be alive, best first; returns the count. The caller frees. */
uint32_t driver_live_peers(struct overlay *overlay, struct node_id **ret_nodes);
/* The registers kept here, as a memfd of struct job_value[]. */
int driver_registers(struct overlay *overlay, int *ret_memfd, uint32_t *ret_count);

/* habits.c: from driver_start() on. */
void habits_start(struct overlay *overlay, const uint8_t closed[FORECAST_CLOSED_BYTES]);
/* Counts the time since the last call; what the report says now. */
uint32_t habits_stays(struct overlay *overlay);
void habits_save(struct overlay *overlay);

/* refusals.c: what is sent to this host and has no business there. */
void refusals_get(const struct overlay *overlay, struct ov_refusals *ret_refusals);
/* A line in the log if there are new ones, at most once a minute. */
void refusals_tick(struct overlay *overlay, uint64_t now_ms);

/* repair.c: from driver_start() on. */
void repair_start(struct overlay *overlay, const struct ov_start *start);
void repair_tick(struct overlay *overlay, uint64_t now_ms);
void repair_stop(struct overlay *overlay);
/* Says to all object->holders who they are, once; they repair it if the owner is gone. */
void repair_tell(struct overlay *overlay, const struct ov_object *object);
/* A peer says who has an object of which this host keeps a copy. Dropped if too many say so. */
void repair_heard(struct overlay *overlay, const struct ov_object *object);

/* trim.c */
/* Which of all that lies here is surplus: once a round. */
void trim_look(struct overlay *overlay, const struct store_item *items, uint32_t count);
void trim_tick(struct overlay *overlay, uint64_t now_ms);
void trim_stop(struct overlay *overlay);
/* Not to be given up for a while. -EBUSY: it is being given up; -EAGAIN: too many are kept so. */
int trim_pin(struct overlay *overlay, const struct job_id *job, const struct object_hash *hash);
bool trim_is_pinned(const struct overlay *overlay, const struct job_id *job,
		    const struct object_hash *hash);

/* shed.c: it is, maybe, given up in a moment. */
bool shed_is_leaving(const struct overlay *overlay, const struct job_id *job,
		     const struct object_hash *hash);

/* pull.c: from driver_start() on. */
void pull_start(struct overlay *overlay, const struct ov_start *start);
void pull_tick(struct overlay *overlay, uint64_t now_ms);
void pull_stop(struct overlay *overlay);
/* The register's answer to driver_pull(); value may be NULL. */
void pull_answer(struct overlay *overlay, int status, const struct job_value *value);

/* scrub.c: from driver_start() on. */
void scrub_start(struct overlay *overlay, const struct ov_start *start);
void scrub_tick(struct overlay *overlay, uint64_t now_ms);
void scrub_stop(struct overlay *overlay);

/* credit.c: from driver_start() on. Nothing of it fails anything else. */
void credit_start(struct overlay *overlay, const struct ov_identity *identity,
		  const struct ov_start *start);
void credit_tick(struct overlay *overlay, uint64_t now_ms);
/* Saves what is not on the disk yet. */
void credit_stop(struct overlay *overlay);
/* All object->holders have fsynced it; or the first one served it, whole, for a restore. */
void credit_put(struct overlay *overlay, const struct ov_object *object);
void credit_got(struct overlay *overlay, const struct ov_object *object);
/*
 * The same for an object in shards: group->holders have fsynced one each; served[0..k+m) gave one,
 * zero: none. The ledger knows each shard by the group's name, as RETAIN does.
 */
void credit_coded(struct overlay *overlay, const struct ov_group *group);
void credit_gathered(struct overlay *overlay, const struct ov_object *object,
		     const struct ov_group *group, const struct node_id *served);
/* These answered; hashes as the agent gave them, in its file. lost: the job is another host's. */
void credit_retained(struct overlay *overlay, const struct ov_retain *retain, int hashes_fd,
		     const struct node_id *answered, uint32_t answered_count, bool lost);
bool credit_signed_by(const struct overlay *overlay, const struct core_receipt *receipt,
		      const uint8_t key[static 32]);
/* Writes the book if it is time to; then all who wait for that are answered. */
void credit_save(struct overlay *overlay);

/* book.c */
int serve_receipt(struct overlay *overlay, uint64_t served, const struct node_id *from,
		  const struct net_call *call);
int serve_credit(struct overlay *overlay, uint64_t served);
/* Answers those whose receipts are on the disk now, or are not to be. */
void book_saved(struct overlay *overlay, int status);
void credit_find(struct request *request);

/* fan.c: the same call to several members, a few at a time, until enough have said yes. */
struct fan;

struct fan_leg {
	struct fan *fan;
	struct node_id node;
	uint64_t id;
	bool active, retried;
	void *state; /* owner's, one per leg; see fan_ops.begin */
};

struct fan_ops {
	/* Part of a reply's stream; optional. */
	int (*data)(struct fan_leg *leg, uint32_t total, const uint8_t *bytes, size_t size);
	/* Another try starts on this leg: forget the last one's data; optional. */
	void (*begin)(struct fan_leg *leg);
	/* The inline bytes of a good reply; optional, comes before result. */
	void (*answer)(struct fan_leg *leg, const uint8_t *bytes, size_t size);
	/* One target answered or failed; true counts as a yes. */
	bool (*result)(struct fan_leg *leg, int status);
	/* All over; may free the fan with fan_free(). Never called from within fan_start(). */
	void (*finished)(struct fan *fan);
};

struct fan {
	struct overlay *overlay;
	const struct fan_ops *ops;
	void *owner;
	struct net_call call;
	int stream_fd; /* borrowed */
	uint32_t stall_ms;
	uint32_t wanted, width;	 /* yeses; calls at a time, at most OVERLAY_FAN_WIDTH */
	bool first_wins;	 /* enough yeses: calls still under way are called off */
	struct node_id *targets; /* freed by fan_free() */
	uint32_t target_count;
	/* private */
	uint32_t next, active, yes, spare;
	sd_event_source *finish;
	struct fan_leg legs[OVERLAY_FAN_WIDTH];
};

int fan_start(struct fan *fan);
void fan_free(struct fan *fan);
/* One call more than are wanted from now on, if there is somebody left to ask. */
void fan_hedge(struct fan *fan);

/* objects.c, get.c, relay.c: the operations; each finishes its request */
void object_put(struct request *request);
void object_get(struct request *request);
void object_retain(struct request *request);
void relay_list(struct request *request);
void newest_find(struct request *request); /* newest.c */
void relay_order(struct request *request);
void relay_order_reply(struct overlay *overlay, const struct ov_msg *msg);
void relay_join(struct request *request);
void relay_join_reply(struct overlay *overlay, const struct ov_msg *msg);

/* A file of the other half: its size if it is a regular file of at most `max` bytes. */
int memfd_size(int fd, uint64_t max, uint64_t *ret_size);
