// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * kmod DECAMP.KO [WORD]...    loads the module, runs the cases whose name holds a word, unloads
 * kmod bench                  how long a freeze takes, against ptrace and the cgroup freezer
 *
 * Last line: how many passed, failed, were skipped. Exit code 1 if any failed.
 */
#include "tests/kmod/kmod.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { CASE_SECONDS = 600 }; /* only what hangs is ended by it */

static unsigned int passed, failed, skipped;

static bool chosen(const char *name, char **words)
{
	bool is = !*words;

	for (; *words; words++)
		is = is || strstr(name, *words);
	return is;
}

static void *shared_memory(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

static void report(const char *name, int status, uint64_t ns)
{
	unsigned int ms = (unsigned int)(ns / 1000000);

	if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		passed++;
		printf("ok %s (%u ms)\n", name, ms);
	} else if (WIFEXITED(status) && WEXITSTATUS(status) == SKIP_CODE) {
		skipped++;
		printf("SKIP %s: the reason is above\n", name);
	} else {
		failed++;
		printf("FAIL %s (%u ms)%s%s\n", name, ms, WIFSIGNALED(status) ? ": " : "",
		       WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "");
	}
	fflush(stdout);
}

/* In a group of its own, so that nothing of it is left. */
static void run(const struct kmod_case *c)
{
	uint64_t from = now_ns();
	int status = -1;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		setpgid(0, 0);
		alarm(CASE_SECONDS);
		c->run();
		exit(0);
	}
	CHECK(pid > 0);
	CHECK_INT(waitpid(pid, &status, 0), pid);
	kill(-pid, SIGKILL);
	report(c->name, status, now_ns() - from);
	memset(shared, 0, sizeof(*shared));
}

static void run_all(const struct kmod_case *cases, char **words)
{
	for (; cases->name; cases++)
		if (chosen(cases->name, words))
			run(cases);
}

static const char *module_path;

static void reload(void)
{
	case_reload(module_path);
}

static void load(void)
{
	int fd = open(module_path, O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0, "%s", module_path);
	CHECK_INT(syscall(SYS_finit_module, fd, "", 0), 0);
	close(fd);
}

int main(int argc, char **argv)
{
	static const struct kmod_case reload_case = { "load and unload under load", reload };

	if (argc < 2) {
		fprintf(stderr, "usage: kmod DECAMP.KO [WORD]... | kmod bench DECAMP.KO\n");
		return 2;
	}
	shared = shared_memory(sizeof(*shared));
	module_path = argv[1];
	if (!strcmp(argv[1], "bench")) {
		module_path = argv[2];
		load();
		bench();
		return 0;
	}
	if (access(DECAMP_DEVICE, F_OK) < 0)
		load();
	run_all(stop_cases, argv + 2);
	run_all(state_cases, argv + 2);
	run_all(hostile_cases, argv + 2);
	run_all(transparent_cases, argv + 2);
	if (chosen(reload_case.name, argv + 2))
		run(&reload_case);
	printf("%u passed, %u failed, %u skipped\n", passed, failed, skipped);
	return failed ? 1 : 0;
}
