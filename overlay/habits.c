// SPDX-License-Identifier: LGPL-2.1-or-later
/* When this host is on: counted, kept on the disk, said in the report. */
#include <errno.h>
#include <string.h>
#include <time.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/half.h"
#include "overlay/net/internal.h"

enum { NOTE_MS = 60 * 1000, SAVE_MS = 600 * 1000 };

static const char record_name[] = "habits";

/* People close rooms by the clock on the wall. The zone was read before the sandbox (tzset). */
static uint64_t local_seconds(void)
{
	time_t now = time(NULL);
	struct tm tm;

	if (!localtime_r(&now, &tm) || now < 0 || now + tm.tm_gmtoff < 0)
		return 0;
	return (uint64_t)(now + tm.tm_gmtoff);
}

/* On means of use to others: who sees nobody of a cluster of several is as good as off. */
static bool is_reachable(const struct overlay *overlay, uint64_t now_ms)
{
	const struct member_info *row;
	bool alone = true;

	for (uint32_t i = 0; (row = core_member(overlay->core, i, now_ms)); i++) {
		if (row->is_self || row->state == MEMBER_LEFT)
			continue;
		alone = false;
		if (row->state == MEMBER_ALIVE)
			return true;
	}
	return alone;
}

void habits_save(struct overlay *overlay)
{
	struct habits *habits = &overlay->habits;
	uint8_t bytes[FORECAST_BYTES];
	int r;

	core_forecast_encode(&habits->forecast, bytes);
	r = store_own_save(overlay->store, record_name, bytes, sizeof(bytes));
	habits->saved_ms = net_now_ms();
	if (r < 0)
		log_errno(r, "habits: save"); /* it goes on with what it knows */
}

void habits_start(struct overlay *overlay, const uint8_t closed[FORECAST_CLOSED_BYTES])
{
	struct habits *habits = &overlay->habits;
	uint8_t bytes[FORECAST_BYTES];
	size_t size = 0;
	int r = store_own_load(overlay->store, record_name, bytes, sizeof(bytes), &size);

	if (r == 0)
		r = core_forecast_decode(bytes, size, &habits->forecast);
	if (r < 0 && r != -ENOENT)
		log_errno(r, "habits: read; they are learned anew");
	memcpy(habits->closed, closed, sizeof(habits->closed));
	habits->noted_ms = habits->saved_ms = net_now_ms();
	/* What lies between the last note and now was spent off. */
	if (local_seconds())
		core_forecast_note(&habits->forecast, local_seconds(), 0);
}

uint32_t habits_stays(struct overlay *overlay)
{
	struct habits *habits = &overlay->habits;
	uint64_t now_ms = net_now_ms(), local_s = local_seconds();

	if (local_s && now_ms >= habits->noted_ms + NOTE_MS) {
		/* The monotonic clock stands still in a suspended machine: that was not on. */
		uint32_t on_s = (uint32_t)((now_ms - habits->noted_ms) / 1000);

		core_forecast_note(&habits->forecast, local_s,
				   is_reachable(overlay, now_ms) ? on_s : 0);
		habits->noted_ms += on_s * UINT64_C(1000);
	}
	if (now_ms >= habits->saved_ms + SAVE_MS)
		habits_save(overlay);
	return core_forecast_stays(&habits->forecast, local_s, habits->closed);
}
