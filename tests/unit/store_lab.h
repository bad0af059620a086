/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests: a store in a folder of its own, objects for it, and a look at its disk. Everything
 * asserts (cmocka).
 */
#pragma once

#include "overlay/store/store.h"

enum { STORE_LAB_QUOTA = 64 << 20 };

struct store_lab {
	char dir[64];
	struct store *store;
};

void store_lab_open(struct store_lab *f);
/* cmocka: *state is a struct store_lab with a new store. */
int store_lab_setup(void **state);
int store_lab_teardown(void **state);
void store_lab_reopen(struct store_lab *f);
/* Bytes that `salt` makes; it is in the first four. */
void store_lab_fill(uint8_t *bytes, uint32_t size, uint32_t salt);
struct ov_object store_lab_describe(uint8_t *bytes, uint32_t size, uint32_t salt, uint8_t job,
				    uint64_t seq);
int store_lab_put(struct store *store, const struct ov_object *object, const uint8_t *bytes);
/* An object of `salt`, and that it was taken. */
struct ov_object store_lab_put_new(struct store *store, uint32_t size, uint32_t salt, uint8_t job,
				   uint64_t seq);
/* Whatever it gives is checked. */
int store_lab_get(struct store *store, const struct ov_object *object);
struct store_stats store_lab_stats(struct store *store);
/* Where an object lies, found by its content: which file, and at which offset. */
uint64_t store_lab_place(const struct store_lab *f, const struct ov_object *object, char path[256]);
void store_lab_overwrite(const char *path, uint64_t offset, const char *text);
/* What the segments take of the disk. */
uint64_t store_lab_disk_bytes(const struct store_lab *f);
