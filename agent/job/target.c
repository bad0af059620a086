// SPDX-License-Identifier: LGPL-2.1-or-later
/* Which job does a request mean, who may steer it, and where does it run? */
#define LOG_TAG "api"
#include <errno.h>
#include <string.h>

#include "agent/job/verbs.h"
#include "agent/util/io.h"

enum { PREFIX_MIN = 4 };

static bool id_matches(const char *hex, const char *ref)
{
	size_t len = strlen(ref);

	return len >= PREFIX_MIN && len <= 32 && !strncmp(hex, ref, len);
}

static bool may_steer(const struct api_call *call, uid_t owner)
{
	return call->uid == 0 || call->uid == owner;
}

/* What a search met: exact hits that the caller may steer, and one that he may not. */
struct search {
	const struct api_call *call;
	const char *ref;
	int hits;
	bool foreign;
};

static bool consider(struct search *s, const struct job_id *id, const char *name, uid_t uid)
{
	char hex[33];
	bool by_id;

	hex_encode(id, sizeof(*id), hex);
	by_id = id_matches(hex, s->ref);
	if (!by_id && strcmp(name, s->ref) != 0)
		return false;
	if (!may_steer(s->call, uid)) {
		s->foreign |= by_id; /* names of others' jobs are theirs to know */
		return false;
	}
	s->hits++;
	return true;
}

static void search_local(struct agent *a, struct search *s, struct target *t)
{
	pthread_mutex_lock(&a->lock);
	for (int i = 0; i < JOB_LOCAL_MAX; i++) {
		struct job *job = a->jobs[i];

		if (!job || job->phase == PHASE_GONE ||
		    !consider(s, &job->id, job->spec.name, job->spec.uid))
			continue;
		job_unref(t->local);
		t->local = job_ref(job);
	}
	pthread_mutex_unlock(&a->lock);
	if (t->local) {
		pthread_mutex_lock(&t->local->lock);
		t->value = t->local->value;
		pthread_mutex_unlock(&t->local->lock);
	}
}

/* Jobs that still live win over ended ones of the same name. */
static int search_cluster(struct agent *a, struct search *s, struct target *t)
{
	_cleanup_free_ struct job_value *values = NULL;
	bool found_ended = false;
	size_t count;
	int r = agent_list(t->channel, &values, &count);

	if (r < 0)
		return r;
	for (size_t i = 0; i < count; i++) {
		struct job_seal seal;
		bool ended = values[i].state >= JOB_STATE_DONE;
		int hits = s->hits;

		if (job_unseal_value(a, &values[i], &seal) < 0)
			continue;
		if (!(seal.flags & JOB_SEAL_FOLDER) &&
		    consider(s, &values[i].job, seal.name, seal.uid)) {
			if (hits && ended) {
				s->hits = hits; /* the living one is meant */
			} else {
				if (hits && found_ended)
					s->hits = hits;
				t->value = values[i];
				t->seal = seal;
				found_ended = ended;
			}
		}
		key_wipe(&seal, sizeof(seal));
	}
	return 0;
}

static int not_found(const struct search *s, struct api_reply *reply)
{
	if (s->hits > 1)
		return api_error(reply, -EINVAL, "ambiguous", s->ref,
				 "name it by its id; decamp ps shows it", "%d jobs have that name",
				 s->hits);
	if (s->foreign)
		return api_error(reply, -EPERM, "not-yours", s->ref,
				 "ask its owner or an administrator",
				 "the job belongs to another user");
	return api_error(reply, -ENOENT, "no-such-job", s->ref, "decamp ps -a lists your jobs",
			 "there is no such job");
}

int target_find(struct agent *a, const struct api_call *call, struct target *ret_target,
		struct api_reply *reply)
{
	struct target t = { .agent = a, .channel = -1 };
	struct search s = { .call = call };
	int r = api_get_string(call, "job", JOB_NAME_MAX, &s.ref);

	if (r < 0 || !s.ref || !*s.ref)
		return api_error(reply, -EINVAL, "bad-request", "job", "decamp ps lists your jobs",
				 "no job was named");
	if (!a->cluster)
		return api_error(reply, -ENOENT, "no-such-job", s.ref,
				 "decamp cluster init, or decamp cluster join TOKEN",
				 "this host is in no cluster yet");
	r = api_get_bool(call, "_here", false, &t.here);
	t.channel = r < 0 ? r : ov_open_channel(a->main_channel);
	if (t.channel < 0)
		return t.channel;
	search_local(a, &s, &t);
	if (s.hits == 0 && !t.here)
		r = search_cluster(a, &s, &t);
	if (r == 0 && s.hits != 1)
		r = not_found(&s, reply);
	if (r == 0)
		r = agent_members(t.channel, &t.members, &t.member_count);
	if (r == 0 && t.local)
		r = job_unseal_value(a, &t.value, &t.seal);
	if (r < 0) {
		target_deinit(&t);
		return r;
	}
	*ret_target = t;
	return 0;
}

void target_deinit(struct target *t)
{
	job_unref(t->local);
	free(t->members);
	free(t->versions);
	close_fdp(&t->channel);
	key_wipe(&t->seal, sizeof(t->seal));
	t->local = NULL;
	t->members = NULL;
	t->versions = NULL;
	t->channel = -1;
}

int target_forward(struct target *t, const char *verb, const struct api_call *call, int timeout_ms,
		   struct api_reply *reply)
{
	int r = -EHOSTUNREACH;

	if (!t->here && !node_id_is_zero(&t->value.owner) &&
	    !node_id_equal(&t->value.owner, &t->agent->self))
		r = order_forward(t->agent, &t->value.owner, verb, call, timeout_ms, reply);
	if (r == -EHOSTUNREACH && !reply->json)
		return api_error(reply, r, "owner-away", t->seal.name, "try again in a moment",
				 "the host that owns the job does not answer now");
	return r;
}

int target_manifest(struct target *t, struct manifest **ret_manifest)
{
	struct secret_key key;
	int r = -ENOENT;

	memcpy(key.b, t->seal.key, sizeof(key.b));
	for (uint32_t i = 0; i < t->value.history_count && r < 0; i++)
		r = job_open_manifest(t->agent, t->channel, &t->value.job, &key,
				      &t->value.history[i], ret_manifest);
	key_wipe(&key, sizeof(key));
	return r;
}

/* A host that joined anew has left an earlier id behind under the same name: the live one counts. */
const struct member_info *target_host(const struct target *t, const char *name)
{
	const struct member_info *found = NULL;
	char hex[33];

	for (size_t i = 0; i < t->member_count; i++) {
		const struct member_info *m = &t->members[i];

		hex_encode(&m->id, sizeof(m->id), hex);
		if (id_matches(hex, name))
			return m;
		if (!strcmp(m->hostname, name) && (!found || m->state < found->state))
			found = m;
	}
	return found;
}
