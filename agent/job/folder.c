// SPDX-License-Identifier: LGPL-2.1-or-later
/* The folders of this host: their records, their leases, and how they are taken up again. */
#define LOG_TAG "folder"
#include "agent/job/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "agent/util/io.h"
#include "agent/util/log.h"

enum { RECORD_MAX = 64 << 10, LOOK_S = 1 };

/* ---- one ---- */

static char *record_path(const struct folder *f)
{
	char *path;

	if (asprintf(&path, "%s/folders/%s.json", f->job->agent->config.state_dir, f->job->hex) < 0)
		return NULL;
	return path;
}

/* The register knows all; this says which folders are here before it answers. */
int folder_save(struct folder *f)
{
	_cleanup_free_ char *path = record_path(f);
	char hex[2 * sizeof(struct job_value) + 1];
	struct json_object *json;
	struct job_value value;
	const char *text;
	int r;

	if (!path)
		return -ENOMEM;
	job_get_value(f->job, &value);
	hex_encode(&value, sizeof(value), hex);
	json = json_object_new_object();
	json_object_object_add(json, "value", json_object_new_string(hex));
	text = json_object_to_json_string(json);
	r = write_file_atomic_at(AT_FDCWD, path, text, strlen(text), 0600);
	json_object_put(json);
	return r;
}

static void folder_destroy(struct folder *f)
{
	upload_abort(f);
	for (size_t i = 0; i < FOLDER_KEEP_MAX; i++)
		folder_version_deinit(&f->versions[i]);
	packer_destroy(f->job->packer);
	close_fdp(&f->job->channel);
	job_unref(f->job);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

void folder_unref(struct agent *a, struct folder *f)
{
	bool last;

	if (!f)
		return;
	pthread_mutex_lock(&a->folders_lock);
	last = --f->refs == 0;
	pthread_mutex_unlock(&a->folders_lock);
	if (last)
		folder_destroy(f);
}

static int folder_new(struct agent *a, const struct job_value *value, const struct job_seal *seal,
		      struct folder **ret_folder)
{
	struct packer_budget budget = { .index_bytes = FOLDER_INDEX_BYTES,
					.extents_max = FOLDER_EXTENTS_MAX,
					.cpu_percent = a->config.pack_cpu_percent };
	struct folder *f = calloc(1, sizeof(*f));
	struct secret_key key;
	int r;

	if (!f)
		return -ENOMEM;
	memcpy(key.b, seal->key, sizeof(key.b));
	f->job = job_new(a, &value->job, value, &key);
	r = f->job ? packer_create(&value->job, &key, &f->job->packer) : -ENOMEM;
	key_wipe(&key, sizeof(key));
	if (r == 0)
		r = packer_set_budget(f->job->packer, &budget);
	if (r < 0) {
		if (f->job)
			packer_destroy(f->job->packer);
		job_unref(f->job);
		free(f);
		return r;
	}
	memcpy(f->job->spec.name, seal->name, sizeof(f->job->spec.name));
	memcpy(f->job->spec.user, seal->user, sizeof(f->job->spec.user));
	f->job->spec.uid = seal->uid;
	f->job->spec.gid = seal->gid;
	f->job->spec.every_s = seal->every_s;
	f->keep = job_seal_keep(seal);
	if (f->keep < 1 || f->keep > FOLDER_KEEP_MAX)
		f->keep = FOLDER_KEEP;
	f->upload.spool = -1;
	f->stored = -1;
	f->refs = 1;
	pthread_mutex_init(&f->lock, NULL);
	*ret_folder = f;
	return 0;
}

/* ---- the table ---- */

/* folders_lock is held. */
static int put(struct agent *a, struct folder *f)
{
	int at = -1;

	for (int i = FOLDERS_MAX - 1; i >= 0; i--) {
		if (!a->folders[i])
			at = i;
		else if (!memcmp(&a->folders[i]->job->id, &f->job->id, sizeof(f->job->id)))
			return -EEXIST;
	}
	if (at < 0)
		return -ENOSPC;
	a->folders[at] = f;
	f->refs++;
	return 0;
}

int folder_add(struct agent *a, const struct job_value *value, const struct job_seal *seal,
	       struct folder **ret_folder)
{
	struct folder *f;
	int r = folder_new(a, value, seal, &f);

	if (r < 0)
		return r;
	pthread_mutex_lock(&a->folders_lock);
	r = put(a, f);
	pthread_mutex_unlock(&a->folders_lock);
	if (r < 0)
		folder_destroy(f);
	else
		*ret_folder = f;
	return r;
}

/* folders_lock is held. Is one more within its user's limits? */
static int may_create(const struct agent *a, const struct job_seal *seal)
{
	uint64_t span_ns = (uint64_t)FOLDER_CREATES_S * 1000000000, now_ns = now_boot_ns();
	unsigned int own = 0, all_lately = 0, own_lately = 0;

	for (int i = 0; i < FOLDERS_MAX; i++) {
		const struct folder *f = a->folders[i];

		if (!f || f->job->spec.uid != seal->uid)
			continue;
		if (!strcmp(f->job->spec.name, seal->name))
			return -EEXIST;
		own++;
	}
	for (int i = 0; i < FOLDER_CREATES_MAX; i++) {
		const struct folder_create *c = &a->folder_creates[i];
		bool lately = c->boot_ns && now_ns - c->boot_ns < span_ns;

		all_lately += lately;
		own_lately += lately && c->uid == seal->uid;
	}
	if (own >= FOLDER_USER_MAX)
		return -EDQUOT;
	return all_lately >= FOLDER_CREATES_MAX || own_lately >= FOLDER_CREATES_USER ? -EBUSY : 0;
}

int folder_reserve(struct agent *a, const struct job_value *value, const struct job_seal *seal,
		   struct folder **ret_folder)
{
	struct folder *f;
	int r = folder_new(a, value, seal, &f);

	if (r < 0)
		return r;
	pthread_mutex_lock(&f->lock);
	pthread_mutex_lock(&a->folders_lock);
	r = may_create(a, seal);
	if (r == 0)
		r = put(a, f);
	if (r == 0) {
		a->folder_creates[a->folder_create_next] =
			(struct folder_create){ .uid = seal->uid, .boot_ns = now_boot_ns() };
		a->folder_create_next = (a->folder_create_next + 1) % FOLDER_CREATES_MAX;
	}
	pthread_mutex_unlock(&a->folders_lock);
	if (r == 0) {
		*ret_folder = f;
		return 0;
	}
	pthread_mutex_unlock(&f->lock);
	folder_destroy(f);
	return r;
}

void folder_created(struct folder *f, const struct job_value *value)
{
	pthread_mutex_lock(&f->job->lock);
	f->job->value = *value;
	pthread_mutex_unlock(&f->job->lock);
}

struct folder *folder_find(struct agent *a, const struct job_id *id)
{
	struct folder *found = NULL;

	pthread_mutex_lock(&a->folders_lock);
	for (int i = 0; i < FOLDERS_MAX && !found; i++)
		if (a->folders[i] && !memcmp(&a->folders[i]->job->id, id, sizeof(*id)))
			found = a->folders[i];
	if (found)
		found->refs++;
	pthread_mutex_unlock(&a->folders_lock);
	return found;
}

size_t folders_all(struct agent *a, struct folder *ret_folders[FOLDERS_MAX])
{
	size_t count = 0;

	pthread_mutex_lock(&a->folders_lock);
	for (int i = 0; i < FOLDERS_MAX; i++) {
		if (!a->folders[i])
			continue;
		a->folders[i]->refs++;
		ret_folders[count++] = a->folders[i];
	}
	pthread_mutex_unlock(&a->folders_lock);
	return count;
}

void folder_leave(struct folder *f)
{
	_cleanup_free_ char *path = record_path(f);
	struct agent *a = f->job->agent;

	upload_abort(f);
	f->ready = false;
	f->gone = true;
	if (f->job->channel >= 0)
		job_drop(f->job);
	if (path && unlink(path) < 0 && errno != ENOENT)
		log_errno(-errno, "%s", path);
	pthread_mutex_lock(&a->folders_lock);
	for (int i = 0; i < FOLDERS_MAX; i++) {
		if (a->folders[i] != f)
			continue;
		a->folders[i] = NULL;
		f->refs--; /* the caller has one of its own */
	}
	pthread_mutex_unlock(&a->folders_lock);
}

/* ---- taken up again ---- */

/* 0: it is ours and its lease is held. */
static int ask_register(struct folder *f)
{
	struct job *job = f->job;
	struct ov_msg msg = { .op = OV_JOB_GET, .u.job = { .job = job->id } };
	const struct job_value *v = &msg.u.value;
	int r;

	if (job->channel < 0)
		job->channel = ov_open_channel(job->agent->main_channel);
	if (job->channel < 0)
		return job->channel;
	r = job_register_call(job, &msg);
	if (r < 0)
		return r; /* -ENOENT is no verdict either: a host that has just started knows nobody */
	if (!job_value_sane(v) || memcmp(&v->job, &job->id, sizeof(job->id)) != 0)
		return -EBADMSG;
	if (v->state != JOB_STATE_HELD || !node_id_equal(&v->owner, &job->agent->self)) {
		job_say(job, "this host has that folder no longer: it was deleted, or given away");
		f->killed = v->state == JOB_STATE_KILLED;
		folder_leave(f);
		return -ESTALE;
	}
	pthread_mutex_lock(&job->lock);
	job->value = *v;
	pthread_mutex_unlock(&job->lock);
	return job_hold(job, 0);
}

/* The newest, however long that takes: a list without it would have it dropped by the next RETAIN. */
static int learn_versions(struct folder *f)
{
	struct job *job = f->job;
	struct folder_version versions[FOLDER_KEEP_MAX] = { 0 };
	const struct ckpt_ref *ref = &job->value.history[0];
	struct manifest *m;
	size_t count = 0;
	int r = 0;

	if (job->value.history_count > 0) {
		r = job_open_manifest(job->agent, job->channel, &job->id, &job->key, ref, &m);
		if (r == 0) {
			r = folder_versions_read(m, ref, versions, &count);
			manifest_destroy(m);
		}
	}
	if (r < 0) {
		job_say(job, "its newest version cannot be read now: %s", strerror(-r));
		return r;
	}
	pthread_mutex_lock(&job->lock);
	for (size_t i = 0; i < FOLDER_KEEP_MAX; i++)
		folder_version_deinit(&f->versions[i]);
	memcpy(f->versions, versions, count * sizeof(versions[0]));
	f->version_count = count;
	f->stored = count ? -1 : 0;
	pthread_mutex_unlock(&job->lock);
	return 0;
}

int folder_resume(struct folder *f)
{
	int r;

	if (f->gone)
		return -ESTALE;
	if (f->ready)
		return 0;
	r = ask_register(f);
	if (r == 0)
		r = learn_versions(f);
	if (r < 0)
		return r;
	f->ready = true;
	job_say(f->job, "%s", "");
	log_info("folder %s: here, %zu versions", f->job->spec.name, f->version_count);
	r = folder_save(f);
	return r < 0 ? log_errno(r, "folder %s: local record", f->job->spec.name), 0 : 0;
}

static bool is_idle(const struct folder *f)
{
	return f->upload.number &&
	       now_boot_ns() > f->upload.used_boot_ns + (uint64_t)FOLDER_IDLE_S * 1000000000;
}

static bool resume_all(struct agent *a)
{
	struct folder *folders[FOLDERS_MAX];
	size_t count = folders_all(a, folders);
	bool done = true;

	for (size_t i = 0; i < count; i++) {
		pthread_mutex_lock(&folders[i]->lock);
		if (is_idle(folders[i]))
			upload_abort(folders[i]);
		done &= folder_resume(folders[i]) == 0 || folders[i]->gone;
		pthread_mutex_unlock(&folders[i]->lock);
		folder_unref(a, folders[i]);
	}
	return done;
}

static void learn_all(struct agent *a)
{
	struct folder *folders[FOLDERS_MAX];
	size_t count = folders_all(a, folders);

	for (size_t i = 0; i < count; i++) {
		folder_learn_stored(folders[i]);
		folder_unref(a, folders[i]);
	}
}

static void *folders_thread(void *agent)
{
	struct agent *a = agent;
	bool go_on = true;

	while (go_on) {
		bool done;

		pthread_mutex_lock(&a->folders_lock);
		a->folders_wanted = false;
		pthread_mutex_unlock(&a->folders_lock);
		done = a->stopping || resume_all(a);
		if (done && !a->stopping)
			learn_all(a);
		pthread_mutex_lock(&a->folders_lock);
		go_on = !a->stopping && (!done || a->folders_wanted);
		if (!go_on)
			a->folders_at_work = false;
		pthread_mutex_unlock(&a->folders_lock);
		if (go_on)
			sleep(LOOK_S);
	}
	return NULL;
}

void folders_wake(struct agent *a)
{
	pthread_t thread;
	bool start;

	pthread_mutex_lock(&a->folders_lock);
	start = !a->folders_at_work;
	a->folders_wanted = a->folders_at_work = true;
	pthread_mutex_unlock(&a->folders_lock);
	if (!start)
		return;
	if (pthread_create(&thread, NULL, folders_thread, a) == 0) {
		pthread_detach(thread);
		return;
	}
	pthread_mutex_lock(&a->folders_lock);
	a->folders_at_work = false;
	pthread_mutex_unlock(&a->folders_lock);
}

int folder_granted(struct agent *a, const struct job_value *value, const struct job_seal *seal)
{
	struct folder *f = folder_find(a, &value->job);
	int r = f ? 0 : folder_add(a, value, seal, &f);

	/* Its record may never have been written: the register's word is enough. */
	if (r < 0)
		return r;
	f->ready = false;
	folder_unref(a, f);
	folders_wake(a);
	return 0;
}

void folder_lost(struct agent *a, const struct job_id *id)
{
	struct folder *f = folder_find(a, id);

	if (!f)
		return;
	f->ready = false; /* the register is asked before anything else is done */
	folder_unref(a, f);
	folders_wake(a);
}

static int start_one(struct agent *a, const char *name)
{
	_cleanup_free_ char *path = NULL, *text = NULL;
	struct json_object *json, *hex;
	struct job_value value;
	struct job_seal seal;
	struct folder *f;
	int r;

	if (asprintf(&path, "%s/folders/%s", a->config.state_dir, name) < 0)
		return -ENOMEM;
	r = read_file_at(AT_FDCWD, path, RECORD_MAX, &text, NULL);
	if (r < 0)
		return r;
	json = json_tokener_parse(text);
	r = json_object_object_get_ex(json, "value", &hex) ?
		    job_value_from_hex(json_object_get_string(hex), &value) :
		    -EBADMSG;
	json_object_put(json);
	if (r == 0)
		r = job_unseal_value(a, &value, &seal);
	if (r < 0)
		return r;
	r = seal.flags & JOB_SEAL_FOLDER ? folder_add(a, &value, &seal, &f) : -EBADMSG;
	key_wipe(&seal, sizeof(seal));
	if (r == 0)
		folder_unref(a, f);
	return r;
}

int folders_start(struct agent *a)
{
	_cleanup_free_ char *folder = NULL;
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;

	if (!a->cluster)
		return 0;
	if (asprintf(&folder, "%s/folders", a->config.state_dir) < 0)
		return -ENOMEM;
	dir = opendir(folder);
	if (!dir)
		return errno == ENOENT ? 0 : -errno;
	while ((entry = readdir(dir))) {
		const char *dot = strrchr(entry->d_name, '.');
		int r = dot && !strcmp(dot, ".json") ? start_one(a, entry->d_name) : 0;

		if (r < 0)
			log_errno(r, "folder %s cannot be taken up", entry->d_name);
	}
	folders_wake(a);
	return 0;
}

void folders_tick(struct agent *a)
{
	struct folder *folders[FOLDERS_MAX];
	size_t count = folders_all(a, folders);
	bool idle = false;

	for (size_t i = 0; i < count; i++) {
		struct folder *f = folders[i];

		/* To free a spool of gigabytes takes time that the event loop does not have. */
		idle |= is_idle(f);
		folder_unref(a, f);
	}
	if (idle)
		folders_wake(a);
}
