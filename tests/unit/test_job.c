// SPDX-License-Identifier: LGPL-2.1-or-later
/* What of a job needs neither a keeper nor a cluster: seals, orders, intervals, descriptions. */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/job/job.h"
#include "agent/job/verbs.h"
#include "agent/util/io.h"

enum { ANSWER_MS = 60000, CALLER = 4321 };

struct lab {
	char dir[64];
	struct agent *a;
	int overlay; /* the other half's end of the main channel */
};

static int setup(void **state)
{
	struct lab *lab = calloc(1, sizeof(*lab));
	struct cluster *cluster;
	int pair[2];

	strcpy(lab->dir, "/tmp/test-job-XXXXXX");
	assert_non_null(mkdtemp(lab->dir));
	assert_int_equal(cluster_init(lab->dir, "lab01", "r1", "10.0.0.1", 7411, &cluster), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	lab->a = calloc(1, sizeof(*lab->a));
	lab->a->cluster = cluster;
	lab->a->self = cluster_card(cluster)->id;
	lab->a->main_channel = pair[0];
	lab->overlay = pair[1];
	snprintf(lab->a->config.state_dir, sizeof(lab->a->config.state_dir), "%s", lab->dir);
	pthread_mutex_init(&lab->a->lock, NULL);
	*state = lab;
	return 0;
}

static int teardown(void **state)
{
	struct lab *lab = *state;

	/* The thread that carried out an order outlives its answer by a moment; decampd never frees
	 * its agent. */
	while (lab->a->order_threads)
		usleep(1000);
	close(lab->overlay);
	close(lab->a->main_channel);
	cluster_destroy(lab->a->cluster);
	free(lab->a);
	assert_int_equal(remove_tree_at(AT_FDCWD, lab->dir), 0);
	free(lab);
	return 0;
}

static const char spec_text[] = "{\"name\":\"sim\",\"user\":\"alice\",\"cwd\":\"/home/alice\","
				"\"command\":\"./sim 1\",\"uid\":1000,\"gid\":100,\"every_s\":7,"
				"\"argv\":[\"./sim\",\"1\"],\"stdout\":\"/home/alice/sim.out\"}";

static void make_spec(struct job_spec *ret_spec)
{
	assert_int_equal(job_spec_from_json(json_tokener_parse(spec_text), ret_spec), 0);
}

static void test_seal(void **state)
{
	struct lab *lab = *state;
	struct job_value value = { .job.b = { 1, 2, 3 } };
	struct secret_key key = { { 9, 8, 7 } };
	struct job_seal seal;
	struct job_spec spec;

	make_spec(&spec);
	assert_int_equal(job_seal_value(lab->a, &spec, &key, &value), 0);
	assert_int_equal(job_unseal_value(lab->a, &value, &seal), 0);
	assert_string_equal(seal.name, "sim");
	assert_string_equal(seal.cwd, "/home/alice");
	assert_int_equal(seal.uid, 1000);
	assert_int_equal(seal.every_s, 7);
	assert_memory_equal(seal.key, key.b, sizeof(key.b));
	for (uint32_t at = 0; at < value.sealed_size; at += 7) {
		value.sealed[at] ^= 1;
		assert_int_equal(job_unseal_value(lab->a, &value, &seal), -EBADMSG);
		value.sealed[at] ^= 1;
	}
	value.job.b[0]++; /* a seal belongs to one job */
	assert_int_equal(job_unseal_value(lab->a, &value, &seal), -EBADMSG);
	value.job.b[0]--;
	value.sealed_size--;
	assert_int_equal(job_unseal_value(lab->a, &value, &seal), -EBADMSG);
	job_spec_deinit(&spec);
}

static void test_spec_refused(void **state)
{
	static const char *const bad[] = {
		"[]",
		"{}",
		"{\"name\":7,\"user\":\"u\",\"cwd\":\"/\",\"command\":\"c\"}",
		"{\"name\":\"n\",\"user\":\"u\",\"cwd\":null,\"command\":\"c\"}",
		"{\"name\":\"n\",\"user\":\"a name that is longer than any user's\",\"cwd\":\"/\","
		"\"command\":\"c\"}",
	};
	struct job_spec spec;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_true(job_spec_from_json(json_tokener_parse(bad[i]), &spec) < 0);
}

static void test_value_sane(void **state)
{
	struct job_value value = { .state = JOB_STATE_HELD, .history_count = OV_HISTORY_MAX };

	(void)state;
	assert_true(job_value_sane(&value));
	value.history[OV_HISTORY_MAX - 1].holder_count = OV_HOLDERS_MAX + 1;
	assert_false(job_value_sane(&value));
	value.history_count--;
	assert_true(job_value_sane(&value));
	value.avoid_count = OV_AVOID_MAX + 1;
	assert_false(job_value_sane(&value));
	value = (struct job_value){ .state = JOB_STATE_KILLED + 1 };
	assert_false(job_value_sane(&value));
	value.state = 0;
	assert_false(job_value_sane(&value));
	value = (struct job_value){ .state = JOB_STATE_IDLE, .sealed_size = OV_SEALED_MAX + 1 };
	assert_false(job_value_sane(&value));
	value = (struct job_value){ .state = JOB_STATE_IDLE, .needs_size = OV_NEEDS_MAX + 1 };
	assert_false(job_value_sane(&value));
}

/* Jobs that ran when decampd was upgraded are taken up again. */
static void test_old_record(void **state)
{
	static struct job_value value = { .state = JOB_STATE_HELD, .sealed = { 7 }, .arch = 1 };
	static char hex[2 * sizeof(value) + 1];
	struct job_value back;

	(void)state;
	hex_encode(&value, sizeof(value), hex);
	assert_int_equal(job_value_from_hex(hex, &back), 0);
	assert_memory_equal(&back, &value, sizeof(value));
	hex[2 * offsetof(struct job_value, arch)] = '\0';
	assert_int_equal(job_value_from_hex(hex, &back), 0);
	value.arch = 0;
	assert_memory_equal(&back, &value, sizeof(value));
	hex[2 * offsetof(struct job_value, arch) - 2] = '\0';
	assert_true(job_value_from_hex(hex, &back) < 0);
	assert_true(job_value_from_hex(NULL, &back) < 0);
}

static void test_interval(void **state)
{
	struct lab *lab = *state;
	struct job *job = calloc(1, sizeof(*job));

	job->agent = lab->a;
	assert_int_equal(job_interval_s(job), JOB_INTERVAL_MIN_S);
	job->stat_count = 1;
	job->stats[0] = (struct ckpt_stat){ .pause_us = 20000, .total_us = 300000 };
	assert_in_range(job_interval_s(job), 50, 60); /* sqrt(2 * 0.05 s * 8 h) */
	job->stats[0] = (struct ckpt_stat){ .total_us = UINT64_C(3600) * 1000000 };
	assert_int_equal(job_interval_s(job), JOB_INTERVAL_MAX_S);
	job->stats[0] = (struct ckpt_stat){ .pause_us = 1 };
	assert_int_equal(job_interval_s(job), JOB_INTERVAL_MIN_S);
	lab->a->config.every_s = 30;
	assert_int_equal(job_interval_s(job), 30);
	job->spec.every_s = 2;
	assert_int_equal(job_interval_s(job), 2);
	free(job);
}

static int64_t member_int(struct json_object *json, const char *key)
{
	struct json_object *value;

	assert_true(json_object_object_get_ex(json, key, &value));
	return json_object_get_int64(value);
}

static void test_describe(void **state)
{
	struct lab *lab = *state;
	struct job_value value = { .state = JOB_STATE_DONE,
				   .history_count = 1,
				   .history = { { .seq = 64, .wall_ms = UINT64_MAX / 4 } } };
	struct job_seal seal = { .uid = 1000, .name = "sim" };
	struct manifest_head *head = calloc(1, sizeof(*head));
	struct json_object *json, *detail, *list;

	value.exit_status = 9; /* SIGKILL */
	json = describe_summary(lab->a, &value, &seal, NULL, NULL, 0);
	assert_int_equal(member_int(json, "exit_code"), 128 + 9);
	assert_int_equal(member_int(json, "ckpt_age_ms"), 0); /* a clock that runs ahead */
	head->spec_json = spec_text;
	head->stat_count = MANIFEST_STATS_MAX;
	for (uint32_t i = 0; i < MANIFEST_STATS_MAX; i++)
		head->stats[i] = (struct ckpt_stat){ .seq = i + 1, .pause_us = 1000 - i };
	describe_detail(lab->a, json, &value, NULL, head, NULL, 0);
	assert_true(json_object_object_get_ex(json, "detail", &detail));
	assert_int_equal(member_int(detail, "pause_us_max"), 1000);
	assert_int_equal(member_int(detail, "checkpoints"), MANIFEST_STATS_MAX);
	assert_int_equal(member_int(detail, "moves"), 0);
	json_object_put(json);
	json = describe_history(&value, head->stats, head->stat_count, NULL, 0);
	assert_true(json_object_object_get_ex(json, "checkpoints", &list));
	assert_int_equal(json_object_array_length(list), MANIFEST_STATS_MAX);
	assert_true(json_object_get_boolean(
		json_object_object_get(json_object_array_get_idx(list, 63), "restorable")));
	assert_false(json_object_get_boolean(
		json_object_object_get(json_object_array_get_idx(list, 0), "restorable")));
	json_object_put(json);
	free(head);
}

/* Where the newest manifest is not read yet there are no figures: none at all, not zeroes. */
static void test_describe_unread(void **state)
{
	struct lab *lab = *state;
	struct job_value value = { .state = JOB_STATE_DONE, .history_count = 1 };
	struct manifest_head *head = calloc(1, sizeof(*head));
	struct secret_key key = { 0 };
	struct job *job = job_new(lab->a, &value.job, &value, &key);
	struct json_object *json, *detail;

	make_spec(&job->spec);
	head->spec_json = spec_text;
	head->move_count = 2;
	for (int read = 0; read < 2; read++) {
		json = json_object_new_object();
		if (read)
			assert_int_equal(job_learn_head(job, head), 0);
		describe_detail(lab->a, json, &value, job, NULL, NULL, 0);
		assert_true(json_object_object_get_ex(json, "detail", &detail));
		assert_int_equal(json_object_object_get_ex(detail, "moves", NULL), read);
		assert_int_equal(json_object_object_get_ex(detail, "checkpoints", NULL), read);
		if (read)
			assert_int_equal(member_int(detail, "moves"), 2);
		json_object_put(json);
	}
	job_unref(job);
	free(head);
}

/* One order from a host to itself, with the test as the overlay half between. */
struct order_case {
	struct lab *lab;
	int result;
	struct api_reply reply;
};

static void *send_order(void *arg)
{
	struct order_case *c = arg;
	struct json_object *body = json_object_new_object();
	struct api_call call = { .uid = CALLER, .gid = CALLER, .body = body };

	json_object_object_add(body, "job", json_object_new_string("nothing"));
	c->reply.stream_fd = -1;
	c->result = order_forward(c->lab->a, &c->lab->a->self, "kill", &call, ANSWER_MS, &c->reply);
	json_object_put(body);
	return NULL;
}

/* The next message that is none about channels; a new channel's end goes to *ret_channel. */
static void receive(int sock, uint32_t op, struct ov_msg *ret_msg, int *ret_channel)
{
	int fd = -1;

	do {
		if (fd >= 0)
			close(fd);
		assert_int_equal(recv_with_fd(sock, ret_msg, sizeof(*ret_msg), &fd, ANSWER_MS),
				 sizeof(*ret_msg));
	} while (ret_msg->op == OV_CHANNEL && op != OV_CHANNEL);
	assert_int_equal(ret_msg->op, op);
	if (ret_channel)
		*ret_channel = fd;
	else if (fd >= 0)
		close(fd);
}

/* Lets the agent carry an order out; what came of it. */
static int carry_out(struct lab *lab, const struct ov_order *order, struct ov_msg *ret_reply)
{
	struct ov_msg event = { .op = OV_EV_ORDER, .u.order = *order };
	char text[OV_ORDER_MAX + 1] = "";
	struct json_object *answer;
	int result;

	event.u.order.call_id = 77;
	order_received(lab->a, &event);
	receive(lab->overlay, OV_ORDER_REPLY, ret_reply, NULL);
	assert_int_equal(ret_reply->u.order.call_id, 77);
	assert_int_equal(ret_reply->status, 0);
	assert_int_equal(key_open(cluster_worker_key(lab->a->cluster), "decamp answer v1",
				  cluster_id(lab->a->cluster), 16, ret_reply->u.order.bytes,
				  ret_reply->u.order.size, text),
			 0);
	answer = json_tokener_parse(text);
	result = (int)member_int(answer, "result");
	json_object_put(answer);
	return result;
}

static void test_order(void **state)
{
	struct lab *lab = *state;
	struct order_case c = { .lab = lab };
	struct ov_msg sent, reply, ignored;
	struct json_object *error;
	pthread_t thread;
	int channel;

	assert_int_equal(pthread_create(&thread, NULL, send_order, &c), 0);
	receive(lab->overlay, OV_CHANNEL, &ignored, &channel);
	receive(channel, OV_ORDER_CALL, &sent, NULL);

	/* Not for another host, not after a flipped bit; neither uses it up. */
	lab->a->self.b[0] ^= 1;
	assert_int_equal(carry_out(lab, &sent.u.order, &reply), -EPERM);
	lab->a->self.b[0] ^= 1;
	sent.u.order.bytes[40] ^= 1;
	assert_int_equal(carry_out(lab, &sent.u.order, &reply), -EBADMSG);
	sent.u.order.bytes[40] ^= 1;
	sent.u.order.size = SEAL_OVERHEAD - 1;
	assert_int_equal(carry_out(lab, &sent.u.order, &reply), -EBADMSG);
	pthread_mutex_lock(&lab->a->lock);
	assert_int_equal(lab->a->order_nonce_next, 0);
	pthread_mutex_unlock(&lab->a->lock);
	reply.op = OV_ORDER_CALL;
	reply.status = -EAGAIN;
	assert_int_equal(send_with_fd(channel, &reply, sizeof(reply), -1), 0);
	pthread_join(thread, NULL);
	assert_int_equal(c.result, -EHOSTUNREACH);
	close(channel);

	/* Carried out once, and answered; a second time it is refused. */
	assert_int_equal(pthread_create(&thread, NULL, send_order, &c), 0);
	receive(lab->overlay, OV_CHANNEL, &ignored, &channel);
	receive(channel, OV_ORDER_CALL, &sent, NULL);
	assert_int_equal(carry_out(lab, &sent.u.order, &reply), -ENOENT);
	assert_int_equal(carry_out(lab, &sent.u.order, &ignored), -EPERM);
	reply.op = OV_ORDER_CALL;
	assert_int_equal(send_with_fd(channel, &reply, sizeof(reply), -1), 0);
	pthread_join(thread, NULL);
	assert_int_equal(c.result, -ENOENT);
	assert_true(json_object_object_get_ex(c.reply.json, "error", &error));
	json_object_put(c.reply.json);
	close(channel);
}

static void *ask_history(void *arg)
{
	struct order_case *c = arg;
	struct json_object *body = json_object_new_object();
	struct api_call call = { .body = body };

	json_object_object_add(body, "job", json_object_new_string("sim"));
	c->reply.stream_fd = -1;
	c->result = verb_history(c->lab->a, &call, &c->reply);
	json_object_put(body);
	return NULL;
}

/* A row here is no answer before its past is read: the manifest is asked for. */
static void test_history_unread(void **state)
{
	struct lab *lab = *state;
	struct order_case c = { .lab = lab };
	struct job_value value = { .job.b = { 5 },
				   .state = JOB_STATE_DONE,
				   .history_count = 1,
				   .history = { { .seq = 3, .manifest_size = 4096 } } };
	struct secret_key key = { { 9, 8, 7 } };
	struct json_object *error;
	struct job_spec spec;
	struct ov_msg msg;
	pthread_t thread;
	int channel;

	make_spec(&spec);
	assert_int_equal(job_seal_value(lab->a, &spec, &key, &value), 0);
	lab->a->jobs[0] = job_new(lab->a, &value.job, &value, &key);
	lab->a->jobs[0]->spec = spec;
	assert_int_equal(pthread_create(&thread, NULL, ask_history, &c), 0);
	receive(lab->overlay, OV_CHANNEL, &msg, &channel);
	receive(channel, OV_MEMBERS, &msg, NULL);
	msg = (struct ov_msg){ .op = OV_MEMBERS };
	assert_int_equal(send_with_fd(channel, &msg, sizeof(msg), -1), 0);
	receive(channel, OV_OBJECT_GET, &msg, NULL);
	msg.status = -EIO;
	assert_int_equal(send_with_fd(channel, &msg, sizeof(msg), -1), 0);
	pthread_join(thread, NULL);
	assert_int_equal(c.result, -EIO);
	assert_true(json_object_object_get_ex(c.reply.json, "error", &error));
	assert_string_equal(json_object_get_string(json_object_object_get(error, "code")),
			    "unreadable");
	json_object_put(c.reply.json);
	close(channel);
	job_unref(lab->a->jobs[0]);
}

/* A register value whose seal is not this cluster's: no job comes of it, and one line of log. */
static void test_bad_seal_refused(void **state)
{
	struct lab *lab = *state;
	struct ov_msg msg = { .op = OV_EV_GRANT };
	struct job_value *value = &msg.u.value;
	struct secret_key key = { { 9, 8, 7 } };
	int log = memfd_create("log", MFD_CLOEXEC), stderr_fd = dup(STDERR_FILENO);
	struct job_spec spec;
	char text[4096] = { 0 };

	make_spec(&spec);
	value->job.b[0] = 5;
	value->state = JOB_STATE_HELD;
	value->owner = value->home = lab->a->self;
	assert_int_equal(job_seal_value(lab->a, &spec, &key, value), 0);
	value->sealed[30] ^= 1;
	assert_true(log >= 0 && stderr_fd >= 0);
	assert_int_equal(dup2(log, STDERR_FILENO), STDERR_FILENO);
	for (uint32_t i = 0; i < 500; i++)
		agent_overlay_event(lab->a, &msg);
	msg.op = OV_EV_DONE;
	value->state = JOB_STATE_DONE;
	for (uint32_t i = 0; i < 500; i++)
		agent_overlay_event(lab->a, &msg);
	assert_int_equal(dup2(stderr_fd, STDERR_FILENO), STDERR_FILENO);
	assert_true(pread(log, text, sizeof(text) - 1, 0) > 0);
	assert_non_null(strstr(text, "cannot be taken"));
	assert_ptr_equal(strchr(text, '\n'), strrchr(text, '\n'));
	assert_int_equal(lab->a->refused_values, 1000);
	for (uint32_t i = 0; i < JOB_LOCAL_MAX; i++)
		assert_null(lab->a->jobs[i]);
	close(log);
	close(stderr_fd);
	job_spec_deinit(&spec);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_seal, setup, teardown),
		cmocka_unit_test(test_spec_refused),
		cmocka_unit_test(test_value_sane),
		cmocka_unit_test(test_old_record),
		cmocka_unit_test_setup_teardown(test_interval, setup, teardown),
		cmocka_unit_test_setup_teardown(test_describe, setup, teardown),
		cmocka_unit_test_setup_teardown(test_describe_unread, setup, teardown),
		cmocka_unit_test_setup_teardown(test_order, setup, teardown),
		cmocka_unit_test_setup_teardown(test_history_unread, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_seal_refused, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
