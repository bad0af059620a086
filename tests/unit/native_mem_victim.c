// SPDX-License-Identifier: LGPL-2.1-or-later
/* The program whose memory is captured. It obeys one command after the other. */
#include "native_mem_lab.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL

enum {
	FD_IN = 50,
	FD_OUT = 51,
	FD_FILE = 52, /* of the private map; O_DIRECT too, at FD_FILE + 1 */
	FD_MEMFD = 54,
	ANON_PAGES = 2048,
	FILE_PAGES = 64,
	SHARED_PAGES = 256,
	EXTRA_MAPS = 8,
	MANY_PAGES = 8192,
	HUGE_BYTES = 4 << 20,
	TABLE_BYTES = 2 << 20,
	LIFE_S = 300,
	ANSWER_TIMEOUT_MS = 60000,
	ADVICE_GUARD_INSTALL = 102,
	ADVICE_GUARD_REMOVE = 103,
};

const char *const victim_op_names[OP_COUNT] = {
	[OP_WRITE] = "write",
	[OP_WRITE_MANY] = "write-many",
	[OP_ZERO] = "zero",
	[OP_GIVE_BACK] = "give-back",
	[OP_GIVE_BACK_USE] = "give-back-use",
	[OP_PROTECT] = "protect",
	[OP_MAP_NEW] = "map-new",
	[OP_MAP_OVER] = "map-over",
	[OP_UNMAP] = "unmap",
	[OP_MOVE] = "move",
	[OP_MOVE_TABLES] = "move-tables",
	[OP_GROW] = "grow",
	[OP_BRK] = "brk",
	[OP_STACK] = "stack",
	[OP_FILE_WRITE] = "file-write",
	[OP_FILE_REVERT] = "file-revert",
	[OP_FILE_REVERT_READ] = "file-revert-read",
	[OP_FILE_TRUNCATE] = "file-truncate",
	[OP_FILE_LOCK] = "file-lock",
	[OP_READ_INTO] = "read-into",
	[OP_READ_DIRECT] = "read-direct",
	[OP_READ_HOLES] = "read-holes",
	[OP_FREE] = "free",
	[OP_GUARD] = "guard",
	[OP_HUGE] = "huge",
	[OP_SHARED_WRITE] = "shared-write",
	[OP_SHARED_PWRITE] = "shared-pwrite",
	[OP_SHARED_PUNCH] = "shared-punch",
	[OP_SPLICE] = "splice",
	[OP_SELF_VM_WRITE] = "vm-write",
	[OP_EXEC] = "exec",
};

static struct {
	char *anon, *file, *shared, *many, *huge, *over, *moving, *growing, *bulk, *tables;
	size_t growing_pages, bulk_pages;
	struct {
		char *at;
		size_t pages;
	} extra[EXTRA_MAPS];
	size_t extra_count;
	pthread_t storm;
	volatile bool storming;
	pid_t child;
	uint64_t random;
} it;

static uint32_t pick(uint32_t below)
{
	it.random = it.random * 6364136223846793005 + 1442695040888963407;
	return (uint32_t)(it.random >> 33) % below;
}

static char *map_pages(size_t pages)
{
	char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);

	assert(p != MAP_FAILED);
	return p;
}

static void scribble(char *p, size_t pages, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		memcpy(p + pick((uint32_t)pages) * PAGE + 8 * pick(500), &it.random, 8);
}

static void *storm(void *ctx)
{
	uint64_t n = 1;

	while (it.storming) {
		for (int i = 0; i < 64; i++) {
			n = n * 6364136223846793005 + 1442695040888963407;
			memcpy(it.anon + (n >> 40) % ANON_PAGES * PAGE + 2048, &n, 8);
		}
		if (n % 16 == 0)
			madvise(it.anon + (n >> 40) % ANON_PAGES * PAGE, PAGE, MADV_DONTNEED);
		poll(NULL, 0, 0);
	}
	return ctx;
}

/* So many pages of the bulk each second. */
static void *steady(void *ctx)
{
	uint32_t per_ms = (uint32_t)(uintptr_t)ctx / 1000;
	uint64_t n = 1;

	for (;;) {
		for (uint32_t i = 0; i < per_ms; i++) {
			n = n * 6364136223846793005 + 1442695040888963407;
			memcpy(it.bulk + (n >> 24) % it.bulk_pages * PAGE + 64, &n, 8);
		}
		poll(NULL, 0, 1);
	}
	return NULL;
}

static void open_files(void)
{
	char name[] = "/var/tmp/decamp-mem-XXXXXX", content[PAGE];
	int fd = mkstemp(name);

	assert(fd >= 0);
	assert(dup2(fd, FD_FILE) == FD_FILE);
	close(fd);
	fd = open(name, O_RDONLY);
	assert(dup2(fd, FD_FILE + 1) == FD_FILE + 1);
	close(fd);
	unlink(name);
	for (int i = 0; i < FILE_PAGES; i++) {
		memset(content, 'a' + i % 26, sizeof(content));
		assert(pwrite(FD_FILE, content, sizeof(content), i * (off_t)PAGE) == PAGE);
	}
	fd = memfd_create("decamp-test", 0);
	assert(dup2(fd, FD_MEMFD) == FD_MEMFD);
	close(fd);
	assert(ftruncate(FD_MEMFD, SHARED_PAGES * PAGE) == 0);
}

static void map_all(void)
{
	it.anon = map_pages(ANON_PAGES);
	it.many = map_pages(MANY_PAGES);
	it.over = map_pages(16);
	it.moving = map_pages(16);
	it.growing_pages = 4;
	it.growing = map_pages(it.growing_pages);
	it.huge = (char *)(((uintptr_t)map_pages(2 * HUGE_BYTES / PAGE) + HUGE_BYTES - 1) &
			   ~(uintptr_t)(HUGE_BYTES - 1));
	madvise(it.huge, HUGE_BYTES, MADV_HUGEPAGE);
	it.tables = (char *)(((uintptr_t)map_pages(4 * TABLE_BYTES / PAGE) + TABLE_BYTES - 1) &
			     ~(uintptr_t)(TABLE_BYTES - 1));
	madvise(it.tables, 2 * TABLE_BYTES, MADV_NOHUGEPAGE);
	it.file = mmap(NULL, FILE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, FD_FILE, 0);
	it.shared =
		mmap(NULL, SHARED_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, FD_MEMFD, 0);
	assert(it.file != MAP_FAILED && it.shared != MAP_FAILED);
	scribble(it.anon, ANON_PAGES, ANON_PAGES);
	scribble(it.many, MANY_PAGES, MANY_PAGES / 2);
	scribble(it.over, 16, 16);
	scribble(it.moving, 16, 16);
	scribble(it.growing, 4, 4);
	scribble(it.tables, 2 * TABLE_BYTES / PAGE, 60);
	scribble(it.file, FILE_PAGES, 8);
	scribble(it.shared, SHARED_PAGES, 100);
}

static void do_extra(enum victim_op op)
{
	size_t pages = 1 + pick(32);
	char *p;

	if (op == OP_MAP_NEW && it.extra_count < EXTRA_MAPS) {
		p = map_pages(pages);
		scribble(p, pages, (uint32_t)pages);
		it.extra[it.extra_count].at = p;
		it.extra[it.extra_count++].pages = pages;
	} else if (it.extra_count) {
		it.extra_count--;
		munmap(it.extra[it.extra_count].at, it.extra[it.extra_count].pages * PAGE);
	}
}

static void do_maps(enum victim_op op)
{
	char *p;

	switch (op) {
	case OP_MAP_OVER:
		munmap(it.over, 16 * PAGE);
		p = mmap(it.over, 16 * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		assert(p == it.over);
		scribble(it.over, 16, 4);
		break;
	case OP_MOVE:
		p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			 0);
		scribble(p, 16, 8);
		p = mremap(it.moving, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p);
		assert(p != MAP_FAILED);
		it.moving = p;
		scribble(it.moving, 16, 2);
		break;
	case OP_MOVE_TABLES:
		/* Two by turns: what lay there before has the same bits. */
		p = mremap(it.tables, TABLE_BYTES, TABLE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED,
			   it.tables + 2 * TABLE_BYTES);
		assert(p != MAP_FAILED);
		assert(mremap(it.tables + TABLE_BYTES, TABLE_BYTES, TABLE_BYTES,
			      MREMAP_MAYMOVE | MREMAP_FIXED, it.tables) == it.tables);
		assert(mremap(p, TABLE_BYTES, TABLE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED,
			      it.tables + TABLE_BYTES) == it.tables + TABLE_BYTES);
		p = mmap(it.tables + 2 * TABLE_BYTES, TABLE_BYTES, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		assert(p != MAP_FAILED);
		scribble(it.tables, 2 * TABLE_BYTES / PAGE, 3);
		break;
	case OP_GROW:
		p = mremap(it.growing, it.growing_pages * PAGE, (it.growing_pages + 3) * PAGE,
			   MREMAP_MAYMOVE);
		assert(p != MAP_FAILED);
		it.growing = p;
		it.growing_pages += 3;
		scribble(it.growing, it.growing_pages, 3);
		if (it.growing_pages > 64) {
			p = mremap(it.growing, it.growing_pages * PAGE, 4 * PAGE, 0);
			it.growing_pages = 4;
		}
		break;
	case OP_BRK:
		p = sbrk(64 * PAGE);
		assert(p != (char *)-1);
		scribble((char *)(((uintptr_t)p + PAGE - 1) & ~(PAGE - 1)), 63, 20);
		if (pick(2))
			sbrk(-32 * (intptr_t)PAGE);
		break;
	default:
		do_extra(op);
	}
}

static void do_file(enum victim_op op)
{
	volatile char sum = 0;
	uint32_t at = pick(FILE_PAGES);

	if (op == OP_FILE_WRITE) {
		scribble(it.file, FILE_PAGES, 6);
	} else if (op == OP_FILE_TRUNCATE) {
		char content[PAGE];

		assert(ftruncate(FD_FILE, (FILE_PAGES - 4) * PAGE) == 0);
		memset(content, 'z', sizeof(content));
		for (int i = FILE_PAGES - 4; i < FILE_PAGES; i++)
			assert(pwrite(FD_FILE, content, PAGE, i * (off_t)PAGE) == PAGE);
	} else if (op == OP_FILE_LOCK) {
		madvise(it.file, FILE_PAGES * PAGE, MADV_DONTNEED);
		assert(fsync(FD_FILE) == 0);
		assert(posix_fadvise(FD_FILE, 0, 0, POSIX_FADV_DONTNEED) == 0);
		assert(mlock(it.file, FILE_PAGES * PAGE) == 0);
		munlock(it.file, FILE_PAGES * PAGE);
		/* Own pages all: none brings the others into the cache the next time. */
		for (int i = 0; i < FILE_PAGES; i++)
			it.file[i * PAGE + 8] = (char)pick(256);
	} else {
		madvise(it.file + at * PAGE, (FILE_PAGES - at) * PAGE, MADV_DONTNEED);
		for (int i = 0; op == OP_FILE_REVERT_READ && i < FILE_PAGES; i++)
			sum += it.file[i * PAGE];
	}
	if (op == OP_FILE_TRUNCATE && pick(2))
		scribble(it.file, FILE_PAGES, 6);
}

static void do_shared(enum victim_op op)
{
	uint32_t at = pick(SHARED_PAGES - 8);

	if (op == OP_SHARED_WRITE)
		scribble(it.shared, SHARED_PAGES, 20);
	else if (op == OP_SHARED_PWRITE)
		assert(pwrite(FD_MEMFD, &it.random, 8, at * (off_t)PAGE + 16) == 8);
	else
		assert(fallocate(FD_MEMFD, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 at * (off_t)PAGE, 4 * PAGE) == 0);
}

/* Writes that the kernel does for us. */
static void do_kernel(enum victim_op op)
{
	char *to = it.anon + pick(ANON_PAGES - 8) * PAGE;
	struct iovec local = { &it.random, 8 }, remote = { to + 24, 8 };
	struct iovec gift = { it.anon + pick(ANON_PAGES) * PAGE, 512 };
	int p[2], flags;

	switch (op) {
	case OP_READ_INTO:
		assert(pread(FD_FILE, to + 100, 5000, pick(16) * (off_t)PAGE) == 5000);
		break;
	case OP_READ_DIRECT:
		flags = fcntl(FD_FILE + 1, F_GETFL);
		if (fcntl(FD_FILE + 1, F_SETFL, flags | O_DIRECT) == 0)
			(void)!pread(FD_FILE + 1, to, 4 * PAGE, pick(16) * (off_t)PAGE);
		fcntl(FD_FILE + 1, F_SETFL, flags);
		break;
	case OP_SPLICE:
		assert(pipe(p) == 0);
		assert(vmsplice(p[1], &gift, 1, 0) == 512);
		assert(read(p[0], to + 64, 512) == 512);
		close(p[0]);
		close(p[1]);
		break;
	default:
		assert(process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == 8);
	}
}

static void do_advice(enum victim_op op)
{
	uint32_t at = pick(ANON_PAGES - 64), count = 1 + pick(32);
	char *p = it.anon + at * PAGE;
	volatile char sum = 0;

	switch (op) {
	case OP_ZERO:
		memset(p, 0, count * PAGE);
		break;
	case OP_GIVE_BACK:
	case OP_GIVE_BACK_USE:
		madvise(p, count * PAGE, MADV_DONTNEED);
		if (op == OP_GIVE_BACK_USE)
			scribble(p, count, count / 2);
		break;
	case OP_READ_HOLES:
		madvise(p, count * PAGE, MADV_DONTNEED);
		for (uint32_t i = 0; i < count; i++)
			sum += p[i * PAGE];
		break;
	case OP_FREE:
		madvise(p, count * PAGE, MADV_FREE);
		scribble(p, count, count);
		break;
	case OP_GUARD:
		if (madvise(it.over + 4 * PAGE, 2 * PAGE, ADVICE_GUARD_INSTALL) == 0 && pick(2))
			madvise(it.over + 4 * PAGE, PAGE, ADVICE_GUARD_REMOVE);
		break;
	case OP_PROTECT:
		mprotect(it.over + 8 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE);
		it.over[8 * PAGE + pick(100)]++;
		mprotect(it.over + 8 * PAGE, 4 * PAGE, pick(3) ? PROT_NONE : PROT_READ);
		break;
	default:
		/* OP_HUGE: new ones now and then */
		if (pick(3) == 0)
			madvise(it.huge, HUGE_BYTES, MADV_DONTNEED);
		else if (pick(3) == 0)
			madvise(it.huge + pick(HUGE_BYTES / PAGE) * PAGE, PAGE, MADV_DONTNEED);
		scribble(it.huge, HUGE_BYTES / PAGE, 10);
	}
}

static void dig(int depth)
{
	volatile char room[2000];

	memset((char *)room, depth, sizeof(room));
	if (depth > 0)
		dig(depth - 1);
	room[depth % 2000]++;
}

static void do_exec(void)
{
	char *argv[] = { (char *)"victim", (char *)"victim", NULL };

	execv("/proc/self/exe", argv);
	_exit(1);
}

static void do_fork(void)
{
	it.child = fork();
	assert(it.child >= 0);
	if (it.child)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(FD_IN);
	close(FD_OUT);
	scribble(it.anon, ANON_PAGES, 50);
	for (;;) {
		poll(NULL, 0, 5);
		scribble(it.anon, ANON_PAGES, 5);
	}
}

static void do_special(enum victim_op op, uint32_t n)
{
	switch ((int)op) {
	case OP_STORM_START:
		it.storming = true;
		assert(pthread_create(&it.storm, NULL, storm, NULL) == 0);
		break;
	case OP_STORM_STOP:
		it.storming = false;
		pthread_join(it.storm, NULL);
		break;
	case OP_FORK:
		do_fork();
		break;
	case OP_FORK_END:
		kill(it.child, SIGKILL);
		waitpid(it.child, NULL, 0);
		break;
	case OP_MAP_HUGE_HOLE:
		assert(mmap(NULL, 1UL << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			    -1, 0) != MAP_FAILED);
		break;
	case OP_FILL:
		/* For measurements: nothing sparse beside it. */
		munmap(it.many, MANY_PAGES * PAGE);
		it.bulk_pages = (size_t)n << 8;
		it.bulk = map_pages(it.bulk_pages);
		for (size_t i = 0; i < it.bulk_pages; i++)
			memcpy(it.bulk + i * PAGE, &i, sizeof(i));
		break;
	case OP_DIRTY:
		assert(pthread_create(&it.storm, NULL, steady, (void *)(uintptr_t)n) == 0);
		break;
	default:
		assert(syscall(SYS_userfaultfd, O_CLOEXEC | 1) >= 0);
	}
}

static void do_op(enum victim_op op)
{
	if (op == OP_WRITE)
		scribble(it.anon, ANON_PAGES, 40);
	else if (op == OP_WRITE_MANY)
		scribble(it.many, MANY_PAGES, 3000);
	else if (op == OP_STACK)
		dig((int)pick(200));
	else if (op == OP_EXEC)
		do_exec();
	else if (op >= OP_MAP_NEW && op <= OP_BRK)
		do_maps(op);
	else if (op >= OP_FILE_WRITE && op <= OP_FILE_LOCK)
		do_file(op);
	else if (op >= OP_SHARED_WRITE && op <= OP_SHARED_PUNCH)
		do_shared(op);
	else if (op == OP_READ_INTO || op == OP_READ_DIRECT || op == OP_SPLICE ||
		 op == OP_SELF_VM_WRITE)
		do_kernel(op);
	else
		do_advice(op);
}

int victim_main(int argc, char **argv)
{
	uint32_t command[2];

	(void)argc;
	(void)argv;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(LIFE_S);
	memset(&it, 0, sizeof(it));
	it.random = 1;
	open_files();
	map_all();
	assert(write(FD_OUT, "r", 1) == 1);
	while (read(FD_IN, command, sizeof(command)) == sizeof(command)) {
		it.random = command[1] * 77777ULL + 1;
		if (command[0] < OP_COUNT)
			do_op((enum victim_op)command[0]);
		else
			do_special((enum victim_op)command[0], command[1]);
		assert(write(FD_OUT, "r", 1) == 1);
	}
	return 0;
}

static void wait_ready(const struct victim *v)
{
	struct pollfd answers = { .fd = v->from, .events = POLLIN };
	char c;

	/* It may be caught in the kernel, where only this ends it. */
	if (poll(&answers, 1, ANSWER_TIMEOUT_MS) != 1)
		kill(v->pid, SIGKILL);
	assert_int_equal(read(v->from, &c, 1), 1);
}

void victim_start(struct victim *v)
{
	int in[2], out[2];

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	v->pid = fork();
	assert_true(v->pid >= 0);
	if (v->pid == 0) {
		char *argv[] = { (char *)"victim", (char *)"victim", NULL };

		dup2(in[0], FD_IN);
		dup2(out[1], FD_OUT);
		setsid();
		execv("/proc/self/exe", argv);
		_exit(1);
	}
	close(in[0]);
	close(out[1]);
	v->to = in[1];
	v->from = out[0];
	wait_ready(v);
}

void victim_do(const struct victim *v, enum victim_op op, uint32_t seed)
{
	uint32_t command[2] = { (uint32_t)op, seed };

	assert_int_equal(write(v->to, command, sizeof(command)), sizeof(command));
	wait_ready(v);
}

void victim_end(struct victim *v)
{
	if (v->pid <= 0)
		return;
	kill(v->pid, SIGKILL);
	waitpid(v->pid, NULL, 0);
	close(v->to);
	close(v->from);
	v->pid = 0;
}
