// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "agent/host/check.h"
#include "agent/util/io.h"

enum { KERNEL_THREAD = 0x00200000 /* PF_KTHREAD */, THREADS_LOOKED_AT_MAX = 256 };

static void put_text(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, json_object_new_string(text));
}

void check_problem(struct check *c, const char *object, const char *reason, const char *next)
{
	struct json_object *problem;

	if (c->problem_count++ >= CHECK_FINDINGS_MAX)
		return;
	problem = json_object_new_object();
	if (!problem)
		return;
	put_text(problem, "object", object);
	put_text(problem, "reason", reason);
	put_text(problem, "next", next);
	json_object_array_add(c->problems, problem);
}

void check_note(struct check *c, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	if (c->note_count++ >= CHECK_FINDINGS_MAX)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	json_object_array_add(c->notes, json_object_new_string(text));
}

/* Programs that are part of decamp, a replaced binary ("… (deleted)") included. */
static bool is_own_program(pid_t pid)
{
	char link[64], exe[PATH_MAX];
	const char *name;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/%d/exe", pid);
	n = readlink(link, exe, sizeof(exe) - 1);
	if (n <= 0)
		return false;
	exe[n] = '\0';
	name = strrchr(exe, '/') ? strrchr(exe, '/') + 1 : exe;
	return !strcmp(name, "decampd") || !strcmp(name, "decampd (deleted)") ||
	       !strcmp(name, "decamp-keeper") || !strcmp(name, "decamp-keeper (deleted)");
}

/* A job that decamp launched or restored: one of its ancestors is a keeper. */
static bool is_decamp_job(const struct check *c)
{
	struct check_task task = c->tasks[0];

	for (int depth = 0; depth < 256 && task.ppid > 0; depth++) {
		if (is_own_program(task.ppid))
			return true;
		if (check_read_task(task.ppid, &task) < 0)
			return false;
	}
	return false;
}

static bool same_namespace(pid_t pid, pid_t other, const char *name)
{
	char path[64];
	struct stat a, b;

	snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, name);
	if (stat(path, &a) < 0)
		return true;
	snprintf(path, sizeof(path), "/proc/%d/ns/%s", other, name);
	return stat(path, &b) < 0 || (a.st_ino == b.st_ino && a.st_dev == b.st_dev);
}

static void check_namespaces(struct check *c, const struct check_task *task, bool ours)
{
	static const char *const names[] = { "pid", "mnt", "net", "ipc", "uts", "user" };
	bool is_root = task == c->tasks;
	pid_t other = is_root ? getpid() : c->tasks[0].pid;
	char object[128];

	if (is_root && ours)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (same_namespace(task->pid, other, names[i]))
			continue;
		snprintf(object, sizeof(object), "PID %d (%.63s)", task->pid, task->comm);
		if (is_root)
			check_problem(
				c, object, "is in a container or another namespace of its own",
				"start the program outside of the container, with decamp run");
		else
			check_problem(c, object,
				      "is in a sandbox or container that the program made",
				      "switch the program's own sandbox off");
		return;
	}
}

static void check_status(struct check *c, const struct check_task *task, uid_t root_uid)
{
	_cleanup_free_ char *status = check_read(task->pid, "status");
	long long tracer, seccomp, uid;
	char object[128], reason[96];

	if (!status)
		return;
	snprintf(object, sizeof(object), "PID %d (%.63s)", task->pid, task->comm);
	tracer = check_number(status, "TracerPid", 10, 0);
	if (tracer > 0) {
		snprintf(reason, sizeof(reason), "is traced by PID %lld (a debugger or strace)",
			 tracer);
		check_problem(c, object, reason, "detach the debugger");
	}
	uid = check_number(status, "Uid", 10, (long long)root_uid);
	if (c->caller_uid != 0 && uid != (long long)c->caller_uid)
		check_problem(c, object, "runs as another user",
			      "ask an administrator to adopt it");
	else if (uid != (long long)root_uid && !host_has_sys_resource())
		check_problem(c, object,
			      "runs as another user than the rest of the job, and this host lacks "
			      "CAP_SYS_RESOURCE",
			      "let the whole job run as one user");
	seccomp = check_number(status, "Seccomp", 10, 0);
	if (seccomp == 1)
		check_problem(c, object, "runs in seccomp strict mode",
			      "run it without seccomp's strict mode");
	else if (seccomp == 2)
		check_note(c,
			   "PID %d (%s) has a seccomp filter; it is kept, and in force again "
			   "after a restore.",
			   task->pid, task->comm);
}

static void check_state(struct check *c, const struct check_task *task)
{
	bool is_root = task == c->tasks;
	char object[128];

	snprintf(object, sizeof(object), "PID %d (%.63s)", task->pid, task->comm);
	if (task->state == 'Z' && task->threads > 1)
		check_problem(c, object, "its first thread has ended while others run on",
			      "none: such a program cannot be checkpointed");
	else if (!is_root && (task->pid == getpid() || is_own_program(task->pid)))
		check_problem(c, object, "is part of decamp itself",
			      "choose a process further down the tree");
	else if (is_root && (task->state == 'Z' || task->state == 'X'))
		check_problem(c, object, "has ended already", "none: there is nothing to save");
}

static const char *sleeping_call(long long number)
{
	static const struct {
		long long number;
		const char *name;
	} calls[] = {
#ifdef SYS_epoll_wait
		{ SYS_epoll_wait, "epoll_wait" },
		{ SYS_poll, "poll" },
		{ SYS_select, "select" },
#endif
		{ SYS_epoll_pwait, "epoll_pwait" },
		{ SYS_ppoll, "ppoll" },
		{ SYS_pselect6, "pselect" },
		{ SYS_nanosleep, "nanosleep" },
		{ SYS_clock_nanosleep, "clock_nanosleep" },
		{ SYS_semop, "semop" },
		{ SYS_semtimedop, "semtimedop" },
		{ SYS_io_getevents, "io_getevents" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		if (calls[i].number == number)
			return calls[i].name;
	}
	return NULL;
}

/* The criu engine wakes threads from these calls with EINTR, which few programs take badly. */
static void check_sleepers(struct check *c)
{
	size_t looked_at = 0;

	for (size_t i = 0; i < c->task_count && looked_at < THREADS_LOOKED_AT_MAX; i++) {
		_cleanup_closedir_ DIR *dir = NULL;
		char path[64];
		struct dirent *d;

		snprintf(path, sizeof(path), "/proc/%d/task", c->tasks[i].pid);
		dir = opendir(path);
		while (dir && (d = readdir(dir)) && looked_at < THREADS_LOOKED_AT_MAX) {
			_cleanup_free_ char *call = NULL;
			const char *name;

			snprintf(path, sizeof(path), "task/%.12s/syscall", d->d_name);
			call = d->d_name[0] == '.' ? NULL : check_read(c->tasks[i].pid, path);
			name = call && call[0] >= '0' && call[0] <= '9' ?
				       sleeping_call(strtoll(call, NULL, 10)) :
				       NULL;
			looked_at++;
			if (!name)
				continue;
			check_note(
				c,
				"Thread %s waits in %s: a checkpoint by the criu engine may let "
				"that call return early with EINTR, which a few programs take as "
				"fatal.",
				d->d_name, name);
			return;
		}
	}
}

/* Why nobody may do this to the process at all. */
static const char *forbidden(const struct check *c, const struct check_task *root)
{
	_cleanup_free_ char *status = NULL;
	long long uid;

	if (root->flags & KERNEL_THREAD)
		return "is a kernel thread";
	if (root->pid == getpid() || is_own_program(root->pid))
		return "is part of decamp itself";
	if (root->pid == 1)
		return "is the first process of the system";
	status = check_read(root->pid, "status");
	uid = status ? check_number(status, "Uid", 10, -1) : -1;
	if (c->caller_uid != 0 && uid != (long long)c->caller_uid)
		return "belongs to another user";
	return NULL;
}

static void check_tree(struct check *c)
{
	_cleanup_free_ char *status = check_read(c->pid, "status");
	uid_t uid = (uid_t)check_number(status ? status : "", "Uid", 10, 0);
	bool ours = is_decamp_job(c);
	bool host_ipc = same_namespace(c->pid, getpid(), "ipc");

	for (size_t i = 0; i < c->task_count; i++) {
		const struct check_task *task = &c->tasks[i];

		check_state(c, task);
		if (task->state == 'Z' && task->threads <= 1)
			continue;
		check_status(c, task, uid);
		check_namespaces(c, task, ours);
		check_fds(c, task);
		check_maps(c, task, host_ipc);
	}
	check_sockets(c);
	/* Without an open terminal (nohup) the job only loses Ctrl-C and the like. */
	if (c->tasks[0].tty && !c->tty_count)
		check_note(c, "The job was started from a terminal; after a move it has none.");
	if (uid != 0 && !host_has_sys_resource())
		check_note(c,
			   "This host lacks CAP_SYS_RESOURCE: CRIU runs as user %u, with the "
			   "capabilities it needs.",
			   uid);
	if (c->problem_count == 0)
		check_sleepers(c);
}

static void count_the_rest(struct check *c)
{
	char more[64];

	if (c->problem_count > CHECK_FINDINGS_MAX) {
		struct json_object *last =
			json_object_array_get_idx(c->problems, CHECK_FINDINGS_MAX - 1);

		snprintf(more, sizeof(more), "and %zu more problems like these",
			 c->problem_count - CHECK_FINDINGS_MAX);
		put_text(last, "reason", more);
	}
	if (c->note_count > CHECK_FINDINGS_MAX) {
		snprintf(more, sizeof(more), "%zu more notes are left out.",
			 c->note_count - CHECK_FINDINGS_MAX);
		json_object_array_add(c->notes, json_object_new_string(more));
	}
}

static int run_check(struct check *c, struct json_object *report)
{
	struct check_task root;
	const char *why;
	char object[128];
	int r = check_read_task(c->pid, &root);

	if (r < 0)
		return r;
	put_text(report, "name", root.comm);
	snprintf(object, sizeof(object), "PID %d (%.63s)", root.pid, root.comm);
	why = forbidden(c, &root);
	if (why) {
		check_problem(c, object, why, "choose a process of your own");
		return -EPERM;
	}
	r = check_read_tree(c);
	if (r == -E2BIG) {
		check_problem(c, object, "has more processes below it than decamp takes",
			      "choose a process further down the tree");
		return 0;
	}
	if (r == 0)
		check_tree(c);
	return r;
}

int host_check(pid_t pid, uid_t caller_uid, struct json_object **ret_report)
{
	struct check c = { .pid = pid, .caller_uid = caller_uid };
	struct json_object *report;
	int r;

	if (pid <= 0)
		return -ESRCH;
	report = json_object_new_object();
	c.problems = json_object_new_array();
	c.notes = json_object_new_array();
	if (!report || !c.problems || !c.notes) {
		json_object_put(report);
		json_object_put(c.problems);
		json_object_put(c.notes);
		return -ENOMEM;
	}
	json_object_object_add(report, "pid", json_object_new_int(pid));
	json_object_object_add(report, "problems", c.problems);
	json_object_object_add(report, "notes", c.notes);
	r = run_check(&c, report);
	free(c.tasks);
	free(c.sockets);
	if (r < 0 && r != -EPERM) {
		json_object_put(report);
		return r;
	}
	count_the_rest(&c);
	put_text(report, "engine", c.problem_count ? "none" : "criu");
	json_object_object_add(report, "ok", json_object_new_boolean(c.problem_count == 0));
	*ret_report = report;
	return r;
}
