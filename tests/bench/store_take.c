// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/native/take.h"
#include "agent/util/io.h"
#include "tests/bench/store.h"

extern char **environ;

static pid_t child;

static void end_child(void)
{
	if (child <= 0)
		return;
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	child = 0;
}

static void start_child(char *const *argv)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	int r;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
	posix_spawn_file_actions_adddup2(&actions, 0, 1);
	posix_spawn_file_actions_adddup2(&actions, 0, 2);
	posix_spawn_file_actions_addclosefrom_np(&actions, 3);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID);
	r = posix_spawnp(&child, argv[0], &actions, &attr, argv, environ);
	if (r)
		store_die(argv[0], -r);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&actions);
	atexit(end_child);
}

static int open_folder(const char *path)
{
	int fd;

	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		store_die(path, -errno);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		store_die(path, -errno);
	return fd;
}

/* DIR/K -> DIR/K.plain */
static void make_plain(const char *dir, unsigned int k)
{
	char command[2300], path[600], before[600];
	_cleanup_close_ int images = -1;
	_cleanup_close_ int base = -1;
	int r;

	snprintf(path, sizeof(path), "%s/%u.plain", dir, k);
	snprintf(before, sizeof(before), "%s/%u.plain", dir, k ? k - 1 : 0);
	snprintf(command, sizeof(command), "cp -a --reflink=auto '%s/%u' '%s'", dir, k, path);
	if (system(command) != 0)
		store_die(command, -EIO);
	images = open_folder(path);
	if (k)
		base = open_folder(before);
	r = mem_materialise(images, base);
	if (r < 0)
		store_die(path, r);
}

static void pass_ms(uint64_t ms)
{
	struct timespec ts = { (time_t)(ms / 1000), (long)(ms % 1000) * 1000000 };

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

void store_take(const char *dir, unsigned int count, unsigned int interval_ms,
		unsigned int warmup_ms, char *const *argv)
{
	struct take_config config = { 0 };
	char reason[NATIVE_REASON_MAX] = "";
	struct taker *taker = NULL;
	uint64_t base = 0;
	int r;

	start_child(argv);
	pass_ms(warmup_ms);
	config.root = child;
	r = take_create(&config, &taker, reason);
	if (r < 0)
		store_die(reason, r);
	for (unsigned int k = 0; k < count; k++) {
		uint64_t began = now_boot_ns(), passed_ms;
		struct native_result result = { 0 };
		struct take_order order = { .base = base, .shell_job = true };
		char path[600];

		snprintf(path, sizeof(path), "%s/%u", dir, k);
		order.images = open_folder(path);
		r = take_snapshot(taker, &order, &result, reason);
		if (r < 0)
			store_die(reason, r);
		close(order.images);
		base = result.id;
		printf("{\"step\": %u, \"mem_bytes\": %llu, \"new_bytes\": %llu, \"pause_us\": %llu}\n",
		       k, (unsigned long long)result.mem.mem_bytes,
		       (unsigned long long)result.mem.new_bytes,
		       (unsigned long long)result.pause_us);
		fflush(stdout);
		passed_ms = (now_boot_ns() - began) / 1000000;
		if (k + 1 < count && passed_ms < interval_ms)
			pass_ms(interval_ms - passed_ms);
		if (waitpid(child, NULL, WNOHANG) != 0) {
			child = 0;
			store_die("the program ended too early", -ECHILD);
		}
	}
	take_destroy(taker);
	end_child();
	for (unsigned int k = 0; k < count; k++)
		make_plain(dir, k);
}
