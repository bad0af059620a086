/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checkpoints that are being looked into: the verbs "snapshot" and "read" (docs/export.md).
 * Private to agent/job.
 *
 * A request names a checkpoint by the hash of its manifest, which never means another one. The
 * manifest stays open between requests, with a spool of the packs that were fetched (ciphertext, a
 * nameless file in the state folder). Limits: READINGS_MAX at once, the one that was not used for
 * longest gives way; READINGS_ALIVE_MAX with those that requests still use, further ones are told
 * -EBUSY; closed after READING_IDLE_S; all spools together take half of the free disk at most.
 * Threading: any; one read of a snapshot at a time.
 */
#pragma once

#include "agent/job/verbs.h"

struct reading {
	struct agent *agent;
	struct job_id job;
	struct object_hash hash; /* of the manifest */
	uid_t uid;		 /* the job's user */
	struct manifest *manifest;
	struct json_object *mounts; /* of its notes, or NULL */
	int refs;		    /* guarded by the table's lock, as is the next one */
	uint64_t used_boot_ns;

	pthread_mutex_t lock; /* guards the rest */
	struct manifest_reader *reader;
	struct fetch_ctx fetch;
	bool judged; /* may its user see the memory of all its processes? */
	int verdict;
};

/* The checkpoint of the target's register with this hash, -ENOENT or -EBUSY. With a reference. */
int reading_open(struct target *t, const struct object_hash *hash,
		 struct reading **ret_reading) _must_check_;
/* One that is open already, of a job that this caller may look into; NULL: none. */
struct reading *reading_find(struct agent *a, const struct api_call *call, const struct job_id *job,
			     const struct object_hash *hash);
void reading_unref(struct agent *a, struct reading *s);

/* 0, or -EPERM: this caller may not have that file of it. */
int reading_may_read(struct reading *s, const struct api_call *call, size_t file) _must_check_;
/* Exactly size bytes, verified. */
int reading_read(struct reading *s, size_t file, uint64_t offset, void *ret_bytes,
		 size_t size) _must_check_;
