// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * One address space whose memory is not all there: pages in, faults and events out.
 *
 * The kernel refuses to put pages in (EAGAIN) from the moment that a mapping is taken away, moved or
 * copied by fork until its event was read; so a page is never put where it does not belong any more,
 * and a child has what its parent had.
 */
#define LOG_TAG "restore"
#include <errno.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sched.h>
#include <sys/ioctl.h>

#include "agent/restore/lazy_internal.h"
#include "agent/util/log.h"

enum { EVENTS_AT_ONCE = 64 };

int space_add(struct restore_lazy *lazy, int uffd, uint32_t file, struct lazy_map *map)
{
	struct space *s = lazy->space_count < LAZY_SPACES_MAX ? calloc(1, sizeof(*s)) : NULL;
	int r;

	if (!s) {
		close(uffd);
		return -ENOMEM;
	}
	s->uffd = uffd;
	s->file = file;
	s->map = *map;
	*map = (struct lazy_map){ 0 };
	lazy->spaces[lazy->space_count++] = s;
	r = keeper_hold(lazy->keeper, uffd);
	/* Only if decampd is killed within the next seconds does that matter: then the job is frozen
	 * at once and never runs again. */
	if (r < 0)
		log_warn("lazy: the keeper does not hold a process' memory: %s", strerror(-r));
	return 0;
}

void space_free(struct space *s)
{
	if (s->uffd >= 0)
		close(s->uffd);
	lazy_map_deinit(&s->map);
	free(s);
}

/* ---- pages in ---- */

static void wake(struct space *s, uint64_t page, uint64_t count)
{
	struct uffdio_range range = { .start = page * PACK_BLOCK, .len = count * PACK_BLOCK };

	if (ioctl(s->uffd, UFFDIO_WAKE, &range) < 0 && errno != ESRCH)
		log_debug("lazy: wake: %s", strerror(errno));
}

/* What a refused page means: 0 go on behind it, 1 ask again later, < 0. */
static int refused(struct restore_lazy *lazy, struct space *s, uint64_t page, uint64_t *n)
{
	switch (errno) {
	case EEXIST:
		wake(s, page, 1);
		*n = 1;
		return 0;
	case ENOENT:
		/* A border of two mappings, or none there: before CRIU is through, not yet. */
		if (*n > 1) {
			*n = 0;
			return 0;
		}
		if (lazy->filling)
			return -EBADMSG;
		return lazy->complete ? 0 : 1;
	case ESRCH: /* no memory is left of it: nothing else may count as its end */
		s->gone = true;
		return 0;
	case EAGAIN:
	case ENOMEM:
		*n = 0;
		return 1;
	default:
		return -errno;
	}
}

/* 0; -EAGAIN: what is left must be tried again; < 0. */
static int put_part(struct restore_lazy *lazy, struct space *s, uint64_t page, uint64_t count,
		    const uint8_t *bytes)
{
	uint64_t step = count;
	bool again = false;

	while (count > 0 && !s->gone) {
		uint64_t n = step < count ? step : count;
		struct uffdio_copy copy = { .dst = page * PACK_BLOCK,
					    .src = (uintptr_t)bytes,
					    .len = n * PACK_BLOCK };
		uint64_t done = n;
		int r = 0;

		if (ioctl(s->uffd, UFFDIO_COPY, &copy) < 0) {
			if (copy.copy > 0)
				done = (uint64_t)copy.copy / PACK_BLOCK;
			else
				r = refused(lazy, s, page, &done);
		}
		if (r < 0 || (r == 1 && done == 0))
			return r < 0 ? r : -EAGAIN;
		again |= r == 1;
		/* Page by page over the border. */
		step = done == 0 ? 1 : step;
		page += done;
		bytes += done * PACK_BLOCK;
		count -= done;
	}
	return again ? -EDEADLK : 0;
}

static int put_space(struct restore_lazy *lazy, struct space *s, uint64_t block, uint64_t count,
		     const uint8_t *bytes)
{
	struct lazy_run part;
	int result = 0;

	while (count > 0 && !s->gone && lazy_map_place(&s->map, block, count, &part)) {
		int r = put_part(lazy, s, part.page, part.count,
				 bytes + (part.block - block) * PACK_BLOCK);

		if (r == -EDEADLK)
			result = r;
		else if (r < 0)
			return r;
		bytes += (part.block + part.count - block) * PACK_BLOCK;
		count -= part.block + part.count - block;
		block = part.block + part.count;
	}
	return result;
}

static int put_spaces(struct restore_lazy *lazy, uint32_t file, uint64_t block, uint64_t count,
		      const uint8_t *bytes)
{
	int result = 0;

	for (size_t i = 0; i < lazy->space_count; i++) {
		int r;

		if (lazy->spaces[i]->file != file)
			continue;
		r = put_space(lazy, lazy->spaces[i], block, count, bytes);
		if (r == -EDEADLK)
			result = r;
		else if (r < 0)
			return r;
	}
	return result;
}

/*
 * EDEADLK in here: not registered yet, so the pack is read once more after CRIU's end. EAGAIN: an
 * event waits to be read, for which the lock must be free.
 */
int lazy_put(void *ctx, uint32_t file, uint64_t block, uint32_t count, const uint8_t *bytes)
{
	struct restore_lazy *lazy = ctx;
	int r;

	for (;;) {
		pthread_rwlock_rdlock(&lazy->lock);
		r = put_spaces(lazy, file, block, count, bytes);
		pthread_rwlock_unlock(&lazy->lock);
		if (r != -EAGAIN || lazy->error < 0)
			break;
		usleep(50);
	}
	if (r == 0)
		lazy->there += (uint64_t)count * PACK_BLOCK;
	if (r < 0 && r != -EDEADLK)
		log_errno(r, "lazy: a page cannot be put in");
	return r == -EDEADLK ? -EAGAIN : r;
}

/* ---- faults ---- */

/* True: answered, or nobody waits any more. */
static bool put_zero(struct space *s, uint64_t page)
{
	struct uffdio_zeropage zero = {
		.range = { .start = page * PACK_BLOCK, .len = PACK_BLOCK },
	};

	if (ioctl(s->uffd, UFFDIO_ZEROPAGE, &zero) == 0)
		return true;
	if (errno == EEXIST)
		wake(s, page, 1);
	if (errno == ESRCH)
		s->gone = true;
	return errno != EAGAIN && errno != ENOMEM;
}

static int on_fault(struct restore_lazy *lazy, struct space *s, uint64_t page)
{
	enum reader_answer answer = READER_ZERO;
	uint64_t block;

	if (lazy_map_find(&s->map, page, &block))
		answer = reader_urge(lazy->reader, s->file, block);
	if (answer == READER_THERE)
		wake(s, page, 1);
	if (answer != READER_ZERO)
		return 0;
	if (s->zero_count == LAZY_ZERO_MAX)
		return -E2BIG;
	s->zeros[s->zero_count++] = page;
	return 0;
}

static int on_fork(struct restore_lazy *lazy, struct space *s, int uffd)
{
	struct lazy_map copy;
	int r = lazy_map_copy(&s->map, &copy);

	if (r < 0) {
		close(uffd);
		return r;
	}
	r = space_add(lazy, uffd, s->file, &copy);
	lazy_map_deinit(&copy);
	return r;
}

static int on_message(struct restore_lazy *lazy, struct space *s, const struct uffd_msg *msg)
{
	switch (msg->event) {
	case UFFD_EVENT_PAGEFAULT:
		return on_fault(lazy, s, msg->arg.pagefault.address / PACK_BLOCK);
	case UFFD_EVENT_FORK:
		return on_fork(lazy, s, (int)msg->arg.fork.ufd);
	case UFFD_EVENT_REMAP:
		return lazy_map_move(&s->map, msg->arg.remap.from / PACK_BLOCK,
				     msg->arg.remap.to / PACK_BLOCK,
				     msg->arg.remap.len / PACK_BLOCK);
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		return lazy_map_drop(&s->map, msg->arg.remove.start / PACK_BLOCK,
				     (msg->arg.remove.end - msg->arg.remove.start) / PACK_BLOCK);
	default:
		return -EPROTO;
	}
}

/* A fault is read before the event that says what was moved to its address: so looked up anew. */
static void answer_zeros(struct restore_lazy *lazy, struct space *s)
{
	size_t kept = 0;

	for (size_t i = 0; i < s->zero_count && !s->gone; i++) {
		uint64_t page = s->zeros[i], block;

		if (lazy_map_find(&s->map, page, &block) &&
		    reader_urge(lazy->reader, s->file, block) != READER_ZERO)
			wake(s, page, 1);
		else if (!put_zero(s, page))
			s->zeros[kept++] = page;
	}
	s->zero_count = kept;
}

int space_serve(struct restore_lazy *lazy, struct space *s)
{
	int r = 0;

	pthread_rwlock_wrlock(&lazy->lock);
	for (int i = 0; i < EVENTS_AT_ONCE && r == 0 && !s->gone; i++) {
		struct uffd_msg msg;
		ssize_t n = read(s->uffd, &msg, sizeof(msg));

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n != sizeof(msg))
			r = n < 0 ? -errno : -EPROTO;
		else
			r = on_message(lazy, s, &msg);
	}
	if (r == 0)
		answer_zeros(lazy, s);
	pthread_rwlock_unlock(&lazy->lock);
	return r;
}
