// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * export: a checkpoint as an ELF core, as the job's files, or as CRIU's images. Everything is
 * written by this process, with the rights of whoever called it.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/cli/cli.h"
#include "agent/restore/internal.h"
#include "agent/util/io.h"

enum { BLOCK = 4096, PROGRESS_MS = 200 };

struct exporter {
	const struct cli *cli;
	struct cli_checkpoint *checkpoint;
	const char *path; /* as it was given */
	uint8_t *buffer;  /* EXPORT_READ_MAX */
	uint64_t done, total;
	struct timespec shown;
	bool drawn;
	struct json_object *answer;
	size_t files, skipped;
};

/* ---- progress and errors ---- */

static void show_progress(struct exporter *x, uint64_t bytes)
{
	struct timespec now;

	x->done += bytes;
	if (!x->cli->err_tty || x->cli->json)
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	if ((now.tv_sec - x->shown.tv_sec) * 1000 + (now.tv_nsec - x->shown.tv_nsec) / 1000000 <
	    PROGRESS_MS)
		return;
	x->shown = now;
	fprintf(stderr, "\r\033[K%s: %s of %s", x->checkpoint->name, text_size((int64_t)x->done).s,
		text_size((int64_t)x->total).s);
	x->drawn = true;
}

static void end_progress(struct exporter *x)
{
	if (x->drawn)
		fputs("\r\033[K", stderr);
	x->drawn = false;
}

/* What decampd said, if it was decampd; else the words for an error of our own. */
static int fail(struct exporter *x, const char *object, int r, const char *reason)
{
	end_progress(x);
	if (x->checkpoint->failed) {
		cli_tell(x->cli, &x->checkpoint->failure);
		return x->checkpoint->failed;
	}
	if (x->cli->json) {
		struct json_object *outer = js_new(), *error = js_new();

		js_put_text(error, "object", object);
		js_put_text(error, "reason", reason && *reason ? reason : strerror(-r));
		js_put_text(error, "next", "");
		js_put_text(error, "code", "failed");
		json_object_object_add(outer, "error", error);
		js_print(outer);
		json_object_put(outer);
	}
	cli_complain(object, reason && *reason ? reason : strerror(-r), NULL);
	return CLI_FAILED;
}

/* ---- writing ---- */

static bool is_zero(const uint8_t *block, size_t size)
{
	return size == 0 || (block[0] == 0 && !memcmp(block, block + 1, size - 1));
}

/* Blocks of zeros become holes. */
static int write_sparse(int fd, uint64_t at, const uint8_t *bytes, size_t size)
{
	for (size_t i = 0; i < size;) {
		size_t n = size - i < BLOCK ? size - i : BLOCK, end = i;
		int r;

		if (is_zero(bytes + i, n)) {
			i += n;
			continue;
		}
		while (end < size && !is_zero(bytes + end, size - end < BLOCK ? size - end : BLOCK))
			end += size - end < BLOCK ? size - end : BLOCK;
		r = pwrite_full(fd, bytes + i, end - i, (off_t)(at + i));
		if (r < 0)
			return r;
		i = end;
	}
	return 0;
}

static int write_content(struct exporter *x, const struct export_file *f, int fd)
{
	for (uint64_t at = 0; at < f->size;) {
		uint64_t n = f->size - at < EXPORT_READ_MAX ? f->size - at : EXPORT_READ_MAX;
		int r = export_read(&x->checkpoint->set, f, at, x->buffer, (size_t)n);

		if (r == 0)
			r = write_sparse(fd, at, x->buffer, (size_t)n);
		if (r < 0)
			return r;
		at += n;
		show_progress(x, n);
	}
	return ftruncate(fd, (off_t)f->size) < 0 ? -errno : 0;
}

static int write_core(struct exporter *x, const struct elf_core *core, int fd)
{
	uint64_t at = 0, from, size;

	while (elf_core_next(core, at, &from, &size)) {
		int r;

		if (size > EXPORT_READ_MAX)
			size = EXPORT_READ_MAX;
		r = elf_core_read(core, from, x->buffer, (size_t)size);
		if (r == 0)
			r = write_sparse(fd, from, x->buffer, (size_t)size);
		if (r < 0)
			return r;
		show_progress(x, from + size - at);
		at = from + size;
	}
	return ftruncate(fd, (off_t)elf_core_size(core)) < 0 ? -errno : 0;
}

/* Gives a file its name, never in place of another. */
static int publish(const char *part, const char *path)
{
	if (renameat2(AT_FDCWD, part, AT_FDCWD, path, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL) /* a file system that cannot promise that */
		return -errno;
	if (link(part, path) < 0)
		return -errno;
	unlink(part);
	return 0;
}

/* It has its name when it is whole; a file that is there is not touched. */
static int save_core(struct exporter *x, const struct elf_core *core, const char *path)
{
	_cleanup_free_ char *part = NULL;
	_cleanup_close_ int fd = -1;
	int r;

	if (asprintf(&part, "%s.part", path) < 0)
		cli_out_of_memory();
	if (access(path, F_OK) == 0)
		return -EEXIST;
	fd = open(part, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = write_core(x, core, fd);
	if (r == 0)
		r = publish(part, path);
	if (r < 0)
		unlink(part);
	return r;
}

/* ---- cores ---- */

static int export_one_core(struct exporter *x, pid_t pid, bool with_files, const char *path)
{
	char reason[EXPORT_REASON_MAX];
	struct json_object *json;
	struct elf_core *core;
	int r = elf_core_create(&x->checkpoint->set, pid, with_files, &core, reason);

	if (r < 0)
		return fail(x, x->checkpoint->name, r, reason);
	x->total += elf_core_size(core);
	r = save_core(x, core, path);
	if (r == 0) {
		json = js_new();
		js_put_int(json, "pid", pid);
		js_put_int(json, "threads", (int64_t)elf_core_thread_count(core));
		js_put_int(json, "bytes", (int64_t)elf_core_size(core));
		js_put_text(json, "path", path);
		json_object_array_add(js_member(x->answer, "cores"), json);
		end_progress(x);
		if (!x->cli->json)
			printf("%s: process %d of checkpoint %lld, %zu threads, %s\n", path, pid,
			       (long long)x->checkpoint->seq, elf_core_thread_count(core),
			       text_size((int64_t)elf_core_size(core)).s);
	}
	elf_core_destroy(core);
	return r < 0 ? fail(x, path, r, NULL) : CLI_OK;
}

static int export_cores(struct exporter *x, pid_t pid, bool with_files)
{
	_cleanup_free_ pid_t *pids = NULL;
	char reason[EXPORT_REASON_MAX];
	struct stat st;
	size_t count;
	int r = export_pids(&x->checkpoint->set, &pids, &count, reason);

	if (r < 0)
		return fail(x, x->checkpoint->name, r,
			    x->checkpoint->images_refused ?
				    "a process of it ran with other rights than yours: only root "
				    "may see its memory" :
				    reason);
	json_object_object_add(x->answer, "cores", json_object_new_array());
	if (stat(x->path, &st) < 0 || !S_ISDIR(st.st_mode))
		return export_one_core(x, pid ? pid : pids[0], with_files, x->path);
	r = CLI_OK;
	for (size_t i = 0; i < count && r == CLI_OK; i++) {
		_cleanup_free_ char *path = NULL;

		if (pid && pids[i] != pid)
			continue;
		if (asprintf(&path, "%s/core.%d", x->path, pids[i]) < 0)
			cli_out_of_memory();
		r = export_one_core(x, pids[i], with_files, path);
	}
	return r;
}

/* ---- files and images ---- */

/* A new folder, or an empty one. */
static int open_target(const char *path, int *ret_fd)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;

	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return -errno;
	dir = opendir(path);
	if (!dir)
		return -errno;
	while ((entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			return -ENOTEMPTY;
	*ret_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return *ret_fd < 0 ? -errno : 0;
}

static void date(int fd, const struct export_file *f)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT },
				     { .tv_sec = f->mtime_ms / 1000,
				       .tv_nsec = f->mtime_ms % 1000 * 1000000 } };

	if (times[1].tv_nsec >= 0)
		(void)!futimens(fd, times);
}

static int export_regular(struct exporter *x, int base, const char *path,
			  const struct export_file *f)
{
	_cleanup_close_ int fd = place_regular(base, path);
	int r;

	if (fd < 0)
		return fd;
	r = write_content(x, f, fd);
	/* Set-id bits are not the caller's to give; nobody is locked out of his own export. */
	if (r == 0 && fchmod(fd, (f->mode & 0777) | 0400) < 0)
		r = -errno;
	if (r == 0 && geteuid() == 0 && f->kind != FILE_IMAGE && fchown(fd, f->uid, f->gid) < 0)
		r = -errno;
	date(fd, f);
	return r;
}

static int export_node(struct exporter *x, int base, const struct export_file *f)
{
	const char *path = f->path + strspn(f->path, "/"), *name;
	_cleanup_close_ int parent = -1;

	if (!*path)
		return 0;
	if (f->type == EXPORT_FILE && f->hardlink)
		return place_link(base, f->hardlink + strspn(f->hardlink, "/"), base, path);
	if (f->type == EXPORT_FILE)
		return export_regular(x, base, path, f);
	parent = place_parent(base, path, &name);
	if (parent < 0)
		return parent;
	if (f->type == EXPORT_FOLDER) /* his own to write into until all is there */
		return mkdirat(parent, name, 0700) < 0 && errno != EEXIST ? -errno : 0;
	if (f->type == EXPORT_LINK && f->target)
		return symlinkat(f->target, parent, name) < 0 ? -errno : 0;
	if (f->type == EXPORT_FIFO)
		return mkfifoat(parent, name, f->mode & 0777) < 0 ? -errno : 0;
	x->skipped++;
	return 0;
}

static void finish_folder(int base, const struct export_file *f)
{
	const char *path = f->path + strspn(f->path, "/");
	_cleanup_close_ int fd = place_open(base, path, O_RDONLY | O_DIRECTORY, 0);

	if (fd < 0 || !*path)
		return;
	if (geteuid() == 0)
		(void)!fchown(fd, f->uid, f->gid);
	(void)!fchmod(fd, (f->mode & 0777) | 0700);
	date(fd, f);
}

static bool wanted(const struct export_file *f, enum file_kind kind, bool links)
{
	return f->kind == kind && (f->type == EXPORT_FILE && f->hardlink) == links;
}

static int export_tree(struct exporter *x, enum file_kind kind)
{
	const struct export_set *set = &x->checkpoint->set;
	_cleanup_close_ int base = -1;
	int r = open_target(x->path, &base);

	if (r < 0)
		return fail(x, x->path, r, NULL);
	for (size_t i = 0; i < set->count; i++)
		if (set->files[i].kind == kind && set->files[i].type == EXPORT_FILE)
			x->total += set->files[i].size;
	/* Links come when what they link to is there. */
	for (int links = 0; links < 2; links++) {
		for (size_t i = 0; i < set->count; i++) {
			if (!wanted(&set->files[i], kind, links))
				continue;
			r = export_node(x, base, &set->files[i]);
			if (r < 0)
				return fail(x, set->files[i].path, r, NULL);
			x->files += set->files[i].type == EXPORT_FILE;
		}
	}
	for (size_t i = set->count; i > 0; i--)
		if (set->files[i - 1].kind == kind && set->files[i - 1].type == EXPORT_FOLDER)
			finish_folder(base, &set->files[i - 1]);
	js_put_text(x->answer, "path", x->path);
	js_put_int(x->answer, "files", (int64_t)x->files);
	js_put_int(x->answer, "bytes", (int64_t)x->done);
	end_progress(x);
	if (!x->cli->json)
		printf("%s: %zu files of checkpoint %lld, %s\n", x->path, x->files,
		       (long long)x->checkpoint->seq, text_size((int64_t)x->done).s);
	return CLI_OK;
}

static int export_images(struct exporter *x)
{
	for (size_t i = 0; i < x->checkpoint->set.count; i++)
		if (x->checkpoint->set.files[i].kind == FILE_IMAGE)
			return export_tree(x, FILE_IMAGE);
	return fail(x, x->checkpoint->name, -ENODATA,
		    x->checkpoint->images_refused ?
			    "a process of it ran with other rights than yours: only root may see "
			    "its images" :
			    "it holds files only: the job had ended");
}

/* ---- the verb ---- */

struct choice {
	const char *core, *files, *images, *pid;
	bool mapped;
};

static int export_checkpoint(struct cli *cli, const struct choice *w, const char *path, pid_t pid,
			     struct cli_checkpoint *c)
{
	struct exporter x = { .cli = cli, .checkpoint = c, .path = path };
	int r;

	x.buffer = malloc(EXPORT_READ_MAX);
	if (!x.buffer)
		cli_out_of_memory();
	x.answer = js_new();
	js_put_text(x.answer, "job", c->job);
	js_put_int(x.answer, "seq", c->seq);
	if (w->core)
		r = export_cores(&x, pid, w->mapped);
	else
		r = w->files ? export_tree(&x, FILE_UPPER) : export_images(&x);
	if (r == CLI_OK && cli->json)
		js_print(x.answer);
	json_object_put(x.answer);
	free(x.buffer);
	return r;
}

int verb_export(struct cli *cli, int argc, char **argv)
{
	struct choice w = { 0 };
	const struct cli_option options[] = {
		{ "core", 0, "FILE", "an ELF core for gdb; in a folder one for each process",
		  .value = &w.core },
		{ "pid", 0, "PID", "of this process, as the job numbers it; default: its root",
		  .value = &w.pid },
		{ "mapped-files", 0, NULL, "with what the core's unchanged mappings show",
		  .flag = &w.mapped },
		{ "files", 0, "DIR", "the files that the job had written", .value = &w.files },
		{ "images", 0, "DIR", "CRIU's images", .value = &w.images },
		{ 0 },
	};
	_cleanup_reply_ struct cli_reply reply = { 0 };
	struct cli_checkpoint checkpoint;
	int64_t seq = 0, pid = 0;
	int r = cli_parse(cli, options, argc, argv);

	if (r >= 0)
		return r;
	if (!!w.core + !!w.files + !!w.images != 1)
		return cli_usage(cli, "one of --core, --files and --images is to be given");
	if (!w.core && (w.pid || w.mapped))
		return cli_usage(cli, "--pid and --mapped-files belong to --core");
	r = cli_number(cli, "--pid", w.pid, 1, 1 << 22, &pid);
	if (r == CLI_OK)
		r = cli_number(cli, "the checkpoint", cli_split_seq(cli->args[0]), 1, INT64_MAX,
			       &seq);
	if (r != CLI_OK)
		return r;
	r = checkpoint_open(cli, cli->args[0], seq, NULL, true, &checkpoint, &reply);
	if (r != CLI_OK) {
		cli_tell(cli, &reply);
		return r;
	}
	r = export_checkpoint(cli, &w,
			      w.core  ? w.core :
			      w.files ? w.files :
					w.images,
			      (pid_t)pid, &checkpoint);
	checkpoint_done(&checkpoint);
	return r;
}
