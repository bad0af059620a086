// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/keeper/mountinfo.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

bool path_is_below(const char *path, const char *folder)
{
	size_t len = strlen(folder);

	return len > 0 && !strncmp(path, folder, len) && (path[len] == '/' || path[len] == '\0');
}

static bool is_one_of(const char *type, const char *const *list, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (!strcmp(type, list[i]))
			return true;
	}
	return false;
}

enum mountinfo_class mountinfo_classify(const struct mountinfo_row *row)
{
	static const char *const local[] = {
		"ext2",	 "ext3", "ext4",     "xfs",	 "btrfs", "f2fs",
		"tmpfs", "jfs",	 "reiserfs", "bcachefs", "zfs",	  MOUNTINFO_TYPE_OVERLAY
	};
	static const char *const network[] = {
		"nfs",	  "nfs4", "cifs",	"smb3", "ceph", "glusterfs", "fuse.glusterfs",
		"lustre", "gpfs", "fuse.sshfs", "9p",	"afs",	"beegfs",    "virtiofs"
	};
	static const char *const readonly[] = {
		"squashfs", "iso9660", "udf",  "erofs",	  "vfat",
		"exfat",    "ntfs3",   "ntfs", "fuseblk", "hfsplus"
	};

	if (is_one_of(row->type, local, ARRAY_SIZE(local)))
		return MOUNT_CLASS_LOCAL;
	if (is_one_of(row->type, network, ARRAY_SIZE(network)))
		return MOUNT_CLASS_NETWORK;
	if (is_one_of(row->type, readonly, ARRAY_SIZE(readonly)))
		return MOUNT_CLASS_READONLY;
	/* Other overlays are the roots of somebody's containers. */
	return MOUNT_CLASS_SKIP;
}

/* The kernel writes blanks and backslashes as three octal digits. */
static void unescape(char *text)
{
	char *out = text;

	for (const char *in = text; *in; in++) {
		if (in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] >= '0' && in[2] <= '7' &&
		    in[3] >= '0' && in[3] <= '7') {
			*out++ = (char)((in[1] - '0') << 6 | (in[2] - '0') << 3 | (in[3] - '0'));
			in += 3;
		} else {
			*out++ = *in;
		}
	}
	*out = '\0';
}

/* False for a mount that another one covers. */
static bool is_visible(const struct mountinfo_row *row)
{
	struct statx stx;

	/* Without sync: a dead file server must not stop a job's start. */
	if (statx(AT_FDCWD, row->path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC,
		  STATX_MNT_ID, &stx))
		return false;
	return !(stx.stx_mask & STATX_MNT_ID) || stx.stx_mnt_id == (unsigned)row->id;
}

static bool has_option(const char *options, const char *name)
{
	size_t len = strlen(name);

	for (const char *p = options; p; p = strchr(p, ',')) {
		p += *p == ',';
		if (!strncmp(p, name, len) && (p[len] == ',' || p[len] == '\0'))
			return true;
	}
	return false;
}

/* 1: filled in; 0: a line that is not understood. */
static int parse_line(char *line, struct mountinfo_row *row)
{
	char *field[6], *save = NULL, *tail = strstr(line, " - ");

	if (!tail)
		return 0;
	*tail = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(field); i++) {
		field[i] = strtok_r(i ? NULL : line, " ", &save);
		if (!field[i])
			return 0;
	}
	if (sscanf(tail + 3, "%31s", row->type) != 1)
		return 0;
	row->id = atoi(field[0]);
	row->flags = (has_option(field[5], "nosuid") ? MS_NOSUID : 0) |
		     (has_option(field[5], "nodev") ? MS_NODEV : 0) |
		     (has_option(field[5], "noexec") ? MS_NOEXEC : 0);
	unescape(field[4]);
	row->path = strdup(field[4]);
	return row->path ? 1 : -ENOMEM;
}

static int compare_paths(const void *a, const void *b)
{
	return strcmp(((const struct mountinfo_row *)a)->path,
		      ((const struct mountinfo_row *)b)->path);
}

static int read_rows(FILE *f, struct mountinfo *table)
{
	_cleanup_free_ char *line = NULL;
	size_t room = 0;

	while (table->count < MOUNTINFO_ROWS_MAX && getline(&line, &room, f) > 0) {
		struct mountinfo_row *row = &table->rows[table->count];
		int r = parse_line(line, row);

		if (r < 0)
			return r;
		if (r == 0)
			continue;
		if (is_visible(row))
			table->count++;
		else
			free(row->path);
	}
	return 0;
}

static void sort_rows(struct mountinfo *table)
{
	qsort(table->rows, table->count, sizeof(*table->rows), compare_paths);
}

int mountinfo_add(struct mountinfo *table, const char *path, unsigned long flags)
{
	struct mountinfo_row *row = &table->rows[table->count];

	for (size_t i = 0; i < table->count; i++) {
		if (!strcmp(table->rows[i].path, path)) {
			strcpy(table->rows[i].type, MOUNTINFO_TYPE_OVERLAY);
			return 0;
		}
	}
	if (table->count == MOUNTINFO_ROWS_MAX)
		return -E2BIG;
	*row = (struct mountinfo_row){ .flags = flags, .type = MOUNTINFO_TYPE_OVERLAY };
	row->path = strdup(path);
	if (!row->path)
		return -ENOMEM;
	table->count++;
	sort_rows(table);
	return 0;
}

int mountinfo_read(struct mountinfo *ret_table)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/mountinfo", "re");
	struct mountinfo table = { 0 };
	int r;

	if (!f)
		return -errno;
	table.rows = calloc(MOUNTINFO_ROWS_MAX, sizeof(*table.rows));
	if (!table.rows)
		return -ENOMEM;
	r = read_rows(f, &table);
	if (r < 0) {
		mountinfo_deinit(&table);
		return r;
	}
	sort_rows(&table);
	*ret_table = table;
	return 0;
}

void mountinfo_deinit(struct mountinfo *table)
{
	for (size_t i = 0; i < table->count; i++)
		free(table->rows[i].path);
	free(table->rows);
	*table = (struct mountinfo){ 0 };
}
