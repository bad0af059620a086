/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The judge of registers: what it must let pass, and what it must not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/sim/checker.h"

enum { HOSTS = 6 };

static const struct simnet_rates calm = { .latency_ms = 5 };

struct court {
	struct simnet *net;
	struct checker checker;
	struct core_record record; /* of epoch 0, accepted by nobody yet */
	struct core_acceptors next;
};

static struct core_acceptors set_of(const struct simnet *net, uint32_t first, uint32_t count)
{
	struct core_acceptors set = { .count = count };

	for (uint32_t i = 0; i < count; i++)
		set.ids[i] = net->nodes[first + i].card.id;
	return set;
}

/* Hosts 0 to 4 are the acceptors, hosts 1 to 5 are to follow them. */
static void open_court(struct court *court)
{
	struct core_record *record = &court->record;

	memset(court, 0, sizeof(*court));
	court->net = simnet_create(1, HOSTS, &calm, NULL);
	checker_init(&court->checker, court->net);
	record->job.b[0] = record->value.job.b[0] = 7;
	record->installed = record->settled = 1;
	record->acceptors = set_of(court->net, 0, OV_REPLICAS_MAX);
	record->accepted.number.counter = 1;
	record->promised = record->accepted;
	record->value.token.counter = 1;
	record->value.owner = record->value.home = court->net->nodes[0].card.id;
	record->value.state = JOB_STATE_HELD;
	record->value.fence = FENCE_STRICT;
	court->next = set_of(court->net, 1, OV_REPLICAS_MAX);
}

static void close_court(struct court *court)
{
	checker_deinit(&court->checker);
	simnet_destroy(court->net);
}

static void write_record(struct court *court, uint32_t node, const struct core_record *record)
{
	uint8_t bytes[CORE_RECORD_BYTES_MAX];
	struct core_write write = { .job = record->job, .bytes = bytes };

	write.size = core_record_encode(record, bytes, sizeof(bytes));
	assert_true(write.size > 0);
	checker_wrote(&court->checker, node, &write);
}

/* Accepted by the first so many, and then sealed by the first so many. */
static void seal(struct court *court, uint32_t voters)
{
	for (uint32_t i = 0; i < 3; i++)
		write_record(court, i, &court->record);
	court->record.accepted.number.counter = court->record.promised.number.counter = 2;
	court->record.next = court->next;
	for (uint32_t i = 0; i < voters; i++)
		write_record(court, i, &court->record);
}

static void install(struct court *court, uint32_t node)
{
	struct core_record record = court->record;

	record.epoch = 1;
	record.settled = 0;
	record.previous = record.acceptors;
	record.acceptors = court->next;
	memset(&record.next, 0, sizeof(record.next));
	memset(&record.accepted, 0, sizeof(record.accepted));
	record.accepted.epoch = 1;
	record.promised = record.accepted;
	write_record(court, node, &record);
}

static bool is_judged_wrong(struct court *court, uint32_t node)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		(void)!freopen("/dev/null", "w", stderr);
		install(court, node);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status);
}

static void a_chosen_seal_begins_an_epoch(void **state)
{
	struct court court;

	(void)state;
	open_court(&court);
	seal(&court, 3);
	assert_false(is_judged_wrong(&court, 5));
	close_court(&court);
}

/* Host 2 proposed the seal, had to refuse it at first, and then was the one that was missing. */
static void one_write_may_be_the_last_vote_and_the_first_installation(void **state)
{
	struct court court;

	(void)state;
	open_court(&court);
	seal(&court, 2);
	assert_false(is_judged_wrong(&court, 2));
	install(&court, 2);
	/* It counts as chosen from then on. */
	assert_int_equal(court.checker.chosen_count, 3);
	close_court(&court);
}

static void that_vote_counts_once_and_only_of_an_acceptor(void **state)
{
	struct court court;

	(void)state;
	open_court(&court);
	seal(&court, 2);
	assert_true(is_judged_wrong(&court, 5)); /* has no vote in the epoch before */
	assert_true(is_judged_wrong(&court, 1)); /* has voted */
	close_court(&court);
	open_court(&court);
	seal(&court, 1);
	assert_true(is_judged_wrong(&court, 2));
	close_court(&court);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_chosen_seal_begins_an_epoch),
		cmocka_unit_test(one_write_may_be_the_last_vote_and_the_first_installation),
		cmocka_unit_test(that_vote_counts_once_and_only_of_an_acceptor),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
