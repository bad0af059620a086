/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/holders.h"
#include "overlay/core/match.h"
#include "overlay/core/needs.h"
#include "overlay/core/state.h"
#include "tests/sim/simnet.h"

enum { HOSTS = 6 };

static const struct simnet_rates calm = { .latency_ms = 2 };

static struct simnet *lab(void)
{
	struct simnet *net = simnet_create(21, HOSTS, &calm, NULL);

	for (uint32_t i = 0; i < HOSTS; i++)
		simnet_start(net, i, 0);
	simnet_run(net, 8000);
	return net;
}

static void change(struct simnet *net)
{
	for (uint32_t i = 0; i < HOSTS; i++)
		simnet_report(net, i);
	simnet_run(net, net->now_ms + 15000);
}

static void objects_go_to_distinct_rooms(void **state)
{
	struct simnet *net = lab();
	struct node_id found[HOSTS];
	uint32_t seen[HOSTS] = { 0 };

	(void)state;
	for (uint32_t k = 0; k < 300; k++) {
		struct object_hash hash = { { (uint8_t)k, (uint8_t)(k >> 8), 7 } };
		const struct node_id *exclude = &net->nodes[0].card.id;
		uint32_t rooms = 0, count;

		count = core_place(net->nodes[0].core, &hash, 1 << 20, exclude, HOSTS, found);
		assert_int_equal(count, HOSTS - 1);
		for (uint32_t i = 0; i < 3; i++)
			rooms |= 1u << simnet_index(net, &found[i]) % 3;
		assert_int_equal(rooms, 7);
		for (uint32_t i = 0; i < count; i++)
			assert_int_not_equal(simnet_index(net, &found[i]), 0);
		seen[simnet_index(net, &found[0])]++;
	}
	for (uint32_t i = 1; i < HOSTS; i++)
		assert_in_range(seen[i], 20, 120); /* equal weights: all get their share */
	simnet_destroy(net);
}

static void unfit_peers_get_no_objects(void **state)
{
	struct simnet *net = lab();
	struct node_id found[HOSTS];
	struct object_hash hash = { { 5 } };

	(void)state;
	net->nodes[1].report.flags = MEMBER_TAKES_JOBS;
	net->nodes[2].report.store_free_bytes = 1 << 20;
	net->nodes[3].report.flags |= MEMBER_VACATING;
	change(net);
	simnet_crash(net, 4);
	simnet_run(net, net->now_ms + 15000);
	assert_int_equal(core_place(net->nodes[0].core, &hash, 1 << 20, NULL, HOSTS, found), 2);
	assert_int_equal(core_place(net->nodes[0].core, &hash, 1 << 20, NULL, 1, found), 1);
	assert_int_equal(core_place(net->nodes[0].core, &hash, UINT64_MAX / 4, NULL, 5, found), 0);
	simnet_destroy(net);
}

static void free_room_draws_objects(void **state)
{
	struct simnet *net = lab();
	struct node_id found[1];
	uint32_t rich = 0;

	(void)state;
	net->nodes[5].report.store_free_bytes *= 16;
	change(net);
	for (uint32_t k = 0; k < 200; k++) {
		struct object_hash hash = { { (uint8_t)k, 1 } };

		assert_int_equal(core_place(net->nodes[0].core, &hash, 100, NULL, 1, found), 1);
		rich += simnet_index(net, found) == 5;
	}
	assert_in_range(rich, 200 * 6 / 10, 200 * 9 / 10); /* 16 of 21 expected */
	simnet_destroy(net);
}

/* What hosts say of themselves reaches who places, and who announces to leave is not counted on. */
static void forecasts_steer_objects(void **state)
{
	struct simnet *net = lab();
	struct object_hash hash = { { 3 } };
	struct node_id found[HOSTS], holders[3];
	uint32_t there;

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++)
		net->nodes[i].report.stays = i == 1 || i == 2 || i == 4 ? 901 : 11;
	change(net);
	for (uint32_t k = 0; k < 50; k++) {
		hash.b[1] = (uint8_t)k;
		assert_int_equal(core_place(net->nodes[0].core, &hash, 1 << 20, NULL, 3, found), 3);
		for (uint32_t i = 0; i < 2; i++)
			assert_int_equal(simnet_index(net, &found[i]) % 3 == 0, 0);
	}
	/* Hosts 1, 2 and 5 have it; the first of the list acts, and only if it must. */
	for (uint32_t i = 0; i < 3; i++)
		holders[i] = net->nodes[i < 2 ? i + 1 : 5].card.id;
	for (uint32_t i = 1; i < HOSTS; i++)
		assert_int_equal(core_place_repair(net->nodes[i].core, &core_place_rule_default,
						   &hash, 1 << 20, holders, 3, &there, found),
				 0);
	assert_int_equal(there, 3);
	net->nodes[2].report.flags |= MEMBER_VACATING;
	change(net);
	assert_int_equal(core_place_repair(net->nodes[2].core, &core_place_rule_default, &hash,
					   1 << 20, holders, 3, &there, found),
			 0);
	assert_int_equal(core_place_repair(net->nodes[1].core, &core_place_rule_default, &hash,
					   1 << 20, holders, 3, &there, found),
			 1);
	assert_int_equal(simnet_index(net, &found[0]), 4); /* the stable one that is left */
	simnet_destroy(net);
}

/* Space is short at host 4: its copy is surplus if others that stay have theirs. */
static void surplus_is_what_others_have(void **state)
{
	struct simnet *net = lab();
	struct node_id holders[OV_HOLDERS_MAX];
	const struct core_place_rule *rule = &core_place_rule_default;
	uint32_t all = ~0u, without_2 = ~2u, stable = 0;
	struct core *core = net->nodes[4].core;

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++)
		net->nodes[i].report.stays = i == 1 || i == 2 || i == 4 ? 901 : 11;
	change(net);
	for (uint32_t i = 0; i < 4; i++)
		holders[i] = net->nodes[i + 1].card.id;
	assert_true(core_place_surplus(core, rule, holders, 4, NULL, &stable));
	assert_int_equal(stable, 3);
	assert_true(core_place_surplus(core, rule, holders, 4, &all, &stable));
	assert_false(core_place_surplus(core, rule, holders, 4, &without_2, &stable));
	assert_int_equal(stable, 2);
	/* Who fell off a list that is full has a copy all the same. */
	assert_true(core_place_surplus(core, rule, holders, 3, NULL, &stable));
	assert_false(core_place_surplus(core, rule, holders, OV_HOLDERS_MAX + 1, NULL, &stable));
	net->nodes[2].report.flags |= MEMBER_VACATING;
	change(net);
	assert_false(core_place_surplus(core, rule, holders, 4, NULL, &stable));
	simnet_destroy(net);
}

/* A majority of the acceptors that one of the tombstones names, and nobody else's word. */
static void a_majority_buries_a_job(void **state)
{
	struct core_tombstone says[6] = { 0 }, stone = { .state = JOB_STATE_KILLED };
	struct node_id nodes[6];

	(void)state;
	for (uint8_t i = 0; i < 6; i++)
		nodes[i] = (struct node_id){ { (uint8_t)(i + 1) } };
	stone.acceptor_count = 5;
	memcpy(stone.acceptors, nodes, 5 * sizeof(*nodes));
	assert_false(core_is_over(says, nodes, 6));
	says[0] = says[1] = says[5] = stone; /* the last was none of them */
	assert_false(core_is_over(says, nodes, 6));
	says[4] = stone;
	assert_true(core_is_over(says, nodes, 6));
	assert_false(core_is_over(says, nodes, 4)); /* it did not answer */
	/* Who names himself alone is believed: he was the only one. */
	memset(says, 0, sizeof(says));
	says[5] = stone;
	says[5].acceptor_count = 1;
	assert_false(core_is_over(says, nodes, 6)); /* not when he names another */
	says[5].acceptors[0] = nodes[5];
	assert_true(core_is_over(says, nodes, 6));
	says[5].acceptor_count = OV_REPLICAS_MAX + 1;
	assert_false(core_is_over(says, nodes, 6));
}

static void the_ring_is_as_acceptors_are_named(void **state)
{
	struct simnet *net = lab();
	struct job_id id = { { 8 } };
	struct node_id nodes[HOSTS + 1];
	struct core_acceptors set;

	(void)state;
	core_place_acceptors(net->nodes[0].core, &id, &set);
	assert_int_equal(core_ring(net->nodes[1].core, &id, HOSTS + 1, nodes), HOSTS);
	for (uint32_t i = 0; i < HOSTS; i++)
		for (uint32_t k = 0; k < i; k++)
			assert_false(node_id_equal(&nodes[i], &nodes[k]));
	assert_memory_equal(&nodes[0], &set.ids[0], sizeof(nodes[0]));
	assert_int_equal(core_ring(net->nodes[1].core, &id, 2, nodes), 2);
	simnet_destroy(net);
}

static uint32_t worker(struct simnet *net, const struct job_value *value, bool lapsed)
{
	struct node_id id;

	if (core_place_worker(net->nodes[0].core, value, lapsed, &id) == -EHOSTUNREACH)
		return SIMNET_NODES_MAX;
	return simnet_index(net, &id);
}

static void workers_must_fit(void **state)
{
	struct simnet *net = lab();
	struct job_value value = { .fence = FENCE_STRICT, .mem_bytes = 1 << 30 };

	(void)state;
	net->nodes[0].report.flags |= MEMBER_LOSES_CLOCK;
	net->nodes[1].report.flags &= ~(uint32_t)MEMBER_TAKES_JOBS;
	net->nodes[2].report.mem_free_bytes = 1 << 29;
	for (uint32_t i = 3; i < HOSTS; i++)
		net->nodes[i].report.cpu_features[1] = 6;
	net->nodes[3].report.load_milli = 3000;
	net->nodes[4].report.load_milli = 2000;
	net->nodes[5].report.load_milli = 1000;
	change(net);
	value.cpu_need[1] = 4;
	assert_int_equal(worker(net, &value, false), 5);
	value.owner = net->nodes[5].card.id;
	assert_int_equal(worker(net, &value, true), 4); /* 5 fell silent */
	value.avoid[0] = net->nodes[4].card.id;
	value.avoid_count = 1;
	assert_int_equal(worker(net, &value, true), 3);
	value.target = net->nodes[4].card.id; /* to be avoided, wished or not */
	assert_int_equal(worker(net, &value, true), 3);
	value.avoid_count = 0;
	assert_int_equal(worker(net, &value, true), 4);
	value.cpu_need[1] = 8;
	assert_int_equal(worker(net, &value, true), SIMNET_NODES_MAX);
	value.cpu_need[1] = 0;
	value.mem_bytes = UINT64_C(1) << 40;
	assert_int_equal(worker(net, &value, true), SIMNET_NODES_MAX);
	simnet_destroy(net);
}

/* Tags and kernels come with the report, needs with the value; a takeover by hand obeys them too. */
static void workers_must_have_what_is_asked_for(void **state)
{
	static const uint8_t gpu[] = { NEEDS_TAG, 3, 'g', 'p', 'u' };
	struct simnet *net = lab();
	struct job_value value = { .fence = FENCE_STRICT, .needs_size = sizeof(gpu) };
	const struct member *lab3;

	(void)state;
	memcpy(value.needs, gpu, sizeof(gpu));
	assert_int_equal(worker(net, &value, false), SIMNET_NODES_MAX);
	strcpy(net->nodes[3].report.tags, "big gpu");
	strcpy(net->nodes[4].report.tags, "gpus");
	for (uint32_t i = 0; i < HOSTS; i++)
		net->nodes[i].report.arch = CPU_ARCH_X86_64;
	net->nodes[3].report.kernel_features = KERNEL_FREEZER | KERNEL_OVERLAY;
	change(net);
	lab3 = core_member_find(net->nodes[0].core, &net->nodes[3].card.id);
	assert_int_equal(worker(net, &value, false), 3);
	value.arch = CPU_ARCH_X86_64;
	value.kernel_need = KERNEL_FREEZER;
	assert_int_equal(worker(net, &value, false), 3);
	assert_true(core_place_can_run(lab3, &value));
	value.kernel_need = KERNEL_FREEZER | KERNEL_RSEQ;
	assert_int_equal(worker(net, &value, false), SIMNET_NODES_MAX);
	assert_false(core_place_can_run(lab3, &value));
	value.kernel_need = 0;
	value.arch = CPU_ARCH_AARCH64;
	assert_int_equal(worker(net, &value, false), SIMNET_NODES_MAX);
	value.arch = 0;
	value.needs[2] = 'c';
	assert_int_equal(worker(net, &value, false), SIMNET_NODES_MAX);
	value.needs[2] = ' '; /* no program */
	assert_int_equal(worker(net, &value, false), SIMNET_NODES_MAX);
	simnet_destroy(net);
}

/* What was granted to a host and not reported yet counts for needs as it does for memory. */
static void grants_count_against_needs(void **state)
{
	uint8_t mem[3 + 8] = { NEEDS_COMPARE, NEEDS_MEM, NEEDS_GE };
	struct member_info host = { .state = MEMBER_ALIVE };
	struct job_value value = { .fence = FENCE_COMMIT, .needs_size = sizeof(mem) };
	struct core_match match;

	(void)state;
	mem[3 + 3] = 0x40; /* 1 GiB */
	memcpy(value.needs, mem, sizeof(mem));
	host.report.flags = MEMBER_TAKES_JOBS;
	host.report.mem_free_bytes = UINT64_C(3) << 30;
	for (uint32_t grants = 0; grants < 5; grants++) {
		core_match(&host, &value, grants, &match);
		assert_int_equal(match.bars, grants < 3 ? 0 : MATCH_NEEDS);
		assert_int_equal(match.needs_blame, grants < 3 ? 0 : 1);
	}
}

/* All that bars a host is told, and what is amiss in each. */
static void every_bar_is_told(void **state)
{
	struct member_info host = { .id = { { 9 } }, .state = MEMBER_DEAD };
	struct job_value value = { .fence = FENCE_STRICT,
				   .mem_bytes = 1,
				   .cpu_need = { 0, 5, 0, 0 },
				   .arch = CPU_ARCH_RISCV64,
				   .kernel_need = KERNEL_OVERLAY | KERNEL_RSEQ,
				   .needs_size = 3,
				   .needs = { NEEDS_TAG, 1, 'a' },
				   .avoid_count = 2,
				   .avoid = { { { 8 } }, { { 9 } } } };
	struct core_match match;

	(void)state;
	host.report.flags = MEMBER_VACATING | MEMBER_LOSES_CLOCK;
	host.report.cpu_features[1] = 4;
	host.report.kernel_features = KERNEL_RSEQ;
	core_match(&host, &value, 0, &match);
	assert_int_equal(match.bars, MATCH_AWAY | MATCH_VACATING | MATCH_AVOIDED | MATCH_CANNOT);
	assert_int_equal(match.avoid_index, 1);
	assert_int_equal(match.kernel_lacks, KERNEL_OVERLAY);
	assert_int_equal(match.cpu_lacks[1], 1);
	host.report.flags = 0;
	core_match(&host, &value, 0, &match);
	assert_true(match.bars & MATCH_TAKES_NONE);
}

static void a_lossy_clock_takes_commit_jobs_only(void **state)
{
	struct simnet *net = lab();
	struct job_value value = { .fence = FENCE_STRICT };

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++)
		net->nodes[i].report.flags |= MEMBER_LOSES_CLOCK;
	change(net);
	assert_int_equal(worker(net, &value, false), SIMNET_NODES_MAX);
	value.fence = FENCE_COMMIT;
	assert_true(worker(net, &value, false) < HOSTS);
	simnet_destroy(net);
}

static void acceptors_are_the_same_everywhere(void **state)
{
	struct simnet *net = lab();
	uint32_t used[HOSTS] = { 0 };

	(void)state;
	for (uint32_t k = 0; k < 100; k++) {
		struct job_id id = { { (uint8_t)k, 3 } };
		struct core_acceptors first, set;

		core_place_acceptors(net->nodes[0].core, &id, &first);
		assert_int_equal(first.count, 5);
		for (uint32_t i = 1; i < HOSTS; i++) {
			core_place_acceptors(net->nodes[i].core, &id, &set);
			assert_memory_equal(&first, &set, sizeof(set));
		}
		used[simnet_index(net, &first.ids[0])]++;
	}
	for (uint32_t i = 0; i < HOSTS; i++)
		assert_true(used[i] < 60);
	simnet_destroy(net);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(objects_go_to_distinct_rooms),
		cmocka_unit_test(unfit_peers_get_no_objects),
		cmocka_unit_test(free_room_draws_objects),
		cmocka_unit_test(forecasts_steer_objects),
		cmocka_unit_test(surplus_is_what_others_have),
		cmocka_unit_test(a_majority_buries_a_job),
		cmocka_unit_test(the_ring_is_as_acceptors_are_named),
		cmocka_unit_test(workers_must_fit),
		cmocka_unit_test(workers_must_have_what_is_asked_for),
		cmocka_unit_test(grants_count_against_needs),
		cmocka_unit_test(every_bar_is_told),
		cmocka_unit_test(a_lossy_clock_takes_commit_jobs_only),
		cmocka_unit_test(acceptors_are_the_same_everywhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
