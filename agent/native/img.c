// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/img.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "agent/util/io.h"

enum {
	IMG_BUFFER = 64 << 10,
	IMG_NAME_MAX = 128,
	MAGIC_COMMON = 0x54564319,
	MAGIC_SERVICE = 0x55105940,
};

/* The inventory has no first magic, raw images have none at all. */
enum img_head { HEAD_COMMON, HEAD_SERVICE, HEAD_NONE, HEAD_RAW };

static const struct {
	const char *name; /* then the end, or '-' and a number */
	uint32_t magic;
	enum img_head head;
} kinds[] = {
	{ "inventory", 0x58313116, HEAD_NONE },
	{ "pstree", 0x50273030, HEAD_COMMON },
	{ "ids", 0x54432030, HEAD_COMMON },
	{ "core", 0x55053847, HEAD_COMMON },
	{ "mm", 0x57492820, HEAD_COMMON },
	{ "pagemap", 0x56084025, HEAD_COMMON },
	{ "pagemap-shmem", 0x56084025, HEAD_COMMON },
	{ "pages", 0, HEAD_RAW },
	{ "files", 0x56303138, HEAD_COMMON },
	{ "fdinfo", 0x56213732, HEAD_COMMON },
	{ "fs", 0x51403912, HEAD_COMMON },
	{ "remap-fpath", 0x59133954, HEAD_COMMON },
	{ "ghost-file", 0x52583605, HEAD_COMMON },
	{ "pipes-data", 0x56453709, HEAD_COMMON },
	{ "fifo-data", 0x59333054, HEAD_COMMON },
	{ "sk-queues", 0x56264026, HEAD_COMMON },
	{ "filelocks", 0x54323616, HEAD_COMMON },
	{ "tty-info", 0x59453036, HEAD_COMMON },
	{ "tty-data", 0x59413026, HEAD_COMMON },
	{ "memfd", 0x48453499, HEAD_COMMON },
	{ "ipcns-var", 0x53115007, HEAD_COMMON },
	{ "ipcns-shm", 0x46283044, HEAD_COMMON },
	{ "ipcns-msg", 0x55453737, HEAD_COMMON },
	{ "ipcns-sem", 0x59573019, HEAD_COMMON },
	{ "utsns", 0x54473203, HEAD_COMMON },
	{ "timens", 0x43114433, HEAD_COMMON },
	{ "seccomp", 0x64413049, HEAD_COMMON },
	{ "cgroup", 0x59383330, HEAD_COMMON },
	{ "pidfd", 0x54435556, HEAD_COMMON },
	{ "stats", 0x57093306, HEAD_SERVICE },
};

struct img {
	int fd, error; /* error: the first one, negative */
	size_t used;
	uint8_t buffer[IMG_BUFFER];
};

/* The longest kind that the name begins with. */
static ssize_t find_kind(const char *name)
{
	size_t best_length = 0;
	ssize_t best = -EINVAL;

	for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
		size_t length = strlen(kinds[k].name);

		if (strncmp(name, kinds[k].name, length) != 0 ||
		    (name[length] != '\0' && name[length] != '-'))
			continue;
		if (length > best_length) {
			best_length = length;
			best = (ssize_t)k;
		}
	}
	return best;
}

static void flush(struct img *i)
{
	if (i->error == 0 && i->used > 0)
		i->error = write_full(i->fd, i->buffer, i->used);
	i->used = 0;
}

static void put_u32(struct img *i, uint32_t value)
{
	value = htole32(value);
	img_put_raw(i, &value, sizeof(value));
}

int img_create(int dirfd, const char *name, struct img **ret_img)
{
	ssize_t kind = find_kind(name);
	char file[IMG_NAME_MAX];
	struct img *i;

	if (kind < 0)
		return (int)kind;
	if ((size_t)snprintf(file, sizeof(file), "%s.img", name) >= sizeof(file))
		return -ENAMETOOLONG;
	i = malloc(sizeof(*i));
	if (!i)
		return -ENOMEM;
	i->error = 0;
	i->used = 0;
	i->fd = openat(dirfd, file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (i->fd < 0) {
		int r = -errno;

		free(i);
		return r;
	}
	if (kinds[kind].head == HEAD_COMMON || kinds[kind].head == HEAD_SERVICE)
		put_u32(i, kinds[kind].head == HEAD_COMMON ? MAGIC_COMMON : MAGIC_SERVICE);
	if (kinds[kind].head != HEAD_RAW)
		put_u32(i, kinds[kind].magic);
	*ret_img = i;
	return 0;
}

void img_put_raw(struct img *i, const void *bytes, size_t size)
{
	if (i->error < 0)
		return;
	if (size > sizeof(i->buffer) - i->used)
		flush(i);
	if (size > sizeof(i->buffer)) {
		if (i->error == 0)
			i->error = write_full(i->fd, bytes, size);
		return;
	}
	memcpy(i->buffer + i->used, bytes, size);
	i->used += size;
}

void img_put(struct img *i, const ProtobufCMessage *message)
{
	size_t size = protobuf_c_message_get_packed_size(message);
	uint8_t *heap = NULL;

	if (i->error < 0)
		return;
	if (size > IMG_RECORD_MAX) {
		i->error = -EFBIG;
		return;
	}
	put_u32(i, (uint32_t)size);
	if (size > sizeof(i->buffer) - i->used)
		flush(i);
	if (size <= sizeof(i->buffer)) {
		i->used += protobuf_c_message_pack(message, i->buffer + i->used);
		return;
	}
	heap = malloc(size);
	if (!heap) {
		i->error = -ENOMEM;
		return;
	}
	protobuf_c_message_pack(message, heap);
	img_put_raw(i, heap, size);
	free(heap);
}

int img_close(struct img *i)
{
	int r;

	flush(i);
	r = i->error;
	if (close(i->fd) < 0 && r == 0)
		r = -errno;
	free(i);
	return r;
}
