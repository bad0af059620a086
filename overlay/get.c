// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * An object back from whoever has it. One holder is asked at a time; while it is slow, the next one
 * is asked beside it, and the first whole object with the right hash wins. So a holder that dies,
 * dawdles or lies in the middle costs half a second, not the object.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/coded.h"
#include "overlay/net/internal.h"

/* What came on one leg. */
struct part {
	int memfd;
	uint32_t received;
	uint64_t began_ms, moved_ms;
	bool hedged; /* the next holder was asked because of this one */
	EVP_MD_CTX *digest;
};

struct get_op {
	struct request *request;
	struct fan fan;
	bool local_tried, local_first;
	bool whole, coded; /* shards are not asked for any more; somebody has one */
	struct node_id teller;
	sd_event_source *timer;
	struct part parts[OVERLAY_GET_WIDTH];
	const struct part *borrower; /* of the caller's memfd; NULL: nobody writes to it */
	int memfd; /* sealed, with the right hash; -1: not yet, or it is the caller's */
};

static void get_cancel(struct request *request)
{
	struct get_op *op = request->state;

	fan_free(&op->fan);
	sd_event_source_disable_unref(op->timer);
	for (size_t i = 0; i < OVERLAY_GET_WIDTH; i++) {
		close_fdp(&op->parts[i].memfd);
		EVP_MD_CTX_free(op->parts[i].digest);
	}
	close_fdp(&op->memfd);
	free(op);
}

/* --- who lied --------------------------------------------------------------------------- */

/* For the log: a card's host name is the cluster's word, yet never trusted as text. */
static void name_of(struct overlay *overlay, const struct node_id *node, char name[OV_NAME_MAX])
{
	const struct node_card *card = core_card(overlay->core, node);

	if (!card) {
		hex_encode(node, sizeof(*node), name);
		return;
	}
	memcpy(name, card->hostname, OV_NAME_MAX);
	name[OV_NAME_MAX - 1] = '\0';
	for (char *c = name; *c; c++) {
		if (!isalnum((unsigned char)*c) && !strchr(".-_", *c))
			*c = '?';
	}
}

static bool is_liar(const struct overlay *overlay, const struct node_id *node)
{
	uint64_t now = net_now_ms();

	for (size_t i = 0; i < ARRAY_SIZE(overlay->liars); i++) {
		if (now < overlay->liars[i].until_ms &&
		    node_id_equal(&overlay->liars[i].node, node))
			return true;
	}
	return false;
}

/* Asked last for a while; the oldest entry goes. */
static void note_lie(struct fan_leg *leg, const char *what)
{
	struct overlay *overlay = leg->fan->overlay;
	struct liar *slot = &overlay->liars[0];
	char name[OV_NAME_MAX];

	store_count_bad(overlay->store);
	name_of(overlay, &leg->node, name);
	log_warn("get: peer=%s (%02x%02x%02x%02x): %s: asked last from now on", name,
		 leg->node.b[0], leg->node.b[1], leg->node.b[2], leg->node.b[3], what);
	for (size_t i = 0; i < ARRAY_SIZE(overlay->liars); i++) {
		struct liar *l = &overlay->liars[i];

		if (node_id_equal(&l->node, &leg->node)) {
			slot = l;
			break;
		}
		if (l->until_ms < slot->until_ms)
			slot = l;
	}
	*slot = (struct liar){ .node = leg->node, .until_ms = net_now_ms() + OVERLAY_LIAR_MS };
}

/* --- one leg ---------------------------------------------------------------------------- */

static struct part *part_of(struct fan_leg *leg)
{
	struct get_op *op = leg->fan->owner;

	return &op->parts[leg - leg->fan->legs];
}

static void get_begin(struct fan_leg *leg)
{
	struct get_op *op = leg->fan->owner;
	struct part *part = part_of(leg);

	if (op->borrower == part)
		op->borrower = NULL;
	close_fdp(&part->memfd);
	part->memfd = -1;
	part->received = 0;
	part->hedged = false;
	part->began_ms = part->moved_ms = net_now_ms();
}

/* The caller's, whose pages were there before, or one of our own. */
static int open_memfd(struct get_op *op, const struct part *part)
{
	int fd;

	if (op->request->fd < 0 || op->borrower)
		return memfd_new("object");
	fd = fcntl(op->request->fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return -errno;
	op->borrower = part;
	return fd;
}

static int get_data(struct fan_leg *leg, uint32_t total, const uint8_t *bytes, size_t size)
{
	struct get_op *op = leg->fan->owner;
	uint32_t wanted = op->request->msg.u.object.size;
	struct part *part = part_of(leg);
	int r;

	if (part->memfd < 0) {
		if ((wanted != 0 && total != wanted) || total > OV_PACK_MAX) {
			note_lie(leg, "an object of another size");
			return -EBADMSG;
		}
		part->memfd = open_memfd(op, part);
		if (part->memfd < 0)
			return part->memfd;
		if (EVP_DigestInit_ex(part->digest, EVP_sha256(), NULL) != 1)
			return -ENOMEM;
	}
	if (EVP_DigestUpdate(part->digest, bytes, size) != 1)
		return -ENOMEM;
	r = pwrite_full(part->memfd, bytes, size, (off_t)part->received);
	part->received += (uint32_t)size;
	part->moved_ms = net_now_ms();
	return r;
}

static bool get_result(struct fan_leg *leg, int status)
{
	struct get_op *op = leg->fan->owner;
	struct ov_object *object = &op->request->msg.u.object;
	struct part *part = part_of(leg);
	struct object_hash found = { 0 };
	unsigned int size = sizeof(found.b);

	if (status < 0) {
		char name[OV_NAME_MAX];

		name_of(leg->fan->overlay, &leg->node, name);
		log_debug("get: peer=%s status=%d", name, status);
		if (status == -EREMOTE && !op->whole) {
			op->coded = true;
			op->teller = leg->node;
			leg->fan->target_count = leg->fan->next; /* nobody else is asked */
		}
		return false;
	}
	if (part->memfd < 0 || EVP_DigestFinal_ex(part->digest, found.b, &size) != 1 ||
	    memcmp(&found, &object->hash, sizeof(found)) != 0) {
		note_lie(leg, "wrong hash");
		return false;
	}
	if (op->borrower != part && memfd_seal(part->memfd) < 0)
		return false;
	object->size = part->received;
	object->holder_count = 1;
	object->holders[0] = leg->node;
	if (op->borrower != part)
		op->memfd = take_fd(part->memfd);
	credit_got(leg->fan->overlay, object);
	return true;
}

static int on_look(sd_event_source *source, uint64_t usec, void *arg)
{
	struct get_op *op = arg;
	uint64_t now = net_now_ms();

	(void)usec;
	for (size_t i = 0; i < OVERLAY_GET_WIDTH; i++) {
		struct part *part = &op->parts[i];

		if (!op->fan.legs[i].active || part->hedged ||
		    (now - part->moved_ms < OVERLAY_GET_SLOW_MS &&
		     now - part->began_ms < OVERLAY_GET_LONG_MS))
			continue;
		part->hedged = true;
		fan_hedge(&op->fan);
	}
	if (sd_event_source_set_time_relative(source, OVERLAY_GET_LOOK_MS * 1000) >= 0)
		(void)sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	return 0;
}

/* --- the own store ---------------------------------------------------------------------- */

struct local_get {
	struct store_task task;
	struct overlay *overlay;
	uint64_t request_id;
	struct object_hash hash;
	struct ov_group group;
	int fd, status;
	uint32_t size;
};

static void local_get_run(struct store_task *task)
{
	struct local_get *local = container_of(task, struct local_get, task);

	local->status = store_get(local->overlay->store, &local->hash, &local->fd, &local->size);
	if (local->status == -ENOENT &&
	    store_get_group(local->overlay->store, &local->hash, &local->group) == 0)
		local->status = -EREMOTE;
}

static void get_from_peers(struct request *request);

static void local_get_done(struct store_task *task)
{
	struct local_get *local = container_of(task, struct local_get, task);
	struct request *request = request_find(local->overlay, local->request_id);
	struct get_op *op = request ? request->state : NULL;

	if (op && !task->cancelled) {
		if (local->status == 0) {
			request->msg.u.object.size = local->size;
			request->msg.u.object.holder_count = 1;
			request->msg.u.object.holders[0] = local->overlay->self;
			request_finish(request, 0, take_fd(local->fd));
		} else if (local->status == -EREMOTE && !op->whole) {
			coded_get(request, &local->overlay->self);
		} else if (op->local_first) {
			get_from_peers(request);
		} else {
			request_finish(request, -ENOENT, -1);
		}
	}
	close_fdp(&local->fd);
	free(local);
}

static int get_local(struct request *request)
{
	struct get_op *op = request->state;
	struct local_get *local = calloc(1, sizeof(*local));
	int r;

	if (!local)
		return -ENOMEM;
	op->local_tried = true;
	local->task.run = local_get_run;
	local->task.done = local_get_done;
	local->overlay = request->overlay;
	local->request_id = request->id;
	local->hash = request->msg.u.object.hash;
	local->fd = -1;
	r = store_worker_submit(request->overlay->worker, &local->task);
	if (r < 0)
		free(local);
	return r;
}

/* --- all of it -------------------------------------------------------------------------- */

static void get_finished(struct fan *fan)
{
	struct get_op *op = fan->owner;
	struct request *request = op->request;

	if (fan->yes > 0) {
		request_finish(request, 0, take_fd(op->memfd));
		return;
	}
	if (op->coded) {
		coded_get(request, &op->teller);
		return;
	}
	/* Nobody else has it: the own store, if it was not asked first. */
	if (op->local_tried || get_local(request) < 0)
		request_finish(request, -ENOENT, -1);
}

static const struct fan_ops get_ops = { .data = get_data,
					.begin = get_begin,
					.result = get_result,
					.finished = get_finished };

static void get_from_peers(struct request *request)
{
	struct get_op *op = request->state;
	int r = fan_start(&op->fan);

	if (r < 0)
		request_finish(request, r, -1);
}

static bool is_among(const struct node_id *nodes, uint32_t count, const struct node_id *node)
{
	for (uint32_t i = 0; i < count; i++) {
		if (node_id_equal(&nodes[i], node))
			return true;
	}
	return false;
}

static void shuffle(struct node_id *nodes, uint32_t count)
{
	for (uint32_t i = count; i > 1; i--) {
		uint32_t other = 0;
		struct node_id swap = nodes[i - 1];

		if (getrandom(&other, sizeof(other), 0) != sizeof(other))
			return;
		other %= i;
		nodes[i - 1] = nodes[other];
		nodes[other] = swap;
	}
}

/* Of the live members those that are (not) named, and that lied lately (or did not). */
static uint32_t add_targets(struct overlay *overlay, const struct ov_object *object,
			    const struct node_id *live, uint32_t live_count, bool named, bool liars,
			    struct node_id *targets)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < live_count; i++) {
		if (is_among(object->holders, object->holder_count, &live[i]) == named &&
		    is_liar(overlay, &live[i]) == liars)
			targets[count++] = live[i];
	}
	return count;
}

/* Live named holders in random order, then the other live members; then the same who lied. */
static int get_targets(struct overlay *overlay, const struct ov_object *object,
		       struct node_id **ret_targets, uint32_t *ret_count)
{
	_cleanup_free_ struct node_id *live = NULL;
	struct node_id *targets;
	uint32_t live_count = driver_live_peers(overlay, &live), count = 0;

	targets = malloc((live_count + 1) * sizeof(*targets));
	if (!targets || !live) {
		free(targets);
		return -ENOMEM;
	}
	for (int liars = 0; liars < 2; liars++) {
		uint32_t n = add_targets(overlay, object, live, live_count, true, liars,
					 targets + count);

		shuffle(targets + count, n);
		count += n;
		count += add_targets(overlay, object, live, live_count, false, liars,
				     targets + count);
	}
	*ret_targets = targets;
	*ret_count = count;
	return 0;
}

static int get_prepare(struct get_op *op, struct request *request)
{
	struct overlay *overlay = request->overlay;
	struct ov_object *object = &request->msg.u.object;
	int r;

	op->request = request;
	op->memfd = -1;
	op->fan = (struct fan){ .overlay = overlay,
				.ops = &get_ops,
				.owner = op,
				.call = { .op = NET_OP_GET, .object = *object },
				.stream_fd = -1,
				.stall_ms = OVERLAY_GET_STALL_MS,
				.wanted = 1,
				.width = OVERLAY_GET_WIDTH,
				.first_wins = true };
	for (size_t i = 0; i < OVERLAY_GET_WIDTH; i++)
		op->parts[i].memfd = -1;
	request->state = op;
	request->cancel = get_cancel;
	for (size_t i = 0; i < OVERLAY_GET_WIDTH; i++) {
		op->parts[i].digest = EVP_MD_CTX_new();
		if (!op->parts[i].digest)
			return -ENOMEM;
	}
	if (object->holder_count > OV_HOLDERS_MAX || object->size > OV_PACK_MAX)
		return -EINVAL;
	r = sd_event_add_time_relative(overlay->event, &op->timer, CLOCK_MONOTONIC,
				       OVERLAY_GET_LOOK_MS * 1000, 1000, on_look, op);
	return r < 0 ? r : get_targets(overlay, object, &op->fan.targets, &op->fan.target_count);
}

static void object_get_from(struct request *request, bool whole)
{
	struct overlay *overlay = request->overlay;
	struct ov_object *object = &request->msg.u.object;
	struct get_op *op = calloc(1, sizeof(*op));
	int r = op ? get_prepare(op, request) : -ENOMEM;

	if (op)
		op->whole = whole;
	if (r == 0 && is_among(object->holders, object->holder_count, &overlay->self)) {
		op->local_first = true;
		r = get_local(request);
		if (r == 0)
			return;
	}
	if (r == 0)
		r = fan_start(&op->fan);
	if (r < 0)
		request_finish(request, r, -1);
}

void object_get(struct request *request)
{
	object_get_from(request, false);
}

void object_get_whole(struct request *request)
{
	object_get_from(request, true);
}
