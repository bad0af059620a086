// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * No write is ever missed: a program that changes its memory in every way (tests/oracle/mutate.c)
 * is captured again and again, and each snapshot, resolved over the chain of its bases, is compared
 * byte by byte with what the frozen processes hold. Trackers that are broken on purpose must fail.
 *
 *   test_native_oracle                       short form, 10^7 pages compared
 *   test_native_oracle soak SEED MINUTES     for long
 *   test_native_oracle run SEED MIB WORKERS OPS KINDS SECONDS BROKEN    one of those by hand
 *                                            with TRACKER=name: fails if another one is used
 *                                            (it is the best that works, but for "hash"),
 *                                            with PAGES=n: ends when so many are compared
 *
 * Needs root, BPF and a C compiler.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "agent/native/take.h"
#include "agent/util/io.h"
#include "tests/unit/oracle.h"

extern char **environ;

#ifdef __SANITIZE_ADDRESS__
enum { SLOWER = 16 };
#else
enum { SLOWER = 1 };
#endif

enum { TMPFS_MAGIC_NUMBER = 0x01021994, BUFFER_MIB = 3072, TAKES_MIN = 3, TAKES_MAX = 1 << 20 };

struct scenario {
	const char *name;
	uint64_t seed;
	unsigned int mib, workers;
	const char *ops, *kinds;
	uint64_t pages;	       /* to be compared */
	unsigned int seconds;  /* at most; 0: until the pages are done */
	unsigned int pause_ms; /* between snapshots, at most */
	unsigned int broken;
};

struct outcome {
	struct oracle_report report;
	uint64_t takes, failed, old_bytes, new_bytes, tasks, pause_us;
	bool absent;	/* this machine has no native engine */
	uint64_t steps; /* operations of the program at the end */
	bool alive;
	char tracker[16];
	char log[320]; /* what the program complained of */
	char reason[NATIVE_REASON_MAX];
};

/* All that a run makes. */
struct oracle {
	char base[64], spool[64];
	pid_t pid;
	struct taker *taker;
	struct frozen *frozen;
	struct store *store;
	unsigned int rng;
	int read_error;
};

/* Where mutate counts what it did: MUTATE_COUNTER of its header. */
#define COUNTER ((void *)0x20000000UL)

static char mutator[128];

static const char *missing(void)
{
	if (geteuid() != 0)
		return "needs root";
	return access(mutator, X_OK) == 0 ? NULL : "no C compiler, or not in the source folder";
}

#define SKIP_IF_MISSING()                                          \
	do {                                                       \
		if (missing()) {                                   \
			print_message("skipped: %s\n", missing()); \
			skip();                                    \
		}                                                  \
	} while (0)

/* MUTATE: one that is built already, for machines where a compiler takes minutes. */
static int build_mutator(void **state)
{
	char command[1024];
	const char *cc = getenv("CC");
	const char *built = getenv("MUTATE");

	(void)state;
	if (built && strlen(built) < sizeof(mutator)) {
		strcpy(mutator, built);
		return 0;
	}
	snprintf(mutator, sizeof(mutator), "/var/tmp/decamp-mutate-%d", getpid());
	snprintf(command, sizeof(command),
		 "%s -std=gnu11 -O2 -D_GNU_SOURCE -pthread -o %s tests/oracle/mutate*.c",
		 cc && *cc ? cc : "cc", mutator);
	if (access("tests/oracle/mutate.c", R_OK) == 0 && system(command) != 0)
		unlink(mutator);
	return 0;
}

static int remove_mutator(void **state)
{
	(void)state;
	if (!getenv("MUTATE"))
		unlink(mutator);
	return 0;
}

static uint64_t steps_of(pid_t pid)
{
	uint64_t steps = 0;
	struct iovec local = { &steps, sizeof(steps) };
	struct iovec remote = { COUNTER, sizeof(steps) };

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == sizeof(steps) ? steps : 0;
}

static int start_mutator(struct oracle *o, const struct scenario *s)
{
	char seed[32], mib[16], workers[16], log[128];
	posix_spawn_file_actions_t actions;
	int r;
	char *const argv[] = { mutator,		 seed, mib, o->base, workers, (char *)s->ops,
			       (char *)s->kinds, NULL };

	snprintf(seed, sizeof(seed), "%" PRIu64, s->seed);
	snprintf(mib, sizeof(mib), "%u", s->mib);
	snprintf(workers, sizeof(workers), "%u", s->workers);
	snprintf(log, sizeof(log), "%s/log", o->base);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
	posix_spawn_file_actions_adddup2(&actions, 0, 1);
	posix_spawn_file_actions_addopen(&actions, 2, log, O_WRONLY | O_CREAT, 0600);
	posix_spawn_file_actions_addclosefrom_np(&actions, 3);
	r = posix_spawn(&o->pid, mutator, &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	for (int i = 0; r == 0 && i < 60000 && !steps_of(o->pid); i++)
		usleep(1000);
	return r ? -r : steps_of(o->pid) ? 0 : -ETIME;
}

/* The one that always works is never the best on a kernel with any other. */
static enum native_tracker tracker(void)
{
	const char *name = getenv("TRACKER");

	return name && !strcmp(name, "hash") ? TRACK_HASH : TRACK_AUTO;
}

static int start(struct oracle *o, const struct scenario *s, char *reason)
{
	struct take_config config = { .mem = { .tracker = tracker(), .broken = s->broken } };
	struct statfs fs;
	bool shm = statfs("/dev/shm", &fs) == 0 && fs.f_type == TMPFS_MAGIC_NUMBER &&
		   fs.f_bavail * (uint64_t)fs.f_bsize > 2ULL << 30;
	int r;

	*o = (struct oracle){ .rng = (unsigned int)s->seed };
	strcpy(o->base, "/var/tmp/decamp-oracle-XXXXXX");
	snprintf(o->spool, sizeof(o->spool), "%s/decamp-oracle-XXXXXX",
		 shm ? "/dev/shm" : "/var/tmp");
	if (!mkdtemp(o->base) || !mkdtemp(o->spool))
		return -errno;
	r = start_mutator(o, s);
	config.root = o->pid;
	if (r == 0)
		r = take_create(&config, &o->taker, reason);
	/* Afterwards: the engine locks all memory that is there, at once. */
	if (r == 0)
		r = frozen_create((size_t)BUFFER_MIB << 20, &o->frozen);
	return r;
}

static void stop(struct oracle *o)
{
	take_destroy(o->taker);
	if (o->pid > 0) {
		kill(o->pid, SIGKILL);
		waitpid(o->pid, NULL, 0);
	}
	store_destroy(o->store);
	frozen_destroy(o->frozen);
	(void)!remove_tree_at(AT_FDCWD, o->base);
	(void)!remove_tree_at(AT_FDCWD, o->spool);
}

static int on_collected(void *ctx)
{
	struct oracle *o = ctx;

	o->read_error = frozen_read(o->frozen, o->pid);
	return 0;
}

static int judge(struct oracle *o, int images, struct outcome *out)
{
	struct store *store = NULL;
	char why[256];
	int r = store_load(images, o->store, &store, why);

	if (r == -EBADMSG && !out->report.wrong++)
		snprintf(out->report.first, sizeof(out->report.first), "%s", why);
	if (r < 0)
		return r == -EBADMSG ? 0 : r;
	store_destroy(o->store);
	o->store = store;
	oracle_compare(o->frozen, images, store, &out->report);
	return 0;
}

/* Of a tree that changes faster than it can be listed: the next snapshot may well succeed. */
static bool passes(const struct oracle *o, int r, const char *reason)
{
	return r == -EAGAIN || r == -ETIMEDOUT || r == -EBUSY ||
	       (r == -ESRCH && kill(o->pid, 0) == 0) ||
	       (r == -EOPNOTSUPP && strstr(reason, "shares its memory"));
}

/* One snapshot. A job that changes faster than it can be stopped may cost some attempts. */
static int take_one(struct oracle *o, uint64_t *base, struct outcome *out)
{
	_cleanup_close_ int images = -1;
	struct native_result result;
	struct take_order order = { .base = *base, .collected = on_collected, .ctx = o };
	char path[96];
	int r;

	snprintf(path, sizeof(path), "%s/%" PRIu64, o->spool, out->takes + out->failed);
	if (mkdir(path, 0700) < 0)
		return -errno;
	images = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	order.images = images;
	r = images < 0 ? -errno : take_snapshot(o->taker, &order, &result, out->reason);
	if (r == 0 && o->read_error < 0)
		r = o->read_error;
	else if (passes(o, r, out->reason)) {
		out->failed++;
		r = remove_tree_at(AT_FDCWD, path);
		return r < 0 ? r : -EAGAIN;
	}
	if (r == 0)
		r = judge(o, images, out);
	if (r == 0) {
		*base = result.id;
		out->takes++;
		out->tasks += result.tasks;
		memcpy(out->tracker, result.mem.tracker, sizeof(out->tracker));
		out->pause_us += result.pause_us;
		out->new_bytes += result.mem.new_bytes;
		if (result.mem.mem_bytes > result.mem.new_bytes)
			out->old_bytes += result.mem.mem_bytes - result.mem.new_bytes;
	}
	return remove_tree_at(AT_FDCWD, path) < 0 ? -EIO : r;
}

static void read_log(struct oracle *o, struct outcome *out)
{
	_cleanup_free_ char *text = NULL;
	char path[96];
	int status;

	snprintf(path, sizeof(path), "%s/log", o->base);
	if (read_file_at(AT_FDCWD, path, 1 << 20, &text, NULL) == 0)
		snprintf(out->log, 256, "%s", text);
	if (o->pid <= 0 || waitpid(o->pid, &status, WNOHANG) != o->pid)
		return;
	o->pid = 0;
	snprintf(out->log + strlen(out->log), 40, " ended with status %#x", (unsigned int)status);
}

/* A chain of some length, too: what is old in it can be wrong as well. */
static bool is_short(const struct scenario *s, const struct outcome *out)
{
	return out->report.pages < s->pages || out->takes <= TAKES_MIN || !out->old_bytes;
}

static int run(const struct scenario *s, struct outcome *out)
{
	uint64_t base = 0, end = now_boot_ns() + s->seconds * 1000000000ULL, before;
	struct oracle o;
	int r;

	*out = (struct outcome){ 0 };
	r = start(&o, s, out->reason);
	out->absent = r == -EOPNOTSUPP;
	while (r == 0 && !out->report.wrong && is_short(s, out) &&
	       out->takes + out->failed < TAKES_MAX) {
		if (s->seconds && now_boot_ns() > end)
			break;
		r = take_one(&o, &base, out);
		if (r == -EAGAIN && out->failed < 20 + out->takes / 4)
			r = 0;
		usleep((useconds_t)(rand_r(&o.rng) % (s->pause_ms * 1000 + 1)));
	}
	before = steps_of(o.pid);
	out->steps = before;
	for (int i = 0; r == 0 && out->steps == before && i < 60000; i++) {
		usleep(1000);
		out->steps = steps_of(o.pid); /* 0: it has ended */
	}
	out->alive = out->steps > before;
	read_log(&o, out);
	stop(&o);
	return r;
}

static void print_outcome(const struct scenario *s, const struct outcome *out, uint64_t took_ns)
{
	print_message("%s: seed=%" PRIu64 " tracker=%s pages=%" PRIu64 " snapshots=%" PRIu64
		      " given_up=%" PRIu64 " tasks=%.1f old=%" PRIu64
		      "%% pause_ms=%.1f steps=%" PRIu64 " took=%.1f s%s%s\n",
		      s->name, s->seed, out->tracker, out->report.pages, out->takes, out->failed,
		      out->takes ? (double)out->tasks / (double)out->takes : 0.0,
		      out->old_bytes * 100 / (out->old_bytes + out->new_bytes + 1),
		      out->takes ? (double)out->pause_us / 1000 / (double)out->takes : 0.0,
		      out->steps, (double)took_ns / 1e9, out->report.wrong ? ": " : "",
		      out->report.first);
	if (out->reason[0])
		print_message("%s: %s\n", s->name, out->reason);
	if (out->log[0])
		print_message("%s: %s\n", s->name, out->log);
}

static int run_and_print(const struct scenario *s, struct outcome *out)
{
	uint64_t begin = now_boot_ns();
	int r = run(s, out);

	print_outcome(s, out, now_boot_ns() - begin);
	if (r < 0)
		print_message("%s: %s\n", s->name, strerror(-r));
	return r;
}

/* An open O_DIRECT file changes how memory is followed: only the second one has some. */
static const struct scenario scenarios[] = {
	{ "big", 1, 192, 2, "all,-direct", "all", 6000000, 0, 20, 0 },
	{ "direct", 2, 96, 2, "all", "all", 1500000, 0, 5, 0 },
	{ "storm", 3, 16, 4, "all,-direct", "all", 1000000, 0, 5, 0 },
	{ "files", 4, 0, 3, "all,-direct,-fork", "file,memfd-private,memfd,shared", 1000000, 0, 5,
	  0 },
	{ "still", 5, 128, 1, "write,same,touch,poke", "anon,thp", 1000000, 0, 2, 0 },
};

/* Seeds are those of the table: a failure is met again. */
static void test_no_write_is_missed(void **state)
{
	uint64_t pages = 0, begin = now_boot_ns();

	(void)state;
	SKIP_IF_MISSING();
	for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++) {
		struct scenario s = scenarios[i];
		struct outcome out;
		int r;

		s.pages /= SLOWER;
		r = run_and_print(&s, &out);
		if (out.absent) {
			print_message("skipped: %s\n", out.reason);
			skip();
		}
		assert_int_equal(r, 0);
		assert_int_equal(out.report.wrong, 0);
		assert_true(out.alive);
		assert_true(out.takes > TAKES_MIN && out.old_bytes > 0);
		pages += out.report.pages;
	}
	print_message("compared %" PRIu64 " pages in %.1f s\n", pages,
		      (double)(now_boot_ns() - begin) / 1e9);
	assert_true(pages >= 10000000 / SLOWER);
}

/* What a tracker does wrong, and a program on which it shows. */
static const struct scenario mutants[] = {
	{ "check-wpasync", 1, 0, 2, "write,fixed,unmap,remap", "anon,thp", UINT64_MAX, 60, 5,
	  MEM_BROKEN_CHECK_WPASYNC },
	{ "arm-holes", 2, 0, 2, "write,dontneed", "anon", UINT64_MAX, 60, 5, MEM_BROKEN_ARM_HOLES },
	{ "shmem", 3, 0, 2, "write,fdwrite,punch,remove", "memfd,shared", UINT64_MAX, 60, 5,
	  MEM_BROKEN_SHMEM },
	{ "vma-diff", 4, 0, 2, "write,fixed,remap,move", "anon", UINT64_MAX, 60, 5,
	  MEM_BROKEN_VMA_DIFF },
	{ "files", 5, 0, 2, "write,dontneed", "file", UINT64_MAX, 60, 5, MEM_BROKEN_FILES },
	{ "untracked", 6, 0, 2, "write,fixed,remap", "anon", UINT64_MAX, 60, 5,
	  MEM_BROKEN_UNTRACKED },
	{ "walk-end", 7, 64, 2, "write,same", "anon", UINT64_MAX, 60, 50, MEM_BROKEN_WALK_END },
};

static void test_mutants_are_found(void **state)
{
	(void)state;
	SKIP_IF_MISSING();
	for (size_t i = 0; i < ARRAY_SIZE(mutants); i++) {
		struct outcome out;
		int r = run_and_print(&mutants[i], &out);

		if (out.absent) {
			print_message("skipped: %s\n", out.reason);
			skip();
		}
		if (out.tracker[0] && strcmp(out.tracker, "userfaultfd")) {
			print_message("skipped: mutants are of uffd, this is %s\n", out.tracker);
			skip();
		}
		assert_int_equal(r, 0);
		assert_true(out.report.wrong > 0);
	}
}

/* Writes that take no page fault: nothing may be captured of it, and the program runs on. */
static void test_pinned_memory_is_refused(void **state)
{
	static const struct scenario refused[] = {
		{ "uring", 1, 1, 1, "uring", "anon", UINT64_MAX, 5, 1, 0 },
		{ "aio", 1, 1, 1, "aio", "anon", UINT64_MAX, 5, 1, 0 },
	};

	(void)state;
	SKIP_IF_MISSING();
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
		struct outcome out;
		int r = run_and_print(&refused[i], &out);

		if (r == -ETIME) {
			print_message("skipped: this kernel refuses %s\n", refused[i].name);
			continue;
		}
		assert_int_equal(r, -EOPNOTSUPP);
		assert_int_equal(out.takes, 0);
		assert_true(out.reason[0]);
	}
}

static int soak(uint64_t seed, unsigned int minutes)
{
	uint64_t end = now_boot_ns() + minutes * 60000000000ULL, pages = 0, takes = 0;

	for (; now_boot_ns() < end; seed++) {
		struct scenario s = scenarios[seed % ARRAY_SIZE(scenarios)];
		struct outcome out;
		int r;

		s.seed = seed;
		s.pages = UINT64_MAX;
		s.seconds = 60;
		r = run_and_print(&s, &out);
		if (r < 0 || out.report.wrong || !out.alive) {
			print_message("FAILED: run again with soak %" PRIu64 " 1\n", seed);
			return 1;
		}
		pages += out.report.pages;
		takes += out.takes;
	}
	print_message("compared %" PRIu64 " pages of %" PRIu64 " snapshots: none is wrong\n", pages,
		      takes);
	return 0;
}

static int by_hand(int argc, char **argv)
{
	struct scenario s = { .name = "run", .pages = UINT64_MAX, .pause_ms = 10 };
	const char *expected = getenv("TRACKER"), *pages = getenv("PAGES");
	struct outcome out;

	if (argc == 4 && !strcmp(argv[1], "soak"))
		return soak(strtoull(argv[2], NULL, 0), (unsigned int)atoi(argv[3]));
	if (argc != 9 || strcmp(argv[1], "run"))
		return 2;
	if (pages)
		s.pages = strtoull(pages, NULL, 0);
	s.seed = strtoull(argv[2], NULL, 0);
	s.mib = (unsigned int)atoi(argv[3]);
	s.workers = (unsigned int)atoi(argv[4]);
	s.ops = argv[5];
	s.kinds = argv[6];
	s.seconds = (unsigned int)atoi(argv[7]);
	s.broken = (unsigned int)strtoul(argv[8], NULL, 0);
	if (run_and_print(&s, &out) < 0 || out.report.wrong || out.takes <= TAKES_MIN ||
	    !out.old_bytes)
		return 1;
	return expected && strcmp(expected, out.tracker) ? 1 : 0;
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_write_is_missed),
		cmocka_unit_test(test_mutants_are_found),
		cmocka_unit_test(test_pinned_memory_is_refused),
	};
	int r;

	if (argc > 1) {
		build_mutator(NULL);
		if (missing()) {
			printf("SKIP: %s\n", missing());
			return 77;
		}
		r = by_hand(argc, argv);
		remove_mutator(NULL);
		return r;
	}
	return cmocka_run_group_tests(tests, build_mutator, remove_mutator);
}
