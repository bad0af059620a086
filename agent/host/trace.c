// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/host.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <systemd/sd-event.h>

#include "agent/util/bpf.h"
#include "bpf/proc.h"
#include "bpf/proc.skel.h"

#define LOG_TAG "host"
#include "agent/util/log.h"

/* The statuses of this many descendants are remembered, the latest ones. */
enum { ROOTS_MAX = 1024, ENDED_MAX = 4096, REASON_BYTES = 256 };

struct root {
	pid_t pid; /* 0: free */
	uint32_t key;
	uint64_t start_boot_ns;
	bool ended;
	int status;
};

struct ended {
	uint32_t pid; /* 0: free */
	uint32_t root;
	uint64_t start_boot_ns;
	int status;
};

struct host_trace {
	pthread_mutex_t lock; /* over all below: followers may be any thread */
	struct proc_bpf *skel;
	struct ring_buffer *ring;
	sd_event_source *source;
	struct root roots[ROOTS_MAX];
	struct ended ended[ENDED_MAX];
	uint32_t ended_next;
};

static struct root *find_root(struct host_trace *t, pid_t pid)
{
	for (size_t i = 0; i < ROOTS_MAX; i++) {
		if (t->roots[i].pid == pid)
			return &t->roots[i];
	}
	return NULL;
}

static void drop_entry(struct host_trace *t, uint32_t key, uint64_t start_boot_ns)
{
	int map = bpf_map__fd(t->skel->maps.followed);
	struct proc_followed value;

	/* A later process may have got the number. */
	if (bpf_map_lookup_elem(map, &key, &value) == 0 && value.start_boot_ns == start_boot_ns)
		bpf_map_delete_elem(map, &key);
}

static void note_descendant(struct host_trace *t, const struct proc_exit *event)
{
	struct ended *slot = &t->ended[t->ended_next];

	if (!event->pid)
		return;
	for (size_t i = 0; i < ENDED_MAX; i++) {
		struct ended *e = &t->ended[i];

		if (e->pid == event->pid && e->root == event->root) {
			slot = e;
			break;
		}
	}
	if (slot == &t->ended[t->ended_next])
		t->ended_next = (t->ended_next + 1) % ENDED_MAX;
	*slot = (struct ended){
		.pid = event->pid,
		.root = event->root,
		.start_boot_ns = event->start_boot_ns,
		.status = event->status,
	};
}

static int on_exit_event(void *ctx, void *bytes, size_t size)
{
	const struct proc_exit *event = bytes;
	struct host_trace *t = ctx;

	if (size < sizeof(*event))
		return 0;
	drop_entry(t, event->key, event->start_boot_ns);
	for (size_t i = 0; i < ROOTS_MAX; i++) {
		struct root *root = &t->roots[i];

		if (root->pid && root->key == event->key &&
		    root->start_boot_ns == event->start_boot_ns) {
			root->ended = true;
			root->status = event->status;
			return 0;
		}
	}
	note_descendant(t, event);
	return 0;
}

static int on_readable(sd_event_source *source, int fd, uint32_t revents, void *ctx)
{
	struct host_trace *t = ctx;

	(void)source;
	(void)fd;
	(void)revents;
	pthread_mutex_lock(&t->lock);
	ring_buffer__consume(t->ring);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static int give_reason(char reason[REASON_BYTES], int r, const char *what)
{
	const char *hint = "";

	if (r == -EPERM)
		hint = " (CAP_BPF and CAP_PERFMON are needed)";
	snprintf(reason, REASON_BYTES, "%s: %s%s", what, strerror(-r), hint);
	return r == -ENOMEM ? r : -EOPNOTSUPP;
}

static int load(struct host_trace *t, char reason[REASON_BYTES])
{
	struct stat ns;
	int r;

	if (access("/sys/kernel/btf/vmlinux", R_OK) < 0)
		return give_reason(reason, -errno, "the kernel's BTF, /sys/kernel/btf/vmlinux");
	if (stat("/proc/self/ns/pid", &ns) < 0)
		return give_reason(reason, -errno, "/proc/self/ns/pid");
	t->skel = proc_bpf__open();
	if (!t->skel)
		return give_reason(reason, -errno, "opening the BPF object");
	t->skel->rodata->daemon_pid_ns = (uint32_t)ns.st_ino;
	r = proc_bpf__load(t->skel);
	if (r < 0)
		return give_reason(reason, r, "loading the BPF programs");
	/* The iterator has no place of its own to attach to: follow runs it over one process. */
	bpf_program__set_autoattach(t->skel->progs.enter_task, false);
	r = proc_bpf__attach(t->skel);
	if (r < 0)
		return give_reason(reason, r, "attaching to fork and exit");
	t->ring = ring_buffer__new(bpf_map__fd(t->skel->maps.exits), on_exit_event, t, NULL);
	if (!t->ring)
		return give_reason(reason, -errno, "the ring buffer");
	return 0;
}

int host_trace_start(struct sd_event *event, struct host_trace **ret_trace, char reason[256])
{
	struct host_trace *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return give_reason(reason, -ENOMEM, "trace");
	pthread_mutex_init(&t->lock, NULL);
	libbpf_set_print(log_libbpf);
	r = load(t, reason);
	if (r == 0 && event) {
		r = sd_event_add_io(event, &t->source, ring_buffer__epoll_fd(t->ring), EPOLLIN,
				    on_readable, t);
		if (r < 0)
			give_reason(reason, r, "the event loop");
	}
	if (r < 0) {
		host_trace_stop(t);
		return r;
	}
	*ret_trace = t;
	return 0;
}

void host_trace_stop(struct host_trace *t)
{
	if (!t)
		return;
	sd_event_source_disable_unref(t->source);
	ring_buffer__free(t->ring);
	proc_bpf__destroy(t->skel);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

/* Lets the kernel half enter the process in its map; the agent may not know its number there. */
static int enter(struct host_trace *t, int pidfd, struct proc_entered *ret_entered)
{
	union bpf_iter_link_info info = { .task.pid_fd = (uint32_t)pidfd };
	LIBBPF_OPTS(bpf_iter_attach_opts, opts, .link_info = &info, .link_info_len = sizeof(info));
	struct proc_entered entered;
	struct bpf_link *link;
	int fd, r;

	link = bpf_program__attach_iter(t->skel->progs.enter_task, &opts);
	if (!link)
		return -errno;
	fd = bpf_iter_create(bpf_link__fd(link));
	r = fd < 0 ? fd : 0;
	if (r == 0) {
		ssize_t n = read(fd, &entered, sizeof(entered));

		if (n < 0)
			r = -errno;
		else if (n < (ssize_t)sizeof(entered))
			r = -ESRCH;
		close(fd);
	}
	bpf_link__destroy(link);
	if (r == 0)
		*ret_entered = entered;
	return r;
}

static bool has_exited(int pidfd)
{
	struct pollfd pfd = { .fd = pidfd, .events = POLLIN };

	return poll(&pfd, 1, 0) != 0;
}

static int follow(struct host_trace *t, pid_t pid, int pidfd)
{
	struct root *root = find_root(t, pid);
	struct proc_entered entered = { 0 };
	int r;

	if (!root)
		root = find_root(t, 0);
	if (!root)
		return -ENOSPC;
	r = enter(t, pidfd, &entered);
	if (r < 0)
		return r;
	*root = (struct root){ .pid = pid,
			       .key = entered.key,
			       .start_boot_ns = entered.start_boot_ns };
	/* Its end is in the ring before its pidfd says so, unless it ended before it was entered. */
	if (has_exited(pidfd)) {
		ring_buffer__consume(t->ring);
		if (!root->ended) {
			drop_entry(t, root->key, root->start_boot_ns);
			root->pid = 0;
			return -ESRCH;
		}
	}
	return 0;
}

int host_trace_follow(struct host_trace *t, pid_t pid)
{
	_cleanup_close_ int pidfd = -1;
	int r;

	if (pid <= 0)
		return -EINVAL;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return -errno;
	pthread_mutex_lock(&t->lock);
	r = follow(t, pid, pidfd);
	pthread_mutex_unlock(&t->lock);
	return r;
}

/* Calls fn for each entry of the kernel's map with this root; fn may delete the entry. */
static void each_member(struct host_trace *t, uint32_t root,
			void (*fn)(void *ctx, uint32_t key, const struct proc_followed *value),
			void *ctx)
{
	int map = bpf_map__fd(t->skel->maps.followed);
	uint32_t key, next;
	bool more = bpf_map_get_next_key(map, NULL, &next) == 0;
	struct proc_followed value;

	/* The bound ends a walk that deletions or forks keep sending back to the start. */
	for (uint32_t n = 0; more && n < 2 * PROC_FOLLOWED_MAX; n++) {
		key = next;
		more = bpf_map_get_next_key(map, &key, &next) == 0;
		if (bpf_map_lookup_elem(map, &key, &value) == 0 && value.root == root)
			fn(ctx, key, &value);
	}
}

static void forget_member(void *ctx, uint32_t key, const struct proc_followed *value)
{
	drop_entry(ctx, key, value->start_boot_ns);
}

void host_trace_forget(struct host_trace *t, pid_t pid)
{
	struct root *root;

	pthread_mutex_lock(&t->lock);
	root = pid > 0 ? find_root(t, pid) : NULL;
	if (root) {
		ring_buffer__consume(t->ring);
		each_member(t, root->key, forget_member, t);
		for (size_t i = 0; i < ENDED_MAX; i++) {
			if (t->ended[i].pid && t->ended[i].root == root->key)
				t->ended[i].pid = 0;
		}
		memset(root, 0, sizeof(*root));
	}
	pthread_mutex_unlock(&t->lock);
}

static int find_status(struct host_trace *t, pid_t pid, int *ret_status)
{
	const struct root *root = find_root(t, pid);
	const struct ended *latest = NULL;

	if (root) {
		if (!root->ended)
			return -ENOENT;
		*ret_status = root->status;
		return 0;
	}
	for (size_t i = 0; i < ENDED_MAX; i++) {
		const struct ended *e = &t->ended[i];

		if (e->pid == (uint32_t)pid &&
		    (!latest || e->start_boot_ns > latest->start_boot_ns))
			latest = e;
	}
	if (!latest)
		return -ENOENT;
	*ret_status = latest->status;
	return 0;
}

int host_trace_exit_status(struct host_trace *t, pid_t pid, int *ret_status)
{
	int r;

	if (pid <= 0)
		return -ENOENT;
	pthread_mutex_lock(&t->lock);
	ring_buffer__consume(t->ring);
	r = find_status(t, pid, ret_status);
	pthread_mutex_unlock(&t->lock);
	return r;
}

struct member_list {
	pid_t *pids;
	size_t max, count;
};

static void add_member(void *ctx, uint32_t key, const struct proc_followed *value)
{
	struct member_list *list = ctx;

	(void)key;
	if (!value->pid)
		return;
	if (list->count < list->max)
		list->pids[list->count] = (pid_t)value->pid;
	list->count++;
}

int host_trace_members(struct host_trace *t, pid_t pid, pid_t *pids, size_t max, size_t *ret_count)
{
	struct member_list list = { .pids = pids, .max = max };
	struct root *root;
	int r = -ENOENT;

	pthread_mutex_lock(&t->lock);
	root = pid > 0 ? find_root(t, pid) : NULL;
	if (root) {
		ring_buffer__consume(t->ring);
		each_member(t, root->key, add_member, &list);
		r = list.count > max ? -ENOSPC : 0;
	}
	pthread_mutex_unlock(&t->lock);
	if (r == 0)
		*ret_count = list.count;
	return r;
}
