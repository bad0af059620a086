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

/* Mount number -> mount point, from the manifest's notes ("mounts": ["N path", ..]). */
static bool absolute_path(const struct manifest *m, const char *upper_path, char *out, size_t size)
{
	struct json_object *meta, *mounts, *item;
	char *end;
	unsigned long number = strtoul(upper_path, &end, 10);
	const char *point = NULL, *rest = *end == '/' ? end + 1 : "";
	bool ok = false;

	if (number == 0) {
		snprintf(out, size, "/%s", rest);
		return true;
	}
	meta = json_tokener_parse(manifest_head(m)->meta_json);
	if (json_object_object_get_ex(meta, "mounts", &mounts))
		for (size_t i = 0; i < json_object_array_length(mounts) && !ok; i++) {
			item = json_object_array_get_idx(mounts, i);
			if (strtoul(json_object_get_string(item), &end, 10) == number &&
			    *end == ' ') {
				point = end + 1;
				ok = snprintf(out, size, "%s/%s", point, rest) < (int)size;
			}
		}
	json_object_put(meta);
	return ok;
}

/* A job's layers may hold files that were carried along as root: they are not the user's to read. */
static bool is_of_user(const struct target *t, const struct manifest_file *file)
{
	return t->seal.uid == 0 || file->st.st_uid == t->seal.uid;
}

static int find_file(const struct target *t, const struct manifest *m, const char *path,
		     size_t *ret_index)
{
	char absolute[4096];

	for (size_t i = 0; i < manifest_file_count(m); i++) {
		struct manifest_file file;

		manifest_file(m, i, &file);
		if (file.kind == FILE_UPPER && S_ISREG(file.st.st_mode) && is_of_user(t, &file) &&
		    absolute_path(m, file.path, absolute, sizeof(absolute)) &&
		    !strcmp(absolute, path)) {
			*ret_index = i;
			return 0;
		}
	}
	return -ENOENT;
}

/* One file of the newest readable checkpoint into a memfd for the reply. */
static int stream_from_manifest(struct target *t, const char *path, uint64_t offset,
				struct api_reply *reply)
{
	struct fetch_ctx fetch = { .channel = t->channel, .id = t->value.job };
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
		r = fd = memfd_new("file");
	if (r >= 0)
		r = restore_file(m, &key, index, job_fetch_object, &fetch, fd);
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

/*
 * A file of a running job. The path leads through folders that the job's user controls, so it is
 * resolved inside the job's root, and only a regular file that the user owns is handed out.
 */
static int stream_live(const struct target *t, const char *path, uint64_t offset,
		       struct api_reply *reply)
{
	struct open_how how = { .flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK,
				.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
	_cleanup_close_ int root = -1, fd = -1;
	struct keeper_status status;
	struct keeper *k;
	char root_path[64];
	struct stat st;
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
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_uid != t->local->spec.uid)
		return -EPERM;
	reply->stream_fd = take_fd(fd);
	reply->stream_offset = offset < (uint64_t)st.st_size ? offset : (uint64_t)st.st_size;
	reply->stream_size = (uint64_t)st.st_size - reply->stream_offset;
	return 0;
}

/* After the results came home: the log lies in the submission directory. */
static int stream_home(struct target *t, const char *path, uint64_t offset, struct api_reply *reply)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_uid != t->seal.uid)
		return -EPERM;
	reply->stream_fd = take_fd(fd);
	reply->stream_offset = offset < (uint64_t)st.st_size ? offset : (uint64_t)st.st_size;
	reply->stream_size = (uint64_t)st.st_size - reply->stream_offset;
	return 0;
}

static const char *stream_state(const struct target *t)
{
	switch (t->value.state) {
	case JOB_STATE_DONE:
		return "done";
	case JOB_STATE_COLLECTED:
		return "collected";
	case JOB_STATE_KILLED:
		return "killed";
	case JOB_STATE_IDLE:
		return "waiting";
	default:
		return "running";
	}
}

int verb_logs(void *agent, const struct api_call *call, struct api_reply *reply)
{
	const char *stream, *path_end;
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
	reply->state = stream_state(&t);
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
	struct json_object *files;
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
	for (size_t i = 0; i < manifest_file_count(m); i++) {
		struct json_object *json;
		struct manifest_file file;

		manifest_file(m, i, &file);
		if (file.kind != FILE_UPPER ||
		    (!is_of_user(&t, &file) && !S_ISCHR(file.st.st_mode)) ||
		    !absolute_path(m, file.path, path, sizeof(path)))
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
