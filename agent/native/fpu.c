// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The extended registers of a thread, as PTRACE_GETREGSET gives them: the layout of XSAVE that is
 * not compacted (Intel SDM volume 1, 13.4). Where a component lies, the processor says.
 */
#include <cpuid.h>
#include <errno.h>
#include <string.h>

#include "agent/native/state_internal.h"

enum {
	LEGACY_SIZE = 512,
	HEADER_SIZE = 64,
	CPUID_XSAVE = 0xd,
};

enum {
	FEATURE_YMM = 2,
	FEATURE_BNDREGS = 3,
	FEATURE_BNDCSR = 4,
	FEATURE_OPMASK = 5,
	FEATURE_ZMM_UPPER = 6,
	FEATURE_HI16_ZMM = 7,
	FEATURE_PKRU = 9,
};

/* x87, SSE and those above. */
#define FEATURES_KNOWN 0x2ffull

static uint64_t get64(const uint8_t *p)
{
	uint64_t value;

	memcpy(&value, p, sizeof(value));
	return value;
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t value;

	memcpy(&value, p, sizeof(value));
	return value;
}

static uint16_t get16(const uint8_t *p)
{
	uint16_t value;

	memcpy(&value, p, sizeof(value));
	return value;
}

/* NULL: the processor has no such component, or the area ends before it. */
static uint8_t *find_component(const struct native_thread *t, unsigned int feature, size_t size)
{
	unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;

	if (!__get_cpuid_count(CPUID_XSAVE, feature, &eax, &ebx, &ecx, &edx))
		return NULL;
	if (eax != size || ebx < LEGACY_SIZE + HEADER_SIZE || ebx % 8 != 0)
		return NULL;
	return t->xsave_size >= (size_t)ebx + size ? t->xsave + ebx : NULL;
}

static void fill_u64(const struct native_thread *t, unsigned int feature, size_t count,
		     size_t *ret_count, uint64_t **ret_values)
{
	uint8_t *area = find_component(t, feature, count * sizeof(uint64_t));

	*ret_count = area ? count : 0;
	*ret_values = (uint64_t *)(void *)area;
}

static void fill_u32(const struct native_thread *t, unsigned int feature, size_t count,
		     size_t *ret_count, uint32_t **ret_values)
{
	uint8_t *area = find_component(t, feature, count * sizeof(uint32_t));

	*ret_count = area ? count : 0;
	*ret_values = (uint32_t *)(void *)area;
}

static void fill_legacy(const struct native_thread *t, NatCore__Fpregs *f)
{
	nat_core__fpregs__init(f);
	f->cwd = get16(t->xsave);
	f->swd = get16(t->xsave + 2);
	f->twd = get16(t->xsave + 4);
	f->fop = get16(t->xsave + 6);
	f->rip = get64(t->xsave + 8);
	f->rdp = get64(t->xsave + 16);
	f->mxcsr = get32(t->xsave + 24);
	f->mxcsr_mask = get32(t->xsave + 28);
	f->n_st = 32;
	f->st = (uint32_t *)(void *)(t->xsave + 32);
	f->n_xmm = 64;
	f->xmm = (uint32_t *)(void *)(t->xsave + 160);
}

/* A component that is in use must be in the image. */
static int check_present(struct native_tree *tree, const struct native_thread *t,
			 const NatCore__Xsave *x)
{
	const struct {
		unsigned int feature;
		size_t count;
	} parts[] = {
		{ FEATURE_YMM, x->n_ymmh },
		{ FEATURE_BNDREGS, x->n_bndregs },
		{ FEATURE_BNDCSR, x->n_bndcsr },
		{ FEATURE_OPMASK, x->n_opmask },
		{ FEATURE_ZMM_UPPER, x->n_zmm_upper },
		{ FEATURE_HI16_ZMM, x->n_hi16_zmm },
		{ FEATURE_PKRU, x->n_pkru },
	};

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		if (x->xstate_bv >> parts[i].feature & 1 && parts[i].count == 0)
			return native_fail(tree, -EOPNOTSUPP,
					   "thread %d has extended registers (feature %u) of an "
					   "unknown layout",
					   t->tid, parts[i].feature);
	}
	return 0;
}

int fpu_fill(struct native_tree *tree, const struct native_thread *t, NatCore__Fpregs *ret_fpregs,
	     NatCore__Xsave *ret_xsave)
{
	NatCore__Xsave *x = ret_xsave;

	if (!t->xsave || t->xsave_size < LEGACY_SIZE)
		return native_fail(tree, -EOPNOTSUPP, "thread %d: no floating-point registers",
				   t->tid);
	fill_legacy(t, ret_fpregs);
	if (t->xsave_size < LEGACY_SIZE + HEADER_SIZE)
		return 0;
	nat_core__xsave__init(x);
	x->xstate_bv = get64(t->xsave + LEGACY_SIZE);
	if (x->xstate_bv & ~FEATURES_KNOWN)
		return native_fail(tree, -EOPNOTSUPP,
				   "thread %d uses extended registers that have no place in an "
				   "image (AMX or the like; features %#llx)",
				   t->tid, (unsigned long long)(x->xstate_bv & ~FEATURES_KNOWN));
	fill_u32(t, FEATURE_YMM, 64, &x->n_ymmh, &x->ymmh);
	fill_u64(t, FEATURE_BNDREGS, 8, &x->n_bndregs, &x->bndregs);
	fill_u64(t, FEATURE_BNDCSR, 8, &x->n_bndcsr, &x->bndcsr);
	fill_u64(t, FEATURE_OPMASK, 8, &x->n_opmask, &x->opmask);
	fill_u64(t, FEATURE_ZMM_UPPER, 64, &x->n_zmm_upper, &x->zmm_upper);
	fill_u64(t, FEATURE_HI16_ZMM, 128, &x->n_hi16_zmm, &x->hi16_zmm);
	fill_u32(t, FEATURE_PKRU, 2, &x->n_pkru, &x->pkru);
	ret_fpregs->xsave = x;
	return check_present(tree, t, x);
}
