// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Threads asleep in calls with a relative timeout are captured twice, killed and restored by CRIU with our
 * plugin: the calls end when they would have, and nothing but the time tells. Without a usable file of
 * deadlines they begin anew. By the kernel module where that is loaded, else by ptrace.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/native/gentle.h"
#include "agent/native/oneshot.h"
#include "agent/util/deadlines.h"
#include "agent/util/io.h"
#include "tests/unit/slow.h"

enum {
	LONG_S = 24, /* of the calls that shall end in time: captured twice, */
	FIRST_S = 9,
	SECOND_S = 11,
	SLACK_S = 7, /* and in full they would be later than this */
	SHORT_S = 4, /* of those that begin anew, captured after */
	SHORT_DUMP_S = 1,
	TRIES = 3,
	STRETCH = 4, /* where TEST_SLOW is set */
	AWAIT_S = 60,
	EARLY_NS = 20000000,
	MESS = 0x5a,
	BELOW_BYTES = 512,
	XMM = 0x13579bdf,
};

/*
 * A call whose registers are all known, and the memory below its stack: the stack pointer is at the end
 * of below[] meanwhile. Offsets are those of the code below.
 */
struct call {
	uint64_t nr, args[6]; /* rdi, rsi, rdx, r10, r8, r9 */
	uint64_t result, after[6], saved[4], xmm;
	uint8_t below[BELOW_BYTES];
	uint64_t end_of_below;
};

_Static_assert(offsetof(struct call, result) == 56 && offsetof(struct call, saved) == 112 &&
		       offsetof(struct call, xmm) == 144 &&
		       offsetof(struct call, end_of_below) == 152 + BELOW_BYTES,
	       "offsets in make_call");

void make_call(struct call *c);
__asm__("	.text\n"
	"	.type make_call, @function\n"
	"make_call:\n"
	"	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
	"	mov %rdi, %rbx\n"
	"	mov %rsp, %r12\n"
	"	lea 664(%rbx), %rsp\n"
	"	mov $0x1357, %ebp; mov $0x1313, %r13d; mov $0x1414, %r14d; mov $0x1515, %r15d\n"
	"	mov $0x13579bdf, %eax; movq %rax, %xmm5\n"
	"	mov 8(%rbx), %rdi; mov 16(%rbx), %rsi; mov 24(%rbx), %rdx\n"
	"	mov 32(%rbx), %r10; mov 40(%rbx), %r8; mov 48(%rbx), %r9\n"
	"	mov 0(%rbx), %rax\n"
	"	syscall\n"
	"	mov %rax, 56(%rbx); mov %rdi, 64(%rbx); mov %rsi, 72(%rbx); mov %rdx, 80(%rbx)\n"
	"	mov %r10, 88(%rbx); mov %r8, 96(%rbx); mov %r9, 104(%rbx)\n"
	"	mov %rbp, 112(%rbx); mov %r13, 120(%rbx); mov %r14, 128(%rbx)\n"
	"	mov %r15, 136(%rbx); movq %xmm5, 144(%rbx)\n"
	"	mov %r12, %rsp\n"
	"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
	"	ret\n"
	"	.size make_call, . - make_call\n");

/* One thread of the victim; what it saw lies at the same address in the victim and its restored copy. */
static struct sleeper {
	const char *name;
	long nr;
	long clock;	/* clock_nanosleep */
	bool rest, own; /* gives a place for the time left; the very one of its time */
	pid_t tid;
	struct call call;
	struct timespec time, left;
	uint64_t begin_ns, end_ns;
	bool changed;	  /* registers, or memory below the stack */
	uint64_t seen_ns; /* the end, by the clock of the test */
} sleepers[] = {
	{ .name = "main", .nr = SYS_nanosleep },
	{ .name = "nanosleep", .nr = SYS_nanosleep, .rest = true },
	{ .name = "nanosleep in place", .nr = SYS_nanosleep, .rest = true, .own = true },
	{ .name = "clock_nanosleep",
	  .nr = SYS_clock_nanosleep,
	  .clock = CLOCK_MONOTONIC,
	  .rest = true },
	{ .name = "clock_nanosleep, boot time", .nr = SYS_clock_nanosleep, .clock = CLOCK_BOOTTIME },
	{ .name = "clock_nanosleep, wall clock",
	  .nr = SYS_clock_nanosleep,
	  .clock = CLOCK_REALTIME,
	  .rest = true,
	  .own = true },
	{ .name = "poll", .nr = SYS_poll },
	{ .name = "futex", .nr = SYS_futex },
};

enum { SLEEPERS = ARRAY_SIZE(sleepers) };

static volatile uint32_t word;
static struct pollfd polled;
static uint64_t total_ns; /* of all of them */

static pid_t living; /* 0: none */
static char folder[] = "/tmp/test-sleeps-XXXXXX", criu[PATH_MAX], plugins[PATH_MAX];

/* ---- the victim ---- */

static uint64_t mono_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void fill(struct sleeper *s)
{
	uint64_t time = (uintptr_t)&s->time,
		 left = !s->rest ? 0 : (uintptr_t)(s->own ? &s->time : &s->left);
	const uint64_t args[][6] = {
		{ time, left, 3, 4, 5, 6 },
		{ (uint64_t)s->clock, 0, time, left, 5, 6 },
		{ (uintptr_t)&polled, 1, total_ns / 1000000, 4, 5, 6 },
		{ (uintptr_t)&word, FUTEX_WAIT_PRIVATE, 0, time, 5, 6 },
	};
	int form = s->nr == SYS_nanosleep ? 0 : s->nr == SYS_poll ? 2 : s->nr == SYS_futex ? 3 : 1;

	s->time = (struct timespec){ .tv_sec = (time_t)(total_ns / 1000000000) };
	s->left = (struct timespec){ .tv_sec = 1 << 20 };
	s->call.nr = (uint64_t)s->nr;
	memcpy(s->call.args, args[form], sizeof(s->call.args));
	memset(s->call.below, MESS, sizeof(s->call.below));
	s->tid = (pid_t)syscall(SYS_gettid);
}

static bool has_changed(const struct call *c)
{
	const uint64_t saved[4] = { 0x1357, 0x1313, 0x1414, 0x1515 };

	for (size_t i = 0; i < sizeof(c->below); i++)
		if (c->below[i] != MESS)
			return true;
	return memcmp(c->args, c->after, sizeof(c->args)) != 0 ||
	       memcmp(c->saved, saved, sizeof(saved)) != 0 || c->xmm != XMM;
}

static void *run_sleeper(void *arg)
{
	struct sleeper *s = arg;

	fill(s);
	__atomic_store_n(&s->begin_ns, mono_ns(), __ATOMIC_SEQ_CST);
	make_call(&s->call);
	s->changed = has_changed(&s->call);
	__atomic_store_n(&s->end_ns, mono_ns(), __ATOMIC_SEQ_CST);
	for (;;)
		pause();
	return NULL;
}

static void run_victim(void)
{
	pthread_t thread;
	int pipes[2];

	if (setsid() < 0 || syscall(SYS_close_range, 0, ~0U, 0) < 0)
		_exit(1);
	for (int i = 0; i < 3; i++)
		if (open("/dev/null", O_RDWR) != i)
			_exit(1);
	if (pipe(pipes) < 0)
		_exit(1);
	polled = (struct pollfd){ .fd = pipes[0], .events = POLLIN };
	for (size_t i = 1; i < SLEEPERS; i++)
		if (pthread_create(&thread, NULL, run_sleeper, &sleepers[i]) != 0)
			_exit(1);
	run_sleeper(&sleepers[0]);
}

/* ---- around it ---- */

static int peek(pid_t pid, void *to, const volatile void *from, size_t size)
{
	struct iovec local = { to, size }, remote = { (void *)from, size };

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)size ? 0 : -errno;
}

static void look_at(pid_t pid, struct sleeper *to)
{
	if (peek(pid, to, sleepers, sizeof(sleepers)) < 0)
		fail_msg("process %d cannot be read: %s", pid, strerror(errno));
}

static pid_t start_victim(int seconds)
{
	struct sleeper seen[SLEEPERS];
	size_t begun = 0;
	pid_t pid;

	total_ns = (uint64_t)seconds * 1000000000;
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		run_victim();
	living = pid;
	for (int ms = 0; begun < SLEEPERS; ms++) {
		assert_true(ms < slow(AWAIT_S * 1000));
		usleep(1000);
		look_at(pid, seen);
		begun = 0;
		for (size_t i = 0; i < SLEEPERS; i++)
			begun += seen[i].begin_ns != 0;
	}
	return pid;
}

static void sleep_until(uint64_t ns)
{
	struct timespec ts = { .tv_sec = (time_t)(ns / 1000000000),
			       .tv_nsec = (long)(ns % 1000000000) };

	assert_int_equal(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL), 0);
}

/* Ours, or one that CRIU left to our reaper. */
static void end_victim(pid_t pid)
{
	living = 0;
	kill(pid, SIGKILL);
	if (waitpid(pid, NULL, 0) == pid)
		return;
	for (int ms = 0; kill(pid, 0) == 0; ms++) {
		assert_true(ms < slow(AWAIT_S * 1000));
		usleep(1000);
	}
}

static int run(char *const argv[])
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		if (!strcmp(argv[0], "dump"))
			_exit(oneshot_main(7, (char **)argv));
		execv(argv[0], argv);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void make_folder(char path[96], const char *name)
{
	snprintf(path, 96, "%s/%s", folder, name);
	assert_int_equal(mkdir(path, 0700), 0);
}

/* by: what must have stopped it; NULL: whatever. */
static void dump_by(pid_t victim, char *images, const char *by)
{
	char pid[16], path[128];
	_cleanup_free_ char *text = NULL;

	snprintf(pid, sizeof(pid), "%d", victim);
	assert_int_equal(run((char *[]){ "dump", "--tree", pid, "--images-dir", images,
					 "--leave-running", "--shell-job", NULL }),
			 ONESHOT_DONE);
	snprintf(path, sizeof(path), "%s/dump.log", images);
	assert_int_equal(read_file_at(AT_FDCWD, path, 1 << 16, &text, NULL), 0);
	print_message("%s", text);
	if (by)
		assert_non_null(strstr(text, by));
}

static void dump(pid_t victim, char *images)
{
	dump_by(victim, images, gentle_works() ? "stopped by module" : "stopped by ptrace");
}

static void restore(char *images)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/" DEADLINES_REPORT, images);
	unlink(path);
	assert_int_equal(run((char *[]){ criu, "restore", "-L", plugins, "-D", images, "-d",
					 "--shell-job", "-v4", "-o", "restore.log", NULL }),
			 0);
}

static void check_report(const char *images, const char *expected)
{
	_cleanup_free_ char *text = NULL;
	char path[128];

	snprintf(path, sizeof(path), "%s/" DEADLINES_REPORT, images);
	assert_int_equal(read_file_at(AT_FDCWD, path, DEADLINES_REPORT_MAX, &text, NULL), 0);
	print_message("the plugin: %s\n", text);
	if (!strstr(text, expected))
		fail_msg("it should say: %s", expected);
}

static struct deadlines_head *read_deadlines(const char *images, size_t *ret_size)
{
	char path[128], *bytes;

	snprintf(path, sizeof(path), "%s/" DEADLINES_FILE, images);
	assert_int_equal(read_file_at(AT_FDCWD, path, DEADLINES_BYTES_MAX, &bytes, ret_size), 0);
	return (struct deadlines_head *)(void *)bytes;
}

static void write_deadlines(const char *images, const void *bytes, size_t size)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/" DEADLINES_FILE, images);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, bytes, size), 0);
	close(fd);
}

/* A restored job's clock goes on from the instant of its capture: it is not the test's. */
static void await_ends(pid_t pid, struct sleeper seen[SLEEPERS], int seconds)
{
	uint64_t seen_ns[SLEEPERS] = { 0 };

	for (int ms = 0;; ms += 10) {
		size_t ended = 0;

		look_at(pid, seen);
		for (size_t i = 0; i < SLEEPERS; i++) {
			ended += seen[i].end_ns != 0;
			if (seen[i].end_ns && !seen_ns[i])
				seen_ns[i] = mono_ns();
			seen[i].seen_ns = seen_ns[i];
		}
		if (ended == SLEEPERS)
			return;
		for (size_t i = 0; i < SLEEPERS; i++)
			if (ms > seconds * 1000 && !seen[i].end_ns)
				fail_msg("%s does not end", seen[i].name);
		usleep(10000);
	}
}

/* As if nothing had been. */
static void check_ended(const struct sleeper *s)
{
	long expected = s->nr == SYS_futex ? -ETIMEDOUT : 0;

	if ((long)s->call.result != expected)
		fail_msg("%s returned %ld", s->name, (long)s->call.result);
	if (s->changed)
		fail_msg("%s: other registers or memory than before", s->name);
}

static void need_all(void)
{
	const char *given = getenv("DECAMP_CRIU");
	FILE *f = given ? NULL : popen("scripts/criu 2>/dev/null", "re");
	char self[PATH_MAX] = "";

	criu[0] = '\0';
	if (given)
		snprintf(criu, sizeof(criu), "%s", given);
	else if (f && fgets(criu, sizeof(criu), f))
		criu[strcspn(criu, "\n")] = '\0';
	if (f)
		pclose(f);
	if (geteuid() != 0 || access(criu, X_OK) < 0) {
		print_message("SKIP: %s\n", geteuid() ? "needs root" : "no criu: DECAMP_CRIU");
		skip();
	}
	assert_true(readlink("/proc/self/exe", self, sizeof(self) - 1) > 0);
	dirname(dirname(self));
	snprintf(plugins, sizeof(plugins), "%.*s/criu", PATH_MAX - 16, self);
	/* A sanitized build has its own folder. */
	if (access(plugins, R_OK) < 0)
		snprintf(plugins, sizeof(plugins), "%.*s/../criu", PATH_MAX - 16, self);
	assert_int_equal(access(plugins, R_OK), 0);
}

static int stretch = 1; /* grows where the machine turns out to be too slow */

/* Everything is stretched alike, so that it can be told from a sleep in full. */
static int stretched(int seconds)
{
	return seconds * stretch * (slow(1) > 1 ? STRETCH : 1);
}

/* ---- tests ---- */

/* Where the file of deadlines is of no use, a call begins anew: as without it, never worse. */
struct spoil {
	const char *name, *report;
	int index; /* of the entry that is wrong; -1: none counts */
	size_t cut;
	struct deadlines_head head;
	struct deadline entry; /* fields that are not 0 */
};

static const struct spoil spoils[] = {
	{ .name = "absent",
	  .report = "0 of 0\nthe file: No such file",
	  .index = -1,
	  .cut = SIZE_MAX },
	{ .name = "cut short", .report = "0 of 0\nthe file: Bad message", .index = -1, .cut = 5 },
	{ .name = "empty", .report = "Bad message", .index = -1, .cut = SIZE_MAX - 1 },
	{ .name = "of a later version", .report = "Bad message", .index = -1, .head.version = 2 },
	{ .name = "a count too high",
	  .report = "Bad message",
	  .index = -1,
	  .head.count = DEADLINES_MAX },
	{ .name = "another call", .report = "7 of 8\nthread", .index = 2, .entry.call = SYS_poll },
	{ .name = "no such call", .report = "Bad message", .index = -1, .entry.call = SYS_pause },
	{ .name = "a thread too few",
	  .report = "it is not there",
	  .index = 3,
	  .entry.tid = 1 << 22 },
	{ .name = "a time beyond all",
	  .report = "Bad message",
	  .index = -1,
	  .entry.left_ns = 1ull << 63 },
};

static void spoil(char *images, const struct spoil *p, const struct deadlines_head *good,
		  size_t size)
{
	_cleanup_free_ struct deadlines_head *head = malloc(size);
	int at = p->index < 0 ? 0 : p->index;
	char path[128];

	assert_non_null(head);
	memcpy(head, good, size);
	struct deadline *entry = (struct deadline *)(head + 1) + at;

	head->version = p->head.version ?: head->version;
	head->count = p->head.count ?: head->count;
	entry->call = p->entry.call ?: entry->call;
	entry->tid = p->entry.tid ?: entry->tid;
	entry->left_ns = p->entry.left_ns ?: entry->left_ns;
	snprintf(path, sizeof(path), "%s/" DEADLINES_FILE, images);
	if (p->cut == SIZE_MAX)
		assert_int_equal(unlink(path), 0);
	else
		write_deadlines(images, head, p->cut >= size ? 0 : size - p->cut);
}

/* Images of all of them, asleep: a slow machine gets calls that last longer. */
static pid_t capture_asleep(char images[96], uint64_t *ret_dump_ns)
{
	struct sleeper seen[SLEEPERS];
	char name[24];

	for (int tries = 0, seconds = SHORT_S; tries < TRIES; tries++, seconds *= 3) {
		pid_t pid = start_victim(seconds);
		size_t ended = 0;

		snprintf(name, sizeof(name), "useless-%d", tries);
		make_folder(images, name);
		sleep(SHORT_DUMP_S);
		*ret_dump_ns = mono_ns();
		dump(pid, images);
		look_at(pid, seen);
		end_victim(pid);
		for (size_t i = 0; i < SLEEPERS; i++)
			ended += seen[i].end_ns != 0;
		if (!ended)
			return pid;
	}
	fail_msg("this machine is too slow");
	return -1;
}

static void test_useless(void **state)
{
	struct sleeper seen[SLEEPERS];
	_cleanup_free_ struct deadlines_head *good = NULL;
	char images[96];
	uint64_t dump_ns;
	size_t size;
	pid_t pid;

	(void)state;
	need_all();
	pid = capture_asleep(images, &dump_ns);
	good = read_deadlines(images, &size);
	assert_int_equal(good->count, SLEEPERS);
	for (size_t k = 0; k < ARRAY_SIZE(spoils); k++) {
		const struct deadline *d = (const struct deadline *)(good + 1);
		pid_t tid = spoils[k].index < 0 ? 0 : d[spoils[k].index].tid;

		print_message("deadlines: %s\n", spoils[k].name);
		spoil(images, &spoils[k], good, size);
		restore(images);
		living = pid;
		check_report(images, spoils[k].report);
		await_ends(pid, seen, slow(AWAIT_S));
		for (size_t i = 0; i < SLEEPERS; i++) {
			check_ended(&seen[i]);
			/* The kernel has written the time left where the call now finds its time. */
			if (seen[i].own || (tid && seen[i].tid != tid))
				continue;
			if (seen[i].end_ns < dump_ns + total_ns)
				fail_msg("%s: not in full", seen[i].name);
		}
		write_deadlines(images, good, size);
		end_victim(pid);
	}
}

static char state_of(pid_t pid)
{
	char path[64], state = '?';
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%*d (%*[^)]) %c", &state), 1);
	fclose(f);
	return state;
}

/* Stopped by a signal: there are no deadlines. And if there were, it stays stopped. */
static void test_stopped(void **state)
{
	struct {
		struct deadlines_head head;
		struct deadline entry;
	} file = { { DEADLINES_MAGIC, DEADLINES_VERSION, 1, 0 },
		   { .call = SYS_nanosleep, .left_ns = 1000000000 } };
	struct sleeper seen[SLEEPERS];
	char images[96], path[128];
	pid_t pid;

	(void)state;
	need_all();
	make_folder(images, "stopped");
	snprintf(path, sizeof(path), "%s/" DEADLINES_FILE, images);
	pid = start_victim(SHORT_S);
	sleep(SHORT_DUMP_S);
	kill(pid, SIGSTOP);
	for (int ms = 0; state_of(pid) != 'T'; ms++) {
		assert_true(ms < slow(AWAIT_S * 1000));
		usleep(1000);
	}
	dump_by(pid, images, NULL);
	end_victim(pid);
	assert_int_equal(access(path, F_OK), -1);
	file.entry.pid = file.entry.tid = pid;
	write_deadlines(images, &file, sizeof(file));
	restore(images);
	living = pid;
	check_report(images, "0 of 1\n");
	usleep(100000);
	assert_int_equal(state_of(pid), 'T');
	kill(pid, SIGCONT);
	await_ends(pid, seen, slow(AWAIT_S));
	for (size_t i = 0; i < SLEEPERS; i++)
		check_ended(&seen[i]);
	end_victim(pid);
}

/* Whether it was. */
static bool check_in_time(const struct sleeper *now, const struct sleeper *then, uint64_t dump_ns,
			  uint64_t restored_ns)
{
	uint64_t left_ns = then->begin_ns + total_ns - dump_ns;

	check_ended(now);
	print_message("%s: %.2f s in all; %.2f s after the restore, %.2f s were left\n", now->name,
		      (double)(now->end_ns - now->begin_ns) / 1e9,
		      (double)(now->seen_ns - restored_ns) / 1e9, (double)left_ns / 1e9);
	if (now->end_ns + EARLY_NS < now->begin_ns + total_ns)
		fail_msg("%s: too early", now->name);
	/* Written when it was captured, as by any stop; not by the restore. */
	assert_memory_equal(&now->time, &then->time, sizeof(now->time));
	assert_memory_equal(&now->left, &then->left, sizeof(now->left));
	return now->seen_ns <= restored_ns + left_ns + (uint64_t)stretched(SLACK_S) * 1000000000;
}

/* Twice; 0 if a call has ended by then, as it may where that takes long. */
static pid_t capture_twice(char images[96], struct sleeper then[SLEEPERS], uint64_t *ret_dump_ns)
{
	uint64_t begin_ns = mono_ns();
	pid_t pid = start_victim(stretched(LONG_S));
	char first[96], name[24];
	size_t ended = 0;

	snprintf(name, sizeof(name), "first-%d", stretch);
	make_folder(first, name);
	snprintf(name, sizeof(name), "second-%d", stretch);
	make_folder(images, name);
	sleep_until(begin_ns + (uint64_t)stretched(FIRST_S) * 1000000000);
	dump(pid, first);
	/* Asleep in their restarts by now. */
	sleep_until(begin_ns + (uint64_t)stretched(SECOND_S) * 1000000000);
	*ret_dump_ns = mono_ns();
	dump(pid, images);
	look_at(pid, then);
	end_victim(pid);
	for (size_t i = 0; i < SLEEPERS; i++) {
		ended += then[i].end_ns != 0;
		if (then[i].end_ns && then[i].end_ns + EARLY_NS < then[i].begin_ns + total_ns)
			fail_msg("%s: ended early, at a dump", then[i].name);
	}
	return ended ? 0 : pid;
}

/* Whether all ended in time; or some did before the second capture, or late. */
static bool goes_on_in_time(void)
{
	uint64_t dump_ns, restored_ns;
	struct sleeper then[SLEEPERS], now[SLEEPERS];
	char images[96];
	bool in_time = true;
	pid_t pid = capture_twice(images, then, &dump_ns);

	if (!pid)
		return false;
	restore(images);
	restored_ns = mono_ns();
	living = pid;
	check_report(images, "8 of 8");
	await_ends(pid, now, stretched(LONG_S) + slow(AWAIT_S));
	for (size_t i = 0; i < SLEEPERS; i++)
		in_time &= check_in_time(&now[i], &then[i], dump_ns, restored_ns);
	end_victim(pid);
	return in_time;
}

static void test_in_time(void **state)
{
	(void)state;
	need_all();
	while (!goes_on_in_time()) {
		print_message("some were too late, or this machine too slow: again, stretched\n");
		if ((stretch *= 2) > STRETCH)
			fail_msg("too late, or this machine is too slow");
	}
}

static int setup(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	if (living) /* a test failed */
		kill(living, SIGKILL);
	return remove_tree_at(AT_FDCWD, folder);
}

/* test_sleeps [PATTERN] */
int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_useless),
		cmocka_unit_test(test_stopped),
		cmocka_unit_test(test_in_time),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, setup, teardown);
}
