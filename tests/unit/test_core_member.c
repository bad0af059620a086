/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "overlay/core/state.h"
#include "tests/sim/simnet.h"

enum { HOSTS = 5 };

static const struct simnet_rates calm = { .latency_ms = 5, .drift_ppm = 400 };
static uint32_t suspect_count, notice_count;

static void count_notice(void *ctx, uint32_t node, const struct core_notice *notice)
{
	(void)ctx;
	(void)node;
	notice_count++;
	suspect_count += notice->type == CORE_MEMBER && notice->member.state == MEMBER_SUSPECT;
}

static struct simnet *lab(uint64_t seed)
{
	struct simnet_hooks hooks = { .notice = count_notice };
	struct simnet *net = simnet_create(seed, HOSTS, &calm, &hooks);

	suspect_count = notice_count = 0;
	for (uint32_t i = 0; i < HOSTS; i++)
		simnet_start(net, i, 0); /* each knows but the first */
	simnet_run(net, 6000);
	return net;
}

static void expect_all(const struct simnet *net, enum member_state state, uint32_t about)
{
	for (uint32_t i = 0; i < HOSTS; i++)
		if (i != about && net->nodes[i].core)
			assert_int_equal(simnet_view(net, i, about), state);
}

static const struct member_info *row(const struct simnet *net, uint32_t of, uint32_t about)
{
	const struct member_info *info;

	for (uint32_t i = 0; (info = core_member(net->nodes[of].core, i, simnet_local_ms(net, of)));
	     i++)
		if (!memcmp(&info->id, &net->nodes[about].card.id, sizeof(info->id)))
			return info;
	return NULL;
}

static void five_hosts_meet(void **state)
{
	struct simnet *net = lab(1);
	const char *addr;
	uint16_t port;

	(void)state;
	for (uint32_t i = 0; i < HOSTS; i++)
		expect_all(net, MEMBER_ALIVE, i);
	assert_true(core_address(net->nodes[3].core, &net->nodes[4].card.id, &addr, &port));
	assert_string_equal(addr, "10.0.0.1");
	assert_int_equal(port, 7000);
	assert_string_equal(row(net, 4, 2)->room, "room2");
	assert_true(row(net, 2, 2)->is_self);
	assert_true(row(net, 1, 2)->silent_ms < 4000);
	assert_non_null(core_card(net->nodes[0].core, &net->nodes[1].card.id));
	simnet_destroy(net);
}

static void silence_is_noticed_and_return_too(void **state)
{
	struct simnet *net = lab(2);

	(void)state;
	simnet_crash(net, 3);
	simnet_run(net, net->now_ms + 12000);
	expect_all(net, MEMBER_DEAD, 3);
	simnet_start(net, 3, 1);
	simnet_run(net, net->now_ms + 3000);
	expect_all(net, MEMBER_ALIVE, 3);
	for (uint32_t i = 0; i < HOSTS; i++)
		assert_int_equal(simnet_view(net, 3, i), MEMBER_ALIVE);
	simnet_destroy(net);
}

/* One lost answer, or two, are nobody's business but the asker's. */
static void a_short_silence_is_not_told(void **state)
{
	struct simnet *net = lab(9);

	(void)state;
	for (uint32_t i = 0; i < 60; i++) {
		net->nodes[3].mute = true;
		simnet_run(net, net->now_ms + 900);
		net->nodes[3].mute = false;
		simnet_run(net, net->now_ms + 4100);
	}
	assert_int_equal(suspect_count, 0);
	net->nodes[3].mute = true;
	simnet_run(net, net->now_ms + 12000);
	assert_true(suspect_count > 0);
	expect_all(net, MEMBER_DEAD, 3);
	simnet_destroy(net);
}

static void nobody_is_suspected_in_peace(void **state)
{
	struct simnet *net = lab(3);

	(void)state;
	simnet_run(net, net->now_ms + 600000);
	assert_int_equal(suspect_count, 0);
	simnet_destroy(net);
}

/* Ten percent of loss: suspicions arise, and are refuted before they kill. */
static void loss_is_refuted(void **state)
{
	struct simnet *net = lab(4);

	(void)state;
	net->rates.loss_ppm = 100000;
	for (uint32_t second = 0; second < 300; second++) {
		simnet_run(net, net->now_ms + 1000);
		for (uint32_t i = 0; i < HOSTS; i++)
			for (uint32_t k = 0; k < HOSTS; k++)
				assert_true(simnet_view(net, i, k) <= MEMBER_SUSPECT);
	}
	net->rates.loss_ppm = 0;
	simnet_run(net, net->now_ms + 5000);
	for (uint32_t i = 0; i < HOSTS; i++)
		expect_all(net, MEMBER_ALIVE, i);
	simnet_destroy(net);
}

static void halves_merge_again(void **state)
{
	struct simnet *net = lab(5);

	(void)state;
	net->nodes[0].group = net->nodes[1].group = 1;
	simnet_run(net, net->now_ms + 40000);
	assert_int_equal(simnet_view(net, 0, 4), MEMBER_DEAD);
	assert_int_equal(simnet_view(net, 4, 0), MEMBER_DEAD);
	assert_int_equal(simnet_view(net, 0, 1), MEMBER_ALIVE);
	net->nodes[0].group = net->nodes[1].group = 0;
	simnet_run(net, net->now_ms + 30000);
	for (uint32_t i = 0; i < HOSTS; i++)
		expect_all(net, MEMBER_ALIVE, i);
	simnet_destroy(net);
}

static void leaving_is_told(void **state)
{
	struct simnet *net = lab(6);
	const char *addr;
	uint16_t port;

	(void)state;
	simnet_leave(net, 2);
	simnet_run(net, net->now_ms + 100);
	simnet_crash(net, 2);
	expect_all(net, MEMBER_LEFT, 2);
	simnet_run(net, net->now_ms + 60000);
	expect_all(net, MEMBER_LEFT, 2);
	assert_false(core_address(net->nodes[0].core, &net->nodes[2].card.id, &addr, &port));
	simnet_start(net, 2, 0);
	simnet_run(net, net->now_ms + 3000);
	expect_all(net, MEMBER_ALIVE, 2);
	simnet_destroy(net);
}

/* A login must stop new grants: faster than one probe round, and a late rumour does not undo it. */
static void reports_spread_at_once(void **state)
{
	struct simnet *net = lab(7);

	(void)state;
	net->nodes[1].report.flags = MEMBER_USER_PRESENT;
	simnet_report(net, 1);
	simnet_run(net, net->now_ms + 50);
	for (uint32_t i = 0; i < HOSTS; i++)
		assert_int_equal(row(net, i, 1)->report.flags, MEMBER_USER_PRESENT);
	simnet_run(net, net->now_ms + 20000);
	for (uint32_t i = 0; i < HOSTS; i++)
		assert_int_equal(row(net, i, 1)->report.flags, MEMBER_USER_PRESENT);
	net->nodes[1].report.mem_free_bytes /= 2; /* not urgent, but heard of */
	simnet_report(net, 1);
	simnet_run(net, net->now_ms + 15000);
	for (uint32_t i = 0; i < HOSTS; i++)
		assert_int_equal(row(net, i, 1)->report.mem_free_bytes,
				 net->nodes[1].report.mem_free_bytes);
	simnet_destroy(net);
}

static void forged_cards_stay_out(void **state)
{
	struct simnet *net = simnet_create(8, 3, &calm, NULL);

	(void)state;
	net->nodes[2].card.version = 2; /* what the simulated verify_card refuses */
	for (uint32_t i = 0; i < 3; i++)
		simnet_start(net, i, 0);
	simnet_run(net, 20000);
	assert_int_equal(simnet_view(net, 0, 1), MEMBER_ALIVE);
	assert_null(row(net, 0, 2));
	assert_null(row(net, 1, 2));
	assert_true(core_refusals(net->nodes[0].core)->cards > 0);
	assert_int_equal(core_refusals(net->nodes[0].core)->old_lives, 0);
	simnet_destroy(net);
}

/* Host 0 is told this of host 2 by `from`. */
static int tell(struct simnet *net, const struct node_id *from, const struct core_gossip *record,
		uint32_t flip)
{
	static struct core_message message;
	uint8_t bytes[CORE_MESSAGE_MAX];
	const struct core_update *update;
	struct core_event event = { .type = CORE_EV_MESSAGE,
				    .now_ms = simnet_local_ms(net, 0),
				    .node = *from,
				    .bytes = bytes };

	memset(&message, 0, sizeof(message));
	message.type = CORE_MSG_GOSSIP;
	message.record_count = 1;
	message.records[0] = *record;
	event.size = core_message_encode(&message, bytes, sizeof(bytes));
	assert_true(event.size > 0);
	bytes[flip] ^= flip > 0;
	return core_step(net->nodes[0].core, &event, &update);
}

static struct core_gossip record_of(const struct simnet *net, uint32_t node)
{
	const struct member_info *info = row(net, 0, node);
	struct core_gossip record = { .id = info->id,
				      .incarnation = info->incarnation,
				      .state = MEMBER_ALIVE,
				      .kind = CORE_GOSSIP_FULL,
				      .card = *core_card(net->nodes[0].core, &info->id),
				      .port = info->port,
				      .report = info->report };

	memcpy(record.addr, info->addr, sizeof(record.addr));
	return record;
}

static void lies_about_members_change_nothing(void **state)
{
	struct simnet *net = lab(10);
	const struct core_refusals *refused = core_refusals(net->nodes[0].core);
	const struct node_id *one = &net->nodes[1].card.id, *two = &net->nodes[2].card.id;
	const struct member_info before = *row(net, 0, 2);
	struct core_gossip record = record_of(net, 2), forged = record;

	(void)state;
	/* What it said before, again: by itself, or as a rumour that comes late. */
	record.incarnation--;
	record.report.flags = MEMBER_VACATING;
	assert_int_equal(tell(net, two, &record, 0), 0);
	assert_int_equal(refused->old_lives, 1);
	record.state = MEMBER_LEFT;
	assert_int_equal(tell(net, one, &record, 0), 0);
	assert_int_equal(refused->old_lives, 1);
	/* A card that the cluster has not signed: of a member, and of nobody. */
	forged.incarnation += 1000;
	forged.card.version = 2; /* what the simulated verify_card refuses */
	forged.card.issued_wall_ms++;
	assert_int_equal(tell(net, one, &forged, 0), 0);
	forged.id.b[3] ^= 1;
	forged.card.id = forged.id;
	assert_int_equal(tell(net, one, &forged, 0), 0);
	assert_int_equal(refused->cards, 2);
	assert_null(core_card(net->nodes[0].core, &forged.id));
	/* A record under another id than its card's, in this host's name, in nobody's. */
	record.incarnation += 1000;
	assert_int_equal(tell(net, one, &record, 8), -EBADMSG);
	assert_int_equal(tell(net, &net->nodes[0].card.id, &record, 0), -EBADMSG);
	assert_int_equal(tell(net, &(struct node_id){ { 0 } }, &record, 0), -EBADMSG);
	assert_int_equal(refused->messages, 3);
	assert_memory_equal(&before, row(net, 0, 2), offsetof(struct member_info, silent_ms));
	assert_int_equal(before.report.flags, row(net, 0, 2)->report.flags);
	simnet_destroy(net);
}

static uint64_t rolled_back; /* the incarnation that is told, 0: none */

static void note_rolled_back(void *ctx, uint32_t node, const struct core_notice *notice)
{
	(void)ctx;
	if (notice->type != CORE_ROLLED_BACK)
		return;
	assert_int_equal(node, 2);
	assert_int_equal(rolled_back, 0); /* once */
	rolled_back = notice->member.incarnation;
}

static int ask_status;

static void note_answer(void *ctx, uint32_t node, const struct core_answer *answer)
{
	(void)ctx;
	(void)node;
	ask_status = answer->status;
}

/* Host 2 comes back with a disk that remembers to have announced so much. */
static struct simnet *come_back(bool older, uint64_t *ret_known)
{
	struct simnet_hooks hooks = { .notice = note_rolled_back, .answer = note_answer };
	struct simnet *net = simnet_create(9, HOSTS, &calm, &hooks);
	uint64_t copied;

	rolled_back = 0;
	for (uint32_t i = 0; i < HOSTS; i++)
		simnet_start(net, i, 0);
	simnet_run(net, 6000);
	copied = row(net, 2, 2)->incarnation;
	net->nodes[2].report.jobs++; /* it says something new */
	simnet_report(net, 2);
	simnet_run(net, net->now_ms + 2000);
	*ret_known = row(net, 2, 2)->incarnation;
	assert_true(*ret_known > copied);
	assert_int_equal(row(net, 4, 2)->incarnation, *ret_known);
	simnet_crash(net, 2);
	simnet_run(net, net->now_ms + 1000);
	simnet_start(net, 2, 1);
	net->nodes[2].core->config.lost_from = (older ? copied : *ret_known) + 1;
	simnet_run(net, net->now_ms + 5000);
	return net;
}

/* Rule A5: others remember more of its words than its disk. It leaves, and is silent. */
static void a_rolled_back_disk_is_told(void **state)
{
	struct job_value value = { .job = { { 7 } } };
	uint64_t known;
	struct simnet *net = come_back(true, &known);

	(void)state;
	assert_int_equal(rolled_back, known);
	expect_all(net, MEMBER_LEFT, 2);
	ask_status = 0;
	simnet_request(net, 2, CORE_REQ_GET, &value, 1);
	simnet_run(net, net->now_ms + 60000);
	assert_int_equal(ask_status, -ESTALE);
	expect_all(net, MEMBER_LEFT, 2);
	simnet_destroy(net);
}

static void the_same_disk_is_welcome(void **state)
{
	uint64_t known;
	struct simnet *net = come_back(false, &known);

	(void)state;
	assert_int_equal(rolled_back, 0);
	expect_all(net, MEMBER_ALIVE, 2);
	simnet_run(net, net->now_ms + 60000);
	assert_int_equal(rolled_back, 0);
	expect_all(net, MEMBER_ALIVE, 2);
	simnet_destroy(net);
}

/* The sizes at which probes become slower, and the table's end. */
static void a_large_cluster_is_probed_slower(void **state)
{
	static const uint32_t sizes[] = { 255, 256, 511, 512, OV_MEMBERS_MAX },
			      paces[] = { 1, 2, 2, 3, 3 };
	struct core *core = calloc(1, core_size());

	(void)state;
	core->config.probe_ms = 1000;
	core->config.suspect_ms = 5000;
	core->config.hold_ms = 22000;
	for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		core->member_count = sizes[i];
		assert_int_equal(core_pace(core), paces[i]);
		assert_int_equal(core_round_ms(core), 1000 * paces[i]);
		/* The first probe of a dead host comes after 1.6 rounds on average. */
		assert_true(core_round_ms(core) * 8 / 5 + core_suspect_ms(core) <
			    core->config.hold_ms);
	}
	free(core);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(five_hosts_meet),
		cmocka_unit_test(silence_is_noticed_and_return_too),
		cmocka_unit_test(a_short_silence_is_not_told),
		cmocka_unit_test(nobody_is_suspected_in_peace),
		cmocka_unit_test(loss_is_refuted),
		cmocka_unit_test(halves_merge_again),
		cmocka_unit_test(leaving_is_told),
		cmocka_unit_test(reports_spread_at_once),
		cmocka_unit_test(forged_cards_stay_out),
		cmocka_unit_test(lies_about_members_change_nothing),
		cmocka_unit_test(a_rolled_back_disk_is_told),
		cmocka_unit_test(the_same_disk_is_welcome),
		cmocka_unit_test(a_large_cluster_is_probed_slower),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
