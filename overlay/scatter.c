// SPDX-License-Identifier: LGPL-2.1-or-later
/* Shards to hosts: a few at a time, and to another one when a host says no. */
#include <errno.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/log.h"
#include "overlay/coded.h"

static void pump(struct scatter *s);

static void stop_legs(struct scatter *s)
{
	for (uint32_t i = 0; i < SCATTER_LEGS_MAX; i++) {
		if (s->legs[i].active)
			net_call_cancel(s->overlay->net, s->legs[i].id);
		s->legs[i].active = false;
	}
	s->active = 0;
}

static void conclude(struct scatter *s, int status)
{
	stop_legs(s);
	s->status = status;
	(void)sd_event_source_set_enabled(s->finish, SD_EVENT_ONESHOT);
}

static int on_data(void *ctx, uint32_t total, const uint8_t *bytes, size_t size)
{
	(void)ctx;
	(void)total;
	(void)bytes;
	(void)size;
	return -EBADMSG;
}

static void on_done(void *ctx, int status, const uint8_t *bytes, size_t size);

static const struct net_caller caller = { .data = on_data, .done = on_done };

static int leg_call(struct scatter_leg *leg)
{
	struct scatter *s = leg->scatter;
	const struct ov_group *group = s->group;
	struct net_call call = { .op = NET_OP_PUT,
				 .stream_size = s->size,
				 .object = { .job = group->job,
					     .token = group->token,
					     .hash = group->shards[leg->index],
					     .seq = group->seq,
					     .size = s->size } };

	return net_call(s->overlay->net, &leg->node, &call, s->fds[leg->index],
			OVERLAY_PUT_STALL_MS, &caller, leg, &leg->id);
}

static void refuse(struct scatter *s, const struct node_id *node)
{
	if (s->refused_count < SCATTER_REFUSED_MAX)
		s->refused[s->refused_count++] = *node;
	if (s->refused_count == SCATTER_REFUSED_MAX)
		conclude(s, -ENOSPC);
}

static void on_done(void *ctx, int status, const uint8_t *bytes, size_t size)
{
	struct scatter_leg *leg = ctx;
	struct scatter *s = leg->scatter;

	(void)bytes;
	(void)size;
	/* An idle connection may have been gone for long without a sign: once more on a new one. */
	if (status == -ECONNRESET && !leg->retried) {
		leg->retried = true;
		if (leg_call(leg) == 0)
			return;
	}
	leg->active = false;
	s->active--;
	if (status == 0) {
		s->group->holders[leg->index] = leg->node;
		s->placed |= 1u << leg->index;
	} else {
		log_debug("scatter: peer=%02x%02x shard=%u status=%d", leg->node.b[0],
			  leg->node.b[1], leg->index, status);
		refuse(s, &leg->node);
	}
	pump(s);
}

static bool is_on_its_way(const struct scatter *s, uint32_t index)
{
	for (uint32_t i = 0; i < SCATTER_LEGS_MAX; i++)
		if (s->legs[i].active && s->legs[i].index == index)
			return true;
	return false;
}

/* A host that has no shard of the group, nor one on its way. */
static bool next_host(const struct scatter *s, struct node_id *ret_node)
{
	struct node_id kept[OV_SHARDS_MAX];
	struct core_spread spread = { .hash = &s->group->hash,
				      .size = s->size,
				      .room_max = s->group->m,
				      .kept = kept,
				      .refused = s->refused,
				      .refused_count = s->refused_count,
				      .stable_only = s->stable_only };

	for (uint32_t i = 0; i < s->group->k + s->group->m; i++)
		if (!(s->want & 1u << i) || s->placed & 1u << i)
			kept[spread.kept_count++] = s->group->holders[i];
	for (uint32_t i = 0; i < SCATTER_LEGS_MAX; i++)
		if (s->legs[i].active)
			kept[spread.kept_count++] = s->legs[i].node;
	return core_spread_next(s->overlay->core, &spread, ret_node);
}

static struct scatter_leg *free_leg(struct scatter *s)
{
	for (uint32_t i = 0; i < SCATTER_LEGS_MAX; i++)
		if (!s->legs[i].active)
			return &s->legs[i];
	return NULL;
}

static void pump(struct scatter *s)
{
	struct scatter_leg *leg;

	for (uint32_t i = 0; i < s->group->k + s->group->m && s->status == -EINPROGRESS; i++) {
		if (!(s->want & 1u << i) || s->placed & 1u << i || is_on_its_way(s, i))
			continue;
		leg = free_leg(s);
		if (!leg)
			return;
		leg->index = i;
		leg->retried = false;
		if (!next_host(s, &leg->node)) {
			conclude(s, -EHOSTUNREACH);
			return;
		}
		if (leg_call(leg) == 0) {
			leg->active = true;
			s->active++;
		} else {
			refuse(s, &leg->node);
			i--; /* the same shard, another host */
		}
	}
	if (s->status == -EINPROGRESS && s->placed == s->want)
		conclude(s, 0);
}

static int on_finish(sd_event_source *source, void *arg)
{
	struct scatter *s = arg;

	(void)source;
	s->done(s, s->status);
	return 0;
}

int scatter_start(struct scatter *s)
{
	int r = sd_event_add_defer(s->overlay->event, &s->finish, on_finish, s);

	if (r >= 0)
		r = sd_event_source_set_enabled(s->finish, SD_EVENT_OFF);
	if (r < 0)
		return r;
	s->size = shard_bytes(s->group->size, s->group->k);
	s->status = -EINPROGRESS;
	for (uint32_t i = 0; i < SCATTER_LEGS_MAX; i++)
		s->legs[i].scatter = s;
	pump(s);
	return 0;
}

void scatter_stop(struct scatter *s)
{
	if (s->overlay)
		stop_legs(s);
	sd_event_source_disable_unref(s->finish);
	s->finish = NULL;
}
