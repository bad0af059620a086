/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "overlay/core/state.h"

#include <errno.h>
#include <string.h>

_Static_assert((int)CORE_RECORD_BYTES_MAX <= (int)CORE_RECORD_MAX, "a record fits its bound");
_Static_assert(sizeof(struct core_record) <= CORE_RECORD_BYTES_MAX - 64, "and its buffer");
_Static_assert(CORE_GOSSIP_RECORDS_MAX *(sizeof(struct core_gossip) + 8) + 8 * CORE_BUCKETS + 64 <=
		       CORE_MESSAGE_MAX,
	       "a full load of gossip fits one message");

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014): a good mix without a table. */
uint64_t core_mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

uint64_t core_random(struct core *core)
{
	core->random += UINT64_C(0x9e3779b97f4a7c15);
	return core_mix(core->random);
}

uint32_t core_below(struct core *core, uint32_t limit)
{
	return limit ? (uint32_t)(core_random(core) % limit) : 0;
}

void core_arm(struct core *core, uint64_t when_ms)
{
	if (when_ms < core->next_ms)
		core->next_ms = when_ms;
}

static void outbox_reset(struct core *core)
{
	core->scratch->update.write_count = core->scratch->update.send_count = 0;
	core->scratch->update.answer_count = core->scratch->update.notice_count = 0;
	core->scratch->update.writes = core->scratch->writes;
	core->scratch->update.sends = core->scratch->sends;
	core->scratch->update.answers = core->scratch->answers;
	core->scratch->update.notices = core->scratch->notices;
	core->scratch->arena_used = 0;
	core->scratch->sealed_size = 0;
	core->scratch->dirty_count = 0;
}

struct core_message *core_outbox_begin(struct core *core, enum core_message_type type)
{
	/* The value is written whole by who sends one. */
	memset(&core->scratch->out, 0, offsetof(struct core_message, value));
	core->scratch->out.record_count = core->scratch->out.summary_count = 0;
	core->scratch->out.type = (uint8_t)type;
	core->scratch->sealed_size = 0;
	return &core->scratch->out;
}

void core_outbox_seal(struct core *core)
{
	size_t room = sizeof(core->scratch->arena) - core->scratch->arena_used;

	core->scratch->sealed = core->scratch->arena + core->scratch->arena_used;
	core->scratch->sealed_size = core_message_encode(
		&core->scratch->out, core->scratch->arena + core->scratch->arena_used, room);
	core->scratch->arena_used += core->scratch->sealed_size;
}

void core_outbox_to(struct core *core, const struct node_id *to)
{
	if (!core->scratch->sealed_size || core->scratch->update.send_count == CORE_SENDS_MAX)
		return;
	core->scratch->sends[core->scratch->update.send_count++] = (struct core_send){
		.to = *to,
		.size = core->scratch->sealed_size,
		.bytes = core->scratch->sealed,
	};
}

void core_outbox_send(struct core *core, const struct node_id *to)
{
	core_outbox_seal(core);
	core_outbox_to(core, to);
}

struct core_answer *core_outbox_answer(struct core *core, uint64_t request_id, int status,
				       const struct job_value *value)
{
	struct core_answer *answer;

	if (core->scratch->update.answer_count == CORE_ANSWERS_MAX)
		return NULL;
	answer = &core->scratch->answers[core->scratch->update.answer_count++];
	memset(answer, 0, sizeof(*answer));
	answer->request_id = request_id;
	answer->status = status;
	if (value) {
		answer->has_value = 1;
		answer->value = *value;
	}
	return answer;
}

struct core_notice *core_outbox_notice(struct core *core, enum core_notice_type type)
{
	struct core_notice *notice;

	if (core->scratch->update.notice_count == CORE_NOTICES_MAX)
		return NULL;
	notice = &core->scratch->notices[core->scratch->update.notice_count++];
	/* News of members come by the thousand, and a job's value is ten times their size. */
	if (type != CORE_MEMBER) {
		memset(&notice->value, 0, sizeof(notice->value));
		memset(&notice->member, 0, sizeof(notice->member));
	}
	notice->run_until_boot_ns = 0;
	notice->type = type;
	return notice;
}

static void add_tombstone(const struct job *job, struct core_write *write)
{
	write->is_over = true;
	write->tombstone.state = job->known_value.state;
	write->tombstone.token = job->known_value.token;
	write->tombstone.acceptor_count = job->acceptors.count;
	memcpy(write->tombstone.acceptors, job->acceptors.ids,
	       job->acceptors.count * sizeof(job->acceptors.ids[0]));
}

static void outbox_flush_writes(struct core *core)
{
	for (uint32_t i = 0; i < core->scratch->dirty_count; i++) {
		struct job *job = &core->jobs[core->scratch->dirty[i]];
		struct core_write *write =
			&core->scratch->writes[core->scratch->update.write_count++];
		struct core_record record;

		job->dirty = false;
		*write = (struct core_write){ .job = job->id, .bytes = core->scratch->records[i] };
		if (!job->has_record && job->buried)
			add_tombstone(job, write);
		job->buried = false;
		if (!job->has_record)
			continue;
		memset(&record, 0, sizeof(record));
		record.job = job->id;
		record.epoch = job->epoch;
		record.installed = job->installed;
		record.settled = job->settled;
		record.acceptors = job->acceptors;
		record.previous = job->previous;
		record.next = job->next;
		record.promised = job->promised;
		record.accepted = job->accepted;
		record.value = job->value;
		write->size = core_record_encode(&record, core->scratch->records[i],
						 sizeof(core->scratch->records[i]));
	}
	if (core->scratch->dirty_count && core->config.lost_from && !core->wrote_ms) {
		core->wrote_ms = core->now_ms;
		core_arm(core, core->now_ms + core->config.hold_ms);
	}
	core->scratch->dirty_count = 0;
}

static void outbox_flush_notices(struct core *core)
{
	struct core_notice *notice;

	for (uint32_t i = 0; core->lost_count && i < core->job_high; i++) {
		struct job *job = &core->jobs[i];

		if (!job->used || !job->lost_pending)
			continue;
		notice = core_outbox_notice(core, CORE_LOST);
		if (!notice)
			return;
		notice->value.job = job->id;
		notice->value.token = job->lost_token;
		job->lost_pending = false;
		core->lost_count--;
	}
	if (core->lost_life && !core->lost_told) {
		notice = core_outbox_notice(core, CORE_ROLLED_BACK);
		if (!notice)
			return;
		notice->member.incarnation = core->lost_life;
		core->lost_told = true;
	}
	while (core->notify.count) {
		uint32_t row = core->notify.rows[0];

		notice = core_outbox_notice(core, CORE_MEMBER);
		if (!notice)
			return;
		notice->member = *core_member(core, row, core->now_ms);
		core_member_set_remove(core, &core->notify, &core->members[row]);
	}
}

static void handle_message(struct core *core, const struct node_id *from, struct core_message *m)
{
	/* What the disk here says of registers is not what this host has said. */
	if (core->lost_life && m->type > CORE_MSG_SYNC)
		return;
	core->jobs_touched |= m->type > CORE_MSG_SYNC && m->type != CORE_MSG_SUMMARY;
	switch (m->type) {
	case CORE_MSG_PING:
	case CORE_MSG_ACK:
	case CORE_MSG_PING_REQ:
	case CORE_MSG_GOSSIP:
	case CORE_MSG_DIGEST:
	case CORE_MSG_SYNC:
	case CORE_MSG_SUMMARY:
		core_member_message(core, from, m);
		break;
	case CORE_MSG_PREPARE:
	case CORE_MSG_ACCEPT:
	case CORE_MSG_RENEW:
	case CORE_MSG_LEARN:
		core_acceptor_message(core, from, m);
		break;
	case CORE_MSG_PROMISE:
	case CORE_MSG_NACK:
	case CORE_MSG_ACCEPTED:
		core_proposer_message(core, from, m);
		break;
	case CORE_MSG_INSTALL:
	case CORE_MSG_INSTALLED:
	case CORE_MSG_MOVED:
	case CORE_MSG_CLOSE:
	case CORE_MSG_CLOSED:
		core_epoch_message(core, from, m);
		break;
	case CORE_MSG_RENEWED:
	case CORE_MSG_LOST:
		core_lease_message(core, from, m);
		break;
	default:
		core_guardian_message(core, from, m);
	}
}

/*
 * What a node says to itself (as proposer to its own acceptor) is handled inside the step: its
 * writes are in this very update, so they are durable before anything that follows from them
 * leaves. Then the local messages are taken out of the update.
 */
static void deliver_local(struct core *core)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < core->scratch->update.send_count; i++) {
		const struct core_send *send = &core->scratch->sends[i];

		if (node_id_equal(&send->to, core_self(core)) &&
		    core_message_decode(send->bytes, send->size, &core->scratch->in) == 0)
			handle_message(core, core_self(core), &core->scratch->in);
	}
	for (uint32_t i = 0; i < core->scratch->update.send_count; i++)
		if (!node_id_equal(&core->scratch->sends[i].to, core_self(core)))
			core->scratch->sends[kept++] = core->scratch->sends[i];
	core->scratch->update.send_count = kept;
}

static void tick_job(struct core *core, struct job *job)
{
	if (!job->used)
		return;
	if (job->lost_pending)
		core_arm(core, core->now_ms);
	core_lease_tick(core, job);
	if (!core->left)
		core_epoch_tick(core, job);
	core_guardian_tick(core, job);
}

/* Of many jobs few are due, and most ticks are for the probing: the others are not even read. */
static void tick_jobs(struct core *core)
{
	uint64_t next_ms = core->next_ms;

	if (core->jobs_touched)
		memset(core->job_due_ms, 0, core->job_high * sizeof(core->job_due_ms[0]));
	core->jobs_touched = false;
	for (uint32_t i = 0; i < core->job_high; i++) {
		if (core->now_ms >= core->job_due_ms[i]) {
			core->next_ms = core->now_ms + CORE_JOB_LOOK_MS;
			tick_job(core, &core->jobs[i]);
			core->job_due_ms[i] = core->next_ms;
		}
		if (core->job_due_ms[i] < next_ms)
			next_ms = core->job_due_ms[i];
	}
	core->next_ms = next_ms;
}

static void tick(struct core *core)
{
	core->next_ms = UINT64_MAX;
	core_member_tick(core);
	if (core->lost_life)
		return;
	tick_jobs(core);
	/* An operation that ends changes its job. */
	core->jobs_touched |= core->op_high > 0;
	core_proposer_tick(core);
}

static void handle_request(struct core *core, const struct core_event *event)
{
	if (core->lost_life) {
		core_outbox_answer(core, event->request_id, -ESTALE, NULL);
		return;
	}
	switch (event->request) {
	case CORE_REQ_HOLD:
		core_lease_hold(core, event);
		break;
	case CORE_REQ_DROP:
		core_lease_drop(core, event);
		break;
	default:
		core_proposer_request(core, event);
	}
}

static int dispatch(struct core *core, const struct core_event *event)
{
	int r;

	core->jobs_touched |= event->type != CORE_EV_TICK && event->type != CORE_EV_MESSAGE;
	switch (event->type) {
	case CORE_EV_TICK:
		tick(core);
		return 0;
	case CORE_EV_MESSAGE:
		r = -EBADMSG;
		if (!node_id_equal(&event->node, core_self(core)) && !node_id_is_zero(&event->node))
			r = core_message_decode(event->bytes, event->size, &core->scratch->in);
		if (r < 0) {
			core->refusals.messages++;
			return r;
		}
		core_member_heard(core, &event->node);
		handle_message(core, &event->node, &core->scratch->in);
		return 0;
	case CORE_EV_REQUEST:
		handle_request(core, event);
		return 0;
	case CORE_EV_RECORD:
		return core_acceptor_load(core, event->bytes, event->size);
	case CORE_EV_REPORT:
		core_member_report(core, event->report);
		return 0;
	case CORE_EV_LEAVE:
		core_member_leave(core);
		return 0;
	case CORE_EV_GREET:
		core_member_greet(core, event);
		return 0;
	}
	return -EINVAL;
}

size_t core_size(void)
{
	return sizeof(struct core);
}

size_t core_scratch_size(void)
{
	return sizeof(struct core_scratch);
}

int core_init(struct core *core, const struct core_config *config, uint64_t now_ms)
{
	if (!config->verify_card || node_id_is_zero(&config->card.id) || !config->probe_ms ||
	    !config->renew_ms || config->lease_ms <= config->renew_ms ||
	    config->hold_ms <= config->lease_ms || !config->incarnation ||
	    config->incarnation >= CORE_COUNTER_MAX / 2)
		return -EINVAL;
	core->config = *config;
	core->scratch = config->scratch ? config->scratch : &core->own;
	core->now_ms = core->born_ms = now_ms;
	core->random = config->seed;
	/* An answer to a round of an earlier life must be none to a round of this one (O1). */
	core->seq = core_mix(config->incarnation);
	outbox_reset(core);
	return core_member_init(core);
}

int core_step(struct core *core, const struct core_event *event,
	      const struct core_update **ret_update)
{
	int r;

	outbox_reset(core);
	*ret_update = &core->scratch->update;
	if (event->now_ms > core->now_ms)
		core->now_ms = event->now_ms;
	core->boot_ns = event->boot_ns;
	r = dispatch(core, event);
	if (r < 0)
		return r;
	deliver_local(core);
	outbox_flush_writes(core);
	outbox_flush_notices(core);
	return 0;
}

const struct core_refusals *core_refusals(const struct core *core)
{
	return &core->refusals;
}

void core_prefetch(const struct core *core, const struct node_id *from, uint32_t stage)
{
	const uint8_t *hot = (const uint8_t *)core + offsetof(struct core, config.probe_ms);
	const uint8_t *end = (const uint8_t *)core + offsetof(struct core, probes[2]);

	if (stage == 0) {
		__builtin_prefetch(core, 1);
		for (const uint8_t *line = hot; line < end; line += 64)
			__builtin_prefetch(line, 1);
	}
	if (stage > 0 && core->hot.count)
		__builtin_prefetch(core->hot.rows, 1);
	if (from)
		core_member_prefetch(core, from, stage, 1);
	if (!from && stage > 0) {
		__builtin_prefetch(&core->members[core->next_row], 1);
		__builtin_prefetch(&core->order[core->order_next % OV_MEMBERS_MAX], 1);
	}
}

uint64_t core_deadline(const struct core *core)
{
	/* Not in next_ms, for it is called off more often than not. */
	return core->half_ms < core->next_ms ? core->half_ms : core->next_ms;
}
