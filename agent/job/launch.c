// SPDX-License-Identifier: LGPL-2.1-or-later
/* A new job: its namespaces, its program; or a running process taken over where it is. */
#define LOG_TAG "job"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <json-c/json.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "agent/job/job.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

/* Sealing goes on beside reading and comparing; storing has one more. */
enum { PACK_THREADS = 1 };

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

/* For contents of pages; the person at the machine comes first. */
static uint64_t pack_disk(const struct agent *a)
{
	uint64_t room, reserve = a->config.reserve_bytes;
	struct statvfs fs;

	if (statvfs(a->config.state_dir, &fs) < 0)
		return 0;
	room = (uint64_t)fs.f_bavail * fs.f_frsize;
	room = room > reserve ? (room - reserve) / 4 : 0;
	return room < a->config.pack_disk ? room : a->config.pack_disk;
}

/* Powers of two, as a packer forgets its contents when its share changes. */
static unsigned int pack_shares(struct agent *a)
{
	unsigned int jobs = 0, shares = 1;

	pthread_mutex_lock(&a->lock);
	for (int i = 0; i < JOB_LOCAL_MAX; i++)
		jobs += a->jobs[i] != NULL;
	pthread_mutex_unlock(&a->lock);
	while (shares < jobs)
		shares *= 2;
	return shares;
}

void job_share_packing(struct job *job)
{
	struct agent *a = job->agent;
	unsigned int shares = pack_shares(a);
	/* The rest is for buffers, the cache's tables, and what else runs for a checkpoint. */
	struct packer_budget budget = { .cache_bytes = a->config.pack_memory / 16 * 7 / shares,
					.index_bytes = a->config.pack_memory / 4 / shares,
					.cache_disk_bytes = pack_disk(a) / shares,
					.cache_dir = a->config.state_dir,
					.cpu_percent = a->config.pack_cpu_percent,
					.threads = PACK_THREADS };
	int r;

	if (shares == job->pack_shares)
		return;
	r = packer_set_budget(job->packer, &budget);
	if (r < 0)
		log_errno(r, "%s: memory for packing", job->spec.name);
	else
		job->pack_shares = shares;
}

/* The system's files go where other jobs have them; without that the job's own packs have them. */
static void share_files(struct job *job)
{
	const struct cluster *c = job->agent->cluster;
	struct secret_key key;
	int r;

	if (!c)
		return;
	r = key_derive(cluster_worker_key(c), cluster_id(c), 16, "decamp shared files v1", &key);
	if (r == 0)
		packer_share(job->packer, &key, job_store_shared);
	else
		log_errno(r, "%s: files that jobs share", job->spec.name);
	key_wipe(&key, sizeof(key));
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
		.cgroup_dir = job->cgroup_dir[0] ? job->cgroup_dir : NULL,
		.adopted = job->in_place,
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
	job->pack_shares = 0;
	if (r == 0) {
		share_files(job);
		job_share_packing(job);
	}
	return r;
}

void job_forget_home(struct job *job)
{
	_cleanup_free_ char *path = NULL;

	if (asprintf(&path, "%s/home/%s.json", job->agent->config.state_dir, job->hex) >= 0)
		unlink(path);
}

uint64_t process_born(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	unsigned long long born = 0;
	char path[32], *at;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_file_at(AT_FDCWD, path, 4096, &text, NULL) < 0)
		return 0;
	at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at && sscanf(at, "%llu", &born) == 1 ? born : 0;
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
	struct json_object *groups, *mask;
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
	_Static_assert(ARRAY_SIZE(command->rlim_cur) >= RLIM_NLIMITS, "room for all limits");
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		command->rlim_cur[i] = job->agent->limits[i].rlim_cur;
		command->rlim_max[i] = job->agent->limits[i].rlim_max;
	}
	command->have_rlimits = true;
	command->umask = 022;
	if (json_object_object_get_ex(job->spec.json, "umask", &mask))
		command->umask = (mode_t)json_object_get_int(mask) & 0777;
	if (json_object_object_get_ex(job->spec.json, "groups", &groups))
		for (size_t i = 0; i < json_object_array_length(groups) &&
				   command->group_count < KEEPER_GROUPS_MAX;
		     i++)
			command->groups[command->group_count++] =
				(gid_t)json_object_get_int64(json_object_array_get_idx(groups, i));
	return 0;
}

/* It was never more than an entry in the register. */
static void withdraw(struct job *job)
{
	struct job_value value = job->value;
	int r;

	value.state = JOB_STATE_KILLED;
	r = job_cas(job, &value, JOB_CALL_MS);
	if (r < 0)
		log_errno(r, "%s: withdraw", job->spec.name);
	job_forget_home(job);
	job_drop(job);
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
		job_say(job, "could not be started: %s%s%s", step, *step ? ": " : "", strerror(-r));
		withdraw(job);
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

/* The process is somebody's: let it be. Only our keeper goes, which does nothing to it. */
static void leave_process(struct job *job)
{
	struct keeper_status status;

	if (!job->keeper)
		return;
	if (keeper_status(job->keeper, &status) == 0 && status.keeper_pid > 0)
		kill(status.keeper_pid, SIGKILL);
	keeper_detach(take_ptr(job->keeper));
}

/* The keeper holds the process by now: is it still the one that was checked? */
static int check_adopted(struct job *job, const struct action *action)
{
	char path[32];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d", action->pid);
	if (stat(path, &st) < 0 || process_born(action->pid) != action->born)
		return -ESRCH;
	return st.st_uid == job->spec.uid ? 0 : -EPERM;
}

int job_adopt(struct job *job, const struct action *action)
{
	struct keeper_config config;
	pid_t pid = action->pid;
	int r;

	job_fill_keeper(job, &config);
	config.adopted = true;
	config.adopt_pid = pid;
	job->in_place = true;
	job->adopted_pid = pid;
	r = agent_has_process(job->agent, pid, job) ? -EBUSY : job_hold(job, JOB_CALL_MS);
	if (r == 0)
		r = keeper_start(&config, &job->keeper);
	if (r == 0)
		r = check_adopted(job, action);
	if (r == 0)
		r = job_make_capture(job);
	if (r == 0 && job->value.fence == FENCE_STRICT)
		r = keeper_lease(job->keeper, job->run_until_boot_ns);
	if (r < 0) {
		job_say(job, "process %d could not be adopted: %s", pid, strerror(-r));
		withdraw(job);
		leave_process(job);
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
