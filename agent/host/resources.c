// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

#include "agent/host/cpu.h"
#include "agent/host/probe.h"
#include "agent/util/io.h"
#include "overlay/types.h"

enum { PROC_TEXT_MAX = 64 << 10 };

static int read_mem_free(uint64_t *ret_bytes)
{
	_cleanup_free_ char *text = NULL;
	const char *line;
	uint64_t kib;
	int r = read_file_at(AT_FDCWD, "/proc/meminfo", PROC_TEXT_MAX, &text, NULL);

	if (r < 0)
		return r;
	line = strstr(text, "MemAvailable:");
	if (!line || sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) != 1)
		return -EBADMSG;
	*ret_bytes = kib << 10;
	return 0;
}

/* Only the CPUs that this process may use: in a container, that is what the jobs get as well. */
static uint32_t count_cpus(void)
{
	cpu_set_t set;
	long online = sysconf(_SC_NPROCESSORS_ONLN);

	if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
		return (uint32_t)CPU_COUNT(&set);
	return online > 0 ? (uint32_t)online : 1;
}

int host_resources(struct host_resources *ret_resources)
{
	struct host_resources res = { 0 };
	struct utsname uts;
	unsigned int major, minor;
	double load;
	int r = read_mem_free(&res.mem_free_bytes);

	if (r < 0)
		return r;
	if (uname(&uts) < 0)
		return -errno;
	res.cpus = count_cpus();
	if (getloadavg(&load, 1) == 1 && load >= 0)
		res.load_milli = (uint32_t)(load * 1000 / res.cpus);
	host_cpu_features(res.cpu_features);
	snprintf(res.arch, sizeof(res.arch), "%.15s", uts.machine);
	snprintf(res.kernel, sizeof(res.kernel), "%.63s", uts.release);
	if (sscanf(uts.release, "%5u.%5u", &major, &minor) == 2 && major <= UINT16_MAX &&
	    minor <= UINT16_MAX)
		res.kernel_version = OV_KERNEL_VERSION(major, minor);
	snprintf(res.hostname, sizeof(res.hostname), "%.63s", uts.nodename);
	*ret_resources = res;
	return 0;
}

bool probe_capability(unsigned int capability)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct sets[2] = { 0 };

	if (syscall(SYS_capget, &header, sets) < 0)
		return false;
	return sets[capability / 32].effective & (UINT32_C(1) << (capability % 32));
}

bool host_has_sys_resource(void)
{
	return probe_capability(CAP_SYS_RESOURCE);
}

struct cgroup_mount {
	char root[512], point[512];
};

/* The cgroup2 line of mountinfo: "ID PARENT MAJ:MIN ROOT POINT OPTIONS [TAGS] - cgroup2 …". */
static int find_cgroup_mount(struct cgroup_mount *ret_mount)
{
	_cleanup_free_ char *text = NULL;
	char *next, *line;
	int r = read_file_at(AT_FDCWD, "/proc/self/mountinfo", 4 << 20, &text, NULL);

	if (r < 0)
		return r;
	next = text;
	while ((line = strsep(&next, "\n"))) {
		struct cgroup_mount m;

		if (!strstr(line, " - cgroup2 "))
			continue;
		if (sscanf(line, "%*u %*u %*s %511s %511s ", m.root, m.point) != 2)
			return -EBADMSG;
		*ret_mount = m;
		return 0;
	}
	return -EOPNOTSUPP;
}

static int own_cgroup(char *path, size_t size)
{
	_cleanup_free_ char *text = NULL;
	char *next, *line;
	int r = read_file_at(AT_FDCWD, "/proc/self/cgroup", PROC_TEXT_MAX, &text, NULL);

	if (r < 0)
		return r;
	next = text;
	while ((line = strsep(&next, "\n"))) {
		if (strncmp(line, "0::/", 4))
			continue;
		if (strlen(line + 3) >= size)
			return -ENAMETOOLONG;
		strcpy(path, line + 3);
		return 0;
	}
	return -EOPNOTSUPP;
}

/*
 * Jobs live below the daemon's own cgroup (its unit, delegated by systemd) so that two daemons in
 * two cgroups of one machine do not meet. A daemon started from a login shell goes to the root of
 * the tree instead: what is below a session's scope dies with the session.
 */
int host_cgroup_base(char *path, size_t size)
{
	struct cgroup_mount mount;
	char own[512], base[1200];
	const char *below = own;
	size_t root_len;
	int r = find_cgroup_mount(&mount);

	if (r < 0)
		return r;
	r = own_cgroup(own, sizeof(own));
	if (r < 0)
		return r;
	root_len = !strcmp(mount.root, "/") ? 0 : strlen(mount.root);
	if (!strncmp(own, mount.root, root_len) && (!own[root_len] || own[root_len] == '/'))
		below += root_len;
	else
		below = "";
	if (!strcmp(below, "/") || strstr(below, "/user.slice/") || strstr(below, ".scope") ||
	    strstr(below, "/.."))
		below = "";
	snprintf(base, sizeof(base), "%s%s/decamp", mount.point, below);
	if (strlen(base) >= size)
		return -ENAMETOOLONG;
	r = mkdir_parents(base, 0755);
	if (r < 0)
		return r;
	strcpy(path, base);
	return 0;
}
