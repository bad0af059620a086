// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/oneshot.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/native/take.h"
#include "agent/util/io.h"

#define WORK_FOLDER ".native"

enum {
	OPT_TREE = 256,
	OPT_IMAGES,
	OPT_LEAVE_RUNNING,
	OPT_SHELL_JOB,
	OPT_LOG,
	OPT_TIMEOUT,
	OPT_NONE
};

struct oneshot {
	pid_t root;
	bool leave_running, shell_job, own_ipc_ns;
	int timeout_ms;
	const char *images_path, *log_name;
	int images, work; /* work: a folder below images until all is complete */
	char reason[NATIVE_REASON_MAX];
};

/*
 * Options of `criu dump` that ask for what native does anyway, or that only a restore acts upon.
 * One that is not listed here may change what an image means: then native is not the engine.
 */
static const struct option options[] = {
	{ "tree", required_argument, NULL, OPT_TREE },
	{ "images-dir", required_argument, NULL, OPT_IMAGES },
	{ "leave-running", no_argument, NULL, OPT_LEAVE_RUNNING },
	{ "shell-job", no_argument, NULL, OPT_SHELL_JOB },
	{ "log-file", required_argument, NULL, OPT_LOG },
	{ "timeout", required_argument, NULL, OPT_TIMEOUT },
	{ "no-default-config", no_argument, NULL, OPT_NONE },
	{ "verbosity", optional_argument, NULL, OPT_NONE },
	{ "pidfile", required_argument, NULL, OPT_NONE },
	{ "pre-dump-mode", required_argument, NULL, OPT_NONE },
	{ "root", required_argument, NULL, OPT_NONE },
	{ "file-locks", no_argument, NULL, OPT_NONE },
	{ "link-remap", no_argument, NULL, OPT_NONE },
	{ "ghost-limit", required_argument, NULL, OPT_NONE },
	{ "force-irmap", no_argument, NULL, OPT_NONE },
	{ "irmap-scan-path", required_argument, NULL, OPT_NONE },
	{ "file-validation", required_argument, NULL, OPT_NONE },
	{ NULL, 0, NULL, 0 },
};

static int parse(struct oneshot *o, int argc, char **argv)
{
	const char *argument;
	int c;

	opterr = 0;
	optind = 1;
	for (;;) {
		argument = argv[optind < argc ? optind : 0];
		c = getopt_long(argc, argv, "", options, NULL);
		switch (c) {
		case -1:
			return o->root > 0 && o->images_path ? 0 : -EINVAL;
		case OPT_TREE:
			o->root = (pid_t)strtol(optarg, NULL, 10);
			break;
		case OPT_IMAGES:
			o->images_path = optarg;
			break;
		case OPT_LEAVE_RUNNING:
			o->leave_running = true;
			break;
		case OPT_SHELL_JOB:
			o->shell_job = true;
			break;
		case OPT_LOG:
			o->log_name = optarg;
			break;
		case OPT_TIMEOUT:
			o->timeout_ms = (int)strtol(optarg, NULL, 10) * 1000;
			break;
		case OPT_NONE:
			break;
		default:
			snprintf(o->reason, sizeof(o->reason), "option %s is not native's",
				 argument);
			return -EOPNOTSUPP;
		}
	}
}

/*
 * An image without namespaces is restored into those of the restorer, which here are ours. (The
 * daemon's jobs are restored into those that their keeper made.) Only an IPC namespace is part of
 * an image.
 */
static int check_namespaces(struct oneshot *o)
{
	static const char *const kinds[] = { "pid", "mnt", "net", "uts", "ipc", "user", "cgroup" };
	char path[64], mine[64], theirs[64];
	ssize_t n;

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		snprintf(path, sizeof(path), "/proc/self/ns/%s", kinds[i]);
		n = readlink(path, mine, sizeof(mine) - 1);
		if (n < 0)
			continue;
		mine[n] = '\0';
		snprintf(path, sizeof(path), "/proc/%d/ns/%s", o->root, kinds[i]);
		n = readlink(path, theirs, sizeof(theirs) - 1);
		if (n < 0)
			return -errno;
		theirs[n] = '\0';
		if (strcmp(mine, theirs) == 0)
			continue;
		if (strcmp(kinds[i], "ipc") == 0) {
			o->own_ipc_ns = true;
			continue;
		}
		snprintf(o->reason, sizeof(o->reason), "process %d has its own %s namespace",
			 o->root, kinds[i]);
		return -EOPNOTSUPP;
	}
	return 0;
}

/* Calls fn for every file of a folder; its first error ends that. */
static int each_file(int folder, int (*fn)(int folder, const char *name, int argument),
		     int argument)
{
	int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
	_cleanup_closedir_ DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!dir) {
		r = -errno;
		if (fd >= 0)
			close(fd);
		return r;
	}
	while (r == 0 && (entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			r = fn(folder, entry->d_name, argument);
	return r;
}

static int move_up(int folder, const char *name, int images)
{
	return renameat(folder, name, images, name) < 0 ? -errno : 0;
}

static int make_plain(struct oneshot *o)
{
	int r = mem_materialise(o->work, -1);

	return r == 0 ? each_file(o->work, move_up, o->images) : r;
}

/* All is written. The tree still stands if it is to end: no instruction of it runs any more. */
static int finish(void *ctx, struct native_tree *tree)
{
	struct oneshot *o = ctx;
	int r = make_plain(o);

	if (r < 0)
		return native_fail(tree, r, "the images cannot be completed: %s", strerror(-r));
	for (size_t i = 0; !o->leave_running && i < tree->task_count; i++)
		if (!tree->tasks[i].zombie)
			kill(tree->tasks[i].pid, SIGKILL);
	return 0;
}

/* ---- frame ---- */

static int take(struct oneshot *o, struct native_result *ret_result)
{
	struct take_config config = { .root = o->root };
	struct take_order order = {
		.images = o->work,
		.shell_job = o->shell_job,
		.own_ipc_ns = o->own_ipc_ns,
		.hold = !o->leave_running,
		.deadline_ms = o->timeout_ms,
		.after = finish,
		.ctx = o,
	};
	struct taker *taker;
	int r = take_create(&config, &taker, o->reason);

	if (r < 0)
		return r;
	r = take_snapshot(taker, &order, ret_result, o->reason);
	take_destroy(taker);
	return r;
}

static int dump(struct oneshot *o, struct native_result *ret_result)
{
	int r = check_namespaces(o);

	if (r < 0)
		return r;
	if (mkdirat(o->images, WORK_FOLDER, 0700) < 0)
		return -errno;
	o->work = openat(o->images, WORK_FOLDER, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = o->work < 0 ? -errno : take(o, ret_result);
	if (o->work >= 0)
		close(o->work);
	if (remove_tree_at(o->images, WORK_FOLDER) < 0 && r == 0)
		r = -EIO;
	return r;
}

static void write_log(const struct oneshot *o, int r, const struct native_result *result)
{
	_cleanup_close_ int fd =
		openat(o->images, o->log_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0)
		return;
	if (r < 0)
		dprintf(fd, "Error (native): %s\n", o->reason);
	else
		dprintf(fd,
			"(native) pause %llu us: freeze %u (blocked %u queued %u) state %u regs %u files %u scan %u "
			"copy %u wait %u thaw %u; %u tasks, %u threads, %llu bytes by %s; "
			"stopped by %s%s%s\n",
			(unsigned long long)result->pause_us, result->freeze_us, result->blocked_us,
			result->queued_us, result->state_us, result->regs_us, result->files_us,
			result->scan_us, result->copy_us, result->wait_us, result->thaw_us,
			result->tasks, result->threads, (unsigned long long)result->mem.mem_bytes,
			result->mem.tracker, result->stopped_by,
			result->not_gentle[0] ? ", not by the module: " : "", result->not_gentle);
}

int oneshot_main(int argc, char **argv)
{
	struct oneshot o = { .log_name = "dump.log", .images = -1, .work = -1 };
	struct native_result result = { 0 };
	int r = parse(&o, argc, argv);

	if (r == -EINVAL) {
		fprintf(stderr, "usage: decamp-capture dump --tree PID --images-dir DIR "
				"[--leave-running] [--shell-job] [--log-file NAME]\n");
		return ONESHOT_USAGE;
	}
	if (o.images_path)
		o.images = open(o.images_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (r == 0)
		r = o.images < 0 ? -errno : dump(&o, &result);
	if (r < 0 && !o.reason[0])
		snprintf(o.reason, sizeof(o.reason), "%s: %s", o.images_path, strerror(-r));
	if (o.images >= 0) {
		write_log(&o, r, &result);
		close(o.images);
	}
	if (r < 0)
		fprintf(stderr, "%s\n", o.reason);
	return r == 0 ? ONESHOT_DONE : r == -EOPNOTSUPP ? ONESHOT_NOT_COVERED : ONESHOT_FAILED;
}
