// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Each case is a child in the state that host_check() must see; the child never does more than
 * wait to be killed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "agent/host/host.h"
#include "agent/util/io.h"

enum { CANNOT = 77 };

struct child {
	pid_t pid;
	int ready;
	bool possible; /* false: this host does not let the child get into its state */
};

static int outside[2];	      /* a socketpair whose other end stays with the test */
static bool inherits_outside; /* is outside[0] left open in the children? */
static int served;	      /* a listening Unix socket of the test */
static char terminal_name[64];
static char folder[] = "/tmp/decamp-check-XXXXXX";

static void close_all_but(int keep)
{
	int null = open("/dev/null", O_RDWR);

	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	for (int fd = 3; fd < 64; fd++) {
		if (fd != keep && !(fd == outside[0] && inherits_outside))
			close(fd);
	}
}

static struct child start_child(int (*setup)(void))
{
	struct child c = { .pid = -1 };
	int fds[2];
	char byte = 0;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	c.pid = fork();
	assert_true(c.pid >= 0);
	if (c.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setsid();
		close_all_but(fds[1]);
		byte = (char)(setup ? setup() : 0);
		if (write(fds[1], &byte, 1) < 0)
			_exit(1);
		close(fds[1]);
		for (;;)
			pause();
	}
	close(fds[1]);
	assert_int_equal(read_full(fds[0], &byte, 1), 0);
	close(fds[0]);
	c.possible = byte == 0;
	return c;
}

static void end_child(const struct child *c)
{
	kill(c->pid, SIGKILL);
	waitpid(c->pid, NULL, 0);
}

static struct json_object *check(pid_t pid, uid_t uid, int want)
{
	struct json_object *report = NULL;

	assert_int_equal(host_check(pid, uid, &report), want);
	return report;
}

static const char *text_of(struct json_object *o, const char *key)
{
	struct json_object *value;

	assert_true(json_object_object_get_ex(o, key, &value));
	return json_object_get_string(value);
}

static struct json_object *list_of(struct json_object *report, const char *key)
{
	struct json_object *list;

	assert_true(json_object_object_get_ex(report, key, &list));
	return list;
}

static bool has_problem(struct json_object *report, const char *object, const char *reason)
{
	struct json_object *list = list_of(report, "problems");

	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *p = json_object_array_get_idx(list, i);

		assert_true(strlen(text_of(p, "next")) > 0);
		if (strstr(text_of(p, "object"), object) && strstr(text_of(p, "reason"), reason))
			return true;
	}
	return false;
}

static bool has_note(struct json_object *report, const char *text)
{
	struct json_object *list = list_of(report, "notes");

	for (size_t i = 0; i < json_object_array_length(list); i++) {
		if (strstr(json_object_get_string(json_object_array_get_idx(list, i)), text))
			return true;
	}
	return false;
}

static bool is_ok(struct json_object *report)
{
	struct json_object *ok;

	assert_true(json_object_object_get_ex(report, "ok", &ok));
	assert_string_equal(text_of(report, "engine"),
			    json_object_get_boolean(ok) ? "criu" : "none");
	return json_object_get_boolean(ok);
}

/* ---- what the children do; 0, or CANNOT ---- */

static int in_tree(void)
{
	int tree[2], fd = memfd_create("scratch", 0);

	/* A child, a pipe and a socketpair between the two: all inside of the job. */
	if (fd < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, tree) < 0)
		return CANNOT;
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
	}
	return 0;
}

static int open_tty(void)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY);

	return master >= 0 ? 0 : CANNOT;
}

static int tcp_listen(struct sockaddr_in *addr, socklen_t *len)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	*addr = (struct sockaddr_in){ .sin_family = AF_INET };
	addr->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(fd, (struct sockaddr *)addr, *len) < 0 || listen(fd, 1) < 0 ||
	    getsockname(fd, (struct sockaddr *)addr, len) < 0)
		return -1;
	return fd;
}

static int listen_tcp(void)
{
	struct sockaddr_in addr;
	socklen_t len = sizeof(addr);

	return tcp_listen(&addr, &len) < 0 ? CANNOT : 0;
}

static int connect_tcp(void)
{
	struct sockaddr_in addr;
	socklen_t len = sizeof(addr);
	int server = tcp_listen(&addr, &len), fd = socket(AF_INET, SOCK_STREAM, 0);

	if (server < 0 || connect(fd, (struct sockaddr *)&addr, len) < 0)
		return CANNOT;
	return 0;
}

static int connect_tcp6(void)
{
	struct sockaddr_in6 addr = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	int server = socket(AF_INET6, SOCK_STREAM, 0), fd = socket(AF_INET6, SOCK_STREAM, 0);
	socklen_t len = sizeof(addr);

	if (server < 0 || bind(server, (struct sockaddr *)&addr, len) < 0 ||
	    listen(server, 1) < 0 || getsockname(server, (struct sockaddr *)&addr, &len) < 0 ||
	    connect(fd, (struct sockaddr *)&addr, len) < 0)
		return CANNOT;
	return 0;
}

static int bind_udp(void)
{
	struct sockaddr_in addr = { .sin_family = AF_INET };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	return bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ? CANNOT : 0;
}

static int keep_outside(void)
{
	return 0; /* outside[0] was left open */
}

static int connect_unix(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/served", folder);
	return connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ? CANNOT : 0;
}

static int make_uring(void)
{
	char params[256] = { 0 };

	return syscall(SYS_io_uring_setup, 4, params) < 0 ? CANNOT : 0;
}

static int make_userfaultfd(void)
{
	return syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */) < 0 ? CANNOT : 0;
}

static int open_device(void)
{
	static const char *const paths[] = { "/dev/loop-control", "/dev/kmsg", "/dev/fuse",
					     "/dev/net/tun" };

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
		if (open(paths[i], O_RDWR) >= 0)
			return 0;
	}
	return CANNOT;
}

static int open_harmless(void)
{
	return open("/dev/zero", O_RDONLY) < 0 || open("/dev/urandom", O_RDONLY) < 0 ? CANNOT : 0;
}

static int be_traced(void)
{
	return ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 ? CANNOT : 0;
}

static int attach_sysv(void)
{
	int id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
	void *p = id < 0 ? (void *)-1 : shmat(id, NULL, 0);

	if (id >= 0)
		shmctl(id, IPC_RMID, NULL);
	return p == (void *)-1 ? CANNOT : 0;
}

static void *sleep_on(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static int in_sandbox(void)
{
	return unshare(CLONE_NEWUTS | CLONE_NEWIPC) < 0 ? CANNOT : 0;
}

static int watch_and_lock(void)
{
	int fd = open(folder, O_RDONLY | O_DIRECTORY), watch = inotify_init1(0);

	if (fd < 0 || flock(fd, LOCK_EX) < 0 || inotify_add_watch(watch, folder, IN_CREATE) < 0)
		return CANNOT;
	return 0;
}

static int take_terminal(void)
{
	int slave = open(terminal_name, O_RDWR);

	return slave < 0 || ioctl(slave, TIOCSCTTY, 1) < 0 ? CANNOT : slave;
}

static int keep_terminal(void)
{
	return take_terminal() == CANNOT ? CANNOT : 0;
}

/* As nohup leaves a program. */
static int close_terminal(void)
{
	int slave = take_terminal();

	return slave == CANNOT || close(slave) < 0 ? CANNOT : 0;
}

static int become_nobody(void)
{
	return setresuid(65534, 65534, 65534) < 0 ? CANNOT : 0;
}

/* ---- the cases ---- */

struct finding {
	const char *name;
	int (*setup)(void);
	const char *object,
		*reason; /* of a problem that must be named; NULL: the process is fine */
	const char *note;
	bool accepts; /* the test accepts a connection to its own socket */
};

static const struct finding findings[] = {
	{ "terminal", open_tty, "fd ", "terminal", NULL, false },
	{ "controlling terminal", keep_terminal, "fd ", "terminal", NULL, false },
	{ "nohup", close_terminal, NULL, NULL, "started from a terminal", false },
	{ "TCP connection", connect_tcp, "TCP 127.0.0.1:", "network connection", NULL, false },
	{ "TCP6 connection", connect_tcp6, "TCP [::1]:", "network connection", NULL, false },
	{ "TCP listener", listen_tcp, NULL, NULL, "listens on TCP 127.0.0.1:", false },
	{ "UDP", bind_udp, NULL, NULL, NULL, false },
	{ "Unix socket, unaccepted", connect_unix, "Unix socket", "not accepted it yet", NULL,
	  false },
	{ "Unix socket", connect_unix, "/served", "outside of the job", NULL, true },
	{ "io_uring", make_uring, "[io_uring]", "io_uring", NULL, false },
	{ "userfaultfd", make_userfaultfd, "[userfaultfd]", "userfaultfd", NULL, false },
	{ "device", open_device, "/dev/", "device", NULL, false },
	{ "harmless devices", open_harmless, NULL, NULL, NULL, false },
	{ "System V memory", attach_sysv, "/SYSV", "System V", NULL, false },
	{ "sandbox", in_sandbox, "PID ", "container", NULL, false },
	{ "inotify", watch_and_lock, NULL, NULL, "inotify", false },
	{ "lock", watch_and_lock, NULL, NULL, "holds a lock on /tmp/decamp-check-", false },
	{ "tree with memfd and sockets", in_tree, NULL, NULL, NULL, false },
};

static void test_finding(const struct finding *f)
{
	struct child c = start_child(f->setup);
	_cleanup_close_ int accepted = -1;
	int waiting;
	struct json_object *report;

	if (!c.possible) {
		print_message("%s: not possible here\n", f->name);
		end_child(&c);
		return;
	}
	accepted = f->accepts ? accept(served, NULL, NULL) : -1;
	report = check(c.pid, 0, 0);
	if (is_ok(report) != !f->object ||
	    (f->object && !has_problem(report, f->object, f->reason)) ||
	    (f->note && !has_note(report, f->note)))
		fail_msg("%s: %s", f->name,
			 json_object_to_json_string_ext(report, JSON_C_TO_STRING_PRETTY));
	json_object_put(report);
	end_child(&c);
	/* Whoever is still waiting is dead now. */
	while ((waiting = accept(served, NULL, NULL)) >= 0)
		close(waiting);
}

static void each_object_is_named(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(findings); i++)
		test_finding(&findings[i]);
}

static void socketpair_with_the_outside(void **state)
{
	const struct finding f = { "socketpair",	 keep_outside, "Unix socket",
				   "outside of the job", NULL,	       false };

	(void)state;
	inherits_outside = true;
	test_finding(&f);
	inherits_outside = false;
}

static void plain_process(void **state)
{
	struct json_object *report;
	struct child c = start_child(NULL);

	(void)state;
	report = check(c.pid, getuid(), 0);
	assert_true(is_ok(report));
	assert_string_equal(text_of(report, "name"), "test_host_check");
	assert_int_equal(atoi(text_of(report, "pid")), c.pid);
	json_object_put(report);
	end_child(&c);
}

static void traced_process(void **state)
{
	struct child c = start_child(be_traced);
	struct json_object *report;

	(void)state;
	if (!c.possible) {
		end_child(&c);
		skip();
	}
	report = check(c.pid, 0, 0);
	assert_true(has_problem(report, "PID ", "is traced by PID"));
	json_object_put(report);
	end_child(&c);
}

static void ended_process(void **state)
{
	struct json_object *report;
	siginfo_t info;
	pid_t pid = fork();

	(void)state;
	if (pid == 0)
		_exit(0);
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	report = check(pid, 0, 0);
	assert_true(has_problem(report, "PID ", "has ended already"));
	json_object_put(report);
	waitpid(pid, NULL, 0);
	assert_null(check(pid, 0, -ESRCH));
	assert_null(check(0, 0, -ESRCH));
	assert_null(check(-1, 0, -ESRCH));
}

static bool is_state(pid_t pid, char want)
{
	_cleanup_free_ char *text = NULL;
	char path[64];
	const char *close;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_file_at(AT_FDCWD, path, 4096, &text, NULL) < 0)
		return false;
	close = strrchr(text, ')');
	return close && close[2] == want;
}

/* By hand, since no thread may outlive the first one in a child that still has to report. */
static void exited_leader(void **state)
{
	struct json_object *report;
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		pthread_t thread;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setsid();
		close_all_but(-1);
		pthread_create(&thread, NULL, sleep_on, NULL);
		syscall(SYS_exit, 0); /* this thread only */
	}
	for (int i = 0; i < 30000 && !is_state(pid, 'Z'); i++)
		usleep(1000);
	report = check(pid, 0, 0);
	assert_true(has_problem(report, "PID ", "first thread has ended"));
	json_object_put(report);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void refused(pid_t pid, uid_t uid, const char *reason)
{
	struct json_object *report = check(pid, uid, -EPERM);

	assert_non_null(report);
	assert_false(is_ok(report));
	assert_true(has_problem(report, "PID ", reason));
	json_object_put(report);
}

static void nobody_may(void **state)
{
	struct child c = start_child(NULL);

	(void)state;
	refused(getpid(), 0, "part of decamp");
	if (getpid() != 1)
		refused(1, 0, "first process");
	refused(c.pid, getuid() + 12345, "another user");
	end_child(&c);
	/* The parent of all kernel threads, where this PID namespace shows them. */
	if (access("/proc/2/exe", F_OK) < 0 && is_state(2, 'S'))
		refused(2, 0, "kernel thread");
}

static void own_tree_is_refused(void **state)
{
	struct json_object *report;
	pid_t parent = getppid();

	(void)state;
	if (parent <= 1)
		skip();
	report = check(parent, 0, 0);
	assert_true(has_problem(report, "PID ", "part of decamp"));
	json_object_put(report);
}

static void users_see_their_own(void **state)
{
	struct child c = start_child(become_nobody);
	struct json_object *report;

	(void)state;
	if (!c.possible) {
		end_child(&c);
		skip();
	}
	refused(c.pid, 1, "another user");
	report = check(c.pid, 65534, 0);
	if (!host_has_sys_resource())
		assert_true(has_note(report, "CAP_SYS_RESOURCE"));
	json_object_put(report);
	end_child(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(plain_process),
		cmocka_unit_test(each_object_is_named),
		cmocka_unit_test(socketpair_with_the_outside),
		cmocka_unit_test(traced_process),
		cmocka_unit_test(ended_process),
		cmocka_unit_test(exited_leader),
		cmocka_unit_test(nobody_may),
		cmocka_unit_test(own_tree_is_refused),
		cmocka_unit_test(users_see_their_own),
	};
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), r;

	/* Its master stays here: a session whose terminal is gone gets SIGHUP. */
	if (terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0)
		ptsname_r(terminal, terminal_name, sizeof(terminal_name));
	served = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (!mkdtemp(folder) || served < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, outside) < 0)
		return 1;
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/served", folder);
	if (bind(served, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(served, 8) < 0)
		return 1;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	return remove_tree_at(AT_FDCWD, folder) < 0 ? 1 : r;
}
