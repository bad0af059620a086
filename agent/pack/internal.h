/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of the pack stage: shared by its source files, its tests and its fuzzers, by nobody else.
 *
 *   index.c     hash of a block -> where it lies; chained lookups by 64-bit key (slotmap)
 *   frame.c     pack objects: header, frames, frame table; the view
 *   writer.c    pack objects being written
 *   delta.c     differences of blocks; bodies of frames that have some
 *   cache.c     contents of blocks that deltas may be made against
 *   share.c     packs that jobs share: files of the system, sealed so that equal ones are equal
 *   pipeline.c  threads that seal and store
 *   level.c     how much to compress
 *   base.c      which block a new one may be a difference to
 *   packer.c    the packer's verbs; packs
 *   retire.c    which packs stay, and which are forgotten
 *   files.c     remembered files and their extents
 *   read.c      one regular file -> extents
 *   runs.c      a file of new and old blocks -> extents
 *   seal.c      manifest: protobuf <-> object
 *   build.c     manifest: packer -> protobuf; packer_finish()
 *   check.c     manifest: semantic checks, for what we read and for what we write
 *   manifest.c  manifest: what callers see of it
 *   unpack.c    manifest -> file contents, and seeding of a packer
 *   parts.c     manifest -> parts of files
 *   links.c     from differences to their bases
 *   compact.c   forgotten packs -> packs, between checkpoints
 *   reader*.c   manifest -> blocks, by several threads (reader.h)
 *
 * On disk all numbers are little-endian; structs are written as they lie in memory, hence the
 * assertion. Formats: docs/formats.md.
 */
#pragma once

#include "agent/pack/manifest.pb-c.h"
#include "agent/pack/pack.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "formats are little-endian");

enum {
	AEAD_TAG = 16,
	PACK_FRAMES_MAX = PACK_RAW_MAX / PACK_BLOCK / PACK_FRAME_BLOCKS,
	PACK_BLOCKS_MAX = PACK_RAW_MAX / PACK_BLOCK,
	PACK_FRAME_RAW = PACK_FRAME_BLOCKS * PACK_BLOCK,
	PACK_BLOCK_WORDS = PACK_BLOCK / 8,
	PACK_BLOCK_MAP = PACK_BLOCK_WORDS / 8, /* bytes: a bit for each word of a block */
	MIXED_HEADER = 8,
	MIXED_REF = 4,
	/* Of a mixed frame before compression: no delta is larger than a block. */
	PACK_BODY_MAX = MIXED_HEADER + PACK_FRAME_RAW,
	PACK_DELTA_WORDS_MAX = 384,
	PACK_DELTA_NEAR = 16,		      /* words: no nearer base is looked for, or kept */
	PACK_BASES_MAX = 256,		      /* packs that the deltas of one pack refer to */
	PACK_CHAIN_MAX = 16,		      /* deltas one upon the other */
	PACK_SEALED_FLUSH = PACK_RAW_MAX / 4, /* a pack is closed when its frames reach this */
	PACK_PAD = 4096,
	PACKS_REFERENCED_MAX = 256, /* a manifest that needs more makes the packer forget some */
	PACKS_REFERENCED_KEEP = 192,
	PACK_SMALL_LIVE = PACK_BLOCKS_MAX / 4,
	PACK_LIVE_PERCENT_MIN = 5,  /* a pack with less is written anew at once: that is cheap */
	PACK_DEAD_PERCENT_MAX = 50, /* of all packs; else the sparsest are, too */
	MANIFEST_PACKS_MAX = 1 << 17,
	MANIFEST_RAW_MAX = 64 << 20,
	MANIFEST_META_MAX = 256 << 10,
	MANIFEST_XATTRS_MAX = 256 << 10,
};

#define PACK_FILE_MAX ((uint64_t)1 << 40)
#define PACK_ZERO UINT32_MAX /* extent.pack: a run of zero blocks */

/* ---- keys.c: AES-256-GCM with a numbered nonce; the caller never repeats (key, number) ---- */

/* out has size + AEAD_TAG bytes. */
int aead_seal(const struct secret_key *key, uint64_t nonce_number, const void *ad, size_t ad_size,
	      const void *plain, size_t size, uint8_t *out) _must_check_;
/* out is wiped when it does not authenticate. */
int aead_open(const struct secret_key *key, uint64_t nonce_number, const void *ad, size_t ad_size,
	      const uint8_t *sealed, size_t size, void *out) _must_check_;
/*
 * AES-256-CTR, encrypting and decrypting alike, with one key for many pieces of at most 64 GiB. It
 * keeps contents secret and nothing else: who reads compares a hash. The caller never repeats a
 * number for other contents.
 */
struct stream;
int stream_create(const struct secret_key *key, struct stream **ret_stream) _must_check_;
/* NULL is accepted. */
void stream_destroy(struct stream *s);
int stream_apply(struct stream *s, uint64_t number, const void *in, size_t size,
		 void *out) _must_check_;

/* ---- index.c ---- */

struct block_hash {
	uint64_t low, high;
};

/* 96 bits of the hash: of 2^30 blocks, two are alike by chance once in 2^37 jobs. */
struct block_entry {
	uint64_t high;
	uint32_t low;	/* its home */
	uint32_t place; /* 1 + pack * PACK_BLOCKS_MAX + slot; 0: free */
};
_Static_assert((uint64_t)MANIFEST_PACKS_MAX *PACK_BLOCKS_MAX < UINT32_MAX, "places fit");

struct block_index {
	struct block_entry *entries;
	size_t mask; /* capacity - 1; 0 with entries NULL */
	size_t count;
	uint64_t bytes_max; /* 0: no limit; what does not fit is not known again by its content */
};

/* Empties it; the limit stays. */
/* Memory that it takes. */
uint64_t block_index_bytes(const struct block_index *x);
void block_index_deinit(struct block_index *x);
bool block_index_find(const struct block_index *x, struct block_hash hash, uint32_t *ret_pack,
		      uint32_t *ret_slot);
/* It will be looked for soon. */
void block_index_prefetch(const struct block_index *x, struct block_hash hash);
/* The first place of a block stays: a second insert of its hash changes nothing. */
int block_index_insert(struct block_index *x, struct block_hash hash, uint32_t pack,
		       uint32_t slot) _must_check_;
/* Drops all entries whose place keep() refuses. Needs no memory, so it cannot fail. */
void block_index_sweep(struct block_index *x,
		       bool (*keep)(const void *ctx, uint32_t pack, uint32_t slot),
		       const void *ctx);

/* Small integers by a 64-bit hash; equal hashes are allowed, the caller tells values apart. */
struct slotmap {
	struct {
		uint64_t hash;
		uint32_t value; /* + 1; 0: free */
	} * slots;
	size_t mask, count;
};

void slotmap_deinit(struct slotmap *x);
int slotmap_insert(struct slotmap *x, uint64_t hash, uint32_t value) _must_check_;
/* *cursor starts at 0; false when there are no more values of that hash. */
bool slotmap_next(const struct slotmap *x, uint64_t hash, size_t *cursor, uint32_t *ret_value);

/* ---- frame.c ---- */

enum { PACK_SALT = 16 };

struct pack_header {
	char magic[8]; /* "DECAMPPK" */
	uint32_t version;
	uint32_t frame_count;
	uint8_t salt[PACK_SALT];
	uint32_t block_count;
	uint32_t table_offset;
	uint32_t table_size; /* sealed */
	uint32_t total_size; /* with padding */
	uint8_t reserved[16];
};
_Static_assert(sizeof(struct pack_header) == 64, "no padding");

struct pack_frame {
	uint32_t offset;
	uint32_t size; /* sealed */
	uint16_t blocks;
	uint16_t flags; /* PACK_FRAME_RAW_FLAG or 0 */
};
_Static_assert(sizeof(struct pack_frame) == 12, "no padding");

enum {
	PACK_FRAME_STORED = 1 << 0, /* flags: not compressed */
	PACK_FRAME_MIXED = 1 << 1,  /* the body has deltas */
};

/* Cleartext header, the first bytes of an object of `size`; -EBADMSG. The table authenticates it. */
int pack_header_decode(const uint8_t *bytes, size_t size,
		       struct pack_header *ret_header) _must_check_;
/* Plaintext of the frame table. -EBADMSG. */
struct pack_table {
	struct pack_frame frames[PACK_FRAMES_MAX];
	uint32_t base_count;
	struct object_hash bases[PACK_BASES_MAX]; /* packs with the blocks that deltas are made of */
};
int pack_table_decode(const uint8_t *bytes, size_t size, const struct pack_header *header,
		      struct pack_table *ret_table) _must_check_;
size_t pack_table_encode(const struct pack_table *table, uint32_t frame_count, uint8_t *out);

/* ---- delta.c ---- */

struct block_delta {
	uint32_t count;			      /* of words */
	uint64_t map[PACK_BLOCK_MAP / 8];     /* which they are */
	uint64_t words[PACK_BLOCK_WORDS + 1]; /* exclusive or of both blocks */
};
void block_delta(const uint8_t *now, const uint8_t *base, struct block_delta *ret_delta);
/* The same on a processor without wide vectors. */
void block_delta_plain(const uint8_t *now, const uint8_t *base, struct block_delta *ret_delta);
/* The exclusive or of a whole block. words has as many as map has bits. */
void block_delta_mask(const uint8_t *map, const uint8_t *words, uint8_t *ret_mask);

/* Where the base of a delta lies; pack is an index into the bases of the delta's own pack. */
struct pack_base {
	uint16_t pack; /* PACK_BASE_NONE: no delta */
	uint16_t slot;
};
#define PACK_BASE_NONE UINT16_MAX

/*
 * A body with deltas -> for each block its content, or, with a base, the exclusive or of both.
 * -EBADMSG for a body that is not exactly that of so many blocks and bases.
 */
int mixed_body_decode(const uint8_t *body, size_t size, uint32_t blocks, uint32_t base_count,
		      uint8_t *ret_blocks, struct pack_base *ret_bases) _must_check_;

/* ---- level.c ---- */

enum { LEVELS = 5 };
struct level_measure {
	double cpu;	  /* ns for each byte that goes in */
	double size;	  /* bytes that come out for each that goes in */
	uint32_t windows; /* since then; 0: not known */
};
struct level_control {
	_Atomic uint64_t link_bytes_per_s; /* 0: not known, the level stays */
	uint32_t cpu_percent;		   /* 100: one processor is for sealing */
	uint32_t at;
	struct level_measure measured[LEVELS];
	uint64_t in, out, cpu_ns;
	uint32_t frames;
};
void level_init(struct level_control *c, uint64_t link_bytes_per_s, uint32_t cpu_percent);
/* Of zstd; 0: do not compress. */
int level_now(const struct level_control *c);
/* A frame was sealed at that level. */
void level_note(struct level_control *c, int level, uint64_t in, uint64_t out, uint64_t cpu_ns);

/* ---- writer.c ---- */

/* One frame: filled with blocks, then sealed, which may be in another thread. */
struct frame_job {
	struct pack_header header; /* salt, version */
	struct job_id job;
	uint64_t seq;
	struct secret_key key;
	uint32_t number;
	int level; /* of zstd; 0: none */
	uint32_t blocks, full, deltas, words;
	uint64_t which; /* bit i: block i is a delta */
	uint8_t *raw;	/* full blocks */
	uint8_t refs[PACK_FRAME_BLOCKS * MIXED_REF];
	uint8_t maps[PACK_FRAME_BLOCKS * PACK_BLOCK_MAP];
	uint8_t *delta_words;
	size_t raw_used, words_used; /* bytes of raw and delta_words, at most, before this frame */
	/* sealed */
	struct pack_frame frame; /* without its offset */
	uint8_t *out;
	uint64_t body_size, cpu_ns;
	int result;
	bool sealed; /* by another thread, which has done with it; under the sealers' lock */
};
struct frame_scratch {
	void *zstd; /* ZSTD_CCtx */
	int level;  /* that it is set to; 0: none yet */
	uint8_t *body, *packed;
	size_t used; /* bytes of those, at most */
};

int frame_job_init(struct frame_job *f) _must_check_;
void frame_job_deinit(struct frame_job *f);
int frame_scratch_init(struct frame_scratch *s) _must_check_;
void frame_scratch_deinit(struct frame_scratch *s);
/*
 * Into packed; 0: it does not get smaller. The last words_size bytes are words of differences: they
 * have other bytes than blocks, and coded by one table both would take more, so they become a zstd
 * frame of their own, which a decoder takes as the rest of the first.
 */
size_t frame_compress(struct frame_scratch *s, int level, const uint8_t *body, size_t size,
		      size_t words_size);
/* Fills frame, out and result. */
void frame_job_seal(struct frame_job *f, struct frame_scratch *s);

/* ---- pipeline.c ---- */

enum {
	PIPELINE_FRAMES = 16,	  /* on their way between packer_add() and the pack */
	PIPELINE_SEALERS_MAX = 8, /* threads */
	STORER_PACKS = PACKER_STORES_MAX,
};

struct sealers;
int sealers_create(unsigned int threads, struct sealers **ret_sealers) _must_check_;
/* All frames have come back. NULL is accepted. */
void sealers_destroy(struct sealers *s);
/* So many frames keep them busy, at most PIPELINE_FRAMES: more would only be more memory. */
uint32_t sealers_frames(const struct sealers *s);
/* The frame is the sealers' until sealers_wait() for it; at most that many are theirs. */
void sealers_submit(struct sealers *s, struct frame_job *f);
/* Seals others meanwhile. */
void sealers_wait(struct sealers *s, struct frame_job *f);

struct stored_pack {
	pack_store_fn store;
	const uint8_t *bytes; /* NULL: none */
	uint8_t *own;	      /* freed once it is stored; NULL: the bytes are the writer's */
	uint32_t size;
	uint32_t pack; /* packer's id */
	int result;
	uint32_t there; /* holders that had it already */
	struct object_hash hash;
	uint32_t holder_count;
	struct node_id holders[OV_HOLDERS_MAX];
};
/*
 * packer.c: names and stores it; fills the rest. file: -1 or a memfd of the last object, whose memory
 * serves again; the caller closes it at last, and only one object at a time is in it.
 */
int pack_store_object(void *ctx, int *file, struct stored_pack *pack) _must_check_;
/* Of its size, what was sent of each copy on the average. */
uint64_t pack_sent_bytes(const struct stored_pack *stored);

struct storer;
int storer_create(void *ctx, struct storer **ret_storer) _must_check_;
/* Waits for what is being stored. NULL is accepted. */
void storer_destroy(struct storer *s);
/* The bytes are the storer's until the pack is taken; at most STORER_PACKS are its. */
void storer_submit(struct storer *s, const struct stored_pack *pack);
/* The oldest one, which is waited for. False: no more than `leave` are the storer's. */
bool storer_take(struct storer *s, uint32_t leave, struct stored_pack *ret_pack);

/* A pack being written. Buffers are allocated once and reused. */
struct pack_writer {
	struct job_id job;
	uint64_t seq;
	struct secret_key key;
	struct pack_header header;
	struct pack_table table;
	struct level_control *levels;	 /* borrowed */
	struct sealers *sealers;	 /* borrowed; NULL: frames are sealed here */
	uint8_t *outs[STORER_PACKS + 1]; /* one is written while the others are being stored */
	uint32_t out_at;
	uint8_t *out;
	size_t out_size;
	struct frame_job *frames; /* a ring; the open one is frame_number % ring */
	struct frame_job *frame;  /* the open one */
	uint32_t ring;
	uint32_t frame_number;	/* of the open one, in this pack */
	uint32_t frames_landed; /* in out */
	struct frame_scratch scratch;
};

int pack_writer_init(struct pack_writer *w, struct level_control *levels,
		     struct sealers *sealers) _must_check_;
void pack_writer_deinit(struct pack_writer *w);
int pack_writer_begin(struct pack_writer *w, const struct job_id *job,
		      const struct secret_key *job_key, uint64_t seq) _must_check_;
/* Appends one block; *ret_full: close the pack now. */
int pack_writer_block(struct pack_writer *w, const uint8_t *block, uint32_t *ret_slot,
		      bool *ret_full) _must_check_;
/* Appends one block as a delta; -ENOSPC: it has too many bases already, give it whole. */
int pack_writer_delta(struct pack_writer *w, const struct block_delta *delta,
		      const struct object_hash *base, uint32_t base_slot, uint32_t *ret_slot,
		      bool *ret_full) _must_check_;
/* Takes all frames back and drops them. */
void pack_writer_cancel(struct pack_writer *w);
/* Seals the table. The object is valid until the begin STORER_PACKS + 1 later. */
int pack_writer_end(struct pack_writer *w, const uint8_t **ret_bytes,
		    uint32_t *ret_size) _must_check_;

/*
 * A pack being read; what it lies in is borrowed until the view is forgotten. Bytes do not change
 * meanwhile. A file may: each byte of it that is used is read once, into the caller's room, and opened
 * there.
 */
struct pack_view {
	const uint8_t *bytes; /* NULL: in the file */
	int fd;
	struct job_id job;
	uint64_t seq;
	struct secret_key key;
	struct pack_header header;
	struct pack_table table;
};

/* Authenticates header, table and padding; frames are authenticated one by one. -EBADMSG. */
int pack_view_open(struct pack_view *v, const void *bytes, size_t size, const struct job_id *job,
		   const struct secret_key *job_key, uint64_t seq) _must_check_;
/* Likewise one that jobs share, with the key that is its own. */
int pack_view_open_shared(struct pack_view *v, const void *bytes, size_t size,
			  const struct secret_key *key) _must_check_;
/* As pack_view_open(), out of a file. */
int pack_view_open_file(struct pack_view *v, int fd, size_t size, const struct job_id *job,
			const struct secret_key *job_key, uint64_t seq) _must_check_;
/*
 * Blocks of a frame. One with a base (an index into v->table.bases) is the exclusive or of its
 * content and the base block's. out and scratch have PACK_FRAME_RAW + PACK_FRAME_SLACK bytes each.
 */
enum { PACK_FRAME_SLACK = 64 };
int pack_view_frame(const struct pack_view *v, uint32_t frame, uint8_t *out, uint8_t *scratch,
		    struct pack_base ret_bases[PACK_FRAME_BLOCKS]) _must_check_;

/* What both sides of frame.c and writer.c need. */
int pack_frame_key(const struct secret_key *job_key, const struct pack_header *h,
		   struct secret_key *ret_key) _must_check_;
struct frame_ad {
	char magic[8];
	uint32_t version;
	uint32_t number;
	uint8_t salt[PACK_SALT];
	struct job_id job;
	uint64_t seq;
};
_Static_assert(sizeof(struct frame_ad) == 56, "no padding");
struct table_ad {
	struct pack_header header;
	struct job_id job;
	uint64_t seq;
};
_Static_assert(sizeof(struct table_ad) == 88, "no padding");
/* Associated data of a frame: it opens at its own place of its own pack only. */
struct frame_ad pack_frame_ad(const struct pack_header *h, const struct job_id *job, uint64_t seq,
			      uint32_t number);

#define PACK_MAGIC "DECAMPPK"
/* The table's nonce number; frames count from 0. */
#define PACK_TABLE_NUMBER UINT32_MAX
enum {
	PACK_VERSION = 2,
	PACK_TABLE_MAX = 8 + PACK_FRAMES_MAX * sizeof(struct pack_frame) + 4 +
			 PACK_BASES_MAX * sizeof(struct object_hash),
};

/* ---- cache.c ---- */

enum {
	CACHE_OVERHEAD = 56,
	CACHE_PLACES_MAX = 1 << 26,
	CACHE_PENDING_MAX = 32, /* places that are written to the file at once */
	CACHE_AHEAD_MAX = 8,	/* that are read from it at once */
};

struct cache_place;
struct cache_seal;
struct cache_tier {
	uint64_t limit; /* places; 0: off */
	uint64_t most;	/* that limit ever is */
	uint64_t high;	/* places that were ever used */
	uint64_t hand;
	struct cache_place *places;
	uint32_t *buckets;
	size_t mask;
	uint32_t free;
};
struct block_cache {
	struct cache_tier memory, disk;
	uint8_t *bytes; /* of the places in memory */
	char dir[256];
	int fd;
	struct stream *stream; /* of the file */
	uint8_t hash_secret[192];
	uint64_t number;
	struct cache_seal *seals;
	uint8_t *plain; /* of the block that was read last */
	uint8_t *pending; /* encrypted, of pending_count places from pending_first on: not in the file */
	uint64_t pending_first, pending_count;
	uint8_t *ahead; /* encrypted, as read from the file */
	uint64_t ahead_first, ahead_count;
};
/* dir: of the file, which has no name; NULL: no file. Nothing is allocated before the first put. */
void block_cache_init(struct block_cache *c, uint64_t memory_bytes, uint64_t disk_bytes,
		      const char *dir);
/* So much memory from now on, at most what it began with; less than 2 MiB: as before. */
void block_cache_fit(struct block_cache *c, uint64_t memory_bytes);
/* Empties it; the limits stay. */
void block_cache_deinit(struct block_cache *c);
/* NULL or the content, valid until the next call. */
const uint8_t *block_cache_get(struct block_cache *c, uint64_t key);
/*
 * NULL as well, and without reading it, if it has next to nothing in common with that block.
 * *ret_unlike: it is there, and was put as CACHE_UNLIKE.
 */
const uint8_t *block_cache_get_like(struct block_cache *c, uint64_t key, const uint8_t *block,
				    bool *ret_unlike);
/* Contents that will be asked for soon: the memory for it is fetched, all misses at a time. */
void block_cache_ahead(const struct block_cache *c, const uint64_t *keys, size_t count);
enum cache_kind {
	CACHE_ONCE = 0, /* goes to the file if memory is full */
	CACHE_UNLIKE, /* so does what replaced something that it has next to nothing in common with */
	CACHE_AGAIN, /* has changed before: stays in memory, before all others */
};
void block_cache_put(struct block_cache *c, uint64_t key, const uint8_t *block,
		     enum cache_kind kind);
void block_cache_drop(struct block_cache *c, uint64_t key);

/* ---- packer.c, files.c ---- */

struct extent {
	uint32_t pack; /* packer's pack id, or PACK_ZERO */
	uint32_t slot;
	uint32_t count;
};

struct extent_list {
	struct extent *items;
	size_t count, capacity;
};

int extent_append(struct extent_list *list, uint32_t pack, uint32_t slot,
		  uint32_t count) _must_check_;

struct packed_file {
	enum file_kind kind;
	char *path, *link_target;
	uint8_t *xattrs;
	size_t xattrs_size;
	struct stat st;
	uint32_t hardlink; /* 1 + index of the earlier file; 0: none */
	uint8_t content_hash[32];
	struct extent_list extents;
};

/* The files of one checkpoint. */
struct file_list {
	struct packed_file *items;
	size_t count, capacity;
	struct slotmap by_path, by_inode;
};

void file_list_deinit(struct file_list *list);
/* Takes *file over on success. */
int file_list_append_take(struct file_list *list, struct packed_file *file) _must_check_;
const struct packed_file *file_list_find(const struct file_list *list, enum file_kind kind,
					 const char *path);
void packed_file_deinit(struct packed_file *f);

enum pack_state {
	PACK_UNUSED = 0,
	PACK_OPEN,	/* being written; its blocks are in the index */
	PACK_KNOWN,	/* stored; its blocks are in the index */
	PACK_FORGOTTEN, /* stored and still referenced by the last manifest; nothing new refers to it */
};

/* A block of a pack that is a delta. */
struct delta_info {
	uint32_t slot;
	uint32_t depth; /* 1: its base is whole */
	uint32_t base_pack, base_slot;
};

/* Which slots of a pack are deltas, and how many are before each 64 of them. */
struct delta_slots {
	uint64_t bits[PACK_BLOCKS_MAX / 64];
	uint16_t before[PACK_BLOCKS_MAX / 64];
};

struct pack_info {
	enum pack_state state;
	uint32_t uid; /* never used again: names blocks in the cache */
	struct object_hash hash;
	uint64_t seq;
	uint32_t size, blocks, live;
	uint32_t k, m;	 /* 0: kept as copies; else holders[i] has shard i */
	bool coded_said; /* by the last finished manifest */
	bool salted;	 /* the salt of its header is known; never so of a shared one */
	uint8_t salt[PACK_SALT];
	struct secret_key
		*shared_key; /* NULL: sealed for this job; else it is shared, and never coded */
	uint32_t holder_count;
	struct node_id holders[OV_SHARDS_MAX];
	uint32_t manifest_index;   /* while a manifest is built */
	struct delta_info *deltas; /* sorted by slot */
	struct delta_slots *delta_slots;
	size_t delta_count, delta_room;
	uint64_t frames_known; /* seeding: a bit for each frame that was read */
};

/* coded.c */
bool pack_holders_valid(const Decamp__Pack *p);
int pack_info_read(const struct manifest *m, size_t index, struct pack_info *info) _must_check_;

/* Contents that replaced something unlike, and what differences to them saved. */
struct unlike_seen {
	uint32_t tried, saved_words;
};

struct packer {
	struct job_id job;
	struct secret_key job_key;
	uint8_t hash_secret[192];
	struct block_index index;
	bool unswept; /* the index may know blocks that nothing new may refer to */
	struct pack_info *packs;
	size_t pack_count;
	uint32_t last_uid;
	struct packer_budget budget;
	struct block_cache cache;
	struct unlike_seen unlike;
	struct level_control levels;
	struct file_list last, now;
	struct pack_object *objects; /* of the last manifest, itself included */
	size_t object_count;

	/* the checkpoint under way */
	bool active;
	bool seeding; /* between packer_seed_begin() and packer_seed_end() */
	int failed;   /* a store that failed: nothing but abort helps */
	uint64_t seq;
	struct fence_token token;
	pack_store_fn store;
	void *store_ctx;
	pack_store_fn store_shared; /* NULL: nothing is shared */
	struct secret_key share_key;
	struct shared_writer *sharing; /* NULL: no shared file yet */
	bool share_file;	       /* the file being read is one */
	int object_file;	       /* of what this thread stores; -1: none yet */
	struct packer_counts counts;
	uint64_t extents; /* of all files in `now`, and of the one that is being added */
	bool writing;
	uint32_t open_pack;
	struct pack_writer writer;
	struct sealers *sealers; /* NULL: no threads */
	struct storer *storer;
	struct block_delta deltas[2]; /* room to try in */
	uint8_t *read_buffer;
};

/* Where the blocks of the file of the last checkpoint lie; a cursor, as runs mostly go forward. */
struct old_file {
	const struct extent_list *extents; /* NULL: there is none */
	size_t index;			   /* of the extent at hand */
	uint64_t before;		   /* blocks before it */
	uint64_t next;			   /* the block that the next new one may be a version of */
	uint64_t end;			   /* from here on there is none */
};

/* XXH3-128 of a block. */
struct block_hash block_hash_with(const uint8_t secret[192], const uint8_t *block);
struct block_hash packer_hash(const struct packer *p, const uint8_t *block);
bool block_is_zero(const uint8_t *block);
/* A block that is not zero -> where it lies from now on. */
int packer_block(struct packer *p, const uint8_t *block, struct block_hash hash,
		 struct old_file *old, uint32_t *ret_pack, uint32_t *ret_slot) _must_check_;
/* A whole block, into the open pack unless its content is known. */
int packer_rewrite(struct packer *p, const uint8_t *block, uint32_t *ret_pack,
		   uint32_t *ret_slot) _must_check_;
int packer_flush(struct packer *p) _must_check_;
/* Its state is PACK_OPEN. pack->own is taken over. The store may still be busy with it on return. */
int packer_store_pack(struct packer *p, const struct stored_pack *pack) _must_check_;

/* share.c */
bool packer_shares(const struct packer *p, const struct pack_input *in);
/* As packer_read_file(), all blocks of it in shared packs. */
int packer_share_file(struct packer *p, const struct pack_input *in, struct extent_list *extents,
		      uint8_t ret_content_hash[32]) _must_check_;
/* One chunk of it; the extents' packs are for packer_share_file() alone. */
int packer_share_blocks(struct packer *p, const uint8_t *bytes, size_t blocks,
			struct extent_list *extents) _must_check_;
/* NULL is accepted. */
void shared_writer_destroy(struct shared_writer *w);
int packer_new_pack(struct packer *p, uint32_t *ret_pack) _must_check_;
int packer_store_object(struct packer *p, const void *bytes, uint32_t size,
			struct object_hash *ret_hash, uint32_t *ret_holder_count,
			struct node_id *ret_holders) _must_check_;
/* Drops from the index what is not to be had any more. */
void packer_sweep(struct packer *p);
/* Nothing new may refer to it: sweep before the next block is looked for. */
void packer_forget(struct packer *p, struct pack_info *info);
/* Counts the live blocks of all packs by the files of a list. */
int packer_count_live(struct packer *p, const struct file_list *files) _must_check_;
/* Frees packs without live blocks, forgets the sparse ones, sweeps the index. */
void packer_retire(struct packer *p);
/* Everything known is lost, as if just created. */
void packer_reset(struct packer *p);

/* extent_append() for a file that is being added; -EOVERFLOW: more than the budget allows. */
int packer_extent(struct packer *p, struct extent_list *list, uint32_t pack, uint32_t slot,
		  uint32_t count) _must_check_;

/* read.c: content hash only if want_hash */
int packer_read_file(struct packer *p, const struct pack_input *in, struct extent_list *extents,
		     uint8_t ret_content_hash[32]) _must_check_;
/* One chunk of blocks -> extents. old->next goes on with them. */
int packer_add_blocks(struct packer *p, const uint8_t *bytes, size_t blocks, struct old_file *old,
		      struct extent_list *extents) _must_check_;
/* base.c: is the content of a block still to be had, and that of what it is a difference to? */
bool packer_slot_usable(const struct packer *p, uint32_t pack, uint32_t slot);
/* Of slots from there on, how many are alike in that; at least 1, at most count. */
uint32_t packer_usable_run(const struct packer *p, uint32_t pack, uint32_t slot, uint32_t count,
			   bool *ret_usable);
const struct delta_info *pack_delta_find(const struct pack_info *info, uint32_t slot);
int pack_delta_add(struct pack_info *info, const struct delta_info *delta) _must_check_;
void pack_info_clear(struct pack_info *info);
uint64_t pack_cache_key(const struct packer *p, uint32_t pack, uint32_t slot);
void old_file_find(const struct packer *p, const struct pack_input *in, struct old_file *ret_old);
/* Moves the cursor to the extent with that block; -ENOENT. */
int old_file_seek(struct old_file *old, uint64_t block);
/*
 * The delta to send for a block, and what it is a difference to; NULL: send it whole. *ret_last is
 * the version that it replaces, valid if *ret_has_last.
 */
struct base_choice {
	const struct block_delta *delta;
	struct delta_info info; /* but for the slot */
	bool has_last, last_whole;
	uint32_t last_pack, last_slot;
	bool unlike; /* a base that was tried had replaced something unlike */
};
void packer_choose_base(struct packer *p, const uint8_t *block, struct old_file *old,
			struct base_choice *ret_choice);
/*
 * Of the next PACK_AHEAD blocks from old->next on, those with a bit in `which` will be asked for a base
 * soon: what that looks at is fetched, all misses at a time.
 */
enum { PACK_AHEAD = 32 };
void packer_bases_ahead(const struct packer *p, const struct old_file *old, uint32_t which);
/* Of a block that has just been written: what its next version may be a difference to. */
void packer_keep_content(struct packer *p, const uint8_t *block, const struct base_choice *choice,
			 uint32_t slot);
/* runs.c */
int packer_add_runs(struct packer *p, const struct pack_input *in,
		    struct extent_list *extents) _must_check_;
int content_hash_fd(int fd, uint64_t size, uint8_t *buffer, uint8_t ret_hash[32]) _must_check_;

/* Small enough to stay in a core's own cache until its blocks are hashed and copied. */
enum { READ_CHUNK = 1 << 18 };

/* ---- manifest ---- */

struct manifest {
	struct manifest_head head;
	struct object_hash hash;
	Decamp__Manifest *pb;
	ProtobufCAllocator *allocator;
};

/* share.c: by the job's key, or by its own if it is shared. */
int manifest_view_open(const struct manifest *m, uint32_t pack, const struct secret_key *job_key,
		       const void *bytes, size_t size, struct pack_view *v) _must_check_;
/*
 * Does the manifest name its salt? Then no other pack has its key, and what opens is this one: its
 * hash need not be known. Else only the hash says which pack of its checkpoint it is.
 */
bool manifest_pack_bound(const struct manifest *m, uint32_t pack);
/* One that is bound, of its whole size, out of a file. */
int manifest_view_open_file(const struct manifest *m, uint32_t pack,
			    const struct secret_key *job_key, int fd,
			    struct pack_view *v) _must_check_;

/* links.c: packs of a manifest by their names; empty if none has differences. */
int links_init(struct slotmap *links, const struct manifest *m) _must_check_;
/* -ENOENT. */
int links_pack(const struct slotmap *links, const struct manifest *m,
	       const struct object_hash *name, uint32_t *ret_pack) _must_check_;
/* A block, and what it is a difference to as its frame says (ret_base: not known). */
struct base_ref {
	uint32_t pack, slot;
	uint32_t depth; /* of the chain: 0 for a block of a file */
	struct pack_base ref;
};
/* -EBADMSG, with a warning that names pack and block. */
int links_base(const struct slotmap *links, const struct manifest *m, const struct pack_view *v,
	       const struct base_ref *from, struct base_ref *ret_base) _must_check_;

/* check.c: every field; -EBADMSG. */
int manifest_check(const Decamp__Manifest *pb) _must_check_;
bool manifest_path_valid(enum file_kind kind, const char *path);
bool manifest_xattrs_valid(const uint8_t *xattrs, size_t size);

/* seal.c: protobuf -> object bytes, which the caller frees. */
int manifest_seal(const Decamp__Manifest *pb, const struct secret_key *job_key,
		  const struct secret_key *sign_seed, const struct node_card *card,
		  uint8_t **ret_bytes, size_t *ret_size) _must_check_;
/* What lies inside the sealed box: zstd'ed protobuf. -EBADMSG. */
int manifest_decode(const uint8_t *bytes, size_t size, struct manifest **ret_manifest) _must_check_;
void manifest_fill_head(struct manifest *m);
