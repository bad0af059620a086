// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Terminals: pairs of pseudo terminals with both ends in the job, as script(1) or expect(1) make
 * them. A terminal from outside, a console or a serial line stays where it is: not covered.
 *
 *   files.img: TtyFile -> tty-info.img: one TtyInfo for each end; id = index * 2 + (1: the master)
 *
 * Bytes on their way from one end to the other cannot be seen without taking them out. They are
 * gone a moment later, so that the snapshot is tried again.
 */
#include "agent/native/files_internal.h"

#include <asm/termbits.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>

#include "agent/native/ipc.pb-c.h"

enum {
	MAJOR_TTY = 4,
	MAJOR_AUX = 5, /* /dev/tty, /dev/console, /dev/ptmx */
	MINOR_PTMX = 2,
	MAJOR_PTY_MASTER = 128,
	MAJOR_PTY_SLAVE = 136,
	MAJOR_PTY_END = 144,
	INDEX_MAX = 1000, /* what CRIU's restore takes */
	CC_COUNT = 19,
};

struct tty_info {
	struct tty_info *next;
	uint32_t id, index;
	uint32_t sid, pgrp, uid, gid;
	uint64_t rdev, dev;
	int locked, exclusive, packet;
	struct termios termios, termios_locked;
	struct winsize size;
};

/* Of a native_open. */
struct tty_file {
	uint32_t info_id, reg_id;
};

static uint32_t major_of(uint32_t dev)
{
	return dev >> 20;
}

static uint32_t minor_of(uint32_t dev)
{
	return dev & ((1 << 20) - 1);
}

static bool is_master(const struct state_fd *fd)
{
	return S_ISCHR(fd->mode) && major_of(fd->rdev) == MAJOR_AUX &&
	       minor_of(fd->rdev) == MINOR_PTMX;
}

static bool is_slave(const struct state_fd *fd)
{
	return S_ISCHR(fd->mode) && major_of(fd->rdev) == MAJOR_PTY_SLAVE;
}

static bool match(const struct state_fd *fd, const char *path)
{
	uint32_t n = major_of(fd->rdev);

	(void)path;
	return S_ISCHR(fd->mode) &&
	       (n == MAJOR_TTY || n == MAJOR_AUX || (n >= MAJOR_PTY_MASTER && n < MAJOR_PTY_END));
}

static int refuse_kind(struct native_files *f, struct native_open *o)
{
	return files_refuse(f, o, "is a terminal that is no pseudo terminal of the job");
}

/* -ENOTTY: this process may not know, since it is not its own terminal. */
static int ask(int fd, unsigned long request, void *value)
{
	return ioctl(fd, request, value) < 0 ? -errno : 0;
}

/* Which pair an end belongs to. Returns 1 if it is a master, 0 for a slave. */
static int pair_of(struct native_files *f, struct native_open *o, uint32_t *ret_index)
{
	int fd, r;

	if (is_slave(o->fd)) {
		*ret_index = minor_of(o->fd->rdev);
		return 0;
	}
	if (!is_master(o->fd))
		return refuse_kind(f, o);
	r = open_local(f, o, &fd);
	if (r == 0)
		r = ask(fd, TIOCGPTN, ret_index);
	return r < 0 ? r : 1;
}

/* The other end: the job must have it. */
static int find_end(struct native_files *f, uint32_t index, bool master,
		    struct native_open **ret_open)
{
	uint32_t found;
	int r;

	for (size_t i = 0; i < f->open_count; i++) {
		struct native_open *o = &f->opens[i];

		if (!(master ? is_master(o->fd) : is_slave(o->fd)))
			continue;
		r = pair_of(f, o, &found);
		if (r < 0)
			return r;
		if (found == index) {
			*ret_open = o;
			return 0;
		}
	}
	return -ENOENT;
}

static int check_pair(struct native_files *f, struct native_open *o, uint32_t *ret_index,
		      struct native_open **ret_master)
{
	int r = pair_of(f, o, ret_index);

	if (r < 0)
		return r;
	if (*ret_index > INDEX_MAX)
		return files_refuse(f, o, "is pseudo terminal number %u", *ret_index);
	if (r == 1) {
		*ret_master = o;
		return 0;
	}
	r = find_end(f, *ret_index, true, ret_master);
	return r == -ENOENT ? files_refuse(f, o, "is a terminal from outside of the job") : r;
}

/* The job runs: an end that is gone is no reason. */
static int check(struct native_files *f, struct native_open *o)
{
	bool had_reason = f->tree->reason[0] != '\0';
	struct native_open *master;
	uint32_t index;
	int r = check_pair(f, o, &index, &master);

	if (r == -EOPNOTSUPP)
		return r;
	if (!had_reason)
		f->tree->reason[0] = '\0';
	return 0;
}

static const struct native_task *find_group(const struct native_tree *tree, pid_t pgrp)
{
	for (size_t i = 0; i < tree->task_count; i++) {
		const struct native_task *t = &tree->tasks[i];

		if (!t->zombie && t->state && getpgid(t->pid) == pgrp)
			return t;
	}
	return NULL;
}

/* As the job numbers them; only a master may be asked from outside of the session. */
static int collect_session(struct native_files *f, struct native_open *master, int fd,
			   struct tty_info *t)
{
	const struct native_task *task;
	pid_t sid = 0, pgrp = 0;
	int r = ask(fd, TIOCGSID, &sid);

	if (r == 0)
		r = ask(fd, TIOCGPGRP, &pgrp);
	if (r == -ENOTTY)
		return 0; /* nobody's controlling terminal */
	if (r < 0)
		return r;
	task = tree_find(f->tree, sid);
	if (!task || !task->state)
		return files_refuse(f, master, "controls a session from outside of the job");
	t->sid = (uint32_t)task->inner_pid;
	task = find_group(f->tree, pgrp);
	t->pgrp = task ? (uint32_t)task->state->pgid : t->sid;
	return 0;
}

static int refuse_bytes(struct native_files *f, const struct native_open *o)
{
	return native_fail(f->tree, -EAGAIN,
			   "descriptor %d of process %d: bytes are on their way in a terminal",
			   o->fd->fd, o->task->pid);
}

/*
 * poll(2) first: it brings what was written to where the count sees it. Something to read that counts
 * for nothing is an end of file typed into a line: script(1) with an empty input leaves one there for
 * good. No image can hold it, CRIU's neither; the terminal is taken without it.
 */
static int check_empty(struct native_files *f, struct native_open *o, int fd, bool master)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	bool readable = poll(&p, 1, 0) > 0 && (p.revents & POLLIN);
	int bytes = 0;

	if (ask(fd, FIONREAD, &bytes) < 0)
		return readable ? refuse_bytes(f, o) : 0;
	return bytes > 0 || (readable && master) ? refuse_bytes(f, o) : 0;
}

static int collect_settings(int fd, bool master, struct tty_info *t)
{
	int r = ask(fd, TCGETS, &t->termios);

	if (r == 0)
		r = ask(fd, TIOCGLCKTRMIOS, &t->termios_locked);
	if (r == 0)
		r = ask(fd, TIOCGWINSZ, &t->size);
	if (r == 0)
		r = ask(fd, TIOCGEXCL, &t->exclusive);
	if (r == 0 && master)
		r = ask(fd, TIOCGPKT, &t->packet);
	if (r == 0 && master)
		r = ask(fd, TIOCGPTLCK, &t->locked);
	return r;
}

static int collect_info(struct native_files *f, struct native_open *o, struct native_open *master,
			uint32_t index, uint32_t id)
{
	struct tty_info *t = arena_alloc(f->tree->arena, sizeof(*t));
	int fd, master_fd, r;
	struct stat st;

	if (!t)
		return -ENOMEM;
	r = open_local(f, o, &fd);
	if (r == 0)
		r = open_local(f, master, &master_fd);
	if (r < 0)
		return r;
	if (fstat(fd, &st) < 0)
		return -errno;
	t->id = id;
	t->index = index;
	t->uid = st.st_uid;
	t->gid = st.st_gid;
	t->rdev = st.st_rdev;
	t->dev = st.st_dev;
	r = collect_session(f, master, master_fd, t);
	if (r == 0)
		r = collect_settings(fd, o == master, t);
	if (r < 0)
		return r;
	t->next = f->area_facts[AREA_TTY];
	f->area_facts[AREA_TTY] = t;
	return 0;
}

static int collect(struct native_files *f, struct native_open *o)
{
	struct tty_file *file = arena_alloc(f->tree->arena, sizeof(*file));
	const struct tty_info *t = f->area_facts[AREA_TTY];
	struct native_open *master = NULL;
	uint32_t index;
	int fd, r;

	if (!file)
		return -ENOMEM;
	r = check_pair(f, o, &index, &master);
	if (r == 0)
		r = open_local(f, o, &fd);
	if (r == 0)
		r = check_empty(f, o, fd, o == master);
	if (r < 0)
		return native_fail(f->tree, r, "descriptor %d of process %d: a terminal: %s",
				   o->fd->fd, o->task->pid, strerror(-r));
	file->info_id = index * 2 + (o == master);
	o->type = NAT_FILES__FILE_TYPE__TTY;
	o->facts = file;
	while (t && t->id != file->info_id)
		t = t->next;
	r = t ? 0 : collect_info(f, o, master, index, file->info_id);
	return r < 0 ? native_fail(f->tree, r, "descriptor %d of process %d: a terminal: %s",
				   o->fd->fd, o->task->pid, strerror(-r)) :
		       files_reg_of(f, o, &file->reg_id);
}

static int write_one(struct native_files *f, struct native_open *o)
{
	const struct tty_file *facts = o->facts;
	NatFiles__File file = NAT_FILES__FILE__INIT;
	NatFiles__TtyFile t = NAT_FILES__TTY_FILE__INIT;
	NatFiles__Fown fown;

	open_fown(o, &fown);
	t.id = o->id;
	t.tty_info_id = facts->info_id;
	t.flags = open_flags(o);
	t.fown = &fown;
	t.has_regf_id = true;
	t.regf_id = facts->reg_id;
	file.tty = &t;
	files_put(f, o, &file);
	return 0;
}

/* As CRIU has it: without speeds (they are in c_cflag), four control characters to a word. */
static void fill_termios(const struct termios *t, NatIpc__Termios *m, uint32_t cc[CC_COUNT])
{
	nat_ipc__termios__init(m);
	m->c_iflag = t->c_iflag;
	m->c_oflag = t->c_oflag;
	m->c_cflag = t->c_cflag;
	m->c_lflag = t->c_lflag;
	m->c_line = t->c_line;
	memset(cc, 0, CC_COUNT * sizeof(cc[0]));
	memcpy(cc, t->c_cc, CC_COUNT);
	m->c_cc = cc;
	m->n_c_cc = CC_COUNT;
}

static void write_info(struct img *image, const struct tty_info *t)
{
	NatIpc__TtyInfo m = NAT_IPC__TTY_INFO__INIT;
	NatIpc__Winsize size = NAT_IPC__WINSIZE__INIT;
	NatIpc__Termios termios, locked;
	NatIpc__Pty pty = NAT_IPC__PTY__INIT;
	uint32_t cc[CC_COUNT], cc_locked[CC_COUNT];

	m.id = t->id;
	m.type = NAT_IPC__TTY_TYPE__PTY;
	m.locked = t->locked != 0;
	m.exclusive = t->exclusive != 0;
	m.packet_mode = t->packet != 0;
	m.sid = t->sid;
	m.pgrp = t->pgrp;
	m.rdev = (uint32_t)t->rdev;
	m.has_dev = m.has_uid = m.has_gid = true;
	m.dev = (uint32_t)t->dev;
	m.uid = t->uid;
	m.gid = t->gid;
	fill_termios(&t->termios, &termios, cc);
	fill_termios(&t->termios_locked, &locked, cc_locked);
	m.termios = &termios;
	m.termios_locked = &locked;
	size.ws_row = t->size.ws_row;
	size.ws_col = t->size.ws_col;
	size.ws_xpixel = t->size.ws_xpixel;
	size.ws_ypixel = t->size.ws_ypixel;
	m.winsize = &size;
	pty.index = t->index;
	m.pty = &pty;
	img_put(image, &m.base);
}

static int write_all(struct native_files *f)
{
	const struct tty_info *t = f->area_facts[AREA_TTY];
	struct img *image;
	int r;

	if (!t)
		return 0;
	r = img_create(f->tree->images, "tty-info", &image);
	if (r < 0)
		return r;
	for (; t; t = t->next)
		write_info(image, t);
	return img_close(image);
}

const struct native_area area_tty = {
	.index = AREA_TTY,
	.name = "ttys",
	.match = match,
	.check = check,
	.collect = collect,
	.write = write_one,
	.write_all = write_all,
};
