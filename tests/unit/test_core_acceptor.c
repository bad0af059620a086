/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One acceptor, spoken to by hand: each rule of the register where a whole cluster would hide it.
 * The test is proposer and owner; P and Q are two of the three acceptors named in each message.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/codec.h"

enum { HOLD_MS = 22000, LEASE_MS = 20000 };

static const struct node_id self = { { 1 } }, p = { { 2 } }, q = { { 3 } };
static const struct job_id job = { { 9 } };

struct bench {
	struct core *core;
	uint64_t now_ms;
	uint8_t disk[CORE_RECORD_MAX];
	size_t disk_size;
	struct core_message reply, message;
	bool replied, installing;
};

static bool any_card(void *ctx, const struct node_card *card)
{
	(void)ctx;
	(void)card;
	return true;
}

static void read_update(struct bench *b, const struct core_update *update)
{
	b->replied = false;
	for (uint32_t i = 0; i < update->write_count; i++) {
		b->disk_size = update->writes[i].size;
		memcpy(b->disk, update->writes[i].bytes, b->disk_size);
	}
	for (uint32_t i = 0; i < update->send_count; i++) {
		assert_int_equal(core_message_decode(update->sends[i].bytes, update->sends[i].size,
						     &b->reply),
				 0);
		b->replied |= b->reply.type >= CORE_MSG_PREPARE;
		b->installing |= b->reply.type == CORE_MSG_INSTALL;
	}
}

static void start(struct bench *b, uint64_t life)
{
	struct core_config config = {
		.card.id = self,
		.probe_ms = 1000,
		.suspect_ms = 4000,
		.renew_ms = 5000,
		.lease_ms = LEASE_MS,
		.hold_ms = HOLD_MS,
		.incarnation = life,
		.verify_card = any_card,
	};
	struct core_event event = { .type = CORE_EV_RECORD, .now_ms = b->now_ms };
	const struct core_update *update;

	free(b->core);
	b->core = calloc(1, core_size());
	assert_non_null(b->core);
	assert_int_equal(core_init(b->core, &config, b->now_ms), 0);
	event.bytes = b->disk;
	event.size = b->disk_size;
	if (b->disk_size)
		assert_int_equal(core_step(b->core, &event, &update), 0);
}

static struct bench *bench(void)
{
	struct bench *b = calloc(1, sizeof(*b));

	assert_non_null(b);
	b->now_ms = 1000;
	start(b, 1);
	return b;
}

static void end(struct bench *b)
{
	free(b->core);
	free(b);
}

/* Returns the type of the answer, or 0. */
static int say_to(struct bench *b, const struct node_id *from, struct core_message *m)
{
	static uint8_t bytes[CORE_MESSAGE_MAX];
	struct core_event event = {
		.type = CORE_EV_MESSAGE,
		.now_ms = b->now_ms,
		.boot_ns = b->now_ms * UINT64_C(1000000),
		.node = *from,
		.bytes = bytes,
	};
	const struct core_update *update;

	event.size = core_message_encode(m, bytes, sizeof(bytes));
	assert_true(event.size > 0);
	assert_int_equal(core_step(b->core, &event, &update), 0);
	read_update(b, update);
	return b->replied ? b->reply.type : 0;
}

/* The acceptors are P, self and `third`. */
static int say_as(struct bench *b, const struct node_id *from, struct core_message *m,
		  const struct node_id *third)
{
	m->job = m->value.job = job;
	m->acceptors.count = 3;
	m->acceptors.ids[0] = p;
	m->acceptors.ids[1] = self;
	m->acceptors.ids[2] = *third;
	return say_to(b, from, m);
}

static int say(struct bench *b, const struct node_id *from, struct core_message *m)
{
	return say_as(b, from, m, &q);
}

static struct core_ballot ballot(uint64_t counter, const struct node_id *node, uint64_t life)
{
	return (struct core_ballot){ .number = { .counter = counter, .node = *node },
				     .life = life };
}

static int say_prepare(struct bench *b, struct core_ballot at, uint8_t flags)
{
	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_PREPARE;
	b->message.flags = flags;
	b->message.ballot = at;
	return say(b, &at.number.node, &b->message);
}

static int say_accept(struct bench *b, struct core_ballot at, const struct node_id *owner,
		      uint64_t token, uint32_t state)
{
	struct job_value *value = &b->message.value;

	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_ACCEPT;
	b->message.ballot = at;
	if (owner)
		value->owner = *owner;
	value->token.counter = token;
	value->state = state;
	value->fence = FENCE_STRICT;
	return say(b, &at.number.node, &b->message);
}

static int say_renew(struct bench *b, const struct node_id *owner, uint64_t token)
{
	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_RENEW;
	b->message.token.counter = token;
	b->message.seq = 77;
	return say(b, owner, &b->message);
}

static void create(struct bench *b)
{
	assert_int_equal(say_accept(b, ballot(1, &p, 5), &p, 1, JOB_STATE_HELD), CORE_MSG_ACCEPTED);
	assert_true(b->disk_size > 0);
}

static void rule_a1_refuses_at_accept(void **state)
{
	struct bench *b = bench();

	(void)state;
	create(b);
	b->now_ms += HOLD_MS - 1;
	assert_int_equal(say_accept(b, ballot(2, &q, 5), &q, 2, JOB_STATE_HELD), CORE_MSG_NACK);
	assert_int_equal(b->reply.reason, CORE_NACK_BUSY);
	assert_int_equal(b->reply.hold_left_ms, 1);
	/* The same owner under another token is another incarnation. */
	assert_int_equal(say_accept(b, ballot(2, &q, 5), &p, 2, JOB_STATE_HELD), CORE_MSG_NACK);
	/* Its own checkpoint, its end and its release are not. */
	assert_int_equal(say_accept(b, ballot(2, &p, 5), &p, 1, JOB_STATE_HELD), CORE_MSG_ACCEPTED);
	b->now_ms += 1;
	assert_int_equal(say_accept(b, ballot(3, &q, 5), &q, 3, JOB_STATE_HELD), CORE_MSG_ACCEPTED);
	end(b);
}

static int say_takeover(struct bench *b, struct core_ballot at, const struct node_id *owner)
{
	struct job_value *value = &b->message.value;

	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_ACCEPT;
	b->message.ballot = at;
	value->owner = *owner;
	value->token = at.number;
	value->state = JOB_STATE_HELD;
	value->fence = FENCE_STRICT;
	return say(b, &at.number.node, &b->message);
}

/* Under a token of its own: what it ran under the old one is gone, or it would not ask. */
static void an_owner_takes_over_from_itself_at_once(void **state)
{
	struct bench *b = bench();

	(void)state;
	create(b);
	assert_int_equal(say_renew(b, &p, 1), CORE_MSG_RENEWED);
	/* Neither somebody else for it, nor it for somebody else. */
	assert_int_equal(say_takeover(b, ballot(2, &q, 5), &p), CORE_MSG_NACK);
	assert_int_equal(b->reply.reason, CORE_NACK_BUSY);
	assert_int_equal(say_takeover(b, ballot(2, &p, 5), &q), CORE_MSG_NACK);
	assert_int_equal(b->reply.reason, CORE_NACK_BUSY);
	assert_int_equal(say_takeover(b, ballot(3, &p, 5), &p), CORE_MSG_ACCEPTED);
	assert_int_equal(say_renew(b, &p, 1), CORE_MSG_LOST);
	/* The new one is held as long as any. */
	b->now_ms += HOLD_MS - 1;
	assert_int_equal(say_takeover(b, ballot(4, &q, 5), &q), CORE_MSG_NACK);
	b->now_ms += 1;
	assert_int_equal(say_takeover(b, ballot(4, &q, 5), &q), CORE_MSG_ACCEPTED);
	end(b);
}

static void a_release_need_not_wait(void **state)
{
	struct bench *b = bench();

	(void)state;
	create(b);
	assert_int_equal(say_accept(b, ballot(2, &p, 5), NULL, 1, JOB_STATE_IDLE),
			 CORE_MSG_ACCEPTED);
	assert_int_equal(say_renew(b, &p, 1), CORE_MSG_LOST);
	assert_int_equal(say_accept(b, ballot(3, &q, 5), &q, 3, JOB_STATE_HELD), CORE_MSG_ACCEPTED);
	end(b);
}

/* Chosen nowhere, it may be passed over: the owner that has just renewed knows nothing of it. */
static void an_end_keeps_the_hold(void **state)
{
	static const uint32_t ends[] = { JOB_STATE_KILLED, JOB_STATE_DONE };

	(void)state;
	for (uint32_t i = 0; i < 2; i++) {
		struct bench *b = bench();

		create(b);
		b->now_ms += 10000;
		assert_int_equal(say_renew(b, &p, 1), CORE_MSG_RENEWED);
		assert_int_equal(say_accept(b, ballot(2, &q, 5), &p, 1, ends[i]),
				 CORE_MSG_ACCEPTED);
		b->now_ms += HOLD_MS - 1;
		assert_int_equal(say_accept(b, ballot(3, &q, 5), &q, 3, JOB_STATE_HELD),
				 CORE_MSG_NACK);
		assert_int_equal(b->reply.reason, CORE_NACK_BUSY);
		b->now_ms += 1;
		assert_int_equal(say_accept(b, ballot(3, &q, 5), &q, 3, JOB_STATE_HELD),
				 CORE_MSG_ACCEPTED);
		end(b);
	}
}

static void rule_a2_matches_owner_and_token(void **state)
{
	struct bench *b = bench();

	(void)state;
	create(b);
	b->now_ms += 10000;
	b->disk_size = 0;
	assert_int_equal(say_renew(b, &p, 1), CORE_MSG_RENEWED);
	assert_int_equal(b->disk_size, 0); /* no write */
	assert_int_equal(say_renew(b, &q, 1), CORE_MSG_LOST);
	assert_int_equal(say_renew(b, &p, 2), CORE_MSG_LOST);
	b->now_ms += HOLD_MS - 1; /* counted from the renewal */
	assert_int_equal(say_accept(b, ballot(2, &q, 5), &q, 2, JOB_STATE_HELD), CORE_MSG_NACK);
	b->now_ms += 1;
	assert_int_equal(say_accept(b, ballot(2, &q, 5), &q, 2, JOB_STATE_HELD), CORE_MSG_ACCEPTED);
	assert_int_equal(say_renew(b, &p, 1), CORE_MSG_LOST);
	end(b);
}

static void rule_a4_restart_holds_anew(void **state)
{
	struct bench *b = bench();

	(void)state;
	create(b);
	b->now_ms += 10 * HOLD_MS;
	start(b, 2);
	b->now_ms += HOLD_MS - 1;
	assert_int_equal(say_accept(b, ballot(2, &q, 5), &q, 2, JOB_STATE_HELD), CORE_MSG_NACK);
	assert_int_equal(b->reply.reason, CORE_NACK_BUSY);
	end(b);
}

static void promises_are_kept_and_durable(void **state)
{
	struct bench *b = bench();

	(void)state;
	create(b);
	assert_int_equal(say_prepare(b, ballot(5, &q, 5), 0), CORE_MSG_PROMISE);
	assert_int_equal(b->reply.accepted.number.counter, 1);
	for (uint64_t life = 2; life < 4; life++) {
		assert_int_equal(say_prepare(b, ballot(4, &p, 5), 0), CORE_MSG_NACK);
		assert_int_equal(b->reply.reason, CORE_NACK_PROMISED);
		assert_int_equal(b->reply.accepted.number.counter, 5);
		assert_int_equal(say_accept(b, ballot(4, &p, 5), &p, 1, JOB_STATE_HELD),
				 CORE_MSG_NACK);
		/* An earlier life of the same proposer is another proposer. */
		assert_int_equal(say_accept(b, ballot(5, &q, 4), &p, 1, JOB_STATE_HELD),
				 CORE_MSG_NACK);
		assert_int_equal(say_prepare(b, ballot(5, &q, 5), 0), CORE_MSG_PROMISE);
		start(b, life);
	}
	assert_int_equal(say_accept(b, ballot(5, &q, 5), &p, 1, JOB_STATE_DONE), CORE_MSG_ACCEPTED);
	start(b, 5);
	assert_int_equal(say_prepare(b, ballot(6, &q, 5), 0), CORE_MSG_PROMISE);
	assert_int_equal(b->reply.value.state, JOB_STATE_DONE);
	end(b);
}

static void takeovers_do_not_disturb_a_held_job(void **state)
{
	struct bench *b = bench();

	(void)state;
	create(b);
	assert_int_equal(say_prepare(b, ballot(5, &q, 5), CORE_FLAG_TAKEOVER), CORE_MSG_NACK);
	assert_int_equal(b->reply.reason, CORE_NACK_BUSY);
	/* Nothing was promised. */
	assert_int_equal(say_prepare(b, ballot(3, &p, 5), 0), CORE_MSG_PROMISE);
	/* Reading promises nothing either. */
	assert_int_equal(say_prepare(b, ballot(9, &q, 5), CORE_FLAG_READ), CORE_MSG_PROMISE);
	assert_int_equal(say_accept(b, ballot(3, &p, 5), &p, 1, JOB_STATE_HELD), CORE_MSG_ACCEPTED);
	end(b);
}

static void without_a_record_nothing_is_promised(void **state)
{
	struct bench *b = bench();

	(void)state;
	assert_int_equal(say_prepare(b, ballot(5, &q, 5), 0), CORE_MSG_NACK);
	assert_int_equal(b->reply.reason, CORE_NACK_UNKNOWN);
	assert_int_equal(say_renew(b, &p, 1), CORE_MSG_LOST);
	assert_int_equal(b->reply.accepted.number.counter, 0);
	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_LEARN;
	b->message.ballot = ballot(5, &q, 5);
	b->message.value.owner = p;
	b->message.value.state = JOB_STATE_HELD;
	b->message.value.fence = FENCE_STRICT;
	assert_int_equal(say(b, &q, &b->message), 0);
	assert_int_equal(b->disk_size, 0);
	assert_int_equal(say_prepare(b, ballot(6, &q, 5), 0), CORE_MSG_NACK);
	end(b);
}

/* O1: the lease counts from the sending of the round, however late its answers come. */
static void rule_o1_counts_from_sending(void **state)
{
	struct bench *b = bench();
	static uint8_t bytes[CORE_MESSAGE_MAX];
	struct job_value value = { .job = job, .token.counter = 1 };
	struct core_event event = {
		.type = CORE_EV_REQUEST,
		.request = CORE_REQ_HOLD,
		.request_id = 4,
		.value = &value,
	};
	const struct core_update *update;

	(void)state;
	assert_int_equal(say_accept(b, ballot(1, &q, 5), &self, 1, JOB_STATE_HELD),
			 CORE_MSG_ACCEPTED);
	event.now_ms = b->now_ms;
	event.boot_ns = UINT64_C(500) * 1000000000;
	assert_int_equal(core_step(b->core, &event, &update), 0);
	read_update(b, update);
	assert_int_equal(b->reply.type, CORE_MSG_RENEW);
	assert_int_equal(update->answer_count, 0); /* one of three is no quorum */

	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_RENEWED;
	b->message.token.counter = 1;
	b->message.seq = b->reply.seq;
	b->message.job = job;
	b->message.acceptors = b->reply.acceptors;
	b->message.accepted = ballot(1, &q, 5);
	event.type = CORE_EV_MESSAGE;
	event.node = q;
	event.now_ms += 4000;
	event.boot_ns += UINT64_C(4000) * 1000000;
	event.size = core_message_encode(&b->message, bytes, sizeof(bytes));
	event.bytes = bytes;
	assert_int_equal(core_step(b->core, &event, &update), 0);
	assert_int_equal(update->answer_count, 1);
	assert_int_equal(update->answers[0].status, 0);
	assert_true(update->answers[0].run_until_boot_ns ==
		    UINT64_C(500) * 1000000000 + UINT64_C(1000000) * LEASE_MS);
	end(b);
}

/* An answer to a round of an earlier life, still on its way, must not count for this life's. */
static void each_life_has_its_own_rounds(void **state)
{
	struct bench *b = bench();
	struct job_value value = { .job = job, .token.counter = 1 };
	struct core_event event = {
		.type = CORE_EV_REQUEST,
		.request = CORE_REQ_HOLD,
		.value = &value,
	};
	const struct core_update *update;
	uint64_t before = 0;

	(void)state;
	create(b);
	for (uint64_t life = 2; life < 5; life++) {
		start(b, life);
		event.now_ms = b->now_ms;
		assert_int_equal(core_step(b->core, &event, &update), 0);
		read_update(b, update);
		assert_int_equal(b->reply.type, CORE_MSG_RENEW);
		assert_true(b->reply.seq != before);
		before = b->reply.seq;
	}
	end(b);
}

static void tick_after(struct bench *b, uint64_t ms)
{
	struct core_event event = { .type = CORE_EV_TICK };
	const struct core_update *update;

	b->now_ms += ms;
	event.now_ms = b->now_ms;
	assert_int_equal(core_step(b->core, &event, &update), 0);
	read_update(b, update);
}

/*
 * What P says as an acceptor of epoch 0 that accepted something later; a stranger: that is a seal,
 * and the set to come has him.
 */
static void say_found(struct bench *b, uint8_t stranger)
{
	struct core_ballot asked = b->reply.ballot;
	struct core_message *m = &b->message;

	assert_int_equal(b->reply.type, CORE_MSG_PREPARE);
	memset(m, 0, sizeof(*m));
	m->type = CORE_MSG_PROMISE;
	m->ballot = asked;
	m->accepted = ballot(2, &p, 5);
	m->value.owner = p;
	m->value.token.counter = 1;
	m->value.state = JOB_STATE_HELD;
	m->value.fence = FENCE_STRICT;
	if (stranger)
		m->next =
			(struct core_acceptors){ .count = 3, .ids = { { { stranger } }, p, self } };
	(void)say(b, &p, m);
}

/* The host itself asks for the job's value: it reads first. */
static void ask(struct bench *b)
{
	struct job_value value = { .job = job };
	struct core_event event = { .type = CORE_EV_REQUEST,
				    .request = CORE_REQ_GET,
				    .value = &value,
				    .now_ms = b->now_ms };
	const struct core_update *update;

	create(b);
	assert_int_equal(core_step(b->core, &event, &update), 0);
	read_update(b, update);
}

/*
 * Two sets were sealed under two ballots. Somebody who is in the next epoch votes for the seal that
 * he was installed with, not for the one that this host would like to see chosen.
 */
static void the_other_seal_is_no_vote(void **state)
{
	struct bench *b = bench();
	struct core_message *m = &b->message;

	(void)state;
	ask(b);
	say_found(b, 7);
	tick_after(b, 1); /* reading is not enough */
	say_found(b, 7);
	tick_after(b, 200); /* Q does not answer: what P has is to be finished */
	assert_int_equal(b->reply.type, CORE_MSG_ACCEPT);
	assert_int_equal(b->reply.next.ids[0].b[0], 7);
	memset(m, 0, sizeof(*m));
	m->type = CORE_MSG_MOVED;
	m->epoch = 1;
	m->job = m->value.job = job;
	m->value.owner = p;
	m->value.token.counter = 1;
	m->value.state = JOB_STATE_HELD;
	m->value.fence = FENCE_STRICT;
	m->previous.count = 3;
	m->previous.ids[0] = p;
	m->previous.ids[1] = self;
	m->previous.ids[2] = q;
	m->acceptors = m->previous;
	m->acceptors.ids[2].b[0] = 8;
	(void)say_to(b, &p, m);
	assert_false(b->installing);
	end(b);
}

static void answer_accept(struct bench *b, const struct node_id *from, bool refuse)
{
	struct core_message *m = &b->message;

	*m = (struct core_message){ .type = CORE_MSG_ACCEPTED, .ballot = b->reply.ballot };
	if (refuse) {
		m->type = CORE_MSG_NACK;
		m->reason = CORE_NACK_PROMISED;
		m->accepted = ballot(1000, from, 5);
	}
	(void)say(b, from, m);
}

/* A round ends when too many have promised a higher ballot to somebody, not when one has. */
static void one_refusal_ends_no_round(void **state)
{
	(void)state;
	for (unsigned int both = 0; both < 2; both++) {
		struct bench *b = bench();
		struct core_message accept;

		ask(b);
		say_found(b, 0);
		tick_after(b, 200);
		tick_after(b, 1); /* reading is not enough */
		say_found(b, 0);
		tick_after(b, 200);
		accept = b->reply;
		assert_int_equal(accept.type, CORE_MSG_ACCEPT);
		answer_accept(b, &q, true);
		b->reply = accept;
		answer_accept(b, &p, both);
		tick_after(b, 400);
		assert_int_equal(b->replied, both);
		assert_true(!both || b->reply.type == CORE_MSG_PREPARE);
		end(b);
	}
}

/* A host that restarts without its ballots never utters one of them again. */
static void each_life_has_its_own_ballots(void **state)
{
	struct bench *b = bench();
	struct job_value value = { .job = job };
	struct core_event event = {
		.type = CORE_EV_REQUEST,
		.request = CORE_REQ_GET,
		.value = &value,
	};
	const struct core_update *update;

	(void)state;
	create(b);
	for (uint64_t life = 2; life < 5; life++) {
		start(b, life);
		event.now_ms = b->now_ms;
		assert_int_equal(core_step(b->core, &event, &update), 0);
		read_update(b, update);
		assert_int_equal(b->reply.type, CORE_MSG_PREPARE);
		assert_int_equal(b->reply.ballot.life, life);
	}
	end(b);
}

static void strange_bytes_are_refused(void **state)
{
	struct bench *b = bench();
	struct core_event event = { .type = CORE_EV_MESSAGE, .node = p, .bytes = "x", .size = 1 };
	const struct core_update *update;

	(void)state;
	assert_int_equal(core_step(b->core, &event, &update), -EBADMSG);
	assert_int_equal(update->send_count + update->write_count, 0);
	event.type = CORE_EV_RECORD;
	assert_int_equal(core_step(b->core, &event, &update), -EBADMSG);
	end(b);
}

static const struct node_id r = { { 4 } };

/* The seal's words: epoch 1 is P, self and R instead of Q. */
static int say_install(struct bench *b, uint32_t epoch, const struct node_id *owner)
{
	struct core_message *m = &b->message;

	memset(m, 0, sizeof(*m));
	m->type = CORE_MSG_INSTALL;
	m->epoch = epoch;
	m->accepted.epoch = epoch;
	m->previous.count = 3;
	m->previous.ids[0] = p;
	m->previous.ids[1] = self;
	m->previous.ids[2] = q;
	m->value.owner = *owner;
	m->value.token.counter = 1;
	m->value.state = JOB_STATE_HELD;
	m->value.fence = FENCE_STRICT;
	return say_as(b, &p, m, &r);
}

/* A message of epoch 1. */
static int say_later(struct bench *b, const struct node_id *from, struct core_message *m)
{
	m->epoch = 1;
	m->ballot.epoch = 1;
	return say_as(b, from, m, &r);
}

static int prepare_later(struct bench *b, uint64_t counter)
{
	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_PREPARE;
	b->message.ballot = ballot(counter, &p, 5);
	return say_later(b, &p, &b->message);
}

static int take_over_later(struct bench *b, uint64_t counter)
{
	struct job_value *value = &b->message.value;

	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_ACCEPT;
	b->message.ballot = ballot(counter, &p, 5);
	value->owner = r;
	value->token.counter = counter;
	value->state = JOB_STATE_HELD;
	value->fence = FENCE_STRICT;
	return say_later(b, &p, &b->message);
}

static int renew_later(struct bench *b, const struct node_id *owner)
{
	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_RENEW;
	b->message.token.counter = 1;
	b->message.seq = 78;
	return say_later(b, owner, &b->message);
}

static int seal(struct bench *b)
{
	struct job_value *value = &b->message.value;

	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_ACCEPT;
	b->message.ballot = ballot(4, &p, 5);
	b->message.next.count = 3;
	b->message.next.ids[0] = p;
	b->message.next.ids[1] = self;
	b->message.next.ids[2] = r;
	value->owner = p;
	value->token.counter = 1;
	value->state = JOB_STATE_HELD;
	value->fence = FENCE_STRICT;
	return say(b, &p, &b->message);
}

/* A2: no hold grows once the next set may be at work. */
static void a_sealed_acceptor_does_not_renew(void **state)
{
	struct bench *b = bench();

	(void)state;
	create(b);
	assert_int_equal(say_renew(b, &p, 1), CORE_MSG_RENEWED);
	assert_int_equal(seal(b), CORE_MSG_ACCEPTED);
	assert_int_equal(say_renew(b, &p, 1), 0); /* nor is the job lost */
	assert_int_equal(say_prepare(b, ballot(6, &q, 5), 0), CORE_MSG_PROMISE);
	assert_int_equal(b->reply.next.count, 3);
	start(b, 2);
	assert_int_equal(say_renew(b, &p, 1), 0);
	end(b);
}

/* A3, I6. */
static void an_installed_acceptor_holds_anew(void **state)
{
	struct bench *b = bench();

	(void)state;
	assert_int_equal(prepare_later(b, 9), CORE_MSG_NACK); /* not installed: no answer */
	assert_int_equal(b->reply.reason, CORE_NACK_UNKNOWN);
	assert_int_equal(take_over_later(b, 9), CORE_MSG_NACK);
	assert_int_equal(b->disk_size, 0);
	assert_int_equal(say_install(b, 1, &p), CORE_MSG_INSTALLED);
	assert_true(b->disk_size > 0);
	b->now_ms += HOLD_MS - 1;
	assert_int_equal(take_over_later(b, 9), CORE_MSG_NACK);
	assert_int_equal(b->reply.reason, CORE_NACK_BUSY);
	assert_int_equal(renew_later(b, &p), CORE_MSG_RENEWED);
	b->now_ms += HOLD_MS;
	assert_int_equal(take_over_later(b, 9), CORE_MSG_ACCEPTED);
	/* The same word once more changes nothing. */
	assert_int_equal(say_install(b, 1, &p), CORE_MSG_INSTALLED);
	assert_int_equal(prepare_later(b, 10), CORE_MSG_PROMISE);
	assert_int_equal(b->reply.accepted.number.counter, 9);
	end(b);
}

static void a_former_acceptor_shows_the_way(void **state)
{
	struct bench *b = bench();

	(void)state;
	create(b);
	assert_int_equal(seal(b), CORE_MSG_ACCEPTED);
	assert_int_equal(say_install(b, 1, &p), CORE_MSG_INSTALLED);
	for (uint64_t life = 2; life < 4; life++) {
		/* It may be the only one: it says what it was installed with, not that all moved. */
		assert_int_equal(say_prepare(b, ballot(6, &q, 5), 0), CORE_MSG_MOVED);
		assert_int_equal(b->reply.flags & CORE_FLAG_SETTLED, 0);
		assert_int_equal(b->reply.epoch, 1);
		assert_int_equal(b->reply.previous.count, 3);
		assert_int_equal(b->reply.value.token.counter, 1);
		assert_int_equal(say_renew(b, &p, 1), CORE_MSG_MOVED);
		start(b, life);
	}
	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_CLOSE;
	b->message.epoch = 1;
	assert_int_equal(say_as(b, &p, &b->message, &r), CORE_MSG_CLOSED);
	assert_int_equal(say_prepare(b, ballot(6, &q, 5), 0), CORE_MSG_MOVED);
	assert_int_equal(b->reply.flags & CORE_FLAG_SETTLED, CORE_FLAG_SETTLED);
	end(b);
}

/* Who has said that epoch 1 stands says so after a late INSTALL, too, and after a restart. */
static void what_is_noted_stays_noted(void **state)
{
	struct bench *b = bench();

	(void)state;
	create(b);
	memset(&b->message, 0, sizeof(b->message));
	b->message.type = CORE_MSG_CLOSE;
	b->message.epoch = 1;
	assert_int_equal(say_as(b, &p, &b->message, &r), CORE_MSG_CLOSED);
	assert_int_equal(say_install(b, 1, &p), CORE_MSG_INSTALLED);
	for (uint64_t life = 2; life < 4; life++) {
		assert_int_equal(say_prepare(b, ballot(6, &q, 5), 0), CORE_MSG_MOVED);
		assert_int_equal(b->reply.flags & CORE_FLAG_SETTLED, CORE_FLAG_SETTLED);
		start(b, life);
	}
	end(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rule_a1_refuses_at_accept),
		cmocka_unit_test(an_owner_takes_over_from_itself_at_once),
		cmocka_unit_test(a_release_need_not_wait),
		cmocka_unit_test(an_end_keeps_the_hold),
		cmocka_unit_test(rule_a2_matches_owner_and_token),
		cmocka_unit_test(rule_a4_restart_holds_anew),
		cmocka_unit_test(promises_are_kept_and_durable),
		cmocka_unit_test(takeovers_do_not_disturb_a_held_job),
		cmocka_unit_test(without_a_record_nothing_is_promised),
		cmocka_unit_test(rule_o1_counts_from_sending),
		cmocka_unit_test(each_life_has_its_own_rounds),
		cmocka_unit_test(each_life_has_its_own_ballots),
		cmocka_unit_test(one_refusal_ends_no_round),
		cmocka_unit_test(the_other_seal_is_no_vote),
		cmocka_unit_test(strange_bytes_are_refused),
		cmocka_unit_test(a_sealed_acceptor_does_not_renew),
		cmocka_unit_test(an_installed_acceptor_holds_anew),
		cmocka_unit_test(a_former_acceptor_shows_the_way),
		cmocka_unit_test(what_is_noted_stays_noted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
