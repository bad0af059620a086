// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The state of processes as the native engine reads it: a child brings itself into a state and
 * tells it; the records must say the same, and so must procfs.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/util/io.h"
#include "agent/native/state_internal.h"
#include "tests/unit/state_lab.h"

enum { SLACK_MS = 60000, THREADS = 3, SLEEP_S = 1000, CHURN_S = 3 };

static void assert_near(uint64_t got_ns, uint64_t want_ns)
{
	uint64_t off = got_ns > want_ns ? got_ns - want_ns : want_ns - got_ns;

	if (off > SLACK_MS * 1000000ull)
		print_message("%llu ns, but %llu ns\n", (unsigned long long)got_ns,
			      (unsigned long long)want_ns);
	assert_true(off <= SLACK_MS * 1000000ull);
}

static uint64_t of_timeval(const struct timeval *t)
{
	return (uint64_t)t->tv_sec * 1000000000 + (uint64_t)t->tv_usec * 1000;
}

static uint64_t of_timespec(const struct timespec *t)
{
	return (uint64_t)t->tv_sec * 1000000000 + (uint64_t)t->tv_nsec;
}

static void compare_timers(const struct state_process *p, const struct state_report *r)
{
	const struct state_itimer *itimers[] = { &p->real, &p->virt, &p->prof };
	static const int clocks[] = { CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, -6 };
	static const int notify[] = { SIGEV_SIGNAL, SIGEV_SIGNAL, SIGEV_THREAD_ID, SIGEV_NONE };

	for (int i = 0; i < 3; i++) {
		assert_int_equal(itimers[i]->interval_ns, of_timeval(&r->itimers[i].it_interval));
		assert_near(itimers[i]->value_ns, of_timeval(&r->itimers[i].it_value));
	}
	assert_int_equal(p->timer_count, REPORT_TIMERS);
	for (int i = 0; i < REPORT_TIMERS; i++) {
		const struct state_posix_timer *t = NULL;

		for (int k = 0; k < REPORT_TIMERS; k++) {
			if (p->timers[k].id == r->timer_ids[i])
				t = &p->timers[k];
		}
		assert_non_null(t);
		assert_int_equal(t->clock, clocks[i]);
		assert_int_equal(t->notify, notify[i]);
		assert_int_equal(t->signo, SIGRTMIN + i);
		assert_int_equal(t->sigval, 0x1234567800 + i);
		assert_int_equal(t->target_tid, notify[i] & SIGEV_THREAD_ID ? r->pid : 0);
		assert_int_equal(t->interval_ns, of_timespec(&r->timers[i].it_interval));
		assert_near(t->value_ns, of_timespec(&r->timers[i].it_value));
	}
}

static void compare_process(const struct state_process *p, const struct state_report *r)
{
	assert_int_equal(p->pid, r->pid);
	assert_int_equal(p->ppid, r->ppid);
	assert_int_equal(p->pgid, r->pgid);
	assert_int_equal(p->sid, r->sid);
	assert_memory_equal(p->actions, r->actions, sizeof(r->actions));
	assert_int_equal(p->is_child_subreaper, r->subreaper);
	assert_int_equal(p->umask, r->umask);
	assert_int_equal(p->brk, r->brk);
	assert_memory_equal(p->rlim_cur, r->rlim_cur, sizeof(r->rlim_cur));
	assert_memory_equal(p->rlim_max, r->rlim_max, sizeof(r->rlim_max));
	assert_true(p->membarrier & 1 << 1);
	assert_int_equal(p->shared_pending, 1ull << (SIGTERM - 1) | 1ull << (SIGRTMIN + 7 - 1));
	compare_timers(p, r);
}

static void compare_thread(const struct state_thread *t, const struct state_report *r)
{
	assert_int_equal(t->tid, r->pid);
	assert_int_equal(t->sas_sp, r->sas_sp);
	assert_int_equal(t->sas_size, r->sas_size);
	assert_int_equal(t->sas_flags, r->sas_flags);
	assert_int_equal(t->pdeath_signal, r->pdeath_signal);
	assert_int_equal(t->clear_child_tid, r->clear_child_tid);
	assert_int_equal(t->robust_list, r->robust_list);
	assert_int_equal(t->blocked, r->blocked);
	assert_int_equal(t->pending, 1ull << (SIGHUP - 1));
	assert_int_equal(t->policy, r->policy);
	assert_int_equal(t->nice, r->nice);
	assert_int_equal(t->personality, r->personality);
	assert_int_equal(t->creds.uid, r->ids[0]);
	assert_int_equal(t->creds.gid, r->ids[1]);
	assert_int_equal(t->creds.euid, r->ids[2]);
	assert_int_equal(t->creds.egid, r->ids[3]);
	assert_int_equal(t->creds.sgid, 11);
	assert_int_equal(t->creds.secbits, r->securebits);
	assert_int_equal(t->creds.no_new_privs, r->no_new_privs);
	assert_int_equal(t->creds.group_count, r->group_count);
	assert_memory_equal(t->creds.groups, r->groups, r->group_count * sizeof(r->groups[0]));
	assert_string_equal(t->comm, r->comm);
	assert_int_equal(t->ptraced, 0);
}

/* A number after a word at the start of a line of /proc/PID/NAME. */
static uint64_t proc_number(pid_t pid, const char *name, const char *word, int base)
{
	_cleanup_free_ char *text = NULL;
	char path[64], key[64];
	size_t size;
	char *at;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	assert_int_equal(read_file_at(AT_FDCWD, path, 1 << 20, &text, &size), 0);
	if (!word)
		return strtoull(text, NULL, base);
	snprintf(key, sizeof(key), "\n%s:", word);
	at = strstr(text, key);
	assert_non_null(at);
	return strtoull(at + strlen(key), NULL, base);
}

static uint32_t proc_namespace(pid_t pid, const char *name)
{
	struct stat st;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, name);
	return stat(path, &st) < 0 ? 0 : (uint32_t)st.st_ino;
}

static void compare_procfs(const struct native_task *task)
{
	const struct state_thread *t = task->threads[0].state;
	const struct state_process *p = task->state;
	char path[64], exe[PATH_MAX] = "";
	uint64_t auxv[STATE_AUXV_MAX] = { 0 };
	_cleanup_close_ int fd = -1;

	assert_int_equal(t->creds.cap_inh, proc_number(task->pid, "status", "CapInh", 16));
	assert_int_equal(t->creds.cap_prm, proc_number(task->pid, "status", "CapPrm", 16));
	assert_int_equal(t->creds.cap_eff, proc_number(task->pid, "status", "CapEff", 16));
	assert_int_equal(t->creds.cap_bnd, proc_number(task->pid, "status", "CapBnd", 16));
	assert_int_equal(t->creds.cap_amb, proc_number(task->pid, "status", "CapAmb", 16));
	assert_int_equal(p->oom_score_adj, (int)proc_number(task->pid, "oom_score_adj", NULL, 10));
	assert_int_equal(p->ns_pid, proc_namespace(task->pid, "pid"));
	assert_int_equal(p->ns_mnt, proc_namespace(task->pid, "mnt"));
	assert_int_equal(p->ns_net, proc_namespace(task->pid, "net"));
	assert_int_equal(p->ns_uts, proc_namespace(task->pid, "uts"));
	assert_int_equal(p->ns_ipc, proc_namespace(task->pid, "ipc"));
	assert_int_equal(p->ns_user, proc_namespace(task->pid, "user"));
	assert_int_equal(p->ns_cgroup, proc_namespace(task->pid, "cgroup"));
	assert_int_equal(p->ns_time, proc_namespace(task->pid, "time"));
	snprintf(path, sizeof(path), "/proc/%d/auxv", task->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0 && read(fd, auxv, sizeof(auxv)) > 0);
	assert_memory_equal(auxv, p->auxv, sizeof(auxv));
	snprintf(path, sizeof(path), "/proc/%d/exe", task->pid);
	assert_true(readlink(path, exe, sizeof(exe) - 1) > 0);
	if (strlen(exe) < STATE_PATH_MAX && p->exe[0])
		assert_string_equal(p->exe, exe);
	assert_true(p->start_code < p->end_code && p->start_brk <= p->brk);
	assert_true(p->arg_start < p->arg_end && p->env_start <= p->env_end);
}

static void child_all(void)
{
	state_lab_all();
	if (setresgid(9, 10, 11) < 0)
		_exit(96);
}

static void test_truth(void **state)
{
	struct state_lab *s = state_lab(state);
	struct state_report r;

	state_lab_start(s, child_all);
	state_lab_ask(s, &r, true);
	assert_int_equal(state_lab_look(s), 0);
	assert_int_equal(s->tree.task_count, 1);
	compare_process(s->tree.tasks[0].state, &r);
	compare_thread(s->tree.tasks[0].threads[0].state, &r);
	compare_procfs(&s->tree.tasks[0]);
	/* It lives in a session of its own and may be captured. */
	assert_int_equal(state_check(&s->tree), 0);
	/* What was asked has not changed it. */
	state_lab_ask(s, &r, false);
	assert_int_equal(r.pid, s->child);
}

static void child_files(void)
{
	static char path[] = "/tmp/native-state-file-XXXXXX";
	int fd = mkstemp(path);

	if (fd < 0 || ftruncate(fd, 3 * 4096) < 0 || lseek(fd, 4321, SEEK_SET) < 0)
		_exit(95);
	if (mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 8192) == MAP_FAILED)
		_exit(95);
	unlink(path);
	dup3(fd, 200, O_CLOEXEC);
	fcntl(fd, F_SETOWN, getpid());
	fcntl(fd, F_SETFL, O_APPEND);
	setsid();
}

static const struct state_fd *find_fd(const struct native_task *task, int number)
{
	for (size_t i = 0; i < task->fd_count; i++) {
		if (task->fds[i].fd == number)
			return &task->fds[i];
	}
	fail_msg("no descriptor %d", number);
	return NULL;
}

static void compare_maps(const struct native_task *task)
{
	char path[64], line[PATH_MAX + 128];
	_cleanup_fclose_ FILE *f = NULL;
	size_t count = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", task->pid);
	f = fopen(path, "re");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		const struct state_vma *v = &task->vmas[count];
		unsigned long long start, end, offset, ino;
		unsigned int major, minor;
		int at = 0;
		char perms[5];

		/* It is no VMA. */
		if (strstr(line, "[vsyscall]"))
			continue;
		assert_true(count++ < task->vma_count);
		line[strcspn(line, "\n")] = '\0';
		assert_int_equal(sscanf(line, "%llx-%llx %4s %llx %x:%x %llu %n", &start, &end,
					perms, &offset, &major, &minor, &ino, &at),
				 7);
		assert_int_equal(v->start, start);
		assert_int_equal(v->end, end);
		assert_int_equal(v->ino, ino);
		assert_int_equal(v->dev, major << 20 | minor);
		assert_int_equal(v->vm_flags & 1, perms[0] == 'r');
		assert_int_equal(v->vm_flags >> 1 & 1, perms[1] == 'w');
		if (!v->file)
			continue;
		assert_int_equal(v->offset, offset);
		if (strlen(line + at) < STATE_PATH_MAX)
			assert_string_equal(v->path, line + at);
	}
	assert_int_equal(count, task->vma_count);
}

static void test_files(void **state)
{
	struct state_lab *s = state_lab(state);
	const struct native_task *task;
	const struct state_fd *fds;
	const struct state_vma *vmas;
	const struct state_fd *f;
	size_t count;
	struct state_report r;

	state_lab_start(s, child_files);
	state_lab_ask(s, &r, true);
	assert_int_equal(state_lab_look(s), 0);
	task = &s->tree.tasks[0];
	compare_maps(task);
	f = find_fd(task, 200);
	assert_int_equal(f->cloexec, 1);
	assert_int_equal(f->pos, 4321);
	assert_int_equal(f->size, 3 * 4096);
	assert_int_equal(f->nlink, 0);
	assert_int_equal(f->owner_pid, s->child);
	assert_int_equal(f->owner_type, 1); /* F_OWNER_PID */
	assert_true(f->f_flags & O_APPEND);
	assert_true(S_ISREG(f->mode));
	for (size_t i = 0; i < task->fd_count; i++) {
		if (task->fds[i].file == f->file && task->fds[i].fd != 200)
			f = &task->fds[i];
	}
	assert_int_not_equal(f->fd, 200);
	assert_int_equal(f->cloexec, 0);
	assert_int_equal(f->mnt_id, proc_number(s->child, "fdinfo/200", "mnt_id", 10));
	/* What was prepared is used up; this goes without. */
	assert_int_equal(state_read_fds(s->state, &s->tree, s->child, &fds, &count), 0);
	assert_int_equal(count, task->fd_count);
	assert_int_equal(state_read_vmas(s->state, &s->tree, s->child, &vmas, &count), 0);
	assert_int_equal(count, task->vma_count);
	assert_memory_equal(vmas[0].path, task->vmas[0].path, 8);
}

/* A list that is longer than the kernel's buffer of 32 KiB. */
static void child_many_maps(void)
{
	char *area = mmap(NULL, 4096 * 600, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	setsid();
	for (int i = 0; i < 600; i += 2)
		mprotect(area + i * 4096, 4096, PROT_READ);
	for (int i = 300; i < 500; i++)
		dup2(0, i);
}

static void test_long_lists(void **state)
{
	struct state_lab *s = state_lab(state);
	struct state_report r;

	state_lab_start(s, child_many_maps);
	state_lab_ask(s, &r, true);
	assert_int_equal(state_lab_look(s), 0);
	assert_true(s->tree.tasks[0].vma_count > 600);
	assert_true(s->tree.tasks[0].fd_count >= 200);
	compare_maps(&s->tree.tasks[0]);
}

static atomic_uint threads_ready; /* in a child */

static void *child_thread(void *arg)
{
	char name[16];
	sigset_t set;

	snprintf(name, sizeof(name), "thread %d", (int)(intptr_t)arg);
	prctl(PR_SET_NAME, name);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	atomic_fetch_add(&threads_ready, 1);
	for (;;)
		pause();
	return NULL;
}

static void child_threads(void)
{
	pthread_t thread;

	setsid();
	for (intptr_t i = 0; i < THREADS; i++)
		pthread_create(&thread, NULL, child_thread, (void *)i);
	while (atomic_load(&threads_ready) < THREADS)
		usleep(1000);
}

static void child_tree(void)
{
	pid_t zombie, stopped;
	siginfo_t info;

	child_threads();
	zombie = fork();
	if (zombie == 0)
		_exit(42);
	stopped = fork();
	if (stopped == 0) {
		raise(SIGSTOP);
		pause();
	}
	if (syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0) == 0) {
		for (;;)
			pause();
	}
	waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT);
	waitid(P_PID, (id_t)stopped, &info, WSTOPPED | WNOWAIT);
}

/* All of them are there, those of a zombie too; a second time is an error. */
static void write_images(struct state_lab *s)
{
	char name[32];
	int r;

	s->tree.images = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(s->tree.images >= 0);
	r = state_write(&s->tree);
	assert_int_equal(r, 0);
	for (size_t i = 0; i < s->tree.task_count; i++) {
		const struct native_task *task = &s->tree.tasks[i];

		snprintf(name, sizeof(name), "core-%d.img", task->inner_pid);
		assert_int_equal(faccessat(s->tree.images, name, R_OK, 0), 0);
		snprintf(name, sizeof(name), "ids-%d.img", task->inner_pid);
		r = faccessat(s->tree.images, name, R_OK, 0);
		assert_int_equal(r, task->zombie ? -1 : 0);
	}
	assert_int_equal(state_write(&s->tree), -EEXIST);
	close(s->tree.images);
	s->tree.images = -1;
}

static void test_tree(void **state)
{
	struct state_lab *s = state_lab(state);
	const struct native_task *root;
	int zombies = 0, stopped = 0, sharing = 0, r;
	struct state_report report;

	state_lab_start(s, child_tree);
	state_lab_ask(s, &report, true);
	r = state_lab_freeze(s);
	if (r == 0)
		r = state_collect(s->state, &s->tree);
	if (r == 0)
		r = state_check(&s->tree);
	if (r == 0)
		r = regs_collect(&s->tree);
	thaw_tree(&s->tree);
	assert_int_equal(r, 0);
	assert_int_equal(s->tree.task_count, 4);
	write_images(s);
	root = &s->tree.tasks[0];
	assert_int_equal(root->thread_count, THREADS + 1);
	for (size_t i = 0; i < root->thread_count; i++) {
		const struct state_thread *t = root->threads[i].state;

		assert_int_equal(t->host_tid, root->threads[i].tid);
		assert_int_equal(t->ptraced, getpid());
		assert_int_equal(t->blocked >> (SIGUSR1 - 1) & 1, i > 0);
		if (i > 0)
			assert_memory_equal(t->comm, "thread ", 7);
	}
	for (size_t i = 1; i < s->tree.task_count; i++) {
		const struct native_task *task = &s->tree.tasks[i];

		assert_int_equal(task->state->ppid, s->child);
		assert_int_equal(task->state->sid, s->child);
		zombies += task->zombie;
		if (task->zombie) {
			assert_int_equal(task->state->exit_code, 42 << 8);
			continue;
		}
		assert_int_not_equal(task->vm_id, root->vm_id);
		stopped += task->state->group_stop_signal == SIGSTOP;
		sharing += task->files_id == root->files_id;
	}
	assert_int_equal(zombies, 1);
	assert_int_equal(stopped, 1);
	assert_int_equal(sharing, 1);
	/* It has children without a session of their own, and runs on. */
	state_lab_ask(s, &report, false);
	for (size_t i = 1; i < s->tree.task_count; i++)
		kill(s->tree.tasks[i].pid, SIGKILL);
}

static void *nanosleeper(void *arg)
{
	struct timespec t = { .tv_sec = SLEEP_S };

	(void)arg;
	prctl(PR_SET_NAME, "nanosleep");
	for (;;)
		syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &t, NULL);
	return NULL;
}

static void *poller(void *arg)
{
	(void)arg;
	prctl(PR_SET_NAME, "poll");
	for (;;)
		syscall(SYS_poll, NULL, 0, SLEEP_S * 1000);
	return NULL;
}

static void *futex_waiter(void *arg)
{
	struct timespec t = { .tv_sec = SLEEP_S };
	static uint32_t word;

	(void)arg;
	prctl(PR_SET_NAME, "futex");
	for (;;)
		syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
	return NULL;
}

/* Threads of this process that have come as far as their call. */
static int count_sleepers(void)
{
	_cleanup_closedir_ DIR *dir = opendir("/proc/self/task");
	struct dirent *entry;
	int count = 0;

	while (dir && (entry = readdir(dir))) {
		_cleanup_free_ char *text = NULL;
		char path[64];
		long nr;

		snprintf(path, sizeof(path), "/proc/self/task/%.16s/syscall", entry->d_name);
		if (read_file_at(AT_FDCWD, path, 4096, &text, NULL) < 0)
			continue;
		nr = strtol(text, NULL, 10);
		count += nr == SYS_clock_nanosleep || nr == SYS_poll || nr == SYS_futex;
	}
	return count;
}

static void child_sleepers(void)
{
	pthread_t thread;

	setsid();
	pthread_create(&thread, NULL, nanosleeper, NULL);
	pthread_create(&thread, NULL, poller, NULL);
	pthread_create(&thread, NULL, futex_waiter, NULL);
	while (count_sleepers() < 3)
		usleep(1000);
}

/* A stop interrupts such calls; the kernel remembers until when they would have slept. */
static void test_restarts(void **state)
{
	struct state_lab *s = state_lab(state);
	struct state_report report;
	size_t seen = 0;
	int r;

	state_lab_start(s, child_sleepers);
	state_lab_ask(s, &report, true);
	r = state_lab_freeze(s);
	if (r == 0)
		r = state_collect(s->state, &s->tree);
	thaw_tree(&s->tree);
	assert_int_equal(r, 0);
	for (size_t i = 0; i < s->tree.tasks[0].thread_count; i++) {
		const struct state_thread *t = s->tree.tasks[0].threads[i].state;
		bool boot = !strcmp(t->comm, "nanosleep");
		uint64_t now = boot ? s->tree.freeze_boot_ns : s->tree.freeze_mono_ns;

		if (!boot && strcmp(t->comm, "poll") && strcmp(t->comm, "futex")) {
			assert_int_equal(t->restart_expires_ns, 0);
			continue;
		}
		seen++;
		assert_true(t->in_syscall_restart);
		assert_int_equal(t->restart_clock, boot ? CLOCK_BOOTTIME : CLOCK_MONOTONIC);
		assert_near(t->restart_expires_ns, now + SLEEP_S * 1000000000ull);
	}
	assert_int_equal(seen, 3);
}

static void child_in_session(void)
{
}

static void *unshared_thread(void *arg)
{
	(void)arg;
	if (unshare(CLONE_FS) < 0)
		_exit(96);
	atomic_fetch_add(&threads_ready, 1);
	for (;;)
		pause();
	return NULL;
}

static void child_unshared(void)
{
	pthread_t thread;

	setsid();
	pthread_create(&thread, NULL, unshared_thread, NULL);
	while (!atomic_load(&threads_ready))
		usleep(1000);
}

static void child_netns(void)
{
	setsid();
	unshare(CLONE_NEWNET);
}

static void child_pidns(void)
{
	setsid();
	unshare(CLONE_NEWPID);
}

static void child_deadline(void)
{
	setsid();
	for (int i = 0; i < STATE_TIMERS_MAX + 1; i++) {
		struct sigevent ev = { .sigev_notify = SIGEV_NONE };
		int id;

		if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, &id) < 0)
			_exit(97);
	}
}

static void test_refusals(void **state)
{
	static const struct {
		void (*fn)(void);
		const char *reason;
	} cases[] = {
		{ child_unshared, "does not share the folders" },
		{ child_netns, "network namespace" },
		{ child_pidns, "PID namespace" },
		{ child_deadline, "more than 32 timers" },
	};
	struct state_lab *s = state_lab(state);
	struct state_report report;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		int r;

		state_lab_start(s, cases[i].fn);
		state_lab_ask(s, &report, true);
		r = state_lab_look(s);
		if (r == 0)
			r = state_check(&s->tree);
		assert_int_equal(r, -EOPNOTSUPP);
		if (!strstr(s->reason, cases[i].reason))
			fail_msg("not \"%s\": %s", cases[i].reason, s->reason);
		state_lab_kill(s);
	}
	/* A session that began outside needs leave. */
	state_lab_start(s, child_in_session);
	state_lab_ask(s, &report, true);
	assert_int_equal(state_lab_look(s), 0);
	assert_int_equal(state_check(&s->tree), 0);
	s->tree.images = 0;
	assert_int_equal(state_check(&s->tree), -EOPNOTSUPP);
	s->tree.shell_job = true;
	assert_int_equal(state_check(&s->tree), 0);
}

static void test_vmas_of_two_instants(void **state)
{
	struct state_vma v[] = {
		{ .start = 0x1000, .end = 0x4000 },
		/* Grown, and the one behind it: */
		{ .start = 0x1000, .end = 0x6000, .file = 1, .offset = 0x9000 },
		{ .start = 0x6000, .end = 0x9000 },
		/* Joined with another one at a place between: */
		{ .start = 0x7000, .end = 0xc000, .file = 1, .offset = 0x1000, .vm_flags = 3 },
		/* Nothing new: */
		{ .start = 0x8000, .end = 0xa000 },
		{ .start = 0xe000, .end = 0xf000 },
		/* The list of another thread: */
		{ .start = 0x1000, .end = 0x20000 },
		{ .start = 0x20000, .end = 0x30000 },
	};
	static const uint64_t expected[][3] = {
		{ 0x1000, 0x4000, 0 },	    { 0x4000, 0x6000, 0xc000 }, { 0x6000, 0x9000, 0 },
		{ 0x9000, 0xc000, 0x3000 }, { 0xe000, 0xf000, 0 },
	};

	(void)state;
	assert_int_equal(state_part_vmas(v, ARRAY_SIZE(v)), ARRAY_SIZE(expected));
	for (size_t i = 0; i < ARRAY_SIZE(expected); i++) {
		assert_int_equal(v[i].start, expected[i][0]);
		assert_int_equal(v[i].end, expected[i][1]);
		assert_int_equal(v[i].offset, expected[i][2]);
	}
	assert_int_equal(v[3].vm_flags, 3);
	assert_int_equal(state_part_vmas(v, 0), 0);
}

/* A process that is gone is an error, never an empty record. */
static void test_gone(void **state)
{
	struct state_lab *s = state_lab(state);
	struct state_report report;

	state_lab_start(s, child_in_session);
	state_lab_ask(s, &report, true);
	state_lab_reset(s);
	assert_int_equal(tree_list(&s->tree), 0);
	assert_int_equal(state_prepare(s->state, &s->tree), 0);
	state_lab_kill(s);
	assert_int_equal(state_collect(s->state, &s->tree), -ESRCH);
	assert_non_null(strstr(s->reason, "has ended"));
}

/* Processes that come and go: one reaps them, the kernel reaps the other's. */
static void churn(bool reap)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	syscall(SYS_close_range, 0, ~0u, 0);
	signal(SIGCHLD, reap ? SIG_DFL : SIG_IGN);
	for (;;) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		if (reap && pid > 0)
			waitpid(pid, NULL, 0);
		if (!reap)
			usleep(50);
	}
}

static void child_churns(void)
{
	setsid();
	for (int i = 0; i < 4; i++) {
		if (fork() == 0)
			churn(i % 2);
	}
}

/* What has let go of its things, or is no more, when it is looked at, is no reason to refuse a job. */
static void test_ending(void **state)
{
	struct state_lab *s = state_lab(state);
	uint64_t end = now_boot_ns() + CHURN_S * 1000000000ull;
	struct state_report report;
	int looks = 0;

	state_lab_start(s, child_churns);
	state_lab_ask(s, &report, true);
	for (; now_boot_ns() < end; looks++) {
		int r = state_lab_look(s);

		if (r == 0)
			r = state_check(&s->tree);
		if (r == -EOPNOTSUPP)
			fail_msg("after %d looks: %s", looks, s->reason);
	}
	print_message("%d looks\n", looks);
	state_lab_kill(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_truth),
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_long_lists),
		cmocka_unit_test(test_tree),
		cmocka_unit_test(test_restarts),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_gone),
		cmocka_unit_test(test_ending),
		cmocka_unit_test(test_vmas_of_two_instants),
	};

	return cmocka_run_group_tests(tests, state_lab_setup, state_lab_teardown);
}
