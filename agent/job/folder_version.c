// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The list of a folder's versions travels in the notes of its newest manifest: the register has
 * room for four.
 *
 *   notes = {"folder": {"sync", "files", "bytes", "older": [{"seq", "wall_ms", "manifest", "size",
 *            "holders" [..], "sync", "files", "bytes", "copy", "sent"}..], "copy", "stamp"}}
 */
#define LOG_TAG "folder"
#include <errno.h>
#include <string.h>

#include "agent/job/folder.h"
#include "agent/util/io.h"

static uint64_t number_of(struct json_object *json, const char *key)
{
	struct json_object *part;
	int64_t n = json_object_object_get_ex(json, key, &part) ? json_object_get_int64(part) : 0;

	return n < 0 ? 0 : (uint64_t)n;
}

static bool hex_of(struct json_object *text, void *ret_bytes, size_t size)
{
	return json_object_is_type(text, json_type_string) &&
	       hex_decode(json_object_get_string(text), ret_bytes, size) == 0;
}

static void text_of(struct json_object *json, const char *key, char text[FOLDER_COPY_MAX])
{
	struct json_object *part;

	if (json_object_object_get_ex(json, key, &part) &&
	    json_object_is_type(part, json_type_string))
		snprintf(text, FOLDER_COPY_MAX, "%s", json_object_get_string(part));
}

static void decode_sums(struct json_object *json, struct folder_version *v)
{
	struct json_object *sync;

	v->sync = json_object_object_get_ex(json, "sync", &sync) && json_object_get_boolean(sync);
	v->files = number_of(json, "files");
	v->bytes = number_of(json, "bytes");
	text_of(json, "copy", v->copy);
}

static int decode_one(struct json_object *json, struct folder_version *ret_version)
{
	struct folder_version v = { .ref = { .seq = number_of(json, "seq"),
					     .wall_ms = number_of(json, "wall_ms") } };
	struct json_object *manifest, *holders;
	uint64_t size = number_of(json, "size");
	size_t count;

	if (!json_object_object_get_ex(json, "manifest", &manifest) ||
	    !json_object_object_get_ex(json, "holders", &holders) ||
	    !json_object_is_type(holders, json_type_array) ||
	    !hex_of(manifest, &v.ref.manifest, sizeof(v.ref.manifest)))
		return -EBADMSG;
	count = json_object_array_length(holders);
	if (v.ref.seq == 0 || size == 0 || size > OV_PACK_MAX || count > OV_HOLDERS_MAX)
		return -EBADMSG;
	v.ref.manifest_size = (uint32_t)size;
	v.ref.holder_count = (uint32_t)count;
	for (size_t i = 0; i < count; i++)
		if (!hex_of(json_object_array_get_idx(holders, i), &v.ref.holders[i],
			    sizeof(v.ref.holders[i])))
			return -EBADMSG;
	decode_sums(json, &v);
	v.sent = number_of(json, "sent");
	*ret_version = v;
	return 0;
}

int folder_versions_decode(const char *meta_json, const struct ckpt_ref *ref,
			   struct folder_version *versions, size_t *ret_count)
{
	struct json_object *meta = json_tokener_parse(meta_json), *notes, *older;
	size_t count = 1;
	int r = -EBADMSG;

	if (json_object_object_get_ex(meta, "folder", &notes) &&
	    json_object_object_get_ex(notes, "older", &older) &&
	    json_object_is_type(older, json_type_array) &&
	    json_object_array_length(older) < FOLDER_KEEP_MAX)
		r = 0;
	for (size_t i = 0; r == 0 && i < json_object_array_length(older); i++) {
		r = decode_one(json_object_array_get_idx(older, i), &versions[count]);
		count += r == 0;
	}
	if (r == 0) {
		versions[0] = (struct folder_version){ .ref = *ref };
		decode_sums(notes, &versions[0]);
		text_of(notes, "stamp", versions[0].stamp);
		*ret_count = count;
	}
	json_object_put(meta);
	return r;
}

/* ---- the other way ---- */

static void put_number(struct json_object *json, const char *key, uint64_t n)
{
	json_object_object_add(json, key, json_object_new_int64((int64_t)n));
}

static struct json_object *new_hex(const void *bytes, size_t size)
{
	char hex[65];

	hex_encode(bytes, size, hex);
	return json_object_new_string(hex);
}

static void encode_sums(struct json_object *json, const struct folder_version *v)
{
	json_object_object_add(json, "sync", json_object_new_boolean(v->sync));
	put_number(json, "files", v->files);
	put_number(json, "bytes", v->bytes);
	json_object_object_add(json, "copy", json_object_new_string(v->copy));
}

static struct json_object *encode_one(const struct folder_version *v)
{
	struct json_object *json = json_object_new_object(), *holders = json_object_new_array();

	put_number(json, "seq", v->ref.seq);
	put_number(json, "wall_ms", v->ref.wall_ms);
	json_object_object_add(json, "manifest",
			       new_hex(&v->ref.manifest, sizeof(v->ref.manifest)));
	put_number(json, "size", v->ref.manifest_size);
	for (uint32_t i = 0; i < v->ref.holder_count; i++)
		json_object_array_add(holders,
				      new_hex(&v->ref.holders[i], sizeof(v->ref.holders[i])));
	json_object_object_add(json, "holders", holders);
	encode_sums(json, v);
	put_number(json, "sent", v->sent);
	return json;
}

struct json_object *folder_versions_encode(const struct folder_version *own,
					   const struct folder_version *older, size_t count)
{
	struct json_object *meta = json_object_new_object(), *notes = json_object_new_object();
	struct json_object *list = json_object_new_array();

	for (size_t i = 0; i < count; i++)
		json_object_array_add(list, encode_one(&older[i]));
	encode_sums(notes, own);
	json_object_object_add(notes, "stamp", json_object_new_string(own->stamp));
	json_object_object_add(notes, "older", list);
	json_object_object_add(meta, "folder", notes);
	return meta;
}

void folder_version_deinit(struct folder_version *v)
{
	free(v->objects);
	*v = (struct folder_version){ 0 };
}

int folder_versions_read(const struct manifest *m, const struct ckpt_ref *ref,
			 struct folder_version *versions, size_t *ret_count)
{
	int r = folder_versions_decode(manifest_head(m)->meta_json, ref, versions, ret_count);

	/* Its own notes were written before it was known. */
	if (r == 0)
		versions[0].sent = manifest_new_bytes(m) + ref->manifest_size;
	return r;
}

int folder_versions_of(struct agent *a, int channel, const struct job_value *value,
		       const struct job_seal *seal, struct folder_version *versions,
		       size_t *ret_count)
{
	struct secret_key key;
	struct manifest *m;
	int r;

	*ret_count = 0;
	if (value->history_count == 0)
		return 0;
	memcpy(key.b, seal->key, sizeof(key.b));
	r = job_open_manifest(a, channel, &value->job, &key, &value->history[0], &m);
	key_wipe(&key, sizeof(key));
	if (r < 0)
		return r;
	r = folder_versions_read(m, &value->history[0], versions, ret_count);
	manifest_destroy(m);
	return r;
}
