// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <stdarg.h>
#include <string.h>

#include "agent/cli/cli.h"

enum { KEY_COLUMNS = 24 };

/* "key:   value"; an empty value leaves the line out. */
static void __attribute__((format(printf, 2, 3))) line(const char *key, const char *fmt, ...)
{
	_cleanup_free_ char *value = NULL;
	char left[KEY_COLUMNS + 8];
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&value, fmt, ap) < 0)
		cli_out_of_memory();
	va_end(ap);
	text_clean(value);
	if (!*value)
		return;
	snprintf(left, sizeof(left), *key ? "%s:" : "%s", key);
	printf("%-*s %s\n", KEY_COLUMNS, left, value);
}

static void show_identity(struct json_object *job, struct json_object *detail)
{
	_cleanup_free_ char *argv = js_join(js_member(detail, "argv"), "");
	int64_t submitted = js_int(job, "submit_ms", 0);

	line("name", "%s", js_text(job, "name", ""));
	line("job", "%s", js_text(job, "job", ""));
	line("user", "%s", js_text(job, "user", ""));
	line("command", "%s", js_text(job, "command", argv));
	line("needs", "%s", js_text(detail, "needs", ""));
	line("folder", "%s", js_text(detail, "cwd", ""));
	if (submitted)
		line("submitted", "%s on %s", text_when(submitted).s, js_text(job, "home", "?"));
}

/* Nobody has it and nobody can take it. */
static void show_refusals(struct json_object *detail)
{
	struct json_object *refusals = js_member(detail, "refusals");

	line("waits for", "%s", js_text(detail, "waits_for", ""));
	for (size_t i = 0; i < js_length(refusals); i++) {
		const char *refusal = json_object_get_string(js_item(refusals, i));

		line(i ? "" : "does not fit", "%s", refusal ? refusal : "");
	}
}

static void show_place(struct json_object *job, struct json_object *detail)
{
	const char *state = js_text(job, "state", "?"), *step = js_text(job, "step", "");
	struct json_object *pids = js_member(detail, "pids");
	_cleanup_free_ char *list = js_join(pids, "");
	int64_t total = js_int(job, "step_total", 0);

	putchar('\n');
	if (state_is_end(state))
		line("state", "%s: %s", state, text_end(job).s);
	else if (strcmp(state, "waiting") == 0)
		line("state", "waiting: no machine has it now");
	else
		line("state", "%s", state);
	show_refusals(detail);
	if (*step && total > 0)
		line("under way", "%s, %.0f %%", step,
		     100 * js_double(job, "step_done", 0) / (double)total);
	else
		line("under way", "%s", step);
	line("runs on", "%s", state_is_end(state) ? "" : js_text(job, "host", ""));
	line("processes", "%s", list);
	if (js_has(detail, "mem_bytes"))
		line("memory", "%s", text_size(js_int(detail, "mem_bytes", 0)).s);
	line("last message", "%s", js_text(job, "message", ""));
}

/* What the user wants to know before all: how much work is safe. */
static void show_protection(struct json_object *job, struct json_object *detail)
{
	int64_t seq = js_int(job, "seq", 0), age;
	_cleanup_free_ char *holders = js_join(js_member(detail, "holders"), "");
	_cleanup_free_ char *guardians = js_join(js_member(detail, "guardians"), "");

	age = js_int(detail, "recovery_point_ms", js_int(job, "ckpt_age_ms", 0));
	putchar('\n');
	if (!js_bool(job, "protected", seq > 0)) {
		line("protected until", "not yet: no checkpoint is committed");
		if (!state_is_end(js_text(job, "state", "")))
			line("if the host died now", "all work since the start would be lost");
	} else {
		line("protected until", "%s (checkpoint %lld, %s ago)",
		     text_when(js_int(job, "ckpt_ms", 0)).s, (long long)seq, text_age(age).s);
		if (!state_is_end(js_text(job, "state", "")))
			line("if the host died now", "the last %s of work would be done again",
			     text_age(age).s);
	}
	if (js_int(detail, "recovery_time_ms", 0) > 0)
		line("back at work within", "%s (measured at the last move)",
		     text_us(js_int(detail, "recovery_time_ms", 0) * 1000).s);
	line("copies are on", "%s", holders);
	if (js_int(detail, "coded_packs", 0) > 0)
		line("kept as shards", "%lld old packs, %s",
		     (long long)js_int(detail, "coded_packs", 0),
		     text_size(js_int(detail, "coded_bytes", 0)).s);
	line("watched by", "%s", guardians);
	line("fence", "%s", js_text(detail, "fence", ""));
}

/* Which engine stops the job, and where the time of a pause goes. */
static void show_engine(struct json_object *detail)
{
	struct json_object *native = js_member(detail, "native"),
			   *pause = js_member(native, "pause");
	int64_t by_native = js_int(detail, "native_count", 0),
		by_criu = js_int(detail, "criu_count", 0);

	if (by_native + by_criu > 0)
		line("captured by", "native %lld times, criu %lld times", (long long)by_native,
		     (long long)by_criu);
	else
		line("captured by", "%s", js_text(detail, "engine", ""));
	line("not by native, because", "%s", js_text(detail, "fallback_reason", ""));
	if (!pause)
		return;
	line("last pause", "%s: freeze %s, state %s, files %s, memory %s, waiting %s, thaw %s",
	     text_us(js_int(pause, "total_us", 0)).s, text_us(js_int(pause, "freeze_us", 0)).s,
	     text_us(js_int(pause, "state_us", 0) + js_int(pause, "regs_us", 0)).s,
	     text_us(js_int(pause, "files_us", 0)).s,
	     text_us(js_int(pause, "scan_us", 0) + js_int(pause, "copy_us", 0)).s,
	     text_us(js_int(pause, "wait_us", 0)).s, text_us(js_int(pause, "thaw_us", 0)).s);
	if (js_int(pause, "earlier_us", 0) > 0)
		line("", "%s of it in attempts that were made anew",
		     text_us(js_int(pause, "earlier_us", 0)).s);
	line("stopped by", "%s%s%s", js_text(native, "stopped_by", "?"),
	     js_text(native, "not_by_module", "")[0] ? ", not by the module: " : "",
	     js_text(native, "not_by_module", ""));
	line("memory followed by", "%s, %lld rounds, %s left for the pause",
	     js_text(native, "tracker", "?"), (long long)js_int(native, "rounds", 0),
	     text_size(js_int(native, "residue_bytes", 0)).s);
	if (js_bool(native, "bounded", false))
		line("note",
		     "it writes memory faster than that can be copied (%lld pages a second): "
		     "the rounds are given up and the pause is as long as the rest takes",
		     (long long)js_int(native, "dirty_pages_per_s", 0));
}

static void show_cost(struct json_object *detail)
{
	int64_t interval = js_int(detail, "interval_s", 0),
		next = js_int(detail, "next_ckpt_ms", 0);
	const char *set = js_int(detail, "every_s", 0) > 0 ? "as asked" : "found by measuring";

	putchar('\n');
	if (js_has(detail, "checkpoints"))
		line("checkpoints", "%lld", (long long)js_int(detail, "checkpoints", 0));
	if (interval > 0)
		line("interval", "%s (%s)", text_age(interval * 1000).s, set);
	if (next > 0)
		line("next checkpoint", "%s", text_when(next).s);
	if (js_has(detail, "pause_us_median"))
		line("pause", "%s usually, %s at most",
		     text_us(js_int(detail, "pause_us_median", 0)).s,
		     text_us(js_int(detail, "pause_us_max", 0)).s);
	show_engine(detail);
	if (js_has(detail, "sent_bytes_median"))
		line("sent per checkpoint", "%s",
		     text_size(js_int(detail, "sent_bytes_median", 0)).s);
	line("timed calls", "%s", js_text(detail, "timed_calls", ""));
	if (js_has(detail, "moves"))
		line("moves", "%lld", (long long)js_int(detail, "moves", 0));
}

static void show_output(struct json_object *detail)
{
	struct json_object *results = js_member(detail, "results");

	putchar('\n');
	line("stdout", "%s", js_text(detail, "stdout", ""));
	line("stderr", "%s", js_text(detail, "stderr", ""));
	if (!json_object_is_type(results, json_type_object))
		return;
	line("result files", "%lld written, %lld set aside, %lld deleted, %lld failed",
	     (long long)js_int(results, "written", 0), (long long)js_int(results, "set_aside", 0),
	     (long long)js_int(results, "deleted", 0), (long long)js_int(results, "failed", 0));
	line("set aside in", "%s", js_text(results, "folder", ""));
}

int verb_show(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct json_object *detail;
	int r = cli_call_job(cli, "show", argc, argv, &reply);

	if (r >= 0)
		return r;
	if (cli->json) {
		js_print(reply.json);
		return CLI_OK;
	}
	detail = js_member(reply.json, "detail");
	show_identity(reply.json, detail);
	show_place(reply.json, detail);
	show_protection(reply.json, detail);
	show_cost(detail);
	show_output(detail);
	return CLI_OK;
}
