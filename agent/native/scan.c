// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/scan.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "agent/native/tree.h"
#include "agent/util/io.h"

enum {
	SCAN_ROOM_MIN = 256,
	WORDS_PER_READ = 4096,
};

/* Bits of a word of /proc/PID/pagemap. */
#define WORD_PRESENT (1ULL << 63)
#define WORD_SWAPPED (1ULL << 62)
#define WORD_FILE (1ULL << 61)
#define WORD_GUARD (1ULL << 58)
#define WORD_EXCLUSIVE (1ULL << 56)
#define WORD_SOFT_DIRTY (1ULL << 55)

/* struct pm_scan_arg; newer than the headers that we build with. */
struct scan_call {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t inverted, mask, anyof, report;
};
_Static_assert(sizeof(struct scan_call) == 96, "struct pm_scan_arg");
_Static_assert(sizeof(struct region) == 24, "struct page_region");

#define IOCTL_PAGEMAP_SCAN _IOWR('f', 16, struct scan_call)

int regions_reserve(struct regions *r, size_t more)
{
	size_t room = r->room ? r->room : SCAN_ROOM_MIN;
	struct region *v;

	if (r->room - r->count >= more)
		return 0;
	while (room - r->count < more)
		room *= 2;
	v = reallocarray(r->v, room, sizeof(*v));
	if (!v)
		return -ENOMEM;
	r->v = v;
	r->room = room;
	return 0;
}

void regions_deinit(struct regions *r)
{
	free(r->v);
	*r = (struct regions){ 0 };
}

static int call(int pagemap, struct scan_call *c)
{
	int n;

	do
		n = ioctl(pagemap, IOCTL_PAGEMAP_SCAN, c);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

int scan_pages(int pagemap, const struct scan *s, uint64_t start, uint64_t end, struct regions *out)
{
	while (start < end) {
		struct scan_call c = { .size = sizeof(c), .start = start, .end = end };
		int n, r = regions_reserve(out, SCAN_ROOM_MIN);

		if (r < 0)
			return r;
		c.flags = s->flags;
		c.vec = (uintptr_t)(out->v + out->count);
		c.vec_len = out->room - out->count;
		if (s->call_max && c.vec_len > s->call_max)
			c.vec_len = s->call_max;
		c.inverted = s->inverted;
		c.mask = s->mask;
		c.anyof = s->anyof;
		c.report = s->report;
		n = call(pagemap, &c);
		if (n < 0)
			return n;
		out->count += (size_t)n;
		/* walk_end may be stale in a call that is done: less than asked for is all. */
		if ((uint64_t)n < c.vec_len || s->one_call)
			return 0;
		start = out->v[out->count - 1].end;
		if (c.walk_end > start)
			start = c.walk_end;
	}
	return 0;
}

static uint64_t categories_of(uint64_t word)
{
	uint64_t c = 0;

	if (word & WORD_PRESENT)
		c |= PAGE_PRESENT;
	if (word & WORD_SWAPPED)
		c |= PAGE_SWAPPED;
	if (!c)
		return 0;
	if (word & WORD_FILE)
		c |= PAGE_FILE;
	if (!(word & (WORD_SWAPPED | WORD_FILE | WORD_EXCLUSIVE)))
		c |= PAGE_MAYBE_ZERO;
	if (word & WORD_GUARD)
		c |= PAGE_GUARD;
	if (word & WORD_SOFT_DIRTY)
		c |= PAGE_SOFT_DIRTY;
	return c;
}

int scan_words(int pagemap, uint64_t start, uint64_t end, struct regions *out)
{
	uint64_t words[WORDS_PER_READ];
	size_t first = out->count;

	for (uint64_t at = start; at < end;) {
		uint64_t n = (end - at) / NATIVE_PAGE;
		ssize_t got;

		if (n > WORDS_PER_READ)
			n = WORDS_PER_READ;
		got = pread(pagemap, words, n * sizeof(*words),
			    (off_t)(at / NATIVE_PAGE * sizeof(*words)));
		if (got < 0)
			return -errno;
		if (got < (ssize_t)sizeof(*words))
			return -ESRCH;
		n = (uint64_t)got / sizeof(*words);
		for (uint64_t i = 0; i < n; i++, at += NATIVE_PAGE) {
			uint64_t c = categories_of(words[i]);
			struct region *last = out->count > first ? &out->v[out->count - 1] : NULL;
			int r;

			if (!c)
				continue;
			if (last && last->end == at && last->categories == c) {
				last->end += NATIVE_PAGE;
				continue;
			}
			r = regions_reserve(out, 1);
			if (r < 0)
				return r;
			out->v[out->count++] = (struct region){ at, at + NATIVE_PAGE, c };
		}
	}
	return 0;
}

void scan_probe(struct scan_features *ret_features)
{
	uint64_t base = PAGE_PRESENT | PAGE_SWAPPED | PAGE_FILE | PAGE_PFNZERO;
	_cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct scan s = { .mask = PAGE_PRESENT, .report = base | PAGE_GUARD };
	struct regions out = { 0 };
	uint64_t at = (uintptr_t)&base & ~(uint64_t)(NATIVE_PAGE - 1);
	struct scan_features f = { .report = base };

	if (fd >= 0 && scan_pages(fd, &s, at, at + NATIVE_PAGE, &out) == 0) {
		f = (struct scan_features){ .scan = true, .report = base | PAGE_GUARD };
	} else {
		s.report = base;
		f.scan = fd >= 0 && scan_pages(fd, &s, at, at + NATIVE_PAGE, &out) == 0;
	}
	regions_deinit(&out);
	*ret_features = f;
}
