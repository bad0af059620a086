/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Transfers between hosts without packets: each host has an uplink and a downlink, and the flows
 * that cross a link share it.
 *
 *   start, end or break of a flow -> new rates of all flows that share links with it, however far
 *
 * Shares are max-min fair: no flow can have more without another one that has no more than it
 * having less (Bertsekas and Gallager, Data Networks, 6.5.2). They are computed exactly, by filling
 * all flows of a connected part alike until a link is full, in integers: rates are kept in 1/1024
 * of a byte per ms and rounded down, times are whole ms and rounded up.
 * Errors of the harness itself abort. Callbacks may start flows, not end them.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct flows; /* opaque */

/* whole: all bytes arrived; else one of the two hosts went down, with so many bytes to go. */
typedef void flow_end(void *ctx, uint64_t tag, bool whole, uint64_t bytes_left);

struct flows *flows_create(uint32_t hosts, flow_end *end, void *ctx);
void flows_destroy(struct flows *flows);
/* Bytes per ms, at least one; 125000 are 1 Gbit/s. Only while the host has no flows. */
void flows_set_host(struct flows *flows, uint32_t host, uint32_t up, uint32_t down);

/* Between two hosts; now_ms never goes back. */
void flows_start(struct flows *flows, uint64_t now_ms, uint32_t from, uint32_t to, uint64_t bytes,
		 uint64_t tag);
/* Breaks all flows of a host, both ways. */
void flows_break(struct flows *flows, uint64_t now_ms, uint32_t host);
/* When the next flow ends by itself; UINT64_MAX: none does. */
uint64_t flows_next_ms(const struct flows *flows);
/* Ends those that are due by then. */
void flows_run(struct flows *flows, uint64_t now_ms);

uint32_t flows_count(const struct flows *flows);
/* Bytes per ms that flows take of a host's uplink, rounded down. */
uint64_t flows_rate_up(const struct flows *flows, uint32_t host);
