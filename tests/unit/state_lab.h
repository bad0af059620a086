/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For the tests of the native engine's state: a child that brings itself into a state, and tells it
 * as it sees it itself. Functions assert.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/time.h>
#include <time.h>

#include <cmocka.h>

#include "agent/native/freeze.h"
#include "agent/native/state.h"

enum { REPORT_TIMERS = 4, STATE_LAB_DEADLINE_MS = 30000 };

/* What a child knows of itself. */
struct state_report {
	int32_t pid, ppid, pgid, sid;
	struct state_sigaction actions[STATE_SIGNALS];
	uint64_t sas_sp, sas_size;
	int32_t sas_flags, pdeath_signal, subreaper, securebits, no_new_privs, nice, policy;
	uint64_t clear_child_tid, robust_list, blocked, brk;
	uint32_t personality, umask, group_count, groups[STATE_GROUPS_MAX], ids[6];
	uint64_t rlim_cur[STATE_RLIMITS], rlim_max[STATE_RLIMITS];
	struct itimerval itimers[3];
	int32_t timer_ids[REPORT_TIMERS];
	struct itimerspec timers[REPORT_TIMERS];
	int32_t membarrier, queued_value;
	uint64_t pending;
	struct timespec monotonic;
	char comm[STATE_COMM_MAX];
};

struct state_lab {
	struct native_arena *arena;
	struct native_state *state;
	struct native_tree tree;
	pid_t child;
	int to_child, from_child;
	char reason[NATIVE_REASON_MAX];
	char dir[64];
	bool missing;
};

/* For cmocka; the state is the lab, which lives as long as the group of tests. */
int state_lab_setup(void **state);
int state_lab_teardown(void **state);
/* The lab without a child; skips the test where the kernel lacks something. */
struct state_lab *state_lab(void **state);

/* All sorts of state, in a session of its own. For the child. */
void state_lab_all(void);
/* A child that calls fn, tells how it is, and again whenever it is asked. */
void state_lab_start(struct state_lab *lab, void (*fn)(void));
void state_lab_ask(struct state_lab *lab, struct state_report *ret_report, bool first);
/* The test's program again, with two arguments, for which main() calls state_lab_child(). */
void state_lab_start_alone(struct state_lab *lab, const char *mode, const char *file);
/* Calls fn, writes its report to FILE.before, waits for SIGUSR1, and writes FILE.after. */
_Noreturn void state_lab_child(void (*fn)(void), const char *file);
void state_lab_kill(struct state_lab *lab);
/* An empty tree. */
void state_lab_reset(struct state_lab *lab);
/* A list of its processes and their state, while they run. */
int state_lab_look(struct state_lab *lab);
/* The same, and all of them stopped. */
int state_lab_freeze(struct state_lab *lab);
