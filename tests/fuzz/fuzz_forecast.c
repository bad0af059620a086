/* SPDX-License-Identifier: LGPL-2.1-or-later */
// sources: overlay/core/forecast.c
/*
 * What a host has learned of itself, from its disk: as it is, and behind a right checksum. What
 * decodes must encode to the same bytes and be of use for a reckoning that stays within its bounds.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/core/codec.h"
#include "overlay/core/forecast.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void use(const uint8_t *bytes, size_t size, uint64_t local_s)
{
	uint8_t again[FORECAST_BYTES];
	struct core_forecast forecast;

	if (core_forecast_decode(bytes, size, &forecast) < 0)
		return;
	core_forecast_encode(&forecast, again);
	if (size != sizeof(again) || memcmp(again, bytes, size) != 0)
		abort();
	for (uint32_t i = 0; i < 40; i++) {
		core_forecast_note(&forecast, local_s, i * 100);
		if (core_forecast_stays(&forecast, local_s, NULL) > 1 + FORECAST_CERTAIN)
			abort();
		local_s += 900;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	uint8_t copy[FORECAST_BYTES] = { 0 };
	uint64_t local_s = 0, sum;

	use(bytes, size, UINT64_C(1700000000));
	if (size < sizeof(local_s))
		return 0;
	memcpy(&local_s, bytes, sizeof(local_s));
	bytes += sizeof(local_s);
	size -= sizeof(local_s);
	memcpy(copy, bytes, size < sizeof(copy) ? size : sizeof(copy));
	sum = core_checksum(copy, sizeof(copy) - sizeof(sum));
	memcpy(copy + sizeof(copy) - sizeof(sum), &sum, sizeof(sum));
	use(copy, sizeof(copy), local_s);
	return 0;
}
