// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/sleeps.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>

#include "agent/util/deadlines.h"
#include "agent/util/io.h"

/* Absolute times are in the arguments already. */
static bool is_relative(const struct user_regs_struct *r, long call)
{
	switch (call) {
	case SYS_poll:
	case SYS_nanosleep:
		return true;
	case SYS_clock_nanosleep:
		return !(r->rsi & TIMER_ABSTIME);
	case SYS_futex:
		return ((int)r->rsi & FUTEX_CMD_MASK) == FUTEX_WAIT;
	default:
		return false;
	}
}

/* As the host has it: so the kernel keeps deadlines. 0: of no clock whose time a restore keeps. */
static uint64_t now_of(const struct native_tree *tree, int clock)
{
	return clock == CLOCK_MONOTONIC ? tree->freeze_mono_ns :
	       clock == CLOCK_BOOTTIME	? tree->freeze_boot_ns :
					  0;
}

void sleeps_note(const struct native_tree *tree, struct native_thread *t, long call)
{
	uint64_t now, end;

	t->timed_call = 0;
	if (!t->state || !is_relative(&t->regs, call))
		return;
	now = now_of(tree, t->state->restart_clock);
	end = t->state->restart_expires_ns;
	if (!now || end > INT64_MAX)
		return;
	t->timed_call = (uint32_t)call;
	t->left_ns = end > now ? end - now : 0;
}

static size_t list(const struct native_tree *tree, struct deadline *to, size_t room)
{
	size_t count = 0;

	for (size_t i = 0; i < tree->task_count; i++) {
		const struct native_task *task = &tree->tasks[i];

		/* A process that is stopped by a signal is left as the restorer makes it. */
		if (task->zombie || task->state->group_stop_signal)
			continue;
		for (size_t k = 0; k < task->thread_count; k++) {
			const struct native_thread *t = &task->threads[k];

			if (!t->timed_call)
				continue;
			if (count < room)
				to[count] = (struct deadline){ .pid = task->inner_pid,
							       .tid = t->inner_tid,
							       .call = t->timed_call,
							       .left_ns = t->left_ns };
			count++;
		}
	}
	return count;
}

int sleeps_write(struct native_tree *tree)
{
	size_t count = list(tree, NULL, 0), size;
	_cleanup_free_ struct deadlines_head *head = NULL;
	_cleanup_close_ int fd = -1;

	count = count > DEADLINES_MAX ? DEADLINES_MAX : count;
	if (!count)
		return 0;
	size = sizeof(*head) + count * sizeof(struct deadline);
	head = malloc(size);
	if (!head)
		return -ENOMEM;
	*head = (struct deadlines_head){ .magic = DEADLINES_MAGIC,
					 .version = DEADLINES_VERSION,
					 .count = (uint32_t)count };
	list(tree, (struct deadline *)(head + 1), count);
	fd = openat(tree->images, DEADLINES_FILE, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : write_full(fd, head, size);
}
