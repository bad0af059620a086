// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Real programs, dumped with a real CRIU and brought back in a new keeper over a copy of their
 * files. Skipped where there is no CRIU: DECAMP_CRIU names it, else scripts/criu does.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "agent/capture/internal.h"
#include "agent/host/probe.h"
#include "agent/image/criu.h"
#include "agent/image/criu_text.h"
#include "agent/util/io.h"
#include "overlay/types.h"
#include "tests/unit/keeper_fixture.h"

enum { USER = 1234, KILLS = 20 };

struct scene {
	struct fixture f;
	char images[4][96];
	char criu[PATH_MAX];
	char reason[CRIU_REASON_MAX];
};

/*
 * Counts to 1000 with some work in each step: three seconds, some of which a test may lose between
 * two dumps. The last line is a digest of all.
 */
static const char count_script[] =
	"awk 'BEGIN { for (i = 1; i <= 1000; i++) { for (j = 0; j < 30000; j++) s = (s * 31 + j) "
	"% 65521; print i, s; fflush() } print \"end\", s; exit 9 }'";

static bool find_criu(char path[PATH_MAX])
{
	const char *given = getenv("DECAMP_CRIU");
	FILE *f = given ? NULL : popen("scripts/criu 2>/dev/null", "re");

	path[0] = '\0';
	if (given)
		snprintf(path, PATH_MAX, "%s", given);
	if (f && fgets(path, PATH_MAX, f))
		path[strcspn(path, "\n")] = '\0';
	if (f)
		pclose(f);
	return path[0] && access(path, X_OK) == 0;
}

static int setup(void **state)
{
	static struct scene s;

	if (fixture_missing() || !find_criu(s.criu))
		return 0;
	fixture_init(&s.f);
	for (size_t i = 0; i < ARRAY_SIZE(s.images); i++) {
		snprintf(s.images[i], sizeof(s.images[i]), "%s/images-%zu", s.f.base, i);
		if (mkdir(s.images[i], 0700) < 0)
			return -1;
	}
	*state = &s;
	return 0;
}

static int teardown(void **state)
{
	struct scene *s = *state;

	if (s)
		fixture_deinit(&s->f);
	return 0;
}

static struct scene *started(void **state)
{
	struct scene *s = *state;

	if (!s) {
		print_message("SKIP: %s\n", fixture_missing() ? fixture_missing() : "no criu");
		skip();
	}
	assert_int_equal(keeper_start(&s->f.config, &s->f.k), 0);
	return s;
}

static int try_dump(struct scene *s, int index, uid_t uid, int (*frozen)(void *), void *ctx)
{
	struct criu_dump dump = { .criu = s->criu,
				  .pid = KEEPER_FIRST_PID,
				  .images_dir = s->images[index],
				  .unprivileged = uid != 0,
				  .uid = uid,
				  .gid = uid,
				  .frozen = frozen,
				  .ctx = ctx };
	struct criu_times times = { 0 };
	int r = criu_run_dump(s->f.k, &dump, &times, s->reason);

	if (r < 0)
		print_message("dump: %s: %s\n", strerror(-r), s->reason);
	else
		print_message("dump: freezing=%lluus frozen=%lluus wall=%lluus pages=%llu\n",
			      (unsigned long long)times.freezing_us,
			      (unsigned long long)times.frozen_us,
			      (unsigned long long)times.wall_us,
			      (unsigned long long)times.pages_written);
	if (r == 0) {
		assert_true(times.frozen_us > 0 && times.wall_us >= times.frozen_us);
		assert_true(times.pages_written > 0);
	}
	return r;
}

/* What a capture does in the pause: the files as of this instant. */
static int copy_upper(void *ctx)
{
	struct scene *s = ctx;
	char command[1024];

	snprintf(command, sizeof(command), "cd %s && rm -rf frozen && cp -a upper frozen",
		 s->f.state_dir);
	return system(command) == 0 ? 0 : -EIO;
}

static int try_restore(struct scene *s, int index, int (*ready)(void *))
{
	struct criu_restore restore = {
		.criu = s->criu, .images_dir = s->images[index], .ready = ready, .ctx = s
	};
	struct criu_restored restored;
	int r = criu_run_restore(s->f.k, &restore, &restored, s->reason);

	if (r < 0)
		print_message("restore: %s: %s\n", strerror(-r), s->reason);
	else
		assert_int_equal(restored.pid, KEEPER_FIRST_PID);
	return r;
}

/* A new keeper, over the files of the frozen instant. */
static void move(struct scene *s)
{
	char command[1024];

	assert_int_equal(keeper_kill(s->f.k), 0);
	snprintf(command, sizeof(command), "cd %s && rm -rf upper && mv frozen upper",
		 s->f.state_dir);
	assert_int_equal(system(command), 0);
	fixture_move(&s->f);
}

/* Every number once and in order, and the digest of a run that nobody disturbed. */
static void check_count(const struct fixture *f, const char *last)
{
	char *text = fixture_output(f), *save = NULL;
	int expected = 1;

	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (!strncmp(line, "end ", 4)) {
			assert_string_equal(line, last);
			expected = -1;
			continue;
		}
		if (atoi(line) != expected)
			print_message("line: '%s'\n", line);
		assert_int_equal(atoi(line), expected);
		expected++;
	}
	assert_int_equal(expected, -1);
	free(text);
}

/* The last line of the same program, run here and undisturbed; once is enough for all tests. */
static const char *reference(void)
{
	static char last[64];
	char command[1024];

	if (last[0])
		return last;
	snprintf(command, sizeof(command), "%s | tail -n 1", count_script);
	FILE *f = popen(command, "re");

	assert_non_null(f);
	assert_non_null(fgets(last, sizeof(last), f));
	last[strcspn(last, "\n")] = '\0';
	pclose(f);
	return last;
}

/* The job's own pace, not the clock's: it must not end before the last dump on a fast machine. */
static void wait_more_lines(const struct fixture *f, int more)
{
	char *text = fixture_output(f);
	int lines = more;

	for (char *p = text; *p; p++)
		lines += *p == '\n';
	free(text);
	assert_true(fixture_wait_lines(f, lines, 10000));
}

static void count_and_move(struct scene *s, uid_t uid, const char *script, int exit_code)
{
	fixture_run_shell(&s->f, uid, script);
	wait_more_lines(&s->f, 20);
	assert_int_equal(try_dump(s, 0, uid, copy_upper, s), 0);
	wait_more_lines(&s->f, 20);
	assert_int_equal(try_dump(s, 1, uid, copy_upper, s), 0);
	/* What comes after the instant is lost, then done again. */
	wait_more_lines(&s->f, 20);
	move(s);
	assert_int_equal(try_restore(s, 1, NULL), 0);
	/* Once more, from the copy. */
	wait_more_lines(&s->f, 20);
	assert_int_equal(try_dump(s, 2, uid, copy_upper, s), 0);
	move(s);
	assert_int_equal(try_restore(s, 2, NULL), 0);
	int status = fixture_wait_exit(&s->f, 60000);

	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), exit_code);
	check_count(&s->f, reference());
}

static void test_root_job(void **state)
{
	char script[1024];

	snprintf(script, sizeof(script), "exec %s", count_script);
	count_and_move(started(state), 0, script, 9);
}

static void test_user_job(void **state)
{
	char script[1024];

	snprintf(script, sizeof(script), "exec %s", count_script);
	count_and_move(started(state), USER, script, 9);
}

static void test_pipeline(void **state)
{
	char script[1024];

	snprintf(script, sizeof(script), "%s | tee /var/tmp/decamp-test-tee; exit 5", count_script);
	count_and_move(started(state), USER, script, 5);
}

/* PIDs of later children do not fall into the helpers' range. */
static void test_later_children(void **state)
{
	struct scene *s = started(state);

	fixture_run_shell(&s->f, USER, "while :; do sh -c 'echo $$'; sleep 0.05; done");
	assert_true(fixture_wait_lines(&s->f, 5, 5000));
	assert_int_equal(try_dump(s, 0, USER, copy_upper, s), 0);
	move(s);
	assert_int_equal(try_restore(s, 0, NULL), 0);
	wait_more_lines(&s->f, 5);
	char *text = fixture_output(&s->f), *save = NULL;

	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		assert_true(atoi(line) > KEEPER_FIRST_PID);
	free(text);
}

/* xz writes as soon as its threads have done a block. */
static void wait_content(const struct fixture *f, const char *path)
{
	char in_layer[PATH_MAX];
	struct stat st = { 0 };

	fixture_path(f, path, in_layer);
	for (int i = 0; i < 3000 && (stat(in_layer, &st) < 0 || st.st_size == 0); i++)
		sleep_ms(10);
	assert_true(st.st_size > 0);
}

/* CRIU writes an image for each thread. */
static size_t count_cores(const char *images)
{
	char pattern[PATH_MAX];
	glob_t found;
	size_t count;

	snprintf(pattern, sizeof(pattern), "%s/core-*.img", images);
	assert_int_equal(glob(pattern, 0, NULL, &found), 0);
	count = found.gl_pathc;
	globfree(&found);
	return count;
}

static void test_threads(void **state)
{
	struct scene *s = started(state);

	fixture_run_shell(&s->f, USER,
			  "seq 1 4000000 | xz -T2 -3 --block-size=1MiB >/var/tmp/decamp-test-xz; "
			  "xz -dc /var/tmp/decamp-test-xz | sha256sum");
	wait_content(&s->f, "/var/tmp/decamp-test-xz");
	assert_int_equal(try_dump(s, 0, USER, copy_upper, s), 0);
	/* The shell, xz and its two threads; seq may be done. */
	assert_true(count_cores(s->images[0]) >= 4);
	move(s);
	assert_int_equal(try_restore(s, 0, NULL), 0);
	assert_int_equal(fixture_wait_exit(&s->f, 120000), 0);
	char *text = fixture_output(&s->f), expected[128];
	FILE *f = popen("seq 1 4000000 | sha256sum", "re");

	assert_non_null(f);
	assert_non_null(fgets(expected, sizeof(expected), f));
	pclose(f);
	assert_string_equal(text, expected);
	free(text);
}

/* System V objects belong to the job's IPC namespace and go along with it. */
static void test_ipc(void **state)
{
	struct scene *s = started(state);
	uid_t users[] = { USER, 0 };

	fixture_run_shell(&s->f, USER,
			  "ipcmk -M 5000 >/dev/null; while :; do ipcs -m | grep -c ' 5000 '; "
			  "sleep 0.05; done");
	for (int i = 0; i < 2; i++) {
		assert_true(fixture_wait_lines(&s->f, 5 + 10 * i, 5000));
		/* The second one as root, where the host allows that. */
		if (try_dump(s, i, users[i], copy_upper, s) < 0 && users[i] == 0)
			break;
		move(s);
		assert_int_equal(try_restore(s, i, NULL), 0);
	}
	wait_more_lines(&s->f, 5);
	char *text = fixture_output(&s->f);

	assert_null(strchr(text, '0'));
	assert_true(strlen(text) > 20);
	free(text);
}

static uint32_t kernel_need(const struct scene *s, int index)
{
	_cleanup_close_ int fd = open(s->images[index], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	uint32_t need;

	assert_true(fd >= 0);
	assert_int_equal(capture_kernel_need(fd, &need), 0);
	return need;
}

/* What older kernels have not, in images of CRIU's, comes back where it is. */
static void test_newer_kernel(void **state)
{
	static const char script[] =
		"exec python3 -uc 'import ctypes as c, time\n"
		"libc = c.CDLL(None); libc.mmap.restype = c.c_void_p\n"
		"libc.memfd_create(b\"sealed\", 8) < 0 and libc.memfd_create(b\"plain\", 0)\n"
		"libc.madvise(c.c_void_p(libc.mmap(None, 65536, 3, 34, -1, 0)), 4096, 102)\n"
		"while True: print(1); time.sleep(0.05)'";
	struct scene *s = started(state);

	fixture_run_shell(&s->f, 0, script);
	assert_true(fixture_wait_lines(&s->f, 5, 20000));
	assert_int_equal(try_dump(s, 0, 0, copy_upper, s), 0);
	assert_int_equal(kernel_need(s, 0), (probe_exec_seal() ? KERNEL_EXEC_SEAL : 0) |
						    (probe_guards() ? KERNEL_GUARDS : 0));
	move(s);
	assert_int_equal(try_restore(s, 0, NULL), 0);
	wait_more_lines(&s->f, 5);
}

static int refuse(void *ctx)
{
	(void)ctx;
	return -ECANCELED;
}

static void test_called_off(void **state)
{
	struct scene *s = started(state);
	char script[1024];
	struct keeper_status status;

	snprintf(script, sizeof(script), "exec %s", count_script);
	fixture_run_shell(&s->f, USER, script);
	assert_true(fixture_wait_lines(&s->f, 20, 10000));
	assert_int_equal(try_dump(s, 0, USER, refuse, NULL), -ECANCELED);
	assert_int_equal(try_dump(s, 1, USER, copy_upper, s), 0);
	assert_int_equal(fixture_wait_exit(&s->f, 60000), 9 << 8);
	check_count(&s->f, reference());
	/* Nothing runs if the lease is lost just before. */
	move(s);
	long before = fixture_output_size(&s->f);

	assert_int_equal(try_restore(s, 1, refuse), -ECANCELED);
	sleep_ms(300);
	assert_int_equal(fixture_output_size(&s->f), before);
	assert_int_equal(keeper_status(s->f.k, &status), 0);
	assert_false(status.running);
	assert_int_equal(keeper_kill(s->f.k), 0);
	assert_int_equal(keeper_quit(s->f.k), 0);
}

static void test_no_images(void **state)
{
	struct scene *s = started(state);

	assert_int_equal(try_restore(s, 0, NULL), -EIO);
	assert_true(s->reason[0] != '\0');
	strcpy(s->images[1], "/no/such/folder");
	assert_int_equal(try_restore(s, 1, NULL), -ENOENT);
	strcpy(s->criu, "/no/such/criu");
	assert_int_equal(try_restore(s, 0, NULL), -ENOENT);
}

/* In the host's view: by its arguments, as it has the name of its loader; of our keeper. */
static void kill_criu_of(pid_t keeper_pid)
{
	char command[128];

	snprintf(command, sizeof(command), "pkill -KILL -P %d -f 'swrk 3$'", keeper_pid);
	(void)!system(command);
}

/*
 * Mostly the job goes on with the right result. A kill in the very moment when CRIU's code runs in
 * place of the job's may end it by a signal; then the keeper says that this was not its own end.
 */
static void test_criu_killed(void **state)
{
	struct scene *s = started(state);
	char script[1024];
	struct keeper_status status;
	int failed = 0;

	snprintf(script, sizeof(script), "exec %s", count_script);
	fixture_run_shell(&s->f, USER, script);
	assert_true(fixture_wait_lines(&s->f, 10, 10000));
	assert_int_equal(keeper_status(s->f.k, &status), 0);
	for (int i = 0; i < KILLS; i++) {
		char command[256];
		pid_t killer = fork();

		assert_true(killer >= 0);
		if (killer == 0) {
			usleep((useconds_t)(2000 + 1200 * i));
			kill_criu_of(status.keeper_pid);
			_exit(0);
		}
		int r = try_dump(s, 0, USER, NULL, NULL);

		waitpid(killer, NULL, 0);
		/* The job is gone: nothing left to kill at. */
		if (r == -ESRCH)
			break;
		failed += r < 0;
		snprintf(command, sizeof(command), "rm -rf %s/*", s->images[0]);
		assert_int_equal(system(command), 0);
	}
	print_message("killed in time: %d of %d\n", failed, KILLS);
	int wstatus = fixture_wait_exit(&s->f, 60000);

	assert_int_equal(keeper_status(s->f.k, &status), 0);
	if (WIFSIGNALED(wstatus)) {
		assert_true(status.exit_suspect);
		print_message("taken along by criu: signal %d\n", WTERMSIG(wstatus));
		return;
	}
	assert_int_equal(wstatus, 9 << 8);
	check_count(&s->f, reference());
}

static void test_stats_text(void **state)
{
	static const uint8_t good[] = { 0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57, 8,    0,
					0,    0,    0x0a, 6,	0x08, 5,    0x10, 7,	0x38, 9 };
	struct criu_times times = { 0 };

	(void)state;
	assert_int_equal(criu_parse_stats(good, sizeof(good), &times), 0);
	assert_int_equal(times.freezing_us, 5);
	assert_int_equal(times.frozen_us, 7);
	assert_int_equal(times.pages_written, 9);
	for (size_t size = 0; size < sizeof(good); size++)
		assert_int_equal(criu_parse_stats(good, size, &times), -EBADMSG);
}

static void test_reason_text(void **state)
{
	static const struct {
		const char *log, *reason;
	} rows[] = {
		{ "", "" },
		{ "(00.1) Warn  (a.c:1): w\n", "" },
		{ "(00.1) Error (a.c:1): one\n(00.2) Error (b.c:2): Dumping FAILED.\n", "one" },
		{ "(00.1) Error (a.c:1): one\n(00.2) Error (b.c:2): two\n", "one; two" },
		{ "Error (a.c:1): rlimit: Can't setup RLIMIT_NOFILE for self: no\nError (b.c:1): x\n",
		  "x" },
		{ "Error (criu/tun.c:85): tun: Unable to create tun: No such file\nError (b.c:1): x\n",
		  "x" },
		{ "(00.1) Error (a.c:1): t\x01\tx", "t  x" },
	};
	char reason[CRIU_REASON_MAX];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		criu_parse_reason(rows[i].log, reason);
		assert_string_equal(reason, rows[i].reason);
	}
}

static char seen[256];

static void see(const char *text)
{
	strcat(strcat(seen, text), "|");
}

static void test_last_lines(void **state)
{
	static const struct {
		const char *log;
		size_t max;
		const char *seen;
	} rows[] = {
		{ "", 2, "" },
		{ "a\n", 2, "a|" },
		{ "a", 2, "a|" },
		{ "a\nb\n", 2, "a|b|" },
		{ "a\nb\nc\n", 2, "b|c|" },
		{ "a\nb\nc", 2, "b|c|" },
		{ "a\n\n\nc\n", 3, "||c|" },
		{ "\x1b[1m\xff", 9, " [1m|" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		seen[0] = '\0';
		criu_last_lines(rows[i].log, rows[i].max, see);
		assert_string_equal(seen, rows[i].seen);
	}
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stats_text),
		cmocka_unit_test(test_reason_text),
		cmocka_unit_test(test_last_lines),
		CASE(test_root_job),
		CASE(test_user_job),
		CASE(test_pipeline),
		CASE(test_later_children),
		CASE(test_threads),
		CASE(test_ipc),
		CASE(test_newer_kernel),
		CASE(test_called_off),
		CASE(test_no_images),
		CASE(test_criu_killed),
	};

	alarm(500);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
