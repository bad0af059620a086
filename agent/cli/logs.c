// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <time.h>

#include "agent/cli/cli.h"

enum { POLL_MS = 400, CHUNK_MIN = 64 << 10, SILENT_TRIES_MAX = 300 };

struct reader {
	const struct cli *cli;
	const char *job, *stream;
	uint64_t offset;
	unsigned int silent; /* tries in a row without an answer */
};

static int read_on(struct reader *reader, struct cli_reply *reply)
{
	struct cli_request request = { .verb = "logs", .raw = true };
	int r;

	request.body = js_new();
	js_put_text(request.body, "job", reader->job);
	js_put_text(request.body, "stream", reader->stream);
	js_put_int(request.body, "offset", (int64_t)reader->offset);
	r = cli_send(reader->cli, &request, reply);
	json_object_put(request.body);
	if (r == CLI_OK)
		reader->offset = reply->next_offset;
	else /* what was printed before the connection broke must not come twice */
		reader->offset += reply->raw_size;
	fflush(stdout);
	return r;
}

/* A daemon that restarts, or a job between two machines, is no reason to give up. */
static bool may_retry(struct reader *reader, int r)
{
	if (r != CLI_UNREACHABLE && r != CLI_TIMED_OUT)
		return false;
	return ++reader->silent < SILENT_TRIES_MAX;
}

static int follow(struct reader *reader)
{
	static const struct timespec pause = { .tv_nsec = POLL_MS * 1000000L };
	bool answered = false;

	for (;;) {
		_cleanup_reply_ struct cli_reply reply = { 0 };
		int r = read_on(reader, &reply);

		if (r == CLI_OK) {
			answered = true;
			reader->silent = 0;
			if (reply.raw_size > 0)
				continue;
			if (state_is_end(reply.state))
				return CLI_OK;
		} else if (ferror(stdout) || !answered || !may_retry(reader, r)) {
			cli_tell(reader->cli, &reply);
			return r;
		}
		nanosleep(&pause, NULL);
	}
}

int verb_logs(struct cli *cli, int argc, char **argv)
{
	bool on = false, error = false;
	const struct cli_option options[] = {
		{ "follow", 'f', NULL, "go on until the job has ended", .flag = &on },
		{ "stderr", 0, NULL, "the standard error, not the standard output",
		  .flag = &error },
		{ 0 },
	};
	struct reader reader = { .cli = cli };
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	reader.job = cli->args[0];
	reader.stream = error ? "stderr" : "stdout";
	if (on)
		return follow(&reader);
	for (;;) {
		_cleanup_reply_ struct cli_reply reply = { 0 };

		r = read_on(&reader, &reply);
		if (r != CLI_OK)
			cli_tell(cli, &reply);
		/* A large log may come in several parts. */
		if (r != CLI_OK || reply.raw_size < CHUNK_MIN)
			return r;
	}
}
