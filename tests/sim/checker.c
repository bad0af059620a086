/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/checker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/ipc.h"

enum { KEPT = 200 }; /* values of a job that are kept whole */

void checker_init(struct checker *checker, const struct simnet *net)
{
	memset(checker, 0, sizeof(*checker));
	checker->net = net;
}

void checker_deinit(struct checker *checker)
{
	for (uint32_t i = 0; i < checker->job_count; i++) {
		for (uint32_t k = 0; k < checker->jobs[i].count; k++)
			free(checker->jobs[i].ballots[k].value);
		free(checker->jobs[i].ballots);
	}
}

void checker_fail(const struct checker *checker, const struct job_id *job, const char *what)
{
	fprintf(stderr, "sim: seed=%llu time=%llu ms job=%02x%02x: %s\n",
		(unsigned long long)checker->net->seed, (unsigned long long)checker->net->now_ms,
		job->b[0], job->b[1], what);
	abort();
}

static struct checker_job *job_of(struct checker *checker, const struct job_id *id)
{
	for (uint32_t i = 0; i < checker->job_count; i++)
		if (!memcmp(&checker->jobs[i].id, id, sizeof(*id)))
			return &checker->jobs[i];
	if (checker->job_count == CHECKER_JOBS_MAX)
		checker_fail(checker, id, "too many jobs for the checker");
	checker->jobs[checker->job_count].id = *id;
	return &checker->jobs[checker->job_count++];
}

static uint64_t seq_of(const struct job_value *value)
{
	return value->history_count ? value->history[0].seq : 0;
}

static const char *judge_same_token(const struct job_value *a, const struct job_value *b)
{
	if (seq_of(b) < seq_of(a))
		return "I4: a checkpoint number fell";
	if (seq_of(b) == seq_of(a) && memcmp(a->history, b->history, sizeof(a->history)) != 0)
		return "I4: a checkpoint changed";
	switch (a->state) {
	case JOB_STATE_HELD:
		return b->state == JOB_STATE_COLLECTED ? "I4: collected before done" : NULL;
	case JOB_STATE_IDLE:
		return b->state == JOB_STATE_IDLE || b->state == JOB_STATE_KILLED ?
			       NULL :
			       "I4: a released job moved under its old token";
	case JOB_STATE_DONE:
		return b->state == JOB_STATE_DONE || b->state == JOB_STATE_COLLECTED ?
			       NULL :
			       "I4: DONE was not final";
	default:
		return a->state == b->state ? NULL : "I4: an end was not final";
	}
}

/* What a chosen value may be followed by. */
static const char *judge_pair(const struct checker_ballot *before,
			      const struct checker_ballot *after)
{
	const struct job_value *a = before->value, *b = after->value;
	int order;

	if (!a || !b)
		return NULL;
	order = fence_token_compare(&b->token, &a->token);
	if (order < 0)
		return "I4: the token went back";
	if (order == 0)
		return judge_same_token(a, b);
	if (a->state != JOB_STATE_HELD && a->state != JOB_STATE_IDLE)
		return "I4: a job came back to life";
	if (memcmp(a->history, b->history, sizeof(a->history)) != 0)
		return "a takeover lost a committed checkpoint";
	if (fence_token_compare(&b->token, &after->ballot.number) > 0)
		return "I4: a token from the future";
	return NULL;
}

/* The nearest chosen ballot below or above that one. */
static uint32_t chosen_beside(const struct checker_job *job, uint32_t at, bool above)
{
	if (above) {
		while (++at < job->count)
			if (job->ballots[at].chosen)
				return at;
		return CHECKER_NONE;
	}
	while (at-- > 0)
		if (job->ballots[at].chosen)
			return at;
	return CHECKER_NONE;
}

static void judge_chosen(struct checker *checker, const struct checker_job *job, uint32_t at)
{
	uint32_t before = chosen_beside(job, at, false), after = chosen_beside(job, at, true);
	const char *wrong = NULL;

	if (before != CHECKER_NONE)
		wrong = judge_pair(&job->ballots[before], &job->ballots[at]);
	if (after != CHECKER_NONE && !wrong)
		wrong = judge_pair(&job->ballots[at], &job->ballots[after]);
	if (wrong)
		checker_fail(checker, &job->id, wrong);
	checker->chosen_count++;
	if (after == CHECKER_NONE && checker->chose)
		checker->chose(checker->ctx,
			       before == CHECKER_NONE ? NULL : job->ballots[before].value,
			       job->ballots[at].value);
}

/* What lies far below a chosen value is judged by its hash alone. */
static void forget_old(struct checker_job *job)
{
	struct checker_ballot *old;

	if (job->count <= KEPT)
		return;
	old = &job->ballots[job->count - KEPT - 1];
	for (uint32_t i = job->count - KEPT; i < job->count; i++)
		if (job->ballots[i].chosen) {
			free(old->value);
			old->value = NULL;
			return;
		}
}

static uint32_t ballot_at(struct checker *checker, struct checker_job *job,
			  const struct core_record *record)
{
	uint64_t hash = core_checksum(&record->value, sizeof(record->value));
	uint32_t at = job->count;

	while (at > 0 && core_ballot_compare(&job->ballots[at - 1].ballot, &record->accepted) >= 0)
		at--;
	if (at < job->count &&
	    core_ballot_compare(&job->ballots[at].ballot, &record->accepted) == 0) {
		if (job->ballots[at].hash != hash)
			checker_fail(checker, &job->id, "I2: two values under one ballot");
		return at;
	}
	if (job->count == job->room) {
		job->room = job->room ? 2 * job->room : 32;
		job->ballots = realloc(job->ballots, job->room * sizeof(job->ballots[0]));
		if (!job->ballots)
			abort();
	}
	memmove(&job->ballots[at + 1], &job->ballots[at],
		(job->count - at) * sizeof(job->ballots[0]));
	memset(&job->ballots[at], 0, sizeof(job->ballots[0]));
	job->ballots[at].ballot = record->accepted;
	job->ballots[at].hash = hash;
	job->ballots[at].value = malloc(sizeof(record->value));
	if (!job->ballots[at].value)
		abort();
	*job->ballots[at].value = record->value;
	job->count++;
	forget_old(job);
	return at;
}

void checker_wrote(struct checker *checker, uint32_t node, const struct core_write *write)
{
	struct checker_job *job = job_of(checker, &write->job);
	struct checker_ballot *ballot;
	struct core_record record;
	uint32_t at, votes;

	if (!write->size)
		return;
	if (core_record_decode(write->bytes, write->size, &record) < 0)
		checker_fail(checker, &job->id, "an unreadable record");
	if (!job->acceptors.count)
		job->acceptors = record.acceptors;
	if (memcmp(&job->acceptors, &record.acceptors, sizeof(job->acceptors)) != 0)
		checker_fail(checker, &job->id, "acceptors changed");
	at = ballot_at(checker, job, &record);
	ballot = &job->ballots[at];
	for (uint32_t i = 0; i < record.acceptors.count; i++)
		if (node_id_equal(&record.acceptors.ids[i], &checker->net->nodes[node].card.id))
			ballot->accepted |= 1u << i;
	votes = (uint32_t)__builtin_popcount(ballot->accepted);
	if (ballot->chosen || votes < record.acceptors.count / 2 + 1)
		return;
	ballot->chosen = true;
	judge_chosen(checker, job, at);
}

const struct job_value *checker_current(const struct checker *checker, const struct job_id *id)
{
	for (uint32_t i = 0; i < checker->job_count; i++) {
		const struct checker_job *job = &checker->jobs[i];

		if (memcmp(&job->id, id, sizeof(*id)) != 0)
			continue;
		for (uint32_t k = job->count; k-- > 0;)
			if (job->ballots[k].chosen)
				return job->ballots[k].value;
	}
	return NULL;
}

void checker_committed(const struct checker *checker, const struct job_value *value)
{
	uint64_t hash = core_checksum(value, sizeof(*value));

	for (uint32_t i = 0; i < checker->job_count; i++) {
		const struct checker_job *job = &checker->jobs[i];

		if (memcmp(&job->id, &value->job, sizeof(job->id)) != 0)
			continue;
		for (uint32_t k = job->count; k-- > 0;)
			if (job->ballots[k].chosen && job->ballots[k].hash == hash)
				return;
	}
	checker_fail(checker, &value->job, "a success was reported for a value that is not chosen");
}

bool checker_can_spare(const struct checker *checker, const struct job_id *id,
		       const struct node_id *node)
{
	for (uint32_t i = 0; i < checker->job_count; i++) {
		const struct core_acceptors *set = &checker->jobs[i].acceptors;
		uint32_t gone = 0, member = 0;

		if (memcmp(&checker->jobs[i].id, id, sizeof(*id)) != 0)
			continue;
		for (uint32_t k = 0; k < set->count; k++) {
			member += node_id_equal(&set->ids[k], node);
			gone += simnet_index(checker->net, &set->ids[k]) == SIMNET_NODES_MAX;
		}
		return !member || (set->count > 2 && !gone);
	}
	return true;
}
