// SPDX-License-Identifier: LGPL-2.1-or-later
/* folder-create, -list, -delete: which folders there are (docs/folder.md). */
#define LOG_TAG "folder"
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "agent/job/folder.h"
#include "agent/job/verbs.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { DELETE_MS = 20000 };

static void put_text(struct json_object *json, const char *key, const char *text)
{
	json_object_object_add(json, key, json_object_new_string(text));
}

static void put_int(struct json_object *json, const char *key, uint64_t n)
{
	json_object_object_add(json, key, json_object_new_int64((int64_t)n));
}

/* Without its versions. */
static int find_target(struct agent *a, const struct api_call *call, struct target *t,
		       struct api_reply *reply)
{
	const struct folder_row *row;
	struct folder_rows rows;
	int r;

	*t = (struct target){ .agent = a, .channel = -1 };
	t->channel = a->cluster ? ov_open_channel(a->main_channel) : -1;
	if (a->cluster && t->channel < 0)
		return t->channel;
	r = folder_row_find(a, call, t->channel, &rows, &row, reply);
	if (r < 0)
		return r;
	t->value = row->value;
	t->seal = row->seal;
	t->members = take_ptr(rows.members);
	t->member_count = rows.member_count;
	folder_rows_deinit(&rows);
	return 0;
}

int target_find_folder(struct agent *a, const struct api_call *call, struct target *ret_target,
		       struct api_reply *reply)
{
	struct folder_version versions[FOLDER_KEEP_MAX];
	struct target t;
	size_t count = 0;
	int r = find_target(a, call, &t, reply);

	if (r == 0)
		r = folder_versions_of(a, t.channel, &t.value, &t.seal, versions, &count);
	if (r == 0)
		t.versions = calloc(count + 1, sizeof(*t.versions));
	for (size_t i = 0; r == 0 && t.versions && i < count; i++)
		t.versions[t.version_count++] = versions[i].ref;
	if (r < 0) {
		target_deinit(&t);
		return r;
	}
	*ret_target = t;
	return 0;
}

/* ---- list ---- */

struct listing {
	struct agent *agent;
	int channel;
	bool versions;
	struct json_object *folders;
};

static void describe_here(struct agent *a, const struct job_value *value, struct json_object *json)
{
	struct folder *f = folder_find(a, &value->job);

	put_text(json, "state", f && f->ready ? "ready" : "waiting");
	if (!f)
		return;
	pthread_mutex_lock(&f->job->lock);
	put_text(json, "message", f->job->message);
	put_int(json, "kept", f->version_count);
	put_int(json, "files", f->versions[0].files);
	put_int(json, "bytes", f->versions[0].bytes);
	put_int(json, "sent_bytes", f->versions[0].sent);
	if (f->stored >= 0)
		put_int(json, "stored_bytes", (uint64_t)f->stored);
	pthread_mutex_unlock(&f->job->lock);
	folder_unref(a, f);
}

static void describe_versions(const struct listing *l, const struct job_value *value,
			      const struct job_seal *seal, struct json_object *json)
{
	struct json_object *list = json_object_new_array();
	struct folder_version versions[FOLDER_KEEP_MAX];
	size_t count = 0;
	int r = folder_versions_of(l->agent, l->channel, value, seal, versions, &count);

	for (size_t i = 0; r == 0 && i < count; i++) {
		struct json_object *one = json_object_new_object();
		char hex[65];

		hex_encode(&versions[i].ref.manifest, sizeof(versions[i].ref.manifest), hex);
		put_int(one, "seq", versions[i].ref.seq);
		put_int(one, "wall_ms", versions[i].ref.wall_ms);
		put_text(one, "manifest", hex);
		put_int(one, "files", versions[i].files);
		put_int(one, "bytes", versions[i].bytes);
		put_int(one, "sent_bytes", versions[i].sent);
		json_object_object_add(one, "sync", json_object_new_boolean(versions[i].sync));
		json_object_array_add(list, one);
	}
	if (r < 0)
		put_text(json, "message", "its newest version cannot be read now");
	json_object_object_add(json, "versions", list);
}

static void describe(const struct listing *l, const struct folder_row *row)
{
	struct json_object *json = json_object_new_object();
	const struct job_value *value = &row->value;
	const struct job_seal *seal = &row->seal;
	bool here = node_id_equal(&value->owner, &l->agent->self);
	char hex[33];

	hex_encode(&value->job, sizeof(value->job), hex);
	put_text(json, "folder", hex);
	put_text(json, "name", seal->name);
	put_text(json, "label", row->label);
	put_text(json, "user", seal->user);
	put_int(json, "uid", seal->uid);
	put_text(json, "host", row->home ? row->home->hostname : "?");
	json_object_object_add(json, "here", json_object_new_boolean(here));
	put_int(json, "keep", job_seal_keep(seal));
	put_int(json, "every_s", seal->every_s);
	put_int(json, "seq", value->history[0].seq);
	put_int(json, "wall_ms", value->history[0].wall_ms);
	if (here)
		describe_here(l->agent, value, json);
	else
		put_text(json, "state",
			 row->home && row->home->state == MEMBER_ALIVE ? "elsewhere" : "away");
	if (l->versions)
		describe_versions(l, value, seal, json);
	json_object_array_add(l->folders, json);
}

static int list_all(struct listing *l, const struct api_call *call, const char *ref)
{
	struct folder_rows rows = { 0 };
	int r;

	l->channel = ov_open_channel(l->agent->main_channel);
	r = l->channel < 0 ? l->channel : folder_rows_load(l->agent, call, l->channel, &rows);
	for (size_t i = 0; i < rows.count; i++)
		if (!ref || folder_row_is(&rows.items[i], ref))
			describe(l, &rows.items[i]);
	folder_rows_deinit(&rows);
	return r;
}

int verb_folder_list(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct listing l = { .agent = agent, .channel = -1 };
	const char *ref;
	int r = api_get_string(call, "folder", FOLDER_LABEL_MAX, &ref);

	if (r < 0)
		return r;
	l.versions = ref != NULL;
	l.folders = json_object_new_array();
	if (l.agent->cluster)
		r = list_all(&l, call, ref);
	close_fdp(&l.channel);
	if (r == 0 && ref && json_object_array_length(l.folders) == 0)
		r = folder_none(ref, reply);
	if (r < 0) {
		json_object_put(l.folders);
		return r;
	}
	reply->json = json_object_new_object();
	json_object_object_add(reply->json, "folders", l.folders);
	return 0;
}

/* ---- create ---- */

int folders_off(const char *name, struct api_reply *reply)
{
	return api_error(reply, -EOPNOTSUPP, "folders-off", name,
			 "make one on another host, or ask an administrator of this one",
			 "folders are off on this host: folder_bytes is 0 in its decampd.conf");
}

static int name_taken(const char *name, struct api_reply *reply)
{
	return api_error(reply, -EEXIST, "name-taken", name, "choose another name",
			 "you have a folder of that name");
}

/* Another host's, too. What is here is counted again when room for the folder is taken. */
static int refuse_name(struct agent *a, const struct api_call *call, const char *name,
		       struct api_reply *reply)
{
	_cleanup_close_ int channel = ov_open_channel(a->main_channel);
	struct folder_rows rows = { 0 };
	bool same = false;
	int r = channel < 0 ? channel : folder_rows_load(a, call, channel, &rows);

	for (size_t i = 0; i < rows.count; i++)
		same |= rows.items[i].seal.uid == call->uid &&
			!strcmp(rows.items[i].seal.name, name);
	folder_rows_deinit(&rows);
	return same ? name_taken(name, reply) : r;
}

static int fill_value(struct agent *a, const struct job_spec *spec, struct job_value *value)
{
	char error[NEEDS_ERROR_MAX];
	struct secret_key key;
	size_t needs_size;
	int r = random_bytes(&value->job, sizeof(value->job));

	value->owner = value->home = a->self;
	value->state = JOB_STATE_HELD;
	value->fence = FENCE_COMMIT;
	value->submit_wall_ms = now_wall_ms();
	if (r == 0)
		r = needs_compile(FOLDER_NEEDS, value->needs, &needs_size, error);
	if (r == 0)
		r = random_bytes(&key, sizeof(key));
	if (r < 0)
		return r;
	value->needs_size = (uint32_t)needs_size;
	r = job_seal_value(a, spec, &key, value);
	key_wipe(&key, sizeof(key));
	return r;
}

static int refuse_reserve(int r, const char *name, struct api_reply *reply)
{
	switch (r) {
	case -EEXIST:
		return name_taken(name, reply);
	case -EDQUOT:
		return api_error(reply, -ENOSPC, "too-many", name, "delete one first",
				 "you have %d folders on this host already", FOLDER_USER_MAX);
	case -EBUSY:
		return api_error(reply, r, "busy", name, "try again in some minutes",
				 "too many folders were made on this host within %d minutes",
				 FOLDER_CREATES_S / 60);
	default:
		return api_error(reply, r, "too-many", name, "delete another folder first",
				 "this host cannot take the folder: %s", strerror(-r));
	}
}

/* What the cluster took and this host cannot keep is ended again. */
static int enter_register(struct agent *a, struct folder *f, const struct job_value *value,
			  struct api_reply *reply)
{
	struct ov_msg msg = { .op = OV_JOB_CREATE, .u.value = *value };
	_cleanup_close_ int channel = ov_open_channel(a->main_channel);
	const char *name = f->job->spec.name;
	int r = channel < 0 ? channel : ov_call(channel, &msg, -1, NULL, JOB_CALL_MS);

	if (r == 0 && (!job_value_sane(&msg.u.value) ||
		       memcmp(&msg.u.value.job, &value->job, sizeof(value->job)) != 0))
		r = -EBADMSG;
	if (r < 0)
		return api_error(reply, r, "no-majority", name, "decamp nodes shows who is there",
				 "the cluster did not take the folder: %s", strerror(-r));
	folder_created(f, &msg.u.value);
	r = folder_save(f);
	if (r == 0)
		return 0;
	msg.op = OV_JOB_CAS;
	msg.u.value.state = JOB_STATE_KILLED;
	if (ov_call(channel, &msg, -1, NULL, JOB_CALL_MS) < 0)
		log_warn("a folder's register entry stays");
	return api_error(reply, r, "failed", name, "the log of decampd tells more",
			 "this host cannot keep the folder: %s", strerror(-r));
}

/* The room here is taken first: a create that is refused leaves no entry in the register. */
static int create(struct agent *a, const struct job_spec *spec, struct api_reply *reply)
{
	struct job_value value = { 0 };
	struct job_seal seal;
	struct folder *f;
	int r = fill_value(a, spec, &value);

	if (r == 0)
		r = job_unseal_value(a, &value, &seal);
	if (r < 0)
		return r;
	r = folder_reserve(a, &value, &seal, &f);
	key_wipe(&seal, sizeof(seal));
	if (r < 0)
		return refuse_reserve(r, spec->name, reply);
	r = enter_register(a, f, &value, reply);
	if (r < 0)
		folder_leave(f);
	else if (folder_resume(f) < 0)
		folders_wake(a);
	pthread_mutex_unlock(&f->lock);
	if (r == 0) {
		reply->json = json_object_new_object();
		put_text(reply->json, "folder", f->job->hex);
		put_text(reply->json, "name", spec->name);
	}
	folder_unref(a, f);
	return r;
}

int verb_folder_create(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct agent *a = agent;
	struct job_spec spec = { .uid = call->uid, .gid = call->gid, .cwd = "/" };
	int64_t keep, every_s;
	const char *name;
	int r = api_get_string(call, "name", JOB_NAME_MAX - 1, &name);

	if (r == 0)
		r = api_get_int(call, "keep", 1, FOLDER_KEEP_MAX, FOLDER_KEEP, &keep);
	if (r == 0)
		r = api_get_int(call, "every_s", 1, 86400, FOLDER_EVERY_S, &every_s);
	if (r < 0 || !name || !job_good_name(name))
		return api_error(reply, -EINVAL, r < 0 ? "bad-request" : "bad-name",
				 r == 0 && name ? name : "folder",
				 "use letters, digits and ._-+; see decamp folder create --help",
				 r < 0 ? "an option is out of its range" :
					 "not a name for a folder");
	if (!a->cluster)
		return api_error(reply, -EPERM, "no-cluster", a->hostname,
				 "decamp cluster init, or decamp cluster join TOKEN",
				 "this host is in no cluster yet");
	r = a->config.folder_bytes ? refuse_name(a, call, name, reply) : folders_off(name, reply);
	if (r < 0)
		return r;
	strcpy(spec.name, name);
	strcpy(spec.command, "a writable folder");
	spec.every_s = (uint32_t)every_s;
	spec.folder_keep = (uint32_t)keep;
	job_user_name(call->uid, spec.user, sizeof(spec.user));
	return create(a, &spec, reply);
}

/* ---- delete ---- */

static void drop_objects(struct agent *a, const struct job_value *value)
{
	struct ov_msg msg = {
		.op = OV_OBJECT_RETAIN,
		.u.retain = { .job = value->job, .token = value->token, .upto_seq = UINT64_MAX }
	};
	_cleanup_close_ int channel = ov_open_channel(a->main_channel);
	_cleanup_close_ int fd = memfd_new("retain");
	int r = fd < 0 ? fd : memfd_seal(fd);

	if (r == 0)
		r = channel < 0 ? channel : ov_call(channel, &msg, fd, NULL, JOB_CALL_MS);
	if (r < 0) /* holders that see the folder's end drop all of it by themselves */
		log_debug("a folder's packs: drop: %s", strerror(-r));
}

static int end(struct folder *f, struct api_reply *reply)
{
	struct job_value value;
	int r = folder_resume(f);

	if (r == 0) {
		value = f->job->value;
		value.state = JOB_STATE_KILLED;
		r = job_cas(f->job, &value, DELETE_MS);
	}
	if (r == -ESTALE && !f->gone) { /* perhaps by us, and the answer was lost */
		f->ready = false;
		r = folder_resume(f);
	}
	if (r == -ESTALE && f->killed)
		return 0;
	if (r == -ESTALE)
		return api_error(reply, r, "stale", f->job->spec.name,
				 "decamp folder lists your folders",
				 "this host has that folder no longer");
	if (r == 0 && f->job->value.state != JOB_STATE_KILLED)
		r = -EAGAIN;
	if (r < 0)
		return api_error(reply, r, "no-majority", f->job->spec.name,
				 "decamp nodes shows who is there",
				 "the cluster did not answer; it is still there: %s", strerror(-r));
	drop_objects(f->job->agent, &f->job->value);
	folder_leave(f);
	log_info("folder %s: deleted by its user", f->job->spec.name);
	return 0;
}

/* Somebody there would end it: it is not dead, gone or unknown, nor this host, which has it not. */
static bool has_home(const struct target *t)
{
	if (node_id_equal(&t->value.home, &t->agent->self))
		return false; /* and it is not in our table */
	for (size_t i = 0; i < t->member_count; i++)
		if (node_id_equal(&t->members[i].id, &t->value.home))
			return t->members[i].state == MEMBER_ALIVE ||
			       t->members[i].state == MEMBER_SUSPECT;
	return false;
}

/* The register alone ends it. A home that comes back after all asks it first, and is told so. */
static int end_in_register(struct target *t, struct api_reply *reply)
{
	struct ov_msg get = { .op = OV_JOB_GET, .u.job = { .job = t->value.job } };
	struct ov_msg cas = { .op = OV_JOB_CAS };
	struct job_value *value = &cas.u.value;
	int r = ov_call(t->channel, &get, -1, NULL, JOB_CALL_MS);

	if (r == 0 && (!job_value_sane(&get.u.value) ||
		       memcmp(&get.u.value.job, &t->value.job, sizeof(t->value.job)) != 0))
		r = -EBADMSG;
	if (r == 0 && get.u.value.state != JOB_STATE_KILLED) {
		*value = get.u.value;
		value->state = JOB_STATE_KILLED;
		memset(&value->owner, 0, sizeof(value->owner));
		r = ov_call(t->channel, &cas, -1, NULL, JOB_CALL_MS);
	}
	if (r < 0)
		return api_error(reply, r, "no-majority", t->seal.name,
				 "decamp nodes shows who is there",
				 "the cluster did not answer; it is still there: %s", strerror(-r));
	drop_objects(t->agent, &get.u.value);
	log_info("folder %s: deleted by its user, its home is away for good", t->seal.name);
	return 0;
}

/* -EREMOTE, and what was answered stays: its home is there, and does it. */
static int delete_homeless(struct agent *a, const struct api_call *call, struct api_reply *reply)
{
	struct api_reply other = { .stream_fd = -1 };
	struct target t;
	char hex[33];
	int r = find_target(a, call, &t, &other);

	if (r == 0 && has_home(&t)) {
		target_deinit(&t);
		return -EREMOTE;
	}
	if (r == 0)
		r = end_in_register(&t, &other);
	if (r == 0) {
		hex_encode(&t.value.job, sizeof(t.value.job), hex);
		other.json = json_object_new_object();
		put_text(other.json, "folder", hex);
		put_text(other.json, "name", t.seal.name);
	}
	json_object_put(reply->json);
	reply->json = other.json;
	target_deinit(&t);
	return r;
}

int verb_folder_delete(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct agent *a = agent;
	struct folder *f;
	int r = folder_of_call(a, call, &f, reply);

	if (r == -EREMOTE)
		return delete_homeless(a, call, reply);
	if (r < 0)
		return r;
	pthread_mutex_lock(&f->lock);
	r = end(f, reply);
	pthread_mutex_unlock(&f->lock);
	if (r == 0) {
		reply->json = json_object_new_object();
		put_text(reply->json, "folder", f->job->hex);
		put_text(reply->json, "name", f->job->spec.name);
	}
	folder_unref(a, f);
	return r;
}
