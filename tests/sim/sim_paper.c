// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * sim_paper [OPTION]... [FOLDER]: the paper's experiment, exactly and simulated, and decamp's own
 * policy on the same axis. Prints tables; FOLDER gets paper.json. Exit code 1: a target is missed.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/host/host.h"
#include "tests/sim/paper_policy.h"
#include "tests/sim/simnet.h"

enum { HANDOVERS_MAX = 100000, LIVES_MIN = 30 }; /* fewer have no standard error */

static const double axis_x[] = { 0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1 };
static const double axis_a[] = { 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1 };
static const double sweep_x[] = { 0.5, 1 };
#define RATIO_TARGET 1.15 /* of decamp's policy at x = 0.5 */

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

struct run {
	uint64_t seed, stream;
	uint32_t trials, lives, handovers;
	struct paper_cores cores;
	struct paper_policy policy;
	double *handover_s;
	FILE *text; /* NULL: JSON is printed instead */
	FILE *json;
	uint32_t rows, missed, points, repeated;
	double square_sum; /* of the first distances */
};

static void row(struct run *run, const char *name, const char *engine, const char *metric,
		const char *unit, double value, double target, int holds)
{
	FILE *out = run->json;

	run->rows++;
	run->missed += holds == 0;
	fprintf(out,
		"%s\n  {\"case\": \"%s\", \"engine\": \"%s\", \"metric\": \"%s\", \"unit\": \"%s\", "
		"\"value\": %.6g, ",
		run->rows > 1 ? "," : "", name, engine, metric, unit, value);
	if (holds < 0)
		fprintf(out, "\"target\": null, \"holds\": null}");
	else
		fprintf(out, "\"target\": %.6g, \"holds\": %s}", target, holds ? "true" : "false");
}

static void say(const struct run *run, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
static void say(const struct run *run, const char *format, ...)
{
	va_list ap;

	if (!run->text)
		return;
	va_start(ap, format);
	vfprintf(run->text, format, ap);
	va_end(ap);
	fflush(run->text);
}

static void name_of(const struct paper_case *c, char name[48])
{
	if (c->shared)
		snprintf(name, 48, "%s-shared-%.0f-x%g", c->recovers ? "cr" : "cs",
			 100 * c->available, c->failures);
	else
		snprintf(name, 48, "%s-private-x%g", c->recovers ? "cr" : "cs", c->failures);
}

/* One point: exact, simulated, compared. */
static void point(struct run *run, const struct paper_case *c)
{
	double exact = paper_exact(c), first;
	struct paper_estimate e;
	char name[48];
	bool agrees =
		paper_agrees(c, run->seed, run->stream++, run->trials, PAPER_RIGHT, &e, &first);

	name_of(c, name);
	row(run, name, "exact", "ratio", "1", exact / PAPER_UNITS, 0, -1);
	row(run, name, "sim", "ratio", "1", e.mean / PAPER_UNITS, exact / PAPER_UNITS, agrees);
	row(run, name, "sim", "ratio-se", "1", e.error / PAPER_UNITS, 0, -1);
	if (c->failures > 0) {
		run->points++;
		run->square_sum += first * first;
		run->repeated += e.trials > run->trials;
	}
	say(run, " %9.3f %+5.1f%s", exact / PAPER_UNITS, paper_distance(&e, exact),
	    agrees ? " " : "!");
}

static void failure_axis(struct run *run)
{
	say(run,
	    "Turnaround / ideal against failures per interval: exact, and how far the simulation is\n"
	    "off in standard errors (%u trials a point)\n\n"
	    "    x      CR private    CR shared 50%%    CR shared 99%%       CS private    CS shared "
	    "50%%"
	    "    CS shared 99%%\n",
	    run->trials);
	for (uint32_t i = 0; i < COUNT(axis_x); i++) {
		say(run, " %4.2f", axis_x[i]);
		for (uint32_t k = 0; k < 6; k++) {
			struct paper_case c = {
				.recovers = k<3, .shared = k % 3> 0,
				.failures = axis_x[i],
				.available = k % 3 == 1 ? 0.5 : 0.99,
			};

			point(run, &c);
		}
		say(run, "\n");
	}
}

static void availability_axis(struct run *run)
{
	say(run, "\nShared, against availability\n\n    A       CR x=0.5         CR x=1"
		 "         CS x=0.5         CS x=1\n");
	for (uint32_t i = 0; i < COUNT(axis_a); i++) {
		say(run, " %4.2f", axis_a[i]);
		for (uint32_t k = 0; k < 2 * COUNT(sweep_x); k++) {
			struct paper_case c = {
				.recovers = k < COUNT(sweep_x),
				.shared = true,
				.failures = sweep_x[k % COUNT(sweep_x)],
				.available = axis_a[i],
			};

			point(run, &c);
		}
		say(run, "\n");
	}
}

/* Single points may be off by chance; all of them together may not. */
static void all_points(struct run *run)
{
	double mean = run->square_sum / run->points;
	double target = 1 + 3 * sqrt(2.0 / run->points);

	row(run, "all-points", "sim", "square-distance", "1", mean, target, mean <= target);
	say(run,
	    "\n%u points, %u of them simulated again; mean squared distance %.2f (at most %.2f)\n",
	    run->points, run->repeated, mean, target);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void handovers(struct run *run)
{
	static const struct {
		const char *name;
		double share;
	} quantiles[] = {
		{ "min", 0 }, { "p50", 0.5 }, { "p90", 0.9 }, { "p99", 0.99 }, { "max", 1 }
	};
	uint32_t count = run->handovers;
	double sum = 0;

	paper_core_handovers(&run->cores, count, run->handover_s);
	qsort(run->handover_s, count, sizeof(run->handover_s[0]), by_value);
	for (uint32_t i = 0; i < count; i++)
		sum += run->handover_s[i];
	say(run, "\nHand-overs of real cores, s: %u of them, mean %.2f", count, sum / count);
	row(run, "handover", "cores", "mean", "s", sum / count, 0, -1);
	for (uint32_t i = 0; i < COUNT(quantiles); i++) {
		double value = run->handover_s[(uint32_t)(quantiles[i].share * (count - 1) + 0.5)];

		say(run, ", %s %.2f", quantiles[i].name, value);
		row(run, "handover", "cores", quantiles[i].name, "s", value, 0, -1);
	}
	say(run, "\n");
	run->policy.handover_s = run->handover_s;
	run->policy.handover_count = count;
}

static void policy_point(struct run *run, const struct paper_policy *policy, const char *name,
			 bool aimed, struct paper_estimate *ret_estimate)
{
	struct paper_dice dice;
	double ideal = paper_policy_work_s(policy), ratio;

	paper_dice_init(&dice, run->seed, UINT64_C(1) << 32 | run->stream++);
	paper_policy_simulate(policy, dice, run->trials, ret_estimate);
	ratio = ret_estimate->mean / ideal;
	row(run, name, "sim", "ratio", "1", ratio, RATIO_TARGET,
	    aimed ? ratio <= RATIO_TARGET : -1);
	row(run, name, "sim", "ratio-se", "1", ret_estimate->error / ideal, 0, -1);
	say(run, "   %7.4f +-%.4f", ratio, ret_estimate->error / ideal);
}

static void policy_axes(struct run *run)
{
	static const double shares[] = { 0.5, 0.9, 0.99 };
	struct paper_estimate e;
	char name[48];

	say(run,
	    "\ndecamp: unit %g s, pause %" PRIu64 " us, committed after %" PRIu64
	    " us, restore %g s, interval %g s (first %g s)\n\n"
	    "    x              A=0.5              A=0.9             A=0.99\n",
	    run->policy.unit_s, run->policy.pause_us, run->policy.total_us, run->policy.resume_s,
	    paper_policy_interval_s(&run->policy, false),
	    paper_policy_interval_s(&run->policy, true));
	for (uint32_t i = 0; i < COUNT(axis_x); i++) {
		say(run, " %4.2f", axis_x[i]);
		for (uint32_t k = 0; k < COUNT(shares); k++) {
			struct paper_policy policy = run->policy;

			policy.failures = axis_x[i];
			policy.available = shares[k];
			snprintf(name, sizeof(name), "decamp-cs-%.0f-x%g", 100 * shares[k],
				 axis_x[i]);
			policy_point(run, &policy, name, axis_x[i] == 0.5 && shares[k] == 0.99, &e);
		}
		say(run, "\n");
	}
	say(run, "\n    A              x=0.5                x=1\n");
	for (uint32_t i = 1; i < COUNT(axis_a); i++) {
		say(run, " %4.2f", axis_a[i]);
		for (uint32_t k = 0; k < COUNT(sweep_x); k++) {
			struct paper_policy policy = run->policy;

			policy.failures = sweep_x[k];
			policy.available = axis_a[i];
			snprintf(name, sizeof(name), "decamp-sweep-%.0f-x%g", 100 * axis_a[i],
				 sweep_x[k]);
			policy_point(run, &policy, name, false, &e);
		}
		say(run, "\n");
	}
}

/* What the measured figures would have to be for another answer. */
static void policy_sensitivity(struct run *run)
{
	static const uint32_t totals_ms[] = { 100, 300, 1000, 3000, 10000, 30000 };
	static const uint32_t resumes_s[] = { 1, 3, 10, 30 };
	struct paper_estimate e;
	char name[48];

	say(run, "\nx=0.5, A=0.99: committed after (ms, interval s) against restore (s)\n\n"
		 "                 ");
	for (uint32_t k = 0; k < COUNT(resumes_s); k++)
		say(run, "%19u", resumes_s[k]);
	say(run, "\n");
	for (uint32_t i = 0; i < COUNT(totals_ms); i++) {
		struct paper_policy policy = run->policy;

		policy.failures = 0.5;
		policy.total_us = totals_ms[i] * UINT64_C(1000);
		say(run, " %6u %9.0f", totals_ms[i], paper_policy_interval_s(&policy, false));
		for (uint32_t k = 0; k < COUNT(resumes_s); k++) {
			policy.resume_s = resumes_s[k];
			snprintf(name, sizeof(name), "decamp-total-%ums-resume-%us", totals_ms[i],
				 resumes_s[k]);
			policy_point(run, &policy, name, false, &e);
		}
		say(run, "\n");
	}
}

/* What each part costs, and where the policy ends. */
static void policy_parts(struct run *run)
{
	static const double at_once_s;
	static const char *const names[] = { "all",	    "no-handover", "no-restore", "no-lag",
					     "interval-30", "unit-10s",	   "unit-600s" };
	struct paper_estimate e;
	char name[48];

	say(run, "\nx=0.5, A=0.99: parts\n\n");
	for (uint32_t i = 0; i < COUNT(names); i++) {
		struct paper_policy policy = run->policy;

		policy.failures = 0.5;
		if (i == 1) {
			policy.handover_s = &at_once_s;
			policy.handover_count = 1;
		} else if (i == 2) {
			policy.resume_s = 0;
		} else if (i == 3) {
			policy.interval_s = paper_policy_interval_s(&policy, false);
			policy.total_us = policy.pause_us;
		} else if (i == 4) {
			policy.interval_s = 30;
		} else if (i > 4) {
			policy.unit_s = i == 5 ? 10 : 600;
		}
		say(run, " %-12s", names[i]);
		snprintf(name, sizeof(name), "decamp-parts-%s", names[i]);
		policy_point(run, &policy, name, false, &e);
		say(run, "\n");
	}
}

/* Whole lives on real cores against the flow model that draws their hand-overs. */
static void lives(struct run *run)
{
	struct paper_policy policy = run->policy;
	double ideal = paper_policy_work_s(&policy), gap;
	struct paper_estimate flow, real;
	struct paper_sum sum = { 0 };
	struct paper_dice dice;
	bool agrees;

	policy.failures = 0.5;
	for (uint32_t i = 0; i < run->lives; i++) {
		struct paper_cores cores = run->cores;

		paper_dice_init(&dice, run->seed, UINT64_C(2) << 32 | i);
		cores.seed = paper_dice_next(&dice);
		paper_sum_add(&sum, paper_core_life(&cores, &policy));
	}
	paper_sum_estimate(&sum, &real);
	say(run, "\nThe same at x=0.5, A=0.99: flows");
	policy_point(run, &policy, "decamp-flows-cs-99-x0.5", false, &flow);
	gap = (real.mean - flow.mean) / hypot(real.error, flow.error);
	agrees = fabs(gap) <= 3;
	row(run, "decamp-cores-cs-99-x0.5", "cores", "ratio", "1", real.mean / ideal,
	    flow.mean / ideal, agrees);
	row(run, "decamp-cores-cs-99-x0.5", "cores", "ratio-se", "1", real.error / ideal, 0, -1);
	say(run, "; %u lives with real cores   %7.4f +-%.4f (%+.1f standard errors)\n", run->lives,
	    real.mean / ideal, real.error / ideal, gap);
}

static int usage(FILE *out, int code)
{
	fprintf(out,
		"usage: sim_paper [OPTION]... [FOLDER]\n"
		"The paper's experiment and decamp's own policy; FOLDER gets paper.json.\n\n"
		"  --seed=N        all dice (1)\n"
		"  --trials=N      of each point (50000)\n"
		"  --handovers=N   measured with real cores (400)\n"
		"  --lives=N       whole jobs with real cores (200; 0: none, else at least 30)\n"
		"  --hosts=N       of the cluster of real cores (10)\n"
		"  --unit-s=S      one unit of the paper, for decamp's policy\n"
		"  --pause-us=N    of an interval checkpoint\n"
		"  --total-us=N    from its start until it is committed\n"
		"  --resume-ms=N   from the lease to a running job\n"
		"  --json          the rows on standard output instead of tables\n"
		"  --help          this text\n");
	return code;
}

static const struct option options[] = {
	{ "seed", required_argument, NULL, 's' },
	{ "trials", required_argument, NULL, 't' },
	{ "handovers", required_argument, NULL, 'o' },
	{ "lives", required_argument, NULL, 'l' },
	{ "hosts", required_argument, NULL, 'n' },
	{ "unit-s", required_argument, NULL, 'u' },
	{ "pause-us", required_argument, NULL, 'p' },
	{ "total-us", required_argument, NULL, 'c' },
	{ "resume-ms", required_argument, NULL, 'r' },
	{ "json", no_argument, NULL, 'j' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static int take_number(struct run *run, int option, const char *text)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || value > UINT32_MAX)
		return -EINVAL;
	if (option == 's')
		run->seed = value;
	else if (option == 't')
		run->trials = (uint32_t)value;
	else if (option == 'o')
		run->handovers = (uint32_t)value;
	else if (option == 'l')
		run->lives = (uint32_t)value;
	else if (option == 'n')
		run->cores.hosts = (uint32_t)value;
	else if (option == 'u')
		run->policy.unit_s = (double)value;
	else if (option == 'p')
		run->policy.pause_us = value;
	else if (option == 'c')
		run->policy.total_us = value;
	else
		run->policy.resume_s = (double)value / 1e3;
	return 0;
}

static bool makes_sense(const struct run *run)
{
	return run->trials >= 2 && run->handovers >= 1 && run->handovers <= HANDOVERS_MAX &&
	       (run->lives == 0 || run->lives >= LIVES_MIN) && run->cores.hosts >= 3 &&
	       run->cores.hosts <= SIMNET_NODES_MAX && run->policy.unit_s >= 1 &&
	       run->policy.total_us >= run->policy.pause_us;
}

/* To a file of this folder, if there is one. */
static int save_json(const char *folder, const char *text, size_t size)
{
	char path[4096];
	FILE *out;
	bool written;

	if (!folder)
		return 0;
	snprintf(path, sizeof(path), "%s/paper.json", folder);
	out = fopen(path, "we");
	if (!out)
		return -errno;
	written = fwrite(text, 1, size, out) == size;
	return fclose(out) == 0 && written ? 0 : -EIO;
}

static void everything(struct run *run)
{
	failure_axis(run);
	availability_axis(run);
	all_points(run);
	handovers(run);
	policy_axes(run);
	policy_sensitivity(run);
	policy_parts(run);
	if (run->lives)
		lives(run);
}

static int fail(int r)
{
	fprintf(stderr, "sim_paper: %s\n", strerror(-r));
	return 2;
}

int main(int argc, char **argv)
{
	struct run run = {
		.seed = 1,
		.trials = 50000,
		.lives = 200,
		.handovers = 400,
		.cores = { .hosts = 10, .latency_ms = 5, .loss_ppm = 1000 },
		.text = stdout,
	};
	char *json = NULL;
	size_t json_size;
	int option, r;

	paper_policy_default(&run.policy);
	while ((option = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
		if (option == 'h')
			return usage(stdout, 0);
		if (option == 'j')
			run.text = NULL;
		else if (option == '?' || take_number(&run, option, optarg) < 0)
			return usage(stderr, 2);
	}
	if (argc - optind > 1 || !makes_sense(&run))
		return usage(stderr, 2);
	run.cores.seed = run.seed;
	run.handover_s = calloc(run.handovers, sizeof(run.handover_s[0]));
	run.json = open_memstream(&json, &json_size);
	if (!run.json || !run.handover_s)
		return fail(-ENOMEM);
	fprintf(run.json, "{\"rows\": [");
	say(&run, "sim_paper: seed=%" PRIu64 " trials=%u hosts=%u\n\n", run.seed, run.trials,
	    run.cores.hosts);
	everything(&run);
	fprintf(run.json, "\n]}\n");
	free(run.handover_s);
	if (fclose(run.json) != 0)
		return fail(-ENOMEM);
	if (!run.text)
		fputs(json, stdout);
	say(&run, "%s\n", run.missed ? "FAILED: a target is missed" : "all targets hold");
	r = save_json(argv[optind], json, json_size);
	free(json);
	if (r < 0)
		return fail(r);
	return run.missed > 0;
}
