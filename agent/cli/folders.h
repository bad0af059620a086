/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * /folders of a mount: each folder of the user's to read and write where its host is, and all kept
 * versions to read.
 *
 *   /folders/NAME      its working copy; on other hosts a symlink to its newest version
 *   /folders/NAME@N    version N
 *   NAME~HOST          one that has the name of an older one
 *
 * A path that is not below /folders is the tree's (tree.h). Limits: those of worktree.h. Errors:
 * -errno. Threading: one call at a time; another thread, made by folders_begin(), sends new
 * versions.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "agent/cli/tree.h"
#include "agent/cli/worktree.h"

struct folder_row {
	char name[160], id[33]; /* name: its label, see api.md */
	bool here;		/* ours to write */
	int64_t seq, every_s;
	struct tree_job job;   /* its versions, for the tree */
	struct worktree *work; /* NULL: to read only */
	bool listed;
};

struct folders {
	const struct cli *cli;
	struct tree *tree;
	struct folder_row *rows;
	size_t count;
	uint64_t asked_ms;

	pthread_mutex_t lock; /* guards the next two, and the end */
	struct worktree **works;
	size_t work_count;
	pthread_cond_t wake;
	pthread_t thread;
	bool running, stop;
};

enum folders_type {
	FOLDERS_NONE = 0, /* the tree's */
	FOLDERS_ROOT,
	FOLDERS_WORK,	 /* in a working copy: work and path below it, "" for its root */
	FOLDERS_LINK,	 /* to the newest version */
	FOLDERS_EMPTY,	 /* there is no version yet */
	FOLDERS_VERSION, /* node */
};

struct folders_node {
	enum folders_type type;
	struct folder_row *row;
	struct worktree *work;
	const char *path; /* in the path that was asked for */
	struct tree_node node;
};

/* Both before the mount is served: opens, and fetches, the working copies of what is here. */
void folders_init(struct folders *f, const struct cli *cli, struct tree *tree);
/* In the process that serves: starts to send. */
int folders_begin(struct folders *f) _must_check_;
/* Sends once what is not sent yet, for 20 s at most; then the process ends at once. */
void folders_end(struct folders *f);

bool folders_is_below(const char *path);
int folders_find(struct folders *f, const char *path, struct folders_node *ret_node) _must_check_;
int folders_list(struct folders *f, void (*add)(void *ctx, const char *name),
		 void *ctx) _must_check_;
/* Names of a working copy's folder. */
int folders_list_work(const struct folders_node *n, void (*add)(void *ctx, const char *name),
		      void *ctx) _must_check_;
