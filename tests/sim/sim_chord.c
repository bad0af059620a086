/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sim_chord SEED HOURS FILE NODES...: a lab's day (chordlab.h) for each number of nodes, and
 * look-ups in a member table where one holds so many. Table on the terminal, rows in FILE (JSON).
 * Fails if a bound does not hold.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "tests/sim/chordlab.h"
#include "tests/sim/tablelab.h"

enum { LOOKUPS = 300000, TABLE_LOOKUPS = 20000, PUSH_MS = 10 * 60 * 1000 };

static const double none = -1;

struct report {
	FILE *json;
	bool any, failed;
	char name[32];
	const char *engine;
};

/* target `none`: no bound was set. */
static void row(struct report *report, const char *metric, const char *unit, double value,
		double target, bool at_most)
{
	bool holds = target == none || (at_most ? value <= target : value >= target);

	report->failed |= !holds;
	fprintf(report->json, "%s\n{\"case\":\"%s\",\"engine\":\"%s\",\"metric\":\"%s\",",
		report->any ? "," : "", report->name, report->engine, metric);
	fprintf(report->json, "\"unit\":\"%s\",\"value\":%.9g,", unit, value);
	if (target == none)
		fprintf(report->json, "\"target\":null,\"holds\":null}");
	else
		fprintf(report->json, "\"target\":%.9g,\"holds\":%s}", target,
			holds ? "true" : "false");
	report->any = true;
}

static void print_phase(const char *name, const struct chordlab_sums *s)
{
	double n = s->lookups ? (double)s->lookups : 1;

	printf("  %-8s %8" PRIu64 " %7.3f %8.3f %8.4f %7.0f %10.2e %10.2e %10.2e %8.1f %8.1f\n",
	       name, s->lookups, (double)s->hops / n, s->target / n, (double)s->silent / n,
	       (double)s->latency_ms / n, (double)s->failed / n, (double)s->wrong / n,
	       (double)s->wrong_sets / n, (double)s->upkeep_bytes / s->member_seconds,
	       (double)s->lookup_bytes / s->member_seconds);
}

static void print_day(const struct chordlab_result *result)
{
	static const char *const names[CHORDLAB_PHASES] = { "warm-up", "day",	  "closing",
							    "night",   "opening", "evening",
							    "quiet" };

	printf("  %-8s %8s %7s %8s %8s %7s %10s %10s %10s %8s %8s\n", "phase", "look-ups", "hops",
	       "bound", "silent", "ms", "failed", "wrong", "set wrong", "upkeep", "look-ups");
	for (uint32_t i = CHORDLAB_DAY; i < CHORDLAB_PHASES; i++)
		print_phase(names[i], &result->phases[i]);
	print_phase("all day", &result->sum);
	printf("  %u to %u members, %" PRIu64 " departures, %" PRIu64 " arrivals; upkeep and "
	       "look-ups in B/s a node, %d B of headers a message\n",
	       result->members_min, result->members_max, result->departures, result->arrivals,
	       CHORDNET_HEADER_BYTES);
	printf("  after the quiet phase %u members have a wrong list; %" PRIu64 " steps, %" PRIu64
	       " messages, %.2f h in %.1f s of CPU time\n",
	       result->wrong_members, result->events, result->messages, result->virtual_hours,
	       result->cpu_seconds);
}

static long memory_kib(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_maxrss;
}

static void transfer_rows(struct report *report, const struct chordlab_result *result)
{
	const struct chordpush_sums *s = &result->transfers;
	double pushes = s->pushes ? (double)s->pushes : 1;
	double durable = s->durable ? (double)s->durable : 1;

	printf("  %" PRIu64 " deltas pushed, %" PRIu64 " durable after %.2f s on average (%.2f s "
	       "with a whole uplink), %" PRIu64 " lost with their sender, %" PRIu64
	       " given up, %u left; %" PRIu64 " copies begun anew; %.3f TB moved, %.3f TB in vain; "
	       "at most %u flows at once\n",
	       s->pushes, s->durable, (double)s->durable_ms / durable / 1000,
	       (double)s->ideal_ms / durable / 1000, s->lost, s->given_up, result->transfers_left,
	       s->restarts, (double)s->bytes / 1e12, (double)s->wasted_bytes / 1e12, s->flows_max);
	row(report, "deltas pushed", "1", pushes, none, true);
	row(report, "deltas durable", "1", (double)s->durable / pushes, none, true);
	row(report, "delta durable after", "s", (double)s->durable_ms / durable / 1000, none, true);
	row(report, "the same with a whole uplink", "s", (double)s->ideal_ms / durable / 1000, none,
	    true);
	row(report, "deltas lost with their sender", "1", (double)s->lost / pushes, none, true);
	row(report, "deltas given up", "1", (double)s->given_up, 0, true);
	row(report, "copies begun anew", "1", (double)s->restarts, none, true);
	row(report, "bytes in vain", "1",
	    (double)s->wasted_bytes / (double)(s->bytes + s->wasted_bytes + 1), none, true);
	row(report, "deltas left after quiet", "1", result->transfers_left, 0, true);
}

static void run_chord(struct report *report, uint64_t seed, double hours, uint32_t nodes)
{
	struct chordlab_config config = {
		.seed = seed,
		.nodes = nodes,
		.hours = hours,
		.lookups = LOOKUPS,
		.paths = 1,
		.push_ms = PUSH_MS,
	};
	struct chordlab_result result;
	const struct chordlab_sums *s = &result.sum;
	double n;

	chordlab_run(&config, &result);
	report->engine = "chord";
	printf("n=%u, Chord:\n", nodes);
	print_day(&result);
	n = s->lookups ? (double)s->lookups : 1;
	row(report, "hops", "1", (double)s->hops / n, s->target / n, true);
	row(report, "silent", "1", (double)s->silent / n, none, true);
	row(report, "lookup time", "ms", (double)s->latency_ms / n, none, true);
	row(report, "failed", "1", (double)s->failed / n, 1e-3, true);
	row(report, "wrong", "1", (double)s->wrong / n, 1e-3, true);
	row(report, "successor set wrong", "1", (double)s->wrong_sets / n, none, true);
	row(report, "upkeep", "B/s", (double)s->upkeep_bytes / s->member_seconds, none, true);
	row(report, "members wrong after quiet", "1", result.wrong_members, 0, true);
	transfer_rows(report, &result);
	row(report, "speed", "h/h", result.virtual_hours * 3600 / result.cpu_seconds,
	    nodes > 10000 ? 1 : 24, false);
	row(report, "memory", "MiB", (double)memory_kib() / 1024, 4096, true);
}

static void run_table(struct report *report, uint64_t seed, uint32_t nodes)
{
	struct tablelab_result result;
	double n;

	tablelab_run(seed, nodes, TABLE_LOOKUPS, OV_REPLICAS_MAX, &result);
	n = (double)result.lookups;
	report->engine = "one-hop";
	printf("n=%u, one-hop: %u live of %u rows, %" PRIu64 " look-ups, %.3f hops, %" PRIu64
	       " failed, %" PRIu64 " wrong, %.1f us of CPU time each\n",
	       nodes, result.live, result.rows, result.lookups, (double)result.hops / n,
	       result.failed, result.wrong, result.cpu_seconds * 1e6 / n);
	row(report, "hops", "1", (double)result.hops / n, 1, true);
	row(report, "failed", "1", (double)result.failed / n, 0, true);
	row(report, "wrong", "1", (double)result.wrong / n, 0, true);
}

int main(int argc, char **argv)
{
	struct report report = { 0 };
	const char *commit = getenv("SIM_COMMIT");
	uint64_t seed;
	double hours;

	if (argc < 5 || strtod(argv[2], NULL) < 0.6) {
		fprintf(stderr, "usage: sim_chord SEED HOURS FILE NODES...   HOURS >= 0.6\n");
		return 2;
	}
	seed = strtoull(argv[1], NULL, 10);
	hours = strtod(argv[2], NULL);
	report.json = fopen(argv[3], "w");
	if (!report.json) {
		fprintf(stderr, "sim_chord: %s: %s\n", argv[3], strerror(errno));
		return 2;
	}
	printf("seed %" PRIu64 " commit %s hours %g %s\n", seed, commit ? commit : "unknown", hours,
	       chordlab_rates());
	fprintf(report.json, "{\"rows\":[");
	for (int i = 4; i < argc; i++) {
		uint32_t nodes = (uint32_t)strtoul(argv[i], NULL, 10);

		if (nodes < CHORD_SUCCESSORS_MAX || nodes > CHORDLAB_NODES_MAX) {
			fprintf(stderr, "sim_chord: %d to %d nodes\n", CHORD_SUCCESSORS_MAX,
				CHORDLAB_NODES_MAX);
			return 2;
		}
		snprintf(report.name, sizeof(report.name), "n=%u", nodes);
		if (lookup_choose(nodes, 0) == LOOKUP_ONE_HOP)
			run_table(&report, seed, nodes);
		run_chord(&report, seed, hours, nodes);
		fflush(stdout);
	}
	fprintf(report.json, "\n]}\n");
	if (fclose(report.json)) {
		fprintf(stderr, "sim_chord: %s: %s\n", argv[3], strerror(errno));
		return 2;
	}
	printf("%s\n", report.failed ? "a bound does not hold" : "all bounds hold");
	return report.failed;
}
