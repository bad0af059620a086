// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/util/io.h"

/* Of newer kernels' headers than the build host may have. */
enum {
	AT_RSEQ_FEATURE_SIZE_ = 27,
	MADV_GUARD_INSTALL_ = 102,
	F_SEAL_EXEC_ = 0x20,
	ARCH_SHSTK_STATUS_ = 0x5005,
	PID_HIGHEST = (1 << 22) - 1,
	UFFD_FEATURE_WP_ASYNC_ = 1 << 15,
	UFFD_USER_MODE_ONLY_ = 1,
	PAGE_IS_WRITTEN_ = 1 << 1,
	PM_SCAN_WP_MATCHING_ = 1 << 0,
	PAGES = 4,
	LOCKED_BYTES = 16 << 20,
	FREEZE_MS_MAX = 200,
};

struct page_region_ {
	uint64_t start, end, categories;
};

struct pm_scan_arg_ {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
		category_mask, category_anyof_mask, return_mask;
};

#define PAGEMAP_SCAN_ _IOWR('f', 16, struct pm_scan_arg_)

struct pages {
	char *start;
	size_t page, size;
};

static bool pages_init(struct pages *p)
{
	p->page = (size_t)sysconf(_SC_PAGESIZE);
	p->size = PAGES * p->page;
	p->start = mmap(NULL, p->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p->start == MAP_FAILED)
		return false;
	memset(p->start, 1, p->size);
	return true;
}

static void pages_deinit(struct pages *p)
{
	munmap(p->start, p->size);
}

static int scan_written(int pagemap, const struct pages *p, uint64_t flags,
			struct page_region_ regions[PAGES])
{
	struct pm_scan_arg_ arg = {
		.size = sizeof(arg),
		.flags = flags,
		.start = (uintptr_t)p->start,
		.end = (uintptr_t)p->start + p->size,
		.vec = (uintptr_t)regions,
		.vec_len = PAGES,
		.category_mask = PAGE_IS_WRITTEN_,
		.return_mask = PAGE_IS_WRITTEN_,
	};

	return ioctl(pagemap, PAGEMAP_SCAN_, &arg);
}

static bool track_pages(int uffd, int pagemap, const struct pages *p)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC_ };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)p->start, .len = p->size },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct page_region_ regions[PAGES];

	if (ioctl(uffd, UFFDIO_API, &api) < 0 || ioctl(uffd, UFFDIO_REGISTER, &reg) < 0)
		return false;
	if (scan_written(pagemap, p, PM_SCAN_WP_MATCHING_, regions) < 0)
		return false;
	p->start[2 * p->page] = 2;
	return scan_written(pagemap, p, 0, regions) == 1 &&
	       regions[0].start == (uintptr_t)p->start + 2 * p->page &&
	       regions[0].end - regions[0].start == p->page;
}

bool probe_wp_async(void)
{
	_cleanup_close_ int uffd =
		(int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY_);
	_cleanup_close_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct pages p;
	bool have;

	if (uffd < 0 || pagemap < 0 || !pages_init(&p))
		return false;
	have = track_pages(uffd, pagemap, &p);
	pages_deinit(&p);
	return have;
}

bool probe_lazy_memory(void)
{
	/* Kernel faults too: a system call may touch a page before the program does. */
	_cleanup_close_ int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	const uint64_t events = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
				UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
	struct uffdio_api api = { .api = UFFD_API, .features = events };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_copy copy = { 0 };
	struct pages p;
	bool have;

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0 || !pages_init(&p))
		return false;
	reg.range.start = (uintptr_t)p.start;
	reg.range.len = p.size;
	copy.dst = (uintptr_t)p.start;
	copy.src = (uintptr_t)p.start + p.page;
	copy.len = p.page;
	p.start[p.page] = 42;
	/* Dropped before it is watched: nobody reads the events here. */
	have = madvise(p.start, p.page, MADV_DONTNEED) == 0 &&
	       ioctl(uffd, UFFDIO_REGISTER, &reg) == 0 && ioctl(uffd, UFFDIO_COPY, &copy) == 0 &&
	       p.start[0] == 42;
	/* Its own events would wait for us. */
	if (ioctl(uffd, UFFDIO_UNREGISTER, &reg.range) < 0)
		have = false;
	pages_deinit(&p);
	return have;
}

static bool soft_dirty_bit(int pagemap, const char *addr, size_t page, bool *ret_bit)
{
	uint64_t entry;

	if (pread_full(pagemap, &entry, sizeof(entry),
		       (off_t)((uintptr_t)addr / page * sizeof(entry))) < 0)
		return false;
	*ret_bit = entry >> 55 & 1;
	return true;
}

bool probe_soft_dirty(void)
{
	_cleanup_close_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bool clean = true, dirty = false, have;
	struct pages p;

	if (pagemap < 0 || !pages_init(&p))
		return false;
	have = write_kernel_file("/proc/self/clear_refs", "4") == 0 &&
	       soft_dirty_bit(pagemap, p.start, p.page, &clean);
	p.start[0] = 2;
	have = have && soft_dirty_bit(pagemap, p.start, p.page, &dirty) && !clean && dirty;
	pages_deinit(&p);
	return have;
}

/* True if fn(arg) did not fail in a child. */
static bool in_child(int (*fn)(void *arg), void *arg)
{
	pid_t pid = fork();
	int status;

	if (pid < 0)
		return false;
	if (pid == 0)
		_exit(fn(arg) < 0);
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return false;
	}
	return status == 0;
}

static int become_fifo(void *arg)
{
	struct sched_param param = { .sched_priority = 1 };

	(void)arg;
	return sched_setscheduler(0, SCHED_FIFO, &param);
}

bool probe_sched_fifo(void)
{
	return in_child(become_fifo, NULL);
}

static int lock_memory(void *arg)
{
	void *p = mmap(NULL, LOCKED_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);

	(void)arg;
	return p == MAP_FAILED ? -1 : mlock(p, LOCKED_BYTES);
}

bool probe_mlock(void)
{
	return in_child(lock_memory, NULL);
}

static int unshare_all(void *arg)
{
	(void)arg;
	return unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS);
}

bool probe_namespaces(void)
{
	return in_child(unshare_all, NULL);
}

bool probe_rseq(void)
{
	/* No thread registers an area of this size: it is refused, or unknown. */
	return syscall(SYS_rseq, NULL, 0, 0, 0) == 0 || errno != ENOSYS;
}

bool probe_rseq_long(void)
{
	return getauxval(AT_RSEQ_FEATURE_SIZE_) != 0;
}

bool probe_guards(void)
{
	struct pages p;
	bool have;

	if (!pages_init(&p))
		return false;
	/* Refused in locked memory, which all of a process's may be. */
	have = munlock(p.start, p.size) == 0 && madvise(p.start, p.page, MADV_GUARD_INSTALL_) == 0;
	pages_deinit(&p);
	return have;
}

bool probe_exec_seal(void)
{
	_cleanup_close_ int fd = memfd_create("decamp-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	return fd >= 0 && fchmod(fd, 0600) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_EXEC_) == 0;
}

bool probe_shadow_stack(void)
{
#ifdef __x86_64__
	uint64_t features;

	return syscall(SYS_arch_prctl, ARCH_SHSTK_STATUS_, &features) == 0;
#else
	return false;
#endif
}

/* The first process of a namespace has to be number 1, the second one may choose. */
static int take_high_pid(void *arg)
{
	pid_t wanted = PID_HIGHEST, pid;
	struct clone_args args = { .exit_signal = SIGCHLD,
				   .set_tid = (uint64_t)(uintptr_t)&wanted,
				   .set_tid_size = 1 };

	(void)arg;
	pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (pid == 0)
		_exit(0);
	return pid == PID_HIGHEST ? 0 : -1;
}

static int unshare_pids(void *arg)
{
	(void)arg;
	return unshare(CLONE_NEWPID) == 0 && in_child(take_high_pid, NULL) ? 0 : -1;
}

bool probe_high_pids(void)
{
	return in_child(unshare_pids, NULL);
}

struct overlay_place {
	char upper[320], work[320], merged[320], options[1400];
};

static int mount_overlay(void *arg)
{
	struct overlay_place *p = arg;

	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return -1;
	return mount("overlay", p->merged, "overlay", 0, p->options);
}

bool probe_overlay(const char *dir, const char *lower)
{
	char place[288];
	struct overlay_place p;
	bool have = false;

	/* An option ends at a comma and lower layers at a colon. */
	if (strlen(dir) > 255 || strpbrk(dir, ",:\\") || strpbrk(lower, ",:\\"))
		return false;
	snprintf(place, sizeof(place), "%s/.probe-XXXXXX", dir);
	if (!mkdtemp(place))
		return false;
	snprintf(p.upper, sizeof(p.upper), "%s/upper", place);
	snprintf(p.work, sizeof(p.work), "%s/work", place);
	snprintf(p.merged, sizeof(p.merged), "%s/merged", place);
	snprintf(p.options, sizeof(p.options), "lowerdir=%.400s,upperdir=%s,workdir=%s", lower,
		 p.upper, p.work);
	if (mkdir(p.upper, 0700) == 0 && mkdir(p.work, 0700) == 0 && mkdir(p.merged, 0700) == 0)
		have = in_child(mount_overlay, &p);
	return remove_tree_at(AT_FDCWD, place) == 0 && have;
}

/* cgroup.events signals a change with POLLPRI, counted from the last read. */
static bool wait_frozen(int events, bool want)
{
	struct pollfd pfd = { .fd = events, .events = POLLPRI };
	uint64_t end_ns = now_boot_ns() + FREEZE_MS_MAX * UINT64_C(1000000);
	char text[256];

	for (;;) {
		ssize_t n = pread(events, text, sizeof(text) - 1, 0);

		if (n < 0)
			return false;
		text[n] = '\0';
		if (strstr(text, want ? "frozen 1" : "frozen 0"))
			return true;
		if (now_boot_ns() >= end_ns)
			return false;
		poll(&pfd, 1, FREEZE_MS_MAX);
	}
}

bool probe_cgroup_freeze(const char *base)
{
	_cleanup_close_ int events = -1;
	char dir[1400], path[1432];
	bool have;

	snprintf(dir, sizeof(dir), "%.1300s/.probe-%d", base, gettid());
	if (mkdir(dir, 0700) < 0)
		return false;
	snprintf(path, sizeof(path), "%s/cgroup.events", dir);
	events = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "%s/cgroup.freeze", dir);
	have = events >= 0 && write_kernel_file(path, "1") == 0 && wait_frozen(events, true) &&
	       write_kernel_file(path, "0") == 0 && wait_frozen(events, false);
	rmdir(dir);
	return have;
}
