// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/state_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/util/io.h"

static timer_t child_timers[REPORT_TIMERS];
static char child_stack[32768];

static void child_on_signal(int signal)
{
	(void)signal;
}

static uint64_t kernel_sigaction(int signal, struct state_sigaction *act)
{
	struct {
		uint64_t handler, flags, restorer, mask;
	} raw = { 0 };

	if (syscall(SYS_rt_sigaction, signal, NULL, &raw, 8) < 0)
		return 1;
	*act = (struct state_sigaction){ raw.handler, raw.flags, raw.restorer, raw.mask };
	return 0;
}

static void child_report(struct state_report *r)
{
	static const int ids[] = { SYS_getuid, SYS_getgid, SYS_geteuid, SYS_getegid };
	stack_t sas;
	size_t size;

	memset(r, 0, sizeof(*r));
	r->pid = getpid();
	r->ppid = getppid();
	r->pgid = getpgrp();
	r->sid = getsid(0);
	for (int s = 1; s <= STATE_SIGNALS; s++)
		kernel_sigaction(s, &r->actions[s - 1]);
	sigaltstack(NULL, &sas);
	r->sas_sp = (uintptr_t)sas.ss_sp;
	r->sas_size = sas.ss_size;
	r->sas_flags = sas.ss_flags;
	prctl(PR_GET_PDEATHSIG, &r->pdeath_signal);
	prctl(PR_GET_CHILD_SUBREAPER, &r->subreaper);
	r->securebits = prctl(PR_GET_SECUREBITS);
	r->no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
	prctl(PR_GET_NAME, r->comm);
	r->nice = getpriority(PRIO_PROCESS, 0);
	r->policy = sched_getscheduler(0);
	prctl(PR_GET_TID_ADDRESS, &r->clear_child_tid);
	syscall(SYS_get_robust_list, 0, &r->robust_list, &size);
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &r->blocked, 8);
	r->brk = (uint64_t)syscall(SYS_brk, 0);
	r->personality = (uint32_t)personality(0xffffffff);
	r->umask = umask(0);
	umask((mode_t)r->umask);
	r->group_count = (uint32_t)getgroups(STATE_GROUPS_MAX, (gid_t *)r->groups);
	for (size_t i = 0; i < ARRAY_SIZE(ids); i++)
		r->ids[i] = (uint32_t)syscall(ids[i]);
	for (int i = 0; i < STATE_RLIMITS; i++) {
		struct rlimit limit = { 0 };

		prlimit(0, (enum __rlimit_resource)i, NULL, &limit);
		r->rlim_cur[i] = limit.rlim_cur;
		r->rlim_max[i] = limit.rlim_max;
	}
	for (int i = 0; i < 3; i++)
		getitimer((enum __itimer_which)i, &r->itimers[i]);
	for (int i = 0; i < REPORT_TIMERS; i++) {
		r->timer_ids[i] = (int)(intptr_t)child_timers[i];
		syscall(SYS_timer_gettime, r->timer_ids[i], &r->timers[i]);
	}
	r->membarrier = (int)syscall(SYS_membarrier, 1 << 9, 0, 0); /* which are registered */
	syscall(SYS_rt_sigpending, &r->pending, 8);
	clock_gettime(CLOCK_MONOTONIC, &r->monotonic);
}

static void child_timer(int index, clockid_t clock, int notify, time_t first, time_t interval)
{
	struct sigevent ev = { .sigev_notify = notify, .sigev_signo = SIGRTMIN + index };
	struct itimerspec at = { .it_value.tv_sec = first, .it_interval.tv_sec = interval };
	int id;

	ev.sigev_value.sival_ptr = (void *)(uintptr_t)(0x1234567800 + index);
	if (notify & SIGEV_THREAD_ID)
		ev._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	/* The library hides the number of a timer in a pointer, or a thread behind it. */
	if (syscall(SYS_timer_create, clock, &ev, &id) < 0)
		_exit(90);
	child_timers[index] = (timer_t)(intptr_t)id;
	if (first && syscall(SYS_timer_settime, id, 0, &at, NULL) < 0)
		_exit(91);
}

static void child_signals(void)
{
	struct sigaction act = { .sa_handler = child_on_signal,
				 .sa_flags = SA_RESTART | SA_ONSTACK };
	stack_t sas = { .ss_sp = child_stack, .ss_size = sizeof(child_stack) };
	sigset_t set;

	sigaddset(&act.sa_mask, SIGHUP);
	sigaddset(&act.sa_mask, SIGRTMAX);
	sigaction(SIGUSR2, &act, NULL);
	sigaction(SIGRTMAX, &act, NULL);
	act.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESETHAND;
	sigaction(SIGWINCH, &act, NULL);
	signal(SIGPIPE, SIG_IGN);
	sigaltstack(&sas, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGRTMIN + 7);
	sigprocmask(SIG_BLOCK, &set, NULL);
	/* These stay in the queues. */
	kill(getpid(), SIGTERM);
	sigqueue(getpid(), SIGRTMIN + 7, (union sigval){ .sival_int = 77 });
	raise(SIGHUP);
}

void state_lab_all(void)
{
	const struct itimerval itimers[3] = { { { 5, 1 }, { 900, 0 } },
					      { { 7, 0 }, { 800, 5000 } },
					      { { 0, 0 }, { 700, 0 } } };
	struct rlimit limit = { .rlim_cur = 12345, .rlim_max = 54321 };
	gid_t groups[] = { 3, 5, 70001 };

	setsid();
	child_signals();
	prctl(PR_SET_PDEATHSIG, SIGUSR2);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_NAME, "state child");
	umask(0027);
	setgroups(ARRAY_SIZE(groups), groups);
	setpriority(PRIO_PROCESS, 0, 7);
	sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){ 0 });
	setrlimit(RLIMIT_CORE, &limit);
	for (int i = 0; i < 3; i++)
		setitimer((enum __itimer_which)i, &itimers[i], NULL);
	child_timer(0, CLOCK_MONOTONIC, SIGEV_SIGNAL, 1000, 10);
	child_timer(1, CLOCK_REALTIME, SIGEV_SIGNAL, 0, 0);
	child_timer(2, CLOCK_BOOTTIME, SIGEV_THREAD_ID, 2000, 0);
	child_timer(3, CLOCK_PROCESS_CPUTIME_ID, SIGEV_NONE, 3000, 30);
	syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
	prctl(PR_SET_SECUREBITS, prctl(PR_GET_SECUREBITS) | 1 << 4);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* Says how it is whenever a byte comes in, for ever. */
_Noreturn static void child_serve(int in, int out)
{
	struct state_report r;
	ssize_t n;
	char c;

	for (;;) {
		child_report(&r);
		if (write_full(out, &r, sizeof(r)) < 0)
			_exit(92);
		do {
			n = read(in, &c, 1);
		} while (n < 0 && errno == EINTR);
		if (n <= 0)
			_exit(93);
	}
}

static volatile sig_atomic_t child_woken;

static void child_wake(int signal)
{
	(void)signal;
	child_woken = 1;
}

static void child_write(const struct state_report *r, const char *file, const char *suffix)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s.%s", file, suffix);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || write_full(fd, r, sizeof(*r)) < 0)
		_exit(94);
	close(fd);
}

_Noreturn void state_lab_child(void (*fn)(void), const char *file)
{
	int null = open("/dev/null", O_RDWR);
	struct timespec none = { 0 };
	struct state_report r;
	siginfo_t info;
	sigset_t set;

	for (int i = 0; i < 3; i++)
		dup2(null, i);
	signal(SIGUSR1, child_wake);
	fn();
	child_report(&r);
	child_write(&r, file, "before");
	/* Nothing of the test's is left but the three; this tells that it is ready. */
	if (syscall(SYS_close_range, 3, ~0u, 0) < 0)
		_exit(98);
	while (!child_woken)
		pause();
	child_report(&r);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 7);
	if (sigtimedwait(&set, &info, &none) > 0)
		r.queued_value = info.si_value.sival_int;
	child_write(&r, file, "after.new");
	snprintf((char *)child_stack, sizeof(child_stack), "%s.after", file);
	snprintf((char *)child_stack + 512, 512, "%s.after.new", file);
	_exit(rename(child_stack + 512, child_stack) < 0 ? 95 : 0);
}

int state_lab_setup(void **state)
{
	static struct state_lab s;

	s = (struct state_lab){ .to_child = -1, .from_child = -1 };
	snprintf(s.dir, sizeof(s.dir), "/tmp/native-state-XXXXXX");
	assert_non_null(mkdtemp(s.dir));
	assert_int_equal(arena_create(8 << 20, &s.arena), 0);
	s.missing = state_create(&s.state, s.reason) < 0;
	*state = &s;
	return 0;
}

void state_lab_kill(struct state_lab *s)
{
	if (s->child > 0) {
		kill(s->child, SIGKILL);
		waitpid(s->child, NULL, 0);
	}
	s->child = 0;
	close_fdp(&s->to_child);
	close_fdp(&s->from_child);
	s->to_child = s->from_child = -1;
}

int state_lab_teardown(void **state)
{
	struct state_lab *s = *state;

	state_lab_kill(s);
	state_destroy(s->state);
	arena_destroy(s->arena);
	remove_tree_at(AT_FDCWD, s->dir) < 0 ? print_message("%s stays\n", s->dir) : (void)0;
	return 0;
}

struct state_lab *state_lab(void **state)
{
	struct state_lab *s = *state;

	state_lab_kill(s);
	if (s->missing) {
		print_message("SKIP: %s\n", s->reason);
		skip();
	}
	return s;
}

/* A child with pipes to and from it; it calls fn and then serves. */
void state_lab_start(struct state_lab *s, void (*fn)(void))
{
	int down[2], up[2];

	assert_int_equal(pipe2(down, O_CLOEXEC), 0);
	assert_int_equal(pipe2(up, O_CLOEXEC), 0);
	s->child = fork();
	assert_true(s->child >= 0);
	if (s->child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn();
		child_serve(down[0], up[1]);
	}
	close(down[0]);
	close(up[1]);
	s->to_child = down[1];
	s->from_child = up[0];
}

static bool is_in_pause(pid_t pid, const char *tid)
{
	_cleanup_free_ char *text = NULL;
	char path[64];
	size_t size;

	snprintf(path, sizeof(path), "/proc/%d/task/%.16s/syscall", pid, tid);
	assert_int_equal(read_file_at(AT_FDCWD, path, 4096, &text, &size), 0);
	return strtol(text, NULL, 10) == SYS_pause;
}

/* It tells that it is ready just before it sleeps, and its threads may not have come so far. */
static void wait_for_pause(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	for (int i = 0; i < 6000; i++) {
		_cleanup_closedir_ DIR *dir = opendir(path);
		struct dirent *entry;
		bool all = true;

		assert_non_null(dir);
		while ((entry = readdir(dir))) {
			if (entry->d_name[0] != '.')
				all = all && is_in_pause(pid, entry->d_name);
		}
		if (all)
			return;
		usleep(5000);
	}
	fail_msg("process %d does not sleep", pid);
}

void state_lab_start_alone(struct state_lab *s, const char *mode, const char *file)
{
	int ready[2];
	char c;

	assert_int_equal(pipe(ready), 0);
	s->child = fork();
	assert_true(s->child >= 0);
	if (s->child == 0) {
		execl("/proc/self/exe", "state-child", mode, file, NULL);
		_exit(99);
	}
	close(ready[1]);
	/* It closes its end when it is ready. */
	assert_int_equal(read(ready[0], &c, 1), 0);
	close(ready[0]);
	wait_for_pause(s->child);
}

void state_lab_ask(struct state_lab *s, struct state_report *r, bool first)
{
	if (!first)
		assert_int_equal(write(s->to_child, "?", 1), 1);
	assert_int_equal(read_full(s->from_child, r, sizeof(*r)), 0);
}

void state_lab_reset(struct state_lab *s)
{
	arena_reset(s->arena);
	s->reason[0] = '\0';
	s->tree = (struct native_tree){
		.root = s->child, .images = -1, .reason = s->reason, .arena = s->arena
	};
}

int state_lab_look(struct state_lab *s)
{
	int r;

	state_lab_reset(s);
	r = tree_list(&s->tree);
	if (r == 0)
		r = state_prepare(s->state, &s->tree);
	if (r == 0)
		r = state_collect(s->state, &s->tree);
	return r;
}

int state_lab_freeze(struct state_lab *s)
{
	int r = state_lab_look(s);

	return r < 0 ? r : freeze_tree(&s->tree, STATE_LAB_DEADLINE_MS);
}
