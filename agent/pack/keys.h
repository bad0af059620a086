/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Cryptography of the privileged half, all of it OpenSSL's: sealing (AEAD), derivation, signing.
 *
 * seal: out = salt[32] || AES-256-GCM(HKDF-SHA256(key, salt, label), plain, ad) || tag[16].
 * A fresh random salt makes a fresh key for each message, so no nonce can repeat.
 * Errors: -EBADMSG when something does not authenticate; -EIO when OpenSSL itself fails.
 * Threading: reentrant. Keys are borrowed for the call; key_wipe() before freeing.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "agent/util/cleanup.h"
#include "overlay/types.h"

enum { KEY_BYTES = 32, SEAL_OVERHEAD = 48, SIGNATURE_BYTES = 64 };

struct secret_key {
	uint8_t b[KEY_BYTES];
};

int random_bytes(void *buf, size_t size) _must_check_;
void key_wipe(void *key, size_t size);

/* HKDF-SHA256; label is text such as "decamp pack frame v1". */
int key_derive(const struct secret_key *key, const void *salt, size_t salt_size, const char *label,
	       struct secret_key *ret_key) _must_check_;

/* out has size + SEAL_OVERHEAD bytes. */
int key_seal(const struct secret_key *key, const char *label, const void *ad, size_t ad_size,
	     const void *plain, size_t size, uint8_t *out) _must_check_;
/* ret_plain has size - SEAL_OVERHEAD bytes; untouched unless everything authenticates. */
int key_open(const struct secret_key *key, const char *label, const void *ad, size_t ad_size,
	     const uint8_t *sealed, size_t size, void *ret_plain) _must_check_;

void object_hash_of(const void *bytes, size_t size, struct object_hash *ret_hash); /* SHA-256 */

int sign_public(const struct secret_key *seed, uint8_t ret_public[32]) _must_check_; /* Ed25519 */
int sign_bytes(const struct secret_key *seed, const void *bytes, size_t size,
	       uint8_t ret_signature[SIGNATURE_BYTES]) _must_check_;
int sign_verify(const uint8_t public_key[32], const void *bytes, size_t size,
		const uint8_t signature[SIGNATURE_BYTES]) _must_check_;

/*
 * Signature and dates of a membership card. -EKEYEXPIRED: genuine, but past its date. `issued` is not
 * compared with the clock: a host that runs behind must not refuse a new member.
 */
int node_card_sign(struct node_card *card, const struct secret_key *cluster_seed) _must_check_;
int node_card_verify(const struct node_card *card, const uint8_t cluster_public[32],
		     uint64_t now_wall_ms) _must_check_;
