// SPDX-License-Identifier: GPL-2.0-only
/*
 * A userfaultfd of somebody else's memory. The kernel makes one for current->mm; a kernel thread may
 * borrow a memory map (kthread_use_mm), so nothing is done in the process itself, frozen or not.
 */
#include "internal.h"

#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/userfaultfd.h>

struct request {
	struct mm_struct *mm;
	struct file *device, *made;
	unsigned long flags;
};

/* In a kernel thread. For a moment the file is in the table that these share; no program sees that. */
static long make(void *request)
{
	struct request *q = request;
	long fd;

	kthread_use_mm(q->mm);
	fd = q->device->f_op->unlocked_ioctl(q->device, USERFAULTFD_IOC_NEW, q->flags);
	kthread_unuse_mm(q->mm);
	if (fd < 0)
		return fd;
	q->made = fget(fd);
	close_fd(fd);
	return q->made ? 0 : -EBADF;
}

/* Only that function of the kernel's is called. It is not exported, its name is no secret. */
static bool is_userfaultfd_device(const struct file *f)
{
	char name[64];

	snprintf(name, sizeof(name), "%ps", f->f_op->unlocked_ioctl);
	return !strcmp(name, "userfaultfd_dev_ioctl");
}

static struct mm_struct *get_mm(pid_t pid)
{
	struct mm_struct *mm = NULL;
	struct task_struct *p, *t;

	rcu_read_lock();
	p = pid_task(find_vpid(pid), PIDTYPE_TGID);
	if (p)
		for_each_thread(p, t) /* the main one may have ended before others */
			mm = mm ?: get_task_mm(t);
	rcu_read_unlock();
	return mm;
}

int uffd_create(const struct decamp_uffd *args)
{
	struct request q = { .device = fget(args->device), .flags = args->mode };
	int r = -EBADF;

	if (!q.device)
		return r;
	if (!is_userfaultfd_device(q.device))
		goto put_device;
	r = -ESRCH;
	q.mm = get_mm(args->pid);
	if (!q.mm)
		goto put_device;
	r = work_on_cpu(raw_smp_processor_id(), make, &q);
	mmput(q.mm);
	if (r)
		goto put_device;
	r = get_unused_fd_flags(O_CLOEXEC);
	if (r < 0)
		fput(q.made);
	else
		fd_install(r, q.made);
put_device:
	fput(q.device);
	return r;
}
