/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is owed, and what was acknowledged: sums, merges, and disks that forget. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/codec.h"
#include "overlay/core/credit.h"

#define HOUR UINT64_C(3600000)
#define WALL UINT64_C(1700000000000)

enum { MIB = 1 << 20 };

struct fixture {
	struct core_credit credit, other;
	struct core_book book, other_book;
	uint8_t bytes[CREDIT_BYTES_MAX];
	uint8_t book_bytes[CORE_BOOK_BYTES_MAX];
};

static const struct node_id self = { { 1 } }, bob = { { 2 } }, eve = { { 3 } };

static int setup(void **state)
{
	*state = calloc(1, sizeof(struct fixture));
	return *state ? 0 : -1;
}

static int teardown(void **state)
{
	free(*state);
	return 0;
}

static struct object_hash hash_of(uint32_t number)
{
	struct object_hash hash = { 0 };

	hash.b[0] = (uint8_t)(number >> 8);
	hash.b[1] = (uint8_t)number;
	return hash;
}

static struct credit_seen seen_of(uint32_t number, uint64_t seq, const struct node_id *holders,
				  uint32_t count)
{
	return (struct credit_seen){ .job.b[0] = 9,
				     .token.counter = 5,
				     .hash = hash_of(number),
				     .seq = seq,
				     .size = MIB,
				     .holder_count = count,
				     .holders = holders };
}

static void put(struct fixture *f, uint32_t number, uint64_t seq, const struct node_id *holder,
		uint64_t now_ms)
{
	struct credit_seen seen = seen_of(number, seq, holder, 1);

	core_credit_put(&f->credit, &seen, now_ms);
}

/* The objects from..to-1 are still needed. */
static void retain(struct fixture *f, uint64_t token, uint64_t upto, uint32_t from, uint32_t to,
		   const struct node_id *answered, uint64_t now_ms)
{
	struct object_hash hashes[8];
	struct credit_retain words = { .job.b[0] = 9,
				       .token.counter = token,
				       .upto_seq = upto,
				       .hashes = hashes,
				       .hash_count = to - from,
				       .answered = answered,
				       .answered_count = answered != NULL };

	for (uint32_t i = from; i < to; i++)
		hashes[i - from] = hash_of(i);
	core_credit_retained(&f->credit, &words, now_ms);
}

static uint64_t hours_of(const struct fixture *f, const struct node_id *holder)
{
	for (uint32_t i = 0; i < f->credit.holder_count; i++)
		if (memcmp(&f->credit.holders[i].id, holder, sizeof(*holder)) == 0)
			return f->credit.holders[i].byte_hours;
	return 0;
}

static void what_is_kept_is_paid_by_the_hour(void **state)
{
	struct fixture *f = *state;

	put(f, 1, 1, &bob, 1000);
	put(f, 2, 2, &bob, 1000);
	assert_false(core_credit_due(&f->credit, 0));
	retain(f, 5, 2, 1, 3, &bob, 1000 + HOUR);
	assert_int_equal(hours_of(f, &bob), 2 * MIB);
	assert_true(core_credit_due(&f->credit, 0));
	/* Number 1 goes: paid to the last, and never again. */
	retain(f, 5, 2, 2, 3, &bob, 1000 + 2 * HOUR);
	retain(f, 5, 2, 2, 3, &bob, 1000 + 3 * HOUR);
	assert_int_equal(hours_of(f, &bob), 5 * MIB);
	retain(f, 5, UINT64_MAX, 0, 0, &bob, 1000 + 4 * HOUR);
	retain(f, 5, UINT64_MAX, 0, 0, &bob, 1000 + 9 * HOUR);
	assert_int_equal(hours_of(f, &bob), 6 * MIB);
	assert_int_equal(f->credit.object_count, 0);
	assert_int_equal(f->credit.jobs[0].objects, 0);
}

static void small_intervals_add_up(void **state)
{
	struct fixture *f = *state;
	struct credit_seen seen = seen_of(1, 1, &bob, 1);

	seen.size = 7;
	core_credit_put(&f->credit, &seen, 0);
	for (uint64_t ms = 1; ms <= HOUR; ms += 999)
		retain(f, 5, 1, 1, 2, &bob, ms);
	retain(f, 5, 1, 1, 2, &bob, HOUR);
	assert_int_equal(hours_of(f, &bob), 7);
	assert_int_equal(f->credit.holders[0].byte_ms, 0);
}

static void who_does_not_answer_is_not_paid(void **state)
{
	struct fixture *f = *state;
	struct node_id both[2] = { bob, eve };
	struct credit_seen seen = seen_of(1, 1, both, 2);

	core_credit_put(&f->credit, &seen, 0);
	retain(f, 5, 1, 1, 2, &bob, HOUR);
	assert_int_equal(hours_of(f, &bob), MIB);
	assert_int_equal(hours_of(f, &eve), 0);
	/* Back again: from now on, not for the hour before. */
	retain(f, 5, 1, 1, 2, &eve, 2 * HOUR);
	assert_int_equal(hours_of(f, &bob), MIB);
	assert_int_equal(hours_of(f, &eve), MIB);
	retain(f, 5, 1, 1, 2, NULL, 3 * HOUR);
	assert_int_equal(hours_of(f, &bob) + hours_of(f, &eve), 2 * MIB);
}

static void the_same_object_twice_counts_once(void **state)
{
	struct fixture *f = *state;
	struct node_id both[2] = { bob, eve };
	struct credit_seen seen = seen_of(1, 1, both, 2);

	put(f, 1, 1, &bob, 0);
	core_credit_put(&f->credit, &seen, HOUR);
	put(f, 1, 2, &bob, HOUR);
	retain(f, 5, 1, 1, 2, &bob, 2 * HOUR);
	assert_int_equal(hours_of(f, &bob), 2 * MIB);
	retain(f, 5, 1, 1, 2, &eve, 3 * HOUR);
	assert_int_equal(hours_of(f, &eve), MIB);
}

static void clocks_that_jump_are_bounded(void **state)
{
	struct fixture *f = *state;

	put(f, 1, 1, &bob, 10 * HOUR);
	retain(f, 5, 1, 1, 2, &bob, 0);
	assert_int_equal(hours_of(f, &bob), 0);
	retain(f, 5, 1, 1, 2, &bob, UINT64_MAX / 2);
	assert_int_equal(hours_of(f, &bob), UINT64_C(168) * MIB);
	retain(f, 5, 1, 1, 2, &bob, HOUR);
	retain(f, 5, 1, 1, 2, &bob, 2 * HOUR);
	assert_int_equal(hours_of(f, &bob), UINT64_C(169) * MIB);
	core_credit_sweep(&f->credit, 100 * HOUR);
	assert_int_equal(f->credit.object_count, 1);
	core_credit_sweep(&f->credit, 171 * HOUR);
	assert_int_equal(f->credit.object_count, 0);
}

static void another_incarnation_begins_anew(void **state)
{
	struct fixture *f = *state;

	put(f, 1, 1, &bob, 0);
	retain(f, 6, 1, 1, 2, &bob, HOUR); /* somebody may have had it in between */
	assert_int_equal(hours_of(f, &bob), 0);
	retain(f, 5, 1, 1, 2, &bob, 2 * HOUR); /* the older one speaks no more */
	assert_int_equal(hours_of(f, &bob), 0);
	put(f, 2, 2, &bob, 2 * HOUR);
	assert_int_equal(f->credit.object_count, 1);
	retain(f, 6, 1, 1, 2, &bob, 3 * HOUR);
	assert_int_equal(hours_of(f, &bob), 2 * MIB);
	core_credit_forget(&f->credit, &(struct job_id){ { 9 } });
	assert_int_equal(f->credit.object_count, 0);
}

static void what_was_put_before_the_register_counts(void **state)
{
	struct fixture *f = *state;
	struct credit_seen seen = seen_of(1, 1, &bob, 1);

	seen.token.counter = 0;
	core_credit_put(&f->credit, &seen, 0);
	retain(f, 5, 1, 1, 2, &bob, HOUR);
	assert_int_equal(hours_of(f, &bob), MIB);
}

static void many_objects_are_one_restore(void **state)
{
	struct fixture *f = *state;
	struct credit_seen seen = seen_of(1, 1, &bob, 1);

	core_credit_got(&f->credit, &seen, 0);
	seen.hash = hash_of(2);
	core_credit_got(&f->credit, &seen, 0);
	assert_int_equal(f->credit.holders[0].restores, 1);
	assert_int_equal(f->credit.holders[0].restored_bytes, 2 * MIB);
	seen.token.counter = 6;
	core_credit_got(&f->credit, &seen, HOUR);
	assert_int_equal(f->credit.holders[0].restores, 2);
	assert_true(core_credit_due(&f->credit, 0));
	/* And what was fetched is known to be kept. */
	retain(f, 6, 1, 1, 3, &bob, 2 * HOUR);
	assert_int_equal(hours_of(f, &bob), 2 * MIB);
}

static void tables_that_are_full_pay_less(void **state)
{
	struct fixture *f = *state;

	for (uint32_t i = 0; i < CREDIT_OBJECTS_MAX / 5 + 1; i++) {
		struct node_id ids[5] = { 0 };
		struct credit_seen seen = seen_of(i, 1, ids, 5);

		for (uint32_t k = 0; k < 5; k++) {
			ids[k].b[0] = (uint8_t)(100 + k);
			ids[k].b[1] = (uint8_t)(i % 250);
		}
		seen.job.b[1] = (uint8_t)(i % 256);
		core_credit_put(&f->credit, &seen, 0);
	}
	assert_int_equal(f->credit.holder_count, CREDIT_HOLDERS_MAX);
	assert_int_equal(f->credit.uncounted, 0);
	/* All are in use; when one is not, and knows all, its row is another's. */
	put(f, 7, 1, &bob, 0);
	assert_int_equal(hours_of(f, &bob), 0);
	for (uint32_t i = 0; i < 256; i++)
		core_credit_forget(&f->credit, &(struct job_id){ { 9, (uint8_t)i } });
	put(f, 7, 1, &bob, 0);
	retain(f, 5, 1, 7, 8, &bob, HOUR);
	assert_int_equal(hours_of(f, &bob), MIB);
	/* As if by as many puts, which take their time with sanitizers. */
	while (f->credit.object_count < CREDIT_OBJECTS_MAX - 2) {
		f->credit.objects[f->credit.object_count++] = f->credit.objects[0];
		f->credit.jobs[f->credit.objects[0].job].objects++;
	}
	for (uint32_t i = 0; i < 5; i++)
		put(f, 100 + i, 1, &bob, HOUR);
	assert_int_equal(f->credit.object_count, CREDIT_OBJECTS_MAX);
	assert_int_equal(f->credit.uncounted, 3);
}

/* Bytes that a receipt leaves with; then the answer. */
static struct core_receipt send(struct fixture *f, uint64_t wall_ms)
{
	struct core_receipt receipt;

	core_credit_receipt(&f->credit, 0, &self, wall_ms, &receipt);
	return receipt;
}

static void receipts_grow_and_never_shrink(void **state)
{
	struct fixture *f = *state;
	struct core_receipt first, second, copy;

	put(f, 1, 1, &bob, 0);
	retain(f, 5, 1, 1, 2, &bob, HOUR);
	first = send(f, WALL);
	assert_false(core_credit_due(&f->credit, 0));
	core_credit_settled(&f->credit, &first, &first);
	assert_false(core_credit_due(&f->credit, 0));
	retain(f, 5, 1, 1, 2, &bob, 2 * HOUR);
	second = send(f, WALL - 5 * HOUR); /* the wall clock was set back */
	assert_int_equal(second.epoch, 2);
	assert_int_equal(second.from_wall_ms, WALL);
	core_credit_settled(&f->credit, &second, NULL);
	assert_true(core_credit_due(&f->credit, 0));

	assert_int_equal(core_book_add(&f->book, &second), 0);
	assert_int_equal(core_book_add(&f->book, &second), -EALREADY);
	assert_int_equal(core_book_add(&f->book, &first), -ESTALE);
	copy = second;
	copy.byte_hours++; /* two of one epoch */
	assert_int_equal(core_book_add(&f->book, &copy), -ESTALE);
	copy.epoch++;
	copy.byte_hours = 1; /* takes something back */
	assert_int_equal(core_book_add(&f->book, &copy), -ESTALE);
	assert_int_equal(core_book_find(&f->book, &self)->byte_hours, 2 * MIB);
	assert_null(core_book_find(&f->book, &bob));
}

static void the_book_is_bounded_and_in_order(void **state)
{
	struct fixture *f = *state;
	struct core_receipt receipt = { .holder = self, .epoch = 1, .byte_hours = 3 };

	for (uint32_t i = 0; i <= CORE_BOOK_MAX; i++) {
		receipt.submitter.b[0] = (uint8_t)(i * 37);
		receipt.submitter.b[1] = (uint8_t)(i >> 8);
		receipt.submitter.b[2] = 1;
		assert_int_equal(core_book_add(&f->book, &receipt),
				 i < CORE_BOOK_MAX ? 0 : -ENOSPC);
	}
	for (uint32_t i = 1; i < f->book.count; i++)
		assert_true(memcmp(&f->book.rows[i - 1].submitter, &f->book.rows[i].submitter, 16) <
			    0);
	core_book_drop(&f->book, 5);
	assert_int_equal(core_book_add(&f->book, &receipt), 0);
	assert_int_equal(f->book.count, CORE_BOOK_MAX);
}

static void restart(struct fixture *f, uint64_t stop_ms, uint64_t start_ms)
{
	size_t size = core_credit_encode(&f->credit, &self, stop_ms, f->bytes);

	assert_int_equal(core_credit_decode(f->bytes, size, &self, start_ms, &f->credit), 0);
}

static void time_that_this_host_was_off_does_not_count(void **state)
{
	struct fixture *f = *state;

	put(f, 1, 1, &bob, 50 * HOUR);
	put(f, 2, 1, &eve, 50 * HOUR);
	restart(f, 51 * HOUR, HOUR / 2); /* the boot clock began anew */
	retain(f, 5, 1, 1, 3, &bob, HOUR + HOUR / 2);
	assert_in_range(hours_of(f, &bob), MIB, MIB + MIB / 2 + 1);
	restart(f, HOUR + HOUR / 2, 99 * HOUR);
	retain(f, 5, 1, 1, 3, &bob, 100 * HOUR);
	assert_in_range(hours_of(f, &bob), 2 * MIB, 2 * MIB + MIB / 2 + 1);
	assert_int_equal(hours_of(f, &eve), 0);
}

/* Receipts leave after the save: after a crash none is older than what a holder has. */
static void a_crash_after_the_save_sends_anew(void **state)
{
	struct fixture *f = *state;
	struct core_receipt sent, again;

	put(f, 1, 1, &bob, 0);
	retain(f, 5, 1, 1, 2, &bob, HOUR);
	sent = send(f, WALL);
	restart(f, HOUR, HOUR);
	assert_int_equal(core_book_add(&f->book, &sent), 0);
	assert_true(core_credit_due(&f->credit, 0));
	again = send(f, WALL);
	assert_int_equal(again.epoch, 2);
	assert_int_equal(core_book_add(&f->book, &again), 0);
	core_credit_settled(&f->credit, &sent, &sent); /* an answer to the earlier life's */
	assert_true(f->credit.holders[0].in_flight);
	core_credit_settled(&f->credit, &again, &again);
	assert_false(core_credit_due(&f->credit, 0));
}

static void a_lost_disk_learns_from_what_it_signed(void **state)
{
	struct fixture *f = *state;
	struct core_receipt kept = { .submitter = self,
				     .holder = bob,
				     .epoch = 57,
				     .byte_hours = 1000,
				     .restores = 4,
				     .from_wall_ms = WALL };
	struct core_receipt sent, foreign = kept;

	put(f, 1, 1, &bob, 0);
	retain(f, 5, 1, 1, 2, &bob, HOUR);
	sent = send(f, WALL + HOUR);
	foreign.holder = eve;
	core_credit_settled(&f->credit, &sent, &foreign);
	assert_int_equal(hours_of(f, &bob), MIB);
	f->credit.holders[0].epoch = 0;
	sent = send(f, WALL + HOUR);
	core_credit_settled(&f->credit, &sent, &kept);
	assert_int_equal(hours_of(f, &bob), 1000 + MIB);
	assert_true(core_credit_due(&f->credit, 0));
	sent = send(f, WALL + HOUR);
	assert_int_equal(sent.epoch, 58);
	assert_int_equal(sent.from_wall_ms, WALL);
	/* A holder that shows an old one again and again gains nothing. */
	core_credit_settled(&f->credit, &sent, &kept);
	sent = send(f, WALL + HOUR);
	core_credit_settled(&f->credit, &sent, &kept);
	assert_int_equal(hours_of(f, &bob), 1000 + MIB);
	assert_int_equal(f->credit.holders[0].restores, 4);
}

static void seal(uint8_t *bytes, size_t size)
{
	uint64_t sum = core_checksum(bytes, size - 8);

	memcpy(bytes + size - 8, &sum, 8);
}

static void disks_that_lie_are_found_out(void **state)
{
	struct fixture *f = *state;
	size_t size;

	put(f, 1, 1, &bob, 0);
	size = core_credit_encode(&f->credit, &self, HOUR, f->bytes);
	assert_int_equal(core_credit_decode(f->bytes, size, &bob, 0, &f->other), -ESTALE);
	assert_int_equal(core_credit_decode(f->bytes, size - 1, &self, 0, &f->other), -EBADMSG);
	for (size_t i = 0; i < size; i += 3) {
		f->bytes[i] ^= 0x40;
		assert_int_equal(core_credit_decode(f->bytes, size, &self, 0, &f->other), -EBADMSG);
		assert_int_equal(f->other.holder_count + f->other.object_count, 0);
		f->bytes[i] ^= 0x40;
	}
	f->bytes[size - 8 - 10] = 1; /* an index beyond the holders, behind a right sum */
	seal(f->bytes, size);
	assert_int_equal(core_credit_decode(f->bytes, size, &self, 0, &f->other), -EBADMSG);
}

static void books_come_back_whole_or_not_at_all(void **state)
{
	struct fixture *f = *state;
	struct core_receipt receipt = { .submitter = bob, .holder = self, .epoch = 3 };
	size_t size;

	assert_int_equal(core_book_add(&f->book, &receipt), 0);
	receipt.submitter = eve;
	assert_int_equal(core_book_add(&f->book, &receipt), 0);
	size = core_book_encode(&f->book, &self, f->book_bytes);
	assert_int_equal(core_book_decode(f->book_bytes, size, &self, &f->other_book), 0);
	assert_int_equal(f->other_book.count, 2);
	assert_memory_equal(f->other_book.rows, f->book.rows, 2 * sizeof(receipt));
	assert_int_equal(core_book_decode(f->book_bytes, size, &bob, &f->other_book), -ESTALE);
	for (size_t i = 0; i < size; i++) {
		f->book_bytes[i] ^= 1;
		assert_int_equal(core_book_decode(f->book_bytes, size, &self, &f->other_book),
				 -EBADMSG);
		f->book_bytes[i] ^= 1;
	}
	memcpy(f->book_bytes + 24 + 8, &eve, sizeof(eve)); /* twice the same submitter */
	seal(f->book_bytes, size);
	assert_int_equal(core_book_decode(f->book_bytes, size, &self, &f->other_book), -EBADMSG);
	assert_int_equal(f->other_book.count, 0);
}

static void receipts_that_are_none(void **state)
{
	uint8_t bytes[CORE_RECEIPT_BYTES];
	struct core_receipt good = { .submitter = bob, .holder = self, .epoch = 1 }, bad, out;

	(void)state;
	core_receipt_encode(&good, bytes);
	assert_int_equal(core_receipt_decode(bytes, sizeof(bytes), &out), 0);
	assert_memory_equal(&good, &out, sizeof(good));
	assert_int_equal(core_receipt_decode(bytes, sizeof(bytes) - 1, &out), -EBADMSG);
	for (uint32_t i = 0; i < 4; i++) {
		bad = good;
		if (i == 0)
			bad.submitter = self; /* to itself */
		else if (i == 1)
			bad.epoch = 0;
		else if (i == 2)
			bad.byte_hours = CORE_CREDIT_MAX + 1;
		core_receipt_encode(&bad, bytes);
		if (i == 3)
			bytes[0] = 2; /* a version of the future */
		assert_int_equal(core_receipt_decode(bytes, sizeof(bytes), &out), -EBADMSG);
	}
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_is_kept_is_paid_by_the_hour),
		TEST(small_intervals_add_up),
		TEST(who_does_not_answer_is_not_paid),
		TEST(the_same_object_twice_counts_once),
		TEST(clocks_that_jump_are_bounded),
		TEST(another_incarnation_begins_anew),
		TEST(what_was_put_before_the_register_counts),
		TEST(many_objects_are_one_restore),
		TEST(tables_that_are_full_pay_less),
		TEST(receipts_grow_and_never_shrink),
		TEST(the_book_is_bounded_and_in_order),
		TEST(time_that_this_host_was_off_does_not_count),
		TEST(a_crash_after_the_save_sends_anew),
		TEST(a_lost_disk_learns_from_what_it_signed),
		TEST(disks_that_lie_are_found_out),
		TEST(books_come_back_whole_or_not_at_all),
		TEST(receipts_that_are_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
