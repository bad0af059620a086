// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/cpu.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

#define BIT(n) (UINT32_C(1) << (n))

const char *host_cpu_feature_name(unsigned int bit)
{
	static const struct {
		unsigned int bit;
		const char *name;
	} names[] = {
		{ 32 + 0, "sse3" },	   { 32 + 9, "ssse3" },	     { 32 + 12, "fma" },
		{ 32 + 19, "sse4.1" },	   { 32 + 20, "sse4.2" },    { 32 + 23, "popcnt" },
		{ 32 + 25, "aes" },	   { 32 + 28, "avx" },	     { 64 + 3, "bmi1" },
		{ 64 + 5, "avx2" },	   { 64 + 8, "bmi2" },	     { 64 + 11, "rtm" },
		{ 64 + 16, "avx512f" },	   { 64 + 29, "sha" },	     { 64 + 30, "avx512bw" },
		{ 64 + 31, "avx512vl" },   { 96 + 3, "pku" },	     { 96 + 7, "shstk" },
		{ 96 + 11, "avx512vnni" }, { 128 + 24, "amx-tile" }, { 224 + 4, "avx-vnni" },
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].bit == bit)
			return names[i].name;
	return NULL;
}

enum { XCR0_BITS = 0xffffff, XSAVE_VARIANTS = 0x1f };

/* FPU TSC CX8 CMOV CLFSH MMX FXSR SSE SSE2 */
static const uint32_t leaf1_edx = BIT(0) | BIT(4) | BIT(8) | BIT(15) | BIT(19) | BIT(23) | BIT(24) |
				  BIT(25) | BIT(26);

/* SSE3 PCLMUL SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE OSXSAVE AVX F16C RDRAND */
static const uint32_t leaf1_ecx = BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(13) | BIT(19) | BIT(20) |
				  BIT(22) | BIT(23) | BIT(25) | BIT(26) | BIT(27) | BIT(28) |
				  BIT(29) | BIT(30);

/* FSGSBASE BMI1 HLE AVX2 BMI2 RTM MPX AVX512F DQ RDSEED ADX IFMA CLFLUSHOPT CLWB PF ER CD SHA BW VL */
static const uint32_t leaf7_ebx = BIT(0) | BIT(3) | BIT(4) | BIT(5) | BIT(8) | BIT(11) | BIT(14) |
				  BIT(16) | BIT(17) | BIT(18) | BIT(19) | BIT(21) | BIT(23) |
				  BIT(24) | BIT(26) | BIT(27) | BIT(28) | BIT(29) | BIT(30) |
				  BIT(31);

/* VBMI PKU OSPKE WAITPKG VBMI2 SHSTK GFNI VAES VPCLMUL VNNI BITALG VPOPCNT RDPID MOVDIRI MOVDIR64 */
static const uint32_t leaf7_ecx = BIT(1) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) |
				  BIT(9) | BIT(10) | BIT(11) | BIT(12) | BIT(14) | BIT(22) |
				  BIT(27) | BIT(28);

/* 4VNNIW 4FMAPS UINTR VP2INTERSECT SERIALIZE TSXLDTRK AMX-BF16 FP16 AMX-TILE AMX-INT8 */
static const uint32_t leaf7_edx = BIT(2) | BIT(3) | BIT(5) | BIT(8) | BIT(14) | BIT(16) | BIT(22) |
				  BIT(23) | BIT(24) | BIT(25);

/* SHA512 SM3 SM4 RAO-INT AVX-VNNI AVX512-BF16 CMPCCXADD AMX-FP16 AVX-IFMA */
static const uint32_t leaf7_1_eax = BIT(0) | BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(7) |
				    BIT(21) | BIT(23);

/* LAHF LZCNT SSE4A 3DNOWPREFETCH XOP FMA4 TBM MONITORX */
static const uint32_t extended_ecx = BIT(0) | BIT(5) | BIT(6) | BIT(8) | BIT(11) | BIT(16) |
				     BIT(21) | BIT(29);

static uint64_t pair(uint32_t low, uint32_t high)
{
	return low | (uint64_t)high << 32;
}

static uint32_t read_xcr0(void)
{
	uint32_t low, high;

	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return low;
}

void host_cpu_features(uint64_t ret_words[4])
{
	uint32_t a, b, c, d, xsave = 0;
	uint64_t words[4] = { 0 };

	if (__get_cpuid(1, &a, &b, &c, &d)) {
		words[0] = pair(d & leaf1_edx, c & leaf1_ecx);
		if (c & bit_OSXSAVE)
			xsave = read_xcr0() & XCR0_BITS;
	}
	if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
		uint32_t subleaf_max = a;

		words[1] = pair(b & leaf7_ebx, c & leaf7_ecx);
		words[2] = d & leaf7_edx;
		if (subleaf_max >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d))
			words[3] = (uint64_t)(a & leaf7_1_eax) << 32;
	}
	if (__get_cpuid(0x80000001, &a, &b, &c, &d))
		words[2] |= (uint64_t)(c & extended_ecx) << 32;
	if (xsave && __get_cpuid_count(0xd, 1, &a, &b, &c, &d))
		xsave |= (a & XSAVE_VARIANTS) << 24;
	words[3] |= xsave;
	memcpy(ret_words, words, sizeof(words));
}

#else
#include <sys/auxv.h>

const char *host_cpu_feature_name(unsigned int bit)
{
	(void)bit;
	return NULL;
}

void host_cpu_features(uint64_t ret_words[4])
{
	memset(ret_words, 0, 4 * sizeof(*ret_words));
	ret_words[0] = getauxval(AT_HWCAP);
	ret_words[1] = getauxval(AT_HWCAP2);
}
#endif
