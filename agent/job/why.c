// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Why a job is not on a host, and what it waits for. What is said is what the guardians choose by
 * (overlay/core/match.h), as far as this host has heard of the others.
 */
#define LOG_TAG "api"
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "agent/host/cpu.h"
#include "agent/job/needs.h"
#include "agent/job/verbs.h"
#include "agent/util/io.h"
#include "overlay/core/match.h"

enum { REASON_MAX = 200, CPU_NAMES_MAX = 3 };

static const char *const kernel_names[] = { "namespaces",
					    "an overlay over the root",
					    "the freezer of cgroup v2",
					    "rseq",
					    "guarded pages",
					    "memfds sealed against execution",
					    "long rseq areas",
					    "shadow stacks",
					    "PIDs above 32767" };

static void _printf_(2, 3) say(struct json_object *reasons, const char *fmt, ...)
{
	char text[REASON_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	json_object_array_add(reasons, json_object_new_string(text));
}

struct words {
	char s[64];
};

/* 8 GiB, 3.1 GiB, 512 MiB */
static struct words size_words(uint64_t bytes)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	struct words words;
	double n = (double)bytes;
	size_t unit = 0;

	for (; n >= 1000 && unit + 1 < ARRAY_SIZE(units); unit++)
		n /= 1024;
	snprintf(words.s, sizeof(words.s), "%.*f %s", n < 9.95 && n * 10 > (int)n * 10 + 0.5, n,
		 units[unit]);
	return words;
}

/* " at 12:03", with the date if that was not today; empty if the time is not known. */
static struct words when_words(uint64_t wall_ms)
{
	time_t then = (time_t)(wall_ms / 1000), now = time(NULL);
	struct words words = { "" };
	struct tm a, b;

	if (!wall_ms || !localtime_r(&then, &a) || !localtime_r(&now, &b))
		return words;
	if (!strftime(words.s, sizeof(words.s),
		      a.tm_year == b.tm_year && a.tm_yday == b.tm_yday ? " at %H:%M" :
									 " on %Y-%m-%d at %H:%M",
		      &a))
		words.s[0] = '\0';
	return words;
}

static void say_unwilling(struct json_object *reasons, const struct member_info *host,
			  const struct core_match *m)
{
	if (m->bars & MATCH_AWAY)
		say(reasons, host->state == MEMBER_LEFT	   ? "has left the cluster" :
			     host->state == MEMBER_SUSPECT ? "does not answer just now" :
							     "does not answer");
	if (m->bars & MATCH_VACATING)
		say(reasons, "is being vacated");
	if (m->bars & MATCH_TAKES_NONE)
		say(reasons, host->report.flags & MEMBER_USER_PRESENT ?
				     "somebody is logged in there" :
				     "takes no jobs");
}

static void say_avoided(struct json_object *reasons, const struct job_value *value, uint32_t index)
{
	struct words when = when_words(value->avoid_wall_ms[index]);

	switch (value->avoid_why[index]) {
	case AVOID_BUSY:
		say(reasons, "avoided: it was in use or being vacated%s", when.s);
		break;
	case AVOID_NO_CHECKPOINT:
		say(reasons, "avoided: there was no checkpoint that it could start from%s", when.s);
		break;
	default:
		say(reasons, "avoided: restore failed there%s", when.s);
	}
}

static void say_cpu(struct json_object *reasons, const uint64_t lacks[4])
{
	char names[96] = "";
	size_t used = 0;
	int named = 0, others = 0;

	for (unsigned int bit = 0; bit < 256; bit++) {
		const char *name;

		if (!(lacks[bit / 64] >> bit % 64 & 1))
			continue;
		name = host_cpu_feature_name(bit);
		if (name && named < CPU_NAMES_MAX)
			used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s",
						 named++ ? ", " : "", name);
		else
			others++;
	}
	if (!named)
		say(reasons, "its CPU lacks %d feature%s that the job may use", others,
		    others == 1 ? "" : "s");
	else if (others)
		say(reasons, "its CPU lacks %s and %d more, which the job may use", names, others);
	else
		say(reasons, "its CPU lacks %s, which the job may use", names);
}

static void say_kernel(struct json_object *reasons, uint32_t lacks)
{
	char names[REASON_MAX] = "";
	size_t used = 0;

	for (size_t i = 0; i < ARRAY_SIZE(kernel_names); i++)
		if (lacks >> i & 1)
			used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s",
						 used ? ", " : "", kernel_names[i]);
	say(reasons, "has not what a restore of the job uses: %s", names);
}

/* A leaf at fault is false, or true where the job asks for the contrary. */
static void say_leaf(struct json_object *reasons, const struct member_state_report *report,
		     const struct needs_item *leaf, bool is_true)
{
	char text[NEEDS_WORDS_MAX], need[NEEDS_WORDS_MAX + 4];

	needs_print_leaf(leaf, text);
	if (leaf->op == NEEDS_TAG) {
		say(reasons, is_true ? "has the tag %s" : "no tag %s", text);
		return;
	}
	snprintf(need, sizeof(need), is_true ? "!(%s)" : "%s", text);
	switch (leaf->key) {
	case NEEDS_MEM:
		say(reasons, "has %s of memory free, the job needs %s",
		    size_words(report->mem_free_bytes).s, need);
		break;
	case NEEDS_CORES:
		say(reasons, "has %u %s, the job needs %s", report->cores,
		    report->cores == 1 ? "core" : "cores", need);
		break;
	case NEEDS_ARCH:
		say(reasons, "is %s, the job needs %s", needs_arch_name(report->arch), need);
		break;
	default:
		say(reasons, "has kernel %u.%u, the job needs %s", report->kernel_version >> 16,
		    report->kernel_version & 0xffff, need);
	}
}

static void say_needs(struct json_object *reasons, const struct member_state_report *report,
		      const struct job_value *value, uint32_t blame)
{
	struct needs_item item;
	uint32_t leaf = 0, unused;
	size_t at = 0, from = 0;

	if (!blame)
		say(reasons, "the job's needs cannot be read");
	for (; core_needs_next(value->needs, value->needs_size, &at, &item); from = at) {
		if (item.op != NEEDS_TAG && item.op != NEEDS_COMPARE)
			continue;
		if (leaf < NEEDS_LEAVES_MAX && blame >> leaf & 1)
			say_leaf(reasons, report, &item,
				 core_needs_met(value->needs + from, at - from, report,
						report->mem_free_bytes, &unused));
		leaf++;
	}
}

/* Why it may not go there, of the bars that are asked for; an empty list: it may. */
static struct json_object *reasons_of(const struct member_info *host, const struct job_value *value,
				      uint32_t asked)
{
	const struct member_state_report *report = &host->report;
	struct json_object *reasons = json_object_new_array();
	struct core_match m;

	core_match(host, value, 0, &m);
	m.bars &= asked;
	say_unwilling(reasons, host, &m);
	if (m.bars & MATCH_AVOIDED)
		say_avoided(reasons, value, m.avoid_index);
	if (m.bars & MATCH_ARCH)
		say(reasons, "is %s, the job needs %s", needs_arch_name(report->arch),
		    needs_arch_name(value->arch));
	if (m.bars & MATCH_CPU)
		say_cpu(reasons, m.cpu_lacks);
	if (m.bars & MATCH_KERNEL)
		say_kernel(reasons, m.kernel_lacks);
	if (m.bars & MATCH_MEMORY)
		say(reasons, "has %s of memory free, the job needs %s",
		    size_words(report->mem_free_bytes).s, size_words(value->mem_bytes).s);
	if (m.bars & MATCH_CLOCK)
		say(reasons, "its clock may stop, and the job has fence=strict");
	if (m.bars & MATCH_NEEDS)
		say_needs(reasons, report, value, m.needs_blame);
	return reasons;
}

static void join(struct json_object *reasons, char *text, size_t size)
{
	size_t count = json_object_array_length(reasons), used = 0;

	text[0] = '\0';
	for (size_t i = 0; i < count && used < size; i++)
		used += (size_t)snprintf(
			text + used, size - used, "%s%s", i ? "; " : "",
			json_object_get_string(json_object_array_get_idx(reasons, i)));
}

bool why_not(const struct member_info *host, const struct job_value *value, uint32_t asked,
	     char text[WHY_TEXT_MAX])
{
	struct json_object *reasons = reasons_of(host, value, asked);
	bool any = json_object_array_length(reasons) > 0;

	join(reasons, text, WHY_TEXT_MAX);
	json_object_put(reasons);
	return any;
}

static bool fits(const struct member_info *host, const struct job_value *value)
{
	struct core_match m;

	core_match(host, value, 0, &m);
	return !m.bars;
}

static const struct member_info *member_of(const struct node_id *id,
					   const struct member_info *members, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (node_id_equal(&members[i].id, id))
			return &members[i];
	return NULL;
}

/* Somebody has it, and is there. */
static bool is_looked_after(const struct job_value *value, const struct member_info *members,
			    size_t count)
{
	const struct member_info *owner = member_of(&value->owner, members, count);

	return value->state == JOB_STATE_HELD && owner && owner->state == MEMBER_ALIVE;
}

static size_t count_fitting(const struct job_value *value, const struct member_info *members,
			    size_t count)
{
	size_t fitting = 0;

	for (size_t i = 0; i < count; i++)
		fitting += fits(&members[i], value);
	return fitting;
}

static void waits_for(const struct job_value *value, const struct member_info *members,
		      size_t count, char text[REASON_MAX])
{
	const struct member_info *owner = member_of(&value->owner, members, count);
	const struct member_info *home = member_of(&value->home, members, count);
	size_t fitting = count_fitting(value, members, count);
	const char *owner_name = owner ? owner->hostname : "its host";

	if (value->state == JOB_STATE_COLLECTED || value->state == JOB_STATE_KILLED)
		snprintf(text, REASON_MAX, "nothing: it has ended");
	else if (value->state == JOB_STATE_DONE)
		snprintf(text, REASON_MAX, "%s to bring its results home",
			 home ? home->hostname : "the host where it was submitted");
	else if (is_looked_after(value, members, count))
		snprintf(text, REASON_MAX, "nothing: %s has it", owner_name);
	else if (value->state == JOB_STATE_HELD && fitting)
		snprintf(text, REASON_MAX,
			 "the end of the lease of %s, which does not answer; then one of %zu hosts "
			 "that fit",
			 owner_name, fitting);
	else if (value->state == JOB_STATE_HELD)
		snprintf(text, REASON_MAX, "a host that fits: %s does not answer", owner_name);
	else if (fitting)
		snprintf(text, REASON_MAX, "its guardians, who choose one of %zu hosts that fit",
			 fitting);
	else
		snprintf(text, REASON_MAX, "a host that fits");
}

static void add_text(struct json_object *json, const char *key, const char *text)
{
	json_object_object_add(json, key, json_object_new_string(text));
}

void why_add_stuck(struct json_object *json, const struct job_value *value,
		   const struct member_info *members, size_t count)
{
	struct json_object *list;
	char text[WHY_TEXT_MAX], line[WHY_TEXT_MAX + OV_NAME_MAX + 4], waits[REASON_MAX];

	if (value->state >= JOB_STATE_DONE || is_looked_after(value, members, count) ||
	    count_fitting(value, members, count))
		return;
	waits_for(value, members, count, waits);
	add_text(json, "waits_for", waits);
	list = json_object_new_array();
	for (size_t i = 0; i < count && i < WHY_LINES_MAX; i++) {
		if (!why_not(&members[i], value, UINT32_MAX, text))
			continue;
		snprintf(line, sizeof(line), "%s: %s", members[i].hostname, text);
		json_object_array_add(list, json_object_new_string(line));
	}
	json_object_object_add(json, "refusals", list);
}

void why_add_needs(struct json_object *json, const struct job_value *value)
{
	char text[NEEDS_TEXT_MAX];

	if (value->needs_size && needs_print(value->needs, value->needs_size, text) == 0)
		add_text(json, "needs", text);
}

static struct json_object *describe_host(const struct member_info *host,
					 const struct job_value *value)
{
	struct json_object *json = json_object_new_object();

	add_text(json, "host", host->hostname);
	json_object_object_add(json, "fits", json_object_new_boolean(fits(host, value)));
	json_object_object_add(json, "owner",
			       json_object_new_boolean(value->state == JOB_STATE_HELD &&
						       node_id_equal(&host->id, &value->owner)));
	json_object_object_add(json, "reasons", reasons_of(host, value, UINT32_MAX));
	return json;
}

int verb_why(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct json_object *json, *hosts;
	char waits[REASON_MAX];
	struct target t;
	int r = target_find(agent, call, &t, reply);

	if (r < 0)
		return r;
	json = describe_summary(agent, &t.value, &t.seal, t.local, t.members, t.member_count);
	hosts = json_object_new_array();
	for (size_t i = 0; i < t.member_count && t.value.state < JOB_STATE_DONE; i++)
		json_object_array_add(hosts, describe_host(&t.members[i], &t.value));
	waits_for(&t.value, t.members, t.member_count, waits);
	add_text(json, "waits_for", waits);
	why_add_needs(json, &t.value);
	json_object_object_add(
		json, "fitting",
		json_object_new_int64((int64_t)count_fitting(&t.value, t.members, t.member_count)));
	json_object_object_add(json, "hosts", hosts);
	reply->json = json;
	target_deinit(&t);
	return 0;
}
