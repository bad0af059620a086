// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <string.h>

#include "agent/cli/cli.h"

void cli_out_of_memory(void)
{
	fputs("decamp: out of memory\n", stderr);
	exit(CLI_FAILED);
}

struct json_object *js_new(void)
{
	struct json_object *object = json_object_new_object();

	if (!object)
		cli_out_of_memory();
	return object;
}

static void put(struct json_object *object, const char *key, struct json_object *value)
{
	if (!value || json_object_object_add(object, key, value) < 0)
		cli_out_of_memory();
}

void js_put_text(struct json_object *object, const char *key, const char *text)
{
	if (text)
		put(object, key, json_object_new_string(text));
}

void js_put_int(struct json_object *object, const char *key, int64_t value)
{
	put(object, key, json_object_new_int64(value));
}

void js_put_bool(struct json_object *object, const char *key, bool value)
{
	put(object, key, json_object_new_boolean(value));
}

void js_put_list(struct json_object *object, const char *key, const char *const *items,
		 size_t count)
{
	struct json_object *array = json_object_new_array();

	put(object, key, array);
	for (size_t i = 0; i < count; i++) {
		struct json_object *item = json_object_new_string(items[i]);

		if (!item || json_object_array_add(array, item) < 0)
			cli_out_of_memory();
	}
}

struct json_object *js_member(struct json_object *object, const char *key)
{
	struct json_object *value = NULL;

	if (!json_object_is_type(object, json_type_object))
		return NULL;
	json_object_object_get_ex(object, key, &value);
	return value;
}

bool js_has(struct json_object *object, const char *key)
{
	return js_member(object, key) != NULL;
}

const char *js_text(struct json_object *object, const char *key, const char *absent)
{
	struct json_object *value = js_member(object, key);

	return json_object_is_type(value, json_type_string) ? json_object_get_string(value) :
							      absent;
}

int64_t js_int(struct json_object *object, const char *key, int64_t absent)
{
	struct json_object *value = js_member(object, key);

	if (json_object_is_type(value, json_type_int) ||
	    json_object_is_type(value, json_type_double))
		return json_object_get_int64(value);
	return absent;
}

double js_double(struct json_object *object, const char *key, double absent)
{
	struct json_object *value = js_member(object, key);

	if (json_object_is_type(value, json_type_int) ||
	    json_object_is_type(value, json_type_double))
		return json_object_get_double(value);
	return absent;
}

bool js_bool(struct json_object *object, const char *key, bool absent)
{
	struct json_object *value = js_member(object, key);

	return json_object_is_type(value, json_type_boolean) ? json_object_get_boolean(value) :
							       absent;
}

size_t js_length(struct json_object *array)
{
	return json_object_is_type(array, json_type_array) ? json_object_array_length(array) : 0;
}

struct json_object *js_item(struct json_object *array, size_t index)
{
	return json_object_array_get_idx(array, index);
}

char *js_join(struct json_object *array, const char *absent)
{
	char *joined = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&joined, &size);

	if (!out)
		cli_out_of_memory();
	for (size_t i = 0; i < js_length(array); i++) {
		const char *item = json_object_get_string(js_item(array, i));

		fprintf(out, "%s%s", i ? ", " : "", item ? item : "");
	}
	if (js_length(array) == 0)
		fputs(absent, out);
	if (fclose(out) != 0 || !joined)
		cli_out_of_memory();
	return joined;
}

void js_print(struct json_object *value)
{
	const char *text = json_object_to_json_string_ext(
		value, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);

	puts(text ? text : "null");
}
