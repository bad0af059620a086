// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Images of tasks, as the native engine writes them: field by field the same as CRIU's of the same
 * process in the same state; and a process that CRIU restores from them is what it was. Memory and
 * files are CRIU's own here. Skipped where there is no CRIU: DECAMP_CRIU names it, else
 * scripts/criu does.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/native/core.pb-c.h"
#include "agent/native/img.h"
#include "agent/util/io.h"
#include "tests/unit/state_lab.h"

enum { IMAGE_MAX = 1 << 20, WAIT_MS = 60000, COMMAND_MAX = 2048 };

/* ---- children ---- */

static void *sleeper(void *arg)
{
	volatile double x = 1.25;
	sigset_t set;

	prctl(PR_SET_NAME, arg);
	sigfillset(&set);
	sigdelset(&set, SIGUSR2);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	for (;;) {
		x *= 1.5;
		pause();
	}
	return NULL;
}

static void child_threads(void)
{
	pthread_t thread;

	state_lab_all();
	pthread_create(&thread, NULL, sleeper, "first");
	pthread_create(&thread, NULL, sleeper, "second");
}

/* Two filters that allow all but a call that nobody makes. */
static void child_filters(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_acct, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 77),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { ARRAY_SIZE(code), code };
	pthread_t thread;

	setsid();
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
		_exit(97);
	code[2].k = SECCOMP_RET_ERRNO | 78;
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_LOG, &program) < 0)
		_exit(97);
	pthread_create(&thread, NULL, sleeper, "filtered");
}

static const struct {
	const char *mode;
	void (*fn)(void);
} modes[] = { { "all", state_lab_all },
	      { "threads", child_threads },
	      { "filters", child_filters } };

/* ---- CRIU ---- */

static bool find_criu(char path[PATH_MAX])
{
	const char *given = getenv("DECAMP_CRIU");
	FILE *f = given ? NULL : popen("scripts/criu 2>/dev/null", "re");

	path[0] = '\0';
	if (given)
		snprintf(path, PATH_MAX, "%s", given);
	if (f && fgets(path, PATH_MAX, f))
		path[strcspn(path, "\n")] = '\0';
	if (f)
		pclose(f);
	return path[0] && access(path, X_OK) == 0;
}

#ifdef __SANITIZE_ADDRESS__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

static const char *need_criu(void)
{
	static char path[PATH_MAX];

	if (SANITIZED) {
		print_message("SKIP: CRIU cannot dump a process with the sanitizer's terabytes\n");
		skip();
	}
	if (!find_criu(path)) {
		print_message("SKIP: no criu\n");
		skip();
	}
	return path;
}

static int run(const char *fmt, ...) _printf_(1, 2);

static int run(const char *fmt, ...)
{
	char command[COMMAND_MAX];
	va_list ap;
	int n, status;

	va_start(ap, fmt);
	n = vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	assert_true(n > 0 && (size_t)n < sizeof(command));
	status = system(command);
	if (status != 0)
		print_message("status %d: %s\n", status, command);
	return status;
}

static void criu_dump(struct state_lab *s, const char *criu, const char *flags)
{
	assert_int_equal(run("mkdir %s/criu && %s dump -t %d -D %s/criu --shell-job "
			     "--manage-cgroups=ignore --network-lock skip -o log %s "
			     ">/dev/null 2>&1 || { tail -n 5 %s/criu/log; exit 1; }",
			     s->dir, criu, s->child, s->dir, flags, s->dir),
			 0);
}

/* Freezes the child and writes the images of its tasks to DIR/native. */
static void native_dump(struct state_lab *s)
{
	char path[96];
	int r;

	snprintf(path, sizeof(path), "%s/native", s->dir);
	assert_int_equal(mkdir(path, 0700), 0);
	r = state_lab_freeze(s);
	if (r == 0)
		r = state_collect(s->state, &s->tree);
	if (r == 0)
		r = state_check(&s->tree);
	if (r == 0)
		r = regs_collect(&s->tree);
	thaw_tree(&s->tree);
	s->tree.images = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (r == 0)
		r = state_write(&s->tree);
	close(s->tree.images);
	if (r < 0)
		fail_msg("%s: %s", strerror(-r), s->reason);
}

/* ---- comparing ---- */

static ProtobufCMessage *read_image(struct state_lab *s, const char *folder, const char *name,
				    const ProtobufCMessageDescriptor *type)
{
	size_t head = strcmp(name, "inventory") ? 8 : 4, size;
	_cleanup_free_ char *bytes = NULL;
	ProtobufCMessage *m;
	uint32_t length;
	char path[160];

	snprintf(path, sizeof(path), "%s/%s/%s.img", s->dir, folder, name);
	assert_int_equal(read_file_at(AT_FDCWD, path, IMAGE_MAX, &bytes, &size), 0);
	assert_true(size >= head + 4);
	memcpy(&length, bytes + head, 4);
	assert_true(length <= size - head - 4);
	m = protobuf_c_message_unpack(type, NULL, length, (uint8_t *)bytes + head + 4);
	assert_non_null(m);
	return m;
}

/* The same magic numbers. */
static void compare_heads(struct state_lab *s, const char *name)
{
	size_t head = strcmp(name, "inventory") ? 8 : 4, sizes[2];
	_cleanup_free_ char *ours = NULL, *theirs = NULL;
	char path[160];

	snprintf(path, sizeof(path), "%s/native/%s.img", s->dir, name);
	assert_int_equal(read_file_at(AT_FDCWD, path, IMAGE_MAX, &ours, &sizes[0]), 0);
	snprintf(path, sizeof(path), "%s/criu/%s.img", s->dir, name);
	assert_int_equal(read_file_at(AT_FDCWD, path, IMAGE_MAX, &theirs, &sizes[1]), 0);
	assert_memory_equal(ours, theirs, head);
}

/*
 * Accepted differences: time goes on between the two dumps; ids are any numbers; the flags of a
 * task (PF_*) say that it was traced.
 */
static bool may_differ(const char *type, const char *field)
{
	static const char *const pairs[][2] = {
		{ "NatCore.Itimer", "vsec" },	  { "NatCore.Itimer", "vusec" },
		{ "NatCore.PosixTimer", "vsec" }, { "NatCore.PosixTimer", "vnsec" },
		{ "NatCore.Ids", "vm_id" },	  { "NatCore.Ids", "files_id" },
		{ "NatCore.Ids", "fs_id" },	  { "NatCore.Ids", "sighand_id" },
		{ "NatCore.Task", "flags" },	  { "NatCore.Timespec", "sec" },
		{ "NatCore.Timespec", "nsec" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(pairs); i++) {
		if (!strcmp(type, pairs[i][0]) && !strcmp(field, pairs[i][1]))
			return true;
	}
	return false;
}

static size_t compare(const ProtobufCMessage *a, const ProtobufCMessage *b);

static size_t width(const ProtobufCFieldDescriptor *f)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_UINT64:
		return 8;
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	default:
		return 4;
	}
}

static size_t compare_value(const ProtobufCFieldDescriptor *f, const char *type, const void *a,
			    const void *b)
{
	const ProtobufCBinaryData *x = a, *y = b;
	uint64_t left = 0, right = 0;
	bool same;

	if (f->type == PROTOBUF_C_TYPE_MESSAGE)
		return compare(*(ProtobufCMessage *const *)a, *(ProtobufCMessage *const *)b);
	if (f->type == PROTOBUF_C_TYPE_STRING) {
		same = !strcmp(*(char *const *)a, *(char *const *)b);
	} else if (f->type == PROTOBUF_C_TYPE_BYTES) {
		same = x->len == y->len && !memcmp(x->data, y->data, x->len);
	} else {
		memcpy(&left, a, width(f));
		memcpy(&right, b, width(f));
		same = left == right;
	}
	if (same || may_differ(type, f->name))
		return 0;
	print_message("%s.%s: %#llx, but CRIU %#llx\n", type, f->name, (unsigned long long)left,
		      (unsigned long long)right);
	return 1;
}

static size_t compare_repeated(const ProtobufCFieldDescriptor *f, const char *type, const char *a,
			       const char *b)
{
	size_t n = *(const size_t *)(a + f->quantifier_offset);
	size_t m = *(const size_t *)(b + f->quantifier_offset), bad = 0;
	const char *x = *(const char *const *)(a + f->offset);
	const char *y = *(const char *const *)(b + f->offset);

	if (n != m) {
		print_message("%s.%s: %zu values, but CRIU %zu\n", type, f->name, n, m);
		return 1;
	}
	for (size_t i = 0; i < n; i++)
		bad += compare_value(f, type, x + i * width(f), y + i * width(f));
	return bad;
}

static bool is_present(const ProtobufCFieldDescriptor *f, const char *m)
{
	if (f->type == PROTOBUF_C_TYPE_MESSAGE || f->type == PROTOBUF_C_TYPE_STRING)
		return *(void *const *)(m + f->offset) != NULL;
	return f->label == PROTOBUF_C_LABEL_REQUIRED ||
	       *(const protobuf_c_boolean *)(m + f->quantifier_offset);
}

/* How many fields differ. */
static size_t compare(const ProtobufCMessage *a, const ProtobufCMessage *b)
{
	const ProtobufCMessageDescriptor *d = a->descriptor;
	size_t bad = 0;

	for (unsigned int i = 0; i < d->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &d->fields[i];
		const char *x = (const char *)a, *y = (const char *)b;

		if (f->label == PROTOBUF_C_LABEL_REPEATED) {
			bad += compare_repeated(f, d->name, x, y);
		} else if (is_present(f, x) != is_present(f, y)) {
			print_message("%s.%s: only %s has it\n", d->name, f->name,
				      is_present(f, x) ? "ours" : "CRIU's");
			bad++;
		} else if (is_present(f, x)) {
			bad += compare_value(f, d->name, x + f->offset, y + f->offset);
		}
	}
	return bad;
}

static size_t compare_images(struct state_lab *s, const char *name,
			     const ProtobufCMessageDescriptor *type)
{
	ProtobufCMessage *ours = read_image(s, "native", name, type);
	ProtobufCMessage *theirs = read_image(s, "criu", name, type);
	size_t bad = compare(ours, theirs);

	compare_heads(s, name);
	if (bad)
		print_message("%s: %zu fields differ\n", name, bad);
	protobuf_c_message_free_unpacked(ours, NULL);
	protobuf_c_message_free_unpacked(theirs, NULL);
	return bad;
}

static void report_path(struct state_lab *s, char path[128], const char *suffix)
{
	snprintf(path, 128, "%s/report%s", s->dir, suffix);
}

static void start(struct state_lab *s, const char *mode)
{
	char file[128];

	assert_int_equal(run("rm -rf %s/*", s->dir), 0);
	report_path(s, file, "");
	state_lab_start_alone(s, mode, file);
}

static size_t compare_all(struct state_lab *s)
{
	const struct native_task *task = &s->tree.tasks[0];
	size_t bad = 0;
	char name[32];

	for (size_t i = 0; i < task->thread_count; i++) {
		snprintf(name, sizeof(name), "core-%d", task->threads[i].tid);
		bad += compare_images(s, name, &nat_core__core__descriptor);
	}
	snprintf(name, sizeof(name), "ids-%d", task->pid);
	bad += compare_images(s, name, &nat_core__ids__descriptor);
	bad += compare_images(s, "pstree", &nat_core__pstree__descriptor);
	bad += compare_images(s, "timens-0", &nat_core__timens__descriptor);
	bad += compare_images(s, "inventory", &nat_core__inventory__descriptor);
	return bad;
}

/* Without CRIU: what a reader of the image finds. */
static void test_written(void **state)
{
	struct state_lab *s = state_lab(state);

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		const struct native_thread *t;
		NatCore__Core *core;
		char name[32];

		start(s, modes[i].mode);
		native_dump(s);
		t = &s->tree.tasks[0].threads[s->tree.tasks[0].thread_count - 1];
		snprintf(name, sizeof(name), "core-%d", t->tid);
		core = (NatCore__Core *)read_image(s, "native", name, &nat_core__core__descriptor);
		assert_int_equal(core->thread_info->gpregs->ip, t->regs.rip);
		assert_int_equal(core->thread_info->gpregs->fs_base, t->regs.fs_base);
		assert_memory_equal(core->thread_info->fpregs->xmm, t->xsave + 160, 256);
		assert_int_equal(core->thread->robust_list, t->state->robust_list);
		assert_int_equal(core->thread->creds->n_groups, t->state->creds.group_count);
		assert_int_equal(core->task != NULL, t->tid == s->child);
		if (core->task)
			assert_int_equal(core->task->n_actions, 62);
		protobuf_c_message_free_unpacked(&core->base, NULL);
		state_lab_kill(s);
	}
}

static void test_same_as_criu(void **state)
{
	struct state_lab *s = state_lab(state);
	const char *criu = need_criu();

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		start(s, modes[i].mode);
		native_dump(s);
		criu_dump(s, criu, "--leave-running");
		assert_int_equal(compare_all(s), 0);
		if (!strcmp(modes[i].mode, "filters"))
			assert_int_equal(
				compare_images(s, "seccomp", &nat_core__seccomp__descriptor), 0);
		state_lab_kill(s);
	}
}

/* ---- restoring ---- */

static void read_report(struct state_lab *s, const char *suffix, struct state_report *ret_report)
{
	_cleanup_close_ int fd = -1;
	char path[128];

	report_path(s, path, suffix);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(read_full(fd, ret_report, sizeof(*ret_report)), 0);
}

static int64_t of_timespec(const struct timespec *t)
{
	return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

static void assert_close_ns(int64_t a, int64_t b)
{
	assert_true(a - b < WAIT_MS * 1000000ll && b - a < WAIT_MS * 1000000ll);
}

/* Takes the times out of two reports, after a look at them. */
static void compare_times(struct state_report *before, struct state_report *after)
{
	int64_t went_on = of_timespec(&after->monotonic) - of_timespec(&before->monotonic);

	assert_true(went_on > 0 && went_on < WAIT_MS * 1000000ll);
	for (int i = 0; i < REPORT_TIMERS; i++) {
		assert_close_ns(of_timespec(&before->timers[i].it_value),
				of_timespec(&after->timers[i].it_value));
		before->timers[i].it_value = after->timers[i].it_value = (struct timespec){ 0 };
	}
	for (int i = 0; i < 3; i++) {
		assert_close_ns(before->itimers[i].it_value.tv_sec * 1000000000ll,
				after->itimers[i].it_value.tv_sec * 1000000000ll);
		before->itimers[i].it_value = after->itimers[i].it_value = (struct timeval){ 0 };
	}
	before->monotonic = after->monotonic = (struct timespec){ 0 };
}

/*
 * Our images over CRIU's, in a PID namespace of its own; the child writes its report and ends. A
 * signal that comes before it sleeps again does not wake it, so it is woken until it is done.
 */
static void restore(struct state_lab *s, const char *criu)
{
	assert_int_equal(run("cp %s/native/* %s/criu/ && mv %s/criu/fdinfo-2.img "
			     "%s/criu/fdinfo-%u.img",
			     s->dir, s->dir, s->dir, s->dir, s->tree.tasks[0].files_id),
			 0);
	assert_int_equal(
		run("timeout 30 unshare -p -f -m --mount-proc sh -c '"
		    "%s restore -d --shell-job --manage-cgroups=ignore -D %s/criu -o restore.log "
		    ">/dev/null 2>&1 || { tail -n 5 %s/criu/restore.log; exit 1; }; "
		    "n=0; until [ -e %s/report.after ] || [ $n -gt 100 ]; do "
		    "kill -USR1 %d 2>/dev/null; sleep 0.1; n=$((n+1)); done'",
		    criu, s->dir, s->dir, s->dir, s->child),
		0);
}

static void test_restore(void **state)
{
	struct state_lab *s = state_lab(state);
	struct state_report before, after;
	const char *criu = need_criu();

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		start(s, modes[i].mode);
		native_dump(s);
		criu_dump(s, criu, "");
		waitpid(s->child, NULL, 0);
		restore(s, criu);
		s->child = 0;
		read_report(s, ".before", &before);
		read_report(s, ".after", &after);
		if (strcmp(modes[i].mode, "filters"))
			assert_int_equal(after.queued_value, 77);
		after.queued_value = 0;
		/* Its new parent is the init of the namespace, or nobody that it can see. */
		before.ppid = after.ppid;
		compare_times(&before, &after);
		for (size_t at = 0; at < sizeof(before); at += 4) {
			if (memcmp((char *)&before + at, (char *)&after + at, 4) != 0)
				print_message("%s: byte %zu of the report differs\n", modes[i].mode,
					      at);
		}
		assert_memory_equal(&before, &after, sizeof(before));
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_written),
		cmocka_unit_test(test_same_as_criu),
		cmocka_unit_test(test_restore),
	};

	for (size_t i = 0; argc == 3 && i < ARRAY_SIZE(modes); i++) {
		if (!strcmp(argv[1], modes[i].mode))
			state_lab_child(modes[i].fn, argv[2]);
	}
	return cmocka_run_group_tests(tests, state_lab_setup, state_lab_teardown);
}
