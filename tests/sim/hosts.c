/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/hosts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/core/state.h"

enum { AGENT_MS = 50 }; /* an agent takes up to so long to react */

enum request_kind {
	KIND_CREATE = 1,
	KIND_HOLD,
	KIND_CAS,
	KIND_COLLECT,
	KIND_GET,
	KIND_TAKE,
	KIND_KILL,
	KIND_CLAIM,
};

static uint64_t request_id(enum request_kind kind, uint32_t job, uint32_t life)
{
	return (uint64_t)life << 32 | (uint64_t)job << 8 | kind;
}

static void ask(struct hosts *hosts, uint32_t node, enum core_request request,
		enum request_kind kind, uint32_t job, const struct job_value *value)
{
	simnet_request(hosts->net, node, request, value,
		       request_id(kind, job, hosts->net->nodes[node].life));
}

struct host_job *hosts_at(struct hosts *hosts, uint32_t node, uint32_t job)
{
	struct host_job **slot = &hosts->at[job][node];

	if (!*slot)
		*slot = calloc(1, sizeof(**slot));
	if (!*slot)
		abort();
	return *slot;
}

bool hosts_is_running(const struct hosts *hosts, uint32_t node, uint32_t job)
{
	const struct host_job *hj = hosts->at[job][node];

#ifdef MUTANT_O3
	return hj && hj->phase == HOST_RUNNING;
#endif
#ifdef MUTANT_O2
	if (hj && (hj->phase == HOST_WANTED || hj->phase == HOST_WAITING))
		return simnet_boot_ns(hosts->net, node) < hj->run_until_boot_ns;
#endif
	return hj && hj->phase == HOST_RUNNING &&
	       simnet_boot_ns(hosts->net, node) < hj->run_until_boot_ns;
}

uint32_t hosts_running(const struct hosts *hosts, uint32_t job)
{
	for (uint32_t i = 0; i < hosts->net->node_count; i++)
		if (hosts_is_running(hosts, i, job))
			return i;
	return SIMNET_NODES_MAX;
}

/* I1. Called whenever a run begins or grows. */
static void check_one_owner(const struct hosts *hosts, uint32_t job)
{
	uint32_t count = 0;

	if (!hosts->jobs[job].strict)
		return;
	for (uint32_t i = 0; i < hosts->net->node_count; i++)
		count += hosts_is_running(hosts, i, job);
	if (count > 1)
		checker_fail(&hosts->checker, &hosts->jobs[job].id, "I1: two hosts run it at once");
}

/* Will this acceptor let nobody else have the job before that time? */
static bool holds_until(const struct hosts *hosts, const struct node_id *id,
			const struct host_job *hj, uint64_t left_ms)
{
	uint32_t node = simnet_index(hosts->net, id);
	struct core *core = node < SIMNET_NODES_MAX ? hosts->net->nodes[node].core : NULL;
	struct job *job = core ? core_job_find(core, &hj->value.job) : NULL;

	/* One that is down says nothing, and starts with a whole hold (A4). */
	if (!core)
		return true;
	if (!job || !job->has_record)
		return false;
	if (job->value.state != JOB_STATE_HELD)
		return true; /* nobody takes an ended job over; a released one does not run */
	return fence_token_compare(&job->value.token, &hj->token) == 0 &&
	       job->hold_until_ms > simnet_local_ms(hosts->net, node) + left_ms;
}

/* I5: for as long as it runs, a majority of those who renewed its lease hold the job for it. */
static void check_holds(const struct hosts *hosts, uint32_t node, uint32_t job)
{
	const struct core *core = hosts->net->nodes[node].core;
	const struct host_job *hj = hosts->at[job][node];
	const struct job *row = core_job_find((struct core *)(uintptr_t)core, &hj->value.job);
	uint64_t boot_ns = simnet_boot_ns(hosts->net, node);
	uint64_t left_ms =
		hj->run_until_boot_ns > boot_ns ? (hj->run_until_boot_ns - boot_ns) / 1000000 : 0;
	const struct core_acceptors *set;
	uint32_t holding = 0;

	/* By another clock, the time that is left may be longer by its rate and ours. */
	left_ms += left_ms / 500;
	if (!row || !hosts->jobs[job].strict || !hosts_is_running(hosts, node, job) || !left_ms)
		return;
	/* An epoch that may not stand yet has renewed nothing. */
	set = row->installed && !row->settled ? &row->previous : &row->acceptors;
	for (uint32_t i = 0; i < set->count; i++)
		holding += holds_until(hosts, &set->ids[i], hj, left_ms);
	if (holding < set->count / 2 + 1)
		checker_fail(&hosts->checker, &hosts->jobs[job].id,
			     "I5: it runs, but no majority holds it");
}

uint32_t hosts_job_index(const struct hosts *hosts, const struct job_id *id)
{
	for (uint32_t i = 0; i < hosts->job_count; i++)
		if (!memcmp(&hosts->jobs[i].id, id, sizeof(*id)))
			return i;
	checker_fail(&hosts->checker, id, "a job that nobody submitted");
}

static void stop(struct hosts *hosts, struct host_job *hj)
{
	hosts->losses++;
	hj->phase = HOST_NONE;
	hj->busy = hj->storing = false;
}

static uint64_t net_now(const struct hosts *hosts)
{
	return hosts->net->now_ms;
}

static void wake_soon(struct hosts *hosts, uint32_t node, uint32_t job)
{
	hosts_wake(hosts, node, job, net_now(hosts) + 1 + simnet_below(hosts->net, AGENT_MS));
}

static void on_notice(void *ctx, uint32_t node, const struct core_notice *notice)
{
	struct hosts *hosts = ctx;
	const struct job_value *value = &notice->value;
	struct host_job *hj;
	uint32_t job;

	if (notice->type == CORE_MEMBER)
		return;
	job = hosts_job_index(hosts, &value->job);
	hj = hosts_at(hosts, node, job);
	switch (notice->type) {
	case CORE_GRANT:
		if (hj->phase == HOST_CLAIMING ||
		    (hj->phase != HOST_NONE && fence_token_compare(&hj->token, &value->token) >= 0))
			return;
		hosts->grants++;
#ifdef MUTANT_CLAIM
		hj->phase = HOST_WANTED;
#else
		hj->phase = HOST_GRANTED;
#endif
		hj->busy = hj->storing = false;
		hj->token = value->token;
		hj->value = *value;
		break;
	case CORE_LEASE:
		if (fence_token_compare(&hj->token, &value->token) != 0)
			return;
		hj->run_until_boot_ns = notice->run_until_boot_ns;
		if (hj->phase == HOST_WAITING)
			hj->phase = HOST_RUNNING;
		check_one_owner(hosts, job);
		check_holds(hosts, node, job);
		if (hj->wake_ms > net_now(hosts))
			return;
		break;
	case CORE_LOST:
		if (hj->phase != HOST_CLAIMING &&
		    fence_token_compare(&hj->token, &value->token) == 0)
			stop(hosts, hj);
		break;
	case CORE_DONE:
		hj->collect = true;
		hj->results = *value;
		break;
	default:
		break;
	}
	wake_soon(hosts, node, job);
}

static void cas_answered(struct hosts *hosts, uint32_t node, uint32_t job,
			 const struct core_answer *answer)
{
	struct host_job *hj = hosts_at(hosts, node, job);

	hj->busy = false;
	hj->next_ms = hosts->net->now_ms + 20 + simnet_below(hosts->net, 2 * hosts->checkpoint_ms);
	switch (answer->status) {
	case 0:
		checker_committed(&hosts->checker, &answer->value);
		hosts->commits++;
		objects_retain(hosts, node, job, &answer->value);
		hj->value = answer->value;
		memset(&hj->wish, 0, sizeof(hj->wish));
		if (hj->phase == HOST_LEAVING)
			hj->phase = HOST_NONE;
		break;
	case -EAGAIN:
	case -ENOENT: /* nobody in reach knows it: no proof that nobody does */
		hj->next_ms = hosts->net->now_ms + 200;
		break;
	case -ESTALE:
		stop(hosts, hj);
		break;
	default:
		fprintf(stderr, "sim: status %d on host %u\n", answer->status, node);
		checker_fail(&hosts->checker, &hosts->jobs[job].id, "an unexpected CAS status");
	}
}

static void claim_answered(struct host_job *hj, const struct core_answer *answer)
{
	if (hj->phase != HOST_CLAIMING)
		return;
	hj->phase = HOST_NONE;
	hj->next_ms = 0; /* of the run before */
	if (answer->status == -EAGAIN) {
		hj->phase = HOST_GRANTED;
	} else if (answer->status == 0) {
		hj->phase = HOST_WANTED;
		hj->token = answer->value.token;
		hj->value = answer->value;
	}
}

#ifdef MUTANT_O2
/* For a whole lease, as if the claim were a renewal. */
static void run_unrenewed(struct hosts *hosts, uint32_t node, uint32_t job)
{
	struct host_job *hj = hosts_at(hosts, node, job);

	if (hj->phase != HOST_WANTED)
		return;
	hj->run_until_boot_ns = simnet_boot_ns(hosts->net, node) + UINT64_C(20000000000);
	check_one_owner(hosts, job);
	check_holds(hosts, node, job);
}
#endif

static void on_answer(void *ctx, uint32_t node, const struct core_answer *answer)
{
	struct hosts *hosts = ctx;
	uint32_t job = (uint32_t)(answer->request_id >> 8 & 0xffffff);
	struct host_job *hj = hosts_at(hosts, node, job);

	if (answer->request_id >> 32 != hosts->net->nodes[node].life)
		return;
	switch ((enum request_kind)(answer->request_id & 0xff)) {
	case KIND_CREATE:
		hosts->jobs[job].create_status = answer->status;
		if (answer->status == 0) {
			hosts->jobs[job].created = true;
			hj->phase = HOST_WANTED;
			hj->token = answer->value.token;
			hj->value = answer->value;
		}
		break;
	case KIND_HOLD:
		hj->rehold = answer->status == -EAGAIN;
		if (answer->status == -ESTALE && hj->phase != HOST_LEAVING)
			stop(hosts, hj);
		break;
	case KIND_CAS:
		if (hj->busy)
			cas_answered(hosts, node, job, answer);
		break;
	case KIND_CLAIM:
		claim_answered(hj, answer);
#ifdef MUTANT_O2
		run_unrenewed(hosts, node, job);
#endif
		break;
	case KIND_COLLECT:
		hj->collect = answer->status == -EAGAIN || answer->status == -ENOENT;
		break;
	case KIND_GET:
		hosts->jobs[job].got_status = answer->status;
		hosts->jobs[job].got = answer->value;
		hosts->jobs[job].got_count++;
		objects_pull(hosts, node, job, answer->status, &answer->value);
		break;
	case KIND_KILL:
		hosts->jobs[job].kill_status = answer->status;
		break;
	case KIND_TAKE:
		hosts->jobs[job].take_status = answer->status;
		hosts->jobs[job].take_count++;
		break;
	default:
		break;
	}
	if (hj->phase != HOST_NONE || hj->collect)
		hosts_wake(hosts, node, job,
			   hj->next_ms > net_now(hosts) ? hj->next_ms : net_now(hosts) + AGENT_MS);
}

/* The register has a new value. */
static void on_chose(void *ctx, const struct job_value *before, const struct job_value *after)
{
	struct hosts *hosts = ctx;
	bool same = before && !memcmp(&before->history[0].manifest, &after->history[0].manifest,
				      sizeof(after->history[0].manifest));

	if (!same)
		objects_check_commit(hosts, after);
	else
		objects_check_restorable(hosts, after);
}

static bool on_sent(void *ctx, uint32_t node, const struct core_send *send)
{
	struct hosts *hosts = ctx;

	checker_sent(&hosts->checker, node, send);
	return !hosts->watch || hosts->watch(hosts, node, send);
}

static void on_wrote(void *ctx, uint32_t node, const struct core_write *write)
{
	struct hosts *hosts = ctx;

	checker_wrote(&hosts->checker, node, write);
}

static void add_checkpoint(struct job_value *value)
{
	struct ckpt_ref *ckpt = &value->history[0];
	uint64_t seq = value->history_count ? ckpt->seq + 1 : 1;

	memmove(&value->history[1], &value->history[0],
		(OV_HISTORY_MAX - 1) * sizeof(value->history[0]));
	memset(ckpt, 0, sizeof(*ckpt));
	ckpt->seq = seq;
	ckpt->manifest_size = 1000;
	memcpy(ckpt->manifest.b, &value->token.counter, 8);
	memcpy(ckpt->manifest.b + 8, &seq, 8);
	if (value->history_count < OV_HISTORY_MAX)
		value->history_count++;
}

static void leave(struct host_job *hj, enum job_state state)
{
	hj->phase = HOST_LEAVING; /* frozen before a word is said */
	hj->wish = hj->value;
	hj->wish.state = state;
	if (state == JOB_STATE_IDLE)
		memset(&hj->wish.owner, 0, sizeof(hj->wish.owner));
	hj->busy = hj->storing = false;
}

void hosts_release(struct hosts *hosts, uint32_t node, uint32_t job, uint32_t target)
{
	struct host_job *hj = hosts_at(hosts, node, job);

	leave(hj, JOB_STATE_IDLE);
	if (target < SIMNET_NODES_MAX)
		hj->wish.target = hosts->net->nodes[target].card.id;
	hj->next_ms = 0;
	wake_soon(hosts, node, job);
}

void hosts_end(struct hosts *hosts, uint32_t node, uint32_t job)
{
	leave(hosts_at(hosts, node, job), JOB_STATE_DONE);
	hosts_at(hosts, node, job)->next_ms = 0;
	wake_soon(hosts, node, job);
}

static void decide(struct hosts *hosts, uint32_t node, uint32_t job)
{
	struct simnet *net = hosts->net;
	struct host_job *hj = hosts_at(hosts, node, job);
	uint32_t draw = simnet_below(net, 1000000), target = SIMNET_NODES_MAX;

	if (hj->wish.state) /* an unknown outcome: the same again */
		return;
	if (draw < hosts->done_ppm) {
		hosts_end(hosts, node, job);
	} else if (draw < hosts->done_ppm + hosts->release_ppm) {
		if (hosts->aim)
			target = simnet_below(net, net->node_count);
		hosts_release(hosts, node, job, target);
	} else {
		hj->wish = hj->value;
		add_checkpoint(&hj->wish);
		/* The same number under the same token is not the same checkpoint twice. */
		hj->wish.history[0].manifest.b[16] = (uint8_t)hj->put;
		objects_put(hosts, node, job);
	}
}

/* Whether the wish may go into the register: what it names must be stored first. */
static bool is_stored(struct hosts *hosts, uint32_t node, uint32_t job)
{
	struct host_job *hj = hosts_at(hosts, node, job);
	struct ckpt_ref *ckpt = &hj->wish.history[0];

	if (!hj->storing)
		return true;
	if (objects_enough(hosts, hj)) {
		hj->storing = false;
		ckpt->holder_count = hj->acks;
		memcpy(ckpt->holders, hj->holders, hj->acks * sizeof(hj->holders[0]));
		return true;
	}
	if (net_now(hosts) >= hj->give_up_ms) {
		hosts->failed_puts++;
		hj->storing = false;
		memset(&hj->wish, 0, sizeof(hj->wish));
		hj->next_ms = net_now(hosts) + 1000 + simnet_below(hosts->net, 1000);
		hosts_wake(hosts, node, job, hj->next_ms);
	}
	return false;
}

static void ask_for_lease(struct hosts *hosts, uint32_t node, uint32_t job)
{
	struct host_job *hj = hosts_at(hosts, node, job);

	if (hj->phase == HOST_WANTED) {
		hj->phase = HOST_WAITING;
#ifndef MUTANT_O2
		hj->run_until_boot_ns = 0;
#endif
		memset(&hj->wish, 0, sizeof(hj->wish));
	}
	hj->rehold = false;
	hj->value.token = hj->token;
	ask(hosts, node, CORE_REQ_HOLD, KIND_HOLD, job, &hj->value);
}

static void claim(struct hosts *hosts, uint32_t node, uint32_t job)
{
	struct host_job *hj = hosts_at(hosts, node, job);
	struct job_value value = {
		.job = hosts->jobs[job].id,
		.token = hj->token,
		.target = hosts->net->nodes[node].card.id,
	};

	hj->phase = HOST_CLAIMING;
	ask(hosts, node, CORE_REQ_TAKE, KIND_CLAIM, job, &value);
}

static void poll_job(struct hosts *hosts, uint32_t node, uint32_t job)
{
	struct host_job *hj = hosts_at(hosts, node, job);
	struct job_value done;

	if (hj->collect) {
		done = hj->results;
		done.state = JOB_STATE_COLLECTED;
		hj->collect = false;
		ask(hosts, node, CORE_REQ_CAS, KIND_COLLECT, job, &done);
	}
	if (simnet_is_up(hosts->net, node) && hj->phase == HOST_GRANTED)
		claim(hosts, node, job);
	if (simnet_is_up(hosts->net, node) &&
	    (hj->phase == HOST_WANTED || (hj->phase == HOST_RUNNING && hj->rehold)))
		ask_for_lease(hosts, node, job);
	if (!simnet_is_up(hosts->net, node) || hj->busy)
		return;
	if (net_now(hosts) < hj->next_ms) {
		hosts_wake(hosts, node, job, hj->next_ms);
		return;
	}
	if (hosts_is_running(hosts, node, job))
		decide(hosts, node, job);
	if ((hosts_is_running(hosts, node, job) || hj->phase == HOST_LEAVING) && hj->wish.state &&
	    is_stored(hosts, node, job)) {
		hj->busy = true;
		ask(hosts, node, CORE_REQ_CAS, KIND_CAS, job, &hj->wish);
	}
}

static void on_wake(void *ctx, uint64_t packed)
{
	uint32_t node = (uint32_t)(packed >> 8), job = packed & 255;
	struct hosts *hosts = ctx;
	struct host_job *hj = hosts->at[job][node];
	uint64_t paused_until_ms = hosts->net->nodes[node].paused_until_ms;

	if (!hj || hj->wake_ms != net_now(hosts) || !hosts->net->nodes[node].core)
		return;
	hj->wake_ms = 0;
	if (paused_until_ms > net_now(hosts))
		hosts_wake(hosts, node, job, paused_until_ms + 1);
	else
		poll_job(hosts, node, job);
}

void hosts_wake(struct hosts *hosts, uint32_t node, uint32_t job, uint64_t when_ms)
{
	struct host_job *hj = hosts_at(hosts, node, job);

	if (hj->wake_ms > net_now(hosts) && hj->wake_ms <= when_ms)
		return;
	hj->wake_ms = when_ms;
	simnet_at(hosts->net, when_ms, on_wake, hosts, (uint64_t)node << 8 | job);
}

static void on_started(void *ctx, uint32_t node)
{
	struct hosts *hosts = ctx;

	for (uint32_t job = 0; job < hosts->job_count; job++)
		if (hosts->at[job][node] && hosts->at[job][node]->phase != HOST_NONE)
			wake_soon(hosts, node, job);
}

static void after_daemon_died(struct hosts *hosts, uint32_t node, bool reboot)
{
	for (uint32_t job = 0; job < hosts->job_count; job++) {
		struct host_job *hj = hosts->at[job][node];
		uint32_t put;

		if (!hj)
			continue;
		if (reboot) {
			put = hj->put;
			memset(hj, 0, sizeof(*hj));
			hj->put = put;
			continue;
		}
		hj->busy = hj->collect = false;
		if (hj->storing)
			memset(&hj->wish, 0, sizeof(hj->wish));
		hj->storing = false;
		/* Nothing of it runs yet: there is nothing to go on with. */
		if (hj->phase != HOST_RUNNING && hj->phase != HOST_LEAVING)
			hj->phase = HOST_NONE;
		hj->rehold = hj->phase == HOST_RUNNING;
	}
}

void hosts_crash(struct hosts *hosts, uint32_t node, bool reboot)
{
	simnet_crash(hosts->net, node);
	after_daemon_died(hosts, node, reboot);
}

void hosts_rollback(struct hosts *hosts, uint32_t node, bool wipe)
{
	after_daemon_died(hosts, node, true);
	hosts->stores[node].count = 0;
	simnet_rollback(hosts->net, node, wipe);
}

static void on_crashed(void *ctx, uint32_t node)
{
	struct hosts *hosts = ctx;

	after_daemon_died(hosts, node, simnet_chance(hosts->net, 500000));
}

uint32_t hosts_submit(struct hosts *hosts, uint32_t node, bool strict)
{
	struct job_value value = {
		.owner = hosts->net->nodes[node].card.id,
		.home = hosts->net->nodes[node].card.id,
		.state = JOB_STATE_HELD,
		.fence = strict ? FENCE_STRICT : FENCE_COMMIT,
		.mem_bytes = 1 << 20,
		.sealed_size = 16,
	};
	uint32_t index = hosts->job_count;

	if (index == HOSTS_JOBS_MAX)
		abort();
	for (uint32_t k = 0; k < sizeof(value.job.b); k++)
		value.job.b[k] = (uint8_t)simnet_random(hosts->net);
	hosts->jobs[index].id = value.job;
	hosts->jobs[index].home = node;
	hosts->jobs[index].strict = strict;
	hosts->jobs[index].create_status = 1;
	hosts->job_count++;
	ask(hosts, node, CORE_REQ_CREATE, KIND_CREATE, index, &value);
	return index;
}

void hosts_get(struct hosts *hosts, uint32_t node, uint32_t job)
{
	struct job_value value = { .job = hosts->jobs[job].id };

	ask(hosts, node, CORE_REQ_GET, KIND_GET, job, &value);
}

void hosts_take(struct hosts *hosts, uint32_t node, uint32_t job, uint32_t target)
{
	struct job_value value = {
		.job = hosts->jobs[job].id,
		.target = hosts->net->nodes[target].card.id,
	};

	ask(hosts, node, CORE_REQ_TAKE, KIND_TAKE, job, &value);
}

/* Kills what the last hosts_get() saw. */
void hosts_kill(struct hosts *hosts, uint32_t node, uint32_t job)
{
	struct job_value value = hosts->jobs[job].got;

	value.state = JOB_STATE_KILLED;
	hosts->jobs[job].killed = true;
	ask(hosts, node, CORE_REQ_CAS, KIND_KILL, job, &value);
}

struct hosts *hosts_create(uint64_t seed, uint32_t count, const struct simnet_rates *rates)
{
	struct hosts *hosts = calloc(1, sizeof(*hosts));
	struct simnet_hooks hooks = {
		.ctx = hosts,
		.answer = on_answer,
		.notice = on_notice,
		.wrote = on_wrote,
		.crashed = on_crashed,
		.started = on_started,
		.sent = on_sent,
	};

	if (!hosts)
		abort();
	hosts->net = simnet_create(seed, count, rates, &hooks);
	checker_init(&hosts->checker, hosts->net);
	hosts->checker.chose = on_chose;
	hosts->checker.ctx = hosts;
	hosts->checkpoint_ms = 4000;
	return hosts;
}

void hosts_destroy(struct hosts *hosts)
{
	checker_deinit(&hosts->checker);
	for (uint32_t i = 0; i < hosts->net->node_count; i++) {
		for (uint32_t job = 0; job < hosts->job_count; job++)
			free(hosts->at[job][i]);
		free(hosts->stores[i].objects);
	}
	simnet_destroy(hosts->net);
	free(hosts);
}

void hosts_start(struct hosts *hosts)
{
	for (uint32_t i = 0; i < hosts->net->node_count; i++)
		simnet_start(hosts->net, i, 0);
	simnet_run(hosts->net, hosts->net->now_ms + 6000);
}
