// SPDX-License-Identifier: LGPL-2.1-or-later
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/cluster/internal.h"
#include "agent/util/io.h"

#define TOKEN_PREFIX "decamp1-"
#define INVITE_MAGIC "DECAMPIN"

enum {
	INVITE_VERSION = 1,
	INVITE_TTL_MAX_S = 30 * 24 * 3600,
	TOKEN_CHECK = 4, /* against slips of the hand */
	TOKEN_FIXED = TOKEN_SECRET + 1 + 2 + 8 + TOKEN_CHECK,
	TOKEN_BYTES_MAX = TOKEN_FIXED + 16,
};

/* ---- text ---- */

static const char base32[] = "abcdefghijklmnopqrstuvwxyz234567";

static void base32_encode(const uint8_t *bytes, size_t size, char *text)
{
	uint32_t bits = 0, count = 0;

	for (size_t i = 0; i < size; i++) {
		bits = (bits << 8 | bytes[i]) & 0xffff;
		for (count += 8; count >= 5; count -= 5)
			*text++ = base32[bits >> (count - 5) & 31];
	}
	if (count > 0)
		*text++ = base32[bits << (5 - count) & 31];
	*text = 0;
}

/* Returns the size or -EBADMSG; capitals are taken for small letters. */
static ssize_t base32_decode(const char *text, uint8_t *bytes, size_t max)
{
	uint32_t bits = 0, count = 0;
	size_t size = 0;

	for (; *text; text++) {
		char c = *text >= 'A' && *text <= 'Z' ? (char)(*text + 32) : *text;
		const char *digit = strchr(base32, c);

		if (!digit)
			return -EBADMSG;
		bits = (bits << 5 | (uint32_t)(digit - base32)) & 0xffff;
		count += 5;
		if (count < 8)
			continue;
		if (size == max)
			return -EBADMSG;
		count -= 8;
		bytes[size++] = (uint8_t)(bits >> count);
	}
	/* The bits left over are less than a digit, and zero. */
	return count < 5 && (bits & ((1u << count) - 1)) == 0 ? (ssize_t)size : -EBADMSG;
}

void token_text(const struct token *token, char ret_text[CLUSTER_TOKEN_MAX])
{
	uint8_t bytes[TOKEN_BYTES_MAX], addr[16];
	bool v4 = inet_pton(AF_INET, token->host.addr, addr) == 1;
	struct object_hash check;
	size_t size = 0;

	if (!v4 && inet_pton(AF_INET6, token->host.addr, addr) != 1)
		memset(addr, 0, sizeof(addr)); /* never: a peer's address is numeric */
	memcpy(bytes, token->secret, TOKEN_SECRET);
	size += TOKEN_SECRET;
	bytes[size++] = v4 ? 4 : 6;
	memcpy(bytes + size, addr, v4 ? 4 : 16);
	size += v4 ? 4 : 16;
	memcpy(bytes + size, &token->host.port, 2);
	size += 2;
	memcpy(bytes + size, token->cluster_id, sizeof(token->cluster_id));
	size += sizeof(token->cluster_id);
	object_hash_of(bytes, size, &check);
	memcpy(bytes + size, check.b, TOKEN_CHECK);
	size += TOKEN_CHECK;
	strcpy(ret_text, TOKEN_PREFIX);
	base32_encode(bytes, size, ret_text + strlen(TOKEN_PREFIX));
	key_wipe(bytes, sizeof(bytes));
}

int token_parse(const char *text, struct token *ret_token)
{
	uint8_t bytes[TOKEN_BYTES_MAX];
	struct token token = { 0 };
	struct object_hash check;
	ssize_t size;
	size_t addr, at;

	if (strnlen(text, CLUSTER_TOKEN_MAX) >= CLUSTER_TOKEN_MAX ||
	    strncmp(text, TOKEN_PREFIX, strlen(TOKEN_PREFIX)) != 0)
		return -EBADMSG;
	size = base32_decode(text + strlen(TOKEN_PREFIX), bytes, sizeof(bytes));
	if (size < TOKEN_FIXED)
		return -EBADMSG;
	addr = bytes[TOKEN_SECRET] == 4 ? 4 : 16;
	if ((bytes[TOKEN_SECRET] != 4 && bytes[TOKEN_SECRET] != 6) ||
	    (size_t)size != TOKEN_FIXED + addr)
		return -EBADMSG;
	object_hash_of(bytes, (size_t)size - TOKEN_CHECK, &check);
	if (memcmp(bytes + size - TOKEN_CHECK, check.b, TOKEN_CHECK) != 0)
		return -EBADMSG;
	memcpy(token.secret, bytes, TOKEN_SECRET);
	at = TOKEN_SECRET + 1;
	if (!inet_ntop(addr == 4 ? AF_INET : AF_INET6, bytes + at, token.host.addr, OV_ADDR_MAX))
		return -EBADMSG;
	at += addr;
	memcpy(&token.host.port, bytes + at, 2);
	memcpy(token.cluster_id, bytes + at + 2, sizeof(token.cluster_id));
	key_wipe(bytes, sizeof(bytes));
	if (!cluster_peer_valid(&token.host))
		return -EBADMSG;
	*ret_token = token;
	return 0;
}

struct secret_key token_key(const uint8_t secret[TOKEN_SECRET])
{
	struct secret_key key = { 0 };

	memcpy(key.b, secret, TOKEN_SECRET);
	return key;
}

int token_derive(const uint8_t secret[TOKEN_SECRET], struct ov_invite *ret_invite)
{
	struct secret_key key = token_key(secret), id, psk;
	int r;

	r = key_derive(&key, NULL, 0, "decamp invite id v1", &id);
	if (r == 0)
		r = key_derive(&key, NULL, 0, "decamp invite psk v1", &psk);
	if (r == 0) {
		memset(ret_invite, 0, sizeof(*ret_invite));
		memcpy(ret_invite->token_id, id.b, sizeof(ret_invite->token_id));
		memcpy(ret_invite->psk, psk.b, sizeof(ret_invite->psk));
		key_wipe(&psk, sizeof(psk));
	}
	key_wipe(&key, sizeof(key));
	return r;
}

/* ---- on disk ---- */

static int open_invites(const char *state_dir, bool create)
{
	_cleanup_close_ int dir = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int fd;

	if (dir < 0)
		return -errno;
	if (create && mkdirat(dir, "invites", 0700) < 0 && errno != EEXIST)
		return -errno;
	fd = openat(dir, "invites", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static void checksum(const struct invite_file *f, struct object_hash *ret_hash)
{
	object_hash_of(f, offsetof(struct invite_file, checksum), ret_hash);
}

static int read_invite(int dir, const char *name, struct invite_file *ret_file)
{
	struct invite_file f;
	struct object_hash sum;
	char *bytes;
	size_t size;
	int r;

	r = read_file_at(dir, name, sizeof(f), &bytes, &size);
	if (r < 0)
		return r == -EFBIG ? -EBADMSG : r;
	if (size == sizeof(f))
		memcpy(&f, bytes, sizeof(f));
	key_wipe(bytes, size);
	free(bytes);
	if (size != sizeof(f))
		return -EBADMSG;
	checksum(&f, &sum);
	if (memcmp(&sum, &f.checksum, sizeof(sum)) != 0 || f.reserved != 0 ||
	    memcmp(f.magic, INVITE_MAGIC, sizeof(f.magic)) != 0 || f.version != INVITE_VERSION)
		return -EBADMSG;
	*ret_file = f;
	key_wipe(&f, sizeof(f));
	return 0;
}

int invite_load(const char *state_dir, const uint8_t token_id[16], uint8_t ret_secret[TOKEN_SECRET])
{
	_cleanup_close_ int dir = open_invites(state_dir, false);
	struct invite_file f;
	char name[33];
	int r;

	if (dir < 0)
		return dir == -ENOENT ? -EBADMSG : dir;
	hex_encode(token_id, 16, name);
	r = read_invite(dir, name, &f);
	if (r < 0)
		return r == -ENOENT ? -EBADMSG : r;
	if (now_wall_ms() >= f.expires_wall_ms) {
		(void)unlinkat(dir, name, 0);
		r = -ETIME;
	} else {
		memcpy(ret_secret, f.secret, TOKEN_SECRET);
	}
	key_wipe(&f, sizeof(f));
	return r;
}

int invite_burn(const char *state_dir, const uint8_t token_id[16])
{
	_cleanup_close_ int dir = open_invites(state_dir, false);
	char name[33];

	if (dir < 0)
		return dir;
	hex_encode(token_id, 16, name);
	if (unlinkat(dir, name, 0) < 0)
		return errno == ENOENT ? -EBADMSG : -errno;
	/* Burned before the reply leaves: no crash makes it good for a second host. */
	return fsync(dir) < 0 ? -errno : 0;
}

int cluster_invites(const char *state_dir, struct ov_invite ret_invites[CLUSTER_INVITES_MAX],
		    uint32_t *ret_count)
{
	int dir = open_invites(state_dir, false);
	_cleanup_closedir_ DIR *d = NULL;
	struct dirent *entry;
	uint32_t count = 0;

	if (dir < 0 && dir != -ENOENT)
		return dir;
	d = dir < 0 ? NULL : fdopendir(dir);
	while (d && count < CLUSTER_INVITES_MAX && (entry = readdir(d))) {
		struct ov_invite invite;
		struct invite_file f;

		if (strlen(entry->d_name) != 32 || read_invite(dir, entry->d_name, &f) < 0)
			continue;
		if (now_wall_ms() >= f.expires_wall_ms) {
			(void)unlinkat(dir, entry->d_name, 0);
		} else if (token_derive(f.secret, &invite) == 0) {
			invite.expires_wall_ms = f.expires_wall_ms;
			ret_invites[count++] = invite;
		}
		key_wipe(&f, sizeof(f));
	}
	*ret_count = count;
	return 0;
}

static int write_invite(const char *state_dir, const uint8_t secret[TOKEN_SECRET],
			const struct ov_invite *invite)
{
	_cleanup_close_ int dir = open_invites(state_dir, true);
	struct invite_file f = { .version = INVITE_VERSION };
	char name[33];
	int r;

	if (dir < 0)
		return dir;
	memcpy(f.magic, INVITE_MAGIC, sizeof(f.magic));
	memcpy(f.secret, secret, TOKEN_SECRET);
	f.expires_wall_ms = invite->expires_wall_ms;
	checksum(&f, &f.checksum);
	hex_encode(invite->token_id, 16, name);
	r = write_file_atomic_at(dir, name, &f, sizeof(f), 0600);
	key_wipe(&f, sizeof(f));
	return r;
}

static int count_invites(const char *state_dir, uint32_t *ret_count)
{
	struct ov_invite *live = calloc(CLUSTER_INVITES_MAX, sizeof(*live));
	int r;

	if (!live)
		return -ENOMEM;
	r = cluster_invites(state_dir, live, ret_count);
	key_wipe(live, CLUSTER_INVITES_MAX * sizeof(*live));
	free(live);
	return r;
}

int cluster_invite(const struct cluster *c, const char *state_dir, uint32_t ttl_s,
		   char ret_token[CLUSTER_TOKEN_MAX], struct ov_invite *ret_invite)
{
	struct token token = { .host = c->id.self };
	struct ov_invite invite;
	uint32_t live;
	int r;

	/* The joiner comes to the host named in the token, so that one must be able to admit. */
	if (!cluster_can_admit(c))
		return -EPERM;
	if (ttl_s > INVITE_TTL_MAX_S)
		return -EINVAL;
	r = count_invites(state_dir, &live);
	if (r < 0)
		return r;
	if (live >= CLUSTER_INVITES_MAX)
		return -ENOSPC;
	r = random_bytes(token.secret, sizeof(token.secret));
	if (r == 0)
		r = token_derive(token.secret, &invite);
	if (r < 0)
		return r;
	memcpy(token.cluster_id, c->id.cluster_id, sizeof(token.cluster_id));
	invite.expires_wall_ms = now_wall_ms() + ttl_s * 1000ull;
	r = write_invite(state_dir, token.secret, &invite);
	if (r == 0) {
		token_text(&token, ret_token);
		*ret_invite = invite;
	}
	key_wipe(&token, sizeof(token));
	key_wipe(&invite, sizeof(invite));
	return r;
}
