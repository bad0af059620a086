// SPDX-License-Identifier: LGPL-2.1-or-later
/* The unprivileged half: what it opens, in which order, and how it ends. */
#include "overlay/overlay.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#define LOG_TAG "overlay"
#include "agent/util/log.h"
#include "overlay/coded.h"
#include "overlay/net/internal.h"
#include "overlay/sandbox.h"
#include "overlay/store/io.h"

enum { SWEEP_MS = 100, REPORT_MS = 5000 };

static int on_sweep(sd_event_source *source, uint64_t usec, void *arg)
{
	struct overlay *overlay = arg;
	uint64_t now = net_now_ms();

	(void)usec;
	requests_sweep(overlay, now);
	/* The store fills without the agent's knowledge. */
	if (overlay->reported && now - overlay->report_ms >= REPORT_MS)
		driver_report(overlay);
	if (overlay->core) {
		repair_tick(overlay, now);
		rebuild_tick(overlay, now);
		shed_tick(overlay, now);
		trim_tick(overlay, now);
		pull_tick(overlay, now);
		scrub_tick(overlay, now);
		credit_tick(overlay, now);
	}
	refusals_tick(overlay, now);
	if (sd_event_source_set_time_relative(source, SWEEP_MS * 1000) < 0)
		return -EIO;
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* Signals that the parent's loop may have blocked or handled are not for this process. */
static void reset_signals(void)
{
	sigset_t none;

	sigemptyset(&none);
	for (int sig = 1; sig < 32; sig++) {
		if (sig != SIGKILL && sig != SIGSTOP)
			signal(sig, SIG_DFL);
	}
	signal(SIGPIPE, SIG_IGN);
	/* The terminal's and the service's signals end the parent, and its channel this half. */
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static int overlay_open(struct overlay *overlay, const struct overlay_config *config,
			const char *root)
{
	char why[STORE_WHY_MAX];
	int r = store_open_io(root, &store_io_disk, why, &overlay->store);

	if (r < 0)
		return log_errno(r, "store: open%s%s", why[0] ? ": " : "", why);
	r = sd_event_new(&overlay->event);
	if (r < 0)
		return log_errno(r, "event loop");
	r = store_worker_create(overlay->event, &overlay->worker);
	if (r < 0)
		return log_errno(r, "worker");
	r = net_create(overlay->event, &overlay_net_handlers, overlay, &overlay->net);
	if (r < 0)
		return log_errno(r, "net");
	r = channel_add(overlay, config->main_channel, true);
	if (r < 0)
		return log_errno(r, "main channel");
	r = sd_event_add_time_relative(overlay->event, &overlay->sweep, CLOCK_MONOTONIC,
				       SWEEP_MS * 1000, 10000, on_sweep, overlay);
	if (r < 0)
		return log_errno(r, "event loop");
	return 0;
}

static void overlay_close(struct overlay *overlay)
{
	channels_close(overlay);
	sd_event_source_disable_unref(overlay->sweep);
	store_worker_destroy(overlay->worker);
	driver_stop(overlay);
	net_destroy(overlay->net);
	sd_event_unref(overlay->event);
	store_close(overlay->store);
	free(overlay);
}

static int overlay_run(struct overlay *overlay, const struct overlay_config *config)
{
	struct sandbox_config sandbox = { .uid = config->uid,
					  .gid = config->gid,
					  .state_dir = config->state_dir,
					  .keep_fd = config->main_channel };
	const char *root;
	int r;

	reset_signals();
	net_tls_preload();
	tzset(); /* its file is out of reach soon */
	r = sandbox_enter(&sandbox, &root);
	if (r < 0)
		return log_errno(r, "sandbox: state_dir=%s", config->state_dir);
	r = overlay_open(overlay, config, root);
	if (r < 0)
		return r;
	if (!config->no_seccomp) {
		r = sandbox_filter();
		if (r < 0)
			return log_errno(r, "sandbox: seccomp");
	}
	r = sd_event_loop(overlay->event);
	return r < 0 ? log_errno(r, "event loop") : r;
}

int overlay_main(const struct overlay_config *config)
{
	struct overlay *overlay = calloc(1, sizeof(*overlay));
	int r;

	if (!overlay)
		return 1;
	LIST_INIT(&overlay->channels);
	LIST_INIT(&overlay->requests);
	r = overlay_run(overlay, config);
	overlay_close(overlay);
	return r < 0 ? 1 : r;
}
