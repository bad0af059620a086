// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A real server on a socket in a temporary folder, asked by hand-made HTTP.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "agent/api/body.h"
#include "agent/api/server.h"
#include "agent/util/io.h"

enum { HOLD_MS = 60000, PATIENCE_MS = 60000 };

struct fixture {
	char dir[64];
	char path[96];
	struct api *api;
	pthread_mutex_t lock;
	unsigned int begun; /* sleep only */
	bool released;	    /* what is held */
	unsigned int calls;
	struct api_call last; /* the body is not kept */
};

/* ---- handlers ---- */

static int do_echo(void *ctx, const struct api_call *call, struct api_reply *reply)
{
	struct fixture *f = ctx;

	pthread_mutex_lock(&f->lock);
	f->calls++;
	f->last = *call;
	pthread_mutex_unlock(&f->lock);
	reply->json = json_object_get(call->body);
	return 0;
}

static int do_nothing(void *ctx, const struct api_call *call, struct api_reply *reply)
{
	(void)ctx;
	(void)call;
	(void)reply;
	return 0;
}

static int do_fail(void *ctx, const struct api_call *call, struct api_reply *reply)
{
	int64_t error;

	(void)ctx;
	(void)reply;
	assert_int_equal(api_get_int(call, "errno", 1, 200, EIO, &error), 0);
	return -(int)error;
}

static int do_explain(void *ctx, const struct api_call *call, struct api_reply *reply)
{
	(void)ctx;
	(void)call;
	return api_error(reply, -ENOENT, "no-such-job", "sim1", "Look at \"decamp ps -a\".",
			 "no job of yours is called \"%s\"", "sim1");
}

static int do_stream(void *ctx, const struct api_call *call, struct api_reply *reply)
{
	int64_t offset, size;
	int fd;

	(void)ctx;
	assert_int_equal(api_get_int(call, "offset", 0, INT64_MAX, 0, &offset), 0);
	assert_int_equal(api_get_int(call, "size", 0, INT64_MAX, 10, &size), 0);
	fd = memfd_create("stream", MFD_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, "0123456789", 10), 0);
	reply->stream_fd = fd;
	reply->stream_offset = (uint64_t)offset;
	reply->stream_size = (uint64_t)size;
	reply->state = "running";
	return 0;
}

static int do_sleep(void *ctx, const struct api_call *call, struct api_reply *reply)
{
	int64_t ms;
	struct timespec pause;

	assert_int_equal(api_get_int(call, "ms", 0, 10000, 0, &ms), 0);
	__atomic_add_fetch(&((struct fixture *)ctx)->begun, 1, __ATOMIC_RELAXED);
	pause = (struct timespec){ ms / 1000, ms % 1000 * 1000000 };
	nanosleep(&pause, NULL);
	return do_echo(ctx, call, reply);
}

/* Until the test lets it go, or has forgotten it. */
static int do_hold(void *ctx, const struct api_call *call, struct api_reply *reply)
{
	const struct fixture *f = ctx;

	for (int ms = 0; ms < HOLD_MS && !__atomic_load_n(&f->released, __ATOMIC_RELAXED); ms++)
		usleep(1000);
	return do_echo(ctx, call, reply);
}

static const struct api_route routes[] = {
	{ "echo", false, do_echo },
	{ "nothing", false, do_nothing },
	{ "fail", false, do_fail },
	{ "explain", false, do_explain },
	{ "stream", false, do_stream },
	{ "sleep", false, do_sleep },
	{ "only-root", true, do_nothing },
	{ "hold", false, do_hold },
	{ NULL, false, NULL },
};

/* ---- client ---- */

static int dial(const struct fixture *f)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	strcpy(addr.sun_path, f->path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

/* Sends without a signal when the server has hung up. */
static void send_text(int fd, const char *text, size_t size)
{
	while (size > 0) {
		ssize_t n = send(fd, text, size, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		text += n;
		size -= (size_t)n;
	}
}

static void send_request(int fd, const char *method, const char *path, const char *body,
			 size_t size)
{
	char head[512];
	int n = snprintf(head, sizeof(head),
			 "%s %s HTTP/1.1\r\nHost: decamp\r\nContent-Length: %zu\r\n"
			 "Connection: close\r\n\r\n",
			 method, path, size);

	send_text(fd, head, (size_t)n);
	send_text(fd, body, size);
}

struct answer {
	int status; /* 0: closed without an answer */
	char text[8192];
	const char *body;
};

static void receive(int fd, struct answer *answer)
{
	size_t have = 0;
	const char *split;

	memset(answer, 0, sizeof(*answer));
	answer->body = "";
	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		ssize_t n;

		if (poll(&p, 1, PATIENCE_MS) <= 0)
			break;
		n = recv(fd, answer->text + have, sizeof(answer->text) - 1 - have, 0);
		if (n <= 0)
			break;
		have += (size_t)n;
	}
	close(fd);
	if (sscanf(answer->text, "HTTP/1.1 %d", &answer->status) != 1)
		answer->status = 0;
	split = strstr(answer->text, "\r\n\r\n");
	if (split)
		answer->body = split + 4;
}

static void ask(const struct fixture *f, const char *verb, const char *body, struct answer *answer)
{
	char path[128];
	int fd = dial(f);

	snprintf(path, sizeof(path), "/v1/%s", verb);
	send_request(fd, "POST", path, body, strlen(body));
	receive(fd, answer);
}

static void assert_error(const struct answer *answer, int status, const char *code,
			 const char *object)
{
	static const char *const keys[] = { "object", "reason", "next", "code" };
	struct json_object *json = json_tokener_parse(answer->body), *error, *value;

	assert_int_equal(answer->status, status);
	assert_non_null(json);
	assert_true(json_object_object_get_ex(json, "error", &error));
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		assert_true(json_object_object_get_ex(error, keys[i], &value));
		assert_true(json_object_is_type(value, json_type_string));
	}
	assert_true(json_object_object_get_ex(error, "reason", &value));
	assert_true(strlen(json_object_get_string(value)) > 0);
	assert_true(json_object_object_get_ex(error, "code", &value));
	assert_string_equal(json_object_get_string(value), code);
	assert_true(json_object_object_get_ex(error, "object", &value));
	if (object)
		assert_string_equal(json_object_get_string(value), object);
	json_object_put(json);
}

/* ---- fixture ---- */

static const struct api_limits small = { .connections = 12,
					 .per_user = 3,
					 .per_user_hard = 5,
					 .idle_s = 1 };

static int setup_with(void **state, const struct api_limits *limits)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	pthread_mutex_init(&f->lock, NULL);
	strcpy(f->dir, "/tmp/decamp-test-api-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/control.sock", f->dir);
	if (limits)
		assert_int_equal(api_start_limited(f->path, routes, f, limits, &f->api), 0);
	else
		assert_int_equal(api_start(f->path, routes, f, &f->api), 0);
	*state = f;
	return 0;
}

static int setup(void **state)
{
	return setup_with(state, NULL);
}

static int setup_small(void **state)
{
	return setup_with(state, &small);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	api_stop(f->api);
	assert_int_equal(access(f->path, F_OK), -1);
	assert_int_equal(rmdir(f->dir), 0);
	pthread_mutex_destroy(&f->lock);
	free(f);
	return 0;
}

/* ---- tests ---- */

static void test_routing(void **state)
{
	struct fixture *f = *state;
	struct answer answer;

	ask(f, "echo", "{\"a\":[1,\"x\"]}", &answer);
	assert_int_equal(answer.status, 200);
	assert_string_equal(answer.body, "{\"a\":[1,\"x\"]}");
	assert_non_null(strstr(answer.text, "application/json"));
	ask(f, "nothing", "", &answer);
	assert_int_equal(answer.status, 200);
	assert_string_equal(answer.body, "{}");
	ask(f, "fly", "{}", &answer);
	assert_error(&answer, 404, "unknown-verb", "/v1/fly");
	ask(f, "echo/", "{}", &answer);
	assert_error(&answer, 404, "unknown-verb", NULL);
}

static void test_method(void **state)
{
	struct fixture *f = *state;
	static const char *const methods[] = { "GET", "PUT", "DELETE" };

	for (size_t i = 0; i < ARRAY_SIZE(methods); i++) {
		struct answer answer;
		int fd = dial(f);

		send_request(fd, methods[i], "/v1/echo", "", 0);
		receive(fd, &answer);
		assert_error(&answer, 405, "bad-method", NULL);
		assert_non_null(strstr(answer.text, "Allow: POST"));
	}
	assert_int_equal(f->calls, 0);
}

static void test_credentials(void **state)
{
	struct fixture *f = *state;
	struct answer answer;
	struct stat st;

	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0666);
	ask(f, "echo", "{}", &answer);
	assert_int_equal(f->last.uid, geteuid());
	assert_int_equal(f->last.gid, getegid());
	assert_int_equal(f->last.pid, getpid());

	ask(f, "only-root", "{}", &answer);
	if (geteuid() == 0)
		assert_int_equal(answer.status, 200);
	else
		assert_error(&answer, 403, "not-permitted", "only-root");
}

static void test_credentials_of_another_user(void **state)
{
	struct fixture *f = *state;
	struct answer answer;
	int r;

	if (geteuid() != 0)
		skip();
	assert_int_equal(chmod(f->dir, 0755), 0);
	assert_int_equal(seteuid(65534), 0);
	ask(f, "only-root", "{}", &answer);
	r = seteuid(0);
	assert_int_equal(r, 0);
	assert_error(&answer, 403, "not-permitted", "only-root");
}

static void test_bad_json(void **state)
{
	struct fixture *f = *state;
	static const char *const bodies[] = {
		"{",
		"[]",
		"7",
		"null",
		"{\"a\":1,}",
		"{\"a\":01}",
		"{} {}",
		"{}x",
		"{\"a\":\"\\u0000\"}",
		"{\"a\":[{\"b\":\"x\\u0000y\"}]}",
		"\"text",
		"{\"a\":[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}",
		"nonsense",
	};

	for (size_t i = 0; i < ARRAY_SIZE(bodies); i++) {
		struct answer answer;

		ask(f, "echo", bodies[i], &answer);
		if (answer.status != 400)
			print_error("accepted: %s\n", bodies[i]);
		assert_error(&answer, 400, "bad-request", "echo");
	}
	assert_int_equal(f->calls, 0);
}

static void test_body_limit(void **state)
{
	struct fixture *f = *state;
	size_t size = API_BODY_MAX + 1;
	struct answer answer;
	char *body = malloc(size);
	int fd;

	assert_non_null(body);
	memset(body, ' ', size);
	memcpy(body, "{}", 2);
	fd = dial(f);
	send_request(fd, "POST", "/v1/nothing", body, size - 1);
	receive(fd, &answer);
	assert_int_equal(answer.status, 200);
	fd = dial(f);
	send_request(fd, "POST", "/v1/nothing", body, size);
	receive(fd, &answer);
	assert_error(&answer, 413, "too-large", "nothing");
	free(body);
}

/* No Content-Length tells how much will come. */
static void test_body_limit_chunked(void **state)
{
	static const char head[] = "POST /v1/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
				   "Transfer-Encoding: chunked\r\n\r\n";
	struct fixture *f = *state;
	struct answer answer;
	char chunk[0x1000 + 8];
	int fd;

	memset(chunk, ' ', sizeof(chunk));
	memcpy(chunk, "1000\r\n", 6);
	memcpy(chunk + sizeof(chunk) - 2, "\r\n", 2);
	fd = dial(f);
	send_text(fd, head, strlen(head));
	for (int i = 0; i < API_BODY_MAX / 0x1000 + 1; i++)
		send_text(fd, chunk, sizeof(chunk));
	send_text(fd, "0\r\n\r\n", 5);
	receive(fd, &answer);
	assert_error(&answer, 413, "too-large", "echo");

	fd = dial(f);
	send_text(fd, head, strlen(head));
	for (int i = 0; i < 4 * API_BODY_MAX / 0x1000; i++)
		send_text(fd, chunk, sizeof(chunk));
	receive(fd, &answer);
	assert_int_equal(answer.status, 0);
	assert_int_equal(f->calls, 0);
}

static void test_errors(void **state)
{
	static const struct {
		int error, status;
		const char *code;
	} cases[] = {
		{ ENOENT, 404, "not-found" },	  { EPERM, 403, "not-permitted" },
		{ EACCES, 403, "not-permitted" }, { EINVAL, 400, "bad-request" },
		{ EBUSY, 409, "busy" },		  { ESTALE, 409, "stale" },
		{ ETIMEDOUT, 503, "timed-out" },  { EAGAIN, 503, "try-again" },
		{ EIO, 500, "failed" },		  { ENOSPC, 500, "failed" },
	};
	struct fixture *f = *state;
	struct answer answer;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char body[64];

		snprintf(body, sizeof(body), "{\"errno\":%d}", cases[i].error);
		ask(f, "fail", body, &answer);
		assert_error(&answer, cases[i].status, cases[i].code, "fail");
	}
	ask(f, "fail", "{\"job\":\"sim7\"}", &answer);
	assert_error(&answer, 500, "failed", "sim7");
	ask(f, "explain", "{}", &answer);
	assert_error(&answer, 404, "no-such-job", "sim1");
	assert_non_null(strstr(answer.body, "no job of yours is called \\\"sim1\\\""));
}

static void test_stream(void **state)
{
	struct fixture *f = *state;
	struct answer answer;

	ask(f, "stream", "{}", &answer);
	assert_int_equal(answer.status, 200);
	assert_string_equal(answer.body, "0123456789");
	assert_non_null(strstr(answer.text, "X-Decamp-Next: 10\r\n"));
	assert_non_null(strstr(answer.text, "X-Decamp-Size: 10\r\n"));
	assert_non_null(strstr(answer.text, "X-Decamp-State: running\r\n"));

	ask(f, "stream", "{\"offset\":4,\"size\":3}", &answer);
	assert_string_equal(answer.body, "456");
	assert_non_null(strstr(answer.text, "X-Decamp-Next: 7\r\n"));
	/* The file is shorter than the handler believed. */
	ask(f, "stream", "{\"offset\":8,\"size\":100}", &answer);
	assert_string_equal(answer.body, "89");
	assert_non_null(strstr(answer.text, "X-Decamp-Next: 10\r\n"));
	ask(f, "stream", "{\"offset\":99}", &answer);
	assert_int_equal(answer.status, 200);
	assert_string_equal(answer.body, "");
	assert_non_null(strstr(answer.text, "X-Decamp-Next: 99\r\n"));
}

static void test_too_many_connections(void **state)
{
	struct fixture *f = *state;
	struct answer answer;
	int held[3], fd;

	for (int i = 0; i < 3; i++) {
		held[i] = dial(f);
		send_request(held[i], "POST", "/v1/hold", "{}", 2);
	}
	ask(f, "echo", "{}", &answer);
	assert_error(&answer, 503, "too-many-connections", "decampd");
	/* Beyond the hard limit there is not even an answer. */
	fd = dial(f);
	int other = dial(f);
	ask(f, "echo", "{}", &answer);
	assert_int_equal(answer.status, 0);
	close(fd);
	close(other);
	__atomic_store_n(&f->released, true, __ATOMIC_RELAXED);
	for (int i = 0; i < 3; i++) {
		receive(held[i], &answer);
		assert_int_equal(answer.status, 200);
	}
	/* The places are free again, though the server may need a moment to notice. */
	for (int i = 0; i < 1500; i++) {
		ask(f, "echo", "{}", &answer);
		if (answer.status == 200)
			break;
		usleep(20000);
	}
	assert_int_equal(answer.status, 200);
}

static void test_silent_client_is_dropped(void **state)
{
	struct fixture *f = *state;
	struct answer answer;
	uint64_t start = now_boot_ns();
	int fd = dial(f);

	send_text(fd, "POST /v1/ec", 11);
	receive(fd, &answer);
	assert_int_equal(answer.status / 100 == 2, 0);
	/* By the server, not because nothing came for so long. */
	assert_true(now_boot_ns() - start < 10000000000ull);
}

static void test_long_handler_is_not_dropped(void **state)
{
	struct fixture *f = *state;
	struct answer answer;

	ask(f, "sleep", "{\"ms\":2600}", &answer);
	assert_int_equal(answer.status, 200);
}

static void test_client_goes_away(void **state)
{
	struct fixture *f = *state;
	struct answer answer;
	int fd = dial(f);

	send_text(fd, "POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"a\"", 60);
	close(fd);
	fd = dial(f);
	send_request(fd, "POST", "/v1/sleep", "{\"ms\":200}", 10);
	for (int i = 0; i < 3000 && !__atomic_load_n(&f->begun, __ATOMIC_RELAXED); i++)
		usleep(10000);
	close(fd);
	for (int i = 0; i < 3000 && !__atomic_load_n(&f->calls, __ATOMIC_RELAXED); i++)
		usleep(10000);
	ask(f, "nothing", "{}", &answer);
	assert_int_equal(answer.status, 200);
	/* The work of the second went on to its end. */
	assert_int_equal(f->calls, 1);
}

static void test_several_requests_on_one_connection(void **state)
{
	static const char text[] =
		"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
		"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\nConnection: close\r\n\r\n"
		"{\"b\":2}";
	struct fixture *f = *state;
	struct answer answer;
	int fd = dial(f);

	send_text(fd, text, strlen(text));
	receive(fd, &answer);
	assert_int_equal(answer.status, 200);
	assert_non_null(strstr(answer.body, "HTTP/1.1 200"));
	assert_non_null(strstr(answer.body, "{\"b\":2}"));
}

static void test_socket_path(void **state)
{
	struct fixture *f = *state;
	char path[160], too_long[200];
	struct api *api;
	int fd;

	/* The first server lives. */
	assert_int_equal(api_start(f->path, routes, f, &api), -EADDRINUSE);
	memset(too_long, 'x', sizeof(too_long) - 1);
	too_long[sizeof(too_long) - 1] = '\0';
	assert_int_equal(api_start(too_long, routes, f, &api), -ENAMETOOLONG);
	snprintf(path, sizeof(path), "%s/nowhere/sock", f->dir);
	assert_int_equal(api_start(path, routes, f, &api), -ENOENT);
	snprintf(path, sizeof(path), "%s/file", f->dir);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(api_start(path, routes, f, &api), -EEXIST);
	assert_int_equal(unlink(path), 0);
}

static void test_stale_socket_is_replaced(void **state)
{
	struct fixture *f = *state;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct api *api;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/stale", f->dir);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	assert_int_equal(api_start(addr.sun_path, routes, f, &api), 0);
	api_stop(api);
	assert_int_equal(access(addr.sun_path, F_OK), -1);
}

static void test_accessors(void **state)
{
	static const char text[] = "{\"s\":\"abc\",\"i\":7,\"b\":true,\"n\":null,\"d\":1.5,"
				   "\"big\":18446744073709551615,\"neg\":-3}";
	struct api_call call = { 0 };
	const char *error, *s;
	int64_t i;
	bool b;

	(void)state;
	assert_int_equal(api_body_parse(text, strlen(text), &call.body, &error), 0);
	assert_int_equal(api_get_string(&call, "s", 3, &s), 0);
	assert_string_equal(s, "abc");
	assert_int_equal(api_get_string(&call, "s", 2, &s), -EINVAL);
	assert_int_equal(api_get_string(&call, "i", 9, &s), -EINVAL);
	assert_int_equal(api_get_string(&call, "n", 9, &s), -EINVAL);
	assert_int_equal(api_get_string(&call, "absent", 9, &s), 0);
	assert_null(s);
	assert_int_equal(api_get_int(&call, "i", 0, 7, 1, &i), 0);
	assert_int_equal(i, 7);
	assert_int_equal(api_get_int(&call, "i", 0, 6, 1, &i), -EINVAL);
	assert_int_equal(api_get_int(&call, "neg", 0, 6, 1, &i), -EINVAL);
	assert_int_equal(api_get_int(&call, "d", 0, 6, 1, &i), -EINVAL);
	assert_int_equal(api_get_int(&call, "big", INT64_MIN, INT64_MAX, 1, &i), -EINVAL);
	assert_int_equal(api_get_int(&call, "absent", 0, 6, -9, &i), 0);
	assert_int_equal(i, -9);
	assert_int_equal(api_get_bool(&call, "b", false, &b), 0);
	assert_true(b);
	assert_int_equal(api_get_bool(&call, "i", false, &b), -EINVAL);
	assert_int_equal(api_get_bool(&call, "absent", true, &b), 0);
	assert_true(b);
	json_object_put(call.body);
}

#define with_server(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
#define with_small_server(test) cmocka_unit_test_setup_teardown(test, setup_small, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_server(test_routing),
		with_server(test_method),
		with_server(test_credentials),
		with_server(test_credentials_of_another_user),
		with_server(test_bad_json),
		with_server(test_body_limit),
		with_server(test_body_limit_chunked),
		with_server(test_errors),
		with_server(test_stream),
		with_small_server(test_too_many_connections),
		with_small_server(test_silent_client_is_dropped),
		with_small_server(test_long_handler_is_not_dropped),
		with_server(test_client_goes_away),
		with_server(test_several_requests_on_one_connection),
		with_server(test_socket_path),
		with_server(test_stale_socket_is_replaced),
		cmocka_unit_test(test_accessors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
