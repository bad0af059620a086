// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What images ask of a kernel beyond what every one has: so that a job does not go where CRIU would
 * refuse it. The images are of whatever engine took them. One that does not decode asks for nothing
 * here: to refuse it is for whoever restores it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "agent/capture/internal.h"
#include "agent/export/image.h"
#include "agent/native/core.pb-c.h"
#include "agent/native/ipc.pb-c.h"
#include "agent/native/mem.pb-c.h"
#include "agent/util/io.h"
#include "overlay/types.h"

enum {
	VMA_IS_SHADOW_STACK = 1 << 15, /* VMA_AREA_SHSTK of CRIU's image.h, and the next one */
	VMA_IS_GUARD = 1 << 16,
	SEAL_EXEC = 0x20,
	RSEQ_BYTES = 32,	/* what every kernel with rseq takes */
	PID_EVERYWHERE = 32767, /* the highest one where nobody has raised kernel.pid_max */
};

static uint32_t mm_need(const ProtobufCMessage *message)
{
	const NatMm__Mm *mm = (const NatMm__Mm *)message;
	uint32_t need = 0;

	for (size_t i = 0; i < mm->n_vmas; i++) {
		if (mm->vmas[i]->status & VMA_IS_GUARD)
			need |= KERNEL_GUARDS;
		if (mm->vmas[i]->status & VMA_IS_SHADOW_STACK)
			need |= KERNEL_SHADOW_STACK;
	}
	return need;
}

static uint32_t core_need(const ProtobufCMessage *message)
{
	const NatCore__Core *core = (const NatCore__Core *)message;
	const NatCore__Rseq *rseq = core->thread ? core->thread->rseq : NULL;

	return rseq && rseq->size > RSEQ_BYTES ? KERNEL_RSEQ_LONG : 0;
}

static uint32_t memfd_need(const ProtobufCMessage *message)
{
	return ((const NatIpc__MemfdInode *)message)->seals & SEAL_EXEC ? KERNEL_EXEC_SEAL : 0;
}

static const struct kind {
	const char *pattern;
	enum image_kind kind;
	const ProtobufCMessageDescriptor *type;
	uint32_t (*need)(const ProtobufCMessage *message);
} kinds[] = {
	{ "mm-%d.img%n", IMAGE_MM, &nat_mm__mm__descriptor, mm_need },
	{ "core-%d.img%n", IMAGE_CORE, &nat_core__core__descriptor, core_need },
	{ "memfd.img", IMAGE_MEMFD, &nat_ipc__memfd_inode__descriptor, memfd_need },
};

/* The id in its name, 0 if its kind has none; NULL: nothing of it is asked. */
static const struct kind *kind_of(const char *name, int *ret_id)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		int n = 0;

		*ret_id = 0;
		if (!strcmp(name, kinds[i].pattern) ||
		    (sscanf(name, kinds[i].pattern, ret_id, &n) == 1 && n && !name[n]))
			return &kinds[i];
	}
	return NULL;
}

static int image_need(int images_fd, const char *name, const struct kind *kind, uint32_t *need)
{
	_cleanup_free_ char *bytes = NULL;
	ProtobufCMessage *message;
	struct image image;
	size_t size;
	int r = read_file_at(images_fd, name, IMAGE_BYTES_MAX, &bytes, &size);

	if (r < 0)
		return r;
	r = image_begin(bytes, size, kind->kind, &image);
	while (r == 0 && (r = image_next(&image, kind->type, &message)) == 0 && message) {
		*need |= kind->need(message);
		protobuf_c_message_free_unpacked(message, NULL);
	}
	return r == -EBADMSG ? 0 : r;
}

int capture_kernel_need(int images_fd, uint32_t *ret_need)
{
	int fd = openat(images_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
	_cleanup_closedir_ DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	uint32_t need = 0;

	if (!dir) {
		r = -errno;
		close_fdp(&fd);
		return r;
	}
	while (r == 0 && (entry = readdir(dir))) {
		int id;
		const struct kind *kind = kind_of(entry->d_name, &id);

		if (!kind)
			continue;
		if (id > PID_EVERYWHERE)
			need |= KERNEL_PIDS;
		r = image_need(images_fd, entry->d_name, kind, &need);
	}
	if (r == 0)
		*ret_need = need;
	return r;
}
