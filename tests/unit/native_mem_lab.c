// SPDX-License-Identifier: LGPL-2.1-or-later
#include "native_mem_lab.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/native/freeze.h"
#include "agent/native/mem.pb-c.h"
#include "agent/native/scan.h"
#include "agent/util/io.h"

enum {
	VM_SHARED_BIT = 8,
	VM_PFNMAP_BIT = 0x400,
	TRUTH_BYTES = 700 << 20,
	WORDS_MAX_BYTES = 256 << 20, /* larger VMAs are asked for by scan */
	DEADLINE_MS = 30000,
};

struct truth_vma {
	uint64_t start, end, offset;
	int file; /* -1: anonymous */
};

struct truth_page {
	uint64_t at;
	uint8_t *bytes;
};

/* What one process, or one object, holds at the frozen instant. */
struct truth {
	char pagemap[64];
	bool object;
	struct truth_vma *vmas;
	size_t vma_count;
	struct truth_page *pages;
	size_t count, room;
};

struct truths {
	struct truth *v;
	size_t count;
	uint8_t *bytes;
	size_t used;
};

static uint64_t clock_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

bool lab_start(struct lab *lab, enum native_tracker tracker, unsigned int broken)
{
	struct native_mem_config config = { .tracker = tracker,
					    .buffer_bytes = 8 << 20,
					    .pause_target_us = 1000,
					    .broken = broken };
	int r;

	*lab = (struct lab){ .base = -1, .judge = true };
	r = state_create(&lab->state, lab->reason);
	if (r < 0) {
		print_message("SKIP: no BPF: %s\n", lab->reason);
		return false;
	}
	r = mem_create(&config, &lab->mem);
	if (r == -EOPNOTSUPP) {
		print_message("SKIP: the kernel lacks this tracker\n");
		state_destroy(lab->state);
		return false;
	}
	assert_int_equal(r, 0);
	assert_int_equal(arena_create(4 << 20, &lab->arena), 0);
	strcpy(lab->dir, "/var/tmp/decamp-native-mem-XXXXXX");
	assert_non_null(mkdtemp(lab->dir));
	return true;
}

void lab_end(struct lab *lab)
{
	mem_destroy(lab->mem);
	state_destroy(lab->state);
	arena_destroy(lab->arena);
	if (lab->base >= 0)
		close(lab->base);
	assert_int_equal(remove_tree_at(AT_FDCWD, lab->dir), 0);
}

static bool has_pages(const struct state_vma *v)
{
	return !(v->vm_flags & (VM_SHARED_BIT | VM_PFNMAP_BIT));
}

static uint8_t *add_page(struct truths *all, struct truth *t, uint64_t at)
{
	if (t->count == t->room) {
		t->room = t->room ? t->room * 2 : 4096;
		t->pages = reallocarray(t->pages, t->room, sizeof(*t->pages));
		assert_non_null(t->pages);
	}
	assert_true(all->used + NATIVE_PAGE <= TRUTH_BYTES);
	t->pages[t->count] = (struct truth_page){ at, all->bytes + all->used };
	all->used += NATIVE_PAGE;
	return t->pages[t->count++].bytes;
}

/* Independent of the engine: words of pagemap, bytes of /proc/PID/mem. */
static void read_vma(struct truths *all, struct truth *t, int pagemap, int memory,
		     const struct state_vma *v)
{
	struct regions found = { 0 };

	if (v->end - v->start <= WORDS_MAX_BYTES) {
		assert_int_equal(scan_words(pagemap, v->start, v->end, &found), 0);
	} else {
		struct scan s = { .anyof = PAGE_PRESENT | PAGE_SWAPPED, .report = PAGE_PRESENT };

		assert_int_equal(scan_pages(pagemap, &s, v->start, v->end, &found), 0);
	}
	for (size_t i = 0; i < found.count; i++) {
		for (uint64_t at = found.v[i].start; at < found.v[i].end; at += NATIVE_PAGE) {
			uint8_t *p;

			/* Files' own pages are what the default of the judge is. */
			if (found.v[i].categories & (PAGE_GUARD) ||
			    (found.v[i].categories & PAGE_FILE && v->file))
				continue;
			p = add_page(all, t, at);
			/* Beyond the end of its file, or poisoned: nobody can read that. */
			if (pread_full(memory, p, NATIVE_PAGE, (off_t)at) < 0)
				t->count--;
		}
	}
	regions_deinit(&found);
}

static void read_task(struct truths *all, struct truth *t, const struct native_task *task)
{
	_cleanup_close_ int pagemap = -1, memory = -1;
	char path[96];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", task->pid);
	pagemap = open(path, O_RDONLY);
	snprintf(path, sizeof(path), "/proc/%d/mem", task->pid);
	memory = open(path, O_RDONLY);
	assert_true(pagemap >= 0 && memory >= 0);
	snprintf(t->pagemap, sizeof(t->pagemap), "pagemap-%d.img", task->inner_pid);
	t->vmas = calloc(task->vma_count, sizeof(*t->vmas));
	for (size_t i = 0; i < task->vma_count; i++) {
		const struct state_vma *v = &task->vmas[i];
		int file = -1;

		if (!has_pages(v))
			continue;
		if (v->file) {
			snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", task->pid,
				 (unsigned long long)v->start, (unsigned long long)v->end);
			file = open(path, O_RDONLY);
			assert_true(file >= 0);
		}
		t->vmas[t->vma_count++] =
			(struct truth_vma){ v->start, v->end, v->file ? v->offset : 0, file };
		read_vma(all, t, pagemap, memory, v);
	}
}

static void read_object(struct truths *all, struct truth *t, int fd, uint64_t size)
{
	t->object = true;
	t->vmas = calloc(1, sizeof(*t->vmas));
	t->vmas[0] = (struct truth_vma){ 0, size, 0, -1 };
	t->vma_count = 1;
	for (uint64_t at = 0; at < size; at += NATIVE_PAGE)
		assert_int_equal(pread_full(fd, add_page(all, t, at), NATIVE_PAGE, (off_t)at), 0);
}

/* memfds that the job maps, as files.h would announce them; fd is closed by the caller. */
static int add_objects(struct lab *lab, struct truths *all)
{
	int r = 0;

	for (size_t i = 0; i < lab->tree.task_count && r == 0; i++) {
		const struct native_task *task = &lab->tree.tasks[i];

		for (size_t k = 0; k < task->vma_count && r == 0; k++) {
			const struct state_vma *v = &task->vmas[k];
			_cleanup_close_ int fd = -1;
			struct truth *t = &all->v[all->count];
			struct stat st;
			char path[96];

			if (strncmp(v->path, "/memfd:", 7) != 0)
				continue;
			snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", task->pid,
				 (unsigned long long)v->start, (unsigned long long)v->end);
			fd = open(path, O_RDONLY);
			assert_true(fd >= 0 && fstat(fd, &st) == 0);
			snprintf(t->pagemap, sizeof(t->pagemap), "pagemap-shmem-%u.img",
				 (uint32_t)v->ino);
			r = mem_add_object(lab->mem, &lab->tree, (uint32_t)v->ino, v->dev, v->ino,
					   (uint64_t)st.st_size, fd);
			if (!lab->judge || (all->count && !strcmp(t[-1].pagemap, t->pagemap)))
				continue;
			read_object(all, t, fd, (uint64_t)st.st_size);
			all->count++;
		}
	}
	return r;
}

static void read_truth(struct lab *lab, struct truths *all)
{
	for (size_t i = 0; i < lab->tree.task_count && lab->judge; i++)
		if (!lab->tree.tasks[i].zombie)
			read_task(all, &all->v[all->count++], &lab->tree.tasks[i]);
}

static int look(struct lab *lab)
{
	int r = tree_list(&lab->tree);

	if (r == 0)
		r = state_prepare(lab->state, &lab->tree);
	if (r == 0)
		r = state_collect(lab->state, &lab->tree);
	return r == 0 ? mem_check(&lab->tree) : r;
}

static int stop_and_collect(struct lab *lab, struct truths *all)
{
	uint64_t start, truth;
	int r;

	freeze_raise();
	start = clock_us();
	r = freeze_tree(&lab->tree, DEADLINE_MS);
	if (r < 0) {
		freeze_lower();
		return r;
	}
	r = state_collect(lab->state, &lab->tree);
	all->v = calloc(2 * lab->tree.task_count + 4, sizeof(*all->v));
	if (r == 0)
		r = add_objects(lab, all);
	if (r == 0)
		r = mem_collect(lab->mem, &lab->tree);
	if (r == 0)
		r = mem_settle(lab->mem, &lab->tree);
	if (r == 1) /* it cleared something, which is no matter here: nobody can move */
		r = 0;
	truth = clock_us();
	if (r == 0)
		read_truth(lab, all);
	lab->truth_us = clock_us() - truth;
	thaw_tree(&lab->tree);
	lab->pause_us = clock_us() - start - lab->truth_us;
	freeze_lower();
	return r;
}

/* Image pages of one pagemap, in memory. */
static struct truth_page *read_image(int images, const char *name, size_t *ret_count,
				     uint8_t **ret_bytes)
{
	struct truth_page *pages = NULL;
	_cleanup_free_ char *text = NULL;
	_cleanup_close_ int fd = -1;
	size_t size, count = 0, at = 8;
	struct stat st;
	char path[64];
	NatMm__PagemapHead *head;
	uint32_t length;

	assert_int_equal(read_file_at(images, name, 64 << 20, &text, &size), 0);
	memcpy(&length, text + at, 4);
	head = nat_mm__pagemap_head__unpack(NULL, length, (uint8_t *)text + at + 4);
	assert_non_null(head);
	snprintf(path, sizeof(path), "pages-%u.img", head->pages_id);
	nat_mm__pagemap_head__free_unpacked(head, NULL);
	for (at += 4 + length; at < size; at += 4 + length) {
		NatMm__PagemapEntry *e;

		memcpy(&length, text + at, 4);
		e = nat_mm__pagemap_entry__unpack(NULL, length, (uint8_t *)text + at + 4);
		assert_non_null(e);
		pages = reallocarray(pages, count + e->nr_pages, sizeof(*pages));
		for (uint32_t i = 0; i < e->nr_pages; i++)
			pages[count++].at = e->vaddr + i * (uint64_t)NATIVE_PAGE;
		nat_mm__pagemap_entry__free_unpacked(e, NULL);
	}
	fd = openat(images, path, O_RDONLY);
	assert_true(fd >= 0 && fstat(fd, &st) == 0);
	assert_int_equal(st.st_size, count * NATIVE_PAGE);
	*ret_bytes = malloc(count * NATIVE_PAGE + 1);
	assert_int_equal(read_full(fd, *ret_bytes, count * NATIVE_PAGE), 0);
	for (size_t i = 0; i < count; i++)
		pages[i].bytes = *ret_bytes + i * NATIVE_PAGE;
	*ret_count = count;
	return pages;
}

/* What a page reads as that nobody stored. False: the page lies in no private map. */
static bool default_page(const struct truth *t, uint64_t at, uint8_t page[NATIVE_PAGE])
{
	memset(page, 0, NATIVE_PAGE);
	for (size_t i = 0; i < t->vma_count; i++) {
		const struct truth_vma *v = &t->vmas[i];

		if (at < v->start || at >= v->end)
			continue;
		if (v->file >= 0 &&
		    pread(v->file, page, NATIVE_PAGE, (off_t)(v->offset + at - v->start)) < 0)
			return false;
		return true;
	}
	return false;
}

static void judge(struct lab *lab, int images, const struct truth *t)
{
	uint8_t *bytes, other[NATIVE_PAGE];
	size_t count, i = 0, k = 0;
	struct truth_page *pages = read_image(images, t->pagemap, &count, &bytes);

	while (i < count || k < t->count) {
		const struct truth_page *image = i < count ? &pages[i] : NULL;
		const struct truth_page *truth = k < t->count ? &t->pages[k] : NULL;
		uint64_t at;
		bool right = true;

		if (image && truth && image->at != truth->at) {
			if (image->at < truth->at)
				truth = NULL;
			else
				image = NULL;
		}
		at = image ? image->at : truth->at;
		if (!image || !truth)
			right = default_page(t, at, other);
		right = right && !memcmp(image ? image->bytes : other, truth ? truth->bytes : other,
					 NATIVE_PAGE);
		if (right)
			lab->pages_right++;
		else if (lab->pages_wrong++ == 0)
			lab->wrong_at = at;
		i += image != NULL;
		k += truth != NULL;
	}
	free(bytes);
	free(pages);
}

static void free_truths(struct truths *all)
{
	for (size_t i = 0; i < all->count; i++) {
		for (size_t k = 0; k < all->v[i].vma_count; k++)
			if (all->v[i].vmas[k].file >= 0)
				close(all->v[i].vmas[k].file);
		free(all->v[i].vmas);
		free(all->v[i].pages);
	}
	free(all->v);
	free(all->bytes);
}

static int finish(struct lab *lab, int images, const struct truths *all)
{
	int r = mem_write(lab->mem, &lab->tree);

	if (r < 0)
		return r;
	if (!lab->judge)
		return 0;
	r = mem_materialise(images, lab->base);
	for (size_t i = 0; i < all->count && r == 0; i++)
		judge(lab, images, &all->v[i]);
	return r;
}

int lab_take(struct lab *lab, pid_t root, void (*between)(void *ctx), void *ctx,
	     const struct native_wanted *wanted, size_t wanted_count)
{
	struct truths all = { 0 };
	char path[128];
	int images, r;

	snprintf(path, sizeof(path), "%s/%u", lab->dir, lab->n++);
	assert_int_equal(mkdir(path, 0700), 0);
	images = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(images >= 0);
	all.bytes = lab->judge ? malloc(TRUTH_BYTES) : NULL;
	lab->pages_right = lab->pages_wrong = 0;
	lab->reason[0] = '\0';
	arena_reset(lab->arena);
	lab->tree = (struct native_tree){
		.root = root, .arena = lab->arena, .images = images, .reason = lab->reason
	};
	r = look(lab);
	if (r == 0)
		r = mem_precopy(lab->mem, lab->state, &lab->tree, wanted, wanted_count);
	if (r == 0)
		r = mem_catch_up(lab->mem, lab->state, &lab->tree);
	if (r == 0 && between)
		between(ctx);
	if (r == 0)
		r = stop_and_collect(lab, &all);
	if (r == 0)
		r = finish(lab, images, &all);
	mem_counts(lab->mem, &lab->counts);
	free_truths(&all);
	if (lab->base >= 0)
		close(lab->base);
	lab->base = -1;
	if (r == 0)
		lab->base = images;
	else
		close(images);
	/* Two are enough: this one and, no more, its base. */
	if (lab->n >= 2) {
		snprintf(path, sizeof(path), "%s/%u", lab->dir, lab->n - 2);
		assert_int_equal(remove_tree_at(AT_FDCWD, path), 0);
	}
	return r;
}
