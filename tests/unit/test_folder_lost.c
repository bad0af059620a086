// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A commit whose answer is lost, at each place where it can be: what is sent next neither loses a
 * version nor makes it twice, and nobody is told of another working copy.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/cli/worktree.h"
#include "agent/util/io.h"
#include "tests/unit/folder_lab.h"

enum death { NOBODY, DECAMPD = 1, MOUNT = 2, BOTH = 3 };

/* What happens to the commit of a file "b", and whether its version is there then. */
static const struct fault {
	const char *what;
	unsigned int lost_answers; /* of decampd's to the mount */
	enum folder_lab_fault cas;
	enum death death;
	bool made;
	bool answered; /* the mount is told */
} faults[] = {
	{ "decampd's answer is lost", 1, FAULT_NONE, NOBODY, true, false },
	{ "decampd dies before it answers", 1, FAULT_NONE, DECAMPD, true, false },
	{ "the mount dies before it is answered", 1, FAULT_NONE, MOUNT, true, false },
	{ "both die then", 1, FAULT_NONE, BOTH, true, false },
	{ "the register's answer is lost on the way", 0, FAULT_LOST, NOBODY, true, true },
	{ "the register took it and says otherwise", 0, FAULT_FAILED, NOBODY, true, false },
	{ "and decampd dies", 0, FAULT_FAILED, DECAMPD, true, false },
	{ "and the mount dies", 0, FAULT_FAILED, MOUNT, true, false },
	{ "the register did not take it", 0, FAULT_IDLE, NOBODY, false, false },
	{ "decampd dies before the register took it", 0, FAULT_IDLE, DECAMPD, false, false },
	{ "the mount, too", 0, FAULT_IDLE, BOTH, false, false },
};

struct writer {
	struct folder_lab *lab;
	struct cli cli;
	struct worktree *w;
	char id[33];
};

static void open_copy(struct writer *u, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", u->lab->dir, name);
	assert_int_equal(setenv("XDG_STATE_HOME", path, 1), 0);
	assert_int_equal(worktree_open(&u->cli, u->id, 30, 0, &u->w), 0);
}

/* A folder with one version, in which is the file "a". */
static void make_user(struct writer *u, struct folder_lab *lab, const char *name)
{
	struct folder *f = folder_lab_make(lab, getuid(), name, 0);

	*u = (struct writer){ .lab = lab, .cli = { .socket = lab->socket } };
	strcpy(u->id, f->job->hex);
	folder_unref(lab->a, f);
	open_copy(u, "copy");
}

static void put_file(struct writer *u, const char *name, const char *text)
{
	int fd = openat(u->w->tree_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, text, strlen(text)), 0);
	close(fd);
}

static void die(struct writer *u, enum death death)
{
	if (death & MOUNT)
		worktree_close(u->w); /* what it has in memory is gone, nothing is written */
	if (death & DECAMPD) {
		folder_lab_die(u->lab);
		folder_lab_start(u->lab);
	}
	if (death & MOUNT)
		open_copy(u, "copy");
}

static int64_t newest(struct writer *u, char manifest[65])
{
	int64_t seq;

	assert_int_equal(worktree_newest(&u->cli, u->id, &seq, manifest), 0);
	return seq;
}

/* The newest version as a host that has no copy would get it. */
static void check_version(struct writer *u, const char *const files[][2], size_t count)
{
	struct work_list list = { 0 };
	char manifest[65], path[128], *text;
	int64_t seq;
	int fd;

	snprintf(path, sizeof(path), "%s/fetched", u->lab->dir);
	assert_int_equal(remove_tree_at(AT_FDCWD, path), 0);
	assert_int_equal(mkdirat(AT_FDCWD, path, 0700), 0);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(worktree_fetch(&u->cli, u->id, fd, &list, &seq, manifest), 0);
	assert_int_equal(list.count, count);
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(read_file_at(fd, files[i][0], 100, &text, NULL), 0);
		assert_string_equal(text, files[i][1]);
		free(text);
	}
	work_list_deinit(&list);
	close(fd);
}

/* Each version once, none left out. */
static void check_count(struct writer *u, uint64_t count)
{
	struct job_id id;
	struct folder *f;

	assert_int_equal(hex_decode(u->id, &id, sizeof(id)), 0);
	f = folder_lab_find(u->lab, &id);
	assert_int_equal(f->version_count, count);
	for (size_t i = 0; i < f->version_count; i++)
		assert_int_equal(f->versions[i].ref.seq, count - i);
	folder_unref(u->lab->a, f);
}

static void commit_with(struct writer *u, const struct fault *fault)
{
	u->lab->lose_commits = fault->lost_answers;
	u->lab->cas_fault = fault->cas;
	u->lab->cas_faults = fault->cas != FAULT_NONE;
	put_file(u, "b", "sent");
	assert_int_equal(worktree_commit(u->w, 0, false), fault->answered ? 0 : -EIO);
	assert_int_equal(u->lab->lose_commits, 0);
	assert_int_equal(u->lab->cas_faults, 0);
	die(u, fault->death);
}

static void begin_with(struct writer *u, struct folder_lab *lab, const struct fault *fault)
{
	char name[20];

	snprintf(name, sizeof(name), "f%zu", (size_t)(fault - faults));
	print_message("%s\n", fault->what);
	make_user(u, lab, name);
	put_file(u, "a", "first");
	assert_int_equal(worktree_commit(u->w, 0, false), 0);
	commit_with(u, fault);
}

static void end_with(struct writer *u)
{
	char manifest[65];

	assert_string_equal(u->w->problem, "");
	assert_int_equal(newest(u, manifest), u->w->index_seq);
	assert_string_equal(manifest, u->w->index_manifest);
	assert_true(u->w->index_sure);
	assert_string_equal(u->w->next_stamp, "");
	assert_int_equal(faccessat(u->w->dir_fd, "next", F_OK, 0), -1);
	/* It goes on as if nothing had been. */
	put_file(u, "c", "later");
	assert_int_equal(worktree_commit(u->w, 0, false), 0);
	assert_int_equal(newest(u, manifest), u->w->index_seq);
	worktree_close(u->w);
}

static void each(void **state, void (*test)(struct writer *u, const struct fault *fault))
{
	struct folder_lab *lab = *state;

	for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
		struct folder *folders[FOLDERS_MAX];
		struct writer u;

		begin_with(&u, lab, &faults[i]);
		test(&u, &faults[i]);
		end_with(&u);
		/* The user's eight would be used up. */
		for (size_t n = folders_all(lab->a, folders); n > 0; n--) {
			pthread_mutex_lock(&folders[n - 1]->lock);
			folder_leave(folders[n - 1]);
			pthread_mutex_unlock(&folders[n - 1]->lock);
			folder_unref(lab->a, folders[n - 1]);
		}
		memset(lab->a->folder_creates, 0, sizeof(lab->a->folder_creates));
	}
}

static void unchanged(struct writer *u, const struct fault *fault)
{
	static const char *const files[][2] = { { "a", "first" }, { "b", "sent" } };

	(void)fault;
	assert_int_equal(worktree_commit(u->w, 0, false), 0);
	check_count(u, 2);
	check_version(u, files, 2);
	assert_int_equal(worktree_commit(u->w, 0, false), 0);
	check_count(u, 2);
}

static void changed(struct writer *u, const struct fault *fault)
{
	static const char *const files[][2] = { { "a", "other" }, { "b", "sent" } };

	put_file(u, "a", "other");
	assert_int_equal(worktree_commit(u->w, 0, false), 0);
	check_count(u, fault->made ? 3 : 2);
	check_version(u, files, 2);
}

/* As it was in the version before: but that is not the newest one any more. */
static void reverted(struct writer *u, const struct fault *fault)
{
	static const char *const files[][2] = { { "a", "first" } };

	assert_int_equal(unlinkat(u->w->tree_fd, "b", 0), 0);
	assert_int_equal(worktree_commit(u->w, 0, false), 0);
	check_count(u, fault->made ? 3 : 1);
	check_version(u, files, 1);
}

/* What is open stays as in the newest version, which is the one whose answer was lost. */
static void open_again(struct writer *u, const struct fault *fault)
{
	static const char *const files[][2] = { { "a", "other" }, { "b", "sent" } };
	struct stat st;

	put_file(u, "b", "half");
	assert_int_equal(fstatat(u->w->tree_fd, "b", &st, 0), 0);
	pthread_mutex_lock(&u->w->lock);
	assert_int_equal(worktree_writer_add(u->w, st.st_ino), 0);
	pthread_mutex_unlock(&u->w->lock);
	put_file(u, "a", "other");
	assert_int_equal(worktree_commit(u->w, 0, false), 0);
	check_count(u, fault->made ? 3 : 2);
	check_version(u, files, fault->made ? 2 : 1); /* else it was in none before */
	pthread_mutex_lock(&u->w->lock);
	worktree_writer_remove(u->w, st.st_ino);
	pthread_mutex_unlock(&u->w->lock);
}

static void test_unchanged(void **state)
{
	each(state, unchanged);
}

static void test_changed(void **state)
{
	each(state, changed);
}

static void test_reverted(void **state)
{
	each(state, reverted);
}

static void test_open_again(void **state)
{
	each(state, open_again);
}

/* Lost again and again: all that is asked is answered by the last one. */
static void test_many_lost(void **state)
{
	static const char *const files[][2] = { { "a", "first" }, { "b", "last" } };
	struct writer u;

	begin_with(&u, *state, &faults[0]);
	for (int i = 0; i < 3; i++) {
		put_file(&u, "b", "new");
		u.lab->lose_commits = 1;
		assert_int_equal(worktree_commit(u.w, 0, false), -EIO);
		die(&u, (enum death)i);
	}
	put_file(&u, "b", "last");
	assert_int_equal(worktree_commit(u.w, 0, false), 0);
	check_count(&u, 6);
	check_version(&u, files, 2);
	end_with(&u);
}

/* Two copies in earnest: the one that is behind is told so, also where an answer of it was lost. */
static void test_other_copy(void **state)
{
	static const char *const files[][2] = { { "a", "first" },
						{ "b", "sent" },
						{ "o", "other" } };
	struct writer u, other;

	begin_with(&u, *state, &faults[0]);
	other = u;
	assert_int_equal(setenv("XDG_STATE_HOME", u.lab->dir, 1), 0);
	assert_int_equal(worktree_open(&other.cli, other.id, 30, 2, &other.w), 0);
	put_file(&other, "o", "other");
	assert_int_equal(worktree_commit(other.w, 0, false), 0);
	put_file(&u, "b", "behind");
	assert_int_equal(worktree_commit(u.w, 0, false), -EIO);
	assert_non_null(strstr(u.w->problem, "another working copy"));
	check_count(&u, 3);
	check_version(&u, files, 3);
	worktree_close(u.w);
	worktree_close(other.w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FOLDER_TEST(test_unchanged), FOLDER_TEST(test_changed),
		FOLDER_TEST(test_reverted),  FOLDER_TEST(test_open_again),
		FOLDER_TEST(test_many_lost), FOLDER_TEST(test_other_copy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
