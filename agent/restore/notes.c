// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "agent/restore/internal.h"

enum { NOTES_PIDS_MAX = 1 << 16, NOTES_PID_LIMIT = 1 << 22, NOTES_PINS_MAX = 4096 };

bool restore_is_below(const char *path, const char *folder)
{
	size_t n = strlen(folder);

	if (n == 1 && folder[0] == '/')
		return path[0] == '/';
	return !strncmp(path, folder, n) && (path[n] == '/' || path[n] == '\0');
}

bool restore_is_shm(const char *path)
{
	char *rest;

	return strtoul(path, &rest, 10) == RESTORE_SHM_LAYER && (*rest == '/' || *rest == '\0');
}

bool restore_is_whiteout(const struct stat *st)
{
	return S_ISCHR(st->st_mode) && st->st_rdev == 0;
}

/* Absolute, plain, and fit for a line of its own. */
static bool mount_path_valid(const char *path)
{
	size_t length = strlen(path);

	if (path[0] != '/' || length >= PATH_MAX || strchr(path, '\n'))
		return false;
	if (length == 1)
		return true;
	for (const char *part = path; *part;) {
		size_t n = strcspn(++part, "/");

		if (n == 0 || (n == 1 && part[0] == '.') || (n == 2 && !memcmp(part, "..", 2)))
			return false;
		part += n;
	}
	return true;
}

static int parse_mount(struct notes *n, const char *text)
{
	char *end;
	unsigned long number = strtoul(text, &end, 10);
	struct notes_mount *row = &n->mounts[n->mount_count];

	if (n->mount_count == KEEPER_MOUNTS_MAX || end == text || *end != ' ' ||
	    number >= KEEPER_MOUNTS_MAX || !mount_path_valid(end + 1) ||
	    notes_mount(n, (unsigned int)number))
		return -EBADMSG;
	row->path = strdup(end + 1);
	if (!row->path)
		return -ENOMEM;
	row->n = (unsigned int)number;
	n->mount_count++;
	return 0;
}

static int parse_mounts(struct notes *n, struct json_object *list)
{
	if (!list)
		return parse_mount(n, "0 /");
	if (!json_object_is_type(list, json_type_array))
		return -EBADMSG;
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *item = json_object_array_get_idx(list, i);
		int r;

		if (!json_object_is_type(item, json_type_string))
			return -EBADMSG;
		r = parse_mount(n, json_object_get_string(item));
		if (r < 0)
			return r;
	}
	return notes_mount(n, 0) ? 0 : -EBADMSG;
}

static int parse_pids(struct notes *n, struct json_object *list)
{
	if (!list)
		return 0;
	if (!json_object_is_type(list, json_type_array) ||
	    json_object_array_length(list) > NOTES_PIDS_MAX)
		return -EBADMSG;
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		int pid = json_object_get_int(json_object_array_get_idx(list, i));

		/* 1 is the keeper's init in the new namespace. */
		if (pid < 2 || pid > NOTES_PID_LIMIT)
			return -EBADMSG;
		n->low_pids |= pid < KEEPER_FIRST_PID;
		n->pid_max = pid > n->pid_max ? pid : n->pid_max;
	}
	return 0;
}

/* {"0-1": [TID, ...], ...} */
static int parse_pins(struct notes *n, struct json_object *lists)
{
	if (!lists)
		return 0;
	if (!json_object_is_type(lists, json_type_object))
		return -EBADMSG;
	n->pins = calloc(NOTES_PINS_MAX, sizeof(*n->pins));
	if (!n->pins)
		return -ENOMEM;
	json_object_object_foreach(lists, cpus, tids)
	{
		if (!json_object_is_type(tids, json_type_array))
			return -EBADMSG;
		for (size_t i = 0; i < json_object_array_length(tids); i++) {
			struct notes_pin *pin = &n->pins[n->pin_count];
			int tid = json_object_get_int(json_object_array_get_idx(tids, i));

			if (tid < 2 || tid > NOTES_PID_LIMIT || n->pin_count == NOTES_PINS_MAX)
				return -EBADMSG;
			*pin = (struct notes_pin){ .tid = tid, .cpus = strdup(cpus) };
			if (!pin->cpus)
				return -ENOMEM;
			n->pin_count++;
		}
	}
	return 0;
}

static int parse_object(struct notes *n, struct json_object *o)
{
	struct json_object *field;
	int r;

	if (!json_object_is_type(o, json_type_object))
		return -EBADMSG;
	if (json_object_object_get_ex(o, "root_pid", &field)) {
		n->root_pid = json_object_get_int(field);
		if (n->root_pid < 2 || n->root_pid > NOTES_PID_LIMIT)
			return -EBADMSG;
	}
	if (json_object_object_get_ex(o, "shell_job", &field))
		n->shell_job = json_object_get_boolean(field);
	if (json_object_object_get_ex(o, "hostname", &field)) {
		if (!json_object_is_type(field, json_type_string) ||
		    strlen(json_object_get_string(field)) >= sizeof(n->hostname))
			return -EBADMSG;
		strcpy(n->hostname, json_object_get_string(field));
	}
	r = parse_pids(n, json_object_object_get(o, "pids"));
	if (r == 0)
		r = parse_mounts(n, json_object_object_get(o, "mounts"));
	if (r == 0)
		r = parse_pins(n, json_object_object_get(o, "affinity"));
	return r;
}

int notes_parse(const char *json, struct notes *ret_notes)
{
	struct notes n = { 0 };
	struct json_object *o = json_tokener_parse(json);
	int r;

	if (!o)
		return -EBADMSG;
	r = parse_object(&n, o);
	json_object_put(o);
	if (r < 0) {
		notes_deinit(&n);
		return r;
	}
	*ret_notes = n;
	return 0;
}

void notes_deinit(struct notes *n)
{
	for (size_t i = 0; i < n->mount_count; i++)
		free(n->mounts[i].path);
	for (size_t i = 0; i < n->pin_count; i++)
		free(n->pins[i].cpus);
	free(n->pins);
	*n = (struct notes){ 0 };
}

const struct notes_mount *notes_mount(const struct notes *n, unsigned int number)
{
	for (size_t i = 0; i < n->mount_count; i++) {
		if (n->mounts[i].n == number)
			return &n->mounts[i];
	}
	return NULL;
}

int notes_split(const struct notes *n, const char *path, const struct notes_mount **ret_mount,
		const char **ret_rest)
{
	char *rest;
	unsigned long number = strtoul(path, &rest, 10);
	const struct notes_mount *mount;

	if (rest == path || (*rest != '/' && *rest != '\0') || number >= KEEPER_MOUNTS_MAX)
		return -EBADMSG;
	mount = notes_mount(n, (unsigned int)number);
	if (!mount)
		return -EBADMSG;
	*ret_mount = mount;
	*ret_rest = *rest ? rest + 1 : rest;
	return 0;
}
