// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/files_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "agent/util/io.h"

#define KERNEL_O_CLOEXEC 02000000

static void serve(int (*act)(int order, void *arg), void *arg, int in, int out)
{
	uint8_t order;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (act(0, arg) < 0 || write(out, "k", 1) != 1)
		_exit(1);
	while (read(in, &order, 1) == 1) {
		if (act(order, arg) < 0 || write(out, "k", 1) != 1)
			_exit(1);
	}
	_exit(0);
}

void fl_start(struct files_lab *lab, int (*act)(int order, void *arg), void *arg)
{
	int to[2], from[2];
	char k;

	*lab = (struct files_lab){ .images = -1, .to_child = -1, .from_child = -1 };
	strcpy(lab->folder, "/var/tmp/decamp-files-XXXXXX");
	assert_non_null(mkdtemp(lab->folder));
	assert_int_equal(chmod(lab->folder, 0755), 0);
	snprintf(lab->images_path, sizeof(lab->images_path), "%s/images", lab->folder);
	assert_int_equal(mkdir(lab->images_path, 0700), 0);
	lab->images = open(lab->images_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(lab->images >= 0);
	assert_int_equal(pipe2(to, O_CLOEXEC), 0);
	assert_int_equal(pipe2(from, O_CLOEXEC), 0);
	lab->child = fork();
	assert_true(lab->child >= 0);
	if (lab->child == 0) {
		int in = fcntl(to[0], F_DUPFD, 1000), out = fcntl(from[1], F_DUPFD, 1001);
		int null = open("/dev/null", O_RDWR);

		if (in < 0 || out < 0 || null < 0 || chdir(lab->folder) < 0)
			_exit(1);
		for (int fd = 0; fd < 3; fd++)
			dup2(null, fd);
		syscall(SYS_close_range, 3, 999, 0);
		syscall(SYS_close_range, 1002, ~0u, 0);
		serve(act, arg, in, out);
	}
	close(to[0]);
	close(from[1]);
	lab->to_child = to[1];
	lab->from_child = from[0];
	assert_int_equal(read(lab->from_child, &k, 1), 1);
}

void fl_order(struct files_lab *lab, int order)
{
	uint8_t byte = (uint8_t)order;
	char k;

	assert_int_equal(write(lab->to_child, &byte, 1), 1);
	assert_int_equal(read(lab->from_child, &k, 1), 1);
}

void fl_stop(struct files_lab *lab)
{
	int status;

	assert_int_equal(kill(lab->child, SIGSTOP), 0);
	assert_int_equal(waitpid(lab->child, &status, WUNTRACED), lab->child);
	assert_true(WIFSTOPPED(status));
}

void fl_go(struct files_lab *lab)
{
	assert_int_equal(kill(lab->child, SIGCONT), 0);
}

static void free_images(struct files_lab *lab)
{
	for (size_t i = 0; i < lab->entry_count; i++)
		nat_files__file__free_unpacked(lab->entries[i], NULL);
	for (size_t i = 0; i < lab->fd_count; i++)
		nat_files__fdinfo__free_unpacked(lab->fds[i], NULL);
	lab->entry_count = lab->fd_count = 0;
}

void fl_end(struct files_lab *lab)
{
	if (!lab->folder[0])
		return;
	files_destroy(lab->files);
	if (lab->tree.arena)
		arena_destroy(lab->tree.arena);
	free_images(lab);
	if (lab->child > 0) {
		kill(lab->child, SIGKILL);
		waitpid(lab->child, NULL, 0);
	}
	close_fdp(&lab->to_child);
	close_fdp(&lab->from_child);
	close_fdp(&lab->images);
	if (remove_tree_at(AT_FDCWD, lab->folder) < 0)
		print_message("%s stays behind\n", lab->folder);
	*lab = (struct files_lab){ .images = -1 };
}

static long long line_of(const char *text, const char *key, int base)
{
	const char *at = strstr(text, key);

	return at ? strtoll(at + strlen(key), NULL, base) : 0;
}

/* An identity for the struct file: the first descriptor that shows it. */
static uint64_t identity(const struct files_lab *lab, pid_t pid, const struct state_fd *own,
			 size_t own_count, const struct state_fd *fd)
{
	for (size_t t = 0; t < lab->tree.task_count; t++) {
		const struct native_task *task = &lab->tasks[t];
		const struct state_fd *fds = task->pid == pid ? own : task->fds;
		size_t count = task->pid == pid ? own_count : task->fd_count;

		for (size_t i = 0; i < count; i++)
			if (fds[i].ino == fd->ino && fds[i].dev == fd->dev &&
			    syscall(SYS_kcmp, pid, task->pid, KCMP_FILE, fd->fd, fds[i].fd) == 0)
				return fds[i].file;
	}
	return ((uint64_t)pid << 32 | (uint32_t)fd->fd) << 8;
}

static void read_owner(pid_t pid, struct state_fd *fd)
{
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	_cleanup_close_ int own = (int)syscall(SYS_pidfd_getfd, pidfd, fd->fd, 0);
	struct f_owner_ex owner;

	if (fd->f_flags & O_PATH)
		return;
	assert_true(own >= 0);
	fd->owner_signum = fcntl(own, F_GETSIG);
	if (fcntl(own, F_GETOWN_EX, &owner) == 0) {
		fd->owner_pid = owner.pid;
		fd->owner_type = (uint32_t)owner.type;
	}
}

static void read_fd(struct files_lab *lab, pid_t pid, int number, const struct state_fd *others,
		    size_t count, struct state_fd *fd)
{
	char path[64], *text;
	struct stat st;
	size_t size;
	ssize_t n;

	*fd = (struct state_fd){ .fd = number };
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", pid, number);
	assert_int_equal(read_file_at(AT_FDCWD, path, 1 << 20, &text, &size), 0);
	fd->pos = (uint64_t)line_of(text, "pos:\t", 10);
	fd->f_flags = (uint32_t)line_of(text, "flags:\t", 8);
	fd->cloexec = !!(fd->f_flags & KERNEL_O_CLOEXEC);
	fd->f_flags &= ~(uint32_t)KERNEL_O_CLOEXEC;
	fd->mnt_id = (uint32_t)line_of(text, "mnt_id:\t", 10);
	free(text);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, number);
	assert_int_equal(stat(path, &st), 0);
	n = readlink(path, fd->path, sizeof(fd->path) - 1);
	assert_true(n > 0);
	fd->path[n] = '\0';
	fd->ino = st.st_ino;
	fd->dev = major(st.st_dev) << 20 | minor(st.st_dev);
	fd->rdev = major(st.st_rdev) << 20 | minor(st.st_rdev);
	fd->mode = st.st_mode;
	fd->nlink = (uint32_t)st.st_nlink;
	fd->size = (uint64_t)st.st_size;
	fd->f_mode = (fd->f_flags & O_ACCMODE ? 2 : 0) |
		     (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) || S_ISCHR(st.st_mode) ? 4 : 0);
	read_owner(pid, fd);
	fd->file = identity(lab, pid, others, count, fd);
}

static void read_fds(struct files_lab *lab, struct native_task *task)
{
	struct state_fd *fds = arena_alloc(lab->tree.arena, 256 * sizeof(*fds));
	char path[64];
	struct stat st;
	size_t count = 0;

	assert_non_null(fds);
	/* The two of the lab itself lie above. */
	for (int fd = 0; fd < 1000; fd++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", task->pid, fd);
		if (lstat(path, &st) < 0)
			continue;
		assert_true(count < 256);
		read_fd(lab, task->pid, fd, fds, count, &fds[count]);
		count++;
	}
	task->fds = fds;
	task->fd_count = count;
}

static void read_vma(pid_t pid, const char *line, struct state_vma *v)
{
	unsigned int major_number, minor_number;
	unsigned long long start, end, offset, ino;
	char prot[5], link[96];
	struct stat st;
	int at = 0;

	*v = (struct state_vma){ 0 };
	assert_int_equal(sscanf(line, "%llx-%llx %4s %llx %x:%x %llu %n", &start, &end, prot,
				&offset, &major_number, &minor_number, &ino, &at),
			 7);
	v->start = start;
	v->end = end;
	v->offset = offset;
	v->vm_flags = (prot[0] == 'r' ? 1 : 0) | (prot[1] == 'w' ? 2 | 0x20 : 0) |
		      (prot[2] == 'x' ? 4 : 0) | (prot[3] == 's' ? 8 : 0);
	if (line[at] != '/')
		return;
	v->ino = ino;
	v->dev = major_number << 20 | minor_number;
	snprintf(v->path, sizeof(v->path), "%s", line + at);
	v->path[strcspn(v->path, "\n")] = '\0';
	v->file = ino << 32 | v->dev;
	snprintf(link, sizeof(link), "/proc/%d/map_files/%llx-%llx", pid, start, end);
	if (stat(link, &st) == 0) {
		v->mode = st.st_mode;
		v->nlink = (uint32_t)st.st_nlink;
		v->size = (uint64_t)st.st_size;
	}
}

static void read_vmas(struct files_lab *lab, struct native_task *task)
{
	_cleanup_free_ char *line = NULL;
	_cleanup_fclose_ FILE *f = NULL;
	struct state_vma *vmas = arena_alloc(lab->tree.arena, 1024 * sizeof(*vmas));
	char path[64];
	size_t size = 0, count = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", task->pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_non_null(vmas);
	while (getline(&line, &size, f) > 0 && count < 1024)
		read_vma(task->pid, line, &vmas[count++]);
	task->vmas = vmas;
	task->vma_count = count;
}

static void read_link(pid_t pid, const char *word, char path[STATE_PATH_MAX])
{
	char link[64];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/%d/%s", pid, word);
	n = readlink(link, path, STATE_PATH_MAX - 1);
	assert_true(n > 0);
	path[n] = '\0';
}

void fl_add_task(struct files_lab *lab, pid_t pid)
{
	struct native_task *task = &lab->tasks[lab->tree.task_count];
	struct state_process *p;

	if (!lab->tree.arena)
		assert_int_equal(arena_create(8 << 20, &lab->tree.arena), 0);
	assert_true(lab->tree.task_count < LAB_TASKS_MAX);
	lab->tree.tasks = lab->tasks;
	lab->tree.images = lab->images;
	lab->tree.reason = lab->reason;
	lab->tree.root = lab->tasks[0].pid;
	p = arena_alloc(lab->tree.arena, sizeof(*p));
	assert_non_null(p);
	p->umask = 022;
	p->pgid = p->sid = p->pid = pid;
	read_link(pid, "exe", p->exe);
	read_link(pid, "cwd", p->cwd);
	read_link(pid, "root", p->root);
	*task = (struct native_task){ .pid = pid, .inner_pid = pid, .state = p };
	lab->tree.task_count++;
	task->vm_id = task->files_id = task->fs_id = task->sighand_id =
		(uint32_t)lab->tree.task_count;
	read_fds(lab, task);
	read_vmas(lab, task);
}

int fl_collect(struct files_lab *lab)
{
	if (lab->tree.task_count == 0) {
		fl_stop(lab);
		fl_add_task(lab, lab->child);
	}
	return files_collect(&lab->tree, NULL, &lab->files);
}

int fl_write(struct files_lab *lab)
{
	int r = files_write(lab->files);

	if (r == 0)
		fl_read_images(lab);
	return r;
}

void fl_take(struct files_lab *lab)
{
	int r = fl_collect(lab);

	if (r == 0) {
		fl_go(lab);
		r = fl_write(lab);
	}
	if (r < 0)
		print_message("%s\n", lab->reason);
	assert_int_equal(r, 0);
}

uint8_t *fl_read_file(const struct files_lab *lab, const char *name, size_t *ret_size)
{
	char file[64], *text;

	snprintf(file, sizeof(file), "%s.img", name);
	if (read_file_at(lab->images, file, 256 << 20, &text, ret_size) < 0)
		return NULL;
	return (uint8_t *)text;
}

size_t fl_read_image(const struct files_lab *lab, const char *name,
		     const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret_messages,
		     size_t room)
{
	size_t size, at = 8, count = 0;
	_cleanup_free_ uint8_t *bytes = fl_read_file(lab, name, &size);

	while (bytes && at < size) {
		uint32_t length;

		assert_true(count < room && size - at >= 4);
		memcpy(&length, bytes + at, 4);
		at += 4;
		assert_true(length <= size - at);
		ret_messages[count] = protobuf_c_message_unpack(type, NULL, length, bytes + at);
		assert_non_null(ret_messages[count]);
		count++;
		at += length;
	}
	return count;
}

void fl_read_images(struct files_lab *lab)
{
	free_images(lab);
	lab->entry_count = fl_read_image(lab, "files", &nat_files__file__descriptor,
					 (ProtobufCMessage **)lab->entries, LAB_FILES_MAX);
	lab->fd_count = fl_read_image(lab, "fdinfo-1", &nat_files__fdinfo__descriptor,
				      (ProtobufCMessage **)lab->fds, LAB_FILES_MAX);
}

const NatFiles__File *fl_file_by_id(const struct files_lab *lab, uint32_t id)
{
	for (size_t i = 0; i < lab->entry_count; i++)
		if (lab->entries[i]->id == id)
			return lab->entries[i];
	return NULL;
}

const NatFiles__File *fl_file_of_fd(const struct files_lab *lab, int fd)
{
	for (size_t i = 0; i < lab->fd_count; i++) {
		if (lab->fds[i]->fd != (uint32_t)fd)
			continue;
		const NatFiles__File *file = fl_file_by_id(lab, lab->fds[i]->id);

		assert_non_null(file);
		assert_int_equal(file->type, lab->fds[i]->type);
		return file;
	}
	return NULL;
}
