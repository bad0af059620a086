// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * mount: kept checkpoints as read-only files, by FUSE. Parts are fetched, and verified by decampd,
 * when they are read. Only who mounted it sees it: the kernel keeps all others out, root included.
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fuse3/fuse.h>
#include <string.h>

#include "agent/cli/tree.h"

/* An open file; readers mostly go on where they were, so more is asked for than was wanted. */
struct handle {
	struct tree_node node;
	uint64_t size, at, next; /* next: where a reader goes on that goes straight */
	size_t have;
	uint8_t *bytes; /* [at, at + have) of it */
};

static struct tree *tree_of_mount(void)
{
	return fuse_get_context()->private_data;
}

static void *on_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
	(void)connection;
	config->entry_timeout = config->attr_timeout = 1;
	config->negative_timeout = 0;
	return tree_of_mount();
}

static int on_getattr(const char *path, struct stat *st, struct fuse_file_info *info)
{
	struct tree_node node;
	int r = tree_find(tree_of_mount(), path, &node);

	(void)info;
	if (r < 0)
		return r;
	if (node.type == TREE_CORE)
		r = tree_make_core(&node);
	if (r == 0)
		tree_stat(&node, st);
	tree_release(tree_of_mount(), &node);
	/* A process of which no core can be made is still listed. */
	return r == -EOPNOTSUPP ? -EIO : r;
}

static int on_readlink(const char *path, char *text, size_t size)
{
	struct tree_node node;
	int r = tree_find(tree_of_mount(), path, &node);

	if (r < 0)
		return r;
	if (node.type == TREE_LATEST)
		snprintf(text, size, "%lld", (long long)node.job->kept[0].seq);
	else if (node.type == TREE_LINK)
		snprintf(text, size, "%s", node.file->target);
	else
		r = -EINVAL;
	tree_release(tree_of_mount(), &node);
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

static int on_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
		      struct fuse_file_info *info, enum fuse_readdir_flags flags)
{
	struct listing l = { buffer, fill };
	struct tree_node node;
	int r = tree_find(tree_of_mount(), path, &node);

	(void)offset;
	(void)info;
	(void)flags;
	if (r < 0)
		return r;
	add_entry(&l, ".");
	add_entry(&l, "..");
	r = tree_list(tree_of_mount(), &node, add_entry, &l);
	tree_release(tree_of_mount(), &node);
	return r;
}

static int on_open(const char *path, struct fuse_file_info *info)
{
	struct handle *h;
	struct stat st;
	int r;

	if ((info->flags & O_ACCMODE) != O_RDONLY)
		return -EROFS;
	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	r = tree_find(tree_of_mount(), path, &h->node);
	if (r == 0 && h->node.type == TREE_CORE)
		r = tree_make_core(&h->node);
	if (r == 0 && h->node.type != TREE_FILE && h->node.type != TREE_CORE)
		r = -EISDIR;
	if (r < 0) {
		tree_release(tree_of_mount(), &h->node);
		free(h);
		return r;
	}
	tree_stat(&h->node, &st);
	h->size = (uint64_t)st.st_size;
	info->fh = (uint64_t)(uintptr_t)h;
	return 0;
}

static int on_release(const char *path, struct fuse_file_info *info)
{
	struct handle *h = (struct handle *)(uintptr_t)info->fh;

	(void)path;
	tree_release(tree_of_mount(), &h->node);
	free(h->bytes);
	free(h);
	return 0;
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
	r = tree_read(&h->node, offset, h->bytes, (size_t)n);
	if (r == 0) {
		h->at = offset;
		h->have = (size_t)n;
	}
	return r;
}

static int on_read(const char *path, char *bytes, size_t size, off_t offset,
		   struct fuse_file_info *info)
{
	struct handle *h = (struct handle *)(uintptr_t)info->fh;
	uint64_t at = (uint64_t)offset;
	bool straight = at == h->next, there;
	int r = 0;

	(void)path;
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
		r = tree_read(&h->node, at, bytes, size);
	h->next = at + size;
	return r == 0 ? (int)size : r;
}

static const struct fuse_operations operations = {
	.init = on_init,
	.getattr = on_getattr,
	.readlink = on_readlink,
	.readdir = on_readdir,
	.open = on_open,
	.read = on_read,
	.release = on_release,
};

static int serve(struct fuse *fuse, const char *folder, bool foreground)
{
	struct fuse_session *session = fuse_get_session(fuse);
	int r = CLI_FAILED;

	if (fuse_mount(fuse, folder) != 0)
		return CLI_FAILED; /* the library said why */
	if (fuse_daemonize(foreground) == 0 && fuse_set_signal_handlers(session) == 0) {
		r = fuse_loop(fuse) < 0 ? CLI_FAILED : CLI_OK;
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
	struct tree tree;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	folder =
		realpath(cli->args[0], NULL); /* in the background it is unmounted from elsewhere */
	if (!folder) {
		cli_complain(cli->args[0], strerror(errno), "It has to be a folder of yours.");
		return CLI_FAILED;
	}
	tree_init(&tree, cli);
	r = ask_once(&tree);
	if (r != CLI_OK)
		return r;
	if (fuse_opt_add_arg(&args, "decamp") < 0 ||
	    fuse_opt_add_arg(&args, "-oro,nosuid,nodev,default_permissions,fsname=decamp,"
				    "subtype=decamp") < 0)
		cli_out_of_memory();
	fuse = fuse_new(&args, &operations, sizeof(operations), &tree);
	r = fuse ? serve(fuse, folder, foreground) : CLI_FAILED;
	if (r != CLI_OK)
		cli_complain(cli->args[0], "it could not be mounted",
			     "It needs an empty folder of yours, /dev/fuse and fusermount3.");
	if (fuse)
		fuse_destroy(fuse);
	fuse_opt_free_args(&args);
	tree_deinit(&tree);
	return r;
}
