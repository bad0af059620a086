// SPDX-License-Identifier: LGPL-2.1-or-later
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "agent/capture/internal.h"
#include "agent/util/io.h"

enum { PROC_TEXT_MAX = 64 << 20, PROC_TASKS_MAX = 1 << 16, CHILDREN_MAX = 4096 };

static int push_pid(pid_t **v, size_t *count, size_t *room, pid_t pid)
{
	if (*count == PROC_TASKS_MAX)
		return -E2BIG;
	if (*count == *room) {
		size_t more = *room ? 2 * *room : 16;
		pid_t *bigger = realloc(*v, more * sizeof(**v));

		if (!bigger)
			return -ENOMEM;
		*v = bigger;
		*room = more;
	}
	(*v)[(*count)++] = pid;
	return 0;
}

/* A new row of v->uses, or its flags joined to the row that is there. */
static int push_use(struct proc_view *v, const char *path, unsigned int flags)
{
	size_t i;
	int r;

	if (paths_find(&v->use_index, 0, path, &i)) {
		v->uses[i].flags |= flags;
		return 0;
	}
	if (v->use_count == v->use_room) {
		size_t room = v->use_room ? 2 * v->use_room : 64;
		struct file_use *more = realloc(v->uses, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		v->uses = more;
		v->use_room = room;
	}
	v->uses[v->use_count] = (struct file_use){ .path = strdup(path), .flags = flags };
	if (!v->uses[v->use_count].path)
		return -ENOMEM;
	r = paths_add(&v->use_index, 0, v->uses[v->use_count].path, v->use_count);
	if (r < 0) {
		free(v->uses[v->use_count].path);
		return r;
	}
	v->use_count++;
	return 0;
}

int proc_view_add_use(struct proc_view *v, const char *path, unsigned int flags)
{
	return push_use(v, path, flags);
}

int proc_view_add_thread(struct proc_view *v, pid_t inner_tid)
{
	return push_pid(&v->inner, &v->inner_count, &v->inner_room, inner_tid);
}

/* Last number of the line that begins with key: the view of the innermost namespace. */
static int status_last(const char *text, const char *key, pid_t *ret_pid)
{
	const char *line = strstr(text, key), *end;

	if (!line)
		return -ENODATA;
	line += strlen(key);
	end = line + strcspn(line, "\n");
	while (end > line && isspace((unsigned char)end[-1]))
		end--;
	while (end > line && isdigit((unsigned char)end[-1]))
		end--;
	*ret_pid = (pid_t)strtol(end, NULL, 10);
	return *ret_pid > 0 ? 0 : -ENODATA;
}

static int inner_pid_of(const char *status_path, pid_t *ret_inner)
{
	_cleanup_free_ char *text = NULL;
	int r = read_file_at(AT_FDCWD, status_path, 1 << 20, &text, NULL);

	return r < 0 ? r : status_last(text, "\nNSpid:", ret_inner);
}

int proc_inner_pid(pid_t pid, pid_t *ret_inner)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	return inner_pid_of(path, ret_inner);
}

static int each_number(const char *text, int (*fn)(void *ctx, pid_t pid), void *ctx)
{
	char *end;

	for (const char *p = text;; p = end) {
		long pid = strtol(p, &end, 10);
		int r;

		if (end == p)
			return 0;
		r = fn(ctx, (pid_t)pid);
		if (r != 0)
			return r;
	}
}

/* Calls fn for each number in the text of a "children" file. */
static int each_child(const char *path, int (*fn)(void *ctx, pid_t pid), void *ctx)
{
	_cleanup_free_ char *text = NULL;
	int r = read_file_at(AT_FDCWD, path, PROC_TEXT_MAX, &text, NULL);

	return r < 0 ? r : each_number(text, fn, ctx);
}

static int add_child(void *ctx, pid_t pid)
{
	struct proc_view *v = ctx;

	return push_pid(&v->pids, &v->pid_count, &v->pid_room, pid);
}

static int read_threads(struct proc_view *v, pid_t pid)
{
	char path[128];
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? -ESRCH : -errno;
	while ((entry = readdir(dir))) {
		_cleanup_free_ char *status = NULL;
		int tid = atoi(entry->d_name);
		pid_t inner;
		int r;

		if (tid <= 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, tid);
		r = read_file_at(AT_FDCWD, path, 1 << 20, &status, NULL);
		if (r == 0)
			r = status_last(status, "\nNSpid:", &inner);
		if (r == -ENOENT || r == -ESRCH)
			continue;
		if (r == 0)
			r = pins_note(&v->pins, inner, status);
		if (r == 0)
			r = push_pid(&v->inner, &v->inner_count, &v->inner_room, inner);
		snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, tid);
		if (r == 0)
			r = each_child(path, add_child, v);
		if (r < 0 && r != -ENOENT && r != -ESRCH)
			return r;
	}
	return 0;
}

/* Field 6 of stat; the name before it may hold anything, its last ')' ends it. */
static int read_session(pid_t pid, pid_t *ret_session)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *p;
	int session;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	r = read_file_at(AT_FDCWD, path, 1 << 16, &text, NULL);
	if (r < 0)
		return r;
	p = strrchr(text, ')');
	if (!p || sscanf(p + 1, " %*c %*d %*d %d", &session) != 1)
		return -EBADMSG;
	*ret_session = session;
	return 0;
}

static bool has_pid(const struct proc_view *v, pid_t pid)
{
	for (size_t i = 0; i < v->pid_count; i++) {
		if (v->pids[i] == pid)
			return true;
	}
	return false;
}

/* The kernel writes a newline in a name of maps as \012. */
static void unescape_newlines(char *path)
{
	char *from = path, *to = path;

	while (*from) {
		if (!strncmp(from, "\\012", 4)) {
			*to++ = '\n';
			from += 4;
		} else {
			*to++ = *from++;
		}
	}
	*to = '\0';
}

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && !strcmp(text + n - m, end);
}

static int read_maps(struct proc_view *v, pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	char path[64], *line, *next;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	r = read_file_at(AT_FDCWD, path, PROC_TEXT_MAX, &text, NULL);
	if (r < 0)
		return r;
	for (line = text; *line; line = next) {
		char perms[5] = "";
		char *name = strchr(line, '/');
		size_t length = strcspn(line, "\n");

		next = line + length + (line[length] == '\n');
		line[length] = '\0';
		if (!name || name > line + length || sscanf(line, "%*x-%*x %4s", perms) != 1)
			continue;
		/* Deleted files are CRIU's matter; these are no files. */
		if (ends_with(name, " (deleted)") || !strncmp(name, "/memfd:", 7) ||
		    !strncmp(name, "/SYSV", 5) || !strncmp(name, "/anon_hugepage", 14))
			continue;
		unescape_newlines(name);
		r = push_use(v, name, perms[3] == 's' ? USE_SHARED_MAP : 0);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_open_flags(pid_t pid, const char *fd, unsigned int *ret_flags)
{
	_cleanup_free_ char *text = NULL;
	char path[320];
	const char *flags;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%s", pid, fd);
	r = read_file_at(AT_FDCWD, path, 1 << 20, &text, NULL);
	if (r < 0)
		return r;
	flags = strstr(text, "flags:");
	if (!flags)
		return -EBADMSG;
	*ret_flags = (unsigned int)strtoul(flags + strlen("flags:"), NULL, 8);
	return 0;
}

static int add_link(struct proc_view *v, const char *link, unsigned int flags)
{
	char target[PATH_MAX];
	struct stat st;
	ssize_t n = readlink(link, target, sizeof(target) - 1);

	if (n < 0)
		return errno == ENOENT ? 0 : -errno;
	target[n] = '\0';
	if (target[0] != '/' || stat(link, &st) < 0 || st.st_nlink == 0)
		return 0;
	if (S_ISDIR(st.st_mode))
		return push_use(v, target, USE_FOLDER);
	return S_ISREG(st.st_mode) ? push_use(v, target, flags) : 0;
}

static int read_descriptors(struct proc_view *v, pid_t pid)
{
	char path[320];
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *entry;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? -ESRCH : -errno;
	while ((entry = readdir(dir))) {
		unsigned int flags = 0;
		int r;

		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		r = read_open_flags(pid, entry->d_name, &flags);
		snprintf(path, sizeof(path), "/proc/%d/fd/%s", pid, entry->d_name);
		if (r == 0)
			r = add_link(v, path, (flags & O_ACCMODE) != O_RDONLY ? USE_WRITABLE : 0);
		if (r < 0 && r != -ENOENT)
			return r;
	}
	return 0;
}

static int read_files(struct proc_view *v, pid_t pid)
{
	static const char *const links[] = { "exe", "cwd" };
	char path[64];
	int r = read_maps(v, pid);

	if (r == 0)
		r = read_descriptors(v, pid);
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(links); i++) {
		snprintf(path, sizeof(path), "/proc/%d/%s", pid, links[i]);
		r = add_link(v, path, 0);
	}
	return r;
}

/* A zombie has neither files nor maps. */
static bool is_zombie(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	char path[64];
	const char *p;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_file_at(AT_FDCWD, path, 1 << 16, &text, NULL) < 0)
		return false;
	p = strrchr(text, ')');
	return p && (!strncmp(p, ") Z", 3) || !strncmp(p, ") X", 3));
}

bool proc_is_headless(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	pid_t threads = 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	return read_file_at(AT_FDCWD, path, 1 << 16, &text, NULL) == 0 &&
	       strstr(text, "\nState:\tZ") && status_last(text, "\nThreads:", &threads) == 0 &&
	       threads > 1;
}

bool proc_is_gone(pid_t pid)
{
	return (kill(pid, 0) < 0 && errno == ESRCH) || (is_zombie(pid) && !proc_is_headless(pid));
}

/* Members of a tree that runs come and go while it is looked at; -ENODATA: its number was gone. */
static int unless_gone(int r, bool is_root)
{
	return !is_root && (r == -ENOENT || r == -ESRCH || r == -ENODATA) ? 0 : r;
}

int proc_view_read(struct proc_view *v, pid_t root, bool files)
{
	int r = proc_inner_pid(root, &v->root_inner);

	if (r == 0)
		r = push_pid(&v->pids, &v->pid_count, &v->pid_room, root);
	/* read_threads() appends the children, so that the loop meets the whole tree. */
	for (size_t i = 0; r == 0 && i < v->pid_count; i++)
		r = unless_gone(read_threads(v, v->pids[i]), i == 0);
	for (size_t i = 0; r == 0 && i < v->pid_count; i++) {
		pid_t session = 0;

		if (is_zombie(v->pids[i]))
			continue;
		r = read_session(v->pids[i], &session);
		v->shell_job |= r == 0 && !has_pid(v, session);
		if (r == 0 && files)
			r = read_files(v, v->pids[i]);
		r = unless_gone(r, i == 0);
	}
	return r == -ENOENT ? -ESRCH : r;
}

void proc_view_deinit(struct proc_view *v)
{
	for (size_t i = 0; i < v->use_count; i++)
		free(v->uses[i].path);
	free(v->uses);
	free(v->pids);
	free(v->inner);
	pins_deinit(&v->pins);
	paths_deinit(&v->use_index);
	*v = (struct proc_view){ 0 };
}

struct orphan_search {
	pid_t main_pid, found;
};

static int check_orphan(void *ctx, pid_t pid)
{
	struct orphan_search *search = ctx;

	if (pid == search->main_pid || is_zombie(pid))
		return 0;
	search->found = pid;
	return 1;
}

pid_t proc_find_orphan(pid_t init_pid, pid_t main_pid)
{
	struct orphan_search search = { .main_pid = main_pid };
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", init_pid, init_pid);
	return each_child(path, check_orphan, &search) == 1 ? search.found : 0;
}

int proc_open_children(pid_t init_pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", init_pid, init_pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

pid_t proc_find_orphan_in(int children, pid_t init_pid, pid_t main_pid)
{
	struct orphan_search search = { .main_pid = main_pid };
	char text[CHILDREN_MAX];
	size_t used = 0;
	ssize_t n;

	while ((n = pread(children, text + used, sizeof(text) - 1 - used, (off_t)used)) > 0)
		used += (size_t)n;
	/* More than a few, or not to be read: by the long way. */
	if (n < 0 || used == sizeof(text) - 1)
		return proc_find_orphan(init_pid, main_pid);
	text[used] = '\0';
	return each_number(text, check_orphan, &search) == 1 ? search.found : 0;
}

/* Runs in a forked child: only it enters the namespace. */
static void tell_hostname(int ns, int out)
{
	char name[HOST_NAME_MAX + 1] = "";

	if (setns(ns, CLONE_NEWUTS) < 0 || gethostname(name, sizeof(name)) < 0)
		_exit(1);
	_exit(write(out, name, sizeof(name)) == (ssize_t)sizeof(name) ? 0 : 1);
}

int proc_hostname(pid_t pid, char *name, size_t size)
{
	char path[64], got[HOST_NAME_MAX + 1] = "";
	_cleanup_close_ int ns = -1, in = -1, out = -1;
	int pipes[2];
	pid_t child;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/ns/uts", pid);
	ns = open(path, O_RDONLY | O_CLOEXEC);
	if (ns < 0)
		return -errno;
	if (pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	in = pipes[0];
	out = pipes[1];
	child = fork();
	if (child < 0)
		return -errno;
	if (child == 0)
		tell_hostname(ns, out);
	close(take_fd(out));
	r = read_full(in, got, sizeof(got));
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	if (r < 0)
		return -EIO;
	got[sizeof(got) - 1] = '\0';
	snprintf(name, size, "%s", got);
	return 0;
}
