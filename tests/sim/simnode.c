/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The hosts of a simnet: ids, clocks, disks; starting, crashing, pausing, rolling back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "overlay/ipc.h"
#include "tests/sim/simnet.h"

enum { INDEX_SLOTS = 4 * 1024, HUGE_NODES = 200, HUGE_BYTES = 2 << 20 };
enum { COLOURS = 1024, COLOUR_BYTES = 17 * 64 };

void simnet_die(const char *what)
{
	fprintf(stderr, "simnet: %s\n", what);
	abort();
}

static uint32_t slot_of(const struct node_id *id)
{
	return (uint32_t)(id->b[0] | id->b[1] << 8) % INDEX_SLOTS;
}

uint32_t simnet_index(const struct simnet *net, const struct node_id *id)
{
	for (uint32_t slot = slot_of(id); net->index[slot]; slot = (slot + 1) % INDEX_SLOTS) {
		uint32_t node = net->index[slot] - 1u;

		if (node_id_equal(&net->ids[node], id))
			return node;
	}
	return SIMNET_NODES_MAX;
}

/* All anew: it happens once per host and disk that was rolled back. */
static void index_fill(struct simnet *net)
{
	memset(net->index, 0, sizeof(net->index));
	for (uint32_t i = 0; i < net->node_count; i++) {
		uint32_t slot = slot_of(&net->nodes[i].card.id);

		if (!net->nodes[i].ids)
			continue;
		while (net->index[slot])
			slot = (slot + 1) % INDEX_SLOTS;
		net->index[slot] = (uint16_t)(i + 1);
	}
}

void simnet_new_id(struct simnet *net, uint32_t node)
{
	struct simnet_node *n = &net->nodes[node];

	for (uint32_t k = 0; k < sizeof(n->card.id.b); k++)
		n->card.id.b[k] = (uint8_t)simnet_random(net);
	n->ids++;
	net->ids[node] = n->card.id;
	index_fill(net);
}

void simnet_node_init(struct simnet *net, uint32_t node)
{
	struct simnet_node *n = &net->nodes[node];
	uint32_t spread = 2 * net->rates.drift_ppm + 1;

	n->card.version = 1;
	simnet_new_id(net, node);
	snprintf(n->card.hostname, sizeof(n->card.hostname), "host%u", node);
	snprintf(n->card.room, sizeof(n->card.room), "room%u", node % 3);
	n->rate_ppm = (int32_t)simnet_below(net, spread) - (int32_t)net->rates.drift_ppm;
	n->boot_offset_ms = simnet_below(net, 1000000);
	n->report.flags = MEMBER_TAKES_JOBS | MEMBER_STORES_PACKS;
	n->report.mem_free_bytes = UINT64_C(8) << 30;
	n->report.store_free_bytes = UINT64_C(64) << 30;
}

uint64_t simnet_local_ms(const struct simnet *net, uint32_t node)
{
	const struct simnet_node *n = &net->nodes[node];
	uint64_t now = net->now_ms;
	int64_t drift;

	/* A pause that stops the clock is taken off at its start: until its end time stands. */
	if (n->clock_stopped && now < n->paused_until_ms)
		now = n->paused_until_ms;
	drift = (int64_t)now * n->rate_ppm / 1000000;
	return n->boot_offset_ms + (uint64_t)((int64_t)now + drift) - n->clock_lost_ms;
}

uint64_t simnet_boot_ns(const struct simnet *net, uint32_t node)
{
	return simnet_local_ms(net, node) * UINT64_C(1000000);
}

bool simnet_is_up(const struct simnet *net, uint32_t node)
{
	return net->nodes[node].core && net->nodes[node].paused_until_ms <= net->now_ms;
}

void simnet_pause(struct simnet *net, uint32_t node, uint32_t ms, bool clock)
{
	struct simnet_node *n = &net->nodes[node];

	if (n->paused_until_ms > net->now_ms)
		return;
	n->paused_until_ms = net->now_ms + ms;
	n->clock_stopped = clock;
	if (clock)
		n->clock_lost_ms += (uint64_t)((int64_t)ms * (1000000 + n->rate_ppm) / 1000000);
}

void simnet_disk_free(struct simnet_disk *disk)
{
	for (uint32_t i = 0; i < disk->count; i++)
		free(disk->records[i]);
	free(disk->records);
	memset(disk, 0, sizeof(*disk));
}

static void disk_put(struct simnet_disk *disk, const struct job_id *job, const void *bytes,
		     size_t size)
{
	struct simnet_record *record = NULL;
	uint32_t at = 0;

	while (at < disk->count && memcmp(&disk->records[at]->job, job, sizeof(*job)) != 0)
		at++;
	if (at < disk->count) {
		free(disk->records[at]);
	} else if (size) {
		if (disk->count == disk->room) {
			disk->room = disk->room ? 2 * disk->room : 8;
			disk->records =
				realloc(disk->records, disk->room * sizeof(disk->records[0]));
		}
		disk->count++;
	}
	if (size) {
		record = malloc(sizeof(*record) + size);
		if (!record || !disk->records)
			simnet_die("out of memory");
		record->job = *job;
		record->size = size;
		memcpy(record->bytes, bytes, size);
		disk->records[at] = record;
	} else if (at < disk->count) {
		disk->records[at] = disk->records[--disk->count];
	}
}

void simnet_disk_write(struct simnet *net, uint32_t node, const struct core_write *write)
{
	disk_put(&net->nodes[node].disk, &write->job, write->bytes, write->size);
	if (net->hooks.wrote)
		net->hooks.wrote(net->hooks.ctx, node, write);
}

static void disk_copy(struct simnet_disk *to, const struct simnet_disk *from)
{
	simnet_disk_free(to);
	for (uint32_t i = 0; i < from->count; i++)
		disk_put(to, &from->records[i]->job, from->records[i]->bytes,
			 from->records[i]->size);
}

void simnet_snapshot(struct simnet *net, uint32_t node)
{
	disk_copy(&net->nodes[node].snapshot, &net->nodes[node].disk);
}

void simnet_rollback(struct simnet *net, uint32_t node, bool wipe)
{
	struct simnet_node *n = &net->nodes[node];

	if (wipe)
		simnet_disk_free(&n->disk);
	else
		disk_copy(&n->disk, &n->snapshot);
#ifndef MUTANT_A5
	/* A new id keeps no promise of the old one. */
	simnet_disk_free(&n->disk);
	simnet_disk_free(&n->snapshot);
	simnet_new_id(net, node);
#endif
}

static bool verify_card(void *ctx, const struct node_card *card)
{
	(void)ctx;
	return card->version == 1;
}

void simnet_greet(struct simnet *net, uint32_t node, uint32_t seed)
{
	const struct simnet_node *other = &net->nodes[seed];
	struct core_event event = {
		.type = CORE_EV_GREET,
		.node = other->card.id,
		.card = &other->card,
		.addr = "10.0.0.1",
		.port = 7000,
	};

	if (node != seed && net->nodes[node].core && simnet_step(net, node, &event) < 0)
		simnet_die("greet");
}

void simnet_report(struct simnet *net, uint32_t node)
{
	struct simnet_node *n = &net->nodes[node];
	struct core_event event = { .type = CORE_EV_REPORT, .report = &n->report };

	if (n->core && simnet_step(net, node, &event) < 0)
		simnet_die("report");
}

void simnet_leave(struct simnet *net, uint32_t node)
{
	struct core_event event = { .type = CORE_EV_LEAVE };

	if (net->nodes[node].core && simnet_step(net, node, &event) < 0)
		simnet_die("leave");
}

/* Any one host that is up and reachable both ways, or nobody. */
static void greet_anybody(struct simnet *net, uint32_t node)
{
	uint32_t start = simnet_below(net, net->node_count), greeted = 0;

	/* Many greetings in a small lab, a few in a large one: a driver has a handful of seeds. */
	for (uint32_t i = 0; i < net->node_count && greeted < 8; i++) {
		uint32_t other = (start + i) % net->node_count;

		if (other == node || !net->nodes[other].core || !simnet_hears(net, other, node) ||
		    !simnet_hears(net, node, other))
			continue;
		simnet_greet(net, node, other);
		greeted++;
	}
}

/*
 * Mapped, not of the heap: it costs what is used. In a large net what every event looks at, the
 * table of members, lies in one huge page per core: most of a step's time went into finding pages.
 * Not all at its beginning, or the same few sets of a cache would have to hold all cores.
 */
static void core_new(const struct simnet *net, struct simnet_node *node)
{
	bool huge = net->node_count >= HUGE_NODES;
	uint8_t *page;
	size_t shift;

	node->mapped_size = core_size() + (huge ? 2 * HUGE_BYTES : 0);
	node->mapped = mmap(NULL, node->mapped_size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (node->mapped == MAP_FAILED)
		simnet_die("out of memory");
	node->core = node->mapped;
	if (!huge)
		return;
	page = (uint8_t *)node->mapped + HUGE_BYTES - (uintptr_t)node->mapped % HUGE_BYTES;
	(void)madvise(page, HUGE_BYTES, MADV_HUGEPAGE); /* or smaller ones, slower */
	shift = (size_t)(node - net->nodes) % COLOURS * COLOUR_BYTES;
	node->core = (struct core *)(void *)(page + shift);
}

void simnet_start(struct simnet *net, uint32_t node, uint32_t seed)
{
	struct simnet_node *n = &net->nodes[node];
	struct core_config config = {
		.card = n->card,
		.advertise_addr = "10.0.0.1",
		.port = 7000,
		.probe_ms = net->probe_ms,
		.suspect_ms = net->suspect_ms,
		.renew_ms = 5000,
		.lease_ms = 20000,
		.hold_ms = 22000,
		.seed = simnet_random(net),
		.incarnation = UINT64_C(1700000000000) + net->now_ms,
		.verify_card = verify_card,
		.scratch = net->scratch,
	};

	if (n->core)
		return;
	core_new(net, n);
	if (core_init(n->core, &config, simnet_local_ms(net, node)) < 0)
		simnet_die("init");
	n->life++;
	net->ticks[node].at_ms = 0;
	n->paused_until_ms = 0;
	for (uint32_t i = 0; i < n->disk.count; i++) {
		struct core_event event = {
			.type = CORE_EV_RECORD,
			.bytes = n->disk.records[i]->bytes,
			.size = n->disk.records[i]->size,
		};

		if (simnet_step(net, node, &event) < 0)
			simnet_die("record");
	}
	simnet_report(net, node);
	if (seed != node)
		simnet_greet(net, node, seed);
	else
		greet_anybody(net, node);
	if (n->core && net->hooks.started)
		net->hooks.started(net->hooks.ctx, node);
}

void simnet_core_free(struct simnet_node *node)
{
	if (node->mapped)
		munmap(node->mapped, node->mapped_size);
	node->mapped = NULL;
	node->core = NULL;
}

void simnet_crash(struct simnet *net, uint32_t node)
{
	struct simnet_node *n = &net->nodes[node];

	simnet_core_free(n);
	net->ticks[node].at_ms = 0;
	n->life++;
	n->paused_until_ms = 0;
}

enum member_state simnet_view(const struct simnet *net, uint32_t of, uint32_t about)
{
	const struct member_info *info;

	for (uint32_t i = 0;; i++) {
		info = core_member(net->nodes[of].core, i, simnet_local_ms(net, of));
		if (!info)
			return 0;
		if (node_id_equal(&info->id, &net->nodes[about].card.id))
			return info->state;
	}
}
