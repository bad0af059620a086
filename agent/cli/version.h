/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files of a folder's version, which may be stored in chunks (agent/pack/chunk.h). Threading: one
 * thread for each open file.
 */
#pragma once

#include "agent/cli/cli.h"
#include "agent/pack/chunk.h"

static inline uint64_t version_file_size(const struct export_file *f)
{
	return f->chunks ? f->content_size : f->size;
}

/* Empty for a file that is stored as it is. */
int version_table(const struct export_set *set, const struct export_file *file,
		  struct chunk_table *ret_table) _must_check_;
/* Exactly size <= EXPORT_READ_MAX bytes of the content. */
int version_read(const struct export_set *set, const struct export_file *file,
		 const struct chunk_table *table, uint64_t offset, void *ret_bytes,
		 size_t size) _must_check_;
