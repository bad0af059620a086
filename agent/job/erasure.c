// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Old packs become shards: after a checkpoint, while the job runs and nothing else is to be done.
 * Nothing here can fail the job; what fails is tried again after a later checkpoint, and until a
 * manifest that says so is committed no copy is given up.
 */
#define LOG_TAG "job"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "agent/job/job.h"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/shard.h"

enum {
	SIZE_MIN = 256 << 10, /* below, heads and rounding are more than what is saved */
	BATCH_MAX = 16,	      /* objects after one checkpoint */
	BATCH_MS = 2000,
	CODE_MS = 20000,       /* one object; nothing else of the job is done meanwhile */
	PAUSE_CHECKPOINTS = 8, /* none pays: that is not asked for each time */
};

/* "auto" is 0+0. False: off. */
static bool scheme_of(const struct host_config *config, uint32_t *ret_k, uint32_t *ret_m)
{
	*ret_k = *ret_m = 0;
	if (!strcmp(config->erasure, "off"))
		return false;
	if (strcmp(config->erasure, "auto") != 0)
		(void)sscanf(config->erasure, "%" SCNu32 "+%" SCNu32, ret_k, ret_m);
	return true;
}

static bool is_answer(const struct ov_group *asked, const struct ov_group *group)
{
	if (!shard_scheme_valid(group->k, group->m) ||
	    memcmp(&group->hash, &asked->hash, sizeof(group->hash)) != 0 ||
	    (asked->k && (group->k != asked->k || group->m != asked->m)))
		return false;
	for (uint32_t i = 0; i < group->k + group->m; i++) {
		if (node_id_is_zero(&group->holders[i]))
			return false;
		for (uint32_t j = 0; j < i; j++)
			if (node_id_equal(&group->holders[i], &group->holders[j]))
				return false;
	}
	return true;
}

static int code(struct job *job, const struct pack_old *pack, uint32_t k, uint32_t m)
{
	struct fetch_ctx fetch;
	const struct ov_group asked = { .job = job->id,
					.token = job->value.token,
					.hash = pack->hash,
					.seq = pack->seq,
					.size = pack->size,
					.k = k,
					.m = m };
	struct ov_msg msg = { .op = OV_OBJECT_CODE, .u.group = asked };
	_cleanup_close_ int fd = -1;
	int r;

	job_fetch_init(&fetch, job->agent->main_channel, &job->id);
	r = job_fetch_object(&fetch, &pack->hash, pack->size, pack->holders, pack->holder_count,
			     &fd);
	job_fetch_deinit(&fetch);
	if (r < 0)
		return r;
	r = job_object_call(job, &msg, fd, CODE_MS);
	if (r < 0)
		return r;
	if (!is_answer(&asked, &msg.u.group))
		return -EBADMSG;
	return packer_set_coded(job->packer, &pack->hash, msg.u.group.k, msg.u.group.m,
				msg.u.group.holders);
}

static bool has_time(struct job *job, uint64_t until_ns)
{
	bool waits;

	pthread_mutex_lock(&job->lock);
	waits = job->queue_head != NULL;
	pthread_mutex_unlock(&job->lock);
	return !waits && !job->lost && !job->agent->stopping && now_boot_ns() < until_ns;
}

void job_code_old(struct job *job)
{
	uint64_t until_ns = now_boot_ns() + (uint64_t)BATCH_MS * 1000000;
	uint64_t seq = job->value.history[0].seq, bytes = 0;
	_cleanup_free_ struct pack_old *packs = NULL;
	uint32_t k, m, done = 0;
	size_t count = 0;
	int r;

	if (!scheme_of(&job->agent->config, &k, &m) || seq < job->code_again_seq ||
	    packer_old(job->packer, job->agent->config.erasure_after, SIZE_MIN, &packs, &count) < 0)
		return;
	for (size_t i = 0; i < count && done < BATCH_MAX && has_time(job, until_ns); i++) {
		r = code(job, &packs[i], k, m);
		if (r == 0) {
			done++;
			bytes += packs[i].size;
			continue;
		}
		if (r == -EHOSTUNREACH)
			job->code_again_seq = seq + PAUSE_CHECKPOINTS;
		log_debug("%s: shards: %s", job->spec.name, strerror(-r));
		break;
	}
	if (done)
		log_info("%s: %" PRIu32 " packs, %" PRIu64 " bytes, are shards from now on",
			 job->spec.name, done, bytes);
}
