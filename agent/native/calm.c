// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A thread that waits for a disk cannot be stopped before that wait is over, and all others would
 * stand until then. So before a stop, while the job runs, it is waited for. So is the mutex of all
 * cgroups, which raising the fence needs, and lowering it while all stand: who moves processes or removes
 * cgroups holds it for up to some hundred milliseconds.
 */
#include <string.h>
#include <unistd.h>

#include "agent/native/fence.h"
#include "agent/native/freeze.h"
#include "agent/native/freeze_internal.h"

enum {
	CALM_LOOKS_MAX = 256, /* threads; what more of them do is found out by the stop */
	CALM_POLL_US = 500,
	CALM_SHORT_NS = 5000000, /* such waits a stop may well wait for */
	CALM_ROUNDS = 16,
};

/*
 * One that goes from short wait to short wait is never seen outside of them, but its number of
 * switches goes up. What that of a long wait announces is another long one.
 */
static bool await_thread(pid_t tid, uint64_t until_ns, bool *ret_waited)
{
	uint64_t switches, since_ns = 0;

	if (!list_blocked(tid, &switches))
		return true;
	*ret_waited = true;
	for (;;) {
		uint64_t now_switches, now_ns;

		usleep(CALM_POLL_US);
		now_ns = freeze_mono_ns();
		if (!list_blocked(tid, &now_switches))
			return true;
		if (now_switches != switches && since_ns && now_ns - since_ns < CALM_SHORT_NS)
			return true;
		if (now_switches != switches || !since_ns)
			since_ns = now_ns;
		switches = now_switches;
		if (now_ns >= until_ns)
			return false;
	}
}

static bool await_cgroups(const struct native_fence *fence)
{
	uint64_t begin_ns = freeze_mono_ns();

	/* What a tracer left up who died is not ours to lower: who is behind it is to be mended first. */
	if (fence_is_up(fence))
		return false;
	fence_lower(fence);
	return freeze_mono_ns() - begin_ns >= CALM_SHORT_NS;
}

bool freeze_await_calm(const struct native_tree *tree, uint64_t patience_ns,
		       uint64_t *ret_waited_ns)
{
	uint64_t begin_ns = freeze_mono_ns(), until_ns = begin_ns + patience_ns;
	bool calm = true, waited = true;

	/* While one was waited for another may have begun to wait. */
	for (int i = 0; calm && waited && i < CALM_ROUNDS; i++) {
		size_t looks = 0;

		if (i > 0 && freeze_mono_ns() >= until_ns)
			break;
		waited = await_cgroups(tree->fence);
		for (size_t k = 0; k < tree->task_count; k++) {
			const struct native_task *task = &tree->tasks[k];

			for (size_t n = 0; calm && !task->zombie && n < task->thread_count; n++)
				if (task->threads[n].tid && looks++ < CALM_LOOKS_MAX)
					calm = await_thread(task->threads[n].tid, until_ns,
							    &waited);
		}
	}
	*ret_waited_ns = freeze_mono_ns() - begin_ns;
	return calm && !waited;
}
