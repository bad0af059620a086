// SPDX-License-Identifier: LGPL-2.1-or-later
/* manifest -> folders on disk, and the notes of a checkpoint. Keepers and CRIU: test_roundtrip. */
#include "tests/unit/capture_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "agent/restore/internal.h"
#include "agent/util/io.h"
#include "tests/unit/keeper_fixture.h"

enum { MANY_FILES = 600, FEW_FDS = 300 };

struct world {
	char base[64];
	char from[96], to[96], spool[96], images[96];
	struct capture_lab lab;
	struct manifest *m;
	struct notes notes;
	char reason[RESTORE_REASON_MAX];
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	char path[128];

	strcpy(w->base, "/var/tmp/decamp-restore-XXXXXX");
	assert_non_null(mkdtemp(w->base));
	snprintf(w->from, sizeof(w->from), "%s/from", w->base);
	snprintf(w->to, sizeof(w->to), "%s/to", w->base);
	snprintf(w->spool, sizeof(w->spool), "%s/spool", w->base);
	snprintf(w->images, sizeof(w->images), "%s/images", w->base);
	snprintf(path, sizeof(path), "%s/upper/0", w->from);
	assert_int_equal(mkdir_parents(path, 0755), 0);
	assert_int_equal(mkdir(w->to, 0700), 0);
	assert_int_equal(mkdir(w->spool, 0700), 0);
	assert_int_equal(mkdir(w->images, 0700), 0);
	capture_lab_init(&w->lab);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	manifest_destroy(w->m);
	notes_deinit(&w->notes);
	capture_lab_deinit(&w->lab);
	umount2(w->to, MNT_DETACH);
	assert_int_equal(remove_tree_at(AT_FDCWD, w->base), 0);
	free(w);
	return 0;
}

/* state_dir's upper layers and what `more` adds -> manifest */
static void pack(struct world *w, const char *state_dir, void (*more)(struct world *w))
{
	struct capture_config config = { .state_dir = state_dir, .cwd = "/" };
	struct capture_request request = { .spool_dir = w->spool, .files_only = true };
	char reason[CAPTURE_REASON_MAX];
	struct snapshot *s;
	struct capture *c;

	assert_int_equal(capture_create(&config, &c), 0);
	assert_int_equal(capture_take(c, &request, &s, reason), 0);
	capture_lab_begin(&w->lab);
	assert_int_equal(snapshot_each(s, false, capture_lab_add, &w->lab), 0);
	if (more)
		more(w);
	capture_lab_finish(&w->lab, snapshot_info(s)->meta_json);
	snapshot_destroy(s);
	capture_destroy(c);
	manifest_destroy(w->m);
	w->m = capture_lab_manifest(&w->lab);
	notes_deinit(&w->notes);
	assert_int_equal(notes_parse(manifest_head(w->m)->meta_json, &w->notes), 0);
}

static int lay_out(struct world *w)
{
	struct restore_request request = { .manifest = w->m,
					   .job_key = &w->lab.job_key,
					   .state_dir = w->to,
					   .images_dir = w->images,
					   .fetch = capture_lab_fetch,
					   .fetch_ctx = &w->lab };
	struct layout l = { .request = &request, .notes = &w->notes, .reason = w->reason };
	int r;

	w->reason[0] = '\0';
	r = layout_make(&l);
	layout_deinit(&l);
	return r;
}

/* Owners are set by what runs as root only. */
#define NEEDS_ROOT()                                            \
	do {                                                    \
		if (geteuid() != 0) {                           \
			print_message("skipped: needs root\n"); \
			skip();                                 \
		}                                               \
	} while (0)

static void make_tree(const struct world *w)
{
	char a[PATH_MAX], b[PATH_MAX];
	struct timespec times[2] = { { 1000000000, 5 }, { 1000000000, 123456789 } };
	int fd;

	snprintf(a, sizeof(a), "%s/upper/0/dir/sub", w->from);
	assert_int_equal(mkdir_parents(a, 0750), 0);
	lab_write("content", "%s/file", a);
	lab_write("odd", "%s/new\nline", a);
	snprintf(a, sizeof(a), "%s/upper/0/dir/sub/file", w->from);
	snprintf(b, sizeof(b), "%s/upper/0/dir/hard", w->from);
	assert_int_equal(link(a, b), 0);
	assert_int_equal(chmod(a, 04755), 0);
	(void)!setxattr(a, "user.note", "hi", 2, 0);
	assert_int_equal(utimensat(AT_FDCWD, a, times, 0), 0);
	snprintf(b, sizeof(b), "%s/upper/0/link", w->from);
	assert_int_equal(symlink("/etc/passwd", b), 0);
	snprintf(b, sizeof(b), "%s/upper/0/fifo", w->from);
	assert_int_equal(mkfifo(b, 0620), 0);
	snprintf(b, sizeof(b), "%s/upper/0/sparse", w->from);
	fd = open(b, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(pwrite_full(fd, "end", 3, 8 << 20), 0);
	close(fd);
	snprintf(b, sizeof(b), "%s/upper/0/gone", w->from);
	assert_int_equal(mknod(b, S_IFCHR, 0), 0);
	snprintf(b, sizeof(b), "%s/upper/0/dir", w->from);
	snprintf(a, sizeof(a), "%s/upper/0/sparse", w->from);
	assert_int_equal(chown(a, 1234, 4321), 0);
	assert_int_equal(setxattr(b, "trusted.overlay.opaque", "y", 1, 0), 0);
	assert_int_equal(chmod(b, 01777), 0);
	assert_int_equal(utimensat(AT_FDCWD, b, times, 0), 0);
}

static void compare(const struct manifest *a, const struct manifest *b)
{
	assert_int_equal(manifest_file_count(a), manifest_file_count(b));
	for (size_t i = 0; i < manifest_file_count(a); i++) {
		struct manifest_file x, y;
		long j;

		manifest_file(a, i, &x);
		j = capture_lab_find(b, x.kind, x.path);
		assert_true(j >= 0);
		manifest_file(b, (size_t)j, &y);
		assert_int_equal(x.st.st_mode, y.st.st_mode);
		assert_int_equal(x.st.st_uid, y.st.st_uid);
		assert_int_equal(x.st.st_gid, y.st.st_gid);
		assert_int_equal(x.st.st_size, y.st.st_size);
		assert_int_equal(x.xattrs_size, y.xattrs_size);
		assert_memory_equal(x.xattrs ?: (void *)"", y.xattrs ?: (void *)"", x.xattrs_size);
		assert_int_equal(!x.link_target, !y.link_target);
		if (x.link_target)
			assert_string_equal(x.link_target, y.link_target);
		assert_memory_equal(x.content_hash, y.content_hash, sizeof(x.content_hash));
		if (S_ISCHR(x.st.st_mode)) /* whiteouts: nobody sees their times */
			continue;
		assert_int_equal(x.st.st_nlink, y.st.st_nlink);
		assert_int_equal(x.st.st_mtim.tv_sec, y.st.st_mtim.tv_sec);
		assert_int_equal(x.st.st_mtim.tv_nsec, y.st.st_mtim.tv_nsec);
	}
}

/* Captured, laid out, captured again: the same. */
static void test_tree(void **state)
{
	struct world *w = *state;
	struct manifest *first;

	NEEDS_ROOT();
	make_tree(w);
	pack(w, w->from, NULL);
	assert_int_equal(lay_out(w), 0);
	first = w->m;
	w->m = NULL;
	pack(w, w->to, NULL);
	compare(first, w->m);
	manifest_destroy(first);
	assert_int_equal(layout_clear(w->to), 0);
	assert_int_equal(layout_clear(w->to), 0);
}

static void test_no_space(void **state)
{
	struct world *w = *state;
	static char text[4 << 20];

	NEEDS_ROOT();
	memset(text, 'x', sizeof(text) - 1);
	lab_write(text, "%s/upper/0/big", w->from);
	pack(w, w->from, NULL);
	assert_int_equal(mount("test", w->to, "tmpfs", 0, "size=1m"), 0);
	assert_int_equal(lay_out(w), -ENOSPC);
	print_message("expected: %s\n", w->reason);
	assert_non_null(strstr(w->reason, "free some"));
	assert_int_equal(layout_clear(w->to), 0);
}

static void test_fetch_fails(void **state)
{
	struct world *w = *state;

	NEEDS_ROOT();
	lab_write("content", "%s/upper/0/file", w->from);
	pack(w, w->from, NULL);
	w->lab.fail = -EHOSTUNREACH;
	assert_int_equal(lay_out(w), -EHOSTUNREACH);
	w->lab.fail = 0;
	assert_int_equal(layout_clear(w->to), 0);
	assert_int_equal(lay_out(w), 0);
	/* A second time without clearing: nothing is ever overwritten. */
	assert_int_equal(lay_out(w), -EEXIST);
}

/* ---- more files than descriptors ---- */

static void test_batches(void **state)
{
	struct world *w = *state;
	int status;
	pid_t child;

	NEEDS_ROOT();
	for (int i = 0; i < MANY_FILES; i++) {
		char text[24];

		snprintf(text, sizeof(text), "file %d", i);
		lab_write(text, "%s/upper/0/f%d", w->from, i);
	}
	pack(w, w->from, NULL);
	child = fork();
	if (child == 0) {
		struct rlimit limit = { FEW_FDS, FEW_FDS };

		_exit(setrlimit(RLIMIT_NOFILE, &limit) == 0 && lay_out(w) == 0 ? 0 : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	for (int i = 0; i < MANY_FILES; i++) {
		char text[24];
		char *got = lab_read("%s/upper/0/f%d", w->to, i);

		snprintf(text, sizeof(text), "file %d", i);
		assert_string_equal(got, text);
		free(got);
	}
}

/* ---- the closure ---- */

static void add_closure(struct world *w, const char *rest, mode_t mode)
{
	char path[PATH_MAX];
	struct pack_input in = { .kind = FILE_CLOSURE, .path = path + 1, .fd = -1 };

	snprintf(path, sizeof(path), "%s/%s", w->base, rest);
	assert_int_equal(lstat(path, &in.st), 0);
	if (S_ISREG(in.st.st_mode))
		in.fd = open(path, O_RDONLY | O_CLOEXEC);
	if (mode)
		in.st.st_mode = (in.st.st_mode & S_IFMT) | mode;
	assert_int_equal(packer_add(w->lab.packer, &in), 0);
	close_fdp(&in.fd);
}

static void add_host_files(struct world *w)
{
	add_closure(w, "host", 0);
	add_closure(w, "host/same", 0);
	add_closure(w, "host/changed", 0);
	add_closure(w, "host/mode", 0600);
	add_closure(w, "host/gone", 0);
	add_closure(w, "host/hard1", 0);
	add_closure(w, "host/hard2", 0);
}

static bool is_laid(const struct world *w, const char *rest)
{
	char path[PATH_MAX];
	struct stat st;

	snprintf(path, sizeof(path), "%s/upper/0%s/%s", w->to, w->base, rest);
	return lstat(path, &st) == 0;
}

static void test_closure(void **state)
{
	struct world *w = *state;
	char path[PATH_MAX], other[PATH_MAX], *list;

	NEEDS_ROOT();
	snprintf(path, sizeof(path), "%s/host", w->base);
	assert_int_equal(mkdir(path, 0751), 0);
	lab_write("same", "%s/same", path);
	lab_write("before", "%s/changed", path);
	lab_write("mode", "%s/mode", path);
	lab_write("gone", "%s/gone", path);
	lab_write("hard", "%s/hard1", path);
	snprintf(path, sizeof(path), "%s/host/hard1", w->base);
	snprintf(other, sizeof(other), "%s/host/hard2", w->base);
	assert_int_equal(link(path, other), 0);
	pack(w, w->from, add_host_files);
	lab_write("after!", "%s/host/changed", w->base);
	snprintf(path, sizeof(path), "%s/host/gone", w->base);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(unlink(other), 0);
	assert_int_equal(lay_out(w), 0);
	assert_false(is_laid(w, "host/same"));
	assert_true(is_laid(w, "host/changed"));
	assert_true(is_laid(w, "host/mode"));
	assert_true(is_laid(w, "host/gone"));
	/* One of two names differs: both are laid out, as one inode. */
	assert_true(is_laid(w, "host/hard1"));
	assert_true(is_laid(w, "host/hard2"));
	snprintf(path, sizeof(path), "%s/upper/0%s/host", w->to, w->base);
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode, S_IFDIR | 0751);
	list = lab_read("%s/closure.list", w->to);
	assert_non_null(list);
	snprintf(path, sizeof(path), "%s/host", w->base);
	assert_string_equal(list, path);
	free(list);
}

/* ---- a file system here, a plain folder there ---- */

static void test_inner_mount(void **state)
{
	struct world *w = *state;
	char inner[128], path[PATH_MAX], line[256], *list, *text;

	if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
		print_message("skipped: needs root\n");
		skip();
	}
	snprintf(inner, sizeof(inner), "%s/inner", w->base);
	assert_int_equal(mkdir(inner, 0755), 0);
	snprintf(path, sizeof(path), "%s/upper/0%s/sub", w->from, inner);
	assert_int_equal(mkdir_parents(path, 0755), 0);
	lab_write("inside", "%s/file", path);
	lab_write("outside", "%s/upper/0%s/file", w->from, w->base);
	pack(w, w->from, NULL);
	assert_int_equal(mount("test", inner, "tmpfs", 0, "mode=1777"), 0);
	assert_int_equal(lay_out(w), 0);
	text = lab_read("%s/upper/1/sub/file", w->to);
	assert_string_equal(text, "inside");
	free(text);
	text = lab_read("%s/upper/0%s/file", w->to, w->base);
	assert_string_equal(text, "outside");
	free(text);
	list = lab_read("%s/mounts", w->to);
	snprintf(line, sizeof(line), "\n1 %s\n", inner);
	assert_non_null(strstr(list, line));
	free(list);
	assert_int_equal(umount2(inner, MNT_DETACH), 0);
}

/* ---- no way out ---- */

static void test_no_symlinks(void **state)
{
	struct world *w = *state;
	struct manifest_file f = { .kind = FILE_UPPER };
	char path[PATH_MAX];
	int dir = open(w->to, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	snprintf(path, sizeof(path), "%s/out", w->to);
	assert_int_equal(symlink(w->images, path), 0);
	assert_int_equal(place_regular(dir, "out/file"), -ENOTDIR);
	assert_int_equal(place_regular(dir, "out/deep/file"), -ELOOP);
	assert_int_equal(place_regular(dir, "out"), -EEXIST);
	assert_int_equal(place_regular(dir, "../file"), -EXDEV);
	f.st.st_mode = S_IFDIR | 0755;
	assert_int_equal(place_node(dir, "out/dir", &f), -ENOTDIR);
	assert_int_equal(place_node(dir, "out", &f), -EEXIST);
	f.st.st_mode = S_IFLNK | 0777;
	assert_int_equal(place_node(dir, "link", &f), -EBADMSG);
	assert_int_equal(place_link(dir, "out/a", dir, "b"), -ENOTDIR);
	close(dir);
	assert_int_equal(rmdir(w->images), 0);
	assert_int_equal(mkdir(w->images, 0700), 0);
}

/* ---- notes ---- */

static void test_notes(void **state)
{
	static const struct {
		const char *json;
		int result;
	} table[] = {
		{ "{}", 0 },
		{ "{\"root_pid\":1000,\"pids\":[1000,1001],\"mounts\":[\"0 /\",\"3 /home\"]}", 0 },
		{ "", -EBADMSG },
		{ "[]", -EBADMSG },
		{ "{\"root_pid\":1}", -EBADMSG },
		{ "{\"root_pid\":-5}", -EBADMSG },
		{ "{\"pids\":[0]}", -EBADMSG },
		{ "{\"pids\":[99999999]}", -EBADMSG },
		{ "{\"pids\":7}", -EBADMSG },
		{ "{\"mounts\":[]}", -EBADMSG },
		{ "{\"mounts\":[\"1 /home\"]}", -EBADMSG },
		{ "{\"mounts\":[\"0 /\",\"0 /home\"]}", -EBADMSG },
		{ "{\"mounts\":[\"0 /\",\"1 home\"]}", -EBADMSG },
		{ "{\"mounts\":[\"0 /\",\"1 /a/../b\"]}", -EBADMSG },
		{ "{\"mounts\":[\"0 /\",\"1 /a//b\"]}", -EBADMSG },
		{ "{\"mounts\":[\"0 /\",\"1 /a\\nb\"]}", -EBADMSG },
		{ "{\"mounts\":[\"0 /\",\"999 /a\"]}", -EBADMSG },
		{ "{\"mounts\":[\"0 /\",5]}", -EBADMSG },
		{ "{\"hostname\":7}", -EBADMSG },
		{ "{\"affinity\":{\"0-1,4\":[1000,1001],\"2\":[1002]}}", 0 },
		{ "{\"affinity\":[1000]}", -EBADMSG },
		{ "{\"affinity\":{\"0\":1000}}", -EBADMSG },
		{ "{\"affinity\":{\"0\":[1]}}", -EBADMSG },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		struct notes n;
		int r = notes_parse(table[i].json, &n);

		if (r != table[i].result)
			print_message("%s\n", table[i].json);
		assert_int_equal(r, table[i].result);
		if (r == 0)
			notes_deinit(&n);
	}
}

static void test_notes_split(void **state)
{
	struct notes n;
	const struct notes_mount *mount;
	const char *rest;

	(void)state;
	assert_int_equal(notes_parse("{\"pids\":[500],\"mounts\":[\"0 /\",\"3 /home\"]}", &n), 0);
	assert_true(n.low_pids);
	assert_int_equal(notes_split(&n, "3/u/f", &mount, &rest), 0);
	assert_string_equal(mount->path, "/home");
	assert_string_equal(rest, "u/f");
	assert_int_equal(notes_split(&n, "0", &mount, &rest), 0);
	assert_string_equal(rest, "");
	assert_int_equal(notes_split(&n, "1/f", &mount, &rest), -EBADMSG);
	assert_int_equal(notes_split(&n, "x/f", &mount, &rest), -EBADMSG);
	assert_int_equal(notes_split(&n, "3x/f", &mount, &rest), -EBADMSG);
	notes_deinit(&n);
}

/* ---- one file ---- */

static void test_file(void **state)
{
	struct world *w = *state;
	char a[PATH_MAX], b[PATH_MAX], got[16] = "";
	int pipes[2];
	size_t count;

	lab_write("content", "%s/upper/0/a", w->from);
	snprintf(a, sizeof(a), "%s/upper/0/a", w->from);
	snprintf(b, sizeof(b), "%s/upper/0/b", w->from);
	assert_int_equal(link(a, b), 0);
	pack(w, w->from, NULL);
	count = manifest_file_count(w->m);
	assert_int_equal(pipe(pipes), 0);
	for (const char *path = "0/a"; path; path = !strcmp(path, "0/a") ? "0/b" : NULL) {
		size_t i = (size_t)capture_lab_find(w->m, FILE_UPPER, path);

		assert_int_equal(restore_file(w->m, &w->lab.job_key, i, capture_lab_fetch, &w->lab,
					      pipes[1]),
				 0);
		assert_int_equal(read(pipes[0], got, sizeof(got)), 7);
		assert_memory_equal(got, "content", 7);
	}
	assert_int_equal(restore_file(w->m, &w->lab.job_key, count, capture_lab_fetch, &w->lab,
				      pipes[1]),
			 -ENOENT);
	assert_int_equal(restore_file(w->m, &w->lab.job_key,
				      (size_t)capture_lab_find(w->m, FILE_UPPER, "0"),
				      capture_lab_fetch, &w->lab, pipes[1]),
			 -EINVAL);
	close(pipes[0]);
	close(pipes[1]);
}

static void test_files_only(void **state)
{
	struct world *w = *state;
	struct restore_request request = { 0 };
	struct keeper *k = NULL;

	lab_write("content", "%s/upper/0/file", w->from);
	pack(w, w->from, NULL);
	request.manifest = w->m;
	request.state_dir = w->to;
	assert_int_equal(restore_job(&request, &k, w->reason), -ENODATA);
	assert_non_null(strstr(w->reason, "files only"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_tree),       TEST(test_no_space),    TEST(test_fetch_fails),
		TEST(test_batches),    TEST(test_closure),     TEST(test_no_symlinks),
		TEST(test_notes),      TEST(test_notes_split), TEST(test_file),
		TEST(test_files_only), TEST(test_inner_mount),
	};

	umask(022);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
