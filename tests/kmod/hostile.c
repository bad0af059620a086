// SPDX-License-Identifier: LGPL-2.1-or-later
/* Callers that mean no good, processes that do not keep still, a module that comes and goes. */
#include "tests/kmod/kmod.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { FUZZ_CALLS = 20000, STORM_FREEZES = 15, RELOADS = 5 };

/* All threads of a storm count in one counter, as fast as they can. */
static void *short_life(void *unused)
{
	atomic_fetch_add(&shared->counters[0], 1);
	return unused;
}

static void thread_storm(void *unused)
{
	pthread_t threads[4];

	(void)unused;
	for (;;) {
		for (int i = 0; i < 4; i++)
			CHECK_INT(pthread_create(&threads[i], NULL, short_life, NULL), 0);
		for (int i = 0; i < 4; i++)
			pthread_join(threads[i], NULL);
	}
}

static void fork_storm(void *unused)
{
	(void)unused;
	for (int parents = 0; parents < 2; parents++)
		if (fork() == 0)
			prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		pid_t pid = fork();

		if (pid == 0) {
			atomic_fetch_add(&shared->counters[0], 1);
			_exit(0);
		}
		waitpid(pid, NULL, 0);
	}
}

/* The counter is in a memory file, because exec(2) leaves nothing else. */
static int counter_file;

static void exec_storm(void *unused)
{
	char text[32];

	(void)unused;
	for (int i = 0; i < 2; i++)
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			snprintf(text, sizeof(text), "%d", counter_file);
			execl("/bin/sh", "sh", "-c",
			      "[ $2 -gt 0 ] && echo x >&$1; exec sh -c \"$0\" \"$0\" $1 $(($2+1))",
			      "echo x >&$1; exec sh -c \"$0\" \"$0\" $1 1", text, "1", NULL);
			_exit(1);
		}
	while (wait(NULL) > 0)
		;
}

static off_t file_size(void)
{
	return lseek(counter_file, 0, SEEK_END);
}

static void storm(void (*fn)(void *unused))
{
	bool in_file = fn == exec_storm;
	pid_t pid;

	counter_file = memfd_create("counter", 0);
	CHECK(counter_file >= 0 && fcntl(counter_file, F_SETFL, O_APPEND) == 0);
	pid = victim(fn, NULL);
	AWAIT(in_file ? file_size() > 0 : counted() > 0);
	for (int i = 0; i < STORM_FREEZES; i++) {
		int session = freeze_all(pid, NULL);
		unsigned long before = counted();
		off_t size = file_size();

		sleep_ms(10);
		CHECK(counted() == before && file_size() == size, "the storm goes on");
		close(session);
		sleep_ms(5);
	}
	victim_end(pid);
}

static void case_threads(void)
{
	storm(thread_storm);
}

static void case_forks(void)
{
	storm(fork_storm);
}

static void case_execs(void)
{
	storm(exec_storm);
}

/* Set effective capabilities to those with bit `without` taken out. */
static void drop(unsigned int without)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	CHECK_INT(syscall(SYS_capget, &head, data), 0);
	data[without / 32].effective &= ~(1U << without % 32);
	CHECK_INT(syscall(SYS_capset, &head, data), 0);
}

static void case_rights(void)
{
	static const unsigned int needed[] = { CAP_SYS_PTRACE, CAP_CHECKPOINT_RESTORE };
	int fd = device(), status;

	for (size_t i = 0; i < 3; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			if (i < 2)
				drop(needed[i]);
			else
				CHECK_INT(setresuid(65534, 65534, 65534), 0);
			CHECK(i < 2 || (open(DECAMP_DEVICE, O_RDWR) < 0 && errno == EACCES));
			CHECK_INT(freeze(getpid()), -EPERM);
			CHECK_INT(uffd_of(getpid(), fd, 0), -EPERM);
			_exit(0);
		}
		CHECK_INT(waitpid(pid, &status, 0), pid);
		CHECK_INT(status, 0);
	}
}

static void spin_2(void *unused)
{
	(void)unused;
	spinners(2);
	atomic_store(&shared->flags[0], 1);
}

static int call(int fd, unsigned long nr, const void *args)
{
	return ioctl(fd, nr, args) < 0 ? -errno : 0;
}

/* One field at a time is wrong. */
static void case_refusals(void)
{
	pid_t pid = victim(spin_2, NULL);
	const struct decamp_freeze good = {
		.size = sizeof(good), .pid = pid, .timeout_ms = 1000, .lease_ms = 1000
	};
	struct {
		struct decamp_freeze a;
		uint32_t beyond;
	} f = { good, 0 };
	struct decamp_threads t = { .size = sizeof(t) };
	struct decamp_park p = { .size = sizeof(p), .tid = pid, .flags = 1 };
	int session;

#define REFUSED(field, value, error)                                     \
	do {                                                             \
		f.a = good;                                              \
		f.a.field = (value);                                     \
		CHECK_INT(call(device(), DECAMP_IOC_FREEZE, &f), error); \
	} while (0)
	AWAIT(atomic_load(&shared->flags[0]));
	REFUSED(size, 0, -EINVAL);
	REFUSED(size, sizeof(good) - 1, -EINVAL);
	REFUSED(size, 4097, -E2BIG);
	REFUSED(flags, 1, -EINVAL);
	REFUSED(flags, 1U << 31, -EINVAL);
	REFUSED(pid, 0, -EINVAL);
	REFUSED(pid, -1, -EINVAL);
	REFUSED(pid, INT32_MAX, -ESRCH);
	REFUSED(lease_ms, DECAMP_LEASE_MS_MIN - 1, -EINVAL);
	REFUSED(lease_ms, 0, -EINVAL);
	REFUSED(lease_ms, DECAMP_LEASE_MS_MAX + 1, -EINVAL);
	f.beyond = 1;
	REFUSED(size, sizeof(f), -E2BIG);
	CHECK_INT(call(device(), DECAMP_IOC_FREEZE, (void *)8), -EFAULT);
	CHECK_INT(call(device(), DECAMP_IOC_THREADS, &t), -ENOTTY);
	/* A longer one that is 0 beyond is a newer caller's. */
	f.a = good;
	f.a.size = sizeof(f);
	f.beyond = 0;
	session = ioctl(device(), DECAMP_IOC_FREEZE, &f);
	CHECK(session >= 0);
	CHECK_INT(call(session, DECAMP_IOC_FREEZE, &f), -ENOTTY);
	t.room = UINT64_MAX;
	CHECK_INT(call(session, DECAMP_IOC_THREADS, &t), -EFAULT);
	CHECK_INT(call(session, DECAMP_IOC_PARK, &p), -EINVAL);
	CHECK_INT(park(session, getpid(), 10), -ESRCH);
	close(session);
	victim_end(pid);
}

static uint64_t dice(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* Words that mean something now and then, in a page that ends where the next is not mapped. */
static void fill(uint64_t *seed, uint32_t *words, size_t count, const pid_t *pid)
{
	for (size_t i = 0; i < count; i++) {
		switch (dice(seed) % 8) {
		case 0:
			words[i] = (uint32_t)dice(seed);
			break;
		case 1:
			words[i] = (uint32_t)*pid;
			break;
		case 2:
			words[i] = 1;
			break;
		case 3:
			words[i] = (uint32_t)(uintptr_t)pid;
			break;
		case 4:
			words[i] = (uint32_t)((uintptr_t)pid >> 32);
			break;
		case 5:
			words[i] = (uint32_t)(dice(seed) % 64) * 8;
			break;
		default:
			words[i] = 0;
		}
	}
}

static void case_fuzz(void)
{
	static pid_t room[16384]; /* begins with the process; what calls write goes there, too */
	pid_t pid = victim(spin_2, NULL);
	uint64_t seed = 0x9e3779b97f4a7c15;
	unsigned int calls[2] = { 0 };
	char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int session = -EINVAL;

	CHECK(pages != MAP_FAILED && mprotect(pages + 4096, 4096, PROT_NONE) == 0);
	AWAIT(atomic_load(&shared->flags[0]));
	for (int i = 0; i < FUZZ_CALLS; i++) {
		size_t bytes = 8 + dice(&seed) % 30 * 4;
		uint32_t *args = (uint32_t *)(pages + 4096 - bytes);
		unsigned int nr = dice(&seed) % 2 ? 16 + dice(&seed) % 5 : dice(&seed) % 4;
		int r;

		if (i % 500 == 0) {
			if (session >= 0)
				close(session);
			session = freeze(pid);
			CHECK(session >= 0, "%s", strerror(-session));
		}
		room[0] = pid;
		fill(&seed, args, bytes / 4, room);
		if (dice(&seed) % 8)
			args[0] = (uint32_t)(dice(&seed) % 4 ? bytes : dice(&seed) % 128);
		if (dice(&seed) % 4)
			args[1] = 0;
		r = ioctl(nr < 16 ? device() : session, _IO(DECAMP_IOC, nr), args);
		calls[r >= 0]++;
		if (r > 2 && nr < 16)
			close(r);
	}
	case_note("%u calls refused, %u not", calls[0], calls[1]);
	close(session);
	check_moves();
	victim_end(pid);
}

static atomic_int raced;

static void *calls_race(void *seed)
{
	static struct decamp_thread all[4][THREADS_ROOM];
	static atomic_int next;
	struct decamp_thread *t = all[atomic_fetch_add(&next, 1) % 4];

	(void)seed;
	while (!atomic_load(&shared->flags[1])) {
		int session = atomic_load(&raced);

		(void)threads_of(session, t);
		(void)xstate(session, &t[0], &t[1], sizeof(all[0]) - sizeof(*t));
		(void)park(session, t[0].tid, 1);
	}
	return NULL;
}

/* The session is closed, and its number given to the next one, in the midst of others' calls. */
static void case_races(void)
{
	pthread_t threads[4];
	pid_t pid = victim(spin_2, NULL), other = 0;

	AWAIT(atomic_load(&shared->flags[0]));
	atomic_store(&raced, freeze(pid));
	for (int i = 0; i < 4; i++)
		CHECK_INT(pthread_create(&threads[i], NULL, calls_race, NULL), 0);
	for (int i = 0; i < 150; i++) {
		int r, old = atomic_load(&raced);

		if (i % 10 == 0) {
			if (other)
				victim_end(other); /* frozen or not */
			other = victim(spin_2, NULL);
		}
		close(old);
		r = freeze(i % 3 ? pid : other);
		CHECK(r >= 0 || r == -EBUSY, "%s", strerror(-r));
		if (r >= 0)
			atomic_store(&raced, r);
	}
	atomic_store(&shared->flags[1], 1);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	close(atomic_load(&raced));
	check_moves();
	victim_end(pid);
	victim_end(other);
}

static int unload(void)
{
	return syscall(SYS_delete_module, "decamp", O_NONBLOCK) < 0 ? -errno : 0;
}

static int load(int file)
{
	return syscall(SYS_finit_module, file, "", 0) < 0 ? -errno : 0;
}

/* Who slept keeps a callback, and so the module; when parked they give it back. */
static void freeze_twice(pid_t pid)
{
	for (int i = 0; i < 2; i++) {
		int session = i ? freeze_parked(pid, NULL) : freeze_all(pid, NULL);

		CHECK_INT(unload(), -EWOULDBLOCK);
		close(session);
	}
}

void case_reload(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	pid_t forks = victim(fork_storm, NULL), spins = victim(spin_2, NULL);

	CHECK(file >= 0);
	AWAIT(atomic_load(&shared->flags[0]));
	AWAIT(unload() == 0);
	for (int i = 0; i < RELOADS; i++) {
		CHECK_INT(load(file), 0);
		AWAIT(access(DECAMP_DEVICE, R_OK) == 0);
		freeze_twice(forks);
		freeze_twice(spins);
		device_close();
		AWAIT(unload() == 0); /* while callbacks are just running out */
	}
	check_moves();
	victim_end(forks);
	victim_end(spins);
	close(file);
}

const struct kmod_case hostile_cases[] = {
	{ "thread storm", case_threads },
	{ "fork storm", case_forks },
	{ "exec storm", case_execs },
	{ "rights", case_rights },
	{ "refusals", case_refusals },
	{ "random calls", case_fuzz },
	{ "close against calls, death against freezes", case_races },
	{ 0 },
};
