// SPDX-License-Identifier: LGPL-2.1-or-later
/* The job has ended somewhere and was submitted here: its files come home, then it is forgotten. */
#define LOG_TAG "job"
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>
#include <unistd.h>

#include "agent/job/job.h"
#include "agent/restore/restore.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { COLLECT_PATIENCE_MS = 20000 };

static int fetch_results(struct job *job, const struct manifest *manifest,
			 struct results_report *ret_report)
{
	struct fetch_ctx fetch;
	char folder[JOB_NAME_MAX + 32];
	struct results_request request = { .manifest = manifest,
					   .job_key = &job->key,
					   .fetch = job_fetch_object,
					   .fetch_ctx = &fetch,
					   .cwd = job->spec.cwd,
					   .side_folder = folder,
					   .uid = job->spec.uid,
					   .gid = job->spec.gid,
					   .submit_wall_ms = job->value.submit_wall_ms };
	int r;

	snprintf(folder, sizeof(folder), "%s.decamp-results", job->spec.name);
	job_fetch_init(&fetch, job->agent->main_channel, &job->id);
	r = restore_results(&request, ret_report);
	job_fetch_deinit(&fetch);
	return r;
}

/* Stays after the register has forgotten the job: ps -a, show and wait read it. */
static int write_record(struct job *job, const struct results_report *report)
{
	_cleanup_free_ char *path = NULL;
	_cleanup_free_ struct member_info *members = NULL;
	struct json_object *json, *results, *summary;
	struct job_value value = job->value;
	size_t member_count = 0;
	const char *text;
	int r = agent_members(job->channel, &members, &member_count);

	if (r < 0)
		log_debug("%s: members: %s", job->spec.name, strerror(-r));
	job_step(job, "", 0, 0);
	value.state = JOB_STATE_COLLECTED; /* what it is by the time that anybody reads this */
	summary = describe_summary(job->agent, &value, NULL, job, members, member_count);
	if (!summary)
		return -ENOMEM;
	json = json_object_new_object();
	results = json_object_new_object();
	json_object_object_add(results, "written", json_object_new_int((int)report->written));
	json_object_object_add(results, "deleted", json_object_new_int((int)report->deleted));
	json_object_object_add(results, "set_aside", json_object_new_int((int)report->set_aside));
	json_object_object_add(results, "failed", json_object_new_int((int)report->failed));
	if (report->set_aside) {
		char folder[JOB_NAME_MAX + 32];

		snprintf(folder, sizeof(folder), "%s.decamp-results", job->spec.name);
		json_object_object_add(results, "folder", json_object_new_string(folder));
	}
	json_object_object_add(summary, "results", results);
	json_object_object_add(json, "summary", summary);
	json_object_object_add(json, "history",
			       describe_history(&job->value, job->stats, job->stat_count,
						job->moves, job->move_count));
	if (asprintf(&path, "%s/done/%s.json", job->agent->config.state_dir, job->hex) < 0)
		path = NULL;
	text = json_object_to_json_string(json);
	r = path ? write_file_atomic_at(AT_FDCWD, path, text, strlen(text), 0600) : -ENOMEM;
	json_object_put(json);
	return r;
}

static void drop_objects(struct job *job)
{
	struct ov_msg msg = {
		.op = OV_OBJECT_RETAIN,
		.u.retain = { .job = job->id, .token = job->value.token, .upto_seq = UINT64_MAX }
	};
	_cleanup_close_ int fd = memfd_new("retain");
	int r = fd < 0 ? fd : memfd_seal(fd);

	if (r == 0)
		r = ov_call(job->channel, &msg, fd, NULL, JOB_CALL_MS);
	if (r < 0)
		log_debug("%s: drop: %s", job->spec.name, strerror(-r));
}

/* Once is enough: what came home may have been changed there since. */
static bool is_home_already(const struct job *job)
{
	_cleanup_free_ char *path = NULL;

	return asprintf(&path, "%s/done/%s.json", job->agent->config.state_dir, job->hex) >= 0 &&
	       access(path, F_OK) == 0;
}

int job_bring_home(struct job *job)
{
	struct results_report report = { 0 };
	struct job_value value = job->value;
	struct manifest *manifest = NULL;
	bool again = is_home_already(job);
	int r = 0;

	job_phase(job, PHASE_FINISHING);
	job_step(job, "bringing home", 0, 0);
	job_end_leftover(job);
	if (value.history_count > 0 && !again) {
		r = job_open_manifest(job->agent, job->channel, &job->id, &job->key,
				      &value.history[0], &manifest);
		if (r == 0)
			r = job_learn_head(job, manifest_head(manifest));
		if (r == 0)
			r = fetch_results(job, manifest, &report);
	}
	if (r == 0 && !again)
		r = write_record(job, &report);
	manifest_destroy(manifest);
	if (r == 0) {
		value.state = JOB_STATE_COLLECTED;
		r = job_cas(job, &value, COLLECT_PATIENCE_MS);
	}
	if (r == 0) {
		drop_objects(job);
		job_forget_home(job);
		log_info("%s: results are home: written=%u set_aside=%u failed=%u", job->spec.name,
			 report.written, report.set_aside, report.failed);
	} else {
		log_errno(r, "%s: results", job->spec.name); /* the guardian will remind us */
	}
	job_discard(job);
	job_phase(job, PHASE_GONE);
	return r;
}
