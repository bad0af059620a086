// SPDX-License-Identifier: LGPL-2.1-or-later
// sources: agent/cluster/cluster.c agent/cluster/invite.c agent/cluster/join.c agent/pack/keys.c agent/util/io.c
//
// Tokens as people type them, and what lies behind the checksum or seal of the other messages.
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "agent/cluster/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void fuzz_token(const uint8_t *bytes, size_t size)
{
	char *text = malloc(size + 1), again[CLUSTER_TOKEN_MAX];
	struct token token;

	if (!text)
		return;
	memcpy(text, bytes, size);
	text[size] = 0;
	if (token_parse(text, &token) == 0) {
		token_text(&token, again);
		if (strcasecmp(text, again) != 0)
			abort(); /* a token has one spelling */
	}
	free(text);
}

static void fuzz_identity(const uint8_t *bytes, size_t size)
{
	struct identity id = { 0 }, out;

	memcpy(&id, bytes, size < sizeof(id) ? size : sizeof(id));
	object_hash_of(&id, offsetof(struct identity, checksum), &id.checksum);
	if (identity_decode(&id, sizeof(id), &out) == 0 && out.seed_count > CLUSTER_SEEDS_MAX)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct join_request request = { 0 };
	struct join_reply reply = { 0 };
	struct cluster_join join = { 0 };

	if (size < 1)
		return 0;
	switch (bytes[0] % 4) {
	case 0:
		fuzz_token(bytes + 1, size - 1);
		break;
	case 1:
		fuzz_identity(bytes + 1, size - 1);
		break;
	case 2:
		memcpy(&request, bytes + 1,
		       size - 1 < sizeof(request) ? size - 1 : sizeof(request));
		if (join_request_check(&request) == 0 && !cluster_name_valid(request.hostname))
			abort();
		break;
	default:
		memcpy(&reply, bytes + 1, size - 1 < sizeof(reply) ? size - 1 : sizeof(reply));
		if (join_reply_check(&reply, &join) == 0)
			abort(); /* a card that no cluster key signed */
		break;
	}
	return 0;
}
