// SPDX-License-Identifier: LGPL-2.1-or-later
/* The guardians made this host the owner: claim it, hold it, restore the newest checkpoint, run. */
#define LOG_TAG "job"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/host/probe.h"
#include "agent/job/job.h"
#include "agent/restore/restore.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { LEASE_MARGIN_MS = 200, RELEASE_MS = 30000 };

struct takeover {
	struct job *job;
	struct fetch_ctx *fetch; /* NULL: taken over with the rest of the memory */
	uint64_t granted_boot_ns;
};

static void on_progress(void *ctx, const char *step, uint64_t done, uint64_t total)
{
	struct takeover *t = ctx;

	job_step(t->job, step, done, total);
}

/* The warden knows the deadline before the job runs, or a decampd that dies now leaves it unfenced. */
static int set_lease(struct job *job)
{
	struct keeper *keeper;
	int r = keeper_attach(job->run_dir, &keeper);

	if (r < 0)
		return r;
	r = keeper_lease(keeper, job->run_until_boot_ns);
	keeper_detach(keeper);
	return r;
}

/* Last word before anything of the job runs: is it still ours? */
static int on_ready(void *ctx)
{
	struct job *job = ((struct takeover *)ctx)->job;
	uint64_t now;

	if (capture_learn_restored(job->capture) < 0)
		log_debug("%s: the first checkpoint will copy all files", job->spec.name);
	if (job->lost)
		return -ESTALE;
	now = now_boot_ns();
	if (job->value.fence == FENCE_STRICT &&
	    job->run_until_boot_ns < now + LEASE_MARGIN_MS * 1000000u)
		return -EAGAIN;
	return job->value.fence == FENCE_STRICT ? set_lease(job) : 0;
}

/* Who it runs as, and where its results go, is the register's (or home's) word, not a manifest's. */
static bool is_same_job(const struct job_spec *a, const struct job_spec *b)
{
	return a->uid == b->uid && a->gid == b->gid && !strcmp(a->name, b->name) &&
	       !strcmp(a->user, b->user) && !strcmp(a->cwd, b->cwd) &&
	       !strcmp(a->command, b->command);
}

/* Other threads read the names without the lock: they stay the same, byte by byte. */
static int replace_spec(struct job *job, struct job_spec *spec_take)
{
	struct json_object *old;

	if (!is_same_job(&job->spec, spec_take)) {
		job_spec_deinit(spec_take);
		return -EBADMSG;
	}
	pthread_mutex_lock(&job->lock);
	old = job->spec.json;
	job->spec.json = take_ptr(spec_take->json);
	job->spec.every_s = spec_take->every_s;
	job->spec.adopted = spec_take->adopted;
	json_object_put(old);
	pthread_mutex_unlock(&job->lock);
	return 0;
}

int job_learn_head(struct job *job, const struct manifest_head *head)
{
	struct json_object *json = json_tokener_parse(head->spec_json);
	struct job_spec spec;
	int r;

	if (!json)
		return -EBADMSG;
	r = job_spec_from_json(json, &spec);
	if (r == 0)
		r = replace_spec(job, &spec);
	if (r < 0)
		return -EBADMSG;
	pthread_mutex_lock(&job->lock);
	job->stat_count = head->stat_count;
	memcpy(job->stats, head->stats, sizeof(job->stats));
	job->move_count = head->move_count;
	memcpy(job->moves, head->moves, sizeof(job->moves));
	job->knows_past = true;
	pthread_mutex_unlock(&job->lock);
	return 0;
}

static void note_move(struct job *job, const struct ckpt_ref *ref, uint64_t granted_boot_ns)
{
	const struct ckpt_stat *last = job->stat_count ? &job->stats[job->stat_count - 1] : NULL;
	uint64_t resume_ms = (now_boot_ns() - granted_boot_ns) / 1000000;
	uint64_t silent_ms = job->agent->config.hold_ms + resume_ms;
	uint64_t now = now_wall_ms();
	/* Their clock may be ahead of ours. */
	uint64_t age_ms = now > ref->wall_ms ? now - ref->wall_ms : 0;
	struct move_stat move = { .wall_ms = now, .from_seq = ref->seq, .resume_ms = resume_ms };
	bool handed_over = last && last->seq == ref->seq && strcmp(last->reason, "interval") &&
			   strcmp(last->reason, "user") && strcmp(last->reason, "final");

	/* The owner's last sign of life was a hold before the grant: what it did up to then is gone. */
	move.lost_ms = handed_over || age_ms < silent_ms ? 0 : age_ms - silent_ms;
	snprintf(move.from, sizeof(move.from), "%s", last ? last->host : "?");
	snprintf(move.to, sizeof(move.to), "%s", job->agent->hostname);
	snprintf(move.reason, sizeof(move.reason), "%s",
		 handed_over ? last->reason :
			       (last && last->seq != ref->seq ? "rollback" : "power"));
	pthread_mutex_lock(&job->lock);
	if (job->move_count == MANIFEST_STATS_MAX)
		memmove(&job->moves[0], &job->moves[1],
			(--job->move_count) * sizeof(job->moves[0]));
	job->moves[job->move_count++] = move;
	pthread_mutex_unlock(&job->lock);
}

static int restore_from(struct takeover *t, const struct ckpt_ref *ref, char *reason)
{
	struct job *job = t->job;
	struct restore_request request = { .job_key = &job->key,
					   .state_dir = job->state_dir,
					   .criu = job->agent->criu,
					   .fetch = job_fetch_object,
					   .fetch_ctx = t->fetch,
					   .progress = on_progress,
					   .ready = on_ready,
					   .ctx = t,
					   .lazy_events = job_lazy_events(job) };
	struct restore_lazy *lazy = NULL;
	struct manifest *manifest;
	char images[600], sleeps[RESTORE_SLEEPS_MAX] = "";
	int r;

	job_step(job, "fetching", 0, 0);
	r = job_open_manifest(job->agent, job->channel, &job->id, &job->key, ref, &manifest);
	if (r < 0) {
		snprintf(reason, RESTORE_REASON_MAX, "manifest %" PRIu64 ": %s", ref->seq,
			 strerror(-r));
		return r;
	}
	r = job_learn_head(job, manifest_head(manifest));
	if (r == 0)
		r = job_make_capture(job);
	snprintf(images, sizeof(images), "%s/images", job->run_dir);
	if (r == 0)
		r = remove_tree_at(AT_FDCWD, images);
	if (r == 0 && mkdir(images, 0700) < 0)
		r = -errno;
	if (r == 0) {
		request.manifest = manifest;
		request.images_dir = images;
		request.seed = job->packer;
		request.ret_lazy = job_lazy_wanted(job) ? &lazy : NULL;
		request.ret_sleeps = sleeps;
		request.direct = !request.ret_lazy && probe_lazy_memory();
		job_fill_keeper(job, &request.keeper);
		r = restore_job(&request, &job->keeper, reason);
	}
	pthread_mutex_lock(&job->lock);
	memcpy(job->sleeps, sleeps, sizeof(sleeps));
	pthread_mutex_unlock(&job->lock);
	if (r == 0 && lazy)
		job_lazy_keep(job, lazy, take_ptr(manifest), take_ptr(t->fetch));
	manifest_destroy(manifest);
	if (remove_tree_at(AT_FDCWD, images) < 0)
		log_warn("%s: %s could not be removed", job->spec.name, images);
	return r;
}

/* Not here: give it back, and say that this host could not. */
static void give_back(struct job *job, enum avoid_reason why, const char *reason)
{
	struct job_value value = job->value;
	int r;

	job_say(job, "could not be restored here: %s", reason);
	memset(&value.owner, 0, sizeof(value.owner));
	memset(&value.target, 0, sizeof(value.target));
	value.state = JOB_STATE_IDLE;
	if (value.avoid_count == OV_AVOID_MAX) /* all failed once: start over */
		value.avoid_count = 0;
	value.avoid[value.avoid_count] = job->agent->self;
	value.avoid_why[value.avoid_count] = why;
	value.avoid_wall_ms[value.avoid_count++] = now_wall_ms();
	r = job_cas(job, &value, RELEASE_MS);
	if (r < 0 && r != -ESTALE)
		log_errno(r, "%s: give back", job->spec.name);
}

/* Nothing was ever committed: only the submitting host still knows what to run. */
static int start_again(struct job *job)
{
	_cleanup_free_ char *path = NULL, *text = NULL;
	struct json_object *json, *spec;
	struct job_spec parsed;
	int r;

	if (asprintf(&path, "%s/home/%s.json", job->agent->config.state_dir, job->hex) < 0)
		return -ENOMEM;
	r = read_file_at(AT_FDCWD, path, 1 << 20, &text, NULL);
	if (r < 0)
		return r;
	json = json_tokener_parse(text);
	if (!json || !json_object_object_get_ex(json, "spec", &spec)) {
		json_object_put(json);
		return -EBADMSG;
	}
	r = job_spec_from_json(json_object_get(spec), &parsed);
	json_object_put(json);
	if (r < 0)
		return r;
	if (parsed.adopted) {
		job_spec_deinit(&parsed);
		return -ENOENT;
	}
	r = replace_spec(job, &parsed);
	return r < 0 ? r : job_launch(job);
}

/*
 * Nothing of it is left anywhere, or it never came to be (its creation got no answer, say): else
 * it would go from host to host for ever.
 */
static void give_up(struct job *job)
{
	struct job_value value = job->value;
	int r;

	job_say(job, "it had no checkpoint yet and cannot be started again: it is given up");
	value.state = JOB_STATE_KILLED;
	r = job_cas(job, &value, RELEASE_MS);
	if (r < 0)
		log_errno(r, "%s: give up", job->spec.name);
	job_forget_home(job);
}

static int restore_newest(struct takeover *t, char *reason)
{
	struct job *job = t->job;
	int r = -ENOENT;

	for (uint32_t i = 0; i < job->value.history_count; i++) {
		for (int attempt = 0; attempt < JOB_FETCH_TRIES; attempt++) {
			r = restore_from(t, &job->value.history[i], reason);
			if (r == 0)
				note_move(job, &job->value.history[i], t->granted_boot_ns);
			/* Holders may be on their way back: only what they do not answer is retried. */
			if (r != -EAGAIN && r != -ENOENT && r != -EHOSTUNREACH)
				break;
			if (job->lost || job->agent->stopping)
				return -ECANCELED;
			sleep(JOB_FETCH_PAUSE_S);
		}
		if (r != -ENOENT && r != -EAGAIN && r != -EBADMSG && r != -EHOSTUNREACH)
			return r;
		job_say(job, "checkpoint %" PRIu64 " cannot be read (%s): trying the one before",
			job->value.history[i].seq, reason);
	}
	return r;
}

/* It does not run here: the lease goes, and with it all that was laid out. */
static int abandon(struct job *job, int r)
{
	job_drop(job);
	job_discard(job);
	job_phase(job, PHASE_GONE);
	return r;
}

/* No checkpoint was ever committed. */
static int takeover_from_nothing(struct job *job)
{
	int r;

	if (!node_id_equal(&job->value.home, &job->agent->self)) {
		give_back(job, AVOID_NO_CHECKPOINT,
			  "it has no checkpoint yet and was submitted elsewhere");
		return abandon(job, -ENOENT);
	}
	r = start_again(job);
	if (r == 0 || job->phase == PHASE_GONE)
		return r;
	give_up(job);
	return abandon(job, r);
}

static void takeover_done(struct job *job)
{
	int r;

	if (job->value.fence == FENCE_STRICT) {
		r = keeper_lease(job->keeper, job->run_until_boot_ns);
		if (r < 0)
			log_errno(r, "%s: lease", job->spec.name);
	}
	pthread_mutex_lock(&job->lock);
	job->interval_s = job_interval_s(job);
	job->next_ckpt_boot_ns = now_boot_ns() + (uint64_t)job->interval_s * 1000000000u;
	pthread_mutex_unlock(&job->lock);
	r = job_save(job);
	if (r < 0)
		log_errno(r, "%s: local record", job->spec.name);
	job_say(job, "resumed from checkpoint %" PRIu64,
		job->move_count ? job->moves[job->move_count - 1].from_seq : 0);
	job_phase(job, PHASE_RUNNING);
}

int job_takeover(struct job *job)
{
	struct takeover t = { .job = job, .granted_boot_ns = now_boot_ns() };
	char reason[RESTORE_REASON_MAX] = "";
	int r;

	job->claiming = true;
	r = job_claim(job, JOB_CALL_MS);
	job->claiming = false;
	if (r == 0)
		r = job_hold(job, JOB_CALL_MS);
	/* Without an answer the overlay half would go on renewing what nobody runs. */
	if (r < 0)
		return abandon(job, r);
	if (job->agent->user_present || job->agent->vacating) {
		give_back(job, AVOID_BUSY, "somebody uses this host, or it is being emptied");
		return abandon(job, -EBUSY);
	}
	job_end_leftover(job);
	job_phase(job, PHASE_RESTORING);
	if (job->value.history_count == 0)
		return takeover_from_nothing(job);
	t.fetch = calloc(1, sizeof(*t.fetch));
	if (t.fetch) {
		job_fetch_init(t.fetch, job->agent->main_channel, &job->id);
		t.fetch->token = job->value.token;
	}
	r = t.fetch ? restore_newest(&t, reason) : -ENOMEM;
	if (t.fetch)
		job_fetch_deinit(t.fetch);
	free(t.fetch);
	if (r < 0) {
		if (!job->lost && !job->agent->stopping)
			give_back(job, AVOID_RESTORE_FAILED, reason[0] ? reason : strerror(-r));
		return abandon(job, r);
	}
	takeover_done(job);
	return 0;
}
