// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * watched FOLDER: a program whose inside a debugger is to find in a core made of a checkpoint.
 * Threads in known places with known registers, memory of all kinds with known bytes, a child.
 * FOLDER/out.txt gets a line with `step` before each step; it runs for ten minutes at most.
 */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WORKERS = 3, STEP_MS = 20, STEPS_MAX = 30000, HEAP_BYTES = 24 << 20, MAP_BYTES = 1 << 20 };

volatile long step;
volatile int role = 1;
char banner[] = "a text that is known";
unsigned char *heap, *shared, *file_map;
static const unsigned char constant[] = "never written";

__attribute__((noinline)) static void *wait_here(void *arg)
{
	volatile long known = 1000 + (long)(intptr_t)arg;

	for (;;)
		pause();
	return (void *)known;
}

/* Two registers with a number in them, for ever. */
__attribute__((noinline)) static void *spin_here(void *arg)
{
	const uint64_t number = 0x1122334455667788;

	if (__builtin_cpu_supports("avx2"))
		__asm__ volatile("movq %0, %%r15\n\tvmovq %%r15, %%xmm15\n\t"
				 "vpbroadcastq %%xmm15, %%ymm15\n1:\tpause\n\tjmp 1b"
				 :
				 : "r"(number)
				 : "r15", "xmm15");
	else
		__asm__ volatile("movq %0, %%r15\n\tmovq %%r15, %%xmm15\n1:\tpause\n\tjmp 1b"
				 :
				 : "r"(number)
				 : "r15", "xmm15");
	return arg;
}

static void make_memory(const char *folder)
{
	char path[512];
	FILE *f;

	heap = malloc(HEAP_BYTES);
	for (size_t i = 0; i < HEAP_BYTES / 2; i++) /* the rest is never touched */
		heap[i] = (unsigned char)(i * 7 + (i >> 12));
	shared = mmap(NULL, MAP_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memset(shared + 8192, 0x5a, 4096);
	snprintf(path, sizeof(path), "%s/mapped.bin", folder);
	f = fopen(path, "w+");
	for (int i = 0; i < MAP_BYTES; i++)
		fputc(i >> 12, f);
	fflush(f);
	file_map = mmap(NULL, MAP_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fileno(f), 0);
	file_map[5 * 4096] = 0xc3; /* one page of it is the process's own */
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char path[512];
	FILE *out;

	if (argc < 2)
		return 2;
	make_memory(argv[1]);
	if (fork() == 0) {
		role = 2;
		for (;;)
			pause();
	}
	for (intptr_t i = 0; i < WORKERS; i++)
		if (pthread_create(&thread, NULL, wait_here, (void *)i) != 0)
			return 1;
	if (pthread_create(&thread, NULL, spin_here, NULL) != 0)
		return 1;
	snprintf(path, sizeof(path), "%s/out.txt", argv[1]);
	out = fopen(path, "w");
	while (step < STEPS_MAX && constant[0] == 'n') {
		step++;
		fprintf(out, "%ld\n", step);
		fflush(out);
		usleep(STEP_MS * 1000);
	}
	return 0;
}
