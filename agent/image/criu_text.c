// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/image/criu_text.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/image/criu_rpc.pb-c.h"
#include "agent/util/io.h"

enum { LINE_MAX_BYTES = 512 };
enum { SERVICE_MAGIC = 0x55105940, STATS_MAGIC = 0x57093306 };

/* u32 magic, u32 kind of file, u32 size, protobuf. */
int criu_parse_stats(const uint8_t *bytes, size_t size, struct criu_times *ret_times)
{
	uint32_t head[3];
	Swrk__Stats *stats;
	bool found;

	if (size < sizeof(head))
		return -EBADMSG;
	memcpy(head, bytes, sizeof(head));
	if (le32toh(head[0]) != SERVICE_MAGIC || le32toh(head[1]) != STATS_MAGIC ||
	    le32toh(head[2]) > size - sizeof(head))
		return -EBADMSG;
	stats = swrk__stats__unpack(NULL, le32toh(head[2]), bytes + sizeof(head));
	if (!stats)
		return -EBADMSG;
	found = stats->dump != NULL;
	if (found) {
		ret_times->freezing_us = stats->dump->freezing_time;
		ret_times->frozen_us = stats->dump->frozen_time;
		ret_times->pages_written =
			stats->dump->pages_written + stats->dump->shpages_written;
	}
	swrk__stats__free_unpacked(stats, NULL);
	return found ? 0 : -EBADMSG;
}

void criu_clean_text(char *text)
{
	size_t len = strlen(text);

	for (size_t i = 0; i < len; i++) {
		if (text[i] < ' ' || text[i] > '~')
			text[i] = i + 1 == len ? '\0' : ' ';
	}
}

/* Length of a line without its end. */
static size_t line_length(const char *line)
{
	const char *end = strchr(line, '\n');

	return end ? (size_t)(end - line) : strlen(line);
}

static bool line_has(const char *line, const char *word)
{
	return memmem(line, line_length(line), word, strlen(word)) != NULL;
}

static void append(char reason[CRIU_REASON_MAX], const char *line)
{
	size_t used = strlen(reason);
	const char *text = memmem(line, line_length(line), "): ", 3);

	/* "(00.123) Error (criu/file.c:12): what": the place only matters to CRIU's authors. */
	text = text ? text + 3 : line;
	snprintf(reason + used, CRIU_REASON_MAX - used, "%s%.*s", used ? "; " : "",
		 (int)(line_length(text) < CRIU_REASON_MAX ? line_length(text) : CRIU_REASON_MAX),
		 text);
	criu_clean_text(reason);
}

/* Errors that are none, or that say nothing. */
static bool is_noise(const char *line)
{
	return line_has(line, "FAILED") || line_has(line, "Can't setup RLIMIT_NOFILE for self") ||
	       line_has(line, "tun: Unable to create tun");
}

void criu_parse_reason(const char *log, char reason[CRIU_REASON_MAX])
{
	const char *first = NULL, *last = NULL;

	reason[0] = '\0';
	for (const char *line = log; *line;) {
		size_t len = line_length(line);

		if (line_has(line, "Error (") && !is_noise(line)) {
			first = first ? first : line;
			last = line;
		}
		line += len + (line[len] == '\n');
	}
	if (first)
		append(reason, first);
	if (last != first)
		append(reason, last);
}

void criu_last_lines(const char *log, size_t lines_max, void (*line)(const char *text))
{
	const char *from = log + strlen(log);

	for (size_t lines = 0; from > log; from--) {
		/* The end of the last line begins none. */
		if (from[-1] == '\n' && *from && ++lines == lines_max)
			break;
	}
	for (; *from; from += line_length(from), from += *from == '\n') {
		char text[LINE_MAX_BYTES];

		snprintf(text, sizeof(text), "%.*s", (int)line_length(from), from);
		criu_clean_text(text);
		line(text);
	}
}

void criu_add_reason(char reason[CRIU_REASON_MAX], const char *what, int number)
{
	size_t used = strlen(reason);

	snprintf(reason + used, CRIU_REASON_MAX - used, "%s%s %d", used ? "; " : "", what, number);
}
