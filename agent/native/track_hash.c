// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * No tracking at all: every populated page is read in the pause and compared with the hash of what
 * was stored of it. Needs nothing of the kernel; the pause grows with the memory.
 */
#include "agent/native/track.h"

static bool hash_probe(const struct native_mem *m)
{
	(void)m;
	return true;
}

static int hash_attach(struct native_mem *m, struct mem_mm *mm)
{
	(void)m;
	mm->space.compare = true;
	return 0;
}

static int hash_cover(struct native_mem *m, struct mem_mm *mm, const struct state_vma *vmas,
		      size_t count, struct runs *ret_new)
{
	(void)m;
	(void)vmas;
	(void)count;
	(void)ret_new;
	/* Each pre-copy looks at all of it. */
	mm->full = true;
	return 0;
}

static bool hash_tracks(const struct mem_mm *mm, const struct state_vma *vma)
{
	(void)mm;
	(void)vma;
	return false;
}

static void hash_detach(struct mem_mm *mm)
{
	mm->space.compare = false;
}

const struct track_ops track_hash = {
	.name = "hash",
	.compare = true,
	.probe = hash_probe,
	.attach = hash_attach,
	.cover = hash_cover,
	.tracks = hash_tracks,
	.detach = hash_detach,
};
