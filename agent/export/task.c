// SPDX-License-Identifier: LGPL-2.1-or-later
/* The images of one process, and of what it shares with others. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "agent/export/internal.h"
#include "agent/native/ipc.pb-c.h"

enum { MTYPE_X86_64 = 1, GPREGS_NATIVE = 1 };

int export_fail(char reason[EXPORT_REASON_MAX], int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(reason, EXPORT_REASON_MAX, fmt, ap);
	va_end(ap);
	return r;
}

static int compare_named(const void *a, const void *b)
{
	const struct export_file *x = a, *y = b;

	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return strcmp(x->path, y->path);
}

void export_files_sort(struct export_file *files, size_t count)
{
	if (count > 1)
		qsort(files, count, sizeof(*files), compare_named);
}

const struct export_file *export_find(const struct export_set *set, enum file_kind kind,
				      const char *path)
{
	struct export_file key = { .kind = kind, .path = (char *)(uintptr_t)path };

	return set->count ? bsearch(&key, set->files, set->count, sizeof(key), compare_named) :
			    NULL;
}

int export_read(const struct export_set *set, const struct export_file *file, uint64_t offset,
		void *ret_bytes, size_t size)
{
	uint8_t *to = ret_bytes;
	int r = 0;

	if (offset > file->size || size > file->size - offset)
		return -EINVAL;
	while (size > 0 && r == 0) {
		size_t n = size < EXPORT_READ_MAX ? size : EXPORT_READ_MAX;

		r = set->read(set->ctx, file, offset, to, n);
		offset += n;
		to += n;
		size -= n;
	}
	return r;
}

void export_files_free(struct export_file *files, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		free(files[i].path);
		free(files[i].target);
		free(files[i].hardlink);
	}
	free(files);
}

int task_image(const struct export_set *set, const char *name, uint8_t **ret_bytes,
	       size_t *ret_size, char *reason)
{
	const struct export_file *file = export_find(set, FILE_IMAGE, name);
	_cleanup_free_ uint8_t *bytes = NULL;
	int r;

	if (!file)
		return -ENOENT;
	if (file->size > IMAGE_BYTES_MAX)
		return export_fail(reason, -EFBIG, "%s is too large", name);
	bytes = calloc(1, file->size + 1);
	if (!bytes)
		return -ENOMEM;
	r = export_read(set, file, 0, bytes, file->size);
	if (r < 0)
		return r;
	*ret_bytes = take_ptr(bytes);
	*ret_size = file->size;
	return 0;
}

/* Calls fn for each record of an image; fn takes the message over. */
static int each_record(const struct export_set *set, const char *name, enum image_kind kind,
		       const ProtobufCMessageDescriptor *type, char *reason,
		       int (*fn)(void *ctx, ProtobufCMessage *message_take), void *ctx)
{
	_cleanup_free_ uint8_t *bytes = NULL;
	ProtobufCMessage *message;
	struct image i;
	size_t size;
	int r = task_image(set, name, &bytes, &size, reason);

	if (r == 0)
		r = image_begin(bytes, size, kind, &i);
	while (r == 0) {
		r = image_next(&i, type, &message);
		if (r < 0 || !message)
			break;
		r = fn(ctx, message);
	}
	return r;
}

static int drop(void *message, int r)
{
	protobuf_c_message_free_unpacked(message, NULL);
	return r;
}

/* ---- processes ---- */

struct pid_list {
	pid_t *pids;
	size_t count, room;
};

static int add_pid(void *ctx, ProtobufCMessage *message_take)
{
	struct pid_list *list = ctx;
	pid_t pid = (pid_t)((const NatCore__Pstree *)message_take)->pid;

	if (list->count == list->room) {
		size_t room = list->room ? 2 * list->room : 16;
		pid_t *bigger = reallocarray(list->pids, room, sizeof(*bigger));

		if (!bigger)
			return drop(message_take, -ENOMEM);
		list->pids = bigger;
		list->room = room;
	}
	list->pids[list->count++] = pid;
	return drop(message_take, 0);
}

int export_pids(const struct export_set *set, pid_t **ret_pids, size_t *ret_count,
		char reason[EXPORT_REASON_MAX])
{
	struct pid_list list = { 0 };
	int r;

	reason[0] = '\0';
	r = each_record(set, "pstree.img", IMAGE_PSTREE, &nat_core__pstree__descriptor, reason,
			add_pid, &list);
	if (r == 0 && list.count == 0)
		r = -EBADMSG;
	if (r == -ENOENT)
		r = export_fail(
			reason, -EOPNOTSUPP,
			"it holds files only: the job had ended, or its images are not yours");
	if (r < 0) {
		free(list.pids);
		return r;
	}
	*ret_pids = list.pids;
	*ret_count = list.count;
	return 0;
}

struct tree_search {
	uint32_t pid;
	NatCore__Pstree *found;
};

static int match_pid(void *ctx, ProtobufCMessage *message_take)
{
	struct tree_search *s = ctx;
	NatCore__Pstree *p = (NatCore__Pstree *)message_take;

	if (s->found || p->pid != s->pid)
		return drop(p, 0);
	s->found = p;
	return 0;
}

static int load_tree(struct task *t, pid_t pid)
{
	struct tree_search s = { .pid = (uint32_t)pid };
	int r = each_record(t->set, "pstree.img", IMAGE_PSTREE, &nat_core__pstree__descriptor,
			    t->reason, match_pid, &s);

	t->tree = s.found;
	if (r < 0)
		return r;
	if (!t->tree)
		return export_fail(t->reason, -ESRCH, "it has no process %d", pid);
	if (t->tree->n_threads == 0 || t->tree->n_threads > CORE_THREADS_MAX ||
	    t->tree->threads[0] != t->tree->pid)
		return -EBADMSG;
	return 0;
}

/* ---- threads ---- */

static int keep_first(void *ctx, ProtobufCMessage *message_take)
{
	ProtobufCMessage **slot = ctx;

	if (*slot)
		return drop(message_take, 0);
	*slot = message_take;
	return 0;
}

static int check_thread(const struct task *t, const NatCore__Core *core, uint32_t tid)
{
	if (core->mtype != MTYPE_X86_64)
		return export_fail(t->reason, -EOPNOTSUPP,
				   "it was taken on another processor than x86-64 (CRIU's number "
				   "for it is %u): no core can be made of that yet",
				   core->mtype);
	if (core->task && core->task->state == NAT_CORE__TASK_STATE__DEAD)
		return export_fail(t->reason, -EOPNOTSUPP,
				   "process %u had ended and was not waited for: it has no memory",
				   tid);
	if (!core->thread_info || !core->thread)
		return -EBADMSG;
	if (core->thread_info->gpregs->has_mode && core->thread_info->gpregs->mode != GPREGS_NATIVE)
		return export_fail(t->reason, -EOPNOTSUPP,
				   "process %u runs 32-bit code: no core can be made of that yet",
				   tid);
	return 0;
}

static int load_threads(struct task *t)
{
	size_t count = t->tree->n_threads;
	int r = 0;

	t->threads = calloc(count, sizeof(*t->threads));
	if (!t->threads)
		return -ENOMEM;
	t->thread_count = count;
	for (size_t i = 0; i < count && r == 0; i++) {
		ProtobufCMessage *message = NULL;
		char name[64];

		snprintf(name, sizeof(name), "core-%u.img", t->tree->threads[i]);
		r = each_record(t->set, name, IMAGE_CORE, &nat_core__core__descriptor, t->reason,
				keep_first, &message);
		t->threads[i] = (NatCore__Core *)message;
		if (r == 0 && !message)
			r = -EBADMSG;
		if (r == 0)
			r = check_thread(t, t->threads[i], t->tree->threads[i]);
	}
	return r == 0 && !t->threads[0]->task ? -EBADMSG : r;
}

/* ---- memory ---- */

static bool vma_valid(const NatMm__Vma *v)
{
	return v->start < v->end && v->start % EXPORT_PAGE == 0 && v->end % EXPORT_PAGE == 0 &&
	       v->pgoff % EXPORT_PAGE == 0 && v->pgoff <= UINT64_MAX - (v->end - v->start);
}

static int load_mm(struct task *t)
{
	ProtobufCMessage *message = NULL;
	uint64_t last = 0;
	char name[64];
	int r;

	snprintf(name, sizeof(name), "mm-%u.img", t->tree->pid);
	r = each_record(t->set, name, IMAGE_MM, &nat_mm__mm__descriptor, t->reason, keep_first,
			&message);
	t->mm = (NatMm__Mm *)message;
	if (r < 0)
		return r;
	if (!t->mm)
		return -EBADMSG;
	for (size_t i = 0; i < t->mm->n_vmas; i++) {
		const NatMm__Vma *v = t->mm->vmas[i];

		if (v->status & VMA_IS_GUARD)
			continue;
		if (!vma_valid(v) || v->start < last)
			return -EBADMSG;
		last = v->end;
	}
	snprintf(name, sizeof(name), "pagemap-%u.img", t->tree->pid);
	return page_map_load(t->set, name, &t->pages, t->reason);
}

/* ---- what is mapped ---- */

struct inode_list {
	NatIpc__MemfdInode **items;
	size_t count, room;
};

static int add_inode(void *ctx, ProtobufCMessage *message_take)
{
	struct inode_list *list = ctx;

	if (list->count == list->room) {
		size_t room = list->room ? 2 * list->room : 16;
		NatIpc__MemfdInode **bigger = reallocarray(list->items, room, sizeof(*bigger));

		if (!bigger)
			return drop(message_take, -ENOMEM);
		list->items = bigger;
		list->room = room;
	}
	list->items[list->count++] = (NatIpc__MemfdInode *)message_take;
	return 0;
}

struct file_walk {
	struct task *t;
	struct inode_list inodes;
	size_t room;
};

static int add_file(void *ctx, ProtobufCMessage *message_take)
{
	struct file_walk *w = ctx;
	struct task *t = w->t;
	const NatFiles__File *f = (const NatFiles__File *)message_take;
	struct task_file file = { .id = f->id };

	if (!f->reg && !f->memfd)
		return drop(message_take, 0);
	if (f->memfd) {
		file.is_memfd = true;
		for (size_t i = 0; i < w->inodes.count; i++)
			if (w->inodes.items[i]->inode_id == f->memfd->inode_id)
				file.shmid = w->inodes.items[i]->shmid;
	}
	if (t->file_count == w->room) {
		size_t room = w->room ? 2 * w->room : 64;
		struct task_file *bigger = reallocarray(t->files, room, sizeof(*bigger));

		if (!bigger)
			return drop(message_take, -ENOMEM);
		t->files = bigger;
		w->room = room;
	}
	file.name = strdup(f->reg ? f->reg->name : "");
	if (!file.name)
		return drop(message_take, -ENOMEM);
	t->files[t->file_count++] = file;
	return drop(message_take, 0);
}

static int compare_files(const void *a, const void *b)
{
	uint32_t x = ((const struct task_file *)a)->id, y = ((const struct task_file *)b)->id;

	return x < y ? -1 : x > y;
}

static int load_files(struct task *t)
{
	struct file_walk w = { .t = t };
	int r = each_record(t->set, "memfd.img", IMAGE_MEMFD, &nat_ipc__memfd_inode__descriptor,
			    t->reason, add_inode, &w.inodes);

	if (r == 0 || r == -ENOENT)
		r = each_record(t->set, "files.img", IMAGE_FILES, &nat_files__file__descriptor,
				t->reason, add_file, &w);
	for (size_t i = 0; i < w.inodes.count; i++)
		drop(w.inodes.items[i], 0);
	free(w.inodes.items);
	if (t->file_count > 1)
		qsort(t->files, t->file_count, sizeof(*t->files), compare_files);
	return r;
}

const struct task_file *task_file_of(const struct task *t, const NatMm__Vma *v)
{
	struct task_file key = { .id = (uint32_t)v->shmid };

	if (!(v->status & (VMA_IS_FILE_PRIVATE | VMA_IS_FILE_SHARED | VMA_IS_MEMFD)) ||
	    v->shmid > UINT32_MAX || t->file_count == 0)
		return NULL;
	return bsearch(&key, t->files, t->file_count, sizeof(key), compare_files);
}

static int shared_map(struct task *t, uint32_t shmid, const struct page_map **ret_map)
{
	struct page_map map = { 0 }, *bigger;
	char name[64];
	int r;

	for (size_t i = 0; i < t->shared_count; i++) {
		if (t->shared[i].shmid == shmid) {
			*ret_map = &t->shared[i];
			return 0;
		}
	}
	snprintf(name, sizeof(name), "pagemap-shmem-%u.img", shmid);
	r = page_map_load(t->set, name, &map, t->reason);
	if (r < 0 && r != -ENOENT)
		return r;
	map.shmid = shmid;
	bigger = reallocarray(t->shared, t->shared_count + 1, sizeof(*bigger));
	if (!bigger) {
		page_map_deinit(&map);
		return -ENOMEM;
	}
	t->shared = bigger;
	t->shared[t->shared_count] = map;
	*ret_map = &t->shared[t->shared_count++];
	return 0;
}

int task_shared_of(struct task *t, const NatMm__Vma *v, const struct page_map **ret_map)
{
	const struct task_file *file = task_file_of(t, v);

	*ret_map = NULL;
	if (v->status & VMA_IS_MEMFD)
		return file && file->is_memfd ? shared_map(t, file->shmid, ret_map) : -EBADMSG;
	if (v->status & VMA_IS_ANON_SHARED && v->shmid <= UINT32_MAX)
		return shared_map(t, (uint32_t)v->shmid, ret_map);
	return 0;
}

/* ---- all of it ---- */

int task_load(struct task *t, pid_t pid)
{
	int r = load_tree(t, pid);

	if (r == 0)
		r = load_threads(t);
	if (r == 0)
		r = load_mm(t);
	if (r == 0)
		r = load_files(t);
	return r;
}

void task_deinit(struct task *t)
{
	if (t->tree)
		drop(t->tree, 0);
	for (size_t i = 0; i < t->thread_count; i++)
		if (t->threads[i])
			drop(t->threads[i], 0);
	free(t->threads);
	if (t->mm)
		drop(t->mm, 0);
	for (size_t i = 0; i < t->file_count; i++)
		free(t->files[i].name);
	free(t->files);
	page_map_deinit(&t->pages);
	for (size_t i = 0; i < t->shared_count; i++)
		page_map_deinit(&t->shared[i]);
	free(t->shared);
}
