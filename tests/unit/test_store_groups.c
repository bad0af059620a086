// SPDX-License-Identifier: LGPL-2.1-or-later
/* Lists of who has which shard: the newest counts, and only by it is a shard given up. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "store_lab.h"

enum { BYTES = 1000, SHARDS = 6 };

static const struct node_id self = { { 7, 7 } };

/* Whose shard 2 lies here, and the others with hosts of which nothing is known. */
static struct ov_group group_of(const struct ov_object *shard, uint32_t revision)
{
	struct ov_group group = { .job = shard->job,
				  .token = shard->token,
				  .hash = { { 5, 5 } },
				  .seq = shard->seq,
				  .size = 4 * BYTES,
				  .k = 4,
				  .m = 2,
				  .revision = revision };

	for (uint8_t i = 0; i < SHARDS; i++) {
		group.shards[i] = (struct object_hash){ { 9, i } };
		group.holders[i] = (struct node_id){ { 1, i } };
	}
	group.shards[2] = shard->hash;
	group.holders[2] = self;
	return group;
}

static void expect(struct store_lab *f, const struct ov_group *group)
{
	struct ov_group found;

	assert_int_equal(store_get_group(f->store, &group->hash, &found), 0);
	assert_memory_equal(&found, group, sizeof(found));
}

/* Of two with one revision each host takes the same; of other shards none without one of them. */
static void the_newest_list_counts(void **state)
{
	struct store_lab *f = *state;
	struct ov_object shard = store_lab_put_new(f->store, BYTES, 1, 1, 1);
	struct ov_group first = group_of(&shard, 3), older = first, larger = first, other = first;

	assert_int_equal(store_set_group(f->store, &first), 0);
	older.revision = 2;
	older.holders[0] = (struct node_id){ { 200 } };
	assert_int_equal(store_set_group(f->store, &older), 0);
	expect(f, &first);
	larger.holders[0] = (struct node_id){ { 100 } };
	assert_int_equal(store_set_group(f->store, &larger), 0);
	expect(f, &larger);
	assert_int_equal(store_set_group(f->store, &first), 0);
	expect(f, &larger);
	other.revision = 4;
	other.shards[2] = (struct object_hash){ { 8 } };
	assert_int_equal(store_set_group(f->store, &other), -ENOENT);
	expect(f, &larger);
	other.shards[3] = shard.hash;
	assert_int_equal(store_set_group(f->store, &other), 0);
	expect(f, &other);
}

static void only_the_list_that_is_known_gives_up(void **state)
{
	struct store_lab *f = *state;
	struct ov_object shard = store_lab_put_new(f->store, BYTES, 1, 1, 1);
	struct ov_group known = group_of(&shard, 3), moved = known, later;

	assert_int_equal(store_set_group(f->store, &known), 0);
	/* It names this host; or it is another one than is known, older or newer. */
	assert_int_equal(store_shed(f->store, &known, 2, &self), -ESTALE);
	moved.revision = 4;
	moved.holders[2] = (struct node_id){ { 2 } };
	assert_int_equal(store_shed(f->store, &moved, 2, &self), -ESTALE);
	assert_int_equal(store_set_group(f->store, &moved), 0);
	later = moved;
	later.revision = 5;
	later.holders[2] = self;
	assert_int_equal(store_set_group(f->store, &later), 0);
	assert_int_equal(store_shed(f->store, &moved, 2, &self), -ESTALE);
	assert_int_equal(store_lab_get(f->store, &shard), 0);
	/* One that is not here. */
	moved.revision = 6;
	assert_int_equal(store_set_group(f->store, &moved), 0);
	assert_int_equal(store_shed(f->store, &moved, 3, &self), -ENOENT);
	expect(f, &moved);
	/* The shard goes with the list, or neither. */
	assert_int_equal(store_shed(f->store, &moved, 2, &self), 0);
	store_lab_reopen(f);
	assert_int_equal(store_lab_get(f->store, &shard), -ENOENT);
	assert_int_equal(store_lab_stats(f->store).objects, 0);
	assert_int_equal(store_get_group(f->store, &moved.hash, &later), -ENOENT);
}

/* It has two of them: the one that is its own stays, and the list with it. */
static void its_own_shard_stays(void **state)
{
	struct store_lab *f = *state;
	struct ov_object old = store_lab_put_new(f->store, BYTES, 1, 1, 1);
	struct ov_object own = store_lab_put_new(f->store, BYTES, 2, 1, 1);
	struct ov_group group = group_of(&old, 3);

	group.holders[2] = (struct node_id){ { 2 } };
	group.shards[4] = own.hash;
	group.holders[4] = self;
	assert_int_equal(store_set_group(f->store, &group), 0);
	assert_int_equal(store_shed(f->store, &group, 4, &self), -ESTALE);
	assert_int_equal(store_shed(f->store, &group, 2, &self), 0);
	assert_int_equal(store_lab_get(f->store, &old), -ENOENT);
	assert_int_equal(store_lab_get(f->store, &own), 0);
	expect(f, &group);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(the_newest_list_counts, store_lab_setup,
						store_lab_teardown),
		cmocka_unit_test_setup_teardown(only_the_list_that_is_known_gives_up,
						store_lab_setup, store_lab_teardown),
		cmocka_unit_test_setup_teardown(its_own_shard_stays, store_lab_setup,
						store_lab_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
