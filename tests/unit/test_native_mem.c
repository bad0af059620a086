// SPDX-License-Identifier: LGPL-2.1-or-later
/* Memory of the native engine, against a full read of the stopped process, after each snapshot. */
#include "native_mem_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/native/freeze.h"
#include "agent/native/runs.h"
#include "agent/native/scan.h"
#include "agent/util/io.h"

/* With a sanitizer the victim has terabytes of shadow, and all takes ten times as long. */
#ifdef __SANITIZE_ADDRESS__
enum { RANDOM_TAKES = 8, FIRST_WHEN = 3 };
#else
enum { RANDOM_TAKES = 30, FIRST_WHEN = 2 };
#endif

enum {
	MUTANT_TAKES = 25,
	OPS_PER_TAKE = 6,
};

struct fixture {
	struct lab lab;
	struct victim victim;
};

/* Static, as all fixtures here: a test that fails leaves it to the teardown. */
static struct fixture *running;

static void begin(struct fixture *f, enum native_tracker tracker, unsigned int broken)
{
	memset(f, 0, sizeof(*f));
	if (!lab_start(&f->lab, tracker, broken))
		skip();
	running = f;
	victim_start(&f->victim);
}

static void end(struct fixture *f)
{
	running = NULL;
	victim_end(&f->victim);
	lab_end(&f->lab);
}

static int clean_up(void **state)
{
	(void)state;
	if (running)
		end(running);
	return 0;
}

static void take(struct fixture *f, void (*between)(void *ctx), void *ctx)
{
	int r = lab_take(&f->lab, f->victim.pid, between, ctx, NULL, 0);

	if (r < 0)
		fail_msg("%s: %s", strerror(-r), f->lab.reason);
}

static void expect_right(const struct fixture *f, const char *what)
{
	if (f->lab.pages_wrong || !f->lab.pages_right)
		fail_msg("%s: %llu pages wrong, %llu right, the first at %llx", what,
			 (unsigned long long)f->lab.pages_wrong,
			 (unsigned long long)f->lab.pages_right,
			 (unsigned long long)f->lab.wrong_at);
}

struct step {
	struct fixture *f;
	enum victim_op op;
	uint32_t seed;
};

static void do_step(void *ctx)
{
	const struct step *s = ctx;

	victim_do(&s->f->victim, s->op, s->seed);
}

/* Every operation before the pre-copy, between it and the stop, or at both times. */
static void every_way(enum native_tracker tracker, uint32_t first_when)
{
	static struct fixture f;

	begin(&f, tracker, 0);
	take(&f, NULL, NULL);
	expect_right(&f, "first");
	for (uint32_t op = 0; op < OP_COUNT; op++) {
		for (uint32_t when = first_when; when < 4; when++) {
			struct step s = { &f, (enum victim_op)op, op * 10 + when };

			if (when & 1)
				victim_do(&f.victim, s.op, op * 10 + when + 5);
			take(&f, when & 2 ? do_step : NULL, &s);
			expect_right(&f, victim_op_names[op]);
		}
	}
	end(&f);
}

static void test_every_way_uffd(void **state)
{
	(void)state;
	every_way(TRACK_UFFD, FIRST_WHEN);
}

static void test_every_way_hash(void **state)
{
	(void)state;
	every_way(TRACK_HASH, 3);
}

static void test_every_way_soft_dirty(void **state)
{
	(void)state;
	every_way(TRACK_SOFT_DIRTY, FIRST_WHEN);
}

static uint32_t next(uint64_t *random, uint32_t below)
{
	*random = *random * 6364136223846793005 + 1442695040888963407;
	return (uint32_t)(*random >> 33) % below;
}

struct mix {
	struct fixture *f;
	uint64_t *random;
};

static void do_mix(void *ctx)
{
	const struct mix *m = ctx;

	for (uint32_t n = next(m->random, OPS_PER_TAKE); n > 0; n--)
		victim_do(&m->f->victim, (enum victim_op)next(m->random, OP_EXEC),
			  next(m->random, 1 << 30));
}

/* Until the first loss. */
static uint64_t random_takes(struct fixture *f, uint64_t seed, uint32_t count)
{
	struct mix m = { f, &seed };
	uint64_t wrong = 0;

	for (uint32_t i = 0; i < count && !wrong; i++) {
		do_mix(&m);
		if (next(&seed, 20) == 0)
			victim_do(&f->victim, OP_EXEC, 0);
		take(f, do_mix, &m);
		wrong += f->lab.pages_wrong;
	}
	return wrong;
}

static void test_random(void **state)
{
	static struct fixture f;

	(void)state;
	begin(&f, TRACK_AUTO, 0);
	random_takes(&f, 1, RANDOM_TAKES);
	expect_right(&f, "random");
	end(&f);
}

/* A thread writes and gives back pages all the while. */
static void test_storm(void **state)
{
	static struct fixture f;

	(void)state;
	begin(&f, TRACK_AUTO, 0);
	victim_do(&f.victim, OP_STORM_START, 0);
	for (int i = 0; i < 15; i++) {
		take(&f, NULL, NULL);
		expect_right(&f, "storm");
	}
	victim_do(&f.victim, OP_STORM_STOP, 0);
	end(&f);
}

static void test_fork(void **state)
{
	static struct fixture f;
	struct step fork_now = { NULL, OP_FORK, 0 };

	(void)state;
	begin(&f, TRACK_AUTO, 0);
	fork_now.f = &f;
	take(&f, NULL, NULL);
	/* Known to pre-copy, and born after it. */
	for (int i = 0; i < 2; i++) {
		if (i == 0)
			victim_do(&f.victim, OP_FORK, 0);
		take(&f, i ? do_step : NULL, &fork_now);
		expect_right(&f, "fork");
		assert_int_equal(f.lab.tree.task_count, 2);
		take(&f, NULL, NULL);
		expect_right(&f, "after fork");
		victim_do(&f.victim, OP_FORK_END, 0);
	}
	end(&f);
}

static void test_huge_hole(void **state)
{
	static struct fixture f;

	(void)state;
	begin(&f, TRACK_UFFD, 0);
	victim_do(&f.victim, OP_MAP_HUGE_HOLE, 0);
	for (int i = 0; i < 2; i++) {
		take(&f, NULL, NULL);
		expect_right(&f, "hole");
	}
	/* Page tables for a terabyte would take seconds. */
	assert_true(f.lab.pause_us < 1000000);
	end(&f);
}

/* mlock(2) of a protected page that was given back goes round in the kernel (6.18). */
static void test_lock_file(void **state)
{
	static struct fixture f;

	(void)state;
	begin(&f, TRACK_UFFD, 0);
	for (uint32_t i = 0; i < 4; i++) {
		victim_do(&f.victim, OP_FILE_LOCK, i);
		take(&f, NULL, NULL);
		expect_right(&f, "file locked");
	}
	end(&f);
}

#ifndef __SANITIZE_ADDRESS__ /* takes minutes there */
static const struct {
	unsigned int broken;
	const char *name;
} mutants[] = {
	{ MEM_BROKEN_CHECK_WPASYNC, "CHECK_WPASYNC over mixed VMAs" },
	{ MEM_BROKEN_ARM_HOLES, "holes armed" },
	{ MEM_BROKEN_SHMEM, "no rule for shared memory" },
	{ MEM_BROKEN_VMA_DIFF, "VMAs of the last round" },
	{ MEM_BROKEN_FILES, "private maps of files are clean" },
	{ MEM_BROKEN_UNTRACKED, "untracked VMAs are clean" },
	{ MEM_BROKEN_WALK_END, "one call is all" },
};

static void test_mutants(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(mutants); i++) {
		static struct fixture f;
		uint64_t wrong;

		begin(&f, TRACK_UFFD, mutants[i].broken);
		wrong = random_takes(&f, 2, MUTANT_TAKES);
		print_message("%s: %llu pages lost\n", mutants[i].name, (unsigned long long)wrong);
		assert_true(wrong > 0);
		end(&f);
	}
}
#endif

/* Pages of its own in private maps of files, which are read each time: a sanitizer has megabytes. */
static uint64_t own_bytes_of_files(pid_t pid)
{
	unsigned long long ino = 0, kib, sum = 0;
	char path[64], line[1024];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	f = fopen(path, "re");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Anonymous: %llu kB", &kib) == 1)
			sum += ino ? kib << 10 : 0;
		else if (sscanf(line, "%*x-%*x %*4s %*x %*s %llu", &ino) != 1)
			continue;
	}
	fclose(f);
	return sum;
}

/* An idle process costs that, its vdso and what the stop itself wrote. */
static void test_small(void **state)
{
	static struct fixture f;

	(void)state;
	begin(&f, TRACK_UFFD, 0);
	take(&f, NULL, NULL);
	assert_true(f.lab.counts.new_bytes > 10 << 20);
	take(&f, NULL, NULL);
	expect_right(&f, "idle");
	assert_true(f.lab.counts.new_bytes < (512 << 10) + own_bytes_of_files(f.victim.pid));
	assert_true(f.lab.counts.mem_bytes > 10 << 20);
	victim_do(&f.victim, OP_WRITE, 1);
	take(&f, NULL, NULL);
	assert_true(f.lab.counts.new_bytes < (1 << 20) + own_bytes_of_files(f.victim.pid));
	/* Without a base, all again. */
	mem_forget(f.lab.mem);
	close(f.lab.base);
	f.lab.base = -1;
	take(&f, NULL, NULL);
	expect_right(&f, "forgotten");
	assert_true(f.lab.counts.new_bytes > 10 << 20);
	end(&f);
}

static void test_wanted(void **state)
{
	struct native_wanted wanted[2] = { { .pages_id = 1, .first = 10, .count = 500 },
					   { .pages_id = 2, .first = 0, .count = 20 } };
	static struct fixture f;
	int r;

	(void)state;
	for (int tracker = TRACK_UFFD; tracker <= TRACK_HASH; tracker += 2) {
		begin(&f, (enum native_tracker)tracker, 0);
		take(&f, NULL, NULL);
		take(&f, NULL, NULL);
		r = lab_take(&f.lab, f.victim.pid, NULL, NULL, wanted, 2);
		assert_int_equal(r, 0);
		expect_right(&f, "wanted");
		assert_true(f.lab.counts.new_bytes >= 520 * 4096);
		assert_true(f.lab.counts.new_bytes < 4 << 20);
		end(&f);
	}
}

/* Always seems to be writing to the memory of another process. */
static pid_t start_writer(void)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			(void)syscall(SYS_process_vm_writev, 0, NULL, 0, NULL, 0, 0);
	}
	usleep(20000);
	return pid;
}

/* While somebody may write through pinned pages, rounds leave them to the pause. */
static void test_pinned(void **state)
{
	static struct fixture f;

	(void)state;
	for (int tracker = TRACK_UFFD; tracker <= TRACK_HASH; tracker += 2) {
		begin(&f, (enum native_tracker)tracker, 0);
		for (uint32_t i = 0; i < 6; i++) {
			pid_t writer = i & 1 ? start_writer() : 0;

			victim_do(&f.victim, OP_WRITE, i);
			take(&f, NULL, NULL);
			if (writer) {
				kill(writer, SIGKILL);
				waitpid(writer, NULL, 0);
			}
			expect_right(&f, "pinned");
		}
		end(&f);
	}
}

static void test_refused(void **state)
{
	static struct fixture f;
	int r;

	(void)state;
	begin(&f, TRACK_AUTO, 0);
	victim_do(&f.victim, OP_OWN_UFFD, 0);
	r = lab_take(&f.lab, f.victim.pid, NULL, NULL, NULL, 0);
	assert_int_equal(r, -EOPNOTSUPP);
	assert_non_null(strstr(f.lab.reason, "userfaultfd"));
	/* It is as it was. */
	victim_do(&f.victim, OP_WRITE, 1);
	end(&f);
}

/* The target keeps no descriptor of ours. */
static void test_leaves_nothing(void **state)
{
	static struct fixture f;
	char path[64];

	(void)state;
	begin(&f, TRACK_AUTO, 0);
	take(&f, NULL, NULL);
	for (int fd = 3; fd < 64; fd++) {
		char target[64] = "";

		snprintf(path, sizeof(path), "/proc/%d/fd/%d", f.victim.pid, fd);
		if (readlink(path, target, sizeof(target) - 1) > 0)
			assert_null(strstr(target, "userfaultfd"));
	}
	victim_do(&f.victim, OP_WRITE, 1);
	end(&f);
}

static void test_runs(void **state)
{
	struct runs base = { 0 }, top = { 0 };

	(void)state;
	assert_int_equal(runs_add(&base, 10, 10, run_from(RUN_KIND_OLD, 0)), 0);
	assert_int_equal(runs_add(&base, 20, 10, run_from(RUN_KIND_OLD, 10)), 0);
	assert_int_equal(base.count, 1);
	assert_int_equal(runs_add(&base, 40, 5, run_from(RUN_KIND_OLD, 20)), 0);
	assert_int_equal(runs_add(&top, 5, 8, run_from(RUN_KIND_NEW, 7)), 0);
	assert_int_equal(runs_add(&top, 15, 2, run_from(RUN_KIND_NONE, 0)), 0);
	assert_int_equal(runs_add(&top, 28, 14, run_from(RUN_KIND_NEW, 100)), 0);
	assert_int_equal(runs_overlay(&base, &top, true), 0);
	for (uint64_t p = 0; p < 60; p++) {
		uint64_t from = runs_at(&base, p), want = 0;

		if (p >= 5 && p < 13)
			want = run_from(RUN_KIND_NEW, 7 + p - 5);
		else if (p >= 28 && p < 42)
			want = run_from(RUN_KIND_NEW, 100 + p - 28);
		else if (p >= 13 && p < 30 && p != 15 && p != 16)
			want = run_from(RUN_KIND_OLD, p - 10);
		else if (p >= 42 && p < 45)
			want = run_from(RUN_KIND_OLD, 20 + p - 40);
		assert_true(from == want);
	}
	assert_true(runs_touch(&base, 0, 6));
	assert_false(runs_touch(&base, 15, 2));
	runs_deinit(&base);
	runs_deinit(&top);
}

static void test_materialise_refuses(void **state)
{
	struct native_run run = { (uint64_t)RUN_OLD << 56, 1 };
	char dir[] = "/var/tmp/decamp-native-runs-XXXXXX";
	int images, fd;

	(void)state;
	assert_non_null(mkdtemp(dir));
	images = open(dir, O_RDONLY | O_DIRECTORY);
	assert_true(images >= 0);
	fd = openat(images, "pages.new", O_WRONLY | O_CREAT, 0600);
	assert_int_equal(ftruncate(fd, 4096), 0);
	close(fd);
	fd = openat(images, "pages-1.runs", O_RDWR | O_CREAT, 0600);
	/* No base; beyond the end; no kind; half a record. */
	assert_int_equal(pwrite_full(fd, &run, sizeof(run), 0), 0);
	assert_int_equal(mem_materialise(images, -1), -EBADMSG);
	run.from = (uint64_t)RUN_NEW << 56 | 1;
	assert_int_equal(pwrite_full(fd, &run, sizeof(run), 0), 0);
	assert_true(mem_materialise(images, -1) < 0);
	run.from = (uint64_t)9 << 56;
	assert_int_equal(pwrite_full(fd, &run, sizeof(run), 0), 0);
	assert_int_equal(mem_materialise(images, -1), -EBADMSG);
	run.from = (uint64_t)RUN_NEW << 56;
	assert_int_equal(pwrite_full(fd, &run, sizeof(run), 0), 0);
	assert_int_equal(pwrite_full(fd, &run, 7, sizeof(run)), 0);
	assert_int_equal(mem_materialise(images, -1), -EBADMSG);
	assert_int_equal(ftruncate(fd, sizeof(run)), 0);
	assert_int_equal(mem_materialise(images, -1), 0);
	assert_int_equal(faccessat(images, "pages-1.img", R_OK, 0), 0);
	assert_int_not_equal(faccessat(images, "pages.new", F_OK, 0), 0);
	close(fd);
	close(images);
	assert_int_equal(remove_tree_at(AT_FDCWD, dir), 0);
}

/* Measurements, not a test: test_native_mem bench MIB. */
static int bench(uint32_t mib)
{
	struct fixture f = { 0 };

	if (!lab_start(&f.lab, TRACK_AUTO, 0))
		return 77;
	victim_start(&f.victim);
	victim_do(&f.victim, OP_FILL, mib);
	victim_do(&f.victim, OP_DIRTY, 10000);
	f.lab.judge = false;
	(void)freeze_prepare_self();
	printf("take pause scan list holes copy residue rounds attach rate new_KiB\n");
	for (int i = 0; i < 12; i++) {
		const struct native_mem_counts *c = &f.lab.counts;

		poll(NULL, 0, 1000);
		if (lab_take(&f.lab, f.victim.pid, NULL, NULL, NULL, 0) < 0)
			return 1;
		printf("%d %llu %u %u %u %u %llu %u %u %llu %llu\n", i,
		       (unsigned long long)f.lab.pause_us, c->scan_us, c->list_us, c->holes_us,
		       c->copy_us, (unsigned long long)c->residue_bytes / 4096, c->rounds,
		       c->attach_us, (unsigned long long)c->dirty_rate,
		       (unsigned long long)c->new_bytes / 1024);
	}
	end(&f);
	return 0;
}

/* What was given back and read since has no soft-dirty bit, and is no longer what it was. */
static void test_zero_page_without_scan(void **state)
{
	_cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	volatile char *p = mmap(NULL, 2 * NATIVE_PAGE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t at = (uintptr_t)p;
	struct regions out = { 0 };

	(void)state;
	assert_true(fd >= 0 && p != MAP_FAILED);
	assert_int_equal(madvise((void *)p, 2 * NATIVE_PAGE, MADV_NOHUGEPAGE), 0);
	p[0] = p[NATIVE_PAGE] = 1;
	assert_int_equal(madvise((void *)(p + NATIVE_PAGE), NATIVE_PAGE, MADV_DONTNEED), 0);
	assert_int_equal(p[NATIVE_PAGE], 0);
	assert_int_equal(scan_words(fd, at, at + NATIVE_PAGE, &out), 0);
	assert_int_equal(scan_words(fd, at + NATIVE_PAGE, at + 2 * NATIVE_PAGE, &out), 0);
	assert_int_equal(out.count, 2);
	assert_false(out.v[0].categories & PAGE_MAYBE_ZERO);
	assert_true(out.v[1].categories & PAGE_PRESENT && out.v[1].categories & PAGE_MAYBE_ZERO);
	regions_deinit(&out);
	munmap((void *)p, 2 * NATIVE_PAGE);
}

#define cleaned_test(f) cmocka_unit_test_teardown(f, clean_up)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cleaned_test(test_runs),
		cleaned_test(test_materialise_refuses),
		cleaned_test(test_zero_page_without_scan),
		cleaned_test(test_every_way_uffd),
		cleaned_test(test_every_way_hash),
		cleaned_test(test_every_way_soft_dirty),
		cleaned_test(test_random),
		cleaned_test(test_storm),
		cleaned_test(test_fork),
		cleaned_test(test_huge_hole),
		cleaned_test(test_lock_file),
		cleaned_test(test_small),
		cleaned_test(test_wanted),
		cleaned_test(test_pinned),
		cleaned_test(test_refused),
		cleaned_test(test_leaves_nothing),
#ifndef __SANITIZE_ADDRESS__
		cleaned_test(test_mutants),
#endif
	};

	if (argc > 1 && !strcmp(argv[1], "victim"))
		return victim_main(argc, argv);
	if (argc > 2 && !strcmp(argv[1], "bench"))
		return bench((uint32_t)atoi(argv[2]));
	if (geteuid() != 0) {
		puts("SKIP: needs root");
		return 77;
	}
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
