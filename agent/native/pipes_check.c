// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/pipes_internal.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <string.h>

enum { PARENTS_MAX = 64 };

/* A process that was born after the job was listed belongs to it all the same. */
static bool is_of_job(const struct native_files *f, pid_t pid)
{
	for (int i = 0; pid > 1 && i < PARENTS_MAX; i++) {
		char path[64], text[512], *end;
		_cleanup_fclose_ FILE *file = NULL;
		size_t n;

		if (files_in_tree(f, pid))
			return true;
		snprintf(path, sizeof(path), "/proc/%d/stat", pid);
		file = fopen(path, "re");
		n = file ? fread(text, 1, sizeof(text) - 1, file) : 0;
		text[n] = '\0';
		/* "PID (NAME) STATE PPID ...": a name may contain anything. */
		end = strrchr(text, ')');
		if (!end || sscanf(end + 1, " %*c %d", &pid) != 1)
			return true;
	}
	return false;
}

static bool has_end(int fds, const char *name, pid_t pid, const struct native_open *o, bool writing)
{
	char path[64];
	struct stat st;
	_cleanup_fclose_ FILE *file = NULL;
	unsigned int flags = 0, mode;

	if (fstatat(fds, name, &st, 0) < 0 || !S_ISFIFO(st.st_mode) || st.st_ino != o->fd->ino ||
	    (major(st.st_dev) << 20 | minor(st.st_dev)) != o->fd->dev)
		return false;
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.16s", pid, name);
	file = fopen(path, "re");
	if (!file || fscanf(file, "pos: %*d flags: %o", &flags) != 1)
		return false;
	mode = flags & O_ACCMODE;
	return mode == O_RDWR || mode == (writing ? O_WRONLY : O_RDONLY);
}

static bool is_holder(pid_t pid, const struct native_open *o, bool writing)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *e;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && (e = readdir(dir)) != NULL)
		if (isdigit((unsigned char)e->d_name[0]) &&
		    has_end(dirfd(dir), e->d_name, pid, o, writing))
			return true;
	return false;
}

static void read_name(pid_t pid, char name[17])
{
	_cleanup_fclose_ FILE *file = NULL;
	char path[64];
	size_t n;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	file = fopen(path, "re");
	n = file ? fread(name, 1, 16, file) : 0;
	name[n] = '\0';
	name[strcspn(name, "\n")] = '\0';
}

int pipe_check_holders(struct native_files *f, const struct native_open *o, bool writing)
{
	_cleanup_closedir_ DIR *dir = opendir("/proc");
	struct dirent *e;
	char name[17];

	while (dir && (e = readdir(dir)) != NULL) {
		pid_t pid = (pid_t)strtol(e->d_name, NULL, 10);

		if (pid <= 0 || !is_holder(pid, o, writing) || is_of_job(f, pid))
			continue;
		read_name(pid, name);
		return files_refuse(f, o, "is a pipe that process %d (%s), outside of the job, %s",
				    pid, name, writing ? "writes to" : "reads from");
	}
	return 0;
}
