// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: agent/job/folder_version.c
/* What decodes is within its limits, and comes out of the encoder as it went in. */
#include <stdlib.h>
#include <string.h>

#include "agent/job/folder.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static bool same(const struct folder_version *a, const struct folder_version *b)
{
	return a->ref.seq == b->ref.seq && a->ref.wall_ms == b->ref.wall_ms &&
	       a->ref.manifest_size == b->ref.manifest_size &&
	       a->ref.holder_count == b->ref.holder_count &&
	       !memcmp(&a->ref.manifest, &b->ref.manifest, sizeof(a->ref.manifest)) &&
	       !memcmp(a->ref.holders, b->ref.holders,
		       a->ref.holder_count * sizeof(a->ref.holders[0])) &&
	       a->sync == b->sync && a->files == b->files && a->bytes == b->bytes &&
	       a->sent == b->sent && !strcmp(a->copy, b->copy) && !strcmp(a->stamp, b->stamp);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static struct folder_version versions[FOLDER_KEEP_MAX], again[FOLDER_KEEP_MAX];
	const struct ckpt_ref ref = { .seq = 1 };
	_cleanup_free_ char *text = strndup((const char *)bytes, size);
	struct json_object *meta;
	size_t count, more;

	if (!text || folder_versions_decode(text, &ref, versions, &count) < 0)
		return 0;
	if (count < 1 || count > FOLDER_KEEP_MAX)
		abort();
	for (size_t i = 1; i < count; i++)
		if (versions[i].ref.holder_count > OV_HOLDERS_MAX ||
		    versions[i].ref.manifest_size > OV_PACK_MAX || versions[i].objects)
			abort();
	meta = folder_versions_encode(&versions[0], versions + 1, count - 1);
	if (folder_versions_decode(json_object_to_json_string(meta), &ref, again, &more) < 0 ||
	    more != count)
		abort();
	for (size_t i = 0; i < count; i++)
		if (!same(&versions[i], &again[i]))
			abort();
	json_object_put(meta);
	return 0;
}
