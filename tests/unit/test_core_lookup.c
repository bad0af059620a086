/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/chord.h"
#include "overlay/core/core.h"
#include "tests/sim/tablelab.h"

static void size_chooses(void **state)
{
	(void)state;
	assert_int_equal(lookup_choose(3, 0), LOOKUP_ONE_HOP);
	assert_int_equal(lookup_choose(100, 99), LOOKUP_CHORD);
	assert_int_equal(lookup_choose(100, 100), LOOKUP_ONE_HOP);
	/* No table holds more, whatever is wished. */
	assert_int_equal(lookup_choose(OV_MEMBERS_MAX, 0), LOOKUP_ONE_HOP);
	assert_int_equal(lookup_choose(OV_MEMBERS_MAX + 1, LOOKUP_ONE_HOP_MAX), LOOKUP_CHORD);
}

static void ring_arithmetic_wraps(void **state)
{
	const struct ring_key zero = { 0, 0 }, one = { 0, 1 }, last = { UINT64_MAX, UINT64_MAX };
	const struct ring_key carry = { 1, 0 }, half = { UINT64_C(1) << 63, 0 };

	(void)state;
	assert_true(ring_equal(ring_distance(last, zero), one));
	assert_true(ring_equal(ring_distance(one, zero), last));
	assert_true(ring_equal(ring_distance((struct ring_key){ 0, UINT64_MAX }, carry), one));
	assert_true(ring_between(last, zero, one));
	assert_false(ring_between(one, zero, last));
	assert_false(ring_between(zero, one, one));
	assert_true(ring_within(zero, one, one));
	assert_true(ring_between(one, last, one)); /* the whole ring but one */
	assert_false(ring_between(one, one, one));
	assert_true(ring_equal(ring_finger(zero, 0), half));
	assert_true(ring_equal(ring_finger(half, 0), zero));
	assert_true(ring_equal(ring_finger(zero, 127), one));
	assert_true(ring_equal(ring_finger((struct ring_key){ 0, UINT64_MAX }, 127), carry));
}

static void table_answers_at_once(void **state)
{
	static const uint32_t sizes[] = { 2, 3, 50, OV_MEMBERS_MAX, OV_MEMBERS_MAX + 200 };
	struct tablelab_result result;

	(void)state;
	for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		for (uint32_t count = 1; count <= OV_REPLICAS_MAX; count++) {
			tablelab_run(i + 1, sizes[i], 200, count, &result);
			assert_int_equal(result.lookups, 200);
			assert_int_equal(result.failed + result.wrong, 0);
			assert_int_equal(result.hops, 200);
		}
		assert_true(sizes[i] < 50 || result.live < sizes[i]);
	}
}

static void counts_are_bounded(void **state)
{
	struct core *core = calloc(1, core_size());
	struct lookup lookup = lookup_of_core(core);
	struct lookup_result result;
	struct ring_key key = { 1, 1 };

	(void)state;
	assert_int_equal(lookup_find(&lookup, 1, key, 0, 1, &result), -EINVAL);
	assert_int_equal(lookup_find(&lookup, 1, key, OV_REPLICAS_MAX + 1, 1, &result), -EINVAL);
	assert_int_equal(lookup_find(&lookup, 1, key, 1, 1, &result), -EHOSTUNREACH); /* no rows */
	free(core);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(size_chooses),
		cmocka_unit_test(ring_arithmetic_wraps),
		cmocka_unit_test(table_answers_at_once),
		cmocka_unit_test(counts_are_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
