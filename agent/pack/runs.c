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

static int add_old(struct packer *p, struct old_file *old, uint64_t first, uint64_t count,
		   struct extent_list *extents)
{
	while (count > 0) {
		const struct extent *e;
		uint32_t skip, n;
		bool usable = true;
		int r = old_file_seek(old, first);

		if (r < 0)
			return r;
		e = &old->extents->items[old->index];
		skip = (uint32_t)(first - old->before);
		n = e->count - skip < count ? e->count - skip : (uint32_t)count;
		if (e->pack == PACK_ZERO)
			p->counts.zero_bytes += (uint64_t)n * PACK_BLOCK;
		else if (packer_usable_run(p, e->pack, e->slot + skip, n, &usable) < n || !usable)
			return -ENOENT;
		r = packer_extent(p, extents, e->pack, e->slot + skip, n);
		if (r < 0)
			return r;
		first += n;
		count -= n;
	}
	return 0;
}

/*
 * What lies one after the other in the file mostly lies in small pieces in that of new blocks, as the
 * captures of one pause come in several rounds. Looked for together, they wait for memory together.
 */
struct pieces {
	struct old_file *old;
	struct extent_list *extents;
	size_t blocks; /* in p->read_buffer */
};

static int add_pieces(struct packer *p, struct pieces *t)
{
	size_t blocks = t->blocks;

	t->blocks = 0;
	return packer_add_blocks(p, p->read_buffer, blocks, t->old, t->extents);
}

static int add_new(struct packer *p, int fd, uint64_t first, uint64_t count, struct pieces *t)
{
	int r = 0;

	while (r == 0 && count > 0) {
		uint64_t n = READ_CHUNK / PACK_BLOCK - t->blocks;

		n = count < n ? count : n;
		r = pread_full(fd, p->read_buffer + t->blocks * PACK_BLOCK, (size_t)n * PACK_BLOCK,
			       (off_t)(first * PACK_BLOCK));
		t->blocks += n;
		if (r == 0 && t->blocks == READ_CHUNK / PACK_BLOCK)
			r = add_pieces(p, t);
		first += n;
		count -= n;
	}
	return r;
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

/* Where the next run of old blocks begins: new ones in between are versions of what lies before. */
static uint64_t next_old(const struct pack_input *in, size_t run)
{
	for (size_t i = run; i < in->run_count; i++)
		if (in->runs[i].from >> 56 == PACK_RUN_OLD)
			return in->runs[i].from & RUN_FIRST_MASK;
	return UINT64_MAX;
}

int packer_add_runs(struct packer *p, const struct pack_input *in, struct extent_list *extents)
{
	struct old_file old, versions;
	struct pieces pieces = { .old = &versions, .extents = extents };
	int r = check_runs(in);

	old_file_find(p, in, &old);
	old_file_find(p, in, &versions);
	for (size_t i = 0; r == 0 && i < in->run_count; i++) {
		const struct pack_run *run = &in->runs[i];
		uint64_t first = run->from & RUN_FIRST_MASK;

		if (run->from >> 56 == PACK_RUN_OLD) {
			r = add_pieces(p, &pieces);
			if (r == 0)
				r = add_old(p, &old, first, run->count, extents);
			versions.next = first + run->count;
			continue;
		}
		if (i == 0 || in->runs[i - 1].from >> 56 == PACK_RUN_OLD)
			versions.end = next_old(in, i);
		r = add_new(p, in->fd, first, run->count, &pieces);
	}
	return r < 0 ? r : add_pieces(p, &pieces);
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

static int want_extent(const struct packer *p, struct wanted_list *list, uint32_t id,
		       uint64_t block, const struct extent *e)
{
	uint32_t n;
	int r = 0;

	if (e->pack == PACK_ZERO)
		return 0;
	for (uint32_t i = 0; r == 0 && i < e->count; i += n) {
		bool usable;

		n = packer_usable_run(p, e->pack, e->slot + i, e->count - i, &usable);
		if (!usable)
			r = want(list, id, block + i, n);
	}
	return r;
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
			r = want_extent(p, &list, id, block, &f->extents.items[j]);
			block += f->extents.items[j].count;
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
