// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Shards that are missing, made again from k others by those who have one.
 *
 *   a round: list groups -> what is missing? (core; own rot) -> in order: what do the others know?
 *   -> bucket, gather, rebuild, check -> own store, or scatter -> group with a higher revision to all
 *
 * Of a group's holders that are there the first one acts; a host whose own shard rotted acts for
 * itself. Which shard it is its hash says: a group that was told wrong leads to nothing.
 */
#include <errno.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/coded.h"
#include "overlay/net/internal.h"

enum rebuild_step {
	STEP_LIST,
	STEP_ASK,
	STEP_GATHER,
	STEP_MAKE,
	STEP_SCATTER,
	STEP_NOTE,
	STEP_TELL
};

struct rebuild_op {
	struct store_task task;
	struct overlay *overlay;
	enum rebuild_step step;
	struct store_group *items; /* LIST */
	uint32_t count;
	struct ov_group group;		      /* as it was; then as it is to be */
	struct node_id before[OV_SHARDS_MAX]; /* whose shards are made again; zero: it stays */
	uint32_t want;
	bool own, stable_only; /* own: what rotted here */
	struct fan fan;
	bool calling, scattering;
	struct gather *gather;
	struct scatter scatter;
	int status;
};

static void op_free(struct rebuild_op *op)
{
	if (op->calling)
		fan_free(&op->fan);
	if (op->scattering)
		scatter_stop(&op->scatter);
	for (uint32_t i = 0; i < OV_SHARDS_MAX; i++)
		close_fdp(&op->scatter.fds[i]);
	gather_free(op->gather);
	op->overlay->rebuild.op = NULL;
	free(op->items);
	free(op);
}

static void op_submit(struct rebuild_op *op, enum rebuild_step step)
{
	op->step = step;
	if (store_worker_submit(op->overlay->worker, &op->task) < 0)
		op_free(op);
}

/* --- the worker's part ------------------------------------------------------------------- */

static int put_here(struct rebuild_op *op, uint32_t index, const uint8_t *bytes, uint32_t size)
{
	const struct ov_group *group = &op->group;
	struct ov_object object = { .job = group->job,
				    .token = group->token,
				    .hash = group->shards[index],
				    .seq = group->seq,
				    .size = size };
	struct store_put *put = NULL;
	int r = store_put_begin(op->overlay->store, &object, &put);

	if (r < 0)
		return r;
	r = store_put_write(put, bytes, size);
	if (r == 0)
		return store_put_commit(put);
	store_put_abort(put);
	return r;
}

static int keep(struct rebuild_op *op, uint32_t index)
{
	struct gather *g = op->gather;
	struct object_hash found;
	int *fd = &op->scatter.fds[index], r;

	SHA256(g->shards[index], g->bytes, found.b);
	if (memcmp(&found, &op->group.shards[index], sizeof(found)) != 0)
		return -EBADMSG;
	if (op->own)
		return put_here(op, index, g->shards[index], g->bytes);
	*fd = memfd_new("shard");
	if (*fd < 0)
		return *fd;
	r = pwrite_full(*fd, g->shards[index], g->bytes, 0);
	return r < 0 ? r : memfd_seal(*fd);
}

static int make(struct rebuild_op *op)
{
	struct gather *g = op->gather;
	uint32_t want = op->want & ~g->have;
	int r = 0;

	for (uint32_t i = 0; i < OV_SHARDS_MAX && r == 0; i++)
		if (want & 1u << i)
			r = gather_room(g, i);
	if (r == 0)
		r = shard_rebuild(&g->head, g->have, want, g->shards);
	for (uint32_t i = 0; i < OV_SHARDS_MAX && r == 0; i++)
		if (op->want & 1u << i)
			r = keep(op, i);
	return r;
}

static void op_run(struct store_task *task)
{
	struct rebuild_op *op = container_of(task, struct rebuild_op, task);

	switch (op->step) {
	case STEP_LIST:
		op->status = store_list_groups(op->overlay->store, &op->items, &op->count);
		break;
	case STEP_MAKE:
		op->status = make(op);
		break;
	default:
		op->status = store_set_group(op->overlay->store, &op->group);
	}
}

/* --- from others and to others ----------------------------------------------------------- */

static bool is_yes(struct fan_leg *leg, int status)
{
	(void)leg;
	return status == 0;
}

static int call_holders(struct rebuild_op *op, enum rebuild_step step, const struct fan_ops *ops,
			const struct net_call *call)
{
	struct node_id *targets = calloc(2 * OV_SHARDS_MAX, sizeof(*targets));
	uint32_t count = 0, before = 0;

	for (uint32_t i = 0; targets && i < op->group.k + op->group.m; i++)
		if (!node_id_equal(&op->group.holders[i], &op->overlay->self))
			targets[count++] = op->group.holders[i];
	/* They may be there, and about to leave: what they have is one too many. */
	if (targets && step == STEP_TELL)
		before = core_spread_there(op->overlay->core, op->before, OV_SHARDS_MAX);
	for (uint32_t i = 0; i < OV_SHARDS_MAX; i++)
		if (before & 1u << i && !node_id_equal(&op->before[i], &op->overlay->self) &&
		    !node_id_equal(&op->before[i], &op->group.holders[i]))
			targets[count++] = op->before[i];
	if (!targets)
		return -ENOMEM;
	op->step = step;
	op->calling = true;
	op->fan = (struct fan){ .overlay = op->overlay,
				.ops = ops,
				.owner = op,
				.call = *call,
				.stream_fd = -1,
				.stall_ms = OVERLAY_GET_STALL_MS,
				.wanted = UINT32_MAX,
				.targets = targets,
				.target_count = count };
	return fan_start(&op->fan);
}

static void tell_finished(struct fan *fan)
{
	struct rebuild_op *op = fan->owner;

	op_free(op);
}

static const struct fan_ops tell_ops = { .result = is_yes, .finished = tell_finished };

static void scattered(struct scatter *scatter, int status)
{
	struct rebuild_op *op = scatter->owner;

	/* Some may have found a host, and others none. */
	if (!scatter->placed) {
		log_debug("rebuild: nobody takes a shard: status=%d", status);
		op_free(op);
		return;
	}
	log_info("rebuild: object=%02x%02x%02x%02x shards=%d of %u+%u", op->group.hash.b[0],
		 op->group.hash.b[1], op->group.hash.b[2], op->group.hash.b[3],
		 __builtin_popcount(scatter->placed), op->group.k, op->group.m);
	op->group.revision++;
	op_submit(op, STEP_NOTE);
}

static int scatter(struct rebuild_op *op)
{
	struct scatter *s = &op->scatter;

	s->overlay = op->overlay;
	s->group = &op->group;
	s->want = op->want;
	s->stable_only = op->stable_only;
	/* Whose shard is made again may come back with it. */
	for (uint32_t i = 0; i < op->group.k + op->group.m; i++)
		if (op->want & 1u << i)
			op->before[i] = s->refused[s->refused_count++] = op->group.holders[i];
	s->done = scattered;
	s->owner = op;
	op->step = STEP_SCATTER;
	op->scattering = true;
	return scatter_start(s);
}

static void gathered(struct gather *gather, int status)
{
	struct rebuild_op *op = gather->owner;

	if (status < 0) {
		log_debug("rebuild: fewer than %u shards are there", op->group.k);
		op_free(op);
		return;
	}
	op_submit(op, STEP_MAKE);
}

/* A newer list from somebody, if it is one of the same shards. */
static void ask_answer(struct fan_leg *leg, const uint8_t *bytes, size_t size)
{
	struct rebuild_op *op = leg->fan->owner;
	struct ov_group told;

	if (net_group_decode(bytes, size, &told) < 0 || !net_group_supersedes(&told, &op->group))
		return;
	op->group = told;
	op->status = -ESTALE;
}

static void ask_finished(struct fan *fan)
{
	struct rebuild_op *op = fan->owner;
	struct overlay *overlay = op->overlay;

	fan_free(&op->fan);
	op->calling = false;
	if (op->status == -ESTALE) { /* known now; the next round looks again */
		op->want = 0;
		op_submit(op, STEP_NOTE);
		return;
	}
	op->step = STEP_GATHER;
	if (gather_start(overlay, &op->group, gathered, op, &op->gather) < 0)
		op_free(op);
}

static const struct fan_ops ask_ops = { .answer = ask_answer,
					.result = is_yes,
					.finished = ask_finished };

/* --- a round ----------------------------------------------------------------------------- */

/* What this host is to make now, of this group. */
static uint32_t plan(struct overlay *overlay, const struct store_group *item, uint32_t *ret_there,
		     bool *ret_own, bool *ret_stable_only)
{
	const struct ov_group *group = &item->group;
	uint32_t want;

	*ret_own = *ret_stable_only = false;
	want = core_spread_repair(overlay->core, &overlay->repair.rule, group->holders, group->k,
				  group->m, ret_there, ret_stable_only);
	for (uint32_t i = 0; i < group->k + group->m; i++) {
		if (!node_id_equal(&group->holders[i], &overlay->self) || item->present & 1u << i)
			continue;
		*ret_own = true;
		return *ret_there > group->k ? 1u << i : 0;
	}
	/* At most m at one time: k are read. */
	while ((uint32_t)__builtin_popcount(want) > group->m)
		want &= want - 1;
	return want;
}

static int compare_items(const void *a, const void *b)
{
	const struct store_group *x = a, *y = b;

	return x->rank < y->rank ? -1 : x->rank > y->rank;
}

/* Keeps those that miss shards, the fewest that are there first. */
static void take_list(struct rebuild_op *op)
{
	struct rebuild *rebuild = &op->overlay->rebuild;
	uint32_t count = 0, there;
	bool own, stable_only;

	shed_look(op->overlay, op->items, op->count);
	for (uint32_t i = 0; i < op->count; i++) {
		if (!plan(op->overlay, &op->items[i], &there, &own, &stable_only))
			continue;
		op->items[count] = op->items[i];
		op->items[count++].rank = there - op->items[i].group.k;
	}
	qsort(op->items, count, sizeof(*op->items), compare_items);
	free(rebuild->items);
	rebuild->items = take_ptr(op->items);
	rebuild->count = count;
	rebuild->at = 0;
}

static void op_done(struct store_task *task)
{
	struct rebuild_op *op = container_of(task, struct rebuild_op, task);
	struct net_call tell = { .op = NET_OP_GROUP };

	if (task->cancelled || op->status < 0) {
		if (!task->cancelled)
			log_debug("rebuild: step=%d status=%d", op->step, op->status);
		op_free(op);
	} else if (op->step == STEP_LIST) {
		take_list(op);
		op_free(op);
	} else if (op->step == STEP_MAKE && op->own) {
		log_info("rebuild: object=%02x%02x%02x%02x own shard", op->group.hash.b[0],
			 op->group.hash.b[1], op->group.hash.b[2], op->group.hash.b[3]);
		op_free(op);
	} else if (op->step == STEP_MAKE) {
		if (scatter(op) < 0)
			op_free(op);
	} else if (op->want) {
		tell.group = op->group;
		if (call_holders(op, STEP_TELL, &tell_ops, &tell) < 0)
			op_free(op);
	} else {
		op_free(op);
	}
}

static struct rebuild_op *op_new(struct overlay *overlay)
{
	struct rebuild_op *op = calloc(1, sizeof(*op));

	if (!op)
		return NULL;
	op->overlay = overlay;
	op->task.run = op_run;
	op->task.done = op_done;
	for (uint32_t i = 0; i < OV_SHARDS_MAX; i++)
		op->scatter.fds[i] = -1;
	overlay->rebuild.op = op;
	return op;
}

static void start_round(struct overlay *overlay, uint64_t now_ms)
{
	struct rebuild_op *op = op_new(overlay);

	overlay->rebuild.next_ms = now_ms + overlay->repair.round_ms;
	if (op)
		op_submit(op, STEP_LIST);
}

void rebuild_tick(struct overlay *overlay, uint64_t now_ms)
{
	struct rebuild *rebuild = &overlay->rebuild;
	struct net_call call = { .op = NET_OP_GROUP_GET };
	bool own, stable_only;
	const struct store_group *item;
	struct rebuild_op *op;
	uint32_t want, there;
	uint64_t bytes;

	if (!overlay->repair.round_ms || rebuild->op)
		return;
	/* Who is missing is known when those who are not have had time to be heard. */
	if (!rebuild->next_ms)
		rebuild->next_ms = overlay->repair.next_ms;
	if (rebuild->at == rebuild->count) {
		if (now_ms >= rebuild->next_ms)
			start_round(overlay, now_ms);
		return;
	}
	item = &rebuild->items[rebuild->at];
	/* Things have changed since the round began. */
	want = plan(overlay, item, &there, &own, &stable_only);
	bytes = shard_bytes(item->group.size, item->group.k);
	if (want && !core_bucket_take(&overlay->repair.bucket, now_ms,
				      bytes * (item->group.k + (uint32_t)__builtin_popcount(want))))
		return;
	rebuild->at++;
	op = want ? op_new(overlay) : NULL;
	if (!op)
		return;
	op->group = item->group;
	op->want = want;
	op->own = own;
	op->stable_only = stable_only;
	call.object.hash = op->group.hash;
	if (call_holders(op, STEP_ASK, &ask_ops, &call) < 0)
		op_free(op);
}

void rebuild_stop(struct overlay *overlay)
{
	struct rebuild *rebuild = &overlay->rebuild;

	/* What waits for the worker was freed by its end. */
	if (rebuild->op)
		op_free(rebuild->op);
	free(rebuild->items);
	rebuild->items = NULL;
	rebuild->count = rebuild->at = 0;
}
