// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "agent/cli/cli.h"

struct cli_text text_size(int64_t bytes)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
	struct cli_text text;
	double n = bytes < 0 ? 0 : (double)bytes;
	size_t unit = 0;

	while (n >= 1000 && unit + 1 < ARRAY_SIZE(units)) {
		n /= 1024;
		unit++;
	}
	snprintf(text.s, sizeof(text.s), "%.*f %s", unit > 0 && n < 9.95 ? 1 : 0, n, units[unit]);
	return text;
}

struct cli_text text_age(int64_t ms)
{
	struct cli_text text;
	long long s = ms < 0 ? 0 : ms / 1000;

	if (s < 120)
		snprintf(text.s, sizeof(text.s), "%lld s", s);
	else if (s < 120 * 60)
		snprintf(text.s, sizeof(text.s), "%lld min", s / 60);
	else if (s < 48 * 3600)
		snprintf(text.s, sizeof(text.s), "%lld h", s / 3600);
	else
		snprintf(text.s, sizeof(text.s), "%lld d", s / 86400);
	return text;
}

struct cli_text text_us(int64_t us)
{
	struct cli_text text;
	double n = us < 0 ? 0 : (double)us;

	if (n < 1000)
		snprintf(text.s, sizeof(text.s), "%.0f us", n);
	else if (n < 1000000)
		snprintf(text.s, sizeof(text.s), "%.*f ms", n < 99500 ? 1 : 0, n / 1000);
	else
		snprintf(text.s, sizeof(text.s), "%.1f s", n / 1000000);
	return text;
}

struct cli_text text_when(int64_t wall_ms)
{
	struct cli_text text;
	time_t then = (time_t)(wall_ms / 1000), now = time(NULL);
	struct tm a, b;

	if (!localtime_r(&then, &a) || !localtime_r(&now, &b)) {
		snprintf(text.s, sizeof(text.s), "%lld", (long long)wall_ms);
		return text;
	}
	if (a.tm_year == b.tm_year && a.tm_yday == b.tm_yday)
		strftime(text.s, sizeof(text.s), "%H:%M:%S", &a);
	else
		strftime(text.s, sizeof(text.s), "%Y-%m-%d %H:%M:%S", &a);
	return text;
}

struct cli_text text_end(struct json_object *job)
{
	struct cli_text text;
	int status = (int)js_int(job, "exit_status", 0);

	if (js_has(job, "exit_status") && WIFSIGNALED(status)) {
		const char *name = sigabbrev_np(WTERMSIG(status));

		if (name)
			snprintf(text.s, sizeof(text.s), "killed by SIG%s", name);
		else
			snprintf(text.s, sizeof(text.s), "killed by signal %d", WTERMSIG(status));
	} else {
		snprintf(text.s, sizeof(text.s), "exit code %d",
			 (int)js_int(job, "exit_code", WEXITSTATUS(status)));
	}
	return text;
}

bool state_is_end(const char *state)
{
	return strcmp(state, "done") == 0 || strcmp(state, "collected") == 0 ||
	       strcmp(state, "killed") == 0;
}

/* C0, DEL, and the C1 controls in their UTF-8 form can all steer a terminal. */
void text_clean(char *text)
{
	for (unsigned char *p = (unsigned char *)text; *p; p++) {
		if (*p < 0x20 || *p == 0x7f) {
			*p = *p == '\n' || *p == '\t' ? ' ' : '?';
		} else if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0) {
			p[0] = '?';
			p[1] = '?';
		}
	}
}

size_t text_columns(const char *text)
{
	size_t columns = 0;

	for (const unsigned char *p = (const unsigned char *)text; *p; p++)
		columns += (*p & 0xc0) != 0x80;
	return columns;
}

enum cli_colour state_colour(const char *state)
{
	static const struct {
		const char *state;
		enum cli_colour colour;
	} colours[] = {
		{ "running", COLOUR_GOOD },  { "checkpointing", COLOUR_GOOD },
		{ "alive", COLOUR_GOOD },    { "starting", COLOUR_BUSY },
		{ "moving", COLOUR_BUSY },   { "restoring", COLOUR_BUSY },
		{ "frozen", COLOUR_BUSY },   { "waiting", COLOUR_BUSY },
		{ "suspect", COLOUR_BUSY },  { "lost", COLOUR_BAD },
		{ "dead", COLOUR_BAD },	     { "killed", COLOUR_DIM },
		{ "collected", COLOUR_DIM }, { "left", COLOUR_DIM },
	};

	for (size_t i = 0; i < ARRAY_SIZE(colours); i++) {
		if (strcmp(colours[i].state, state) == 0)
			return colours[i].colour;
	}
	return COLOUR_NONE;
}

const char *colour_begin(const struct cli *cli, enum cli_colour colour)
{
	static const char *const codes[] = {
		[COLOUR_NONE] = "",	   [COLOUR_GOOD] = "\033[32m", [COLOUR_BUSY] = "\033[33m",
		[COLOUR_BAD] = "\033[31m", [COLOUR_DIM] = "\033[2m",   [COLOUR_BOLD] = "\033[1m",
	};

	return cli->colour ? codes[colour] : "";
}

const char *colour_end(const struct cli *cli, enum cli_colour colour)
{
	return cli->colour && colour != COLOUR_NONE ? "\033[0m" : "";
}
