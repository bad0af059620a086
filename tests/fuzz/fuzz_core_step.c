/* SPDX-License-Identifier: LGPL-2.1-or-later */
// sources: overlay/core/*.c
/*
 * A member takes any sequence of messages, whoever sends them. The input is a list of items:
 *
 *   0 ms:u16                         time passes
 *   1 sender:u8 size:u16 bytes       a message, from one of five hosts (0: in its own name)
 *   2 request:u8 state:u8 job:u8     its agent asks, with the last token it was told
 *   3 size:u16 bytes                 a record that lay on its disk (only first)
 *
 * Whatever it says must be understood by others, and what it writes by itself.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "overlay/core/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

enum { HOSTS = 5, ITEM_TICK = 0, ITEM_MESSAGE, ITEM_REQUEST, ITEM_RECORD, ITEMS };

static struct core_message message;
static struct fence_token token; /* the last one that the agent was told */

static struct node_card card_of(uint32_t host)
{
	struct node_card card = { .version = 1, .issued_wall_ms = 1, .expires_wall_ms = 2 };

	memset(card.id.b, (int)(0x11 * (host + 1)), sizeof(card.id.b));
	card.hostname[0] = card.room[0] = (char)('a' + host);
	return card;
}

static bool verify_card(void *ctx, const struct node_card *card)
{
	(void)ctx;
	return card->version == 1;
}

/* Fresh pages each time: clearing all of a core would take longer than most inputs. */
static struct core *host_of(uint32_t host, uint64_t now_ms)
{
	struct core_config config = {
		.card = card_of(host),
		.advertise_addr = "10.0.0.1",
		.port = 7000,
		.probe_ms = 1000,
		.suspect_ms = 4000,
		.renew_ms = 5000,
		.lease_ms = 20000,
		.hold_ms = 22000,
		.seed = host + 1,
		.incarnation = 1000000,
		.lost_from = 1,
		.verify_card = verify_card,
	};
	struct core *core =
		mmap(NULL, core_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (core == MAP_FAILED || core_init(core, &config, now_ms) < 0)
		abort();
	return core;
}

static struct job_value value_of(uint8_t job, uint8_t state)
{
	struct job_value value = { .job.b = { job },
				   .token = token,
				   .home = card_of(0).id,
				   .state = state,
				   .fence = FENCE_STRICT,
				   .sealed_size = 4 };

	if (state != JOB_STATE_IDLE)
		value.owner = value.home;
	value.target = value.home;
	return value;
}

static void judge(const struct core_update *update)
{
	struct core_record record;

	for (uint32_t i = 0; i < update->send_count; i++)
		if (core_message_decode(update->sends[i].bytes, update->sends[i].size, &message))
			abort();
	for (uint32_t i = 0; i < update->write_count; i++)
		if (update->writes[i].size &&
		    core_record_decode(update->writes[i].bytes, update->writes[i].size, &record))
			abort();
	for (uint32_t i = 0; i < update->answer_count; i++)
		if (update->answers[i].has_value)
			token = update->answers[i].value.token;
	for (uint32_t i = 0; i < update->notice_count; i++)
		if (update->notices[i].type == CORE_GRANT)
			token = update->notices[i].value.token;
}

/* Bytes of the item, 0 if it is cut off. */
static size_t read_item(const uint8_t *bytes, size_t size, struct core_event *event,
			struct job_value *value)
{
	static const size_t heads[ITEMS] = { 3, 4, 4, 3 };
	uint8_t kind = size ? bytes[0] % ITEMS : 0;
	size_t head = heads[kind], length;

	if (size < head)
		return 0;
	length = bytes[head - 2] | (size_t)bytes[head - 1] << 8;
	switch (kind) {
	case ITEM_TICK:
		event->type = CORE_EV_TICK;
		event->now_ms += length;
		return head;
	case ITEM_REQUEST:
		event->type = CORE_EV_REQUEST;
		event->request = bytes[1] % (CORE_REQ_TAKE + 2);
		*value = value_of(bytes[3] % 4, bytes[2]);
		event->value = value;
		event->request_id++;
		return head;
	case ITEM_MESSAGE:
		event->type = CORE_EV_MESSAGE;
		event->node = card_of(bytes[1] % HOSTS).id;
		break;
	default:
		event->type = CORE_EV_RECORD;
	}
	event->bytes = bytes + head;
	event->size = length < size - head ? length : size - head;
	return head + event->size;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct core_event event = { .type = CORE_EV_TICK, .now_ms = 10000 };
	struct core *core = host_of(0, event.now_ms);
	const struct core_update *update;
	struct job_value value;
	bool begun = false;
	size_t used;

	memset(&token, 0, sizeof(token));
	while ((used = read_item(bytes, size, &event, &value)) > 0) {
		bytes += used;
		size -= used;
		if (event.type == CORE_EV_RECORD && begun)
			continue;
		begun |= event.type != CORE_EV_RECORD;
		event.boot_ns = event.now_ms * 1000000;
		if (core_step(core, &event, &update) == 0)
			judge(update);
		if (core_deadline(core) <= event.now_ms) {
			event.type = CORE_EV_TICK;
			if (core_step(core, &event, &update) == 0)
				judge(update);
		}
	}
	munmap(core, core_size());
	return 0;
}
