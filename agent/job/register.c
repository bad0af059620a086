// SPDX-License-Identifier: LGPL-2.1-or-later
/* The job's register and its objects, asked for over the thread's side channel. */
#define LOG_TAG "job"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "agent/job/job.h"
#include "agent/util/io.h"
#include "agent/util/log.h"
#include "overlay/shard.h"

static void nap_ms(long ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	nanosleep(&ts, NULL);
}

/*
 * A side channel that timed out in the middle could bring the late answer to the next request; one
 * that the other half refused is closed. The number stays: others may have copied it.
 */
static int renew_channel(int main_channel, int *channel)
{
	_cleanup_close_ int fresh = ov_open_channel(main_channel);

	if (fresh < 0)
		return fresh;
	if (*channel < 0)
		*channel = take_fd(fresh);
	else if (dup3(fresh, *channel, O_CLOEXEC) < 0)
		return -errno;
	return 0;
}

/* The answer (r of ov_call) is none: it never came, or belonged to another request. */
static bool is_out_of_step(int r, const struct ov_msg *answer)
{
	return r == -EBADMSG || r == -EBADF || r == -EPIPE || r == -ECONNRESET ||
	       (r == -EAGAIN && answer->status == 0);
}

static int call_patiently(struct job *job, struct ov_msg *msg, int patience_ms)
{
	uint64_t deadline = now_boot_ns() + (uint64_t)patience_ms * 1000000;
	struct ov_msg attempt;
	int r;

	for (;;) {
		attempt = *msg;
		r = ov_call(job->channel, &attempt, -1, NULL, JOB_CALL_MS);
		if (is_out_of_step(r, &attempt)) {
			r = renew_channel(job->agent->main_channel, &job->channel);
			if (r < 0)
				return r;
			r = -EAGAIN;
		}
		if (r != -EAGAIN || now_boot_ns() >= deadline || job->agent->stopping)
			break;
		nap_ms(200);
	}
	if (r == 0)
		*msg = attempt;
	return r;
}

int job_register_call(struct job *job, struct ov_msg *msg)
{
	return call_patiently(job, msg, 0);
}

bool job_value_sane(const struct job_value *v)
{
	bool sane = v->history_count <= OV_HISTORY_MAX && v->avoid_count <= OV_AVOID_MAX &&
		    v->sealed_size <= OV_SEALED_MAX && v->needs_size <= OV_NEEDS_MAX &&
		    v->arch < CPU_ARCH_END && v->state >= JOB_STATE_IDLE &&
		    v->state <= JOB_STATE_KILLED;

	for (uint32_t i = 0; sane && i < v->history_count; i++)
		sane = v->history[i].holder_count <= OV_HOLDERS_MAX;
	return sane;
}

int job_value_from_hex(const char *hex, struct job_value *ret_value)
{
	struct job_value value = { 0 };
	bool old = hex && strlen(hex) == 2 * offsetof(struct job_value, arch);
	int r = hex ? hex_decode(hex, &value,
				 old ? offsetof(struct job_value, arch) : sizeof(value)) :
		      -EBADMSG;

	if (r == 0 && !job_value_sane(&value))
		r = -EBADMSG;
	if (r == 0)
		*ret_value = value;
	return r;
}

int job_cas(struct job *job, const struct job_value *value, int patience_ms)
{
	struct ov_msg msg = { .op = OV_JOB_CAS, .u.value = *value };
	int r = call_patiently(job, &msg, patience_ms);

	if (r < 0)
		return r;
	if (!job_value_sane(&msg.u.value) ||
	    memcmp(&msg.u.value.job, &job->id, sizeof(job->id)) != 0 ||
	    fence_token_compare(&msg.u.value.token, &value->token) != 0)
		return -EBADMSG;
	pthread_mutex_lock(&job->lock);
	job->value = msg.u.value;
	pthread_mutex_unlock(&job->lock);
	return 0;
}

bool job_is_lost(struct job *job)
{
	struct ov_msg msg = { .op = OV_JOB_GET, .u.job = { .job = job->id } };
	const struct job_value *v = &msg.u.value;
	int r = call_patiently(job, &msg, JOB_CALL_MS);

	/* -ENOENT is no verdict: a host that has just started knows nobody who could know the job. */
	if (r < 0 || !job_value_sane(v) || memcmp(&v->job, &job->id, sizeof(job->id)) != 0)
		return false;
	return fence_token_compare(&v->token, &job->value.token) != 0 ||
	       v->state != JOB_STATE_HELD || !node_id_equal(&v->owner, &job->agent->self);
}

int job_claim(struct job *job, int patience_ms)
{
	struct ov_msg msg = { .op = OV_JOB_TAKE, .u.value = job->value };
	const struct job_value *v = &msg.u.value;
	int r;

	msg.u.value.target = job->agent->self;
	r = call_patiently(job, &msg, patience_ms);
	if (r < 0)
		return r;
	if (!job_value_sane(v) || memcmp(&v->job, &job->id, sizeof(job->id)) != 0 ||
	    v->state != JOB_STATE_HELD || !node_id_equal(&v->owner, &job->agent->self) ||
	    fence_token_compare(&v->token, &job->value.token) <= 0)
		return -EBADMSG;
	pthread_mutex_lock(&job->lock);
	job->value = *v;
	pthread_mutex_unlock(&job->lock);
	return 0;
}

int job_hold(struct job *job, int patience_ms)
{
	struct ov_msg msg = { .op = OV_JOB_HOLD,
			      .u.job = { .job = job->id, .token = job->value.token } };
	int r = call_patiently(job, &msg, patience_ms);

	if (r == 0)
		job->run_until_boot_ns = msg.u.lease.run_until_boot_ns;
	return r;
}

void job_drop(struct job *job)
{
	struct ov_msg msg = { .op = OV_JOB_DROP,
			      .u.job = { .job = job->id, .token = job->value.token } };
	int r = ov_call(job->channel, &msg, -1, NULL, JOB_CALL_MS);

	if (r < 0)
		log_debug("%s: drop lease: %s", job->spec.name, strerror(-r));
	if (is_out_of_step(r, &msg) && renew_channel(job->agent->main_channel, &job->channel) < 0)
		log_debug("%s: no side channel", job->spec.name);
}

/* offer: holders may have it already; returns how many had. */
static int put_object(struct job *job, int memfd, const struct object_hash *hash, uint32_t size,
		      bool offer, uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	struct ov_msg msg = { .op = OV_OBJECT_PUT,
			      .u.object = { .job = job->id,
					    .token = job->value.token,
					    .hash = *hash,
					    .seq = job->value.history[0].seq + 1,
					    .size = size,
					    .copies = job->agent->config.copies,
					    .offer = offer } };
	/* Several packs may be on their way, each on a channel of its own. */
	_cleanup_close_ int channel = ov_open_channel(job->agent->main_channel);
	int r;

	if (channel < 0)
		return channel;
	r = ov_call(channel, &msg, memfd, NULL, JOB_OBJECT_MS);
	if (is_out_of_step(r, &msg))
		return -EAGAIN;
	if (r == -ESTALE) /* some holder knows a newer token: the register decides, not a holder */
		return -EAGAIN;
	if (r < 0)
		return r;
	if (msg.u.object.holder_count < 1 || msg.u.object.holder_count > OV_HOLDERS_MAX)
		return -EBADMSG;
	pthread_mutex_lock(&job->lock);
	if (msg.u.object.holder_count < job->few_holders)
		job->few_holders = msg.u.object.holder_count;
	pthread_mutex_unlock(&job->lock);
	packer_set_link(job->packer, (uint64_t)msg.u.object.link_kib_s << 10);
	*ret_holder_count = msg.u.object.holder_count;
	memcpy(ret_holders, msg.u.object.holders,
	       msg.u.object.holder_count * sizeof(struct node_id));
	return msg.u.object.sent < msg.u.object.holder_count && offer ?
		       (int)(msg.u.object.holder_count - msg.u.object.sent) :
		       0;
}

int job_store_object(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		     uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	return put_object(ctx, memfd, hash, size, false, ret_holder_count, ret_holders);
}

int job_store_shared(void *ctx, int memfd, const struct object_hash *hash, uint32_t size,
		     uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	return put_object(ctx, memfd, hash, size, true, ret_holder_count, ret_holders);
}

int job_object_call(struct job *job, struct ov_msg *msg, int fd, int timeout_ms)
{
	int r = ov_call(job->channel, msg, fd, NULL, timeout_ms);

	if (is_out_of_step(r, msg)) {
		r = renew_channel(job->agent->main_channel, &job->channel);
		return r < 0 ? r : -EAGAIN;
	}
	/* Some holder may know a newer token: the register decides, not a holder. */
	return r == -ESTALE ? -EAGAIN : r;
}

/* As pack_fetch_fn. A channel that fell out of step answers -EAGAIN, and *ret_bad is set. */
static int fetch_over(int channel, const struct job_id *id, const struct fence_token *token,
		      const struct object_hash *hash, uint32_t size, const struct node_id *holders,
		      uint32_t holder_count, bool *ret_bad, int *memfd)
{
	struct ov_msg msg = { .op = OV_OBJECT_GET,
			      .u.object = { .job = *id,
					    .token = *token,
					    .hash = *hash,
					    .size = size,
					    .holder_count = holder_count } };
	_cleanup_close_ int fd = -1;
	struct stat st;
	int r;

	if (holder_count > OV_HOLDERS_MAX)
		return -EBADMSG;
	memcpy(msg.u.object.holders, holders, holder_count * sizeof(*holders));
	r = ov_call(channel, &msg, *memfd, &fd, JOB_OBJECT_MS);
	*ret_bad = is_out_of_step(r, &msg);
	if (*ret_bad)
		return -EAGAIN;
	if (r < 0)
		return r;
	if (fd < 0 && *memfd >= 0)
		return 0;
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size != (off_t)size || !memfd_is_sealed(fd))
		return -EBADMSG;
	*memfd = take_fd(fd);
	return 0;
}

void job_fetch_init(struct fetch_ctx *fetch, int main_channel, const struct job_id *id)
{
	*fetch = (struct fetch_ctx){ .main_channel = main_channel, .id = *id };
	pthread_mutex_init(&fetch->lock, NULL);
}

void job_fetch_deinit(struct fetch_ctx *fetch)
{
	while (fetch->idle_count > 0)
		close(fetch->idle[--fetch->idle_count]);
	pthread_mutex_destroy(&fetch->lock);
}

static int borrow_channel(struct fetch_ctx *fetch)
{
	int channel = -1;

	pthread_mutex_lock(&fetch->lock);
	if (fetch->idle_count > 0)
		channel = fetch->idle[--fetch->idle_count];
	pthread_mutex_unlock(&fetch->lock);
	return channel >= 0 ? channel : ov_open_channel(fetch->main_channel);
}

static void return_channel(struct fetch_ctx *fetch, int channel_take)
{
	pthread_mutex_lock(&fetch->lock);
	if (fetch->idle_count < FETCH_CHANNELS_MAX) {
		fetch->idle[fetch->idle_count++] = channel_take;
		channel_take = -1;
	}
	pthread_mutex_unlock(&fetch->lock);
	close_fdp(&channel_take);
}

int job_fetch_object(void *ctx, const struct object_hash *hash, uint32_t size,
		     const struct node_id *holders, uint32_t holder_count, int *memfd)
{
	struct fetch_ctx *fetch = ctx;
	int channel = borrow_channel(fetch), r;
	bool bad = false;

	if (channel < 0)
		return channel;
	r = fetch_over(channel, &fetch->id, &fetch->token, hash, size, holders, holder_count, &bad,
		       memfd);
	if (bad)
		close(channel);
	else
		return_channel(fetch, channel);
	return r;
}

int job_open_manifest(struct agent *a, int channel, const struct job_id *id,
		      const struct secret_key *key, const struct ckpt_ref *ref,
		      struct manifest **ret_manifest)
{
	static const struct fence_token no_token; /* not yet a restore's */
	_cleanup_close_ int fd = -1;
	bool bad = false;
	void *bytes;
	int r;

	if (ref->manifest_size == 0 || ref->manifest_size > OV_PACK_MAX)
		return -EBADMSG;
	r = fetch_over(channel, id, &no_token, &ref->manifest, ref->manifest_size, ref->holders,
		       ref->holder_count, &bad, &fd);
	/* The number stays: others may have copied it. */
	if (bad && channel >= 0 && renew_channel(a->main_channel, &channel) < 0)
		return -EAGAIN;
	if (r < 0)
		return r;
	bytes = mmap(NULL, ref->manifest_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (bytes == MAP_FAILED)
		return -errno;
	r = manifest_open(bytes, ref->manifest_size, &ref->manifest, key,
			  cluster_public_key(a->cluster), ret_manifest);
	munmap(bytes, ref->manifest_size);
	if (r == 0 && memcmp(&manifest_head(*ret_manifest)->job, id, sizeof(*id)) != 0) {
		manifest_destroy(*ret_manifest);
		return -EBADMSG;
	}
	return r;
}

/* The register may hold another manifest under a number than the one that was kept. */
static bool keeps(const struct job *job, uint32_t i)
{
	const struct ckpt_ref *ref = &job->value.history[i];

	if (!job->kept[i].hashes || job->kept[i].seq != ref->seq)
		return false;
	for (size_t k = job->kept[i].count; k > 0; k--) /* it is the last */
		if (!memcmp(&job->kept[i].hashes[k - 1], &ref->manifest, sizeof(ref->manifest)))
			return true;
	return false;
}

void job_forget_kept(struct job *job, uint32_t i)
{
	free(job->kept[i].hashes);
	free(job->kept[i].coded);
	job->kept[i].hashes = job->kept[i].coded = NULL;
	job->kept[i].count = job->kept[i].coded_count = 0;
}

static void learn_kept(struct job *job, uint32_t i, const struct manifest *m)
{
	const struct ckpt_ref *ref = &job->value.history[i];
	size_t count = manifest_object_count(m), coded = 0;
	struct object_hash *hashes = calloc(count + 1, sizeof(*hashes));
	struct object_hash *shards = calloc(count + 1, sizeof(*shards));

	if (!hashes || !shards) {
		free(hashes);
		free(shards);
		return;
	}
	for (size_t k = 0; k < count; k++) {
		struct node_id holders[OV_HOLDERS_MAX];
		uint32_t size, holder_count;

		manifest_object(m, k, &hashes[k], &size, &holder_count, holders);
		if (manifest_object_coded(m, k))
			shards[coded++] = hashes[k];
	}
	hashes[count] = ref->manifest;
	job->kept[i].seq = ref->seq;
	job->kept[i].hashes = hashes;
	job->kept[i].count = count + 1;
	job->kept[i].coded = shards;
	job->kept[i].coded_count = coded;
}

/* Which objects each restorable checkpoint needs: read from its manifest where not known. */
void job_learn_kept(struct job *job)
{
	for (uint32_t i = 0; i < job->value.history_count; i++) {
		struct ckpt_ref *ref = &job->value.history[i];
		struct manifest *m;
		int r;

		if (keeps(job, i))
			continue;
		job_forget_kept(job, i);
		r = job_open_manifest(job->agent, job->channel, &job->id, &job->key, ref, &m);
		if (r < 0) {
			log_debug("%s: manifest %llu: %s", job->spec.name,
				  (unsigned long long)ref->seq, strerror(-r));
			continue;
		}
		learn_kept(job, i, m);
		manifest_destroy(m);
	}
}

static int compare_hashes(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct object_hash));
}

/*
 * Of what the newest manifest says is kept as shards only these are needed, whichever manifest
 * needs it: the group is named, and copies may go.
 */
static int write_named(struct job *job, uint32_t i, int fd)
{
	size_t count = job->kept[i].count;
	_cleanup_free_ struct object_hash *named = calloc(count + 1, sizeof(*named));

	if (!named)
		return -ENOMEM;
	for (size_t k = 0; k < count; k++) {
		const struct object_hash *hash = &job->kept[i].hashes[k];

		if (job->kept[0].coded_count &&
		    bsearch(hash, job->kept[0].coded, job->kept[0].coded_count, sizeof(*hash),
			    compare_hashes))
			shard_group_name(hash, &named[k]);
		else
			named[k] = *hash;
	}
	return write_full(fd, named, count * sizeof(*named));
}

/*
 * Garbage by push: holders keep what the restorable checkpoints need. Nothing is said while one
 * of their lists is unknown, for what is not named is dropped.
 */
void job_retain(struct job *job)
{
	struct ov_msg msg = { .op = OV_OBJECT_RETAIN,
			      .u.retain = { .job = job->id,
					    .token = job->value.token,
					    .upto_seq = job->value.history[0].seq } };
	_cleanup_close_ int fd = memfd_new("retain");
	uint32_t count = 0;
	int r = fd < 0 ? fd : 0;

	if (job->kept[0].coded_count)
		qsort(job->kept[0].coded, job->kept[0].coded_count, sizeof(struct object_hash),
		      compare_hashes);
	for (uint32_t i = 0; r == 0 && i < job->value.history_count; i++) {
		if (!keeps(job, i))
			return;
		r = write_named(job, i, fd);
		count += (uint32_t)job->kept[i].count;
	}
	if (r == 0)
		r = memfd_seal(fd);
	if (r < 0) {
		log_debug("%s: retain: %s", job->spec.name, strerror(-r));
		return;
	}
	msg.u.retain.count = count;
	r = ov_call(job->channel, &msg, fd, NULL, JOB_CALL_MS);
	if (r < 0)
		log_debug("%s: retain: %s", job->spec.name, strerror(-r));
	if (is_out_of_step(r, &msg))
		r = renew_channel(job->agent->main_channel, &job->channel);
}

/* An answer that is an array in a memfd: checked for its size, copied to the heap. */
static int call_array(int channel, uint32_t op, size_t item_size, uint32_t max, void **ret_items,
		      size_t *ret_count)
{
	struct ov_msg msg = { .op = op };
	_cleanup_close_ int fd = -1;
	_cleanup_free_ void *items = NULL;
	struct stat st;
	int r = ov_call(channel, &msg, -1, &fd, JOB_CALL_MS);

	if (r < 0)
		return r;
	if (msg.u.count > max)
		return -EBADMSG;
	items = calloc(msg.u.count + 1, item_size);
	if (!items)
		return -ENOMEM;
	if (msg.u.count) {
		if (fd < 0 || fstat(fd, &st) < 0 || (uint64_t)st.st_size != msg.u.count * item_size)
			return -EBADMSG;
		r = pread_full(fd, items, msg.u.count * item_size, 0);
		if (r < 0)
			return r;
	}
	*ret_items = take_ptr(items);
	*ret_count = msg.u.count;
	return 0;
}

int agent_members(int channel, struct member_info **ret_members, size_t *ret_count)
{
	struct member_info *members;
	size_t count;
	int r = call_array(channel, OV_MEMBERS, sizeof(*members), OV_MEMBERS_MAX, (void **)&members,
			   &count);

	if (r < 0)
		return r;
	for (size_t i = 0; i < count; i++) { /* names come from elsewhere: end them */
		members[i].hostname[OV_NAME_MAX - 1] = '\0';
		members[i].room[OV_NAME_MAX - 1] = '\0';
		members[i].addr[OV_ADDR_MAX - 1] = '\0';
		members[i].report.tags[OV_TAGS_MAX - 1] = '\0';
	}
	*ret_members = members;
	*ret_count = count;
	return 0;
}

int agent_list(int channel, struct job_value **ret_values, size_t *ret_count)
{
	struct job_value *values;
	size_t count;
	int r = call_array(channel, OV_JOB_LIST, sizeof(*values), OV_JOBS_MAX * OV_REPLICAS_MAX,
			   (void **)&values, &count);

	if (r < 0)
		return r;
	for (size_t i = 0; i < count; i++) {
		if (!job_value_sane(&values[i])) {
			free(values);
			return -EBADMSG;
		}
	}
	*ret_values = values;
	*ret_count = count;
	return 0;
}
