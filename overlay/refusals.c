// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Whatever is refused is counted where it is refused. Anybody who reaches the port can make it
 * happen, so the log hears of it at most once a minute, in one line.
 */
#include <inttypes.h>

#define LOG_TAG "overlay"
#include "agent/util/log.h"
#include "overlay/half.h"

void refusals_get(const struct overlay *overlay, struct ov_refusals *ret_refusals)
{
	const struct core_refusals *core = overlay->core ? core_refusals(overlay->core) : NULL;
	struct net_stats net;

	net_get_stats(overlay->net, &net);
	*ret_refusals = (struct ov_refusals){ .strangers = net.refused, .frames = net.garbled };
	if (!core)
		return;
	ret_refusals->messages = core->messages;
	ret_refusals->cards = core->cards;
	ret_refusals->old_lives = core->old_lives;
	ret_refusals->replies = core->replies;
	ret_refusals->receipts =
		overlay->credit.forged + overlay->credit.foreign + overlay->credit.older;
}

/* A reply that comes late is nothing to tell of by itself. */
static uint64_t total(const struct ov_refusals *refusals)
{
	return refusals->strangers + refusals->frames + refusals->messages + refusals->cards +
	       refusals->old_lives + refusals->receipts;
}

void refusals_tick(struct overlay *overlay, uint64_t now_ms)
{
	const struct ov_refusals *told = &overlay->refusals_told;
	struct ov_refusals now;

	refusals_get(overlay, &now);
	if (total(&now) == total(told) ||
	    (overlay->refusals_ms && now_ms - overlay->refusals_ms < OVERLAY_REFUSALS_MS))
		return;
	log_warn("refused: strangers=%" PRIu64 " frames=%" PRIu64 " messages=%" PRIu64
		 " cards=%" PRIu64 " old_lives=%" PRIu64 " receipts=%" PRIu64
		 " late_replies=%" PRIu64,
		 now.strangers - told->strangers, now.frames - told->frames,
		 now.messages - told->messages, now.cards - told->cards,
		 now.old_lives - told->old_lives, now.receipts - told->receipts,
		 now.replies - told->replies);
	overlay->refusals_told = now;
	overlay->refusals_ms = now_ms;
}
