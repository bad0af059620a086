/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Containers of CRIU's image files: magic numbers, then records of a 32-bit size and a protobuf
 * message. Format as of CRIU 4.2 (img_version 2); all numbers little-endian.
 *
 * Writing is buffered; an error sticks and is returned by img_close(). Threading: none.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

#include "agent/util/cleanup.h"

enum {
	IMG_RECORD_MAX = 64 << 20,
};

struct img;

/* name: without ".img"; e.g. "core-1000". The magic is found by the name's first word. */
int img_create(int dirfd, const char *name, struct img **ret_img) _must_check_;
void img_put(struct img *i, const ProtobufCMessage *message);
void img_put_raw(struct img *i, const void *bytes, size_t size);
/* Closes and frees in any case. */
int img_close(struct img *i) _must_check_;
