/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a benchmark reads in the memory of its workload (load.c), by process_vm_readv: nothing has
 * to be sent, and a pause that the program felt is seen as it felt it.
 */
#pragma once

#include <stdint.h>

enum { LOAD_GAPS = 4096 };

#define LOAD_STATUS 0x20000000UL

/* Times are of CLOCK_MONOTONIC. */
struct load_gap {
	uint64_t end_ns, length_ns;
};

struct load_status {
	uint64_t ready;	     /* all memory is there */
	uint64_t iterations; /* of the main thread's loop: work done */
	uint64_t dirtied;    /* pages written, by all threads of the main process */
	uint64_t gap_count;  /* so many have been recorded; the last LOAD_GAPS of them are kept */
	struct load_gap gaps[LOAD_GAPS]; /* between two iterations, LOAD_GAP_MIN_NS or more */
};

#define LOAD_GAP_MIN_NS 20000
