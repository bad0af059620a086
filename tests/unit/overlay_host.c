// SPDX-License-Identifier: LGPL-2.1-or-later
#include "overlay_host.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay/core/forecast.h"
#include "overlay/net/tls.h"
#include "overlay/overlay.h"
#include "overlay/store/store.h"

enum {
	TEST_UID = 65534,
	CALL_MS = 90000, /* longer than a host takes for any request */
	WAIT_LEAST_MS = 30000,
	PORT_FIRST = 10240,
	PORT_RANGE = 64,
	PORT_RANGES = 350, /* all of them end below 32768, where those of connections begin */
	SUSPECT_MS = 6000, /* who gets nothing of a busy machine for some seconds is not dead */
};

#ifdef __SANITIZE_ADDRESS__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

void host_sleep_ms(unsigned int ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };

	nanosleep(&ts, NULL);
}

/* It only ends a test that fails: few seconds are as good as some, but on a busy machine. */
static uint64_t deadline_of(int timeout_ms)
{
	if (timeout_ms < WAIT_LEAST_MS)
		timeout_ms = WAIT_LEAST_MS;
	return now_boot_ns() + (uint64_t)timeout_ms * 1000000;
}

void cluster_make(struct test_cluster *cluster)
{
	assert_int_equal(RAND_bytes(cluster->secret, sizeof(cluster->secret)), 1);
	assert_int_equal(RAND_bytes(cluster->id, sizeof(cluster->id)), 1);
	assert_int_equal(net_tls_public_of(cluster->secret, cluster->public), 0);
}

void cluster_sign(const struct test_cluster *cluster, struct node_card *card)
{
	EVP_PKEY *key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, cluster->secret,
						     sizeof(cluster->secret));
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	size_t size = sizeof(card->signature);

	assert_int_equal(EVP_DigestSignInit(ctx, NULL, NULL, NULL, key), 1);
	assert_int_equal(EVP_DigestSign(ctx, card->signature, &size, (unsigned char *)card,
					offsetof(struct node_card, signature)),
			 1);
	EVP_MD_CTX_free(ctx);
	EVP_PKEY_free(key);
}

/* The first port of a range that is this process's, and its hosts', until they end. */
static int port_range(void)
{
	static int first;

	for (int i = 0; first == 0 && i < PORT_RANGES; i++) {
		struct sockaddr_un addr = { .sun_family = AF_UNIX };
		int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		int range = (getpid() + i) % PORT_RANGES;

		assert_true(fd >= 0);
		snprintf(addr.sun_path + 1, sizeof(addr.sun_path) - 1, "decamp-test-ports-%d",
			 range);
		if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
			first = PORT_FIRST + range * PORT_RANGE;
		else
			close(fd);
	}
	assert_true(first != 0);
	return first;
}

/*
 * Below those that the kernel gives to whoever connects, of this process or of others: such a one
 * would keep the port, for a minute after its end too.
 */
static uint16_t free_port(void)
{
	static int used;
	const struct sockaddr_in any = { .sin_family = AF_INET,
					 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int first = port_range();

	for (int tries = 0; tries < PORT_RANGE; tries++) {
		_cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		struct sockaddr_in addr = any;
		uint16_t port = (uint16_t)(first + used++ % PORT_RANGE);

		assert_true(fd >= 0);
		addr.sin_port = htons(port);
		if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
			return port;
	}
	fail_msg("no port from %d on is free", first);
	return 0;
}

void host_make(struct test_host *host, const struct test_cluster *cluster, uint8_t number)
{
	struct node_card *card = &host->identity.card;

	memset(host, 0, sizeof(*host));
	host->main = host->side = -1;
	assert_int_equal(RAND_bytes(host->identity.tls_secret, 32), 1);
	memcpy(host->identity.cluster_public, cluster->public, 32);
	memcpy(host->identity.cluster_id, cluster->id, 16);
	card->version = 1;
	card->id.b[0] = (uint8_t)(number * 37);
	card->id.b[15] = number;
	assert_int_equal(net_tls_public_of(host->identity.tls_secret, card->tls_public), 0);
	card->issued_wall_ms = now_wall_ms();
	card->expires_wall_ms = card->issued_wall_ms + 3600 * 1000;
	snprintf(card->hostname, sizeof(card->hostname), "host%u", number);
	snprintf(card->room, sizeof(card->room), "room%u", number);
	cluster_sign(cluster, card);
	host->port = free_port();
	strcpy(host->dir, "/tmp/overlay-test-XXXXXX");
	assert_non_null(mkdtemp(host->dir));
	if (geteuid() == 0)
		assert_int_equal(chown(host->dir, TEST_UID, TEST_UID), 0);
}

struct own_record {
	const char *name;
	const void *bytes;
	size_t size;
};

static int save_own(struct store *store, const void *record)
{
	const struct own_record *own = record;

	return store_own_save(store, own->name, own->bytes, own->size);
}

static int write_burial(struct store *store, const void *write)
{
	return store_write_records(store, write, 1);
}

/* Into the host's store, as the user that its half runs as. */
static void prepare(struct test_host *host, int (*write)(struct store *store, const void *what),
		    const void *what)
{
	struct store *store;
	int status = -1, r;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		if (geteuid() == 0 && (setgid(TEST_UID) < 0 || setuid(TEST_UID) < 0))
			_exit(2);
		r = store_open(host->dir, &store);
		if (r == 0) {
			r = write(store, what);
			store_close(store);
		}
		_exit(r < 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

void host_save_own(struct test_host *host, const char *name, const void *bytes, size_t size)
{
	struct own_record own = { .name = name, .bytes = bytes, .size = size };

	prepare(host, save_own, &own);
}

void host_be_stable(struct test_host *host)
{
	struct core_forecast forecast = { 0 };
	uint8_t bytes[FORECAST_BYTES];
	struct tm tm;
	time_t now = time(NULL);
	uint64_t local_s;

	localtime_r(&now, &tm);
	local_s = (uint64_t)(now + tm.tm_gmtoff);
	for (uint64_t t = local_s - 21 * 86400; t <= local_s; t += 600)
		core_forecast_note(&forecast, t, 600);
	core_forecast_encode(&forecast, bytes);
	host->is_stable = true;
	host_save_own(host, "habits", bytes, sizeof(bytes));
}

void host_bury(struct test_host *host, const struct job_id *job, const struct node_id *acceptors,
	       uint32_t count)
{
	struct core_write write = { .job = *job, .is_over = true };

	write.tombstone.state = JOB_STATE_KILLED;
	write.tombstone.acceptor_count = count;
	memcpy(write.tombstone.acceptors, acceptors, count * sizeof(*acceptors));
	prepare(host, write_burial, &write);
}

void host_run(struct test_host *host)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	host->pid = fork();
	assert_true(host->pid >= 0);
	if (host->pid == 0) {
		struct overlay_config config = { .main_channel = pair[1],
						 .uid = TEST_UID,
						 .gid = TEST_UID,
						 .state_dir = host->dir,
						 .no_seccomp = SANITIZED };

		_exit(overlay_main(&config));
	}
	close(pair[1]);
	host->main = pair[0];
	host->side = ov_open_channel(host->main);
	assert_true(host->side >= 0);
}

int host_call(struct test_host *host, struct ov_msg *msg, int fd, int *ret_fd)
{
	msg->call = 77;
	return ov_call(host->side, msg, fd, ret_fd, CALL_MS);
}

int host_start(struct test_host *host, const struct test_host *seed)
{
	struct ov_msg msg = { .op = OV_CLUSTER_START };
	struct ov_start *start = &msg.u.start;
	int fd = memfd_new("identity"), r;

	assert_true(fd >= 0);
	host->identity.seed_count = 0;
	if (seed) {
		strcpy(host->identity.seeds[0].addr, "127.0.0.1");
		host->identity.seeds[0].port = seed->port;
		host->identity.seed_count = 1;
	}
	assert_int_equal(write_full(fd, &host->identity, sizeof(host->identity)), 0);
	assert_int_equal(memfd_seal(fd), 0);
	strcpy(start->listen_addr, "127.0.0.1");
	strcpy(start->advertise_addr, "127.0.0.1");
	start->port = host->port;
	start->probe_ms = host->probe_ms ? host->probe_ms : 200;
	start->suspect_ms = host->suspect_ms ? host->suspect_ms : SUSPECT_MS;
	start->renew_ms = 300;
	start->lease_ms = 8000;
	start->hold_ms = 10000;
	start->quota_bytes = host->quota_bytes ? host->quota_bytes : 1 << 30;
	start->pull_round_ms = host->pull_round_ms;
	start->pull_forget_ms = host->pull_forget_ms;
	start->repair_round_ms = host->repair_round_ms;
	start->repair_lazy_ms = host->repair_lazy_ms;
	start->scrub_age_ms = host->scrub_age_ms;
	start->credit_round_ms = host->credit_round_ms;
	r = host_call(host, &msg, fd, NULL);
	close(fd);
	if (r == 0) {
		msg = (struct ov_msg){ .op = OV_REPORT };
		msg.u.report.flags = MEMBER_TAKES_JOBS | MEMBER_STORES_PACKS;
		msg.u.report.mem_free_bytes = 1 << 30;
		assert_int_equal(host_call(host, &msg, -1, NULL), 0);
	}
	return r;
}

void host_kill(struct test_host *host)
{
	int status;

	assert_int_equal(kill(host->pid, SIGKILL), 0);
	assert_int_equal(waitpid(host->pid, &status, 0), host->pid);
	close(host->main);
	close(host->side);
	host->pid = 0;
}

void host_end(struct test_host *host)
{
	int status = 0;

	if (host->pid > 0) {
		close(host->side);
		close(host->main);
		assert_int_equal(waitpid(host->pid, &status, 0), host->pid);
		host->pid = 0;
	}
	assert_int_equal(remove_tree_at(AT_FDCWD, host->dir), 0);
	assert_int_equal(status, 0);
}

void host_event(struct test_host *host, uint32_t op, struct ov_msg *ret_msg, int timeout_ms)
{
	uint64_t deadline = deadline_of(timeout_ms);

	for (;;) {
		uint64_t now = now_boot_ns();
		int fd = -1;

		assert_true(now < deadline);
		assert_int_equal(recv_with_fd(host->main, ret_msg, sizeof(*ret_msg), &fd,
					      (int)((deadline - now) / 1000000) + 1),
				 sizeof(*ret_msg));
		if (fd >= 0)
			close(fd);
		if (ret_msg->op == op)
			return;
	}
}

/* Of the members that host knows, those of which this can be said. */
static uint32_t count_members(struct test_host *host,
			      bool (*is_one)(const struct member_info *row, const void *arg),
			      const void *arg)
{
	struct ov_msg msg = { .op = OV_MEMBERS };
	uint32_t count = 0;
	int fd = -1;

	assert_int_equal(host_call(host, &msg, -1, &fd), 0);
	for (uint64_t i = 0; i < msg.u.count; i++) {
		struct member_info row;

		assert_int_equal(pread_full(fd, &row, sizeof(row), (off_t)(i * sizeof(row))), 0);
		count += is_one(&row, arg);
	}
	close(fd);
	return count;
}

static bool has_state(const struct member_info *row, const void *arg)
{
	return row->state == *(const uint32_t *)arg;
}

uint32_t host_count_members(struct test_host *host, uint32_t state)
{
	return count_members(host, has_state, &state);
}

void host_wait_members(struct test_host *host, uint32_t state, uint32_t count, int timeout_ms)
{
	uint64_t deadline = deadline_of(timeout_ms);

	while (host_count_members(host, state) != count) {
		assert_true(now_boot_ns() < deadline);
		host_sleep_ms(50);
	}
}

int object_make(uint32_t size, uint8_t salt, struct ov_object *ret_object)
{
	uint8_t *bytes = malloc(size);
	uint32_t x = 2463534242u + salt;
	int fd = memfd_new("test");

	assert_non_null(bytes);
	assert_true(fd >= 0);
	for (uint32_t i = 0; i < size; i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		bytes[i] = (uint8_t)x;
	}
	memset(ret_object, 0, sizeof(*ret_object));
	SHA256(bytes, size, ret_object->hash.b);
	ret_object->size = size;
	ret_object->seq = 1;
	ret_object->job.b[0] = 1;
	ret_object->token.counter = 1;
	assert_int_equal(write_full(fd, bytes, size), 0);
	assert_int_equal(memfd_seal(fd), 0);
	free(bytes);
	return fd;
}

int host_put(struct test_host *host, int fd, struct ov_object *object, uint32_t copies)
{
	struct ov_msg msg = { .op = OV_OBJECT_PUT };
	int r;

	msg.u.object = *object;
	msg.u.object.copies = copies;
	r = host_call(host, &msg, fd, NULL);
	if (r == 0)
		*object = msg.u.object;
	return r;
}

void host_get_checked(struct test_host *host, const struct ov_object *object)
{
	struct ov_msg msg = { .op = OV_OBJECT_GET };
	uint8_t *bytes = malloc(object->size);
	struct object_hash hash;
	int fd = -1;

	msg.u.object = *object;
	assert_non_null(bytes);
	assert_int_equal(host_call(host, &msg, -1, &fd), 0);
	assert_true(memfd_is_sealed(fd));
	assert_int_equal(pread_full(fd, bytes, object->size, 0), 0);
	SHA256(bytes, object->size, hash.b);
	assert_memory_equal(&hash, &object->hash, sizeof(hash));
	close(fd);
	free(bytes);
}

int host_place_of(const struct test_host *host, int fd, const struct ov_object *object,
		  off_t *ret_offset)
{
	uint8_t *wanted = malloc(object->size), *found = malloc(object->size);
	char path[256];
	int file;

	assert_true(wanted && found);
	assert_int_equal(pread_full(fd, wanted, object->size, 0), 0);
	snprintf(path, sizeof(path), "%s/segments/00000001", host->dir);
	file = open(path, O_RDWR | O_CLOEXEC);
	assert_true(file >= 0);
	for (*ret_offset = 0;; *ret_offset += 4096) {
		assert_int_equal(pread_full(file, found, object->size, *ret_offset), 0);
		if (!memcmp(found, wanted, object->size))
			break;
	}
	free(wanted);
	free(found);
	return file;
}

/* --- several ---------------------------------------------------------------------------- */

void cluster_make_hosts(struct test_host *hosts, int count, struct test_cluster *cluster)
{
	cluster_make(cluster);
	for (int i = 0; i < count; i++)
		host_make(&hosts[i], cluster, (uint8_t)(i + 1));
}

/* It takes packs, and says how likely it stays on if that is known. */
static bool is_willing(const struct member_info *row, const void *arg)
{
	const bool *are_stable = arg;

	return row->state == MEMBER_ALIVE && (row->report.flags & MEMBER_STORES_PACKS) &&
	       row->report.store_free_bytes > 0 && (!*are_stable || row->report.stays > 0);
}

void cluster_wait_willing(struct test_host *hosts, int count)
{
	uint64_t deadline = deadline_of(60000);

	for (int i = 0; i < count; i++) {
		while (count_members(&hosts[i], is_willing, &hosts[i].is_stable) !=
		       (uint32_t)count) {
			assert_true(now_boot_ns() < deadline);
			host_sleep_ms(50);
		}
	}
}

void cluster_start(struct test_host *hosts, int count)
{
	for (int i = 0; i < count; i++) {
		if (hosts[i].pid <= 0)
			host_run(&hosts[i]);
		assert_int_equal(host_start(&hosts[i], i ? &hosts[0] : NULL), 0);
	}
	cluster_wait_willing(hosts, count);
}

void cluster_end(struct test_host *hosts, int count)
{
	for (int i = 0; i < count; i++)
		host_end(&hosts[i]);
}

int cluster_index(const struct test_host *hosts, int count, const struct node_id *id)
{
	for (int i = 0; i < count; i++)
		if (node_id_equal(&hosts[i].identity.card.id, id))
			return i;
	fail();
	return 0;
}

uint64_t cluster_objects(struct test_host *hosts, int count)
{
	uint64_t objects = 0;

	for (int i = 0; i < count; i++) {
		struct ov_msg stats = { .op = OV_STATS };

		if (hosts[i].pid <= 0)
			continue;
		assert_int_equal(host_call(&hosts[i], &stats, -1, NULL), 0);
		objects += stats.u.stats.objects;
	}
	return objects;
}

void cluster_wait_objects(struct test_host *hosts, int count, uint64_t objects, int timeout_ms)
{
	uint64_t deadline = deadline_of(timeout_ms);

	while (cluster_objects(hosts, count) != objects) {
		assert_true(now_boot_ns() < deadline);
		host_sleep_ms(100);
	}
}
