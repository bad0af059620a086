/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Four overlay halves that keep for each other: who is owed what, and who may say so. */
#include <errno.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay/core/receipt.h"
#include "overlay/net/frame.h"
#include "overlay/net/tls.h"
#include "overlay_host.h"

enum { HOSTS = 4, ROUND_MS = 300, SUSPECT_MS = 60000, SIZE = 8000000, WAIT_MS = 60000 };

struct fixture {
	struct test_cluster cluster;
	struct test_host hosts[HOSTS];
	struct ov_credit rows[HOSTS]; /* by host */
	struct ov_credits told;
};

static void start(struct fixture *f, int i)
{
	host_run(&f->hosts[i]);
	assert_int_equal(host_start(&f->hosts[i], &f->hosts[i ? 0 : 1]), 0);
}

static void wait_all(struct fixture *f)
{
	for (int i = 0; i < HOSTS; i++)
		host_wait_members(&f->hosts[i], MEMBER_ALIVE, HOSTS, WAIT_MS);
	host_sleep_ms(700); /* reports */
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	cluster_make_hosts(f->hosts, HOSTS, &f->cluster);
	for (int i = 0; i < HOSTS; i++) {
		f->hosts[i].credit_round_ms = ROUND_MS;
		f->hosts[i].suspect_ms = SUSPECT_MS;
	}
	for (int i = 0; i < HOSTS; i++)
		start(f, i);
	wait_all(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	cluster_end(f->hosts, HOSTS);
	free(f);
	return 0;
}

static int index_of(const struct fixture *f, const struct node_id *id)
{
	return cluster_index(f->hosts, HOSTS, id);
}

/* Returns whether all that run have answered in time. */
static bool ask_once(struct fixture *f, int asked)
{
	struct ov_msg msg = { .op = OV_CREDIT };
	bool all = true;
	int fd = -1;

	memset(f->rows, 0, sizeof(f->rows));
	assert_int_equal(host_call(&f->hosts[asked], &msg, -1, &fd), 0);
	f->told = msg.u.credits;
	assert_int_equal(f->told.count, HOSTS);
	for (uint64_t i = 0; i < f->told.count; i++) {
		struct ov_credit row;

		assert_int_equal(pread_full(fd, &row, sizeof(row), (off_t)(i * sizeof(row))), 0);
		f->rows[index_of(f, &row.id)] = row;
		all &= row.answered || f->hosts[index_of(f, &row.id)].pid <= 0;
	}
	close(fd);
	return all;
}

/* Who does not answer within seconds is left out: on a busy machine all are asked again. */
static void ask(struct fixture *f, int asked)
{
	uint64_t deadline = now_boot_ns() + (uint64_t)WAIT_MS * 1000000;

	while (!ask_once(f, asked))
		assert_true(now_boot_ns() < deadline);
}

static int retain(struct fixture *f, int owner, const struct ov_object *object, bool keep)
{
	struct ov_msg msg = { .op = OV_OBJECT_RETAIN };
	int fd = memfd_new("hashes"), r;

	msg.u.retain.job = object->job;
	msg.u.retain.token = object->token;
	msg.u.retain.upto_seq = keep ? object->seq : UINT64_MAX;
	msg.u.retain.count = keep;
	if (keep)
		assert_int_equal(write_full(fd, &object->hash, sizeof(object->hash)), 0);
	assert_int_equal(memfd_seal(fd), 0);
	r = host_call(&f->hosts[owner], &msg, fd, NULL);
	close(fd);
	return r;
}

/* Until `asked` is shown that host i has given more than this. */
static void wait_given(struct fixture *f, int asked, int i, uint64_t byte_hours, uint64_t restores)
{
	uint64_t deadline = now_boot_ns() + (uint64_t)WAIT_MS * 1000000;

	for (;;) {
		ask(f, asked);
		if (f->rows[i].given.byte_hours > byte_hours &&
		    f->rows[i].given.restores >= restores)
			return;
		assert_true(now_boot_ns() < deadline);
		host_sleep_ms(100);
	}
}

/* An object of host 0 that lies at *ret_holder for half a second and has been paid for. */
static struct ov_object earn(struct fixture *f, uint8_t job, int *ret_holder)
{
	struct ov_object object;
	int fd = object_make(SIZE, job, &object);

	ask(f, 3);
	object.job.b[0] = job;
	assert_int_equal(host_put(&f->hosts[0], fd, &object, 1), 0);
	close(fd);
	host_sleep_ms(500);
	assert_int_equal(retain(f, 0, &object, true), 0);
	*ret_holder = index_of(f, &object.holders[0]);
	wait_given(f, 3, *ret_holder, f->rows[*ret_holder].given.byte_hours, 0);
	return object;
}

static void holders_earn_and_all_can_see_it(void **state)
{
	struct fixture *f = *state;
	struct ov_object object;
	uint64_t given, began = now_boot_ns(), lain_ms;
	int holder, next;

	object = earn(f, 1, &holder);
	lain_ms = (now_boot_ns() - began) / 1000000;
	given = f->rows[holder].given.byte_hours;
	assert_in_range(given, SIZE / 3600 / 2, SIZE * lain_ms / 3600000 + 1);
	assert_int_equal(f->rows[0].taken.byte_hours, given);
	assert_int_equal(f->rows[0].given.byte_hours, 0);
	assert_int_equal(f->rows[holder].given.restores, 0);
	/* Another owner restores it there, and a reader without the job's token does not. */
	object.token.counter++;
	next = holder == 1 ? 2 : 1;
	host_get_checked(&f->hosts[next], &object);
	wait_given(f, 0, holder, 0, 1);
	object.token.counter = 0;
	host_get_checked(&f->hosts[next], &object);
	host_sleep_ms(3 * ROUND_MS);
	ask(f, 0);
	assert_int_equal(f->rows[holder].given.restores, 1);
	assert_int_equal(f->rows[holder].given.restored_bytes, SIZE);
	assert_int_equal(f->rows[holder].receipts, 2);
	assert_int_equal(f->rows[next].taken.restores, 1);
	for (int i = 0; i < HOSTS; i++) {
		assert_int_equal(f->rows[i].answered, 1);
		assert_int_equal(f->rows[i].forged + f->rows[i].unverified_count, 0);
	}
	/* When the job is over nothing more is earned. */
	object.token.counter = 2;
	assert_int_equal(retain(f, next, &object, false), 0);
	host_sleep_ms(5 * ROUND_MS);
	ask(f, 0);
	given = f->rows[holder].given.byte_hours;
	host_sleep_ms(300);
	assert_int_equal(retain(f, next, &object, false), -ESTALE);
	host_sleep_ms(3 * ROUND_MS);
	ask(f, 0);
	assert_int_equal(f->rows[holder].given.byte_hours, given);
}

static void both_sides_remember(void **state)
{
	struct fixture *f = *state;
	struct ov_object object;
	int holder;
	uint64_t given;

	object = earn(f, 2, &holder);
	given = f->rows[holder].given.byte_hours;
	host_kill(&f->hosts[0]);
	host_kill(&f->hosts[holder]);
	start(f, 0);
	start(f, holder);
	wait_all(f);
	ask(f, holder);
	assert_true(f->rows[holder].given.byte_hours >= given);
	given = f->rows[holder].given.byte_hours;
	host_sleep_ms(500);
	assert_int_equal(retain(f, 0, &object, true), 0);
	wait_given(f, 0, holder, given, 0);
	/* A disk that lost its ledger learns from what it had signed. */
	given = f->rows[holder].given.byte_hours;
	host_kill(&f->hosts[0]);
	host_save_own(&f->hosts[0], "credit", "rot", 3);
	start(f, 0);
	wait_all(f);
	host_get_checked(&f->hosts[0], &object); /* with the token: known to be there */
	host_sleep_ms(1000);
	assert_int_equal(retain(f, 0, &object, true), 0);
	wait_given(f, 0, holder, given + SIZE / 3600 / 2, 1);
}

/* --- one that lies --------------------------------------------------------------------- */

static SSL *dial(const struct test_host *host, const struct test_host *liar, SSL_CTX *context)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_port = htons(host->port),
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct timeval patience = { .tv_sec = 60 };
	uint8_t hello[NET_HEADER_SIZE + sizeof(struct node_card)];
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	SSL *ssl = SSL_new(context);

	assert_true(fd >= 0 && ssl);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
	assert_int_equal(SSL_set_fd(ssl, fd), 1);
	assert_int_equal(SSL_connect(ssl), 1);
	net_frame_header(hello, sizeof(struct node_card), NET_HELLO, NET_BULK);
	memcpy(hello + NET_HEADER_SIZE, &liar->identity.card, sizeof(struct node_card));
	assert_int_equal(SSL_write(ssl, hello, sizeof(hello)), sizeof(hello));
	return ssl;
}

static void read_all(SSL *ssl, uint8_t *bytes, size_t size)
{
	while (size > 0) {
		int n = SSL_read(ssl, bytes, (int)size);
		assert_true(n > 0);
		bytes += n;
		size -= (size_t)n;
	}
}

/* What the one that lies shows; changed while it serves. */
struct lies {
	uint32_t size;
	uint8_t bytes[4 * CORE_RECEIPT_BYTES];
};

static void write_frame(SSL *ssl, uint16_t type, uint16_t flags, const void *body, size_t size)
{
	uint8_t frame[NET_HEADER_SIZE + 1024];

	assert_true(size <= 1024);
	net_frame_header(frame, (uint32_t)size, type, flags);
	memcpy(frame + NET_HEADER_SIZE, body, size);
	assert_int_equal(SSL_write(ssl, frame, (int)(NET_HEADER_SIZE + size)),
			 NET_HEADER_SIZE + size);
}

/* In a process of its own: a member that answers CREDIT, and nothing else. */
static void serve_lies(SSL *ssl, const struct test_host *liar, const struct lies *lies)
{
	uint8_t in[NET_HEADER_SIZE + NET_CALL_MAX], out[NET_REPLY_MAX];
	struct net_reply reply = { .stream_size = lies->size };
	uint16_t kind;

	read_all(ssl, in, NET_HEADER_SIZE + sizeof(struct node_card));
	kind = in[6];
	write_frame(ssl, NET_HELLO, kind, &liar->identity.card, sizeof(struct node_card));
	while (kind == NET_BULK) {
		struct net_call call;

		read_all(ssl, in, NET_HEADER_SIZE);
		read_all(ssl, in + NET_HEADER_SIZE, in[0] + 256u * in[1]);
		if (net_call_decode(in + NET_HEADER_SIZE, in[0] + 256u * in[1], &call) < 0)
			continue; /* the end of another call */
		reply = (struct net_reply){ .call = call.call, .status = -EAGAIN };
		if (call.op == NET_OP_CREDIT) {
			reply.status = 0;
			reply.stream_size = lies->size;
		}
		write_frame(ssl, NET_REPLY, 0, out, net_reply_encode(&reply, out));
		net_u64_encode(call.call, out);
		memcpy(out + 8, lies->bytes, lies->size);
		if (reply.stream_size)
			write_frame(ssl, NET_DATA, 0, out, 8 + lies->size);
	}
	pause();
}

static void accept_all(int fd, const struct test_host *liar, const struct lies *lies)
{
	SSL_CTX *context;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGCHLD, SIG_IGN);
	assert_int_equal(net_tls_member_context(liar->identity.tls_secret, true, &context), 0);
	for (;;) {
		int peer = accept(fd, NULL, NULL);
		SSL *ssl = SSL_new(context);

		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			SSL_set_fd(ssl, peer);
			if (SSL_accept(ssl) == 1)
				serve_lies(ssl, liar, lies);
			_exit(0);
		}
		SSL_free(ssl);
		close(peer);
	}
}

/* Listens where the killed host did. */
static pid_t lie_for(const struct test_host *liar, struct lies **ret_lies)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_port = htons(liar->port),
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct lies *lies = mmap(NULL, sizeof(*lies), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
	pid_t pid;

	assert_true(lies != MAP_FAILED && fd >= 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 64), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		accept_all(fd, liar, lies);
	close(fd);
	*ret_lies = lies;
	return pid;
}

/* The status, and the receipt that the host shows. */
static int tell(const struct test_host *host, const struct test_host *liar,
		const struct core_receipt *receipt, struct core_receipt *ret_kept)
{
	uint8_t bytes[CORE_RECEIPT_BYTES], frame[NET_HEADER_SIZE + NET_CALL_MAX];
	uint8_t back[NET_HEADER_SIZE + sizeof(struct node_card) + NET_HEADER_SIZE];
	struct net_call call = { .call = 3, .op = NET_OP_RECEIPT, .receipt = bytes };
	struct net_frame header;
	struct net_reply reply;
	SSL_CTX *context;
	SSL *ssl;
	size_t size;

	core_receipt_encode(receipt, bytes);
	size = net_call_encode(&call, frame + NET_HEADER_SIZE);
	net_frame_header(frame, (uint32_t)size, NET_CALL, 0);
	assert_int_equal(net_tls_member_context(liar->identity.tls_secret, false, &context), 0);
	ssl = dial(host, liar, context);
	assert_int_equal(SSL_write(ssl, frame, (int)(NET_HEADER_SIZE + size)),
			 NET_HEADER_SIZE + size);
	read_all(ssl, back, sizeof(back));
	memcpy(frame, back + sizeof(back) - NET_HEADER_SIZE, NET_HEADER_SIZE);
	size = frame[0] + 256u * frame[1];
	assert_in_range(size, 16, 16 + CORE_RECEIPT_BYTES);
	read_all(ssl, frame + NET_HEADER_SIZE, size);
	assert_int_equal(
		net_frame_decode(NET_PHASE_CALLING, frame, NET_HEADER_SIZE + size, &header), 1);
	assert_int_equal(net_reply_decode(header.body, header.size, &reply), 0);
	if (reply.status == 0)
		assert_int_equal(
			core_receipt_decode(reply.inline_bytes, reply.inline_size, ret_kept), 0);
	close(SSL_get_fd(ssl));
	SSL_free(ssl);
	SSL_CTX_free(context);
	return reply.status;
}

static void sign(const struct fixture *f, const struct test_host *by, struct core_receipt *receipt)
{
	uint8_t words[32 + 32 + CORE_RECEIPT_BYTES] = "decamp credit receipt";

	memcpy(words + 32, f->cluster.public, 32);
	core_receipt_encode(receipt, words + 64);
	assert_int_equal(net_tls_sign(by->identity.tls_secret, words, 64 + CORE_RECEIPT_SIGNED,
				      receipt->signature),
			 0);
}

static void nobody_speaks_for_others_nor_takes_back(void **state)
{
	struct fixture *f = *state;
	struct test_host *holder = &f->hosts[1], *liar = &f->hosts[3], *other = &f->hosts[2];
	struct core_receipt good = { .submitter = liar->identity.card.id,
				     .holder = holder->identity.card.id,
				     .epoch = 5,
				     .byte_hours = 1000,
				     .restores = 2 },
			    bad, kept;
	struct ov_credits before;
	uint64_t given;

	ask(f, 0);
	given = f->rows[1].given.byte_hours;
	assert_int_equal(f->rows[3].taken.byte_hours, 0);
	ask(f, 1);
	before = f->told;
	/* Not held for dead for a while; from here on the test speaks for it. */
	host_kill(liar);
	sign(f, liar, &good);
	assert_int_equal(tell(holder, liar, &good, &kept), 0);
	assert_memory_equal(&kept, &good, sizeof(good));
	assert_int_equal(tell(holder, liar, &good, &kept), 0); /* said again: no harm, no gain */
	bad = good;
	bad.byte_hours = 9999; /* more than was signed */
	bad.epoch = 6;
	assert_int_equal(tell(holder, liar, &bad, &kept), -EBADMSG);
	sign(f, other, &bad); /* by another's key */
	assert_int_equal(tell(holder, liar, &bad, &kept), -EBADMSG);
	bad = good;
	bad.submitter = other->identity.card.id; /* in another's name */
	sign(f, liar, &bad);
	assert_int_equal(tell(holder, liar, &bad, &kept), -EPERM);
	bad = good;
	bad.holder = other->identity.card.id; /* meant for another */
	sign(f, liar, &bad);
	assert_int_equal(tell(holder, liar, &bad, &kept), -EPERM);
	bad = good;
	bad.epoch = 4; /* replayed */
	bad.byte_hours = 900;
	sign(f, liar, &bad);
	assert_int_equal(tell(holder, liar, &bad, &kept), 0);
	assert_memory_equal(&kept, &good, sizeof(good));
	bad.epoch = 6; /* takes back */
	sign(f, liar, &bad);
	assert_int_equal(tell(holder, liar, &bad, &kept), 0);
	assert_memory_equal(&kept, &good, sizeof(good));
	ask(f, 1);
	assert_int_equal(f->told.forged, before.forged + 2);
	assert_int_equal(f->told.foreign, before.foreign + 2);
	assert_int_equal(f->told.older, before.older + 2);
	ask(f, 0);
	assert_int_equal(f->rows[1].given.byte_hours, given + 1000);
	assert_int_equal(f->rows[3].taken.byte_hours, 1000);
	assert_int_equal(f->rows[3].answered, 0);
	start(f, 3);
	wait_all(f);
}

/* What is to be believed is shown until it was seen; what is not, once. */
static void show(struct fixture *f, struct lies *lies, const struct core_receipt *rows,
		 uint32_t count, uint32_t size, bool good)
{
	uint64_t deadline = now_boot_ns() + (uint64_t)WAIT_MS * 1000000;

	for (uint32_t i = 0; i < count; i++)
		core_receipt_encode(&rows[i], lies->bytes + i * CORE_RECEIPT_BYTES);
	lies->size = size;
	do {
		assert_true(now_boot_ns() < deadline);
		ask(f, 0);
	} while (good && !f->rows[3].answered);
}

/* True receipts, shown in ways that would count them twice, or where they do not belong. */
static void nobody_shows_a_receipt_twice(void **state)
{
	struct fixture *f = *state;
	struct test_host *liar = &f->hosts[3];
	struct core_receipt rows[3] = { { .byte_hours = 5 }, { .byte_hours = 7 } }, other[2];
	uint32_t size = 2 * CORE_RECEIPT_BYTES;
	struct lies *lies;
	pid_t pid;

	for (int i = 0; i < 2; i++) { /* hosts 1 and 2: their ids ascend */
		rows[i].submitter = f->hosts[1 + i].identity.card.id;
		rows[i].holder = liar->identity.card.id;
		rows[i].epoch = 1;
		sign(f, &f->hosts[1 + i], &rows[i]);
	}
	host_kill(liar);
	pid = lie_for(liar, &lies);
	show(f, lies, rows, 2, size, true);
	assert_int_equal(f->rows[3].given.byte_hours, 12);
	other[0] = other[1] = rows[0];
	show(f, lies, other, 2, size, false); /* twice */
	assert_int_equal(f->rows[3].answered, 0);
	assert_int_equal(f->rows[3].given.byte_hours, 0);
	other[0] = rows[1];
	show(f, lies, other, 2, size, false); /* out of order */
	assert_int_equal(f->rows[3].answered, 0);
	other[0] = rows[0];
	other[1] = rows[1];
	other[1].holder = f->hosts[0].identity.card.id; /* another's */
	sign(f, &f->hosts[2], &other[1]);
	show(f, lies, other, 2, size, false);
	assert_int_equal(f->rows[3].answered, 0);
	assert_int_equal(f->rows[0].given.byte_hours + f->rows[3].given.byte_hours, 0);
	show(f, lies, rows, 2, size - 1, false);
	assert_int_equal(f->rows[3].answered, 0);
	rows[1].byte_hours++; /* not what was signed */
	show(f, lies, rows, 2, size, true);
	assert_int_equal(f->rows[3].given.byte_hours, 5);
	assert_int_equal(f->rows[3].forged, 1);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	munmap(lies, sizeof(*lies));
	start(f, 3);
	wait_all(f);
}

/* It writes itself a book: with a receipt of nobody, one of its own making, and a true one. */
static void nobody_credits_himself(void **state)
{
	static struct core_book book;
	static uint8_t bytes[CORE_BOOK_BYTES_MAX];
	struct fixture *f = *state;
	const struct node_id *liar = &f->hosts[2].identity.card.id;
	struct core_receipt receipt = { .holder = *liar, .epoch = 1, .byte_hours = 1 << 30 };

	host_kill(&f->hosts[2]);
	receipt.submitter.b[0] = 0xfe;
	sign(f, &f->hosts[2], &receipt);
	assert_int_equal(core_book_add(&book, &receipt), 0);
	receipt.submitter = f->hosts[0].identity.card.id;
	sign(f, &f->hosts[2], &receipt);
	assert_int_equal(core_book_add(&book, &receipt), 0);
	receipt.submitter = f->hosts[1].identity.card.id;
	receipt.byte_hours = 77;
	sign(f, &f->hosts[1], &receipt);
	assert_int_equal(core_book_add(&book, &receipt), 0);
	host_save_own(&f->hosts[2], "receipts", bytes, core_book_encode(&book, liar, bytes));
	start(f, 2);
	wait_all(f);
	for (int asked = 0; asked < HOSTS; asked++) {
		ask(f, asked);
		assert_int_equal(f->rows[2].given.byte_hours, 77);
		assert_int_equal(f->rows[2].receipts, 1);
		assert_int_equal(f->rows[2].forged, 1);
		assert_int_equal(f->rows[2].unverified_count, 1);
		assert_int_equal(f->rows[2].unverified.byte_hours, 1 << 30);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(holders_earn_and_all_can_see_it),
		cmocka_unit_test(both_sides_remember),
		cmocka_unit_test(nobody_shows_a_receipt_twice),
		cmocka_unit_test(nobody_speaks_for_others_nor_takes_back),
		cmocka_unit_test(nobody_credits_himself),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
