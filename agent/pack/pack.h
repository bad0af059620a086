/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files of a snapshot -> packs and a manifest, and back.
 *
 *   file = 4 KiB blocks -> keyed hash of each -> known block: reference / new block: into a pack
 *   pack = header, AEAD frames of zstd'ed blocks, sealed frame table; named by SHA-256 of itself
 *   manifest = files with extents, packs with holders, statistics; sealed and signed
 *
 * A checkpoint needs no chain: each manifest names, directly, every pack that it needs, old and
 * new. A block whose content was seen in any earlier checkpoint of the job is a reference, wherever
 * it lay then. Zero blocks cost nothing. A block that changed a little is a difference to a block of an
 * earlier checkpoint, which the manifest keeps alive: at most 16 such steps, mostly one. Packs that few live blocks use are rewritten ("forgotten":
 * their blocks count as new). Formats: docs/formats.md.
 *
 * Limits: PACK_RAW_MAX raw bytes a pack, files of at most 1 TiB, MANIFEST_FILES_MAX files.
 * Ownership: the packer owns its index; manifests are heap objects with a destroy.
 * Threading: one packer or unpacker belongs to one thread at a time.
 * Errors: -EBADMSG for whatever does not authenticate or decode; nothing is half written to the
 * caller's files without the error being returned.
 */
#pragma once

#include <stdbool.h>
#include <sys/stat.h>

#include "agent/pack/keys.h"

enum {
	PACK_BLOCK = 4096,
	PACK_FRAME_BLOCKS = 64, /* 256 KiB raw in one AEAD frame */
	PACK_RAW_MAX = 16 << 20,
	MANIFEST_FILES_MAX = 1 << 20,
	MANIFEST_STATS_MAX = 64, /* newest checkpoints and moves whose statistics travel */
};

/* What a file of the snapshot is; decides where restore puts it. */
enum file_kind {
	FILE_IMAGE = 1,	  /* CRIU image: path relative to the image directory */
	FILE_UPPER = 2,	  /* of the job's overlay upper layer: "N/path", N = mount number */
	FILE_CLOSURE = 3, /* read by the job, not written: absolute path without the leading '/' */
};

/*
 * A piece of a file that is given as blocks, new ones and ones of the last finished checkpoint:
 * from = PACK_RUN_NEW or PACK_RUN_OLD << 56 | first block in fd, or in the file of the same kind
 * and path in that checkpoint.
 */
struct pack_run {
	uint64_t from, count;
};
enum { PACK_RUN_NEW = 1, PACK_RUN_OLD = 2 };

/* One file as it goes in. For regular files fd is read from 0 to st.st_size. */
struct pack_input {
	enum file_kind kind;
	const char *path;
	struct stat st;		 /* type, mode, owner, size, mtime, rdev (whiteouts), nlink, ino */
	const char *link_target; /* symlinks */
	const uint8_t *xattrs;	 /* "name\0" u32-LE length, value, repeated; may be NULL */
	size_t xattrs_size;
	int fd; /* regular files; -1: unchanged since the checkpoint before */
	/* Not NULL: the content is these runs, together st.st_size bytes; fd has the new blocks. */
	const struct pack_run *runs;
	size_t run_count;
};

/* Blocks of a file "pages-N.img" of the last checkpoint that lie in no pack any more. */
struct pack_wanted {
	uint32_t pages_id;
	uint32_t reserved;
	uint64_t first, count;
};

enum { PACKER_STORES_MAX = 2 };
/*
 * Stores one finished object; blocking; fills holders (1..OV_HOLDERS_MAX). memfd holds it and nothing
 * else until store() returns; then its memory may get another object: who needs it longer copies it.
 */
typedef int (*pack_store_fn)(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
			     uint32_t *ret_holder_count, struct node_id *ret_holders);

/* Statistics of one checkpoint or one move, carried along for show and history. */
struct ckpt_stat {
	uint64_t seq;
	uint64_t wall_ms;
	uint64_t pause_us;
	uint64_t mem_bytes;   /* memory pages in the images */
	uint64_t file_bytes;  /* of upper and closure */
	uint64_t new_bytes;   /* raw bytes of blocks not seen before */
	uint64_t delta_bytes; /* of these: sent as differences to earlier versions */
	uint64_t sent_bytes;  /* packs + manifest, once */
	uint64_t total_us;    /* freeze to committed */
	char host[OV_NAME_MAX];
	char engine[16];
	char reason[32];       /* "interval", "user", "login", "migrate", "final" */
	char pause_mostly[16]; /* native_mostly(); empty: not known */
};

struct move_stat {
	uint64_t wall_ms;
	uint64_t from_seq; /* checkpoint that it was resumed from */
	uint64_t lost_ms; /* from that freeze to the owner's last sign of life; 0 for a hand-over */
	uint64_t resume_ms; /* decision (grant) to running */
	char from[OV_NAME_MAX];
	char to[OV_NAME_MAX];
	char reason[32]; /* "power", "login", "migrate", "user" */
};

struct manifest_head {
	struct job_id job;
	struct fence_token token;
	uint64_t seq;
	uint64_t wall_ms;
	struct node_id host; /* that captured and signed it */
	char engine[16];
	char arch[16];
	char kernel[64];
	const char *meta_json; /* agent's own notes: pids, mounts, cwd…; at most 256 KiB */
	const char *spec_json; /* the job's spec, so that any host can show and finish it */
	uint32_t stat_count, move_count;
	struct ckpt_stat stats[MANIFEST_STATS_MAX]; /* oldest first */
	struct move_stat moves[MANIFEST_STATS_MAX];
};

struct packer;
struct manifest;

int packer_create(const struct job_id *job, const struct secret_key *job_key,
		  struct packer **ret_packer) _must_check_;
void packer_destroy(struct packer *p);

/*
 * What a packer may use, and what it knows of the way out. Without a call: the values of
 * PACKER_BUDGET_DEFAULT. Not between begin and finish or abort (-EBUSY).
 */
struct packer_budget {
	/*
	 * Contents that deltas are made against, in memory, but for what the table below takes, of
	 * which at least half stays for contents; less than 2 MiB: no deltas.
	 */
	uint64_t cache_bytes;
	/* More of them in a file without a name in this folder, encrypted; NULL: none. Copied. */
	uint64_t cache_disk_bytes;
	const char *cache_dir;
	/*
	 * For the table by which blocks are known again by their content: 16 bytes each and room to
	 * grow. Blocks that find no room are known by their places only. 0: no limit.
	 */
	uint64_t index_bytes;
	/*
	 * Pieces that the files of one checkpoint may lie in, all together: 12 bytes each and room to
	 * grow, in memory while it is made and as long as it is the last one. 0: no limit.
	 */
	uint64_t extents_max;
	/* By these the level of compression is chosen. 0: not known, a middle one. */
	uint64_t link_bytes_per_s; /* to all holders together, as measured */
	uint32_t cpu_percent;	   /* 100: one processor may be busy with sealing; 0: 100 */
	/*
	 * Threads that compress and encrypt behind packer_add(), at most 8, and then more that store:
	 * store() is called from those, PACKER_STORES_MAX calls at a time, between begin and finish
	 * or abort. 0: all is done in the caller's thread. Together some 40 MiB of buffers.
	 */
	uint32_t threads;
	/* Differences one upon the other, at most 16; 0: 16. With fewer, more bytes are sent. */
	uint32_t chain_max;
};
#define PACKER_BUDGET_DEFAULT ((struct packer_budget){ .cache_bytes = (uint64_t)112 << 20 })
int packer_set_budget(struct packer *p, const struct packer_budget *budget) _must_check_;
/* The link as measured since then; at any time, from store() as well. 0 says nothing. */
void packer_set_link(struct packer *p, uint64_t link_bytes_per_s);

/*
 * Files of the system (FILE_CLOSURE, root's, readable by all, 128 KiB and more) go into packs that all
 * jobs of a cluster share: equal content gives equal objects, under this key, which is the cluster's
 * agents' own. store as in packer_begin(), with its ctx, but that it returns how many of the holders
 * had the object already and were sent nothing. The key is copied.
 */
void packer_share(struct packer *p, const struct secret_key *key, pack_store_fn store);

/*
 * Starts checkpoint seq. store is called from packer_add and packer_finish, or from threads of the
 * packer (packer_budget.threads), PACKER_STORES_MAX at a time; the manifest alone and last. A pack
 * that it refuses fails the next calls, packer_finish at last.
 */
int packer_begin(struct packer *p, const struct fence_token *token, uint64_t seq,
		 pack_store_fn store, void *ctx) _must_check_;

/*
 * -ENOENT for fd -1 on a regular file whose last content the packer does not know, or whose packs it
 * forgot: add it again with its fd; and for a run of old blocks that it cannot find. The fd's offset moves. -EEXIST for a path that was added,
 * -ENODATA for a file shorter than st.st_size, -EINVAL for a path or xattrs that no manifest may
 * hold, -EOVERFLOW for more pieces than packer_budget.extents_max. Links to one inode (kind, st_dev, st_ino, st_nlink > 1) become hard links of the first.
 */
int packer_add(struct packer *p, const struct pack_input *in) _must_check_;

/*
 * What the next checkpoint must give as new blocks: asked before the capture, and after
 * packer_forget_weak(). -E2BIG for more than max: give everything then. Caller frees.
 */
int packer_wanted(const struct packer *p, size_t max, struct pack_wanted **ret_wanted,
		  size_t *ret_count) _must_check_;

/*
 * Flushes, writes and stores the manifest (the last object), returns its reference for the
 * register. *head is borrowed for the call. On error everything not stored is forgotten.
 */
int packer_finish(struct packer *p, const struct manifest_head *head,
		  const struct secret_key *sign_seed, const struct node_card *card,
		  struct ckpt_ref *ret_ref) _must_check_;
void packer_abort(struct packer *p);

/* Numbers of the checkpoint under way or just finished. */
struct packer_counts {
	uint64_t raw_bytes, new_bytes, sent_bytes, zero_bytes;
	uint64_t delta_bytes; /* of new_bytes: sent as differences */
	uint32_t packs, packs_new;
	int level; /* of zstd, as frames would be compressed now; 0: not at all */
};
void packer_counts(const struct packer *p, struct packer_counts *ret_counts);

/* Hashes of all objects that the last finished manifest needs, itself included; caller frees. */
int packer_objects(const struct packer *p, struct object_hash **ret_hashes,
		   size_t *ret_count) _must_check_;

/* The same with their sizes. */
struct pack_object {
	struct object_hash hash;
	uint32_t size;
};
int packer_sized_objects(const struct packer *p, struct pack_object **ret_objects,
			 size_t *ret_count) _must_check_;

/*
 * Packs of whole copies that were written `age` checkpoints ago or earlier, have size_min bytes, and
 * are mostly live; the oldest first. The caller frees. What is coded is said with the k + m holders
 * of its shards (-ENOENT: not known any more), and written into the next manifest. packer_coded():
 * what the last finished manifest says is kept as shards, for RETAIN; caller frees.
 */
struct pack_old {
	struct object_hash hash;
	uint64_t seq;
	uint32_t size, holder_count;
	struct node_id holders[OV_HOLDERS_MAX];
};
int packer_old(const struct packer *p, uint64_t age, uint32_t size_min, struct pack_old **ret_packs,
	       size_t *ret_count) _must_check_;
int packer_set_coded(struct packer *p, const struct object_hash *hash, uint32_t k, uint32_t m,
		     const struct node_id *holders) _must_check_;
int packer_coded(const struct packer *p, struct object_hash **ret_hashes, size_t *ret_count,
		 uint64_t *ret_bytes) _must_check_;

/* Blocks in packs with fewer than `copies` holders for which alive() says true count as new;
 * of a pack in shards, with fewer living ones than make it whole. */
void packer_forget_weak(struct packer *p, uint32_t copies,
			bool (*alive)(void *ctx, const struct node_id *node), void *ctx);

/* ---- the way back ---- */

/*
 * Checks hash, AEAD and signature (cluster_public signed the capturing host's card, which is in the
 * manifest), then decodes. bytes: the stored object.
 */
int manifest_open(const void *bytes, size_t size, const struct object_hash *hash,
		  const struct secret_key *job_key, const uint8_t cluster_public[32],
		  struct manifest **ret_manifest) _must_check_;
void manifest_destroy(struct manifest *m);
const struct manifest_head *manifest_head(const struct manifest *m);

struct manifest_file {
	enum file_kind kind;
	const char *path;
	struct stat st;
	const char *link_target;
	const uint8_t *xattrs;
	size_t xattrs_size;
	const char *hardlink; /* path of an earlier file of the same kind that this is a link to */
	uint8_t content_hash[32]; /* regular files: SHA-256 of the content */
};
size_t manifest_file_count(const struct manifest *m);
/* Valid until manifest_destroy(). */
void manifest_file(const struct manifest *m, size_t index, struct manifest_file *ret_file);
/* All objects it needs, itself not included; with their holders. */
size_t manifest_object_count(const struct manifest *m);
void manifest_object(const struct manifest *m, size_t index, struct object_hash *ret_hash,
		     uint32_t *ret_size, uint32_t *ret_holder_count, struct node_id *ret_holders);

/* Bytes of packs that were written for this very checkpoint. */
uint64_t manifest_new_bytes(const struct manifest *m);

/* Kept as shards, by its owner's word; then the holders are of the first shards. */
bool manifest_object_coded(const struct manifest *m, size_t index);

/*
 * Fetches one object; blocking. *memfd is -1, or a file of the caller's own that may be written
 * from its begin; if it is, *memfd stays, else it becomes a new file, which is the caller's. After an
 * error the own one may still be written by who is late. Called by several threads at once.
 */
typedef int (*pack_fetch_fn)(void *ctx, const struct object_hash *hash, uint32_t size,
			     const struct node_id *holders, uint32_t holder_count, int *memfd);

/*
 * Blocks that the last manifest has in forgotten packs, or as differences to such, move to packs of
 * their own, whole: then the next checkpoint need not give them again, and its manifest names no
 * forgotten pack. Their contents come from the cache, else from the holders. Between checkpoints, in
 * the caller's thread; store() as in packer_begin(), fetch() from several threads. Until the next
 * manifest is stored the last one stays as it is, so an interruption, or an error, costs what was
 * done, and nothing else: the packer is as before then.
 */
struct packer_compaction {
	struct fence_token token;
	uint64_t seq; /* of the next checkpoint: a RETAIN of the last one does not reach it */
	pack_store_fn store;
	pack_fetch_fn fetch;
	int (*open_last)(void *ctx, struct manifest **ret_manifest); /* store() may be under way */
	/* May be NULL. False: no more is begun, what is done so far counts. From several threads. */
	bool (*goes_on)(void *ctx);
	void *ctx; /* of all four */
	uint64_t bytes_max;
	uint32_t cpu_percent; /* of one processor, for this whole process meanwhile; 0: 100 */
};
struct packer_compacted {
	uint64_t cached_bytes, fetched_bytes, sent_bytes;
};
int packer_compact(struct packer *p, const struct packer_compaction *c,
		   struct packer_compacted *ret_done) _must_check_;
/* Bytes of blocks that it would move. */
uint64_t packer_forgotten_bytes(const struct packer *p);

/*
 * Writes the contents of the chosen regular files: fds[i] is the destination of file i, or -1 to
 * leave it out (then its packs are not fetched). Each needed pack is fetched and authenticated
 * once. progress may be NULL. seed may be NULL; else that packer learns all blocks and files that
 * were read, so that the first checkpoint here sends only what changes; what it knew before is lost.
 *
 * The fds must be readable and writable; what the files held before is cut off. The fd of a hard
 * link is ignored: link(2) it to the file that it names. fetch is called from up to READER_THREADS
 * threads at once (reader.h). After an error the files' contents are undefined.
 */
int manifest_unpack(const struct manifest *m, const struct secret_key *job_key, const int *fds,
		    pack_fetch_fn fetch, void *ctx, struct packer *seed,
		    void (*progress)(void *ctx, uint64_t done_bytes,
				     uint64_t total_bytes)) _must_check_;

/*
 * Parts of files, in any order: what is read is fetched then, and nothing else. Each frame is
 * authenticated before a byte of it is given out. A pack is fetched once and kept, as it is, in the
 * spool: an open file of the caller's, taken over, that nobody else may write to; -1, or one that is
 * full, costs a second fetch. Memory: one pack and two frames. manifest and ctx are borrowed until
 * the reader is destroyed.
 */
struct manifest_reader;
enum { MANIFEST_READ_MAX = 8 << 20 };
int manifest_reader_create(const struct manifest *m, const struct secret_key *job_key,
			   pack_fetch_fn fetch, void *ctx, int spool_take, uint64_t spool_max,
			   struct manifest_reader **ret_reader) _must_check_;
void manifest_reader_destroy(struct manifest_reader *r);
/* Exactly size bytes of a regular file; -EINVAL beyond its end. On error nothing is given out. */
int manifest_read(struct manifest_reader *r, size_t file, uint64_t offset, void *ret_bytes,
		  size_t size) _must_check_;
