// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A process with one of everything that a checkpoint has to know, standing still: threads
 * blocked in several system calls, a child, timers, descriptors of all kinds, memory of all kinds.
 * Writes "ready" to its stdout when all is set up. Works in the current folder.
 */
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define CHECK(x)                     \
	do {                         \
		if ((long)(x) < 0) { \
			perror(#x);  \
			exit(1);     \
		}                    \
	} while (0)

static int blocking_pipe[2];
static uint32_t futex_word;
static char alternate_stack[16384];

static void on_signal(int number, siginfo_t *info, void *context)
{
	(void)number, (void)info, (void)context;
}

static void *block_in_read(void *argument)
{
	char c;

	(void)argument;
	prctl(PR_SET_NAME, "reader");
	CHECK(read(blocking_pipe[0], &c, 1));
	return NULL;
}

static void *block_in_futex(void *argument)
{
	stack_t ss = { .ss_sp = alternate_stack, .ss_size = sizeof(alternate_stack) };

	(void)argument;
	CHECK(sigaltstack(&ss, NULL));
	syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, NULL, NULL, 0);
	return NULL;
}

static void *block_in_pause(void *argument)
{
	sigset_t set;

	(void)argument;
	sigfillset(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	for (;;)
		pause();
	return NULL;
}

static void make_threads(void)
{
	static void *(*const functions[])(void *) = { block_in_read, block_in_futex,
						      block_in_pause };
	pthread_t thread;

	for (unsigned int i = 0; i < sizeof(functions) / sizeof(functions[0]); i++)
		if (pthread_create(&thread, NULL, functions[i], NULL) != 0)
			exit(1);
}

static void make_signals(void)
{
	struct sigaction action = { .sa_sigaction = on_signal,
				    .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK };
	union sigval value = { .sival_int = 4711 };
	sigset_t set;

	sigaddset(&action.sa_mask, SIGUSR2);
	CHECK(sigaction(SIGUSR1, &action, NULL));
	CHECK(sigaction(SIGRTMIN + 3, &action, NULL));
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGRTMIN + 3);
	sigprocmask(SIG_BLOCK, &set, NULL);
	CHECK(sigqueue(getpid(), SIGRTMIN + 3, value));
	CHECK(sigqueue(getpid(), SIGRTMIN + 3, value));
	CHECK(syscall(SYS_tgkill, getpid(), getpid(), SIGUSR2));
}

static void make_timers(void)
{
	struct itimerval interval = { .it_value.tv_sec = 5000, .it_interval.tv_sec = 7 };
	struct itimerspec spec = { .it_value.tv_sec = 6000, .it_interval.tv_nsec = 5000000 };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	timer_t timer;
	int fd;

	CHECK(setitimer(ITIMER_REAL, &interval, NULL));
	CHECK(setitimer(ITIMER_PROF, &interval, NULL));
	event.sigev_value.sival_int = 99;
	CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer));
	CHECK(timer_settime(timer, 0, &spec, NULL));
	CHECK(timer_create(CLOCK_REALTIME, &event, &timer));
	fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	CHECK(fd);
	CHECK(timerfd_settime(fd, 0, &spec, NULL));
}

static void make_files(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 3, .l_len = 5 };
	int fd = open("plain", O_RDWR | O_CREAT | O_APPEND, 0640);

	CHECK(fd);
	CHECK(write(fd, "0123456789", 10));
	CHECK(lseek(fd, 4, SEEK_SET));
	CHECK(fcntl(fd, F_SETLK, &lock));
	CHECK(dup2(fd, 100));
	CHECK(fcntl(100, F_SETFD, FD_CLOEXEC));
	fd = open("gone", O_RDWR | O_CREAT, 0600);
	CHECK(fd);
	CHECK(write(fd, "deleted but open", 16));
	CHECK(unlink("gone"));
	CHECK(open(".", O_RDONLY | O_DIRECTORY));
	CHECK(open("plain", O_PATH));
	CHECK(mkfifo("fifo", 0600));
	fd = open("fifo", O_RDWR | O_NONBLOCK);
	CHECK(fd);
	CHECK(write(fd, "in the fifo", 11));
}

static void make_events(void)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u64 = 0x1122334455667788 };
	int ends[2], fd, poll = epoll_create1(EPOLL_CLOEXEC);
	sigset_t set;

	CHECK(poll);
	CHECK(pipe2(ends, O_NONBLOCK));
	CHECK(write(ends[1], "hello", 5));
	CHECK(epoll_ctl(poll, EPOLL_CTL_ADD, ends[0], &event));
	fd = eventfd(5, EFD_NONBLOCK);
	CHECK(fd);
	CHECK(epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event));
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	CHECK(signalfd(-1, &set, SFD_CLOEXEC));
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	CHECK(write(ends[0], "stream data", 11));
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends));
	CHECK(write(ends[1], "one", 3));
	CHECK(write(ends[1], "two!", 4));
}

static void make_memory(void)
{
	char *p = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = memfd_create("area", MFD_ALLOW_SEALING);

	CHECK(p == MAP_FAILED ? -1 : 0);
	for (int i = 0; i < 64; i += 3)
		memset(p + i * PAGE, i + 1, PAGE);
	memset(p + 30 * PAGE, 0, PAGE);
	CHECK(mprotect(p + 32 * PAGE, 8 * PAGE, PROT_NONE));
	CHECK(madvise(p + 48 * PAGE, 8 * PAGE, MADV_DONTFORK));
	p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(p == MAP_FAILED ? -1 : 0);
	memset(p + PAGE, 7, 2 * PAGE);
	CHECK(fd);
	CHECK(ftruncate(fd, 10 * PAGE));
	p = mmap(NULL, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p == MAP_FAILED ? -1 : 0);
	memset(p + 3 * PAGE, 9, PAGE);
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
	fd = open("mapped", O_RDWR | O_CREAT, 0600);
	CHECK(fd);
	CHECK(ftruncate(fd, 4 * PAGE));
	p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p == MAP_FAILED ? -1 : 0);
	p[5] = 1;
	p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(p == MAP_FAILED ? -1 : 0);
	p[PAGE] = 2;
	close(fd);
}

static void make_child(void)
{
	pid_t pid = fork();

	CHECK(pid);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		prctl(PR_SET_NAME, "a child");
		setpgid(0, 0);
		umask(027);
		for (;;)
			pause();
	}
	pid = fork();
	CHECK(pid);
	if (pid == 0)
		_exit(3); /* stays a zombie */
}

int main(void)
{
	struct rlimit limit;

	setsid();
	CHECK(pipe(blocking_pipe));
	umask(077);
	CHECK(setpriority(PRIO_PROCESS, 0, 5));
	CHECK(getrlimit(RLIMIT_CORE, &limit));
	limit.rlim_cur = 0;
	CHECK(setrlimit(RLIMIT_CORE, &limit));
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1));
	make_child();
	make_files();
	make_events();
	make_memory();
	make_signals();
	make_timers();
	make_threads();
	usleep(200000);
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
