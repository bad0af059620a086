/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/sim/tablelab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "overlay/core/codec.h"
#include "overlay/ipc.h"

struct table {
	struct core *core;
	uint64_t random;
	uint32_t live_count;
	struct node_id live[OV_MEMBERS_MAX];
	struct core_message message;
	uint8_t bytes[CORE_MESSAGE_MAX];
};

static uint64_t table_random(struct table *table)
{
	uint64_t x = table->random += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static struct node_id random_id(struct table *table)
{
	uint64_t words[2] = { table_random(table), table_random(table) };
	struct node_id id;

	memcpy(&id, words, sizeof(id));
	return id;
}

static bool accept_card(void *ctx, const struct node_card *card)
{
	(void)ctx;
	return card->version == 1;
}

static void tell(struct table *table)
{
	struct core_event event = { .type = CORE_EV_MESSAGE, .now_ms = 1 };
	const struct core_update *update;

	event.bytes = table->bytes;
	event.size = core_message_encode(&table->message, table->bytes, sizeof(table->bytes));
	event.node = table->message.records[0].id;
	if (!event.size || core_step(table->core, &event, &update))
		abort();
	table->message.record_count = 0;
}

static void add_row(struct table *table)
{
	struct core_gossip *record = &table->message.records[table->message.record_count++];

	memset(record, 0, sizeof(*record));
	record->id = random_id(table);
	record->incarnation = 1;
	record->state = table_random(table) % 3 ? MEMBER_ALIVE : MEMBER_DEAD;
	record->kind = CORE_GOSSIP_FULL;
	record->card.version = 1;
	record->card.id = record->id;
	memcpy(record->addr, "10.0.0.1", 9);
	record->port = 7000;
	if (record->state == MEMBER_ALIVE)
		table->live[table->live_count++] = record->id;
}

static struct table *table_create(uint64_t seed, uint32_t rows)
{
	struct core_config config = { .card = { .version = 1 },
				      .probe_ms = 1000,
				      .suspect_ms = 5000,
				      .renew_ms = 5000,
				      .lease_ms = 15000,
				      .hold_ms = 16000,
				      .seed = seed,
				      .incarnation = 1,
				      .verify_card = accept_card };
	struct table *table = calloc(1, sizeof(*table));

	if (!table)
		abort();
	table->core = calloc(1, core_size());
	table->random = seed;
	config.card.id = random_id(table);
	if (!table->core || core_init(table->core, &config, 1))
		abort();
	table->live[table->live_count++] = config.card.id;
	table->message.type = CORE_MSG_GOSSIP;
	for (uint32_t i = 1; i < rows; i++) {
		add_row(table);
		if (table->message.record_count == CORE_GOSSIP_RECORDS_MAX || i + 1 == rows)
			tell(table);
	}
	return table;
}

static int compare(const void *a, const void *b)
{
	struct ring_key x = ring_of(a), y = ring_of(b);

	return ring_less(x, y) ? -1 : ring_less(y, x);
}

/* The live in ring order from 0, so the answer is a search for the key and what follows. */
static bool is_right(const struct table *table, struct ring_key key, uint32_t wanted,
		     const struct lookup_result *result)
{
	uint32_t at = 0;

	if (result->count != (wanted < table->live_count ? wanted : table->live_count))
		return false;
	while (at < table->live_count && ring_less(ring_of(&table->live[at]), key))
		at++;
	for (uint32_t i = 0; i < result->count; i++, at++)
		if (!node_id_equal(&result->nodes[i], &table->live[at % table->live_count]))
			return false;
	return true;
}

void tablelab_run(uint64_t seed, uint32_t rows, uint32_t lookups, uint32_t count,
		  struct tablelab_result *ret_result)
{
	struct table *table = table_create(seed, rows);
	struct tablelab_result sum = { .rows = rows, .live = table->live_count };
	struct lookup lookup = lookup_of_core(table->core);
	clock_t spent = 0;

	qsort(table->live, table->live_count, sizeof(table->live[0]), compare);
	for (uint32_t i = 0; i < lookups; i++) {
		struct ring_key key = { table_random(table), table_random(table) };
		struct lookup_result result;
		clock_t began = clock();
		int r = lookup_find(&lookup, 1, key, count, i, &result);

		spent += clock() - began;
		sum.lookups++;
		if (r) {
			sum.failed++;
			continue;
		}
		sum.hops += result.hops;
		sum.wrong += !is_right(table, key, count, &result);
	}
	sum.cpu_seconds = (double)spent / CLOCKS_PER_SEC;
	free(table->core);
	free(table);
	*ret_result = sum;
}
