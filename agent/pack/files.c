// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "agent/pack/internal.h"

int extent_append(struct extent_list *list, uint32_t pack, uint32_t slot, uint32_t count)
{
	struct extent *tail = list->count > 0 ? &list->items[list->count - 1] : NULL;

	if (tail && tail->pack == pack && tail->count <= UINT32_MAX - count &&
	    (pack == PACK_ZERO || tail->slot + tail->count == slot)) {
		tail->count += count;
		return 0;
	}
	if (list->count == list->capacity) {
		size_t capacity = list->capacity ? list->capacity * 2 : 4;
		struct extent *bigger = reallocarray(list->items, capacity, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		list->items = bigger;
		list->capacity = capacity;
	}
	list->items[list->count++] = (struct extent){ pack, pack == PACK_ZERO ? 0 : slot, count };
	return 0;
}

void packed_file_deinit(struct packed_file *f)
{
	free(f->path);
	free(f->link_target);
	free(f->xattrs);
	free(f->extents.items);
	memset(f, 0, sizeof(*f));
}

void file_list_deinit(struct file_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		packed_file_deinit(&list->items[i]);
	free(list->items);
	slotmap_deinit(&list->by_path);
	slotmap_deinit(&list->by_inode);
	memset(list, 0, sizeof(*list));
}

static uint64_t path_hash(enum file_kind kind, const char *path)
{
	return XXH3_64bits_withSeed(path, strlen(path), (uint64_t)kind);
}

int file_list_append_take(struct file_list *list, struct packed_file *file)
{
	uint32_t i = (uint32_t)list->count;
	int r;

	if (list->count == list->capacity) {
		size_t capacity = list->capacity ? list->capacity * 2 : 16;
		struct packed_file *bigger = reallocarray(list->items, capacity, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		list->items = bigger;
		list->capacity = capacity;
	}
	if (file->hardlink == 0 && file->st.st_nlink > 1 && !S_ISDIR(file->st.st_mode)) {
		r = slotmap_insert(&list->by_inode, (uint64_t)file->st.st_ino, i);
		if (r < 0)
			return r;
	}
	r = slotmap_insert(&list->by_path, path_hash(file->kind, file->path), i);
	if (r < 0)
		return r; /* the value i stands in by_inode: look-ups check it against count */
	list->items[i] = *file;
	list->count++;
	memset(file, 0, sizeof(*file));
	return 0;
}

const struct packed_file *file_list_find(const struct file_list *list, enum file_kind kind,
					 const char *path)
{
	size_t cursor = 0;
	uint32_t i;

	while (slotmap_next(&list->by_path, path_hash(kind, path), &cursor, &i))
		if (i < list->count && list->items[i].kind == kind &&
		    strcmp(list->items[i].path, path) == 0)
			return &list->items[i];
	return NULL;
}
