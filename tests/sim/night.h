/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A lab whose rooms close every night, and the checkpoints in it.
 *
 *   hosts that come and go -> forecasts -> choices and repairs of overlay/core -> flows -> judge
 *
 * Hosts: rooms of equal size. Some rooms close from 20:00 to 8:00; each host goes and comes within
 * 15 minutes of that. All hosts also fail by themselves: on for 8 h on average, off for as long as
 * makes `off_percent` of all time, both exponential. Disks are wiped every wipe_days on average:
 * the copies are gone and so is what the host knew of itself.
 * Knowledge: none; the truth; or what each host learned of itself from nothing but its own past and
 * says in its report every 10 minutes. First choice, diversion, forecast, repair, its order, its
 * bucket and the giving up of surplus copies are the product's (overlay/core/forecast.h, holders.h).
 * What is surplus is counted every 30 minutes and goes when room is short, looked at every minute.
 * Network: a transfer gets an equal share of its sender's and of its receiver's link, the smaller
 * of both; it fails when one of them goes. Steps of 10 s; repair is looked at every 5 minutes.
 * Shards, if they are asked for: four hours after it was put, and then every twelve, an object becomes
 * shards if overlay/core/spread.h finds hosts; the same decides who makes which again and where they
 * go. A host puts one object together at a time; it reads k - 1 shards and sends those that miss, at
 * what is left of its own link. Who came back less than half an hour ago makes none. A shard that was
 * made again while its host was away takes room there until that comes back and has read the other
 * one; it is not counted.
 * Judge: a checkpoint is unavailable while none of its copies, or fewer than k of its shards, are on
 * hosts that are on; lost when as many are not left at all.
 *
 * Threading: none shared. Errors of the harness itself abort.
 */
#pragma once

#include "overlay/core/spread.h"

enum { NIGHT_DAYS_MAX = 400, NIGHT_STEP_S = 10, NIGHT_CLOSES_H = 20, NIGHT_OPENS_H = 8 };

enum night_knowledge {
	NIGHT_BLIND,
	NIGHT_CLASS, /* which hosts stay, and nothing in the weights */
	NIGHT_PERFECT,
	NIGHT_LEARNED,
	NIGHT_CONFIGURED, /* learned, and closing hours are in the configuration */
};

struct night_setup {
	const char *name;
	uint64_t seed;
	uint32_t hosts, rooms, closing; /* of them, rooms 0.. close */
	uint32_t learn_days, days;	/* judged: days after learn_days */
	uint32_t objects;
	enum night_knowledge knowledge;
	struct core_place_rule rule;
	bool repair;
	bool coded; /* objects become shards */
	struct core_scheme scheme;
	bool weekends;	      /* rooms that close stay closed on Saturdays and Sundays */
	uint32_t holiday_day; /* and on this day; 0: none */
	uint32_t change_day;  /* from this night on one more room closes, 0: never; */
	bool swap;	      /* and one less */
	uint32_t off_percent;
	uint32_t wipe_days;
	uint64_t object_bytes, quota_bytes;
	uint64_t link_bytes_s, repair_bytes_s;
};

struct night_result {
	double unavailable, by_night, by_day; /* share of object time */
	double nightly[NIGHT_DAYS_MAX];	      /* of the night that begins on that day */
	double repairs;			      /* object sizes per object and day */
	double stored;			      /* of an object's size, at the end of the run */
	/* Of objects that were shards, while they were. */
	double coded_unavailable, coded_by_night, coded_by_day;
	double coded;	      /* share of objects, at the end */
	double coded_size;    /* what they take, of an object's size */
	uint32_t schemes[3];  /* 4+2, 4+4, 8+8 */
	double storm_wanted;  /* most objects that wanted repair at one time, as a share */
	double storm_evening; /* the same, within the hour after closing */
	double storm_sent;    /* most bytes sent in 5 minutes, as a share of all objects */
	double wrong_leaves;  /* share of host hours: it was to stay, and was held for leaving */
	double wrong_stays;   /* it was to close within a day, and was held for staying */
	uint64_t lost, given_up, failed_flows, refused, wipes;
};

/* What all runs have in common; change what a case is about. */
struct night_setup night_default(uint64_t seed, uint32_t hosts, uint32_t days, uint32_t objects);
void night_run(const struct night_setup *setup, struct night_result *ret_result);

/* First night, counted from change_day, after which `nights` in a row stay below the target. */
uint32_t night_relearned(const struct night_setup *setup, const struct night_result *result,
			 double target, uint32_t nights);
