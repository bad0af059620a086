/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The simulator of tests/sim as part of the library that every unit test is linked with. */
#include "tests/sim/chaos.c"
#include "tests/sim/checker.c"
#include "tests/sim/hosts.c"
#include "tests/sim/simnet.c"
