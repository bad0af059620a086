/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What shm.c (memfd, shared anonymous memory) and sysv.c (System V IPC) share.
 *
 * A shared memory object is one inode, whoever has it open or mapped: its content is registered
 * once with mem_add_object(), with the device as records show it (major << 20 | minor). All three
 * kinds lie on one device of the kernel's own, where a System V segment has its id as inode number.
 */
#pragma once

#include "agent/native/files_internal.h"

enum {
	SHM_BUCKETS = 256,
	/* Bits of a VMA entry's status, in CRIU's format. */
	SHM_FILE_PRIVATE = 0x40,
	SHM_FILE_SHARED = 0x80,
	SHM_ANON_SHARED = 0x100,
	SHM_SYSVIPC = 0x400,
	SHM_MEMFD = 0x4000,
};

struct shm_object {
	struct shm_object *chain; /* of its bucket */
	struct shm_object *next;  /* in the order of appearance */
	bool sysv;
	uint64_t ino, size;
	uint32_t dev, uid, gid, mode, seals;
	uint32_t inode_id, shmid;
	uint32_t map_id; /* of a files.img entry for those who map it; 0: nobody does */
	char *name;
	/* System V: a place where it is attached. */
	const struct native_task *task;
	uint64_t start, end;
};

/* On files->area_facts[AREA_SHM]. */
struct shm_area {
	struct shm_object *first, **last;
	struct shm_object *buckets[SHM_BUCKETS];
	uint32_t device;   /* where all of them live */
	struct sysv *sysv; /* NULL: no System V objects */
};

struct shm_object *shm_find(const struct shm_area *a, bool sysv, uint64_t ino);
/* /proc/PID/map_files: a descriptor of what is mapped there. */
int shm_open_map(const struct native_task *task, uint64_t start, uint64_t end) _must_check_;

/*
 * sysv.c. In the pause: nothing at all unless the job has its own IPC namespace, and if so three
 * counts. Objects in there set tree->ipc_ns_id.
 */
int sysv_collect(struct native_files *f, struct shm_area *a) _must_check_;
int sysv_write(struct native_files *f, const struct shm_area *a) _must_check_;
void sysv_destroy(struct shm_area *a);
