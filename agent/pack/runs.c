// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A file of which only the changed blocks are there: memory images of the native engine. Old blocks
 * take over where they lie, unread and unhashed, so that a big job that changes little costs little.
 */
#include <errno.h>
#include <string.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"

#define RUN_FIRST_MASK (((uint64_t)1 << 56) - 1)

/* Where the blocks of the old file lie; a cursor, since runs mostly go forward. */
struct old_file {
	const struct extent_list *extents; /* NULL: there is none */
	size_t index;			   /* of the extent at hand */
	uint64_t before;		   /* blocks before it */
};

static void find_old(const struct packer *p, const struct pack_input *in, struct old_file *ret_old)
{
	const struct packed_file *f = file_list_find(&p->last, in->kind, in->path);

	*ret_old = (struct old_file){ 0 };
	if (f && f->hardlink == 0 && S_ISREG(f->st.st_mode))
		ret_old->extents = &f->extents;
}

/* Moves the cursor to the extent with that block. */
static int seek_old(struct old_file *old, uint64_t block)
{
	if (!old->extents)
		return -ENOENT;
	if (block < old->before) {
		old->index = 0;
		old->before = 0;
	}
	while (old->index < old->extents->count &&
	       block - old->before >= old->extents->items[old->index].count)
		old->before += old->extents->items[old->index++].count;
	return old->index < old->extents->count ? 0 : -ENOENT;
}

static int add_old(struct packer *p, struct old_file *old, uint64_t first, uint64_t count,
		   struct extent_list *extents)
{
	while (count > 0) {
		const struct extent *e;
		uint32_t skip, n;
		int r = seek_old(old, first);

		if (r < 0)
			return r;
		e = &old->extents->items[old->index];
		skip = (uint32_t)(first - old->before);
		n = e->count - skip < count ? e->count - skip : (uint32_t)count;
		if (e->pack == PACK_ZERO)
			p->counts.zero_bytes += (uint64_t)n * PACK_BLOCK;
		else if (!packer_pack_usable(p, e->pack))
			return -ENOENT;
		r = extent_append(extents, e->pack, e->slot + skip, n);
		if (r < 0)
			return r;
		first += n;
		count -= n;
	}
	return 0;
}

static int add_new(struct packer *p, int fd, uint64_t first, uint64_t count,
		   struct extent_list *extents)
{
	while (count > 0) {
		uint64_t n = count < READ_CHUNK / PACK_BLOCK ? count : READ_CHUNK / PACK_BLOCK;
		int r = pread_full(fd, p->read_buffer, (size_t)n * PACK_BLOCK,
				   (off_t)(first * PACK_BLOCK));

		if (r == 0)
			r = packer_add_blocks(p, p->read_buffer, (size_t)n, extents);
		if (r < 0)
			return r;
		first += n;
		count -= n;
	}
	return 0;
}

static int check_runs(const struct pack_input *in)
{
	uint64_t left = (uint64_t)in->st.st_size / PACK_BLOCK;

	if ((uint64_t)in->st.st_size % PACK_BLOCK)
		return -EINVAL;
	for (size_t i = 0; i < in->run_count; i++) {
		const struct pack_run *run = &in->runs[i];
		uint64_t kind = run->from >> 56, first = run->from & RUN_FIRST_MASK;

		if ((kind != PACK_RUN_NEW && kind != PACK_RUN_OLD) || run->count == 0 ||
		    run->count > left || first > PACK_FILE_MAX / PACK_BLOCK ||
		    (kind == PACK_RUN_NEW && in->fd < 0))
			return -EINVAL;
		left -= run->count;
	}
	return left == 0 ? 0 : -EINVAL;
}

int packer_add_runs(struct packer *p, const struct pack_input *in, struct extent_list *extents)
{
	struct old_file old;
	int r = check_runs(in);

	find_old(p, in, &old);
	for (size_t i = 0; r == 0 && i < in->run_count; i++) {
		const struct pack_run *run = &in->runs[i];
		uint64_t first = run->from & RUN_FIRST_MASK;

		r = run->from >> 56 == PACK_RUN_OLD ?
			    add_old(p, &old, first, run->count, extents) :
			    add_new(p, in->fd, first, run->count, extents);
	}
	return r;
}

static bool is_pages(const struct packed_file *f, uint32_t *ret_id)
{
	char rest[8] = "";

	return f->kind == FILE_IMAGE && S_ISREG(f->st.st_mode) &&
	       sscanf(f->path, "pages-%u%7s", ret_id, rest) == 2 && !strcmp(rest, ".img");
}

struct wanted_list {
	struct pack_wanted *v;
	size_t count, room, max;
};

static int want(struct wanted_list *list, uint32_t id, uint64_t first, uint64_t count)
{
	struct pack_wanted *tail = list->count ? &list->v[list->count - 1] : NULL;

	if (tail && tail->pages_id == id && tail->first + tail->count == first) {
		tail->count += count;
		return 0;
	}
	if (list->count == list->max)
		return -E2BIG;
	if (list->count == list->room) {
		size_t room = list->room ? 2 * list->room : 64;
		struct pack_wanted *more = reallocarray(list->v, room, sizeof(*more));

		if (!more)
			return -ENOMEM;
		list->v = more;
		list->room = room;
	}
	list->v[list->count++] =
		(struct pack_wanted){ .pages_id = id, .first = first, .count = count };
	return 0;
}

int packer_wanted(const struct packer *p, size_t max, struct pack_wanted **ret_wanted,
		  size_t *ret_count)
{
	struct wanted_list list = { .max = max };
	int r = 0;

	for (size_t i = 0; r == 0 && i < p->last.count; i++) {
		const struct packed_file *f = &p->last.items[i];
		uint64_t block = 0;
		uint32_t id;

		if (!is_pages(f, &id))
			continue;
		for (size_t j = 0; r == 0 && j < f->extents.count; j++) {
			const struct extent *e = &f->extents.items[j];

			if (e->pack != PACK_ZERO && !packer_pack_usable(p, e->pack))
				r = want(&list, id, block, e->count);
			block += e->count;
		}
	}
	if (r < 0) {
		free(list.v);
		return r;
	}
	*ret_wanted = list.v;
	*ret_count = list.count;
	return 0;
}
