/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of files.h: the table of open files, and the areas that know one sort of file each.
 *
 *   native_files ── native_open (one per struct file of the job; one entry of files.img)
 *                └─ native_area[] (regular files, pipes, events, sockets, ttys, shared memory)
 *
 * Every struct file (state_fd.file) gets one native_open and one id, however many descriptors,
 * processes and dups show it. The first area that matches takes it. files.c calls, in this order:
 *
 *   in files_check:   check(o) of each open file, then check_all()      job runs
 *   in files_collect: match, collect(o) of each open file               pause
 *                     collect_vma(task, i) of each VMA of a file
 *                     collect_all() of each area                        everything has its id now
 *   in files_write:   write(o) of each open file, then write_all()      job runs
 *   files_destroy:    destroy()
 *
 * Any of these may be NULL. In the pause: arena memory only, no image writing. Results of collect
 * hang on o->facts, of a whole area on files->area_facts[area->index].
 *
 * files_check() uses a struct native_files as well (f->checking is set, nothing is frozen; state
 * records are what they were a moment ago): check() must accept that a file is gone.
 */
#pragma once

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "agent/native/files.h"
#include "agent/native/files.pb-c.h"
#include "agent/native/img.h"

enum {
	FILES_MAX = 65536,     /* struct files of a job */
	FILES_FD_MAX = 262144, /* descriptors of all its processes */
	FILES_FDINFO_MAX = 65536,
};

enum native_area_index {
	AREA_SHM, /* before AREA_REG: a memfd looks like a regular file */
	AREA_TTY, /* before AREA_REG: a character device */
	AREA_SOCKETS,
	AREA_PIPES,
	AREA_EVENTS,
	AREA_REG,
	AREA_LOCKS, /* matches nothing */
	AREA_COUNT,
};

/* A struct file of the job. */
struct native_open {
	struct native_task *task; /* one that has it, as descriptor fd->fd */
	const struct state_fd *fd;
	const char *path; /* as the job sees it, or "pipe:[7]", "anon_inode:[eventfd]"...; with the
			     " (deleted)" that the kernel adds where fd->nlink is 0 */
	const struct native_area *area;
	uint32_t id;   /* of files.img */
	uint32_t type; /* NatFiles__FileType: what fdinfo says; set by collect() */
	int local;     /* our own descriptor of the same struct file, -1: see open_local() */
	void *facts;   /* of the area */
};

struct native_files {
	struct native_tree *tree;
	struct native_mem *mem; /* NULL while checking */
	bool checking;
	struct native_open *opens;
	size_t open_count;
	uint32_t *buckets; /* by struct file: index + 1 */
	size_t bucket_mask;
	uint32_t **fd_opens; /* [task][fd]: index into opens; NULL where a task shares another's */
	int *pidfds;	     /* [task], -1 */
	uint32_t next_id;
	struct img *image; /* files.img, in files_write */
	void *area_facts[AREA_COUNT];
};

struct native_area {
	enum native_area_index index;
	const char *name;
	/* By mode, rdev, path, op of the record; path is never NULL. */
	bool (*match)(const struct state_fd *fd, const char *path);
	bool (*match_vma)(const struct state_vma *vma);
	int (*check)(struct native_files *f, struct native_open *o);
	int (*check_all)(struct native_files *f);
	int (*collect)(struct native_files *f, struct native_open *o);
	/* Sets task->vma_file_ids[i] and adds to task->vma_status[i]. */
	int (*collect_vma)(struct native_files *f, struct native_task *task, size_t i);
	int (*collect_all)(struct native_files *f);
	int (*write)(struct native_files *f, struct native_open *o);
	int (*write_all)(struct native_files *f);
	void (*destroy)(struct native_files *f);
};

extern const struct native_area area_shm;     /* shm.c */
extern const struct native_area area_tty;     /* tty.c */
extern const struct native_area area_sockets; /* sockets.c */
extern const struct native_area area_pipes;   /* pipes.c */
extern const struct native_area area_events;  /* events.c */
extern const struct native_area area_reg;     /* reg.c */
extern const struct native_area area_locks;   /* locks.c */

/* Next free id: of files.img entries, and of whatever else needs a number of its own. */
uint32_t files_new_id(struct native_files *f);
/* -EOPNOTSUPP with "descriptor 5 of process 1003 (PATH) ..." before the text. */
int files_refuse(struct native_files *f, const struct native_open *o, const char *fmt, ...)
	_printf_(3, 4);
/* The open file behind a descriptor of a task; NULL if it has none. */
struct native_open *files_of_fd(struct native_files *f, const struct native_task *task, int fd);
/* By identity of the struct file; NULL: no descriptor of the job has it. */
struct native_open *files_by_file(struct native_files *f, uint64_t file);

/*
 * Our own descriptor of the same struct file (pidfd_getfd), borrowed: closed when files_collect()
 * or files_check() ends, since one that stays would keep a pipe, a socket or a lock of the job alive.
 */
int open_local(struct native_files *f, struct native_open *o, int *ret_fd) _must_check_;
/* Closes it early. */
void open_local_close(struct native_open *o);
/* /proc/PID/fdinfo/FD, NUL-terminated; lines that do not fit: -EOPNOTSUPP. */
int open_fdinfo(struct native_files *f, const struct native_open *o, char *text,
		size_t size) _must_check_;
/* The flags as CRIU stores them: without O_CLOEXEC, with O_LARGEFILE. */
uint32_t open_flags(const struct native_open *o);
/* F_SETOWN, F_SETSIG; *fown is initialised here. */
void open_fown(const struct native_open *o, NatFiles__Fown *fown);
/* One entry of files.img. id and type are set from o. */
void files_put(struct native_files *f, const struct native_open *o, NatFiles__File *file);
void files_put_entry(struct native_files *f, const NatFiles__File *file);

/*
 * A Reg entry of its own for a path that is not the open file itself: the name of a tty or a FIFO,
 * a mapped file, a folder. For ttys and FIFOs: files_reg_of() with the flags and path of o.
 */
int files_reg_of(struct native_files *f, struct native_open *o, uint32_t *ret_id) _must_check_;

/* True if the process belongs to the tree that is taken. By PID as this process sees it. */
bool files_in_tree(const struct native_files *f, pid_t pid);
