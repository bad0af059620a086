// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/freeze_lab.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/util/io.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { READY_MS = 20000 };

void freeze_lab_sleep_us(unsigned int us)
{
	struct timespec ts = { .tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000L };

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

bool freeze_lab_await_frozen(const char *folder)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/cgroup.events", folder);
	for (int ms = 0; ms < slow(FREEZE_LAB_DEADLINE_MS); ms++) {
		_cleanup_free_ char *text = NULL;

		if (read_file_at(AT_FDCWD, path, 4096, &text, NULL) == 0 &&
		    strstr(text, "frozen 1"))
			return true;
		freeze_lab_sleep_us(1000);
	}
	return false;
}

void freeze_lab_init(struct freeze_lab *lab)
{
	*lab = (struct freeze_lab){ 0 };
	lab->page = mmap(NULL, sizeof(*lab->page), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(lab->page != MAP_FAILED);
	assert_int_equal(arena_create(1 << 20, &lab->arena), 0);
}

void freeze_lab_deinit(struct freeze_lab *lab)
{
	thaw_tree(&lab->tree);
	for (size_t i = 0; i < lab->victim_count; i++)
		freeze_lab_end(lab->victims[i]);
	arena_destroy(lab->arena);
	munmap(lab->page, sizeof(*lab->page));
}

void freeze_lab_die_with_parent(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

pid_t freeze_lab_start(struct freeze_lab *lab, void (*fn)(struct freeze_page *page))
{
	pid_t pid;

	memset(lab->page, 0, sizeof(*lab->page));
	pid = fork();
	assert_true(pid >= 0);
	if (pid) {
		assert_true(lab->victim_count < FREEZE_LAB_VICTIMS);
		lab->victims[lab->victim_count++] = pid;
		return pid;
	}
	freeze_lab_die_with_parent();
	fn(lab->page);
	_exit(0);
}

void freeze_lab_await_ready(struct freeze_lab *lab, int count)
{
	for (int ms = 0; atomic_load(&lab->page->ready) < count; ms++) {
		assert_true(ms < slow(READY_MS));
		freeze_lab_sleep_us(1000);
	}
}

void freeze_lab_end(pid_t pid)
{
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

int freeze_lab_try(struct freeze_lab *lab, pid_t root, int deadline_ms)
{
	arena_reset(lab->arena);
	lab->reason[0] = '\0';
	lab->tree =
		(struct native_tree){ .root = root, .arena = lab->arena, .reason = lab->reason };
	return freeze_tree(&lab->tree, deadline_ms);
}

void freeze_lab_freeze(struct freeze_lab *lab, pid_t root)
{
	int r = freeze_lab_try(lab, root, slow(FREEZE_LAB_DEADLINE_MS));

	if (r < 0)
		fail_msg("freeze: %s: %s", strerror(-r), lab->reason);
	r = regs_collect(&lab->tree);
	if (r < 0) {
		thaw_tree(&lab->tree);
		fail_msg("registers: %s: %s", strerror(-r), lab->reason);
	}
}

char freeze_lab_state(pid_t tid)
{
	char path[64], text[512];
	const char *p;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	p = strrchr(text, ')');
	return p ? p[2] : 0;
}

void freeze_lab_check_stopped(pid_t root)
{
	char path[64], name[64], text[4096], *next = text, *end;
	struct dirent *e;
	DIR *dir;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task", root);
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		pid_t tid = (pid_t)atol(e->d_name);
		char state = tid > 0 ? freeze_lab_state(tid) : 't';

		if (state != 't' && state != 'Z' && state != 'X' && state)
			fail_msg("thread %d of %d is %c", tid, root, state);
		snprintf(name, sizeof(name), "/proc/%d/task/%d/children", root, tid);
		f = tid > 0 ? fopen(name, "re") : NULL;
		if (!f)
			continue;
		text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
		fclose(f);
		for (next = text; strtol(next, &end, 10) > 0 && end != next; next = end)
			freeze_lab_check_stopped((pid_t)strtol(next, NULL, 10));
	}
	if (dir)
		closedir(dir);
}

int freeze_lab_setup(void **state)
{
	static struct freeze_lab lab;

	freeze_lab_init(&lab);
	*state = &lab;
	return 0;
}

int freeze_lab_teardown(void **state)
{
	freeze_lab_deinit(*state);
	return 0;
}

static struct freeze_page *handler_page;

static void on_queued(int signo, siginfo_t *si, void *context)
{
	(void)signo;
	(void)context;
	/* In order, each once. */
	if (si->si_value.sival_int != (int)atomic_fetch_add(&handler_page->count[1], 1))
		atomic_store(&handler_page->wrong, 1);
}

static void on_plain(int signo)
{
	(void)signo;
	atomic_fetch_add(&handler_page->count[2], 1);
}

void freeze_lab_count_signals(struct freeze_page *page)
{
	struct sigaction queued = { .sa_sigaction = on_queued,
				    .sa_flags = SA_SIGINFO | SA_RESTART };
	struct sigaction plain = { .sa_handler = on_plain };

	handler_page = page;
	sigaction(SIGRTMIN, &queued, NULL);
	sigaction(SIGUSR1, &plain, NULL);
}

void freeze_lab_thread(void *(*fn)(void *arg), void *arg)
{
	pthread_attr_t attr;
	pthread_t id;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 1 << 17);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&id, &attr, fn, arg))
		abort();
	pthread_attr_destroy(&attr);
}
