/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/flow.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { UP, DOWN, ENDS };
enum { NONE = UINT32_MAX, SHIFT = 10 };

struct link {
	uint64_t capacity; /* per ms, in 1/1024 bytes */
	uint64_t left;	   /* of it, while shares are computed */
	uint32_t first;	   /* flow */
	uint32_t open;	   /* flows whose share is not known yet */
	uint64_t mark;
};

struct flow {
	uint32_t links[ENDS], next[ENDS], prev[ENDS];
	uint64_t tag, left, rate; /* left: at since_ms, in 1/1024 bytes */
	uint64_t since_ms, due_ms;
	uint64_t mark, order;
	uint32_t place; /* in the heap */
	bool fixed;
};

struct flows {
	flow_end *end;
	void *ctx;
	struct link *links; /* two of each host */
	struct flow *flows;
	uint32_t *heap;		/* by due_ms, then by start */
	uint32_t *part, *stack; /* flows, links: of the part that is computed */
	uint32_t host_count, count, room, spare;
	uint64_t mark, order;
};

static void *checked(void *memory)
{
	if (!memory) {
		fprintf(stderr, "flow: out of memory\n");
		abort();
	}
	return memory;
}

struct flows *flows_create(uint32_t hosts, flow_end *end, void *ctx)
{
	struct flows *f = checked(calloc(1, sizeof(*f)));

	f->end = end;
	f->ctx = ctx;
	f->host_count = hosts;
	f->spare = NONE;
	f->links = checked(calloc(2 * (size_t)hosts, sizeof(f->links[0])));
	f->stack = checked(calloc(2 * (size_t)hosts, sizeof(f->stack[0])));
	for (uint32_t i = 0; i < 2 * hosts; i++)
		f->links[i].first = NONE;
	return f;
}

void flows_destroy(struct flows *f)
{
	if (!f)
		return;
	free(f->links);
	free(f->stack);
	free(f->flows);
	free(f->heap);
	free(f->part);
	free(f);
}

void flows_set_host(struct flows *f, uint32_t host, uint32_t up, uint32_t down)
{
	f->links[2 * host + UP].capacity = (uint64_t)up << SHIFT;
	f->links[2 * host + DOWN].capacity = (uint64_t)down << SHIFT;
}

static bool is_sooner(const struct flow *a, const struct flow *b)
{
	return a->due_ms != b->due_ms ? a->due_ms < b->due_ms : a->order < b->order;
}

static void heap_put(struct flows *f, uint32_t at, uint32_t flow)
{
	f->heap[at] = flow;
	f->flows[flow].place = at;
}

/* Puts a flow where it belongs, beginning at a place that is free. */
static void heap_settle(struct flows *f, uint32_t at, uint32_t flow)
{
	const struct flow *me = &f->flows[flow];

	for (; at && is_sooner(me, &f->flows[f->heap[(at - 1) / 2]]); at = (at - 1) / 2)
		heap_put(f, at, f->heap[(at - 1) / 2]);
	for (;;) {
		uint32_t child = 2 * at + 1;

		if (child + 1 < f->count &&
		    is_sooner(&f->flows[f->heap[child + 1]], &f->flows[f->heap[child]]))
			child++;
		if (child >= f->count || !is_sooner(&f->flows[f->heap[child]], me))
			break;
		heap_put(f, at, f->heap[child]);
		at = child;
	}
	heap_put(f, at, flow);
}

/* All flows that share a link with this link's, and so on. Returns how many; links in f->stack. */
static uint32_t gather(struct flows *f, const uint32_t *from, uint32_t *ret_links)
{
	uint32_t links = 0, count = 0;

	f->mark++;
	for (uint32_t i = 0; i < ENDS; i++) {
		f->links[from[i]].mark = f->mark;
		f->stack[links++] = from[i];
	}
	for (uint32_t at = 0; at < links; at++) {
		struct link *link = &f->links[f->stack[at]];
		uint32_t end = f->stack[at] % 2, id;

		link->left = link->capacity;
		link->open = 0;
		for (id = link->first; id != NONE; id = f->flows[id].next[end]) {
			struct flow *flow = &f->flows[id];
			struct link *other = &f->links[flow->links[!end]];

			link->open++;
			if (flow->mark != f->mark)
				f->part[count++] = id;
			flow->mark = f->mark;
			if (other->mark != f->mark)
				f->stack[links++] = flow->links[!end];
			other->mark = f->mark;
		}
	}
	*ret_links = links;
	return count;
}

static void set_rate(struct flows *f, uint32_t id, uint64_t rate, uint64_t now_ms)
{
	struct flow *flow = &f->flows[id];
	uint64_t moved = flow->rate * (now_ms - flow->since_ms);

	flow->left -= moved < flow->left ? moved : flow->left;
	flow->since_ms = now_ms;
	flow->rate = rate;
	flow->fixed = true;
	flow->due_ms = rate ? now_ms + (flow->left + rate - 1) / rate : UINT64_MAX;
	heap_settle(f, flow->place, id);
	for (uint32_t i = 0; i < ENDS; i++) {
		f->links[flow->links[i]].left -= rate;
		f->links[flow->links[i]].open--;
	}
}

/* The flows on the fullest link get its share, for good; then the rest among what is left. */
static void share(struct flows *f, const uint32_t *from, uint64_t now_ms)
{
	uint32_t links, count = gather(f, from, &links);

	for (uint32_t i = 0; i < count; i++)
		f->flows[f->part[i]].fixed = false;
	while (count) {
		const struct link *best = NULL;
		uint32_t id, end = 0;
		uint64_t rate = UINT64_MAX;

		for (uint32_t i = 0; i < links; i++) {
			const struct link *link = &f->links[f->stack[i]];

			if (!link->open || link->left / link->open >= rate)
				continue;
			rate = link->left / link->open;
			best = link;
			end = f->stack[i] % 2;
		}
		if (!best)
			return;
		for (id = best->first; id != NONE; id = f->flows[id].next[end])
			if (!f->flows[id].fixed) {
				set_rate(f, id, rate, now_ms);
				count--;
			}
	}
}

static void grow(struct flows *f)
{
	uint32_t old = f->room;

	f->room = old ? 2 * old : 256;
	f->flows = checked(realloc(f->flows, f->room * sizeof(f->flows[0])));
	f->heap = checked(realloc(f->heap, f->room * sizeof(f->heap[0])));
	f->part = checked(realloc(f->part, f->room * sizeof(f->part[0])));
	for (uint32_t i = f->room; i-- > old;) {
		f->flows[i].next[UP] = f->spare;
		f->spare = i;
	}
}

void flows_start(struct flows *f, uint64_t now_ms, uint32_t from, uint32_t to, uint64_t bytes,
		 uint64_t tag)
{
	uint32_t links[ENDS] = { 2 * from + UP, 2 * to + DOWN }, id;
	struct flow *flow;

	if (from == to || from >= f->host_count || to >= f->host_count)
		abort();
	if (f->spare == NONE)
		grow(f);
	id = f->spare;
	flow = &f->flows[id];
	f->spare = flow->next[UP];
	memset(flow, 0, sizeof(*flow));
	flow->tag = tag;
	flow->left = bytes << SHIFT;
	flow->since_ms = now_ms;
	flow->due_ms = UINT64_MAX;
	flow->order = ++f->order;
	for (uint32_t i = 0; i < ENDS; i++) {
		struct link *link = &f->links[links[i]];

		flow->links[i] = links[i];
		flow->prev[i] = NONE;
		flow->next[i] = link->first;
		if (link->first != NONE)
			f->flows[link->first].prev[i] = id;
		link->first = id;
	}
	f->count++;
	heap_settle(f, f->count - 1, id);
	share(f, links, now_ms);
}

static void take_out(struct flows *f, uint32_t id, uint64_t now_ms, bool whole)
{
	struct flow *flow = &f->flows[id];
	uint32_t links[ENDS] = { flow->links[UP], flow->links[DOWN] };
	uint32_t last = f->heap[--f->count], place = flow->place;
	uint64_t moved = flow->rate * (now_ms - flow->since_ms), tag = flow->tag;
	uint64_t left = moved < flow->left ? flow->left - moved : 0;

	if (last != id)
		heap_settle(f, place, last);
	for (uint32_t i = 0; i < ENDS; i++) {
		if (flow->prev[i] == NONE)
			f->links[links[i]].first = flow->next[i];
		else
			f->flows[flow->prev[i]].next[i] = flow->next[i];
		if (flow->next[i] != NONE)
			f->flows[flow->next[i]].prev[i] = flow->prev[i];
	}
	flow->next[UP] = f->spare;
	f->spare = id;
	share(f, links, now_ms);
	f->end(f->ctx, tag, whole, whole ? 0 : left >> SHIFT);
}

void flows_break(struct flows *f, uint64_t now_ms, uint32_t host)
{
	for (uint32_t end = 0; end < ENDS; end++)
		while (f->links[2 * host + end].first != NONE)
			take_out(f, f->links[2 * host + end].first, now_ms, false);
}

uint64_t flows_next_ms(const struct flows *f)
{
	return f->count ? f->flows[f->heap[0]].due_ms : UINT64_MAX;
}

void flows_run(struct flows *f, uint64_t now_ms)
{
	while (f->count && f->flows[f->heap[0]].due_ms <= now_ms)
		take_out(f, f->heap[0], f->flows[f->heap[0]].due_ms, true);
}

uint32_t flows_count(const struct flows *f)
{
	return f->count;
}

uint64_t flows_rate_up(const struct flows *f, uint32_t host)
{
	uint64_t rate = 0;
	uint32_t id;

	for (id = f->links[2 * host + UP].first; id != NONE; id = f->flows[id].next[UP])
		rate += f->flows[id].rate;
	return rate >> SHIFT;
}
