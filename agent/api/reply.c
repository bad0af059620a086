// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/api/reply.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <microhttpd.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

static const struct {
	int error;
	unsigned int status;
	const char *code;
} kinds[] = {
	{ ENOENT, MHD_HTTP_NOT_FOUND, "not-found" },
	{ ESRCH, MHD_HTTP_NOT_FOUND, "no-such-process" },
	{ EPERM, MHD_HTTP_FORBIDDEN, "not-permitted" },
	{ EACCES, MHD_HTTP_FORBIDDEN, "not-permitted" },
	{ EINVAL, MHD_HTTP_BAD_REQUEST, "bad-request" },
	{ EBADMSG, MHD_HTTP_BAD_REQUEST, "bad-request" },
	{ E2BIG, MHD_HTTP_CONTENT_TOO_LARGE, "too-large" },
	{ EBUSY, MHD_HTTP_CONFLICT, "busy" },
	{ ESTALE, MHD_HTTP_CONFLICT, "stale" },
	{ ETIMEDOUT, MHD_HTTP_SERVICE_UNAVAILABLE, "timed-out" },
	{ EAGAIN, MHD_HTTP_SERVICE_UNAVAILABLE, "try-again" },
};

unsigned int api_status(int r)
{
	if (r >= 0)
		return MHD_HTTP_OK;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (kinds[i].error == -r)
			return kinds[i].status;
	}
	return MHD_HTTP_INTERNAL_SERVER_ERROR;
}

static const char *default_code(int r)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (kinds[i].error == -r)
			return kinds[i].code;
	}
	return "failed";
}

static int add_text(struct json_object *object, const char *key, const char *text)
{
	struct json_object *value = json_object_new_string(text ? text : "");

	if (!value)
		return -ENOMEM;
	if (json_object_object_add(object, key, value) < 0) {
		json_object_put(value);
		return -ENOMEM;
	}
	return 0;
}

int api_error(struct api_reply *reply, int r, const char *code, const char *object,
	      const char *next, const char *reason_fmt, ...)
{
	_cleanup_free_ char *reason = NULL;
	struct json_object *error, *outer;
	va_list ap;

	va_start(ap, reason_fmt);
	if (vasprintf(&reason, reason_fmt, ap) < 0)
		reason = NULL;
	va_end(ap);

	json_object_put(reply->json);
	reply->json = NULL;
	outer = json_object_new_object();
	error = json_object_new_object();
	if (!outer || !error || json_object_object_add(outer, "error", error) < 0) {
		json_object_put(error);
		json_object_put(outer);
		return r;
	}
	if (add_text(error, "object", object) < 0 ||
	    add_text(error, "reason", reason ? reason : strerror(-r)) < 0 ||
	    add_text(error, "next", next) < 0 ||
	    add_text(error, "code", code ? code : default_code(r)) < 0) {
		json_object_put(outer);
		return r;
	}
	reply->json = outer;
	return r;
}

void api_reply_complete(struct api_reply *reply, int r, const char *object)
{
	if (r < 0 && !reply->json)
		(void)api_error(reply, r, NULL, object, NULL, "%s", strerror(-r));
}

static void add_number(struct MHD_Response *response, const char *header, uint64_t value)
{
	char text[24];

	snprintf(text, sizeof(text), "%" PRIu64, value);
	(void)MHD_add_response_header(response, header, text);
}

/*
 * The file may have been cut since the handler looked: promise no byte that is not there now.
 * A file that shrinks while it is sent ends the connection early, which the client notices.
 */
static struct MHD_Response *stream_response(struct api_reply *reply)
{
	_cleanup_close_ int fd = take_fd(reply->stream_fd);
	uint64_t size = reply->stream_size, there = 0;
	struct MHD_Response *response;
	struct stat st;

	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
	    (uint64_t)st.st_size > reply->stream_offset)
		there = (uint64_t)st.st_size - reply->stream_offset;
	if (size > there)
		size = there;
	if (size > 0) {
		response = MHD_create_response_from_fd_at_offset64(size, fd, reply->stream_offset);
		if (response)
			fd = -1; /* the response closes it */
	} else {
		response = MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
	}
	if (!response)
		return NULL;
	(void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
				      "application/octet-stream");
	add_number(response, "X-Decamp-Size", size);
	add_number(response, "X-Decamp-Next", reply->stream_offset + size);
	return response;
}

struct MHD_Response *api_reply_take(struct api_reply *reply)
{
	struct MHD_Response *response;
	const char *text = "{}";
	size_t size = 2;

	if (reply->stream_fd >= 0 && !reply->json) {
		response = stream_response(reply);
	} else {
		if (reply->json)
			text = json_object_to_json_string_length(
				reply->json,
				JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &size);
		response = text ? MHD_create_response_from_buffer(size, (void *)text,
								  MHD_RESPMEM_MUST_COPY) :
				  NULL;
		if (response)
			(void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
						      "application/json");
	}
	if (response && reply->state)
		(void)MHD_add_response_header(response, "X-Decamp-State", reply->state);
	close_fdp(&reply->stream_fd);
	reply->stream_fd = -1;
	json_object_put(reply->json);
	reply->json = NULL;
	return response;
}
