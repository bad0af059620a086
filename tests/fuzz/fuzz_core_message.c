/* SPDX-License-Identifier: LGPL-2.1-or-later */
// sources: overlay/core/codec.c
/*
 * A message or record that decodes must encode again to the same bytes; a record of an older version
 * to one that decodes to the same.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/core/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static struct core_message message;
static uint8_t again[CORE_MESSAGE_MAX];

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct core_record record, back;
	size_t length;

	if (core_message_decode(bytes, size, &message) == 0) {
		length = core_message_encode(&message, again, sizeof(again));
		if (length != size || memcmp(again, bytes, size) != 0)
			abort();
	}
	if (core_record_decode(bytes, size, &record) == 0) {
		length = core_record_encode(&record, again, sizeof(again));
		if (!length || core_record_decode(again, length, &back) < 0 ||
		    memcmp(&record, &back, sizeof(back)) != 0)
			abort();
		if (bytes[4] == again[4] && (length != size || memcmp(again, bytes, length) != 0))
			abort();
	}
	return 0;
}
