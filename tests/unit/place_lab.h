/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where a test's job is submitted, and what it writes there. Failures are those of the test. */
#pragma once

#include "tests/unit/capture_lab.h"

#include "tests/unit/keeper_fixture.h"

struct place {
	char base[64]; /* submission directory, on the host */
	char spool[96];
	char images[96];
};

void place_init(struct place *p);
void place_deinit(struct place *p);
/* sh -c script, its output in the file "out". */
void place_start_as(struct fixture *f, const struct place *p, uid_t uid, const char *script);
void place_start(struct fixture *f, const struct place *p, const char *script);
/* What a file holds by now; NULL, 0 if it is not there. To be freed. */
char *place_output(const struct fixture *f, const struct place *p, const char *name);
size_t place_output_size(const struct fixture *f, const struct place *p, const char *name);
/* Until "out" is that long. */
void place_wait_output(const struct fixture *f, const struct place *p, size_t size);

/*
 * A job sleeps between two lines, for longer in all than any test takes, until this file is there:
 * so it is never over before it was captured, however slow the machine is.
 */
#define PLACE_HURRY "hurry"
#define PLACE_REST "[ -e " PLACE_HURRY " ] || sleep $PACE"
#define PLACE_REST_PYTHON                                   \
	"import os, time\n"                                 \
	"pace = float(os.environ[\"PACE\"])\n"              \
	"def rest():\n"                                     \
	"    if not os.path.exists(\"" PLACE_HURRY "\"):\n" \
	"        time.sleep(pace)\n"

/*
 * In the job's own view: what comes into the layer below, who has looked there may never see.
 * False: it is over.
 */
bool place_hurry(const struct fixture *f, const struct place *p);
