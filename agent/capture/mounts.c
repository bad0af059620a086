// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"

enum { MOUNTS_TEXT_MAX = 4 << 20, MOUNTS_ROWS_MAX = 4096 };

bool capture_is_below(const char *path, const char *folder)
{
	size_t n = strlen(folder);

	if (n == 1 && folder[0] == '/')
		return path[0] == '/';
	return !strncmp(path, folder, n) && (path[n] == '/' || path[n] == '\0');
}

static int push_row(struct mounts *m, unsigned int n, const char *path, const char *fstype)
{
	struct mount_row *row;

	if (path[0] != '/' || m->count == MOUNTS_ROWS_MAX)
		return -EBADMSG;
	if (m->count == m->room) {
		size_t room = m->room ? 2 * m->room : 32;
		struct mount_row *more = realloc(m->v, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		m->v = more;
		m->room = room;
	}
	row = &m->v[m->count];
	*row = (struct mount_row){ .n = n, .path = strdup(path), .fstype = strdup(fstype) };
	if (!row->path || !row->fstype) {
		free(row->path);
		free(row->fstype);
		return -ENOMEM;
	}
	m->count++;
	return 0;
}

int mounts_read_layers(struct mounts *m, const char *state_dir)
{
	char path[PATH_MAX], *line, *next;
	_cleanup_free_ char *text = NULL;
	int r;

	if (snprintf(path, sizeof(path), "%s/mounts", state_dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	r = read_file_at(AT_FDCWD, path, MOUNTS_TEXT_MAX, &text, NULL);
	if (r == -ENOENT)
		return push_row(m, 0, "/", "overlay");
	if (r < 0)
		return r;
	for (line = text; *line; line = next) {
		size_t length = strcspn(line, "\n");
		unsigned long n;
		char *end;

		next = line + length + (line[length] == '\n');
		line[length] = '\0';
		n = strtoul(line, &end, 10);
		if (end == line || *end != ' ' || n >= KEEPER_MOUNTS_MAX)
			return -EBADMSG;
		r = push_row(m, (unsigned int)n, end + 1, "overlay");
		if (r < 0)
			return r;
	}
	return m->count ? 0 : -EBADMSG;
}

/* Blanks, tabs, newlines and backslashes are \ooo in mountinfo. */
static void unescape_octal(char *text)
{
	char *to = text;

	while (*text) {
		if (text[0] == '\\' && text[1] >= '0' && text[1] <= '3' && text[2] >= '0' &&
		    text[2] <= '7' && text[3] >= '0' && text[3] <= '7') {
			*to++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 |
				       (text[3] - '0'));
			text += 4;
		} else {
			*to++ = *text++;
		}
	}
	*to = '\0';
}

/* "36 35 98:0 /root /mount/point options [fields] - fstype source options" */
static int push_mountinfo(struct mounts *m, char *line)
{
	char *save, *field, *path = NULL, *fstype = NULL;
	bool after_dash = false;
	int i = 0;

	for (field = strtok_r(line, " ", &save); field; field = strtok_r(NULL, " ", &save), i++) {
		if (i == 4)
			path = field;
		if (after_dash) {
			fstype = field;
			break;
		}
		after_dash = i > 4 && !strcmp(field, "-");
	}
	if (!path || !fstype)
		return -EBADMSG;
	unescape_octal(path);
	return push_row(m, (unsigned int)m->count, path, fstype);
}

int mounts_read_proc(struct mounts *m, pid_t pid)
{
	char path[64], *line, *save;
	_cleanup_free_ char *text = NULL;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/mountinfo", pid);
	r = read_file_at(AT_FDCWD, path, MOUNTS_TEXT_MAX, &text, NULL);
	for (line = r < 0 ? NULL : strtok_r(text, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		r = push_mountinfo(m, line);
		if (r < 0)
			break;
	}
	return r;
}

const struct mount_row *mounts_find(const struct mounts *m, const char *path, const char **ret_rest)
{
	const struct mount_row *best = NULL;
	size_t best_length = 0;

	for (size_t i = 0; i < m->count; i++) {
		size_t length = strlen(m->v[i].path);

		if (length >= best_length && capture_is_below(path, m->v[i].path)) {
			best = &m->v[i];
			best_length = length;
		}
	}
	if (best && ret_rest) {
		*ret_rest = path + best_length;
		while (**ret_rest == '/')
			(*ret_rest)++;
	}
	return best;
}

bool mounts_excludes(const struct mounts *m, const char *path)
{
	static const char *const folders[] = { "/proc", "/sys", "/dev", "/run" };
	/* Not on a disk of this host: kernel interfaces, or seen alike by every host. */
	static const char *const types[] = {
		"proc",	     "sysfs",	    "devtmpfs",	  "devpts",	    "cgroup",
		"cgroup2",   "securityfs",  "debugfs",	  "tracefs",	    "bpf",
		"mqueue",    "hugetlbfs",   "pstore",	  "efivarfs",	    "configfs",
		"autofs",    "binfmt_misc", "nfs",	  "nfs4",	    "cifs",
		"smb3",	     "smbfs",	    "ceph",	  "glusterfs",	    "lustre",
		"gpfs",	     "9p",	    "afs",	  "beegfs",	    "beegfs_nodev",
		"pvfs2",     "orangefs",    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph",
		"fuse.s3fs", "virtiofs",
	};
	const struct mount_row *row;

	for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
		if (capture_is_below(path, folders[i]))
			return true;
	}
	row = mounts_find(m, path, NULL);
	for (size_t i = 0; row && i < ARRAY_SIZE(types); i++) {
		if (!strcmp(row->fstype, types[i]))
			return true;
	}
	return false;
}

void mounts_deinit(struct mounts *m)
{
	for (size_t i = 0; i < m->count; i++) {
		free(m->v[i].path);
		free(m->v[i].fstype);
	}
	free(m->v);
	*m = (struct mounts){ 0 };
}
