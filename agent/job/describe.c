// SPDX-License-Identifier: LGPL-2.1-or-later
/* Jobs as people read them: the JSON of ps, show and history (docs/api.md). */
#define LOG_TAG "job"
#include <json-c/json.h>
#include <string.h>
#include <sys/wait.h>

#include "agent/job/verbs.h"
#include "agent/util/io.h"

static void add_text(struct json_object *json, const char *key, const char *text)
{
	json_object_object_add(json, key, json_object_new_string(text));
}

static void add_int(struct json_object *json, const char *key, uint64_t value)
{
	json_object_object_add(json, key, json_object_new_int64((int64_t)value));
}

static void add_bool(struct json_object *json, const char *key, bool value)
{
	json_object_object_add(json, key, json_object_new_boolean(value));
}

static const char *host_of(const struct node_id *id, const struct member_info *members,
			   size_t count)
{
	if (node_id_is_zero(id))
		return "";
	for (size_t i = 0; i < count; i++)
		if (node_id_equal(&members[i].id, id))
			return members[i].hostname;
	return "?";
}

static const char *local_state(const struct job *job, uint32_t fence)
{
	struct keeper_status status;
	struct keeper *k;
	bool lease_frozen = false;

	switch ((enum job_phase)job->phase) {
	case PHASE_STARTING:
		return "starting";
	case PHASE_CHECKPOINTING:
		return "checkpointing";
	case PHASE_MOVING:
		return "moving";
	case PHASE_RESTORING:
		return "restoring";
	case PHASE_FINISHING:
		return "finishing";
	default:
		break;
	}
	if (job->user_frozen || job->owner_frozen)
		return "frozen";
	if (job->run_until_boot_ns < now_boot_ns() && fence == FENCE_STRICT &&
	    keeper_attach(job->run_dir, &k) == 0) {
		lease_frozen = keeper_status(k, &status) == 0 && status.lease_frozen;
		keeper_detach(k);
	}
	return lease_frozen ? "frozen" : "running";
}

const char *describe_standing(const struct job_value *value)
{
	switch (value->state) {
	case JOB_STATE_DONE:
		return "done";
	case JOB_STATE_COLLECTED:
		return "collected";
	case JOB_STATE_KILLED:
		return "killed";
	case JOB_STATE_IDLE:
		return "waiting";
	default:
		return NULL;
	}
}

static const char *state_of(const struct job_value *value, const struct job *local)
{
	const char *standing = describe_standing(value);

	if (standing)
		return standing;
	if (local)
		return local_state(local, value->fence);
	return value->history_count ? "running" : "starting";
}

struct json_object *describe_summary(struct agent *a, const struct job_value *value,
				     const struct job_seal *seal, struct job *local,
				     const struct member_info *members, size_t member_count)
{
	struct json_object *json = json_object_new_object();
	const struct ckpt_ref *newest = &value->history[0];
	bool ended = value->state >= JOB_STATE_DONE;
	const char *host = host_of(&value->owner, members, member_count);
	char hex[33];

	if (!json)
		return NULL;
	hex_encode(&value->job, sizeof(value->job), hex);
	add_text(json, "job", hex);
	add_text(json, "name", local ? local->spec.name : seal->name);
	add_text(json, "user", local ? local->spec.user : seal->user);
	add_int(json, "uid", local ? local->spec.uid : seal->uid);
	add_text(json, "command", local ? local->spec.command : seal->command);
	add_text(json, "state", state_of(value, local));
	add_text(json, "host", local && !*host ? a->hostname : host);
	add_text(json, "home", host_of(&value->home, members, member_count));
	add_int(json, "seq", value->history_count ? newest->seq : 0);
	add_bool(json, "protected", value->history_count > 0);
	if (value->history_count) {
		uint64_t now = now_wall_ms();

		add_int(json, "ckpt_ms", newest->wall_ms);
		add_int(json, "ckpt_age_ms", now > newest->wall_ms ? now - newest->wall_ms : 0);
	}
	add_int(json, "submit_ms", value->submit_wall_ms);
	if (ended) {
		int status = value->exit_status;

		json_object_object_add(json, "exit_status", json_object_new_int(status));
		add_int(json, "exit_code",
			WIFSIGNALED(status) ? (uint64_t)(128 + WTERMSIG(status)) :
					      (uint64_t)WEXITSTATUS(status));
	}
	if (local) {
		pthread_mutex_lock(&local->lock);
		if (local->step[0]) {
			add_text(json, "step", local->step);
			add_int(json, "step_done", local->step_done);
			add_int(json, "step_total", local->step_total);
		}
		if (local->message[0])
			add_text(json, "message", local->message);
		pthread_mutex_unlock(&local->lock);
	}
	return json;
}

static struct json_object *describe_stat(const struct ckpt_stat *s, bool restorable)
{
	struct json_object *json = json_object_new_object();

	add_int(json, "seq", s->seq);
	add_int(json, "wall_ms", s->wall_ms);
	add_text(json, "host", s->host);
	add_text(json, "engine", s->engine);
	add_text(json, "reason", s->reason);
	add_int(json, "pause_us", s->pause_us);
	if (s->pause_mostly[0])
		add_text(json, "pause_mostly", s->pause_mostly);
	add_int(json, "total_us", s->total_us);
	add_int(json, "mem_bytes", s->mem_bytes);
	add_int(json, "file_bytes", s->file_bytes);
	add_int(json, "new_bytes", s->new_bytes);
	add_int(json, "delta_bytes", s->delta_bytes);
	add_int(json, "sent_bytes", s->sent_bytes);
	add_bool(json, "restorable", restorable);
	return json;
}

static struct json_object *describe_moves(const struct move_stat *moves, uint32_t count)
{
	struct json_object *list = json_object_new_array();

	for (uint32_t i = 0; i < count; i++) {
		struct json_object *json = json_object_new_object();

		add_int(json, "wall_ms", moves[i].wall_ms);
		add_text(json, "from", moves[i].from);
		add_text(json, "to", moves[i].to);
		add_text(json, "reason", moves[i].reason);
		add_int(json, "from_seq", moves[i].from_seq);
		add_int(json, "lost_ms", moves[i].lost_ms);
		add_int(json, "resume_ms", moves[i].resume_ms);
		json_object_array_add(list, json);
	}
	return list;
}

struct json_object *describe_history(const struct job_value *value, const struct ckpt_stat *stats,
				     uint32_t stat_count, const struct move_stat *moves,
				     uint32_t move_count)
{
	struct json_object *json = json_object_new_object(), *list = json_object_new_array();

	for (uint32_t i = 0; i < stat_count; i++) {
		bool restorable = false;

		for (uint32_t k = 0; k < value->history_count; k++)
			restorable |= value->history[k].seq == stats[i].seq;
		json_object_array_add(list, describe_stat(&stats[i], restorable));
	}
	json_object_object_add(json, "checkpoints", list);
	json_object_object_add(json, "moves", describe_moves(moves, move_count));
	return json;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t median(uint64_t *values, uint32_t count)
{
	qsort(values, count, sizeof(*values), compare_u64);
	return values[count / 2];
}

/* How the pause of the last native checkpoint was spent, and how memory was followed. */
static struct json_object *describe_native(const struct native_result *n)
{
	struct json_object *json = json_object_new_object(), *pause = json_object_new_object();

	add_int(pause, "total_us", n->pause_us);
	add_int(pause, "freeze_us", n->freeze_us);
	add_int(pause, "blocked_us", n->blocked_us);
	add_int(pause, "queued_us", n->queued_us);
	add_int(pause, "state_us", n->state_us);
	add_int(pause, "regs_us", n->regs_us);
	add_int(pause, "files_us", n->files_us);
	add_int(pause, "scan_us", n->scan_us);
	add_int(pause, "copy_us", n->copy_us);
	add_int(pause, "wait_us", n->wait_us);
	add_int(pause, "thaw_us", n->thaw_us);
	add_int(pause, "earlier_us", n->earlier_us);
	json_object_object_add(json, "pause", pause);
	add_int(pause, "stolen_us", n->stolen_us);
	add_int(json, "calm_us", n->calm_us);
	add_text(json, "stopped_by", n->stopped_by);
	if (n->not_gentle[0])
		add_text(json, "not_by_module", n->not_gentle);
	add_text(json, "tracker", n->mem.tracker);
	add_int(json, "rounds", n->mem.rounds);
	add_int(json, "read_bytes", n->mem.read_bytes);
	add_int(json, "new_bytes", n->mem.new_bytes);
	add_int(json, "residue_bytes", n->mem.residue_bytes);
	add_int(json, "dirty_pages_per_s", n->mem.dirty_rate);
	add_int(json, "attach_us", n->mem.attach_us);
	add_int(json, "cpu_us", n->cpu_us);
	add_int(json, "tasks", n->tasks);
	add_int(json, "threads", n->threads);
	add_bool(json, "bounded", n->mem.bounded);
	return json;
}

/* Under job->lock. */
static void add_engines(struct json_object *detail, const struct job *job)
{
	uint32_t native = 0, criu = 0;

	for (uint32_t i = 0; i < job->stat_count; i++) {
		native += !strcmp(job->stats[i].engine, "native");
		criu += !strcmp(job->stats[i].engine, "criu");
	}
	add_int(detail, "native_count", native);
	add_int(detail, "criu_count", criu);
	if (job->fallbacks) {
		add_int(detail, "fallbacks", job->fallbacks);
		add_text(detail, "fallback_reason", job->fallback);
	}
	if (job->native.id)
		json_object_object_add(detail, "native", describe_native(&job->native));
}

static void add_figures(struct json_object *detail, const struct ckpt_stat *stats, uint32_t count)
{
	uint64_t pauses[MANIFEST_STATS_MAX], sent[MANIFEST_STATS_MAX];
	uint32_t pause_count = 0, last = 0;

	for (uint32_t i = 0; i < count; i++) {
		if (!strcmp(stats[i].reason, "final")) /* the job had ended: no pause */
			continue;
		last = i;
		pauses[pause_count] = stats[i].pause_us;
		sent[pause_count++] = stats[i].sent_bytes;
	}
	if (pause_count) {
		add_int(detail, "pause_us_median", median(pauses, pause_count));
		add_int(detail, "pause_us_max", pauses[pause_count - 1]);
		add_int(detail, "sent_bytes_median", median(sent, pause_count));
		add_int(detail, "mem_bytes", stats[last].mem_bytes);
		add_text(detail, "engine", stats[last].engine);
	}
	add_int(detail, "checkpoints", pause_count);
}

static void add_past(struct json_object *detail, const struct ckpt_stat *stats, uint32_t stat_count,
		     const struct move_stat *moves, uint32_t move_count)
{
	add_figures(detail, stats, stat_count);
	add_int(detail, "moves", move_count);
	if (move_count)
		add_int(detail, "recovery_time_ms", moves[move_count - 1].resume_ms);
}

static void add_spec(struct json_object *detail, struct json_object *spec)
{
	static const char *const keys[] = { "argv", "cwd", "fence", "stdout", "stderr" };
	struct json_object *value;

	/* Copies: the library's reference counts are not for two threads. */
	for (size_t i = 0; spec && i < ARRAY_SIZE(keys); i++) {
		struct json_object *copy = NULL;

		if (json_object_object_get_ex(spec, keys[i], &value) &&
		    json_object_deep_copy(value, &copy, NULL) == 0)
			json_object_object_add(detail, keys[i], copy);
	}
}

void describe_detail(struct agent *a, struct json_object *json, const struct job_value *value,
		     struct job *local, const struct manifest_head *head,
		     const struct member_info *members, size_t member_count)
{
	struct json_object *detail = json_object_new_object(), *holders = json_object_new_array();
	const struct ckpt_ref *newest = &value->history[0];
	char token[64], hex[33];

	(void)a;
	hex_encode(&value->token.node, sizeof(value->token.node), hex);
	snprintf(token, sizeof(token), "%llu.%.8s", (unsigned long long)value->token.counter, hex);
	add_text(detail, "token", token);
	why_add_needs(detail, value);
	why_add_stuck(detail, value, members, member_count);
	add_text(detail, "fence", value->fence == FENCE_STRICT ? "strict" : "commit");
	for (uint32_t i = 0; value->history_count && i < newest->holder_count; i++)
		json_object_array_add(holders,
				      json_object_new_string(
					      host_of(&newest->holders[i], members, member_count)));
	json_object_object_add(detail, "holders", holders);
	if (local) {
		pthread_mutex_lock(&local->lock);
		if (local->knows_past) { /* else it is being read: no figures instead of zeroes */
			add_past(detail, local->stats, local->stat_count, local->moves,
				 local->move_count);
			add_engines(detail, local);
		}
		if (local->sleeps[0])
			add_text(detail, "timed_calls", local->sleeps);
		if (local->coded_packs) {
			add_int(detail, "coded_packs", local->coded_packs);
			add_int(detail, "coded_bytes", local->coded_bytes);
		}
		add_int(detail, "every_s", local->spec.every_s);
		add_int(detail, "interval_s", local->interval_s);
		if (local->next_ckpt_boot_ns > now_boot_ns())
			add_int(detail, "next_ckpt_ms",
				now_wall_ms() +
					(local->next_ckpt_boot_ns - now_boot_ns()) / 1000000);
		add_spec(detail, local->spec.json);
		pthread_mutex_unlock(&local->lock);
	} else if (head) {
		struct json_object *spec = json_tokener_parse(head->spec_json);

		add_past(detail, head->stats, head->stat_count, head->moves, head->move_count);
		add_spec(detail, spec);
		json_object_put(spec);
	}
	if (value->history_count) {
		uint64_t now = now_wall_ms();

		add_int(detail, "recovery_point_ms",
			now > newest->wall_ms ? now - newest->wall_ms : 0);
	}
	json_object_object_add(json, "detail", detail);
}
