/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of mem.h.
 *
 *   native_mem ── mem_mm (one per address space)      ┐
 *              ├─ mem_object (one per shared object)  ┴ each a mem_space: which page lies where
 *              ├─ batch: buffer between reading pages and the spool file
 *              └─ spool: pages.new of the snapshot being taken
 *
 * Of a mem_space, `map` is the last snapshot and never touched before the next one is written;
 * `fresh` lies over it: what pre-copy read and found gone. Both are true of a page only while the
 * tracker says that it was not written since, which the pause asks.
 *
 *   mem.c      life, pre-copy, images      mem_pause.c  mem_collect
 *   pages.c    batch, spool, runs files    objects.c    shared memory
 *   mm_img.c   mm-PID.img                  mem_check.c  what is not covered
 *   track_*.c  backends of track.h         scan.c, runs.c
 */
#pragma once

#include <sys/uio.h>
#include <xxhash.h>

#include "agent/native/mem.h"
#include "agent/native/runs.h"
#include "agent/native/scan.h"

enum {
	BATCH_IOVS = 1024, /* of one process_vm_readv */
	BATCH_PAGES_MIN = 512,
	BATCH_ENTRIES_MIN = 16384, /* room made before the pause */
	SCAN_STEP = 128 << 20,	   /* bytes of one scan while the job runs: it holds mmap_lock */
	COALESCE_PAGES = 256,	   /* a gap that costs as much to walk as a call */
	ROUNDS_LIMIT = 8,
	SCRATCH_PAGES = 64, /* what a cache holds */
};

/* The bits of state_vma.vm_flags that we look at: the same in all kernels. */
#define VMA_READ 0x1ULL
#define VMA_WRITE 0x2ULL
#define VMA_EXEC 0x4ULL
#define VMA_SHARED 0x8ULL
#define VMA_MAYWRITE 0x20ULL
#define VMA_GROWSDOWN 0x100ULL
#define VMA_UFFD_MISSING 0x200ULL
#define VMA_PFNMAP 0x400ULL
#define VMA_LOCKED 0x2000ULL
#define VMA_IO 0x4000ULL
#define VMA_SEQ_READ 0x8000ULL
#define VMA_RAND_READ 0x10000ULL
#define VMA_DONTCOPY 0x20000ULL
#define VMA_NORESERVE 0x200000ULL
#define VMA_HUGETLB 0x400000ULL
#define VMA_WIPEONFORK 0x2000000ULL
#define VMA_DONTDUMP 0x4000000ULL
#define VMA_MIXEDMAP 0x10000000ULL
#define VMA_HUGEPAGE 0x20000000ULL
#define VMA_NOHUGEPAGE 0x40000000ULL
#define VMA_MERGEABLE 0x80000000ULL
#define VMA_SHADOW_STACK (1ULL << 37)
#define VMA_DROPPABLE (1ULL << 40)

struct mem_space {
	uint32_t pages_id;
	struct runs map;    /* RUN_KIND_OLD, GUARD */
	struct runs fresh;  /* NEW, GUARD, and NONE where the map no longer holds */
	struct runs drops;  /* of the round on its way: NONE, GUARD */
	struct runs puts;   /* the same: what went into the spool; no page twice */
	struct runs missed; /* must be read in the pause whatever the tracker says */
	bool compare;	    /* only pages whose hash differs are new */
	/* If compare: hash of block n of the last snapshot. */
	XXH128_hash_t *hashes;
	size_t hash_count;
};

struct track_ops;

/*
 * A process that CRIU restored under another kernel keeps the vdso that it came with; its functions
 * jump into this kernel's, which CRIU mapped beside it and marked. Only the former is the job's.
 * vdso 0: this kernel's lies where the job expects it.
 */
struct mem_proxy {
	uint64_t vdso, vvar;
};

struct mem_mm {
	struct mem_space space;
	pid_t pid;
	uint64_t identity; /* state_process.mm; unique as long as `pagemap` is open; 0: not known */
	const struct track_ops *ops; /* NULL: nobody follows it, whole each time */
	int uffd, pagemap, memory;   /* memory: /proc/PID/mem, when it was needed */
	struct runs covered;	     /* VMAs that the tracker follows */
	bool full;   /* nothing is known to be stored: all that is populated is to be copied */
	bool direct; /* pages may be written behind our back: O_DIRECT files, writers from outside */
	bool cleared;		   /* soft-dirty: bits were cleared since it was attached */
	struct runs stayed, moved; /* soft-dirty: VMAs then; of moved ones the first place */
	struct runs listed_at;	   /* where both lay */
	/* Of this snapshot: */
	bool seen;
	struct mem_proxy proxy;
	size_t written_first, written_end; /* in native_mem.written */
	struct runs guards;		   /* found in the pause */
	struct runs listed;		   /* all that is there was listed in the pause: */
	size_t holes_first, holes_end;	   /* in native_mem.holes */
};

struct mem_object {
	struct mem_space space;
	uint64_t dev, ino, size;
	uint32_t shmid;
	bool precopied; /* in this snapshot */
	bool seen;	/* registered in this snapshot */
};

/* One run of pages in the buffer. */
struct batch_entry {
	struct mem_space *space;
	uint64_t start; /* page number */
	uint32_t count;
	bool zero_is_none; /* a page of zeros need not be stored */
	bool readable;	   /* its VMA has VM_READ */
	bool inherited;	   /* may be shared since a fork, in the pause too */
	size_t at;	   /* first page of the buffer */
};

struct batch {
	uint8_t *buffer;
	size_t page_max, used;
	struct batch_entry *entries;
	size_t count, room;
	size_t read_from; /* entries before this one are read */
	struct runs bad;  /* pages of the buffer that could not be read: they are missed */
	bool paused;
	bool forked; /* processes of the job may share pages since a fork */
};

struct spool {
	int fd;
	uint64_t blocks;
	XXH128_hash_t *hashes; /* by block, for spaces that compare */
	size_t hash_room;
};

struct native_mem {
	struct native_mem_config config;
	struct native_mem_counts counts;
	struct scan_features features;
	const struct track_ops *ops; /* best that works */
	struct mem_mm **mms;	     /* by pid */
	size_t mm_count, mm_room;
	struct mem_object **objects;
	size_t object_count, object_room;
	struct mem_mm **dead; /* ended ones, to be let go outside of a pause */
	size_t dead_count, dead_room;
	uint32_t last_pages_id;
	struct batch batch;
	uint8_t *scratch; /* SCRATCH_PAGES */
	struct spool spool;
	struct regions written, holes, kinds; /* room is made before the pause */
	const struct native_tree *tree;	      /* being taken; in pre-copy */
	bool taking;			      /* pre-copy was begun, mem_write is not done */
	bool collected;			      /* mem_collect is done, mem_write is not */
	bool settled;			      /* mem_settle as well */
	uint64_t scan_ns;		      /* of the last round's scans */
	uint64_t round_pages;		      /* of the first round */
};

/* mem.c */
uint64_t mem_clock_ns(void);
struct mem_mm *mem_find(const struct native_mem *m, pid_t pid);
struct mem_mm *mem_new_mm(struct native_mem *m, pid_t pid); /* NULL: no memory */
/* Takes it out of the table; its descriptors are closed by mem_bury(). */
void mem_retire(struct native_mem *m, struct mem_mm *mm);
void mem_bury(struct native_mem *m);
void space_forget(struct mem_space *s);
void space_deinit(struct mem_space *s);
/* From now on nothing is known of these pages. */
int space_unknow(struct mem_space *s, uint64_t start, uint64_t count) _must_check_;

static inline bool vma_is_private(const struct state_vma *v)
{
	return !(v->vm_flags & VMA_SHARED);
}

/* Memory of the process itself, as opposed to pages of the kernel and of devices. */
static inline bool vma_has_pages(const struct state_vma *v)
{
	return vma_is_private(v) && !(v->vm_flags & (VMA_PFNMAP | VMA_IO | VMA_MIXEDMAP));
}

static inline bool vma_is_anon(const struct state_vma *v)
{
	return !v->file && !v->ino;
}

/* MADV_DONTNEED or a truncation turns its pages back into those of a file. */
static inline bool vma_reverts(const struct state_vma *v)
{
	return !vma_is_anon(v) && !(v->traits & STATE_VMA_NO_OPS);
}

/* mem_precopy.c */
int mem_copy_kinds(struct native_mem *m, struct mem_mm *mm, const struct native_task *task,
		   const struct state_vma *vmas, size_t vma_count, const struct region *v,
		   size_t count) _must_check_;

/* mem_pause.c */
/* This kernel's, by what the kernel says of it. */
bool vma_is_vdso(const struct native_task *task, const struct state_vma *v);
/* Populated pages with their categories, by whatever the kernel has. */
int mem_populated(const struct native_mem *m, const struct mem_mm *mm, uint64_t start, uint64_t end,
		  struct regions *out) _must_check_;

/* pages.c */
int batch_create(struct batch *b, uint64_t bytes) _must_check_;
void batch_destroy(struct batch *b);
void batch_reset(struct batch *b);
enum { BATCH_ZERO_IS_NONE = 1, BATCH_READABLE = 2, BATCH_INHERITED = 4 };
/* Pages of a process; read at once or with those that follow. */
int batch_add(struct native_mem *m, struct mem_mm *mm, uint64_t start, uint64_t count,
	      unsigned int flags) _must_check_;
/* Reads what batch_add() left. */
int batch_read(struct native_mem *m, struct mem_mm *mm) _must_check_;
/* Room for more pages of one space, to be filled by the caller at once. */
int batch_room(struct native_mem *m, struct mem_space *s, uint64_t start, size_t wish,
	       uint8_t **ret_buffer, size_t *ret_count) _must_check_;
/* Into the spool; where each page went is added to its space's puts. */
int batch_flush(struct native_mem *m) _must_check_;
/* What the round found gone, then what it read, becomes part of fresh. */
int space_settle(struct mem_space *s) _must_check_;

/* The content last stored of this page has this hash. */
bool space_knows(const struct native_mem *m, const struct mem_space *s, uint64_t page,
		 XXH128_hash_t hash);

int spool_open(struct spool *s, int images) _must_check_;
void spool_close(struct spool *s);

/* pagemap image `name`, pages-N.runs; the space's map becomes what was written. */
int space_write(struct native_mem *m, struct native_tree *tree, struct mem_space *s,
		const char *name) _must_check_;

/* objects.c */
int objects_precopy(struct native_mem *m, const struct native_task *task,
		    const struct state_vma *vmas, size_t count) _must_check_;
int objects_write(struct native_mem *m, struct native_tree *tree) _must_check_;
void objects_destroy(struct native_mem *m);

/* mm_img.c */
int mm_write(struct native_tree *tree, struct native_task *task,
	     const struct mem_mm *mm) _must_check_;
