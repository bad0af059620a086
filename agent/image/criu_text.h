/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What CRIU writes beside its images: statistics and the log. Both are foreign bytes.
 * Threading: reentrant. Source: CRIU's stats.proto and log format.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "agent/image/criu.h"

/* Fills the fields that come from stats-dump; -EBADMSG if it is no such file. */
int criu_parse_stats(const uint8_t *bytes, size_t size, struct criu_times *ret_times) _must_check_;

/* The first error of a log, which is the cause, and the last that says more than "FAILED". */
void criu_parse_reason(const char *log, char reason[CRIU_REASON_MAX]);
/* Calls line() for each of the last lines_max lines, without its end, as printable characters. */
void criu_last_lines(const char *log, size_t lines_max, void (*line)(const char *text));
/* Appends "; what N", as far as there is room. */
void criu_add_reason(char reason[CRIU_REASON_MAX], const char *what, int number);
/* One line of printable characters. */
void criu_clean_text(char *text);
