// SPDX-License-Identifier: LGPL-2.1-or-later
#define LOG_TAG "api"
#include "agent/job/readings.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "agent/export/image.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { SPOOL_SHARE = 2 * READINGS_ALIVE_MAX };

/* ---- one ---- */

/* Counted until nothing of it is left: memory and disk of all of them are bounded together. */
static bool count_one(struct agent *a)
{
	bool ok;

	pthread_mutex_lock(&a->readings_lock);
	ok = a->readings_alive < READINGS_ALIVE_MAX;
	a->readings_alive += ok;
	pthread_mutex_unlock(&a->readings_lock);
	return ok;
}

static void uncount_one(struct agent *a)
{
	pthread_mutex_lock(&a->readings_lock);
	a->readings_alive--;
	pthread_mutex_unlock(&a->readings_lock);
}

static void reading_destroy(struct reading *s)
{
	struct agent *a = s->agent;

	manifest_reader_destroy(s->reader);
	manifest_destroy(s->manifest);
	json_object_put(s->mounts);
	job_fetch_deinit(&s->fetch);
	pthread_mutex_destroy(&s->lock);
	free(s);
	uncount_one(a);
}

/* Without a spool it works too, slower. */
static int open_spool(const struct agent *a, uint64_t *ret_max)
{
	int fd = open(a->config.state_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	struct statvfs fs;

	*ret_max = 0;
	if (fd >= 0 && fstatvfs(fd, &fs) == 0)
		*ret_max = (uint64_t)fs.f_bavail * fs.f_frsize / SPOOL_SHARE;
	return fd;
}

static int reading_create(struct target *t, const struct ckpt_ref *ref,
			  struct reading **ret_reading)
{
	struct reading *s;
	struct secret_key key;
	uint64_t spool_max;
	int r;

	if (!count_one(t->agent))
		return -EBUSY;
	s = calloc(1, sizeof(*s));
	if (!s) {
		uncount_one(t->agent);
		return -ENOMEM;
	}
	pthread_mutex_init(&s->lock, NULL);
	s->agent = t->agent;
	s->job = t->value.job;
	s->hash = ref->manifest;
	s->uid = t->seal.uid;
	job_fetch_init(&s->fetch, t->agent->main_channel, &t->value.job);
	memcpy(key.b, t->seal.key, sizeof(key.b));
	r = job_open_manifest(t->agent, t->channel, &s->job, &key, ref, &s->manifest);
	if (r == 0) {
		int spool = open_spool(t->agent, &spool_max);

		r = manifest_reader_create(s->manifest, &key, job_fetch_object, &s->fetch, spool,
					   spool_max, &s->reader);
		if (r < 0)
			close_fdp(&spool);
	}
	key_wipe(&key, sizeof(key));
	if (r < 0) {
		reading_destroy(s);
		return r;
	}
	s->mounts = files_mounts_of(s->manifest);
	*ret_reading = s;
	return 0;
}

/* ---- the table ---- */

static struct reading *find_locked(struct agent *a, const struct job_id *job,
				   const struct object_hash *hash)
{
	for (int i = 0; i < READINGS_MAX; i++) {
		struct reading *s = a->readings[i];

		if (s && !memcmp(&s->job, job, sizeof(*job)) &&
		    !memcmp(&s->hash, hash, sizeof(*hash))) {
			s->refs++;
			return s;
		}
	}
	return NULL;
}

struct reading *reading_find(struct agent *a, const struct api_call *call, const struct job_id *job,
			     const struct object_hash *hash)
{
	struct reading *s;

	pthread_mutex_lock(&a->readings_lock);
	s = find_locked(a, job, hash);
	if (s && call->uid != 0 && call->uid != s->uid) {
		s->refs--; /* the table's own stays */
		s = NULL;
	}
	pthread_mutex_unlock(&a->readings_lock);
	return s;
}

void reading_unref(struct agent *a, struct reading *s)
{
	bool last;

	if (!s)
		return;
	pthread_mutex_lock(&a->readings_lock);
	s->used_boot_ns = now_boot_ns();
	last = --s->refs == 0;
	pthread_mutex_unlock(&a->readings_lock);
	if (last)
		reading_destroy(s);
}

/* The row to use: a free one, or that of the one which was not used for longest. */
static int row_locked(const struct agent *a)
{
	int row = 0;

	for (int i = 0; i < READINGS_MAX; i++) {
		if (!a->readings[i])
			return i;
		if (a->readings[i]->used_boot_ns < a->readings[row]->used_boot_ns)
			row = i;
	}
	return row;
}

int reading_open(struct target *t, const struct object_hash *hash, struct reading **ret_reading)
{
	struct agent *a = t->agent;
	struct reading *fresh, *there, *old = NULL;
	const struct ckpt_ref *ref = NULL;
	int r;

	for (uint32_t i = 0; i < t->value.history_count && !ref; i++)
		if (!memcmp(&t->value.history[i].manifest, hash, sizeof(*hash)))
			ref = &t->value.history[i];
	for (size_t i = 0; i < t->version_count && !ref; i++)
		if (!memcmp(&t->versions[i].manifest, hash, sizeof(*hash)))
			ref = &t->versions[i];
	if (!ref)
		return -ENOENT;
	pthread_mutex_lock(&a->readings_lock);
	there = find_locked(a, &t->value.job, hash);
	pthread_mutex_unlock(&a->readings_lock);
	if (there) {
		*ret_reading = there;
		return 0;
	}
	r = reading_create(t, ref, &fresh);
	if (r < 0)
		return r;
	pthread_mutex_lock(&a->readings_lock);
	there = find_locked(a, &t->value.job, hash);
	if (!there) {
		int row = row_locked(a);

		old = a->readings[row];
		a->readings[row] = fresh;
		fresh->used_boot_ns = now_boot_ns();
		fresh->refs = 2; /* the table's and the caller's */
	}
	pthread_mutex_unlock(&a->readings_lock);
	reading_unref(a, old);
	if (there)
		reading_destroy(fresh);
	*ret_reading = there ? there : fresh;
	return 0;
}

static void *destroy_thread(void *reading)
{
	reading_destroy(reading);
	return NULL;
}

/* To free a spool of gigabytes takes time that the event loop does not have. */
static void destroy_aside(struct reading *s)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, destroy_thread, s) == 0)
		pthread_detach(thread);
	else
		reading_destroy(s);
}

void agent_close_readings(struct agent *a)
{
	const uint64_t idle_ns = (uint64_t)READING_IDLE_S * 1000000000, now = now_boot_ns();

	for (int i = 0; i < READINGS_MAX; i++) {
		struct reading *s;

		pthread_mutex_lock(&a->readings_lock);
		s = a->readings[i];
		if (s && (s->refs > 1 || now - s->used_boot_ns < idle_ns))
			s = NULL;
		if (s)
			a->readings[i] = NULL;
		pthread_mutex_unlock(&a->readings_lock);
		if (s) /* the table's was the last reference */
			destroy_aside(s);
	}
}

/* ---- reading ---- */

static bool is_named(const char *path, const char *prefix)
{
	return strncmp(path, prefix, strlen(prefix)) == 0;
}

static int read_whole(struct reading *s, size_t file, uint64_t size, uint8_t *bytes)
{
	int r = 0;

	for (uint64_t at = 0; at < size && r == 0; at += MANIFEST_READ_MAX) {
		uint64_t n = size - at < MANIFEST_READ_MAX ? size - at : MANIFEST_READ_MAX;

		r = manifest_read(s->reader, file, at, bytes + at, (size_t)n);
	}
	return r;
}

static int judge_image(struct reading *s, size_t index, const struct manifest_file *f)
{
	uint64_t size = (uint64_t)f->st.st_size;
	_cleanup_free_ uint8_t *bytes = NULL;
	bool core = is_named(f->path, "core-");
	int r;

	if (!core && !is_named(f->path, "mm-"))
		return 0;
	if (size > IMAGE_BYTES_MAX)
		return -EFBIG;
	bytes = malloc(size + 1);
	if (!bytes)
		return -ENOMEM;
	r = read_whole(s, index, size, bytes);
	if (r == 0)
		r = core ? image_core_is_of(bytes, size, s->uid) :
			   image_mm_is_dumpable(bytes, size);
	key_wipe(bytes, size);
	return r;
}

/*
 * The images tell all that a job's processes knew. One that ran a set-id program, or one that its
 * user may not read, may know what he must not; the kernel writes no core file of it for him
 * either. Then only root gets the images, all of them: they are not told apart by process.
 */
static int judge(struct reading *s)
{
	size_t count = manifest_file_count(s->manifest);
	int r = 0;

	for (size_t i = 0; i < count && r == 0; i++) {
		struct manifest_file f;

		manifest_file(s->manifest, i, &f);
		if (f.kind == FILE_IMAGE)
			r = judge_image(s, i, &f);
	}
	return r;
}

static int may_read_images(struct reading *s)
{
	int r;

	pthread_mutex_lock(&s->lock);
	if (!s->judged) {
		r = judge(s);
		s->verdict = r;
		/* A holder that is away now may be back for the next request. */
		s->judged = r == 0 || r == -EPERM || r == -EFBIG;
	}
	r = s->verdict == -EFBIG ? -EPERM : s->verdict;
	pthread_mutex_unlock(&s->lock);
	return r;
}

int reading_may_read(struct reading *s, const struct api_call *call, size_t file)
{
	struct manifest_file f;

	if (call->uid == 0)
		return 0;
	if (call->uid != s->uid)
		return -EPERM;
	manifest_file(s->manifest, file, &f);
	switch (f.kind) {
	case FILE_IMAGE:
		return may_read_images(s);
	case FILE_UPPER: /* others' files were carried along by root */
		return f.st.st_uid == s->uid || S_ISCHR(f.st.st_mode) ? 0 : -EPERM;
	case FILE_CLOSURE:
		return f.st.st_uid == s->uid || f.st.st_mode & S_IROTH || S_ISLNK(f.st.st_mode) ?
			       0 :
			       -EPERM;
	}
	return -EPERM;
}

int reading_read(struct reading *s, size_t file, uint64_t offset, void *ret_bytes, size_t size)
{
	int r;

	pthread_mutex_lock(&s->lock);
	r = manifest_read(s->reader, file, offset, ret_bytes, size);
	pthread_mutex_unlock(&s->lock);
	return r;
}
