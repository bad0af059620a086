// SPDX-License-Identifier: LGPL-2.1-or-later
/* Features that came with a release are found from it on: run under several kernels by tests/vm. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/host/host.h"
#include "agent/host/probe.h"
#include "agent/util/io.h"
#include "overlay/types.h"

static void features_follow_the_release(void **state)
{
	struct host_resources res;

	(void)state;
	assert_int_equal(host_resources(&res), 0);
	print_message("Linux %s\n", res.kernel);
	assert_int_equal(probe_guards(), res.kernel_version >= OV_KERNEL_VERSION(6, 13));
	assert_int_equal(probe_exec_seal(), res.kernel_version >= OV_KERNEL_VERSION(6, 3));
	assert_int_equal(probe_rseq_long(), res.kernel_version >= OV_KERNEL_VERSION(6, 3));
	if (res.kernel_version < OV_KERNEL_VERSION(6, 6))
		assert_false(probe_shadow_stack());
}

/* A namespace has a limit of its own since Linux 6.14; before, all obey the machine's. */
static void high_pids_follow_the_limit(void **state)
{
	_cleanup_free_ char *text = NULL;
	struct host_resources res;

	(void)state;
	if (geteuid() != 0) {
		print_message("skipped: not root\n");
		skip();
	}
	assert_int_equal(host_resources(&res), 0);
	assert_int_equal(read_file_at(AT_FDCWD, "/proc/sys/kernel/pid_max", 64, &text, NULL), 0);
	assert_int_equal(probe_high_pids(),
			 res.kernel_version >= OV_KERNEL_VERSION(6, 14) || atoi(text) == 1 << 22);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(features_follow_the_release),
		cmocka_unit_test(high_pids_follow_the_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
