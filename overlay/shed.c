// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Shards that lie here although the list names another host: made again while this one was away.
 *
 *   a round of rebuild's list -> superseded? if not known: three of the others, is there a newer list?
 *   -> VOUCH from the host that the list names -> the shard itself, by its hash -> drop
 *
 * A list may be old or a lie, so it gives nothing up by itself: who is named must promise to keep
 * the shard (as in trim.c, where such promises are kept) and must have handed it out whole. As no
 * list names one host twice, a host that lies costs one shard of a group at a time, which others can
 * make again. Any doubt, and the shard stays; the next time around it is looked at again.
 */
#include <errno.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define LOG_TAG "overlay"
#include "agent/util/log.h"
#include "overlay/coded.h"
#include "overlay/net/internal.h"

enum {
	ASK_ANSWERS = 3,
	ANSWER_MS = 60 * 1000,
	DROP_MS = 5 * 60 * 1000, /* half of what a promise lasts */
};

enum shed_step { STEP_ASK, STEP_NOTE, STEP_VOUCH, STEP_FETCH, STEP_DROP };

struct shed_op {
	struct store_task task;
	struct overlay *overlay;
	enum shed_step step;
	struct ov_group group;
	uint32_t index; /* of the shard; from VOUCH on */
	bool newer, calling, vouched;
	uint64_t vouched_ms;
	struct fan fan;
	EVP_MD_CTX *digest;
	uint32_t received;
	int status;
};

static void op_free(struct shed_op *op)
{
	if (op->calling)
		fan_free(&op->fan);
	EVP_MD_CTX_free(op->digest);
	op->overlay->shed.op = NULL;
	free(op);
}

static void op_submit(struct shed_op *op, enum shed_step step)
{
	op->step = step;
	if (store_worker_submit(op->overlay->worker, &op->task) < 0)
		op_free(op);
}

static const struct object_hash *shard_of(const struct shed_op *op)
{
	return &op->group.shards[op->index];
}

bool shed_is_leaving(const struct overlay *overlay, const struct job_id *job,
		     const struct object_hash *hash)
{
	const struct shed_op *op = overlay->shed.op;

	return op && op->step >= STEP_VOUCH && !memcmp(&op->group.job, job, sizeof(*job)) &&
	       !memcmp(shard_of(op), hash, sizeof(*hash));
}

static void stays(const struct ov_group *group, const char *why)
{
	log_debug("shed: object=%02x%02x%02x%02x stays: %s", group->hash.b[0], group->hash.b[1],
		  group->hash.b[2], group->hash.b[3], why);
}

static void keep(struct shed_op *op, const char *why)
{
	stays(&op->group, why);
	op_free(op);
}

static int call(struct shed_op *op, enum shed_step step, const struct fan_ops *ops,
		const struct net_call *call, const struct node_id *nodes, uint32_t count)
{
	struct node_id *targets = calloc(count + 1, sizeof(*targets));

	if (!targets)
		return -ENOMEM;
	memcpy(targets, nodes, count * sizeof(*targets));
	op->step = step;
	op->calling = true;
	op->fan = (struct fan){ .overlay = op->overlay,
				.ops = ops,
				.owner = op,
				.call = *call,
				.stream_fd = -1,
				.stall_ms = step == STEP_ASK ? OVERLAY_GET_STALL_MS : ANSWER_MS,
				.wanted = step == STEP_ASK ? ASK_ANSWERS : 1,
				.targets = targets,
				.target_count = count };
	return fan_start(&op->fan);
}

static void end_call(struct shed_op *op)
{
	fan_free(&op->fan);
	op->calling = false;
}

static bool is_yes(struct fan_leg *leg, int status)
{
	(void)leg;
	return status == 0;
}

/* --- the shard, from who is named --------------------------------------------------------- */

static void drop_run(struct store_task *task)
{
	struct shed_op *op = container_of(task, struct shed_op, task);

	if (net_now_ms() > op->vouched_ms + DROP_MS)
		op->status = -ETIMEDOUT;
	else
		op->status =
			store_shed(op->overlay->store, &op->group, op->index, &op->overlay->self);
}

static void drop_done(struct store_task *task)
{
	struct shed_op *op = container_of(task, struct shed_op, task);
	const struct object_hash *hash = &op->group.hash;

	if (!task->cancelled && op->status == 0)
		log_info("shed: object=%02x%02x%02x%02x shard=%u is elsewhere", hash->b[0],
			 hash->b[1], hash->b[2], hash->b[3], op->index);
	else if (!task->cancelled && op->status != -ENOENT && op->status != -ESTALE)
		log_errno(op->status, "shed: drop");
	op_free(op);
}

static void fetch_begin(struct fan_leg *leg)
{
	struct shed_op *op = leg->fan->owner;

	op->received = 0;
}

static int fetch_data(struct fan_leg *leg, uint32_t total, const uint8_t *bytes, size_t size)
{
	struct shed_op *op = leg->fan->owner;

	if (total != shard_bytes(op->group.size, op->group.k) || size > total - op->received)
		return -EBADMSG;
	if (!op->received && EVP_DigestInit_ex(op->digest, EVP_sha256(), NULL) != 1)
		return -ENOMEM;
	if (EVP_DigestUpdate(op->digest, bytes, size) != 1)
		return -ENOMEM;
	op->received += (uint32_t)size;
	return 0;
}

/* What it handed out is the shard. */
static bool fetch_result(struct fan_leg *leg, int status)
{
	struct shed_op *op = leg->fan->owner;
	struct object_hash found = { 0 };
	unsigned int size = sizeof(found.b);

	op->status = status;
	if (status < 0)
		return false;
	if (op->received == shard_bytes(op->group.size, op->group.k) &&
	    EVP_DigestFinal_ex(op->digest, found.b, &size) == 1 &&
	    !memcmp(&found, shard_of(op), sizeof(found)))
		return true;
	op->status = -EBADMSG;
	store_count_bad(op->overlay->store);
	log_warn("shed: peer=%02x%02x%02x%02x shard=%u: wrong hash", leg->node.b[0], leg->node.b[1],
		 leg->node.b[2], leg->node.b[3], op->index);
	return false;
}

static void fetched(struct fan *fan)
{
	struct shed_op *op = fan->owner;

	end_call(op);
	if (op->status < 0) {
		keep(op, "it is not to be had from who is named");
	} else if (trim_is_pinned(op->overlay, &op->group.job, shard_of(op))) {
		keep(op, "it was promised to another");
	} else {
		op->task.run = drop_run;
		op->task.done = drop_done;
		op_submit(op, STEP_DROP);
	}
}

static const struct fan_ops fetch_ops = { .begin = fetch_begin,
					  .data = fetch_data,
					  .result = fetch_result,
					  .finished = fetched };

static bool vouch_result(struct fan_leg *leg, int status)
{
	struct shed_op *op = leg->fan->owner;

	op->vouched = status == 0;
	return op->vouched;
}

static void vouched(struct fan *fan)
{
	struct shed_op *op = fan->owner;
	struct net_call get = { .op = NET_OP_GET, .object.hash = *shard_of(op) };

	end_call(op);
	op->status = -ENOENT;
	if (!op->vouched)
		keep(op, "who is named does not vouch for it");
	else if (call(op, STEP_FETCH, &fetch_ops, &get, &op->group.holders[op->index], 1) < 0)
		op_free(op);
}

static const struct fan_ops vouch_ops = { .result = vouch_result, .finished = vouched };

/* Which of the shards that lie here the list gives to others. */
static uint32_t superseded(const struct overlay *overlay, const struct store_group *item)
{
	uint32_t mask = item->present;

	for (uint32_t i = 0; i < item->group.k + item->group.m; i++)
		if (node_id_equal(&item->group.holders[i], &overlay->self))
			mask &= ~(1u << i);
	return mask;
}

/* One whose holder is there, while the group is well: one that is not may need what lies here. */
static bool choose(const struct overlay *overlay, const struct store_group *item,
		   uint32_t *ret_index)
{
	const struct ov_group *group = &item->group;
	uint32_t there = core_spread_there(overlay->core, group->holders, group->k + group->m);
	uint32_t mask = superseded(overlay, item) & there;

	if ((uint32_t)__builtin_popcount(there) < group->k + group->m / 2)
		return false;
	for (uint32_t i = 0; i < group->k + group->m; i++) {
		if (!(mask & 1u << i) || trim_is_pinned(overlay, &group->job, &group->shards[i]))
			continue;
		*ret_index = i;
		return true;
	}
	return false;
}

/* --- a newer list ------------------------------------------------------------------------- */

static void ask_answer(struct fan_leg *leg, const uint8_t *bytes, size_t size)
{
	struct shed_op *op = leg->fan->owner;
	struct ov_group told;

	if (net_group_decode(bytes, size, &told) == 0 && net_group_supersedes(&told, &op->group)) {
		op->group = told;
		op->newer = true;
	}
}

static void asked(struct fan *fan)
{
	struct shed_op *op = fan->owner;

	end_call(op);
	if (op->newer)
		op_submit(op, STEP_NOTE);
	else
		op_free(op);
}

static const struct fan_ops ask_ops = { .answer = ask_answer, .result = is_yes, .finished = asked };

static void note_run(struct store_task *task)
{
	struct shed_op *op = container_of(task, struct shed_op, task);

	op->status = store_set_group(op->overlay->store, &op->group);
}

/* If that says that a shard here is another's, it is looked at once more, as one that is known. */
static void note_done(struct store_task *task)
{
	struct shed_op *op = container_of(task, struct shed_op, task);
	struct shed *shed = &op->overlay->shed;
	struct store_group *item = &shed->items[shed->at - 1];

	if (!task->cancelled && op->status == 0) {
		item->group = op->group;
		shed->at -= superseded(op->overlay, item) != 0;
	}
	op_free(op);
}

/* --- a round ------------------------------------------------------------------------------ */

static void ask(struct shed_op *op)
{
	struct net_call get = { .op = NET_OP_GROUP_GET, .object.hash = op->group.hash };
	uint32_t n = op->group.k + op->group.m, count = 0;
	/* Not always the same ones: some of them may have been away as well. */
	uint32_t first = (uint32_t)(net_now_ms() % n);
	uint32_t there = core_spread_there(op->overlay->core, op->group.holders, n);
	struct node_id nodes[OV_SHARDS_MAX];

	for (uint32_t k = 0; k < n; k++) {
		uint32_t i = (first + k) % n;

		if (there & 1u << i && !node_id_equal(&op->group.holders[i], &op->overlay->self))
			nodes[count++] = op->group.holders[i];
	}
	op->task.run = note_run;
	op->task.done = note_done;
	if (call(op, STEP_ASK, &ask_ops, &get, nodes, count) < 0)
		op_free(op);
}

static void vouch(struct shed_op *op)
{
	struct net_call vouch = { .op = NET_OP_VOUCH,
				  .object = { .job = op->group.job, .hash = *shard_of(op) } };

	op->digest = EVP_MD_CTX_new();
	op->vouched_ms = net_now_ms();
	if (!op->digest ||
	    call(op, STEP_VOUCH, &vouch_ops, &vouch, &op->group.holders[op->index], 1) < 0)
		op_free(op);
}

/* As many as there is room for, from where it ended last: none is passed over for the others. */
void shed_look(struct overlay *overlay, const struct store_group *items, uint32_t count)
{
	struct shed *shed = &overlay->shed;
	uint32_t first = 0;

	if (shed->op || shed->at < shed->count)
		return;
	free(shed->items);
	shed->count = shed->at = 0;
	shed->items = calloc(SHED_ROUND_MAX, sizeof(*shed->items));
	if (!shed->items)
		return;
	while (first < count &&
	       memcmp(&items[first].group.hash, &shed->after, sizeof(shed->after)) <= 0)
		first++;
	for (uint32_t i = 0; i < count && shed->count < SHED_ROUND_MAX; i++) {
		const struct store_group *item = &items[(first + i) % count];

		shed->after = item->group.hash;
		if (item->present)
			shed->items[shed->count++] = *item;
	}
}

/* What is missing goes before what is too many: both take from one bucket. */
static bool repair_is_waiting(const struct overlay *overlay)
{
	return overlay->rebuild.at < overlay->rebuild.count ||
	       overlay->repair.at < overlay->repair.count;
}

void shed_tick(struct overlay *overlay, uint64_t now_ms)
{
	struct shed *shed = &overlay->shed;
	const struct store_group *item;
	struct shed_op *op;
	uint32_t index = 0;
	bool known;

	if (shed->op || shed->at == shed->count)
		return;
	item = &shed->items[shed->at];
	known = superseded(overlay, item);
	if (known && !choose(overlay, item, &index)) {
		stays(&item->group, "who is named is not there");
		shed->at++;
		return;
	}
	if (known && (repair_is_waiting(overlay) ||
		      !core_bucket_take(&overlay->repair.bucket, now_ms,
					shard_bytes(item->group.size, item->group.k))))
		return;
	shed->at++;
	op = calloc(1, sizeof(*op));
	if (!op)
		return;
	op->overlay = overlay;
	op->group = item->group;
	op->index = index;
	shed->op = op;
	if (known)
		vouch(op);
	else
		ask(op);
}

void shed_stop(struct overlay *overlay)
{
	struct shed *shed = &overlay->shed;

	/* What waits for the worker was freed by its end. */
	if (shed->op)
		op_free(shed->op);
	free(shed->items);
	shed->items = NULL;
	shed->count = shed->at = 0;
}
