/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading CRIU's image files: magic numbers, then records of a 32-bit size and a protobuf message.
 * Written by whatever engine took the checkpoint; each number in them is checked. Formats as of CRIU
 * 4.2; the messages are those of agent/native.
 *
 * Errors: -EBADMSG for what does not decode. Threading: reentrant.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/util/cleanup.h"

enum { IMAGE_BYTES_MAX = 64 << 20 }; /* of one image that is read whole */

/* A cursor over the records of one image; the bytes are the caller's. */
struct image {
	const uint8_t *bytes;
	size_t size, at;
};

/* Magic numbers of the images that are read; the common one comes before. */
enum image_kind {
	IMAGE_PSTREE = 0x50273030,
	IMAGE_CORE = 0x55053847,
	IMAGE_MM = 0x57492820,
	IMAGE_FILES = 0x56303138,
	IMAGE_PAGEMAP = 0x56084025,
	IMAGE_MEMFD = 0x48453499,
};

int image_begin(const void *bytes, size_t size, enum image_kind kind,
		struct image *ret_image) _must_check_;
/*
 * The next record; the caller frees it with protobuf_c_message_free_unpacked(). 0: *ret_message is
 * it, or NULL at the end.
 */
int image_next(struct image *i, const ProtobufCMessageDescriptor *type,
	       ProtobufCMessage **ret_message) _must_check_;

/*
 * May this user see the task's memory? As the kernel's own rule for core files: all its threads'
 * ids are his, and the process is dumpable (no set-id program, nothing that it may not read).
 * -EPERM if not. One takes a core-N.img, the other an mm-N.img.
 */
int image_core_is_of(const void *bytes, size_t size, uid_t uid) _must_check_;
int image_mm_is_dumpable(const void *bytes, size_t size) _must_check_;
