/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the reader share; nobody else includes this.
 *
 *   reader_plan.c    what is to be read          reader.c         when, and by which thread
 *   reader_frames.c  one pack, frame by frame    reader_wants.c   differences and their bases
 */
#pragma once

#include <pthread.h>

#include "agent/pack/internal.h"
#include "agent/pack/reader.h"

/* A run of blocks of one frame that goes to one place of one file. */
struct placement {
	uint32_t pack, file;
	uint16_t slot, count;
	uint64_t block;
	/* A bit for each block. Under the reader's lock, but for who reads the pack: only it clears. */
	uint64_t left;	/* not handed over, and no difference of it is known */
	uint64_t urged; /* somebody waits for it */
};

/* A block of which the difference was read, and what it is a difference to is wanted. */
struct want {
	struct want *next;  /* of the same base pack */
	struct want *chain; /* of the same bucket */
	uint64_t block;
	uint32_t file;
	uint32_t pack, slot;		   /* the base */
	uint32_t origin_pack, origin_slot; /* the difference */
	uint32_t depth;			   /* links of the chain that were followed */
	uint32_t count;			   /* of words */
	bool urgent;			   /* somebody waits for it */
	uint8_t map[PACK_BLOCK_MAP];	   /* which they are */
	uint64_t *words;
};

enum work_state { WORK_TODO, WORK_BUSY, WORK_DONE };

/* One pack. */
struct work {
	uint32_t pack;
	uint32_t frame; /* with this one it begins, if it is urgent */
	uint64_t seq;
	uint64_t urgent;     /* somebody waits: the order in which they began to; 0: nobody */
	size_t first, count; /* of the placements */
	struct want *wants;  /* whose bases lie in it */
	enum work_state state;
	bool passed;	 /* it was read, or could not be had */
	bool deferred;	 /* not all of it: there were too many differences */
	bool background; /* counted as such */
};

struct pack_reader {
	struct reader_config c;
	struct placement *items; /* by pack and slot */
	size_t count, capacity;
	uint32_t *by_block; /* the same by file and block; on demand only */
	struct work *work;  /* newest first */
	size_t work_count;
	uint32_t *work_of;    /* by pack */
	struct work **deltas; /* those that have some */
	size_t delta_count;
	struct slotmap links; /* from differences to their bases */
	bool on_demand;
	pthread_t threads[READER_THREADS];
	size_t thread_count;

	pthread_mutex_t lock; /* guards placements, wants, work and all down to the blank line */
	pthread_cond_t changed;
	struct want **wants; /* WANT_BUCKETS of them, by file and block; NULL: there never was one */
	uint64_t wants_bytes;
	uint64_t urged; /* how often somebody began to wait */
	size_t next;	/* no work before this one is to do */
	size_t open;	/* work that is not done */
	size_t urgent_open, workers;
	size_t background;  /* packs being read that nobody waits for */
	uint64_t urgent_ns; /* when somebody last began to wait for one */
	uint64_t done_bytes, total_bytes;
	bool let_go, cancelled;
	int error;

	pthread_mutex_t seed_lock; /* the seed's index and packs */
	pthread_mutex_t starved_lock;
	int starving; /* threads that nobody gives anything */
};

/* Of one thread. */
struct worker {
	uint8_t *bytes; /* of the pack, with the right hash; NULL: it is in the file */
	int fd; /* bound by its salt: each frame of it is copied, then authenticated; or -1 */
	uint32_t size;
	bool mapped;
	bool spoilt;   /* something of the pack did not authenticate */
	bool starving; /* nobody gives it, or all give a false one */
	int lent;      /* a file of our own that packs come in; -1: none yet */
	uint8_t *room; /* for what came in it: bytes, or left for the next one */
	uint32_t room_size;
	uint8_t *frame, *scratch;
	struct pack_base bases[PACK_FRAME_BLOCKS]; /* of the frame */
	uint8_t block[PACK_BLOCK];
	struct block_delta delta;
	struct want **wants; /* those of the pack at hand, by slot */
	size_t want_count;
};

/* What is left of a pack that was read. */
struct leftover {
	bool again;    /* the sink was not ready for some of it */
	bool deferred; /* there are too many wants */
};

int worker_init(struct worker *me) _must_check_;
void worker_deinit(struct worker *me);
/* The pack's bytes go; they are ciphertext. */
void worker_forget(struct worker *me);

/* ---- reader_plan.c ---- */

int reader_plan(struct pack_reader *r, const struct reader_range *ranges,
		size_t count) _must_check_;
int reader_plan_demand(struct pack_reader *r) _must_check_;
struct placement *reader_find(const struct pack_reader *r, uint32_t file, uint64_t block);

/* ---- reader_frames.c ---- */

/* A pack with the right hash -> me->bytes, or one that its salt binds -> me->fd. */
int reader_fetch(struct pack_reader *r, struct worker *me, uint32_t pack) _must_check_;
/* All that is wanted of a pack -> sink, seed, wants of older packs. */
int reader_hand_over(struct pack_reader *r, struct worker *me, struct work *w,
		     struct leftover *left) _must_check_;
/* reader_hand_over() said -EBADMSG: is it another pack than the manifest's? Else that one is bad. */
bool reader_was_deceived(const struct pack_reader *r, struct worker *me, uint32_t pack);

/* ---- reader.c ---- */

void reader_give_way(struct pack_reader *r, const struct work *w);
uint32_t reader_first_frame(struct pack_reader *r, const struct work *w);
/* Somebody waits for a frame of a pack that is not done. The caller has the lock. */
void reader_urge_work(struct pack_reader *r, struct work *w, uint32_t frame);
/* There is more to do in a pack, done or not. The caller has the lock. */
void reader_reopen(struct pack_reader *r, struct work *w);

/* ---- reader_wants.c ---- */

/*
 * Block i of a placement is a difference, its exclusive or at mask. 0: noted, it is not left any
 * more; -ENOBUFS: too many are.
 */
int want_add(struct pack_reader *r, struct worker *me, const struct pack_view *v,
	     struct placement *p, uint32_t i, const uint8_t *mask) _must_check_;
/* A want's base is a difference itself: on to that one's base. */
int want_move(struct pack_reader *r, struct worker *me, const struct pack_view *v,
	      struct want *want, const uint8_t *mask) _must_check_;
/* Its base's content -> me->block. */
void want_resolve(struct worker *me, const struct want *want, const uint8_t *base);
/* It was handed over, and is freed. */
void want_end(struct pack_reader *r, struct want *want);
/* The sink is not ready for it. */
void want_put_back(struct pack_reader *r, struct work *w, struct want *want);
/* All that wants_take() took and nobody served. */
void wants_put_back(struct pack_reader *r, struct worker *me, struct work *w);
/* The wants of a pack -> me->wants, sorted; they are the caller's to end, move or put back. */
int wants_take(struct pack_reader *r, struct worker *me, struct work *w) _must_check_;
/* NULL: there is none. The caller has the lock. */
struct want *want_find(const struct pack_reader *r, uint32_t file, uint64_t block);
void wants_deinit(struct pack_reader *r);
