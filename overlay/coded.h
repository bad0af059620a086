/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Objects that are kept as shards, inside of the overlay half; docs/erasure.md.
 *
 *   coded.c    CODE: encode, scatter, tell; GET: group, gather, decode
 *   scatter.c  shards to hosts, each to one of its own
 *   gather.c   k shards from whoever has them
 *   rebuild.c  shards that are missing
 *   shed.c     shards that another host has by now
 */
#pragma once

#include "overlay/core/spread.h"
#include "overlay/half.h"
#include "overlay/shard.h"

enum {
	CODED_OPS_MAX =
		16, /* objects put together or cut at one time: 20 MiB and its shards each */
	GATHER_LEGS_MAX = 16,
	GATHER_ASKS_MAX = 1024, /* pairs of a shard and a member that may have it */
	SCATTER_LEGS_MAX = 4,
	SCATTER_REFUSED_MAX = 48,
	SHED_ROUND_MAX = 128, /* groups looked at in a round */
};

/* --- gather.c ---------------------------------------------------------------------------- */

struct gather;

struct gather_leg {
	struct gather *gather;
	uint32_t index;
	struct node_id node;
	uint64_t id, began_ms, moved_ms;
	bool active, retried, hedged;
	uint8_t *bytes;
	uint32_t received;
	void *digest; /* EVP_MD_CTX */
};

struct gather_ask {
	uint32_t index;
	struct node_id node;
};

struct gather {
	struct overlay *overlay;
	struct ov_group group;
	struct shard_head head;
	uint32_t bytes; /* of a shard */
	uint32_t have;	/* mask; at least k bits at done(0) */
	uint8_t *shards[OV_SHARDS_MAX];
	struct node_id served[OV_SHARDS_MAX]; /* by whom; zero: it lay here */
	/* Once; never from within gather_start(). It may call gather_free(). */
	void (*done)(struct gather *gather, int status);
	void *owner;
	/* private */
	struct store_task task;
	bool reading, dead, widely;
	int status;
	struct gather_ask *asks;
	uint32_t ask_count, ask_next, active, spare;
	sd_event_source *finish, *timer;
	struct gather_leg legs[GATHER_LEGS_MAX];
};

/* k shards of this group: those here, then those of named holders, then whoever has one. */
int gather_start(struct overlay *overlay, const struct ov_group *group,
		 void (*done)(struct gather *gather, int status), void *owner,
		 struct gather **ret_gather);
void gather_free(struct gather *gather); /* NULL is fine */
/* Room for one more shard that is to be made from these. */
int gather_room(struct gather *gather, uint32_t index);

/* --- scatter.c --------------------------------------------------------------------------- */

struct scatter;

struct scatter_leg {
	struct scatter *scatter;
	uint32_t index;
	struct node_id node;
	uint64_t id;
	bool active, retried;
};

struct scatter {
	struct overlay *overlay;
	struct ov_group *group; /* borrowed; a holder is written when it has its shard */
	uint32_t want; /* mask: to be placed; those that are not wanted have their holders */
	int fds[OV_SHARDS_MAX]; /* borrowed */
	bool stable_only;
	struct node_id refused[SCATTER_REFUSED_MAX];
	uint32_t refused_count;
	/* Once; never from within scatter_start(). It may call scatter_stop(). */
	void (*done)(struct scatter *scatter, int status);
	void *owner;
	/* private */
	uint32_t placed, active, size;
	int status;
	sd_event_source *finish;
	struct scatter_leg legs[SCATTER_LEGS_MAX];
};

/* The owner fills in what is not private, and owns it. */
int scatter_start(struct scatter *scatter);
void scatter_stop(struct scatter *scatter);

/* --- coded.c ----------------------------------------------------------------------------- */

void coded_put(struct request *request);
/* Takes a GET over from the operation that found out; teller: who has a shard, maybe self. */
void coded_get(struct request *request, const struct node_id *teller);
/* objects.c: whole copies only, wherever they are. */
void object_get_whole(struct request *request);

/* --- rebuild.c --------------------------------------------------------------------------- */

void rebuild_tick(struct overlay *overlay, uint64_t now_ms);
void rebuild_stop(struct overlay *overlay);

/* --- shed.c ------------------------------------------------------------------------------ */

/* All groups of which something lies here: once a round. */
void shed_look(struct overlay *overlay, const struct store_group *items, uint32_t count);
void shed_tick(struct overlay *overlay, uint64_t now_ms);
void shed_stop(struct overlay *overlay);
