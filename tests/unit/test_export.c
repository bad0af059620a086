// SPDX-License-Identifier: LGPL-2.1-or-later
/* Cores made of images, checked through libelf; and images that are wrong. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <gelf.h>
#include <libelf.h>
#include <sys/procfs.h>

#include "agent/export/internal.h"
#include "agent/native/ipc.pb-c.h"
#include "agent/util/io.h"

enum { PAGE = EXPORT_PAGE, FILES_MAX = 32, PAGES = 40, ROOT_PID = 1000, THREADS = 3, UID = 1234 };
enum { ANON = 0x1000000, MAPPED = 0x2000000, CLEAN = 0x2800000, SHARED = 0x3000000 };
enum { VVAR = 0x4000000, VMAS = 5 };

/* A checkpoint in memory. */
struct lab {
	struct export_set set;
	struct export_file files[FILES_MAX];
	uint8_t *bytes[FILES_MAX]; /* by export_file.index */
	size_t count;
	int fail; /* of reads from now on */
	uint8_t *data;
	size_t size;
	char reason[EXPORT_REASON_MAX];
	/* what the images are to say */
	uint32_t mtype, mode, page_flags, state;
	bool unsorted;
	size_t vma_count; /* more of them, of one page each */
};

static int read_part(void *ctx, const struct export_file *file, uint64_t offset, void *ret_bytes,
		     size_t size)
{
	struct lab *lab = ctx;

	assert_true(size <= EXPORT_READ_MAX && offset + size <= file->size);
	memcpy(ret_bytes, lab->bytes[file->index] + offset, size);
	return lab->fail;
}

static void add_file(struct lab *lab, enum file_kind kind, const char *path, const void *bytes,
		     size_t size)
{
	struct export_file *f = &lab->files[lab->count];

	assert_true(lab->count < FILES_MAX);
	*f = (struct export_file){ .index = lab->count,
				   .kind = kind,
				   .type = EXPORT_FILE,
				   .path = strdup(path),
				   .size = size };
	lab->bytes[lab->count] = malloc(size + 1);
	if (size)
		memcpy(lab->bytes[lab->count], bytes, size);
	lab->count++;
}

/* ---- images ---- */

static void begin(struct lab *lab, uint32_t magic)
{
	const uint32_t head[] = { 0x54564319, magic };

	lab->size = 0;
	memcpy(lab->data, head, sizeof(head));
	lab->size = sizeof(head);
}

static void put(struct lab *lab, const void *message)
{
	const ProtobufCMessage *m = message;
	uint32_t size = (uint32_t)protobuf_c_message_get_packed_size(m);

	memcpy(lab->data + lab->size, &size, sizeof(size));
	lab->size +=
		sizeof(size) + protobuf_c_message_pack(m, lab->data + lab->size + sizeof(size));
}

static void end(struct lab *lab, const char *name)
{
	add_file(lab, FILE_IMAGE, name, lab->data, lab->size);
}

static void put_core(struct lab *lab, uint32_t tid)
{
	NatCore__Core core = NAT_CORE__CORE__INIT;
	NatCore__ThreadInfo info = NAT_CORE__THREAD_INFO__INIT;
	NatCore__Regs regs = NAT_CORE__REGS__INIT;
	NatCore__Fpregs fp = NAT_CORE__FPREGS__INIT;
	NatCore__Xsave xsave = NAT_CORE__XSAVE__INIT;
	NatCore__Task task = NAT_CORE__TASK__INIT;
	NatCore__Thread thread = NAT_CORE__THREAD__INIT;
	NatCore__Creds creds = NAT_CORE__CREDS__INIT;
	uint32_t st[32] = { 0 }, xmm[64] = { 0 }, ymmh[64] = { 0 }, pkru[2] = { 0x55555554 };
	char name[32];

	regs.r15 = 0x100 + tid;
	regs.has_mode = 1;
	regs.mode = lab->mode;
	ymmh[60] = 0xabcd;
	fp.st = st, fp.n_st = 32, fp.xmm = xmm, fp.n_xmm = 64, fp.xsave = &xsave;
	xsave.ymmh = ymmh, xsave.n_ymmh = 64, xsave.pkru = pkru, xsave.n_pkru = 2;
	xsave.xstate_bv = 0x207;
	info.gpregs = &regs, info.fpregs = &fp;
	creds.uid = creds.euid = creds.suid = creds.fsuid = UID;
	thread.creds = &creds;
	task.state = lab->state;
	task.comm = (char *)"lab";
	core.mtype = lab->mtype;
	core.thread_info = &info;
	core.thread = &thread;
	core.task = tid == ROOT_PID ? &task : NULL;
	begin(lab, IMAGE_CORE);
	put(lab, &core);
	snprintf(name, sizeof(name), "core-%u.img", tid);
	end(lab, name);
}

static void put_threads(struct lab *lab)
{
	NatCore__Pstree tree = NAT_CORE__PSTREE__INIT;
	uint32_t tids[THREADS] = { ROOT_PID, ROOT_PID + 7, ROOT_PID + 9 };

	tree.pid = ROOT_PID;
	tree.threads = tids;
	tree.n_threads = THREADS;
	begin(lab, IMAGE_PSTREE);
	put(lab, &tree);
	end(lab, "pstree.img");
	for (int i = 0; i < THREADS; i++)
		put_core(lab, tids[i]);
}

static void put_files(struct lab *lab)
{
	NatFiles__Fown fown = NAT_FILES__FOWN__INIT;
	NatFiles__Reg reg = NAT_FILES__REG__INIT;
	NatFiles__MemfdFile memfd = NAT_FILES__MEMFD_FILE__INIT;
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatIpc__MemfdInode inode = NAT_IPC__MEMFD_INODE__INIT;

	begin(lab, IMAGE_FILES);
	memfd.id = 5, memfd.inode_id = 77, memfd.fown = &fown;
	file.type = NAT_FILES__FILE_TYPE__MEMFD, file.id = 5, file.memfd = &memfd;
	put(lab, &file);
	reg.id = 3, reg.name = (char *)"/lib/known.so", reg.fown = &fown;
	file.type = NAT_FILES__FILE_TYPE__REG, file.id = 3, file.memfd = NULL, file.reg = &reg;
	put(lab, &file);
	end(lab, "files.img");
	inode.name = (char *)"x", inode.shmid = 9, inode.inode_id = 77;
	begin(lab, IMAGE_MEMFD);
	put(lab, &inode);
	end(lab, "memfd.img");
}

static void put_mm(struct lab *lab)
{
	NatMm__Mm mm = NAT_MM__MM__INIT;
	NatMm__Vma vmas[VMAS];
	NatMm__Vma **list = calloc(VMAS + lab->vma_count, sizeof(*list));
	NatMm__Vma *more = calloc(lab->vma_count + 1, sizeof(*more));
	uint64_t auxv[] = { 6, 4096 };
	static const uint64_t starts[] = { ANON, MAPPED, CLEAN, SHARED, VVAR };
	static const uint32_t sorts[] = { 0x201, 0x41, 0x41, 0x4081, 0x1001 };

	for (int i = 0; i < VMAS; i++) {
		nat_mm__vma__init(&vmas[i]);
		vmas[i].start = starts[i];
		vmas[i].end = starts[i] + (i == VMAS - 1 ? 1 : 1000) * PAGE;
		vmas[i].prot = 3;
		vmas[i].status = sorts[i];
		list[i] = &vmas[i];
	}
	vmas[1].shmid = vmas[2].shmid = 3;
	vmas[3].shmid = 5;
	vmas[3].pgoff = 2 * PAGE;
	for (size_t i = 0; i < lab->vma_count; i++) {
		nat_mm__vma__init(&more[i]);
		more[i].start = 0x10000000 + 2 * i * PAGE;
		more[i].end = more[i].start + PAGE;
		more[i].status = 0x201;
		list[VMAS + i] = &more[i];
	}
	mm.vmas = list;
	mm.n_vmas = VMAS + lab->vma_count;
	mm.auxv = auxv;
	mm.n_auxv = 2;
	begin(lab, IMAGE_MM);
	put(lab, &mm);
	end(lab, "mm-1000.img");
	free(list);
	free(more);
}

/* Pages of the process: 0-3, 5, 900 of ANON, 7 of MAPPED. Of the shared object: 1-4 and 20. */
static void put_pages(struct lab *lab)
{
	static const struct {
		uint64_t at;
		uint32_t count;
	} own[] = { { ANON, 4 },
		    { ANON + 5 * PAGE, 1 },
		    { ANON + 900 * PAGE, 1 },
		    { MAPPED + 7 * PAGE, 1 } },
	  shared[] = { { PAGE, 4 }, { 20 * PAGE, 1 } };
	NatMm__PagemapHead head = NAT_MM__PAGEMAP_HEAD__INIT;
	NatMm__PagemapEntry e = NAT_MM__PAGEMAP_ENTRY__INIT;
	uint8_t *pages = malloc(PAGES * PAGE);

	for (size_t i = 0; i < PAGES * PAGE; i++)
		pages[i] = (uint8_t)(1 + i / PAGE + i % 7);
	add_file(lab, FILE_IMAGE, "pages-1.img", pages, 7 * PAGE);
	add_file(lab, FILE_IMAGE, "pages-2.img", pages + 10 * PAGE, 5 * PAGE);
	add_file(lab, FILE_CLOSURE, "/lib/known.so", pages + 20 * PAGE, 9 * PAGE + 100);
	free(pages);
	head.pages_id = 1;
	begin(lab, IMAGE_PAGEMAP);
	put(lab, &head);
	for (size_t i = 0; i < ARRAY_SIZE(own); i++) {
		size_t at = lab->unsorted && i < 2 ? 1 - i : i;

		e.vaddr = own[at].at;
		/* As CRIU writes it, and as the native engine does. */
		e.nr_pages = i % 2 ? own[at].count : 0;
		e.has_nr_pages_wide = i % 2 == 0;
		e.nr_pages_wide = own[at].count;
		e.has_flags = 1;
		e.flags = lab->page_flags;
		put(lab, &e);
	}
	end(lab, "pagemap-1000.img");
	head.pages_id = 2;
	begin(lab, IMAGE_PAGEMAP);
	put(lab, &head);
	for (size_t i = 0; i < ARRAY_SIZE(shared); i++) {
		e.vaddr = shared[i].at;
		e.has_nr_pages_wide = 0;
		e.nr_pages = shared[i].count;
		put(lab, &e);
	}
	end(lab, "pagemap-shmem-9.img");
}

static struct lab *lab_make(struct lab with)
{
	struct lab *lab = malloc(sizeof(*lab));

	*lab = with;
	lab->data = malloc((1 << 16) + lab->vma_count * 64);
	put_threads(lab);
	put_files(lab);
	put_mm(lab);
	put_pages(lab);
	export_files_sort(lab->files, lab->count);
	lab->set = (struct export_set){ lab->files, lab->count, read_part, lab };
	return lab;
}

static void lab_free(struct lab *lab)
{
	for (size_t i = 0; i < lab->count; i++) {
		free(lab->files[i].path);
		free(lab->bytes[i]);
	}
	free(lab->data);
	free(lab);
}

static const struct lab plain = { .mtype = 1, .mode = 1, .page_flags = 4, .state = 1 };

/* ---- what a core says ---- */

struct opened {
	struct lab *lab;
	struct elf_core *core;
	uint8_t *bytes;
	size_t size;
	Elf *elf;
};

static struct opened open_core(struct lab *lab, bool with_files)
{
	struct opened o = { .lab = lab };

	assert_int_equal(elf_core_create(&lab->set, ROOT_PID, with_files, &o.core, lab->reason), 0);
	o.size = elf_core_size(o.core);
	o.bytes = malloc(o.size + 1);
	assert_int_equal(elf_core_read(o.core, 0, o.bytes, o.size), 0);
	assert_int_equal(elf_core_read(o.core, 1, o.bytes, o.size), -EINVAL);
	assert_int_equal(elf_core_read(o.core, 0, o.bytes, o.size), 0);
	elf_version(EV_CURRENT);
	o.elf = elf_memory((char *)o.bytes, o.size);
	assert_non_null(o.elf);
	return o;
}

static void close_core(struct opened *o)
{
	elf_end(o->elf);
	elf_core_destroy(o->core);
	free(o->bytes);
	lab_free(o->lab);
}

/* The byte at an address: its value, -1 in no PT_LOAD, -2 in one that leaves it to the file. */
static int byte_at(struct opened *o, uint64_t address)
{
	size_t count;
	GElf_Phdr p;

	assert_int_equal(elf_getphdrnum(o->elf, &count), 0);
	for (size_t i = 0; i < count; i++) {
		assert_non_null(gelf_getphdr(o->elf, (int)i, &p));
		if (p.p_type != PT_LOAD || address < p.p_vaddr || address - p.p_vaddr >= p.p_memsz)
			continue;
		assert_true(p.p_offset % PAGE == 0 && p.p_filesz <= p.p_memsz);
		assert_true(p.p_offset + p.p_filesz <= o->size);
		if (address - p.p_vaddr < p.p_filesz)
			return o->bytes[p.p_offset + (address - p.p_vaddr)];
		return p.p_filesz || p.p_vaddr < MAPPED || p.p_vaddr >= SHARED ? 0 : -2;
	}
	return -1;
}

static void test_memory(void **state)
{
	struct opened o = open_core(lab_make(plain), false);

	(void)state;
	/* Byte 3 of page n of an image is 1 + n + 3. */
	assert_int_equal(byte_at(&o, ANON + 3), 4);
	assert_int_equal(byte_at(&o, ANON + 3 * PAGE + 3), 1 + 3 + (3 * PAGE + 3) % 7);
	assert_int_equal(byte_at(&o, ANON + 4 * PAGE), 0);
	assert_int_equal(byte_at(&o, ANON + 5 * PAGE), 1 + 4 + (4 * PAGE) % 7);
	assert_int_equal(byte_at(&o, ANON + 500 * PAGE), 0);
	assert_int_equal(byte_at(&o, ANON + 900 * PAGE), 1 + 5 + (5 * PAGE) % 7);
	assert_int_equal(byte_at(&o, ANON + 999 * PAGE), 0);
	assert_int_equal(byte_at(&o, ANON + 1000 * PAGE), -1);
	/* Of a file: what was changed, and what lies near it. */
	assert_int_equal(byte_at(&o, MAPPED), 1 + 20 + (20 * PAGE) % 7);
	assert_int_equal(byte_at(&o, MAPPED + PAGE), 1 + 21 + (21 * PAGE) % 7);
	assert_int_equal(byte_at(&o, MAPPED + 7 * PAGE), 1 + 6 + (6 * PAGE) % 7);
	assert_int_equal(byte_at(&o, MAPPED + 8 * PAGE), -2);
	/* Of one that was not changed: the page that tells what it is. */
	assert_int_equal(byte_at(&o, CLEAN), 1 + 20 + (20 * PAGE) % 7);
	assert_int_equal(byte_at(&o, CLEAN + PAGE), -2);
	/* Of a shared object from its third page on. */
	assert_int_equal(byte_at(&o, SHARED), 1 + 11 + (11 * PAGE) % 7);
	assert_int_equal(byte_at(&o, SHARED + 2 * PAGE), 1 + 13 + (13 * PAGE) % 7);
	assert_int_equal(byte_at(&o, SHARED + 3 * PAGE), 0);
	assert_int_equal(byte_at(&o, SHARED + 18 * PAGE), 1 + 14 + (14 * PAGE) % 7);
	assert_int_equal(byte_at(&o, SHARED + 19 * PAGE), 0);
	assert_int_equal(byte_at(&o, VVAR), 0);
	close_core(&o);

	o = open_core(lab_make(plain), true);
	assert_int_equal(byte_at(&o, MAPPED + PAGE), 1 + 21 + (21 * PAGE) % 7);
	assert_int_equal(byte_at(&o, MAPPED + 7 * PAGE), 1 + 6 + (6 * PAGE) % 7);
	assert_int_equal(byte_at(&o, MAPPED + 9 * PAGE + 99), 1 + 29 + (29 * PAGE + 99) % 7);
	assert_int_equal(byte_at(&o, MAPPED + 9 * PAGE + 100), 0);
	assert_int_equal(byte_at(&o, MAPPED + 10 * PAGE), -2);
	close_core(&o);
}

/* Any range is the same as that range of the whole; holes are zeros. */
static void test_ranges(void **state)
{
	struct opened o = open_core(lab_make(plain), true);
	uint8_t *back = malloc(o.size), *rebuilt = calloc(1, o.size);
	uint64_t at = 0, from, size;

	(void)state;
	srand(3);
	for (int i = 0; i < 2000; i++) {
		size_t offset = (size_t)rand() % o.size, n = (size_t)rand() % 20000;

		n = n < o.size - offset ? n : o.size - offset;
		assert_int_equal(elf_core_read(o.core, offset, back, n), 0);
		assert_memory_equal(back, o.bytes + offset, n);
	}
	for (; elf_core_next(o.core, at, &from, &size); at = from + size) {
		assert_true(from >= at && size > 0);
		assert_int_equal(elf_core_read(o.core, from, rebuilt + from, size), 0);
	}
	assert_memory_equal(rebuilt, o.bytes, o.size);
	o.lab->fail = -EIO;
	assert_int_equal(elf_core_read(o.core, 0, back, o.size), -EIO);
	free(back);
	free(rebuilt);
	close_core(&o);
}

static void test_notes(void **state)
{
	struct opened o = open_core(lab_make(plain), false);
	uint32_t counts[1024] = { 0 }, tids[THREADS] = { 0 }, threads = 0;
	GElf_Phdr p;

	(void)state;
	assert_non_null(gelf_getphdr(o.elf, 0, &p));
	assert_int_equal(p.p_type, PT_NOTE);
	for (size_t at = p.p_offset; at < p.p_offset + p.p_filesz;) {
		Elf64_Nhdr n;
		size_t desc;

		memcpy(&n, o.bytes + at, sizeof(n));
		desc = at + sizeof(n) + (n.n_namesz + 3) / 4 * 4;
		if (n.n_type < ARRAY_SIZE(counts))
			counts[n.n_type]++;
		if (n.n_type == NT_PRSTATUS) {
			struct elf_prstatus s;

			assert_int_equal(n.n_descsz, sizeof(s));
			memcpy(&s, o.bytes + desc, sizeof(s));
			assert_true(threads < THREADS);
			assert_int_equal(s.pr_reg[0], 0x100 + s.pr_pid);
			tids[threads++] = (uint32_t)s.pr_pid;
		}
		if (n.n_type == NT_X86_XSTATE) {
			assert_int_equal(n.n_descsz, 2696);
			assert_int_equal(o.bytes[desc + 464], 7); /* x87, SSE, AVX */
			assert_int_equal(o.bytes[desc + 465], 2); /* PKRU */
			assert_int_equal(o.bytes[desc + 576 + 240], 0xcd);
			assert_int_equal(o.bytes[desc + 2688], 0x54);
		}
		if (n.n_type == NT_FILE)
			assert_string_equal((char *)o.bytes + desc + 16 + 2 * 24, "/lib/known.so");
		at = desc + (n.n_descsz + 3) / 4 * 4;
	}
	assert_int_equal(counts[NT_PRSTATUS], THREADS);
	assert_int_equal(counts[NT_FPREGSET], THREADS);
	assert_int_equal(counts[NT_X86_XSTATE], THREADS);
	assert_int_equal(counts[NT_PRPSINFO], 1);
	assert_int_equal(counts[NT_AUXV], 1);
	assert_int_equal(tids[0], ROOT_PID);
	assert_int_equal(tids[2], ROOT_PID + 9);
	close_core(&o);
}

/* As many as an ELF header can count, and more. */
static void test_many_segments(void **state)
{
	struct lab many = plain;
	struct opened o;
	size_t count;

	(void)state;
	many.vma_count = 65000;
	o = open_core(lab_make(many), false);
	assert_int_equal(elf_getphdrnum(o.elf, &count), 0);
	assert_true(count > 65000);
	assert_int_equal(byte_at(&o, ANON + 3), 4);
	assert_int_equal(byte_at(&o, 0x10000000 + 2 * 64999UL * PAGE), 0);
	assert_int_equal(byte_at(&o, 0x10000000 + 2 * 64999UL * PAGE + PAGE), -1);
	close_core(&o);

	many.vma_count = 66000;
	o.lab = lab_make(many);
	assert_int_equal(elf_core_create(&o.lab->set, ROOT_PID, false, &o.core, o.lab->reason),
			 -E2BIG);
	assert_non_null(strstr(o.lab->reason, "pieces"));
	lab_free(o.lab);
}

static void test_refused(void **state)
{
	const struct {
		struct lab with;
		int r;
		const char *word;
	} cases[] = {
		{ { .mtype = 3, .mode = 1, .page_flags = 4, .state = 1 },
		  -EOPNOTSUPP,
		  "another processor" },
		{ { .mtype = 1, .mode = 2, .page_flags = 4, .state = 1 }, -EOPNOTSUPP, "32-bit" },
		{ { .mtype = 1, .mode = 1, .page_flags = 1, .state = 1 },
		  -EOPNOTSUPP,
		  "earlier dump" },
		{ { .mtype = 1, .mode = 1, .page_flags = 2, .state = 1 },
		  -EOPNOTSUPP,
		  "lack pages" },
		{ { .mtype = 1, .mode = 1, .page_flags = 4, .state = 2 }, -EOPNOTSUPP, "had ended" },
		{ { .mtype = 1, .mode = 1, .page_flags = 4, .state = 1, .unsorted = true },
		  -EBADMSG,
		  "" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct lab *lab = lab_make(cases[i].with);
		struct elf_core *core;

		assert_int_equal(elf_core_create(&lab->set, ROOT_PID, false, &core, lab->reason),
				 cases[i].r);
		assert_non_null(strstr(lab->reason, cases[i].word));
		assert_int_equal(elf_core_create(&lab->set, 77, false, &core, lab->reason), -ESRCH);
		lab_free(lab);
	}
}

/* Every image cut anywhere, and with every byte changed: an error or a core, no crash. */
static void test_damaged(void **state)
{
	struct lab *lab = lab_make(plain);
	uint32_t errors = 0, tries = 0;

	(void)state;
	for (size_t f = 0; f < lab->count; f++) {
		struct export_file *file = &lab->files[f];
		uint64_t size = file->size;

		if (size > 2 * PAGE)
			continue;
		for (uint64_t at = 0; at < 2 * size; at++, tries++) {
			uint8_t *byte = &lab->bytes[file->index][at % size];
			struct elf_core *core;

			if (at < size)
				file->size = at;
			else
				*byte ^= (uint8_t)(1U << at % 8);
			if (elf_core_create(&lab->set, ROOT_PID, false, &core, lab->reason) < 0)
				errors++;
			else
				elf_core_destroy(core);
			if (at >= size)
				*byte ^= (uint8_t)(1U << at % 8);
			file->size = size;
		}
	}
	assert_true(tries > 3000 && errors > tries / 2);
	lab_free(lab);
}

/* The rule by which the daemon gives memory to a job's user. */
static void test_whose(void **state)
{
	struct lab *lab = lab_make(plain);
	const struct export_file *core = export_find(&lab->set, FILE_IMAGE, "core-1007.img");
	NatMm__Mm mm = NAT_MM__MM__INIT;

	(void)state;
	assert_int_equal(image_core_is_of(lab->bytes[core->index], core->size, UID), 0);
	assert_int_equal(image_core_is_of(lab->bytes[core->index], core->size, 0), -EPERM);
	assert_int_equal(image_core_is_of(lab->bytes[core->index], core->size, UID + 1), -EPERM);
	assert_int_equal(image_core_is_of(lab->bytes[core->index], 8, UID), -EBADMSG);
	for (int dumpable = 0; dumpable < 4; dumpable++) {
		mm.has_dumpable = dumpable < 3;
		mm.dumpable = dumpable;
		begin(lab, IMAGE_MM);
		put(lab, &mm);
		assert_int_equal(image_mm_is_dumpable(lab->data, lab->size),
				 dumpable == 1 ? 0 : -EPERM);
	}
	lab_free(lab);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memory),	cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_notes),	cmocka_unit_test(test_many_segments),
		cmocka_unit_test(test_refused), cmocka_unit_test(test_damaged),
		cmocka_unit_test(test_whose),
	};

	return cmocka_run_group_tests_name("export", tests, NULL, NULL);
}
