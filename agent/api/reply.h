/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From a handler's result to an HTTP answer. Threading: reentrant.
 */
#pragma once

#include "agent/api/api.h"

struct MHD_Response;

/* HTTP status of a handler's result (0 or -errno). */
unsigned int api_status(int r);

/* The error object of a handler that gave none: the errno's text; object: what it was about. */
void api_reply_complete(struct api_reply *reply, int r, const char *object);

/* The answer; the reply's fd and JSON are used up, also on failure. NULL: out of memory. */
struct MHD_Response *api_reply_take(struct api_reply *reply);
