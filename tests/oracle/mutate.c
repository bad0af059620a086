// SPDX-License-Identifier: LGPL-2.1-or-later
#include "mutate.h"
#include "../unit/slow.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { POKE_PAGES = 64, BULK_BATCH = 4, CHILDREN_MAX = 2, PATH_ROOM = 512 };

static char self[PATH_ROOM];
static volatile uint64_t *counter;

uint64_t draw(uint64_t *rng)
{
	uint64_t z = *rng += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

size_t below(uint64_t *rng, size_t bound)
{
	return draw(rng) % bound;
}

_Noreturn void die(const char *what)
{
	char text[128];
	int n = snprintf(text, sizeof(text), "mutate: %s: %s\n", what, strerror(errno));

	(void)!write(2, text, (size_t)n);
	_exit(3);
}

static void op_write(struct worker *w, struct region *r)
{
	for (size_t i = below(&w->rng, 24); i; i--) {
		size_t at = below(&w->rng, r->pages * PAGE / 8);

		((volatile uint64_t *)r->at)[at] = draw(&w->rng);
	}
}

static void op_fill(struct worker *w, struct region *r)
{
	size_t first = below(&w->rng, r->pages), count = 1 + below(&w->rng, 16);

	if (count > r->pages - first)
		count = r->pages - first;
	memset(r->at + first * PAGE, below(&w->rng, 3) ? (int)draw(&w->rng) : 0, count * PAGE);
}

/* Dirty, but not changed. */
static void op_same(struct worker *w, struct region *r)
{
	volatile uint8_t *at = r->at + below(&w->rng, r->pages * PAGE);

	*at = *at;
}

static void op_touch(struct worker *w, struct region *r)
{
	for (size_t i = below(&w->rng, 32); i; i--)
		(void)((volatile uint8_t *)r->at)[below(&w->rng, r->pages * PAGE)];
}

static void *short_life(void *arg)
{
	struct region *r = arg;
	uint64_t rng = (uintptr_t)pthread_self() ^ (uintptr_t)r->at;

	for (size_t i = 0; i < 20; i++)
		((volatile uint64_t *)r->at)[below(&rng, r->pages * PAGE / 8)] = draw(&rng);
	return NULL;
}

static void op_thread(struct worker *w, struct region *r)
{
	pthread_t thread;

	if (w->child || pthread_create(&thread, NULL, short_life, r))
		return;
	op_write(w, r);
	pthread_join(thread, NULL);
}

static void mutate_once(struct worker *w);

static _Noreturn void child_life(struct worker *w)
{
	char *const argv[] = { self, "leaf", NULL };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	w->child = true;
	w->rng ^= 0x5555;
	for (size_t i = 10 + below(&w->rng, 150); i; i--)
		mutate_once(w);
	if (below(&w->rng, 2))
		execve(self, argv, environ);
	_exit(0);
}

static void reap(struct worker *w, int room)
{
	static __thread pid_t children[CHILDREN_MAX];

	(void)w;
	for (int i = 0; i < CHILDREN_MAX; i++) {
		if (children[i] && waitpid(children[i], NULL, WNOHANG) == children[i])
			children[i] = 0;
		if (!children[i] && room > 0) {
			room = 0;
			children[i] = fork();
			if (children[i] < 0)
				children[i] = 0;
			else if (!children[i])
				child_life(w);
		}
	}
}

static void op_fork(struct worker *w, struct region *r)
{
	(void)r;
	if (!w->child && below(&w->rng, 8) == 0)
		reap(w, 1);
}

/* For a moment two processes with one memory. */
static void op_vfork(struct worker *w, struct region *r)
{
	char *const argv[] = { self, "leaf", "0", NULL };
	pid_t pid;

	(void)r;
	if (!w->child && below(&w->rng, 4) == 0 &&
	    posix_spawn(&pid, self, NULL, NULL, argv, environ) == 0)
		waitpid(pid, NULL, 0);
}

static const struct op table[] = {
	{ "write", op_write, K_ANY, 40 },
	{ "fill", op_fill, K_ANY, 10 },
	{ "same", op_same, K_ANY, 5 },
	{ "touch", op_touch, K_ANY, 5 },
	{ "read", op_read, K_ANY, 6 },
	{ "direct", op_direct, K_ANY, 4 },
	{ "getrandom", op_getrandom, K_ANY, 4 },
	{ "pipe", op_pipe, K_ANY, 4 },
	{ "splice", op_splice, K_SMALL, 4 },
	{ "procmem", op_procmem, K_PRIVATE, 4 },
	{ "poke", op_poke, K_ANY, 4 },
	{ "fdwrite", op_fdwrite, K(KIND_MEMFD) | K(KIND_MEMFD_PRIVATE) | K(KIND_FILE), 6 },
	{ "signal", op_signal, K_PRIVATE, 4 },
	{ "remap", op_remap, K_ANY & ~K(KIND_FILE_SHARED), 2 },
	{ "unmap", op_unmap, K_SMALL, 3 },
	{ "fixed", op_fixed, K_SMALL, 3 },
	{ "move", op_move, K_MOVABLE | K(KIND_MEMFD), 5 },
	{ "protect", op_protect, K_SMALL, 6 },
	{ "dontneed", op_dontneed, K_SMALL, 6 },
	{ "free", op_free, K(KIND_ANON) | K(KIND_THP), 4 },
	{ "remove", op_remove, K_SHMEM, 5 },
	{ "punch", op_punch, K(KIND_MEMFD) | K(KIND_MEMFD_PRIVATE), 4 },
	{ "guard", op_guard, K(KIND_ANON) | K(KIND_THP), 2 },
	{ "lock", op_lock, K_SMALL, 2 },
	{ "advise", op_advise, K_SMALL, 2 },
	{ "reserve", op_reserve, K(KIND_RESERVE), 20 },
	{ "brk", op_brk, K_ANY, 3 },
	{ "stack", op_stack, K_ANY, 3 },
	{ "thread", op_thread, K_ANY, 2 },
	{ "fork", op_fork, K_ANY, 1 },
	{ "vfork", op_vfork, K_ANY, 1 },
};

static const char *const kinds[KIND_COUNT] = { "anon",		"thp",	   "file",
					       "memfd-private", "shared",  "memfd",
					       "file-shared",	"reserve", "hugetlb" };

enum { OPS = sizeof(table) / sizeof(table[0]) };

static void mutate_once(struct worker *w)
{
	struct region *r = &w->regions[below(&w->rng, REGIONS)];
	size_t total = 0, pick;

	for (size_t i = 0; i < OPS; i++)
		total += w->ops >> i & 1 && table[i].kinds & K(r->kind) ? table[i].weight : 0;
	if (!total || (w->child && r->kind == KIND_HUGETLB))
		return;
	pick = below(&w->rng, total);
	for (size_t i = 0; i < OPS; i++) {
		if (!(w->ops >> i & 1) || !(table[i].kinds & K(r->kind)))
			continue;
		if (pick < table[i].weight) {
			table[i].run(w, r);
			break;
		}
		pick -= table[i].weight;
	}
	if (!w->child)
		__atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
	/* Where a snapshot takes seconds, it shall not find all of the memory written again. */
	if (below(&w->rng, 2) == 0)
		usleep(slow((int)below(&w->rng, 1500)));
}

static void *work(void *arg)
{
	struct worker *w = arg;

	for (;;) {
		mutate_once(w);
		if (below(&w->rng, 16) == 0)
			reap(w, 0);
	}
	return NULL;
}

static enum kind draw_kind(struct worker *w)
{
	enum kind kind;

	do
		kind = below(&w->rng, KIND_COUNT);
	while (!(w->kinds & K(kind)));
	return kind;
}

static int open_source(const char *folder, int flags)
{
	char path[PATH_ROOM];
	uint8_t page[PAGE];
	uint64_t rng = 42;
	int fd;

	snprintf(path, sizeof(path), "%s/source", folder);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		die(path);
	for (size_t i = 0; i < SOURCE_PAGES; i++) {
		for (size_t j = 0; j < PAGE; j += 8)
			memcpy(page + j, &(uint64_t){ draw(&rng) }, 8);
		if (pwrite(fd, page, PAGE, (off_t)(i * PAGE)) != PAGE)
			die("pwrite");
	}
	close(fd);
	return open(path, O_RDONLY | O_CLOEXEC | flags);
}

static void start_worker(struct worker *w)
{
	uint8_t *poke = slot_base(w->index, REGIONS);
	pthread_t thread;

	if (pipe2(w->pipe, O_CLOEXEC) < 0)
		die("pipe");
	if (mmap(poke, POKE_PAGES * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != poke)
		die("mmap for the poker");
	for (unsigned int i = 0; i < REGIONS; i++) {
		w->regions[i] = (struct region){ .at = slot_base(w->index, i), .fd = -1 };
		region_map(w, &w->regions[i], draw_kind(w));
		op_write(w, &w->regions[i]);
	}
	if (pthread_create(&thread, NULL, work, w))
		die("pthread_create");
}

/* A process of its own that writes into the memory of this one. */
static void start_poker(uint64_t seed, unsigned int workers)
{
	static uint8_t bytes[POKE_PAGES * PAGE];
	pid_t parent = getpid();
	uint64_t rng = seed ^ 0x9090;

	switch (fork()) {
	case -1:
		die("fork");
	case 0:
		break;
	default:
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		size_t size = 1 + below(&rng, sizeof(bytes) - 1);
		uint8_t *to = slot_base((unsigned int)below(&rng, workers), REGIONS) +
			      below(&rng, sizeof(bytes) - size);
		struct iovec from = { .iov_base = bytes, .iov_len = size };
		struct iovec remote = { .iov_base = to, .iov_len = size };

		memset(bytes, (int)draw(&rng), size);
		process_vm_writev(parent, &from, 1, &remote, 1, 0);
		if (below(&rng, 2))
			usleep(below(&rng, 1000));
	}
}

static _Noreturn void bulk_life(uint64_t seed, size_t mib)
{
	uint64_t rng = seed ^ 0xb01c;
	size_t pages = mib << 8;
	volatile uint64_t *at = (void *)slot_base(WORKERS_MAX, 0);

	if (!pages)
		for (;;)
			pause();
	if (mmap((void *)at, pages * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (void *)at)
		die("mmap of the bulk");
	/* Children would have it all as memory of their own. */
	madvise((void *)at, pages * PAGE, MADV_DONTFORK);
	for (size_t i = 0; i < pages; i++)
		at[i * PAGE / 8 + below(&rng, PAGE / 8)] = draw(&rng);
	for (;;) {
		for (size_t i = 0; i < BULK_BATCH; i++)
			at[below(&rng, pages * PAGE / 8)] = draw(&rng);
		usleep(slow(1000));
	}
}

/* What a forked process is after its exec. */
static int leaf(int rounds)
{
	uint64_t rng = (uint64_t)getpid();
	size_t pages = 256;
	volatile uint64_t *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < rounds; i++) {
		at[below(&rng, pages * PAGE / 8)] = draw(&rng);
		usleep(300);
	}
	return 0;
}

/* "all", "all,-name" or "name,name". */
static uint32_t parse(const char *list, const char *(*name)(size_t), size_t count)
{
	bool all = !strcmp(list, "all") || !strncmp(list, "all,", 4);
	uint32_t found = 0;

	for (size_t i = 0; i < count; i++) {
		const char *at = strstr(list, name(i));
		size_t len = strlen(name(i));

		while (at && ((at != list && at[-1] != ',' && at[-1] != '-') ||
			      (at[len] && at[len] != ',')))
			at = strstr(at + 1, name(i));
		if (at ? at == list || at[-1] != '-' : all)
			found |= 1U << i;
	}
	return found;
}

static const char *kind_name(size_t i)
{
	return kinds[i];
}

/* Huge pages are few: they are used only by who asks for them by name. */
static uint32_t parse_kinds(const char *list)
{
	uint32_t found = parse(list, kind_name, KIND_COUNT);

	return strncmp(list, "all", 3) ? found : found & ~K(KIND_HUGETLB);
}

static const char *op_name(size_t i)
{
	return table[i].name;
}

static uint32_t op_bit(const char *name)
{
	for (size_t i = 0; i < OPS; i++) {
		if (!strcmp(table[i].name, name))
			return 1U << i;
	}
	return 0;
}

int main(int argc, char **argv)
{
	static struct worker workers[WORKERS_MAX];
	uint64_t seed;
	int count;

	if (argc >= 2 && !strcmp(argv[1], "leaf"))
		return leaf(argc > 2 ? atoi(argv[2]) : 100);
	if (argc != 7 || atoi(argv[4]) < 1 || atoi(argv[4]) > WORKERS_MAX) {
		fprintf(stderr, "usage: mutate SEED MIB FOLDER WORKERS OPS KINDS\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setsid();
	if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
		die("/proc/self/exe");
	seed = strtoull(argv[1], NULL, 0);
	count = atoi(argv[4]);
	counter = mmap((void *)MUTATE_COUNTER, PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (counter == MAP_FAILED)
		die("mmap of the counter");
	if (strstr(argv[5], "aio"))
		start_aio(argv[3]);
	if (strstr(argv[5], "uring"))
		start_uring(argv[3]);
	for (int i = 0; i < count; i++) {
		struct worker *w = &workers[i];

		*w = (struct worker){ .rng = seed * WORKERS_MAX + (unsigned int)i,
				      .index = (unsigned int)i,
				      .folder = argv[3],
				      .ops = parse(argv[5], op_name, OPS),
				      .kinds = parse_kinds(argv[6]) };
		w->source = open_source(argv[3], 0);
		/* A file that is only open already changes how memory is followed. */
		w->direct = w->ops & op_bit("direct") ? open_source(argv[3], O_DIRECT) : -1;
		start_worker(w);
	}
	if (workers[0].ops & op_bit("poke"))
		start_poker(seed, (unsigned int)count);
	__atomic_add_fetch(counter, 1,
			   __ATOMIC_RELAXED); /* all is there, even if nothing will move */
	bulk_life(seed, strtoul(argv[2], NULL, 0));
}
