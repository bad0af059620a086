// SPDX-License-Identifier: LGPL-2.1-or-later
/* run and adopt: how a job comes to be. */
#define LOG_TAG "api"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <libgen.h>
#include <pwd.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/job/needs.h"
#include "agent/job/verbs.h"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/core/match.h"

enum { GROUPS_MAX = 256, LAUNCH_MS = 60000, COMMAND_MAX = 200 };

void job_user_name(uid_t uid, char *name, size_t size)
{
	char buf[4096];
	struct passwd pwd, *found = NULL;

	/* A name that is cut short may be another user's. */
	if (getpwuid_r(uid, &pwd, buf, sizeof(buf), &found) == 0 && found &&
	    strlen(pwd.pw_name) < size)
		snprintf(name, size, "%s", pwd.pw_name);
	else
		snprintf(name, size, "%u", uid);
}

static struct json_object *user_groups(const char *user, gid_t gid)
{
	struct json_object *list = json_object_new_array();
	gid_t groups[GROUPS_MAX];
	int count = GROUPS_MAX;

	if (getgrouplist(user, gid, groups, &count) < 0)
		count = 0;
	for (int i = 0; i < count; i++)
		json_object_array_add(list, json_object_new_int64(groups[i]));
	return list;
}

/* Names are for people and for file names: letters, digits, '.', '_', '-', '+'. */
bool job_good_name(const char *name)
{
	if (!*name || *name == '.' || *name == '-' || strlen(name) >= JOB_NAME_MAX - 8)
		return false;
	for (const char *c = name; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr("._-+", *c))
			return false;
	return true;
}

static void default_name(const char *program, const struct job_id *id, char name[JOB_NAME_MAX])
{
	const char *slash = strrchr(program, '/');
	char base[24];
	size_t n = 0;

	for (const char *c = slash ? slash + 1 : program; *c && n < sizeof(base) - 1; c++)
		if (isalnum((unsigned char)*c) || (n && strchr("._-+", *c)))
			base[n++] = *c;
	base[n] = '\0';
	snprintf(name, JOB_NAME_MAX, "%s-%02x%02x", n ? base : "job", id->b[0], id->b[1]);
}

static bool name_taken(struct agent *a, const char *name, uid_t uid)
{
	bool taken = false;

	pthread_mutex_lock(&a->lock);
	for (int i = 0; i < JOB_LOCAL_MAX; i++)
		taken |= a->jobs[i] && a->jobs[i]->phase != PHASE_GONE &&
			 a->jobs[i]->spec.uid == uid && !strcmp(a->jobs[i]->spec.name, name);
	pthread_mutex_unlock(&a->lock);
	return taken;
}

static void add_command(struct json_object *spec, struct json_object *argv)
{
	char text[COMMAND_MAX] = "";
	size_t used = 0;

	for (size_t i = 0; i < json_object_array_length(argv) && used < sizeof(text) - 1; i++)
		used += (size_t)snprintf(
			text + used, sizeof(text) - used, "%s%s", i ? " " : "",
			json_object_get_string(json_object_array_get_idx(argv, i)));
	json_object_object_add(spec, "command", json_object_new_string(text));
}

static int check_strings(const struct api_call *call, const char *key, bool required,
			 struct api_reply *reply)
{
	struct json_object *list;
	size_t total = 0, count = 0;

	if (json_object_object_get_ex(call->body, key, &list)) {
		if (!json_object_is_type(list, json_type_array))
			return api_error(reply, -EINVAL, "bad-request", key, "see decamp(1)",
					 "must be a list of strings");
		count = json_object_array_length(list);
		for (size_t i = 0; i < count; i++) {
			struct json_object *item = json_object_array_get_idx(list, i);

			if (!json_object_is_type(item, json_type_string) ||
			    strlen(json_object_get_string(item)) !=
				    (size_t)json_object_get_string_len(item))
				return api_error(reply, -EINVAL, "bad-request", key,
						 "see decamp(1)", "must be a list of strings");
			total += strlen(json_object_get_string(item)) + 1;
		}
	}
	if (required && count == 0)
		return api_error(reply, -EINVAL, "bad-request", key, "decamp run -- COMMAND",
				 "nothing to run");
	if (total > KEEPER_ARGS_MAX)
		return api_error(reply, -E2BIG, "too-big", key, "shorten it", "more than %d bytes",
				 KEEPER_ARGS_MAX);
	return 0;
}

static void copy_key(struct json_object *spec, const struct api_call *call, const char *key)
{
	struct json_object *value;

	if (json_object_object_get_ex(call->body, key, &value))
		json_object_object_add(spec, key, json_object_get(value));
}

/* What both ways to make a job share. */
struct submission {
	struct agent *agent;
	const struct api_call *call;
	struct api_reply *reply;
	struct job_id id;
	struct json_object *spec; /* built up, then taken */
	char name[JOB_NAME_MAX];
	uid_t uid;
	gid_t gid;
	uint32_t fence;
	uint8_t needs[OV_NEEDS_MAX];
	size_t needs_size;
};

static int submission_needs(struct submission *s)
{
	char error[NEEDS_ERROR_MAX];
	const char *needs;

	if (api_get_string(s->call, "needs", NEEDS_TEXT_MAX - 1, &needs) < 0)
		return api_error(s->reply, -EINVAL, "bad-needs", "needs", "see decamp(1)",
				 "must be a text of at most %d bytes", NEEDS_TEXT_MAX - 1);
	if (!needs || needs_compile(needs, s->needs, &s->needs_size, error) == 0)
		return 0;
	return api_error(s->reply, -EINVAL, "bad-needs", "needs", "see NEEDS in decamp(1)", "%s",
			 error);
}

/* It starts here whatever it needs: only its next host is chosen by that. */
static void note_misfit(struct submission *s, const struct job_value *value,
			struct json_object *json)
{
	struct member_info self = { .id = s->agent->self, .state = MEMBER_ALIVE };
	char reasons[WHY_TEXT_MAX], note[WHY_TEXT_MAX + 100];

	if (agent_look(s->agent, &self.report) < 0 || !why_not(&self, value, MATCH_NEEDS, reasons))
		return;
	snprintf(note, sizeof(note),
		 "this host is none that fits (%s); it runs here until it has to move", reasons);
	json_object_object_add(json, "note", json_object_new_string(note));
}

static int submission_begin(struct submission *s, const char *program)
{
	const char *name, *fence;
	int64_t every_s;
	char user[32];
	int r;

	if (s->agent->stopping)
		return -EAGAIN;
	if (!s->agent->cluster)
		return api_error(s->reply, -EPERM, "no-cluster", s->agent->hostname,
				 "decamp cluster init, or decamp cluster join TOKEN",
				 "this host is in no cluster yet");
	if (!s->agent->criu[0])
		return api_error(s->reply, -EOPNOTSUPP, "no-criu", s->agent->hostname,
				 "decamp doctor says what is missing", "no usable CRIU was found");
	r = random_bytes(&s->id, sizeof(s->id));
	if (r == 0)
		r = api_get_string(s->call, "name", JOB_NAME_MAX, &name);
	if (r == 0)
		r = api_get_int(s->call, "every_s", 0, 86400, 0, &every_s);
	if (r == 0)
		r = api_get_string(s->call, "fence", 16, &fence);
	if (r < 0)
		return api_error(s->reply, -EINVAL, "bad-request", "options", "see decamp(1)",
				 "an option has a wrong type or size");
	if (fence && strcmp(fence, "strict") && strcmp(fence, "commit"))
		return api_error(s->reply, -EINVAL, "bad-request", "fence", "use strict or commit",
				 "no such fence: %s", fence);
	if (name && !job_good_name(name))
		return api_error(s->reply, -EINVAL, "bad-name", name,
				 "use letters, digits and ._-+", "not a name for a job");
	if (name)
		snprintf(s->name, sizeof(s->name), "%s", name);
	else
		default_name(program, &s->id, s->name);
	if (name_taken(s->agent, s->name, s->uid))
		return api_error(s->reply, -EEXIST, "name-taken", s->name, "choose another --name",
				 "you have a job of that name here");
	r = submission_needs(s);
	if (r < 0)
		return r;
	job_user_name(s->uid, user, sizeof(user));
	s->fence = fence && !strcmp(fence, "commit") ? FENCE_COMMIT : FENCE_STRICT;
	s->spec = json_object_new_object();
	json_object_object_add(s->spec, "name", json_object_new_string(s->name));
	json_object_object_add(s->spec, "user", json_object_new_string(user));
	json_object_object_add(s->spec, "uid", json_object_new_int64(s->uid));
	json_object_object_add(s->spec, "gid", json_object_new_int64(s->gid));
	json_object_object_add(s->spec, "groups", user_groups(user, s->gid));
	json_object_object_add(s->spec, "hostname", json_object_new_string(s->agent->hostname));
	json_object_object_add(s->spec, "every_s", json_object_new_int64(every_s));
	return 0;
}

/* The register first: a job that the cluster does not know must not run. */
static int submission_commit(struct submission *s, struct job **ret_job)
{
	struct agent *a = s->agent;
	struct ov_msg msg = { .op = OV_JOB_CREATE };
	struct job_value *value = &msg.u.value;
	_cleanup_free_ char *path = NULL;
	_cleanup_close_ int channel = -1;
	struct secret_key key;
	struct job_spec spec;
	struct job *job;
	int r = job_spec_from_json(take_ptr(s->spec), &spec);

	if (r < 0)
		return r;
	value->job = s->id;
	value->owner = value->home = a->self;
	value->state = JOB_STATE_HELD;
	value->fence = s->fence;
	value->submit_wall_ms = now_wall_ms();
	memcpy(value->needs, s->needs, s->needs_size);
	value->needs_size = (uint32_t)s->needs_size;
	r = random_bytes(&key, sizeof(key));
	if (r == 0)
		r = job_seal_value(a, &spec, &key, value);
	channel = r < 0 ? r : ov_open_channel(a->main_channel);
	r = channel < 0 ? channel : ov_call(channel, &msg, -1, NULL, JOB_CALL_MS);
	if (r == 0 &&
	    (!job_value_sane(&msg.u.value) || memcmp(&msg.u.value.job, &s->id, sizeof(s->id)) != 0))
		r = -EBADMSG;
	if (r < 0) {
		/* Without an answer it may exist all the same: without a record nobody starts it. */
		job_spec_deinit(&spec);
		key_wipe(&key, sizeof(key));
		return api_error(s->reply, r, "no-majority", s->name,
				 "decamp nodes shows who is there",
				 "the cluster did not take the job: %s", strerror(-r));
	}
	r = agent_add_job(a, &s->id, &msg.u.value, &spec, &key, &job);
	key_wipe(&key, sizeof(key));
	if (r < 0) {
		msg.op = OV_JOB_CAS;
		value->state = JOB_STATE_KILLED;
		if (ov_call(channel, &msg, -1, NULL, JOB_CALL_MS) < 0)
			log_warn("%s: its register entry stays", s->name);
		return api_error(s->reply, r, "no-room", s->name, "let other jobs end first",
				 "this host cannot take the job: %s", strerror(-r));
	}
	if (asprintf(&path, "%s/home/%s.json", a->config.state_dir, job->hex) >= 0) {
		struct json_object *record = json_object_new_object();
		const char *text;

		/* Its thread has nothing to do yet that would count references at the same time. */
		json_object_object_add(record, "spec", json_object_get(job->spec.json));
		text = json_object_to_json_string(record);
		r = write_file_atomic_at(AT_FDCWD, path, text, strlen(text), 0600);
		json_object_put(record);
		if (r < 0)
			log_errno(r, "%s", path);
	}
	*ret_job = job;
	return 0;
}

static int submission_start(struct submission *s, struct action *action)
{
	_cleanup_(job_unrefp) struct job *job = NULL;
	char message[JOB_MESSAGE_MAX];
	struct job_value value;
	struct json_object *json;
	int r = submission_commit(s, &job);

	if (r < 0)
		return r;
	r = job_do(job, action, LAUNCH_MS);
	pthread_mutex_lock(&job->lock);
	memcpy(message, job->message, sizeof(message));
	pthread_mutex_unlock(&job->lock);
	if (r < 0)
		return api_error(s->reply, r, "not-started", s->name,
				 "correct that and run it again", "%s",
				 message[0] ? message : strerror(-r));
	json = json_object_new_object();
	json_object_object_add(json, "job", json_object_new_string(job->hex));
	json_object_object_add(json, "name", json_object_new_string(job->spec.name));
	pthread_mutex_lock(&job->lock);
	for (int i = 0; i < 2; i++) {
		const char *key = i ? "stderr" : "stdout";
		struct json_object *path;

		if (json_object_object_get_ex(job->spec.json, key, &path))
			json_object_object_add(
				json, key, json_object_new_string(json_object_get_string(path)));
	}
	value = job->value;
	pthread_mutex_unlock(&job->lock);
	note_misfit(s, &value, json);
	s->reply->json = json;
	return 0;
}

int verb_run(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct submission s = {
		.agent = agent, .call = call, .reply = reply, .uid = call->uid, .gid = call->gid
	};
	struct action action = { .type = ACTION_LAUNCH };
	struct json_object *argv;
	const char *cwd, *stdin_path;
	char path[1200];
	int r = check_strings(call, "argv", true, reply);

	if (r == 0)
		r = check_strings(call, "env", false, reply);
	if (r == 0)
		r = check_strings(call, "inputs", false, reply);
	if (r < 0)
		return r;
	if (api_get_string(call, "cwd", 1023, &cwd) < 0 || !cwd || *cwd != '/')
		return api_error(reply, -EINVAL, "bad-request", "cwd", "give an absolute path",
				 "the working directory must be an absolute path");
	if (api_get_string(call, "stdin", 1023, &stdin_path) < 0 ||
	    (stdin_path && *stdin_path != '/'))
		return api_error(reply, -EINVAL, "bad-request", "stdin", "give an absolute path",
				 "must be an absolute path");
	json_object_object_get_ex(call->body, "argv", &argv);
	r = submission_begin(&s, json_object_get_string(json_object_array_get_idx(argv, 0)));
	if (r < 0)
		return r;
	json_object_object_add(s.spec, "cwd", json_object_new_string(cwd));
	copy_key(s.spec, call, "argv");
	copy_key(s.spec, call, "env");
	if (!json_object_object_get_ex(s.spec, "env", NULL))
		json_object_object_add(s.spec, "env", json_object_new_array());
	copy_key(s.spec, call, "inputs");
	copy_key(s.spec, call, "carry_cwd");
	copy_key(s.spec, call, "stdin");
	copy_key(s.spec, call, "umask");
	add_command(s.spec, argv);
	snprintf(path, sizeof(path), "%s/%s.out", !strcmp(cwd, "/") ? "" : cwd, s.name);
	json_object_object_add(s.spec, "stdout", json_object_new_string(path));
	snprintf(path, sizeof(path), "%s/%s.err", !strcmp(cwd, "/") ? "" : cwd, s.name);
	json_object_object_add(s.spec, "stderr", json_object_new_string(path));
	return submission_start(&s, &action);
}

/* The first thing that check found against it, as an error. */
static int refuse(struct api_reply *reply, const char *object, struct json_object *report)
{
	struct json_object *problems, *first, *part;
	const char *next = "see decamp check", *reason = "it cannot be captured";

	if (json_object_object_get_ex(report, "problems", &problems) &&
	    json_object_array_length(problems) > 0) {
		first = json_object_array_get_idx(problems, 0);
		if (json_object_object_get_ex(first, "object", &part))
			object = json_object_get_string(part);
		if (json_object_object_get_ex(first, "reason", &part))
			reason = json_object_get_string(part);
		if (json_object_object_get_ex(first, "next", &part))
			next = json_object_get_string(part);
	}
	return api_error(reply, -EOPNOTSUPP, "cannot-capture", object, next, "%s", reason);
}

static int describe_process(struct submission *s, pid_t pid)
{
	_cleanup_free_ char *cmdline = NULL;
	struct json_object *argv = json_object_new_array();
	char path[64], cwd[1024];
	size_t size = 0;
	ssize_t n;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/cwd", pid);
	n = readlink(path, cwd, sizeof(cwd) - 1);
	if (n < 0 || n == sizeof(cwd) - 1) {
		json_object_put(argv);
		return n < 0 ? -errno : -ENAMETOOLONG;
	}
	cwd[n] = '\0';
	snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
	r = read_file_at(AT_FDCWD, path, KEEPER_ARGS_MAX, &cmdline, &size);
	for (size_t at = 0; r == 0 && at < size; at += strlen(cmdline + at) + 1)
		json_object_array_add(argv, json_object_new_string(cmdline + at));
	json_object_object_add(s->spec, "cwd", json_object_new_string(cwd));
	add_command(s->spec, argv);
	json_object_object_add(s->spec, "argv", argv);
	json_object_object_add(s->spec, "env", json_object_new_array());
	json_object_object_add(s->spec, "adopted", json_object_new_boolean(true));
	json_object_object_add(s->spec, "carry_cwd", json_object_new_boolean(false));
	return r;
}

int verb_adopt(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct submission s = { .agent = agent, .call = call, .reply = reply };
	struct action action = { .type = ACTION_ADOPT };
	struct json_object *report = NULL, *ok;
	char object[32], comm_path[32];
	_cleanup_free_ char *comm = NULL;
	struct stat st;
	int64_t pid;
	bool fine;
	int r = api_get_int(call, "pid", 1, INT32_MAX, 0, &pid);

	if (r == 0 && pid)
		action.born = process_born((pid_t)pid);

	if (r < 0 || pid == 0)
		return api_error(reply, -EINVAL, "bad-request", "pid", "decamp adopt PID",
				 "must be a process id");
	snprintf(object, sizeof(object), "process %" PRId64, pid);
	r = host_check((pid_t)pid, call->uid, &report);
	fine = r == 0 && json_object_object_get_ex(report, "ok", &ok) &&
	       json_object_get_boolean(ok);
	if (!fine) {
		if (r == -ESRCH)
			r = api_error(reply, r, "no-such-process", object, "ps ax lists processes",
				      "there is no such process");
		else if (!report)
			r = api_error(reply, r, "not-yours", object, "choose one of your processes",
				      "it may not be adopted: %s", strerror(-r));
		else
			r = refuse(reply, object, report);
		json_object_put(report);
		return r;
	}
	json_object_put(report);
	if (agent_has_process(agent, (pid_t)pid, NULL))
		return api_error(reply, -EEXIST, "a-job-already", object,
				 "decamp ps lists your jobs", "it belongs to a job already");
	snprintf(comm_path, sizeof(comm_path), "/proc/%" PRId64, pid);
	if (stat(comm_path, &st) < 0)
		return -ESRCH;
	/* It may have become another's since it was checked. */
	if (call->uid != 0 && st.st_uid != call->uid)
		return api_error(reply, -EPERM, "not-yours", object, "choose one of your processes",
				 "it is another user's");
	s.uid = st.st_uid;
	s.gid = st.st_gid;
	snprintf(comm_path, sizeof(comm_path), "/proc/%" PRId64 "/comm", pid);
	r = read_file_at(AT_FDCWD, comm_path, 64, &comm, NULL);
	if (r == 0)
		r = submission_begin(&s, comm);
	if (r == 0)
		r = describe_process(&s, (pid_t)pid);
	if (r < 0) {
		json_object_put(s.spec);
		return r;
	}
	action.pid = (pid_t)pid;
	return submission_start(&s, &action);
}
