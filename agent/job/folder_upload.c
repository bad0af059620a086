// SPDX-License-Identifier: LGPL-2.1-or-later
/* One new version: entries come in one by one, then it is committed, or it never was. */
#define LOG_TAG "folder"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/statvfs.h>

#include "agent/job/folder.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { COMMIT_MS = 20000 };

/* Its numbers are read without the folder's lock. */
static void clear_upload(struct folder_upload *u)
{
	close_fdp(&u->spool);
	u->spool_size = u->spool_max = 0;
	u->entries = u->names = 0;
	u->bytes = 0;
	u->copy[0] = '\0';
	u->knows_last = false;
	atomic_store(&u->number, 0);
}

void upload_abort(struct folder *f)
{
	if (!f->upload.number)
		return;
	packer_abort(f->job->packer);
	clear_upload(&f->upload);
}

/* One of those that may be under way at a time; it is given back by clear_upload(). */
static int reserve_upload(struct agent *a, struct folder *f)
{
	unsigned int all = 0, user = 0;
	int r = -EBUSY;

	pthread_mutex_lock(&a->folders_lock);
	for (int i = 0; i < FOLDERS_MAX; i++) {
		const struct folder *other = a->folders[i];

		if (!other || other == f || !atomic_load(&other->upload.number))
			continue;
		all++;
		user += other->job->spec.uid == f->job->spec.uid;
	}
	if (all < FOLDER_UPLOADS_MAX && user < FOLDER_UPLOADS_USER) {
		atomic_store(&f->upload.used_boot_ns, now_boot_ns());
		atomic_store(&f->upload.number, now_boot_ns());
		r = 0;
	}
	pthread_mutex_unlock(&a->folders_lock);
	return r;
}

static uint64_t spool_room(const struct agent *a)
{
	struct statvfs fs;
	uint64_t room;

	if (statvfs(a->config.state_dir, &fs) < 0)
		return 0;
	room = (uint64_t)fs.f_bavail * fs.f_frsize;
	room = room > a->config.reserve_bytes ? room - a->config.reserve_bytes : 0;
	return room / (2 * FOLDER_UPLOADS_MAX);
}

/*
 * Before a byte is sent: a majority answers, and says the same as we know. Else a commit whose answer
 * was lost has happened all the same, or the folder is ours no longer: then all is asked again.
 */
int upload_check(struct folder *f)
{
	struct job *job = f->job;
	struct ov_msg msg = { .op = OV_JOB_GET, .u.job = { .job = job->id } };
	const struct job_value *v = &msg.u.value;
	int r = job_register_call(job, &msg);

	if (r < 0)
		return r;
	if (memcmp(&v->job, &job->id, sizeof(job->id)) == 0 && v->state == JOB_STATE_HELD &&
	    fence_token_compare(&v->token, &job->value.token) == 0 &&
	    v->history[0].seq == job->value.history[0].seq &&
	    !memcmp(&v->history[0].manifest, &job->value.history[0].manifest,
		    sizeof(v->history[0].manifest)))
		return 0;
	f->ready = false;
	f->packer_seq = 0;
	return folder_resume(f);
}

/* The newest version is the one that the copy began with, or was made of it. */
static bool follows(const struct folder *f, uint64_t base_seq, const char *copy)
{
	const struct folder_version *newest = &f->versions[0];

	return f->version_count == 0 || newest->ref.seq == base_seq ||
	       (*copy && !strcmp(newest->copy, copy));
}

int upload_begin(struct folder *f, uint64_t base_seq, const char *copy)
{
	struct folder_upload *u = &f->upload;
	struct job *job = f->job;
	int r = job->agent->config.folder_bytes ? upload_check(f) : -EOPNOTSUPP;

	if (r < 0)
		return r;
	if (!follows(f, base_seq, copy))
		return -EREMCHG;
	upload_abort(f); /* whoever began it has gone */
	r = reserve_upload(job->agent, f);
	if (r < 0)
		return r;
	u->spool = open(job->agent->config.state_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	r = u->spool < 0 ? -errno : 0;
	job_forget_weak(job);
	job->few_holders = UINT32_MAX;
	if (r == 0)
		r = packer_begin(job->packer, &job->value.token, job->value.history[0].seq + 1,
				 job_store_object, job);
	if (r < 0) {
		clear_upload(u);
		return r;
	}
	u->spool_max = spool_room(job->agent);
	u->knows_last = base_seq && base_seq == f->packer_seq;
	strcpy(u->copy, copy);
	return 0;
}

int upload_write(struct folder *f, uint64_t offset, const void *bytes, size_t size)
{
	struct folder_upload *u = &f->upload;
	int r;

	if (offset == 0 && u->spool_size > 0) { /* the one before was given up */
		if (ftruncate(u->spool, 0) < 0)
			return -errno;
		u->spool_size = 0;
	}
	if (offset != u->spool_size)
		return -EINVAL;
	if (size > u->spool_max - u->spool_size)
		return -ENOSPC;
	r = pwrite_full(u->spool, bytes, size, (off_t)offset);
	if (r == 0)
		u->spool_size += size;
	return r;
}

int upload_add(struct folder *f, struct pack_input *in, bool fresh)
{
	struct folder_upload *u = &f->upload;
	size_t names = strlen(in->path) + (in->link_target ? strlen(in->link_target) : 0) + 64;
	int r;

	/* The packer keeps all of them in memory. */
	if (u->entries >= FOLDER_FILES_MAX || names > FOLDER_NAMES_MAX - u->names)
		return -E2BIG;
	if ((uint64_t)in->st.st_size > f->job->agent->config.folder_bytes - u->bytes)
		return -EDQUOT;
	in->kind = FILE_UPPER;
	in->st.st_uid = f->job->spec.uid;
	in->st.st_gid = f->job->spec.gid;
	in->st.st_nlink = 1;
	in->fd = -1;
	if (S_ISREG(in->st.st_mode) && !fresh && !u->knows_last)
		return -ENOENT;
	if (S_ISREG(in->st.st_mode) && fresh) {
		if ((uint64_t)in->st.st_size != u->spool_size)
			return -EINVAL;
		in->fd = u->spool;
		if (lseek(u->spool, 0, SEEK_SET) < 0)
			return -errno;
	}
	r = packer_add(f->job->packer, in);
	if (fresh && r == 0) {
		r = ftruncate(u->spool, 0) < 0 ? -errno : 0;
		u->spool_size = 0;
	}
	if (r < 0)
		return r;
	u->entries++;
	u->names += names;
	u->bytes += (uint64_t)in->st.st_size;
	return 0;
}

/* ---- commit ---- */

/* How many of the versions that there are stay beside a new one. */
static size_t older_kept(const struct folder *f, const struct folder_version **ret_older)
{
	size_t first = f->version_count > 0 && f->versions[0].sync ? 1 : 0;
	size_t count = f->version_count - first;

	*ret_older = f->versions + first;
	return count < f->keep - 1 ? count : f->keep - 1;
}

static int write_manifest(struct folder *f, const struct folder_version *v,
			  struct ckpt_ref *ret_ref)
{
	struct job *job = f->job;
	const struct folder_version *older;
	size_t count = older_kept(f, &older);
	struct manifest_head *head = calloc(1, sizeof(*head));
	struct json_object *meta;
	int r;

	if (!head)
		return -ENOMEM;
	meta = folder_versions_encode(v, older, count);
	head->job = job->id;
	head->token = job->value.token;
	head->seq = job->value.history[0].seq + 1;
	head->wall_ms = v->ref.wall_ms;
	head->host = job->agent->self;
	strcpy(head->engine, "folder");
	head->meta_json = json_object_to_json_string(meta);
	head->spec_json = "{}";
	r = packer_finish(job->packer, head, cluster_sign_seed(job->agent->cluster),
			  cluster_card(job->agent->cluster), ret_ref);
	json_object_put(meta);
	free(head);
	return r;
}

static int advance(struct folder *f, const struct ckpt_ref *ref)
{
	struct job_value value = f->job->value;

	memmove(&value.history[1], &value.history[0],
		(OV_HISTORY_MAX - 1) * sizeof(value.history[0]));
	value.history[0] = *ref;
	if (value.history_count < OV_HISTORY_MAX)
		value.history_count++;
	return job_cas(f->job, &value, COMMIT_MS);
}

static void push_version(struct folder *f, const struct folder_version *v)
{
	const struct folder_version *older;
	size_t count = older_kept(f, &older), first = (size_t)(older - f->versions);

	pthread_mutex_lock(&f->job->lock);
	for (size_t i = 0; i < f->version_count; i++)
		if (i < first || i >= first + count)
			folder_version_deinit(&f->versions[i]);
	memmove(&f->versions[1], older, count * sizeof(*older));
	f->versions[0] = *v;
	f->version_count = count + 1;
	f->stored = -1;
	for (size_t i = f->version_count; i < FOLDER_KEEP_MAX; i++)
		f->versions[i] = (struct folder_version){ 0 };
	pthread_mutex_unlock(&f->job->lock);
}

/* ---- garbage ---- */

static int read_objects(struct job *job, int channel, const struct ckpt_ref *ref,
			struct pack_object **ret_objects, size_t *ret_count)
{
	struct pack_object *objects;
	struct manifest *m;
	size_t count;
	int r = job_open_manifest(job->agent, channel, &job->id, &job->key, ref, &m);

	if (r < 0)
		return r;
	count = manifest_object_count(m);
	objects = calloc(count + 1, sizeof(*objects));
	for (size_t i = 0; objects && i < count; i++) {
		struct node_id holders[OV_HOLDERS_MAX];
		uint32_t holder_count;

		manifest_object(m, i, &objects[i].hash, &objects[i].size, &holder_count, holders);
	}
	manifest_destroy(m);
	if (!objects)
		return -ENOMEM;
	objects[count] = (struct pack_object){ ref->manifest, ref->manifest_size };
	*ret_objects = objects;
	*ret_count = count + 1;
	return 0;
}

static int learn_objects(struct folder *f, struct folder_version *v)
{
	return v->objects ? 0 :
			    read_objects(f->job, f->job->channel, &v->ref, &v->objects,
					 &v->object_count);
}

static int compare_objects(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct object_hash));
}

_Static_assert(offsetof(struct pack_object, hash) == 0, "objects are sorted by it");

/* Each object once; their bytes are noted. */
static int union_of(struct folder *f, struct object_hash **ret_hashes, size_t *ret_count)
{
	_cleanup_free_ struct pack_object *all = NULL;
	struct object_hash *hashes;
	size_t count = 0, kept = 0;
	int64_t stored = 0;

	for (size_t i = 0; i < f->version_count; i++) {
		if (!f->versions[i].objects)
			return -ENODATA;
		count += f->versions[i].object_count;
	}
	all = calloc(count + 1, sizeof(*all));
	hashes = calloc(count + 1, sizeof(*hashes));
	if (!all || !hashes) {
		free(hashes);
		return -ENOMEM;
	}
	count = 0;
	for (size_t i = 0; i < f->version_count; i++) {
		const struct folder_version *v = &f->versions[i];

		memcpy(all + count, v->objects, v->object_count * sizeof(*all));
		count += v->object_count;
	}
	qsort(all, count, sizeof(*all), compare_objects);
	for (size_t i = 0; i < count; i++) {
		if (i > 0 && compare_objects(&all[i], &all[i - 1]) == 0)
			continue;
		hashes[kept++] = all[i].hash;
		stored += all[i].size;
	}
	pthread_mutex_lock(&f->job->lock);
	f->stored = stored;
	pthread_mutex_unlock(&f->job->lock);
	*ret_hashes = hashes;
	*ret_count = kept;
	return 0;
}

/* A version of which not all is known; if there is none, the sum is made. */
static bool next_unknown(struct folder *f, struct ckpt_ref *ret_ref)
{
	_cleanup_free_ struct object_hash *hashes = NULL;
	bool found = false;
	size_t count;

	pthread_mutex_lock(&f->lock);
	if (f->ready && f->stored == -1 && !f->job->agent->stopping) {
		for (size_t i = 0; i < f->version_count && !found; i++) {
			*ret_ref = f->versions[i].ref;
			found = !f->versions[i].objects;
		}
		if (!found)
			(void)!union_of(f, &hashes, &count);
	}
	pthread_mutex_unlock(&f->lock);
	return found;
}

static void give_objects(struct folder *f, const struct ckpt_ref *ref,
			 struct pack_object *objects_take, size_t count)
{
	pthread_mutex_lock(&f->lock);
	for (size_t i = 0; i < f->version_count && objects_take; i++) {
		struct folder_version *v = &f->versions[i];

		if (v->objects || memcmp(&v->ref.manifest, &ref->manifest, sizeof(ref->manifest)))
			continue;
		v->objects = take_ptr(objects_take);
		v->object_count = count;
	}
	pthread_mutex_unlock(&f->lock);
	free(objects_take);
}

static void give_up(struct folder *f)
{
	pthread_mutex_lock(&f->lock);
	pthread_mutex_lock(&f->job->lock);
	if (f->stored < 0)
		f->stored = -2;
	pthread_mutex_unlock(&f->job->lock);
	pthread_mutex_unlock(&f->lock);
}

/* Nobody who writes waits for holders that do not answer; they are asked once. */
void folder_learn_stored(struct folder *f)
{
	_cleanup_close_ int channel = -1;
	struct pack_object *objects;
	struct ckpt_ref ref;
	size_t count;

	while (next_unknown(f, &ref)) {
		if (channel < 0)
			channel = ov_open_channel(f->job->agent->main_channel);
		if (channel < 0 || read_objects(f->job, channel, &ref, &objects, &count) < 0) {
			give_up(f);
			break;
		}
		give_objects(f, &ref, objects, count);
	}
}

/* Holders keep what the kept versions need. Nothing is said while one of the lists is unknown. */
static void retain(struct folder *f)
{
	struct job *job = f->job;
	struct ov_msg msg = { .op = OV_OBJECT_RETAIN,
			      .u.retain = { .job = job->id,
					    .token = job->value.token,
					    .upto_seq = job->value.history[0].seq } };
	_cleanup_free_ struct object_hash *hashes = NULL;
	_cleanup_close_ int fd = memfd_new("retain");
	size_t count = 0;
	int r = fd < 0 ? fd : 0;

	for (size_t i = 0; r == 0 && i < f->version_count; i++)
		r = learn_objects(f, &f->versions[i]);
	if (r == 0)
		r = union_of(f, &hashes, &count);
	if (r == 0)
		r = write_full(fd, hashes, count * sizeof(*hashes));
	if (r == 0)
		r = memfd_seal(fd);
	msg.u.retain.count = (uint32_t)count;
	if (r == 0)
		r = job_object_call(job, &msg, fd, JOB_CALL_MS);
	if (r < 0)
		log_debug("folder %s: retain: %s", job->spec.name, strerror(-r));
}

int upload_commit(struct folder *f, struct folder_version *version,
		  struct packer_counts *ret_counts)
{
	struct job *job = f->job;
	struct folder_version v = *version;
	int r;

	strcpy(v.copy, f->upload.copy);
	r = write_manifest(f, &v, &v.ref);
	if (r < 0) {
		upload_abort(f);
		return r;
	}
	v.ref.wall_ms = version->ref.wall_ms;
	f->packer_seq = 0; /* until it is committed, "as before" means another version */
	clear_upload(&f->upload);
	r = job_enough_holders(job, &v.ref);
	if (r == 0)
		r = advance(f, &v.ref);
	if (r < 0)
		return r;
	f->packer_seq = v.ref.seq;
	packer_counts(job->packer, ret_counts);
	v.sent = ret_counts->sent_bytes;
	if (packer_sized_objects(job->packer, &v.objects, &v.object_count) < 0)
		v.objects = NULL, v.object_count = 0;
	push_version(f, &v);
	r = folder_save(f);
	if (r < 0)
		log_errno(r, "folder %s: local record", job->spec.name);
	retain(f);
	*version = v;
	version->objects = NULL;
	return 0;
}
