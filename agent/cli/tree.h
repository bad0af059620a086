/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The tree that "decamp mount" shows: names -> what is there. Knows nothing of FUSE.
 *
 *   /JOB/latest -> N         /JOB/N/core, core.PID    made when they are looked at
 *   /JOB/N/images/NAME       /JOB/N/files/PATH        /JOB/N/log, log.err
 *
 * Jobs and kept checkpoints are asked of decampd again after TREE_STALE_MS; what a checkpoint holds
 * never changes. Limits: TREE_VIEWS_MAX checkpoints known at once, beyond those in use. Errors:
 * -errno. Threading: one call at a time.
 */
#pragma once

#include <sys/stat.h>

#include "agent/cli/cli.h"

enum { TREE_STALE_MS = 1500, TREE_VIEWS_MAX = 8, TREE_PATH_MAX = 4096 };

/* A checkpoint that is being looked into. */
struct tree_view {
	struct cli_checkpoint checkpoint;
	struct tree_core {
		pid_t pid;
		struct elf_core *core; /* NULL until it was needed */
	} * cores;
	size_t core_count;
	int refs;
	uint64_t used; /* the tree's count of uses */
};

enum tree_type {
	TREE_ROOT = 1,
	TREE_JOB,
	TREE_LATEST, /* symlink */
	TREE_CHECKPOINT,
	TREE_IMAGES,
	TREE_FOLDER, /* below files/ */
	TREE_FILE,
	TREE_LINK,
	TREE_CORE
};

struct tree_job {
	char name[96]; /* with a part of the id where it is not alone */
	char id[33];
	struct cli_kept *kept;
	size_t kept_count;
	uint64_t asked_ms; /* 0: never */
	bool of_folder;	   /* kept are a folder's versions; id is the folder's */
};

struct tree_node {
	enum tree_type type;
	struct tree_job *job;
	const struct cli_kept *kept;
	struct tree_view *view;		/* with a reference, or NULL */
	const struct export_file *file; /* TREE_FILE, TREE_LINK; TREE_FOLDER where it has one */
	struct tree_core *core;
	char folder[TREE_PATH_MAX]; /* TREE_FOLDER: the job's path, "" for its root */
};

struct tree {
	const struct cli *cli;
	struct tree_job *jobs;
	size_t job_count;
	uint64_t asked_ms, uses;
	struct tree_view *views[TREE_VIEWS_MAX];
};

void tree_init(struct tree *t, const struct cli *cli);
void tree_deinit(struct tree *t);

int tree_find(struct tree *t, const char *path, struct tree_node *ret_node) _must_check_;
/* A file or folder, "" for all, of a version of a folder; the node has no job. */
int tree_find_version(struct tree *t, const struct tree_job *folder, const struct cli_kept *kept,
		      const char *path, struct tree_node *ret_node) _must_check_;
/* Gives the view of a node back. */
void tree_release(struct tree *t, struct tree_node *node);
void tree_stat(const struct tree_node *node, struct stat *ret_stat);
/* The size of a core; makes it first. */
int tree_make_core(struct tree_node *node) _must_check_;
int tree_read(const struct tree_node *node, uint64_t offset, void *ret_bytes,
	      size_t size) _must_check_;
/* Calls add() for each entry of a folder. */
int tree_list(struct tree *t, struct tree_node *node, void (*add)(void *ctx, const char *name),
	      void *ctx) _must_check_;
