// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/place_lab.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/util/io.h"

void place_init(struct place *p)
{
	strcpy(p->base, "/var/tmp/decamp-work-XXXXXX");
	assert_non_null(mkdtemp(p->base));
	snprintf(p->spool, sizeof(p->spool), "%s.spool", p->base);
	snprintf(p->images, sizeof(p->images), "%s.images", p->base);
	assert_int_equal(mkdir(p->spool, 0700), 0);
	assert_int_equal(mkdir(p->images, 0700), 0);
}

void place_deinit(struct place *p)
{
	(void)!remove_tree_at(AT_FDCWD, p->base);
	(void)!remove_tree_at(AT_FDCWD, p->spool);
	(void)!remove_tree_at(AT_FDCWD, p->images);
}

void place_start_as(struct fixture *f, const struct place *p, uid_t uid, const char *script)
{
	/* PACE: seconds that a job sleeps between two lines, where it minds. */
	static const char env[] = "PATH=/usr/bin:/bin\0LANG=C\0PACE=0.04";
	char argv[8192], out[128];
	struct keeper_command command = { .umask = 022,
					  .env = env,
					  .env_size = sizeof(env),
					  .cwd = p->base,
					  .stdout_path = out,
					  .stderr_path = out,
					  .argv = argv,
					  .uid = uid,
					  .gid = uid };
	const char *step = "";
	int r;

	snprintf(out, sizeof(out), "%s/out", p->base);
	command.argv_size = (size_t)snprintf(argv, sizeof(argv), "sh%c-c%c%s", 0, 0, script) + 1;
	assert_int_equal(keeper_start(&f->config, &f->k), 0);
	r = keeper_run(f->k, &command, &step);
	if (r < 0)
		print_message("%s: %s\n", step, strerror(-r));
	assert_int_equal(r, 0);
}

void place_start(struct fixture *f, const struct place *p, const char *script)
{
	place_start_as(f, p, 0, script);
}

char *place_output(const struct fixture *f, const struct place *p, const char *name)
{
	char path[PATH_MAX], full[128];

	snprintf(full, sizeof(full), "%s/%s", p->base, name);
	fixture_path(f, full, path);
	return lab_read("%s", path);
}

size_t place_output_size(const struct fixture *f, const struct place *p, const char *name)
{
	char *text = place_output(f, p, name);
	size_t size = text ? strlen(text) : 0;

	free(text);
	return size;
}

void place_wait_output(const struct fixture *f, const struct place *p, size_t size)
{
	for (int i = 0; i < 3000 && place_output_size(f, p, "out") < size; i++)
		sleep_ms(10);
	assert_true(place_output_size(f, p, "out") >= size);
}

bool place_hurry(const struct fixture *f, const struct place *p)
{
	struct keeper_status status = { 0 };
	char path[PATH_MAX];
	int fd;

	assert_int_equal(keeper_status(f->k, &status), 0);
	snprintf(path, sizeof(path), "/proc/%d/root%s/" PLACE_HURRY, status.main_pid, p->base);
	fd = status.main_pid > 0 ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644) : -1;
	if (fd < 0)
		return false;
	close(fd);
	return true;
}
