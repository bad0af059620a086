// SPDX-License-Identifier: LGPL-2.1-or-later
#include "mutate.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* A place for a write that need not be aligned. */
static uint8_t *place(struct worker *w, const struct region *r, size_t size)
{
	return r->at + below(&w->rng, r->pages * PAGE - size);
}

static uint8_t *page_of(struct worker *w, const struct region *r, size_t pages)
{
	return r->at + below(&w->rng, r->pages - pages + 1) * PAGE;
}

void op_read(struct worker *w, struct region *r)
{
	size_t size = 1 + below(&w->rng, 6 * PAGE);

	(void)!pread(w->source, place(w, r, size), size,
		     (off_t)below(&w->rng, (SOURCE_PAGES - 8) * PAGE));
}

void op_direct(struct worker *w, struct region *r)
{
	size_t pages = 1 + below(&w->rng, 8);

	if (w->direct >= 0)
		(void)!pread(w->direct, page_of(w, r, pages), pages * PAGE,
			     (off_t)(below(&w->rng, SOURCE_PAGES - 8) * PAGE));
}

void op_getrandom(struct worker *w, struct region *r)
{
	size_t size = 1 + below(&w->rng, 2 * PAGE);

	(void)!getrandom(place(w, r, size), size, 0);
}

void op_pipe(struct worker *w, struct region *r)
{
	size_t size = 1 + below(&w->rng, 2 * PAGE);
	ssize_t n = write(w->pipe[1], place(w, r, size), size);

	/* Reads go on until the pipe is empty again, whatever a restart cut off. */
	while (n > 0) {
		ssize_t got = read(w->pipe[0], place(w, r, (size_t)n), (size_t)n);

		if (got <= 0)
			die("pipe");
		n -= got;
	}
}

void op_splice(struct worker *w, struct region *r)
{
	struct iovec iov = { .iov_base = page_of(w, r, 2), .iov_len = 2 * PAGE };
	loff_t off = (loff_t)(below(&w->rng, SOURCE_PAGES - 4) * PAGE);
	ssize_t n = below(&w->rng, 2) ? vmsplice(w->pipe[1], &iov, 1, 0) :
					splice(w->source, &off, w->pipe[1], NULL, 2 * PAGE, 0);

	while (n > 0) {
		ssize_t got = read(w->pipe[0], place(w, r, (size_t)n), (size_t)n);

		if (got <= 0)
			die("pipe after a splice");
		n -= got;
	}
}

/* Goes through protections: a read-only page of a private file map gets a copy of its own. */
void op_procmem(struct worker *w, struct region *r)
{
	uint64_t value = draw(&w->rng);
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	uint8_t *page = page_of(w, r, 1);

	if (fd < 0)
		die("/proc/self/mem");
	mprotect(page, PAGE, PROT_READ);
	(void)!pwrite(fd, &value, sizeof(value), (off_t)(uintptr_t)(page + 64));
	mprotect(page, PAGE, PROT_READ | PROT_WRITE);
	close(fd);
}

/* The same path as from outside: pages are pinned, then written. The poker is the outside. */
void op_poke(struct worker *w, struct region *r)
{
	size_t size = 1 + below(&w->rng, 16 * PAGE);
	struct iovec from = { .iov_base = place(w, r, size), .iov_len = size };
	struct iovec to = { .iov_base = place(w, r, size), .iov_len = size };

	(void)!process_vm_writev(getpid(), &from, 1, &to, 1, 0);
}

/* The object below a mapping is written, not the mapping. */
void op_fdwrite(struct worker *w, struct region *r)
{
	uint8_t bytes[256];
	size_t size = 1 + below(&w->rng, sizeof(bytes));

	memset(bytes, (int)draw(&w->rng), sizeof(bytes));
	if (r->fd >= 0)
		(void)!pwrite(r->fd, bytes, size, (off_t)below(&w->rng, r->pages * PAGE - size));
}

static void on_signal(int number)
{
	(void)number;
}

/* The kernel writes a frame onto the alternate stack. */
void op_signal(struct worker *w, struct region *r)
{
	stack_t stack = { .ss_sp = page_of(w, r, 16), .ss_size = 16 * PAGE };
	stack_t none = { .ss_flags = SS_DISABLE };
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK };

	sigaction(SIGUSR1, &action, NULL);
	if (sigaltstack(&stack, NULL) < 0)
		return;
	raise(SIGUSR1);
	sigaltstack(&none, NULL);
}

/* What the native engine has to refuse: kernel writes that take no fault. */
void start_aio(const char *folder)
{
	aio_context_t context = 0;

	(void)folder;
	if (syscall(SYS_io_setup, 8, &context) < 0)
		die("io_setup");
}

void start_uring(const char *folder)
{
	struct io_uring_params params = { 0 };
	static uint8_t buffer[16 * PAGE] __attribute__((aligned(PAGE)));
	struct iovec iov = { .iov_base = buffer, .iov_len = sizeof(buffer) };
	long fd = syscall(SYS_io_uring_setup, 8, &params);

	(void)folder;
	if (fd < 0)
		die("io_uring_setup");
	if (mmap(NULL, params.sq_off.array + params.sq_entries * sizeof(uint32_t),
		 PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, IORING_OFF_SQ_RING) == MAP_FAILED)
		die("io_uring ring");
	if (syscall(SYS_io_uring_register, (int)fd, IORING_REGISTER_BUFFERS, &iov, 1) < 0)
		die("io_uring_register");
}
