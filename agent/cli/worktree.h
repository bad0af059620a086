/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The working copy of a writable folder: plain files of the user's, on this host, and which of them
 * are in a version already. decamp(1) owns all of it; decampd never opens any of it.
 *
 *   $XDG_STATE_HOME/decamp/folders/ID/tree/...   the files
 *                                    /index      what the newest version holds of them
 *                                    /next       the same of a version that was asked for, until the
 *                                                answer came: it may have been made
 *                                    /copy       its name among all working copies of the folder
 *                                    /status     for "decamp folder": what is not sent, and why
 *                                    /writing/N  inode N is open for writing, or was when the mount
 *                                                was killed: then it is not sent before it is closed
 *                                                by somebody once more
 *                                    /writing/N.BOOT  closed since, but not known to be on the disk:
 *                                                after a power cut the same as open
 *                                    /lock       held by the mount that writes
 *
 * A file is sent only while nobody has it open for writing: the mount tells of each such handle.
 * What is changed is found by inode, size and times, so nothing is lost with the mount.
 *
 * Limits: WORK_FILES_MAX entries, WORK_FILE_MAX bytes each. Errors: -errno. Threading: any; one
 * commit at a time.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "agent/cli/cli.h"

enum {
	WORK_FILES_MAX = 65536,
	WORK_NAMES_MAX = 16 << 20, /* WORK_NAME_COST() of all; decampd's limit, too */
	WORK_PATH_MAX = 4000,
	WORK_DEPTH_MAX = 100, /* folders in folders */
	WORK_RETRY_MAX_S = 300,
};
#define WORK_NAME_COST(bytes) ((bytes) + 64)
#define WORK_FILE_MAX (INT64_C(15) << 30)

/* A file, folder or symlink. */
struct work_entry {
	char *path;
	char *target; /* of a symlink */
	uint64_t ino;
	uint32_t mode;
	int64_t size, mtime_ns, ctime_ns;
	int64_t stored; /* a file: its size as it is kept, see agent/pack/chunk.h */
	uint32_t chunks;
	bool held; /* open for writing when it was looked at */
};

struct work_list {
	struct work_entry *items;  /* sorted by path */
	size_t count, room, names; /* names: what all of them cost */
};

struct worktree {
	const struct cli *cli;
	char id[33], dir[1024];
	int64_t every_s;
	int dir_fd, tree_fd, lock_fd, writing_fd;
	char boot[40]; /* of the kernel that runs */

	pthread_mutex_t commit_lock; /* one commit at a time; guards the next lines */
	struct work_list index;
	int64_t index_seq;
	char copy[33]; /* names this working copy among all that there may be */
	char index_manifest[65];
	bool index_sure;       /* it is what the newest version has */
	struct work_list next; /* the index, if the commit with this stamp was made after all */
	char next_stamp[33];   /* "": all answers came */

	pthread_mutex_t lock; /* names and writers stand still; guards the rest */
	struct work_writer {
		uint64_t ino;
		unsigned int count; /* 0: closed, not known to be on the disk */
		bool left;	    /* by a mount that was killed: counted once */
		bool syncing;
	} * writers;
	size_t writer_count;
	size_t entries, names;		/* at the last walk, and what was made since */
	uint64_t changes, sent_changes; /* counted */
	uint64_t dirty_ms, retry_ms;	/* since when, not before; 0: not */
	unsigned int failures;
	char problem[320];
	atomic_bool read_only; /* deleted, or another host's */
};

/* Makes or opens it; seq: of the newest version, which is fetched if there is no copy yet. -EBUSY:
 * another mount writes it. */
int worktree_open(const struct cli *cli, const char *id, int64_t every_s, int64_t seq,
		  struct worktree **ret_work) _must_check_;
void worktree_close(struct worktree *w);

/* Both with the lock held. */
int worktree_writer_add(struct worktree *w, uint64_t ino) _must_check_;
void worktree_changed(struct worktree *w);
void worktree_writer_remove(struct worktree *w, uint64_t ino);
bool worktree_is_held(const struct worktree *w, uint64_t ino);

/* Without the lock: what is closed goes to the disk, then it is held no more. Changes up to *ret_changes
 * are seen by a walk after it. */
int worktree_sync(struct worktree *w, uint64_t *ret_changes) _must_check_;

/* All there is now; sorted. */
int worktree_walk(struct worktree *w, struct work_list *ret_list) _must_check_;
/* With the lock held. -ENOSPC: WORK_FILES_MAX or WORK_NAMES_MAX; -ENAMETOOLONG. */
int worktree_has_room(const struct worktree *w, const char *path, const char *target) _must_check_;
void worktree_count(struct worktree *w, const char *path, const char *target);
void worktree_uncount(struct worktree *w, const char *path);
/* Would all that is below a folder be within the limits there? The same errors. */
int worktree_may_move(struct worktree *w, const char *from, const char *to) _must_check_;
int work_path_check(const char *path) _must_check_;
int work_list_add_take(struct work_list *list, struct work_entry *entry) _must_check_;
void work_list_sort(struct work_list *list);
/* The same file with the same content. */
static inline bool work_entry_same(const struct work_entry *a, const struct work_entry *b)
{
	return a->mode == b->mode && a->ino == b->ino && a->size == b->size &&
	       a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}
struct work_entry *work_list_find(const struct work_list *list, const char *path);
void work_list_deinit(struct work_list *list);
int worktree_save_next(struct worktree *w) _must_check_;
int worktree_save_index(struct worktree *w) _must_check_;
/* It became the index, or nothing. */
void worktree_drop_next(struct worktree *w);
void worktree_save_status(struct worktree *w);

/* Where working copies lie; -ENOENT: nobody says where the home is. */
int worktree_base(char *ret_path, size_t size) _must_check_;

/*
 * commit.c: a new version of what is there, if anything is new. sync_ino: this file is sent as it
 * stands although it is open for writing; sync: made by fsync(2). A failure is noted in status.
 */
int worktree_commit(struct worktree *w, uint64_t sync_ino, bool sync) _must_check_;
bool worktree_is_due(struct worktree *w);
uint64_t work_now_ms(void);

/* version.c: which is the newest version; 0: there is none. */
int worktree_newest(const struct cli *cli, const char *id, int64_t *ret_seq,
		    char ret_manifest[65]) _must_check_;
/* The newest version into an empty folder; entries go into list. */
int worktree_fetch(const struct cli *cli, const char *id, int tree_fd, struct work_list *list,
		   int64_t *ret_seq, char ret_manifest[65]) _must_check_;
