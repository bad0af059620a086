/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "overlay/core/state.h"

#include <string.h>

static uint32_t slot_of(const struct job_id *id)
{
	uint64_t word;

	memcpy(&word, id->b, sizeof(word));
	return (uint32_t)(core_mix(word) % CORE_INDEX_SLOTS);
}

static void index_add(struct core *core, uint32_t row)
{
	uint32_t slot = slot_of(&core->jobs[row].id);

	while (core->job_index[slot])
		slot = (slot + 1) % CORE_INDEX_SLOTS;
	core->job_index[slot] = (uint16_t)(row + 1);
}

struct job *core_job_find(struct core *core, const struct job_id *id)
{
	for (uint32_t slot = slot_of(id); core->job_index[slot];
	     slot = (slot + 1) % CORE_INDEX_SLOTS) {
		struct job *job = &core->jobs[core->job_index[slot] - 1];

		if (core_job_id_equal(&job->id, id))
			return job;
	}
	return NULL;
}

uint32_t core_job_row(const struct core *core, const struct job *job)
{
	return (uint32_t)(job - core->jobs);
}

/* Only a hint may go: no record, no lease, no operation, no half-made creation. */
static bool job_is_idle_hint(const struct core *core, const struct job *job)
{
	bool recent = core->now_ms < job->touched_ms + CORE_TOMBSTONE_MS;

	return !job->has_record && !job->dirty && !job->lease.active && !job->lost_pending &&
	       !core_proposer_is_busy(core, job) && !(job->attempted && recent);
}

void core_job_forget(struct core *core, struct job *job)
{
	if (job->max_counter > core->counter_floor)
		core->counter_floor = job->max_counter;
	memset(job, 0, sizeof(*job));
	memset(core->job_index, 0, sizeof(core->job_index));
	for (uint32_t i = 0; i < core->job_high; i++)
		if (core->jobs[i].used)
			index_add(core, i);
}

static struct job *job_free_row(struct core *core)
{
	struct job *oldest = NULL;

	for (uint32_t i = 0; i < core->job_high; i++)
		if (!core->jobs[i].used)
			return &core->jobs[i];
	if (core->job_high < OV_JOBS_MAX)
		return &core->jobs[core->job_high++];
	for (uint32_t i = 0; i < OV_JOBS_MAX; i++) {
		struct job *job = &core->jobs[i];

		if (job_is_idle_hint(core, job) &&
		    (!oldest || job->touched_ms < oldest->touched_ms))
			oldest = job;
	}
	if (oldest)
		core_job_forget(core, oldest);
	return oldest;
}

struct job *core_job_get(struct core *core, const struct job_id *id)
{
	struct job *job = core_job_find(core, id);

	if (!job) {
		job = job_free_row(core);
		if (!job)
			return NULL;
		memset(job, 0, sizeof(*job));
		job->used = true;
		job->id = *id;
		job->max_counter = core->counter_floor;
		index_add(core, core_job_row(core, job));
	}
	job->touched_ms = core->now_ms;
	return job;
}

bool core_job_mark_dirty(struct core *core, struct job *job)
{
	if (job->dirty)
		return true;
	if (core->scratch->dirty_count == CORE_WRITES_MAX)
		return false;
	core->scratch->dirty[core->scratch->dirty_count++] = core_job_row(core, job);
	job->dirty = true;
	return true;
}

void core_job_saw(struct job *job, const struct core_ballot *ballot)
{
	if (ballot->number.counter > job->max_counter)
		job->max_counter = ballot->number.counter;
}

uint32_t core_acceptors_quorum(const struct core_acceptors *set)
{
	return set->count / 2 + 1;
}

uint32_t core_acceptors_rank(const struct core_acceptors *set, const struct node_id *id)
{
	for (uint32_t i = 0; i < set->count; i++)
		if (node_id_equal(&set->ids[i], id))
			return i;
	return CORE_NONE;
}

uint32_t core_job_quorum(const struct job *job)
{
	return core_acceptors_quorum(&job->acceptors);
}

uint32_t core_job_rank(const struct job *job, const struct node_id *id)
{
	return core_acceptors_rank(&job->acceptors, id);
}

bool core_job_move(struct core *core, struct job *job, uint32_t epoch,
		   const struct core_acceptors *set)
{
	bool known = job->acceptors.count > 0;

	if (!set->count || (known && epoch < job->epoch))
		return false;
	if (known && epoch == job->epoch) {
		if (job->installed && !job->settled && core_job_mark_dirty(core, job)) {
			job->settled = true;
			core_proposer_moved(core, job);
			core_lease_moved(core, job);
			core_arm(core, core->now_ms);
		}
		return memcmp(&job->acceptors, set, sizeof(*set)) == 0;
	}
	/* An acceptor of an earlier epoch has nothing to say any more but where the job went. */
	if (job->has_record && !core_job_mark_dirty(core, job))
		return false;
	job->failures = 0;
	job->ask_ms = job->locate_ms = job->locate_wait_ms = 0;
	job->epoch = epoch;
	job->acceptors = *set;
	job->installed = false;
	job->settled = true;
	memset(&job->previous, 0, sizeof(job->previous));
	memset(&job->next, 0, sizeof(job->next));
	job->changed_ms = core->now_ms;
	job->confirm_ms = job->unknown_since_ms = 0;
	job->join_ms = 0;
	if (job->has_record && core_job_rank(job, core_self(core)) != CORE_NONE)
		job->join_ms = core->now_ms + CORE_JOIN_MS;
	core_arm(core, core->now_ms);
	if (known) {
		core_proposer_moved(core, job);
		core_lease_moved(core, job);
	}
	return true;
}

/* A chosen value: a fact, whatever this node thought before. */
void core_job_learn(struct core *core, struct job *job, const struct core_ballot *ballot,
		    const struct job_value *value)
{
	core_job_saw(job, ballot);
	job->touched_ms = core->now_ms;
#ifndef MUTANT_OVER
	job->over |= value->state == JOB_STATE_COLLECTED || value->state == JOB_STATE_KILLED;
#endif
	if (!job->known || core_ballot_compare(ballot, &job->known_ballot) > 0) {
		job->failures = 0;
		job->ask_ms = job->locate_ms = job->locate_wait_ms = 0;
		job->known = true;
		job->known_ballot = *ballot;
		job->known_value = *value;
		core_lease_check(core, job, value);
	}
	/*
	 * Rule A1 need not be asked: the quorum that chose it has waited. Nor does a higher promise
	 * stand against it: one vote more changes nothing about a ballot that is chosen already.
	 */
	if (job->has_record && job->installed && ballot->epoch == job->epoch &&
	    core_ballot_compare(ballot, &job->accepted) > 0)
		core_acceptor_set_value(core, job, ballot, value, NULL);
}

struct core_message *core_job_message(struct core *core, const struct job *job,
				      enum core_message_type type)
{
	struct core_message *m = core_outbox_begin(core, type);

	m->job = job->id;
	m->epoch = job->epoch;
	m->acceptors = job->acceptors;
	return m;
}

/* Asks the live members who keeps the job; in a large cluster, some more each time. */
void core_job_locate(struct core *core, struct job *job)
{
	struct core_message *m = core_outbox_begin(core, CORE_MSG_WHOHAS);
	uint32_t start = job->locate_row, told = 0, i;

	m->job = job->id;
	core_outbox_seal(core);
	for (i = 0; i < core->member_count && told < CORE_BROADCAST_MAX; i++) {
		struct member *member = &core->members[(start + i) % core->member_count];

		if (member->info.is_self || member->info.state > MEMBER_SUSPECT)
			continue;
		core_outbox_to(core, &member->info.id);
		told++;
	}
	job->locate_row = (start + i) % core->member_count;
}

void core_job_relocate(struct core *core, struct job *job)
{
	if (core->now_ms < job->locate_ms)
		return;
	job->locate_wait_ms *= 2;
	if (job->locate_wait_ms < CORE_RELOCATE_MS)
		job->locate_wait_ms = CORE_RELOCATE_MS;
	if (job->locate_wait_ms > CORE_RELOCATE_MAX_MS)
		job->locate_wait_ms = CORE_RELOCATE_MAX_MS;
	job->locate_ms = core->now_ms + job->locate_wait_ms;
	core_job_locate(core, job);
}

bool core_job_value_ended(const struct job_value *value)
{
	return value->state == JOB_STATE_DONE || value->state == JOB_STATE_COLLECTED ||
	       value->state == JOB_STATE_KILLED;
}

const struct job_value *core_register(const struct core *core, uint32_t index)
{
	for (uint32_t i = 0; i < core->job_high; i++) {
		const struct job *job = &core->jobs[i];

		/* A signpost's copy is as old as its time as an acceptor. */
		if (!job->used || (job->has_record && !job->installed) ||
		    (!job->has_record && !job->known) || index-- > 0)
			continue;
		if (job->known && (!job->has_record ||
				   core_ballot_compare(&job->known_ballot, &job->accepted) > 0))
			return &job->known_value;
		return &job->value;
	}
	return NULL;
}
