/* SPDX-License-Identifier: LGPL-2.1-or-later */
// sources: overlay/core/needs.c agent/job/needs.c
/*
 * As an expression: what compiles is valid, prints, and what is printed compiles to the same. As a
 * program: a valid one runs and prints; who is to blame is said exactly if it is not met, and lies
 * within its leaves. Tags are cut into the same words by who checks and who looks for them.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent/job/needs.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static uint32_t count_leaves(const uint8_t *program, size_t size)
{
	struct needs_item item;
	uint32_t leaves = 0;
	size_t at = 0;

	while (core_needs_next(program, size, &at, &item))
		leaves += item.op == NEEDS_TAG || item.op == NEEDS_COMPARE;
	return leaves;
}

static void run(const uint8_t *program, size_t size)
{
	static const struct member_state_report report = {
		.arch = CPU_ARCH_X86_64, .cores = 4, .kernel_version = 6 << 16, .tags = "gpu a b"
	};
	bool valid = core_needs_valid(program, size);
	char text[NEEDS_TEXT_MAX];
	uint32_t blame;
	bool met = core_needs_met(program, size, &report, UINT64_C(8) << 30, &blame);

	if (!size)
		return;
	if (met != (valid && !blame))
		abort();
	if (valid && (uint64_t)blame >> count_leaves(program, size))
		abort();
	if ((needs_print(program, size, text) == 0) != valid)
		abort();
}

static void compile(const char *text)
{
	uint8_t program[OV_NEEDS_MAX], again[OV_NEEDS_MAX];
	char error[NEEDS_ERROR_MAX] = "", printed[NEEDS_TEXT_MAX];
	size_t size, length;

	if (needs_compile(text, program, &size, error) < 0) {
		if (!error[0])
			abort();
		return;
	}
	run(program, size);
	if (!core_needs_valid(program, size) || needs_print(program, size, printed) < 0 ||
	    needs_compile(printed, again, &length, error) < 0 || length != size ||
	    memcmp(program, again, size) != 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	char *text = malloc(size + 1), tags[OV_TAGS_MAX] = "";
	uint8_t *exact = malloc(size ? size : 1);

	if (!text || !exact)
		abort();
	memcpy(text, bytes, size);
	text[size] = '\0';
	memcpy(exact, bytes, size);
	compile(text);
	run(exact, size);
	if (core_tags_valid(text, size)) {
		memcpy(tags, text, size);
		if (size && !core_tags_have(tags, tags, strcspn(tags, " ")))
			abort();
	}
	free(text);
	free(exact);
	return 0;
}
