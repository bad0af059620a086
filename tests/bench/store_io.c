// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * bench-store-io: put and get of 1 MiB objects in a store, beside what the disk and the loopback
 * give in the same run with the same pattern of syncs; what group commit brings; what giving room
 * back costs, by punching and by copying.
 *
 *   store_io [--quick] FOLDER      works in FOLDER/store-io.tmp, writes FOLDER/store-io.json
 *
 * Per object the wall time and the CPU time of this program, with the kernel's; and which share of
 * the rate of something else a rate is, or of the slower of two. Rounds of all subjects take turns,
 * and the median round counts. Wall times are worth something only on a machine that does nothing
 * else; CPU times always are, nearly.
 *
 * get: as a peer gets it, in memory; get-file: as the own agent does, in a sealed file.
 * raw: the object's bytes at the end of a file, and fdatasync() after as many as are in flight.
 * raw-index: and two small writes with a sync each to another file, as a transaction of LMDB does.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <math.h>
#include <netinet/in.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "agent/util/io.h"
#include "overlay/store/store.h"
#include "tests/bench/rows.h"

enum { OBJECT = 1 << 20, ROUNDS_MAX = 15, WAYS = 3, PATH_MAX_BYTES = 400 };
#define SHARE_TARGET 0.8

static const uint32_t in_flight[WAYS] = { 1, 4, 16 };

struct bench {
	char dir[PATH_MAX_BYTES];
	struct store *store;
	uint8_t *bytes; /* one object's, changed for each */
	uint32_t serial, count, rounds;
	struct object_hash *hashes; /* of one round's puts */
	struct rows *rows;
};

static void check(int r, const char *what)
{
	if (r >= 0)
		return;
	fprintf(stderr, "store_io: %s: %s\n", what, strerror(-r));
	exit(1);
}

/* What one round took, and how often it did what is counted. */
struct span {
	double wall_s, cpu_s; /* cpu: of all threads here */
	uint32_t count;
};

static double clock_s(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void span_start(struct span *span)
{
	span->wall_s -= clock_s(CLOCK_MONOTONIC);
	span->cpu_s -= clock_s(CLOCK_PROCESS_CPUTIME_ID);
}

static void span_stop(struct span *span)
{
	span->wall_s += clock_s(CLOCK_MONOTONIC);
	span->cpu_s += clock_s(CLOCK_PROCESS_CPUTIME_ID);
}

static struct ov_object next_object(struct bench *b)
{
	struct ov_object object = { .size = OBJECT, .seq = 1, .job.b[0] = 1, .token.counter = 1 };

	memcpy(b->bytes, &b->serial, sizeof(b->serial));
	b->serial++;
	SHA256(b->bytes, OBJECT, object.hash.b);
	return object;
}

/* --- subjects: each does one round and returns its rate ---------------------------------- */

/* The hash that a put is named by is the sender's work, so it is not in the time. */
static struct span put_round(struct bench *b, uint32_t together)
{
	struct span span = { .count = b->count };

	for (uint32_t done = 0; done < b->count; done += together) {
		struct store_put *puts[16];
		int status[16];

		for (uint32_t i = 0; i < together; i++) {
			struct ov_object object = next_object(b);

			b->hashes[done + i] = object.hash;
			span_start(&span);
			check(store_put_begin(b->store, &object, &puts[i]), "begin");
			for (uint32_t at = 0; at < OBJECT; at += 16 << 10)
				check(store_put_write(puts[i], b->bytes + at, 16 << 10), "write");
			span_stop(&span);
		}
		span_start(&span);
		store_puts_commit(puts, together, status);
		span_stop(&span);
		for (uint32_t i = 0; i < together; i++)
			check(status[i], "commit");
	}
	return span;
}

/* The least that a durable put can be: its bytes at the end of a file, one sync for as many. */
static struct span raw_put_round(struct bench *b, uint32_t together, bool with_index)
{
	char path[PATH_MAX_BYTES + 20];
	struct span span = { .count = b->count };
	int fd, index;

	snprintf(path, sizeof(path), "%s/raw", b->dir);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	check(fd, "raw file");
	snprintf(path, sizeof(path), "%s/raw-index", b->dir);
	index = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	check(index, "raw index");
	span_start(&span);
	for (uint32_t i = 0; i < b->count; i++) {
		for (uint32_t at = 0; at < OBJECT; at += 16 << 10)
			check(pwrite_full(fd, b->bytes + at, 16 << 10, (off_t)i * OBJECT + at),
			      "raw write");
		if ((i + 1) % together)
			continue;
		check(fdatasync(fd), "raw sync");
		/* As a transaction does: its pages, then what says that they count. */
		for (int page = 0; with_index && page < 2; page++) {
			check(pwrite_full(index, b->bytes, 4096, 4096 * page), "raw index");
			check(fdatasync(index), "raw sync");
		}
	}
	span_stop(&span);
	close(fd);
	close(index);
	return span;
}

/* Of files that are clean: a sync came before. */
static void forget_cache(const char *folder, const char *prefix)
{
	_cleanup_closedir_ DIR *dir = opendir(folder);
	struct dirent *entry;

	check(dir ? 0 : -errno, folder);
	while ((entry = readdir(dir))) {
		int fd;

		if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0)
			continue;
		fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
		check(fd, entry->d_name);
		check(fdatasync(fd), "sync");
		check(-posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), "drop the cache");
		close(fd);
	}
}

static void get_one(struct bench *b, uint32_t i, bool file)
{
	uint8_t *bytes = NULL;
	int fd = -1;
	uint32_t size;

	check(file ? store_get(b->store, &b->hashes[i], &fd, &size) :
		     store_read(b->store, &b->hashes[i], &bytes, &size),
	      "get");
	close_fdp(&fd);
	free(bytes);
}

static struct span get_round(struct bench *b, bool cold, bool file)
{
	char folder[PATH_MAX_BYTES + 20];
	struct span span = { .count = b->count };

	snprintf(folder, sizeof(folder), "%s/store/segments", b->dir);
	if (cold)
		forget_cache(folder, "0");
	span_start(&span);
	for (uint32_t i = 0; i < b->count; i++)
		get_one(b, i, file);
	span_stop(&span);
	return span;
}

static struct span raw_get_round(struct bench *b, bool cold)
{
	char path[PATH_MAX_BYTES + 20];
	uint8_t *buf = malloc(OBJECT);
	struct span span = { .count = b->count };
	int fd;

	snprintf(path, sizeof(path), "%s/raw", b->dir);
	if (cold)
		forget_cache(b->dir, "raw");
	fd = open(path, O_RDONLY | O_CLOEXEC);
	check(fd, "raw file");
	span_start(&span);
	for (uint32_t i = 0; i < b->count; i++)
		check(pread_full(fd, buf, OBJECT, (off_t)i * OBJECT), "raw read");
	span_stop(&span);
	close(fd);
	free(buf);
	return span;
}

struct sink {
	int fd;
	uint64_t bytes;
};

static void *drain(void *arg)
{
	struct sink *sink = arg;
	uint8_t *buf = malloc(256 << 10);

	for (uint64_t left = sink->bytes; left > 0;) {
		ssize_t count = recv(sink->fd, buf, 256 << 10, 0);

		if (count <= 0)
			break;
		left -= (uint64_t)count;
	}
	(void)!write(sink->fd, "k", 1);
	free(buf);
	return NULL;
}

static struct span loopback_round(struct bench *b)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd;
	struct sink sink = { .bytes = (uint64_t)b->count * OBJECT };
	pthread_t thread;
	struct span span = { .count = b->count };
	char answer;

	check(bind(listener, (struct sockaddr *)&addr, length), "bind");
	check(listen(listener, 1), "listen");
	check(getsockname(listener, (struct sockaddr *)&addr, &length), "getsockname");
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	check(connect(fd, (struct sockaddr *)&addr, length), "connect");
	sink.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	check(sink.fd, "accept");
	check(-pthread_create(&thread, NULL, drain, &sink), "thread");
	span_start(&span);
	for (uint32_t i = 0; i < b->count; i++)
		check(write_full(fd, b->bytes, OBJECT), "send");
	check(read_full(fd, &answer, 1), "answer");
	span_stop(&span);
	pthread_join(thread, NULL);
	close(fd);
	close(sink.fd);
	close(listener);
	return span;
}

static struct span hash_round(struct bench *b)
{
	struct object_hash hash;
	struct span span = { .count = b->count };

	span_start(&span);
	for (uint32_t i = 0; i < b->count; i++) {
		memcpy(b->bytes, &i, sizeof(i));
		SHA256(b->bytes, OBJECT, hash.b);
	}
	span_stop(&span);
	return span;
}

/* Every other object of the last round goes, one transaction each. In ms per object. */
static struct span delete_round(struct bench *b)
{
	const struct job_id job = { { 1 } };
	struct span span = { .count = b->count / 2 };

	span_start(&span);
	for (uint32_t i = 0; i < b->count; i += 2)
		check(store_give_up(b->store, &job, &b->hashes[i]), "give up");
	span_stop(&span);
	return span;
}

/* The room of every other object of the raw file, by a hole each. */
static struct span punch_round(struct bench *b)
{
	char path[PATH_MAX_BYTES + 20];
	struct span span = { .count = b->count / 2 };
	int fd;

	snprintf(path, sizeof(path), "%s/raw", b->dir);
	fd = open(path, O_RDWR | O_CLOEXEC);
	check(fd, "raw file");
	span_start(&span);
	for (uint32_t i = 0; i < b->count; i += 2)
		check(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)i * OBJECT,
				OBJECT),
		      "punch");
	check(fdatasync(fd), "sync");
	span_stop(&span);
	close(fd);
	return span;
}

/* The same room, by copying what lives to a new file, and one sync. */
static struct span copy_round(struct bench *b)
{
	char path[PATH_MAX_BYTES + 20];
	uint8_t *buf = malloc(OBJECT);
	struct span span = { .count = b->count / 2 };
	int in, out;

	snprintf(path, sizeof(path), "%s/raw", b->dir);
	in = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "%s/raw-copy", b->dir);
	out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	check(in < 0 ? in : out, "raw copy");
	span_start(&span);
	for (uint32_t i = 1; i < b->count; i += 2) {
		check(pread_full(in, buf, OBJECT, (off_t)i * OBJECT), "read");
		check(write_full(out, buf, OBJECT), "write");
	}
	check(fdatasync(out), "sync");
	span_stop(&span);
	close(in);
	close(out);
	check(unlink(path), "unlink");
	free(buf);
	return span;
}

/* --- rows -------------------------------------------------------------------------------- */

/* Per object; the median wall time in ms, as rows_add() leaves the rounds sorted. */
static double subject_rows(struct bench *b, const char *name, const char *engine,
			   const struct span *spans)
{
	double ms[ROUNDS_MAX], cpu_us[ROUNDS_MAX];
	struct row row = { .name = name, .engine = engine, .count = b->rounds };

	for (uint32_t i = 0; i < b->rounds; i++) {
		ms[i] = spans[i].wall_s * 1e3 / spans[i].count;
		cpu_us[i] = spans[i].cpu_s * 1e6 / spans[i].count;
	}
	row.metric = "wall", row.unit = "ms", row.figures = ms;
	rows_add(b->rows, &row);
	row.metric = "cpu", row.unit = "us", row.figures = cpu_us;
	rows_add(b->rows, &row);
	return ms[(b->rounds - 1) / 2];
}

/* Which share of another's rate it has; target: that has to be reached, 0: none. */
static void share_row(struct bench *b, const char *name, const char *engine, double ms,
		      const char *metric, double other_ms, double target)
{
	rows_add(b->rows, &(struct row){ .name = name,
					 .engine = engine,
					 .metric = metric,
					 .unit = "ratio",
					 .value = other_ms / ms,
					 .target = target,
					 .least = true });
}

enum subject {
	PUT,
	RAW = PUT + WAYS,
	SAME = RAW + WAYS,
	GET = SAME + WAYS,
	GET_COLD,
	FILE_GET,
	FILE_COLD,
	RAW_GET,
	RAW_COLD,
	LOOPBACK,
	HASH,
	DELETE,
	PUNCH,
	COPY,
	SUBJECTS
};

static void drop_all(struct bench *b)
{
	struct ov_retain all = { .job.b[0] = 1, .token.counter = 1, .upto_seq = 1 };
	uint32_t dropped;

	check(store_retain(b->store, &all, NULL, &dropped), "retain");
}

static void run(struct bench *b, struct span spans[SUBJECTS][ROUNDS_MAX])
{
	for (uint32_t round = 0; round < b->rounds; round++) {
		for (int way = 0; way < WAYS; way++) {
			drop_all(b);
			spans[PUT + way][round] = put_round(b, in_flight[way]);
			spans[RAW + way][round] = raw_put_round(b, in_flight[way], false);
			spans[SAME + way][round] = raw_put_round(b, in_flight[way], true);
		}
		spans[GET][round] = get_round(b, false, false);
		spans[FILE_GET][round] = get_round(b, false, true);
		spans[RAW_GET][round] = raw_get_round(b, false);
		spans[GET_COLD][round] = get_round(b, true, false);
		spans[FILE_COLD][round] = get_round(b, true, true);
		spans[RAW_COLD][round] = raw_get_round(b, true);
		spans[LOOPBACK][round] = loopback_round(b);
		spans[HASH][round] = hash_round(b);
		spans[COPY][round] = copy_round(b);
		spans[PUNCH][round] = punch_round(b);
		spans[DELETE][round] = delete_round(b);
	}
}

/* An object is hashed whatever the disk does: "+sha256" is as if nothing else were done. */
static void put_rows(struct bench *b, struct span spans[SUBJECTS][ROUNDS_MAX], double loopback,
		     double hash)
{
	double ms[WAYS], raw, index;
	char name[32];

	for (int way = 0; way < WAYS; way++) {
		snprintf(name, sizeof(name), "raw-%u", in_flight[way]);
		raw = subject_rows(b, name, "disk", spans[RAW + way]);
		snprintf(name, sizeof(name), "raw-index-%u", in_flight[way]);
		index = subject_rows(b, name, "disk", spans[SAME + way]);
		snprintf(name, sizeof(name), "put-%u", in_flight[way]);
		ms[way] = subject_rows(b, name, "decamp", spans[PUT + way]);
		share_row(b, name, "decamp", ms[way], "of-raw-index-or-loopback",
			  fmax(index, loopback), SHARE_TARGET);
		share_row(b, name, "decamp", ms[way], "of-raw", raw, 0);
		share_row(b, name, "decamp", ms[way], "of-raw-index+sha256", index + hash, 0);
	}
	share_row(b, name, "decamp", ms[WAYS - 1], "of-put-1", ms[0], 0);
}

static void get_rows(struct bench *b, struct span spans[SUBJECTS][ROUNDS_MAX], const char *kind,
		     const enum subject subjects[3], double loopback, double hash)
{
	char name[32];
	double raw, ms;

	snprintf(name, sizeof(name), "raw-get-%s", kind);
	raw = subject_rows(b, name, "disk", spans[subjects[0]]);
	snprintf(name, sizeof(name), "get-%s", kind);
	ms = subject_rows(b, name, "decamp", spans[subjects[1]]);
	share_row(b, name, "decamp", ms, "of-raw-or-loopback", fmax(raw, loopback), SHARE_TARGET);
	share_row(b, name, "decamp", ms, "of-raw+sha256", raw + hash, 0);
	snprintf(name, sizeof(name), "get-file-%s", kind);
	subject_rows(b, name, "decamp", spans[subjects[2]]);
}

static void report(struct bench *b, struct span spans[SUBJECTS][ROUNDS_MAX])
{
	static const enum subject cold[] = { RAW_COLD, GET_COLD, FILE_COLD },
				  cached[] = { RAW_GET, GET, FILE_GET };
	double loopback = subject_rows(b, "loopback", "loopback", spans[LOOPBACK]);
	double hash = subject_rows(b, "sha256", "openssl", spans[HASH]);
	double copy, punch;

	put_rows(b, spans, loopback, hash);
	get_rows(b, spans, "cold", cold, loopback, hash);
	get_rows(b, spans, "cached", cached, loopback, hash);
	subject_rows(b, "delete", "decamp", spans[DELETE]);
	copy = subject_rows(b, "room-by-copy", "disk", spans[COPY]);
	punch = subject_rows(b, "room-by-punch", "disk", spans[PUNCH]);
	share_row(b, "room-by-punch", "disk", punch, "of-room-by-copy", copy, 0);
}

/* What else the machine does shows in the difference. */
static void whole_rows(struct bench *b, const struct span *all)
{
	struct row row = { .name = "all",
			   .engine = "bench",
			   .metric = "wall",
			   .unit = "s",
			   .value = all->wall_s };

	rows_add(b->rows, &row);
	row.metric = "cpu", row.value = all->cpu_s;
	rows_add(b->rows, &row);
}

int main(int argc, char **argv)
{
	static struct span spans[SUBJECTS][ROUNDS_MAX];
	bool quick = argc > 1 && !strcmp(argv[1], "--quick");
	struct bench b = { .count = quick ? 16 : 64, .rounds = quick ? 1 : 7 };
	char path[PATH_MAX_BYTES + 20];
	struct span all = { .count = 1 };

	if (argc != 2 + quick || strlen(argv[argc - 1]) > PATH_MAX_BYTES - 20) {
		fprintf(stderr, "usage: store_io [--quick] FOLDER\n");
		return 2;
	}
	snprintf(b.dir, sizeof(b.dir), "%s/store-io.tmp", argv[argc - 1]);
	snprintf(path, sizeof(path), "%s/store", b.dir);
	check(remove_tree_at(AT_FDCWD, b.dir), "remove");
	check(mkdir_parents(path, 0700), "folder");
	check(store_open(path, &b.store), "open");
	store_set_limits(b.store, UINT64_C(4) << 30, 0);
	snprintf(path, sizeof(path), "%s/store-io.json", argv[argc - 1]);
	b.bytes = malloc(OBJECT);
	b.hashes = calloc(b.count, sizeof(*b.hashes));
	if (!b.bytes || !b.hashes)
		check(-ENOMEM, path);
	for (uint32_t i = 0, x = 1; i < OBJECT; i++) {
		x = x * 1664525 + 1013904223;
		b.bytes[i] = (uint8_t)(x >> 24);
	}
	b.rows = rows_open(path);
	check(b.rows ? 0 : -errno, path);
	span_start(&all);
	run(&b, spans);
	span_stop(&all);
	report(&b, spans);
	whole_rows(&b, &all);
	store_close(b.store);
	free(b.bytes);
	free(b.hashes);
	check(remove_tree_at(AT_FDCWD, b.dir), "remove");
	return rows_close(b.rows) ? 1 : 0;
}
