// SPDX-License-Identifier: LGPL-2.1-or-later
/* capture -> pack -> holders -> register: one checkpoint, committed or as if it had never been. */
#define LOG_TAG "job"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

#include "agent/job/job.h"
#include "agent/job/needs.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { COMMIT_PATIENCE_MS = 20000, FINISH_RETRY_S = 3, LAZY_PATIENCE_MS = 60000 };

uint32_t job_interval_s(const struct job *job)
{
	if (job->spec.every_s)
		return job->spec.every_s;
	if (job->agent->config.every_s)
		return job->agent->config.every_s;
	return job_interval_rule_s(job->stat_count ? &job->stats[job->stat_count - 1] : NULL);
}

/* The spool goes to memory (run_dir is a tmpfs) while that is plentiful, else to the disk. */
static int make_spool(struct job *job, char spool[600])
{
	struct host_resources res;
	uint64_t need = job->stat_count ? job->stats[job->stat_count - 1].mem_bytes : 64 << 20;
	struct statvfs vfs;
	bool in_memory = host_resources(&res) == 0 && res.mem_free_bytes / 2 > need &&
			 statvfs(job->run_dir, &vfs) == 0 &&
			 (uint64_t)vfs.f_bavail * vfs.f_frsize > 2 * need;
	int r;

	/* The other one too: a decampd that was killed may have left it full. */
	snprintf(spool, 600, "%s/spool", in_memory ? job->state_dir : job->run_dir);
	r = remove_tree_at(AT_FDCWD, spool);
	if (r < 0)
		log_errno(r, "remove %s", spool);
	snprintf(spool, 600, "%s/spool", in_memory ? job->run_dir : job->state_dir);
	r = remove_tree_at(AT_FDCWD, spool);
	if (r < 0)
		return r;
	return mkdir(spool, 0700) < 0 ? -errno : 0;
}

/* One layout in both stages, so that a big job's runs need no copy. */
_Static_assert(sizeof(struct pack_run) == sizeof(struct native_run) &&
		       offsetof(struct pack_run, count) == offsetof(struct native_run, count) &&
		       PACK_RUN_NEW == (int)RUN_NEW && PACK_RUN_OLD == (int)RUN_OLD,
	       "same runs");
_Static_assert(sizeof(struct pack_wanted) == sizeof(struct native_wanted) &&
		       offsetof(struct pack_wanted, first) ==
			       offsetof(struct native_wanted, first) &&
		       offsetof(struct pack_wanted, count) == offsetof(struct native_wanted, count),
	       "same blocks");

struct feed {
	struct job *job;
	uint64_t file_bytes;
};

static int feed_packer(void *ctx, const struct snapshot_file *file)
{
	struct feed *feed = ctx;
	struct pack_input in = { .kind = (enum file_kind)file->kind,
				 .path = file->path,
				 .st = file->st,
				 .link_target = file->link_target,
				 .xattrs = file->xattrs,
				 .xattrs_size = file->xattrs_size,
				 .fd = file->fd,
				 .runs = (const struct pack_run *)file->runs,
				 .run_count = file->run_count };

	if (file->kind != SNAPSHOT_IMAGE && S_ISREG(file->st.st_mode))
		feed->file_bytes += (uint64_t)file->st.st_size;
	return packer_add(feed->job->packer, &in);
}

static int pack_files(struct job *job, struct snapshot *snap, struct feed *feed, uint64_t seq)
{
	int r;

	job_share_packing(job);
	r = packer_begin(job->packer, &job->value.token, seq, job_store_object, job);
	if (r < 0)
		return r;
	r = snapshot_each(snap, false, feed_packer, feed);
	if (r == -ENOENT) { /* the packer has forgotten an unchanged file: give it everything */
		packer_abort(job->packer);
		feed->file_bytes = 0;
		r = packer_begin(job->packer, &job->value.token, seq, job_store_object, job);
		if (r == 0)
			r = snapshot_each(snap, true, feed_packer, feed);
	}
	if (r < 0)
		packer_abort(job->packer);
	/* -ESTALE is the register's word alone; here it says that a file changed under our eyes. */
	return r == -ESTALE ? -EAGAIN : r;
}

static void push_stat(struct job *job, const struct ckpt_stat *stat)
{
	pthread_mutex_lock(&job->lock);
	if (job->stat_count == MANIFEST_STATS_MAX) {
		memmove(&job->stats[0], &job->stats[1],
			(MANIFEST_STATS_MAX - 1) * sizeof(job->stats[0]));
		job->stat_count--;
	}
	job->stats[job->stat_count++] = *stat;
	job->knows_past = true; /* the newest manifest was made from these lists */
	pthread_mutex_unlock(&job->lock);
}

static int write_manifest(struct job *job, const struct snapshot_info *info,
			  const struct ckpt_stat *stat, struct ckpt_ref *ret_ref)
{
	struct manifest_head *head = calloc(1, sizeof(*head));
	struct host_resources res;
	int r;

	if (!head)
		return -ENOMEM;
	head->job = job->id;
	head->token = job->value.token;
	head->seq = stat->seq;
	head->wall_ms = stat->wall_ms;
	head->host = job->agent->self;
	snprintf(head->engine, sizeof(head->engine), "%s", stat->engine);
	if (host_resources(&res) == 0) {
		memcpy(head->arch, res.arch, sizeof(head->arch));
		memcpy(head->kernel, res.kernel, sizeof(head->kernel));
	}
	head->meta_json = info && info->meta_json ? info->meta_json : "{}";
	head->spec_json = json_object_to_json_string(job->spec.json);
	head->stat_count = job->stat_count;
	memcpy(head->stats, job->stats, sizeof(head->stats));
	if (head->stat_count == MANIFEST_STATS_MAX)
		memmove(&head->stats[0], &head->stats[1],
			(--head->stat_count) * sizeof(head->stats[0]));
	head->stats[head->stat_count++] = *stat;
	head->move_count = job->move_count;
	memcpy(head->moves, job->moves, sizeof(head->moves));
	r = packer_finish(job->packer, head, cluster_sign_seed(job->agent->cluster),
			  cluster_card(job->agent->cluster), ret_ref);
	free(head);
	return r;
}

/* Two acknowledged copies, or as many as there are other hosts willing to hold one. */
int job_enough_holders(struct job *job, const struct ckpt_ref *ref)
{
	_cleanup_free_ struct member_info *members = NULL;
	uint32_t others = 0, want;
	size_t count;
	int r = agent_members(job->channel, &members, &count);

	if (r < 0)
		return r;
	for (size_t i = 0; i < count; i++)
		if (!members[i].is_self && members[i].state == MEMBER_ALIVE &&
		    (members[i].report.flags & MEMBER_STORES_PACKS))
			others++;
	want = others >= 2 ? 2 : 1;
	if (ref->holder_count < want || job->few_holders < want) {
		job_say(job, "only %u of %u hosts took the checkpoint; it does not count",
			ref->holder_count < job->few_holders ? ref->holder_count : job->few_holders,
			want);
		return -ENOSPC;
	}
	return 0;
}

static void remember_objects(struct job *job, uint64_t seq)
{
	struct object_hash *hashes, *coded;
	size_t count, coded_count;
	uint64_t bytes;

	if (packer_objects(job->packer, &hashes, &count) < 0)
		return;
	if (packer_coded(job->packer, &coded, &coded_count, &bytes) < 0) {
		free(hashes);
		return;
	}
	job_forget_kept(job, OV_HISTORY_MAX - 1);
	memmove(&job->kept[1], &job->kept[0], (OV_HISTORY_MAX - 1) * sizeof(job->kept[0]));
	job->kept[0].hashes = hashes;
	job->kept[0].count = count;
	job->kept[0].seq = seq;
	job->kept[0].coded = coded;
	job->kept[0].coded_count = coded_count;
	pthread_mutex_lock(&job->lock);
	job->coded_packs = coded_count;
	job->coded_bytes = bytes;
	pthread_mutex_unlock(&job->lock);
}

/* What it may rely on from now on is what it has found here. */
static uint32_t kernel_need(const struct job *job, const struct snapshot_info *info)
{
	uint32_t use = KERNEL_NAMESPACES | KERNEL_OVERLAY | KERNEL_RSEQ | info->kernel_need;

	if (job->value.fence == FENCE_STRICT)
		use |= KERNEL_FREEZER;
	return use & job->agent->kernel_features;
}

/* ADVANCE (or DONE): the register's history gets ref in front. */
static int commit(struct job *job, const struct ckpt_ref *ref, uint32_t state, int exit_status,
		  const struct snapshot_info *info)
{
	struct job_value value = job->value;
	struct host_resources res;

	memmove(&value.history[1], &value.history[0],
		(OV_HISTORY_MAX - 1) * sizeof(value.history[0]));
	value.history[0] = *ref;
	if (value.history_count < OV_HISTORY_MAX)
		value.history_count++;
	value.state = state;
	value.exit_status = exit_status;
	value.avoid_count = 0; /* it runs: whoever failed to restore an older one may try again */
	memset(value.avoid, 0, sizeof(value.avoid));
	memset(value.avoid_wall_ms, 0, sizeof(value.avoid_wall_ms));
	memset(value.avoid_why, 0, sizeof(value.avoid_why));
	if (info->mem_bytes)
		value.mem_bytes = info->mem_bytes + info->mem_bytes / 4 + (64 << 20);
	if (host_resources(&res) == 0 && state == JOB_STATE_HELD) {
		memcpy(value.cpu_need, res.cpu_features, sizeof(value.cpu_need));
		value.arch = needs_arch_of(res.arch, strlen(res.arch));
		value.kernel_need = kernel_need(job, info);
	}
	return job_cas(job, &value, COMMIT_PATIENCE_MS);
}

static bool holder_alive(void *ctx, const struct node_id *node)
{
	struct member_info *members = ((void **)ctx)[0];
	size_t count = *(size_t *)((void **)ctx)[1];

	for (size_t i = 0; i < count; i++)
		if (node_id_equal(&members[i].id, node))
			return members[i].state == MEMBER_ALIVE ||
			       members[i].state == MEMBER_SUSPECT;
	return false;
}

/* Blocks whose holders died count as new: the next packs carry them again. */
void job_forget_weak(struct job *job)
{
	_cleanup_free_ struct member_info *members = NULL;
	uint32_t alive = 0;
	size_t count;
	void *ctx[2];

	if (agent_members(job->channel, &members, &count) < 0)
		return;
	for (size_t i = 0; i < count; i++)
		alive += !members[i].is_self && members[i].state == MEMBER_ALIVE &&
			 members[i].report.flags & MEMBER_STORES_PACKS;
	ctx[0] = members;
	ctx[1] = &count;
	packer_forget_weak(job->packer, alive >= 2 ? 2 : 1, holder_alive, ctx);
}

/* Only the register's word that a token is stale may end a job; file systems say it too. */
static int not_stale(int r)
{
	return r == -ESTALE ? -EIO : r;
}

/* Everything after the job was let go: pack, store, commit. */
static int publish(struct job *job, struct snapshot *snap, struct ckpt_stat *stat, uint32_t state,
		   int exit_status)
{
	const struct snapshot_info *info = snapshot_info(snap);
	struct packer_counts counts;
	struct ckpt_ref ref = { 0 };
	struct feed feed = { .job = job };
	uint64_t started = now_boot_ns();
	int r;

	job_step(job, "packing", 0, info->mem_bytes);
	job->few_holders = UINT32_MAX;
	r = pack_files(job, snap, &feed, stat->seq);
	if (r < 0)
		return not_stale(r);
	packer_counts(job->packer, &counts);
	stat->file_bytes = feed.file_bytes;
	stat->new_bytes = counts.new_bytes;
	stat->delta_bytes = counts.delta_bytes;
	stat->sent_bytes = counts.sent_bytes;
	stat->total_us = info->pause_us + (now_boot_ns() - started) / 1000;
	job_step(job, "storing", 0, counts.new_bytes);
	r = write_manifest(job, info, stat, &ref);
	if (r < 0)
		return not_stale(r);
	/* The packer goes on from this snapshot, committed or not: so must capture. */
	snapshot_accept(job->capture, snap);
	r = job_enough_holders(job, &ref);
	if (r < 0)
		return not_stale(r);
	ref.wall_ms = stat->wall_ms;
	job_step(job, "committing", 0, 0);
	r = commit(job, &ref, state, exit_status, info);
	if (r < 0)
		return r;
	packer_counts(job->packer, &counts);
	stat->sent_bytes = counts.sent_bytes;
	stat->total_us = info->pause_us + (now_boot_ns() - started) / 1000;
	push_stat(job, stat);
	remember_objects(job, ref.seq);
	r = job_save(job);
	if (r < 0)
		log_errno(r, "%s: local record", job->spec.name);
	job_learn_kept(job);
	job_retain(job);
	return 0;
}

static enum capture_engine engine_of(const struct host_config *config)
{
	return !strcmp(config->engine, "criu")	 ? CAPTURE_CRIU :
	       !strcmp(config->engine, "native") ? CAPTURE_NATIVE :
						   CAPTURE_AUTO;
}

/* What users see of the engine's work. */
static void note_engine(struct job *job, const struct snapshot_info *info)
{
	bool fell_back = info->fallback[0] != '\0';

	pthread_mutex_lock(&job->lock);
	if (info->native.id)
		job->native = info->native;
	if (fell_back) {
		job->fallbacks++;
		snprintf(job->fallback, sizeof(job->fallback), "%s", info->fallback);
	}
	pthread_mutex_unlock(&job->lock);
	if (fell_back)
		log_info("%s: captured by criu: %s", job->spec.name, info->fallback);
}

static int take_snapshot(struct job *job, const char *reason, enum capture_after after,
			 bool files_only, struct snapshot **ret_snap, struct ckpt_stat *ret_stat)
{
	char spool[600], why[CAPTURE_REASON_MAX] = "";
	_cleanup_free_ struct pack_wanted *wanted = NULL;
	struct capture_request request = {
		.keeper = job->keeper,
		.criu = job->agent->criu,
		.native = job->agent->config.capture_path,
		.engine = engine_of(&job->agent->config),
		.spool_dir = spool,
		.after = after,
		.files_only = files_only,
		.unprivileged_dump = !job->agent->has_sys_resource && job->spec.uid != 0,
		.uid = job->spec.uid,
		.gid = job->spec.gid,
	};
	const struct snapshot_info *info;
	struct ckpt_stat stat = { .seq = job->value.history[0].seq + 1 };
	int r = make_spool(job, spool);

	if (r < 0) {
		job_say(job, "no checkpoint: %s: %s: free some space there", spool, strerror(-r));
		return not_stale(r);
	}
	/* Before the capture: what went lost with its holders must be captured anew. */
	job_forget_weak(job);
	request.forget =
		packer_wanted(job->packer, NATIVE_WANTED_MAX, &wanted, &request.wanted_count) < 0;
	request.wanted = (const struct native_wanted *)wanted;
	job_step(job, "capturing", 0, 0);
	pthread_mutex_lock(&job->dump_lock);
	r = capture_take(job->capture, &request, ret_snap, why);
	pthread_mutex_unlock(&job->dump_lock);
	if (r < 0) {
		job_say(job, "no checkpoint: %s", why[0] ? why : strerror(-r));
		return not_stale(r);
	}
	info = snapshot_info(*ret_snap);
	note_engine(job, info);
	stat.wall_ms = info->wall_ms;
	stat.pause_us = info->pause_us;
	stat.mem_bytes = info->mem_bytes;
	snprintf(stat.host, sizeof(stat.host), "%s", job->agent->hostname);
	snprintf(stat.engine, sizeof(stat.engine), "%s", info->engine);
	snprintf(stat.reason, sizeof(stat.reason), "%s", reason);
	if (info->native.id)
		snprintf(stat.pause_mostly, sizeof(stat.pause_mostly), "%s",
			 native_mostly(&info->native));
	*ret_stat = stat;
	return 0;
}

/* Only this thread changes job->native. */
static void log_pause(const struct job *job, const struct ckpt_stat *stat)
{
	const struct native_result *n = &job->native;

	if (!stat->pause_mostly[0])
		return;
	log_info("%s: pause_us=%" PRIu64 ", mostly %s: freeze=%u blocked=%u queued=%u state=%u "
		 "memory=%u files=%u thaw=%u away=%u stolen=%u earlier=%" PRIu64 " calm=%u",
		 job->spec.name, n->pause_us, stat->pause_mostly, n->freeze_us, n->blocked_us,
		 n->queued_us, n->state_us + n->regs_us + n->files_us, n->scan_us + n->copy_us,
		 n->wait_us, n->thaw_us, n->away_us, n->stolen_us, n->earlier_us, n->calm_us);
}

int job_checkpoint(struct job *job, const char *reason, enum capture_after after,
		   struct ckpt_stat *ret_stat)
{
	struct snapshot *snap = NULL;
	struct packer_counts counts;
	struct ckpt_stat stat;
	enum job_phase before = job->phase;
	int r;

	if (!job->keeper || !job->capture || !job->packer ||
	    (before != PHASE_RUNNING && before != PHASE_MOVING))
		return -EBUSY;
	r = job_lazy_settle(job, LAZY_PATIENCE_MS);
	if (r < 0) {
		job_say(job, "no checkpoint: not all of its memory is here yet: %s", strerror(-r));
		return -EAGAIN;
	}
	if (before == PHASE_RUNNING)
		job_phase(job, PHASE_CHECKPOINTING);
	r = take_snapshot(job, reason, after, false, &snap, &stat);
	if (r == 0) {
		r = publish(job, snap, &stat, JOB_STATE_HELD, 0);
		snapshot_destroy(snap);
		if (r < 0)
			job_say(job,
				"checkpoint %" PRIu64 " was not committed: %s; the job runs on",
				stat.seq, strerror(-r));
	}
	if (before == PHASE_RUNNING)
		job_phase(job, PHASE_RUNNING);
	if (r < 0)
		return r;
	if (before == PHASE_RUNNING && after == CAPTURE_RUN_ON)
		job_code_old(job);
	job_say(job, "%s", "");
	packer_counts(job->packer, &counts);
	log_info("%s: checkpoint %" PRIu64 ": pause_us=%" PRIu64 " mem=%" PRIu64 " new=%" PRIu64
		 " delta=%" PRIu64 " sent=%" PRIu64 " total_us=%" PRIu64 " level=%d",
		 job->spec.name, stat.seq, stat.pause_us, stat.mem_bytes, stat.new_bytes,
		 stat.delta_bytes, stat.sent_bytes, stat.total_us, counts.level);
	log_pause(job, &stat);
	*ret_stat = stat;
	return 0;
}

int job_finish(struct job *job, int exit_status)
{
	struct snapshot *snap = NULL;
	struct ckpt_stat stat;
	int r;

	job_phase(job, PHASE_FINISHING);
	job_lazy_end(job);
	for (;;) {
		r = job->capture && job->packer ? 0 : job_make_capture(job);
		if (r == 0)
			r = take_snapshot(job, "final", CAPTURE_RUN_ON, true, &snap, &stat);
		if (r == 0) {
			r = publish(job, snap, &stat, JOB_STATE_DONE, exit_status);
			snapshot_destroy(take_ptr(snap));
		}
		if (job->lost && r < 0)
			r = -ESTALE;
		if (r == 0 || job->lost || (r == -ESTALE && job_is_lost(job)) ||
		    job->agent->stopping)
			break;
		job_say(job, "ended, but its result is not stored yet: %s; trying again",
			strerror(-r));
		sleep(FINISH_RETRY_S);
	}
	if (job->agent->stopping)
		return r;
	job_drop(job);
	if (r == -ESTALE)
		job_say(job, "ended here, but another host has the job now: this result is void");
	job_discard(job);
	job_phase(job, PHASE_GONE);
	return r;
}
