/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What checkpoints of real programs cost once they are taken: captured first, then sealed from the
 * same images as often as one likes.
 *
 *   store_take.c    a program, its snapshots        DIR/K/ as captured: pages.new, pages-N.runs, ...
 *                                                   DIR/K.plain/: the same, pages-N.img whole
 *   store_seal.c    those -> packs; time and bytes
 *   store_commit.c  those packs -> three peers' disks
 *   store_limit.c   what of that cannot be left out
 *   store_bound.c   the page-wise lower bound of them
 *   store.c         which of these to do
 *
 * Results are lines of JSON on standard output, one per checkpoint. Functions end the program with
 * a message when something does not work: a benchmark has nothing to save.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/pack/pack.h"

enum { STORE_PAGE = 4096, STORE_FILES_MAX = 512 };

struct store_seal_options {
	bool verify; /* unpack the last checkpoint and compare it */
	bool again;  /* then the first one again: nothing has changed */
	bool commit; /* packs go to three peers */
	bool file;   /* they go into a file, each synced; else nowhere */
	bool limit;  /* measure it beside each checkpoint */
	struct packer_budget budget;
};

void store_take(const char *dir, unsigned int count, unsigned int interval_ms,
		unsigned int warmup_ms, char *const *argv);
void store_seal(const char *dir, unsigned int count, const struct store_seal_options *options);
void store_bound(const char *dir, unsigned int count);

/* What putting took since the peers were started; CPU time of the worker's half, of all peers'. */
struct store_spent {
	uint64_t put_us, put_bytes, half_cpu_us, peers_cpu_us;
	uint32_t link_kib_s;
};
struct store_peers;
struct ov_object;
struct store_peers *store_peers_start(uint64_t quota_bytes);
void store_peers_end(struct store_peers *p);
/* Until all three have synced it; fills in who they are. */
int store_peers_put(struct store_peers *p, int memfd, struct ov_object *object);
void store_peers_spent(const struct store_peers *p, struct store_spent *ret_spent);

/* What cannot be left out, each alone: CPU time of one thread. */
struct store_limit {
	uint64_t read_ns, hash_ns; /* new pages */
	uint64_t zstd_ns, aes_ns, sha_ns;
	uint64_t wire_ns; /* one peer's copy: TLS and loopback on both sides, SHA-256, disk */
};
/* `count` pages of a file. */
void store_limit_pages(const struct packer *p, int blocks, uint64_t count,
		       struct store_limit *limit);
/* An object: a pack of checkpoint seq, or its manifest. */
void store_limit_pack(const struct job_id *job, const struct secret_key *job_key, uint64_t seq,
		      int level, int fd, uint32_t size, struct store_limit *limit);
/* SHA-256 alone. */
void store_limit_hash(int fd, uint32_t size, struct store_limit *limit);
struct store_wire;
/* dir: of the peer's file; NULL: it writes nothing. */
struct store_wire *store_wire_open(const char *dir);
void store_wire_close(struct store_wire *w);
void store_limit_wire(struct store_wire *w, int fd, uint32_t size, struct store_limit *limit);

/* Ends the program. */
void store_die(const char *what, int r) __attribute__((noreturn));
/* One pages-N.img of DIR/K.plain, with the page number (address / 4096) of each of its pages. */
struct store_image {
	char pagemap[64]; /* file name: which memory it is, from one checkpoint to the next */
	uint64_t *numbers;
	uint8_t *bytes; /* mapped */
	size_t count;
};
size_t store_images(const char *dir, unsigned int k, struct store_image *ret_images, size_t max);
void store_images_free(struct store_image *images, size_t count);
