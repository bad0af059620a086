// SPDX-License-Identifier: LGPL-2.1-or-later
/* Threads that were tied to some CPUs are tied again: an image has no field for it. */
#define LOG_TAG "restore"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>

#include "agent/restore/internal.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { LIST_MAX = 1 << 20, STATUS_MAX = 64 << 10 };

/* "0-3,8" as the kernel writes it; false: something else. */
static bool parse_cpus(const char *text, cpu_set_t *ret_set)
{
	CPU_ZERO(ret_set);
	while (*text) {
		char *end;
		unsigned long first = strtoul(text, &end, 10), last = first;

		if (end == text)
			return false;
		if (*end == '-') {
			text = end + 1;
			last = strtoul(text, &end, 10);
			if (end == text)
				return false;
		}
		if (last < first || last >= CPU_SETSIZE || (*end && *end != ','))
			return false;
		for (unsigned long cpu = first; cpu <= last; cpu++)
			CPU_SET(cpu, ret_set);
		text = *end ? end + 1 : end;
	}
	return CPU_COUNT(ret_set) > 0;
}

/* As the job numbers it; 0: it has gone. */
static pid_t inner_of(pid_t tid)
{
	_cleanup_free_ char *text = NULL;
	const char *line, *end;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	if (read_file_at(AT_FDCWD, path, STATUS_MAX, &text, NULL) < 0)
		return 0;
	line = strstr(text, "\nNSpid:");
	if (!line)
		return 0;
	end = line + 1 + strcspn(line + 1, "\n");
	while (end > line && end[-1] != '\t')
		end--;
	return (pid_t)atol(end);
}

static const char *find_cpus(const struct notes *n, pid_t inner)
{
	for (size_t i = 0; i < n->pin_count; i++)
		if (n->pins[i].tid == inner)
			return n->pins[i].cpus;
	return NULL;
}

/* Only CPUs that this host has for its jobs; if there are none of them, the thread stays free. */
static bool tie(pid_t tid, const char *cpus)
{
	cpu_set_t wanted, here;

	if (!parse_cpus(cpus, &wanted) || sched_getaffinity(0, sizeof(here), &here) < 0)
		return false;
	CPU_AND(&wanted, &wanted, &here);
	return CPU_COUNT(&wanted) > 0 && sched_setaffinity(tid, sizeof(wanted), &wanted) == 0;
}

void affinity_restore(const struct notes *n, const char *cgroup_dir)
{
	_cleanup_free_ char *text = NULL;
	size_t tied = 0;
	char path[PATH_MAX], *end;

	if (!n->pin_count || !cgroup_dir ||
	    snprintf(path, sizeof(path), "%s/" KEEPER_TASKS "/cgroup.threads", cgroup_dir) >=
		    PATH_MAX ||
	    read_file_at(AT_FDCWD, path, LIST_MAX, &text, NULL) < 0)
		return;
	for (char *at = text;; at = end) {
		pid_t tid = (pid_t)strtol(at, &end, 10);
		const char *cpus;

		if (end == at)
			break;
		cpus = find_cpus(n, inner_of(tid));
		tied += cpus && tie(tid, cpus);
	}
	if (tied < n->pin_count)
		log_info("affinity: %zu of %zu threads are tied to CPUs of their choice again",
			 tied, n->pin_count);
}
