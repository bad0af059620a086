// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/capture/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/xattr.h>
#include <xxhash.h>

static uint64_t hash_of(const struct paths *p, int kind, const char *path)
{
	return XXH3_64bits_withSeed(path, strlen(path), p->seed + (uint64_t)kind);
}

static struct paths_slot *slot_of(const struct paths *p, int kind, const char *path, uint64_t hash)
{
	size_t i = hash & (p->room - 1);

	while (p->slots[i].path && (p->slots[i].hash != hash || p->slots[i].kind != kind ||
				    strcmp(p->slots[i].path, path)))
		i = (i + 1) & (p->room - 1);
	return &p->slots[i];
}

static int paths_grow_to(struct paths *p, size_t room)
{
	struct paths bigger = { .room = room, .seed = p->seed };

	/* The names are the job's: an unknown seed keeps it from choosing ones that collide. */
	if (!p->room && getrandom(&bigger.seed, sizeof(bigger.seed), 0) < 0)
		return -errno;
	bigger.slots = calloc(bigger.room, sizeof(*bigger.slots));
	if (!bigger.slots)
		return -ENOMEM;
	for (size_t i = 0; i < p->room; i++) {
		const struct paths_slot *old = &p->slots[i];

		if (old->path)
			*slot_of(&bigger, old->kind, old->path, old->hash) = *old;
	}
	bigger.count = p->count;
	free(p->slots);
	*p = bigger;
	return 0;
}

int paths_add(struct paths *p, int kind, const char *path, size_t value)
{
	struct paths_slot *slot;
	uint64_t hash;
	int r;

	if (4 * (p->count + 1) > 3 * p->room) {
		r = paths_grow_to(p, p->room ? 2 * p->room : 64);
		if (r < 0)
			return r;
	}
	hash = hash_of(p, kind, path);
	slot = slot_of(p, kind, path, hash);
	if (slot->path)
		return -EEXIST;
	*slot = (struct paths_slot){ .path = path, .hash = hash, .value = value, .kind = kind };
	p->count++;
	return 0;
}

bool paths_find(const struct paths *p, int kind, const char *path, size_t *ret_value)
{
	const struct paths_slot *slot;

	if (!p->room)
		return false;
	slot = slot_of(p, kind, path, hash_of(p, kind, path));
	if (!slot->path)
		return false;
	if (ret_value)
		*ret_value = slot->value;
	return true;
}

void paths_deinit(struct paths *p)
{
	free(p->slots);
	*p = (struct paths){ 0 };
}

int entries_add(struct entries *e, enum snapshot_kind kind, const char *path, const struct stat *st,
		struct entry **ret_entry)
{
	struct entry *entry;
	int r;

	if (e->count == CAPTURE_FILES_MAX)
		return -EFBIG;
	if (e->count == e->room) {
		size_t room = e->room ? 2 * e->room : 64;
		struct entry *more = realloc(e->v, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		e->v = more;
		e->room = room;
	}
	entry = &e->v[e->count];
	*entry = (struct entry){ .kind = kind, .path = strdup(path), .st = *st };
	if (!S_ISREG(st->st_mode))
		entry->st.st_size = 0;
	if (!entry->path)
		return -ENOMEM;
	r = paths_add(&e->index, (int)kind, entry->path, e->count);
	if (r < 0) {
		free(entry->path);
		return r;
	}
	e->count++;
	*ret_entry = entry;
	return 0;
}

int entries_reserve(struct entries *e, size_t count)
{
	size_t room = 64;

	if (count > CAPTURE_FILES_MAX)
		count = CAPTURE_FILES_MAX;
	if (count > e->room) {
		struct entry *more = realloc(e->v, count * sizeof(*more));

		if (!more)
			return -ENOMEM;
		e->v = more;
		e->room = count;
	}
	while (3 * room < 4 * (count + 1))
		room *= 2;
	return room > e->index.room ? paths_grow_to(&e->index, room) : 0;
}

void entries_touch(struct entries *e)
{
	memset(e->v + e->count, 0, (e->room - e->count) * sizeof(*e->v));
	for (size_t i = 0; i < e->index.room; i++)
		*(volatile int *)&e->index.slots[i].kind = e->index.slots[i].kind;
}

int entries_move(struct entries *e, struct entries *from)
{
	int r = entries_reserve(e, e->count + from->count);

	if (r == 0 && e->room < e->count + from->count)
		r = -EFBIG;
	for (size_t i = 0; r == 0 && i < from->count; i++) {
		struct entry *entry = &from->v[i];

		r = paths_add(&e->index, (int)entry->kind, entry->path, e->count);
		if (r < 0)
			break;
		e->v[e->count++] = *entry;
		*entry = (struct entry){ 0 };
	}
	entries_deinit(from);
	return r;
}

int entry_read_link(struct entry *e, int dirfd, const char *name)
{
	char target[PATH_MAX];
	ssize_t n = readlinkat(dirfd, name, target, sizeof(target));

	if (n < 0)
		return -errno;
	if (n == sizeof(target))
		return -ENAMETOOLONG;
	e->link_target = strndup(target, (size_t)n);
	return e->link_target ? 0 : -ENOMEM;
}

/*
 * Of overlayfs' own attributes only those travel that say what the job did to its tree. Others
 * (origin, uuid, nlink) are handles into this host's lower layer, meaningless elsewhere.
 */
static bool xattr_travels(const struct entry *e, const char *name)
{
	if (e->kind == SNAPSHOT_UPPER &&
	    (!strcmp(name, "trusted.overlay.opaque") || !strcmp(name, "trusted.overlay.redirect")))
		return true;
	return !strncmp(name, "user.", 5) || !strcmp(name, "security.capability") ||
	       !strcmp(name, "system.posix_acl_access") ||
	       !strcmp(name, "system.posix_acl_default");
}

/* Where attributes are read: of an open file, or by name. */
struct xattr_source {
	int fd; /* -1: path */
	const char *path;
	bool follow;
};

static ssize_t list_xattrs(const struct xattr_source *s, char *names, size_t size)
{
	if (s->fd >= 0)
		return flistxattr(s->fd, names, size);
	return s->follow ? listxattr(s->path, names, size) : llistxattr(s->path, names, size);
}

static ssize_t get_xattr(const struct xattr_source *s, const char *name, void *value, size_t size)
{
	if (s->fd >= 0)
		return fgetxattr(s->fd, name, value, size);
	return s->follow ? getxattr(s->path, name, value, size) :
			   lgetxattr(s->path, name, value, size);
}

static int append_xattr(struct entry *e, const struct xattr_source *s, const char *name)
{
	size_t name_size = strlen(name) + 1;
	uint8_t value[1 << 16], *more;
	ssize_t n = get_xattr(s, name, value, sizeof(value));

	/* Removed since the list was read, or a filesystem that lists what it does not give. */
	if (n < 0)
		return errno == ENODATA || errno == EOPNOTSUPP ? 0 : -errno;
	more = realloc(e->xattrs, e->xattrs_size + name_size + 4 + (size_t)n);
	if (!more)
		return -ENOMEM;
	e->xattrs = more;
	more += e->xattrs_size;
	memcpy(more, name, name_size);
	more += name_size;
	for (int i = 0; i < 4; i++)
		*more++ = (uint8_t)((size_t)n >> (8 * i));
	memcpy(more, value, (size_t)n);
	e->xattrs_size += name_size + 4 + (size_t)n;
	return 0;
}

static int read_xattrs(struct entry *e, const struct xattr_source *s)
{
	char names[1 << 16];
	ssize_t n = list_xattrs(s, names, sizeof(names));

	if (n < 0)
		return errno == EOPNOTSUPP || errno == ENOSYS ? 0 : -errno;
	for (const char *p = names; p < names + n; p += strlen(p) + 1) {
		int r;

		if (!strcmp(p, "trusted.overlay.metacopy"))
			return -EOPNOTSUPP;
		if (!xattr_travels(e, p))
			continue;
		r = append_xattr(e, s, p);
		if (r < 0)
			return r;
	}
	return 0;
}

int entry_read_xattrs_of(struct entry *e, int fd)
{
	return read_xattrs(e, &(struct xattr_source){ .fd = fd });
}

int entry_read_xattrs(struct entry *e, int dirfd, const char *name)
{
	char path[PATH_MAX];
	/* Without a name: the O_PATH descriptor itself, behind its magic link. */
	struct xattr_source s = { .fd = -1, .path = path, .follow = !*name };
	int size;

	/* There is no fgetxattr for O_PATH or names below a folder; /proc leads to it. */
	if (dirfd == AT_FDCWD)
		size = snprintf(path, sizeof(path), "%s", name);
	else
		size = snprintf(path, sizeof(path), "/proc/self/fd/%d%s%s", dirfd, *name ? "/" : "",
				name);
	if (size >= (int)sizeof(path))
		return -ENAMETOOLONG;
	return read_xattrs(e, &s);
}

void entries_deinit(struct entries *e)
{
	for (size_t i = 0; i < e->count; i++) {
		free(e->v[i].path);
		free(e->v[i].link_target);
		free(e->v[i].xattrs);
	}
	free(e->v);
	paths_deinit(&e->index);
	*e = (struct entries){ 0 };
}

static bool same_time(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

const struct past_file *past_find(const struct past *p, enum snapshot_kind kind, const char *path,
				  const struct stat *st)
{
	const struct past_file *f;
	size_t i;

	if (!paths_find(&p->index, (int)kind, path, &i))
		return NULL;
	f = &p->v[i];
	if (f->unsettled || f->dev != st->st_dev || f->ino != st->st_ino ||
	    f->size != st->st_size || !same_time(&f->mtime, &st->st_mtim) ||
	    !same_time(&f->ctime, &st->st_ctim))
		return NULL;
	return f;
}

int past_learn(struct past *p, const struct entries *e)
{
	struct past fresh = { .v = calloc(e->count ? e->count : 1, sizeof(*fresh.v)) };

	if (!fresh.v)
		return -ENOMEM;
	for (size_t i = 0; i < e->count; i++) {
		const struct entry *from = &e->v[i];
		struct past_file *to = &fresh.v[fresh.count];

		if (from->kind == SNAPSHOT_IMAGE || !S_ISREG(from->st.st_mode))
			continue;
		*to = (struct past_file){ .path = strdup(from->path),
					  .kind = from->kind,
					  .unsettled = from->unsettled,
					  .dev = from->st.st_dev,
					  .ino = from->st.st_ino,
					  .size = from->st.st_size,
					  .mtime = from->st.st_mtim,
					  .ctime = from->st.st_ctim };
		if (from->xattrs_size && to->path) {
			to->xattrs = malloc(from->xattrs_size);
			to->xattrs_size = from->xattrs_size;
		}
		if (to->xattrs)
			memcpy(to->xattrs, from->xattrs, from->xattrs_size);
		if (!to->path || (to->xattrs_size && !to->xattrs) ||
		    paths_add(&fresh.index, (int)to->kind, to->path, fresh.count)) {
			free(to->path);
			free(to->xattrs);
			past_deinit(&fresh);
			return -ENOMEM;
		}
		fresh.count++;
	}
	past_deinit(p);
	*p = fresh;
	return 0;
}

void past_deinit(struct past *p)
{
	for (size_t i = 0; i < p->count; i++) {
		free(p->v[i].path);
		free(p->v[i].xattrs);
	}
	free(p->v);
	paths_deinit(&p->index);
	*p = (struct past){ 0 };
}

/*
 * Times come from a clock that ticks every few milliseconds. A file changed in the tick of the
 * freeze can change again after it and show the same ctime; such a file is not believed next time.
 */
bool capture_is_recent(const struct timespec *ctime, const struct timespec *freeze)
{
	int64_t age_ms = (int64_t)(freeze->tv_sec - ctime->tv_sec) * 1000 +
			 (freeze->tv_nsec - ctime->tv_nsec) / 1000000;

	return age_ms < CAPTURE_CTIME_SLACK_MS;
}
