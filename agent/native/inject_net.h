/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What brings a thread back to its work if we die while it makes a call of ours: a signal frame
 * below its stack pointer, as if a handler had interrupted it, and on top of it the address of the
 * code that returns from handlers.
 *
 *   our call: "syscall; ret"  ->  ret takes the address  ->  rt_sigreturn(2)  ->  as it was
 *
 * So whoever lets go of the thread at whatever moment, the kernel puts back all registers, vector
 * registers and the signal mask. Needs: both pieces of code in the program (every libc has them);
 * the thread on the main stack, or a stack for handlers that it is not on, where the frame lies at the
 * far end; no shadow stack. x86-64. Source: arch/x86/kernel/signal_64.c.
 * Threading: none.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "agent/util/cleanup.h"

struct inject_net {
	uint64_t call_ip;			 /* "syscall; ret"; 0: none was found */
	uint64_t return_ip;			 /* loads the number of rt_sigreturn and calls it */
	uint64_t stack_start, stack_end;	 /* of the main thread */
	uint64_t alternate_start, alternate_end; /* its stack for handlers; 0: none */
	uint64_t frame;				 /* once spread: what rsp has to be */
};

/* The process runs. Finds nothing rather than something wrong; cheap where libc is mapped. */
void net_find(pid_t pid, struct inject_net *ret_net);
/*
 * The thread stands: lays the frame for these registers and this mask. After it, rsp = net->frame
 * and a return is safe. False: not possible here, nothing was written.
 */
bool net_spread(pid_t tid, struct inject_net *net, const struct user_regs_struct *saved,
		uint64_t mask);
