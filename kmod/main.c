// SPDX-License-Identifier: GPL-2.0-only
/* The device, and what is checked before anything is done. */
#include "internal.h"

#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/userfaultfd.h>

#ifndef CONFIG_X86_64
#error "decamp.ko knows the registers of x86-64 only"
#endif

#define ARGS_MAX 4096

static bool is_allowed(void)
{
	return capable(CAP_SYS_PTRACE) && capable(CAP_CHECKPOINT_RESTORE);
}

/* How all structures begin. */
struct args_head {
	u32 size; /* as the caller said */
	u32 flags;
};

static int get_args(void __user *from, void *to, size_t known, u32 flags)
{
	struct args_head *head = to;
	u32 size;
	int r;

	if (get_user(size, (u32 __user *)from))
		return -EFAULT;
	if (size < known)
		return -EINVAL;
	if (size > ARGS_MAX)
		return -E2BIG;
	r = copy_struct_from_user(to, known, from, size);
	if (r)
		return r;
	head->size = size;
	return head->flags & ~flags ? -EINVAL : 0;
}

static long call_version(void __user *arg)
{
	struct decamp_version args;
	int r = get_args(arg, &args, sizeof(args), 0);

	if (r)
		return r;
	args.abi = DECAMP_ABI;
	args.pending = session_pending();
	return copy_to_user(arg, &args, sizeof(args)) ? -EFAULT : 0;
}

static long call_uffd(void __user *arg)
{
	struct decamp_uffd args;
	int r = get_args(arg, &args, sizeof(args), DECAMP_UFFD_FLAGS);

	return r ? r : uffd_create(&args);
}

static long call_threads(struct session *s, void __user *arg)
{
	struct decamp_threads args;
	int r = get_args(arg, &args, sizeof(args), 0);

	if (r)
		return r;
	if (args.missed || args.thread_size != sizeof(struct decamp_thread))
		return -EINVAL;
	r = state_threads(s, &args);
	if (!r && copy_to_user(arg, &args, sizeof(args)))
		r = -EFAULT;
	return r;
}

static long call_xstate(struct session *s, void __user *arg)
{
	struct decamp_xstate args;
	int r = get_args(arg, &args, sizeof(args), 0);

	if (r)
		return r;
	r = state_xstate(s, &args);
	if ((!r || r == -EMSGSIZE) && copy_to_user(arg, &args, sizeof(args)))
		r = -EFAULT;
	return r;
}

static long call_park(struct session *s, void __user *arg)
{
	struct decamp_park args;
	int r = get_args(arg, &args, sizeof(args), 0);

	if (r)
		return r;
	if (args.timeout_ms > DECAMP_TIMEOUT_MS_MAX)
		return -EINVAL;
	return session_park(s, args.tid, args.timeout_ms);
}

static bool is_lease(u32 lease_ms)
{
	return lease_ms >= DECAMP_LEASE_MS_MIN && lease_ms <= DECAMP_LEASE_MS_MAX;
}

static long call_renew(struct session *s, void __user *arg)
{
	struct decamp_renew args;
	int r = get_args(arg, &args, sizeof(args), 0);

	if (r)
		return r;
	if (args.reserved || !is_lease(args.lease_ms))
		return -EINVAL;
	session_lease(s, args.lease_ms);
	return 0;
}

static long on_session_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct session *s = file->private_data;
	void __user *to = (void __user *)arg;
	long r = -ENOTTY;

	if (READ_ONCE(s->over))
		return -EOWNERDEAD;
	switch (cmd) {
	case DECAMP_IOC_THREADS:
		r = call_threads(s, to);
		break;
	case DECAMP_IOC_XSTATE:
		r = call_xstate(s, to);
		break;
	case DECAMP_IOC_PARK:
		r = call_park(s, to);
		break;
	case DECAMP_IOC_RENEW:
		r = call_renew(s, to);
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
	.compat_ioctl = compat_ptr_ioctl,
	.release = on_session_release,
	.llseek = noop_llseek,
};

/* From here on fput() thaws. */
static struct file *open_session(const struct decamp_freeze *args)
{
	struct session *s = session_create(args->flags);
	struct file *file;

	if (!s)
		return ERR_PTR(-ENOMEM);
	file = anon_inode_getfile("[decamp]", &session_fops, s, O_RDWR);
	if (IS_ERR(file))
		session_release(s);
	else
		session_lease(s, args->lease_ms);
	return file;
}

static int check_freeze(const struct decamp_freeze *args, s32 *roots)
{
	if (args->passes || !args->roots_count || args->roots_count > DECAMP_ROOTS_MAX ||
	    !is_lease(args->lease_ms) || args->timeout_ms > DECAMP_TIMEOUT_MS_MAX)
		return -EINVAL;
	if (copy_from_user(roots, u64_to_user_ptr(args->roots), args->roots_count * sizeof(*roots)))
		return -EFAULT;
	for (u32 i = 0; i < args->roots_count; i++)
		if (roots[i] <= 0)
			return -EINVAL;
	return 0;
}

static long call_freeze(void __user *arg)
{
	s32 roots[DECAMP_ROOTS_MAX];
	struct decamp_freeze args;
	struct file *file;
	int fd, r;

	r = get_args(arg, &args, sizeof(args), DECAMP_FREEZE_PLAIN);
	if (!r)
		r = check_freeze(&args, roots);
	if (r)
		return r;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	file = open_session(&args);
	if (IS_ERR(file)) {
		r = PTR_ERR(file);
		goto put_fd;
	}
	r = session_freeze(file->private_data, roots, &args);
	if (!r && copy_to_user(arg, &args, sizeof(args)))
		r = -EFAULT;
	if (r)
		goto thaw;
	fd_install(fd, file);
	return fd;
thaw:
	fput(file);
put_fd:
	put_unused_fd(fd);
	return r;
}

static int on_open(struct inode *inode, struct file *file)
{
	return is_allowed() ? 0 : -EPERM;
}

static long on_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *to = (void __user *)arg;

	if (!is_allowed())
		return -EPERM;
	switch (cmd) {
	case DECAMP_IOC_VERSION:
		return call_version(to);
	case DECAMP_IOC_FREEZE:
		return call_freeze(to);
	case DECAMP_IOC_UFFD:
		return call_uffd(to);
	}
	return -ENOTTY;
}

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.open = on_open,
	.unlocked_ioctl = on_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
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
