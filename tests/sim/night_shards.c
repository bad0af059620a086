/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checkpoints as shards: the product's choice of scheme and hosts, and its repair, over a table of
 * members in which everybody knows at once who is on and what he says.
 */
#include <stdlib.h>
#include <string.h>

#include "overlay/core/spread.h"
#include "overlay/core/state.h"
#include "tests/sim/night_internal.h"

enum {
	CODE_AFTER_S = 4 * HOUR, /* 16 checkpoints of 15 minutes */
	CODE_AGAIN_S =
		12 * HOUR, /* a host that looks more often changes little but the time that takes */
	REFUSED_MAX = 48,
};

/* --- the table ---------------------------------------------------------------------------- */

static bool verify_card(void *ctx, const struct node_card *card)
{
	(void)ctx;
	(void)card;
	return true;
}

/* Whoever asks; it keeps nothing. */
static void speak_as(struct night *n, const struct node_id *id)
{
	n->core->config.card.id = *id;
}

void night_table_host(struct night *n, uint32_t i)
{
	const struct host *host = &n->hosts[i];
	struct member *member;

	if (!n->core)
		return;
	n->core->now_ms = n->now_s * 1000;
	member = core_member_find(n->core, &host->id);
	if (!member)
		simnet_die("night: a host is not in the table");
	if (!host->on && member->info.state == MEMBER_ALIVE)
		member->heard_ms = n->core->now_ms;
	member->info.state = host->on ? MEMBER_ALIVE : MEMBER_DEAD;
	member->info.report.flags = MEMBER_STORES_PACKS;
	member->info.report.stays = host->stays;
	member->info.report.store_free_bytes = host->said_free_bytes;
	member->info.report.store_used_bytes = n->set.quota_bytes - host->said_free_bytes;
}

void night_table_join(struct night *n, uint32_t i)
{
	const struct host *host = &n->hosts[i];
	struct core_gossip record = {
		.id = host->id, .incarnation = 1, .state = MEMBER_ALIVE, .kind = CORE_GOSSIP_FULL
	};

	if (!n->core)
		return;
	record.card.id = host->id;
	memcpy(record.card.room, host->room, sizeof(record.card.room));
	core_member_apply(n->core, &host->id, &record, false);
	night_table_host(n, i);
}

void night_table_leave(struct night *n, uint32_t i)
{
	struct member *member = n->core ? core_member_find(n->core, &n->hosts[i].id) : NULL;

	if (!member)
		return;
	if (member->info.state == MEMBER_ALIVE)
		member->heard_ms = n->now_s * 1000;
	member->info.state = MEMBER_DEAD;
}

void night_table_init(struct night *n)
{
	struct core_config config = { .card.id = { { 1 } },
				      .probe_ms = 1000,
				      .suspect_ms = 6000,
				      .renew_ms = 5000,
				      .lease_ms = 20000,
				      .hold_ms = 22000,
				      .incarnation = 1,
				      .verify_card = verify_card };

	if (!n->set.coded)
		return;
	n->core = calloc(1, core_size());
	if (!n->core || core_init(n->core, &config, 0) < 0)
		simnet_die("night: no table");
	n->core->members[0].info.state = MEMBER_LEFT;
	for (uint32_t i = 0; i < n->set.hosts; i++)
		night_table_join(n, i);
}

static uint32_t row_host(const struct night *n, const struct node_id *id)
{
	for (uint32_t i = 0; i < n->set.hosts; i++)
		if (node_id_equal(&n->hosts[i].id, id))
			return i;
	simnet_die("night: nobody has this id");
	return 0;
}

/* --- to hosts, as scatter.c does it -------------------------------------------------------- */

/* kept and refused as in a struct scatter; false if there is nobody left. */
static bool next_host(struct night *n, struct core_spread *spread, struct node_id *refused,
		      uint32_t *ret_host)
{
	struct node_id id;

	while (core_spread_next(n->core, spread, &id)) {
		struct host *host = &n->hosts[row_host(n, &id)];

		if (host->used_bytes + spread->size <= n->set.quota_bytes) {
			host->used_bytes += spread->size;
			*ret_host = (uint32_t)(host - n->hosts);
			return true;
		}
		n->result.refused++;
		if (spread->refused_count == REFUSED_MAX)
			return false;
		refused[spread->refused_count++] = id;
	}
	return false;
}

/* --- from copies to shards ----------------------------------------------------------------- */

static bool is_settled(const struct object *object)
{
	for (uint32_t i = 0; i < object->count; i++)
		if (object->copies[i].arriving)
			return false;
	return object->committed && !object->lost && object->there > 0;
}

static void become(struct night *n, struct object *object, const struct core_scheme *scheme,
		   uint32_t bytes, const uint32_t *hosts)
{
	for (uint32_t i = 0; i < object->count; i++)
		if (!object->copies[i].wiped)
			n->hosts[object->copies[i].host].used_bytes -= object->piece_bytes;
	object->k = object->need = scheme->k;
	object->m = scheme->m;
	object->piece_bytes = bytes;
	object->count = object->there = scheme->k + scheme->m;
	object->coded_s = n->now_s;
	for (uint32_t i = 0; i < object->count; i++)
		object->copies[i] = (struct copy){ .host = hosts[i], .id = n->hosts[hosts[i]].id };
}

static void code(struct night *n, struct object *object, uint32_t owner)
{
	struct node_id kept[OV_SHARDS_MAX], refused[REFUSED_MAX] = { n->hosts[owner].id };
	uint32_t size = (uint32_t)n->set.object_bytes, hosts[OV_SHARDS_MAX];
	struct core_spread spread = {
		.hash = &object->hash, .kept = kept, .refused = refused, .refused_count = 1
	};
	struct core_scheme scheme;

	speak_as(n, &n->hosts[owner].id);
	if (core_spread_scheme(n->core, &object->hash, size, &n->set.scheme, &scheme) < 0)
		return;
	spread.size = size / scheme.k;
	spread.room_max = scheme.m;
	while (spread.kept_count < scheme.k + scheme.m &&
	       next_host(n, &spread, refused, &hosts[spread.kept_count])) {
		kept[spread.kept_count] = n->hosts[hosts[spread.kept_count]].id;
		spread.kept_count++;
	}
	if (spread.kept_count == scheme.k + scheme.m) {
		become(n, object, &scheme, size / scheme.k, hosts);
		return;
	}
	for (uint32_t i = 0; i < spread.kept_count; i++)
		n->hosts[hosts[i]].used_bytes -= spread.size;
}

void night_shards_code(struct night *n)
{
	for (uint32_t i = 0; n->core && i < n->set.objects; i++) {
		struct object *object = &n->objects[i];
		uint32_t owner;

		if (object->k || !is_settled(object) ||
		    n->now_s < object->commit_s + CODE_AFTER_S || n->now_s < object->again_s)
			continue;
		object->again_s = n->now_s + CODE_AGAIN_S;
		owner = night_live_host(n);
		if (owner < n->set.hosts)
			code(n, object, owner);
	}
}

/* --- repair, as rebuild.c does it ---------------------------------------------------------- */

/* What is to be made now, and by whom. */
static uint32_t plan(struct night *n, const struct object *object, uint32_t *ret_actor,
		     uint32_t *ret_there, bool *ret_stable_only)
{
	struct node_id ids[OV_SHARDS_MAX];
	uint32_t actor = n->set.hosts, want;

	for (uint32_t i = 0; i < object->count; i++) {
		const struct copy *copy = &object->copies[i];

		ids[i] = copy->id;
		if (actor == n->set.hosts && !copy->wiped && n->hosts[copy->host].on)
			actor = copy->host;
	}
	/* Who has just come back waits until he has heard who is there. */
	if (actor == n->set.hosts ||
	    n->now_s < n->hosts[actor].on_since_s + n->set.rule.lazy_ms / 1000)
		return 0;
	speak_as(n, &n->hosts[actor].id);
	n->core->now_ms = n->now_s * 1000;
	want = core_spread_repair(n->core, &n->set.rule, ids, object->k, object->m, ret_there,
				  ret_stable_only);
	while ((uint32_t)__builtin_popcount(want) > object->m)
		want &= want - 1;
	*ret_actor = actor;
	return want;
}

static int compare_wanted(const void *a, const void *b)
{
	const struct wanted *x = a, *y = b;

	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	return x->object < y->object ? -1 : x->object > y->object;
}

/* The fewest that are there first. */
void night_shards_look(struct night *n)
{
	uint32_t actor, there;
	bool stable_only;

	n->wanted_count = 0;
	for (uint32_t i = 0; n->core && i < n->set.objects; i++) {
		const struct object *object = &n->objects[i];

		if (object->k && !object->lost && plan(n, object, &actor, &there, &stable_only))
			n->wanted[n->wanted_count++] =
				(struct wanted){ .object = i, .rank = there - object->k };
	}
	if (n->wanted_count)
		qsort(n->wanted, n->wanted_count, sizeof(*n->wanted), compare_wanted);
}

/* One object at a time is put together by a host, when its bucket has what that costs. */
static void start_ops(struct night *n)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < n->wanted_count; i++) {
		struct object *object = &n->objects[n->wanted[i].object];
		struct shard_op op = { .object = n->wanted[i].object };
		uint32_t there;
		uint64_t bytes;

		op.want = plan(n, object, &op.actor, &there, &op.stable_only);
		if (!op.want || object->lost || object->rebuilding)
			continue;
		bytes = (uint64_t)object->piece_bytes *
			(object->k + (uint32_t)__builtin_popcount(op.want));
		if (n->hosts[op.actor].rebuilding || n->op_count == FLOWS_MAX ||
		    !core_bucket_take(&n->hosts[op.actor].bucket, n->now_s * 1000, bytes)) {
			n->wanted[left++] = n->wanted[i];
			continue;
		}
		op.actor_id = n->hosts[op.actor].id;
		op.left_bytes = (double)object->piece_bytes * (object->k - 1);
		n->hosts[op.actor].rebuilding = object->rebuilding = true;
		n->hosts[op.actor].flows_in++;
		n->ops[n->op_count++] = op;
	}
	n->wanted_count = left;
}

/* Read: each that is missing gets a host. False: nobody takes any. */
static bool scatter(struct night *n, struct shard_op *op)
{
	struct object *object = &n->objects[op->object];
	struct node_id kept[OV_SHARDS_MAX], refused[REFUSED_MAX];
	struct core_spread spread = { .hash = &object->hash,
				      .size = object->piece_bytes,
				      .room_max = object->m,
				      .kept = kept,
				      .refused = refused,
				      .stable_only = op->stable_only };

	for (uint32_t i = 0; i < object->count; i++) {
		if (op->want & 1u << i)
			refused[spread.refused_count++] = object->copies[i].id;
		else
			kept[spread.kept_count++] = object->copies[i].id;
	}
	for (uint32_t i = 0; i < object->count; i++) {
		if (!(op->want & 1u << i))
			continue;
		if (!next_host(n, &spread, refused, &op->target[i]))
			break;
		op->target_id[i] = kept[spread.kept_count++] = n->hosts[op->target[i]].id;
		op->placed |= 1u << i;
	}
	op->left_bytes = (double)object->piece_bytes * __builtin_popcount(op->placed);
	return op->placed;
}

static bool is_same_host(const struct night *n, uint32_t host, const struct node_id *id)
{
	return node_id_equal(&n->hosts[host].id, id);
}

/* The list names another: what lay with the old one goes when that one has seen it there. */
static void hand_over(struct night *n, struct object *object, uint32_t index, uint32_t to)
{
	struct copy *copy = &object->copies[index];
	struct host *old = &n->hosts[copy->host];
	bool was_there = !copy->wiped && old->on;

	if (was_there) {
		old->used_bytes -= object->piece_bytes;
		n->sent_bytes += (double)object->piece_bytes;
	} else if (!copy->wiped) {
		old->superseded_bytes += object->piece_bytes;
	}
	*copy = (struct copy){ .host = to, .id = n->hosts[to].id };
	night_store_one_more(n, object);
	if (was_there)
		night_store_one_less(n, object);
}

static void end_op(struct night *n, uint32_t at, bool done)
{
	struct shard_op *op = &n->ops[at];
	struct object *object = &n->objects[op->object];
	struct host *actor = &n->hosts[op->actor];

	for (uint32_t i = 0; i < OV_SHARDS_MAX; i++) {
		if (!(op->placed & 1u << i) || !is_same_host(n, op->target[i], &op->target_id[i]))
			continue;
		if (done && n->hosts[op->target[i]].on)
			hand_over(n, object, i, op->target[i]);
		else
			n->hosts[op->target[i]].used_bytes -= object->piece_bytes;
	}
	if (op->placed)
		actor->flows_out--;
	else
		actor->flows_in--;
	actor->rebuilding = object->rebuilding = false;
	n->result.failed_flows += !done;
	n->ops[at] = n->ops[--n->op_count];
}

static void step_op(struct night *n, uint32_t at)
{
	struct shard_op *op = &n->ops[at];
	const struct object *object = &n->objects[op->object];
	struct host *actor = &n->hosts[op->actor];
	uint32_t flows = op->placed ? actor->flows_out : actor->flows_in;
	double part = (double)n->set.link_bytes_s / flows * NIGHT_STEP_S;

	if (!actor->on || !is_same_host(n, op->actor, &op->actor_id)) {
		end_op(n, at, false);
		return;
	}
	part = part < op->left_bytes ? part : op->left_bytes;
	op->left_bytes -= part;
	n->sent_bytes += part;
	n->sent_span += part;
	if (op->left_bytes > 0)
		return;
	if (op->placed) {
		end_op(n, at, true);
	} else if (object->there < object->k || !scatter(n, op)) {
		end_op(n, at, false);
	} else {
		actor->flows_in--;
		actor->flows_out++;
	}
}

void night_shards_step(struct night *n)
{
	for (uint32_t i = n->op_count; i-- > 0;)
		step_op(n, i);
	if (n->core)
		start_ops(n);
}
