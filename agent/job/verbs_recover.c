// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * recover: what is left of a job whose guardians are gone. Reads only. The register alone decides who
 * owns a job, and no number of storage peers replaces it (docs/overlay.md).
 */
#define LOG_TAG "api"
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/job/verbs.h"
#include "agent/util/io.h"

static int find_manifests(struct target *t, struct ov_found *found, uint32_t *ret_count)
{
	struct ov_msg msg = { .op = OV_JOB_NEWEST, .u.job.job = t->value.job };
	_cleanup_close_ int fd = -1;
	struct stat st;
	int r = ov_call(t->channel, &msg, -1, &fd, JOB_CALL_MS);

	if (r < 0)
		return r;
	if (msg.u.count > OV_FOUND_MAX)
		return -EBADMSG;
	if (msg.u.count) {
		if (fd < 0 || fstat(fd, &st) < 0 ||
		    (uint64_t)st.st_size != msg.u.count * sizeof(*found))
			return -EBADMSG;
		r = pread_full(fd, found, msg.u.count * sizeof(*found), 0);
	}
	for (uint32_t i = 0; r == 0 && i < msg.u.count; i++)
		if (found[i].holder_count > OV_HOLDERS_MAX)
			r = -EBADMSG;
	*ret_count = (uint32_t)msg.u.count;
	return r;
}

/* A copy of the register that somebody has still says that a majority committed it. */
static bool is_committed(const struct job_value *value, const struct ov_found *found)
{
	for (uint32_t i = 0; i < value->history_count; i++)
		if (value->history[i].seq == found->seq &&
		    memcmp(&value->history[i].manifest, &found->manifest,
			   sizeof(found->manifest)) == 0)
			return true;
	return false;
}

/* Its holders' word is not enough: what stands inside, under the job's key and a signature, counts. */
static int verify(struct target *t, const struct ov_found *found, struct json_object *list)
{
	struct ckpt_ref ref = { .seq = found->seq,
				.manifest = found->manifest,
				.manifest_size = found->size,
				.holder_count = found->holder_count };
	const struct manifest_head *head;
	struct manifest *manifest;
	struct json_object *row;
	struct secret_key key;
	char hex[65];
	int r;

	memcpy(ref.holders, found->holders, sizeof(ref.holders));
	memcpy(key.b, t->seal.key, sizeof(key.b));
	r = job_open_manifest(t->agent, t->channel, &t->value.job, &key, &ref, &manifest);
	key_wipe(&key, sizeof(key));
	if (r < 0)
		return r;
	head = manifest_head(manifest);
	if (head->seq != found->seq || fence_token_compare(&head->token, &found->token) != 0) {
		manifest_destroy(manifest);
		return -EBADMSG;
	}
	row = json_object_new_object();
	hex_encode(&found->manifest, sizeof(found->manifest), hex);
	json_object_object_add(row, "seq", json_object_new_int64((int64_t)head->seq));
	json_object_object_add(row, "token", json_object_new_int64((int64_t)head->token.counter));
	json_object_object_add(row, "wall_ms", json_object_new_int64((int64_t)head->wall_ms));
	json_object_object_add(row, "manifest", json_object_new_string(hex));
	json_object_object_add(row, "holders", json_object_new_int((int)found->holder_count));
	json_object_object_add(row, "committed",
			       json_object_new_boolean(is_committed(&t->value, found)));
	json_object_array_add(list, row);
	manifest_destroy(manifest);
	return 0;
}

/* Does a majority of its guardians still answer? */
static const char *ask_register(struct target *t)
{
	struct ov_msg msg = { .op = OV_JOB_GET, .u.job.job = t->value.job };
	int r = ov_call(t->channel, &msg, -1, NULL, JOB_CALL_MS);

	if (r == -ENOENT)
		return "unknown";
	if (r < 0 || !job_value_sane(&msg.u.value) ||
	    memcmp(&msg.u.value.job, &t->value.job, sizeof(t->value.job)) != 0)
		return "no-majority";
	t->value = msg.u.value;
	return "answers";
}

int verb_recover(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct ov_found found[OV_FOUND_MAX];
	struct json_object *list;
	const char *standing;
	uint32_t count = 0, refused = 0;
	struct target t;
	int r = target_find(agent, call, &t, reply);

	if (r < 0)
		return r;
	standing = ask_register(&t);
	r = find_manifests(&t, found, &count);
	if (r < 0) {
		r = api_error(reply, r, "failed", t.seal.name, "decamp nodes shows who is there",
			      "the members' stores could not be asked: %s", strerror(-r));
		target_deinit(&t);
		return r;
	}
	list = json_object_new_array();
	for (uint32_t i = 0; i < count; i++)
		refused += verify(&t, &found[i], list) < 0;
	reply->json = json_object_new_object();
	json_object_object_add(reply->json, "register", json_object_new_string(standing));
	json_object_object_add(reply->json, "refused", json_object_new_int((int)refused));
	json_object_object_add(reply->json, "checkpoints", list);
	target_deinit(&t);
	return 0;
}
