// SPDX-License-Identifier: LGPL-2.1-or-later
/* Memory that a newer kernel may drop, restored under one that cannot. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/native/img.h"
#include "agent/native/mem.pb-c.h"
#include "agent/restore/maps.h"
#include "agent/util/io.h"

enum { DROPPABLE = 0x08, FLAGS = 3 };

static char folder[] = "/tmp/decamp-maps-XXXXXX";
static int images = -1;

static int setup(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	images = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return images < 0 ? -1 : 0;
}

static int teardown(void **state)
{
	(void)state;
	close(images);
	return remove_tree_at(AT_FDCWD, folder);
}

static void write_mm(const char *name, const uint32_t flags[FLAGS])
{
	NatMm__Vma vmas[FLAGS], *list[FLAGS];
	NatMm__Mm mm = NAT_MM__MM__INIT;
	uint64_t auxv[2] = { 0 };
	struct img *i;

	for (int k = 0; k < FLAGS; k++) {
		nat_mm__vma__init(&vmas[k]);
		vmas[k].start = 0x10000u * (k + 1);
		vmas[k].end = vmas[k].start + 0x1000;
		vmas[k].flags = flags[k];
		list[k] = &vmas[k];
	}
	mm.n_vmas = FLAGS;
	mm.vmas = list;
	mm.n_auxv = 2;
	mm.auxv = auxv;
	unlinkat(images, "mm-7.img", 0);
	assert_int_equal(img_create(images, name, &i), 0);
	img_put(i, &mm.base);
	assert_int_equal(img_close(i), 0);
}

static void assert_flags(const uint32_t flags[FLAGS])
{
	_cleanup_free_ char *bytes = NULL;
	NatMm__Mm *mm;
	size_t size;

	assert_int_equal(read_file_at(images, "mm-7.img", 1 << 20, &bytes, &size), 0);
	mm = nat_mm__mm__unpack(NULL, size - 12, (uint8_t *)bytes + 12);
	assert_non_null(mm);
	assert_int_equal(mm->n_vmas, FLAGS);
	for (int k = 0; k < FLAGS; k++) {
		assert_int_equal(mm->vmas[k]->flags, flags[k]);
		assert_int_equal(mm->vmas[k]->start, 0x10000u * (k + 1));
	}
	nat_mm__mm__free_unpacked(mm, NULL);
}

static void test_undrop(void **state)
{
	static const uint32_t before[FLAGS] = { MAP_PRIVATE | MAP_ANONYMOUS,
						DROPPABLE | MAP_ANONYMOUS, MAP_SHARED };
	static const uint32_t after[FLAGS] = { MAP_PRIVATE | MAP_ANONYMOUS,
					       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
					       MAP_SHARED };

	(void)state;
	write_mm("mm-7", before);
	assert_int_equal(maps_undrop(images), 0);
	assert_flags(after);
	assert_int_equal(maps_undrop(images), 0);
	assert_flags(after);
}

/* One without such memory is not written anew. */
static void test_untouched(void **state)
{
	static const uint32_t flags[FLAGS] = { MAP_PRIVATE, MAP_SHARED, MAP_PRIVATE };
	struct stat before, after;

	(void)state;
	write_mm("mm-7", flags);
	assert_int_equal(fstatat(images, "mm-7.img", &before, 0), 0);
	assert_int_equal(maps_undrop(images), 0);
	assert_int_equal(fstatat(images, "mm-7.img", &after, 0), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	assert_flags(flags);
}

/* Every cut of an image, and a size that is not that of the file. */
static void test_nonsense(void **state)
{
	static const uint32_t flags[FLAGS] = { DROPPABLE, MAP_SHARED, MAP_PRIVATE };
	struct stat st;

	(void)state;
	write_mm("mm-7", flags);
	assert_int_equal(fstatat(images, "mm-7.img", &st, 0), 0);
	for (off_t size = st.st_size - 1; size >= 0; size--) {
		_cleanup_close_ int fd = openat(images, "mm-7.img", O_RDWR | O_CLOEXEC);

		assert_true(fd >= 0);
		assert_int_equal(ftruncate(fd, size), 0);
		assert_int_equal(maps_undrop(images), -EBADMSG);
	}
}

/* What the probe says is what a mapping finds. */
static void test_probe(void **state)
{
	void *page = mmap(NULL, 4096, PROT_READ, DROPPABLE | MAP_ANONYMOUS, -1, 0);

	(void)state;
	assert_int_equal(maps_have_droppable(), page != MAP_FAILED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_undrop),
		cmocka_unit_test(test_untouched),
		cmocka_unit_test(test_nonsense),
		cmocka_unit_test(test_probe),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
