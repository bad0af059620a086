// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "agent/pack/internal.h"

enum { XATTR_NAME_BYTES = 255, XATTR_VALUE_BYTES = 65536 };

static bool text_fits(const char *text, size_t size)
{
	return strnlen(text, size) < size;
}

/* Bytes that are a C string with its NUL and nothing behind; not empty. */
static const char *path_text(const ProtobufCBinaryData *b)
{
	if (b->len < 2 || b->len > PATH_MAX || memchr(b->data, 0, b->len) != b->data + b->len - 1)
		return NULL;
	return (const char *)b->data;
}

static bool mount_number(const char *part, size_t size)
{
	if (size < 1 || size > 4)
		return false;
	for (size_t i = 0; i < size; i++)
		if (part[i] < '0' || part[i] > '9')
			return false;
	return true;
}

bool manifest_path_valid(enum file_kind kind, const char *path)
{
	const char *part = path;

	if (!path || strlen(path) >= PATH_MAX || kind < FILE_IMAGE || kind > FILE_CLOSURE)
		return false;
	/* A leading, trailing or double slash each make an empty component. */
	for (;;) {
		size_t size = strcspn(part, "/");

		if (size == 0 || size > NAME_MAX)
			return false;
		if (part[0] == '.' && (size == 1 || (size == 2 && part[1] == '.')))
			return false;
		if (kind == FILE_UPPER && part == path && !mount_number(part, size))
			return false;
		if (part[size] == 0)
			return true;
		part += size + 1;
	}
}

bool manifest_xattrs_valid(const uint8_t *xattrs, size_t size)
{
	size_t at = 0;

	if (size > MANIFEST_XATTRS_MAX)
		return false;
	while (at < size) {
		size_t name = strnlen((const char *)xattrs + at, size - at);
		uint32_t value;

		if (name < 1 || name > XATTR_NAME_BYTES || size - at < name + 1 + sizeof(value))
			return false;
		at += name + 1;
		memcpy(&value, xattrs + at, sizeof(value));
		at += sizeof(value);
		if (value > XATTR_VALUE_BYTES || value > size - at)
			return false;
		at += value;
	}
	return true;
}

static bool type_valid(const Decamp__File *f)
{
	if (f->mode & ~(uint32_t)(S_IFMT | 07777))
		return false;
	switch (f->mode & S_IFMT) {
	case S_IFREG:
	case S_IFDIR:
		return true;
	case S_IFLNK:
		return f->kind != FILE_IMAGE;
	case S_IFCHR:
	case S_IFBLK:
	case S_IFIFO:
	case S_IFSOCK:
		return f->kind == FILE_UPPER;
	default:
		return false;
	}
}

static bool extents_valid(const Decamp__Manifest *pb, const Decamp__File *f)
{
	uint64_t blocks = (f->size + PACK_BLOCK - 1) / PACK_BLOCK, sum = 0;

	if (f->n_extent_slot != f->n_extent_pack || f->n_extent_count != f->n_extent_pack)
		return false;
	for (size_t i = 0; i < f->n_extent_pack; i++) {
		uint32_t pack = f->extent_pack[i], slot = f->extent_slot[i],
			 count = f->extent_count[i];

		if (count < 1)
			return false;
		if (pack == PACK_ZERO) {
			if (slot != 0)
				return false;
		} else if (pack >= pb->n_packs || slot >= pb->packs[pack]->blocks ||
			   count > pb->packs[pack]->blocks - slot) {
			return false;
		}
		sum += count;
		if (sum > blocks)
			return false;
	}
	return sum == blocks;
}

static bool hardlink_valid(const Decamp__Manifest *pb, size_t index)
{
	const Decamp__File *f = pb->files[index], *first;

	if (f->hardlink > index)
		return false;
	first = pb->files[f->hardlink - 1];
	return first->hardlink == 0 && first->kind == f->kind && first->size == f->size &&
	       (first->mode & S_IFMT) == (f->mode & S_IFMT) && !S_ISDIR(f->mode) &&
	       f->n_extent_pack == 0 && f->n_extent_slot == 0 && f->n_extent_count == 0;
}

static bool file_valid(const Decamp__Manifest *pb, size_t index)
{
	const Decamp__File *f = pb->files[index];
	const char *path = path_text(&f->path);
	bool device = S_ISCHR(f->mode) || S_ISBLK(f->mode);

	if (!path || !manifest_path_valid((enum file_kind)f->kind, path) || !type_valid(f))
		return false;
	if (f->mtime_nsec >= 1000000000 || (!device && f->rdev != 0))
		return false;
	if (S_ISLNK(f->mode) ? !path_text(&f->link_target) : f->link_target.len != 0)
		return false;
	if (!manifest_xattrs_valid(f->xattrs.data, f->xattrs.len))
		return false;
	if (f->content_hash.len != (S_ISREG(f->mode) ? 32 : 0))
		return false;
	if (f->size > (S_ISREG(f->mode) ? PACK_FILE_MAX : 0))
		return false;
	return f->hardlink != 0 ? hardlink_valid(pb, index) : extents_valid(pb, f);
}

/* As strcmp(), but '/' sorts before all else, so that what lies below a path follows it at once. */
static int compare_paths(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	if (*a == *b)
		return 0;
	if (!*a || !*b)
		return *a ? 1 : -1;
	if (*a == '/' || *b == '/')
		return *a == '/' ? -1 : 1;
	return (unsigned char)*a < (unsigned char)*b ? -1 : 1;
}

static int compare_files(const void *a, const void *b)
{
	const Decamp__File *x = *(Decamp__File *const *)a, *y = *(Decamp__File *const *)b;

	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return compare_paths((const char *)x->path.data, (const char *)y->path.data);
}

/*
 * No path twice, and nothing below what is no directory: else a symlink of the manifest could
 * lead a later file of it out of its tree.
 */
static int check_tree(const Decamp__Manifest *pb)
{
	_cleanup_free_ Decamp__File **sorted = calloc(pb->n_files + 1, sizeof(*sorted));

	if (!sorted)
		return -ENOMEM;
	if (pb->n_files > 0)
		memcpy(sorted, pb->files, pb->n_files * sizeof(*sorted));
	qsort(sorted, pb->n_files, sizeof(*sorted), compare_files);
	for (size_t i = 1; i < pb->n_files; i++) {
		const Decamp__File *a = sorted[i - 1], *b = sorted[i];
		size_t size = a->path.len - 1;

		if (a->kind != b->kind || b->path.len - 1 < size ||
		    memcmp(a->path.data, b->path.data, size) != 0)
			continue;
		if (b->path.data[size] == 0 || (b->path.data[size] == '/' && !S_ISDIR(a->mode)))
			return -EBADMSG;
	}
	return 0;
}

static bool pack_valid(const Decamp__Manifest *pb, const Decamp__Pack *p)
{
	return p->hash.len == sizeof(struct object_hash) && p->size > 0 && p->size <= OV_PACK_MAX &&
	       p->seq >= 1 && p->seq <= pb->seq && p->blocks >= 1 && p->blocks <= PACK_BLOCKS_MAX &&
	       pack_holders_valid(p) && (p->salt.len == 0 || p->salt.len == PACK_SALT) &&
	       (p->shared_key.len == 0 || (p->shared_key.len == KEY_BYTES && !p->deltas &&
					   p->data_shards == 0 && p->salt.len == 0));
}

static bool head_valid(const Decamp__Manifest *pb)
{
	if (pb->job.len != sizeof(struct job_id) || pb->token_node.len != sizeof(struct node_id) ||
	    pb->host.len != sizeof(struct node_id) || pb->seq < 1)
		return false;
	if (!text_fits(pb->engine, sizeof(((struct manifest_head *)NULL)->engine)) ||
	    !text_fits(pb->arch, sizeof(((struct manifest_head *)NULL)->arch)) ||
	    !text_fits(pb->kernel, sizeof(((struct manifest_head *)NULL)->kernel)) ||
	    !text_fits(pb->meta_json, MANIFEST_META_MAX + 1) ||
	    !text_fits(pb->spec_json, MANIFEST_META_MAX + 1))
		return false;
	return pb->n_stats <= MANIFEST_STATS_MAX && pb->n_moves <= MANIFEST_STATS_MAX &&
	       pb->n_packs <= MANIFEST_PACKS_MAX && pb->n_files <= MANIFEST_FILES_MAX;
}

static bool stats_valid(const Decamp__Manifest *pb)
{
	for (size_t i = 0; i < pb->n_stats; i++) {
		const Decamp__CkptStat *s = pb->stats[i];

		if (!text_fits(s->host, sizeof(((struct ckpt_stat *)NULL)->host)) ||
		    !text_fits(s->engine, sizeof(((struct ckpt_stat *)NULL)->engine)) ||
		    !text_fits(s->reason, sizeof(((struct ckpt_stat *)NULL)->reason)) ||
		    !text_fits(s->pause_mostly, sizeof(((struct ckpt_stat *)NULL)->pause_mostly)))
			return false;
	}
	for (size_t i = 0; i < pb->n_moves; i++) {
		const Decamp__MoveStat *s = pb->moves[i];

		if (!text_fits(s->from, sizeof(((struct move_stat *)NULL)->from)) ||
		    !text_fits(s->to, sizeof(((struct move_stat *)NULL)->to)) ||
		    !text_fits(s->reason, sizeof(((struct move_stat *)NULL)->reason)))
			return false;
	}
	return true;
}

int manifest_check(const Decamp__Manifest *pb)
{
	if (!head_valid(pb) || !stats_valid(pb))
		return -EBADMSG;
	for (size_t i = 0; i < pb->n_packs; i++)
		if (!pack_valid(pb, pb->packs[i]))
			return -EBADMSG;
	for (size_t i = 0; i < pb->n_files; i++)
		if (!file_valid(pb, i))
			return -EBADMSG;
	return check_tree(pb);
}
