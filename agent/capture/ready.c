// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What a pause finds prepared. The kernel's part of opening a path below /proc or a state folder,
 * and of the first touch of a page, costs more than all the looks at a job's few files.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"

static int open_uppers(struct ready *ready, const char *state_dir, const struct mounts *layers)
{
	ready->uppers = malloc((layers->count + 1) * sizeof(*ready->uppers));
	if (!ready->uppers)
		return -ENOMEM;
	for (size_t i = 0; i < layers->count; i++) {
		int fd = walk_open_upper(state_dir, &layers->v[i]);

		if (fd < 0 && fd != -ENOENT)
			return fd;
		ready->uppers[ready->upper_count++] = fd;
	}
	return 0;
}

int ready_make(struct ready *ready, const char *state_dir, const struct mounts *layers,
	       pid_t main_pid, pid_t init_pid)
{
	int r;

	*ready = (struct ready){ .children = -1, .shm = walk_open_shm(main_pid), .made = true };
	r = open_uppers(ready, state_dir, layers);
	if (r == 0)
		r = walk_read_carried(state_dir, &ready->carried, &ready->carried_size);
	if (r == 0) {
		ready->stage = mmap(NULL, READY_STAGE, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		if (ready->stage == MAP_FAILED) {
			ready->stage = NULL;
			r = -errno;
		}
	}
	if (r < 0) {
		ready_drop(ready);
		return r;
	}
	/* Without it the look in the pause opens it. */
	if (init_pid > 0)
		ready->children = proc_open_children(init_pid);
	return 0;
}

void ready_expect(struct ready *ready, uint64_t large_bytes)
{
	/* They may have grown until the pause. */
	uint64_t room = large_bytes + large_bytes / 8 + READY_STAGE;
	uint8_t *stage;

	if (!large_bytes)
		return;
	if (room > READY_LARGE)
		room = READY_LARGE;
	stage = mmap(NULL, READY_STAGE + room, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (stage == MAP_FAILED)
		return;
	munmap(ready->stage, READY_STAGE);
	ready->stage = stage;
	ready->large_room = room;
}

static void close_done(struct ready *ready)
{
	for (size_t i = 0; i < ready->done_count; i++)
		close(ready->done[i]);
	ready->done_count = 0;
}

void ready_drop(struct ready *ready)
{
	if (!ready->made)
		return;
	for (size_t i = 0; i < ready->upper_count; i++)
		close_fdp(&ready->uppers[i]);
	close_done(ready);
	close_fdp(&ready->children);
	if (ready->shm >= 0)
		close(ready->shm);
	free(ready->uppers);
	free(ready->carried);
	if (ready->stage)
		munmap(ready->stage, READY_STAGE + ready->large_room);
	*ready = (struct ready){ .children = -1, .shm = -1 };
}

void ready_close(struct ready *ready, int fd)
{
	if (fd >= 0 && ready && ready->done_count < ARRAY_SIZE(ready->done))
		ready->done[ready->done_count++] = fd;
	else if (fd >= 0)
		close(fd);
}

/* With holes it is better off in a file. */
bool ready_is_fit(const struct stat *st)
{
	return st->st_size <= READY_LARGE && (uint64_t)st->st_blocks * 512 >= (uint64_t)st->st_size;
}

int ready_stage(struct ready *ready, struct entry *e, int fd)
{
	size_t size = (size_t)e->st.st_size, at = ready->staged;
	bool large = size > READY_STAGE_FILE || size > READY_STAGE - ready->staged;
	int r;

	if (!ready_is_fit(&e->st) || (large && size > ready->large_room - ready->large_staged))
		return 0;
	if (large)
		at = READY_STAGE + ready->large_staged;
	r = pread_full(fd, ready->stage + at, size, 0);
	if (r < 0)
		return r;
	e->content = CONTENT_STAGED;
	e->spool_index = at;
	*(large ? &ready->large_staged : &ready->staged) += size;
	return 1;
}

static int flush_one(const struct ready *ready, struct entry *e, int spool_files, size_t index)
{
	_cleanup_close_ int out = -1;
	char name[32];
	int r;

	snprintf(name, sizeof(name), "%zu", index);
	out = openat(spool_files, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (out < 0)
		return -errno;
	r = pwrite_full(out, ready->stage + e->spool_index, (size_t)e->st.st_size, 0);
	if (r < 0)
		return r;
	e->content = CONTENT_SPOOL;
	e->spool_index = index;
	return 0;
}

int ready_flush(struct ready *ready, struct entries *e, int spool_files, size_t *copies,
		char *reason)
{
	close_done(ready);
	for (size_t i = 0; i < e->count; i++) {
		int r;

		if (e->v[i].content != CONTENT_STAGED)
			continue;
		r = flush_one(ready, &e->v[i], spool_files, *copies);
		if (r < 0)
			return capture_fail(reason, r,
					    "the copy of the job's file %s (%lld bytes) into the "
					    "spool folder failed",
					    e->v[i].path, (long long)e->v[i].st.st_size);
		(*copies)++;
	}
	return 0;
}
