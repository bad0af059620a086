// SPDX-License-Identifier: LGPL-2.1-or-later
#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>
#include <strings.h>
#include <sys/un.h>

#include "agent/api/api.h"
#include "agent/cli/cli.h"

enum { REPLY_DEPTH_MAX = 32 };

/* One exchange with decampd. */
struct exchange {
	const struct cli_request *request;
	struct cli_reply *reply;
	CURL *curl;
	struct curl_slist *headers;
	char *text; /* of an answer that is not raw */
	size_t size;
	bool output_failed;
	char error[CURL_ERROR_SIZE];
};

static size_t on_body(char *bytes, size_t unit, size_t count, void *ctx)
{
	struct exchange *x = ctx;
	size_t size = unit * count;
	long status = 0;
	char *grown;

	curl_easy_getinfo(x->curl, CURLINFO_RESPONSE_CODE, &status);
	if (x->request->raw && status == 200) {
		if (x->request->bytes) {
			if (size > x->request->bytes_max - x->reply->raw_size)
				return 0;
			memcpy((char *)x->request->bytes + x->reply->raw_size, bytes, size);
			x->reply->raw_size += size;
			return size;
		}
		x->reply->raw_size += size;
		if (fwrite(bytes, 1, size, stdout) == size)
			return size;
		x->output_failed = true;
		return 0;
	}
	if (size > CLI_REPLY_MAX - x->size)
		return 0;
	grown = realloc(x->text, x->size + size + 1);
	if (!grown)
		return 0;
	memcpy(grown + x->size, bytes, size);
	x->text = grown;
	x->size += size;
	grown[x->size] = '\0';
	return size;
}

static size_t on_header(char *bytes, size_t unit, size_t count, void *ctx)
{
	struct exchange *x = ctx;
	size_t size = unit * count;
	char line[128], *value;

	if (size >= sizeof(line))
		return size;
	memcpy(line, bytes, size);
	line[size] = '\0';
	line[strcspn(line, "\r\n")] = '\0';
	value = strchr(line, ':');
	if (!value)
		return size;
	*value++ = '\0';
	value += strspn(value, " ");
	if (strcasecmp(line, "X-Decamp-Next") == 0)
		x->reply->next_offset = strtoull(value, NULL, 10);
	else if (strcasecmp(line, "X-Decamp-State") == 0)
		snprintf(x->reply->state, sizeof(x->reply->state), "%s", value);
	return size;
}

static int prepare(const struct cli *cli, struct exchange *x, const char *body)
{
	char url[96];
	CURLcode c = CURLE_OK;

	x->curl = curl_easy_init();
	x->headers = curl_slist_append(NULL, "Content-Type: application/json");
	if (!x->curl || !x->headers)
		return -ENOMEM;
	snprintf(url, sizeof(url), "http://decampd/v1/%s", x->request->verb);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_URL, url);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_UNIX_SOCKET_PATH, cli->socket);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_PROXY, "");
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_NOSIGNAL, 1L);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_HTTPHEADER, x->headers);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_POSTFIELDS, body);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_ERRORBUFFER, x->error);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_TIMEOUT, (long)x->request->timeout_s);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_WRITEFUNCTION, on_body);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_WRITEDATA, x);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_HEADERFUNCTION, on_header);
	c = c ? c : curl_easy_setopt(x->curl, CURLOPT_HEADERDATA, x);
	return c ? -EINVAL : 0;
}

/* Drives the exchange; *ret_code is the library's verdict. Returns 0 or -EINTR. */
static int drive(CURLM *multi, const struct cli_request *request, CURLcode *ret_code)
{
	struct curl_waitfd extra = { .fd = request->interrupt_fd, .events = CURL_WAIT_POLLIN };
	unsigned int extras = request->interrupt_fd > 0;
	struct timespec last, now;

	clock_gettime(CLOCK_MONOTONIC, &last);
	for (;;) {
		int running = 0, left;
		CURLMsg *msg;

		if (curl_multi_perform(multi, &running) != CURLM_OK)
			*ret_code = CURLE_FAILED_INIT, running = 0;
		while ((msg = curl_multi_info_read(multi, &left))) {
			if (msg->msg == CURLMSG_DONE)
				*ret_code = msg->data.result;
		}
		if (!running)
			return 0;
		extra.revents = 0;
		curl_multi_poll(multi, &extra, extras, CLI_TICK_MS, NULL);
		if (extra.revents)
			return -EINTR;
		clock_gettime(CLOCK_MONOTONIC, &now);
		if ((now.tv_sec - last.tv_sec) * 1000 + (now.tv_nsec - last.tv_nsec) / 1000000 <
		    CLI_TICK_MS)
			continue;
		last = now;
		if (request->tick)
			request->tick(request->tick_ctx);
	}
}

static int unreachable(const struct cli *cli, struct exchange *x, CURLcode code)
{
	struct cli_reply *reply = x->reply;
	long os_error = 0;

	if (x->output_failed) {
		snprintf(reply->reason, sizeof(reply->reason), "the output could not be written");
		return CLI_FAILED;
	}
	if (code == CURLE_OPERATION_TIMEDOUT) {
		snprintf(reply->reason, sizeof(reply->reason), "no answer within %d s",
			 x->request->timeout_s);
		return CLI_TIMED_OUT;
	}
	curl_easy_getinfo(x->curl, CURLINFO_OS_ERRNO, &os_error);
	if (code == CURLE_COULDNT_CONNECT &&
	    strlen(cli->socket) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		os_error = ENAMETOOLONG;
	if (code == CURLE_COULDNT_CONNECT && os_error)
		snprintf(reply->reason, sizeof(reply->reason), "decampd does not answer: %s",
			 strerror((int)os_error));
	else if (code == CURLE_COULDNT_CONNECT)
		snprintf(reply->reason, sizeof(reply->reason), "decampd does not answer");
	else
		snprintf(reply->reason, sizeof(reply->reason), "the connection broke: %s",
			 *x->error ? x->error : curl_easy_strerror(code));
	return CLI_UNREACHABLE;
}

static int parse_reply(struct exchange *x)
{
	struct cli_reply *reply = x->reply;
	struct json_tokener *tokener;

	if (x->request->raw && reply->status == 200)
		return CLI_OK;
	tokener = json_tokener_new_ex(REPLY_DEPTH_MAX);
	if (!tokener)
		cli_out_of_memory();
	reply->json = json_tokener_parse_ex(tokener, x->text ? x->text : "", (int)x->size + 1);
	json_tokener_free(tokener);
	if (json_object_is_type(reply->json, json_type_object))
		return CLI_OK;
	snprintf(reply->reason, sizeof(reply->reason),
		 "the answer is not understood (HTTP status %ld)", reply->status);
	return CLI_FAILED;
}

static int exit_code(const struct cli_reply *reply)
{
	const char *code = js_text(js_member(reply->json, "error"), "code", "");

	if (reply->status == 200)
		return CLI_OK;
	if (strcmp(code, "no-such-job") == 0 || strcmp(code, "not-found") == 0 ||
	    strcmp(code, "no-such-folder") == 0)
		return CLI_NO_JOB;
	if (reply->status == 403)
		return CLI_NOT_PERMITTED;
	return reply->status == 503 ? CLI_TIMED_OUT : CLI_FAILED;
}

static int exchange(const struct cli *cli, struct exchange *x, const char *body)
{
	CURLM *multi = curl_multi_init();
	CURLcode code = CURLE_FAILED_INIT;
	int r;

	if (!multi || prepare(cli, x, body) < 0 || curl_multi_add_handle(multi, x->curl) != 0)
		cli_out_of_memory();
	r = drive(multi, x->request, &code);
	curl_easy_getinfo(x->curl, CURLINFO_RESPONSE_CODE, &x->reply->status);
	curl_multi_remove_handle(multi, x->curl);
	curl_multi_cleanup(multi);
	if (r < 0)
		return CLI_INTERRUPTED;
	/* An answer that came before the connection broke is still an answer. */
	if (code != CURLE_OK && (x->reply->status == 200 || x->size == 0)) {
		r = unreachable(cli, x, code);
		x->reply->status = 0;
		return r;
	}
	r = parse_reply(x);
	return r == CLI_OK ? exit_code(x->reply) : r;
}

int cli_send(const struct cli *cli, const struct cli_request *request, struct cli_reply *reply)
{
	struct exchange x = { .request = request, .reply = reply };
	const char *body = json_object_to_json_string_ext(
		request->body, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	int r;

	*reply = (struct cli_reply){ 0 };
	if (!body)
		cli_out_of_memory();
	if (strlen(body) > API_BODY_MAX) {
		snprintf(reply->reason, sizeof(reply->reason),
			 "the request takes %zu bytes, %d are allowed", strlen(body), API_BODY_MAX);
		return CLI_FAILED;
	}
	r = exchange(cli, &x, body);
	curl_slist_free_all(x.headers);
	curl_easy_cleanup(x.curl);
	free(x.text);
	return r;
}

/* The error as it came, or one of the same shape for an answer that never came. */
static void print_error_json(const struct cli *cli, const struct cli_reply *reply)
{
	struct json_object *outer, *error;

	if (js_has(reply->json, "error")) {
		js_print(reply->json);
		return;
	}
	outer = js_new();
	error = js_new();
	js_put_text(error, "object", cli->socket);
	js_put_text(error, "reason", reply->reason);
	js_put_text(error, "next", "");
	js_put_text(error, "code", "no-answer");
	if (json_object_object_add(outer, "error", error) < 0)
		cli_out_of_memory();
	js_print(outer);
	json_object_put(outer);
}

void cli_tell(const struct cli *cli, const struct cli_reply *reply)
{
	struct json_object *error = js_member(reply->json, "error");
	const char *next = NULL;

	fflush(stdout);
	if (cli->json)
		print_error_json(cli, reply);
	if (error) {
		cli_complain(js_text(error, "object", "decampd"),
			     js_text(error, "reason", "the request failed"),
			     js_text(error, "next", NULL));
		return;
	}
	if (strncmp(reply->reason, "decampd does not", strlen("decampd does not")) == 0)
		next = "Is it running? An administrator starts it: systemctl start decampd";
	cli_complain(cli->socket, *reply->reason ? reply->reason : "the request failed", next);
}

int cli_call(const struct cli *cli, const char *verb, struct json_object *body,
	     struct cli_reply *reply)
{
	struct cli_request request = { .verb = verb, .body = body, .timeout_s = CLI_TIMEOUT_S };
	int r = cli_send(cli, &request, reply);

	json_object_put(body);
	if (r != CLI_OK)
		cli_tell(cli, reply);
	return r;
}

int cli_call_job(struct cli *cli, const char *verb, int argc, char **argv, struct cli_reply *reply)
{
	struct json_object *body;
	int r = cli_parse(cli, NULL, argc, argv);

	if (r >= 0)
		return r;
	body = js_new();
	js_put_text(body, "job", cli->args[0]);
	r = cli_call(cli, verb, body, reply);
	return r == CLI_OK ? -1 : r;
}

void cli_reply_done(struct cli_reply *reply)
{
	json_object_put(reply->json);
	reply->json = NULL;
}
