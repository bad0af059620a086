// SPDX-License-Identifier: LGPL-2.1-or-later
/* A job that runs here before all of its memory is here. */
#define LOG_TAG "job"
#include <errno.h>
#include <string.h>

#include "agent/host/probe.h"
#include "agent/job/job.h"
#include "agent/restore/restore.h"
#include "agent/util/log.h"

enum { SLICE_MS = 1000 };

bool job_lazy_wanted(const struct job *job)
{
	return !strcmp(job->agent->config.lazy_restore, "auto") && probe_lazy_memory();
}

/* The job's thread looks. It is not called off: decampd ends if there is no memory for that. */
static void wake_job(struct job *job)
{
	struct action action = { .type = ACTION_MEMORY };

	if (job_post(job, &action) < 0)
		log_debug("%s: its thread is gone", job->spec.name);
}

static void on_starved(void *ctx, int error)
{
	struct job *job = ctx;

	job->starved = error < 0;
	if (error < 0)
		job_say(job,
			"frozen: no host gives a part of its memory (%s); it goes on as soon as one "
			"does",
			strerror(-error));
	else
		job_say(job, "its memory is to be had again: it goes on");
	wake_job(job);
}

static void on_finished(void *ctx)
{
	wake_job(ctx);
}

struct lazy_events job_lazy_events(struct job *job)
{
	return (struct lazy_events){ .starved = on_starved, .finished = on_finished, .ctx = job };
}

void job_lazy_keep(struct job *job, struct restore_lazy *lazy_take, struct manifest *manifest_take,
		   struct fetch_ctx *fetch_take)
{
	job->coming.lazy = lazy_take;
	job->coming.manifest = manifest_take;
	job->coming.fetch = fetch_take;
}

static void forget(struct job *job)
{
	job->coming.lazy = NULL;
	manifest_destroy(take_ptr(job->coming.manifest));
	if (job->coming.fetch)
		job_fetch_deinit(job->coming.fetch);
	free(take_ptr(job->coming.fetch));
	job->starved = false;
}

void job_lazy_end(struct job *job)
{
	if (!job->coming.lazy)
		return;
	restore_lazy_end(job->coming.lazy);
	forget(job);
}

void job_lazy_leave(struct job *job)
{
	if (!job->coming.lazy)
		return;
	restore_lazy_leave(job->coming.lazy);
	forget(job);
}

int job_lazy_settle(struct job *job, int patience_ms)
{
	int r = 0;

	if (!job->coming.lazy)
		return 0;
	for (int waited = 0;; waited += SLICE_MS) {
		uint64_t done, total;
		int slice = patience_ms - waited < SLICE_MS ? patience_ms - waited : SLICE_MS;

		r = restore_lazy_wait(job->coming.lazy, slice);
		restore_lazy_progress(job->coming.lazy, &done, &total);
		if (r != 0 || waited + slice >= patience_ms || job->starved || job->lost)
			break;
		job_step(job, "memory", done, total);
	}
	if (r < 0)
		return r;
	if (r == 0)
		return -EAGAIN;
	job_lazy_end(job);
	log_info("%s: all of its memory is here", job->spec.name);
	return 0;
}
