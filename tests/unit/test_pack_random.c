// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A job's life in many random steps: edits, checkpoints that fail, moves to a fresh packer, lost
 * holders, holders that drop what no manifest needs. After each checkpoint all files come back.
 */
#include <stdio.h>

#include "tests/unit/pack_lab.h"

enum { FILES = 4, BLOCKS = 600, ROUNDS = 250 };

struct life {
	struct lab *lab;
	uint64_t random;
	uint8_t *bytes[FILES];
	size_t size[FILES];
	bool touched[FILES]; /* since the last good checkpoint */
};

static uint64_t dice(struct life *life, uint64_t sides)
{
	life->random = life->random * 6364136223846793005u + 1442695040888963407u;
	return (life->random >> 33) % sides;
}

static void edit(struct life *life)
{
	size_t i = dice(life, FILES), at = dice(life, BLOCKS), n = 1 + dice(life, 40);
	uint8_t *bytes = life->bytes[i];

	life->touched[i] = true;
	switch (dice(life, 5)) {
	case 0: /* grows or shrinks */
		life->size[i] = dice(life, BLOCKS * PACK_BLOCK);
		memset(bytes + life->size[i], 0, BLOCKS * PACK_BLOCK - life->size[i]);
		break;
	case 1: /* zeros */
		for (; n-- > 0 && (at + 1) * PACK_BLOCK <= life->size[i]; at++)
			memset(bytes + at * PACK_BLOCK, 0, PACK_BLOCK);
		break;
	case 2: /* the same blocks elsewhere */
		for (size_t from = dice(life, BLOCKS); n-- > 0 && from < BLOCKS; at++, from++)
			if ((at + 1) * PACK_BLOCK <= life->size[i])
				memmove(bytes + at * PACK_BLOCK, life->bytes[0] + from * PACK_BLOCK,
					PACK_BLOCK);
		break;
	default:
		for (; n-- > 0 && (at + 1) * PACK_BLOCK <= life->size[i]; at++)
			lab_fill_random(bytes + at * PACK_BLOCK, PACK_BLOCK);
	}
}

static int checkpoint(struct life *life)
{
	struct lab *lab = life->lab;
	int r = 0;

	lab_begin(lab);
	for (size_t i = 0; i < FILES && r == 0; i++) {
		struct pack_input in;
		char path[16];
		int fd = lab_content_fd(life->bytes[i], life->size[i]);

		snprintf(path, sizeof(path), "%zu/f", i);
		in = lab_input_of(i % 2 ? FILE_UPPER : FILE_IMAGE, path, S_IFREG | 0600, fd);
		if (!life->touched[i]) {
			in.fd = -1;
			r = packer_add(lab->packer, &in);
			in.fd = fd;
		}
		if (life->touched[i] || r == -ENOENT)
			r = packer_add(lab->packer, &in);
		close(fd);
	}
	if (r == 0)
		return lab_try_finish(lab);
	packer_abort(lab->packer);
	return r;
}

/* What a RETAIN allows the holders to do. */
static void collect_garbage(struct lab *lab)
{
	struct object_hash *live;
	size_t count, kept = 0;

	assert_int_equal(packer_objects(lab->packer, &live, &count), 0);
	for (size_t i = 0; i < lab->store.count; i++) {
		bool keep = false;

		for (size_t j = 0; j < count; j++)
			keep |= memcmp(&live[j], &lab->store.objects[i].hash, sizeof(*live)) == 0;
		if (keep)
			lab->store.objects[kept++] = lab->store.objects[i];
		else
			free(lab->store.objects[i].bytes);
	}
	lab->store.count = kept;
	assert_int_equal(kept, count);
	free(live);
}

static void restore_and_compare(struct life *life, struct packer *seed)
{
	struct manifest *m = lab_open_manifest(life->lab);
	uint8_t *back = malloc(BLOCKS * PACK_BLOCK);
	int fds[FILES];
	struct stat st;

	for (size_t i = 0; i < FILES; i++)
		fds[i] = memfd_new("back");
	assert_int_equal(manifest_unpack(m, &life->lab->job_key, fds, lab_get, &life->lab->store,
					 seed, NULL),
			 0);
	for (size_t i = 0; i < FILES; i++) {
		assert_int_equal(fstat(fds[i], &st), 0);
		assert_int_equal(st.st_size, life->size[i]);
		assert_int_equal(pread_full(fds[i], back, life->size[i], 0), 0);
		assert_memory_equal(back, life->bytes[i], life->size[i]);
		close(fds[i]);
	}
	free(back);
	manifest_destroy(m);
}

static bool alive_even(void *ctx, const struct node_id *node)
{
	(void)ctx;
	return node->b[0] % 2 == 0;
}

static void after_checkpoint(struct life *life)
{
	struct lab *lab = life->lab;
	struct packer *fresh;

	memset(life->touched, 0, sizeof(life->touched));
	collect_garbage(lab);
	if (dice(life, 3) != 0) {
		restore_and_compare(life, NULL);
	} else {
		assert_int_equal(packer_create(&lab->job, &lab->job_key, &fresh), 0);
		restore_and_compare(life, fresh);
		packer_destroy(lab->packer);
		lab->packer = fresh;
	}
	if (dice(life, 10) == 0)
		packer_forget_weak(lab->packer, 1, alive_even, NULL);
}

static void test_random_life(void **state)
{
	struct life life = { .lab = *state, .random = 20250101 };
	uint32_t good = 0, bad = 0;

	for (size_t i = 0; i < FILES; i++) {
		life.bytes[i] = calloc(BLOCKS, PACK_BLOCK);
		life.touched[i] = true;
	}
	for (int round = 0; round < ROUNDS; round++) {
		int r;

		for (uint64_t n = dice(&life, 4); n > 0; n--)
			edit(&life);
		life.lab->store.fail_after = dice(&life, 5) == 0 ? 1 + (int)dice(&life, 3) : 0;
		r = checkpoint(&life);
		life.lab->store.fail_after = 0;
		life.lab->store.fail = 0;
		assert_true(r == 0 || r == -EHOSTUNREACH);
		good += r == 0;
		bad += r < 0;
		if (r == 0)
			after_checkpoint(&life);
	}
	print_message("%u checkpoints, %u failed\n", good, bad);
	assert_true(good > ROUNDS / 2 && bad > 10);
	for (size_t i = 0; i < FILES; i++)
		free(life.bytes[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = { TEST(test_random_life) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
