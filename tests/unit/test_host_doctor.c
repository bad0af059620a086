// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/host/host.h"
#include "agent/host/probe.h"
#include "agent/util/io.h"

/* Far more than it takes, for a machine that is busy with other tests. */
enum { DOCTOR_MS_MAX = 60000 };

static char folder[] = "/tmp/decamp-doctor-XXXXXX";

static void put_script(const char *name, const char *text, char path[256])
{
	snprintf(path, 256, "%s/%s", folder, name);
	assert_int_equal(write_file_atomic_at(AT_FDCWD, path, text, strlen(text), 0755), 0);
	assert_int_equal(chmod(path, 0755), 0);
}

static struct json_object *examine(const char *criu)
{
	struct json_object *report = NULL;
	struct host_config config;
	uint64_t start_ns = now_boot_ns();

	host_config_default(&config);
	snprintf(config.state_dir, sizeof(config.state_dir), "%s/state/not/yet", folder);
	snprintf(config.keeper_path, sizeof(config.keeper_path), "%s/lib/decamp-keeper", folder);
	snprintf(config.criu_path, sizeof(config.criu_path), "%s", criu);
	assert_int_equal(host_doctor(&config, &report), 0);
	assert_true(now_boot_ns() - start_ns < DOCTOR_MS_MAX * UINT64_C(1000000));
	return report;
}

static struct json_object *member(struct json_object *o, const char *key)
{
	struct json_object *value;

	assert_true(json_object_object_get_ex(o, key, &value));
	return value;
}

static struct json_object *find_feature(struct json_object *report, const char *name)
{
	struct json_object *list = member(report, "features");

	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *f = json_object_array_get_idx(list, i);

		if (!strcmp(json_object_get_string(member(f, "name")), name))
			return f;
	}
	fail_msg("no feature %s", name);
	return NULL;
}

static bool have(struct json_object *report, const char *name)
{
	return json_object_get_boolean(member(find_feature(report, name), "have"));
}

static bool warned(struct json_object *report, const char *text)
{
	struct json_object *list = member(report, "warnings");

	for (size_t i = 0; i < json_object_array_length(list); i++) {
		if (strstr(json_object_get_string(json_object_array_get_idx(list, i)), text))
			return true;
	}
	return false;
}

static void every_feature_is_explained(void **state)
{
	static const char *const names[] = {
		"criu",
		"namespaces",
		"CAP_SYS_RESOURCE",
		"CAP_CHECKPOINT_RESTORE",
		"cgroup v2",
		"cgroup freezer",
		"state on a disk",
		"run on tmpfs",
		"overlayfs",
		"overlay over the root",
		"eBPF",
		"userfaultfd WP_ASYNC + PAGEMAP_SCAN",
		"soft-dirty",
		"kernel module",
		"plugin for CRIU",
		"SCHED_FIFO",
		"locked memory",
		"logind",
	};
	struct json_object *report, *list;
	char criu[256];

	(void)state;
	put_script("criu", "#!/bin/sh\necho Version: 9.9\n", criu);
	report = examine(criu);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		find_feature(report, names[i]);
	list = member(report, "features");
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *f = json_object_array_get_idx(list, i);

		assert_true(json_object_is_type(member(f, "have"), json_type_boolean));
		assert_true(json_object_get_string_len(member(f, "use")) > 0);
		assert_true(json_object_get_string_len(member(f, "why")) > 0);
	}
	assert_true(have(report, "criu"));
	assert_non_null(strstr(json_object_get_string(member(find_feature(report, "criu"), "use")),
			       "version 9.9"));
	assert_int_equal(have(report, "kernel module"), access("/dev/decamp", R_OK) == 0);
	json_object_put(report);
}

static void plugin_beside_the_keeper(void **state)
{
	struct json_object *report = examine("/no/criu");
	char path[256];

	(void)state;
	assert_false(have(report, "plugin for CRIU"));
	json_object_put(report);
	snprintf(path, sizeof(path), "%s/lib/criu", folder);
	assert_int_equal(mkdir_parents(path, 0700), 0);
	put_script("lib/criu/decamp.so", "", path);
	report = examine("/no/criu");
	assert_true(have(report, "plugin for CRIU"));
	json_object_put(report);
}

static void criu_that_fails_its_check(void **state)
{
	struct json_object *report;
	char criu[256];

	(void)state;
	put_script("bad",
		   "#!/bin/sh\n[ $1 = check ] || { echo Version: 4.0; exit 0; }\n"
		   "echo 'Error (x.c:1): no such luck' >&2\nexit 1\n",
		   criu);
	report = examine(criu);
	assert_false(have(report, "criu"));
	assert_false(json_object_get_boolean(member(report, "ok")));
	assert_true(warned(report, "no such luck"));
	json_object_put(report);
}

static void criu_that_hangs(void **state)
{
	struct json_object *report;
	char criu[256];

	(void)state;
	put_script("slow",
		   "#!/bin/sh\n[ $1 = check ] || { echo Version: 4.0; exit 0; }\n"
		   "exec sleep 100\n",
		   criu);
	report = examine(criu);
	assert_true(have(report, "criu"));
	assert_true(warned(report, "did not end its own check"));
	json_object_put(report);
}

static void criu_is_searched(void **state)
{
	struct host_config config;
	char path[256], tiny[4], text[512];

	(void)state;
	put_script("criu", "#!/bin/sh\n", path);
	host_config_default(&config);
	snprintf(text, sizeof(text), "relative:/nonexistent:%s:/bin", folder);
	setenv("PATH", text, 1);
	text[0] = '\0';
	assert_int_equal(host_criu_path(&config, text, sizeof(text)), 0);
	assert_string_equal(text, path);
	assert_int_equal(host_criu_path(&config, tiny, sizeof(tiny)), -ENOENT);
	setenv("PATH", "/nonexistent", 1);
	assert_int_equal(host_criu_path(&config, text, sizeof(text)), -ENOENT);
	snprintf(config.criu_path, sizeof(config.criu_path), "%s", path);
	assert_int_equal(host_criu_path(&config, text, sizeof(text)), 0);
	assert_int_equal(host_criu_path(&config, tiny, sizeof(tiny)), -ENAMETOOLONG);
	snprintf(config.criu_path, sizeof(config.criu_path), "/nonexistent/criu");
	assert_int_equal(host_criu_path(&config, text, sizeof(text)), -ENOENT);
}

static void probes_leave_nothing(void **state)
{
	_cleanup_closedir_ DIR *dir = NULL;
	struct dirent *d;
	char base[1024];

	(void)state;
	probe_overlay(folder, "/");
	probe_overlay(folder, folder);
	assert_false(probe_overlay("/nonexistent", "/"));
	assert_false(probe_overlay(folder, "/a,b"));
	dir = opendir(folder);
	assert_non_null(dir);
	while ((d = readdir(dir)))
		assert_null(strstr(d->d_name, "probe"));
	if (host_cgroup_base(base, sizeof(base)) == 0) {
		char text[1100];

		assert_true(base[0] == '/');
		assert_string_equal(strrchr(base, '/'), "/decamp");
		probe_cgroup_freeze(base);
		snprintf(text, sizeof(text), "%s/.probe-%d", base, gettid());
		assert_int_equal(access(text, F_OK), -1);
		rmdir(base); /* only if it was empty: no daemon's jobs are in it */
		assert_int_equal(host_cgroup_base(base, 3), -ENAMETOOLONG);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_feature_is_explained),
		cmocka_unit_test(plugin_beside_the_keeper),
		cmocka_unit_test(criu_that_fails_its_check),
		cmocka_unit_test(criu_that_hangs),
		cmocka_unit_test(probes_leave_nothing),
		cmocka_unit_test(criu_is_searched),
	};
	int r;

	if (!mkdtemp(folder))
		return 1;
	setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus", 1);
	r = cmocka_run_group_tests(tests, NULL, NULL);
	return remove_tree_at(AT_FDCWD, folder) < 0 ? 1 : r;
}
