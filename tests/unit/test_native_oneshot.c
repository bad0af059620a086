// SPDX-License-Identifier: LGPL-2.1-or-later
/* decamp-capture dump: what is there after success and after failure. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/capture/internal.h"
#include "agent/host/probe.h"
#include "agent/native/oneshot.h"
#include "agent/native/take.h"
#include "agent/util/io.h"
#include "overlay/types.h"

enum { NOEXEC_SEAL = 8, GUARD_INSTALL = 102 };

enum { ASLEEP_MS = 30000 };

struct lab {
	char folder[64];
	int fd;
	pid_t child;
};

/* What older kernels have not. */
static void make_newer(void)
{
	void *p = mmap(NULL, 4 * NATIVE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	(void)!memfd_create("sealed", NOEXEC_SEAL);
	(void)!madvise(p, NATIVE_PAGE, GUARD_INSTALL);
}

/* A process of its own session, without any descriptor from outside. */
static pid_t start_child(int unshared)
{
	int ready[2];
	pid_t pid;
	char c;

	assert_int_equal(pipe(ready), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(ready[1], 0);
		syscall(SYS_close_range, 1, ~0U, 0);
		if (setsid() < 0 || (unshared && unshare(unshared) < 0))
			_exit(1);
		if (open("/dev/null", O_RDWR) != 1)
			_exit(1);
		make_newer();
		if (write(0, "r", 1) != 1)
			_exit(1);
		dup2(1, 0);
		for (;;)
			pause();
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	assert_int_equal(read(ready[0], &c, 1), 0); /* it has let go of its end */
	close(ready[0]);
	return pid;
}

static int set_up(void **state)
{
	struct lab *l = calloc(1, sizeof(*l));

	if (!l)
		return -1;
	strcpy(l->folder, "/tmp/oneshot-XXXXXX");
	if (!mkdtemp(l->folder))
		return -1;
	l->fd = open(l->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	*state = l;
	return l->fd < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
	struct lab *l = *state;
	int r = 0;

	if (l->child > 0) {
		kill(l->child, SIGKILL);
		waitpid(l->child, NULL, 0);
	}
	close(l->fd);
	r = remove_tree_at(AT_FDCWD, l->folder);
	free(l);
	return r;
}

static void need_engine(void)
{
	struct take_config config = { .root = getpid() };
	char reason[NATIVE_REASON_MAX];
	struct taker *t;

	if (geteuid() != 0 || take_create(&config, &t, reason) < 0) {
		print_message("SKIP: %s\n", geteuid() ? "needs root" : reason);
		skip();
	}
	take_destroy(t);
}

/* In a process of its own: whoever traces a child of its own would also reap it. */
static int dump(struct lab *l, const char *option)
{
	char pid[16],
		*argv[] = { "dump",  "--tree",	     pid, "--images-dir", l->folder, "--log-file",
			    "x.log", (char *)option, NULL };
	pid_t dumper;
	int status;

	snprintf(pid, sizeof(pid), "%d", l->child);
	dumper = fork();
	assert_true(dumper >= 0);
	if (dumper == 0)
		_exit(oneshot_main(option ? 8 : 7, argv));
	assert_int_equal(waitpid(dumper, &status, 0), dumper);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static bool exists(const struct lab *l, const char *name)
{
	return faccessat(l->fd, name, F_OK, 0) == 0;
}

static int count_files(const struct lab *l)
{
	_cleanup_closedir_ DIR *dir = opendir(l->folder);
	struct dirent *e;
	int count = 0;

	assert_non_null(dir);
	while ((e = readdir(dir)))
		count += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
	return count;
}

/* Not traced, and falls asleep again: neither stopped nor ended. */
static void assert_runs(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	for (int ms = 0;; ms++) {
		_cleanup_free_ char *text = NULL;

		assert_int_equal(read_file_at(AT_FDCWD, path, 1 << 16, &text, NULL), 0);
		assert_non_null(strstr(text, "TracerPid:\t0"));
		if (strstr(text, "State:\tS"))
			return;
		assert_true(ms < ASLEEP_MS);
		usleep(1000);
	}
}

static void test_usage(void **state)
{
	char *argv[] = { "dump", "--tree", "1", NULL };

	(void)state;
	assert_int_equal(oneshot_main(3, argv), ONESHOT_USAGE);
}

static void test_refused(void **state)
{
	struct lab *l = *state;

	need_engine();
	l->child = start_child(CLONE_NEWUTS);
	assert_int_equal(dump(l, NULL), ONESHOT_NOT_COVERED);
	assert_int_equal(dump(l, "--lazy-pages"), ONESHOT_NOT_COVERED);
	assert_runs(l->child);
	assert_true(exists(l, "x.log"));
	assert_int_equal(count_files(l), 1);
}

static void test_leave_running(void **state)
{
	static const char *const names[] = { "inventory.img", "pstree.img", "files.img",
					     "pages-1.img" };
	struct lab *l = *state;
	uint32_t need;
	char name[32];

	need_engine();
	l->child = start_child(0);
	assert_int_equal(dump(l, "--leave-running"), ONESHOT_DONE);
	assert_runs(l->child);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		assert_true(exists(l, names[i]));
	snprintf(name, sizeof(name), "core-%d.img", l->child);
	assert_true(exists(l, name));
	assert_false(exists(l, "pages.new"));
	assert_false(exists(l, "pages-1.runs"));
	assert_false(exists(l, ".native"));
	assert_int_equal(capture_kernel_need(l->fd, &need), 0);
	assert_int_equal(need & ~(uint32_t)KERNEL_PIDS,
			 (probe_exec_seal() ? KERNEL_EXEC_SEAL : 0) |
				 (probe_guards() ? KERNEL_GUARDS : 0));
}

static void test_end(void **state)
{
	struct lab *l = *state;
	int status;

	need_engine();
	l->child = start_child(0);
	assert_int_equal(dump(l, NULL), ONESHOT_DONE);
	assert_int_equal(waitpid(l->child, &status, 0), l->child);
	l->child = 0;
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
	assert_true(exists(l, "inventory.img"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_usage),
		cmocka_unit_test_setup_teardown(test_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_leave_running, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_end, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
