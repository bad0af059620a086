// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/check.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "agent/util/io.h"

/* Two million processes are the most that a kernel allows; a lab machine has hundreds. */
enum { TEXT_MAX = 1 << 20, PROCESSES_MAX = 1 << 16 };

char *check_read(pid_t pid, const char *name)
{
	char path[128];
	char *text = NULL;

	snprintf(path, sizeof(path), "/proc/%d/%.96s", pid, name);
	return read_file_at(AT_FDCWD, path, TEXT_MAX, &text, NULL) < 0 ? NULL : text;
}

long long check_number(const char *text, const char *key, int base, long long fallback)
{
	size_t len = strlen(key);
	const char *line = text;

	while (line) {
		if (!strncmp(line, key, len) && line[len] == ':')
			return strtoll(line + len + 1, NULL, base);
		line = strchr(line, '\n');
		if (line)
			line++;
	}
	return fallback;
}

int check_read_task(pid_t pid, struct check_task *ret_task)
{
	_cleanup_free_ char *text = check_read(pid, "stat");
	struct check_task task = { .pid = pid };
	char *open, *close;

	if (!text)
		return -ESRCH;
	/* The name is in parentheses and may hold some itself. */
	open = strchr(text, '(');
	close = strrchr(text, ')');
	if (!open || !close || close < open)
		return -EBADMSG;
	*close = '\0';
	snprintf(task.comm, sizeof(task.comm), "%s", open + 1);
	for (char *p = task.comm; *p; p++) {
		if (!isprint((unsigned char)*p))
			*p = '?'; /* chosen by the program, shown to people */
	}
	if (sscanf(close + 1, " %c %d %*d %d %d %*d %u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %u",
		   &task.state, &task.ppid, &task.sid, &task.tty, &task.flags, &task.threads) != 6)
		return -EBADMSG;
	*ret_task = task;
	return 0;
}

struct process_list {
	struct check_task *all;
	size_t count, room;
};

static int list_processes(struct process_list *list)
{
	_cleanup_closedir_ DIR *dir = opendir("/proc");
	struct dirent *d;

	if (!dir)
		return -errno;
	while ((d = readdir(dir)) && list->count < PROCESSES_MAX) {
		if (!isdigit((unsigned char)d->d_name[0]))
			continue;
		if (list->count == list->room) {
			size_t room = list->room ? 2 * list->room : 512;
			void *more = realloc(list->all, room * sizeof(*list->all));

			if (!more)
				return -ENOMEM;
			list->all = more;
			list->room = room;
		}
		if (check_read_task(atoi(d->d_name), &list->all[list->count]) == 0)
			list->count++;
	}
	return 0;
}

static int add_task(struct check *c, const struct check_task *task)
{
	if (c->task_count == CHECK_TASKS_MAX)
		return -E2BIG;
	c->tasks[c->task_count++] = *task;
	return 0;
}

/* Breadth first: tasks[] is the queue as well. */
static int gather(struct check *c, const struct process_list *list)
{
	int r = 0;

	for (size_t i = 0; i < list->count && c->task_count == 0; i++) {
		if (list->all[i].pid == c->pid)
			r = add_task(c, &list->all[i]);
	}
	if (c->task_count == 0)
		return -ESRCH;
	for (size_t next = 0; next < c->task_count && r == 0; next++) {
		pid_t parent = c->tasks[next].pid;

		for (size_t i = 0; i < list->count && r == 0; i++) {
			if (list->all[i].ppid == parent && list->all[i].pid != c->pid)
				r = add_task(c, &list->all[i]);
		}
	}
	return r;
}

int check_read_tree(struct check *c)
{
	struct process_list list = { 0 };
	int r;

	c->tasks = calloc(CHECK_TASKS_MAX, sizeof(*c->tasks));
	if (!c->tasks)
		return -ENOMEM;
	r = list_processes(&list);
	if (r == 0)
		r = gather(c, &list);
	free(list.all);
	return r;
}
