/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Many cores on one thread, with a network, disks and clocks made of one seed.
 *
 *   events by (time, seq) -> core_step() -> writes to the disk -> sends among the events
 *
 * Network: the latency of a pair is a hash of (seed, source, target), plus jitter; a message is
 * lost, doubled, late or overtaken. Hosts in different groups do not hear each other; a mute host
 * is heard by nobody, a deaf one hears nobody; `one_way` lets lower groups be heard by higher.
 * Hosts: a crash forgets all but the disk, and a crash inside a write keeps any part of that
 * update's writes and sends nothing of it. A paused host handles nothing until it goes on; if it
 * loses its clock, that stands still meanwhile. A disk that is rolled back brings its host back
 * under a new id (rule A5). Each host has its own clock offset and rate.
 *
 * Time is in ms since the start of the run. Errors of the harness itself abort the program.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "overlay/core/core.h"

enum { SIMNET_NODES_MAX = 1000, SIMNET_SIZES = 16, SIMNET_WHEEL_MS = 2048 };
enum { SIMNET_GLANCES = 2 };

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
	/* False: it is lost. */
	bool (*sent)(void *ctx, uint32_t node, const struct core_send *send);
	void (*crashed)(void *ctx, uint32_t node); /* by a torn write */
	void (*started)(void *ctx, uint32_t node);
	void (*after)(void *ctx); /* after every event */
};

struct simnet_record {
	struct job_id job;
	size_t size;
	uint8_t bytes[];
};

struct simnet_disk {
	struct simnet_record **records;
	uint32_t count, room;
};

/* What every event looks at stands first. */
struct simnet_node {
	struct core *core; /* NULL: down */
	uint32_t group;	   /* partition */
	uint32_t life;	   /* counts starts; ticks of an earlier life are dropped */
	uint32_t ids;	   /* counts ids: 1 + disks rolled back */
	int32_t rate_ppm;
	uint64_t boot_offset_ms, paused_until_ms;
	uint64_t clock_lost_ms; /* by pauses that stopped the clock */
	bool mute, deaf, clock_stopped;
	struct node_card card;
	struct member_state_report report;
	struct simnet_disk disk, snapshot;
	void *mapped; /* the core's memory */
	size_t mapped_size;
};

struct simnet_dice {
	uint64_t state;
};

/* A host's deadline and when its next tick is due. Ticks of another time were called off. */
struct simnet_tick {
	uint64_t at_ms, deadline_ms; /* at_ms 0: none */
};

/* Of the wheel; who is concerned is known without a look at the event itself. */
struct simnet_item {
	struct simnet_event *event; /* NULL: a tick */
	uint32_t to, from;	    /* SIMNET_NODES_MAX: nobody */
};

struct simnet_slot {
	uint64_t when_ms, seq;
	struct simnet_item item;
};

struct simnet {
	struct simnet_dice dice;
	uint64_t seed, now_ms, seq, event_count, message_count;
	uint32_t node_count, probe_ms, suspect_ms;
	bool one_way, stepping;
	struct core_scratch *scratch; /* of all cores */
	struct simnet_rates rates;
	struct simnet_hooks hooks;
	struct simnet_node *nodes;
	struct simnet_tick *ticks; /* of the nodes, close together */
	struct node_id *ids;	   /* of the nodes, close together */
	uint16_t index[4 * 1024];  /* id -> node + 1 */
	/*
	 * What is due within SIMNET_WHEEL_MS, in a list for each ms; what is due later, in a heap.
	 * The heap's come in as soon as they may, so that a list is in the order of seq.
	 */
	struct simnet_list {
		struct simnet_item *items;
		uint32_t taken, count, room;
	} wheel[SIMNET_WHEEL_MS];
	uint64_t busy[SIMNET_WHEEL_MS / 64]; /* a bit per list that is not empty */
	uint64_t wheel_ms; /* the list that is being taken from; never after now_ms */
	size_t wheel_count;
	/* How far ahead of the events memory was asked for, see look_ahead(). */
	struct simnet_glance {
		uint64_t ms;
		uint32_t at, ahead;
	} glances[SIMNET_GLANCES];
	struct simnet_slot *heap;
	size_t heap_count, heap_room;
	struct simnet_event *spare[SIMNET_SIZES];
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
/* Nothing is handled for that long. `clock`: its clock stands still too. */
void simnet_pause(struct simnet *net, uint32_t node, uint32_t ms, bool clock);
uint64_t simnet_boot_ns(const struct simnet *net, uint32_t node);
uint64_t simnet_local_ms(const struct simnet *net, uint32_t node);
/* Up and not paused. */
bool simnet_is_up(const struct simnet *net, uint32_t node);
/* What `from` sends reaches `to`, as far as partitions go. */
bool simnet_hears(const struct simnet *net, uint32_t to, uint32_t from);

/* The host is down: its disk becomes what it was at the last snapshot, or empty. */
void simnet_snapshot(struct simnet *net, uint32_t node);
void simnet_rollback(struct simnet *net, uint32_t node, bool wipe);
void simnet_new_id(struct simnet *net, uint32_t node);

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

/* simnode.c, for simnet.c */
void simnet_core_free(struct simnet_node *node);
void simnet_die(const char *what) __attribute__((noreturn));
void simnet_disk_write(struct simnet *net, uint32_t node, const struct core_write *write);
void simnet_disk_free(struct simnet_disk *disk);
void simnet_node_init(struct simnet *net, uint32_t node);
/* simnet.c, for simnode.c: one event into a live core, and its update carried out */
int simnet_step(struct simnet *net, uint32_t node, struct core_event *event);
