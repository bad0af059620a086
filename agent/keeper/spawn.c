// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Helpers (CRIU) inside the job's namespaces. The keeper's own pid_for_children is the job's PID
 * namespace since its start, so a helper is the keeper's child and yet inside. Its PID is chosen
 * with clone3's set_tid, which leaves the namespace's PID counter alone: the job may fork at the
 * same moment, and nothing has to be put back.
 */
#include "agent/keeper/warden.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/util/io.h"

/* Above every fd that a helper gets. */
enum { SPAWN_HIGH_FD = 64 };

struct spawn_plan {
	const struct keeper_spawn_order *order;
	const char *binary;
	char *argv[KEEPER_SPAWN_ARGS_MAX + 1];
	int binary_fd; /* -1: only the path inside is left */
	int ns_pidfd;  /* -1: stay on the host */
	const int *fds;
	int fd_count;
};

static int parse_order(const struct keeper_spawn_order *o, struct spawn_plan *plan)
{
	uint32_t at;

	if (o->text_size == 0 || o->text_size > KEEPER_SPAWN_TEXT_MAX ||
	    o->text[o->text_size - 1] != '\0' || o->arg_count == 0 ||
	    o->arg_count > KEEPER_SPAWN_ARGS_MAX)
		return -EBADMSG;
	plan->binary = o->text;
	at = (uint32_t)strlen(o->text) + 1;
	for (uint32_t i = 0; i < o->arg_count; i++) {
		if (at >= o->text_size)
			return -EBADMSG;
		plan->argv[i] = (char *)o->text + at;
		at += (uint32_t)strlen(o->text + at) + 1;
	}
	return 0;
}

/* As this user, but with every capability that we have: they survive execve as ambient ones. */
static int become_capable_user(uid_t uid, gid_t gid)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2];

	if (prctl(PR_SET_KEEPCAPS, 1) < 0 || setgroups(0, NULL) < 0 ||
	    setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0 ||
	    syscall(SYS_capget, &header, caps) < 0)
		return -errno;
	for (int i = 0; i < 2; i++)
		caps[i].effective = caps[i].inheritable = caps[i].permitted;
	if (syscall(SYS_capset, &header, caps) < 0)
		return -errno;
	for (int cap = 0; cap < 64; cap++) {
		if (caps[cap / 32].permitted & 1U << cap % 32 &&
		    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
			return -errno;
	}
	return 0;
}

/* stdio and fds to their numbers; all were moved out of the way before. */
static int place_fds(const struct spawn_plan *plan)
{
	bool has_stdio = plan->order->flags & KEEPER_SPAWN_STDIO;
	int high[KEEPER_FDS_MAX + 1], null;

	for (int i = 0; i < plan->fd_count; i++) {
		high[i] = fcntl(plan->fds[i], F_DUPFD_CLOEXEC, SPAWN_HIGH_FD);
		if (high[i] < 0)
			return -errno;
	}
	null = open("/dev/null", O_RDWR);
	if (null < 0)
		return -errno;
	for (int i = 0; i < 3; i++) {
		int from = has_stdio ? high[0] : null;

		if (from == i)
			continue;
		if (dup2(from, i) < 0)
			return -errno;
	}
	for (int i = has_stdio; i < plan->fd_count; i++) {
		if (dup2(high[i], 3 + i - has_stdio) < 0)
			return -errno;
	}
	if (close_range((unsigned)(3 + plan->fd_count - has_stdio), ~0U, CLOSE_RANGE_CLOEXEC) < 0)
		return -errno;
	return 0;
}

static int become_helper(struct spawn_plan *plan)
{
	static char *const env[] = { "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:"
				     "/bin",
				     "LANG=C", NULL };
	uint32_t flags = plan->order->flags;
	struct loader loader = { .interpreter = -1 };
	int ns = CLONE_NEWNS | CLONE_NEWUTS | (flags & KEEPER_SPAWN_HOST_IPC ? 0 : CLONE_NEWIPC);
	int r;

	run_reset_process();
	/* Its death may cost the job its life; allowed only with CAP_SYS_RESOURCE. */
	(void)!write_kernel_file("/proc/self/oom_score_adj", "-1000");
	/* The low numbers are about to be overwritten. */
	plan->binary_fd =
		plan->binary_fd < 0 ? -1 : fcntl(plan->binary_fd, F_DUPFD_CLOEXEC, SPAWN_HIGH_FD);
	if (plan->ns_pidfd >= 0 && plan->binary_fd >= 0)
		loader_open(&loader, plan->binary);
	if (plan->ns_pidfd >= 0 && setns(plan->ns_pidfd, ns) < 0)
		return -errno;
	r = place_fds(plan);
	if (r == 0 && flags & KEEPER_SPAWN_AS_USER)
		r = become_capable_user(plan->order->uid, plan->order->gid);
	if (r < 0)
		return r;
	loader_exec(&loader, plan->argv, env);
	/* The host's file by its fd: the job may see another one under this path, or none. */
	if (plan->binary_fd >= 0)
		syscall(SYS_execveat, plan->binary_fd, "", plan->argv, env, AT_EMPTY_PATH);
	if (plan->binary_fd < 0 || errno == ENOENT)
		execve(plan->binary, plan->argv, env);
	return -errno;
}

static void __attribute__((noreturn)) child(struct spawn_plan *plan, int exec_fd)
{
	int fd = fcntl(exec_fd, F_DUPFD_CLOEXEC, SPAWN_HIGH_FD);
	int32_t r = become_helper(plan);

	(void)!write_full(fd, &r, sizeof(r));
	_exit(127);
}

/* Forks with the first free PID of the helpers' range. */
static pid_t fork_helper(const struct warden *w, bool in_cgroup, int *ret_pidfd)
{
	int cgroup_fd = in_cgroup ? w->tasks_fd : -1;
	pid_t first = w->config.helper_pid ? w->config.helper_pid : KEEPER_HELPER_FIRST_PID;

	if (w->config.adopted)
		return raw_clone(0, ret_pidfd, cgroup_fd, 0);
	for (pid_t pid = first; pid < first + KEEPER_HELPER_PIDS; pid++) {
		pid_t r = raw_clone(0, ret_pidfd, cgroup_fd, pid);

		if (r != -EEXIST)
			return r;
	}
	return -EEXIST;
}

static struct spawn *free_slot(struct warden *w)
{
	for (int i = 0; i < WARDEN_SPAWNS_MAX; i++) {
		if (!w->spawns[i].used)
			return &w->spawns[i];
	}
	return NULL;
}

struct spawn *spawn_find(struct warden *w, uint32_t id)
{
	for (int i = 0; i < WARDEN_SPAWNS_MAX; i++) {
		if (w->spawns[i].used && w->spawns[i].id == id)
			return &w->spawns[i];
	}
	return NULL;
}

void spawn_free(struct spawn *s)
{
	close_fdp(&s->exec_fd);
	close_fdp(&s->pidfd);
	*s = (struct spawn){ .exec_fd = -1, .pidfd = -1 };
}

int spawn_start(struct warden *w, const struct keeper_spawn_order *order, const int *fds,
		int fd_count, int owner, uint32_t *ret_id)
{
	struct spawn_plan plan = { .order = order, .fds = fds, .fd_count = fd_count };
	struct spawn *s = free_slot(w);
	_cleanup_close_ int binary = -1;
	int exec_pipe[2], pidfd = -1, r;
	pid_t pid;

	if (!s)
		return -EBUSY;
	if (!w->config.adopted && !w->init_pid)
		return -ESRCH;
	if (order->flags & KEEPER_SPAWN_STDIO && fd_count == 0)
		return -EBADMSG;
	r = parse_order(order, &plan);
	if (r < 0)
		return r;
	binary = open(plan.binary, O_PATH | O_CLOEXEC);
	plan.binary_fd = binary;
	plan.ns_pidfd = w->config.adopted ? -1 : w->init_pidfd;
	if (pipe2(exec_pipe, O_CLOEXEC | O_NONBLOCK) < 0)
		return -errno;
	pid = fork_helper(w, order->flags & KEEPER_SPAWN_IN_CGROUP, &pidfd);
	if (pid == 0)
		child(&plan, exec_pipe[1]);
	close(exec_pipe[1]);
	if (pid < 0) {
		close(exec_pipe[0]);
		return pid;
	}
	*s = (struct spawn){ .used = true,
			     .id = ++w->spawn_next_id,
			     .owner = owner,
			     .pid = pid,
			     .exec_fd = exec_pipe[0],
			     .pidfd = pidfd };
	*ret_id = s->id;
	return 0;
}
