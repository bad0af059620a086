/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The ring: joining, stabilising, rectifying, after Zave's corrected operations. A change of the
 * successor list is one assignment from one answer; nothing else ever touches the list.
 */
#include "overlay/core/chord_state.h"

#include <errno.h>
#include <string.h>

#include "overlay/ipc.h"

uint64_t chord_random(struct chord *chord)
{
	uint64_t x = chord->random += UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

uint64_t chord_jitter(struct chord *chord, uint32_t period_ms)
{
	return period_ms - period_ms / 8 + chord_random(chord) % (period_ms / 4 + 1);
}

void chord_send(struct chord_update *update, const struct chord_peer *to,
		const struct chord_message *m, bool for_lookup)
{
	struct chord_send *send;

	if (update->send_count == CHORD_SENDS_MAX)
		return;
	send = &update->sends[update->send_count];
	send->size = chord_message_encode(m, send->bytes, sizeof(send->bytes));
	if (!send->size)
		return;
	send->to = *to;
	send->for_lookup = for_lookup;
	update->send_count++;
}

static void send_plain(struct chord_update *update, const struct chord_peer *to,
		       enum chord_message_type type, uint64_t seq)
{
	struct chord_message m;

	memset(&m, 0, offsetof(struct chord_message, peers));
	m.type = (uint8_t)type;
	m.seq = seq;
	chord_send(update, to, &m, false);
}

static void send_notify(struct chord *chord, struct chord_update *update)
{
	struct chord_message m;

	memset(&m, 0, offsetof(struct chord_message, peers));
	m.type = CHORD_MSG_NOTIFY;
	m.peer = chord->config.self;
	chord_send(update, &chord->successors[0], &m, false);
}

void chord_request_start(struct chord *chord, struct chord_request *request,
			 const struct chord_peer *to)
{
	request->to = *to;
	request->tries = 1;
	request->seq = chord_random(chord);
	request->due_ms = chord->now_ms + chord->config.retry_ms;
}

static void mark_silent(struct chord *chord, const struct node_id *id)
{
	struct chord_silent *oldest = &chord->silent[0];

	for (uint32_t i = 1; i < CHORD_AVOID_MAX; i++)
		if (chord->silent[i].until_ms < oldest->until_ms)
			oldest = &chord->silent[i];
	oldest->id = *id;
	oldest->until_ms = chord->now_ms + CHORD_SILENT_MS;
	chord_drop_finger(chord, id);
}

bool chord_is_silent(const struct chord *chord, const struct node_id *id)
{
	for (uint32_t i = 0; i < CHORD_AVOID_MAX; i++)
		if (chord->silent[i].until_ms > chord->now_ms &&
		    node_id_equal(&chord->silent[i].id, id))
			return true;
	return false;
}

static void mark_heard(struct chord *chord, const struct node_id *id)
{
	for (uint32_t i = 0; i < CHORD_AVOID_MAX; i++)
		if (chord->silent[i].until_ms && node_id_equal(&chord->silent[i].id, id))
			chord->silent[i].until_ms = 0;
}

int chord_request_check(struct chord *chord, struct chord_request *request)
{
	if (!request->to.port || chord->now_ms < request->due_ms)
		return 0;
	request->due_ms = chord->now_ms + chord->config.retry_ms;
	if (request->tries++ < chord->config.tries)
		return 1;
	mark_silent(chord, &request->to.id);
	request->to.port = 0;
	return 2;
}

bool chord_request_answered(struct chord_request *request, const struct node_id *from, uint64_t seq)
{
	if (!request->to.port || request->seq != seq || !node_id_equal(&request->to.id, from))
		return false;
	request->to.port = 0;
	return true;
}

static void list_changed(struct chord *chord)
{
	uint64_t digest = 0;

	for (uint32_t i = 0; i < chord->successor_count; i++) {
		struct ring_key at = chord_position(&chord->successors[i]);

		digest = (digest ^ at.high ^ at.low * 3) * UINT64_C(0x9e3779b97f4a7c15);
		digest ^= digest >> 29;
	}
	chord->digest = digest | 1;
}

/* The list becomes head and what follows it, as far as that is in ring order before self. */
static void list_set(struct chord *chord, const struct chord_peer *head,
		     const struct chord_peer *peers, uint32_t count)
{
	struct ring_key last = ring_distance(chord->self, chord_position(head));
	uint32_t n = 1;

	chord->successors[0] = *head;
	for (uint32_t i = 0; i < count && n < chord->config.successors; i++) {
		struct ring_key at = ring_distance(chord->self, chord_position(&peers[i]));

		if (!ring_less(last, at))
			break;
		chord->successors[n++] = peers[i];
		last = at;
	}
	chord->successor_count = n;
	list_changed(chord);
}

static void become_lost(struct chord *chord)
{
	chord->head_digest = 0;
	if (!chord->seed_count) {
		chord->predecessor.port = 0; /* a ring of one again */
		return;
	}
	chord->state = CHORD_JOINING;
	chord->join_due_ms = chord->now_ms;
	chord->rectify.to.port = chord->table.to.port = 0;
}

static void ask_neighbours(struct chord *chord, struct chord_update *update)
{
	struct chord_message m;

	memset(&m, 0, offsetof(struct chord_message, peers));
	m.type = CHORD_MSG_NEIGHBOURS;
	m.seq = chord->stabilise.seq;
	m.digest = chord->asks_between ? 0 : chord->head_digest;
	chord_send(update, &chord->stabilise.to, &m, false);
}

static void stabilise_ask(struct chord *chord, struct chord_update *update,
			  const struct chord_peer *to, bool between)
{
	chord->asks_between = between;
	chord_request_start(chord, &chord->stabilise, to);
	ask_neighbours(chord, update);
}

static void stabilise_begin(struct chord *chord, struct chord_update *update)
{
	chord->stabilised_ms = chord->now_ms;
	chord->stabilise_due_ms = chord->now_ms + chord_jitter(chord, chord->config.stabilise_ms);
	if (chord->successor_count)
		stabilise_ask(chord, update, &chord->successors[0], false);
	else if (chord->predecessor.port)
		stabilise_ask(chord, update, &chord->predecessor, true);
}

/* Zave: StabilizeFromPredecessor; the new head is alive, it has just answered. */
static void adopt_between(struct chord *chord, struct chord_update *update,
			  const struct chord_peer *head, const struct chord_message *m)
{
	struct chord_peer old[CHORD_SUCCESSORS_MAX];

	memcpy(old, chord->successors, sizeof(old));
	if (CHORD_RULE(CHORD_RULE_ONE_CHANGE) && m) {
		list_set(chord, head, m->peers, m->peer_count);
		chord->head_digest = m->digest;
	} else {
		list_set(chord, head, old, chord->successor_count);
		chord->head_digest = 0;
	}
	send_notify(chord, update);
	/* There may be one more before it. */
	chord->stabilise_due_ms = chord->now_ms + CHORD_NUDGE_MS;
}

/* Zave: StabilizeFromSuccessor, the answer. */
static void stabilise_answer(struct chord *chord, struct chord_update *update,
			     const struct chord_peer *head, const struct chord_message *m)
{
	const struct chord_peer *p = m->flags & CHORD_FLAG_PRED ? &m->peer : NULL;

	if (!(m->flags & CHORD_FLAG_UNCHANGED)) {
		list_set(chord, head, m->peers, m->peer_count);
		chord->head_digest = m->digest;
	}
	if (p && node_id_equal(&p->id, &chord->config.self.id))
		return;
	if (!p || !ring_between(chord->self, chord_position(p), chord_position(head)) ||
	    chord_is_silent(chord, &p->id))
		send_notify(chord, update);
	else if (CHORD_RULE(CHORD_RULE_ASK_FIRST))
		stabilise_ask(chord, update, p, true);
	else
		adopt_between(chord, update, p, NULL);
}

static void stabilise_silence(struct chord *chord, struct chord_update *update)
{
	if (chord->asks_between) {
		if (chord->successor_count)
			send_notify(chord, update);
		else
			chord->predecessor.port = 0;
		return;
	}
	chord->successor_count--;
	memmove(&chord->successors[0], &chord->successors[1],
		chord->successor_count * sizeof(chord->successors[0]));
	chord->head_digest = 0;
	list_changed(chord);
	if (chord->successor_count)
		stabilise_ask(chord, update, &chord->successors[0], false);
	else
		become_lost(chord);
}

static void on_list(struct chord *chord, struct chord_update *update, const struct node_id *from,
		    const struct chord_message *m)
{
	struct chord_peer head = chord->stabilise.to;

	if (!chord_request_answered(&chord->stabilise, from, m->seq))
		return;
	if (chord->asks_between)
		adopt_between(chord, update, &head, m);
	else
		stabilise_answer(chord, update, &head, m);
}

/* Zave: Rectify. */
static void on_notify(struct chord *chord, struct chord_update *update, const struct node_id *from,
		      const struct chord_peer *n)
{
	struct chord_peer *old = &chord->predecessor;

	if (!node_id_equal(from, &n->id) || node_id_equal(from, &chord->config.self.id))
		return;
	if (!old->port || node_id_equal(&old->id, &n->id)) {
		*old = *n;
	} else if (ring_between(chord_position(old), chord_position(n), chord->self)) {
		send_plain(update, old, CHORD_MSG_NUDGE, 0);
		*old = *n;
		chord->rectify.to.port = 0;
	} else if (chord_is_silent(chord, &old->id)) {
		*old = *n;
	} else if (!chord->rectify.to.port) {
		chord->notifier = *n;
		chord_request_start(chord, &chord->rectify, old);
		send_plain(update, old, CHORD_MSG_PING, chord->rectify.seq);
	}
}

static void answer_neighbours(struct chord *chord, struct chord_update *update,
			      const struct chord_peer *to, const struct chord_message *ask)
{
	struct chord_message m;

	memset(&m, 0, offsetof(struct chord_message, peers));
	m.type = CHORD_MSG_LIST;
	m.seq = ask->seq;
	m.digest = chord->digest;
	if (chord->predecessor.port) {
		m.flags |= CHORD_FLAG_PRED;
		m.peer = chord->predecessor;
	}
	if (ask->digest == chord->digest) {
		m.flags |= CHORD_FLAG_UNCHANGED;
	} else {
		m.peer_count = (uint8_t)chord->successor_count;
		memcpy(m.peers, chord->successors, m.peer_count * sizeof(m.peers[0]));
	}
	chord_send(update, to, &m, false);
}

static void answer_table(struct chord *chord, struct chord_update *update,
			 const struct chord_peer *to, uint64_t seq)
{
	struct chord_message m;

	memset(&m, 0, offsetof(struct chord_message, peers));
	m.type = CHORD_MSG_FINGERS;
	m.seq = seq;
	for (uint32_t i = 0; i < CHORD_FINGERS_MAX; i++) {
		const struct chord_peer *peer = &chord->fingers[i];

		if (peer->port &&
		    (!m.peer_count || !node_id_equal(&peer->id, &m.peers[m.peer_count - 1].id)))
			m.peers[m.peer_count++] = *peer;
	}
	chord_send(update, to, &m, false);
}

static void on_question(struct chord *chord, struct chord_update *update,
			const struct node_id *from, const struct chord_message *m)
{
	struct chord_peer to = { .id = *from };
	struct chord_message answer;

	switch (m->type) {
	case CHORD_MSG_FIND:
		memset(&answer, 0, offsetof(struct chord_message, peers));
		chord_answer_find(chord, m, &answer);
		chord_send(update, &to, &answer, false);
		break;
	case CHORD_MSG_NEIGHBOURS:
		answer_neighbours(chord, update, &to, m);
		break;
	case CHORD_MSG_TABLE:
		answer_table(chord, update, &to, m->seq);
		break;
	case CHORD_MSG_PING:
		send_plain(update, &to, CHORD_MSG_PONG, m->seq);
		break;
	case CHORD_MSG_NOTIFY:
		on_notify(chord, update, from, &m->peer);
		break;
	case CHORD_MSG_NUDGE:
		if (chord->now_ms >= chord->stabilised_ms + CHORD_NUDGE_MS)
			chord->stabilise_due_ms = chord->now_ms;
		break;
	default:
		break;
	}
}

static void on_message(struct chord *chord, struct chord_update *update, const struct node_id *from,
		       const struct chord_message *m)
{
	mark_heard(chord, from);
	if (m->type == CHORD_MSG_FOUND) {
		chord_found(chord, from, m);
		return;
	}
	if (chord->state != CHORD_MEMBER)
		return; /* who has not joined knows nothing that is worth an answer */
	if (m->type == CHORD_MSG_LIST) {
		on_list(chord, update, from, m);
	} else if (m->type == CHORD_MSG_PONG) {
		(void)chord_request_answered(&chord->rectify, from, m->seq);
	} else if (m->type == CHORD_MSG_FINGERS) {
		if (chord_request_answered(&chord->table, from, m->seq))
			for (uint32_t i = 0; i < m->peer_count; i++)
				chord_learn_finger(chord, &m->peers[i]);
	} else {
		on_question(chord, update, from, m);
	}
}

/* Zave: Join, the answer of the member that self falls behind. */
void chord_joined(struct chord *chord, const struct chord_peer *predecessor,
		  const struct chord_message *m)
{
	const struct chord_peer *list = m->peers;
	uint32_t count = m->peer_count;

	/* It has not noticed yet that self was gone. */
	if (count && node_id_equal(&list->id, &chord->config.self.id)) {
		list++;
		count--;
	}
	if (!CHORD_RULE(CHORD_RULE_JOIN_LIST) && count > 1)
		count = 1;
	chord->state = CHORD_MEMBER;
	chord->predecessor = *predecessor;
	chord->successor_count = 0;
	chord->head_digest = 0;
	if (count)
		list_set(chord, list, list + 1, count - 1);
	else
		list_set(chord, predecessor, NULL, 0);
	chord->stabilise.to.port = 0;
	chord->stabilise_due_ms = chord->now_ms;
	chord->finger_due_ms = chord->now_ms + chord_jitter(chord, chord->config.finger_ms);
	chord_request_start(chord, &chord->table, &chord->successors[0]);
	chord->table.due_ms = chord->now_ms;
	chord->table.tries = 0;
}

static void join_tick(struct chord *chord)
{
	if (chord->now_ms < chord->join_due_ms || chord->joining)
		return;
	chord->join_due_ms = chord->now_ms + chord_jitter(chord, CHORD_JOIN_RETRY_MS);
	chord->joining =
		!chord_find_join(chord, &chord->seeds[chord->seed_next++ % chord->seed_count]);
}

static void member_tick(struct chord *chord, struct chord_update *update)
{
	int r = chord_request_check(chord, &chord->stabilise);

	if (r == 1)
		ask_neighbours(chord, update);
	else if (r == 2)
		stabilise_silence(chord, update);
	if (chord->state != CHORD_MEMBER)
		return;
	if (!chord->stabilise.to.port && chord->now_ms >= chord->stabilise_due_ms)
		stabilise_begin(chord, update);
	r = chord_request_check(chord, &chord->rectify);
	if (r == 1)
		send_plain(update, &chord->rectify.to, CHORD_MSG_PING, chord->rectify.seq);
	else if (r == 2 && node_id_equal(&chord->predecessor.id, &chord->rectify.to.id))
		chord->predecessor = chord->notifier;
	if (chord_request_check(chord, &chord->table) == 1)
		send_plain(update, &chord->table.to, CHORD_MSG_TABLE, chord->table.seq);
}

static void sooner(uint64_t *when_ms, uint64_t other_ms)
{
	if (other_ms < *when_ms)
		*when_ms = other_ms;
}

static uint64_t next_due(const struct chord *chord)
{
	uint64_t when_ms = chord_find_deadline(chord);

	if (chord->state == CHORD_JOINING && !chord->joining)
		sooner(&when_ms, chord->join_due_ms);
	if (chord->state != CHORD_MEMBER)
		return when_ms;
	sooner(&when_ms,
	       chord->stabilise.to.port ? chord->stabilise.due_ms : chord->stabilise_due_ms);
	if (chord->rectify.to.port)
		sooner(&when_ms, chord->rectify.due_ms);
	if (chord->table.to.port)
		sooner(&when_ms, chord->table.due_ms);
	return when_ms;
}

int chord_step(struct chord *chord, const struct chord_event *event, struct chord_update *update)
{
	struct chord_message m;
	int r = 0;

	update->send_count = update->result_count = 0;
	if (event->now_ms > chord->now_ms)
		chord->now_ms = event->now_ms;
	if (event->type == CHORD_EV_MESSAGE) {
		r = chord_message_decode(event->bytes, event->size, &m);
		if (r)
			return r;
		on_message(chord, update, &event->from, &m);
	}
	if (chord->state == CHORD_MEMBER)
		member_tick(chord, update);
	if (chord->state == CHORD_JOINING)
		join_tick(chord);
	chord_find_tick(chord, update);
	chord->next_ms = next_due(chord);
	return 0;
}

uint64_t chord_deadline(const struct chord *chord)
{
	return chord->next_ms;
}

size_t chord_size(uint32_t lookup_max)
{
	return sizeof(struct chord) + lookup_max * sizeof(struct chord_path);
}

int chord_init(struct chord *chord, const struct chord_config *config)
{
	if (!config->successors || config->successors > CHORD_SUCCESSORS_MAX || !config->paths ||
	    config->paths > CHORD_PATHS_MAX || !config->tries || !config->stabilise_ms ||
	    !config->finger_ms || !config->retry_ms || config->lookup_max < 2 ||
	    config->lookup_max > CHORD_LOOKUPS_MAX || !config->self.port ||
	    node_id_is_zero(&config->self.id))
		return -EINVAL;
	memset(chord, 0, chord_size(config->lookup_max));
	chord->config = *config;
	chord->self = chord_position(&config->self);
	chord->random = config->seed ^ chord->self.high;
	chord->next_ms = UINT64_MAX;
	return 0;
}

static void boot_successor(struct chord *chord, const struct chord_peer *peer)
{
	struct ring_key at = ring_distance(chord->self, chord_position(peer));
	uint32_t i = chord->successor_count;

	if (i < chord->config.successors)
		chord->successor_count++;
	else if (!ring_less(at,
			    ring_distance(chord->self, chord_position(&chord->successors[--i]))))
		return;
	for (; i &&
	       ring_less(at, ring_distance(chord->self, chord_position(&chord->successors[i - 1])));
	     i--)
		chord->successors[i] = chord->successors[i - 1];
	chord->successors[i] = *peer;
}

int chord_boot(struct chord *chord, uint64_t now_ms, const struct chord_peer *peers,
	       uint32_t peer_count)
{
	for (uint32_t i = 0; i < peer_count; i++)
		if (!peers[i].port || node_id_is_zero(&peers[i].id))
			return -EINVAL;
	chord->now_ms = now_ms;
	chord->state = CHORD_MEMBER;
	chord->successor_count = 0;
	chord->predecessor.port = 0;
	for (uint32_t i = 0; i < peer_count; i++) {
		if (node_id_equal(&peers[i].id, &chord->config.self.id))
			continue;
		boot_successor(chord, &peers[i]);
		chord_learn_finger(chord, &peers[i]);
		if (!chord->predecessor.port ||
		    ring_between(chord_position(&chord->predecessor), chord_position(&peers[i]),
				 chord->self))
			chord->predecessor = peers[i];
	}
	list_changed(chord);
	chord->head_digest = 0;
	chord->stabilise_due_ms = now_ms + chord_random(chord) % chord->config.stabilise_ms;
	chord->finger_due_ms = now_ms + chord_random(chord) % chord->config.finger_ms;
	chord->next_ms = next_due(chord);
	return 0;
}

int chord_join(struct chord *chord, uint64_t now_ms, const struct chord_peer *seeds,
	       uint32_t seed_count)
{
	if (!seed_count || seed_count > CHORD_SEEDS_MAX)
		return -EINVAL;
	for (uint32_t i = 0; i < seed_count; i++)
		if (!seeds[i].port || node_id_is_zero(&seeds[i].id))
			return -EINVAL;
	chord->now_ms = now_ms;
	memcpy(chord->seeds, seeds, seed_count * sizeof(seeds[0]));
	chord->seed_count = seed_count;
	chord->seed_next = 0;
	if (chord->state == CHORD_OUT) {
		chord->state = CHORD_JOINING;
		chord->join_due_ms = now_ms;
	}
	chord->next_ms = next_due(chord);
	return 0;
}

enum chord_state chord_state(const struct chord *chord)
{
	return chord->state;
}

const struct chord_peer *chord_successor(const struct chord *chord, uint32_t index)
{
	return index < chord->successor_count ? &chord->successors[index] : NULL;
}

const struct chord_peer *chord_finger(const struct chord *chord, uint32_t index)
{
	return index < CHORD_FINGERS_MAX && chord->fingers[index].port ? &chord->fingers[index] :
									 NULL;
}

const struct chord_peer *chord_predecessor(const struct chord *chord)
{
	return chord->predecessor.port ? &chord->predecessor : NULL;
}
