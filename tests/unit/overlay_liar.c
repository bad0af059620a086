// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay_liar.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay/core/core.h"
#include "overlay/net/internal.h"

enum { TICK_US = 50000 };

struct serving {
	struct net *net;
	struct core *core; /* an honest one: what it says of itself is that it lives */
	int (*call)(void *ctx, struct net *net, uint64_t served, const struct net_call *call);
	void *ctx;
};

static void step(struct serving *s, struct core_event *event)
{
	const struct core_update *update;

	event->now_ms = net_now_ms();
	event->boot_ns = now_boot_ns();
	if (core_step(s->core, event, &update) < 0)
		return;
	for (uint32_t i = 0; i < update->send_count; i++)
		net_send(s->net, &update->sends[i].to, update->sends[i].bytes,
			 update->sends[i].size);
}

static int on_tick(sd_event_source *source, uint64_t usec, void *ctx)
{
	struct core_event event = { .type = CORE_EV_TICK };

	(void)usec;
	step(ctx, &event);
	if (sd_event_source_set_time_relative(source, TICK_US) < 0)
		return -1;
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static bool on_card(void *ctx, const struct node_card *card)
{
	(void)ctx;
	(void)card;
	return true;
}

static bool on_address(void *ctx, const struct node_id *node, const char **ret_addr,
		       uint16_t *ret_port)
{
	struct serving *s = ctx;

	return core_address(s->core, node, ret_addr, ret_port);
}

static void on_connected(void *ctx, const struct node_card *card, const char *addr, uint16_t port)
{
	struct core_event event = {
		.type = CORE_EV_GREET, .node = card->id, .card = card, .addr = addr, .port = port
	};

	step(ctx, &event);
}

static void on_message(void *ctx, const struct node_id *from, const void *bytes, size_t size)
{
	struct core_event event = {
		.type = CORE_EV_MESSAGE, .node = *from, .bytes = bytes, .size = size
	};

	step(ctx, &event);
}

/* Probed as often as hosts of these tests, and suspecting nobody. */
static int start_core(struct serving *s, const struct test_host *host)
{
	struct core_config config = { .card = host->identity.card,
				      .advertise_addr = "127.0.0.1",
				      .port = host->port,
				      .probe_ms = 1000,
				      .suspect_ms = 600000,
				      .renew_ms = 5000,
				      .lease_ms = 20000,
				      .hold_ms = 22000,
				      .seed = 1,
				      .incarnation = now_wall_ms(),
				      .verify_card = on_card };

	s->core = calloc(1, core_size());
	return s->core ? core_init(s->core, &config, net_now_ms()) : -1;
}

static int on_call(void *ctx, uint64_t served, const struct node_id *from,
		   const struct net_call *call, void **ret_sink)
{
	struct serving *s = ctx;

	(void)from;
	(void)ret_sink;
	return s->call(s->ctx, s->net, served, call);
}

void liar_serve(const struct test_host *host,
		int (*call)(void *ctx, struct net *net, uint64_t served,
			    const struct net_call *call),
		void *ctx)
{
	static const struct net_handlers handlers = { .verify_card = on_card,
						      .address = on_address,
						      .connected = on_connected,
						      .message = on_message,
						      .call = on_call };
	struct serving serving = { .call = call, .ctx = ctx };
	struct ov_start start = { .listen_addr = "127.0.0.1",
				  .advertise_addr = "127.0.0.1",
				  .port = host->port };
	sd_event *event = NULL;
	int r;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN); /* as a host does */
	if (start_core(&serving, host) < 0 || sd_event_new(&event) < 0 ||
	    sd_event_add_time_relative(event, NULL, CLOCK_MONOTONIC, TICK_US, 0, on_tick,
				       &serving) < 0 ||
	    net_create(event, &handlers, &serving, &serving.net) < 0)
		_exit(3);
	for (int i = 0; (r = net_start(serving.net, &host->identity, &start)) < 0; i++) {
		print_message("liar: %s\n", strerror(-r));
		if (i == 100)
			_exit(4);
		host_sleep_ms(100);
	}
	_exit(sd_event_loop(event) < 0);
}
