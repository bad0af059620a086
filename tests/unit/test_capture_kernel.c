// SPDX-License-Identifier: LGPL-2.1-or-later
/* What images ask of a kernel. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/capture/internal.h"
#include "agent/native/core.pb-c.h"
#include "agent/native/img.h"
#include "agent/native/ipc.pb-c.h"
#include "agent/native/mem.pb-c.h"
#include "agent/util/io.h"
#include "overlay/types.h"

/* VMA_AREA_* of CRIU's image.h; seals of memfd_create(2). */
enum {
	REGULAR = 1,
	SHADOW_STACK = 1 << 15,
	GUARD = 1 << 16,
	SEAL_WRITE = 0x8,
	SEAL_EXEC = 0x20,
};

static char folder[] = "/tmp/decamp-kernel-XXXXXX";
static int images = -1;

static int setup(void **state)
{
	(void)state;
	if (mkdir(folder, 0700) < 0)
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

static void put(const char *name, const ProtobufCMessage *message)
{
	struct img *i;

	assert_int_equal(img_create(images, name, &i), 0);
	img_put(i, message);
	assert_int_equal(img_close(i), 0);
}

static void put_mm(const char *name, uint32_t status)
{
	NatMm__Vma vmas[2], *list[2] = { &vmas[0], &vmas[1] };
	NatMm__Mm mm = NAT_MM__MM__INIT;

	for (int i = 0; i < 2; i++) {
		nat_mm__vma__init(&vmas[i]);
		vmas[i].status = i ? status : REGULAR;
	}
	mm.n_vmas = 2;
	mm.vmas = list;
	put(name, &mm.base);
}

static void put_core(const char *name, uint32_t rseq_size)
{
	NatCore__Core core = NAT_CORE__CORE__INIT;
	NatCore__Thread thread = NAT_CORE__THREAD__INIT;
	NatCore__Rseq rseq = NAT_CORE__RSEQ__INIT;

	rseq.size = rseq_size;
	thread.rseq = &rseq;
	core.thread = rseq_size ? &thread : NULL; /* a zombie has none */
	put(name, &core.base);
}

static void put_memfd(uint32_t seals)
{
	NatIpc__MemfdInode inode = NAT_IPC__MEMFD_INODE__INIT;

	inode.name = (char *)"x";
	inode.seals = seals;
	put("memfd", &inode.base);
}

static void each_thing_has_its_feature(void **state)
{
	static const struct {
		const char *mm, *core;
		uint32_t status, rseq_size, seals, need;
	} cases[] = {
		{ "mm-32767", "core-32767", REGULAR, 32, 0, 0 },
		{ "mm-2", "core-2", REGULAR, 0, SEAL_WRITE, 0 },
		{ "mm-2", "core-2", GUARD, 32, 0, KERNEL_GUARDS },
		{ "mm-2", "core-2", REGULAR | SHADOW_STACK, 32, 0, KERNEL_SHADOW_STACK },
		{ "mm-2", "core-2", REGULAR, 33, 0, KERNEL_RSEQ_LONG },
		{ "mm-2", "core-2", REGULAR, 32, SEAL_EXEC | SEAL_WRITE, KERNEL_EXEC_SEAL },
		{ "mm-2", "core-32768", REGULAR, 32, 0, KERNEL_PIDS },
		{ "mm-40000", "core-40000", GUARD, 64, SEAL_EXEC,
		  KERNEL_PIDS | KERNEL_GUARDS | KERNEL_RSEQ_LONG | KERNEL_EXEC_SEAL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint32_t need = UINT32_MAX;

		put_mm(cases[i].mm, cases[i].status);
		put_core(cases[i].core, cases[i].rseq_size);
		put_memfd(cases[i].seals);
		assert_int_equal(capture_kernel_need(images, &need), 0);
		assert_int_equal(need, cases[i].need);
		assert_int_equal(teardown(state), 0);
		assert_int_equal(setup(state), 0);
	}
}

/* Whatever else lies there, and what does not decode, asks for nothing and breaks nothing. */
static void others_are_passed_over(void **state)
{
	static const char *const names[] = { "mm-7.img", "core-7.img", "memfd.img" };
	uint32_t need = UINT32_MAX;

	(void)state;
	put_mm("pagemap-40000", GUARD);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		int fd = openat(images, names[i], O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

		assert_int_equal(write(fd, "no image of any kind", i * 6), i * 6);
		close(fd);
	}
	put_mm("mm-8", GUARD);
	assert_int_equal(renameat(images, "mm-8.img", images, "mm-8.img.new"), 0);
	assert_int_equal(capture_kernel_need(images, &need), 0);
	assert_int_equal(need, 0);
	assert_true(capture_kernel_need(-1, &need) < 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(each_thing_has_its_feature, setup, teardown),
		cmocka_unit_test_setup_teardown(others_are_passed_over, setup, teardown),
	};

	if (!mkdtemp(folder) || rmdir(folder) < 0)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
