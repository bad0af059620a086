/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What reader.c (order, threads) and reader_frames.c (bytes) share; nobody else includes this. */
#pragma once

#include <pthread.h>

#include "agent/pack/internal.h"
#include "agent/pack/reader.h"

/* A run of blocks of one frame that goes to one place of one file. */
struct placement {
	uint32_t pack, file;
	uint16_t slot, count;
	uint64_t block;
};

enum work_state { WORK_TODO, WORK_BUSY, WORK_DONE };

/* One pack. */
struct work {
	uint32_t pack;
	uint32_t frame;	     /* with this one it begins, if it is urgent */
	size_t first, count; /* of the placements */
	enum work_state state;
	bool urgent;
	bool background; /* counted as such */
};

struct pack_reader {
	struct reader_config c;
	struct placement *items; /* by pack and slot */
	size_t count, capacity;
	uint32_t *by_block; /* the same by file and block; on demand only */
	struct work *work;
	size_t work_count;
	uint32_t *work_of; /* by pack; on demand only */
	bool on_demand;
	pthread_t threads[READER_THREADS];
	size_t thread_count;

	pthread_mutex_t lock; /* guards states, `urgent`s and all down to the blank line */
	pthread_cond_t changed;
	uint32_t *urgent; /* a ring of indices into work */
	size_t urgent_first, urgent_last, urgent_open;
	size_t next, done, workers;
	size_t background;  /* packs being read that nobody waits for */
	uint64_t urgent_ns; /* when somebody last began to wait for one */
	uint64_t done_bytes, total_bytes;
	bool let_go, cancelled;
	int error;

	pthread_mutex_t seed_lock; /* the seed's index */
	pthread_mutex_t starved_lock;
	int starving; /* threads that nobody gives anything */
};

/* Of one thread. */
struct worker {
	uint8_t *bytes; /* of the pack */
	uint32_t size;
	bool mapped;
	uint8_t *frame, *scratch;
};

int worker_init(struct worker *me) _must_check_;
void worker_deinit(struct worker *me);
/* The pack's bytes go; they are ciphertext. */
void worker_forget(struct worker *me);

/* A pack with the right hash -> me->bytes. */
int reader_fetch(struct pack_reader *r, struct worker *me, uint32_t pack) _must_check_;
/* All placements of a pack -> sink, seed. */
int reader_hand_over(struct pack_reader *r, struct worker *me, const struct work *w) _must_check_;

/* reader.c */
void reader_give_way(struct pack_reader *r, const struct work *w);
uint32_t reader_first_frame(struct pack_reader *r, const struct work *w);
