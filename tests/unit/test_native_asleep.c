// SPDX-License-Identifier: LGPL-2.1-or-later
/* What may be done with threads that sleep in system calls: 45 real ones, and rare kinds. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/native/asleep.h"
#include "agent/util/io.h"
#include "tests/unit/blocking_calls.h"

static char folder[] = "/tmp/test-asleep-XXXXXX";

static struct user_regs_struct regs_in(pid_t pid)
{
	struct user_regs_struct r = { 0 };
	unsigned long long a[6] = { 0 };
	char path[64];
	long nr = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%ld %llx %llx %llx %llx %llx %llx", &nr, &a[0], &a[1], &a[2],
				&a[3], &a[4], &a[5]),
			 7);
	fclose(f);
	r.orig_rax = (unsigned long long)nr;
	r.rdi = a[0];
	r.rsi = a[1];
	r.rdx = a[2];
	r.r10 = a[3];
	r.r8 = a[4];
	r.r9 = a[5];
	return r;
}

static bool is_woken(const struct blocking *b)
{
	static const char *const names[] = { "write",	    "ppoll",	   "sigsuspend",
					     "nanosleep",   "poll, timed", "clock_nanosleep",
					     "futex, timed" };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(b->name, names[i]))
			return true;
	return false;
}

/* No signal of ours may end a call before it is looked at: they wait for their releases. */
static void test_sleepers(void **state)
{
	struct slot *slots = blocking_prepare(folder);
	pid_t stem = blocking_start(slots);

	(void)state;
	for (size_t i = 0; i < blocking_count; i++) {
		const struct blocking *b = &blocking_calls[i];
		struct user_regs_struct r = regs_in(slots[i].pid);

		/* The timed ones may be over on a slow machine. */
		if (b->timed && (atomic_load(&slots[i].done) || (long)r.orig_rax != b->nr))
			continue;
		if (asleep_in(slots[i].pid, &r) != (is_woken(b) ? ASLEEP_WAKE : ASLEEP_AGAIN))
			fail_msg("%s: %d", b->name, asleep_in(slots[i].pid, &r));
	}
	kill(stem, SIGKILL);
	assert_int_equal(waitpid(stem, NULL, 0), stem);
	blocking_end(slots);
}

struct question {
	const char *name;
	long nr;
	uint64_t args[5];
	enum asleep answer;
};

static void ask(const struct question *q)
{
	struct user_regs_struct r = { .orig_rax = (unsigned long long)q->nr,
				      .rdi = q->args[0],
				      .rsi = q->args[1],
				      .rdx = q->args[2],
				      .r10 = q->args[3],
				      .r8 = q->args[4] };
	enum asleep answer = asleep_in(getpid(), &r);

	if (answer != q->answer)
		fail_msg("%s: %d instead of %d", q->name, answer, q->answer);
}

static void ask_all(const struct question *questions, size_t count)
{
	for (size_t i = 0; i < count; i++)
		ask(&questions[i]);
}

static void test_sockets(void **state)
{
	struct timeval limit = { .tv_sec = 60 };
	int pair[2], timed[2], packets[2], low[2], two = 2;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, timed), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, low), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets), 0);
	assert_int_equal(setsockopt(timed[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
	assert_int_equal(setsockopt(timed[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)), 0);
	assert_int_equal(setsockopt(low[0], SOL_SOCKET, SO_RCVLOWAT, &two, sizeof(two)), 0);
	const uint64_t stream = (uint64_t)pair[0], hurry = (uint64_t)timed[0],
		       packet = (uint64_t)packets[0], all = MSG_WAITALL, one = MSG_WAITFORONE;
	const struct question questions[] = {
		{ "recv", SYS_recvfrom, { stream, 0, 9, 0 }, ASLEEP_AGAIN },
		{ "all of it", SYS_recvfrom, { stream, 0, 9, all }, ASLEEP_WAKE },
		{ "all of it, in time", SYS_recvfrom, { hurry, 0, 9, all }, ASLEEP_UNKNOWN },
		{ "all of it by recvmsg", SYS_recvmsg, { stream, 0, all }, ASLEEP_WAKE },
		{ "all of a packet", SYS_recvfrom, { packet, 0, 9, all }, ASLEEP_AGAIN },
		{ "at least two bytes", SYS_read, { (uint64_t)low[0], 0, 9 }, ASLEEP_WAKE },
		{ "two messages", SYS_recvmmsg, { packet, 0, 2, 0 }, ASLEEP_UNKNOWN },
		{ "one of two", SYS_recvmmsg, { packet, 0, 2, one }, ASLEEP_AGAIN },
		{ "send little", SYS_sendto, { hurry, 0, 4096 }, ASLEEP_AGAIN },
		{ "send much", SYS_sendto, { stream, 0, 1 << 20 }, ASLEEP_WAKE },
		{ "send much in time", SYS_sendto, { hurry, 0, 1 << 20 }, ASLEEP_UNKNOWN },
		{ "send a packet", SYS_sendmsg, { packet, 0, 0 }, ASLEEP_AGAIN },
		{ "send several", SYS_sendmmsg, { packet, 0, 2 }, ASLEEP_UNKNOWN },
	};

	ask_all(questions, ARRAY_SIZE(questions));
	for (int i = 0; i < 2; i++) {
		close(pair[i]);
		close(timed[i]);
		close(packets[i]);
		close(low[i]);
	}
}

static void ask_terminal(void)
{
	int tty = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), other;

	assert_true(tty >= 0 && grantpt(tty) == 0 && unlockpt(tty) == 0);
	other = open(ptsname(tty), O_RDWR | O_NOCTTY | O_CLOEXEC);
	assert_true(other >= 0);
	ask(&(struct question){ "a terminal", SYS_read, { (uint64_t)other, 0, 9 }, ASLEEP_WAKE });
	close(other);
	close(tty);
}

static void test_questions(void **state)
{
	int pipes[2], event = eventfd(0, EFD_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC);

	(void)state;
	assert_int_equal(pipe(pipes), 0);
	assert_true(event >= 0 && null >= 0);
	const uint64_t in = (uint64_t)pipes[0], out = (uint64_t)pipes[1], file = (uint64_t)null;
	const struct question questions[] = {
		{ "write a pipe", SYS_write, { out, 0, 1 }, ASLEEP_WAKE },
		{ "writev a pipe", SYS_writev, { out, 0, 1 }, ASLEEP_WAKE },
		{ "write a counter", SYS_write, { (uint64_t)event, 0, 8 }, ASLEEP_AGAIN },
		{ "read a file", SYS_read, { file, 0, 8 }, ASLEEP_UNKNOWN },
		{ "read no file", SYS_read, { 987654, 0, 8 }, ASLEEP_UNKNOWN },
		{ "splice", SYS_splice, { in, 0 }, ASLEEP_UNKNOWN },
		{ "ioctl", SYS_ioctl, { in, 0 }, ASLEEP_UNKNOWN },
		{ "close", SYS_close, { in }, ASLEEP_UNKNOWN },
		{ "vfork", SYS_vfork, { 0 }, ASLEEP_UNKNOWN },
		{ "requeue", SYS_futex, { 0, FUTEX_WAIT_REQUEUE_PI }, ASLEEP_UNKNOWN },
		{ "F_SETLK", SYS_fcntl, { file, F_SETLK }, ASLEEP_UNKNOWN },
		{ "two events", SYS_io_getevents, { 0, 2 }, ASLEEP_UNKNOWN },
		{ "open to create", SYS_openat, { 0, 0, O_CREAT | O_RDWR }, ASLEEP_UNKNOWN },
		{ "select, timed", SYS_select, { 1, 1, 0, 0, 4096 }, ASLEEP_WAKE },
		{ "ppoll, untimed", SYS_ppoll, { 4096, 1, 0 }, ASLEEP_AGAIN },
		{ "poll, untimed", SYS_poll, { 4096, 1, 0xffffffff }, ASLEEP_AGAIN },
		{ "poll, timed", SYS_poll, { 4096, 1, 9 }, ASLEEP_WAKE },
		{ "sleep until", SYS_clock_nanosleep, { 0, TIMER_ABSTIME, 4096 }, ASLEEP_AGAIN },
		{ "sleep", SYS_clock_nanosleep, { 0, 0, 4096 }, ASLEEP_WAKE },
		{ "wait for a word", SYS_futex, { 4096, FUTEX_WAIT_PRIVATE, 0, 0 }, ASLEEP_AGAIN },
		{ "the same, timed", SYS_futex, { 4096, FUTEX_WAIT, 0, 4096 }, ASLEEP_WAKE },
		{ "until", SYS_futex, { 4096, FUTEX_WAIT_BITSET, 0, 4096 }, ASLEEP_AGAIN },
		{ "a restart", SYS_restart_syscall, { 0 }, ASLEEP_AGAIN },
	};

	ask_all(questions, ARRAY_SIZE(questions));
	ask_terminal();
	close(pipes[0]);
	close(pipes[1]);
	close(event);
	close(null);
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
		cmocka_unit_test(test_questions),
		cmocka_unit_test(test_sockets),
		cmocka_unit_test(test_sleepers),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
