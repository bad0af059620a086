// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/store/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/util/cleanup.h"
#include "overlay/store/ahead.h"

enum { NAME_SIZE = 8 + 1, AHEAD_BYTES = 256 << 10 };

struct segment {
	uint32_t id;
	uint32_t arriving; /* extents reserved; the file stays open */
	int fd;		   /* -1: closed */
	bool failed;	   /* a sync did, or somebody has changed the file */
	bool named;	   /* its name is on the disk */
	uint64_t end_bytes;
	uint64_t live_bytes; /* of extents reserved, kept or abandoned */
	uint64_t dead_bytes; /* of extents abandoned, or that could not be punched */
};

struct segments {
	const struct store_io *io;
	int fd;
	struct ahead *ahead;
	bool cannot_punch;
	pthread_mutex_t lock; /* all below */
	struct segment *rows; /* by id */
	uint32_t count, room;
	uint32_t next_id;
	uint32_t active; /* id; 0: none */
	uint64_t dead_bytes;
};

static void name_of(uint32_t id, char name[static NAME_SIZE])
{
	snprintf(name, NAME_SIZE, "%08x", id);
}

/* Held: lock. */
static struct segment *find(struct segments *segments, uint32_t id)
{
	uint32_t low = 0, high = segments->count;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (segments->rows[mid].id == id)
			return &segments->rows[mid];
		if (segments->rows[mid].id < id)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

/* Held: lock, unless nobody else knows the table yet. */
static int add_row(struct segments *segments, uint32_t id, struct segment **ret_row)
{
	if (segments->count == SEGMENTS_MAX)
		return -ENOSPC;
	if (segments->count == segments->room) {
		uint32_t room = segments->room ? segments->room * 2 : 64;
		struct segment *more = realloc(segments->rows, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		segments->rows = more;
		segments->room = room;
	}
	*ret_row = &segments->rows[segments->count++];
	**ret_row = (struct segment){ .id = id, .fd = -1 };
	return 0;
}

/* Held: lock. */
static void remove_row(struct segments *segments, struct segment *row)
{
	uint32_t at = (uint32_t)(row - segments->rows);

	segments->dead_bytes -= row->dead_bytes;
	close_fdp(&row->fd);
	memmove(row, row + 1, (segments->count - at - 1) * sizeof(*row));
	segments->count--;
}

/* --- open -------------------------------------------------------------------------------- */

static int compare_ids(const void *a, const void *b)
{
	const struct segment *x = a, *y = b;

	return x->id < y->id ? -1 : x->id > y->id;
}

static bool read_name(const char *name, uint32_t *ret_id)
{
	char again[NAME_SIZE];
	unsigned int id;

	if (strlen(name) != NAME_SIZE - 1 || sscanf(name, "%8x", &id) != 1 || id == 0)
		return false;
	name_of(id, again);
	*ret_id = id;
	return strcmp(name, again) == 0;
}

static int list_files(struct segments *segments)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;
	int fd = openat(segments->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	while ((entry = readdir(dir))) {
		struct segment *row;
		struct stat st;
		uint32_t id;
		int r;

		if (!read_name(entry->d_name, &id))
			continue;
		if (fstatat(segments->fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return -errno;
		if (!S_ISREG(st.st_mode))
			return -EIO;
		r = add_row(segments, id, &row);
		if (r < 0)
			return r;
		row->named = true;
		row->end_bytes = (uint64_t)st.st_size;
		if (id >= segments->next_id)
			segments->next_id = id + 1;
	}
	if (segments->count > 0)
		qsort(segments->rows, segments->count, sizeof(*segments->rows), compare_ids);
	return 0;
}

/* Asks the file system itself, not its name. */
static int probe_punch(struct segments *segments)
{
	static const char name[] = "probe", block[SEGMENT_ALIGN];
	const struct store_io *io = segments->io;
	int fd = io->openat(io->ctx, segments->fd, name,
			    O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	int r;

	if (fd < 0)
		return fd;
	r = store_io_write(io, fd, block, sizeof(block), 0);
	if (r == 0)
		r = io->punch(io->ctx, fd, 0, sizeof(block));
	close(fd);
	(void)io->unlinkat(io->ctx, segments->fd, name, 0);
	if (r == -EOPNOTSUPP || r == -ENOSYS) {
		segments->cannot_punch = true;
		return 0;
	}
	/* A full disk is no reason not to serve what is there. */
	return r == -ENOSPC || r == -EDQUOT ? 0 : r;
}

int segments_open(const struct store_io *io, int state_fd, struct segments **ret_segments)
{
	struct segments *segments = calloc(1, sizeof(*segments));
	int r;

	if (!segments)
		return -ENOMEM;
	segments->io = io;
	segments->fd = -1;
	segments->next_id = 1;
	pthread_mutex_init(&segments->lock, NULL);
	r = io->mkdirat(io->ctx, state_fd, "segments", 0700);
	if (r == 0)
		r = io->fsync(io->ctx, state_fd);
	if (r == -EEXIST)
		r = 0;
	if (r == 0) {
		segments->fd = io->openat(io->ctx, state_fd, "segments",
					  O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
		r = segments->fd < 0 ? segments->fd : 0;
	}
	if (r == 0)
		r = ahead_create(&segments->ahead);
	if (r == 0)
		r = probe_punch(segments);
	if (r == 0)
		r = list_files(segments);
	if (r < 0) {
		segments_close(segments);
		return r;
	}
	*ret_segments = segments;
	return 0;
}

void segments_close(struct segments *segments)
{
	if (!segments)
		return;
	ahead_destroy(segments->ahead);
	for (uint32_t i = 0; i < segments->count; i++)
		close_fdp(&segments->rows[i].fd);
	close_fdp(&segments->fd);
	pthread_mutex_destroy(&segments->lock);
	free(segments->rows);
	free(segments);
}

int segments_fd(const struct segments *segments)
{
	return segments->fd;
}

/* --- settle ------------------------------------------------------------------------------ */

/* Gives back [from, to) unless it is a hole already. */
static int clear_gap(struct segments *segments, int fd, uint64_t from, uint64_t to)
{
	off_t data;

	if (from >= to)
		return 0;
	data = lseek(fd, (off_t)from, SEEK_DATA);
	if (data < 0 || (uint64_t)data >= to || segments->cannot_punch)
		return 0;
	return segments->io->punch(segments->io->ctx, fd, from, to - from);
}

/* One file, of which count extents are needed. */
static int settle_file(struct segments *segments, struct segment *row, const struct extent *extents,
		       uint32_t count, bool *ret_hollow)
{
	const struct store_io *io = segments->io;
	char name[NAME_SIZE];
	_cleanup_close_ int fd = -1;
	uint64_t at = 0;
	int r = 0;

	name_of(row->id, name);
	fd = io->openat(io->ctx, segments->fd, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	for (uint32_t i = 0; i < count && r == 0; i++) {
		const struct extent *extent = &extents[i];

		ret_hollow[i] = extent->offset < at || extent->offset > row->end_bytes ||
				extent->size > row->end_bytes - extent->offset;
		if (ret_hollow[i])
			continue;
		r = clear_gap(segments, fd, at, extent->offset);
		at = extent->offset + extent_room(extent->size);
		row->live_bytes += extent_room(extent->size);
	}
	/* An object at the end of a file from an older store is not padded: room, not data. */
	if (r == 0 && at < row->end_bytes)
		r = io->ftruncate(io->ctx, fd, at);
	row->end_bytes = at;
	return r;
}

static int unlink_file(struct segments *segments, uint32_t id)
{
	char name[NAME_SIZE];
	int r;

	name_of(id, name);
	r = segments->io->unlinkat(segments->io->ctx, segments->fd, name, 0);
	return r == -ENOENT ? 0 : r;
}

int segments_settle(struct segments *segments, const struct extent *extents, uint32_t count,
		    bool *ret_hollow)
{
	uint32_t first = 0;

	memset(ret_hollow, 1, count * sizeof(*ret_hollow));
	/* No id is given twice, not even that of a file that was lost. */
	if (count > 0 && extents[count - 1].segment >= segments->next_id)
		segments->next_id = extents[count - 1].segment + 1;
	for (uint32_t i = 0; i < segments->count;) {
		struct segment *row = &segments->rows[i];
		uint32_t end;
		int r;

		while (first < count && extents[first].segment < row->id)
			first++;
		for (end = first; end < count && extents[end].segment == row->id;)
			end++;
		r = end == first ? 0 :
				   settle_file(segments, row, &extents[first], end - first,
					       &ret_hollow[first]);
		if (r == 0 && row->live_bytes > 0) {
			i++;
			continue;
		}
		if (r == 0)
			r = unlink_file(segments, row->id);
		if (r < 0)
			return r;
		remove_row(segments, row);
	}
	if (segments->count > 0)
		segments->active = segments->rows[segments->count - 1].id;
	return 0;
}

/* --- objects that arrive ----------------------------------------------------------------- */

/* Held: lock. The new file's name is made durable by the first sync. */
static int start_segment(struct segments *segments, struct segment **ret_row)
{
	const struct store_io *io = segments->io;
	struct segment *row, *old = find(segments, segments->active);
	char name[NAME_SIZE];
	int fd, r;

	if (segments->next_id == UINT32_MAX)
		return -ENOSPC;
	name_of(segments->next_id, name);
	fd = io->openat(io->ctx, segments->fd, name,
			O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return fd;
	if (old && old->arriving == 0) {
		close_fdp(&old->fd);
		old->fd = -1;
	}
	r = add_row(segments, segments->next_id, &row);
	if (r < 0) {
		close(fd);
		(void)io->unlinkat(io->ctx, segments->fd, name, 0);
		return r;
	}
	row->fd = fd;
	segments->active = segments->next_id++;
	*ret_row = row;
	return 0;
}

/* Held: lock. */
static int open_row(struct segments *segments, struct segment *row)
{
	char name[NAME_SIZE];

	if (row->fd >= 0)
		return 0;
	name_of(row->id, name);
	row->fd = segments->io->openat(segments->io->ctx, segments->fd, name,
				       O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0);
	return row->fd < 0 ? row->fd : 0;
}

int segments_reserve(struct segments *segments, uint32_t size, struct extent *ret_extent)
{
	struct segment *row;
	int r = 0;

	pthread_mutex_lock(&segments->lock);
	row = find(segments, segments->active);
	if (!row || row->failed || segments->cannot_punch ||
	    row->end_bytes + extent_room(size) > SEGMENT_BYTES)
		r = start_segment(segments, &row);
	if (r == 0)
		r = open_row(segments, row);
	if (r == 0) {
		*ret_extent = (struct extent){ .segment = row->id,
					       .size = size,
					       .offset = row->end_bytes };
		row->end_bytes += extent_room(size);
		row->live_bytes += extent_room(size);
		row->arriving++;
	}
	pthread_mutex_unlock(&segments->lock);
	return r;
}

/* The file of an extent that arrives stays open, so its fd can be used without the lock. */
static int fd_of(struct segments *segments, uint32_t id)
{
	struct segment *row;
	int fd;

	pthread_mutex_lock(&segments->lock);
	row = find(segments, id);
	fd = !row ? -ENOENT : row->failed ? -EIO : row->fd;
	pthread_mutex_unlock(&segments->lock);
	return fd;
}

int segments_write(struct segments *segments, const struct extent *extent, uint32_t at,
		   const void *bytes, size_t size)
{
	uint64_t from = at / AHEAD_BYTES * AHEAD_BYTES,
		 to = (at + (uint64_t)size) / AHEAD_BYTES * AHEAD_BYTES;
	int fd = fd_of(segments, extent->segment), r;

	if (fd < 0)
		return fd;
	r = store_io_write(segments->io, fd, bytes, size, extent->offset + at);
	if (r == 0 && to > from)
		ahead_write(segments->ahead, fd, extent->offset + from, to - from);
	return r;
}

static int sync_name(struct segments *segments, uint32_t id)
{
	struct segment *row;
	bool named;
	int r = 0;

	pthread_mutex_lock(&segments->lock);
	row = find(segments, id);
	named = row && row->named;
	pthread_mutex_unlock(&segments->lock);
	if (!named)
		r = segments->io->fsync(segments->io->ctx, segments->fd);
	pthread_mutex_lock(&segments->lock);
	row = find(segments, id);
	if (row && r == 0)
		row->named = true;
	if (row && r < 0)
		row->failed = true;
	pthread_mutex_unlock(&segments->lock);
	return r;
}

static int sync_one(struct segments *segments, uint32_t id)
{
	int fd = fd_of(segments, id), r;
	struct segment *row;

	if (fd < 0)
		return fd;
	r = segments->io->fdatasync(segments->io->ctx, fd);
	if (r == 0)
		return sync_name(segments, id);
	pthread_mutex_lock(&segments->lock);
	row = find(segments, id);
	if (row)
		row->failed = true;
	pthread_mutex_unlock(&segments->lock);
	return r;
}

void segments_sync(struct segments *segments, const struct extent *extents, uint32_t count,
		   int *status)
{
	for (uint32_t i = 0; i < count; i++) {
		uint32_t same = 0;

		while (same < i && extents[same].segment != extents[i].segment)
			same++;
		status[i] = same < i ? status[same] : sync_one(segments, extents[i].segment);
	}
}

/* Held: lock. */
static void arrived(struct segments *segments, struct segment *row)
{
	row->arriving--;
	if (row->arriving == 0 && row->id != segments->active) {
		close_fdp(&row->fd);
		row->fd = -1;
	}
}

void segments_keep(struct segments *segments, const struct extent *extent)
{
	struct segment *row;

	pthread_mutex_lock(&segments->lock);
	row = find(segments, extent->segment);
	if (row)
		arrived(segments, row);
	pthread_mutex_unlock(&segments->lock);
}

void segments_abandon(struct segments *segments, const struct extent *extent)
{
	struct segment *row;

	pthread_mutex_lock(&segments->lock);
	row = find(segments, extent->segment);
	if (row) {
		row->dead_bytes += extent_room(extent->size);
		segments->dead_bytes += extent_room(extent->size);
		arrived(segments, row);
	}
	pthread_mutex_unlock(&segments->lock);
}

static int punch(struct segments *segments, const struct extent *extent)
{
	char name[NAME_SIZE];
	int fd, r;

	name_of(extent->segment, name);
	fd = segments->io->openat(segments->io->ctx, segments->fd, name,
				  O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	r = segments->io->punch(segments->io->ctx, fd, extent->offset, extent_room(extent->size));
	close(fd);
	return r;
}

/* Held: lock. Nothing of the file is needed, and nothing is appended to it. */
static bool is_empty(const struct segments *segments, const struct segment *row)
{
	return row->live_bytes == 0 && row->arriving == 0 &&
	       (row->id != segments->active || row->failed || segments->cannot_punch);
}

void segments_release(struct segments *segments, const struct extent *extent, bool is_kept)
{
	uint64_t room = extent_room(extent->size);
	struct segment *row;
	bool empty = false;
	int r;

	pthread_mutex_lock(&segments->lock);
	row = find(segments, extent->segment);
	if (row && !is_kept)
		arrived(segments, row);
	if (row) {
		row->live_bytes -= room;
		empty = is_empty(segments, row);
	}
	if (empty) {
		room += row->dead_bytes;
		remove_row(segments, row);
	}
	pthread_mutex_unlock(&segments->lock);
	if (!row)
		return;
	r = empty ? unlink_file(segments, extent->segment) : punch(segments, extent);
	if (r < 0 && r != -ENOENT) {
		/* The next open tries again. */
		pthread_mutex_lock(&segments->lock);
		segments->dead_bytes += room;
		row = find(segments, extent->segment);
		if (row)
			row->dead_bytes += room;
		pthread_mutex_unlock(&segments->lock);
	}
}

/* --- reading ----------------------------------------------------------------------------- */

int segments_open_extent(struct segments *segments, const struct extent *extent, int *ret_fd)
{
	char name[NAME_SIZE];
	int fd;

	name_of(extent->segment, name);
	fd = segments->io->openat(segments->io->ctx, segments->fd, name,
				  O_RDONLY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	*ret_fd = fd;
	return 0;
}

void segments_distrust(struct segments *segments, const struct extent *extent)
{
	struct segment *row;

	pthread_mutex_lock(&segments->lock);
	row = find(segments, extent->segment);
	if (row)
		row->failed = true;
	pthread_mutex_unlock(&segments->lock);
}

bool segments_has(struct segments *segments, const struct extent *extent)
{
	char name[NAME_SIZE];
	struct stat st;

	name_of(extent->segment, name);
	return fstatat(segments->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
	       (uint64_t)st.st_size >= extent->offset + extent->size;
}

uint64_t segments_dead_bytes(struct segments *segments)
{
	uint64_t bytes;

	pthread_mutex_lock(&segments->lock);
	bytes = segments->dead_bytes;
	pthread_mutex_unlock(&segments->lock);
	return bytes;
}

uint32_t segments_count(struct segments *segments)
{
	uint32_t count;

	pthread_mutex_lock(&segments->lock);
	count = segments->count;
	pthread_mutex_unlock(&segments->lock);
	return count;
}
