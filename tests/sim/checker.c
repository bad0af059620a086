/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/checker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/core/state.h"

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
		free(checker->jobs[i].epochs);
	}
}

static void print_set(const struct checker *checker, const char *name,
		      const struct core_acceptors *set)
{
	fprintf(stderr, " %s=", name);
	for (uint32_t i = 0; i < set->count; i++) {
		uint32_t node = simnet_index(checker->net, &set->ids[i]);

		fprintf(stderr, node == SIMNET_NODES_MAX ? "gone," : "%u,", node);
	}
}

/* What every host that is up thinks of the job. */
static void print_job(const struct checker *checker, const struct job_id *id)
{
	for (uint32_t i = 0; i < checker->net->node_count; i++) {
		struct core *core = checker->net->nodes[i].core;
		struct job *job = core ? core_job_find(core, id) : NULL;

		if (!job)
			continue;
		fprintf(stderr, "  host %u: epoch=%u%s%s%s state=%u token=%llu accepted=%llu", i,
			job->epoch, job->has_record ? " record" : "",
			job->installed ? " installed" : "", job->settled ? " settled" : "",
			job->value.state, (unsigned long long)job->value.token.counter,
			(unsigned long long)job->accepted.number.counter);
		print_set(checker, "acceptors", &job->acceptors);
		print_set(checker, "previous", &job->previous);
		print_set(checker, "next", &job->next);
		fprintf(stderr, " hold=%lld lease=%d\n",
			(long long)(job->hold_until_ms - core->now_ms), job->lease.active);
	}
}

void checker_fail(const struct checker *checker, const struct job_id *job, const char *what)
{
	fprintf(stderr, "sim: seed=%llu time=%llu ms job=%02x%02x: %s\n",
		(unsigned long long)checker->net->seed, (unsigned long long)checker->net->now_ms,
		job->b[0], job->b[1], what);
	print_job(checker, job);
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
	/* The newest may be another one of the same number: a daemon that died did not know. */
	if (seq_of(b) == seq_of(a) &&
	    memcmp(&a->history[1], &b->history[1], sizeof(a->history) - sizeof(a->history[0])) != 0)
		return "I4: an older checkpoint changed";
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
	if (after == CHECKER_NONE && checker->chose && job->ballots[at].ballot.number.counter)
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

/* By words: this is done for every disk write. */
static uint64_t hash_of(const void *bytes, size_t size)
{
	uint64_t hash = size, word;

	for (size_t at = 0; at < size; at += sizeof(word)) {
		size_t left = size - at;

		word = 0;
		memcpy(&word, (const uint8_t *)bytes + at,
		       left < sizeof(word) ? left : sizeof(word));
		hash = (hash ^ word) * UINT64_C(0x9fb21c651e98df25);
		hash ^= hash >> 32;
	}
	return hash;
}

static uint32_t ballot_at(struct checker *checker, struct checker_job *job,
			  const struct core_record *record)
{
	uint64_t hash = hash_of(&record->value, sizeof(record->value)) ^
			hash_of(&record->next, sizeof(record->next));
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
	job->ballots[at].next = record->next;
	job->ballots[at].value = malloc(sizeof(record->value));
	if (!job->ballots[at].value)
		abort();
	*job->ballots[at].value = record->value;
	job->count++;
	forget_old(job);
	return at;
}

static uint32_t bit_of(const struct core_acceptors *set, const struct node_id *id)
{
	for (uint32_t i = 0; i < set->count; i++)
		if (node_id_equal(&set->ids[i], id))
			return 1u << i;
	return 0;
}

static struct checker_epoch *epoch_of(struct checker *checker, struct checker_job *job,
				      const struct core_record *record)
{
	struct checker_epoch *epoch;

	while (job->epoch_count <= record->epoch) {
		if (job->epoch_count == job->epoch_room) {
			job->epoch_room = job->epoch_room ? 2 * job->epoch_room : 8;
			job->epochs =
				realloc(job->epochs, job->epoch_room * sizeof(job->epochs[0]));
			if (!job->epochs)
				abort();
		}
		checker->epoch_count += job->epoch_count > 0;
		memset(&job->epochs[job->epoch_count++], 0, sizeof(job->epochs[0]));
	}
	epoch = &job->epochs[record->epoch];
	if (!epoch->acceptors.count)
		epoch->acceptors = record->acceptors;
	if (memcmp(&epoch->acceptors, &record->acceptors, sizeof(epoch->acceptors)) != 0)
		checker_fail(checker, &job->id, "I3: two sets of acceptors in one epoch");
	job->acceptors = job->epochs[job->epoch_count - 1].acceptors;
	return epoch;
}

static void judge_seals(struct checker *checker, struct checker_job *job, uint32_t at)
{
	const struct checker_ballot *here = &job->ballots[at], *other;
	uint32_t before = chosen_beside(job, at, false), after = chosen_beside(job, at, true);

	if (before != CHECKER_NONE) {
		other = &job->ballots[before];
		if (other->next.count && other->ballot.epoch == here->ballot.epoch &&
		    other->hash != here->hash)
			checker_fail(checker, &job->id, "I3: a value followed a seal");
	}
	if (after != CHECKER_NONE && here->next.count) {
		other = &job->ballots[after];
		if (other->ballot.epoch == here->ballot.epoch && other->hash != here->hash)
			checker_fail(checker, &job->id, "I3: a value followed a seal");
	}
}

/* Others will drop all that is kept of the job, by this word and those of a majority. */
static void check_tombstone(struct checker *checker, struct checker_job *job,
			    const struct core_write *write)
{
	const struct core_tombstone *tombstone = &write->tombstone;
	const struct job_value *value = checker_current(checker, &write->job);

	if (write->size || !value || value->state != tombstone->state ||
	    (value->state != JOB_STATE_COLLECTED && value->state != JOB_STATE_KILLED) ||
	    fence_token_compare(&value->token, &tombstone->token) != 0)
		checker_fail(checker, &job->id, "I4: a tombstone of a job that is not over");
	if (!tombstone->acceptor_count)
		checker_fail(checker, &job->id, "a tombstone that names nobody");
	job->tombstones++;
}

/*
 * Who accepts a seal as the last one that was needed, proposed it itself, and is a member of the
 * next set too, is installed in the same step: one write stands for both.
 */
static void credit_seal(struct checker *checker, struct checker_job *job, uint32_t at,
			const struct node_id *writer)
{
	uint64_t epoch = job->ballots[at].ballot.epoch;
	const struct core_acceptors *set = &job->epochs[epoch].acceptors;
	const struct core_acceptors *old = &job->epochs[epoch - 1].acceptors;
	struct checker_ballot *seal;

	while (at-- > 0) {
		seal = &job->ballots[at];
		if (seal->ballot.epoch + 1 == epoch && !memcmp(&seal->next, set, sizeof(*set)))
			break;
	}
	if (at == CHECKER_NONE || seal->chosen)
		return;
	seal->accepted |= bit_of(old, writer);
	if ((uint32_t)__builtin_popcount(seal->accepted) < old->count / 2 + 1)
		return;
	seal->chosen = true;
	judge_seals(checker, job, at);
	judge_chosen(checker, job, at);
}

/* What an epoch begins with is what the one before was sealed with. */
static void judge_base(struct checker *checker, struct checker_job *job, uint32_t at)
{
	const struct checker_ballot *base = &job->ballots[at];
	const struct checker_epoch *epoch = &job->epochs[base->ballot.epoch];
	uint32_t before = chosen_beside(job, at, false);
	const struct checker_ballot *seal = before == CHECKER_NONE ? NULL : &job->ballots[before];

	/* An acceptor that is alone seals and installs in one step: one write for both. */
	if (job->epochs[base->ballot.epoch - 1].acceptors.count == 1)
		return;
	if (!seal || seal->ballot.epoch + 1 != base->ballot.epoch ||
	    memcmp(&seal->next, &epoch->acceptors, sizeof(seal->next)) != 0)
		checker_fail(checker, &job->id, "I3: an epoch began without a chosen seal");
	if (seal->value && memcmp(seal->value, base->value, sizeof(*base->value)) != 0)
		checker_fail(checker, &job->id, "I3: an epoch began with another value");
}

/* Who calls an epoch settled lets others go by it: a majority must have begun it by then. */
static void judge_settled(struct checker *checker, const struct checker_job *job,
			  const struct core_record *record)
{
	uint32_t installed = 0;

	if (!record->epoch || !record->settled)
		return;
	if (record->epoch < job->epoch_count)
		installed = job->epochs[record->epoch].installed;
	if ((uint32_t)__builtin_popcount(installed) < record->acceptors.count / 2 + 1)
		checker_fail(checker, &job->id, "I3: an epoch that no majority began is settled");
}

void checker_wrote(struct checker *checker, uint32_t node, const struct core_write *write)
{
	struct checker_job *job = job_of(checker, &write->job);
	struct checker_epoch *epoch;
	struct checker_ballot *ballot;
	struct core_record record;
	uint32_t at, bit;
	bool base;

	if (write->is_over)
		check_tombstone(checker, job, write);
	if (!write->size)
		return;
	if (core_record_decode(write->bytes, write->size, &record) < 0)
		checker_fail(checker, &job->id, "an unreadable record");
	if (!record.installed) {
		judge_settled(checker, job, &record);
		return;
	}
	epoch = epoch_of(checker, job, &record);
	bit = bit_of(&epoch->acceptors, &checker->net->nodes[node].card.id);
	if (!bit)
		checker_fail(checker, &job->id, "I6: installed, but not a member");
	epoch->installed |= bit;
	judge_settled(checker, job, &record);
	at = ballot_at(checker, job, &record);
	ballot = &job->ballots[at];
	ballot->accepted |= bit;
	base = !ballot->ballot.number.counter;
	if (ballot->chosen || (!base && (uint32_t)__builtin_popcount(ballot->accepted) <
						epoch->acceptors.count / 2 + 1))
		return;
	if (base && !ballot->ballot.epoch)
		checker_fail(checker, &job->id, "I3: an epoch began without a chosen seal");
	if (base) {
		credit_seal(checker, job, at, &checker->net->nodes[node].card.id);
		judge_base(checker, job, at);
	}
	ballot->chosen = true;
	judge_seals(checker, job, at);
	judge_chosen(checker, job, at);
}

/* I6. */
void checker_sent(struct checker *checker, uint32_t node, const struct core_send *send)
{
	static struct core_message m;
	uint8_t type = ((const uint8_t *)send->bytes)[1];
	const struct checker_job *job;
	uint32_t bit;

	if (type != CORE_MSG_PROMISE && type != CORE_MSG_ACCEPTED && type != CORE_MSG_RENEWED)
		return;
	if (core_message_decode(send->bytes, send->size, &m) < 0)
		checker_fail(checker, &m.job, "an unreadable message");
	job = job_of(checker, &m.job);
	bit = m.epoch < job->epoch_count ?
		      bit_of(&job->epochs[m.epoch].acceptors, &checker->net->nodes[node].card.id) :
		      0;
	if (!bit || !(job->epochs[m.epoch].installed & bit))
		checker_fail(checker, &m.job, "I6: an answer for an epoch not installed");
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
	static const struct core_acceptors none;
	uint64_t hash = hash_of(value, sizeof(*value)) ^ hash_of(&none, sizeof(none));

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
		const struct checker_job *job = &checker->jobs[i];
		uint32_t first = job->epoch_count > 2 ? job->epoch_count - 2 : 0;

		if (memcmp(&job->id, id, sizeof(*id)) != 0)
			continue;
		/* Of two, neither may fail, nor who may just be named to replace one. */
		if (job->acceptors.count == 2)
			return false;
		/* The newest epoch may not stand yet. */
		for (uint32_t e = first; e < job->epoch_count; e++) {
			const struct core_acceptors *set = &job->epochs[e].acceptors;
			uint32_t gone = 0;

			for (uint32_t k = 0; k < set->count; k++)
				gone += !(job->epochs[e].installed & 1u << k) ||
					simnet_index(checker->net, &set->ids[k]) ==
						SIMNET_NODES_MAX;
			if (bit_of(set, node) && (set->count < 3 || gone))
				return false;
		}
		/* Named by a seal, and not there yet. */
		for (uint32_t k = job->count;
		     k-- > 0 && job->ballots[k].ballot.epoch + 1 == job->epoch_count;)
			if (bit_of(&job->ballots[k].next, node))
				return false;
	}
	return true;
}
