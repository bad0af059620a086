// SPDX-License-Identifier: LGPL-2.1-or-later
/* Who stops, who does not have to, and who gets going again. */
#include "tests/kmod/kmod.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void spin_8(void *unused)
{
	(void)unused;
	spinners(8);
	atomic_store(&shared->flags[0], 1);
}

static void sleep_8(void *unused)
{
	(void)unused;
	sleepers(8);
	atomic_store(&shared->flags[0], 1);
}

static pid_t ready_victim(void (*fn)(void *arg))
{
	pid_t pid = victim(fn, NULL);

	AWAIT(atomic_load(&shared->flags[0]) && state_in_proc(pid) == 'S');
	return pid;
}

/* Of all threads. */
static uint64_t switches_of(int session)
{
	static struct decamp_thread t[THREADS_ROOM];
	int count = threads_of(session, t);
	uint64_t sum = 0;

	CHECK(count >= 0 && count <= THREADS_ROOM, "%d", count);
	for (int i = 0; i < count; i++)
		sum += t[i].switches;
	return sum;
}

static void case_spinning(void)
{
	pid_t pid = ready_victim(spin_8);
	struct counts c;
	int session;

	check_moves();
	session = freeze(pid);
	CHECK(session >= 0, "%s", strerror(-session));
	c = counts_of(session); /* at once: the call has waited for all */
	CHECK_INT(c.parked, 8);
	CHECK_INT(c.quiesced, 1);
	check_still();
	/* Frozen again while they are waking up: they count as parked when they have seen it. */
	for (int i = 0; i < 50; i++) {
		uint64_t switches;

		close(session);
		session = freeze(pid);
		CHECK(session >= 0, "%s", strerror(-session));
		switches = switches_of(session);
		sleep_ms(2);
		CHECK_INT(switches_of(session), switches);
	}
	close(session);
	check_moves();
	victim_end(pid);
}

static void case_asleep(void)
{
	pid_t pid = ready_victim(sleep_8);
	struct counts c;

	await_asleep(pid);
	close(freeze_all(pid, &c));
	CHECK_INT(c.quiesced, 9);
	close(freeze_parked(pid, &c));
	CHECK_INT(c.parked, 9);
	CHECK_INT(counted(), 0); /* read(2) of a pipe is restarted */
	AWAIT(callbacks() == 0); /* who was parked has none */
	victim_end(pid);
}

/* Once with the default action of SIGTERM, once with SIGKILL; from outside, while all are frozen. */
static void case_killed(void)
{
	static const int signals[] = { SIGKILL, SIGTERM };

	for (size_t i = 0; i < 4; i++) {
		pid_t pid = ready_victim(i < 2 ? spin_8 : sleep_8);
		int session = freeze_all(pid, NULL), status;
		uint64_t from = now_ns();

		CHECK_INT(kill(pid, signals[i % 2]), 0);
		CHECK_INT(waitpid(pid, &status, 0), pid);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == signals[i % 2]);
		case_note("ended %llu us after the signal",
			  (unsigned long long)(now_ns() - from) / 1000);
		CHECK_INT(counts_of(session).gone, 9);
		close(session);
		atomic_store(&shared->flags[0], 0);
	}
}

static void agent(void *pid)
{
	int session = freeze(*(pid_t *)pid);

	atomic_store(&shared->flags[1], session >= 0 ? 1 : -1);
}

static void case_agent_dies(void)
{
	pid_t pid = ready_victim(spin_8), frozen_by = victim(agent, &pid);

	AWAIT(atomic_load(&shared->flags[1]));
	CHECK_INT(atomic_load(&shared->flags[1]), 1);
	check_still();
	victim_end(frozen_by);
	check_moves();
	victim_end(pid);
}

/* An emulated machine may stand still for a second. */
static void case_lease(void)
{
	enum { LEASE = 4000 };
	pid_t pid = ready_victim(spin_8);
	struct decamp_freeze a = { .timeout_ms = TIMEOUT_MS, .lease_ms = LEASE };
	int session = freeze_with(&a, pid);

	CHECK(session >= 0);
	check_still();
	sleep_ms(LEASE + 300);
	check_moves();
	CHECK_INT(threads_of(session, NULL), -EOWNERDEAD);
	CHECK_INT(park(session, pid, 10), -EOWNERDEAD);
	CHECK_INT(freeze(pid), -EBUSY); /* until it is closed */
	close(session);
	session = freeze_all(pid, NULL);
	check_still();
	close(session);
	check_moves();
	victim_end(pid);
}

static void case_stopped(void)
{
	pid_t pid = ready_victim(spin_8);
	struct counts c;
	int session, status;

	kill(pid, SIGSTOP);
	CHECK_INT(waitpid(pid, &status, WUNTRACED), pid);
	check_still();
	session = freeze_all(pid, &c);
	CHECK_INT(c.quiesced, 9);
	kill(pid, SIGCONT);
	AWAIT(counts_of(session).parked == 9);
	check_still();
	CHECK_INT(counts_of(session).parked, 9);
	close(session);
	check_moves();
	victim_end(pid);
}

static void case_traced(void)
{
	pid_t pid = ready_victim(spin_8);
	struct counts c;
	int session, status;

	CHECK_INT(ptrace(PTRACE_SEIZE, pid, 0, 0), 0);
	session = freeze_parked(pid, &c); /* runs, and has a tracer */
	CHECK_INT(c.parked, 9);
	CHECK_INT(ptrace(PTRACE_INTERRUPT, pid, 0, 0), 0);
	sleep_ms(30);
	CHECK_INT(waitpid(pid, &status, WNOHANG), 0);
	close(session);
	CHECK_INT(waitpid(pid, &status, 0), pid);
	CHECK(WIFSTOPPED(status));
	session = freeze_all(pid, &c); /* in a stop of its tracer's */
	CHECK_INT(c.quiesced, 1);
	check_still();
	CHECK_INT(ptrace(PTRACE_DETACH, pid, 0, 0), 0);
	sleep_ms(30);
	check_still();
	close(session);
	check_moves();
	victim_end(pid);
}

static void vforks(void *flags)
{
	long r;

	atomic_store(&shared->flags[0], 1);
	r = syscall(SYS_clone, CLONE_VM | CLONE_VFORK | (long)flags | SIGCHLD, 0, 0, 0, 0);
	if (r == 0) {
		syscall(SYS_pause);
		_exit(0);
	}
	atomic_store(&shared->flags[1], 1);
}

static void case_vfork(void)
{
	pid_t pid = victim(vforks, NULL);
	struct counts c;
	int session;

	AWAIT(state_in_proc(pid) == 'D');
	session = freeze_all(pid, &c);
	CHECK(c.quiesced, "%u parked", c.parked); /* the child may not be asleep yet */
	CHECK_INT(c.quiesced + c.parked, 2);
	kill(pid, SIGKILL); /* dies in spite of the child */
	CHECK_INT(waitpid(pid, NULL, 0), pid);
	close(session);
}

/* The child is its sister: it is not in the tree, so its parent's wait may end. Counts, no error. */
static void case_blocked(void)
{
	pid_t pid = victim(vforks, (void *)CLONE_PARENT);
	struct decamp_freeze a = { .timeout_ms = 100, .lease_ms = LEASE_MS };
	uint64_t from;
	int session;

	AWAIT(state_in_proc(pid) == 'D');
	from = now_ns();
	session = freeze_with(&a, pid);
	CHECK(session >= 0 && now_ns() - from >= a.timeout_ms * 1000000ULL);
	CHECK_INT(counts_of(session).blocked, 1);
	CHECK_INT(thread_of(session, pid).state, DECAMP_BLOCKED);
	close(session);
	victim_end(pid);
}

static void leaderless(void *unused)
{
	(void)unused;
	spinners(2);
	pthread_exit(NULL);
}

static void case_zombie_leader(void)
{
	pid_t pid = victim(leaderless, NULL);
	struct counts c;
	int session;

	AWAIT(state_in_proc(pid) == 'Z');
	session = freeze_all(pid, &c);
	CHECK_INT(c.parked, 2);
	CHECK_INT(c.gone, 1);
	check_still();
	close(session);
	check_moves();
	victim_end(pid);
}

/*
 * A read of an empty pipe, which a kernel thread of ours waits for if it must not be tried by the caller
 * (IOSQE_ASYNC).
 */
static void uring_reader(void *flags)
{
	struct io_uring_params p = { 0 };
	int ring = (int)syscall(SYS_io_uring_setup, 4, &p), fd[2];
	struct io_uring_sqe *sqe;
	static char byte;
	uint32_t *sq;

	if (ring < 0 || pipe(fd) < 0)
		_exit(SKIP_CODE);
	sq = mmap(NULL, 4096 * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	sqe = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_READ;
	sqe->flags = (uint8_t)(uintptr_t)flags;
	sqe->fd = fd[0];
	sqe->addr = (uintptr_t)&byte;
	sqe->len = 1;
	sq[p.sq_off.array / 4] = 0;
	__atomic_store_n(&sq[p.sq_off.tail / 4], 1, __ATOMIC_RELEASE);
	CHECK_INT(syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0), 1);
	sleep_ms(50);
	atomic_store(&shared->flags[0], 1);
	/* Waits in io_uring_enter(2), where callbacks run in the midst of the call. */
	errno = 0;
	atomic_store(&shared->flags[1],
		     syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 ?
			     errno :
			     -1);
}

static pid_t waits_in_uring(uintptr_t flags)
{
	pid_t pid = victim(uring_reader, (void *)flags);
	int status;

	for (int ms = 0; !atomic_load(&shared->flags[0]); ms++) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			case_skip("this kernel has no io_uring");
		CHECK(ms < 60000);
		sleep_ms(1);
	}
	AWAIT(state_in_proc(pid) == 'S');
	return pid;
}

static bool is_refused(pid_t pid)
{
	int session = freeze(pid);

	if (session >= 0)
		close(session);
	return session == -EOPNOTSUPP;
}

static void case_io_uring(void)
{
	pid_t pid = waits_in_uring(0);
	struct counts c;

	for (int i = 0; i < 5; i++) {
		int session = freeze_all(pid, &c);

		CHECK_INT(c.all, 1);
		CHECK_INT(park(session, pid, TIMEOUT_MS), 0);
		close(session);
		sleep_ms(5);
	}
	CHECK_INT(atomic_load(&shared->flags[1]), 0); /* io_uring_enter(2) has not returned */
	victim_end(pid);
	atomic_store(&shared->flags[0], 0);
	pid = waits_in_uring(IOSQE_ASYNC);
	AWAIT(is_refused(pid)); /* when the kernel's thread is there */
	victim_end(pid);
}

static int own_uffd(char *page)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { (uintptr_t)page, 4096 },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = (int)syscall(SYS_userfaultfd, 0);

	CHECK(fd >= 0);
	CHECK_INT(ioctl(fd, UFFDIO_API, &api), 0);
	CHECK_INT(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	return fd;
}

static void *faults(void *in_kernel)
{
	char *page = shared->pointers[0];
	int fd[2];

	CHECK_INT(pipe(fd), 0);
	CHECK_INT(write(fd[1], "x", 1), 1);
	atomic_store(&shared->flags[2], (int)syscall(SYS_gettid));
	if (in_kernel)
		CHECK_INT(read(fd[0], page, 1), 1);
	else
		*(volatile char *)page = 'x';
	atomic_store(&shared->flags[1], *page);
	return NULL;
}

static void faulter(void *in_kernel)
{
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_zeropage zero = { .range = { (uintptr_t)page, 4096 } };
	int fd = own_uffd(page);
	pthread_t thread;

	shared->pointers[0] = page;
	CHECK_INT(pthread_create(&thread, NULL, faults, in_kernel), 0);
	while (!atomic_load(&shared->flags[3]))
		sleep_ms(1);
	CHECK_INT(ioctl(fd, UFFDIO_ZEROPAGE, &zero), 0);
}

/* The thread that waits for its page is left waiting; and gets it in the end. */
static void case_faulting(void)
{
	for (long in_kernel = 0; in_kernel < 2; in_kernel++) {
		pid_t pid = victim(faulter, (void *)in_kernel);
		int session, tid;

		AWAIT(atomic_load(&shared->flags[2]));
		tid = atomic_load(&shared->flags[2]);
		AWAIT(state_in_proc(tid) == 'S');
		session = freeze_all(pid, NULL);
		CHECK_INT(thread_of(session, tid).state, DECAMP_QUIESCED);
		atomic_store(&shared->flags[3], 1);
		sleep_ms(30);
		CHECK_INT(atomic_load(&shared->flags[1]), 0);
		close(session);
		AWAIT(atomic_load(&shared->flags[1]) == 'x');
		victim_end(pid);
		memset(shared, 0, sizeof(*shared));
	}
}

#define GROUP "/sys/fs/cgroup/decamp-test"

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(fd >= 0 && write(fd, text, strlen(text)) > 0, "%s", path);
	close(fd);
}

/* The freezer's hold and ours, one within the other, both ways round. */
static void case_cgroup(void)
{
	pid_t pid = ready_victim(spin_8);
	char text[16];
	int session;

	if (access("/sys/fs/cgroup/cgroup.procs", W_OK) < 0)
		case_skip("no cgroup v2 at /sys/fs/cgroup");
	CHECK(mkdir(GROUP, 0755) == 0 || errno == EEXIST);
	snprintf(text, sizeof(text), "%d", pid);
	put(GROUP "/cgroup.procs", text);
	session = freeze_all(pid, NULL);
	put(GROUP "/cgroup.freeze", "1");
	check_still();
	close(session);
	sleep_ms(30);
	check_still();
	session = freeze_all(pid, NULL);
	put(GROUP "/cgroup.freeze", "0");
	sleep_ms(30);
	check_still();
	close(session);
	check_moves();
	session = freeze_all(pid, NULL);
	put(GROUP "/cgroup.freeze", "1");
	victim_end(pid); /* held twice, and dies at once */
	close(session);
	AWAIT(rmdir(GROUP) == 0);
}

const struct kmod_case stop_cases[] = {
	{ "threads that compute park", case_spinning },
	{ "threads asleep are left asleep, or parked", case_asleep },
	{ "killed while frozen", case_killed },
	{ "the agent is killed", case_agent_dies },
	{ "the lease is over", case_lease },
	{ "stopped by a signal, continued while frozen", case_stopped },
	{ "traced, running and in a stop", case_traced },
	{ "parent in vfork(2)", case_vfork },
	{ "waits where nobody knows for how long: counts", case_blocked },
	{ "main thread has ended", case_zombie_leader },
	{ "io_uring: waiter parked, worker refused", case_io_uring },
	{ "page faults that userfaultfd holds", case_faulting },
	{ "the cgroup freezer beside us", case_cgroup },
	{ 0 },
};
