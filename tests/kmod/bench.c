// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * How long until all threads stand: by the module, PTRACE_SEIZE and INTERRUPT, the
 * cgroup freezer. Only the ratios of one run mean anything where the machine is emulated.
 */
#include "tests/kmod/kmod.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { ROUNDS = 31 };

struct load {
	unsigned int asleep, spinning;
};

static void run_load(void *load)
{
	const struct load *l = load;

	sleepers(l->asleep);
	spinners(l->spinning);
	atomic_store(&shared->flags[0], 1);
}

static uint64_t by_module(pid_t pid)
{
	uint64_t from = now_ns(), to;
	int session = freeze(pid);

	to = now_ns();
	CHECK(session >= 0);
	close(session);
	return to - from;
}

static uint64_t by_ptrace(pid_t pid, unsigned int count)
{
	uint64_t from = now_ns(), to;
	int status;

	for (unsigned int i = 0; i <= count; i++) {
		CHECK_INT(ptrace(PTRACE_SEIZE, pid + (pid_t)i, 0, 0), 0);
		CHECK_INT(ptrace(PTRACE_INTERRUPT, pid + (pid_t)i, 0, 0), 0);
	}
	for (unsigned int i = 0; i <= count; i++)
		CHECK_INT(waitpid(pid + (pid_t)i, &status, __WALL), pid + (pid_t)i);
	to = now_ns();
	for (unsigned int i = 0; i <= count; i++)
		CHECK_INT(ptrace(PTRACE_DETACH, pid + (pid_t)i, 0, 0), 0);
	return to - from;
}

#define GROUP "/sys/fs/cgroup/decamp-bench"

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(fd >= 0 && write(fd, text, strlen(text)) > 0, "%s", path);
	close(fd);
}

static uint64_t by_cgroup(void)
{
	uint64_t from = now_ns(), to;
	int fd = open(GROUP "/cgroup.events", O_RDONLY | O_CLOEXEC);
	char text[128] = "";

	CHECK(fd >= 0);
	put(GROUP "/cgroup.freeze", "1");
	while (!strstr(text, "frozen 1"))
		CHECK(pread(fd, text, sizeof(text) - 1, 0) > 0);
	to = now_ns();
	close(fd);
	put(GROUP "/cgroup.freeze", "0");
	return to - from;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static double median_us(uint64_t ns[ROUNDS])
{
	qsort(ns, ROUNDS, sizeof(*ns), compare);
	return (double)ns[ROUNDS / 2] / 1000;
}

static void run_bench(struct load l)
{
	uint64_t ns[3][ROUNDS];
	double us[3];
	char text[16];
	pid_t pid;

	atomic_store(&shared->flags[0], 0);
	pid = victim(run_load, &l);
	AWAIT(atomic_load(&shared->flags[0]));
	sleep_ms(300);
	snprintf(text, sizeof(text), "%d", pid);
	put(GROUP "/cgroup.procs", text);
	for (int i = 0; i < ROUNDS; i++) {
		ns[0][i] = by_module(pid);
		sleep_ms(2);
		ns[1][i] = by_ptrace(pid, l.asleep + l.spinning);
		sleep_ms(2);
		ns[2][i] = by_cgroup();
		sleep_ms(2);
	}
	for (int i = 0; i < 3; i++)
		us[i] = median_us(ns[i]);
	printf("%3u asleep %u spinning: module %7.0f us; ptrace %4.1fx cgroup %4.1fx\n", l.asleep,
	       l.spinning, us[0], us[1] / us[0], us[2] / us[0]);
	victim_end(pid);
}

void bench(void)
{
	static const struct load loads[] = { { 1, 0 }, { 8, 0 }, { 64, 0 }, { 56, 8 } };

	CHECK(mkdir(GROUP, 0755) == 0 || errno == EEXIST);
	for (size_t i = 0; i < sizeof(loads) / sizeof(*loads); i++)
		run_bench(loads[i]);
	rmdir(GROUP);
}
