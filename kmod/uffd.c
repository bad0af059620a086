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
#include <linux/major.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/userfaultfd.h>

#define UFFD_NAME "[userfaultfd]"

struct uffd_call {
	struct work_struct work;
	struct mm_struct *mm;
	struct file *device;
	unsigned long flags;
	struct file *made; /* or */
	int error;
};

/* For a moment the file is in the table that kernel threads share; no program sees that. */
static void make(struct work_struct *work)
{
	struct uffd_call *c = container_of(work, struct uffd_call, work);
	long fd;

	kthread_use_mm(c->mm);
	fd = c->device->f_op->unlocked_ioctl(c->device, USERFAULTFD_IOC_NEW, c->flags);
	kthread_unuse_mm(c->mm);
	if (fd < 0) {
		c->error = fd;
		return;
	}
	c->made = fget(fd);
	if (c->made)
		close_fd(fd);
	else
		c->error = -EBADF;
}

/* Only a driver of the kernel proper, and what it made is looked at before anybody gets it. */
static bool may_be_userfaultfd(const struct file *f)
{
	return S_ISCHR(file_inode(f)->i_mode) && imajor(file_inode(f)) == MISC_MAJOR &&
	       !f->f_op->owner && f->f_op->unlocked_ioctl;
}

static struct mm_struct *get_mm(pid_t tgid)
{
	struct pid *pid = find_get_pid(tgid);
	struct task_struct *p = get_pid_task(pid, PIDTYPE_TGID), *t;
	struct mm_struct *mm = NULL;

	put_pid(pid);
	if (!p)
		return NULL;
	rcu_read_lock();
	for_each_thread(p, t) { /* the main thread may have ended before others */
		mm = get_task_mm(t);
		if (mm)
			break;
	}
	rcu_read_unlock();
	put_task_struct(p);
	return mm;
}

static int install(struct file *f)
{
	int fd = get_unused_fd_flags(O_CLOEXEC);

	if (fd < 0)
		fput(f);
	else
		fd_install(fd, f);
	return fd;
}

int uffd_create(const struct decamp_uffd *args)
{
	struct uffd_call c = { .flags = args->flags & ~O_CLOEXEC };
	int r = -EBADF;

	c.device = fget(args->device);
	if (!c.device)
		return r;
	if (!may_be_userfaultfd(c.device))
		goto put_device;
	c.mm = get_mm(args->pid);
	if (!c.mm) {
		r = -ESRCH;
		goto put_device;
	}
	INIT_WORK_ONSTACK(&c.work, make);
	queue_work(system_unbound_wq, &c.work);
	flush_work(&c.work);
	destroy_work_on_stack(&c.work);
	mmput(c.mm);
	r = c.error;
	if (!r && strcmp(c.made->f_path.dentry->d_name.name, UFFD_NAME)) {
		fput(c.made);
		r = -EBADF;
	}
	if (!r)
		r = install(c.made);
put_device:
	fput(c.device);
	return r;
}
