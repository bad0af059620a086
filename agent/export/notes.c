// SPDX-License-Identifier: LGPL-2.1-or-later
/* PT_NOTE of a core: what the kernel writes there, from the images. In its order, too. */
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/procfs.h>
#include <sys/user.h>

#include "agent/export/internal.h"

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

enum {
	SIGINFO_BYTES = 128,
	XSAVE_XCR0 = 464, /* where debuggers look for the features, in bytes that are software's */
	XSAVE_HEADER = 512,
	XSAVE_X87_SSE = 3,
};

/* Debuggers know the areas of Intel's layout; the images hold just their content. */
static const struct xsave_part {
	uint32_t feature, offset, size;
} parts[] = {
	{ 2, 576, 256 },  { 3, 960, 64 },    { 4, 1024, 64 }, { 5, 1088, 64 },
	{ 6, 1152, 512 }, { 7, 1664, 1024 }, { 9, 2688, 8 },
};
enum { XSAVE_MAX = 2696 };

struct notes {
	uint8_t *bytes;
	size_t size, room;
	bool failed;
};

static void put(struct notes *n, const void *bytes, size_t size)
{
	static const uint8_t zeros[4];
	size_t padded = (size + 3) & ~(size_t)3;

	if (n->failed)
		return;
	if (padded > n->room - n->size) {
		size_t room = 2 * n->room + padded + 4096;
		uint8_t *bigger = realloc(n->bytes, room);

		if (!bigger) {
			n->failed = true;
			return;
		}
		n->bytes = bigger;
		n->room = room;
	}
	if (size)
		memcpy(n->bytes + n->size, bytes, size);
	memcpy(n->bytes + n->size + size, zeros, padded - size);
	n->size += padded;
}

static void put_note(struct notes *n, uint32_t type, const char *name, const void *desc,
		     size_t size)
{
	Elf64_Nhdr head = { .n_namesz = (uint32_t)strlen(name) + 1,
			    .n_descsz = (uint32_t)size,
			    .n_type = type };

	if (size > UINT32_MAX)
		n->failed = true;
	put(n, &head, sizeof(head));
	put(n, name, strlen(name) + 1);
	put(n, desc, size);
}

/* ---- signals ---- */

static uint64_t pending_of(const NatCore__Signals *s)
{
	uint64_t set = 0;

	for (size_t i = 0; s && i < s->n_queue; i++) {
		int32_t signo = 0;

		if (s->queue[i]->info.len >= sizeof(signo))
			memcpy(&signo, s->queue[i]->info.data, sizeof(signo));
		if (signo >= 1 && signo <= 64)
			set |= 1ULL << (signo - 1);
	}
	return set;
}

/* No signal made this core; the one that waits first is what can be told. */
static bool first_siginfo(const NatCore__Signals *s, uint8_t ret_info[SIGINFO_BYTES])
{
	size_t size;

	if (!s || s->n_queue == 0)
		return false;
	size = s->queue[0]->info.len;
	memset(ret_info, 0, SIGINFO_BYTES);
	memcpy(ret_info, s->queue[0]->info.data, size < SIGINFO_BYTES ? size : SIGINFO_BYTES);
	return true;
}

/* ---- registers ---- */

static void fill_registers(const NatCore__Regs *g, elf_gregset_t *ret_regs)
{
	const uint64_t all[] = { g->r15,     g->r14,	 g->r13, g->r12, g->bp,	   g->bx, g->r11,
				 g->r10,     g->r9,	 g->r8,	 g->ax,	 g->cx,	   g->dx, g->si,
				 g->di,	     g->orig_ax, g->ip,	 g->cs,	 g->flags, g->sp, g->ss,
				 g->fs_base, g->gs_base, g->ds,	 g->es,	 g->fs,	   g->gs };

	_Static_assert(sizeof(all) == sizeof(elf_gregset_t), "the kernel's order");
	memcpy(ret_regs, all, sizeof(all));
}

static int fill_fpregs(const NatCore__Fpregs *f, struct user_fpregs_struct *ret_fpregs)
{
	struct user_fpregs_struct fp = { .cwd = (uint16_t)f->cwd,
					 .swd = (uint16_t)f->swd,
					 .ftw = (uint16_t)f->twd,
					 .fop = (uint16_t)f->fop,
					 .rip = f->rip,
					 .rdp = f->rdp,
					 .mxcsr = f->mxcsr,
					 .mxcr_mask = f->mxcsr_mask };

	if (f->n_st * sizeof(*f->st) != sizeof(fp.st_space) ||
	    f->n_xmm * sizeof(*f->xmm) != sizeof(fp.xmm_space))
		return -EBADMSG;
	memcpy(fp.st_space, f->st, sizeof(fp.st_space));
	memcpy(fp.xmm_space, f->xmm, sizeof(fp.xmm_space));
	*ret_fpregs = fp;
	return 0;
}

static void put_xstate(struct notes *n, const NatCore__Xsave *x,
		       const struct user_fpregs_struct *fpregs)
{
	const struct {
		const void *bytes;
		size_t size;
	} have[ARRAY_SIZE(parts)] = {
		{ x->ymmh, x->n_ymmh * 4 },	      { x->bndregs, x->n_bndregs * 8 },
		{ x->bndcsr, x->n_bndcsr * 8 },	      { x->opmask, x->n_opmask * 8 },
		{ x->zmm_upper, x->n_zmm_upper * 8 }, { x->hi16_zmm, x->n_hi16_zmm * 8 },
		{ x->pkru, x->n_pkru * 4 },
	};
	uint8_t area[XSAVE_MAX] = { 0 };
	uint64_t xcr0 = XSAVE_X87_SSE;
	size_t size = XSAVE_HEADER + 64;

	memcpy(area, fpregs, sizeof(*fpregs));
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		if (have[i].size != parts[i].size)
			continue;
		memcpy(area + parts[i].offset, have[i].bytes, parts[i].size);
		xcr0 |= 1ULL << parts[i].feature;
		size = parts[i].offset + parts[i].size;
	}
	memcpy(area + XSAVE_XCR0, &xcr0, sizeof(xcr0));
	memcpy(area + XSAVE_HEADER, &x->xstate_bv, sizeof(x->xstate_bv));
	put_note(n, NT_X86_XSTATE, "LINUX", area, size);
}

/* ---- one thread ---- */

static void put_status(struct notes *n, const struct task *t, size_t index)
{
	const NatCore__Core *core = t->threads[index];
	const NatCore__Task *task = t->threads[0]->task;
	struct elf_prstatus s = { 0 };

	s.pr_pid = (pid_t)t->tree->threads[index];
	s.pr_ppid = (pid_t)t->tree->ppid;
	s.pr_pgrp = (pid_t)t->tree->pgid;
	s.pr_sid = (pid_t)t->tree->sid;
	s.pr_sigpend = pending_of(core->thread->own) | pending_of(task->shared);
	s.pr_sighold = core->thread->has_blocked ? core->thread->blocked : task->blocked;
	if (task->state == NAT_CORE__TASK_STATE__STOPPED && task->has_stop_signal)
		s.pr_cursig = (short)task->stop_signal;
	s.pr_info.si_signo = s.pr_cursig;
	fill_registers(core->thread_info->gpregs, &s.pr_reg);
	s.pr_fpvalid = 1;
	put_note(n, NT_PRSTATUS, "CORE", &s, sizeof(s));
}

static void put_siginfo(struct notes *n, const struct task *t, size_t index)
{
	uint8_t info[SIGINFO_BYTES];

	if (first_siginfo(t->threads[index]->thread->own, info) ||
	    (index == 0 && first_siginfo(t->threads[0]->task->shared, info)))
		put_note(n, NT_SIGINFO, "CORE", info, sizeof(info));
}

static int put_floats(struct notes *n, const struct task *t, size_t index)
{
	const NatCore__Fpregs *f = t->threads[index]->thread_info->fpregs;
	struct user_fpregs_struct fpregs;
	int r = fill_fpregs(f, &fpregs);

	if (r < 0)
		return r;
	put_note(n, NT_FPREGSET, "CORE", &fpregs, sizeof(fpregs));
	if (f->xsave)
		put_xstate(n, f->xsave, &fpregs);
	return 0;
}

/* ---- the process ---- */

static void put_process(struct notes *n, const struct task *t, notes_args_fn args, const void *ctx)
{
	const NatCore__Core *core = t->threads[0];
	const NatCore__Creds *creds = core->thread->creds;
	struct elf_prpsinfo p = { .pr_sname = 'R' };
	size_t length;

	if (core->task->state == NAT_CORE__TASK_STATE__STOPPED) {
		p.pr_sname = 'T';
		p.pr_state = 3; /* the letter's place in "RSDTZW" */
	}
	p.pr_nice = (char)(core->thread->has_nice ? core->thread->nice : 0);
	p.pr_flag = core->task->flags;
	p.pr_uid = creds ? creds->uid : 0;
	p.pr_gid = creds ? creds->gid : 0;
	p.pr_pid = (pid_t)t->tree->pid;
	p.pr_ppid = (pid_t)t->tree->ppid;
	p.pr_pgrp = (pid_t)t->tree->pgid;
	p.pr_sid = (pid_t)t->tree->sid;
	snprintf(p.pr_fname, sizeof(p.pr_fname), "%s", core->task->comm);
	length = args(ctx, p.pr_psargs, sizeof(p.pr_psargs) - 1);
	for (size_t i = 0; i < length; i++)
		if (!p.pr_psargs[i])
			p.pr_psargs[i] = ' ';
	put_note(n, NT_PRPSINFO, "CORE", &p, sizeof(p));
}

static int put_auxv(struct notes *n, const struct task *t)
{
	size_t count = t->mm->n_auxv & ~(size_t)1;
	_cleanup_free_ uint64_t *v = calloc(count + 2, sizeof(*v));

	if (!v)
		return -ENOMEM;
	if (count)
		memcpy(v, t->mm->auxv, count * sizeof(*v));
	/* It ends with AT_NULL, once. */
	while (count >= 2 && v[count - 2] == AT_NULL)
		count -= 2;
	put_note(n, NT_AUXV, "CORE", v, (count + 2) * sizeof(*v));
	return 0;
}

static bool is_listed(const struct task *t, const NatMm__Vma *v)
{
	const struct task_file *file = v->status & VMA_IS_GUARD ? NULL : task_file_of(t, v);

	return file && !file->is_memfd && file->name[0];
}

/* count, page size, {start, end, offset in pages} each, then the names. */
static int put_files(struct notes *n, const struct task *t)
{
	_cleanup_free_ char *desc = NULL;
	uint64_t words[3] = { 0, EXPORT_PAGE };
	size_t size = 0;
	FILE *f = open_memstream(&desc, &size);

	if (!f)
		return -ENOMEM;
	for (size_t i = 0; i < t->mm->n_vmas; i++)
		words[0] += is_listed(t, t->mm->vmas[i]);
	fwrite(words, sizeof(words[0]), 2, f);
	for (size_t i = 0; i < t->mm->n_vmas; i++) {
		const NatMm__Vma *v = t->mm->vmas[i];

		if (!is_listed(t, v))
			continue;
		words[0] = v->start;
		words[1] = v->end;
		words[2] = v->pgoff / EXPORT_PAGE;
		fwrite(words, sizeof(words[0]), 3, f);
	}
	for (size_t i = 0; i < t->mm->n_vmas; i++) {
		if (is_listed(t, t->mm->vmas[i])) {
			const char *name = task_file_of(t, t->mm->vmas[i])->name;

			fwrite(name, 1, strlen(name) + 1, f);
		}
	}
	if (fclose(f) != 0)
		return -ENOMEM;
	put_note(n, NT_FILE, "CORE", desc, size);
	return 0;
}

int notes_build(const struct task *t, notes_args_fn args, const void *ctx, uint8_t **ret_bytes,
		size_t *ret_size)
{
	struct notes n = { 0 };
	int r = 0;

	for (size_t i = 0; i < t->thread_count && r == 0; i++) {
		put_status(&n, t, i);
		if (i == 0)
			put_process(&n, t, args, ctx);
		put_siginfo(&n, t, i);
		if (i == 0) {
			r = put_auxv(&n, t);
			if (r == 0)
				r = put_files(&n, t);
		}
		if (r == 0)
			r = put_floats(&n, t, i);
	}
	if (r == 0 && n.failed)
		r = -ENOMEM;
	if (r < 0) {
		free(n.bytes);
		return r;
	}
	*ret_bytes = n.bytes;
	*ret_size = n.size;
	return 0;
}
