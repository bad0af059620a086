// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/runs.h"

#include <errno.h>
#include <string.h>

void runs_deinit(struct runs *r)
{
	free(r->v);
	*r = (struct runs){ 0 };
}

static int make_room(struct runs *r)
{
	size_t room = r->room ? r->room * 2 : 64;
	struct run *v;

	if (r->count < r->room)
		return 0;
	v = reallocarray(r->v, room, sizeof(*v));
	if (!v)
		return -ENOMEM;
	r->v = v;
	r->room = room;
	return 0;
}

int runs_add(struct runs *r, uint64_t start, uint64_t count, uint64_t from)
{
	struct run *last = r->count ? &r->v[r->count - 1] : NULL;
	int err;

	if (!count)
		return 0;
	if (last && last->start + last->count == start &&
	    run_from_at(last->from, last->count) == from) {
		last->count += count;
		return 0;
	}
	err = make_room(r);
	if (err < 0)
		return err;
	r->v[r->count++] = (struct run){ start, count, from };
	return 0;
}

int runs_push(struct runs *r, uint64_t start, uint64_t count)
{
	int err = make_room(r);

	if (err < 0)
		return err;
	r->v[r->count++] = (struct run){ start, count, 0 };
	return 0;
}

static int compare_start(const void *a, const void *b)
{
	const struct run *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

void runs_sort(struct runs *r)
{
	if (r->count)
		qsort(r->v, r->count, sizeof(*r->v), compare_start);
}

void runs_normalise(struct runs *r)
{
	size_t out = 0;

	runs_sort(r);
	for (size_t i = 0; i < r->count; i++) {
		struct run *last = out ? &r->v[out - 1] : NULL, next = r->v[i];

		if (last && next.start <= last->start + last->count) {
			uint64_t end = next.start + next.count;

			if (end > last->start + last->count)
				last->count = end - last->start;
		} else {
			r->v[out++] = next;
		}
	}
	r->count = out;
}

/* The part of run `b` that lies in [from, to), at the end of out. */
static int add_part(struct runs *out, const struct run *b, uint64_t from, uint64_t to)
{
	uint64_t start = b->start > from ? b->start : from;
	uint64_t end = b->start + b->count < to ? b->start + b->count : to;

	if (start >= end)
		return 0;
	return runs_add(out, start, end - start, run_from_at(b->from, start - b->start));
}

int runs_overlay(struct runs *base, const struct runs *top, bool drop)
{
	struct runs out = { 0 };
	uint64_t done = 0; /* out is complete below this page */
	size_t b = 0;
	int r = 0;

	if (!top->count)
		return 0;
	for (size_t t = 0; t <= top->count && r == 0; t++) {
		const struct run *run = t < top->count ? &top->v[t] : NULL;
		uint64_t upto = run ? run->start : UINT64_MAX;

		while (b < base->count && base->v[b].start < upto && r == 0) {
			const struct run *old = &base->v[b];

			r = add_part(&out, old, done, upto);
			if (old->start + old->count > upto)
				break;
			b++;
		}
		if (!run || r < 0)
			break;
		if (!drop || run_kind(run->from) != RUN_KIND_NONE)
			r = runs_add(&out, run->start, run->count, run->from);
		done = run->start + run->count;
	}
	if (r < 0) {
		runs_deinit(&out);
		return r;
	}
	runs_deinit(base);
	*base = out;
	return 0;
}

size_t runs_find(const struct runs *r, uint64_t page)
{
	size_t low = 0, high = r->count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (r->v[mid].start + r->v[mid].count <= page)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

bool runs_touch(const struct runs *r, uint64_t start, uint64_t count)
{
	size_t i = runs_find(r, start);

	return i < r->count && r->v[i].start < start + count;
}

uint64_t runs_at(const struct runs *r, uint64_t page)
{
	size_t i = runs_find(r, page);

	if (i == r->count || r->v[i].start > page)
		return run_from(RUN_KIND_NONE, 0);
	return run_from_at(r->v[i].from, page - r->v[i].start);
}
