/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What libbpf says, as lines of the log at LOG_DEBUG_: for libbpf_set_print(). Its own debug lines are
 * left out. Any thread.
 */
#pragma once

#include <bpf/libbpf.h>
#include <stdarg.h>

int log_libbpf(enum libbpf_print_level level, const char *fmt, va_list args);
