// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The freeze by the kernel module, where that is loaded: nobody notices, a call that ends in the pause is
 * seen, the job survives its taker, and what was stopped can be restored.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/native/freeze.h"
#include "agent/native/gentle.h"
#include "agent/native/oneshot.h"
#include "agent/native/take.h"
#include "agent/util/io.h"
#include "tests/unit/blocking_calls.h"
#include "tests/unit/slow.h"

enum {
	ROUNDS = 20,
	ROUND_GAP_US = 12000,
	DEADLINE_MS = 5000,
	AWAIT_MS = 10000,
	EARLY_US = 8000, /* socket timeouts count in ticks */
	LATE_MS = 1500,
	SLEEP_S = 24,
	SLACK_S = 4,
	FD_FIRST = 100, /* of a victim; the others are closed */
};

static char folder[] = "/tmp/test-gentle-XXXXXX";

static void need_module(void)
{
	if (geteuid() != 0 || !gentle_works()) {
		print_message("SKIP: %s\n",
			      geteuid() ? "needs root" : "the kernel module is not loaded");
		skip();
	}
}

/* ---- all calls ---- */

struct lab {
	struct native_arena *arena;
	struct native_state *state;
	char reason[NATIVE_REASON_MAX];
	struct native_tree tree;
};

static void lab_init(struct lab *l)
{
	memset(l, 0, sizeof(*l));
	assert_int_equal(arena_create(4 << 20, &l->arena), 0);
	if (state_create(&l->state, l->reason) < 0)
		fail_msg("%s", l->reason);
}

static void lab_deinit(struct lab *l)
{
	state_destroy(l->state);
	arena_destroy(l->arena);
}

static void check(const struct lab *l, int r, const char *what)
{
	if (r < 0)
		fail_msg("%s: %s: %s", what, strerror(-r), l->reason);
}

/* Stands, and is read. */
static void lab_freeze(struct lab *l, pid_t root)
{
	arena_reset(l->arena);
	l->reason[0] = '\0';
	l->tree = (struct native_tree){
		.root = root, .arena = l->arena, .reason = l->reason, .may_gentle = true
	};
	check(l, tree_list(&l->tree), "list");
	check(l, state_prepare(l->state, &l->tree), "prepare");
	check(l, freeze_tree(&l->tree, slow(DEADLINE_MS)), "freeze");
	if (!l->tree.gentle)
		fail_msg("not by the module: %s", l->tree.not_gentle);
	check(l, state_collect(l->state, &l->tree), "state");
	check(l, regs_collect(&l->tree), "registers");
}

/* What a restore would load makes the same call again, with the mask of before. */
static void check_image(const struct lab *l, const struct slot *slots)
{
	uint64_t usr1 = 1ull << (SIGUSR1 - 1);

	for (size_t i = 0; i < blocking_count; i++) {
		const struct blocking *b = &blocking_calls[i];
		const struct native_task *t = tree_find(&l->tree, slots[i].pid);
		bool masks = !strncmp(b->name, "sig", 3);

		if (!t || t->thread_count != 1)
			fail_msg("%s: its process is gone", b->name);
		if (b->nr && (long)t->threads[0].regs.rax != b->nr)
			fail_msg("%s: image has rax=%lld instead of %ld", b->name,
				 t->threads[0].regs.rax, b->nr);
		if (t->threads[0].sigmask != (masks ? usr1 : 0))
			fail_msg("%s: image has mask %llx", b->name,
				 (unsigned long long)t->threads[0].sigmask);
		assert_true(t->threads[0].xsave_size >= 576);
	}
}

static void check_results(struct slot *slots)
{
	uint64_t timed_us = (uint64_t)BLOCKING_TIMED_MS * 1000;

	for (size_t i = 0; i < blocking_count; i++) {
		const struct blocking *b = &blocking_calls[i];

		for (int ms = 0; !atomic_load(&slots[i].done); ms++) {
			if (ms > slow(AWAIT_MS))
				fail_msg("%s does not return", b->name);
			usleep(1000);
		}
		if (slots[i].result)
			fail_msg("%s returned %s", b->name, strerror((int)slots[i].result));
		if (b->timed && (slots[i].us + EARLY_US < timed_us ||
				 slots[i].us > timed_us + (uint64_t)slow(LATE_MS) * 1000))
			fail_msg("%s took %llu us", b->name, (unsigned long long)slots[i].us);
	}
}

static void test_blocking_calls(void **state)
{
	struct slot *slots;
	size_t disturbed = 0;
	uint64_t until;
	struct lab l;
	pid_t stem;
	int rounds = 0;

	(void)state;
	need_module();
	lab_init(&l);
	slots = blocking_prepare(folder);
	stem = blocking_start(slots);
	until = now_boot_ns() + (uint64_t)BLOCKING_TIMED_MS * 1000000 / 2;
	/* A timed call must not end between two rounds. */
	for (; rounds < ROUNDS && (!rounds || now_boot_ns() < until); rounds++) {
		lab_freeze(&l, stem);
		check_image(&l, slots);
		check(&l, gentle_verify(&l.tree), "verify");
		thaw_tree(&l.tree);
		usleep(ROUND_GAP_US);
		for (size_t i = 0; i < blocking_count; i++)
			disturbed += !blocking_calls[i].timed && atomic_load(&slots[i].done);
	}
	print_message("%d snapshots by the module: %zu of %zu calls disturbed\n", rounds, disturbed,
		      blocking_count);
	assert_int_equal(disturbed, 0);
	blocking_release(slots);
	check_results(slots);
	assert_int_equal(waitpid(stem, NULL, 0), stem);
	blocking_end(slots);
	lab_deinit(&l);
}

/* ---- a victim ---- */

/* At the same address in the victim, which is a copy of this process. */
static volatile struct {
	unsigned long counted, woken, errors;
	int ready;
} live;

static void *compute(void *unused)
{
	(void)unused;
	for (;;)
		live.counted++;
	return NULL;
}

enum victim { PLAIN, PENDING, FILTERED };

static void filter(void)
{
	struct sock_filter code[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	struct sock_fprog prog = { 1, code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
		_exit(1);
}

/* One thread computes, one sleeps in epoll_wait(2), which any stop ends with EINTR. */
static void run_victim(enum victim kind)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int pipes[2], ep;
	pthread_t thread;
	sigset_t set;
	char c;

	if (setsid() < 0 || syscall(SYS_close_range, 0, ~0U, 0) < 0)
		_exit(1);
	for (int i = 0; i < 3; i++)
		if (open("/dev/null", O_RDWR) != i)
			_exit(1);
	ep = epoll_create1(0);
	if (pipe(pipes) < 0 || dup2(pipes[1], FD_FIRST) < 0 ||
	    epoll_ctl(ep, EPOLL_CTL_ADD, pipes[0], &ev) < 0)
		_exit(1);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	if (kind == FILTERED)
		filter();
	if (kind == PENDING && (sigprocmask(SIG_BLOCK, &set, NULL) < 0 || raise(SIGUSR1)))
		_exit(1);
	if (pthread_create(&thread, NULL, compute, NULL) != 0)
		_exit(1);
	for (live.ready = 1;;) {
		if (epoll_wait(ep, &ev, 1, -1) == 1 && read(pipes[0], &c, 1) == 1)
			live.woken++;
		else
			live.errors++;
	}
}

static void peek(pid_t pid, void *to, const volatile void *from, size_t size)
{
	struct iovec local = { to, size }, remote = { (void *)from, size };

	assert_int_equal(process_vm_readv(pid, &local, 1, &remote, 1, 0), (ssize_t)size);
}

static unsigned long peek_long(pid_t pid, const volatile unsigned long *from)
{
	unsigned long value;

	peek(pid, &value, from, sizeof(value));
	return value;
}

static void await_more(pid_t pid, const volatile unsigned long *from, unsigned long than)
{
	for (int ms = 0; peek_long(pid, from) <= than; ms++) {
		assert_true(ms < slow(AWAIT_MS));
		usleep(1000);
	}
}

static pid_t start_victim(enum victim kind)
{
	pid_t pid = fork();
	int ready = 0;

	assert_true(pid >= 0);
	if (pid == 0)
		run_victim(kind);
	for (int ms = 0; !ready; ms++) {
		assert_true(ms < slow(AWAIT_MS));
		usleep(1000);
		peek(pid, &ready, &live.ready, sizeof(ready));
	}
	await_more(pid, &live.counted, 0);
	usleep(20000); /* and fall asleep */
	return pid;
}

static void wake_victim(pid_t pid)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, FD_FIRST, 0);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, "x", 1), 1);
	close(fd);
	close(pidfd);
}

/* Computes, wakes, and has seen no EINTR. */
static void check_victim(pid_t pid)
{
	unsigned long woken = peek_long(pid, &live.woken);

	await_more(pid, &live.counted, peek_long(pid, &live.counted));
	wake_victim(pid);
	await_more(pid, &live.woken, woken);
	assert_int_equal(peek_long(pid, &live.errors), 0);
}

static void end_victim(pid_t pid)
{
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_moved(void **state)
{
	unsigned long before;
	struct lab l;
	pid_t pid;

	(void)state;
	need_module();
	lab_init(&l);
	pid = start_victim(PLAIN);
	lab_freeze(&l, pid);
	before = peek_long(pid, &live.counted);
	check(&l, gentle_verify(&l.tree), "verify");
	wake_victim(pid);
	for (int ms = 0; gentle_verify(&l.tree) != -EAGAIN; ms++) {
		assert_true(ms < slow(AWAIT_MS));
		usleep(1000);
	}
	/* Its call has ended, but no instruction of it ran. */
	assert_int_equal(peek_long(pid, &live.counted), before);
	assert_int_equal(peek_long(pid, &live.woken), 0);
	thaw_tree(&l.tree);
	await_more(pid, &live.woken, 0);
	check_victim(pid);
	end_victim(pid);
	lab_deinit(&l);
}

/* ---- snapshots ---- */

struct hooks {
	pid_t pid;
	int frozen, collected; /* how often */
	int wake;	       /* so many pauses see a call end */
	int die;	       /* 1: in frozen(), 2: in collected() */
	int signal;	       /* sent in the first pause */
};

static int on_frozen(void *ctx)
{
	struct hooks *h = ctx;

	if (h->die == 1)
		raise(SIGKILL);
	if (h->frozen++ == 0 && h->signal)
		kill(h->pid, h->signal);
	if (h->wake-- > 0)
		wake_victim(h->pid);
	return 0;
}

static int on_collected(void *ctx)
{
	struct hooks *h = ctx;

	h->collected++;
	if (h->die == 2)
		raise(SIGKILL);
	return 0;
}

static struct native_result take(struct hooks *h)
{
	struct take_config config = { .root = h->pid, .mem.buffer_bytes = 8 << 20 };
	char reason[NATIVE_REASON_MAX] = "", path[] = "/tmp/test-gentle-images-XXXXXX";
	struct take_order order = { .frozen = on_frozen,
				    .collected = on_collected,
				    .deadline_ms = slow(DEADLINE_MS),
				    .ctx = h };
	struct native_result result = { 0 };
	struct taker *taker;

	assert_non_null(mkdtemp(path));
	order.images = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (take_create(&config, &taker, reason) < 0 ||
	    take_snapshot(taker, &order, &result, reason) < 0)
		fail_msg("%s", reason);
	take_destroy(taker);
	close(order.images);
	assert_int_equal(remove_tree_at(AT_FDCWD, path), 0);
	return result;
}

/* In a process of its own: whoever traces a child of its own would also reap it. */
static void take_apart(struct hooks *h, const char *by, const char *why, int frozen)
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		struct native_result result = take(h);
		bool right = !strcmp(result.stopped_by, by) &&
			     (!why || strstr(result.not_gentle, why)) && h->frozen == frozen;

		fprintf(stderr,
			"%d pauses, the last of %llu us by %s (freeze %u state %u regs %u files %u "
			"scan %u copy %u wait %u thaw %u)%s%s\n",
			h->frozen, (unsigned long long)result.pause_us, result.stopped_by,
			result.freeze_us, result.state_us, result.regs_us, result.files_us,
			result.scan_us, result.copy_us, result.wait_us, result.thaw_us,
			result.not_gentle[0] ? ": " : "", result.not_gentle);
		_exit(right ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (h->die)
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	else
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_snapshots(void **state)
{
	static const struct {
		enum victim kind;
		struct hooks hooks;
		const char *by, *why;
		int frozen;
	} cases[] = {
		{ PLAIN, { 0 }, "module", NULL, 1 },
		/* A call that ends in the pause: looked at again. */
		{ PLAIN, { .wake = 1 }, "module", NULL, 2 },
		{ PLAIN, { .wake = 9 }, "ptrace", "moved", 4 },
		{ PENDING, { 0 }, "ptrace", "signals wait", 1 },
		{ FILTERED, { 0 }, "ptrace", "seccomp", 1 },
	};

	(void)state;
	need_module();
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct hooks h = cases[i].hooks;

		h.pid = start_victim(cases[i].kind);
		take_apart(&h, cases[i].by, cases[i].why, cases[i].frozen);
		check_victim(h.pid);
		end_victim(h.pid);
	}
}

static void test_killed(void **state)
{
	struct hooks h = { 0 };

	(void)state;
	need_module();
	h.pid = start_victim(PLAIN);
	for (h.die = 1; h.die <= 2; h.die++) {
		take_apart(&h, "module", NULL, 0);
		check_victim(h.pid);
	}
	end_victim(h.pid);
}

/* ---- restore ---- */

/* What a victim saw of its own time; at the same address in the restored one. */
static volatile struct {
	uint64_t begin_ns, end_ns[3];
} timed;

static uint64_t mono_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void *sleep_until(void *unused)
{
	uint64_t at_ns = timed.begin_ns + SLEEP_S * 1000000000ull;
	struct timespec at = { .tv_sec = (time_t)(at_ns / 1000000000),
			       .tv_nsec = (long)(at_ns % 1000000000) };

	(void)unused;
	if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == 0)
		timed.end_ns[1] = mono_ns();
	return NULL;
}

static void *sleep_poll(void *unused)
{
	struct timespec ts = { .tv_sec = SLEEP_S };

	(void)unused;
	if (ppoll(NULL, 0, &ts, NULL) == 0)
		timed.end_ns[2] = mono_ns();
	return NULL;
}

static void run_sleepers(void)
{
	struct timeval tv = { .tv_sec = SLEEP_S };
	pthread_t threads[2];

	if (setsid() < 0 || syscall(SYS_close_range, 0, ~0U, 0) < 0)
		_exit(1);
	for (int i = 0; i < 3; i++)
		if (open("/dev/null", O_RDWR) != i)
			_exit(1);
	timed.begin_ns = mono_ns();
	if (pthread_create(&threads[0], NULL, sleep_until, NULL) != 0 ||
	    pthread_create(&threads[1], NULL, sleep_poll, NULL) != 0)
		_exit(1);
	if (select(0, NULL, NULL, NULL, &tv) == 0)
		timed.end_ns[0] = mono_ns();
	for (;;)
		pause();
}

static int run(const char *const *argv)
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		if (!strcmp(argv[0], "dump"))
			_exit(oneshot_main(7, (char **)(uintptr_t)argv));
		execv(argv[0], (char **)(uintptr_t)argv);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void need_criu(char path[PATH_MAX])
{
	const char *given = getenv("DECAMP_CRIU");
	FILE *f = given ? NULL : popen("scripts/criu 2>/dev/null", "re");

	path[0] = '\0';
	if (given)
		snprintf(path, PATH_MAX, "%s", given);
	else if (f && fgets(path, PATH_MAX, f))
		path[strcspn(path, "\n")] = '\0';
	if (f)
		pclose(f);
	if (access(path, X_OK) == 0)
		return;
	print_message("SKIP: no criu: DECAMP_CRIU names it\n");
	skip();
}

static void check_log(const char *images)
{
	_cleanup_free_ char *text = NULL;
	char path[128];

	snprintf(path, sizeof(path), "%s/dump.log", images);
	assert_int_equal(read_file_at(AT_FDCWD, path, 1 << 16, &text, NULL), 0);
	print_message("%s", text);
	assert_non_null(strstr(text, "stopped by module"));
}

/*
 * Three sleepers are stopped in the middle of their time by the module, killed, and restored by CRIU:
 * each sleeps for what was left, or until its time has come.
 */
static void test_restore(void **state)
{
	char criu[PATH_MAX], images[96], pid[16];
	uint64_t dumped_ns, restored_ns, total_ns = SLEEP_S * 1000000000ull;
	pid_t victim;

	(void)state;
	need_module();
	need_criu(criu);
	snprintf(images, sizeof(images), "%s/images", folder);
	assert_int_equal(mkdir(images, 0700), 0);
	victim = fork();
	if (victim == 0)
		run_sleepers();
	sleep(SLEEP_S / 2);
	snprintf(pid, sizeof(pid), "%d", victim);
	assert_int_equal(run((const char *[]){ "dump", "--tree", pid, "--images-dir", images,
					       "--leave-running", "--shell-job", NULL }),
			 ONESHOT_DONE);
	dumped_ns = mono_ns();
	check_log(images);
	end_victim(victim);
	assert_int_equal(run((const char *[]){ criu, "restore", "-D", images, "-d", "--shell-job",
					       "-o", "restore.log", NULL }),
			 0);
	restored_ns = mono_ns();
	sleep(SLEEP_S / 2 + SLACK_S);
	for (int i = 0; i < 3; i++) {
		uint64_t begin_ns, end_ns;

		peek(victim, &begin_ns, &timed.begin_ns, sizeof(begin_ns));
		peek(victim, &end_ns, &timed.end_ns[i], sizeof(end_ns));
		if (!end_ns)
			fail_msg("sleeper %d has slept for too long", i);
		print_message("sleeper %d: %.1f s, of which %.1f s between dump and restore\n", i,
			      (double)(end_ns - begin_ns) / 1e9,
			      (double)(restored_ns - dumped_ns) / 1e9);
		assert_true(end_ns - begin_ns >= total_ns);
		/* Until its time has come; the others have not lived through the gap. */
		if (i == 1)
			assert_true(end_ns - begin_ns < total_ns + SLACK_S * 1000000000ull);
	}
	kill(victim, SIGKILL);
}

static int setup(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	return remove_tree_at(AT_FDCWD, folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {

		cmocka_unit_test(test_blocking_calls), cmocka_unit_test(test_moved),
		cmocka_unit_test(test_snapshots),      cmocka_unit_test(test_killed),
		cmocka_unit_test(test_restore),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
