/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of the pack stage: shared by its source files, its tests and its fuzzers, by nobody else.
 *
 *   index.c     hash of a block -> where it lies; chained lookups by 64-bit key (slotmap)
 *   frame.c     pack objects: header, frames, frame table; writer and view
 *   packer.c    the packer's verbs; packs and which of them to forget
 *   files.c     remembered files and their extents
 *   read.c      one regular file -> extents
 *   runs.c      a file of new and old blocks -> extents
 *   seal.c      manifest: protobuf <-> object
 *   build.c     manifest: packer -> protobuf; packer_finish()
 *   check.c     manifest: semantic checks, for what we read and for what we write
 *   manifest.c  manifest: what callers see of it
 *   unpack.c    manifest -> file contents, and seeding of a packer
 *   parts.c     manifest -> parts of files
 *   reader.c    manifest -> blocks, by several threads (reader.h); reader_frames.c: one pack
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
	PACK_SEALED_FLUSH = PACK_RAW_MAX / 4, /* a pack is closed when its frames reach this */
	PACK_PAD = 4096,
	PACK_ZSTD_LEVEL = 1,
	PACKS_REFERENCED_MAX = 256, /* a manifest that needs more makes the packer forget some */
	PACKS_REFERENCED_KEEP = 192,
	PACK_SMALL_LIVE = PACK_BLOCKS_MAX / 4,
	PACK_LIVE_PERCENT_MIN = 30,
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

/* ---- index.c ---- */

struct block_hash {
	uint64_t low, high;
};

struct block_entry {
	struct block_hash hash;
	uint32_t pack; /* packer's pack id + 1; 0: free */
	uint32_t slot;
};

struct block_index {
	struct block_entry *entries;
	size_t mask; /* capacity - 1; 0 with entries NULL */
	size_t count;
};

void block_index_deinit(struct block_index *x);
const struct block_entry *block_index_find(const struct block_index *x, struct block_hash hash);
/* The first place of a block stays: a second insert of its hash changes nothing. */
int block_index_insert(struct block_index *x, struct block_hash hash, uint32_t pack,
		       uint32_t slot) _must_check_;
/* Drops all entries whose pack keep() refuses. Needs no memory, so it cannot fail. */
void block_index_sweep(struct block_index *x, bool (*keep)(const void *ctx, uint32_t pack),
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

struct pack_header {
	char magic[8]; /* "DECAMPPK" */
	uint32_t version;
	uint32_t frame_count;
	uint8_t salt[16];
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

enum { PACK_FRAME_STORED = 1 }; /* flags: not compressed */

/* Cleartext header of an object of `size` bytes; -EBADMSG. */
int pack_header_decode(const uint8_t *bytes, size_t size,
		       struct pack_header *ret_header) _must_check_;
/* Plaintext of the frame table -> ret_frames[header->frame_count]; -EBADMSG. */
int pack_table_decode(const uint8_t *bytes, size_t size, const struct pack_header *header,
		      struct pack_frame ret_frames[PACK_FRAMES_MAX]) _must_check_;

/* A pack being written. Buffers are allocated once and reused. */
struct pack_writer {
	struct job_id job;
	uint64_t seq;
	struct secret_key key;
	struct pack_header header;
	struct pack_frame frames[PACK_FRAMES_MAX];
	uint8_t *out, *raw, *scratch;
	size_t out_size;
	uint32_t raw_blocks; /* in the open frame */
	void *zstd;	     /* ZSTD_CCtx */
};

int pack_writer_init(struct pack_writer *w) _must_check_;
void pack_writer_deinit(struct pack_writer *w);
int pack_writer_begin(struct pack_writer *w, const struct job_id *job,
		      const struct secret_key *job_key, uint64_t seq) _must_check_;
/* Appends one block; *ret_full: close the pack now. */
int pack_writer_block(struct pack_writer *w, const uint8_t *block, uint32_t *ret_slot,
		      bool *ret_full) _must_check_;
/* Seals the table. The object is valid until the next begin. */
int pack_writer_end(struct pack_writer *w, const uint8_t **ret_bytes,
		    uint32_t *ret_size) _must_check_;

/* A pack being read; bytes are borrowed until the view is forgotten. */
struct pack_view {
	const uint8_t *bytes;
	struct job_id job;
	uint64_t seq;
	struct secret_key key;
	struct pack_header header;
	struct pack_frame frames[PACK_FRAMES_MAX];
};

/* Authenticates header, table and padding; frames are authenticated one by one. -EBADMSG. */
int pack_view_open(struct pack_view *v, const void *bytes, size_t size, const struct job_id *job,
		   const struct secret_key *job_key, uint64_t seq) _must_check_;
/* out and scratch have PACK_FRAME_RAW bytes each. */
int pack_view_frame(const struct pack_view *v, uint32_t frame, uint8_t *out,
		    uint8_t *scratch) _must_check_;

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

struct pack_info {
	enum pack_state state;
	struct object_hash hash;
	uint64_t seq;
	uint32_t size, blocks, live;
	uint32_t holder_count;
	struct node_id holders[OV_HOLDERS_MAX];
	uint32_t manifest_index; /* while a manifest is built */
};

struct packer {
	struct job_id job;
	struct secret_key job_key;
	uint8_t hash_secret[192];
	struct block_index index;
	struct pack_info *packs;
	size_t pack_count;
	struct file_list last, now;
	struct object_hash *objects; /* of the last manifest, itself included */
	size_t object_count;

	/* the checkpoint under way */
	bool active;
	bool seeding; /* between packer_seed_begin() and packer_seed_end() */
	int failed;   /* a store that failed: nothing but abort helps */
	uint64_t seq;
	struct fence_token token;
	pack_store_fn store;
	void *store_ctx;
	struct packer_counts counts;
	bool writing;
	uint32_t open_pack;
	struct pack_writer writer;
	uint8_t *read_buffer;
};

struct block_hash packer_hash(const struct packer *p, const uint8_t *block);
bool block_is_zero(const uint8_t *block);
/* A block that is not zero -> where it lies from now on. */
int packer_block(struct packer *p, const uint8_t *block, uint32_t *ret_pack,
		 uint32_t *ret_slot) _must_check_;
int packer_flush(struct packer *p) _must_check_;
int packer_new_pack(struct packer *p, uint32_t *ret_pack) _must_check_;
int packer_store_object(struct packer *p, const void *bytes, uint32_t size,
			struct object_hash *ret_hash, uint32_t *ret_holder_count,
			struct node_id *ret_holders) _must_check_;
/* Counts the live blocks of all packs by the files of a list. */
int packer_count_live(struct packer *p, const struct file_list *files) _must_check_;
/* Frees packs without live blocks, forgets the sparse ones, sweeps the index. */
void packer_retire(struct packer *p);
/* Everything known is lost, as if just created. */
void packer_reset(struct packer *p);

/* read.c: content hash only if want_hash */
int packer_read_file(struct packer *p, int fd, uint64_t size, bool want_hash,
		     struct extent_list *extents, uint8_t ret_content_hash[32]) _must_check_;
/* One chunk of blocks -> extents. */
int packer_add_blocks(struct packer *p, const uint8_t *bytes, size_t blocks,
		      struct extent_list *extents) _must_check_;
/* Is the content of a pack's blocks still to be had? */
bool packer_pack_usable(const struct packer *p, uint32_t pack);
/* runs.c */
int packer_add_runs(struct packer *p, const struct pack_input *in,
		    struct extent_list *extents) _must_check_;
int content_hash_fd(int fd, uint64_t size, uint8_t *buffer, uint8_t ret_hash[32]) _must_check_;

enum { READ_CHUNK = 1 << 20 };

/* ---- manifest ---- */

struct manifest {
	struct manifest_head head;
	struct object_hash hash;
	Decamp__Manifest *pb;
	ProtobufCAllocator *allocator;
};

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
