// SPDX-License-Identifier: LGPL-2.1-or-later
/* Which threads may run on some CPUs only: CRIU's images have no field for it, our notes do. */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"

enum { PINS_MAX = 4096, PINS_CPUS_MAX = 1024, STATUS_MAX = 1 << 20 };

/* The list of CPUs in a status file; empty: none, or too long a one. */
static void read_cpus(const char *status, char ret_cpus[PINS_CPUS_MAX])
{
	static const char key[] = "\nCpus_allowed_list:\t";
	const char *line = strstr(status, key);
	size_t length;

	ret_cpus[0] = '\0';
	if (!line)
		return;
	line += sizeof(key) - 1;
	length = strcspn(line, "\n");
	if (length < PINS_CPUS_MAX) {
		memcpy(ret_cpus, line, length);
		ret_cpus[length] = '\0';
	}
}

/* What is allowed to us is what everybody here gets who does not choose. */
static int know_ours(struct pins *p)
{
	_cleanup_free_ char *text = NULL;
	char cpus[PINS_CPUS_MAX];
	int r;

	if (p->ours)
		return 0;
	r = read_file_at(AT_FDCWD, "/proc/self/status", STATUS_MAX, &text, NULL);
	if (r < 0)
		return r;
	read_cpus(text, cpus);
	p->ours = strdup(cpus);
	return p->ours ? 0 : -ENOMEM;
}

int pins_note(struct pins *p, pid_t inner, const char *status)
{
	char cpus[PINS_CPUS_MAX];
	struct pin *more;
	int r = know_ours(p);

	if (r < 0)
		return r;
	read_cpus(status, cpus);
	if (!cpus[0] || !strcmp(cpus, p->ours) || p->count == PINS_MAX)
		return 0;
	more = realloc(p->v, (p->count + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	p->v = more;
	p->v[p->count] = (struct pin){ .inner = inner, .cpus = strdup(cpus) };
	return p->v[p->count].cpus ? (p->count++, 0) : -ENOMEM;
}

struct json_object *pins_to_json(const struct pins *p)
{
	struct json_object *lists = json_object_new_object();

	for (size_t i = 0; lists && i < p->count; i++) {
		struct json_object *tids = json_object_object_get(lists, p->v[i].cpus);

		if (!tids) {
			tids = json_object_new_array();
			json_object_object_add(lists, p->v[i].cpus, tids);
		}
		json_object_array_add(tids, json_object_new_int(p->v[i].inner));
	}
	return lists;
}

void pins_deinit(struct pins *p)
{
	for (size_t i = 0; i < p->count; i++)
		free(p->v[i].cpus);
	free(p->v);
	free(p->ours);
	*p = (struct pins){ 0 };
}
