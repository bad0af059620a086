/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Tests of decamp.ko, as root where it is loaded. Each case is a process of its own: it says ok, FAIL
 * with the line and what was wrong, or SKIP with the reason.
 *
 * A victim is a process tree in the making of its case, with counters in memory that all share: who
 * runs, counts.
 */
#pragma once

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "kmod/uapi/decamp.h"

enum {
	SKIP_CODE = 77,
	AWAIT_S = 30,
	AWAIT_LOOKS = 5000,
	TIMEOUT_MS = 25000,
	LEASE_MS = DECAMP_LEASE_MS_MAX,
	COUNTERS = 256,
	THREADS_ROOM = 1024,
};

/* Ends the case. */
#define CHECK(cond, ...)                                                       \
	do {                                                                   \
		if (!(cond))                                                   \
			case_fail(__FILE__, __LINE__, #cond, " " __VA_ARGS__); \
	} while (0)
#define CHECK_INT(is, should)                                                                  \
	do {                                                                                   \
		long long is_ = (is), should_ = (should);                                      \
		if (is_ != should_)                                                            \
			case_fail(__FILE__, __LINE__, #is " == " #should, "is %lld, not %lld", \
				  is_, should_);                                               \
	} while (0)
/*
 * Until it holds; half a minute and some thousand looks at most. An emulated machine is slow, and its
 * clock goes on while others have all of the processor: looks count what it could have done.
 */
#define AWAIT(cond)                                                                           \
	do {                                                                                  \
		uint64_t end_ns_ = now_ns() + AWAIT_S * 1000000000ULL;                        \
		for (int looks_ = 0; !(cond); looks_++) {                                     \
			if (looks_ > AWAIT_LOOKS && now_ns() > end_ns_)                       \
				case_fail(__FILE__, __LINE__, #cond, "does not become true"); \
			sleep_ms(1);                                                          \
		}                                                                             \
	} while (0)

void __attribute__((noreturn, format(printf, 4, 5)))
case_fail(const char *file, int line, const char *what, const char *fmt, ...);
void __attribute__((noreturn, format(printf, 1, 2))) case_skip(const char *fmt, ...);
/* A line of its own below the case's. */
void __attribute__((format(printf, 1, 2))) case_note(const char *fmt, ...);

struct kmod_case {
	const char *name;
	void (*run)(void);
};
/* Each ends with a name of NULL. */
extern const struct kmod_case stop_cases[], state_cases[], hostile_cases[], transparent_cases[];
/* Needs the path of decamp.ko, loads and unloads it. */
void case_reload(const char *path);
void bench(void);

uint64_t now_ns(void);
void sleep_ms(unsigned int ms);

/* Shared by all processes of a case. */
struct shared {
	atomic_ulong counters[COUNTERS];
	atomic_int flags[16];
	atomic_uint words[16];
	void *pointers[16];
};
extern struct shared *shared;
unsigned long counted(void);
/* All counters stand still for some ms; if not, they move. */
void check_still(void);
void check_moves(void);

/* A child that runs fn, then waits to be killed; dies with its parent. */
pid_t victim(void (*fn)(void *arg), void *arg);
void victim_end(pid_t pid);
/* Threads of this process: spin, or sleep in read(2) of a pipe that nobody writes to. */
void spinners(unsigned int count);
void sleepers(unsigned int count);
char state_in_proc(pid_t pid);
/* Until it, its threads and its descendants sleep, and still do a little later. */
void await_asleep(pid_t pid);

/* Opened once in a process. */
int device(void);
void device_close(void);
/* How many the module has in threads, as its references say: one each, and one of the device's file. */
int callbacks(void);
/* The session, or -errno. */
int freeze_with(struct decamp_freeze *a, pid_t pid);
int freeze(pid_t pid);
struct counts {
	unsigned int all, parked, quiesced, gone, blocked, running;
};
struct counts counts_of(int session);
/* Everything stands; -errno ends the case. */
int freeze_all(pid_t pid, struct counts *ret_counts);
/* The same, and all are woken up to park, but those that have ended. */
int freeze_parked(pid_t pid, struct counts *ret_counts);
/* How many there are, or -errno. */
int threads_of(int session, struct decamp_thread *t);
/* The one with this tid. */
struct decamp_thread thread_of(int session, pid_t tid);
int park(int session, pid_t tid, uint32_t timeout_ms);
/* How many bytes there are, or -errno. */
int xstate(int session, const struct decamp_thread *t, void *buffer, uint32_t room);
int uffd_of(pid_t pid, int dev, uint32_t mode);
