/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "overlay/core/needs.h"

#include <string.h>

enum { COMPARE_BYTES = 3 + 8 };

static const char key_names[][8] = { [NEEDS_MEM] = "mem",
				     [NEEDS_CORES] = "cores",
				     [NEEDS_ARCH] = "arch",
				     [NEEDS_KERNEL] = "kernel" };

uint8_t core_needs_key(const char *word, size_t length)
{
	for (uint8_t key = NEEDS_MEM; key <= NEEDS_KERNEL; key++)
		if (length < sizeof(key_names[key]) && memcmp(key_names[key], word, length) == 0 &&
		    !key_names[key][length])
			return key;
	return 0;
}

const char *core_needs_key_name(uint8_t key)
{
	return key <= NEEDS_KERNEL ? key_names[key] : "";
}

static bool is_tag_byte(char c, bool first)
{
	if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
		return true;
	return !first && (c == '.' || c == '_' || c == '-');
}

bool core_tag_valid(const char *tag, size_t length)
{
	if (!length || length >= OV_TAG_MAX)
		return false;
	for (size_t i = 0; i < length; i++)
		if (!is_tag_byte(tag[i], i == 0))
			return false;
	return true;
}

size_t core_tags_length(const char tags[OV_TAGS_MAX])
{
	size_t length = 0;

	while (length < OV_TAGS_MAX && tags[length])
		length++;
	return length;
}

/* The length of the word that begins at `at`. */
static size_t word_length(const char *tags, size_t length, size_t at)
{
	size_t end = at;

	while (end < length && tags[end] != ' ')
		end++;
	return end - at;
}

bool core_tags_valid(const char *tags, size_t length)
{
	if (length >= OV_TAGS_MAX)
		return false;
	for (size_t at = 0; at < length;) {
		size_t word = word_length(tags, length, at);

		if (!core_tag_valid(tags + at, word) || at + word + 1 == length)
			return false;
		at += word + 1;
	}
	return true;
}

bool core_tags_have(const char tags[OV_TAGS_MAX], const void *tag, size_t length)
{
	size_t whole = core_tags_length(tags);

	for (size_t at = 0; at < whole;) {
		size_t word = word_length(tags, whole, at);

		if (word == length && memcmp(tags + at, tag, length) == 0)
			return true;
		at += word + 1;
	}
	return false;
}

bool core_needs_next(const uint8_t *program, size_t size, size_t *at, struct needs_item *ret_item)
{
	struct needs_item item = { 0 };
	size_t left, need = 1;

	if (*at >= size)
		return false;
	left = size - *at;
	item.op = program[*at];
	if (item.op == NEEDS_TAG) {
		if (left < 2 || program[*at + 1] > left - 2)
			return false;
		item.tag_size = program[*at + 1];
		item.tag = program + *at + 2;
		need = 2 + (size_t)item.tag_size;
	} else if (item.op == NEEDS_COMPARE) {
		if (left < COMPARE_BYTES)
			return false;
		item.key = program[*at + 1];
		item.relation = program[*at + 2];
		for (size_t i = 8; i-- > 0;)
			item.value = item.value << 8 | program[*at + 3 + i];
		need = COMPARE_BYTES;
	}
	*at += need;
	*ret_item = item;
	return true;
}

static bool is_leaf(const struct needs_item *item)
{
	return item->op == NEEDS_TAG || item->op == NEEDS_COMPARE;
}

static bool is_sound(const struct needs_item *item)
{
	switch (item->op) {
	case NEEDS_TAG:
		return core_tag_valid((const char *)item->tag, item->tag_size);
	case NEEDS_COMPARE:
		if (item->key < NEEDS_MEM || item->key > NEEDS_KERNEL ||
		    item->relation < NEEDS_EQ || item->relation > NEEDS_GE)
			return false;
		return item->key != NEEDS_ARCH ||
		       (item->relation <= NEEDS_NE && item->value && item->value < CPU_ARCH_END);
	default:
		return item->op >= NEEDS_NOT && item->op <= NEEDS_OR;
	}
}

bool core_needs_valid(const uint8_t *program, size_t size)
{
	uint32_t depth = 0, leaves = 0;
	struct needs_item item;
	size_t at = 0;

	if (size > OV_NEEDS_MAX)
		return false;
	while (core_needs_next(program, size, &at, &item)) {
		if (!is_sound(&item))
			return false;
		if (is_leaf(&item)) {
			if (++leaves > NEEDS_LEAVES_MAX || ++depth > NEEDS_DEPTH_MAX)
				return false;
		} else if (item.op == NEEDS_NOT) {
			if (depth < 1)
				return false;
		} else {
			if (depth < 2)
				return false;
			depth--;
		}
	}
	return at == size && depth == 1;
}

static uint64_t host_value(const struct member_state_report *report, uint64_t mem_free_bytes,
			   uint8_t key)
{
	switch (key) {
	case NEEDS_MEM:
		return mem_free_bytes;
	case NEEDS_CORES:
		return report->cores;
	case NEEDS_ARCH:
		return report->arch;
	default:
		return report->kernel_version;
	}
}

static bool holds(uint64_t has, uint8_t relation, uint64_t value)
{
	switch (relation) {
	case NEEDS_EQ:
		return has == value;
	case NEEDS_NE:
		return has != value;
	case NEEDS_LT:
		return has < value;
	case NEEDS_LE:
		return has <= value;
	case NEEDS_GT:
		return has > value;
	default:
		return has >= value;
	}
}

struct truth {
	bool is;
	uint32_t why; /* the leaves that make it so */
};

static struct truth both(struct truth a, struct truth b)
{
	if (a.is && b.is)
		return (struct truth){ true, a.why | b.why };
	return a.is ? b : a;
}

static struct truth either(struct truth a, struct truth b)
{
	if (!a.is && !b.is)
		return (struct truth){ false, a.why | b.why };
	return a.is ? a : b;
}

bool core_needs_met(const uint8_t *program, size_t size, const struct member_state_report *report,
		    uint64_t mem_free_bytes, uint32_t *ret_blame)
{
	struct truth stack[NEEDS_DEPTH_MAX];
	uint32_t depth = 0, leaf = 0;
	struct needs_item item;
	size_t at = 0;

	*ret_blame = 0;
	if (!size)
		return true;
	if (!core_needs_valid(program, size))
		return false;
	while (core_needs_next(program, size, &at, &item)) {
		if (item.op == NEEDS_NOT) {
			stack[depth - 1].is = !stack[depth - 1].is;
		} else if (item.op == NEEDS_AND || item.op == NEEDS_OR) {
			depth--;
			stack[depth - 1] = item.op == NEEDS_AND ?
						   both(stack[depth - 1], stack[depth]) :
						   either(stack[depth - 1], stack[depth]);
		} else {
			bool is = item.op == NEEDS_TAG ?
					  core_tags_have(report->tags, item.tag, item.tag_size) :
					  holds(host_value(report, mem_free_bytes, item.key),
						item.relation, item.value);

			stack[depth++] = (struct truth){ is, UINT32_C(1) << leaf++ };
		}
	}
	if (!stack[0].is)
		*ret_blame = stack[0].why;
	return stack[0].is;
}
