// SPDX-License-Identifier: LGPL-2.1-or-later
/* What is prepared before a pause: the walk that uses it sees what the one without sees. */
#include "tests/unit/capture_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"

enum {
	BIG = 300 << 10,    /* too big for the stage */
	MIDDLE = 200 << 10, /* a few of them fill it */
	NAMES = 900,	    /* of 200 bytes: more than a listing's first buffer */
	CHILDREN = 900,
};

struct world {
	char base[64];
	char state[96], spool[96];
	struct mounts layers;
	char reason[CAPTURE_REASON_MAX];
};

/* One walk and where its copies are. */
struct walked {
	struct entries entries;
	size_t copies;
	int spool;
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	char path[PATH_MAX];

	/* Not /tmp: that is a tmpfs at times, which has no user attributes. */
	strcpy(w->base, "/var/tmp/decamp-ready-XXXXXX");
	assert_non_null(mkdtemp(w->base));
	snprintf(w->state, sizeof(w->state), "%s/state", w->base);
	snprintf(w->spool, sizeof(w->spool), "%s/spool", w->base);
	snprintf(path, sizeof(path), "%s/upper/0/a/b", w->state);
	assert_int_equal(mkdir_parents(path, 0755), 0);
	assert_int_equal(mkdir_parents(w->spool, 0700), 0);
	assert_int_equal(mounts_read_layers(&w->layers, w->state), 0);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	mounts_deinit(&w->layers);
	assert_int_equal(remove_tree_at(AT_FDCWD, w->base), 0);
	free(w);
	return 0;
}

static void put(const struct world *w, const char *name, size_t size, off_t at)
{
	_cleanup_free_ char *bytes = malloc(size + 1);
	_cleanup_close_ int fd = -1;
	char path[PATH_MAX];

	assert_non_null(bytes);
	for (size_t i = 0; i < size; i++)
		bytes[i] = (char)(i * 31 + size + strlen(name));
	snprintf(path, sizeof(path), "%s/upper/0/%s", w->state, name);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0640);
	assert_true(fd >= 0);
	assert_int_equal(pwrite_full(fd, bytes, size, at), 0);
	assert_int_equal(fsync(fd), 0);
}

static void fill(const struct world *w)
{
	char path[PATH_MAX], name[256];

	put(w, "empty", 0, 0);
	put(w, "small", 5000, 0);
	put(w, "a/b/deep", 77, 0);
	put(w, "a/big", BIG, 0);
	put(w, "sparse", 100, MIDDLE);
	snprintf(path, sizeof(path), "%s/upper/0/a/link", w->state);
	assert_int_equal(symlink("b/deep", path), 0);
	snprintf(path, sizeof(path), "%s/upper/0/a/b", w->state);
	(void)!setxattr(path, "user.folder", "yes", 3, 0);
	snprintf(path, sizeof(path), "%s/upper/0/small", w->state);
	(void)!setxattr(path, "user.note", "hi", 2, 0);
	(void)!setxattr(path, "user.other", "you", 3, 0);
	for (int i = 0; i < NAMES; i++) {
		snprintf(path, sizeof(path), "%s/upper/0/a/many/%0200d/%d", w->state, i, i);
		assert_int_equal(mkdir_parents(path, 0755), 0);
	}
	for (int i = 0; i < NAMES; i += 100) {
		snprintf(name, sizeof(name), "a/many/%0200d/file", i);
		put(w, name, 10 + (size_t)i, 0);
	}
}

static void walk(struct world *w, struct walked *o, const char *folder, struct ready *ready)
{
	struct walk walk = { .entries = &o->entries,
			     .ready = ready,
			     .past = &(struct past){ 0 },
			     .layers = &w->layers,
			     .reason = w->reason };
	char path[PATH_MAX];

	clock_gettime(CLOCK_REALTIME, &walk.freeze);
	snprintf(path, sizeof(path), "%s/%s", w->spool, folder);
	assert_int_equal(mkdir(path, 0700), 0);
	walk.spool_files = o->spool = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(o->spool >= 0);
	assert_int_equal(walk_uppers(&walk, w->state), 0);
	o->copies = walk.copies;
	free(walk.shared);
}

static void end(struct walked *o)
{
	entries_deinit(&o->entries);
	close(o->spool);
}

static struct entry *entry_of(struct walked *o, const char *path)
{
	size_t i;

	assert_true(paths_find(&o->entries.index, SNAPSHOT_UPPER, path, &i));
	return &o->entries.v[i];
}

static size_t count_staged(const struct walked *o)
{
	size_t n = 0;

	for (size_t i = 0; i < o->entries.count; i++)
		n += o->entries.v[i].content == CONTENT_STAGED;
	return n;
}

static char *content_of(const struct walked *o, const struct entry *e)
{
	char name[32], *text;
	size_t size;

	assert_int_equal(e->content, CONTENT_SPOOL);
	snprintf(name, sizeof(name), "%zu", e->spool_index);
	assert_int_equal(read_file_at(o->spool, name, 1 << 24, &text, &size), 0);
	assert_int_equal(size, e->st.st_size);
	return text;
}

static void compare(struct walked *a, struct walked *b)
{
	assert_int_equal(a->entries.count, b->entries.count);
	for (size_t i = 0; i < a->entries.count; i++) {
		const struct entry *x = &a->entries.v[i], *y = entry_of(b, x->path);

		assert_int_equal(x->content, y->content);
		assert_int_equal(x->unsettled, y->unsettled);
		assert_int_equal(x->st.st_mode, y->st.st_mode);
		assert_int_equal(x->st.st_ino, y->st.st_ino);
		assert_int_equal(x->xattrs_size, y->xattrs_size);
		if (x->xattrs_size)
			assert_memory_equal(x->xattrs, y->xattrs, x->xattrs_size);
		assert_int_equal(!x->link_target, !y->link_target);
		if (x->link_target)
			assert_string_equal(x->link_target, y->link_target);
		if (x->content == CONTENT_SPOOL) {
			_cleanup_free_ char *s = content_of(a, x), *t = content_of(b, y);

			assert_memory_equal(s, t, (size_t)x->st.st_size);
		}
	}
}

static void test_same_as_plain(void **state)
{
	struct world *w = *state;
	struct walked plain = { 0 }, prepared = { 0 };
	struct ready ready = { 0 };

	fill(w);
	usleep(2 * CAPTURE_CTIME_SLACK_MS * 1000);
	walk(w, &plain, "plain", NULL);
	assert_int_equal(ready_make(&ready, w->state, &w->layers, getpid(), 0), 0);
	walk(w, &prepared, "ready", &ready);
	assert_int_equal(entry_of(&prepared, "0/small")->content, CONTENT_STAGED);
	assert_int_equal(entry_of(&prepared, "0/empty")->content, CONTENT_STAGED);
	assert_int_equal(entry_of(&prepared, "0/a/big")->content, CONTENT_SPOOL);
	assert_int_equal(entry_of(&prepared, "0/sparse")->content, CONTENT_SPOOL);
	assert_int_equal(ready_flush(&ready, &prepared.entries, prepared.spool, &prepared.copies,
				     w->reason),
			 0);
	assert_int_equal(count_staged(&prepared), 0);
	assert_int_equal(prepared.copies, plain.copies);
	compare(&plain, &prepared);
	ready_drop(&ready);
	end(&plain);
	end(&prepared);
}

/* What the stage has no room for is copied to the spool at once, as ever. */
static void test_full_stage(void **state)
{
	struct world *w = *state;
	struct walked o = { 0 }, plain = { 0 };
	struct ready ready = { 0 };
	char name[16];

	for (int i = 0; i < 8; i++) {
		snprintf(name, sizeof(name), "%d", i);
		put(w, name, MIDDLE + (size_t)i, 0);
	}
	usleep(2 * CAPTURE_CTIME_SLACK_MS * 1000);
	walk(w, &plain, "plain", NULL);
	assert_int_equal(ready_make(&ready, w->state, &w->layers, getpid(), 0), 0);
	walk(w, &o, "ready", &ready);
	assert_int_equal(count_staged(&o), READY_STAGE / (MIDDLE + 7));
	assert_true(ready.staged <= READY_STAGE);
	assert_int_equal(ready_flush(&ready, &o.entries, o.spool, &o.copies, w->reason), 0);
	assert_int_equal(o.copies, 8);
	compare(&plain, &o);
	ready_drop(&ready);
	end(&plain);
	end(&o);
}

/* A spool that cannot take it is an error that names the file. */
static void test_flush_fails(void **state)
{
	struct world *w = *state;
	struct walked o = { 0 };
	struct ready ready = { 0 };
	_cleanup_close_ int taken = -1;

	put(w, "file", 100, 0);
	assert_int_equal(ready_make(&ready, w->state, &w->layers, getpid(), 0), 0);
	walk(w, &o, "ready", &ready);
	taken = openat(o.spool, "0", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ready_flush(&ready, &o.entries, o.spool, &o.copies, w->reason), -EEXIST);
	assert_non_null(strstr(w->reason, "0/file"));
	ready_drop(&ready);
	end(&o);
}

static void test_carried(void **state)
{
	struct world *w = *state;
	struct walked plain = { 0 }, prepared = { 0 };
	struct ready ready = { 0 };
	static const char list[] = "0/a/b\0"
				   "0/a/gone/below\0"
				   "0/lost";
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/carried.list", w->state);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(write_full(fd, list, sizeof(list)), 0);
	close(fd);
	usleep(2 * CAPTURE_CTIME_SLACK_MS * 1000);
	walk(w, &plain, "plain", NULL);
	assert_int_equal(ready_make(&ready, w->state, &w->layers, getpid(), 0), 0);
	walk(w, &prepared, "ready", &ready);
	assert_true(S_ISCHR(entry_of(&prepared, "0/a/gone")->st.st_mode));
	assert_true(S_ISCHR(entry_of(&prepared, "0/lost")->st.st_mode));
	compare(&plain, &prepared);
	ready_drop(&ready);
	end(&plain);
	end(&prepared);
}

static void test_no_layer(void **state)
{
	struct world *w = *state;
	struct walked o = { 0 };
	struct ready ready = { 0 };
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/upper", w->state);
	assert_int_equal(remove_tree_at(AT_FDCWD, path), 0);
	assert_int_equal(ready_make(&ready, w->state, &w->layers, getpid(), 0), 0);
	walk(w, &o, "ready", &ready);
	assert_int_equal(o.entries.count, 0);
	ready_drop(&ready);
	ready_drop(&ready);
	end(&o);
}

/* A rehearsal counts what is large; that much is copied to memory, and one more is not. */
static void test_large(void **state)
{
	struct world *w = *state;
	struct walked plain = { 0 }, prepared = { 0 };
	struct entries entries = { 0 };
	struct ready ready = { 0 };
	struct walk rehearsal = { .entries = &entries,
				  .layers = &w->layers,
				  .shared_known = true,
				  .rehearsal = true,
				  .spool_files = -1,
				  .reason = w->reason };

	fill(w);
	put(w, "big too", BIG + READY_STAGE, 0);
	usleep(2 * CAPTURE_CTIME_SLACK_MS * 1000);
	walk(w, &plain, "plain", NULL);
	assert_int_equal(ready_make(&ready, w->state, &w->layers, getpid(), 0), 0);
	rehearsal.scratch = ready.stage;
	assert_int_equal(walk_uppers(&rehearsal, w->state), 0);
	assert_int_equal(rehearsal.copies, 0);
	assert_int_equal(rehearsal.large_bytes, 2 * BIG + READY_STAGE);
	ready_expect(&ready, rehearsal.large_bytes);
	put(w, "late", 2 * READY_STAGE, 0);
	usleep(2 * CAPTURE_CTIME_SLACK_MS * 1000);
	walk(w, &prepared, "ready", &ready);
	assert_int_equal(entry_of(&prepared, "0/small")->content, CONTENT_STAGED);
	assert_int_equal(entry_of(&prepared, "0/sparse")->content, CONTENT_SPOOL);
	assert_true(ready.large_staged <= ready.large_room);
	assert_int_equal((entry_of(&prepared, "0/a/big")->content == CONTENT_SPOOL) +
				 (entry_of(&prepared, "0/big too")->content == CONTENT_SPOOL) +
				 (entry_of(&prepared, "0/late")->content == CONTENT_SPOOL),
			 1);
	assert_int_equal(ready_flush(&ready, &prepared.entries, prepared.spool, &prepared.copies,
				     w->reason),
			 0);
	assert_int_equal(prepared.copies, plain.copies + 1);
	for (size_t i = 0; i < plain.entries.count; i++) {
		const struct entry *x = &plain.entries.v[i], *y = entry_of(&prepared, x->path);

		assert_int_equal(x->content, y->content);
		if (x->content == CONTENT_SPOOL) {
			_cleanup_free_ char *s = content_of(&plain, x);
			_cleanup_free_ char *t = content_of(&prepared, y);

			assert_memory_equal(s, t, (size_t)x->st.st_size);
		}
	}
	ready_drop(&ready);
	entries_deinit(&entries);
	end(&plain);
	end(&prepared);
}

static void test_rehearsal(void **state)
{
	struct world *w = *state;
	struct entries entries = { 0 };
	struct walk walk = { .entries = &entries,
			     .layers = &w->layers,
			     .shared_known = true,
			     .rehearsal = true,
			     .spool_files = -1,
			     .reason = w->reason };

	put(w, "small", 5000, 0);
	put(w, "a/big", BIG, 0);
	assert_int_equal(walk_uppers(&walk, w->state), 0);
	assert_int_equal(walk.copies, 0);
	for (size_t i = 0; i < entries.count; i++)
		assert_int_equal(entries.v[i].content, CONTENT_NONE);
	assert_int_equal(entries.count, 5); /* 0, 0/a, 0/a/b, and the files */
	entries_deinit(&entries);
}

static pid_t child(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	assert_true(pid > 0);
	return pid;
}

static void end_child(pid_t pid)
{
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* This process in the place of the job's init. One descriptor tells it each time as it is then. */
static void test_orphans(void **state)
{
	pid_t self = getpid(), first, main_pid, other, many[CHILDREN];
	int children = proc_open_children(self);
	siginfo_t info;

	(void)state;
	if (children == -ENOENT) {
		print_message("SKIP: the kernel has no lists of children\n");
		skip();
	}
	assert_true(children >= 0);
	first = main_pid = child();
	assert_int_equal(proc_find_orphan_in(children, self, main_pid), 0);
	other = child();
	assert_int_equal(proc_find_orphan_in(children, self, main_pid), other);
	assert_int_equal(proc_find_orphan(self, main_pid), other);
	assert_int_equal(kill(other, SIGKILL), 0);
	assert_int_equal(waitid(P_PID, (id_t)other, &info, WEXITED | WNOWAIT), 0);
	/* It has ended and waits for its parent: nothing to lose. */
	assert_int_equal(proc_find_orphan_in(children, self, main_pid), 0);
	assert_int_equal(waitpid(other, NULL, 0), other);
	/* More than one read gives. */
	for (int i = 0; i < CHILDREN; i++)
		many[i] = child();
	assert_int_equal(proc_find_orphan_in(children, self, main_pid), many[0]);
	assert_int_equal(proc_find_orphan_in(children, self, many[0]), first);
	for (int i = 0; i < CHILDREN; i++)
		end_child(many[i]);
	assert_int_equal(proc_find_orphan_in(children, self, main_pid), 0);
	end_child(main_pid);
	close(children);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_same_as_plain), TEST(test_full_stage), TEST(test_flush_fails),
		TEST(test_carried),	  TEST(test_no_layer),	 TEST(test_rehearsal),
		TEST(test_large),	  TEST(test_orphans),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
