/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checkpoints as whole objects: sent to HOSTS_COPIES hosts that core_place() names, durable there
 * before the answer leaves, named in the register only after enough answers (rule O4).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "overlay/ipc.h"
#include "tests/sim/hosts.h"

enum { TRANSFER_MS = 400, GIVE_UP_MS = 15000 };

static struct hosts_object object_of(const struct hosts *hosts, const struct job_value *value,
				     const struct ckpt_ref *ckpt)
{
	struct hosts_object object = { .job = hosts_job_index(hosts, &value->job) };

	memcpy(&object.token, ckpt->manifest.b, 8);
	memcpy(&object.seq, ckpt->manifest.b + 8, 8);
	object.token ^= (uint64_t)ckpt->manifest.b[16] << 56;
	return object;
}

static uint32_t find(const struct hosts_store *store, const struct hosts_object *object)
{
	uint32_t at = 0;

	while (at < store->count &&
	       (store->objects[at].job != object->job || store->objects[at].seq != object->seq ||
		store->objects[at].token != object->token))
		at++;
	return at;
}

static void store_add(struct hosts_store *store, const struct hosts_object *object)
{
	if (find(store, object) < store->count)
		return;
	if (store->count == store->room) {
		store->room = store->room ? 2 * store->room : 16;
		store->objects = realloc(store->objects, store->room * sizeof(store->objects[0]));
		if (!store->objects)
			abort();
	}
	store->objects[store->count++] = *object;
}

/* Two copies elsewhere, or as many as there are other hosts. */
static uint32_t copies_needed(const struct hosts *hosts)
{
	return hosts->net->node_count > 2 ? 2 : hosts->net->node_count - 1;
}

bool objects_enough(const struct hosts *hosts, const struct host_job *hj)
{
#ifdef MUTANT_O4
	(void)hosts;
	return hj->acks > 0;
#else
	return hj->acks >= copies_needed(hosts);
#endif
}

/* node, holder: 10 bits each; job: 8; the put's number: the rest. */
static uint64_t pack(uint32_t node, uint32_t holder, uint32_t job, uint32_t put)
{
	return (uint64_t)put << 28 | job << 20 | holder << 10 | node;
}

static void on_ack(void *ctx, uint64_t packed)
{
	uint32_t node = packed & 1023, holder = packed >> 10 & 1023, job = packed >> 20 & 255;
	struct hosts *hosts = ctx;
	struct host_job *hj = hosts->at[job][node];
	struct hosts_object object;

	if (!simnet_is_up(hosts->net, node) || !hj || !hj->storing ||
	    hj->put != (uint32_t)(packed >> 28) || hj->acks == HOSTS_COPIES ||
	    !simnet_hears(hosts->net, node, holder))
		return;
	object = object_of(hosts, &hj->wish, &hj->wish.history[0]);
	if (find(&hosts->stores[holder], &object) == hosts->stores[holder].count)
		return; /* its disk is not the one that the answer came from */
	hj->holders[hj->acks++] = hosts->net->nodes[holder].card.id;
	hosts_wake(hosts, node, job, hosts->net->now_ms + 1);
}

static void on_stored(void *ctx, uint64_t packed)
{
	uint32_t node = packed & 1023, holder = packed >> 10 & 1023, job = packed >> 20 & 255;
	struct hosts *hosts = ctx;
	struct host_job *hj = hosts->at[job][node];
	struct hosts_object object;

	/* The sender must still be there: it is a stream. */
	if (!hj || !hj->storing || hj->put != (uint32_t)(packed >> 28) ||
	    !simnet_is_up(hosts->net, holder) || !simnet_hears(hosts->net, holder, node))
		return;
	object = object_of(hosts, &hj->wish, &hj->wish.history[0]);
	store_add(&hosts->stores[holder], &object);
	simnet_at(hosts->net, hosts->net->now_ms + 1 + simnet_below(hosts->net, 20), on_ack, hosts,
		  packed);
}

void objects_put(struct hosts *hosts, uint32_t node, uint32_t job)
{
	struct simnet *net = hosts->net;
	struct host_job *hj = hosts->at[job][node];
	struct node_id to[HOSTS_COPIES];
	uint32_t count = core_place(net->nodes[node].core, &hj->wish.history[0].manifest, 1 << 20,
				    &net->nodes[node].card.id, HOSTS_COPIES, to);

	hj->storing = true;
	hj->put++;
	hj->acks = 0;
	hj->give_up_ms = net->now_ms + GIVE_UP_MS;
	hosts_wake(hosts, node, job, copies_needed(hosts) ? hj->give_up_ms : net->now_ms + 1);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t holder = simnet_index(net, &to[i]);

		if (holder < SIMNET_NODES_MAX)
			simnet_at(net, net->now_ms + 20 + simnet_below(net, TRANSFER_MS), on_stored,
				  hosts, pack(node, holder, job, hj->put));
	}
}

static bool is_needed(const struct hosts *hosts, const struct job_value *value,
		      const struct hosts_object *object)
{
	/* What is on its way now is newer than anything that is committed. */
	if (value->history_count && object->seq > value->history[0].seq)
		return true;
	for (uint32_t i = 0; i < value->history_count; i++) {
		struct hosts_object one = object_of(hosts, value, &value->history[i]);

		if (one.seq == object->seq && one.token == object->token)
			return true;
	}
	return false;
}

/* One copy goes. The register must not name it, unless nobody will restore that job any more. */
static void drop(struct hosts *hosts, struct hosts_store *store, uint32_t at)
{
	const struct job_id *id = &hosts->jobs[store->objects[at].job].id;
	const struct job_value *value = checker_current(&hosts->checker, id);
	uint32_t count = value && value->state <= JOB_STATE_DONE ? value->history_count : 0;

	for (uint32_t i = 0; i < count; i++) {
		struct hosts_object one = object_of(hosts, value, &value->history[i]);

		if (one.seq == store->objects[at].seq && one.token == store->objects[at].token)
			checker_fail(&hosts->checker, id,
				     "G3: a copy of what is committed was dropped");
	}
	store->objects[at] = store->objects[--store->count];
}

void objects_retain(struct hosts *hosts, uint32_t node, uint32_t job, const struct job_value *value)
{
	for (uint32_t i = 0; i < hosts->net->node_count; i++) {
		struct hosts_store *store = &hosts->stores[i];

		if (!simnet_is_up(hosts->net, i) || !simnet_hears(hosts->net, i, node))
			continue;
		for (uint32_t k = 0; k < store->count;)
			if (store->objects[k].job == job &&
			    !is_needed(hosts, value, &store->objects[k]))
				drop(hosts, store, k);
			else
				k++;
	}
}

/* Older than what is committed, or of a job whose end is chosen. */
static bool is_garbage(const struct hosts *hosts, int status, const struct job_value *value,
		       const struct hosts_object *object)
{
#ifdef MUTANT_G3
	if (status == -ENOENT)
		return true;
#endif
	/* G3: "not found" is no evidence that it is over. */
	if (status)
		return false;
	if (value->state == JOB_STATE_COLLECTED || value->state == JOB_STATE_KILLED)
		return true;
	return value->history_count && object->seq < value->history[0].seq &&
	       !is_needed(hosts, value, object);
}

void objects_pull(struct hosts *hosts, uint32_t node, uint32_t job, int status,
		  const struct job_value *value)
{
	struct hosts_store *store = &hosts->stores[node];

	for (uint32_t k = 0; k < store->count;)
		if (store->objects[k].job == job &&
		    is_garbage(hosts, status, value, &store->objects[k]))
			drop(hosts, store, k);
		else
			k++;
}

/* Copies on disks, and those that were there until a disk was rolled back. */
static void count_copies(struct hosts *hosts, const struct job_value *value, uint32_t *ret_there,
			 uint32_t *ret_wiped)
{
	const struct ckpt_ref *ckpt = &value->history[0];
	struct hosts_object object = object_of(hosts, value, ckpt);

	*ret_there = *ret_wiped = 0;
	for (uint32_t i = 0; i < ckpt->holder_count; i++) {
		uint32_t holder = simnet_index(hosts->net, &ckpt->holders[i]);

		if (holder == SIMNET_NODES_MAX)
			++*ret_wiped;
		else if (find(&hosts->stores[holder], &object) < hosts->stores[holder].count)
			++*ret_there;
	}
}

void objects_check_commit(struct hosts *hosts, const struct job_value *value)
{
	uint32_t there, wiped;

	if (!value->history_count)
		return;
	count_copies(hosts, value, &there, &wiped);
	if (there + wiped < copies_needed(hosts))
		checker_fail(&hosts->checker, &value->job, "I7: committed with too few copies");
}

void objects_check_restorable(struct hosts *hosts, const struct job_value *value)
{
	uint32_t there, wiped;

	/* Of what was collected or killed nobody restores anything any more. */
	if (!value->history_count || !copies_needed(hosts) || value->state > JOB_STATE_DONE)
		return;
	count_copies(hosts, value, &there, &wiped);
	if (!there && !wiped)
		checker_fail(&hosts->checker, &value->job,
			     "a committed checkpoint is on nobody's disk");
}
