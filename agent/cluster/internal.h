/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of the cluster stage: layouts on disk and behind the seal of a join, and their decoders.
 * Numbers are little-endian. Formats: docs/formats.md.
 */
#pragma once

#include "agent/cluster/cluster.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "formats are little-endian");

enum {
	TOKEN_SECRET = 16,
	IDENTITY_HAS_CLUSTER_SEED = 1 << 0,
};

/* Where a host is reached: numeric address. Same layout as in struct ov_identity. */
struct cluster_peer {
	char addr[OV_ADDR_MAX];
	uint16_t port;
	uint16_t reserved[3];
};
_Static_assert(sizeof(struct cluster_peer) == 56, "no padding");

/* STATE/identity */
struct identity {
	char magic[8]; /* "DECAMPID" */
	uint32_t version;
	uint32_t flags;
	struct node_card card;
	struct secret_key tls_seed, sign_seed, worker_key;
	struct secret_key cluster_seed; /* zero but where the cluster was made */
	uint8_t cluster_public[32];
	uint8_t cluster_id[16]; /* first bytes of SHA-256(cluster_public) */
	struct cluster_peer self;
	uint32_t seed_count;
	uint32_t reserved;
	struct cluster_peer seeds[CLUSTER_SEEDS_MAX];
	struct object_hash checksum; /* of all bytes before: damage, not malice */
};
_Static_assert(sizeof(struct identity) == 16 + sizeof(struct node_card) + 5 * 32 + 16 +
						  (CLUSTER_SEEDS_MAX + 1) * 56 + 8 + 32,
	       "no padding");

/* STATE/invites/<token id in hex> */
struct invite_file {
	char magic[8]; /* "DECAMPIN" */
	uint32_t version;
	uint32_t reserved;
	uint8_t secret[TOKEN_SECRET];
	uint64_t expires_wall_ms;
	struct object_hash checksum;
};
_Static_assert(sizeof(struct invite_file) == 16 + 16 + 8 + 32, "no padding");

/* The token's content; its text is "decamp1-" and base32. */
struct token {
	uint8_t secret[TOKEN_SECRET];
	struct cluster_peer host;
	uint8_t cluster_id[8]; /* first bytes of the cluster's id */
};

/* The joiner proves with two signatures that it holds the keys that it names. */
struct join_request {
	uint32_t version;
	uint32_t reserved;
	uint8_t tls_public[32], sign_public[32];
	char hostname[OV_NAME_MAX], room[OV_NAME_MAX];
	struct cluster_peer self;
	uint8_t tls_proof[64], sign_proof[64]; /* over all bytes before tls_proof */
};
_Static_assert(sizeof(struct join_request) == 8 + 64 + 128 + 56 + 128, "no padding");

struct join_reply {
	uint32_t version;
	uint32_t seed_count;
	struct node_card card;
	uint8_t cluster_public[32];
	uint8_t cluster_id[16];
	struct secret_key worker_key;
	struct object_hash request; /* of the sealed request: a reply fits one request only */
	struct cluster_peer seeds[CLUSTER_SEEDS_MAX];
};
_Static_assert(sizeof(struct join_reply) ==
		       8 + sizeof(struct node_card) + 112 + CLUSTER_SEEDS_MAX * 56,
	       "no padding");
_Static_assert(sizeof(struct join_reply) + SEAL_OVERHEAD <= (size_t)OV_ORDER_MAX, "fits an order");

struct cluster {
	struct identity id;
};

struct cluster_join {
	struct token token;
	struct ov_invite derived; /* token_id and psk */
	struct secret_key tls_seed, sign_seed;
	struct join_request request;
	struct object_hash request_hash;
};

/* cluster.c */
bool cluster_name_valid(const char name[OV_NAME_MAX]); /* a host's */
bool cluster_room_valid(const char room[OV_NAME_MAX]); /* may be empty */
bool cluster_peer_valid(const struct cluster_peer *peer);
int cluster_peer_set(struct cluster_peer *peer, const char *addr, uint16_t port) _must_check_;
void cluster_id_of(const uint8_t cluster_public[32], uint8_t ret_id[16]);
int cluster_issue_card(const struct secret_key *cluster_seed, const uint8_t tls_public[32],
		       const uint8_t sign_public[32], const char *hostname, const char *room,
		       struct node_card *ret_card) _must_check_;
/* -EBADMSG unless every field is as cluster_save() writes it. */
int identity_decode(const void *bytes, size_t size, struct identity *ret_identity) _must_check_;
/* Seals id with its checksum and writes it; -EEXIST if there is one. */
int identity_save(struct identity *id, const char *state_dir) _must_check_;

/* invite.c */
void token_text(const struct token *token, char ret_text[CLUSTER_TOKEN_MAX]);
int token_parse(const char *text, struct token *ret_token) _must_check_;
/* The key that seals the payload of a join. */
struct secret_key token_key(const uint8_t secret[TOKEN_SECRET]);
/* token_id and psk; expires is left zero. */
int token_derive(const uint8_t secret[TOKEN_SECRET], struct ov_invite *ret_invite) _must_check_;
int invite_load(const char *state_dir, const uint8_t token_id[16],
		uint8_t ret_secret[TOKEN_SECRET]) _must_check_;
/* -EBADMSG if somebody else burned it first. */
int invite_burn(const char *state_dir, const uint8_t token_id[16]) _must_check_;

/* join.c: what lies behind the seal; -EBADMSG. */
int join_request_check(const struct join_request *request) _must_check_;
int join_reply_check(const struct join_reply *reply, const struct cluster_join *join) _must_check_;
