// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: agent/pack/frame.c agent/pack/keys.c
//
// A pack's header and, behind its authentication, the frame table. Input: an object whose table is
// not sealed; what decodes must stay inside the object.
#include <stdlib.h>
#include <string.h>

#include "agent/pack/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static const struct secret_key key;
	static const struct job_id job;
	struct pack_frame frames[PACK_FRAMES_MAX];
	struct pack_header header;
	struct pack_view view;
	uint32_t blocks = 0;

	if (pack_view_open(&view, bytes, size, &job, &key, 1) == 0)
		abort(); /* authenticates under a key that nobody sealed with */
	if (size < sizeof(header))
		return 0;
	/* Without the sealed bytes, the same table in the open. */
	if (pack_header_decode(bytes, size, &header) < 0)
		memcpy(&header, bytes, sizeof(header));
	if (pack_table_decode(bytes + sizeof(header), size - sizeof(header), &header, frames) < 0)
		return 0;
	for (uint32_t i = 0; i < header.frame_count; i++) {
		if (frames[i].offset < sizeof(header) || frames[i].size > header.table_offset ||
		    frames[i].offset > header.table_offset - frames[i].size ||
		    frames[i].blocks > PACK_FRAME_BLOCKS)
			abort();
		blocks += frames[i].blocks;
	}
	if (blocks != header.block_count)
		abort();
	return 0;
}
