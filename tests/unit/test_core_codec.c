/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/codec.h"
#include "overlay/core/needs.h"

static struct core_message message, decoded;
static uint8_t bytes[CORE_MESSAGE_MAX], again[CORE_MESSAGE_MAX];

static void fill_value(struct job_value *value, const struct job_id *job)
{
	memset(value, 0, sizeof(*value));
	value->job = *job;
	value->token.counter = 7;
	memset(value->owner.b, 2, sizeof(value->owner.b));
	memset(value->home.b, 3, sizeof(value->home.b));
	value->state = JOB_STATE_HELD;
	value->fence = FENCE_STRICT;
	value->exit_status = -1;
	value->history_count = 2;
	value->history[0].seq = 9;
	value->history[0].holder_count = OV_HOLDERS_MAX;
	value->history[1].seq = 8;
	value->avoid_count = OV_AVOID_MAX;
	for (uint32_t i = 0; i < OV_AVOID_MAX; i++) {
		value->avoid_wall_ms[i] = 1000 + i;
		value->avoid_why[i] = AVOID_BUSY;
	}
	value->arch = CPU_ARCH_X86_64;
	value->kernel_need = KERNEL_FREEZER | KERNEL_RSEQ;
	value->needs_size = 4;
	memcpy(value->needs, (const uint8_t[]){ NEEDS_TAG, 1, 'a', NEEDS_NOT }, 4);
	value->sealed_size = OV_SEALED_MAX;
	memset(value->sealed, 0xa5, sizeof(value->sealed));
}

static void fill_message(uint8_t type)
{
	memset(&message, 0, sizeof(message));
	message.type = type;
	message.seq = 0x1122334455667788;
	memset(message.job.b, 1, sizeof(message.job.b));
	message.acceptors.count = 3;
	for (uint8_t i = 0; i < 3; i++)
		message.acceptors.ids[i].b[0] = i;
	message.epoch = 3;
	message.previous.count = 2;
	message.previous.ids[1].b[0] = 7;
	message.next.count = 1;
	message.next.ids[0].b[0] = 8;
	message.ballot.epoch = message.accepted.epoch = 3;
	message.ballot.number.counter = 12;
	message.ballot.life = 99;
	message.accepted.number.counter = 11;
	message.reason = CORE_NACK_BUSY;
	message.hold_left_ms = 22000;
	fill_value(&message.value, &message.job);
	message.record_count = CORE_GOSSIP_RECORDS_MAX;
	for (uint32_t i = 0; i < message.record_count; i++) {
		struct core_gossip *record = &message.records[i];

		record->id.b[0] = 1;
		record->id.b[1] = (uint8_t)i;
		record->incarnation = i + 1;
		record->state = MEMBER_ALIVE;
		record->kind = i % 3 == 1 ? CORE_GOSSIP_REPORT : CORE_GOSSIP_FULL;
		record->card.id = record->id;
		strcpy(record->card.hostname, "lab-7");
		strcpy(record->addr, "192.0.2.7");
		record->port = 7000;
		record->report.mem_free_bytes = 1 << 30;
		record->report.arch = CPU_ARCH_AARCH64;
		record->report.cores = 16;
		record->report.kernel_version = OV_KERNEL_VERSION(6, 12);
		record->report.kernel_features = KERNEL_OVERLAY;
		memset(record->report.tags, 'x', OV_TAGS_MAX - 1);
		record->report.tags[OV_TAG_MAX - 1] = ' ';
	}
}

static void every_type_survives(void **state)
{
	(void)state;
	for (uint8_t type = 1; type < CORE_MSG_END; type++) {
		size_t size;

		fill_message(type);
		size = core_message_encode(&message, bytes, sizeof(bytes));
		assert_true(size > 0 && size <= CORE_MESSAGE_MAX);
		assert_int_equal(core_message_decode(bytes, size, &decoded), 0);
		assert_int_equal(core_message_encode(&decoded, again, sizeof(again)), size);
		assert_memory_equal(bytes, again, size);
	}
}

static void short_and_trailing_are_refused(void **state)
{
	(void)state;
	for (uint8_t type = 1; type < CORE_MSG_END; type++) {
		size_t size;

		fill_message(type);
		message.record_count = 2;
		size = core_message_encode(&message, bytes, sizeof(bytes));
		for (size_t cut = 0; cut < size; cut++) {
			void *exact = malloc(cut ? cut : 1);

			memcpy(exact, bytes, cut);
			assert_int_equal(core_message_decode(exact, cut, &decoded), -EBADMSG);
			free(exact);
		}
		bytes[size] = 0;
		assert_int_equal(core_message_decode(bytes, size + 1, &decoded), -EBADMSG);
	}
}

/* Whatever a changed byte makes of a message, it is refused or encodes to itself. */
static void every_flipped_byte_is_handled(void **state)
{
	(void)state;
	for (uint8_t type = 1; type < CORE_MSG_END; type++) {
		size_t size, length;

		fill_message(type);
		message.record_count = 1;
		size = core_message_encode(&message, bytes, sizeof(bytes));
		for (size_t at = 0; at < size; at++) {
			bytes[at] ^= 0xff;
			if (core_message_decode(bytes, size, &decoded) == 0) {
				length = core_message_encode(&decoded, again, sizeof(again));
				assert_int_equal(length, size);
				assert_memory_equal(bytes, again, size);
			}
			bytes[at] ^= 0xff;
		}
	}
}

static void fill_record(struct core_record *record)
{
	memset(record, 0, sizeof(*record));
	record->job.b[0] = 1;
	record->acceptors.count = 1;
	record->epoch = 2;
	record->installed = 1;
	record->previous.count = 2;
	record->previous.ids[1].b[0] = 9;
	record->next.count = 1;
	record->promised.epoch = record->accepted.epoch = 2;
	record->promised.number.counter = 5;
	record->accepted.number.counter = 4;
	fill_value(&record->value, &record->job);
}

static void every_torn_record_is_refused(void **state)
{
	struct core_record record, back;
	size_t size;

	(void)state;
	fill_record(&record);
	size = core_record_encode(&record, bytes, sizeof(bytes));
	assert_true(size > 0 && size <= CORE_RECORD_BYTES_MAX);
	assert_int_equal(core_record_decode(bytes, size, &back), 0);
	assert_memory_equal(&record, &back, sizeof(record));
	for (size_t at = 0; at < size; at++) {
		bytes[at] ^= 1;
		assert_int_equal(core_record_decode(bytes, size, &back), -EBADMSG);
		bytes[at] ^= 1;
		assert_int_equal(core_record_decode(bytes, at, &back), -EBADMSG);
	}
}

/* Without what came with version 3, which lies before the sealed bytes. */
static size_t without_match(const struct job_value *value, uint8_t *record, size_t size)
{
	size_t match = 12 * value->avoid_count + 4 + 4 + 4 + value->needs_size;
	size_t after = 4 + value->sealed_size + 4 + 8; /* sealed, an empty next, the sum */

	memmove(record + size - after - match, record + size - after, after);
	return size - match;
}

static void forget_match(struct job_value *value)
{
	memset(value->avoid_wall_ms, 0, sizeof(value->avoid_wall_ms));
	memset(value->avoid_why, 0, sizeof(value->avoid_why));
	value->arch = value->kernel_need = value->needs_size = 0;
	memset(value->needs, 0, sizeof(value->needs));
}

static size_t seal(uint8_t *record, size_t size)
{
	uint64_t sum = core_checksum(record, size);

	memcpy(record + size, &sum, sizeof(sum));
	return size + sizeof(sum);
}

static void records_of_version_2_are_read(void **state)
{
	struct core_record record, back;
	size_t size;

	(void)state;
	fill_record(&record);
	record.next.count = 0;
	size = core_record_encode(&record, bytes, sizeof(bytes));
	size = without_match(&record.value, bytes, size);
	bytes[4] = 2;
	size = seal(bytes, size - 8);
	assert_int_equal(core_record_decode(bytes, size, &back), 0);
	forget_match(&record.value);
	assert_memory_equal(&back, &record, sizeof(record));
}

/* The next bytes of a record as version 1 wrote it: neither epochs in ballots nor sets to come. */
static uint8_t *old_ballot(uint8_t *at, uint64_t counter)
{
	memset(at, 0, 8 + 16 + 8);
	memcpy(at, &counter, 8);
	return at + 8 + 16 + 8;
}

/* An upgraded host keeps the registers it had. */
static void records_of_version_1_are_read(void **state)
{
	struct core_record record, back;
	uint8_t *at = bytes;
	uint32_t words[3] = { 0x47524344, 1, 0 };
	size_t size, tail = sizeof(uint32_t), head;

	(void)state;
	fill_record(&record);
	record.epoch = record.settled = 0;
	record.previous.count = record.next.count = 0;
	memset(record.previous.ids, 0, sizeof(record.previous.ids));
	record.promised.epoch = record.accepted.epoch = 0;
	size = core_record_encode(&record, again, sizeof(again));
	assert_true(size > 0);
	size = without_match(&record.value, again, size);
	forget_match(&record.value);
	/* magic, version, job, epoch, count and one id; then installed, settled, previous */
	head = 4 + 4 + 16 + 4 + 4 + 16 + 4 + 4 + 4 + 2 * (8 + 8 + 16 + 8);
	memcpy(at, words, 8);
	at += 8;
	memcpy(at, again + 8, 16 + 4 + 4 + 16);
	at = old_ballot(at + 16 + 4 + 4 + 16, 5);
	at = old_ballot(at, 4);
	memcpy(at, again + head, size - head - tail - 8);
	at += size - head - tail - 8;
	assert_int_equal(core_record_decode(bytes, seal(bytes, (size_t)(at - bytes)), &back), 0);
	assert_int_equal(back.installed, 1);
	assert_int_equal(back.settled, 1);
	assert_int_equal(back.accepted.number.counter, 4);
	assert_memory_equal(&back.value, &record.value, sizeof(record.value));
}

static void impossible_epochs_are_refused(void **state)
{
	struct core_record record;

	(void)state;
	fill_message(CORE_MSG_INSTALL);
	message.epoch = CORE_EPOCH_MAX;
	assert_int_equal(core_message_encode(&message, bytes, sizeof(bytes)), 0);
	fill_message(CORE_MSG_INSTALL);
	message.previous.count = OV_REPLICAS_MAX + 1;
	assert_int_equal(core_message_encode(&message, bytes, sizeof(bytes)), 0);
	fill_message(CORE_MSG_ACCEPT);
	message.next.count = 2; /* the same member twice */
	message.next.ids[1] = message.next.ids[0];
	assert_int_equal(core_message_encode(&message, bytes, sizeof(bytes)), 0);
	fill_message(CORE_MSG_INSTALL);
	message.acceptors.count = 0;
	assert_int_equal(core_message_encode(&message, bytes, sizeof(bytes)), 0);
	fill_record(&record);
	record.installed = 2;
	assert_int_equal(core_record_encode(&record, bytes, sizeof(bytes)), 0);
}

static void impossible_values_are_refused(void **state)
{
	struct job_value good, bad, out;
	struct job_id job = { { 4 } };

	(void)state;
	fill_value(&good, &job);
	assert_int_equal(core_value_normalize(&good, &out), 0);
	assert_memory_equal(&good, &out, sizeof(out));

	bad = good;
	bad.state = JOB_STATE_KILLED + 1;
	assert_int_equal(core_value_normalize(&bad, &out), -EINVAL);
	bad = good;
	bad.state = JOB_STATE_IDLE; /* but has an owner */
	assert_int_equal(core_value_normalize(&bad, &out), -EINVAL);
	bad = good;
	memset(&bad.owner, 0, sizeof(bad.owner)); /* held by nobody */
	assert_int_equal(core_value_normalize(&bad, &out), -EINVAL);
	bad = good;
	bad.history[1].seq = bad.history[0].seq;
	assert_int_equal(core_value_normalize(&bad, &out), -EINVAL);
	bad = good;
	bad.sealed_size = OV_SEALED_MAX + 1;
	assert_int_equal(core_value_normalize(&bad, &out), -EINVAL);
	bad = good;
	bad.needs_size = 3 + OV_NEEDS_MAX;
	assert_int_equal(core_value_normalize(&bad, &out), -EINVAL);
	bad = good;
	bad.needs[3] = NEEDS_AND; /* of one */
	assert_int_equal(core_value_normalize(&bad, &out), -EINVAL);
	bad = good;
	bad.arch = CPU_ARCH_END;
	assert_int_equal(core_value_normalize(&bad, &out), -EINVAL);
	bad = good;
	bad.kernel_need |= KERNEL_FEATURES + 1; /* nobody would ever have it */
	assert_int_equal(core_value_normalize(&bad, &out), -EINVAL);
	bad = good;
	bad.history[0].holder_count = OV_HOLDERS_MAX + 1;
	assert_int_equal(core_value_normalize(&bad, &out), -EINVAL);

	/* What lies beyond a count does not make two values differ. */
	bad = good;
	bad.history[3].seq = 77;
	bad.needs[4] = 77;
	assert_int_equal(core_value_normalize(&bad, &out), 0);
	assert_memory_equal(&good, &out, sizeof(out));
}

static void impossible_reports_are_refused(void **state)
{
	struct member_state_report *report = &message.records[0].report;

	(void)state;
	fill_message(CORE_MSG_GOSSIP);
	report->tags[OV_TAGS_MAX - 1] = 'x';
	assert_int_equal(core_message_encode(&message, bytes, sizeof(bytes)), 0);
	fill_message(CORE_MSG_GOSSIP);
	report->tags[OV_TAG_MAX - 1] = 'x'; /* one tag, too long */
	assert_int_equal(core_message_encode(&message, bytes, sizeof(bytes)), 0);
	fill_message(CORE_MSG_GOSSIP);
	report->arch = CPU_ARCH_END;
	assert_int_equal(core_message_encode(&message, bytes, sizeof(bytes)), 0);
}

static void lives_order_equal_ballots(void **state)
{
	struct core_ballot a = { .number = { .counter = 3 }, .life = 1 }, b = a;

	(void)state;
	assert_int_equal(core_ballot_compare(&a, &b), 0);
	b.life = 2;
	assert_true(core_ballot_compare(&a, &b) < 0);
	a.number.node.b[0] = 1;
	assert_true(core_ballot_compare(&a, &b) > 0);
	b.number.counter = 4;
	assert_true(core_ballot_compare(&a, &b) < 0);
	a.epoch = 1;
	assert_true(core_ballot_compare(&a, &b) > 0);
}

/* Rows that are named in a comparison of tables: known with a state, or not at all. */
static void summaries_are_bounded(void **state)
{
	const size_t first = 4 + 8 + 4, row = sizeof(struct node_id) + 8 + 1;
	size_t size;

	(void)state;
	memset(&message, 0, sizeof(message));
	message.type = CORE_MSG_SUMMARY;
	message.seq = UINT64_MAX;
	message.summary_count = CORE_SUMMARY_MAX;
	for (uint32_t i = 0; i < CORE_SUMMARY_MAX; i++) {
		message.summaries[i].id.b[0] = (uint8_t)i;
		message.summaries[i].incarnation = i;
		message.summaries[i].state = i ? MEMBER_DEAD : 0;
	}
	size = core_message_encode(&message, bytes, sizeof(bytes));
	assert_int_equal(size, first + CORE_SUMMARY_MAX * row);
	assert_int_equal(core_message_decode(bytes, size, &decoded), 0);
	assert_int_equal(decoded.summary_count, CORE_SUMMARY_MAX);
	assert_memory_equal(decoded.summaries, message.summaries, sizeof(decoded.summaries));
	bytes[first + row - 1] = MEMBER_ALIVE; /* of the one that is unknown */
	assert_int_equal(core_message_decode(bytes, size, &decoded), -EBADMSG);
	bytes[first + row - 1] = 0;
	bytes[first + 2 * row - 1] = MEMBER_LEFT + 1;
	assert_int_equal(core_message_decode(bytes, size, &decoded), -EBADMSG);
	bytes[first + 2 * row - 1] = 0; /* known, in no state */
	assert_int_equal(core_message_decode(bytes, size, &decoded), -EBADMSG);
	message.summary_count++;
	assert_int_equal(core_message_encode(&message, bytes, sizeof(bytes)), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_type_survives),
		cmocka_unit_test(short_and_trailing_are_refused),
		cmocka_unit_test(every_flipped_byte_is_handled),
		cmocka_unit_test(every_torn_record_is_refused),
		cmocka_unit_test(records_of_version_1_are_read),
		cmocka_unit_test(records_of_version_2_are_read),
		cmocka_unit_test(impossible_reports_are_refused),
		cmocka_unit_test(impossible_epochs_are_refused),
		cmocka_unit_test(impossible_values_are_refused),
		cmocka_unit_test(lives_order_equal_ballots),
		cmocka_unit_test(summaries_are_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
