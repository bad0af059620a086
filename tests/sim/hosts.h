/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What agents do with the core, on every host of a net: hold a job, store and commit checkpoints,
 * leave, end, bring results home. When a lease begins or grows it checks I1: of a strict job, at
 * most one host has it running with its lease not over by that host's own clock. No run begins
 * or grows otherwise, so no overlap is missed between two events.
 */
#pragma once

#include "tests/sim/checker.h"

enum { HOSTS_JOBS_MAX = 128, HOSTS_COPIES = 3 };

enum host_phase {
	HOST_NONE,
	HOST_GRANTED,  /* take a token of one's own for it */
	HOST_CLAIMING, /* asked */
	HOST_WANTED,   /* claimed or created: ask for the lease */
	HOST_WAITING,  /* asked */
	HOST_RUNNING,  /* as long as the lease lasts */
	HOST_LEAVING,  /* frozen or ended; `wish` goes into the register until that succeeds */
};

struct host_job {
	enum host_phase phase;
	bool busy;   /* a request is in flight */
	bool rehold; /* the daemon restarted: ask again with the same token */
	bool collect;
	struct fence_token token;
	struct job_value value, wish, results;
	uint64_t run_until_boot_ns;
	uint64_t next_ms, wake_ms;
	/* a checkpoint on its way to its holders, see objects.c */
	bool storing;
	uint32_t put, acks;
	uint64_t give_up_ms;
	struct node_id holders[HOSTS_COPIES];
};

struct hosts_job {
	struct job_id id;
	uint32_t home;
	bool strict, created, killed;
	int create_status;
	struct job_value got; /* last answer to hosts_get() */
	int got_status;
	uint64_t got_count;
	int take_status;
	uint64_t take_count;
	int kill_status;
};

/* What a host's store keeps: manifests by job and by what their hash says. */
struct hosts_object {
	uint32_t job;
	uint64_t token, seq;
};

struct hosts_store {
	struct hosts_object *objects;
	uint32_t count, room;
};

struct hosts {
	struct simnet *net;
	struct checker checker;
	struct hosts_job jobs[HOSTS_JOBS_MAX];
	uint32_t job_count;
	struct host_job *at[HOSTS_JOBS_MAX][SIMNET_NODES_MAX]; /* NULL: nothing to do with it */
	struct hosts_store stores[SIMNET_NODES_MAX];
	/* per million and decision of a running job; the rest are checkpoints */
	uint32_t release_ppm, done_ppm;
	uint32_t checkpoint_ms; /* mean */
	bool aim;		/* releases name a random target */
	uint64_t commits, losses, grants, failed_puts;
	/* Hears of every message that is sent; false: it is lost. */
	bool (*watch)(struct hosts *hosts, uint32_t node, const struct core_send *send);
	void *watch_ctx;
};

struct hosts *hosts_create(uint64_t seed, uint32_t count, const struct simnet_rates *rates);
void hosts_destroy(struct hosts *hosts);
/* Starts all hosts and lets them meet. */
void hosts_start(struct hosts *hosts);

/* The state of a job on a host; made if there is none yet. */
struct host_job *hosts_at(struct hosts *hosts, uint32_t node, uint32_t job);
uint32_t hosts_job_index(const struct hosts *hosts, const struct job_id *id);
/* Looks at the job again at that time, if the host is up then. */
void hosts_wake(struct hosts *hosts, uint32_t node, uint32_t job, uint64_t when_ms);

/* A new job on that host; returns its index. */
uint32_t hosts_submit(struct hosts *hosts, uint32_t node, bool strict);
void hosts_get(struct hosts *hosts, uint32_t node, uint32_t job);
void hosts_take(struct hosts *hosts, uint32_t node, uint32_t job, uint32_t target);
void hosts_kill(struct hosts *hosts, uint32_t node, uint32_t job);
/* The owner freezes it and gives it up; target may be SIMNET_NODES_MAX. */
void hosts_release(struct hosts *hosts, uint32_t node, uint32_t job, uint32_t target);
void hosts_end(struct hosts *hosts, uint32_t node, uint32_t job);

/* `reboot`: the jobs die too; else only the daemon goes and the job runs to its deadline. */
void hosts_crash(struct hosts *hosts, uint32_t node, bool reboot);
/* The host is down: it comes back with an older disk or an empty one, and no objects. */
void hosts_rollback(struct hosts *hosts, uint32_t node, bool wipe);

/* The host where the job runs now, or SIMNET_NODES_MAX. */
uint32_t hosts_running(const struct hosts *hosts, uint32_t job);
bool hosts_is_running(const struct hosts *hosts, uint32_t node, uint32_t job);

/* objects.c: checkpoints on their way to other hosts' disks, at the level of whole objects */
void objects_put(struct hosts *hosts, uint32_t node, uint32_t job);
bool objects_enough(const struct hosts *hosts, const struct host_job *hj);
/* Others of this job are needed no more; who can be reached drops them. */
void objects_retain(struct hosts *hosts, uint32_t node, uint32_t job,
		    const struct job_value *value);
/* This host has asked for the job: what the answer shows to be needed no more is dropped here. */
void objects_pull(struct hosts *hosts, uint32_t node, uint32_t job, int status,
		  const struct job_value *value);
/* I7, and: whatever is committed can be restored from somebody who never lost his disk. */
void objects_check_commit(struct hosts *hosts, const struct job_value *value);
void objects_check_restorable(struct hosts *hosts, const struct job_value *value);
