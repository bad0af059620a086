// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Events into the core, updates out of it, by its one rule: the writes of an update are durable
 * before any of its messages, answers or notices leaves.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define LOG_TAG "overlay"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/coded.h"
#include "overlay/net/internal.h"

enum { TIMER_FAR_MS = 3600 * 1000 };

/* What the disk remembers of this host itself, see store_own_save(). */
static const char own_announced[] = "announced", own_retired[] = "retired", own_node[] = "node";

static bool verify_card(void *ctx, const struct node_card *card)
{
	struct overlay *overlay = ctx;

	return net_tls_card_valid(card, overlay->cluster_public, now_wall_ms());
}

static void answer(struct overlay *overlay, const struct core_answer *row)
{
	struct request *request;

	if (row->request_id == OVERLAY_PULL_ID) {
		pull_answer(overlay, row->status, row->has_value ? &row->value : NULL);
		return;
	}
	request = request_find(overlay, row->request_id);
	if (!request)
		return;
	if (request->msg.op == OV_JOB_HOLD) {
		struct ov_lease lease = { .job = request->msg.u.job.job,
					  .token = request->msg.u.job.token,
					  .run_until_boot_ns = row->run_until_boot_ns };

		request->msg.u.lease = lease;
	} else if (row->has_value) {
		request->msg.u.value = row->value;
	}
	request_finish(request, row->status, -1);
}

static void notify(struct overlay *overlay, const struct core_notice *notice)
{
	struct ov_msg msg = { 0 };

	switch (notice->type) {
	case CORE_LEASE:
		msg.op = OV_EV_LEASE;
		msg.u.lease = (struct ov_lease){ .job = notice->value.job,
						 .token = notice->value.token,
						 .run_until_boot_ns = notice->run_until_boot_ns };
		break;
	case CORE_LOST:
		msg.op = OV_EV_LOST;
		msg.u.job =
			(struct ov_job){ .job = notice->value.job, .token = notice->value.token };
		break;
	case CORE_GRANT:
		msg.op = OV_EV_GRANT;
		msg.u.value = notice->value;
		break;
	case CORE_DONE:
		msg.op = OV_EV_DONE;
		msg.u.value = notice->value;
		break;
	case CORE_MEMBER:
		msg.op = OV_EV_MEMBER;
		msg.u.member = notice->member;
		break;
	default:
		return;
	}
	overlay_event(overlay, &msg);
}

/* A suspect gets its message over a new connection: the old one may be the reason. */
static void reset_suspects(struct overlay *overlay, const struct core_update *update)
{
	for (uint32_t i = 0; i < update->notice_count; i++) {
		const struct member_info *member = &update->notices[i].member;

		if (update->notices[i].type != CORE_MEMBER || member->is_self)
			continue;
		if (member->state == MEMBER_SUSPECT || member->state == MEMBER_DEAD)
			net_reset(overlay->net, &member->id, member->state == MEMBER_DEAD);
	}
}

static void set_timer(struct overlay *overlay)
{
	uint64_t deadline_ms = core_deadline(overlay->core);
	uint64_t far_ms = net_now_ms() + TIMER_FAR_MS;
	int r;

	/*
	 * "Never" (the core has left) is looked at once an hour: a time near the end of the scale
	 * plus its accuracy overflows in sd-event, which then sets its timerfd to -1 (-EINVAL).
	 */
	if (deadline_ms > far_ms)
		deadline_ms = far_ms;
	r = sd_event_source_set_time(overlay->core_timer, deadline_ms * 1000);
	if (r >= 0)
		r = sd_event_source_set_enabled(overlay->core_timer, SD_EVENT_ONESHOT);
	if (r < 0) {
		log_errno(r, "timer");
		sd_event_exit(overlay->event, 1);
	}
}

static int on_retired(sd_event_source *source, uint64_t usec, void *arg)
{
	struct overlay *overlay = arg;

	(void)source;
	(void)usec;
	return sd_event_exit(overlay->event, 1);
}

/* The id is used up: on the disk first, as what is announced next would hide it. */
static int retire(struct overlay *overlay, const struct core_notice *notice)
{
	int r = store_own_save(overlay->store, own_retired, &overlay->self, sizeof(overlay->self));

	if (r < 0)
		return r;
	log_error("this disk is an older copy: it remembers incarnation %" PRIu64
		  ", others know %" PRIu64,
		  overlay->announced, notice->member.incarnation);
	return sd_event_add_time_relative(overlay->event, NULL, CLOCK_MONOTONIC,
					  OVERLAY_LEAVE_MS * 1000, 0, on_retired, overlay);
}

/* An incarnation is remembered here before any peer can: so that a lost one is known as such. */
static int announce(struct overlay *overlay, const struct core_update *update)
{
	uint64_t incarnation = core_member(overlay->core, 0, net_now_ms())->incarnation;
	int r = 0;

	for (uint32_t i = 0; i < update->notice_count && r >= 0; i++)
		if (update->notices[i].type == CORE_ROLLED_BACK)
			r = retire(overlay, &update->notices[i]);
	if (r < 0 || update->send_count == 0 || incarnation <= overlay->announced)
		return r < 0 ? r : 0;
	r = store_own_save(overlay->store, own_announced, &incarnation, sizeof(incarnation));
	if (r == 0)
		overlay->announced = incarnation;
	return r;
}

static int step(struct overlay *overlay, struct core_event *event)
{
	const struct core_update *update;
	int r;

	/* Read together: core copies one by the other's distance to a deadline. */
	event->now_ms = net_now_ms();
	event->boot_ns = now_boot_ns();
	r = core_step(overlay->core, event, &update);
	if (r < 0)
		return r;
	r = store_write_records(overlay->store, update->writes, update->write_count);
	if (r == 0)
		r = announce(overlay, update);
	if (r < 0) {
		/*
		 * The core has promised in memory what is not on the disk. Nothing of it has left:
		 * to stop here is the same as a crash before the step.
		 */
		log_errno(r, "registers: write: count=%u", update->write_count);
		_exit(1);
	}
	reset_suspects(overlay, update);
	for (uint32_t i = 0; i < update->send_count; i++)
		net_send(overlay->net, &update->sends[i].to, update->sends[i].bytes,
			 update->sends[i].size);
	for (uint32_t i = 0; i < update->answer_count; i++)
		answer(overlay, &update->answers[i]);
	for (uint32_t i = 0; i < update->notice_count; i++)
		notify(overlay, &update->notices[i]);
	set_timer(overlay);
	return 0;
}

static int on_core_timer(sd_event_source *source, uint64_t usec, void *arg)
{
	struct core_event event = { .type = CORE_EV_TICK };
	struct overlay *overlay = arg;

	(void)source;
	(void)usec;
	if (net_now_ms() < core_deadline(overlay->core)) {
		set_timer(overlay);
		return 0;
	}
	return step(overlay, &event) < 0 ? -EIO : 0;
}

static int feed_record(void *ctx, const struct job_id *job, const void *bytes, size_t size)
{
	struct core_event event = { .type = CORE_EV_RECORD, .bytes = bytes, .size = size };
	struct overlay *overlay = ctx;
	const struct core_update *update;

	(void)job;
	event.now_ms = net_now_ms();
	event.boot_ns = now_boot_ns();
	return core_step(overlay->core, &event, &update);
}

static bool start_sane(const struct ov_start *start)
{
	return memchr(start->listen_addr, '\0', sizeof(start->listen_addr)) &&
	       memchr(start->advertise_addr, '\0', sizeof(start->advertise_addr)) &&
	       start->port != 0 && start->probe_ms > 0 && start->suspect_ms > 0 &&
	       start->renew_ms > 0 && start->lease_ms > start->renew_ms &&
	       start->hold_ms > start->lease_ms;
}

/* -ENOENT, or -EBADMSG if it is of another size. */
static int load_own(struct overlay *overlay, const char *name, void *bytes, size_t size)
{
	size_t found = 0;
	int r = store_own_load(overlay->store, name, bytes, size, &found);

	return r == 0 && found != size ? -EBADMSG : r;
}

/*
 * Whether the registers here are this node's, and what they remember of its lives. Those of an
 * earlier id of this host are of no use: nobody asks for them.
 */
static int open_past(struct overlay *overlay, uint64_t *ret_lost_from)
{
	struct node_id node;
	uint64_t announced = 0, legacy;
	int r = load_own(overlay, own_retired, &node, sizeof(node));

	if (r == 0 && node_id_equal(&node, &overlay->self)) {
		log_error(
			"this disk is an older copy of what it was: nothing may be done under its "
			"id again; unless it holds the cluster key, remove its file "
			"\"identity\" and join the cluster anew");
		return -ESTALE;
	}
	if (r == 0 || r == -ENOENT)
		r = load_own(overlay, own_node, &node, sizeof(node));
	if (r == 0 && !node_id_equal(&node, &overlay->self)) {
		log_info("registers of an earlier id are dropped");
		r = store_drop_records(overlay->store);
	} else if (r == 0) {
		r = load_own(overlay, own_announced, &announced, sizeof(announced));
	} else if (r == -ENOENT && load_own(overlay, "incarnation", &legacy, sizeof(legacy)) == 0) {
		announced = UINT64_MAX; /* before this was kept: nothing can be said */
		r = 0;
	}
	if (r == 0 || r == -ENOENT)
		r = store_own_save(overlay->store, own_node, &overlay->self, sizeof(overlay->self));
	if (r < 0)
		return r;
	*ret_lost_from = announced + 1; /* or 0 */
	overlay->announced = announced == UINT64_MAX ? 0 : announced;
	return 0;
}

/* The wall clock may have been set back. */
static uint64_t earliest_incarnation(const struct overlay *overlay)
{
	uint64_t now = now_wall_ms();

	return now > overlay->announced ? now : overlay->announced + 1;
}

static int start_core(struct overlay *overlay, const struct ov_identity *identity,
		      const struct ov_start *start)
{
	struct core_config config = { .card = identity->card,
				      .port = start->port,
				      .probe_ms = start->probe_ms,
				      .suspect_ms = start->suspect_ms,
				      .renew_ms = start->renew_ms,
				      .lease_ms = start->lease_ms,
				      .hold_ms = start->hold_ms,
				      .verify_card = verify_card,
				      .ctx = overlay };
	int r;

	memcpy(config.advertise_addr, start->advertise_addr, sizeof(config.advertise_addr));
	if (getrandom(&config.seed, sizeof(config.seed), 0) != sizeof(config.seed))
		return -EIO;
	r = open_past(overlay, &config.lost_from);
	if (r == 0)
		r = store_next_incarnation(overlay->store, earliest_incarnation(overlay),
					   &config.incarnation);
	if (r < 0)
		return r;
	overlay->core = calloc(1, core_size());
	if (!overlay->core)
		return -ENOMEM;
	r = core_init(overlay->core, &config, net_now_ms());
	if (r < 0)
		return r;
	/* A register that cannot be read must not be answered for: better no member than amnesia. */
	return store_each_record(overlay->store, feed_record, overlay);
}

int driver_start(struct overlay *overlay, const struct ov_identity *identity,
		 const struct ov_start *start)
{
	struct core_event tick = { .type = CORE_EV_TICK };
	int r;

	if (overlay->core)
		return -EALREADY;
	if (!start_sane(start))
		return -EINVAL;
	memcpy(overlay->cluster_public, identity->cluster_public, sizeof(overlay->cluster_public));
	if (!verify_card(overlay, &identity->card))
		return -EBADMSG;
	overlay->self = identity->card.id;
	r = start_core(overlay, identity, start);
	if (r == 0)
		r = net_start(overlay->net, identity, start);
	if (r == 0)
		r = sd_event_add_time(overlay->event, &overlay->core_timer, CLOCK_MONOTONIC, 0,
				      1000, on_core_timer, overlay);
	if (r < 0) {
		free(overlay->core);
		overlay->core = NULL;
		return r;
	}
	/* Leases and probes go before packs. */
	(void)sd_event_source_set_priority(overlay->core_timer, -10);
	store_set_limits(overlay->store, start->quota_bytes, start->reserve_bytes);
	habits_start(overlay, start->closed_hours);
	repair_start(overlay, start);
	pull_start(overlay, start);
	scrub_start(overlay, start);
	credit_start(overlay, identity, start);
	log_info("start: addr=%s port=%u seeds=%u", start->advertise_addr, start->port,
		 identity->seed_count);
	return step(overlay, &tick);
}

void driver_stop(struct overlay *overlay)
{
	credit_stop(overlay);
	scrub_stop(overlay);
	pull_stop(overlay);
	rebuild_stop(overlay);
	shed_stop(overlay);
	trim_stop(overlay);
	repair_stop(overlay);
	sd_event_source_disable_unref(overlay->core_timer);
	free(overlay->core);
	overlay->core = NULL;
}

void driver_request(struct request *request, enum core_request kind)
{
	struct overlay *overlay = request->overlay;
	struct core_event event = { .type = CORE_EV_REQUEST,
				    .request = kind,
				    .request_id = request->id };
	struct job_value value = request->msg.u.value;
	uint64_t id = request->id;
	int r;

	if (kind == CORE_REQ_HOLD || kind == CORE_REQ_DROP) {
		struct ov_job job = request->msg.u.job;

		memset(&value, 0, sizeof(value));
		value.job = job.job;
		value.token = job.token;
	}
	event.value = &value;
	r = step(overlay, &event);
	if (r == 0 && kind != CORE_REQ_DROP)
		return;
	/* A drop is done when the core has heard of it. */
	request = request_find(overlay, id);
	if (request)
		request_finish(request, r, -1);
}

void driver_pull(struct overlay *overlay, const struct job_id *job)
{
	struct job_value value = { .job = *job };
	struct core_event event = { .type = CORE_EV_REQUEST,
				    .request = CORE_REQ_GET,
				    .request_id = OVERLAY_PULL_ID,
				    .value = &value };

	(void)step(overlay, &event);
}

void driver_report(struct overlay *overlay)
{
	struct core_event event = { .type = CORE_EV_REPORT, .report = &overlay->report };
	struct store_stats stats;
	uint64_t surplus;

	if (!overlay->core || !overlay->reported)
		return;
	/* The store's numbers are this half's to say. */
	store_get_stats(overlay->store, &stats);
	surplus = overlay->trim.surplus_bytes;
	if (surplus > stats.object_bytes)
		surplus = stats.object_bytes; /* some was dropped since it was looked at */
	overlay->report.store_used_bytes = stats.object_bytes - surplus;
	overlay->report.store_free_bytes = store_room_bytes(overlay->store) + surplus;
	overlay->report.stays = habits_stays(overlay);
	overlay->report_ms = net_now_ms();
	(void)step(overlay, &event);
}

void driver_leave(struct overlay *overlay)
{
	struct core_event event = { .type = CORE_EV_LEAVE };

	habits_save(overlay);
	(void)step(overlay, &event);
}

void driver_greet(struct overlay *overlay, const struct node_card *card, const char *addr,
		  uint16_t port)
{
	struct core_event event = { .type = CORE_EV_GREET,
				    .node = card->id,
				    .card = card,
				    .addr = addr,
				    .port = addr ? port : 0 };

	(void)step(overlay, &event);
}

void driver_message(struct overlay *overlay, const struct node_id *from, const void *bytes,
		    size_t size)
{
	struct core_event event = {
		.type = CORE_EV_MESSAGE, .node = *from, .bytes = bytes, .size = size
	};

	if (step(overlay, &event) == -EBADMSG)
		log_debug("message: from=%02x%02x size=%zu: not understood", from->b[0], from->b[1],
			  size);
}

uint32_t driver_live_peers(struct overlay *overlay, struct node_id **ret_nodes)
{
	struct node_id *nodes = malloc(OV_MEMBERS_MAX * sizeof(*nodes));
	static const uint32_t states[] = { MEMBER_ALIVE, MEMBER_SUSPECT };
	const struct member_info *row;
	uint64_t now = net_now_ms();
	uint32_t count = 0;

	*ret_nodes = nodes;
	if (!nodes)
		return 0;
	for (size_t s = 0; s < ARRAY_SIZE(states); s++) {
		for (uint32_t i = 0; (row = core_member(overlay->core, i, now)); i++) {
			if (row->state == states[s] && !row->is_self && count < OV_MEMBERS_MAX)
				nodes[count++] = row->id;
		}
	}
	return count;
}

int driver_registers(struct overlay *overlay, int *ret_memfd, uint32_t *ret_count)
{
	_cleanup_close_ int fd = memfd_new("registers");
	const struct job_value *value;
	uint32_t count = 0;
	int r = fd < 0 ? fd : 0;

	while (r == 0 && count < OV_JOBS_MAX && (value = core_register(overlay->core, count))) {
		r = write_full(fd, value, sizeof(*value));
		count++;
	}
	if (r == 0)
		r = memfd_seal(fd);
	if (r < 0)
		return r;
	*ret_count = count;
	*ret_memfd = take_fd(fd);
	return 0;
}
