// SPDX-License-Identifier: LGPL-2.1-or-later
/* Images of open files: each kind made by a child, collected while it stands, read back. */
#include "tests/unit/files_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "agent/util/io.h"

enum { GHOST_BYTES = 3 << 20 };

#define MUST(x)                   \
	do {                      \
		if ((x) < 0)      \
			_exit(2); \
	} while (0)

static int move_fd(int fd, int to)
{
	if (fd < 0 || dup3(fd, to, 0) < 0)
		return -1;
	return close(fd);
}

static void write_at(int fd, off_t at, const char *text)
{
	MUST(pwrite(fd, text, strlen(text), at));
}

/* Regular files and folders. */
static int do_regular(int order, void *arg)
{
	(void)order;
	(void)arg;
	MUST(move_fd(open("data", O_CREAT | O_RDWR | O_APPEND, 0640), 10));
	MUST(write(10, "0123456789", 10));
	MUST(lseek(10, 4, SEEK_SET));
	MUST(dup2(10, 11));
	MUST(fcntl(11, F_SETFD, FD_CLOEXEC));
	MUST(move_fd(open("data", O_RDONLY), 12));
	MUST(move_fd(open(".", O_RDONLY | O_DIRECTORY), 13));
	MUST(move_fd(open("data", O_PATH), 14));
	MUST(move_fd(open("/dev/urandom", O_RDONLY), 15));
	MUST(fcntl(12, F_SETOWN, getpid()));
	MUST(fcntl(12, F_SETSIG, SIGUSR1));
	MUST(symlink("nowhere", "link"));
	MUST(move_fd(open("link", O_PATH | O_NOFOLLOW), 16));
	MUST(move_fd(open("/proc/self/stat", O_RDONLY), 17));
	return 0;
}

static void check_special(struct files_lab *lab)
{
	const struct native_task *t = &lab->tasks[0];
	const NatFiles__File *exe = fl_file_by_id(lab, t->exe_id),
			     *cwd = fl_file_by_id(lab, t->cwd_id),
			     *root = fl_file_by_id(lab, t->root_id);
	NatFiles__Fs *fs;
	char name[32];

	assert_string_equal(exe->reg->name, t->state->exe);
	assert_true(exe->reg->has_size && exe->reg->size > 0);
	assert_string_equal(cwd->reg->name, lab->folder);
	assert_string_equal(root->reg->name, "/");
	snprintf(name, sizeof(name), "fs-%d", lab->child);
	assert_int_equal(fl_read_image(lab, name, &nat_files__fs__descriptor,
				       (ProtobufCMessage **)&fs, 1),
			 1);
	assert_int_equal(fs->cwd_id, t->cwd_id);
	assert_int_equal(fs->root_id, t->root_id);
	assert_int_equal(fs->umask, 022);
	nat_files__fs__free_unpacked(fs, NULL);
	for (size_t i = 0; i < t->vma_count; i++) {
		const struct state_vma *v = &t->vmas[i];

		if (!v->file || t->vma_status[i])
			continue;
		assert_string_equal(fl_file_by_id(lab, t->vma_file_ids[i])->reg->name, v->path);
	}
}

static void test_regular(void **state)
{
	struct files_lab *lab = *state;
	char path[96];
	const NatFiles__File *f;

	fl_start(lab, do_regular, NULL);
	fl_take(lab);
	f = fl_file_of_fd(lab, 10);
	assert_int_equal(f->type, NAT_FILES__FILE_TYPE__REG);
	snprintf(path, sizeof(path), "%s/data", lab->folder);
	assert_string_equal(f->reg->name, path);
	assert_int_equal(f->reg->pos, 4);
	assert_int_equal(f->reg->flags, 0100000 | O_RDWR | O_APPEND);
	assert_false(f->reg->has_size);
	/* dup: one file, two flags. */
	assert_ptr_equal(f, fl_file_of_fd(lab, 11));
	for (size_t i = 0; i < lab->fd_count; i++)
		assert_int_equal(lab->fds[i]->flags, lab->fds[i]->fd == 11 ? FD_CLOEXEC : 0);
	f = fl_file_of_fd(lab, 12);
	assert_ptr_not_equal(f, fl_file_of_fd(lab, 10));
	assert_int_equal(f->reg->fown->pid, lab->child);
	assert_int_equal(f->reg->fown->pid_type, F_OWNER_PID);
	assert_int_equal(f->reg->fown->signum, SIGUSR1);
	f = fl_file_of_fd(lab, 13);
	assert_string_equal(f->reg->name, lab->folder);
	assert_true(f->reg->flags & O_DIRECTORY);
	assert_true(fl_file_of_fd(lab, 14)->reg->flags & O_PATH);
	assert_string_equal(fl_file_of_fd(lab, 15)->reg->name, "/dev/urandom");
	snprintf(path, sizeof(path), "%s/link", lab->folder);
	assert_string_equal(fl_file_of_fd(lab, 16)->reg->name, path);
	snprintf(path, sizeof(path), "/proc/%d/stat", lab->child);
	assert_string_equal(fl_file_of_fd(lab, 17)->reg->name, path);
	check_special(lab);
	fl_end(lab);
}

/* Files without a name: order 1 overwrites what was there. */
static int do_ghosts(int order, void *arg)
{
	void *map;

	(void)arg;
	if (order == 1) {
		write_at(10, 0, "later");
		MUST(ftruncate(10, 10));
		return 0;
	}
	MUST(move_fd(open("gone", O_CREAT | O_RDWR, 0604), 10));
	write_at(10, 0, "first");
	write_at(10, GHOST_BYTES - 4, "last");
	MUST(move_fd(open("gone", O_RDONLY), 11));
	MUST(unlink("gone"));
	MUST(move_fd(open("mapped", O_CREAT | O_RDWR, 0600), 12));
	write_at(12, 0, "mapped");
	MUST(unlink("mapped"));
	map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 12, 0);
	if (map == MAP_FAILED || close(12) < 0)
		return -1;
	MUST(mkdir("folder", 0751));
	MUST(move_fd(open("folder", O_RDONLY | O_DIRECTORY), 13));
	MUST(rmdir("folder"));
	return 0;
}

static uint32_t ghost_of(struct files_lab *lab, uint32_t file_id)
{
	NatFiles__RemapPath *remaps[16];
	size_t count = fl_read_image(lab, "remap-fpath", &nat_files__remap_path__descriptor,
				     (ProtobufCMessage **)remaps, ARRAY_SIZE(remaps));
	uint32_t id = 0;

	for (size_t i = 0; i < count; i++) {
		assert_int_equal(remaps[i]->remap_type, NAT_FILES__REMAP_TYPE__GHOST);
		if (remaps[i]->orig_id == file_id)
			id = remaps[i]->remap_id;
		nat_files__remap_path__free_unpacked(remaps[i], NULL);
	}
	assert_true(id > 0);
	return id;
}

/* The content that restore would make of it; *ret_ghost: its first record. */
static uint8_t *read_ghost(struct files_lab *lab, uint32_t id, NatFiles__Ghost **ret_ghost,
			   size_t *ret_size, size_t *ret_image_size)
{
	char name[32];
	_cleanup_free_ uint8_t *bytes = NULL;
	uint8_t *content;
	size_t size, at = 8;
	uint32_t length;

	snprintf(name, sizeof(name), "ghost-file-%x", id);
	bytes = fl_read_file(lab, name, &size);
	assert_non_null(bytes);
	memcpy(&length, bytes + at, 4);
	*ret_ghost = nat_files__ghost__unpack(NULL, length, bytes + at + 4);
	assert_non_null(*ret_ghost);
	at += 4 + length;
	content = calloc(1, (*ret_ghost)->size + 1);
	while (at < size) {
		NatFiles__GhostChunk *chunk;

		memcpy(&length, bytes + at, 4);
		chunk = nat_files__ghost_chunk__unpack(NULL, length, bytes + at + 4);
		assert_non_null(chunk);
		at += 4 + length;
		assert_true(chunk->off + chunk->len <= (*ret_ghost)->size);
		memcpy(content + chunk->off, bytes + at, chunk->len);
		at += chunk->len;
		nat_files__ghost_chunk__free_unpacked(chunk, NULL);
	}
	*ret_size = (*ret_ghost)->size;
	*ret_image_size = size;
	return content;
}

static uint32_t ghost_of_map(struct files_lab *lab, const char *word)
{
	const struct native_task *t = &lab->tasks[0];

	for (size_t i = 0; i < t->vma_count; i++)
		if (strstr(t->vmas[i].path, word))
			return ghost_of(lab, t->vma_file_ids[i]);
	fail();
	return 0;
}

static void test_ghosts(void **state)
{
	struct files_lab *lab = *state;
	NatFiles__Ghost *ghost;
	size_t size, image_size;
	uint8_t *content;
	uint32_t id;

	fl_start(lab, do_ghosts, NULL);
	assert_int_equal(fl_collect(lab), 0);
	fl_go(lab);
	/* What happens after the pause must not be seen. */
	fl_order(lab, 1);
	assert_int_equal(fl_write(lab), 0);

	id = ghost_of(lab, fl_file_of_fd(lab, 10)->id);
	assert_int_equal(id, ghost_of(lab, fl_file_of_fd(lab, 11)->id));
	content = read_ghost(lab, id, &ghost, &size, &image_size);
	assert_int_equal(size, GHOST_BYTES);
	assert_memory_equal(content, "first", 6);
	assert_memory_equal(content + GHOST_BYTES - 5, "\0last", 5);
	assert_int_equal(ghost->mode, S_IFREG | 0604);
	/* Holes take no room. */
	assert_true(image_size < 1 << 20);
	assert_null(strstr(fl_file_of_fd(lab, 10)->reg->name, "deleted"));
	nat_files__ghost__free_unpacked(ghost, NULL);
	free(content);

	content = read_ghost(lab, ghost_of_map(lab, "/mapped"), &ghost, &size, &image_size);
	assert_string_equal((char *)content, "mapped");
	nat_files__ghost__free_unpacked(ghost, NULL);
	free(content);

	content = read_ghost(lab, ghost_of(lab, fl_file_of_fd(lab, 13)->id), &ghost, &size,
			     &image_size);
	assert_int_equal(ghost->mode, S_IFDIR | 0751);
	assert_false(ghost->has_chunks);
	nat_files__ghost__free_unpacked(ghost, NULL);
	free(content);
	fl_end(lab);
}

/* The name it was opened by is gone, but it has others. */
static int do_names(int order, void *arg)
{
	(void)order;
	(void)arg;
	MUST(move_fd(open("old", O_CREAT | O_RDWR, 0600), 10));
	MUST(link("old", "new"));
	MUST(unlink("old"));
	MUST(move_fd(open("odd (deleted)", O_CREAT | O_RDWR, 0600), 11));
	return 0;
}

static int do_far_name(int order, void *arg)
{
	(void)order;
	(void)arg;
	MUST(mkdir("far", 0700));
	MUST(move_fd(open("old", O_CREAT | O_RDWR, 0600), 10));
	MUST(link("old", "far/new"));
	MUST(unlink("old"));
	return 0;
}

static void test_other_names(void **state)
{
	struct files_lab *lab = *state;
	char path[96];

	fl_start(lab, do_names, NULL);
	fl_take(lab);
	snprintf(path, sizeof(path), "%s/new", lab->folder);
	assert_string_equal(fl_file_of_fd(lab, 10)->reg->name, path);
	snprintf(path, sizeof(path), "%s/odd (deleted)", lab->folder);
	assert_string_equal(fl_file_of_fd(lab, 11)->reg->name, path);
	fl_end(lab);

	fl_start(lab, do_far_name, NULL);
	assert_int_equal(fl_collect(lab), -EOPNOTSUPP);
	assert_non_null(strstr(lab->reason, "descriptor 10 of process"));
	fl_end(lab);
}

/* Pipes and FIFOs; order 1: what was in them is still there, and more is written. */
static int do_pipes(int order, void *arg)
{
	char buf[64] = { 0 };
	int fds[2];

	(void)arg;
	if (order == 1) {
		MUST(write(11, "more", 4));
		MUST(write(14, "more", 4));
		if (read(10, buf, sizeof(buf)) != 12 || strcmp(buf, "pipedatamore") != 0)
			return -1;
		memset(buf, 0, sizeof(buf));
		return read(14, buf, sizeof(buf)) == 8 && !strcmp(buf, "fifomore") ? 0 : -1;
	}
	MUST(pipe(fds));
	MUST(move_fd(fds[1], 11));
	MUST(move_fd(fds[0], 10));
	MUST(write(11, "pipedata", 8));
	MUST(fcntl(10, F_SETPIPE_SZ, 8192));
	MUST(pipe(fds));
	MUST(move_fd(fds[1], 13));
	MUST(move_fd(fds[0], 12));
	MUST(mkfifo("fifo", 0620));
	MUST(move_fd(open("fifo", O_RDWR), 14));
	MUST(write(14, "fifo", 4));
	/* Ends whose other end is gone. */
	MUST(pipe(fds));
	MUST(write(fds[1], "rest", 4));
	MUST(close(fds[1]));
	MUST(move_fd(fds[0], 15));
	MUST(pipe(fds));
	MUST(close(fds[1]));
	MUST(move_fd(fds[0], 16));
	MUST(pipe(fds));
	MUST(move_fd(fds[1], 17));
	return close(fds[0]);
}

/* Checks one record; the content follows it. */
static void check_content(struct files_lab *lab, const char *image, uint32_t pipe_id,
			  const char *text, uint32_t size)
{
	size_t total, at = 8;
	_cleanup_free_ uint8_t *bytes = fl_read_file(lab, image, &total);

	assert_non_null(bytes);
	while (at < total) {
		NatFiles__PipeData *e;
		uint32_t length;

		memcpy(&length, bytes + at, 4);
		e = nat_files__pipe_data__unpack(NULL, length, bytes + at + 4);
		at += 4 + length;
		assert_non_null(e);
		if (e->pipe_id == pipe_id) {
			assert_int_equal(e->bytes, strlen(text));
			assert_memory_equal(bytes + at, text, e->bytes);
			assert_int_equal(e->size, size);
			nat_files__pipe_data__free_unpacked(e, NULL);
			return;
		}
		at += e->bytes;
		nat_files__pipe_data__free_unpacked(e, NULL);
	}
	fail_msg("no data of pipe %u", pipe_id);
}

static void test_pipes(void **state)
{
	struct files_lab *lab = *state;
	const NatFiles__File *f;
	char path[96];

	fl_start(lab, do_pipes, NULL);
	assert_int_equal(fl_collect(lab), 0);
	fl_go(lab);
	fl_order(lab, 1);
	assert_int_equal(fl_write(lab), 0);
	f = fl_file_of_fd(lab, 10);
	assert_int_equal(f->type, NAT_FILES__FILE_TYPE__PIPE);
	assert_int_equal(f->pipe->pipe_id, fl_file_of_fd(lab, 11)->pipe->pipe_id);
	assert_int_equal(f->pipe->flags, O_RDONLY);
	assert_int_equal(fl_file_of_fd(lab, 11)->pipe->flags, O_WRONLY);
	check_content(lab, "pipes-data", f->pipe->pipe_id, "pipedata", 8192);
	check_content(lab, "pipes-data", fl_file_of_fd(lab, 12)->pipe->pipe_id, "", 65536);
	check_content(lab, "pipes-data", fl_file_of_fd(lab, 15)->pipe->pipe_id, "rest", 65536);
	check_content(lab, "pipes-data", fl_file_of_fd(lab, 16)->pipe->pipe_id, "", 65536);
	f = fl_file_of_fd(lab, 14);
	assert_int_equal(f->type, NAT_FILES__FILE_TYPE__FIFO);
	snprintf(path, sizeof(path), "%s/fifo", lab->folder);
	assert_string_equal(fl_file_by_id(lab, f->fifo->regf_id)->reg->name, path);
	assert_int_equal(fl_file_by_id(lab, f->fifo->regf_id)->reg->flags & O_ACCMODE, O_RDWR);
	check_content(lab, "fifo-data", f->fifo->pipe_id, "fifo", 65536);
	fl_end(lab);
}

/* Its reader (order 1: writer) is the test itself. */
static int outside_pipe[2];

static int do_outside(int order, void *arg)
{
	char path[64];

	(void)order;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", getppid(), outside_pipe[*(int *)arg]);
	MUST(move_fd(open(path, *(int *)arg ? O_WRONLY : O_RDONLY), 10));
	return 0;
}

static void test_outside_pipe(void **state)
{
	struct files_lab *lab = *state;

	for (int end = 0; end < 2; end++) {
		assert_int_equal(pipe2(outside_pipe, O_CLOEXEC), 0);
		fl_start(lab, do_outside, &end);
		fl_stop(lab);
		fl_add_task(lab, lab->child);
		assert_int_equal(files_check(&lab->tree), -EOPNOTSUPP);
		assert_non_null(strstr(lab->reason, "descriptor 10 of process"));
		lab->reason[0] = '\0';
		assert_int_equal(fl_collect(lab), -EOPNOTSUPP);
		assert_non_null(strstr(lab->reason, "outside of the job"));
		fl_end(lab);
		close(outside_pipe[0]);
		close(outside_pipe[1]);
	}
}

static int do_events(int order, void *arg)
{
	struct itimerspec when = { .it_interval = { 3, 5 }, .it_value = { 1000, 0 } };
	struct epoll_event e = { .events = EPOLLIN | EPOLLET };
	sigset_t mask;
	int fds[2];

	(void)order;
	(void)arg;
	MUST(move_fd(eventfd(42, EFD_NONBLOCK), 10));
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	MUST(move_fd(signalfd(-1, &mask, 0), 11));
	MUST(move_fd(timerfd_create(CLOCK_MONOTONIC, 0), 12));
	MUST(timerfd_settime(12, 0, &when, NULL));
	MUST(pipe(fds));
	MUST(move_fd(fds[1], 14));
	MUST(move_fd(fds[0], 13));
	MUST(move_fd(epoll_create1(0), 15));
	e.data.u64 = 0x123456789;
	MUST(epoll_ctl(15, EPOLL_CTL_ADD, 13, &e));
	/* Registered as 20, then only 21 is left, and 20 is another file. */
	MUST(dup2(10, 20));
	e.data.u64 = 7;
	MUST(epoll_ctl(15, EPOLL_CTL_ADD, 20, &e));
	MUST(dup2(20, 21));
	MUST(dup2(12, 20));
	MUST(close(10));
	MUST(dup2(21, 10));
	MUST(close(21));
	MUST(move_fd((int)syscall(SYS_pidfd_open, getpid(), 0), 16));
	return 0;
}

static void check_epoll(const NatFiles__Epoll *e)
{
	assert_int_equal(e->n_tfd, 2);
	for (size_t i = 0; i < 2; i++) {
		const NatFiles__EpollTarget *t = e->tfd[i];

		if (t->data == 0x123456789) {
			assert_int_equal(t->tfd, 13);
			assert_int_equal(t->events, EPOLLIN | EPOLLET | EPOLLERR | EPOLLHUP);
		} else {
			assert_int_equal(t->data, 7);
			assert_int_equal(t->tfd, 10);
		}
	}
}

static void test_events(void **state)
{
	struct files_lab *lab = *state;
	const NatFiles__File *f;

	fl_start(lab, do_events, NULL);
	fl_take(lab);
	f = fl_file_of_fd(lab, 10);
	assert_int_equal(f->type, NAT_FILES__FILE_TYPE__EVENTFD);
	assert_int_equal(f->efd->counter, 42);
	assert_true(f->efd->flags & O_NONBLOCK);
	assert_int_equal(fl_file_of_fd(lab, 11)->sgfd->sigmask, 1ull << (SIGUSR2 - 1));
	f = fl_file_of_fd(lab, 12);
	assert_int_equal(f->tfd->clockid, CLOCK_MONOTONIC);
	assert_in_range(f->tfd->value_s, 900, 1000);
	assert_int_equal(f->tfd->interval_s, 3);
	assert_int_equal(f->tfd->interval_ns, 5);
	assert_int_equal(fl_file_of_fd(lab, 15)->type, NAT_FILES__FILE_TYPE__EVENTPOLL);
	check_epoll(fl_file_of_fd(lab, 15)->epfd);
	f = fl_file_of_fd(lab, 16);
	assert_int_equal(f->type, NAT_FILES__FILE_TYPE__PIDFD);
	assert_int_equal(f->pidfd->nspid, lab->child);
	assert_int_equal(f->pidfd->flags, 0);
	fl_end(lab);
}

static int do_inotify(int order, void *arg)
{
	(void)arg;
	if (order == 1)
		return creat("seen/below/new", 0600);
	MUST(mkdir("seen", 0700));
	MUST(mkdir("seen/below", 0700));
	MUST(move_fd(inotify_init(), 10));
	MUST(inotify_add_watch(10, "seen/below", IN_CREATE | IN_DELETE));
	return 0;
}

static void test_inotify(void **state)
{
	struct files_lab *lab = *state;
	const NatFiles__File *f;
	char path[96];

	fl_start(lab, do_inotify, NULL);
	fl_take(lab);
	f = fl_file_of_fd(lab, 10);
	assert_int_equal(f->type, NAT_FILES__FILE_TYPE__INOTIFY);
	assert_int_equal(f->ify->n_wd, 1);
	assert_int_equal(f->ify->wd[0]->wd, 1);
	assert_int_equal(f->ify->wd[0]->mask & IN_ALL_EVENTS, IN_CREATE | IN_DELETE);
	snprintf(path, sizeof(path), "%s/seen/below", lab->folder);
	assert_string_equal(f->ify->wd[0]->f_handle->path, path);
	fl_end(lab);

	/* Events that nobody has read would be lost. */
	fl_start(lab, do_inotify, NULL);
	fl_order(lab, 1);
	assert_int_equal(fl_collect(lab), -EOPNOTSUPP);
	fl_end(lab);
}

static int do_locks(int order, void *arg)
{
	struct flock part = { .l_type = F_WRLCK, .l_start = 5, .l_len = 10 };

	(void)order;
	(void)arg;
	MUST(move_fd(open("a", O_CREAT | O_RDWR, 0600), 10));
	MUST(flock(10, LOCK_SH));
	MUST(dup2(10, 11));
	MUST(move_fd(open("b", O_CREAT | O_RDWR, 0600), 12));
	MUST(fcntl(12, F_SETLK, &part));
	MUST(move_fd(open("c", O_CREAT | O_RDWR, 0600), 13));
	part.l_len = 0;
	MUST(fcntl(13, F_OFD_SETLK, &part));
	return 0;
}

static int do_lease(int order, void *arg)
{
	(void)order;
	(void)arg;
	MUST(close(open("leased", O_CREAT | O_RDWR, 0600)));
	MUST(move_fd(open("leased", O_RDONLY), 10));
	return fcntl(10, F_SETLEASE, F_RDLCK);
}

static void check_lock(const NatFiles__Lock *l, uint32_t flag, uint32_t type, int64_t start,
		       int64_t length)
{
	assert_int_equal(l->flag, flag);
	assert_int_equal(l->type, type);
	assert_int_equal(l->start, start);
	assert_int_equal(l->len, length);
}

static void test_locks(void **state)
{
	struct files_lab *lab = *state;
	NatFiles__Lock *locks[8];
	size_t count;

	fl_start(lab, do_locks, NULL);
	fl_take(lab);
	count = fl_read_image(lab, "filelocks", &nat_files__lock__descriptor,
			      (ProtobufCMessage **)locks, ARRAY_SIZE(locks));
	assert_int_equal(count, 3);
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(locks[i]->pid, lab->child);
		if (locks[i]->fd == 10)
			check_lock(locks[i], 2, F_RDLCK, 0, 0);
		else if (locks[i]->fd == 12)
			check_lock(locks[i], 1, F_WRLCK, 5, 10);
		else
			check_lock(locks[i], 4, F_WRLCK, 5, 0);
		nat_files__lock__free_unpacked(locks[i], NULL);
	}
	fl_end(lab);

	fl_start(lab, do_lease, NULL);
	assert_int_equal(fl_collect(lab), -EOPNOTSUPP);
	assert_non_null(strstr(lab->reason, "LEASE"));
	fl_end(lab);
}

struct forked {
	atomic_int ready; /* it has its files */
	pid_t pid;
};

/* fork: one struct file, one entry; and a lock of it once. */
static int do_fork(int order, void *arg)
{
	struct forked *forked = arg;
	pid_t pid;

	(void)order;
	MUST(move_fd(open("shared", O_CREAT | O_RDWR, 0600), 10));
	MUST(flock(10, LOCK_EX));
	pid = fork();
	if (pid == 0) {
		MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
		MUST(move_fd(open("own", O_CREAT | O_RDWR, 0600), 11));
		atomic_store(&forked->ready, 1);
		pause();
	}
	forked->pid = pid;
	return pid < 0 ? -1 : 0;
}

static void test_fork(void **state)
{
	struct forked *child =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct files_lab *lab = *state;
	NatFiles__Fdinfo *fds[8];
	NatFiles__Lock *locks[4];
	size_t count;
	uint32_t id = 0;

	assert_ptr_not_equal(child, MAP_FAILED);
	fl_start(lab, do_fork, child);
	for (int ms = 0; !atomic_load(&child->ready); ms++) {
		assert_true(ms < 30000);
		usleep(1000);
	}
	fl_stop(lab);
	usleep(20000); /* it pauses */
	fl_add_task(lab, lab->child);
	fl_add_task(lab, child->pid);
	/* A shared page of the test is no file of the child's own. */
	for (int i = 0; i < 2; i++)
		for (size_t v = 0; v < lab->tasks[i].vma_count; v++)
			if (!strncmp(lab->tasks[i].vmas[v].path, "/dev/zero", 9))
				((struct state_vma *)lab->tasks[i].vmas)[v].file = 0;
	fl_take(lab);
	count = fl_read_image(lab, "fdinfo-2", &nat_files__fdinfo__descriptor,
			      (ProtobufCMessage **)fds, ARRAY_SIZE(fds));
	assert_int_equal(count, 5);
	for (size_t i = 0; i < count; i++) {
		if (fds[i]->fd == 10)
			id = fds[i]->id;
		nat_files__fdinfo__free_unpacked(fds[i], NULL);
	}
	assert_int_equal(id, fl_file_of_fd(lab, 10)->id);
	count = fl_read_image(lab, "filelocks", &nat_files__lock__descriptor,
			      (ProtobufCMessage **)locks, ARRAY_SIZE(locks));
	assert_int_equal(count, 1);
	nat_files__lock__free_unpacked(locks[0], NULL);
	kill(child->pid, SIGKILL);
	fl_end(lab);
	munmap(child, 4096);
}

enum refused {
	REFUSE_UFFD,
	REFUSE_BLOCK,
	REFUSE_SEMAPHORE,
	REFUSE_PACKETS,
	REFUSE_PROC,
	REFUSE_NS
};

static int do_refused(int order, void *arg)
{
	char path[64];
	int fds[2];

	(void)order;
	switch (*(enum refused *)arg) {
	case REFUSE_UFFD:
		return move_fd((int)syscall(SYS_userfaultfd, O_CLOEXEC | 1), 10);
	case REFUSE_BLOCK:
		return move_fd(open("/dev/mem", O_RDONLY), 10);
	case REFUSE_SEMAPHORE:
		return move_fd(eventfd(3, EFD_SEMAPHORE), 10);
	case REFUSE_PACKETS:
		MUST(pipe2(fds, O_DIRECT));
		MUST(move_fd(fds[1], 11));
		return move_fd(fds[0], 10);
	case REFUSE_PROC:
		snprintf(path, sizeof(path), "/proc/%d/stat", getppid());
		return move_fd(open(path, O_RDONLY), 10);
	default:
		return move_fd(open("/proc/self/ns/net", O_RDONLY), 10);
	}
}

static void test_refused(void **state)
{
	struct files_lab *lab = *state;

	for (enum refused i = REFUSE_UFFD; i <= REFUSE_NS; i++) {
		if (i == REFUSE_BLOCK && access("/dev/mem", R_OK) < 0)
			continue;
		fl_start(lab, do_refused, &i);
		assert_int_equal(fl_collect(lab), -EOPNOTSUPP);
		assert_non_null(strstr(lab->reason, "descriptor 1"));
		fl_end(lab);
	}
}

/* Many files, as `make bench-pause` has them not: the pause's share of the files. */
static int do_many(int order, void *arg)
{
	(void)order;
	(void)arg;
	for (int i = 0; i < 100; i++)
		MUST(move_fd(open("/dev/null", O_RDWR), 10 + i));
	return 0;
}

static void test_time(void **state)
{
	struct files_lab *lab = *state;
	uint64_t start, best = UINT64_MAX;

	fl_start(lab, do_many, NULL);
	fl_stop(lab);
	fl_add_task(lab, lab->child);
	for (int i = 0; i < 20; i++) {
		files_destroy(lab->files);
		lab->files = NULL;
		start = now_boot_ns();
		assert_int_equal(fl_collect(lab), 0);
		start = now_boot_ns() - start;
		best = start < best ? start : best;
	}
	print_message("collecting 100 descriptors took %llu us at best\n",
		      (unsigned long long)best / 1000);
	fl_end(lab);
}

static int setup(void **state)
{
	*state = calloc(1, sizeof(struct files_lab));
	return *state ? 0 : -1;
}

static int teardown(void **state)
{
	fl_end(*state);
	free(*state);
	return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(regular),	    TEST(ghosts),  TEST(other_names), TEST(pipes),
		TEST(outside_pipe), TEST(events),  TEST(inotify),     TEST(locks),
		TEST(fork),	    TEST(refused), TEST(time),
	};

	if (geteuid() != 0) {
		print_message("needs root\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
