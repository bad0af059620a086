/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Copies of checkpoints: first placed, repaired over links that have an end, given up. */
#include <stdlib.h>
#include <string.h>

#include "tests/sim/night_internal.h"

enum { DIVERT_MAX = 12, OUT_MAX = 4, IN_MAX = 4 };

struct chooser {
	const struct night *n;
	uint32_t exclude;
};

static void describe(const struct host *host, uint64_t quota_bytes, struct core_holder *ret_holder)
{
	*ret_holder = (struct core_holder){ .id = &host->id,
					    .room = host->room,
					    .free_bytes = host->said_free_bytes,
					    .used_bytes = quota_bytes - host->said_free_bytes,
					    .stays = host->stays };
}

static bool may_hold(const void *ctx, uint32_t row, struct core_holder *ret_holder)
{
	const struct chooser *chooser = ctx;
	const struct host *host = &chooser->n->hosts[row];

	if (!host->on || row == chooser->exclude)
		return false;
	describe(host, chooser->n->set.quota_bytes, ret_holder);
	return true;
}

uint32_t night_live_host(struct night *n)
{
	uint32_t start = dice_below(&n->dice, n->set.hosts);

	for (uint32_t i = 0; i < n->set.hosts; i++)
		if (n->hosts[(start + i) % n->set.hosts].on)
			return (start + i) % n->set.hosts;
	return n->set.hosts;
}

static void add_copy(struct night *n, struct object *object, uint32_t host, bool arriving)
{
	object->copies[object->count++] = (struct copy){ .host = host, .arriving = arriving };
	n->hosts[host].used_bytes += n->set.object_bytes;
	object->there += !arriving;
}

void night_store_commit(struct night *n, uint32_t index)
{
	struct object *object = &n->objects[index];
	struct chooser chooser = { .n = n, .exclude = night_live_host(n) };
	struct core_holders from = { .ctx = &chooser, .count = n->set.hosts, .get = may_hold };
	uint32_t rows[DIVERT_MAX], count;

	count = core_holders_choose(&n->set.rule, &from, &object->hash, n->set.object_bytes, NULL,
				    0, DIVERT_MAX, rows);
	for (uint32_t i = 0; i < count && object->count < n->set.rule.copies; i++) {
		const struct host *host = &n->hosts[rows[i]];

		/* What it said may be older than what has come since. */
		if (host->used_bytes + n->set.object_bytes > n->set.quota_bytes)
			n->result.refused++;
		else
			add_copy(n, object, rows[i], false);
	}
	if (object->count >= 2) {
		object->committed = true;
		object->commit_s = n->now_s;
		return;
	}
	while (object->count)
		n->hosts[object->copies[--object->count].host].used_bytes -= n->set.object_bytes;
	object->there = 0;
}

static void drop_copy(struct night *n, struct object *object, uint32_t at)
{
	struct copy *copy = &object->copies[at];

	if (!copy->wiped)
		n->hosts[copy->host].used_bytes -= n->set.object_bytes;
	object->copies[at] = object->copies[--object->count];
}

static void drop_flow(struct night *n, uint32_t at)
{
	n->hosts[n->flows[at].from].flows_out--;
	n->hosts[n->flows[at].to].flows_in--;
	n->flows[at] = n->flows[--n->flow_count];
}

static void fail_flows(struct night *n, uint32_t host)
{
	for (uint32_t i = n->flow_count; i-- > 0;) {
		struct object *object = &n->objects[n->flows[i].object];
		uint32_t to = n->flows[i].to;

		if (n->flows[i].from != host && to != host)
			continue;
		for (uint32_t k = object->count; k-- > 0;)
			if (object->copies[k].arriving && object->copies[k].host == to)
				drop_copy(n, object, k);
		drop_flow(n, i);
		n->result.failed_flows++;
	}
}

static struct copy *copy_at(struct object *object, uint32_t host)
{
	for (uint32_t i = 0; i < object->count; i++) {
		struct copy *copy = &object->copies[i];

		if (copy->host == host && !copy->wiped && !copy->arriving)
			return copy;
	}
	return NULL;
}

void night_store_one_more(struct night *n, struct object *object)
{
	if (++object->there == object->need && !object->lost)
		night_was_down(n, object);
}

void night_store_one_less(struct night *n, struct object *object)
{
	if (object->there-- == object->need)
		object->down_s = n->now_s;
}

void night_store_came(struct night *n, uint32_t host)
{
	for (uint32_t i = 0; i < n->set.objects; i++) {
		struct object *object = &n->objects[i];

		if (!object->committed || !copy_at(object, host))
			continue;
		night_store_one_more(n, object);
	}
	n->hosts[host].used_bytes -= n->hosts[host].superseded_bytes;
	n->sent_bytes += (double)n->hosts[host].superseded_bytes;
	n->hosts[host].superseded_bytes = 0;
}

void night_store_went(struct night *n, uint32_t host)
{
	fail_flows(n, host);
	for (uint32_t i = 0; i < n->set.objects; i++)
		if (n->objects[i].committed && copy_at(&n->objects[i], host))
			night_store_one_less(n, &n->objects[i]);
}

void night_store_wiped(struct night *n, uint32_t host)
{
	fail_flows(n, host);
	for (uint32_t i = 0; i < n->set.objects; i++) {
		struct object *object = &n->objects[i];
		struct copy *copy = object->committed ? copy_at(object, host) : NULL;
		uint32_t left = 0;

		if (!copy)
			continue;
		if (n->hosts[host].on)
			night_store_one_less(n, object);
		copy->wiped = true;
		copy->wiped_s = n->now_s;
		for (uint32_t k = 0; k < object->count; k++)
			left += !object->copies[k].wiped && !object->copies[k].arriving;
		if (left < object->need && !object->lost) {
			object->lost = true;
			n->result.lost++;
		}
	}
}

static uint32_t describe_copies(const struct night *n, const struct object *object,
				struct core_copy ret_copies[COPIES_MAX])
{
	for (uint32_t i = 0; i < object->count; i++) {
		const struct copy *copy = &object->copies[i];
		const struct host *host = &n->hosts[copy->host];
		uint64_t since_s = copy->wiped ? copy->wiped_s : host->off_since_s;

		describe(host, n->set.quota_bytes, &ret_copies[i].holder);
		ret_copies[i].away_ms = 0;
		if (copy->wiped || !host->on)
			ret_copies[i].away_ms = 1 + (n->now_s - since_s) * 1000;
		else if (copy->arriving)
			ret_copies[i].away_ms = 1; /* counts, but nothing can be made from it */
	}
	return object->count;
}

/* Whoever will not come back with it makes room in the list. */
static void forget_wiped(struct night *n, struct object *object)
{
	for (uint32_t i = object->count; i-- > 0;)
		if (object->copies[i].wiped &&
		    n->now_s - object->copies[i].wiped_s > n->set.rule.gone_ms / 1000)
			drop_copy(n, object, i);
}

static uint32_t sender(struct night *n, struct object *object)
{
	for (uint32_t i = 0; i < object->count; i++) {
		const struct copy *copy = &object->copies[i];
		struct host *host = &n->hosts[copy->host];

		if (!copy->wiped && !copy->arriving && host->on && host->flows_out < OUT_MAX &&
		    core_bucket_take(&host->bucket, n->now_s * 1000, n->set.object_bytes))
			return copy->host;
	}
	return n->set.hosts;
}

static void start_flow(struct night *n, uint32_t index, uint32_t to)
{
	struct object *object = &n->objects[index];
	struct host *host = &n->hosts[to];
	uint32_t from;

	if (n->flow_count == FLOWS_MAX || object->count == COPIES_MAX || host->flows_in >= IN_MAX)
		return;
	if (host->used_bytes + n->set.object_bytes > n->set.quota_bytes) {
		n->result.refused++;
		return;
	}
	from = sender(n, object);
	if (from == n->set.hosts)
		return;
	add_copy(n, object, to, true);
	n->flows[n->flow_count++] = (struct flow){
		.object = index, .from = from, .to = to, .left_bytes = (double)n->set.object_bytes
	};
	n->hosts[from].flows_out++;
	host->flows_in++;
}

struct item {
	struct core_repair_item item;
	uint32_t object;
};

static int compare_items(const void *a, const void *b)
{
	const struct item *x = a, *y = b;

	if (core_repair_before(&x->item, &y->item))
		return -1;
	if (core_repair_before(&y->item, &x->item))
		return 1;
	return x->object < y->object ? -1 : x->object > y->object;
}

static void storm(struct night *n, uint32_t wanted)
{
	struct night_result *result = &n->result;
	double share = (double)wanted / n->set.objects;
	double sent = n->sent_span / ((double)n->set.object_bytes * n->set.objects);

	n->sent_span = 0;
	if (n->now_s < n->begin_s + DAY)
		return;
	if (share > result->storm_wanted)
		result->storm_wanted = share;
	if (n->now_s % DAY / HOUR == NIGHT_CLOSES_H && share > result->storm_evening)
		result->storm_evening = share;
	if (sent > result->storm_sent)
		result->storm_sent = sent;
}

void night_store_repair(struct night *n)
{
	struct item *items = calloc(n->set.objects, sizeof(*items));
	struct core_copy copies[COPIES_MAX];
	uint32_t count = 0;

	for (uint32_t i = 0; items && i < n->set.objects; i++) {
		struct object *object = &n->objects[i];
		bool stable_only;

		if (!object->committed || object->lost || object->k)
			continue;
		forget_wiped(n, object);
		if (!core_repair_missing(&n->set.rule, copies, describe_copies(n, object, copies),
					 &stable_only))
			continue;
		items[count++] = (struct item){ .item = { .newest = i % 2 == 0,
							  .there = object->there,
							  .committed_ms = object->commit_s },
						.object = i };
	}
	storm(n, count);
	qsort(items, count, sizeof(*items), compare_items);
	for (uint32_t i = 0; i < count; i++) {
		struct object *object = &n->objects[items[i].object];
		struct chooser chooser = { .n = n, .exclude = n->set.hosts };
		struct core_holders from = { .ctx = &chooser,
					     .count = n->set.hosts,
					     .get = may_hold };
		uint32_t rows[COPIES_MAX], rows_count;

		rows_count = core_repair_plan(&n->set.rule, &from, &object->hash,
					      n->set.object_bytes, copies,
					      describe_copies(n, object, copies), rows);
		for (uint32_t k = 0; k < rows_count; k++)
			start_flow(n, items[i].object, rows[k]);
	}
	free(items);
}

void night_store_flows(struct night *n)
{
	for (uint32_t i = n->flow_count; i-- > 0;) {
		struct flow *flow = &n->flows[i];
		double out = (double)n->set.link_bytes_s / n->hosts[flow->from].flows_out;
		double in = (double)n->set.link_bytes_s / n->hosts[flow->to].flows_in;
		double part = (out < in ? out : in) * NIGHT_STEP_S;
		struct object *object = &n->objects[flow->object];

		part = part < flow->left_bytes ? part : flow->left_bytes;
		flow->left_bytes -= part;
		if (n->now_s >= n->begin_s)
			n->sent_bytes += part;
		n->sent_span += part;
		if (flow->left_bytes > 0)
			continue;
		for (uint32_t k = 0; k < object->count; k++)
			if (object->copies[k].arriving && object->copies[k].host == flow->to)
				object->copies[k].arriving = false;
		if (object->there++ == 0)
			simnet_die("night: a copy came from nowhere");
		drop_flow(n, i);
	}
}

/* Surplus counts as free, and is what goes when room is needed: see core_give_up_before(). */
void night_store_surplus(struct night *n)
{
	struct core_copy copies[COPIES_MAX];

	for (uint32_t i = 0; i < n->set.hosts; i++)
		n->hosts[i].surplus_bytes = 0;
	for (uint32_t i = 0; i < n->set.objects; i++) {
		struct object *object = &n->objects[i];
		uint32_t count;

		if (!object->committed || object->k)
			continue;
		count = describe_copies(n, object, copies);
		for (uint32_t k = 0; k < count; k++)
			if (!object->copies[k].wiped && !object->copies[k].arriving &&
			    core_repair_surplus(&n->set.rule, copies, count, k))
				n->hosts[object->copies[k].host].surplus_bytes +=
					n->set.object_bytes;
	}
}

/* The object that host can best do without, or set.objects. */
static uint32_t worst_of(struct night *n, uint32_t host)
{
	struct core_copy copies[COPIES_MAX];
	struct core_repair_item worst = { 0 };
	uint32_t found = n->set.objects;

	for (uint32_t i = 0; i < n->set.objects; i++) {
		struct object *object = &n->objects[i];
		struct copy *copy = object->committed && !object->k ? copy_at(object, host) : NULL;
		struct core_repair_item item = { .newest = i % 2 == 0,
						 .committed_ms = object->commit_s };
		uint32_t count;

		if (!copy)
			continue;
		count = describe_copies(n, object, copies);
		if (!core_repair_surplus(&n->set.rule, copies, count,
					 (uint32_t)(copy - object->copies)))
			continue;
		item.there = core_copies_stable(copies, count);
		if (found == n->set.objects || core_give_up_before(&item, &worst)) {
			found = i;
			worst = item;
		}
	}
	return found;
}

static void trim_host(struct night *n, uint32_t host)
{
	uint64_t margin = n->set.quota_bytes / CORE_TRIM_SHARE;

	while (n->hosts[host].used_bytes + margin > n->set.quota_bytes) {
		uint32_t index = worst_of(n, host);
		struct object *object = &n->objects[index];

		if (index == n->set.objects)
			return;
		drop_copy(n, object, (uint32_t)(copy_at(object, host) - object->copies));
		object->there--;
		n->result.given_up++;
	}
}

void night_store_trim(struct night *n)
{
	for (uint32_t i = 0; i < n->set.hosts; i++)
		if (n->hosts[i].on)
			trim_host(n, i);
}
