// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The job of bench-restore: MIB of memory of which half of each page does not compress, then work
 * on pages here and there; the file "beat" counts its steps.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, STEP_NS = 200000 };

static uint64_t state = 88172645463325252u;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

int main(int argc, char **argv)
{
	size_t pages = (argc > 1 ? strtoul(argv[1], NULL, 10) : 64) << 8;
	uint8_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct timespec nap = { .tv_nsec = STEP_NS };
	int fd = open("beat", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	uint64_t sum = 0;

	if (memory == MAP_FAILED || fd < 0)
		return 1;
	for (size_t i = 0; i < pages; i++)
		for (size_t k = 0; k < PAGE / 2; k += sizeof(uint64_t)) {
			uint64_t word = next();

			memcpy(memory + i * PAGE + k, &word, sizeof(word));
		}
	puts("ready");
	fflush(stdout);
	for (uint64_t step = 1;; step++) {
		sum += memory[next() % pages * PAGE];
		memory[PAGE - 1] = (uint8_t)sum;
		if (pwrite(fd, &step, sizeof(step), 0) != sizeof(step))
			return 1;
		nanosleep(&nap, NULL);
	}
}
