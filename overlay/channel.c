// SPDX-License-Identifier: LGPL-2.1-or-later
/* The agent's channels: datagrams in, requests in flight, answers and events out. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/coded.h"
#include "overlay/net/internal.h"

enum { READ_BURST = 32 };

int memfd_size(int fd, uint64_t max, uint64_t *ret_size)
{
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return -EINVAL;
	if (st.st_size < 0 || (uint64_t)st.st_size > max)
		return -EFBIG;
	*ret_size = (uint64_t)st.st_size;
	return 0;
}

static void request_free(struct request *request)
{
	if (request->cancel)
		request->cancel(request);
	close_fdp(&request->fd);
	LIST_REMOVE(request, entry);
	request->overlay->request_count--;
	OPENSSL_cleanse(&request->msg, sizeof(request->msg));
	free(request);
}

static void channel_close(struct channel *channel)
{
	struct overlay *overlay = channel->overlay;
	struct request *request, *next;
	struct queued_msg *msg;

	for (request = LIST_FIRST(&overlay->requests); request; request = next) {
		next = LIST_NEXT(request, entry);
		if (request->channel == channel)
			request_free(request);
	}
	while ((msg = STAILQ_FIRST(&channel->queue))) {
		STAILQ_REMOVE_HEAD(&channel->queue, next);
		close_fdp(&msg->fd);
		free(msg);
	}
	sd_event_source_disable_unref(channel->io);
	close(channel->fd);
	LIST_REMOVE(channel, entry);
	overlay->channel_count--;
	if (channel->is_main) {
		overlay->main = NULL;
		sd_event_exit(overlay->event, 0);
	}
	free(channel);
}

void channels_close(struct overlay *overlay)
{
	struct channel *channel;

	while ((channel = LIST_FIRST(&overlay->channels)))
		channel_close(channel);
}

static int channel_flush(struct channel *channel)
{
	struct queued_msg *msg;

	while ((msg = STAILQ_FIRST(&channel->queue))) {
		int r = send_with_fd(channel->fd, &msg->msg, sizeof(msg->msg), msg->fd);

		if (r == -EAGAIN)
			return sd_event_source_set_io_events(channel->io, EPOLLIN | EPOLLOUT);
		if (r < 0)
			return r;
		STAILQ_REMOVE_HEAD(&channel->queue, next);
		channel->queued--;
		close_fdp(&msg->fd);
		OPENSSL_cleanse(&msg->msg, sizeof(msg->msg));
		free(msg);
	}
	return sd_event_source_set_io_events(channel->io, EPOLLIN);
}

/* Queues, then sends what the socket takes. A failure shows as the channel's end, later. */
static void channel_send(struct channel *channel, const struct ov_msg *msg, int fd_take)
{
	struct queued_msg *queued = malloc(sizeof(*queued));

	if (!queued || channel->queued >= OVERLAY_EVENTS_MAX) {
		free(queued);
		close_fdp(&fd_take);
		log_error("channel: cannot queue: count=%u", channel->queued);
		sd_event_exit(channel->overlay->event, 1);
		return;
	}
	queued->msg = *msg;
	queued->fd = fd_take;
	STAILQ_INSERT_TAIL(&channel->queue, queued, next);
	channel->queued++;
	if (channel_flush(channel) < 0)
		(void)sd_event_source_set_io_events(channel->io, EPOLLIN);
}

void overlay_event(struct overlay *overlay, const struct ov_msg *msg)
{
	struct channel *channel = overlay->main;

	if (!channel)
		return;
	if (channel->queued >= OVERLAY_EVENTS_SOFT_MAX &&
	    (msg->op == OV_EV_LEASE || msg->op == OV_EV_MEMBER))
		return;
	channel_send(channel, msg, -1);
}

struct request *request_find(struct overlay *overlay, uint64_t id)
{
	struct request *request;

	LIST_FOREACH(request, &overlay->requests, entry)
	{
		if (request->id == id)
			return request;
	}
	return NULL;
}

void request_finish(struct request *request, int status, int fd_take)
{
	request->msg.status = status;
	channel_send(request->channel, &request->msg, fd_take);
	request_free(request);
}

void requests_sweep(struct overlay *overlay, uint64_t now_ms)
{
	struct request *request, *next;

	for (request = LIST_FIRST(&overlay->requests); request; request = next) {
		next = LIST_NEXT(request, entry);
		if (now_ms >= request->deadline_ms)
			request_finish(request, request->deadline_status, -1);
	}
}

static struct request *request_new(struct channel *channel, const struct ov_msg *msg, int fd_take)
{
	struct overlay *overlay = channel->overlay;
	struct request *request = NULL;

	if (overlay->request_count < OVERLAY_REQUESTS_MAX)
		request = calloc(1, sizeof(*request));
	if (!request) {
		struct ov_msg refusal = { .op = msg->op, .status = -EAGAIN, .call = msg->call };

		close_fdp(&fd_take);
		channel_send(channel, &refusal, -1);
		return NULL;
	}
	request->overlay = overlay;
	request->channel = channel;
	request->id = ++overlay->next_id;
	request->deadline_ms = net_now_ms() + OVERLAY_REQUEST_MS;
	request->deadline_status = -EAGAIN;
	request->fd = fd_take;
	request->msg = *msg;
	LIST_INSERT_HEAD(&overlay->requests, request, entry);
	overlay->request_count++;
	return request;
}

static void cluster_start(struct request *request)
{
	struct ov_identity identity;
	uint64_t size = 0;
	int r = memfd_size(request->fd, sizeof(identity), &size);

	if (r == 0)
		r = size == sizeof(identity) ? pread_full(request->fd, &identity, size, 0) :
					       -EINVAL;
	if (r == 0)
		r = driver_start(request->overlay, &identity, &request->msg.u.start);
	OPENSSL_cleanse(&identity, sizeof(identity));
	request_finish(request, r, -1);
}

static void answer_members(struct request *request)
{
	struct overlay *overlay = request->overlay;
	_cleanup_close_ int fd = memfd_new("members");
	uint64_t count = 0, now = net_now_ms();
	const struct member_info *row;
	int r = fd < 0 ? fd : 0;

	while (r == 0 && count < OV_MEMBERS_MAX &&
	       (row = core_member(overlay->core, (uint32_t)count, now))) {
		r = write_full(fd, row, sizeof(*row));
		count++;
	}
	if (r == 0)
		r = memfd_seal(fd);
	request->msg.u.count = count;
	request_finish(request, r, r < 0 ? -1 : take_fd(fd));
}

static void answer_card(struct request *request)
{
	const struct node_card *card =
		core_card(request->overlay->core, &request->msg.u.order.node);

	if (card)
		request->msg.u.card = *card;
	request_finish(request, card ? 0 : -ENOENT, -1);
}

static void answer_stats(struct request *request)
{
	struct overlay *overlay = request->overlay;
	struct ov_stats stats = { 0 };
	struct store_stats store;
	struct net_stats net;

	store_get_stats(overlay->store, &store);
	net_get_stats(overlay->net, &net);
	stats.objects = store.objects;
	stats.object_bytes = store.object_bytes;
	stats.bad_objects = store.bad_objects;
	stats.disk_bytes = store.disk_bytes;
	stats.rotten_objects = store.rotten;
	stats.scrubbed_objects = store.scrubbed;
	stats.scrubbed_bytes = store.scrubbed_bytes;
	stats.sent_bytes = net.sent_bytes;
	stats.received_bytes = net.received_bytes;
	stats.peers_connected = net.peers;
	stats.link_bytes_per_s = link_bytes_per_s(&overlay->link);
	refusals_get(overlay, &stats.refusals);
	while (overlay->core && core_register(overlay->core, stats.registers))
		stats.registers++;
	request->msg.u.stats = stats;
	request_finish(request, 0, -1);
}

static void take_report(struct request *request)
{
	struct overlay *overlay = request->overlay;

	overlay->report = request->msg.u.report;
	overlay->reported = true;
	driver_report(overlay);
	request_finish(request, 0, -1);
}

static void take_leave(struct request *request)
{
	request->deadline_ms = net_now_ms() + OVERLAY_LEAVE_MS;
	request->deadline_status = 0;
	driver_leave(request->overlay);
}

/* What needs no membership. True if it was one of those. */
static bool dispatch_early(struct request *request)
{
	switch (request->msg.op) {
	case OV_CLUSTER_START:
		cluster_start(request);
		return true;
	case OV_INVITE:
		request_finish(request, net_invite(request->overlay->net, &request->msg.u.invite),
			       -1);
		return true;
	case OV_JOIN:
		relay_join(request);
		return true;
	case OV_STATS:
		answer_stats(request);
		return true;
	default:
		return false;
	}
}

static bool dispatch_job(struct request *request)
{
	switch (request->msg.op) {
	case OV_JOB_CREATE:
		driver_request(request, CORE_REQ_CREATE);
		return true;
	case OV_JOB_CAS:
		driver_request(request, CORE_REQ_CAS);
		return true;
	case OV_JOB_HOLD:
		driver_request(request, CORE_REQ_HOLD);
		return true;
	case OV_JOB_DROP:
		driver_request(request, CORE_REQ_DROP);
		return true;
	case OV_JOB_GET:
		driver_request(request, CORE_REQ_GET);
		return true;
	case OV_JOB_TAKE:
		driver_request(request, CORE_REQ_TAKE);
		return true;
	case OV_JOB_LIST:
		relay_list(request);
		return true;
	case OV_JOB_NEWEST:
		newest_find(request);
		return true;
	default:
		return false;
	}
}

static void dispatch_rest(struct request *request)
{
	switch (request->msg.op) {
	case OV_OBJECT_PUT:
		object_put(request);
		return;
	case OV_OBJECT_GET:
		object_get(request);
		return;
	case OV_OBJECT_CODE:
		coded_put(request);
		return;
	case OV_OBJECT_RETAIN:
		object_retain(request);
		return;
	case OV_MEMBERS:
		answer_members(request);
		return;
	case OV_CARD_GET:
		answer_card(request);
		return;
	case OV_REPORT:
		take_report(request);
		return;
	case OV_ORDER_CALL:
		relay_order(request);
		return;
	case OV_CREDIT:
		credit_find(request);
		return;
	case OV_LEAVE:
		take_leave(request);
		return;
	default:
		request_finish(request, -EOPNOTSUPP, -1);
	}
}

/* Takes fd. */
static void dispatch(struct channel *channel, const struct ov_msg *msg, int fd)
{
	struct overlay *overlay = channel->overlay;
	struct request *request;

	switch (msg->op) {
	case OV_CHANNEL:
		if (channel_add(overlay, fd, false) < 0)
			log_warn("channel: refused: count=%u", overlay->channel_count);
		return;
	case OV_ORDER_REPLY:
		close_fdp(&fd);
		relay_order_reply(overlay, msg);
		return;
	case OV_JOIN_REPLY:
		close_fdp(&fd);
		relay_join_reply(overlay, msg);
		return;
	default:
		break;
	}
	request = request_new(channel, msg, fd);
	if (!request || dispatch_early(request))
		return;
	if (!overlay->core)
		request_finish(request, -EPERM, -1);
	else if (!dispatch_job(request))
		dispatch_rest(request);
}

static int on_channel(sd_event_source *source, int fd, uint32_t events, void *arg)
{
	struct channel *channel = arg;

	(void)source;
	if ((events & EPOLLOUT) && channel_flush(channel) < 0) {
		channel_close(channel);
		return 0;
	}
	for (int i = 0; i < READ_BURST && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)); i++) {
		struct ov_msg msg;
		int passed = -1;
		ssize_t n = recv_with_fd(fd, &msg, sizeof(msg), &passed, 0);

		if (n == -EAGAIN)
			return 0;
		if (n != sizeof(msg)) {
			close_fdp(&passed);
			channel_close(channel);
			return 0;
		}
		dispatch(channel, &msg, passed);
		OPENSSL_cleanse(&msg, sizeof(msg));
	}
	return 0;
}

int channel_add(struct overlay *overlay, int fd, bool is_main)
{
	int type = 0, flags = fd < 0 ? -1 : fcntl(fd, F_GETFL), r;
	socklen_t size = sizeof(type);
	struct channel *channel = NULL;

	if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 ||
	    type != SOCK_SEQPACKET || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		r = -EINVAL;
	else if (overlay->channel_count >= OVERLAY_CHANNELS_MAX)
		r = -EAGAIN;
	else
		r = (channel = calloc(1, sizeof(*channel))) ? 0 : -ENOMEM;
	if (r == 0)
		r = sd_event_add_io(overlay->event, &channel->io, fd, EPOLLIN, on_channel, channel);
	if (r < 0) {
		free(channel);
		close_fdp(&fd);
		return r;
	}
	channel->overlay = overlay;
	channel->fd = fd;
	channel->is_main = is_main;
	STAILQ_INIT(&channel->queue);
	LIST_INSERT_HEAD(&overlay->channels, channel, entry);
	overlay->channel_count++;
	if (is_main)
		overlay->main = channel;
	return 0;
}
