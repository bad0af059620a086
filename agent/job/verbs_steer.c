// SPDX-License-Identifier: LGPL-2.1-or-later
/* ckpt, freeze, thaw, kill, migrate, restore: done by the owner's host, wherever one asks. */
#define LOG_TAG "api"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "agent/job/verbs.h"
#include "agent/util/io.h"
#include "overlay/core/match.h"

enum {
	STEER_MS = 60000,
	LONG_MS = 600000,   /* a checkpoint of a big job, a move */
	ARRIVE_MS = 300000, /* until the new owner runs it */
	POLL_MS = 200,
	FORWARD_MARGIN_MS = 5000,
};

static int reply_state(struct target *t, struct api_reply *reply)
{
	struct job_value value;

	pthread_mutex_lock(&t->local->lock);
	value = t->local->value;
	pthread_mutex_unlock(&t->local->lock);
	reply->json =
		describe_summary(t->agent, &value, &t->seal, t->local, t->members, t->member_count);
	return 0;
}

static int steer_failed(struct target *t, int r, const char *what, struct api_reply *reply)
{
	char message[JOB_MESSAGE_MAX] = "";

	if (t->local) {
		pthread_mutex_lock(&t->local->lock);
		snprintf(message, sizeof(message), "%s", t->local->message);
		pthread_mutex_unlock(&t->local->lock);
	}
	if (r == -ETIMEDOUT)
		return api_error(reply, r, "still-busy", t->seal.name, "decamp show follows it",
				 "%s goes on in the background", what);
	return api_error(reply, r, "failed", t->seal.name, "decamp show tells its state",
			 "%s failed: %s", what, message[0] ? message : strerror(-r));
}

/* The common shape: find, do here or ask the owner's host. */
static int steer(void *agent, const struct api_call *call, const char *verb, struct action *action,
		 int timeout_ms, struct api_reply *reply)
{
	struct target t;
	int r = target_find(agent, call, &t, reply);

	if (r < 0)
		return r;
	if (t.local) {
		r = job_do(t.local, action, timeout_ms);
		r = r < 0 ? steer_failed(&t, r, verb, reply) : reply_state(&t, reply);
	} else {
		r = target_forward(&t, verb, call, timeout_ms, reply);
	}
	target_deinit(&t);
	return r;
}

int verb_freeze(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct action action = { .type = ACTION_FREEZE };

	return steer(agent, call, "freeze", &action, STEER_MS, reply);
}

int verb_thaw(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct action action = { .type = ACTION_THAW };

	return steer(agent, call, "thaw", &action, STEER_MS, reply);
}

int verb_ckpt(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct action action = { .type = ACTION_CHECKPOINT, .reason = "user" };
	struct target t;
	int r = target_find(agent, call, &t, reply);

	if (r < 0)
		return r;
	if (t.local) {
		r = job_do(t.local, &action, LONG_MS);
		if (r < 0) {
			r = steer_failed(&t, r, "the checkpoint", reply);
		} else {
			reply->json = json_object_new_object();
			json_object_object_add(reply->json, "seq",
					       json_object_new_int64((int64_t)action.stat.seq));
			json_object_object_add(
				reply->json, "pause_us",
				json_object_new_int64((int64_t)action.stat.pause_us));
			json_object_object_add(
				reply->json, "sent_bytes",
				json_object_new_int64((int64_t)action.stat.sent_bytes));
		}
	} else {
		r = target_forward(&t, "ckpt", call, LONG_MS, reply);
	}
	target_deinit(&t);
	return r;
}

/* Nobody runs it, or its host is silent: the register alone can end it. */
static int kill_in_register(struct target *t, struct api_reply *reply)
{
	struct ov_msg msg = { .op = OV_JOB_CAS, .u.value = t->value };
	int r;

	msg.u.value.state = JOB_STATE_KILLED;
	msg.u.value.exit_status = SIGKILL;
	memset(&msg.u.value.owner, 0, sizeof(msg.u.value.owner));
	r = ov_call(t->channel, &msg, -1, NULL, JOB_CALL_MS);
	if (r < 0)
		return api_error(reply, r, "failed", t->seal.name, "try again in a moment",
				 "its guardians did not take it: %s", strerror(-r));
	reply->json = describe_summary(t->agent, &msg.u.value, &t->seal, NULL, t->members,
				       t->member_count);
	return 0;
}

int verb_kill(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct action action = { .type = ACTION_KILL };
	struct target t;
	int64_t signal;
	int r = target_find(agent, call, &t, reply);

	if (r < 0)
		return r;
	r = api_get_int(call, "signal", 0, 64, 0, &signal);
	action.signal = (int)signal;
	if (r < 0) {
		r = api_error(reply, r, "bad-request", "signal", "give a number from 1 to 64",
			      "no such signal");
	} else if (t.value.state >= JOB_STATE_DONE && !t.local) {
		r = api_error(reply, -ESTALE, "ended", t.seal.name, "nothing is left to do",
			      "the job has ended already");
	} else if (t.local) {
		r = job_do(t.local, &action, STEER_MS);
		r = r < 0 ? steer_failed(&t, r, "the kill", reply) : reply_state(&t, reply);
	} else {
		/* Longer than its owner takes to say that it is busy: that is no silence. */
		r = target_forward(&t, "kill", call, STEER_MS + FORWARD_MARGIN_MS, reply);
		if (r == -EHOSTUNREACH && !t.here && signal == 0) {
			json_object_put(reply->json);
			reply->json = NULL;
			r = kill_in_register(&t, reply);
		}
	}
	target_deinit(&t);
	return r;
}

/* Where "host" of the request is; zero id without one. */
static int wished_host(struct target *t, const struct api_call *call, struct node_id *ret_node,
		       struct api_reply *reply)
{
	const struct member_info *host;
	char reasons[WHY_TEXT_MAX];
	const char *name;
	int r = api_get_string(call, "host", OV_NAME_MAX, &name);

	memset(ret_node, 0, sizeof(*ret_node));
	if (r < 0 || !name || !*name)
		return r;
	host = target_host(t, name);
	if (!host)
		return api_error(reply, -ENOENT, "no-such-host", name, "decamp nodes lists them",
				 "there is no such host in the cluster");
	if (host->state != MEMBER_ALIVE)
		return api_error(reply, -EHOSTUNREACH, "host-away", name, "choose another host",
				 "that host does not answer now");
	if (!(host->report.flags & MEMBER_TAKES_JOBS))
		return api_error(reply, -EBUSY, "host-busy", name, "choose another host",
				 "that host takes no jobs now%s",
				 host->report.flags & MEMBER_USER_PRESENT ? ": somebody uses it" :
									    "");
	/* Where it runs now there is room for it, though not for it once more. */
	if (!node_id_equal(&host->id, &t->value.owner) &&
	    why_not(host, &t->value, MATCH_CANNOT, reasons))
		return api_error(reply, -EOPNOTSUPP, "does-not-fit", name,
				 "decamp why JOB tells which hosts fit", "%.400s", reasons);
	*ret_node = host->id;
	return 0;
}

static const char *name_of(const struct target *t, const struct node_id *node)
{
	for (size_t i = 0; i < t->member_count; i++)
		if (node_id_equal(&t->members[i].id, node))
			return t->members[i].hostname;
	return "?";
}

static bool runs_there(struct target *t, const struct api_call *call, const struct node_id *owner)
{
	struct api_reply live = { .stream_fd = -1 };
	struct json_object *state;
	bool runs = false;

	if (node_id_equal(owner, &t->agent->self)) {
		struct job *job = agent_find(t->agent, &t->value.job);

		runs = job && (job->phase == PHASE_RUNNING || job->phase == PHASE_CHECKPOINTING);
		job_unref(job);
		return runs;
	}
	if (order_forward(t->agent, owner, "show", call, STEER_MS / 10, &live) == 0 && live.json &&
	    json_object_object_get_ex(live.json, "state", &state)) {
		const char *text = json_object_get_string(state);

		runs = !strcmp(text, "running") || !strcmp(text, "checkpointing") ||
		       !strcmp(text, "finishing");
	}
	json_object_put(live.json);
	return runs;
}

/* Waits until a token newer than `before` runs somewhere. */
static int wait_for_arrival(struct target *t, const struct api_call *call,
			    const struct fence_token *before, struct api_reply *reply)
{
	uint64_t deadline = now_boot_ns() + (uint64_t)ARRIVE_MS * 1000000u;

	while (now_boot_ns() < deadline && !t->agent->stopping) {
		struct ov_msg msg = { .op = OV_JOB_GET, .u.job = { .job = t->value.job } };
		const struct job_value *v = &msg.u.value;
		int r = ov_call(t->channel, &msg, -1, NULL, JOB_CALL_MS);

		if (r == 0 && v->state >= JOB_STATE_DONE) {
			reply->json = json_object_new_object();
			json_object_object_add(reply->json, "host", json_object_new_string(""));
			return 0;
		}
		if (r == 0 && v->state == JOB_STATE_HELD &&
		    fence_token_compare(&v->token, before) > 0 && runs_there(t, call, &v->owner)) {
			reply->json = json_object_new_object();
			json_object_object_add(reply->json, "host",
					       json_object_new_string(name_of(t, &v->owner)));
			return 0;
		}
		usleep(POLL_MS * 1000);
	}
	return api_error(reply, -ETIMEDOUT, "not-there-yet", t->seal.name, "decamp show follows it",
			 "no host has resumed it yet; it stays safe in the store");
}

/* Hand over (or roll back) at the owner, then wait for the new owner. */
static int move_job(struct target *t, const struct api_call *call, const char *verb,
		    struct action *action, struct api_reply *reply)
{
	struct fence_token before = t->value.token;
	int r;

	if (t->local) {
		if (node_id_equal(&action->target, &t->agent->self) &&
		    action->type == ACTION_HANDOVER)
			return api_error(reply, -EINVAL, "there-already", t->seal.name,
					 "name another host", "it runs on that host");
		r = job_do(t->local, action, LONG_MS);
		if (r < 0)
			return steer_failed(t, r, "the move", reply);
	} else {
		r = target_forward(t, verb, call, LONG_MS, reply);
		if (r < 0)
			return r;
		json_object_put(reply->json);
		reply->json = NULL;
	}
	if (t->here) { /* whoever forwarded this waits by itself */
		reply->json = json_object_new_object();
		return 0;
	}
	return wait_for_arrival(t, call, &before, reply);
}

int verb_migrate(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct action action = { .type = ACTION_HANDOVER, .reason = "migrate" };
	struct target t;
	int r = target_find(agent, call, &t, reply);

	if (r < 0)
		return r;
	r = wished_host(&t, call, &action.target, reply);
	if (r == 0 && t.value.state >= JOB_STATE_DONE)
		r = api_error(reply, -ESTALE, "ended", t.seal.name, "nothing is left to move",
			      "the job has ended");
	if (r == 0)
		r = move_job(&t, call, "migrate", &action, reply);
	target_deinit(&t);
	return r;
}

/* Its owner is silent or nobody has it: ask the guardians to make a host its owner now. */
static int take_job(struct target *t, const struct api_call *call, const struct node_id *host,
		    struct api_reply *reply)
{
	struct fence_token before = t->value.token;
	struct ov_msg msg = { .op = OV_JOB_TAKE, .u.value = t->value };
	int r;

	memset(&msg.u.value.token, 0,
	       sizeof(msg.u.value.token)); /* no claim: it waits for leases */
	msg.u.value.target = node_id_is_zero(host) ? t->agent->self : *host;
	r = ov_call(t->channel, &msg, -1, NULL, JOB_CALL_MS);
	if (r == -EBUSY)
		return api_error(reply, r, "lease-runs", t->seal.name,
				 "try again in half a minute, or decamp kill it first",
				 "its last owner may still run it");
	if (r < 0)
		return api_error(reply, r, "failed", t->seal.name,
				 "decamp nodes shows who is there",
				 "its guardians did not agree: %s", strerror(-r));
	return wait_for_arrival(t, call, &before, reply);
}

int verb_restore(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct action action = { .type = ACTION_ROLLBACK, .reason = "rollback" };
	struct node_id host;
	struct target t;
	int64_t seq;
	bool known = false;
	int r = target_find(agent, call, &t, reply);

	if (r < 0)
		return r;
	r = wished_host(&t, call, &host, reply);
	if (r == 0)
		r = api_get_int(call, "seq", 1, INT64_MAX, 0, &seq);
	if (r == 0 && t.value.state >= JOB_STATE_DONE)
		r = api_error(reply, -ESTALE, "ended", t.seal.name,
			      "submit it again with decamp run",
			      "the job has ended; an ended job never comes back");
	if (r == 0 && t.value.history_count == 0)
		r = api_error(reply, -ENOENT, "no-checkpoint", t.seal.name,
			      "decamp ckpt JOB takes one", "it has no committed checkpoint yet");
	if (r < 0)
		goto out;
	action.seq = seq ? (uint64_t)seq : t.value.history[0].seq;
	action.target = host;
	for (uint32_t i = 0; i < t.value.history_count; i++)
		known |= t.value.history[i].seq == action.seq;
	if (!known) {
		r = api_error(reply, -ENOENT, "no-such-checkpoint", t.seal.name,
			      "decamp history marks the restorable ones",
			      "checkpoint %lld is not kept", (long long)seq);
		goto out;
	}
	if (t.local || (t.value.state == JOB_STATE_HELD && runs_there(&t, call, &t.value.owner)))
		r = move_job(&t, call, "restore", &action, reply);
	else if (action.seq != t.value.history[0].seq)
		r = api_error(reply, -EHOSTUNREACH, "owner-away", t.seal.name,
			      "decamp restore without --seq, then once more with it",
			      "nobody runs it now: only its newest checkpoint can be restored");
	else
		r = take_job(&t, call, &host, reply);
out:
	target_deinit(&t);
	return r;
}
