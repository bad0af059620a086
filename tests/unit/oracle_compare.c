// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/oracle.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>

struct judge {
	const struct frozen *f;
	int images;
	const struct store *s;
	struct oracle_report *report;
	const struct frozen_task *task;
	const struct frozen_vma *vma;
	struct image_pagemap map;
	size_t run; /* the first that does not end before where we are */
	size_t next_vma;
	uint32_t shmids[FROZEN_FILES_MAX]; /* + 1; 0: not seen yet */
};

static const uint8_t zeros[ORACLE_PAGE];

static void wrong(struct judge *j, uint64_t vaddr, const char *what)
{
	struct oracle_report *report = j->report;

	if (report->wrong++)
		return;
	snprintf(report->first, sizeof(report->first), "process %d, %#llx of %s %llx-%llx: %s",
		 j->task->pid, (unsigned long long)vaddr,
		 j->vma->shared	   ? "shared" :
		 j->vma->file >= 0 ? "file" :
				     "anonymous",
		 (unsigned long long)j->vma->start, (unsigned long long)j->vma->end, what);
}

static const uint8_t *block(const struct judge *j, uint64_t index)
{
	return j->f->buffer + index * ORACLE_PAGE;
}

/* What a page reads as that no process has changed. */
static const uint8_t *untouched(const struct judge *j, uint64_t vaddr)
{
	const struct frozen_file *file;
	uint64_t off = vaddr - j->vma->start + j->vma->offset;

	if (j->vma->file < 0)
		return zeros;
	file = &j->f->files[j->vma->file];
	return off < file->size ? block(j, file->block + off / ORACLE_PAGE) : zeros;
}

/* Content by the images, or NULL. Addresses may only grow within a task. */
static const uint8_t *image_of(struct judge *j, uint64_t vaddr)
{
	const struct image_run *r = j->map.runs;
	const uint8_t *bytes;

	while (j->run < j->map.count && r[j->run].vaddr + r[j->run].pages * ORACLE_PAGE <= vaddr)
		j->run++;
	if (j->run == j->map.count || r[j->run].vaddr > vaddr)
		return NULL;
	bytes = store_block(j->s, j->map.pages_id,
			    r[j->run].block + (vaddr - r[j->run].vaddr) / ORACLE_PAGE);
	if (!bytes)
		wrong(j, vaddr, "the images have no such block");
	return bytes ?: zeros;
}

/* Where the next page of the images is, from vaddr on; UINT64_MAX: none in this VMA. */
static uint64_t next_image(const struct judge *j, uint64_t vaddr)
{
	for (size_t i = j->run; i < j->map.count; i++) {
		const struct image_run *r = &j->map.runs[i];

		if (r->vaddr >= j->vma->end)
			break;
		if (r->vaddr + r->pages * ORACLE_PAGE > vaddr)
			return r->vaddr > vaddr ? r->vaddr : vaddr;
	}
	return UINT64_MAX;
}

static void compare_present(struct judge *j, const struct frozen_page *page)
{
	const uint8_t *image = image_of(j, page->vaddr);

	if (page->flags & PAGE_GUARD)
		return;
	/* The file's own page: the images need not have it. */
	if (!image && page->flags & PAGE_FILE && j->vma->file >= 0)
		return;
	j->report->pages++;
	if (!memcmp(block(j, page->block), image ?: untouched(j, page->vaddr), ORACLE_PAGE))
		return;
	wrong(j, page->vaddr, image ? "the images have other content" : "not in the images");
}

static void compare_absent(struct judge *j, uint64_t vaddr)
{
	const uint8_t *image = image_of(j, vaddr);

	j->report->pages++;
	if (image && memcmp(image, untouched(j, vaddr), ORACLE_PAGE))
		wrong(j, vaddr, "in the images, but no longer in memory");
}

static void compare_private(struct judge *j)
{
	const struct frozen_vma *vma = j->vma;
	uint64_t at = vma->start;

	for (size_t i = vma->first; i <= vma->first + vma->count; i++) {
		bool last = i == vma->first + vma->count;
		uint64_t next = last ? vma->end : j->f->pages[i].vaddr;

		for (;;) {
			at = next_image(j, at);
			if (at >= next)
				break;
			compare_absent(j, at);
			at += ORACLE_PAGE;
		}
		if (last)
			break;
		compare_present(j, &j->f->pages[i]);
		at = next + ORACLE_PAGE;
	}
}

static void compare_guards(struct judge *j, const struct image_vma *vmas, size_t count)
{
	uint64_t pages = 0, guards = 0;

	for (size_t i = 0; i < count; i++) {
		if (vmas[i].status & IMAGE_VMA_GUARD)
			guards += (vmas[i].end - vmas[i].start) / ORACLE_PAGE;
	}
	for (size_t i = j->task->first; i < j->task->first + j->task->count; i++) {
		const struct frozen_vma *vma = &j->f->vmas[i];

		for (size_t p = vma->first; p < vma->first + vma->count; p++)
			pages += !!(j->f->pages[p].flags & PAGE_GUARD);
	}
	if (pages != guards)
		wrong(j, pages, "so many guard pages, other than in the images");
}

/* Both lists are by address; guards lie in between or at the end. */
static const struct image_vma *find_vma(struct judge *j, const struct image_vma *vmas, size_t count)
{
	for (size_t n = 0; n < count; n++) {
		size_t i = (j->next_vma + n) % count;

		if (vmas[i].start == j->vma->start && !(vmas[i].status & IMAGE_VMA_GUARD)) {
			j->next_vma = i + 1;
			return &vmas[i];
		}
	}
	return NULL;
}

/* A pagemap and the content that goes with it are of one length. */
static void compare_length(struct judge *j, const struct image_pagemap *map)
{
	uint64_t pages =
		map->count ? map->runs[map->count - 1].block + map->runs[map->count - 1].pages : 0;

	if (pages != store_blocks(j->s, map->pages_id))
		wrong(j, pages, "so many pages in its pagemap, other than blocks");
}

static void compare_object(struct judge *j, const struct frozen_file *file, uint32_t shmid)
{
	struct image_pagemap map = { 0 };
	uint64_t pages = (file->size + ORACLE_PAGE - 1) / ORACLE_PAGE;
	size_t run = 0;
	char name[64];
	int r;

	snprintf(name, sizeof(name), "pagemap-shmem-%u.img", shmid);
	r = image_pagemap_load(j->images, name, &map);
	if (r < 0) {
		wrong(j, j->vma->start, "its object has no image");
		return;
	}
	compare_length(j, &map);
	for (uint64_t p = 0; p < pages; p++) {
		const uint8_t *image = NULL;
		const struct image_run *runs = map.runs;

		while (run < map.count && runs[run].vaddr / ORACLE_PAGE + runs[run].pages <= p)
			run++;
		if (run < map.count && runs[run].vaddr / ORACLE_PAGE <= p)
			image = store_block(j->s, map.pages_id,
					    runs[run].block + p - runs[run].vaddr / ORACLE_PAGE);
		j->report->pages++;
		if (memcmp(block(j, file->block + p), image ?: zeros, ORACLE_PAGE))
			wrong(j, j->vma->start + p * ORACLE_PAGE,
			      image ? "object: other content" : "object: not in the images");
	}
	free(map.runs);
}

static void compare_shared(struct judge *j, const struct image_vma *image)
{
	const struct frozen_file *file;
	uint32_t shmid = (uint32_t)image->shmid;

	if (j->vma->file < 0)
		return;
	file = &j->f->files[j->vma->file];
	if (image->status & IMAGE_VMA_MEMFD && image_memfd_shmid(j->images, shmid, &shmid) < 0) {
		wrong(j, j->vma->start, "its memfd is not in the images");
		return;
	}
	if (j->shmids[j->vma->file] == shmid + 1)
		return;
	if (j->shmids[j->vma->file]) {
		wrong(j, j->vma->start, "one object under two names");
		return;
	}
	j->shmids[j->vma->file] = shmid + 1;
	compare_object(j, file, shmid);
}

static void compare_task(struct judge *j)
{
	struct image_vma *vmas = NULL;
	size_t count = 0;
	char name[64];
	int r = image_vmas_load(j->images, j->task->pid, &vmas, &count);

	j->vma = &j->f->vmas[j->task->first];
	snprintf(name, sizeof(name), "pagemap-%d.img", j->task->pid);
	j->map = (struct image_pagemap){ 0 };
	j->run = 0;
	if (r == 0)
		r = image_pagemap_load(j->images, name, &j->map);
	if (r < 0)
		wrong(j, 0, "no image of its memory, or a broken one");
	for (size_t i = 0; r == 0 && i < j->task->count; i++) {
		const struct image_vma *image;

		j->vma = &j->f->vmas[j->task->first + i];
		image = find_vma(j, vmas, count);
		if (!image || image->end != j->vma->end ||
		    (image->prot & 7) != (uint32_t)j->vma->prot) {
			wrong(j, j->vma->start, "VMA: not so in the images");
			continue;
		}
		if (!j->vma->shared)
			compare_private(j);
		/* A private mapping of an object shows what the object holds. */
		if (j->vma->file >= 0 && j->f->files[j->vma->file].shm)
			compare_shared(j, image);
	}
	if (r == 0) {
		compare_guards(j, vmas, count);
		compare_length(j, &j->map);
	}
	free(vmas);
	free(j->map.runs);
}

void oracle_compare(const struct frozen *f, int images, const struct store *s,
		    struct oracle_report *report)
{
	struct judge *j = calloc(1, sizeof(*j));

	if (!j) {
		report->wrong++;
		return;
	}
	*j = (struct judge){ .f = f, .images = images, .s = s, .report = report };
	for (size_t i = 0; i < f->task_count; i++) {
		j->task = &f->tasks[i];
		compare_task(j);
	}
	free(j);
}
