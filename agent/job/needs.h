/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A job's needs as people write them, to and from the program of overlay/core/needs.h.
 *
 *   any     = all { "||" all }
 *   all     = one { "&&" one }
 *   one     = not | "(" any ")" | tag | "arch" same name | key relation value
 *   not     = "!" ( not | "(" any ")" | tag )
 *   key     = "mem" | "cores" | "kernel"
 *   same    = "==" | "!="
 *   relation = same | "<" | "<=" | ">" | ">="
 *   value   = of mem: digits and K, M, G or T (powers of 1024); of cores: digits; of kernel: 6.1
 *   tag     = letters, digits, '.', '_' and '-', beginning with a letter or digit
 *
 * Blanks may stand between any of these. Threading: reentrant.
 */
#pragma once

#include <stddef.h>

#include "agent/util/cleanup.h"
#include "overlay/core/needs.h"

enum {
	NEEDS_TEXT_MAX = 1024, /* of an expression, with the NUL; one printed is never longer */
	NEEDS_WORDS_MAX = 80,  /* of one leaf as people read it */
	NEEDS_ERROR_MAX = 192,
};

/* -EINVAL; error: "at character 5, before \"8G\": a relation is expected: == != < <= > >=". */
int needs_compile(const char *text, uint8_t ret_program[OV_NEEDS_MAX], size_t *ret_size,
		  char error[NEEDS_ERROR_MAX]) _must_check_;
/* The shortest text that compiles to the same program; -EINVAL if that is not valid. */
int needs_print(const uint8_t *program, size_t size, char text[NEEDS_TEXT_MAX]) _must_check_;
/* One leaf, as "mem >= 8G" or "gpu". */
void needs_print_leaf(const struct needs_item *leaf, char text[NEEDS_WORDS_MAX]);

/* "x86_64"; "?" if it is not known. */
const char *needs_arch_name(uint32_t arch);
/* Of uname(2)'s machine; 0 if it is not known. */
uint32_t needs_arch_of(const char *machine, size_t length);
