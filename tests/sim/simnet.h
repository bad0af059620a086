/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Many cores on one thread, with a network, disks and clocks made of one seed.
 *
 *   event heap by (time, seq) -> core_step() -> writes to the disk -> sends back into the heap
 *
 * A message is lost, doubled, late or overtaken; hosts in different groups do not hear each other;
 * a crash forgets all but the disk, and a crash inside a write keeps any part of that update's
 * writes and sends nothing of it. Each host has its own clock offset and rate.
 *
 * Time is in ms since the start of the run. Errors of the harness itself abort the program.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "overlay/core/core.h"

enum { SIMNET_NODES_MAX = 16, SIMNET_RECORDS_MAX = 64 };

struct simnet_rates {
	uint32_t loss_ppm, double_ppm, slow_ppm; /* per message */
	uint32_t latency_ms, slow_ms;		 /* at most */
	uint32_t torn_ppm;			 /* crash inside a write, per update with writes */
	uint32_t drift_ppm;			 /* clock rates are 1 +- this at most */
};

struct simnet_hooks {
	void *ctx;
	void (*answer)(void *ctx, uint32_t node, const struct core_answer *answer);
	void (*notice)(void *ctx, uint32_t node, const struct core_notice *notice);
	void (*wrote)(void *ctx, uint32_t node, const struct core_write *write);
	void (*crashed)(void *ctx, uint32_t node); /* by a torn write */
	void (*after)(void *ctx);		   /* after every event */
};

struct simnet_record {
	struct job_id job;
	size_t size; /* 0: free */
	uint8_t bytes[CORE_RECORD_MAX];
};

struct simnet_node {
	struct core *core; /* NULL: down */
	struct node_card card;
	struct member_state_report report;
	uint32_t group; /* partition */
	uint32_t life;	/* counts starts; messages of an earlier life are dropped */
	int32_t rate_ppm;
	uint64_t boot_offset_ms, tick_at_ms;
	struct simnet_record disk[SIMNET_RECORDS_MAX];
};

struct simnet_dice {
	uint64_t state;
};

struct simnet {
	struct simnet_dice dice;
	uint64_t seed, now_ms, seq, event_count, message_count;
	uint32_t node_count;
	struct simnet_rates rates;
	struct simnet_hooks hooks;
	struct simnet_node nodes[SIMNET_NODES_MAX];
	struct simnet_event **heap;
	size_t heap_count, heap_room;
};

typedef void simnet_action(void *ctx, uint64_t argument);

/* The first `count` hosts are made but not started. */
struct simnet *simnet_create(uint64_t seed, uint32_t count, const struct simnet_rates *rates,
			     const struct simnet_hooks *hooks);
void simnet_destroy(struct simnet *net);

uint32_t dice_below(struct simnet_dice *dice, uint32_t limit);
uint64_t simnet_random(struct simnet *net);
uint32_t simnet_below(struct simnet *net, uint32_t limit);
bool simnet_chance(struct simnet *net, uint32_t ppm);

/* Starts a host: reads its disk, greets host `seed` and every host it can reach if that is self. */
void simnet_start(struct simnet *net, uint32_t node, uint32_t seed);
/* A connection from node to seed came up. */
void simnet_greet(struct simnet *net, uint32_t node, uint32_t seed);
void simnet_crash(struct simnet *net, uint32_t node);
void simnet_leave(struct simnet *net, uint32_t node);
void simnet_report(struct simnet *net, uint32_t node);
uint64_t simnet_boot_ns(const struct simnet *net, uint32_t node);
uint64_t simnet_local_ms(const struct simnet *net, uint32_t node);

/* Steps a request into a live core. */
void simnet_request(struct simnet *net, uint32_t node, enum core_request request,
		    const struct job_value *value, uint64_t request_id);

void simnet_at(struct simnet *net, uint64_t when_ms, simnet_action *action, void *ctx,
	       uint64_t argument);
/* Runs events until the clock stands at until_ms. */
void simnet_run(struct simnet *net, uint64_t until_ms);

/* Index of a host, or SIMNET_NODES_MAX. */
uint32_t simnet_index(const struct simnet *net, const struct node_id *id);
enum member_state simnet_view(const struct simnet *net, uint32_t of, uint32_t about);
