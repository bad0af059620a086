/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an image says of a thread that sleeps in a system call which nobody has interrupted. As a rule
 * the call is made again with its arguments; but some have done a part of their work when they
 * fall asleep, or keep in the kernel what an image needs.
 *
 * Only calls that are listed are answered for; all others are stopped by ptrace (freeze.h).
 */
#pragma once

#include <sys/types.h>
#include <sys/user.h>

enum asleep {
	/* Nothing is done yet: leave it alone, a restored thread makes the call again. */
	ASLEEP_AGAIN,
	/*
	 * It must be taken out of its call, which the program does not see: the kernel then says how
	 * much of it is done, writes down the time that is left, or puts back a signal mask.
	 */
	ASLEEP_WAKE,
	/* Neither is safe, or the call is not known. */
	ASLEEP_UNKNOWN,
};

/* regs: of a thread of this process, as at the entry of its call; the descriptors are looked up now. */
enum asleep asleep_in(pid_t pid, const struct user_regs_struct *regs);
