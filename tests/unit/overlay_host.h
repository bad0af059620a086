/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests: a made-up cluster on loopback, each host a real overlay half in a process and a
 * folder of its own. Everything asserts (cmocka); nothing is left behind after host_end().
 */
#pragma once

#include <sys/types.h>

#include "overlay/ipc.h"

struct test_cluster {
	uint8_t secret[32], public[32], id[16]; /* Ed25519 key that signs cards */
};

struct test_host {
	pid_t pid;
	int main, side; /* the agent's ends; side: for calls */
	uint16_t port;
	char dir[64];
	uint32_t repair_round_ms, repair_lazy_ms; /* 0: as in the product */
	uint32_t scrub_age_ms;
	uint32_t pull_round_ms, pull_forget_ms; /* likewise */
	uint32_t credit_round_ms;		/* likewise */
	uint32_t probe_ms, suspect_ms;		/* 0: 200, 6000 */
	uint64_t quota_bytes;			/* 0: 1 GiB */
	bool is_stable;				/* host_be_stable() */
	struct ov_identity identity;
};

void cluster_make(struct test_cluster *cluster);
void cluster_sign(const struct test_cluster *cluster, struct node_card *card);
/* A host with a key, a card and a free port; not running. `number` makes its id. */
void host_make(struct test_host *host, const struct test_cluster *cluster, uint8_t number);
/* Before host_run(): it has been on for three weeks, as far as it knows. */
void host_be_stable(struct test_host *host);
/* While it does not run: it was one of these acceptors of a job that was killed, and forgot it. */
void host_bury(struct test_host *host, const struct job_id *job, const struct node_id *acceptors,
	       uint32_t count);
/* While it does not run: a record of its own, as store_own_save(). */
void host_save_own(struct test_host *host, const char *name, const void *bytes, size_t size);
void host_run(struct test_host *host);
/* Serve and gossip; seed may be NULL. Returns the answer's status. */
int host_start(struct test_host *host, const struct test_host *seed);
void host_kill(struct test_host *host); /* SIGKILL; its folder stays */
void host_end(struct test_host *host);	/* by closing the channels: must exit 0; folder removed */

int host_call(struct test_host *host, struct ov_msg *msg, int fd, int *ret_fd);
/* The next event of this kind on the main channel. */
void host_event(struct test_host *host, uint32_t op, struct ov_msg *ret_msg, int timeout_ms);
uint32_t host_count_members(struct test_host *host, uint32_t state);
void host_wait_members(struct test_host *host, uint32_t state, uint32_t count, int timeout_ms);

/* Several of them, as one cluster; the first is the others' seed. */
void cluster_make_hosts(struct test_host *hosts, int count, struct test_cluster *cluster);
void cluster_start(struct test_host *hosts, int count); /* until all know all, and who is willing */
/* Until all of them know that all take packs: their reports travel behind the rows. */
void cluster_wait_willing(struct test_host *hosts, int count);
void cluster_end(struct test_host *hosts, int count);
/* The one with this id, which must be there. */
int cluster_index(const struct test_host *hosts, int count, const struct node_id *id);
/* In all stores of those that run. */
uint64_t cluster_objects(struct test_host *hosts, int count);
void cluster_wait_objects(struct test_host *hosts, int count, uint64_t objects, int timeout_ms);

/* A sealed memfd of `size` bytes grown from `salt`, and what a PUT says of it. */
int object_make(uint32_t size, uint8_t salt, struct ov_object *ret_object);
int host_put(struct test_host *host, int fd, struct ov_object *object, uint32_t copies);
void host_get_checked(struct test_host *host, const struct ov_object *object);
/* Where the bytes of fd begin in a host's first segment, which is not full: that file, to write. */
int host_place_of(const struct test_host *host, int fd, const struct ov_object *object,
		  off_t *ret_offset);
void host_sleep_ms(unsigned int ms);
