/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One whole run: hosts and jobs under faults drawn from the seed, then a quiet phase that must
 * converge. Safety is checked after every event, liveness at the end. Failure aborts.
 *
 * Short runs (up to SIM_DENSE_MINUTES) are dense: a fault every few seconds. Longer ones follow
 * the life of a lab: people come and go, rooms close at night, faults are rarer. After the quiet
 * phase comes one directed plan, see plans.c, and a second quiet phase.
 */
#pragma once

#include "tests/sim/hosts.h"

enum { SIM_DENSE_MINUTES = 20 };

struct chaos_result {
	uint64_t events, messages, chosen, commits, grants, jobs, ended, epochs, virtual_ms;
};

/* plans.c says what they are. */
enum chaos_plan {
	PLAN_NONE,
	PLAN_ABSENCE,
	PLAN_LEAVING,
	PLAN_STALL,
	PLAN_OBLIVION,
	PLAN_STRANGERS,
	PLAN_STANDSTILL,
	PLAN_AMNESIA,
	PLAN_BLACKOUT,
	PLAN_COUNT,
};

/* verbose: one line with the seed and all rates before, one with the counts after. */
void chaos_run(uint64_t seed, uint32_t node_count, uint32_t minutes, int verbose,
	       struct chaos_result *ret_result);

/* All of it is drawn from the seed alone and printed in the first line. */
struct chaos_rates {
	struct simnet_rates net;
	uint32_t fault_ms, user_ms;			     /* mean times between two */
	uint32_t crash, partition, one_way, pause, rollback; /* weights; the rest: nothing */
	uint32_t pause_ms;				     /* at most */
	uint32_t session_min, away_min, announced; /* mean minutes; per cent. 0: no churn */
	uint32_t rooms, closing, notice_s;	   /* rooms that close at night */
	uint32_t night_min, dawn_min, day_min;
	uint32_t clockless; /* per cent of hosts whose clock stops in a pause */
	uint32_t jobs, checkpoint_ms, done_ppm, release_ppm;
	uint32_t vacate; /* per cent of what users do */
	uint32_t blip;	 /* per cent of releases during which the power fails everywhere */
	enum chaos_plan plan;
};

struct chaos {
	struct hosts *hosts;
	struct chaos_rates rates;
	uint64_t start_ms, until_ms;
	uint64_t away_until_ms[SIMNET_NODES_MAX]; /* off on purpose; faults leave it alone */
	bool closed[64];			  /* rooms */
	uint64_t rollbacks;
	struct {
		uint64_t at_ms; /* of the last release that is cut short */
		uint32_t node, hearer;
	} blip;
	struct {
		uint32_t job;
		bool done, old_side[SIMNET_NODES_MAX];
	} cut; /* a change of acceptors that falls in two */
	struct {
		uint32_t node, job, hearer;
		bool heard;
	} mute;	      /* whose ACCEPTs are lost but to one */
	bool planned; /* the plan could be carried out */
};

static inline uint32_t chaos_draw_node(struct chaos *chaos)
{
	return simnet_below(chaos->hosts->net, chaos->hosts->net->node_count);
}

/* plans.c */
void plans_run(struct chaos *chaos);

/* faults.c */
/* Not a second member of one register: a majority that is gone for good ends it, by design. */
bool chaos_can_spare(const struct chaos *chaos, uint32_t node);
void faults_begin(struct chaos *chaos);
void faults_end(struct chaos *chaos); /* all on, all in one net, no more loss */
