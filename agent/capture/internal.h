/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the capture stage share: the list of files of a snapshot, the memory of the
 * last accepted one, what /proc says of the job, and where its mounts lie.
 *
 *   proc.c    tasks of the tree, the files they use    mounts.c   N <-> path, what is no disk
 *   walk.c    upper layers -> entries, copies          copy.c     reflink, holes, plain copy
 *   closure.c lower layers -> entries                  paths.c    (kind, path) -> index
 *   snapshot.c entries -> caller; notes for restore    capture.c  the order of it all
 *   native.c   the native engine                   ready.c    what a pause finds prepared
 *   kernel.c   what images ask of a kernel         objects.c  what no engine can take
 *
 * Threading: none of it is shared between threads.
 */
#pragma once

#include <limits.h>
#include <stddef.h>
#include <time.h>

#include "agent/capture/capture.h"

/* (kind, path) -> index into an array of the caller; paths are borrowed. */
struct paths {
	struct paths_slot {
		const char *path;
		uint64_t hash;
		size_t value;
		int kind;
	} * slots;
	size_t count, room; /* room is a power of two */
	uint64_t seed;
};

int paths_add(struct paths *p, int kind, const char *path, size_t value) _must_check_;
bool paths_find(const struct paths *p, int kind, const char *path, size_t *ret_value);
void paths_deinit(struct paths *p);

enum { CLOSURE_LIST_MAX = 256 << 20 }; /* bytes of closure.list or carried.list */

enum entry_content {
	CONTENT_NONE,	   /* folder, symlink, whiteout, FIFO */
	CONTENT_IMAGE,	   /* in images/ of the spool */
	CONTENT_RUNS,	   /* in images/ as pages-N.runs and pages.new */
	CONTENT_SPOOL,	   /* copied at the frozen instant, to files/<spool_index> */
	CONTENT_STAGED,	   /* copied then, to memory; becomes CONTENT_SPOOL after the pause */
	CONTENT_LIVE,	   /* to be read where it is: the job has ended */
	CONTENT_LOWER,	   /* to be read from the lower layers after the thaw */
	CONTENT_UNCHANGED, /* as in the last accepted snapshot */
};

struct entry {
	enum snapshot_kind kind;
	enum entry_content content;
	bool unsettled;	    /* its next change may leave size and times as they are */
	size_t spool_index; /* CONTENT_STAGED: where in the memory */
	char *path;
	struct stat st;
	char *link_target;
	uint8_t *xattrs;
	size_t xattrs_size;
};

struct entries {
	struct entry *v;
	size_t count, room;
	struct paths index;
};

/* Takes over nothing: path is copied. *ret_entry is valid until the next add. -EEXIST: is in. */
int entries_add(struct entries *e, enum snapshot_kind kind, const char *path, const struct stat *st,
		struct entry **ret_entry) _must_check_;
/* Moves all entries of from, which is empty afterwards, to e; both keep what they have on errors. */
int entries_move(struct entries *e, struct entries *from) _must_check_;
/* Room for count entries, so that adding them takes no memory. */
int entries_reserve(struct entries *e, size_t count) _must_check_;
/* Writes to all that room, so that adding does not wait for pages either. */
void entries_touch(struct entries *e);
/* Reads link_target; dirfd/name: where the symlink is. */
int entry_read_link(struct entry *e, int dirfd, const char *name) _must_check_;
/* Reads the extended attributes that travel, in the format of capture.h. */
int entry_read_xattrs(struct entry *e, int dirfd, const char *name) _must_check_;
/* The same of an open file or folder, which is a lot faster. */
int entry_read_xattrs_of(struct entry *e, int fd) _must_check_;
void entries_deinit(struct entries *e);

/* What is remembered of the last accepted snapshot. */
struct past_file {
	char *path;
	enum snapshot_kind kind;
	bool unsettled;
	dev_t dev;
	ino_t ino;
	off_t size;
	struct timespec mtime, ctime;
	uint8_t *xattrs; /* a change of them is a new ctime */
	size_t xattrs_size;
};

struct past {
	struct past_file *v;
	size_t count;
	struct paths index;
};

/* Not NULL if the file is as it was and the kernel would have shown any change. */
const struct past_file *past_find(const struct past *p, enum snapshot_kind kind, const char *path,
				  const struct stat *st);
int past_learn(struct past *p, const struct entries *e) _must_check_;
void past_deinit(struct past *p);

/* A change so near to the freeze may share its time stamp with one after it. */
bool capture_is_recent(const struct timespec *ctime, const struct timespec *freeze);

/* Copies a regular file of size bytes into a new file below dirfd; keeps holes. */
int capture_copy(int in, int dirfd, const char *name, off_t size) _must_check_;

enum {
	USE_SHARED_MAP = 1 << 0, /* mapped MAP_SHARED: changes without a new mtime */
	USE_WRITABLE = 1 << 1,	 /* open for writing */
	USE_FOLDER = 1 << 2,	 /* working directory, or open folder */
};

struct file_use {
	char *path; /* absolute, in the job's view, without symlinks */
	unsigned int flags;
};

/* One look at the process tree, through the host's /proc. */
/* Threads that may run on some CPUs only (pins.c). */
struct pins {
	struct pin {
		pid_t inner;
		char *cpus; /* "0-3,8" */
	} * v;
	size_t count;
	char *ours; /* what threads get that do not choose */
};

/* status: text of the thread's file of that name. */
int pins_note(struct pins *p, pid_t inner, const char *status) _must_check_;
/* {"0-1": [TID, ...]}; NULL: no memory. */
struct json_object *pins_to_json(const struct pins *p);
void pins_deinit(struct pins *p);

struct proc_view {
	pid_t *pids; /* processes, host view, root first */
	size_t pid_count, pid_room;
	pid_t *inner; /* PIDs and TIDs as the job sees them */
	size_t inner_count, inner_room;
	struct file_use *uses;
	size_t use_count, use_room;
	struct paths use_index;
	struct pins pins;
	pid_t root_inner;
	bool shell_job; /* some session leader lies outside the tree */
};

/* For views that are not made of /proc. */
int proc_view_add_use(struct proc_view *v, const char *path, unsigned int flags) _must_check_;
int proc_view_add_thread(struct proc_view *v, pid_t inner_tid) _must_check_;
/* files: look at maps and descriptors too. */
int proc_view_read(struct proc_view *v, pid_t root, bool files) _must_check_;
void proc_view_deinit(struct proc_view *v);
/* A child of init other than main_pid: nobody's child that a dump of the tree would lose; or 0. */
pid_t proc_find_orphan(pid_t init_pid, pid_t main_pid);
/* The same in two steps: a descriptor, or -errno; then the look, with nothing to open. */
int proc_open_children(pid_t init_pid) _must_check_;
pid_t proc_find_orphan_in(int children, pid_t init_pid, pid_t main_pid);
/* Dead, or waiting for its parent to notice. */
bool proc_is_gone(pid_t pid);
/* Its first thread has ended, others have not: for good, or for the moment in which all end. */
bool proc_is_headless(pid_t pid);
int proc_inner_pid(pid_t pid, pid_t *ret_inner) _must_check_;
/* Host name in the UTS namespace of a process. */
int proc_hostname(pid_t pid, char *name, size_t size) _must_check_;

struct mount_row {
	unsigned int n; /* number of the upper layer */
	char *path;
	char *fstype;
};

struct mounts {
	struct mount_row *v;
	size_t count, room;
};

/* STATE/jobs/ID/mounts as the keeper wrote it; a missing file means one layer, over "/". */
int mounts_read_layers(struct mounts *m, const char *state_dir) _must_check_;
/* /proc/PID/mountinfo, in mount order; n counts up. */
int mounts_read_proc(struct mounts *m, pid_t pid) _must_check_;
/* The last mounted row with the longest matching path; NULL if none. *ret_rest: below it. */
const struct mount_row *mounts_find(const struct mounts *m, const char *path,
				    const char **ret_rest);
/* True for what does not travel: proc, sysfs, devices, /run, network file systems. */
bool mounts_excludes(const struct mounts *m, const char *path);
void mounts_deinit(struct mounts *m);
/* True if path is folder or lies below it. */
bool capture_is_below(const char *path, const char *folder);

/*
 * What is opened, read and allocated just before a pause, so that the walk in it only looks and
 * copies. It holds nothing of the job's own.
 */
struct ready {
	int *uppers; /* folders of the layers, in the order of the rows; -1: it has none */
	size_t upper_count;
	int children; /* of the job's init; -1 */
	int shm;      /* the job's /dev/shm; -1: to be opened in the pause */
	int done[32]; /* what the pause is through with: closed after it */
	size_t done_count;
	char *carried; /* carried.list; NULL: there is none */
	size_t carried_size;
	uint8_t *stage; /* small files are copied here, and behind them large ones */
	size_t staged;
	size_t large_room, large_staged;
	bool made;
};

enum {
	READY_STAGE = 1 << 20,	      /* bytes */
	READY_STAGE_FILE = 256 << 10, /* of one file */
	READY_LARGE = 32 << 20,	      /* for larger ones, if there are any to be copied */
};

/* Of one pause: each try makes its own. init_pid: 0 if nobody's orphans are looked for. */
int ready_make(struct ready *ready, const char *state_dir, const struct mounts *layers,
	       pid_t main_pid, pid_t init_pid) _must_check_;
/*
 * Room for larger files too, of which a rehearsal has found so many bytes that would be copied. What
 * finds no room goes to the spool in the pause: then the job waits for that disk.
 */
void ready_expect(struct ready *ready, uint64_t large_bytes);
/* One that is copied to memory, if there is room. */
bool ready_is_fit(const struct stat *st);
/* Closes it, at once or later. ready may be NULL. */
void ready_close(struct ready *ready, int fd);
void ready_drop(struct ready *ready);
/* 1: it is there now; 0: not of a kind or size for it. */
int ready_stage(struct ready *ready, struct entry *e, int fd) _must_check_;
/* The job runs on: what was staged goes into the spool. */
int ready_flush(struct ready *ready, struct entries *e, int spool_files, size_t *copies,
		char *reason) _must_check_;

/* Text of STATE/carried.list; NULL if there is none. */
int walk_read_carried(const char *state_dir, char **ret_list, size_t *ret_size) _must_check_;

struct walk {
	struct entries *entries;
	struct ready *ready; /* may be NULL */
	const struct past *past;
	const struct proc_view *view; /* may be NULL */
	const struct mounts *layers;
	struct timespec freeze;
	int spool_files; /* folder of the copies */
	size_t copies;	 /* counts on over attempts of one capture */
	bool copy_all;	 /* believe nothing of the past */
	bool ended;	 /* nobody writes any more: no copies are needed */
	/* A look only: what would be copied to memory is read once and counted, if it is large. */
	bool rehearsal;
	uint8_t *scratch; /* READY_STAGE bytes for that; NULL: no file is opened */
	uint64_t read_bytes, large_bytes;
	char *reason; /* CAPTURE_REASON_MAX bytes, set on errors */
	struct walk_inode {
		dev_t dev;
		ino_t ino;
	} * shared; /* mapped MAP_SHARED now; freed by the caller */
	size_t shared_count;
	bool shared_known; /* walk_find_shared() was called */
	struct walk_names {
		char *v; /* listings of the folders from the layer down to this one */
		size_t used, room;
	} names; /* freed by the walk itself */
};

/* Inodes of the upper layers that are mapped shared, as the view says. */
int walk_find_shared(struct walk *w, const char *state_dir) _must_check_;

/* The folder of one layer, or -errno; -ENOENT: it has none. */
int walk_open_upper(const char *state_dir, const struct mount_row *row) _must_check_;
/* All layers below state_dir/upper. */
int walk_uppers(struct walk *w, const char *state_dir) _must_check_;
/* The job's own /dev/shm, seen through a process in its mount namespace; copied whole. */
int walk_shm(struct walk *w, pid_t pid) _must_check_;
/* /dev/shm of this process: a folder, or -errno. */
int walk_open_shm(pid_t pid) _must_check_;
/* Adopted jobs: the host's files that the tree has open for writing or mapped shared. */
int walk_open_files(struct walk *w, const struct mounts *host) _must_check_;

/* The job's lower layer: the host's root. */
struct lower {
	int root;
};

int lower_open_root(struct lower *l) _must_check_;
void lower_close(struct lower *l);
/* Opens absolute path there; never through a symlink. */
int lower_open(const struct lower *l, const char *path, int flags) _must_check_;

struct closure {
	struct entries *entries;
	const struct past *past;
	const struct lower *lower;
	const struct mounts *layers;
	const struct mounts *proc;
	const char *state_dir; /* never carried along */
	bool copy_all;
	bool adopted; /* layers are the host's own mounts */
	char *reason;
};

/* One path with the folders and symlinks on its way; a missing one is no error. */
int closure_add(struct closure *c, const char *path) _must_check_;
/* A whole tree; adds to *bytes what its files have and fails beyond max_bytes. */
int closure_add_tree(struct closure *c, const char *path, uint64_t *bytes,
		     uint64_t max_bytes) _must_check_;
/* The paths that a restore left in state_dir; -ENOENT if the job was never restored. */
int closure_add_list(struct closure *c) _must_check_;
/* Everything in view, and links beside it that name it. */
int closure_add_view(struct closure *c, const struct proc_view *view) _must_check_;

struct capture {
	struct capture_config config;
	char *state_dir, *cwd, *cgroup_dir;
	char **inputs;
	struct past past;
	bool copy_all; /* the packer asked for what we no longer have */

	struct native *native;
	pid_t native_root;
	uint64_t native_base;		      /* the accepted snapshot, if native took it; else 0 */
	char native_lack[CAPTURE_REASON_MAX]; /* why there is no native engine here at all */
};

struct snapshot {
	struct snapshot_info info;
	struct capture *capture;
	struct entries entries;
	struct lower lower;
	struct mounts layers;
	int spool;
	int images; /* folder */
	int files;  /* folder */
	struct timespec freeze;
	uint64_t native_id;
};

/* One capture on its way. */
struct take {
	struct capture *c;
	const struct capture_request *request;
	struct snapshot *s;
	struct keeper_status status;
	struct proc_view view;	   /* criu: at the frozen instant; native: just before it */
	struct mounts proc;	   /* of the job's mount namespace */
	struct entries walked;	   /* upper layers at the frozen instant */
	size_t copies;		   /* files of the spool */
	struct walk_inode *shared; /* found before the pause */
	size_t shared_count;
	struct ready ready;
	char hostname[HOST_NAME_MAX + 1];
	char *reason;
	bool froze; /* the cgroup was frozen for CAPTURE_STAY_FROZEN */
	bool ours;  /* what failed was not the engine: no other one would do better */
};

/* capture.c: steps that both engines need. */
int capture_check_orphan(struct take *t) _must_check_;
/* For adopted jobs: a layer for each mount that has a file the job may change, as t->view says. */
int capture_make_layers(struct take *t) _must_check_;
/* An empty t->walked with room for what will be walked. */
int capture_make_room(struct take *t) _must_check_;
/* The walk at the frozen instant, into t->walked; may be called again. */
int capture_copy_files(struct take *t) _must_check_;
int capture_stay_frozen(struct take *t) _must_check_;

/* What an attempt left in the folder of images. */
int capture_empty_images(struct take *t) _must_check_;

/* native.c: images of the job, t->walked, and t->view of the frozen instant. */
int capture_native(struct take *t) _must_check_;
void capture_native_stop(struct capture *c);

/* List of the images, their sizes into info. */
int snapshot_add_images(struct snapshot *s) _must_check_;
/* kernel.c: enum kernel_feature. */
int capture_kernel_need(int images_fd, uint32_t *ret_need) _must_check_;
int snapshot_make_meta(struct snapshot *s, const struct proc_view *view, const char *hostname,
		       const char *cwd) _must_check_;

/* objects.c, of the job while it runs. -EOPNOTSUPP: somebody has open what neither engine can take. */
int capture_check_objects(const struct proc_view *v, char reason[CAPTURE_REASON_MAX]) _must_check_;
/*
 * Waits for those who are ending, which CRIU cannot take while some of their threads are left.
 * -EOPNOTSUPP: somebody's first thread has ended for good, and others go on.
 */
int capture_await_whole(const struct proc_view *v, char reason[CAPTURE_REASON_MAX]) _must_check_;

int capture_fail(char reason[CAPTURE_REASON_MAX], int r, const char *fmt, ...) _printf_(3, 4);
