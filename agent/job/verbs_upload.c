// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * folder-begin, -add, -write, -commit, -made: how a new version comes in. The bytes are the caller's own,
 * in messages of bounded size; nothing of his is opened here.
 */
#define LOG_TAG "folder"
#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <string.h>

#include "agent/job/folder.h"
#include "agent/job/verbs.h"
#include "agent/util/io.h"
#include "agent/util/log.h"

enum { BASE64_MAX = (FOLDER_WRITE_MAX + 2) / 3 * 4, NAMES_MAX = 2048 /* entries in one request */ };

/* "16G", as decampd.conf has it. */
static void size_text(uint64_t bytes, char text[24])
{
	static const char *const units[] = { "", "K", "M", "G", "T" };
	size_t unit = 0;

	while (unit + 1 < ARRAY_SIZE(units) && bytes && bytes % 1024 == 0) {
		bytes /= 1024;
		unit++;
	}
	snprintf(text, 24, "%" PRIu64 "%s", bytes, units[unit]);
}

static int failed(struct folder *f, int r, struct api_reply *reply)
{
	const char *name = f->job->spec.name;
	char limit[24];

	if (reply->json)
		return r;
	switch (r) {
	case -ESTALE:
		return api_error(reply, r, "stale", name, "decamp folder lists your folders",
				 "this host has that folder no longer");
	case -ENOSPC:
		pthread_mutex_lock(&f->job->lock);
		r = api_error(reply, r, "no-room", name, "decamp doctor, decamp nodes", "%s",
			      f->job->message[0] ? f->job->message :
						   "no room here for what is to be sent, or none "
						   "on other hosts");
		pthread_mutex_unlock(&f->job->lock);
		return r;
	case -EDQUOT:
		size_text(f->job->agent->config.folder_bytes, limit);
		return api_error(reply, -ENOSPC, "no-room", name, "keep less in it",
				 "more than %s in one version: folder_bytes in decampd.conf here",
				 limit);
	case -EOPNOTSUPP:
		return folders_off(name, reply);
	case -EREMCHG:
		return api_error(reply, r, "other-copy", name,
				 "unmount, move the working copy away (decamp folder --json tells "
				 "where it is), mount again",
				 "another working copy of it has made a version since; this one "
				 "would undo that");
	case -EBUSY:
		return api_error(reply, r, "busy", name, "try again in a moment",
				 "too many versions are being sent from this host");
	case -E2BIG:
		return api_error(reply, r, "too-many", name, "keep fewer files in it",
				 "more than %d files, or more than %d MiB of names",
				 FOLDER_FILES_MAX, FOLDER_NAMES_MAX >> 20);
	case -EOVERFLOW:
		return api_error(reply, r, "too-many", name,
				 "keep less in it, or files with fewer holes",
				 "its contents lie in more than %d pieces", FOLDER_EXTENTS_MAX);
	case -EINVAL:
		return api_error(reply, r, "bad-request", name,
				 "docs/api.md tells what belongs "
				 "into it",
				 "an entry or a part that no version may hold");
	case -EAGAIN:
	case -EHOSTUNREACH:
		return api_error(reply, r, "try-again", name, "decamp nodes shows who is there",
				 "not enough of the cluster answers");
	default:
		return api_error(reply, r, "failed", name, "the log of decampd tells more",
				 "the version cannot be made: %s", strerror(-r));
	}
}

/* The folder, locked; its upload if the request names one. */
static int enter(struct agent *a, const struct api_call *call, bool upload,
		 struct folder **ret_folder, struct api_reply *reply)
{
	int64_t number = 0;
	struct folder *f;
	int r = folder_of_call(a, call, &f, reply);

	if (r < 0)
		return r;
	pthread_mutex_lock(&f->lock);
	r = folder_resume(f);
	if (r < 0)
		r = failed(f, r, reply);
	else if (upload && (api_get_int(call, "upload", 1, INT64_MAX, 0, &number) < 0 || !number ||
			    (uint64_t)number != f->upload.number))
		r = api_error(reply, -EAGAIN, "try-again", f->job->spec.name, "begin anew",
			      "that upload has been given up");
	if (r < 0) {
		pthread_mutex_unlock(&f->lock);
		folder_unref(a, f);
		return r;
	}
	*ret_folder = f;
	return 0;
}

/* What fails for another reason than the request's contents ends the upload. */
static int leave(struct agent *a, struct folder *f, int r, struct api_reply *reply)
{
	if (r < 0)
		r = failed(f, r, reply);
	if (r < 0)
		upload_abort(f);
	else if (f->upload.number)
		f->upload.used_boot_ns = now_boot_ns();
	pthread_mutex_unlock(&f->lock);
	folder_unref(a, f);
	return r;
}

int verb_folder_begin(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct folder *f;
	const char *copy;
	int64_t base;
	int r = api_get_int(call, "base", 0, INT64_MAX, 0, &base);

	if (r == 0)
		r = api_get_string(call, "copy", FOLDER_COPY_MAX - 1, &copy);
	if (r == 0)
		r = enter(agent, call, false, &f, reply);
	if (r < 0)
		return r;
	r = upload_begin(f, (uint64_t)base, copy ? copy : "");
	if (r == 0) {
		reply->json = json_object_new_object();
		json_object_object_add(reply->json, "upload",
				       json_object_new_int64((int64_t)f->upload.number));
		json_object_object_add(reply->json, "room",
				       json_object_new_int64((int64_t)f->upload.spool_max));
	}
	return leave(agent, f, r, reply);
}

int verb_folder_made(void *agent, const struct api_call *call, struct api_reply *reply)
{
	const struct folder_version *newest;
	const char *stamp;
	struct folder *f;
	char hex[65];
	int r = api_get_string(call, "stamp", FOLDER_COPY_MAX - 1, &stamp);

	if (r < 0 || !stamp || !*stamp)
		return -EINVAL;
	r = enter(agent, call, false, &f, reply);
	if (r < 0)
		return r;
	r = upload_check(f);
	if (r == 0) {
		newest = &f->versions[0];
		hex_encode(&newest->ref.manifest, sizeof(newest->ref.manifest), hex);
		reply->json = json_object_new_object();
		json_object_object_add(reply->json, "made",
				       json_object_new_boolean(!strcmp(newest->stamp, stamp)));
		json_object_object_add(reply->json, "seq",
				       json_object_new_int64((int64_t)newest->ref.seq));
		json_object_object_add(reply->json, "manifest", json_object_new_string(hex));
	}
	return leave(agent, f, r, reply);
}

/* ---- content ---- */

static int decode(const char *text, uint8_t *bytes, size_t *ret_size)
{
	size_t length = strlen(text);
	int n;

	if (length % 4 || length > BASE64_MAX)
		return -EINVAL;
	n = length ? EVP_DecodeBlock(bytes, (const unsigned char *)text, (int)length) : 0;
	if (n < 0)
		return -EINVAL;
	*ret_size = (size_t)n;
	for (size_t i = 1; i <= 2 && i <= length && text[length - i] == '='; i++)
		--*ret_size;
	return 0;
}

static int take_bytes(struct folder *f, uint64_t offset, const char *text)
{
	_cleanup_free_ uint8_t *bytes = malloc(FOLDER_WRITE_MAX + 4);
	size_t size;
	int r = bytes ? decode(text, bytes, &size) : -ENOMEM;

	return r < 0 ? r : upload_write(f, offset, bytes, size);
}

int verb_folder_write(void *agent, const struct api_call *call, struct api_reply *reply)
{
	const char *text;
	struct folder *f;
	int64_t offset;
	int r = api_get_string(call, "bytes", BASE64_MAX, &text);

	if (r == 0)
		r = api_get_int(call, "offset", 0, FOLDER_FILE_MAX, 0, &offset);
	if (r < 0 || !text)
		return -EINVAL;
	r = enter(agent, call, true, &f, reply);
	if (r < 0)
		return r;
	r = take_bytes(f, (uint64_t)offset, text);
	if (r == 0)
		reply->json = json_object_new_object();
	return leave(agent, f, r, reply);
}

/* ---- entries ---- */

static const char *text_of(struct json_object *json, const char *key)
{
	struct json_object *part;
	const char *text;

	if (!json_object_object_get_ex(json, key, &part) ||
	    !json_object_is_type(part, json_type_string))
		return NULL;
	text = json_object_get_string(part);
	return strlen(text) == (size_t)json_object_get_string_len(part) ? text : NULL;
}

static int64_t number_of(struct json_object *json, const char *key)
{
	struct json_object *part;

	return json_object_object_get_ex(json, key, &part) ? json_object_get_int64(part) : 0;
}

static int type_of(struct json_object *json, mode_t *ret_type)
{
	const char *type = text_of(json, "type");

	if (!type)
		return -EINVAL;
	*ret_type = !strcmp(type, "file") ? S_IFREG :
		    !strcmp(type, "dir")  ? S_IFDIR :
		    !strcmp(type, "link") ? S_IFLNK :
					    0;
	return *ret_type ? 0 : -EINVAL;
}

/* fresh: its bytes are in the entry, or were written before. */
static int add_entry(struct folder *f, struct json_object *json)
{
	struct chunk_note note = { .size = (uint64_t)number_of(json, "content_size"),
				   .count = (uint32_t)number_of(json, "chunks") };
	const char *path = text_of(json, "path"), *bytes = text_of(json, "bytes");
	struct pack_input in = { .link_target = text_of(json, "target") };
	int64_t size = number_of(json, "size"), mtime_ns = number_of(json, "mtime_ns");
	uint8_t xattr[CHUNK_XATTR_BYTES];
	char full[4096];
	mode_t type;
	int r = type_of(json, &type);

	if (r < 0 || !path || snprintf(full, sizeof(full), "0/%s", path) >= (int)sizeof(full))
		return -EINVAL;
	if (size < 0 || size > FOLDER_FILE_MAX || (type != S_IFREG && size))
		return -EINVAL;
	if (note.count) {
		size_t table;

		if (type != S_IFREG || chunk_table_size(&note, (uint64_t)size, &table) < 0)
			return -EINVAL;
		chunk_note_encode(&note, xattr);
		in.xattrs = xattr;
		in.xattrs_size = sizeof(xattr);
	}
	in.path = full;
	in.st.st_mode = type | ((mode_t)number_of(json, "mode") & 0777);
	in.st.st_size = size;
	in.st.st_mtim.tv_sec = mtime_ns / 1000000000;
	in.st.st_mtim.tv_nsec = mtime_ns % 1000000000;
	if (in.st.st_mtim.tv_nsec < 0) {
		in.st.st_mtim.tv_sec--;
		in.st.st_mtim.tv_nsec += 1000000000;
	}
	if (type != S_IFLNK)
		in.link_target = NULL;
	r = bytes ? take_bytes(f, 0, bytes) : 0;
	return r < 0 ? r : upload_add(f, &in, bytes || number_of(json, "fresh"));
}

int verb_folder_add(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct json_object *entries, *unknown;
	struct folder *f;
	size_t count;
	int r;

	if (!json_object_object_get_ex(call->body, "entries", &entries) ||
	    !json_object_is_type(entries, json_type_array) ||
	    json_object_array_length(entries) > NAMES_MAX)
		return -EINVAL;
	r = enter(agent, call, true, &f, reply);
	if (r < 0)
		return r;
	unknown = json_object_new_array();
	count = json_object_array_length(entries);
	for (size_t i = 0; r == 0 && i < count; i++) {
		r = add_entry(f, json_object_array_get_idx(entries, i));
		if (r == -ENOENT) {
			json_object_array_add(unknown, json_object_new_int64((int64_t)i));
			r = 0;
		}
	}
	if (r < 0) {
		json_object_put(unknown);
	} else {
		reply->json = json_object_new_object();
		json_object_object_add(reply->json, "unknown", unknown);
	}
	return leave(agent, f, r, reply);
}

/* ---- commit ---- */

int verb_folder_commit(void *agent, const struct api_call *call, struct api_reply *reply)
{
	struct folder_version v = { 0 };
	struct packer_counts counts;
	const char *stamp = NULL;
	int64_t files, bytes;
	struct folder *f;
	char hex[65];
	int r = api_get_bool(call, "sync", false, &v.sync);

	if (r == 0)
		r = api_get_int(call, "files", 0, FOLDER_FILES_MAX, 0, &files);
	if (r == 0)
		r = api_get_int(call, "bytes", 0, INT64_MAX, 0, &bytes);
	if (r == 0)
		r = api_get_string(call, "stamp", FOLDER_COPY_MAX - 1, &stamp);
	if (r == 0)
		r = enter(agent, call, true, &f, reply);
	if (r < 0)
		return r;
	v.files = (uint64_t)files;
	v.bytes = (uint64_t)bytes;
	v.ref.wall_ms = now_wall_ms();
	if (stamp)
		strcpy(v.stamp, stamp);
	r = upload_commit(f, &v, &counts);
	if (r == -ESTALE) { /* the register decides, and then the table */
		f->ready = false;
		folders_wake(agent);
	}
	if (r == 0) {
		job_say(f->job, "%s", "");
		log_info("folder %s: version %llu: files=%lld bytes=%lld new=%llu sent=%llu",
			 f->job->spec.name, (unsigned long long)v.ref.seq, (long long)files,
			 (long long)bytes, (unsigned long long)counts.new_bytes,
			 (unsigned long long)counts.sent_bytes);
		hex_encode(&v.ref.manifest, sizeof(v.ref.manifest), hex);
		reply->json = json_object_new_object();
		json_object_object_add(reply->json, "seq",
				       json_object_new_int64((int64_t)v.ref.seq));
		json_object_object_add(reply->json, "manifest", json_object_new_string(hex));
		json_object_object_add(reply->json, "new_bytes",
				       json_object_new_int64((int64_t)counts.new_bytes));
		json_object_object_add(reply->json, "sent_bytes",
				       json_object_new_int64((int64_t)counts.sent_bytes));
	}
	return leave(agent, f, r, reply);
}
