// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/host.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include "agent/util/io.h"
#include "overlay/core/needs.h"

enum {
	FILE_BYTES_MAX = 64 << 10,
	LINE_BYTES_MAX = 1023,
	ERROR_BYTES = 256,
	FREEZE_DELAY_MS = 500, /* how long a freeze may take: F of the lease rule */
};

enum key_type {
	KEY_PATH,
	KEY_NAME,
	KEY_ROOM,
	KEY_ADDR,
	KEY_PORT,
	KEY_UINT,
	KEY_SIZE,
	KEY_BOOL,
	KEY_ENGINE,
	KEY_LAZY,
	KEY_ERASURE,
	KEY_HOURS,
	KEY_TAGS
};

struct key {
	const char *name;
	enum key_type type;
	size_t offset, size;
	uint64_t min, max; /* of numbers; of texts min 0 allows an empty one */
};

#define FIELD(member) \
	offsetof(struct host_config, member), sizeof(((struct host_config *)NULL)->member)

static const struct key keys[] = {
	{ "state_dir", KEY_PATH, FIELD(state_dir), 1, 0 },
	{ "run_dir", KEY_PATH, FIELD(run_dir), 1, 0 },
	{ "user", KEY_NAME, FIELD(user), 1, 0 },
	{ "room", KEY_ROOM, FIELD(room), 1, 0 },
	{ "listen_addr", KEY_ADDR, FIELD(listen_addr), 1, 0 },
	{ "advertise_addr", KEY_ADDR, FIELD(advertise_addr), 0, 0 },
	{ "port", KEY_PORT, FIELD(port), 1, 65535 },
	{ "keeper_path", KEY_PATH, FIELD(keeper_path), 1, 0 },
	{ "criu_path", KEY_PATH, FIELD(criu_path), 0, 0 },
	{ "capture_path", KEY_PATH, FIELD(capture_path), 1, 0 },
	{ "engine", KEY_ENGINE, FIELD(engine), 1, 0 },
	{ "lazy_restore", KEY_LAZY, FIELD(lazy_restore), 1, 0 },
	{ "closed_hours", KEY_HOURS, FIELD(closed_hours), 0, 0 },
	{ "tags", KEY_TAGS, FIELD(tags), 0, 0 },
	{ "every_s", KEY_UINT, FIELD(every_s), 0, 7 * 86400 },
	{ "erasure", KEY_ERASURE, FIELD(erasure), 1, 0 },
	{ "erasure_after", KEY_UINT, FIELD(erasure_after), 1, 1000000 },
	{ "copies", KEY_UINT, FIELD(copies), 1, OV_HOLDERS_MAX },
	{ "probe_ms", KEY_UINT, FIELD(probe_ms), 20, 60000 },
	{ "suspect_ms", KEY_UINT, FIELD(suspect_ms), 40, 600000 },
	{ "renew_ms", KEY_UINT, FIELD(renew_ms), 50, 600000 },
	{ "lease_ms", KEY_UINT, FIELD(lease_ms), 200, 3600000 },
	{ "hold_ms", KEY_UINT, FIELD(hold_ms), 200, 3700000 },
	{ "quota_bytes", KEY_SIZE, FIELD(quota_bytes), 0, INT64_MAX },
	{ "reserve_bytes", KEY_SIZE, FIELD(reserve_bytes), 0, INT64_MAX },
	{ "scrub_bytes_s", KEY_SIZE, FIELD(scrub_bytes_s), 1, UINT32_MAX },
	{ "pack_memory", KEY_SIZE, FIELD(pack_memory), 0, INT64_MAX },
	{ "pack_disk", KEY_SIZE, FIELD(pack_disk), 0, INT64_MAX },
	{ "pack_cpu_percent", KEY_UINT, FIELD(pack_cpu_percent), 1, 100 },
	{ "credit_round_s", KEY_UINT, FIELD(credit_round_s), 1, 86400 },
	{ "folder_bytes", KEY_SIZE, FIELD(folder_bytes), 0, INT64_MAX },
	{ "closure_max_bytes", KEY_SIZE, FIELD(closure_max_bytes), 0, INT64_MAX },
	{ "takes_jobs", KEY_BOOL, FIELD(takes_jobs), 0, 1 },
	{ "remote_logins", KEY_BOOL, FIELD(remote_logins), 0, 1 },
	{ "vacate_on_login", KEY_BOOL, FIELD(vacate_on_login), 0, 1 },
	{ "return_idle_s", KEY_UINT, FIELD(return_idle_s), 0, 86400 },
};

struct parser {
	struct host_config config;
	const char *path;
	unsigned int line;
	unsigned int line_of[ARRAY_SIZE(keys)]; /* where a key was set; 0: default */
	char *error;
};

static int _printf_(3, 4) fail(struct parser *p, const char *key, const char *fmt, ...)
{
	char reason[140];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	snprintf(p->error, ERROR_BYTES, "%.70s:%u: %.30s: %s", p->path, p->line, key, reason);
	return -EINVAL;
}

/* A failure domain that needs no configuration: lab12 and lab13 share the room "lab". */
static void default_room(char *room, size_t size)
{
	char host[64] = "";
	size_t n = 0;

	if (gethostname(host, sizeof(host) - 1) < 0)
		host[0] = '\0';
	while (n + 1 < size && (isalpha((unsigned char)host[n]) || (n > 0 && host[n] == '-')))
		n++;
	while (n > 0 && host[n - 1] == '-')
		n--;
	host[n] = '\0';
	snprintf(room, size, "%s", n ? host : "default");
}

void host_config_default(struct host_config *config)
{
	*config = (struct host_config){
		.state_dir = "/var/lib/decamp",
		.run_dir = "/run/decamp",
		.user = "decamp",
		.listen_addr = "0.0.0.0",
		.port = 7431,
		.keeper_path = "/usr/lib/decamp/decamp-keeper",
		.capture_path = "/usr/lib/decamp/decamp-capture",
		.engine = "auto",
		.lazy_restore = "auto",
		.copies = 3,
		.erasure = "off",
		.erasure_after = 16,
		.probe_ms = 1000,
		.suspect_ms = 5000,
		.renew_ms = 5000,
		.lease_ms = 20000,
		.hold_ms = 22000,
		.quota_bytes = UINT64_C(20) << 30,
		.reserve_bytes = UINT64_C(5) << 30,
		.scrub_bytes_s = 2000000,
		.pack_memory = 256 << 20,
		.pack_disk = UINT64_C(2) << 30,
		.pack_cpu_percent = 100,
		.credit_round_s = 600,
		.folder_bytes = UINT64_C(16) << 30,
		.closure_max_bytes = UINT64_C(4) << 30,
		.takes_jobs = true,
		.vacate_on_login = true,
		.return_idle_s = 60,
	};
	default_room(config->room, sizeof(config->room));
}

/* Levenshtein distance of two short words. */
static unsigned int distance(const char *a, const char *b)
{
	unsigned int row[64];
	size_t a_len = strlen(a), b_len = strlen(b);

	if (b_len >= ARRAY_SIZE(row))
		return UINT_MAX;
	for (size_t j = 0; j <= b_len; j++)
		row[j] = (unsigned int)j;
	for (size_t i = 1; i <= a_len; i++) {
		unsigned int diagonal = row[0];

		row[0] = (unsigned int)i;
		for (size_t j = 1; j <= b_len; j++) {
			unsigned int best = diagonal + (a[i - 1] != b[j - 1]);

			diagonal = row[j];
			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			row[j] = best;
		}
	}
	return row[b_len];
}

static const struct key *nearest_key(const char *name)
{
	const struct key *best = &keys[0];
	unsigned int best_distance = UINT_MAX;

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		unsigned int d = distance(name, keys[i].name);

		if (d < best_distance) {
			best_distance = d;
			best = &keys[i];
		}
	}
	return best;
}

/* Digits with an optional K, M, G or T (powers of 1024) when with_suffix. */
static int parse_number(const char *text, bool with_suffix, uint64_t *ret_number)
{
	static const char suffixes[] = "KMGT";
	unsigned long long number;
	const char *suffix;
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	errno = 0;
	number = strtoull(text, &end, 10);
	if (errno)
		return -ERANGE;
	if (with_suffix && *end && (suffix = strchr(suffixes, toupper((unsigned char)*end)))) {
		unsigned int shift = 10 * (unsigned int)(suffix - suffixes + 1);

		if (number > UINT64_MAX >> shift)
			return -ERANGE;
		number <<= shift;
		end++;
	}
	if (*end)
		return -EINVAL;
	*ret_number = number;
	return 0;
}

static int set_number(struct parser *p, const struct key *key, const char *value)
{
	char *field = (char *)&p->config + key->offset;
	uint64_t number;
	int r = parse_number(value, key->type == KEY_SIZE, &number);

	if (r == -EINVAL && key->type == KEY_SIZE)
		return fail(p, key->name,
			    "\"%.40s\" is no size (digits, then K, M, G or T if wished)", value);
	if (r == -EINVAL)
		return fail(p, key->name, "\"%.40s\" is no whole number", value);
	if (r < 0 || number < key->min || number > key->max)
		return fail(p, key->name, "%.40s is not within %llu..%llu", value,
			    (unsigned long long)key->min, (unsigned long long)key->max);
	if (key->type == KEY_PORT) {
		uint16_t port = (uint16_t)number;

		memcpy(field, &port, sizeof(port));
	} else if (key->type == KEY_UINT) {
		uint32_t word = (uint32_t)number;

		memcpy(field, &word, sizeof(word));
	} else {
		memcpy(field, &number, sizeof(number));
	}
	return 0;
}

static int set_bool(struct parser *p, const struct key *key, const char *value)
{
	bool *field = (bool *)((char *)&p->config + key->offset);
	bool yes = !strcmp(value, "yes") || !strcmp(value, "true") || !strcmp(value, "1");

	if (!yes && strcmp(value, "no") && strcmp(value, "false") && strcmp(value, "0"))
		return fail(p, key->name, "\"%.40s\" is neither yes nor no", value);
	*field = yes;
	return 0;
}

static int set_hours(struct parser *p, const struct key *key, const char *value)
{
	if (host_hours_parse(value, (uint8_t *)&p->config + key->offset) < 0)
		return fail(p, key->name, "\"%.60s\" is no list like mon-fri 20-8, sat-sun 0-24",
			    value);
	return 0;
}

/* "gpu, matlab" or "gpu matlab": kept as words with one blank between them. */
static int set_tags(struct parser *p, const struct key *key, const char *value)
{
	char tags[OV_TAGS_MAX] = "";
	size_t used = 0;

	for (;;) {
		size_t length;

		value += strspn(value, " \t,");
		length = strcspn(value, " \t,");
		if (!length)
			break;
		if (!core_tag_valid(value, length))
			return fail(p, key->name,
				    "\"%.*s\" is no tag (letters, digits, '.', '_' and '-', at "
				    "most %d)",
				    length > 40 ? 40 : (int)length, value, OV_TAG_MAX - 1);
		if (core_needs_key(value, length))
			return fail(p, key->name, "\"%.*s\" has a meaning of its own", (int)length,
				    value);
		if (core_tags_have(tags, value, length))
			return fail(p, key->name, "\"%.*s\" is there twice", (int)length, value);
		if (used + (used > 0) + length >= sizeof(tags))
			return fail(p, key->name, "more than %zu letters", sizeof(tags) - 1);
		if (used)
			tags[used++] = ' ';
		memcpy(tags + used, value, length);
		used += length;
		value += length;
	}
	memcpy((char *)&p->config + key->offset, tags, sizeof(tags));
	return 0;
}

static const char *wrong_text(const struct key *key, const char *value)
{
	uint8_t addr[16];

	switch (key->type) {
	case KEY_PATH:
		return value[0] == '/' ? NULL : "is no absolute path";
	case KEY_ADDR:
		if (inet_pton(AF_INET, value, addr) == 1 || inet_pton(AF_INET6, value, addr) == 1)
			return NULL;
		return "is no IPv4 or IPv6 address";
	case KEY_ENGINE:
		if (!strcmp(value, "auto") || !strcmp(value, "native") || !strcmp(value, "criu"))
			return NULL;
		return "is neither auto, native nor criu";
	case KEY_LAZY:
		if (!strcmp(value, "auto") || !strcmp(value, "off"))
			return NULL;
		return "is neither auto nor off";
	case KEY_ERASURE:
		if (!strcmp(value, "off") || !strcmp(value, "auto") || !strcmp(value, "4+2") ||
		    !strcmp(value, "4+4") || !strcmp(value, "8+8"))
			return NULL;
		return "is neither off, auto, 4+2, 4+4 nor 8+8";
	case KEY_NAME:
		if (strspn(value, "abcdefghijklmnopqrstuvwxyz0123456789_-") == strlen(value) &&
		    !isdigit((unsigned char)value[0]) && value[0] != '-')
			return NULL;
		return "is no user name";
	default:
		for (const char *c = value; *c; c++) {
			if (!isalnum((unsigned char)*c) && !strchr("._-", *c))
				return "has more than letters, digits, '.', '_' and '-'";
		}
		return NULL;
	}
}

static int set_text(struct parser *p, const struct key *key, const char *value)
{
	char *field = (char *)&p->config + key->offset;
	const char *wrong;

	if (!*value && key->min)
		return fail(p, key->name, "must not be empty");
	if (strlen(value) >= key->size)
		return fail(p, key->name, "is longer than %zu bytes", key->size - 1);
	wrong = *value ? wrong_text(key, value) : NULL;
	if (wrong)
		return fail(p, key->name, "\"%.80s\" %s", value, wrong);
	memset(field, 0, key->size);
	memcpy(field, value, strlen(value));
	return 0;
}

static char *trim(char *text)
{
	char *end = text + strlen(text);

	while (end > text && isspace((unsigned char)end[-1]))
		end--;
	*end = '\0';
	while (isspace((unsigned char)*text))
		text++;
	return text;
}

static void cut_comment(char *line)
{
	for (char *c = line; *c; c++) {
		if (*c == '#' && (c == line || isspace((unsigned char)c[-1]))) {
			*c = '\0';
			return;
		}
	}
}

static int parse_line(struct parser *p, char *line)
{
	const struct key *key = NULL;
	char *name, *value;
	size_t i;

	cut_comment(line);
	name = trim(line);
	if (!*name)
		return 0;
	value = strchr(name, '=');
	if (!value)
		return fail(p, name, "expected \"key = value\"");
	*value++ = '\0';
	name = trim(name);
	value = trim(value);
	for (i = 0; i < ARRAY_SIZE(keys) && !key; i++) {
		if (!strcmp(keys[i].name, name))
			key = &keys[i];
	}
	if (!key)
		return fail(p, name, "unknown key; did you mean %s?", nearest_key(name)->name);
	if (p->line_of[key - keys])
		return fail(p, name, "already set in line %u", p->line_of[key - keys]);
	p->line_of[key - keys] = p->line;
	switch (key->type) {
	case KEY_PORT:
	case KEY_UINT:
	case KEY_SIZE:
		return set_number(p, key, value);
	case KEY_BOOL:
		return set_bool(p, key, value);
	case KEY_HOURS:
		return set_hours(p, key, value);
	case KEY_TAGS:
		return set_tags(p, key, value);
	default:
		return set_text(p, key, value);
	}
}

/* The latest line that set one of the two keys: where a rule between them was broken. */
static void blame(struct parser *p, const char *a, const char *b)
{
	p->line = 0;
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		if ((!strcmp(keys[i].name, a) || !strcmp(keys[i].name, b)) &&
		    p->line_of[i] > p->line)
			p->line = p->line_of[i];
	}
}

/*
 * An acceptor counts from receipt, the owner from sending, their clocks run at rates that differ
 * by at most 1/1000: hold >= 1.001 * (lease + freeze delay) keeps two owners apart (G3).
 */
static int check_times(struct parser *p)
{
	const struct host_config *c = &p->config;
	uint64_t hold_min = ((uint64_t)c->lease_ms + FREEZE_DELAY_MS) * 1001;

	hold_min = (hold_min + 999) / 1000;
	if (c->hold_ms < hold_min) {
		blame(p, "hold_ms", "lease_ms");
		return fail(p, "hold_ms",
			    "%u is too short: lease_ms = %u needs 1.001 * (lease_ms + %d), "
			    "at least %llu",
			    c->hold_ms, c->lease_ms, FREEZE_DELAY_MS, (unsigned long long)hold_min);
	}
	if (c->lease_ms < 2 * (uint64_t)c->renew_ms) {
		blame(p, "lease_ms", "renew_ms");
		return fail(p, "lease_ms", "%u is too short: at least twice renew_ms, %llu",
			    c->lease_ms, 2 * (unsigned long long)c->renew_ms);
	}
	if (c->suspect_ms < 2 * (uint64_t)c->probe_ms) {
		blame(p, "suspect_ms", "probe_ms");
		return fail(p, "suspect_ms", "%u is too short: at least twice probe_ms, %llu",
			    c->suspect_ms, 2 * (unsigned long long)c->probe_ms);
	}
	return 0;
}

static int parse_text(struct parser *p, char *text, size_t size)
{
	char *next = text, *end = text + size;
	int r;

	while (next < end) {
		char *line = next, *stop = memchr(line, '\n', (size_t)(end - line));

		if (!stop)
			stop = end;
		next = stop + 1;
		*stop = '\0'; /* the byte after the text is there: it held the final NUL */
		p->line++;
		if (strlen(line) != (size_t)(stop - line))
			return fail(p, "line", "holds a NUL byte");
		if (stop - line > LINE_BYTES_MAX)
			return fail(p, "line", "is longer than %d bytes", LINE_BYTES_MAX);
		r = parse_line(p, line);
		if (r < 0)
			return r;
	}
	return check_times(p);
}

int host_config_load(struct host_config *config, const char *path, char error[256])
{
	struct parser p = { .config = *config, .path = path, .error = error };
	_cleanup_free_ char *text = NULL;
	size_t size;
	int r = read_file_at(AT_FDCWD, path, FILE_BYTES_MAX, &text, &size);

	if (r == -ENOENT)
		return 0;
	if (r == -EFBIG)
		return fail(&p, "file", "is larger than %d bytes", FILE_BYTES_MAX);
	if (r < 0) {
		fail(&p, "file", "cannot be read: %s", strerror(-r));
		return r;
	}
	r = parse_text(&p, text, size);
	if (r < 0)
		return r;
	*config = p.config;
	return 0;
}
