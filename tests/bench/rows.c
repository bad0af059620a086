// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/bench/rows.h"

#include <stdio.h>
#include <stdlib.h>

struct rows {
	FILE *json;
	unsigned int count, missed;
};

struct rows *rows_open(const char *path)
{
	struct rows *rows = calloc(1, sizeof(*rows));

	if (rows)
		rows->json = fopen(path, "we");
	if (!rows || !rows->json) {
		free(rows);
		return NULL;
	}
	fprintf(rows->json, "{\"rows\": [");
	printf("%-24s %-10s %-24s %16s %16s %-8s %16s\n", "case", "engine", "metric",
	       "value or p50", "p99", "unit", "target");
	fflush(stdout);
	return rows;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

/* Nearest rank: of 30, p99 is the largest. */
static double rank(const double *sorted, size_t count, unsigned int percent)
{
	size_t n = (count * percent + 99) / 100;

	return sorted[n ? n - 1 : 0];
}

static bool keeps(double figure, double target, bool least)
{
	return target == 0 || (least ? figure >= target : figure <= target);
}

static void write_row(FILE *json, const struct row *row, double value, double p99, bool holds)
{
	fprintf(json,
		"{\"case\": \"%s\", \"engine\": \"%s\", \"metric\": \"%s\", \"unit\": \"%s\", ",
		row->name, row->engine, row->metric, row->unit);
	if (row->figures)
		fprintf(json, "\"p50\": %.12g, \"p99\": %.12g, ", value, p99);
	else
		fprintf(json, "\"value\": %.12g, ", value);
	if (row->target != 0)
		fprintf(json, "\"target\": %.12g, \"holds\": %s", row->target,
			holds ? "true" : "false");
	else
		fprintf(json, "\"target\": null, \"holds\": null");
	if (row->target_p99 != 0)
		fprintf(json, ", \"target_p99\": %.12g", row->target_p99);
	if (row->limit != 0)
		fprintf(json, ", \"limit\": %.12g, \"of_limit\": %.12g", row->limit,
			row->least ? value / row->limit : row->limit / value);
	if (row->breakdown)
		fprintf(json, ", \"breakdown\": %s", row->breakdown);
	fprintf(json, "}");
	fflush(json);
}

static void print_row(const struct row *row, double value, double p99, bool holds)
{
	char second[32] = "", targets[48] = "";

	if (row->figures)
		snprintf(second, sizeof(second), "%.3f", p99);
	if (row->target_p99 != 0)
		snprintf(targets, sizeof(targets), "%.12g/%.12g", row->target, row->target_p99);
	else if (row->target != 0)
		snprintf(targets, sizeof(targets), "%.12g", row->target);
	printf("%-24s %-10s %-24s %16.3f %16s %-8s %16s %s", row->name, row->engine, row->metric,
	       value, second, row->unit, targets,
	       row->target == 0 ? "" :
	       holds		? "holds" :
				  "MISSED");
	if (row->limit != 0)
		printf(" %.2f of %.3f", row->least ? value / row->limit : row->limit / value,
		       row->limit);
	printf("\n");
	fflush(stdout);
}

void rows_add(struct rows *rows, const struct row *row)
{
	double value = row->value, p99 = row->value;
	bool holds;

	if (row->figures) {
		qsort(row->figures, row->count, sizeof(*row->figures), by_value);
		value = rank(row->figures, row->count, 50);
		p99 = rank(row->figures, row->count, 99);
	}
	holds = keeps(value, row->target, row->least) && keeps(p99, row->target_p99, row->least);
	fprintf(rows->json, rows->count++ ? ",\n " : "\n ");
	write_row(rows->json, row, value, p99, holds);
	print_row(row, value, p99, holds);
	rows->missed += !holds;
}

unsigned int rows_close(struct rows *rows)
{
	unsigned int missed = rows->missed;

	fprintf(rows->json, "\n]}\n");
	fclose(rows->json);
	free(rows);
	return missed;
}
