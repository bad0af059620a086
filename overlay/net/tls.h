/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * TLS 1.3 contexts of the overlay. One suite (TLS_AES_128_GCM_SHA256), one group (X25519), no
 * tickets, no resumption.
 *
 * Members: each side shows a certificate made in memory from its Ed25519 key and signed by
 * itself. The handshake proves possession of that key and nothing else; the card that follows
 * says whose key it is. Joiners: an external PSK from an invitation, no certificate.
 *
 * All return 0 or -errno; none log. Threading: one thread.
 */
#pragma once

#include <openssl/ssl.h>

#include "overlay/ipc.h"

enum { TLS_KEY_SIZE = 32, TLS_PSK_ID_MAX = 64, TLS_SIGNATURE_SIZE = 64 };

/*
 * What a connection tells its callbacks; SSL_set_app_data(ssl, link). find_psk: server side of an
 * invitation, fills the psk or says false; token_id and psk: the joiner's.
 */
struct net_tls_link {
	bool (*find_psk)(struct net_tls_link *link, const uint8_t token_id[static 16],
			 uint8_t ret_psk[static 32]);
	uint8_t token_id[16];
	uint8_t psk[32];
	char identity[TLS_PSK_ID_MAX]; /* room for the callbacks */
};

/* One direction of a member. */
int net_tls_member_context(const uint8_t secret[static TLS_KEY_SIZE], bool server,
			   SSL_CTX **ret_context) __attribute__((warn_unused_result));
/* A joiner: has no key yet and believes only a server that knows the PSK. */
int net_tls_joiner_context(SSL_CTX **ret_context) __attribute__((warn_unused_result));

/* The Ed25519 key of the certificate that the peer proved to own. */
int net_tls_peer_key(SSL *ssl, uint8_t ret_key[static TLS_KEY_SIZE])
	__attribute__((warn_unused_result));
int net_tls_public_of(const uint8_t secret[static TLS_KEY_SIZE],
		      uint8_t ret_key[static TLS_KEY_SIZE]) __attribute__((warn_unused_result));
/* Signature and dates of a card. */
bool net_tls_card_valid(const struct node_card *card,
			const uint8_t cluster_public[static TLS_KEY_SIZE], uint64_t now_wall_ms);
/*
 * A member's word outside of a connection, by the same key (sign.c). What is signed begins with a
 * name of its use, so that it is neither a certificate (DER, 0x30) nor of a TLS handshake (0x20).
 */
int net_tls_sign(const uint8_t secret[static TLS_KEY_SIZE], const void *bytes, size_t size,
		 uint8_t ret_signature[static TLS_SIGNATURE_SIZE])
	__attribute__((warn_unused_result));
bool net_tls_verify(const uint8_t key[static TLS_KEY_SIZE], const void *bytes, size_t size,
		    const uint8_t signature[static TLS_SIGNATURE_SIZE]);
/* Loads all that OpenSSL reads from files; to be called before the sandbox closes. */
void net_tls_preload(void);
