// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: agent/api/body.c
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "agent/api/body.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static const char *const keys[] = { "job", "argv", "env", "offset", "all", "signal" };
	struct api_call call = { 0 };
	const char *error;

	if (api_body_parse((const char *)bytes, size, &call.body, &error) < 0)
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		const char *text;
		int64_t n;
		bool b;

		if (api_get_string(&call, keys[i], 64, &text) == 0 && text && strlen(text) > 64)
			abort();
		if (api_get_int(&call, keys[i], -1, 100, 0, &n) == 0 && (n < -1 || n > 100))
			abort();
		if (api_get_bool(&call, keys[i], false, &b) == 0 && b != !!b)
			abort();
	}
	json_object_put(call.body);
	return 0;
}
