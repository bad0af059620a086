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

static void add_down(struct down *down, bool night, uint64_t span_s)
{
	if (night)
		down->night_s += (double)span_s;
	else
		down->day_s += (double)span_s;
}

/* Until now. Night i begins on day i at closing time. */
void night_was_down(struct night *n, const struct object *object)
{
	uint64_t from_s = object->down_s > n->begin_s ? object->down_s : n->begin_s;

	while (from_s < n->now_s) {
		uint64_t day = from_s / DAY, hour = from_s % DAY / HOUR, until_s;
		bool night = hour >= NIGHT_CLOSES_H || hour < NIGHT_OPENS_H;

		if (hour < NIGHT_OPENS_H)
			until_s = day * DAY + NIGHT_OPENS_H * HOUR;
		else if (hour < NIGHT_CLOSES_H)
			until_s = day * DAY + NIGHT_CLOSES_H * HOUR;
		else
			until_s = (day + 1) * DAY + NIGHT_OPENS_H * HOUR;
		until_s = until_s < n->now_s ? until_s : n->now_s;
		add_down(&n->down, night, until_s - from_s);
		if (object->k)
			add_down(&n->down_coded, night, until_s - from_s);
		if (night) {
			uint64_t began = hour < NIGHT_OPENS_H && day ? day - 1 : day;

			n->nightly_s[began] += (double)(until_s - from_s);
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
	n->ops = calloc(FLOWS_MAX, sizeof(*n->ops));
	n->wanted = calloc(set->objects, sizeof(*n->wanted));
	if (!n->hosts || !n->objects || !n->flows || !n->ops || !n->wanted)
		simnet_die("night: no memory");
	night_hosts_init(n);
	night_table_init(n);
	/* Committed at any time of the first day: by night as well, when few are there. */
	for (uint32_t i = 0; i < set->objects; i++) {
		struct object *object = &n->objects[i];

		for (size_t k = 0; k < sizeof(object->hash.b); k++)
			object->hash.b[k] = (uint8_t)dice_below(&n->dice, 256);
		object->commit_s = n->begin_s + dice_below(&n->dice, DAY);
		object->piece_bytes = set->object_bytes;
		object->need = 1;
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

static double committed_s(const struct night *n, bool coded, uint64_t from_s, uint64_t to_s)
{
	double sum = 0;

	for (uint32_t i = 0; i < n->set.objects; i++) {
		const struct object *object = &n->objects[i];
		uint64_t start = coded ? object->coded_s : object->commit_s;

		start = start > from_s ? start : from_s;
		if ((coded ? object->k > 0 : object->committed) && start < to_s)
			sum += (double)(to_s - start);
	}
	return sum;
}

/* The early morning of the first day belongs to a night before. */
static double nights_s(struct night *n, bool coded)
{
	double sum = committed_s(n, coded, n->begin_s, n->begin_s + NIGHT_OPENS_H * HOUR);

	for (uint64_t day = 0; day < n->end_s / DAY; day++) {
		uint64_t from_s = day * DAY + NIGHT_CLOSES_H * HOUR;
		uint64_t to_s = (day + 1) * DAY + NIGHT_OPENS_H * HOUR;
		double span = committed_s(n, coded, from_s, to_s < n->end_s ? to_s : n->end_s);

		if (!coded)
			n->result.nightly[day] = span > 0 ? n->nightly_s[day] / span : 0;
		sum += span;
	}
	return sum;
}

static double object_bytes(const struct object *object)
{
	double bytes = 0;

	for (uint32_t i = 0; i < object->count; i++)
		if (!object->copies[i].wiped && !object->copies[i].arriving)
			bytes += (double)object->piece_bytes;
	return bytes;
}

static void judge_coded(struct night *n)
{
	double all = committed_s(n, true, n->begin_s, n->end_s), nights = nights_s(n, true);
	struct night_result *result = &n->result;
	double bytes = 0, count = 0;

	for (uint32_t i = 0; i < n->set.objects; i++) {
		const struct object *object = &n->objects[i];

		if (!object->k)
			continue;
		count++;
		bytes += object_bytes(object);
		result->schemes[object->k == 8 ? 2 : object->m == 4]++;
	}
	for (uint32_t i = 0; i < n->set.hosts; i++)
		bytes += (double)n->hosts[i].superseded_bytes;
	if (count == 0)
		return;
	result->coded = count / n->set.objects;
	result->coded_size = bytes / count / (double)n->set.object_bytes;
	result->coded_unavailable = (n->down_coded.night_s + n->down_coded.day_s) / all;
	result->coded_by_night = n->down_coded.night_s / nights;
	result->coded_by_day = n->down_coded.day_s / (all - nights);
}

static void judge(struct night *n)
{
	struct night_result *result = &n->result;
	double all, nights, bytes = 0;

	for (uint32_t i = 0; i < n->set.objects; i++) {
		const struct object *object = &n->objects[i];

		if (!object->committed)
			simnet_die("night: an object was never stored");
		if (object->there < object->need)
			night_was_down(n, object);
		bytes += object_bytes(object);
	}
	all = committed_s(n, false, n->begin_s, n->end_s);
	nights = nights_s(n, false);
	result->unavailable = (n->down.night_s + n->down.day_s) / all;
	result->by_night = n->down.night_s / nights;
	result->by_day = n->down.day_s / (all - nights);
	result->repairs = n->sent_bytes / (double)n->set.object_bytes / (all / DAY);
	result->stored = bytes / n->set.objects / (double)n->set.object_bytes;
	judge_coded(n);
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
		night_shards_step(n);
		if (n->now_s % 60 == 0)
			commit_due(n);
		if (n->now_s % 60 == 0)
			night_shards_code(n);
		if (setup->repair && n->now_s % REPAIR_S == 0)
			night_store_repair(n);
		if (setup->repair && n->now_s % REPAIR_S == 0)
			night_shards_look(n);
		if (n->now_s % SURPLUS_S == 0)
			night_store_surplus(n);
		if (n->now_s % 60 == 0)
			night_store_trim(n);
	}
	judge(n);
	*ret_result = n->result;
	free(n->wanted);
	free(n->ops);
	free(n->core);
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
