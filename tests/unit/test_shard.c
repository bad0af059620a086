// SPDX-License-Identifier: LGPL-2.1-or-later
/* Any k of k + m: every choice of what is lost, for every scheme; and what is no shard. */
#include <errno.h>
#include <openssl/sha.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>

#include "overlay/shard.h"

static const struct {
	uint32_t k, m;
} schemes[] = { { 4, 2 }, { 4, 4 }, { 8, 8 } };

struct lab {
	struct shard_head head;
	uint32_t bytes; /* of a shard */
	uint8_t *object, *joined;
	uint8_t *made[OV_SHARDS_MAX], *work[OV_SHARDS_MAX];
};

static void lab_make(struct lab *lab, uint32_t k, uint32_t m, uint32_t size)
{
	uint32_t x = 88172645u;

	memset(lab, 0, sizeof(*lab));
	lab->head = (struct shard_head){ .k = k, .m = m, .size = size };
	lab->bytes = shard_bytes(size, k);
	lab->object = malloc(size);
	lab->joined = malloc(size);
	assert_non_null(lab->object);
	assert_non_null(lab->joined);
	for (uint32_t i = 0; i < size; i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		lab->object[i] = (uint8_t)(x >> 8);
	}
	SHA256(lab->object, size, lab->head.hash.b);
	for (uint32_t i = 0; i < k + m; i++) {
		lab->made[i] = malloc(lab->bytes);
		lab->work[i] = malloc(lab->bytes);
		assert_non_null(lab->made[i]);
		assert_non_null(lab->work[i]);
	}
	assert_int_equal(shard_encode(&lab->head, lab->object, lab->made), 0);
}

static void lab_end(struct lab *lab)
{
	for (uint32_t i = 0; i < OV_SHARDS_MAX; i++) {
		free(lab->made[i]);
		free(lab->work[i]);
	}
	free(lab->object);
	free(lab->joined);
}

/* From those in `have` alone all others come back, bit by bit, and with them the object. */
static void check_choice(struct lab *lab, uint32_t have)
{
	uint32_t count = lab->head.k + lab->head.m, want = ((1u << count) - 1) & ~have;

	for (uint32_t i = 0; i < count; i++) {
		if (have & 1u << i)
			memcpy(lab->work[i], lab->made[i], lab->bytes);
		else
			memset(lab->work[i], 0xee, lab->bytes);
	}
	assert_int_equal(shard_rebuild(&lab->head, have, want, lab->work), 0);
	for (uint32_t i = 0; i < count; i++)
		assert_memory_equal(lab->work[i], lab->made[i], lab->bytes);
	shard_join(&lab->head, lab->work, lab->joined);
	assert_memory_equal(lab->joined, lab->object, lab->head.size);
}

static void any_k_of_n_are_enough(void **state)
{
	(void)state;
	for (size_t s = 0; s < sizeof(schemes) / sizeof(schemes[0]); s++) {
		uint32_t k = schemes[s].k, n = k + schemes[s].m, choices = 0;
		struct lab lab;

		lab_make(&lab, k, schemes[s].m, 1000);
		for (uint32_t have = 0; have < 1u << n; have++) {
			if ((uint32_t)__builtin_popcount(have) != k)
				continue;
			check_choice(&lab, have);
			choices++;
		}
		/* n over k */
		assert_int_equal(choices, n == 6 ? 15 : n == 8 ? 70 : 12870);
		lab_end(&lab);
	}
}

static void every_size_comes_back(void **state)
{
	static const uint32_t sizes[] = { 1,   2,    63,   64,	 65,	255,	256,
					  257, 4095, 4096, 4097, 99991, 1 << 20 };

	(void)state;
	for (size_t s = 0; s < sizeof(schemes) / sizeof(schemes[0]); s++)
		for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			uint32_t k = schemes[s].k, m = schemes[s].m;
			struct lab lab;

			lab_make(&lab, k, m, sizes[i]);
			check_choice(&lab, ((1u << k) - 1) << m);
			lab_end(&lab);
		}
}

static void too_few_are_refused(void **state)
{
	struct lab lab;

	(void)state;
	lab_make(&lab, 4, 2, 5000);
	assert_int_equal(shard_rebuild(&lab.head, 0x07, 0x38, lab.made), -ENODATA);
	assert_int_equal(shard_rebuild(&lab.head, 0x0f, 0x1f, lab.made), -EINVAL);
	assert_int_equal(shard_rebuild(&lab.head, 0x0f, 0x40, lab.made), -EINVAL);
	lab.head.m = 3;
	assert_int_equal(shard_rebuild(&lab.head, 0x0f, 0x30, lab.made), -EINVAL);
	assert_int_equal(shard_encode(&lab.head, lab.object, lab.made), -EINVAL);
	lab_end(&lab);
}

static void what_is_no_shard_is_refused(void **state)
{
	struct shard_head head;
	struct lab lab;

	(void)state;
	lab_make(&lab, 4, 4, 5000);
	for (uint32_t i = 0; i < 8; i++) {
		assert_int_equal(shard_decode(lab.made[i], lab.bytes, &head), 0);
		assert_int_equal(head.index, i);
		lab.head.index = i;
		assert_memory_equal(&head, &lab.head, sizeof(head));
	}
	assert_int_equal(shard_decode(lab.made[0], lab.bytes - 1, &head), -EBADMSG);
	assert_int_equal(shard_decode(lab.made[0], SHARD_HEAD_BYTES - 1, &head), -EBADMSG);
	/* A head has no bit that could be another way and mean the same. */
	for (uint32_t bit = 0; bit < SHARD_HEAD_BYTES * 8; bit++) {
		uint8_t *bytes = lab.made[3];
		struct shard_head other = { 0 };
		int r;

		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		r = shard_decode(bytes, lab.bytes, &other);
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		if (r == 0) {
			assert_int_equal(shard_decode(bytes, lab.bytes, &head), 0);
			assert_memory_not_equal(&other, &head, sizeof(head));
		} else {
			assert_int_equal(r, -EBADMSG);
		}
	}
	lab_end(&lab);
}

/*
 * What lies on disks must be read by later versions, whatever library they are built with. The sums
 * were computed by another program, from the description of the format.
 */
static void the_format_stays(void **state)
{
	static const struct {
		uint32_t k, m;
		const char *sum;
	} known[] = {
		{ 4, 2, "da489d659cb9f175ea6fa139778afb7063f2f7ded8bd3677ad69e2fea8cb6cd9" },
		{ 4, 4, "9ebf4810fb7067e01d61a50394f5847960afa03bae5c2992bd7e89d7d4e0de9d" },
		{ 8, 8, "a4c5ddac571065175083cedc8784f9df0cb778c863d8adf8dd48efdc5a3b5b87" },
	};

	(void)state;
	for (size_t s = 0; s < sizeof(known) / sizeof(known[0]); s++) {
		uint32_t count = known[s].k + known[s].m;
		uint8_t all[OV_SHARDS_MAX][32], sum[32];
		char text[65];
		struct lab lab;

		lab_make(&lab, known[s].k, known[s].m, 100000);
		for (uint32_t i = 0; i < count; i++)
			SHA256(lab.made[i], lab.bytes, all[i]);
		SHA256(all[0], (size_t)count * 32, sum);
		for (int i = 0; i < 32; i++)
			snprintf(text + 2 * i, 3, "%02x", sum[i]);
		assert_string_equal(text, known[s].sum);
		lab_end(&lab);
	}
}

static double cpu_s(void)
{
	struct rusage use;

	getrusage(RUSAGE_THREAD, &use);
	return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
	       (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
}

/* CPU time of one core, object bytes: a pack of the usual size, all that may be lost is lost. */
static void speeds_are_told(void **state)
{
	enum { PACK = 4 << 20, ROUNDS = 25 };

	(void)state;
	for (size_t s = 0; s < sizeof(schemes) / sizeof(schemes[0]); s++) {
		uint32_t k = schemes[s].k, m = schemes[s].m, n = k + m;
		uint32_t lost = (1u << (m < k ? m : k)) - 1, have = ((1u << n) - 1) & ~lost;
		double mb = (double)PACK * ROUNDS / 1e6, encode, decode, hash;
		uint8_t sum[32];
		struct lab lab;

		lab_make(&lab, k, m, PACK);
		encode = cpu_s();
		for (int i = 0; i < ROUNDS; i++)
			assert_int_equal(shard_encode(&lab.head, lab.object, lab.made), 0);
		encode = cpu_s() - encode;
		decode = cpu_s();
		for (int i = 0; i < ROUNDS; i++) {
			assert_int_equal(shard_rebuild(&lab.head, have, lost, lab.made), 0);
			shard_join(&lab.head, lab.made, lab.joined);
		}
		decode = cpu_s() - decode;
		hash = cpu_s();
		for (int i = 0; i < ROUNDS; i++)
			SHA256(lab.joined, PACK, sum);
		hash = cpu_s() - hash;
		assert_memory_equal(sum, &lab.head.hash, sizeof(sum));
		print_message("%u+%u: encode %.0f MB/s, decode %.0f MB/s, SHA-256 %.0f MB/s\n", k,
			      m, mb / encode, mb / decode, mb / hash);
		lab_end(&lab);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_k_of_n_are_enough),
		cmocka_unit_test(every_size_comes_back),
		cmocka_unit_test(too_few_are_refused),
		cmocka_unit_test(what_is_no_shard_is_refused),
		cmocka_unit_test(the_format_stays),
		cmocka_unit_test(speeds_are_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
