// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/api/body.h"

#include <ctype.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdint.h>
#include <string.h>

/* Recursion is bounded by the parser's depth limit. */
static bool holds_nul(struct json_object *value)
{
	if (json_object_is_type(value, json_type_string)) {
		size_t size = (size_t)json_object_get_string_len(value);

		return memchr(json_object_get_string(value), '\0', size) != NULL;
	}
	if (json_object_is_type(value, json_type_array)) {
		for (size_t i = 0; i < json_object_array_length(value); i++) {
			if (holds_nul(json_object_array_get_idx(value, i)))
				return true;
		}
	}
	if (json_object_is_type(value, json_type_object)) {
		json_object_object_foreach(value, key, member)
		{
			(void)key;
			if (holds_nul(member))
				return true;
		}
	}
	return false;
}

static void tokener_freep(struct json_tokener **tokener)
{
	if (*tokener)
		json_tokener_free(*tokener);
}

static bool is_blank(const char *bytes, size_t size)
{
	while (size > 0 && isspace((unsigned char)*bytes)) {
		bytes++;
		size--;
	}
	return size == 0;
}

static int refuse(int r, const char *why, const char **ret_error)
{
	*ret_error = why;
	return r;
}

int api_body_parse(const char *bytes, size_t size, struct json_object **ret_body,
		   const char **ret_error)
{
	_cleanup_(tokener_freep) struct json_tokener *tokener = NULL;
	struct json_object *body;
	enum json_tokener_error error;

	if (size > API_BODY_MAX)
		return refuse(-E2BIG, "the request is too large", ret_error);
	tokener = json_tokener_new_ex(API_BODY_DEPTH_MAX);
	if (!tokener)
		return refuse(-ENOMEM, "out of memory", ret_error);
	json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
	if (is_blank(bytes, size)) {
		bytes = "{}";
		size = 2;
	}
	body = json_tokener_parse_ex(tokener, bytes, (int)size);
	error = json_tokener_get_error(tokener);
	if (error == json_tokener_continue)
		return refuse(-EBADMSG, "the request's JSON ends too early", ret_error);
	if (error != json_tokener_success)
		return refuse(-EBADMSG, json_tokener_error_desc(error), ret_error);
	if (!is_blank(bytes + json_tokener_get_parse_end(tokener),
		      size - json_tokener_get_parse_end(tokener))) {
		json_object_put(body);
		return refuse(-EBADMSG, "something follows the request's JSON object", ret_error);
	}
	if (!json_object_is_type(body, json_type_object)) {
		json_object_put(body);
		return refuse(-EBADMSG, "the request is not a JSON object", ret_error);
	}
	if (holds_nul(body)) {
		json_object_put(body);
		return refuse(-EBADMSG, "a string of the request holds a NUL", ret_error);
	}
	*ret_body = body;
	return 0;
}

int api_get_string(const struct api_call *call, const char *key, size_t max, const char **ret_text)
{
	struct json_object *value;

	if (!json_object_object_get_ex(call->body, key, &value)) {
		*ret_text = NULL;
		return 0;
	}
	if (!json_object_is_type(value, json_type_string) ||
	    (size_t)json_object_get_string_len(value) > max)
		return -EINVAL;
	*ret_text = json_object_get_string(value);
	return *ret_text ? 0 : -ENOMEM;
}

int api_get_int(const struct api_call *call, const char *key, int64_t min, int64_t max,
		int64_t absent, int64_t *ret_value)
{
	struct json_object *value;
	int64_t n;

	if (!json_object_object_get_ex(call->body, key, &value)) {
		*ret_value = absent;
		return 0;
	}
	if (!json_object_is_type(value, json_type_int))
		return -EINVAL;
	/* The library saturates larger numbers; those are no int64_t either. */
	n = json_object_get_int64(value);
	if (n < min || n > max || (n == INT64_MAX && json_object_get_uint64(value) > INT64_MAX))
		return -EINVAL;
	*ret_value = n;
	return 0;
}

int api_get_bool(const struct api_call *call, const char *key, bool absent, bool *ret_value)
{
	struct json_object *value;

	if (!json_object_object_get_ex(call->body, key, &value)) {
		*ret_value = absent;
		return 0;
	}
	if (!json_object_is_type(value, json_type_boolean))
		return -EINVAL;
	*ret_value = json_object_get_boolean(value);
	return 0;
}
