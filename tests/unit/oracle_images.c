// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/oracle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "agent/util/io.h"

enum {
	STORE_FILES_MAX = 4096,
	IMAGE_COMMON_MAGIC = 0x54564319,
	FROM_NEW = 1,
	FROM_OLD = 2,
	FILE_TYPE_MEMFD_FIELD = 20,
};

struct store_file {
	uint32_t pages_id;
	uint64_t blocks;
	uint8_t *bytes;
};

struct store {
	struct store_file files[STORE_FILES_MAX];
	size_t count;
};

struct span {
	const uint8_t *at, *end;
};

struct field {
	uint32_t number;
	uint64_t value; /* varint, fixed */
	struct span bytes;
};

static int get_varint(struct span *s, uint64_t *ret_value)
{
	uint64_t value = 0;

	for (int shift = 0; shift < 64; shift += 7) {
		if (s->at == s->end)
			return -EBADMSG;
		value |= (uint64_t)(*s->at & 0x7f) << shift;
		if (!(*s->at++ & 0x80)) {
			*ret_value = value;
			return 0;
		}
	}
	return -EBADMSG;
}

/* 1: a field, 0: the end. */
static int next_field(struct span *s, struct field *ret)
{
	uint64_t key, size;
	int r;

	if (s->at == s->end)
		return 0;
	r = get_varint(s, &key);
	if (r < 0)
		return r;
	*ret = (struct field){ .number = (uint32_t)(key >> 3) };
	switch (key & 7) {
	case 0:
		r = get_varint(s, &ret->value);
		return r < 0 ? r : 1;
	case 1:
	case 5:
		size = (key & 7) == 1 ? 8 : 4;
		if ((uint64_t)(s->end - s->at) < size)
			return -EBADMSG;
		memcpy(&ret->value, s->at, size);
		s->at += size;
		return 1;
	case 2:
		r = get_varint(s, &size);
		if (r < 0 || size > (uint64_t)(s->end - s->at))
			return -EBADMSG;
		ret->bytes = (struct span){ s->at, s->at + size };
		s->at += size;
		return 1;
	default:
		return -EBADMSG;
	}
}

static int next_record(struct span *image, struct span *ret)
{
	uint32_t size;

	if (image->at == image->end)
		return 0;
	if (image->end - image->at < 4)
		return -EBADMSG;
	memcpy(&size, image->at, 4);
	image->at += 4;
	if (size > (size_t)(image->end - image->at))
		return -EBADMSG;
	*ret = (struct span){ image->at, image->at + size };
	image->at += size;
	return 1;
}

static int load(int images, const char *name, char **ret_text, struct span *ret_records)
{
	size_t size;
	uint32_t magic;
	int r = read_file_at(images, name, 256 << 20, ret_text, &size);

	if (r < 0)
		return r;
	if (size < 8)
		return -EBADMSG;
	memcpy(&magic, *ret_text, 4);
	*ret_records = (struct span){ (uint8_t *)*ret_text + 8, (uint8_t *)*ret_text + size };
	return magic == IMAGE_COMMON_MAGIC ? 0 : -EBADMSG;
}

static int find_field(struct span message, uint32_t number, struct field *ret)
{
	struct field f;
	int r;

	while ((r = next_field(&message, &f)) > 0) {
		if (f.number == number) {
			*ret = f;
			return 0;
		}
	}
	return r < 0 ? r : -ENOENT;
}

static int parse_run(struct span record, struct image_run *ret)
{
	struct field f;
	int r;

	while ((r = next_field(&record, &f)) > 0) {
		if (f.number == 1)
			ret->vaddr = f.value;
		else if (f.number == 2 || f.number == 5)
			ret->pages = f.value;
		else if (f.number == 4 && f.value != 4) /* not "present": in a parent, or lazy */
			return -EBADMSG;
	}
	return r;
}

int image_pagemap_load(int images, const char *name, struct image_pagemap *ret_map)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_free_ struct image_run *runs = NULL;
	struct span records, record;
	size_t count = 0, room = 0;
	uint64_t block = 0;
	struct field f;
	int r = load(images, name, &text, &records);

	if (r == 0)
		r = next_record(&records, &record) > 0 ? find_field(record, 1, &f) : -EBADMSG;
	if (r < 0)
		return r;
	while ((r = next_record(&records, &record)) > 0) {
		struct image_run run = { .block = block };

		if (count == room) {
			struct image_run *more;

			room = room ? 2 * room : 1024;
			more = realloc(runs, room * sizeof(*runs));
			if (!more)
				return -ENOMEM;
			runs = more;
		}
		r = parse_run(record, &run);
		if (r < 0 || (count && runs[count - 1].vaddr + runs[count - 1].pages * ORACLE_PAGE >
					       run.vaddr))
			return -EBADMSG;
		block += run.pages;
		runs[count++] = run;
	}
	if (r < 0)
		return r;
	*ret_map = (struct image_pagemap){ (uint32_t)f.value, take_ptr(runs), count };
	return 0;
}

static int parse_vma(struct span record, struct image_vma *ret)
{
	struct field f;
	int r;

	*ret = (struct image_vma){ 0 };
	while ((r = next_field(&record, &f)) > 0) {
		switch (f.number) {
		case 1:
			ret->start = f.value;
			break;
		case 2:
			ret->end = f.value;
			break;
		case 4:
			ret->shmid = f.value;
			break;
		case 5:
			ret->prot = (uint32_t)f.value;
			break;
		case 7:
			ret->status = (uint32_t)f.value;
			break;
		}
	}
	return r;
}

int image_vmas_load(int images, pid_t pid, struct image_vma **ret_vmas, size_t *ret_count)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_free_ struct image_vma *vmas = NULL;
	struct span records, record;
	size_t count = 0;
	struct field f;
	char name[64];
	int r;

	snprintf(name, sizeof(name), "mm-%d.img", pid);
	r = load(images, name, &text, &records);
	if (r < 0)
		return r;
	if (next_record(&records, &record) <= 0)
		return -EBADMSG;
	/* A VMA takes more than 8 bytes of the image. */
	vmas = calloc((size_t)(record.end - record.at) / 8 + 1, sizeof(*vmas));
	if (!vmas)
		return -ENOMEM;
	while ((r = next_field(&record, &f)) > 0) {
		if (f.number != 14)
			continue;
		r = parse_vma(f.bytes, &vmas[count++]);
		if (r < 0)
			break;
	}
	if (r < 0)
		return r;
	*ret_vmas = take_ptr(vmas);
	*ret_count = count;
	return 0;
}

int image_memfd_shmid(int images, uint32_t id, uint32_t *ret_shmid)
{
	_cleanup_free_ char *files = NULL, *inodes = NULL;
	struct span records, record;
	struct field entry, f;
	uint64_t inode = 0;
	int r = load(images, "files.img", &files, &records);

	while (r == 0 && !inode && next_record(&records, &record) > 0) {
		if (find_field(record, 2, &f) == 0 && f.value == id &&
		    find_field(record, FILE_TYPE_MEMFD_FIELD, &entry) == 0 &&
		    find_field(entry.bytes, 5, &f) == 0)
			inode = f.value;
	}
	if (r == 0)
		r = inode ? load(images, "memfd.img", &inodes, &records) : -ENOENT;
	while (r == 0 && next_record(&records, &record) > 0) {
		if (find_field(record, 7, &f) == 0 && f.value == inode &&
		    find_field(record, 5, &f) == 0) {
			*ret_shmid = (uint32_t)f.value;
			return 0;
		}
	}
	return r < 0 ? r : -ENOENT;
}

static const struct store_file *find_file(const struct store *s, uint32_t pages_id)
{
	for (size_t i = 0; s && i < s->count; i++) {
		if (s->files[i].pages_id == pages_id)
			return &s->files[i];
	}
	return NULL;
}

const uint8_t *store_block(const struct store *s, uint32_t pages_id, uint64_t block)
{
	const struct store_file *f = find_file(s, pages_id);

	return f && block < f->blocks ? f->bytes + block * ORACLE_PAGE : NULL;
}

uint64_t store_blocks(const struct store *s, uint32_t pages_id)
{
	const struct store_file *f = find_file(s, pages_id);

	return f ? f->blocks : 0;
}

struct chain {
	const struct store *base;
	const uint8_t *new;
	uint64_t new_blocks;
	char *why;
};

static int complain(const struct chain *c, uint32_t pages_id, const char *what, uint64_t number)
{
	snprintf(c->why, 256, "pages-%u.runs: %s %llu", pages_id, what, (unsigned long long)number);
	return -EBADMSG;
}

/* In huge pages: it is written and read once, and faults would be most of the work. */
static int give_room(struct store_file *f)
{
	size_t size = f->blocks * ORACLE_PAGE;
	void *at = mmap(NULL, size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		return -ENOMEM;
	(void)madvise(at, size + 1, MADV_HUGEPAGE);
	f->bytes = at;
	return 0;
}

static int resolve(const struct chain *c, const char *text, size_t size, struct store_file *f)
{
	const struct store_file *old = find_file(c->base, f->pages_id);
	size_t records = size / 16, at = 0;
	int r;

	if (size % 16)
		return complain(c, f->pages_id, "odd size", size);
	for (int pass = 0; pass < 2; pass++) {
		for (size_t i = 0; i < records; i++) {
			uint64_t words[2], first, limit;
			const uint8_t *from;

			memcpy(words, text + i * 16, 16);
			first = words[0] & ((1ULL << 56) - 1);
			if (words[0] >> 56 != FROM_NEW && words[0] >> 56 != FROM_OLD)
				return complain(c, f->pages_id, "unknown kind in run", i);
			from = words[0] >> 56 == FROM_NEW ? c->new : old ? old->bytes : NULL;
			limit = words[0] >> 56 == FROM_NEW ? c->new_blocks : old ? old->blocks : 0;
			if (first > limit || words[1] > limit - first)
				return complain(c, f->pages_id, "no such block for run", i);
			if (pass)
				memcpy(f->bytes + at * ORACLE_PAGE, from + first * ORACLE_PAGE,
				       words[1] * ORACLE_PAGE);
			else
				f->blocks += words[1];
			at += pass ? words[1] : 0;
		}
		if (!pass) {
			r = give_room(f);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

static int load_runs(int images, struct chain *c, struct store *s)
{
	_cleanup_closedir_ DIR *dir = fdopendir(openat(images, ".", O_RDONLY | O_CLOEXEC));
	int r = dir ? 0 : -errno;

	for (struct dirent *d; r == 0 && (d = readdir(dir));) {
		_cleanup_free_ char *text = NULL;
		unsigned int id;
		size_t size;
		int end = 0;

		if (sscanf(d->d_name, "pages-%u.runs%n", &id, &end) != 1 || !end || d->d_name[end])
			continue;
		if (s->count == STORE_FILES_MAX)
			return -E2BIG;
		r = read_file_at(images, d->d_name, 256 << 20, &text, &size);
		s->files[s->count] = (struct store_file){ .pages_id = id };
		if (r == 0)
			r = resolve(c, text, size, &s->files[s->count++]);
	}
	return r;
}

int store_load(int images, const struct store *base, struct store **ret_store, char why[256])
{
	_cleanup_close_ int fd = openat(images, "pages.new", O_RDONLY | O_CLOEXEC);
	struct chain c = { .base = base, .why = why };
	struct store *s = calloc(1, sizeof(*s));
	struct stat st = { 0 };
	void *map = NULL;
	int r;

	why[0] = '\0';
	if (!s)
		return -ENOMEM;
	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size >= ORACLE_PAGE) {
		c.new_blocks = (uint64_t)st.st_size / ORACLE_PAGE;
		map = mmap(NULL, c.new_blocks * ORACLE_PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	}
	if (map == MAP_FAILED) {
		store_destroy(s);
		return -ENOMEM;
	}
	c.new = map;
	r = load_runs(images, &c, s);
	if (map)
		munmap(map, c.new_blocks * ORACLE_PAGE);
	if (r < 0) {
		store_destroy(s);
		return r;
	}
	*ret_store = s;
	return 0;
}

void store_destroy(struct store *s)
{
	if (!s)
		return;
	for (size_t i = 0; i < s->count; i++)
		if (s->files[i].bytes)
			munmap(s->files[i].bytes, s->files[i].blocks * ORACLE_PAGE + 1);
	free(s);
}
