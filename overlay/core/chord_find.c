/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Look-ups, asked by the one who wants to know, node by node; fingers are looked up the same way,
 * beginning with the finger itself, which mostly is still right.
 */
#include "overlay/core/chord_state.h"

#include <errno.h>
#include <string.h>

#include "overlay/ipc.h"

static bool is_named(const struct node_id *id, const struct node_id *list, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (node_id_equal(id, &list[i]))
			return true;
	return false;
}

/* Keeps the nearest before the key, best first. */
static void offer_nearer(const struct chord *chord, const struct chord_message *ask,
			 const struct chord_peer *peer, struct chord_message *answer)
{
	struct ring_key at = ring_distance(chord->self, chord_position(peer));
	uint32_t i = answer->peer_count;

	if (!ring_less(at, ring_distance(chord->self, ask->key)) &&
	    !ring_equal(chord->self, ask->key))
		return;
	while (i &&
	       ring_less(ring_distance(chord->self, chord_position(&answer->peers[i - 1])), at))
		i--;
	if (i == CHORD_NEARER_MAX || is_named(&peer->id, ask->avoid, ask->avoid_count) ||
	    chord_is_silent(chord, &peer->id) ||
	    (i && node_id_equal(&answer->peers[i - 1].id, &peer->id)))
		return;
	if (answer->peer_count < CHORD_NEARER_MAX)
		answer->peer_count++;
	for (uint32_t k = answer->peer_count - 1U; k > i; k--)
		answer->peers[k] = answer->peers[k - 1];
	answer->peers[i] = *peer;
}

static void answer_nearer(const struct chord *chord, const struct chord_message *ask,
			  struct chord_message *answer)
{
	for (uint32_t i = 0; i < CHORD_FINGERS_MAX; i++)
		if (chord->fingers[i].port)
			offer_nearer(chord, ask, &chord->fingers[i], answer);
	for (uint32_t i = 0; i < chord->successor_count; i++)
		offer_nearer(chord, ask, &chord->successors[i], answer);
}

/* The list reaches past the key: its first member from there on. */
static bool answer_from_list(const struct chord *chord, const struct chord_message *ask,
			     struct chord_message *answer)
{
	bool join = ask->flags & CHORD_FLAG_JOIN;
	uint32_t max = join ? CHORD_SUCCESSORS_MAX : CHORD_NEARER_MAX;

	if (join && !chord->successor_count) {
		answer->flags = CHORD_FLAG_LAST; /* a ring of one */
		return true;
	}
	for (uint32_t i = 0; i < chord->successor_count && answer->peer_count < max; i++) {
		const struct chord_peer *peer = &chord->successors[i];

		if (!ring_within(chord->self, ask->key, chord_position(peer))) {
			if (join)
				return false; /* only its predecessor tells a joiner where it is */
			continue;
		}
		if (!join && (is_named(&peer->id, ask->avoid, ask->avoid_count) ||
			      chord_is_silent(chord, &peer->id)))
			continue;
		answer->peers[answer->peer_count++] = *peer;
	}
	if (!answer->peer_count)
		return false;
	answer->flags = CHORD_FLAG_LAST;
	return true;
}

void chord_answer_find(const struct chord *chord, const struct chord_message *ask,
		       struct chord_message *answer)
{
	const struct chord_peer *pred = &chord->predecessor;
	bool closing = ask->flags & CHORD_FLAG_CLOSING, owner;

	answer->type = CHORD_MSG_FOUND;
	answer->seq = ask->seq;
	/* Asked as the next after a predecessor that is silent: then it is ours. */
	owner = pred->port ?
			ring_within(chord_position(pred), ask->key, chord->self) ||
				(closing && is_named(&pred->id, ask->avoid, ask->avoid_count)) :
			closing || !chord->successor_count;
	if (ask->flags & CHORD_FLAG_JOIN)
		owner = closing = false;
	if (owner) {
		answer->flags = CHORD_FLAG_OWNER;
		if (!(ask->flags & CHORD_FLAG_REPLICAS))
			return;
		for (uint32_t i = 0; i < chord->successor_count && i < OV_REPLICAS_MAX - 1; i++)
			answer->peers[answer->peer_count++] = chord->successors[i];
	} else if (closing) {
		answer->flags = CHORD_FLAG_LAST;
		answer->peers[answer->peer_count++] = *pred;
	} else if (!answer_from_list(chord, ask, answer)) {
		answer_nearer(chord, ask, answer);
	}
}

static uint64_t asked_mark(const struct node_id *id, bool closing)
{
	struct ring_key at = ring_of(id);

	return (at.high ^ at.low * UINT64_C(0x9e3779b97f4a7c15)) << 1 | closing;
}

static bool path_has_asked(const struct chord_path *path, uint64_t mark)
{
	for (uint32_t i = 0; i < path->asked_count; i++)
		if (path->asked[i] == mark)
			return true;
	return false;
}

static bool is_sibling(const struct chord_path *path, const struct chord_path *other)
{
	return other->purpose == CHORD_FIND && path->purpose == CHORD_FIND &&
	       other->request_id == path->request_id;
}

/* By this path; or by one it shall be disjoint from, but the end of all is the same. */
static bool is_asked(const struct chord *chord, const struct chord_path *path,
		     const struct node_id *id, bool closing)
{
	uint64_t mark = asked_mark(id, closing);

	if (path_has_asked(path, mark))
		return true;
	for (uint32_t i = 0; !closing && chord->config.paths > 1 && i < chord->config.lookup_max;
	     i++)
		if (is_sibling(path, &chord->paths[i]) && path_has_asked(&chord->paths[i], mark))
			return true;
	return false;
}

/* The one added last is asked first. */
static void add_candidate(struct chord *chord, struct chord_path *path,
			  const struct chord_peer *peer, bool closing)
{
	if (node_id_equal(&peer->id, &chord->config.self.id) ||
	    is_named(&peer->id, path->avoid, path->avoid_count) ||
	    is_asked(chord, path, &peer->id, closing))
		return;
	if (path->candidate_count == CHORD_CANDIDATES_MAX) {
		path->candidate_count--;
		memmove(&path->candidates[0], &path->candidates[1],
			path->candidate_count * sizeof(path->candidates[0]));
	}
	path->candidates[path->candidate_count++] =
		(struct chord_candidate){ .peer = *peer, .closing = closing };
}

/* Then it waits for its siblings, which will look at it. */
static void path_end(struct chord_path *path)
{
	path->done = true;
	path->request.to.port = 0;
	path->request.due_ms = UINT64_MAX;
}

static void path_finish(struct chord_path *path, const struct node_id *owner,
			const struct chord_message *m)
{
	path_end(path);
	path->found[path->found_count++] = *owner;
	for (uint32_t i = 0; i < m->peer_count && path->found_count < path->wanted; i++)
		path->found[path->found_count++] = m->peers[i].id;
}

static void path_ask_message(const struct chord_path *path, struct chord_message *m)
{
	memset(m, 0, offsetof(struct chord_message, peers));
	m->type = CHORD_MSG_FIND;
	m->seq = path->request.seq;
	m->key = path->key;
	if (path->closing)
		m->flags |= CHORD_FLAG_CLOSING;
	if (path->purpose == CHORD_JOIN)
		m->flags |= CHORD_FLAG_JOIN;
	if (path->wanted > 1)
		m->flags |= CHORD_FLAG_REPLICAS;
	m->avoid_count = path->avoid_count;
	memcpy(m->avoid, path->avoid, path->avoid_count * sizeof(m->avoid[0]));
}

/* What self knows of the key: the beginning of each path. */
static void path_begin(struct chord *chord, struct chord_path *path, uint32_t skip)
{
	struct chord_message ask, answer;
	bool last;

	if (chord->state != CHORD_MEMBER)
		return;
	path->closing = false;
	path_ask_message(path, &ask);
	memset(&answer, 0, offsetof(struct chord_message, peers));
	chord_answer_find(chord, &ask, &answer);
	if (answer.flags & CHORD_FLAG_OWNER) {
		path_finish(path, &chord->config.self.id, &answer);
		return;
	}
	last = answer.flags & CHORD_FLAG_LAST;
	for (uint32_t i = answer.peer_count; i-- > 0;)
		if (last || i >= skip || answer.peer_count <= skip)
			add_candidate(chord, path, &answer.peers[i], last);
}

static struct chord_path *free_path(struct chord *chord, enum chord_purpose purpose,
				    struct ring_key key, uint32_t reserve)
{
	struct chord_path *found = NULL;
	uint32_t count = 0;

	for (uint32_t i = 0; i < chord->config.lookup_max; i++) {
		if (chord->paths[i].purpose != CHORD_FREE)
			continue;
		found = &chord->paths[i];
		count++;
	}
	if (count <= reserve)
		return NULL;
	/* The arrays are bounded by their counts. */
	memset(found, 0, offsetof(struct chord_path, candidates));
	found->purpose = (uint8_t)purpose;
	found->key = key;
	found->wanted = 1;
	return found;
}

int chord_find(struct chord *chord, uint64_t now_ms, struct ring_key key, uint32_t count,
	       uint64_t request_id)
{
	uint32_t room = 0;

	if (!count || count > OV_REPLICAS_MAX)
		return -EINVAL;
	if (chord->state != CHORD_MEMBER)
		return -EHOSTUNREACH;
	for (uint32_t i = 0; i < chord->config.lookup_max; i++)
		room += chord->paths[i].purpose == CHORD_FREE;
	if (room < chord->config.paths + 1U)
		return -EAGAIN;
	if (now_ms > chord->now_ms)
		chord->now_ms = now_ms;
	for (uint32_t n = 0; n < chord->config.paths; n++) {
		struct chord_path *path = free_path(chord, CHORD_FIND, key, 1);

		path->request_id = request_id;
		path->wanted = (uint8_t)count;
		path_begin(chord, path, n);
	}
	chord->next_ms = chord->now_ms;
	return 0;
}

int chord_find_join(struct chord *chord, const struct chord_peer *seed)
{
	struct chord_path *path = free_path(chord, CHORD_JOIN, chord->self, 0);

	if (!path)
		return -EAGAIN;
	add_candidate(chord, path, seed, false);
	return 0;
}

void chord_learn_finger(struct chord *chord, const struct chord_peer *peer)
{
	struct ring_key at = chord_position(peer);

	if (ring_equal(at, chord->self))
		return;
	for (uint32_t i = 0; i < CHORD_FINGERS_MAX; i++) {
		struct ring_key start = ring_finger(chord->self, i);
		struct chord_peer *finger = &chord->fingers[i];

		if (!finger->port || ring_less(ring_distance(start, at),
					       ring_distance(start, chord_position(finger))))
			*finger = *peer;
	}
}

void chord_drop_finger(struct chord *chord, const struct node_id *id)
{
	for (uint32_t i = 0; i < CHORD_FINGERS_MAX; i++) {
		if (!chord->fingers[i].port || !node_id_equal(&chord->fingers[i].id, id))
			continue;
		chord->fingers[i].port = 0;
		chord->finger_next = i; /* looked up next */
	}
}

/* Fingers that the successor list reaches past are not kept. */
static bool is_finger_needed(const struct chord *chord, uint32_t index)
{
	const struct chord_peer *last;

	if (!chord->successor_count)
		return false;
	last = &chord->successors[chord->successor_count - 1];
	return !ring_within(chord->self, ring_finger(chord->self, index), chord_position(last));
}

static void finger_tick(struct chord *chord)
{
	struct chord_path *path;
	uint32_t at = CHORD_FINGERS_MAX;

	if (chord->now_ms < chord->finger_due_ms)
		return;
	chord->finger_due_ms = chord->now_ms + chord_jitter(chord, chord->config.finger_ms);
	for (uint32_t n = 0; n < CHORD_FINGERS_MAX && at == CHORD_FINGERS_MAX; n++) {
		uint32_t i = (chord->finger_next + n) % CHORD_FINGERS_MAX;

		if (is_finger_needed(chord, i))
			at = i;
		else
			chord->fingers[i].port = 0;
	}
	if (at == CHORD_FINGERS_MAX)
		return;
	path = free_path(chord, CHORD_FIX_FINGER, ring_finger(chord->self, at), 0);
	if (!path)
		return;
	path->finger = (uint8_t)at;
	chord->finger_next = at + 1;
	path_begin(chord, path, 0);
	if (chord->fingers[at].port && !path->done)
		add_candidate(chord, path, &chord->fingers[at], true);
}

static void path_send(struct chord_update *update, const struct chord_path *path)
{
	struct chord_message m;

	path_ask_message(path, &m);
	chord_send(update, &path->request.to, &m, path->purpose == CHORD_FIND);
}

/* Asks the next candidate, or is done without an answer. */
static void path_advance(struct chord *chord, struct chord_update *update, struct chord_path *path)
{
	struct chord_candidate *next;

	if (!path->candidate_count && path->restarts < CHORD_RESTARTS_MAX) {
		path->restarts++;
		path->asked_count = 0;
		path_begin(chord, path, 0);
	}
	if (path->done)
		return;
	if (!path->candidate_count || path->hops == CHORD_ASKED_MAX) {
		path_end(path);
		return;
	}
	next = &path->candidates[--path->candidate_count];
	path->closing = next->closing;
	path->hops++;
	if (path->asked_count < CHORD_ASKED_MAX)
		path->asked[path->asked_count++] = asked_mark(&next->peer.id, next->closing);
	chord_request_start(chord, &path->request, &next->peer);
	path_send(update, path);
}

static void path_silence(struct chord_path *path, const struct node_id *id)
{
	path->silent++;
	if (path->avoid_count == CHORD_AVOID_MAX) {
		path->avoid_count--;
		memmove(&path->avoid[0], &path->avoid[1],
			path->avoid_count * sizeof(path->avoid[0]));
	}
	path->avoid[path->avoid_count++] = *id;
}

/* Each answer must lead nearer to the key, or it is not followed. */
static void path_follow(struct chord *chord, struct chord_path *path, const struct chord_peer *from,
			const struct chord_message *m)
{
	struct ring_key at = chord_position(from);
	bool last = m->flags & CHORD_FLAG_LAST;

	if (path->closing && last && path->purpose == CHORD_FIX_FINGER &&
	    ++path->back > CHORD_FINGER_STEPS) {
		/* Many have joined before this finger: one search is shorter than walking back. */
		path->candidate_count = 0;
		path->back = 0;
		path_begin(chord, path, 0);
		return;
	}
	for (uint32_t i = m->peer_count; i-- > 0;) {
		struct ring_key peer = chord_position(&m->peers[i]);

		if (last ? ring_less(ring_distance(path->key, peer), ring_distance(path->key, at)) :
			   ring_less(ring_distance(peer, path->key), ring_distance(at, path->key)))
			add_candidate(chord, path, &m->peers[i], last);
	}
}

void chord_found(struct chord *chord, const struct node_id *from, const struct chord_message *m)
{
	for (uint32_t i = 0; i < chord->config.lookup_max; i++) {
		struct chord_path *path = &chord->paths[i];
		struct chord_peer to = path->request.to;

		if (path->purpose == CHORD_FREE ||
		    !chord_request_answered(&path->request, from, m->seq))
			continue;
		if (path->purpose == CHORD_JOIN && m->flags & CHORD_FLAG_LAST) {
			path->purpose = CHORD_FREE;
			chord->joining = false;
			if (chord->state == CHORD_JOINING)
				chord_joined(chord, &to, m);
		} else if (m->flags & CHORD_FLAG_OWNER && path->purpose != CHORD_JOIN) {
			if (path->purpose == CHORD_FIX_FINGER)
				chord->fingers[path->finger] = to;
			path_finish(path, &to.id, m);
		} else {
			path_follow(chord, path, &to, m);
		}
		return;
	}
}

/* All paths of the look-up are done: the nearest node that confirmed counts. */
static void find_finish(struct chord *chord, struct chord_update *update, struct chord_path *path)
{
	struct lookup_result *result;
	const struct chord_path *best = NULL;

	if (update->result_count == CHORD_RESULTS_MAX) {
		path->request.due_ms = chord->now_ms; /* in the next step */
		return;
	}
	for (uint32_t i = 0; i < chord->config.lookup_max; i++)
		if (is_sibling(path, &chord->paths[i]) && !chord->paths[i].done)
			return;
	result = &update->results[update->result_count++];
	*result = (struct lookup_result){ .request_id = path->request_id, .status = -EHOSTUNREACH };
	for (uint32_t i = 0; i < chord->config.lookup_max; i++) {
		struct chord_path *other = &chord->paths[i];

		if (other != path && !is_sibling(path, other))
			continue;
		if (other->hops > result->hops)
			result->hops = other->hops;
		result->silent += other->silent;
		if (other->found_count &&
		    (!best || ring_less(ring_distance(path->key, ring_of(&other->found[0])),
					ring_distance(path->key, ring_of(&best->found[0])))))
			best = other;
	}
	if (best) {
		result->status = 0;
		result->count = best->found_count;
		memcpy(result->nodes, best->found, best->found_count * sizeof(best->found[0]));
	}
	for (uint32_t i = 0; i < chord->config.lookup_max; i++)
		if (&chord->paths[i] != path && is_sibling(path, &chord->paths[i]))
			chord->paths[i].purpose = CHORD_FREE;
	path->purpose = CHORD_FREE;
}

static void path_tick(struct chord *chord, struct chord_update *update, struct chord_path *path)
{
	struct node_id to = path->request.to.id;
	int r = chord_request_check(chord, &path->request);

	if (r == 1)
		path_send(update, path);
	else if (r == 2)
		path_silence(path, &to);
	if (!path->done && !path->request.to.port)
		path_advance(chord, update, path);
	if (!path->done)
		return;
	if (path->purpose == CHORD_FIND) {
		find_finish(chord, update, path);
		return;
	}
	if (path->purpose == CHORD_JOIN)
		chord->joining = false;
	path->purpose = CHORD_FREE;
}

void chord_find_tick(struct chord *chord, struct chord_update *update)
{
	if (chord->state == CHORD_MEMBER)
		finger_tick(chord);
	for (uint32_t i = 0; i < chord->config.lookup_max; i++)
		if (chord->paths[i].purpose != CHORD_FREE)
			path_tick(chord, update, &chord->paths[i]);
}

uint64_t chord_find_deadline(const struct chord *chord)
{
	uint64_t when_ms = chord->state == CHORD_MEMBER ? chord->finger_due_ms : UINT64_MAX;

	for (uint32_t i = 0; i < chord->config.lookup_max; i++) {
		const struct chord_path *path = &chord->paths[i];

		if (path->purpose != CHORD_FREE && path->request.due_ms < when_ms)
			when_ms = path->request.due_ms;
	}
	return when_ms;
}
