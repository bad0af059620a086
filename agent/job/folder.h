/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Writable folders: files that a user's decamp(1) sends, kept as versions on peers (docs/folder.md).
 *
 *   folder-begin, { folder-add | folder-write }, folder-commit -> packer -> holders -> register
 *
 * A folder is a job without processes: an entry of the register, FENCE_COMMIT, with needs that no
 * host can meet, so that no guardian ever gives it to another one. Its host is the one where it was
 * made. A version is a checkpoint of it. It stands in no table of jobs; what walks over jobs never
 * meets one.
 *
 * Limits: below. Threading: the table by folders_lock; a folder's requests one at a time, by its
 * lock; the job inside by its own. Errors: -errno; a request that fails gives the upload up, what
 * was committed stays.
 */
#pragma once

#include <json-c/json.h>

#include "agent/job/job.h"
#include "agent/job/needs.h"
#include "agent/pack/chunk.h"

enum {
	FOLDER_KEEP_MAX = 32, /* versions */
	FOLDER_KEEP = 8,
	FOLDER_EVERY_S = 30,
	FOLDER_USER_MAX = 8,	       /* folders of one user here */
	FOLDER_CREATES_S = 600,	       /* so long the register remembers an ended one */
	FOLDER_CREATES_USER = 16,      /* that one user makes within this time */
	FOLDER_FILES_MAX = 65536,      /* files, folders and links in one version */
	FOLDER_NAMES_MAX = 16 << 20,   /* bytes of all their paths and targets, 64 for each more */
	FOLDER_WRITE_MAX = 128 << 10,  /* bytes in one request */
	FOLDER_INDEX_BYTES = 16 << 20, /* of each packer: knows the blocks of 2 GiB or less */
	FOLDER_EXTENTS_MAX = 1 << 20,  /* pieces of all files of a version: 12 bytes each */
	FOLDER_UPLOADS_MAX = 4,	       /* at one time, of which two of one user */
	FOLDER_UPLOADS_USER = 2,
	FOLDER_COPY_MAX = 40,
	FOLDER_IDLE_S = 60, /* an upload that nobody goes on with is given up */
};
#define FOLDER_FILE_MAX (INT64_C(16) << 30)
/* A contradiction: no host has it, whatever its tags are, so no guardian gives a folder away. */
#define FOLDER_NEEDS "decamp-folder && !decamp-folder"

struct folder_version {
	struct ckpt_ref ref;
	bool sync; /* made by fsync(2): the next version takes its place */
	uint64_t files, bytes;
	uint64_t sent;		     /* packs that were written for it, and its manifest */
	char copy[FOLDER_COPY_MAX];  /* which working copy it was made of; "": not told */
	char stamp[FOLDER_COPY_MAX]; /* the newest one: its sender's name of this commit, or "" */
	struct pack_object *objects; /* all that it needs; NULL: not known yet */
	size_t object_count;
};

struct folder_upload {
	atomic_ullong number; /* 0: none is under way */
	atomic_ullong used_boot_ns;
	int spool; /* a file without a name: what the next entry's content is */
	uint64_t spool_size, spool_max;
	size_t entries, names;
	uint64_t bytes; /* of all files */
	char copy[FOLDER_COPY_MAX];
	bool knows_last; /* the caller's last version is the one that the packer knows */
};

struct folder {
	/* Register, key, packer and side channel. versions change under its lock, too. */
	struct job *job;
	uint32_t keep;
	int refs; /* guarded by folders_lock */

	pthread_mutex_t lock; /* one request at a time; guards the rest */
	atomic_bool ready;    /* its lease is held and its versions are known */
	atomic_bool gone;     /* deleted, or another host's */
	bool killed;	      /* deleted, says the register */
	struct folder_version versions[FOLDER_KEEP_MAX]; /* newest first */
	size_t version_count;
	/* Bytes of all their objects, each once; -1: not known, -2: nor to be had. Under both locks. */
	int64_t stored;
	uint64_t packer_seq; /* the version whose contents the packer knows; 0: none */
	struct folder_upload upload;
};

/* ---- folder.c ---- */
/* Folders of an earlier life; they are taken up in a thread. */
int folders_start(struct agent *a) _must_check_;
/* Gives up what nobody goes on with; never waits. */
void folders_tick(struct agent *a);
/* From the event loop: the register gave it to this host, or to another one. */
int folder_granted(struct agent *a, const struct job_value *value,
		   const struct job_seal *seal) _must_check_;
void folder_lost(struct agent *a, const struct job_id *id);
/* With a reference. -EEXIST, -ENOSPC: FOLDERS_MAX are here. */
int folder_add(struct agent *a, const struct job_value *value, const struct job_seal *seal,
	       struct folder **ret_folder) _must_check_;
/*
 * A new one of its user's, before the register knows it: the room for it is taken. -ENOSPC,
 * -EDQUOT: the user has FOLDER_USER_MAX, -EEXIST: or one of that name, -EBUSY: too many were made
 * lately. Its lock is held on return.
 */
int folder_reserve(struct agent *a, const struct job_value *value, const struct job_seal *seal,
		   struct folder **ret_folder) _must_check_;
struct folder *folder_find(struct agent *a,
			   const struct job_id *id); /* with a reference, or NULL */
void folder_unref(struct agent *a, struct folder *f);
/* All of them, with references. */
size_t folders_all(struct agent *a, struct folder *ret_folders[FOLDERS_MAX]);
/* Its lock is held. Asks the register, holds the lease, reads the list of versions. */
int folder_resume(struct folder *f) _must_check_;
/* Its lock is held. The register took it: under this value. */
void folder_created(struct folder *f, const struct job_value *value);
/* Its lock is held. Nothing of it is here any more. */
void folder_leave(struct folder *f);
int folder_save(struct folder *f) _must_check_;
void folders_wake(struct agent *a);

/* ---- folder_version.c ---- */
/* Of a manifest's notes; versions: room for FOLDER_KEEP_MAX, the manifest's own comes first. */
int folder_versions_decode(const char *meta_json, const struct ckpt_ref *ref,
			   struct folder_version *versions, size_t *ret_count) _must_check_;
/* The notes of a new version, of which `own` tells; the caller puts them. */
struct json_object *folder_versions_encode(const struct folder_version *own,
					   const struct folder_version *older, size_t count);
void folder_version_deinit(struct folder_version *v);
/* Of a manifest: its notes, and what it says itself. */
int folder_versions_read(const struct manifest *m, const struct ckpt_ref *ref,
			 struct folder_version *versions, size_t *ret_count) _must_check_;
/* Any host: the list of a folder's versions, by way of its newest manifest. */
int folder_versions_of(struct agent *a, int channel, const struct job_value *value,
		       const struct job_seal *seal, struct folder_version *versions,
		       size_t *ret_count) _must_check_;

/* ---- folder_find.c ---- */
enum { FOLDER_LABEL_MAX = JOB_NAME_MAX + OV_NAME_MAX + 1 };
/* One of the caller's. */
struct folder_row {
	struct job_value value;
	struct job_seal seal;		/* with its key */
	const struct member_info *home; /* NULL: no member that is known */
	char label[FOLDER_LABEL_MAX];  /* its name, or one that tells it from others of that name */
	char choice[FOLDER_LABEL_MAX]; /* a name that no other one has, NAME~HOST or NAME~ID */
};
struct folder_rows {
	struct folder_row *items;
	size_t count;
	struct member_info *members;
	size_t member_count;
};
/* All that the caller may see, by name; the caller gives them back. */
int folder_rows_load(struct agent *a, const struct api_call *call, int channel,
		     struct folder_rows *ret_rows) _must_check_;
void folder_rows_deinit(struct folder_rows *rows);
/* Its name, label, choice or id? */
bool folder_row_is(const struct folder_row *row, const char *ref);
/* The only one that "folder" names; else an error reply, and nothing to give back. */
int folder_row_find(struct agent *a, const struct api_call *call, int channel,
		    struct folder_rows *ret_rows, const struct folder_row **ret_row,
		    struct api_reply *reply) _must_check_;
int folder_none(const char *ref, struct api_reply *reply);
/* The folder of this host that "folder" names, if the caller may write to it. With a reference. */
int folder_of_call(struct agent *a, const struct api_call *call, struct folder **ret_folder,
		   struct api_reply *reply) _must_check_;

/* ---- verbs_folder.c ---- */
/* The reply to whoever wants to write where folder_bytes is 0. */
int folders_off(const char *name, struct api_reply *reply);

/* ---- folder_upload.c: the folder's lock is held ---- */
/*
 * base_seq: the version that the caller means by "as before"; 0: none. copy: his working copy.
 * -EOPNOTSUPP: folders are off on this host. -EREMCHG: the newest version is another one, and made of another copy, which would be lost.
 */
int upload_begin(struct folder *f, uint64_t base_seq, const char *copy) _must_check_;
void upload_abort(struct folder *f);
/* A majority's word on which version is the newest, and all that is known agrees with it. */
int upload_check(struct folder *f) _must_check_;
int upload_write(struct folder *f, uint64_t offset, const void *bytes, size_t size) _must_check_;
/* A file's content is the spool (fresh), else that of the last version (-ENOENT: not known here). */
/* -EDQUOT: more than folder_bytes of decampd.conf. -EOVERFLOW: more than FOLDER_EXTENTS_MAX. */
int upload_add(struct folder *f, struct pack_input *in, bool fresh) _must_check_;
/* Without its lock: how much its versions take becomes known, unless holders are away. */
void folder_learn_stored(struct folder *f);
int upload_commit(struct folder *f, struct folder_version *version,
		  struct packer_counts *ret_counts) _must_check_;
