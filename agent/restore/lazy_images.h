/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The memory images of a checkpoint, cut in two: what a job needs to run at all, and the rest.
 *
 *   pagemap-PID.img + mm-PID.img --> runs that may come later (a lazy_map per process)
 *                                --> pagemap-PID.img anew: PE_LAZY and PE_PRESENT entries
 *                                --> pages-N.img anew: present pages only
 *
 * Threading: none. Format as of CRIU 4.2 (img_version 2).
 */
#pragma once

#include "agent/pack/reader.h"
#include "agent/restore/lazy_map.h"

/* A process with memory that comes later. */
struct lazy_image {
	pid_t pid;     /* as the job numbers it */
	uint32_t file; /* its pages-N.img in the manifest */
	struct lazy_map later;
	/* The rest of its pages: `block` of the image goes to block `page` of the new one. */
	struct lazy_map now;
	uint64_t now_pages;
};

struct lazy_plan {
	struct lazy_image *images;
	size_t count;
	uint64_t later_pages;
};

/* Is this file of a manifest one whose blocks a plan cares for? */
bool lazy_is_pages_image(const char *path);
/*
 * Reads the images in images_fd, which has all but pages-*.img, and rewrites the pagemaps. -EBADMSG
 * for images that make no sense. Images of shared memory are no concern of it: see lazy_plan_has().
 */
int lazy_plan_make(int images_fd, const struct manifest *m,
		   struct lazy_plan *ret_plan) _must_check_;
void lazy_plan_deinit(struct lazy_plan *plan);
/* Does the plan write this file of the manifest? Else it has to be restored as it is. */
const struct lazy_image *lazy_plan_has(const struct lazy_plan *plan, uint32_t file);
