// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/restore/lazy_map.h"

#include <errno.h>
#include <string.h>

void lazy_map_deinit(struct lazy_map *m)
{
	free(m->runs);
	*m = (struct lazy_map){ 0 };
}

static int make_room(struct lazy_map *m, size_t more)
{
	size_t capacity = m->capacity ? m->capacity : 64;
	struct lazy_run *bigger;

	if (m->count + more <= m->capacity)
		return 0;
	while (capacity < m->count + more)
		capacity *= 2;
	bigger = reallocarray(m->runs, capacity, sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	m->runs = bigger;
	m->capacity = capacity;
	return 0;
}

int lazy_map_append(struct lazy_map *m, uint64_t page, uint64_t count, uint64_t block)
{
	struct lazy_run *last = m->count ? &m->runs[m->count - 1] : NULL;
	int r;

	if (last && last->page + last->count == page && last->block + last->count == block) {
		last->count += count;
		return 0;
	}
	if (last && (block < last->block + last->count || page < last->page + last->count))
		return -EINVAL;
	r = make_room(m, 1);
	if (r == 0)
		m->runs[m->count++] = (struct lazy_run){ page, count, block };
	return r;
}

int lazy_map_copy(const struct lazy_map *m, struct lazy_map *ret_copy)
{
	struct lazy_map copy = { .moved = m->moved };
	int r = make_room(&copy, m->count);

	if (r < 0)
		return r;
	if (m->count)
		memcpy(copy.runs, m->runs, m->count * sizeof(*m->runs));
	copy.count = m->count;
	*ret_copy = copy;
	return 0;
}

bool lazy_map_find(const struct lazy_map *m, uint64_t page, uint64_t *ret_block)
{
	size_t low = 0, high = m->count;

	if (m->moved) {
		for (size_t i = 0; i < m->count; i++) {
			if (page - m->runs[i].page >= m->runs[i].count)
				continue;
			*ret_block = m->runs[i].block + (page - m->runs[i].page);
			return true;
		}
		return false;
	}
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (m->runs[middle].page <= page)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == 0 || page - m->runs[low - 1].page >= m->runs[low - 1].count)
		return false;
	*ret_block = m->runs[low - 1].block + (page - m->runs[low - 1].page);
	return true;
}

/* Cuts run i in two, `count` pages from its begin; there is room for one more. */
static void split(struct lazy_map *m, size_t i, uint64_t count)
{
	struct lazy_run *run = &m->runs[i];

	memmove(run + 2, run + 1, (m->count - i - 1) * sizeof(*run));
	run[1] = (struct lazy_run){ run->page + count, run->count - count, run->block + count };
	run->count = count;
	m->count++;
}

/* Makes page a border between runs, if it lies inside of one. */
static int cut_at(struct lazy_map *m, uint64_t page)
{
	int r = make_room(m, 1);

	for (size_t i = 0; r == 0 && i < m->count; i++) {
		if (page > m->runs[i].page && page - m->runs[i].page < m->runs[i].count) {
			split(m, i, page - m->runs[i].page);
			break;
		}
	}
	return r;
}

static int cut_out(struct lazy_map *m, uint64_t page, uint64_t count)
{
	int r = cut_at(m, page);

	return r == 0 ? cut_at(m, page + count) : r;
}

static bool is_inside(const struct lazy_run *run, uint64_t page, uint64_t count)
{
	return run->page >= page && run->page - page < count;
}

int lazy_map_drop(struct lazy_map *m, uint64_t page, uint64_t count)
{
	int r = cut_out(m, page, count);
	size_t kept = 0;

	if (r < 0)
		return r;
	for (size_t i = 0; i < m->count; i++) {
		if (!is_inside(&m->runs[i], page, count))
			m->runs[kept++] = m->runs[i];
	}
	m->count = kept;
	return 0;
}

int lazy_map_move(struct lazy_map *m, uint64_t from, uint64_t to, uint64_t count)
{
	int r = cut_out(m, from, count);

	for (size_t i = 0; r == 0 && i < m->count; i++) {
		if (!is_inside(&m->runs[i], from, count))
			continue;
		m->runs[i].page = m->runs[i].page - from + to;
		m->moved = true;
	}
	return r;
}

bool lazy_map_place(const struct lazy_map *m, uint64_t block, uint64_t count,
		    struct lazy_run *ret_part)
{
	size_t low = 0, high = m->count;
	const struct lazy_run *run;
	uint64_t first, last;

	/* The first run that does not end before the blocks begin. */
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (m->runs[middle].block + m->runs[middle].count <= block)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == m->count || m->runs[low].block >= block + count)
		return false;
	run = &m->runs[low];
	first = run->block > block ? run->block : block;
	last = run->block + run->count < block + count ? run->block + run->count : block + count;
	*ret_part = (struct lazy_run){ run->page + (first - run->block), last - first, first };
	return true;
}
