// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: agent/image/criu_text.c agent/util/io.c build/gen/agent/image/criu_rpc.pb-c.c
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent/image/criu_rpc.pb-c.h"
#include "agent/image/criu_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* What is logged is one line of printable characters. */
static void see(const char *text)
{
	for (; *text; text++) {
		if (*text < ' ' || *text > '~')
			abort();
	}
}

/* The same bytes as stats-dump, as a log and as a message of CRIU. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct criu_times times;
	char reason[CRIU_REASON_MAX];
	char *log = malloc(size + 1);
	Swrk__Answer *answer;

	if (!log)
		return 0;
	memcpy(log, bytes, size);
	log[size] = '\0';
	(void)!criu_parse_stats(bytes, size, &times);
	criu_parse_reason(log, reason);
	criu_last_lines(log, size ? bytes[0] : 0, see);
	criu_add_reason(reason, "what", (int)size);
	free(log);
	answer = swrk__answer__unpack(NULL, size, bytes);
	if (answer)
		swrk__answer__free_unpacked(answer, NULL);
	return 0;
}
