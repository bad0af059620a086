// SPDX-License-Identifier: LGPL-2.1-or-later
/* What is read of threads that stand; calls that end meanwhile; trees; userfaultfd. */
#include "tests/kmod/kmod.h"

#include <asm/prctl.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

#include "agent/util/kmod.h"

#define REG(t, name) ((t).regs[offsetof(struct user_regs_struct, name) / 8])

static void known_registers(void *unused)
{
	static const uint8_t xmm[16] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 };

	(void)unused;
	CHECK_INT(syscall(SYS_arch_prctl, ARCH_SET_GS, 0x12345678L), 0);
	__asm__ volatile("movdqu (%0), %%xmm7\n"
			 "movabs $0x1122334455667788, %%r15\n"
			 "movabs $0x8877665544332211, %%r12\n"
			 "movl $1, (%1)\n"
			 "1: incq %%rbx\n"
			 "jmp 1b\n"
			 :
			 : "r"(xmm), "r"(&shared->flags[0])
			 : "r12", "r15", "rbx", "xmm7", "memory");
}

static void case_registers(void)
{
	pid_t pid = victim(known_registers, NULL);
	static uint8_t area[65536];
	struct decamp_thread t, other = { .tid = getpid() }, moved;
	uint64_t mask;
	int session, bytes;

	AWAIT(atomic_load(&shared->flags[0]));
	session = freeze_all(pid, NULL);
	t = thread_of(session, pid);
	CHECK_INT(t.state, DECAMP_PARKED);
	CHECK_INT(t.flags, DECAMP_THREAD_REGS);
	CHECK_INT(t.tgid, pid);
	CHECK(REG(t, r15) == 0x1122334455667788 && REG(t, r12) == 0x8877665544332211);
	CHECK_INT(REG(t, gs_base), 0x12345678);
	CHECK_INT(REG(t, orig_rax), -1);
	CHECK_INT(REG(t, cs), 0x33);
	CHECK(REG(t, fs_base) && REG(t, rsp));
	bytes = xstate(session, &t, area, 16);
	CHECK(bytes >= 576);
	CHECK_INT(area[160 + 7 * 16], 0);
	CHECK_INT(xstate(session, &t, area, sizeof(area)), bytes);
	CHECK(area[160 + 7 * 16] == 1 && area[160 + 7 * 16 + 15] == 16);
	memcpy(&mask, area + 512, sizeof(mask));
	case_note("%u bytes of extended registers, present: %#llx", bytes,
		  (unsigned long long)mask);
	CHECK(mask & 2);
	CHECK_INT(xstate(session, &other, area, sizeof(area)), -ESRCH);
	CHECK_INT(xstate(session, &t, (void *)8, sizeof(area)), -EFAULT);
	moved = t;
	moved.switches--;
	CHECK_INT(xstate(session, &moved, area, sizeof(area)), -EAGAIN);
	close(session);
	victim_end(pid);
}

/* A far jump into 32-bit code below 4 GiB, which spins there. (Emulators get far returns wrong.) */
static void code_32(void *unused)
{
	struct {
		uint32_t offset;
		uint16_t segment;
	} to = { .segment = 0x23 };
	uint8_t *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	(void)unused;
	CHECK(code != MAP_FAILED);
	code[0] = 0xeb; /* jmp to itself */
	code[1] = 0xfe;
	to.offset = (uint32_t)(uintptr_t)code;
	atomic_store(&shared->flags[0], 1);
	__asm__ volatile("ljmp *%0" : : "m"(to) : "memory");
}

/* pause(2) by the gate of 32-bit programs: its number means another call in 64-bit code. */
static void call_32(void *unused)
{
	long r;

	(void)unused;
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(29) : "memory", "r8", "r9", "r10", "r11");
	atomic_store(&shared->flags[1], 1);
}

static void case_32bit(void)
{
	pid_t pid = victim(code_32, NULL);
	struct decamp_thread t;
	int session, status;

	AWAIT(atomic_load(&shared->flags[0]));
	sleep_ms(50);
	if (waitpid(pid, &status, WNOHANG) == pid)
		case_skip("this kernel runs no 32-bit code");
	session = freeze_all(pid, NULL);
	t = thread_of(session, pid);
	CHECK_INT(t.state, DECAMP_PARKED);
	CHECK_INT(t.flags, 0);
	CHECK_INT(REG(t, rip), 0);
	close(session);
	victim_end(pid);
	pid = victim(call_32, NULL);
	AWAIT(state_in_proc(pid) == 'S');
	session = freeze_all(pid, NULL);
	t = thread_of(session, pid);
	CHECK_INT(atomic_load(&shared->flags[1]), 0);
	CHECK_INT(t.state, DECAMP_QUIESCED);
	CHECK_INT(t.flags, 0);
	CHECK_INT(REG(t, rip), 0);
	close(session);
	victim_end(pid);
}

enum { SLEEP_S = 100, SLACK_NS = 1000000 /* timers may be 50 us late on purpose */ };

static void sleeps_long(void *call)
{
	struct timespec ts = { .tv_sec = SLEEP_S };
	struct epoll_event ev;
	struct pollfd p = { .fd = -1 };

	switch ((long)call) {
	case SYS_nanosleep:
		syscall(SYS_nanosleep, &ts, NULL);
		break;
	case SYS_poll:
		syscall(SYS_poll, &p, 1, SLEEP_S * 1000);
		break;
	case SYS_futex:
		syscall(SYS_futex, &shared->words[0], FUTEX_WAIT, 0, &ts, NULL, 0);
		break;
	default:
		syscall(SYS_epoll_wait, epoll_create1(0), &ev, 1, -1);
	}
	atomic_store(&shared->flags[0], 1);
}

static void case_restart(void)
{
	static const struct {
		long call;
		uint32_t restart;
	} calls[] = {
		{ SYS_nanosleep, DECAMP_RESTART_NANOSLEEP },
		{ SYS_poll, DECAMP_RESTART_POLL },
		{ SYS_futex, DECAMP_RESTART_FUTEX },
	};

	for (size_t i = 0; i < 3; i++) {
		uint64_t from = now_ns(), asleep, deadline = 0;
		pid_t pid = victim(sleeps_long, (void *)calls[i].call);
		struct decamp_thread t;
		int session;

		AWAIT(state_in_proc(pid) == 'S');
		asleep = now_ns();
		sleep_ms(200);
		/* Once out of the first sleep, once out of the restarted one: the same deadline. */
		for (int round = 0; round < 2; round++) {
			session = freeze_all(pid, NULL);
			t = thread_of(session, pid);
			CHECK_INT(t.state, DECAMP_QUIESCED);
			CHECK_INT(REG(t, orig_rax), round ? SYS_restart_syscall : calls[i].call);
			CHECK_INT(t.restart, round ? calls[i].restart : DECAMP_RESTART_NONE);
			CHECK_INT(park(session, pid, TIMEOUT_MS), 0);
			t = thread_of(session, pid);
			CHECK_INT(t.state, DECAMP_PARKED);
			CHECK_INT(t.restart, calls[i].restart);
			/* Between its start and when it was seen asleep; stops do not move it. */
			CHECK(t.restart_deadline_ns >= from + SLEEP_S * 1000000000ULL &&
			      t.restart_deadline_ns <= asleep + SLEEP_S * 1000000000ULL + SLACK_NS);
			CHECK(!round || t.restart_deadline_ns == deadline);
			deadline = t.restart_deadline_ns;
			close(session);
			AWAIT(state_in_proc(pid) == 'S');
		}
		CHECK_INT(atomic_load(&shared->flags[0]), 0);
		victim_end(pid);
	}
}

static void reads(void *fd)
{
	char byte = 0;

	if (read(((int *)fd)[0], &byte, 1) == 1)
		atomic_store(&shared->flags[0], byte);
}

/* A call that gets what it waits for ends in the kernel, and the program does not hear of it. */
static void case_completes(void)
{
	int fd[2], session;
	struct decamp_thread t;
	uint64_t switches;
	pid_t pid;

	CHECK_INT(pipe(fd), 0);
	pid = victim(reads, fd);
	AWAIT(state_in_proc(pid) == 'S');
	session = freeze_all(pid, NULL);
	t = thread_of(session, pid);
	CHECK_INT(t.state, DECAMP_QUIESCED);
	CHECK_INT(REG(t, orig_rax), SYS_read);
	switches = t.switches;
	CHECK_INT(thread_of(session, pid).switches, switches);
	CHECK_INT(write(fd[1], "x", 1), 1);
	AWAIT(thread_of(session, pid).state == DECAMP_PARKED);
	t = thread_of(session, pid);
	CHECK(t.switches > switches);
	CHECK_INT(REG(t, rax), 1);
	sleep_ms(30);
	CHECK_INT(atomic_load(&shared->flags[0]), 0);
	close(session);
	AWAIT(atomic_load(&shared->flags[0]) == 'x');
	victim_end(pid);
}

static int unload(void)
{
	return syscall(SYS_delete_module, "decamp", O_NONBLOCK) < 0 ? -errno : 0;
}

static void sleep_8(void *unused)
{
	(void)unused;
	sleepers(8);
	atomic_store(&shared->flags[0], 1);
}

/* No matter how often it is frozen, a sleeper has one callback; it holds the module. */
static void case_adoption(void)
{
	int before;
	pid_t pid;

	AWAIT(callbacks() == 0);
	pid = victim(sleep_8, NULL);
	AWAIT(atomic_load(&shared->flags[0]));
	await_asleep(pid);
	before = callbacks();
	for (int i = 0; i < 100; i++)
		close(freeze_all(pid, NULL));
	CHECK_INT(callbacks(), before + 9);
	CHECK_INT(unload(), -EWOULDBLOCK);
	/* One session takes over from another that goes while its threads wake up. */
	for (int i = 0; i < 100; i++) {
		close(i % 2 ? freeze_parked(pid, NULL) : freeze_all(pid, NULL));
		close(freeze_all(pid, NULL));
	}
	CHECK_INT(counted(), 0);
	victim_end(pid);
	AWAIT(callbacks() == before);
}

static void tree_of_15(void *depth)
{
	for (long i = 0; (long)depth < 3 && i < 2; i++)
		(void)victim(tree_of_15, (void *)((long)depth + 1));
	atomic_fetch_add(&shared->flags[0], 1);
	sleepers(1);
}

static void case_tree(void)
{
	pid_t pids[2] = { victim(tree_of_15, NULL), 0 }, self = getpid();
	struct counts c;
	int first, second;

	AWAIT(atomic_load(&shared->flags[0]) == 15);
	atomic_store(&shared->flags[0], 0);
	pids[1] = victim(sleep_8, NULL);
	AWAIT(atomic_load(&shared->flags[0]) == 1);
	await_asleep(pids[0]);
	await_asleep(pids[1]);
	first = freeze_all(pids[0], &c);
	CHECK_INT(c.quiesced, 30);
	CHECK_INT(freeze(pids[0]), -EBUSY);
	second = freeze_all(pids[1], &c);
	CHECK_INT(c.quiesced, 9);
	CHECK_INT(freeze(self), -EDEADLK);
	CHECK_INT(freeze(getppid()), -EDEADLK);
	CHECK_INT(freeze(1), -EOPNOTSUPP);
	CHECK_INT(freeze(2), -EOPNOTSUPP); /* kthreadd */
	CHECK_INT(freeze(1 << 22), -ESRCH);
	close(first);
	close(second);
	victim_end(pids[0]);
	victim_end(pids[1]);
}

static void toucher(void *unused)
{
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)unused;
	shared->pointers[0] = page;
	atomic_store(&shared->flags[0], 1);
	while (!atomic_load(&shared->flags[1]))
		sleep_ms(1);
	page[5] = 'x';
	atomic_store(&shared->flags[2], page[5]);
}

static void case_uffd(void)
{
	pid_t pid = victim(toucher, NULL);
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd, null;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_zeropage zero = { 0 };
	struct uffd_msg msg;

	CHECK(dev >= 0);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	AWAIT(atomic_load(&shared->flags[0]));
	CHECK_INT(uffd_of(pid, null, 0), -EBADF);
	CHECK_INT(uffd_of(pid, device(), 0), -EBADF);
	CHECK_INT(uffd_of(pid, -1, 0), -EBADF);
	CHECK_INT(uffd_of(pid, dev, 0x40), -EINVAL);
	CHECK_INT(uffd_of(1 << 22, dev, 0), -ESRCH);
	CHECK_INT(uffd_of(2, dev, 0), -ESRCH);
	/* As the agent does it. */
	CHECK(kmod_works());
	CHECK_INT(kmod_uffd(1 << 22, O_NONBLOCK, &fd), -ESRCH);
	CHECK_INT(kmod_uffd(pid, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY, &fd), 0);
	CHECK_INT(fcntl(fd, F_GETFD), FD_CLOEXEC);
	CHECK_INT(ioctl(fd, UFFDIO_API, &api), 0);
	reg.range.start = zero.range.start = (uintptr_t)shared->pointers[0];
	reg.range.len = zero.range.len = 4096;
	CHECK_INT(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	atomic_store(&shared->flags[1], 1);
	AWAIT(read(fd, &msg, sizeof(msg)) == sizeof(msg));
	CHECK_INT(msg.event, UFFD_EVENT_PAGEFAULT);
	CHECK_INT(msg.arg.pagefault.address & ~4095ULL, reg.range.start);
	CHECK_INT(atomic_load(&shared->flags[2]), 0);
	CHECK_INT(ioctl(fd, UFFDIO_ZEROPAGE, &zero), 0);
	AWAIT(atomic_load(&shared->flags[2]) == 'x');
	victim_end(pid);
}

static void cloner(void *unused)
{
	void *args = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)unused;
	shared->pointers[0] = args;
	atomic_store(&shared->flags[0], 1);
	while (!atomic_load(&shared->flags[1]))
		sleep_ms(1);
	if (syscall(SYS_clone3, args, 64) == 0) /* all zero: as fork(2) */
		for (;;)
			atomic_fetch_add(&shared->counters[0], 1);
}

/* The arguments of clone3(2) come when all stand: the child is in the session, and does not run. */
static void case_born(void)
{
	pid_t pid = victim(cloner, NULL);
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd, session;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_zeropage zero = { 0 };
	struct uffd_msg msg;

	AWAIT(atomic_load(&shared->flags[0]));
	fd = uffd_of(pid, dev, 0);
	CHECK_INT(ioctl(fd, UFFDIO_API, &api), 0);
	reg.range.start = zero.range.start = (uintptr_t)shared->pointers[0];
	reg.range.len = zero.range.len = 4096;
	CHECK_INT(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	atomic_store(&shared->flags[1], 1);
	CHECK_INT(read(fd, &msg, sizeof(msg)), sizeof(msg));
	session = freeze_all(pid, NULL);
	CHECK_INT(thread_of(session, pid).state, DECAMP_QUIESCED);
	CHECK_INT(ioctl(fd, UFFDIO_ZEROPAGE, &zero), 0);
	AWAIT(counts_of(session).parked == 2);
	sleep_ms(30);
	CHECK_INT(counted(), 0);
	close(session);
	check_moves();
	victim_end(pid);
}

const struct kmod_case state_cases[] = {
	{ "registers", case_registers },
	{ "32-bit code and calls", case_32bit },
	{ "restarts with their true deadlines", case_restart },
	{ "a call that ends while frozen", case_completes },
	{ "callbacks of sleepers are taken over", case_adoption },
	{ "trees, two sessions, who may not be frozen", case_tree },
	{ "userfaultfd of another process", case_uffd },
	{ "born while frozen", case_born },
	{ 0 },
};
