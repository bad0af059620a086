// SPDX-License-Identifier: LGPL-2.1-or-later
/* Sealing a memfd of which somebody holds a page: the kernel refuses that after some 75 ms. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util/io.h"

enum { PAGE = 4096, HELD_ALL_THE_TIME = 1000 };

/* A page in a pipe is held; it is let go after so many refusals. */
static int pipe_ends[2];
static int refusals_left, refusals;

/* In place of the C library's: all calls go to the kernel. */
int fcntl(int fd, int cmd, ...)
{
	va_list args;
	long arg, r;

	va_start(args, cmd);
	arg = va_arg(args, long);
	va_end(args);
	r = syscall(SYS_fcntl, fd, cmd, arg);
	if (cmd == F_ADD_SEALS && r < 0 && errno == EBUSY) {
		char page[PAGE];

		refusals++;
		if (--refusals_left == 0)
			assert_int_equal(read(pipe_ends[0], page, sizeof(page)), sizeof(page));
		errno = EBUSY;
	}
	return (int)r;
}

static int held_memfd(void)
{
	int fd = memfd_new("held");
	char page[PAGE];
	loff_t at = 0;

	assert_true(fd >= 0);
	memset(page, 'x', sizeof(page));
	assert_int_equal(pwrite_full(fd, page, sizeof(page), 0), 0);
	assert_int_equal(pipe(pipe_ends), 0);
	assert_int_equal(splice(fd, &at, pipe_ends[1], NULL, PAGE, 0), PAGE);
	refusals = 0;
	return fd;
}

static void end(int fd)
{
	close(fd);
	close(pipe_ends[0]);
	close(pipe_ends[1]);
}

static void held_for_a_moment(void **state)
{
	(void)state;
	for (int times = 1; times <= 3; times++) {
		int fd = held_memfd();

		refusals_left = times;
		assert_int_equal(memfd_seal(fd), 0);
		assert_int_equal(refusals, times);
		assert_true(memfd_is_sealed(fd));
		assert_int_equal(pwrite(fd, "y", 1, 0), -1);
		end(fd);
	}
}

static void held_all_the_time(void **state)
{
	int fd = held_memfd();

	(void)state;
	refusals_left = HELD_ALL_THE_TIME;
	assert_int_equal(memfd_seal(fd), -EBUSY);
	assert_int_equal(refusals, 4);
	assert_false(memfd_is_sealed(fd));
	/* It is refused as a whole: it can be written, and sealed later. */
	refusals_left = 1;
	assert_int_equal(pwrite_full(fd, "y", 1, 0), 0);
	assert_int_equal(memfd_seal(fd), 0);
	assert_true(memfd_is_sealed(fd));
	end(fd);
}

static void sealed_already(void **state)
{
	int fd = memfd_new("sealed");

	(void)state;
	assert_int_equal(memfd_seal(fd), 0);
	refusals = 0;
	assert_int_equal(memfd_seal(fd), -EPERM);
	assert_int_equal(refusals, 0);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(held_for_a_moment),
		cmocka_unit_test(held_all_the_time),
		cmocka_unit_test(sealed_already),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
