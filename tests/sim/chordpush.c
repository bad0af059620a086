/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/chordpush.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	FAST_BYTES_MS = 125000, /* 1 Gbit/s */
	SLOW_BYTES_MS = 12500,
	SLOW_ONE_OF = 5,
	BYTES_MIN = 10 * 1000 * 1000,
	BYTES_SPREAD = 80 * 1000 * 1000,
	STALL_MS = 5000, /* until a silent holder is given up */
	TRIES_MAX = 60,
	NONE = -1,
};

static const uint64_t our_id = UINT64_C(1) << 63;

enum copy_state { COPY_WANTED, COPY_FLOWING, COPY_WHOLE };

struct one {
	bool used, asking;
	uint32_t host, tries, serial;
	int32_t next, prev; /* of this host */
	uint64_t bytes, start_ms;
	enum copy_state copies[CHORDPUSH_COPIES];
	uint32_t holders[CHORDPUSH_COPIES];
};

struct retry {
	uint64_t when_ms;
	uint32_t index, serial;
};

struct chordpush {
	struct chordnet *net;
	struct flows *flows;
	struct chordpush_sums sums;
	uint32_t hosts, *rates; /* bytes per ms */
	int32_t *first;		/* push of a host, or NONE */
	struct one *ones;
	uint32_t room, in_flight, serial;
	int32_t spare;
	double gap_ms, next_ms;
	/* All wait equally long, so they come in order: a ring. */
	struct retry *retries;
	uint32_t retry_at, retry_count, retry_room;
};

static void *checked(void *memory)
{
	if (!memory) {
		fprintf(stderr, "chordpush: out of memory\n");
		abort();
	}
	return memory;
}

static void retry_later(struct chordpush *push, uint32_t index)
{
	struct retry *retry;

	if (push->retry_count == push->retry_room) {
		struct retry *old = push->retries;
		uint32_t room = push->retry_room ? 2 * push->retry_room : 64;

		push->retries = checked(calloc(room, sizeof(*old)));
		for (uint32_t i = 0; i < push->retry_count; i++)
			push->retries[i] = old[(push->retry_at + i) % push->retry_room];
		free(old);
		push->retry_room = room;
		push->retry_at = 0;
	}
	retry = &push->retries[(push->retry_at + push->retry_count++) % push->retry_room];
	*retry = (struct retry){ .when_ms = chordnet_now(push->net) + STALL_MS,
				 .index = index,
				 .serial = push->ones[index].serial };
}

static void forget(struct chordpush *push, uint32_t index)
{
	struct one *one = &push->ones[index];

	if (one->prev == NONE)
		push->first[one->host] = one->next;
	else
		push->ones[one->prev].next = one->next;
	if (one->next != NONE)
		push->ones[one->next].prev = one->prev;
	one->used = false;
	one->next = push->spare;
	push->spare = (int32_t)index;
	push->in_flight--;
}

static void finish(struct chordpush *push, uint32_t index)
{
	const struct one *one = &push->ones[index];

	push->sums.durable++;
	push->sums.durable_ms += chordnet_now(push->net) - one->start_ms;
	push->sums.ideal_ms += CHORDPUSH_COPIES * one->bytes / push->rates[one->host];
	forget(push, index);
}

static void on_end(void *ctx, uint64_t tag, bool whole, uint64_t bytes_left)
{
	struct chordpush *push = ctx;
	uint32_t index = (uint32_t)(tag / CHORDPUSH_COPIES), copy = tag % CHORDPUSH_COPIES;
	struct one *one = &push->ones[index];

	one->copies[copy] = whole ? COPY_WHOLE : COPY_WANTED;
	if (!whole) {
		push->sums.wasted_bytes += one->bytes - bytes_left;
		if (!chordnet_is_up(push->net, one->host))
			return; /* chordpush_crash() sees to it */
		push->sums.restarts++;
		retry_later(push, index);
		return;
	}
	push->sums.bytes += one->bytes;
	for (uint32_t i = 0; i < CHORDPUSH_COPIES; i++)
		if (one->copies[i] != COPY_WHOLE)
			return;
	finish(push, index);
}

static void ask(struct chordpush *push, uint32_t index)
{
	struct one *one = &push->ones[index];
	struct ring_key key = { chordnet_random(push->net), chordnet_random(push->net) };
	uint64_t id = our_id | (uint64_t)index << 32 | one->serial;

	if (one->asking)
		return;
	if (one->tries++ == TRIES_MAX) {
		for (uint32_t i = 0; i < CHORDPUSH_COPIES; i++)
			if (one->copies[i] == COPY_FLOWING) {
				one->tries--; /* not before that one is through */
				retry_later(push, index);
				return;
			}
		push->sums.given_up++;
		forget(push, index);
		return;
	}
	one->asking = true;
	if (chordnet_find(push->net, one->host, key, OV_REPLICAS_MAX, id) == -EINPROGRESS)
		return;
	one->asking = false;
	retry_later(push, index);
}

static void begin(struct chordpush *push)
{
	struct one *one;
	uint32_t index;

	if (push->spare == NONE) {
		uint32_t old = push->room;

		push->room = old ? 2 * old : 1024;
		push->ones = checked(realloc(push->ones, push->room * sizeof(*one)));
		for (uint32_t i = push->room; i-- > old;) {
			push->ones[i].next = push->spare;
			push->spare = (int32_t)i;
		}
	}
	index = (uint32_t)push->spare;
	one = &push->ones[index];
	push->spare = one->next;
	memset(one, 0, sizeof(*one));
	one->used = true;
	one->serial = ++push->serial;
	one->host = chordnet_member_from(push->net, chordnet_below(push->net, push->hosts));
	one->bytes = BYTES_MIN + chordnet_below(push->net, BYTES_SPREAD);
	one->start_ms = chordnet_now(push->net);
	one->prev = NONE;
	one->next = push->first[one->host];
	if (one->next != NONE)
		push->ones[one->next].prev = (int32_t)index;
	push->first[one->host] = (int32_t)index;
	push->in_flight++;
	push->sums.pushes++;
	ask(push, index);
}

static bool is_taken(const struct one *one, uint32_t host)
{
	for (uint32_t i = 0; i < CHORDPUSH_COPIES; i++)
		if (one->copies[i] != COPY_WANTED && one->holders[i] == host)
			return true;
	return host == one->host;
}

bool chordpush_is_ours(uint64_t request_id)
{
	return request_id & our_id;
}

void chordpush_result(struct chordpush *push, const struct lookup_result *result)
{
	uint32_t index = (uint32_t)(result->request_id >> 32 & INT32_MAX);
	struct one *one = &push->ones[index];
	uint32_t at = 0;
	bool again = false;

	if (!one->used || one->serial != (uint32_t)result->request_id)
		return;
	one->asking = false;
	for (uint32_t i = 0; i < CHORDPUSH_COPIES; i++) {
		if (one->copies[i] != COPY_WANTED)
			continue;
		while (at < result->count && is_taken(one, chordnet_host(&result->nodes[at])))
			at++;
		if (result->status || at == result->count) {
			again = true;
			continue;
		}
		one->holders[i] = chordnet_host(&result->nodes[at++]);
		if (!chordnet_is_up(push->net, one->holders[i])) {
			push->sums.restarts++;
			again = true;
			continue;
		}
		one->copies[i] = COPY_FLOWING;
		flows_start(push->flows, chordnet_now(push->net), one->host, one->holders[i],
			    one->bytes, (uint64_t)index * CHORDPUSH_COPIES + i);
	}
	if (again)
		retry_later(push, index);
	if (push->sums.flows_max < flows_count(push->flows))
		push->sums.flows_max = flows_count(push->flows);
}

void chordpush_crash(struct chordpush *push, uint32_t host)
{
	flows_break(push->flows, chordnet_now(push->net), host);
	while (push->first[host] != NONE) {
		push->sums.lost++;
		forget(push, (uint32_t)push->first[host]);
	}
}

static double gap(struct chordpush *push)
{
	double u = (double)((chordnet_random(push->net) >> 11) + 1) / 9007199254740993.0;

	return -push->gap_ms * log(u);
}

uint64_t chordpush_next_ms(const struct chordpush *push)
{
	uint64_t next_ms = flows_next_ms(push->flows);

	if (push->gap_ms > 0 && (uint64_t)push->next_ms < next_ms)
		next_ms = (uint64_t)push->next_ms;
	if (push->retry_count && push->retries[push->retry_at].when_ms < next_ms)
		next_ms = push->retries[push->retry_at].when_ms;
	return next_ms;
}

void chordpush_run(struct chordpush *push)
{
	uint64_t now_ms = chordnet_now(push->net);

	flows_run(push->flows, now_ms);
	while (push->retry_count && push->retries[push->retry_at].when_ms <= now_ms) {
		struct retry retry = push->retries[push->retry_at];
		const struct one *one = &push->ones[retry.index];

		push->retry_at = (push->retry_at + 1) % push->retry_room;
		push->retry_count--;
		if (one->used && one->serial == retry.serial)
			ask(push, retry.index);
	}
	while (push->gap_ms > 0 && (uint64_t)push->next_ms <= now_ms) {
		begin(push);
		push->next_ms += gap(push);
	}
}

struct chordpush *chordpush_create(struct chordnet *net, uint32_t hosts, uint32_t members,
				   uint32_t interval_ms, uint64_t first_ms)
{
	struct chordpush *push = checked(calloc(1, sizeof(*push)));

	push->net = net;
	push->hosts = hosts;
	push->spare = NONE;
	push->gap_ms = (double)interval_ms / members;
	push->next_ms = (double)first_ms;
	push->flows = flows_create(hosts, on_end, push);
	push->rates = checked(calloc(hosts, sizeof(push->rates[0])));
	push->first = checked(calloc(hosts, sizeof(push->first[0])));
	for (uint32_t i = 0; i < hosts; i++) {
		push->rates[i] = chordnet_below(net, SLOW_ONE_OF) ? FAST_BYTES_MS : SLOW_BYTES_MS;
		flows_set_host(push->flows, i, push->rates[i], push->rates[i]);
		push->first[i] = NONE;
	}
	return push;
}

void chordpush_destroy(struct chordpush *push)
{
	if (!push)
		return;
	flows_destroy(push->flows);
	free(push->rates);
	free(push->first);
	free(push->ones);
	free(push->retries);
	free(push);
}

void chordpush_stop(struct chordpush *push)
{
	push->gap_ms = 0;
}

uint32_t chordpush_in_flight(const struct chordpush *push)
{
	return push->in_flight;
}

const struct chordpush_sums *chordpush_sums(const struct chordpush *push)
{
	return &push->sums;
}
