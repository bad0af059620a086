// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/store/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "agent/util/cleanup.h"

struct task_list {
	struct store_task *first, **tail;
};

struct store_worker {
	pthread_t thread;
	bool thread_runs;
	int wake_fd; /* counts finished tasks */
	sd_event_source *source;
	pthread_mutex_t lock; /* all below */
	pthread_cond_t submitted;
	struct task_list waiting, finished;
	unsigned int count;
	bool stop;
};

static void list_init(struct task_list *list)
{
	list->first = NULL;
	list->tail = &list->first;
}

static void list_add(struct task_list *list, struct store_task *task)
{
	task->next = NULL;
	*list->tail = task;
	list->tail = &task->next;
}

static struct store_task *list_take(struct task_list *list)
{
	struct store_task *task = list->first;

	if (!task)
		return NULL;
	list->first = task->next;
	if (!list->first)
		list->tail = &list->first;
	return task;
}

/* Held: lock. The first that waits, and those behind it that would be run with it. */
static uint32_t take_group(struct store_worker *worker, struct store_task **tasks)
{
	uint32_t count = 1;

	tasks[0] = list_take(&worker->waiting);
	if (!tasks[0]->run_group)
		return 1;
	while (count < WORKER_GROUP_MAX && worker->waiting.first &&
	       worker->waiting.first->run_group == tasks[0]->run_group)
		tasks[count++] = list_take(&worker->waiting);
	return count;
}

static void *worker_main(void *arg)
{
	struct store_worker *worker = arg;

	pthread_mutex_lock(&worker->lock);
	for (;;) {
		struct store_task *tasks[WORKER_GROUP_MAX];
		uint64_t one = 1;
		uint32_t count;

		while (!worker->stop && !worker->waiting.first)
			pthread_cond_wait(&worker->submitted, &worker->lock);
		if (worker->stop)
			break;
		count = take_group(worker, tasks);
		pthread_mutex_unlock(&worker->lock);
		if (tasks[0]->run_group)
			tasks[0]->run_group(tasks, count);
		else
			tasks[0]->run(tasks[0]);
		pthread_mutex_lock(&worker->lock);
		for (uint32_t i = 0; i < count; i++)
			list_add(&worker->finished, tasks[i]);
		/* Cannot fail: the counter is read long before it could overflow. */
		if (write(worker->wake_fd, &one, sizeof(one)) < 0)
			abort();
	}
	pthread_mutex_unlock(&worker->lock);
	return NULL;
}

static int on_finished(sd_event_source *source, int fd, uint32_t events, void *arg)
{
	struct store_worker *worker = arg;
	uint64_t count;

	(void)source;
	(void)events;
	if (read(fd, &count, sizeof(count)) < 0)
		return 0;
	for (;;) {
		struct store_task *task;

		pthread_mutex_lock(&worker->lock);
		task = list_take(&worker->finished);
		if (task)
			worker->count--;
		pthread_mutex_unlock(&worker->lock);
		if (!task)
			return 0;
		task->done(task);
	}
}

static int thread_start(struct store_worker *worker)
{
	sigset_t all, before;
	int r;

	/* Signals are the event loop's business. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&worker->thread, NULL, worker_main, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	worker->thread_runs = r == 0;
	return -r;
}

int store_worker_create(sd_event *event, struct store_worker **ret_worker)
{
	struct store_worker *worker = calloc(1, sizeof(*worker));
	int r;

	if (!worker)
		return -ENOMEM;
	pthread_mutex_init(&worker->lock, NULL);
	pthread_cond_init(&worker->submitted, NULL);
	list_init(&worker->waiting);
	list_init(&worker->finished);
	worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = worker->wake_fd < 0 ? -errno : 0;
	if (r == 0)
		r = sd_event_add_io(event, &worker->source, worker->wake_fd, EPOLLIN, on_finished,
				    worker);
	if (r >= 0)
		r = thread_start(worker);
	if (r < 0) {
		store_worker_destroy(worker);
		return r;
	}
	*ret_worker = worker;
	return 0;
}

void store_worker_destroy(struct store_worker *worker)
{
	struct store_task *task;

	if (!worker)
		return;
	if (worker->thread_runs) {
		pthread_mutex_lock(&worker->lock);
		worker->stop = true;
		pthread_cond_signal(&worker->submitted);
		pthread_mutex_unlock(&worker->lock);
		pthread_join(worker->thread, NULL);
	}
	while ((task = list_take(&worker->finished)))
		task->done(task);
	while ((task = list_take(&worker->waiting))) {
		task->cancelled = true;
		task->done(task);
	}
	sd_event_source_disable_unref(worker->source);
	close_fdp(&worker->wake_fd);
	pthread_cond_destroy(&worker->submitted);
	pthread_mutex_destroy(&worker->lock);
	free(worker);
}

int store_worker_submit(struct store_worker *worker, struct store_task *task)
{
	int r = 0;

	pthread_mutex_lock(&worker->lock);
	if (worker->count >= WORKER_TASKS_MAX) {
		r = -EAGAIN;
	} else {
		worker->count++;
		task->cancelled = false;
		list_add(&worker->waiting, task);
		pthread_cond_signal(&worker->submitted);
	}
	pthread_mutex_unlock(&worker->lock);
	return r;
}
