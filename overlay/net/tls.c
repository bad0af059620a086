// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay/net/tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/net/frame.h"

#define SUITE "TLS_AES_128_GCM_SHA256"
#define PSK_PREFIX "decamp-join:"

enum { CLOCK_SKEW_MS = 24 * 3600 * 1000 };

static EVP_PKEY *key_of(const uint8_t secret[static TLS_KEY_SIZE])
{
	return EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, secret, TLS_KEY_SIZE);
}

int net_tls_public_of(const uint8_t secret[static TLS_KEY_SIZE],
		      uint8_t ret_key[static TLS_KEY_SIZE])
{
	EVP_PKEY *key = key_of(secret);
	size_t size = TLS_KEY_SIZE;
	int r = key && EVP_PKEY_get_raw_public_key(key, ret_key, &size) == 1 ? 0 : -EINVAL;

	EVP_PKEY_free(key);
	return r;
}

/* A certificate nobody reads but for its key: peers compare that with the card. */
static X509 *make_certificate(EVP_PKEY *key)
{
	X509 *cert = X509_new();
	X509_NAME *name;

	if (!cert)
		return NULL;
	name = X509_get_subject_name(cert);
	if (X509_set_version(cert, X509_VERSION_3) == 1 &&
	    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1) == 1 &&
	    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"decamp",
				       -1, -1, 0) == 1 &&
	    X509_set_issuer_name(cert, name) == 1 &&
	    ASN1_TIME_set_string(X509_getm_notBefore(cert), "20000101000000Z") == 1 &&
	    ASN1_TIME_set_string(X509_getm_notAfter(cert), "99991231235959Z") == 1 &&
	    X509_set_pubkey(cert, key) == 1 && X509_sign(cert, key, NULL) > 0)
		return cert;
	X509_free(cert);
	return NULL;
}

/* Any certificate with an Ed25519 key: whose key it is, the card says. */
static int accept_any_ed25519(X509_STORE_CTX *ctx, void *arg)
{
	X509 *cert = X509_STORE_CTX_get0_cert(ctx);
	EVP_PKEY *key = cert ? X509_get0_pubkey(cert) : NULL;

	(void)arg;
	if (key && EVP_PKEY_get_base_id(key) == EVP_PKEY_ED25519)
		return 1;
	X509_STORE_CTX_set_error(ctx, X509_V_ERR_CERT_REJECTED);
	return 0;
}

static int refuse_any(X509_STORE_CTX *ctx, void *arg)
{
	(void)arg;
	X509_STORE_CTX_set_error(ctx, X509_V_ERR_CERT_REJECTED);
	return 0;
}

static SSL_SESSION *psk_session(SSL *ssl, const uint8_t psk[static 32])
{
	const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, (const unsigned char[]){ 0x13, 0x01 });
	SSL_SESSION *session = SSL_SESSION_new();

	if (session && cipher && SSL_SESSION_set1_master_key(session, psk, 32) == 1 &&
	    SSL_SESSION_set_cipher(session, cipher) == 1 &&
	    SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1)
		return session;
	SSL_SESSION_free(session);
	return NULL;
}

/* Server: an unknown identity leaves the session NULL, and then the client needs a certificate. */
static int on_find_psk(SSL *ssl, const unsigned char *identity, size_t size, SSL_SESSION **session)
{
	struct net_tls_link *link = SSL_get_app_data(ssl);
	char text[TLS_PSK_ID_MAX] = { 0 };
	uint8_t token_id[16], psk[32];

	*session = NULL;
	if (!link || !link->find_psk || size >= sizeof(text))
		return 1;
	memcpy(text, identity, size);
	if (strncmp(text, PSK_PREFIX, strlen(PSK_PREFIX)) != 0 ||
	    hex_decode(text + strlen(PSK_PREFIX), token_id, sizeof(token_id)) < 0)
		return 1;
	if (!link->find_psk(link, token_id, psk))
		return 1;
	*session = psk_session(ssl, psk);
	OPENSSL_cleanse(psk, sizeof(psk));
	return *session != NULL;
}

static int on_use_psk(SSL *ssl, const EVP_MD *digest, const unsigned char **identity, size_t *size,
		      SSL_SESSION **session)
{
	struct net_tls_link *link = SSL_get_app_data(ssl);
	char *text;

	*session = NULL;
	*identity = NULL;
	*size = 0;
	/* A second ClientHello may want another digest than the suite's: no PSK then. */
	if (!link || (digest && EVP_MD_get_type(digest) != NID_sha256))
		return 1;
	*session = psk_session(ssl, link->psk);
	if (!*session)
		return 0;
	/* The text has to live as long as the handshake: it is kept in the link. */
	text = link->identity;
	memcpy(text, PSK_PREFIX, strlen(PSK_PREFIX));
	hex_encode(link->token_id, sizeof(link->token_id), text + strlen(PSK_PREFIX));
	*identity = (const unsigned char *)text;
	*size = strlen(text);
	return 1;
}

static SSL_CTX *base_context(bool server)
{
	static const unsigned char context_id[] = "decamp";
	SSL_CTX *context = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());

	if (!context)
		return NULL;
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
					     SSL_OP_NO_COMPRESSION |
					     SSL_OP_CIPHER_SERVER_PREFERENCE);
	SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE |
					  SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
					  SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_max_cert_list(context, 4096);
	/* A record's head and body with one read, and a part of the next one's. */
	SSL_CTX_set_read_ahead(context, 1);
	/*
	 * A server that verifies peers needs an id for any session, a PSK's too; a client must
	 * have none, or its own PSK session does not match.
	 */
	if (SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1 &&
	    SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) == 1 &&
	    SSL_CTX_set_ciphersuites(context, SUITE) == 1 &&
	    SSL_CTX_set1_groups_list(context, "X25519") == 1 &&
	    SSL_CTX_set1_sigalgs_list(context, "ed25519") == 1 &&
	    SSL_CTX_set_num_tickets(context, 0) == 1 &&
	    (!server ||
	     SSL_CTX_set_session_id_context(context, context_id, sizeof(context_id)) == 1))
		return context;
	SSL_CTX_free(context);
	return NULL;
}

int net_tls_member_context(const uint8_t secret[static TLS_KEY_SIZE], bool server,
			   SSL_CTX **ret_context)
{
	SSL_CTX *context = base_context(server);
	EVP_PKEY *key = key_of(secret);
	X509 *cert = key ? make_certificate(key) : NULL;
	int r = -ENOMEM;

	if (context && cert && SSL_CTX_use_certificate(context, cert) == 1 &&
	    SSL_CTX_use_PrivateKey(context, key) == 1) {
		SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT,
				   NULL);
		SSL_CTX_set_cert_verify_callback(context, accept_any_ed25519, NULL);
		if (server)
			SSL_CTX_set_psk_find_session_callback(context, on_find_psk);
		*ret_context = context;
		context = NULL;
		r = 0;
	}
	X509_free(cert);
	EVP_PKEY_free(key);
	SSL_CTX_free(context);
	ERR_clear_error();
	return r;
}

int net_tls_joiner_context(SSL_CTX **ret_context)
{
	SSL_CTX *context = base_context(false);

	if (!context)
		return -ENOMEM;
	SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_cert_verify_callback(context, refuse_any, NULL);
	SSL_CTX_set_psk_use_session_callback(context, on_use_psk);
	*ret_context = context;
	return 0;
}

int net_tls_peer_key(SSL *ssl, uint8_t ret_key[static TLS_KEY_SIZE])
{
	X509 *cert = SSL_get0_peer_certificate(ssl);
	EVP_PKEY *key = cert ? X509_get0_pubkey(cert) : NULL;
	size_t size = TLS_KEY_SIZE;

	if (!key || EVP_PKEY_get_base_id(key) != EVP_PKEY_ED25519)
		return -EBADMSG;
	if (EVP_PKEY_get_raw_public_key(key, ret_key, &size) != 1 || size != TLS_KEY_SIZE)
		return -EBADMSG;
	return 0;
}

bool net_tls_card_valid(const struct node_card *card,
			const uint8_t cluster_public[static TLS_KEY_SIZE], uint64_t wall_ms)
{
	if (!net_card_sane(card) || card->expires_wall_ms <= wall_ms ||
	    card->issued_wall_ms > wall_ms + CLOCK_SKEW_MS)
		return false;
	return net_tls_verify(cluster_public, card, offsetof(struct node_card, signature),
			      card->signature);
}

void net_tls_preload(void)
{
	uint8_t secret[TLS_KEY_SIZE];
	SSL_CTX *context = NULL;

	OPENSSL_init_ssl(OPENSSL_INIT_LOAD_CONFIG | OPENSSL_INIT_LOAD_SSL_STRINGS, NULL);
	/* One use of each algorithm fetches it from its provider. */
	if (RAND_bytes(secret, sizeof(secret)) == 1 &&
	    net_tls_member_context(secret, true, &context) == 0)
		SSL_CTX_free(context);
	OPENSSL_cleanse(secret, sizeof(secret));
}
