// SPDX-License-Identifier: LGPL-2.1-or-later
/* nodes with credit: what each host has done for others, and others for it. */
#include <errno.h>
#include <sys/stat.h>

#include "agent/job/verbs.h"
#include "agent/util/io.h"

enum { CREDIT_MS = 65000 }; /* longer than the overlay half takes at most */

struct credits {
	struct ov_credits told;
	struct ov_credit *rows;
};

static int get_rows(int channel, struct credits *ret_credits)
{
	struct ov_msg msg = { .op = OV_CREDIT };
	_cleanup_free_ struct ov_credit *rows = NULL;
	_cleanup_close_ int fd = -1;
	struct stat st;
	uint64_t size;
	int r = ov_call(channel, &msg, -1, &fd, CREDIT_MS);

	if (r < 0)
		return r;
	if (msg.u.credits.count > OV_MEMBERS_MAX)
		return -EBADMSG;
	size = msg.u.credits.count * sizeof(*rows);
	if (fd < 0 || fstat(fd, &st) < 0 || (uint64_t)st.st_size != size || !memfd_is_sealed(fd))
		return -EBADMSG;
	rows = malloc(size + 1);
	if (!rows)
		return -ENOMEM;
	r = size ? pread_full(fd, rows, size, 0) : 0;
	if (r < 0)
		return r;
	*ret_credits = (struct credits){ .told = msg.u.credits, .rows = take_ptr(rows) };
	return 0;
}

/* JSON has no larger integer. */
static struct json_object *number(uint64_t value)
{
	return json_object_new_int64(value > INT64_MAX ? INT64_MAX : (int64_t)value);
}

static struct json_object *describe_sum(const struct ov_credit_sum *sum)
{
	struct json_object *json = json_object_new_object();

	json_object_object_add(json, "byte_hours", number(sum->byte_hours));
	json_object_object_add(json, "restores", number(sum->restores));
	json_object_object_add(json, "restored_bytes", number(sum->restored_bytes));
	return json;
}

static struct json_object *describe(const struct ov_credit *row)
{
	struct json_object *json = json_object_new_object();

	json_object_object_add(json, "answered", json_object_new_boolean(row->answered));
	json_object_object_add(json, "given", describe_sum(&row->given));
	json_object_object_add(json, "taken", describe_sum(&row->taken));
	json_object_object_add(json, "receipts", number(row->receipts));
	json_object_object_add(json, "unverified", describe_sum(&row->unverified));
	json_object_object_add(json, "unverified_receipts", number(row->unverified_count));
	json_object_object_add(json, "forged_receipts", number(row->forged));
	return json;
}

int credit_describe(int channel, const struct member_info *members, size_t count,
		    struct json_object *nodes, struct json_object *reply)
{
	struct json_object *refused;
	struct credits credits;
	int r = get_rows(channel, &credits);

	if (r < 0)
		return r;
	for (size_t i = 0; i < count; i++)
		for (uint64_t k = 0; k < credits.told.count; k++)
			if (node_id_equal(&credits.rows[k].id, &members[i].id))
				json_object_object_add(json_object_array_get_idx(nodes, i),
						       "credit", describe(&credits.rows[k]));
	refused = json_object_new_object();
	json_object_object_add(refused, "forged", number(credits.told.forged));
	json_object_object_add(refused, "foreign", number(credits.told.foreign));
	json_object_object_add(refused, "older", number(credits.told.older));
	json_object_object_add(reply, "refused_receipts", refused);
	free(credits.rows);
	return 0;
}
