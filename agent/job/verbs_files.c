// SPDX-License-Identifier: LGPL-2.1-or-later
/* logs, ls, cat: a job's files, live where it runs, else as of its last committed checkpoint. */
#define LOG_TAG "api"
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "agent/job/verbs.h"
#include "agent/restore/restore.h"
#include "agent/util/io.h"

bool files_absolute_path(struct json_object *mounts, const char *upper_path, char *out, size_t size)
{
	char *end;
	unsigned long number = strtoul(upper_path, &end, 10);
	const char *rest = *end == '/' ? end + 1 : "";

	if (number == 0)
		return snprintf(out, size, "/%s", rest) < (int)size;
	for (size_t i = 0; mounts && i < json_object_array_length(mounts); i++) {
		struct json_object *item = json_object_array_get_idx(mounts, i);

		if (json_object_is_type(item, json_type_string) &&
		    strtoul(json_object_get_string(item), &end, 10) == number && *end == ' ')
			return snprintf(out, size, "%s/%s", end + 1, rest) < (int)size;
	}
	return false;
}

struct json_object *files_mounts_of(const struct manifest *m)
{
	struct json_object *meta = json_tokener_parse(manifest_head(m)->meta_json), *mounts = NULL;

	if (json_object_object_get_ex(meta, "mounts", &mounts) &&
	    json_object_is_type(mounts, json_type_array))
		json_object_get(mounts);
	else
		mounts = NULL;
	json_object_put(meta);
	return mounts;
}

/* A job's layers may hold files that were carried along as root: they are not the user's to read. */
static bool is_of_user(const struct target *t, const struct manifest_file *file)
{
	return t->seal.uid == 0 || file->st.st_uid == t->seal.uid;
}

static int find_file(const struct target *t, const struct manifest *m, const char *path,
		     size_t *ret_index)
{
	struct json_object *mounts = files_mounts_of(m);
	char absolute[4096];
	int r = -ENOENT;

	for (size_t i = 0; i < manifest_file_count(m) && r < 0; i++) {
		struct manifest_file file;

		manifest_file(m, i, &file);
		if (file.kind == FILE_UPPER && S_ISREG(file.st.st_mode) && is_of_user(t, &file) &&
		    files_absolute_path(mounts, file.path, absolute, sizeof(absolute)) &&
		    !strcmp(absolute, path)) {
			*ret_index = i;
			r = 0;
		}
	}
	json_object_put(mounts);
	return r;
}

/* Big files must not fill the memory of a root daemon: a nameless one on the disk. */
static int make_temporary(const struct agent *a)
{
	int fd = open(a->config.state_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	return fd < 0 ? memfd_new("file") : fd;
}

/*
 * The user leads us to this path: a device is not so much as opened, and only a regular file that
 * he owns is handed out.
 */
static int stream_file(int path_fd, uid_t owner, uint64_t offset, struct api_reply *reply)
{
	char path[64];
	struct stat st;
	int fd;

	if (fstat(path_fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_uid != owner)
		return -EPERM;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", path_fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	reply->stream_fd = fd;
	reply->stream_offset = offset < (uint64_t)st.st_size ? offset : (uint64_t)st.st_size;
	reply->stream_size = (uint64_t)st.st_size - reply->stream_offset;
	return 0;
}

/* One file of the newest readable checkpoint, for the reply. */
static int stream_from_manifest(struct target *t, const char *path, uint64_t offset,
				struct api_reply *reply)
{
	struct fetch_ctx fetch;
	struct secret_key key;
	struct manifest *m;
	_cleanup_close_ int fd = -1;
	struct stat st;
	size_t index;
	int r = target_manifest(t, &m);

	if (r < 0)
		return r;
	memcpy(key.b, t->seal.key, sizeof(key.b));
	r = find_file(t, m, path, &index);
	if (r == 0)
		r = fd = make_temporary(t->agent);
	job_fetch_init(&fetch, t->agent->main_channel, &t->value.job);
	if (r >= 0)
		r = restore_file(m, &key, index, job_fetch_object, &fetch, fd);
	job_fetch_deinit(&fetch);
	key_wipe(&key, sizeof(key));
	manifest_destroy(m);
	if (r < 0)
		return r;
	if (fstat(fd, &st) < 0)
		return -errno;
	reply->stream_fd = take_fd(fd);
	reply->stream_offset = offset < (uint64_t)st.st_size ? offset : (uint64_t)st.st_size;
	reply->stream_size = (uint64_t)st.st_size - reply->stream_offset;
	return 0;
}

/* A file of a running job, resolved inside the job's root. */
static int stream_live(const struct target *t, const char *path, uint64_t offset,
		       struct api_reply *reply)
{
	struct open_how how = { .flags = O_PATH | O_CLOEXEC,
				.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
	_cleanup_close_ int root = -1, fd = -1;
	struct keeper_status status;
	struct keeper *k;
	char root_path[64];
	int r = keeper_attach(t->local->run_dir, &k);

	if (r < 0)
		return r;
	r = keeper_status(k, &status);
	keeper_detach(k);
	if (r < 0)
		return r;
	snprintf(root_path, sizeof(root_path), "/proc/%d/root",
		 status.init_pid ? status.init_pid : status.main_pid);
	root = open(root_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return -errno;
	fd = (int)syscall(SYS_openat2, root, path, &how, sizeof(how));
	return fd < 0 ? -errno : stream_file(fd, t->local->spec.uid, offset, reply);
}

/* After the results came home: the log lies in the submission directory. */
static int stream_home(struct target *t, const char *path, uint64_t offset, struct api_reply *reply)
{
	_cleanup_close_ int fd = open(path, O_PATH | O_CLOEXEC | O_NOFOLLOW);

	return fd < 0 ? -errno : stream_file(fd, t->seal.uid, offset, reply);
}

int verb_logs(void *agent, const struct api_call *call, struct api_reply *reply)
{
	const char *stream, *path_end, *standing;
	struct target t;
	char path[1200];
	int64_t offset;
	int r = target_find(agent, call, &t, reply);

	if (r < 0)
		return r;
	r = api_get_string(call, "stream", 16, &stream);
	if (r == 0)
		r = api_get_int(call, "offset", 0, INT64_MAX, 0, &offset);
	if (r < 0) {
		target_deinit(&t);
		return r;
	}
	path_end = stream && !strcmp(stream, "stderr") ? "err" : "out";
	snprintf(path, sizeof(path), "%s/%s.%s", !strcmp(t.seal.cwd, "/") ? "" : t.seal.cwd,
		 t.seal.name, path_end);
	standing = describe_standing(&t.value);
	reply->state = standing ? standing : "running";
	r = -ENOENT;
	if (t.local && t.local->phase != PHASE_RESTORING)
		r = stream_live(&t, path, (uint64_t)offset, reply);
	else if (t.value.state >= JOB_STATE_COLLECTED)
		r = stream_home(&t, path, (uint64_t)offset, reply);
	if (r < 0)
		r = stream_from_manifest(&t, path, (uint64_t)offset, reply);
	if (r == -ENOENT && t.value.history_count == 0 && !t.local)
		r = api_error(reply, r, "no-log-yet", t.seal.name, "try again after a checkpoint",
			      "it runs elsewhere and has no checkpoint yet");
	else if (r < 0)
		r = api_error(reply, r, "no-log", path, "decamp show tells where the job is",
			      "the log cannot be read: %s", strerror(-r));
	target_deinit(&t);
	return r;
}

static const char *kind_of(mode_t mode)
{
	return S_ISREG(mode)  ? "file" :
	       S_ISDIR(mode)  ? "dir" :
	       S_ISLNK(mode)  ? "link" :
	       S_ISCHR(mode)  ? "deleted" :
	       S_ISFIFO(mode) ? "fifo" :
				"other";
}

int verb_ls(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct json_object *files, *mounts;
	struct manifest *m;
	struct target t;
	char path[4096];
	int r = target_find(agent, call, &t, reply);

	if (r < 0)
		return r;
	r = target_manifest(&t, &m);
	if (r < 0) {
		r = api_error(reply, r, "no-checkpoint", t.seal.name, "decamp ckpt JOB takes one",
			      "it has no readable checkpoint: %s", strerror(-r));
		target_deinit(&t);
		return r;
	}
	files = json_object_new_array();
	mounts = files_mounts_of(m);
	for (size_t i = 0; i < manifest_file_count(m); i++) {
		struct json_object *json;
		struct manifest_file file;

		manifest_file(m, i, &file);
		if (file.kind != FILE_UPPER ||
		    (!is_of_user(&t, &file) && !S_ISCHR(file.st.st_mode)) ||
		    !files_absolute_path(mounts, file.path, path, sizeof(path)))
			continue;
		json = json_object_new_object();
		json_object_object_add(json, "path", json_object_new_string(path));
		json_object_object_add(json, "size", json_object_new_int64(file.st.st_size));
		json_object_object_add(json, "mode", json_object_new_int64(file.st.st_mode));
		json_object_object_add(json, "mtime_ms",
				       json_object_new_int64(file.st.st_mtim.tv_sec * 1000 +
							     file.st.st_mtim.tv_nsec / 1000000));
		json_object_object_add(json, "kind",
				       json_object_new_string(kind_of(file.st.st_mode)));
		json_object_array_add(files, json);
	}
	json_object_put(mounts);
	reply->json = json_object_new_object();
	json_object_object_add(reply->json, "seq",
			       json_object_new_int64((int64_t)manifest_head(m)->seq));
	json_object_object_add(reply->json, "files", files);
	manifest_destroy(m);
	target_deinit(&t);
	return 0;
}

int verb_cat(void *agent, const struct api_call *call, struct api_reply *reply)
{
	const char *path;
	char absolute[4096];
	struct target t;
	int r = target_find(agent, call, &t, reply);

	if (r < 0)
		return r;
	if (api_get_string(call, "path", 4000, &path) < 0 || !path) {
		target_deinit(&t);
		return api_error(reply, -EINVAL, "bad-request", "path", "decamp cat JOB:PATH",
				 "no path was given");
	}
	if (*path == '/')
		snprintf(absolute, sizeof(absolute), "%s", path);
	else
		snprintf(absolute, sizeof(absolute), "%s/%s",
			 !strcmp(t.seal.cwd, "/") ? "" : t.seal.cwd, path);
	r = stream_from_manifest(&t, absolute, 0, reply);
	if (r < 0)
		r = api_error(reply, r, "no-such-file", absolute, "decamp ls JOB lists its files",
			      "not in the job's last checkpoint: %s", strerror(-r));
	target_deinit(&t);
	return r;
}
