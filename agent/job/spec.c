// SPDX-License-Identifier: LGPL-2.1-or-later
#define LOG_TAG "job"
#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/job/job.h"
#include "agent/util/log.h"

static int spec_text(struct json_object *json, const char *key, char *out, size_t size)
{
	struct json_object *value;
	const char *text;

	if (!json_object_object_get_ex(json, key, &value) ||
	    !json_object_is_type(value, json_type_string))
		return -EINVAL;
	text = json_object_get_string(value);
	if (strlen(text) >= size)
		return -ENAMETOOLONG;
	strcpy(out, text);
	return 0;
}

static int64_t spec_int(struct json_object *json, const char *key)
{
	struct json_object *value;

	return json_object_object_get_ex(json, key, &value) ? json_object_get_int64(value) : 0;
}

int job_spec_from_json(struct json_object *json_take, struct job_spec *ret_spec)
{
	struct job_spec spec = { .json = json_take };
	struct json_object *adopted;
	int r = spec_text(json_take, "name", spec.name, sizeof(spec.name));

	if (r == 0)
		r = spec_text(json_take, "user", spec.user, sizeof(spec.user));
	if (r == 0)
		r = spec_text(json_take, "cwd", spec.cwd, sizeof(spec.cwd));
	if (r == 0)
		r = spec_text(json_take, "command", spec.command, sizeof(spec.command));
	if (r < 0) {
		json_object_put(json_take);
		return r;
	}
	spec.uid = (uid_t)spec_int(json_take, "uid");
	spec.gid = (gid_t)spec_int(json_take, "gid");
	spec.every_s = (uint32_t)spec_int(json_take, "every_s");
	spec.adopted = json_object_object_get_ex(json_take, "adopted", &adopted) &&
		       json_object_get_boolean(adopted);
	*ret_spec = spec;
	return 0;
}

void job_spec_deinit(struct job_spec *spec)
{
	if (spec->json)
		json_object_put(spec->json);
	memset(spec, 0, sizeof(*spec));
}

int job_seal_value(const struct agent *a, const struct job_spec *spec, const struct secret_key *key,
		   struct job_value *value)
{
	struct job_seal seal = { .version = 1,
				 .uid = spec->uid,
				 .gid = spec->gid,
				 .every_s = spec->every_s,
				 .flags = spec->adopted ? JOB_SEAL_ADOPTED : 0 };
	int r;

	if (spec->folder_keep)
		seal.flags |= JOB_SEAL_FOLDER | (uint64_t)spec->folder_keep << JOB_SEAL_KEEP_SHIFT;

	memcpy(seal.key, key->b, sizeof(seal.key));
	strcpy(seal.name, spec->name);
	strcpy(seal.user, spec->user);
	strcpy(seal.command, spec->command);
	strcpy(seal.cwd, spec->cwd);
	r = key_seal(cluster_worker_key(a->cluster), "decamp job v1", &value->job,
		     sizeof(value->job), &seal, sizeof(seal), value->sealed);
	key_wipe(&seal, sizeof(seal));
	if (r == 0)
		value->sealed_size = sizeof(seal) + SEAL_OVERHEAD;
	return r;
}

static bool is_text(const char *text, size_t size)
{
	return memchr(text, '\0', size) != NULL;
}

int job_unseal_value(const struct agent *a, const struct job_value *value,
		     struct job_seal *ret_seal)
{
	struct job_seal seal;
	int r;

	if (value->sealed_size != sizeof(seal) + SEAL_OVERHEAD)
		return -EBADMSG;
	r = key_open(cluster_worker_key(a->cluster), "decamp job v1", &value->job,
		     sizeof(value->job), value->sealed, value->sealed_size, &seal);
	if (r < 0)
		return r;
	if (seal.version != 1 || !is_text(seal.name, sizeof(seal.name)) ||
	    !is_text(seal.user, sizeof(seal.user)) || !is_text(seal.cwd, sizeof(seal.cwd)) ||
	    !is_text(seal.command, sizeof(seal.command)))
		return -EBADMSG;
	*ret_seal = seal;
	return 0;
}
