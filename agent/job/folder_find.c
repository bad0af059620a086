// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Which folders a user has in the cluster, how they are called, and which one a request names.
 *
 * Two hosts that do not know of each other's may make two folders of one name. Both stay. The one that
 * was made first keeps the name, the others are NAME~HOST; where that is no name of one folder alone,
 * NAME~ID. Each host finds the same, as the order is that of their making and then of their ids. Who
 * asks for a name that several have is refused, with the names that tell them apart.
 */
#define LOG_TAG "folder"
#include <errno.h>
#include <string.h>

#include "agent/job/folder.h"
#include "agent/job/verbs.h"
#include "agent/util/io.h"

enum { PREFIX_MIN = 4, ID_DIGITS = 8, WHOLE_ID = 32 };

static bool may_see(const struct api_call *call, uid_t uid)
{
	return call->uid == 0 || call->uid == uid;
}

/* ---- what there is ---- */

/* What this host knows of its own is newer than what members say. */
static bool open_folder(struct agent *a, const struct api_call *call, struct folder_row *row)
{
	struct folder *f;
	bool gone = false;

	if (job_unseal_value(a, &row->value, &row->seal) < 0)
		return false;
	if (!(row->seal.flags & JOB_SEAL_FOLDER) || !may_see(call, row->seal.uid)) {
		key_wipe(&row->seal, sizeof(row->seal));
		return false;
	}
	f = folder_find(a, &row->value.job);
	if (f) {
		if (row->value.state == JOB_STATE_HELD)
			job_get_value(f->job, &row->value);
		gone = f->gone;
		folder_unref(a, f);
	}
	return !gone && row->value.state < JOB_STATE_DONE;
}

/* What members tell, and our own: a host that has just started knows nobody yet. */
static int list_values(struct agent *a, int channel, struct job_value **ret_values,
		       size_t *ret_count)
{
	struct folder *own[FOLDERS_MAX];
	struct job_value *values, *bigger;
	size_t count, own_count, listed;
	int r = agent_list(channel, &values, &count);

	if (r < 0)
		return r;
	bigger = reallocarray(values, count + FOLDERS_MAX, sizeof(*values));
	if (!bigger) {
		free(values);
		return -ENOMEM;
	}
	listed = count;
	own_count = folders_all(a, own);
	for (size_t i = 0; i < own_count; i++) {
		bool there = false;

		for (size_t k = 0; k < listed && !there; k++)
			there = !memcmp(&bigger[k].job, &own[i]->job->id, sizeof(own[i]->job->id));
		if (!there)
			job_get_value(own[i]->job, &bigger[count++]);
		folder_unref(a, own[i]);
	}
	*ret_values = bigger;
	*ret_count = count;
	return 0;
}

static int add_row(struct folder_rows *rows, const struct folder_row *row)
{
	struct folder_row *bigger = calloc(rows->count + 1, sizeof(*bigger));

	if (!bigger)
		return -ENOMEM;
	if (rows->count) {
		memcpy(bigger, rows->items, rows->count * sizeof(*bigger));
		key_wipe(rows->items, rows->count * sizeof(*bigger));
	}
	free(rows->items);
	rows->items = bigger;
	rows->items[rows->count++] = *row;
	return 0;
}

void folder_rows_deinit(struct folder_rows *rows)
{
	if (rows->items)
		key_wipe(rows->items, rows->count * sizeof(*rows->items));
	free(rows->items);
	free(rows->members);
	*rows = (struct folder_rows){ 0 };
}

/* ---- what they are called ---- */

/* Of one name: the oldest first. */
static int compare_rows(const void *a, const void *b)
{
	const struct folder_row *x = a, *y = b;
	int order = strcmp(x->seal.name, y->seal.name);

	if (order != 0)
		return order;
	if (x->value.submit_wall_ms != y->value.submit_wall_ms)
		return x->value.submit_wall_ms < y->value.submit_wall_ms ? -1 : 1;
	return memcmp(&x->value.job, &y->value.job, sizeof(x->value.job));
}

static const char *host_of(const struct folder_row *row)
{
	return row->home ? row->home->hostname : "";
}

/* row is one of the `count` of a name. */
static void name_row(struct folder_row *row, const struct folder_row *alike, size_t count)
{
	const char *host = host_of(row);
	size_t there = 0;
	char hex[33];

	for (size_t i = 0; i < count; i++)
		there += !strcmp(host_of(&alike[i]), host);
	hex_encode(&row->value.job, sizeof(row->value.job), hex);
	if (there == 1 && job_good_name(host))
		snprintf(row->choice, sizeof(row->choice), "%s~%s", row->seal.name, host);
	else
		snprintf(row->choice, sizeof(row->choice), "%s~%.*s", row->seal.name, ID_DIGITS,
			 hex);
	strcpy(row->label, row == alike ? row->seal.name : row->choice);
}

static void name_rows(struct folder_rows *rows)
{
	size_t n;

	if (rows->count > 1)
		qsort(rows->items, rows->count, sizeof(*rows->items), compare_rows);
	for (size_t i = 0; i < rows->count; i += n) {
		const struct folder_row *first = &rows->items[i];

		for (n = 1; i + n < rows->count; n++)
			if (strcmp(first->seal.name, rows->items[i + n].seal.name) != 0)
				break;
		for (size_t k = 0; k < n; k++)
			name_row(&rows->items[i + k], first, n);
	}
}

int folder_rows_load(struct agent *a, const struct api_call *call, int channel,
		     struct folder_rows *ret_rows)
{
	_cleanup_free_ struct job_value *values = NULL;
	struct folder_rows rows = { 0 };
	size_t count = 0;
	int r = agent_members(channel, &rows.members, &rows.member_count);

	if (r == 0)
		r = list_values(a, channel, &values, &count);
	for (size_t i = 0; r == 0 && i < count; i++) {
		struct folder_row row = { .value = values[i] };

		if (!open_folder(a, call, &row))
			continue;
		for (size_t k = 0; k < rows.member_count; k++)
			if (node_id_equal(&rows.members[k].id, &row.value.home))
				row.home = &rows.members[k];
		r = add_row(&rows, &row);
		key_wipe(&row.seal, sizeof(row.seal));
	}
	if (r < 0) {
		folder_rows_deinit(&rows);
		return r;
	}
	name_rows(&rows);
	*ret_rows = rows;
	return 0;
}

/* ---- which one is meant ---- */

bool folder_row_is(const struct folder_row *row, const char *ref)
{
	size_t length = strlen(ref);
	char hex[33];

	hex_encode(&row->value.job, sizeof(row->value.job), hex);
	return !strcmp(row->seal.name, ref) || !strcmp(row->label, ref) ||
	       !strcmp(row->choice, ref) ||
	       (length >= PREFIX_MIN && length <= WHOLE_ID && !strncmp(hex, ref, length));
}

int folder_none(const char *ref, struct api_reply *reply)
{
	return api_error(reply, -ENOENT, "no-such-folder", ref, "decamp folder lists your folders",
			 "there is no such folder");
}

static int several(const struct folder_rows *rows, const char *ref, struct api_reply *reply)
{
	char names[600] = "";
	size_t hits = 0, at = 0;

	for (size_t i = 0; i < rows->count; i++) {
		if (!folder_row_is(&rows->items[i], ref))
			continue;
		hits++;
		if (at + sizeof(rows->items[i].choice) + 2 < sizeof(names))
			at += (size_t)snprintf(names + at, sizeof(names) - at, "%s%s",
					       at ? ", " : "", rows->items[i].choice);
	}
	return api_error(reply, -EINVAL, "ambiguous", ref, "say which one, or its id",
			 "%zu folders have that name: %s", hits, names);
}

int folder_row_find(struct agent *a, const struct api_call *call, int channel,
		    struct folder_rows *ret_rows, const struct folder_row **ret_row,
		    struct api_reply *reply)
{
	const struct folder_row *found = NULL;
	struct folder_rows rows = { 0 };
	size_t hits = 0;
	const char *ref;
	int r = api_get_string(call, "folder", FOLDER_LABEL_MAX, &ref);

	if (r < 0 || !ref || !*ref)
		return api_error(reply, -EINVAL, "bad-request", "folder",
				 "decamp folder lists your folders", "no folder was named");
	r = a->cluster ? folder_rows_load(a, call, channel, &rows) : 0;
	for (size_t i = 0; i < rows.count; i++) {
		if (!folder_row_is(&rows.items[i], ref))
			continue;
		found = &rows.items[i];
		hits++;
	}
	if (r == 0 && hits != 1)
		r = hits ? several(&rows, ref, reply) : folder_none(ref, reply);
	if (r < 0) {
		folder_rows_deinit(&rows);
		return r;
	}
	*ret_rows = rows;
	*ret_row = found;
	return 0;
}

/* By its whole id nobody else needs to be asked. */
static struct folder *find_here(struct agent *a, const struct api_call *call, const char *hex)
{
	struct folder *f;
	struct job_id id;

	if (strlen(hex) != WHOLE_ID || hex_decode(hex, &id, sizeof(id)) < 0)
		return NULL;
	f = folder_find(a, &id);
	if (!f || may_see(call, f->job->spec.uid))
		return f;
	folder_unref(a, f);
	return NULL;
}

int folder_of_call(struct agent *a, const struct api_call *call, struct folder **ret_folder,
		   struct api_reply *reply)
{
	_cleanup_close_ int channel = -1;
	struct folder_rows rows;
	const struct folder_row *row;
	struct folder *f = NULL;
	const char *ref;
	int r = api_get_string(call, "folder", FOLDER_LABEL_MAX, &ref);

	if (r == 0 && ref)
		f = find_here(a, call, ref);
	if (f) {
		*ret_folder = f;
		return 0;
	}
	channel = a->cluster ? ov_open_channel(a->main_channel) : -1;
	r = folder_row_find(a, call, channel, &rows, &row, reply);
	if (r < 0)
		return r;
	f = folder_find(a, &row->value.job);
	if (!f)
		r = api_error(reply, -EREMOTE, "not-here", row->label, "do it on that host",
			      "it is a folder of %s, and can only be read here",
			      row->home ? row->home->hostname : "?");
	folder_rows_deinit(&rows);
	*ret_folder = f;
	return r;
}
