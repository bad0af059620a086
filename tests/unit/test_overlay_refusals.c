/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Refusals in the log: told at once, then at most once a minute, and none of them is forgotten. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util/log.h"
#include "overlay/half.h"
#include "overlay/net/internal.h"

static int log_fd;

/* What was logged since the last call. */
static const char *logged(void)
{
	static char text[4096];
	ssize_t n = pread(log_fd, text, sizeof(text) - 1, 0);

	assert_true(n >= 0);
	text[n] = '\0';
	assert_int_equal(ftruncate(log_fd, 0), 0);
	assert_int_equal(lseek(log_fd, 0, SEEK_SET), 0);
	return text;
}

static void a_flood_is_a_line_a_minute(void **state)
{
	struct overlay overlay = { 0 };
	int stderr_fd = dup(STDERR_FILENO);
	struct ov_refusals sums;
	uint32_t lines = 0;

	(void)state;
	log_fd = memfd_create("log", MFD_CLOEXEC);
	assert_true(log_fd >= 0 && stderr_fd >= 0);
	assert_int_equal(sd_event_new(&overlay.event), 0);
	assert_int_equal(net_create(overlay.event, &overlay_net_handlers, &overlay, &overlay.net),
			 0);
	log_init(LOG_INFO_, "test");
	assert_int_equal(dup2(log_fd, STDERR_FILENO), STDERR_FILENO);
	refusals_tick(&overlay, 1000);
	assert_string_equal(logged(), "");
	overlay.net->stats.refused = 5;
	refusals_tick(&overlay, 2000);
	assert_non_null(strstr(logged(), "refused: strangers=5 frames=0"));
	for (uint32_t second = 0; second < 600; second++) {
		overlay.net->stats.refused += 1000;
		overlay.net->stats.garbled++;
		refusals_tick(&overlay, 3000 + second * 1000);
		lines += strstr(logged(), "refused: ") != NULL;
	}
	overlay.net->stats.refused++;
	refusals_tick(&overlay, 700000);
	assert_int_equal(dup2(stderr_fd, STDERR_FILENO), STDERR_FILENO);
	assert_in_range(lines, 9, 10);
	refusals_get(&overlay, &sums);
	assert_int_equal(sums.strangers, 600006);
	assert_int_equal(sums.frames, 600);
	assert_memory_equal(&sums, &overlay.refusals_told, sizeof(sums));
	net_destroy(overlay.net);
	sd_event_unref(overlay.event);
	close(log_fd);
	close(stderr_fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_flood_is_a_line_a_minute),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
