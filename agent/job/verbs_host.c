// SPDX-License-Identifier: LGPL-2.1-or-later
/* check, doctor, nodes, vacate, cluster-*: about hosts rather than jobs; and the verb table. */
#define LOG_TAG "api"
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "agent/job/needs.h"
#include "agent/job/verbs.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { VACATE_MS = 600000, JOIN_MS = 20000, INVITE_TTL_S = 86400 };

/* The engine that would capture it, and why not the fast one. */
static void add_engine(const struct host_config *config, pid_t pid, struct json_object *report)
{
	char reason[NATIVE_REASON_MAX] = "engine = criu in decampd.conf";
	struct json_object *ok;
	int r = -EOPNOTSUPP;

	if (!json_object_object_get_ex(report, "ok", &ok) || !json_object_get_boolean(ok))
		return;
	if (strcmp(config->engine, "criu"))
		r = native_check(config->capture_path, pid, reason);
	json_object_object_add(report, "engine",
			       json_object_new_string(r == 0 ? "native" : "criu"));
	if (r < 0)
		json_object_object_add(report, "native_reason", json_object_new_string(reason));
}

int verb_check(void *agent, const struct api_call *call, struct api_reply *reply)
{
	const struct agent *a = agent;
	int64_t pid;
	char object[32];
	int r = api_get_int(call, "pid", 1, INT32_MAX, 0, &pid);

	if (r < 0 || pid == 0)
		return api_error(reply, -EINVAL, "bad-request", "pid", "decamp check PID",
				 "must be a process id");
	snprintf(object, sizeof(object), "process %" PRId64, pid);
	r = host_check((pid_t)pid, call->uid, &reply->json);
	if (r == -ESRCH)
		return api_error(reply, r, "no-such-process", object, "ps ax lists processes",
				 "there is no such process");
	if (r < 0 && !reply->json)
		return api_error(reply, r, "not-yours", object, "choose one of your processes",
				 "%s", r == -EPERM ? "it may not be looked at" : strerror(-r));
	if (r == 0)
		add_engine(&a->config, (pid_t)pid, reply->json);
	return reply->json ? 0 : r;
}

int verb_doctor(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct agent *a = agent;
	struct json_object *cluster = json_object_new_object();
	char hex[33];
	int r = host_doctor(&a->config, &reply->json);

	(void)call;
	if (r < 0) {
		json_object_put(cluster);
		return r;
	}
	if (a->cluster) {
		hex_encode(cluster_id(a->cluster), 16, hex);
		json_object_object_add(cluster, "id", json_object_new_string(hex));
		json_object_object_add(cluster, "admits",
				       json_object_new_boolean(cluster_can_admit(a->cluster)));
	}
	json_object_object_add(reply->json, "cluster", cluster);
	return 0;
}

static void add_flags(struct json_object *json, const struct member_info *m)
{
	static const struct {
		uint32_t flag;
		const char *name;
	} names[] = { { MEMBER_TAKES_JOBS, "takes-jobs" },
		      { MEMBER_STORES_PACKS, "stores" },
		      { MEMBER_USER_PRESENT, "user-present" },
		      { MEMBER_VACATING, "vacating" },
		      { MEMBER_LOSES_CLOCK, "loses-clock" } };
	struct json_object *flags = json_object_new_array();

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (m->report.flags & names[i].flag)
			json_object_array_add(flags, json_object_new_string(names[i].name));
	json_object_object_add(json, "flags", flags);
}

static const char *member_state_name(uint32_t state)
{
	switch (state) {
	case MEMBER_ALIVE:
		return "alive";
	case MEMBER_SUSPECT:
		return "silent";
	case MEMBER_LEFT:
		return "left";
	default:
		return "dead";
	}
}

/* What jobs' needs are matched against, besides memory. */
static void add_kind(struct json_object *json, const struct member_state_report *report)
{
	char kernel[16];

	snprintf(kernel, sizeof(kernel), "%u.%u", report->kernel_version >> 16,
		 report->kernel_version & 0xffff);
	json_object_object_add(json, "arch", json_object_new_string(needs_arch_name(report->arch)));
	json_object_object_add(json, "cores", json_object_new_int(report->cores));
	json_object_object_add(json, "kernel", json_object_new_string(kernel));
	json_object_object_add(json, "tags", json_object_new_string(report->tags));
}

static struct json_object *describe_member(const struct member_info *m)
{
	struct json_object *json = json_object_new_object();
	char hex[33], addr[OV_ADDR_MAX + 8];

	hex_encode(&m->id, sizeof(m->id), hex);
	snprintf(addr, sizeof(addr), "%s:%u", m->addr, m->port);
	json_object_object_add(json, "name", json_object_new_string(m->hostname));
	json_object_object_add(json, "id", json_object_new_string(hex));
	json_object_object_add(json, "room", json_object_new_string(m->room));
	json_object_object_add(json, "state", json_object_new_string(member_state_name(m->state)));
	json_object_object_add(json, "addr", json_object_new_string(addr));
	add_flags(json, m);
	add_kind(json, &m->report);
	json_object_object_add(json, "load", json_object_new_double(m->report.load_milli / 1000.0));
	json_object_object_add(json, "mem_free",
			       json_object_new_int64((int64_t)m->report.mem_free_bytes));
	json_object_object_add(json, "store_free",
			       json_object_new_int64((int64_t)m->report.store_free_bytes));
	json_object_object_add(json, "store_used",
			       json_object_new_int64((int64_t)m->report.store_used_bytes));
	json_object_object_add(json, "jobs", json_object_new_int((int)m->report.jobs));
	json_object_object_add(json, "silent_ms", json_object_new_int64((int64_t)m->silent_ms));
	json_object_object_add(json, "self", json_object_new_boolean(m->is_self));
	return json;
}

static int no_cluster(struct agent *a, struct api_reply *reply)
{
	return api_error(reply, -EPERM, "no-cluster", a->hostname,
			 "decamp cluster init, or decamp cluster join TOKEN",
			 "this host is in no cluster yet");
}

int verb_nodes(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct agent *a = agent;
	_cleanup_free_ struct member_info *members = NULL;
	struct json_object *nodes;
	_cleanup_close_ int channel = -1;
	size_t count;
	bool credit;
	int r = api_get_bool(call, "credit", false, &credit);

	if (r < 0)
		return r;
	if (!a->cluster)
		return no_cluster(a, reply);
	channel = ov_open_channel(a->main_channel);
	r = channel < 0 ? channel : agent_members(channel, &members, &count);
	if (r < 0)
		return r;
	nodes = json_object_new_array();
	for (size_t i = 0; i < count; i++)
		json_object_array_add(nodes, describe_member(&members[i]));
	reply->json = json_object_new_object();
	json_object_object_add(reply->json, "nodes", nodes);
	if (credit)
		r = credit_describe(channel, members, count, nodes, reply->json);
	if (r < 0)
		return api_error(reply, r, "no-credit", a->hostname, "wait a moment and ask again",
				 "the receipts could not be gathered: %s",
				 r == -EBUSY ? "somebody else does that just now" : strerror(-r));
	return 0;
}

static struct json_object *jobs_left(struct agent *a, size_t *ret_count)
{
	struct json_object *names = json_object_new_array();

	pthread_mutex_lock(&a->lock);
	for (int i = 0; i < JOB_LOCAL_MAX; i++)
		if (a->jobs[i] && a->jobs[i]->phase != PHASE_GONE)
			json_object_array_add(names, json_object_new_string(a->jobs[i]->spec.name));
	pthread_mutex_unlock(&a->lock);
	*ret_count = json_object_array_length(names);
	return names;
}

int verb_vacate(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct agent *a = agent;
	uint64_t deadline = now_boot_ns() + (uint64_t)VACATE_MS * 1000000u;
	struct json_object *names;
	size_t before, left;
	bool undo;
	int r = api_get_bool(call, "undo", false, &undo);

	if (r < 0)
		return r;
	json_object_put(jobs_left(a, &before));
	agent_vacate(a, !undo, "vacate");
	names = jobs_left(a, &left);
	while (!undo && left && now_boot_ns() < deadline && !a->stopping) {
		usleep(200000);
		json_object_put(names);
		names = jobs_left(a, &left);
	}
	reply->json = json_object_new_object();
	json_object_object_add(reply->json, "jobs_left", names);
	json_object_object_add(
		reply->json, "moved",
		json_object_new_int64(undo || left > before ? 0 : (int64_t)(before - left)));
	return 0;
}

struct place {
	const char *room, *addr;
	int64_t port;
};

static int get_place(struct agent *a, const struct api_call *call, struct place *ret_place,
		     struct api_reply *reply)
{
	struct place p;
	int r = api_get_string(call, "room", OV_NAME_MAX - 1, &p.room);

	if (r == 0)
		r = api_get_string(call, "addr", OV_ADDR_MAX - 1, &p.addr);
	if (r == 0)
		r = api_get_int(call, "port", 1, 65535, a->config.port, &p.port);
	if (r < 0)
		return api_error(reply, r, "bad-request", "options", "see decamp(1)",
				 "room, addr or port has a wrong type or size");
	if (!p.room)
		p.room = a->config.room;
	if (!p.addr)
		p.addr = a->config.advertise_addr;
	if (!*p.addr)
		return api_error(reply, -EINVAL, "no-address", a->hostname,
				 "give --addr, or advertise_addr in decampd.conf",
				 "which address do other hosts reach this one by?");
	*ret_place = p;
	return 0;
}

static int enter_cluster(struct agent *a, struct cluster *cluster, struct api_reply *reply)
{
	char hex[33];
	int r;

	a->cluster = cluster;
	r = agent_start_overlay(a);
	if (r < 0)
		return api_error(reply, r, "not-started", a->hostname, "see decampd's log",
				 "the overlay half did not start: %s", strerror(-r));
	reply->json = json_object_new_object();
	hex_encode(cluster_id(cluster), 16, hex);
	json_object_object_add(reply->json, "cluster", json_object_new_string(hex));
	hex_encode(&a->self, sizeof(a->self), hex);
	json_object_object_add(reply->json, "node", json_object_new_string(hex));
	return 0;
}

static int in_cluster_already(struct agent *a, struct api_reply *reply)
{
	return api_error(reply, -EEXIST, "in-a-cluster", a->hostname,
			 "stop decampd and remove its identity file to leave it",
			 "this host is in a cluster already");
}

static int found_cluster(struct agent *a, const struct api_call *call, struct api_reply *reply)
{
	struct cluster *cluster;
	struct place place;
	int r;

	if (a->cluster)
		return in_cluster_already(a, reply);
	r = get_place(a, call, &place, reply);
	if (r < 0)
		return r;
	r = cluster_init(a->config.state_dir, a->hostname, place.room, place.addr,
			 (uint16_t)place.port, &cluster);
	if (r < 0)
		return api_error(reply, r, "failed", a->config.state_dir, "see decampd's log",
				 "the cluster's keys could not be made: %s", strerror(-r));
	return enter_cluster(a, cluster, reply);
}

int verb_cluster_init(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct agent *a = agent;
	int r;

	pthread_mutex_lock(&a->cluster_lock);
	r = found_cluster(a, call, reply);
	pthread_mutex_unlock(&a->cluster_lock);
	return r;
}

int verb_cluster_invite(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct agent *a = agent;
	struct ov_msg msg = { .op = OV_INVITE };
	char token[CLUSTER_TOKEN_MAX];
	_cleanup_close_ int channel = -1;
	int64_t ttl_s;
	int r;

	if (!a->cluster)
		return no_cluster(a, reply);
	if (!cluster_can_admit(a->cluster))
		return api_error(reply, -EPERM, "no-cluster-key", a->hostname,
				 "run it where decamp cluster init was run",
				 "this host does not hold the cluster key");
	r = api_get_int(call, "ttl_s", 1, 30 * 86400, INVITE_TTL_S, &ttl_s);
	if (r < 0)
		return r;
	pthread_mutex_lock(&a->cluster_lock);
	r = cluster_invite(a->cluster, a->config.state_dir, (uint32_t)ttl_s, token, &msg.u.invite);
	pthread_mutex_unlock(&a->cluster_lock);
	if (r == 0) {
		channel = ov_open_channel(a->main_channel);
		r = channel < 0 ? channel : ov_call(channel, &msg, -1, NULL, JOB_CALL_MS);
	}
	if (r < 0)
		return r;
	reply->json = json_object_new_object();
	json_object_object_add(reply->json, "token", json_object_new_string(token));
	key_wipe(token, sizeof(token));
	return 0;
}

static int join_cluster(struct agent *a, const struct api_call *call, struct api_reply *reply)
{
	struct ov_msg msg = { .op = OV_JOIN };
	struct cluster_join *join;
	struct cluster *cluster;
	_cleanup_close_ int channel = -1;
	const char *token;
	struct place place;
	int r;

	if (a->cluster)
		return in_cluster_already(a, reply);
	r = api_get_string(call, "token", CLUSTER_TOKEN_MAX, &token);
	if (r < 0 || !token)
		return api_error(reply, -EINVAL, "bad-request", "token",
				 "decamp cluster join TOKEN", "no token was given");
	r = get_place(a, call, &place, reply);
	if (r < 0)
		return r;
	r = cluster_join_request(token, a->hostname, place.room, place.addr, (uint16_t)place.port,
				 &join, &msg.u.join);
	if (r < 0)
		return api_error(reply, r, "bad-token", "token",
				 "ask for a new one: decamp cluster invite",
				 "the token cannot be read");
	channel = ov_open_channel(a->main_channel);
	r = channel < 0 ? channel : ov_call(channel, &msg, -1, NULL, JOIN_MS);
	if (r == 0)
		r = msg.u.join.size > OV_ORDER_MAX ?
			    -EBADMSG :
			    cluster_join_accept(join, a->config.state_dir, msg.u.join.bytes,
						msg.u.join.size, &cluster);
	cluster_join_destroy(join);
	if (r < 0)
		return api_error(reply, r, "not-admitted", "token",
				 "check that the inviting host is up, or ask for a new token",
				 "the cluster did not admit this host: %s", strerror(-r));
	return enter_cluster(a, cluster, reply);
}

int verb_cluster_join(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct agent *a = agent;
	int r;

	pthread_mutex_lock(&a->cluster_lock);
	r = join_cluster(a, call, reply);
	pthread_mutex_unlock(&a->cluster_lock);
	return r;
}

const struct api_route agent_routes[] = {
	{ "run", false, verb_run },
	{ "adopt", false, verb_adopt },
	{ "ps", false, verb_ps },
	{ "show", false, verb_show },
	{ "why", false, verb_why },
	{ "history", false, verb_history },
	{ "recover", false, verb_recover },
	{ "logs", false, verb_logs },
	{ "ls", false, verb_ls },
	{ "cat", false, verb_cat },
	{ "snapshot", false, verb_snapshot },
	{ "read", false, verb_read },
	{ "folder-create", false, verb_folder_create },
	{ "folder-list", false, verb_folder_list },
	{ "folder-delete", false, verb_folder_delete },
	{ "folder-begin", false, verb_folder_begin },
	{ "folder-add", false, verb_folder_add },
	{ "folder-write", false, verb_folder_write },
	{ "folder-commit", false, verb_folder_commit },
	{ "folder-made", false, verb_folder_made },
	{ "ckpt", false, verb_ckpt },
	{ "freeze", false, verb_freeze },
	{ "thaw", false, verb_thaw },
	{ "kill", false, verb_kill },
	{ "migrate", false, verb_migrate },
	{ "restore", false, verb_restore },
	{ "check", false, verb_check },
	{ "doctor", false, verb_doctor },
	{ "nodes", false, verb_nodes },
	{ "vacate", true, verb_vacate },
	{ "cluster-init", true, verb_cluster_init },
	{ "cluster-invite", true, verb_cluster_invite },
	{ "cluster-join", true, verb_cluster_join },
	{ NULL, false, NULL },
};
