// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * steady FOLDER SECONDS: a program that would notice being touched. One thread keeps numbers in
 * general and vector registers and checks them; others sit in calls that a clumsy stop makes
 * return with EINTR, and take that as fatal. Writes FOLDER/out.txt, exits with 0 if all was well.
 * It runs for so long at least, and on until SIGURG waits for it: nothing is interrupted by that.
 */
#include <errno.h>
#include <immintrin.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { STEP_MS = 20 };

static atomic_bool stop;
static FILE *out;

static void bad(const char *what)
{
	int error = errno;

	fprintf(out, "BAD %s: %s\n", what, strerror(error));
	fflush(out);
	_exit(1);
}

static void *wait_epoll(void *arg)
{
	int fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event;

	(void)arg;
	while (!stop) {
		if (epoll_wait(fd, &event, 1, 10 * STEP_MS) < 0)
			bad("epoll_wait");
	}
	return NULL;
}

static void *wait_poll(void *arg)
{
	int pair[2];
	struct pollfd p;

	(void)arg;
	if (pipe(pair) < 0)
		bad("pipe");
	p = (struct pollfd){ .fd = pair[0], .events = POLLIN };
	while (!stop) {
		if (poll(&p, 1, 7 * STEP_MS) < 0)
			bad("poll");
	}
	return NULL;
}

static void *wait_sleep(void *arg)
{
	(void)arg;
	while (!stop) {
		struct timespec ts = { .tv_nsec = 5 * STEP_MS * 1000000 };

		if (nanosleep(&ts, NULL) < 0)
			bad("nanosleep");
	}
	return NULL;
}

static void *wait_receive(void *arg)
{
	struct timeval limit = { .tv_usec = 6 * STEP_MS * 1000 };
	int pair[2];
	char c;

	(void)arg;
	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0 ||
	    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0)
		bad("socketpair");
	while (!stop) {
		if (recv(pair[0], &c, 1, 0) < 0 && errno != EAGAIN)
			bad("recv");
	}
	return NULL;
}

static void *wait_signal(void *arg)
{
	struct timespec limit = { .tv_nsec = 9 * STEP_MS * 1000000 };
	sigset_t set;

	(void)arg;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	while (!stop) {
		if (sigtimedwait(&set, NULL, &limit) < 0 && errno != EAGAIN)
			bad("sigtimedwait");
	}
	return NULL;
}

/* Registers that no function call saves: a round in which they change by themselves is one too many. */
static void spin(uint64_t seed)
{
	uint64_t a = seed, b = ~seed, d = seed * 0x9e3779b97f4a7c15;
	__m128d x = _mm_set_pd((double)(seed & 0xffff), 1.5), y = x;

	for (long i = 0; i < 20000000 / 50; i++) {
		__asm__ volatile("" : "+r"(a), "+r"(b), "+r"(d), "+x"(x), "+x"(y));
		if (a != ~b || _mm_movemask_pd(_mm_cmpeq_pd(x, y)) != 3) {
			errno = 0;
			bad("registers");
		}
		a += d;
		b = ~a;
	}
}

static void nothing(int number)
{
	(void)number;
}

static bool told(void)
{
	sigset_t waiting;

	return sigpending(&waiting) == 0 && sigismember(&waiting, SIGURG) == 1;
}

int main(int argc, char **argv)
{
	void *(*const waits[])(void *) = { wait_epoll, wait_poll, wait_sleep, wait_receive,
					   wait_signal };
	pthread_t threads[sizeof(waits) / sizeof(waits[0])];
	long steps = argc == 3 ? atol(argv[2]) * 1000 / STEP_MS : 0;
	sigset_t set;
	uint64_t x = 1;
	char path[512];

	if (steps <= 0)
		return 2;
	snprintf(path, sizeof(path), "%s/out.txt", argv[1]);
	out = fopen(path, "w");
	if (!out)
		return 2;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGURG);
	signal(SIGURG, nothing); /* what is ignored, as by default, does not wait */
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	for (size_t i = 0; i < sizeof(waits) / sizeof(waits[0]); i++)
		if (pthread_create(&threads[i], NULL, waits[i], NULL))
			return 2;
	for (long i = 0; i < steps || !told(); i++) {
		struct timespec ts = { .tv_nsec = STEP_MS * 1000000 };

		spin((uint64_t)i + 1);
		x = x * 6364136223846793005u + 1442695040888963407u;
		fprintf(out, "%ld %016lx\n", i, (unsigned long)x);
		fflush(out);
		if (nanosleep(&ts, NULL) < 0)
			bad("nanosleep of the first thread");
	}
	stop = 1;
	for (size_t i = 0; i < sizeof(waits) / sizeof(waits[0]); i++)
		pthread_join(threads[i], NULL);
	fprintf(out, "all was well\n");
	fclose(out);
	return 0;
}
