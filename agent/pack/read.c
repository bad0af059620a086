// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"

/*
 * xxHash built with its dispatcher takes the processor's widest vectors, up to three times as fast
 * as SSE2; the hash is the same. A library without it has no such symbol.
 */
extern __typeof__(XXH3_128bits_withSecret) XXH3_128bits_withSecret_dispatch __attribute__((weak));

struct block_hash block_hash_with(const uint8_t secret[192], const uint8_t *block)
{
	XXH128_hash_t h = XXH3_128bits_withSecret_dispatch ?
				  XXH3_128bits_withSecret_dispatch(block, PACK_BLOCK, secret, 192) :
				  XXH3_128bits_withSecret(block, PACK_BLOCK, secret, 192);

	return (struct block_hash){ h.low64, h.high64 };
}

struct block_hash packer_hash(const struct packer *p, const uint8_t *block)
{
	return block_hash_with(p->hash_secret, block);
}

bool block_is_zero(const uint8_t *block)
{
	/* Most blocks show in their first bytes that they are not zero. */
	for (size_t i = 0; i < PACK_BLOCK; i += 256) {
		uint64_t w[32], seen = 0;

		memcpy(w, block + i, sizeof(w));
		for (size_t j = 0; j < 32; j++)
			seen |= w[j];
		if (seen != 0)
			return false;
	}
	return true;
}

/*
 * So many are hashed before the first is looked for, and looked for before the first is compared: the
 * tables and the contents are larger than any cache of a processor.
 */
struct ahead {
	struct block_hash hashes[PACK_AHEAD];
	uint32_t zeros;
};

static void look_ahead(const struct packer *p, const uint8_t *bytes, size_t count,
		       const struct old_file *old, struct ahead *a)
{
	uint32_t unknown = 0, pack, slot;

	a->zeros = 0;
	for (size_t i = 0; i < count; i++) {
		const uint8_t *block = bytes + i * PACK_BLOCK;

		if (block_is_zero(block)) {
			a->zeros |= (uint32_t)1 << i;
			continue;
		}
		a->hashes[i] = packer_hash(p, block);
		block_index_prefetch(&p->index, a->hashes[i]);
	}
	for (size_t i = 0; i < count; i++)
		if (!(a->zeros >> i & 1) &&
		    !block_index_find(&p->index, a->hashes[i], &pack, &slot))
			unknown |= (uint32_t)1 << i;
	if (unknown)
		packer_bases_ahead(p, old, unknown);
}

int packer_add_blocks(struct packer *p, const uint8_t *bytes, size_t blocks, struct old_file *old,
		      struct extent_list *extents)
{
	struct ahead a;

	a.zeros = 0;
	for (size_t i = 0; i < blocks; i++, old->next++) {
		const uint8_t *block = bytes + i * PACK_BLOCK;
		size_t left = blocks - i < PACK_AHEAD ? blocks - i : PACK_AHEAD;
		uint32_t pack = PACK_ZERO, slot = 0;
		int r;

		if (i % PACK_AHEAD == 0)
			look_ahead(p, block, left, old, &a);
		if (a.zeros >> i % PACK_AHEAD & 1) {
			p->counts.zero_bytes += PACK_BLOCK;
		} else {
			r = packer_block(p, block, a.hashes[i % PACK_AHEAD], old, &pack, &slot);
			if (r < 0)
				return r;
		}
		r = packer_extent(p, extents, pack, slot, 1);
		if (r < 0)
			return r;
	}
	return 0;
}

/*
 * Length of the hole at `at` in whole blocks, at most `left` bytes. A file system that knows no
 * holes says that all is data.
 */
static uint64_t hole_at(int fd, uint64_t at, uint64_t left)
{
	off_t next = lseek(fd, (off_t)at, SEEK_DATA);

	if (next < 0)
		return errno == ENXIO ? left : 0;
	if ((uint64_t)next - at >= left)
		return left;
	return ((uint64_t)next - at) / PACK_BLOCK * PACK_BLOCK;
}

static int hash_update(EVP_MD_CTX *sha, const uint8_t *bytes, uint64_t size)
{
	static const uint8_t zeros[PACK_BLOCK];

	if (bytes)
		return EVP_DigestUpdate(sha, bytes, (size_t)size) == 1 ? 0 : -EIO;
	for (; size > 0; size -= size < sizeof(zeros) ? size : sizeof(zeros))
		if (EVP_DigestUpdate(sha, zeros, size < sizeof(zeros) ? size : sizeof(zeros)) != 1)
			return -EIO;
	return 0;
}

static int read_range(struct packer *p, const struct pack_input *in, EVP_MD_CTX *sha,
		      struct extent_list *extents)
{
	uint64_t at = 0, size = (uint64_t)in->st.st_size;
	struct old_file old;
	int fd = in->fd, r;

	old_file_find(p, in, &old);
	/* What nobody changes needs no bases, and stays readable without them. */
	if (in->kind == FILE_CLOSURE)
		old.extents = NULL;

	while (at < size) {
		uint64_t left = size - at, hole = hole_at(fd, at, left);
		size_t n = left < READ_CHUNK ? (size_t)left : READ_CHUNK;
		size_t blocks = (n + PACK_BLOCK - 1) / PACK_BLOCK;

		if (hole > 0) {
			uint64_t zeros = (hole + PACK_BLOCK - 1) / PACK_BLOCK;

			r = packer_extent(p, extents, PACK_ZERO, 0, (uint32_t)zeros);
			p->counts.zero_bytes += zeros * PACK_BLOCK;
			if (r == 0 && sha)
				r = hash_update(sha, NULL, hole);
			if (r < 0)
				return r;
			at += hole;
			old.next += zeros;
			continue;
		}
		r = pread_full(fd, p->read_buffer, n, (off_t)at);
		if (r < 0)
			return r;
		/* Whole blocks: the end of the file is padded with zeros. */
		memset(p->read_buffer + n, 0, blocks * PACK_BLOCK - n);
		r = sha ? hash_update(sha, p->read_buffer, n) : 0;
		if (r == 0 && p->share_file)
			r = packer_share_blocks(p, p->read_buffer, blocks, extents);
		else if (r == 0)
			r = packer_add_blocks(p, p->read_buffer, blocks, &old, extents);
		if (r < 0)
			return r;
		at += n;
	}
	return 0;
}

int packer_read_file(struct packer *p, const struct pack_input *in, struct extent_list *extents,
		     uint8_t ret_content_hash[32])
{
	EVP_MD_CTX *sha = NULL;
	struct stat st;
	int r = 0;

	if (in->kind != FILE_IMAGE) {
		sha = EVP_MD_CTX_new();
		if (!sha)
			return -ENOMEM;
		r = EVP_DigestInit_ex(sha, EVP_sha256(), NULL) == 1 ? 0 : -EIO;
	}
	if (r == 0)
		r = read_range(p, in, sha, extents);
	if (r == 0 && sha)
		r = EVP_DigestFinal_ex(sha, ret_content_hash, NULL) == 1 ? 0 : -EIO;
	EVP_MD_CTX_free(sha);
	/* A file that was cut meanwhile looks like one with a hole at its end. */
	if (r == 0 && (fstat(in->fd, &st) < 0 || st.st_size < in->st.st_size))
		r = -ENODATA;
	return r;
}

int content_hash_fd(int fd, uint64_t size, uint8_t *buffer, uint8_t ret_hash[32])
{
	EVP_MD_CTX *sha = EVP_MD_CTX_new();
	uint64_t at = 0;
	int r;

	if (!sha)
		return -ENOMEM;
	r = EVP_DigestInit_ex(sha, EVP_sha256(), NULL) == 1 ? 0 : -EIO;
	while (r == 0 && at < size) {
		size_t n = size - at < READ_CHUNK ? (size_t)(size - at) : READ_CHUNK;

		r = pread_full(fd, buffer, n, (off_t)at);
		if (r == 0)
			r = hash_update(sha, buffer, n);
		at += n;
	}
	if (r == 0)
		r = EVP_DigestFinal_ex(sha, ret_hash, NULL) == 1 ? 0 : -EIO;
	EVP_MD_CTX_free(sha);
	return r;
}
