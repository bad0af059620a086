// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The way out for bench-store: four overlay halves over TLS on loopback, the worker's and three
 * peers', which acknowledge what they have hashed and synced to their disk.
 */
#include "tests/bench/store.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "agent/util/io.h"
#include "tests/unit/overlay_host.h"

enum { HOSTS = 4, WAIT_MS = 60000, PUT_MS = 120000, PUT_TRIES = 20, PUT_PAUSE_MS = 500 };

struct store_peers {
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
	pthread_mutex_t lock; /* guards the rest: several objects may be on their way */
	uint64_t put_us, put_bytes;
	uint32_t link_kib_s;
};

struct store_peers *store_peers_start(uint64_t quota_bytes)
{
	struct store_peers *p = calloc(1, sizeof(*p));

	if (!p)
		store_die("memory", -ENOMEM);
	pthread_mutex_init(&p->lock, NULL);
	cluster_make(&p->cluster);
	for (int i = 0; i < HOSTS; i++) {
		struct test_host *h = &p->hosts[i];

		host_make(h, &p->cluster, (uint8_t)(i + 1));
		/* A machine that is short of time has no dead hosts. */
		h->suspect_ms = WAIT_MS;
		h->quota_bytes = quota_bytes;
		host_run(h);
		if (host_start(h, i ? &p->hosts[0] : NULL) < 0)
			store_die("overlay half", -EIO);
	}
	for (int i = 0; i < HOSTS; i++)
		host_wait_members(&p->hosts[i], MEMBER_ALIVE, HOSTS, WAIT_MS);
	host_sleep_ms(1500);
	return p;
}

void store_peers_end(struct store_peers *p)
{
	for (int i = 0; i < HOSTS; i++)
		host_end(&p->hosts[i]);
	free(p);
}

/* -EHOSTUNREACH: not all three have it. */
static int put_once(const struct store_peers *p, int memfd, const struct ov_object *object,
		    struct ov_msg *ret_msg)
{
	_cleanup_close_ int channel = ov_open_channel(p->hosts[0].main);
	int r;

	*ret_msg = (struct ov_msg){ .op = OV_OBJECT_PUT, .u.object = *object };
	ret_msg->u.object.copies = HOSTS - 1;
	r = channel < 0 ? channel : ov_call(channel, ret_msg, memfd, NULL, PUT_MS);
	return r == 0 && ret_msg->u.object.holder_count < HOSTS - 1 ? -EHOSTUNREACH : r;
}

int store_peers_put(struct store_peers *p, int memfd, struct ov_object *object)
{
	uint64_t began = now_boot_ns();
	struct ov_msg msg;
	int r = put_once(p, memfd, object, &msg);

	/* A machine that is short of time loses links; what that took counts. */
	for (int tries = 1; r == -EHOSTUNREACH && tries < PUT_TRIES; tries++) {
		fprintf(stderr, "store: not all peers have an object: again\n");
		host_sleep_ms(PUT_PAUSE_MS);
		r = put_once(p, memfd, object, &msg);
	}
	if (r < 0)
		return r;
	pthread_mutex_lock(&p->lock);
	p->put_us += (now_boot_ns() - began) / 1000;
	p->put_bytes += object->size;
	p->link_kib_s = msg.u.object.link_kib_s;
	pthread_mutex_unlock(&p->lock);
	*object = msg.u.object;
	return 0;
}

/* Of all its threads. */
static uint64_t cpu_us(pid_t pid)
{
	struct timespec ts;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &ts) < 0)
		store_die("CPU time of an overlay half", -ESRCH);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

void store_peers_spent(const struct store_peers *p, struct store_spent *ret_spent)
{
	*ret_spent = (struct store_spent){ .put_us = p->put_us,
					   .put_bytes = p->put_bytes,
					   .link_kib_s = p->link_kib_s,
					   .half_cpu_us = cpu_us(p->hosts[0].pid) };
	for (int i = 1; i < HOSTS; i++)
		ret_spent->peers_cpu_us += cpu_us(p->hosts[i].pid);
}
