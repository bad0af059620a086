// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/restore/maps.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent/native/img.h"
#include "agent/native/mem.pb-c.h"
#include "agent/util/io.h"

/* A kind of its own beside MAP_SHARED and MAP_PRIVATE; newer than our headers. */
enum { KIND_DROPPABLE = 0x08, IMAGE_HEAD = 8, PAGE = 4096 };

bool maps_have_droppable(void)
{
	void *page = mmap(NULL, PAGE, PROT_READ, KIND_DROPPABLE | MAP_ANONYMOUS, -1, 0);

	if (page != MAP_FAILED)
		munmap(page, PAGE);
	return page != MAP_FAILED;
}

static int read_mm(int dirfd, const char *name, NatMm__Mm **ret_mm)
{
	_cleanup_free_ char *bytes = NULL;
	uint32_t length;
	size_t size;
	int r = read_file_at(dirfd, name, IMG_RECORD_MAX, &bytes, &size);

	if (r < 0)
		return r;
	if (size < IMAGE_HEAD + sizeof(length))
		return -EBADMSG;
	memcpy(&length, bytes + IMAGE_HEAD, sizeof(length));
	if (length != size - IMAGE_HEAD - sizeof(length))
		return -EBADMSG;
	*ret_mm = nat_mm__mm__unpack(NULL, length, (uint8_t *)bytes + IMAGE_HEAD + sizeof(length));
	return *ret_mm ? 0 : -EBADMSG;
}

/* How many mappings were changed. */
static size_t undrop(NatMm__Mm *mm)
{
	size_t changed = 0;

	for (size_t i = 0; i < mm->n_vmas; i++) {
		NatMm__Vma *v = mm->vmas[i];

		if ((v->flags & MAP_TYPE) != KIND_DROPPABLE)
			continue;
		v->flags = (v->flags & ~(uint32_t)MAP_TYPE) | MAP_PRIVATE | MAP_NORESERVE;
		changed++;
	}
	return changed;
}

static int undrop_image(int dirfd, const char *name)
{
	NatMm__Mm *mm = NULL;
	char stem[64];
	struct img *out;
	int r = read_mm(dirfd, name, &mm);

	if (r < 0)
		return r;
	if (undrop(mm) > 0) {
		snprintf(stem, sizeof(stem), "%.*s", (int)(strlen(name) - strlen(".img")), name);
		r = unlinkat(dirfd, name, 0) < 0 ? -errno : img_create(dirfd, stem, &out);
		if (r == 0) {
			img_put(out, &mm->base);
			r = img_close(out);
		}
	}
	nat_mm__mm__free_unpacked(mm, NULL);
	return r;
}

int maps_undrop(int images_fd)
{
	int fd = openat(images_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
	_cleanup_closedir_ DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!dir) {
		r = -errno;
		close_fdp(&fd);
		return r;
	}
	while (r == 0 && (entry = readdir(dir))) {
		int pid, n = 0;

		if (sscanf(entry->d_name, "mm-%d.img%n", &pid, &n) == 1 && n > 0 &&
		    !entry->d_name[n])
			r = undrop_image(images_fd, entry->d_name);
	}
	return r;
}
