// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/unit/ipc_lab.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "agent/native/files.h"
#include "agent/native/freeze.h"
#include "agent/native/state.h"
#include "agent/native/take.h"
#include "agent/util/io.h"

#ifdef __SANITIZE_ADDRESS__
#define ASAN true
#else
#define ASAN false
#endif

enum {
	HEAD_BYTES = 8, /* two magic numbers */
	FREEZE_MS = 30000,
	ASK_MS = 60000,
	IMAGE_MAX = 16 << 20,
};

static uint64_t clock_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void find_criu(char *path, size_t size)
{
	const char *given = getenv("DECAMP_CRIU");
	FILE *f = given ? NULL : popen("scripts/criu 2>/dev/null", "re");

	path[0] = '\0';
	if (given)
		snprintf(path, size, "%s", given);
	if (f && fgets(path, (int)size, f))
		path[strcspn(path, "\n")] = '\0';
	if (f)
		pclose(f);
	if (access(path, X_OK) < 0)
		path[0] = '\0';
}

bool ipc_lab_init(struct ipc_lab *lab)
{
	const struct native_mem_config config = { .tracker = TRACK_AUTO, .buffer_bytes = 1 << 20 };
	int r;

	*lab = (struct ipc_lab){ .child = 0 };
	if (geteuid() != 0) {
		print_message("SKIP: needs root\n");
		return false;
	}
	r = state_create(&lab->state, lab->reason);
	if (r == -EOPNOTSUPP) {
		print_message("SKIP: %s\n", lab->reason);
		return false;
	}
	assert_int_equal(r, 0);
	assert_int_equal(arena_create(IPC_LAB_ARENA, &lab->arena), 0);
	assert_int_equal(mem_create(&config, &lab->mem), 0);
	strcpy(lab->folder, "/tmp/ipc-lab-XXXXXX");
	assert_non_null(mkdtemp(lab->folder));
	snprintf(lab->native, sizeof(lab->native), "%s/native", lab->folder);
	snprintf(lab->criu, sizeof(lab->criu), "%s/criu", lab->folder);
	snprintf(lab->all, sizeof(lab->all), "%s/all", lab->folder);
	find_criu(lab->binary, sizeof(lab->binary));
	return true;
}

void ipc_lab_deinit(struct ipc_lab *lab)
{
	ipc_lab_stop(lab);
	if (lab->folder[0])
		(void)!remove_tree_at(AT_FDCWD, lab->folder);
	if (lab->mem)
		mem_destroy(lab->mem);
	if (lab->state)
		state_destroy(lab->state);
	if (lab->arena)
		arena_destroy(lab->arena);
}

static void on_ask(int signal_number)
{
	(void)signal_number;
}

static void write_verdict(const char *folder, int verdict)
{
	char path[160], done[160], text[16];
	int fd;

	snprintf(path, sizeof(path), "%s/verdict.new", folder);
	snprintf(done, sizeof(done), "%s/verdict", folder);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	snprintf(text, sizeof(text), "%d\n", verdict);
	if (fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd) < 0 || rename(path, done) < 0)
		_exit(101);
}

/* The test has maps of BPF programs, which a fork inherits and no engine covers. */
static void drop_shared_maps(void)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/maps", "re");
	unsigned long ranges[16][2];
	size_t count = 0;
	char line[512];

	while (f && count < ARRAY_SIZE(ranges) && fgets(line, sizeof(line), f)) {
		const char *rights = strchr(line, ' ');

		if (rights && rights[4] == 's' &&
		    sscanf(line, "%lx-%lx", &ranges[count][0], &ranges[count][1]) == 2)
			count++;
	}
	while (count-- > 0)
		munmap((void *)ranges[count][0], ranges[count][1] - ranges[count][0]);
}

static void be_child(const struct ipc_lab *lab, const struct ipc_lab_program *p)
{
	int null = open("/dev/null", O_RDWR), r;
	sigset_t ask, rest;

	sigemptyset(&ask);
	sigaddset(&ask, SIGUSR1);
	sigprocmask(SIG_BLOCK, &ask, &rest);
	sigdelset(&rest, SIGUSR1);
	signal(SIGUSR1, on_ask);
	for (int i = 0; i < 3; i++)
		dup2(null, i);
	drop_shared_maps();
	close_range(3, ~0U, 0);
	if (setsid() < 0 || chdir("/") < 0 ||
	    ((p->flags & IPC_LAB_OWN_IPC) && unshare(CLONE_NEWIPC) < 0))
		_exit(103);
	r = p->prepare();
	write_verdict(lab->folder, r);
	for (;;) {
		sigsuspend(&rest);
		write_verdict(lab->folder, p->verify ? p->verify() : 0);
	}
}

static int read_verdict(const struct ipc_lab *lab)
{
	const uint64_t end = clock_now() + (uint64_t)ASK_MS * 1000000;
	char path[160], text[16] = "";

	snprintf(path, sizeof(path), "%s/verdict", lab->folder);
	for (;;) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd >= 0) {
			assert_true(read(fd, text, sizeof(text) - 1) > 0);
			close(fd);
			unlink(path);
			return atoi(text);
		}
		assert_true(clock_now() < end);
		usleep(1000);
	}
}

void ipc_lab_start(struct ipc_lab *lab, const struct ipc_lab_program *p)
{
	ipc_lab_stop(lab);
	lab->flags = p->flags;
	lab->child = fork();
	assert_true(lab->child >= 0);
	if (lab->child == 0)
		be_child(lab, p);
	assert_int_equal(read_verdict(lab), 0);
}

/* With all that it made: it leads a session, and its children are in its group. */
void ipc_lab_stop(struct ipc_lab *lab)
{
	if (lab->child <= 0)
		return;
	kill(-lab->child, SIGKILL);
	kill(lab->child, SIGKILL);
	waitpid(lab->child, NULL, 0);
	lab->child = 0;
}

int ipc_lab_ask(struct ipc_lab *lab)
{
	kill(lab->child, SIGUSR1);
	return read_verdict(lab);
}

static int fresh_folder(const char *path)
{
	int fd;

	(void)!remove_tree_at(AT_FDCWD, path);
	assert_int_equal(mkdir(path, 0700), 0);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

/* As take.c does, for as many tasks as a test has. */
static void number_tasks(struct native_tree *tree)
{
	for (size_t i = 0; i < tree->task_count; i++) {
		struct native_task *t = &tree->tasks[i];
		size_t files = i, vm = i;

		for (size_t k = i; k-- > 0;) {
			if (tree->tasks[k].state->files == t->state->files)
				files = k;
			if (tree->tasks[k].state->mm == t->state->mm)
				vm = k;
		}
		t->files_id = (uint32_t)files + 1;
		t->fs_id = t->sighand_id = (uint32_t)i + 1;
		t->vm_id = (uint32_t)vm + 1;
	}
}

static void reset(struct ipc_lab *lab, struct native_tree *tree, int images)
{
	arena_reset(lab->arena);
	lab->reason[0] = '\0';
	*tree = (struct native_tree){ .root = lab->child,
				      .images = images,
				      .shell_job = true,
				      .own_ipc_ns = lab->flags & IPC_LAB_OWN_IPC,
				      .reason = lab->reason,
				      .arena = lab->arena };
}

int ipc_lab_take(struct ipc_lab *lab)
{
	_cleanup_close_ int images = fresh_folder(lab->native);
	struct native_files *files = NULL;
	struct native_tree tree;
	int checked, r;

	reset(lab, &tree, -1);
	assert_int_equal(tree_list(&tree), 0);
	assert_int_equal(state_collect(lab->state, &tree), 0);
	number_tasks(&tree);
	checked = files_check(&tree);
	reset(lab, &tree, images);
	assert_int_equal(tree_list(&tree), 0);
	assert_int_equal(state_prepare(lab->state, &tree), 0);
	assert_int_equal(freeze_tree(&tree, FREEZE_MS), 0);
	r = state_collect(lab->state, &tree);
	if (r == 0) {
		number_tasks(&tree);
		lab->files_ns = clock_now();
		r = files_collect(&tree, lab->mem, &files);
		lab->files_ns = clock_now() - lab->files_ns;
	}
	thaw_tree(&tree);
	if (r == 0)
		r = files_write(files);
	files_destroy(files);
	mem_forget(lab->mem);
	/* What is refused before the freeze is refused in it. */
	assert_true(checked == 0 || checked == r);
	return r;
}

void ipc_lab_refuses(struct ipc_lab *lab, const char *word)
{
	int r = ipc_lab_take(lab);

	if (r != -EOPNOTSUPP || !strstr(lab->reason, word))
		fail_msg("returned %d: %s (expected: %s)", r, lab->reason, word);
}

static int run(const char *command)
{
	int status = system(command);

	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void ipc_lab_dump(struct ipc_lab *lab)
{
	_cleanup_close_ int images = fresh_folder(lab->criu);
	char command[512];

	snprintf(command, sizeof(command),
		 "%s dump --no-default-config --leave-running --tree %d --images-dir %s "
		 "--log-file log -v4 --shell-job >/dev/null 2>&1",
		 lab->binary, lab->child, lab->criu);
	if (run(command) != 0) {
		snprintf(command, sizeof(command), "grep Error %s/log >&2", lab->criu);
		(void)run(command);
		fail_msg("criu dump failed");
	}
}

static char *read_image(const char *folder, const char *image, size_t *ret_size)
{
	char path[256];
	char *bytes;

	snprintf(path, sizeof(path), "%s/%s.img", folder, image);
	if (read_file_at(AT_FDCWD, path, IMAGE_MAX, &bytes, ret_size) < 0)
		return NULL;
	return bytes;
}

ProtobufCMessage *ipc_lab_record(const char *folder, const char *image,
				 const ProtobufCMessageDescriptor *type, size_t n,
				 size_t (*raw)(const ProtobufCMessage *m), uint8_t **ret_raw)
{
	ProtobufCMessage *m = NULL;
	size_t size, at = HEAD_BYTES;
	_cleanup_free_ char *bytes = read_image(folder, image, &size);
	uint32_t length;

	for (size_t i = 0; bytes && at + sizeof(length) <= size; i++) {
		memcpy(&length, bytes + at, sizeof(length));
		at += sizeof(length);
		assert_true(length <= size - at);
		m = protobuf_c_message_unpack(type, NULL, length, (const uint8_t *)bytes + at);
		assert_non_null(m);
		at += length;
		length = raw ? (uint32_t)raw(m) : 0;
		assert_true(length <= size - at);
		if (i == n) {
			if (ret_raw) {
				*ret_raw = malloc(length + 1);
				assert_non_null(*ret_raw);
				memcpy(*ret_raw, bytes + at, length);
			}
			return m;
		}
		at += length;
		protobuf_c_message_free_unpacked(m, NULL);
	}
	return NULL;
}

void ipc_lab_find(const char *folder, const char *kind, char name[64])
{
	_cleanup_closedir_ DIR *d = opendir(folder);
	const struct dirent *e;

	assert_non_null(d);
	name[0] = '\0';
	while ((e = readdir(d)))
		if (strncmp(e->d_name, kind, strlen(kind)) == 0)
			snprintf(name, 64, "%.*s", (int)(strlen(e->d_name) - 4), e->d_name);
	assert_true(name[0] != '\0');
}

static uint32_t id_of_fd(const char *folder, int fd)
{
	char name[64];
	uint32_t id = 0;

	ipc_lab_find(folder, "fdinfo-", name);
	for (size_t n = 0; id == 0; n++) {
		NatFiles__Fdinfo *e = (void *)ipc_lab_record(
			folder, name, &nat_files__fdinfo__descriptor, n, NULL, NULL);

		assert_non_null(e);
		if (e->fd == (uint32_t)fd)
			id = e->id;
		nat_files__fdinfo__free_unpacked(e, NULL);
	}
	return id;
}

NatFiles__File *ipc_lab_file(struct ipc_lab *lab, const char *folder, int fd)
{
	uint32_t id = id_of_fd(folder, fd);

	(void)lab;
	for (size_t n = 0;; n++) {
		NatFiles__File *file = (void *)ipc_lab_record(
			folder, "files", &nat_files__file__descriptor, n, NULL, NULL);

		assert_non_null(file);
		if (file->id == id)
			return file;
		nat_files__file__free_unpacked(file, NULL);
	}
}

/* Numbers of entries differ; namespaces are named by CRIU only. */
static void neutral(NatFiles__File *f)
{
	f->id = 0;
	if (f->usk) {
		f->usk->id = 0;
		f->usk->has_ns_id = false;
	}
	if (f->isk) {
		f->isk->id = 0;
		f->isk->has_ns_id = false;
	}
	if (f->nlsk) {
		f->nlsk->id = 0;
		f->nlsk->has_ns_id = false;
	}
	if (f->tty)
		f->tty->id = f->tty->regf_id = 0;
	if (f->memfd)
		f->memfd->id = f->memfd->inode_id = 0;
}

void ipc_lab_same_file(struct ipc_lab *lab, int fd)
{
	NatFiles__File *ours = ipc_lab_file(lab, lab->native, fd);
	NatFiles__File *theirs = ipc_lab_file(lab, lab->criu, fd);
	uint8_t a[4096], b[4096];
	size_t a_size, b_size;

	neutral(ours);
	neutral(theirs);
	assert_true(nat_files__file__get_packed_size(ours) <= sizeof(a));
	assert_true(nat_files__file__get_packed_size(theirs) <= sizeof(b));
	a_size = nat_files__file__pack(ours, a);
	b_size = nat_files__file__pack(theirs, b);
	if (a_size != b_size || memcmp(a, b, a_size) != 0) {
		for (size_t i = 0; i < a_size || i < b_size; i++)
			print_message("%zu: %02x %02x%s\n", i, i < a_size ? a[i] : 0,
				      i < b_size ? b[i] : 0, a[i] == b[i] ? "" : " <--");
		fail_msg("descriptor %d: images differ", fd);
	}
	nat_files__file__free_unpacked(ours, NULL);
	nat_files__file__free_unpacked(theirs, NULL);
}

static int materialise(void *ctx, struct native_tree *tree)
{
	(void)ctx;
	return mem_materialise(tree->images, -1);
}

int ipc_lab_return(struct ipc_lab *lab)
{
	const struct take_config config = { .root = lab->child,
					    .mem = { .buffer_bytes = 1 << 20 } };
	_cleanup_close_ int images = fresh_folder(lab->all);
	struct take_order order = { .images = images,
				    .shell_job = true,
				    .own_ipc_ns = lab->flags & IPC_LAB_OWN_IPC,
				    .after = materialise };
	struct native_result result;
	struct taker *taker;
	char command[1024];
	int r = take_create(&config, &taker, lab->reason);

	assert_int_equal(r, 0);
	r = take_snapshot(taker, &order, &result, lab->reason);
	take_destroy(taker);
	if (r < 0)
		return r;
	snprintf(command, sizeof(command),
		 "unshare --pid --fork --mount --mount-proc sh -c '"
		 "%s restore --no-default-config -d --shell-job --images-dir %s --log-file log -v4 "
		 ">/dev/null 2>&1 || { grep Error %s/log >&2; exit 9; }; kill -USR1 %d; "
		 "for i in $(seq 2000); do [ -e %s/verdict ] && exit 0; sleep 0.01; done; exit 8'",
		 lab->binary, lab->all, lab->all, lab->child, lab->folder);
	ipc_lab_stop(lab);
	if (ASAN && (lab->flags & IPC_LAB_FAMILY)) {
		print_message("SKIP: not restored, CRIU crashes under ASan\n");
		return 0;
	}
	r = run(command);
	return r == 0 ? read_verdict(lab) : -r;
}

void ipc_lab_return_each(struct ipc_lab *lab, const struct ipc_lab_program *programs, size_t count)
{
	if (!lab || !lab->binary[0])
		skip();
	for (size_t i = 0; i < count; i++) {
		int r;

		ipc_lab_start(lab, &programs[i]);
		r = ipc_lab_return(lab);
		if (r != 0)
			fail_msg("program %zu: %d %s", i, r, lab->reason);
	}
}
