// SPDX-License-Identifier: LGPL-2.1-or-later
/* pagemap-N.img -> where pages-M.img has which page. */
#include <errno.h>
#include <string.h>

#include "agent/export/internal.h"

enum { ENTRY_PARENT = 1, ENTRY_PRESENT = 4 };

static int add_run(struct page_map *m, uint64_t at, uint64_t size, uint64_t from)
{
	struct page_run *last = m->count ? &m->runs[m->count - 1] : NULL;

	if (last && last->at + last->size == at && last->from + last->size == from) {
		last->size += size;
		return 0;
	}
	if (last && last->at + last->size > at)
		return -EBADMSG;
	if (m->count == m->room) {
		size_t room = m->room ? 2 * m->room : 64;
		struct page_run *bigger = reallocarray(m->runs, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		m->runs = bigger;
		m->room = room;
	}
	m->runs[m->count++] = (struct page_run){ at, size, from };
	return 0;
}

static int add_entry(struct page_map *m, const NatMm__PagemapEntry *e, uint64_t *from, char *reason)
{
	uint64_t count = e->has_nr_pages_wide ? e->nr_pages_wide : e->nr_pages, size;
	int r;

	if (count > UINT64_MAX / EXPORT_PAGE || e->vaddr % EXPORT_PAGE)
		return -EBADMSG;
	size = count * EXPORT_PAGE;
	if (size > UINT64_MAX - e->vaddr)
		return -EBADMSG;
	if (e->in_parent || e->flags & ENTRY_PARENT)
		return export_fail(reason, -EOPNOTSUPP,
				   "the images need those of an earlier dump, which are not here");
	if (e->has_flags && !(e->flags & ENTRY_PRESENT))
		return export_fail(reason, -EOPNOTSUPP, "the images lack pages");
	if (!size)
		return 0;
	if (*from > m->file->size || size > m->file->size - *from)
		return -EBADMSG;
	r = add_run(m, e->vaddr, size, *from);
	*from += size;
	return r;
}

static int load_entries(struct image *i, const struct export_set *set, struct page_map *m,
			char *reason)
{
	ProtobufCMessage *message;
	uint64_t from = 0;
	char name[64];
	int r = image_next(i, &nat_mm__pagemap_head__descriptor, &message);

	if (r < 0 || !message)
		return r < 0 ? r : -EBADMSG;
	snprintf(name, sizeof(name), "pages-%u.img",
		 ((const NatMm__PagemapHead *)message)->pages_id);
	protobuf_c_message_free_unpacked(message, NULL);
	m->file = export_find(set, FILE_IMAGE, name);
	for (;;) {
		r = image_next(i, &nat_mm__pagemap_entry__descriptor, &message);
		if (r < 0 || !message)
			return r;
		r = m->file ? add_entry(m, (const NatMm__PagemapEntry *)message, &from, reason) :
			      -EBADMSG;
		protobuf_c_message_free_unpacked(message, NULL);
		if (r < 0)
			return r;
	}
}

int page_map_load(const struct export_set *set, const char *name, struct page_map *ret_map,
		  char *reason)
{
	_cleanup_free_ uint8_t *bytes = NULL;
	struct page_map m = { 0 };
	struct image i;
	size_t size;
	int r = task_image(set, name, &bytes, &size, reason);

	if (r == 0)
		r = image_begin(bytes, size, IMAGE_PAGEMAP, &i);
	if (r == 0)
		r = load_entries(&i, set, &m, reason);
	if (r < 0) {
		page_map_deinit(&m);
		return r;
	}
	*ret_map = m;
	return 0;
}

void page_map_deinit(struct page_map *m)
{
	free(m->runs);
	*m = (struct page_map){ 0 };
}

size_t page_map_find(const struct page_map *m, uint64_t at)
{
	size_t low = 0, high = m->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (m->runs[middle].at + m->runs[middle].size <= at)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}
