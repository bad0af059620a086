/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * CPU features that a dumped process may have come to depend on.
 *
 * A program asks CPUID once and keeps the answer (libc's choice of memcpy, a JIT's code), so it may
 * only move to a host that has every bit its first host had: (have & need) == need. Bits that say
 * nothing about instructions or register state (microcode, virtualisation, speed hints) are left
 * out, so that they bar no host. x86-64:
 *
 *   word 0   leaf 1: EDX in bits 0..31, ECX in bits 32..63
 *   word 1   leaf 7.0: EBX in bits 0..31, ECX in bits 32..63
 *   word 2   leaf 7.0: EDX in bits 0..31; leaf 0x80000001: ECX in bits 32..63
 *   word 3   XCR0 in bits 0..23 (which decides the size of the xsave area), leaf 0xd.1 EAX (the
 *            xsave variants) in bits 24..31, leaf 7.1 EAX in bits 32..63
 *
 * Other machines: AT_HWCAP and AT_HWCAP2 in words 0 and 1.
 *
 * Known limit: a larger xsave area on the target is not barred (a libc of before 2.40 that lacks
 * XSAVEC could outgrow the buffer it sized at its start).
 *
 * Source: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E. Threading: reentrant.
 */
#pragma once

#include <stdint.h>

/* Of a bit counted through the four words; NULL for one that few people know by name. */
const char *host_cpu_feature_name(unsigned int bit);
void host_cpu_features(uint64_t ret_words[4]);
