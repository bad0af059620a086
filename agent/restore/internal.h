/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the restore stage share.
 *
 *   notes.c    what the capturing host wrote down      layout.c   manifest -> folders on disk
 *   place.c    one file, safely below a folder         restore.c  the order of it all
 *   results.c  manifest -> temporary files             deliver.c  -> the user's own folders
 *   affinity.c threads are tied to CPUs again
 *   lazy*.c    memory that comes after the job runs (lazy.h)
 *   recent.c   objects that are needed twice
 *   maps.c     mappings that only a newer kernel has
 *
 * Threading: none of it is shared between threads.
 */
#pragma once

#include <limits.h>
#include <stddef.h>

#include "agent/restore/restore.h"

/* meta_json of a manifest. It is authenticated; it is checked all the same. */
struct notes {
	pid_t root_pid; /* 0: there are no images */
	pid_t pid_max;
	bool low_pids; /* some PID lies where the keeper's helpers would */
	bool shell_job;
	char hostname[HOST_NAME_MAX + 1];
	struct notes_pin {  /* a thread that may run on some CPUs only */
		pid_t tid;  /* as the job numbers it */
		char *cpus; /* "0-3,8" */
	} * pins;
	size_t pin_count;
	size_t mount_count;
	struct notes_mount {
		unsigned int n;
		char *path;
	} mounts[KEEPER_MOUNTS_MAX];
};

int notes_parse(const char *json, struct notes *ret_notes) _must_check_;
void notes_deinit(struct notes *n);
/* The mount of a layer number, NULL if unknown. */
const struct notes_mount *notes_mount(const struct notes *n, unsigned int number);
/* Splits "N/rest" of an upper file; -EBADMSG if there is no such layer. */
int notes_split(const struct notes *n, const char *path, const struct notes_mount **ret_mount,
		const char **ret_rest) _must_check_;

/* Before the job runs; cgroup_dir: the job's, or NULL. */
void affinity_restore(const struct notes *n, const char *cgroup_dir);

bool restore_is_below(const char *path, const char *folder);
bool restore_is_whiteout(const struct stat *st);

/* Opens path below dirfd; no symlink, no other mount. path may be "". */
int place_open(int dirfd, const char *path, int flags, mode_t mode) _must_check_;
/* The folder that holds path, made if missing; *ret_name points into path. */
int place_parent(int dirfd, const char *path, const char **ret_name) _must_check_;
/* A new folder, symlink, whiteout or FIFO; other kinds are left out. */
int place_node(int dirfd, const char *path, const struct manifest_file *f) _must_check_;
/* A new regular file, open for reading and writing; the fd is returned. */
int place_regular(int dirfd, const char *path) _must_check_;
int place_link(int from_dirfd, const char *from, int dirfd, const char *path) _must_check_;
/* Owner, mode, xattrs, times of an open file or folder. */
int place_looks(int fd, const struct manifest_file *f) _must_check_;

struct layout {
	const struct restore_request *request;
	const struct notes *notes;
	size_t file_count;
	bool *keep;	/* which files are laid out */
	size_t *sorted; /* closure files by path */
	size_t sorted_count;
	int state, images, root;
	int upper; /* folder below state_dir */
	int shm;   /* /dev/shm of the namespaces, once they are there */
	size_t shm_count;
	bool lazy; /* pages images are lazy_make()'s */
	/* The notes' mounts, and this host's where files of the job lie below them. */
	size_t mount_count;
	struct notes_mount mounts[KEEPER_MOUNTS_MAX];
	char *reason;
};

/* Everything on disk, filled; state_dir/mounts and closure.list too. */
int layout_make(struct layout *l) _must_check_;
/* What belongs into /dev/shm, through the root of a process in the job's mount namespace. */
int layout_make_shm(struct layout *l, pid_t pid) _must_check_;
void layout_deinit(struct layout *l);
/* Removes what layout_make() and a keeper leave in state_dir. */
int layout_clear(const char *state_dir) _must_check_;

int restore_fail(char reason[RESTORE_REASON_MAX], int r, const char *fmt, ...) _printf_(3, 4);
/* How many files may be open at once, after the soft limit was raised to the hard one. */
size_t restore_open_max(void);
/* SHA-256 of size bytes; 32 bytes out. */
int restore_hash(int fd, uint64_t size, uint8_t *ret_hash) _must_check_;

/* ---- recent.c ---- */

struct recent;
int recent_create(pack_fetch_fn fetch, void *ctx, struct recent **ret_recent) _must_check_;
void recent_destroy(struct recent *r);
/* pack_fetch_fn; ctx is the struct recent. */
int recent_fetch(void *ctx, const struct object_hash *hash, uint32_t size,
		 const struct node_id *holders, uint32_t holder_count, int *ret_memfd);

/* ---- lazy.c ---- */

/*
 * The images in images_fd, which has all but the pages: what must be there at once is fetched, what
 * may come later is known, CRIU's socket and the marker are there. recent: may have some of it.
 */
int lazy_make(const struct restore_request *q, struct recent *recent, int images_fd,
	      struct restore_lazy **ret_lazy) _must_check_;
bool lazy_is_needed(const struct restore_lazy *lazy);
/* Before CRIU starts; the keeper runs. */
int lazy_start(struct restore_lazy *lazy, const char *run_dir) _must_check_;
/* All of its memory, which the processes have registered, before they run. */
int lazy_fill(struct restore_lazy *lazy, const struct restore_request *q) _must_check_;
/* The restore failed, and all of the job is dead. NULL is allowed. */
void lazy_abandon(struct restore_lazy *lazy);

/* ---- results ---- */

/* Upper files of this number are those of /dev/shm: the job's own tmpfs, no layer on disk. */
enum { RESTORE_SHM_LAYER = 1000 };
bool restore_is_shm(const char *path);

enum deliver_kind { DELIVER_FILE = 1, DELIVER_FOLDER, DELIVER_LINK, DELIVER_REMOVE, DELIVER_CLEAR };

/* One thing to do in the user's folders. */
struct delivery {
	enum deliver_kind kind;
	char *path; /* absolute */
	struct manifest_file file;
	int fd; /* DELIVER_FILE: its content */
};

struct deliver_order {
	const struct results_request *request;
	const struct delivery *items;
	size_t count;
	/* All paths of the manifest below a DELIVER_CLEAR folder stay. */
	bool (*is_ours)(const void *ctx, const char *path);
	const void *ctx;
};

/* Runs in a child process as the user. Counts into *report. */
void deliver(const struct deliver_order *order, struct results_report *report);
