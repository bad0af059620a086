// SPDX-License-Identifier: LGPL-2.1-or-later
#include <json-c/json.h>
#include <stdarg.h>

#include "agent/cli/cli.h"

/* Names and reasons come from other hosts: harmless on a terminal. */
static void __attribute__((format(printf, 1, 2))) tell(const char *fmt, ...)
{
	_cleanup_free_ char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		cli_out_of_memory();
	va_end(ap);
	text_clean(text);
	puts(text);
}

/* "host lab7: no tag gpu; is being vacated" */
static void tell_host(struct json_object *host)
{
	struct json_object *reasons = js_member(host, "reasons");
	bool owner = js_bool(host, "owner", false), fits = js_bool(host, "fits", false);
	_cleanup_free_ char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	if (!out)
		cli_out_of_memory();
	fputs(owner ? "has the job" : "", out);
	if (fits && !owner)
		fputs("fits", out);
	for (size_t i = 0; i < js_length(reasons); i++) {
		const char *reason = json_object_get_string(js_item(reasons, i));

		fprintf(out, "%s%s", i || owner ? "; " : "", reason ? reason : "");
	}
	if (fclose(out) != 0)
		cli_out_of_memory();
	tell("host %s: %s", js_text(host, "host", "?"), text);
}

int verb_why(struct cli *cli, int argc, char **argv)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct json_object *hosts;
	const char *needs;
	int r = cli_call_job(cli, "why", argc, argv, &reply);

	if (r >= 0)
		return r;
	if (cli->json) {
		js_print(reply.json);
		return CLI_OK;
	}
	tell("%s waits for %s", js_text(reply.json, "name", cli->args[0]),
	     js_text(reply.json, "waits_for", "?"));
	needs = js_text(reply.json, "needs", "");
	if (*needs)
		tell("It needs %s", needs);
	hosts = js_member(reply.json, "hosts");
	for (size_t i = 0; i < js_length(hosts); i++)
		tell_host(js_item(hosts, i));
	return CLI_OK;
}
