// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "agent/cluster/internal.h"
#include "agent/util/io.h"

/* Two hosts: `first` made the cluster, `second` wants to join. */
struct lab {
	char root[64], first_dir[80], second_dir[80];
	struct cluster *first, *second;
	char token[CLUSTER_TOKEN_MAX];
	struct ov_invite invite;
	struct cluster_join *join;
	struct ov_join request, reply;
	char hostname[OV_NAME_MAX];
};

static int setup(void **state)
{
	struct lab *lab = calloc(1, sizeof(*lab));

	strcpy(lab->root, "/tmp/test-cluster-XXXXXX");
	assert_non_null(mkdtemp(lab->root));
	snprintf(lab->first_dir, sizeof(lab->first_dir), "%s/first", lab->root);
	snprintf(lab->second_dir, sizeof(lab->second_dir), "%s/second", lab->root);
	assert_int_equal(cluster_init(lab->first_dir, "lab01", "r1", "10.0.0.1", 7411, &lab->first),
			 0);
	*state = lab;
	return 0;
}

static int teardown(void **state)
{
	struct lab *lab = *state;

	cluster_destroy(lab->first);
	cluster_destroy(lab->second);
	cluster_join_destroy(lab->join);
	assert_int_equal(remove_tree_at(AT_FDCWD, lab->root), 0);
	free(lab);
	return 0;
}

static void invite_and_ask(struct lab *lab)
{
	assert_int_equal(cluster_invite(lab->first, lab->first_dir, 600, lab->token, &lab->invite),
			 0);
	cluster_join_destroy(lab->join);
	assert_int_equal(cluster_join_request(lab->token, "lab02", "r 2", "10.0.0.2", 7412,
					      &lab->join, &lab->request),
			 0);
}

static int admit(struct lab *lab)
{
	return cluster_admit(lab->first, lab->first_dir, &lab->request, NULL, 0, &lab->reply,
			     lab->hostname);
}

static int accept_reply(struct lab *lab)
{
	return cluster_join_accept(lab->join, lab->second_dir, lab->reply.bytes, lab->reply.size,
				   &lab->second);
}

static void test_identity_survives_a_restart(void **state)
{
	struct lab *lab = *state;
	struct cluster *again;
	struct ov_identity identity;
	struct stat st;
	char path[128];
	uint16_t port;

	assert_int_equal(cluster_load(lab->first_dir, &again), 0);
	assert_memory_equal(&again->id, &lab->first->id, sizeof(again->id));
	assert_true(cluster_can_admit(again));
	assert_string_equal(cluster_addr(again, &port), "10.0.0.1");
	assert_int_equal(port, 7411);
	cluster_overlay_identity(again, &identity);
	assert_int_equal(node_card_verify(&identity.card, identity.cluster_public, now_wall_ms()),
			 0);
	assert_int_equal(identity.seed_count, 0);
	/* The overlay half gets its own TLS key and no other secret. */
	assert_null(memmem(&identity, sizeof(identity), &again->id.worker_key, KEY_BYTES));
	assert_null(memmem(&identity, sizeof(identity), &again->id.sign_seed, KEY_BYTES));
	assert_null(memmem(&identity, sizeof(identity), &again->id.cluster_seed, KEY_BYTES));
	cluster_destroy(again);

	snprintf(path, sizeof(path), "%s/identity", lab->first_dir);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(st.st_size, sizeof(struct identity));
	assert_int_equal(cluster_init(lab->first_dir, "x", "", "10.0.0.1", 1, &again), -EEXIST);
	assert_int_equal(cluster_load(lab->second_dir, &again), -ENOENT);
	assert_int_equal(cluster_load(lab->root, &again), -ENOENT);
}

/* Whose id is used up gets another, if it has the key that issues them. */
static void test_renew(void **state)
{
	struct lab *lab = *state;
	struct identity before = lab->first->id;
	struct cluster *again;

	assert_int_equal(cluster_renew(lab->first, lab->first_dir), 0);
	assert_int_equal(cluster_load(lab->first_dir, &again), 0);
	assert_memory_equal(&again->id.card, &lab->first->id.card, sizeof(again->id.card));
	assert_memory_not_equal(&again->id.card.id, &before.card.id, sizeof(before.card.id));
	assert_string_equal(again->id.card.hostname, before.card.hostname);
	assert_string_equal(again->id.card.room, before.card.room);
	assert_memory_equal(again->id.cluster_public, before.cluster_public, 32);
	assert_memory_equal(&again->id.worker_key, &before.worker_key, KEY_BYTES);
	assert_true(cluster_can_admit(again));
	/* It knows the key no more: then it is not for it to say. */
	again->id.flags = 0;
	assert_int_equal(cluster_renew(again, lab->first_dir), -EPERM);
	cluster_destroy(again);
	key_wipe(&before, sizeof(before));
}

static void test_damaged_identity_is_refused(void **state)
{
	struct lab *lab = *state;
	struct identity id, out;

	for (size_t i = 0; i < sizeof(id); i++) {
		id = lab->first->id;
		((uint8_t *)&id)[i] ^= 1;
		assert_int_equal(identity_decode(&id, sizeof(id), &out), -EBADMSG);
	}
	id = lab->first->id;
	for (size_t size = 0; size < sizeof(id); size += 7)
		assert_int_equal(identity_decode(&id, size, &out), -EBADMSG);
	assert_int_equal(identity_decode(&id, sizeof(id), &out), 0);
	/* A good checksum is no excuse. */
	for (int i = 0; i < 8; i++) {
		id = lab->first->id;
		if (i == 0)
			id.version = 2;
		else if (i == 1)
			id.flags = 0;
		else if (i == 2)
			id.tls_seed.b[0] ^= 1;
		else if (i == 3)
			id.sign_seed.b[0] ^= 1;
		else if (i == 4)
			id.seed_count = CLUSTER_SEEDS_MAX + 1;
		else if (i == 5)
			id.seed_count = 1; /* of an empty address */
		else if (i == 6)
			memset(id.self.addr, '1', sizeof(id.self.addr));
		else
			id.cluster_id[0] ^= 1;
		object_hash_of(&id, offsetof(struct identity, checksum), &id.checksum);
		assert_int_equal(identity_decode(&id, sizeof(id), &out), -EBADMSG);
	}
}

static void test_join(void **state)
{
	struct lab *lab = *state;
	struct member_info members[20] = { 0 };
	struct cluster *again;
	struct ov_identity identity;

	for (int i = 0; i < 20; i++) {
		members[i].state = MEMBER_ALIVE;
		snprintf(members[i].addr, OV_ADDR_MAX, "10.0.1.%d", i);
		members[i].port = 7411;
	}
	members[0].is_self = 1;
	members[1].state = MEMBER_DEAD;
	strcpy(members[2].addr, "no address");
	memset(members[3].addr, '1', OV_ADDR_MAX);
	strcpy(members[4].addr, "fd00::5");

	invite_and_ask(lab);
	assert_int_equal(strncmp(lab->token, "decamp1-", 8), 0);
	assert_memory_equal(lab->request.token_id, lab->invite.token_id, 16);
	assert_memory_equal(lab->request.psk, lab->invite.psk, 32);
	assert_string_equal(lab->request.addr, "10.0.0.1");
	assert_int_equal(lab->request.port, 7411);
	assert_int_equal(cluster_admit(lab->first, lab->first_dir, &lab->request, members, 20,
				       &lab->reply, lab->hostname),
			 0);
	assert_string_equal(lab->hostname, "lab02");
	assert_int_equal(accept_reply(lab), 0);

	assert_false(cluster_can_admit(lab->second));
	assert_memory_equal(cluster_worker_key(lab->first), cluster_worker_key(lab->second),
			    KEY_BYTES);
	assert_memory_equal(cluster_public_key(lab->first), cluster_public_key(lab->second), 32);
	assert_memory_equal(cluster_id(lab->first), cluster_id(lab->second), 16);
	assert_memory_not_equal(&cluster_card(lab->first)->id, &cluster_card(lab->second)->id, 16);
	assert_string_equal(cluster_card(lab->second)->room, "r 2");
	cluster_overlay_identity(lab->second, &identity);
	assert_int_equal(identity.seed_count, 16);
	assert_string_equal(identity.seeds[0].addr, "10.0.0.1");
	assert_string_equal(identity.seeds[1].addr, "fd00::5");
	assert_string_equal(identity.seeds[2].addr, "10.0.1.5");
	assert_int_equal(cluster_load(lab->second_dir, &again), 0);
	assert_memory_equal(&again->id, &lab->second->id, sizeof(again->id));
	cluster_destroy(again);

	/* A host without the cluster key neither invites nor admits. */
	assert_int_equal(cluster_invite(lab->second, lab->second_dir, 600, lab->token,
					&lab->invite),
			 -EPERM);
	assert_int_equal(cluster_admit(lab->second, lab->second_dir, &lab->request, NULL, 0,
				       &lab->reply, lab->hostname),
			 -EPERM);
	/* Who is in a cluster stays in it. */
	invite_and_ask(lab);
	assert_int_equal(admit(lab), 0);
	again = lab->second;
	assert_int_equal(accept_reply(lab), -EEXIST);
	assert_ptr_equal(again, lab->second);
}

static void test_token_is_good_once(void **state)
{
	struct lab *lab = *state;
	struct ov_invite live[CLUSTER_INVITES_MAX];
	uint32_t count;

	invite_and_ask(lab);
	assert_int_equal(cluster_invites(lab->first_dir, live, &count), 0);
	assert_int_equal(count, 1);
	assert_memory_equal(&live[0], &lab->invite, sizeof(live[0]));
	assert_int_equal(admit(lab), 0);
	assert_int_equal(admit(lab), -EBADMSG);
	assert_int_equal(cluster_invites(lab->first_dir, live, &count), 0);
	assert_int_equal(count, 0);
}

static void test_token_expires(void **state)
{
	struct lab *lab = *state;
	struct ov_invite live[CLUSTER_INVITES_MAX];
	uint32_t count;

	assert_int_equal(cluster_invite(lab->first, lab->first_dir, 0, lab->token, &lab->invite),
			 0);
	assert_int_equal(cluster_join_request(lab->token, "lab02", "", "10.0.0.2", 1, &lab->join,
					      &lab->request),
			 0);
	assert_int_equal(admit(lab), -ETIME);
	assert_int_equal(admit(lab), -EBADMSG);
	assert_int_equal(cluster_invite(lab->first, lab->first_dir, 0, lab->token, &lab->invite),
			 0);
	assert_int_equal(cluster_invites(lab->first_dir, live, &count), 0);
	assert_int_equal(count, 0);
	assert_int_equal(cluster_invite(lab->first, lab->first_dir, UINT32_MAX, lab->token,
					&lab->invite),
			 -EINVAL);
}

static void test_invites_are_bounded(void **state)
{
	struct lab *lab = *state;

	for (int i = 0; i < CLUSTER_INVITES_MAX; i++)
		assert_int_equal(cluster_invite(lab->first, lab->first_dir, 600, lab->token,
						&lab->invite),
				 0);
	assert_int_equal(cluster_invite(lab->first, lab->first_dir, 600, lab->token, &lab->invite),
			 -ENOSPC);
}

static void test_tokens_are_read_strictly(void **state)
{
	static const char *const hosts[] = { "10.0.0.1", "fd00::1234:5678", "255.255.255.255" };
	struct lab *lab = *state;
	struct token token, back;
	char text[CLUSTER_TOKEN_MAX], bad[CLUSTER_TOKEN_MAX + 1];

	(void)lab;
	for (size_t h = 0; h < ARRAY_SIZE(hosts); h++) {
		memset(&token, 0, sizeof(token));
		assert_int_equal(random_bytes(token.secret, sizeof(token.secret)), 0);
		assert_int_equal(cluster_peer_set(&token.host, hosts[h], 65535), 0);
		memset(token.cluster_id, 0xee, sizeof(token.cluster_id));
		token_text(&token, text);
		assert_int_equal(token_parse(text, &back), 0);
		assert_memory_equal(&token, &back, sizeof(token));
		for (size_t i = 0; text[i]; i++) {
			strcpy(bad, text);
			bad[i] = bad[i] == 'a' ? 'b' : 'a';
			assert_int_equal(token_parse(bad, &back), -EBADMSG);
			bad[i] = '1';
			if (text[i] != '1')
				assert_int_equal(token_parse(bad, &back), -EBADMSG);
			bad[i] = 0;
			assert_int_equal(token_parse(bad, &back), -EBADMSG);
		}
		strcpy(bad, text);
		strcat(bad, "a");
		assert_int_equal(token_parse(bad, &back), -EBADMSG);
	}
	memset(bad, 'a', CLUSTER_TOKEN_MAX);
	memcpy(bad, "decamp1-", 8);
	bad[CLUSTER_TOKEN_MAX] = 0;
	assert_int_equal(token_parse(bad, &back), -EBADMSG);
	assert_int_equal(token_parse("", &back), -EBADMSG);
}

static void test_wrong_token_and_flipped_bytes(void **state)
{
	struct lab *lab = *state;
	struct ov_join good;

	/* The seal of one invite under the name of another. */
	invite_and_ask(lab);
	good = lab->request;
	invite_and_ask(lab);
	memcpy(good.token_id, lab->request.token_id, 16);
	lab->request = good;
	assert_int_equal(admit(lab), -EBADMSG);

	invite_and_ask(lab);
	good = lab->request;
	for (uint32_t i = 0; i < good.size; i++) {
		lab->request.bytes[i] ^= 2;
		assert_int_equal(admit(lab), -EBADMSG);
		lab->request.bytes[i] ^= 2;
	}
	for (uint32_t size = 0; size < good.size; size++) {
		lab->request.size = size;
		assert_int_equal(admit(lab), -EBADMSG);
	}
	lab->request.size = UINT32_MAX;
	assert_int_equal(admit(lab), -EBADMSG);
	lab->request = good;
	memset(lab->request.token_id, 0x5c, 16);
	assert_int_equal(admit(lab), -EBADMSG);
	lab->request = good;
	/* None of that burned the invite. */
	assert_int_equal(admit(lab), 0);

	for (uint32_t i = 0; i < lab->reply.size; i++) {
		lab->reply.bytes[i] ^= 2;
		assert_int_equal(accept_reply(lab), -EBADMSG);
		lab->reply.bytes[i] ^= 2;
	}
	lab->reply.size--;
	assert_int_equal(accept_reply(lab), -EBADMSG);
	lab->reply.size++;
	assert_int_equal(accept_reply(lab), 0);
}

static void test_reply_fits_one_request_only(void **state)
{
	struct lab *lab = *state;

	invite_and_ask(lab);
	assert_int_equal(admit(lab), 0);
	cluster_join_destroy(lab->join);
	assert_int_equal(cluster_join_request(lab->token, "lab02", "r 2", "10.0.0.2", 7412,
					      &lab->join, &lab->request),
			 0);
	assert_int_equal(accept_reply(lab), -EBADMSG);
}

static void test_odd_names(void **state)
{
	static const char *const bad[] = { "",	  ".",	 "..",	     ".a",	 "-rf",	 "a/b",
					   "a b", "a\n", "a\x1b[0m", "\xc3\xa9", "a\"b", "a'b",
					   "a;b", "a,b", "a%s",	     "a\\b",	 "$(a)", "a\tb" };
	struct lab *lab = *state;
	struct cluster *c;
	char long_name[OV_NAME_MAX + 1] = { 0 };

	assert_int_equal(cluster_invite(lab->first, lab->first_dir, 600, lab->token, &lab->invite),
			 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(cluster_join_request(lab->token, bad[i], "", "10.0.0.2", 1,
						      &lab->join, &lab->request),
				 -EINVAL);
		assert_int_equal(cluster_init(lab->second_dir, bad[i], "", "10.0.0.2", 1, &c),
				 -EINVAL);
	}
	memset(long_name, 'a', OV_NAME_MAX);
	assert_int_equal(cluster_init(lab->second_dir, long_name, "", "10.0.0.2", 1, &c), -EINVAL);
	assert_int_equal(cluster_init(lab->second_dir, "a", long_name, "10.0.0.2", 1, &c), -EINVAL);
	assert_int_equal(cluster_init(lab->second_dir, "a", "r\n1", "10.0.0.2", 1, &c), -EINVAL);
	assert_int_equal(cluster_init(lab->second_dir, "a", "", "lab02", 1, &c), -EINVAL);
	assert_int_equal(cluster_init(lab->second_dir, "a", "", "0.0.0.0", 1, &c), -EINVAL);
	assert_int_equal(cluster_init(lab->second_dir, "a", "", "::", 1, &c), -EINVAL);
	assert_int_equal(cluster_init(lab->second_dir, "a", "", "10.0.0.2", 0, &c), -EINVAL);
	long_name[OV_NAME_MAX - 1] = 0;
	assert_int_equal(cluster_init(lab->second_dir, long_name, "", "::1", 1, &c), 0);
	cluster_destroy(c);
}

/* A joiner that knows the token but cheats behind the seal. */
static void test_requests_are_checked_behind_the_seal(void **state)
{
	struct lab *lab = *state;
	struct join_request *q, good;

	invite_and_ask(lab);
	q = &lab->join->request;
	good = *q;
	assert_int_equal(join_request_check(q), 0);
	for (size_t i = 0; i < sizeof(*q); i++) {
		((uint8_t *)q)[i] ^= 1;
		assert_int_equal(join_request_check(q), -EBADMSG);
		((uint8_t *)q)[i] ^= 1;
	}
	for (int i = 0; i < 5; i++) {
		const size_t proved = offsetof(struct join_request, tls_proof);

		*q = good;
		if (i == 0)
			strcpy(q->hostname, "../x");
		else if (i == 1)
			memset(q->hostname, 'a', sizeof(q->hostname));
		else if (i == 2)
			strcpy(q->room, "a\nb");
		else if (i == 3)
			q->self.port = 0;
		else
			q->hostname[OV_NAME_MAX - 1] = 'x'; /* hidden behind the NUL */
		assert_int_equal(sign_bytes(&lab->join->tls_seed, q, proved, q->tls_proof), 0);
		assert_int_equal(sign_bytes(&lab->join->sign_seed, q, proved, q->sign_proof), 0);
		assert_int_equal(join_request_check(q), -EBADMSG);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_identity_survives_a_restart),
		TEST(test_renew),
		TEST(test_damaged_identity_is_refused),
		TEST(test_join),
		TEST(test_token_is_good_once),
		TEST(test_token_expires),
		TEST(test_invites_are_bounded),
		TEST(test_tokens_are_read_strictly),
		TEST(test_wrong_token_and_flipped_bytes),
		TEST(test_reply_fits_one_request_only),
		TEST(test_odd_names),
		TEST(test_requests_are_checked_behind_the_seal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
