/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table of members: rows, their precedence, what is told to whom. The probing is in swim.c,
 * the comparison of tables in sync.c.
 *
 * Precedence of two records of one node: the higher incarnation; within one, the graver state.
 * Only the node itself raises its incarnation: to refute a rumour, or when its report changed.
 */
#include "overlay/core/state.h"

#include <string.h>

enum {
	MINOR_SHIFT = 3,
	TRANSMITS_MAX = 16,
	TRANSMITS_HEARD = 4, /* fewer, each time that somebody else tells the same */
};

static uint32_t slot_of(const struct node_id *id)
{
	uint64_t word;

	memcpy(&word, id->b, sizeof(word));
	return (uint32_t)(core_mix(word) % CORE_INDEX_SLOTS);
}

static void index_add(struct core *core, uint32_t row)
{
	uint32_t slot = slot_of(&core->members[row].info.id);

	while (core->member_index[slot])
		slot = (slot + 1) % CORE_INDEX_SLOTS;
	core->member_index[slot] = (uint16_t)(row + 1);
}

void core_member_prefetch(const struct core *core, const struct node_id *id, uint32_t stage,
			  size_t size)
{
	const uint16_t *slot = &core->member_index[slot_of(id)];

	if (stage == 0)
		__builtin_prefetch(slot, 0);
	for (size_t at = 0; stage > 0 && *slot && at < size; at += 64)
		__builtin_prefetch((const uint8_t *)&core->members[*slot - 1] + at, 1);
}

struct member *core_member_find(const struct core *core, const struct node_id *id)
{
	for (uint32_t slot = slot_of(id); core->member_index[slot];
	     slot = (slot + 1) % CORE_INDEX_SLOTS) {
		const struct member *member = &core->members[core->member_index[slot] - 1];

		if (node_id_equal(&member->info.id, id))
			return (struct member *)(uintptr_t)member;
	}
	return NULL;
}

bool core_member_is_alive(const struct core *core, const struct node_id *id)
{
	const struct member *member = core_member_find(core, id);

	return member && member->info.state == MEMBER_ALIVE;
}

/* A full table gives up the row that was gone for longest; self and living rows stay. */
static struct member *member_new_row(struct core *core)
{
	struct member *oldest = NULL;

	if (core->member_count < OV_MEMBERS_MAX)
		return &core->members[core->member_count++];
	for (uint32_t i = 1; i < OV_MEMBERS_MAX; i++) {
		struct member *member = &core->members[i];

		if (member->info.state >= MEMBER_DEAD &&
		    (!oldest || member->heard_ms < oldest->heard_ms))
			oldest = member;
	}
	return oldest;
}

static void fill_card(struct member *member, const struct node_card *card)
{
	member->card = *card;
	member->card_is_news = true;
	memcpy(member->info.hostname, card->hostname, sizeof(card->hostname));
	memcpy(member->info.room, card->room, sizeof(card->room));
}

static uint32_t bucket_of(const struct member *member)
{
	return member->info.id.b[sizeof(member->info.id.b) - 1] % CORE_BUCKETS;
}

void core_member_set_add(struct core *core, struct row_set *set, const struct member *member)
{
	uint32_t row = (uint32_t)(member - core->members);

	if (set->places[row])
		return;
	set->rows[set->count++] = (uint16_t)row;
	set->places[row] = (uint16_t)set->count;
}

void core_member_set_remove(struct core *core, struct row_set *set, const struct member *member)
{
	uint32_t row = (uint32_t)(member - core->members), at = set->places[row];
	uint16_t last;

	if (!at)
		return;
	last = set->rows[--set->count];
	set->rows[at - 1] = last;
	set->places[last] = (uint16_t)at;
	set->places[row] = 0;
}

static void bucket_join(struct core *core, const struct member *member)
{
	uint32_t row = (uint32_t)(member - core->members);
	uint16_t *first = &core->bucket_rows[bucket_of(member)];

	core->bucket_next[row] = *first;
	*first = (uint16_t)(row + 1);
}

static void bucket_leave(struct core *core, const struct member *member)
{
	uint32_t row = (uint32_t)(member - core->members);
	uint16_t *at = &core->bucket_rows[bucket_of(member)];

	while (*at && *at != row + 1)
		at = &core->bucket_next[*at - 1];
	*at = core->bucket_next[row];
}

uint32_t core_member_ring_place(const struct core *core, uint32_t count, struct ring_key key)
{
	uint32_t low = 0, high = count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		const struct member *member = &core->members[core->ring[middle]];

		if (ring_less(ring_of(&member->info.id), key))
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* count: of rows that are there without it. */
static void ring_join(struct core *core, uint32_t count, const struct member *member)
{
	uint32_t at = core_member_ring_place(core, count, ring_of(&member->info.id));

	memmove(&core->ring[at + 1], &core->ring[at], (count - at) * sizeof(core->ring[0]));
	core->ring[at] = (uint16_t)(member - core->members);
}

static void ring_leave(struct core *core, uint32_t count, const struct member *member)
{
	uint32_t at = core_member_ring_place(core, count, ring_of(&member->info.id));

	memmove(&core->ring[at], &core->ring[at + 1], (count - at - 1) * sizeof(core->ring[0]));
}

/* Out of all sums, before the row is used for somebody else. */
static void forget_row(struct core *core, const struct member *member)
{
	core_member_hush(core, (struct member *)(uintptr_t)member);
	core_member_set_remove(core, &core->notify, member);
	core_member_set_remove(core, &core->suspects, member);
	core->digests[bucket_of(member)] ^= member->digest;
	bucket_leave(core, member);
	ring_leave(core, core->member_count, member);
}

/* A new row is probed in this time through, too, at any place of what is left of it. */
static void order_join(struct core *core, uint32_t row)
{
	uint32_t at;

	if (core->order_next > row)
		core->order_next = row;
	at = core->order_next + core_below(core, row + 1 - core->order_next);
	core->order[row] = core->order[at];
	core->order[at] = (uint16_t)row;
}

static struct member *member_insert(struct core *core, const struct node_card *card)
{
	uint32_t count = core->member_count, row;
	struct member *member = member_new_row(core);
	bool reused;

	if (!member)
		return NULL;
	row = (uint32_t)(member - core->members);
	reused = row < count;
	if (reused)
		forget_row(core, member);
	memset(member, 0, sizeof(*member));
	member->info.id = card->id;
	bucket_join(core, member);
	ring_join(core, core->member_count - 1, member);
	fill_card(member, card);
	member->heard_ms = core->now_ms;
	core_member_notify(core, member);
	if (!reused) {
		index_add(core, row);
		order_join(core, row);
		return member;
	}
	memset(core->member_index, 0, sizeof(core->member_index));
	for (uint32_t i = 0; i < core->member_count; i++)
		index_add(core, i);
	return member;
}

int core_member_init(struct core *core)
{
	const struct core_config *config = &core->config;
	struct row_set *sets[3] = { &core->hot, &core->notify, &core->suspects };
	struct member *self;

	for (uint32_t i = 0; i < 3; i++) {
		sets[i]->rows = core->set_rows[i];
		sets[i]->places = core->set_places[i];
	}
	core->hush_ms = UINT64_MAX;
	self = member_insert(core, &config->card);
	self->info.is_self = 1;
	self->info.state = MEMBER_ALIVE;
	self->info.incarnation = config->incarnation;
	core_member_changed(core, self);
	core_member_spread(core, self);
	memcpy(self->info.addr, config->advertise_addr, sizeof(self->info.addr));
	self->info.addr[sizeof(self->info.addr) - 1] = 0;
	self->info.port = config->port;
	core->round_ms = core->now_ms;
	core->half_ms = UINT64_MAX;
	core->dead_ping_ms = core->now_ms + config->probe_ms / 2;
	core->sync_ms = core->now_ms + config->probe_ms / 2;
	core->next_ms = core->now_ms;
	return 0;
}

void core_member_heard(struct core *core, const struct node_id *id)
{
	struct member *member = core_member_find(core, id);

	if (member)
		member->heard_ms = core->now_ms;
}

void core_member_notify(struct core *core, struct member *member)
{
	core_member_set_add(core, &core->notify, member);
}

/* Its incarnation or state is another: so is the table's digest. */
void core_member_changed(struct core *core, struct member *member)
{
	const struct member_info *info = &member->info;
	uint64_t word;

	core->digests[bucket_of(member)] ^= member->digest;
	memcpy(&word, info->id.b, sizeof(word));
	member->digest = info->incarnation ?
				 core_mix(word ^ core_mix(info->incarnation * 8 + info->state)) :
				 0;
	core->digests[bucket_of(member)] ^= member->digest;
}

void core_member_spread(struct core *core, struct member *member)
{
	uint32_t rounds = 4, row = (uint32_t)(member - core->members);

	/* A rumour that dies out too soon is no harm: tables are compared. */
	for (uint32_t n = core->member_count; n > 1 && rounds < TRANSMITS_MAX; n /= 2)
		rounds += 3;
	core_member_set_add(core, &core->hot, member);
	core->transmits[row] = (uint16_t)rounds;
	core->spread_until_ms[row] = core->now_ms + rounds * core_round_ms(core);
	if (core->spread_until_ms[row] < core->hush_ms)
		core->hush_ms = core->spread_until_ms[row];
}

/* It rides along no more. */
void core_member_hush(struct core *core, struct member *member)
{
	core_member_set_remove(core, &core->hot, member);
	core->transmits[member - core->members] = 0;
	member->card_is_news = false;
}

static bool fill_record(const struct member *member, enum core_gossip_kind kind,
			struct core_gossip *ret_record)
{
	if (!member->info.incarnation)
		return false; /* only greeted: it has not spoken for itself yet */
	ret_record->id = member->info.id;
	ret_record->incarnation = member->info.incarnation;
	ret_record->state = member->info.state;
	ret_record->kind = kind;
	if (kind == CORE_GOSSIP_BRIEF)
		return true;
	if (kind == CORE_GOSSIP_FULL)
		ret_record->card = member->card;
	memcpy(ret_record->addr, member->info.addr, sizeof(ret_record->addr));
	ret_record->port = member->info.port;
	ret_record->report = member->info.report;
	return true;
}

static void add_record(struct core_message *m, const struct member *member,
		       enum core_gossip_kind kind)
{
	if (m->record_count < CORE_GOSSIP_RECORDS_MAX)
		m->record_count += fill_record(member, kind, &m->records[m->record_count]);
}

void core_member_add_record(struct core_message *m, const struct member *member)
{
	add_record(m, member, CORE_GOSSIP_FULL);
}

/* A rumour: what is likely to be news. */
void core_member_add_news(struct core_message *m, const struct member *member)
{
	enum core_gossip_kind kind = CORE_GOSSIP_BRIEF;

	if (member->info.state == MEMBER_ALIVE)
		kind = member->card_is_news ? CORE_GOSSIP_FULL : CORE_GOSSIP_REPORT;
	add_record(m, member, kind);
}

void core_member_broadcast(struct core *core, struct member *about)
{
	struct core_message *m = core_outbox_begin(core, CORE_MSG_GOSSIP);
	uint32_t start = core_below(core, core->member_count), told = 0;

	core_member_add_news(m, about);
	core_member_spread(core, about);
	core_outbox_seal(core);
	for (uint32_t i = 0; i < core->member_count && told < CORE_BROADCAST_MAX; i++) {
		const struct member *peer = &core->members[(start + i) % core->member_count];

		if (peer->info.is_self || peer->info.state > MEMBER_SUSPECT)
			continue;
		core_outbox_to(core, &peer->info.id);
		told++;
	}
}

/* Rule A5: another host remembers a life of this id that the disk here does not. */
static bool is_of_lost_life(const struct core *core, const struct core_gossip *record)
{
	const struct core_config *config = &core->config;

	return config->lost_from && record->incarnation >= config->lost_from &&
	       record->incarnation < config->incarnation;
}

static void refute(struct core *core, const struct core_gossip *record)
{
	struct member *self = &core->members[0];

	if (!core->lost_life && is_of_lost_life(core, record)) {
		core->lost_life = record->incarnation;
		core_member_leave(core);
		return;
	}
	if (record->incarnation < self->info.incarnation)
		return;
	if (record->incarnation == self->info.incarnation &&
	    (record->state == self->info.state || core->left))
		return;
	self->info.incarnation = record->incarnation + 1;
	core_member_changed(core, self);
	core_member_broadcast(core, self);
}

void core_member_suspect_until(struct core *core, struct member *member, uint64_t until_ms)
{
	member->suspect_until_ms = until_ms;
	if (until_ms < core->suspects_ms)
		core->suspects_ms = until_ms;
	core_arm(core, core->suspects_ms);
}

void core_member_set_state(struct core *core, struct member *member, uint32_t state)
{
	if (member->info.state == state)
		return;
	member->info.state = state;
	member->found_silent = false;
	core->jobs_touched = true; /* a guardian's rank counts the living */
	if (state == MEMBER_SUSPECT)
		core_member_set_add(core, &core->suspects, member);
	else
		core_member_set_remove(core, &core->suspects, member);
	core_member_changed(core, member);
	core_member_notify(core, member);
	if (state == MEMBER_SUSPECT)
		core_member_suspect_until(core, member, core->now_ms + core_suspect_ms(core));
	if (member->info.incarnation)
		core_member_spread(core, member);
}

/* The row for a record that may be believed, or NULL. A new card is verified once. */
static struct member *row_of_record(struct core *core, const struct core_gossip *record)
{
	const struct core_config *config = &core->config;
	struct member *member = core_member_find(core, &record->id);
	bool same = record->kind != CORE_GOSSIP_FULL ||
		    (member && !memcmp(&member->card, &record->card, sizeof(record->card)));

	if (same)
		return member;
	if (member && record->card.issued_wall_ms < member->card.issued_wall_ms)
		return member;
	if (!config->verify_card(config->ctx, &record->card)) {
		core->refusals.cards++;
		return NULL;
	}
	if (member)
		fill_card(member, &record->card);
	else
		member = member_insert(core, &record->card);
	return member;
}

/* A rumour that comes back has got around (Demers et al. 1987): it is told less often. */
static void heard_again(struct core *core, struct member *member)
{
	uint16_t *transmits = &core->transmits[member - core->members];

	if (*transmits <= TRANSMITS_HEARD)
		core_member_hush(core, member);
	else
		*transmits = (uint16_t)(*transmits - TRANSMITS_HEARD);
}

bool core_member_apply(struct core *core, const struct node_id *from,
		       const struct core_gossip *record, bool spread)
{
	struct member *member;
	struct member_info *info;
	bool newer;

	if (node_id_equal(&record->id, core_self(core))) {
		refute(core, record);
		return false;
	}
	member = row_of_record(core, record);
	if (!member)
		return false;
	info = &member->info;
	newer = record->incarnation > info->incarnation;
	if (record->incarnation < info->incarnation && node_id_equal(from, &record->id))
		core->refusals.old_lives++;
	if (!newer && (record->incarnation < info->incarnation || record->state <= info->state)) {
		if (core->transmits[member - core->members] &&
		    record->incarnation == info->incarnation && record->state == info->state)
			heard_again(core, member);
		return false;
	}
	info->incarnation = record->incarnation;
	if (newer && record->kind != CORE_GOSSIP_BRIEF) {
		const struct member_state_report *report = &record->report;

		if (info->report.flags != report->flags || info->report.jobs != report->jobs ||
		    memcmp(info->addr, record->addr, sizeof(info->addr)) != 0)
			core_member_notify(core, member);
		memcpy(info->addr, record->addr, sizeof(info->addr));
		info->port = record->port;
		info->report = *report;
		member->grants = 0;
	}
	if (newer && record->state == MEMBER_ALIVE && info->state != MEMBER_ALIVE)
		member->heard_ms = core->now_ms; /* somebody vouches for it */
	core_member_set_state(core, member, record->state);
	core_member_changed(core, member);
	if (spread)
		core_member_spread(core, member);
	else
		core_member_hush(core, member);
	return true;
}

/* Load and memory drift all the time; only a real step is worth gossip of its own. */
static bool differs_much(uint64_t a, uint64_t b)
{
	uint64_t larger = a > b ? a : b, step = a > b ? a - b : b - a;

	return step > larger >> MINOR_SHIFT;
}

/* What a host can run: known at its start, and changed by hand. */
static bool differs_in_kind(const struct member_state_report *a,
			    const struct member_state_report *b)
{
	return memcmp(a->cpu_features, b->cpu_features, sizeof(a->cpu_features)) != 0 ||
	       a->arch != b->arch || a->cores != b->cores ||
	       a->kernel_version != b->kernel_version || a->kernel_features != b->kernel_features ||
	       memcmp(a->tags, b->tags, sizeof(a->tags)) != 0;
}

void core_member_report(struct core *core, const struct member_state_report *report)
{
	struct member *self = &core->members[0];
	struct member_state_report old = self->info.report;
	bool major = old.flags != report->flags || old.jobs != report->jobs ||
		     differs_in_kind(&old, report);

	self->info.report = *report;
	self->grants = 0;
	if (major) {
		self->info.incarnation++;
		core_member_changed(core, self);
		core_member_notify(core, self);
		core_member_broadcast(core, self);
		core->self_minor = false;
	} else if (differs_much(old.load_milli, report->load_milli) ||
		   differs_much(old.stays, report->stays) ||
		   differs_much(old.mem_free_bytes, report->mem_free_bytes) ||
		   differs_much(old.store_free_bytes, report->store_free_bytes)) {
		core->self_minor = true;
		core_arm(core, core->minor_ms);
	}
}

void core_member_greet(struct core *core, const struct core_event *event)
{
	const struct core_config *config = &core->config;
	struct member *member = core_member_find(core, &event->node);
	size_t length = 0;

	if (node_id_equal(&event->node, core_self(core)))
		return;
	if (!member && event->card && node_id_equal(&event->card->id, &event->node) &&
	    config->verify_card(config->ctx, event->card)) {
		member = member_insert(core, event->card);
		if (member)
			member->info.state = MEMBER_ALIVE;
	}
	if (!member)
		return;
	if (!member->info.incarnation && event->addr) {
		while (length < sizeof(member->info.addr) - 1 && event->addr[length])
			length++;
		memset(member->info.addr, 0, sizeof(member->info.addr));
		memcpy(member->info.addr, event->addr, length);
		member->info.port = event->port;
	}
	member->heard_ms = core->now_ms;
	core_member_send_digest(core, &event->node);
}

void core_member_leave(struct core *core)
{
	struct member *self = &core->members[0];

	core->left = true;
	core->half_ms = UINT64_MAX;
	self->info.incarnation++;
	self->info.state = MEMBER_LEFT;
	core_member_changed(core, self);
	core_member_broadcast(core, self);
}

const struct member_info *core_member(const struct core *core, uint32_t index, uint64_t now_ms)
{
	struct member *member;

	if (index >= core->member_count)
		return NULL;
	member = (struct member *)(uintptr_t)&core->members[index];
	member->info.silent_ms = 0;
	if (!member->info.is_self && now_ms > member->heard_ms)
		member->info.silent_ms = now_ms - member->heard_ms;
	return &member->info;
}

const struct node_card *core_card(const struct core *core, const struct node_id *id)
{
	const struct member *member = core_member_find(core, id);

	return member ? &member->card : NULL;
}

bool core_address(const struct core *core, const struct node_id *id, const char **ret_addr,
		  uint16_t *ret_port)
{
	const struct member *member = core_member_find(core, id);

	if (!member || member->info.is_self || member->info.state == MEMBER_LEFT ||
	    !member->info.addr[0] || !member->info.port)
		return false;
	*ret_addr = member->info.addr;
	*ret_port = member->info.port;
	return true;
}
