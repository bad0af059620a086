/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/chord_codec.h"
#include "tests/sim/chordlab.h"

enum { SELF = 8, LOOKUPS = 4, PERIOD_MS = 1000, RETRY_MS = 100 };

static struct chord_update update;

static struct chord_peer peer_of(uint8_t place)
{
	struct chord_peer peer = { .port = 7000 };

	peer.id.b[0] = (uint8_t)(place * 16);
	peer.id.b[15] = 1;
	return peer;
}

static struct ring_key place(uint8_t at)
{
	return (struct ring_key){ (uint64_t)at << 60, 0 };
}

/* The member at SELF of a ring of these places, lists of three. */
static struct chord *member(const uint8_t *places, uint32_t count)
{
	struct chord *chord = malloc(chord_size(LOOKUPS));
	struct chord_config config = { .self = peer_of(SELF),
				       .successors = 3,
				       .paths = 1,
				       .tries = 2,
				       .stabilise_ms = PERIOD_MS,
				       .finger_ms = 100 * PERIOD_MS,
				       .retry_ms = RETRY_MS,
				       .lookup_max = LOOKUPS };
	struct chord_peer peers[8];

	assert_non_null(chord);
	assert_int_equal(chord_init(chord, &config), 0);
	for (uint32_t i = 0; i < count; i++)
		peers[i] = peer_of(places[i]);
	assert_int_equal(chord_boot(chord, 1, peers, count), 0);
	return chord;
}

static void tick(struct chord *chord, uint64_t now_ms)
{
	struct chord_event event = { .type = CHORD_EV_TICK, .now_ms = now_ms };

	assert_int_equal(chord_step(chord, &event, &update), 0);
}

static void hear(struct chord *chord, uint64_t now_ms, uint8_t from, const struct chord_message *m)
{
	struct chord_event event = { .type = CHORD_EV_MESSAGE, .now_ms = now_ms };
	uint8_t bytes[CHORD_MESSAGE_MAX];

	event.from = peer_of(from).id;
	event.bytes = bytes;
	event.size = chord_message_encode(m, bytes, sizeof(bytes));
	assert_true(event.size > 0);
	assert_int_equal(chord_step(chord, &event, &update), 0);
}

/* The message of this type in the update, or NULL; where it goes to. */
static const struct chord_message *sent(enum chord_message_type type, uint8_t *ret_to)
{
	static struct chord_message m;

	for (uint32_t i = 0; i < update.send_count; i++) {
		assert_int_equal(
			chord_message_decode(update.sends[i].bytes, update.sends[i].size, &m), 0);
		if (m.type != type)
			continue;
		*ret_to = update.sends[i].to.id.b[0] / 16;
		return &m;
	}
	return NULL;
}

static void expect_successors(const struct chord *chord, const uint8_t *places, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		assert_non_null(chord_successor(chord, i));
		assert_int_equal(chord_successor(chord, i)->id.b[0] / 16, places[i]);
	}
	assert_null(chord_successor(chord, count));
}

static void expect_predecessor(const struct chord *chord, uint8_t at)
{
	assert_non_null(chord_predecessor(chord));
	assert_int_equal(chord_predecessor(chord)->id.b[0] / 16, at);
}

static struct chord_message list_message(uint64_t seq, uint8_t pred, const uint8_t *places,
					 uint32_t count)
{
	struct chord_message m = { .type = CHORD_MSG_LIST, .seq = seq, .digest = 1 };

	m.flags = CHORD_FLAG_PRED;
	m.peer = peer_of(pred);
	for (uint32_t i = 0; i < count; i++)
		m.peers[m.peer_count++] = peer_of(places[i]);
	return m;
}

static uint64_t begin_round(struct chord *chord, uint64_t now_ms, uint8_t expect_to)
{
	const struct chord_message *m;
	uint8_t to;

	tick(chord, now_ms);
	m = sent(CHORD_MSG_NEIGHBOURS, &to);
	assert_non_null(m);
	assert_int_equal(to, expect_to);
	return m->seq;
}

static void a_round_copies_the_list(void **state)
{
	static const uint8_t ring[] = { 4, 10, 12, 14 }, list[] = { 11, 13, 15 };
	struct chord *chord = member(ring, 4);
	struct chord_message m;
	uint64_t seq = begin_round(chord, 3000, 10);
	uint8_t to;

	(void)state;
	expect_predecessor(chord, 4);
	m = list_message(seq, SELF, list, 3);
	hear(chord, 3001, 12, &m); /* not who was asked */
	expect_successors(chord, (const uint8_t[]){ 10, 12, 14 }, 3);
	m.seq++;
	hear(chord, 3002, 10, &m); /* not what was asked */
	expect_successors(chord, (const uint8_t[]){ 10, 12, 14 }, 3);
	m.seq--;
	hear(chord, 3003, 10, &m);
	expect_successors(chord, (const uint8_t[]){ 10, 11, 13 }, 3);
	assert_null(sent(CHORD_MSG_NOTIFY, &to)); /* it knows us */
	m = list_message(seq, SELF, ring + 2, 2);
	hear(chord, 3004, 10, &m); /* doubled, or late */
	expect_successors(chord, (const uint8_t[]){ 10, 11, 13 }, 3);
	free(chord);
}

static void a_list_out_of_order_is_cut(void **state)
{
	static const uint8_t ring[] = { 4, 10 }, list[] = { 12, 11, 13 }, past[] = { 15, 8, 9 };
	struct chord *chord = member(ring, 2);
	struct chord_message m = list_message(begin_round(chord, 3000, 10), SELF, list, 3);

	(void)state;
	hear(chord, 3001, 10, &m);
	expect_successors(chord, (const uint8_t[]){ 10, 12 }, 2);
	m = list_message(begin_round(chord, 6000, 10), SELF, past, 3);
	hear(chord, 6001, 10, &m);
	expect_successors(chord, (const uint8_t[]){ 10, 15 }, 2);
	free(chord);
}

static void a_silent_successor_is_dropped(void **state)
{
	static const uint8_t ring[] = { 4, 10, 12, 14 };
	struct chord *chord = member(ring, 4);
	uint64_t first = begin_round(chord, 3000, 10), again;

	(void)state;
	again = begin_round(chord, 3000 + RETRY_MS, 10); /* the second try */
	assert_int_equal(first, again);
	expect_successors(chord, (const uint8_t[]){ 10, 12, 14 }, 3);
	(void)begin_round(chord, 3000 + 2 * RETRY_MS, 12); /* the next one at once */
	expect_successors(chord, (const uint8_t[]){ 12, 14 }, 2);
	free(chord);
}

/* Of two that stand between, the one that answers is adopted, with its list. */
static void a_predecessor_is_asked_before_it_is_adopted(void **state)
{
	static const uint8_t ring[] = { 4, 10, 12 }, list[] = { 12, 14 }, near[] = { 10, 12 };
	struct chord *chord = member(ring, 3);
	struct chord_message m = list_message(begin_round(chord, 3000, 10), 9, list, 2);
	const struct chord_message *ask;
	uint64_t now_ms = 3001;
	uint8_t to;

	(void)state;
	hear(chord, now_ms, 10, &m);
	ask = sent(CHORD_MSG_NEIGHBOURS, &to);
	assert_non_null(ask);
	assert_int_equal(to, 9);
	expect_successors(chord, (const uint8_t[]){ 10, 12, 14 }, 3);
	for (uint32_t i = 0; i < 2; i++)
		tick(chord, now_ms += RETRY_MS);
	/* It is dead: nothing changes, and 10 hears of us. */
	expect_successors(chord, (const uint8_t[]){ 10, 12, 14 }, 3);
	assert_non_null(sent(CHORD_MSG_NOTIFY, &to));
	assert_int_equal(to, 10);
	/* It is back: it is heard of, asked, and answers. */
	m = (struct chord_message){ .type = CHORD_MSG_PING };
	hear(chord, now_ms, 9, &m);
	m = list_message(begin_round(chord, 6000, 10), 9, list, 2);
	hear(chord, 6001, 10, &m);
	ask = sent(CHORD_MSG_NEIGHBOURS, &to);
	assert_non_null(ask);
	m = list_message(ask->seq, 4, near, 2);
	hear(chord, 6002, 9, &m);
	expect_successors(chord, (const uint8_t[]){ 9, 10, 12 }, 3);
	assert_non_null(sent(CHORD_MSG_NOTIFY, &to));
	assert_int_equal(to, 9);
	free(chord);
}

static void a_live_predecessor_stays(void **state)
{
	static const uint8_t ring[] = { 4, 10, 12 };
	struct chord *chord = member(ring, 3);
	struct chord_message m = { .type = CHORD_MSG_NOTIFY, .peer = peer_of(2) };
	const struct chord_message *ping;
	uint8_t to;

	(void)state;
	hear(chord, 10, 3, &m); /* speaks for another */
	assert_int_equal(update.send_count, 0);
	hear(chord, 11, 2, &m);
	ping = sent(CHORD_MSG_PING, &to);
	assert_non_null(ping);
	assert_int_equal(to, 4);
	m = (struct chord_message){ .type = CHORD_MSG_PONG, .seq = ping->seq };
	hear(chord, 12, 4, &m);
	tick(chord, 12 + 3 * RETRY_MS);
	expect_predecessor(chord, 4);
	m = (struct chord_message){ .type = CHORD_MSG_NOTIFY, .peer = peer_of(6) };
	hear(chord, 400, 6, &m); /* nearer */
	expect_predecessor(chord, 6);
	assert_non_null(sent(CHORD_MSG_NUDGE, &to));
	assert_int_equal(to, 4);
	m.peer = peer_of(4);
	hear(chord, 401, 4, &m);
	tick(chord, 401 + RETRY_MS);
	tick(chord, 401 + 2 * RETRY_MS);
	expect_predecessor(chord, 4); /* 6 did not answer */
	free(chord);
}

static void lookups_are_bounded(void **state)
{
	static const uint8_t ring[] = { 4, 10, 12 };
	struct chord *chord = member(ring, 3);
	struct lookup lookup = lookup_of_chord(chord);
	struct lookup_result result;

	(void)state;
	for (uint32_t i = 0; i < LOOKUPS - 1; i++)
		assert_int_equal(lookup_find(&lookup, 2, place(11), 1, i, &result), -EINPROGRESS);
	assert_int_equal(lookup_find(&lookup, 2, place(11), 1, 9, &result), -EAGAIN);
	assert_int_equal(chord_deadline(chord), 2);
	tick(chord, 2);
	assert_int_equal(update.send_count, LOOKUPS - 1);
	/* Nobody answers: each fails, none is forgotten. */
	for (uint64_t now_ms = 3, done = 0; done < LOOKUPS - 1; now_ms += RETRY_MS) {
		assert_true(now_ms < 100 * RETRY_MS);
		tick(chord, now_ms);
		for (uint32_t i = 0; i < update.result_count; i++) {
			assert_int_equal(update.results[i].status, -EHOSTUNREACH);
			assert_true(update.results[i].silent > 0);
			done++;
		}
	}
	/* Its own keys it knows itself. */
	assert_int_equal(lookup_find(&lookup, 20000, place(6), 2, 7, &result), -EINPROGRESS);
	tick(chord, 20000);
	assert_int_equal(update.result_count, 1);
	assert_int_equal(update.results[0].request_id, 7);
	assert_int_equal(update.results[0].hops, 0);
	assert_int_equal(update.results[0].nodes[0].b[0] / 16, SELF);
	free(chord);
}

static void who_is_out_answers_nothing(void **state)
{
	struct chord *chord = malloc(chord_size(LOOKUPS));
	struct chord_config config = { .self = peer_of(SELF), .successors = 3, .paths = 1 };
	struct chord_message m = { .type = CHORD_MSG_FIND, .seq = 1, .key = place(3) };

	(void)state;
	assert_int_equal(chord_init(chord, &config), -EINVAL);
	config.tries = 1;
	config.stabilise_ms = config.finger_ms = config.retry_ms = 10;
	config.lookup_max = CHORD_LOOKUPS_MAX + 1;
	assert_int_equal(chord_init(chord, &config), -EINVAL);
	config.lookup_max = LOOKUPS;
	assert_int_equal(chord_init(chord, &config), 0);
	assert_int_equal(chord_deadline(chord), UINT64_MAX);
	hear(chord, 1, 3, &m);
	assert_int_equal(update.send_count, 0);
	assert_int_equal(chord_find(chord, 1, place(3), 1, 1), -EHOSTUNREACH);
	free(chord);
}

static struct chord_message example(enum chord_message_type type)
{
	struct chord_message m = { .type = (uint8_t)type };

	if (type == CHORD_MSG_LIST)
		m.flags = CHORD_FLAG_PRED;
	if (type == CHORD_MSG_LIST || type == CHORD_MSG_NOTIFY)
		m.peer = peer_of(3);
	if (type == CHORD_MSG_FIND) {
		m.key = place(5);
		m.avoid_count = 2;
		m.avoid[0] = peer_of(1).id;
		m.avoid[1] = peer_of(2).id;
	}
	if (type == CHORD_MSG_LIST || type == CHORD_MSG_FOUND || type == CHORD_MSG_FINGERS)
		for (uint8_t i = 0; i < 3; i++)
			m.peers[m.peer_count++] = peer_of(4 + i);
	if (type != CHORD_MSG_NOTIFY && type != CHORD_MSG_NUDGE)
		m.seq = UINT64_C(0x1122334455667788);
	return m;
}

static void messages_survive_and_noise_does_not(void **state)
{
	uint8_t bytes[CHORD_MESSAGE_MAX + 1], again[CHORD_MESSAGE_MAX];
	struct chord_message m, out;
	size_t size;

	(void)state;
	for (int type = CHORD_MSG_FIND; type < CHORD_MSG_END; type++) {
		m = example(type);
		size = chord_message_encode(&m, bytes, sizeof(bytes));
		assert_true(size >= 4);
		assert_int_equal(chord_message_decode(bytes, size, &out), 0);
		assert_int_equal(out.seq, m.seq);
		assert_true(ring_equal(out.key, m.key));
		assert_int_equal(chord_message_encode(&out, again, sizeof(again)), size);
		assert_memory_equal(bytes, again, size);
		for (size_t cut = 0; cut < size; cut++)
			assert_int_equal(chord_message_decode(bytes, cut, &out), -EBADMSG);
		bytes[size] = 0;
		assert_int_equal(chord_message_decode(bytes, size + 1, &out), -EBADMSG);
		bytes[2] = 0x80; /* a flag that nobody knows */
		assert_int_equal(chord_message_decode(bytes, size, &out), -EBADMSG);
	}
	m = example(CHORD_MSG_FOUND);
	m.flags = CHORD_FLAG_OWNER | CHORD_FLAG_LAST;
	assert_int_equal(chord_message_encode(&m, bytes, sizeof(bytes)), 0);
	m.flags = 0;
	m.peers[1].port = 0;
	assert_int_equal(chord_message_encode(&m, bytes, sizeof(bytes)), 0);
	m.peer_count = CHORD_PEERS_MAX + 1;
	assert_int_equal(chord_message_encode(&m, bytes, sizeof(bytes)), 0);
}

static struct {
	uint32_t results, wrong, failed;
	struct ring_key key;
	const struct chordnet *net;
} seen;

static void on_result(void *ctx, uint32_t host, const struct lookup_result *result)
{
	(void)ctx;
	(void)host;
	seen.results++;
	if (result->status)
		seen.failed++;
	else
		seen.wrong += chordnet_host(&result->nodes[0]) !=
			      chordnet_owner(seen.net, seen.key);
}

static struct chordnet *network(uint32_t hosts, uint32_t paths, uint32_t loss_ppm)
{
	struct chordnet_config config = {
		.seed = hosts + paths,
		.hosts = hosts,
		.loss_ppm = loss_ppm,
		.double_ppm = loss_ppm,
		.latency_min_ms = 1,
		.latency_max_ms = 40,
		.jitter_ms = 10,
		.chord = { .successors = 8,
			   .paths = (uint8_t)paths,
			   .tries = CHORD_TRIES,
			   .stabilise_ms = 2000,
			   .finger_ms = 2000,
			   .retry_ms = 200,
			   .lookup_max = 4 * paths },
	};
	struct chordnet *net = chordnet_create(&config, on_result, NULL);

	memset(&seen, 0, sizeof(seen));
	seen.net = net;
	return net;
}

static void look_up(struct chordnet *net, uint32_t hosts, uint32_t times)
{
	for (uint32_t i = 0; i < times; i++) {
		uint32_t host = chordnet_member_from(net, chordnet_below(net, hosts));
		uint32_t before = seen.results;

		seen.key = (struct ring_key){ chordnet_random(net), i };
		assert_int_equal(chordnet_find(net, host, seen.key, 1, i), -EINPROGRESS);
		for (uint32_t n = 0; seen.results == before; n++) {
			assert_true(n < 600);
			chordnet_run(net, chordnet_now(net) + 100);
		}
	}
}

/* From a ring of one, by joining only; then a quarter of it dies at once. */
static void a_ring_grows_and_heals(void **state)
{
	enum { HOSTS = 100 };
	struct chordnet *net = network(HOSTS, 1, 10000);

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++) {
		chordnet_start(net, i * 37 % HOSTS);
		chordnet_run(net, chordnet_now(net) + 300);
	}
	chordnet_run(net, chordnet_now(net) + 120000);
	assert_int_equal(chordnet_members(net), HOSTS);
	chordnet_calm(net);
	chordnet_run(net, chordnet_now(net) + 30000);
	assert_int_equal(chordnet_wrong_members(net), 0);
	look_up(net, HOSTS, 200);
	assert_int_equal(seen.wrong + seen.failed, 0);
	for (uint32_t i = 0; i < HOSTS; i += 4)
		chordnet_crash(net, i);
	look_up(net, HOSTS, 50); /* right, too, before anybody has noticed */
	assert_true(seen.wrong + seen.failed <= 2);
	chordnet_run(net, chordnet_now(net) + 60000);
	assert_int_equal(chordnet_wrong_members(net), 0);
	chordnet_destroy(net);
}

static uint32_t deceived(uint32_t paths)
{
	enum { HOSTS = 400, TIMES = 300 };
	struct chordnet *net = network(HOSTS, paths, 0);
	bool up[HOSTS];

	memset(up, 1, sizeof(up));
	chordnet_boot(net, up);
	for (uint32_t i = 0; i < HOSTS; i += 10)
		chordnet_corrupt(net, i);
	look_up(net, HOSTS, TIMES);
	assert_int_equal(seen.results, TIMES);
	chordnet_destroy(net);
	return seen.wrong;
}

/* One host of ten claims every key. */
static void disjoint_paths_see_through_liars(void **state)
{
	uint32_t one = deceived(1), three = deceived(3);

	(void)state;
	print_message("wrong of 300 look-ups: %u with one path, %u with three\n", one, three);
	assert_true(one > 30);
	assert_true(three < one / 2);
}

/* The lab's day in small; the long form is sim_chord. */
static void a_day_in_the_lab(void **state)
{
	struct chordlab_config config = {
		.seed = 3, .nodes = 200, .hours = 0.7, .lookups = 10000, .paths = 1
	};
	struct chordlab_result result;

	(void)state;
	chordlab_run(&config, &result);
	assert_true(result.sum.lookups > 8000);
	assert_true((double)result.sum.hops <= result.sum.target);
	assert_true(result.sum.failed * 1000 <= result.sum.lookups);
	assert_true(result.sum.wrong * 1000 <= result.sum.lookups);
	assert_true(result.departures > 80 && result.arrivals > 80);
	assert_int_equal(result.wrong_members, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_round_copies_the_list),
		cmocka_unit_test(a_list_out_of_order_is_cut),
		cmocka_unit_test(a_silent_successor_is_dropped),
		cmocka_unit_test(a_predecessor_is_asked_before_it_is_adopted),
		cmocka_unit_test(a_live_predecessor_stays),
		cmocka_unit_test(lookups_are_bounded),
		cmocka_unit_test(who_is_out_answers_nothing),
		cmocka_unit_test(messages_survive_and_noise_does_not),
		cmocka_unit_test(a_ring_grows_and_heals),
		cmocka_unit_test(disjoint_paths_see_through_liars),
		cmocka_unit_test(a_day_in_the_lab),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
