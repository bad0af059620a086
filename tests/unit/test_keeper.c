// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "tests/unit/keeper_fixture.h"
#include "tests/unit/slow.h"

enum { NOBODY = 65534, TICK_LINES = 10, GROWS_MS = 30000, STANDS_MS = 150, FREEZE_MS = 30000 };

#define COUNT_LOOP "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"

static int setup(void **state)
{
	static struct fixture f;

	if (fixture_missing())
		return 0;
	fixture_init(&f);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	if (*state)
		fixture_deinit(*state);
	return 0;
}

static struct fixture *started(void **state)
{
	struct fixture *f = *state;

	if (!f) {
		print_message("SKIP: %s\n", fixture_missing());
		skip();
	}
	int r = keeper_start(&f->config, &f->k);

	if (r < 0)
		print_message("keeper_start: %s\n", strerror(-r));
	assert_int_equal(r, 0);
	return f;
}

static bool output_grows_within(struct fixture *f, int timeout_ms)
{
	long before = fixture_output_size(f);

	for (int ms = 0; ms < timeout_ms; ms += 10) {
		sleep_ms(10);
		if (fixture_output_size(f) > before)
			return true;
	}
	return false;
}

static bool output_grows(struct fixture *f)
{
	return output_grows_within(f, slow(GROWS_MS));
}

static bool output_stands(struct fixture *f)
{
	return !output_grows_within(f, STANDS_MS);
}

static void test_exit_code(void **state)
{
	struct fixture *f = started(state);
	struct keeper_status status;

	fixture_run_shell(f, 0, "echo hello; exit 7");
	int wstatus = fixture_wait_exit(f, 5000);

	assert_true(WIFEXITED(wstatus));
	assert_int_equal(WEXITSTATUS(wstatus), 7);
	char *out = fixture_output(f);

	assert_string_equal(out, "hello\n");
	free(out);
	assert_int_equal(keeper_quit(f->k), 0);
	assert_int_not_equal(keeper_status(f->k, &status), 0);
	assert_int_equal(access(f->cgroup_dir, F_OK), -1);
}

static void test_signal(void **state)
{
	struct fixture *f = started(state);

	fixture_run_shell(f, NOBODY, "exec sleep 1000");
	assert_int_equal(keeper_signal(f->k, SIGTERM), 0);
	int wstatus = fixture_wait_exit(f, 5000);

	assert_true(WIFSIGNALED(wstatus));
	assert_int_equal(WTERMSIG(wstatus), SIGTERM);
	assert_int_equal(keeper_signal(f->k, SIGTERM), -ESRCH);
}

static void test_failed_step(void **state)
{
	static const char argv[] = "/no/such/program";
	struct fixture *f = started(state);
	struct keeper_command command = { .argv = argv, .argv_size = sizeof(argv), .cwd = "/" };
	const char *step = NULL;

	assert_int_equal(keeper_run(f->k, &command, &step), -ENOENT);
	assert_string_equal(step, "execute");
	command.cwd = "/no/such/folder";
	assert_int_equal(keeper_run(f->k, &command, &step), -ENOENT);
	assert_string_equal(step, "working directory");
	command.argv = "no-end";
	command.argv_size = 3;
	assert_int_equal(keeper_run(f->k, &command, &step), -EBADMSG);
	/* None of these was the job. */
	fixture_run_shell(f, 0, "echo $$");
	fixture_wait_exit(f, 5000);
	char *out = fixture_output(f);

	assert_string_equal(out, "1000\n");
	free(out);
}

/* What the job finds around itself. */
static void test_surroundings(void **state)
{
	struct fixture *f = started(state);
	char script[2048];
	const char *const argv[] = { "sh", "-c", script, NULL };

	snprintf(
		script, sizeof(script),
		"echo pid $$ ppid $PPID; echo id $(id -u) $(id -g) $(id -G); umask; uname -n;"
		"echo cwd $PWD; (echo child $(exec sh -c 'echo $PPID') >/dev/null);"
		"grep -E '^(CapPrm|CapEff|CapAmb|NoNewPrivs|SigBlk|SigIgn)' /proc/self/status;"
		"cat /proc/self/oom_score_adj; ls %s/state 2>&1 | wc -l; ls -A /run | tr '\\n' ' ';"
		"touch /run/x 2>/dev/null && echo bad; touch /dev/shm/x && echo shm;"
		"ls /proc/self/fd | tr '\\n' ' '; touch /sys/x 2>/dev/null && echo bad;"
		"test -d %s/state/jobs && echo seen",
		f->base, f->base);
	fixture_run(f, NOBODY, argv);
	fixture_wait_exit(f, 5000);
	char *out = fixture_output(f);

	print_message("%s", out);
	assert_non_null(strstr(out, "pid 1000 ppid 1\n"));
	assert_non_null(strstr(out, "id 65534 65534 65534\n0022\ndecamp-test\ncwd /var/tmp\n"));
	assert_non_null(strstr(out, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"));
	assert_non_null(strstr(out, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"));
	assert_non_null(strstr(out, "NoNewPrivs:\t0\n"));
	assert_non_null(strstr(out, "shm\n"));
	assert_null(strstr(out, "bad\n"));
	assert_null(strstr(out, "seen\n"));
	free(out);
}

static void test_freeze(void **state)
{
	struct fixture *f = started(state);
	struct keeper_status status;

	fixture_run_shell(f, NOBODY, COUNT_LOOP);
	assert_true(fixture_wait_lines(f, TICK_LINES, 5000));
	for (int i = 0; i < 5; i++) {
		assert_int_equal(keeper_freeze(f->k, FREEZE_MS), 0);
		assert_int_equal(keeper_status(f->k, &status), 0);
		assert_true(status.frozen);
		assert_false(status.lease_frozen);
		assert_true(output_stands(f));
		assert_int_equal(keeper_thaw(f->k), 0);
		assert_true(output_grows(f));
	}
	print_message("slowest freeze: %llu us\n", (unsigned long long)status.freeze_worst_us);
	assert_true(status.freeze_worst_us < 1000000);
}

static void await_lease_frozen(struct fixture *f, struct keeper_status *ret_status)
{
	for (int ms = 0;; ms += 10) {
		assert_int_equal(keeper_status(f->k, ret_status), 0);
		if (ret_status->lease_frozen)
			return;
		assert_true(ms < slow(GROWS_MS));
		sleep_ms(10);
	}
}

static void check_lease(struct fixture *f, bool by_signal)
{
	struct pollfd pfd = { .fd = keeper_event_fd(f->k), .events = POLLIN };
	struct keeper_status status;

	fixture_run_shell(f, NOBODY, COUNT_LOOP);
	assert_true(fixture_wait_lines(f, TICK_LINES, 5000));
	assert_int_equal(keeper_status(f->k, &status), 0);
	assert_int_equal(keeper_lease(f->k, now_boot_ns() + 60000000000), 0);
	assert_true(output_grows(f));
	assert_int_equal(keeper_lease(f->k, now_boot_ns() + 200000000), 0);
	assert_int_equal(poll(&pfd, 1, slow(GROWS_MS)), 1);
	await_lease_frozen(f, &status);
	assert_false(status.frozen);
	assert_int_equal(status.freeze_by_signal, by_signal);
	assert_true(output_stands(f));
	/* A request of its own survives the lease's coming back. */
	assert_int_equal(keeper_freeze(f->k, FREEZE_MS), 0);
	assert_int_equal(keeper_lease(f->k, now_boot_ns() + 60000000000), 0);
	assert_true(output_stands(f));
	assert_int_equal(keeper_thaw(f->k), 0);
	assert_true(output_grows(f));
	/* A deadline in the past, then none. */
	assert_int_equal(keeper_lease(f->k, 1), 0);
	await_lease_frozen(f, &status);
	assert_true(output_stands(f));
	assert_int_equal(keeper_lease(f->k, 0), 0);
	assert_true(output_grows(f));
}

static void test_lease(void **state)
{
	check_lease(started(state), false);
}

static void test_lease_without_cgroup(void **state)
{
	struct fixture *f = *state;

	if (f)
		f->config.cgroup_dir = NULL;
	check_lease(started(state), true);
	assert_int_equal(keeper_kill(f->k), 0);
	assert_int_equal(keeper_quit(f->k), 0);
}

static void test_daemon_dies(void **state)
{
	struct fixture *f = *state;
	struct keeper_status status;

	if (!f) {
		print_message("SKIP: %s\n", fixture_missing());
		skip();
	}
	pid_t daemon_pid = fork();

	assert_true(daemon_pid >= 0);
	if (daemon_pid == 0) {
		setpgid(0, 0);
		if (keeper_start(&f->config, &f->k) == 0)
			fixture_run_shell(f, NOBODY, COUNT_LOOP);
		for (;;)
			pause();
	}
	for (int i = 0; i < 3000 && keeper_attach(f->run_dir, &f->k) < 0; i++)
		sleep_ms(10);
	assert_non_null(f->k);
	assert_true(fixture_wait_lines(f, TICK_LINES, 5000));
	keeper_detach(f->k);
	f->k = NULL;
	kill(-daemon_pid, SIGKILL);
	waitpid(daemon_pid, NULL, 0);
	assert_true(output_grows(f));
	assert_int_equal(keeper_attach(f->run_dir, &f->k), 0);
	assert_int_equal(keeper_status(f->k, &status), 0);
	assert_true(status.running);
	assert_int_equal(keeper_start(&f->config, &f->k), -EBUSY);
}

static bool is_mounted_below(const char *folder)
{
	_cleanup_free_ char *text = NULL;

	assert_int_equal(read_file_at(AT_FDCWD, "/proc/self/mountinfo", 1 << 20, &text, NULL), 0);
	return strstr(text, folder);
}

static void test_kill_leaves_nothing(void **state)
{
	struct fixture *f = started(state);
	struct keeper_status status;
	char path[PATH_MAX];

	fixture_run_shell(f, NOBODY, "(setsid sleep 1000 &) ; sleep 1000 & " COUNT_LOOP);
	assert_true(fixture_wait_lines(f, 3, 5000));
	assert_int_equal(keeper_freeze(f->k, FREEZE_MS), 0);
	assert_int_equal(keeper_status(f->k, &status), 0);
	pid_t init_pid = status.init_pid, keeper_pid = status.keeper_pid;

	assert_int_equal(keeper_quit(f->k), -EBUSY);
	assert_int_equal(keeper_kill(f->k), 0);
	assert_true(fixture_wait_dead(init_pid, 0));
	assert_int_equal(keeper_status(f->k, &status), 0);
	assert_true(status.exited);
	assert_int_equal(status.exit_status, SIGKILL);
	assert_int_equal(keeper_quit(f->k), 0);
	assert_true(fixture_wait_dead(keeper_pid, 2000));
	assert_int_equal(access(f->cgroup_dir, F_OK), -1);
	snprintf(path, sizeof(path), "%s/keepers", f->cgroup_parent);
	assert_int_equal(access(path, F_OK), -1);
	snprintf(path, sizeof(path), "%s/keeper.sock", f->run_dir);
	assert_int_equal(access(path, F_OK), -1);
	assert_false(is_mounted_below(f->base));
}

/* Without its warden a job does not run on. */
static void test_keeper_dies(void **state)
{
	struct fixture *f = started(state);
	struct keeper_status status;
	struct keeper *k;

	fixture_run_shell(f, NOBODY, COUNT_LOOP);
	assert_int_equal(keeper_status(f->k, &status), 0);
	assert_int_equal(kill(status.keeper_pid, SIGKILL), 0);
	assert_true(fixture_wait_dead(status.main_pid, 3000));
	assert_int_equal(keeper_attach(f->run_dir, &k), -ECONNREFUSED);
}

static void test_helper(void **state)
{
	char *argv[] = { "sh", "-c", "echo $$ >&3; cat <&4 >&3; hostname >&3; exit 3", NULL };
	char *bad[] = { "x", NULL };
	struct fixture *f = started(state);
	int out[2], in[2], pidfd, status;
	uint32_t id;
	char text[256] = "";

	fixture_run_shell(f, NOBODY, COUNT_LOOP);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(write(in[1], "fd4\n", 4), 4);
	close(in[1]);
	int fds[] = { out[1], in[0] };

	assert_int_equal(keeper_spawn(f->k, "/bin/sh", argv, fds, 2, -1, true, &pidfd, &id), 0);
	close(out[1]);
	close(in[0]);
	assert_int_equal(keeper_reap(f->k, id, 60000, &status), 0);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 3);
	assert_true(read(out[0], text, sizeof(text) - 1) > 0);
	assert_string_equal(text, "2\nfd4\ndecamp-test\n");
	close(out[0]);
	close(pidfd);
	assert_int_equal(keeper_reap(f->k, id, 0, &status), -ECHILD);
	assert_int_equal(keeper_spawn(f->k, "/no/such", bad, NULL, 0, -1, false, &pidfd, &id),
			 -ENOENT);
	assert_true(output_grows(f));
}

static void await_children(pid_t pid, int count)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	for (int ms = 0, found = 0; found != count; ms += 10) {
		_cleanup_free_ char *text = NULL;

		assert_true(ms < slow(GROWS_MS));
		sleep_ms(10);
		assert_int_equal(read_file_at(AT_FDCWD, path, 4096, &text, NULL), 0);
		found = 0;
		for (const char *p = text; *p; p++)
			found += *p == ' ';
	}
}

/* A tree of the host, outside of any namespace of ours. */
static void test_adopted(void **state)
{
	struct fixture *f = *state;
	struct keeper_status status;

	if (!f) {
		print_message("SKIP: %s\n", fixture_missing());
		skip();
	}
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		setsid();
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execlp("sh", "sh", "-c", "sleep 1000 & sleep 1001; true", NULL);
		_exit(127);
	}
	await_children(pid, 2);
	f->config.adopted = true;
	f->config.adopt_pid = pid;
	started(state);
	assert_int_equal(keeper_status(f->k, &status), 0);
	assert_int_equal(status.main_pid, pid);
	assert_int_equal(keeper_freeze(f->k, FREEZE_MS), 0);
	assert_int_equal(keeper_thaw(f->k), 0);
	assert_int_equal(keeper_freeze(f->k, FREEZE_MS), 0);
	/* A zombie is dead to the keeper, but ours to reap. */
	assert_int_equal(keeper_kill(f->k), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(keeper_status(f->k, &status), 0);
	assert_true(status.exited);
	assert_false(status.exit_status_known);
	assert_int_equal(keeper_quit(f->k), 0);
}

/* The list of another host: a mount point that is not here, and numbers that stay. */
static void test_carried_mounts(void **state)
{
	struct fixture *f = *state;
	char path[PATH_MAX];
	const char *list = "0 /\n5 /decamp-test-mount/deep\n";

	if (!f) {
		print_message("SKIP: %s\n", fixture_missing());
		skip();
	}
	snprintf(path, sizeof(path), "%s/upper/5", f->state_dir);
	assert_int_equal(mkdir_parents(path, 0755), 0);
	snprintf(path, sizeof(path), "%s/upper/5/carried", f->state_dir);
	close(open(path, O_CREAT | O_WRONLY, 0644));
	snprintf(path, sizeof(path), "%s/mounts", f->state_dir);
	assert_int_equal(write_file_atomic_at(AT_FDCWD, path, list, strlen(list), 0600), 0);
	started(state);
	fixture_run_shell(f, 0, "ls /decamp-test-mount/deep; echo new >/decamp-test-mount/deep/b");
	fixture_wait_exit(f, 5000);
	char *out = fixture_output(f);

	assert_string_equal(out, "carried\n");
	free(out);
	snprintf(path, sizeof(path), "%s/upper/5/b", f->state_dir);
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(access("/decamp-test-mount", F_OK), -1);
}

static void test_bad_mounts(void **state)
{
	static const char *const lists[] = { "0 /home\n",	 "99 /a\n",	   "x\n",
					     "0 /\n1 a\n",	 "0 /\n1 /../x\n", "1 /\n",
					     "0 /\n1 /a\n1 /b\n" };
	struct fixture *f = *state;
	char path[PATH_MAX];

	if (!f) {
		print_message("SKIP: %s\n", fixture_missing());
		skip();
	}
	snprintf(path, sizeof(path), "%s/mounts", f->state_dir);
	for (size_t i = 0; i < ARRAY_SIZE(lists); i++) {
		assert_int_equal(
			write_file_atomic_at(AT_FDCWD, path, lists[i], strlen(lists[i]), 0600), 0);
		assert_int_equal(keeper_start(&f->config, &f->k), -EBADMSG);
	}
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_exit_code),	   CASE(test_signal),
		CASE(test_failed_step),	   CASE(test_surroundings),
		CASE(test_freeze),	   CASE(test_lease),
		CASE(test_daemon_dies),	   CASE(test_lease_without_cgroup),
		CASE(test_keeper_dies),	   CASE(test_kill_leaves_nothing),
		CASE(test_helper),	   CASE(test_adopted),
		CASE(test_carried_mounts), CASE(test_bad_mounts),
	};

	alarm(550);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
