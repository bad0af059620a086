// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The page-wise lower bound: of each page that changed since the last checkpoint, or is new and not
 * zero, the smallest of raw, compressed content and compressed difference to its last version, each
 * page on its own. Pages are the same page if their address in the same memory is.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "tests/bench/store.h"

enum { BOUND_LEVEL = 3 };

struct bound {
	uint64_t changed, fresh, content_bytes, bound_bytes, first_bytes;
	ZSTD_CCtx *zstd;
};

static const uint8_t zero_page[STORE_PAGE];

static size_t compressed(struct bound *b, const uint8_t *page)
{
	uint8_t out[STORE_PAGE * 2];
	size_t n = ZSTD_compressCCtx(b->zstd, out, sizeof(out), page, STORE_PAGE, BOUND_LEVEL);

	if (ZSTD_isError(n))
		store_die(ZSTD_getErrorName(n), -EIO);
	return n < STORE_PAGE ? n : STORE_PAGE;
}

static void add_page(struct bound *b, const uint8_t *now, const uint8_t *last)
{
	uint8_t difference[STORE_PAGE];
	size_t content, best;

	if (memcmp(now, last ? last : zero_page, STORE_PAGE) == 0)
		return;
	if (memcmp(now, zero_page, STORE_PAGE) == 0)
		return;
	content = best = compressed(b, now);
	if (last) {
		size_t n;

		for (size_t i = 0; i < STORE_PAGE; i++)
			difference[i] = now[i] ^ last[i];
		n = compressed(b, difference);
		best = n < best ? n : best;
		b->changed++;
	} else {
		b->fresh++;
	}
	b->content_bytes += content;
	b->bound_bytes += best;
}

static const struct store_image *same(const struct store_image *images, size_t count,
				      const char *pagemap)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(images[i].pagemap, pagemap))
			return &images[i];
	return NULL;
}

static void add_image(struct bound *b, const struct store_image *now,
		      const struct store_image *last)
{
	size_t j = 0;

	for (size_t i = 0; i < now->count; i++) {
		const uint8_t *before = NULL;

		while (last && j < last->count && last->numbers[j] < now->numbers[i])
			j++;
		if (last && j < last->count && last->numbers[j] == now->numbers[i])
			before = last->bytes + j * STORE_PAGE;
		add_page(b, now->bytes + i * STORE_PAGE, before);
	}
}

void store_bound(const char *dir, unsigned int count)
{
	static struct store_image images[2][STORE_FILES_MAX];
	size_t counts[2] = { 0 };
	struct bound b = { .zstd = ZSTD_createCCtx() };

	if (!b.zstd)
		store_die("zstd", -ENOMEM);
	for (unsigned int k = 0; k < count; k++) {
		struct store_image *now = images[k % 2], *last = images[(k + 1) % 2];

		counts[k % 2] = store_images(dir, k, now, STORE_FILES_MAX);
		b = (struct bound){ .zstd = b.zstd };
		for (size_t i = 0; i < counts[k % 2]; i++)
			add_image(&b, &now[i], same(last, counts[(k + 1) % 2], now[i].pagemap));
		printf("{\"step\": %u, \"changed\": %llu, \"fresh\": %llu, \"content_bytes\": %llu, "
		       "\"bound_bytes\": %llu}\n",
		       k, (unsigned long long)b.changed, (unsigned long long)b.fresh,
		       (unsigned long long)b.content_bytes, (unsigned long long)b.bound_bytes);
		fflush(stdout);
		store_images_free(last, counts[(k + 1) % 2]);
		counts[(k + 1) % 2] = 0;
	}
	store_images_free(images[(count + 1) % 2], counts[(count + 1) % 2]);
	ZSTD_freeCCtx(b.zstd);
}
