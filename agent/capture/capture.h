/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * process -> snapshot: tasks, memory and files of a job, taken at one frozen instant.
 *
 *   stop all tasks -> CRIU images -> copy what changed in the upper layer -> let go -> (pack reads)
 *
 * Two engines: `native` (agent/native: a pause of about a millisecond) and `criu` for whatever native
 * does not cover, with the reason kept. Whatever fails, the job runs on (G1). In the pause only
 * copying is done: hashing, packing, sending come after.
 *
 * Files: the job's overlay upper layers are walked at the frozen instant; a regular file whose
 * (inode, size, mtime, ctime) are those of the last captured state is "unchanged" unless it is or
 * was mapped shared and writable or changed within CAPTURE_CTIME_SLACK_MS of the last freeze;
 * others are copied (reflink where the file system can) into the snapshot. The closure (executable,
 * mapped files, files open for reading, the tree below the working directory as it was at
 * submission, --input paths) is read from the lower layer after the thaw.
 *
 * Limits: CAPTURE_FILES_MAX files, closure of at most closure_max_bytes below the working directory
 * (beyond: an error that names the biggest folder). Threading: one capture per job at a time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "agent/keeper/keeper.h"
#include "agent/native/native.h"

enum {
	CAPTURE_FILES_MAX = 1 << 20,
	CAPTURE_CTIME_SLACK_MS = 50,
	CAPTURE_REASON_MAX = 512,
	CAPTURE_SHM_LAYER = 1000, /* upper files "1000/path" are those of the job's /dev/shm */
};

struct capture;	 /* what is remembered from one capture of a job to the next */
struct snapshot; /* one frozen instant; lives in spool_dir until destroyed */

struct capture_config {
	const char *state_dir;	   /* STATE/jobs/ID: upper/N */
	const char *cwd;	   /* working directory at submission */
	const char *const *inputs; /* NULL-terminated further paths to carry along; may be NULL */
	bool carry_cwd;		   /* closure has the tree below cwd */
	uint64_t closure_max_bytes;
	const char *cgroup_dir; /* the job's, or NULL */
	bool adopted;		/* files are the host's own, until the first restore */
};

/* Reads nothing yet. config is copied. */
int capture_create(const struct capture_config *config, struct capture **ret_capture) _must_check_;
void capture_destroy(struct capture *c);

enum capture_after { CAPTURE_RUN_ON, CAPTURE_STAY_FROZEN };

enum capture_engine {
	CAPTURE_AUTO,	/* native, and criu where that does not work */
	CAPTURE_NATIVE, /* or fail */
	CAPTURE_CRIU,
};

struct capture_request {
	struct keeper *keeper;
	const char *criu;
	const char *native; /* decamp-capture; NULL or empty: criu only */
	enum capture_engine engine;
	/* Blocks of the last accepted snapshot's pages-N.img that the packer needs again. */
	const struct native_wanted *wanted;
	size_t wanted_count;
	bool forget;	       /* the packer does not know that snapshot: memory is copied whole */
	const char *spool_dir; /* exists, empty, root only, tmpfs or disk */
	bool files_only;       /* the job has ended: upper layers only, no tasks, no images, no
				   * closure; keeper and criu are not used */
	enum capture_after after; /* STAY_FROZEN: the cgroup is frozen before the tasks are let go */
	bool unprivileged_dump;	  /* no CAP_SYS_RESOURCE: CRIU runs as the job's user */
	uid_t uid;
	gid_t gid;
};

struct snapshot_info {
	uint64_t pause_us, freeze_us, files_us; /* breakdown of the pause; files_us is part of it */
	uint64_t mem_bytes;
	uint64_t wall_ms; /* of the frozen instant */
	uint32_t tasks;
	uint32_t kernel_need; /* enum kernel_feature: what these images ask of a kernel */
	char engine[16];
	char fallback[CAPTURE_REASON_MAX]; /* why not native; empty if native, or not tried */
	struct native_result native;	   /* all 0 with another engine */
	char *meta_json; /* {"root_pid":…,"pids":[…],"mounts":[…],"shell_job":…}: for restore */
};

/* reason: a sentence that names the object, what is wrong with it and the next step. */
int capture_take(struct capture *c, const struct capture_request *request,
		 struct snapshot **ret_snapshot, char reason[CAPTURE_REASON_MAX]) _must_check_;
const struct snapshot_info *snapshot_info(const struct snapshot *s);
void snapshot_destroy(struct snapshot *s); /* removes the spool's content */

enum snapshot_kind { SNAPSHOT_IMAGE = 1, SNAPSHOT_UPPER = 2, SNAPSHOT_CLOSURE = 3 };

struct snapshot_file {
	enum snapshot_kind kind; /* same values and path rules as enum file_kind of pack.h */
	const char *path;
	struct stat st;
	const char *link_target;
	const uint8_t *xattrs;
	size_t xattrs_size;
	int fd; /* regular files; -1: unchanged since the snapshot that was last accepted */
	/* Not NULL: the content is put together of blocks, RUN_NEW ones from fd, RUN_OLD ones from
	 * the image of that name in the snapshot that was last accepted. */
	const struct native_run *runs;
	size_t run_count;
};

/*
 * Calls fn for every file of the snapshot (folders before what is in them), stops at the first
 * error. force_content: give an fd for every regular file (fn answered -ENOENT to an unchanged one).
 */
int snapshot_each(struct snapshot *s, bool force_content,
		  int (*fn)(void *ctx, const struct snapshot_file *file), void *ctx) _must_check_;

/*
 * After a restore, before the job runs: the layers are as the manifest says, and the packer knows
 * their content. Without this the first capture copies all of it in its pause.
 */
int capture_learn_restored(struct capture *c) _must_check_;

/* The packer has read it all: from now on "unchanged" means "as in this snapshot". */
void snapshot_accept(struct capture *c, const struct snapshot *s);
