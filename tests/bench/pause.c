// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * bench-pause: both engines on the same workloads in one run; a table, and build/bench/pause.json.
 *
 *   pause [--case NAME]... [--takes N] [--native-only] [--direct] FOLDER
 *
 * FOLDER holds the program load and gets pause.json. Targets are those of p50 and p99.
 */
#include "tests/bench/bench.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "agent/util/cleanup.h"
#include "tests/bench/rows.h"

enum { TAKES = 30, TAKES_MAX = 1000, INTERVAL_MS = 300, OVERHEAD_ROUNDS = 3, BLOCK_S = 6 };

struct bench_case {
	const char *name;
	struct bench_load load;
	uint64_t p50_us, p99_us; /* targets; 0: none */
	unsigned int criu_takes; /* each with a full copy: a few must do where that takes long */
};

static const struct bench_case cases[] = {
	{ "64m-1t", { 64, 1, 1, 1, 10000, false }, 300, 1000, TAKES },
	{ "1g-1t", { 1024, 1, 1, 1, 10000, false }, 1500, 3000, TAKES },
	{ "1g-8t", { 1024, 8, 8, 1, 10000, false }, 2000, 4000, TAKES },
	{ "4g-1t", { 4096, 1, 1, 1, 10000, false }, 5000, 8000, 6 },
	{ "64m-64t", { 64, 64, 1, 1, 10000, false }, 2000, 4000, TAKES },
	{ "tree-16p", { 1, 1, 1, 16, 1000, false }, 4000, 8000, TAKES },
	{ "1g-thp", { 1024, 1, 1, 1, 10000, true }, 0, 0, 0 },
	{ "4g-thp", { 4096, 1, 1, 1, 10000, true }, 0, 0, 0 },
};

static const char overhead_name[] = "1g-overhead";
static const struct bench_load overhead_load = { 1024, 1, 1, 1, 10000, false };
enum { OVERHEAD_TARGET_PERCENT = 2 };

struct metric {
	const char *name, *unit;
	double (*get)(const struct sample *s);
};

#define METRIC(id, expr)                               \
	static double get_##id(const struct sample *s) \
	{                                              \
		return (double)(expr);                 \
	}
METRIC(pause, s->pause_us)
METRIC(felt, s->felt_us)
METRIC(freeze, s->native.freeze_us)
METRIC(state, s->native.state_us)
METRIC(regs, s->native.regs_us)
METRIC(files, s->native.files_us)
METRIC(scan, s->native.mem.scan_us)
METRIC(list, s->native.mem.list_us)
METRIC(holes, s->native.mem.holes_us)
METRIC(copy, s->native.copy_us)
METRIC(wait, s->native.wait_us)
METRIC(thaw, s->native.thaw_us)
METRIC(away, s->native.away_us)
METRIC(walk, s->walk_us)
METRIC(wall, s->wall_us)
METRIC(cpu, s->native.cpu_us)
METRIC(rounds, s->native.mem.rounds)
METRIC(residue, s->native.mem.residue_bytes / 4096)
METRIC(new_pages, s->native.mem.new_bytes / 4096)
METRIC(read, s->native.mem.read_bytes)
METRIC(false_dirty, s->native.mem.false_dirty)
METRIC(rate, s->native.mem.dirty_rate)

/* The first two are taken of both engines. */
static const struct metric metrics[] = {
	{ "pause", "us", get_pause },
	{ "felt", "us", get_felt },
	{ "wall", "us", get_wall },
	{ "step-freeze", "us", get_freeze },
	{ "step-state", "us", get_state },
	{ "step-regs", "us", get_regs },
	{ "step-files", "us", get_files },
	{ "step-scan", "us", get_scan },
	{ "step-list", "us", get_list },
	{ "step-holes", "us", get_holes },
	{ "step-copy", "us", get_copy },
	{ "step-wait", "us", get_wait },
	{ "step-thaw", "us", get_thaw },
	{ "away", "us", get_away },	 /* part of state to copy: others had the processor */
	{ "step-walk", "us", get_walk }, /* at the same time as the others */
	{ "cpu", "us", get_cpu },
	{ "rounds", "rounds", get_rounds },
	{ "residue", "pages", get_residue },
	{ "new", "pages", get_new_pages },
	{ "read", "bytes", get_read },
	{ "false-dirty", "pages", get_false_dirty },
	{ "rate", "pages/s", get_rate },
};
enum { METRICS_OF_CRIU = 3 };

struct bench {
	const char *criu;
	char load[512];
	bool native_only, direct;
	unsigned int takes;
	struct rows *rows;
	unsigned int failed;
	struct sample samples[TAKES_MAX];
	double stolen; /* percent of the processors, while the last samples were taken */
};

static volatile sig_atomic_t stopped;

static void on_stop(int number)
{
	(void)number;
	stopped = 1;
}

static void report_one(struct bench *b, const struct bench_case *c, const char *engine,
		       const char *metric, const char *unit, double value)
{
	rows_add(b->rows, &(struct row){ .name = c->name,
					 .engine = engine,
					 .metric = metric,
					 .unit = unit,
					 .value = value });
}

static void report(struct bench *b, const struct bench_case *c, const char *engine, size_t count,
		   size_t metric_count)
{
	static double values[TAKES_MAX];

	for (const struct metric *m = metrics; m < metrics + metric_count; m++) {
		bool target = m->get == get_pause && !strcmp(engine, "native");

		for (size_t i = 0; i < count; i++)
			values[i] = m->get(&b->samples[i]);
		rows_add(b->rows, &(struct row){ .name = c->name,
						 .engine = engine,
						 .metric = m->name,
						 .unit = m->unit,
						 .figures = values,
						 .count = count,
						 .target = target ? (double)c->p50_us : 0,
						 .target_p99 = target ? (double)c->p99_us : 0 });
	}
	report_one(b, c, engine, "stolen", "percent", b->stolen);
}

/* Of a virtual machine: what its host took of the processors, in ticks; and all there were. */
static void read_ticks(double *ret_stolen, double *ret_all)
{
	double v[8] = { 0 };
	FILE *f = fopen("/proc/stat", "re");

	*ret_stolen = *ret_all = 0;
	if (f && fscanf(f, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &v[0], &v[1], &v[2], &v[3], &v[4],
			&v[5], &v[6], &v[7]) == 8)
		*ret_stolen = v[7];
	for (size_t i = 0; i < ARRAY_SIZE(v); i++)
		*ret_all += v[i];
	if (f)
		fclose(f);
}

static size_t take_all(struct bench *b, struct subject *s, enum engine engine, unsigned int takes)
{
	double stolen, all, stolen_after, all_after;
	size_t count = 0;

	read_ticks(&stolen, &all);
	for (unsigned int i = 0; i < takes && !stopped; i++) {
		usleep(INTERVAL_MS * 1000);
		if (subject_take(s, engine, &b->samples[count]))
			count++;
		else
			b->failed++;
		if (b->failed > 5)
			break;
	}
	read_ticks(&stolen_after, &all_after);
	b->stolen = all_after > all ? 100 * (stolen_after - stolen) / (all_after - all) : 0;
	return count;
}

static void run_native(struct bench *b, const struct bench_case *c)
{
	struct subject *s = subject_start(&c->load, b->load, b->criu, b->direct);
	struct sample first;
	size_t count = 0;

	/* The first one copies everything; what it costs is told apart. */
	if (subject_take(s, ENGINE_NATIVE, &first))
		count = take_all(b, s, ENGINE_NATIVE, b->takes);
	else
		b->failed++;
	if (count) {
		report(b, c, "native", count, ARRAY_SIZE(metrics));
		report_one(b, c, "native", "first-pause", "us", (double)first.pause_us);
		report_one(b, c, "native", "attach", "us", first.native.mem.attach_us);
		report_one(b, c, "native", "detach", "us", (double)subject_release(s));
		printf("%s: tracker %s\n", c->name, first.native.mem.tracker);
	}
	subject_stop(s);
}

static void run_criu(struct bench *b, const struct bench_case *c)
{
	unsigned int takes = c->criu_takes < b->takes ? c->criu_takes : b->takes;
	struct subject *s;
	struct sample first;
	size_t count = 0;

	if (b->native_only || b->direct || !takes)
		return;
	s = subject_start(&c->load, b->load, b->criu, false);
	/* The first one fills CRIU's cache of what the kernel can do. */
	if (subject_take(s, ENGINE_CRIU, &first))
		count = take_all(b, s, ENGINE_CRIU, takes);
	if (count)
		report(b, c, "criu", count, METRICS_OF_CRIU);
	subject_stop(s);
}

/* Work of the main thread in a block of time, per second. */
static double speed(const struct subject *s, double seconds, bool checkpoints, struct bench *b)
{
	static struct load_status before, after;
	struct timespec begin, now;
	double passed = 0, next = 0;

	subject_status(s, &before);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	while (passed < seconds && !stopped) {
		if (checkpoints && passed >= next) {
			struct sample sample;

			if (!subject_take((struct subject *)s, ENGINE_NATIVE, &sample))
				b->failed++;
			next += 1;
		}
		usleep(2000);
		clock_gettime(CLOCK_MONOTONIC, &now);
		passed = (double)(now.tv_sec - begin.tv_sec) +
			 (double)(now.tv_nsec - begin.tv_nsec) / 1e9;
	}
	subject_status(s, &after);
	return (double)(after.iterations - before.iterations) / passed;
}

/* With and without in turns: the machine's speed drifts. */
static void run_overhead(struct bench *b)
{
	struct subject *s = subject_start(&overhead_load, b->load, b->criu, b->direct);
	double lost[OVERHEAD_ROUNDS];
	struct sample first;

	for (int i = 0; i < OVERHEAD_ROUNDS && !stopped; i++) {
		double alone = speed(s, BLOCK_S, false, b), taken;

		if (!subject_take(s, ENGINE_NATIVE, &first)) {
			b->failed++;
			break;
		}
		usleep(500000);
		taken = speed(s, BLOCK_S, true, b);
		subject_release(s);
		alone = (alone + speed(s, BLOCK_S, false, b)) / 2;
		lost[i] = (1 - taken / alone) * 100;
		printf("%s: %.0f iterations/s alone, %.0f with a checkpoint each second: %.2f %%\n",
		       overhead_name, alone, taken, lost[i]);
		if (i + 1 < OVERHEAD_ROUNDS)
			continue;
		rows_add(b->rows, &(struct row){ .name = overhead_name,
						 .engine = "native",
						 .metric = "slowdown",
						 .unit = "percent",
						 .figures = lost,
						 .count = OVERHEAD_ROUNDS,
						 .target = OVERHEAD_TARGET_PERCENT });
	}
	subject_stop(s);
}

static bool wanted(const char *name, char *const *names, int count)
{
	for (int i = 0; i < count; i++) {
		if (!strcmp(names[i], name))
			return true;
	}
	return !count;
}

static void print_machine(void)
{
	double average[3] = { 0 };

	(void)!getloadavg(average, 3);
	printf("%ld processors, load %.2f %.2f\n", sysconf(_SC_NPROCESSORS_ONLN), average[0],
	       average[1]);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "case", required_argument, NULL, 'c' },
						 { "takes", required_argument, NULL, 't' },
						 { "native-only", no_argument, NULL, 'n' },
						 { "direct", no_argument, NULL, 'd' },
						 { 0 } };
	static struct bench b = { .takes = TAKES };
	char *names[16], path[512];
	int count = 0, option;

	while ((option = getopt_long(argc, argv, "c:t:nd", options, NULL)) != -1) {
		if (option == 'c' && count < 16)
			names[count++] = optarg;
		else if (option == 't' && atoi(optarg) > 0 && atoi(optarg) <= TAKES_MAX)
			b.takes = (unsigned int)atoi(optarg);
		else if (option == 'n')
			b.native_only = true;
		else if (option == 'd')
			b.direct = true;
		else
			return 2;
	}
	if (optind + 1 != argc)
		return 2;
	snprintf(b.load, sizeof(b.load), "%s/load", argv[optind]);
	snprintf(path, sizeof(path), "%s/pause.json", argv[optind]);
	b.criu = getenv("DECAMP_CRIU") ?: "criu";
	print_machine();
	b.rows = rows_open(path);
	if (!b.rows) {
		perror(path);
		return 1;
	}
	signal(SIGINT, on_stop);
	signal(SIGTERM, on_stop);
	for (size_t i = 0; i < ARRAY_SIZE(cases) && !stopped; i++) {
		if (!wanted(cases[i].name, names, count))
			continue;
		run_native(&b, &cases[i]);
		if (!stopped)
			run_criu(&b, &cases[i]);
	}
	if (wanted(overhead_name, names, count) && !stopped)
		run_overhead(&b);
	print_machine();
	printf("%u targets missed, %u checkpoints failed\n", rows_close(b.rows), b.failed);
	return b.failed || stopped ? 1 : 0;
}
