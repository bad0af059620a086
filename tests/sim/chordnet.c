/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/chordnet.h"

#include "overlay/core/chord_codec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	SLOTS = 1 << 16, /* of 1 ms */
	CHUNK = 1 << 12, /* events that are allocated at a time */
	SMALL = 192,	 /* bytes of most messages */
	CLASSES = 3,
	NOTHING = 0,
};

/* A reference is 1 + (index * CLASSES + class). */
struct event {
	uint32_t next;
	uint32_t target;
	uint32_t from;
	uint16_t size;
	uint8_t kind; /* class: 0 timer, 1 small message, 2 large message */
	uint8_t for_lookup;
	uint8_t bytes[];
};

static const size_t event_bytes[CLASSES] = {
	sizeof(struct event),
	sizeof(struct event) + SMALL,
	sizeof(struct event) + CHORD_MESSAGE_MAX,
};

struct pool {
	uint8_t **chunks;
	uint32_t chunk_count, used, free;
};

struct slot {
	uint32_t first, last;
};

struct host {
	struct node_id id;
	uint64_t timer_ms; /* of its timer in the wheel that counts; 0: none */
	bool up, liar;
};

struct chordnet {
	struct chordnet_config config;
	chordnet_result *result;
	void *ctx;
	uint64_t now_ms, random;
	struct chordnet_counts counts;
	struct host *hosts;
	uint8_t *chords;
	size_t chord_stride;
	uint64_t *members; /* bits */
	uint32_t member_count;
	struct pool pools[CLASSES];
	struct chord_update update;
	struct slot slots[SLOTS];
};

static uint64_t mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static void *checked(void *memory)
{
	if (!memory) {
		fprintf(stderr, "chordnet: out of memory\n");
		abort();
	}
	return memory;
}

uint64_t chordnet_now(const struct chordnet *net)
{
	return net->now_ms;
}

uint64_t chordnet_random(struct chordnet *net)
{
	return mix(net->random++);
}

uint32_t chordnet_below(struct chordnet *net, uint32_t limit)
{
	return (uint32_t)((chordnet_random(net) >> 32) * limit >> 32);
}

const struct chordnet_counts *chordnet_counts(const struct chordnet *net)
{
	return &net->counts;
}

static struct chord *chord_of(const struct chordnet *net, uint32_t host)
{
	return (struct chord *)(net->chords + host * net->chord_stride);
}

const struct chord *chordnet_chord(const struct chordnet *net, uint32_t host)
{
	return chord_of(net, host);
}

uint32_t chordnet_host(const struct node_id *id)
{
	return (uint32_t)id->b[12] << 24 | (uint32_t)id->b[13] << 16 | (uint32_t)id->b[14] << 8 |
	       id->b[15];
}

static struct chord_peer peer_of(const struct chordnet *net, uint32_t host)
{
	struct chord_peer peer = { .id = net->hosts[host].id, .port = 7000 };

	peer.ip[0] = 0xfd;
	memcpy(peer.ip + 12, peer.id.b + 12, 4);
	return peer;
}

static struct event *event_at(const struct chordnet *net, uint32_t reference)
{
	uint32_t kind = (reference - 1) % CLASSES, index = (reference - 1) / CLASSES;

	return (struct event *)(net->pools[kind].chunks[index / CHUNK] +
				index % CHUNK * event_bytes[kind]);
}

static uint32_t event_new(struct chordnet *net, uint32_t kind)
{
	struct pool *pool = &net->pools[kind];
	uint32_t reference = pool->free;

	if (reference) {
		pool->free = event_at(net, reference)->next;
		return reference;
	}
	if (pool->used == pool->chunk_count * CHUNK) {
		pool->chunks = checked(
			realloc(pool->chunks, (pool->chunk_count + 1) * sizeof(*pool->chunks)));
		pool->chunks[pool->chunk_count++] = checked(malloc(CHUNK * event_bytes[kind]));
	}
	return 1 + pool->used++ * CLASSES + kind;
}

static void event_free(struct chordnet *net, uint32_t reference)
{
	struct event *event = event_at(net, reference);
	struct pool *pool = &net->pools[event->kind];

	event->next = pool->free;
	pool->free = reference;
}

static void event_insert(struct chordnet *net, uint32_t reference, uint64_t when_ms)
{
	struct slot *slot = &net->slots[when_ms % SLOTS];

	event_at(net, reference)->next = NOTHING;
	if (slot->last)
		event_at(net, slot->last)->next = reference;
	else
		slot->first = reference;
	slot->last = reference;
}

static void arm(struct chordnet *net, uint32_t number)
{
	struct host *host = &net->hosts[number];
	uint64_t due_ms = chord_deadline(chord_of(net, number));
	uint32_t reference;
	struct event *event;

	if (due_ms <= net->now_ms)
		due_ms = net->now_ms + 1;
	if (due_ms >= net->now_ms + SLOTS)
		due_ms = net->now_ms + SLOTS - 1;
	if (host->timer_ms && host->timer_ms <= due_ms)
		return;
	host->timer_ms = due_ms;
	reference = event_new(net, 0);
	event = event_at(net, reference);
	event->kind = 0;
	event->target = number;
	event_insert(net, reference, due_ms);
}

static void post(struct chordnet *net, uint32_t from, const struct chord_send *send,
		 uint32_t target, bool for_lookup)
{
	const struct chordnet_config *config = &net->config;
	uint64_t pair = (uint64_t)from << 32 | target;
	uint32_t span = config->latency_max_ms - config->latency_min_ms + 1;
	uint64_t latency = config->latency_min_ms + mix(config->seed ^ mix(pair)) % span;
	uint32_t kind = send->size <= SMALL ? 1 : 2, reference = event_new(net, kind);
	struct event *event = event_at(net, reference);

	event->kind = (uint8_t)kind;
	event->target = target;
	event->from = from;
	event->size = (uint16_t)send->size;
	event->for_lookup = for_lookup;
	memcpy(event->bytes, send->bytes, send->size);
	event_insert(net, reference,
		     net->now_ms + latency + chordnet_below(net, config->jitter_ms + 1));
}

/* version type flags zero seq:u64 peer_count, see chord_codec.h */
static void lie(struct chord_send *send)
{
	if (send->bytes[1] != CHORD_MSG_FOUND)
		return;
	send->bytes[2] = CHORD_FLAG_OWNER;
	send->bytes[12] = 0;
	send->size = 13;
}

static void send_all(struct chordnet *net, uint32_t from, uint32_t asker, bool for_lookup)
{
	const struct chordnet_config *config = &net->config;

	for (uint32_t i = 0; i < net->update.send_count; i++) {
		struct chord_send *send = &net->update.sends[i];
		uint32_t target = send->to.port ? chordnet_host(&send->to.id) : asker;
		bool lookup = send->to.port ? send->for_lookup : for_lookup;
		uint64_t chance = chordnet_below(net, 1000000);

		if (net->hosts[from].liar)
			lie(send);
		net->counts.messages++;
		*(lookup ? &net->counts.lookup_bytes : &net->counts.upkeep_bytes) +=
			send->size + CHORDNET_HEADER_BYTES;
		if (chance < config->loss_ppm || target >= config->hosts)
			continue;
		post(net, from, send, target, lookup);
		if (chance >= 1000000 - config->double_ppm)
			post(net, from, send, target, lookup);
	}
}

static void set_member(struct chordnet *net, uint32_t host, bool member)
{
	uint64_t bit = UINT64_C(1) << host % 64, *word = &net->members[host / 64];

	if (!(*word & bit) == !member)
		return;
	*word ^= bit;
	net->member_count += member ? 1 : UINT32_MAX;
}

static void step(struct chordnet *net, uint32_t number, const struct event *event)
{
	struct chord *chord = chord_of(net, number);
	struct chord_event ev = { .type = CHORD_EV_TICK, .now_ms = net->now_ms };
	uint32_t asker = 0;
	bool for_lookup = false;

	if (event) {
		ev.type = CHORD_EV_MESSAGE;
		ev.from = net->hosts[event->from].id;
		ev.bytes = event->bytes;
		ev.size = event->size;
		asker = event->from;
		for_lookup = event->for_lookup;
	}
	net->counts.events++;
	if (chord_step(chord, &ev, &net->update)) {
		fprintf(stderr, "chordnet: host %u could not decode a message\n", number);
		abort();
	}
	set_member(net, number, chord_state(chord) == CHORD_MEMBER);
	send_all(net, number, asker, for_lookup);
	for (uint32_t i = 0; i < net->update.result_count; i++)
		net->result(net->ctx, number, &net->update.results[i]);
	arm(net, number);
}

static void run_event(struct chordnet *net, const struct event *event)
{
	struct host *host = &net->hosts[event->target];

	if (event->kind) {
		if (host->up)
			step(net, event->target, event);
		return;
	}
	if (host->timer_ms != net->now_ms)
		return; /* another one came before it */
	host->timer_ms = 0;
	if (!host->up)
		return;
	if (chord_deadline(chord_of(net, event->target)) <= net->now_ms)
		step(net, event->target, NULL);
	else
		arm(net, event->target);
}

void chordnet_run(struct chordnet *net, uint64_t until_ms)
{
	while (net->now_ms < until_ms) {
		struct slot *slot = &net->slots[net->now_ms % SLOTS];

		while (slot->first) {
			uint32_t reference = slot->first;
			struct event *event = event_at(net, reference);

			slot->first = event->next;
			if (!slot->first)
				slot->last = NOTHING;
			run_event(net, event);
			event_free(net, reference);
		}
		net->now_ms++;
	}
}

static void init_host(struct chordnet *net, uint32_t number)
{
	struct chord_config config = net->config.chord;

	config.self = peer_of(net, number);
	config.seed = chordnet_random(net);
	if (chord_init(chord_of(net, number), &config)) {
		fprintf(stderr, "chordnet: bad config\n");
		abort();
	}
	net->hosts[number].up = true;
}

static uint32_t member_before(const struct chordnet *net, uint32_t host)
{
	for (uint32_t n = 1; n <= net->config.hosts; n++) {
		uint32_t at = (host + net->config.hosts - n) % net->config.hosts;

		if (net->members[at / 64] >> at % 64 & 1)
			return at;
	}
	abort();
}

uint32_t chordnet_member_from(const struct chordnet *net, uint32_t host)
{
	uint32_t words = (net->config.hosts + 63) / 64, at = host % net->config.hosts;
	uint64_t word = net->members[at / 64] & UINT64_MAX << at % 64;

	for (uint32_t n = 0, i = at / 64; n <= words; n++) {
		if (word)
			return i * 64 + (uint32_t)__builtin_ctzll(word);
		i = (i + 1) % words;
		word = net->members[i];
	}
	abort();
}

uint32_t chordnet_owner(const struct chordnet *net, struct ring_key key)
{
	uint32_t low = 0, high = net->config.hosts;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (ring_less(ring_of(&net->hosts[middle].id), key))
			low = middle + 1;
		else
			high = middle;
	}
	return chordnet_member_from(net, low);
}

static void boot_host(struct chordnet *net, uint32_t number)
{
	struct chord_peer peers[CHORD_SUCCESSORS_MAX + 1 + CHORD_FINGERS_MAX];
	uint32_t count = 0, at = number;

	for (uint32_t i = 0; i < net->config.chord.successors; i++) {
		at = chordnet_member_from(net, at + 1);
		peers[count++] = peer_of(net, at);
	}
	peers[count++] = peer_of(net, member_before(net, number));
	for (uint32_t i = 0; i < CHORD_FINGERS_MAX; i++) {
		struct ring_key key = ring_finger(ring_of(&net->hosts[number].id), i);

		peers[count++] = peer_of(net, chordnet_owner(net, key));
	}
	for (uint32_t i = 1; i < count; i++) /* duplicates would fill the list */
		for (uint32_t k = 0; k < i; k++)
			if (chordnet_host(&peers[i].id) == chordnet_host(&peers[k].id)) {
				peers[i--] = peers[--count];
				break;
			}
	if (chord_boot(chord_of(net, number), net->now_ms, peers, count))
		abort();
	arm(net, number);
}

void chordnet_boot(struct chordnet *net, const bool *up)
{
	for (uint32_t i = 0; i < net->config.hosts; i++)
		if (up[i])
			set_member(net, i, true);
	for (uint32_t i = 0; i < net->config.hosts; i++) {
		if (!up[i])
			continue;
		init_host(net, i);
		boot_host(net, i);
	}
}

void chordnet_start(struct chordnet *net, uint32_t host)
{
	struct chord_peer seeds[CHORD_SEEDS_MAX];

	init_host(net, host);
	for (uint32_t i = 0; net->member_count && i < CHORD_SEEDS_MAX; i++) {
		uint32_t any = chordnet_below(net, net->config.hosts);

		seeds[i] = peer_of(net, chordnet_member_from(net, any));
	}
	if (net->member_count ?
		    chord_join(chord_of(net, host), net->now_ms, seeds, CHORD_SEEDS_MAX) :
		    chord_boot(chord_of(net, host), net->now_ms, NULL, 0))
		abort();
	set_member(net, host, !net->member_count);
	arm(net, host);
}

void chordnet_crash(struct chordnet *net, uint32_t host)
{
	net->hosts[host].up = false;
	set_member(net, host, false);
}

void chordnet_corrupt(struct chordnet *net, uint32_t host)
{
	net->hosts[host].liar = true;
}

bool chordnet_is_up(const struct chordnet *net, uint32_t host)
{
	return net->hosts[host].up;
}

void chordnet_calm(struct chordnet *net)
{
	net->config.loss_ppm = net->config.double_ppm = 0;
}

int chordnet_find(struct chordnet *net, uint32_t host, struct ring_key key, uint32_t count,
		  uint64_t request_id)
{
	struct lookup lookup = lookup_of_chord(chord_of(net, host));
	struct lookup_result result;
	int r = lookup_find(&lookup, net->now_ms, key, count, request_id, &result);

	arm(net, host);
	return r;
}

uint32_t chordnet_members(const struct chordnet *net)
{
	return net->member_count;
}

uint32_t chordnet_wrong_members(const struct chordnet *net)
{
	uint32_t wrong = 0, successors = net->config.chord.successors;

	if (successors > net->member_count - 1)
		successors = net->member_count - 1;
	for (uint32_t i = 0; i < net->config.hosts; i++) {
		const struct chord *chord = chord_of(net, i);
		const struct chord_peer *peer;
		uint32_t at = i;
		bool bad = false;

		if (!net->hosts[i].up)
			continue;
		if (chord_state(chord) != CHORD_MEMBER) {
			wrong++;
			continue;
		}
		for (uint32_t n = 0; n < successors; n++) {
			at = chordnet_member_from(net, at + 1);
			peer = chord_successor(chord, n);
			bad |= !peer || chordnet_host(&peer->id) != at;
		}
		peer = chord_predecessor(chord);
		bad |= successors && (!peer || chordnet_host(&peer->id) != member_before(net, i));
		wrong += bad;
	}
	return wrong;
}

static int compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, 8);
}

static void name_hosts(struct chordnet *net)
{
	uint32_t count = net->config.hosts;
	uint8_t(*words)[8] = checked(calloc(count, sizeof(*words)));

	for (uint32_t i = 0; i < count; i++) {
		uint64_t word = chordnet_random(net);

		memcpy(words[i], &word, sizeof(word));
	}
	qsort(words, count, sizeof(*words), compare_ids);
	for (uint32_t i = 0; i < count; i++) {
		struct node_id *id = &net->hosts[i].id;

		memcpy(id->b, words[i], sizeof(words[i]));
		id->b[8] = 1; /* nobody is all zero */
		id->b[12] = (uint8_t)(i >> 24);
		id->b[13] = (uint8_t)(i >> 16);
		id->b[14] = (uint8_t)(i >> 8);
		id->b[15] = (uint8_t)i;
	}
	free(words);
}

struct chordnet *chordnet_create(const struct chordnet_config *config, chordnet_result *result,
				 void *ctx)
{
	struct chordnet *net = checked(calloc(1, sizeof(*net)));

	net->config = *config;
	net->result = result;
	net->ctx = ctx;
	net->random = mix(config->seed);
	net->now_ms = 1;
	net->hosts = checked(calloc(config->hosts, sizeof(*net->hosts)));
	net->members = checked(calloc(config->hosts / 64 + 1, sizeof(*net->members)));
	net->chord_stride = (chord_size(config->chord.lookup_max) + 63) / 64 * 64;
	net->chords = checked(aligned_alloc(64, net->chord_stride * config->hosts));
	name_hosts(net);
	return net;
}

void chordnet_destroy(struct chordnet *net)
{
	if (!net)
		return;
	for (uint32_t k = 0; k < CLASSES; k++) {
		for (uint32_t i = 0; i < net->pools[k].chunk_count; i++)
			free(net->pools[k].chunks[i]);
		free(net->pools[k].chunks);
	}
	free(net->members);
	free(net->chords);
	free(net->hosts);
	free(net);
}
