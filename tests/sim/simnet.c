/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/simnet.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/ipc.h"

enum event_type { EVENT_MESSAGE = 1, EVENT_TICK, EVENT_ACTION };

struct simnet_event {
	uint64_t when_ms, seq;
	enum event_type type;
	uint32_t from, to, life;
	simnet_action *action;
	void *ctx;
	uint64_t argument;
	size_t size;
	uint8_t bytes[];
};

static void die(const char *what)
{
	fprintf(stderr, "simnet: %s\n", what);
	abort();
}

static uint64_t dice_next(struct simnet_dice *dice)
{
	uint64_t x = dice->state += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

uint32_t dice_below(struct simnet_dice *dice, uint32_t limit)
{
	return limit ? (uint32_t)(dice_next(dice) % limit) : 0;
}

uint64_t simnet_random(struct simnet *net)
{
	return dice_next(&net->dice);
}

uint32_t simnet_below(struct simnet *net, uint32_t limit)
{
	return dice_below(&net->dice, limit);
}

bool simnet_chance(struct simnet *net, uint32_t ppm)
{
	return simnet_below(net, 1000000) < ppm;
}

static bool event_before(const struct simnet_event *a, const struct simnet_event *b)
{
	return a->when_ms != b->when_ms ? a->when_ms < b->when_ms : a->seq < b->seq;
}

static void heap_push(struct simnet *net, struct simnet_event *event)
{
	size_t at = net->heap_count++;

	if (net->heap_count > net->heap_room) {
		net->heap_room = net->heap_room ? 2 * net->heap_room : 1024;
		net->heap = realloc(net->heap, net->heap_room * sizeof(net->heap[0]));
		if (!net->heap)
			die("out of memory");
	}
	event->seq = ++net->seq;
	while (at > 0 && event_before(event, net->heap[(at - 1) / 2])) {
		net->heap[at] = net->heap[(at - 1) / 2];
		at = (at - 1) / 2;
	}
	net->heap[at] = event;
}

static struct simnet_event *heap_pop(struct simnet *net)
{
	struct simnet_event *first = net->heap[0];
	struct simnet_event *last = net->heap[--net->heap_count];
	size_t at = 0;

	for (;;) {
		size_t child = 2 * at + 1;

		if (child >= net->heap_count)
			break;
		if (child + 1 < net->heap_count &&
		    event_before(net->heap[child + 1], net->heap[child]))
			child++;
		if (!event_before(net->heap[child], last))
			break;
		net->heap[at] = net->heap[child];
		at = child;
	}
	net->heap[at] = last;
	return first;
}

static struct simnet_event *event_new(enum event_type type, uint64_t when_ms, size_t size)
{
	struct simnet_event *event = calloc(1, sizeof(*event) + size);

	if (!event)
		die("out of memory");
	event->type = type;
	event->when_ms = when_ms;
	event->size = size;
	return event;
}

void simnet_at(struct simnet *net, uint64_t when_ms, simnet_action *action, void *ctx,
	       uint64_t argument)
{
	struct simnet_event *event = event_new(EVENT_ACTION, when_ms, 0);

	event->action = action;
	event->ctx = ctx;
	event->argument = argument;
	heap_push(net, event);
}

uint32_t simnet_index(const struct simnet *net, const struct node_id *id)
{
	for (uint32_t i = 0; i < net->node_count; i++)
		if (node_id_equal(&net->nodes[i].card.id, id))
			return i;
	return SIMNET_NODES_MAX;
}

uint64_t simnet_local_ms(const struct simnet *net, uint32_t node)
{
	const struct simnet_node *n = &net->nodes[node];
	int64_t drift = (int64_t)net->now_ms * n->rate_ppm / 1000000;

	return n->boot_offset_ms + (uint64_t)((int64_t)net->now_ms + drift);
}

uint64_t simnet_boot_ns(const struct simnet *net, uint32_t node)
{
	return simnet_local_ms(net, node) * UINT64_C(1000000);
}

static void send_one(struct simnet *net, uint32_t from, uint32_t to, const struct core_send *send)
{
	const struct simnet_rates *rates = &net->rates;
	uint64_t delay = 1 + simnet_below(net, rates->latency_ms);
	struct simnet_event *event;

	if (simnet_chance(net, rates->slow_ppm))
		delay += simnet_below(net, rates->slow_ms);
	event = event_new(EVENT_MESSAGE, net->now_ms + delay, send->size);
	event->from = from;
	event->to = to;
	memcpy(event->bytes, send->bytes, send->size);
	heap_push(net, event);
}

static void send_message(struct simnet *net, uint32_t from, const struct core_send *send)
{
	uint32_t to = simnet_index(net, &send->to);

	net->message_count++;
	if (to == SIMNET_NODES_MAX || simnet_chance(net, net->rates.loss_ppm))
		return;
	send_one(net, from, to, send);
	if (simnet_chance(net, net->rates.double_ppm))
		send_one(net, from, to, send);
}

static void disk_write(struct simnet *net, uint32_t node, const struct core_write *write)
{
	struct simnet_node *n = &net->nodes[node];
	struct simnet_record *slot = NULL;

	for (uint32_t i = 0; i < SIMNET_RECORDS_MAX; i++) {
		struct simnet_record *record = &n->disk[i];

		if (record->size && !memcmp(&record->job, &write->job, sizeof(write->job))) {
			slot = record;
			break;
		}
		if (!record->size && !slot)
			slot = record;
	}
	if (!slot)
		die("disk full");
	slot->job = write->job;
	slot->size = write->size;
	memcpy(slot->bytes, write->bytes, write->size);
	if (net->hooks.wrote)
		net->hooks.wrote(net->hooks.ctx, node, write);
}

/* Writes first; only then does anything of the update leave the host. */
static void carry_out(struct simnet *net, uint32_t node, const struct core_update *update)
{
	const struct simnet_hooks *hooks = &net->hooks;
	bool torn = update->write_count && simnet_chance(net, net->rates.torn_ppm);

	for (uint32_t i = 0; i < update->write_count; i++)
		if (!torn || simnet_chance(net, 500000))
			disk_write(net, node, &update->writes[i]);
	if (torn) {
		simnet_crash(net, node);
		if (hooks->crashed)
			hooks->crashed(hooks->ctx, node);
		return;
	}
	for (uint32_t i = 0; i < update->send_count; i++)
		send_message(net, node, &update->sends[i]);
	for (uint32_t i = 0; i < update->notice_count && hooks->notice; i++)
		hooks->notice(hooks->ctx, node, &update->notices[i]);
	for (uint32_t i = 0; i < update->answer_count && hooks->answer; i++)
		hooks->answer(hooks->ctx, node, &update->answers[i]);
}

static void schedule_tick(struct simnet *net, uint32_t node)
{
	struct simnet_node *n = &net->nodes[node];
	uint64_t local = simnet_local_ms(net, node), due = core_deadline(n->core);
	uint64_t when = net->now_ms + (due > local ? due - local : 0);
	struct simnet_event *event;

	if (due == UINT64_MAX)
		return;
	if (when == net->now_ms)
		when++;
	if (n->tick_at_ms > net->now_ms && n->tick_at_ms <= when)
		return;
	n->tick_at_ms = when;
	event = event_new(EVENT_TICK, when, 0);
	event->to = node;
	event->life = n->life;
	heap_push(net, event);
}

static int step(struct simnet *net, uint32_t node, struct core_event *event)
{
	struct simnet_node *n = &net->nodes[node];
	const struct core_update *update;
	struct core_update copy;
	uint32_t life = n->life;
	int r;

	event->now_ms = simnet_local_ms(net, node);
	event->boot_ns = simnet_boot_ns(net, node);
	r = core_step(n->core, event, &update);
	if (r < 0)
		return r;
	copy = *update;
	carry_out(net, node, &copy);
	if (n->core && n->life == life)
		schedule_tick(net, node);
	return 0;
}

static bool verify_card(void *ctx, const struct node_card *card)
{
	(void)ctx;
	return card->version == 1;
}

void simnet_greet(struct simnet *net, uint32_t node, uint32_t seed)
{
	const struct simnet_node *other = &net->nodes[seed];
	struct core_event event = {
		.type = CORE_EV_GREET,
		.node = other->card.id,
		.card = &other->card,
		.addr = "10.0.0.1",
		.port = 7000,
	};

	if (node != seed && step(net, node, &event) < 0)
		die("greet");
}

void simnet_report(struct simnet *net, uint32_t node)
{
	struct simnet_node *n = &net->nodes[node];
	struct core_event event = { .type = CORE_EV_REPORT, .report = &n->report };

	if (n->core && step(net, node, &event) < 0)
		die("report");
}

void simnet_leave(struct simnet *net, uint32_t node)
{
	struct core_event event = { .type = CORE_EV_LEAVE };

	if (net->nodes[node].core && step(net, node, &event) < 0)
		die("leave");
}

void simnet_start(struct simnet *net, uint32_t node, uint32_t seed)
{
	struct simnet_node *n = &net->nodes[node];
	struct core_config config = {
		.card = n->card,
		.advertise_addr = "10.0.0.1",
		.port = 7000,
		.probe_ms = 1000,
		.suspect_ms = 4000,
		.renew_ms = 5000,
		.lease_ms = 20000,
		.hold_ms = 22000,
		.seed = simnet_random(net),
		.incarnation = UINT64_C(1700000000000) + net->now_ms,
		.verify_card = verify_card,
	};

	if (n->core)
		return;
	n->core = calloc(1, core_size());
	if (!n->core || core_init(n->core, &config, simnet_local_ms(net, node)) < 0)
		die("init");
	n->life++;
	n->tick_at_ms = 0;
	for (uint32_t i = 0; i < SIMNET_RECORDS_MAX; i++) {
		struct core_event event = {
			.type = CORE_EV_RECORD,
			.bytes = n->disk[i].bytes,
			.size = n->disk[i].size,
		};

		if (n->disk[i].size && step(net, node, &event) < 0)
			die("record");
	}
	simnet_report(net, node);
	if (seed != node)
		simnet_greet(net, node, seed);
	for (uint32_t i = 0; i < net->node_count && seed == node; i++)
		if (i != node && net->nodes[i].core && net->nodes[i].group == n->group)
			simnet_greet(net, node, i);
}

void simnet_crash(struct simnet *net, uint32_t node)
{
	struct simnet_node *n = &net->nodes[node];

	free(n->core);
	n->core = NULL;
	n->life++;
}

void simnet_request(struct simnet *net, uint32_t node, enum core_request request,
		    const struct job_value *value, uint64_t request_id)
{
	struct core_event event = {
		.type = CORE_EV_REQUEST,
		.request = request,
		.request_id = request_id,
		.value = value,
	};

	if (step(net, node, &event) < 0)
		die("request");
}

static void handle(struct simnet *net, const struct simnet_event *event)
{
	struct simnet_node *to = &net->nodes[event->to];
	struct core_event core_event = { .type = CORE_EV_TICK };

	switch (event->type) {
	case EVENT_MESSAGE:
		if (!to->core || to->group != net->nodes[event->from].group)
			return;
		core_event.type = CORE_EV_MESSAGE;
		core_event.node = net->nodes[event->from].card.id;
		core_event.bytes = event->bytes;
		core_event.size = event->size;
		if (step(net, event->to, &core_event) < 0)
			die("a core could not read another core's message");
		break;
	case EVENT_TICK:
		if (!to->core || to->life != event->life || to->tick_at_ms != event->when_ms)
			return;
		to->tick_at_ms = 0;
		if (step(net, event->to, &core_event) < 0)
			die("tick");
		break;
	case EVENT_ACTION:
		event->action(event->ctx, event->argument);
		break;
	}
}

void simnet_run(struct simnet *net, uint64_t until_ms)
{
	while (net->heap_count && net->heap[0]->when_ms <= until_ms) {
		struct simnet_event *event = heap_pop(net);

		net->now_ms = event->when_ms;
		net->event_count++;
		handle(net, event);
		if (net->hooks.after)
			net->hooks.after(net->hooks.ctx);
		free(event);
	}
	net->now_ms = until_ms;
}

struct simnet *simnet_create(uint64_t seed, uint32_t count, const struct simnet_rates *rates,
			     const struct simnet_hooks *hooks)
{
	struct simnet *net = calloc(1, sizeof(*net));

	if (!net || count > SIMNET_NODES_MAX)
		die("out of memory");
	net->seed = net->dice.state = seed;
	net->node_count = count;
	net->rates = *rates;
	if (hooks)
		net->hooks = *hooks;
	for (uint32_t i = 0; i < count; i++) {
		struct simnet_node *n = &net->nodes[i];
		uint32_t spread = 2 * rates->drift_ppm + 1;

		n->card.version = 1;
		for (uint32_t k = 0; k < sizeof(n->card.id.b); k++)
			n->card.id.b[k] = (uint8_t)simnet_random(net);
		snprintf(n->card.hostname, sizeof(n->card.hostname), "host%u", i);
		snprintf(n->card.room, sizeof(n->card.room), "room%u", i % 3);
		n->rate_ppm = (int32_t)simnet_below(net, spread) - (int32_t)rates->drift_ppm;
		n->boot_offset_ms = simnet_below(net, 1000000);
		n->report.flags = MEMBER_TAKES_JOBS | MEMBER_STORES_PACKS;
		n->report.mem_free_bytes = UINT64_C(8) << 30;
		n->report.store_free_bytes = UINT64_C(64) << 30;
	}
	return net;
}

void simnet_destroy(struct simnet *net)
{
	for (uint32_t i = 0; i < net->node_count; i++)
		free(net->nodes[i].core);
	while (net->heap_count)
		free(net->heap[--net->heap_count]);
	free(net->heap);
	free(net);
}

enum member_state simnet_view(const struct simnet *net, uint32_t of, uint32_t about)
{
	const struct member_info *info;

	for (uint32_t i = 0;; i++) {
		info = core_member(net->nodes[of].core, i, simnet_local_ms(net, of));
		if (!info)
			return 0;
		if (node_id_equal(&info->id, &net->nodes[about].card.id))
			return info->state;
	}
}
