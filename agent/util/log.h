/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Log lines of the daemon: "tag: what: key=value: reason" on stderr, which systemd's journal
 * takes with its <N> priority prefix when JOURNAL_STREAM is set.
 *
 * Never log memory contents or keys. Threading: each line is one write(2), so lines never mix.
 * log_errno() returns its error, so that an exit can log and return in one statement.
 */
#pragma once

#include <stdbool.h>

#include "agent/util/cleanup.h"

enum log_level { LOG_ERR_ = 3, LOG_WARN_ = 4, LOG_INFO_ = 6, LOG_DEBUG_ = 7 };

/* Sets the least important level that is printed (default LOG_INFO_) and the program's name. */
void log_init(enum log_level max, const char *program);

/* Whether lines of a level are printed: for what costs something to say. */
bool log_shows(enum log_level level);

void log_line(enum log_level level, const char *tag, const char *fmt, ...) _printf_(3, 4);

/* Logs "…: strerror(-r)" at LOG_ERR_ and returns r (a negative errno). */
int log_errno_tag(int r, const char *tag, const char *fmt, ...) _printf_(3, 4);

/* A source file defines LOG_TAG before it includes this header: the name of its stage. */
#ifndef LOG_TAG
#define LOG_TAG "decamp"
#endif
#define log_error(...) log_line(LOG_ERR_, LOG_TAG, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN_, LOG_TAG, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO_, LOG_TAG, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG_, LOG_TAG, __VA_ARGS__)
#define log_errno(r, ...) log_errno_tag(r, LOG_TAG, __VA_ARGS__)
