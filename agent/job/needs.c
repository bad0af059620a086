// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/job/needs.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const arch_names[CPU_ARCH_END] = {
	[CPU_ARCH_X86_64] = "x86_64",	[CPU_ARCH_AARCH64] = "aarch64",
	[CPU_ARCH_RISCV64] = "riscv64", [CPU_ARCH_PPC64LE] = "ppc64le",
	[CPU_ARCH_S390X] = "s390x",
};

static const char *const relation_names[] = {
	[NEEDS_EQ] = "==", [NEEDS_NE] = "!=", [NEEDS_LT] = "<",
	[NEEDS_LE] = "<=", [NEEDS_GT] = ">",  [NEEDS_GE] = ">="
};

static bool same_word(const char *name, const char *word, size_t length)
{
	return name && strlen(name) == length && memcmp(name, word, length) == 0;
}

const char *needs_arch_name(uint32_t arch)
{
	return arch && arch < CPU_ARCH_END ? arch_names[arch] : "?";
}

uint32_t needs_arch_of(const char *machine, size_t length)
{
	for (uint32_t i = 1; i < CPU_ARCH_END; i++)
		if (same_word(arch_names[i], machine, length))
			return i;
	return 0;
}

/* ---- from text ---- */

struct parser {
	const char *text, *at;
	uint8_t program[OV_NEEDS_MAX];
	size_t size;
	uint32_t nesting; /* of parentheses and "!": how deep this recurs */
	char *error;
};

static int parse_any(struct parser *p);

static int _printf_(2, 3) fail(struct parser *p, const char *fmt, ...)
{
	char reason[120], place[32] = "at the end";
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	if (*p->at)
		snprintf(place, sizeof(place), "before \"%.12s\"", p->at);
	snprintf(p->error, NEEDS_ERROR_MAX, "at character %td, %s: %s", p->at - p->text + 1, place,
		 reason);
	return -EINVAL;
}

static void skip_blanks(struct parser *p)
{
	while (isspace((unsigned char)*p->at))
		p->at++;
}

static bool take(struct parser *p, const char *token)
{
	size_t length = strlen(token);

	skip_blanks(p);
	if (strncmp(p->at, token, length) != 0)
		return false;
	p->at += length;
	return true;
}

static size_t word_length(const char *at)
{
	size_t length = 0;

	while (isalnum((unsigned char)at[length]) ||
	       (length && at[length] && strchr("._-", at[length])))
		length++;
	return length;
}

static int emit(struct parser *p, const void *bytes, size_t size)
{
	if (size > sizeof(p->program) - p->size)
		return fail(p, "the expression is too long");
	memcpy(p->program + p->size, bytes, size);
	p->size += size;
	return 0;
}

static int parse_relation(struct parser *p, uint8_t key, uint8_t *ret_relation)
{
	/* "<=" before "<". */
	static const uint8_t order[] = {
		NEEDS_EQ, NEEDS_NE, NEEDS_LE, NEEDS_GE, NEEDS_LT, NEEDS_GT
	};
	size_t known = key == NEEDS_ARCH ? 2 : ARRAY_SIZE(order);

	for (size_t i = 0; i < known; i++) {
		if (take(p, relation_names[order[i]])) {
			*ret_relation = order[i];
			return 0;
		}
	}
	return fail(p, key == NEEDS_ARCH ? "== or != is expected" :
					   "a relation is expected: == != < <= > >=");
}

static int parse_digits(struct parser *p, uint64_t max, const char *what, uint64_t *ret_value)
{
	const char *start = p->at;
	uint64_t value = 0;

	if (!isdigit((unsigned char)*p->at))
		return fail(p, "%s is expected", what);
	for (; isdigit((unsigned char)*p->at); p->at++) {
		uint64_t digit = (uint64_t)(*p->at - '0');

		if (value > (max - digit) / 10) {
			p->at = start;
			return fail(p, "that number is too large");
		}
		value = value * 10 + digit;
	}
	*ret_value = value;
	return 0;
}

static int parse_size(struct parser *p, uint64_t *ret_value)
{
	static const char suffixes[] = "KMGT";
	const char *start = p->at, *suffix;
	unsigned int shift = 0;
	uint64_t value;
	int r = parse_digits(p, UINT64_MAX / 16, "a size like 512M or 8G", &value);

	if (r < 0)
		return r;
	if (*p->at && (suffix = strchr(suffixes, toupper((unsigned char)*p->at)))) {
		shift = 10 * (unsigned int)(suffix - suffixes + 1);
		p->at++;
	}
	if (value > UINT64_MAX >> shift) {
		p->at = start;
		return fail(p, "that size is too large");
	}
	*ret_value = value << shift;
	return 0;
}

static int parse_version(struct parser *p, uint64_t *ret_value)
{
	uint64_t major, minor = 0;
	int r = parse_digits(p, UINT16_MAX, "a version like 6.1", &major);

	if (r == 0 && *p->at == '.') {
		p->at++;
		r = parse_digits(p, UINT16_MAX, "the part of the version after the dot", &minor);
	}
	if (r < 0)
		return r;
	*ret_value = OV_KERNEL_VERSION(major, minor);
	return 0;
}

static int parse_arch(struct parser *p, uint64_t *ret_value)
{
	size_t length = word_length(p->at), used = 0;
	char known[80] = "";
	uint32_t arch = needs_arch_of(p->at, length);

	if (arch) {
		p->at += length;
		*ret_value = arch;
		return 0;
	}
	for (uint32_t i = 1; i < CPU_ARCH_END; i++)
		used += (size_t)snprintf(known + used, sizeof(known) - used, " %s", arch_names[i]);
	return fail(p, "an architecture is expected:%s", known);
}

static int parse_comparison(struct parser *p, uint8_t key)
{
	uint8_t item[3 + 8] = { NEEDS_COMPARE, key };
	uint64_t value = 0;
	int r = parse_relation(p, key, &item[2]);

	if (r < 0)
		return r;
	skip_blanks(p);
	if (key == NEEDS_MEM)
		r = parse_size(p, &value);
	else if (key == NEEDS_KERNEL)
		r = parse_version(p, &value);
	else if (key == NEEDS_ARCH)
		r = parse_arch(p, &value);
	else
		r = parse_digits(p, UINT16_MAX, "a number", &value);
	if (r < 0)
		return r;
	if (word_length(p->at) || *p->at == '.')
		return fail(p, "&&, || or the end is expected");
	for (size_t i = 0; i < 8; i++)
		item[3 + i] = (uint8_t)(value >> 8 * i);
	return emit(p, item, sizeof(item));
}

static int parse_tag(struct parser *p, size_t length)
{
	uint8_t item[2 + OV_TAG_MAX] = { NEEDS_TAG, (uint8_t)length };
	size_t before = 0;

	if (length >= OV_TAG_MAX)
		return fail(p, "a tag has at most %d letters", OV_TAG_MAX - 1);
	memcpy(item + 2, p->at, length);
	p->at += length;
	while (isspace((unsigned char)p->at[before]))
		before++;
	/* "memory >= 8G": more likely a slip than a tag. */
	if (strchr("<>=", p->at[before]) && p->at[before]) {
		p->at -= length;
		return fail(p, "only mem, cores, kernel and arch can be compared");
	}
	return emit(p, item, 2 + length);
}

static int parse_nested(struct parser *p, bool negated)
{
	static const uint8_t not = NEEDS_NOT;
	int r;

	if (p->nesting == NEEDS_DEPTH_MAX)
		return fail(p, "this is nested too deeply");
	p->nesting++;
	if (negated) {
		size_t length;

		skip_blanks(p);
		length = word_length(p->at);
		if (length && core_needs_key(p->at, length))
			return fail(p, "write !(%.*s ...)", (int)length, p->at);
		if (length)
			r = parse_tag(p, length);
		else if (take(p, "!"))
			r = parse_nested(p, true);
		else if (take(p, "("))
			r = parse_nested(p, false);
		else
			r = fail(p, "a tag or \"(\" is expected");
		if (r == 0)
			r = emit(p, &not, 1);
	} else {
		r = parse_any(p);
		if (r == 0 && !take(p, ")"))
			r = fail(p, "&&, || or \")\" is expected");
	}
	p->nesting--;
	return r;
}

static int parse_one(struct parser *p)
{
	size_t length;
	uint8_t key;

	if (take(p, "!"))
		return parse_nested(p, true);
	if (take(p, "("))
		return parse_nested(p, false);
	length = word_length(p->at);
	if (!length)
		return fail(p, "a tag, mem, cores, kernel, arch, \"!\" or \"(\" is expected");
	key = core_needs_key(p->at, length);
	if (!key)
		return parse_tag(p, length);
	p->at += length;
	return parse_comparison(p, key);
}

static int parse_all(struct parser *p)
{
	static const uint8_t and = NEEDS_AND;
	int r = parse_one(p);

	while (r == 0 && take(p, "&&")) {
		r = parse_one(p);
		if (r == 0)
			r = emit(p, &and, 1);
	}
	return r;
}

static int parse_any(struct parser *p)
{
	static const uint8_t or = NEEDS_OR;
	int r = parse_all(p);

	while (r == 0 && take(p, "||")) {
		r = parse_all(p);
		if (r == 0)
			r = emit(p, & or, 1);
	}
	return r;
}

int needs_compile(const char *text, uint8_t ret_program[OV_NEEDS_MAX], size_t *ret_size,
		  char error[NEEDS_ERROR_MAX])
{
	struct parser p = { .text = text, .at = text, .error = error };
	int r;

	if (strlen(text) >= NEEDS_TEXT_MAX)
		return fail(&p, "the expression is longer than %d letters", NEEDS_TEXT_MAX - 1);
	r = parse_any(&p);
	if (r < 0)
		return r;
	skip_blanks(&p);
	if (*p.at)
		return fail(&p, "&&, || or the end is expected");
	/* The grammar bounds all but these. */
	if (!core_needs_valid(p.program, p.size))
		return fail(&p, "more than %d parts, or nested too deeply", NEEDS_LEAVES_MAX);
	memcpy(ret_program, p.program, p.size);
	*ret_size = p.size;
	return 0;
}

/* ---- to text ---- */

static void print_value(const struct needs_item *leaf, char *text, size_t size)
{
	static const char suffixes[] = "\0KMGT";
	uint64_t value = leaf->value;
	size_t unit = 0;

	switch (leaf->key) {
	case NEEDS_MEM:
		while (value && value % 1024 == 0 && unit < 4) {
			value /= 1024;
			unit++;
		}
		snprintf(text, size, "%" PRIu64 "%.1s", value, suffixes + unit);
		break;
	case NEEDS_ARCH:
		snprintf(text, size, "%s", needs_arch_name((uint32_t)value));
		break;
	case NEEDS_KERNEL:
		snprintf(text, size, "%" PRIu64 ".%u", value >> 16, (unsigned int)(value & 0xffff));
		break;
	default:
		snprintf(text, size, "%" PRIu64, value);
	}
}

void needs_print_leaf(const struct needs_item *leaf, char text[NEEDS_WORDS_MAX])
{
	char value[32];

	if (leaf->op == NEEDS_TAG) {
		snprintf(text, NEEDS_WORDS_MAX, "%.*s", leaf->tag_size, (const char *)leaf->tag);
		return;
	}
	print_value(leaf, value, sizeof(value));
	snprintf(text, NEEDS_WORDS_MAX, "%s %s %s", core_needs_key_name(leaf->key),
		 relation_names[leaf->relation], value);
}

/* A part of the expression: how it is written, and what holds it together. */
struct part {
	char text[NEEDS_TEXT_MAX];
	uint8_t op;
};

static int print_not(struct part *a)
{
	char text[NEEDS_TEXT_MAX];
	bool bare = a->op == NEEDS_TAG || a->op == NEEDS_NOT;
	int n = snprintf(text, sizeof(text), bare ? "!%s" : "!(%s)", a->text);

	if (n >= (int)sizeof(text))
		return -EINVAL;
	memcpy(a->text, text, (size_t)n + 1);
	a->op = NEEDS_NOT;
	return 0;
}

static bool needs_brackets(const struct part *part, uint8_t op, bool right)
{
	if (part->op != NEEDS_AND && part->op != NEEDS_OR)
		return false;
	/* Without them what stands on the left would be taken together first. */
	return right ? part->op == op || part->op == NEEDS_OR : part->op > op;
}

static int print_pair(struct part *a, const struct part *b, uint8_t op)
{
	bool left = needs_brackets(a, op, false), right = needs_brackets(b, op, true);
	char text[NEEDS_TEXT_MAX];
	int n = snprintf(text, sizeof(text), "%s%s%s %s %s%s%s", left ? "(" : "", a->text,
			 left ? ")" : "", op == NEEDS_AND ? "&&" : "||", right ? "(" : "", b->text,
			 right ? ")" : "");

	if (n >= (int)sizeof(text))
		return -EINVAL;
	memcpy(a->text, text, (size_t)n + 1);
	a->op = op;
	return 0;
}

int needs_print(const uint8_t *program, size_t size, char text[NEEDS_TEXT_MAX])
{
	_cleanup_free_ struct part *stack = NULL;
	struct needs_item item;
	size_t depth = 0, at = 0;
	int r = 0;

	if (!core_needs_valid(program, size))
		return -EINVAL;
	stack = calloc(NEEDS_DEPTH_MAX, sizeof(*stack));
	if (!stack)
		return -ENOMEM;
	while (r == 0 && core_needs_next(program, size, &at, &item)) {
		if (item.op == NEEDS_NOT) {
			r = print_not(&stack[depth - 1]);
		} else if (item.op == NEEDS_AND || item.op == NEEDS_OR) {
			depth--;
			r = print_pair(&stack[depth - 1], &stack[depth], item.op);
		} else {
			needs_print_leaf(&item, stack[depth].text);
			stack[depth++].op = item.op;
		}
	}
	if (r == 0)
		strcpy(text, stack[0].text);
	return r;
}
