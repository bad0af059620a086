// SPDX-License-Identifier: LGPL-2.1-or-later
/* A job's thread: takes actions in order, watches its keeper, checkpoints when it is time. */
#define LOG_TAG "job"
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "agent/job/job.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { RETRY_MIN_S = 2, LOOK_MS = 5000, STOP_LAZY_MS = 3000 };

void job_say(struct job *job, const char *fmt, ...)
{
	char text[JOB_MESSAGE_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&job->lock);
	strcpy(job->message, text);
	pthread_mutex_unlock(&job->lock);
	if (text[0])
		log_info("%s: %s", job->spec.name, text);
}

void job_step(struct job *job, const char *step, uint64_t done, uint64_t total)
{
	pthread_mutex_lock(&job->lock);
	snprintf(job->step, sizeof(job->step), "%s", step);
	job->step_done = done;
	job->step_total = total;
	pthread_mutex_unlock(&job->lock);
}

void job_phase(struct job *job, enum job_phase phase)
{
	pthread_mutex_lock(&job->lock);
	job->phase = phase;
	if (phase == PHASE_RUNNING || phase == PHASE_GONE)
		job->step[0] = '\0';
	pthread_cond_broadcast(&job->changed);
	pthread_mutex_unlock(&job->lock);
}

static void queue_push(struct job *job, struct action *action)
{
	uint64_t one = 1;

	action->next = NULL;
	if (job->queue_tail)
		job->queue_tail->next = action;
	else
		job->queue_head = action;
	job->queue_tail = action;
	if (write(job->wake_fd, &one, sizeof(one)) < 0)
		log_debug("wake: %s", strerror(errno));
}

int job_post(struct job *job, const struct action *action)
{
	struct action *copy = malloc(sizeof(*copy));
	bool gone;

	if (!copy)
		return -ENOMEM;
	*copy = *action;
	copy->detached = true;
	pthread_mutex_lock(&job->lock);
	gone = job->phase == PHASE_GONE;
	if (!gone)
		queue_push(job, copy);
	pthread_mutex_unlock(&job->lock);
	if (gone)
		free(copy);
	return gone ? -ESTALE : 0;
}

int job_do(struct job *job, struct action *action, int timeout_ms)
{
	struct action *shared = malloc(sizeof(*shared));
	struct timespec slice;
	uint64_t until = now_boot_ns() + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * 1000000;

	if (!shared)
		return -ENOMEM;
	*shared = *action;
	shared->detached = false;
	shared->finished = false;
	pthread_mutex_lock(&job->lock);
	if (job->phase == PHASE_GONE) {
		pthread_mutex_unlock(&job->lock);
		free(shared);
		return -ESTALE;
	}
	queue_push(job, shared);
	/* A second at a time: a decampd that ends does not wait for those who wait here. */
	while (!shared->finished && !job->agent->stopping &&
	       (timeout_ms < 0 || now_boot_ns() < until)) {
		clock_gettime(CLOCK_MONOTONIC, &slice);
		slice.tv_sec++;
		pthread_cond_timedwait(&job->changed, &job->lock, &slice);
	}
	if (!shared->finished) {
		shared->detached = true; /* the thread frees it when it comes to it */
		pthread_mutex_unlock(&job->lock);
		return -ETIMEDOUT;
	}
	*action = *shared;
	pthread_mutex_unlock(&job->lock);
	free(shared);
	return action->result;
}

static struct action *queue_pop(struct job *job)
{
	struct action *action;

	pthread_mutex_lock(&job->lock);
	action = job->queue_head;
	if (action) {
		job->queue_head = action->next;
		if (!job->queue_head)
			job->queue_tail = NULL;
	}
	pthread_mutex_unlock(&job->lock);
	return action;
}

static void action_done(struct job *job, struct action *action, int result)
{
	pthread_mutex_lock(&job->lock);
	action->result = result;
	action->finished = true;
	if (action->detached)
		free(action);
	else
		pthread_cond_broadcast(&job->changed);
	pthread_mutex_unlock(&job->lock);
}

void job_get_value(struct job *job, struct job_value *ret_value)
{
	pthread_mutex_lock(&job->lock);
	*ret_value = job->value;
	pthread_mutex_unlock(&job->lock);
}

void job_end_leftover(struct job *job)
{
	struct keeper *keeper;

	if (keeper_attach(job->run_dir, &keeper) < 0)
		return;
	log_warn("%s: an old incarnation was left here: it is ended", job->spec.name);
	if (keeper_kill(keeper) < 0 || keeper_quit(keeper) < 0)
		log_warn("%s: its keeper does not answer", job->spec.name);
	keeper_detach(keeper);
}

void job_kill_cgroup(const char *cgroup_dir)
{
	_cleanup_free_ char *path = NULL;
	int r;

	if (!*cgroup_dir)
		return;
	r = asprintf(&path, "%s/cgroup.kill", cgroup_dir) < 0 ? -ENOMEM :
								write_kernel_file(path, "1");
	if (r < 0 && r != -ENOENT)
		log_errno(r, "%s", cgroup_dir);
}

void job_remove_cgroup(const char *cgroup_dir)
{
	_cleanup_free_ char *tasks = NULL;

	if (asprintf(&tasks, "%s/" KEEPER_TASKS, cgroup_dir) < 0)
		return;
	/* A dead process may still be counted for a moment. */
	for (int i = 0; i < 20; i++) {
		rmdir(tasks);
		if (rmdir(cgroup_dir) == 0 || errno != EBUSY)
			return;
		usleep(10000);
	}
}

void job_discard(struct job *job)
{
	int r = 0;

	if (job->keeper) {
		r = keeper_kill(job->keeper);
		if (r < 0)
			log_errno(r, "%s: kill the old incarnation", job->spec.name);
		r = keeper_quit(job->keeper);
		if (r < 0)
			log_debug("%s: keeper: %s", job->spec.name, strerror(-r));
		keeper_detach(take_ptr(job->keeper));
	}
	job_lazy_end(job);
	capture_destroy(take_ptr(job->capture));
	packer_destroy(take_ptr(job->packer));
	r = remove_tree_at(AT_FDCWD, job->state_dir);
	if (r == 0)
		r = remove_tree_at(AT_FDCWD, job->run_dir);
	if (r < 0)
		log_errno(r, "%s: remove %s", job->spec.name, job->state_dir);
	if (job->cgroup_dir[0])
		job_remove_cgroup(job->cgroup_dir);
}

int job_save(struct job *job)
{
	_cleanup_free_ char *path = NULL, *text = NULL;
	struct json_object *json = json_object_new_object();
	char hex[sizeof(job->value) * 2 + 1];
	int r;

	if (!json)
		return -ENOMEM;
	hex_encode(&job->value, sizeof(job->value), hex);
	json_object_object_add(json, "value", json_object_new_string(hex));
	json_object_object_add(json, "spec", json_object_get(job->spec.json));
	json_object_object_add(json, "frozen", json_object_new_boolean(job->user_frozen));
	json_object_object_add(json, "releasing", json_object_new_boolean(job->releasing));
	if (asprintf(&path, "%s/job.json", job->state_dir) < 0)
		path = NULL;
	text = strdup(json_object_to_json_string(json));
	json_object_put(json);
	if (!path || !text)
		return -ENOMEM;
	r = write_file_atomic_at(AT_FDCWD, path, text, strlen(text), 0600);
	key_wipe(text, strlen(text));
	return r;
}

static int do_freeze(struct job *job, bool on)
{
	int r;

	if (!job->keeper)
		return -EBUSY;
	r = on ? keeper_freeze(job->keeper, KEEPER_CALL_MS) : keeper_thaw(job->keeper);
	if (r < 0)
		return r;
	job->user_frozen = on;
	if (!on)
		job->owner_frozen = false;
	return job_save(job);
}

static int do_kill(struct job *job, int signal)
{
	int r;

	if (!job->keeper)
		return -ESRCH;
	job->killed |= signal == 0 || signal == SIGKILL || signal == SIGTERM;
	if (signal)
		return keeper_signal(job->keeper, signal);
	/* SIGKILL of the main process only: the keeper then ends the rest and reports the status. */
	r = keeper_signal(job->keeper, SIGKILL);
	if (r == 0 && (job->user_frozen || job->owner_frozen))
		r = do_freeze(job, false);
	return r;
}

static void look_at_keeper(struct job *job);

/* Its memory is all here, or stopped coming, or comes again. */
static int look_at_memory(struct job *job)
{
	int r = job_lazy_settle(job, 0);

	if (r < 0 && r != -EAGAIN) {
		job_say(job,
			"its memory cannot be had here (%s): it begins anew from its last "
			"checkpoint",
			strerror(-r));
		return job_revive(job);
	}
	if (job->keeper)
		look_at_keeper(job);
	return 0;
}

/* A few seconds may be enough; else it is frozen until the next decampd restores it anew. */
static int do_stop(struct job *job)
{
	if (job_lazy_settle(job, STOP_LAZY_MS) < 0) {
		if (keeper_freeze(job->keeper, KEEPER_CALL_MS) < 0)
			log_debug("%s: its keeper will freeze it", job->spec.name);
		job_lazy_leave(job);
	}
	if (job->keeper)
		keeper_detach(take_ptr(job->keeper));
	job_phase(job, PHASE_GONE);
	return 0;
}

static int run_action(struct job *job, struct action *action)
{
	bool frozen = job->user_frozen || job->owner_frozen;

	/* Whoever thaws it now might run it beside its next incarnation. */
	if (job->releasing && action->type != ACTION_RESUME && action->type != ACTION_LOST &&
	    action->type != ACTION_STOP)
		return -EBUSY;
	switch (action->type) {
	case ACTION_LAUNCH:
		return job_launch(job);
	case ACTION_ADOPT:
		return job_adopt(job, action);
	case ACTION_RESUME:
		return job_resume(job);
	case ACTION_RESTORE:
		return job_takeover(job);
	case ACTION_CHECKPOINT:
		return job_checkpoint(job, action->reason,
				      frozen ? CAPTURE_STAY_FROZEN : CAPTURE_RUN_ON, &action->stat);
	case ACTION_HANDOVER:
		return job_handover(job, action);
	case ACTION_ROLLBACK:
		return job_rollback(job, action);
	case ACTION_FREEZE:
		return do_freeze(job, true);
	case ACTION_THAW:
		return do_freeze(job, false);
	case ACTION_KILL:
		return do_kill(job, action->signal);
	case ACTION_RESULTS:
		return job_bring_home(job);
	case ACTION_LOST:
		job_say(job, "another host runs this job now; the old copy here was ended");
		job_drop(job);
		job_discard(job);
		job_phase(job, PHASE_GONE);
		return 0;
	case ACTION_MEMORY:
		return look_at_memory(job);
	case ACTION_STOP:
		return do_stop(job);
	}
	return -EINVAL;
}

/* An adopted process is nobody's child here: only eBPF saw how it ended. */
static int exit_status_of(struct job *job, const struct keeper_status *status)
{
	int seen;

	if (status->exit_status_known)
		return status->exit_status;
	if (job->agent->trace && job->traced_pid &&
	    host_trace_exit_status(job->agent->trace, job->traced_pid, &seen) == 0)
		return seen;
	job_say(job, "ended; how is not known: there is no eBPF here");
	return 0;
}

/*
 * No keeper, no job: its namespace died with it. The register still has the last checkpoint;
 * letting the lease lapse brings the job back from it. A process adopted in place is left over and
 * must not run beside that; without a checkpoint it is all there is and runs on, no longer a job.
 */
static void keeper_died(struct job *job)
{
	struct job_value value = job->value;
	int r;

	keeper_detach(take_ptr(job->keeper));
	if (job->in_place && value.history_count == 0) {
		job_say(job, "its keeper died before its first checkpoint; the process runs on "
			     "unprotected");
		value.state = JOB_STATE_KILLED;
		r = job_cas(job, &value, JOB_CALL_MS);
		if (r < 0)
			log_errno(r, "%s: withdraw", job->spec.name);
	} else {
		job_say(job, "its keeper died; it will be brought back from checkpoint %llu",
			(unsigned long long)value.history[0].seq);
		job_kill_cgroup(job->cgroup_dir);
	}
	job_drop(job);
	job_discard(job);
	job_phase(job, PHASE_GONE);
}

/* The connection is lost or out of step: a new one, if there is somebody to answer it. */
static void keeper_again(struct job *job, int error)
{
	struct keeper *again;
	int r = keeper_attach(job->run_dir, &again);

	if (r == -ECONNREFUSED || r == -ENOENT) {
		keeper_died(job);
	} else if (r < 0) {
		log_errno(error, "%s: keeper", job->spec.name); /* at the next look */
	} else {
		keeper_detach(job->keeper);
		job->keeper = again;
	}
}

/* A freeze or thaw that failed in the middle is made up for. */
static void mend_freeze(struct job *job, const struct keeper_status *status)
{
	bool want = job->user_frozen || job->owner_frozen || job->starved;
	int r = 0;

	if (job->phase != PHASE_RUNNING || job->releasing || !status->running)
		return;
	if (want && !status->frozen)
		r = keeper_freeze(job->keeper, KEEPER_CALL_MS);
	else if (!want && status->frozen)
		r = keeper_thaw(job->keeper);
	if (r < 0)
		log_errno(r, "%s: %s", job->spec.name, want ? "freeze" : "thaw");
}

/* Something changed, or it is time to look: it ended, the warden froze it, the keeper is gone. */
static void look_at_keeper(struct job *job)
{
	struct keeper_status status;
	int r = keeper_status(job->keeper, &status);

	if (job->lost) /* killed for that: it has no end of its own to tell */
		return;
	if (r < 0) {
		keeper_again(job, r);
		return;
	}
	if (status.exited && status.exit_suspect && !job->killed) {
		job_say(job, "it died because CRIU was killed inside it: going back to its "
			     "last checkpoint");
		r = job_revive(job);
		if (r < 0 && r != -ESTALE)
			log_errno(r, "%s: give back", job->spec.name);
	} else if (status.exited) {
		r = job_finish(job, exit_status_of(job, &status));
		if (r < 0 && r != -ESTALE)
			log_errno(r, "%s: store the result", job->spec.name);
	} else if (status.lease_frozen && !job->lease_frozen) {
		job_say(job, "frozen: the cluster could not be reached to renew the lease");
	} else {
		mend_freeze(job, &status);
	}
	job->lease_frozen = status.lease_frozen;
}

static void scheduled_checkpoint(struct job *job)
{
	struct ckpt_stat stat;
	int r = job_checkpoint(job, "interval", CAPTURE_RUN_ON, &stat);
	uint32_t wait_s;

	if (job->phase == PHASE_GONE)
		return;
	if (r == -ESTALE && job_is_lost(job)) {
		struct action lost = { .type = ACTION_LOST };

		r = job_post(job, &lost);
		return;
	}
	pthread_mutex_lock(&job->lock);
	job->failures = r < 0 ? job->failures + 1 : 0;
	job->interval_s = job_interval_s(job);
	wait_s = job->interval_s;
	if (r < 0) { /* sooner than planned, but never in a tight loop */
		uint32_t backoff = RETRY_MIN_S << (job->failures < 8 ? job->failures : 8);

		wait_s = backoff < wait_s ? backoff : wait_s;
	}
	job->next_ckpt_boot_ns = now_boot_ns() + (uint64_t)wait_s * 1000000000u;
	pthread_mutex_unlock(&job->lock);
}

/* How long until the next checkpoint is due; else until the next look at the keeper. */
static int until_checkpoint_ms(struct job *job)
{
	uint64_t now = now_boot_ns(), due = job->next_ckpt_boot_ns;

	if (!job->keeper)
		return -1;
	if (job->phase != PHASE_RUNNING || job->user_frozen || job->owner_frozen ||
	    job->coming.lazy)
		return LOOK_MS;
	if (due <= now)
		return 0;
	due = (due - now) / 1000000 + 1;
	return due > LOOK_MS ? LOOK_MS : (int)due;
}

static void wait_for_work(struct job *job)
{
	struct pollfd fds[2] = {
		{ .fd = job->wake_fd, .events = POLLIN },
		{ .fd = job->keeper ? keeper_event_fd(job->keeper) : -1, .events = POLLIN },
	};
	struct action *action;
	uint64_t drained;
	int ready = poll(fds, 2, until_checkpoint_ms(job));

	if (ready < 0 && errno != EINTR)
		log_errno(-errno, "%s: poll", job->spec.name);
	if (fds[0].revents && read(job->wake_fd, &drained, sizeof(drained)) < 0)
		log_debug("wake: %s", strerror(errno));
	while (job->phase != PHASE_GONE && (action = queue_pop(job)))
		action_done(job, action, run_action(job, action));
	/* Also now and then unasked: a keeper that is killed says nothing. */
	if (job->phase != PHASE_GONE && job->keeper && (fds[1].revents || ready == 0))
		look_at_keeper(job);
	if (job->phase != PHASE_GONE && until_checkpoint_ms(job) == 0)
		scheduled_checkpoint(job);
	else if (ready == 0)
		job_compact(job);
}

void *job_thread(void *arg)
{
	struct job *job = arg;
	struct action *action;

	job->channel = ov_open_channel(job->agent->main_channel);
	if (job->channel < 0)
		log_errno(job->channel, "%s: side channel", job->spec.name);
	while (job->phase != PHASE_GONE)
		wait_for_work(job);
	while ((action = queue_pop(job)))
		action_done(job, action, -ESTALE);
	close_fdp(&job->channel);
	job->channel = -1;
	capture_destroy(take_ptr(job->capture));
	packer_destroy(take_ptr(job->packer));
	if (job->traced_pid)
		host_trace_forget(job->agent->trace, job->traced_pid);
	job_unref(job);
	return NULL;
}
