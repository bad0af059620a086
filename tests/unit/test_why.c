// SPDX-License-Identifier: LGPL-2.1-or-later
/* What people are told of hosts that a job may not go to. */
#include <errno.h>
#include <json-c/json.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "agent/job/needs.h"
#include "agent/job/verbs.h"
#include "agent/util/io.h"
#include "overlay/core/match.h"

static const struct member_info lab7 = { .id = { { 7 } },
					 .state = MEMBER_ALIVE,
					 .hostname = "lab7",
					 .report = { .flags = MEMBER_TAKES_JOBS,
						     .mem_free_bytes = UINT64_C(3174) << 20,
						     .cpu_features = { 1 },
						     .arch = CPU_ARCH_AARCH64,
						     .cores = 1,
						     .kernel_version = OV_KERNEL_VERSION(6, 1),
						     .kernel_features = KERNEL_NAMESPACES,
						     .tags = "old" } };

static void need(struct job_value *value, const char *text)
{
	char error[NEEDS_ERROR_MAX];
	size_t size;

	assert_int_equal(needs_compile(text, value->needs, &size, error), 0);
	value->needs_size = (uint32_t)size;
}

static void check(const struct member_info *host, const struct job_value *value, const char *expect)
{
	char text[WHY_TEXT_MAX];

	assert_int_equal(why_not(host, value, UINT32_MAX, text), *expect != '\0');
	assert_string_equal(text, expect);
}

static void needs_are_told_in_plain_words(void **state)
{
	static const struct {
		const char *needs, *text;
	} cases[] = {
		{ "old", "" },
		{ "gpu", "no tag gpu" },
		{ "!old", "has the tag old" },
		{ "gpu && matlab", "no tag gpu" },
		{ "gpu || matlab", "no tag gpu; no tag matlab" },
		{ "mem >= 8G", "has 3.1 GiB of memory free, the job needs mem >= 8G" },
		{ "!(mem < 8G)", "has 3.1 GiB of memory free, the job needs !(mem < 8G)" },
		{ "cores >= 4", "has 1 core, the job needs cores >= 4" },
		{ "arch == x86_64", "is aarch64, the job needs arch == x86_64" },
		{ "old && kernel >= 6.12", "has kernel 6.1, the job needs kernel >= 6.12" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct job_value value = { .fence = FENCE_STRICT };

		need(&value, cases[i].needs);
		check(&lab7, &value, cases[i].text);
	}
}

static void hosts_are_told_in_plain_words(void **state)
{
	struct job_value value = { .fence = FENCE_STRICT, .mem_bytes = UINT64_C(8) << 30 };
	struct member_info host = lab7;
	char expect[100], clock[8], text[WHY_TEXT_MAX];
	time_t now = time(NULL);
	struct tm tm;

	(void)state;
	check(&host, &value, "has 3.1 GiB of memory free, the job needs 8 GiB");
	value.mem_bytes = 0;
	value.arch = CPU_ARCH_X86_64;
	check(&host, &value, "is aarch64, the job needs x86_64");
	value.arch = 0;
	value.kernel_need = KERNEL_FREEZER | KERNEL_RSEQ;
	check(&host, &value,
	      "has not what a restore of the job uses: the freezer of cgroup v2, rseq");
	value.kernel_need = KERNEL_GUARDS | KERNEL_EXEC_SEAL | KERNEL_PIDS;
	check(&host, &value,
	      "has not what a restore of the job uses: guarded pages, memfds sealed against "
	      "execution, PIDs above 32767");
	value.kernel_need = KERNEL_FEATURES; /* each has a name, and all fit */
	assert_true(why_not(&host, &value, UINT32_MAX, text));
	assert_non_null(strstr(text, "shadow stacks, PIDs above 32767"));
	value.kernel_need = 0;
	value.cpu_need[0] = 3;
	check(&host, &value, "its CPU lacks 1 feature that the job may use");
#ifdef __x86_64__
	value.cpu_need[0] = 1;
	value.cpu_need[1] = 1 << 5 | 1 << 16 | 1;
	check(&host, &value, "its CPU lacks avx2, avx512f and 1 more, which the job may use");
#endif
	memset(value.cpu_need, 0, sizeof(value.cpu_need));
	host.report.flags |= MEMBER_LOSES_CLOCK;
	check(&host, &value, "its clock may stop, and the job has fence=strict");
	host.report.flags = MEMBER_VACATING;
	check(&host, &value, "is being vacated");
	host.report.flags = MEMBER_USER_PRESENT;
	check(&host, &value, "somebody is logged in there");
	host.report.flags = 0;
	host.state = MEMBER_DEAD;
	check(&host, &value, "does not answer; takes no jobs");
	host = lab7;
	value.avoid[0] = host.id;
	value.avoid_count = 1;
	check(&host, &value, "avoided: restore failed there"); /* of a record without a time */
	value.avoid_why[0] = AVOID_RESTORE_FAILED;
	value.avoid_wall_ms[0] = (uint64_t)now * 1000;
	strftime(clock, sizeof(clock), "%H:%M", localtime_r(&now, &tm));
	snprintf(expect, sizeof(expect), "avoided: restore failed there at %s", clock);
	check(&host, &value, expect);
}

static const char *text_of(struct json_object *json, const char *key)
{
	struct json_object *value;

	return json_object_object_get_ex(json, key, &value) ? json_object_get_string(value) : NULL;
}

/* A summary tells of refusals only while nobody has the job and nobody can take it. */
static void stuck_jobs_say_so(void **state)
{
	struct job_value value = { .fence = FENCE_STRICT, .state = JOB_STATE_IDLE };
	struct member_info hosts[2] = { lab7, lab7 };
	struct json_object *json = json_object_new_object(), *list;

	(void)state;
	strcpy(hosts[1].hostname, "lab8");
	hosts[1].id.b[0] = 8;
	hosts[1].state = MEMBER_DEAD;
	why_add_stuck(json, &value, hosts, 2);
	assert_null(text_of(json, "waits_for"));
	need(&value, "gpu");
	why_add_stuck(json, &value, hosts, 2);
	assert_string_equal(text_of(json, "waits_for"), "a host that fits");
	assert_true(json_object_object_get_ex(json, "refusals", &list));
	assert_int_equal(json_object_array_length(list), 2);
	assert_string_equal(json_object_get_string(json_object_array_get_idx(list, 0)),
			    "lab7: no tag gpu");
	assert_string_equal(json_object_get_string(json_object_array_get_idx(list, 1)),
			    "lab8: does not answer; no tag gpu");
	json_object_put(json);

	json = json_object_new_object();
	value.state = JOB_STATE_HELD;
	value.owner = hosts[0].id;
	why_add_stuck(json, &value, hosts, 2);
	assert_null(text_of(json, "waits_for")); /* it runs where it would not be sent */
	value.owner = hosts[1].id;
	why_add_stuck(json, &value, hosts, 2);
	assert_string_equal(text_of(json, "waits_for"), "a host that fits: lab8 does not answer");
	json_object_put(json);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(needs_are_told_in_plain_words),
		cmocka_unit_test(hosts_are_told_in_plain_words),
		cmocka_unit_test(stuck_jobs_say_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
