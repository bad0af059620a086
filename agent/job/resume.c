// SPDX-License-Identifier: LGPL-2.1-or-later
/* After a restart of decampd: jobs whose keeper lives are taken up again, the rest is cleared. */
#define LOG_TAG "agent"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/job/job.h"
#include "agent/native/native.h"
#include "agent/restore/lazy.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { RECORD_MAX = 1 << 20 };

struct record {
	struct job_value value;
	struct job_spec spec;
	bool frozen, releasing;
};

static bool record_flag(struct json_object *json, const char *key)
{
	struct json_object *flag;

	return json_object_object_get_ex(json, key, &flag) && json_object_get_boolean(flag);
}

static int read_record(struct agent *a, const char *hex, struct record *ret_record)
{
	_cleanup_free_ char *path = NULL, *text = NULL;
	struct json_object *json, *value, *spec;
	int r;

	if (asprintf(&path, "%s/jobs/%s/job.json", a->config.state_dir, hex) < 0)
		return -ENOMEM;
	r = read_file_at(AT_FDCWD, path, RECORD_MAX, &text, NULL);
	if (r < 0)
		return r;
	json = json_tokener_parse(text);
	if (!json)
		return -EBADMSG;
	if (!json_object_object_get_ex(json, "value", &value) ||
	    !json_object_object_get_ex(json, "spec", &spec))
		r = -EBADMSG;
	if (r == 0)
		r = job_value_from_hex(json_object_get_string(value), &ret_record->value);
	if (r == 0)
		r = job_spec_from_json(json_object_get(spec), &ret_record->spec);
	ret_record->frozen = record_flag(json, "frozen");
	ret_record->releasing = record_flag(json, "releasing");
	json_object_put(json);
	return r;
}

static int resume_job(struct agent *a, const char *hex)
{
	struct action resume = { .type = ACTION_RESUME };
	struct secret_key key;
	struct record record;
	struct job_seal seal;
	struct job *job;
	int r = read_record(a, hex, &record);

	if (r < 0)
		return r;
	r = job_unseal_value(a, &record.value, &seal);
	if (r < 0) {
		job_spec_deinit(&record.spec);
		return r;
	}
	memcpy(key.b, seal.key, sizeof(key.b));
	key_wipe(&seal, sizeof(seal));
	r = agent_add_job(a, &record.value.job, &record.value, &record.spec, &key, &job);
	key_wipe(&key, sizeof(key));
	if (r < 0)
		return r;
	job->user_frozen = record.frozen;
	job->releasing = record.releasing;
	r = job_post(job, &resume);
	job_unref(job);
	return r;
}

/*
 * No keeper: its namespace is dead, nothing of the job runs here. The register decides what
 * becomes of it; what lies here is of no use, for a restore starts from the manifest. Only a
 * process adopted in place outlives its keeper: not beside the copy that comes from a checkpoint.
 */
static void clear(struct agent *a, const char *hex)
{
	_cleanup_free_ char *state = NULL, *run = NULL, *cgroup = NULL;
	struct record record;
	int r;

	if (asprintf(&state, "%s/jobs/%s", a->config.state_dir, hex) < 0 ||
	    asprintf(&run, "%s/jobs/%s", a->config.run_dir, hex) < 0 ||
	    asprintf(&cgroup, "%s/%s", a->cgroup_base, hex) < 0)
		return;
	if (a->cgroup_base[0] && read_record(a, hex, &record) == 0) {
		if (record.value.history_count > 0)
			job_kill_cgroup(cgroup);
		job_spec_deinit(&record.spec);
	}
	r = remove_tree_at(AT_FDCWD, state);
	if (r == 0)
		r = remove_tree_at(AT_FDCWD, run);
	if (r < 0)
		log_errno(r, "clear %s", state);
	if (a->cgroup_base[0])
		job_remove_cgroup(cgroup);
}

int agent_start_jobs(struct agent *a)
{
	_cleanup_free_ char *folder = NULL;
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;

	if (asprintf(&folder, "%s/jobs", a->config.state_dir) < 0)
		return -ENOMEM;
	dir = opendir(folder);
	if (!dir)
		return errno == ENOENT ? 0 : -errno;
	while ((entry = readdir(dir))) {
		_cleanup_free_ char *run = NULL;
		struct keeper *keeper;
		struct job_id id;
		int r;

		if (hex_decode(entry->d_name, &id, sizeof(id)) < 0)
			continue;
		if (asprintf(&run, "%s/jobs/%s", a->config.run_dir, entry->d_name) < 0)
			return -ENOMEM;
		r = keeper_attach(run, &keeper);
		if (r == -ECONNREFUSED || r == -ENOENT) {
			clear(a, entry->d_name);
			continue;
		}
		if (r == 0) {
			keeper_detach(keeper);
			r = a->cluster ? resume_job(a, entry->d_name) : -ENOENT;
		}
		if (r < 0) /* never harm the job: it runs on under its keeper, unprotected */
			log_errno(r, "job %s runs but cannot be taken up", entry->d_name);
	}
	return 0;
}

/* The statistics come with the newest manifest; without it, the job goes on without them. */
static void learn_statistics(struct job *job)
{
	struct manifest *manifest;

	if (job->value.history_count == 0 ||
	    job_open_manifest(job->agent, job->channel, &job->id, &job->key, &job->value.history[0],
			      &manifest) < 0)
		return;
	if (job_learn_head(job, manifest_head(manifest)) < 0)
		log_warn("%s: statistics are lost", job->spec.name);
	manifest_destroy(manifest);
}

/* As long as it takes: the warden freezes the job meanwhile if its lease runs out. */
static int hold_again(struct job *job)
{
	int r;

	for (;;) {
		r = job_hold(job, JOB_CALL_MS);
		if (r == 0 || job->agent->stopping)
			return r;
		if (r == -ESTALE || job->lost || job_is_lost(job))
			return -ESTALE;
		sleep(1);
	}
}

static void follow(struct job *job, pid_t pid)
{
	struct host_trace *trace = job->agent->trace;

	if (trace && pid > 0 && host_trace_follow(trace, pid) == 0)
		job->traced_pid = pid;
}

/* First action of a resumed job: is it still ours? */
int job_resume(struct job *job)
{
	struct keeper_status status;
	int r = keeper_attach(job->run_dir, &job->keeper);

	if (r == 0)
		r = keeper_status(job->keeper, &status);
	if (r < 0) { /* its keeper has ended just now, or is out of order: no harm to the job */
		keeper_detach(take_ptr(job->keeper));
		job_phase(job, PHASE_GONE);
		return r;
	}
	if (job->cgroup_dir[0]) /* decamp-capture was killed with us, in the midst of a freeze */
		native_mend(job->agent->config.capture_path, job->cgroup_dir);
	job->in_place = status.init_pid == 0 && job->spec.adopted;
	if (job->in_place) {
		job->adopted_pid = status.main_pid;
		follow(job, status.main_pid);
	}
	r = hold_again(job);
	if (r == -ESTALE) {
		job_say(job, "another host took this job over while decampd was away");
		job_discard(job);
		job_phase(job, PHASE_GONE);
		return r;
	}
	if (r == 0 && job->releasing)
		return job_finish_release(job);
	if (r == 0 && restore_is_partial(job->state_dir)) {
		job_say(job, "decampd ended before all of its memory was here: it begins anew from "
			     "its last checkpoint");
		return job_revive(job);
	}
	if (r < 0)
		return r;
	if (status.frozen && !job->user_frozen) /* frozen for a checkpoint that never ended */
		r = keeper_thaw(job->keeper);
	if (r < 0)
		log_errno(r, "%s: thaw", job->spec.name);
	r = job->value.fence == FENCE_STRICT ? keeper_lease(job->keeper, job->run_until_boot_ns) :
					       0;
	if (r < 0)
		log_errno(r, "%s: lease", job->spec.name);
	learn_statistics(job);
	r = job_make_capture(job);
	if (r < 0)
		log_errno(r, "%s: resume", job->spec.name);
	pthread_mutex_lock(&job->lock);
	job->interval_s = job_interval_s(job);
	job->next_ckpt_boot_ns = now_boot_ns() + 1000000000u;
	pthread_mutex_unlock(&job->lock);
	job_say(job, "taken up again after a restart of decampd");
	job_phase(job, PHASE_RUNNING);
	return 0;
}
