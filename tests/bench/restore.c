// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * bench-restore: a job of 1 GiB comes back from three peers: all of it before it runs, through
 * images and put where it belongs at once, and lazily.
 *
 *   restore [--mib N] [--takes N] [--way images|full|lazy] FOLDER
 *
 * Four overlay halves over TLS on loopback: the restoring host's and three peers', which hold all
 * packs and the manifest on disk. Cold: nothing is here, and the peers' files are not in the page
 * cache. Time runs from the manifest's fetch to the first step that the restored program counts;
 * lazily, also to the last page. FOLDER holds restore_load and gets restore.json.
 *
 * Measured in the same run: the same packs fetched and thrown away; read from the disk; unpacked from memory; as much
 * memory written to a tmpfs once, and copied to fresh anonymous memory once; the packs through TLS
 * on loopback, hashed on both sides. CPU: of this process, of the halves, of all peers together.
 *
 * The limit of restore-images: the CPU time of unpacked, written, through TLS, shared by all
 * processors, or what one peer has read from the disk if that takes longer, and what CRIU takes by
 * itself. Of restore-full: unpacked, copied, through TLS, shared likewise, and what CRIU takes, which
 * gets no memory then. Of restore-lazy: what CRIU takes.
 */
#include "tests/unit/capture_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/pack/reader.h"
#include "agent/restore/restore.h"
#include "agent/util/io.h"
#include "tests/bench/rows.h"
#include "tests/bench/store.h"
#include "tests/unit/keeper_fixture.h"
#include "tests/unit/overlay_host.h"
#include "tests/unit/place_lab.h"

enum way { IMAGES, DIRECT, LAZY };

enum {
	TAKES_MAX = 100,
	HOSTS = 4,
	OBJECTS_MAX = CAPTURE_LAB_OBJECTS_MAX,
	STEPS = 8,
	WAIT_MS = 600000
};

struct bench {
	unsigned int mib;
	char load[PATH_MAX], criu[PATH_MAX];
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
	struct place p;
	struct capture_lab lab;
	struct ov_object objects[OBJECTS_MAX];
	uint64_t stored_bytes;
	/* CPU time that no full restore can do without, but for CRIU's, and of that its memory's. */
	double shared_ms, read_ms, write_ms, copy_ms;
	struct rows *rows;
	const char *only; /* this way; NULL: all */
};

struct take {
	double total_ms, whole_ms; /* to the first step; to the last page */
	struct {
		char name[24];
		double at_ms;
	} steps[STEPS];
	size_t step_count;
	double own_cpu_ms, half_cpu_ms, peers_cpu_ms;
	uint64_t began;
};

static struct place *place_to_clear;

/* cmocka's asserts say nothing outside of a test. */
static void must(int r, const char *what)
{
	if (r == 0)
		return;
	fprintf(stderr, "%s: %d %s\n", what, r, r < 0 ? strerror(-r) : "");
	if (place_to_clear) {
		umount2(place_to_clear->images, MNT_DETACH);
		place_deinit(place_to_clear);
	}
	exit(1);
}

#define MUST(expression) must((int)(expression), #expression)

void store_die(const char *what, int r)
{
	must(r, what);
	abort();
}

static double ms_since(uint64_t ns)
{
	return (double)(now_boot_ns() - ns) / 1e6;
}

static double cpu_ms(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	unsigned long user = 0, system = 0;
	char path[64], *after;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_file_at(AT_FDCWD, path, 4096, &text, NULL) < 0 || !(after = strrchr(text, ')')))
		return 0;
	if (sscanf(after + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
		   &system) != 2)
		return 0;
	return (double)(user + system) * 1000 / (double)sysconf(_SC_CLK_TCK);
}

static void add_cpu(const struct bench *b, struct take *t, double sign)
{
	struct rusage own;

	getrusage(RUSAGE_SELF, &own);
	t->own_cpu_ms += sign * ((double)(own.ru_utime.tv_sec + own.ru_stime.tv_sec) * 1000 +
				 (double)(own.ru_utime.tv_usec + own.ru_stime.tv_usec) / 1000);
	t->half_cpu_ms += sign * cpu_ms(b->hosts[0].pid);
	for (int i = 1; i < HOSTS; i++)
		t->peers_cpu_ms += sign * cpu_ms(b->hosts[i].pid);
}

/* ---- the peers ---- */

static int fetch(void *ctx, const struct object_hash *hash, uint32_t size,
		 const struct node_id *holders, uint32_t holder_count, int *memfd)
{
	const struct bench *b = ctx;
	struct ov_msg msg;
	size_t i;
	int r = -ENOENT;

	(void)holders, (void)holder_count, (void)size;
	for (i = 0; i < b->lab.count && memcmp(&b->objects[i].hash, hash, sizeof(*hash)); i++)
		;
	/* This process may have been stopped for a while. */
	for (int tries = 0; i < b->lab.count && r < 0 && tries < 5; tries++) {
		_cleanup_close_ int channel = ov_open_channel(b->hosts[0].main);
		int fd = -1;

		msg = (struct ov_msg){ .op = OV_OBJECT_GET };
		msg.u.object = b->objects[i];
		r = channel < 0 ? channel : ov_call(channel, &msg, tries ? -1 : *memfd, &fd, 60000);
		*memfd = r == 0 && fd >= 0 ? fd : *memfd;
	}
	return r;
}

static void start_hosts(struct bench *b)
{
	cluster_make(&b->cluster);
	for (int i = 0; i < HOSTS; i++) {
		host_make(&b->hosts[i], &b->cluster, (uint8_t)(i + 1));
		/* A machine that is short of time has no dead hosts. */
		b->hosts[i].suspect_ms = 60000;
		host_run(&b->hosts[i]);
		MUST(host_start(&b->hosts[i], i ? &b->hosts[0] : NULL));
	}
	for (int i = 0; i < HOSTS; i++)
		host_wait_members(&b->hosts[i], MEMBER_ALIVE, HOSTS, 60000);
	host_sleep_ms(1500);
}

/* To all three, however slow their disk is. */
static void put(struct bench *b, size_t i)
{
	struct ov_msg msg = { .op = OV_OBJECT_PUT };
	int r = -EAGAIN;

	for (int tries = 0; tries < 60 && (r < 0 || msg.u.object.holder_count < HOSTS - 1);
	     tries++) {
		_cleanup_close_ int channel = ov_open_channel(b->hosts[0].main);

		if (tries)
			host_sleep_ms(500);
		msg = (struct ov_msg){ .op = OV_OBJECT_PUT };
		msg.u.object = b->objects[i];
		msg.u.object.copies = HOSTS - 1;
		r = ov_call(channel, &msg, b->lab.objects[i].fd, NULL, 120000);
	}
	MUST(r);
	MUST(msg.u.object.holder_count - (HOSTS - 1));
	b->objects[i].holder_count = msg.u.object.holder_count;
	memcpy(b->objects[i].holders, msg.u.object.holders, sizeof(msg.u.object.holders));
}

static void store_objects(struct bench *b)
{
	for (size_t i = 0; i < b->lab.count; i++) {
		struct ov_object *o = &b->objects[i];
		struct stat st;

		MUST(fstat(b->lab.objects[i].fd, &st));
		o->job = b->lab.job;
		o->token = b->lab.token;
		o->hash = b->lab.objects[i].hash;
		o->size = (uint32_t)st.st_size;
		o->seq = 1;
		put(b, i);
		b->stored_bytes += o->size;
	}
}

static void forget_file(const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0)
		(void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

static void of_each_file(const struct test_host *host, void (*fn)(const char *path))
{
	char command[160];
	FILE *names;
	char path[PATH_MAX];

	snprintf(command, sizeof(command), "find %s -type f", host->dir);
	names = popen(command, "re");
	while (names && fgets(path, sizeof(path), names)) {
		path[strcspn(path, "\n")] = '\0';
		fn(path);
	}
	if (names)
		pclose(names);
}

/* The peers' objects leave the page cache. */
static void make_cold(const struct bench *b)
{
	for (int i = 1; i < HOSTS; i++)
		of_each_file(&b->hosts[i], forget_file);
}

/* ---- the job ---- */

static void capture(struct bench *b)
{
	struct capture_config config = { .cwd = b->p.base, .closure_max_bytes = 256 << 20 };
	struct capture_request request = { .criu = b->criu,
					   .native = fixture_capture_binary(),
					   .engine = CAPTURE_CRIU,
					   .spool_dir = b->p.spool,
					   .after = CAPTURE_STAY_FROZEN };
	char script[PATH_MAX + 32], reason[CAPTURE_REASON_MAX];
	struct packer_counts counts;
	struct fixture f;
	struct snapshot *s;
	struct capture *c;

	fixture_init(&f);
	config.state_dir = f.state_dir;
	MUST(capture_create(&config, &c));
	snprintf(script, sizeof(script), "exec %s %u", b->load, b->mib);
	place_start(&f, &b->p, script);
	place_wait_output(&f, &b->p, strlen("ready\n"));
	request.keeper = f.k;
	if (capture_take(c, &request, &s, reason) < 0)
		must(-EIO, reason);
	MUST(capture_lab_try(&b->lab, c, s, &counts));
	snapshot_destroy(s);
	capture_destroy(c);
	MUST(keeper_kill(f.k));
	fixture_deinit(&f);
	printf("captured: raw %.0f MiB, stored %.0f MiB in %zu objects\n",
	       (double)counts.raw_bytes / (1 << 20), (double)counts.sent_bytes / (1 << 20),
	       b->lab.count);
}

static uint64_t beat(const struct bench *b, const struct fixture *f)
{
	char path[PATH_MAX], inside[160];
	_cleanup_close_ int fd = -1;
	uint64_t step = 0;

	snprintf(inside, sizeof(inside), "%s/beat", b->p.base);
	fixture_path(f, inside, path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 && pread_full(fd, &step, sizeof(step), 0) == 0 ? step : 0;
}

/* ---- one restore ---- */

static void note_step(void *ctx, const char *step, uint64_t done, uint64_t total)
{
	struct take *t = ctx;

	(void)done, (void)total;
	if (t->step_count == STEPS ||
	    (t->step_count && !strcmp(t->steps[t->step_count - 1].name, step)))
		return;
	snprintf(t->steps[t->step_count].name, sizeof(t->steps[0].name), "%s", step);
	t->steps[t->step_count++].at_ms = ms_since(t->began);
}

static int note_ready(void *ctx)
{
	note_step(ctx, "ready", 0, 0);
	return 0;
}

static struct manifest *fetch_manifest(struct bench *b)
{
	const struct ckpt_ref *ref = &b->lab.ref;
	_cleanup_free_ uint8_t *bytes = malloc(ref->manifest_size);
	struct manifest *m = NULL;
	int fd = -1;

	MUST(fetch(b, &ref->manifest, ref->manifest_size, NULL, 0, &fd));
	MUST(pread_full(fd, bytes, ref->manifest_size, 0));
	close(fd);
	MUST(manifest_open(bytes, ref->manifest_size, &ref->manifest, &b->lab.job_key,
			   b->lab.cluster_public, &m));
	return m;
}

static void clear_images(const struct bench *b)
{
	umount2(b->p.images, MNT_DETACH);
	MUST(mount("bench", b->p.images, "tmpfs", 0, "mode=0700"));
}

static void restore(struct bench *b, enum way way, struct take *t)
{
	struct restore_lazy *lazy = NULL;
	char reason[RESTORE_REASON_MAX] = "";
	struct packer *seed;
	struct fixture f;
	struct restore_request request = { .job_key = &b->lab.job_key,
					   .images_dir = b->p.images,
					   .criu = b->criu,
					   .fetch = fetch,
					   .fetch_ctx = b,
					   .progress = note_step,
					   .ready = note_ready,
					   .ctx = t,
					   .ret_lazy = way == LAZY ? &lazy : NULL,
					   .direct = way == DIRECT,
					   .lazy_min_bytes = 1 };
	struct manifest *m;
	uint64_t last = 0;

	*t = (struct take){ 0 };
	make_cold(b);
	clear_images(b);
	fixture_init(&f);
	MUST(packer_create(&b->lab.job, &b->lab.job_key, &seed));
	add_cpu(b, t, -1);
	t->began = now_boot_ns();
	request.manifest = m = fetch_manifest(b);
	note_step(t, "manifest", 0, 0);
	request.seed = seed;
	request.state_dir = f.state_dir;
	request.keeper = f.config;
	if (restore_job(&request, &f.k, reason) < 0)
		must(-EIO, reason);
	note_step(t, "restored", 0, 0);
	last = beat(b, &f);
	while (beat(b, &f) == last)
		usleep(200);
	t->total_ms = ms_since(t->began);
	if (lazy)
		MUST(restore_lazy_wait(lazy, WAIT_MS) - 1);
	t->whole_ms = ms_since(t->began);
	add_cpu(b, t, 1);
	MUST(keeper_kill(f.k));
	restore_lazy_end(lazy);
	fixture_deinit(&f);
	packer_destroy(seed);
	manifest_destroy(m);
}

/* ---- limits of the same run ---- */

static double only_fetch(struct bench *b, struct take *t)
{
	uint64_t began;

	*t = (struct take){ 0 };
	make_cold(b);
	add_cpu(b, t, -1);
	began = now_boot_ns();
	for (size_t i = 0; i < b->lab.count; i++) {
		int fd = -1;

		MUST(fetch(b, &b->objects[i].hash, b->objects[i].size, NULL, 0, &fd));
		close(fd);
	}
	add_cpu(b, t, 1);
	return ms_since(began);
}

static void read_file(const char *path)
{
	static uint8_t mib[1 << 20];
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	while (fd >= 0 && read(fd, mib, sizeof(mib)) > 0)
		;
}

/* All that one peer has, from the disk: one of three copies, in the order of the disk. */
static double only_read(struct bench *b, struct take *t)
{
	uint64_t began;

	*t = (struct take){ 0 };
	make_cold(b);
	add_cpu(b, t, -1);
	began = now_boot_ns();
	of_each_file(&b->hosts[1], read_file);
	add_cpu(b, t, 1);
	return ms_since(began);
}

static int swallow(void *ctx, uint32_t file, uint64_t block, uint32_t count, const uint8_t *bytes)
{
	(void)ctx, (void)file, (void)block, (void)count, (void)bytes;
	return 0;
}

/* Packs in memory -> blocks that nobody keeps. */
static double only_open(struct bench *b, struct take *t)
{
	struct manifest *m = capture_lab_manifest(&b->lab);
	struct reader_config config = { .manifest = m,
					.job_key = &b->lab.job_key,
					.fetch = capture_lab_fetch,
					.fetch_ctx = &b->lab,
					.sink = swallow };
	struct reader_range *ranges = calloc(manifest_file_count(m) + 1, sizeof(*ranges));
	struct pack_reader *r;
	uint64_t began;
	double ms;
	size_t n = 0;

	for (size_t i = 0; i < manifest_file_count(m); i++) {
		struct manifest_file f;

		manifest_file(m, i, &f);
		if (S_ISREG(f.st.st_mode) && !f.hardlink)
			ranges[n++] =
				(struct reader_range){ .file = (uint32_t)i, .count = UINT64_MAX };
	}
	*t = (struct take){ 0 };
	add_cpu(b, t, -1);
	began = now_boot_ns();
	MUST(reader_create(&config, ranges, n, &r));
	MUST(reader_run(r));
	reader_destroy(r);
	ms = ms_since(began);
	add_cpu(b, t, 1);
	free(ranges);
	manifest_destroy(m);
	return ms;
}

static double only_write(struct bench *b, struct take *t)
{
	_cleanup_free_ uint8_t *mib = malloc(1 << 20);
	_cleanup_close_ int fd = -1;
	char path[160];
	uint64_t began;

	memset(mib, 5, 1 << 20);
	clear_images(b);
	snprintf(path, sizeof(path), "%s/written", b->p.images);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	*t = (struct take){ 0 };
	add_cpu(b, t, -1);
	began = now_boot_ns();
	for (unsigned int i = 0; i < b->mib; i++)
		MUST(write_full(fd, mib, 1 << 20));
	add_cpu(b, t, 1);
	return ms_since(began);
}

/* The least that memory costs: no page of it was there before. */
static double only_copy(struct bench *b, struct take *t)
{
	_cleanup_free_ uint8_t *mib = malloc(1 << 20);
	size_t size = (size_t)b->mib << 20;
	uint64_t began;
	uint8_t *to;
	double ms;

	memset(mib, 5, 1 << 20);
	clear_images(b);
	*t = (struct take){ 0 };
	add_cpu(b, t, -1);
	began = now_boot_ns();
	to = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(to == MAP_FAILED ? -errno : 0);
	for (size_t at = 0; at < size; at += 1 << 20)
		memcpy(to + at, mib, 1 << 20);
	add_cpu(b, t, 1);
	ms = ms_since(began);
	munmap(to, size);
	return ms;
}

static double only_wire(struct bench *b, struct take *t)
{
	struct store_wire *wire = store_wire_open(NULL);
	struct store_limit limit = { 0 };
	uint64_t began = now_boot_ns();

	*t = (struct take){ 0 };
	for (size_t i = 0; i < b->lab.count; i++) {
		const struct ov_object *o = &b->objects[i];

		store_limit_hash(b->lab.objects[i].fd, o->size, &limit);
		store_limit_wire(wire, b->lab.objects[i].fd, o->size, &limit);
	}
	store_wire_close(wire);
	t->own_cpu_ms = (double)(limit.sha_ns + limit.wire_ns) / 1e6;
	return ms_since(began);
}

/* ---- the table ---- */

static double at_ms(const struct take *t, const char *step)
{
	for (size_t i = 0; i < t->step_count; i++)
		if (!strcmp(t->steps[i].name, step))
			return t->steps[i].at_ms;
	must(-ENOENT, step);
	return 0;
}

static double limit_of(const struct bench *b, const struct take *t, enum way way)
{
	double criu_ms = at_ms(t, way == DIRECT ? "memory" : "ready") - at_ms(t, "restoring");
	double shared_ms = b->shared_ms + (way == DIRECT ? b->copy_ms : b->write_ms);

	if (way == LAZY)
		return criu_ms;
	shared_ms /= (double)sysconf(_SC_NPROCESSORS_ONLN);
	return criu_ms + (shared_ms > b->read_ms ? shared_ms : b->read_ms);
}

static void steps_of(const struct take *t, char *text, size_t size)
{
	size_t n = (size_t)snprintf(text, size, "{");

	for (size_t i = 0; i < t->step_count; i++)
		n += (size_t)snprintf(text + n, size - n, "%s\"%zu %s\": %.1f", i ? ", " : "", i,
				      t->steps[i].name, t->steps[i].at_ms);
	snprintf(text + n, size - n, "}");
}

/* Takes by their total time; target_ms 0: a limit, which has none and was taken once. */
static void show(struct bench *b, const char *name, const char *engine, const struct take *takes,
		 size_t count, double target_ms, double limit_ms)
{
	static const struct {
		const char *name;
		size_t offset;
	} metrics[] = { { "total", offsetof(struct take, total_ms) },
			{ "whole", offsetof(struct take, whole_ms) },
			{ "cpu-own", offsetof(struct take, own_cpu_ms) },
			{ "cpu-half", offsetof(struct take, half_cpu_ms) },
			{ "cpu-peers", offsetof(struct take, peers_cpu_ms) } };
	char full[64], steps[STEPS * 64];
	double figures[TAKES_MAX];

	snprintf(full, sizeof(full), "%s/%um", name, b->mib);
	steps_of(&takes[(count - 1) / 2], steps, sizeof(steps));
	for (size_t i = 0; i < ARRAY_SIZE(metrics); i++) {
		struct row row = { .name = full,
				   .engine = engine,
				   .metric = metrics[i].name,
				   .unit = "ms",
				   .count = count };

		for (size_t k = 0; k < count; k++)
			figures[k] = *(const double *)((const char *)&takes[k] + metrics[i].offset);
		if (target_ms > 0)
			row.figures = figures;
		else
			row.value = figures[0];
		if (i == 0) {
			row.target = target_ms;
			row.limit = limit_ms;
			row.breakdown = target_ms > 0 ? steps : NULL;
		}
		rows_add(b->rows, &row);
	}
}

static void show_limit(struct bench *b, const char *name, const char *engine, double ms,
		       struct take *t)
{
	t->total_ms = t->whole_ms = ms;
	show(b, name, engine, t, 1, 0, 0);
}

static int compare_takes(const void *a, const void *c)
{
	const struct take *x = a, *y = c;

	return x->total_ms < y->total_ms ? -1 : x->total_ms > y->total_ms;
}

static const struct {
	const char *name;
	double target_ms;
} ways[] = { [IMAGES] = { "restore-images", 1200 },
	     [DIRECT] = { "restore-full", 1200 },
	     [LAZY] = { "restore-lazy", 250 } };

static bool is_wanted(const struct bench *b, size_t way)
{
	return !b->only || !strcmp(ways[way].name + strlen("restore-"), b->only);
}

/* The ways take turns, so that what else the machine does meets all of them. */
static void bench_restore(struct bench *b, unsigned int takes)
{
	struct take *t[ARRAY_SIZE(ways)];

	for (size_t way = 0; way < ARRAY_SIZE(ways); way++)
		t[way] = calloc(takes, sizeof(*t[way]));
	for (unsigned int i = 0; i < takes; i++)
		for (size_t way = 0; way < ARRAY_SIZE(ways); way++)
			if (is_wanted(b, way))
				restore(b, (enum way)way, &t[way][i]);
	for (size_t way = 0; way < ARRAY_SIZE(ways); way++) {
		const struct take *median = &t[way][(takes - 1) / 2];

		if (is_wanted(b, way)) {
			qsort(t[way], takes, sizeof(*t[way]), compare_takes);
			show(b, ways[way].name, "decamp", t[way], takes, ways[way].target_ms,
			     limit_of(b, median, (enum way)way));
		}
		free(t[way]);
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "mib", required_argument, NULL, 'm' },
						 { "takes", required_argument, NULL, 't' },
						 { "way", required_argument, NULL, 'w' },
						 { 0 } };
	static struct bench b = { .mib = 1024 };
	unsigned int takes = 3;
	bool wanted = false;
	char path[PATH_MAX];
	struct take t;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (c == 'm')
			b.mib = (unsigned int)strtoul(optarg, NULL, 10);
		else if (c == 't')
			takes = (unsigned int)strtoul(optarg, NULL, 10);
		else if (c == 'w')
			b.only = optarg;
		else
			return 2;
	}
	for (size_t way = 0; way < ARRAY_SIZE(ways); way++)
		wanted |= is_wanted(&b, way);
	if (!wanted || optind + 1 != argc || b.mib == 0 || takes == 0 || takes > TAKES_MAX)
		return 2;
	if (fixture_missing() || fixture_find_criu(b.criu)) {
		fprintf(stderr, "cannot run: %s\n", fixture_missing() ?: fixture_find_criu(b.criu));
		return 77;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	snprintf(b.load, sizeof(b.load), "%s/restore_load", argv[optind]);
	snprintf(path, sizeof(path), "%s/restore.json", argv[optind]);
	place_init(&b.p);
	place_to_clear = &b.p;
	capture_lab_init(&b.lab);
	capture(&b);
	start_hosts(&b);
	store_objects(&b);
	b.rows = rows_open(path);
	MUST(b.rows ? 0 : -errno);
	show_limit(&b, "limit-fetch", "decamp", only_fetch(&b, &t), &t);
	b.read_ms = only_read(&b, &t);
	show_limit(&b, "limit-read", "disk", b.read_ms, &t);
	show_limit(&b, "limit-open", "decamp", only_open(&b, &t), &t);
	b.shared_ms += t.own_cpu_ms;
	show_limit(&b, "limit-write", "tmpfs", only_write(&b, &t), &t);
	b.write_ms = t.own_cpu_ms;
	show_limit(&b, "limit-copy", "memory", only_copy(&b, &t), &t);
	b.copy_ms = t.own_cpu_ms;
	show_limit(&b, "limit-wire", "tls", only_wire(&b, &t), &t);
	b.shared_ms += t.own_cpu_ms;
	bench_restore(&b, takes);
	rows_close(b.rows);
	umount2(b.p.images, MNT_DETACH);
	for (int i = 0; i < HOSTS; i++)
		host_end(&b.hosts[i]);
	capture_lab_deinit(&b.lab);
	place_deinit(&b.p);
	return 0;
}
