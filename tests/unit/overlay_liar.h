/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For tests: a process that answers in a host's name, as it likes. */
#pragma once

#include "overlay/net/net.h"
#include "overlay_host.h"

/*
 * In a child, once the host was killed: takes its place until it is killed itself. call() answers by
 * net_reply(), or returns an error to be sent.
 */
void liar_serve(const struct test_host *host,
		int (*call)(void *ctx, struct net *net, uint64_t served,
			    const struct net_call *call),
		void *ctx) __attribute__((noreturn));
