/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/chordlab.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum {
	IN_FLIGHT = 1 << 16,
	WARM_MS = 10 * 60 * 1000,
	WAVE_MS = 15 * 60 * 1000,
	QUIET_MS = 10 * 60 * 1000,
	ON_MS = 8 * 3600 * 1000,
	OFF_MS = 4 * 3600 * 1000,
	LOSS_PPM = 5000,
	DOUBLE_PPM = 1000,
	LATENCY_MIN_MS = 1,
	LATENCY_MAX_MS = 60,
	JITTER_MS = 4,
	NODE_LOOKUPS = 4, /* paths in flight on one node */
};

struct flight {
	uint64_t request_id, start_ms;
	struct ring_key key;
	uint32_t host;
};

/* The next thing that happens to a host: it goes on or off. */
struct turn {
	uint64_t when_ms;
	uint32_t host;
};

struct lab {
	struct chordlab_config config;
	struct chordnet *net;
	struct chordpush *push; /* NULL: no transfers */
	struct chordlab_result result;
	enum chordlab_phase phase;
	uint64_t phase_ends_ms[CHORDLAB_PHASES];
	struct turn *heap;
	uint32_t heap_count;
	uint32_t *position; /* of a host in the heap */
	uint64_t next_id, lookup_ms;
	struct chordnet_counts seen;
	struct flight flights[IN_FLIGHT];
};

static double exponential(struct lab *lab, double mean_ms)
{
	double u = (double)((chordnet_random(lab->net) >> 11) + 1) / 9007199254740993.0;

	return -mean_ms * log(u);
}

static bool is_before(const struct turn *a, const struct turn *b)
{
	return a->when_ms != b->when_ms ? a->when_ms < b->when_ms : a->host < b->host;
}

static void heap_put(struct lab *lab, uint32_t at, struct turn turn)
{
	lab->heap[at] = turn;
	lab->position[turn.host] = at;
}

static void heap_settle(struct lab *lab, uint32_t at, struct turn turn)
{
	while (at && is_before(&turn, &lab->heap[(at - 1) / 2])) {
		heap_put(lab, at, lab->heap[(at - 1) / 2]);
		at = (at - 1) / 2;
	}
	for (;;) {
		uint32_t child = 2 * at + 1;

		if (child + 1 < lab->heap_count &&
		    is_before(&lab->heap[child + 1], &lab->heap[child]))
			child++;
		if (child >= lab->heap_count || !is_before(&lab->heap[child], &turn))
			break;
		heap_put(lab, at, lab->heap[child]);
		at = child;
	}
	heap_put(lab, at, turn);
}

static void schedule(struct lab *lab, uint32_t host, uint64_t when_ms)
{
	heap_settle(lab, lab->position[host], (struct turn){ .when_ms = when_ms, .host = host });
}

static void on_result(void *ctx, uint32_t host, const struct lookup_result *result)
{
	struct lab *lab = ctx;
	struct flight *flight = &lab->flights[result->request_id % IN_FLIGHT];
	struct chordlab_sums *sums = &lab->result.phases[lab->phase];
	uint32_t members = chordnet_members(lab->net), at;

	if (chordpush_is_ours(result->request_id)) {
		chordpush_result(lab->push, result);
		return;
	}
	if (flight->request_id != result->request_id || flight->host != host)
		return;
	flight->request_id = 0;
	sums->lookups++;
	sums->hops += result->hops;
	sums->silent += result->silent;
	sums->latency_ms += chordnet_now(lab->net) - flight->start_ms;
	sums->target += 0.5 * log2(members) + 0.5;
	if (result->status || !result->count) {
		sums->failed++;
		return;
	}
	at = chordnet_owner(lab->net, flight->key);
	if (chordnet_host(&result->nodes[0]) != at) {
		sums->wrong++;
		return;
	}
	for (uint32_t i = 1; i < result->count; i++) {
		at = chordnet_member_from(lab->net, at + 1);
		if (chordnet_host(&result->nodes[i]) == at)
			continue;
		sums->wrong_sets++;
		return;
	}
}

static void look_up(struct lab *lab)
{
	uint32_t hosts = lab->config.nodes + lab->config.nodes / 2;
	uint32_t host = chordnet_member_from(lab->net, chordnet_below(lab->net, hosts));
	uint64_t id = ++lab->next_id;
	struct flight *flight = &lab->flights[id % IN_FLIGHT];
	struct ring_key key = { chordnet_random(lab->net), chordnet_random(lab->net) };

	lab->result.phases[lab->phase].lost += flight->request_id != 0;
	*flight = (struct flight){
		.request_id = id, .start_ms = chordnet_now(lab->net), .key = key, .host = host
	};
	if (chordnet_find(lab->net, host, key, OV_REPLICAS_MAX, id) == -EINPROGRESS)
		return;
	flight->request_id = 0;
	lab->result.phases[lab->phase].lookups++;
	lab->result.phases[lab->phase].failed++;
}

static void take_turn(struct lab *lab, uint32_t host)
{
	uint64_t now_ms = chordnet_now(lab->net);

	if (chordnet_is_up(lab->net, host)) {
		chordnet_crash(lab->net, host);
		if (lab->push)
			chordpush_crash(lab->push, host);
		lab->result.departures++;
		schedule(lab, host, now_ms + (uint64_t)exponential(lab, OFF_MS));
	} else {
		chordnet_start(lab->net, host);
		lab->result.arrivals++;
		schedule(lab, host, now_ms + (uint64_t)exponential(lab, ON_MS));
	}
}

static void count_members(struct lab *lab)
{
	uint32_t members = chordnet_members(lab->net);

	if (members < lab->result.members_min)
		lab->result.members_min = members;
	if (members > lab->result.members_max)
		lab->result.members_max = members;
}

static void run_until(struct lab *lab, uint64_t until_ms, bool churn)
{
	double gap_ms = lab->config.hours * 3600000.0 / lab->config.lookups;

	while (chordnet_now(lab->net) < until_ms) {
		uint64_t before_ms = chordnet_now(lab->net), next_ms = until_ms;

		if (churn && lab->heap[0].when_ms < next_ms)
			next_ms = lab->heap[0].when_ms;
		if (lab->lookup_ms < next_ms)
			next_ms = lab->lookup_ms;
		if (lab->push && chordpush_next_ms(lab->push) < next_ms)
			next_ms = chordpush_next_ms(lab->push);
		chordnet_run(lab->net, next_ms);
		lab->result.phases[lab->phase].member_seconds +=
			(double)(chordnet_now(lab->net) - before_ms) / 1000 *
			chordnet_members(lab->net);
		if (lab->push)
			chordpush_run(lab->push);
		while (churn && lab->heap[0].when_ms <= chordnet_now(lab->net))
			take_turn(lab, lab->heap[0].host);
		while (lab->lookup_ms <= chordnet_now(lab->net)) {
			look_up(lab);
			lab->lookup_ms += 1 + (uint64_t)exponential(lab, gap_ms);
		}
		count_members(lab);
	}
}

/* Half of those that are on turn to `when` + up to 15 minutes; the others' turns stay. */
static void wave(struct lab *lab, bool *closed, bool closing, uint64_t when_ms)
{
	uint32_t hosts = lab->config.nodes + lab->config.nodes / 2;

	for (uint32_t i = 0; i < hosts; i++) {
		if (closing)
			closed[i] = chordnet_is_up(lab->net, i) && chordnet_below(lab->net, 2);
		if (closed[i] && chordnet_is_up(lab->net, i) == closing)
			schedule(lab, i, when_ms + chordnet_below(lab->net, WAVE_MS));
	}
}

/* Those that have closed stay off until the opening. */
static void hold_closed(struct lab *lab, const bool *closed, uint64_t until_ms)
{
	uint32_t hosts = lab->config.nodes + lab->config.nodes / 2;

	for (uint32_t i = 0; i < hosts; i++)
		if (closed[i] && !chordnet_is_up(lab->net, i))
			schedule(lab, i, until_ms);
}

static void end_phase(struct lab *lab)
{
	struct chordlab_sums *sums = &lab->result.phases[lab->phase];
	const struct chordnet_counts *counts = chordnet_counts(lab->net);

	sums->upkeep_bytes += counts->upkeep_bytes - lab->seen.upkeep_bytes;
	sums->lookup_bytes += counts->lookup_bytes - lab->seen.lookup_bytes;
	lab->seen = *counts;
}

static void run_phases(struct lab *lab)
{
	uint32_t hosts = lab->config.nodes + lab->config.nodes / 2;
	uint64_t day_ms = (uint64_t)(lab->config.hours * 3600000 - 2 * WAVE_MS) / 3, now_ms = 1;
	const uint64_t lengths_ms[CHORDLAB_PHASES] = { WARM_MS, day_ms, WAVE_MS, day_ms,
						       WAVE_MS, day_ms, QUIET_MS };
	bool *closed = calloc(hosts, sizeof(*closed));

	if (!closed)
		abort();
	for (lab->phase = CHORDLAB_WARM; lab->phase < CHORDLAB_PHASES; lab->phase++) {
		uint64_t until_ms = now_ms + lengths_ms[lab->phase];

		if (lab->phase == CHORDLAB_CLOSING || lab->phase == CHORDLAB_OPENING)
			wave(lab, closed, lab->phase == CHORDLAB_CLOSING, now_ms);
		if (lab->phase == CHORDLAB_NIGHT)
			hold_closed(lab, closed, until_ms + WAVE_MS);
		if (lab->phase == CHORDLAB_QUIET)
			chordnet_calm(lab->net);
		if (lab->phase == CHORDLAB_QUIET && lab->push)
			chordpush_stop(lab->push);
		run_until(lab, until_ms, lab->phase != CHORDLAB_QUIET);
		end_phase(lab);
		now_ms = until_ms;
	}
	lab->phase = CHORDLAB_QUIET;
	free(closed);
}

static void add_phases(struct chordlab_result *result)
{
	for (uint32_t i = CHORDLAB_DAY; i <= CHORDLAB_EVENING; i++) {
		const struct chordlab_sums *from = &result->phases[i];
		struct chordlab_sums *to = &result->sum;

		to->lookups += from->lookups;
		to->failed += from->failed;
		to->wrong += from->wrong;
		to->wrong_sets += from->wrong_sets;
		to->hops += from->hops;
		to->silent += from->silent;
		to->latency_ms += from->latency_ms;
		to->target += from->target;
		to->member_seconds += from->member_seconds;
		to->upkeep_bytes += from->upkeep_bytes;
		to->lookup_bytes += from->lookup_bytes;
		to->lost += from->lost;
	}
}

static double cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec / 1e6 +
	       (double)usage.ru_stime.tv_sec + (double)usage.ru_stime.tv_usec / 1e6;
}

static void open_lab(struct lab *lab, uint32_t hosts)
{
	bool *up = calloc(hosts, sizeof(*up));

	lab->heap = calloc(hosts, sizeof(*lab->heap));
	lab->position = calloc(hosts, sizeof(*lab->position));
	if (!up || !lab->heap || !lab->position)
		abort();
	for (uint32_t i = 0; i < hosts; i++) {
		struct turn turn = { .host = i };

		up[i] = chordnet_below(lab->net, 3) < 2;
		turn.when_ms = 1 + (uint64_t)exponential(lab, up[i] ? ON_MS : OFF_MS);
		lab->heap_count++;
		heap_settle(lab, i, turn);
	}
	chordnet_boot(lab->net, up);
	free(up);
}

const char *chordlab_rates(void)
{
	static char text[256];

	snprintf(text, sizeof(text),
		 "loss_ppm %d double_ppm %d latency_ms %d..%d +%d on_h %d off_h %d wave_min %d "
		 "wave 1/2 successors %d stabilise_ms %d finger_ms %d retry_ms %d tries %d",
		 LOSS_PPM, DOUBLE_PPM, LATENCY_MIN_MS, LATENCY_MAX_MS, JITTER_MS, ON_MS / 3600000,
		 OFF_MS / 3600000, WAVE_MS / 60000, CHORD_SUCCESSORS_MAX, CHORD_STABILISE_MS,
		 CHORD_FINGER_MS, CHORD_RETRY_MS, CHORD_TRIES);
	return text;
}

void chordlab_run(const struct chordlab_config *config, struct chordlab_result *ret_result)
{
	struct chordnet_config net_config = {
		.seed = config->seed,
		.hosts = config->nodes + config->nodes / 2,
		.loss_ppm = LOSS_PPM,
		.double_ppm = DOUBLE_PPM,
		.latency_min_ms = LATENCY_MIN_MS,
		.latency_max_ms = LATENCY_MAX_MS,
		.jitter_ms = JITTER_MS,
		.chord = { .successors = CHORD_SUCCESSORS_MAX,
			   .paths = (uint8_t)config->paths,
			   .tries = CHORD_TRIES,
			   .stabilise_ms = CHORD_STABILISE_MS,
			   .finger_ms = CHORD_FINGER_MS,
			   .retry_ms = CHORD_RETRY_MS,
			   .lookup_max = NODE_LOOKUPS * config->paths },
	};
	struct lab *lab = calloc(1, sizeof(*lab));
	double began = cpu_seconds();

	if (!lab || config->nodes < CHORD_SUCCESSORS_MAX || config->hours < 0.6)
		abort();
	lab->config = *config;
	lab->net = chordnet_create(&net_config, on_result, lab);
	lab->lookup_ms = WARM_MS;
	lab->result.members_min = UINT32_MAX;
	open_lab(lab, net_config.hosts);
	if (config->push_ms)
		lab->push = chordpush_create(lab->net, net_config.hosts, config->nodes,
					     config->push_ms, WARM_MS);
	run_phases(lab);
	add_phases(&lab->result);
	lab->result.wrong_members = chordnet_wrong_members(lab->net);
	lab->result.events = lab->seen.events;
	lab->result.messages = lab->seen.messages;
	lab->result.virtual_hours = (double)chordnet_now(lab->net) / 3600000;
	lab->result.cpu_seconds = cpu_seconds() - began;
	if (lab->push) {
		lab->result.transfers = *chordpush_sums(lab->push);
		lab->result.transfers_left = chordpush_in_flight(lab->push);
	}
	*ret_result = lab->result;
	chordpush_destroy(lab->push);
	chordnet_destroy(lab->net);
	free(lab->heap);
	free(lab->position);
	free(lab);
}
