/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory of a job: which pages changed, their content at the frozen instant, and the images of it.
 *
 *   attach (uffd into each mm) -> pre-copy rounds, job runs -> [stop] scan, copy the residue [go]
 *     -> mm-PID.img, pagemap-PID.img, pages-N.img as runs of new and old blocks
 *
 * A page is clean only if the tracker proves it. New, changed, unregistered and pinned VMAs are
 * copied whole. Backends, by probing: userfaultfd WP_ASYNC with PAGEMAP_SCAN, soft-dirty, content
 * hash of every page.
 *
 * pages-N.img is not written as one file: pages.new holds new blocks of 4096 bytes, of all spaces of
 * the snapshot, in no order and some of them in use by nobody; pages-N.runs says for each block of
 * pages-N.img, in pagemap order, whether it is the n-th of pages.new or block m of the pages-N.img
 * (the same N) of the base snapshot.
 *
 *   pages-N.runs := { from: u64, count: u64 }*	(little-endian, no header, struct native_run)
 *   from := (RUN_NEW | RUN_OLD) << 56 | first block;  count > 0
 *
 * What a reader can check: the size is a multiple of 16; the counts add up to the pages of the
 * pagemap image with pages_id N; each RUN_NEW ends within pages.new and each RUN_OLD within the
 * base's pages-N.img; there is no RUN_OLD without a base. N is never given to another memory.
 *
 * A mem outlives snapshots; one per job. Threading: one thread. Source: docs/native-mem.md.
 */
#pragma once

#include "agent/native/state.h"
#include "agent/native/tree.h"

enum native_tracker {
	TRACK_AUTO, /* the best that works */
	TRACK_UFFD,
	TRACK_SOFT_DIRTY,
	TRACK_HASH,
};

enum native_run_from { RUN_NEW = 1, RUN_OLD = 2 };

/* A record of pages-N.runs, little-endian as it lies. */
struct native_run {
	uint64_t from; /* enum native_run_from << 56 | first block there */
	uint64_t count;
};

/* Blocks of the base's pages-N.img whose content must be given again (the packer forgot it). */
struct native_wanted {
	uint32_t pages_id;
	uint32_t reserved;
	uint64_t first, count;
};

struct native_mem;

struct native_mem_config {
	enum native_tracker tracker;
	uint64_t buffer_bytes; /* locked, for the residue; what is more is written in the pause */
	uint32_t rounds_max;   /* of pre-copy; 0: as the dirty rate asks for */
	uint32_t pause_target_us; /* aim of the rounds */
	unsigned int broken;	  /* tests only: enum native_mem_broken */
};

/* Mutants for tests: each of them loses writes of some program. */
enum native_mem_broken {
	MEM_BROKEN_CHECK_WPASYNC = 1 << 0, /* arms all VMAs in one scan with CHECK_WPASYNC */
	MEM_BROKEN_ARM_HOLES = 1 << 1, /* pre-copy protects holes too: MADV_DONTNEED is not seen */
	MEM_BROKEN_SHMEM = 1 << 2,     /* objects that pre-copy read are not looked at again */
	MEM_BROKEN_VMA_DIFF = 1 << 3,  /* VMAs are those of the last round */
	MEM_BROKEN_FILES = 1 << 4,     /* private maps of files count as clean */
	MEM_BROKEN_UNTRACKED = 1 << 5, /* VMAs that are not followed count as clean */
	MEM_BROKEN_WALK_END = 1 << 6,  /* one scan call is taken for all of it */
};

struct native_mem_counts {
	uint64_t mem_bytes;	/* in the images */
	uint64_t new_bytes;	/* in pages.new */
	uint64_t residue_bytes; /* copied in the pause */
	uint64_t read_bytes;	/* of the target, pre-copy and pause */
	uint64_t false_dirty;	/* pages reported dirty whose content had not changed, if known */
	uint64_t dirty_rate;	/* pages per second, as measured by the rounds */
	uint32_t rounds;
	uint32_t attach_us, detach_us; /* of this snapshot; detach: of the mms that ended since */
	uint32_t scan_us, copy_us, list_us, holes_us, object_us; /* parts of the pause */
	bool bounded; /* it dirties faster than we copy: pre-copy was given up */
	char tracker[16];
};

int mem_create(const struct native_mem_config *config, struct native_mem **ret_mem) _must_check_;
/* Lets go of all userfaultfds: some 30 ms a GiB. */
void mem_destroy(struct native_mem *m);

/* The next snapshot has no base: everything is copied. Also after a snapshot that was called off. */
void mem_forget(struct native_mem *m);
/*
 * Job runs. Attaches to new mms, copies what is dirty, once: a first round, which takes as long as
 * there is much. May be called again for the same folder when the freeze did not work out.
 * task->state may be missing.
 */
int mem_precopy(struct native_mem *m, struct native_state *s, struct native_tree *tree,
		const struct native_wanted *wanted, size_t wanted_count) _must_check_;
/* Just before the freeze: what was written since, in as many short rounds as pay. */
int mem_catch_up(struct native_mem *m, struct native_state *s,
		 struct native_tree *tree) _must_check_;
/* Just before the freeze: walks through the page tables once, so that the pause does it faster. */
void mem_rehearse(struct native_mem *m, struct native_tree *tree);
/* Job stands, VMAs are in the tree: scan and copy the residue. */
int mem_collect(struct native_mem *m, struct native_tree *tree) _must_check_;
/*
 * Then, and only if nothing was written since mem_collect() began: the next interval begins. 1: something
 * was cleared for that, and a write since is lost, unless this snapshot is called off; 0: no need.
 */
int mem_settle(struct native_mem *m, const struct native_tree *tree) _must_check_;
/*
 * In the pause: content of a shared memory object (memfd, shared anonymous, SysV), read from fd
 * (borrowed, mmap-able), named pagemap-shmem-<shmid>.img. Known by (dev, ino) for the next time.
 */
int mem_add_object(struct native_mem *m, struct native_tree *tree, uint32_t shmid, uint64_t dev,
		   uint64_t ino, uint64_t size, int fd) _must_check_;
/* Job runs on (or still stands): images, runs. The snapshot becomes the base. */
int mem_write(struct native_mem *m, struct native_tree *tree) _must_check_;
void mem_counts(const struct native_mem *m, struct native_mem_counts *ret_counts);
/*
 * Makes plain pages-N.img of all pages-N.runs, and removes those and pages.new. base: folder with
 * the plain images of the base snapshot, -1 if there is none. -EBADMSG: runs that ask for what is not
 * there.
 */
int mem_materialise(int images, int base) _must_check_;
/* Before a freeze (mem_collect does it again): memory that native does not cover (io_uring, AIO in flight, own userfaultfd). */
int mem_check(struct native_tree *tree) _must_check_;
