// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/pack/keys.h"

#include <errno.h>
#include <limits.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/sha.h>
#include <stdbool.h>
#include <string.h>
#include <sys/random.h>

#include "agent/pack/internal.h"

enum { SALT_BYTES = 32 };

static void pkey_freep(EVP_PKEY **key)
{
	EVP_PKEY_free(*key);
}

static void md_ctx_freep(EVP_MD_CTX **ctx)
{
	EVP_MD_CTX_free(*ctx);
}

static void cipher_ctx_freep(EVP_CIPHER_CTX **ctx)
{
	EVP_CIPHER_CTX_free(*ctx);
}

static void kdf_freep(EVP_KDF **kdf)
{
	EVP_KDF_free(*kdf);
}

static void kdf_ctx_freep(EVP_KDF_CTX **ctx)
{
	EVP_KDF_CTX_free(*ctx);
}

int random_bytes(void *buf, size_t size)
{
	uint8_t *p = buf;

	while (size > 0) {
		ssize_t n = getrandom(p, size, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		size -= (size_t)n;
	}
	return 0;
}

void key_wipe(void *key, size_t size)
{
	OPENSSL_cleanse(key, size);
}

int key_derive(const struct secret_key *key, const void *salt, size_t salt_size, const char *label,
	       struct secret_key *ret_key)
{
	_cleanup_(kdf_freep) EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	_cleanup_(kdf_ctx_freep) EVP_KDF_CTX *ctx = NULL;
	struct secret_key out;
	OSSL_PARAM params[5];
	OSSL_PARAM *p = params;

	if (!kdf)
		return -EIO;
	ctx = EVP_KDF_CTX_new(kdf);
	if (!ctx)
		return -ENOMEM;
	*p++ = OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)"SHA256", 0);
	*p++ = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)key->b, KEY_BYTES);
	*p++ = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)label, strlen(label));
	if (salt_size > 0)
		*p++ = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)salt,
							 salt_size);
	*p = OSSL_PARAM_construct_end();
	if (EVP_KDF_derive(ctx, out.b, sizeof(out.b), params) != 1)
		return -EIO;
	*ret_key = out;
	key_wipe(&out, sizeof(out));
	return 0;
}

static void nonce_of(uint64_t number, uint8_t nonce[12])
{
	memset(nonce, 0, 12);
	for (int i = 0; i < 8; i++)
		nonce[i] = (uint8_t)(number >> (8 * i));
}

/* ctx has a key. */
static int seal_with(EVP_CIPHER_CTX *ctx, uint64_t nonce_number, const void *ad, size_t ad_size,
		     const void *plain, size_t size, uint8_t *out)
{
	uint8_t nonce[12];
	int n;

	if (size > INT_MAX || ad_size > INT_MAX)
		return -E2BIG;
	nonce_of(nonce_number, nonce);
	if (EVP_EncryptInit_ex(ctx, NULL, NULL, NULL, nonce) != 1)
		return -EIO;
	if (ad_size > 0 && EVP_EncryptUpdate(ctx, NULL, &n, ad, (int)ad_size) != 1)
		return -EIO;
	if (size > 0 && EVP_EncryptUpdate(ctx, out, &n, plain, (int)size) != 1)
		return -EIO;
	if (EVP_EncryptFinal_ex(ctx, out + size, &n) != 1 ||
	    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG, out + size) != 1)
		return -EIO;
	return 0;
}

static int open_with(EVP_CIPHER_CTX *ctx, uint64_t nonce_number, const void *ad, size_t ad_size,
		     const uint8_t *sealed, size_t size, void *out)
{
	uint8_t nonce[12], tag[AEAD_TAG];
	size_t plain_size;
	int n;

	if (size < AEAD_TAG || size > INT_MAX || ad_size > INT_MAX)
		return -EBADMSG;
	plain_size = size - AEAD_TAG;
	memcpy(tag, sealed + plain_size, sizeof(tag));
	nonce_of(nonce_number, nonce);
	if (EVP_DecryptInit_ex(ctx, NULL, NULL, NULL, nonce) != 1)
		return -EIO;
	if (ad_size > 0 && EVP_DecryptUpdate(ctx, NULL, &n, ad, (int)ad_size) != 1)
		return -EIO;
	if (plain_size > 0 && EVP_DecryptUpdate(ctx, out, &n, sealed, (int)plain_size) != 1)
		return -EIO;
	if (EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG, tag) != 1)
		return -EIO;
	if (EVP_DecryptFinal_ex(ctx, (uint8_t *)out + plain_size, &n) != 1) {
		key_wipe(out, plain_size);
		return -EBADMSG;
	}
	return 0;
}

int aead_seal(const struct secret_key *key, uint64_t nonce_number, const void *ad, size_t ad_size,
	      const void *plain, size_t size, uint8_t *out)
{
	_cleanup_(cipher_ctx_freep) EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

	if (!ctx)
		return -ENOMEM;
	if (EVP_EncryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key->b, NULL) != 1)
		return -EIO;
	return seal_with(ctx, nonce_number, ad, ad_size, plain, size, out);
}

int aead_open(const struct secret_key *key, uint64_t nonce_number, const void *ad, size_t ad_size,
	      const uint8_t *sealed, size_t size, void *out)
{
	_cleanup_(cipher_ctx_freep) EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

	if (!ctx)
		return -ENOMEM;
	if (EVP_DecryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key->b, NULL) != 1)
		return -EIO;
	return open_with(ctx, nonce_number, ad, ad_size, sealed, size, out);
}

struct stream {
	EVP_CIPHER_CTX *ctx;
};

int stream_create(const struct secret_key *key, struct stream **ret_stream)
{
	struct stream *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->ctx = EVP_CIPHER_CTX_new();
	if (!s->ctx || EVP_EncryptInit_ex(s->ctx, EVP_aes_256_ctr(), NULL, key->b, NULL) != 1) {
		stream_destroy(s);
		return -ENOMEM;
	}
	*ret_stream = s;
	return 0;
}

void stream_destroy(struct stream *s)
{
	if (!s)
		return;
	EVP_CIPHER_CTX_free(s->ctx);
	free(s);
}

int stream_apply(struct stream *s, uint64_t number, const void *in, size_t size, void *out)
{
	uint8_t counter[16] = { 0 }; /* its last bytes count what is encrypted under one number */
	int n;

	memcpy(counter, &number, sizeof(number));
	if (size > INT_MAX || EVP_EncryptInit_ex(s->ctx, NULL, NULL, NULL, counter) != 1 ||
	    EVP_EncryptUpdate(s->ctx, out, &n, in, (int)size) != 1)
		return -EIO;
	return 0;
}

int key_seal(const struct secret_key *key, const char *label, const void *ad, size_t ad_size,
	     const void *plain, size_t size, uint8_t *out)
{
	struct secret_key derived;
	int r;

	r = random_bytes(out, SALT_BYTES);
	if (r < 0)
		return r;
	r = key_derive(key, out, SALT_BYTES, label, &derived);
	if (r < 0)
		return r;
	r = aead_seal(&derived, 0, ad, ad_size, plain, size, out + SALT_BYTES);
	key_wipe(&derived, sizeof(derived));
	return r;
}

int key_open(const struct secret_key *key, const char *label, const void *ad, size_t ad_size,
	     const uint8_t *sealed, size_t size, void *ret_plain)
{
	struct secret_key derived;
	uint8_t *plain;
	size_t plain_size;
	int r;

	if (size < SEAL_OVERHEAD)
		return -EBADMSG;
	r = key_derive(key, sealed, SALT_BYTES, label, &derived);
	if (r < 0)
		return r;
	/* GCM gives out plaintext before it has seen the tag: not into the caller's buffer. */
	plain_size = size - SEAL_OVERHEAD;
	plain = malloc(plain_size + 1);
	r = plain ? aead_open(&derived, 0, ad, ad_size, sealed + SALT_BYTES, size - SALT_BYTES,
			      plain) :
		    -ENOMEM;
	if (r == 0 && plain_size > 0)
		memcpy(ret_plain, plain, plain_size);
	if (plain)
		key_wipe(plain, plain_size);
	free(plain);
	key_wipe(&derived, sizeof(derived));
	return r;
}

void object_hash_of(const void *bytes, size_t size, struct object_hash *ret_hash)
{
	SHA256(bytes, size, ret_hash->b);
}

int sign_public(const struct secret_key *seed, uint8_t ret_public[32])
{
	_cleanup_(pkey_freep) EVP_PKEY *key =
		EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, seed->b, KEY_BYTES);
	size_t size = 32;
	uint8_t out[32];

	if (!key || EVP_PKEY_get_raw_public_key(key, out, &size) != 1 || size != sizeof(out))
		return -EIO;
	memcpy(ret_public, out, sizeof(out));
	return 0;
}

int sign_bytes(const struct secret_key *seed, const void *bytes, size_t size,
	       uint8_t ret_signature[SIGNATURE_BYTES])
{
	_cleanup_(pkey_freep) EVP_PKEY *key =
		EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, seed->b, KEY_BYTES);
	_cleanup_(md_ctx_freep) EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	uint8_t out[SIGNATURE_BYTES];
	size_t out_size = sizeof(out);

	if (!key || !ctx || EVP_DigestSignInit(ctx, NULL, NULL, NULL, key) != 1 ||
	    EVP_DigestSign(ctx, out, &out_size, bytes, size) != 1 || out_size != sizeof(out))
		return -EIO;
	memcpy(ret_signature, out, sizeof(out));
	return 0;
}

int sign_verify(const uint8_t public_key[32], const void *bytes, size_t size,
		const uint8_t signature[SIGNATURE_BYTES])
{
	_cleanup_(pkey_freep)
		EVP_PKEY *key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, public_key, 32);
	_cleanup_(md_ctx_freep) EVP_MD_CTX *ctx = EVP_MD_CTX_new();

	if (!ctx)
		return -ENOMEM;
	if (!key)
		return -EBADMSG;
	if (EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, key) != 1)
		return -EIO;
	return EVP_DigestVerify(ctx, signature, SIGNATURE_BYTES, bytes, size) == 1 ? 0 : -EBADMSG;
}

int node_card_sign(struct node_card *card, const struct secret_key *cluster_seed)
{
	return sign_bytes(cluster_seed, card, offsetof(struct node_card, signature),
			  card->signature);
}

int node_card_verify(const struct node_card *card, const uint8_t cluster_public[32],
		     uint64_t now_wall_ms)
{
	int r;

	/* The signature first: nothing else in the card means anything before. */
	r = sign_verify(cluster_public, card, offsetof(struct node_card, signature),
			card->signature);
	if (r < 0)
		return r;
	if (card->version != 1 || card->reserved != 0 ||
	    card->expires_wall_ms < card->issued_wall_ms)
		return -EBADMSG;
	if (!memchr(card->hostname, 0, sizeof(card->hostname)) ||
	    !memchr(card->room, 0, sizeof(card->room)))
		return -EBADMSG;
	/* No check against `issued`: a lab clock that runs behind must not refuse a new host. */
	return now_wall_ms > card->expires_wall_ms ? -EKEYEXPIRED : 0;
}
