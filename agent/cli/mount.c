// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * mount: kept checkpoints as read-only files, by FUSE, and writable folders below /folders. Parts of
 * a checkpoint are fetched, and verified by decampd, when they are read. Only who mounted it sees
 * it: the kernel keeps all others out, root included.
 *
 * Threading: one request at a time, but for fsync(2), which makes a version and may take minutes; that
 * is what the thread of folders.h does, too.
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fuse3/fuse.h>
#include <string.h>
#include <sys/statvfs.h>

#include "agent/cli/mount_work.h"
#include "agent/cli/version.h"

/* An open file; readers mostly go on where they were, so more is asked for than was wanted. */
struct handle {
	struct tree_node node;
	struct chunk_table table; /* of a version's file */
	struct stat st;		  /* as it was opened; what it shows never changes */
	uint64_t size, at, next;  /* next: where a reader goes on that goes straight */
	size_t have;
	uint8_t *bytes; /* [at, at + have) of it */
	bool is_work;
	struct work_file work; /* of a working copy: then there is nothing of the above */
};

enum { SYNCS_MAX = 8 }; /* at one time; the library has ten threads */

struct mount {
	pthread_mutex_t lock; /* one request at a time; guards the rest */
	pthread_cond_t synced;
	struct sync {
		const struct worktree *work; /* NULL: free */
		uint64_t ino;		     /* 0: a folder */
	} syncs[SYNCS_MAX];		     /* under way, without the lock */
	struct tree tree;
	struct folders folders;
};

static struct mount *this_mount(void)
{
	return fuse_get_context()->private_data;
}

static struct tree *tree_of_mount(void)
{
	return &this_mount()->tree;
}

static struct handle *handle_of(const struct fuse_file_info *info)
{
	return (struct handle *)(uintptr_t)info->fh;
}

static void *on_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
	(void)connection;
	config->entry_timeout = config->attr_timeout = 1;
	config->negative_timeout = 0;
	/* A file that is removed while it is open is no hidden one that versions would have. */
	config->hard_remove = 1;
	config->nullpath_ok = 1;
	if (folders_begin(&this_mount()->folders) < 0)
		cli_complain("mount", "no thread: new versions are made by fsync(2) only", NULL);
	return this_mount();
}

static void on_destroy(void *mount)
{
	folders_end(&((struct mount *)mount)->folders);
}

/* What is not the tree's: a node, or an error. */
static int find(const char *path, struct folders_node *ret_node)
{
	*ret_node = (struct folders_node){ .type = FOLDERS_NONE };
	return folders_is_below(path) ? folders_find(&this_mount()->folders, path, ret_node) : 0;
}

/* The node of the tree, or of a version. */
static int find_tree(const char *path, struct folders_node *n)
{
	int r = find(path, n);

	if (r == 0 && n->type == FOLDERS_NONE)
		r = tree_find(tree_of_mount(), path, &n->node);
	return r;
}

/* Of what is to be changed: a working copy's. */
static int find_work(const char *path, struct folders_node *ret_node)
{
	int r = find(path, ret_node);

	if (r == 0 && ret_node->type != FOLDERS_WORK) {
		tree_release(tree_of_mount(), &ret_node->node);
		r = -EROFS;
	}
	return r;
}

static void stat_made(const struct folders_node *n, struct stat *ret_stat)
{
	*ret_stat = (struct stat){ .st_uid = getuid(), .st_gid = getgid(), .st_nlink = 1 };
	ret_stat->st_mode = n->type == FOLDERS_LINK ? S_IFLNK | 0777 : S_IFDIR | 0500;
}

static int on_getattr(const char *path, struct stat *st, struct fuse_file_info *info)
{
	struct folders_node n;
	int r;

	if (info && handle_of(info)->is_work)
		return fstat(handle_of(info)->work.fd, st) < 0 ? -errno : 0;
	if (info) { /* an open file has no path any more, see on_init() */
		*st = handle_of(info)->st;
		return 0;
	}
	if (!strcmp(path, "/")) { /* the way to the folders, with or without decampd */
		stat_made(&(struct folders_node){ .type = FOLDERS_ROOT }, st);
		return 0;
	}
	r = find_tree(path, &n);
	if (r < 0)
		return r;
	if (n.type == FOLDERS_WORK)
		return work_stat(&n, st);
	if (n.type != FOLDERS_NONE && n.type != FOLDERS_VERSION) {
		stat_made(&n, st);
		return 0;
	}
	if (n.node.type == TREE_CORE)
		r = tree_make_core(&n.node);
	if (r == 0)
		tree_stat(&n.node, st);
	tree_release(tree_of_mount(), &n.node);
	/* A process of which no core can be made is still listed. */
	return r == -EOPNOTSUPP ? -EIO : r;
}

static int read_work_link(const struct folders_node *n, char *text, size_t size)
{
	ssize_t length = readlinkat(n->work->tree_fd, n->path, text, size - 1);

	if (length < 0)
		return -errno;
	text[length] = '\0';
	return 0;
}

static int on_readlink(const char *path, char *text, size_t size)
{
	struct folders_node n;
	int r = find_tree(path, &n);

	if (r < 0)
		return r;
	if (n.type == FOLDERS_WORK)
		return read_work_link(&n, text, size);
	if (n.type == FOLDERS_LINK)
		snprintf(text, size, "%s@%lld", n.row->name, (long long)n.row->seq);
	else if (n.node.type == TREE_LATEST)
		snprintf(text, size, "%lld", (long long)n.node.job->kept[0].seq);
	else if (n.node.type == TREE_LINK)
		snprintf(text, size, "%s", n.node.file->target);
	else
		r = -EINVAL;
	tree_release(tree_of_mount(), &n.node);
	return r;
}

struct listing {
	void *buffer;
	fuse_fill_dir_t fill;
};

static void add_entry(void *ctx, const char *name)
{
	struct listing *l = ctx;

	(void)l->fill(l->buffer, name, NULL, 0, 0);
}

static int list(const char *path, struct listing *l)
{
	struct folders *f = &this_mount()->folders;
	struct folders_node n;
	int r = find_tree(path, &n);

	if (r < 0)
		return r;
	add_entry(l, ".");
	add_entry(l, "..");
	if (n.type == FOLDERS_ROOT)
		return folders_list(f, add_entry, l);
	if (n.type == FOLDERS_WORK)
		return folders_list_work(&n, add_entry, l);
	if (n.type == FOLDERS_NONE && n.node.type == TREE_ROOT)
		add_entry(l, "folders");
	if (n.type == FOLDERS_NONE || n.type == FOLDERS_VERSION)
		r = tree_list(tree_of_mount(), &n.node, add_entry, l);
	tree_release(tree_of_mount(), &n.node);
	return n.type == FOLDERS_LINK ? -ENOTDIR : r;
}

static int on_opendir(const char *path, struct fuse_file_info *info)
{
	char *copy = strdup(path);

	info->fh = (uint64_t)(uintptr_t)copy;
	return copy ? 0 : -ENOMEM;
}

static int on_releasedir(const char *path, struct fuse_file_info *info)
{
	(void)path;
	free((char *)(uintptr_t)info->fh);
	return 0;
}

static int on_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
		      struct fuse_file_info *info, enum fuse_readdir_flags flags)
{
	struct listing l = { buffer, fill };

	(void)path;
	(void)offset;
	(void)flags;
	return list((const char *)(uintptr_t)info->fh, &l);
}

static int open_node(struct handle *h)
{
	int r = h->node.type == TREE_CORE ? tree_make_core(&h->node) : 0;

	if (r == 0 && h->node.type != TREE_FILE && h->node.type != TREE_CORE)
		r = -EISDIR;
	if (r == 0 && h->node.type == TREE_FILE)
		r = version_table(&h->node.view->checkpoint.set, h->node.file, &h->table);
	if (r < 0)
		return r;
	tree_stat(&h->node, &h->st);
	h->size = (uint64_t)h->st.st_size;
	return 0;
}

static int open_any(const char *path, int flags, mode_t mode, struct fuse_file_info *info)
{
	struct folders_node n;
	struct handle *h;
	int r = find_tree(path, &n);

	if (r < 0)
		return r;
	h = calloc(1, sizeof(*h));
	if (!h)
		r = -ENOMEM;
	else if (n.type == FOLDERS_WORK)
		r = work_open(&n, flags, mode, &h->work);
	else if ((flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT)
		r = -EROFS;
	else
		h->node = n.node, r = open_node(h);
	if (r < 0) {
		tree_release(tree_of_mount(), &n.node);
		free(h);
		return r;
	}
	h->is_work = n.type == FOLDERS_WORK;
	info->fh = (uint64_t)(uintptr_t)h;
	return 0;
}

static int on_open(const char *path, struct fuse_file_info *info)
{
	return open_any(path, info->flags & ~(O_CREAT | O_EXCL), 0, info);
}

static int on_create(const char *path, mode_t mode, struct fuse_file_info *info)
{
	struct folders_node n;
	int r = find_work(path, &n); /* what is not there yet is found all the same */

	return r < 0 ? r : open_any(path, info->flags | O_CREAT, mode, info);
}

static int on_release(const char *path, struct fuse_file_info *info)
{
	struct handle *h = handle_of(info);

	(void)path;
	if (h->is_work)
		work_close(&h->work);
	tree_release(tree_of_mount(), &h->node);
	chunk_table_deinit(&h->table);
	free(h->bytes);
	free(h);
	return 0;
}

static int read_node(struct handle *h, uint64_t offset, void *bytes, size_t size)
{
	if (h->table.count)
		return version_read(&h->node.view->checkpoint.set, h->node.file, &h->table, offset,
				    bytes, size);
	return tree_read(&h->node, offset, bytes, size);
}

static int read_ahead(struct handle *h, uint64_t offset)
{
	uint64_t n = h->size - offset < EXPORT_READ_MAX ? h->size - offset : EXPORT_READ_MAX;
	int r;

	if (!h->bytes)
		h->bytes = malloc(EXPORT_READ_MAX);
	if (!h->bytes)
		return -ENOMEM;
	h->have = 0;
	r = read_node(h, offset, h->bytes, (size_t)n);
	if (r == 0) {
		h->at = offset;
		h->have = (size_t)n;
	}
	return r;
}

static int on_read(const char *path, char *bytes, size_t size, off_t offset,
		   struct fuse_file_info *info)
{
	struct handle *h = handle_of(info);
	uint64_t at = (uint64_t)offset;
	bool straight = at == h->next, there;
	int r = 0;

	(void)path;
	if (h->is_work) {
		ssize_t n = pread(h->work.fd, bytes, size, offset);

		return n < 0 ? -errno : (int)n;
	}
	if (at >= h->size)
		return 0;
	if (size > h->size - at)
		size = (size_t)(h->size - at);
	there = h->have && at >= h->at && at + size <= h->at + h->have;
	if (!there && straight && size < EXPORT_READ_MAX) {
		r = read_ahead(h, at);
		there = true;
	}
	if (r == 0 && there)
		memcpy(bytes, h->bytes + (at - h->at), size);
	else if (r == 0)
		r = read_node(h, at, bytes, size);
	h->next = at + size;
	return r == 0 ? (int)size : r;
}

/* ---- changes: of working copies alone ---- */

/* Nobody waits for a version but who asked for it; but for those beyond the threads there are. */
static struct sync *leave_to_sync(struct mount *m, const struct worktree *work, uint64_t ino)
{
	for (size_t i = 0; i < SYNCS_MAX; i++) {
		if (m->syncs[i].work)
			continue;
		m->syncs[i] = (struct sync){ work, ino };
		pthread_mutex_unlock(&m->lock);
		return &m->syncs[i];
	}
	return NULL;
}

static void back_from_sync(struct mount *m, struct sync *sync)
{
	if (!sync)
		return;
	pthread_mutex_lock(&m->lock);
	sync->work = NULL;
	pthread_cond_broadcast(&m->synced);
}

/*
 * What fsync(2) sends must stand still, or it fails. The kernel holds back all that changes the file,
 * but for what was written into a mapping of it.
 */
static void wait_for_syncs(struct mount *m, const struct work_file *file)
{
	for (size_t i = 0; i < SYNCS_MAX; i++)
		while (m->syncs[i].work == file->work && m->syncs[i].ino == file->ino)
			pthread_cond_wait(&m->synced, &m->lock);
}

static int on_write(const char *path, const char *bytes, size_t size, off_t offset,
		    struct fuse_file_info *info)
{
	struct handle *h = handle_of(info);

	(void)path;
	if (!h->is_work)
		return -EROFS;
	wait_for_syncs(this_mount(), &h->work);
	return work_write(&h->work, bytes, size, offset);
}

/* The handle stays: the kernel lets go of it after the answer. */
static int on_fsync(const char *path, int data_only, struct fuse_file_info *info)
{
	struct mount *m = this_mount();
	struct work_file *file = &handle_of(info)->work;
	struct sync *sync;
	int r;

	(void)path;
	(void)data_only;
	if (!handle_of(info)->is_work)
		return 0;
	sync = leave_to_sync(m, file->work, file->ino);
	r = work_sync(file);
	back_from_sync(m, sync);
	return r;
}

static int on_fsyncdir(const char *path, int data_only, struct fuse_file_info *info)
{
	struct mount *m = this_mount();
	struct folders_node n;
	int r = find((const char *)(uintptr_t)info->fh, &n);
	struct sync *sync;

	(void)path;
	(void)data_only;
	if (r == 0 && n.type == FOLDERS_WORK) {
		sync = leave_to_sync(m, n.work, 0);
		r = worktree_commit(n.work, 0, true) < 0 ? -EIO : 0;
		back_from_sync(m, sync);
		return r;
	}
	tree_release(tree_of_mount(), &n.node);
	return r;
}

static int on_truncate(const char *path, off_t size, struct fuse_file_info *info)
{
	struct folders_node n;
	int r;

	if (info && handle_of(info)->is_work)
		return work_truncate(NULL, &handle_of(info)->work, size);
	r = path ? find_work(path, &n) : -ENOENT;
	return r < 0 ? r : work_truncate(&n, NULL, size);
}

static int on_mkdir(const char *path, mode_t mode)
{
	struct folders_node n;
	int r = find_work(path, &n);

	return r < 0 ? r : work_mkdir(&n, mode);
}

static int on_unlink(const char *path)
{
	struct folders_node n;
	int r = find_work(path, &n);

	return r < 0 ? r : work_unlink(&n, false);
}

static int on_rmdir(const char *path)
{
	struct folders_node n;
	int r = find_work(path, &n);

	return r < 0 ? r : work_unlink(&n, true);
}

static int on_symlink(const char *target, const char *path)
{
	struct folders_node n;
	int r = find_work(path, &n);

	return r < 0 ? r : work_symlink(target, &n);
}

static int on_rename(const char *from, const char *to, unsigned int flags)
{
	struct folders_node a, b;
	int r = find_work(from, &a);

	if (r == 0)
		r = find_work(to, &b);
	return r < 0 ? r : work_rename(&a, &b, flags);
}

static int on_chmod(const char *path, mode_t mode, struct fuse_file_info *info)
{
	struct folders_node n;
	int r = path ? find_work(path, &n) : -ENOENT;

	(void)info;
	return r < 0 ? r : work_chmod(&n, mode);
}

/* All of it is its user's. */
static int on_chown(const char *path, uid_t uid, gid_t gid, struct fuse_file_info *info)
{
	struct folders_node n;
	int r = path ? find_work(path, &n) : -ENOENT;

	(void)info;
	if (r < 0)
		return r;
	return (uid == (uid_t)-1 || uid == getuid()) && (gid == (gid_t)-1 || gid == getgid()) ?
		       0 :
		       -EPERM;
}

static int on_link(const char *from, const char *to)
{
	(void)from;
	(void)to;
	return -EPERM;
}

static int on_utimens(const char *path, const struct timespec times[2], struct fuse_file_info *info)
{
	struct folders_node n;
	int r;

	if (info && handle_of(info)->is_work)
		return futimens(handle_of(info)->work.fd, times) < 0 ? -errno : 0;
	r = path ? find_work(path, &n) : -ENOENT;
	return r < 0 ? r : work_times(&n, times);
}

/* Of the disk with the working copies. */
static int on_statfs(const char *path, struct statvfs *st)
{
	const struct folders *f = &this_mount()->folders;

	(void)path;
	*st = (struct statvfs){ .f_bsize = 4096, .f_frsize = 4096, .f_namemax = 255 };
	return f->work_count && fstatvfs(f->works[0]->tree_fd, st) < 0 ? -errno : 0;
}

#define SERVED(name, parameters, ...)                      \
	static int served_##name parameters                \
	{                                                  \
		int r;                                     \
                                                           \
		pthread_mutex_lock(&this_mount()->lock);   \
		r = on_##name(__VA_ARGS__);                \
		pthread_mutex_unlock(&this_mount()->lock); \
		return r;                                  \
	}

SERVED(getattr, (const char *path, struct stat *st, struct fuse_file_info *info), path, st, info)
SERVED(readlink, (const char *path, char *text, size_t size), path, text, size)
SERVED(opendir, (const char *path, struct fuse_file_info *info), path, info)
SERVED(readdir,
       (const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
	struct fuse_file_info *info, enum fuse_readdir_flags flags),
       path, buffer, fill, offset, info, flags)
SERVED(releasedir, (const char *path, struct fuse_file_info *info), path, info)
SERVED(open, (const char *path, struct fuse_file_info *info), path, info)
SERVED(create, (const char *path, mode_t mode, struct fuse_file_info *info), path, mode, info)
SERVED(read,
       (const char *path, char *bytes, size_t size, off_t offset, struct fuse_file_info *info),
       path, bytes, size, offset, info)
SERVED(write,
       (const char *path, const char *bytes, size_t size, off_t offset,
	struct fuse_file_info *info),
       path, bytes, size, offset, info)
SERVED(fsync, (const char *path, int data_only, struct fuse_file_info *info), path, data_only, info)
SERVED(fsyncdir, (const char *path, int data_only, struct fuse_file_info *info), path, data_only,
       info)
SERVED(truncate, (const char *path, off_t size, struct fuse_file_info *info), path, size, info)
SERVED(mkdir, (const char *path, mode_t mode), path, mode)
SERVED(unlink, (const char *path), path)
SERVED(rmdir, (const char *path), path)
SERVED(symlink, (const char *target, const char *path), target, path)
SERVED(rename, (const char *from, const char *to, unsigned int flags), from, to, flags)
SERVED(chmod, (const char *path, mode_t mode, struct fuse_file_info *info), path, mode, info)
SERVED(chown, (const char *path, uid_t uid, gid_t gid, struct fuse_file_info *info), path, uid, gid,
       info)
SERVED(link, (const char *from, const char *to), from, to)
SERVED(utimens, (const char *path, const struct timespec times[2], struct fuse_file_info *info),
       path, times, info)
SERVED(statfs, (const char *path, struct statvfs *st), path, st)
SERVED(release, (const char *path, struct fuse_file_info *info), path, info)

static const struct fuse_operations operations = {
	.init = on_init,
	.destroy = on_destroy,
	.getattr = served_getattr,
	.readlink = served_readlink,
	.opendir = served_opendir,
	.readdir = served_readdir,
	.releasedir = served_releasedir,
	.open = served_open,
	.create = served_create,
	.read = served_read,
	.write = served_write,
	.fsync = served_fsync,
	.fsyncdir = served_fsyncdir,
	.truncate = served_truncate,
	.mkdir = served_mkdir,
	.unlink = served_unlink,
	.rmdir = served_rmdir,
	.symlink = served_symlink,
	.rename = served_rename,
	.chmod = served_chmod,
	.chown = served_chown,
	.link = served_link,
	.utimens = served_utimens,
	.statfs = served_statfs,
	.release = served_release,
};

static int serve(struct fuse *fuse, const char *folder, bool foreground)
{
	struct fuse_session *session = fuse_get_session(fuse);
	int r = CLI_FAILED;

	if (fuse_mount(fuse, folder) != 0)
		return CLI_FAILED; /* the library said why */
	if (fuse_daemonize(foreground) == 0 && fuse_set_signal_handlers(session) == 0) {
		r = fuse_loop_mt(fuse, 0) < 0 ? CLI_FAILED : CLI_OK;
		fuse_remove_signal_handlers(session);
	}
	fuse_unmount(fuse);
	return r;
}

/* An answer now is better than an empty folder later. */
static int ask_once(struct tree *t)
{
	_cleanup_reply_ struct cli_reply reply = { 0 };

	return cli_call(t->cli, "ps", js_new(), &reply);
}

int verb_mount(struct cli *cli, int argc, char **argv)
{
	bool foreground = false;
	const struct cli_option options[] = {
		{ "foreground", 'f', NULL, "do not go to the background", .flag = &foreground },
		{ 0 },
	};
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	_cleanup_free_ char *folder = NULL;
	struct fuse *fuse;
	struct mount mount;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	folder =
		realpath(cli->args[0], NULL); /* in the background it is unmounted from elsewhere */
	if (!folder) {
		cli_complain(cli->args[0], strerror(errno), "It has to be a folder of yours.");
		return CLI_FAILED;
	}
	pthread_mutex_init(&mount.lock, NULL);
	pthread_cond_init(&mount.synced, NULL);
	memset(mount.syncs, 0, sizeof(mount.syncs));
	tree_init(&mount.tree, cli);
	r = ask_once(&mount.tree);
	if (r != CLI_OK)
		return r;
	folders_init(&mount.folders, cli, &mount.tree);
	if (fuse_opt_add_arg(&args, "decamp") < 0 ||
	    fuse_opt_add_arg(&args, "-onosuid,nodev,default_permissions,fsname=decamp,"
				    "subtype=decamp") < 0)
		cli_out_of_memory();
	fuse = fuse_new(&args, &operations, sizeof(operations), &mount);
	r = fuse ? serve(fuse, folder, foreground) : CLI_FAILED;
	if (r != CLI_OK)
		cli_complain(cli->args[0], "it could not be mounted",
			     "It needs an empty folder of yours, /dev/fuse and fusermount3.");
	if (fuse)
		fuse_destroy(fuse);
	fuse_opt_free_args(&args);
	tree_deinit(&mount.tree);
	return r;
}
