// SPDX-License-Identifier: LGPL-2.1-or-later
/* One call to several members, a few at a time, until enough have said yes. */
#include <errno.h>
#include <stdlib.h>

#include "overlay/half.h"

static void fan_pump(struct fan *fan);

static int leg_data(void *ctx, uint32_t total, const uint8_t *bytes, size_t size)
{
	struct fan_leg *leg = ctx;

	return leg->fan->ops->data ? leg->fan->ops->data(leg, total, bytes, size) : -EBADMSG;
}

static void leg_done(void *ctx, int status, const uint8_t *bytes, size_t size);

static const struct net_caller leg_caller = { .data = leg_data, .done = leg_done };

static int leg_call(struct fan_leg *leg)
{
	struct fan *fan = leg->fan;

	if (fan->ops->begin)
		fan->ops->begin(leg);
	return net_call(fan->overlay->net, &leg->node, &fan->call, fan->stream_fd, fan->stall_ms,
			&leg_caller, leg, &leg->id);
}

static void call_off_rest(struct fan *fan)
{
	for (uint32_t i = 0; i < OVERLAY_FAN_WIDTH; i++) {
		if (!fan->legs[i].active)
			continue;
		net_call_cancel(fan->overlay->net, fan->legs[i].id);
		fan->legs[i].active = false;
		fan->active--;
	}
}

static void leg_done(void *ctx, int status, const uint8_t *bytes, size_t size)
{
	struct fan_leg *leg = ctx;
	struct fan *fan = leg->fan;

	/* An idle connection may have been gone for long without a sign: once more on a new one. */
	if (status == -ECONNRESET && !leg->retried) {
		leg->retried = true;
		if (leg_call(leg) == 0)
			return;
	}
	leg->active = false;
	fan->active--;
	if (status == 0 && fan->ops->answer)
		fan->ops->answer(leg, bytes, size);
	if (fan->ops->result(leg, status))
		fan->yes++;
	if (fan->first_wins && fan->yes >= fan->wanted)
		call_off_rest(fan);
	fan_pump(fan);
}

static int on_finish(sd_event_source *source, void *arg)
{
	struct fan *fan = arg;

	(void)source;
	fan->ops->finished(fan);
	return 0;
}

static struct fan_leg *free_leg(struct fan *fan)
{
	for (uint32_t i = 0; i < fan->width; i++) {
		if (!fan->legs[i].active)
			return &fan->legs[i];
	}
	return NULL;
}

static void fan_pump(struct fan *fan)
{
	struct fan_leg *leg;

	while (fan->next < fan->target_count && fan->yes < fan->wanted &&
	       fan->yes + fan->active < (uint64_t)fan->wanted + fan->spare &&
	       (leg = free_leg(fan))) {
		int r;

		leg->node = fan->targets[fan->next++];
		leg->retried = false;
		r = leg_call(leg);
		if (r == 0) {
			leg->active = true;
			fan->active++;
		} else if (fan->ops->result(leg, r)) {
			fan->yes++;
		}
	}
	if (fan->active == 0)
		(void)sd_event_source_set_enabled(fan->finish, SD_EVENT_ONESHOT);
}

int fan_start(struct fan *fan)
{
	int r = sd_event_add_defer(fan->overlay->event, &fan->finish, on_finish, fan);

	if (r >= 0)
		r = sd_event_source_set_enabled(fan->finish, SD_EVENT_OFF);
	if (r < 0)
		return r;
	if (fan->width == 0 || fan->width > OVERLAY_FAN_WIDTH)
		fan->width = OVERLAY_FAN_WIDTH;
	for (uint32_t i = 0; i < OVERLAY_FAN_WIDTH; i++)
		fan->legs[i].fan = fan;
	fan_pump(fan);
	return 0;
}

void fan_hedge(struct fan *fan)
{
	fan->spare++;
	fan_pump(fan);
}

void fan_free(struct fan *fan)
{
	for (uint32_t i = 0; i < OVERLAY_FAN_WIDTH; i++) {
		if (fan->legs[i].active)
			net_call_cancel(fan->overlay->net, fan->legs[i].id);
	}
	sd_event_source_disable_unref(fan->finish);
	free(fan->targets);
}
