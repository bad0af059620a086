// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "agent/pack/internal.h"

void manifest_destroy(struct manifest *m)
{
	if (!m)
		return;
	if (m->pb)
		decamp__manifest__free_unpacked(m->pb, m->allocator);
	free(m->allocator);
	key_wipe(&m->head, sizeof(m->head));
	free(m);
}

/* Lengths were checked by manifest_check(). */
static void copy_text(char *to, size_t size, const char *text)
{
	snprintf(to, size, "%s", text);
}

static void fill_stats(struct manifest_head *h, const Decamp__Manifest *pb)
{
	h->stat_count = (uint32_t)pb->n_stats;
	for (uint32_t i = 0; i < h->stat_count; i++) {
		const Decamp__CkptStat *from = pb->stats[i];
		struct ckpt_stat *to = &h->stats[i];

		to->seq = from->seq;
		to->wall_ms = from->wall_ms;
		to->pause_us = from->pause_us;
		to->mem_bytes = from->mem_bytes;
		to->file_bytes = from->file_bytes;
		to->new_bytes = from->new_bytes;
		to->delta_bytes = from->delta_bytes;
		to->sent_bytes = from->sent_bytes;
		to->total_us = from->total_us;
		copy_text(to->host, sizeof(to->host), from->host);
		copy_text(to->engine, sizeof(to->engine), from->engine);
		copy_text(to->reason, sizeof(to->reason), from->reason);
		copy_text(to->pause_mostly, sizeof(to->pause_mostly), from->pause_mostly);
	}
	h->move_count = (uint32_t)pb->n_moves;
	for (uint32_t i = 0; i < h->move_count; i++) {
		const Decamp__MoveStat *from = pb->moves[i];
		struct move_stat *to = &h->moves[i];

		to->wall_ms = from->wall_ms;
		to->from_seq = from->from_seq;
		to->lost_ms = from->lost_ms;
		to->resume_ms = from->resume_ms;
		copy_text(to->from, sizeof(to->from), from->from);
		copy_text(to->to, sizeof(to->to), from->to);
		copy_text(to->reason, sizeof(to->reason), from->reason);
	}
}

void manifest_fill_head(struct manifest *m)
{
	struct manifest_head *h = &m->head;
	const Decamp__Manifest *pb = m->pb;

	memcpy(h->job.b, pb->job.data, sizeof(h->job.b));
	h->token.counter = pb->token_counter;
	memcpy(h->token.node.b, pb->token_node.data, sizeof(h->token.node.b));
	h->seq = pb->seq;
	h->wall_ms = pb->wall_ms;
	memcpy(h->host.b, pb->host.data, sizeof(h->host.b));
	copy_text(h->engine, sizeof(h->engine), pb->engine);
	copy_text(h->arch, sizeof(h->arch), pb->arch);
	copy_text(h->kernel, sizeof(h->kernel), pb->kernel);
	h->meta_json = pb->meta_json;
	h->spec_json = pb->spec_json;
	fill_stats(h, pb);
}

const struct manifest_head *manifest_head(const struct manifest *m)
{
	return &m->head;
}

size_t manifest_file_count(const struct manifest *m)
{
	return m->pb->n_files;
}

void manifest_file(const struct manifest *m, size_t index, struct manifest_file *ret_file)
{
	const Decamp__File *f = m->pb->files[index];
	const Decamp__File *content = f->hardlink ? m->pb->files[f->hardlink - 1] : f;
	struct manifest_file out = { .kind = (enum file_kind)f->kind };

	out.path = (const char *)f->path.data;
	out.st.st_mode = f->mode;
	out.st.st_uid = f->uid;
	out.st.st_gid = f->gid;
	out.st.st_size = (off_t)f->size;
	out.st.st_blksize = PACK_BLOCK;
	out.st.st_mtim.tv_sec = f->mtime_sec;
	out.st.st_mtim.tv_nsec = f->mtime_nsec;
	out.st.st_rdev = f->rdev;
	out.st.st_nlink = f->nlink;
	if (f->link_target.len > 0)
		out.link_target = (const char *)f->link_target.data;
	if (f->xattrs.len > 0) {
		out.xattrs = f->xattrs.data;
		out.xattrs_size = f->xattrs.len;
	}
	if (f->hardlink)
		out.hardlink = (const char *)content->path.data;
	if (content->content_hash.len == sizeof(out.content_hash))
		memcpy(out.content_hash, content->content_hash.data, sizeof(out.content_hash));
	*ret_file = out;
}

size_t manifest_object_count(const struct manifest *m)
{
	return m->pb->n_packs;
}

uint64_t manifest_new_bytes(const struct manifest *m)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < m->pb->n_packs; i++)
		if (m->pb->packs[i]->seq == m->pb->seq)
			bytes += m->pb->packs[i]->size;
	return bytes;
}

void manifest_object(const struct manifest *m, size_t index, struct object_hash *ret_hash,
		     uint32_t *ret_size, uint32_t *ret_holder_count, struct node_id *ret_holders)
{
	const Decamp__Pack *p = m->pb->packs[index];
	uint32_t count = (uint32_t)(p->holders.len / sizeof(struct node_id));

	memcpy(ret_hash->b, p->hash.data, sizeof(ret_hash->b));
	*ret_size = p->size;
	/* Of shards, the first: who has one says where the others are. */
	*ret_holder_count = count < OV_HOLDERS_MAX ? count : OV_HOLDERS_MAX;
	memcpy(ret_holders, p->holders.data, *ret_holder_count * sizeof(struct node_id));
}
