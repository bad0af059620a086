// SPDX-License-Identifier: LGPL-2.1-or-later
/* Files of a snapshot: what is copied, what may be called unchanged, what is carried along. */
#include "tests/unit/capture_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"
#include "tests/unit/keeper_fixture.h"

enum { TICK_MS = 20, TICK_TRIES = 100 };

struct world {
	char base[64];
	char state[96], spool[96], cwd[96];
	struct capture *c;
	struct snapshot *s;
	char reason[CAPTURE_REASON_MAX];
	uint64_t written_ms; /* at most so long before its first freeze was the file written */
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	char path[128];

	/* Not /tmp: that is a tmpfs at times, which has no user attributes. */
	strcpy(w->base, "/var/tmp/decamp-files-XXXXXX");
	assert_non_null(mkdtemp(w->base));
	snprintf(w->state, sizeof(w->state), "%s/state", w->base);
	snprintf(w->spool, sizeof(w->spool), "%s/spool", w->base);
	snprintf(w->cwd, sizeof(w->cwd), "%s/cwd", w->base);
	snprintf(path, sizeof(path), "%s/upper/0/dir", w->state);
	assert_int_equal(mkdir_parents(path, 0755), 0);
	assert_int_equal(mkdir(w->spool, 0700), 0);
	assert_int_equal(mkdir(w->cwd, 0755), 0);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	snapshot_destroy(w->s);
	capture_destroy(w->c);
	umount2(w->spool, MNT_DETACH);
	assert_int_equal(remove_tree_at(AT_FDCWD, w->base), 0);
	free(w);
	return 0;
}

static void make_capture(struct world *w)
{
	struct capture_config config = { .state_dir = w->state, .cwd = w->cwd };

	assert_int_equal(capture_create(&config, &w->c), 0);
}

/* A job that has ended: the same walk, without tasks. */
static int take(struct world *w)
{
	struct capture_request request = { .spool_dir = w->spool, .files_only = true };

	snapshot_destroy(w->s);
	w->s = NULL;
	return capture_take(w->c, &request, &w->s, w->reason);
}

struct seen {
	const char *path;
	bool found, has_fd;
	char content[256];
	struct stat st;
	char link[64];
	char xattr[64];
	int answer;
};

static int look(void *ctx, const struct snapshot_file *file)
{
	struct seen *seen = ctx;

	if (strcmp(file->path, seen->path))
		return 0;
	seen->found = true;
	seen->has_fd = file->fd >= 0;
	seen->st = file->st;
	if (file->fd >= 0)
		(void)!pread(file->fd, seen->content, sizeof(seen->content) - 1, 0);
	if (file->link_target)
		snprintf(seen->link, sizeof(seen->link), "%s", file->link_target);
	if (file->xattrs_size < sizeof(seen->xattr))
		memcpy(seen->xattr, file->xattrs ?: (const uint8_t *)"", file->xattrs_size);
	return seen->answer;
}

static struct seen see(struct world *w, const char *path)
{
	struct seen seen = { .path = path };

	assert_int_equal(snapshot_each(w->s, false, look, &seen), 0);
	return seen;
}

/* True if the next capture calls 0/file unchanged after fn did something to it. */
static bool unchanged_after(struct world *w, void (*fn)(const char *path), int before_ms)
{
	char path[160];

	make_capture(w);
	snprintf(path, sizeof(path), "%s/upper/0/file", w->state);
	w->written_ms = now_wall_ms();
	lab_write("first", "%s", path);
	sleep_ms(before_ms);
	assert_int_equal(take(w), 0);
	w->written_ms = now_wall_ms() - w->written_ms;
	assert_true(see(w, "0/file").has_fd);
	snapshot_accept(w->c, w->s);
	fn(path);
	assert_int_equal(take(w), 0);
	assert_true(see(w, "0/file").found);
	return !see(w, "0/file").has_fd;
}

static void do_nothing(const char *path)
{
	(void)path;
}

static void write_again(const char *path)
{
	lab_write("other", "%s", path);
}

/* Same size, and the old times put back. */
static void write_and_date(const char *path)
{
	struct stat st;
	struct timespec times[2];

	assert_int_equal(stat(path, &st), 0);
	times[0] = st.st_atim;
	times[1] = st.st_mtim;
	write_again(path);
	assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void rename_over(const char *path)
{
	char other[PATH_MAX];

	snprintf(other, sizeof(other), "%s.new", path);
	lab_write("other", "%s", other);
	assert_int_equal(rename(other, path), 0);
}

static void cut_and_fill(const char *path)
{
	assert_int_equal(truncate(path, 0), 0);
	assert_int_equal(truncate(path, 5), 0);
}

static void test_unchanged(void **state)
{
	assert_true(unchanged_after(*state, do_nothing, 2 * CAPTURE_CTIME_SLACK_MS));
}

static void test_written(void **state)
{
	assert_false(unchanged_after(*state, write_again, 2 * CAPTURE_CTIME_SLACK_MS));
}

static void test_dated_back(void **state)
{
	assert_false(unchanged_after(*state, write_and_date, 2 * CAPTURE_CTIME_SLACK_MS));
}

static void test_renamed_over(void **state)
{
	assert_false(unchanged_after(*state, rename_over, 2 * CAPTURE_CTIME_SLACK_MS));
}

static void test_truncated(void **state)
{
	assert_false(unchanged_after(*state, cut_and_fill, 2 * CAPTURE_CTIME_SLACK_MS));
}

/* Written in the tick of the freeze: a second write may show the same times. */
static void test_same_tick(void **state)
{
	struct world *w = *state;

	/* A busy machine may take some tries until both are in one tick. */
	for (int i = 0; i < TICK_TRIES; i++) {
		bool unchanged = unchanged_after(w, do_nothing, 0);

		if (w->written_ms + TICK_MS < CAPTURE_CTIME_SLACK_MS) {
			assert_false(unchanged);
			return;
		}
		capture_destroy(take_ptr(w->c));
	}
	fail_msg("this machine is too slow");
}

static void test_not_accepted(void **state)
{
	struct world *w = *state;

	make_capture(w);
	lab_write("x", "%s/upper/0/file", w->state);
	sleep_ms(2 * CAPTURE_CTIME_SLACK_MS);
	assert_int_equal(take(w), 0);
	assert_int_equal(take(w), 0);
	assert_true(see(w, "0/file").has_fd);
}

/* ---- mapped shared: written without a new mtime ---- */

static void walk(struct world *w, struct entries *entries, const struct past *past,
		 const struct proc_view *view)
{
	struct mounts layers = { 0 };
	struct walk walk = { .entries = entries,
			     .past = past,
			     .view = view,
			     .layers = &layers,
			     .reason = w->reason };

	clock_gettime(CLOCK_REALTIME, &walk.freeze);
	walk.spool_files = open(w->spool, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(mounts_read_layers(&layers, w->state), 0);
	assert_int_equal(walk_uppers(&walk, w->state), 0);
	free(walk.shared);
	close(walk.spool_files);
	mounts_deinit(&layers);
	assert_int_equal(remove_tree_at(AT_FDCWD, w->spool), 0);
	assert_int_equal(mkdir(w->spool, 0700), 0);
}

static enum entry_content content_of(const struct entries *e, const char *path)
{
	size_t i;

	assert_true(paths_find(&e->index, SNAPSHOT_UPPER, path, &i));
	return e->v[i].content;
}

static void test_shared_mapping(void **state)
{
	struct world *w = *state;
	struct entries first = { 0 }, second = { 0 }, third = { 0 };
	struct file_use use = { .path = (char *)"/file", .flags = USE_SHARED_MAP };
	struct proc_view mapped = { .uses = &use, .use_count = 1 };
	struct past past = { 0 };
	char path[160], other[160];
	struct stat before, after;
	char *map;
	int fd;

	snprintf(path, sizeof(path), "%s/upper/0/file", w->state);
	snprintf(other, sizeof(other), "%s/upper/0/alias", w->state);
	lab_write("first", "%s", path);
	assert_int_equal(link(path, other), 0);
	fd = open(path, O_RDWR | O_CLOEXEC);
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(map != MAP_FAILED);
	map[0] = 'F'; /* the page is dirty from now on: later stores tell nobody */
	sleep_ms(2 * CAPTURE_CTIME_SLACK_MS);
	assert_int_equal(stat(path, &before), 0);
	walk(w, &first, &past, &mapped);
	assert_int_equal(past_learn(&past, &first), 0);
	map[1] = 'I';
	assert_int_equal(stat(path, &after), 0);
	if (before.st_mtim.tv_nsec == after.st_mtim.tv_nsec)
		print_message("a store left no trace in mtime, as expected\n");
	/* Still mapped, and then unmapped: in both cases it may have been written. */
	walk(w, &second, &past, &mapped);
	assert_int_equal(content_of(&second, "0/file"), CONTENT_SPOOL);
	assert_int_equal(content_of(&second, "0/alias"), CONTENT_SPOOL);
	munmap(map, 4096);
	close(fd);
	walk(w, &third, &past, NULL);
	assert_int_equal(content_of(&third, "0/file"), CONTENT_SPOOL);
	assert_int_equal(content_of(&third, "0/alias"), CONTENT_SPOOL);
	entries_deinit(&first);
	entries_deinit(&second);
	entries_deinit(&third);
	past_deinit(&past);
}

/* ---- content on demand ---- */

static void test_force_content(void **state)
{
	struct world *w = *state;
	struct seen seen = { .path = "0/file" };

	make_capture(w);
	lab_write("first", "%s/upper/0/file", w->state);
	sleep_ms(2 * CAPTURE_CTIME_SLACK_MS);
	assert_int_equal(take(w), 0);
	snapshot_accept(w->c, w->s);
	assert_int_equal(take(w), 0);
	assert_false(see(w, "0/file").has_fd);
	assert_int_equal(snapshot_each(w->s, true, look, &seen), 0);
	assert_true(seen.has_fd);
	assert_string_equal(seen.content, "first");
	/* Written since the freeze: the frozen content is gone, and the next capture copies all. */
	lab_write("after", "%s/upper/0/file", w->state);
	assert_int_equal(snapshot_each(w->s, true, look, &seen), -ESTALE);
	assert_int_equal(take(w), 0);
	assert_true(see(w, "0/file").has_fd);
	seen.answer = -ENOENT;
	assert_int_equal(snapshot_each(w->s, false, look, &seen), -ENOENT);
}

static void test_kinds(void **state)
{
	struct world *w = *state;
	char path[PATH_MAX];
	struct seen seen;

	make_capture(w);
	lab_write("text", "%s/upper/0/dir/file", w->state);
	snprintf(path, sizeof(path), "%s/upper/0/dir/file", w->state);
	assert_int_equal(chmod(path, 0750), 0);
	bool has_xattrs = setxattr(path, "user.note", "hi", 2, 0) == 0;
	snprintf(path, sizeof(path), "%s/upper/0/link", w->state);
	assert_int_equal(symlink("dir/file", path), 0);
	snprintf(path, sizeof(path), "%s/upper/0/fifo", w->state);
	assert_int_equal(mkfifo(path, 0600), 0);
	snprintf(path, sizeof(path), "%s/upper/0/new\nline", w->state);
	lab_write("odd", "%s", path);
	assert_int_equal(take(w), 0);
	assert_true(S_ISDIR(see(w, "0").st.st_mode));
	assert_true(S_ISDIR(see(w, "0/dir").st.st_mode));
	seen = see(w, "0/dir/file");
	assert_string_equal(seen.content, "text");
	assert_int_equal(seen.st.st_mode, S_IFREG | 0750);
	if (has_xattrs)
		assert_memory_equal(seen.xattr, "user.note\0\2\0\0\0hi", 16);
	assert_string_equal(see(w, "0/link").link, "dir/file");
	assert_true(S_ISFIFO(see(w, "0/fifo").st.st_mode));
	assert_string_equal(see(w, "0/new\nline").content, "odd");
}

static void test_whiteouts(void **state)
{
	struct world *w = *state;
	char path[PATH_MAX];
	struct seen seen;

	if (geteuid() != 0) {
		print_message("skipped: needs root\n");
		skip();
	}
	make_capture(w);
	snprintf(path, sizeof(path), "%s/upper/0/gone", w->state);
	assert_int_equal(mknod(path, S_IFCHR, 0), 0);
	snprintf(path, sizeof(path), "%s/upper/0/dir", w->state);
	assert_int_equal(setxattr(path, "trusted.overlay.opaque", "y", 1, 0), 0);
	assert_int_equal(setxattr(path, "trusted.overlay.origin", "handle", 6, 0), 0);
	assert_int_equal(take(w), 0);
	seen = see(w, "0/gone");
	assert_true(S_ISCHR(seen.st.st_mode) && seen.st.st_rdev == 0);
	seen = see(w, "0/dir");
	assert_memory_equal(seen.xattr, "trusted.overlay.opaque\0\1\0\0\0y", 29);
	/* The content of such a file is elsewhere: better no checkpoint than half of one. */
	lab_write("", "%s/meta", path);
	snprintf(path, sizeof(path), "%s/upper/0/dir/meta", w->state);
	assert_int_equal(setxattr(path, "trusted.overlay.metacopy", "", 0, 0), 0);
	assert_int_equal(take(w), -EOPNOTSUPP);
	assert_non_null(strstr(w->reason, "dir/meta"));
}

/* ---- copying ---- */

static void test_copy(void **state)
{
	struct world *w = *state;
	static char bytes[1 << 20];
	char path[160];
	struct stat st;
	int in, dir, out;

	snprintf(path, sizeof(path), "%s/sparse", w->base);
	in = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	memset(bytes, 'b', sizeof(bytes));
	assert_int_equal(pwrite_full(in, bytes, sizeof(bytes), 64 << 20), 0);
	assert_int_equal(ftruncate(in, (128 << 20) + 3), 0);
	dir = open(w->spool, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(capture_copy(in, dir, "copy", (128 << 20) + 3), 0);
	assert_int_equal(capture_copy(in, dir, "copy", 1), -EEXIST);
	assert_int_equal(capture_copy(in, dir, "empty", 0), 0);
	out = openat(dir, "copy", O_RDONLY | O_CLOEXEC);
	assert_int_equal(fstat(out, &st), 0);
	assert_int_equal(st.st_size, (128 << 20) + 3);
	assert_true(st.st_blocks * 512 < 4 << 20);
	memset(bytes, 0, sizeof(bytes));
	assert_int_equal(pread_full(out, bytes, sizeof(bytes), 64 << 20), 0);
	for (size_t i = 0; i < sizeof(bytes); i++)
		assert_int_equal(bytes[i], 'b');
	close(out);
	close(dir);
	close(in);
}

static void test_copy_to_tmpfs(void **state)
{
	struct world *w = *state;
	static char bytes[1 << 20];
	char path[160];
	int in, dir;

	if (geteuid() != 0 || mount("test", w->spool, "tmpfs", 0, "size=2m") < 0) {
		print_message("skipped: cannot mount a tmpfs\n");
		skip();
	}
	snprintf(path, sizeof(path), "%s/plain", w->base);
	in = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	memset(bytes, 'c', sizeof(bytes));
	dir = open(w->spool, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pwrite_full(in, bytes, sizeof(bytes), i << 20), 0);
	assert_int_equal(capture_copy(in, dir, "one", 1 << 20), 0);
	assert_int_equal(capture_copy(in, dir, "four", 4 << 20), -ENOSPC);
	close(dir);
	close(in);
}

/* ---- the closure ---- */

struct closure_world {
	struct entries entries;
	struct past past;
	struct lower lower;
	struct mounts layers, proc;
	struct closure closure;
};

static void closure_init(struct closure_world *cw, struct world *w)
{
	memset(cw, 0, sizeof(*cw));
	assert_int_equal(lower_open_root(&cw->lower), 0);
	assert_int_equal(mounts_read_layers(&cw->layers, w->state), 0);
	assert_int_equal(mounts_read_proc(&cw->proc, getpid()), 0);
	cw->closure = (struct closure){ .entries = &cw->entries,
					.past = &cw->past,
					.lower = &cw->lower,
					.layers = &cw->layers,
					.proc = &cw->proc,
					.state_dir = w->state,
					.reason = w->reason };
}

static void closure_deinit(struct closure_world *cw)
{
	lower_close(&cw->lower);
	entries_deinit(&cw->entries);
	mounts_deinit(&cw->layers);
	mounts_deinit(&cw->proc);
}

static bool has(const struct closure_world *cw, const struct world *w, const char *rest)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", w->base + 1, rest);
	return paths_find(&cw->entries.index, SNAPSHOT_CLOSURE, path, NULL);
}

static void make_link(const struct world *w, const char *target, const char *rest)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", w->base, rest);
	assert_int_equal(symlink(target, path), 0);
}

static void test_closure_links(void **state)
{
	struct world *w = *state;
	struct closure_world cw;
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/usr/lib", w->base);
	assert_int_equal(mkdir_parents(path, 0755), 0);
	lab_write("elf", "%s/usr/lib/libz.so.1.2", w->base);
	lab_write("elf", "%s/usr/lib/libother.so", w->base);
	make_link(w, "libz.so.1.2", "usr/lib/libz.so.1");
	make_link(w, "libother.so", "usr/lib/libother.so.1");
	make_link(w, "usr/lib", "lib");
	make_link(w, "loop", "loop");
	closure_init(&cw, w);
	snprintf(path, sizeof(path), "%s/lib/../lib//libz.so.1", w->base);
	assert_int_equal(closure_add(&cw.closure, path), 0);
	assert_true(has(&cw, w, "lib"));
	assert_true(has(&cw, w, "usr/lib"));
	assert_true(has(&cw, w, "usr/lib/libz.so.1"));
	assert_true(has(&cw, w, "usr/lib/libz.so.1.2"));
	assert_false(has(&cw, w, "usr/lib/libother.so"));
	snprintf(path, sizeof(path), "%s/loop", w->base);
	assert_int_equal(closure_add(&cw.closure, path), 0);
	snprintf(path, sizeof(path), "%s/missing/file", w->base);
	assert_int_equal(closure_add(&cw.closure, path), 0);
	assert_int_equal(closure_add(&cw.closure, "/proc/self/status"), 0);
	assert_int_equal(closure_add(&cw.closure, "/dev/null"), 0);
	assert_false(paths_find(&cw.entries.index, SNAPSHOT_CLOSURE, "dev", NULL));
	assert_int_equal(closure_add(&cw.closure, "relative"), -EINVAL);
	closure_deinit(&cw);
}

/* A mapped library brings the links beside it along. */
static void test_closure_view(void **state)
{
	struct world *w = *state;
	struct closure_world cw;
	char path[PATH_MAX];
	struct file_use use = { .path = path };
	struct proc_view view = { .uses = &use, .use_count = 1 };

	lab_write("elf", "%s/cwd/libz.so.1.2", w->base);
	make_link(w, "libz.so.1.2", "cwd/libz.so.1");
	make_link(w, "libnone.so.1.2", "cwd/libnone.so.1");
	closure_init(&cw, w);
	snprintf(path, sizeof(path), "%s/cwd/libz.so.1.2", w->base);
	assert_int_equal(closure_add_view(&cw.closure, &view), 0);
	assert_true(has(&cw, w, "cwd/libz.so.1"));
	assert_false(has(&cw, w, "cwd/libnone.so.1"));
	closure_deinit(&cw);
}

static void test_closure_tree(void **state)
{
	struct world *w = *state;
	static char text[100001];
	struct closure_world cw;
	char path[PATH_MAX];
	uint64_t bytes = 0;

	memset(text, 't', sizeof(text) - 1);
	snprintf(path, sizeof(path), "%s/cwd/big/deep", w->base);
	assert_int_equal(mkdir_parents(path, 0755), 0);
	lab_write(text, "%s/cwd/big/deep/file", w->base);
	lab_write("small", "%s/cwd/small", w->base);
	make_link(w, "/etc", "cwd/out");
	closure_init(&cw, w);
	assert_int_equal(closure_add_tree(&cw.closure, w->cwd, &bytes, 1 << 20), 0);
	assert_int_equal(bytes, 100005);
	assert_true(has(&cw, w, "cwd/big/deep/file"));
	assert_true(has(&cw, w, "cwd/out"));
	assert_false(paths_find(&cw.entries.index, SNAPSHOT_CLOSURE, "etc", NULL));
	closure_deinit(&cw);
	closure_init(&cw, w);
	bytes = 0;
	assert_int_equal(closure_add_tree(&cw.closure, w->cwd, &bytes, 1000), -EFBIG);
	assert_non_null(strstr(w->reason, "/big ("));
	assert_non_null(strstr(w->reason, "--input"));
	closure_deinit(&cw);
	/* The daemon's own folders never travel. */
	closure_init(&cw, w);
	assert_int_equal(closure_add_tree(&cw.closure, w->base, &bytes, 1 << 20), 0);
	assert_false(has(&cw, w, "state"));
	closure_deinit(&cw);
}

/* ---- /proc ---- */

static bool uses(const struct proc_view *v, const char *path, unsigned int flags)
{
	size_t i;

	return paths_find(&v->use_index, 0, path, &i) && (v->uses[i].flags & flags) == flags;
}

static void run_child(const struct world *w, int ready)
{
	char path[160];
	int fd;

	if (chdir(w->cwd) < 0)
		_exit(1);
	snprintf(path, sizeof(path), "%s/cwd/shared\nname", w->base);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED)
		_exit(1);
	close(fd);
	snprintf(path, sizeof(path), "%s/cwd/written", w->base);
	if (open(path, O_WRONLY | O_APPEND) < 0)
		_exit(1);
	snprintf(path, sizeof(path), "%s/cwd/deleted", w->base);
	if (open(path, O_RDONLY) < 0 || unlink(path) < 0)
		_exit(1);
	if (fork() == 0)
		pause();
	if (write(ready, "x", 1) != 1)
		_exit(1);
	pause();
	_exit(0);
}

static void test_proc_view(void **state)
{
	struct world *w = *state;
	struct proc_view v = { 0 };
	char path[PATH_MAX], byte;
	int pipes[2];
	pid_t child;

	lab_write("s", "%s/cwd/shared\nname", w->base);
	lab_write("w", "%s/cwd/written", w->base);
	lab_write("d", "%s/cwd/deleted", w->base);
	assert_int_equal(pipe(pipes), 0);
	child = fork();
	if (child == 0)
		run_child(w, pipes[1]);
	assert_int_equal(read(pipes[0], &byte, 1), 1);
	assert_int_equal(proc_view_read(&v, child, true), 0);
	assert_int_equal(v.pid_count, 2);
	assert_int_equal(v.inner_count, 2);
	assert_int_equal(v.root_inner, child);
	assert_true(v.shell_job);
	snprintf(path, sizeof(path), "%s/cwd/shared\nname", w->base);
	assert_true(uses(&v, path, USE_SHARED_MAP));
	snprintf(path, sizeof(path), "%s/cwd/written", w->base);
	assert_true(uses(&v, path, USE_WRITABLE));
	assert_true(uses(&v, w->cwd, USE_FOLDER));
	for (size_t i = 0; i < v.use_count; i++)
		assert_null(strstr(v.uses[i].path, "deleted"));
	for (size_t i = v.pid_count; i-- > 0;)
		kill(v.pids[i], SIGKILL);
	waitpid(child, NULL, 0);
	proc_view_deinit(&v);
	assert_int_equal(proc_view_read(&v, child, true), -ESRCH);
	proc_view_deinit(&v);
	close(pipes[0]);
	close(pipes[1]);
}

static void test_mounts(void **state)
{
	struct world *w = *state;
	struct mounts m = { 0 };
	const char *rest;

	lab_write("0 /\n2 /home dir\n7 /home dir/deep\n", "%s/mounts", w->state);
	assert_int_equal(mounts_read_layers(&m, w->state), 0);
	assert_int_equal(mounts_find(&m, "/home dir/deep/x", &rest)->n, 7);
	assert_string_equal(rest, "x");
	assert_int_equal(mounts_find(&m, "/home dirx", &rest)->n, 0);
	assert_string_equal(rest, "home dirx");
	mounts_deinit(&m);
	lab_write("0 /\n99999 /x\n", "%s/mounts", w->state);
	assert_int_equal(mounts_read_layers(&m, w->state), -EBADMSG);
	mounts_deinit(&m);
	lab_write("0 relative\n", "%s/mounts", w->state);
	assert_int_equal(mounts_read_layers(&m, w->state), -EBADMSG);
	mounts_deinit(&m);
	assert_int_equal(mounts_read_proc(&m, getpid()), 0);
	assert_true(mounts_excludes(&m, "/proc/1/maps"));
	assert_true(mounts_excludes(&m, "/run/x"));
	assert_false(mounts_excludes(&m, "/runner"));
	mounts_deinit(&m);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_unchanged),	  TEST(test_written),	     TEST(test_dated_back),
		TEST(test_renamed_over),  TEST(test_truncated),	     TEST(test_same_tick),
		TEST(test_not_accepted),  TEST(test_shared_mapping), TEST(test_force_content),
		TEST(test_kinds),	  TEST(test_whiteouts),	     TEST(test_copy),
		TEST(test_copy_to_tmpfs), TEST(test_closure_links),  TEST(test_closure_view),
		TEST(test_closure_tree),  TEST(test_proc_view),	     TEST(test_mounts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
