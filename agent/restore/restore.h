/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * manifest -> files, images -> CRIU restore in fresh namespaces; and results -> home.
 *
 * Order (each step undone if a later one fails; nothing of the job runs before `ready` agreed):
 *   lay out upper/, images (empty files) -> fetch and fill -> owners, modes, times,
 *   xattrs -> keeper with namespaces -> criu restore -> ready() (lease still good?) -> running
 * A closure file that this host has already (same path, size and SHA-256 below its own root) is
 * neither fetched nor laid out. Everything was authenticated by manifest_open(); paths are used
 * below directory fds with RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS all the same.
 *
 * Threading: blocking; one per job. Source: CRIU's own restore rules (size, mode, build-id checked).
 */
#pragma once

#include "agent/keeper/keeper.h"
#include "agent/pack/pack.h"
#include "agent/restore/lazy.h"

enum { RESTORE_REASON_MAX = 512, RESTORE_LAZY_BYTES = 128 << 20, RESTORE_SLEEPS_MAX = 256 };

struct restore_request {
	const struct manifest *manifest;
	const struct secret_key *job_key;
	const char *state_dir;	/* STATE/jobs/ID: emptied and laid out anew */
	const char *images_dir; /* exists, empty; needed until the restore is over */
	const char *criu;
	struct keeper_config keeper; /* helper_pid is filled in here */
	pack_fetch_fn fetch;
	void *fetch_ctx;
	struct packer *seed; /* learns the blocks */
	void (*progress)(void *ctx, const char *step, uint64_t done, uint64_t total);
	int (*ready)(void *ctx); /* < 0: do not let it run */
	void *ctx;
	/*
	 * Not NULL: may run before all its memory is there, if that is more than lazy_min_bytes. Then
	 * *ret_lazy is set, else it is NULL; manifest, job_key, fetch_ctx and seed must live until
	 * restore_lazy_end(), and seed is not to be used before.
	 */
	struct restore_lazy **ret_lazy;
	/*
	 * Not to be run before all of its memory is there, yet that may go where it belongs, through
	 * userfaultfds, instead of into images first: if it is more than lazy_min_bytes. Not with
	 * ret_lazy.
	 */
	bool direct;
	uint64_t lazy_min_bytes; /* 0: RESTORE_LAZY_BYTES */
	/* Not NULL: a sentence on threads that were asleep for a time; empty if none was. */
	char *ret_sleeps; /* RESTORE_SLEEPS_MAX */
	struct lazy_events lazy_events;
};

/* On success the job runs and *ret_keeper watches it. */
int restore_job(const struct restore_request *request, struct keeper **ret_keeper,
		char reason[RESTORE_REASON_MAX]) _must_check_;

/* One file's content as of a manifest, for `decamp cat` and logs: into out_fd. */
int restore_file(const struct manifest *m, const struct secret_key *job_key, size_t index,
		 pack_fetch_fn fetch, void *fetch_ctx, int out_fd) _must_check_;

struct results_request {
	const struct manifest *manifest;
	const struct secret_key *job_key;
	pack_fetch_fn fetch;
	void *fetch_ctx;
	const char *cwd;	 /* submission directory */
	const char *side_folder; /* name beside a changed file, e.g. "NAME.decamp-results" */
	uid_t uid;
	gid_t gid;
	uint64_t submit_wall_ms;
};

struct results_report {
	uint32_t written, deleted, set_aside, failed;
	char first_set_aside[256]; /* a path, for the message */
};

/*
 * Writes a finished job's files back where it was submitted, as its user (a forked child with the
 * user's ids): temporary name, fsync, rename. A file that exists and whose ctime is not older than
 * the submission is never overwritten: the job's version goes to cwd/side_folder/path; so does what
 * the user may not write. Files the job left in /tmp, /var/tmp, /run, /dev stay behind.
 */
int restore_results(const struct results_request *request,
		    struct results_report *ret_report) _must_check_;
