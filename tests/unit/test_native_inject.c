// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * System calls made for a process: the descriptor of an attach, under seccomp, in a stopped job;
 * refused in a frozen cgroup; and what restartable sequences become.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/native/freeze_internal.h"
#include "agent/util/io.h"
#include "tests/unit/freeze_lab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

enum { INJECTIONS = 100, SEQUENCES = 50, TRIES = 8, AWAIT_MS = 30000 };

static void await_more(const atomic_long *count, long than)
{
	for (int ms = 0; atomic_load(count) <= than; ms++) {
		assert_true(ms < slow(AWAIT_MS));
		freeze_lab_sleep_us(1000);
	}
}

static void await_state(pid_t pid, char state)
{
	for (int ms = 0; freeze_lab_state(pid) != state; ms++) {
		assert_true(ms < slow(AWAIT_MS));
		freeze_lab_sleep_us(1000);
	}
}

static void computes(struct freeze_page *page)
{
	atomic_store(&page->ready, 1);
	while (!atomic_load(&page->stop)) {
		uint64_t a = 1;

		for (int i = 0; i < 10000; i++)
			a = a * 6364136223846793005ull + 1442695040888963407ull;
		if (!page->value[0])
			page->value[0] = (long)a;
		if (page->value[0] != (long)a)
			atomic_store(&page->wrong, 1);
		atomic_fetch_add(&page->count[0], 1);
	}
}

/* As an attach does: make it, fetch it, close it there. */
static int get_uffd(void *ctx, struct injection *i)
{
	uint64_t make[6] = { O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY }, shut[6] = { 0 };
	int64_t fd, result;
	int *ret = ctx, pidfd, r;

	r = inject_syscall(i, SYS_userfaultfd, make, &fd);
	if (r < 0 || fd < 0)
		return r < 0 ? r : (int)fd;
	pidfd = (int)syscall(SYS_pidfd_open, ret[0], 0);
	ret[1] = (int)syscall(SYS_pidfd_getfd, pidfd, (int)fd, 0);
	close(pidfd);
	shut[0] = (uint64_t)fd;
	r = inject_syscall(i, SYS_close, shut, &result);
	return r < 0 ? r : (int)result;
}

/* It gives up after two seconds, within which a victim may get nothing of a busy machine. */
static int inject_again(pid_t pid, int (*fn)(void *ctx, struct injection *i), void *ctx)
{
	int r = -EOPNOTSUPP;

	for (int i = 0; r == -EOPNOTSUPP && i < TRIES; i++)
		r = inject(pid, NULL, fn, ctx);
	return r;
}

static void check_attach(pid_t pid)
{
	int both[2] = { pid, -1 };
	int r = inject_again(pid, get_uffd, both);

	if (r < 0)
		fail_msg("inject: %s", strerror(-r));
	assert_true(both[1] >= 0);
	close(both[1]);
}

static int get_ppid(void *ctx, struct injection *i)
{
	const uint64_t args[6] = { 0 };

	return inject_syscall(i, SYS_getppid, args, ctx);
}

static int makes_none(void *ctx, struct injection *i)
{
	(void)ctx;
	(void)i;
	return -ECANCELED;
}

static void test_attach(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, computes);
	uint64_t from, us;
	long before;

	freeze_lab_await_ready(lab, 1);
	assert_int_equal(inject(pid, NULL, makes_none, NULL), -ECANCELED);
	from = now_boot_ns();
	for (int i = 0; i < INJECTIONS; i++)
		check_attach(pid);
	us = (now_boot_ns() - from) / 1000 / INJECTIONS;
	print_message("an attach takes %llu us\n", (unsigned long long)us);
	before = atomic_load(&lab->page->count[0]);
	await_more(&lab->page->count[0], before);
	atomic_store(&lab->page->stop, 1);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(atomic_load(&lab->page->wrong), 0);
	assert_int_equal(inject(pid, NULL, makes_none, NULL), -ESRCH);
}

static struct freeze_page *handler_page;

static void on_signal(int signo)
{
	(void)signo;
	atomic_fetch_add(&handler_page->count[1], 1);
}

static void takes_signals(struct freeze_page *page)
{
	struct sigaction sa = { .sa_handler = on_signal };

	handler_page = page;
	sigaction(SIGRTMIN, &sa, NULL);
	/* Taken from it by whoever lets it step singly. */
	signal(SIGTRAP, SIG_IGN);
	computes(page);
}

static void test_signals_meanwhile(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, takes_signals), from;
	int status;

	freeze_lab_await_ready(lab, 1);
	from = fork();
	if (from == 0) {
		freeze_lab_die_with_parent();
		while (!atomic_load(&lab->page->count[2])) {
			if (sigqueue(pid, SIGRTMIN, (union sigval){ 0 }) == 0)
				lab->page->value[1]++;
			freeze_lab_sleep_us(20);
		}
		_exit(0);
	}
	for (int i = 0; i < INJECTIONS; i++) {
		int64_t parent = 0;

		assert_int_equal(inject_again(pid, get_ppid, &parent), 0);
		assert_int_equal(parent, getpid());
	}
	kill(pid, SIGTRAP);
	freeze_lab_sleep_us(20000);
	assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
	/* Not stopped: it could stand between sending and counting. */
	atomic_store(&lab->page->count[2], 1);
	assert_int_equal(waitpid(from, &status, 0), from);
	await_more(&lab->page->count[1], lab->page->value[1] - 1);
	freeze_lab_sleep_us(20000);
	assert_int_equal(atomic_load(&lab->page->count[1]), lab->page->value[1]);
	print_message("%ld signals\n", lab->page->value[1]);
	assert_int_equal(atomic_load(&lab->page->wrong), 0);
}

/* Kills whoever calls userfaultfd. */
static void filtered(struct freeze_page *page)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = ARRAY_SIZE(code), .filter = code };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
		atomic_store(&page->wrong, errno);
	computes(page);
}

static void test_seccomp(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, filtered);
	int both[2] = { pid, -1 }, r;

	freeze_lab_await_ready(lab, 1);
	assert_int_equal(atomic_load(&lab->page->wrong), 0);
	r = inject(pid, NULL, get_uffd, both);
	freeze_lab_sleep_us(20000);
	await_state(pid, 'R');
	if (r == -EOPNOTSUPP) {
		print_message("skipped: seccomp cannot be suspended here\n");
		skip();
	}
	assert_int_equal(r, 0);
	close(both[1]);
	/* The filter is in force again. */
	assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
}

static void test_group_stop(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, computes);
	int status;
	long before;

	freeze_lab_await_ready(lab, 1);
	kill(pid, SIGSTOP);
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	before = atomic_load(&lab->page->count[0]);
	for (int i = 0; i < 5; i++) {
		check_attach(pid);
		await_state(pid, 'T');
	}
	assert_int_equal(atomic_load(&lab->page->count[0]), before);
	kill(pid, SIGCONT);
	await_more(&lab->page->count[0], before);
	assert_int_equal(atomic_load(&lab->page->wrong), 0);
}

static void test_frozen_cgroup(void **state)
{
	bool stands = true;
	static const char *const roots[] = { "/sys/fs/cgroup/unified", "/sys/fs/cgroup" };
	struct freeze_lab *lab = *state;
	char folder[128] = "", path[160], number[32];
	long before = 0;
	pid_t pid;
	int r = -ENOENT, r2;

	for (size_t i = 0; i < ARRAY_SIZE(roots) && !folder[0]; i++) {
		snprintf(path, sizeof(path), "%s/cgroup.procs", roots[i]);
		if (access(path, W_OK) == 0)
			snprintf(folder, sizeof(folder), "%s/test-inject-%d", roots[i], getpid());
	}
	if (!folder[0] || mkdir(folder, 0755) < 0) {
		print_message("skipped: no cgroup v2 to freeze\n");
		skip();
	}
	pid = freeze_lab_start(lab, computes);
	freeze_lab_await_ready(lab, 1);
	snprintf(number, sizeof(number), "%d", pid);
	snprintf(path, sizeof(path), "%s/cgroup.procs", folder);
	r2 = write_kernel_file(path, number);
	snprintf(path, sizeof(path), "%s/cgroup.freeze", folder);
	if (r2 == 0)
		r2 = write_kernel_file(path, "1");
	if (r2 == 0) {
		int both[2] = { pid, -1 };

		stands = freeze_lab_await_frozen(folder);
		before = atomic_load(&lab->page->count[0]);
		r = inject(pid, NULL, get_uffd, both);
		r2 = write_kernel_file(path, "0");
	}
	for (int ms = 0; ms < slow(AWAIT_MS) && atomic_load(&lab->page->count[0]) <= before; ms++)
		freeze_lab_sleep_us(1000);
	before -= atomic_load(&lab->page->count[0]);
	freeze_lab_end(pid);
	for (int ms = 0; rmdir(folder) < 0 && ms < slow(AWAIT_MS); ms++)
		freeze_lab_sleep_us(1000);
	assert_true(stands);
	if (r2 < 0) {
		print_message("skipped: the cgroup cannot be frozen\n");
		skip();
	}
	assert_int_equal(r, -EOPNOTSUPP);
	assert_int_equal(atomic_load(&lab->page->wrong), 0);
	assert_true(before < 0); /* it goes on */
}

/* Restartable sequences: one that never ends but by being aborted. */

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

struct rseq_descriptor {
	uint32_t version, flags;
	uint64_t start_ip, post_commit_offset, abort_ip;
} __attribute__((aligned(32)));

/* value: 0 aborts so far, 1 start, 2 abort. */
static void sequences(struct freeze_page *page)
{
	static struct rseq_descriptor cs;

	if (!&__rseq_size || !__rseq_size) {
		atomic_store(&page->wrong, 1);
		atomic_store(&page->ready, 1);
		return;
	}
	__asm__ volatile("lea 1f(%%rip), %%rax\n\t"
			 "lea 2f(%%rip), %%rcx\n\t"
			 "sub %%rax, %%rcx\n\t"
			 "mov %%rax, 8(%0)\n\t"
			 "mov %%rcx, 16(%0)\n\t"
			 "mov %%rax, 8(%2)\n\t"
			 "lea 4f(%%rip), %%rax\n\t"
			 "mov %%rax, 24(%0)\n\t"
			 "mov %%rax, 16(%2)\n\t"
			 "movl $1, (%3)\n\t"
			 "jmp 3f\n\t"
			 ".long 0x53053053\n\t"
			 "4: incq (%2)\n\t"
			 "3: mov %0, 8(%1)\n\t"
			 "1: jmp 1b\n\t"
			 "2: jmp 3b\n\t"
			 :
			 : "r"(&cs), "r"((char *)__builtin_thread_pointer() + __rseq_offset),
			   "r"(page->value), "r"(&page->ready)
			 : "rax", "rcx", "memory");
}

static void test_sequences(void **state)
{
	struct freeze_lab *lab = *state;
	pid_t pid = freeze_lab_start(lab, sequences);
	const struct native_thread *t;
	int inside = 0;

	freeze_lab_await_ready(lab, 1);
	if (atomic_load(&lab->page->wrong)) {
		print_message("skipped: no restartable sequences here\n");
		skip();
	}
	for (int i = 0; i < SEQUENCES; i++) {
		int64_t parent = 0;
		long aborts;
		bool in;

		freeze_lab_freeze(lab, pid);
		aborts = lab->page->value[0];
		t = &lab->tree.tasks[0].threads[0];
		in = (long)t->regs.rip == lab->page->value[2] && t->rseq_cs;
		inside += in;
		if ((long)t->regs.rip == lab->page->value[1] && t->rseq_cs)
			fail_msg("an image would go on within a sequence");
		if ((long)t->regs.rip == lab->page->value[1] && !t->rseq_cs)
			fail_msg("a sequence goes on that was not aborted");
		thaw_tree(&lab->tree);
		freeze_lab_sleep_us(2000);
		assert_int_equal(inject_again(pid, get_ppid, &parent), 0);
		assert_int_equal(parent, getpid());
		/* From the abort it goes into the next. */
		for (int ms = 0; in && lab->page->value[0] == aborts; ms++) {
			assert_true(ms < slow(AWAIT_MS));
			freeze_lab_sleep_us(1000);
		}
		freeze_lab_sleep_us(5000);
	}
	print_message("%d of %d in a sequence, %ld aborts\n", inside, SEQUENCES,
		      lab->page->value[0]);
	assert_true(inside > SEQUENCES / 2);
	assert_true(lab->page->value[0] > SEQUENCES / 2);
}

#define frozen_test(f) cmocka_unit_test_setup_teardown(f, freeze_lab_setup, freeze_lab_teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		frozen_test(test_attach),    frozen_test(test_signals_meanwhile),
		frozen_test(test_seccomp),   frozen_test(test_group_stop),
		frozen_test(test_sequences), frozen_test(test_frozen_cgroup),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
