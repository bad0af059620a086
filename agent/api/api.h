/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Control API: HTTP + JSON on a Unix socket (libmicrohttpd), the same for decamp(1) and scripts.
 *
 *   POST /v1/VERB  {json}  ->  200 {json} | 4xx/5xx {"error":{"object","reason","next","code"}}
 *
 * The caller is known by SO_PEERCRED; handlers decide what that user may do. Each connection has a
 * thread: handlers may block. Limits: API_CONNECTIONS_MAX connections, API_BODY_MAX bytes of
 * request; a user may hold at most half of the connections. Errors: handlers return -errno and may
 * set *ret_reply to an error object made with api_error(); its text is shown as it is.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/util/cleanup.h"

struct json_object;
struct api;

enum { API_CONNECTIONS_MAX = 64, API_BODY_MAX = 256 << 10 };

struct api_call {
	uid_t uid;
	gid_t gid;
	pid_t pid;
	struct json_object *body; /* an object, never NULL; borrowed */
};

struct api_reply {
	struct json_object *json; /* owned by the reply */
	int stream_fd;		  /* >= 0: body is this file's content from stream_offset, raw */
	uint64_t stream_offset;
	uint64_t stream_size; /* header X-Decamp-Size; X-Decamp-Next = offset + size */
	const char *state;    /* header X-Decamp-State, static text, may be NULL */
};

typedef int (*api_fn)(void *ctx, const struct api_call *call, struct api_reply *reply);

struct api_route {
	const char *verb;
	bool root_only;
	api_fn fn;
};

/* routes end with a NULL verb; valid as long as the api. socket_mode 0666: all users may ask. */
int api_start(const char *socket_path, const struct api_route *routes, void *ctx,
	      struct api **ret_api) _must_check_;
void api_stop(struct api *api);

/* reply->json = {"error":{…}} and returns r. code: stable word such as "no-such-job". */
int api_error(struct api_reply *reply, int r, const char *code, const char *object,
	      const char *next, const char *reason_fmt, ...) _printf_(6, 7);

/* Typed access to a request body: -EINVAL if present with a wrong type or over the limit. */
int api_get_string(const struct api_call *call, const char *key, size_t max,
		   const char **ret_text) _must_check_; /* NULL if absent */
int api_get_int(const struct api_call *call, const char *key, int64_t min, int64_t max,
		int64_t absent, int64_t *ret_value) _must_check_;
int api_get_bool(const struct api_call *call, const char *key, bool absent,
		 bool *ret_value) _must_check_;
