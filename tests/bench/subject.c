// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "agent/capture/capture.h"
#include "agent/native/take.h"
#include "agent/util/io.h"
#include "tests/unit/keeper_fixture.h"

extern char **environ;

struct subject {
	struct fixture f;
	struct bench_load load;
	const char *criu;
	char native[PATH_MAX];
	char spool[64];
	pid_t pid;
	bool direct;
	struct capture *capture;
	struct taker *taker;
	uint64_t base; /* direct */
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

void subject_status(const struct subject *s, struct load_status *ret_status)
{
	struct iovec local = { ret_status, sizeof(*ret_status) };
	struct iovec remote = { (void *)LOAD_STATUS, sizeof(*ret_status) };

	if (process_vm_readv(s->pid, &local, 1, &remote, 1, 0) != sizeof(*ret_status))
		memset(ret_status, 0, sizeof(*ret_status));
}

static void start_job(struct subject *s, const char *const argv[])
{
	struct keeper_status status = { 0 };
	const char *missing = fixture_missing();

	if (missing) {
		printf("SKIP: %s\n", missing);
		exit(77);
	}
	fixture_init(&s->f);
	assert_int_equal(keeper_start(&s->f.config, &s->f.k), 0);
	fixture_run(&s->f, 0, argv);
	assert_int_equal(keeper_status(s->f.k, &status), 0);
	s->pid = status.main_pid;
}

static void start_child(struct subject *s, const char *const argv[])
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
	posix_spawn_file_actions_adddup2(&actions, 0, 1);
	posix_spawn_file_actions_adddup2(&actions, 0, 2);
	posix_spawn_file_actions_addclosefrom_np(&actions, 3);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID);
	if (posix_spawn(&s->pid, argv[0], &actions, &attr, (char *const *)argv, environ)) {
		perror(argv[0]);
		exit(1);
	}
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&actions);
}

static void begin_capture(struct subject *s)
{
	struct capture_config config = { .state_dir = s->f.state_dir,
					 .cgroup_dir = s->f.config.cgroup_dir,
					 .cwd = "/var/tmp",
					 .closure_max_bytes = 256 << 20 };
	struct take_config direct = { .root = s->pid };
	char reason[NATIVE_REASON_MAX];

	if (!s->direct) {
		assert_int_equal(capture_create(&config, &s->capture), 0);
	} else if (take_create(&direct, &s->taker, reason) < 0) {
		printf("SKIP: %s\n", reason);
		subject_stop(s);
		exit(77);
	}
	s->base = 0;
}

static void wait_ready(const struct subject *s)
{
	struct load_status *status = calloc(1, sizeof(*status));

	assert_non_null(status);
	for (int i = 0; i < 60000 && !status->ready; i++) {
		subject_status(s, status);
		usleep(1000);
	}
	assert_true(status->ready);
	free(status);
	usleep(100000);
}

static void find_native(struct subject *s)
{
	char *slash;
	ssize_t n = readlink("/proc/self/exe", s->native, sizeof(s->native) - 32);

	assert_true(n > 0);
	s->native[n] = '\0';
	slash = strrchr(s->native, '/');
	strcpy(slash, "/../decamp-capture");
}

/* A failed assertion ends the program: no job and no namespace may stay behind. */
static struct subject *current;
static bool registered;

static void stop_current(void)
{
	if (current)
		subject_stop(current);
}

struct subject *subject_start(const struct bench_load *load, const char *binary, const char *criu,
			      bool direct)
{
	struct subject *s = calloc(1, sizeof(*s));
	char numbers[5][16];
	const char *const argv[] = { binary,
				     numbers[0],
				     numbers[1],
				     numbers[2],
				     numbers[3],
				     numbers[4],
				     load->thp ? "thp" : "4k",
				     s->spool,
				     NULL };
	const char *const in_job[] = { binary,
				       numbers[0],
				       numbers[1],
				       numbers[2],
				       numbers[3],
				       numbers[4],
				       load->thp ? "thp" : "4k",
				       "/var/tmp",
				       NULL };

	assert_non_null(s);
	s->load = *load;
	s->criu = criu;
	s->direct = direct;
	if (!registered)
		registered = atexit(stop_current) == 0;
	current = s;
	find_native(s);
	/* Images on tmpfs, whatever engine: the disk is not what is measured. */
	strcpy(s->spool, "/dev/shm/decamp-bench-XXXXXX");
	assert_non_null(mkdtemp(s->spool));
	snprintf(numbers[0], sizeof(numbers[0]), "%u", load->mib);
	snprintf(numbers[1], sizeof(numbers[1]), "%u", load->threads);
	snprintf(numbers[2], sizeof(numbers[2]), "%u", load->active);
	snprintf(numbers[3], sizeof(numbers[3]), "%u", load->processes);
	snprintf(numbers[4], sizeof(numbers[4]), "%u", load->rate);
	if (direct)
		start_child(s, argv);
	else
		start_job(s, in_job);
	wait_ready(s);
	begin_capture(s);
	return s;
}

/* A tmpfs page that was never used has to be found and cleared first: no part of any engine. */
static void touch_spool(const struct subject *s)
{
	size_t bytes = ((size_t)s->load.mib << 20) * 11 / 10;
	_cleanup_close_ int fd = -1;
	_cleanup_free_ char *chunk = calloc(1, 1 << 20);
	char path[96];

	snprintf(path, sizeof(path), "%s/touch", s->spool);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	for (size_t done = 0; fd >= 0 && chunk && done < bytes; done += 1 << 20) {
		if (write(fd, chunk, 1 << 20) != 1 << 20)
			break;
	}
	unlink(path);
}

static uint64_t longest_gap(const struct subject *s, uint64_t from_ns, uint64_t to_ns)
{
	struct load_status *status = malloc(sizeof(*status));
	uint64_t longest = 0, first;

	assert_non_null(status);
	usleep(5000);
	subject_status(s, status);
	first = status->gap_count > LOAD_GAPS ? status->gap_count - LOAD_GAPS : 0;
	for (uint64_t i = first; i < status->gap_count; i++) {
		const struct load_gap *g = &status->gaps[i % LOAD_GAPS];

		if (g->end_ns > from_ns && g->end_ns - g->length_ns < to_ns &&
		    g->length_ns > longest)
			longest = g->length_ns;
	}
	free(status);
	return longest / 1000;
}

static bool take_job(struct subject *s, enum engine engine, struct sample *ret)
{
	struct capture_request request = { .keeper = s->f.k,
					   .criu = s->criu,
					   .native = s->native,
					   .engine = engine == ENGINE_CRIU ? CAPTURE_CRIU :
									     CAPTURE_NATIVE,
					   .spool_dir = s->spool };
	char reason[CAPTURE_REASON_MAX];
	const struct snapshot_info *info;
	struct snapshot *snapshot = NULL;

	if (capture_take(s->capture, &request, &snapshot, reason) < 0) {
		printf("a checkpoint failed: %s\n", reason);
		return false;
	}
	info = snapshot_info(snapshot);
	ret->pause_us = info->pause_us;
	ret->walk_us = info->files_us;
	ret->native = info->native;
	snprintf(ret->fallback, sizeof(ret->fallback), "%s", info->fallback);
	snapshot_accept(s->capture, snapshot);
	snapshot_destroy(snapshot);
	return true;
}

static bool take_direct(struct subject *s, struct sample *ret)
{
	_cleanup_close_ int images = -1;
	struct take_order order = { .base = s->base };
	char reason[NATIVE_REASON_MAX], path[96];
	int r;

	snprintf(path, sizeof(path), "%s/images", s->spool);
	mkdir(path, 0700);
	images = order.images = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = take_snapshot(s->taker, &order, &ret->native, reason);
	if (r < 0)
		printf("a checkpoint failed: %s: %s\n", strerror(-r), reason);
	(void)!remove_tree_at(AT_FDCWD, path);
	s->base = r < 0 ? 0 : ret->native.id;
	ret->pause_us = ret->native.pause_us;
	return r == 0;
}

bool subject_take(struct subject *s, enum engine engine, struct sample *ret_sample)
{
	uint64_t begin;
	bool good;

	*ret_sample = (struct sample){ 0 };
	if (engine == ENGINE_CRIU)
		touch_spool(s);
	begin = now_ns();
	good = s->direct ? take_direct(s, ret_sample) : take_job(s, engine, ret_sample);
	ret_sample->wall_us = (now_ns() - begin) / 1000;
	ret_sample->felt_us = longest_gap(s, begin, begin + ret_sample->wall_us * 1000);
	return good;
}

uint64_t subject_release(struct subject *s)
{
	uint64_t begin = now_ns();

	capture_destroy(s->capture);
	take_destroy(s->taker);
	s->capture = NULL;
	s->taker = NULL;
	begin = (now_ns() - begin) / 1000;
	begin_capture(s);
	return begin;
}

void subject_stop(struct subject *s)
{
	current = NULL;
	capture_destroy(s->capture);
	take_destroy(s->taker);
	if (s->direct && s->pid > 0) {
		kill(s->pid, SIGKILL);
		waitpid(s->pid, NULL, 0);
	} else if (s->f.base[0]) {
		fixture_deinit(&s->f);
	}
	(void)!remove_tree_at(AT_FDCWD, s->spool);
	free(s);
}
