// SPDX-License-Identifier: LGPL-2.1-or-later
/* What a tracer wants for itself: priority in the pause, and no page fault in it. */
#include <linux/capability.h>
#include <sched.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "agent/native/freeze.h"

enum { PAUSE_PRIORITY = 10 };

void freeze_raise(void)
{
	struct sched_param p = { .sched_priority = PAUSE_PRIORITY };

	(void)sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &p);
}

void freeze_lower(void)
{
	struct sched_param p = { 0 };

	(void)sched_setscheduler(0, SCHED_OTHER, &p);
}

/* Without the right, memory that is locked as it comes would soon be refused altogether. */
static bool may_lock_all(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3] = { 0 };
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY)
		return true;
	return syscall(SYS_capget, &head, caps) == 0 && caps[0].effective >> CAP_IPC_LOCK & 1;
}

bool freeze_prepare_self(void)
{
	struct sched_param p = { .sched_priority = PAUSE_PRIORITY };
	bool all = may_lock_all();

	/* What comes later is locked when it is touched: nobody wants whole thread stacks. */
	if (all && (mlockall(MCL_CURRENT) < 0 || mlockall(MCL_FUTURE | MCL_ONFAULT) < 0))
		all = false;
	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &p) < 0)
		return false;
	freeze_lower();
	return all;
}
