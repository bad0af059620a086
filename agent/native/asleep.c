// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/asleep.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "agent/util/cleanup.h"

/* Newer than some of our build hosts. */
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#define FUTEX_LOCK_PI2_OP 13

enum {
	/* A stream of the unix family takes what fits into half of its buffer, less this, at once. */
	UNIX_OVERHEAD = 64,
	UNIX_ONCE_MAX = 16384,
	TTY_MAJOR = 4,
	TTY_AUX_MAJOR = 5,
	PTS_MAJOR_FIRST = 136,
	PTS_MAJOR_LAST = 143,
	BYTES_UNKNOWN = INT_MAX,
};

enum what { WHAT_OTHER, WHAT_PIPE, WHAT_COUNTER, WHAT_TERMINAL, WHAT_SOCKET };

static bool is_terminal(dev_t device)
{
	unsigned int number = major(device);

	return number == TTY_MAJOR || number == TTY_AUX_MAJOR ||
	       (number >= PTS_MAJOR_FIRST && number <= PTS_MAJOR_LAST);
}

/* Those whose read(2) sleeps only while there is nothing, and takes all that it takes at once. */
static bool is_counter(const char *link)
{
	static const char *const known[] = { "anon_inode:[eventfd]", "anon_inode:[timerfd]",
					     "anon_inode:[signalfd]", "anon_inode:inotify",
					     "anon_inode:[inotify]" };
	char name[64];
	ssize_t n = readlink(link, name, sizeof(name) - 1);

	if (n <= 0)
		return false;
	name[n] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (!strcmp(name, known[i]))
			return true;
	return false;
}

static enum what look_up(pid_t pid, uint64_t fd)
{
	char link[64];
	struct stat st;

	snprintf(link, sizeof(link), "/proc/%d/fd/%d", pid, (int)fd);
	if (stat(link, &st) < 0)
		return WHAT_OTHER;
	if (S_ISFIFO(st.st_mode))
		return WHAT_PIPE;
	if (S_ISSOCK(st.st_mode))
		return WHAT_SOCKET;
	if (S_ISCHR(st.st_mode) && is_terminal(st.st_rdev))
		return WHAT_TERMINAL;
	return is_counter(link) ? WHAT_COUNTER : WHAT_OTHER;
}

static int get_option(int fd, int name, int otherwise)
{
	socklen_t size = sizeof(int);
	int value;

	return getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : otherwise;
}

static bool has_time_limit(int fd, int name)
{
	struct timeval tv;
	socklen_t size = sizeof(tv);

	return getsockopt(fd, SOL_SOCKET, name, &tv, &size) < 0 || tv.tv_sec || tv.tv_usec;
}

static int open_socket(pid_t pid, uint64_t fd)
{
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

	return pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, (int)fd, 0);
}

static bool is_known_stream(int family)
{
	return family == AF_UNIX || family == AF_INET || family == AF_INET6;
}

/* More than one byte, or message, may be asked for: then some may have been taken already. */
static enum asleep receiving(pid_t pid, uint64_t fd, uint64_t flags)
{
	_cleanup_close_ int s = open_socket(pid, fd);

	if (s < 0)
		return ASLEEP_UNKNOWN;
	if (get_option(s, SO_TYPE, SOCK_STREAM) != SOCK_STREAM)
		return ASLEEP_AGAIN;
	if (!is_known_stream(get_option(s, SO_DOMAIN, AF_UNSPEC)))
		return ASLEEP_UNKNOWN;
	if (!(flags & MSG_WAITALL) && get_option(s, SO_RCVLOWAT, INT_MAX) <= 1)
		return ASLEEP_AGAIN;
	return has_time_limit(s, SO_RCVTIMEO) ? ASLEEP_UNKNOWN : ASLEEP_WAKE;
}

static enum asleep sending(pid_t pid, uint64_t fd, uint64_t bytes)
{
	_cleanup_close_ int s = open_socket(pid, fd);
	int family, once;

	if (s < 0)
		return ASLEEP_UNKNOWN;
	family = get_option(s, SO_DOMAIN, AF_UNSPEC);
	if (get_option(s, SO_TYPE, SOCK_STREAM) != SOCK_STREAM)
		return ASLEEP_AGAIN;
	once = get_option(s, SO_SNDBUF, 0) / 2 - UNIX_OVERHEAD;
	if (family == AF_UNIX && once > 0 && bytes <= (uint64_t)once && bytes <= UNIX_ONCE_MAX)
		return ASLEEP_AGAIN;
	if (!is_known_stream(family) || has_time_limit(s, SO_SNDTIMEO))
		return ASLEEP_UNKNOWN;
	return ASLEEP_WAKE;
}

static enum asleep reading(pid_t pid, uint64_t fd)
{
	switch (look_up(pid, fd)) {
	case WHAT_PIPE:
	case WHAT_COUNTER:
		return ASLEEP_AGAIN;
	case WHAT_TERMINAL: /* VMIN may be more than 1 */
		return ASLEEP_WAKE;
	case WHAT_SOCKET:
		return receiving(pid, fd, 0);
	default:
		return ASLEEP_UNKNOWN;
	}
}

static enum asleep writing(pid_t pid, uint64_t fd, uint64_t bytes)
{
	switch (look_up(pid, fd)) {
	case WHAT_PIPE:
		return ASLEEP_WAKE;
	case WHAT_COUNTER:
		return ASLEEP_AGAIN;
	case WHAT_SOCKET:
		return sending(pid, fd, bytes);
	default:
		return ASLEEP_UNKNOWN;
	}
}

static enum asleep in_transfer(pid_t pid, const struct user_regs_struct *r)
{
	switch (r->orig_rax) {
	case SYS_read:
	case SYS_readv:
		return reading(pid, r->rdi);
	case SYS_recvfrom:
		return receiving(pid, r->rdi, r->r10);
	case SYS_recvmsg:
		return receiving(pid, r->rdi, r->rdx);
	case SYS_recvmmsg: /* those that have come are taken, unless one is enough */
		return (uint32_t)r->rdx == 1 || r->r10 & MSG_WAITFORONE ?
			       receiving(pid, r->rdi, r->r10) :
			       ASLEEP_UNKNOWN;
	case SYS_write:
		return writing(pid, r->rdi, r->rdx);
	case SYS_writev:
		return writing(pid, r->rdi, BYTES_UNKNOWN);
	case SYS_sendto:
		return sending(pid, r->rdi, r->rdx);
	case SYS_sendmsg:
		return sending(pid, r->rdi, BYTES_UNKNOWN);
	default:
		return ASLEEP_UNKNOWN;
	}
}

/*
 * Taken out of its call, the kernel writes the time that is left to where the program keeps it, or
 * the deadline to where we can read it.
 */
static enum asleep in_timed(uint64_t timeout)
{
	return timeout ? ASLEEP_WAKE : ASLEEP_AGAIN;
}

static enum asleep in_futex(uint64_t op, uint64_t timeout)
{
	switch ((int)op & FUTEX_CMD_MASK) {
	case FUTEX_WAIT:
		return in_timed(timeout);
	case FUTEX_WAIT_BITSET:
	case FUTEX_LOCK_PI:
	case FUTEX_LOCK_PI2_OP:
		return ASLEEP_AGAIN;
	default:
		return ASLEEP_UNKNOWN;
	}
}

static enum asleep when(bool again)
{
	return again ? ASLEEP_AGAIN : ASLEEP_UNKNOWN;
}

enum asleep asleep_in(pid_t pid, const struct user_regs_struct *r)
{
	switch (r->orig_rax) {
	case SYS_restart_syscall: /* its deadline can be read */
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_futex_waitv:
	case SYS_pause:
	case SYS_rt_sigtimedwait:
	case SYS_wait4:
	case SYS_waitid:
	case SYS_accept:
	case SYS_accept4:
	case SYS_connect:
	case SYS_flock:
	case SYS_semop:
	case SYS_semtimedop:
	case SYS_msgrcv:
	case SYS_msgsnd:
	case SYS_mq_timedreceive:
	case SYS_mq_timedsend:
		return ASLEEP_AGAIN;
	case SYS_nanosleep:
		return ASLEEP_WAKE;
	case SYS_clock_nanosleep:
		return in_timed(!(r->rsi & TIMER_ABSTIME));
	case SYS_poll:
		return in_timed((int)r->rdx > 0);
	case SYS_rt_sigsuspend: /* the mask to be put back is where nobody sees it */
		return ASLEEP_WAKE;
	case SYS_ppoll:
		return in_timed(r->rdx);
	case SYS_select:
	case SYS_pselect6:
		return in_timed(r->r8);
	case SYS_futex:
		return in_futex(r->rsi, r->r10);
	case SYS_fcntl:
		return when(r->rsi == F_SETLKW || r->rsi == F_OFD_SETLKW);
	case SYS_io_getevents: /* events that have come are taken one by one */
		return when((int64_t)r->rsi <= 1);
	case SYS_open: /* of a FIFO */
		return when(!(r->rsi & O_CREAT));
	case SYS_openat:
		return when(!(r->rdx & O_CREAT));
	default:
		return in_transfer(pid, r);
	}
}
