// SPDX-License-Identifier: LGPL-2.1-or-later
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/pack/pack.h"
#include "agent/util/io.h"
#include "overlay/ipc.h"
#include "tests/bench/store.h"

enum { PEERS_QUOTA_GIB = 16 };
#define FIRST_MASK (((uint64_t)1 << 56) - 1)

struct object {
	struct object_hash hash;
	uint32_t size;
	int fd;
};

struct sealer {
	struct job_id job;
	struct secret_key job_key, sign_seed, cluster_seed;
	uint8_t cluster_public[32];
	struct node_card card;
	struct fence_token token;
	struct packer *packer;
	struct ckpt_ref ref;
	pthread_mutex_t lock; /* guards the objects */
	struct object *objects;
	size_t object_count;
	int file; /* without a name, for all objects one after the other; -1: none */
	off_t file_end;
	bool keep; /* objects, for the check at the end and for the limit */
	bool limit;
	struct store_wire *wire;   /* NULL: no limit of committing */
	struct store_peers *peers; /* NULL: objects go nowhere */
	uint64_t seq;
	uint64_t dirty_bytes;
};

struct runs_list {
	struct pack_run *v;
	size_t count, room;
};

static int commit_object(struct sealer *s, int memfd, const struct object_hash *hash, uint32_t size,
			 uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	struct ov_object object = {
		.job = s->job, .token = s->token, .hash = *hash, .seq = s->seq, .size = size
	};
	int r = store_peers_put(s->peers, memfd, &object);

	if (r < 0)
		return r;
	packer_set_link(s->packer, (uint64_t)object.link_kib_s << 10);
	*ret_holder_count = object.holder_count;
	memcpy(ret_holders, object.holders, object.holder_count * sizeof(*ret_holders));
	return 0;
}

/* All of a memfd, behind `at`. */
static int copy_object(int to, off_t at, int memfd, uint32_t size)
{
	off_t from = 0;

	if (lseek(to, at, SEEK_SET) < 0)
		return -errno;
	while (from < (off_t)size)
		if (sendfile(to, memfd, &from, size - (size_t)from) <= 0)
			return -EIO;
	return 0;
}

/*
 * Straight to the disk, as nobody reads it again; objects that come at the same time are written at the
 * same time, each at a place of its own.
 */
static int write_object(struct sealer *s, int memfd, uint32_t size)
{
	size_t room = (size + STORE_PAGE - 1) / STORE_PAGE * STORE_PAGE;
	uint8_t *bytes = mmap(NULL, room, PROT_READ, MAP_SHARED | MAP_POPULATE, memfd, 0);
	off_t at;
	int r;

	if (bytes == MAP_FAILED)
		return -errno;
	pthread_mutex_lock(&s->lock);
	at = s->file_end;
	s->file_end += (off_t)room;
	pthread_mutex_unlock(&s->lock);
	r = pwrite_full(s->file, bytes, room, at);
	munmap(bytes, room);
	return r == 0 && fdatasync(s->file) < 0 ? -errno : r;
}

/* The packer writes its next object into the same memory. */
static int keep_object(struct sealer *s, int memfd, const struct object_hash *hash, uint32_t size)
{
	int copy = memfd_new("kept"), r = copy < 0 ? copy : copy_object(copy, 0, memfd, size);

	/* Several may be on their way. */
	pthread_mutex_lock(&s->lock);
	s->objects = reallocarray(s->objects, s->object_count + 1, sizeof(*s->objects));
	if (s->objects && r == 0)
		s->objects[s->object_count++] = (struct object){ *hash, size, copy };
	else if (r == 0)
		r = -ENOMEM;
	pthread_mutex_unlock(&s->lock);
	return r;
}

static int put(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
	       uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	struct sealer *s = ctx;
	int r;

	*ret_holder_count = 1;
	memset(ret_holders, 1, sizeof(*ret_holders));
	if (s->peers) {
		r = commit_object(s, memfd, hash, size, ret_holder_count, ret_holders);
		if (r < 0)
			return r;
	}
	if (s->file >= 0) {
		r = write_object(s, memfd, size);
		if (r < 0)
			return r;
	}
	return s->keep ? keep_object(s, memfd, hash, size) : 0;
}

static const struct object *find(const struct sealer *s, const struct object_hash *hash)
{
	for (size_t i = 0; i < s->object_count; i++)
		if (!memcmp(&s->objects[i].hash, hash, sizeof(*hash)))
			return &s->objects[i];
	return NULL;
}

static int get(void *ctx, const struct object_hash *hash, uint32_t size,
	       const struct node_id *holders, uint32_t holder_count, int *ret_memfd)
{
	const struct object *o = find(ctx, hash);

	(void)size, (void)holders, (void)holder_count;
	*ret_memfd = o ? dup(o->fd) : -1;
	return o ? (*ret_memfd < 0 ? -errno : 0) : -ENOENT;
}

/* Not every file system can do without its cache. */
static int open_file(const char *dir)
{
	int flags = O_TMPFILE | O_RDWR | O_CLOEXEC, fd = open(dir, flags | O_DIRECT, 0600);

	if (fd < 0)
		fd = open(dir, flags, 0600);
	if (fd < 0)
		store_die(dir, -errno);
	return fd;
}

static void start(struct sealer *s, const struct store_seal_options *o)
{
	int r;

	memset(s, 0, sizeof(*s));
	pthread_mutex_init(&s->lock, NULL);
	memset(s->job.b, 7, sizeof(s->job.b));
	memset(s->job_key.b, 8, sizeof(s->job_key.b));
	memset(s->sign_seed.b, 9, sizeof(s->sign_seed.b));
	memset(s->cluster_seed.b, 10, sizeof(s->cluster_seed.b));
	s->token.counter = 1;
	s->card.version = 1;
	s->card.id.b[0] = 5;
	s->card.expires_wall_ms = UINT64_MAX;
	strcpy(s->card.hostname, "bench");
	s->keep = o->verify || o->limit;
	s->limit = o->limit;
	s->file = o->file ? open_file(o->budget.cache_dir) : -1;
	if (o->limit && o->commit)
		s->wire = store_wire_open(o->budget.cache_dir);
	if (o->commit)
		s->peers = store_peers_start((uint64_t)PEERS_QUOTA_GIB << 30);
	r = sign_public(&s->sign_seed, s->card.sign_public);
	if (r == 0)
		r = sign_public(&s->cluster_seed, s->cluster_public);
	if (r == 0)
		r = node_card_sign(&s->card, &s->cluster_seed);
	if (r == 0)
		r = packer_create(&s->job, &s->job_key, &s->packer);
	if (r == 0)
		r = packer_set_budget(s->packer, &o->budget);
	if (r < 0)
		store_die("packer", r);
}

/* ---- one checkpoint ---- */

struct step {
	struct sealer *s;
	unsigned int k;
	int images;
	int base;   /* plain images of the checkpoint before, or -1 */
	int blocks; /* pages.new and, behind it, what the packer wants again */
	uint64_t block_count;
	struct pack_wanted *wanted;
	size_t wanted_count;
	char names[STORE_FILES_MAX][64];
	struct pack_input inputs[STORE_FILES_MAX];
	size_t count;
};

static void add_run(struct runs_list *list, uint64_t from, uint64_t count)
{
	if (list->count == list->room) {
		list->room = list->room ? 2 * list->room : 256;
		list->v = reallocarray(list->v, list->room, sizeof(*list->v));
		if (!list->v)
			store_die("runs", -ENOMEM);
	}
	list->v[list->count++] = (struct pack_run){ from, count };
}

/* Blocks of the base, as new ones. */
static void give_again(struct step *t, uint32_t id, uint64_t first, uint64_t count,
		       struct runs_list *list)
{
	_cleanup_close_ int fd = -1;
	uint8_t page[STORE_PAGE];
	char name[64];

	snprintf(name, sizeof(name), "pages-%u.img", id);
	fd = openat(t->base, name, O_RDONLY | O_CLOEXEC);
	add_run(list, (uint64_t)PACK_RUN_NEW << 56 | t->block_count, count);
	for (uint64_t i = 0; i < count; i++) {
		int r = fd < 0 ? -errno :
				 pread_full(fd, page, sizeof(page),
					    (off_t)((first + i) * STORE_PAGE));

		if (r == 0)
			r = pwrite_full(t->blocks, page, sizeof(page),
					(off_t)(t->block_count * STORE_PAGE));
		if (r < 0)
			store_die(name, r);
		t->block_count++;
	}
}

/* A run of old blocks without those that the packer has forgotten. */
static void split_old(struct step *t, uint32_t id, uint64_t first, uint64_t count,
		      struct runs_list *list)
{
	for (size_t i = 0; i < t->wanted_count && count > 0; i++) {
		const struct pack_wanted *w = &t->wanted[i];
		uint64_t before, n;

		if (w->pages_id != id || w->first + w->count <= first || w->first >= first + count)
			continue;
		before = w->first > first ? w->first - first : 0;
		if (before)
			add_run(list, (uint64_t)PACK_RUN_OLD << 56 | first, before);
		n = w->first + w->count - (first + before);
		n = n < count - before ? n : count - before;
		give_again(t, id, first + before, n, list);
		first += before + n;
		count -= before + n;
	}
	if (count > 0)
		add_run(list, (uint64_t)PACK_RUN_OLD << 56 | first, count);
}

static void read_runs(struct step *t, const char *name, uint32_t id, struct pack_input *in)
{
	struct runs_list list = { 0 };
	_cleanup_free_ char *text = NULL;
	uint64_t blocks = 0;
	size_t size;
	int r = read_file_at(t->images, name, 1 << 30, &text, &size);

	if (r < 0)
		store_die(name, r);
	for (size_t at = 0; at + sizeof(struct pack_run) <= size; at += sizeof(struct pack_run)) {
		struct pack_run run;

		memcpy(&run, text + at, sizeof(run));
		blocks += run.count;
		if (run.from >> 56 == PACK_RUN_OLD)
			split_old(t, id, run.from & FIRST_MASK, run.count, &list);
		else
			add_run(&list, run.from, run.count);
	}
	for (size_t i = 0; i < list.count; i++)
		if (list.v[i].from >> 56 == PACK_RUN_NEW)
			t->s->dirty_bytes += list.v[i].count * STORE_PAGE;
	if (!list.v)
		add_run(&list, 0, 0), list.count = 0;
	in->runs = list.v;
	in->run_count = list.count;
	in->fd = t->blocks;
	in->st.st_size = (off_t)(blocks * STORE_PAGE);
}

static void add_file(struct step *t, const char *name)
{
	struct pack_input *in = &t->inputs[t->count];
	char rest[8] = "";
	uint32_t id;

	if (t->count == STORE_FILES_MAX || strlen(name) >= sizeof(t->names[0]))
		store_die(name, -E2BIG);
	*in = (struct pack_input){ .kind = FILE_IMAGE, .path = t->names[t->count], .fd = -1 };
	in->st.st_mode = S_IFREG | 0600;
	in->st.st_nlink = 1;
	if (sscanf(name, "pages-%u.%7s", &id, rest) == 2 && !strcmp(rest, "runs")) {
		snprintf(t->names[t->count], sizeof(t->names[0]), "pages-%u.img", id);
		read_runs(t, name, id, in);
	} else {
		struct stat st;

		snprintf(t->names[t->count], sizeof(t->names[0]), "%s", name);
		in->fd = openat(t->images, name, O_RDONLY | O_CLOEXEC);
		if (in->fd < 0 || fstat(in->fd, &st) < 0)
			store_die(name, -errno);
		in->st.st_size = st.st_size;
	}
	t->count++;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void load_step(struct step *t, const char *dir)
{
	char path[600], *names[STORE_FILES_MAX];
	struct dirent *item;
	struct stat st;
	size_t count = 0;
	int r, fd;
	DIR *d;

	snprintf(path, sizeof(path), "%s/%u", dir, t->k);
	t->images = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	d = opendir(path);
	snprintf(path, sizeof(path), "%s/%u.plain", dir, t->k ? t->k - 1 : 0);
	t->base = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	t->blocks = memfd_new("blocks");
	fd = openat(t->images, "pages.new", O_RDONLY | O_CLOEXEC);
	if (!d || t->base < 0 || t->blocks < 0 || fd < 0 || fstat(fd, &st) < 0)
		store_die(dir, -errno);
	for (off_t at = 0; at < st.st_size;)
		if (sendfile(t->blocks, fd, &at, (size_t)(st.st_size - at)) <= 0)
			store_die("pages.new", -errno);
	close(fd);
	t->block_count = (uint64_t)st.st_size / STORE_PAGE;
	r = packer_wanted(t->s->packer, 1 << 20, &t->wanted, &t->wanted_count);
	if (r < 0)
		store_die("packer_wanted", r);
	while ((item = readdir(d)))
		if (item->d_name[0] != '.' && strcmp(item->d_name, "pages.new") != 0 &&
		    count < STORE_FILES_MAX)
			names[count++] = strdup(item->d_name);
	qsort(names, count, sizeof(*names), compare_names);
	for (size_t i = 0; i < count; i++) {
		add_file(t, names[i]);
		free(names[i]);
	}
	closedir(d);
}

static void free_step(struct step *t)
{
	for (size_t i = 0; i < t->count; i++) {
		free((void *)t->inputs[i].runs);
		if (!t->inputs[i].runs)
			close(t->inputs[i].fd);
	}
	free(t->wanted);
	close(t->images);
	close(t->base);
	close(t->blocks);
}

static uint64_t us_of(const struct timeval *tv)
{
	return (uint64_t)tv->tv_sec * 1000000 + (uint64_t)tv->tv_usec;
}

static void finish(struct sealer *s, uint64_t seq)
{
	struct manifest_head *head = calloc(1, sizeof(*head));
	int r;

	if (!head)
		store_die("memory", -ENOMEM);
	head->job = s->job;
	head->token = s->token;
	head->seq = seq;
	head->wall_ms = 1;
	head->host = s->card.id;
	strcpy(head->engine, "native");
	strcpy(head->arch, "x86_64");
	head->meta_json = "{}";
	head->spec_json = "{}";
	r = packer_finish(s->packer, head, &s->sign_seed, &s->card, &s->ref);
	if (r < 0)
		store_die("packer_finish", r);
	free(head);
}

/* Of one checkpoint; the rates are smoothed over several. */
static void print_spent(const struct sealer *s, const struct store_spent *before)
{
	struct store_spent after;

	if (!s->peers)
		return;
	store_peers_spent(s->peers, &after);
	printf(", \"put_us\": %llu, \"put_bytes\": %llu, \"half_cpu_us\": %llu, "
	       "\"peers_cpu_us\": %llu, \"link_bytes_per_s\": %llu",
	       (unsigned long long)(after.put_us - before->put_us),
	       (unsigned long long)(after.put_bytes - before->put_bytes),
	       (unsigned long long)(after.half_cpu_us - before->half_cpu_us),
	       (unsigned long long)(after.peers_cpu_us - before->peers_cpu_us),
	       (unsigned long long)after.link_kib_s << 10);
}

/* Of the objects of this checkpoint, which are those from `first` on. */
static void print_limit(const struct sealer *s, const struct step *t, size_t first, int level)
{
	struct store_limit limit = { 0 };

	if (!s->limit)
		return;
	store_limit_pages(s->packer, t->blocks, t->block_count, &limit);
	for (size_t i = first; i < s->object_count; i++) {
		const struct object *o = &s->objects[i];

		store_limit_pack(&s->job, &s->job_key, s->seq, level, o->fd, o->size, &limit);
		if (s->wire)
			store_limit_wire(s->wire, o->fd, o->size, &limit);
	}
	printf(", \"limit_read_us\": %llu, \"limit_hash_us\": %llu, \"limit_zstd_us\": %llu, "
	       "\"limit_aes_us\": %llu, \"limit_sha_us\": %llu, \"limit_wire_us\": %llu",
	       (unsigned long long)limit.read_ns / 1000, (unsigned long long)limit.hash_ns / 1000,
	       (unsigned long long)limit.zstd_ns / 1000, (unsigned long long)limit.aes_ns / 1000,
	       (unsigned long long)limit.sha_ns / 1000, (unsigned long long)limit.wire_ns / 1000);
}

static void seal_step(struct sealer *s, const char *dir, unsigned int k, uint64_t seq)
{
	size_t first = s->object_count;
	struct step *t = calloc(1, sizeof(*t));
	struct packer_counts counts;
	struct store_spent spent = { 0 };
	struct rusage before, after;
	uint64_t began;
	int r;

	if (!t)
		store_die("memory", -ENOMEM);
	t->s = s;
	t->k = k;
	s->dirty_bytes = 0;
	s->seq = seq;
	load_step(t, dir);
	if (s->peers)
		store_peers_spent(s->peers, &spent);
	getrusage(RUSAGE_SELF, &before);
	began = now_boot_ns();
	r = packer_begin(s->packer, &s->token, seq, put, s);
	for (size_t i = 0; i < t->count && r == 0; i++)
		r = packer_add(s->packer, &t->inputs[i]);
	if (r < 0)
		store_die("packer_add", r);
	finish(s, seq);
	getrusage(RUSAGE_SELF, &after);
	packer_counts(s->packer, &counts);
	printf("{\"step\": %u, \"dirty_bytes\": %llu, \"new_bytes\": %llu, \"delta_bytes\": %llu, \"sent_bytes\": %llu, "
	       "\"manifest_bytes\": %u, \"packs\": %u, \"packs_new\": %u, \"wanted\": %zu, "
	       "\"user_us\": %llu, \"sys_us\": %llu, \"wall_us\": %llu, \"max_rss_kb\": %ld, "
	       "\"level\": %d",
	       k, (unsigned long long)s->dirty_bytes, (unsigned long long)counts.new_bytes,
	       (unsigned long long)counts.delta_bytes, (unsigned long long)counts.sent_bytes,
	       s->ref.manifest_size, counts.packs, counts.packs_new, t->wanted_count,
	       (unsigned long long)(us_of(&after.ru_utime) - us_of(&before.ru_utime)),
	       (unsigned long long)(us_of(&after.ru_stime) - us_of(&before.ru_stime)),
	       (unsigned long long)(now_boot_ns() - began) / 1000, after.ru_maxrss, counts.level);
	print_spent(s, &spent);
	print_limit(s, t, first, counts.level);
	printf("}\n");
	fflush(stdout);
	free_step(t);
	free(t);
}

/* ---- the check ---- */

static void compare_file(const char *plain, const struct manifest_file *f, int fd)
{
	_cleanup_close_ int other = -1;
	char path[700];
	uint8_t *a, *b;
	size_t size = (size_t)f->st.st_size;

	if (size == 0)
		return;
	snprintf(path, sizeof(path), "%s/%s", plain, f->path);
	other = open(path, O_RDONLY | O_CLOEXEC);
	a = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	b = mmap(NULL, size, PROT_READ, MAP_PRIVATE, other, 0);
	if (a == MAP_FAILED || b == MAP_FAILED)
		store_die(path, -errno);
	if (memcmp(a, b, size) != 0)
		store_die(path, -EBADMSG);
	munmap(a, size);
	munmap(b, size);
}

static void verify(struct sealer *s, const char *plain)
{
	const struct object *o = find(s, &s->ref.manifest);
	uint8_t *bytes = mmap(NULL, o->size, PROT_READ, MAP_SHARED, o->fd, 0);
	struct manifest *m = NULL;
	struct rusage before, after;
	size_t count;
	int *fds, r;

	r = bytes == MAP_FAILED ?
		    -errno :
		    manifest_open(bytes, o->size, &o->hash, &s->job_key, s->cluster_public, &m);
	if (r < 0)
		store_die("manifest", r);
	count = manifest_file_count(m);
	fds = calloc(count + 1, sizeof(*fds));
	for (size_t i = 0; fds && i < count; i++)
		fds[i] = memfd_new("back");
	getrusage(RUSAGE_SELF, &before);
	r = fds ? manifest_unpack(m, &s->job_key, fds, get, s, NULL, NULL) : -ENOMEM;
	if (r < 0)
		store_die("unpack", r);
	getrusage(RUSAGE_SELF, &after);
	for (size_t i = 0; i < count; i++) {
		struct manifest_file f;

		manifest_file(m, i, &f);
		compare_file(plain, &f, fds[i]);
		close(fds[i]);
	}
	printf("{\"verified\": %zu, \"user_us\": %llu}\n", count,
	       (unsigned long long)(us_of(&after.ru_utime) - us_of(&before.ru_utime)));
	free(fds);
	manifest_destroy(m);
	munmap(bytes, o->size);
}

void store_seal(const char *dir, unsigned int count, const struct store_seal_options *options)
{
	struct sealer *s = malloc(sizeof(*s));
	char plain[600];

	if (!s)
		store_die("memory", -ENOMEM);
	start(s, options);
	for (unsigned int k = 0; k < count; k++)
		seal_step(s, dir, k, k + 1);
	snprintf(plain, sizeof(plain), "%s/%u.plain", dir, count - 1);
	if (options->verify)
		verify(s, plain);
	if (options->again)
		seal_step(s, dir, 0, count + 1);
	packer_destroy(s->packer);
	if (s->peers)
		store_peers_end(s->peers);
	if (s->wire)
		store_wire_close(s->wire);
	if (s->file >= 0)
		close(s->file);
	for (size_t i = 0; i < s->object_count; i++)
		close(s->objects[i].fd);
	free(s->objects);
	free(s);
}
