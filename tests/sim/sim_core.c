/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sim_core SEED NODES TIME [RUNS]: runs with seeds SEED, SEED + 1, ...; TIME is in hours, or in
 * minutes with an m behind it. The first line of each run is all that is needed to repeat it.
 * Ends by abort() at the first broken invariant.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tests/sim/chaos.h"

static double seconds(void)
{
	struct timespec now;

	/* Of CPU: what else runs on the machine is no concern of the simulator's. */
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	unsigned long long seed, runs;
	unsigned long nodes, minutes;
	struct chaos_result result;
	char *unit;

	if (argc < 4) {
		fprintf(stderr, "usage: sim_core SEED NODES HOURS|MINUTESm [RUNS]\n");
		return 2;
	}
	seed = strtoull(argv[1], NULL, 10);
	nodes = strtoul(argv[2], NULL, 10);
	minutes = strtoul(argv[3], &unit, 10);
	if (*unit != 'm')
		minutes *= 60;
	runs = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
	if (nodes < 1 || nodes > SIMNET_NODES_MAX || minutes < 1) {
		fprintf(stderr, "sim_core: 1 to %d nodes, at least a minute\n", SIMNET_NODES_MAX);
		return 2;
	}
	for (unsigned long long i = 0; i < runs; i++) {
		double start = seconds(), took;

		chaos_run(seed + i, (uint32_t)nodes, (uint32_t)minutes, 1, &result);
		took = seconds() - start;
		printf("sim: %.1f s of CPU, %.2f virtual hours a minute, %.1f million events a second\n",
		       took, (double)result.virtual_ms / 6e4 / took,
		       (double)result.events / took / 1e6);
		fflush(stdout);
	}
	return 0;
}
