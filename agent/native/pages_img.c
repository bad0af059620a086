// SPDX-License-Identifier: LGPL-2.1-or-later
/* pagemap images, pages-N.runs, and plain pages-N.img made of them. */
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/native/img.h"
#include "agent/native/mem.pb-c.h"
#include "agent/native/mem_internal.h"
#include "agent/util/io.h"

enum {
	ENTRY_PRESENT = 4,	   /* PE_PRESENT */
	ENTRY_PAGES_MAX = 1 << 20, /* far below what 32 bits of bytes or pages could mean */
	RUNS_PER_WRITE = 4096,
	COPY_BLOCKS = 256,
};

/* Writes pages-N.runs and keeps the map of the next snapshot on the way. */
struct runs_writer {
	struct native_run v[RUNS_PER_WRITE];
	size_t count;
	int fd;
	struct img *pagemap;
	struct runs next;
	uint64_t block; /* of pages-N.img */
	XXH128_hash_t *hashes;
};

static int flush_runs(struct runs_writer *w)
{
	int r = write_full(w->fd, w->v, w->count * sizeof(*w->v));

	w->count = 0;
	return r;
}

static int put_run(struct runs_writer *w, const struct run *run)
{
	struct native_run *last = w->count ? &w->v[w->count - 1] : NULL;
	int r;

	if (last && le64toh(last->from) + le64toh(last->count) == run->from) {
		last->count = htole64(le64toh(last->count) + run->count);
		return 0;
	}
	if (w->count == RUNS_PER_WRITE) {
		r = flush_runs(w);
		if (r < 0)
			return r;
	}
	w->v[w->count++] = (struct native_run){ htole64(run->from), htole64(run->count) };
	return 0;
}

static void put_pagemap(struct img *i, uint64_t start, uint64_t count)
{
	NatMm__PagemapEntry e = NAT_MM__PAGEMAP_ENTRY__INIT;

	e.has_flags = 1;
	e.flags = ENTRY_PRESENT;
	for (; count; start += e.nr_pages, count -= e.nr_pages) {
		e.vaddr = start * NATIVE_PAGE;
		e.nr_pages = (uint32_t)(count < ENTRY_PAGES_MAX ? count : ENTRY_PAGES_MAX);
		img_put(i, &e.base);
	}
}

static void keep_hashes(const struct native_mem *m, const struct mem_space *s,
			struct runs_writer *w, const struct run *run)
{
	uint64_t block = run->from & RUN_BLOCK_MASK;
	bool is_new = run_kind(run->from) == RUN_KIND_NEW;
	uint64_t known = is_new ? m->spool.hash_room : s->hash_count;
	const XXH128_hash_t *v = is_new ? m->spool.hashes : s->hashes;

	for (uint64_t n = 0; n < run->count; n++)
		if (block + n < known)
			w->hashes[w->block + n] = v[block + n];
}

static int write_all(const struct native_mem *m, const struct mem_space *s, struct runs_writer *w)
{
	int r = 0;

	for (size_t i = 0; i < s->map.count && r == 0; i++) {
		const struct run *run = &s->map.v[i];

		if (run_kind(run->from) == RUN_KIND_GUARD) {
			r = runs_add(&w->next, run->start, run->count, run->from);
			continue;
		}
		r = put_run(w, run);
		if (r == 0)
			r = runs_add(&w->next, run->start, run->count,
				     run_from(RUN_KIND_OLD, w->block));
		if (s->compare)
			keep_hashes(m, s, w, run);
		w->block += run->count;
	}
	for (size_t i = 0; i < w->next.count && r == 0; i++)
		if (run_kind(w->next.v[i].from) == RUN_KIND_OLD)
			put_pagemap(w->pagemap, w->next.v[i].start, w->next.v[i].count);
	return r == 0 ? flush_runs(w) : r;
}

static uint64_t count_pages(const struct runs *map)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < map->count; i++)
		if (run_kind(map->v[i].from) != RUN_KIND_GUARD)
			pages += map->v[i].count;
	return pages;
}

int space_write(struct native_mem *m, struct native_tree *tree, struct mem_space *s,
		const char *name)
{
	NatMm__PagemapHead head = NAT_MM__PAGEMAP_HEAD__INIT;
	_cleanup_free_ struct runs_writer *w = calloc(1, sizeof(*w));
	uint64_t pages = count_pages(&s->map);
	char runs_name[64];
	int r, closed;

	if (!w)
		return -ENOMEM;
	if (s->compare) {
		w->hashes = calloc(pages + 1, sizeof(*w->hashes));
		if (!w->hashes)
			return -ENOMEM;
	}
	snprintf(runs_name, sizeof(runs_name), "pages-%u.runs", s->pages_id);
	w->fd = openat(tree->images, runs_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	r = w->fd < 0 ? -errno : img_create(tree->images, name, &w->pagemap);
	if (r == 0) {
		head.pages_id = s->pages_id;
		img_put(w->pagemap, &head.base);
		r = write_all(m, s, w);
		closed = img_close(w->pagemap);
		if (r == 0)
			r = closed;
	}
	if (w->fd >= 0)
		close(w->fd);
	if (r < 0) {
		runs_deinit(&w->next);
		free(w->hashes);
		return r;
	}
	runs_deinit(&s->map);
	s->map = w->next;
	free(s->hashes);
	s->hashes = w->hashes;
	s->hash_count = s->compare ? pages : 0;
	m->counts.mem_bytes += pages * NATIVE_PAGE;
	return 0;
}

static int copy_blocks(int from, uint64_t block, uint64_t count, int to)
{
	_cleanup_free_ uint8_t *buffer = malloc(COPY_BLOCKS * NATIVE_PAGE);
	int r = buffer ? 0 : -ENOMEM;

	while (count && r == 0) {
		uint64_t n = count < COPY_BLOCKS ? count : COPY_BLOCKS;

		r = pread_full(from, buffer, n * NATIVE_PAGE, (off_t)(block * NATIVE_PAGE));
		if (r == 0)
			r = write_full(to, buffer, n * NATIVE_PAGE);
		block += n;
		count -= n;
	}
	return r;
}

static int materialise_one(int images, int fresh, int base, const char *id)
{
	_cleanup_close_ int runs = -1, from = -1, to = -1;
	struct native_run run;
	struct stat st;
	char name[64];
	int r;

	snprintf(name, sizeof(name), "pages-%s.runs", id);
	runs = openat(images, name, O_RDONLY | O_CLOEXEC);
	if (runs < 0 || fstat(runs, &st) < 0)
		return -errno;
	if (st.st_size % sizeof(run))
		return -EBADMSG;
	snprintf(name, sizeof(name), "pages-%s.img", id);
	if (base >= 0)
		from = openat(base, name, O_RDONLY | O_CLOEXEC);
	to = openat(images, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (to < 0)
		return -errno;
	while ((r = read_full(runs, &run, sizeof(run))) == 0) {
		uint64_t block = le64toh(run.from);
		enum run_kind kind = run_kind(block);

		if (kind != RUN_KIND_NEW && (kind != RUN_KIND_OLD || from < 0))
			return -EBADMSG;
		r = copy_blocks(kind == RUN_KIND_NEW ? fresh : from, block & RUN_BLOCK_MASK,
				le64toh(run.count), to);
		if (r < 0)
			return r;
	}
	return r == -ENODATA ? 0 : r;
}

/* "pages-7.runs" -> "7" */
static bool runs_id(const char *name, char id[16])
{
	unsigned int n;
	int end = 0;

	if (sscanf(name, "pages-%u.runs%n", &n, &end) != 1 || !end || name[end])
		return false;
	snprintf(id, 16, "%u", n);
	return true;
}

int mem_materialise(int images, int base)
{
	_cleanup_close_ int fresh = openat(images, "pages.new", O_RDONLY | O_CLOEXEC);
	int copy = openat(images, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_closedir_ DIR *dir = copy >= 0 ? fdopendir(copy) : NULL;
	struct dirent *entry;
	char id[16];
	int r = 0;

	if (fresh < 0 || !dir)
		return -errno;
	while (r == 0 && (entry = readdir(dir)))
		if (runs_id(entry->d_name, id))
			r = materialise_one(images, fresh, base, id);
	rewinddir(dir);
	while (r == 0 && (entry = readdir(dir)))
		if (runs_id(entry->d_name, id) && unlinkat(images, entry->d_name, 0) < 0)
			r = -errno;
	if (r == 0 && unlinkat(images, "pages.new", 0) < 0)
		r = -errno;
	return r;
}
