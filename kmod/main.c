// SPDX-License-Identifier: GPL-2.0-only
/* The device, and what is checked before anything is done. */
#include "internal.h"

#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

union args {
	struct {
		u32 size; /* how all of them begin */
		u32 flags;
	};
	struct decamp_freeze freeze;
	struct decamp_uffd uffd;
	struct decamp_threads threads;
	struct decamp_xstate xstate;
	struct decamp_park park;
};

static int get_args(unsigned long from, union args *to, size_t known)
{
	u32 size;
	int r = get_user(size, (u32 __user *)from);

	if (r)
		return r;
	if (size < known)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	r = copy_struct_from_user(to, known, (void __user *)from, size);
	if (!r && to->flags)
		r = -EINVAL;
	return r;
}

static long on_session_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct session *s = file->private_data;
	union args a;
	long r = -ENOTTY;

	if (READ_ONCE(s->over))
		return -EOWNERDEAD;
	switch (cmd) {
	case DECAMP_IOC_THREADS:
		r = get_args(arg, &a, sizeof(a.threads)) ?: state_threads(s, &a.threads);
		break;
	case DECAMP_IOC_XSTATE:
		r = get_args(arg, &a, sizeof(a.xstate)) ?: state_xstate(s, &a.xstate);
		break;
	case DECAMP_IOC_PARK:
		r = get_args(arg, &a, sizeof(a.park)) ?: session_park(s, &a.park);
		break;
	}
	/* What was read while the job went on is worth nothing. */
	return READ_ONCE(s->over) ? -EOWNERDEAD : r;
}

static int on_session_release(struct inode *inode, struct file *file)
{
	session_release(file->private_data);
	return 0;
}

static const struct file_operations session_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = on_session_ioctl,
	.release = on_session_release,
};

static int call_freeze(const struct decamp_freeze *args)
{
	struct session *s = session_freeze(args);
	int fd;

	if (IS_ERR(s))
		return PTR_ERR(s);
	fd = anon_inode_getfd("[decamp]", &session_fops, s, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		session_release(s);
	return fd;
}

static long on_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	union args a;

	if (!capable(CAP_SYS_PTRACE) || !capable(CAP_CHECKPOINT_RESTORE))
		return -EPERM;
	switch (cmd) {
	case DECAMP_IOC_VERSION:
		return DECAMP_ABI;
	case DECAMP_IOC_FREEZE:
		return get_args(arg, &a, sizeof(a.freeze)) ?: call_freeze(&a.freeze);
	case DECAMP_IOC_UFFD:
		return get_args(arg, &a, sizeof(a.uffd)) ?: uffd_create(&a.uffd);
	}
	return -ENOTTY;
}

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = on_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "decamp",
	.fops = &device_fops,
	.mode = 0600,
};

static int __init decamp_init(void)
{
	int r = session_init();

	if (r)
		return r;
	r = misc_register(&device);
	if (r)
		session_exit();
	return r;
}

static void __exit decamp_exit(void)
{
	misc_deregister(&device);
	session_exit();
}

module_init(decamp_init);
module_exit(decamp_exit);
MODULE_LICENSE("GPL");
MODULE_VERSION(__stringify(DECAMP_ABI));
MODULE_DESCRIPTION("Freezes process trees without a trace, for decamp");
