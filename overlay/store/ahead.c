// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/store/ahead.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "agent/util/cleanup.h"

struct piece {
	int fd;
	uint64_t offset, size;
};

struct ahead {
	pthread_t thread;
	pthread_mutex_t lock; /* all below */
	pthread_cond_t added;
	struct piece pieces[AHEAD_MAX];
	unsigned int first, count;
	bool stop;
};

static void *ahead_main(void *arg)
{
	struct ahead *ahead = arg;

	pthread_mutex_lock(&ahead->lock);
	while (!ahead->stop) {
		struct piece piece;

		if (ahead->count == 0) {
			pthread_cond_wait(&ahead->added, &ahead->lock);
			continue;
		}
		piece = ahead->pieces[ahead->first];
		ahead->first = (ahead->first + 1) % AHEAD_MAX;
		ahead->count--;
		pthread_mutex_unlock(&ahead->lock);
		/* Without a wait flag no error of a write is taken away from the sync. */
		(void)sync_file_range(piece.fd, (off_t)piece.offset, (off_t)piece.size,
				      SYNC_FILE_RANGE_WRITE);
		close_fdp(&piece.fd);
		pthread_mutex_lock(&ahead->lock);
	}
	pthread_mutex_unlock(&ahead->lock);
	return NULL;
}

int ahead_create(struct ahead **ret_ahead)
{
	struct ahead *ahead = calloc(1, sizeof(*ahead));
	sigset_t all, before;
	int r;

	if (!ahead)
		return -ENOMEM;
	pthread_mutex_init(&ahead->lock, NULL);
	pthread_cond_init(&ahead->added, NULL);
	/* Signals are the event loop's business. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = -pthread_create(&ahead->thread, NULL, ahead_main, ahead);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r < 0) {
		free(ahead);
		return r;
	}
	*ret_ahead = ahead;
	return 0;
}

void ahead_destroy(struct ahead *ahead)
{
	if (!ahead)
		return;
	pthread_mutex_lock(&ahead->lock);
	ahead->stop = true;
	pthread_cond_signal(&ahead->added);
	pthread_mutex_unlock(&ahead->lock);
	pthread_join(ahead->thread, NULL);
	for (; ahead->count > 0; ahead->count--) {
		close_fdp(&ahead->pieces[ahead->first].fd);
		ahead->first = (ahead->first + 1) % AHEAD_MAX;
	}
	pthread_cond_destroy(&ahead->added);
	pthread_mutex_destroy(&ahead->lock);
	free(ahead);
}

void ahead_write(struct ahead *ahead, int fd, uint64_t offset, uint64_t size)
{
	struct piece piece = { .offset = offset, .size = size };

	piece.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (piece.fd < 0)
		return;
	pthread_mutex_lock(&ahead->lock);
	if (ahead->count < AHEAD_MAX) {
		ahead->pieces[(ahead->first + ahead->count++) % AHEAD_MAX] = piece;
		piece.fd = -1;
		pthread_cond_signal(&ahead->added);
	}
	pthread_mutex_unlock(&ahead->lock);
	close_fdp(&piece.fd);
}
