// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: agent/pack/seal.c agent/pack/check.c agent/pack/manifest.c agent/pack/keys.c agent/util/io.c
//
// What lies in a manifest's sealed box. The first byte says whether the rest is taken as it is
// (zstd) or compressed first, so that the fuzzer reaches the protobuf behind it.
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "agent/pack/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void use(const struct manifest *m)
{
	size_t length = 0;

	for (size_t i = 0; i < manifest_file_count(m); i++) {
		struct manifest_file f;

		manifest_file(m, i, &f);
		length += strlen(f.path) + (f.hardlink ? strlen(f.hardlink) : 0) +
			  (f.link_target ? strlen(f.link_target) : 0);
		if (strstr(f.path, "/../") || f.path[0] == '/')
			abort();
	}
	for (size_t i = 0; i < manifest_object_count(m); i++) {
		struct node_id holders[OV_HOLDERS_MAX];
		struct object_hash hash;
		uint32_t object_size, count;

		manifest_object(m, i, &hash, &object_size, &count, holders);
		if (count < 1 || count > OV_HOLDERS_MAX || object_size > OV_PACK_MAX)
			abort();
	}
	length += strlen(manifest_head(m)->meta_json) + strlen(manifest_head(m)->kernel);
	if (length == SIZE_MAX)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct manifest *m = NULL;
	uint8_t *packed;
	size_t packed_size;

	if (size < 1)
		return 0;
	if (bytes[0] & 1) {
		if (manifest_decode(bytes + 1, size - 1, &m) == 0)
			use(m);
		manifest_destroy(m);
		return 0;
	}
	packed_size = ZSTD_compressBound(size - 1);
	packed = malloc(packed_size);
	if (!packed)
		return 0;
	packed_size = ZSTD_compress(packed, packed_size, bytes + 1, size - 1, 1);
	if (!ZSTD_isError(packed_size) && manifest_decode(packed, packed_size, &m) == 0)
		use(m);
	manifest_destroy(m);
	free(packed);
	return 0;
}
