// SPDX-License-Identifier: LGPL-2.1-or-later
/* A new job: its namespaces, its program; or a running process taken over where it is. */
#define LOG_TAG "job"
#include <errno.h>
#include <grp.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/job/job.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

void job_fill_keeper(struct job *job, struct keeper_config *ret_config)
{
	struct json_object *hostname;

	*ret_config = (struct keeper_config){
		.binary = job->agent->config.keeper_path,
		.run_dir = job->run_dir,
		.state_dir = job->state_dir,
		.cgroup_dir = job->cgroup_dir[0] ? job->cgroup_dir : NULL,
		.hostname = job->agent->hostname,
	};
	if (json_object_object_get_ex(job->spec.json, "hostname", &hostname))
		ret_config->hostname = json_object_get_string(hostname);
}

int job_make_capture(struct job *job)
{
	struct json_object *inputs = NULL, *carry;
	size_t count = json_object_object_get_ex(job->spec.json, "inputs", &inputs) ?
			       json_object_array_length(inputs) :
			       0;
	_cleanup_free_ const char **paths = calloc(count + 1, sizeof(*paths));
	struct capture_config config = {
		.state_dir = job->state_dir,
		.cwd = job->spec.cwd,
		.inputs = paths,
		.carry_cwd = !json_object_object_get_ex(job->spec.json, "carry_cwd", &carry) ||
			     json_object_get_boolean(carry),
		.closure_max_bytes = job->agent->config.closure_max_bytes,
		.adopted = job->spec.adopted && job->move_count == 0,
	};
	int r;

	if (!paths)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++)
		paths[i] = json_object_get_string(json_object_array_get_idx(inputs, i));
	capture_destroy(take_ptr(job->capture));
	packer_destroy(take_ptr(job->packer));
	r = capture_create(&config, &job->capture);
	if (r == 0)
		r = packer_create(&job->id, &job->key, &job->packer);
	return r;
}

/* The JSON array of strings as NUL-separated bytes. */
static int join_strings(struct json_object *json, const char *key, char **ret_bytes,
			size_t *ret_size)
{
	struct json_object *array;
	size_t size = 0, count;
	char *bytes, *at;

	if (!json_object_object_get_ex(json, key, &array) ||
	    !json_object_is_type(array, json_type_array))
		return -EINVAL;
	count = json_object_array_length(array);
	for (size_t i = 0; i < count; i++)
		size += strlen(json_object_get_string(json_object_array_get_idx(array, i))) + 1;
	if (size > KEEPER_ARGS_MAX)
		return -E2BIG;
	bytes = malloc(size + 1);
	if (!bytes)
		return -ENOMEM;
	at = bytes;
	for (size_t i = 0; i < count; i++)
		at = stpcpy(at, json_object_get_string(json_object_array_get_idx(array, i))) + 1;
	*ret_bytes = bytes;
	*ret_size = size;
	return 0;
}

static const char *spec_string(struct job *job, const char *key)
{
	struct json_object *value;

	return json_object_object_get_ex(job->spec.json, key, &value) ?
		       json_object_get_string(value) :
		       NULL;
}

static int fill_command(struct job *job, struct keeper_command *command)
{
	struct json_object *groups;
	char *argv = NULL, *env = NULL;
	int r = join_strings(job->spec.json, "argv", &argv, &command->argv_size);

	if (r == 0)
		r = join_strings(job->spec.json, "env", &env, &command->env_size);
	command->argv = argv; /* freed by the caller, also after an error */
	command->env = env;
	if (r < 0)
		return r;
	command->cwd = job->spec.cwd;
	command->stdin_path = spec_string(job, "stdin");
	command->stdout_path = spec_string(job, "stdout");
	command->stderr_path = spec_string(job, "stderr");
	command->uid = job->spec.uid;
	command->gid = job->spec.gid;
	if (json_object_object_get_ex(job->spec.json, "groups", &groups))
		for (size_t i = 0; i < json_object_array_length(groups) &&
				   command->group_count < KEEPER_GROUPS_MAX;
		     i++)
			command->groups[command->group_count++] =
				(gid_t)json_object_get_int64(json_object_array_get_idx(groups, i));
	return 0;
}

static void schedule_first(struct job *job)
{
	pthread_mutex_lock(&job->lock);
	job->interval_s = job_interval_s(job);
	job->next_ckpt_boot_ns = now_boot_ns() + 1000000000u; /* soon: until then nothing is safe */
	pthread_mutex_unlock(&job->lock);
}

int job_launch(struct job *job)
{
	struct keeper_command *command = calloc(1, sizeof(*command));
	struct keeper_config config;
	const char *step = "";
	int r;

	if (!command)
		return -ENOMEM;
	job_fill_keeper(job, &config);
	r = fill_command(job, command);
	if (r == 0)
		r = job_hold(job, JOB_CALL_MS);
	if (r == 0)
		r = keeper_start(&config, &job->keeper);
	if (r == 0)
		r = job_make_capture(job);
	if (r == 0 && job->value.fence == FENCE_STRICT)
		r = keeper_lease(job->keeper, job->run_until_boot_ns);
	if (r == 0)
		r = keeper_run(job->keeper, command, &step);
	free((char *)command->argv);
	free((char *)command->env);
	free(command);
	if (r < 0) {
		struct job_value value = job->value;
		int ended;

		job_say(job, "could not be started: %s%s%s", step, *step ? ": " : "", strerror(-r));
		value.state = JOB_STATE_KILLED;
		ended = job_cas(job, &value, JOB_CALL_MS);
		if (ended < 0)
			log_errno(ended, "%s: withdraw", job->spec.name);
		job_drop(job);
		job_discard(job);
		job_phase(job, PHASE_GONE);
		return r;
	}
	schedule_first(job);
	r = job_save(job);
	if (r < 0)
		log_errno(r, "%s: local record", job->spec.name);
	job_phase(job, PHASE_RUNNING);
	return 0;
}

int job_adopt(struct job *job, pid_t pid)
{
	struct keeper_config config;
	int r;

	job_fill_keeper(job, &config);
	config.adopted = true;
	config.adopt_pid = pid;
	r = job_hold(job, JOB_CALL_MS);
	if (r == 0)
		r = keeper_start(&config, &job->keeper);
	if (r == 0)
		r = job_make_capture(job);
	if (r == 0 && job->value.fence == FENCE_STRICT)
		r = keeper_lease(job->keeper, job->run_until_boot_ns);
	if (r < 0) {
		struct job_value value = job->value;
		int ended;

		job_say(job, "process %d could not be adopted: %s", pid, strerror(-r));
		value.state = JOB_STATE_KILLED;
		ended = job_cas(job, &value, JOB_CALL_MS);
		if (ended < 0)
			log_errno(ended, "%s: withdraw", job->spec.name);
		job_drop(job);
		/* The process is somebody's: let it be. Only our keeper goes. */
		if (job->keeper) {
			ended = keeper_quit(job->keeper);
			keeper_detach(take_ptr(job->keeper));
		}
		job_discard(job);
		job_phase(job, PHASE_GONE);
		return r;
	}
	if (job->agent->trace && host_trace_follow(job->agent->trace, pid) == 0)
		job->traced_pid = pid;
	schedule_first(job);
	r = job_save(job);
	if (r < 0)
		log_errno(r, "%s: local record", job->spec.name);
	job_phase(job, PHASE_RUNNING);
	return 0;
}
