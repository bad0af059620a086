// SPDX-License-Identifier: LGPL-2.1-or-later
/* Static and without glibc: another C library's threads, allocator and program start. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *spin(void *argument)
{
	uint32_t *x = argument;

	for (int i = 0; i < 2000; i++)
		*x = *x * 1664525 + 1013904223;
	return NULL;
}

static uint32_t step_sum(uint32_t sum, uint32_t step)
{
	uint32_t x[2] = { sum + step * 2, sum + step * 2 + 1 };
	pthread_t threads[2];

	for (int i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, spin, &x[i]) != 0)
			abort();
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	return sum + x[0] + x[1];
}

int main(int argc, char **argv)
{
	uint32_t steps = argc > 2 ? (uint32_t)atoi(argv[2]) : 0, sum = 0;
	uint32_t *ring[64] = { NULL };
	FILE *out = fopen("out.txt", "w");

	if (!out)
		return 1;
	for (uint32_t step = 0; step < steps; step++) {
		uint32_t *fresh = malloc(1000 * sizeof(*fresh));

		if (!fresh)
			return 1;
		sum = step_sum(sum, step);
		for (uint32_t i = 0; i < 1000; i++)
			fresh[i] = sum + i;
		free(ring[step % 64]);
		ring[step % 64] = fresh;
		if (ring[step * 7 % 64])
			sum ^= ring[step * 7 % 64][step % 1000];
		fprintf(out, "%u %08x\n", step, sum);
		fflush(out);
		usleep(50000);
	}
	return fclose(out) != 0;
}
