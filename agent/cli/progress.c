// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>

#include "agent/cli/cli.h"

enum { PROGRESS_TIMEOUT_S = 2 };

struct progress {
	const struct cli *cli;
	const char *verb;
	const char *job; /* NULL: all jobs of this host */
	struct timespec start;
	bool drawn;
};

/* Of all jobs, the one that something is being done with. */
static struct json_object *busy_job(struct json_object *jobs, size_t *ret_others)
{
	static const char *const busy[] = { "moving", "checkpointing", "restoring", "frozen" };
	struct json_object *found = NULL;

	*ret_others = 0;
	for (size_t i = 0; i < js_length(jobs); i++) {
		const char *state = js_text(js_item(jobs, i), "state", "");
		bool match = *js_text(js_item(jobs, i), "step", "") != '\0';

		for (size_t k = 0; k < ARRAY_SIZE(busy); k++)
			match = match || strcmp(busy[k], state) == 0;
		if (match && found)
			(*ret_others)++;
		else if (match)
			found = js_item(jobs, i);
	}
	return found;
}

static long long elapsed_s(const struct progress *p)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec - p->start.tv_sec - (now.tv_nsec < p->start.tv_nsec);
}

static void draw(struct progress *p, struct json_object *job, size_t others)
{
	const char *step = js_text(job, "step", "");
	int64_t done = js_int(job, "step_done", 0), total = js_int(job, "step_total", 0);
	char line[256], part[24] = "", more[40] = "";
	size_t max = p->cli->width > 1 ? p->cli->width - 1 : 79;

	if (total > 0 && done >= 0)
		snprintf(part, sizeof(part), ", %d %%",
			 done >= total ? 100 : (int)(100.0 * (double)done / (double)total));
	if (others > 0)
		snprintf(more, sizeof(more), " (and %zu more)", others);
	snprintf(line, sizeof(line), "%s: %s%s%s, %lld s",
		 js_text(job, "name", p->job ? p->job : p->verb),
		 *step ? step : js_text(job, "state", "under way"), part, more, elapsed_s(p));
	text_clean(line);
	if (strlen(line) > max)
		line[max] = '\0';
	fprintf(stderr, "\r\033[K%s", line);
	p->drawn = true;
}

static void tick(void *ctx)
{
	struct progress *p = ctx;
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct cli_request request = { .verb = p->job ? "show" : "ps",
				       .timeout_s = PROGRESS_TIMEOUT_S };
	struct json_object *job;
	size_t others = 0;
	int r;

	request.body = js_new();
	js_put_text(request.body, "job", p->job);
	r = cli_send(p->cli, &request, &reply);
	json_object_put(request.body);
	if (r != CLI_OK)
		return;
	job = p->job ? reply.json : busy_job(js_member(reply.json, "jobs"), &others);
	draw(p, job, others);
}

/* Ctrl-C arrives on a file descriptor while a long request is under way. */
static int interrupt_open(sigset_t *ret_old)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, ret_old);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

int cli_call_long(const struct cli *cli, const char *verb, struct json_object *body,
		  const char *object, struct cli_reply *reply)
{
	struct progress p = { .cli = cli, .verb = verb, .job = object };
	struct cli_request request = { .verb = verb, .body = body };
	sigset_t old;
	_cleanup_close_ int fd = interrupt_open(&old);
	int r;

	clock_gettime(CLOCK_MONOTONIC, &p.start);
	request.interrupt_fd = fd;
	if (cli->err_tty) {
		request.tick = tick;
		request.tick_ctx = &p;
	}
	r = cli_send(cli, &request, reply);
	json_object_put(body);
	if (p.drawn)
		fputs("\r\033[K", stderr);
	if (r == CLI_INTERRUPTED) {
		cli_complain(object ? object : verb, "decampd goes on with the work",
			     object ? "\"decamp show\" tells how far it is." :
				      "\"decamp ps\" tells how far it is.");
	} else if (r != CLI_OK) {
		cli_tell(cli, reply);
	}
	if (r != CLI_INTERRUPTED)
		sigprocmask(SIG_SETMASK, &old, NULL);
	return r;
}
