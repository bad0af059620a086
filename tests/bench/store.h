/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What checkpoints of real programs cost once they are taken: captured first, then sealed from the
 * same images as often as one likes.
 *
 *   store_take.c    a program, its snapshots        DIR/K/ as captured: pages.new, pages-N.runs, ...
 *                                                   DIR/K.plain/: the same, pages-N.img whole
 *   store_seal.c    those -> packs; time and bytes
 *   store_bound.c   the page-wise lower bound of them
 *   store.c         which of these to do
 *
 * Results are lines of JSON on standard output, one per checkpoint. Functions end the program with
 * a message when something does not work: a benchmark has nothing to save.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/pack/pack.h"

enum { STORE_PAGE = 4096, STORE_FILES_MAX = 512 };

struct store_seal_options {
	bool verify; /* unpack the last checkpoint and compare it */
	bool again;  /* then the first one again: nothing has changed */
	struct packer_budget budget;
};

void store_take(const char *dir, unsigned int count, unsigned int interval_ms,
		unsigned int warmup_ms, char *const *argv);
void store_seal(const char *dir, unsigned int count, const struct store_seal_options *options);
void store_bound(const char *dir, unsigned int count);

/* Ends the program. */
void store_die(const char *what, int r) __attribute__((noreturn));
/* One pages-N.img of DIR/K.plain, with the page number (address / 4096) of each of its pages. */
struct store_image {
	char pagemap[64]; /* file name: which memory it is, from one checkpoint to the next */
	uint64_t *numbers;
	uint8_t *bytes; /* mapped */
	size_t count;
};
size_t store_images(const char *dir, unsigned int k, struct store_image *ret_images, size_t max);
void store_images_free(struct store_image *images, size_t count);
