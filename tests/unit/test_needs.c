// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "agent/job/needs.h"

#define GIB (UINT64_C(1) << 30)

static const struct member_state_report lab7 = { .mem_free_bytes = 8 * GIB,
						 .arch = CPU_ARCH_X86_64,
						 .cores = 4,
						 .kernel_version = OV_KERNEL_VERSION(6, 12),
						 .tags = "gpu matlab-2024 r4.3" };

static size_t compiled(const char *text, uint8_t program[OV_NEEDS_MAX])
{
	char error[NEEDS_ERROR_MAX] = "";
	size_t size = 0;
	int r = needs_compile(text, program, &size, error);

	if (r < 0)
		fail_msg("%s: %s", text, error);
	return size;
}

static bool met(const char *text, uint32_t *ret_blame)
{
	uint8_t program[OV_NEEDS_MAX];
	size_t size = compiled(text, program);

	return core_needs_met(program, size, &lab7, lab7.mem_free_bytes, ret_blame);
}

static void expressions_mean_what_they_say(void **state)
{
	static const struct {
		const char *text;
		uint32_t blame; /* 0: met */
	} cases[] = {
		{ "gpu", 0 },
		{ " gpu ", 0 },
		{ "gp", 1 },
		{ "gpux", 1 },
		{ "matlab-2024", 0 },
		{ "matlab", 1 },
		{ "r4.3", 0 },
		{ "!gpu", 1 },
		{ "!fpga", 0 },
		{ "!!gpu", 0 },
		{ "mem >= 8G", 0 },
		{ "mem>=8G", 0 },
		{ "mem > 8G", 1 },
		{ "mem == 8192M", 0 },
		{ "mem < 8388609K", 0 },
		{ "mem >= 1T", 1 },
		{ "mem <= 8589934592", 0 },
		{ "cores >= 4", 0 },
		{ "cores != 4", 1 },
		{ "cores < 4", 1 },
		{ "arch == x86_64", 0 },
		{ "arch != x86_64", 1 },
		{ "arch == aarch64", 1 },
		{ "kernel >= 6.1", 0 },
		{ "kernel > 6.9", 0 }, /* 12 is a number, not 1 and 2 */
		{ "kernel >= 6", 0 },
		{ "kernel < 6.12", 1 },
		{ "kernel >= 7.0", 1 },
		{ "gpu && mem >= 8G", 0 },
		{ "gpu && fpga && mem > 8G", 2 }, /* the first that is false */
		{ "fpga || tpu", 3 },
		{ "fpga || gpu", 0 },
		{ "fpga || tpu && gpu", 3 },
		{ "gpu || tpu && fpga", 0 },
		{ "(gpu || tpu) && fpga", 4 },
		{ "!(gpu && cores >= 4)", 3 },
		{ "!(gpu || tpu)", 1 },
		{ "!(tpu && gpu)", 0 },
		{ "fpga&&(tpu||!gpu)||mem<1K", 9 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint32_t blame = 77;

		if (met(cases[i].text, &blame) != !cases[i].blame || blame != cases[i].blame)
			fail_msg("%s: blame %u", cases[i].text, blame);
	}
}

static void errors_name_the_place(void **state)
{
	static const struct {
		const char *text, *error;
	} cases[] = {
		{ "", "at character 1, at the end: a tag, mem, cores, kernel, arch, \"!\" or \"(\" "
		      "is expected" },
		{ "  ",
		  "at character 3, at the end: a tag, mem, cores, kernel, arch, \"!\" or \"(\" is "
		  "expected" },
		{ "gpu &&",
		  "at character 7, at the end: a tag, mem, cores, kernel, arch, \"!\" or \"(\" is "
		  "expected" },
		{ "gpu & big", "at character 5, before \"& big\": &&, || or the end is expected" },
		{ "gpu big", "at character 5, before \"big\": &&, || or the end is expected" },
		{ "gpu)", "at character 4, before \")\": &&, || or the end is expected" },
		{ "(gpu", "at character 5, at the end: &&, || or \")\" is expected" },
		{ "mem 8G",
		  "at character 5, before \"8G\": a relation is expected: == != < <= > >=" },
		{ "mem => 8G",
		  "at character 5, before \"=> 8G\": a relation is expected: == != < <= > >=" },
		{ "mem", "at character 4, at the end: a relation is expected: == != < <= > >=" },
		{ "mem >= big", "at character 8, before \"big\": a size like 512M or 8G is "
				"expected" },
		{ "mem >= 8GB", "at character 10, before \"B\": &&, || or the end is expected" },
		{ "mem >= 99999999999T",
		  "at character 8, before \"99999999999T\": that size is too large" },
		{ "mem >= 99999999999999999999",
		  "at character 8, before \"999999999999\": that number is too large" },
		{ "cores >= 4.5", "at character 11, before \".5\": &&, || or the end is expected" },
		{ "cores >= 65536", "at character 10, before \"65536\": that number is too large" },
		{ "kernel >= 6.1.55",
		  "at character 14, before \".55\": &&, || or the end is expected" },
		{ "kernel >= 6.",
		  "at character 13, at the end: the part of the version after the dot is "
		  "expected" },
		{ "arch >= x86_64", "at character 6, before \">= x86_64\": == or != is expected" },
		{ "arch == amd64", "at character 9, before \"amd64\": an architecture is "
				   "expected: x86_64 aarch64 riscv64 ppc64le s390x" },
		{ "!mem >= 8G", "at character 2, before \"mem >= 8G\": write !(mem ...)" },
		{ "memory >= 8G",
		  "at character 1, before \"memory >= 8G\": only mem, cores, kernel "
		  "and arch can be compared" },
		{ "abcdefghijklmnopqrstuvwxyzabcdef",
		  "at character 1, before \"abcdefghijkl\": a tag has at most 31 letters" },
		{ "!!!!!!!!!!!!!!!!!gpu",
		  "at character 18, before \"gpu\": this is nested too deeply" },
		{ "gpu\n\x01", "at character 5, before \"\x01\": &&, || or the end is expected" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint8_t program[OV_NEEDS_MAX];
		char error[NEEDS_ERROR_MAX] = "";
		size_t size = 7;

		if (needs_compile(cases[i].text, program, &size, error) != -EINVAL)
			fail_msg("not refused: %s", cases[i].text);
		assert_string_equal(error, cases[i].error);
		assert_int_equal(size, 7);
	}
}

static void sizes_are_bounded(void **state)
{
	char text[NEEDS_TEXT_MAX + 8] = "a", error[NEEDS_ERROR_MAX];
	uint8_t program[OV_NEEDS_MAX];
	size_t size;

	(void)state;
	for (int i = 1; i < NEEDS_LEAVES_MAX; i++)
		strcat(text, "||a");
	assert_int_equal(needs_compile(text, program, &size, error), 0);
	strcat(text, "||a");
	assert_int_equal(needs_compile(text, program, &size, error), -EINVAL);
	assert_non_null(strstr(error, "more than 32 parts"));
	strcpy(text, "mem>1");
	for (int i = 1; i < 25; i++)
		strcat(text, "&&mem>1");
	assert_int_equal(needs_compile(text, program, &size, error), -EINVAL);
	assert_non_null(strstr(error, "too long"));
	memset(text, ' ', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	assert_int_equal(needs_compile(text, program, &size, error), -EINVAL);
	assert_non_null(strstr(error, "longer than 1023"));
	text[0] = '\0';
	for (int i = 0; i < 400; i++)
		strcat(text, "(");
	assert_int_equal(needs_compile(text, program, &size, error), -EINVAL);
	assert_non_null(strstr(error, "nested too deeply"));
}

static void printed_text_compiles_to_the_same(void **state)
{
	static const struct {
		const char *text, *printed;
	} cases[] = {
		{ "gpu", "gpu" },
		{ " ( gpu )", "gpu" },
		{ "gpu&&(mem>=8192M)", "gpu && mem >= 8G" },
		{ "a && (b && c)", "a && (b && c)" },
		{ "(a && b) && c", "a && b && c" },
		{ "(a || b) && !(c || d)", "(a || b) && !(c || d)" },
		{ "a || (b && c)", "a || b && c" },
		{ "!(mem < 1000)", "!(mem < 1000)" },
		{ "!(!a)", "!!a" },
		{ "kernel >= 6 && arch != s390x", "kernel >= 6.0 && arch != s390x" },
		{ "mem == 0", "mem == 0" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint8_t program[OV_NEEDS_MAX], again[OV_NEEDS_MAX];
		char text[NEEDS_TEXT_MAX];
		size_t size = compiled(cases[i].text, program);

		assert_int_equal(needs_print(program, size, text), 0);
		assert_string_equal(text, cases[i].printed);
		assert_int_equal(compiled(text, again), size);
		assert_memory_equal(program, again, size);
	}
}

/* What another host wrote is never believed to be whole. */
static void foreign_programs_are_checked(void **state)
{
	static const struct {
		uint8_t size, bytes[16];
	} bad[] = {
		{ 1, { 0 } },
		{ 1, { NEEDS_TAG } },
		{ 2, { NEEDS_TAG, 0 } },
		{ 2, { NEEDS_TAG, 1 } },
		{ 3, { NEEDS_TAG, 1, ' ' } },
		{ 3, { NEEDS_TAG, 1, '-' } },
		{ 4, { NEEDS_TAG, 1, 'a', NEEDS_AND } },
		{ 1, { NEEDS_NOT } },
		{ 6, { NEEDS_TAG, 1, 'a', NEEDS_TAG, 1, 'b' } },
		{ 4, { NEEDS_TAG, 1, 'a', NEEDS_OR + 1 } },
		{ 10, { NEEDS_COMPARE, NEEDS_MEM, NEEDS_GE } },
		{ 11, { NEEDS_COMPARE, 0, NEEDS_GE } },
		{ 11, { NEEDS_COMPARE, NEEDS_KERNEL + 1, NEEDS_GE } },
		{ 11, { NEEDS_COMPARE, NEEDS_MEM, 0 } },
		{ 11, { NEEDS_COMPARE, NEEDS_MEM, NEEDS_GE + 1 } },
		{ 11, { NEEDS_COMPARE, NEEDS_ARCH, NEEDS_GE, 1 } },
		{ 11, { NEEDS_COMPARE, NEEDS_ARCH, NEEDS_EQ, 0 } },
		{ 11, { NEEDS_COMPARE, NEEDS_ARCH, NEEDS_EQ, CPU_ARCH_END } },
	};
	uint8_t deep[3 * (NEEDS_DEPTH_MAX + 1)], large[OV_NEEDS_MAX + 1];
	char text[NEEDS_TEXT_MAX];
	uint32_t blame;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_false(core_needs_valid(bad[i].bytes, bad[i].size));
		assert_false(core_needs_met(bad[i].bytes, bad[i].size, &lab7, 0, &blame));
		assert_int_equal(blame, 0);
		assert_int_equal(needs_print(bad[i].bytes, bad[i].size, text), -EINVAL);
	}
	for (size_t i = 0; i < sizeof(deep); i += 3)
		memcpy(deep + i, (const uint8_t[]){ NEEDS_TAG, 1, 'a' }, 3);
	assert_false(core_needs_valid(deep, sizeof(deep)));
	memset(large, NEEDS_NOT, sizeof(large));
	memcpy(large, (const uint8_t[]){ NEEDS_TAG, 1, 'a' }, 3);
	assert_true(core_needs_valid(large, OV_NEEDS_MAX));
	assert_int_equal(needs_print(large, OV_NEEDS_MAX, text), 0);
	assert_false(core_needs_valid(large, sizeof(large)));
	assert_true(core_needs_met(NULL, 0, &lab7, 0, &blame)); /* nothing is asked for */
}

static void tags_are_words(void **state)
{
	static const char *const good[] = { "", "gpu", "gpu matlab", "R-4.3 x_y 7" };
	static const char *const bad[] = { " ",	      "gpu ", " gpu",	"gpu  cpu",
					   "gpu,cpu", "-gpu", "gp\xff", "gpu\n" };
	static const char longest[] = "abcdefghijklmnopqrstuvwxyzabcdef";

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_true(core_tags_valid(good[i], strlen(good[i])));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_false(core_tags_valid(bad[i], strlen(bad[i])));
	assert_true(core_tags_valid(longest, OV_TAG_MAX - 1));
	assert_false(core_tags_valid(longest, OV_TAG_MAX));
	assert_true(core_tags_have(lab7.tags, "r4.3", 4));
	assert_false(core_tags_have(lab7.tags, "r4", 2));
	assert_false(core_tags_have(lab7.tags, "gpu matlab-2024", 15));
	assert_false(core_tags_have(lab7.tags, "", 0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(expressions_mean_what_they_say),
		cmocka_unit_test(errors_name_the_place),
		cmocka_unit_test(sizes_are_bounded),
		cmocka_unit_test(printed_text_compiles_to_the_same),
		cmocka_unit_test(foreign_programs_are_checked),
		cmocka_unit_test(tags_are_words),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
