// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A new version of a folder: what is there is listed at one instant, then sent, in parts. A file that
 * somebody opens for writing meanwhile, or had open, stays as it was in the version before.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <openssl/evp.h>
#include <string.h>
#include <time.h>

#include "agent/cli/version.h"
#include "agent/cli/worktree.h"
#include "agent/pack/keys.h"
#include "agent/util/io.h"

enum {
	PART = 128 << 10,	/* bytes of one message */
	BATCH_BYTES = 48 << 10, /* of names in one message */
	BATCH_COUNT = 1000,
	TRIES = 4,	    /* while names change under our eyes; the last one holds writers back */
	TICK_NS = 20000000, /* more than the clock of file systems takes for a step */
	ASK_TIMEOUT_S = 60, /* decampd asks the register, for 20 s */
	SEND_TIMEOUT_S = 600, /* it sends what it was given */
};

/* What becomes of one name. */
struct plan {
	struct work_entry *now;
	struct work_entry *old; /* in the version before, or NULL */
	bool held;		/* it stays what it was there */
};

/* One upload. */
struct commit {
	struct worktree *w;
	uint64_t sync_ino;
	bool sync, locked; /* locked: the worktree's lock is held all the time */
	int64_t upload;
	struct work_list next; /* the index when it is committed */
	int64_t files, bytes;
	struct cli_reply reply; /* of the last request */
	struct json_object *batch;
	struct plan *batched;
	size_t batch_count, batch_bytes;
	struct cli_checkpoint last; /* the version before; opened when it is needed */
	bool last_open;
	struct work_list before; /* of it, where the index is of another one */
	bool has_before, need_before;
	struct chunker chunker;
	uint8_t *window, *part;
};

/* ---- requests ---- */

static int errno_of_reply(const struct cli_reply *reply)
{
	const char *code = js_text(js_member(reply->json, "error"), "code", "");

	if (!strcmp(code, "stale") || !strcmp(code, "no-such-folder") || !strcmp(code, "not-here"))
		return -ESTALE;
	if (!strcmp(code, "no-room"))
		return -ENOSPC;
	return reply->json ? -EIO : -ENOTCONN;
}

static int ask(struct commit *c, const char *verb, struct json_object *body_take)
{
	bool sends = !strcmp(verb, "folder-add") || !strcmp(verb, "folder-commit");
	struct cli_request request = { .verb = verb,
				       .body = body_take,
				       .timeout_s = sends ? SEND_TIMEOUT_S : ASK_TIMEOUT_S };
	int r;

	js_put_text(body_take, "folder", c->w->id);
	if (c->upload)
		js_put_int(body_take, "upload", c->upload);
	cli_reply_done(&c->reply);
	r = cli_send(c->w->cli, &request, &c->reply);
	json_object_put(body_take);
	return r == CLI_OK ? 0 : errno_of_reply(&c->reply);
}

static char *base64(const uint8_t *bytes, size_t size)
{
	char *text = malloc((size + 2) / 3 * 4 + 1);

	if (!text)
		cli_out_of_memory();
	EVP_EncodeBlock((unsigned char *)text, bytes, (int)size);
	return text;
}

static struct json_object *entry_body(const struct work_entry *e)
{
	struct json_object *json = js_new();

	js_put_text(json, "path", e->path);
	js_put_text(json, "type", S_ISDIR(e->mode) ? "dir" : S_ISLNK(e->mode) ? "link" : "file");
	js_put_int(json, "mode", e->mode & 0777);
	js_put_int(json, "mtime_ns", e->mtime_ns);
	js_put_text(json, "target", e->target);
	if (!S_ISREG(e->mode))
		return json;
	js_put_int(json, "size", e->stored);
	if (e->chunks) {
		js_put_int(json, "content_size", e->size);
		js_put_int(json, "chunks", e->chunks);
	}
	return json;
}

static int add_now(struct commit *c, struct json_object *entry_take)
{
	struct json_object *body = js_new(), *entries = json_object_new_array();

	json_object_array_add(entries, entry_take);
	json_object_object_add(body, "entries", entries);
	return ask(c, "folder-add", body);
}

static int remember(struct commit *c, const struct work_entry *e)
{
	struct work_entry copy = *e;

	copy.path = strdup(e->path);
	copy.target = e->target ? strdup(e->target) : NULL;
	if (!copy.path || (e->target && !copy.target))
		cli_out_of_memory();
	c->files++;
	c->bytes += e->size;
	return work_list_add_take(&c->next, &copy);
}

/* ---- content ---- */

/* What is stored of a file, on its way in parts. */
struct sender {
	struct commit *c;
	size_t used;
	int64_t sent;
};

static int send_part(struct sender *s)
{
	struct json_object *body = js_new();
	_cleanup_free_ char *text = base64(s->c->part, s->used);
	int r;

	js_put_int(body, "offset", s->sent);
	js_put_text(body, "bytes", text);
	r = ask(s->c, "folder-write", body);
	s->sent += (int64_t)s->used;
	s->used = 0;
	return r;
}

static int put(struct sender *s, const void *bytes, size_t size)
{
	static const uint8_t zeros[CHUNK_ALIGN];
	int r = 0;

	while (r == 0 && size > 0) {
		size_t room = PART - s->used, n = size < room ? size : room;

		if (!bytes && n > sizeof(zeros))
			n = sizeof(zeros);
		memcpy(s->c->part + s->used, bytes ? bytes : zeros, n);
		bytes = bytes ? (const uint8_t *)bytes + n : NULL;
		s->used += n;
		size -= n;
		if (s->used == PART)
			r = send_part(s);
	}
	return r;
}

static int put_table(struct sender *s, const uint32_t *sizes, uint32_t count)
{
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < count; i++) {
		const uint8_t le[4] = { (uint8_t)sizes[i], (uint8_t)(sizes[i] >> 8),
					(uint8_t)(sizes[i] >> 16), (uint8_t)(sizes[i] >> 24) };

		r = put(s, le, sizeof(le));
	}
	return r;
}

/* Cuts what fd holds; a file of one chunk goes as it is. -ESTALE: it is shorter than it was. */
static int send_content(struct sender *s, int fd, struct work_entry *e)
{
	_cleanup_free_ uint32_t *sizes = NULL;
	uint32_t count = 0, room = 0;
	size_t have = 0;
	int64_t read_to = 0;
	int r = 0;

	while (r == 0 && (have > 0 || read_to < e->size)) {
		size_t want = CHUNK_MAX - have, n;

		if ((int64_t)want > e->size - read_to)
			want = (size_t)(e->size - read_to);
		r = pread_full(fd, s->c->window + have, want, read_to);
		if (r < 0)
			return r == -ENODATA ? -ETXTBSY : r;
		have += want;
		read_to += (int64_t)want;
		n = chunker_cut(&s->c->chunker, s->c->window, have);
		if (count == room) {
			room = room ? 2 * room : 64;
			sizes = reallocarray(sizes, room, sizeof(*sizes));
			if (!sizes)
				cli_out_of_memory();
		}
		sizes[count++] = (uint32_t)n;
		r = put(s, s->c->window, n);
		if (r == 0 && (count > 1 || n < have || read_to < e->size))
			r = put(s, NULL, chunk_padded(n) - n);
		memmove(s->c->window, s->c->window + n, have - n);
		have -= n;
	}
	e->chunks = count > 1 ? count : 0;
	if (r == 0 && count > 1)
		r = put_table(s, sizes, count);
	e->stored = s->sent + (int64_t)s->used;
	return r;
}

/* -ETXTBSY: somebody writes it; -ECHILD: another file has that name, or none. */
static int still_same(struct commit *c, int fd, const struct work_entry *e)
{
	struct worktree *w = c->w;
	struct stat st;
	bool held;
	int r;

	if (!c->locked)
		pthread_mutex_lock(&w->lock);
	held = worktree_is_held(w, e->ino) && e->ino != c->sync_ino;
	r = fstat(fd, &st) < 0 ? -errno : 0;
	if (!c->locked)
		pthread_mutex_unlock(&w->lock);
	if (r < 0 || st.st_ino != e->ino)
		return r < 0 ? r : -ECHILD;
	return held || st.st_size != e->size ||
			       st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec !=
				       e->mtime_ns ||
			       st.st_ctim.tv_sec * INT64_C(1000000000) + st.st_ctim.tv_nsec !=
				       e->ctime_ns ?
		       -ETXTBSY :
		       0;
}

static int add_fresh(struct commit *c, struct sender *s, const struct work_entry *e)
{
	struct json_object *entry = entry_body(e);
	_cleanup_free_ char *text = NULL;

	if (s->sent == 0) { /* all of it fits beside its name */
		text = base64(c->part, s->used);
		js_put_text(entry, "bytes", text);
	} else {
		js_put_int(entry, "fresh", 1);
	}
	return add_now(c, entry);
}

static int send_file(struct commit *c, struct work_entry *e)
{
	_cleanup_close_ int fd =
		openat(c->w->tree_fd, e->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct sender s = { .c = c };
	int r;

	if (fd < 0)
		return errno == ENOENT || errno == ELOOP || errno == ENOTDIR ? -ECHILD : -errno;
	r = still_same(c, fd, e);
	if (r == 0)
		r = send_content(&s, fd, e);
	if (r == 0 && s.sent > 0 && s.used > 0)
		r = send_part(&s);
	if (r == 0)
		r = still_same(c, fd, e);
	if (r == 0)
		r = add_fresh(c, &s, e);
	return r < 0 ? r : remember(c, e);
}

/* Its content in the version before, from there: decampd has been started anew, and cannot know. */
static int send_old(struct commit *c, const struct work_entry *old)
{
	_cleanup_free_ char *path = NULL;
	_cleanup_free_ uint8_t *bytes = NULL;
	const struct export_file *f = NULL;
	struct sender s = { .c = c };
	struct cli_reply reply;
	int r = 0;

	if (!c->last_open) {
		r = checkpoint_open_version(c->w->cli, c->w->id, c->w->index_manifest, &c->last,
					    &reply);
		cli_reply_done(&reply);
		if (r != CLI_OK)
			return -ENODATA;
		c->last_open = true;
	}
	bytes = malloc(PART);
	if (!bytes || asprintf(&path, "/%s", old->path) < 0)
		cli_out_of_memory();
	f = export_find(&c->last.set, FILE_UPPER, path);
	if (!f || (int64_t)f->size != old->stored)
		return -ENODATA;
	for (uint64_t at = 0; r == 0 && at < f->size; at += PART) {
		size_t n = f->size - at < PART ? (size_t)(f->size - at) : PART;

		r = export_read(&c->last.set, f, at, bytes, n) < 0 ? -ENODATA : 0;
		if (r == 0)
			r = put(&s, bytes, n);
	}
	if (r == 0 && s.sent > 0 && s.used > 0)
		r = send_part(&s);
	return r < 0 ? r : add_fresh(c, &s, old);
}

/* ---- entries ---- */

static int send_held(struct commit *c, struct work_entry *old)
{
	int r;

	if (!old || !S_ISREG(old->mode))
		return 0; /* in no version before it is closed */
	r = send_old(c, old);
	return r < 0 ? r : remember(c, old);
}

static int send_fresh(struct commit *c, const struct plan *p)
{
	struct work_entry e = *p->now;
	int r = send_file(c, &e);

	/* What fsync(2) asked for is in the version, or it fails. */
	if (r == -ETXTBSY && e.ino == c->sync_ino)
		return -ECHILD;
	if (r != -ETXTBSY)
		return r;
	/* Of what the newest version has of it nothing is known: from the start, with that. */
	if (!c->has_before && !c->w->index_sure)
		return c->need_before = true, -ECHILD;
	return send_held(c, c->has_before ? work_list_find(&c->before, e.path) : p->old);
}

/* Those of which decampd knows no content are sent whole. */
static int flush(struct commit *c)
{
	struct json_object *body = js_new(), *unknown;
	size_t count = c->batch_count, next = 0;
	int r;

	json_object_object_add(body, "entries", take_ptr(c->batch));
	c->batch = json_object_new_array();
	c->batch_count = c->batch_bytes = 0;
	r = ask(c, "folder-add", body);
	if (r < 0)
		return r;
	unknown = json_object_get(js_member(c->reply.json, "unknown"));
	for (size_t i = 0; r == 0 && i < count; i++) {
		const struct plan *p = &c->batched[i];

		if (next < js_length(unknown) &&
		    json_object_get_int64(js_item(unknown, next)) == (int64_t)i) {
			next++;
			r = p->held ? send_held(c, p->old) : send_fresh(c, p);
		} else {
			r = remember(c, p->held ? p->old : p->now);
		}
	}
	json_object_put(unknown);
	return r;
}

static int add_later(struct commit *c, const struct plan *p)
{
	const struct work_entry *e = p->held ? p->old : p->now;

	json_object_array_add(c->batch, entry_body(e));
	c->batched[c->batch_count++] = *p;
	c->batch_bytes += strlen(e->path) + (e->target ? strlen(e->target) : 0) + 160;
	return c->batch_bytes >= BATCH_BYTES || c->batch_count == BATCH_COUNT ? flush(c) : 0;
}

static bool is_held(const struct commit *c, const struct work_entry *e)
{
	return S_ISREG(e->mode) && e->held && e->ino != c->sync_ino;
}

static int send_entry(struct commit *c, struct work_entry *e)
{
	struct plan p = { .now = e, .old = work_list_find(&c->w->index, e->path) };
	bool same = p.old && work_entry_same(p.old, e);

	if (p.old && !S_ISREG(p.old->mode) && S_ISREG(e->mode))
		p.old = NULL;
	if (!S_ISREG(e->mode))
		return add_later(c, &p);
	if (same) {
		e->stored = p.old->stored;
		e->chunks = p.old->chunks;
		return add_later(c, &p);
	}
	if (!is_held(c, e))
		return send_fresh(c, &p);
	p.held = true;
	if (c->has_before)
		return send_held(c, work_list_find(&c->before, e->path));
	return p.old ? add_later(c, &p) : 0;
}

/* Is there anything that the version before does not say? */
static bool is_new(const struct commit *c, const struct work_list *list)
{
	size_t known = 0;

	for (size_t i = 0; i < list->count; i++) {
		const struct work_entry *e = &list->items[i],
					*old = work_list_find(&c->w->index, e->path);

		if (old)
			known++;
		if (is_held(c, e) && (!old || S_ISREG(old->mode)))
			continue;
		if (!old || (S_ISDIR(e->mode) ? old->mode != e->mode : !work_entry_same(old, e)))
			return true;
	}
	return known != c->w->index.count;
}

/* ---- the whole ---- */

static int begin(struct commit *c)
{
	struct json_object *body = js_new();
	int r;

	js_put_int(body, "base", c->w->index_seq);
	js_put_text(body, "copy", c->w->copy);
	r = ask(c, "folder-begin", body);
	c->upload = r == 0 ? js_int(c->reply.json, "upload", 0) : 0;
	return r;
}

/* It was made: what an answer tells of the newest version is of `next`. */
static void take_next(struct commit *c)
{
	struct worktree *w = c->w;

	w->index_sure = true;
	work_list_deinit(&w->index);
	w->index = w->next;
	w->next = (struct work_list){ 0 };
	w->index_seq = js_int(c->reply.json, "seq", 0);
	snprintf(w->index_manifest, sizeof(w->index_manifest), "%s",
		 js_text(c->reply.json, "manifest", ""));
	/* Without it the next mount asks whether `next` was made. */
	if (worktree_save_index(w) == 0)
		worktree_drop_next(w);
	w->next_stamp[0] = '\0';
}

/* Was the commit made whose answer never came? Until that is known nothing else can follow. */
static int settle_next(struct commit *c)
{
	struct worktree *w = c->w;
	struct json_object *body;
	int r;

	if (!*w->next_stamp)
		return 0;
	body = js_new();
	js_put_text(body, "stamp", w->next_stamp);
	r = ask(c, "folder-made", body);
	if (r < 0)
		return r;
	if (js_bool(c->reply.json, "made", false)) {
		take_next(c);
	} else {
		w->index_sure = js_int(c->reply.json, "seq", -1) == w->index_seq;
		worktree_drop_next(w);
	}
	return 0;
}

static int stamp_next(struct commit *c)
{
	struct worktree *w = c->w;
	uint8_t bytes[16];
	int r = random_bytes(bytes, sizeof(bytes));

	if (r < 0)
		return r;
	hex_encode(bytes, sizeof(bytes), w->next_stamp);
	work_list_sort(&c->next);
	work_list_deinit(&w->next);
	w->next = c->next;
	c->next = (struct work_list){ 0 };
	/* A home that is full is no reason to send nothing. */
	(void)!worktree_save_next(w);
	return 0;
}

static int finish(struct commit *c)
{
	struct worktree *w = c->w;
	struct json_object *body;
	int r = stamp_next(c);

	if (r < 0)
		return r;
	body = js_new();
	js_put_text(body, "stamp", w->next_stamp);
	js_put_bool(body, "sync", c->sync);
	js_put_int(body, "files", c->files);
	js_put_int(body, "bytes", c->bytes);
	w->index_sure = false;
	r = ask(c, "folder-commit", body);
	if (r == 0)
		take_next(c);
	return r;
}

static int add_before(struct work_list *list, const struct export_file *f)
{
	struct work_entry e = { .mode = S_IFREG | (f->mode & 0777),
				.size = (int64_t)version_file_size(f),
				.mtime_ns = f->mtime_ms * 1000000,
				.stored = (int64_t)f->size,
				.chunks = f->chunks };

	if (f->kind != FILE_UPPER || f->type != EXPORT_FILE)
		return 0;
	e.path = strdup(f->path + 1);
	if (!e.path)
		cli_out_of_memory();
	return work_list_add_take(list, &e);
}

/* The index is lost, or older than the newest version: what is open stays as it is there. */
static int learn_before(struct commit *c)
{
	struct worktree *w = c->w;
	struct cli_reply reply;
	char manifest[65];
	int64_t seq;
	int r = worktree_newest(w->cli, w->id, &seq, manifest);

	if (r < 0)
		return -ENODATA;
	w->index_sure = seq == w->index_seq;
	if (w->index_sure)
		return 0;
	c->has_before = true;
	if (!seq)
		return 0;
	r = checkpoint_open_version(w->cli, w->id, manifest, &c->last, &reply);
	cli_reply_done(&reply);
	if (r != CLI_OK)
		return -ENODATA;
	c->last_open = true;
	r = 0;
	for (size_t i = 0; r == 0 && i < c->last.set.count; i++)
		r = add_before(&c->before, &c->last.set.files[i]);
	work_list_sort(&c->before);
	return r;
}

static bool needs_before(const struct commit *c, const struct work_list *list)
{
	if (c->need_before)
		return true;
	for (size_t i = 0; i < list->count; i++)
		if (is_held(c, &list->items[i]))
			return true;
	return false;
}

static int send_all(struct commit *c, struct work_list *list)
{
	int r = begin(c);

	if (r == 0 && !c->w->index_sure && needs_before(c, list))
		r = learn_before(c);

	for (size_t i = 0; r == 0 && i < list->count; i++)
		r = send_entry(c, &list->items[i]);
	if (r == 0 && c->batch_count > 0)
		r = flush(c);
	return r < 0 ? r : finish(c);
}

/* The lock is held. Times of a later change differ from those that are seen now. */
static int look(struct worktree *w, struct work_list *ret_list)
{
	const struct timespec tick = { .tv_nsec = TICK_NS };
	int r;

	nanosleep(&tick, NULL);
	r = worktree_walk(w, ret_list);
	for (size_t i = 0; r == 0 && i < ret_list->count; i++)
		ret_list->items[i].held = worktree_is_held(w, ret_list->items[i].ino);
	return r;
}

static int try_commit(struct commit *c, uint64_t *ret_changes)
{
	struct worktree *w = c->w;
	struct work_list list = { 0 };
	int r = worktree_sync(w, ret_changes);

	if (r < 0)
		return r;
	r = settle_next(c);
	if (r < 0)
		return r;
	pthread_mutex_lock(&w->lock);
	r = look(w, &list);
	if (!c->locked)
		pthread_mutex_unlock(&w->lock);
	if (r == 0 && is_new(c, &list))
		r = send_all(c, &list);
	if (c->locked)
		pthread_mutex_unlock(&w->lock);
	work_list_deinit(&list);
	return r;
}

static const char *reason_of(const struct commit *c, int r)
{
	const char *told = js_text(js_member(c->reply.json, "error"), "reason", c->reply.reason);

	switch (r) {
	case -E2BIG:
		return "it has too many files, or names too long in all";
	case -EFBIG:
		return "a file is too large";
	case -ENAMETOOLONG:
		return "a path is too long, or too deep";
	case -ENODATA:
		return "a file is open, and what the newest version has of it cannot be read now";
	case -ECHILD:
		return "its names change all the time";
	default:
		return *told ? told : strerror(-r);
	}
}

static void note(struct commit *c, int r, uint64_t changes)
{
	struct worktree *w = c->w;
	uint64_t wait_s;

	pthread_mutex_lock(&w->lock);
	w->problem[0] = '\0';
	if (r == 0) {
		w->sent_changes = changes;
		w->dirty_ms = w->changes != changes ? work_now_ms() : 0;
		w->failures = 0;
		w->retry_ms = 0;
	} else {
		wait_s = UINT64_C(2) << (w->failures < 9 ? w->failures : 9);
		w->failures++;
		w->retry_ms = work_now_ms() +
			      (wait_s < WORK_RETRY_MAX_S ? wait_s : WORK_RETRY_MAX_S) * 1000;
		snprintf(w->problem, sizeof(w->problem), "%s", reason_of(c, r));
		w->read_only |= r == -ESTALE;
	}
	worktree_save_status(w);
	pthread_mutex_unlock(&w->lock);
}

static void clean(struct commit *c)
{
	cli_reply_done(&c->reply);
	work_list_deinit(&c->next);
	json_object_put(c->batch);
	c->batch = NULL;
	if (c->last_open)
		checkpoint_done(&c->last);
	c->last_open = c->has_before = false;
	work_list_deinit(&c->before);
	c->batch_count = c->batch_bytes = 0;
	c->upload = c->files = c->bytes = 0;
}

int worktree_commit(struct worktree *w, uint64_t sync_ino, bool sync)
{
	struct commit c = { .w = w, .sync_ino = sync_ino, .sync = sync };
	uint64_t changes = 0;
	int r = -ECHILD;

	if (w->read_only)
		return -EROFS;
	chunker_init(&c.chunker);
	c.window = malloc(CHUNK_MAX);
	c.part = malloc(PART);
	c.batched = calloc(BATCH_COUNT, sizeof(*c.batched));
	if (!c.window || !c.part || !c.batched)
		cli_out_of_memory();
	pthread_mutex_lock(&w->commit_lock);
	for (int i = 1; i <= TRIES && r == -ECHILD; i++) {
		clean(&c);
		c.batch = json_object_new_array();
		c.locked = i == TRIES;
		r = try_commit(&c, &changes);
	}
	note(&c, r, changes);
	pthread_mutex_unlock(&w->commit_lock);
	clean(&c);
	free(c.window);
	free(c.part);
	free(c.batched);
	return r;
}
