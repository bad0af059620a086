// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/kmod/kmod.h"

#include <dirent.h>
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

static bool children_asleep(const char *path);

static bool all_asleep(pid_t pid)
{
	char path[64], children[96];
	struct dirent *e;
	bool all = true;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && all && (e = readdir(dir))) {
		pid_t tid = (pid_t)atol(e->d_name);

		snprintf(children, sizeof(children), "%s/%d/children", path, tid);
		all = tid <= 0 || (state_in_proc(tid) == 'S' && children_asleep(children));
	}
	if (dir)
		closedir(dir);
	return dir && all;
}

static bool children_asleep(const char *path)
{
	FILE *f = fopen(path, "re");
	bool all = true;
	int pid;

	while (f && all && fscanf(f, "%d", &pid) == 1)
		all = all_asleep(pid);
	if (f)
		fclose(f);
	return f && all;
}

void await_asleep(pid_t pid)
{
	AWAIT(all_asleep(pid));
	sleep_ms(50); /* it was no page that came from a slow disk */
	AWAIT(all_asleep(pid));
}

static int device_fd = -1;

int device(void)
{
	if (device_fd < 0)
		device_fd = open(DECAMP_DEVICE, O_RDWR | O_CLOEXEC);
	CHECK(device_fd >= 0, "%s", DECAMP_DEVICE);
	return device_fd;
}

void device_close(void)
{
	close(device_fd);
	device_fd = -1;
}

int callbacks(void)
{
	FILE *f = fopen("/sys/module/decamp/refcnt", "re");
	int count;

	CHECK_INT(ioctl(device(), DECAMP_IOC_VERSION, NULL), DECAMP_ABI);
	CHECK(f && fscanf(f, "%d", &count) == 1);
	fclose(f);
	return count - 1;
}

static int result(int r)
{
	return r < 0 ? -errno : r;
}

int freeze_with(struct decamp_freeze *a, pid_t pid)
{
	a->size = sizeof(*a);
	a->pid = pid;
	return result(ioctl(device(), DECAMP_IOC_FREEZE, a));
}

int freeze(pid_t pid)
{
	struct decamp_freeze a = { .timeout_ms = TIMEOUT_MS, .lease_ms = LEASE_MS };

	return freeze_with(&a, pid);
}

static struct decamp_thread all[THREADS_ROOM];

struct counts counts_of(int session)
{
	int count = threads_of(session, all);
	struct counts c = { .all = (unsigned int)count };

	CHECK(count >= 0 && count <= THREADS_ROOM, "%d", count);
	for (int i = 0; i < count; i++) {
		c.parked += all[i].state == DECAMP_PARKED;
		c.quiesced += all[i].state == DECAMP_QUIESCED;
		c.gone += all[i].state == DECAMP_GONE;
		c.blocked += all[i].state == DECAMP_BLOCKED;
		c.running += all[i].state == DECAMP_RUNNING;
	}
	return c;
}

int freeze_all(pid_t pid, struct counts *ret_counts)
{
	int session = freeze(pid);
	struct counts c;

	CHECK(session >= 0, "freeze: %s", strerror(-session));
	/* All stood at one moment; who was asleep may be on his way to park. */
	AWAIT((c = counts_of(session), !c.running && !c.blocked));
	if (ret_counts)
		*ret_counts = c;
	return session;
}

int freeze_parked(pid_t pid, struct counts *ret_counts)
{
	struct counts c;
	int session = freeze_all(pid, &c);

	for (unsigned int i = 0; i < c.all; i++)
		if (all[i].state != DECAMP_GONE)
			CHECK_INT(park(session, all[i].tid, TIMEOUT_MS), 0);
	c = counts_of(session);
	CHECK_INT(c.parked + c.gone, c.all);
	if (ret_counts)
		*ret_counts = c;
	return session;
}

int threads_of(int session, struct decamp_thread *t)
{
	struct decamp_threads a = { .size = sizeof(a),
				    .threads = (uintptr_t)t,
				    .room = t ? THREADS_ROOM : 0 };

	return result(ioctl(session, DECAMP_IOC_THREADS, &a));
}

struct decamp_thread thread_of(int session, pid_t tid)
{
	struct counts c = counts_of(session);

	for (unsigned int i = 0; i < c.all; i++)
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

int xstate(int session, const struct decamp_thread *t, void *buffer, uint32_t room)
{
	struct decamp_xstate a = { .size = sizeof(a),
				   .buffer = (uintptr_t)buffer,
				   .switches = t->switches,
				   .tid = t->tid,
				   .room = room };

	return result(ioctl(session, DECAMP_IOC_XSTATE, &a));
}

int uffd_of(pid_t pid, int dev, uint32_t mode)
{
	struct decamp_uffd a = { .size = sizeof(a), .pid = pid, .device = dev, .mode = mode };

	return result(ioctl(device(), DECAMP_IOC_UFFD, &a));
}
