// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/link.h"

void link_begin(struct link_speed *l, uint64_t now_ns)
{
	if (l->under_way++ == 0)
		l->since_ns = now_ns;
}

void link_end(struct link_speed *l, uint64_t now_ns, uint32_t bytes)
{
	if (l->under_way == 0)
		return;
	l->under_way--;
	if (bytes > 0 && now_ns > l->since_ns) {
		l->bytes += bytes;
		l->busy_ns += now_ns - l->since_ns;
	}
	l->since_ns = now_ns;
	while (l->bytes > LINK_WINDOW_BYTES || l->busy_ns > LINK_WINDOW_NS) {
		l->bytes /= 2;
		l->busy_ns /= 2;
	}
}

uint64_t link_bytes_per_s(const struct link_speed *l)
{
	if (l->busy_ns == 0 || (l->bytes < LINK_KNOWN_BYTES && l->busy_ns < LINK_KNOWN_NS))
		return 0;
	return (uint64_t)((double)l->bytes * 1e9 / (double)l->busy_ns);
}
