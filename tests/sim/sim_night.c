/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sim_night [--shards] SEED DAYS NODES [FOLDER]: what is unavailable by night, for this product's
 * placement and for its rivals, on the same lab; a table, and FOLDER/night.json. --shards: only what
 * is kept as shards. Ends with 1 if a target is missed.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "tests/sim/night.h"

enum { OBJECTS = 2000, QUIET_NIGHTS = 3 };

#define TARGET 1e-3

struct output {
	FILE *json;
	bool first, failed;
};

static void row(struct output *out, const char *name, const char *metric, const char *unit,
		double value, double target)
{
	bool held = value < target || (target == 0 && value == 0);

	if (!out->json)
		return;
	fprintf(out->json, "%s\n{\"case\": \"%s\", \"engine\": \"decamp\", \"metric\": \"%s\", ",
		out->first ? "" : ",", name, metric);
	fprintf(out->json, "\"unit\": \"%s\", \"value\": %.9g, ", unit, value);
	if (target < 0)
		fprintf(out->json, "\"target\": null, \"holds\": null}");
	else
		fprintf(out->json, "\"target\": %g, \"holds\": %s}", target,
			held ? "true" : "false");
	out->first = false;
}

static void require(struct output *out, const char *name, const char *what, bool held)
{
	if (held)
		return;
	printf("sim_night: MISSED: %s: %s\n", name, what);
	out->failed = true;
}

enum promise { RIVAL, KEEPS };

static void run(struct output *out, const struct night_setup *set, enum promise promise)
{
	bool keeps = promise == KEEPS;
	struct night_result r;

	night_run(set, &r);
	printf("%-26s %9.1e %9.1e %9.1e %8.3f %7.2f %7.1f%% %7.1f%% %7.1f%% %6.2f%% %6.2f%% %5llu\n",
	       set->name, r.unavailable, r.by_night, r.by_day, r.repairs, r.stored,
	       100 * r.storm_wanted, 100 * r.storm_evening, 100 * r.storm_sent,
	       100 * r.wrong_leaves, 100 * r.wrong_stays, (unsigned long long)r.lost);
	fflush(stdout);
	row(out, set->name, "unavailability", "1", r.unavailable, keeps ? TARGET : -1);
	row(out, set->name, "unavailability-night", "1", r.by_night, keeps ? TARGET : -1);
	row(out, set->name, "unavailability-day", "1", r.by_day, keeps ? TARGET : -1);
	row(out, set->name, "repair", "objects per object and day", r.repairs, -1);
	row(out, set->name, "stored", "copies", r.stored, -1);
	row(out, set->name, "storm-wanted", "1", r.storm_wanted, -1);
	row(out, set->name, "storm-evening", "1", r.storm_evening, -1);
	row(out, set->name, "storm-sent", "1 per 5 min", r.storm_sent, -1);
	row(out, set->name, "wrong-leaves", "1", r.wrong_leaves, -1);
	row(out, set->name, "wrong-stays", "1", r.wrong_stays, -1);
	row(out, set->name, "lost", "objects", (double)r.lost, set->repair ? 0 : -1);
	if (keeps) {
		require(out, set->name, "unavailability by night", r.by_night < TARGET);
		require(out, set->name, "unavailability", r.unavailable < TARGET);
	}
	if (set->repair)
		require(out, set->name, "permanent losses", r.lost == 0);
	if (set->change_day) {
		uint32_t nights = night_relearned(set, &r, TARGET, QUIET_NIGHTS);

		printf("%-26s nights from the change:", "");
		for (uint32_t i = 0; i < 7 && set->change_day + i < set->learn_days + set->days;
		     i++)
			printf(" %.1e", r.nightly[set->change_day + i]);
		if (nights == UINT32_MAX) {
			printf("; not below %.0e for %u nights in this run\n", TARGET,
			       QUIET_NIGHTS);
			return;
		}
		printf("; below %.0e after %u nights\n", TARGET, nights);
		row(out, set->name, "relearned", "nights", nights, -1);
	}
}

static void rivals(struct output *out, const struct night_setup *base)
{
	struct night_setup set = *base;

	set.rule.stable = 0;
	set.knowledge = NIGHT_BLIND;
	set.name = "blind-3-no-repair";
	set.repair = false;
	run(out, &set, RIVAL);
	set.name = "blind-3";
	set.repair = true;
	run(out, &set, RIVAL);
	set.knowledge = NIGHT_CLASS;
	for (uint32_t stable = 1; stable <= 2; stable++) {
		set.rule.stable = stable;
		set.name = stable == 1 ? "given-1-stable-no-repair" : "given-2-stable-no-repair";
		set.repair = false;
		run(out, &set, RIVAL);
		set.name = stable == 1 ? "given-1-stable" : "given-2-stable";
		set.repair = true;
		run(out, &set, RIVAL);
	}
	set.knowledge = NIGHT_PERFECT;
	set.name = "given-2-stable-weighed";
	run(out, &set, KEEPS);
}

static void sensitivity(struct output *out, const struct night_setup *base)
{
	struct night_setup set = *base;

	set.name = "learned-weekends-holiday";
	set.learn_days = 21;
	set.weekends = true;
	set.holiday_day = 32;
	run(out, &set, KEEPS);
	set = *base;
	set.name = "learned-one-more-closes";
	set.change_day = set.learn_days + 7;
	run(out, &set, KEEPS);
	set.name = "learned-two-rooms-swap";
	set.swap = true;
	run(out, &set, RIVAL);
	set = *base;
	set.name = "learned-from-nothing";
	set.learn_days = 0;
	set.change_day = 0;
	run(out, &set, RIVAL);
	set.name = "configured-from-nothing";
	set.knowledge = NIGHT_CONFIGURED;
	run(out, &set, KEEPS);
	set = *base;
	set.name = "learned-churn-20-percent";
	set.off_percent = 20;
	run(out, &set, RIVAL);
	set = *base;
	set.name = "learned-wipe-30-days";
	set.wipe_days = 30;
	run(out, &set, KEEPS);
	set = *base;
	set.name = "learned-disks-nearly-full";
	/* Those that stay on have room for 2.6 copies in all. */
	set.quota_bytes = set.object_bytes * set.objects * 26 / 10 * set.rooms /
			  (set.hosts * (set.rooms - set.closing));
	run(out, &set, RIVAL);
}

static void coded_run(struct output *out, const struct night_setup *set, enum promise promise)
{
	bool keeps = promise == KEEPS;
	struct night_result r;

	night_run(set, &r);
	printf("%-26s %9.1e %9.1e %9.1e %8.3f %7.2f %6.1f%% %5u %5u %5u %9.1e %5llu\n", set->name,
	       r.coded_unavailable, r.coded_by_night, r.coded_by_day, r.repairs, r.coded_size,
	       100 * r.coded, r.schemes[0], r.schemes[1], r.schemes[2], r.unavailable,
	       (unsigned long long)r.lost);
	fflush(stdout);
	row(out, set->name, "unavailability", "1", r.coded_unavailable, keeps ? TARGET : -1);
	row(out, set->name, "unavailability-night", "1", r.coded_by_night, keeps ? TARGET : -1);
	row(out, set->name, "unavailability-day", "1", r.coded_by_day, keeps ? TARGET : -1);
	row(out, set->name, "repair", "objects per object and day", r.repairs, -1);
	row(out, set->name, "stored", "objects", r.coded_size, -1);
	row(out, set->name, "coded", "1", r.coded, -1);
	row(out, set->name, "lost", "objects", (double)r.lost, 0);
	require(out, set->name, "permanent losses", r.lost == 0);
	if (keeps) {
		require(out, set->name, "unavailability by night", r.coded_by_night < TARGET);
		require(out, set->name, "unavailability", r.coded_unavailable < TARGET);
	}
}

/* Old checkpoints as shards; of those that are, while they are. */
static void shards(struct output *out, const struct night_setup *base)
{
	static const struct {
		const char *name;
		struct core_scheme scheme;
		enum promise promise;
	} cases[] = { { "shards-auto", { 0, 0 }, KEEPS },
		      { "shards-4+2", { 4, 2 }, RIVAL },
		      { "shards-4+4", { 4, 4 }, RIVAL },
		      { "shards-8+8", { 8, 8 }, RIVAL } };
	static const uint32_t off[] = { 2, 4, 7, 20 };
	struct night_setup set = *base;

	printf("%-26s %9s %9s %9s %8s %7s %7s %5s %5s %5s %9s %5s\n", "case", "unavail.",
	       "by night", "by day", "rep/day", "stored", "coded", "4+2", "4+4", "8+8", "with all",
	       "lost");
	set.coded = true;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		set.name = cases[i].name;
		set.scheme = cases[i].scheme;
		coded_run(out, &set, cases[i].promise);
	}
	set.scheme = (struct core_scheme){ 0 };
	set.name = "shards-auto-given-off-5";
	set.knowledge = NIGHT_PERFECT;
	set.off_percent = 5;
	coded_run(out, &set, KEEPS);
	set.knowledge = base->knowledge;
	set.off_percent = base->off_percent;
	set.name = "shards-auto-one-more";
	set.change_day = set.learn_days + 7;
	coded_run(out, &set, KEEPS);
	set.change_day = 0;
	for (size_t i = 0; i < sizeof(off) / sizeof(off[0]); i++) {
		char name[40];

		snprintf(name, sizeof(name), "shards-auto-off-%u", off[i]);
		set.name = name;
		set.off_percent = off[i];
		/* Copies stay, mostly, and shards are tried again and again: that takes time. */
		set.objects = off[i] < 20 ? base->objects : base->objects / 4;
		coded_run(out, &set, off[i] < 20 ? KEEPS : RIVAL);
	}
}

static double cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec / 1e6;
}

int main(int argc, char **argv)
{
	struct output out = { .first = true };
	const char *commit = getenv("SIM_COMMIT");
	struct night_setup base;
	bool only_shards = argc > 1 && strcmp(argv[1], "--shards") == 0;
	char path[4096];

	argc -= only_shards;
	argv += only_shards;
	if (argc < 4) {
		fprintf(stderr, "usage: sim_night [--shards] SEED DAYS NODES [FOLDER]\n");
		return 2;
	}
	base = night_default(strtoull(argv[1], NULL, 10), (uint32_t)strtoul(argv[3], NULL, 10),
			     (uint32_t)strtoul(argv[2], NULL, 10), OBJECTS);
	base.knowledge = NIGHT_LEARNED;
	base.name = "learned-2-stable";
	if (base.days < 14 || base.days > 300 || base.hosts < 20 || base.hosts > 10000) {
		fprintf(stderr, "sim_night: 14 to 300 days, 20 to 10000 nodes\n");
		return 2;
	}
	if (argc > 4) {
		snprintf(path, sizeof(path), "%s/%s.json", argv[4],
			 only_shards ? "night-shards" : "night");
		out.json = fopen(path, "we");
		if (!out.json) {
			perror(path);
			return 1;
		}
		fprintf(out.json, "{\"rows\": [");
	}
	printf("night: seed %llu, commit %s, %u hosts in %u rooms of which %u close 20-8 h, %u days "
	       "after %u of learning, %u objects of %llu MiB, off %u %%, wiped each %u days, "
	       "repair %.0f MB/s of %.1f MB/s a host\n",
	       (unsigned long long)base.seed, commit ? commit : "?", base.hosts, base.rooms,
	       base.closing, base.days, base.learn_days, base.objects,
	       (unsigned long long)base.object_bytes >> 20, base.off_percent, base.wipe_days,
	       (double)base.repair_bytes_s / 1e6, (double)base.link_bytes_s / 1e6);
	printf("%-26s %9s %9s %9s %8s %7s %8s %8s %8s %7s %7s %5s\n", "case", "unavail.",
	       "by night", "by day", "rep/day", "stored", "wanted", "evening", "sent/5m", "w-leave",
	       "w-stay", "lost");
	if (!only_shards) {
		run(&out, &base, KEEPS);
		rivals(&out, &base);
		sensitivity(&out, &base);
	}
	shards(&out, &base);
	if (out.json) {
		fprintf(out.json, "\n]}\n");
		if (fclose(out.json) != 0)
			return 1;
	}
	printf("night: %.1f s of CPU\n", cpu_seconds());
	return out.failed ? 1 : 0;
}
