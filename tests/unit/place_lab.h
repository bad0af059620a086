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
