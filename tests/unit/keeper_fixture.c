// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/keeper_fixture.h"
#include "tests/unit/slow.h"

#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "agent/util/io.h"

enum { WAIT_LEAST_MS = 30000 };

void sleep_ms(int ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

static void find_program(const char *name, char path[PATH_MAX])
{
	ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 64);
	char *slash;

	path[n < 0 ? 0 : n] = '\0';
	slash = strrchr(path, '/');
	if (!slash)
		return;
	snprintf(slash, 64, "/../%s", name);
	/* A sanitized build has its own folder. */
	if (access(path, X_OK) < 0)
		snprintf(slash, 64, "/../../%s", name);
}

static const char *keeper_binary(void)
{
	static char path[PATH_MAX];
	const char *given = getenv("DECAMP_KEEPER");

	if (given)
		return given;
	find_program("decamp-keeper", path);
	return path;
}

const char *fixture_capture_binary(void)
{
	static char path[PATH_MAX];

	find_program("decamp-capture", path);
	return path;
}

const char *fixture_find_criu(char criu[PATH_MAX])
{
	const char *given = getenv("DECAMP_CRIU");
	FILE *f;

	if (given) {
		snprintf(criu, PATH_MAX, "%s", given);
	} else {
		f = popen("scripts/criu 2>/dev/null", "re");
		if (f && !fgets(criu, PATH_MAX, f))
			criu[0] = '\0';
		if (f)
			pclose(f);
		criu[strcspn(criu, "\n")] = '\0';
	}
	return access(criu, X_OK) == 0 ? NULL : "no criu: set DECAMP_CRIU";
}

static pid_t find_child(const char *name)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/thread-self/children", "re");
	int pid;

	while (f && fscanf(f, "%d", &pid) == 1) {
		char path[64], comm[32] = "";
		_cleanup_fclose_ FILE *c = NULL;

		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		c = fopen(path, "re");
		if (c && fgets(comm, sizeof(comm), c))
			comm[strcspn(comm, "\n")] = '\0';
		if (!strcmp(comm, name))
			return pid;
	}
	return 0;
}

pid_t fixture_kill_child_later(const char *name, int ms)
{
	pid_t child = find_child(name), killer;

	assert_true(child > 0);
	killer = fork();
	if (killer != 0)
		return killer;
	sleep_ms(ms);
	kill(child, SIGKILL);
	_exit(0);
}

static bool find_cgroup2(char path[PATH_MAX / 2])
{
	FILE *f = setmntent("/proc/self/mounts", "re");
	struct mntent *entry;
	bool found = false;

	while (f && !found && (entry = getmntent(f))) {
		found = !strcmp(entry->mnt_type, "cgroup2");
		if (found)
			snprintf(path, PATH_MAX / 2, "%s", entry->mnt_dir);
	}
	if (f)
		endmntent(f);
	return found;
}

const char *fixture_missing(void)
{
	static char reason[PATH_MAX + 64];
	char path[PATH_MAX / 2];

	if (geteuid() != 0)
		return "needs root";
	if (!find_cgroup2(path) || access(path, W_OK) < 0)
		return "no writable cgroup2 mount";
	if (access(keeper_binary(), X_OK) < 0) {
		snprintf(reason, sizeof(reason), "no keeper at %s", keeper_binary());
		return reason;
	}
	return NULL;
}

void fixture_init(struct fixture *f)
{
	const char *folder = getenv("DECAMP_TEST_DIR");
	char cgroup2[PATH_MAX / 2];

	memset(f, 0, sizeof(*f));
	snprintf(f->base, sizeof(f->base), "%s/decamp-test-XXXXXX", folder ? folder : "/var/tmp");
	assert_non_null(mkdtemp(f->base));
	snprintf(f->state_dir, sizeof(f->state_dir), "%s/state/jobs/a", f->base);
	snprintf(f->run_dir, sizeof(f->run_dir), "%s/run/jobs/a", f->base);
	assert_int_equal(mkdir_parents(f->state_dir, 0700), 0);
	assert_int_equal(mkdir_parents(f->run_dir, 0700), 0);
	assert_true(find_cgroup2(cgroup2));
	snprintf(f->cgroup_parent, sizeof(f->cgroup_parent), "%.1900s/decamp-test-%d", cgroup2,
		 getpid());
	snprintf(f->cgroup_dir, sizeof(f->cgroup_dir), "%s/job", f->cgroup_parent);
	assert_int_equal(mkdir_parents(f->cgroup_dir, 0755), 0);
	f->config = (struct keeper_config){ .binary = keeper_binary(),
					    .run_dir = f->run_dir,
					    .state_dir = f->state_dir,
					    .cgroup_dir = f->cgroup_dir,
					    .hostname = "decamp-test" };
}

/* It only ends a test that fails: few seconds are as good as some, but on a busy machine. */
static int patience(int timeout_ms)
{
	return slow(timeout_ms < WAIT_LEAST_MS ? WAIT_LEAST_MS : timeout_ms);
}

bool fixture_wait_dead(pid_t pid, int timeout_ms)
{
	int patience_ms = timeout_ms ? patience(timeout_ms) : 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	for (int waited = 0; waited <= patience_ms; waited += 10) {
		_cleanup_free_ char *text = NULL;

		if (read_file_at(AT_FDCWD, path, 4096, &text, NULL) < 0 || strstr(text, ") Z "))
			return true;
		sleep_ms(10);
	}
	return false;
}

static void kill_keeper(const struct fixture *f)
{
	char path[256];
	_cleanup_free_ char *text = NULL;
	pid_t pid;

	snprintf(path, sizeof(path), "%s/keeper.pid", f->run_dir);
	if (read_file_at(AT_FDCWD, path, 64, &text, NULL) < 0)
		return;
	pid = atoi(text);
	if (pid > 1 && kill(pid, SIGKILL) == 0 && !fixture_wait_dead(pid, 5000))
		print_message("keeper does not die: %d\n", pid);
	unlink(path);
}

static void drop_cgroup(const char *path)
{
	char file[PATH_MAX + 16];

	snprintf(file, sizeof(file), "%s/cgroup.kill", path);
	(void)!write_kernel_file(file, "1");
	snprintf(file, sizeof(file), "%s/" KEEPER_TASKS, path);
	for (int i = 0; i < 3000; i++) {
		rmdir(file);
		if (rmdir(path) == 0 || errno != EBUSY)
			break;
		sleep_ms(10);
	}
}

void fixture_deinit(struct fixture *f)
{
	char keepers[PATH_MAX];

	keeper_detach(f->k);
	f->k = NULL;
	kill_keeper(f);
	drop_cgroup(f->cgroup_dir);
	snprintf(keepers, sizeof(keepers), "%s/keepers", f->cgroup_parent);
	drop_cgroup(keepers);
	drop_cgroup(f->cgroup_parent);
	/* Mounts of a killed namespace may take a moment to let go of their work folders. */
	for (int i = 0; i < 1500 && remove_tree_at(AT_FDCWD, f->base) < 0; i++)
		sleep_ms(20);
	if (access(f->base, F_OK) == 0)
		print_message("left behind: %s\n", f->base);
}

void fixture_move(struct fixture *f)
{
	char command[1024];

	snprintf(command, sizeof(command),
		 "cd %s && cp -a upper upper.copy && rm -rf upper work && mv upper.copy upper",
		 f->state_dir);
	assert_int_equal(keeper_kill(f->k), 0);
	assert_int_equal(keeper_quit(f->k), 0);
	keeper_detach(f->k);
	f->k = NULL;
	assert_int_equal(system(command), 0);
	assert_int_equal(mkdir_parents(f->cgroup_dir, 0755), 0);
	assert_int_equal(keeper_start(&f->config, &f->k), 0);
}

void fixture_run(struct fixture *f, uid_t uid, const char *const argv[])
{
	static const char env[] = "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin\0LANG=C";
	struct keeper_command command = { .umask = 022,
					  .env = env,
					  .env_size = sizeof(env),
					  .cwd = "/var/tmp",
					  .stdout_path = FIXTURE_OUT,
					  .stderr_path = FIXTURE_OUT,
					  .uid = uid,
					  .gid = uid };
	const char *step = NULL;
	char text[8192];
	size_t used = 0;
	int r;

	for (int i = 0; argv[i]; i++) {
		size_t size = strlen(argv[i]) + 1;

		assert_true(used + size <= sizeof(text));
		memcpy(text + used, argv[i], size);
		used += size;
	}
	command.argv = text;
	command.argv_size = used;
	r = keeper_run(f->k, &command, &step);
	if (r < 0)
		print_message("run: %s: %s\n", step, strerror(-r));
	assert_int_equal(r, 0);
}

void fixture_run_shell(struct fixture *f, uid_t uid, const char *script)
{
	const char *const argv[] = { "sh", "-c", script, NULL };

	fixture_run(f, uid, argv);
}

void fixture_path(const struct fixture *f, const char *path, char ret_path[PATH_MAX])
{
	char list[256];
	_cleanup_free_ char *text = NULL;
	char *save = NULL;
	size_t best = 0;

	snprintf(list, sizeof(list), "%s/mounts", f->state_dir);
	assert_int_equal(read_file_at(AT_FDCWD, list, 1 << 20, &text, NULL), 0);
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *mount = strchr(line, ' ') + 1;
		size_t len = strlen(mount) == 1 ? 0 : strlen(mount);

		if (strncmp(path, mount, len) || path[len] != '/' || len + 1 <= best)
			continue;
		best = len + 1;
		snprintf(ret_path, PATH_MAX, "%s/upper/%d%s", f->state_dir, atoi(line), path + len);
	}
	assert_true(best > 0);
}

char *fixture_output(const struct fixture *f)
{
	char path[PATH_MAX], *text;

	fixture_path(f, FIXTURE_OUT, path);
	if (read_file_at(AT_FDCWD, path, 64 << 20, &text, NULL) < 0)
		text = strdup("");
	assert_non_null(text);
	return text;
}

long fixture_output_size(const struct fixture *f)
{
	char path[PATH_MAX];
	struct stat st;

	fixture_path(f, FIXTURE_OUT, path);
	return stat(path, &st) < 0 ? -1 : (long)st.st_size;
}

bool fixture_wait_lines(const struct fixture *f, int lines, int timeout_ms)
{
	for (int waited = 0; waited <= patience(timeout_ms); waited += 10) {
		char *text = fixture_output(f);
		int count = 0;

		for (char *p = text; *p; p++)
			count += *p == '\n';
		free(text);
		if (count >= lines)
			return true;
		sleep_ms(10);
	}
	return false;
}

int fixture_wait_exit(struct fixture *f, int timeout_ms)
{
	struct keeper_status status = { 0 };
	uint64_t end = now_boot_ns() + (uint64_t)patience(timeout_ms) * 1000000;

	for (;;) {
		struct pollfd pfd = { .fd = keeper_event_fd(f->k), .events = POLLIN };

		assert_int_equal(keeper_status(f->k, &status), 0);
		if (status.exited)
			break;
		assert_true(now_boot_ns() < end);
		poll(&pfd, 1, 1000);
	}
	assert_true(status.exit_status_known);
	assert_false(status.running);
	return status.exit_status;
}
