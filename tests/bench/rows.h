/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a benchmark measured: a line per row on the terminal, and a file of JSON; rows.py tells the
 * form of both.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct row {
	const char *name, *engine, *metric, *unit; /* name: of the case */
	double *figures; /* of which p50 and p99 are told; rows_add() sorts them. NULL: the value is */
	size_t count;
	double value;
	double target, target_p99; /* 0: none */
	bool least;		   /* the target is to be reached; else not to be passed */
	double limit;		   /* 0: none */
	const char *breakdown;	   /* a JSON object, or NULL */
};

struct rows;

/* NULL, with errno. */
struct rows *rows_open(const char *path);
void rows_add(struct rows *rows, const struct row *row);
/* Returns how many targets were missed. */
unsigned int rows_close(struct rows *rows);
