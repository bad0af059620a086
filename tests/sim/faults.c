/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What goes wrong in a run, and who comes and goes in a lab. */
#include <string.h>

#include "tests/sim/chaos.h"

enum { MINUTE_MS = 60000, RESTART_PPM = 250000 };

static uint64_t around(struct simnet *net, uint64_t mean)
{
	uint64_t limit = 2 * mean;

	if (limit > UINT32_MAX)
		limit = UINT32_MAX;
	return 1 + simnet_below(net, (uint32_t)limit);
}

static bool is_over(const struct chaos *chaos)
{
	return chaos->hosts->net->now_ms >= chaos->until_ms;
}

static uint32_t room_of(const struct chaos *chaos, uint32_t node)
{
	return node % chaos->rates.rooms;
}

static void restart(void *ctx, uint64_t node)
{
	struct chaos *chaos = ctx;
	struct simnet *net = chaos->hosts->net;

	if (is_over(chaos) || (net->now_ms >= chaos->away_until_ms[node] &&
			       !chaos->closed[room_of(chaos, (uint32_t)node)]))
		simnet_start(net, (uint32_t)node, (uint32_t)node);
}

static void heal(void *ctx, uint64_t argument)
{
	struct chaos *chaos = ctx;
	struct simnet *net = chaos->hosts->net;

	(void)argument;
	net->one_way = false;
	for (uint32_t i = 0; i < net->node_count; i++) {
		net->nodes[i].group = 0;
		net->nodes[i].mute = net->nodes[i].deaf = false;
	}
}

/* Two halves, one room, or one host; one way or both. */
static void cut(struct chaos *chaos, uint32_t node, bool one_way)
{
	struct simnet *net = chaos->hosts->net;
	uint32_t draw = simnet_below(net, 100), swap = simnet_below(net, 2);

	if (one_way && draw < 50) {
		net->nodes[node].mute = draw < 25;
		net->nodes[node].deaf = draw >= 25;
	} else {
		net->one_way = one_way;
		for (uint32_t i = 0; i < net->node_count; i++)
			if (draw < 70)
				net->nodes[i].group = (i == node) ^ swap;
			else if (draw < 85)
				net->nodes[i].group = (room_of(chaos, i) == room_of(chaos, node)) ^
						      swap;
			else
				net->nodes[i].group = simnet_below(net, 2);
	}
	simnet_at(net, net->now_ms + 1000 + simnet_below(net, 10 * chaos->rates.fault_ms), heal,
		  chaos, 0);
}

bool chaos_can_spare(const struct chaos *chaos, uint32_t node)
{
	const struct hosts *hosts = chaos->hosts;

	for (uint32_t i = 0; i < hosts->job_count; i++)
		if (!checker_can_spare(&hosts->checker, &hosts->jobs[i].id,
				       &hosts->net->nodes[node].card.id))
			return false;
	return true;
}

static void strike(struct chaos *chaos, uint32_t node)
{
	const struct chaos_rates *r = &chaos->rates;
	struct simnet *net = chaos->hosts->net;
	uint32_t draw = simnet_below(net, 100);

	if (draw < r->crash) {
		if (net->nodes[node].core)
			hosts_crash(chaos->hosts, node, simnet_chance(net, 600000));
	} else if ((draw -= r->crash) < r->partition) {
		cut(chaos, node, false);
	} else if ((draw -= r->partition) < r->one_way) {
		cut(chaos, node, true);
	} else if ((draw -= r->one_way) < r->pause) {
		if (net->nodes[node].core)
			simnet_pause(net, node, simnet_below(net, r->pause_ms),
				     net->nodes[node].report.flags & MEMBER_LOSES_CLOCK);
	} else if ((draw -= r->pause) < r->rollback && chaos_can_spare(chaos, node)) {
		if (net->nodes[node].core)
			hosts_crash(chaos->hosts, node, true);
		hosts_rollback(chaos->hosts, node, simnet_chance(net, 300000));
		chaos->rollbacks++;
	}
}

static void fault(void *ctx, uint64_t argument)
{
	struct chaos *chaos = ctx;
	struct simnet *net = chaos->hosts->net;

	if (is_over(chaos))
		return;
	strike(chaos, chaos_draw_node(chaos));
	simnet_snapshot(net, chaos_draw_node(chaos));
	for (uint32_t i = 0; i < net->node_count; i++)
		if (!net->nodes[i].core && chaos->away_until_ms[i] <= net->now_ms &&
		    simnet_chance(net, RESTART_PPM))
			simnet_at(net, net->now_ms + simnet_below(net, 5000), restart, chaos, i);
	simnet_at(net, net->now_ms + around(net, chaos->rates.fault_ms), fault, chaos, argument);
}

static void power_fails(void *ctx, uint64_t hearer)
{
	struct chaos *chaos = ctx;
	struct simnet *net = chaos->hosts->net;

	for (uint32_t i = 0; i < net->node_count && !is_over(chaos); i++) {
		if (!net->nodes[i].core)
			continue;
		hosts_crash(chaos->hosts, i, true);
		simnet_at(net, net->now_ms + 500 + simnet_below(net, i == hearer ? 60000 : 4000),
			  restart, chaos, i);
	}
}

/*
 * Of some releases one acceptor hears, or none but the sender's own; then the power fails
 * everywhere. The owner is back before its hold is over, and is given what it had.
 */
static bool cut_release(struct hosts *hosts, uint32_t node, const struct core_send *send)
{
	struct chaos *chaos = hosts->watch_ctx;
	struct simnet *net = hosts->net;
	static struct core_message m;

	if (((const uint8_t *)send->bytes)[1] != CORE_MSG_ACCEPT || is_over(chaos))
		return true;
	if (chaos->blip.at_ms == net->now_ms && chaos->blip.node == node)
		return simnet_index(net, &send->to) == chaos->blip.hearer;
	if (core_message_decode(send->bytes, send->size, &m) < 0 ||
	    m.value.state != JOB_STATE_IDLE || simnet_below(net, 100) >= chaos->rates.blip)
		return true;
	chaos->blip.at_ms = net->now_ms;
	chaos->blip.node = node;
	chaos->blip.hearer = SIMNET_NODES_MAX;
	if (simnet_chance(net, 500000))
		chaos->blip.hearer = simnet_index(net, &send->to);
	simnet_at(net, net->now_ms + 1 + net->rates.latency_ms, power_fails, chaos,
		  chaos->blip.hearer);
	return chaos->blip.hearer < SIMNET_NODES_MAX;
}

static uint32_t live_jobs(const struct hosts *hosts)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < hosts->job_count; i++) {
		const struct job_value *value =
			checker_current(&hosts->checker, &hosts->jobs[i].id);

		count += !value || value->state < JOB_STATE_DONE;
	}
	return count;
}

static void act(struct chaos *chaos, uint32_t node)
{
	struct hosts *hosts = chaos->hosts;
	struct simnet *net = hosts->net;
	uint32_t draw = simnet_below(net, 100), job = simnet_below(net, hosts->job_count);
	bool strict = simnet_chance(net, 800000) &&
		      !(net->nodes[node].report.flags & MEMBER_LOSES_CLOCK);

	if (draw < 25) {
		if (hosts->job_count < HOSTS_JOBS_MAX && live_jobs(hosts) < chaos->rates.jobs)
			hosts_submit(hosts, node, strict);
	} else if (hosts->job_count && draw < 45) {
		hosts_get(hosts, node, job);
	} else if (hosts->job_count && draw < 65) {
		hosts_take(hosts, node, job, chaos_draw_node(chaos));
	} else if (hosts->job_count && draw < 67) {
		if (hosts->jobs[job].got_count && hosts->jobs[job].got_status == 0)
			hosts_kill(hosts, node, job);
	} else if (draw < 80) {
		net->nodes[node].report.flags ^= MEMBER_TAKES_JOBS;
		simnet_report(net, node);
	} else if (draw < 80 + chaos->rates.vacate) {
		/* Drained by hand, and back: its places as an acceptor go to others. */
		net->nodes[node].report.flags ^= MEMBER_VACATING;
		simnet_report(net, node);
	}
}

static void user(void *ctx, uint64_t argument)
{
	struct chaos *chaos = ctx;
	struct simnet *net = chaos->hosts->net;
	uint32_t node = chaos_draw_node(chaos);

	if (is_over(chaos))
		return;
	if (simnet_is_up(net, node))
		act(chaos, node);
	simnet_at(net, net->now_ms + around(net, chaos->rates.user_ms), user, chaos, argument);
}

static void go_off(void *ctx, uint64_t node)
{
	struct chaos *chaos = ctx;
	struct simnet *net = chaos->hosts->net;

	if (is_over(chaos) || !net->nodes[node].core)
		return;
	simnet_leave(net, (uint32_t)node);
	hosts_crash(chaos->hosts, (uint32_t)node, true);
	net->nodes[node].report.flags &= ~(uint32_t)MEMBER_VACATING;
	net->nodes[node].report.flags |= MEMBER_TAKES_JOBS;
}

/* Told that it goes off soon: what runs here is moved first. */
static void announce(struct chaos *chaos, uint32_t node, uint64_t notice_ms)
{
	struct hosts *hosts = chaos->hosts;
	struct simnet *net = hosts->net;

	net->nodes[node].report.flags |= MEMBER_VACATING;
	net->nodes[node].report.flags &= ~(uint32_t)MEMBER_TAKES_JOBS;
	if (simnet_is_up(net, node))
		simnet_report(net, node);
	for (uint32_t job = 0; job < hosts->job_count; job++)
		if (simnet_is_up(net, node) && hosts_is_running(hosts, node, job))
			hosts_release(hosts, node, job, SIMNET_NODES_MAX);
	simnet_at(net, net->now_ms + notice_ms, go_off, chaos, node);
}

static void session_ends(void *ctx, uint64_t packed)
{
	struct chaos *chaos = ctx;
	struct simnet *net = chaos->hosts->net;
	uint32_t node = (uint32_t)packed;
	uint64_t away_ms = around(net, (uint64_t)chaos->rates.away_min * MINUTE_MS);
	uint64_t on_ms = around(net, (uint64_t)chaos->rates.session_min * MINUTE_MS), notice_ms = 0;

	if (is_over(chaos))
		return;
	if (net->nodes[node].core) {
		if (simnet_below(net, 100) < chaos->rates.announced) {
			notice_ms = 1000 * (uint64_t)simnet_below(net, chaos->rates.notice_s);
			announce(chaos, node, notice_ms);
		} else {
			hosts_crash(chaos->hosts, node, true);
		}
		chaos->away_until_ms[node] = net->now_ms + notice_ms + away_ms;
		simnet_at(net, chaos->away_until_ms[node] + 1, restart, chaos, node);
	}
	simnet_at(net, net->now_ms + notice_ms + away_ms + on_ms, session_ends, chaos, node);
}

static void dawn(void *ctx, uint64_t argument)
{
	struct chaos *chaos = ctx;
	struct simnet *net = chaos->hosts->net;

	(void)argument;
	memset(chaos->closed, 0, sizeof(chaos->closed));
	/* All woken at once, as labs do, within a few minutes. */
	for (uint32_t i = 0; i < net->node_count && !is_over(chaos); i++)
		if (!net->nodes[i].core)
			simnet_at(net, net->now_ms + simnet_below(net, 5 * MINUTE_MS), restart,
				  chaos, i);
}

static void night(void *ctx, uint64_t argument)
{
	struct chaos *chaos = ctx;
	const struct chaos_rates *r = &chaos->rates;
	struct simnet *net = chaos->hosts->net;
	uint32_t first = simnet_below(net, r->rooms);

	if (is_over(chaos))
		return;
	for (uint32_t i = 0; i < r->closing; i++)
		chaos->closed[(first + i) % r->rooms] = true;
	for (uint32_t i = 0; i < net->node_count; i++)
		if (chaos->closed[room_of(chaos, i)] && net->nodes[i].core)
			announce(chaos, i,
				 UINT64_C(1000) *
					 (r->notice_s / 2 + simnet_below(net, r->notice_s)));
	simnet_at(net, net->now_ms + (uint64_t)(r->dawn_min - r->night_min) * MINUTE_MS, dawn,
		  chaos, 0);
	simnet_at(net, net->now_ms + (uint64_t)r->day_min * MINUTE_MS, night, chaos, argument);
}

void faults_begin(struct chaos *chaos)
{
	const struct chaos_rates *r = &chaos->rates;
	struct simnet *net = chaos->hosts->net;

	net->rates = r->net;
	if (r->blip) {
		chaos->hosts->watch = cut_release;
		chaos->hosts->watch_ctx = chaos;
	}
	fault(chaos, 0);
	user(chaos, 0);
	for (uint32_t i = 0; i < net->node_count && r->session_min; i++)
		simnet_at(net, net->now_ms + around(net, (uint64_t)r->session_min * MINUTE_MS),
			  session_ends, chaos, i);
	if (r->closing)
		simnet_at(net, net->now_ms + (uint64_t)r->night_min * MINUTE_MS, night, chaos, 0);
}

void faults_end(struct chaos *chaos)
{
	struct hosts *hosts = chaos->hosts;
	struct simnet *net = hosts->net;

	memset(&net->rates, 0, sizeof(net->rates));
	net->rates.latency_ms = 10;
	hosts->release_ppm = hosts->done_ppm = 0;
	memset(chaos->closed, 0, sizeof(chaos->closed));
	heal(chaos, 0);
	for (uint32_t i = 0; i < net->node_count; i++) {
		net->nodes[i].paused_until_ms = 0;
		net->nodes[i].report.flags |= MEMBER_TAKES_JOBS;
		net->nodes[i].report.flags &= ~(uint32_t)MEMBER_VACATING;
		simnet_start(net, i, i);
		simnet_report(net, i);
	}
	for (uint32_t i = 1; i < net->node_count; i++)
		simnet_greet(net, i, 0); /* drivers keep calling their seeds */
}
