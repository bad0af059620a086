// SPDX-License-Identifier: LGPL-2.1-or-later
/* The buffer between pages of the job and the spool file pages.new. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "agent/native/mem_internal.h"
#include "agent/util/io.h"

int batch_create(struct batch *b, uint64_t bytes)
{
	size_t pages = bytes / NATIVE_PAGE;
	void *buffer;

	if (pages < BATCH_PAGES_MIN)
		pages = BATCH_PAGES_MIN;
	b->entries = calloc(BATCH_ENTRIES_MIN, sizeof(*b->entries));
	if (!b->entries)
		return -ENOMEM;
	b->room = BATCH_ENTRIES_MIN;
	buffer = mmap(NULL, pages * NATIVE_PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffer == MAP_FAILED)
		return -errno;
	b->buffer = buffer;
	b->page_max = pages;
	/* Best effort: fewer TLB misses, no page fault in the pause. */
	(void)madvise(buffer, pages * NATIVE_PAGE, MADV_HUGEPAGE);
	(void)mlock(buffer, pages * NATIVE_PAGE);
	memset(buffer, 0, pages * NATIVE_PAGE);
	memset(b->entries, 0, b->room * sizeof(*b->entries));
	return 0;
}

void batch_destroy(struct batch *b)
{
	if (b->buffer)
		munmap(b->buffer, b->page_max * NATIVE_PAGE);
	free(b->entries);
	runs_deinit(&b->bad);
	*b = (struct batch){ 0 };
}

void batch_reset(struct batch *b)
{
	b->used = b->count = b->read_from = 0;
	b->bad.count = 0;
}

static int add_entry(struct batch *b, const struct batch_entry *e)
{
	struct batch_entry *v;

	if (b->count == b->room) {
		v = reallocarray(b->entries, b->room * 2, sizeof(*v));
		if (!v)
			return -ENOMEM;
		b->entries = v;
		b->room *= 2;
	}
	b->entries[b->count++] = *e;
	b->used += e->count;
	return 0;
}

static int open_memory(struct mem_mm *mm)
{
	char path[64];

	if (mm->memory >= 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/mem", mm->pid);
	mm->memory = open(path, O_RDONLY | O_CLOEXEC);
	return mm->memory < 0 ? -errno : 0;
}

/* One page that process_vm_readv did not give: PROT_NONE, or in the way of a race. */
static int read_one(struct mem_mm *mm, uint64_t page, uint8_t *to)
{
	int r = open_memory(mm);

	if (r < 0)
		return r;
	return pread_full(mm->memory, to, NATIVE_PAGE, (off_t)(page * NATIVE_PAGE));
}

/* The pages of an entry from the n-th on, one by one. What cannot be read is left for the pause. */
static int read_slowly(struct native_mem *m, struct mem_mm *mm, const struct batch_entry *e,
		       uint32_t n)
{
	struct batch *b = &m->batch;

	for (; n < e->count; n++) {
		int r = read_one(mm, e->start + n, b->buffer + (e->at + n) * NATIVE_PAGE);

		if (r == 0)
			continue;
		if (b->paused)
			return -EFAULT;
		r = runs_push(&b->bad, e->at + n, 1);
		if (r == 0)
			r = runs_push(&mm->space.missed, e->start + n, 1);
		if (r < 0)
			return r;
	}
	return 0;
}

/*
 * process_vm_readv(2) pins pages, and since 5.19 pinning a page that is shared since a fork gives
 * the reader's target a copy of its own: the job would grow by all that its processes share. Reading
 * the file does not pin. It is slower, so not for pages that were just written: those are not shared. In
 * the pause these are all, but for those of what nobody follows.
 */
static bool must_not_pin(const struct batch *b, const struct mem_mm *mm,
			 const struct batch_entry *e)
{
	return b->forked && (!b->paused || mm->full || e->inherited);
}

static int read_by_file(struct native_mem *m, struct mem_mm *mm, const struct batch_entry *e)
{
	size_t size = (size_t)e->count * NATIVE_PAGE;
	int r = open_memory(mm);
	ssize_t got;

	if (r < 0)
		return r == -ENOENT ? -ESRCH : r;
	got = pread(mm->memory, m->batch.buffer + e->at * NATIVE_PAGE, size,
		    (off_t)(e->start * NATIVE_PAGE));
	if (got < 0)
		got = 0;
	m->counts.read_bytes += (size_t)got;
	return (size_t)got == size ? 0 : read_slowly(m, mm, e, (uint32_t)(got / NATIVE_PAGE));
}

/* Entries from the i-th on, as many as fit and can be read at once; their number. */
static size_t gather(const struct batch *b, const struct mem_mm *mm, size_t i, struct iovec *iov,
		     size_t *ret_bytes)
{
	size_t n = 0, bytes = 0;

	for (; i < b->count && n < BATCH_IOVS && b->entries[i].readable; i++) {
		const struct batch_entry *e = &b->entries[i];

		if (n && must_not_pin(b, mm, e))
			break;
		iov[n++] = (struct iovec){ (void *)(uintptr_t)(e->start * NATIVE_PAGE),
					   (size_t)e->count * NATIVE_PAGE };
		bytes += (size_t)e->count * NATIVE_PAGE;
	}
	*ret_bytes = bytes;
	return n;
}

int batch_read(struct native_mem *m, struct mem_mm *mm)
{
	struct batch *b = &m->batch;
	struct iovec remote[BATCH_IOVS];

	while (b->read_from < b->count) {
		const struct batch_entry *e = &b->entries[b->read_from];
		size_t bytes, n = gather(b, mm, b->read_from, remote, &bytes), done;
		struct iovec local = { b->buffer + e->at * NATIVE_PAGE, bytes };
		ssize_t got = 0;
		int r;

		if (n && must_not_pin(b, mm, e)) {
			r = read_by_file(m, mm, e);
			if (r < 0)
				return r;
			b->read_from++;
			continue;
		}
		if (n)
			got = process_vm_readv(mm->pid, &local, 1, remote, n, 0);
		if (got < 0 && errno == ESRCH)
			return -ESRCH;
		done = got > 0 ? (size_t)got : 0;
		m->counts.read_bytes += done;
		for (; n && done >= (size_t)e->count * NATIVE_PAGE; n--, e++, b->read_from++)
			done -= (size_t)e->count * NATIVE_PAGE;
		if (n == 0 && bytes)
			continue;
		/* This one stopped it. */
		r = read_slowly(m, mm, e, (uint32_t)(done / NATIVE_PAGE));
		if (r < 0)
			return r;
		b->read_from++;
	}
	return 0;
}

int batch_add(struct native_mem *m, struct mem_mm *mm, uint64_t start, uint64_t count,
	      unsigned int flags)
{
	struct batch *b = &m->batch;

	while (count) {
		uint64_t n = b->page_max - b->used;
		int r;

		if (!n) {
			r = batch_read(m, mm);
			if (r == 0)
				r = batch_flush(m);
			if (r < 0)
				return r;
			continue;
		}
		if (n > count)
			n = count;
		r = add_entry(b, &(struct batch_entry){ .space = &mm->space,
							.start = start,
							.count = (uint32_t)n,
							.zero_is_none = flags & BATCH_ZERO_IS_NONE,
							.readable = flags & BATCH_READABLE,
							.inherited = flags & BATCH_INHERITED,
							.at = b->used });
		if (r < 0)
			return r;
		if (b->paused)
			m->counts.residue_bytes += n * NATIVE_PAGE;
		start += n;
		count -= n;
	}
	return 0;
}

int batch_room(struct native_mem *m, struct mem_space *s, uint64_t start, size_t wish,
	       uint8_t **ret_buffer, size_t *ret_count)
{
	struct batch *b = &m->batch;
	int r;

	if (b->used == b->page_max) {
		r = batch_flush(m);
		if (r < 0)
			return r;
	}
	if (wish > b->page_max - b->used)
		wish = b->page_max - b->used;
	*ret_buffer = b->buffer + b->used * NATIVE_PAGE;
	r = add_entry(b, &(struct batch_entry){ .space = s,
						.start = start,
						.count = (uint32_t)wish,
						.zero_is_none = true,
						.at = b->used });
	b->read_from = b->count;
	*ret_count = wish;
	return r;
}

int spool_open(struct spool *s, int images)
{
	if (s->fd >= 0)
		return 0;
	s->fd = openat(images, "pages.new", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
		       0600);
	s->blocks = 0;
	return s->fd < 0 ? -errno : 0;
}

void spool_close(struct spool *s)
{
	if (s->fd >= 0)
		close(s->fd);
	free(s->hashes);
	*s = (struct spool){ .fd = -1 };
}

static int write_iov(struct spool *s, struct iovec *iov, int count, uint64_t *blocks)
{
	off_t at = (off_t)(s->blocks * NATIVE_PAGE);
	int i = 0;

	while (i < count) {
		ssize_t n = pwritev(s->fd, iov + i, count - i, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ENOSPC;
		at += n;
		for (; i < count && (size_t)n >= iov[i].iov_len; i++)
			n -= (ssize_t)iov[i].iov_len;
		if (i < count) {
			iov[i].iov_base = (char *)iov[i].iov_base + n;
			iov[i].iov_len -= (size_t)n;
		}
	}
	s->blocks += *blocks;
	*blocks = 0;
	return 0;
}

static bool page_is_zero(const uint8_t *p)
{
	const uint64_t *w = (const uint64_t *)(const void *)p;

	for (size_t i = 0; i < NATIVE_PAGE / sizeof(*w); i += 8)
		if (w[i] | w[i + 1] | w[i + 2] | w[i + 3] | w[i + 4] | w[i + 5] | w[i + 6] |
		    w[i + 7])
			return false;
	return true;
}

static int spool_hash_room(struct spool *s, uint64_t block)
{
	size_t room = s->hash_room ? s->hash_room : 4096;
	XXH128_hash_t *v;

	if (block < s->hash_room)
		return 0;
	while (room <= block)
		room *= 2;
	v = reallocarray(s->hashes, room, sizeof(*v));
	if (!v)
		return -ENOMEM;
	memset(v + s->hash_room, 0, (room - s->hash_room) * sizeof(*v));
	s->hashes = v;
	s->hash_room = room;
	return 0;
}

bool space_knows(const struct native_mem *m, const struct mem_space *s, uint64_t page,
		 XXH128_hash_t hash)
{
	size_t i = runs_find(&s->fresh, page);
	uint64_t from;

	if (i < s->fresh.count && s->fresh.v[i].start <= page)
		from = run_from_at(s->fresh.v[i].from, page - s->fresh.v[i].start);
	else
		from = runs_at(&s->map, page);
	if (run_kind(from) == RUN_KIND_NEW) {
		from &= RUN_BLOCK_MASK;
		return from < m->spool.hash_room && XXH128_isEqual(m->spool.hashes[from], hash);
	}
	if (run_kind(from) == RUN_KIND_OLD) {
		from &= RUN_BLOCK_MASK;
		return from < s->hash_count && XXH128_isEqual(s->hashes[from], hash);
	}
	return false;
}

/* What becomes of one page of the buffer: block is where it would go. */
static int judge(struct native_mem *m, const struct batch_entry *e, uint32_t n, uint64_t block,
		 bool *ret_write)
{
	const uint8_t *p = m->batch.buffer + (e->at + n) * NATIVE_PAGE;
	XXH128_hash_t hash;
	int r;

	*ret_write = false;
	if (m->batch.bad.count && runs_touch(&m->batch.bad, e->at + n, 1))
		return 0;
	if (e->zero_is_none && page_is_zero(p))
		return runs_add(&e->space->puts, e->start + n, 1, run_from(RUN_KIND_NONE, 0));
	if (e->space->compare) {
		hash = XXH3_128bits(p, NATIVE_PAGE);
		if (space_knows(m, e->space, e->start + n, hash))
			return 0;
		r = spool_hash_room(&m->spool, block);
		if (r < 0)
			return r;
		m->spool.hashes[block] = hash;
	}
	*ret_write = true;
	return runs_add(&e->space->puts, e->start + n, 1, run_from(RUN_KIND_NEW, block));
}

int batch_flush(struct native_mem *m)
{
	struct batch *b = &m->batch;
	struct iovec iov[BATCH_IOVS];
	uint64_t blocks = 0;
	int count = 0, r = 0;

	for (size_t i = 0; i < b->count && r == 0; i++) {
		const struct batch_entry *e = &b->entries[i];

		for (uint32_t n = 0; n < e->count && r == 0; n++) {
			uint8_t *p = b->buffer + (e->at + n) * NATIVE_PAGE;
			bool write;

			r = judge(m, e, n, m->spool.blocks + blocks, &write);
			if (r < 0 || !write)
				continue;
			blocks++;
			if (count &&
			    (uint8_t *)iov[count - 1].iov_base + iov[count - 1].iov_len == p) {
				iov[count - 1].iov_len += NATIVE_PAGE;
				continue;
			}
			if (count == BATCH_IOVS) {
				blocks--;
				r = write_iov(&m->spool, iov, count, &blocks);
				blocks = 1;
				count = 0;
			}
			iov[count++] = (struct iovec){ p, NATIVE_PAGE };
		}
	}
	if (r == 0 && count)
		r = write_iov(&m->spool, iov, count, &blocks);
	batch_reset(b);
	return r;
}

static int compare_start(const void *a, const void *b)
{
	const struct run *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

int space_settle(struct mem_space *s)
{
	int r = runs_overlay(&s->fresh, &s->drops, false);

	if (r == 0 && s->puts.count) {
		qsort(s->puts.v, s->puts.count, sizeof(*s->puts.v), compare_start);
		for (size_t i = 1; i < s->puts.count && r == 0; i++)
			if (s->puts.v[i - 1].start + s->puts.v[i - 1].count > s->puts.v[i].start)
				r = -EUCLEAN; /* a page twice: which one holds? */
	}
	if (r == 0)
		r = runs_overlay(&s->fresh, &s->puts, false);
	s->drops.count = s->puts.count = 0;
	return r;
}
