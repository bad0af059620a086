// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Leaving this host with nothing lost: freeze -> checkpoint of the frozen job -> RELEASE -> kill.
 *
 * Point of no return: the RELEASE that the register has accepted. Before it every failure leaves the
 * job here: running again after a migrate, frozen while a user sits here.
 */
#define LOG_TAG "job"
#include <errno.h>
#include <string.h>

#include "agent/job/job.h"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/core/match.h"

enum { RELEASE_PATIENCE_MS = 60000 };

static void leave(struct job *job, const char *reason);

/*
 * After this the job must not run under this token again, and whether a RELEASE without an answer
 * took effect is known only when the register answers: so it stays frozen until then.
 */
static int release(struct job *job, const struct node_id *target)
{
	struct job_value value = job->value;
	int r;

	job->releasing = true;
	r = job_save(job);
	if (r < 0) { /* nothing was sent yet: the hand-over can still be called off */
		job->releasing = false;
		return r;
	}
	memset(&value.owner, 0, sizeof(value.owner));
	value.state = JOB_STATE_IDLE;
	value.target = *target;
	for (;;) {
		r = job_cas(job, &value, RELEASE_PATIENCE_MS);
		if (r == 0 || r == -ESTALE || job->agent->stopping)
			return r;
		if (job->lost || r == -ENOENT) /* killed, and forgotten since */
			return -ESTALE;
		job_say(job, "frozen: its guardians do not answer the release yet: %s",
			strerror(-r));
		sleep(1);
	}
}

int job_finish_release(struct job *job)
{
	static const struct node_id anybody;
	int r = release(job, &anybody);

	if (r == 0 || r == -ESTALE)
		leave(job, "its hand-over was under way when decampd was restarted");
	return r;
}

/* The hand-over came to nothing: run on, unless somebody sits at this machine now. */
static void stay(struct job *job)
{
	bool frozen = job->agent->user_present && job->agent->config.vacate_on_login;
	int r;

	job->owner_frozen = frozen;
	r = frozen ? keeper_freeze(job->keeper, KEEPER_CALL_MS) :
		     (job->user_frozen ? 0 : keeper_thaw(job->keeper));
	if (r < 0)
		log_errno(r, "%s: %s", job->spec.name, frozen ? "freeze" : "thaw");
	job_phase(job, PHASE_RUNNING);
}

static void leave(struct job *job, const char *reason)
{
	job_drop(job);
	job_say(job, "left this host: %s", reason);
	job_discard(job);
	job_phase(job, PHASE_GONE);
}

static bool can_take(const struct job *job, const struct member_info *m)
{
	struct core_match match;

	core_match(m, &job->value, 0, &match);
	return !m->is_self && !match.bars;
}

/* The least loaded other host that fits; zero if there is none. The guardian has the last word. */
static int pick_target(struct job *job, struct node_id *ret_target)
{
	_cleanup_free_ struct member_info *members = NULL;
	const struct member_info *best = NULL;
	size_t count;
	int r = agent_members(job->channel, &members, &count);

	if (r < 0)
		return r;
	for (size_t i = 0; i < count; i++) {
		const struct member_info *m = &members[i];

		if (!can_take(job, m))
			continue;
		if (!best || m->report.jobs < best->report.jobs ||
		    (m->report.jobs == best->report.jobs &&
		     m->report.load_milli < best->report.load_milli))
			best = m;
	}
	memset(ret_target, 0, sizeof(*ret_target));
	if (best)
		*ret_target = best->id;
	return 0;
}

/* The checkpoint just taken may ask for more than the one by which the host was chosen. */
static bool still_fits(struct job *job, const struct node_id *target)
{
	_cleanup_free_ struct member_info *members = NULL;
	struct core_match match;
	size_t count;

	if (agent_members(job->channel, &members, &count) < 0)
		return true;
	for (size_t i = 0; i < count; i++) {
		if (!node_id_equal(&members[i].id, target))
			continue;
		core_match(&members[i], &job->value, 0, &match);
		return !(match.bars & MATCH_CANNOT);
	}
	return true;
}

int job_handover(struct job *job, const struct action *action)
{
	bool must_go = strcmp(action->reason, "migrate") != 0;
	struct node_id target = action->target;
	struct ckpt_stat stat;
	int r;

	if (!job->keeper || job->phase != PHASE_RUNNING)
		return -EBUSY;
	/* At once, so that the user at the keyboard has the machine; thawed only by the dump. */
	r = must_go ? keeper_freeze(job->keeper, KEEPER_CALL_MS) : 0;
	if (r < 0)
		log_errno(r, "%s: freeze", job->spec.name);
	if (node_id_is_zero(&target) && pick_target(job, &target) < 0)
		log_warn("%s: the guardian will choose its next host", job->spec.name);
	if (node_id_is_zero(&target) && !must_go) {
		job_say(job, "no other host can take it now: it runs on here");
		return -EHOSTUNREACH;
	}
	job_phase(job, PHASE_MOVING);
	r = must_go ? 0 : keeper_freeze(job->keeper, KEEPER_CALL_MS);
	if (r < 0)
		log_errno(r, "%s: freeze", job->spec.name);
	r = job_checkpoint(job, action->reason, CAPTURE_STAY_FROZEN, &stat);
	if (r == -ESTALE && !job_is_lost(job))
		r = -EAGAIN;
	if (r == 0 && !still_fits(job, &target)) {
		if (!must_go)
			job_say(job, "it has come to need what that host lacks: it runs on here");
		r = must_go ? 0 : -EHOSTUNREACH;
		memset(&target, 0, sizeof(target));
	}
	if (r == 0)
		r = release(job, &target);
	if (r == -ESTALE) {
		leave(job, "another host has it");
		return r;
	}
	if (r < 0) {
		if (!job->releasing)
			stay(job);
		return r;
	}
	leave(job, action->reason);
	return 0;
}

int job_rollback(struct job *job, const struct action *action)
{
	struct job_value value = job->value;
	struct ckpt_ref ref;
	uint32_t i;
	int r;

	if (!job->keeper || job->phase != PHASE_RUNNING)
		return -EBUSY;
	for (i = 0; i < value.history_count; i++)
		if (value.history[i].seq == action->seq)
			break;
	if (i == value.history_count)
		return -ENOENT;
	job_phase(job, PHASE_MOVING);
	r = keeper_freeze(job->keeper, KEEPER_CALL_MS);
	if (r < 0) {
		stay(job);
		return r;
	}
	/* The old checkpoint is committed once more, as the newest: numbers never go back. */
	ref = value.history[i];
	ref.seq = value.history[0].seq + 1;
	memmove(&value.history[1], &value.history[0],
		(OV_HISTORY_MAX - 1) * sizeof(value.history[0]));
	value.history[0] = ref;
	if (value.history_count < OV_HISTORY_MAX)
		value.history_count++;
	r = job_cas(job, &value, RELEASE_PATIENCE_MS);
	if (r == 0)
		r = release(job, &action->target);
	if (r < 0 && r != -ESTALE) {
		if (!job->releasing)
			stay(job);
		return r;
	}
	leave(job, r == 0 ? "rolled back by its user" : "another host has it");
	return r;
}

int job_revive(struct job *job)
{
	int r;

	job_phase(job, PHASE_MOVING);
	r = release(job, &job->agent->self);
	if (r == 0 || r == -ESTALE)
		leave(job, "it goes on from its last checkpoint");
	return r;
}
