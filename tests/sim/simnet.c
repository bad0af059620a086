/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/simnet.h"

#include <stdlib.h>
#include <string.h>

#include "overlay/ipc.h"

enum event_type { EVENT_MESSAGE = 1, EVENT_ACTION };
/* look_ahead(): below so many nodes, all is in a cache anyway. */
enum { GLANCE_NODES = 100, GLANCE_MS = 16, GLANCE_FAR = 10, GLANCE_NEAR = 4 };

struct simnet_event {
	enum event_type type;
	uint32_t from, to, life, size_class;
	size_t size;
	uint64_t argument;
	simnet_action *action;
	struct simnet_event *next; /* spare ones */
	void *ctx;
	uint8_t bytes[];
};

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static uint64_t dice_next(struct simnet_dice *dice)
{
	return mix(dice->state += UINT64_C(0x9e3779b97f4a7c15));
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
	return ppm && simnet_below(net, 1000000) < ppm;
}

static bool slot_before(const struct simnet_slot *a, const struct simnet_slot *b)
{
	return a->when_ms != b->when_ms ? a->when_ms < b->when_ms : a->seq < b->seq;
}

/* A heap with four children a node: half the depth, and the children share a cache line or two. */
static void heap_push(struct simnet *net, uint64_t when_ms, struct simnet_item item)
{
	struct simnet_slot slot = { .when_ms = when_ms, .seq = ++net->seq, .item = item };
	size_t at = net->heap_count++;

	if (net->heap_count > net->heap_room) {
		net->heap_room = net->heap_room ? 2 * net->heap_room : 1024;
		net->heap = realloc(net->heap, net->heap_room * sizeof(net->heap[0]));
		if (!net->heap)
			simnet_die("out of memory");
	}
	while (at > 0 && slot_before(&slot, &net->heap[(at - 1) / 4])) {
		net->heap[at] = net->heap[(at - 1) / 4];
		at = (at - 1) / 4;
	}
	net->heap[at] = slot;
}

static struct simnet_slot heap_pop(struct simnet *net)
{
	struct simnet_slot first = net->heap[0], last = net->heap[--net->heap_count];
	size_t at = 0;

	for (;;) {
		size_t child = 4 * at + 1, end = child + 4, best = child;

		if (child >= net->heap_count)
			break;
		if (end > net->heap_count)
			end = net->heap_count;
		for (size_t i = child + 1; i < end; i++)
			if (slot_before(&net->heap[i], &net->heap[best]))
				best = i;
		if (!slot_before(&net->heap[best], &last))
			break;
		net->heap[at] = net->heap[best];
		at = best;
	}
	net->heap[at] = last;
	return first;
}

static void wheel_add(struct simnet *net, uint64_t when_ms, struct simnet_item item)
{
	struct simnet_list *list = &net->wheel[when_ms % SIMNET_WHEEL_MS];

	if (list->count == list->room) {
		list->room = list->room ? 2 * list->room : 8;
		list->items = realloc(list->items, list->room * sizeof(list->items[0]));
		if (!list->items)
			simnet_die("out of memory");
	}
	list->items[list->count++] = item;
	net->busy[when_ms % SIMNET_WHEEL_MS / 64] |= UINT64_C(1) << when_ms % 64;
	net->wheel_count++;
}

static void push_item(struct simnet *net, uint64_t when_ms, struct simnet_item item)
{
	if (when_ms < net->wheel_ms + SIMNET_WHEEL_MS)
		wheel_add(net, when_ms, item);
	else
		heap_push(net, when_ms, item);
}

static void push(struct simnet *net, uint64_t when_ms, struct simnet_event *event)
{
	bool message = event->type == EVENT_MESSAGE;
	struct simnet_item item = {
		.event = event,
		.to = message ? event->to : SIMNET_NODES_MAX,
		.from = message ? event->from : SIMNET_NODES_MAX,
	};

	push_item(net, when_ms, item);
}

static void push_tick(struct simnet *net, uint64_t when_ms, uint32_t node)
{
	struct simnet_item item = { .to = node, .from = SIMNET_NODES_MAX };

	net->ticks[node].at_ms = when_ms;
	push_item(net, when_ms, item);
}

static void wheel_turn(struct simnet *net, uint64_t to_ms)
{
	net->wheel_ms = to_ms;
	while (net->heap_count && net->heap[0].when_ms < to_ms + SIMNET_WHEEL_MS) {
		struct simnet_slot slot = heap_pop(net);

		wheel_add(net, slot.when_ms, slot.item);
	}
}

/* The first list that is not empty, from that one on and before the wheel's end; or the end. */
static uint64_t next_busy(const struct simnet *net, uint64_t from_ms)
{
	uint64_t end_ms = net->wheel_ms + SIMNET_WHEEL_MS;

	while (from_ms < end_ms) {
		uint64_t bit = from_ms % SIMNET_WHEEL_MS;
		uint64_t word = net->busy[bit / 64] >> bit % 64;

		if (word)
			break;
		from_ms += 64 - bit % 64;
	}
	if (from_ms >= end_ms)
		return end_ms;
	from_ms += (uint64_t)__builtin_ctzll(net->busy[from_ms % SIMNET_WHEEL_MS / 64] >>
					     from_ms % 64);
	return from_ms < end_ms ? from_ms : end_ms;
}

/* The next one that is due until then, or false. */
static bool pop(struct simnet *net, uint64_t until_ms, struct simnet_item *ret_item)
{
	struct simnet_list *list = &net->wheel[net->wheel_ms % SIMNET_WHEEL_MS];

	while (list->taken == list->count) {
		uint64_t bit = net->wheel_ms % SIMNET_WHEEL_MS, next_ms;

		list->taken = list->count = 0;
		net->busy[bit / 64] &= ~(UINT64_C(1) << bit % 64);
		if (net->wheel_ms >= until_ms)
			return false;
		if (net->wheel_count)
			next_ms = next_busy(net, net->wheel_ms + 1);
		else
			next_ms = net->heap_count ? net->heap[0].when_ms : until_ms;
		wheel_turn(net, next_ms < until_ms ? next_ms : until_ms);
		list = &net->wheel[net->wheel_ms % SIMNET_WHEEL_MS];
	}
	net->wheel_count--;
	*ret_item = list->items[list->taken++];
	return true;
}

static void prefetch(const void *memory, size_t size)
{
	for (size_t at = 0; at < size; at += 64)
		__builtin_prefetch((const uint8_t *)memory + at, 1);
}

/* False: it was called off. */
static bool glance(struct simnet *net, const struct simnet_item *item, uint64_t ms, uint32_t stage)
{
	const struct simnet_node *to = &net->nodes[item->to % SIMNET_NODES_MAX];
	const struct node_id *from = NULL;

	if (!item->event && net->ticks[item->to].at_ms != ms)
		return false;
	if (stage == 0 && item->event)
		prefetch(item->event, 128);
	if (item->to == SIMNET_NODES_MAX)
		return true;
	if (stage == 0)
		prefetch(to, offsetof(struct simnet_node, card));
	if (item->from < SIMNET_NODES_MAX)
		from = &net->ids[item->from];
	if (to->core)
		core_prefetch(to->core, from, stage);
	return true;
}

/*
 * A thousand cores do not fit a cache, and each event is another one's. What the next few will
 * touch is asked for while others are handled: first what can be found at once, and nearer to the
 * event, what the first look led to. Changes nothing but the time it takes.
 */
static void look_ahead(struct simnet *net, uint32_t stage, uint32_t far)
{
	struct simnet_glance *g = &net->glances[stage];
	const struct simnet_list *now = &net->wheel[net->wheel_ms % SIMNET_WHEEL_MS];

	if (g->ms < net->wheel_ms || (g->ms == net->wheel_ms && g->at < now->taken)) {
		g->ms = net->wheel_ms;
		g->at = now->taken;
		g->ahead = 0;
	} else if (g->ahead) {
		g->ahead--;
	}
	while (g->ahead < far && g->ms < net->wheel_ms + GLANCE_MS) {
		const struct simnet_list *list = &net->wheel[g->ms % SIMNET_WHEEL_MS];

		if (g->at < list->count) {
			g->ahead += glance(net, &list->items[g->at++], g->ms, stage);
		} else {
			g->ms = next_busy(net, g->ms + 1);
			g->at = 0;
		}
	}
}

static struct simnet_event *event_new(struct simnet *net, enum event_type type, size_t size)
{
	uint32_t class = 0;
	struct simnet_event *event;

	while ((size_t)64 << class < size)
		class ++;
	event = net->spare[class];
	if (event)
		net->spare[class] = event->next;
	else
		event = malloc(sizeof(*event) + ((size_t)64 << class));
	if (!event)
		simnet_die("out of memory");
	memset(event, 0, sizeof(*event));
	event->type = type;
	event->size = size;
	event->size_class = class;
	return event;
}

static void event_free(struct simnet *net, struct simnet_event *event)
{
	event->next = net->spare[event->size_class];
	net->spare[event->size_class] = event;
}

void simnet_at(struct simnet *net, uint64_t when_ms, simnet_action *action, void *ctx,
	       uint64_t argument)
{
	struct simnet_event *event = event_new(net, EVENT_ACTION, 0);

	event->action = action;
	event->ctx = ctx;
	event->argument = argument;
	push(net, when_ms, event);
}

bool simnet_hears(const struct simnet *net, uint32_t to, uint32_t from)
{
	const struct simnet_node *a = &net->nodes[from], *b = &net->nodes[to];

	if (a == b)
		return true;
	if (a->mute || b->deaf)
		return false;
	return a->group == b->group || (net->one_way && a->group < b->group);
}

/* The way from one host to another takes its own time, always the same, and some jitter. */
static uint64_t latency_ms(struct simnet *net, uint32_t from, uint32_t to)
{
	uint64_t pair = net->seed ^ mix((uint64_t)from << 32 | (to + 1));
	uint32_t base = (uint32_t)(mix(pair) % (net->rates.latency_ms / 2 + 1));

	return 1 + base + simnet_below(net, net->rates.latency_ms / 2 + 1);
}

static void send_one(struct simnet *net, uint32_t from, uint32_t to, const struct core_send *send)
{
	const struct simnet_rates *rates = &net->rates;
	uint64_t delay = latency_ms(net, from, to);
	struct simnet_event *event;

	if (simnet_chance(net, rates->slow_ppm))
		delay += simnet_below(net, rates->slow_ms);
	event = event_new(net, EVENT_MESSAGE, send->size);
	event->from = from;
	event->to = to;
	event->life = net->nodes[from].ids; /* of the sender: an old id speaks no more */
	memcpy(event->bytes, send->bytes, send->size);
	push(net, net->now_ms + delay, event);
}

static void send_message(struct simnet *net, uint32_t from, const struct core_send *send)
{
	uint32_t to = simnet_index(net, &send->to);

	net->message_count++;
	if (net->hooks.sent && !net->hooks.sent(net->hooks.ctx, from, send))
		return;
	if (to == SIMNET_NODES_MAX || simnet_chance(net, net->rates.loss_ppm))
		return;
	send_one(net, from, to, send);
	if (simnet_chance(net, net->rates.double_ppm))
		send_one(net, from, to, send);
}

/* Writes first; only then does anything of the update leave the host. */
static void carry_out(struct simnet *net, uint32_t node, const struct core_update *update)
{
	const struct simnet_hooks *hooks = &net->hooks;
	bool torn = update->write_count && simnet_chance(net, net->rates.torn_ppm);

	for (uint32_t i = 0; i < update->write_count; i++)
		if (!torn || simnet_chance(net, 500000))
			simnet_disk_write(net, node, &update->writes[i]);
#ifdef MUTANT_W1
	for (uint32_t i = 0; torn && i < update->send_count; i++)
		send_message(net, node, &update->sends[i]);
#endif
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
	const struct simnet_node *n = &net->nodes[node];
	struct simnet_tick *tick = &net->ticks[node];
	uint64_t due = core_deadline(n->core), local, rate, wait_ms = 0;

	if (tick->at_ms > net->now_ms && tick->deadline_ms == due)
		return;
	tick->at_ms = 0;
	tick->deadline_ms = due;
	if (due == UINT64_MAX)
		return;
	/* As long as its clock takes for that, and never at once. */
	local = simnet_local_ms(net, node);
	rate = (uint64_t)(1000000 + n->rate_ppm);
	if (due > local)
		wait_ms = ((due - local) * 1000000 + rate - 1) / rate;
	push_tick(net, net->now_ms + (wait_ms ? wait_ms : 1), node);
}

int simnet_step(struct simnet *net, uint32_t node, struct core_event *event)
{
	struct simnet_node *n = &net->nodes[node];
	const struct core_update *update;
	struct core_update copy;
	uint32_t life = n->life;
	int r;

	event->now_ms = simnet_local_ms(net, node);
	event->boot_ns = event->now_ms * UINT64_C(1000000);
	/* All cores share the memory of updates: one is carried out before the next is made. */
	if (net->stepping)
		simnet_die("a step inside a step");
	net->stepping = true;
	r = core_step(n->core, event, &update);
	copy = *update;
	if (r == 0)
		carry_out(net, node, &copy);
	net->stepping = false;
	if (r < 0)
		return r;
	if (n->core && n->life == life)
		schedule_tick(net, node);
	return 0;
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

	if (simnet_step(net, node, &event) < 0)
		simnet_die("request");
}

static void deliver(struct simnet *net, struct simnet_event *event)
{
	struct simnet_node *from = &net->nodes[event->from];
	struct core_event core_event = {
		.type = CORE_EV_MESSAGE,
		.node = from->card.id,
		.bytes = event->bytes,
		.size = event->size,
	};

	if (!simnet_hears(net, event->to, event->from) || from->ids != event->life)
		return;
	if (simnet_step(net, event->to, &core_event) < 0)
		simnet_die("a core could not read another core's message");
}

static void tick(struct simnet *net, uint32_t node)
{
	struct core_event core_event = { .type = CORE_EV_TICK };

	net->ticks[node].at_ms = 0;
	if (core_deadline(net->nodes[node].core) > simnet_local_ms(net, node)) {
		schedule_tick(net, node); /* it was put off */
		return;
	}
	if (simnet_step(net, node, &core_event) < 0)
		simnet_die("tick");
}

/* An event of a host. False: the host stands still, and the event waits at the door, in order. */
static bool handle(struct simnet *net, const struct simnet_item *item)
{
	const struct simnet_node *to = &net->nodes[item->to];

	if (!to->core)
		return true;
	if (to->paused_until_ms > net->now_ms) {
		if (item->event)
			push(net, to->paused_until_ms, item->event);
		else
			push_tick(net, to->paused_until_ms, item->to);
		return false;
	}
	if (item->event)
		deliver(net, item->event);
	else
		tick(net, item->to);
	return true;
}

void simnet_run(struct simnet *net, uint64_t until_ms)
{
	struct simnet_item item;

	while (pop(net, until_ms, &item)) {
		if (!item.event && net->ticks[item.to].at_ms != net->wheel_ms)
			continue;
		if (net->node_count >= GLANCE_NODES) {
			look_ahead(net, 0, GLANCE_FAR);
			look_ahead(net, 1, GLANCE_NEAR);
		}
		net->now_ms = net->wheel_ms;
		net->event_count++;
		if (item.to == SIMNET_NODES_MAX)
			item.event->action(item.event->ctx, item.event->argument);
		else if (!handle(net, &item))
			continue;
		if (net->hooks.after)
			net->hooks.after(net->hooks.ctx);
		if (item.event)
			event_free(net, item.event);
	}
	net->now_ms = until_ms;
}

struct simnet *simnet_create(uint64_t seed, uint32_t count, const struct simnet_rates *rates,
			     const struct simnet_hooks *hooks)
{
	struct simnet *net = calloc(1, sizeof(*net));

	if (!net || count > SIMNET_NODES_MAX)
		simnet_die("out of memory");
	net->nodes = calloc(count, sizeof(net->nodes[0]));
	net->ids = calloc(count, sizeof(net->ids[0]));
	net->ticks = calloc(count, sizeof(net->ticks[0]));
	net->scratch = calloc(1, core_scratch_size());
	if (!net->nodes || !net->ids || !net->ticks || !net->scratch)
		simnet_die("out of memory");
	net->seed = net->dice.state = seed;
	net->node_count = count;
	net->rates = *rates;
	net->probe_ms = 1000;
	net->suspect_ms = 4000;
	if (hooks)
		net->hooks = *hooks;
	for (uint32_t i = 0; i < count; i++)
		simnet_node_init(net, i);
	return net;
}

void simnet_destroy(struct simnet *net)
{
	for (uint32_t i = 0; i < net->node_count; i++) {
		simnet_core_free(&net->nodes[i]);
		simnet_disk_free(&net->nodes[i].disk);
		simnet_disk_free(&net->nodes[i].snapshot);
	}
	while (net->heap_count)
		free(net->heap[--net->heap_count].item.event);
	for (uint32_t i = 0; i < SIMNET_WHEEL_MS; i++) {
		struct simnet_list *list = &net->wheel[i];

		while (list->taken < list->count)
			free(list->items[list->taken++].event);
		free(list->items);
	}
	for (uint32_t i = 0; i < SIMNET_SIZES; i++)
		while (net->spare[i]) {
			struct simnet_event *event = net->spare[i];

			net->spare[i] = event->next;
			free(event);
		}
	free(net->heap);
	free(net->scratch);
	free(net->nodes);
	free(net->ids);
	free(net->ticks);
	free(net);
}
