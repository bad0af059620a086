// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The whole way: a program runs in a keeper, is captured three times through a packer, is killed,
 * and is restored from the last manifest into another folder. What it writes in the end is what it
 * writes undisturbed. Needs root, a keeper, a CRIU.
 */
#include "tests/unit/capture_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "agent/restore/restore.h"
#include "agent/util/io.h"
#include "tests/unit/keeper_fixture.h"
#include "tests/unit/place_lab.h"

enum { JOB_MS = 120000, NOBODY = 65534 };

/* All that a test makes; teardown removes it, however the test ended. */
struct world {
	struct fixture f, g;
	struct place p;
	struct capture_lab lab;
	struct capture *c;
	uid_t uid; /* of the job */
	pid_t adopted;
};

static char criu[PATH_MAX];
static enum capture_engine engine; /* of all captures of a group of tests */

#define SKIP_IF_MISSING()                                                           \
	do {                                                                        \
		const char *missing = fixture_missing() ?: fixture_find_criu(criu); \
		if (missing) {                                                      \
			print_message("skipped: %s\n", missing);                    \
			skip();                                                     \
		}                                                                   \
	} while (0)

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	*state = w;
	if (fixture_missing() || fixture_find_criu(criu))
		return 0;
	place_init(&w->p);
	capture_lab_init(&w->lab);
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	if (w->adopted > 0) {
		kill(w->adopted, SIGKILL);
		waitpid(w->adopted, NULL, 0);
	}
	if (w->f.base[0])
		fixture_deinit(&w->f);
	if (w->g.base[0])
		fixture_deinit(&w->g);
	capture_destroy(w->c);
	if (w->p.base[0]) {
		capture_lab_deinit(&w->lab);
		umount2(w->p.spool, MNT_DETACH);
		place_deinit(&w->p);
	}
	free(w);
	return 0;
}

static void end_fixture(struct fixture *f)
{
	fixture_deinit(f);
	f->base[0] = '\0';
}

/* lab: whose packer is to have it; NULL: nobody. */
static int take_for(struct capture_lab *lab, struct fixture *f, const struct place *p,
		    struct capture *c, enum capture_after after, struct snapshot **ret,
		    char *reason)
{
	_cleanup_free_ struct pack_wanted *wanted = NULL;
	struct capture_request request = {
		.keeper = f->k,
		.criu = criu,
		.native = fixture_capture_binary(),
		.engine = engine,
		.spool_dir = p->spool,
		.after = after,
	};
	struct stat st;

	/* The job's user is the owner of its working directory. */
	if (stat(p->base, &st) < 0) /* "gone" where it was restored */
		st.st_uid = 0;
	request.unprivileged_dump = st.st_uid != 0;
	request.uid = request.gid = st.st_uid;
	if (lab) {
		assert_int_equal(packer_wanted(lab->packer, NATIVE_WANTED_MAX, &wanted,
					       &request.wanted_count),
				 0);
		request.wanted = (const struct native_wanted *)wanted;
	}
	return capture_take(c, &request, ret, reason);
}

static int take(struct fixture *f, const struct place *p, struct capture *c,
		enum capture_after after, struct snapshot **ret, char *reason)
{
	return take_for(NULL, f, p, c, after, ret, reason);
}

static struct packer_counts checkpoint(struct fixture *f, const struct place *p, struct capture *c,
				       struct capture_lab *lab, enum capture_after after)
{
	char reason[CAPTURE_REASON_MAX];
	struct packer_counts counts;
	struct snapshot *s = NULL;
	const struct snapshot_info *info;
	int r;

	/* As the agent does; all files are copied the next time. */
	for (int tries = 0; tries < 3; tries++) {
		snapshot_destroy(take_ptr(s));
		r = take_for(lab, f, p, c, after, &s, reason);
		if (r < 0)
			print_message("capture: %s\n", reason);
		assert_int_equal(r, 0);
		r = capture_lab_try(lab, c, s, &counts);
		if (r != -ESTALE)
			break;
	}
	assert_int_equal(r, 0);
	info = snapshot_info(s);
	assert_string_equal(info->engine, engine == CAPTURE_CRIU ? "criu" : "native");
	print_message("%s: pause_us=%llu files_us=%llu tasks=%u mem=%llu raw=%llu new=%llu\n",
		      info->engine, (unsigned long long)info->pause_us,
		      (unsigned long long)info->files_us, info->tasks,
		      (unsigned long long)info->mem_bytes, (unsigned long long)counts.raw_bytes,
		      (unsigned long long)counts.new_bytes);
	assert_true(info->mem_bytes > 0);
	snapshot_destroy(s);
	return counts;
}

static struct capture *make_capture(const struct fixture *f, const struct place *p)
{
	struct capture_config config = { .state_dir = f->state_dir,
					 .cwd = p->base,
					 .carry_cwd = true,
					 .closure_max_bytes = 256 << 20 };
	struct capture *c = NULL;

	assert_int_equal(capture_create(&config, &c), 0);
	return c;
}

static int restore(struct fixture *f, const struct place *p, struct capture_lab *lab,
		   int (*ready)(void *ctx), char *reason)
{
	struct manifest *m = capture_lab_manifest(lab);
	struct restore_request request = { .manifest = m,
					   .job_key = &lab->job_key,
					   .state_dir = f->state_dir,
					   .images_dir = p->images,
					   .criu = criu,
					   .keeper = f->config,
					   .fetch = capture_lab_fetch,
					   .fetch_ctx = lab,
					   .seed = lab->packer,
					   .ready = ready };
	int r = restore_job(&request, &f->k, reason);

	manifest_destroy(m);
	return r;
}

static void stop(struct fixture *f)
{
	assert_int_equal(keeper_kill(f->k), 0);
	assert_int_equal(keeper_quit(f->k), 0);
	keeper_detach(f->k);
	f->k = NULL;
}

/* What the program writes when nobody disturbs it. */
static char *undisturbed(struct world *w, const char *script)
{
	char path[128], *text;

	lab_write("", "%s/" PLACE_HURRY, w->p.base);
	fixture_init(&w->f);
	place_start_as(&w->f, &w->p, w->uid, script);
	assert_int_equal(fixture_wait_exit(&w->f, JOB_MS), 0);
	text = place_output(&w->f, &w->p, "out");
	end_fixture(&w->f);
	assert_non_null(text);
	snprintf(path, sizeof(path), "%s/" PLACE_HURRY, w->p.base);
	assert_int_equal(unlink(path), 0);
	return text;
}

/* What it writes then is as expected, which is freed. */
static void restore_to_end(struct world *w, struct fixture *f, char *expected)
{
	char *text, reason[RESTORE_REASON_MAX] = "";
	int r;

	fixture_init(f);
	r = restore(f, &w->p, &w->lab, NULL, reason);
	if (r < 0)
		print_message("restore: %s\n", reason);
	assert_int_equal(r, 0);
	assert_true(place_hurry(f, &w->p));
	assert_int_equal(fixture_wait_exit(f, JOB_MS), 0);
	text = place_output(f, &w->p, "out");
	assert_non_null(text);
	assert_string_equal(text, expected);
	free(text);
	free(expected);
}

/* gone: the submission directory does not exist where it is restored. */
static void roundtrip(struct world *w, const char *script, const char *input, size_t step,
		      bool gone)
{
	struct packer_counts first, second;
	char *expected;

	SKIP_IF_MISSING();
	if (input)
		lab_write(input, "%s/input", w->p.base);
	expected = undisturbed(w, script);
	fixture_init(&w->f);
	w->c = make_capture(&w->f, &w->p);
	place_start_as(&w->f, &w->p, w->uid, script);
	place_wait_output(&w->f, &w->p, step);
	first = checkpoint(&w->f, &w->p, w->c, &w->lab, CAPTURE_RUN_ON);
	place_wait_output(&w->f, &w->p, 2 * step);
	second = checkpoint(&w->f, &w->p, w->c, &w->lab, CAPTURE_RUN_ON);
	/* xz writes all of its memory all the time. */
	assert_true(strstr(script, "xz") || second.new_bytes < first.new_bytes / 2);
	place_wait_output(&w->f, &w->p, 3 * step);
	checkpoint(&w->f, &w->p, w->c, &w->lab, CAPTURE_RUN_ON);
	/* On, so that files are ahead of the checkpoint: restore must roll them back. */
	place_wait_output(&w->f, &w->p, 4 * step);
	stop(&w->f);
	end_fixture(&w->f);
	if (gone)
		assert_int_equal(remove_tree_at(AT_FDCWD, w->p.base), 0);
	restore_to_end(w, &w->g, expected);
}

static const char python_job[] =
	"exec /usr/bin/python3 -c '\n" PLACE_REST_PYTHON
	"x = 1; hist = {}; f = open(\"out\", \"a\")\n"
	"for i in range(2000):\n"
	"    for _ in range(2000): x = (x * 6364136223846793005 + 1442695040888963407) % 2**64\n"
	"    hist[x % 97] = hist.get(x % 97, 0) + 1\n"
	"    f.write(\"%d %d %d\\n\" % (i, x, len(hist))); f.flush(); rest()\n"
	"f.write(open(\"input\").read()); f.close()\n'";

static void test_python(void **state)
{
	roundtrip(*state, python_job, "read at the end\n", 300, false);
}

static void test_python_elsewhere(void **state)
{
	roundtrip(*state, python_job, "read at the end\n", 300, true);
}

/* CRIU runs inside, but not with what it finds there: here a library of its own is empty. */
static void test_other_libraries(void **state)
{
	static const char spoil[] = "for f in /usr/lib/*/libprotobuf-c.so.1; do : >$f; done; ";
	char script[2048];

	snprintf(script, sizeof(script), "%s%s", spoil, python_job);
	roundtrip(*state, script, "read at the end\n", 300, false);
}

/* Restored, captured there, restored again: what was carried along the first time still is. */
static void test_two_moves(void **state)
{
	struct world *w = *state;
	char *expected, reason[RESTORE_REASON_MAX] = "";
	struct packer_counts counts;

	SKIP_IF_MISSING();
	lab_write("read at the end\n", "%s/input", w->p.base);
	expected = undisturbed(w, python_job);
	fixture_init(&w->f);
	w->c = make_capture(&w->f, &w->p);
	place_start(&w->f, &w->p, python_job);
	place_wait_output(&w->f, &w->p, 300);
	checkpoint(&w->f, &w->p, w->c, &w->lab, CAPTURE_STAY_FROZEN);
	stop(&w->f);
	end_fixture(&w->f);
	capture_destroy(w->c);
	w->c = NULL;

	assert_int_equal(remove_tree_at(AT_FDCWD, w->p.base), 0);
	fixture_init(&w->g);
	assert_int_equal(restore(&w->g, &w->p, &w->lab, NULL, reason), 0);
	w->c = make_capture(&w->g, &w->p);
	assert_int_equal(capture_learn_restored(w->c), 0);
	place_wait_output(&w->g, &w->p, 900);
	counts = checkpoint(&w->g, &w->p, w->c, &w->lab, CAPTURE_RUN_ON);
	/* The packer was seeded: only what changed is new. */
	assert_true(counts.new_bytes < 2 << 20);
	place_wait_output(&w->g, &w->p, 1200);
	stop(&w->g);
	end_fixture(&w->g);

	assert_int_equal(remove_tree_at(AT_FDCWD, w->p.images), 0);
	assert_int_equal(mkdir(w->p.images, 0700), 0);
	restore_to_end(w, &w->f, expected);
}

/* Its vdso jumps into the kernel's, as under another kernel: here by a fault of CRIU's tests. */
static void test_other_vdso(void **state)
{
	char text[PATH_MAX + 64], real[PATH_MAX], path[64];

	SKIP_IF_MISSING();
	memcpy(real, criu, sizeof(real));
	snprintf(path, sizeof(path), "/var/tmp/decamp-test-criu-%d", getpid());
	snprintf(text, sizeof(text), "#!/bin/sh\nCRIU_FAULT=127 exec %s \"$@\"\n", real);
	lab_write(text, "%s", path);
	assert_int_equal(chmod(path, 0755), 0);
	setenv("DECAMP_CRIU", path, 1);
	test_two_moves(state);
	setenv("DECAMP_CRIU", real, 1);
	unlink(path);
}

/* Not root's, and dumped without the right to look at other users' limits. */
static void test_user(void **state)
{
	struct world *w = *state;

	SKIP_IF_MISSING();
	w->uid = NOBODY;
	assert_int_equal(chown(w->p.base, NOBODY, NOBODY), 0);
	assert_int_equal(chmod(w->p.base, 0755), 0);
	roundtrip(w, python_job, "read at the end\n", 300, false);
}

static void wait_adopted(const struct place *p, off_t size)
{
	char out[128];
	struct stat st = { 0 };

	snprintf(out, sizeof(out), "%s/out", p->base);
	for (int i = 0; (stat(out, &st) < 0 || st.st_size < size) && i < 3000; i++)
		sleep_ms(10);
	assert_true(st.st_size >= size);
}

static void run_adopted(const struct place *p, const char *script)
{
	char out[128];
	int fd;

	snprintf(out, sizeof(out), "%s/out", p->base);
	setsid();
	fd = open(out, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0 || chdir(p->base) < 0)
		_exit(1);
	close(0);
	if (open("/dev/null", O_RDONLY) != 0)
		_exit(1);
	close_range(3, ~0U, 0);
	setenv("PACE", "0.04", 1);
	execl("/bin/sh", "sh", "-c", script, NULL);
	_exit(1);
}

/* Taken over while it runs on the host: its output file is rolled back all the same. */
static void test_adopted(void **state)
{
	static const char script[] =
		"i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; " PLACE_REST
		"; done; cat input";
	struct world *w = *state;
	struct capture_config config = {
		.cwd = w->p.base, .carry_cwd = true, .closure_max_bytes = 1 << 20, .adopted = true
	};
	char *expected;

	SKIP_IF_MISSING();
	lab_write("read at the end\n", "%s/input", w->p.base);
	expected = undisturbed(w, script);
	fixture_init(&w->f);
	w->adopted = fork();
	if (w->adopted == 0)
		run_adopted(&w->p, script);
	wait_adopted(&w->p, 10);
	w->f.config.adopted = true;
	w->f.config.adopt_pid = w->adopted;
	assert_int_equal(keeper_start(&w->f.config, &w->f.k), 0);
	config.state_dir = w->f.state_dir;
	assert_int_equal(capture_create(&config, &w->c), 0);
	wait_adopted(&w->p, 30);
	checkpoint(&w->f, &w->p, w->c, &w->lab, CAPTURE_RUN_ON);
	wait_adopted(&w->p, 60);
	checkpoint(&w->f, &w->p, w->c, &w->lab, CAPTURE_RUN_ON);
	wait_adopted(&w->p, 90);
	assert_int_equal(kill(w->adopted, SIGKILL), 0);
	assert_int_equal(waitpid(w->adopted, NULL, 0), w->adopted);
	w->adopted = 0;
	end_fixture(&w->f);
	restore_to_end(w, &w->g, expected);
}

/* A file of /dev/shm, mapped by two processes, with more in it than what is mapped. */
static void test_shm(void **state)
{
	roundtrip(*state,
		  "exec /usr/bin/python3 -c '\n" PLACE_REST_PYTHON "import mmap, struct\n"
		  "os.mkdir(\"/dev/shm/dir\")\n"
		  "open(\"/dev/shm/dir/later\", \"w\").write(\"closed file\\n\")\n"
		  "f = open(\"/dev/shm/counter\", \"w+b\"); f.truncate(8192)\n"
		  "m = mmap.mmap(f.fileno(), 4096)\n"
		  "if os.fork() == 0:\n"
		  "    for i in range(2000):\n"
		  "        m[0:8] = struct.pack(\"q\", i); rest()\n"
		  "    m[8:9] = b\"x\"; os._exit(0)\n"
		  "last = -1\n"
		  "while m[8:9] != b\"x\" or last < 1999:\n"
		  "    now = struct.unpack(\"q\", m[0:8])[0]\n"
		  "    while last < now: last += 1; print(last, flush=True)\n"
		  "    time.sleep(0.005)\n"
		  "    if last == 1999 and m[8:9] == b\"x\": break\n"
		  "print(open(\"/dev/shm/dir/later\").read())\n'",
		  NULL, 80, false);
}

static void test_pipeline(void **state)
{
	roundtrip(*state,
		  "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i $((i*i)); " PLACE_REST
		  "; done | "
		  "awk '{ s += $2; print $1, s; fflush() }' | tee copy",
		  NULL, 100, false);
}

static void test_xz(void **state)
{
	/* The checksum line comes at the end: progress is what the loop beside it writes. */
	roundtrip(*state,
		  "seq 1 1500000 | xz -T2 -1 -c > big.xz & i=0; "
		  "while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; " PLACE_REST "; done; wait; "
		  "xz -dc big.xz | cksum; cksum < big.xz",
		  NULL, 12, true);
}

static int refuse(void *ctx)
{
	(void)ctx;
	return -ESTALE;
}

static void test_refused(void **state)
{
	struct world *w = *state;
	char reason[RESTORE_REASON_MAX], path[256];
	size_t size;

	SKIP_IF_MISSING();
	fixture_init(&w->f);
	w->c = make_capture(&w->f, &w->p);
	place_start(&w->f, &w->p, "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done");
	place_wait_output(&w->f, &w->p, 20);
	checkpoint(&w->f, &w->p, w->c, &w->lab, CAPTURE_STAY_FROZEN);
	/* Frozen means frozen, right from the checkpoint on. */
	size = place_output_size(&w->f, &w->p, "out");
	sleep_ms(300);
	assert_int_equal(place_output_size(&w->f, &w->p, "out"), size);
	assert_int_equal(keeper_thaw(w->f.k), 0);
	place_wait_output(&w->f, &w->p, size + 10);
	stop(&w->f);
	end_fixture(&w->f);

	fixture_init(&w->g);
	assert_int_equal(restore(&w->g, &w->p, &w->lab, refuse, reason), -ESTALE);
	snprintf(path, sizeof(path), "%s/upper", w->g.state_dir);
	assert_int_equal(access(path, F_OK), -1);
	w->lab.fail = -EHOSTUNREACH;
	assert_int_equal(remove_tree_at(AT_FDCWD, w->p.images), 0);
	assert_int_equal(mkdir(w->p.images, 0700), 0);
	assert_int_equal(restore(&w->g, &w->p, &w->lab, NULL, reason), -EHOSTUNREACH);
	assert_int_equal(access(path, F_OK), -1);
}

static const char counting_job[] = "i=0; while [ $i -lt 3000 ]; do "
				   "i=$((i+1)); echo $i; " PLACE_REST "; done";

/* A job that counts; after `fn` spoilt a capture, its output must be what it always is. */
static void spoilt(struct world *w,
		   void (*fn)(struct fixture *f, struct place *p, struct capture *c))
{
	char *expected, *text;

	SKIP_IF_MISSING();
	expected = undisturbed(w, counting_job);
	fixture_init(&w->f);
	w->c = make_capture(&w->f, &w->p);
	place_start(&w->f, &w->p, counting_job);
	place_wait_output(&w->f, &w->p, 30);
	fn(&w->f, &w->p, w->c);
	assert_true(place_hurry(&w->f, &w->p));
	assert_int_equal(fixture_wait_exit(&w->f, JOB_MS), 0);
	text = place_output(&w->f, &w->p, "out");
	assert_string_equal(text, expected);
	free(text);
	free(expected);
}

static void expect_failure(struct fixture *f, struct place *p, struct capture *c, int error,
			   const char *word)
{
	char reason[CAPTURE_REASON_MAX] = "";
	struct snapshot *s = NULL;
	int r = take(f, p, c, CAPTURE_RUN_ON, &s, reason);

	print_message("expected: %s\n", reason);
	if (error)
		assert_int_equal(r, error);
	assert_true(r < 0);
	assert_null(s);
	assert_non_null(strstr(reason, word));
}

static void no_space(struct fixture *f, struct place *p, struct capture *c)
{
	assert_int_equal(mount("test", p->spool, "tmpfs", 0, "size=64k"), 0);
	expect_failure(f, p, c, -ENOSPC, "free some space");
	assert_int_equal(umount2(p->spool, MNT_DETACH), 0);
}

static void no_space_for_files(struct fixture *f, struct place *p, struct capture *c)
{
	char path[PATH_MAX], file[128];
	static char zeros[1 << 20];

	snprintf(file, sizeof(file), "%s/big", p->base);
	fixture_path(f, file, path);
	memset(zeros, 'z', sizeof(zeros) - 1);
	for (int i = 0; i < 24; i++)
		lab_write(zeros, "%s%d", path, i);
	assert_int_equal(mount("test", p->spool, "tmpfs", 0, "size=16m"), 0);
	expect_failure(f, p, c, -ENOSPC, "big");
	assert_int_equal(umount2(p->spool, MNT_DETACH), 0);
}

static void no_spool(struct fixture *f, struct place *p, struct capture *c)
{
	assert_int_equal(rmdir(p->spool), 0);
	expect_failure(f, p, c, -ENOENT, p->spool);
	assert_int_equal(mkdir(p->spool, 0700), 0);
	assert_int_equal(mount("test", p->spool, "tmpfs", MS_RDONLY, NULL), 0);
	expect_failure(f, p, c, -EROFS, p->spool);
	assert_int_equal(umount2(p->spool, MNT_DETACH), 0);
}

static void too_big(struct fixture *f, struct place *p, struct capture *c)
{
	struct capture_config config = { .state_dir = f->state_dir,
					 .cwd = p->base,
					 .carry_cwd = true,
					 .closure_max_bytes = 100000 };
	static char text[200001];
	struct capture *small = NULL;
	char path[128];

	(void)c;
	memset(text, 't', sizeof(text) - 1);
	snprintf(path, sizeof(path), "%s/heavy", p->base);
	assert_int_equal(mkdir(path, 0755), 0);
	lab_write(text, "%s/heavy/file", p->base);
	assert_int_equal(capture_create(&config, &small), 0);
	expect_failure(f, p, small, -EFBIG, "heavy");
	capture_destroy(small);
}

/* Whenever it dies, the job runs on and the next capture works. */
static void killed_native(struct fixture *f, struct place *p, struct capture *c)
{
	for (int ms = 0; ms <= 20; ms += 4) {
		char reason[CAPTURE_REASON_MAX];
		struct snapshot *s = NULL;
		pid_t killer;
		int r;

		/* One capture so that there is a tracer, then one that loses it on the way. */
		assert_int_equal(take(f, p, c, CAPTURE_RUN_ON, &s, reason), 0);
		snapshot_destroy(take_ptr(s));
		killer = fixture_kill_child_later("decamp-capture", ms);
		r = take(f, p, c, CAPTURE_RUN_ON, &s, reason);
		assert_int_equal(waitpid(killer, NULL, 0), killer);
		if (r < 0)
			print_message("after %d ms: %s\n", ms, reason);
		else
			snapshot_destroy(s);
	}
}

static void test_killed_native(void **state)
{
	spoilt(*state, killed_native);
}

/* CRIU wrapped: it kills itself a moment after it began. */
static void killed_criu(struct fixture *f, struct place *p, struct capture *c)
{
	char wrapper[160], saved[PATH_MAX];

	snprintf(wrapper, sizeof(wrapper), "%s.criu", p->base);
	snprintf(saved, sizeof(saved), "%s", criu);
	for (int ms = 5; ms <= 60; ms += 11) {
		char script[PATH_MAX + 256];

		snprintf(script, sizeof(script),
			 "#!/bin/sh\n(sleep 0.%03d; kill -9 $$) &\nexec %s \"$@\"\n", ms, saved);
		lab_write(script, "%s", wrapper);
		assert_int_equal(chmod(wrapper, 0755), 0);
		snprintf(criu, sizeof(criu), "%s", wrapper);
		char reason[CAPTURE_REASON_MAX];
		struct snapshot *s = NULL;

		if (take(f, p, c, CAPTURE_RUN_ON, &s, reason) < 0)
			print_message("after %d ms: %s\n", ms, reason);
		snapshot_destroy(s);
	}
	snprintf(criu, sizeof(criu), "%s", saved);
	unlink(wrapper);
}

static void test_no_space(void **state)
{
	spoilt(*state, no_space);
}

static void test_no_space_for_files(void **state)
{
	spoilt(*state, no_space_for_files);
}

static void test_no_spool(void **state)
{
	spoilt(*state, no_spool);
}

static void test_too_big(void **state)
{
	spoilt(*state, too_big);
}

/*
 * A process in which CRIU just makes a call of its own dies of SIGTRAP with it: some 10 us for each of
 * its calls, see docs/guarantees.md. False: this was it.
 */
static bool survives_criu(struct world *w, const char *expected)
{
	char *text;
	bool trapped;
	int status;

	fixture_init(&w->f);
	w->c = make_capture(&w->f, &w->p);
	place_start(&w->f, &w->p, counting_job);
	place_wait_output(&w->f, &w->p, 30);
	killed_criu(&w->f, &w->p, w->c);
	(void)place_hurry(&w->f, &w->p); /* it may be trapped */
	status = fixture_wait_exit(&w->f, JOB_MS);
	text = place_output(&w->f, &w->p, "out");
	trapped = WTERMSIG(status) == SIGTRAP || (text && strstr(text, "Trace/breakpoint trap"));
	if (!trapped) {
		assert_int_equal(status, 0);
		assert_string_equal(text, expected);
	}
	free(text);
	end_fixture(&w->f);
	capture_destroy(take_ptr(w->c));
	return !trapped;
}

static void test_killed_criu(void **state)
{
	struct world *w = *state;
	int tries = 8;
	char *expected;

	SKIP_IF_MISSING();
	expected = undisturbed(w, counting_job);
	while (tries > 0 && !survives_criu(w, expected))
		print_message("trapped: CRIU died in a call of its own; again, %d left\n", --tries);
	free(expected);
	assert_true(tries > 0);
}

static void test_vanished(void **state)
{
	struct world *w = *state;
	char reason[CAPTURE_REASON_MAX] = "";
	struct snapshot *s = NULL;

	SKIP_IF_MISSING();
	fixture_init(&w->f);
	w->c = make_capture(&w->f, &w->p);
	place_start(&w->f, &w->p, "echo begun; sleep 0.3");
	place_wait_output(&w->f, &w->p, 5);
	for (int r = 0; r == 0;) {
		r = take(&w->f, &w->p, w->c, CAPTURE_RUN_ON, &s, reason);
		snapshot_destroy(s);
		s = NULL;
		if (r < 0)
			assert_int_equal(r, -ESRCH);
	}
	print_message("expected: %s\n", reason);
	assert_int_equal(fixture_wait_exit(&w->f, JOB_MS), 0);
}

static void test_orphan(void **state)
{
	struct world *w = *state;

	SKIP_IF_MISSING();
	fixture_init(&w->f);
	w->c = make_capture(&w->f, &w->p);
	place_start(&w->f, &w->p, "(sleep 1000 &) ; echo begun; sleep 1000");
	place_wait_output(&w->f, &w->p, 5);
	expect_failure(&w->f, &w->p, w->c, -EOPNOTSUPP, "has left its main process");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* An argument "criu" or "native" runs that group alone. */
int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(test_python),
		TEST(test_python_elsewhere),
		TEST(test_other_libraries),
		TEST(test_two_moves),
		TEST(test_other_vdso),
		TEST(test_user),
		TEST(test_adopted),
		TEST(test_shm),
		TEST(test_pipeline),
		TEST(test_xz),
		TEST(test_refused),
		TEST(test_no_space),
		TEST(test_no_space_for_files),
		TEST(test_no_spool),
		TEST(test_too_big),
		TEST(test_killed_criu),
		TEST(test_vanished),
		TEST(test_orphan),
	};

	const struct CMUnitTest native_tests[] = {
		TEST(test_python),
		TEST(test_python_elsewhere),
		TEST(test_other_libraries),
		TEST(test_two_moves),
		TEST(test_other_vdso),
		TEST(test_user),
		TEST(test_adopted),
		TEST(test_shm),
		TEST(test_pipeline),
		TEST(test_xz),
		TEST(test_refused),
		TEST(test_no_space),
		TEST(test_no_space_for_files),
		TEST(test_killed_native),
		TEST(test_vanished),
		TEST(test_orphan),
	};
	int failed = 0;

	engine = CAPTURE_CRIU;
	if (argc < 2 || !strcmp(argv[1], "criu"))
		failed += cmocka_run_group_tests_name("criu", tests, NULL, NULL);
	engine = CAPTURE_NATIVE;
	if (argc < 2 || !strcmp(argv[1], "native"))
		failed += cmocka_run_group_tests_name("native", native_tests, NULL, NULL);
	return failed;
}
