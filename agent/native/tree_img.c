// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Images of the tree as a whole: inventory, pstree, ids, timens.
 *
 * The job is restored inside namespaces that are made for it before. Ids of namespaces equal to
 * those of the inventory tell the restorer to stay where it is.
 */
#include <errno.h>
#include <stdio.h>

#include "agent/native/img.h"
#include "agent/native/sleeps.h"
#include "agent/native/state_internal.h"

enum {
	IMAGE_VERSION = 2,
	ROOT_CG_SET = 1,
	LSM_NONE = 0,
	NETWORK_LOCK_SKIP = 2,
	/* Of the one who restores: no task has them. */
	ROOT_ID = 0x7fffffff,
};

/* Any numbers, if only each kind has its own. */
enum {
	ID_PID_NS = 1,
	ID_NET_NS,
	ID_IPC_NS,
	ID_UTS_NS,
	ID_TIME_NS,
	ID_MNT_NS,
	ID_USER_NS,
	ID_CGROUP_NS,
};

static int put_one(struct native_tree *tree, const char *name, const ProtobufCMessage *message)
{
	struct img *i;
	int r = img_create(tree->images, name, &i);

	if (r < 0)
		return r;
	img_put(i, message);
	return img_close(i);
}

static void fill_namespaces(NatCore__Ids *ids, uint32_t ipc_ns)
{
	ids->has_pid_ns_id = ids->has_net_ns_id = ids->has_ipc_ns_id = true;
	ids->has_uts_ns_id = ids->has_mnt_ns_id = ids->has_user_ns_id = true;
	ids->has_cgroup_ns_id = ids->has_time_ns_id = true;
	ids->pid_ns_id = ID_PID_NS;
	ids->net_ns_id = ID_NET_NS;
	ids->ipc_ns_id = ipc_ns;
	ids->uts_ns_id = ID_UTS_NS;
	ids->mnt_ns_id = ID_MNT_NS;
	ids->user_ns_id = ID_USER_NS;
	ids->cgroup_ns_id = ID_CGROUP_NS;
	ids->time_ns_id = ID_TIME_NS;
}

static int write_inventory(struct native_tree *tree)
{
	NatCore__Inventory inventory;
	NatCore__Plugins plugins;
	NatCore__Ids root;

	nat_core__inventory__init(&inventory);
	nat_core__plugins__init(&plugins);
	nat_core__ids__init(&root);
	inventory.img_version = IMAGE_VERSION;
	inventory.has_fdinfo_per_id = true;
	inventory.fdinfo_per_id = true;
	inventory.has_ns_per_id = true;
	inventory.ns_per_id = true;
	inventory.has_root_cg_set = true;
	inventory.root_cg_set = ROOT_CG_SET;
	inventory.has_lsm_type = true;
	inventory.lsm_type = LSM_NONE;
	inventory.has_network_lock_method = true;
	inventory.network_lock_method = NETWORK_LOCK_SKIP;
	inventory.plugins = &plugins;
	root.vm_id = root.files_id = root.fs_id = root.sighand_id = ROOT_ID;
	fill_namespaces(&root, ID_IPC_NS);
	inventory.root_ids = &root;
	return put_one(tree, "inventory", &inventory.base);
}

static int put_process(struct img *i, const struct native_task *task)
{
	size_t count = task->thread_count ? task->thread_count : 1, n = 0;
	_cleanup_free_ uint32_t *threads = calloc(count, sizeof(*threads));
	NatCore__Pstree entry;

	if (!threads)
		return -ENOMEM;
	nat_core__pstree__init(&entry);
	entry.pid = (uint32_t)task->inner_pid;
	entry.ppid = task->parent ? (uint32_t)task->parent->inner_pid : 0;
	entry.pgid = (uint32_t)task->state->pgid;
	entry.sid = (uint32_t)task->state->sid;
	threads[n++] = (uint32_t)task->inner_pid;
	for (size_t k = 0; !task->zombie && k < task->thread_count; k++) {
		if (task->threads[k].tid != task->pid)
			threads[n++] = (uint32_t)task->threads[k].inner_tid;
	}
	entry.n_threads = n;
	entry.threads = threads;
	img_put(i, &entry.base);
	return 0;
}

static int write_pstree(struct native_tree *tree)
{
	struct img *i;
	int r = img_create(tree->images, "pstree", &i), r2;

	if (r < 0)
		return r;
	for (size_t k = 0; r == 0 && k < tree->task_count; k++)
		r = put_process(i, &tree->tasks[k]);
	r2 = img_close(i);
	return r < 0 ? r : r2;
}

static int write_ids(struct native_tree *tree, const struct native_task *task)
{
	NatCore__Ids ids;
	char name[32];

	nat_core__ids__init(&ids);
	ids.vm_id = task->vm_id;
	ids.files_id = task->files_id;
	ids.fs_id = task->fs_id;
	ids.sighand_id = task->sighand_id;
	fill_namespaces(&ids, tree->ipc_ns_id ? tree->ipc_ns_id : ID_IPC_NS);
	snprintf(name, sizeof(name), "ids-%d", task->inner_pid);
	return put_one(tree, name, &ids.base);
}

static void fill_time(NatCore__Timespec *to, uint64_t host_ns, int64_t offset_ns)
{
	uint64_t ns = host_ns + (uint64_t)offset_ns;

	nat_core__timespec__init(to);
	to->sec = ns / 1000000000;
	to->nsec = ns % 1000000000;
}

/* The job's clocks at the frozen instant: they go on from there. */
static int write_timens(struct native_tree *tree)
{
	const struct state_process *p = tree->tasks[0].state;
	NatCore__Timespec monotonic, boottime;
	NatCore__Timens timens;

	nat_core__timens__init(&timens);
	fill_time(&monotonic, tree->freeze_mono_ns, p->timens_monotonic_ns);
	fill_time(&boottime, tree->freeze_boot_ns, p->timens_boot_ns);
	timens.monotonic = &monotonic;
	timens.boottime = &boottime;
	return put_one(tree, "timens-0", &timens.base);
}

int state_write(struct native_tree *tree)
{
	int r;

	if (tree->task_count == 0 || !tree->tasks[0].state)
		return -EINVAL;
	r = write_inventory(tree);
	if (r == 0)
		r = write_pstree(tree);
	if (r == 0)
		r = write_timens(tree);
	if (r == 0)
		r = seccomp_write(tree);
	if (r == 0)
		r = sleeps_write(tree);
	for (size_t i = 0; r == 0 && i < tree->task_count; i++) {
		r = core_write(tree, &tree->tasks[i]);
		if (r == 0 && !tree->tasks[i].zombie)
			r = write_ids(tree, &tree->tasks[i]);
	}
	return r < 0 ? native_fail(tree, r, "writing the images of the tasks failed: error %d",
				   -r) :
		       0;
}
