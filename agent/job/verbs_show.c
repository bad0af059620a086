// SPDX-License-Identifier: LGPL-2.1-or-later
/* ps, show, history: what is known of jobs, from this host's table, the register, the manifest. */
#define LOG_TAG "api"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "agent/job/verbs.h"
#include "agent/util/io.h"

enum { RECORD_MAX = 1 << 20, FORWARD_MS = 3000, HISTORY_TRIES = 4, HISTORY_PAUSE_US = 200000 };

static bool visible(const struct api_call *call, uid_t owner)
{
	return call->uid == 0 || call->uid == owner;
}

static bool listed(struct json_object *jobs, const char *hex)
{
	for (size_t i = 0; i < json_object_array_length(jobs); i++) {
		struct json_object *id;

		if (json_object_object_get_ex(json_object_array_get_idx(jobs, i), "job", &id) &&
		    !strcmp(json_object_get_string(id), hex))
			return true;
	}
	return false;
}

static void list_local(struct agent *a, const struct api_call *call, struct target *t,
		       struct json_object *jobs)
{
	struct job *found[JOB_LOCAL_MAX];
	int count = 0;

	pthread_mutex_lock(&a->lock);
	for (int i = 0; i < JOB_LOCAL_MAX; i++)
		if (a->jobs[i] && a->jobs[i]->phase != PHASE_GONE)
			found[count++] = job_ref(a->jobs[i]);
	pthread_mutex_unlock(&a->lock);
	for (int i = 0; i < count; i++) {
		struct job_value value;

		pthread_mutex_lock(&found[i]->lock);
		value = found[i]->value;
		pthread_mutex_unlock(&found[i]->lock);
		if (visible(call, found[i]->spec.uid))
			json_object_array_add(jobs, describe_summary(a, &value, NULL, found[i],
								     t->members, t->member_count));
		job_unref(found[i]);
	}
}

static void list_cluster(struct agent *a, const struct api_call *call, struct target *t, bool all,
			 struct json_object *jobs)
{
	_cleanup_free_ struct job_value *values = NULL;
	size_t count = 0;

	if (agent_list(t->channel, &values, &count) < 0)
		return;
	for (size_t i = 0; i < count; i++) {
		struct job_seal seal;
		char hex[33];

		hex_encode(&values[i].job, sizeof(values[i].job), hex);
		if (values[i].state > JOB_STATE_DONE && !all)
			continue;
		if (listed(jobs, hex) || job_unseal_value(a, &values[i], &seal) < 0)
			continue;
		if (visible(call, seal.uid) && !(seal.flags & JOB_SEAL_FOLDER))
			json_object_array_add(jobs, describe_summary(a, &values[i], &seal, NULL,
								     t->members, t->member_count));
		key_wipe(&seal, sizeof(seal));
	}
}

/* Jobs that came home: the record that was written then. */
static struct json_object *read_done(struct agent *a, const char *file)
{
	_cleanup_free_ char *path = NULL, *text = NULL;

	if (asprintf(&path, "%s/done/%s", a->config.state_dir, file) < 0 ||
	    read_file_at(AT_FDCWD, path, RECORD_MAX, &text, NULL) < 0)
		return NULL;
	return json_tokener_parse(text);
}

static bool done_matches(struct json_object *record, const struct api_call *call, const char *ref,
			 struct json_object **ret_summary)
{
	struct json_object *summary, *part;

	if (!json_object_object_get_ex(record, "summary", &summary) ||
	    !json_object_object_get_ex(summary, "uid", &part) ||
	    !visible(call, (uid_t)json_object_get_int64(part)))
		return false;
	if (ref) {
		struct json_object *name, *id;

		if (!json_object_object_get_ex(summary, "name", &name) ||
		    !json_object_object_get_ex(summary, "job", &id))
			return false;
		if (strcmp(json_object_get_string(name), ref) != 0 &&
		    (strlen(ref) < 4 || strncmp(json_object_get_string(id), ref, strlen(ref)) != 0))
			return false;
	}
	*ret_summary = summary;
	return true;
}

/* Calls fn for each record; stops when fn returns true. */
static void walk_done(struct agent *a, bool (*fn)(struct json_object *record, void *ctx), void *ctx)
{
	_cleanup_free_ char *folder = NULL;
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;
	bool stop = false;

	if (asprintf(&folder, "%s/done", a->config.state_dir) < 0)
		return;
	dir = opendir(folder);
	while (dir && !stop && (entry = readdir(dir))) {
		const char *dot = strrchr(entry->d_name, '.');
		struct json_object *record;

		if (!dot || strcmp(dot, ".json") != 0)
			continue;
		record = read_done(a, entry->d_name);
		if (record) {
			stop = fn(record, ctx);
			json_object_put(record);
		}
	}
}

struct done_walk {
	const struct api_call *call;
	const char *ref;
	struct json_object *jobs;   /* ps */
	struct json_object *record; /* show: the newest match */
	int64_t newest;
};

static bool add_done(struct json_object *record, void *ctx)
{
	struct done_walk *walk = ctx;
	struct json_object *summary, *id;

	if (done_matches(record, walk->call, NULL, &summary) &&
	    json_object_object_get_ex(summary, "job", &id)) {
		/* The record knows more than the register: it replaces its row. */
		for (size_t i = 0; i < json_object_array_length(walk->jobs); i++) {
			struct json_object *row = json_object_array_get_idx(walk->jobs, i), *other;

			if (json_object_object_get_ex(row, "job", &other) &&
			    !strcmp(json_object_get_string(other), json_object_get_string(id))) {
				json_object_array_put_idx(walk->jobs, i, json_object_get(summary));
				return false;
			}
		}
		json_object_array_add(walk->jobs, json_object_get(summary));
	}
	return false;
}

static bool pick_done(struct json_object *record, void *ctx)
{
	struct done_walk *walk = ctx;
	struct json_object *summary, *submit;

	if (!done_matches(record, walk->call, walk->ref, &summary) ||
	    !json_object_object_get_ex(summary, "submit_ms", &submit) ||
	    json_object_get_int64(submit) < walk->newest)
		return false;
	walk->newest = json_object_get_int64(submit);
	json_object_put(walk->record);
	walk->record = json_object_get(record);
	return false;
}

int verb_ps(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct agent *a = agent;
	struct target t = { .agent = a, .channel = -1 };
	struct json_object *jobs = json_object_new_array();
	struct done_walk walk = { .call = call, .jobs = jobs };
	bool all;
	int r = api_get_bool(call, "all", false, &all);

	if (r < 0) {
		json_object_put(jobs);
		return r;
	}
	if (a->cluster) {
		t.channel = ov_open_channel(a->main_channel);
		if (t.channel >= 0 && agent_members(t.channel, &t.members, &t.member_count) < 0)
			t.member_count = 0;
		list_local(a, call, &t, jobs);
		if (t.channel >= 0)
			list_cluster(a, call, &t, all, jobs);
	}
	if (all)
		walk_done(a, add_done, &walk);
	target_deinit(&t);
	reply->json = json_object_new_object();
	json_object_object_add(reply->json, "jobs", jobs);
	return 0;
}

/* A job that has come home is answered from its record; 1 = answered. */
static int answer_done(struct agent *a, const struct api_call *call, bool history,
		       struct api_reply *reply)
{
	struct done_walk walk = { .call = call };
	struct json_object *part;

	if (api_get_string(call, "job", JOB_NAME_MAX, &walk.ref) < 0 || !walk.ref)
		return 0;
	walk_done(a, pick_done, &walk);
	if (!walk.record)
		return 0;
	json_object_put(reply->json); /* the "no such job" of before */
	json_object_object_get_ex(walk.record, history ? "history" : "summary", &part);
	reply->json = json_object_get(part);
	if (!history) {
		struct json_object *results, *detail = json_object_new_object();

		if (json_object_object_get_ex(part, "results", &results))
			json_object_object_add(detail, "results", json_object_get(results));
		json_object_object_add(reply->json, "detail", detail);
	}
	json_object_put(walk.record);
	return 1;
}

/* What only the owner knows: what it is doing now. */
static void merge_live(struct target *t, const struct api_call *call, struct json_object *json)
{
	static const char *const keys[] = { "state", "step", "step_done", "step_total", "message" };
	struct api_reply live = { .stream_fd = -1 };
	struct json_object *value;

	if (t->value.state == JOB_STATE_HELD &&
	    target_forward(t, "show", call, FORWARD_MS, &live) == 0 && live.json) {
		for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
			if (json_object_object_get_ex(live.json, keys[i], &value))
				json_object_object_add(json, keys[i], json_object_get(value));
	} else if (t->value.state == JOB_STATE_HELD) {
		json_object_object_add(json, "message",
				       json_object_new_string("its host does not answer now"));
	}
	json_object_put(live.json);
}

int verb_show(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct manifest *manifest = NULL;
	struct target t;
	int r = target_find(agent, call, &t, reply);

	if (r == -ENOENT && answer_done(agent, call, false, reply))
		return 0;
	if (r < 0)
		return r;
	if (t.value.state >= JOB_STATE_COLLECTED && answer_done(agent, call, false, reply)) {
		target_deinit(&t);
		return 0;
	}
	reply->json =
		describe_summary(agent, &t.value, &t.seal, t.local, t.members, t.member_count);
	if (!t.here) {
		if (!t.local && target_manifest(&t, &manifest) < 0)
			manifest = NULL;
		describe_detail(agent, reply->json, &t.value, t.local,
				manifest ? manifest_head(manifest) : NULL, t.members,
				t.member_count);
		if (!t.local)
			merge_live(&t, call, reply->json);
		manifest_destroy(manifest);
	}
	target_deinit(&t);
	return 0;
}

/* NULL: this host has not read yet what other hosts did. */
static struct json_object *local_history(struct target *t)
{
	struct job *job = t->local;
	struct json_object *json = NULL;

	pthread_mutex_lock(&job->lock);
	if (job->knows_past)
		json = describe_history(&t->value, job->stats, job->stat_count, job->moves,
					job->move_count);
	pthread_mutex_unlock(&job->lock);
	return json;
}

/* -ESTALE if more are to come: the checkpoint that was found is gone by now. */
static int history(struct agent *agent, const struct api_call *call, bool last,
		   struct api_reply *reply)
{
	struct manifest *manifest = NULL;
	struct target t;
	int r = target_find(agent, call, &t, reply);

	if (r == -ENOENT && answer_done(agent, call, true, reply))
		return 0;
	if (r < 0)
		return r;
	if (t.value.state >= JOB_STATE_COLLECTED && answer_done(agent, call, true, reply)) {
		target_deinit(&t);
		return 0;
	}
	if (t.local && (reply->json = local_history(&t))) {
		r = 0;
	} else if (t.value.history_count == 0) {
		reply->json = describe_history(&t.value, NULL, 0, NULL, 0);
	} else {
		r = target_manifest(&t, &manifest);
		if (r == -ENOENT && !last) {
			r = -ESTALE;
		} else if (r < 0 && t.value.state == JOB_STATE_COLLECTED) {
			r = api_error(reply, r, "at-home", t.seal.name,
				      "ask on the host where it was submitted",
				      "it has gone home, and its history with it");
		} else if (r < 0) {
			r = api_error(reply, r, "unreadable", t.seal.name,
				      "decamp nodes shows which hosts are away",
				      "its newest checkpoint cannot be read now: %s", strerror(-r));
		} else {
			const struct manifest_head *head = manifest_head(manifest);

			reply->json = describe_history(&t.value, head->stats, head->stat_count,
						       head->moves, head->move_count);
			manifest_destroy(manifest);
		}
	}
	target_deinit(&t);
	return r;
}

/* A job that ends takes its checkpoints along: they may go between the look at it and at them. */
int verb_history(void *agent, const struct api_call *call, struct api_reply *reply)
{
	int r = -ESTALE;

	for (int i = 1; r == -ESTALE && i <= HISTORY_TRIES; i++) {
		r = history(agent, call, i == HISTORY_TRIES, reply);
		if (r == -ESTALE)
			usleep(HISTORY_PAUSE_US);
	}
	return r;
}
