/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For the tests of native's sockets, terminals and shared memory: a program of a few lines, its
 * files as the native engine writes them and as CRIU does, and the way back. Functions assert,
 * unless they return an error.
 *
 *   ipc_lab_start -> ipc_lab_take (native: files only) / ipc_lab_dump (CRIU) -> ipc_lab_file...
 *                 -> ipc_lab_snapshot (native: all) -> ipc_lab_restore
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "agent/native/files.pb-c.h"
#include "agent/native/native.h"

enum { IPC_LAB_ARENA = 4 << 20 };

struct ipc_lab {
	char folder[64], native[96], criu[96], all[96];
	char binary[256]; /* of CRIU; empty: there is none */
	char reason[NATIVE_REASON_MAX];
	struct native_state *state; /* NULL: cannot be loaded here */
	struct native_arena *arena;
	struct native_mem *mem;
	pid_t child;
	unsigned int flags; /* of the program */
	uint64_t files_ns;  /* of the last ipc_lab_take: files_collect */
};

/* False: something is missing, which a message says; skip(). */
bool ipc_lab_init(struct ipc_lab *lab);
void ipc_lab_deinit(struct ipc_lab *lab);

enum ipc_lab_flags {
	IPC_LAB_OWN_IPC = 1 << 0, /* an IPC namespace of its own */
	IPC_LAB_FAMILY = 1 << 1,  /* it has children; under ASan CRIU's restore of those crashes */
};

/*
 * The program: prepare() once, then it sleeps; each SIGUSR1 calls verify(), whose result is shown
 * by ipc_lab_ask(). Both run in the child, with nothing but 0, 1, 2 (all /dev/null) open.
 */
struct ipc_lab_program {
	int (*prepare)(void);
	int (*verify)(void);
	unsigned int flags;
};

void ipc_lab_start(struct ipc_lab *lab, const struct ipc_lab_program *p);
void ipc_lab_stop(struct ipc_lab *lab);
/* verify() in the child: 0 or what it found wrong. */
int ipc_lab_ask(struct ipc_lab *lab);
/* The whole engine, then the child is killed, restored by CRIU, asked, and ended. 0: all is well. */
int ipc_lab_return(struct ipc_lab *lab);
/* That for one program after the other; skips the test where there is no CRIU. */
void ipc_lab_return_each(struct ipc_lab *lab, const struct ipc_lab_program *programs, size_t count);

/* Freeze, files_collect, thaw, files_write; checks that files_check says the same. */
int ipc_lab_take(struct ipc_lab *lab);
/* -EOPNOTSUPP with a reason in which this occurs. */
void ipc_lab_refuses(struct ipc_lab *lab, const char *word);
/* criu dump --leave-running. */
void ipc_lab_dump(struct ipc_lab *lab);

/* Record n of an image; NULL beyond the last. free_unpacked it. raw: bytes after each record. */
ProtobufCMessage *ipc_lab_record(const char *folder, const char *image,
				 const ProtobufCMessageDescriptor *type, size_t n,
				 size_t (*raw)(const ProtobufCMessage *m), uint8_t **ret_raw);
/* The name, without ".img", of an image that begins so. */
void ipc_lab_find(const char *folder, const char *kind, char name[64]);
/* The files.img entry behind a descriptor of the child, a job of one process. */
NatFiles__File *ipc_lab_file(struct ipc_lab *lab, const char *folder, int fd);
/* Both engines wrote the same of this descriptor, numbers of entries and namespaces apart. */
void ipc_lab_same_file(struct ipc_lab *lab, int fd);
