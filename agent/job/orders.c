// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Orders: one agent asks another to run an API verb for a user. The text is sealed with the
 * worker key, which only admitted agents have: the overlay halves carry it unread. It names the
 * host it is for, the time and a nonce; a host carries out no order twice and none that is old.
 */
#define LOG_TAG "order"
#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/job/job.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { ORDER_AGE_MAX_MS = 300000, NONCE_BYTES = 16 };

static int seal_json(struct agent *a, struct json_object *json, const char *label,
		     struct ov_order *order)
{
	const char *text = json_object_to_json_string_ext(json, JSON_C_TO_STRING_PLAIN);
	size_t size = strlen(text);
	int r;

	if (size + SEAL_OVERHEAD > OV_ORDER_MAX)
		return -E2BIG;
	r = key_seal(cluster_worker_key(a->cluster), label, cluster_id(a->cluster), 16, text, size,
		     order->bytes);
	if (r == 0)
		order->size = (uint32_t)(size + SEAL_OVERHEAD);
	return r;
}

static int open_json(struct agent *a, const struct ov_order *order, const char *label,
		     struct json_object **ret_json)
{
	char text[OV_ORDER_MAX + 1];
	struct json_object *json;
	int r;

	if (order->size < SEAL_OVERHEAD || order->size > OV_ORDER_MAX)
		return -EBADMSG;
	r = key_open(cluster_worker_key(a->cluster), label, cluster_id(a->cluster), 16,
		     order->bytes, order->size, text);
	if (r < 0)
		return r;
	text[order->size - SEAL_OVERHEAD] = '\0';
	json = json_tokener_parse(text);
	if (!json || !json_object_is_type(json, json_type_object)) {
		json_object_put(json);
		return -EBADMSG;
	}
	*ret_json = json;
	return 0;
}

static void add_hex(struct json_object *json, const char *key, const void *bytes, size_t size)
{
	char hex[65];

	hex_encode(bytes, size, hex);
	json_object_object_add(json, key, json_object_new_string(hex));
}

int order_forward(struct agent *a, const struct node_id *node, const char *verb,
		  const struct api_call *call, int timeout_ms, struct api_reply *reply)
{
	struct ov_msg msg = { .op = OV_ORDER_CALL,
			      .u.order = { .node = *node, .timeout_ms = (uint32_t)timeout_ms } };
	struct json_object *order = json_object_new_object(), *answer = NULL, *part;
	_cleanup_close_ int channel = ov_open_channel(a->main_channel);
	uint8_t nonce[NONCE_BYTES];
	int r = channel < 0 ? channel : random_bytes(nonce, sizeof(nonce));

	json_object_object_add(order, "verb", json_object_new_string(verb));
	json_object_object_add(order, "uid", json_object_new_int64(call->uid));
	json_object_object_add(order, "gid", json_object_new_int64(call->gid));
	json_object_object_add(order, "body", json_object_get(call->body));
	json_object_object_add(order, "wall_ms", json_object_new_int64((int64_t)now_wall_ms()));
	add_hex(order, "to", node, sizeof(*node));
	add_hex(order, "nonce", nonce, sizeof(nonce));
	if (r == 0)
		r = seal_json(a, order, "decamp order v1", &msg.u.order);
	json_object_put(order);
	if (r == 0)
		r = ov_call(channel, &msg, -1, NULL, timeout_ms + 2000);
	if (r == -EAGAIN || r == -ENOENT)
		return -EHOSTUNREACH;
	if (r == 0)
		r = open_json(a, &msg.u.order, "decamp answer v1", &answer);
	if (r < 0)
		return r;
	r = json_object_object_get_ex(answer, "result", &part) ? json_object_get_int(part) :
								 -EBADMSG;
	if (r > 0)
		r = -EBADMSG;
	if (json_object_object_get_ex(answer, "reply", &part))
		reply->json = json_object_get(part);
	json_object_put(answer);
	return r;
}

static bool text_is(struct json_object *json, const char *key, const void *bytes, size_t size)
{
	struct json_object *value;
	char hex[65];

	hex_encode(bytes, size, hex);
	return json_object_object_get_ex(json, key, &value) &&
	       json_object_is_type(value, json_type_string) &&
	       !strcmp(json_object_get_string(value), hex);
}

/* What only tells something may be told twice; and is asked often, as by `decamp wait`. */
static bool is_question(struct json_object *order)
{
	struct json_object *verb;

	return json_object_object_get_ex(order, "verb", &verb) &&
	       json_object_is_type(verb, json_type_string) &&
	       !strcmp(json_object_get_string(verb), "show");
}

/* False if it was seen before, or if there is no room to remember it for long enough. */
static bool remember_nonce(struct agent *a, const uint8_t nonce[NONCE_BYTES], uint64_t sent)
{
	uint64_t now = now_wall_ms();
	struct order_nonce *slot;
	bool fresh = true;

	pthread_mutex_lock(&a->lock);
	for (size_t i = 0; i < ARRAY_SIZE(a->order_nonces); i++)
		fresh &= memcmp(a->order_nonces[i].nonce, nonce, NONCE_BYTES) != 0;
	slot = &a->order_nonces[a->order_nonce_next % ARRAY_SIZE(a->order_nonces)];
	fresh &= slot->sent_wall_ms + ORDER_AGE_MAX_MS < now;
	if (fresh) {
		memcpy(slot->nonce, nonce, NONCE_BYTES);
		slot->sent_wall_ms = sent;
		a->order_nonce_next++;
	}
	pthread_mutex_unlock(&a->lock);
	return fresh;
}

/* For this host, fresh, and never seen before. */
static bool acceptable(struct agent *a, struct json_object *order)
{
	struct json_object *value;
	uint8_t nonce[NONCE_BYTES];
	uint64_t now = now_wall_ms(), sent;

	if (!text_is(order, "to", &a->self, sizeof(a->self)) ||
	    !json_object_object_get_ex(order, "wall_ms", &value))
		return false;
	sent = (uint64_t)json_object_get_int64(value);
	if (sent + ORDER_AGE_MAX_MS < now || sent > now + ORDER_AGE_MAX_MS)
		return false;
	if (is_question(order))
		return true;
	if (!json_object_object_get_ex(order, "nonce", &value) ||
	    !json_object_is_type(value, json_type_string) ||
	    hex_decode(json_object_get_string(value), nonce, sizeof(nonce)) < 0)
		return false;
	return remember_nonce(a, nonce, sent);
}

static int carry_out(struct agent *a, struct json_object *order, struct api_reply *reply)
{
	struct json_object *verb, *uid, *gid, *body;
	struct api_call call = { 0 };

	if (!json_object_object_get_ex(order, "verb", &verb) ||
	    !json_object_object_get_ex(order, "uid", &uid) ||
	    !json_object_object_get_ex(order, "gid", &gid) ||
	    !json_object_object_get_ex(order, "body", &body) ||
	    !json_object_is_type(verb, json_type_string) ||
	    !json_object_is_type(uid, json_type_int) || !json_object_is_type(gid, json_type_int) ||
	    !json_object_is_type(body, json_type_object))
		return -EBADMSG;
	call.uid = (uid_t)json_object_get_int64(uid);
	call.gid = (gid_t)json_object_get_int64(gid);
	call.body = body;
	/* The one who forwards found us to be the owner; we never forward further. */
	json_object_object_add(body, "_here", json_object_new_boolean(true));
	for (const struct api_route *route = agent_routes; route->verb; route++)
		if (!route->root_only && !strcmp(route->verb, json_object_get_string(verb)))
			return route->fn(a, &call, reply);
	return -ENOSYS;
}

struct order_work {
	struct agent *agent;
	struct ov_order order;
};

static void *order_thread(void *arg)
{
	struct order_work *work = arg;
	struct agent *a = work->agent;
	struct ov_msg msg = { .op = OV_ORDER_REPLY, .u.order = { .call_id = work->order.call_id } };
	struct json_object *order = NULL, *answer = json_object_new_object();
	struct api_reply reply = { .stream_fd = -1 };
	int r = open_json(a, &work->order, "decamp order v1", &order);

	if (r == 0 && !acceptable(a, order))
		r = -EPERM;
	if (r == 0)
		r = carry_out(a, order, &reply);
	json_object_object_add(answer, "result", json_object_new_int(r));
	if (reply.json)
		json_object_object_add(answer, "reply", reply.json);
	close_fdp(&reply.stream_fd);
	msg.status = seal_json(a, answer, "decamp answer v1", &msg.u.order);
	if (msg.status == -E2BIG) { /* it was carried out: that must arrive, the words need not */
		json_object_object_del(answer, "reply");
		msg.status = seal_json(a, answer, "decamp answer v1", &msg.u.order);
	}
	r = send_with_fd(a->main_channel, &msg, sizeof(msg), -1);
	if (r < 0)
		log_errno(r, "answer");
	json_object_put(answer);
	json_object_put(order);
	free(work);
	a->order_threads--;
	return NULL;
}

void order_received(struct agent *a, const struct ov_msg *msg)
{
	/* The other half is not trusted: it starts no threads without end. */
	struct order_work *work = a->order_threads < ORDER_THREADS_MAX ? malloc(sizeof(*work)) :
									 NULL;
	pthread_t thread;

	if (!work)
		return;
	work->agent = a;
	work->order = msg->u.order;
	a->order_threads++;
	if (pthread_create(&thread, NULL, order_thread, work) == 0) {
		pthread_detach(thread);
		return;
	}
	a->order_threads--;
	free(work);
}
