// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Write tracking by a userfaultfd in asynchronous write-protect mode, made by the kernel module where
 * it is loaded, else inside the target by one injected call, and owned by us: the target keeps no
 * descriptor, and no fault waits for us.
 *
 * A page of a registered VMA that is not reported WRITTEN was protected by a round() and not
 * written since. Holes are never protected: that would build page tables for them, and hide that a
 * page was given back (MADV_DONTNEED).
 *
 * Private maps of files are not followed. A protected page of theirs that is given back leaves a
 * marker, on which mlock(2) loops for ever inside the kernel (seen on 6.18) if the file's page is
 * not in the page cache; and the marker hides that the page was given back.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <linux/userfaultfd.h>

#include "agent/native/freeze.h"
#include "agent/native/track.h"
#include "agent/util/kmod.h"

/* Newer than the headers that we build with. */
enum {
	FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12,
	FEATURE_WP_UNPOPULATED = 1 << 13,
	FEATURE_WP_ASYNC = 1 << 15,
	USER_MODE_ONLY = 1,
};

/* The features to ask for; 0 if WP_ASYNC is not among them. */
static uint64_t features_of(uint64_t known)
{
	uint64_t wish = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM;

	return known & FEATURE_WP_ASYNC ? known & wish : 0;
}

static int known_features(uint64_t *ret_features)
{
	struct uffdio_api api = { .api = UFFD_API };
	_cleanup_close_ int fd =
		(int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		return -errno;
	*ret_features = api.features;
	return 0;
}

static bool uffd_probe(const struct native_mem *m)
{
	uint64_t known;

	return m->features.scan && known_features(&known) == 0 && features_of(known);
}

struct fetch {
	pid_t pid;
	int fd;
};

/* In the target, stopped: make the descriptor, take our copy of it, close the target's. */
static int fetch_uffd(void *ctx, struct injection *i)
{
	struct fetch *f = ctx;
	uint64_t args[6] = { O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY };
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, f->pid, 0);
	int64_t fd, closed;
	int r;

	if (pidfd < 0)
		return -errno;
	r = inject_syscall(i, SYS_userfaultfd, args, &fd);
	if (r < 0)
		return r;
	if (fd < 0)
		return (int)fd;
	f->fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)fd, 0);
	r = f->fd < 0 ? -errno : 0;
	closed = inject_syscall(i, SYS_close, (uint64_t[6]){ (uint64_t)fd }, &fd);
	return closed < 0 ? (int)closed : r;
}

static void uffd_detach(struct mem_mm *mm)
{
	if (mm->uffd >= 0)
		close(mm->uffd);
	mm->uffd = -1;
}

static int uffd_attach(struct native_mem *m, struct mem_mm *mm)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct fetch f = { .pid = mm->pid, .fd = -1 };
	uint64_t known;
	int r = known_features(&known);

	if (r < 0)
		return r;
	r = kmod_uffd(mm->pid, O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY, &f.fd);
	if (r < 0 && r != -ESRCH)
		r = inject(mm->pid, m->tree, fetch_uffd, &f);
	if (r < 0) {
		if (f.fd >= 0)
			close(f.fd);
		return r;
	}
	mm->uffd = f.fd;
	api.features = features_of(known);
	if (ioctl(mm->uffd, UFFDIO_API, &api) < 0) {
		r = -errno;
		uffd_detach(mm);
	}
	return r;
}

static bool uffd_tracks(const struct mem_mm *mm, const struct state_vma *v)
{
	uint64_t start = v->start / NATIVE_PAGE;

	/* One VMA has one userfaultfd: if part of it is ours, so is what it grew by. */
	return v->uffd && !vma_reverts(v) &&
	       runs_touch(&mm->covered, start, v->end / NATIVE_PAGE - start);
}

static int register_vma(const struct mem_mm *mm, const struct state_vma *v)
{
	struct uffdio_register reg = {
		.range = { v->start, v->end - v->start },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	if (ioctl(mm->uffd, UFFDIO_REGISTER, &reg) == 0)
		return 0;
	/* What the kernel says of an mm whose last user is about to end. */
	return errno == ENOMEM ? -ESRCH : -errno;
}

/*
 * mremap(2) of a piece back to its neighbours joins them and takes the userfaultfd from all of it,
 * but leaves the protection bits in their pages: a write meanwhile makes such a page writable with
 * its bit still set, and no later write of it would ever be reported.
 */
static int drop_stale(const struct mem_mm *mm, const struct state_vma *v)
{
	struct scan s = { .inverted = PAGE_WRITTEN,
			  .mask = PAGE_WRITTEN,
			  .anyof = PAGE_PRESENT | PAGE_SWAPPED,
			  .report = PAGE_WRITTEN };
	struct regions stale = { 0 };
	int r = scan_pages(mm->pagemap, &s, v->start, v->end, &stale);

	for (size_t i = 0; i < stale.count && r == 0; i++) {
		struct uffdio_writeprotect wp = {
			.range = { stale.v[i].start, stale.v[i].end - stale.v[i].start },
		};

		if (ioctl(mm->uffd, UFFDIO_WRITEPROTECT, &wp) < 0)
			r = -errno;
	}
	free(stale.v);
	return r;
}

/* Mapped there between an earlier look and what was then done about it. */
static void let_go(const struct mem_mm *mm, const struct state_vma *v)
{
	struct uffdio_range range = { v->start, v->end - v->start };

	if (v->uffd)
		(void)!ioctl(mm->uffd, UFFDIO_UNREGISTER, &range);
}

static int uffd_cover(struct native_mem *m, struct mem_mm *mm, const struct state_vma *vmas,
		      size_t count, struct runs *ret_new)
{
	struct runs covered = { 0 };
	int r = 0;

	for (size_t i = 0; i < count && r == 0; i++) {
		uint64_t start = vmas[i].start / NATIVE_PAGE;
		uint64_t pages = vmas[i].end / NATIVE_PAGE - start;

		if (!vma_has_pages(&vmas[i]))
			continue;
		if (vma_reverts(&vmas[i])) {
			let_go(mm, &vmas[i]);
			continue;
		}
		if (!uffd_tracks(mm, &vmas[i])) {
			r = register_vma(mm, &vmas[i]);
			if (r == 0)
				r = drop_stale(mm, &vmas[i]);
			if (r == -ESRCH || r == -ENOMEM)
				break;
			/* vdso and the like, or it changed just now: whole in the pause. */
			if (r < 0) {
				r = 0;
				continue;
			}
			if (!(m->config.broken & MEM_BROKEN_VMA_DIFF))
				r = runs_push(ret_new, start, pages);
		}
		if (r == 0)
			r = runs_add(&covered, start, pages, 0);
	}
	runs_deinit(&mm->covered);
	mm->covered = covered;
	return r;
}

/* A mutant's: not in what is only reserved, where page tables of gigabytes would be built. */
static bool arms_holes(const struct native_mem *m, const struct mem_mm *mm, uint64_t at)
{
	size_t i = runs_find(&mm->covered, at / NATIVE_PAGE);

	return m->config.broken & MEM_BROKEN_ARM_HOLES && i < mm->covered.count &&
	       mm->covered.v[i].count <= SCAN_STEP / NATIVE_PAGE;
}

/* The same one's: what is not there is no business of pre-copy. */
static void forget_holes(struct regions *out, size_t first)
{
	size_t kept = first;

	for (size_t i = first; i < out->count; i++)
		if (out->v[i].categories & (PAGE_PRESENT | PAGE_SWAPPED))
			out->v[kept++] = out->v[i];
	out->count = kept;
}

static int uffd_round(struct native_mem *m, struct mem_mm *mm, uint64_t start, uint64_t end,
		      uint64_t report, struct regions *out)
{
	struct scan s = {
		.flags = SCAN_WP,
		.mask = PAGE_WRITTEN,
		.anyof = PAGE_PRESENT | PAGE_SWAPPED,
		.report = report,
	};
	size_t first = out->count;
	int r;

	if (arms_holes(m, mm, start))
		s.anyof = 0;
	if (m->config.broken & MEM_BROKEN_CHECK_WPASYNC)
		s.flags |= SCAN_CHECK_WPASYNC;
	r = scan_pages(mm->pagemap, &s, start, end, out);
	if (r == -EPERM && m->config.broken & MEM_BROKEN_CHECK_WPASYNC)
		r = 0;
	if (arms_holes(m, mm, start))
		forget_holes(out, first);
	return r;
}

/* Only this combination of masks takes the kernel's short way. */
static int uffd_written(struct native_mem *m, struct mem_mm *mm, uint64_t start, uint64_t end,
			struct regions *out)
{
	struct scan s = { .mask = PAGE_WRITTEN, .report = PAGE_WRITTEN };

	if (m->config.broken & MEM_BROKEN_WALK_END) {
		s.call_max = 64;
		s.one_call = true;
	}
	return scan_pages(mm->pagemap, &s, start, end, out);
}

const struct track_ops track_uffd = {
	.name = "userfaultfd",
	.probe = uffd_probe,
	.attach = uffd_attach,
	.cover = uffd_cover,
	.round = uffd_round,
	.tracks = uffd_tracks,
	.written = uffd_written,
	.detach = uffd_detach,
};
