/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Open files of a job, and their images: files.img, fdinfo-N.img, fs-PID.img, remap and ghost
 * files, pipes-data, fifo-data, sk-queues, filelocks, tty-info, memfd.img, ipcns-*.img.
 *
 * files_collect() runs in the pause: it gives ids to everything (fds, mapped files, exe, cwd,
 * root), takes what the kernel would change once the job runs on (offsets are in the fd records
 * already; queued data of pipes and sockets, counters, timers, content of unlinked files), and
 * registers shared memory with mem_add_object(). files_write() makes the images afterwards.
 *
 * files.c      table of files, ids, fdinfo, fs          reg.c    regular files, ghosts, locks
 * pipes.c      pipes and FIFOs with content             events.c eventfd, epoll, signalfd, timerfd,
 * sockets.c    unix and unconnected inet sockets                 inotify
 * tty.c        ttys and ptys                            shm.c    memfd, shared anonymous, SysV IPC
 *
 * Errors: -EOPNOTSUPP names the descriptor and what it is. Source: CRIU 4.2 image formats.
 */
#pragma once

#include "agent/native/mem.h"
#include "agent/native/tree.h"

struct native_files; /* of one snapshot; lives on the tree's arena, but for its descriptors */

int files_collect(struct native_tree *tree, struct native_mem *mem,
		  struct native_files **ret_files) _must_check_;
int files_write(struct native_files *files) _must_check_;
void files_destroy(struct native_files *files);
/* Before the freeze (fds and VMAs are read by state_read_*): what is not covered, without waiting. */
int files_check(struct native_tree *tree) _must_check_;
