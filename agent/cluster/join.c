// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <string.h>

#include "agent/cluster/internal.h"
#include "agent/util/io.h"

#define REQUEST_LABEL "decamp join request v1"
#define REPLY_LABEL "decamp join reply v1"

enum { JOIN_VERSION = 1 };

/* ---- the joiner asks ---- */

static int fill_request(struct cluster_join *j, const char *hostname, const char *room,
			const char *addr, uint16_t port)
{
	const size_t proved = offsetof(struct join_request, tls_proof);
	struct join_request *q = &j->request;
	int r;

	q->version = JOIN_VERSION;
	if (strlen(hostname) >= sizeof(q->hostname) || strlen(room) >= sizeof(q->room))
		return -EINVAL;
	strcpy(q->hostname, hostname);
	strcpy(q->room, room);
	if (!cluster_name_valid(q->hostname) || !cluster_room_valid(q->room))
		return -EINVAL;
	r = cluster_peer_set(&q->self, addr, port);
	if (r == 0)
		r = random_bytes(&j->tls_seed, sizeof(j->tls_seed));
	if (r == 0)
		r = random_bytes(&j->sign_seed, sizeof(j->sign_seed));
	if (r == 0)
		r = sign_public(&j->tls_seed, q->tls_public);
	if (r == 0)
		r = sign_public(&j->sign_seed, q->sign_public);
	if (r == 0)
		r = sign_bytes(&j->tls_seed, q, proved, q->tls_proof);
	if (r == 0)
		r = sign_bytes(&j->sign_seed, q, proved, q->sign_proof);
	return r;
}

static int seal_request(struct cluster_join *j, struct ov_join *out)
{
	struct secret_key key = token_key(j->token.secret);
	int r;

	memcpy(out->token_id, j->derived.token_id, sizeof(out->token_id));
	memcpy(out->psk, j->derived.psk, sizeof(out->psk));
	memcpy(out->addr, j->token.host.addr, sizeof(out->addr));
	out->port = j->token.host.port;
	out->size = sizeof(j->request) + SEAL_OVERHEAD;
	r = key_seal(&key, REQUEST_LABEL, out->token_id, sizeof(out->token_id), &j->request,
		     sizeof(j->request), out->bytes);
	key_wipe(&key, sizeof(key));
	if (r == 0)
		object_hash_of(out->bytes, out->size, &j->request_hash);
	return r;
}

int cluster_join_request(const char *token, const char *hostname, const char *room,
			 const char *addr, uint16_t port, struct cluster_join **ret_join,
			 struct ov_join *ret_request)
{
	struct cluster_join *j = calloc(1, sizeof(*j));
	struct ov_join *out = calloc(1, sizeof(*out));
	int r = j && out ? 0 : -ENOMEM;

	if (r == 0)
		r = token_parse(token, &j->token);
	if (r == 0)
		r = token_derive(j->token.secret, &j->derived);
	if (r == 0)
		r = fill_request(j, hostname, room, addr, port);
	if (r == 0)
		r = seal_request(j, out);
	if (r == 0) {
		*ret_request = *out;
		*ret_join = take_ptr(j);
	}
	cluster_join_destroy(j);
	if (out)
		key_wipe(out, sizeof(*out));
	free(out);
	return r;
}

void cluster_join_destroy(struct cluster_join *join)
{
	if (!join)
		return;
	key_wipe(join, sizeof(*join));
	free(join);
}

/* ---- the host with the cluster key admits ---- */

int join_request_check(const struct join_request *q)
{
	const size_t proved = offsetof(struct join_request, tls_proof);
	int r;

	if (q->version != JOIN_VERSION || q->reserved != 0 || !cluster_name_valid(q->hostname) ||
	    !cluster_room_valid(q->room) || !cluster_peer_valid(&q->self))
		return -EBADMSG;
	r = sign_verify(q->tls_public, q, proved, q->tls_proof);
	return r < 0 ? r : sign_verify(q->sign_public, q, proved, q->sign_proof);
}

/* This host first, then other members that are alive. */
static void fill_seeds(struct join_reply *reply, const struct cluster *c,
		       const struct join_request *q, const struct member_info *members,
		       size_t count)
{
	reply->seeds[0] = c->id.self;
	reply->seed_count = 1;
	for (size_t i = 0; i < count && reply->seed_count < CLUSTER_SEEDS_MAX; i++) {
		struct cluster_peer peer = { 0 };

		/* The table comes from the other half: believed only as far as it parses. */
		if (members[i].is_self || members[i].state != MEMBER_ALIVE ||
		    strnlen(members[i].addr, OV_ADDR_MAX) >= OV_ADDR_MAX ||
		    cluster_peer_set(&peer, members[i].addr, members[i].port) < 0)
			continue;
		if (memcmp(&peer, &q->self, sizeof(peer)) != 0)
			reply->seeds[reply->seed_count++] = peer;
	}
}

static int fill_reply(struct join_reply *reply, const struct cluster *c,
		      const struct join_request *q, const struct ov_join *event)
{
	reply->version = JOIN_VERSION;
	memcpy(reply->cluster_public, c->id.cluster_public, sizeof(reply->cluster_public));
	memcpy(reply->cluster_id, c->id.cluster_id, sizeof(reply->cluster_id));
	reply->worker_key = c->id.worker_key;
	object_hash_of(event->bytes, event->size, &reply->request);
	return cluster_issue_card(&c->id.cluster_seed, q->tls_public, q->sign_public, q->hostname,
				  q->room, &reply->card);
}

static int open_request(const struct secret_key *key, const struct ov_join *event,
			struct join_request *ret_request)
{
	int r;

	if (event->size != sizeof(*ret_request) + SEAL_OVERHEAD)
		return -EBADMSG;
	r = key_open(key, REQUEST_LABEL, event->token_id, sizeof(event->token_id), event->bytes,
		     event->size, ret_request);
	return r < 0 ? r : join_request_check(ret_request);
}

int cluster_admit(struct cluster *c, const char *state_dir, const struct ov_join *event,
		  const struct member_info *members, size_t member_count, struct ov_join *ret_reply,
		  char ret_hostname[OV_NAME_MAX])
{
	uint8_t secret[TOKEN_SECRET], sealed[sizeof(struct join_reply) + SEAL_OVERHEAD];
	struct join_reply reply = { 0 };
	struct join_request request;
	struct secret_key key;
	int r;

	if (!cluster_can_admit(c))
		return -EPERM;
	r = invite_load(state_dir, event->token_id, secret);
	if (r < 0)
		return r;
	key = token_key(secret);
	key_wipe(secret, sizeof(secret));
	r = open_request(&key, event, &request);
	if (r == 0)
		r = fill_reply(&reply, c, &request, event);
	if (r == 0) {
		fill_seeds(&reply, c, &request, members, member_count);
		r = key_seal(&key, REPLY_LABEL, event->token_id, sizeof(event->token_id), &reply,
			     sizeof(reply), sealed);
	}
	key_wipe(&key, sizeof(key));
	key_wipe(&reply, sizeof(reply));
	if (r == 0)
		r = invite_burn(state_dir, event->token_id);
	if (r < 0)
		return r;
	memcpy(ret_reply->bytes, sealed, sizeof(sealed));
	ret_reply->size = sizeof(sealed);
	memcpy(ret_hostname, request.hostname, OV_NAME_MAX);
	return 0;
}

/* ---- the joiner accepts ---- */

int join_reply_check(const struct join_reply *reply, const struct cluster_join *j)
{
	const struct node_card *card = &reply->card;
	uint8_t id[16];
	int r;

	if (reply->version != JOIN_VERSION || reply->seed_count < 1 ||
	    reply->seed_count > CLUSTER_SEEDS_MAX ||
	    memcmp(&reply->request, &j->request_hash, sizeof(reply->request)) != 0)
		return -EBADMSG;
	/* The token came from an administrator: it says which cluster this must be. */
	cluster_id_of(reply->cluster_public, id);
	if (memcmp(id, reply->cluster_id, sizeof(id)) != 0 ||
	    memcmp(id, j->token.cluster_id, sizeof(j->token.cluster_id)) != 0)
		return -EBADMSG;
	r = node_card_verify(card, reply->cluster_public, card->issued_wall_ms);
	if (r < 0)
		return r;
	if (memcmp(card->tls_public, j->request.tls_public, 32) != 0 ||
	    memcmp(card->sign_public, j->request.sign_public, 32) != 0 ||
	    memcmp(card->hostname, j->request.hostname, OV_NAME_MAX) != 0 ||
	    memcmp(card->room, j->request.room, OV_NAME_MAX) != 0)
		return -EBADMSG;
	for (uint32_t i = 0; i < reply->seed_count; i++)
		if (!cluster_peer_valid(&reply->seeds[i]))
			return -EBADMSG;
	return 0;
}

static void fill_identity(struct identity *id, const struct cluster_join *j,
			  const struct join_reply *reply)
{
	id->card = reply->card;
	id->tls_seed = j->tls_seed;
	id->sign_seed = j->sign_seed;
	id->worker_key = reply->worker_key;
	memcpy(id->cluster_public, reply->cluster_public, sizeof(id->cluster_public));
	memcpy(id->cluster_id, reply->cluster_id, sizeof(id->cluster_id));
	id->self = j->request.self;
	id->seed_count = reply->seed_count;
	memcpy(id->seeds, reply->seeds, reply->seed_count * sizeof(id->seeds[0]));
}

int cluster_join_accept(struct cluster_join *join, const char *state_dir, const uint8_t *reply,
			size_t reply_size, struct cluster **ret_cluster)
{
	struct secret_key key = token_key(join->token.secret);
	struct join_reply opened;
	struct cluster *c;
	int r;

	if (reply_size != sizeof(opened) + SEAL_OVERHEAD)
		return -EBADMSG;
	r = key_open(&key, REPLY_LABEL, join->derived.token_id, sizeof(join->derived.token_id),
		     reply, reply_size, &opened);
	key_wipe(&key, sizeof(key));
	if (r < 0)
		return r;
	r = join_reply_check(&opened, join);
	c = calloc(1, sizeof(*c));
	if (r == 0 && !c)
		r = -ENOMEM;
	if (r == 0) {
		fill_identity(&c->id, join, &opened);
		r = identity_save(&c->id, state_dir);
	}
	key_wipe(&opened, sizeof(opened));
	if (r < 0) {
		cluster_destroy(c);
		return r;
	}
	*ret_cluster = c;
	return 0;
}
