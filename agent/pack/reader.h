/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Blocks of a manifest's files, out of its packs, by several threads.
 *
 *   ranges of blocks -> placements by pack -> [fetch, check, open frames] x threads -> sink
 *
 * Each thread fetches one pack at a time and hands over what its frames hold: nothing reaches the
 * sink before its frame has authenticated, a block that is a difference not before that of its base
 * has, too. A pack of which the manifest has not the salt is hashed first. At most one pack and two
 * frames a thread are in memory, and differences whose bases were not read yet: READER_THREADS *
 * (OV_PACK_MAX + 512 KiB), usually less than half of that, and READER_WANTS_MAX. A pack of up to a
 * third of OV_PACK_MAX comes in a file of the thread's that serves again; what is checked is a copy.
 *
 * A false pack is -EBADMSG. It may show after some of its frames were handed over, which are right.
 *
 * Two ways to use it. reader_run(): all packs, newest checkpoint first, until done or
 * the first error; a pack that nobody gives is asked for READER_TRIES times. On demand:
 * reader_start(), then packs that reader_urge() asks for come first, the rest follows after
 * reader_let_go(), newest checkpoint first, for what changed lately is needed soon. Then a pack that
 * nobody can give is no error, unless tries_max says so: it is asked for again until it comes.
 * If nothing runs before all is there (`ahead`), the first packs are fetched before
 * reader_let_go(), one a thread, and no thread is kept free after it.
 *
 * Threading: fetch and sink are called from the reader's threads, several at a time; the other
 * functions belong to any thread, create and destroy to one.
 */
#pragma once

#include "agent/pack/pack.h"

enum {
	READER_THREADS = 5,
	READER_RETRY_MS = 1000,
	READER_QUIET_MS = 50,
	READER_TRIES = 3,
	READER_WANTS_MAX = 64 << 20, /* bytes of differences whose bases were not read yet */
};

struct reader_range {
	uint32_t file;	       /* of the manifest, a regular one that is no hard link */
	uint64_t first, count; /* blocks */
};

struct reader_config {
	const struct manifest *manifest;
	const struct secret_key *job_key;
	pack_fetch_fn fetch;
	void *fetch_ctx;
	struct packer *seed; /* NULL, or between packer_seed_begin() and packer_seed_end() */
	/*
	 * `count` blocks of a file. The last block of a file is padded. -EAGAIN (on demand only): not
	 * yet, the pack will be read once more. Other errors end it all.
	 */
	int (*sink)(void *ctx, uint32_t file, uint64_t block, uint32_t count, const uint8_t *bytes);
	uint64_t wants_max;	/* 0: READER_WANTS_MAX */
	unsigned int tries_max; /* for one pack; 0: READER_TRIES, on demand until it comes */
	bool ahead;		/* on demand: fetch before reader_let_go(), hand over after it */
	/* Optional; one call at a time. */
	void (*progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);
	/* On demand: nobody gives a pack (error < 0); they do again (0). One call at a time. */
	void (*starved)(void *ctx, int error);
	void *ctx;
};

struct pack_reader;

/* Runs of zero blocks are no one's business here: the sink never gets them. config is copied. */
int reader_create(const struct reader_config *config, const struct reader_range *ranges,
		  size_t count, struct pack_reader **ret_reader) _must_check_;
/* Stops the threads, after the fetches that are under way. */
void reader_destroy(struct pack_reader *reader);

/* Everything; the calling thread works too. The first error. */
int reader_run(struct pack_reader *reader) _must_check_;

/* On demand; background reading waits for reader_let_go(). */
int reader_start(struct pack_reader *reader) _must_check_;
void reader_let_go(struct pack_reader *reader);
enum reader_answer {
	READER_COMING = 1, /* the sink will get it */
	READER_THERE,	   /* the sink had it */
	READER_ZERO,	   /* not in any pack: zeros, or outside of all ranges */
};
enum reader_answer reader_urge(struct pack_reader *reader, uint32_t file, uint64_t block);
/* 1: all of it was handed over; 0: not yet; < 0: the sink's error. timeout_ms < 0: for ever. */
int reader_wait(struct pack_reader *reader, int timeout_ms) _must_check_;
/* Ends reader_wait() with -ECANCELED; nothing new is fetched. */
void reader_cancel(struct pack_reader *reader);

/*
 * A packer learns a manifest: between the two, readers with it as their seed teach it the blocks.
 * After packer_seed_end() its next checkpoint is an increment of this one. On error it is empty.
 */
int packer_seed_begin(struct packer *seed, const struct manifest *m) _must_check_;
int packer_seed_end(struct packer *seed, const struct manifest *m) _must_check_;
/* Instead of the end: it knows nothing. */
void packer_seed_abort(struct packer *seed);
