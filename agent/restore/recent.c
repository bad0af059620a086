// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The last few objects that were fetched. The images that say which pages a lazy job needs at once
 * lie in the same packs as those pages. For the time before the job runs only: what was fetched may
 * be false, which its reader finds, and would be so again.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>

#include "agent/restore/internal.h"

enum { RECENT_OBJECTS = 4 };

struct recent {
	pack_fetch_fn fetch;
	void *ctx;
	pthread_mutex_t lock; /* guards the rest */
	struct {
		struct object_hash hash;
		int fd; /* -1: free */
	} slots[RECENT_OBJECTS];
	size_t next;
};

int recent_create(pack_fetch_fn fetch, void *ctx, struct recent **ret_recent)
{
	struct recent *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->fetch = fetch;
	r->ctx = ctx;
	pthread_mutex_init(&r->lock, NULL);
	for (size_t i = 0; i < RECENT_OBJECTS; i++)
		r->slots[i].fd = -1;
	*ret_recent = r;
	return 0;
}

void recent_destroy(struct recent *r)
{
	if (!r)
		return;
	for (size_t i = 0; i < RECENT_OBJECTS; i++)
		close_fdp(&r->slots[i].fd);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

static int find(struct recent *r, const struct object_hash *hash)
{
	int fd = -1;

	pthread_mutex_lock(&r->lock);
	for (size_t i = 0; i < RECENT_OBJECTS && fd < 0; i++) {
		if (r->slots[i].fd >= 0 && !memcmp(&r->slots[i].hash, hash, sizeof(*hash)))
			fd = fcntl(r->slots[i].fd, F_DUPFD_CLOEXEC, 3);
	}
	pthread_mutex_unlock(&r->lock);
	return fd;
}

static void keep(struct recent *r, const struct object_hash *hash, int fd)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);

	pthread_mutex_lock(&r->lock);
	close_fdp(&r->slots[r->next].fd);
	r->slots[r->next].fd = copy;
	r->slots[r->next].hash = *hash;
	r->next = (r->next + 1) % RECENT_OBJECTS;
	pthread_mutex_unlock(&r->lock);
}

int recent_fetch(void *ctx, const struct object_hash *hash, uint32_t size,
		 const struct node_id *holders, uint32_t holder_count, int *ret_memfd)
{
	struct recent *r = ctx;
	int fd = find(r, hash), e;

	if (fd >= 0) {
		*ret_memfd = fd;
		return 0;
	}
	e = r->fetch(r->ctx, hash, size, holders, holder_count, &fd);
	if (e < 0)
		return e;
	keep(r, hash, fd);
	*ret_memfd = fd;
	return 0;
}
