// SPDX-License-Identifier: LGPL-2.1-or-later
#include "store_disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FILES_MAX = 128, NAMES_MAX = 1024, SECTOR = 512, PATH_SIZE = 200 };

enum change_kind { CHANGE_WRITE, CHANGE_TRUNCATE, CHANGE_PUNCH };

/* Of a file's content since its last sync. */
struct change {
	struct change *next;
	enum change_kind kind;
	uint64_t offset, size;
	uint8_t bytes[];
};

struct content {
	ino_t ino;
	uint8_t *bytes; /* durable */
	uint64_t size;
	struct change *changes, **tail;
};

enum name_kind { NAME_FILE, NAME_FOLDER, NAME_REMOVE, NAME_RENAME };

struct name {
	enum name_kind kind;
	int file;  /* of NAME_FILE */
	bool done; /* synced */
	char path[PATH_SIZE], new_path[PATH_SIZE];
};

static struct {
	struct disk_plan plan;
	bool armed, failing;
	int exit_code;
	uint32_t calls;
	uint64_t random;
	char root[PATH_SIZE], after[PATH_SIZE];
	struct content files[FILES_MAX];
	int file_count;
	struct name tree[NAMES_MAX]; /* durable: files and folders */
	int tree_count;
	struct name changes[NAMES_MAX]; /* of names, since then */
	int change_count;
} disk;

static void must(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "disk: %s: %s\n", what, strerror(errno));
	abort();
}

static uint32_t draw(uint32_t below)
{
	disk.random ^= disk.random << 13;
	disk.random ^= disk.random >> 7;
	disk.random ^= disk.random << 17;
	return (uint32_t)((disk.random >> 20) % below);
}

/* Below root; false: not of the store, or of nobody's concern after a crash. */
static bool path_of(int fd, char path[static PATH_SIZE])
{
	char link[64], found[PATH_SIZE * 2];
	size_t root = strlen(disk.root);
	ssize_t size;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	size = readlink(link, found, sizeof(found) - 1);
	must(size > 0, "readlink");
	found[size] = '\0';
	if (strncmp(found, disk.root, root) != 0 || (found[root] && found[root] != '/'))
		return false;
	must(strlen(found) - root < PATH_SIZE, "path");
	strcpy(path, found[root] ? found + root + 1 : "");
	return true;
}

static bool join(int dirfd, const char *name, char path[static PATH_SIZE])
{
	char folder[PATH_SIZE];

	if (!path_of(dirfd, folder))
		return false;
	if (!strcmp(name, "."))
		name = "";
	must(snprintf(path, PATH_SIZE, "%s%s%s", folder, folder[0] && name[0] ? "/" : "", name) <
		     PATH_SIZE,
	     "path");
	return true;
}

/* --- contents ---------------------------------------------------------------------------- */

static int content_of(int fd)
{
	struct stat st;

	must(fstat(fd, &st) == 0, "fstat");
	for (int i = 0; i < disk.file_count; i++)
		if (disk.files[i].ino == st.st_ino)
			return i;
	must(disk.file_count < FILES_MAX, "files");
	disk.files[disk.file_count] = (struct content){ .ino = st.st_ino };
	disk.files[disk.file_count].tail = &disk.files[disk.file_count].changes;
	return disk.file_count++;
}

static void resize(struct content *content, uint64_t size)
{
	if (size > content->size) {
		content->bytes = realloc(content->bytes, size);
		must(content->bytes, "memory");
		memset(content->bytes + content->size, 0, size - content->size);
	}
	content->size = size;
}

static void apply(struct content *content, const struct change *change, bool torn)
{
	if (change->kind == CHANGE_TRUNCATE) {
		resize(content, change->size);
	} else if (change->kind == CHANGE_PUNCH) {
		if (change->offset >= content->size)
			return;
		memset(content->bytes + change->offset, 0,
		       change->size < content->size - change->offset ?
			       change->size :
			       content->size - change->offset);
	} else {
		if (change->offset + change->size > content->size)
			resize(content, change->offset + change->size);
		for (uint64_t at = 0; at < change->size;) {
			uint64_t part = SECTOR - (change->offset + at) % SECTOR;

			if (part > change->size - at)
				part = change->size - at;
			if (!torn || draw(2))
				memcpy(content->bytes + change->offset + at, change->bytes + at,
				       part);
			at += part;
		}
	}
}

static void add_change(int file, enum change_kind kind, uint64_t offset, uint64_t size,
		       const void *bytes)
{
	struct change *change = calloc(1, sizeof(*change) + (bytes ? size : 0));

	must(change, "memory");
	change->kind = kind;
	change->offset = offset;
	change->size = size;
	if (bytes)
		memcpy(change->bytes, bytes, size);
	*disk.files[file].tail = change;
	disk.files[file].tail = &change->next;
}

/* A sync that failed (lost) is no promise: the kernel may have dropped any of it, for good. */
static void settle(int file, bool lost)
{
	struct content *content = &disk.files[file];

	while (content->changes) {
		struct change *change = content->changes;
		uint32_t fate = lost ? draw(3) : 1;

		content->changes = change->next;
		if (fate > 0)
			apply(content, change, fate == 2);
		free(change);
	}
	content->tail = &content->changes;
}

/* This write alone is on the disk; those before are not for its sake. */
static void settle_last(int file)
{
	struct content *content = &disk.files[file];
	struct change **at = &content->changes;

	while ((*at)->next)
		at = &(*at)->next;
	apply(content, *at, false);
	free(*at);
	*at = NULL;
	content->tail = at;
}

/* --- names ------------------------------------------------------------------------------- */

static int find_name(const char *path)
{
	for (int i = 0; i < disk.tree_count; i++)
		if (!strcmp(disk.tree[i].path, path))
			return i;
	return -1;
}

static void remove_name(const char *path)
{
	int at = find_name(path);

	if (at >= 0)
		disk.tree[at] = disk.tree[--disk.tree_count];
}

static void name_apply(const struct name *change)
{
	int at;

	switch (change->kind) {
	case NAME_FILE:
	case NAME_FOLDER:
		remove_name(change->path);
		must(disk.tree_count < NAMES_MAX, "names");
		disk.tree[disk.tree_count++] = *change;
		break;
	case NAME_REMOVE:
		remove_name(change->path);
		break;
	case NAME_RENAME:
		at = find_name(change->path);
		if (at < 0)
			break;
		remove_name(change->new_path);
		at = find_name(change->path);
		strcpy(disk.tree[at].path, change->new_path);
	}
}

static void add_name(enum name_kind kind, int file, const char *path, const char *new_path)
{
	struct name *change = &disk.changes[disk.change_count++];

	must(disk.change_count < NAMES_MAX, "changes of names");
	*change = (struct name){ .kind = kind, .file = file };
	strcpy(change->path, path);
	strcpy(change->new_path, new_path);
}

static bool is_in(const char *folder, const char *path)
{
	size_t size = strlen(folder);

	if (size && (strncmp(path, folder, size) != 0 || path[size] != '/'))
		return false;
	return strchr(path + size + (size > 0), '/') == NULL;
}

static void settle_folder(const char *folder)
{
	for (int i = 0; i < disk.change_count; i++) {
		struct name *change = &disk.changes[i];

		if (change->done ||
		    (!is_in(folder, change->path) &&
		     (change->kind != NAME_RENAME || !is_in(folder, change->new_path))))
			continue;
		name_apply(change);
		change->done = true;
	}
}

/* --- the cut ----------------------------------------------------------------------------- */

/* A folder's journal is mostly written in order; mostly. */
static void cut_names(void)
{
	bool in_order = draw(2);
	int upto = disk.change_count ? (int)draw((uint32_t)disk.change_count + 1) : 0;

	for (int i = 0; i < disk.change_count; i++)
		if (!disk.changes[i].done && (in_order ? i < upto : draw(2)))
			name_apply(&disk.changes[i]);
}

static int depth_order(const void *a, const void *b)
{
	const struct name *x = a, *y = b;

	return (int)strlen(x->path) - (int)strlen(y->path);
}

static void write_file(const char *path, const struct content *content)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	size_t done = 0;

	/* Its folder's name is not on the disk: neither is this. */
	if (fd < 0 && (errno == ENOENT || errno == EISDIR))
		return;
	must(fd >= 0, path);
	while (done < content->size) {
		ssize_t count = syscall(SYS_pwrite64, fd, content->bytes + done,
					content->size - done, done);

		must(count > 0, "write");
		done += (size_t)count;
	}
	close(fd);
}

static void cut(void)
{
	disk.armed = false;
	cut_names();
	for (int i = 0; i < disk.file_count; i++)
		settle(i, true);
	must(mkdir(disk.after, 0700) == 0, disk.after);
	qsort(disk.tree, (size_t)disk.tree_count, sizeof(disk.tree[0]), depth_order);
	for (int i = 0; i < disk.tree_count; i++) {
		char path[2 * PATH_SIZE + 2];

		snprintf(path, sizeof(path), "%s/%s", disk.after, disk.tree[i].path);
		if (disk.tree[i].kind == NAME_FOLDER)
			must(mkdir(path, 0700) == 0 || errno == ENOENT || errno == EEXIST, path);
		else
			write_file(path, &disk.files[disk.tree[i].file]);
	}
	_exit(disk.exit_code);
}

/* --- arming ------------------------------------------------------------------------------ */

static int note_existing(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	const char *below = path + strlen(disk.root);
	struct name name = { .kind = type == FTW_D ? NAME_FOLDER : NAME_FILE };
	struct content *content;
	int fd;

	(void)ftw;
	if (!below[0] || strstr(path, "lock.mdb") || strstr(path, "store-lock"))
		return 0;
	strcpy(name.path, below + 1);
	if (type == FTW_F) {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		must(fd >= 0, path);
		name.file = content_of(fd);
		content = &disk.files[name.file];
		resize(content, (uint64_t)st->st_size);
		for (uint64_t done = 0; done < content->size;) {
			ssize_t count =
				pread(fd, content->bytes + done, content->size - done, (off_t)done);

			must(count > 0, "read");
			done += (uint64_t)count;
		}
		close(fd);
	}
	name_apply(&name);
	return 0;
}

void disk_arm(const char *root, const char *after, const struct disk_plan *plan, int exit_code)
{
	strcpy(disk.root, root);
	strcpy(disk.after, after);
	disk.plan = *plan;
	disk.exit_code = exit_code;
	disk.random = (plan->seed + 1) * UINT64_C(0x9e3779b97f4a7c15) + plan->at;
	must(nftw(root, note_existing, 16, FTW_PHYS) == 0, "nftw");
	disk.armed = true;
}

uint32_t disk_calls(void)
{
	return disk.calls;
}

void disk_end(void)
{
	if (disk.plan.cut_at_end)
		cut();
	disk.armed = false;
}

/* --- one call ---------------------------------------------------------------------------- */

/* 0: go on. DISK_CUT is for the caller, who knows what was on its way. */
static int count_call(bool needs_room, bool *ret_cut, bool *ret_short)
{
	bool now = ++disk.calls == disk.plan.at;

	*ret_cut = *ret_short = false;
	switch (disk.plan.fault) {
	case DISK_EIO:
		return now ? -EIO : 0;
	case DISK_ENOSPC:
		return now && needs_room ? -ENOSPC : 0;
	case DISK_SHORT:
		*ret_short = now;
		return 0;
	case DISK_EIO_ON:
		disk.failing |= now;
		return disk.failing ? -EIO : 0;
	case DISK_ENOSPC_ON:
		disk.failing |= now;
		return disk.failing && needs_room ? -ENOSPC : 0;
	case DISK_LATE:
		return disk.calls == disk.plan.at + 1 ? -EIO : 0;
	case DISK_KILL:
		if (now)
			kill(getpid(), SIGKILL);
		return 0;
	case DISK_CUT:
		*ret_cut = now;
		return 0;
	default:
		return 0;
	}
}

/* Of a call that was done: what it says. */
static ssize_t answer(ssize_t r)
{
	return disk.plan.fault == DISK_LATE && disk.calls == disk.plan.at ? -EIO : r;
}

static int simple_call(bool needs_room)
{
	bool is_cut, is_short;
	int r = count_call(needs_room, &is_cut, &is_short);

	if (is_cut)
		cut();
	return r;
}

static int fault_openat(void *ctx, int dirfd, const char *name, int flags, mode_t mode)
{
	bool known = disk.armed, fresh;
	char path[PATH_SIZE];
	struct stat st;
	int fd, r;

	(void)ctx;
	if (!known)
		return store_io_disk.openat(NULL, dirfd, name, flags, mode);
	r = simple_call(flags & O_CREAT);
	if (r < 0)
		return r;
	fresh = (flags & O_CREAT) && fstatat(dirfd, name, &st, 0) < 0;
	fd = store_io_disk.openat(NULL, dirfd, name, flags, mode);
	if (fd < 0 || !join(dirfd, name, path))
		return fd;
	if (fresh)
		add_name(NAME_FILE, content_of(fd), path, "");
	else if (flags & O_TRUNC)
		add_change(content_of(fd), CHANGE_TRUNCATE, 0, 0, NULL);
	return fd;
}

static ssize_t fault_pread(void *ctx, int fd, void *bytes, size_t size, uint64_t offset)
{
	int r = disk.armed ? simple_call(false) : 0;

	(void)ctx;
	return r < 0 ? r : store_io_disk.pread(NULL, fd, bytes, size, offset);
}

static ssize_t raw_pwrite(int fd, const void *bytes, size_t size, uint64_t offset)
{
	ssize_t count = syscall(SYS_pwrite64, fd, bytes, size, offset);

	return count < 0 ? -errno : count;
}

static ssize_t write_call(int fd, const void *bytes, size_t size, uint64_t offset)
{
	bool is_cut, is_short, is_sync = fcntl(fd, F_GETFL) & O_DSYNC;
	int file = content_of(fd), r = count_call(true, &is_cut, &is_short);

	if (r < 0)
		return r;
	if (is_short && size > 1)
		size /= 2;
	add_change(file, CHANGE_WRITE, offset, size, bytes);
	if (is_cut)
		cut();
	if (is_sync)
		settle_last(file);
	return answer(raw_pwrite(fd, bytes, size, offset));
}

static ssize_t fault_pwrite(void *ctx, int fd, const void *bytes, size_t size, uint64_t offset)
{
	(void)ctx;
	return disk.armed ? write_call(fd, bytes, size, offset) :
			    raw_pwrite(fd, bytes, size, offset);
}

static int sync_call(int fd)
{
	char path[PATH_SIZE];
	struct stat st;
	int r;

	if (!disk.armed)
		return 0;
	r = simple_call(true);
	if (!path_of(fd, path))
		return r;
	must(fstat(fd, &st) == 0, "fstat");
	if (S_ISDIR(st.st_mode)) {
		if (r == 0)
			settle_folder(path);
	} else {
		settle(content_of(fd), r < 0);
	}
	return (int)answer(r);
}

static int fault_sync(void *ctx, int fd)
{
	(void)ctx;
	return sync_call(fd);
}

static int fault_ftruncate(void *ctx, int fd, uint64_t size)
{
	int r = disk.armed ? simple_call(false) : 0;

	(void)ctx;
	if (r < 0)
		return r;
	if (disk.armed)
		add_change(content_of(fd), CHANGE_TRUNCATE, 0, size, NULL);
	return store_io_disk.ftruncate(NULL, fd, size);
}

static int fault_punch(void *ctx, int fd, uint64_t offset, uint64_t size)
{
	int r = disk.armed ? simple_call(false) : 0;

	(void)ctx;
	if (r < 0)
		return r;
	if (disk.armed)
		add_change(content_of(fd), CHANGE_PUNCH, offset, size, NULL);
	return store_io_disk.punch(NULL, fd, offset, size);
}

static int fault_renameat(void *ctx, int old_dirfd, const char *old_name, int dirfd,
			  const char *name)
{
	int r = disk.armed ? simple_call(true) : 0;
	char path[PATH_SIZE], new_path[PATH_SIZE];

	(void)ctx;
	if (r == 0)
		r = store_io_disk.renameat(NULL, old_dirfd, old_name, dirfd, name);
	if (r == 0 && disk.armed && join(old_dirfd, old_name, path) && join(dirfd, name, new_path))
		add_name(NAME_RENAME, 0, path, new_path);
	return disk.armed ? (int)answer(r) : r;
}

static int fault_unlinkat(void *ctx, int dirfd, const char *name, int flags)
{
	int r = disk.armed ? simple_call(false) : 0;
	char path[PATH_SIZE];

	(void)ctx;
	if (r == 0)
		r = store_io_disk.unlinkat(NULL, dirfd, name, flags);
	if (r == 0 && disk.armed && join(dirfd, name, path))
		add_name(NAME_REMOVE, 0, path, "");
	return disk.armed ? (int)answer(r) : r;
}

static int fault_mkdirat(void *ctx, int dirfd, const char *name, mode_t mode)
{
	int r = disk.armed ? simple_call(true) : 0;
	char path[PATH_SIZE];

	(void)ctx;
	if (r == 0)
		r = store_io_disk.mkdirat(NULL, dirfd, name, mode);
	if (r == 0 && disk.armed && join(dirfd, name, path))
		add_name(NAME_FOLDER, 0, path, "");
	return r;
}

static int fault_free_bytes(void *ctx, int fd, uint64_t *ret_bytes)
{
	int r = disk.armed ? simple_call(false) : 0;

	(void)ctx;
	return r < 0 ? r : store_io_disk.free_bytes(NULL, fd, ret_bytes);
}

const struct store_io *disk_io(void)
{
	static const struct store_io io = {
		.openat = fault_openat,
		.pread = fault_pread,
		.pwrite = fault_pwrite,
		.fsync = fault_sync,
		.fdatasync = fault_sync,
		.ftruncate = fault_ftruncate,
		.punch = fault_punch,
		.renameat = fault_renameat,
		.unlinkat = fault_unlinkat,
		.mkdirat = fault_mkdirat,
		.free_bytes = fault_free_bytes,
	};

	return &io;
}

/* --- LMDB -------------------------------------------------------------------------------- */

static bool is_lmdb(int fd)
{
	char path[PATH_SIZE];
	size_t size;

	if (!disk.armed || !path_of(fd, path))
		return false;
	size = strlen(path);
	if (size < 8 || strcmp(path + size - 8, "data.mdb") != 0)
		return false;
	/* It makes its file by a call that nobody sees. */
	if (find_name(path) < 0) {
		for (int i = 0; i < disk.change_count; i++)
			if (!strcmp(disk.changes[i].path, path))
				return true;
		add_name(NAME_FILE, content_of(fd), path, "");
	}
	return true;
}

static ssize_t or_minus_one(ssize_t r)
{
	if (r >= 0)
		return r;
	errno = (int)-r;
	return -1;
}

ssize_t disk_lmdb_pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
	if (!is_lmdb(fd))
		return or_minus_one(raw_pwrite(fd, bytes, size, (uint64_t)offset));
	return or_minus_one(write_call(fd, bytes, size, (uint64_t)offset));
}

ssize_t disk_lmdb_writev(int fd, const struct iovec *parts, int count)
{
	off_t offset = is_lmdb(fd) ? lseek(fd, 0, SEEK_CUR) : -1;
	ssize_t total = 0;

	if (offset < 0)
		return syscall(SYS_writev, fd, parts, count);
	for (int i = 0; i < count; i++) {
		ssize_t done = write_call(fd, parts[i].iov_base, parts[i].iov_len,
					  (uint64_t)(offset + total));

		if (done < 0)
			return or_minus_one(done);
		total += done;
		if ((size_t)done < parts[i].iov_len)
			break;
	}
	must(lseek(fd, offset + total, SEEK_SET) >= 0, "lseek");
	return total;
}

int disk_lmdb_fdatasync(int fd)
{
	return is_lmdb(fd) ? (int)or_minus_one(sync_call(fd)) : 0;
}
