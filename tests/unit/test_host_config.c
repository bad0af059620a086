// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "agent/host/host.h"
#include "agent/util/io.h"

static int load(const char *text, size_t size, struct host_config *config, char error[256])
{
	char path[] = "/tmp/decamp-config-XXXXXX";
	int fd = mkstemp(path), r;
	char *at;

	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, text, size), 0);
	close(fd);
	host_config_default(config);
	error[0] = '\0';
	r = host_config_load(config, path, error);
	unlink(path);
	/* Messages begin with the path, which is a new one each time. */
	if (error[0]) {
		at = strstr(error, path);
		assert_ptr_equal(at, error);
		memmove(error, error + strlen(path), strlen(error + strlen(path)) + 1);
	}
	return r;
}

static void defaults_are_valid(void **state)
{
	struct host_config config;
	char error[256] = "untouched";

	(void)state;
	host_config_default(&config);
	assert_int_equal(host_config_load(&config, "/nonexistent/decampd.conf", error), 0);
	assert_string_equal(error, "untouched");
	assert_string_equal(config.state_dir, "/var/lib/decamp");
	assert_int_equal(config.port, 7431);
	assert_int_equal(config.hold_ms, 22000);
	assert_true(config.quota_bytes == UINT64_C(20) << 30);
	assert_true(config.folder_bytes == UINT64_C(16) << 30);
	assert_true(config.pack_memory == 256 << 20 && config.pack_disk == UINT64_C(2) << 30);
	assert_int_equal(config.pack_cpu_percent, 100);
	assert_true(config.takes_jobs && config.vacate_on_login && !config.remote_logins);
	assert_true(config.room[0] != '\0');
	assert_int_equal(load("", 0, &config, error), 0);
}

static void values_are_read(void **state)
{
	static const char text[] = "# a lab\n"
				   "state_dir = /srv/decamp\n"
				   "\n"
				   "  room=R-12.3   # beside the stairs\n"
				   "listen_addr = 10.0.0.1\r\n"
				   "advertise_addr = fd00::1\n"
				   "port = 65535\n"
				   "quota_bytes = 3G\n"
				   "folder_bytes = 0\n"
				   "reserve_bytes = 512k\n"
				   "scrub_bytes_s = 3M\n"
				   "pack_memory = 64M\n"
				   "pack_disk = 0\n"
				   "pack_cpu_percent = 25\n"
				   "credit_round_s = 20\n"
				   "closure_max_bytes = 7\n"
				   "lease_ms = 3000\n"
				   "renew_ms = 700\n"
				   "hold_ms = 3504\n"
				   "takes_jobs = no\n"
				   "tags = gpu,matlab-2024 ,\t R4.3\n"
				   "remote_logins = yes\n"
				   "erasure = 8+8\n"
				   "erasure_after = 3\n"
				   "copies = 5";
	struct host_config config;
	char error[256];

	(void)state;
	assert_int_equal(load(text, strlen(text), &config, error), 0);
	assert_string_equal(error, "");
	assert_string_equal(config.state_dir, "/srv/decamp");
	assert_string_equal(config.room, "R-12.3");
	assert_string_equal(config.listen_addr, "10.0.0.1");
	assert_string_equal(config.advertise_addr, "fd00::1");
	assert_int_equal(config.port, 65535);
	assert_true(config.quota_bytes == UINT64_C(3) << 30);
	assert_true(config.folder_bytes == 0);
	assert_true(config.reserve_bytes == 512 << 10);
	assert_true(config.scrub_bytes_s == 3 << 20);
	assert_true(config.pack_memory == 64 << 20 && config.pack_disk == 0);
	assert_int_equal(config.pack_cpu_percent, 25);
	assert_int_equal(config.credit_round_s, 20);
	assert_true(config.closure_max_bytes == 7);
	assert_int_equal(config.hold_ms, 3504);
	assert_true(!config.takes_jobs && config.remote_logins);
	assert_int_equal(config.copies, 5);
	assert_string_equal(config.erasure, "8+8");
	assert_int_equal(config.erasure_after, 3);
	assert_string_equal(config.tags, "gpu matlab-2024 R4.3");
}

static bool is_closed(const uint8_t *hours, unsigned int day, unsigned int hour)
{
	unsigned int bit = day * 24 + hour;

	return hours[bit / 8] >> bit % 8 & 1;
}

static void closed_hours_are_read(void **state)
{
	static const char *const wrong[] = { "mon",	     "mon 20",	   "mon 20-", "mon 25-8",
					     "mon 24-8",     "mon 20-25",  "mo 20-8", "mon 20-8,",
					     "mon 20-8 tue", "monday 1-2", "20-8",    "mon 020-8" };
	enum { THU, FRI, SAT, SUN, MON, TUE, WED };
	uint8_t hours[21], before[21];
	unsigned int count = 0;

	(void)state;
	assert_int_equal(host_hours_parse("", hours), 0);
	for (unsigned int i = 0; i < sizeof(hours); i++)
		assert_int_equal(hours[i], 0);
	assert_int_equal(host_hours_parse(" mon-fri 20-8, Sat-sun 0-24", hours), 0);
	assert_true(is_closed(hours, MON, 20) && is_closed(hours, TUE, 7));
	assert_false(is_closed(hours, MON, 7) || is_closed(hours, TUE, 8));
	assert_true(is_closed(hours, SAT, 0) && is_closed(hours, SUN, 23));
	for (unsigned int bit = 0; bit < 168; bit++)
		count += is_closed(hours, bit / 24, bit % 24);
	assert_int_equal(count, 5 * 12 + 48 - 8); /* Saturday's first 8 are in both */
	/* Wednesday's night reaches into the first day of the scale. */
	assert_int_equal(host_hours_parse("wed 23-1", hours), 0);
	assert_true(is_closed(hours, WED, 23) && is_closed(hours, THU, 0));
	memcpy(before, hours, sizeof(hours));
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		assert_int_equal(host_hours_parse(wrong[i], hours), -EINVAL);
		assert_memory_equal(hours, before, sizeof(hours));
	}
}

static void errors_name_the_place(void **state)
{
	static const struct {
		const char *text, *error;
	} cases[] = {
		{ "lease_m = 5", ":1: lease_m: unknown key; did you mean lease_ms?" },
		{ "\n\nstatedir=/x", ":3: statedir: unknown key; did you mean state_dir?" },
		{ "port", ":1: port: expected \"key = value\"" },
		{ "port = 0", ":1: port: 0 is not within 1..65535" },
		{ "port = 65536", ":1: port: 65536 is not within 1..65535" },
		{ "port = -1", ":1: port: \"-1\" is no whole number" },
		{ "port = 1x", ":1: port: \"1x\" is no whole number" },
		{ "port = 1K", ":1: port: \"1K\" is no whole number" },
		{ "port =", ":1: port: \"\" is no whole number" },
		{ "port = 1\n#\nport = 2", ":3: port: already set in line 1" },
		{ "closed_hours = mon 8",
		  ":1: closed_hours: \"mon 8\" is no list like mon-fri 20-8, "
		  "sat-sun 0-24" },
		{ "tags = gpu, a+b", ":1: tags: \"a+b\" is no tag (letters, digits, '.', '_' and "
				     "'-', at most 31)" },
		{ "tags = gpu mem", ":1: tags: \"mem\" has a meaning of its own" },
		{ "tags = gpu big gpu", ":1: tags: \"gpu\" is there twice" },
		{ "tags = abcdefghijklmnopqrstuvwxyz0123 abcdefghijklmnopqrstuvwxyz012",
		  ":1: tags: more than 59 letters" },
		{ "tags = abcdefghijklmnopqrstuvwxyz012345",
		  ":1: tags: \"abcdefghijklmnopqrstuvwxyz012345\" is no tag (letters, digits, "
		  "'.', '_' and '-', at most 31)" },
		{ "erasure = 4+3", ":1: erasure: \"4+3\" is neither off, auto, 4+2, 4+4 nor 8+8" },
		{ "erasure_after = 0", ":1: erasure_after: 0 is not within 1..1000000" },
		{ "copies = 6", ":1: copies: 6 is not within 1..5" },
		{ "copies = 0", ":1: copies: 0 is not within 1..5" },
		{ "quota_bytes = 1KB", ":1: quota_bytes: \"1KB\" is no size (digits, then K, M, G "
				       "or T if wished)" },
		{ "quota_bytes = 99999999999T",
		  ":1: quota_bytes: 99999999999T is not within 0..9223372036854775807" },
		{ "quota_bytes = 99999999999999999999",
		  ":1: quota_bytes: 99999999999999999999 is not within 0..9223372036854775807" },
		{ "state_dir = var", ":1: state_dir: \"var\" is no absolute path" },
		{ "state_dir =", ":1: state_dir: must not be empty" },
		{ "user = 0day", ":1: user: \"0day\" is no user name" },
		{ "user = a/b", ":1: user: \"a/b\" is no user name" },
		{ "room = a b",
		  ":1: room: \"a b\" has more than letters, digits, '.', '_' and '-'" },
		{ "listen_addr = host", ":1: listen_addr: \"host\" is no IPv4 or IPv6 address" },
		{ "takes_jobs = maybe", ":1: takes_jobs: \"maybe\" is neither yes nor no" },
		{ "user = abcdefghijklmnopqrstuvwxyzabcdefghij",
		  ":1: user: is longer than 31 bytes" },
		{ "# x\nhold_ms = 20500\n",
		  ":2: hold_ms: 20500 is too short: lease_ms = 20000 needs 1.001 * (lease_ms + "
		  "500), at least 20521" },
		{ "hold_ms = 22000\nlease_ms = 30000\n",
		  ":2: hold_ms: 22000 is too short: lease_ms = 30000 needs 1.001 * (lease_ms + "
		  "500), at least 30531" },
		{ "renew_ms = 10001",
		  ":1: lease_ms: 20000 is too short: at least twice renew_ms, 20002" },
		{ "suspect_ms = 1999",
		  ":1: suspect_ms: 1999 is too short: at least twice probe_ms, 2000" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct host_config config, before;
		char error[256];

		host_config_default(&before);
		assert_int_equal(load(cases[i].text, strlen(cases[i].text), &config, error),
				 -EINVAL);
		assert_string_equal(error, cases[i].error);
		assert_memory_equal(&config, &before, sizeof(config));
	}
}

static void foreign_bytes_are_bounded(void **state)
{
	enum { LONG = 70000 };
	_cleanup_free_ char *text = malloc(LONG);
	struct host_config config;
	char error[256];

	(void)state;
	assert_non_null(text);
	memset(text, 'x', LONG);
	assert_int_equal(load(text, LONG, &config, error), -EINVAL);
	assert_string_equal(error, ":0: file: is larger than 65536 bytes");
	assert_int_equal(load(text, 2000, &config, error), -EINVAL);
	assert_string_equal(error, ":1: line: is longer than 1023 bytes");
	assert_int_equal(load(text, 900, &config, error), -EINVAL);
	text[1000] = '=';
	assert_int_equal(load(text, 1010, &config, error), -EINVAL);
	assert_non_null(strstr(error, "unknown key"));
	assert_int_equal(load("port = 1\n\0\n", 11, &config, error), -EINVAL);
	assert_string_equal(error, ":2: line: holds a NUL byte");
	assert_int_equal(load("\377\376=\200", 4, &config, error), -EINVAL);
}

static void unreadable_file(void **state)
{
	struct host_config config;
	char error[256] = "";

	(void)state;
	host_config_default(&config);
	assert_int_equal(host_config_load(&config, "/proc/self", error), -EISDIR);
	assert_string_equal(error, "/proc/self:0: file: cannot be read: Is a directory");
}

static void resources_make_sense(void **state)
{
	struct host_resources res;

	(void)state;
	assert_int_equal(host_resources(&res), 0);
	assert_true(res.mem_free_bytes > 1 << 20);
	assert_true(res.cpus >= 1);
	assert_true(res.kernel_version >= 0x30000); /* 3.0 */
	assert_true(res.arch[0] && res.kernel[0] && res.hostname[0]);
#ifdef __x86_64__
	/* Every x86-64 has SSE2 (leaf 1, EDX bit 26), and x87 and SSE state where it has xsave. */
	assert_true(res.cpu_features[0] >> 26 & 1);
	if (res.cpu_features[0] >> 32 >> 27 & 1)
		assert_int_equal(res.cpu_features[3] & 3, 3);
#endif
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(defaults_are_valid),
		cmocka_unit_test(values_are_read),
		cmocka_unit_test(closed_hours_are_read),
		cmocka_unit_test(errors_name_the_place),
		cmocka_unit_test(foreign_bytes_are_bounded),
		cmocka_unit_test(unreadable_file),
		cmocka_unit_test(resources_make_sense),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
