// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/export/image.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "agent/native/core.pb-c.h"
#include "agent/native/mem.pb-c.h"

enum { MAGIC_COMMON = 0x54564319, DUMPABLE_BY_USER = 1 };

static bool get_u32(struct image *i, uint32_t *ret_value)
{
	if (i->size - i->at < sizeof(*ret_value))
		return false;
	memcpy(ret_value, i->bytes + i->at, sizeof(*ret_value));
	*ret_value = le32toh(*ret_value);
	i->at += sizeof(*ret_value);
	return true;
}

int image_begin(const void *bytes, size_t size, enum image_kind kind, struct image *ret_image)
{
	struct image i = { .bytes = bytes, .size = size };
	uint32_t common, magic;

	if (!get_u32(&i, &common) || !get_u32(&i, &magic) || common != MAGIC_COMMON ||
	    magic != (uint32_t)kind)
		return -EBADMSG;
	*ret_image = i;
	return 0;
}

int image_next(struct image *i, const ProtobufCMessageDescriptor *type,
	       ProtobufCMessage **ret_message)
{
	ProtobufCMessage *message;
	uint32_t size;

	if (i->at == i->size) {
		*ret_message = NULL;
		return 0;
	}
	if (!get_u32(i, &size) || size > i->size - i->at)
		return -EBADMSG;
	message = protobuf_c_message_unpack(type, NULL, size, i->bytes + i->at);
	if (!message)
		return -EBADMSG;
	i->at += size;
	*ret_message = message;
	return 0;
}

/* The first record, which these images must have. */
static int first_of(const void *bytes, size_t size, enum image_kind kind,
		    const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret_message)
{
	struct image i;
	int r = image_begin(bytes, size, kind, &i);

	if (r == 0)
		r = image_next(&i, type, ret_message);
	return r == 0 && !*ret_message ? -EBADMSG : r;
}

int image_core_is_of(const void *bytes, size_t size, uid_t uid)
{
	ProtobufCMessage *message;
	const NatCore__Core *core;
	const NatCore__Creds *c;
	int r = first_of(bytes, size, IMAGE_CORE, &nat_core__core__descriptor, &message);

	if (r < 0)
		return r;
	core = (const NatCore__Core *)message;
	c = core->thread ? core->thread->creds : NULL;
	/* A zombie has no memory; whatever else comes without ids is nobody's. */
	if (core->task && core->task->state == NAT_CORE__TASK_STATE__DEAD)
		r = 0;
	else if (!c || c->uid != uid || c->euid != uid || c->suid != uid || c->fsuid != uid)
		r = -EPERM;
	protobuf_c_message_free_unpacked(message, NULL);
	return r;
}

int image_mm_is_dumpable(const void *bytes, size_t size)
{
	ProtobufCMessage *message;
	const NatMm__Mm *mm;
	int r = first_of(bytes, size, IMAGE_MM, &nat_mm__mm__descriptor, &message);

	if (r < 0)
		return r;
	mm = (const NatMm__Mm *)message;
	r = mm->has_dumpable && mm->dumpable == DUMPABLE_BY_USER ? 0 : -EPERM;
	protobuf_c_message_free_unpacked(message, NULL);
	return r;
}
