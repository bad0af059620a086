/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The inside of the night: night.c the run and its judge, night_hosts.c, night_store.c. */
#pragma once

#include "overlay/core/forecast.h"
#include "tests/sim/night.h"
#include "tests/sim/simnet.h"

enum {
	COPIES_MAX = CORE_COPIES_MAX,
	FLOWS_MAX = 4096,
	NOTE_S = 600,	  /* a host counts its time and reports */
	REPAIR_S = 300,	  /* repair is looked at */
	SURPLUS_S = 1800, /* what could be given up is counted */
	HOUR = 3600,
	DAY = 24 * HOUR,
};

struct host {
	struct node_id id;
	char room[OV_NAME_MAX];
	uint32_t room_index, jitter_s;
	bool up, on; /* by itself; and the room is open */
	uint64_t flips_s, wiped_s, off_since_s, on_since_s, noted_s;
	struct core_forecast forecast;
	uint32_t stays; /* as it said last */
	uint64_t used_bytes, said_free_bytes, surplus_bytes;
	uint64_t superseded_bytes; /* shards here that were made again elsewhere meanwhile */
	bool rebuilding;
	struct core_bucket bucket;
	uint32_t flows_out, flows_in;
};

/* Of an object with a scheme: its shards, in order. */
struct copy {
	uint32_t host;
	struct node_id id; /* of the host then; shards only */
	bool wiped;
	bool arriving;
	uint64_t wiped_s;
};

struct object {
	bool committed, lost, rebuilding;
	struct object_hash hash;
	uint64_t commit_s;
	uint32_t count, there;
	uint64_t piece_bytes;
	uint32_t k, m, need;	   /* need: pieces that make the object */
	uint64_t coded_s, again_s; /* again: shards were not possible, or not worth it */
	uint64_t down_s;	   /* since when too few are there */
	struct copy copies[COPIES_MAX];
};

struct flow {
	uint32_t object, from, to;
	double left_bytes;
};

struct wanted {
	uint32_t object, rank;
};

/* A host gathers shards, makes others and sends them. */
struct shard_op {
	uint32_t object, actor, want, placed;
	struct node_id actor_id, target_id[OV_SHARDS_MAX];
	uint32_t target[OV_SHARDS_MAX];
	bool stable_only;
	double left_bytes;
};

/* Seconds in which objects could not be read. */
struct down {
	double night_s, day_s;
};

struct night {
	struct night_setup set;
	struct simnet_dice dice;
	uint64_t now_s, begin_s, end_s;
	struct host *hosts;
	struct object *objects;
	struct flow *flows;
	uint32_t flow_count;
	double sent_bytes, sent_span; /* in all; in these 5 minutes */
	struct core *core;	      /* the table of members; NULL: copies only */
	struct shard_op *ops;
	uint32_t op_count;
	struct wanted *wanted;
	uint32_t wanted_count;
	struct down down, down_coded;
	double nightly_s[NIGHT_DAYS_MAX + 1];
	uint64_t hours_judged, wrong_leaves, wrong_stays;
	struct night_result result;
};

/* night_hosts.c */
void night_hosts_init(struct night *n);
void night_hosts_step(struct night *n); /* calls the store's functions below */
bool night_is_closed(const struct night_setup *set, uint32_t room, uint64_t time_s);
double night_exponential(struct night *n, double mean_s);

/* night_store.c */
void night_store_commit(struct night *n, uint32_t object);
void night_store_came(struct night *n, uint32_t host);
void night_store_went(struct night *n, uint32_t host);
void night_store_wiped(struct night *n, uint32_t host);
void night_store_repair(struct night *n);
void night_store_flows(struct night *n);
void night_store_surplus(struct night *n);
void night_store_trim(struct night *n);

void night_store_one_more(struct night *n, struct object *object);
void night_store_one_less(struct night *n, struct object *object);
uint32_t night_live_host(struct night *n); /* any, or set.hosts */

/* night_shards.c */
void night_table_init(struct night *n);
void night_table_host(struct night *n, uint32_t host);	/* it says something, comes or goes */
void night_table_leave(struct night *n, uint32_t host); /* for good, under this id */
void night_table_join(struct night *n, uint32_t host);
void night_shards_code(struct night *n);
void night_shards_look(struct night *n);
void night_shards_step(struct night *n);

/* night.c: the judge */
void night_was_down(struct night *n, const struct object *object);
