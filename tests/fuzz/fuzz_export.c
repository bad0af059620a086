// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * CRIU's images as a core is made of them. Input: {image, u16 size, bytes}..; the magic numbers,
 * without which nothing would come far, are put in front.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent/export/internal.h"

enum { IMAGES = 8, PAGES_BYTES = 4 << 20, PID = 1000, ALL = IMAGES + 2 };

static const struct {
	const char *name;
	uint32_t magic;
} images[IMAGES] = {
	{ "core-1000.img", IMAGE_CORE },
	{ "core-1001.img", IMAGE_CORE },
	{ "files.img", IMAGE_FILES },
	{ "memfd.img", IMAGE_MEMFD },
	{ "mm-1000.img", IMAGE_MM },
	{ "pagemap-1000.img", IMAGE_PAGEMAP },
	{ "pagemap-shmem-9.img", IMAGE_PAGEMAP },
	{ "pstree.img", IMAGE_PSTREE },
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	uint8_t *bytes[IMAGES];
	size_t sizes[IMAGES];
};

static int read_part(void *ctx, const struct export_file *file, uint64_t offset, void *ret_bytes,
		     size_t size)
{
	const struct input *in = ctx;

	if (file->index < IMAGES)
		memcpy(ret_bytes, in->bytes[file->index] + offset, size);
	else
		memset(ret_bytes, 0x5a, size);
	return 0;
}

static void split(struct input *in, const uint8_t *data, size_t size)
{
	for (size_t i = 0; i < IMAGES; i++) {
		const uint32_t head[2] = { 0x54564319, images[i].magic };

		in->bytes[i] = malloc(size + sizeof(head));
		memcpy(in->bytes[i], head, sizeof(head));
		in->sizes[i] = sizeof(head);
	}
	while (size > 3) {
		size_t i = data[0] % IMAGES, n = data[1] | (size_t)data[2] << 8;

		data += 3;
		size -= 3;
		n = n < size ? n : size;
		memcpy(in->bytes[i] + in->sizes[i], data, n);
		in->sizes[i] += n;
		data += n;
		size -= n;
	}
}

static void walk(const struct elf_core *core)
{
	static uint8_t bytes[1 << 16];
	uint64_t at = 0, from, n, size = elf_core_size(core);

	for (int i = 0; i < 64 && elf_core_next(core, at, &from, &n); i++, at = from + n) {
		if (n == 0 || from < at || n > size - from)
			abort();
		if (elf_core_read(core, from, bytes, n < sizeof(bytes) ? n : sizeof(bytes)) < 0)
			abort();
	}
	for (uint64_t i = 1; i < 32; i++) {
		uint64_t offset = size / 32 * i;

		n = size - offset < sizeof(bytes) ? size - offset : sizeof(bytes);
		if (elf_core_read(core, offset, bytes, n) < 0)
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct export_file files[ALL];
	struct input in;
	struct export_set set = { files, ALL, read_part, &in };
	char reason[EXPORT_REASON_MAX];
	struct elf_core *core;

	split(&in, data, size);
	for (size_t i = 0; i < ALL; i++)
		files[i] = (struct export_file){
			.index = i,
			.kind = FILE_IMAGE,
			.type = EXPORT_FILE,
			.path = (char *)(uintptr_t)(i < IMAGES	? images[i].name :
						    i == IMAGES ? "pages-1.img" :
								  "pages-2.img"),
			.size = i < IMAGES ? in.sizes[i] : PAGES_BYTES
		};
	export_files_sort(files, ALL);
	(void)image_core_is_of(in.bytes[0], in.sizes[0], 1000);
	(void)image_mm_is_dumpable(in.bytes[4], in.sizes[4]);
	if (elf_core_create(&set, PID, size % 2, &core, reason) == 0) {
		walk(core);
		elf_core_destroy(core);
	}
	for (size_t i = 0; i < IMAGES; i++)
		free(in.bytes[i]);
	return 0;
}
