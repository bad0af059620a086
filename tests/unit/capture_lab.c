// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/capture_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sendfile.h>

#include "agent/util/io.h"

static int store(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		 uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	struct capture_lab *lab = ctx;
	int copy = memfd_new("object");
	off_t at = 0;

	assert_true(copy >= 0 && lab->count < CAPTURE_LAB_OBJECTS_MAX);
	assert_int_equal(sendfile(copy, memfd, &at, size), size);
	lab->objects[lab->count].hash = *hash;
	lab->objects[lab->count].fd = copy;
	lab->count++;
	*ret_holder_count = 1;
	memset(ret_holders, 1, sizeof(*ret_holders));
	return 0;
}

static int find(const struct capture_lab *lab, const struct object_hash *hash)
{
	for (size_t i = 0; i < lab->count; i++) {
		if (!memcmp(&lab->objects[i].hash, hash, sizeof(*hash)))
			return lab->objects[i].fd;
	}
	return -ENOENT;
}

int capture_lab_fetch(void *ctx, const struct object_hash *hash, uint32_t size,
		      const struct node_id *holders, uint32_t holder_count, int *ret_memfd)
{
	struct capture_lab *lab = ctx;
	int fd = find(lab, hash);

	(void)size, (void)holders, (void)holder_count;
	if (lab->fail || fd < 0)
		return lab->fail ? lab->fail : fd;
	*ret_memfd = dup(fd);
	return *ret_memfd < 0 ? -errno : 0;
}

void capture_lab_init(struct capture_lab *lab)
{
	memset(lab, 0, sizeof(*lab));
	memset(lab->job.b, 7, sizeof(lab->job.b));
	memset(lab->job_key.b, 8, sizeof(lab->job_key.b));
	memset(lab->sign_seed.b, 9, sizeof(lab->sign_seed.b));
	memset(lab->cluster_seed.b, 10, sizeof(lab->cluster_seed.b));
	lab->token.counter = 1;
	lab->card.version = 1;
	lab->card.id.b[0] = 5;
	lab->card.expires_wall_ms = UINT64_MAX;
	strcpy(lab->card.hostname, "lab01");
	assert_int_equal(sign_public(&lab->sign_seed, lab->card.sign_public), 0);
	assert_int_equal(sign_public(&lab->cluster_seed, lab->cluster_public), 0);
	assert_int_equal(node_card_sign(&lab->card, &lab->cluster_seed), 0);
	assert_int_equal(packer_create(&lab->job, &lab->job_key, &lab->packer), 0);
}

void capture_lab_deinit(struct capture_lab *lab)
{
	packer_destroy(lab->packer);
	for (size_t i = 0; i < lab->count; i++)
		close(lab->objects[i].fd);
}

void capture_lab_begin(struct capture_lab *lab)
{
	lab->seq++;
	assert_int_equal(packer_begin(lab->packer, &lab->token, lab->seq, store, lab), 0);
}

int capture_lab_add(void *ctx, const struct snapshot_file *file)
{
	struct capture_lab *lab = ctx;
	struct pack_input in = { .kind = (enum file_kind)file->kind,
				 .path = file->path,
				 .st = file->st,
				 .link_target = file->link_target,
				 .xattrs = file->xattrs,
				 .xattrs_size = file->xattrs_size,
				 .fd = file->fd,
				 .runs = (const struct pack_run *)file->runs,
				 .run_count = file->run_count };
	int r = packer_add(lab->packer, &in);

	if (r < 0)
		print_message("add: kind=%d path=%s fd=%d: %s\n", (int)in.kind, in.path, in.fd,
			      strerror(-r));
	return r;
}

void capture_lab_finish(struct capture_lab *lab, const char *meta_json)
{
	struct manifest_head *head = calloc(1, sizeof(*head));

	assert_non_null(head);
	head->job = lab->job;
	head->token = lab->token;
	head->seq = lab->seq;
	head->wall_ms = now_wall_ms();
	head->host = lab->card.id;
	strcpy(head->engine, "criu");
	head->meta_json = meta_json;
	head->spec_json = "{}";
	assert_int_equal(packer_finish(lab->packer, head, &lab->sign_seed, &lab->card, &lab->ref),
			 0);
	free(head);
}

int capture_lab_try(struct capture_lab *lab, struct capture *c, struct snapshot *s,
		    struct packer_counts *ret_counts)
{
	int r;

	capture_lab_begin(lab);
	r = snapshot_each(s, false, capture_lab_add, lab);
	if (r == -ENOENT) { /* an unchanged file that the packer does not know */
		packer_abort(lab->packer);
		lab->seq--;
		capture_lab_begin(lab);
		r = snapshot_each(s, true, capture_lab_add, lab);
	}
	if (r < 0) {
		packer_abort(lab->packer);
		lab->seq--;
		return r;
	}
	capture_lab_finish(lab, snapshot_info(s)->meta_json);
	packer_counts(lab->packer, ret_counts);
	snapshot_accept(c, s);
	return 0;
}

struct packer_counts capture_lab_pack(struct capture_lab *lab, struct capture *c,
				      struct snapshot *s)
{
	struct packer_counts counts;

	assert_int_equal(capture_lab_try(lab, c, s, &counts), 0);
	return counts;
}

struct manifest *capture_lab_manifest(struct capture_lab *lab)
{
	int fd = find(lab, &lab->ref.manifest);
	_cleanup_free_ uint8_t *bytes = malloc(lab->ref.manifest_size);
	struct manifest *m = NULL;

	assert_true(fd >= 0);
	assert_non_null(bytes);
	assert_int_equal(pread_full(fd, bytes, lab->ref.manifest_size, 0), 0);
	assert_int_equal(manifest_open(bytes, lab->ref.manifest_size, &lab->ref.manifest,
				       &lab->job_key, lab->cluster_public, &m),
			 0);
	return m;
}

long capture_lab_find(const struct manifest *m, enum file_kind kind, const char *path)
{
	for (size_t i = 0; i < manifest_file_count(m); i++) {
		struct manifest_file f;

		manifest_file(m, i, &f);
		if (f.kind == kind && !strcmp(f.path, path))
			return (long)i;
	}
	return -1;
}

void lab_write(const char *text, const char *path_fmt, ...)
{
	char path[PATH_MAX];
	va_list ap;
	int fd;

	va_start(ap, path_fmt);
	vsnprintf(path, sizeof(path), path_fmt, ap);
	va_end(ap);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		print_message("%s: %s\n", path, strerror(errno));
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, text, strlen(text)), 0);
	close(fd);
}

char *lab_read(const char *path_fmt, ...)
{
	char path[PATH_MAX], *text;
	va_list ap;

	va_start(ap, path_fmt);
	vsnprintf(path, sizeof(path), path_fmt, ap);
	va_end(ap);
	return read_file_at(AT_FDCWD, path, 256 << 20, &text, NULL) < 0 ? NULL : text;
}
