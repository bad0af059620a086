/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One snapshot in several attempts: what is said of its pause is all that the job stood still. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/native/take.h"
#include "agent/util/io.h"
#include "slow.h"

enum { STAND_US = 20000, DEADLINE_MS = 30000, IN_VAIN = 2, SKIP_CODE = 77 };

struct hooks {
	int frozen, in_vain;
};

static int on_frozen(void *ctx)
{
	struct hooks *h = ctx;

	usleep(STAND_US);
	return h->frozen++ < h->in_vain ? -EAGAIN : 0;
}

/* In a process of its own, which traces; returns what its exit code says. */
static int take_apart(pid_t job, int in_vain)
{
	struct take_config config = { .root = job, .mem.buffer_bytes = 8 << 20 };
	char reason[NATIVE_REASON_MAX] = "", path[] = "/var/tmp/decamp-test-take-XXXXXX";
	struct hooks hooks = { .in_vain = in_vain };
	struct take_order order = { .frozen = on_frozen,
				    .deadline_ms = slow(DEADLINE_MS),
				    .shell_job = true,
				    .ctx = &hooks };
	struct native_result result = { 0 };
	struct taker *taker;
	uint64_t earlier = (uint64_t)in_vain * STAND_US;
	int r;

	if (!mkdtemp(path))
		return 2;
	order.images = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = take_create(&config, &taker, reason);
	if (r < 0) {
		fprintf(stderr, "SKIP: no native engine here: %s\n", reason);
		rmdir(path);
		return SKIP_CODE;
	}
	r = take_snapshot(taker, &order, &result, reason);
	take_destroy(taker);
	close(order.images);
	if (remove_tree_at(AT_FDCWD, path) < 0 || r < 0) {
		fprintf(stderr, "%s\n", reason);
		return 3;
	}
	fprintf(stderr, "%d attempts, pause %llu us, %llu of it earlier\n", hooks.frozen,
		(unsigned long long)result.pause_us, (unsigned long long)result.earlier_us);
	return hooks.frozen != in_vain + 1 || result.earlier_us < earlier ||
	       result.pause_us < result.earlier_us + STAND_US ||
	       (!in_vain && result.earlier_us > 0);
}

static int taken(int in_vain)
{
	int status, ready[2];
	pid_t job, pid;
	char c;

	assert_int_equal(pipe(ready), 0);
	job = fork();
	assert_true(job >= 0);
	if (job == 0) {
		close_range(0, ~0U, 0); /* whoever reads our output is none of the job */
		pause();
		_exit(0);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 0);
	close(ready[0]);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(take_apart(job, in_vain));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	/* Whatever was said of it, it runs on. */
	assert_int_equal(waitpid(job, NULL, WNOHANG), 0);
	assert_int_equal(kill(job, SIGKILL), 0);
	assert_int_equal(waitpid(job, NULL, 0), job);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void first_attempt(void **state)
{
	int r = taken(0);

	(void)state;
	if (r == SKIP_CODE)
		skip();
	assert_int_equal(r, 0);
}

static void attempts_in_vain_count(void **state)
{
	int r = taken(IN_VAIN);

	(void)state;
	if (r == SKIP_CODE)
		skip();
	assert_int_equal(r, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(first_attempt),
		cmocka_unit_test(attempts_in_vain_count),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
