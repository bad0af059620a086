// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The store on a disk that fails: at each call of puts, deletions, reads of rot, records, opening
 * and migration, once for each kind of fault. After a restart on a good disk everything that was
 * acknowledged is there and whole, nothing else is served, and room is counted as it is.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <lmdb.h>
#include <malloc.h>
#include <openssl/sha.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay/store/internal.h"
#include "store_disk.h"

/* LMDB's writes; its library finds these first. Nothing in this program is really synced. */
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
	return disk_lmdb_pwrite(fd, bytes, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	return disk_lmdb_writev(fd, parts, count);
}

int fdatasync(int fd)
{
	return disk_lmdb_fdatasync(fd);
}

int fsync(int fd)
{
	(void)fd;
	return 0;
}

enum {
	OBJECTS = 20, /* what the scenarios know of */
	SIZE_MAX_BYTES = 20000,
};

/* What was asked for, and what was answered; shared with the child. */
enum { NOT_YET, ASKED, DONE, REFUSED };

struct shared {
	uint32_t calls;
	bool ended;
	int put[OBJECTS], drop[OBJECTS];
	int refer;
	int record;
	int opened;
};

struct fixture {
	char dir[64], base[96], run[96], after[96];
	struct shared *shared;
	uint32_t runs;
};

static uint32_t size_of(uint32_t object)
{
	static const uint32_t sizes[] = { 5000, 4096, 1, 9000, 20000, 700 };

	return sizes[object % ARRAY_SIZE(sizes)];
}

static struct ov_object describe(uint32_t object, uint8_t job, uint8_t bytes[SIZE_MAX_BYTES])
{
	struct ov_object it = { .size = size_of(object), .seq = 1, .job.b[0] = job };
	uint32_t x = object + 77;

	it.token.counter = 10;
	for (uint32_t i = 0; i < it.size; i++) {
		x = x * 1664525 + 1013904223;
		bytes[i] = (uint8_t)(x >> 24);
	}
	bytes[0] = (uint8_t)object;
	SHA256(bytes, it.size, it.hash.b);
	return it;
}

static struct store_put *begin(struct store *store, uint32_t object, uint8_t job, int *ret_status)
{
	uint8_t bytes[SIZE_MAX_BYTES];
	struct ov_object it = describe(object, job, bytes);
	struct store_put *put = NULL;
	int r = store_put_begin(store, &it, &put);

	for (uint32_t done = 0; r == 0 && done < it.size; done += 3000)
		r = store_put_write(put, bytes + done,
				    it.size - done < 3000 ? it.size - done : 3000);
	if (r < 0) {
		store_put_abort(put);
		put = NULL;
	}
	*ret_status = r;
	return put;
}

static void put_group(struct store *store, struct shared *shared, uint8_t job, uint32_t first,
		      uint32_t count)
{
	struct store_put *puts[8] = { 0 };
	uint32_t which[8], begun = 0;
	int status[8], r;

	for (uint32_t i = first; i < first + count; i++) {
		shared->put[i] = ASKED;
		puts[begun] = begin(store, i, job, &r);
		which[begun] = i;
		if (r < 0)
			shared->put[i] = REFUSED;
		else
			begun++;
	}
	store_puts_commit(puts, begun, status);
	for (uint32_t i = 0; i < begun; i++)
		shared->put[which[i]] = status[i] < 0 ? REFUSED : DONE;
}

static int get(struct store *store, uint32_t object)
{
	uint8_t bytes[SIZE_MAX_BYTES], found[SIZE_MAX_BYTES];
	struct ov_object it = describe(object, 0, bytes);
	_cleanup_close_ int fd = -1;
	uint32_t size = 0;
	int r = store_get(store, &it.hash, &fd, &size);

	if (r < 0)
		return r;
	assert_int_equal(size, it.size);
	assert_int_equal(pread_full(fd, found, size, 0), 0);
	assert_memory_equal(found, bytes, size);
	return 0;
}

/*
 * Of the base: 0 and 1 belong to job 1, 2 and 3 to job 2, 4 to job 3, 5 to job 4 and has rotted, 6
 * to job 5.
 */
enum { BASE = 7, ROTTEN = 5, REFERRED = 3, REFERRING_JOB = 8 };

static const uint8_t base_jobs[BASE] = { 1, 1, 2, 2, 3, 4, 5 };

static void set_drop(struct shared *shared, const uint32_t *objects, uint32_t count, int to)
{
	for (uint32_t i = 0; i < count; i++)
		shared->drop[objects[i]] = to;
}

/* Another job refers to it; then the one that put it does not any more. */
static void refer(struct store *store, struct shared *shared)
{
	uint8_t bytes[SIZE_MAX_BYTES];
	struct ov_object object = describe(REFERRED, REFERRING_JOB, bytes);
	struct job_id first = { { base_jobs[REFERRED] } };

	shared->refer = ASKED;
	shared->refer = store_refer(store, &object) < 0 ? REFUSED : DONE;
	set_drop(shared, (uint32_t[]){ REFERRED }, 1, ASKED);
	if (store_give_up(store, &first, &object.hash) == 0)
		set_drop(shared, (uint32_t[]){ REFERRED }, 1, DONE);
}

static void drop_some(struct store *store, struct shared *shared)
{
	uint8_t bytes[SIZE_MAX_BYTES];
	struct ov_object kept = describe(1, 1, bytes), given = describe(2, 2, bytes);
	struct ov_retain retain = {
		.job = kept.job, .token = kept.token, .upto_seq = 1, .count = 1
	};
	struct job_id third = { { 3 } };
	uint32_t dropped;

	set_drop(shared, (uint32_t[]){ 0 }, 1, ASKED);
	if (store_retain(store, &retain, &kept.hash, &dropped) == 0)
		set_drop(shared, (uint32_t[]){ 0 }, 1, DONE);
	set_drop(shared, (uint32_t[]){ 2 }, 1, ASKED);
	if (store_give_up(store, &given.job, &given.hash) == 0)
		set_drop(shared, (uint32_t[]){ 2 }, 1, DONE);
	set_drop(shared, (uint32_t[]){ 4 }, 1, ASKED);
	if (store_drop_job(store, &third, true, &dropped) == 0)
		set_drop(shared, (uint32_t[]){ 4 }, 1, DONE);
}

static void scenario(const char *run, struct shared *shared)
{
	struct core_write record = { .job.b[0] = 9, .size = 3, .bytes = (uint8_t *)"abc" };
	struct store_put *aborted, *early;
	struct store *store = NULL;
	char why[STORE_WHY_MAX];
	int r = store_open_io(run, disk_io(), why, &store);

	shared->opened = r;
	if (r < 0)
		return;
	store_set_limits(store, 1 << 30, 0);
	/* Written before the others' syncs, acknowledged after them. */
	shared->put[9] = ASKED;
	early = begin(store, 9, 6, &r);
	put_group(store, shared, 6, 10, 1);
	aborted = begin(store, 19, 6, &r);
	put_group(store, shared, 6, 11, 4);
	if (early)
		shared->put[9] = store_put_commit(early) < 0 ? REFUSED : DONE;
	store_put_abort(aborted);
	refer(store, shared);
	drop_some(store, shared);
	/* An object that is here comes again; the old extent goes. */
	put_group(store, shared, 5, 6, 1);
	(void)get(store, ROTTEN);
	shared->record = ASKED;
	if (store_write_records(store, &record, 1) == 0)
		shared->record = DONE;
	put_group(store, shared, 6, 15, 2);
	/* One fault does not make the store forget what it has said, nor deny it. */
	for (uint32_t i = 0; i < OBJECTS; i++)
		if (shared->put[i] == DONE && shared->drop[i] == NOT_YET) {
			r = get(store, i);
			assert_true(r == 0 || r == -EIO || r == -ENOSPC || r == -EAGAIN);
		}
	store_close(store);
}

/* --- after ------------------------------------------------------------------------------- */

static uint64_t blocks_below(const char *dir)
{
	_cleanup_closedir_ DIR *folder = NULL;
	struct dirent *entry;
	uint64_t bytes = 0;
	char path[256];

	snprintf(path, sizeof(path), "%s/segments", dir);
	folder = opendir(path);
	assert_non_null(folder);
	while ((entry = readdir(folder))) {
		struct stat st;

		if (entry->d_name[0] == '.')
			continue;
		assert_int_equal(fstatat(dirfd(folder), entry->d_name, &st, 0), 0);
		/* Whole pages, as a file may be cut anywhere; and a block for its own map. */
		bytes += ((uint64_t)st.st_blocks * 512 + 4095) / 4096 * 4096;
		if (bytes)
			bytes -= bytes >= 4096 && st.st_blocks > 40 ? 4096 : 0;
	}
	return bytes;
}

static int note_record(void *ctx, const struct job_id *job, const void *bytes, size_t size)
{
	bool *found = ctx;

	assert_int_equal(job->b[0], 9);
	assert_int_equal(size, 3);
	assert_memory_equal(bytes, "abc", 3);
	*found = true;
	return 0;
}

/* 1: has to be there, 0: has not, -1: either. */
static int expected(const struct shared *shared, uint32_t object)
{
	bool was = object < BASE;

	if (object == ROTTEN)
		return 0;
	if (object == REFERRED && shared->refer == DONE)
		return 1;
	if (object == REFERRED && shared->refer != NOT_YET && shared->drop[object] == DONE)
		return -1;
	if (shared->drop[object] == DONE)
		return 0;
	if (shared->drop[object] == ASKED)
		return -1;
	if (was || shared->put[object] == DONE)
		return 1;
	return shared->put[object] == NOT_YET ? 0 : -1;
}

static void check_room(struct store *store, const char *dir)
{
	uint64_t room = 0, count = 0;
	struct store_stats stats;

	for (uint32_t i = 0; i < OBJECTS; i++)
		if (get(store, i) == 0) {
			room += extent_room(size_of(i));
			count++;
		}
	store_get_stats(store, &stats);
	assert_int_equal(stats.objects, count);
	assert_int_equal(stats.disk_bytes, room);
	assert_true(blocks_below(dir) <= room + 4096);
}

static void check(const char *dir, struct shared *shared)
{
	uint8_t bytes[SIZE_MAX_BYTES];
	struct ov_object referred = describe(REFERRED, REFERRING_JOB, bytes);
	struct store_stats stats;
	struct store *store = NULL;
	bool record = false;

	assert_int_equal(store_open(dir, &store), 0);
	store_set_limits(store, 1 << 30, 0);
	/* The rotten one goes by being read, and is all that is rotten. */
	assert_int_equal(get(store, ROTTEN), -ENOENT);
	for (uint32_t i = 0; i < OBJECTS; i++) {
		int found = get(store, i), want = expected(shared, i);

		assert_true(found == 0 || found == -ENOENT);
		if (want >= 0)
			assert_int_equal(found, want ? 0 : -ENOENT);
	}
	if (shared->refer == DONE)
		assert_int_equal(store_vouch(store, &referred.job, &referred.hash), 0);
	store_get_stats(store, &stats);
	assert_true(stats.rotten <= 1);
	assert_int_equal(store_each_record(store, note_record, &record), 0);
	if (shared->record == DONE)
		assert_true(record);
	/* And it goes on. */
	put_group(store, shared, 7, 17, 2);
	assert_int_equal(shared->put[17], DONE);
	assert_int_equal(shared->put[18], DONE);
	check_room(store, dir);
	store_close(store);
	assert_int_equal(store_open(dir, &store), 0);
	check_room(store, dir);
	store_close(store);
}

/* --- runs -------------------------------------------------------------------------------- */

static char copied_from[96], copied_to[96];

static int copy_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	uint8_t *bytes = malloc((size_t)st->st_size + 1);
	char to[300];
	int in, out;

	(void)ftw;
	assert_non_null(bytes);
	snprintf(to, sizeof(to), "%s%s", copied_to, path + strlen(copied_from));
	if (type == FTW_D) {
		assert_int_equal(mkdir(to, 0700), 0);
	} else if (!strstr(path, "lock.mdb")) {
		in = open(path, O_RDONLY | O_CLOEXEC);
		out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		assert_true(in >= 0 && out >= 0);
		assert_int_equal(pread_full(in, bytes, (size_t)st->st_size, 0), 0);
		assert_int_equal(write_full(out, bytes, (size_t)st->st_size), 0);
		close(in);
		close(out);
	}
	free(bytes);
	return 0;
}

static void copy_tree(const char *from, const char *to)
{
	strcpy(copied_from, from);
	strcpy(copied_to, to);
	assert_int_equal(nftw(from, copy_one, 16, FTW_PHYS), 0);
}

static const char *fault_names[] = { "none",	 "EIO",		  "ENOSPC",	      "late EIO",
				     "short",	 "EIO from here", "ENOSPC from here", "SIGKILL",
				     "power cut" };
enum { CUT_CODE = 42 };

/* True if the fault's call was reached. */
static bool run(struct fixture *f, void (*play)(const char *run, struct shared *shared),
		void (*judge)(const char *dir, struct shared *shared), const struct disk_plan *plan)
{
	const char *left = f->run;
	int status;
	pid_t pid;

	memset(f->shared, 0, sizeof(*f->shared));
	copy_tree(f->base, f->run);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		disk_arm(f->run, f->after, plan, CUT_CODE);
		play(f->run, f->shared);
		f->shared->calls = disk_calls();
		f->shared->ended = true;
		disk_end();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status))
		assert_true(WTERMSIG(status) == SIGKILL && plan->fault == DISK_KILL);
	else
		assert_true(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == CUT_CODE);
	if (WIFEXITED(status) && WEXITSTATUS(status) == CUT_CODE)
		left = f->after;
	f->runs++;
	judge(left, f->shared);
	assert_int_equal(remove_tree_at(AT_FDCWD, f->run), 0);
	assert_int_equal(remove_tree_at(AT_FDCWD, f->after), 0);
	return !f->shared->ended || f->shared->calls >= plan->at;
}

#ifdef __SANITIZE_ADDRESS__
enum { SHORT_STEP = 2, SHORT_SEEDS = 1 }; /* a run costs four times as much */
#else
enum { SHORT_STEP = 1, SHORT_SEEDS = 2 };
#endif

/* What the disk keeps differs by seed; STORE_FAULTS_SEEDS: more of them, and every call. */
static uint32_t seeds_of(int fault, uint32_t *ret_step)
{
	const char *text = getenv("STORE_FAULTS_SEEDS");

	*ret_step = text ? 1 : SHORT_STEP;
	if (text)
		return (uint32_t)atoi(text);
	return fault == DISK_EIO || fault == DISK_CUT ? SHORT_SEEDS : 1;
}

static void run_all(struct fixture *f, void (*play)(const char *run, struct shared *shared),
		    void (*judge)(const char *dir, struct shared *shared))
{
	for (int fault = DISK_EIO; fault < DISK_FAULTS; fault++) {
		uint32_t step, seeds = seeds_of(fault, &step), at = 1 + (uint32_t)fault % step;

		for (bool reached = true; reached; at += step) {
			for (uint32_t seed = 0; seed < seeds; seed++) {
				/* What failed, and then a power cut: nothing was only in memory. */
				struct disk_plan plan = {
					.fault = (enum disk_fault)fault,
					.at = at,
					.seed = seed,
					.cut_at_end = fault != DISK_KILL &&
						      (seeds > 1 ? seed : at / step) % 2
				};

				if (getenv("STORE_FAULTS_VERBOSE"))
					print_message("%s at %u seed %u\n", fault_names[fault], at,
						      seed);
				reached = run(f, play, judge, &plan);
			}
		}
		print_message("%s: calls=%u\n", fault_names[fault], at - 2 * step);
		assert_true(at > 20);
	}
}

static void make_base(const struct fixture *f)
{
	struct shared *shared = f->shared;
	struct store *store = NULL;
	struct stat st;
	char path[200];
	int fd;

	memset(shared, 0, sizeof(*shared));
	assert_int_equal(mkdir(f->base, 0700), 0);
	assert_int_equal(store_open(f->base, &store), 0);
	store_set_limits(store, 1 << 30, 0);
	for (uint32_t i = 0; i < BASE; i++)
		put_group(store, shared, base_jobs[i], i, 1);
	store_close(store);
	/* The rot: a byte of the one but last. */
	snprintf(path, sizeof(path), "%s/segments/00000001", f->base);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	for (uint32_t i = 0, at = 0; i < BASE; at += (uint32_t)extent_room(size_of(i++)))
		if (i == ROTTEN)
			assert_int_equal(pwrite_full(fd, "\xff", 1, at), 0);
	close(fd);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	/* Memory if there is some: what is lost is decided here, not by the machine. */
	strcpy(f->dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/store-faults-XXXXXX" :
						       "/tmp/store-faults-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->base, sizeof(f->base), "%s/base", f->dir);
	snprintf(f->run, sizeof(f->run), "%s/run", f->dir);
	snprintf(f->after, sizeof(f->after), "%s/after", f->dir);
	f->shared = mmap(NULL, sizeof(*f->shared), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(f->shared != MAP_FAILED);
	make_base(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(remove_tree_at(AT_FDCWD, f->dir), 0);
	munmap(f->shared, sizeof(*f->shared));
	free(f);
	return 0;
}

static void test_every_call(void **state)
{
	struct fixture *f = *state;

	run_all(f, scenario, check);
	print_message("runs=%u\n", f->runs);
}

/* --- migration --------------------------------------------------------------------------- */

/* Makes of the base what version 1 would have left: rows of 24 bytes, a file per object. */
static void downgrade_rows(const char *dir)
{
	char path[200];
	MDB_env *env;
	MDB_txn *txn;
	MDB_dbi objects;

	snprintf(path, sizeof(path), "%s/index", dir);
	assert_int_equal(mdb_env_create(&env), 0);
	assert_int_equal(mdb_env_set_maxdbs(env, 8), 0);
	assert_int_equal(mdb_env_set_mapsize(env, 1 << 20), 0);
	assert_int_equal(mdb_env_open(env, path, 0, 0600), 0);
	assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
	assert_int_equal(mdb_dbi_open(txn, "objects", 0, &objects), 0);
	for (uint32_t i = 0; i < BASE; i++) {
		uint8_t bytes[SIZE_MAX_BYTES];
		struct ov_object it = describe(i, base_jobs[i], bytes);
		MDB_val key = { sizeof(it.hash), &it.hash }, value;
		struct object_row_v1 row;

		assert_int_equal(mdb_get(txn, objects, &key, &value), 0);
		memcpy(&row, value.mv_data, sizeof(row)); /* it begins alike */
		value = (MDB_val){ sizeof(row), &row };
		assert_int_equal(mdb_put(txn, objects, &key, &value, 0), 0);
	}
	assert_int_equal(mdb_txn_commit(txn), 0);
	mdb_env_close(env);
}

static void write_old_file(const char *path, const void *bytes, size_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, bytes, size), 0);
	close(fd);
}

static void downgrade(const char *dir)
{
	uint8_t bytes[SIZE_MAX_BYTES];
	char path[300], hex[65];

	downgrade_rows(dir);
	snprintf(path, sizeof(path), "%s/segments", dir);
	assert_int_equal(remove_tree_at(AT_FDCWD, path), 0);
	snprintf(path, sizeof(path), "%s/store-format", dir);
	assert_int_equal(unlink(path), 0);
	snprintf(path, sizeof(path), "%s/objects", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	/* Not all 256 folders: each is two calls at which every fault is tried. */
	for (uint32_t i = 0; i < BASE; i++) {
		struct ov_object it = describe(i, base_jobs[i], bytes);

		hex_encode(it.hash.b, 32, hex);
		snprintf(path, sizeof(path), "%s/objects/%.2s", dir, hex);
		assert_true(mkdir(path, 0700) == 0 || errno == EEXIST);
		snprintf(path, sizeof(path), "%s/objects/%.2s/%s", dir, hex, hex);
		if (i == ROTTEN)
			bytes[0] ^= 0xff;
		write_old_file(path, bytes, it.size);
	}
	snprintf(path, sizeof(path), "%s/objects/tmp", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/objects/tmp/0123456789abcdef01234567", dir);
	write_old_file(path, "arriving", 8);
}

static void open_only(const char *run, struct shared *shared)
{
	struct store *store = NULL;
	char why[STORE_WHY_MAX];

	shared->opened = store_open_io(run, disk_io(), why, &store);
	store_close(store);
}

static void check_migrated(const char *dir, struct shared *shared)
{
	char path[300];

	check(dir, shared);
	snprintf(path, sizeof(path), "%s/objects", dir);
	assert_int_equal(access(path, F_OK), -1);
}

static void test_migration(void **state)
{
	struct fixture *f = *state;

	downgrade(f->base);
	run_all(f, open_only, check_migrated);
	print_message("runs=%u\n", f->runs);
}

/* A new store: what LMDB makes has a name that lasts, too. */
static void test_first_open(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(remove_tree_at(AT_FDCWD, f->base), 0);
	assert_int_equal(mkdir(f->base, 0700), 0);
	for (uint32_t at = 1; at < 80; at++) {
		struct disk_plan plan = { .fault = DISK_CUT, .at = at, .seed = at };
		struct store *store = NULL;
		int status;
		pid_t pid;

		copy_tree(f->base, f->run);
		memset(f->shared, 0, sizeof(*f->shared));
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) {
			disk_arm(f->run, f->after, &plan, CUT_CODE);
			if (store_open_io(f->run, disk_io(), (char[STORE_WHY_MAX]){ 0 }, &store) <
			    0)
				_exit(1);
			store_set_limits(store, 1 << 30, 0);
			put_group(store, f->shared, 1, 0, 1);
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) != 1);
		if (WEXITSTATUS(status) == CUT_CODE) {
			assert_int_equal(store_open(f->after, &store), 0);
			status = get(store, 0);
			assert_true(status == 0 ||
				    (status == -ENOENT && f->shared->put[0] != DONE));
			store_close(store);
		}
		assert_int_equal(remove_tree_at(AT_FDCWD, f->run), 0);
		assert_int_equal(remove_tree_at(AT_FDCWD, f->after), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_every_call, setup, teardown),
		cmocka_unit_test_setup_teardown(test_migration, setup, teardown),
		cmocka_unit_test_setup_teardown(test_first_open, setup, teardown),
	};

	/* LMDB's lists of 2 MB at each opening: fresh pages, of which few are touched. */
	mallopt(M_MMAP_THRESHOLD, 1 << 20);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
