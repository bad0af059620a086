// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Memory shared between processes, memfds and System V objects as the native engine writes them:
 * the same as CRIU does, restored by CRIU with its content, untouched in the program that runs on.
 */
#include "tests/unit/ipc_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/native/ipc.pb-c.h"

enum {
	FD_A = 10,
	FD_B,
	FD_C,
	PAGES = 40,
	IPC_NS = 1000, /* number of the images */
	SEALS = F_SEAL_SHRINK | F_SEAL_GROW,
};

#define CHECK(condition)                 \
	do {                             \
		if (!(condition))        \
			return __LINE__; \
	} while (0)

/* Where the child mapped things; inherited by its restored copy with its memory. */
static volatile uint8_t *area, *again, *anonymous, *segment;
static int segment_id, detached_id, set_id, queue_id;

static int move(int from, int to)
{
	int fd = dup2(from, to);

	if (fd >= 0 && from != to)
		close(from);
	return fd;
}

static void fill(volatile uint8_t *p, size_t pages, unsigned int seed)
{
	for (size_t i = 0; i < pages; i++)
		if (i % 3 != 1) /* some stay holes */
			p[i * 4096 + seed] = (uint8_t)(i + seed);
}

static int check_fill(volatile uint8_t *p, size_t pages, unsigned int seed)
{
	for (size_t i = 0; i < pages; i++)
		CHECK(p[i * 4096 + seed] == (i % 3 != 1 ? (uint8_t)(i + seed) : 0));
	return 0;
}

/* ---- memfd ---- */

static int memfd_prepare(void)
{
	char long_name[230];
	int fd = memfd_create("a name", MFD_ALLOW_SEALING);

	CHECK(move(fd, FD_A) == FD_A && ftruncate(FD_A, PAGES * 4096L) == 0);
	area = mmap(NULL, PAGES * 4096L, PROT_READ | PROT_WRITE, MAP_SHARED, FD_A, 0);
	again = mmap(NULL, 4096, PROT_READ, MAP_SHARED, FD_A, 4096);
	CHECK(area != MAP_FAILED && again != MAP_FAILED);
	fill(area, PAGES, 5);
	CHECK(fcntl(FD_A, F_ADD_SEALS, SEALS) == 0);
	CHECK(fchmod(FD_A, 0640) == 0 && lseek(FD_A, 777, SEEK_SET) == 777);
	/* Not mapped, and not a whole page; then one that is nothing but mapped, with a long name. */
	fd = memfd_create("", 0);
	CHECK(move(fd, FD_B) == FD_B && write(FD_B, "some bytes", 10) == 10);
	memset(long_name, 'n', sizeof(long_name) - 1);
	long_name[sizeof(long_name) - 1] = '\0';
	fd = memfd_create(long_name, 0);
	CHECK(fd >= 0 && ftruncate(fd, PAGES * 4096L) == 0);
	anonymous = mmap(NULL, PAGES * 4096L, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(anonymous != MAP_FAILED);
	fill(anonymous, PAGES, 9);
	CHECK(close(fd) == 0);
	/* The same file opened again, for reading only. */
	fd = open("/proc/self/fd/10", O_RDONLY);
	CHECK(move(fd, FD_C) == FD_C);
	return 0;
}

static int memfd_verify(void)
{
	char bytes[16] = "";
	struct stat a, c;

	CHECK(check_fill(area, PAGES, 5) == 0);
	CHECK(fcntl(FD_A, F_GET_SEALS) == SEALS && lseek(FD_A, 0, SEEK_CUR) == 777);
	CHECK(fstat(FD_A, &a) == 0 && (a.st_mode & 0777) == 0640);
	CHECK(fstat(FD_C, &c) == 0 && a.st_ino == c.st_ino && a.st_size == PAGES * 4096);
	CHECK((fcntl(FD_C, F_GETFL) & O_ACCMODE) == O_RDONLY);
	area[4096] = 42; /* seen through the other map */
	CHECK(again[0] == 42);
	area[4096] = 0;
	CHECK(pread(FD_B, bytes, sizeof(bytes), 0) == 10 && strcmp(bytes, "some bytes") == 0);
	CHECK(lseek(FD_B, 0, SEEK_CUR) == 10);
	return check_fill(anonymous, PAGES, 9);
}

/* ---- shared anonymous memory of two processes ---- */

static volatile sig_atomic_t poked;

static void on_poke(int n)
{
	(void)n;
	poked++;
}

static int anonymous_prepare(void)
{
	sigset_t none;
	pid_t pid;

	area = mmap(NULL, PAGES * 4096L, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(area != MAP_FAILED);
	fill(area, PAGES, 3);
	signal(SIGUSR2, on_poke);
	pid = fork();
	CHECK(pid >= 0);
	if (pid > 0) {
		memcpy((void *)(area + 4096 + 100), &pid, sizeof(pid));
		return 0;
	}
	/* The child answers each poke by counting in the shared page. */
	sigemptyset(&none);
	for (;;) {
		sigset_t poke, old;

		sigemptyset(&poke);
		sigaddset(&poke, SIGUSR2);
		sigprocmask(SIG_BLOCK, &poke, &old);
		while (!poked)
			sigsuspend(&none);
		poked = 0;
		sigprocmask(SIG_SETMASK, &old, NULL);
		area[4096 + 200]++;
	}
}

static int anonymous_verify(void)
{
	uint8_t before = area[4096 + 200];
	pid_t pid;

	memcpy(&pid, (void *)(area + 4096 + 100), sizeof(pid));
	CHECK(kill(pid, SIGUSR2) == 0);
	for (int i = 0; i < 30000 && area[4096 + 200] == before; i++)
		usleep(1000);
	CHECK(area[4096 + 200] == (uint8_t)(before + 1));
	return check_fill(area, PAGES, 3);
}

/* ---- System V ---- */

struct message {
	long type;
	char text[100];
};

static int sysv_prepare(void)
{
	unsigned short values[] = { 3, 0, 7 };
	struct message m = { 5, "of type five" };

	/* Numbers that a fresh namespace would not give out. */
	CHECK(shmctl(shmget(IPC_PRIVATE, 1, 0600), IPC_RMID, NULL) == 0);
	segment_id = shmget(0x1234, PAGES * 4096 - 100, IPC_CREAT | 0640);
	CHECK(segment_id >= 0);
	segment = shmat(segment_id, NULL, 0);
	CHECK(segment != (void *)-1);
	fill(segment, PAGES - 1, 11);
	detached_id = shmget(IPC_PRIVATE, 2 * 4096, 0600);
	area = shmat(detached_id, NULL, 0);
	CHECK(area != (void *)-1);
	fill(area, 2, 12);
	CHECK(shmdt((void *)area) == 0);
	set_id = semget(0x77, 3, IPC_CREAT | 0600);
	CHECK(set_id >= 0 && semctl(set_id, 0, SETALL, values) == 0);
	queue_id = msgget(0x88, IPC_CREAT | 0666);
	CHECK(queue_id >= 0 && msgsnd(queue_id, &m, 13, 0) == 0);
	m = (struct message){ 2, "of type two" };
	return msgsnd(queue_id, &m, 12, 0);
}

static int sysv_verify(void)
{
	struct message m;
	struct shmid_ds ds;

	CHECK(check_fill(segment, PAGES - 1, 11) == 0);
	CHECK(shmget(0x1234, 0, 0) == segment_id);
	CHECK(shmctl(segment_id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1);
	CHECK(ds.shm_segsz == PAGES * 4096 - 100 && (ds.shm_perm.mode & 0777) == 0640);
	area = shmat(detached_id, NULL, 0);
	CHECK(area != (void *)-1 && check_fill(area, 2, 12) == 0);
	CHECK(shmdt((void *)area) == 0);
	CHECK(semget(0x77, 0, 0) == set_id && semctl(set_id, 0, GETVAL) == 3);
	CHECK(semctl(set_id, 1, GETVAL) == 0 && semctl(set_id, 2, GETVAL) == 7);
	CHECK(msgget(0x88, 0) == queue_id);
	CHECK(msgrcv(queue_id, &m, sizeof(m.text), 0, IPC_NOWAIT) == 13 && m.type == 5);
	CHECK(msgrcv(queue_id, &m, sizeof(m.text), 0, IPC_NOWAIT) == 12 && m.type == 2);
	CHECK(strcmp(m.text, "of type two") == 0);
	return msgrcv(queue_id, &m, sizeof(m.text), 0, IPC_NOWAIT) >= 0 ? __LINE__ : 0;
}

static int nothing_prepare(void)
{
	return 0;
}

static int part_prepare(void)
{
	segment_id = shmget(IPC_PRIVATE, 4 * 4096, 0600);
	segment = shmat(segment_id, NULL, 0);
	CHECK(segment != (void *)-1);
	CHECK(shmctl(segment_id, IPC_RMID, NULL) == 0);
	return munmap((void *)(segment + 4096), 4096);
}

static int big_message_prepare(void)
{
	struct {
		long type;
		char text[9000];
	} m = { .type = 1 };
	FILE *f = fopen("/proc/sys/kernel/msgmax", "w");

	CHECK(f && fprintf(f, "16384\n") > 0 && fclose(f) == 0);
	queue_id = msgget(IPC_PRIVATE, 0600);
	return msgsnd(queue_id, &m, sizeof(m.text), 0);
}

/* Gone with the namespace; here it is the host's, so that it is removed at once. */
static int host_segment_prepare(void)
{
	segment_id = shmget(IPC_PRIVATE, 4096, 0600);
	segment = shmat(segment_id, NULL, 0);
	CHECK(segment != (void *)-1);
	return shmctl(segment_id, IPC_RMID, NULL);
}

/* ---- tests ---- */

static int setup(void **state)
{
	static struct ipc_lab lab;

	if (ipc_lab_init(&lab))
		*state = &lab;
	return 0;
}

static int teardown(void **state)
{
	if (*state)
		ipc_lab_deinit(*state);
	return 0;
}

static void same_record(const ProtobufCMessageDescriptor *type, ProtobufCMessage *a,
			ProtobufCMessage *b)
{
	uint8_t x[2048], y[2048];
	size_t size;

	assert_non_null(a);
	assert_non_null(b);
	assert_ptr_equal(a->descriptor, type);
	size = protobuf_c_message_get_packed_size(a);
	assert_int_equal(size, protobuf_c_message_get_packed_size(b));
	assert_true(size <= sizeof(x));
	protobuf_c_message_pack(a, x);
	protobuf_c_message_pack(b, y);
	assert_memory_equal(x, y, size);
	protobuf_c_message_free_unpacked(a, NULL);
	protobuf_c_message_free_unpacked(b, NULL);
}

/* By name: the order in which the engines find them differs. */
static NatIpc__MemfdInode *find_memfd(const char *folder, const char *name)
{
	for (size_t n = 0;; n++) {
		NatIpc__MemfdInode *m = (void *)ipc_lab_record(
			folder, "memfd", &nat_ipc__memfd_inode__descriptor, n, NULL, NULL);

		if (!m || strncmp(m->name, name, strlen(name)) == 0)
			return m;
		nat_ipc__memfd_inode__free_unpacked(m, NULL);
	}
}

static void test_memfd_same_as_criu(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program program = { memfd_prepare, memfd_verify, 0 };
	static const char *const names[] = { "a name", "nnnn" };

	if (!lab || !lab->binary[0])
		skip();
	ipc_lab_start(lab, &program);
	if (ipc_lab_take(lab) < 0)
		fail_msg("%s", lab->reason);
	print_message("files_collect took %llu us\n", (unsigned long long)lab->files_ns / 1000);
	ipc_lab_dump(lab);
	for (int fd = FD_A; fd <= FD_C; fd++)
		ipc_lab_same_file(lab, fd);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		NatIpc__MemfdInode *a = find_memfd(lab->native, names[i]);
		NatIpc__MemfdInode *b = find_memfd(lab->criu, names[i]);

		assert_non_null(a);
		assert_non_null(b);
		assert_true(a->shmid >= 1U << 31);
		a->inode_id = b->inode_id = a->shmid = b->shmid = 0;
		same_record(&nat_ipc__memfd_inode__descriptor, &a->base, &b->base);
	}
	assert_int_equal(ipc_lab_ask(lab), 0);
	ipc_lab_stop(lab);
}

static size_t set_bytes(const ProtobufCMessage *m)
{
	return (((const NatIpc__IpcSem *)m)->nsems * 2 + 7) & ~(size_t)7;
}

static void test_sysv_same_as_criu(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program program = { sysv_prepare, sysv_verify,
							IPC_LAB_OWN_IPC };
	static const struct {
		const char *image;
		const ProtobufCMessageDescriptor *type;
		size_t count;
	} rows[] = {
		{ "ipcns-var", &nat_ipc__ipc_var__descriptor, 1 },
		{ "ipcns-shm", &nat_ipc__ipc_shm__descriptor, 2 },
		{ "ipcns-sem", &nat_ipc__ipc_sem__descriptor, 1 },
		{ "ipcns-msg", &nat_ipc__ipc_msg__descriptor, 1 },
	};
	char name[64];

	if (!lab || !lab->binary[0])
		skip();
	ipc_lab_start(lab, &program);
	if (ipc_lab_take(lab) < 0)
		fail_msg("%s", lab->reason);
	print_message("files_collect took %llu us\n", (unsigned long long)lab->files_ns / 1000);
	ipc_lab_dump(lab);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		for (size_t n = 0; n < rows[i].count; n++) {
			ProtobufCMessage *a, *b;
			uint8_t *x = NULL, *y = NULL;

			snprintf(name, sizeof(name), "%s-%d", rows[i].image, IPC_NS);
			a = ipc_lab_record(lab->native, name, rows[i].type, n,
					   i == 2 ? set_bytes : NULL, i == 2 ? &x : NULL);
			ipc_lab_find(lab->criu, rows[i].image, name);
			b = ipc_lab_record(lab->criu, name, rows[i].type, n,
					   i == 2 ? set_bytes : NULL, i == 2 ? &y : NULL);
			same_record(rows[i].type, a, b);
			if (i == 2)
				assert_memory_equal(x, y, 8);
			free(x);
			free(y);
		}
	}
	assert_int_equal(ipc_lab_ask(lab), 0);
	ipc_lab_stop(lab);
}

static void test_untouched(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program programs[] = {
		{ memfd_prepare, memfd_verify, 0 },
		{ anonymous_prepare, anonymous_verify, IPC_LAB_FAMILY },
		{ sysv_prepare, sysv_verify, IPC_LAB_OWN_IPC },
	};

	if (!lab)
		skip();
	for (size_t i = 0; i < ARRAY_SIZE(programs); i++) {
		ipc_lab_start(lab, &programs[i]);
		for (int n = 0; n < 2; n++)
			if (ipc_lab_take(lab) < 0)
				fail_msg("program %zu: %s", i, lab->reason);
		assert_int_equal(ipc_lab_ask(lab), 0);
		ipc_lab_stop(lab);
	}
}

static void test_restored(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program programs[] = {
		{ memfd_prepare, memfd_verify, 0 },
		{ anonymous_prepare, anonymous_verify, IPC_LAB_FAMILY },
		{ sysv_prepare, sysv_verify, IPC_LAB_OWN_IPC },
	};

	ipc_lab_return_each(lab, programs, ARRAY_SIZE(programs));
}

/* An own namespace with nothing in it costs three counts and leaves no image. */
static void test_empty_namespace(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct ipc_lab_program program = { nothing_prepare, NULL, IPC_LAB_OWN_IPC };
	char path[160];

	if (!lab)
		skip();
	ipc_lab_start(lab, &program);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(ipc_lab_take(lab), 0);
		print_message("files_collect took %llu us\n",
			      (unsigned long long)lab->files_ns / 1000);
	}
	snprintf(path, sizeof(path), "%s/ipcns-var-%d.img", lab->native, IPC_NS);
	assert_int_equal(access(path, F_OK), -1);
	ipc_lab_stop(lab);
}

static void test_refused(void **state)
{
	struct ipc_lab *lab = *state;
	static const struct {
		struct ipc_lab_program program;
		const char *word;
	} rows[] = {
		{ { host_segment_prepare, NULL, 0 }, "of the host's IPC namespace" },
		{ { part_prepare, NULL, IPC_LAB_OWN_IPC }, "a part of" },
		{ { big_message_prepare, NULL, IPC_LAB_OWN_IPC }, "bigger than 8192" },
	};

	if (!lab)
		skip();
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		ipc_lab_start(lab, &rows[i].program);
		ipc_lab_refuses(lab, rows[i].word);
		print_message("%s\n", lab->reason);
		ipc_lab_stop(lab);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memfd_same_as_criu),
		cmocka_unit_test(test_sysv_same_as_criu),
		cmocka_unit_test(test_untouched),
		cmocka_unit_test(test_empty_namespace),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_restored),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
