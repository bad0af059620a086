/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sim_core SEED NODES MINUTES [RUNS]: runs with seeds SEED, SEED + 1, ...; the first line of each
 * run is all that is needed to repeat it. Ends by abort() at the first broken invariant.
 */
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/chaos.h"
#include "tests/sim/simnet.h"

int main(int argc, char **argv)
{
	unsigned long long seed, runs;
	unsigned long nodes, minutes;
	struct chaos_result result;

	if (argc < 4) {
		fprintf(stderr, "usage: sim_core SEED NODES MINUTES [RUNS]\n");
		return 2;
	}
	seed = strtoull(argv[1], NULL, 10);
	nodes = strtoul(argv[2], NULL, 10);
	minutes = strtoul(argv[3], NULL, 10);
	runs = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
	if (nodes < 1 || nodes > SIMNET_NODES_MAX || minutes < 1) {
		fprintf(stderr, "sim_core: 1 to %d nodes, at least a minute\n", SIMNET_NODES_MAX);
		return 2;
	}
	for (unsigned long long i = 0; i < runs; i++)
		chaos_run(seed + i, (uint32_t)nodes, (uint32_t)minutes, 1, &result);
	return 0;
}
