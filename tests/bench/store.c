// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * bench-store's own program; tests/bench/store runs it and makes the table.
 *
 *   store take DIR COUNT INTERVAL_MS WARMUP_MS PROGRAM...
 *   store bound DIR COUNT
 *   store seal DIR COUNT [verify] [again] [cache=BYTES] [disk=BYTES] [link=BYTES_PER_S]
 *              [chain=N] [threads=N] [commit | file] [limit]
 */
#include "tests/bench/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "agent/native/mem.pb-c.h"
#include "agent/util/io.h"

void store_die(const char *what, int r)
{
	fprintf(stderr, "store: %s: %s\n", what, strerror(-r));
	exit(1);
}

static void *must(void *p)
{
	if (!p)
		store_die("memory", -ENOMEM);
	return p;
}

static void read_numbers(const char *text, size_t size, size_t at, struct store_image *image)
{
	size_t room = 0;

	while (at + 4 <= size) {
		NatMm__PagemapEntry *e;
		uint32_t length;

		memcpy(&length, text + at, 4);
		e = length <= size - at - 4 ?
			    nat_mm__pagemap_entry__unpack(NULL, length,
							  (const uint8_t *)text + at + 4) :
			    NULL;
		if (!e)
			store_die(image->pagemap, -EBADMSG);
		if (image->count + e->nr_pages > room) {
			room = 2 * (image->count + e->nr_pages);
			image->numbers =
				must(reallocarray(image->numbers, room, sizeof(*image->numbers)));
		}
		for (uint32_t i = 0; i < e->nr_pages; i++)
			image->numbers[image->count++] = e->vaddr / STORE_PAGE + i;
		nat_mm__pagemap_entry__free_unpacked(e, NULL);
		at += 4 + length;
	}
}

static void read_image(int images, const char *name, struct store_image *ret)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_close_ int fd = -1;
	NatMm__PagemapHead *head;
	char path[64];
	uint32_t length;
	struct stat st;
	size_t size;
	int r = read_file_at(images, name, 256 << 20, &text, &size);

	if (r < 0 || size < 12)
		store_die(name, r < 0 ? r : -EBADMSG);
	*ret = (struct store_image){ 0 };
	snprintf(ret->pagemap, sizeof(ret->pagemap), "%.63s", name);
	memcpy(&length, text + 8, 4);
	head = length <= size - 12 ?
		       nat_mm__pagemap_head__unpack(NULL, length, (const uint8_t *)text + 12) :
		       NULL;
	if (!head)
		store_die(name, -EBADMSG);
	snprintf(path, sizeof(path), "pages-%u.img", head->pages_id);
	nat_mm__pagemap_head__free_unpacked(head, NULL);
	read_numbers(text, size, 12 + length, ret);
	if (ret->count == 0)
		return;
	fd = openat(images, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || (uint64_t)st.st_size != ret->count * STORE_PAGE)
		store_die(path, -EBADMSG);
	ret->bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (ret->bytes == MAP_FAILED)
		store_die(path, -errno);
}

size_t store_images(const char *dir, unsigned int k, struct store_image *ret_images, size_t max)
{
	_cleanup_close_ int images = -1;
	struct dirent *item;
	size_t count = 0;
	char path[600];
	DIR *d;

	snprintf(path, sizeof(path), "%s/%u.plain", dir, k);
	d = opendir(path);
	images = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (!d || images < 0)
		store_die(path, -errno);
	while ((item = readdir(d))) {
		if (strncmp(item->d_name, "pagemap-", 8) != 0)
			continue;
		if (count == max)
			store_die(path, -E2BIG);
		read_image(images, item->d_name, &ret_images[count++]);
	}
	closedir(d);
	return count;
}

void store_images_free(struct store_image *images, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (images[i].bytes)
			munmap(images[i].bytes, images[i].count * STORE_PAGE);
		free(images[i].numbers);
	}
}

static bool option(struct store_seal_options *o, const char *word)
{
	if (!strcmp(word, "verify"))
		o->verify = true;
	else if (!strcmp(word, "again"))
		o->again = true;
	else if (!strcmp(word, "commit"))
		o->commit = true;
	else if (!strcmp(word, "file"))
		o->file = true;
	else if (!strcmp(word, "limit"))
		o->limit = true;
	else if (!strncmp(word, "threads=", 8))
		o->budget.threads = (uint32_t)strtoul(word + 8, NULL, 10);
	else if (!strncmp(word, "cache=", 6))
		o->budget.cache_bytes = strtoull(word + 6, NULL, 10);
	else if (!strncmp(word, "link=", 5))
		o->budget.link_bytes_per_s = strtoull(word + 5, NULL, 10);
	else if (!strncmp(word, "chain=", 6))
		o->budget.chain_max = (uint32_t)strtoul(word + 6, NULL, 10);
	else if (!strncmp(word, "disk=", 5))
		o->budget.cache_disk_bytes = strtoull(word + 5, NULL, 10);
	else
		return false;
	return true;
}

int main(int argc, char **argv)
{
	struct store_seal_options o = { .budget = PACKER_BUDGET_DEFAULT };
	unsigned int count = argc > 3 ? (unsigned int)strtoul(argv[3], NULL, 10) : 0;

	if (count < 1)
		return 2;
	if (!strcmp(argv[1], "take") && argc > 6) {
		store_take(argv[2], count, (unsigned int)strtoul(argv[4], NULL, 10),
			   (unsigned int)strtoul(argv[5], NULL, 10), argv + 6);
		return 0;
	}
	if (!strcmp(argv[1], "bound") && argc == 4) {
		store_bound(argv[2], count);
		return 0;
	}
	if (strcmp(argv[1], "seal") != 0)
		return 2;
	for (int i = 4; i < argc; i++)
		if (!option(&o, argv[i]))
			return 2;
	o.budget.cache_dir = argv[2];
	store_seal(argv[2], count, &o);
	return 0;
}
