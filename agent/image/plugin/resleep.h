/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A thread that is about to begin a timed call goes on with it instead, until its deadline.
 *
 *   stopped before the call -> makes it, with the time that is left -> interrupted at once: the
 *   kernel has the deadline -> registers and memory as they were, but as if just interrupted
 *
 * The thread and all others that see its memory are stopped by this process' ptrace, with
 * PTRACE_O_TRACESYSGOOD, before and after. If it does not work out, the thread is as it was. No
 * signal is lost. Threading: the tracer's thread.
 */
#pragma once

#include "agent/util/deadlines.h"

enum { RESLEEP_WHY_MAX = 128 };

/* < 0: the thread will make its call in full; why says a few words of it. */
int resleep(const struct deadline *d, char why[RESLEEP_WHY_MAX]) _must_check_;
