// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * decamp-capture: the program that traces a job, follows its memory and writes its images.
 * decampd starts one per job; people use its verbs to look or to test.
 */
#define LOG_TAG "native"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/native/oneshot.h"
#include "agent/native/oneshot.h"
#include "agent/native/serve.h"
#include "agent/native/state.h"
#include "agent/native/take.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

static const char usage[] =
	"Usage: decamp-capture check PID\n"
	"       decamp-capture probe\n"
	"       decamp-capture dump ...\n"
	"Follows the memory of a process tree and writes images of it for CRIU. decampd starts it;\n"
	"see decampd(8).\n\n"
	"  check PID  say whether the native engine covers that process tree, and if not, why\n"
	"  probe      say whether this kernel lets the engine read the state of tasks\n"
	"  dump       one snapshot; dump --help says more\n\n"
	"Example: decamp-capture check $$\n";

/* 0: covered, 1: not, 2: could not look. */
static int check(const char *text)
{
	struct take_config config = { 0 };
	char reason[NATIVE_REASON_MAX], *end;
	struct taker *t;
	int r;

	config.root = (pid_t)strtol(text, &end, 10);
	if (*end || end == text || config.root <= 0) {
		fputs(usage, stderr);
		return 2;
	}
	r = take_create(&config, &t, reason);
	if (r == 0) {
		r = take_check(t, reason);
		take_destroy(t);
	}
	puts(r == 0 ? "native" : reason);
	return r == 0 ? 0 : r == -EOPNOTSUPP ? 1 : 2;
}

/* Can the state programs be loaded? All else is slower without, but works. */
static int probe(void)
{
	struct native_state *state = NULL;
	char reason[NATIVE_REASON_MAX] = "";
	int r = state_create(&state, reason);

	if (r == 0)
		state_destroy(state);
	puts(r == 0 ? "yes" : reason[0] ? reason : strerror(-r));
	return r == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
	log_init(LOG_INFO_, "decamp-capture");
	if (argc == 1)
		return serve_main(NATIVE_FD) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
	if (!strcmp(argv[1], "check") && argc == 3)
		return check(argv[2]);
	if (!strcmp(argv[1], "probe") && argc == 2)
		return probe();
	if (!strcmp(argv[1], "dump"))
		return oneshot_main(argc - 1, argv + 1);
	fputs(usage, strcmp(argv[1], "--help") ? stderr : stdout);
	return strcmp(argv[1], "--help") ? 2 : 0;
}
