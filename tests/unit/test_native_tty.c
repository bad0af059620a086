// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Pseudo terminals whose ends are both in the job: settings, size, session and group, as CRIU's
 * restore brings them back. Terminals from outside are refused.
 */
#include "tests/unit/ipc_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "agent/native/ipc.pb-c.h"

enum { FD_MASTER = 10, FD_SLAVE, FD_OTHER };

#define CHECK(condition)                 \
	do {                             \
		if (!(condition))        \
			return __LINE__; \
	} while (0)

/* A slave that the test itself holds the master of. */
static char outside_name[64];

static int open_pair(void)
{
	struct winsize size = { .ws_row = 31, .ws_col = 101, .ws_xpixel = 3, .ws_ypixel = 4 };
	struct termios t;
	int master, slave;

	CHECK(openpty(&master, &slave, NULL, NULL, &size) == 0);
	CHECK(dup2(master, 100) == 100 && dup2(slave, 101) == 101);
	CHECK(close(master) == 0 && close(slave) == 0);
	CHECK(dup2(100, FD_MASTER) == FD_MASTER && dup2(101, FD_SLAVE) == FD_SLAVE);
	CHECK(close(100) == 0 && close(101) == 0);
	CHECK(tcgetattr(FD_SLAVE, &t) == 0);
	t.c_lflag &= ~(tcflag_t)(ECHO | ICANON);
	t.c_cc[VMIN] = 7;
	CHECK(tcsetattr(FD_SLAVE, TCSANOW, &t) == 0);
	return 0;
}

static int pair_prepare(void)
{
	char name[64];
	int fd;

	CHECK(open_pair() == 0);
	CHECK(ttyname_r(FD_SLAVE, name, sizeof(name)) == 0);
	/* A second end of the slave, open for reading only; no one's controlling terminal. */
	fd = open(name, O_RDONLY | O_NOCTTY);
	CHECK(fd >= 0 && dup2(fd, FD_OTHER) == FD_OTHER);
	return close(fd);
}

static int pair_verify(void)
{
	struct winsize size;
	struct termios t;
	char bytes[16];

	CHECK(ioctl(FD_MASTER, TIOCGWINSZ, &size) == 0);
	CHECK(size.ws_row == 31 && size.ws_col == 101 && size.ws_ypixel == 4);
	CHECK(tcgetattr(FD_SLAVE, &t) == 0);
	CHECK(!(t.c_lflag & (ECHO | ICANON)) && t.c_cc[VMIN] == 7);
	CHECK(write(FD_MASTER, "typed..", 7) == 7);
	CHECK(read(FD_OTHER, bytes, sizeof(bytes)) == 7 && memcmp(bytes, "typed..", 7) == 0);
	CHECK(write(FD_SLAVE, "shown", 5) == 5);
	CHECK(read(FD_MASTER, bytes, sizeof(bytes)) == 5 && memcmp(bytes, "shown", 5) == 0);
	return 0;
}

/* As script(1): the child leads a session on the slave, the parent has the master. */
static int session_prepare(void)
{
	sigset_t none;
	pid_t pid;

	CHECK(open_pair() == 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid > 0) {
		char byte;

		close(FD_SLAVE);
		/* It says so when the session stands. */
		CHECK(read(FD_MASTER, &byte, 1) == 1);
		return 0;
	}
	close(FD_MASTER);
	if (setsid() < 0 || ioctl(FD_SLAVE, TIOCSCTTY, 0) < 0 ||
	    tcsetpgrp(FD_SLAVE, getpid()) < 0 || write(FD_SLAVE, "!", 1) != 1)
		_exit(1);
	sigemptyset(&none);
	for (;;) {
		char byte;

		if (read(FD_SLAVE, &byte, 1) == 1 && tcgetpgrp(FD_SLAVE) == getpid() &&
		    tcgetsid(FD_SLAVE) == getpid())
			(void)!write(FD_SLAVE, &byte, 1);
	}
}

static int session_verify(void)
{
	char byte = 0;

	CHECK(write(FD_MASTER, "q", 1) == 1);
	CHECK(read(FD_MASTER, &byte, 1) == 1 && byte == 'q');
	return 0;
}

static int queued_prepare(void)
{
	CHECK(open_pair() == 0);
	return write(FD_SLAVE, "on its way", 10) != 10;
}

static int outside_prepare(void)
{
	int fd = open(outside_name, O_RDWR | O_NOCTTY);

	return fd < 0 || dup2(fd, FD_SLAVE) != FD_SLAVE || (fd != FD_SLAVE && close(fd) < 0);
}

static int setup(void **state)
{
	static struct ipc_lab lab;
	int master, slave;

	if (openpty(&master, &slave, outside_name, NULL, NULL) < 0) {
		print_message("SKIP: no pseudo terminals here\n");
		return 0;
	}
	if (ipc_lab_init(&lab))
		*state = &lab;
	return 0;
}

static int teardown(void **state)
{
	if (*state)
		ipc_lab_deinit(*state);
	return 0;
}

static NatIpc__TtyInfo *find_info(const char *folder, uint32_t id)
{
	for (size_t n = 0;; n++) {
		NatIpc__TtyInfo *t = (void *)ipc_lab_record(
			folder, "tty-info", &nat_ipc__tty_info__descriptor, n, NULL, NULL);

		if (!t || t->id == id)
			return t;
		nat_ipc__tty_info__free_unpacked(t, NULL);
	}
}

/* Four characters to a word: 19 of them end in the fifth; CRIU leaves the rest as it happens. */
static void forget_rest(NatIpc__TtyInfo *t)
{
	assert_int_equal(t->termios->n_c_cc, 19);
	assert_int_equal(t->termios_locked->n_c_cc, 19);
	for (size_t i = 4; i < 19; i++)
		t->termios->c_cc[i] = t->termios_locked->c_cc[i] = 0;
}

static void test_same_as_criu(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program program = { pair_prepare, pair_verify, 0 };

	if (!lab || !lab->binary[0])
		skip();
	ipc_lab_start(lab, &program);
	if (ipc_lab_take(lab) < 0)
		fail_msg("%s", lab->reason);
	print_message("files_collect took %llu us\n", (unsigned long long)lab->files_ns / 1000);
	ipc_lab_dump(lab);
	for (int fd = FD_MASTER; fd <= FD_OTHER; fd++) {
		NatFiles__File *file = ipc_lab_file(lab, lab->native, fd);
		NatIpc__TtyInfo *a, *b;
		uint8_t x[512], y[512];
		size_t size;

		ipc_lab_same_file(lab, fd);
		a = find_info(lab->native, file->tty->tty_info_id);
		b = find_info(lab->criu, file->tty->tty_info_id);
		nat_files__file__free_unpacked(file, NULL);
		assert_non_null(a);
		assert_non_null(b);
		forget_rest(a);
		forget_rest(b);
		size = nat_ipc__tty_info__pack(a, x);
		assert_int_equal(size, nat_ipc__tty_info__pack(b, y));
		assert_memory_equal(x, y, size);
		nat_ipc__tty_info__free_unpacked(a, NULL);
		nat_ipc__tty_info__free_unpacked(b, NULL);
	}
	assert_int_equal(ipc_lab_ask(lab), 0);
	ipc_lab_stop(lab);
}

static void test_session(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program program = { session_prepare, session_verify,
							IPC_LAB_FAMILY };
	NatIpc__TtyInfo *master;

	if (!lab)
		skip();
	ipc_lab_start(lab, &program);
	if (ipc_lab_take(lab) < 0)
		fail_msg("%s", lab->reason);
	master = (void *)ipc_lab_record(lab->native, "tty-info", &nat_ipc__tty_info__descriptor, 0,
					NULL, NULL);
	assert_non_null(master);
	assert_true(master->sid > (uint32_t)lab->child || master->sid > 1);
	assert_int_equal(master->sid, master->pgrp);
	nat_ipc__tty_info__free_unpacked(master, NULL);
	assert_int_equal(ipc_lab_ask(lab), 0);
	ipc_lab_stop(lab);
}

static void test_restored(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program programs[] = {
		{ pair_prepare, pair_verify, 0 },
		{ session_prepare, session_verify, IPC_LAB_FAMILY },
	};

	ipc_lab_return_each(lab, programs, ARRAY_SIZE(programs));
}

/* Bytes that would be lost: not now. A terminal of somebody else: not at all. */
static void test_refused(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program queued = { queued_prepare, NULL, 0 };
	static const struct ipc_lab_program outside = { outside_prepare, NULL, 0 };

	if (!lab)
		skip();
	ipc_lab_start(lab, &queued);
	assert_int_equal(ipc_lab_take(lab), -EAGAIN);
	assert_non_null(strstr(lab->reason, "on their way"));
	ipc_lab_stop(lab);
	ipc_lab_start(lab, &outside);
	ipc_lab_refuses(lab, "from outside of the job");
	print_message("%s\n", lab->reason);
	ipc_lab_stop(lab);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same_as_criu),
		cmocka_unit_test(test_session),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_restored),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
