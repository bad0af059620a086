// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/state.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/native/state_internal.h"
#include "agent/util/bpf.h"
#include "bpf/state.skel.h"

#define LOG_TAG "native"
#include "agent/util/log.h"

enum {
	BUFFER_MIN = 1 << 20,
	BUFFER_MAX = 256 << 20,
	READ_ROOM = 64 << 10, /* the kernel gives at most 32 KiB at once */
	REASON_BYTES = NATIVE_REASON_MAX,
	/* Beyond, used iterators are closed in the pause: each holds 32 KiB of kernel memory. */
	KEEP_USED_MAX = 64,
};

/* Iterators that stand ready for one process; -1: used up. */
struct prepared {
	pid_t pid;
	int fds[ITER_KINDS];
	int used[ITER_KINDS]; /* to be closed when there is time */
};

struct native_state {
	struct state_bpf *skel;
	uint32_t user_ns, net_ns, cgroup_ns;   /* of this process */
	int64_t own_monotonic_ns, own_boot_ns; /* our clocks are the host's plus this */
	struct prepared *prepared;
	size_t prepared_count, cursor; /* cursor: where the last one was found */
	uint8_t *buffer;	       /* touched before use */
	size_t buffer_size;
};

static int give_reason(char reason[REASON_BYTES], int r, const char *what)
{
	const char *hint = r == -EPERM ? " (CAP_BPF and CAP_PERFMON are needed)" : "";

	snprintf(reason, REASON_BYTES, "%s: %s%s", what, strerror(-r), hint);
	return r == -ENOMEM ? r : -EOPNOTSUPP;
}

static int namespace_number(const char *path, uint32_t *ret_number)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return -errno;
	*ret_number = (uint32_t)st.st_ino;
	return 0;
}

static int try_load(struct native_state *s, uint32_t pid_ns, bool can_name_exe)
{
	int r;

	s->skel = state_bpf__open();
	if (!s->skel)
		return -errno;
	s->skel->rodata->reader_pid_ns = pid_ns;
	s->skel->rodata->can_name_exe = can_name_exe;
	r = state_bpf__load(s->skel);
	if (r < 0) {
		state_bpf__destroy(s->skel);
		s->skel = NULL;
	}
	return r;
}

static int load(struct native_state *s, char reason[REASON_BYTES])
{
	uint32_t pid_ns = 0;
	int r;

	if (access("/sys/kernel/btf/vmlinux", R_OK) < 0)
		return give_reason(reason, -errno, "the kernel's BTF, /sys/kernel/btf/vmlinux");
	r = namespace_number("/proc/self/ns/pid", &pid_ns);
	if (r == 0)
		r = namespace_number("/proc/self/ns/user", &s->user_ns);
	if (r == 0)
		r = namespace_number("/proc/self/ns/net", &s->net_ns);
	if (r == 0 && namespace_number("/proc/self/ns/cgroup", &s->cgroup_ns) < 0)
		s->cgroup_ns = 0;
	if (r < 0)
		return give_reason(reason, r, "/proc/self/ns");
	libbpf_set_print(log_libbpf);
	r = try_load(s, pid_ns, true);
	if (r < 0)
		r = try_load(s, pid_ns, false);
	return r < 0 ? give_reason(reason, r, "loading the BPF programs") : 0;
}

/* Grows the buffer, keeping what is in it; the new pages are touched. */
static int grow(struct native_state *s, size_t size)
{
	uint8_t *b;

	if (size > BUFFER_MAX)
		return -EFBIG;
	b = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1,
		 0);
	if (b == MAP_FAILED)
		return -ENOMEM;
	(void)mlock(b, size);
	if (s->buffer) {
		memcpy(b, s->buffer, s->buffer_size);
		munmap(s->buffer, s->buffer_size);
	}
	s->buffer = b;
	s->buffer_size = size;
	return 0;
}

static int program_of(struct native_state *s, enum state_iterator kind)
{
	switch (kind) {
	case ITER_TASKS:
		return bpf_program__fd(s->skel->progs.state_tasks);
	case ITER_VMAS:
		return bpf_program__fd(s->skel->progs.state_vmas);
	case ITER_WRITERS:
		return bpf_program__fd(s->skel->progs.state_writers);
	default:
		return bpf_program__fd(s->skel->progs.state_fds);
	}
}

/*
 * Limited to one process, not to one thread: Linux 6.18 gives the second half of a list of VMAs that
 * is longer than its buffer again and again if it is asked for one thread.
 */
static int open_iterator(struct native_state *s, enum state_iterator kind, pid_t pid, int *ret_fd)
{
	union bpf_iter_link_info info = { 0 };
	LIBBPF_OPTS(bpf_link_create_opts, opts, .iter_info = &info, .iter_info_len = sizeof(info));
	int link, fd;

	info.task.pid = (uint32_t)pid;
	link = bpf_link_create(program_of(s, kind), 0, BPF_TRACE_ITER, &opts);
	if (link < 0)
		return link;
	/* The iterator lives on without its link. */
	fd = bpf_iter_create(link);
	close(link);
	if (fd < 0)
		return fd;
	*ret_fd = fd;
	return 0;
}

static int read_iterator(struct native_state *s, int fd, size_t *ret_size)
{
	size_t used = 0;
	ssize_t n;

	for (;;) {
		if (s->buffer_size - used < READ_ROOM) {
			int r = grow(s, s->buffer_size * 2);

			if (r < 0)
				return r;
		}
		n = read(fd, s->buffer + used, s->buffer_size - used);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		if (n == 0)
			break;
		if (n > 0)
			used += (size_t)n;
	}
	*ret_size = used;
	return 0;
}

static struct prepared *find_prepared(struct native_state *s, pid_t pid)
{
	for (size_t n = 0; n < s->prepared_count; n++) {
		if (s->prepared[s->cursor].pid == pid)
			return &s->prepared[s->cursor];
		s->cursor = (s->cursor + 1) % s->prepared_count;
	}
	return NULL;
}

int state_iterate(struct native_state *s, enum state_iterator kind, pid_t pid, bool prepared,
		  const uint8_t **ret_records, size_t *ret_size)
{
	struct prepared *p = prepared ? find_prepared(s, pid) : NULL;
	bool ready = p && p->fds[kind] >= 0;
	int fd = ready ? p->fds[kind] : -1, r;

	if (!ready) {
		r = open_iterator(s, kind, pid, &fd);
		if (r < 0)
			return r;
	}
	r = read_iterator(s, fd, ret_size);
	if (ready)
		p->fds[kind] = -1;
	if (ready && s->prepared_count <= KEEP_USED_MAX)
		p->used[kind] = fd;
	else
		close(fd);
	if (r == 0)
		*ret_records = s->buffer;
	return r;
}

static void drop_prepared(struct native_state *s)
{
	for (size_t i = 0; i < s->prepared_count; i++) {
		for (int k = 0; k < ITER_KINDS; k++) {
			close_fdp(&s->prepared[i].fds[k]);
			close_fdp(&s->prepared[i].used[k]);
		}
	}
	free(s->prepared);
	s->prepared = NULL;
	s->prepared_count = s->cursor = 0;
}

/* What cannot be prepared, for want of descriptors or memory, is opened when it is needed. */
int state_prepare(struct native_state *s, struct native_tree *tree)
{
	drop_prepared(s);
	s->prepared = calloc(tree->task_count ? tree->task_count : 1, sizeof(*s->prepared));
	if (!s->prepared)
		return -ENOMEM;
	for (size_t i = 0; i < tree->task_count; i++) {
		struct prepared *p = &s->prepared[s->prepared_count++];

		p->pid = tree->tasks[i].pid;
		for (int k = 0; k < ITER_KINDS; k++) {
			p->fds[k] = p->used[k] = -1;
			if (open_iterator(s, (enum state_iterator)k, p->pid, &p->fds[k]) < 0)
				p->fds[k] = -1;
		}
	}
	return 0;
}

/* Does it say the truth of ourselves, and nothing of others? Kernels before 6.1 show all tasks. */
static int self_test(struct native_state *s, char reason[REASON_BYTES])
{
	const struct state_thread *t;
	const struct state_process *p;
	const uint8_t *records;
	size_t size;
	int r = state_iterate(s, ITER_TASKS, getpid(), false, &records, &size);

	if (r < 0)
		return give_reason(reason, r, "iterating over one process");
	t = (const struct state_thread *)records;
	p = (const struct state_process *)(t + 1);
	if (size < sizeof(*t) + sizeof(*p) || (size - sizeof(*p)) % sizeof(*t) != 0 ||
	    t->host_tid != (uint32_t)getpid() || p->host_pid != (uint32_t)getpid() ||
	    t->creds.uid != getuid() || p->ns_user != s->user_ns || p->brk < p->start_brk) {
		snprintf(reason, REASON_BYTES,
			 "the kernel's task iterator cannot be limited to one process, or its "
			 "structures are not understood");
		return -EOPNOTSUPP;
	}
	s->own_monotonic_ns = p->timens_monotonic_ns;
	s->own_boot_ns = p->timens_boot_ns;
	return 0;
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	if (clock_gettime(clock, &ts) < 0)
		return 0;
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

void state_read_clocks(const struct native_state *s, struct native_tree *tree)
{
	tree->freeze_mono_ns = clock_ns(CLOCK_MONOTONIC) - (uint64_t)s->own_monotonic_ns;
	tree->freeze_boot_ns = clock_ns(CLOCK_BOOTTIME) - (uint64_t)s->own_boot_ns;
	tree->freeze_wall_ns = clock_ns(CLOCK_REALTIME);
}

int state_create(struct native_state **ret_state, char reason[NATIVE_REASON_MAX])
{
	struct native_state *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return give_reason(reason, -ENOMEM, "state");
	r = grow(s, BUFFER_MIN);
	if (r < 0)
		give_reason(reason, r, "buffer of the iterators");
	if (r == 0)
		r = load(s, reason);
	if (r == 0)
		r = self_test(s, reason);
	if (r < 0) {
		state_destroy(s);
		return r;
	}
	*ret_state = s;
	return 0;
}

void state_destroy(struct native_state *s)
{
	if (!s)
		return;
	drop_prepared(s);
	state_bpf__destroy(s->skel);
	if (s->buffer)
		munmap(s->buffer, s->buffer_size);
	free(s);
}

bool state_is_foreign(const struct native_state *s, const struct state_process *p,
		      const char **ret_what)
{
	const char *what = NULL;

	if (p->ns_user != s->user_ns)
		what = "user";
	else if (p->ns_net != s->net_ns)
		what = "network";
	else if (s->cgroup_ns && p->ns_cgroup != s->cgroup_ns)
		what = "cgroup";
	if (what)
		*ret_what = what;
	return what != NULL;
}
