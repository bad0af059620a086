// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "agent/pack/keys.h"
#include "agent/util/io.h"

static struct secret_key key_of(uint8_t fill)
{
	struct secret_key key;

	memset(key.b, fill, sizeof(key.b));
	return key;
}

/* RFC 5869 fixes the construction: a second implementation must find the same keys. */
static void test_derive_is_hkdf_sha256(void **state)
{
	/* python3: hmac(hmac(salt, key), label + b"\x01") */
	static const char expected[] =
		"f963cc1c0c88bafb094e1ab4420a7787cf642dffc39088e3d7be6167a6079b1f";
	struct secret_key key = key_of(0x0b), out, other;
	char text[65];

	(void)state;
	assert_int_equal(key_derive(&key, "salt", 4, "label", &out), 0);
	hex_encode(out.b, sizeof(out.b), text);
	assert_string_equal(text, expected);
	assert_int_equal(key_derive(&key, "salT", 4, "label", &other), 0);
	assert_memory_not_equal(out.b, other.b, sizeof(out.b));
	assert_int_equal(key_derive(&key, "salt", 4, "labeL", &other), 0);
	assert_memory_not_equal(out.b, other.b, sizeof(out.b));
	assert_int_equal(key_derive(&key, NULL, 0, "label", &other), 0);
	assert_memory_not_equal(out.b, other.b, sizeof(out.b));
}

static void test_seal_round_trip(void **state)
{
	static const size_t sizes[] = { 0, 1, 15, 16, 17, 4096, 70000 };
	struct secret_key key = key_of(1);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		size_t size = sizes[i];
		uint8_t *plain = calloc(1, size + 1), *back = calloc(1, size + 1);
		uint8_t *sealed = malloc(size + SEAL_OVERHEAD);

		assert_int_equal(random_bytes(plain, size), 0);
		assert_int_equal(key_seal(&key, "test", "ad", 2, plain, size, sealed), 0);
		assert_int_equal(
			key_open(&key, "test", "ad", 2, sealed, size + SEAL_OVERHEAD, back), 0);
		assert_memory_equal(plain, back, size + 1);
		free(plain);
		free(back);
		free(sealed);
	}
}

static void test_open_refuses_what_was_changed(void **state)
{
	static const char plain[] = "forty-two bytes or so of something secret";
	enum { SEALED = sizeof(plain) + SEAL_OVERHEAD };
	struct secret_key key = key_of(1), wrong = key_of(2);
	uint8_t sealed[SEALED], again[SEALED];
	char back[sizeof(plain)] = "untouched";

	(void)state;
	assert_int_equal(key_seal(&key, "test", "ad", 2, plain, sizeof(plain), sealed), 0);
	assert_int_equal(key_seal(&key, "test", "ad", 2, plain, sizeof(plain), again), 0);
	assert_memory_not_equal(sealed, again, SEALED);
	for (size_t i = 0; i < SEALED; i++) {
		sealed[i] ^= 1;
		assert_int_equal(key_open(&key, "test", "ad", 2, sealed, SEALED, back), -EBADMSG);
		sealed[i] ^= 1;
	}
	for (size_t size = 0; size < SEALED; size++)
		assert_int_equal(key_open(&key, "test", "ad", 2, sealed, size, back), -EBADMSG);
	assert_int_equal(key_open(&wrong, "test", "ad", 2, sealed, SEALED, back), -EBADMSG);
	assert_int_equal(key_open(&key, "tesT", "ad", 2, sealed, SEALED, back), -EBADMSG);
	assert_int_equal(key_open(&key, "test", "aD", 2, sealed, SEALED, back), -EBADMSG);
	assert_int_equal(key_open(&key, "test", NULL, 0, sealed, SEALED, back), -EBADMSG);
	assert_string_equal(back, "untouched");
	assert_int_equal(key_open(&key, "test", "ad", 2, sealed, SEALED, back), 0);
	assert_string_equal(back, plain);
}

/* RFC 8032, section 7.1, test 2. */
static void test_signature_is_ed25519(void **state)
{
	struct secret_key seed;
	uint8_t public_key[32], expected[32], signature[64], wanted[64];
	uint8_t message = 0x72;

	(void)state;
	assert_int_equal(hex_decode("4ccd089b28ff96da9db6c346ec114e0f"
				    "5b8a319f35aba624da8cf6ed4fb8a6fb",
				    seed.b, 32),
			 0);
	assert_int_equal(hex_decode("3d4017c3e843895a92b70aa74d1b7ebc"
				    "9c982ccf2ec4968cc0cd55f12af4660c",
				    expected, 32),
			 0);
	assert_int_equal(hex_decode("92a009a9f0d4cab8720e820b5f642540"
				    "a2b27b5416503f8fb3762223ebdb69da"
				    "085ac1e43e15996e458f3613d0f11d8c"
				    "387b2eaeb4302aeeb00d291612bb0c00",
				    wanted, 64),
			 0);
	assert_int_equal(sign_public(&seed, public_key), 0);
	assert_memory_equal(public_key, expected, 32);
	assert_int_equal(sign_bytes(&seed, &message, 1, signature), 0);
	assert_memory_equal(signature, wanted, 64);
	assert_int_equal(sign_verify(public_key, &message, 1, signature), 0);
	message ^= 1;
	assert_int_equal(sign_verify(public_key, &message, 1, signature), -EBADMSG);
	message ^= 1;
	for (size_t i = 0; i < sizeof(signature); i++) {
		signature[i] ^= 0x10;
		assert_int_equal(sign_verify(public_key, &message, 1, signature), -EBADMSG);
		signature[i] ^= 0x10;
	}
	memset(public_key, 0xff, sizeof(public_key));
	assert_int_equal(sign_verify(public_key, &message, 1, signature), -EBADMSG);
}

static void test_hash_is_sha256(void **state)
{
	struct object_hash hash;
	char text[65];

	(void)state;
	object_hash_of("abc", 3, &hash);
	hex_encode(hash.b, sizeof(hash.b), text);
	assert_string_equal(text,
			    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

static struct node_card make_card(const struct secret_key *cluster)
{
	struct node_card card = { .version = 1, .issued_wall_ms = 1000, .expires_wall_ms = 2000 };

	strcpy(card.hostname, "lab01");
	strcpy(card.room, "r1");
	assert_int_equal(node_card_sign(&card, cluster), 0);
	return card;
}

static void test_card_signature_and_dates(void **state)
{
	struct secret_key cluster = key_of(5), other = key_of(6);
	struct node_card card = make_card(&cluster), forged;
	uint8_t public_key[32], other_public[32];

	(void)state;
	assert_int_equal(sign_public(&cluster, public_key), 0);
	assert_int_equal(sign_public(&other, other_public), 0);
	assert_int_equal(node_card_verify(&card, public_key, 1500), 0);
	assert_int_equal(node_card_verify(&card, public_key, 2000), 0);
	assert_int_equal(node_card_verify(&card, public_key, 10), 0);
	assert_int_equal(node_card_verify(&card, public_key, 2001), -EKEYEXPIRED);
	assert_int_equal(node_card_verify(&card, other_public, 1500), -EBADMSG);
	for (size_t i = 0; i < sizeof(card); i++) {
		forged = card;
		((uint8_t *)&forged)[i] ^= 4;
		assert_int_equal(node_card_verify(&forged, public_key, 1500), -EBADMSG);
	}
}

static void test_card_fields_are_checked_behind_the_signature(void **state)
{
	struct secret_key cluster = key_of(5);
	struct node_card good = make_card(&cluster), card;
	uint8_t public_key[32];

	(void)state;
	assert_int_equal(sign_public(&cluster, public_key), 0);
	for (int i = 0; i < 5; i++) {
		card = good;
		if (i == 0)
			card.version = 2;
		else if (i == 1)
			card.reserved = 1;
		else if (i == 2)
			card.expires_wall_ms = 999;
		else if (i == 3)
			memset(card.hostname, 'a', sizeof(card.hostname));
		else
			memset(card.room, 'a', sizeof(card.room));
		assert_int_equal(node_card_sign(&card, &cluster), 0);
		assert_int_equal(node_card_verify(&card, public_key, 500), -EBADMSG);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_derive_is_hkdf_sha256),
		cmocka_unit_test(test_seal_round_trip),
		cmocka_unit_test(test_open_refuses_what_was_changed),
		cmocka_unit_test(test_signature_is_ed25519),
		cmocka_unit_test(test_hash_is_sha256),
		cmocka_unit_test(test_card_signature_and_dates),
		cmocka_unit_test(test_card_fields_are_checked_behind_the_signature),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
