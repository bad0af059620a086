// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The whole way of a job that sleeps: captured by native, packed, killed, restored by a new keeper. It
 * ends when it would have; and where CRIU cannot load our plugin, it begins its sleep anew.
 */
#include "tests/unit/capture_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "agent/restore/restore.h"
#include "agent/util/io.h"
#include "tests/unit/keeper_fixture.h"
#include "tests/unit/place_lab.h"

enum {
	LONG_S = 48, /* the sleep that goes on */
	AFTER_S = 28,
	SLACK_S = 20,
	SHORT_S = 12, /* the one that begins anew */
	SHORT_AFTER_S = 1,
	JOB_MS = 120000,
};

struct world {
	struct fixture f;
	struct place p;
	struct capture_lab lab;
	struct capture *c;
	char criu[PATH_MAX];
	char sleeps[RESTORE_SLEEPS_MAX];
	uint64_t begin_ns, restore_ns[2], end_ns; /* restore: before and after */
	uint64_t capture_ns[2];
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	*state = w;
	if (fixture_missing() || fixture_find_criu(w->criu))
		return 0;
	place_init(&w->p);
	capture_lab_init(&w->lab);
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	if (w->f.base[0])
		fixture_deinit(&w->f);
	capture_destroy(w->c);
	if (w->p.base[0]) {
		capture_lab_deinit(&w->lab);
		umount2(w->p.spool, MNT_DETACH);
		place_deinit(&w->p);
	}
	free(w);
	return 0;
}

static void need_all(struct world *w)
{
	const char *missing = fixture_missing() ?: fixture_find_criu(w->criu);

	if (!missing)
		return;
	print_message("SKIP: %s\n", missing);
	skip();
}

static void capture(struct world *w)
{
	struct capture_config config = { .state_dir = w->f.state_dir,
					 .cwd = w->p.base,
					 .carry_cwd = true,
					 .closure_max_bytes = 256 << 20 };
	struct capture_request request = { .keeper = w->f.k,
					   .criu = w->criu,
					   .native = fixture_capture_binary(),
					   .engine = CAPTURE_NATIVE,
					   .spool_dir = w->p.spool,
					   .after = CAPTURE_RUN_ON };
	char reason[CAPTURE_REASON_MAX] = "";
	struct packer_counts counts;
	struct snapshot *s;

	assert_int_equal(capture_create(&config, &w->c), 0);
	w->capture_ns[0] = now_boot_ns();
	if (capture_take(w->c, &request, &s, reason) < 0)
		fail_msg("%s", reason);
	w->capture_ns[1] = now_boot_ns();
	assert_int_equal(capture_lab_try(&w->lab, w->c, s, &counts), 0);
	snapshot_destroy(s);
}

static void end_first(struct world *w)
{
	assert_int_equal(keeper_kill(w->f.k), 0);
	assert_int_equal(keeper_quit(w->f.k), 0);
	keeper_detach(w->f.k);
	w->f.k = NULL;
	fixture_deinit(&w->f);
	w->f.base[0] = '\0';
}

/* keeper: NULL: the one of this build. */
static void restore(struct world *w, const char *keeper)
{
	struct manifest *m = capture_lab_manifest(&w->lab);
	char reason[RESTORE_REASON_MAX] = "";
	struct restore_request request;

	fixture_init(&w->f);
	if (keeper)
		w->f.config.binary = keeper;
	request = (struct restore_request){ .manifest = m,
					    .job_key = &w->lab.job_key,
					    .state_dir = w->f.state_dir,
					    .images_dir = w->p.images,
					    .criu = w->criu,
					    .keeper = w->f.config,
					    .fetch = capture_lab_fetch,
					    .fetch_ctx = &w->lab,
					    .seed = w->lab.packer,
					    .ret_sleeps = w->sleeps };
	w->restore_ns[0] = now_boot_ns();
	if (restore_job(&request, &w->f.k, reason) < 0)
		fail_msg("%s", reason);
	w->restore_ns[1] = now_boot_ns();
	manifest_destroy(m);
	print_message("restored: timed calls: %s\n", w->sleeps);
}

static void roundtrip(struct world *w, int seconds, int after, const char *keeper)
{
	char script[64];

	fixture_init(&w->f);
	snprintf(script, sizeof(script), "echo begun; exec sleep %d", seconds);
	w->begin_ns = now_boot_ns();
	place_start(&w->f, &w->p, script);
	place_wait_output(&w->f, &w->p, 6);
	sleep_ms(after * 1000);
	capture(w);
	end_first(w);
	restore(w, keeper);
	assert_int_equal(fixture_wait_exit(&w->f, JOB_MS), 0);
	w->end_ns = now_boot_ns();
	print_message("it slept for %.2f s after the restore\n",
		      (double)(w->end_ns - w->restore_ns[1]) / 1e9);
}

static void test_goes_on(void **state)
{
	struct world *w = *state;
	uint64_t total_ns = LONG_S * 1000000000ull, left_ns;

	need_all(w);
	roundtrip(w, LONG_S, AFTER_S, NULL);
	assert_string_equal(w->sleeps, "all 1 go on until their deadlines");
	/* In full it would be later than this. */
	left_ns = w->begin_ns + total_ns - w->capture_ns[0] + SLACK_S * 1000000000ull;
	assert_true(left_ns < total_ns);
	assert_true(w->end_ns < w->restore_ns[1] + left_ns);
	assert_true(w->end_ns > w->restore_ns[0] + w->begin_ns + total_ns - w->capture_ns[1]);
}

static void begins_anew(struct world *w, bool spoilt, const char *what)
{
	char folder[] = "/var/tmp/decamp-test-sleeps-XXXXXX", keeper[64], path[64];

	need_all(w);
	assert_non_null(mkdtemp(folder));
	fixture_init(&w->f);
	snprintf(keeper, sizeof(keeper), "%s/decamp-keeper", folder);
	assert_int_equal(symlink(w->f.config.binary, keeper), 0);
	fixture_deinit(&w->f);
	snprintf(path, sizeof(path), "%s/criu", folder);
	if (spoilt) {
		assert_int_equal(mkdir(path, 0700), 0);
		lab_write("no library", "%s/decamp.so", path);
	}
	roundtrip(w, SHORT_S, SHORT_AFTER_S, keeper);
	(void)!remove_tree_at(AT_FDCWD, folder);
	assert_non_null(strstr(w->sleeps, what));
	assert_true(w->end_ns >= w->restore_ns[0] + SHORT_S * 1000000000ull);
}

static void test_no_plugin(void **state)
{
	begins_anew(*state, false, "begun in full: there is no plugin");
}

static void test_spoilt_plugin(void **state)
{
	begins_anew(*state, true, "begun in full: the plugin cannot be loaded");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_no_plugin),
		TEST(test_spoilt_plugin),
		TEST(test_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
