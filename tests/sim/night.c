/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/night.h"

#include <stdlib.h>
#include <string.h>

#include "tests/sim/night_internal.h"

struct night_setup night_default(uint64_t seed, uint32_t hosts, uint32_t days, uint32_t objects)
{
	return (struct night_setup){ .seed = seed,
				     .hosts = hosts,
				     .rooms = 10,
				     .closing = 7,
				     .learn_days = 7,
				     .days = days,
				     .objects = objects,
				     .rule = core_place_rule_default,
				     .repair = true,
				     .off_percent = 10,
				     .wipe_days = 180,
				     .object_bytes = 128 << 20,
				     .quota_bytes = UINT64_C(20) << 30,
				     .link_bytes_s = 12500000,
				     .repair_bytes_s = 2000000 };
}

/* Night i begins on day i at closing time. */
void night_was_down(struct night *n, uint64_t from_s, uint64_t to_s)
{
	from_s = from_s > n->begin_s ? from_s : n->begin_s;
	while (from_s < to_s) {
		uint64_t day = from_s / DAY, hour = from_s % DAY / HOUR, until_s;
		bool night = hour >= NIGHT_CLOSES_H || hour < NIGHT_OPENS_H;

		if (hour < NIGHT_OPENS_H)
			until_s = day * DAY + NIGHT_OPENS_H * HOUR;
		else if (hour < NIGHT_CLOSES_H)
			until_s = day * DAY + NIGHT_CLOSES_H * HOUR;
		else
			until_s = (day + 1) * DAY + NIGHT_OPENS_H * HOUR;
		until_s = until_s < to_s ? until_s : to_s;
		if (night) {
			uint64_t began = hour < NIGHT_OPENS_H && day ? day - 1 : day;

			n->down_night_s += (double)(until_s - from_s);
			n->nightly_s[began] += (double)(until_s - from_s);
		} else {
			n->down_day_s += (double)(until_s - from_s);
		}
		from_s = until_s;
	}
}

static void init(struct night *n, const struct night_setup *set)
{
	uint32_t last_day = set->learn_days + set->days;

	memset(n, 0, sizeof(*n));
	if (set->hosts < 2 || set->rooms < 1 || last_day > NIGHT_DAYS_MAX || set->objects < 1)
		simnet_die("night: impossible setup");
	n->set = *set;
	n->dice.state = set->seed;
	n->begin_s = (uint64_t)set->learn_days * DAY;
	n->end_s = (uint64_t)last_day * DAY;
	n->hosts = calloc(set->hosts, sizeof(*n->hosts));
	n->objects = calloc(set->objects, sizeof(*n->objects));
	n->flows = calloc(FLOWS_MAX, sizeof(*n->flows));
	if (!n->hosts || !n->objects || !n->flows)
		simnet_die("night: no memory");
	night_hosts_init(n);
	/* Committed at any time of the first day: by night as well, when few are there. */
	for (uint32_t i = 0; i < set->objects; i++) {
		struct object *object = &n->objects[i];

		for (size_t k = 0; k < sizeof(object->hash.b); k++)
			object->hash.b[k] = (uint8_t)dice_below(&n->dice, 256);
		object->commit_s = n->begin_s + dice_below(&n->dice, DAY);
	}
}

static void commit_due(struct night *n)
{
	if (n->now_s < n->begin_s)
		return;
	for (uint32_t i = 0; i < n->set.objects; i++)
		if (!n->objects[i].committed && n->objects[i].commit_s <= n->now_s)
			night_store_commit(n, i);
}

static double committed_s(const struct night *n, uint64_t from_s, uint64_t to_s)
{
	double sum = 0;

	for (uint32_t i = 0; i < n->set.objects; i++) {
		const struct object *object = &n->objects[i];
		uint64_t start = object->commit_s > from_s ? object->commit_s : from_s;

		if (object->committed && start < to_s)
			sum += (double)(to_s - start);
	}
	return sum;
}

static void judge(struct night *n)
{
	struct night_result *result = &n->result;
	double all, nights = 0, copies = 0;

	for (uint32_t i = 0; i < n->set.objects; i++) {
		const struct object *object = &n->objects[i];

		if (!object->committed)
			simnet_die("night: an object was never stored");
		if (object->there == 0)
			night_was_down(n, object->down_s, n->end_s);
		for (uint32_t k = 0; k < object->count; k++)
			copies += !object->copies[k].wiped && !object->copies[k].arriving;
	}
	all = committed_s(n, n->begin_s, n->end_s);
	for (uint64_t day = 0; day < n->end_s / DAY; day++) {
		uint64_t from_s = day * DAY + NIGHT_CLOSES_H * HOUR;
		uint64_t to_s = (day + 1) * DAY + NIGHT_OPENS_H * HOUR;
		double span;

		to_s = to_s < n->end_s ? to_s : n->end_s;
		span = committed_s(n, from_s, to_s);
		nights += span;
		result->nightly[day] = span > 0 ? n->nightly_s[day] / span : 0;
	}
	/* The early morning of the first day belongs to a night before. */
	nights += committed_s(n, n->begin_s, n->begin_s + NIGHT_OPENS_H * HOUR);
	result->unavailable = (n->down_night_s + n->down_day_s) / all;
	result->by_night = n->down_night_s / nights;
	result->by_day = n->down_day_s / (all - nights);
	result->repairs = n->sent_bytes / (double)n->set.object_bytes / (all / DAY);
	result->stored = copies / n->set.objects;
	if (n->hours_judged) {
		result->wrong_leaves = (double)n->wrong_leaves / (double)n->hours_judged;
		result->wrong_stays = (double)n->wrong_stays / (double)n->hours_judged;
	}
}

void night_run(const struct night_setup *setup, struct night_result *ret_result)
{
	struct night *n = malloc(sizeof(*n));

	if (!n)
		simnet_die("night: no memory");
	init(n, setup);
	for (; n->now_s < n->end_s; n->now_s += NIGHT_STEP_S) {
		night_hosts_step(n);
		night_store_flows(n);
		if (n->now_s % 60 == 0)
			commit_due(n);
		if (setup->repair && n->now_s % REPAIR_S == 0)
			night_store_repair(n);
		if (n->now_s % SURPLUS_S == 0)
			night_store_surplus(n);
		if (n->now_s % 60 == 0)
			night_store_trim(n);
	}
	judge(n);
	*ret_result = n->result;
	free(n->flows);
	free(n->objects);
	free(n->hosts);
	free(n);
}

uint32_t night_relearned(const struct night_setup *setup, const struct night_result *result,
			 double target, uint32_t nights)
{
	uint32_t end = setup->learn_days + setup->days, good = 0;

	for (uint32_t day = setup->change_day; day + 1 < end; day++) {
		good = result->nightly[day] < target ? good + 1 : 0;
		if (good == nights)
			return day + 1 - nights - setup->change_day;
	}
	return UINT32_MAX;
}
