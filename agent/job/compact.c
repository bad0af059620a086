// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What of a job's last checkpoint lies in forgotten packs is written anew while the job runs and its
 * thread has nothing else to do, a little at a time. Where the next checkpoint is near it is left to
 * that one, which need not fetch it. Nothing here can fail the job.
 */
#define LOG_TAG "job"
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "agent/job/job.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum {
	BYTES_MIN = 1 << 20, /* of blocks: less is no work for the next checkpoint */
	ROUND_BYTES = 32 << 20,
	ROUND_MS = 2000,
	AHEAD_MS = 10 * 1000, /* so long before the next checkpoint */
	AGAIN_MS = 60 * 1000, /* after a failure */
};

struct round {
	struct job *job;
	struct fetch_ctx fetch;
	uint64_t until_ns;
};

static int store(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		 uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	struct round *round = ctx;

	return job_store_object(round->job, memfd, hash, size, ret_holder_count, ret_holders);
}

static int fetch(void *ctx, const struct object_hash *hash, uint32_t size,
		 const struct node_id *holders, uint32_t holder_count, int *memfd)
{
	struct round *round = ctx;

	return job_fetch_object(&round->fetch, hash, size, holders, holder_count, memfd);
}

static int open_last(void *ctx, struct manifest **ret_manifest)
{
	struct job *job = ((struct round *)ctx)->job;
	/* On the job's own one a pack may be on its way. */
	_cleanup_close_ int channel = ov_open_channel(job->agent->main_channel);

	return channel < 0 ? channel :
			     job_open_manifest(job->agent, channel, &job->id, &job->key,
					       &job->value.history[0], ret_manifest);
}

static bool goes_on(void *ctx)
{
	struct round *round = ctx;
	struct job *job = round->job;
	bool waits;

	pthread_mutex_lock(&job->lock);
	waits = job->queue_head != NULL;
	pthread_mutex_unlock(&job->lock);
	return !waits && !job->lost && !job->agent->stopping && now_boot_ns() < round->until_ns;
}

static bool is_due(const struct job *job)
{
	uint64_t now = now_boot_ns();

	return job->phase == PHASE_RUNNING && job->packer && job->keeper && !job->coming.lazy &&
	       job->value.history_count > 0 && job->value.history[0].seq != job->compact.done_seq &&
	       now >= job->compact.again_boot_ns &&
	       job->next_ckpt_boot_ns > now + (uint64_t)AHEAD_MS * 1000000;
}

void job_compact(struct job *job)
{
	struct round round = { .job = job,
			       .until_ns = now_boot_ns() + (uint64_t)ROUND_MS * 1000000 };
	struct packer_compaction c = { .token = job->value.token,
				       .seq = job->value.history[0].seq + 1,
				       .store = store,
				       .fetch = fetch,
				       .open_last = open_last,
				       .goes_on = goes_on,
				       .ctx = &round,
				       .bytes_max = ROUND_BYTES,
				       .cpu_percent = job->agent->config.pack_cpu_percent };
	struct packer_compacted done;
	int r;

	if (!is_due(job))
		return;
	if (packer_forgotten_bytes(job->packer) < BYTES_MIN) {
		job->compact.done_seq = job->value.history[0].seq;
		return;
	}
	job_fetch_init(&round.fetch, job->agent->main_channel, &job->id);
	r = packer_compact(job->packer, &c, &done);
	job_fetch_deinit(&round.fetch);
	if (r < 0) {
		job->compact.again_boot_ns = now_boot_ns() + (uint64_t)AGAIN_MS * 1000000;
		log_debug("%s: compaction: %s", job->spec.name, strerror(-r));
		return;
	}
	log_info("%s: compaction: cached=%" PRIu64 " fetched=%" PRIu64 " sent=%" PRIu64
		 " left=%" PRIu64,
		 job->spec.name, done.cached_bytes, done.fetched_bytes, done.sent_bytes,
		 packer_forgotten_bytes(job->packer));
}
