/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Layouts shared by bpf/proc.bpf.c and agent/host/trace.c. Host byte order, no padding.
 * __u32 and friends come from linux/types.h or bpf/kernel.h.
 */
#pragma once

enum { PROC_FOLLOWED_MAX = 65536, PROC_RING_BYTES = 256 << 10 };

/* Value of the map of followed processes; its key is the PID in the initial PID namespace. */
struct proc_followed {
	__u64 start_boot_ns; /* tells a process from a later one with its PID */
	__u32 root;	     /* key of the process that host_trace_follow() was called for */
	__u32 pid;	     /* in the daemon's PID namespace, 0 if it has none there */
};

/* A followed process has ended. */
struct proc_exit {
	__u64 start_boot_ns;
	__u32 key;
	__u32 root;
	__u32 pid;
	__s32 status; /* as wait(2) gives it */
};

/* What the iterator prints of the process it just entered in the map. */
struct proc_entered {
	__u64 start_boot_ns;
	__u32 key;
	__u32 reserved;
};

_Static_assert(sizeof(struct proc_followed) == 16, "no padding");
_Static_assert(sizeof(struct proc_exit) == 24, "no padding");
_Static_assert(sizeof(struct proc_entered) == 16, "no padding");
