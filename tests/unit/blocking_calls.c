// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/blocking_calls.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "agent/util/cleanup.h"

static long fine(bool ok)
{
	return ok ? 0 : errno ? errno : -1;
}

static struct timespec in_ms(int ms)
{
	return (struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };
}

/* Pipes */
static void with_pipe(struct slot *s)
{
	assert_int_equal(pipe(s->fd), 0);
}
static void fill(int fd)
{
	char bytes[4096] = { 0 };
	int flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	while (write(fd, bytes, sizeof(bytes)) > 0)
		;
	fcntl(fd, F_SETFL, flags);
}
static void with_full_pipe(struct slot *s)
{
	with_pipe(s);
	fill(s->fd[1]);
}
static void give_byte(struct slot *s)
{
	assert_int_equal(write(s->fd[1], "x", 1), 1);
}
static void drain(struct slot *s)
{
	char bytes[8192];

	assert_true(read(s->fd[0], bytes, sizeof(bytes)) > 0);
}
static long block_read(struct slot *s)
{
	char c;

	return fine(read(s->fd[0], &c, 1) == 1);
}
static long block_readv(struct slot *s)
{
	char c[2];
	struct iovec v[2] = { { c, 1 }, { c + 1, 1 } };

	return fine(readv(s->fd[0], v, 2) == 1);
}
static long block_write(struct slot *s)
{
	char bytes[4096] = { 0 };

	return fine(write(s->fd[1], bytes, sizeof(bytes)) == sizeof(bytes));
}
static long block_poll(struct slot *s)
{
	struct pollfd p = { .fd = s->fd[0], .events = POLLIN };

	return fine(poll(&p, 1, -1) == 1);
}
static long block_poll_timed(struct slot *s)
{
	struct pollfd p = { .fd = s->fd[0], .events = POLLIN };

	return fine(poll(&p, 1, BLOCKING_TIMED_MS) == 0);
}
static long block_ppoll(struct slot *s)
{
	struct pollfd p = { .fd = s->fd[0], .events = POLLIN };
	struct timespec ts = in_ms(60000);
	sigset_t mask;

	sigfillset(&mask);
	return fine(ppoll(&p, 1, &ts, &mask) == 1);
}
static long block_select(struct slot *s)
{
	fd_set set;

	FD_ZERO(&set);
	FD_SET(s->fd[0], &set);
	return fine(select(s->fd[0] + 1, &set, NULL, NULL, NULL) == 1);
}
static long block_pselect(struct slot *s)
{
	sigset_t mask;
	fd_set set;

	sigfillset(&mask);
	FD_ZERO(&set);
	FD_SET(s->fd[0], &set);
	return fine(pselect(s->fd[0] + 1, &set, NULL, NULL, NULL, &mask) == 1);
}
static int epoll_of(int fd)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int ep = epoll_create1(0);

	return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) < 0 ? -1 : ep;
}
static long block_epoll(struct slot *s)
{
	struct epoll_event ev;

	return fine(epoll_wait(epoll_of(s->fd[0]), &ev, 1, -1) == 1);
}
static long block_epoll_pwait(struct slot *s)
{
	struct epoll_event ev;
	sigset_t mask;

	sigfillset(&mask);
	return fine(epoll_pwait(epoll_of(s->fd[0]), &ev, 1, -1, &mask) == 1);
}
static long block_epoll_timed(struct slot *s)
{
	struct epoll_event ev;

	return fine(epoll_wait(epoll_of(s->fd[0]), &ev, 1, BLOCKING_TIMED_MS) == 0);
}

/* Sleeps */
static long block_nanosleep(struct slot *s)
{
	struct timespec ts = in_ms(BLOCKING_TIMED_MS);

	(void)s;
	return fine(syscall(SYS_nanosleep, &ts, NULL) == 0);
}
static long block_clock_nanosleep(struct slot *s)
{
	struct timespec ts = in_ms(BLOCKING_TIMED_MS);

	(void)s;
	errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, &ts);
	return errno;
}
static long block_clock_nanosleep_abs(struct slot *s)
{
	struct timespec ts;

	(void)s;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	ts.tv_sec += BLOCKING_TIMED_MS / 1000;
	ts.tv_nsec += BLOCKING_TIMED_MS % 1000 * 1000000L;
	ts.tv_sec += ts.tv_nsec / 1000000000;
	ts.tv_nsec %= 1000000000;
	errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
	return errno;
}
static long block_timerfd(struct slot *s)
{
	struct itimerspec its = { .it_value = in_ms(BLOCKING_TIMED_MS) };
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	uint64_t n;

	(void)s;
	timerfd_settime(fd, 0, &its, NULL);
	return fine(read(fd, &n, sizeof(n)) == sizeof(n) && n == 1);
}

/* Futexes */
static long block_futex(struct slot *s)
{
	return fine(syscall(SYS_futex, &s->word, FUTEX_WAIT, 0, NULL, NULL, 0) == 0);
}
static long block_futex_timed(struct slot *s)
{
	struct timespec ts = in_ms(BLOCKING_TIMED_MS);
	long r = syscall(SYS_futex, &s->word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0);

	return fine(r < 0 && errno == ETIMEDOUT);
}
static void wake(struct slot *s)
{
	atomic_store(&s->word, 1);
	syscall(SYS_futex, &s->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}
static long block_cond(struct slot *s)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
	struct timespec ts;

	(void)s;
	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += BLOCKING_TIMED_MS / 1000;
	ts.tv_nsec += BLOCKING_TIMED_MS % 1000 * 1000000L;
	ts.tv_sec += ts.tv_nsec / 1000000000;
	ts.tv_nsec %= 1000000000;
	pthread_mutex_lock(&mutex);
	errno = 0;
	return pthread_cond_timedwait(&cond, &mutex, &ts) == ETIMEDOUT ? 0 : -1;
}

/* Signals */
static void give_usr1(struct slot *s)
{
	assert_int_equal(kill(s->pid, SIGUSR1), 0);
}
static sigset_t usr1_set(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	return set;
}
static long block_pause(struct slot *s)
{
	(void)s;
	return fine(syscall(SYS_pause) < 0 && errno == EINTR);
}
static long block_sigsuspend(struct slot *s)
{
	sigset_t set = usr1_set(), none;

	(void)s;
	sigemptyset(&none);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return fine(sigsuspend(&none) < 0 && errno == EINTR);
}
static long block_sigwaitinfo(struct slot *s)
{
	sigset_t set = usr1_set();

	(void)s;
	sigprocmask(SIG_BLOCK, &set, NULL);
	return fine(sigwaitinfo(&set, NULL) == SIGUSR1);
}
static long block_sigtimedwait(struct slot *s)
{
	struct timespec ts = in_ms(BLOCKING_TIMED_MS);
	sigset_t set = usr1_set();

	(void)s;
	sigprocmask(SIG_BLOCK, &set, NULL);
	return fine(sigtimedwait(&set, NULL, &ts) < 0 && errno == EAGAIN);
}
static long block_signalfd(struct slot *s)
{
	struct signalfd_siginfo si;
	sigset_t set = usr1_set();

	(void)s;
	sigprocmask(SIG_BLOCK, &set, NULL);
	return fine(read(signalfd(-1, &set, 0), &si, sizeof(si)) == sizeof(si));
}

/* Sockets */
static void with_pair(struct slot *s)
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s->fd), 0);
}
static void with_full_pair(struct slot *s)
{
	struct timeval tv = { .tv_sec = 60 };

	with_pair(s);
	assert_int_equal(setsockopt(s->fd[1], SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)), 0);
	fill(s->fd[1]);
}
static void with_timeout(struct slot *s)
{
	struct timeval tv = { .tv_sec = 60 };

	with_pair(s);
	assert_int_equal(setsockopt(s->fd[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)), 0);
}
static long block_recv(struct slot *s)
{
	char c;

	return fine(recv(s->fd[0], &c, 1, 0) == 1);
}
static long block_recv_timed(struct slot *s)
{
	struct timeval tv = { .tv_sec = BLOCKING_TIMED_MS / 1000,
			      .tv_usec = BLOCKING_TIMED_MS % 1000 * 1000 };
	char c;

	setsockopt(s->fd[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	return fine(recv(s->fd[0], &c, 1, 0) < 0 && errno == EAGAIN);
}
static long block_recvmmsg(struct slot *s)
{
	char c;
	struct iovec v = { &c, 1 };
	struct mmsghdr m = { .msg_hdr = { .msg_iov = &v, .msg_iovlen = 1 } };

	return fine(recvmmsg(s->fd[0], &m, 1, 0, NULL) == 1);
}
static long block_send(struct slot *s)
{
	char bytes[4096] = { 0 };

	return fine(send(s->fd[1], bytes, sizeof(bytes), 0) == sizeof(bytes));
}
static void drain_all(struct slot *s)
{
	char bytes[65536];

	while (recv(s->fd[0], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
}
static struct sockaddr_un address_of(const struct slot *s)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", s->path);
	return a;
}
static void with_listener(struct slot *s)
{
	struct sockaddr_un a = address_of(s);

	s->fd[0] = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(s->fd[0], (void *)&a, sizeof(a)), 0);
	assert_int_equal(listen(s->fd[0], 0), 0);
}
static void with_full_listener(struct slot *s)
{
	struct sockaddr_un a = address_of(s);

	with_listener(s);
	s->fd[1] = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(connect(s->fd[1], (void *)&a, sizeof(a)), 0);
}
static long block_accept(struct slot *s)
{
	return fine(accept(s->fd[0], NULL, NULL) >= 0);
}
static void call_up(struct slot *s)
{
	struct sockaddr_un a = address_of(s);

	s->fd[1] = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(connect(s->fd[1], (void *)&a, sizeof(a)), 0);
}
static long block_connect(struct slot *s)
{
	struct sockaddr_un a = address_of(s);
	struct timeval tv = { .tv_sec = 60 };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	return fine(connect(fd, (void *)&a, sizeof(a)) == 0);
}
static void pick_up(struct slot *s)
{
	close(accept(s->fd[0], NULL, NULL));
}

/* System V and POSIX IPC */
static void with_sem(struct slot *s)
{
	s->id = semget(IPC_PRIVATE, 1, 0600);
	assert_true(s->id >= 0);
}
static long block_semop(struct slot *s)
{
	struct sembuf op = { .sem_op = -1 };

	return fine(semop(s->id, &op, 1) == 0);
}
static long block_semtimedop(struct slot *s)
{
	struct sembuf op = { .sem_op = -1 };
	struct timespec ts = in_ms(60000);

	return fine(semtimedop(s->id, &op, 1, &ts) == 0);
}
static void give_sem(struct slot *s)
{
	struct sembuf op = { .sem_op = 1 };

	assert_int_equal(semop(s->id, &op, 1), 0);
}
struct message {
	long type;
	char text[4096];
};
static void with_queue(struct slot *s)
{
	s->id = msgget(IPC_PRIVATE, 0600);
	assert_true(s->id >= 0);
}
static void with_full_queue(struct slot *s)
{
	struct message m = { .type = 1 };

	with_queue(s);
	while (msgsnd(s->id, &m, sizeof(m.text), IPC_NOWAIT) == 0)
		;
}
static long block_msgrcv(struct slot *s)
{
	struct message m;

	return fine(msgrcv(s->id, &m, sizeof(m.text), 0, 0) == sizeof(m.text));
}
static long block_msgsnd(struct slot *s)
{
	struct message m = { .type = 1 };

	return fine(msgsnd(s->id, &m, sizeof(m.text), 0) == 0);
}
static void give_message(struct slot *s)
{
	struct message m = { .type = 1 };

	assert_int_equal(msgsnd(s->id, &m, sizeof(m.text), 0), 0);
}
static void take_message(struct slot *s)
{
	struct message m;

	assert_true(msgrcv(s->id, &m, sizeof(m.text), 0, 0) > 0);
}
static void with_mq(struct slot *s)
{
	struct mq_attr attr = { .mq_maxmsg = 1, .mq_msgsize = 8 };
	char name[64];

	snprintf(name, sizeof(name), "/transparent-%d", getpid());
	s->fd[0] = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attr);
	assert_true(s->fd[0] >= 0);
	mq_unlink(name);
}
static long block_mq(struct slot *s)
{
	char bytes[8];
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += 60;
	return fine(mq_timedreceive(s->fd[0], bytes, sizeof(bytes), NULL, &ts) == 1);
}
static void give_mq(struct slot *s)
{
	assert_int_equal(mq_send(s->fd[0], "x", 1, 0), 0);
}

/* Files and children */
static void with_file(struct slot *s)
{
	s->fd[0] = open(s->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(s->fd[0] >= 0);
}
static void with_flock(struct slot *s)
{
	with_file(s);
	assert_int_equal(flock(s->fd[0], LOCK_EX), 0);
}
static void with_lock(struct slot *s)
{
	struct flock l = { .l_type = F_WRLCK };

	with_file(s);
	assert_int_equal(fcntl(s->fd[0], F_SETLK, &l), 0);
}
static void unlock_flock(struct slot *s)
{
	flock(s->fd[0], LOCK_UN);
}
static void unlock(struct slot *s)
{
	struct flock l = { .l_type = F_UNLCK };

	fcntl(s->fd[0], F_SETLK, &l);
}
static long block_flock(struct slot *s)
{
	return fine(flock(open(s->path, O_RDWR), LOCK_EX) == 0);
}
static long block_setlkw(struct slot *s)
{
	struct flock l = { .l_type = F_WRLCK };

	return fine(fcntl(open(s->path, O_RDWR), F_SETLKW, &l) == 0);
}
static long block_ofd_setlkw(struct slot *s)
{
	struct flock l = { .l_type = F_WRLCK };

	return fine(fcntl(open(s->path, O_RDWR), F_OFD_SETLKW, &l) == 0);
}
static void with_fifo(struct slot *s)
{
	assert_int_equal(mkfifo(s->path, 0600), 0);
}
static long block_open(struct slot *s)
{
	return fine(open(s->path, O_RDONLY) >= 0);
}
static void open_other_end(struct slot *s)
{
	s->fd[1] = open(s->path, O_WRONLY);
}
static void grandchild(struct slot *s)
{
	char c;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	_exit(read(s->fd[0], &c, 1) == 1 ? 7 : 1);
}
static long block_wait(struct slot *s)
{
	pid_t pid = fork();
	int status;

	if (pid == 0)
		grandchild(s);
	return fine(wait4(pid, &status, 0, NULL) == pid && WEXITSTATUS(status) == 7);
}
static long block_waitid(struct slot *s)
{
	pid_t pid = fork();
	siginfo_t si;

	if (pid == 0)
		grandchild(s);
	return fine(waitid(P_PID, (id_t)pid, &si, WEXITED) == 0 && si.si_status == 7);
}
static void with_eventfd(struct slot *s)
{
	s->fd[0] = eventfd(0, 0);
}
static long block_eventfd(struct slot *s)
{
	uint64_t n;

	return fine(read(s->fd[0], &n, sizeof(n)) == sizeof(n));
}
static void give_event(struct slot *s)
{
	eventfd_write(s->fd[0], 1);
}
static long block_inotify(struct slot *s)
{
	char bytes[512];
	int fd = inotify_init1(0);

	if (inotify_add_watch(fd, s->path, IN_MODIFY) < 0)
		return errno;
	return fine(read(fd, bytes, sizeof(bytes)) > 0);
}
static void modify(struct slot *s)
{
	assert_int_equal(write(s->fd[0], "x", 1), 1);
}
/* A poll request of a pipe: an event that comes when we say so. */
static long block_io_getevents(struct slot *s)
{
	struct iocb cb = { .aio_lio_opcode = IOCB_CMD_POLL,
			   .aio_fildes = (uint32_t)s->fd[0],
			   .aio_buf = POLLIN },
		    *list = &cb;
	struct io_event ev;
	aio_context_t ctx = 0;

	if (syscall(SYS_io_setup, 4, &ctx) < 0 || syscall(SYS_io_submit, ctx, 1, &list) != 1)
		return errno;
	return fine(syscall(SYS_io_getevents, ctx, 1, 1, &ev, NULL) == 1);
}

int blocking_stretch = 1;

const struct blocking blocking_calls[] = {
	{ "read", SYS_read, with_pipe, block_read, give_byte, false, false },
	{ "readv", SYS_readv, with_pipe, block_readv, give_byte, false, false },
	{ "write", SYS_write, with_full_pipe, block_write, drain, false, false },
	{ "poll", SYS_poll, with_pipe, block_poll, give_byte, false, false },
	{ "poll, timed", SYS_poll, with_pipe, block_poll_timed, NULL, true, false },
	{ "ppoll", SYS_ppoll, with_pipe, block_ppoll, give_byte, false, false },
	{ "select", 0, with_pipe, block_select, give_byte, false, false },
	{ "pselect", SYS_pselect6, with_pipe, block_pselect, give_byte, false, false },
	{ "epoll_wait", SYS_epoll_wait, with_pipe, block_epoll, give_byte, false, false },
	{ "epoll_wait, timed", SYS_epoll_wait, with_pipe, block_epoll_timed, NULL, true, true },
	{ "epoll_pwait", SYS_epoll_pwait, with_pipe, block_epoll_pwait, give_byte, false, false },
	{ "nanosleep", SYS_nanosleep, NULL, block_nanosleep, NULL, true, false },
	{ "clock_nanosleep", SYS_clock_nanosleep, NULL, block_clock_nanosleep, NULL, true, false },
	{ "clock_nanosleep, absolute", SYS_clock_nanosleep, NULL, block_clock_nanosleep_abs, NULL,
	  true, false },
	{ "timerfd", SYS_read, NULL, block_timerfd, NULL, true, false },
	{ "futex", SYS_futex, NULL, block_futex, wake, false, false },
	{ "futex, timed", SYS_futex, NULL, block_futex_timed, NULL, true, false },
	{ "pthread_cond_timedwait", SYS_futex, NULL, block_cond, NULL, true, false },
	{ "pause", SYS_pause, NULL, block_pause, give_usr1, false, false },
	{ "sigsuspend", SYS_rt_sigsuspend, NULL, block_sigsuspend, give_usr1, false, false },
	{ "sigwaitinfo", SYS_rt_sigtimedwait, NULL, block_sigwaitinfo, give_usr1, false, false },
	{ "sigtimedwait", SYS_rt_sigtimedwait, NULL, block_sigtimedwait, NULL, true, true },
	{ "signalfd", SYS_read, NULL, block_signalfd, give_usr1, false, false },
	{ "recv", SYS_recvfrom, with_pair, block_recv, give_byte, false, false },
	{ "recv, SO_RCVTIMEO", SYS_recvfrom, with_timeout, block_recv, give_byte, false, false },
	{ "recv, timed", SYS_recvfrom, with_pair, block_recv_timed, NULL, true, true },
	{ "recvmmsg", SYS_recvmmsg, with_timeout, block_recvmmsg, give_byte, false, false },
	{ "read, SO_RCVTIMEO", SYS_read, with_timeout, block_read, give_byte, false, false },
	{ "send, SO_SNDTIMEO", SYS_sendto, with_full_pair, block_send, drain_all, false, false },
	{ "accept", SYS_accept, with_listener, block_accept, call_up, false, false },
	{ "connect, SO_SNDTIMEO", SYS_connect, with_full_listener, block_connect, pick_up, false,
	  false },
	{ "semop", SYS_semtimedop, with_sem, block_semop, give_sem, false, false },
	{ "semtimedop", SYS_semtimedop, with_sem, block_semtimedop, give_sem, false, false },
	{ "msgrcv", SYS_msgrcv, with_queue, block_msgrcv, give_message, false, false },
	{ "msgsnd", SYS_msgsnd, with_full_queue, block_msgsnd, take_message, false, false },
	{ "mq_timedreceive", SYS_mq_timedreceive, with_mq, block_mq, give_mq, false, false },
	{ "flock", SYS_flock, with_flock, block_flock, unlock_flock, false, false },
	{ "F_SETLKW", SYS_fcntl, with_lock, block_setlkw, unlock, false, false },
	{ "F_OFD_SETLKW", SYS_fcntl, with_lock, block_ofd_setlkw, unlock, false, false },
	{ "open of a FIFO", SYS_openat, with_fifo, block_open, open_other_end, false, false },
	{ "wait4", SYS_wait4, with_pipe, block_wait, give_byte, false, false },
	{ "waitid", SYS_waitid, with_pipe, block_waitid, give_byte, false, false },
	{ "eventfd", SYS_read, with_eventfd, block_eventfd, give_event, false, false },
	{ "inotify", SYS_read, with_file, block_inotify, modify, false, false },
	{ "io_getevents", SYS_io_getevents, with_pipe, block_io_getevents, give_byte, false,
	  false },
};

const size_t blocking_count = ARRAY_SIZE(blocking_calls);

void blocking_remove(const struct blocking *b, struct slot *s)
{
	if (b->prepare == with_sem)
		semctl(s->id, 0, IPC_RMID);
	if (b->prepare == with_queue || b->prepare == with_full_queue)
		msgctl(s->id, IPC_RMID, NULL);
}

struct slot *blocking_prepare(const char *folder)
{
	struct slot *slots = mmap(NULL, sizeof(*slots) * blocking_count, PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(slots != MAP_FAILED);
	for (size_t i = 0; i < blocking_count; i++) {
		slots[i].fd[0] = slots[i].fd[1] = slots[i].id = -1;
		snprintf(slots[i].path, sizeof(slots[i].path), "%s/%zu", folder, i);
		if (blocking_calls[i].prepare)
			blocking_calls[i].prepare(&slots[i]);
	}
	return slots;
}

void blocking_end(struct slot *slots)
{
	for (size_t i = 0; i < blocking_count; i++)
		blocking_remove(&blocking_calls[i], &slots[i]);
	munmap(slots, sizeof(*slots) * blocking_count);
}

static void on_usr1(int signo)
{
	(void)signo;
}

static uint64_t boot_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void child(const struct blocking *b, struct slot *s)
{
	struct sigaction sa = { .sa_handler = on_usr1 };
	uint64_t start;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigaction(SIGUSR1, &sa, NULL);
	s->pid = getpid();
	start = boot_us();
	errno = 0;
	s->result = b->block(s);
	s->us = boot_us() - start;
	atomic_store(&s->done, 1);
	_exit(0);
}

/* "S", and in its call: a page that is read from a slow file system lets it sleep as well. */
static bool blocks(const struct blocking *b, pid_t pid)
{
	char path[64], text[512];
	const char *names[] = { "stat", "syscall" };
	long nr;

	for (int i = 0; i < 2; i++) {
		_cleanup_close_ int fd = -1;
		const char *p;
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/%d/%s", pid, names[i]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
		if (n <= 0)
			return false;
		text[n] = '\0';
		p = strrchr(text, ')');
		if (i == 0 && (!p || p[2] != 'S'))
			return false;
	}
	if (!isdigit(text[0]))
		return false;
	nr = strtol(text, NULL, 10);
	return !b->nr || nr == b->nr || nr == SYS_restart_syscall;
}

static void await_asleep(const struct blocking *b, const struct slot *s)
{
	for (int ms = 0; !atomic_load(&s->done) && (!s->pid || !blocks(b, s->pid)); ms++) {
		if (ms > slow(BLOCKING_SETTLE_MS))
			fail_msg("%s does not fall asleep", b->name);
		usleep(1000);
	}
}

pid_t blocking_start(struct slot *slots)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (size_t i = 0; i < blocking_count; i++)
			if (fork() == 0)
				child(&blocking_calls[i], &slots[i]);
		while (wait(NULL) > 0 || errno == EINTR)
			;
		_exit(0);
	}
	for (size_t i = 0; i < blocking_count; i++)
		await_asleep(&blocking_calls[i], &slots[i]);
	return pid;
}

void blocking_release(struct slot *slots)
{
	for (size_t i = 0; i < blocking_count; i++)
		if (blocking_calls[i].release) {
			await_asleep(&blocking_calls[i], &slots[i]);
			blocking_calls[i].release(&slots[i]);
		}
}
