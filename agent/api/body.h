/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From the bytes of a request to its JSON object; the accessors are in api.h.
 *
 * Limits: API_BODY_DEPTH_MAX levels of nesting, API_BODY_MAX bytes. Strings are bytes without a
 * NUL; they need not be UTF-8, since file names and environments are not always. Threading:
 * reentrant. Errors: -EBADMSG (not one JSON object), -E2BIG, -ENOMEM.
 */
#pragma once

#include <stddef.h>

#include "agent/api/api.h"

enum { API_BODY_DEPTH_MAX = 16 };

/* No bytes at all stand for an empty object. The caller puts *ret_body. error: why not, static. */
int api_body_parse(const char *bytes, size_t size, struct json_object **ret_body,
		   const char **ret_error) _must_check_;
