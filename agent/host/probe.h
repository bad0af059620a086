/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Kernel features, tried out for real on this process or a short-lived child; nothing is left
 * behind. Each answers within some ms. Threading: reentrant, safe with threads around (children
 * make system calls only).
 *
 * Source: userfaultfd(2), Documentation/admin-guide/mm/{pagemap,soft-dirty}.rst.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Is a capability (CAP_…) in the effective set? */
bool probe_capability(unsigned int capability);
/* userfaultfd WP_ASYNC with PAGEMAP_SCAN: of four armed pages exactly the written one shows. */
bool probe_wp_async(void);
/* userfaultfd for missing pages of another process, with its events: memory on demand. */
bool probe_lazy_memory(void);
/* clear_refs and the soft-dirty bit of pagemap. */
bool probe_soft_dirty(void);
/* A real-time thread. */
bool probe_sched_fifo(void);
/* 16 MiB of locked memory. */
bool probe_mlock(void);
/* Fresh PID, mount, IPC and UTS namespaces. */
bool probe_namespaces(void);
/*
 * An overlay with its upper and work folder below dir (which exists) and lower as its only lower
 * layer, in a private mount namespace.
 */
bool probe_overlay(const char *dir, const char *lower);
/* Restartable sequences: rseq(2) is there. */
bool probe_rseq(void);
/* Areas of more than 32 bytes for it. */
bool probe_rseq_long(void);
/* Pages inside a mapping that nobody may touch: MADV_GUARD_INSTALL. */
bool probe_guards(void);
/* F_SEAL_EXEC. */
bool probe_exec_seal(void);
/* Shadow stacks of programs, if the CPU has them, too. */
bool probe_shadow_stack(void);
/* The highest PID there is, in a fresh namespace. */
bool probe_high_pids(void);
/* Freeze and thaw of an empty cgroup below base. */
bool probe_cgroup_freeze(const char *base);
