// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The level of compression, by what is measured: sealing and sending work at the same time, so the
 * time of a byte is that of the slower one, and a quarter of the other one's, because both are used
 * for other things, too. Of the level in use and its two neighbours the one is taken where that is
 * smallest. Frames of a window are at one level.
 */
#include <stdatomic.h>
#include <string.h>

#include "agent/pack/internal.h"

/* Uncompressed, holders keep several times as much: it has to be so much faster. */
enum { WINDOW_FRAMES = 16, BETTER_PERCENT = 1, RAW_FACTOR = 2, FORGET_WINDOWS = 32 };

/*
 * 0 stands for not compressing. Memory images: higher levels than 6 save nothing any more. -7 leaves
 * literals as they are, -3 does not (writer.c). cost, size: first guesses against level 1, by which
 * an untried level is judged.
 */
static const struct {
	int level;
	double cost, size;
} ladder[LEVELS] = {
	{ 0, 0.02, 5.0 }, { -7, 0.6, 1.7 }, { -3, 0.8, 1.12 }, { 1, 1, 1 }, { 6, 5, 0.95 },
};
enum { START = 3 };

void level_init(struct level_control *c, uint64_t link_bytes_per_s, uint32_t cpu_percent)
{
	*c = (struct level_control){ .link_bytes_per_s = link_bytes_per_s,
				     .cpu_percent = cpu_percent ? cpu_percent : 100,
				     .at = START };
}

int level_now(const struct level_control *c)
{
	return ladder[c->at].level;
}

/* Nanoseconds of a byte at a level that may never have been tried. */
static double time_of(const struct level_control *c, uint32_t i, uint64_t link_bytes_per_s)
{
	const struct level_measure *m = &c->measured[i], *now = &c->measured[c->at];
	double cpu = m->cpu, size = m->size, link, slower, faster;

	if (!m->windows) {
		/* Nothing compresses to more than it was. */
		cpu = now->cpu * ladder[i].cost / ladder[c->at].cost;
		size = now->size * ladder[i].size / ladder[c->at].size;
		size = size < 1 ? size : 1;
	}
	cpu = cpu * 100 / c->cpu_percent;
	link = size * 1e9 / (double)link_bytes_per_s;
	slower = cpu > link ? cpu : link;
	faster = cpu > link ? link : cpu;
	/* What nobody waits for is not free either: jobs want the processor, others the link. */
	return (slower + faster / 4) * (ladder[i].level == 0 ? RAW_FACTOR : 1);
}

static void choose(struct level_control *c, uint64_t link)
{
	uint32_t best = c->at ? c->at - 1 : 0;

	/* The dearer one has to be clearly better, whichever is in use. */
	for (uint32_t i = best + 1; i <= c->at + 1 && i < LEVELS; i++)
		if (time_of(c, i, link) * (100 + BETTER_PERCENT) < time_of(c, best, link) * 100)
			best = i;
	/* Other pages compress otherwise: what was seen long ago counts no more. */
	for (uint32_t i = 0; i < LEVELS; i++)
		if (c->measured[i].windows && ++c->measured[i].windows > FORGET_WINDOWS)
			c->measured[i].windows = 0;
	c->at = best;
}

void level_note(struct level_control *c, int level, uint64_t in, uint64_t out, uint64_t cpu_ns)
{
	struct level_measure *m = &c->measured[c->at];
	uint64_t link = atomic_load(&c->link_bytes_per_s);

	/* Without a link nothing can be weighed; late frames of another level say nothing. */
	if (link == 0 || level != level_now(c) || in == 0)
		return;
	c->in += in;
	c->out += out;
	c->cpu_ns += cpu_ns;
	if (++c->frames < WINDOW_FRAMES)
		return;
	m->cpu = (double)c->cpu_ns / (double)c->in;
	m->size = (double)c->out / (double)c->in;
	m->windows = 1;
	c->in = c->out = c->cpu_ns = 0;
	c->frames = 0;
	choose(c, link);
}
