// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/util/bpf.h"

#include <stdio.h>
#include <string.h>

#define LOG_TAG "libbpf"
#include "agent/util/log.h"

int log_libbpf(enum libbpf_print_level level, const char *fmt, va_list args)
{
	char line[512];

	if (level == LIBBPF_DEBUG)
		return 0;
	vsnprintf(line, sizeof(line), fmt, args);
	line[strcspn(line, "\n")] = '\0';
	log_debug("%s", line);
	return 0;
}
