// SPDX-License-Identifier: LGPL-2.1-or-later
/* Readers follow differences to their bases: all at once, on demand, parts; and refuse wrong ones. */
#include <pthread.h>
#include <stdatomic.h>

#include "agent/pack/reader.h"
#include "tests/unit/pack_lab.h"

enum { BLOCKS = 400, SIZE = BLOCKS * PACK_BLOCK, ROUNDS = 9 };

/* What a reader's sink was given. */
struct back {
	struct lab *lab;
	pthread_mutex_t lock;
	uint8_t bytes[SIZE];
	uint8_t times[BLOCKS];
	/* Of get_into(). */
	atomic_bool fail; /* the next one, whose file is written later all the same */
	atomic_int late;  /* that file; -1: none */
	bool cut;	  /* too little is written */
	atomic_uint lent; /* how many came in the reader's own file */
	/* Of get_false_first(). */
	atomic_uint asked[64]; /* by its place in the manifest */
	atomic_uint starved, fed;
};

struct fixture {
	uint8_t bytes[SIZE];
	struct manifest *m;
	struct back back;
};

static bool is_zero(size_t block)
{
	return block >= 100 && block < 110;
}

static struct fixture *checkpoints(struct lab *lab, void (*change)(uint8_t *bytes, size_t round))
{
	struct fixture *f = calloc(1, sizeof(*f));
	int fd;

	assert_non_null(f);
	f->back.lab = lab;
	pthread_mutex_init(&f->back.lock, NULL);
	lab_fill_random(f->bytes, SIZE);
	memset(f->bytes + 100 * PACK_BLOCK, 0, 10 * PACK_BLOCK);
	fd = lab_content_fd(f->bytes, SIZE);
	for (size_t round = 0; round < ROUNDS; round++) {
		lab_begin(lab);
		assert_int_equal(lab_add(lab, FILE_IMAGE, "a", fd), 0);
		lab_finish(lab);
		if (round + 1 == ROUNDS)
			break;
		change(f->bytes, round);
		assert_int_equal(pwrite_full(fd, f->bytes, SIZE, 0), 0);
	}
	close(fd);
	f->m = lab_open_manifest(lab);
	return f;
}

/*
 * Blocks change in all rounds, in some, or never, a few words each time; in runs as well as alone,
 * so that chains have all lengths and frames hold both kinds.
 */
static void change_often(uint8_t *bytes, size_t round)
{
	for (size_t i = 0; i < BLOCKS; i++)
		if (i % 7 <= round && !is_zero(i))
			lab_fill_random(bytes + i * PACK_BLOCK + round * 400, 320);
}

static struct fixture *chains(struct lab *lab)
{
	return checkpoints(lab, change_often);
}

/* Each round changes other blocks, some of them wholly: so all packs are needed from the begin. */
static void change_in_turn(uint8_t *bytes, size_t round)
{
	for (size_t i = round * 40; i < (round + 1) * 40; i++)
		if (!is_zero(i))
			lab_fill_random(bytes + i * PACK_BLOCK, i % 4 ? PACK_BLOCK : 320);
}

static void end(struct fixture *f)
{
	manifest_destroy(f->m);
	free(f);
}

static int sink(void *ctx, uint32_t file, uint64_t block, uint32_t count, const uint8_t *bytes)
{
	struct back *b = ctx;

	assert_int_equal(file, 0);
	assert_true(block + count <= BLOCKS);
	pthread_mutex_lock(&b->lock);
	memcpy(b->bytes + block * PACK_BLOCK, bytes, (size_t)count * PACK_BLOCK);
	for (uint32_t i = 0; i < count; i++)
		b->times[block + i]++;
	pthread_mutex_unlock(&b->lock);
	return 0;
}

static struct reader_config config_of(struct fixture *f)
{
	return (struct reader_config){ .manifest = f->m,
				       .job_key = &f->back.lab->job_key,
				       .fetch = lab_get,
				       .fetch_ctx = &f->back.lab->store,
				       .sink = sink,
				       .ctx = &f->back };
}

static struct pack_reader *reader_with(struct fixture *f, const struct reader_config *config)
{
	struct reader_range all = { .file = 0, .count = UINT64_MAX };
	struct pack_reader *r;

	memset(f->back.bytes, 0, SIZE);
	memset(f->back.times, 0, BLOCKS);
	f->back.lab->store.gets = 0;
	assert_int_equal(reader_create(config, &all, 1, &r), 0);
	return r;
}

static struct pack_reader *reader_of(struct fixture *f, uint64_t wants_max)
{
	struct reader_config config = config_of(f);

	config.wants_max = wants_max;
	return reader_with(f, &config);
}

/* Not all of it, but what there is is right. */
static void check_given(const struct fixture *f)
{
	for (size_t i = 0; i < BLOCKS; i++)
		if (f->back.times[i])
			assert_memory_equal(f->back.bytes + i * PACK_BLOCK,
					    f->bytes + i * PACK_BLOCK, PACK_BLOCK);
}

/* All of it, each block once. */
static void check(const struct fixture *f)
{
	assert_memory_equal(f->back.bytes, f->bytes, SIZE);
	for (size_t i = 0; i < BLOCKS; i++)
		assert_int_equal(f->back.times[i], !is_zero(i));
}

static uint32_t deepest(const struct packer *p)
{
	uint32_t depth = 0;

	for (size_t i = 0; i < p->pack_count; i++)
		for (size_t j = 0; j < p->packs[i].delta_count; j++)
			depth = p->packs[i].deltas[j].depth > depth ? p->packs[i].deltas[j].depth :
								      depth;
	return depth;
}

static void test_each_pack_is_read_once(void **state)
{
	struct lab *lab = *state;
	struct fixture *f = chains(lab);
	struct pack_reader *r;

	assert_true(deepest(lab->packer) >= 3);
	for (int i = 0; i < 20; i++) {
		r = reader_of(f, 0);
		assert_int_equal(reader_run(r), 0);
		reader_destroy(r);
		check(f);
		assert_int_equal(lab->store.gets, f->m->pb->n_packs);
	}
	end(f);
}

/* With room for few differences packs are read again and again: but it ends. */
static void test_few_may_wait(void **state)
{
	static const uint64_t rooms[] = { 4000, 30000 };
	struct lab *lab = *state;
	struct fixture *f = chains(lab);

	for (size_t i = 0; i < ARRAY_SIZE(rooms); i++) {
		struct pack_reader *r = reader_of(f, rooms[i]);

		assert_int_equal(reader_run(r), 0);
		reader_destroy(r);
		check(f);
		assert_true(lab->store.gets > f->m->pb->n_packs);
		r = reader_of(f, rooms[i]);
		assert_int_equal(reader_start(r), 0);
		reader_let_go(r);
		assert_int_equal(reader_wait(r, -1), 1);
		reader_destroy(r);
		check(f);
	}
	end(f);
}

/* Who waits for a block gets it, whatever it is a difference to. */
static void test_on_demand(void **state)
{
	struct lab *lab = *state;
	struct fixture *f = chains(lab);
	struct pack_reader *r;

	for (size_t first = 0; first < BLOCKS; first += 57) {
		r = reader_of(f, first % 2 ? 4000 : 0);
		assert_int_equal(reader_start(r), 0);
		for (size_t i = first; i < BLOCKS; i += 97) {
			int ms = 0;

			if (is_zero(i)) {
				assert_int_equal(reader_urge(r, 0, i), READER_ZERO);
				continue;
			}
			for (; reader_urge(r, 0, i) == READER_COMING && ms < 60000; ms++)
				usleep(1000);
			assert_int_equal(reader_urge(r, 0, i), READER_THERE);
			assert_memory_equal(f->back.bytes + i * PACK_BLOCK,
					    f->bytes + i * PACK_BLOCK, PACK_BLOCK);
		}
		assert_true(reader_wait(r, 0) >= 0);
		reader_let_go(r);
		assert_int_equal(reader_wait(r, -1), 1);
		reader_destroy(r);
		check(f);
	}
	end(f);
}

static void urge_and_wait(struct fixture *f, struct pack_reader *r, uint64_t block)
{
	for (int ms = 0; reader_urge(r, 0, block) == READER_COMING && ms < 60000; ms++)
		usleep(1000);
	assert_int_equal(reader_urge(r, 0, block), READER_THERE);
	assert_memory_equal(f->back.bytes + block * PACK_BLOCK, f->bytes + block * PACK_BLOCK,
			    PACK_BLOCK);
}

/* Packs come before there is a place for them, and wait; but who waits for a block gets it. */
static void test_ahead(void **state)
{
	struct lab *lab = *state;
	struct fixture *f = checkpoints(lab, change_in_turn);
	struct reader_config config = config_of(f);
	struct pack_reader *r;

	config.ahead = true;
	assert_true(f->m->pb->n_packs > READER_THREADS);
	for (size_t urged = 0; urged < 3; urged++) {
		r = reader_with(f, &config);
		assert_int_equal(reader_start(r), 0);
		for (int ms = 0; lab->store.gets < READER_THREADS - 1 && ms < 60000; ms++)
			usleep(1000);
		assert_int_equal(lab->store.gets, READER_THREADS - 1);
		for (size_t i = 0; i < BLOCKS; i++)
			assert_int_equal(f->back.times[i], 0);
		for (size_t i = 0; i < urged; i++)
			urge_and_wait(f, r, 31 + 200 * i);
		assert_int_equal(reader_wait(r, 0), 0);
		reader_let_go(r);
		assert_int_equal(reader_wait(r, -1), 1);
		reader_destroy(r);
		check(f);
	}
	/* Called off: what was fetched goes nowhere. */
	r = reader_with(f, &config);
	assert_int_equal(reader_start(r), 0);
	for (int ms = 0; lab->store.gets < READER_THREADS - 1 && ms < 60000; ms++)
		usleep(1000);
	reader_cancel(r);
	assert_int_equal(reader_wait(r, -1), -ECANCELED);
	reader_destroy(r);
	for (size_t i = 0; i < BLOCKS; i++)
		assert_int_equal(f->back.times[i], 0);
	end(f);
}

/* As the other half does: into the reader's own file, where an earlier pack still lies. */
static int get_into(void *ctx, const struct object_hash *hash, uint32_t size,
		    const struct node_id *holders, uint32_t holder_count, int *memfd)
{
	struct back *b = ctx;
	_cleanup_free_ uint8_t *bytes = malloc(size);
	_cleanup_close_ int fd = -1;
	int e = lab_get(&b->lab->store, hash, size, holders, holder_count, &fd);

	assert_true(*memfd >= 0);
	assert_int_equal(e, 0);
	if (atomic_exchange(&b->fail, false)) {
		b->late = dup(*memfd);
		return -EAGAIN;
	}
	assert_int_equal(pread_full(fd, bytes, size, 0), 0);
	assert_int_equal(pwrite_full(*memfd, bytes, b->cut ? size / 2 : size, 0), 0);
	if (b->late >= 0) {
		memset(bytes, 0xa5, size);
		assert_int_equal(pwrite_full(b->late, bytes, size, 0), 0);
	}
	b->lent++;
	return 0;
}

/* One file serves many packs; what comes in it is checked like any other, and so is a late writer. */
static void test_own_file(void **state)
{
	struct lab *lab = *state;
	struct fixture *f = chains(lab);
	struct reader_config config = config_of(f);
	struct back *b = &f->back;
	struct pack_reader *r;

	config.fetch = get_into;
	config.fetch_ctx = b;
	b->late = -1;
	for (int fail = 0; fail < 2; fail++) {
		b->lent = 0;
		b->fail = fail;
		r = reader_with(f, &config);
		assert_int_equal(reader_run(r), 0);
		reader_destroy(r);
		check(f);
		assert_int_equal(b->lent, f->m->pb->n_packs);
		assert_int_equal(b->late >= 0, fail);
	}
	close(b->late);
	b->late = -1;
	for (int lie = 0; lie < 2; lie++) {
		b->cut = !lie;
		lab->store.lie = lie;
		r = reader_with(f, &config);
		assert_int_equal(reader_run(r), -EBADMSG);
		reader_destroy(r);
		check_given(f);
	}
	lab->store.lie = false;
	end(f);
}

static void test_parts(void **state)
{
	struct lab *lab = *state;
	struct fixture *f = chains(lab);
	struct manifest_reader *r;
	uint8_t *back = malloc(SIZE);

	assert_int_equal(manifest_reader_create(f->m, &lab->job_key, lab_get, &lab->store,
						memfd_new("spool"), UINT64_MAX, &r),
			 0);
	srand(3);
	for (int i = 0; i < 200; i++) {
		size_t offset = (size_t)rand() % SIZE,
		       size = (size_t)rand() % 100000 % (SIZE - offset);

		memset(back, 0xa5, size + 1);
		assert_int_equal(manifest_read(r, 0, offset, back, size), 0);
		assert_memory_equal(back, f->bytes + offset, size);
		assert_int_equal(back[size], 0xa5);
	}
	manifest_reader_destroy(r);
	free(back);
	end(f);
}

/* All three ways refuse, and nothing of the blocks that depend on it comes out. */
static void refused(struct fixture *f)
{
	struct lab *lab = f->back.lab;
	struct pack_reader *r = reader_of(f, 0);
	struct manifest_reader *parts;
	_cleanup_free_ uint8_t *back = malloc(SIZE);

	assert_int_equal(reader_run(r), -EBADMSG);
	reader_destroy(r);
	check_given(f);
	r = reader_of(f, 0);
	assert_int_equal(reader_start(r), 0);
	reader_let_go(r);
	assert_int_equal(reader_wait(r, -1), -EBADMSG);
	reader_destroy(r);
	assert_int_equal(manifest_reader_create(f->m, &lab->job_key, lab_get, &lab->store, -1, 0,
						&parts),
			 0);
	memset(back, 0xa5, SIZE);
	assert_int_equal(manifest_read(parts, 0, 0, back, SIZE), -EBADMSG);
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(back[i], 0);
	manifest_reader_destroy(parts);
}

static void test_wrong_bases_are_refused(void **state)
{
	struct lab *lab = *state;
	struct fixture *f = chains(lab);
	Decamp__Manifest *pb = f->m->pb;
	Decamp__Pack *oldest = pb->packs[0], *newest = pb->packs[0];
	struct object_hash hash;

	for (size_t i = 0; i < pb->n_packs; i++) {
		oldest = pb->packs[i]->seq < oldest->seq ? pb->packs[i] : oldest;
		newest = pb->packs[i]->seq > newest->seq ? pb->packs[i] : newest;
	}
	assert_true(newest->deltas && !oldest->deltas);
	/* The base has another name: it is not of this checkpoint. */
	memcpy(hash.b, oldest->hash.data, sizeof(hash));
	oldest->hash.data[31] ^= 1;
	refused(f);
	memcpy(oldest->hash.data, hash.b, sizeof(hash));
	/* It is of the same checkpoint as who needs it, or of a later one. */
	oldest->seq += ROUNDS;
	refused(f);
	oldest->seq -= ROUNDS;
	/* It has fewer blocks, or more, than it has. */
	oldest->blocks -= 200;
	refused(f);
	oldest->blocks += 200;
	/* No pack is said to have differences, and there are some. */
	for (size_t i = 0; i < pb->n_packs; i++)
		pb->packs[i]->deltas = false;
	refused(f);
	end(f);
}

static void test_base_that_nobody_gives(void **state)
{
	struct lab *lab = *state;
	struct fixture *f = chains(lab);
	struct pack_reader *r;
	struct object_hash hash;
	int at;

	memcpy(hash.b, f->m->pb->packs[0]->hash.data, sizeof(hash));
	at = lab_find(&lab->store, &hash);
	assert_true(at >= 0);
	lab->store.objects[at].hash.b[0] ^= 1;
	r = reader_of(f, 0);
	assert_int_equal(reader_start(r), 0);
	reader_let_go(r);
	assert_int_equal(reader_wait(r, 1500), 0);
	/* Somebody gives it again: on demand that is no error. */
	lab->store.objects[at].hash.b[0] ^= 1;
	assert_int_equal(reader_wait(r, -1), 1);
	reader_destroy(r);
	check(f);
	end(f);
}

/* The first time with a wrong bit, in the middle or behind the header, then as it is. */
static int get_false_first(void *ctx, const struct object_hash *hash, uint32_t size,
			   const struct node_id *holders, uint32_t holder_count, int *memfd)
{
	struct fixture *f = ctx;
	const Decamp__Manifest *pb = f->m->pb;
	uint32_t pack = 0, at;
	uint8_t byte;
	int fd = -1;

	while (memcmp(pb->packs[pack]->hash.data, hash->b, sizeof(hash->b)) != 0)
		pack++;
	assert_true(pack < ARRAY_SIZE(f->back.asked));
	assert_int_equal(lab_get(&f->back.lab->store, hash, size, holders, holder_count, &fd), 0);
	if (f->back.asked[pack]++ == 0 && pack % 2 == 0) {
		at = pack % 4 ? 70 : size / 2;
		assert_int_equal(pread_full(fd, &byte, 1, at), 0);
		byte ^= 1;
		assert_int_equal(pwrite_full(fd, &byte, 1, at), 0);
	}
	*memfd = fd;
	return 0;
}

static void on_starved(void *ctx, int error)
{
	struct back *b = ctx;

	assert_true(error == 0 || error == -EBADMSG);
	if (error)
		b->starved++;
	else
		b->fed++;
}

/*
 * On demand a false pack is as none, whenever it shows: it is asked for until it is right. Nothing comes
 * twice, no difference is lost.
 */
static void test_false_at_first(void **state)
{
	struct fixture *f = chains(*state);
	struct reader_config config = config_of(f);
	struct back *b = &f->back;
	struct pack_reader *r;

	config.fetch = get_false_first;
	config.fetch_ctx = f;
	config.starved = on_starved;
	for (int bound = 0; bound < 2; bound++) {
		for (size_t i = 0; i < f->m->pb->n_packs; i++) {
			b->asked[i] = 0;
			f->m->pb->packs[i]->salt.len = bound ? PACK_SALT : 0;
		}
		b->starved = b->fed = 0;
		r = reader_with(f, &config);
		assert_int_equal(reader_start(r), 0);
		reader_let_go(r);
		assert_int_equal(reader_wait(r, -1), 1);
		reader_destroy(r);
		check(f);
		assert_true(b->starved >= 1);
		assert_int_equal(b->starved, b->fed);
		for (size_t i = 0; i < f->m->pb->n_packs; i += 2)
			assert_true(b->asked[i] >= 2);
		/* Nobody waits for it: then it is an error at once. */
		b->asked[0] = 0;
		r = reader_with(f, &config);
		assert_int_equal(reader_run(r), -EBADMSG);
		reader_destroy(r);
		check_given(f);
	}
	/* Its hash is right, and it does not open: no other fetch helps. */
	f->m->pb->packs[0]->seq--;
	refused(f);
	f->m->pb->packs[0]->seq++;
	end(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_each_pack_is_read_once),
		TEST(test_few_may_wait),
		TEST(test_on_demand),
		TEST(test_ahead),
		TEST(test_own_file),
		TEST(test_parts),
		TEST(test_wrong_bases_are_refused),
		TEST(test_base_that_nobody_gives),
		TEST(test_false_at_first),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
