// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Four overlay halves over TLS on loopback; three hold a checkpoint's packs and manifest, one of the
 * three returns other bytes than it was given: flipped, truncated, swapped, replayed, oversized,
 * none, or nothing at all. A fetch names the liar in its log and is served by the others.
 *
 * The liar is a real overlay half whose store_read() is ours (-Wl,--wrap=store_read): its disk is
 * honest, so that what it says is a lie to the wire alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "overlay/store/store.h"
#include "overlay_host.h"
#include "pack_lab.h"

enum { HOSTS = 4, LIAR = 1, FILE_BYTES = 12 << 20, DAWDLE_S = 3 };

enum lie {
	LIE_NONE,
	LIE_FLIP,
	LIE_TRUNCATE,
	LIE_OVERSIZE,
	LIE_HUGE, /* more than any object may have */
	LIE_EMPTY,
	LIE_SWAP, /* another object of the same size class: a valid pack, or an older manifest */
	LIE_DAWDLE,
	LIE_COUNT,
};

static const char *const lie_names[LIE_COUNT] = { "none", "flip",  "truncate", "oversize",
						  "huge", "empty", "swap",     "dawdle" };

/* Shared with the halves, which are forked. */
struct shared {
	atomic_int lie;
	atomic_int told; /* lies so far */
	struct object_hash other;
};
static struct shared *shared;
static bool is_liar; /* in the liar's process */

int __real_store_read(struct store *store, const struct object_hash *hash, uint8_t **ret_bytes,
		      uint32_t *ret_size);
int __wrap_store_read(struct store *store, const struct object_hash *hash, uint8_t **ret_bytes,
		      uint32_t *ret_size);

static int forge(const uint8_t *bytes, uint32_t size, enum lie lie, uint8_t **ret_bytes,
		 uint32_t *ret_size)
{
	uint32_t wrong = lie == LIE_TRUNCATE ? size / 2 :
			 lie == LIE_OVERSIZE ? size + (1 << 20) :
			 lie == LIE_HUGE     ? OV_PACK_MAX + 1 :
			 lie == LIE_EMPTY    ? 0 :
					       size;
	uint8_t *out = calloc(1, (size_t)wrong + size);

	if (!out)
		return -ENOMEM;
	memcpy(out, bytes, size);
	if (lie == LIE_FLIP)
		out[(uint32_t)rand() % size] ^= (uint8_t)(1 << rand() % 8);
	*ret_bytes = out;
	*ret_size = wrong;
	return 0;
}

int __wrap_store_read(struct store *store, const struct object_hash *hash, uint8_t **ret_bytes,
		      uint32_t *ret_size)
{
	enum lie lie = is_liar ? (enum lie)shared->lie : LIE_NONE;
	_cleanup_free_ uint8_t *bytes = NULL;
	uint32_t size;
	int r;

	if (lie == LIE_SWAP)
		hash = &shared->other;
	if (lie == LIE_DAWDLE)
		host_sleep_ms(DAWDLE_S * 1000);
	r = __real_store_read(store, hash, &bytes, &size);
	if (r < 0)
		return r;
	if (lie != LIE_NONE)
		shared->told++;
	if (lie == LIE_NONE || lie == LIE_SWAP || lie == LIE_DAWDLE) {
		*ret_bytes = take_ptr(bytes);
		*ret_size = size;
		return 0;
	}
	return forge(bytes, size, lie, ret_bytes, ret_size);
}

struct fixture {
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
	char log[64]; /* of the half that fetches */
	struct lab *lab;
	uint8_t *bytes;
	struct node_id holders[OV_HOLDERS_MAX];
	uint32_t holder_count;
	atomic_uint gets, lent; /* lent: what came in the reader's own file */
};

/* Its stderr is where the half logs. */
static void run_logged(struct fixture *f, struct test_host *host)
{
	int saved = dup(2), fd;

	strcpy(f->log, "/tmp/hostile-log-XXXXXX");
	fd = mkstemp(f->log);
	assert_true(fd >= 0 && saved >= 0 && dup2(fd, 2) == 2);
	host_run(host);
	assert_int_equal(dup2(saved, 2), 2);
	close(saved);
	close(fd);
}

static int store(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		 uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	struct fixture *f = ctx;
	struct ov_object o = { .job = f->lab->job,
			       .token = f->lab->token,
			       .hash = *hash,
			       .seq = f->lab->seq,
			       .size = size };
	int r = -EAGAIN;

	/* A host that gets little of a busy machine counts as gone for a moment. */
	for (int i = 0; i < 120 && (r < 0 || o.holder_count < HOSTS - 1); i++) {
		if (i > 0)
			host_sleep_ms(500);
		o.holder_count = 0;
		r = host_put(&f->hosts[0], memfd, &o, HOSTS - 1);
	}
	if (r < 0)
		return r;
	assert_int_equal(o.holder_count, HOSTS - 1);
	*ret_holder_count = o.holder_count;
	memcpy(ret_holders, o.holders, o.holder_count * sizeof(*ret_holders));
	memcpy(f->holders, o.holders, sizeof(f->holders));
	f->holder_count = o.holder_count;
	return 0;
}

/* Each call over a channel of its own; the liar alone is named, so it is asked first, if at all. */
static int fetch(void *ctx, const struct object_hash *hash, uint32_t size,
		 const struct node_id *holders, uint32_t holder_count, int *memfd)
{
	struct fixture *f = ctx;
	struct ov_msg msg = { .op = OV_OBJECT_GET,
			      .u.object = { .job = f->lab->job,
					    .hash = *hash,
					    .size = size,
					    .holder_count = 1,
					    .holders = { f->hosts[LIAR].identity.card.id } } };
	_cleanup_close_ int channel = ov_open_channel(f->hosts[0].main);

	int fd = -1, r;

	(void)holders, (void)holder_count;
	f->gets++;
	r = channel < 0 ? channel : ov_call(channel, &msg, *memfd, &fd, 60000);
	if (r == 0 && fd < 0)
		f->lent++;
	else if (r == 0)
		*memfd = fd;
	return r;
}

static void checkpoint(struct fixture *f, const char *path)
{
	int fd = lab_content_fd(f->bytes, FILE_BYTES);

	f->lab->seq++;
	assert_int_equal(packer_begin(f->lab->packer, &f->lab->token, f->lab->seq, store, f), 0);
	assert_int_equal(lab_add(f->lab, FILE_IMAGE, path, fd), 0);
	lab_finish(f->lab);
	close(fd);
}

/* Willingness travels a little behind the rows. */
static void wait_willing(struct fixture *f)
{
	struct ov_object object = { 0 };
	int fd = object_make(5000, 9, &object);

	for (int i = 0; i < 120 && object.holder_count < HOSTS - 1; i++) {
		host_sleep_ms(500);
		if (host_put(&f->hosts[0], fd, &object, HOSTS - 1) < 0)
			object.holder_count = 0;
	}
	assert_int_equal(object.holder_count, HOSTS - 1);
	close(fd);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	void *lab = NULL;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	assert_true(f && shared != MAP_FAILED);
	assert_int_equal(lab_setup(&lab), 0);
	f->lab = lab;
	f->bytes = malloc(FILE_BYTES);
	lab_fill_random(f->bytes, FILE_BYTES);
	cluster_make(&f->cluster);
	for (int i = 0; i < HOSTS; i++) {
		host_make(&f->hosts[i], &f->cluster, (uint8_t)(i + 1));
		is_liar = i == LIAR;
		if (i == 0)
			run_logged(f, &f->hosts[i]);
		else
			host_run(&f->hosts[i]);
		is_liar = false;
		assert_int_equal(host_start(&f->hosts[i], i ? &f->hosts[0] : NULL), 0);
	}
	for (int i = 0; i < HOSTS; i++)
		host_wait_members(&f->hosts[i], MEMBER_ALIVE, HOSTS, 60000);
	wait_willing(f);
	checkpoint(f, "a");
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	void *lab = f->lab;

	for (int i = 0; i < HOSTS; i++)
		host_end(&f->hosts[i]); /* asserts that none of them crashed */
	unlink(f->log);
	lab_teardown(&lab);
	munmap(shared, sizeof(*shared));
	free(f->bytes);
	free(f);
	return 0;
}

static struct manifest *open_manifest(struct fixture *f)
{
	const struct ckpt_ref *ref = &f->lab->ref;
	_cleanup_free_ uint8_t *bytes = malloc(ref->manifest_size);
	struct manifest *m = NULL;
	int fd = -1;

	assert_int_equal(fetch(f, &ref->manifest, ref->manifest_size, NULL, 0, &fd), 0);
	assert_int_equal(pread_full(fd, bytes, ref->manifest_size, 0), 0);
	close(fd);
	assert_int_equal(manifest_open(bytes, ref->manifest_size, &ref->manifest, &f->lab->job_key,
				       f->lab->cluster_public, &m),
			 0);
	return m;
}

/* The whole way back, and it is what was put in. */
static void restore(struct fixture *f)
{
	struct manifest *m = open_manifest(f);
	uint8_t *back = malloc(FILE_BYTES);
	int fd = memfd_new("back");

	assert_int_equal(manifest_file_count(m), 1);
	assert_int_equal(manifest_unpack(m, &f->lab->job_key, &fd, fetch, f, NULL, NULL), 0);
	assert_int_equal(pread_full(fd, back, FILE_BYTES, 0), 0);
	assert_memory_equal(back, f->bytes, FILE_BYTES);
	close(fd);
	free(back);
	manifest_destroy(m);
}

static uint64_t bad_objects(struct fixture *f)
{
	struct ov_msg msg = { .op = OV_STATS };

	assert_int_equal(host_call(&f->hosts[0], &msg, -1, NULL), 0);
	return msg.u.stats.bad_objects;
}

static bool log_has(const struct fixture *f, const char *text)
{
	_cleanup_free_ char *log = NULL;

	return read_file_at(AT_FDCWD, f->log, 16 << 20, &log, NULL) == 0 && strstr(log, text);
}

static void lied_to(void **state, enum lie lie)
{
	struct fixture *f = *state;
	uint64_t before = bad_objects(f), began;

	/* For a swap: the first pack is valid, of this job and under this key, and not what is asked. */
	if (lie == LIE_SWAP) {
		struct manifest *m = open_manifest(f);
		struct node_id holders[OV_HOLDERS_MAX];
		uint32_t size, count;

		assert_true(manifest_object_count(m) >= 2);
		manifest_object(m, 0, &shared->other, &size, &count, holders);
		manifest_destroy(m);
	}
	shared->lie = (int)lie;
	began = now_boot_ns();
	restore(f);
	print_message("%s: told=%d gets=%u lent=%u bad=%llu %llu ms\n", lie_names[lie],
		      shared->told, f->gets, f->lent, (unsigned long long)(bad_objects(f) - before),
		      (unsigned long long)((now_boot_ns() - began) / 1000000));
	if (lie == LIE_DAWDLE || lie == LIE_HUGE)
		return;
	/* Told once, then asked last; of the calls that were under way then, each may have been told. */
	assert_true(shared->told >= 1);
	assert_true(bad_objects(f) > before);
	assert_true(log_has(f, "peer=host2 "));
	assert_false(log_has(f, "peer=host3 "));
	assert_false(log_has(f, "peer=host4 "));
}

static void flipped(void **state)
{
	lied_to(state, LIE_FLIP);
}

static void truncated(void **state)
{
	lied_to(state, LIE_TRUNCATE);
}

static void oversized(void **state)
{
	lied_to(state, LIE_OVERSIZE);
}

static void huge(void **state)
{
	lied_to(state, LIE_HUGE);
}

static void empty(void **state)
{
	lied_to(state, LIE_EMPTY);
}

static void swapped(void **state)
{
	lied_to(state, LIE_SWAP);
}

/* Neither dead nor lying: another holder is asked long before the call itself gives up. */
static void dawdling(void **state)
{
	struct fixture *f = *state;
	struct ov_object o = { 0 };
	struct ov_msg msg = { .op = OV_OBJECT_GET };
	uint64_t began;
	int fd = -1;

	lied_to(state, LIE_DAWDLE);
	o.job = f->lab->job;
	o.hash = f->lab->ref.manifest;
	o.size = f->lab->ref.manifest_size;
	o.holder_count = 1;
	o.holders[0] = f->hosts[LIAR].identity.card.id;
	msg.u.object = o;
	began = now_boot_ns();
	assert_int_equal(host_call(&f->hosts[0], &msg, -1, &fd), 0);
	close(fd);
	assert_false(node_id_equal(&msg.u.object.holders[0], &f->hosts[LIAR].identity.card.id));
	print_message("dawdle: %llu ms\n", (unsigned long long)((now_boot_ns() - began) / 1000000));
}

/* An older manifest in place of the newest: the register's word is the hash. */
static void replayed(void **state)
{
	struct fixture *f = *state;
	struct object_hash old = f->lab->ref.manifest;

	memset(f->bytes, 7, 1 << 20);
	checkpoint(f, "a");
	assert_memory_not_equal(&old, &f->lab->ref.manifest, sizeof(old));
	shared->other = old;
	shared->lie = LIE_SWAP;
	restore(f);
	assert_true(shared->told >= 1);
	assert_true(log_has(f, "peer=host2 "));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(flipped, setup, teardown),
		cmocka_unit_test_setup_teardown(truncated, setup, teardown),
		cmocka_unit_test_setup_teardown(oversized, setup, teardown),
		cmocka_unit_test_setup_teardown(huge, setup, teardown),
		cmocka_unit_test_setup_teardown(empty, setup, teardown),
		cmocka_unit_test_setup_teardown(swapped, setup, teardown),
		cmocka_unit_test_setup_teardown(replayed, setup, teardown),
		cmocka_unit_test_setup_teardown(dawdling, setup, teardown),
	};

	srand(1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
