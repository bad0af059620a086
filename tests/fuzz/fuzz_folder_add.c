// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: agent/job/verbs_upload.c agent/job/folder_upload.c
/*
 * What a user sends for a new version: one request a line, "write" if it begins with 'w', else "add".
 * Counts stay within their limits, a request that fails leaves no upload, and a version that can be
 * finished can be opened.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "agent/api/body.h"
#include "agent/job/folder.h"
#include "agent/job/verbs.h"
#include "agent/util/io.h"

/* Small, so that few entries reach the limits. The version before has "old" and "big". */
enum {
	OLD_BYTES = 9,
	BIG_BYTES = 8192,
	FOLDER_BYTES = BIG_BYTES + OLD_BYTES - 1,
	SPOOL_BYTES = 64
};

static struct agent agent;
static struct folder folder;
static struct secret_key key, seed;
static struct node_card card;
static uint8_t cluster_public[32];
static int manifest_fd = -1; /* the object that was stored last */

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void must(bool good)
{
	if (!good)
		abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static struct job job;

	(void)argc, (void)argv;
	card = (struct node_card){ .version = 1, .expires_wall_ms = UINT64_MAX };
	card.id.b[0] = 5;
	must(sign_public(&seed, card.sign_public) == 0);
	must(sign_public(&seed, cluster_public) == 0);
	must(node_card_sign(&card, &seed) == 0);
	agent.config.folder_bytes = FOLDER_BYTES;
	pthread_mutex_init(&agent.folders_lock, NULL);
	agent.folders[0] = &folder;
	pthread_mutex_init(&folder.lock, NULL);
	pthread_mutex_init(&job.lock, NULL);
	strcpy(job.spec.name, "f");
	memset(job.hex, '0', sizeof(job.hex) - 1);
	job.agent = &agent;
	folder.job = &job;
	folder.refs = 1;
	folder.ready = true;
	return 0;
}

static int store(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		 uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	off_t at = 0;

	(void)ctx, (void)hash;
	close_fdp(&manifest_fd);
	manifest_fd = memfd_new("manifest");
	if (sendfile(manifest_fd, memfd, &at, size) != (ssize_t)size)
		return -EIO;
	*ret_holder_count = 1;
	memset(ret_holders, 1, sizeof(*ret_holders));
	return 0;
}

static int end_version(uint64_t seq, struct ckpt_ref *ret_ref)
{
	struct manifest_head head = { .seq = seq, .wall_ms = 1, .host = card.id };

	strcpy(head.engine, "folder");
	head.token.counter = 1;
	head.meta_json = head.spec_json = "{}";
	return packer_finish(folder.job->packer, &head, &seed, &card, ret_ref);
}

static void add_before(const char *path, int fd, off_t size)
{
	struct pack_input in = { .kind = FILE_UPPER, .path = path, .fd = fd };

	in.st.st_mode = S_IFREG | 0600;
	in.st.st_nlink = 1;
	in.st.st_size = size;
	must(ftruncate(fd, size) == 0 && packer_add(folder.job->packer, &in) == 0);
}

static void begin(void)
{
	const struct packer_budget budget = { .index_bytes = FOLDER_INDEX_BYTES };
	const struct fence_token token = { .counter = 1 };
	struct folder_upload *u = &folder.upload;
	struct packer **packer = &folder.job->packer;
	struct ckpt_ref ref;

	*u = (struct folder_upload){ .number = 1, .spool_max = SPOOL_BYTES, .knows_last = true };
	u->spool = memfd_new("spool");
	must(u->spool >= 0 && pwrite_full(u->spool, "content", 7, 0) == 0);
	must(packer_create(&folder.job->id, &key, packer) == 0);
	must(packer_set_budget(*packer, &budget) == 0);
	must(packer_begin(*packer, &token, 1, store, NULL) == 0);
	add_before("0/old", u->spool, OLD_BYTES);
	add_before("0/big", u->spool, BIG_BYTES);
	must(end_version(1, &ref) == 0 && ftruncate(u->spool, 0) == 0);
	must(packer_begin(*packer, &token, 2, store, NULL) == 0);
}

/* Of an answer to folder-add: which entries have to come with their bytes. */
static void check_unknown(const struct api_call *call, struct json_object *reply)
{
	struct json_object *entries, *unknown;
	int64_t last = -1;

	must(json_object_object_get_ex(reply, "unknown", &unknown));
	must(json_object_object_get_ex(call->body, "entries", &entries));
	for (size_t i = 0; i < json_object_array_length(unknown); i++) {
		int64_t at = json_object_get_int64(json_object_array_get_idx(unknown, i));

		must(at > last && at < (int64_t)json_object_array_length(entries));
		last = at;
	}
}

static void request(const char *line, size_t size)
{
	struct api_reply reply = { .stream_fd = -1 };
	const struct folder_upload *u = &folder.upload;
	struct api_call call = { 0 };
	const char *why;
	int r;

	if (size < 1 || api_body_parse(line + 1, size - 1, &call.body, &why) < 0)
		return;
	json_object_object_add(call.body, "folder", json_object_new_string(folder.job->hex));
	json_object_object_add(call.body, "upload", json_object_new_int(1));
	r = line[0] == 'w' ? verb_folder_write(&agent, &call, &reply) :
			     verb_folder_add(&agent, &call, &reply);
	must(u->entries <= FOLDER_FILES_MAX && u->names <= FOLDER_NAMES_MAX);
	must(u->bytes <= FOLDER_BYTES && u->spool_size <= SPOOL_BYTES);
	must(folder.refs == 1);
	if (r == 0 && line[0] != 'w')
		check_unknown(&call, reply.json);
	json_object_put(reply.json);
	json_object_put(call.body);
}

static void finish(size_t entries)
{
	struct manifest *m = NULL;
	struct ckpt_ref ref;
	void *bytes;

	/* What lies below a file is found here. */
	if (end_version(2, &ref) < 0)
		return;
	bytes = malloc(ref.manifest_size);
	must(bytes && pread_full(manifest_fd, bytes, ref.manifest_size, 0) == 0);
	must(manifest_open(bytes, ref.manifest_size, &ref.manifest, &key, cluster_public, &m) == 0);
	must(manifest_file_count(m) == entries);
	manifest_destroy(m);
	free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	const char *at = (const char *)bytes, *end = at + size;

	begin();
	while (at < end && folder.upload.number) {
		const char *line = at;

		at = memchr(line, '\n', (size_t)(end - line));
		at = at ? at : end;
		request(line, (size_t)(at - line));
		at++;
	}
	if (folder.upload.number)
		finish(folder.upload.entries);
	upload_abort(&folder);
	packer_destroy(folder.job->packer);
	close_fdp(&manifest_fd);
	return 0;
}
