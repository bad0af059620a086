// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * System V shared memory, semaphores and message queues of the job's own IPC namespace.
 *
 * They belong to the namespace, not to a process, and are only seen from inside of it: the calling
 * thread goes there and back. All is read in the pause, but for the namespace's settings.
 */
#include "agent/native/shm_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#include "agent/native/ipc.pb-c.h"

enum {
	IPC_NS_ID = 1000,	   /* no namespace of the restorer's has such a number in images */
	SYSV_MAX = 4096,	   /* objects of one kind */
	SYSV_SEMS_MAX = 32000,	   /* in one set */
	SYSV_BYTES_MAX = 64 << 20, /* of messages */
	MESSAGE_MAX = 8192,	   /* what CRIU's restore takes */
	COPY_MESSAGE = 040000,	   /* MSG_COPY */
};

struct sysv_segment {
	struct ipc_perm perm;
	int id;
	uint64_t size;
};

struct sysv_set {
	struct ipc_perm perm;
	int id;
	uint32_t count;
	uint16_t *values; /* padded with zeros to 8 bytes */
};

struct sysv_message {
	struct sysv_message *next;
	uint64_t type;
	uint32_t size;
	uint8_t text[]; /* padded with zeros to 8 bytes */
};

struct sysv_queue {
	struct ipc_perm perm;
	int id;
	uint32_t bytes_max, count;
	struct sysv_message *messages;
};

struct sysv {
	int ns; /* keeps the namespace, and all in it, for sysv_write() */
	struct sysv_segment *segments;
	struct sysv_set *sets;
	struct sysv_queue *queues;
	size_t segment_count, set_count, queue_count;
	size_t message_bytes;
};

union semun {
	int val;
	struct semid_ds *buf;
	unsigned short *array;
	struct seminfo *info;
};

static int refuse(struct native_files *f, const char *what, int id, const char *why)
{
	return native_fail(f->tree, -EOPNOTSUPP, "System V %s %d of the job: %s", what, id, why);
}

static size_t padded(size_t size)
{
	return (size + 7) & ~(size_t)7;
}

/* Looking at a segment nobody is attached to would end it where the last detach destroys. */
static bool last_detach_destroys(void)
{
	_cleanup_close_ int fd = open("/proc/sys/kernel/shm_rmid_forced", O_RDONLY | O_CLOEXEC);
	char text[8] = "";

	return fd < 0 || read(fd, text, sizeof(text) - 1) <= 0 || text[0] != '0';
}

/* A segment that no process of the job maps. */
static int add_detached(struct native_files *f, const struct shm_area *a,
			const struct sysv_segment *s)
{
	uint64_t length = (s->size + NATIVE_PAGE - 1) & ~(uint64_t)(NATIVE_PAGE - 1);
	const struct native_task self = { .pid = getpid() };
	uint8_t *at;
	int fd, r;

	if (last_detach_destroys())
		return refuse(f, "segment", s->id,
			      "nobody is attached to it, and the last to "
			      "detach would destroy it");
	at = shmat(s->id, NULL, SHM_RDONLY);
	if (at == (void *)-1)
		return -errno;
	fd = shm_open_map(&self, (uintptr_t)at, (uintptr_t)at + length);
	r = fd < 0 ? refuse(f, "segment", s->id, "it is of huge pages, or cannot be opened") :
		     mem_add_object(f->mem, f->tree, (uint32_t)s->id, a->device, (uint64_t)s->id,
				    s->size, fd);
	if (fd >= 0)
		close(fd);
	if (shmdt(at) < 0 && r == 0)
		r = -errno;
	return r;
}

static int add_content(struct native_files *f, const struct shm_area *a,
		       const struct sysv_segment *s)
{
	const struct shm_object *o = shm_find(a, true, (uint64_t)s->id);
	int fd, r;

	/* The engine's memory knows objects by device and inode alone. */
	if (shm_find(a, false, (uint64_t)s->id))
		return refuse(f, "segment", s->id, "a memfd has the same number");
	if (!o)
		return add_detached(f, a, s);
	fd = shm_open_map(o->task, o->start, o->end);
	if (fd < 0)
		return fd;
	r = mem_add_object(f->mem, f->tree, (uint32_t)s->id, o->dev, o->ino, s->size, fd);
	close(fd);
	return r;
}

static int collect_segments(struct native_files *f, const struct shm_area *a, struct sysv *v,
			    int last, size_t count)
{
	v->segments = arena_alloc(f->tree->arena, (count + 1) * sizeof(*v->segments));
	if (!v->segments)
		return -ENOMEM;
	for (int i = 0; i <= last; i++) {
		struct sysv_segment *s = &v->segments[v->segment_count];
		struct shmid_ds ds;
		int id = shmctl(i, SHM_STAT, &ds), r;

		if (id < 0 && errno == EINVAL)
			continue;
		if (id < 0)
			return -errno;
		if (v->segment_count == count)
			return -EAGAIN;
		*s = (struct sysv_segment){ ds.shm_perm, id, ds.shm_segsz };
		v->segment_count++;
		r = add_content(f, a, s);
		if (r < 0)
			return r;
	}
	return 0;
}

/* What the job maps must be of this namespace. */
static int check_attached(struct native_files *f, const struct shm_area *a, const struct sysv *v)
{
	for (const struct shm_object *o = a->first; o; o = o->next) {
		size_t i = 0;

		while (o->sysv && i < v->segment_count && (uint64_t)v->segments[i].id != o->ino)
			i++;
		if (o->sysv && i == v->segment_count)
			return refuse(f, "segment", (int)o->ino,
				      "it is mapped, but not of the job's IPC namespace");
	}
	return 0;
}

static int collect_sets(struct native_files *f, struct sysv *v, int last, size_t count)
{
	v->sets = arena_alloc(f->tree->arena, (count + 1) * sizeof(*v->sets));
	if (!v->sets)
		return -ENOMEM;
	for (int i = 0; i <= last; i++) {
		struct sysv_set *s = &v->sets[v->set_count];
		struct semid_ds ds;
		union semun arg = { .buf = &ds };
		int id = semctl(i, 0, SEM_STAT, arg);

		if (id < 0 && errno == EINVAL)
			continue;
		if (id < 0)
			return -errno;
		if (v->set_count == count)
			return -EAGAIN;
		if (ds.sem_nsems > SYSV_SEMS_MAX)
			return refuse(f, "semaphore set", id, "it is too big");
		*s = (struct sysv_set){ .perm = ds.sem_perm, .id = id };
		s->count = (uint32_t)ds.sem_nsems;
		s->values = arena_alloc(f->tree->arena, padded(s->count * sizeof(uint16_t)));
		if (!s->values)
			return -ENOMEM;
		arg.array = s->values;
		if (semctl(id, 0, GETALL, arg) < 0)
			return -errno;
		v->set_count++;
	}
	return 0;
}

static int collect_message(struct native_files *f, struct sysv *v, const struct sysv_queue *q,
			   uint32_t n, struct sysv_message **ret_message)
{
	struct {
		long type;
		uint8_t text[MESSAGE_MAX];
	} m;
	ssize_t size = msgrcv(q->id, &m, sizeof(m.text), n, IPC_NOWAIT | COPY_MESSAGE);
	struct sysv_message *copy;

	if (size < 0 && errno == E2BIG)
		return refuse(f, "message queue", q->id, "a message is bigger than 8192 bytes");
	if (size < 0 && (errno == ENOSYS || errno == EINVAL))
		return refuse(f, "message queue", q->id, "the kernel cannot copy messages");
	if (size < 0)
		return -errno;
	v->message_bytes += (size_t)size;
	if (v->message_bytes > SYSV_BYTES_MAX)
		return refuse(f, "message queue", q->id, "too many bytes wait in queues");
	copy = arena_alloc(f->tree->arena, sizeof(*copy) + padded((size_t)size));
	if (!copy)
		return -ENOMEM;
	copy->type = (uint64_t)m.type;
	copy->size = (uint32_t)size;
	memcpy(copy->text, m.text, (size_t)size);
	*ret_message = copy;
	return 0;
}

static int collect_queues(struct native_files *f, struct sysv *v, int last, size_t count)
{
	v->queues = arena_alloc(f->tree->arena, (count + 1) * sizeof(*v->queues));
	if (!v->queues)
		return -ENOMEM;
	for (int i = 0; i <= last; i++) {
		struct sysv_queue *q = &v->queues[v->queue_count];
		struct sysv_message **end = &q->messages;
		struct msqid_ds ds;
		int id = msgctl(i, MSG_STAT, &ds), r;

		if (id < 0 && errno == EINVAL)
			continue;
		if (id < 0)
			return -errno;
		if (v->queue_count == count)
			return -EAGAIN;
		*q = (struct sysv_queue){ .perm = ds.msg_perm, .id = id };
		q->bytes_max = (uint32_t)ds.msg_qbytes;
		q->count = (uint32_t)ds.msg_qnum;
		for (uint32_t n = 0; n < q->count; n++) {
			r = collect_message(f, v, q, n, end);
			if (r < 0)
				return r;
			end = &(*end)->next;
		}
		v->queue_count++;
	}
	return 0;
}

/* Inside the namespace. *ret_sysv is left alone if there is nothing in it. */
static int collect_inside(struct native_files *f, const struct shm_area *a, struct sysv **ret_sysv)
{
	struct shm_info shm;
	struct seminfo sem;
	struct msginfo msg;
	union semun arg = { .info = &sem };
	int shm_last = shmctl(0, SHM_INFO, (void *)&shm);
	int sem_last = semctl(0, 0, SEM_INFO, arg);
	int msg_last = msgctl(0, MSG_INFO, (void *)&msg);
	struct sysv *v;
	int r;

	if (shm_last < 0 || sem_last < 0 || msg_last < 0)
		return -errno;
	if (shm.used_ids == 0 && sem.semusz == 0 && msg.msgpool == 0)
		return check_attached(f, a, &(struct sysv){ .ns = -1 });
	if (shm.used_ids > SYSV_MAX || sem.semusz > SYSV_MAX || msg.msgpool > SYSV_MAX)
		return native_fail(f->tree, -EOPNOTSUPP, "the job has too many System V objects");
	v = arena_alloc(f->tree->arena, sizeof(*v));
	if (!v)
		return -ENOMEM;
	v->ns = -1;
	r = collect_segments(f, a, v, shm_last, (size_t)shm.used_ids);
	if (r == 0)
		r = check_attached(f, a, v);
	if (r == 0)
		r = collect_sets(f, v, sem_last, (size_t)sem.semusz);
	if (r == 0)
		r = collect_queues(f, v, msg_last, (size_t)msg.msgpool);
	if (r == 0)
		*ret_sysv = v;
	return r;
}

static int check_tasks(struct native_files *f)
{
	const struct native_tree *tree = f->tree;
	const struct native_task *first = NULL;

	for (size_t i = 0; i < tree->task_count; i++) {
		const struct native_task *t = &tree->tasks[i];

		if (t->zombie || !t->state)
			continue;
		if (!first)
			first = t;
		if (t->state->ns_ipc != first->state->ns_ipc)
			return native_fail(f->tree, -EOPNOTSUPP,
					   "process %d has an IPC namespace of its own",
					   t->inner_pid);
	}
	return 0;
}

int sysv_collect(struct native_files *f, struct shm_area *a)
{
	_cleanup_close_ int home = open("/proc/thread-self/ns/ipc", O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int there = -1;
	char path[64];
	int r = check_tasks(f);

	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "/proc/%d/ns/ipc", f->tree->tasks[0].pid);
	there = open(path, O_RDONLY | O_CLOEXEC);
	if (home < 0 || there < 0 || setns(there, CLONE_NEWIPC) < 0)
		return native_fail(f->tree, -errno, "the job's IPC namespace: %s", strerror(errno));
	r = collect_inside(f, a, &a->sysv);
	if (setns(home, CLONE_NEWIPC) < 0 && r == 0)
		r = -errno;
	if (r < 0)
		return native_fail(f->tree, r, "System V objects of the job: %s", strerror(-r));
	if (a->sysv) {
		a->sysv->ns = take_fd(there);
		f->tree->ipc_ns_id = IPC_NS_ID;
	}
	return 0;
}

void sysv_destroy(struct shm_area *a)
{
	if (a->sysv)
		close_fdp(&a->sysv->ns);
	a->sysv = NULL;
}

static void fill_perm(const struct ipc_perm *p, int id, NatIpc__IpcPerm *m)
{
	nat_ipc__ipc_perm__init(m);
	m->key = (uint32_t)p->__key;
	m->uid = p->uid;
	m->gid = p->gid;
	m->cuid = p->cuid;
	m->cgid = p->cgid;
	m->mode = p->mode;
	m->id = (uint32_t)id;
}

static int create(struct native_files *f, const char *kind, struct img **ret_image)
{
	char name[64];

	snprintf(name, sizeof(name), "ipcns-%s-%u", kind, f->tree->ipc_ns_id);
	return img_create(f->tree->images, name, ret_image);
}

static int write_segments(struct native_files *f, const struct sysv *v)
{
	NatIpc__IpcPerm perm;
	struct img *image;
	int r = create(f, "shm", &image);

	if (r < 0)
		return r;
	for (size_t i = 0; i < v->segment_count; i++) {
		NatIpc__IpcShm m = NAT_IPC__IPC_SHM__INIT;

		fill_perm(&v->segments[i].perm, v->segments[i].id, &perm);
		m.desc = &perm;
		m.size = v->segments[i].size;
		m.has_in_pagemaps = m.in_pagemaps = true;
		img_put(image, &m.base);
	}
	return img_close(image);
}

static int write_sets(struct native_files *f, const struct sysv *v)
{
	NatIpc__IpcPerm perm;
	struct img *image;
	int r = create(f, "sem", &image);

	if (r < 0)
		return r;
	for (size_t i = 0; i < v->set_count; i++) {
		const struct sysv_set *s = &v->sets[i];
		NatIpc__IpcSem m = NAT_IPC__IPC_SEM__INIT;

		fill_perm(&s->perm, s->id, &perm);
		m.desc = &perm;
		m.nsems = s->count;
		img_put(image, &m.base);
		img_put_raw(image, s->values, padded(s->count * sizeof(uint16_t)));
	}
	return img_close(image);
}

static int write_queues(struct native_files *f, const struct sysv *v)
{
	NatIpc__IpcPerm perm;
	struct img *image;
	int r = create(f, "msg", &image);

	if (r < 0)
		return r;
	for (size_t i = 0; i < v->queue_count; i++) {
		const struct sysv_queue *q = &v->queues[i];
		NatIpc__IpcMsg m = NAT_IPC__IPC_MSG__INIT;

		fill_perm(&q->perm, q->id, &perm);
		m.desc = &perm;
		m.qbytes = q->bytes_max;
		m.qnum = q->count;
		img_put(image, &m.base);
		for (const struct sysv_message *t = q->messages; t; t = t->next) {
			NatIpc__Message one = NAT_IPC__MESSAGE__INIT;

			one.mtype = t->type;
			one.msize = t->size;
			img_put(image, &one.base);
			img_put_raw(image, t->text, padded(t->size));
		}
	}
	return img_close(image);
}

/* Up to four numbers of a file below /proc/sys; the kernel answers for this thread's namespace. */
static int read_setting(const char *name, uint64_t values[4], size_t *ret_count)
{
	char path[64], text[128], *at = text, *end;
	_cleanup_close_ int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/sys/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, sizeof(text) - 1);
	if (n < 0)
		return -errno;
	text[n] = '\0';
	for (*ret_count = 0; *ret_count < 4; at = end) {
		/* Some are -1: no next id is asked for. */
		uint64_t value = *at == '-' ? (uint64_t)strtoll(at, &end, 10) :
					      strtoull(at, &end, 10);

		if (end == at)
			break;
		values[(*ret_count)++] = value;
	}
	return *ret_count > 0 ? 0 : -EBADMSG;
}

static uint32_t setting32(const char *name, bool *ret_has)
{
	uint64_t values[4];
	size_t count;
	bool has = read_setting(name, values, &count) == 0;

	if (ret_has)
		*ret_has = has && (int64_t)values[0] != -1;
	return has ? (uint32_t)values[0] : 0;
}

static uint64_t setting64(const char *name)
{
	uint64_t values[4];
	size_t count;

	return read_setting(name, values, &count) == 0 ? values[0] : 0;
}

static void fill_settings(NatIpc__IpcVar *m, uint32_t sem[4])
{
	uint64_t values[4] = { 0 };
	bool has = false;
	size_t count;

	if (read_setting("kernel/sem", values, &count) == 0)
		for (size_t i = 0; i < 4; i++)
			sem[i] = (uint32_t)values[i];
	m->n_sem_ctls = 4;
	m->sem_ctls = sem;
	m->msg_ctlmax = setting32("kernel/msgmax", NULL);
	m->msg_ctlmnb = setting32("kernel/msgmnb", NULL);
	m->msg_ctlmni = setting32("kernel/msgmni", NULL);
	m->auto_msgmni = setting32("kernel/auto_msgmni", NULL);
	m->shm_ctlmax = setting64("kernel/shmmax");
	m->shm_ctlall = setting64("kernel/shmall");
	m->shm_ctlmni = setting32("kernel/shmmni", NULL);
	m->shm_rmid_forced = setting32("kernel/shm_rmid_forced", NULL);
	m->mq_queues_max = setting32("fs/mqueue/queues_max", NULL);
	m->mq_msg_max = setting32("fs/mqueue/msg_max", NULL);
	m->mq_msgsize_max = setting32("fs/mqueue/msgsize_max", NULL);
	m->mq_msg_default = setting32("fs/mqueue/msg_default", &has);
	m->has_mq_msg_default = has;
	m->mq_msgsize_default = setting32("fs/mqueue/msgsize_default", &has);
	m->has_mq_msgsize_default = has;
	m->msg_next_id = setting32("kernel/msg_next_id", &has);
	m->has_msg_next_id = has;
	m->sem_next_id = setting32("kernel/sem_next_id", &has);
	m->has_sem_next_id = has;
	m->shm_next_id = setting32("kernel/shm_next_id", &has);
	m->has_shm_next_id = has;
}

static int write_settings(struct native_files *f, const struct sysv *v)
{
	_cleanup_close_ int home = open("/proc/thread-self/ns/ipc", O_RDONLY | O_CLOEXEC);
	NatIpc__IpcVar m = NAT_IPC__IPC_VAR__INIT;
	uint32_t sem[4] = { 0 };
	struct img *image;
	int r;

	if (home < 0 || setns(v->ns, CLONE_NEWIPC) < 0)
		return -errno;
	fill_settings(&m, sem);
	if (setns(home, CLONE_NEWIPC) < 0)
		return -errno;
	r = create(f, "var", &image);
	if (r < 0)
		return r;
	img_put(image, &m.base);
	return img_close(image);
}

int sysv_write(struct native_files *f, const struct shm_area *a)
{
	const struct sysv *v = a->sysv;
	int r;

	if (!v)
		return 0;
	r = write_settings(f, v);
	if (r == 0)
		r = write_segments(f, v);
	if (r == 0)
		r = write_sets(f, v);
	return r < 0 ? r : write_queues(f, v);
}
