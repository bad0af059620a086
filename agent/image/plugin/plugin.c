// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A plugin of CRIU, loaded for restores only: threads that slept in a timed call go on sleeping until
 * their deadlines, which a restorer alone cannot give them. CRIU calls it for each process, when all
 * of them stand at the end of their sigreturn(2), still traced.
 *
 * Whatever fails here, the restore goes on: the sleeps concerned start in full. That this was
 * loaded at all is told by the report, which is there from the beginning.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/image/plugin/resleep.h"

/* CRIU's interface since 3.x: the numbers are its own. */
enum { HOOK_RESUME_DEVICES_LATE = 9, HOOKS = 10, STAGE_RESTORE = 2, PLUGIN_VERSION = 2 << 8 };

struct criu_plugin {
	const char *name;
	int (*init)(int stage);
	void (*exit)(int stage, int ret);
	unsigned int version, max_hooks;
	void *hooks[HOOKS];
};

extern struct criu_plugin CR_PLUGIN_DESC __attribute__((visibility("default")));
extern int criu_get_image_dir(void); /* CRIU's; not ours to close */

static struct {
	void *bytes;
	const struct deadline *all;
	size_t count, done;
	char why[RESLEEP_WHY_MAX + 32]; /* of the first that is not done */
} plugin;

static void report(void)
{
	int fd = openat(criu_get_image_dir(), DEADLINES_REPORT,
			O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd < 0)
		return;
	dprintf(fd, "%zu of %zu\n%s", plugin.done, plugin.count, plugin.why);
	close(fd);
}

static int read_deadlines(void)
{
	_cleanup_close_ int fd =
		openat(criu_get_image_dir(), DEADLINES_FILE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	size_t used = 0;
	ssize_t n;

	if (fd < 0)
		return -errno;
	/* One byte more: a longer file is none of ours. */
	plugin.bytes = malloc(DEADLINES_BYTES_MAX + 1);
	if (!plugin.bytes)
		return -ENOMEM;
	do {
		n = read(fd, (char *)plugin.bytes + used, DEADLINES_BYTES_MAX + 1 - used);
		used += n > 0 ? (size_t)n : 0;
	} while (n > 0 || (n < 0 && errno == EINTR));
	if (n < 0)
		return -errno;
	return deadlines_parse(plugin.bytes, used, &plugin.all, &plugin.count);
}

static int init(int stage)
{
	int r = stage == STAGE_RESTORE ? read_deadlines() : 0;

	if (r < 0)
		snprintf(plugin.why, sizeof(plugin.why), "the file: %s", strerror(-r));
	if (stage == STAGE_RESTORE)
		report();
	return 0;
}

static void deinit(int stage, int ret)
{
	(void)stage;
	(void)ret;
	free(plugin.bytes);
	memset(&plugin, 0, sizeof(plugin));
}

static int resume(int pid)
{
	char why[RESLEEP_WHY_MAX];
	bool any = false;

	for (size_t i = 0; i < plugin.count; i++) {
		const struct deadline *d = &plugin.all[i];

		if (d->pid != pid)
			continue;
		any = true;
		if (resleep(d, why) == 0)
			plugin.done++;
		else if (!plugin.why[0])
			snprintf(plugin.why, sizeof(plugin.why), "thread %d: %s", d->tid, why);
	}
	if (any)
		report();
	return -ENOTSUP; /* CRIU's word for: it may ask others too */
}

struct criu_plugin CR_PLUGIN_DESC = {
	.name = "decamp",
	.init = init,
	.exit = deinit,
	.version = PLUGIN_VERSION,
	.max_hooks = HOOKS,
	.hooks[HOOK_RESUME_DEVICES_LATE] = (void *)resume,
};
