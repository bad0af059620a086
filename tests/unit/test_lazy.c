// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A job that runs before its memory is there: addresses (no rights needed); then a program that is
 * captured, killed and restored lazily, while those who have its memory are slow, dead or lie; and
 * the same with all of it there before it runs, put in by the same means. Needs root, a keeper, a
 * CRIU, userfaultfd.
 */
#include "tests/unit/capture_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "agent/host/probe.h"
#include "agent/restore/lazy_map.h"
#include "agent/restore/restore.h"
#include "agent/util/io.h"
#include "tests/unit/keeper_fixture.h"
#include "tests/unit/place_lab.h"
#include "tests/unit/slow.h"

enum { JOB_MS = 240000, WHOLE_MS = 240000, FROZEN_MS = 30000, STANDS_TRIES = 40, MIB = 1 << 20 };

/* ---- addresses ---- */

static void assert_at(const struct lazy_map *m, uint64_t page, long block)
{
	uint64_t found = 0;

	assert_int_equal(lazy_map_find(m, page, &found), block >= 0);
	if (block >= 0)
		assert_int_equal(found, block);
}

static void fill_map(struct lazy_map *m)
{
	*m = (struct lazy_map){ 0 };
	assert_int_equal(lazy_map_append(m, 100, 50, 0), 0);
	assert_int_equal(lazy_map_append(m, 150, 50, 50), 0); /* one with the last */
	assert_int_equal(lazy_map_append(m, 300, 10, 110), 0);
	assert_int_equal(m->count, 2);
	assert_int_equal(lazy_map_append(m, 305, 10, 200), -EINVAL);
	assert_int_equal(lazy_map_append(m, 400, 10, 115), -EINVAL);
}

static void test_map_drop(void **state)
{
	struct lazy_run part;
	struct lazy_map m;

	(void)state;
	fill_map(&m);
	assert_at(&m, 99, -1);
	assert_at(&m, 100, 0);
	assert_at(&m, 199, 99);
	assert_at(&m, 200, -1);
	assert_at(&m, 309, 119);
	assert_int_equal(lazy_map_drop(&m, 120, 10), 0);
	assert_at(&m, 119, 19);
	assert_at(&m, 120, -1);
	assert_at(&m, 129, -1);
	assert_at(&m, 130, 30);
	/* Blocks 15...34 of which 20...29 have no place any more. */
	assert_true(lazy_map_place(&m, 15, 20, &part));
	assert_int_equal(part.page, 115);
	assert_int_equal(part.count, 5);
	assert_true(lazy_map_place(&m, 20, 15, &part));
	assert_int_equal(part.page, 130);
	assert_int_equal(part.count, 5);
	assert_int_equal(part.block, 30);
	assert_false(lazy_map_place(&m, 20, 10, &part));
	assert_int_equal(lazy_map_drop(&m, 0, 1000), 0);
	assert_int_equal(m.count, 0);
	assert_false(lazy_map_place(&m, 0, 1000, &part));
	lazy_map_deinit(&m);
}

static void test_map_move(void **state)
{
	struct lazy_map m, copy;
	struct lazy_run part;

	(void)state;
	fill_map(&m);
	assert_int_equal(lazy_map_copy(&m, &copy), 0);
	/* To below all: addresses are not in the order of blocks then. */
	assert_int_equal(lazy_map_move(&m, 140, 10, 20), 0);
	assert_at(&m, 139, 39);
	assert_at(&m, 140, -1);
	assert_at(&m, 10, 40);
	assert_at(&m, 29, 59);
	assert_at(&m, 30, -1);
	assert_at(&m, 160, 60);
	assert_at(&m, 300, 110);
	assert_true(lazy_map_place(&m, 45, 100, &part));
	assert_int_equal(part.page, 15);
	assert_int_equal(part.count, 15);
	/* Unmapped where it lies now, not where it came from. */
	assert_int_equal(lazy_map_drop(&m, 140, 20), 0);
	assert_at(&m, 10, 40);
	assert_int_equal(lazy_map_drop(&m, 10, 5), 0);
	assert_at(&m, 14, -1);
	assert_at(&m, 15, 45);
	assert_at(&copy, 140, 40);
	lazy_map_deinit(&copy);
	lazy_map_deinit(&m);
}

/* ---- a job ---- */

/* How the packs come. */
struct source {
	struct capture_lab *lab;
	atomic_int fetched;
	int good;    /* so many come, then none until `mended` */
	bool lies;   /* instead of nothing, other bytes */
	bool stalls; /* instead of an answer, none for ever */
	bool holds;  /* or none until `mended` */
	atomic_bool mended;
	int delay_ms;
};

struct world {
	struct fixture f, g;
	struct place p;
	struct capture_lab lab;
	struct source source;
	struct capture *c;
	struct manifest *m;
	struct restore_lazy *lazy;
	atomic_int starved, fed, finished;
	int then; /* so many packs come after the job was made ready; 0: all */
	bool direct;
	int ready_count, ready_fetched;
	int tell_fd; /* where a direct restore says that some memory is there; 0: nowhere */
};

static char criu[PATH_MAX];

static const char *missing(void)
{
	const char *what = fixture_missing() ?: fixture_find_criu(criu);

	return what ? what : probe_lazy_memory() ? NULL : "no userfaultfd";
}

#define SKIP_IF_MISSING()                                          \
	do {                                                       \
		if (missing()) {                                   \
			print_message("skipped: %s\n", missing()); \
			skip();                                    \
		}                                                  \
	} while (0)

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	*state = w;
	if (missing())
		return 0;
	place_init(&w->p);
	capture_lab_init(&w->lab);
	w->source.lab = &w->lab;
	w->source.good = INT_MAX;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	if (w->f.base[0])
		fixture_deinit(&w->f);
	if (w->g.k && w->lazy) {
		(void)!keeper_kill(w->g.k);
		restore_lazy_end(w->lazy);
	}
	if (w->g.base[0])
		fixture_deinit(&w->g);
	capture_destroy(w->c);
	manifest_destroy(w->m);
	if (w->p.base[0]) {
		capture_lab_deinit(&w->lab);
		place_deinit(&w->p);
	}
	free(w);
	return 0;
}

/*
 * 48 MiB that no compressor makes small and a hole; in the end everything is compared, by the program
 * and by a child of it that it forks as soon as it goes on. Ranges are dropped and moved meanwhile.
 */
static const char job[] =
	"exec /usr/bin/python3 -c '\n"
	"import ctypes, hashlib, mmap, os, sys, time\n"
	"libc = ctypes.CDLL(None); libc.mremap.restype = ctypes.c_void_p\n"
	"libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]\n"
	"def area(mib):\n"
	"    m = mmap.mmap(-1, mib << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
	"    m.write(os.urandom(mib << 20)); return m\n"
	"def digest(x): return hashlib.sha256(x).hexdigest()\n"
	"a = area(24); b = area(16); c = area(8)\n"
	"hole = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
	"hole[5 << 20] = 7\n"
	"want = digest(a), digest(b[: 4 << 20]), digest(b[8 << 20 :]), digest(c)\n"
	"print(\"ready\", flush=True)\n"
	"while not os.path.exists(\"go\"): time.sleep(0.02)\n"
	"print(\"going\", flush=True)\n"
	"if os.fork() == 0:\n"
	"    print(\"child\", digest(a) == want[0], digest(c) == want[3], flush=True)\n"
	"    os._exit(0)\n"
	"b.madvise(mmap.MADV_DONTNEED, 4 << 20, 4 << 20)\n"
	"keep = ctypes.c_char.from_buffer(c); at = ctypes.addressof(keep)\n"
	"moved = libc.mremap(at, 8 << 20, 16 << 20, 1)\n"
	"os.wait()\n"
	"text = ctypes.string_at(moved, 8 << 20)\n"
	"print(\"moved\", digest(text) == want[3], flush=True)\n"
	"print(\"rest\", digest(b[: 4 << 20]) == want[1], digest(b[8 << 20 :]) == want[2])\n"
	"print(\"zeros\", b[4 << 20 : 8 << 20].count(0) == 4 << 20, hole[5 << 20],\n"
	"      hole[:].count(0) == (8 << 20) - 1)\n"
	"print(\"whole\", digest(a) == want[0], flush=True)\n"
	"os._exit(0)\n'";

static const char expected[] = "ready\ngoing\nchild True True\nmoved True\nrest True True\n"
			       "zeros True 7 True\nwhole True\n";

static int lie(const struct object_hash *hash, uint32_t size, int *ret_memfd)
{
	_cleanup_close_ int fd = memfd_new("lie");

	if (fd < 0 || ftruncate(fd, size) < 0 || pwrite_full(fd, hash, sizeof(*hash), 64) < 0 ||
	    memfd_seal(fd) < 0)
		return -ENOMEM;
	*ret_memfd = take_fd(fd);
	return 0;
}

static int fetch(void *ctx, const struct object_hash *hash, uint32_t size,
		 const struct node_id *holders, uint32_t holder_count, int *ret_memfd)
{
	struct source *s = ctx;

	if (s->delay_ms)
		sleep_ms(s->delay_ms);
	if (atomic_fetch_add(&s->fetched, 1) >= s->good && !s->mended) {
		while (s->stalls)
			pause();
		if (!s->holds)
			return s->lies ? lie(hash, size, ret_memfd) : -EHOSTUNREACH;
		while (!s->mended)
			sleep_ms(10);
	}
	return capture_lab_fetch(s->lab, hash, size, holders, holder_count, ret_memfd);
}

static void on_starved(void *ctx, int error)
{
	struct world *w = ctx;

	atomic_fetch_add(error < 0 ? &w->starved : &w->fed, 1);
}

static void on_finished(void *ctx)
{
	struct world *w = ctx;

	w->finished++;
}

/* Nothing of it has run, and nothing comes in the background yet. */
static int on_ready(void *ctx)
{
	struct world *w = ctx;

	if (w->then && !w->direct)
		w->source.good = w->source.fetched + w->then;
	w->ready_count++;
	w->ready_fetched = w->source.fetched;
	return 0;
}

/* The processes are there, and little of what comes later is. */
static void on_progress(void *ctx, const char *step, uint64_t done, uint64_t total)
{
	struct world *w = ctx;

	if (!w->then || !w->direct || strcmp(step, "memory"))
		return;
	if (w->source.good == INT_MAX)
		w->source.good = w->source.fetched + w->then;
	if (w->tell_fd && done > 0 && done < total)
		(void)!write(w->tell_fd, "", 1);
}

static struct packer_counts checkpoint(struct world *w, struct fixture *f)
{
	_cleanup_free_ struct pack_wanted *wanted = NULL;
	struct capture_request request = { .keeper = f->k,
					   .criu = criu,
					   .native = fixture_capture_binary(),
					   .engine = CAPTURE_CRIU,
					   .spool_dir = w->p.spool,
					   .after = CAPTURE_RUN_ON };
	char reason[CAPTURE_REASON_MAX];
	struct packer_counts counts;
	struct snapshot *s = NULL;

	assert_int_equal(
		packer_wanted(w->lab.packer, NATIVE_WANTED_MAX, &wanted, &request.wanted_count), 0);
	request.wanted = (const struct native_wanted *)wanted;
	if (capture_take(w->c, &request, &s, reason) < 0)
		fail_msg("capture: %s", reason);
	assert_int_equal(capture_lab_try(&w->lab, w->c, s, &counts), 0);
	snapshot_destroy(s);
	return counts;
}

static struct capture *make_capture(const struct world *w, const struct fixture *f)
{
	struct capture_config config = { .state_dir = f->state_dir,
					 .cwd = w->p.base,
					 .carry_cwd = true,
					 .closure_max_bytes = 256 << 20 };
	struct capture *c = NULL;

	assert_int_equal(capture_create(&config, &c), 0);
	return c;
}

/* Runs, is captured when it is ready, and killed. */
static void capture_job(struct world *w)
{
	fixture_init(&w->f);
	w->c = make_capture(w, &w->f);
	place_start(&w->f, &w->p, job);
	place_wait_output(&w->f, &w->p, strlen("ready\n"));
	checkpoint(w, &w->f);
	assert_int_equal(keeper_kill(w->f.k), 0);
	assert_int_equal(keeper_quit(w->f.k), 0);
	keeper_detach(w->f.k);
	w->f.k = NULL;
	fixture_deinit(&w->f);
	w->f.base[0] = '\0';
	capture_destroy(w->c);
	w->c = NULL;
}

static int restore_in(struct world *w)
{
	char reason[RESTORE_REASON_MAX] = "";
	struct restore_request request = { .job_key = &w->lab.job_key,
					   .images_dir = w->p.images,
					   .criu = criu,
					   .fetch = fetch,
					   .fetch_ctx = &w->source,
					   .seed = w->lab.packer,
					   .progress = on_progress,
					   .ready = on_ready,
					   .ctx = w,
					   .ret_lazy = w->direct ? NULL : &w->lazy,
					   .direct = w->direct,
					   .lazy_min_bytes = 1,
					   .lazy_events = { on_starved, on_finished, w } };
	uint64_t began = now_boot_ns();
	int r;

	w->m = capture_lab_manifest(&w->lab);
	request.manifest = w->m;
	request.state_dir = w->g.state_dir;
	request.keeper = w->g.config;
	r = restore_job(&request, &w->g.k, reason);
	print_message("restore: %d %s %llu ms, %d packs so far\n", r, reason,
		      (unsigned long long)((now_boot_ns() - began) / 1000000),
		      (int)w->source.fetched);
	return r;
}

static int restore(struct world *w)
{
	fixture_init(&w->g);
	return restore_in(w);
}

/*
 * By way of the job's own view: what is put into the layer below it from outside, a job that has just
 * looked may never see.
 */
static void say_go(struct world *w)
{
	struct keeper_status status = { 0 };
	char path[PATH_MAX];
	int fd;

	assert_int_equal(keeper_status(w->g.k, &status), 0);
	assert_true(status.main_pid > 0);
	snprintf(path, sizeof(path), "/proc/%d/root%s/go", status.main_pid, w->p.base);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	close(fd);
}

/* Before the job is there, on the host: it goes on as soon as it runs. */
static void write_go(const struct world *w)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/go", w->p.base);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	close(fd);
}

static void end_job(struct world *w)
{
	char *text;

	assert_false(restore_is_partial(w->g.state_dir));
	assert_int_equal(fixture_wait_exit(&w->g, JOB_MS), 0);
	text = place_output(&w->g, &w->p, "out");
	assert_non_null(text);
	assert_string_equal(text, expected);
	free(text);
}

static void end_whole(struct world *w)
{
	assert_int_equal(restore_lazy_wait(w->lazy, WHOLE_MS), 1);
	assert_true(w->finished >= 1);
	restore_lazy_end(w->lazy);
	w->lazy = NULL;
	end_job(w);
}

static void test_comes_later(void **state)
{
	struct world *w = *state;
	int before;

	SKIP_IF_MISSING();
	capture_job(w);
	/* It goes on while its memory trickles in. */
	w->source.delay_ms = 100;
	w->source.holds = true;
	w->then = 2;
	assert_int_equal(restore(w), 0);
	before = w->source.fetched;
	assert_non_null(w->lazy);
	assert_true(restore_is_partial(w->g.state_dir));
	say_go(w);
	w->source.mended = true;
	end_whole(w);
	assert_true(w->source.fetched > before);
	assert_int_equal(w->starved, 0);
}

/* The next checkpoint is an increment: the packer has learned all that came. */
static void assert_seeded(struct world *w)
{
	struct packer_counts counts;

	w->c = make_capture(w, &w->g);
	assert_int_equal(capture_learn_restored(w->c), 0);
	counts = checkpoint(w, &w->g);
	print_message("raw=%llu new=%llu\n", (unsigned long long)counts.raw_bytes,
		      (unsigned long long)counts.new_bytes);
	assert_true(counts.raw_bytes > 48 * MIB);
	/* The program and its libraries lay here already: they were not fetched, so they are new. */
	assert_true(counts.new_bytes < 24 * MIB);
}

static void test_seeds(void **state)
{
	struct world *w = *state;

	SKIP_IF_MISSING();
	capture_job(w);
	assert_int_equal(restore(w), 0);
	assert_int_equal(restore_lazy_wait(w->lazy, WHOLE_MS), 1);
	restore_lazy_end(w->lazy);
	w->lazy = NULL;
	assert_seeded(w);
}

/* Once it may run, nothing more has to come. */
static void test_direct(void **state)
{
	struct world *w = *state;

	SKIP_IF_MISSING();
	w->direct = true;
	capture_job(w);
	assert_int_equal(restore(w), 0);
	assert_int_equal(w->ready_count, 1);
	assert_int_equal(w->source.fetched, w->ready_fetched);
	w->source.good = 0;
	say_go(w);
	end_job(w);
	assert_int_equal(w->source.fetched, w->ready_fetched);
}

static void test_direct_seeds(void **state)
{
	struct world *w = *state;

	SKIP_IF_MISSING();
	w->direct = true;
	capture_job(w);
	assert_int_equal(restore(w), 0);
	assert_seeded(w);
}

/* A part of it never comes: nothing has run, and nothing is left. */
static void fail_direct(struct world *w, bool lies, int error)
{
	char upper[PATH_MAX + 8];

	capture_job(w);
	w->direct = true;
	w->source.lies = lies;
	w->then = 2;
	assert_int_equal(restore(w), error);
	assert_int_equal(w->ready_count, 0);
	assert_true(w->source.fetched > w->source.good);
	assert_null(w->g.k);
	assert_false(restore_is_partial(w->g.state_dir));
	snprintf(upper, sizeof(upper), "%s/upper", w->g.state_dir);
	assert_int_equal(access(upper, F_OK), -1);
}

static void test_direct_holders_away(void **state)
{
	SKIP_IF_MISSING();
	fail_direct(*state, false, -EHOSTUNREACH);
}

static void test_direct_holders_lie(void **state)
{
	SKIP_IF_MISSING();
	fail_direct(*state, true, -EBADMSG);
}

/* decampd restores, and is killed when some memory is there and the rest is not. */
static void kill_restorer(struct world *w)
{
	struct pollfd pfd = { .events = POLLIN };
	int ends[2];
	pid_t pid;
	char byte;

	w->then = 2;
	w->source.stalls = true;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		w->tell_fd = ends[1];
		_exit(restore_in(w) == 0);
	}
	assert_true(pid > 0);
	close(ends[1]);
	pfd.fd = ends[0];
	assert_int_equal(poll(&pfd, 1, slow(WHOLE_MS)), 1);
	assert_int_equal(read(ends[0], &byte, 1), 1);
	close(ends[0]);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void assert_never_ran(struct world *w)
{
	char *text = place_output(&w->g, &w->p, "out");

	assert_string_equal(text, "ready\n");
	free(text);
}

/* What is half there was frozen by the keeper, which lost who brings its memory. It never runs. */
static void assert_stays(struct world *w, bool thaw)
{
	struct keeper_status status = { 0 };

	for (int ms = 0; ms < slow(FROZEN_MS) && !status.frozen; ms += 20) {
		sleep_ms(20);
		assert_int_equal(keeper_status(w->g.k, &status), 0);
	}
	assert_true(status.frozen);
	assert_true(status.main_pid > 0);
	sleep_ms(500);
	assert_never_ran(w);
	if (!thaw)
		return;
	/* CRIU goes on, too, finds that its master is gone, and ends what it has made. */
	assert_int_equal(keeper_thaw(w->g.k), 0);
	assert_true(fixture_wait_dead(status.main_pid, 10000));
	assert_never_ran(w);
}

/* Whatever becomes of the half, the next decampd begins anew. */
static void kill_direct(struct world *w, bool thaw)
{
	w->direct = true;
	capture_job(w);
	fixture_init(&w->g);
	write_go(w);
	kill_restorer(w);
	assert_true(restore_is_partial(w->g.state_dir));
	assert_int_equal(keeper_attach(w->g.run_dir, &w->g.k), 0);
	assert_stays(w, thaw);
	assert_int_equal(keeper_kill(w->g.k), 0);
	assert_int_equal(keeper_quit(w->g.k), 0);
	keeper_detach(take_ptr(w->g.k));
	assert_never_ran(w);

	w->then = 0;
	assert_int_equal(mkdir_parents(w->g.cgroup_dir, 0755), 0);
	assert_int_equal(remove_tree_at(AT_FDCWD, w->p.images), 0);
	assert_int_equal(mkdir(w->p.images, 0700), 0);
	assert_int_equal(restore_in(w), 0);
	assert_int_equal(w->ready_count, 1);
	end_job(w);
}

static void test_direct_killed(void **state)
{
	SKIP_IF_MISSING();
	kill_direct(*state, false);
}

static void test_direct_killed_thawed(void **state)
{
	SKIP_IF_MISSING();
	kill_direct(*state, true);
}

static void starve(struct world *w, bool lies)
{
	char *text;

	capture_job(w);
	w->source.lies = lies;
	w->then = 2;
	assert_int_equal(restore(w), 0);
	say_go(w);
	for (int i = 0; w->starved == 0 && i < 600; i++)
		sleep_ms(100);
	assert_int_equal(w->starved, 1);
	assert_int_equal(restore_lazy_wait(w->lazy, 100), 0);
	sleep_ms(500);
	/* It lives, it waits, and it has seen nothing that is not so. */
	text = place_output(&w->g, &w->p, "out");
	assert_null(strstr(text, "False"));
	assert_null(strstr(text, "whole"));
	free(text);
	w->source.mended = true;
	end_whole(w);
	assert_true(w->fed >= 1);
}

static void test_holders_away(void **state)
{
	SKIP_IF_MISSING();
	starve(*state, false);
}

static void test_holders_lie(void **state)
{
	SKIP_IF_MISSING();
	starve(*state, true);
}

/*
 * decampd ends in the middle: the job stands still, and never takes a missing page for zeros. Killed:
 * whoever waits for a page, or to have an event read, does so from then on.
 */
static void leave(struct world *w, bool orderly)
{
	struct keeper_status status;
	size_t size = 0;
	char *text;

	capture_job(w);
	w->then = 2;
	assert_int_equal(restore(w), 0);
	say_go(w);
	if (orderly)
		assert_int_equal(keeper_freeze(w->g.k, KEEPER_CALL_MS), 0);
	restore_lazy_leave(w->lazy);
	w->lazy = NULL;
	/* It stands as soon as it comes to what is missing. */
	for (int i = 0; i < slow(STANDS_TRIES); i++) {
		size = place_output_size(&w->g, &w->p, "out");
		sleep_ms(500);
		if (place_output_size(&w->g, &w->p, "out") == size)
			break;
	}
	assert_int_equal(keeper_status(w->g.k, &status), 0);
	assert_true(status.running);
	assert_true(status.frozen || !orderly);
	assert_true(restore_is_partial(w->g.state_dir));
	text = place_output(&w->g, &w->p, "out");
	assert_int_equal(strlen(text), size);
	assert_null(strstr(text, "False"));
	assert_null(strstr(text, "whole"));
	free(text);
	assert_int_equal(keeper_kill(w->g.k), 0);
}

static void test_left(void **state)
{
	SKIP_IF_MISSING();
	leave(*state, true);
}

static void test_left_alone(void **state)
{
	SKIP_IF_MISSING();
	leave(*state, false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map_drop),
		cmocka_unit_test(test_map_move),
		cmocka_unit_test_setup_teardown(test_comes_later, setup, teardown),
		cmocka_unit_test_setup_teardown(test_seeds, setup, teardown),
		cmocka_unit_test_setup_teardown(test_direct, setup, teardown),
		cmocka_unit_test_setup_teardown(test_direct_seeds, setup, teardown),
		cmocka_unit_test_setup_teardown(test_direct_holders_away, setup, teardown),
		cmocka_unit_test_setup_teardown(test_direct_holders_lie, setup, teardown),
		cmocka_unit_test_setup_teardown(test_direct_killed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_direct_killed_thawed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_holders_away, setup, teardown),
		cmocka_unit_test_setup_teardown(test_holders_lie, setup, teardown),
		cmocka_unit_test_setup_teardown(test_left, setup, teardown),
		cmocka_unit_test_setup_teardown(test_left_alone, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
