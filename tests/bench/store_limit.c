// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The limit of sealing and committing: what cannot be left out, each once, alone, on the same data
 * out of warm buffers. Each new page is read from the spool and hashed; each frame is compressed as it went into its pack,
 * the result encrypted, the pack hashed; each peer gets the pack over TLS on loopback, hashes it,
 * and writes it to its disk. CPU time of this thread, which does all sides of it.
 */
#include "tests/bench/store.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <zstd.h>

#include "agent/pack/internal.h"
#include "agent/pack/keys.h"
#include "agent/util/io.h"
#include "overlay/net/tls.h"

enum { PIECE = 256 << 10, WIRE_PIECE = 64 << 10 };

static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void must(int r, const char *what)
{
	if (r < 0)
		store_die(what, r);
}

/* ---- sealing ---- */

void store_limit_pages(const struct packer *p, int blocks, uint64_t count,
		       struct store_limit *limit)
{
	_cleanup_free_ uint8_t *bytes = malloc(PIECE);
	uint64_t seen = 0, began;

	if (!bytes)
		store_die("memory", -ENOMEM);
	for (uint64_t at = 0, n; at < count; at += n) {
		n = count - at < PIECE / STORE_PAGE ? count - at : PIECE / STORE_PAGE;
		began = cpu_ns();
		must(pread_full(blocks, bytes, n * STORE_PAGE, (off_t)(at * STORE_PAGE)), "pages");
		limit->read_ns += cpu_ns() - began;
		began = cpu_ns();
		for (uint64_t i = 0; i < n; i++)
			if (!block_is_zero(bytes + i * STORE_PAGE))
				seen ^= packer_hash(p, bytes + i * STORE_PAGE).low;
		limit->hash_ns += cpu_ns() - began;
	}
	/* Something that the compiler cannot leave out. */
	if (seen == 1)
		fprintf(stderr, "store: what a hash\n");
}

/* The body of a frame, as it was before it was compressed. */
static size_t body_of(const struct pack_view *v, uint32_t number, uint8_t *body, uint8_t *scratch)
{
	const struct pack_frame *f = &v->table.frames[number];
	struct frame_ad ad = pack_frame_ad(&v->header, &v->job, v->seq, number);
	size_t size = f->size - AEAD_TAG;
	bool stored = f->flags & PACK_FRAME_STORED;

	must(aead_open(&v->key, number, &ad, sizeof(ad), v->bytes + f->offset, f->size,
		       stored ? body : scratch),
	     "frame");
	if (stored)
		return size;
	size = ZSTD_decompress(body, PACK_BODY_MAX, scratch, size);
	if (ZSTD_isError(size))
		store_die(ZSTD_getErrorName(size), -EBADMSG);
	return size;
}

/* How many of its bytes are words of differences. */
static size_t words_of(const struct pack_frame *f, const uint8_t *body, size_t size)
{
	size_t deltas;
	uint64_t which;

	if (!(f->flags & PACK_FRAME_MIXED))
		return 0;
	memcpy(&which, body, sizeof(which));
	deltas = (size_t)__builtin_popcountll(which);
	return size - MIXED_HEADER - deltas * (MIXED_REF + PACK_BLOCK_MAP) -
	       (f->blocks - deltas) * PACK_BLOCK;
}

static void limit_frame(const struct pack_view *v, uint32_t number, struct frame_scratch *s,
			int level, uint8_t *room, struct store_limit *limit)
{
	struct frame_ad ad = pack_frame_ad(&v->header, &v->job, v->seq, number);
	size_t size = body_of(v, number, s->body, s->packed), n;
	size_t words = words_of(&v->table.frames[number], s->body, size);
	uint64_t began = cpu_ns();

	n = frame_compress(s, level, s->body, size, words);
	limit->zstd_ns += cpu_ns() - began;
	began = cpu_ns();
	must(aead_seal(&v->key, number, &ad, sizeof(ad), n ? s->packed : s->body, n ? n : size,
		       room),
	     "seal");
	limit->aes_ns += cpu_ns() - began;
}

void store_limit_pack(const struct job_id *job, const struct secret_key *job_key, uint64_t seq,
		      int level, int fd, uint32_t size, struct store_limit *limit)
{
	_cleanup_free_ uint8_t *bytes = malloc(size), *room = malloc(PACK_BODY_MAX + AEAD_TAG);
	struct frame_scratch scratch = { 0 };
	struct object_hash hash;
	struct pack_view v;
	uint64_t began;

	if (!bytes || !room)
		store_die("memory", -ENOMEM);
	must(pread_full(fd, bytes, size, 0), "pack");
	began = cpu_ns();
	object_hash_of(bytes, size, &hash);
	limit->sha_ns += cpu_ns() - began;
	/* The manifest comes this way, too. */
	if (memcmp(bytes, PACK_MAGIC, strlen(PACK_MAGIC)) != 0)
		return;
	must(pack_view_open(&v, bytes, size, job, job_key, seq), "pack");
	must(frame_scratch_init(&scratch), "memory");
	for (uint32_t i = 0; i < v.header.frame_count; i++)
		limit_frame(&v, i, &scratch, level, room, limit);
	frame_scratch_deinit(&scratch);
}

void store_limit_hash(int fd, uint32_t size, struct store_limit *limit)
{
	_cleanup_free_ uint8_t *bytes = malloc(size);
	struct object_hash hash;
	uint64_t began;

	if (!bytes)
		store_die("memory", -ENOMEM);
	must(pread_full(fd, bytes, size, 0), "pack");
	began = cpu_ns();
	object_hash_of(bytes, size, &hash);
	limit->sha_ns += cpu_ns() - began;
}

/* ---- one peer ---- */

struct store_wire {
	SSL_CTX *contexts[2];
	SSL *ends[2]; /* the worker's, the peer's */
	int file;     /* -1: what arrives is hashed only */
	off_t at;
	uint8_t *room;
};

static void connect_pair(int ret_socks[2])
{
	struct sockaddr_in address = { .sin_family = AF_INET,
				       .sin_addr = { htonl(INADDR_LOOPBACK) } };
	_cleanup_close_ int door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t size = sizeof(address);

	ret_socks[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (door < 0 || ret_socks[0] < 0 || bind(door, (struct sockaddr *)&address, size) < 0 ||
	    listen(door, 1) < 0 || getsockname(door, (struct sockaddr *)&address, &size) < 0 ||
	    connect(ret_socks[0], (struct sockaddr *)&address, size) < 0)
		store_die("loopback", -errno);
	ret_socks[1] = accept4(door, NULL, NULL, SOCK_CLOEXEC);
	if (ret_socks[1] < 0 || fcntl(ret_socks[0], F_SETFL, O_NONBLOCK) < 0 ||
	    fcntl(ret_socks[1], F_SETFL, O_NONBLOCK) < 0)
		store_die("loopback", -errno);
}

struct store_wire *store_wire_open(const char *dir)
{
	struct store_wire *w = calloc(1, sizeof(*w));
	uint8_t secret[TLS_KEY_SIZE] = { 3 };
	int socks[2], done = 0;

	if (!w || !(w->room = malloc(WIRE_PIECE)))
		store_die("memory", -ENOMEM);
	connect_pair(socks);
	for (int i = 0; i < 2; i++) {
		must(net_tls_member_context(secret, i == 1, &w->contexts[i]), "TLS");
		w->ends[i] = SSL_new(w->contexts[i]);
		if (!w->ends[i] || SSL_set_fd(w->ends[i], socks[i]) != 1)
			store_die("TLS", -ENOMEM);
	}
	for (int tries = 0; done != 3 && tries < 1000; tries++)
		done = (SSL_connect(w->ends[0]) == 1) | (SSL_accept(w->ends[1]) == 1) << 1;
	w->file = dir ? open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;
	if (done != 3 || (dir && w->file < 0))
		store_die("TLS or file", done != 3 ? -EPROTO : -errno);
	return w;
}

void store_wire_close(struct store_wire *w)
{
	for (int i = 0; i < 2; i++) {
		close(SSL_get_fd(w->ends[i]));
		SSL_free(w->ends[i]);
		SSL_CTX_free(w->contexts[i]);
	}
	close_fdp(&w->file);
	free(w->room);
	free(w);
}

/* Through the loopback, hashed and written as it arrives. */
static void pass_on(struct store_wire *w, const uint8_t *bytes, uint32_t size, EVP_MD_CTX *sha)
{
	uint32_t sent = 0, got = 0;

	while (got < size) {
		uint32_t part = size - sent < WIRE_PIECE ? size - sent : WIRE_PIECE;
		int n = part ? SSL_write(w->ends[0], bytes + sent, (int)part) : 0;

		sent += n > 0 ? (uint32_t)n : 0;
		while ((n = SSL_read(w->ends[1], w->room, WIRE_PIECE)) > 0) {
			if (EVP_DigestUpdate(sha, w->room, (size_t)n) != 1)
				store_die("hash", -EIO);
			if (w->file >= 0)
				must(pwrite_full(w->file, w->room, (size_t)n, w->at), "disk");
			w->at += n;
			got += (uint32_t)n;
		}
		if (SSL_get_error(w->ends[1], n) != SSL_ERROR_WANT_READ)
			store_die("TLS", -EPROTO);
	}
}

void store_limit_wire(struct store_wire *w, int fd, uint32_t size, struct store_limit *limit)
{
	_cleanup_free_ uint8_t *bytes = malloc(size);
	EVP_MD_CTX *sha = EVP_MD_CTX_new();
	struct object_hash hash;
	uint64_t began;

	if (!bytes || !sha || EVP_DigestInit_ex(sha, EVP_sha256(), NULL) != 1)
		store_die("memory", -ENOMEM);
	must(pread_full(fd, bytes, size, 0), "pack");
	began = cpu_ns();
	pass_on(w, bytes, size, sha);
	if (EVP_DigestFinal_ex(sha, hash.b, NULL) != 1 || (w->file >= 0 && fdatasync(w->file) < 0))
		store_die("disk", -EIO);
	limit->wire_ns += cpu_ns() - began;
	EVP_MD_CTX_free(sha);
}
