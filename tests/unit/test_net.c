// SPDX-License-Identifier: LGPL-2.1-or-later
/* Frames as pure functions; then what a running host says to strangers. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "agent/util/io.h"
#include "overlay/net/frame.h"
#include "overlay/net/tls.h"
#include "overlay_host.h"

/* --- frames ---------------------------------------------------------------------------- */

static void test_frame_limits(void **state)
{
	static const struct {
		enum net_phase phase;
		uint16_t type, flags;
		uint32_t size;
		int result; /* with the header alone */
	} cases[] = {
		{ NET_PHASE_CARD, NET_HELLO, NET_CONTROL, sizeof(struct node_card), 0 },
		{ NET_PHASE_CARD, NET_HELLO, 0, sizeof(struct node_card) - 1, -EBADMSG },
		{ NET_PHASE_CARD, NET_HELLO, 0, UINT32_MAX, -EBADMSG },
		{ NET_PHASE_CARD, NET_CORE, 0, 10, -EBADMSG },
		{ NET_PHASE_CARD, NET_JOIN, 0, 10, -EBADMSG },
		{ NET_PHASE_CARD, 0, 0, 0, -EBADMSG },
		{ NET_PHASE_CONTROL, NET_CORE, 0, CORE_MESSAGE_MAX, 0 },
		{ NET_PHASE_CONTROL, NET_CORE, 1, 10, -EBADMSG },
		{ NET_PHASE_CONTROL, NET_CORE, 0, CORE_MESSAGE_MAX + 1, -EBADMSG },
		{ NET_PHASE_CONTROL, NET_HELLO, 0, sizeof(struct node_card), -EBADMSG },
		{ NET_PHASE_CALLED, NET_CALL, 0, 16, 0 },
		{ NET_PHASE_CALLED, NET_REPLY, 0, 16, -EBADMSG },
		{ NET_PHASE_CALLED, NET_DATA, 0, 8, -EBADMSG },
		{ NET_PHASE_CALLED, NET_DATA, 0, NET_BODY_MAX, 0 },
		{ NET_PHASE_CALLED, NET_DATA, 0, NET_BODY_MAX + 1, -EBADMSG },
		{ NET_PHASE_CALLING, NET_REPLY, 0, 16, 0 },
		{ NET_PHASE_CALLING, NET_CALL, 0, 16, -EBADMSG },
		{ NET_PHASE_JOIN, NET_JOIN, 0, 4 + OV_ORDER_MAX, 0 },
		{ NET_PHASE_JOIN, NET_JOIN, 0, 5 + OV_ORDER_MAX, -EBADMSG },
		{ NET_PHASE_JOIN, NET_HELLO, 0, sizeof(struct node_card), -EBADMSG },
		{ NET_PHASE_JOIN_REPLY, NET_JOIN_REPLY, 0, 4, 0 },
	};
	struct net_frame frame;
	uint8_t bytes[16];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		net_frame_header(bytes, cases[i].size, cases[i].type, cases[i].flags);
		assert_int_equal(net_frame_decode(cases[i].phase, bytes, 8, &frame),
				 cases[i].result);
		assert_int_equal(net_frame_decode(cases[i].phase, bytes, 7, &frame), 0);
	}
	net_frame_header(bytes, 8, NET_CANCEL, 0);
	net_u64_encode(7, bytes + 8);
	assert_int_equal(net_frame_decode(NET_PHASE_CALLED, bytes, 15, &frame), 0);
	assert_int_equal(net_frame_decode(NET_PHASE_CALLED, bytes, 16, &frame), 1);
	assert_int_equal(net_u64_decode(frame.body), 7);
}

static void test_calls(void **state)
{
	static const uint8_t receipt[CORE_RECEIPT_BYTES] = { 1, 2, 3, [151] = 4 };
	struct net_call call = { .call = 0x1122334455667788, .op = NET_OP_PUT }, back;
	uint8_t body[NET_CALL_MAX];
	size_t size;

	(void)state;
	call.object.job.b[3] = 1;
	call.object.token.counter = 12;
	call.object.token.node.b[1] = 4;
	call.object.hash.b[31] = 5;
	call.object.seq = 99;
	call.object.size = call.stream_size = 1000;
	size = net_call_encode(&call, body);
	assert_int_equal(net_call_decode(body, size, &back), 0);
	assert_memory_equal(&back, &call, sizeof(call));
	for (size_t i = 0; i < size; i++)
		assert_int_equal(net_call_decode(body, i, &back), -EBADMSG);
	assert_int_equal(net_call_decode(body, size + 1, &back), -EBADMSG);
	call.stream_size = 999;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), -EBADMSG);
	/* The same without the bytes. */
	call.op = NET_OP_REFER;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), -EBADMSG);
	call.stream_size = 1000;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), -EBADMSG);
	call.stream_size = 0;
	size = net_call_encode(&call, body);
	assert_int_equal(net_call_decode(body, size, &back), 0);
	assert_memory_equal(&back, &call, sizeof(call));
	for (size_t i = 0; i < size; i++)
		assert_int_equal(net_call_decode(body, i, &back), -EBADMSG);
	assert_int_equal(net_call_decode(body, size + 1, &back), -EBADMSG);
	call.object.size = 0;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), -EBADMSG);
	call.object.size = OV_PACK_MAX + 1;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), -EBADMSG);

	call = (struct net_call){ .op = NET_OP_RETAIN, .stream_size = 64 };
	call.retain.count = 2;
	call.retain.upto_seq = 5;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), 0);
	assert_memory_equal(&back, &call, sizeof(call));
	/* A count whose product wraps in 32 bits. */
	call.retain.count = 0x08000002;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), -EBADMSG);

	call = (struct net_call){ .op = NET_OP_ORDER,
				  .order_size = 3,
				  .order_bytes = (const uint8_t *)"abc" };
	size = net_call_encode(&call, body);
	assert_int_equal(net_call_decode(body, size, &back), 0);
	assert_memory_equal(back.order_bytes, "abc", 3);
	assert_int_equal(net_call_decode(body, size - 1, &back), -EBADMSG);
	call = (struct net_call){ .op = NET_OP_HOLDERS };
	call.object.token.counter = 7;
	call.object.hash.b[3] = 1;
	call.object.holder_count = 2;
	call.object.holders[1].b[5] = 8;
	size = net_call_encode(&call, body);
	assert_int_equal(net_call_decode(body, size, &back), 0);
	assert_memory_equal(&back, &call, sizeof(call));
	for (size_t i = 0; i < size; i++)
		assert_int_equal(net_call_decode(body, i, &back), -EBADMSG);
	body[size - 2 * sizeof(struct node_id) - 4] = OV_HOLDERS_MAX + 1;
	assert_int_equal(net_call_decode(body, size, &back), -EBADMSG);
	call.object.holder_count = 0;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), -EBADMSG);
	call = (struct net_call){ .op = NET_OP_VOUCH };
	call.object.job.b[15] = 9;
	call.object.hash.b[31] = 1;
	size = net_call_encode(&call, body);
	assert_int_equal(net_call_decode(body, size, &back), 0);
	assert_memory_equal(&back, &call, sizeof(call));
	assert_int_equal(net_call_decode(body, size - 1, &back), -EBADMSG);
	call.stream_size = 1;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), -EBADMSG);
	call = (struct net_call){ .op = NET_OP_VERDICT };
	call.object.job.b[15] = 9;
	size = net_call_encode(&call, body);
	assert_int_equal(net_call_decode(body, size, &back), 0);
	assert_memory_equal(&back, &call, sizeof(call));
	assert_int_equal(net_call_decode(body, size - 1, &back), -EBADMSG);
	call = (struct net_call){ .op = NET_OP_RECEIPT, .receipt = receipt };
	size = net_call_encode(&call, body);
	assert_int_equal(net_call_decode(body, size, &back), 0);
	assert_memory_equal(back.receipt, receipt, sizeof(receipt));
	assert_int_equal(net_call_decode(body, size - 1, &back), -EBADMSG);
	assert_int_equal(net_call_decode(body, size + 1, &back), -EBADMSG);
	call = (struct net_call){ .op = NET_OP_CREDIT };
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), 0);
	call.stream_size = 1;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), -EBADMSG);
	call = (struct net_call){ .op = NET_OP_LIST };
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), 0);
	call.op = 77;
	assert_int_equal(net_call_decode(body, net_call_encode(&call, body), &back), -EBADMSG);
}

static void test_verdicts(void **state)
{
	struct net_verdict verdict = { .heard_ago_ms = 77 }, back;
	uint8_t bytes[NET_VERDICT_MAX + 1] = { 0 };
	size_t size;

	(void)state;
	assert_int_equal(net_verdict_decode(bytes, net_verdict_encode(&verdict, bytes), &back), 0);
	assert_memory_equal(&back, &verdict, sizeof(back));
	verdict.tombstone.state = JOB_STATE_COLLECTED;
	/* Whose acceptors are nobody is not over. */
	assert_int_equal(net_verdict_decode(bytes, net_verdict_encode(&verdict, bytes), &back),
			 -EBADMSG);
	verdict.tombstone.token.counter = 3;
	verdict.tombstone.acceptor_count = OV_REPLICAS_MAX;
	verdict.tombstone.acceptors[4].b[15] = 1;
	size = net_verdict_encode(&verdict, bytes);
	assert_int_equal(size, NET_VERDICT_MAX);
	assert_int_equal(net_verdict_decode(bytes, size, &back), 0);
	assert_memory_equal(&back, &verdict, sizeof(back));
	for (size_t i = 0; i < size; i++)
		assert_int_equal(net_verdict_decode(bytes, i, &back), -EBADMSG);
	assert_int_equal(net_verdict_decode(bytes, size + 1, &back), -EBADMSG);
	bytes[28] = OV_REPLICAS_MAX + 1;
	assert_int_equal(net_verdict_decode(bytes, size, &back), -EBADMSG);
	/* A job that still lives has none. */
	verdict.tombstone.state = JOB_STATE_DONE;
	size = net_verdict_encode(&verdict, bytes);
	assert_int_equal(net_verdict_decode(bytes, size, &back), -EBADMSG);
}

static void test_newest(void **state)
{
	struct ov_object rows[NET_NEWEST_ROWS] = { 0 }, back[NET_NEWEST_ROWS];
	uint8_t bytes[NET_NEWEST_MAX + 1] = { 0 };
	uint32_t count = 77;
	size_t size;

	(void)state;
	assert_int_equal(net_newest_decode(bytes, net_newest_encode(rows, 0, bytes), back, &count),
			 0);
	assert_int_equal(count, 0);
	for (uint32_t i = 0; i < NET_NEWEST_ROWS; i++) {
		rows[i].token.counter = 9 - i;
		rows[i].seq = 7 * i;
		rows[i].hash.b[31] = (uint8_t)i;
		rows[i].size = OV_PACK_MAX - i;
	}
	size = net_newest_encode(rows, NET_NEWEST_ROWS, bytes);
	assert_int_equal(size, NET_NEWEST_MAX);
	assert_int_equal(net_newest_decode(bytes, size, back, &count), 0);
	assert_int_equal(count, NET_NEWEST_ROWS);
	assert_memory_equal(back, rows, sizeof(rows));
	for (size_t i = 0; i < size; i++)
		assert_int_equal(net_newest_decode(bytes, i, back, &count), -EBADMSG);
	assert_int_equal(net_newest_decode(bytes, size + 1, back, &count), -EBADMSG);
	bytes[0] = NET_NEWEST_ROWS + 1;
	assert_int_equal(net_newest_decode(bytes, size, back, &count), -EBADMSG);
	rows[3].size = OV_PACK_MAX + 1;
	size = net_newest_encode(rows, NET_NEWEST_ROWS, bytes);
	assert_int_equal(net_newest_decode(bytes, size, back, &count), -EBADMSG);
}

static void test_replies(void **state)
{
	struct net_reply reply = { .call = 3, .status = -ENOENT }, back;
	uint8_t body[NET_REPLY_MAX];

	(void)state;
	assert_int_equal(net_reply_decode(body, net_reply_encode(&reply, body), &back), 0);
	assert_int_equal(back.status, -ENOENT);
	reply.stream_size = 1;
	assert_int_equal(net_reply_decode(body, net_reply_encode(&reply, body), &back), -EBADMSG);
	/* A status that is no -errno never passes for a success. */
	reply = (struct net_reply){ .status = 5 };
	assert_int_equal(net_reply_decode(body, net_reply_encode(&reply, body), &back), 0);
	assert_int_equal(back.status, -EBADMSG);
	reply.status = INT32_MIN;
	assert_int_equal(net_reply_decode(body, net_reply_encode(&reply, body), &back), 0);
	assert_int_equal(back.status, -EBADMSG);
	assert_int_equal(net_reply_decode(body, 15, &back), -EBADMSG);
}

static void test_card_check(void **state)
{
	struct test_cluster cluster;
	struct node_card card = { .version = 1, .id.b[0] = 1, .expires_wall_ms = 5000 };

	(void)state;
	cluster_make(&cluster);
	cluster_sign(&cluster, &card);
	assert_true(net_tls_card_valid(&card, cluster.public, 4999));
	assert_false(net_tls_card_valid(&card, cluster.public, 5000));
	for (size_t i = 0; i < sizeof(card); i++) {
		struct node_card other = card;

		((uint8_t *)&other)[i] ^= 1;
		assert_false(net_tls_card_valid(&other, cluster.public, 1));
	}
	memset(card.hostname, 'a', sizeof(card.hostname));
	cluster_sign(&cluster, &card);
	assert_false(net_tls_card_valid(&card, cluster.public, 1));
}

/* What was signed for one use, by one key. */
static void test_words(void **state)
{
	uint8_t secret[2][32] = { { 1 }, { 2 } }, key[2][32], signature[64];
	char words[] = "a use, and what is said";

	(void)state;
	for (int i = 0; i < 2; i++)
		assert_int_equal(net_tls_public_of(secret[i], key[i]), 0);
	assert_int_equal(net_tls_sign(secret[0], words, sizeof(words), signature), 0);
	assert_true(net_tls_verify(key[0], words, sizeof(words), signature));
	assert_false(net_tls_verify(key[1], words, sizeof(words), signature));
	assert_false(net_tls_verify(key[0], words, sizeof(words) - 1, signature));
	for (size_t i = 0; i < sizeof(words); i++) {
		words[i] ^= 1;
		assert_false(net_tls_verify(key[0], words, sizeof(words), signature));
		words[i] ^= 1;
	}
	signature[5] ^= 1;
	assert_false(net_tls_verify(key[0], words, sizeof(words), signature));
}

/* --- strangers ------------------------------------------------------------------------- */

struct fixture {
	struct test_cluster cluster, other_cluster;
	struct test_host host;	/* the one that is called upon */
	struct test_host other; /* a joiner, or of another cluster */
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	cluster_make(&f->cluster);
	cluster_make(&f->other_cluster);
	host_make(&f->host, &f->cluster, 1);
	f->host.suspect_ms = 1000; /* nobody stays */
	host_run(&f->host);
	assert_int_equal(host_start(&f->host, NULL), 0);
	host_make(&f->other, &f->other_cluster, 2);
	host_run(&f->other);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	host_end(&f->other);
	host_end(&f->host);
	free(f);
	return 0;
}

static int dial(uint16_t port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_port = htons(port),
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct timeval patience = { .tv_sec = 60 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
	return fd;
}

/* Bytes until the host closes. */
static ssize_t drain(int fd)
{
	ssize_t total = 0, n;
	char buf[512];

	while ((n = read(fd, buf, sizeof(buf))) > 0)
		total += n;
	assert_true(n == 0 || errno == ECONNRESET);
	return total;
}

static int greet(struct fixture *f, const uint8_t secret[32], const struct node_card *card);

static void test_garbage(void **state)
{
	enum { FLOOD = 150 };
	struct fixture *f = *state;
	struct test_host member;
	uint8_t junk[3000];
	int fd, fds[FLOOD];

	host_make(&member, &f->cluster, 8);
	assert_int_equal(RAND_bytes(junk, sizeof(junk)), 1);
	fd = dial(f->host.port);
	assert_true(send(fd, junk, sizeof(junk), MSG_NOSIGNAL) > 0);
	/* At most one TLS alert. */
	assert_true(drain(fd) <= 7);
	close(fd);
	/* Silence is ended by the host, without a byte. */
	fd = dial(f->host.port);
	assert_int_equal(drain(fd), 0);
	close(fd);
	/* A flood of silent ones does not keep others out, and the oldest go. */
	for (int i = 0; i < FLOOD; i++)
		fds[i] = dial(f->host.port);
	assert_int_equal(drain(fds[0]), 0);
	assert_true(greet(f, member.identity.tls_secret, &member.identity.card) > 0);
	for (int i = 0; i < FLOOD; i++)
		close(fds[i]);
	host_end(&member);
}

/* Application bytes that a TLS peer gets back from the host. */
static int talk(uint16_t port, SSL_CTX *context, struct net_tls_link *link, const void *bytes,
		size_t size)
{
	SSL *ssl = SSL_new(context);
	int fd = dial(port), got = -1;
	char buf[512];

	assert_non_null(ssl);
	assert_int_equal(SSL_set_fd(ssl, fd), 1);
	if (link)
		SSL_set_app_data(ssl, link);
	if (SSL_connect(ssl) == 1 && SSL_write(ssl, bytes, (int)size) == (int)size)
		got = SSL_read(ssl, buf, sizeof(buf));
	SSL_free(ssl);
	ERR_clear_error();
	close(fd);
	return got;
}

static size_t hello_of(const struct node_card *card, uint16_t flags,
		       uint8_t frame[NET_HEADER_SIZE + sizeof(struct node_card)])
{
	net_frame_header(frame, sizeof(*card), NET_HELLO, flags);
	memcpy(frame + NET_HEADER_SIZE, card, sizeof(*card));
	return NET_HEADER_SIZE + sizeof(*card);
}

static void test_no_certificate(void **state)
{
	struct fixture *f = *state;
	uint8_t frame[NET_HEADER_SIZE + sizeof(struct node_card)];
	SSL_CTX *context = SSL_CTX_new(TLS_client_method());
	size_t size = hello_of(&f->host.identity.card, NET_CONTROL, frame);

	assert_non_null(context);
	assert_true(talk(f->host.port, context, NULL, frame, size) <= 0);
	/* Nor by an older protocol. */
	assert_int_equal(SSL_CTX_set_max_proto_version(context, TLS1_2_VERSION), 1);
	assert_true(talk(f->host.port, context, NULL, frame, size) <= 0);
	SSL_CTX_free(context);
}

/* A card as a peer with this key: the bytes that come back. */
static int greet(struct fixture *f, const uint8_t secret[32], const struct node_card *card)
{
	uint8_t frame[NET_HEADER_SIZE + sizeof(struct node_card)];
	SSL_CTX *context = NULL;
	int got;

	assert_int_equal(net_tls_member_context(secret, false, &context), 0);
	got = talk(f->host.port, context, NULL, frame, hello_of(card, NET_CONTROL, frame));
	SSL_CTX_free(context);
	return got;
}

static struct ov_refusals refusals_of(struct fixture *f)
{
	struct ov_msg msg = { .op = OV_STATS };

	assert_int_equal(host_call(&f->host, &msg, -1, NULL), 0);
	return msg.u.stats.refusals;
}

/* A member that sends, after its card, what no connection may carry. */
static void test_member_garbage(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[2 * NET_HEADER_SIZE + sizeof(struct node_card)];
	SSL_CTX *context = NULL;
	struct test_host member;
	size_t size;

	host_make(&member, &f->cluster, 9);
	size = hello_of(&member.identity.card, NET_CONTROL, bytes);
	net_frame_header(bytes + size, 0, NET_CALL, 0);
	assert_int_equal(refusals_of(f).frames, 0);
	assert_int_equal(net_tls_member_context(member.identity.tls_secret, false, &context), 0);
	(void)talk(f->host.port, context, NULL, bytes, size + NET_HEADER_SIZE);
	SSL_CTX_free(context);
	assert_int_equal(refusals_of(f).frames, 1);
	host_end(&member);
}

/* --- a member that asks and does not read ----------------------------------------------- */

enum { GREEDY_CALLS = 20, GREEDY_BYTES = 16 << 20 };

static uint64_t resident_bytes(pid_t pid)
{
	unsigned long pages = 0;
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%*u %lu", &pages), 1);
	fclose(f);
	return (uint64_t)pages * 4096;
}

static void ask(SSL *ssl, const struct ov_object *object, uint64_t first_call, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct net_call call = { .op = NET_OP_GET,
					 .call = first_call + i,
					 .object = *object };
		uint8_t bytes[NET_HEADER_SIZE + NET_CALL_MAX];
		size_t size = net_call_encode(&call, bytes + NET_HEADER_SIZE);

		net_frame_header(bytes, (uint32_t)size, NET_CALL, 0);
		size += NET_HEADER_SIZE;
		assert_int_equal(SSL_write(ssl, bytes, (int)size), size);
	}
}

/* What comes back to it. */
struct taker {
	SSL *ssl;
	uint8_t in[NET_HEADER_SIZE + NET_BODY_MAX];
	size_t have;
	uint32_t replies, refused;
};

static void take_some(struct taker *t)
{
	int n = SSL_read(t->ssl, t->in + t->have, (int)(sizeof(t->in) - t->have));
	struct net_frame frame;

	assert_true(n > 0);
	t->have += (size_t)n;
	while (net_frame_decode(NET_PHASE_CALLING, t->in, t->have, &frame) > 0) {
		struct net_reply reply = { 0 };

		if (frame.type == NET_REPLY) {
			assert_int_equal(net_reply_decode(frame.body, frame.size, &reply), 0);
			t->replies++;
		}
		t->refused += reply.status == -EAGAIN;
		t->have -= NET_HEADER_SIZE + frame.size;
		memmove(t->in, t->in + NET_HEADER_SIZE + frame.size, t->have);
	}
}

/* As a member that opens a bulk connection. */
static void taker_open(struct taker *t, struct fixture *f, const struct test_host *member)
{
	uint8_t frame[NET_HEADER_SIZE + sizeof(struct node_card)];
	size_t size = hello_of(&member->identity.card, NET_BULK, frame);
	SSL_CTX *context = NULL;

	assert_int_equal(net_tls_member_context(member->identity.tls_secret, false, &context), 0);
	*t = (struct taker){ .ssl = SSL_new(context) };
	SSL_CTX_free(context);
	assert_non_null(t->ssl);
	assert_int_equal(SSL_set_fd(t->ssl, dial(f->host.port)), 1);
	assert_int_equal(SSL_connect(t->ssl), 1);
	assert_int_equal(SSL_write(t->ssl, frame, (int)size), size);
	assert_int_equal(SSL_read(t->ssl, frame, sizeof(frame)), sizeof(frame));
}

static void taker_close(struct taker *t)
{
	close(SSL_get_fd(t->ssl));
	SSL_free(t->ssl);
}

/* What was read for it takes memory; beyond a limit others are to be asked. */
static void test_greedy(void **state)
{
	struct fixture *f = *state;
	struct test_host member;
	struct ov_object object;
	int fd = object_make(GREEDY_BYTES, 1, &object);
	static struct taker t;
	uint64_t before;

	/* Who greeted it before, and was never there, is dead to it: alone, it keeps its own. */
	host_wait_members(&f->host, MEMBER_ALIVE, 1, 60000);
	host_wait_members(&f->host, MEMBER_SUSPECT, 0, 60000);
	assert_int_equal(host_put(&f->host, fd, &object, 1), 0);
	close(fd);
	host_make(&member, &f->cluster, 10);
	taker_open(&t, f, &member);
	before = resident_bytes(f->host.pid);
	ask(t.ssl, &object, 1, GREEDY_CALLS);
	for (int i = 0; i < 600; i++) {
		if (resident_bytes(f->host.pid) > before + (GREEDY_CALLS - 1) * GREEDY_BYTES)
			break;
		/* Just enough that the host does not take it for dead. */
		for (int k = 0; k < 4; k++)
			take_some(&t);
		host_sleep_ms(50);
	}
	ask(t.ssl, &object, 1 + GREEDY_CALLS, GREEDY_CALLS);
	while (t.replies < 2 * GREEDY_CALLS)
		take_some(&t);
	assert_int_equal(t.refused, GREEDY_CALLS);
	taker_close(&t);
	/* It is gone, and what was kept for it does not count any more. */
	for (int i = 0; i == 0 || t.refused > 0; i++) {
		assert_true(i < 1000);
		host_sleep_ms(50);
		taker_open(&t, f, &member);
		ask(t.ssl, &object, 1, 1);
		while (t.replies < 1)
			take_some(&t);
		taker_close(&t);
	}
	host_end(&member);
}

static void test_cards(void **state)
{
	struct fixture *f = *state;
	uint64_t before = refusals_of(f).strangers;
	struct test_host member;
	struct node_card card;

	host_make(&member, &f->cluster, 9);
	assert_true(greet(f, member.identity.tls_secret, &member.identity.card) > 0);
	/* Of another cluster. */
	assert_true(greet(f, f->other.identity.tls_secret, &f->other.identity.card) <= 0);
	/* A member's card in another's hands. */
	assert_true(greet(f, f->other.identity.tls_secret, &member.identity.card) <= 0);
	/* The host's own. */
	assert_true(greet(f, f->host.identity.tls_secret, &f->host.identity.card) <= 0);
	/* Expired. */
	card = member.identity.card;
	card.expires_wall_ms = now_wall_ms() - 1;
	cluster_sign(&f->cluster, &card);
	assert_true(greet(f, member.identity.tls_secret, &card) <= 0);
	assert_int_equal(refusals_of(f).strangers, before + 4);
	host_end(&member);
}

static void test_wrong_cluster_host(void **state)
{
	struct fixture *f = *state;
	struct ov_msg msg = { .op = OV_CARD_GET };

	/* A real host of another cluster that was told to greet this one. */
	assert_int_equal(host_start(&f->other, &f->host), 0);
	host_sleep_ms(1500);
	assert_int_equal(host_count_members(&f->other, MEMBER_ALIVE), 1);
	msg.u.order.node = f->other.identity.card.id;
	assert_int_equal(host_call(&f->host, &msg, -1, NULL), -ENOENT);
}

static struct ov_msg invite_of(uint8_t number)
{
	struct ov_msg msg = { .op = OV_INVITE };

	msg.u.invite.token_id[0] = number;
	memset(msg.u.invite.psk, number, sizeof(msg.u.invite.psk));
	msg.u.invite.expires_wall_ms = now_wall_ms() + 60000;
	return msg;
}

static struct ov_msg join_with(const struct fixture *f, const struct ov_msg *invite)
{
	struct ov_msg msg = { .op = OV_JOIN, .call = 3 };

	memcpy(msg.u.join.token_id, invite->u.invite.token_id, 16);
	memcpy(msg.u.join.psk, invite->u.invite.psk, 32);
	strcpy(msg.u.join.addr, "127.0.0.1");
	msg.u.join.port = f->host.port;
	msg.u.join.size = 6;
	memcpy(msg.u.join.bytes, "please", 6);
	return msg;
}

/* The joiner's request as the host's agent answers it. */
static void answer_join(struct fixture *f, int status)
{
	struct ov_msg event;

	host_event(&f->host, OV_EV_JOIN, &event, 8000);
	assert_int_equal(event.u.join.size, 6);
	assert_memory_equal(event.u.join.bytes, "please", 6);
	event.op = OV_JOIN_REPLY;
	event.status = status;
	event.u.join.size = 7;
	memcpy(event.u.join.bytes, "welcome", 7);
	assert_int_equal(send_with_fd(f->host.main, &event, sizeof(event), -1), 0);
}

static void test_join(void **state)
{
	struct fixture *f = *state;
	struct ov_msg invite = invite_of(7), sent = invite, msg;

	assert_int_equal(host_call(&f->host, &sent, -1, NULL), 0);
	/* Wrong key, unknown token: the connection closes and the token stays good. */
	msg = join_with(f, &invite);
	msg.u.join.psk[0] ^= 1;
	assert_int_equal(host_call(&f->other, &msg, -1, NULL), -EPERM);
	msg = join_with(f, &invite);
	msg.u.join.token_id[5] = 1;
	assert_int_equal(host_call(&f->other, &msg, -1, NULL), -EPERM);
	/* The agent says no: the token stays good. */
	msg = join_with(f, &invite);
	assert_int_equal(send_with_fd(f->other.main, &msg, sizeof(msg), -1), 0);
	answer_join(f, -EACCES);
	host_event(&f->other, OV_JOIN, &msg, 8000);
	assert_int_equal(msg.status, -EACCES);
	/* Yes, and then it is used up. */
	msg = join_with(f, &invite);
	assert_int_equal(send_with_fd(f->other.main, &msg, sizeof(msg), -1), 0);
	answer_join(f, 0);
	host_event(&f->other, OV_JOIN, &msg, 8000);
	assert_int_equal(msg.status, 0);
	assert_int_equal(msg.u.join.size, 7);
	assert_memory_equal(msg.u.join.bytes, "welcome", 7);
	msg = join_with(f, &invite);
	assert_int_equal(host_call(&f->other, &msg, -1, NULL), -EPERM);
	/* Expired ones are not taken. */
	sent = invite_of(8);
	sent.u.invite.expires_wall_ms = 1;
	assert_int_equal(host_call(&f->host, &sent, -1, NULL), -EINVAL);
}

/* Whoever holds a PSK gets to say one JOIN, and nothing that a member may say. */
static void test_joiner_is_no_member(void **state)
{
	struct fixture *f = *state;
	struct ov_msg invite = invite_of(9);
	struct net_tls_link link = { 0 };
	uint8_t frame[NET_HEADER_SIZE + sizeof(struct node_card)];
	SSL_CTX *context = NULL;
	size_t size = hello_of(&f->host.identity.card, NET_CONTROL, frame);

	assert_int_equal(host_call(&f->host, &invite, -1, NULL), 0);
	memset(link.psk, 9, sizeof(link.psk));
	link.token_id[0] = 9;
	assert_int_equal(net_tls_joiner_context(&context), 0);
	assert_true(talk(f->host.port, context, &link, frame, size) <= 0);
	net_frame_header(frame, 10, NET_CORE, 0);
	assert_true(talk(f->host.port, context, &link, frame, 18) <= 0);
	SSL_CTX_free(context);
}

int main(void)
{
	const struct CMUnitTest pure[] = {
		cmocka_unit_test(test_frame_limits), cmocka_unit_test(test_calls),
		cmocka_unit_test(test_verdicts),     cmocka_unit_test(test_newest),
		cmocka_unit_test(test_replies),	     cmocka_unit_test(test_card_check),
		cmocka_unit_test(test_words),
	};
	const struct CMUnitTest running[] = {
		cmocka_unit_test(test_garbage),
		cmocka_unit_test(test_no_certificate),
		cmocka_unit_test(test_member_garbage),
		cmocka_unit_test(test_cards),
		cmocka_unit_test(test_join),
		cmocka_unit_test(test_joiner_is_no_member),
		cmocka_unit_test(test_wrong_cluster_host),
		cmocka_unit_test(test_greedy),
	};
	int failed;

	signal(SIGPIPE, SIG_IGN);
	failed = cmocka_run_group_tests(pure, NULL, NULL);
	return failed + cmocka_run_group_tests(running, setup, teardown);
}
