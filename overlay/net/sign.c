// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <openssl/err.h>
#include <openssl/evp.h>

#include "overlay/net/tls.h"

int net_tls_sign(const uint8_t secret[static TLS_KEY_SIZE], const void *bytes, size_t size,
		 uint8_t ret_signature[static TLS_SIGNATURE_SIZE])
{
	EVP_PKEY *key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, secret, TLS_KEY_SIZE);
	EVP_MD_CTX *sign = EVP_MD_CTX_new();
	size_t signed_size = TLS_SIGNATURE_SIZE;
	int r = -ENOMEM;

	if (key && sign)
		r = EVP_DigestSignInit(sign, NULL, NULL, NULL, key) == 1 &&
				    EVP_DigestSign(sign, ret_signature, &signed_size, bytes,
						   size) == 1 ?
			    0 :
			    -EIO;
	EVP_MD_CTX_free(sign);
	EVP_PKEY_free(key);
	ERR_clear_error();
	return r;
}

bool net_tls_verify(const uint8_t key[static TLS_KEY_SIZE], const void *bytes, size_t size,
		    const uint8_t signature[static TLS_SIGNATURE_SIZE])
{
	EVP_PKEY *public_key =
		EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, key, TLS_KEY_SIZE);
	EVP_MD_CTX *verify = EVP_MD_CTX_new();
	bool good = public_key && verify &&
		    EVP_DigestVerifyInit(verify, NULL, NULL, NULL, public_key) == 1 &&
		    EVP_DigestVerify(verify, signature, TLS_SIGNATURE_SIZE, bytes, size) == 1;

	EVP_MD_CTX_free(verify);
	EVP_PKEY_free(public_key);
	ERR_clear_error();
	return good;
}
