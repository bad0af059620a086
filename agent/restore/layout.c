// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>

#include "agent/restore/internal.h"
#include "agent/restore/lazy_images.h"
#include "agent/util/io.h"

enum { MOUNTINFO_MAX = 4 << 20, OPEN_SPARE = 128, OPEN_LIMIT = 1 << 16, HASH_CHUNK = 256 << 10 };

int restore_fail(char reason[RESTORE_REASON_MAX], int r, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(reason, RESTORE_REASON_MAX, fmt, ap);
	va_end(ap);
	if (n >= 0 && n < RESTORE_REASON_MAX)
		snprintf(reason + n, (size_t)(RESTORE_REASON_MAX - n), ": %s", strerror(-r));
	return r;
}

size_t restore_open_max(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return OPEN_SPARE;
	if (limit.rlim_cur < limit.rlim_max) {
		struct rlimit more = { limit.rlim_max, limit.rlim_max };

		if (setrlimit(RLIMIT_NOFILE, &more) == 0)
			limit = more;
	}
	if (limit.rlim_cur > OPEN_LIMIT)
		return OPEN_LIMIT;
	return limit.rlim_cur > 2 * OPEN_SPARE ? limit.rlim_cur - OPEN_SPARE : OPEN_SPARE;
}

int restore_hash(int fd, uint64_t size, uint8_t *ret_hash)
{
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	_cleanup_free_ uint8_t *buf = malloc(HASH_CHUNK);
	int r = md && buf && EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1 ? 0 : -ENOMEM;

	for (uint64_t at = 0; r == 0 && at < size;) {
		size_t n = size - at > HASH_CHUNK ? HASH_CHUNK : (size_t)(size - at);

		r = pread_full(fd, buf, n, (off_t)at);
		if (r == 0 && EVP_DigestUpdate(md, buf, n) != 1)
			r = -EIO;
		at += n;
	}
	if (r == 0 && EVP_DigestFinal_ex(md, ret_hash, NULL) != 1)
		r = -EIO;
	EVP_MD_CTX_free(md);
	return r;
}

int layout_clear(const char *state_dir)
{
	static const char *const parts[] = { "upper",	     "work",	     "closure", "root",
					     "mounts",	     "closure.list", "empty",	"view",
					     "carried.list", LAZY_MARKER };
	_cleanup_close_ int fd = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		int r = remove_tree_at(fd, parts[i]);

		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- where an upper file goes ---- */

/*
 * This host may have a file system where the capturing host had a plain folder. The keeper mounts
 * an overlay of its own there, which would hide what an outer layer has below: such files go to the
 * inner layer.
 */
static const struct notes_mount *route(const struct layout *l, const char *full,
				       const char **ret_rest)
{
	const struct notes_mount *best = NULL;
	size_t best_length = 0;

	for (size_t i = 0; i < l->mount_count; i++) {
		size_t length = strlen(l->mounts[i].path);

		if (length >= best_length && restore_is_below(full, l->mounts[i].path)) {
			best = &l->mounts[i];
			best_length = length;
		}
	}
	*ret_rest = full + best_length;
	while (**ret_rest == '/')
		(*ret_rest)++;
	return best;
}

static int full_path(const struct layout *l, const char *path, char full[PATH_MAX])
{
	const struct notes_mount *mount;
	const char *rest;
	int r = notes_split(l->notes, path, &mount, &rest);

	if (r < 0)
		return r;
	if (snprintf(full, PATH_MAX, "%s/%s", strcmp(mount->path, "/") ? mount->path : "", rest) >=
	    PATH_MAX)
		return -ENAMETOOLONG;
	return 0;
}

/* Path below state_dir/upper. */
static int upper_path(const struct layout *l, const char *path, char out[PATH_MAX])
{
	const struct notes_mount *mount;
	char full[PATH_MAX];
	const char *rest;
	int n, r;

	/* A layer's own folder is that layer's, whatever this host mounts. */
	if (!strchr(path, '/')) {
		r = notes_split(l->notes, path, &mount, &rest);
		snprintf(out, PATH_MAX, "%s", path);
		return r;
	}
	r = full_path(l, path, full);
	if (r < 0)
		return r;
	mount = route(l, full, &rest);
	/* The folder that is a mount point here belongs to the outer layer as it did there. */
	if (!mount || !*rest)
		n = snprintf(out, PATH_MAX, "%s", path);
	else
		n = snprintf(out, PATH_MAX, "%u/%s", mount->n, rest);
	return n < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static bool has_upper_below(const struct layout *l, const char *folder)
{
	for (size_t i = 0; i < l->file_count; i++) {
		struct manifest_file f;
		char full[PATH_MAX];

		manifest_file(l->request->manifest, i, &f);
		if (f.kind == FILE_CLOSURE)
			snprintf(full, sizeof(full), "/%s", f.path);
		else if (f.kind != FILE_UPPER || full_path(l, f.path, full) < 0)
			continue;
		if (restore_is_below(full, folder) && strcmp(full, folder))
			return true;
	}
	return false;
}

static int add_mount(struct layout *l, const char *path)
{
	static const char *const own[] = { "/proc", "/sys", "/dev", "/run" };
	unsigned int n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(own); i++) {
		if (restore_is_below(path, own[i]))
			return 0;
	}
	for (size_t i = 0; i < l->mount_count; i++) {
		if (!strcmp(l->mounts[i].path, path))
			return 0;
		if (l->mounts[i].n >= n)
			n = l->mounts[i].n + 1;
	}
	if (strchr(path, '\\') || !has_upper_below(l, path))
		return 0;
	if (n >= KEEPER_MOUNTS_MAX || l->mount_count == KEEPER_MOUNTS_MAX)
		return -E2BIG;
	l->mounts[l->mount_count].path = strdup(path);
	l->mounts[l->mount_count].n = n;
	return l->mounts[l->mount_count++].path ? 0 : -ENOMEM;
}

static int find_mounts(struct layout *l)
{
	_cleanup_free_ char *text = NULL;
	char *line, *save;
	int r = read_file_at(AT_FDCWD, "/proc/self/mountinfo", MOUNTINFO_MAX, &text, NULL);

	if (r < 0)
		return r;
	for (size_t i = 0; i < l->notes->mount_count; i++) {
		l->mounts[i] = (struct notes_mount){ l->notes->mounts[i].n,
						     strdup(l->notes->mounts[i].path) };
		l->mount_count++;
		if (!l->mounts[i].path)
			return -ENOMEM;
	}
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char path[PATH_MAX];

		if (sscanf(line, "%*s %*s %*s %*s %4095s", path) != 1)
			continue;
		r = add_mount(l, path);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- which closure files this host has already ---- */

struct sort_context {
	const struct manifest *manifest;
};

static int compare_paths(const void *a, const void *b, void *ctx)
{
	struct sort_context *sort = ctx;
	struct manifest_file x, y;

	manifest_file(sort->manifest, *(const size_t *)a, &x);
	manifest_file(sort->manifest, *(const size_t *)b, &y);
	return strcmp(x.path, y.path);
}

static int sort_closure(struct layout *l)
{
	struct sort_context sort = { l->request->manifest };

	l->keep = calloc(l->file_count + 1, sizeof(*l->keep));
	l->sorted = calloc(l->file_count + 1, sizeof(*l->sorted));
	if (!l->keep || !l->sorted)
		return -ENOMEM;
	for (size_t i = 0; i < l->file_count; i++) {
		struct manifest_file f;

		manifest_file(l->request->manifest, i, &f);
		if (f.kind == FILE_CLOSURE)
			l->sorted[l->sorted_count++] = i;
	}
	qsort_r(l->sorted, l->sorted_count, sizeof(*l->sorted), compare_paths, &sort);
	return 0;
}

static bool find_closure(const struct layout *l, const char *path, size_t length, size_t *ret_index)
{
	size_t low = 0, high = l->sorted_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		struct manifest_file f;
		int order;

		manifest_file(l->request->manifest, l->sorted[middle], &f);
		order = strncmp(f.path, path, length);
		if (order == 0 && f.path[length])
			order = 1;
		if (order == 0) {
			*ret_index = l->sorted[middle];
			return true;
		}
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

/* RESOLVE_NO_XDEV would stop at the host's own mounts; these paths are only compared. */
static int open_host(const struct layout *l, const char *path, int flags)
{
	char partial[PATH_MAX];
	_cleanup_close_ int fd = dup(l->root);

	if (fd < 0 || strlen(path) >= sizeof(partial))
		return -ENOENT;
	strcpy(partial, path);
	for (char *part = partial, *slash; part; part = slash ? slash + 1 : NULL) {
		int next;

		slash = strchr(part, '/');
		if (slash)
			*slash = '\0';
		next = openat(fd, part,
			      (slash ? O_PATH | O_DIRECTORY : flags) | O_NOFOLLOW | O_CLOEXEC);
		if (next < 0)
			return -errno;
		close(fd);
		fd = next;
	}
	return take_fd(fd);
}

static bool host_has_file(const struct layout *l, const struct manifest_file *f)
{
	_cleanup_close_ int fd = open_host(l, f->path, O_RDONLY | O_NONBLOCK);
	uint8_t hash[32];
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return false;
	return st.st_size == f->st.st_size && st.st_mode == f->st.st_mode &&
	       st.st_uid == f->st.st_uid && st.st_gid == f->st.st_gid &&
	       restore_hash(fd, (uint64_t)st.st_size, hash) == 0 &&
	       !memcmp(hash, f->content_hash, sizeof(hash));
}

static bool host_has(const struct layout *l, const struct manifest_file *f)
{
	char target[PATH_MAX];
	struct stat st;
	ssize_t n;

	if (S_ISREG(f->st.st_mode))
		return host_has_file(l, f);
	_cleanup_close_ int fd = open_host(l, f->path, O_PATH);
	if (fd < 0 || fstat(fd, &st) < 0 || (st.st_mode & S_IFMT) != (f->st.st_mode & S_IFMT))
		return false;
	if (!S_ISLNK(st.st_mode))
		return true;
	n = readlinkat(fd, "", target, sizeof(target));
	return n >= 0 && f->link_target && strlen(f->link_target) == (size_t)n &&
	       !memcmp(target, f->link_target, (size_t)n);
}

/* Links of one inode go together; folders go with what they hold. */
static void keep_together(struct layout *l)
{
	for (int pass = 0; pass < 2; pass++) {
		for (size_t i = 0; i < l->sorted_count; i++) {
			struct manifest_file f;
			size_t first, at = l->sorted[i];

			manifest_file(l->request->manifest, at, &f);
			if (f.hardlink && find_closure(l, f.hardlink, strlen(f.hardlink), &first)) {
				l->keep[first] |= l->keep[at];
				l->keep[at] |= l->keep[first];
			}
		}
	}
	for (size_t i = 0; i < l->sorted_count; i++) {
		struct manifest_file f;
		size_t folder;

		if (!l->keep[l->sorted[i]])
			continue;
		manifest_file(l->request->manifest, l->sorted[i], &f);
		for (size_t length = strlen(f.path); length > 0; length--) {
			if (f.path[length] == '/' && find_closure(l, f.path, length, &folder))
				l->keep[folder] = true;
		}
	}
}

static void choose(struct layout *l)
{
	for (size_t i = 0; i < l->file_count; i++) {
		struct manifest_file f;

		manifest_file(l->request->manifest, i, &f);
		if (f.kind == FILE_UPPER && restore_is_shm(f.path)) {
			l->shm_count++;
			continue;
		}
		if (l->lazy && f.kind == FILE_IMAGE && lazy_is_pages_image(f.path))
			continue;
		l->keep[i] = f.kind != FILE_CLOSURE || !host_has(l, &f);
	}
	keep_together(l);
}

/* ---- laying out ---- */

/*
 * What was carried along goes to the upper layer too, and is the job's own from then on. It cannot
 * be a lower layer of its own: overlayfs refuses one that lies below another (ELOOP), and the
 * state directory usually lies below the host's root.
 */
static int carried_path(const struct layout *l, const char *path, char buf[PATH_MAX])
{
	const struct notes_mount *mount;
	char full[PATH_MAX];
	const char *rest;

	if (snprintf(full, sizeof(full), "/%s", path) >= (int)sizeof(full))
		return -ENAMETOOLONG;
	mount = route(l, full, &rest);
	if (!mount)
		return -EBADMSG;
	return snprintf(buf, PATH_MAX, "%u%s%s", mount->n, *rest ? "/" : "", rest) < PATH_MAX ?
		       0 :
		       -ENAMETOOLONG;
}

/* Folder and path below it; buf backs the path. */
static int destination(const struct layout *l, const struct manifest_file *f, const char *path,
		       char buf[PATH_MAX], int *ret_fd)
{
	*ret_fd = f->kind == FILE_IMAGE ? l->images : l->upper;
	if (f->kind == FILE_CLOSURE)
		return carried_path(l, path, buf);
	if (f->kind == FILE_UPPER && restore_is_shm(path)) {
		*ret_fd = l->shm;
		path = strchr(path, '/') ? strchr(path, '/') + 1 : "";
	} else if (f->kind == FILE_UPPER)
		return upper_path(l, path, buf);
	return snprintf(buf, PATH_MAX, "%s", path) < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int place_failed(const struct layout *l, int r, const struct manifest_file *f)
{
	return restore_fail(l->reason, r, "the job's file %s cannot be laid out in %s%s", f->path,
			    f->kind == FILE_IMAGE ? l->request->images_dir : l->request->state_dir,
			    r == -ENOSPC ? " (free some space there)" : "");
}

static int place_nodes(const struct layout *l)
{
	for (size_t i = 0; i < l->file_count; i++) {
		struct manifest_file f;
		char path[PATH_MAX];
		int fd, r;

		manifest_file(l->request->manifest, i, &f);
		if (!l->keep[i] || S_ISREG(f.st.st_mode) ||
		    (f.hardlink && !restore_is_whiteout(&f.st)))
			continue;
		r = destination(l, &f, f.path, path, &fd);
		if (r == 0)
			r = place_node(fd, path, &f);
		if (r < 0)
			return place_failed(l, r, &f);
	}
	return 0;
}

/* manifest_unpack() hands the fetcher's context to its progress callback too. */
struct fetch_with_progress {
	const struct restore_request *request;
};

static int fetch_object(void *ctx, const struct object_hash *hash, uint32_t size,
			const struct node_id *holders, uint32_t holder_count, int *memfd)
{
	const struct restore_request *q = ((struct fetch_with_progress *)ctx)->request;

	return q->fetch(q->fetch_ctx, hash, size, holders, holder_count, memfd);
}

static void show_progress(void *ctx, uint64_t done, uint64_t total)
{
	const struct restore_request *q = ((struct fetch_with_progress *)ctx)->request;

	if (q->progress)
		q->progress(q->ctx, "fetching", done, total);
}

static bool has_content(const struct layout *l, size_t i, struct manifest_file *ret_file)
{
	manifest_file(l->request->manifest, i, ret_file);
	return l->keep[i] && S_ISREG(ret_file->st.st_mode) && !ret_file->hardlink;
}

/* Creates files from *at on, at most max; their fds go into fds. */
static int open_batch(const struct layout *l, size_t *at, size_t max, int *fds)
{
	for (size_t count = 0; *at < l->file_count && count < max; (*at)++) {
		struct manifest_file f;
		char path[PATH_MAX];
		int fd, r;

		if (!has_content(l, *at, &f))
			continue;
		r = destination(l, &f, f.path, path, &fd);
		if (r == 0)
			r = place_regular(fd, path);
		if (r < 0)
			return place_failed(l, r, &f);
		fds[*at] = r;
		count++;
	}
	return 0;
}

static int finish_batch(const struct layout *l, size_t from, size_t to, const int *fds)
{
	for (size_t i = from; i < to; i++) {
		struct manifest_file f;
		int r;

		if (fds[i] < 0)
			continue;
		manifest_file(l->request->manifest, i, &f);
		if (f.kind == FILE_IMAGE)
			continue;
		r = place_looks(fds[i], &f);
		if (r < 0)
			return place_failed(l, r, &f);
	}
	return 0;
}

static int fill_batch(const struct layout *l, const int *fds, bool first)
{
	struct fetch_with_progress ctx = { l->request };
	int r = manifest_unpack(l->request->manifest, l->request->job_key, fds, fetch_object, &ctx,
				first && l->shm < 0 ? l->request->seed : NULL, show_progress);

	if (r == -ENOSPC)
		return restore_fail(l->reason, r, "%s or %s has no room for the job: free some",
				    l->request->state_dir, l->request->images_dir);
	if (r < 0)
		return restore_fail(l->reason, r,
				    "the checkpoint's contents cannot be fetched and verified");
	return 0;
}

static int place_files(const struct layout *l)
{
	_cleanup_free_ int *fds = calloc(l->file_count + 1, sizeof(*fds));
	size_t max = restore_open_max(), at = 0;
	int r = fds ? 0 : -ENOMEM;

	if (r < 0)
		return r;
	for (size_t i = 0; i < l->file_count; i++)
		fds[i] = -1;
	/* The images come first in a manifest, and the seed learns from the batch that has them. */
	for (bool first = true; r == 0 && (first || at < l->file_count); first = false) {
		size_t from = at;

		r = open_batch(l, &at, max, fds);
		if (r == 0)
			r = fill_batch(l, fds, first);
		if (r == 0)
			r = finish_batch(l, from, at, fds);
		for (size_t i = from; i < l->file_count && i <= at; i++) {
			close_fdp(&fds[i]);
			fds[i] = -1;
		}
	}
	return r;
}

static int place_links(const struct layout *l)
{
	for (size_t i = 0; i < l->file_count; i++) {
		char path[PATH_MAX], from[PATH_MAX];
		struct manifest_file f;
		int fd, r;

		manifest_file(l->request->manifest, i, &f);
		if (!l->keep[i] || !f.hardlink || restore_is_whiteout(&f.st))
			continue;
		r = destination(l, &f, f.path, path, &fd);
		if (r == 0)
			r = destination(l, &f, f.hardlink, from, &fd);
		if (r == 0)
			r = place_link(fd, from, fd, path);
		if (r < 0)
			return place_failed(l, r, &f);
	}
	return 0;
}

/* Last, and inner ones first: every file made in a folder changes its time. */
static int finish_folders(const struct layout *l)
{
	for (size_t i = l->file_count; i-- > 0;) {
		char path[PATH_MAX];
		struct manifest_file f;
		int base, r;

		manifest_file(l->request->manifest, i, &f);
		if (!l->keep[i] || !S_ISDIR(f.st.st_mode))
			continue;
		r = destination(l, &f, f.path, path, &base);
		if (r == 0) {
			_cleanup_close_ int fd = place_open(base, path, O_RDONLY | O_DIRECTORY, 0);

			r = fd < 0 ? fd : place_looks(fd, &f);
		}
		if (r < 0)
			return place_failed(l, r, &f);
	}
	return 0;
}

static int place_all(const struct layout *l)
{
	int r = place_nodes(l);

	if (r == 0)
		r = place_files(l);
	if (r == 0)
		r = place_links(l);
	if (r == 0)
		r = finish_folders(l);
	if (r < 0 && !l->reason[0])
		restore_fail(l->reason, r, "the job's files cannot be laid out");
	return r;
}

/* ---- what the keeper and the next capture read ---- */

static int write_lists(const struct layout *l)
{
	_cleanup_free_ char *mounts = NULL, *list = NULL, *carried = NULL;
	size_t mounts_size = 0, list_size = 0, carried_size = 0;
	FILE *m = open_memstream(&mounts, &mounts_size), *c = open_memstream(&list, &list_size);
	FILE *k = open_memstream(&carried, &carried_size);
	int r = m && c && k ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < l->mount_count; i++)
		fprintf(m, "%u %s\n", l->mounts[i].n, l->mounts[i].path);
	for (size_t i = 0; r == 0 && i < l->sorted_count; i++) {
		struct manifest_file f;
		char path[PATH_MAX];

		manifest_file(l->request->manifest, l->sorted[i], &f);
		fprintf(c, "/%s", f.path);
		fputc('\0', c);
		if (!l->keep[l->sorted[i]] || carried_path(l, f.path, path) < 0)
			continue;
		fputs(path, k);
		fputc('\0', k);
	}
	if (m && fclose(m) != 0)
		r = -ENOMEM;
	if (c && fclose(c) != 0)
		r = -ENOMEM;
	if (k && fclose(k) != 0)
		r = -ENOMEM;
	if (r == 0)
		r = write_file_atomic_at(l->state, "mounts", mounts, mounts_size, 0600);
	if (r == 0)
		r = write_file_atomic_at(l->state, "closure.list", list, list_size, 0600);
	if (r == 0)
		r = write_file_atomic_at(l->state, "carried.list", carried, carried_size, 0600);
	return r;
}

/* The layers' own folders look like the mount points they cover, until the manifest says more. */
static int make_layers(struct layout *l)
{
	for (size_t i = 0; i < l->mount_count; i++) {
		char name[16];
		struct stat st;
		int fd;

		snprintf(name, sizeof(name), "%u", l->mounts[i].n);
		if (mkdirat(l->upper, name, 0755) < 0)
			return -errno;
		if (stat(l->mounts[i].path, &st) < 0)
			continue;
		fd = place_open(l->upper, name, O_RDONLY | O_DIRECTORY, 0);
		if (fd < 0)
			return fd;
		int r = fchown(fd, st.st_uid, st.st_gid) < 0 || fchmod(fd, st.st_mode & 07777) < 0 ?
				-errno :
				0;
		close(fd);
		if (r < 0)
			return r;
	}
	return 0;
}

static int make_folder(const struct layout *l, const char *name, int *ret_fd)
{
	if (mkdirat(l->state, name, 0755) < 0)
		return -errno;
	*ret_fd = place_open(l->state, name, O_RDONLY | O_DIRECTORY, 0);
	return *ret_fd < 0 ? *ret_fd : 0;
}

static int open_folders(struct layout *l)
{
	int r;

	l->state = open(l->request->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	l->images = open(l->request->images_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	l->root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (l->state < 0 || l->images < 0 || l->root < 0)
		return -errno;
	r = make_folder(l, "upper", &l->upper);
	if (r == 0)
		r = find_mounts(l);
	return r == 0 ? make_layers(l) : r;
}

int layout_make(struct layout *l)
{
	int r;

	l->state = l->images = l->root = l->upper = l->shm = -1;
	l->file_count = manifest_file_count(l->request->manifest);
	r = open_folders(l);
	if (r == 0)
		r = sort_closure(l);
	if (r < 0)
		return restore_fail(l->reason, r, "the job's folder %s cannot be made",
				    l->request->state_dir);
	choose(l);
	r = place_all(l);
	if (r < 0)
		return r;
	r = write_lists(l);
	return r < 0 ? restore_fail(l->reason, r, "the lists in %s", l->request->state_dir) : 0;
}

int layout_make_shm(struct layout *l, pid_t pid)
{
	char path[64];

	if (l->shm_count == 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/root/dev/shm", pid);
	l->shm = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (l->shm < 0)
		return restore_fail(l->reason, -errno, "the job's new /dev/shm");
	for (size_t i = 0; i < l->file_count; i++) {
		struct manifest_file f;

		manifest_file(l->request->manifest, i, &f);
		l->keep[i] = f.kind == FILE_UPPER && restore_is_shm(f.path);
	}
	return place_all(l);
}

void layout_deinit(struct layout *l)
{
	close_fdp(&l->upper);
	close_fdp(&l->shm);
	close_fdp(&l->state);
	close_fdp(&l->images);
	close_fdp(&l->root);
	for (size_t i = 0; i < l->mount_count; i++)
		free(l->mounts[i].path);
	free(l->keep);
	free(l->sorted);
}
