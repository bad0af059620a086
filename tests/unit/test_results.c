// SPDX-License-Identifier: LGPL-2.1-or-later
/* The results of a finished job come home: what is written, set aside, removed, left alone. */
#include "tests/unit/capture_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <sys/xattr.h>

#include "agent/restore/restore.h"
#include "agent/util/io.h"
#include "tests/unit/keeper_fixture.h"

enum { NOBODY = 65534, OLD_MS = 60 };

struct world {
	char base[64];
	char state[96], spool[96], cwd[96], upper[208];
	struct capture_lab lab;
	struct manifest *m;
	uint64_t submit_ms;
	uid_t uid;
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	strcpy(w->base, "/var/tmp/decamp-results-XXXXXX");
	assert_non_null(mkdtemp(w->base));
	assert_int_equal(chmod(w->base, 0755), 0);
	w->uid = geteuid() == 0 ? NOBODY : geteuid();
	snprintf(w->state, sizeof(w->state), "%s/state", w->base);
	snprintf(w->spool, sizeof(w->spool), "%s/spool", w->base);
	snprintf(w->cwd, sizeof(w->cwd), "%s/cwd", w->base);
	/* What the job sees at cwd. */
	snprintf(w->upper, sizeof(w->upper), "%s/upper/0%s", w->state, w->cwd);
	assert_int_equal(mkdir_parents(w->upper, 0755), 0);
	assert_int_equal(mkdir(w->spool, 0700), 0);
	assert_int_equal(mkdir(w->cwd, 0755), 0);
	assert_int_equal(chown(w->cwd, w->uid, (gid_t)-1), 0);
	capture_lab_init(&w->lab);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	manifest_destroy(w->m);
	capture_lab_deinit(&w->lab);
	assert_int_equal(remove_tree_at(AT_FDCWD, w->base), 0);
	free(w);
	return 0;
}

/* What is at home now is older than the submission. */
static void submit(struct world *w)
{
	sleep_ms(OLD_MS);
	w->submit_ms = now_wall_ms();
	sleep_ms(OLD_MS);
}

static uid_t owner;

static int own(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)type;
	(void)ftw;
	if (strstr(path, "carried") || S_ISCHR(st->st_mode))
		return 0;
	return lchown(path, owner, (gid_t)-1);
}

/* A job writes as its user; what was carried along for it may be root's. */
static void finish_job(struct world *w)
{
	struct capture_config config = { .state_dir = w->state, .cwd = w->cwd };
	struct capture_request request = { .spool_dir = w->spool, .files_only = true };
	char reason[CAPTURE_REASON_MAX];
	struct snapshot *s;
	struct capture *c;

	owner = w->uid;
	assert_int_equal(nftw(w->upper, own, 16, FTW_PHYS), 0);
	assert_int_equal(capture_create(&config, &c), 0);
	assert_int_equal(capture_take(c, &request, &s, reason), 0);
	capture_lab_pack(&w->lab, c, s);
	snapshot_destroy(s);
	capture_destroy(c);
	manifest_destroy(w->m);
	w->m = capture_lab_manifest(&w->lab);
}

static struct results_report bring_home(struct world *w)
{
	/* The child wipes its copy of the key, so it is not one of a constant. */
	struct secret_key key = w->lab.job_key;
	struct results_request request = { .manifest = w->m,
					   .job_key = &key,
					   .fetch = capture_lab_fetch,
					   .fetch_ctx = &w->lab,
					   .cwd = w->cwd,
					   .side_folder = "job.decamp-results",
					   .uid = w->uid,
					   .gid = w->uid == NOBODY ? NOBODY : getegid(),
					   .submit_wall_ms = w->submit_ms };
	struct results_report report;

	assert_int_equal(restore_results(&request, &report), 0);
	assert_memory_equal(&key, &w->lab.job_key, sizeof(key));
	return report;
}

static void expect(const struct world *w, const char *name, const char *content)
{
	char *text = lab_read("%s/%s", w->cwd, name);

	if (!text && content)
		print_message("%s is missing\n", name);
	assert_int_equal(!text, !content);
	if (content)
		assert_string_equal(text, content);
	free(text);
}

static void home(const struct world *w, const char *name, const char *content)
{
	lab_write(content, "%s/%s", w->cwd, name);
}

static void job(const struct world *w, const char *name, const char *content)
{
	lab_write(content, "%s/%s", w->upper, name);
}

static void job_folder(const struct world *w, const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", w->upper, name);
	assert_int_equal(mkdir_parents(path, 0755), 0);
}

static void job_removes(const struct world *w, const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", w->upper, name);
	assert_int_equal(mknod(path, S_IFCHR, 0), 0);
}

static void home_folder(const struct world *w, const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", w->cwd, name);
	assert_int_equal(mkdir(path, 0755), 0);
	assert_int_equal(chown(path, w->uid, (gid_t)-1), 0);
}

static void test_new_and_old(void **state)
{
	struct world *w = *state;
	char path[PATH_MAX];
	struct results_report report;
	struct stat st;

	home(w, "old", "before");
	submit(w);
	job(w, "old", "after");
	job(w, "new", "result");
	job_folder(w, "deep/er");
	job(w, "deep/er/file", "deep");
	snprintf(path, sizeof(path), "%s/link", w->upper);
	assert_int_equal(symlink("new", path), 0);
	snprintf(path, sizeof(path), "%s/new", w->upper);
	assert_int_equal(chmod(path, 06750), 0);
	finish_job(w);
	report = bring_home(w);
	assert_int_equal(report.written, 4);
	assert_int_equal(report.set_aside + report.failed + report.deleted, 0);
	expect(w, "old", "after");
	expect(w, "new", "result");
	expect(w, "link", "result");
	expect(w, "deep/er/file", "deep");
	snprintf(path, sizeof(path), "%s/new", w->cwd);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_uid, w->uid);
	assert_int_equal(st.st_mode, S_IFREG | 0750);
	/* Once more, as after a crash in the middle: nothing changes. */
	report = bring_home(w);
	assert_int_equal(report.written, 4);
	assert_int_equal(report.set_aside, 0);
}

static void test_changed_at_home(void **state)
{
	struct world *w = *state;
	struct results_report report;

	home(w, "file", "before");
	home(w, "equal", "before");
	submit(w);
	home(w, "file", "edited here");
	home(w, "equal", "the same");
	job(w, "file", "result");
	job(w, "equal", "the same");
	finish_job(w);
	report = bring_home(w);
	assert_int_equal(report.written, 1);
	assert_int_equal(report.set_aside, 1);
	assert_non_null(strstr(report.first_set_aside, "/file"));
	expect(w, "file", "edited here");
	expect(w, "job.decamp-results/file", "result");
	report = bring_home(w);
	assert_int_equal(report.set_aside, 1);
	expect(w, "job.decamp-results/file.1", NULL);
	/* A side file that somebody changed is not overwritten either. */
	home(w, "job.decamp-results/file", "edited too");
	report = bring_home(w);
	expect(w, "job.decamp-results/file", "edited too");
	expect(w, "job.decamp-results/file.1", "result");
}

static void test_removed(void **state)
{
	struct world *w = *state;
	struct results_report report;

	home(w, "old", "old");
	home(w, "kept", "old");
	home_folder(w, "folder");
	home(w, "folder/a", "a");
	home_folder(w, "mixed");
	home(w, "mixed/a", "a");
	submit(w);
	home(w, "kept", "edited here");
	home(w, "mixed/b", "made here");
	job_removes(w, "old");
	job_removes(w, "kept");
	job_removes(w, "folder");
	job_removes(w, "mixed");
	job_removes(w, "never there");
	finish_job(w);
	report = bring_home(w);
	assert_int_equal(report.deleted, 2);
	assert_int_equal(report.failed, 0);
	expect(w, "old", NULL);
	expect(w, "folder/a", NULL);
	expect(w, "kept", "edited here");
	expect(w, "mixed/a", "a");
	expect(w, "mixed/b", "made here");
}

static void test_made_anew(void **state)
{
	struct world *w = *state;
	char path[PATH_MAX];
	struct results_report report;

	if (geteuid() != 0) {
		print_message("skipped: needs root\n");
		skip();
	}
	home_folder(w, "folder");
	home(w, "folder/old", "old");
	home(w, "folder/both", "old");
	submit(w);
	job_folder(w, "folder");
	job(w, "folder/both", "new");
	snprintf(path, sizeof(path), "%s/folder", w->upper);
	assert_int_equal(setxattr(path, "trusted.overlay.opaque", "y", 1, 0), 0);
	finish_job(w);
	report = bring_home(w);
	assert_int_equal(report.deleted, 1);
	expect(w, "folder/old", NULL);
	expect(w, "folder/both", "new");
}

static void test_not_allowed(void **state)
{
	struct world *w = *state;
	char path[PATH_MAX];
	struct results_report report;

	if (geteuid() != 0) {
		print_message("skipped: needs root\n");
		skip();
	}
	home_folder(w, "roots");
	snprintf(path, sizeof(path), "%s/roots", w->cwd);
	assert_int_equal(chown(path, 0, 0), 0);
	submit(w);
	job_folder(w, "roots");
	job(w, "roots/file", "result");
	finish_job(w);
	report = bring_home(w);
	assert_int_equal(report.set_aside, 1);
	expect(w, "roots/file", NULL);
	expect(w, "job.decamp-results/roots/file", "result");
	/* Not even beside it: said, not lost silently. */
	assert_int_equal(remove_tree_at(AT_FDCWD, w->cwd), 0);
	assert_int_equal(mkdir(w->cwd, 0755), 0);
	job_removes(w, "roots/other");
	finish_job(w);
	report = bring_home(w);
	assert_int_equal(report.failed, 1);
	assert_int_equal(report.set_aside + report.written + report.deleted, 0);
}

/* A link that leads to what only root may write: the child is not root. */
static void test_symlink_trap(void **state)
{
	struct world *w = *state;
	char path[PATH_MAX], target[PATH_MAX];
	struct results_report report;

	if (geteuid() != 0) {
		print_message("skipped: needs root\n");
		skip();
	}
	snprintf(target, sizeof(target), "%s/secret", w->base);
	assert_int_equal(mkdir(target, 0755), 0);
	lab_write("root's", "%s/file", target);
	snprintf(path, sizeof(path), "%s/dir", w->cwd);
	assert_int_equal(symlink(target, path), 0);
	submit(w);
	job_folder(w, "dir");
	job(w, "dir/file", "evil");
	finish_job(w);
	report = bring_home(w);
	assert_int_equal(report.set_aside, 1);
	char *text = lab_read("%s/file", target);
	assert_string_equal(text, "root's");
	free(text);
}

static void test_home_gone(void **state)
{
	struct world *w = *state;
	struct results_report report;

	submit(w);
	job(w, "file", "result");
	finish_job(w);
	assert_int_equal(rmdir(w->cwd), 0);
	/* As the user, who may not make it below a folder of root's. */
	report = bring_home(w);
	if (geteuid() == 0) {
		assert_int_equal(report.failed, 1);
		assert_int_equal(chmod(w->base, 0777), 0);
		report = bring_home(w);
	}
	assert_int_equal(report.written, 1);
	expect(w, "file", "result");
}

static void test_links_and_holes(void **state)
{
	struct world *w = *state;
	char a[PATH_MAX], b[PATH_MAX];
	struct results_report report;
	struct stat st;
	int fd;

	submit(w);
	snprintf(a, sizeof(a), "%s/a", w->upper);
	snprintf(b, sizeof(b), "%s/b", w->upper);
	job(w, "a", "linked");
	assert_int_equal(link(a, b), 0);
	snprintf(a, sizeof(a), "%s/sparse", w->upper);
	fd = open(a, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(pwrite_full(fd, "end", 3, 32 << 20), 0);
	close(fd);
	/* Scratch space stays behind; a name in it may be anything. */
	snprintf(a, sizeof(a), "%s/upper/0/tmp", w->state);
	assert_int_equal(mkdir(a, 0755), 0);
	lab_write("scratch", "%s/decamp-test-scratch", a);
	finish_job(w);
	report = bring_home(w);
	assert_int_equal(report.written, 3);
	expect(w, "a", "linked");
	expect(w, "b", "linked");
	snprintf(a, sizeof(a), "%s/sparse", w->cwd);
	assert_int_equal(stat(a, &st), 0);
	assert_int_equal(st.st_size, (32 << 20) + 3);
	assert_true(st.st_blocks * 512 < 4 << 20);
	assert_int_equal(access("/tmp/decamp-test-scratch", F_OK), -1);
}

static void test_many(void **state)
{
	struct world *w = *state;
	struct results_report report;

	submit(w);
	for (int i = 0; i < 2500; i++) {
		char name[16];

		snprintf(name, sizeof(name), "f%d", i);
		job(w, name, name);
	}
	finish_job(w);
	report = bring_home(w);
	assert_int_equal(report.written, 2500);
	expect(w, "f2499", "f2499");
}

/* A file of another owner came along as input: it is not handed to the user. */
static void test_carried_of_root(void **state)
{
	struct world *w = *state;
	struct results_report report;

	if (geteuid() != 0) {
		print_message("needs root: files of another owner\n");
		skip();
	}
	submit(w);
	job(w, "carried-secret", "root's own");
	job(w, "mine", "the job's");
	finish_job(w);
	report = bring_home(w);
	assert_int_equal(report.written, 1);
	assert_int_equal(report.set_aside + report.failed, 0);
	expect(w, "mine", "the job's");
	expect(w, "carried-secret", NULL);
	expect(w, "job.decamp-results/carried-secret", NULL);
}

static void test_fetch_fails(void **state)
{
	struct world *w = *state;
	struct results_request request = { 0 };
	struct results_report report;

	submit(w);
	job(w, "file", "result");
	finish_job(w);
	w->lab.fail = -EHOSTUNREACH;
	request.manifest = w->m;
	request.job_key = &w->lab.job_key;
	request.fetch = capture_lab_fetch;
	request.fetch_ctx = &w->lab;
	request.cwd = w->cwd;
	request.side_folder = "side";
	request.uid = w->uid;
	assert_int_equal(restore_results(&request, &report), -EHOSTUNREACH);
	expect(w, "file", NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_new_and_old),	    TEST(test_changed_at_home), TEST(test_removed),
		TEST(test_made_anew),	    TEST(test_not_allowed),	TEST(test_symlink_trap),
		TEST(test_home_gone),	    TEST(test_links_and_holes), TEST(test_many),
		TEST(test_carried_of_root), TEST(test_fetch_fails),
	};

	umask(022);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
