/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Jobs of this host: launch, adopt, supervise, checkpoint, hand over, take over, bring home.
 *
 *   API threads --\                          /-- keeper (namespaces, lease warden)
 *   overlay events --> struct job + its thread --- capture -> pack -> overlay half
 *   logins, timers -/                        \-- restore
 *
 * Threading: one thread per local job does everything that blocks, one action at a time, in order.
 * The event loop only passes overlay events on and extends leases (its own keeper connection, so
 * that a long checkpoint never delays one). `agent.lock` guards the table; `job.lock` the fields
 * marked below; neither is held across a blocking call.
 *
 * Rule of the stage: a job is killed here only after its register said that it is no longer ours
 * (-ESTALE, LOST), after a RELEASE of a frozen job was committed, or at its user's word. Any other
 * failure ends with the job running (or frozen, if its lease or a user at the keyboard says so).
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/resource.h>

#include "agent/api/api.h"
#include "agent/capture/capture.h"
#include "agent/cluster/cluster.h"
#include "agent/host/host.h"
#include "agent/job/interval.h"
#include "agent/keeper/keeper.h"
#include "agent/pack/pack.h"
#include "agent/restore/restore.h"
#include "overlay/ipc.h"

struct sd_event;
struct sd_event_source;

enum {
	JOB_NAME_MAX = 64,
	JOB_MESSAGE_MAX = 512,
	JOB_CALL_MS = 15000,	 /* one register request */
	JOB_OBJECT_MS = 120000,	 /* one object to or from its holders */
	JOB_LOCAL_MAX = 128,	 /* jobs on one host */
	ORDER_NONCES_MAX = 4096, /* steering orders from other hosts within ten minutes */
	ORDER_THREADS_MAX = 64,	 /* orders and joins being carried out */
	READINGS_MAX = 8,	 /* checkpoints that are being looked into */
	READINGS_ALIVE_MAX = 16, /* with those that gave way while a request still used them */
	READING_IDLE_S = 60,
	FOLDERS_MAX = 16,	 /* writable folders of one host */
	FOLDER_CREATES_MAX = 64, /* of one host, within FOLDER_CREATES_S */
};

/* What a user asked for; travels as JSON in every manifest. */
struct job_spec {
	struct json_object *json; /* the whole of it, owned */
	char name[JOB_NAME_MAX];
	char user[32];
	char cwd[1024];
	char command[200];
	uid_t uid;
	gid_t gid;
	uint32_t every_s; /* 0: adaptive */
	bool adopted;
	uint32_t folder_keep; /* not 0: it is a folder */
};

/* Sealed into struct job_value.sealed with the worker key; AD = job id. */
struct job_seal {
	uint32_t version; /* 1 */
	uint32_t uid, gid;
	uint32_t every_s;
	uint64_t flags; /* JOB_SEAL_ADOPTED */
	uint8_t key[32];
	char name[JOB_NAME_MAX];
	char user[32];
	char command[200];
	char cwd[1024];
};
enum {
	JOB_SEAL_ADOPTED = 1,
	JOB_SEAL_FOLDER = 2,	 /* a writable folder, see folder.h: no processes, never restored */
	JOB_SEAL_KEEP_SHIFT = 8, /* of a folder: how many versions are kept */
};
static inline uint32_t job_seal_keep(const struct job_seal *seal)
{
	return seal->flags & JOB_SEAL_FOLDER ? (uint32_t)(seal->flags >> JOB_SEAL_KEEP_SHIFT) : 0;
}
_Static_assert(sizeof(struct job_seal) + SEAL_OVERHEAD <= OV_SEALED_MAX, "fits the register");

enum job_phase {
	PHASE_STARTING = 1,
	PHASE_RUNNING,
	PHASE_CHECKPOINTING,
	PHASE_MOVING, /* being handed over */
	PHASE_RESTORING,
	PHASE_FINISHING, /* ended; its result is being stored */
	PHASE_GONE,	 /* no longer here: moved, lost, ended */
};

enum action_type {
	ACTION_LAUNCH = 1,
	ACTION_ADOPT,
	ACTION_RESUME,	/* keeper found alive after a restart of decampd */
	ACTION_RESTORE, /* granted to us */
	ACTION_CHECKPOINT,
	ACTION_HANDOVER, /* freeze, commit, release, free */
	ACTION_ROLLBACK, /* release at an older checkpoint */
	ACTION_FREEZE,
	ACTION_THAW,
	ACTION_KILL,
	ACTION_RESULTS, /* we are home: bring the results in */
	ACTION_LOST,	/* another incarnation has the job: kill and discard */
	ACTION_STOP,	/* decampd ends; the job runs on */
	ACTION_MEMORY,	/* news of a job whose memory is not all here yet */
};

struct action {
	enum action_type type;
	char reason[32];
	struct node_id target;
	uint64_t seq;  /* ROLLBACK */
	int signal;    /* KILL: 0 = end the job */
	pid_t pid;     /* ADOPT */
	uint64_t born; /* ADOPT: its start time, so that no other with its PID is taken */
	bool detached; /* nobody waits: the thread frees it */
	/* filled in by the thread */
	bool finished;
	int result;
	struct ckpt_stat stat; /* CHECKPOINT */
	struct action *next;
};

struct agent;
struct restore_lazy;
struct lazy_events;
struct fetch_ctx;

struct job {
	struct agent *agent;
	struct job_id id;
	char hex[33];
	struct job_spec spec;
	struct secret_key key;

	pthread_t thread;
	bool thread_started;
	int wake_fd; /* eventfd: the queue has something */
	atomic_int refs;

	pthread_mutex_t dump_lock; /* held while a capture runs: CRIU cannot work in a frozen
				    * cgroup, so nobody may freeze it then */
	pthread_mutex_t lock;	   /* guards all below up to the blank line */
	pthread_cond_t changed;
	struct action *queue_head, *queue_tail;
	_Atomic enum job_phase phase; /* atomic: read without the lock too; so are the flags below */
	struct job_value value; /* newest committed value that we know; set by the thread alone */
	char message[JOB_MESSAGE_MAX];
	char step[32];
	uint64_t step_done, step_total;
	atomic_bool user_frozen;  /* by `decamp freeze` */
	atomic_bool owner_frozen; /* a user sits here and the job could not leave yet */
	atomic_bool releasing; /* a RELEASE was sent under this token: never to run under it again */
	atomic_bool starved;   /* nobody gives a part of its memory: frozen until somebody does */
	atomic_bool lost;
	atomic_bool claiming; /* see job_claim(): a newer token may be granted before it returns */
	uint64_t next_ckpt_boot_ns;
	uint32_t interval_s;
	bool knows_past; /* the lists below hold what the newest manifest says, too */
	uint32_t stat_count, move_count;
	struct ckpt_stat stats[MANIFEST_STATS_MAX];
	struct move_stat moves[MANIFEST_STATS_MAX];
	struct native_result native; /* of the last native checkpoint here; id 0: none */
	uint32_t fallbacks;	     /* checkpoints here that native was to take and did not */
	char fallback[CAPTURE_REASON_MAX]; /* why, the last time */
	char sleeps[RESTORE_SLEEPS_MAX];   /* timed calls at its last restore here; may be empty */
	uint64_t coded_packs, coded_bytes; /* kept as shards, by the newest manifest */
	uint32_t failures;		   /* checkpoints failed in a row */
	struct results_summary {
		uint32_t written, deleted, set_aside, failed;
		char folder[128];
	} results;
	atomic_ullong run_until_boot_ns;
	atomic_int adopted_pid; /* main process of a job that is still in place, else 0 */

	/* the job's thread only */
	int channel;
	struct keeper *keeper;
	struct capture *capture;
	struct packer *packer;
	unsigned int
		pack_shares; /* how many share the memory for packing, as it knows; 0: not told */
	struct {
		uint64_t seq;
		struct object_hash *hashes;
		size_t count;
		struct object_hash *coded; /* those of which shards are enough */
		size_t coded_count;
	} kept[OV_HISTORY_MAX]; /* objects that each history entry needs */
	char state_dir[512], run_dir[512], cgroup_dir[512];
	pid_t traced_pid; /* adopted process that eBPF follows, or 0 */
	struct {
		struct restore_lazy *lazy; /* NULL: all of its memory is here */
		struct manifest *manifest;
		struct fetch_ctx *fetch;
	} coming;
	bool in_place;		 /* adopted and not moved yet: in the host's namespaces */
	bool lease_frozen;	 /* by the warden, when last looked at */
	bool killed;		 /* its user ended it: its death is its end */
	uint64_t code_again_seq; /* no pack becomes shards before this checkpoint */
	struct {
		uint64_t done_seq; /* of this checkpoint nothing is left to move */
		uint64_t again_boot_ns;
	} compact;
	uint32_t few_holders; /* of the checkpoint under way: the fewest of one of its objects */

	/* the event loop only */
	struct keeper *lease_keeper;
};

struct agent {
	struct host_config config;
	struct sd_event *event;
	struct cluster *_Atomic cluster; /* NULL: not in a cluster yet */
	struct node_id self;
	char hostname[64];
	char criu[512];
	char cgroup_base[512]; /* empty: none */
	bool has_sys_resource;
	uint32_t kernel_features;	    /* as found at the start */
	struct rlimit limits[RLIM_NLIMITS]; /* as decampd was started with: those of jobs */
	int main_channel;
	int boot_lock_fd;
	struct host_watch *watch;
	struct host_trace *trace;
	struct api *api;
	struct sd_event_source *report_timer;
	uint64_t slept_ns; /* until the last warning of a shutdown or sleep */
	atomic_bool user_present, vacating, stopping, shutting_down;
	atomic_int order_threads;
	uint64_t refused_values, refused_boot_ns; /* of registers; when the log heard of one */
	pthread_mutex_t cluster_lock; /* one at a time founds, joins, invites or admits */

	pthread_mutex_t readings_lock;
	struct reading *readings[READINGS_MAX];
	unsigned int readings_alive; /* in the table, used, or being opened */

	pthread_mutex_t folders_lock;
	struct folder *folders[FOLDERS_MAX];
	bool folders_wanted, folders_at_work; /* the thread that takes them up */
	struct folder_create {
		uid_t uid;
		uint64_t boot_ns;	      /* 0: none */
	} folder_creates[FOLDER_CREATES_MAX]; /* a ring of the newest */
	uint32_t folder_create_next;

	pthread_mutex_t lock; /* guards the rest */
	struct job *jobs[JOB_LOCAL_MAX];
	struct order_nonce {
		uint8_t nonce[16];
		uint64_t sent_wall_ms;
	} order_nonces[ORDER_NONCES_MAX]; /* seen lately: no order is carried out twice */
	uint32_t order_nonce_next;
};

/* ---- agent.c, resume.c: what main.c calls ---- */
int agent_start_jobs(struct agent *a) _must_check_; /* attaches to keepers left by an earlier life */
int job_resume(struct job *job) _must_check_;
void agent_stop_jobs(struct agent *a);		       /* leaves all jobs running */
int agent_start_overlay(struct agent *a) _must_check_; /* OV_CLUSTER_START if there is an identity */
void agent_overlay_event(struct agent *a, const struct ov_msg *msg);
/* What this host is like now, but for its jobs and its store. */
int agent_look(struct agent *a, struct member_state_report *ret_report) _must_check_;
/* readings.c: closes checkpoints that nobody looked into for READING_IDLE_S. */
void agent_close_readings(struct agent *a);
/* Tells the cluster what this host is like now; returns how many jobs are here. */
uint32_t agent_report(struct agent *a);
void agent_user_came(struct agent *a, const char *who);
void agent_user_gone(struct agent *a);
void agent_vacate(struct agent *a, bool on, const char *reason);
extern const struct api_route agent_routes[];

/* ---- table (agent.c) ---- */
struct job *agent_find(struct agent *a, const struct job_id *id); /* with a reference, or NULL */
struct job *job_ref(struct job *job);
/* In no table, without folders and thread; NULL: out of memory. */
struct job *job_new(struct agent *a, const struct job_id *id, const struct job_value *value,
		    const struct secret_key *key);
void job_unref(struct job *job);
static inline void job_unrefp(struct job **job)
{
	if (*job)
		job_unref(*job);
}
/* Does the process belong to a local job that was adopted in place (other than except)? */
bool agent_has_process(struct agent *a, pid_t pid, const struct job *except);
/* Makes the table row, folders and thread; the caller posts the first action. ret_job: with a
 * reference. -EEXIST if it is here already. */
int agent_add_job(struct agent *a, const struct job_id *id, const struct job_value *value,
		  struct job_spec *spec_take, const struct secret_key *key,
		  struct job **ret_job) _must_check_;
/* Members of the cluster; caller frees. Any thread, over its own side channel. */
int agent_members(int channel, struct member_info **ret_members, size_t *ret_count) _must_check_;
int agent_list(int channel, struct job_value **ret_values, size_t *ret_count) _must_check_;

/* ---- spec.c ---- */
int job_spec_from_json(struct json_object *json_take, struct job_spec *ret_spec) _must_check_;
void job_spec_deinit(struct job_spec *spec);
int job_seal_value(const struct agent *a, const struct job_spec *spec, const struct secret_key *key,
		   struct job_value *value) _must_check_;
int job_unseal_value(const struct agent *a, const struct job_value *value,
		     struct job_seal *ret_seal) _must_check_;

/* ---- thread.c ---- */
void *job_thread(void *job);
/* Waits until the action is done (timeout_ms < 0: for ever); -ETIMEDOUT leaves it under way. */
int job_do(struct job *job, struct action *action, int timeout_ms) _must_check_;
/* Queues a heap copy; nobody waits. */
int job_post(struct job *job, const struct action *action) _must_check_;
void job_say(struct job *job, const char *fmt, ...) _printf_(2, 3);
void job_step(struct job *job, const char *step, uint64_t done, uint64_t total);
void job_phase(struct job *job, enum job_phase phase);
/* Local record for a restart of decampd. */
int job_save(struct job *job) _must_check_;
/* Everything local of a job that is no longer ours: processes, namespaces, files. */
void job_discard(struct job *job);
/* A keeper of an earlier incarnation that nobody looks after any more: it ends. */
void job_end_leftover(struct job *job);
/* All that lives in a cgroup whose keeper is dead. */
void job_kill_cgroup(const char *cgroup_dir);
/* Once it is empty. */
void job_remove_cgroup(const char *cgroup_dir);
/* A copy of the newest committed value, for other threads. */
void job_get_value(struct job *job, struct job_value *ret_value);

/* ---- register.c: requests on the thread's side channel ---- */
/* The overlay half is not trusted: counts inside their arrays, a state that exists. */
bool job_value_sane(const struct job_value *value);
/* Of a local record, whole or of before jobs had needs. */
int job_value_from_hex(const char *hex, struct job_value *ret_value) _must_check_;
int job_cas(struct job *job, const struct job_value *value, int patience_ms) _must_check_;
/* One request about its register; what no answer came to is -EAGAIN. */
int job_register_call(struct job *job, struct ov_msg *msg) _must_check_;
/* After an -ESTALE, before anything is killed: a quorum says that another incarnation is the job. */
bool job_is_lost(struct job *job);
/*
 * Before a restore: this host, granted the job, takes a token of its own for it. Under the granted
 * one it may have run before a power cut, and a RELEASE of that run may still be on its way.
 */
int job_claim(struct job *job, int patience_ms) _must_check_;
int job_hold(struct job *job, int patience_ms) _must_check_;
void job_drop(struct job *job);
int job_store_object(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		     uint32_t *ret_holder_count, struct node_id *ret_holders);
/* For packs that jobs share; returns how many of the holders had it. */
int job_store_shared(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		     uint32_t *ret_holder_count, struct node_id *ret_holders);
/* Objects of a job, for several threads at once: each call has a side channel of its own. */
enum { FETCH_CHANNELS_MAX = 8 }; /* kept open */
struct fetch_ctx {
	int main_channel;
	struct job_id id;
	struct fence_token token; /* only where the job is being restored under it */
	pthread_mutex_t lock;	  /* guards the rest */
	int idle[FETCH_CHANNELS_MAX];
	unsigned int idle_count;
};
void job_fetch_init(struct fetch_ctx *fetch, int main_channel, const struct job_id *id);
void job_fetch_deinit(struct fetch_ctx *fetch);
int job_fetch_object(void *ctx, const struct object_hash *hash, uint32_t size,
		     const struct node_id *holders, uint32_t holder_count, int *memfd);
int job_open_manifest(struct agent *a, int channel, const struct job_id *id,
		      const struct secret_key *key, const struct ckpt_ref *ref,
		      struct manifest **ret_manifest) _must_check_;
/* A request about an object. What no answer came to is -EAGAIN. */
int job_object_call(struct job *job, struct ov_msg *msg, int fd, int timeout_ms) _must_check_;
void job_retain(struct job *job);
void job_forget_kept(struct job *job, uint32_t i);
void job_learn_kept(struct job *job);

/* ---- lazy.c: a job that runs before all of its memory is here ---- */
bool job_lazy_wanted(const struct job *job);
struct lazy_events job_lazy_events(struct job *job);
void job_lazy_keep(struct job *job, struct restore_lazy *lazy_take, struct manifest *manifest_take,
		   struct fetch_ctx *fetch_take);
/*
 * 0: all is here, and the packer knows it. -EAGAIN: not within this time, or nobody gives it. Other
 * errors: it never will be, revive the job.
 */
int job_lazy_settle(struct job *job, int patience_ms) _must_check_;
/* The job is dead. */
void job_lazy_end(struct job *job);
/* decampd ends: the job is frozen, and begins anew from its checkpoint with the next decampd. */
void job_lazy_leave(struct job *job);

/* ---- checkpoint.c ---- */
int job_checkpoint(struct job *job, const char *reason, enum capture_after after,
		   struct ckpt_stat *ret_stat) _must_check_;
/* The ended job's files and exit status, committed as DONE. Retries until it holds or is lost. */
int job_finish(struct job *job, int exit_status) _must_check_;
uint32_t job_interval_s(const struct job *job);
/* -ENOSPC, and the job says so: fewer than two copies although there are hosts for them. */
int job_enough_holders(struct job *job, const struct ckpt_ref *ref) _must_check_;
/* Blocks whose holders died count as new. */
void job_forget_weak(struct job *job);

/* ---- erasure.c ---- */
/* Some of the packs that are old enough, if that is asked for and pays. */
void job_code_old(struct job *job);

/* ---- compact.c ---- */
/* A round of it if there is something to do and time for it. */
void job_compact(struct job *job);

/* ---- handover.c ---- */
int job_handover(struct job *job, const struct action *action) _must_check_;
/* decampd was restarted between a RELEASE and its answer. */
int job_finish_release(struct job *job) _must_check_;
/* The job died through no act of its own or its user's: back to its last checkpoint. */
int job_revive(struct job *job) _must_check_;
int job_rollback(struct job *job, const struct action *action) _must_check_;

/* ---- launch.c, takeover.c, results.c ---- */
int job_launch(struct job *job) _must_check_;
int job_adopt(struct job *job, const struct action *action) _must_check_;
int job_takeover(struct job *job) _must_check_;
int job_bring_home(struct job *job) _must_check_;
/* The spec and the statistics of the job come with its manifest. */
int job_learn_head(struct job *job, const struct manifest_head *head) _must_check_;
int job_make_capture(struct job *job) _must_check_;
/* Before a checkpoint: the packer's part of what all jobs here may take, as many as there are. */
void job_share_packing(struct job *job);
void job_fill_keeper(struct job *job, struct keeper_config *ret_config);
/* What start_again() needs: a job that never came to be must not be started later. */
void job_forget_home(struct job *job);
/* When a process began, in clock ticks since boot; 0 if there is none. */
uint64_t process_born(pid_t pid);

/* ---- orders.c: from agent to agent ---- */
/* Runs the verb on that host as this caller; -EHOSTUNREACH if it does not answer. */
int order_forward(struct agent *a, const struct node_id *node, const char *verb,
		  const struct api_call *call, int timeout_ms,
		  struct api_reply *reply) _must_check_;
void order_received(struct agent *a, const struct ov_msg *msg);

/* ---- describe.c ---- */
/* A word for a job that no host runs now; NULL for any other. */
const char *describe_standing(const struct job_value *value);
struct json_object *describe_summary(struct agent *a, const struct job_value *value,
				     const struct job_seal *seal, struct job *local,
				     const struct member_info *members, size_t member_count);
void describe_detail(struct agent *a, struct json_object *json, const struct job_value *value,
		     struct job *local, const struct manifest_head *head,
		     const struct member_info *members, size_t member_count);
struct json_object *describe_history(const struct job_value *value, const struct ckpt_stat *stats,
				     uint32_t stat_count, const struct move_stat *moves,
				     uint32_t move_count);
