/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How long a job stands still: one workload, checkpointed by one engine, measured from both sides.
 *
 *   pause.c   cases, table, JSON        subject.c   the job and its checkpoints
 *
 * A subject is a job in a keeper, taken by capture_take() as decampd does it, or (direct) a plain
 * child taken by take_snapshot() in this process, which a profiler can look into.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "agent/native/native.h"
#include "tests/bench/load.h"

enum engine { ENGINE_NATIVE, ENGINE_CRIU };

struct bench_load {
	unsigned int mib, threads, active, processes, rate;
	bool thp;
};

struct sample {
	uint64_t pause_us, wall_us;
	uint64_t felt_us; /* longest standstill that the program saw during the checkpoint */
	uint64_t walk_us; /* files, as part of the pause */
	struct native_result native; /* all 0 with CRIU */
	char fallback[512];	     /* why it was not native */
};

struct subject;

/* binary: of load.c; criu: may be NULL with ENGINE_NATIVE. Asserts, or ends the program. */
struct subject *subject_start(const struct bench_load *load, const char *binary, const char *criu,
			      bool direct);
/* The next checkpoint; false: it failed, which was said. */
bool subject_take(struct subject *s, enum engine engine, struct sample *ret_sample);
void subject_status(const struct subject *s, struct load_status *ret_status);
/* The engine lets go of the job; in us. The next checkpoint has no base. */
uint64_t subject_release(struct subject *s);
void subject_stop(struct subject *s);
