/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program that changes its memory in every way the kernel offers, for as long as it lives.
 *
 *   mutate SEED MIB FOLDER WORKERS OPS KINDS     (names with commas, or "all")
 *
 *   worker (thread) ── regions, each in a slot of the address space that only this worker maps
 *   bulk (thread)   ── MIB MiB of which some pages are written now and then
 *   poker (process) ── writes into one region of each worker by process_vm_writev
 *   children        ── forked by workers, mutate their copies for a moment, exit or exec
 *
 * Limits: WORKERS_MAX workers, REGIONS regions of REGION_PAGES pages each. The order of operations
 * of a worker depends on the seed alone.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
	PAGE = 4096,
	WORKERS_MAX = 8,
	REGIONS = 12,
	REGION_PAGES = 512,
	THP_PAGES = 1024,
	SOURCE_PAGES = 256, /* size of the files that are read */
};

/* Where a reader finds the count of operations: a uint64_t in memory that is always there. */
#define MUTATE_COUNTER 0x20000000UL

enum kind {
	KIND_ANON,
	KIND_THP,
	KIND_FILE, /* private, of a file */
	KIND_MEMFD_PRIVATE,
	KIND_SHARED, /* anonymous */
	KIND_MEMFD,  /* shared */
	KIND_FILE_SHARED,
	KIND_RESERVE, /* a big PROT_NONE mapping, of which some pages are in use */
	KIND_HUGETLB,
	KIND_COUNT,
};

#define K(kind) (1U << (kind))
#define K_SHMEM (K(KIND_SHARED) | K(KIND_MEMFD))
#define K_PRIVATE \
	(K(KIND_ANON) | K(KIND_THP) | K(KIND_FILE) | K(KIND_MEMFD_PRIVATE) | K(KIND_RESERVE))
#define K_MOVABLE (K_PRIVATE & ~K(KIND_RESERVE))
#define K_ANY (K_PRIVATE | K_SHMEM | K(KIND_FILE_SHARED) | K(KIND_HUGETLB))
#define K_SMALL (K_ANY & ~K(KIND_HUGETLB)) /* 4K pages can be treated one by one */

struct region {
	uint8_t *at;
	size_t pages; /* usable, from at on */
	enum kind kind;
	int fd; /* -1: none */
};

struct worker {
	uint64_t rng;
	unsigned int index;
	bool child;	    /* a forked copy: neither forks nor starts threads */
	int source, direct; /* files to read from; direct may be -1 */
	int pipe[2];
	const char *folder;
	uint32_t ops; /* bits of the table in mutate.c */
	uint32_t kinds;
	struct region regions[REGIONS];
};

struct op {
	const char *name;
	void (*run)(struct worker *w, struct region *r);
	uint32_t kinds;
	unsigned int weight;
};

uint64_t draw(uint64_t *rng);
size_t below(uint64_t *rng, size_t bound);
_Noreturn void die(const char *what);

/* mutate_map.c */
uint8_t *slot_base(unsigned int worker, unsigned int slot);
/* A new mapping at r->at, or in its slot if there is none yet; what was there is gone. */
void region_map(struct worker *w, struct region *r, enum kind kind);
void op_remap(struct worker *w, struct region *r);
void op_unmap(struct worker *w, struct region *r);
void op_fixed(struct worker *w, struct region *r);
void op_move(struct worker *w, struct region *r);
void op_protect(struct worker *w, struct region *r);
void op_dontneed(struct worker *w, struct region *r);
void op_free(struct worker *w, struct region *r);
void op_remove(struct worker *w, struct region *r);
void op_punch(struct worker *w, struct region *r);
void op_guard(struct worker *w, struct region *r);
void op_lock(struct worker *w, struct region *r);
void op_advise(struct worker *w, struct region *r);
void op_reserve(struct worker *w, struct region *r);
void op_brk(struct worker *w, struct region *r);
void op_stack(struct worker *w, struct region *r);

/* mutate_io.c: writes by the kernel */
void op_read(struct worker *w, struct region *r);
void op_direct(struct worker *w, struct region *r);
void op_getrandom(struct worker *w, struct region *r);
void op_pipe(struct worker *w, struct region *r);
void op_splice(struct worker *w, struct region *r);
void op_procmem(struct worker *w, struct region *r);
void op_poke(struct worker *w, struct region *r);
void op_fdwrite(struct worker *w, struct region *r);
void op_signal(struct worker *w, struct region *r);
void start_aio(const char *folder);
void start_uring(const char *folder);
