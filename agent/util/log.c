// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/util/log.h"

#include <stdarg.h>
#include <string.h>

enum { LINE_MAX_BYTES = 1024 };

static enum log_level max_level = LOG_INFO_;
static char program_name[32] = "decampd";
static int with_priority;

void log_init(enum log_level max, const char *program)
{
	max_level = max;
	snprintf(program_name, sizeof(program_name), "%s", program);
	with_priority = getenv("JOURNAL_STREAM") != NULL;
}

bool log_shows(enum log_level level)
{
	return level <= max_level;
}

static void emit(enum log_level level, const char *tag, const char *fmt, va_list ap,
		 const char *reason)
{
	char line[LINE_MAX_BYTES];
	int n = 0;

	if (with_priority)
		n = snprintf(line, sizeof(line), "<%d>", level);
	n += snprintf(line + n, sizeof(line) - (size_t)n, "%s: %s: ", program_name, tag);
	n += vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
	if (n > (int)sizeof(line) - 1)
		n = (int)sizeof(line) - 1;
	if (reason)
		n += snprintf(line + n, sizeof(line) - (size_t)n, ": %s", reason);
	if (n > (int)sizeof(line) - 2)
		n = (int)sizeof(line) - 2;
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return; /* a log that cannot be written is lost; there is nowhere to say so */
}

void log_line(enum log_level level, const char *tag, const char *fmt, ...)
{
	va_list ap;

	if (!log_shows(level))
		return;
	va_start(ap, fmt);
	emit(level, tag, fmt, ap, NULL);
	va_end(ap);
}

int log_errno_tag(int r, const char *tag, const char *fmt, ...)
{
	char reason[128];
	va_list ap;

	va_start(ap, fmt);
	emit(LOG_ERR_, tag, fmt, ap, strerror_r(-r, reason, sizeof(reason)));
	va_end(ap);
	return r;
}
