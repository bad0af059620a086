/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The ring under random joins, failures and rounds whose messages overtake each other: it must stay
 * one ordered ring as long as Zave's assumptions hold, and must be seen to break without her rules.
 *
 *   test_core_chord_traces [TRACES]    so many of each kind; default: what each kind needs
 *
 * Ten ids, lists of two, 150 operations a trace, then quiet rounds until all is as it should be.
 * Who does not answer is dead, as in the proof: the harness, not the clock, says when a request
 * has failed, namely when it reaches nobody. A failure happens only if it leaves everybody a live
 * entry in the list, lists on their way included, and, with `base`, R + 1 principals: members that
 * no list skips. The source is included, not linked, for the switches of chord_state.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define CHORD_MUTANTS
#include "overlay/core/chord.c"

enum {
	IDS = 10,
	R = 2,
	OPERATIONS = 150,
	QUIET_ROUNDS = 400,
	PATHS = 2,
	QUEUE = 128,
	DELIVERIES = 1000, /* in one quiet turn */
	WIRE = 640,
};

uint32_t chord_mutants;

struct letter {
	uint32_t from, to;
	size_t size;
	uint8_t bytes[WIRE];
};

struct world {
	struct chord *nodes[IDS];
	bool up[IDS]; /* it runs; a member if its state says so */
	uint64_t random, now_ms;
	bool base, broken;
	uint32_t letter_count;
	struct letter letters[QUEUE];
	struct chord_update update;
};

struct outcome {
	uint32_t traces, broken, unrepaired, members_joined, members_failed;
	uint32_t first; /* broken trace */
};

static uint32_t below(struct world *world, uint32_t limit)
{
	uint64_t x = world->random += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (uint32_t)((x >> 33) * limit >> 31);
}

static struct chord_peer peer_of(uint32_t index)
{
	struct chord_peer peer = { .port = 1 };

	peer.id.b[0] = (uint8_t)(16 * (index + 1));
	return peer;
}

static uint32_t index_of(const struct node_id *id)
{
	return id->b[0] / 16U - 1;
}

static bool is_member(const struct world *world, uint32_t i)
{
	return world->up[i] && world->nodes[i]->state == CHORD_MEMBER;
}

static void each_request(struct chord *chord, uint64_t due_ms, const struct node_id *to)
{
	struct chord_request *requests[] = { &chord->stabilise, &chord->rectify, &chord->table,
					     &chord->paths[0].request, &chord->paths[1].request };

	for (uint32_t i = 0; i < 5; i++)
		if (requests[i]->to.port && (!to || node_id_equal(to, &requests[i]->to.id)))
			requests[i]->due_ms = due_ms;
}

/* Nothing happens by itself but what the node has to do at once. */
static void hold_timers(struct chord *chord)
{
	each_request(chord, UINT64_MAX, NULL);
	chord->stabilise_due_ms = UINT64_MAX;
	chord->finger_due_ms = UINT64_MAX;
	chord->join_due_ms = UINT64_MAX;
}

static void post_all(struct world *world, uint32_t from, uint32_t asker)
{
	for (uint32_t i = 0; i < world->update.send_count; i++) {
		const struct chord_send *send = &world->update.sends[i];
		struct letter *letter = &world->letters[world->letter_count];

		assert_true(world->letter_count < QUEUE && send->size <= WIRE);
		world->letter_count++;
		letter->from = from;
		letter->to = send->to.port ? index_of(&send->to.id) : asker;
		letter->size = send->size;
		memcpy(letter->bytes, send->bytes, send->size);
	}
}

static void step(struct world *world, uint32_t i, const struct letter *letter)
{
	struct chord_event event = { .type = CHORD_EV_TICK, .now_ms = ++world->now_ms };
	bool was_member = is_member(world, i);

	if (letter) {
		event.type = CHORD_EV_MESSAGE;
		event.from = peer_of(letter->from).id;
		event.bytes = letter->bytes;
		event.size = letter->size;
	}
	assert_int_equal(chord_step(world->nodes[i], &event, &world->update), 0);
	/* A joiner's first request for fingers leaves with its next step; it need not here. */
	world->nodes[i]->table.to.port = 0;
	hold_timers(world->nodes[i]);
	post_all(world, i, letter ? letter->from : i);
	/* It has lost all its successors; or, a joiner, nobody let it in. */
	if (world->nodes[i]->state == CHORD_JOINING && (was_member || !world->nodes[i]->joining))
		world->up[i] = false;
	world->broken |= was_member && !world->up[i];
}

/* Who sent this waits for an answer in vain. */
static void fail_request(struct world *world, const struct letter *letter)
{
	struct node_id to = peer_of(letter->to).id;

	if (!world->up[letter->from])
		return;
	each_request(world->nodes[letter->from], 0, &to);
	step(world, letter->from, NULL);
}

static void deliver(struct world *world, uint32_t which)
{
	struct letter letter = world->letters[which];

	world->letters[which] = world->letters[--world->letter_count];
	if (world->up[letter.to] &&
	    (is_member(world, letter.to) || letter.bytes[1] == CHORD_MSG_FOUND))
		step(world, letter.to, &letter);
	else if (letter.bytes[1] == CHORD_MSG_FIND || letter.bytes[1] == CHORD_MSG_NEIGHBOURS ||
		 letter.bytes[1] == CHORD_MSG_PING)
		fail_request(world, &letter);
}

/* The lists there are, and those that answers on their way may bring about. Returns its length. */
static uint32_t list_of(const struct world *world, uint32_t which, uint32_t list[R + 1])
{
	uint32_t count = 1;

	if (which < IDS) {
		const struct chord *chord = world->nodes[which];

		if (!is_member(world, which))
			return 0;
		list[0] = which;
		for (uint32_t i = 0; i < chord->successor_count; i++)
			list[count++] = index_of(&chord->successors[i].id);
	} else {
		const struct letter *letter = &world->letters[which - IDS];
		struct chord_message m;

		if (letter->bytes[1] != CHORD_MSG_LIST && letter->bytes[1] != CHORD_MSG_FOUND)
			return 0;
		if (chord_message_decode(letter->bytes, letter->size, &m) ||
		    m.flags & CHORD_FLAG_UNCHANGED ||
		    (m.type == CHORD_MSG_FOUND && !(m.flags & CHORD_FLAG_LAST)))
			return 0;
		list[0] = letter->to;
		if (m.type == CHORD_MSG_LIST)
			list[count++] = letter->from;
		for (uint32_t i = 0; i < m.peer_count && count <= R; i++)
			list[count++] = index_of(&m.peers[i].id);
	}
	return count;
}

static bool skips(const uint32_t *list, uint32_t count, uint32_t p)
{
	for (uint32_t i = 0; i + 1 < count; i++) {
		uint32_t span = (list[i + 1] + IDS - list[i]) % IDS;
		uint32_t at = (p + IDS - list[i]) % IDS;

		if (at && (at < span || !span))
			return true;
	}
	return false;
}

/* Of the assumptions of the proof, as things are. */
static bool assumptions_hold(const struct world *world)
{
	uint32_t principals = 0, list[R + 1];
	bool skipped[IDS] = { false };

	for (uint32_t which = 0; which < IDS + world->letter_count; which++) {
		uint32_t count = list_of(world, which, list);
		bool live = count < 2;

		for (uint32_t i = 1; i < count; i++)
			live |= is_member(world, list[i]);
		if (!live)
			return false;
		for (uint32_t p = 0; p < IDS; p++)
			skipped[p] |= skips(list, count, p);
	}
	for (uint32_t p = 0; p < IDS; p++)
		principals += is_member(world, p) && !skipped[p];
	return !world->base || principals > R;
}

static uint32_t first_live(const struct world *world, uint32_t i)
{
	const struct chord *chord = world->nodes[i];

	for (uint32_t k = 0; k < chord->successor_count; k++)
		if (is_member(world, index_of(&chord->successors[k].id)))
			return index_of(&chord->successors[k].id);
	return IDS;
}

/* One ring, in order, that everybody leads to. */
static bool is_ring(const struct world *world)
{
	uint32_t mark = IDS;

	for (uint32_t i = 0; i < IDS; i++) {
		uint32_t at = i, round = 0, lap = 0;

		if (!is_member(world, i))
			continue;
		for (uint32_t n = 0; n < IDS && at < IDS; n++)
			at = first_live(world, at);
		if (at == IDS)
			return false;
		if (mark == IDS)
			mark = at;
		do {
			uint32_t next = first_live(world, at);

			lap += (next + IDS - at - 1) % IDS + 1;
			round |= 1U << at;
			at = next;
		} while (!(round >> at & 1));
		if (lap != IDS || !(round >> mark & 1))
			return false;
	}
	return true;
}

static bool is_ideal(const struct world *world)
{
	uint32_t members = 0;

	for (uint32_t i = 0; i < IDS; i++)
		members += is_member(world, i);
	for (uint32_t i = 0; i < IDS; i++) {
		const struct chord *chord = world->nodes[i];
		uint32_t at = i, wanted = members - 1 < R ? members - 1 : R;

		if (!is_member(world, i))
			continue;
		if (chord->successor_count != wanted)
			return false;
		for (uint32_t k = 0; k < wanted; k++) {
			do
				at = (at + 1) % IDS;
			while (!is_member(world, at));
			if (index_of(&chord->successors[k].id) != at)
				return false;
			if (!k && index_of(&world->nodes[at]->predecessor.id) != i)
				return false;
		}
	}
	return true;
}

static void start(struct world *world, uint32_t i)
{
	struct chord_config config = { .self = peer_of(i),
				       .successors = R,
				       .paths = 1,
				       .tries = 1,
				       .stabilise_ms = 1,
				       .finger_ms = 1,
				       .retry_ms = 1,
				       .lookup_max = PATHS,
				       .seed = world->random };

	assert_int_equal(chord_init(world->nodes[i], &config), 0);
	world->up[i] = true;
}

static void stabilise(struct world *world, uint32_t i)
{
	if (!is_member(world, i) || world->nodes[i]->stabilise.to.port)
		return;
	/* Every verdict of silence is new, as in the proof. */
	memset(world->nodes[i]->silent, 0, sizeof(world->nodes[i]->silent));
	world->nodes[i]->stabilise_due_ms = 0;
	step(world, i, NULL);
}

static void join(struct world *world, uint32_t i, struct outcome *outcome)
{
	uint32_t seed = below(world, IDS);
	struct chord_peer peer;

	while (!is_member(world, seed))
		seed = (seed + 1) % IDS;
	peer = peer_of(seed);
	start(world, i);
	assert_int_equal(chord_join(world->nodes[i], world->now_ms, &peer, 1), 0);
	outcome->members_joined++;
	step(world, i, NULL);
}

static void crash(struct world *world, uint32_t i, struct outcome *outcome)
{
	world->up[i] = false;
	if (assumptions_hold(world))
		outcome->members_failed++;
	else
		world->up[i] = true;
}

static void operate(struct world *world, struct outcome *outcome)
{
	uint32_t i = below(world, IDS), kind = below(world, 100);

	if (kind < 50)
		stabilise(world, i);
	else if (kind < 75 && !world->up[i])
		join(world, i, outcome);
	else if (kind >= 75 && is_member(world, i))
		crash(world, i, outcome);
}

/* A broken ring may chase its own tail: what is not delivered by then counts for nothing. */
static void drain(struct world *world)
{
	for (uint32_t n = 0; n < DELIVERIES && world->letter_count; n++) {
		deliver(world, 0);
	}
	world->letter_count = 0;
}

static bool repair(struct world *world)
{
	for (uint32_t round = 0; round < QUIET_ROUNDS; round++) {
		drain(world);
		if (is_ideal(world))
			return true;
		for (uint32_t i = 0; i < IDS; i++) {
			stabilise(world, i);
			drain(world);
		}
	}
	return false;
}

static void trace(struct world *world, uint32_t seed, struct outcome *outcome)
{
	struct chord_peer first[R + 1];
	uint32_t operations = 0, before;

	world->random = seed * UINT64_C(0x2545f4914f6cdd1d);
	world->now_ms = 1;
	world->letter_count = 0;
	world->broken = false;
	memset(world->up, 0, sizeof(world->up));
	for (uint32_t i = 0; i <= R; i++)
		first[i] = peer_of(i * 3 + seed % 3);
	for (uint32_t i = 0; i < IDS; i++)
		world->nodes[i]->state = CHORD_OUT;
	for (uint32_t i = 0; i <= R; i++) {
		uint32_t at = index_of(&first[i].id);

		start(world, at);
		assert_int_equal(chord_boot(world->nodes[at], 1, first, R + 1), 0);
		hold_timers(world->nodes[at]);
	}
	before = outcome->broken;
	while (operations < OPERATIONS && outcome->broken == before) {
		if (world->letter_count && below(world, 100) < 60) {
			deliver(world, below(world, world->letter_count));
		} else {
			operate(world, outcome);
			operations++;
		}
		outcome->broken += world->broken || !is_ring(world);
	}
	world->broken = false;
	outcome->unrepaired += !repair(world);
	outcome->traces++;
}

static uint32_t wanted_traces;

static struct outcome run(const char *name, uint32_t mutants, bool base, uint32_t traces)
{
	struct world *world = calloc(1, sizeof(*world));
	struct outcome outcome = { 0 };

	assert_non_null(world);
	for (uint32_t i = 0; i < IDS; i++) {
		world->nodes[i] = malloc(chord_size(PATHS));
		assert_non_null(world->nodes[i]);
	}
	chord_mutants = mutants;
	world->base = base;
	if (wanted_traces)
		traces = wanted_traces;
	for (uint32_t seed = 1; seed <= traces; seed++) {
		trace(world, seed, &outcome);
		if (outcome.broken && !outcome.first)
			outcome.first = seed;
	}
	chord_mutants = 0;
	for (uint32_t i = 0; i < IDS; i++)
		free(world->nodes[i]);
	free(world);
	printf("%-40s %7u traces, %u broken (%.4f %%, first %u), %u never repaired; %.1f joins "
	       "%.1f failures a trace\n",
	       name, outcome.traces, outcome.broken, 100.0 * outcome.broken / outcome.traces,
	       outcome.first, outcome.unrepaired, (double)outcome.members_joined / outcome.traces,
	       (double)outcome.members_failed / outcome.traces);
	return outcome;
}

static void corrected_rules_keep_the_ring(void **state)
{
	struct outcome outcome = run("corrected", 0, true, 4000);

	(void)state;
	assert_int_equal(outcome.broken, 0);
	assert_int_equal(outcome.unrepaired, 0);
	assert_true(outcome.members_failed > 5 * outcome.traces);
}

/* What the proof assumes is needed, too: lists that skip members, until few are left. */
static void without_principals_it_breaks(void **state)
{
	struct outcome outcome = run("corrected, principals not kept", 0, false, 1000);

	(void)state;
	assert_true(outcome.broken > 0);
}

static void without_a_rule_it_breaks(void **state)
{
	static const struct {
		const char *name;
		uint32_t mutants, traces;
	} kinds[] = {
		{ "joins with one successor", CHORD_RULE_JOIN_LIST, 100 },
		{ "adopts a predecessor unasked", CHORD_RULE_ASK_FIRST, 300 },
		{ "new successor, list in the next round", CHORD_RULE_ONE_CHANGE, 2000 },
		{ "all three: Chord as published",
		  CHORD_RULE_JOIN_LIST | CHORD_RULE_ASK_FIRST | CHORD_RULE_ONE_CHANGE, 100 },
	};

	(void)state;
	for (uint32_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct outcome outcome =
			run(kinds[i].name, kinds[i].mutants, true, kinds[i].traces);

		assert_true(outcome.broken > 0);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(corrected_rules_keep_the_ring),
		cmocka_unit_test(without_principals_it_breaks),
		cmocka_unit_test(without_a_rule_it_breaks),
	};

	wanted_traces = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
