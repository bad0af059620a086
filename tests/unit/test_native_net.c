// SPDX-License-Identifier: LGPL-2.1-or-later
/* A tracer that dies in the middle of an injected call: the program goes on as if nothing had been. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/native/freeze.h"
#include "agent/util/cleanup.h"

enum { ROUNDS = 30, TRIES = 8, TICK_MS = 20, AWAIT_MS = 30000, OTHER_STACK = 64 << 10 };

/* What a program says of itself, in memory that both see. */
struct report {
	volatile uint64_t steps;
	volatile uint64_t alternate; /* stack for handlers */
	volatile int bad;	     /* 1: registers, 2: mask, 3: a call returned early */
};

static void nap_ms(long ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

/* Registers that are checked all the time, and a mask of its own. */
static void compute(struct report *report)
{
	double a = 1.25, b = 1.25;
	uint64_t x = 1, y = ~UINT64_C(1);
	sigset_t mask;

	for (;; report->steps++) {
		for (int i = 0; i < 100000; i++) {
			__asm__ volatile("" : "+x"(a), "+x"(b), "+r"(x), "+r"(y));
			if (x != ~y || a != b)
				report->bad = 1;
			x += 3;
			y = ~x;
		}
		sigprocmask(SIG_BLOCK, NULL, &mask);
		if (!sigismember(&mask, SIGUSR1) || sigismember(&mask, SIGUSR2))
			report->bad = 2;
	}
}

static void wait_in_poll(struct report *report)
{
	for (;; report->steps++)
		if (poll(NULL, 0, TICK_MS) < 0)
			report->bad = 3;
}

static void wait_in_sleep(struct report *report)
{
	for (;; report->steps++) {
		struct timespec ts = { .tv_nsec = TICK_MS * 1000000 };

		if (nanosleep(&ts, NULL) < 0)
			report->bad = 3;
	}
}

/* As Go's goroutines: the stack is a piece of the heap. */
static void on_other_stack(struct report *report)
{
	static ucontext_t here, there;
	void *heap = malloc(OTHER_STACK);
	stack_t alternate = { .ss_sp = malloc(OTHER_STACK), .ss_size = OTHER_STACK };

	if (!heap || !alternate.ss_sp || sigaltstack(&alternate, NULL) < 0 ||
	    getcontext(&there) < 0)
		return;
	there.uc_stack.ss_sp = heap;
	there.uc_stack.ss_size = OTHER_STACK;
	makecontext(&there, (void (*)(void))compute, 1, report);
	report->alternate = (uint64_t)(uintptr_t)alternate.ss_sp;
	swapcontext(&here, &there);
}

static pid_t start(void (*program)(struct report *report), struct report *report)
{
	sigset_t mask;
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	program(report);
	_exit(1);
}

/* Dies with the thread moved away from its work. */
static int die(void *ctx, struct injection *i)
{
	const uint64_t args[6] = { 0 };
	int64_t result;

	if (*(int *)ctx > 0 && inject_syscall(i, SYS_getpid, args, &result) < 0)
		_exit(2);
	kill(getpid(), SIGKILL);
	return -EIO;
}

static int die_in_injection(pid_t target, const struct report *report, int calls)
{
	struct state_thread state = { .sas_sp = report->alternate,
				      .sas_size = report->alternate ? OTHER_STACK : 0 };
	struct native_thread thread = { .tid = target, .state = &state };
	struct native_task task = { .pid = target, .threads = &thread, .thread_count = 1 };
	const struct native_tree tree = { .tasks = &task, .task_count = 1 };
	pid_t tracer = fork();
	int status;

	if (tracer == 0)
		_exit(inject(target, &tree, die, &calls) < 0 ? 3 : 4);
	assert_int_equal(waitpid(tracer, &status, 0), tracer);
	return status;
}

static void expect_progress(pid_t pid, const struct report *report)
{
	uint64_t before = report->steps;

	for (int ms = 0; ms < AWAIT_MS && report->steps == before; ms += 10) {
		int status;

		assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
		nap_ms(10);
	}
	assert_true(report->steps > before);
	assert_int_equal(report->bad, 0);
}

static void survive(void (*program)(struct report *report))
{
	struct report *report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	if (geteuid() != 0) {
		print_message("skipped: tracing needs root\n");
		skip();
	}
	assert_true(report != MAP_FAILED);
	pid = start(program, report);
	assert_true(pid > 0);
	expect_progress(pid, report);
	nap_ms(50);
	for (int i = 0; i < ROUNDS; i++) {
		int status = die_in_injection(pid, report, i % 2);

		/* It gives up after two seconds, within which a busy machine may give nothing. */
		for (int k = 0; k < TRIES && !WIFSIGNALED(status); k++)
			status = die_in_injection(pid, report, i % 2);
		if (!WIFSIGNALED(status))
			print_message("the tracer ended by itself: %d\n", status);
		assert_true(WIFSIGNALED(status));
		expect_progress(pid, report);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	munmap(report, sizeof(*report));
}

static void test_registers(void **state)
{
	(void)state;
	survive(compute);
}

static void test_poll(void **state)
{
	(void)state;
	survive(wait_in_poll);
}

static void test_sleep(void **state)
{
	(void)state;
	survive(wait_in_sleep);
}

static void test_other_stack(void **state)
{
	(void)state;
	survive(on_other_stack);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_registers),
		cmocka_unit_test(test_poll),
		cmocka_unit_test(test_sleep),
		cmocka_unit_test(test_other_stack),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
