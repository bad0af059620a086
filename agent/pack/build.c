// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <string.h>

#include "agent/pack/internal.h"
#include "agent/util/io.h"

/* A protobuf manifest whose strings and ids are borrowed from the packer and the head. */
struct draft {
	Decamp__Manifest pb;
	Decamp__File *files;
	Decamp__Pack *packs;
	Decamp__CkptStat stats[MANIFEST_STATS_MAX];
	Decamp__MoveStat moves[MANIFEST_STATS_MAX];
	Decamp__CkptStat *stat_list[MANIFEST_STATS_MAX];
	Decamp__MoveStat *move_list[MANIFEST_STATS_MAX];
};

static void draft_destroy(struct draft *d)
{
	if (!d)
		return;
	/* Each file's three extent lists are one allocation. */
	for (size_t i = 0; d->files && i < d->pb.n_files; i++)
		free(d->files[i].extent_pack);
	free(d->pb.files);
	free(d->pb.packs);
	free(d->files);
	free(d->packs);
	free(d);
}

static void draft_destroyp(struct draft **d)
{
	draft_destroy(*d);
}

static ProtobufCBinaryData borrow(const void *bytes, size_t size)
{
	return (ProtobufCBinaryData){ .len = size, .data = (uint8_t *)bytes };
}

static ProtobufCBinaryData borrow_text(const char *text)
{
	return text ? borrow(text, strlen(text) + 1) : borrow(NULL, 0);
}

static int draft_packs(struct draft *d, struct packer *p)
{
	size_t n = 0;

	d->packs = calloc(p->pack_count + 1, sizeof(*d->packs));
	d->pb.packs = calloc(p->pack_count + 1, sizeof(*d->pb.packs));
	if (!d->packs || !d->pb.packs)
		return -ENOMEM;
	for (size_t i = 0; i < p->pack_count; i++) {
		struct pack_info *info = &p->packs[i];
		Decamp__Pack *pb = &d->packs[n];

		if (info->state == PACK_UNUSED || info->live == 0)
			continue;
		decamp__pack__init(pb);
		pb->hash = borrow(info->hash.b, sizeof(info->hash.b));
		pb->size = info->size;
		pb->seq = info->seq;
		pb->blocks = info->blocks;
		pb->deltas = info->delta_count > 0;
		pb->holders = borrow(info->holders, info->holder_count * sizeof(info->holders[0]));
		pb->data_shards = info->k;
		pb->parity_shards = info->m;
		if (info->salted)
			pb->salt = borrow(info->salt, sizeof(info->salt));
		if (info->shared_key)
			pb->shared_key = borrow(info->shared_key->b, sizeof(info->shared_key->b));
		info->manifest_index = (uint32_t)n;
		d->pb.packs[n++] = pb;
	}
	d->pb.n_packs = n;
	return 0;
}

static int draft_extents(Decamp__File *pb, const struct packer *p, const struct extent_list *list)
{
	size_t n = list->count;
	uint32_t *lists;

	if (n == 0)
		return 0;
	lists = reallocarray(NULL, n, 3 * sizeof(*lists));
	if (!lists)
		return -ENOMEM;
	pb->extent_pack = lists;
	pb->extent_slot = lists + n;
	pb->extent_count = lists + 2 * n;
	pb->n_extent_pack = pb->n_extent_slot = pb->n_extent_count = n;
	for (size_t i = 0; i < n; i++) {
		const struct extent *e = &list->items[i];

		pb->extent_pack[i] = e->pack == PACK_ZERO ? PACK_ZERO :
							    p->packs[e->pack].manifest_index;
		pb->extent_slot[i] = e->slot;
		pb->extent_count[i] = e->count;
	}
	return 0;
}

static int draft_file(Decamp__File *pb, const struct packer *p, const struct packed_file *f)
{
	bool regular = S_ISREG(f->st.st_mode);
	bool device = S_ISCHR(f->st.st_mode) || S_ISBLK(f->st.st_mode);

	decamp__file__init(pb);
	pb->kind = f->kind;
	pb->path = borrow_text(f->path);
	pb->mode = f->st.st_mode;
	pb->uid = f->st.st_uid;
	pb->gid = f->st.st_gid;
	pb->size = regular ? (uint64_t)f->st.st_size : 0;
	pb->mtime_sec = f->st.st_mtim.tv_sec;
	pb->mtime_nsec = (uint32_t)f->st.st_mtim.tv_nsec;
	pb->rdev = device ? f->st.st_rdev : 0;
	pb->nlink = (uint32_t)f->st.st_nlink;
	pb->link_target = borrow_text(f->link_target);
	pb->xattrs = borrow(f->xattrs, f->xattrs_size);
	pb->hardlink = f->hardlink;
	if (regular)
		pb->content_hash = borrow(f->content_hash, sizeof(f->content_hash));
	return draft_extents(pb, p, &f->extents);
}

static int draft_files(struct draft *d, const struct packer *p)
{
	size_t count = p->now.count;

	d->files = calloc(count + 1, sizeof(*d->files));
	d->pb.files = calloc(count + 1, sizeof(*d->pb.files));
	if (!d->files || !d->pb.files)
		return -ENOMEM;
	d->pb.n_files = count;
	for (size_t i = 0; i < count; i++) {
		int r = draft_file(&d->files[i], p, &p->now.items[i]);

		if (r < 0)
			return r;
		d->pb.files[i] = &d->files[i];
	}
	return 0;
}

static void draft_stats(struct draft *d, const struct manifest_head *head)
{
	for (uint32_t i = 0; i < head->stat_count; i++) {
		const struct ckpt_stat *s = &head->stats[i];
		Decamp__CkptStat *pb = d->stat_list[i] = &d->stats[i];

		decamp__ckpt_stat__init(pb);
		pb->seq = s->seq;
		pb->wall_ms = s->wall_ms;
		pb->pause_us = s->pause_us;
		pb->mem_bytes = s->mem_bytes;
		pb->file_bytes = s->file_bytes;
		pb->new_bytes = s->new_bytes;
		pb->delta_bytes = s->delta_bytes;
		pb->sent_bytes = s->sent_bytes;
		pb->total_us = s->total_us;
		pb->host = (char *)s->host;
		pb->engine = (char *)s->engine;
		pb->reason = (char *)s->reason;
		pb->pause_mostly = (char *)s->pause_mostly;
	}
	for (uint32_t i = 0; i < head->move_count; i++) {
		const struct move_stat *s = &head->moves[i];
		Decamp__MoveStat *pb = d->move_list[i] = &d->moves[i];

		decamp__move_stat__init(pb);
		pb->wall_ms = s->wall_ms;
		pb->from_seq = s->from_seq;
		pb->lost_ms = s->lost_ms;
		pb->resume_ms = s->resume_ms;
		pb->from = (char *)s->from;
		pb->to = (char *)s->to;
		pb->reason = (char *)s->reason;
	}
	d->pb.stats = d->stat_list;
	d->pb.n_stats = head->stat_count;
	d->pb.moves = d->move_list;
	d->pb.n_moves = head->move_count;
}

static void draft_head(struct draft *d, const struct manifest_head *head)
{
	Decamp__Manifest *pb = &d->pb;

	pb->job = borrow(head->job.b, sizeof(head->job.b));
	pb->token_counter = head->token.counter;
	pb->token_node = borrow(head->token.node.b, sizeof(head->token.node.b));
	pb->seq = head->seq;
	pb->wall_ms = head->wall_ms;
	pb->host = borrow(head->host.b, sizeof(head->host.b));
	pb->engine = (char *)head->engine;
	pb->arch = (char *)head->arch;
	pb->kernel = (char *)head->kernel;
	if (head->meta_json)
		pb->meta_json = (char *)head->meta_json;
	if (head->spec_json)
		pb->spec_json = (char *)head->spec_json;
}

/* The strings of a head are the caller's own; a missing NUL is a mistake, not an attack. */
static bool head_valid(const struct packer *p, const struct manifest_head *head,
		       const struct node_card *card)
{
	if (memcmp(&head->job, &p->job, sizeof(p->job)) != 0 || head->seq != p->seq ||
	    memcmp(&head->token, &p->token, sizeof(p->token)) != 0 ||
	    memcmp(&head->host, &card->id, sizeof(card->id)) != 0)
		return false;
	if (head->stat_count > MANIFEST_STATS_MAX || head->move_count > MANIFEST_STATS_MAX)
		return false;
	return memchr(head->engine, 0, sizeof(head->engine)) &&
	       memchr(head->arch, 0, sizeof(head->arch)) &&
	       memchr(head->kernel, 0, sizeof(head->kernel));
}

static int draft_create(struct packer *p, const struct manifest_head *head,
			struct draft **ret_draft)
{
	struct draft *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return -ENOMEM;
	decamp__manifest__init(&d->pb);
	draft_head(d, head);
	draft_stats(d, head);
	r = draft_packs(d, p);
	if (r == 0)
		r = draft_files(d, p);
	/* What could not be read back must not be committed. */
	if (r == 0 && manifest_check(&d->pb) < 0)
		r = -EINVAL;
	if (r < 0) {
		draft_destroy(d);
		return r;
	}
	*ret_draft = d;
	return 0;
}

static int store_manifest(struct packer *p, const struct manifest_head *head,
			  const struct secret_key *sign_seed, const struct node_card *card,
			  struct ckpt_ref *ref)
{
	_cleanup_(draft_destroyp) struct draft *d = NULL;
	_cleanup_free_ uint8_t *bytes = NULL;
	struct pack_object *objects;
	size_t size, n;
	int r;

	r = draft_create(p, head, &d);
	if (r < 0)
		return r;
	r = manifest_seal(&d->pb, &p->job_key, sign_seed, card, &bytes, &size);
	if (r < 0)
		return r;
	n = d->pb.n_packs;
	objects = calloc(n + 1, sizeof(*objects));
	if (!objects)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		memcpy(objects[i].hash.b, d->packs[i].hash.data, sizeof(objects[i].hash.b));
		objects[i].size = d->packs[i].size;
	}
	ref->manifest_size = (uint32_t)size;
	r = packer_store_object(p, bytes, ref->manifest_size, &ref->manifest, &ref->holder_count,
				ref->holders);
	if (r < 0) {
		free(objects);
		return r;
	}
	objects[n] = (struct pack_object){ ref->manifest, ref->manifest_size };
	for (size_t i = 0; i < p->pack_count; i++)
		p->packs[i].coded_said = p->packs[i].k != 0;
	free(p->objects);
	p->objects = objects;
	p->object_count = n + 1;
	p->counts.packs = (uint32_t)n;
	return 0;
}

int packer_finish(struct packer *p, const struct manifest_head *head,
		  const struct secret_key *sign_seed, const struct node_card *card,
		  struct ckpt_ref *ret_ref)
{
	struct ckpt_ref ref = { .seq = head->seq, .wall_ms = head->wall_ms };
	int r;

	if (!p->active)
		return -EINVAL;
	r = p->failed;
	if (r == 0 && !head_valid(p, head, card))
		r = -EINVAL;
	if (r == 0)
		r = packer_flush(p);
	if (r == 0)
		r = packer_count_live(p, &p->now);
	if (r == 0)
		r = store_manifest(p, head, sign_seed, card, &ref);
	if (r < 0) {
		packer_abort(p);
		return r;
	}
	file_list_deinit(&p->last);
	p->last = p->now;
	memset(&p->now, 0, sizeof(p->now));
	packer_retire(p);
	packer_abort(p); /* nothing is open any more: frees the buffers */
	*ret_ref = ref;
	return 0;
}
