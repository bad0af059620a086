// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <string.h>
#include <zstd.h>

#include "agent/pack/internal.h"

#define MANIFEST_MAGIC "DECAMPMF"
#define MANIFEST_LABEL "decamp manifest v1"

enum {
	MANIFEST_VERSION = 3,
	MANIFEST_VERSION_UNSHARED = 2, /* no pack is shared */
	MANIFEST_VERSION_MIN = 1,      /* nor has any deltas */
	MANIFEST_ZSTD_LEVEL = 3,
	/* Decoded protobuf in memory: many times its size on the wire for tiny messages. */
	DECODED_MAX = 768 << 20,
};

struct manifest_header {
	char magic[8]; /* "DECAMPMF" */
	uint32_t version;
	uint32_t box_size;
	struct node_card card;
};
_Static_assert(sizeof(struct manifest_header) == 16 + sizeof(struct node_card), "no padding");

enum {
	BOX_OFFSET = sizeof(struct manifest_header) + SIGNATURE_BYTES,
	BOX_MAX = OV_PACK_MAX - BOX_OFFSET,
};

/* What is signed: a label, then the hash of all bytes but the signature. */
struct signed_bytes {
	char label[32];
	struct object_hash header, box;
};

static struct signed_bytes signed_bytes(const struct manifest_header *header, const uint8_t *box,
					size_t box_size)
{
	struct signed_bytes s = { .label = MANIFEST_LABEL };

	object_hash_of(header, sizeof(*header), &s.header);
	object_hash_of(box, box_size, &s.box);
	return s;
}

/* ---- writing ---- */

static int compress(const Decamp__Manifest *pb, uint8_t **ret_bytes, size_t *ret_size)
{
	size_t raw_size = decamp__manifest__get_packed_size(pb);
	_cleanup_free_ uint8_t *raw = NULL;
	uint8_t *bytes;
	size_t bound, size;

	if (raw_size > MANIFEST_RAW_MAX)
		return -EFBIG;
	raw = malloc(raw_size + 1);
	bound = ZSTD_compressBound(raw_size);
	bytes = malloc(bound);
	if (!raw || !bytes) {
		free(bytes);
		return -ENOMEM;
	}
	decamp__manifest__pack(pb, raw);
	size = ZSTD_compress(bytes, bound, raw, raw_size, MANIFEST_ZSTD_LEVEL);
	key_wipe(raw, raw_size);
	if (ZSTD_isError(size)) {
		free(bytes);
		return -EIO;
	}
	*ret_bytes = bytes;
	*ret_size = size;
	return 0;
}

static uint32_t version_of(const Decamp__Manifest *pb)
{
	for (size_t i = 0; i < pb->n_packs; i++)
		if (pb->packs[i]->shared_key.len)
			return MANIFEST_VERSION;
	return MANIFEST_VERSION_UNSHARED;
}

int manifest_seal(const Decamp__Manifest *pb, const struct secret_key *job_key,
		  const struct secret_key *sign_seed, const struct node_card *card,
		  uint8_t **ret_bytes, size_t *ret_size)
{
	struct manifest_header header = { .version = version_of(pb), .card = *card };
	_cleanup_free_ uint8_t *plain = NULL;
	_cleanup_free_ uint8_t *out = NULL;
	struct signed_bytes s;
	size_t plain_size;
	int r;

	r = compress(pb, &plain, &plain_size);
	if (r < 0)
		return r;
	if (plain_size > BOX_MAX - SEAL_OVERHEAD)
		return -EFBIG;
	memcpy(header.magic, MANIFEST_MAGIC, sizeof(header.magic));
	header.box_size = (uint32_t)plain_size + SEAL_OVERHEAD;
	out = malloc(BOX_OFFSET + header.box_size);
	if (!out)
		return -ENOMEM;
	r = key_seal(job_key, MANIFEST_LABEL, &header, sizeof(header), plain, plain_size,
		     out + BOX_OFFSET);
	if (r < 0)
		return r;
	s = signed_bytes(&header, out + BOX_OFFSET, header.box_size);
	r = sign_bytes(sign_seed, &s, sizeof(s), out + sizeof(header));
	if (r < 0)
		return r;
	memcpy(out, &header, sizeof(header));
	*ret_size = BOX_OFFSET + header.box_size;
	*ret_bytes = take_ptr(out);
	return 0;
}

/* ---- reading ---- */

struct bounded_allocator {
	ProtobufCAllocator base;
	size_t left;
};

static void *bounded_alloc(void *data, size_t size)
{
	struct bounded_allocator *a = data;
	void *p;

	if (size > a->left)
		return NULL;
	p = malloc(size);
	if (p)
		a->left -= size;
	return p;
}

static void bounded_free(void *data, void *p)
{
	(void)data; /* freed bytes are not given back: the limit bounds a decode's work, too */
	free(p);
}

static int allocator_create(ProtobufCAllocator **ret_allocator)
{
	struct bounded_allocator *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	a->base.alloc = bounded_alloc;
	a->base.free = bounded_free;
	a->base.allocator_data = a;
	a->left = DECODED_MAX;
	*ret_allocator = &a->base;
	return 0;
}

static void manifest_destroyp(struct manifest **m)
{
	manifest_destroy(*m);
}

static int decode_protobuf(const uint8_t *bytes, size_t size, struct manifest **ret_manifest)
{
	_cleanup_(manifest_destroyp) struct manifest *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	r = allocator_create(&m->allocator);
	if (r < 0)
		return r;
	m->pb = decamp__manifest__unpack(m->allocator, size, bytes);
	if (!m->pb)
		return -EBADMSG;
	r = manifest_check(m->pb);
	if (r < 0)
		return r;
	manifest_fill_head(m);
	*ret_manifest = take_ptr(m);
	return 0;
}

int manifest_decode(const uint8_t *bytes, size_t size, struct manifest **ret_manifest)
{
	unsigned long long raw_size = ZSTD_getFrameContentSize(bytes, size);
	uint8_t *raw;
	size_t n;
	int r;

	/* Unknown and error are the two largest numbers. */
	if (raw_size > MANIFEST_RAW_MAX)
		return -EBADMSG;
	raw = malloc((size_t)raw_size + 1);
	if (!raw)
		return -ENOMEM;
	n = ZSTD_decompress(raw, (size_t)raw_size, bytes, size);
	if (ZSTD_isError(n) || n != raw_size)
		r = -EBADMSG;
	else
		r = decode_protobuf(raw, n, ret_manifest);
	key_wipe(raw, (size_t)raw_size);
	free(raw);
	return r;
}

/* Who wrote it: the card by the cluster's key, then everything by the card's key. */
static int check_signatures(const struct manifest_header *header, const uint8_t *bytes,
			    const uint8_t cluster_public[32])
{
	struct signed_bytes s;
	int r;

	/* Its host may have left since: the dates of the card say nothing about old manifests. */
	r = node_card_verify(&header->card, cluster_public, header->card.issued_wall_ms);
	if (r < 0)
		return r;
	s = signed_bytes(header, bytes + BOX_OFFSET, header->box_size);
	return sign_verify(header->card.sign_public, &s, sizeof(s), bytes + sizeof(*header));
}

int manifest_open(const void *bytes, size_t size, const struct object_hash *hash,
		  const struct secret_key *job_key, const uint8_t cluster_public[32],
		  struct manifest **ret_manifest)
{
	_cleanup_(manifest_destroyp) struct manifest *m = NULL;
	_cleanup_free_ uint8_t *plain = NULL;
	struct manifest_header header;
	struct object_hash actual;
	int r;

	if (size < BOX_OFFSET + SEAL_OVERHEAD || size > OV_PACK_MAX)
		return -EBADMSG;
	object_hash_of(bytes, size, &actual);
	if (memcmp(&actual, hash, sizeof(actual)) != 0)
		return -EBADMSG;
	memcpy(&header, bytes, sizeof(header));
	if (memcmp(header.magic, MANIFEST_MAGIC, sizeof(header.magic)) != 0 ||
	    header.version < MANIFEST_VERSION_MIN || header.version > MANIFEST_VERSION ||
	    header.box_size != size - BOX_OFFSET)
		return -EBADMSG;
	r = check_signatures(&header, bytes, cluster_public);
	if (r < 0)
		return r;
	plain = malloc(header.box_size);
	if (!plain)
		return -ENOMEM;
	r = key_open(job_key, MANIFEST_LABEL, &header, sizeof(header),
		     (const uint8_t *)bytes + BOX_OFFSET, header.box_size, plain);
	if (r == 0)
		r = manifest_decode(plain, header.box_size - SEAL_OVERHEAD, &m);
	if (r < 0)
		return r;
	/* A host speaks for itself only. */
	if (memcmp(&m->head.host, &header.card.id, sizeof(header.card.id)) != 0)
		return -EBADMSG;
	m->hash = actual;
	*ret_manifest = take_ptr(m);
	return 0;
}
