/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Short directed plans, one a run, after its quiet phase. Each brings about what random faults
 * hardly ever do, for one job submitted for it; then all is mended and judged once more.
 *
 *   absence    the job's first guardian dies, and the job is released: others must act (G1), and
 *              the dead one must give its place to another host in time (G2)
 *   leaving    the same for an acceptor that announces that it leaves
 *   stall      of a set that is being changed, one majority keeps the owner and hears nobody
 *              else, so that it stays sealed; the other side goes on (A2, A3)
 *   oblivion   a majority of the old acceptors sleeps from the INSTALL on, until the job has
 *              ended and was forgotten; those who are left wake with it, without memory (F1)
 *   strangers  hosts that know nothing of the job are alone: "not found" is all they hear (G3)
 *   standstill the owner's machine stands still in the midst of a commit, its clocks too, until
 *              the job has ended and was forgotten
 *   amnesia    a proposer whose last ACCEPT one acceptor heard restarts and proposes again
 *   blackout   the power fails everywhere when one acceptor has heard of a release; the owner is
 *              back first, then alone
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "overlay/ipc.h"
#include "tests/sim/chaos.h"

enum {
	BEGIN_MS = 15000,
	TAKEN_MS = 45000,     /* a guardian of any rank has acted by then */
	REPLACED_MS = 120000, /* who is gone has been replaced */
	STALL_MS = 90000,
	SEAL_MS = 30000,
	ENDING_MS = 60000,
	FORGOTTEN_MS = 14 * 60000,
	WAKING_MS = 180000,
	ALONE_MS = 20000,
	STANDS_MS = 30 * 60000,
	BACK_MS = 20000,
	TRIES = 6,
};

static void run_ms(struct chaos *chaos, uint64_t ms)
{
	simnet_run(chaos->hosts->net, chaos->hosts->net->now_ms + ms);
}

static const struct core_acceptors *set_of(const struct chaos *chaos, uint32_t job)
{
	static const struct core_acceptors none;
	const struct checker *checker = &chaos->hosts->checker;

	for (uint32_t i = 0; i < checker->job_count; i++)
		if (!memcmp(&checker->jobs[i].id, &chaos->hosts->jobs[job].id,
			    sizeof(struct job_id)))
			return &checker->jobs[i].acceptors;
	return &none;
}

static bool is_in(const struct chaos *chaos, const struct core_acceptors *set, uint32_t node)
{
	for (uint32_t i = 0; i < set->count; i++)
		if (node_id_equal(&set->ids[i], &chaos->hosts->net->nodes[node].card.id))
			return true;
	return false;
}

static uint32_t majority(const struct core_acceptors *set)
{
	return set->count / 2 + 1;
}

static bool keeps_clock(const struct chaos *chaos, uint32_t node)
{
	return !(chaos->hosts->net->nodes[node].report.flags & MEMBER_LOSES_CLOCK);
}

/* A job that runs, on some host whose clock may be trusted with it. */
static bool submit(struct chaos *chaos, uint32_t *ret_job)
{
	struct hosts *hosts = chaos->hosts;
	uint32_t node = chaos_draw_node(chaos), job;

	if (hosts->job_count == HOSTS_JOBS_MAX)
		return false;
	job = hosts_submit(hosts, keeps_clock(chaos, node) ? node : 0, true);
	run_ms(chaos, BEGIN_MS);
	if (hosts_running(hosts, job) == SIMNET_NODES_MAX)
		return false;
	*ret_job = job;
	return true;
}

/* Nobody else could take its place, so that it keeps it. */
static bool is_needed(const struct chaos *chaos, const struct core_acceptors *set)
{
	const struct simnet *net = chaos->hosts->net;

	for (uint32_t i = 0; i < net->node_count; i++)
		if (net->nodes[i].core && !(net->nodes[i].report.flags & MEMBER_VACATING) &&
		    !is_in(chaos, set, i))
			return false;
	return true;
}

/* G2. */
static void check_replaced(const struct chaos *chaos, uint32_t gone)
{
	const struct hosts *hosts = chaos->hosts;

	for (uint32_t job = 0; job < hosts->job_count; job++) {
		const struct job_value *value =
			checker_current(&hosts->checker, &hosts->jobs[job].id);
		const struct core_acceptors *set = set_of(chaos, job);

		if (value && value->state <= JOB_STATE_DONE && is_in(chaos, set, gone) &&
		    !is_needed(chaos, set))
			checker_fail(&hosts->checker, &hosts->jobs[job].id,
				     "G2: an acceptor that is gone was not replaced");
	}
}

/* The first guardian of a new job, if it may go; host 0 stays, it can run any job. */
static bool pick_first(struct chaos *chaos, uint32_t *ret_job, uint32_t *ret_node)
{
	struct hosts *hosts = chaos->hosts;

	for (uint32_t n = 0; n < TRIES; n++) {
		uint32_t node, job;

		if (!submit(chaos, &job) || !set_of(chaos, job)->count)
			continue;
		node = simnet_index(hosts->net, &set_of(chaos, job)->ids[0]);
		if (node == 0 || node == SIMNET_NODES_MAX || !chaos_can_spare(chaos, node))
			continue;
		*ret_job = job;
		*ret_node = node;
		return true;
	}
	return false;
}

static bool absence(struct chaos *chaos, bool leaves)
{
	struct hosts *hosts = chaos->hosts;
	struct simnet *net = hosts->net;
	uint32_t job, gone, owner;

	if (net->node_count < 3 || !pick_first(chaos, &job, &gone))
		return false;
	owner = hosts_running(hosts, job);
	if (leaves) {
		net->nodes[gone].report.flags |= MEMBER_VACATING;
		simnet_report(net, gone);
	} else {
		hosts_crash(hosts, gone, true);
	}
	if (owner != gone && hosts_is_running(hosts, owner, job))
		hosts_release(hosts, owner, job, SIMNET_NODES_MAX);
	run_ms(chaos, TAKEN_MS);
	if (hosts_running(hosts, job) == SIMNET_NODES_MAX)
		checker_fail(&hosts->checker, &hosts->jobs[job].id,
			     "G1: no guardian takes care of it");
	run_ms(chaos, REPLACED_MS - TAKEN_MS);
	check_replaced(chaos, gone);
	return true;
}

/* ------------------------------------------------- a change of acceptors that is cut in two */

/*
 * The old side: the owner, and a majority of the old acceptors, without who installs. False if
 * the rest is no majority of the new ones.
 */
static bool draw_sides(struct chaos *chaos, uint32_t installer, const struct core_message *m)
{
	const struct simnet *net = chaos->hosts->net;
	uint32_t owner = simnet_index(net, &m->value.owner), old = 0, fresh = 0;
	bool *side = chaos->cut.old_side;

	memset(side, 0, sizeof(chaos->cut.old_side));
	if (owner == SIMNET_NODES_MAX || owner == installer)
		return false;
	side[owner] = true;
	old = is_in(chaos, &m->previous, owner);
	/* First who is not in the new set. */
	for (uint32_t n = 0; n < 2 * net->node_count; n++) {
		uint32_t node = n % net->node_count;

		if (old >= majority(&m->previous) || node == installer || side[node] ||
		    !is_in(chaos, &m->previous, node) ||
		    (n < net->node_count && is_in(chaos, &m->acceptors, node)))
			continue;
		side[node] = true;
		old++;
	}
	for (uint32_t node = 0; node < net->node_count; node++)
		fresh += !side[node] && is_in(chaos, &m->acceptors, node);
	return old >= majority(&m->previous) && fresh >= majority(&m->acceptors);
}

static bool is_renewal(const struct core_send *send)
{
	uint8_t type = ((const uint8_t *)send->bytes)[1];

	return type == CORE_MSG_RENEW || type == CORE_MSG_RENEWED || type == CORE_MSG_LOST;
}

/* Waits for the job's INSTALL; from then on the two sides hear nothing of each other. */
static bool cut_at_install(struct hosts *hosts, uint32_t node, const struct core_send *send)
{
	static struct core_message m;
	struct chaos *chaos = hosts->watch_ctx;
	uint32_t to = simnet_index(hosts->net, &send->to);

	if (!chaos->cut.done) {
		if (((const uint8_t *)send->bytes)[1] != CORE_MSG_INSTALL ||
		    core_message_decode(send->bytes, send->size, &m) < 0 ||
		    hosts_job_index(hosts, &m.job) != chaos->cut.job ||
		    !draw_sides(chaos, node, &m))
			return true;
		chaos->cut.done = true;
	}
	if (to == SIMNET_NODES_MAX || chaos->cut.old_side[node] != chaos->cut.old_side[to])
		return false;
	return !chaos->cut.old_side[node] || is_renewal(send);
}

/* An acceptor is drained, so that the set changes; false if that did not happen as it should. */
static bool cut_change(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;
	struct simnet *net = hosts->net;

	for (uint32_t n = 0; n < TRIES; n++) {
		const struct core_acceptors *set;
		uint32_t node, job;
		uint64_t until_ms;

		if (!submit(chaos, &job))
			continue;
		set = set_of(chaos, job);
		if (set->count < 3 || set->count == net->node_count)
			continue;
		chaos->cut.done = false;
		chaos->cut.job = job;
		node = simnet_index(net, &set->ids[simnet_below(net, set->count)]);
		if (node == SIMNET_NODES_MAX)
			continue;
		hosts->watch = cut_at_install;
		hosts->watch_ctx = chaos;
		net->nodes[node].report.flags |= MEMBER_VACATING;
		simnet_report(net, node);
		until_ms = net->now_ms + SEAL_MS;
		while (!chaos->cut.done && net->now_ms < until_ms)
			run_ms(chaos, 1);
		if (chaos->cut.done)
			return true;
		hosts->watch = NULL;
		net->nodes[node].report.flags &= ~(uint32_t)MEMBER_VACATING;
		simnet_report(net, node);
	}
	return false;
}

static bool stall(struct chaos *chaos)
{
	if (!cut_change(chaos))
		return false;
	run_ms(chaos, STALL_MS);
	return true;
}

/* All of one side at once, by its power. */
static void switch_side(struct chaos *chaos, bool old_side, bool on)
{
	struct simnet *net = chaos->hosts->net;

	for (uint32_t i = 0; i < net->node_count; i++) {
		if (chaos->cut.old_side[i] != old_side)
			continue;
		if (on)
			simnet_start(net, i, i);
		else
			hosts_crash(chaos->hosts, i, true);
	}
}

/* Ends the job; true if that is chosen. */
static bool kill_from(struct chaos *chaos, uint32_t node, uint32_t job)
{
	struct hosts *hosts = chaos->hosts;
	uint64_t before = hosts->jobs[job].got_count;
	const struct job_value *value;

	hosts_get(hosts, node, job);
	run_ms(chaos, 10000);
	if (hosts->jobs[job].got_count == before || hosts->jobs[job].got_status)
		return false;
	hosts_kill(hosts, node, job);
	run_ms(chaos, 10000);
	value = checker_current(&hosts->checker, &hosts->jobs[job].id);
	return value && value->state == JOB_STATE_KILLED;
}

/* Killed by somebody of the new side, once that side has the job. */
static bool end_there(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;
	uint32_t job = chaos->cut.job, node = hosts_running(hosts, job);

	return node != SIMNET_NODES_MAX && kill_from(chaos, node, job);
}

static bool oblivion(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;
	const struct job_value *value;
	bool ended;

	if (!cut_change(chaos))
		return false;
	switch_side(chaos, true, false);
	hosts->watch = NULL;
	run_ms(chaos, ENDING_MS);
	ended = end_there(chaos);
	if (ended)
		run_ms(chaos, FORGOTTEN_MS);
	/* What the others remember of the end, and what is no record, is lost. */
	switch_side(chaos, false, false);
	switch_side(chaos, false, true);
	switch_side(chaos, true, true);
	run_ms(chaos, WAKING_MS);
	value = checker_current(&hosts->checker, &hosts->jobs[chaos->cut.job].id);
	if (ended && value->state != JOB_STATE_KILLED)
		checker_fail(&hosts->checker, &hosts->jobs[chaos->cut.job].id,
			     "I4: what had ended came back");
	return ended;
}

/* ------------------------------------------------------------------------------- strangers */

static bool strangers(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;
	struct simnet *net = hosts->net;
	uint32_t job, alone = 0;

	if (!submit(chaos, &job))
		return false;
	run_ms(chaos, 2 * BEGIN_MS);
	/* No newer checkpoint will take the place of what they keep. */
	hosts->checkpoint_ms = 10 * BEGIN_MS;
	run_ms(chaos, BEGIN_MS);
	for (uint32_t i = 0; i < net->node_count; i++)
		alone += !is_in(chaos, set_of(chaos, job), i) && hosts_running(hosts, job) != i;
	/* Who knows of no other host does not say that the job is nowhere. */
	if (alone < 2)
		return false;
	for (uint32_t i = 0; i < net->node_count; i++) {
		if (is_in(chaos, set_of(chaos, job), i) || hosts_running(hosts, job) == i)
			continue;
		net->nodes[i].group = 1;
		hosts_crash(hosts, i, true);
	}
	for (uint32_t i = 0; i < net->node_count; i++)
		if (net->nodes[i].group)
			simnet_start(net, i, i);
	run_ms(chaos, ALONE_MS);
	for (uint32_t i = 0; i < net->node_count; i++)
		if (net->nodes[i].group)
			hosts_get(hosts, i, job);
	run_ms(chaos, ALONE_MS);
	return true;
}

/* ------------------------------------------------------- an ACCEPT that hardly anybody hears */

/* Of the ACCEPTs of one host, about one job, at most one acceptor hears. */
static bool mute_accepts(struct hosts *hosts, uint32_t node, const struct core_send *send)
{
	static struct core_message m;
	struct chaos *chaos = hosts->watch_ctx;

	if (node != chaos->mute.node || ((const uint8_t *)send->bytes)[1] != CORE_MSG_ACCEPT ||
	    core_message_decode(send->bytes, send->size, &m) < 0 ||
	    hosts_job_index(hosts, &m.job) != chaos->mute.job)
		return true;
	chaos->mute.heard = true;
	return simnet_index(hosts->net, &send->to) == chaos->mute.hearer;
}

static bool wait_for_accept(struct chaos *chaos, uint32_t node, uint32_t job, uint32_t hearer,
			    uint64_t most_ms)
{
	struct hosts *hosts = chaos->hosts;
	uint64_t until_ms = hosts->net->now_ms + most_ms;

	chaos->mute.node = node;
	chaos->mute.job = job;
	chaos->mute.hearer = hearer;
	chaos->mute.heard = false;
	hosts->watch = mute_accepts;
	hosts->watch_ctx = chaos;
	while (!chaos->mute.heard && hosts->net->now_ms < until_ms)
		run_ms(chaos, 1);
	return chaos->mute.heard;
}

/* An acceptor of the job other than that host. */
static uint32_t other_acceptor(struct chaos *chaos, uint32_t job, uint32_t node)
{
	const struct core_acceptors *set = set_of(chaos, job);
	uint32_t start = set->count ? simnet_below(chaos->hosts->net, set->count) : 0;

	for (uint32_t i = 0; i < set->count; i++) {
		uint32_t other =
			simnet_index(chaos->hosts->net, &set->ids[(start + i) % set->count]);

		if (other != node && other != SIMNET_NODES_MAX)
			return other;
	}
	return SIMNET_NODES_MAX;
}

/* Its clock is not trusted from now on: strict jobs go elsewhere. */
static bool distrust(struct chaos *chaos, uint32_t node)
{
	struct hosts *hosts = chaos->hosts;

	hosts->net->nodes[node].report.flags |= MEMBER_LOSES_CLOCK;
	simnet_report(hosts->net, node);
	for (uint32_t job = 0; job < hosts->job_count; job++)
		if (hosts->jobs[job].strict && hosts_is_running(hosts, node, job))
			hosts_release(hosts, node, job, SIMNET_NODES_MAX);
	run_ms(chaos, BEGIN_MS);
	for (uint32_t job = 0; job < hosts->job_count; job++)
		if (hosts->jobs[job].strict && hosts_at(hosts, node, job)->phase != HOST_NONE)
			return false;
	return true;
}

static bool standstill(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;
	uint32_t owner = chaos_draw_node(chaos), other, job;

	/* Host 0 can run any job. */
	if (hosts->job_count == HOSTS_JOBS_MAX || !owner || !distrust(chaos, owner))
		return false;
	/* No strict job goes where a clock may stop. */
	job = hosts_submit(hosts, owner, false);
	run_ms(chaos, BEGIN_MS);
	other = other_acceptor(chaos, job, owner);
	if (!hosts_is_running(hosts, owner, job) || other == SIMNET_NODES_MAX ||
	    !wait_for_accept(chaos, owner, job, SIMNET_NODES_MAX, ENDING_MS))
		return false;
	hosts->watch = NULL;
	simnet_pause(hosts->net, owner, STANDS_MS, true);
	run_ms(chaos, ENDING_MS);
	if (!kill_from(chaos, other, job))
		return false;
	run_ms(chaos, STANDS_MS + BEGIN_MS);
	if (checker_current(&hosts->checker, &hosts->jobs[job].id)->state != JOB_STATE_KILLED)
		checker_fail(&hosts->checker, &hosts->jobs[job].id, "I4: what had ended came back");
	return true;
}

/* The job of a plan, and nothing of it under way. */
static bool submit_calm(struct chaos *chaos, uint32_t *ret_job)
{
	struct hosts *hosts = chaos->hosts;

	if (!submit(chaos, ret_job))
		return false;
	hosts->checkpoint_ms = 1000 * BEGIN_MS;
	run_ms(chaos, 2 * BEGIN_MS);
	return hosts_running(hosts, *ret_job) != SIMNET_NODES_MAX;
}

static bool amnesia(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;
	struct simnet *net = hosts->net;
	uint32_t job, killer = 0, hearer;

	if (!submit_calm(chaos, &job))
		return false;
	/* Neither an acceptor, whose disk knows its ballots, nor the owner, who renews. */
	while (killer < net->node_count &&
	       (is_in(chaos, set_of(chaos, job), killer) || hosts_running(hosts, job) == killer))
		killer++;
	hearer = other_acceptor(chaos, job, hosts_running(hosts, job));
	if (killer == net->node_count || hearer == SIMNET_NODES_MAX)
		return false;
	hosts_get(hosts, killer, job);
	run_ms(chaos, 1000);
	/* Who hears it does not say so. */
	net->nodes[hearer].mute = true;
	hosts_kill(hosts, killer, job);
	if (!wait_for_accept(chaos, killer, job, hearer, 1000))
		return false;
	run_ms(chaos, 100);
	hosts_crash(hosts, killer, true);
	hosts->watch = NULL;
	simnet_start(net, killer, killer);
	run_ms(chaos, 1000);
	hosts_get(hosts, killer, job);
	run_ms(chaos, 1000);
	hosts->jobs[job].got.exit_status++; /* another value */
	hosts_kill(hosts, killer, job);
	run_ms(chaos, 10000);
	return true;
}

static bool blackout(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;
	struct simnet *net = hosts->net;
	uint32_t job, owner, hearer, left;

	if (!submit_calm(chaos, &job))
		return false;
	owner = hosts_running(hosts, job);
	hearer = other_acceptor(chaos, job, owner);
	if (hearer == SIMNET_NODES_MAX || set_of(chaos, job)->count < 3)
		return false;
	hosts_release(hosts, owner, job, SIMNET_NODES_MAX);
	if (!wait_for_accept(chaos, owner, job, hearer, 1000))
		return false;
	run_ms(chaos, 100);
	hosts->watch = NULL;
	for (uint32_t i = 0; i < net->node_count; i++)
		hosts_crash(hosts, i, true);
	for (uint32_t i = 0; i < net->node_count; i++)
		if (i != hearer)
			simnet_start(net, i, i);
	for (uint32_t i = 0; i < BACK_MS / 100 && hosts_running(hosts, job) != owner; i++)
		run_ms(chaos, 100);
	if (hosts_running(hosts, job) != owner)
		return false;
	/* A bare majority goes on, so that nothing it finds can be passed over. */
	net->nodes[owner].group = 1;
	left = set_of(chaos, job)->count - is_in(chaos, set_of(chaos, job), owner);
	for (uint32_t i = 0; i < net->node_count && left > majority(set_of(chaos, job)); i++)
		if (i != hearer && i != owner && is_in(chaos, set_of(chaos, job), i)) {
			net->nodes[i].group = 1;
			left--;
		}
	simnet_start(net, hearer, hearer);
	run_ms(chaos, 1000);
	hosts_get(hosts, hearer, job);
	run_ms(chaos, ENDING_MS);
	return true;
}

static bool carry_out(struct chaos *chaos)
{
	switch (chaos->rates.plan) {
	case PLAN_ABSENCE:
	case PLAN_LEAVING:
		return absence(chaos, chaos->rates.plan == PLAN_LEAVING);
	case PLAN_STALL:
		return stall(chaos);
	case PLAN_OBLIVION:
		return oblivion(chaos);
	case PLAN_STRANGERS:
		return strangers(chaos);
	case PLAN_STANDSTILL:
		return standstill(chaos);
	case PLAN_AMNESIA:
		return amnesia(chaos);
	case PLAN_BLACKOUT:
		return blackout(chaos);
	default:
		return false;
	}
}

void plans_run(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;

	chaos->planned = carry_out(chaos);
	hosts->watch = NULL;
	hosts->checkpoint_ms = chaos->rates.checkpoint_ms;
}
