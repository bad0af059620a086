/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For the tests of the native engine's memory: a victim that changes its memory in every way it is
 * told to, snapshots of it, and a judge that compares each with a full read of the stopped victim.
 *
 *   lab_take: list, look, pre-copy, [between], stop, collect, read the truth, go, write, compare
 *
 * Functions assert, but for what the judge finds: that is counted.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "agent/native/mem.h"
#include "agent/native/state.h"

enum victim_op {
	OP_WRITE,	     /* some pages of anonymous memory */
	OP_WRITE_MANY,	     /* thousands, scattered */
	OP_ZERO,	     /* pages become zero by being written */
	OP_GIVE_BACK,	     /* MADV_DONTNEED */
	OP_GIVE_BACK_USE,    /* the same, and written again */
	OP_PROTECT,	     /* mprotect to and fro, the last time PROT_NONE */
	OP_MAP_NEW,	     /* a new map, written */
	OP_MAP_OVER,	     /* munmap, mmap at the same place, some of it written */
	OP_UNMAP,	     /* a map made before */
	OP_MOVE,	     /* mremap to another place and back over something */
	OP_MOVE_TABLES,	     /* so much that the kernel moves the page tables */
	OP_GROW,	     /* mremap to a larger size */
	OP_BRK,		     /* up and down */
	OP_STACK,	     /* deeper than before */
	OP_FILE_WRITE,	     /* private map of a file */
	OP_FILE_REVERT,	     /* MADV_DONTNEED of it */
	OP_FILE_REVERT_READ, /* and read */
	OP_FILE_TRUNCATE,    /* the file under it, and back to its size */
	OP_FILE_LOCK,	     /* given back, out of the page cache, locked */
	OP_READ_INTO,	     /* read(2) */
	OP_READ_DIRECT,	     /* O_DIRECT */
	OP_READ_HOLES,	     /* zero pages by reading */
	OP_FREE,	     /* MADV_FREE, then written */
	OP_GUARD,	     /* MADV_GUARD_INSTALL and REMOVE */
	OP_HUGE,	     /* transparent huge pages: whole and in part */
	OP_SHARED_WRITE,     /* memfd: by its map */
	OP_SHARED_PWRITE,    /* by pwrite(2) */
	OP_SHARED_PUNCH,     /* hole punched */
	OP_SPLICE,	     /* vmsplice out, read of a pipe in */
	OP_SELF_VM_WRITE,    /* process_vm_writev to itself */
	OP_EXEC,	     /* another program image: fresh memory */
	OP_COUNT,
	OP_STORM_START = 100, /* a thread that writes without end */
	OP_STORM_STOP,
	OP_FORK, /* a child that stays, and writes at once */
	OP_FORK_END,
	OP_MAP_HUGE_HOLE, /* 1 TiB of PROT_NONE */
	OP_FILL,	  /* argument: MiB of memory, all written */
	OP_DIRTY,	  /* argument: pages of that, each second from now on */
	OP_OWN_UFFD,	  /* userfaultfd of its own */
};

extern const char *const victim_op_names[OP_COUNT];

struct victim {
	pid_t pid;
	int to, from;
};

void victim_start(struct victim *v);
void victim_do(const struct victim *v, enum victim_op op, uint32_t seed);
void victim_end(struct victim *v);
/* Not to be called by tests: main() of the victim after OP_EXEC. */
int victim_main(int argc, char **argv);

struct lab {
	char dir[64]; /* images of snapshot n are in dir/n */
	unsigned int n;
	struct native_state *state;
	struct native_mem *mem;
	struct native_arena *arena;
	struct native_tree tree;
	char reason[NATIVE_REASON_MAX];
	int base;	   /* images of the snapshot before, plain; -1 */
	uint64_t pause_us; /* stopped to let go, without the truth */
	uint64_t truth_us;
	/* Of the last lab_take(): */
	uint64_t pages_right, pages_wrong;
	uint64_t wrong_at;
	struct native_mem_counts counts;
	bool judge; /* compare; off for measurements */
};

/* False and a message: it cannot run here. */
bool lab_start(struct lab *lab, enum native_tracker tracker, unsigned int broken);
void lab_end(struct lab *lab);
/* between may be NULL; it is called after the pre-copy rounds. Returns what mem_* returned. */
int lab_take(struct lab *lab, pid_t root, void (*between)(void *ctx), void *ctx,
	     const struct native_wanted *wanted, size_t wanted_count);
