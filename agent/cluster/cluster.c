// SPDX-License-Identifier: LGPL-2.1-or-later
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/cluster/internal.h"
#include "agent/util/io.h"

#define IDENTITY_MAGIC "DECAMPID"

enum { IDENTITY_VERSION = 1 };

/* Cards are issued for two years: a machine that outlives that joins again. */
#define CARD_LIFETIME_MS (730ull * 24 * 3600 * 1000)

/* ---- fields ---- */

static bool text_valid(const char text[OV_NAME_MAX], const char *others)
{
	size_t size = strnlen(text, OV_NAME_MAX);

	if (size >= OV_NAME_MAX)
		return false;
	for (size_t i = 0; i < size; i++) {
		char c = text[i];

		if (!(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') && !(c >= '0' && c <= '9') &&
		    !strchr(others, c))
			return false;
	}
	/* Nothing behind the NUL: signed bytes have one spelling. */
	for (size_t i = size; i < OV_NAME_MAX; i++)
		if (text[i] != 0)
			return false;
	return true;
}

bool cluster_name_valid(const char name[OV_NAME_MAX])
{
	/* It is shown, logged and used as a file name. */
	return name[0] != 0 && name[0] != '.' && name[0] != '-' && text_valid(name, "._-");
}

bool cluster_room_valid(const char room[OV_NAME_MAX])
{
	return text_valid(room, "._- ");
}

bool cluster_peer_valid(const struct cluster_peer *peer)
{
	static const struct in6_addr zero;
	struct in6_addr addr = { 0 };
	size_t size = strnlen(peer->addr, OV_ADDR_MAX);

	if (size >= OV_ADDR_MAX || peer->port == 0 || peer->reserved[0] || peer->reserved[1] ||
	    peer->reserved[2])
		return false;
	for (size_t i = size; i < OV_ADDR_MAX; i++)
		if (peer->addr[i] != 0)
			return false;
	if (inet_pton(AF_INET, peer->addr, &addr) != 1 &&
	    inet_pton(AF_INET6, peer->addr, &addr) != 1)
		return false;
	/* 0.0.0.0 and :: are where one listens, not where one is reached. */
	return memcmp(&addr, &zero, sizeof(addr)) != 0;
}

int cluster_peer_set(struct cluster_peer *peer, const char *addr, uint16_t port)
{
	struct cluster_peer p = { .port = port };

	if (strlen(addr) >= sizeof(p.addr))
		return -EINVAL;
	strcpy(p.addr, addr);
	if (!cluster_peer_valid(&p))
		return -EINVAL;
	*peer = p;
	return 0;
}

void cluster_id_of(const uint8_t cluster_public[32], uint8_t ret_id[16])
{
	struct object_hash hash;

	object_hash_of(cluster_public, 32, &hash);
	memcpy(ret_id, hash.b, 16);
}

int cluster_issue_card(const struct secret_key *cluster_seed, const uint8_t tls_public[32],
		       const uint8_t sign_public_key[32], const char *hostname, const char *room,
		       struct node_card *ret_card)
{
	struct node_card card = { .version = 1, .issued_wall_ms = now_wall_ms() };
	struct secret_key id;
	int r;

	if (strlen(hostname) >= sizeof(card.hostname) || strlen(room) >= sizeof(card.room))
		return -EINVAL;
	strcpy(card.hostname, hostname);
	strcpy(card.room, room);
	if (!cluster_name_valid(card.hostname) || !cluster_room_valid(card.room))
		return -EINVAL;
	/* Issued, not chosen: nobody can grind keys for a place on the ring beside a victim. */
	r = key_derive(cluster_seed, tls_public, 32, "decamp node id v1", &id);
	if (r < 0)
		return r;
	memcpy(card.id.b, id.b, sizeof(card.id.b));
	memcpy(card.tls_public, tls_public, 32);
	memcpy(card.sign_public, sign_public_key, 32);
	card.expires_wall_ms = card.issued_wall_ms + CARD_LIFETIME_MS;
	r = node_card_sign(&card, cluster_seed);
	if (r == 0)
		*ret_card = card;
	return r;
}

/* ---- on disk ---- */

static bool public_fits(const struct secret_key *seed, const uint8_t expected[32])
{
	uint8_t actual[32];

	return sign_public(seed, actual) == 0 && memcmp(actual, expected, 32) == 0;
}

static bool secrets_valid(const struct identity *id)
{
	static const struct secret_key zero;
	uint8_t cluster[16];

	cluster_id_of(id->cluster_public, cluster);
	if (memcmp(cluster, id->cluster_id, sizeof(cluster)) != 0)
		return false;
	if (id->flags & IDENTITY_HAS_CLUSTER_SEED ?
		    !public_fits(&id->cluster_seed, id->cluster_public) :
		    memcmp(&id->cluster_seed, &zero, sizeof(zero)) != 0)
		return false;
	return public_fits(&id->tls_seed, id->card.tls_public) &&
	       public_fits(&id->sign_seed, id->card.sign_public);
}

static void checksum(const struct identity *id, struct object_hash *ret_hash)
{
	object_hash_of(id, offsetof(struct identity, checksum), ret_hash);
}

int identity_decode(const void *bytes, size_t size, struct identity *ret_identity)
{
	struct identity id;
	struct object_hash sum;
	int r = -EBADMSG;

	if (size != sizeof(id))
		return -EBADMSG;
	memcpy(&id, bytes, sizeof(id));
	checksum(&id, &sum);
	if (memcmp(&sum, &id.checksum, sizeof(sum)) != 0 ||
	    memcmp(id.magic, IDENTITY_MAGIC, sizeof(id.magic)) != 0 ||
	    id.version != IDENTITY_VERSION || id.reserved != 0 ||
	    id.flags & ~(uint32_t)IDENTITY_HAS_CLUSTER_SEED || id.seed_count > CLUSTER_SEEDS_MAX)
		goto out;
	/* An expired card loads all the same: whoever meets the host says so. */
	if (node_card_verify(&id.card, id.cluster_public, id.card.issued_wall_ms) < 0 ||
	    !cluster_name_valid(id.card.hostname) || !cluster_room_valid(id.card.room) ||
	    !secrets_valid(&id) || !cluster_peer_valid(&id.self))
		goto out;
	for (uint32_t i = 0; i < id.seed_count; i++)
		if (!cluster_peer_valid(&id.seeds[i]))
			goto out;
	*ret_identity = id;
	r = 0;
out:
	key_wipe(&id, sizeof(id));
	return r;
}

static int identity_write(struct identity *id, const char *state_dir, bool replace)
{
	_cleanup_close_ int dir = -1;
	int r;

	memcpy(id->magic, IDENTITY_MAGIC, sizeof(id->magic));
	id->version = IDENTITY_VERSION;
	checksum(id, &id->checksum);
	r = mkdir_parents(state_dir, 0700);
	if (r < 0)
		return r;
	dir = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return -errno;
	if (!replace && faccessat(dir, "identity", F_OK, AT_SYMLINK_NOFOLLOW) == 0)
		return -EEXIST;
	return write_file_atomic_at(dir, "identity", id, sizeof(*id), 0600);
}

int identity_save(struct identity *id, const char *state_dir)
{
	return identity_write(id, state_dir, false);
}

static int make_identity(struct identity *id, const char *hostname, const char *room,
			 const char *addr, uint16_t port)
{
	uint8_t tls_public[32], sign_public_key[32];
	int r;

	r = cluster_peer_set(&id->self, addr, port);
	if (r == 0)
		r = random_bytes(&id->cluster_seed, sizeof(id->cluster_seed));
	if (r == 0)
		r = random_bytes(&id->tls_seed, sizeof(id->tls_seed));
	if (r == 0)
		r = random_bytes(&id->sign_seed, sizeof(id->sign_seed));
	if (r == 0)
		r = random_bytes(&id->worker_key, sizeof(id->worker_key));
	if (r == 0)
		r = sign_public(&id->cluster_seed, id->cluster_public);
	if (r == 0)
		r = sign_public(&id->tls_seed, tls_public);
	if (r == 0)
		r = sign_public(&id->sign_seed, sign_public_key);
	if (r == 0)
		r = cluster_issue_card(&id->cluster_seed, tls_public, sign_public_key, hostname,
				       room, &id->card);
	cluster_id_of(id->cluster_public, id->cluster_id);
	id->flags = IDENTITY_HAS_CLUSTER_SEED;
	return r;
}

int cluster_init(const char *state_dir, const char *hostname, const char *room, const char *addr,
		 uint16_t port, struct cluster **ret_cluster)
{
	struct cluster *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	r = make_identity(&c->id, hostname, room, addr, port);
	if (r == 0)
		r = identity_save(&c->id, state_dir);
	if (r < 0) {
		cluster_destroy(c);
		return r;
	}
	*ret_cluster = c;
	return 0;
}

int cluster_renew(struct cluster *c, const char *state_dir)
{
	const struct node_card *old = &c->id.card;
	struct identity id = c->id;
	uint8_t tls_public[32];
	int r = -EPERM;

	/* The id comes from the key of TLS. */
	if (cluster_can_admit(c))
		r = random_bytes(&id.tls_seed, sizeof(id.tls_seed));
	if (r == 0)
		r = sign_public(&id.tls_seed, tls_public);
	if (r == 0)
		r = cluster_issue_card(&id.cluster_seed, tls_public, old->sign_public,
				       old->hostname, old->room, &id.card);
	if (r == 0)
		r = identity_write(&id, state_dir, true);
	if (r == 0)
		c->id = id;
	key_wipe(&id, sizeof(id));
	return r;
}

int cluster_load(const char *state_dir, struct cluster **ret_cluster)
{
	_cleanup_close_ int dir = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct cluster *c;
	char *bytes;
	size_t size;
	int r;

	if (dir < 0)
		return -errno;
	r = read_file_at(dir, "identity", sizeof(struct identity), &bytes, &size);
	if (r < 0)
		return r == -EFBIG ? -EBADMSG : r;
	c = calloc(1, sizeof(*c));
	r = c ? identity_decode(bytes, size, &c->id) : -ENOMEM;
	key_wipe(bytes, size);
	free(bytes);
	if (r < 0) {
		cluster_destroy(c);
		return r;
	}
	*ret_cluster = c;
	return 0;
}

void cluster_destroy(struct cluster *c)
{
	if (!c)
		return;
	key_wipe(c, sizeof(*c));
	free(c);
}

/* ---- what others need of it ---- */

const struct node_card *cluster_card(const struct cluster *c)
{
	return &c->id.card;
}

const struct secret_key *cluster_worker_key(const struct cluster *c)
{
	return &c->id.worker_key;
}

const struct secret_key *cluster_sign_seed(const struct cluster *c)
{
	return &c->id.sign_seed;
}

const uint8_t *cluster_public_key(const struct cluster *c)
{
	return c->id.cluster_public;
}

const uint8_t *cluster_id(const struct cluster *c)
{
	return c->id.cluster_id;
}

bool cluster_can_admit(const struct cluster *c)
{
	return c->id.flags & IDENTITY_HAS_CLUSTER_SEED;
}

const char *cluster_addr(const struct cluster *c, uint16_t *ret_port)
{
	*ret_port = c->id.self.port;
	return c->id.self.addr;
}

void cluster_overlay_identity(const struct cluster *c, struct ov_identity *ret_identity)
{
	struct ov_identity out = { .card = c->id.card, .seed_count = c->id.seed_count };

	_Static_assert(sizeof(out.seeds[0]) == sizeof(c->id.seeds[0]), "same layout");
	_Static_assert(sizeof(out.seeds) == sizeof(c->id.seeds), "same number");
	memcpy(out.tls_secret, c->id.tls_seed.b, sizeof(out.tls_secret));
	memcpy(out.cluster_public, c->id.cluster_public, sizeof(out.cluster_public));
	memcpy(out.cluster_id, c->id.cluster_id, sizeof(out.cluster_id));
	memcpy(out.seeds, c->id.seeds, sizeof(out.seeds));
	*ret_identity = out;
	key_wipe(&out, sizeof(out));
}
