// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * decampd: wiring and event loop, nothing else.
 *
 * Starts as root, forks the overlay half (which drops everything), then serves the control socket,
 * the overlay's events, logins and timers. It exits when either half ends: the service manager
 * starts both anew, and jobs run on under their keepers meanwhile.
 */
#define LOG_TAG "main"
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pwd.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>

#include "agent/job/folder.h"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/overlay.h"

enum { REPORT_PERIOD_US = 1000000, IPC_BUFFER_BYTES = 4 << 20, SLEPT_MIN_NS = 1000000000 };

static const char usage[] =
	"Usage: decampd [--config FILE] [--debug]\n"
	"Checkpoints jobs to other hosts and brings them back there when this one dies,\n"
	"is used by its owner, or is emptied. See decampd(8).\n\n"
	"  --config FILE   default /etc/decamp/decampd.conf\n"
	"  --debug         log more\n"
	"  --version       print the version\n\n"
	"Example: decampd --config ./decampd.conf --debug\n";

#ifndef DECAMP_VERSION
#define DECAMP_VERSION "0.1"
#endif

static int prepare_folders(const struct host_config *c, const struct passwd *user)
{
	static const char *const own[] = { "jobs", "home", "done", "folders" };
	char path[600];
	int r = mkdir_parents(c->state_dir, 0755);

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(own); i++) {
		snprintf(path, sizeof(path), "%s/%s", c->state_dir, own[i]);
		r = mkdir_parents(path, 0700);
	}
	if (r == 0)
		r = mkdir_parents(c->run_dir, 0755);
	snprintf(path, sizeof(path), "%s/jobs", c->run_dir);
	if (r == 0)
		r = mkdir_parents(path, 0700);
	snprintf(path, sizeof(path), "%s/overlay", c->state_dir);
	if (r == 0)
		r = mkdir_parents(path, 0700);
	if (r == 0 && (chown(path, user->pw_uid, user->pw_gid) < 0 || chmod(path, 0700) < 0))
		r = -errno;
	return r;
}

/* One decampd per run_dir. The lock goes with the process; keepers do not inherit it. */
static int take_lock(struct agent *a)
{
	char path[600];

	snprintf(path, sizeof(path), "%s/decampd.lock", a->config.run_dir);
	a->boot_lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (a->boot_lock_fd < 0)
		return -errno;
	return flock(a->boot_lock_fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
}

static int fork_overlay(struct agent *a, const struct passwd *user, pid_t *ret_pid)
{
	char state[600];
	struct overlay_config config = { .uid = user->pw_uid,
					 .gid = user->pw_gid,
					 .state_dir = state };
	int size = IPC_BUFFER_BYTES, pair[2];
	pid_t pid;

	snprintf(state, sizeof(state), "%s/overlay", a->config.state_dir);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	for (int i = 0; i < 2; i++)
		if (setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)) < 0)
			log_debug("socket buffer: %s", strerror(errno));
	pid = fork();
	if (pid < 0) {
		close(pair[0]);
		close(pair[1]);
		return -errno;
	}
	if (pid == 0) {
		close(pair[0]);
		close(a->boot_lock_fd);
		config.main_channel = pair[1];
		_exit(overlay_main(&config));
	}
	close(pair[1]);
	a->main_channel = pair[0];
	*ret_pid = pid;
	return 0;
}

static void raise_limits(struct agent *a)
{
	struct rlimit files, none = { 0 };

	for (int i = 0; i < RLIM_NLIMITS; i++)
		if (getrlimit((__rlimit_resource_t)i, &a->limits[i]) < 0)
			a->limits[i] = (struct rlimit){ RLIM_INFINITY, RLIM_INFINITY };
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &files) < 0)
			log_debug("RLIMIT_NOFILE: %s", strerror(errno));
	}
	/* Keys are in memory: no core file, no ptrace by lesser processes. */
	if (setrlimit(RLIMIT_CORE, &none) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0)
		log_warn("core files stay possible: %s", strerror(errno));
}

static int on_overlay(sd_event_source *source, int fd, uint32_t revents, void *ctx)
{
	struct agent *a = ctx;

	(void)source;
	(void)revents;
	for (;;) {
		_cleanup_close_ int passed = -1;
		struct ov_msg msg;
		ssize_t n = recv_with_fd(fd, &msg, sizeof(msg), &passed, 0);

		if (n == -EAGAIN)
			return 0;
		if (n != sizeof(msg)) {
			log_error("the overlay half is gone: decampd ends, jobs run on");
			return sd_event_exit(a->event, EXIT_FAILURE);
		}
		agent_overlay_event(a, &msg);
	}
}

static int on_overlay_exit(sd_event_source *source, const siginfo_t *info, void *ctx)
{
	struct agent *a = ctx;

	(void)source;
	log_error("the overlay half ended with status %d: decampd ends, jobs run on",
		  info->si_status);
	return sd_event_exit(a->event, EXIT_FAILURE);
}

/* How long this machine has slept so far: what BOOTTIME counts and MONOTONIC does not. */
static uint64_t slept_ns(void)
{
	struct timespec mono;
	uint64_t boot = now_boot_ns();

	clock_gettime(CLOCK_MONOTONIC, &mono);
	return boot - ((uint64_t)mono.tv_sec * 1000000000u + (uint64_t)mono.tv_nsec);
}

static int on_report(sd_event_source *source, uint64_t usec, void *ctx)
{
	struct agent *a = ctx;
	uint64_t now;
	int r;

	(void)usec;
	if (a->shutting_down && slept_ns() > a->slept_ns + SLEPT_MIN_NS) {
		log_info("this machine was asleep: it takes jobs again");
		a->shutting_down = false;
		agent_vacate(a, false, "");
	}
	agent_close_readings(a);
	folders_tick(a);
	/* logind holds a shutdown back until the jobs are safe elsewhere, 5 s at most. */
	if (agent_report(a) == 0 && a->shutting_down && a->watch)
		host_watch_ready(a->watch);
	r = sd_event_now(a->event, CLOCK_MONOTONIC, &now);
	if (r >= 0)
		r = sd_event_source_set_time(source, now + REPORT_PERIOD_US);
	if (r >= 0)
		r = sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	return r;
}

static int on_stop(sd_event_source *source, const struct signalfd_siginfo *info, void *ctx)
{
	struct agent *a = ctx;

	(void)source;
	log_info("%s: stopping; jobs run on", strsignal((int)info->ssi_signo));
	return sd_event_exit(a->event, EXIT_SUCCESS);
}

static void on_user_came(void *ctx, const char *who)
{
	agent_user_came(ctx, who);
}

static void on_user_gone(void *ctx)
{
	agent_user_gone(ctx);
}

static void on_shutdown(void *ctx)
{
	struct agent *a = ctx;

	log_info("this machine is going down: jobs leave");
	a->shutting_down = true;
	a->slept_ns = slept_ns();
	agent_vacate(a, true, "shutdown");
}

static int add_sources(struct agent *a, pid_t overlay_pid)
{
	static const int stops[] = { SIGTERM, SIGINT };
	uint64_t now = 0;
	int r = sd_event_add_io(a->event, NULL, a->main_channel, EPOLLIN, on_overlay, a);

	if (r >= 0)
		r = sd_event_add_child(a->event, NULL, overlay_pid, WEXITED, on_overlay_exit, a);
	for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(stops); i++)
		r = sd_event_add_signal(a->event, NULL, stops[i], on_stop, a);
	if (r >= 0)
		r = sd_event_now(a->event, CLOCK_MONOTONIC, &now);
	if (r >= 0)
		r = sd_event_add_time(a->event, &a->report_timer, CLOCK_MONOTONIC,
				      now + REPORT_PERIOD_US, 0, on_report, a);
	if (r >= 0)
		r = sd_event_set_watchdog(a->event, true);
	return r < 0 ? r : 0;
}

static void start_optional(struct agent *a)
{
	const struct host_watch_events events = { .user_came = on_user_came,
						  .user_gone = on_user_gone,
						  .shutdown_soon = on_shutdown,
						  .ctx = a };
	char reason[256];
	int r = host_watch_start(a->event, &a->config, &events, &a->watch);

	if (r < 0)
		log_warn("logins are not seen: %s", strerror(-r));
	r = host_trace_start(a->event, &a->trace, reason);
	if (r < 0)
		log_warn("no eBPF: %s; the exit status of adopted processes stays unknown", reason);
	if (!a->criu[0])
		log_warn("no CRIU: jobs cannot be run or restored here; see decamp doctor");
}

/* The agent half, after the overlay half was forked. */
static int serve(struct agent *a, pid_t overlay_pid)
{
	struct cluster *cluster = NULL;
	char socket_path[600];
	int r = sd_event_default(&a->event);

	if (r >= 0)
		r = add_sources(a, overlay_pid);
	if (r < 0)
		return log_errno(r, "event loop");
	r = cluster_load(a->config.state_dir, &cluster);
	if (r < 0 && r != -ENOENT)
		return log_errno(r, "identity in %s", a->config.state_dir);
	a->cluster = cluster;
	r = agent_start_overlay(a);
	if (r < 0)
		return log_errno(r, "join the cluster's network");
	start_optional(a);
	r = agent_start_jobs(a);
	if (r < 0)
		return log_errno(r, "jobs of an earlier life");
	r = folders_start(a);
	if (r < 0)
		return log_errno(r, "folders of an earlier life");
	snprintf(socket_path, sizeof(socket_path), "%s/control.sock", a->config.run_dir);
	r = api_start(socket_path, agent_routes, a, &a->api);
	if (r < 0)
		return log_errno(r, "control socket %s", socket_path);
	log_info("ready: host=%s cluster=%s criu=%s", a->hostname, a->cluster ? "yes" : "none yet",
		 a->criu[0] ? a->criu : "none");
	sd_notify(0, "READY=1");
	r = sd_event_loop(a->event);
	sd_notify(0, "STOPPING=1");
	return r;
}

/*
 * The other half ends first, so that whoever waits for its answers does not wait any longer. Its
 * channel stays open: a thread that still uses the number must not meet another file. A job's
 * thread may be busy for longer than we wait; nothing that it uses is torn down.
 */
static void shut_down(struct agent *a, pid_t overlay_pid)
{
	agent_stop_jobs(a);
	shutdown(a->main_channel, SHUT_RDWR);
	waitpid(overlay_pid, NULL, 0);
	api_stop(a->api);
	host_watch_stop(a->watch);
}

static int parse(int argc, char **argv, const char **ret_config, bool *ret_debug)
{
	static const struct option options[] = { { "config", required_argument, NULL, 'c' },
						 { "debug", no_argument, NULL, 'd' },
						 { "help", no_argument, NULL, 'h' },
						 { "version", no_argument, NULL, 'v' },
						 { 0 } };
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		switch (c) {
		case 'c':
			*ret_config = optarg;
			break;
		case 'd':
			*ret_debug = true;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(EXIT_SUCCESS);
		case 'v':
			puts("decampd " DECAMP_VERSION);
			exit(EXIT_SUCCESS);
		default:
			fputs(usage, stderr);
			return -EINVAL;
		}
	}
	return optind < argc ? -EINVAL : 0;
}

static int start(struct agent *a, const char *config_path, pid_t *ret_overlay)
{
	struct host_resources res;
	struct passwd *user;
	char error[256];
	int r = host_config_load(&a->config, config_path, error);

	if (r < 0) {
		log_error("%s", error);
		return r;
	}
	if (geteuid() != 0) {
		log_error("decampd must be started as root");
		return -EPERM;
	}
	user = getpwnam(a->config.user);
	if (!user) {
		log_error("user %s does not exist: useradd --system %s", a->config.user,
			  a->config.user);
		return -ENOENT;
	}
	r = prepare_folders(&a->config, user);
	if (r < 0)
		return log_errno(r, "%s or %s", a->config.state_dir, a->config.run_dir);
	r = take_lock(a);
	if (r < 0)
		return log_errno(r, "another decampd runs on %s", a->config.run_dir);
	r = host_resources(&res);
	if (r < 0)
		return log_errno(r, "resources");
	snprintf(a->hostname, sizeof(a->hostname), "%s", res.hostname);
	raise_limits(a);
	if (host_criu_path(&a->config, a->criu, sizeof(a->criu)) < 0)
		a->criu[0] = '\0';
	a->has_sys_resource = host_has_sys_resource();
	a->kernel_features = host_kernel_features(&a->config);
	r = host_cgroup_base(a->cgroup_base, sizeof(a->cgroup_base));
	if (r < 0) {
		a->cgroup_base[0] = '\0';
		log_warn("no cgroup v2: jobs are frozen by signals: %s", strerror(-r));
	}
	r = fork_overlay(a, user, ret_overlay);
	return r < 0 ? log_errno(r, "overlay half") : 0;
}

int main(int argc, char **argv)
{
	struct agent *a = calloc(1, sizeof(*a));
	const char *config_path = "/etc/decamp/decampd.conf";
	bool debug = false;
	pid_t overlay_pid = -1;
	sigset_t mask;
	int r = parse(argc, argv, &config_path, &debug);

	if (!a || r < 0)
		return EXIT_FAILURE;
	log_init(debug ? LOG_DEBUG_ : LOG_INFO_, "decampd");
	umask(022);
	signal(SIGPIPE, SIG_IGN);
	pthread_mutex_init(&a->lock, NULL);
	pthread_mutex_init(&a->cluster_lock, NULL);
	pthread_mutex_init(&a->readings_lock, NULL);
	pthread_mutex_init(&a->folders_lock, NULL);
	host_config_default(&a->config);
	if (start(a, config_path, &overlay_pid) < 0)
		return EXIT_FAILURE;
	/* sd-event takes these by signalfd; threads inherit the mask. */
	sigemptyset(&mask);
	sigaddset(&mask, SIGTERM);
	sigaddset(&mask, SIGINT);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	r = serve(a, overlay_pid);
	shut_down(a, overlay_pid);
	_exit(r == 0 ? EXIT_SUCCESS : EXIT_FAILURE);
}
