// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Against a real D-Bus daemon with a mock of logind on it (tests/lab/logind), both private.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <systemd/sd-event.h>

#include <cmocka.h>

#include "agent/host/host.h"
#include "agent/util/io.h"

#define LOGIND_SCRIPT "tests/lab/logind"

enum { SKIP_CODE = 77, START_MS_MAX = 30000, EVENT_MS_MAX = 30000, QUIET_MS = 400, IDLE_S = 6 };

static char folder[] = "/tmp/decamp-watch-XXXXXX";
static char bus_path[64], control_path[64];
static pid_t logind;
static sd_event *event;

static struct {
	int came, gone, shutdown;
	char who[64];
} seen;

static void on_came(void *ctx, const char *who)
{
	(void)ctx;
	seen.came++;
	snprintf(seen.who, sizeof(seen.who), "%s", who);
}

static void on_gone(void *ctx)
{
	(void)ctx;
	seen.gone++;
}

static void on_shutdown(void *ctx)
{
	(void)ctx;
	seen.shutdown++;
}

static const struct host_watch_events events = { on_came, on_gone, on_shutdown, NULL };

/* True when "ready" was read; the pipe stays open in the script alone. */
static bool read_ready(int fd)
{
	char text[256];
	size_t used = 0;

	while (used + 1 < sizeof(text)) {
		ssize_t n = read(fd, text + used, sizeof(text) - 1 - used);

		if (n <= 0)
			return false;
		used += (size_t)n;
		text[used] = '\0';
		if (strstr(text, "ready\n"))
			return true;
	}
	return false;
}

static bool start_logind(void)
{
	_cleanup_close_ int out = -1;
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) < 0)
		return false;
	logind = fork();
	if (logind == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		dup2(fds[1], 1);
		execl(LOGIND_SCRIPT, LOGIND_SCRIPT, "--bus-socket", bus_path, "--control",
		      control_path, (char *)NULL);
		_exit(127);
	}
	close(fds[1]);
	out = fds[0];
	return logind > 0 && read_ready(out);
}

static void stop_logind(void)
{
	if (logind > 0) {
		kill(logind, SIGTERM);
		waitpid(logind, NULL, 0);
	}
	logind = 0;
}

/* Sends one command; the answer's words after "ok" go to answer. */
static void command(const char *line, char answer[64])
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char text[256] = "";
	ssize_t n;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", control_path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(write_full(fd, line, strlen(line)), 0);
	assert_int_equal(write_full(fd, "\n", 1), 0);
	n = read(fd, text, sizeof(text) - 1);
	assert_true(n > 0);
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (strncmp(text, "ok", 2))
		fail_msg("%s: %s", line, text);
	if (answer)
		snprintf(answer, 64, "%.63s", text[2] ? text + 3 : "");
}

/* Runs the loop until *counter reaches want. */
static void wait_count(const int *counter, int want)
{
	uint64_t end_ns = now_boot_ns() + EVENT_MS_MAX * UINT64_C(1000000);

	while (*counter < want && now_boot_ns() < end_ns)
		assert_true(sd_event_run(event, 100000) >= 0);
	assert_int_equal(*counter, want);
}

static void run_quietly(void)
{
	uint64_t end_ns = now_boot_ns() + QUIET_MS * UINT64_C(1000000);

	while (now_boot_ns() < end_ns)
		assert_true(sd_event_run(event, 50000) >= 0);
}

static void wait_connected(struct host_watch *w, bool want)
{
	uint64_t end_ns = now_boot_ns() + EVENT_MS_MAX * UINT64_C(1000000);

	while (host_watch_connected(w) != want && now_boot_ns() < end_ns)
		assert_true(sd_event_run(event, 100000) >= 0);
	assert_int_equal(host_watch_connected(w), want);
}

static struct host_watch *start(bool remote_logins, uint32_t return_idle_s)
{
	struct host_config config;
	struct host_watch *w = NULL;

	memset(&seen, 0, sizeof(seen));
	host_config_default(&config);
	config.remote_logins = remote_logins;
	config.return_idle_s = return_idle_s;
	assert_int_equal(host_watch_start(event, &config, &events, &w), 0);
	assert_int_equal(seen.came, 0);
	return w;
}

static void login_and_logout(void **state)
{
	struct host_watch *w = start(false, 1);
	char id[64], line[80];
	uint64_t gone_ns;

	(void)state;
	wait_connected(w, true);
	run_quietly();
	assert_int_equal(seen.came, 0);
	command("login ann seat0", id);
	wait_count(&seen.came, 1);
	assert_string_equal(seen.who, "ann");
	gone_ns = now_boot_ns();
	snprintf(line, sizeof(line), "logout %.60s", id);
	command(line, NULL);
	wait_count(&seen.gone, 1);
	assert_true(now_boot_ns() - gone_ns >= UINT64_C(1000000000));
	assert_int_equal(seen.came, 1);
	host_watch_stop(w);
}

static void session_from_before_the_start(void **state)
{
	struct host_watch *w;

	(void)state;
	command("login ben tty3", NULL);
	w = start(false, 0);
	wait_count(&seen.came, 1);
	assert_string_equal(seen.who, "ben");
	command("login ann seat0", NULL);
	run_quietly();
	assert_int_equal(seen.came, 1);
	command("logout all", NULL);
	wait_count(&seen.gone, 1);
	host_watch_stop(w);
}

static void return_within_the_idle_time(void **state)
{
	struct host_watch *w = start(false, IDLE_S);

	(void)state;
	command("login ann seat0", NULL);
	wait_count(&seen.came, 1);
	command("logout all", NULL);
	run_quietly();
	command("login ann seat0", NULL);
	for (int ms = 0; ms < IDLE_S * 1000; ms += QUIET_MS)
		run_quietly();
	assert_int_equal(seen.gone, 0);
	assert_int_equal(seen.came, 1);
	command("logout all", NULL);
	wait_count(&seen.gone, 1);
	host_watch_stop(w);
}

static void who_does_not_count(void **state)
{
	static const char *const logins[] = {
		"login ann pts/1 remote",
		"login gdm seat0 class=greeter",
		"login ann seat0 class=lock-screen",
		"login ann tty1 class=background",
		"login ann tty1 class=manager",
	};
	struct host_watch *w = start(false, 0);

	(void)state;
	wait_connected(w, true);
	for (size_t i = 0; i < ARRAY_SIZE(logins); i++)
		command(logins[i], NULL);
	run_quietly();
	assert_int_equal(seen.came, 0);
	command("logout all", NULL);
	run_quietly();
	assert_int_equal(seen.gone, 0);
	host_watch_stop(w);
}

static void remote_logins_by_configuration(void **state)
{
	struct host_watch *w = start(true, 0);

	(void)state;
	wait_connected(w, true);
	command("login eve pts/1 remote", NULL);
	wait_count(&seen.came, 1);
	assert_string_equal(seen.who, "eve");
	command("logout all", NULL);
	wait_count(&seen.gone, 1);
	host_watch_stop(w);
}

static void closing_session_is_over(void **state)
{
	struct host_watch *w = start(false, 0);
	char id[64], line[80];

	(void)state;
	command("login ann seat0", id);
	wait_count(&seen.came, 1);
	snprintf(line, sizeof(line), "closing %.60s", id);
	command(line, NULL);
	wait_count(&seen.gone, 1);
	command("logout all", NULL);
	host_watch_stop(w);
}

static void wait_inhibitors(const char *want)
{
	uint64_t end_ns = now_boot_ns() + EVENT_MS_MAX * UINT64_C(1000000);
	char count[64];

	do {
		run_quietly();
		command("inhibitors", count);
	} while (strcmp(count, want) && now_boot_ns() < end_ns);
	assert_string_equal(count, want);
}

static void shutdown_and_sleep(void **state)
{
	struct host_watch *w = start(false, 0);

	(void)state;
	wait_connected(w, true);
	wait_inhibitors("1");
	command("sleep on", NULL);
	wait_count(&seen.shutdown, 1);
	host_watch_ready(w);
	wait_inhibitors("0");
	command("sleep off", NULL);
	wait_inhibitors("1");
	assert_int_equal(seen.shutdown, 1);
	command("shutdown on", NULL);
	wait_count(&seen.shutdown, 2);
	host_watch_stop(w);
}

static void bus_comes_and_goes(void **state)
{
	struct host_watch *w = start(false, 0);

	(void)state;
	wait_connected(w, true);
	command("login ann seat0", NULL);
	wait_count(&seen.came, 1);
	stop_logind();
	wait_connected(w, false);
	/* Nobody knows who is there: no word of a leave. */
	run_quietly();
	assert_int_equal(seen.gone, 0);
	assert_true(start_logind());
	wait_connected(w, true);
	/* The new logind knows of no session. */
	wait_count(&seen.gone, 1);
	host_watch_stop(w);
}

static void no_bus_is_no_error(void **state)
{
	struct host_watch *w;

	(void)state;
	stop_logind();
	w = start(false, 0);
	run_quietly();
	assert_false(host_watch_connected(w));
	host_watch_ready(w);
	host_watch_stop(w);
	host_watch_stop(NULL);
	assert_true(start_logind());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(login_and_logout),
		cmocka_unit_test(session_from_before_the_start),
		cmocka_unit_test(return_within_the_idle_time),
		cmocka_unit_test(who_does_not_count),
		cmocka_unit_test(remote_logins_by_configuration),
		cmocka_unit_test(closing_session_is_over),
		cmocka_unit_test(shutdown_and_sleep),
		cmocka_unit_test(bus_comes_and_goes),
		cmocka_unit_test(no_bus_is_no_error),
	};
	char address[96];
	int r;

	if (system("command -v dbus-daemon >/dev/null && /usr/bin/python3 -c 'import dbusmock, dbus' "
		   "2>/dev/null")) {
		printf("SKIP: dbus-daemon or python3-dbusmock is not installed\n");
		return SKIP_CODE;
	}
	if (!mkdtemp(folder))
		return 1;
	snprintf(bus_path, sizeof(bus_path), "%s/bus", folder);
	snprintf(control_path, sizeof(control_path), "%s/control", folder);
	snprintf(address, sizeof(address), "unix:path=%s", bus_path);
	setenv("DBUS_SYSTEM_BUS_ADDRESS", address, 1);
	r = 1;
	if (sd_event_default(&event) >= 0 && start_logind())
		r = cmocka_run_group_tests(tests, NULL, NULL);
	else
		printf("the stand-in for logind does not start\n");
	stop_logind();
	sd_event_unref(event);
	return remove_tree_at(AT_FDCWD, folder) < 0 ? 1 : r;
}
