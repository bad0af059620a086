// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/folder_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/job/readings.h"
#include "agent/job/verbs.h"
#include "agent/util/io.h"

/* The wrapped verb has no other way to know it. */
static struct folder_lab *current;

/* ---- the network half: no asserts, these are the tests' own thread's ---- */

static struct job_value *register_of(struct folder_lab *lab, const struct job_id *id)
{
	for (size_t i = 0; i < lab->register_count; i++)
		if (!memcmp(&lab->registers[i].job, id, sizeof(*id)))
			return &lab->registers[i];
	return NULL;
}

static int create(struct folder_lab *lab, struct job_value *value)
{
	if (lab->register_count == FOLDER_LAB_REGISTERS || register_of(lab, &value->job))
		return -EEXIST;
	value->token = (struct fence_token){ .counter = 1, .node = value->owner };
	lab->registers[lab->register_count++] = *value;
	return 0;
}

/* As decide_cas() of the core, for one owner. */
static int cas(struct folder_lab *lab, struct job_value *value)
{
	struct job_value *now = register_of(lab, &value->job);

	if (!now)
		return -ENOENT;
	if (fence_token_compare(&now->token, &value->token) != 0 || now->state == JOB_STATE_KILLED)
		return -ESTALE;
	if (value->state == JOB_STATE_HELD && value->history[0].seq < now->history[0].seq)
		return -EINVAL;
	*now = *value;
	return 0;
}

static int put(struct folder_lab *lab, struct ov_object *object, int fd)
{
	struct folder_lab_object *o = &lab->objects[lab->object_count];

	if (lab->object_count == FOLDER_LAB_OBJECTS)
		return -ENOSPC;
	*o = (struct folder_lab_object){ .job = object->job,
					 .hash = object->hash,
					 .size = object->size,
					 .seq = object->seq,
					 .bytes = malloc(object->size) };
	if (!o->bytes || pread_full(fd, o->bytes, o->size, 0) < 0) {
		free(o->bytes);
		return -EIO;
	}
	lab->object_count++;
	object->holder_count = 2;
	for (size_t i = 0; i < 2; i++)
		object->holders[i] = lab->members[i + 1].id;
	return 0;
}

static int fill_memfd(const void *bytes, size_t size)
{
	int fd = memfd_new("answer");

	if (fd >= 0 && (write_full(fd, bytes, size) < 0 || memfd_seal(fd) < 0))
		close_fdp(&fd);
	return fd;
}

static int get(struct folder_lab *lab, const struct ov_object *object, int *ret_fd)
{
	for (size_t i = 0; i < lab->object_count; i++) {
		const struct folder_lab_object *o = &lab->objects[i];

		if (!o->bytes || memcmp(&o->hash, &object->hash, sizeof(o->hash)) != 0)
			continue;
		*ret_fd = fill_memfd(o->bytes, o->size);
		return *ret_fd < 0 ? -EIO : 0;
	}
	return -ENOENT;
}

static int retain(struct folder_lab *lab, const struct ov_retain *retain, int fd)
{
	struct object_hash *hashes = calloc(retain->count + 1, sizeof(*hashes));
	int r = !hashes ? -ENOMEM : pread_full(fd, hashes, retain->count * sizeof(*hashes), 0);

	for (size_t i = 0; r == 0 && i < lab->object_count; i++) {
		struct folder_lab_object *o = &lab->objects[i];
		bool named = o->seq > retain->upto_seq ||
			     memcmp(&o->job, &retain->job, sizeof(o->job)) != 0;

		for (size_t k = 0; k < retain->count && !named; k++)
			named = !memcmp(&o->hash, &hashes[k], sizeof(o->hash));
		if (!named) {
			free(o->bytes);
			o->bytes = NULL;
		}
	}
	free(hashes);
	return r;
}

static int cas_with_faults(struct folder_lab *lab, struct job_value *value, bool *ret_lost)
{
	enum folder_lab_fault fault = lab->cas_faults ? lab->cas_fault : FAULT_NONE;
	int r;

	lab->cas_faults -= fault != FAULT_NONE;
	r = fault == FAULT_IDLE ? 0 : cas(lab, value);
	*ret_lost = fault == FAULT_LOST;
	return fault == FAULT_NONE || r < 0 ? r : -EIO;
}

static int answer(struct folder_lab *lab, struct ov_msg *msg, int fd, int *ret_fd, bool *ret_lost)
{
	const struct job_value *value;

	switch (msg->op) {
	case OV_JOB_CREATE:
		return create(lab, &msg->u.value);
	case OV_JOB_CAS:
		return cas_with_faults(lab, &msg->u.value, ret_lost);
	case OV_JOB_GET:
		value = register_of(lab, &msg->u.job.job);
		if (value)
			msg->u.value = *value;
		return value ? 0 : -ENOENT;
	case OV_JOB_HOLD:
	case OV_JOB_DROP:
	case OV_REPORT:
		return 0;
	case OV_JOB_LIST:
		msg->u.count = lab->register_count;
		*ret_fd =
			fill_memfd(lab->registers, lab->register_count * sizeof(lab->registers[0]));
		return 0;
	case OV_MEMBERS:
		msg->u.count = ARRAY_SIZE(lab->members);
		*ret_fd = fill_memfd(lab->members, sizeof(lab->members));
		return 0;
	case OV_OBJECT_PUT:
		return put(lab, &msg->u.object, fd);
	case OV_OBJECT_GET:
		return get(lab, &msg->u.object, ret_fd);
	case OV_OBJECT_RETAIN:
		return retain(lab, &msg->u.retain, fd);
	default:
		return -EINVAL;
	}
}

static void close_channel(struct folder_lab *lab, size_t i)
{
	close(lab->channels[i]);
	lab->channels[i] = lab->channels[--lab->channel_count];
}

/* False: nothing more comes from there. */
static bool serve_channel(struct folder_lab *lab, size_t i)
{
	_cleanup_close_ int fd = -1;
	_cleanup_close_ int out = -1;
	bool lost = false;
	struct ov_msg msg;

	if (recv_with_fd(lab->channels[i], &msg, sizeof(msg), &fd, 0) != (ssize_t)sizeof(msg))
		return false;
	if (msg.op == OV_CHANNEL) {
		if (fd >= 0 && lab->channel_count < FOLDER_LAB_CHANNELS)
			lab->channels[lab->channel_count++] = take_fd(fd);
		return true;
	}
	msg.status = answer(lab, &msg, fd, &out, &lost);
	return !lost && send_with_fd(lab->channels[i], &msg, sizeof(msg), out) >= 0;
}

/* Ends with the main channel. */
static void *network_half(void *ctx)
{
	struct folder_lab *lab = ctx;

	for (;;) {
		struct pollfd fds[FOLDER_LAB_CHANNELS];
		size_t count = lab->channel_count;

		for (size_t i = 0; i < count; i++)
			fds[i] = (struct pollfd){ .fd = lab->channels[i], .events = POLLIN };
		if (poll(fds, count, -1) < 0)
			continue;
		/* From the end: closing one moves the last one into its place. */
		for (size_t i = count; i > 0; i--) {
			if (!fds[i - 1].revents || serve_channel(lab, i - 1))
				continue;
			if (i == 1)
				return NULL;
			close_channel(lab, i - 1);
		}
	}
}

/* ---- decampd ---- */

static int commit_and_lose(void *agent, const struct api_call *call, struct api_reply *reply)
{
	int r = verb_folder_commit(agent, call, reply);

	if (r < 0 || !current->lose_commits)
		return r;
	current->lose_commits--;
	json_object_put(reply->json);
	reply->json = NULL;
	return api_error(reply, -EIO, "failed", "a test", "", "this answer is lost");
}

static const struct api_route routes[] = {
	{ "folder-create", false, verb_folder_create },
	{ "folder-list", false, verb_folder_list },
	{ "folder-delete", false, verb_folder_delete },
	{ "folder-begin", false, verb_folder_begin },
	{ "folder-write", false, verb_folder_write },
	{ "folder-add", false, verb_folder_add },
	{ "folder-commit", false, commit_and_lose },
	{ "folder-made", false, verb_folder_made },
	{ "snapshot", false, verb_snapshot },
	{ "read", false, verb_read },
	{ 0 },
};

static void start_network(struct folder_lab *lab)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	lab->a->main_channel = pair[0];
	lab->channels[0] = pair[1];
	lab->channel_count = 1;
	assert_int_equal(pthread_create(&lab->thread, NULL, network_half, lab), 0);
}

void folder_lab_start(struct folder_lab *lab)
{
	struct agent *a = calloc(1, sizeof(*a));

	assert_non_null(a);
	lab->a = a;
	a->cluster = lab->cluster;
	a->self = cluster_card(lab->cluster)->id;
	strcpy(a->config.state_dir, lab->dir);
	a->config.copies = 2;
	a->config.pack_cpu_percent = 100;
	a->config.folder_bytes = UINT64_C(1) << 30;
	pthread_mutex_init(&a->lock, NULL);
	pthread_mutex_init(&a->folders_lock, NULL);
	pthread_mutex_init(&a->readings_lock, NULL);
	start_network(lab);
	assert_int_equal(folders_start(a), 0);
	assert_int_equal(api_start(lab->socket, routes, a, &lab->api), 0);
}

static bool is_at_work(struct agent *a)
{
	bool at_work;

	pthread_mutex_lock(&a->folders_lock);
	at_work = a->folders_at_work;
	pthread_mutex_unlock(&a->folders_lock);
	return at_work;
}

void folder_lab_die(struct folder_lab *lab)
{
	struct folder *folders[FOLDERS_MAX];
	struct agent *a = lab->a;
	size_t count;

	api_stop(lab->api);
	a->stopping = true;
	while (is_at_work(a))
		usleep(1000);
	usleep(1000); /* of its thread the last instructions */
	for (int i = 0; i < READINGS_MAX; i++)
		reading_unref(a, a->readings[i]);
	count = folders_all(a, folders);
	for (size_t i = 0; i < count; i++) {
		folder_unref(a, folders[i]);
		folder_unref(a, folders[i]); /* the table's */
	}
	shutdown(a->main_channel, SHUT_RDWR);
	assert_int_equal(pthread_join(lab->thread, NULL), 0);
	while (lab->channel_count > 0)
		close(lab->channels[--lab->channel_count]);
	close(a->main_channel);
	free(a);
	lab->a = NULL;
}

int folder_lab_setup(void **state)
{
	struct folder_lab *lab = calloc(1, sizeof(*lab));
	char path[128];

	assert_non_null(lab);
	strcpy(lab->dir, "/tmp/test-folder-XXXXXX");
	assert_non_null(mkdtemp(lab->dir));
	snprintf(path, sizeof(path), "%s/folders", lab->dir);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(lab->socket, sizeof(lab->socket), "%s/control.sock", lab->dir);
	assert_int_equal(cluster_init(lab->dir, "host1", "r1", "10.0.0.1", 7411, &lab->cluster), 0);
	for (size_t i = 0; i < ARRAY_SIZE(lab->members); i++) {
		struct member_info *m = &lab->members[i];

		if (i == 0)
			m->id = cluster_card(lab->cluster)->id;
		else
			memset(&m->id, (int)i, sizeof(m->id));
		m->state = MEMBER_ALIVE;
		m->is_self = i == 0;
		m->report.flags = MEMBER_STORES_PACKS;
		snprintf(m->hostname, sizeof(m->hostname), "host%zu", i + 1);
	}
	current = lab;
	*state = lab;
	folder_lab_start(lab);
	return 0;
}

int folder_lab_teardown(void **state)
{
	struct folder_lab *lab = *state;

	if (lab->a)
		folder_lab_die(lab);
	for (size_t i = 0; i < lab->object_count; i++)
		free(lab->objects[i].bytes);
	cluster_destroy(lab->cluster);
	assert_int_equal(remove_tree_at(AT_FDCWD, lab->dir), 0);
	free(lab);
	return 0;
}

/* ---- folders ---- */

const struct job_value *folder_lab_register(const struct folder_lab *lab, const struct job_id *id)
{
	return register_of((struct folder_lab *)lab, id);
}

struct folder *folder_lab_find(struct folder_lab *lab, const struct job_id *id)
{
	struct folder *f = folder_find(lab->a, id);

	assert_non_null(f);
	pthread_mutex_lock(&f->lock);
	assert_int_equal(folder_resume(f), 0);
	pthread_mutex_unlock(&f->lock);
	return f;
}

struct folder *folder_lab_make(struct folder_lab *lab, uid_t uid, const char *name, uint32_t keep)
{
	struct json_object *body = json_object_new_object(), *json, *id;
	struct job_id job;

	json_object_object_add(body, "name", json_object_new_string(name));
	if (keep)
		json_object_object_add(body, "keep", json_object_new_int64(keep));
	assert_int_equal(folder_lab_ask(lab, uid, "folder-create", body, &json), 0);
	assert_true(json_object_object_get_ex(json, "folder", &id));
	assert_int_equal(hex_decode(json_object_get_string(id), &job, sizeof(job)), 0);
	json_object_put(json);
	return folder_lab_find(lab, &job);
}

struct job_value *folder_lab_foreign(struct folder_lab *lab, size_t member, uid_t uid,
				     const char *name, uint64_t made_ms)
{
	struct job_value *value = &lab->registers[lab->register_count++];
	struct job_spec spec = { .uid = uid, .cwd = "/", .folder_keep = 8, .every_s = 30 };
	struct secret_key key = { .b = { 7 } };

	assert_in_range(lab->register_count, 1, FOLDER_LAB_REGISTERS);
	snprintf(spec.name, sizeof(spec.name), "%s", name);
	*value = (struct job_value){ .state = JOB_STATE_HELD,
				     .fence = FENCE_COMMIT,
				     .submit_wall_ms = made_ms,
				     .token = { .counter = 1 } };
	value->owner = value->home = lab->members[member].id;
	assert_int_equal(random_bytes(&value->job, sizeof(value->job)), 0);
	assert_int_equal(job_seal_value(lab->a, &spec, &key, value), 0);
	return value;
}

int folder_lab_ask(struct folder_lab *lab, uid_t uid, const char *verb,
		   struct json_object *body_take, struct json_object **ret_json)
{
	struct api_call call = { .uid = uid, .body = body_take };
	struct api_reply reply = { .stream_fd = -1 };
	const struct api_route *route = routes;
	int r;

	while (strcmp(route->verb, verb) != 0)
		route++;
	if (!call.body)
		call.body = json_object_new_object();
	r = route->fn(lab->a, &call, &reply);
	json_object_put(call.body);
	*ret_json = reply.json;
	return r;
}

const char *folder_lab_code(struct json_object *json_take)
{
	static char code[64];
	struct json_object *error, *text;

	code[0] = '\0';
	if (json_object_object_get_ex(json_take, "error", &error) &&
	    json_object_object_get_ex(error, "code", &text))
		snprintf(code, sizeof(code), "%s", json_object_get_string(text));
	json_object_put(json_take);
	return code;
}
