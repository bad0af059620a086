// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/oracle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include "agent/util/io.h"

enum { PAGEMAP_BATCH = 8192, IOVS = 512 };

/* Bits of /proc/PID/pagemap. */
#define PM_GUARD (1ULL << 58)
#define PM_FILE (1ULL << 61)
#define PM_SWAP (1ULL << 62)
#define PM_PRESENT (1ULL << 63)

/* Types of what is there in place of a page. The last one is a marker, which stands for none. */
enum { PM_TYPE_MASK = 31, PM_TYPE_MARKER = 31 };

/* Without swap, too: a page that is just being migrated. */
static bool has_page(uint64_t word)
{
	return word & PM_PRESENT || (word & PM_SWAP && (word & PM_TYPE_MASK) != PM_TYPE_MARKER);
}

static void *reserve(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

int frozen_create(size_t buffer_bytes, struct frozen **ret_frozen)
{
	struct frozen *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	f->block_room = buffer_bytes / ORACLE_PAGE;
	f->vmas = reserve(FROZEN_VMAS_MAX * sizeof(*f->vmas));
	f->pages = reserve(FROZEN_PAGES_MAX * sizeof(*f->pages));
	f->files = reserve(FROZEN_FILES_MAX * sizeof(*f->files));
	f->buffer = reserve(buffer_bytes);
	if (!f->vmas || !f->pages || !f->files || !f->buffer) {
		frozen_destroy(f);
		return -ENOMEM;
	}
	(void)madvise(f->buffer, buffer_bytes, MADV_HUGEPAGE);
	*ret_frozen = f;
	return 0;
}

void frozen_destroy(struct frozen *f)
{
	if (!f)
		return;
	if (f->vmas)
		munmap(f->vmas, FROZEN_VMAS_MAX * sizeof(*f->vmas));
	if (f->pages)
		munmap(f->pages, FROZEN_PAGES_MAX * sizeof(*f->pages));
	if (f->files)
		munmap(f->files, FROZEN_FILES_MAX * sizeof(*f->files));
	if (f->buffer)
		munmap(f->buffer, f->block_room * ORACLE_PAGE);
	free(f);
}

/* Content of what is mapped at `range`, read past the mapping, by its file. */
static int read_file(struct frozen *f, pid_t pid, const struct frozen_vma *vma, bool shm,
		     int32_t *ret_file)
{
	_cleanup_close_ int fd = -1;
	struct frozen_file *file = &f->files[f->file_count];
	struct stat st;
	size_t done = 0;
	char path[96];

	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", pid,
		 (unsigned long long)vma->start, (unsigned long long)vma->end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	for (size_t i = 0; i < f->file_count; i++) {
		if (f->files[i].dev == st.st_dev && f->files[i].ino == st.st_ino) {
			*ret_file = (int32_t)i;
			return 0;
		}
	}
	if (f->file_count == FROZEN_FILES_MAX || st.st_size > FROZEN_SHARED_FILE_MAX ||
	    f->block_count + (size_t)st.st_size / ORACLE_PAGE + 1 > f->block_room)
		return -E2BIG;
	*file = (struct frozen_file){ .dev = st.st_dev,
				      .ino = st.st_ino,
				      .size = (uint64_t)st.st_size,
				      .shm = shm,
				      .block = (uint32_t)f->block_count };
	while (done < (size_t)st.st_size) {
		ssize_t n = pread(fd, f->buffer + f->block_count * ORACLE_PAGE + done,
				  (size_t)st.st_size - done, (off_t)done);

		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	f->block_count += (done + ORACLE_PAGE - 1) / ORACLE_PAGE;
	/* The buffer is used again and again: what follows the end of a file is zero. */
	if (done % ORACLE_PAGE)
		memset(f->buffer + file->block * (size_t)ORACLE_PAGE + done, 0,
		       ORACLE_PAGE - done % ORACLE_PAGE);
	*ret_file = (int32_t)f->file_count++;
	return 0;
}

static int add_page(struct frozen *f, uint64_t vaddr, uint32_t flags)
{
	struct frozen_page *page = &f->pages[f->page_count];

	if (f->page_count == FROZEN_PAGES_MAX || f->block_count == f->block_room)
		return -E2BIG;
	*page = (struct frozen_page){ .vaddr = vaddr, .flags = flags };
	if (!(flags & PAGE_GUARD))
		page->block = (uint32_t)f->block_count++;
	f->page_count++;
	return 0;
}

static int list_pages(struct frozen *f, int pagemap, struct frozen_vma *vma)
{
	static __thread uint64_t words[PAGEMAP_BATCH];
	int r = 0;

	vma->first = f->page_count;
	for (uint64_t at = vma->start; r == 0 && at < vma->end;) {
		size_t count = (vma->end - at) / ORACLE_PAGE;

		if (count > PAGEMAP_BATCH)
			count = PAGEMAP_BATCH;
		r = pread_full(pagemap, words, count * 8, (off_t)(at / ORACLE_PAGE * 8));
		for (size_t i = 0; r == 0 && i < count; i++) {
			uint64_t word = words[i];
			uint64_t vaddr = at + i * ORACLE_PAGE;

			if (word & PM_GUARD)
				r = add_page(f, vaddr, PAGE_GUARD);
			else if (has_page(word))
				r = add_page(f, vaddr, word & PM_FILE ? PAGE_FILE : 0);
		}
		at += count * ORACLE_PAGE;
	}
	vma->count = f->page_count - vma->first;
	return r;
}

/* Through protections, as a debugger reads. */
static int read_slow(struct frozen *f, int mem, size_t first, size_t count)
{
	for (size_t i = first; i < first + count; i++) {
		const struct frozen_page *page = &f->pages[i];
		int r;

		if (page->flags & PAGE_GUARD)
			continue;
		r = pread_full(mem, f->buffer + page->block * (size_t)ORACLE_PAGE, ORACLE_PAGE,
			       (off_t)page->vaddr);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_pages(struct frozen *f, pid_t pid, int mem, const struct frozen_vma *vma)
{
	struct iovec iov[IOVS];
	size_t i = vma->first, end = vma->first + vma->count;

	if (!(vma->prot & PROT_READ))
		return read_slow(f, mem, vma->first, vma->count);
	while (i < end) {
		size_t n = 0, pages = 0, from = i;
		struct iovec local = { 0 };

		for (; i < end && n < IOVS; i++) {
			const struct frozen_page *page = &f->pages[i];

			if (page->flags & PAGE_GUARD)
				continue;
			if (!local.iov_base)
				local.iov_base = f->buffer + page->block * (size_t)ORACLE_PAGE;
			pages++;
			if (n && (uint8_t *)iov[n - 1].iov_base + iov[n - 1].iov_len ==
					 (void *)page->vaddr)
				iov[n - 1].iov_len += ORACLE_PAGE;
			else
				iov[n++] = (struct iovec){ (void *)page->vaddr, ORACLE_PAGE };
		}
		local.iov_len = pages * ORACLE_PAGE;
		if (n && process_vm_readv(pid, &local, 1, iov, n, 0) != (ssize_t)local.iov_len) {
			int r = read_slow(f, mem, from, i - from);

			if (r < 0)
				return r;
		}
	}
	return 0;
}

static bool is_shm(const char *path)
{
	return !strncmp(path, "/dev/zero (", 11) || !strncmp(path, "/memfd:", 7) ||
	       !strncmp(path, "/SYSV", 5);
}

/* What a restore makes anew, or cannot be read by anyone. */
static bool is_kernels(const char *path)
{
	return !strncmp(path, "[vvar", 5) || !strcmp(path, "[vsyscall]") ||
	       !strncmp(path, "anon_inode:", 11) || !strncmp(path, "/[aio]", 6);
}

static int read_vma(struct frozen *f, pid_t pid, int pagemap, int mem, const char *line)
{
	struct frozen_vma *vma = &f->vmas[f->vma_count];
	unsigned long long start, end, offset, ino;
	char perms[5], path[512] = "";
	int r = 0;

	if (sscanf(line, "%llx-%llx %4s %llx %*s %llu %511[^\n]", &start, &end, perms, &offset,
		   &ino, path) < 5)
		return -EBADMSG;
	if (is_kernels(path))
		return 0;
	if (f->vma_count == FROZEN_VMAS_MAX)
		return -E2BIG;
	*vma = (struct frozen_vma){ .start = start,
				    .end = end,
				    .offset = offset,
				    .prot = (perms[0] == 'r' ? PROT_READ : 0) |
					    (perms[1] == 'w' ? PROT_WRITE : 0) |
					    (perms[2] == 'x' ? PROT_EXEC : 0),
				    .shared = perms[3] == 's',
				    .file = -1,
				    .first = f->page_count };
	/* Files that are written through a mapping travel with the job's files. */
	if (ino && strncmp(path, "/anon_hugepage", 14) && (!vma->shared || is_shm(path)))
		r = read_file(f, pid, vma, is_shm(path), &vma->file);
	if (r == 0 && !vma->shared)
		r = list_pages(f, pagemap, vma);
	if (r == 0 && !vma->shared)
		r = read_pages(f, pid, mem, vma);
	f->vma_count++;
	return r;
}

static int open_of(pid_t pid, const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int read_task(struct frozen *f, pid_t pid)
{
	_cleanup_close_ int pagemap = open_of(pid, "pagemap"), mem = open_of(pid, "mem");
	struct frozen_task *task = &f->tasks[f->task_count];
	_cleanup_free_ char *maps = NULL;
	char path[64], *save = NULL;
	int r;

	if (f->task_count == FROZEN_TASKS_MAX)
		return -E2BIG;
	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	r = read_file_at(AT_FDCWD, path, 64 << 20, &maps, NULL);
	if (r < 0)
		return r;
	*task = (struct frozen_task){ .pid = pid, .first = f->vma_count };
	for (char *line = strtok_r(maps, "\n", &save); line && r == 0;
	     line = strtok_r(NULL, "\n", &save)) {
		r = read_vma(f, pid, pagemap, mem, line);
		if (r < 0)
			fprintf(stderr, "oracle: process %d: %s: %s\n", pid, line, strerror(-r));
	}
	task->count = f->vma_count - task->first;
	/* No memory: it has ended, and waits for its parent. */
	if (task->count)
		f->task_count++;
	return r;
}

/* Parents before children. */
static int read_tree(struct frozen *f, pid_t pid, int depth)
{
	_cleanup_closedir_ DIR *dir = NULL;
	char path[96];
	int r = depth > 64 ? -ELOOP : read_task(f, pid);

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = r == 0 ? opendir(path) : NULL;
	if (r == 0 && !dir)
		return -errno;
	for (struct dirent *d; r == 0 && (d = readdir(dir));) {
		_cleanup_free_ char *text = NULL;
		char *save = NULL;

		if (d->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%.16s/children", pid, d->d_name);
		r = read_file_at(AT_FDCWD, path, 1 << 20, &text, NULL);
		for (char *word = r == 0 ? strtok_r(text, " ", &save) : NULL; word && r == 0;
		     word = strtok_r(NULL, " ", &save))
			r = read_tree(f, atoi(word), depth + 1);
	}
	return r;
}

int frozen_read(struct frozen *f, pid_t root)
{
	f->task_count = f->vma_count = f->page_count = f->file_count = f->block_count = 0;
	return read_tree(f, root, 0);
}
