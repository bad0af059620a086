// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/kmod/kmod.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

struct shared *shared;

void case_fail(const char *file, int line, const char *what, const char *fmt, ...)
{
	int error = errno;
	va_list ap;

	printf("  %s:%d: %s ", file, line, what);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf(" (errno: %s)\n", strerror(error));
	fflush(stdout);
	exit(1);
}

void case_skip(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("  ");
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
	fflush(stdout);
	exit(SKIP_CODE);
}

void case_note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("  ");
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
	fflush(stdout);
}

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

void sleep_ms(unsigned int ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

unsigned long counted(void)
{
	unsigned long sum = 0;

	for (size_t i = 0; i < COUNTERS; i++)
		sum += atomic_load(&shared->counters[i]);
	return sum;
}

void check_still(void)
{
	unsigned long before = counted();

	sleep_ms(30);
	CHECK_INT(counted(), before);
}

void check_moves(void)
{
	unsigned long before = counted();

	AWAIT(counted() != before);
}

pid_t victim(void (*fn)(void *arg), void *arg)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	fn(arg);
	for (;;)
		pause();
}

void victim_end(pid_t pid)
{
	kill(pid, SIGKILL);
	CHECK_INT(waitpid(pid, NULL, __WALL), pid);
}

static void *spin(void *counter)
{
	for (;;)
		atomic_fetch_add((atomic_ulong *)counter, 1);
	return NULL;
}

void spinners(unsigned int count)
{
	pthread_t thread;

	for (unsigned int i = 0; i < count; i++)
		CHECK_INT(pthread_create(&thread, NULL, spin, &shared->counters[i]), 0);
}

static void *sleeper(void *counter)
{
	int fd[2];
	char c;

	CHECK_INT(pipe(fd), 0);
	for (;;) {
		if (read(fd[0], &c, 1) != 1)
			atomic_fetch_add((atomic_ulong *)counter, 1);
	}
	return NULL;
}

void sleepers(unsigned int count)
{
	pthread_t thread;

	for (unsigned int i = 0; i < count; i++)
		CHECK_INT(pthread_create(&thread, NULL, sleeper, &shared->counters[i]), 0);
}

char state_in_proc(pid_t pid)
{
	char path[64], text[512], *p;
	int fd;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	p = strrchr(text, ')');
	return p ? p[2] : 0;
}

int device(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = open(DECAMP_DEVICE, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0, "%s", DECAMP_DEVICE);
	return fd;
}

int version_pending(void)
{
	struct decamp_version v = { .size = sizeof(v) };

	CHECK_INT(ioctl(device(), DECAMP_IOC_VERSION, &v), 0);
	CHECK_INT(v.abi, DECAMP_ABI);
	return (int)v.pending;
}

static int result(int r)
{
	return r < 0 ? -errno : r;
}

int freeze_with(struct decamp_freeze *a, const pid_t *roots, unsigned int count)
{
	a->size = sizeof(*a);
	a->roots = (uintptr_t)roots;
	a->roots_count = count;
	return result(ioctl(device(), DECAMP_IOC_FREEZE, a));
}

int freeze(pid_t pid, uint32_t flags, struct decamp_counts *ret_counts)
{
	struct decamp_freeze a = { .flags = flags, .timeout_ms = TIMEOUT_MS, .lease_ms = LEASE_MS };
	int r = freeze_with(&a, &pid, 1);

	if (r >= 0 && ret_counts)
		*ret_counts = a.counts;
	return r;
}

int freeze_all(pid_t pid, uint32_t flags, struct decamp_counts *ret_counts)
{
	struct decamp_counts counts = { 0 };
	int session = freeze(pid, flags, &counts);

	CHECK(session >= 0, "freeze: %s", strerror(-session));
	CHECK(!counts.running && !counts.blocked,
	      "%u parked, %u quiesced, %u workers, %u gone, %u blocked, %u running", counts.parked,
	      counts.quiesced, counts.workers, counts.gone, counts.blocked, counts.running);
	if (ret_counts)
		*ret_counts = counts;
	return session;
}

int threads_of(int session, struct decamp_thread *t, struct decamp_threads *ret_args)
{
	struct decamp_threads a = { .size = sizeof(a),
				    .threads = (uintptr_t)t,
				    .thread_size = sizeof(*t),
				    .room = t ? THREADS_ROOM : 0 };
	int r = result(ioctl(session, DECAMP_IOC_THREADS, &a));

	if (r == 0 && ret_args)
		*ret_args = a;
	return r;
}

struct decamp_thread thread_of(int session, pid_t tid)
{
	static struct decamp_thread all[THREADS_ROOM];
	struct decamp_threads a;

	CHECK_INT(threads_of(session, all, &a), 0);
	for (uint32_t i = 0; i < a.total && i < THREADS_ROOM; i++)
		if (all[i].tid == tid)
			return all[i];
	CHECK(false, "no thread %d", tid);
	return all[0];
}

int park(int session, pid_t tid, uint32_t timeout_ms)
{
	struct decamp_park a = { .size = sizeof(a), .tid = tid, .timeout_ms = timeout_ms };

	return result(ioctl(session, DECAMP_IOC_PARK, &a));
}

int renew(int session, uint32_t lease_ms)
{
	struct decamp_renew a = { .size = sizeof(a), .lease_ms = lease_ms };

	return result(ioctl(session, DECAMP_IOC_RENEW, &a));
}

int xstate(int session, pid_t tid, void *buffer, uint32_t room, uint32_t *ret_bytes)
{
	struct decamp_xstate a = {
		.size = sizeof(a), .tid = tid, .bytes = room, .buffer = (uintptr_t)buffer
	};
	int r = result(ioctl(session, DECAMP_IOC_XSTATE, &a));

	*ret_bytes = a.bytes;
	return r;
}

int uffd_of(pid_t pid, int dev, uint32_t flags)
{
	struct decamp_uffd a = { .size = sizeof(a), .flags = flags, .pid = pid, .device = dev };

	return result(ioctl(device(), DECAMP_IOC_UFFD, &a));
}
