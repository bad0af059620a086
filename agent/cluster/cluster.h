/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * This host's place in a cluster: its identity on disk, and how others are admitted.
 *
 *   init:   makes the cluster key and this host's identity
 *   invite: a one-time token (text) -> the other host's administrator
 *   join:   request sealed with the token -> a host that holds the cluster key admits -> reply
 *
 * The token's secret gives two independent keys: the TLS PSK (the overlay half knows it) and the
 * seal of the payload (only the two agents know it), so that neither the network nor an overlay
 * half sees the worker key. STATE/identity and STATE/invites are root's alone.
 *
 * Limits: CLUSTER_INVITES_MAX live invites, CLUSTER_SEEDS_MAX hosts to greet. Threading: a struct
 * cluster is read-only after load; functions that write the disk are for one thread at a time.
 * Errors: -ENOENT no identity, -EEXIST already in a cluster, -EPERM this host cannot admit,
 * -EBADMSG a token, request or reply that does not authenticate, -ETIME an expired invite.
 */
#pragma once

#include <stdbool.h>

#include "agent/pack/keys.h"
#include "overlay/ipc.h"

enum { CLUSTER_INVITES_MAX = 64, CLUSTER_SEEDS_MAX = 16, CLUSTER_TOKEN_MAX = 256 };

struct cluster;

int cluster_init(const char *state_dir, const char *hostname, const char *room, const char *addr,
		 uint16_t port, struct cluster **ret_cluster) _must_check_;
int cluster_load(const char *state_dir, struct cluster **ret_cluster) _must_check_;
void cluster_destroy(struct cluster *c); /* wipes keys */

const struct node_card *cluster_card(const struct cluster *c);
const struct secret_key *cluster_worker_key(const struct cluster *c);
const struct secret_key *cluster_sign_seed(const struct cluster *c);
const uint8_t *cluster_public_key(const struct cluster *c); /* 32 bytes */
const uint8_t *cluster_id(const struct cluster *c);	    /* 16 bytes */
bool cluster_can_admit(const struct cluster *c);
/*
 * This host under a new id, for one that may not be used again; the same name, room and, but for
 * TLS's, keys.
 * Writes STATE/identity. -EPERM where the cluster key is not: such a host joins anew.
 */
int cluster_renew(struct cluster *c, const char *state_dir) _must_check_;
/* Where this host listens and is reached, as said at init or join. */
const char *cluster_addr(const struct cluster *c, uint16_t *ret_port);
void cluster_overlay_identity(const struct cluster *c, struct ov_identity *ret_identity);

/* A new invite, kept in STATE/invites until used or expired; token_id and psk go to OV_INVITE. */
int cluster_invite(const struct cluster *c, const char *state_dir, uint32_t ttl_s,
		   char ret_token[CLUSTER_TOKEN_MAX], struct ov_invite *ret_invite) _must_check_;
/* All live invites, for OV_INVITE after a restart. */
int cluster_invites(const char *state_dir, struct ov_invite ret_invites[CLUSTER_INVITES_MAX],
		    uint32_t *ret_count) _must_check_;

/* The joiner's side. A join keeps its fresh keys between request and accept. */
struct cluster_join;
/* Fills addr, port, token_id, psk and bytes of *ret_request for OV_JOIN. */
int cluster_join_request(const char *token, const char *hostname, const char *room,
			 const char *addr, uint16_t port, struct cluster_join **ret_join,
			 struct ov_join *ret_request) _must_check_;
/* Writes STATE/identity. */
int cluster_join_accept(struct cluster_join *join, const char *state_dir, const uint8_t *reply,
			size_t reply_size, struct cluster **ret_cluster) _must_check_;
void cluster_join_destroy(struct cluster_join *join);

/*
 * The inviting side: *event is OV_EV_JOIN's; fills ret_reply->bytes, size and burns the invite.
 * Seeds in the reply: this host first, then seeds[] (addresses of other members).
 */
int cluster_admit(struct cluster *c, const char *state_dir, const struct ov_join *event,
		  const struct member_info *members, size_t member_count, struct ov_join *ret_reply,
		  char ret_hostname[OV_NAME_MAX]) _must_check_;
