/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Open files of a stopped child as the native engine's file part wants them, read from /proc, so
 * that its tests need no BPF; and the images that it writes, read back.
 */
#pragma once

#include "agent/native/files.h"
#include "agent/native/files.pb-c.h"

enum { LAB_FILES_MAX = 512, LAB_TASKS_MAX = 4 };

struct files_lab {
	char folder[64]; /* the child's working directory */
	char images_path[96];
	int images;
	pid_t child;
	int to_child, from_child; /* orders, answers: one byte each */
	struct native_tree tree;
	struct native_task tasks[LAB_TASKS_MAX];
	char reason[NATIVE_REASON_MAX];
	struct native_files *files;
	/* fl_read_images() */
	NatFiles__File *entries[LAB_FILES_MAX];
	size_t entry_count;
	NatFiles__Fdinfo *fds[LAB_FILES_MAX];
	size_t fd_count;
};

/* act(order, arg) runs in the child for each order, 0 first; it must not return < 0. */
void fl_start(struct files_lab *lab, int (*act)(int order, void *arg), void *arg);
/* The child has done it when this returns. */
void fl_order(struct files_lab *lab, int order);
void fl_stop(struct files_lab *lab);
void fl_go(struct files_lab *lab);
/* All of it, also half-made; again: nothing. */
void fl_end(struct files_lab *lab);

/* A process of the lab into the tree; the first is the root. Stopped ones only. */
void fl_add_task(struct files_lab *lab, pid_t pid);
/* Stops the child, reads it, collects; the child stays stopped. */
int fl_collect(struct files_lab *lab);
int fl_write(struct files_lab *lab);
/* collect, go, write and read; all must work. */
void fl_take(struct files_lab *lab);

void fl_read_images(struct files_lab *lab);
/* Of the first process. */
const NatFiles__File *fl_file_of_fd(const struct files_lab *lab, int fd);
const NatFiles__File *fl_file_by_id(const struct files_lab *lab, uint32_t id);
/* Records of an image; unpacked with the descriptor. For raw content after records: offset. */
size_t fl_read_image(const struct files_lab *lab, const char *name,
		     const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret_messages,
		     size_t room);
/* A whole image file; freed by the caller. */
uint8_t *fl_read_file(const struct files_lab *lab, const char *name, size_t *ret_size);
