// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/restore/lazy_images.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "agent/native/img.h"
#include "agent/native/mem.pb-c.h"
#include "agent/restore/lazy.h"
#include "agent/util/io.h"

enum {
	IMAGE_BYTES_MAX = 256 << 20, /* of a pagemap or mm image */
	IMAGE_HEAD = 8,
	PE_LAZY = 2,
	PE_PRESENT = 4,
	VMA_REGULAR = 1,
	VMA_ANON_PRIVATE = 0x200,
	VMA_ODD = 4 | 8 | 0x400 | 0x1000 | 0x2000, /* vsyscall, vdso, SysV, vvar, AIO ring */
	ENTRY_PAGES_MAX = 1 << 20,
};

/* One image as records: [u32 size, bytes]... */
struct records {
	char *bytes;
	size_t size, at;
};

static int open_records(int dirfd, const char *name, struct records *ret)
{
	*ret = (struct records){ .at = IMAGE_HEAD };
	return read_file_at(dirfd, name, IMAGE_BYTES_MAX, &ret->bytes, &ret->size);
}

/* 1, 0 at the end, -EBADMSG. */
static int next_record(struct records *r, const uint8_t **ret_bytes, uint32_t *ret_size)
{
	uint32_t size;

	if (r->at == r->size)
		return 0;
	if (r->size < r->at || r->size - r->at < sizeof(size))
		return -EBADMSG;
	memcpy(&size, r->bytes + r->at, sizeof(size));
	if (size > r->size - r->at - sizeof(size))
		return -EBADMSG;
	*ret_bytes = (const uint8_t *)r->bytes + r->at + sizeof(size);
	*ret_size = size;
	r->at += sizeof(size) + size;
	return 1;
}

static int read_mm(int dirfd, pid_t pid, NatMm__Mm **ret_mm)
{
	char name[32];
	struct records r;
	const uint8_t *bytes;
	uint32_t size;
	int e;

	snprintf(name, sizeof(name), "mm-%d.img", pid);
	e = open_records(dirfd, name, &r);
	if (e < 0)
		return e;
	e = next_record(&r, &bytes, &size);
	*ret_mm = e == 1 ? nat_mm__mm__unpack(NULL, size, bytes) : NULL;
	free(r.bytes);
	return *ret_mm ? 0 : -EBADMSG;
}

static bool may_be_later(const NatMm__Vma *v)
{
	return (v->flags & MAP_ANONYMOUS) && (v->flags & MAP_PRIVATE) &&
	       !(v->flags & (MAP_LOCKED | MAP_HUGETLB | MAP_GROWSDOWN)) &&
	       (v->status & VMA_REGULAR) && (v->status & VMA_ANON_PRIVATE) &&
	       !(v->status & VMA_ODD) && (v->end - v->start) / PACK_BLOCK >= LAZY_PAGES_MIN;
}

/* The new pagemap image while the old one is read. */
struct cutter {
	const NatMm__Mm *mm;
	size_t vma;
	struct img *out;
	struct lazy_image *image;
	uint64_t block; /* of the old pages-N.img */
	uint64_t end;	/* of the last entry: they rise */
};

static void put_entry(struct img *out, uint64_t page, uint64_t count, uint32_t flags)
{
	NatMm__PagemapEntry e = NAT_MM__PAGEMAP_ENTRY__INIT;

	e.has_flags = 1;
	e.flags = flags;
	for (; count; page += e.nr_pages, count -= e.nr_pages) {
		e.vaddr = page * PACK_BLOCK;
		e.nr_pages = (uint32_t)(count < ENTRY_PAGES_MAX ? count : ENTRY_PAGES_MAX);
		img_put(out, &e.base);
	}
}

/* Pages of one mapping. */
static int put_pages(struct cutter *c, uint64_t page, uint64_t count, bool later)
{
	int r;

	if (later) {
		r = lazy_map_append(&c->image->later, page, count, c->block);
	} else {
		r = lazy_map_append(&c->image->now, c->image->now_pages, count, c->block);
		c->image->now_pages += count;
	}
	if (r < 0)
		return r == -EINVAL ? -EBADMSG : r;
	put_entry(c->out, page, count, later ? PE_LAZY : PE_PRESENT);
	c->block += count;
	return 0;
}

/* One entry, cut where mappings end. */
static int cut_entry(struct cutter *c, uint64_t page, uint64_t count)
{
	while (count > 0) {
		const NatMm__Vma *v;
		uint64_t n;
		int r;

		while (c->vma < c->mm->n_vmas && c->mm->vmas[c->vma]->end / PACK_BLOCK <= page)
			c->vma++;
		if (c->vma == c->mm->n_vmas)
			return -EBADMSG;
		v = c->mm->vmas[c->vma];
		if (v->start / PACK_BLOCK > page)
			return -EBADMSG;
		n = v->end / PACK_BLOCK - page;
		n = n < count ? n : count;
		r = put_pages(c, page, n, may_be_later(v));
		if (r < 0)
			return r;
		page += n;
		count -= n;
	}
	return 0;
}

static int cut_record(struct cutter *c, const uint8_t *bytes, uint32_t size)
{
	NatMm__PagemapEntry *e = nat_mm__pagemap_entry__unpack(NULL, size, bytes);
	uint64_t page, count;
	int r;

	if (!e)
		return -EBADMSG;
	page = e->vaddr / PACK_BLOCK;
	count = e->has_nr_pages_wide ? e->nr_pages_wide : e->nr_pages;
	/* Whole images only: nothing here has a parent. */
	if (e->vaddr % PACK_BLOCK || page < c->end || count > UINT64_MAX / PACK_BLOCK / 4 ||
	    e->in_parent || (e->has_flags && (e->flags & ~(uint32_t)PE_LAZY) != PE_PRESENT))
		r = -EBADMSG;
	else
		r = cut_entry(c, page, count);
	c->end = page + count;
	nat_mm__pagemap_entry__free_unpacked(e, NULL);
	return r;
}

static int find_pages(const struct manifest *m, uint32_t pages_id, uint32_t *ret_file)
{
	char name[32];

	snprintf(name, sizeof(name), "pages-%" PRIu32 ".img", pages_id);
	for (size_t i = 0; i < manifest_file_count(m); i++) {
		struct manifest_file f;

		manifest_file(m, i, &f);
		if (f.kind != FILE_IMAGE || strcmp(f.path, name) || f.hardlink)
			continue;
		*ret_file = (uint32_t)i;
		return 0;
	}
	return -ENOENT;
}

static int cut_records(struct cutter *c, struct records *in, const struct manifest *m)
{
	struct manifest_file f;
	const uint8_t *bytes;
	uint32_t size;
	int r;

	while ((r = next_record(in, &bytes, &size)) == 1) {
		r = cut_record(c, bytes, size);
		if (r < 0)
			return r;
	}
	manifest_file(m, c->image->file, &f);
	return r == 0 && c->block * PACK_BLOCK > (uint64_t)f.st.st_size ? -EBADMSG : r;
}

/* Written beside the old one, then put in its place. */
static int cut_image(int dirfd, const struct manifest *m, const char *name, struct records *in,
		     const NatMm__Mm *mm, struct lazy_image *image)
{
	NatMm__PagemapHead out_head = NAT_MM__PAGEMAP_HEAD__INIT, *head;
	struct cutter c = { .mm = mm, .image = image };
	const uint8_t *bytes;
	uint32_t size;
	int r = next_record(in, &bytes, &size), closed;

	head = r == 1 ? nat_mm__pagemap_head__unpack(NULL, size, bytes) : NULL;
	if (!head)
		return -EBADMSG;
	out_head.pages_id = head->pages_id;
	nat_mm__pagemap_head__free_unpacked(head, NULL);
	r = find_pages(m, out_head.pages_id, &image->file);
	if (r == 0 && unlinkat(dirfd, name, 0) < 0)
		r = -errno;
	if (r == 0) {
		char stem[32];

		snprintf(stem, sizeof(stem), "pagemap-%d", image->pid);
		r = img_create(dirfd, stem, &c.out);
	}
	if (r < 0)
		return r;
	img_put(c.out, &out_head.base);
	r = cut_records(&c, in, m);
	closed = img_close(c.out);
	return r < 0 ? r : closed;
}

static int add_image(struct lazy_plan *plan, int dirfd, const struct manifest *m, const char *name,
		     pid_t pid)
{
	struct lazy_image image = { .pid = pid };
	NatMm__Mm *mm = NULL;
	struct records in;
	int r = open_records(dirfd, name, &in);

	if (r < 0)
		return r;
	r = read_mm(dirfd, pid, &mm);
	/* A process without pages has a head only; its pages image is empty, or not there. */
	if (r == 0)
		r = cut_image(dirfd, m, name, &in, mm, &image);
	nat_mm__mm__free_unpacked(mm, NULL);
	free(in.bytes);
	if (r < 0) {
		lazy_map_deinit(&image.later);
		lazy_map_deinit(&image.now);
		return r;
	}
	for (size_t i = 0; i < image.later.count; i++)
		plan->later_pages += image.later.runs[i].count;
	plan->images[plan->count++] = image;
	return 0;
}

bool lazy_is_pages_image(const char *path)
{
	unsigned int id;
	int n = 0;

	return sscanf(path, "pages-%u.img%n", &id, &n) == 1 && n > 0 && !path[n];
}

int lazy_plan_make(int images_fd, const struct manifest *m, struct lazy_plan *ret_plan)
{
	size_t files = manifest_file_count(m);
	struct lazy_plan plan = { .images = calloc(files + 1, sizeof(*plan.images)) };
	int r = plan.images ? 0 : -ENOMEM;

	for (size_t i = 0; i < files && r == 0; i++) {
		struct manifest_file f;
		int pid, n = 0;

		manifest_file(m, i, &f);
		if (f.kind != FILE_IMAGE || sscanf(f.path, "pagemap-%d.img%n", &pid, &n) != 1 ||
		    n == 0 || f.path[n] || pid <= 0)
			continue;
		r = add_image(&plan, images_fd, m, f.path, pid);
	}
	if (r < 0) {
		lazy_plan_deinit(&plan);
		return r;
	}
	*ret_plan = plan;
	return 0;
}

void lazy_plan_deinit(struct lazy_plan *plan)
{
	for (size_t i = 0; i < plan->count; i++) {
		lazy_map_deinit(&plan->images[i].later);
		lazy_map_deinit(&plan->images[i].now);
	}
	free(plan->images);
	*plan = (struct lazy_plan){ 0 };
}

const struct lazy_image *lazy_plan_has(const struct lazy_plan *plan, uint32_t file)
{
	for (size_t i = 0; i < plan->count; i++) {
		if (plan->images[i].file == file)
			return &plan->images[i];
	}
	return NULL;
}
