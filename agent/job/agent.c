// SPDX-License-Identifier: LGPL-2.1-or-later
/* The table of local jobs, and what the cluster and the user at the keyboard say to it. */
#define LOG_TAG "agent"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "agent/job/folder.h"
#include "agent/job/needs.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

#define REFUSED_LOG_NS (UINT64_C(60) * 1000000000)

struct job *job_ref(struct job *job)
{
	job->refs++;
	return job;
}

void job_unref(struct job *job)
{
	if (!job || --job->refs > 0)
		return;
	for (int i = 0; i < OV_HISTORY_MAX; i++)
		job_forget_kept(job, (uint32_t)i);
	keeper_detach(job->lease_keeper);
	close_fdp(&job->wake_fd);
	job_spec_deinit(&job->spec);
	key_wipe(&job->key, sizeof(job->key));
	pthread_mutex_destroy(&job->lock);
	pthread_mutex_destroy(&job->dump_lock);
	pthread_cond_destroy(&job->changed);
	free(job);
}

/* Rows of jobs that are gone are given up by whoever walks the table next. Lock held. */
static void sweep(struct agent *a)
{
	for (int i = 0; i < JOB_LOCAL_MAX; i++) {
		if (!a->jobs[i] || a->jobs[i]->phase != PHASE_GONE)
			continue;
		job_unref(a->jobs[i]);
		a->jobs[i] = NULL;
	}
}

struct job *agent_find(struct agent *a, const struct job_id *id)
{
	struct job *found = NULL;

	pthread_mutex_lock(&a->lock);
	sweep(a);
	for (int i = 0; i < JOB_LOCAL_MAX && !found; i++)
		if (a->jobs[i] && !memcmp(&a->jobs[i]->id, id, sizeof(*id)))
			found = job_ref(a->jobs[i]);
	pthread_mutex_unlock(&a->lock);
	return found;
}

bool agent_has_process(struct agent *a, pid_t pid, const struct job *except)
{
	_cleanup_free_ char *cgroup = NULL;
	char path[64];
	bool found = false;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", pid);
	if (read_file_at(AT_FDCWD, path, 64 << 10, &cgroup, NULL) < 0)
		cgroup = NULL;
	pthread_mutex_lock(&a->lock);
	sweep(a);
	for (int i = 0; i < JOB_LOCAL_MAX; i++) {
		struct job *job = a->jobs[i];

		if (job && job != except)
			found |= job->adopted_pid == pid || (cgroup && strstr(cgroup, job->hex));
	}
	pthread_mutex_unlock(&a->lock);
	return found;
}

static int make_folders(struct job *job)
{
	struct agent *a = job->agent;
	int r;

	snprintf(job->state_dir, sizeof(job->state_dir), "%s/jobs/%s", a->config.state_dir,
		 job->hex);
	snprintf(job->run_dir, sizeof(job->run_dir), "%s/jobs/%s", a->config.run_dir, job->hex);
	r = mkdir_parents(job->state_dir, 0700);
	if (r == 0)
		r = mkdir_parents(job->run_dir, 0700);
	if (r == 0 && a->cgroup_base[0]) {
		snprintf(job->cgroup_dir, sizeof(job->cgroup_dir), "%.300s/%s", a->cgroup_base,
			 job->hex);
		if (mkdir(job->cgroup_dir, 0755) < 0 && errno != EEXIST)
			r = -errno;
	}
	return r;
}

struct job *job_new(struct agent *a, const struct job_id *id, const struct job_value *value,
		    const struct secret_key *key)
{
	struct job *job = calloc(1, sizeof(*job));
	pthread_condattr_t monotonic;

	if (!job)
		return NULL;
	job->agent = a;
	job->id = *id;
	hex_encode(id, sizeof(*id), job->hex);
	job->value = *value;
	job->key = *key;
	job->refs = 1;
	job->channel = -1;
	job->phase = PHASE_STARTING;
	job->knows_past = value->history_count == 0; /* there is none */
	pthread_mutex_init(&job->lock, NULL);
	pthread_mutex_init(&job->dump_lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&job->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	job->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return job;
}

static int insert(struct agent *a, struct job *job)
{
	int r = -ENOSPC, at = -1;

	pthread_mutex_lock(&a->lock);
	sweep(a);
	for (int i = 0; i < JOB_LOCAL_MAX; i++) {
		if (!a->jobs[i]) {
			at = at < 0 ? i : at;
		} else if (!memcmp(&a->jobs[i]->id, &job->id, sizeof(job->id))) {
			pthread_mutex_unlock(&a->lock);
			return -EEXIST;
		}
	}
	if (at >= 0) {
		a->jobs[at] = job_ref(job);
		r = 0;
	}
	pthread_mutex_unlock(&a->lock);
	return r;
}

int agent_add_job(struct agent *a, const struct job_id *id, const struct job_value *value,
		  struct job_spec *spec_take, const struct secret_key *key, struct job **ret_job)
{
	struct job *job = job_new(a, id, value, key);
	pthread_attr_t detached;
	int r;

	if (!job) {
		job_spec_deinit(spec_take);
		return -ENOMEM;
	}
	job->spec = *spec_take;
	memset(spec_take, 0, sizeof(*spec_take));
	r = a->stopping ? -ESHUTDOWN : job->wake_fd < 0 ? -EMFILE : make_folders(job);
	if (r == 0)
		r = insert(a, job);
	if (r < 0) {
		job_unref(job);
		return r;
	}
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	job_ref(job); /* the thread's */
	r = -pthread_create(&job->thread, &detached, job_thread, job);
	pthread_attr_destroy(&detached);
	if (r < 0) {
		job_unref(job);
		job_phase(job, PHASE_GONE);
		job_unref(job);
		return r;
	}
	*ret_job = job;
	return 0;
}

/* A spec of what the register's seal tells; the full one comes with the manifest. */
static int spec_from_seal(const struct job_seal *seal, struct job_spec *ret_spec)
{
	struct json_object *json = json_object_new_object();

	if (!json)
		return -ENOMEM;
	json_object_object_add(json, "name", json_object_new_string(seal->name));
	json_object_object_add(json, "user", json_object_new_string(seal->user));
	json_object_object_add(json, "cwd", json_object_new_string(seal->cwd));
	json_object_object_add(json, "command", json_object_new_string(seal->command));
	json_object_object_add(json, "uid", json_object_new_int64(seal->uid));
	json_object_object_add(json, "gid", json_object_new_int64(seal->gid));
	json_object_object_add(json, "every_s", json_object_new_int64(seal->every_s));
	json_object_object_add(json, "adopted",
			       json_object_new_boolean(seal->flags & JOB_SEAL_ADOPTED));
	return job_spec_from_json(json, ret_spec);
}

static int add_from_value(struct agent *a, const struct job_value *value, enum action_type first)
{
	struct action action = { .type = first };
	struct job_spec spec;
	struct secret_key key;
	struct job_seal seal;
	struct job *job;
	int r = job_unseal_value(a, value, &seal);

	if (r < 0)
		return r;
	if (seal.flags & JOB_SEAL_FOLDER) { /* it has no processes: nothing to restore */
		if (first == ACTION_RESTORE)
			r = folder_granted(a, value, &seal);
		key_wipe(&seal, sizeof(seal));
		return r;
	}
	r = spec_from_seal(&seal, &spec);
	memcpy(key.b, seal.key, sizeof(key.b));
	key_wipe(&seal, sizeof(seal));
	if (r == 0)
		r = agent_add_job(a, &value->job, value, &spec, &key, &job);
	key_wipe(&key, sizeof(key));
	if (r < 0)
		return r;
	r = job_post(job, &action);
	job_unref(job);
	return r;
}

static void on_lease(struct agent *a, const struct ov_lease *lease)
{
	_cleanup_(job_unrefp) struct job *job = agent_find(a, &lease->job);
	struct job_value value;
	int r;

	if (!job)
		return;
	job_get_value(job, &value);
	if (fence_token_compare(&lease->token, &value.token) != 0)
		return;
	if (lease->run_until_boot_ns > job->run_until_boot_ns)
		job->run_until_boot_ns = lease->run_until_boot_ns;
	if (value.fence != FENCE_STRICT)
		return;
	if (!job->lease_keeper && keeper_attach(job->run_dir, &job->lease_keeper) < 0)
		return; /* not started yet, or ended */
	r = keeper_lease(job->lease_keeper, job->run_until_boot_ns);
	if (r < 0)
		keeper_detach(take_ptr(job->lease_keeper));
}

static void *kill_lost(void *arg)
{
	struct job *job = arg;
	struct keeper *keeper;
	/* Gone: its thread was faster, and what is in run_dir now may be the next incarnation. */
	int r = job->phase == PHASE_GONE ? -ENOENT : keeper_attach(job->run_dir, &keeper);

	if (r == 0) {
		r = keeper_kill(keeper);
		keeper_detach(keeper);
	}
	if (r < 0 && r != -ENOENT && r != -ECONNREFUSED)
		log_errno(r, "%s: end the old incarnation", job->spec.name);
	job_unref(job);
	return NULL;
}

static void on_lost(struct agent *a, const struct ov_job *lost)
{
	_cleanup_(job_unrefp) struct job *job = agent_find(a, &lost->job);
	struct action action = { .type = ACTION_LOST };
	struct job_value value;
	pthread_t thread;
	int r;

	if (!job)
		folder_lost(a, &lost->job);
	if (!job || job->claiming) /* the claim's answer tells */
		return;
	job_get_value(job, &value);
	if (fence_token_compare(&lost->token, &value.token) != 0)
		return;
	job->lost = true;
	/* Its thread may be deep in a checkpoint, which only the end of the tasks cuts short. */
	if (pthread_create(&thread, NULL, kill_lost, job_ref(job)) != 0)
		job_unref(job);
	else
		pthread_detach(thread);
	r = job_post(job, &action);
	if (r < 0)
		log_debug("%s: gone already", job->spec.name);
}

/* A bad seal, or no room for it. The guardian repeats itself each second, the log does not. */
static void refuse_value(struct agent *a, int r, const char *what)
{
	uint64_t now_ns = now_boot_ns();

	a->refused_values++;
	if (a->refused_boot_ns && now_ns - a->refused_boot_ns < REFUSED_LOG_NS)
		return;
	a->refused_boot_ns = now_ns;
	log_errno(r, "%s (refused so far: %" PRIu64 ")", what, a->refused_values);
}

static void on_grant(struct agent *a, const struct job_value *value)
{
	_cleanup_(job_unrefp) struct job *job = agent_find(a, &value->job);
	int r;

	if (value->state != JOB_STATE_HELD || !node_id_equal(&value->owner, &a->self))
		return;
	if (job) {
		struct action lost = { .type = ACTION_LOST };
		struct job_value ours;

		/* Read before the token: it is the new one once the claim is over. */
		if (job->claiming)
			return;
		/* Ours under an older token: that incarnation ends first; the guardian repeats. */
		job_get_value(job, &ours);
		if (fence_token_compare(&ours.token, &value->token) < 0 &&
		    job->phase != PHASE_FINISHING && job_post(job, &lost) < 0)
			log_debug("%s: gone already", job->spec.name);
		return;
	}
	r = add_from_value(a, value, ACTION_RESTORE);
	if (r < 0)
		refuse_value(a, r,
			     "a job or a folder was granted to this host but cannot be taken");
}

static void on_done(struct agent *a, const struct job_value *value)
{
	_cleanup_(job_unrefp) struct job *job = agent_find(a, &value->job);
	int r;

	if (job || value->state != JOB_STATE_DONE || !node_id_equal(&value->home, &a->self))
		return;
	r = add_from_value(a, value, ACTION_RESULTS);
	if (r < 0 && r != -EEXIST)
		refuse_value(a, r, "results of a job cannot be fetched");
}

struct join_work {
	struct agent *agent;
	struct ov_join event;
};

/* Admits one host; in a thread, for it asks for the members. */
static void *join_thread(void *arg)
{
	struct join_work *work = arg;
	struct agent *a = work->agent;
	struct ov_msg reply = { .op = OV_JOIN_REPLY };
	struct member_info *members = NULL;
	char hostname[OV_NAME_MAX];
	size_t count = 0;
	_cleanup_close_ int channel = ov_open_channel(a->main_channel);
	int r = channel < 0 ? channel : agent_members(channel, &members, &count);

	if (r == 0) {
		pthread_mutex_lock(&a->cluster_lock);
		r = cluster_admit(a->cluster, a->config.state_dir, &work->event, members, count,
				  &reply.u.join, hostname);
		pthread_mutex_unlock(&a->cluster_lock);
	}
	reply.u.join.call_id = work->event.call_id;
	reply.status = r;
	if (r < 0)
		log_errno(r, "a join was refused");
	else
		log_info("admitted %s", hostname);
	r = send_with_fd(a->main_channel, &reply, sizeof(reply), -1);
	if (r < 0)
		log_errno(r, "join reply");
	free(members);
	free(work);
	a->order_threads--;
	return NULL;
}

static void on_join(struct agent *a, const struct ov_join *event)
{
	/* The other half is not trusted: it starts no threads without end. */
	struct join_work *work = a->order_threads < ORDER_THREADS_MAX ? malloc(sizeof(*work)) :
									NULL;
	pthread_t thread;

	if (!work)
		return;
	work->agent = a;
	work->event = *event;
	a->order_threads++;
	if (pthread_create(&thread, NULL, join_thread, work) == 0) {
		pthread_detach(thread);
		return;
	}
	a->order_threads--;
	free(work);
}

static void on_member(const struct member_info *member)
{
	static const char *const states[] = { "?", "alive", "silent", "dead", "gone" };
	uint32_t state = member->state < ARRAY_SIZE(states) ? member->state : 0;

	log_line(state == MEMBER_ALIVE ? LOG_DEBUG_ : LOG_INFO_, LOG_TAG, "host %.*s is %s",
		 OV_NAME_MAX - 1, member->hostname, states[state]);
}

void agent_overlay_event(struct agent *a, const struct ov_msg *msg)
{
	if (!a->cluster)
		return;
	switch (msg->op) {
	case OV_EV_LEASE:
		return on_lease(a, &msg->u.lease);
	case OV_EV_LOST:
		return on_lost(a, &msg->u.job);
	case OV_EV_GRANT:
		if (job_value_sane(&msg->u.value))
			on_grant(a, &msg->u.value);
		return;
	case OV_EV_DONE:
		if (job_value_sane(&msg->u.value))
			on_done(a, &msg->u.value);
		return;
	case OV_EV_ORDER:
		return order_received(a, msg);
	case OV_EV_JOIN:
		return on_join(a, &msg->u.join);
	case OV_EV_MEMBER:
		on_member(&msg->u.member);
		return;
	default:
		return; /* an answer to a request on the main channel: none is waited for */
	}
}

int agent_start_overlay(struct agent *a)
{
	struct ov_invite invites[CLUSTER_INVITES_MAX];
	struct ov_msg msg = { .op = OV_CLUSTER_START };
	struct ov_identity identity;
	const struct host_config *c = &a->config;
	_cleanup_close_ int fd = -1, channel = -1;
	uint32_t count = 0;
	uint16_t port;
	int r;

	if (!a->cluster)
		return 0;
	cluster_overlay_identity(a->cluster, &identity);
	a->self = identity.card.id;
	fd = memfd_new("identity");
	r = fd < 0 ? fd : write_full(fd, &identity, sizeof(identity));
	key_wipe(&identity, sizeof(identity));
	if (r == 0)
		r = memfd_seal(fd);
	if (r < 0)
		return r;
	snprintf(msg.u.start.listen_addr, OV_ADDR_MAX, "%s", c->listen_addr);
	snprintf(msg.u.start.advertise_addr, OV_ADDR_MAX, "%s", cluster_addr(a->cluster, &port));
	msg.u.start.port = port;
	msg.u.start.probe_ms = c->probe_ms;
	msg.u.start.suspect_ms = c->suspect_ms;
	msg.u.start.renew_ms = c->renew_ms;
	msg.u.start.lease_ms = c->lease_ms;
	msg.u.start.hold_ms = c->hold_ms;
	memcpy(msg.u.start.closed_hours, c->closed_hours, sizeof(msg.u.start.closed_hours));
	msg.u.start.quota_bytes = c->quota_bytes;
	msg.u.start.reserve_bytes = c->reserve_bytes;
	msg.u.start.scrub_bytes_s = (uint32_t)c->scrub_bytes_s;
	msg.u.start.credit_round_ms = c->credit_round_s * 1000;
	channel = ov_open_channel(a->main_channel);
	if (channel < 0)
		return channel;
	r = ov_call(channel, &msg, fd, NULL, JOB_CALL_MS);
	/* Its id is used up; where the cluster key is, that is nobody else's business. */
	if (r == -ESTALE && cluster_renew(a->cluster, c->state_dir) == 0) {
		log_warn("this host goes on under a new id");
		return agent_start_overlay(a);
	}
	if (r < 0)
		return r;
	r = cluster_invites(c->state_dir, invites, &count);
	for (uint32_t i = 0; r == 0 && i < count; i++) {
		struct ov_msg invite = { .op = OV_INVITE, .u.invite = invites[i] };

		r = ov_call(channel, &invite, -1, NULL, JOB_CALL_MS);
	}
	agent_report(a);
	return r;
}

int agent_look(struct agent *a, struct member_state_report *ret_report)
{
	struct member_state_report own = { .flags = MEMBER_STORES_PACKS }, *report = &own;
	struct host_resources res;
	int r = host_resources(&res);

	if (r < 0)
		return r;
	if (a->config.takes_jobs && a->criu[0] && !a->user_present && !a->vacating && !a->stopping)
		report->flags |= MEMBER_TAKES_JOBS;
	if (a->user_present)
		report->flags |= MEMBER_USER_PRESENT;
	if (a->vacating)
		report->flags |= MEMBER_VACATING;
	report->load_milli = res.load_milli;
	report->mem_free_bytes = res.mem_free_bytes;
	memcpy(report->cpu_features, res.cpu_features, sizeof(report->cpu_features));
	report->arch = (uint16_t)needs_arch_of(res.arch, strlen(res.arch));
	report->cores = res.cpus > UINT16_MAX ? UINT16_MAX : (uint16_t)res.cpus;
	report->kernel_version = res.kernel_version;
	report->kernel_features = a->kernel_features;
	memcpy(report->tags, a->config.tags, sizeof(report->tags));
	*ret_report = own;
	return 0;
}

uint32_t agent_report(struct agent *a)
{
	struct ov_msg msg = { .op = OV_REPORT };
	struct member_state_report *report = &msg.u.report;
	int r;

	if (!a->cluster || agent_look(a, report) < 0)
		return 0;
	pthread_mutex_lock(&a->lock);
	sweep(a);
	for (int i = 0; i < JOB_LOCAL_MAX; i++)
		report->jobs += a->jobs[i] != NULL;
	pthread_mutex_unlock(&a->lock);
	/* The overlay half fills in its store's figures. On the main channel: no answer is awaited. */
	r = send_with_fd(a->main_channel, &msg, sizeof(msg), -1);
	if (r < 0)
		log_errno(r, "report");
	return report->jobs;
}

static void for_each_job(struct agent *a, void (*fn)(struct job *job, void *ctx), void *ctx)
{
	struct job *jobs[JOB_LOCAL_MAX];
	int count = 0;

	pthread_mutex_lock(&a->lock);
	sweep(a);
	for (int i = 0; i < JOB_LOCAL_MAX; i++)
		if (a->jobs[i])
			jobs[count++] = job_ref(a->jobs[i]);
	pthread_mutex_unlock(&a->lock);
	for (int i = 0; i < count; i++) {
		fn(jobs[i], ctx);
		job_unref(jobs[i]);
	}
}

/* Waits for a dump under way, not for its packing and sending: those go on with the job frozen. */
static void *freeze_thread(void *arg)
{
	struct job *job = arg;
	struct keeper *keeper;
	int r = 0;

	pthread_mutex_lock(&job->dump_lock);
	if ((job->phase == PHASE_RUNNING || job->phase == PHASE_CHECKPOINTING) && !job->lost &&
	    job->agent->user_present && keeper_attach(job->run_dir, &keeper) == 0) {
		r = keeper_freeze(keeper, KEEPER_CALL_MS);
		keeper_detach(keeper);
		job->owner_frozen = r == 0;
	}
	pthread_mutex_unlock(&job->dump_lock);
	if (r < 0)
		log_errno(r, "%s: freeze", job->spec.name);
	job_unref(job);
	return NULL;
}

static void freeze_now(struct job *job)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, freeze_thread, job_ref(job)) != 0)
		job_unref(job);
	else
		pthread_detach(thread);
}

static void send_away(struct job *job, void *ctx)
{
	struct action action = { .type = ACTION_HANDOVER };
	int r;

	if (!strcmp(ctx, "login"))
		freeze_now(job);
	snprintf(action.reason, sizeof(action.reason), "%s", (const char *)ctx);
	r = job_post(job, &action);
	if (r < 0 && r != -ESTALE)
		log_errno(r, "%s: hand over", job->spec.name);
}

static void let_go(struct job *job, void *ctx)
{
	struct action action = { .type = ACTION_THAW };
	struct agent *a = job->agent;

	(void)ctx;
	if (a->user_present && a->config.vacate_on_login)
		return;
	if (job->owner_frozen && !job->user_frozen && job_post(job, &action) < 0)
		log_warn("%s: cannot be thawed", job->spec.name);
}

void agent_user_came(struct agent *a, const char *who)
{
	log_info("%s is here: jobs leave", who);
	a->user_present = true;
	agent_report(a);
	if (a->config.vacate_on_login)
		for_each_job(a, send_away, (void *)"login");
}

void agent_user_gone(struct agent *a)
{
	log_info("the user is gone: this host takes jobs again");
	a->user_present = false;
	agent_report(a);
	for_each_job(a, let_go, NULL);
}

void agent_vacate(struct agent *a, bool on, const char *reason)
{
	a->vacating = on;
	agent_report(a);
	if (on)
		for_each_job(a, send_away, (void *)reason);
	else
		for_each_job(a, let_go, NULL);
}

static void stop_job(struct job *job, void *ctx)
{
	struct action action = { .type = ACTION_STOP };

	(void)ctx;
	if (job_post(job, &action) < 0)
		log_debug("%s: gone already", job->spec.name);
}

void agent_stop_jobs(struct agent *a)
{
	a->stopping = true;
	for_each_job(a, stop_job, NULL);
	for (int waited = 0; waited < 50; waited++) {
		bool busy = false;

		pthread_mutex_lock(&a->lock);
		sweep(a);
		for (int i = 0; i < JOB_LOCAL_MAX; i++)
			busy |= a->jobs[i] != NULL;
		pthread_mutex_unlock(&a->lock);
		if (!busy)
			return;
		usleep(100000);
	}
}
