// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The job's main process: forked by PID 1 with the PID KEEPER_FIRST_PID, made into what a login
 * would have made of it, and executed. Between fork and exec every step has a name, so that
 * `decamp run` can say what went wrong.
 */
#include "agent/keeper/warden.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/util/io.h"

enum { RUN_TEXT_MAX = 2 * KEEPER_ARGS_MAX + 4 * KEEPER_PATH_MAX };

struct run_plan {
	struct keeper_run_order order;
	char *text;
	char **argv, **env;
	const char *paths[4]; /* cwd, stdin, stdout, stderr; NULL: not given */
};

/* What the child tells PID 1 when a step failed; step is an index, so no pointer is passed on. */
struct run_failure {
	int32_t error;
	uint32_t step;
};

enum run_step { STEP_SESSION, STEP_LIMITS, STEP_IDS, STEP_CWD, STEP_STDIO, STEP_EXEC };
static const char *const step_names[] = {
	"session",	     "resource limits",		  "user and groups",
	"working directory", "standard input and output", "execute"
};

pid_t raw_clone(uint64_t flags, int *ret_pidfd, int cgroup_fd, pid_t set_tid)
{
	int pidfd = -1;
	struct clone_args args = { .flags = flags, .exit_signal = SIGCHLD };
	pid_t pid;

	if (ret_pidfd) {
		args.flags |= CLONE_PIDFD;
		args.pidfd = (uintptr_t)&pidfd;
	}
	if (cgroup_fd >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)cgroup_fd;
	}
	if (set_tid > 0) {
		args.set_tid = (uintptr_t)&set_tid;
		args.set_tid_size = 1;
	}
	pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		return -errno;
	if (pid > 0 && ret_pidfd)
		*ret_pidfd = pidfd;
	return pid;
}

void run_reset_process(void)
{
	/* glibc keeps 32 and 33 for itself and refuses to touch them: the kernel is asked instead. */
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} act = { 0 };
	sigset_t none;

	for (int i = 1; i <= 64; i++)
		syscall(SYS_rt_sigaction, i, &act, NULL, sizeof(act.mask));
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	umask(022);
	prctl(PR_SET_PDEATHSIG, 0);
}

/* Splits NUL-separated text; NULL if it does not end with a NUL or memory is out. */
static char **split(char *text, size_t size)
{
	size_t count = 0, used = 0;
	char **list;

	if (size > 0 && text[size - 1] != '\0')
		return NULL;
	for (size_t i = 0; i < size; i++)
		count += text[i] == '\0';
	list = calloc(count + 1, sizeof(*list));
	for (size_t i = 0; list && i < size; i += strlen(text + i) + 1)
		list[used++] = text + i;
	return list;
}

static int load_text(struct run_plan *plan, int fd)
{
	const struct keeper_run_order *o = &plan->order;
	size_t size = (size_t)o->argv_size + o->env_size, at;

	for (size_t i = 0; i < 4; i++)
		size += o->path_size[i];
	plan->text = malloc(size + 1);
	if (!plan->text)
		return -ENOMEM;
	plan->text[size] = '\0';
	if (pread_full(fd, plan->text, size, sizeof(*o)) < 0)
		return -EBADMSG;
	plan->argv = split(plan->text, o->argv_size);
	plan->env = split(plan->text + o->argv_size, o->env_size);
	if (!plan->argv || !plan->argv[0] || !plan->env)
		return -EBADMSG;
	at = (size_t)o->argv_size + o->env_size;
	for (size_t i = 0; i < 4; i++) {
		if (o->path_size[i] == 0)
			continue;
		if (plan->text[at + o->path_size[i] - 1] != '\0')
			return -EBADMSG;
		plan->paths[i] = plan->text + at;
		at += o->path_size[i];
	}
	return 0;
}

static int load_plan(struct run_plan *plan, int fd)
{
	const struct keeper_run_order *o = &plan->order;

	if (pread_full(fd, &plan->order, sizeof(plan->order), 0) < 0)
		return -EBADMSG;
	if (o->argv_size == 0 || o->argv_size > KEEPER_ARGS_MAX || o->env_size > KEEPER_ARGS_MAX ||
	    o->group_count > KEEPER_GROUPS_MAX)
		return -EBADMSG;
	for (size_t i = 0; i < 4; i++) {
		if (o->path_size[i] > KEEPER_PATH_MAX)
			return -EBADMSG;
	}
	return load_text(plan, fd);
}

static int set_limits(const struct keeper_run_order *o)
{
	if (!o->have_rlimits)
		return 0;
	for (int i = 0; i < (int)RLIM_NLIMITS; i++) {
		struct rlimit want = { o->rlim_cur[i], o->rlim_max[i] }, have;

		if (setrlimit((__rlimit_resource_t)i, &want) == 0)
			continue;
		/* Without CAP_SYS_RESOURCE a hard limit cannot grow: as much as there is. */
		if (errno != EPERM || getrlimit((__rlimit_resource_t)i, &have) < 0)
			return -errno;
		want.rlim_max = have.rlim_max < want.rlim_max ? have.rlim_max : want.rlim_max;
		want.rlim_cur = want.rlim_cur < want.rlim_max ? want.rlim_cur : want.rlim_max;
		if (setrlimit((__rlimit_resource_t)i, &want) < 0)
			return -errno;
	}
	return 0;
}

/* Leaving uid 0 clears every capability. */
static int set_ids(const struct keeper_run_order *o)
{
	if (setgroups(o->group_count, o->groups) < 0 || setresgid(o->gid, o->gid, o->gid) < 0 ||
	    setresuid(o->uid, o->uid, o->uid) < 0)
		return -errno;
	return 0;
}

static int set_stdio(const struct run_plan *plan)
{
	static const int flags[] = { O_RDONLY, O_WRONLY | O_CREAT | O_APPEND,
				     O_WRONLY | O_CREAT | O_APPEND };

	for (int i = 0; i < 3; i++) {
		const char *path = plan->paths[i + 1];
		int fd = path ? open(path, flags[i] | O_NOCTTY, 0644) :
				open("/dev/null", i == 0 ? O_RDONLY : O_WRONLY);

		if (fd < 0)
			return -errno;
		if (fd != i) {
			if (dup2(fd, i) < 0)
				return -errno;
			close(fd);
		}
	}
	return 0;
}

static void reset_oom_score(void)
{
	(void)!write_kernel_file("/proc/self/oom_score_adj", "0");
}

/* Returns the error of the step that failed; not at all if none did. */
static int become_job(const struct run_plan *plan, uint32_t *ret_step)
{
	int r;

	*ret_step = STEP_SESSION;
	run_reset_process();
	reset_oom_score();
	*ret_step = STEP_LIMITS;
	r = set_limits(&plan->order);
	if (r < 0)
		return r;
	*ret_step = STEP_IDS;
	r = set_ids(&plan->order);
	if (r < 0)
		return r;
	*ret_step = STEP_CWD;
	if (chdir(plan->paths[0] ? plan->paths[0] : "/") < 0)
		return -errno;
	*ret_step = STEP_STDIO;
	r = set_stdio(plan);
	if (r < 0)
		return r;
	umask(plan->order.umask & 0777);
	*ret_step = STEP_EXEC;
	if (close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
		return -errno;
	environ = plan->env;
	execvp(plan->argv[0], plan->argv);
	return -errno;
}

static void __attribute__((noreturn)) child(const struct run_plan *plan, int report_fd)
{
	struct run_failure failure = { 0 };
	int fd;

	/* Out of the way of 0, 1 and 2. */
	fd = fcntl(report_fd, F_DUPFD_CLOEXEC, 100);
	failure.error = become_job(plan, &failure.step);
	(void)!write_full(fd, &failure, sizeof(failure));
	_exit(127);
}

static pid_t start(const struct run_plan *plan, int cgroup_fd, int *ret_pidfd,
		   const char **ret_step)
{
	struct run_failure failure;
	int pipe_fds[2], pidfd = -1;
	_cleanup_close_ int report = -1;
	pid_t pid;

	*ret_step = "first PID";
	/* The job's children count on from its own PID. */
	if (write_kernel_file("/proc/sys/kernel/ns_last_pid", "1000") < 0 ||
	    pipe2(pipe_fds, O_CLOEXEC) < 0)
		return -errno;
	_Static_assert(KEEPER_FIRST_PID == 1000, "written above");
	report = pipe_fds[0];
	*ret_step = "fork";
	pid = raw_clone(0, &pidfd, cgroup_fd, KEEPER_FIRST_PID);
	if (pid == 0)
		child(plan, pipe_fds[1]);
	close(pipe_fds[1]);
	if (pid < 0)
		return pid;
	if (read_full(report, &failure, sizeof(failure)) == 0) {
		close(pidfd);
		waitpid(pid, NULL, 0);
		*ret_step = failure.step < ARRAY_SIZE(step_names) ? step_names[failure.step] : "?";
		return failure.error < 0 ? failure.error : -EIO;
	}
	*ret_step = "";
	*ret_pidfd = pidfd;
	return pid;
}

pid_t run_start(int order_fd, int cgroup_fd, int *ret_pidfd, const char **ret_step)
{
	struct run_plan plan = { 0 };
	pid_t pid;
	int r;

	*ret_step = "command";
	r = load_plan(&plan, order_fd);
	pid = r < 0 ? r : start(&plan, cgroup_fd, ret_pidfd, ret_step);
	free(plan.argv);
	free(plan.env);
	free(plan.text);
	return pid;
}
