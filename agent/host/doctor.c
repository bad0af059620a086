// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <systemd/sd-bus.h>

#include "agent/host/probe.h"
#include "agent/util/deadlines.h"
#include "agent/util/io.h"
#include "agent/util/kmod.h"
#include "overlay/types.h"

extern char **environ;

enum { PROGRAM_MS_MAX = 3000, BUS_MS_MAX = 500, REAP_MS = 1000, OUTPUT_BYTES = 2048 };

struct doctor {
	const struct host_config *config;
	struct json_object *features, *warnings;
	bool ok;
	char cgroup[1024]; /* empty: none */
	char criu[512];
};

static void _printf_(2, 3) warn(struct doctor *d, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	json_object_array_add(d->warnings, json_object_new_string(text));
}

static void feature(struct doctor *d, const char *name, bool have, const char *use, const char *why)
{
	struct json_object *o = json_object_new_object();

	if (!o)
		return;
	json_object_object_add(o, "name", json_object_new_string(name));
	json_object_object_add(o, "have", json_object_new_boolean(have));
	json_object_object_add(o, "use", json_object_new_string(use));
	json_object_object_add(o, "why", json_object_new_string(why));
	json_object_array_add(d->features, o);
}

/* Something without which decamp cannot do its work here. */
static void required(struct doctor *d, const char *name, bool have, const char *use,
		     const char *why, const char *remedy)
{
	feature(d, name, have, have ? use : "nothing: jobs cannot run here", why);
	if (have)
		return;
	d->ok = false;
	warn(d, "%s is missing: %s", name, remedy);
}

int host_criu_path(const struct host_config *config, char *path, size_t size)
{
	const char *folders = getenv("PATH");
	char candidate[512];

	if (config->criu_path[0]) {
		if (access(config->criu_path, X_OK) < 0)
			return -errno;
		if (strlen(config->criu_path) >= size)
			return -ENAMETOOLONG;
		strcpy(path, config->criu_path);
		return 0;
	}
	if (!folders)
		folders = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";
	while (*folders) {
		size_t len = strcspn(folders, ":");
		int n = snprintf(candidate, sizeof(candidate), "%.*s/criu", (int)len, folders);

		if (folders[0] == '/' && (size_t)n < sizeof(candidate) && (size_t)n < size &&
		    access(candidate, X_OK) == 0) {
			strcpy(path, candidate);
			return 0;
		}
		folders += len + (folders[len] == ':');
	}
	return -ENOENT;
}

/* Reads until the end or the deadline; the rest is thrown away. */
static void read_output(int fd, char output[OUTPUT_BYTES])
{
	uint64_t end_ns = now_boot_ns() + PROGRAM_MS_MAX * UINT64_C(1000000);
	size_t used = 0;

	for (;;) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		uint64_t now = now_boot_ns();
		char spill[512];
		ssize_t n;

		if (now >= end_ns || poll(&pfd, 1, (int)((end_ns - now) / 1000000) + 1) <= 0)
			break;
		n = read(fd, spill, sizeof(spill));
		if (n <= 0)
			break;
		if ((size_t)n > OUTPUT_BYTES - 1 - used)
			n = (ssize_t)(OUTPUT_BYTES - 1 - used);
		memcpy(output + used, spill, (size_t)n);
		used += (size_t)n;
	}
	output[used] = '\0';
}

/* Ends the program if it is not done; returns its wait(2) status. */
static int reap(pid_t pid)
{
	int status = -1;

	for (int i = 0; i < REAP_MS; i++) {
		pid_t done = waitpid(pid, &status, WNOHANG);

		if (done == pid)
			return status;
		if (done < 0 && errno != EINTR)
			return -1;
		usleep(1000);
	}
	kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

/* Returns the wait(2) status, or -1 if it could not be run. */
static int run_program(const char *path, const char *argument, char output[OUTPUT_BYTES])
{
	char *const argv[] = { (char *)path, (char *)argument, NULL };
	posix_spawn_file_actions_t actions;
	int fds[2], r;
	pid_t pid;

	output[0] = '\0';
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -1;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, fds[1], 1);
	posix_spawn_file_actions_adddup2(&actions, fds[1], 2);
	r = posix_spawn(&pid, path, &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close(fds[1]);
	if (r == 0)
		read_output(fds[0], output);
	close(fds[0]);
	return r == 0 ? reap(pid) : -1;
}

static void first_line(char *text)
{
	text[strcspn(text, "\n")] = '\0';
}

static void examine_criu(struct doctor *d)
{
	static const char why[] = "freezes, dumps and restores processes";
	char output[OUTPUT_BYTES], use[640], version[32] = "?";
	const char *found;
	int status;

	if (host_criu_path(d->config, d->criu, sizeof(d->criu)) < 0) {
		required(d, "criu", false, "", why, "install CRIU 4.2 or set criu_path");
		return;
	}
	run_program(d->criu, "--version", output);
	found = strstr(output, "Version: ");
	if (found)
		sscanf(found, "Version: %31s", version);
	status = run_program(d->criu, "check", output);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
		/* By us, most likely: it takes a second of a CPU, and a busy machine has less. */
		warn(d,
		     "%.300s (version %s) did not end its own check in %d s: unknown if it works",
		     d->criu, version, PROGRAM_MS_MAX / 1000);
		status = 0;
	}
	if (status != 0) {
		char *reason = strstr(output, "Error") ? strstr(output, "Error") : output;

		first_line(reason);
		snprintf(use, sizeof(use), "%.300s (version %s) fails its own check: %.200s",
			 d->criu, version, reason);
		required(d, "criu", false, "", why, use);
		return;
	}
	snprintf(use, sizeof(use), "%.500s, version %s", d->criu, version);
	required(d, "criu", true, use, why, "");
}

static void examine_cgroup(struct doctor *d)
{
	static const char why[] = "holds a job together and stops all of it at once";
	int r = host_cgroup_base(d->cgroup, sizeof(d->cgroup));
	bool freezes = r == 0 && probe_cgroup_freeze(d->cgroup);

	feature(d, "cgroup v2", r == 0, r == 0 ? d->cgroup : "process groups and SIGSTOP", why);
	feature(d, "cgroup freezer", freezes, freezes ? "cgroup.freeze" : "SIGSTOP",
		"a job whose lease ran out must stop, whatever it does");
	if (!freezes)
		warn(d,
		     "no cgroup v2 freezer (%s): SIGSTOP can be undone by others, so a job could "
		     "run past its lease; use fence=commit here. And if decamp-capture is killed "
		     "in a pause, a call of the job may return EINTR",
		     r < 0 ? strerror(-r) : "cgroup.freeze does not work");
}

/* The nearest existing folder above a path that may not be there yet. */
static bool existing_parent(const char *path, char *found, size_t size)
{
	struct stat st;

	snprintf(found, size, "%s", path);
	while (stat(found, &st) < 0) {
		char *slash = strrchr(found, '/');

		if (!slash || slash == found)
			return false;
		*slash = '\0';
	}
	return S_ISDIR(st.st_mode);
}

static bool fs_magic(const char *path, unsigned long *ret_magic)
{
	char folder[256];
	struct statfs fs;

	if (!existing_parent(path, folder, sizeof(folder)) || statfs(folder, &fs) < 0)
		return false;
	*ret_magic = (unsigned long)fs.f_type & 0xffffffffUL;
	return true;
}

/* An overlay over the root works, and the root is none itself. */
static bool root_takes_overlay(const char *folder)
{
	unsigned long magic;

	return probe_overlay(folder, "/") &&
	       (!fs_magic("/", &magic) || magic != OVERLAYFS_SUPER_MAGIC);
}

uint32_t host_kernel_features(const struct host_config *config)
{
	char folder[256], cgroup[1024];
	uint32_t features = 0;

	if (!existing_parent(config->state_dir, folder, sizeof(folder)))
		snprintf(folder, sizeof(folder), "/");
	if (probe_namespaces())
		features |= KERNEL_NAMESPACES;
	if (root_takes_overlay(folder))
		features |= KERNEL_OVERLAY;
	if (host_cgroup_base(cgroup, sizeof(cgroup)) == 0 && probe_cgroup_freeze(cgroup))
		features |= KERNEL_FREEZER;
	if (probe_rseq())
		features |= KERNEL_RSEQ;
	if (probe_guards())
		features |= KERNEL_GUARDS;
	if (probe_exec_seal())
		features |= KERNEL_EXEC_SEAL;
	if (probe_rseq_long())
		features |= KERNEL_RSEQ_LONG;
	if (probe_shadow_stack())
		features |= KERNEL_SHADOW_STACK;
	if (probe_high_pids())
		features |= KERNEL_PIDS;
	return features;
}

static void examine_files(struct doctor *d)
{
	const char *state = d->config->state_dir, *run = d->config->run_dir;
	unsigned long magic = 0;
	bool on_disk, on_tmpfs;
	char folder[256], run_use[320];

	on_disk = fs_magic(state, &magic) && magic != TMPFS_MAGIC && magic != RAMFS_MAGIC &&
		  magic != OVERLAYFS_SUPER_MAGIC && magic != NFS_SUPER_MAGIC;
	required(d, "state on a disk", on_disk, state,
		 "job files and other hosts' packs must outlive a reboot; an overlay's upper "
		 "layer needs a real file system",
		 "set state_dir to a folder on ext4, xfs or btrfs");
	on_tmpfs = fs_magic(run, &magic) && magic == TMPFS_MAGIC;
	snprintf(run_use, sizeof(run_use), on_tmpfs ? "%s" : "%s, on disk", run);
	feature(d, "run on tmpfs", on_tmpfs, run_use,
		"CRIU keeps its probe results in /run (saves 30 ms per checkpoint), images stay "
		"in memory");
	if (!existing_parent(state, folder, sizeof(folder)))
		snprintf(folder, sizeof(folder), "/");
	required(d, "overlayfs", probe_overlay(folder, folder),
		 "an overlay over the host's files for each job",
		 "a job's files are captured and rolled back together with its memory",
		 "load the overlay module (modprobe overlay)");
	required(d, "overlay over the root", probe_overlay(folder, "/"),
		 "the root file system is a job's lower layer",
		 "an overlay may be nested in one other at most",
		 "the root is nested in too many overlays: run decampd outside of the container");
	required(
		d, "root is no overlay", !fs_magic("/", &magic) || magic != OVERLAYFS_SUPER_MAGIC,
		"jobs' mapped files are found through one overlay",
		"of a file mapped through two overlays the kernel names a hidden mount, which CRIU "
		"cannot dump",
		"run decampd on the machine itself, not in a container whose root is an overlay");
}

static void examine_capabilities(struct doctor *d)
{
	bool admin = probe_capability(CAP_SYS_ADMIN) && probe_capability(CAP_SYS_PTRACE);
	bool resource = host_has_sys_resource();
	bool restore = probe_capability(CAP_CHECKPOINT_RESTORE) || admin;

	required(d, "namespaces", probe_namespaces(), "fresh PID, mount, IPC and UTS namespaces",
		 "a restored process needs its old PIDs and paths", "decampd must run as root");
	required(d, "CAP_SYS_ADMIN, CAP_SYS_PTRACE", admin, "yes", "reading and stopping processes",
		 "decampd must run as root");
	feature(d, "CAP_SYS_RESOURCE", resource,
		resource ? "CRIU runs as root" : "CRIU dumps as the job's user",
		"reading and restoring the resource limits of other users' processes");
	if (!resource)
		warn(d, "CAP_SYS_RESOURCE is missing: hard resource limits above decampd's own "
			"are lowered when a job is restored here");
	feature(d, "rseq", probe_rseq(), probe_rseq() ? "yes" : "jobs that use it go elsewhere",
		"a C library registers restartable sequences at its start, and for good");
	feature(d, "CAP_CHECKPOINT_RESTORE", restore, restore ? "yes" : "CAP_SYS_ADMIN",
		"choosing the PIDs of restored processes");
}

static void examine_tracking(struct doctor *d)
{
	bool async = probe_wp_async(), soft = probe_soft_dirty(), lazy = probe_lazy_memory(),
	     module = kmod_works();

	feature(d, "userfaultfd WP_ASYNC + PAGEMAP_SCAN", async,
		async ? "yes" :
		soft  ? "soft-dirty" :
			"comparison of all pages by content: the pause grows with memory",
		"finding the pages that changed without reading all memory");
	feature(d, "soft-dirty", soft,
		soft  ? "yes" :
		async ? "not needed: userfaultfd" :
			"comparison of all pages by content: the pause grows with memory",
		"the same, on kernels before 6.7");
	feature(d, "memory on demand", lazy,
		!lazy ? "a restored job waits for all of its memory" :
		!strcmp(d->config->lazy_restore, "off") ? "no: lazy_restore = off" :
							  "yes",
		"userfaultfd: a restored job runs before all of its memory is there");
	feature(d, "kernel module", module,
		module ? "stops jobs and makes the userfaultfds of their memory" :
		async  ? "one system call injected into each process when it is first followed; "
			 "stopped by ptrace" :
			 "jobs are stopped by ptrace",
		"stopping and following a job without a trace in it; ptrace where a thread has "
		"queued signals, a seccomp filter or an unusual call");
}

static void examine_native(struct doctor *d)
{
	static const char why[] = "stops a job for a millisecond instead of a second per GiB";
	char output[OUTPUT_BYTES], use[OUTPUT_BYTES + 64];
	bool have = false;

	if (!strcmp(d->config->engine, "criu")) {
		feature(d, "native engine", false, "criu: engine = criu in decampd.conf", why);
		return;
	}
	if (access(d->config->capture_path, X_OK) < 0)
		snprintf(output, sizeof(output), "%s: %s", d->config->capture_path,
			 strerror(errno));
	else
		have = run_program(d->config->capture_path, "probe", output) == 0;
	first_line(output);
	snprintf(use, sizeof(use), "criu: %s", output[0] ? output : "its program does not start");
	feature(d, "native engine", have, have ? "BPF iterators, ptrace" : use, why);
	if (!have)
		warn(d, "no native engine (%.300s): each checkpoint stops its job for longer",
		     output[0] ? output : "its program does not start");
}

static void examine_plugin(struct doctor *d)
{
	char path[PATH_MAX + sizeof(DEADLINES_PLUGIN)];
	bool have;

	deadlines_plugin_dir(d->config->keeper_path, path);
	strcat(path, "/" DEADLINES_PLUGIN);
	have = access(path, R_OK) == 0;
	feature(d, "plugin for CRIU", have,
		have ? "timed calls go on until their deadlines" :
		       "timed calls begin in full after a restore",
		"sleeps, poll and futex waits of jobs that the native engine captured");
}

static void examine_bpf(struct doctor *d)
{
	struct host_trace *trace = NULL;
	char reason[256] = "", use[320];
	int r = host_trace_start(NULL, &trace, reason);

	host_trace_stop(trace);
	snprintf(use, sizeof(use), r == 0 ? "fork and exit tracepoints" : "procfs: %.250s", reason);
	feature(d, "eBPF", r == 0, use,
		"the exit status of adopted processes, and orphans of a process tree");
}

static void examine_real_time(struct doctor *d)
{
	bool fifo = probe_sched_fifo(), locked = probe_mlock();

	feature(d, "SCHED_FIFO", fifo, fifo ? "yes" : "normal priority",
		"a busy machine must not delay a freeze");
	feature(d, "locked memory", locked, locked ? "yes" : "pageable memory",
		"the keeper that freezes a job must not wait for the disk");
	if (!fifo || !locked)
		warn(d, "no %s: freezes take longer on a busy machine; hold_ms must allow for it",
		     fifo ? "locked memory" : "real-time priority");
}

static bool have_logind(char *reason, size_t size)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	sd_bus_message *reply = NULL;
	sd_bus *bus = NULL;
	int r, owned = 0;

	r = sd_bus_open_system(&bus);
	if (r >= 0)
		r = sd_bus_set_method_call_timeout(bus, BUS_MS_MAX * UINT64_C(1000));
	if (r >= 0)
		r = sd_bus_call_method(bus, "org.freedesktop.DBus", "/org/freedesktop/DBus",
				       "org.freedesktop.DBus", "NameHasOwner", &error, &reply, "s",
				       "org.freedesktop.login1");
	if (r >= 0)
		r = sd_bus_message_read(reply, "b", &owned);
	snprintf(reason, size, "%s",
		 r < 0 ? "no system bus answers" : "the system bus has no logind");
	sd_bus_message_unref(reply);
	sd_bus_flush_close_unref(bus);
	return r >= 0 && owned;
}

static void examine_logins(struct doctor *d)
{
	char reason[64];
	bool have = have_logind(reason, sizeof(reason));

	feature(d, "logind", have, have ? "sessions on the system bus" : "nothing",
		"jobs leave when somebody sits down at this machine");
	if (!have && d->config->vacate_on_login)
		warn(d, "%s: logins are not noticed, jobs stay when the owner comes back", reason);
}

int host_doctor(const struct host_config *config, struct json_object **ret_report)
{
	struct doctor d = { .config = config, .ok = true };
	struct json_object *report = json_object_new_object();

	d.features = json_object_new_array();
	d.warnings = json_object_new_array();
	if (!report || !d.features || !d.warnings) {
		json_object_put(report);
		json_object_put(d.features);
		json_object_put(d.warnings);
		return -ENOMEM;
	}
	json_object_object_add(report, "features", d.features);
	json_object_object_add(report, "warnings", d.warnings);
	examine_criu(&d);
	examine_capabilities(&d);
	examine_cgroup(&d);
	examine_files(&d);
	examine_bpf(&d);
	examine_native(&d);
	examine_plugin(&d);
	examine_tracking(&d);
	examine_real_time(&d);
	examine_logins(&d);
	json_object_object_add(report, "ok", json_object_new_boolean(d.ok));
	*ret_report = report;
	return 0;
}
