// SPDX-License-Identifier: GPL-2.0-only
/*
 * Followed process trees: whoever is in the map passes on its membership at fork and reports its
 * wait(2) status at exit. Which processes to follow, and what their end means, is the agent's
 * business.
 */
#include "bpf/kernel.h"
#include "bpf/proc.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

enum { PID_LEVELS_MAX = 32, SIGNAL_GROUP_EXIT = 4 };

char _license[] SEC("license") = "GPL";

/* Inode of the daemon's PID namespace: events carry the PIDs that it knows. */
const volatile __u32 daemon_pid_ns = 0;

/* Exits that found the ring full. */
__u64 lost_exits = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PROC_FOLLOWED_MAX);
	__type(key, __u32);
	__type(value, struct proc_followed);
} followed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, PROC_RING_BYTES);
} exits SEC(".maps");

static __u32 pid_for_daemon(struct task_struct *leader)
{
	struct pid *pid = BPF_CORE_READ(leader, thread_pid);
	__u32 level = BPF_CORE_READ(pid, level);
	char *number = (char *)pid + bpf_core_field_offset(struct pid, numbers);

	for (__u32 i = 0; i < PID_LEVELS_MAX && i <= level; i++) {
		struct upid *upid = (void *)(number + i * bpf_core_type_size(struct upid));

		if (BPF_CORE_READ(upid, ns, ns.inum) == daemon_pid_ns)
			return BPF_CORE_READ(upid, nr);
	}
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	__u32 parent_key = parent->tgid, key = child->tgid;
	struct proc_followed *of_parent, value = {};

	if (key == parent_key)
		return 0; /* a thread */
	of_parent = bpf_map_lookup_elem(&followed, &parent_key);
	if (!of_parent ||
	    of_parent->start_boot_ns != BPF_CORE_READ(parent, group_leader, start_boottime))
		return 0;
	value.root = of_parent->root;
	value.start_boot_ns = child->start_boottime;
	value.pid = pid_for_daemon(child);
	bpf_map_update_elem(&followed, &key, &value, BPF_ANY);
	return 0;
}

/*
 * signal->live counts threads that have not begun to exit, and has been counted down by now. Two
 * threads that exit at once may both see zero; the agent takes the later word for the same process.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	__u32 key = task->tgid;
	struct proc_followed *entry = bpf_map_lookup_elem(&followed, &key);
	struct task_struct *leader;
	struct proc_exit *event;

	if (!entry || BPF_CORE_READ(task, signal, live.counter) > 0)
		return 0;
	leader = BPF_CORE_READ(task, group_leader);
	if (entry->start_boot_ns != BPF_CORE_READ(leader, start_boottime))
		return 0;
	event = bpf_ringbuf_reserve(&exits, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&lost_exits, 1);
		return 0;
	}
	event->start_boot_ns = entry->start_boot_ns;
	event->key = key;
	event->root = entry->root;
	event->pid = entry->pid;
	if (BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		event->status = BPF_CORE_READ(task, signal, group_exit_code);
	else
		event->status = BPF_CORE_READ(leader, exit_code);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/*
 * Run by the agent over one process that it knows by its pidfd: enters it in the map, under the
 * number that fork and exit see, and prints the entry.
 */
SEC("iter/task")
int enter_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct proc_entered entered = {};
	struct proc_followed value = {};

	if (!task || task->pid != task->tgid)
		return 0;
	entered.key = task->tgid;
	entered.start_boot_ns = task->start_boottime;
	value.root = entered.key;
	value.start_boot_ns = entered.start_boot_ns;
	value.pid = pid_for_daemon(task);
	if (bpf_map_update_elem(&followed, &entered.key, &value, BPF_ANY) == 0)
		bpf_seq_write(ctx->meta->seq, &entered, sizeof(entered));
	return 0;
}
