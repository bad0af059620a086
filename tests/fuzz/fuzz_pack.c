// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: agent/pack/frame.c agent/pack/delta.c agent/pack/keys.c agent/util/io.c
//
// A pack's header and, behind its authentication, the frame table and the body of a frame with
// deltas. Input: an object whose table is not sealed, or, behind "BODY", the number of blocks, that of
// bases and such a body. What decodes must stay inside the object.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* Every block decodes to exactly one block; bases are of the table. */
static void decode_body(const uint8_t *bytes, size_t size)
{
	static uint8_t out[PACK_FRAME_RAW];
	struct pack_base bases[PACK_FRAME_BLOCKS];
	uint32_t blocks = bytes[0], base_count = bytes[1];
	uint8_t *body = malloc(size - 2 + 1); /* of its own: a read behind it is seen */

	if (!body)
		return;
	memcpy(body, bytes + 2, size - 2);
	if (mixed_body_decode(body, size - 2, blocks, base_count, out, bases) == 0)
		for (uint32_t i = 0; i < blocks; i++)
			if (bases[i].pack != PACK_BASE_NONE &&
			    (bases[i].pack >= base_count || bases[i].slot >= PACK_BLOCKS_MAX))
				abort();
	free(body);
}

static void decode_table(const uint8_t *bytes, size_t size)
{
	static struct pack_table table;
	struct pack_header header;
	uint32_t blocks = 0;

	if (size < sizeof(header))
		return;
	/* Without the sealed bytes, the same table in the open. */
	if (pack_header_decode(bytes, size, &header) < 0)
		memcpy(&header, bytes, sizeof(header));
	if (pack_table_decode(bytes + sizeof(header), size - sizeof(header), &header, &table) < 0)
		return;
	for (uint32_t i = 0; i < header.frame_count; i++) {
		const struct pack_frame *f = &table.frames[i];

		if (f->offset < sizeof(header) || f->size > header.table_offset ||
		    f->offset > header.table_offset - f->size || f->blocks > PACK_FRAME_BLOCKS)
			abort();
		blocks += f->blocks;
	}
	if (blocks != header.block_count || table.base_count > PACK_BASES_MAX)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static const struct secret_key key;
	static const struct job_id job;
	static struct pack_view view;
	static int file = -1;

	if (file < 0)
		file = memfd_new("pack");
	if (size >= 6 && memcmp(bytes, "BODY", 4) == 0) {
		decode_body(bytes + 4, size - 4);
		return 0;
	}
	if (pack_view_open(&view, bytes, size, &job, &key, 1) == 0)
		abort(); /* authenticates under a key that nobody sealed with */
	/* The same in a file that is shared with who wrote it. */
	if (ftruncate(file, 0) < 0 || pwrite_full(file, bytes, size, 0) < 0 ||
	    pack_view_open_file(&view, file, size, &job, &key, 1) != -EBADMSG)
		abort();
	decode_table(bytes, size);
	return 0;
}
