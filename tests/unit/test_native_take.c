/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One snapshot in several attempts: what is said of its pause is all that the job stood still. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/native/take.h"
#include "agent/util/io.h"
#include "slow.h"

enum {
	STAND_US = 20000,
	DEADLINE_MS = 30000,
	IN_VAIN = 2,
	BLOCKED_US = 400000, /* so long the job waits in the kernel */
	SKIP_CODE = 77
};

/* Between the job and the hooks; shared. */
struct page {
	atomic_int begin, over;
};

static struct page *page;

struct hooks {
	int frozen, in_vain;
	bool blocks; /* the job is told to wait in the kernel, when it has been looked at */
	pid_t job;
};

static char state_of(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	char path[64];
	const char *p;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_file_at(AT_FDCWD, path, 4096, &text, NULL) < 0)
		return 0;
	p = strrchr(text, ')');
	return p ? p[2] : 0;
}

/* The job has a child in vfork(2): nothing stops it before that has ended. */
static int on_before(void *ctx)
{
	const struct hooks *h = ctx;
	char state = 0;

	if (!h->blocks || atomic_exchange(&page->begin, 1))
		return 0;
	for (int ms = 0; state != 'D' && !atomic_load(&page->over); ms++) {
		if (ms > slow(DEADLINE_MS))
			return -ETIMEDOUT;
		usleep(1000);
		state = state_of(h->job);
	}
	return 0;
}

static int on_frozen(void *ctx)
{
	struct hooks *h = ctx;

	usleep(STAND_US);
	return h->frozen++ < h->in_vain ? -EAGAIN : 0;
}

/* In a process of its own, which traces; returns what its exit code says. */
static int take_apart(pid_t job, struct hooks hooks)
{
	struct take_config config = { .root = job, .mem.buffer_bytes = 8 << 20 };
	char reason[NATIVE_REASON_MAX] = "", path[] = "/var/tmp/decamp-test-take-XXXXXX";
	struct take_order order = { .before = on_before,
				    .frozen = on_frozen,
				    .deadline_ms = slow(DEADLINE_MS),
				    .shell_job = true,
				    .ctx = &hooks };
	struct native_result result = { 0 };
	struct taker *taker;
	uint64_t earlier = (uint64_t)hooks.in_vain * STAND_US;
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
	fprintf(stderr,
		"%d attempts, pause %llu us, %llu of it earlier; blocked %u, before it %u\n",
		hooks.frozen, (unsigned long long)result.pause_us,
		(unsigned long long)result.earlier_us, result.blocked_us, result.calm_us);
	return hooks.frozen != hooks.in_vain + 1 || result.earlier_us < earlier ||
	       result.pause_us < result.earlier_us + STAND_US ||
	       (!hooks.in_vain && result.earlier_us > 0) ||
	       (hooks.blocks && result.blocked_us > BLOCKED_US / 4);
}

static void run_job(void)
{
	while (!atomic_load(&page->begin))
		usleep(1000);
	if (vfork() == 0) {
		usleep(BLOCKED_US);
		_exit(0);
	}
	atomic_store(&page->over, 1);
	for (;;)
		pause();
}

static int taken(struct hooks hooks)
{
	int status, ready[2];
	pid_t job, pid;
	char c;

	page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(page != MAP_FAILED);
	assert_int_equal(pipe(ready), 0);
	hooks.job = job = fork();
	assert_true(job >= 0);
	if (job == 0) {
		close_range(0, ~0U, 0); /* whoever reads our output is none of the job */
		run_job();
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 0);
	close(ready[0]);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(take_apart(job, hooks));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	/* Whatever was said of it, it runs on. */
	assert_int_equal(waitpid(job, NULL, WNOHANG), 0);
	assert_int_equal(kill(job, SIGKILL), 0);
	assert_int_equal(waitpid(job, NULL, 0), job);
	munmap(page, sizeof(*page));
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void first_attempt(void **state)
{
	int r = taken((struct hooks){ 0 });

	(void)state;
	if (r == SKIP_CODE)
		skip();
	assert_int_equal(r, 0);
}

static void attempts_in_vain_count(void **state)
{
	int r = taken((struct hooks){ .in_vain = IN_VAIN });

	(void)state;
	if (r == SKIP_CODE)
		skip();
	assert_int_equal(r, 0);
}

/* A job that waits in the kernel does so before it is stopped, and not with all its threads. */
static void waits_are_over_before(void **state)
{
	int r = taken((struct hooks){ .blocks = true });

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
		cmocka_unit_test(waits_are_over_before),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
