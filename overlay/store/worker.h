/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One thread that waits for the disk so that the event loop does not: fsync of a pack takes
 * longer than a probe round or a lease renewal may.
 *
 * A task is embedded in a struct of its owner. run() is called in the worker, one task at a
 * time in order of submission; then done() in the event loop's thread. Tasks with the same
 * run_group() that wait one behind the other are run by one call of it. The task belongs to the
 * worker from submission until done() is called; done() frees it. Limit: WORKER_TASKS_MAX
 * submitted tasks (-EAGAIN). Destroying the worker waits for the running task; the tasks that
 * have not run get done() with `cancelled` set.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <systemd/sd-event.h>

enum { WORKER_TASKS_MAX = 256, WORKER_GROUP_MAX = 32 };

struct store_worker;

struct store_task {
	void (*run)(struct store_task *task);
	void (*run_group)(struct store_task *const *tasks, uint32_t count); /* or NULL */
	void (*done)(struct store_task *task);
	bool cancelled;
	struct store_task *next;
};

int store_worker_create(sd_event *event, struct store_worker **ret_worker)
	__attribute__((warn_unused_result));
void store_worker_destroy(struct store_worker *worker);
int store_worker_submit(struct store_worker *worker, struct store_task *task)
	__attribute__((warn_unused_result));
