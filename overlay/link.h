/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How fast objects leave this host: bytes that all wanted holders have acknowledged, per second in
 * which at least one was on its way. Old seconds count less and less. No clock of its own.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum {
	LINK_OBJECT_MIN = 256 << 10, /* what is smaller says how long a sync takes, not the link */
	LINK_KNOWN_BYTES = 1 << 20,  /* fewer, in less than LINK_KNOWN_NS, say nothing yet */
	LINK_WINDOW_BYTES = 32 << 20,
};
#define LINK_KNOWN_NS UINT64_C(2000000000)
#define LINK_WINDOW_NS UINT64_C(20000000000)

struct link_speed {
	uint32_t under_way;
	uint64_t since_ns; /* until here all is in busy_ns */
	uint64_t bytes, busy_ns;
};

/* An object of at least LINK_OBJECT_MIN sets out, or arrives. bytes 0: it did not get there. */
void link_begin(struct link_speed *l, uint64_t now_ns);
void link_end(struct link_speed *l, uint64_t now_ns, uint32_t bytes);
/* Objects' bytes, each once however many copies; 0: not known. */
uint64_t link_bytes_per_s(const struct link_speed *l);
