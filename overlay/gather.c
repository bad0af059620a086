// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * k shards of an object: what lies here, then k holders at once, and one more for each that fails
 * or is slow. A shard counts if it has the hash that the group names.
 */
#include <ctype.h>
#include <errno.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/coded.h"
#include "overlay/net/internal.h"

enum {
	LOOK_MS = 100,
	SLOW_MS = 500,	/* nothing moved for so long: another shard is asked for too */
	LONG_MS = 5000, /* drop by drop is no better */
	STALL_MS = 12 * 1000,
};

static void pump(struct gather *g);

/* --- one leg ----------------------------------------------------------------------------- */

static void leg_drop(struct gather_leg *leg)
{
	free(leg->bytes);
	leg->bytes = NULL;
	leg->received = 0;
}

static void name_liar(const struct gather_leg *leg, const char *what)
{
	struct overlay *overlay = leg->gather->overlay;
	const struct node_card *card = core_card(overlay->core, &leg->node);
	char name[OV_NAME_MAX] = "?";

	if (card)
		memcpy(name, card->hostname, sizeof(name) - 1);
	for (char *c = name; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr(".-_", *c))
			*c = '?';
	store_count_bad(overlay->store);
	log_warn("gather: peer=%s (%02x%02x%02x%02x) shard=%u: %s", name, leg->node.b[0],
		 leg->node.b[1], leg->node.b[2], leg->node.b[3], leg->index, what);
}

static int on_data(void *ctx, uint32_t total, const uint8_t *bytes, size_t size)
{
	struct gather_leg *leg = ctx;
	struct gather *g = leg->gather;

	if (total != g->bytes || leg->received + size > g->bytes) {
		name_liar(leg, "of another size");
		return -EBADMSG;
	}
	if (!leg->bytes) {
		leg->bytes = malloc(g->bytes);
		if (!leg->bytes || EVP_DigestInit_ex(leg->digest, EVP_sha256(), NULL) != 1)
			return -ENOMEM;
	}
	if (EVP_DigestUpdate(leg->digest, bytes, size) != 1)
		return -ENOMEM;
	memcpy(leg->bytes + leg->received, bytes, size);
	leg->received += (uint32_t)size;
	leg->moved_ms = net_now_ms();
	return 0;
}

/* All heads of a group are the same but for the index. */
static bool is_of_group(const struct gather *g, uint32_t index, const uint8_t *bytes)
{
	struct shard_head head, wanted = g->head;

	wanted.index = index;
	return shard_decode(bytes, g->bytes, &head) == 0 && !memcmp(&head, &wanted, sizeof(head));
}

static void take(struct gather_leg *leg)
{
	struct gather *g = leg->gather;
	struct object_hash found = { 0 };
	unsigned int size = sizeof(found.b);

	if (leg->received != g->bytes || EVP_DigestFinal_ex(leg->digest, found.b, &size) != 1 ||
	    memcmp(&found, &g->group.shards[leg->index], sizeof(found)) != 0) {
		name_liar(leg, "wrong hash");
		return;
	}
	if (!is_of_group(g, leg->index, leg->bytes)) {
		log_warn("gather: a group names what is no shard of it");
		return;
	}
	if (g->have & 1u << leg->index)
		return;
	g->shards[leg->index] = take_ptr(leg->bytes);
	g->served[leg->index] = leg->node;
	g->have |= 1u << leg->index;
}

static void on_done(void *ctx, int status, const uint8_t *bytes, size_t size);

static const struct net_caller caller = { .data = on_data, .done = on_done };

static int leg_call(struct gather_leg *leg)
{
	struct net_call call = { .op = NET_OP_GET,
				 .object.hash = leg->gather->group.shards[leg->index] };

	leg_drop(leg);
	leg->hedged = false;
	leg->began_ms = leg->moved_ms = net_now_ms();
	return net_call(leg->gather->overlay->net, &leg->node, &call, -1, STALL_MS, &caller, leg,
			&leg->id);
}

static void on_done(void *ctx, int status, const uint8_t *bytes, size_t size)
{
	struct gather_leg *leg = ctx;
	struct gather *g = leg->gather;

	(void)bytes;
	(void)size;
	if (status == -ECONNRESET && !leg->retried) {
		leg->retried = true;
		if (leg_call(leg) == 0)
			return;
	}
	leg->active = false;
	g->active--;
	if (status == 0)
		take(leg);
	else
		log_debug("gather: peer=%02x%02x shard=%u status=%d", leg->node.b[0],
			  leg->node.b[1], leg->index, status);
	leg_drop(leg);
	pump(g);
}

/* --- whom to ask ------------------------------------------------------------------------- */

static bool is_live(const struct node_id *live, uint32_t count, const struct node_id *node)
{
	for (uint32_t i = 0; i < count; i++)
		if (node_id_equal(&live[i], node))
			return true;
	return false;
}

static void add_ask(struct gather *g, uint32_t index, const struct node_id *node)
{
	if (g->ask_count < GATHER_ASKS_MAX)
		g->asks[g->ask_count++] = (struct gather_ask){ .index = index, .node = *node };
}

/* Named holders that are there; then, of what is still missing, everybody else. */
static void list_asks(struct gather *g, bool widely)
{
	_cleanup_free_ struct node_id *live = NULL;
	uint32_t count = driver_live_peers(g->overlay, &live);

	g->widely = widely;
	g->ask_next = g->ask_count = 0;
	for (uint32_t i = 0; i < g->group.k + g->group.m; i++) {
		const struct node_id *holder = &g->group.holders[i];

		if (g->have & 1u << i)
			continue;
		if (!widely && is_live(live, count, holder))
			add_ask(g, i, holder);
		for (uint32_t k = 0; widely && k < count; k++)
			if (!node_id_equal(&live[k], holder))
				add_ask(g, i, &live[k]);
	}
}

static void stop_legs(struct gather *g)
{
	for (uint32_t i = 0; i < GATHER_LEGS_MAX; i++) {
		if (g->legs[i].active)
			net_call_cancel(g->overlay->net, g->legs[i].id);
		g->legs[i].active = false;
		leg_drop(&g->legs[i]);
	}
	g->active = 0;
}

static void conclude(struct gather *g, int status)
{
	stop_legs(g);
	g->status = status;
	(void)sd_event_source_set_enabled(g->timer, SD_EVENT_OFF);
	(void)sd_event_source_set_enabled(g->finish, SD_EVENT_ONESHOT);
}

static struct gather_leg *free_leg(struct gather *g)
{
	for (uint32_t i = 0; i < GATHER_LEGS_MAX; i++)
		if (!g->legs[i].active)
			return &g->legs[i];
	return NULL;
}

static void ask(struct gather *g, struct gather_leg *leg)
{
	const struct gather_ask *next = &g->asks[g->ask_next++];

	if (g->have & 1u << next->index)
		return;
	leg->index = next->index;
	leg->node = next->node;
	leg->retried = false;
	if (leg_call(leg) == 0) {
		leg->active = true;
		g->active++;
	}
}

static void pump(struct gather *g)
{
	struct gather_leg *leg;

	while (g->status == -EINPROGRESS) {
		uint32_t have = (uint32_t)__builtin_popcount(g->have);

		if (have >= g->group.k) {
			conclude(g, 0);
		} else if (g->ask_next == g->ask_count && !g->active) {
			if (g->widely)
				conclude(g, -ENOENT);
			else
				list_asks(g, true);
		} else if (g->ask_next < g->ask_count && have + g->active < g->group.k + g->spare &&
			   (leg = free_leg(g))) {
			ask(g, leg);
		} else {
			return;
		}
	}
}

static int on_look(sd_event_source *source, uint64_t usec, void *arg)
{
	struct gather *g = arg;
	uint64_t now = net_now_ms();

	(void)usec;
	for (uint32_t i = 0; i < GATHER_LEGS_MAX; i++) {
		struct gather_leg *leg = &g->legs[i];

		if (!leg->active || leg->hedged ||
		    (now - leg->moved_ms < SLOW_MS && now - leg->began_ms < LONG_MS))
			continue;
		leg->hedged = true;
		g->spare++;
	}
	if (sd_event_source_set_time_relative(source, LOOK_MS * 1000) >= 0)
		(void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	if (!g->reading)
		pump(g);
	return 0;
}

/* --- what lies here ---------------------------------------------------------------------- */

int gather_room(struct gather *g, uint32_t index)
{
	if (!g->shards[index])
		g->shards[index] = malloc(g->bytes);
	return g->shards[index] ? 0 : -ENOMEM;
}

static void read_run(struct store_task *task)
{
	struct gather *g = container_of(task, struct gather, task);

	for (uint32_t i = 0; i < g->group.k + g->group.m; i++) {
		_cleanup_free_ uint8_t *bytes = NULL;
		uint32_t size = 0;

		if ((uint32_t)__builtin_popcount(g->have) >= g->group.k)
			return;
		if (store_read(g->overlay->store, &g->group.shards[i], &bytes, &size) < 0 ||
		    size != g->bytes || !is_of_group(g, i, bytes))
			continue;
		g->shards[i] = take_ptr(bytes);
		g->have |= 1u << i;
	}
}

static void read_done(struct store_task *task)
{
	struct gather *g = container_of(task, struct gather, task);

	g->reading = false;
	if (g->dead || task->cancelled) {
		if (g->dead)
			gather_free(g);
		return;
	}
	list_asks(g, false);
	pump(g);
}

static int on_finish(sd_event_source *source, void *arg)
{
	struct gather *g = arg;

	(void)source;
	g->done(g, g->status);
	return 0;
}

/* --- life -------------------------------------------------------------------------------- */

static int prepare(struct gather *g)
{
	int r;

	g->asks = calloc(GATHER_ASKS_MAX, sizeof(*g->asks));
	if (!g->asks)
		return -ENOMEM;
	for (uint32_t i = 0; i < GATHER_LEGS_MAX; i++) {
		g->legs[i].gather = g;
		g->legs[i].digest = EVP_MD_CTX_new();
		if (!g->legs[i].digest)
			return -ENOMEM;
	}
	r = sd_event_add_defer(g->overlay->event, &g->finish, on_finish, g);
	if (r >= 0)
		r = sd_event_source_set_enabled(g->finish, SD_EVENT_OFF);
	if (r >= 0)
		r = sd_event_add_time_relative(g->overlay->event, &g->timer, CLOCK_MONOTONIC,
					       LOOK_MS * 1000, 1000, on_look, g);
	return r < 0 ? r : 0;
}

int gather_start(struct overlay *overlay, const struct ov_group *group,
		 void (*done)(struct gather *gather, int status), void *owner,
		 struct gather **ret_gather)
{
	struct gather *g = calloc(1, sizeof(*g));
	int r = g ? 0 : -ENOMEM;

	if (r < 0)
		return r;
	g->overlay = overlay;
	g->group = *group;
	g->head = (struct shard_head){
		.k = group->k, .m = group->m, .size = group->size, .hash = group->hash
	};
	g->bytes = shard_bytes(group->size, group->k);
	g->done = done;
	g->owner = owner;
	g->status = -EINPROGRESS;
	g->task.run = read_run;
	g->task.done = read_done;
	r = prepare(g);
	if (r == 0)
		r = store_worker_submit(overlay->worker, &g->task);
	if (r < 0) {
		gather_free(g);
		return r;
	}
	g->reading = true;
	*ret_gather = g;
	return 0;
}

void gather_free(struct gather *g)
{
	if (!g)
		return;
	if (g->reading) { /* the worker has it; no callback any more */
		g->dead = true;
		sd_event_source_disable_unref(g->timer);
		g->timer = NULL;
		return;
	}
	stop_legs(g);
	for (uint32_t i = 0; i < GATHER_LEGS_MAX; i++)
		EVP_MD_CTX_free(g->legs[i].digest);
	for (uint32_t i = 0; i < OV_SHARDS_MAX; i++)
		free(g->shards[i]);
	sd_event_source_disable_unref(g->timer);
	sd_event_source_disable_unref(g->finish);
	free(g->asks);
	free(g);
}
