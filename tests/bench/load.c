// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A job to be measured: so much memory, so many threads and processes, so many pages written a
 * second, an output file that grows, some files open.
 *
 *   load MIB THREADS ACTIVE PROCESSES PAGES_PER_S thp|4k FOLDER
 *
 * The main thread computes all the time and records its own standstills. ACTIVE threads (the main
 * one included) share the writes; the others sleep. Processes beyond the first have 1 MiB each.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "tests/bench/load.h"

enum { PAGE = 4096, OPEN_FILES = 4, CHILD_BYTES = 1 << 20, OUTPUT_NS = 50000000 };

struct load {
	volatile uint64_t *memory;
	size_t pages;
	double rate; /* pages a second, of one thread */
	int output;
};

static struct load_status *status;

static uint64_t draw(uint64_t *rng)
{
	*rng ^= *rng << 13;
	*rng ^= *rng >> 7;
	*rng ^= *rng << 17;
	return *rng;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static _Noreturn void die(const char *what)
{
	perror(what);
	exit(1);
}

static void record(uint64_t now, uint64_t length)
{
	status->gaps[status->gap_count % LOAD_GAPS] = (struct load_gap){ now, length };
	atomic_thread_fence(memory_order_release);
	status->gap_count++;
}

static void write_page(const struct load *l, uint64_t *rng)
{
	l->memory[draw(rng) % l->pages * (PAGE / 8) + draw(rng) % (PAGE / 8)] = *rng;
}

static void say(const struct load *l, uint64_t iterations)
{
	char line[64];
	int n = snprintf(line, sizeof(line), "%llu\n", (unsigned long long)iterations);

	if (write(l->output, line, (size_t)n) != n)
		die("output");
}

static _Noreturn void compute(const struct load *l)
{
	uint64_t rng = 88172645463325252, last = now_ns(), start = last, spoke = last, done = 0;

	for (;;) {
		uint64_t now = now_ns();

		if (now - last >= LOAD_GAP_MIN_NS)
			record(now, now - last);
		last = now;
		/* What a pause kept it from is made up for, but not all at once. */
		if ((double)(now - start) * l->rate / 1e9 > (double)done) {
			write_page(l, &rng);
			done++;
			atomic_fetch_add_explicit((_Atomic uint64_t *)&status->dirtied, 1,
						  memory_order_relaxed);
		}
		if (now - spoke > OUTPUT_NS) {
			say(l, status->iterations);
			spoke = now;
		}
		status->iterations++;
	}
}

static void *act(void *arg)
{
	const struct load *l = arg;
	uint64_t rng = (uintptr_t)pthread_self() | 1, start = now_ns();
	double done = 0;

	for (;;) {
		double due = (double)(now_ns() - start) * l->rate / 1e9;

		for (; done < due; done++) {
			write_page(l, &rng);
			atomic_fetch_add_explicit((_Atomic uint64_t *)&status->dirtied, 1,
						  memory_order_relaxed);
		}
		usleep(1000);
	}
	return NULL;
}

static void *doze(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static _Noreturn void child_life(void)
{
	volatile uint64_t *memory =
		mmap(NULL, CHILD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t rng = (uint64_t)getpid() * 7919;

	if (memory == MAP_FAILED)
		die("mmap of a child");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (size_t i = 0; i < CHILD_BYTES / 8; i++)
		memory[i] = draw(&rng);
	for (;;) {
		memory[draw(&rng) % (CHILD_BYTES / 8)] = rng;
		usleep(10000);
	}
}

/* Every page has content of its own: nothing is zero, nothing compresses to nothing. */
static volatile uint64_t *fill(size_t bytes, int thp)
{
	uint64_t *memory =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t rng = 42;

	if (memory == MAP_FAILED)
		die("mmap");
	madvise(memory, bytes, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (size_t i = 0; i < bytes / 8; i += 16)
		memory[i] = draw(&rng);
	return memory;
}

static void open_files(struct load *l, const char *folder)
{
	char path[512];

	for (int i = 0; i < OPEN_FILES; i++) {
		int fd;

		snprintf(path, sizeof(path), "%s/load-%d", folder, i);
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0 || write(fd, path, strlen(path)) < 0)
			die(path);
	}
	snprintf(path, sizeof(path), "%s/load-output", folder);
	l->output = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (l->output < 0)
		die(path);
}

int main(int argc, char **argv)
{
	static struct load l;
	int threads, active, processes;
	pthread_attr_t attr;

	if (argc != 8) {
		fprintf(stderr, "usage: load MIB THREADS ACTIVE PROCESSES PAGES_PER_S thp|4k "
				"FOLDER\n");
		return 2;
	}
	threads = atoi(argv[2]);
	active = atoi(argv[3]);
	processes = atoi(argv[4]);
	status = mmap((void *)LOAD_STATUS, sizeof(*status), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0);
	if (status == MAP_FAILED)
		die("mmap of the status");
	open_files(&l, argv[7]);
	l.pages = strtoul(argv[1], NULL, 0) << 8;
	l.rate = atof(argv[5]) / active;
	for (int i = 1; i < processes; i++) {
		if (!fork())
			child_life();
	}
	l.memory = fill(l.pages * PAGE, !strcmp(argv[6], "thp"));
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	for (int i = 1; i < threads; i++) {
		pthread_t thread;

		if (pthread_create(&thread, &attr, i < active ? act : doze, &l))
			die("pthread_create");
	}
	status->ready = 1;
	compute(&l);
}
