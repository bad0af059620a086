// SPDX-License-Identifier: LGPL-2.1-or-later
/* The limits of a working copy (docs/folder.md): refused where they are reached, and no later. */
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

#include "agent/cli/mount_work.h"
#include "agent/util/io.h"

struct lab {
	char dir[64];
	struct cli cli;
	struct worktree *w;
};

/* A new folder without a version: nobody is asked for anything. */
static int setup(void **state)
{
	struct lab *lab = calloc(1, sizeof(*lab));

	assert_non_null(lab);
	strcpy(lab->dir, "/tmp/test-worktree-XXXXXX");
	assert_non_null(mkdtemp(lab->dir));
	lab->cli.socket = "/nonexistent/control.sock";
	assert_int_equal(setenv("XDG_STATE_HOME", lab->dir, 1), 0);
	assert_int_equal(
		worktree_open(&lab->cli, "0123456789abcdef0123456789abcdef", 30, 0, &lab->w), 0);
	*state = lab;
	return 0;
}

static int teardown(void **state)
{
	struct lab *lab = *state;

	worktree_close(lab->w);
	assert_int_equal(remove_tree_at(AT_FDCWD, lab->dir), 0);
	free(lab);
	return 0;
}

static struct folders_node node_of(struct lab *lab, const char *path)
{
	return (struct folders_node){ .type = FOLDERS_WORK, .work = lab->w, .path = path };
}

static int make_dir(struct lab *lab, const char *path)
{
	struct folders_node n = node_of(lab, path);

	return work_mkdir(&n, 0700);
}

static int make_file(struct lab *lab, const char *path)
{
	struct folders_node n = node_of(lab, path);
	struct work_file file;
	int r = work_open(&n, O_WRONLY | O_CREAT, 0600, &file);

	if (r == 0)
		work_close(&file);
	return r;
}

static int make_link(struct lab *lab, const char *target, const char *path)
{
	struct folders_node n = node_of(lab, path);

	return work_symlink(target, &n);
}

static void entries_are_bounded(void **state)
{
	struct lab *lab = *state;
	struct folders_node n = node_of(lab, "d");

	lab->w->entries = WORK_FILES_MAX - 1;
	assert_int_equal(make_dir(lab, "d"), 0);
	assert_int_equal(make_dir(lab, "e"), -ENOSPC);
	assert_int_equal(make_file(lab, "f"), -ENOSPC);
	assert_int_equal(make_link(lab, "t", "l"), -ENOSPC);
	assert_int_equal(faccessat(lab->w->tree_fd, "f", F_OK, 0), -1);
	assert_int_equal(work_unlink(&n, true), 0);
	assert_int_equal(make_file(lab, "f"), 0);
	/* What is there already is opened all the same. */
	assert_int_equal(make_file(lab, "f"), 0);
}

static void names_are_bounded(void **state)
{
	struct lab *lab = *state;

	lab->w->names = WORK_NAMES_MAX - WORK_NAME_COST(3);
	assert_int_equal(make_file(lab, "four"), -ENOSPC);
	assert_int_equal(make_link(lab, "xy", "ab"), -ENOSPC);
	assert_int_equal(make_link(lab, "x", "ab"), 0);
	assert_int_equal(make_file(lab, "a"), -ENOSPC);
}

/* What a walk finds, whoever made it: as many as a version holds, and one more. */
static void lists_are_bounded(void **state)
{
	struct work_list list = { 0 };
	struct work_entry e;
	char name[20];
	int r = 0;

	(void)state;
	for (int i = 0; i <= WORK_FILES_MAX; i++) {
		assert_int_equal(r, 0);
		snprintf(name, sizeof(name), "%d", i);
		e = (struct work_entry){ .path = strdup(name) };
		r = work_list_add_take(&list, &e);
	}
	assert_int_equal(r, -E2BIG);
	assert_int_equal(list.count, WORK_FILES_MAX);
	work_list_deinit(&list);
	list.names = WORK_NAMES_MAX - WORK_NAME_COST(4);
	e = (struct work_entry){ .path = strdup("ab"), .target = strdup("cde") };
	assert_int_equal(work_list_add_take(&list, &e), -E2BIG);
	e = (struct work_entry){ .path = strdup("ab"), .target = strdup("cd") };
	assert_int_equal(work_list_add_take(&list, &e), 0);
	work_list_deinit(&list);
}

static void paths_are_bounded(void **state)
{
	char path[WORK_PATH_MAX + 1];

	(void)state;
	memset(path, 'p', sizeof(path));
	path[WORK_PATH_MAX] = '\0';
	assert_int_equal(work_path_check(path), -ENAMETOOLONG);
	path[WORK_PATH_MAX - 1] = '\0';
	assert_int_equal(work_path_check(path), 0);
	/* "d/d/..": 100 of them, and one more. */
	for (size_t i = 0; i < 2 * WORK_DEPTH_MAX; i++)
		path[i] = i % 2 ? '/' : 'd';
	path[2 * WORK_DEPTH_MAX - 1] = '\0';
	assert_int_equal(work_path_check(path), 0);
	strcat(path, "/d");
	assert_int_equal(work_path_check(path), -ENAMETOOLONG);
}

static void make_deep(struct lab *lab, char *path, int depth)
{
	*path = '\0';
	for (int i = 0; i < depth; i++) {
		strcat(path, i ? "/d" : "d");
		assert_int_equal(make_dir(lab, path), 0);
	}
}

static void depth_is_bounded(void **state)
{
	struct lab *lab = *state;
	char path[2 * WORK_DEPTH_MAX + 2], to[2 * WORK_DEPTH_MAX + 8];
	struct folders_node from = node_of(lab, "two"), n = node_of(lab, to);
	struct work_list list = { 0 };

	make_deep(lab, path, WORK_DEPTH_MAX);
	strcat(path, "/d");
	assert_int_equal(make_dir(lab, path), -ENAMETOOLONG);
	assert_int_equal(make_file(lab, path), -ENAMETOOLONG);
	/* A folder with one in it, moved to where only the first would fit, or both. */
	assert_int_equal(make_dir(lab, "two"), 0);
	assert_int_equal(make_dir(lab, "two/one"), 0);
	snprintf(to, sizeof(to), "%.*s/m", 2 * (WORK_DEPTH_MAX - 1) - 1, path);
	assert_int_equal(work_rename(&from, &n, 0), -ENAMETOOLONG);
	snprintf(to, sizeof(to), "%.*s/m", 2 * (WORK_DEPTH_MAX - 2) - 1, path);
	assert_int_equal(work_rename(&from, &n, 0), 0);
	assert_int_equal(worktree_walk(lab->w, &list), 0);
	assert_int_equal(list.count, WORK_DEPTH_MAX + 2);
	work_list_deinit(&list);
	/* Made beside the mount. */
	snprintf(to, sizeof(to), "%s", path);
	assert_int_equal(mkdirat(lab->w->tree_fd, to, 0700), 0);
	assert_int_equal(worktree_walk(lab->w, &list), -ENAMETOOLONG);
	work_list_deinit(&list);
}

/* Holes cost nothing: the file is as large as one may be. */
static void files_are_bounded(void **state)
{
	struct lab *lab = *state;
	struct folders_node n = node_of(lab, "f");
	struct work_list list = { 0 };
	struct work_file file;
	int fd;

	assert_int_equal(work_open(&n, O_WRONLY | O_CREAT, 0600, &file), 0);
	assert_int_equal(work_write(&file, "xy", 2, WORK_FILE_MAX - 1), -EFBIG);
	assert_int_equal(work_write(&file, "x", 1, WORK_FILE_MAX - 1), 1);
	assert_int_equal(work_truncate(NULL, &file, WORK_FILE_MAX + 1), -EFBIG);
	assert_int_equal(work_truncate(NULL, &file, WORK_FILE_MAX), 0);
	work_close(&file);
	assert_int_equal(worktree_walk(lab->w, &list), 0);
	assert_int_equal(list.items[0].size, WORK_FILE_MAX);
	work_list_deinit(&list);
	fd = openat(lab->w->tree_fd, "f", O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, WORK_FILE_MAX + 1), 0);
	close(fd);
	assert_int_equal(worktree_walk(lab->w, &list), -EFBIG);
	work_list_deinit(&list);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(entries_are_bounded), TEST(names_are_bounded), TEST(lists_are_bounded),
		TEST(paths_are_bounded),   TEST(depth_is_bounded),  TEST(files_are_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
