// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/native/inject_net.h"

#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <ucontext.h>

#include "agent/native/freeze_internal.h"
#include "agent/util/io.h"

#ifndef NT_X86_SHSTK
#define NT_X86_SHSTK 0x204
#endif

enum {
	MAPS_MAX = 16 << 20,
	BLOCK = 256 << 10,
	CODE_MAX = 8 << 20, /* of one mapping */
	RED_ZONE = 128,
	FRAME_ALIGN = 64,
	XSTATE_LEGACY = 512,
	XSTATE_HEADER = 64,
	XSTATE_SOFTWARE = 464, /* bytes for the kernel's own use within the legacy part */
	XSTATE_MAX = 8192,
	XFEATURES_MAX = 19,
	RETURN_BYTES = 9,
	CALL_BYTES = 3,
	UC_XSTATE = 1,	   /* uc_flags: fpregs has more than the legacy part */
	UC_RESTORE_SS = 6, /* there is an ss in the frame, and it is meant */
	FP_MAGIC1 = 0x46505853,
	FP_MAGIC2 = 0x46505845,
	ALTSTACK_WRONG = 0x7777, /* flags that the kernel refuses: the setting stays as it is */
};

/* Tile registers are not in a frame unless asked for: a thread that uses them gets no net. */
#define XFEATURE_TILES ((uint64_t)3 << 17)

struct software_bytes {
	uint32_t magic1, extended_size;
	uint64_t features;
	uint32_t state_size, padding[7];
};
_Static_assert(sizeof(struct software_bytes) == 48, "as the kernel has it");

static const uint8_t call_code[CALL_BYTES] = { 0x0f, 0x05, 0xc3 };
/* mov $15, %eax; syscall. With a prefix, as libc writes it, it begins two bytes earlier. */
static const uint8_t return_code[] = { 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05 };

static bool read_memory(pid_t pid, uint64_t from, void *to, size_t size)
{
	struct iovec local = { to, size }, remote = { (void *)(uintptr_t)from, size };

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

static bool write_memory(pid_t pid, uint64_t to, const void *from, size_t size)
{
	struct iovec local = { (void *)(uintptr_t)from, size },
		     remote = { (void *)(uintptr_t)to, size };

	return process_vm_writev(pid, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

/* Start of the instruction that the six bytes at p end; NULL if it is none that we know. */
static const uint8_t *whole_return(const uint8_t *p, const uint8_t *begin)
{
	if (p - begin >= 3 && p[-3] == 0x48 && p[-2] == 0xc7 && p[-1] == 0xc0)
		return p - 3;
	return p - begin >= 1 && p[-1] == 0xb8 ? p - 1 : NULL;
}

static void search(const uint8_t *bytes, size_t size, uint64_t at, struct inject_net *net)
{
	const uint8_t *p = bytes, *end = bytes + size;

	if (!net->call_ip) {
		p = memmem(bytes, size, call_code, sizeof(call_code));
		net->call_ip = p ? at + (uint64_t)(p - bytes) : 0;
	}
	for (p = bytes; !net->return_ip; p++) {
		const uint8_t *whole;

		p = memmem(p, (size_t)(end - p), return_code, sizeof(return_code));
		if (!p)
			return;
		whole = whole_return(p, bytes);
		net->return_ip = whole ? at + (uint64_t)(whole - bytes) : 0;
	}
}

static void search_mapping(pid_t pid, uint64_t start, uint64_t end, uint8_t *buffer,
			   struct inject_net *net)
{
	if (end - start > CODE_MAX)
		end = start + CODE_MAX;
	/* Blocks overlap, so that nothing is cut in two. */
	for (uint64_t at = start; at + 16 < end && !(net->call_ip && net->return_ip);
	     at += BLOCK - 16) {
		size_t want = end - at < BLOCK ? (size_t)(end - at) : BLOCK;

		if (!read_memory(pid, at, buffer, want))
			return;
		search(buffer, want, at, net);
	}
}

/* One pass over the map: the C library alone, or all else. */
static void pass(pid_t pid, const char *maps, bool libc, uint8_t *buffer, struct inject_net *net)
{
	for (const char *line = maps; line && *line; line = strchr(line, '\n')) {
		uint64_t start, end;
		char perms[5], name[256] = "";

		line += *line == '\n';
		if (sscanf(line, "%lx-%lx %4s %*s %*s %*s%255[^\n]", &start, &end, perms, name) < 3)
			continue;
		if (strstr(name, "[stack]")) {
			net->stack_start = start;
			net->stack_end = end;
		}
		if (perms[2] == 'x' && perms[0] == 'r' && (int64_t)start >= 0 &&
		    (strstr(name, "/libc") || strstr(name, "/ld-musl")) == libc)
			search_mapping(pid, start, end, buffer, net);
	}
}

void net_find(pid_t pid, struct inject_net *ret_net)
{
	_cleanup_free_ uint8_t *buffer = malloc(BLOCK);
	_cleanup_free_ char *maps = NULL;
	struct inject_net net = { 0 };
	char path[64];

	*ret_net = net;
	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	if (!buffer || read_file_at(AT_FDCWD, path, MAPS_MAX, &maps, NULL) < 0)
		return;
	pass(pid, maps, true, buffer, &net);
	if (!net.call_ip || !net.return_ip)
		pass(pid, maps, false, buffer, &net);
	if (net.call_ip && net.return_ip)
		*ret_net = net;
}

/* Size of the state as the kernel puts it into a frame: up to the end of its last component. */
static size_t state_size(uint64_t features)
{
	size_t size = XSTATE_LEGACY + XSTATE_HEADER;

	for (unsigned int i = 2; i < XFEATURES_MAX; i++) {
		unsigned int eax, ebx, ecx, edx;

		if (!(features >> i & 1) || !__get_cpuid_count(0xd, i, &eax, &ebx, &ecx, &edx))
			continue;
		if (ebx + eax > size)
			size = ebx + eax;
	}
	return size;
}

/* In the format of a signal frame, behind it its end mark; 0: none that could be given back. */
static size_t read_state(pid_t tid, uint8_t state[XSTATE_MAX + 64])
{
	struct iovec v = { state, XSTATE_MAX };
	struct software_bytes software = { .magic1 = FP_MAGIC1 };
	const uint32_t magic2 = FP_MAGIC2;
	uint64_t in_use;
	size_t size;

	if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_X86_XSTATE, &v) < 0 ||
	    v.iov_len < XSTATE_LEGACY + XSTATE_HEADER)
		return 0;
	memcpy(&software.features, state + XSTATE_SOFTWARE, sizeof(software.features));
	memcpy(&in_use, state + XSTATE_LEGACY, sizeof(in_use));
	software.features &= ~XFEATURE_TILES;
	size = state_size(software.features);
	if (in_use & XFEATURE_TILES || size > v.iov_len)
		return 0;
	software.state_size = (uint32_t)size;
	software.extended_size = (uint32_t)(size + sizeof(magic2));
	memcpy(state + XSTATE_SOFTWARE, &software, sizeof(software));
	memcpy(state + size, &magic2, sizeof(magic2));
	return size + sizeof(magic2);
}

static bool has_shadow_stack(pid_t tid)
{
	uint64_t pointer = 0;
	struct iovec v = { &pointer, sizeof(pointer) };

	return ptrace(PTRACE_GETREGSET, tid, (void *)NT_X86_SHSTK, &v) == 0 && v.iov_len;
}

/* An exec(2) since net_find() would have taken it away. */
static bool still_there(pid_t tid, const struct inject_net *net)
{
	uint8_t call[CALL_BYTES], back[RETURN_BYTES];

	return read_memory(tid, net->call_ip, call, sizeof(call)) &&
	       !memcmp(call, call_code, sizeof(call)) &&
	       read_memory(tid, net->return_ip, back, sizeof(back)) &&
	       (!memcmp(back + 1, return_code, sizeof(return_code)) ||
		!memcmp(back + 3, return_code, sizeof(return_code)));
}

/* Where it goes on. A call that was interrupted is made anew, with its time in full. */
static void fill_registers(greg_t *g, const struct user_regs_struct *r)
{
	long ax = (long)r->rax;
	bool again = (long)r->orig_rax >= 0 &&
		     (ax == -FREEZE_RESTARTSYS || ax == -FREEZE_RESTARTNOINTR ||
		      ax == -FREEZE_RESTARTNOHAND || ax == -FREEZE_RESTARTBLOCK);

	g[REG_R8] = (greg_t)r->r8;
	g[REG_R9] = (greg_t)r->r9;
	g[REG_R10] = (greg_t)r->r10;
	g[REG_R11] = (greg_t)r->r11;
	g[REG_R12] = (greg_t)r->r12;
	g[REG_R13] = (greg_t)r->r13;
	g[REG_R14] = (greg_t)r->r14;
	g[REG_R15] = (greg_t)r->r15;
	g[REG_RDI] = (greg_t)r->rdi;
	g[REG_RSI] = (greg_t)r->rsi;
	g[REG_RBP] = (greg_t)r->rbp;
	g[REG_RBX] = (greg_t)r->rbx;
	g[REG_RDX] = (greg_t)r->rdx;
	g[REG_RAX] = (greg_t)(again ? r->orig_rax : r->rax);
	g[REG_RCX] = (greg_t)r->rcx;
	g[REG_RSP] = (greg_t)r->rsp;
	g[REG_RIP] = (greg_t)(again ? r->rip - 2 : r->rip);
	g[REG_EFL] = (greg_t)r->eflags;
	g[REG_CSGSFS] = (greg_t)((r->cs & 0xffff) | (r->ss & 0xffff) << 48);
}

/*
 * Below which address the frame goes, and which it must not reach below. On the stack for handlers: at
 * its end, so that one that runs before all signals are blocked has the rest. 0: nowhere.
 */
static uint64_t find_room(const struct inject_net *net, uint64_t rsp, size_t need,
			  uint64_t *ret_bottom)
{
	uint64_t start = net->alternate_start, end = net->alternate_end;

	*ret_bottom = net->stack_start;
	if (rsp >= net->stack_start && rsp < net->stack_end)
		return rsp - RED_ZONE;
	*ret_bottom = start;
	if (end <= start || end - start < 2 * need || (rsp >= start && rsp <= end))
		return 0;
	return start + need;
}

bool net_spread(pid_t tid, struct inject_net *net, const struct user_regs_struct *saved,
		uint64_t mask)
{
	/* The address for ret, then what rt_sigreturn(2) reads; its mask has 64 signals. */
	struct {
		uint64_t return_ip;
		ucontext_t uc;
	} frame = { .return_ip = net->return_ip };
	size_t frame_size =
		sizeof(frame.return_ip) + offsetof(ucontext_t, uc_sigmask) + sizeof(mask);
	uint8_t state[XSTATE_MAX + 64];
	uint64_t state_at, top, bottom;
	size_t size;

	if (!net->call_ip || has_shadow_stack(tid) || !still_there(tid, net))
		return false;
	size = read_state(tid, state);
	if (!size)
		return false;
	top = find_room(net, saved->rsp, size + frame_size + 2 * FRAME_ALIGN, &bottom);
	if (!top)
		return false;
	state_at = (top - size) & ~(FRAME_ALIGN - 1ull);
	net->frame = (state_at - frame_size) & ~(FRAME_ALIGN - 1ull);
	/* It may have grown since; it never shrinks. Below its start lies nothing of the program. */
	if (net->frame < bottom)
		return false;
	frame.uc.uc_flags = UC_XSTATE | UC_RESTORE_SS;
	frame.uc.uc_stack.ss_flags = ALTSTACK_WRONG;
	fill_registers(frame.uc.uc_mcontext.gregs, saved);
	frame.uc.uc_mcontext.fpregs = (void *)(uintptr_t)state_at;
	memcpy(&frame.uc.uc_sigmask, &mask, sizeof(mask));
	return write_memory(tid, state_at, state, size) &&
	       write_memory(tid, net->frame, &frame, frame_size);
}
