// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A helper runs inside the job's root but is made of the host's files only: there may be other
 * libraries inside, of another release that the job came from, or the job's own. So the host's
 * dynamic loader is executed, with the host's folders of libraries and the program as descriptors,
 * which lead out of any root.
 */
#include "agent/keeper/warden.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/syscall.h>

#include "agent/util/io.h"

enum { PROGRAM_HEADERS_MAX = 64, HIGH_FD = 64 };

/* In the order of the usual /etc/ld.so.conf. What is nowhere here is looked for inside. */
#if defined(__x86_64__)
#define TRIPLET "x86_64-linux-gnu"
#elif defined(__aarch64__)
#define TRIPLET "aarch64-linux-gnu"
#else
#define TRIPLET "."
#endif
static const char *const folders[LOADER_FOLDERS] = { "/usr/local/lib",	  "/lib/" TRIPLET,
						     "/usr/lib/" TRIPLET, "/lib64",
						     "/usr/lib64",	  "/lib",
						     "/usr/lib" };

/* What the program names as its loader; -ENOENT: it has none. */
static int read_interpreter(int fd, char path[PATH_MAX])
{
	Elf64_Phdr headers[PROGRAM_HEADERS_MAX];
	Elf64_Ehdr head;
	int r = pread_full(fd, &head, sizeof(head), 0);

	if (r < 0 || memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 ||
	    head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_phentsize != sizeof(headers[0]) ||
	    head.e_phnum > PROGRAM_HEADERS_MAX)
		return -ENOENT;
	r = pread_full(fd, headers, head.e_phnum * sizeof(headers[0]), (off_t)head.e_phoff);
	for (int i = 0; r == 0 && i < head.e_phnum; i++) {
		size_t size = headers[i].p_filesz;

		if (headers[i].p_type != PT_INTERP)
			continue;
		if (size == 0 || size > PATH_MAX)
			return -ENOENT;
		r = pread_full(fd, path, size, (off_t)headers[i].p_offset);
		return r == 0 && path[size - 1] == '\0' ? 0 : -ENOENT;
	}
	return -ENOENT;
}

/* Out of the way of the descriptors that the helper gets. */
static int open_high(const char *path, int flags)
{
	_cleanup_close_ int fd = open(path, flags | O_CLOEXEC);

	return fd < 0 ? -errno : fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
}

void loader_open(struct loader *l, const char *binary)
{
	char path[PATH_MAX];

	*l = (struct loader){ .interpreter = -1, .program = open_high(binary, O_RDONLY) };
	if (l->program < 0 || read_interpreter(l->program, path) < 0)
		return;
	l->interpreter = open_high(path, O_RDONLY);
	for (int i = 0; i < LOADER_FOLDERS; i++)
		l->folders[i] = open_high(folders[i], O_PATH | O_DIRECTORY);
}

void loader_exec(const struct loader *l, char *const argv[], char *const env[])
{
	char path[LOADER_FOLDERS * 32] = "", program[32];
	char *words[KEEPER_SPAWN_ARGS_MAX + 4] = { argv[0], "--library-path", path, program };
	size_t at = 0;

	if (l->interpreter < 0 || fcntl(l->program, F_SETFD, 0) < 0)
		return;
	snprintf(program, sizeof(program), "/proc/self/fd/%d", l->program);
	for (int i = 0; i < LOADER_FOLDERS; i++) {
		if (l->folders[i] < 0 || fcntl(l->folders[i], F_SETFD, 0) < 0)
			continue;
		at += (size_t)snprintf(path + at, sizeof(path) - at, "%s/proc/self/fd/%d",
				       at ? ":" : "", l->folders[i]);
	}
	for (size_t i = 0; argv[i] && argv[i + 1]; i++)
		words[4 + i] = argv[i + 1];
	syscall(SYS_execveat, l->interpreter, "", words, env, AT_EMPTY_PATH);
}
