// SPDX-License-Identifier: LGPL-2.1-or-later
/* A job file: options of a verb, one a line, as "name = value". */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "agent/cli/cli.h"
#include "agent/util/io.h"

enum { FILE_MAX = 64 << 10 };

static char *trim(char *text)
{
	char *end;

	while (isspace((unsigned char)*text))
		text++;
	for (end = text + strlen(text); end > text && isspace((unsigned char)end[-1]);)
		*--end = '\0';
	return text;
}

static const struct cli_option *find(const struct cli_option *options, const char *name)
{
	for (; options->name; options++)
		if (!strcmp(options->name, name))
			return options;
	return NULL;
}

static int set_flag(const struct cli_option *option, const char *value)
{
	if (!strcmp(value, "yes"))
		*option->flag = true;
	return strcmp(value, "yes") && strcmp(value, "no") ? -EINVAL : 0;
}

/* What the command line said stands; of a list, all count. */
static int take_line(const struct cli *cli, const struct cli_option *options, const char *place,
		     char *line)
{
	const struct cli_option *option;
	char *value = strchr(line, '='), *name;

	if (!value)
		return cli_usage(cli, "%s: \"%.40s\" is not \"name = value\"", place, line);
	*value++ = '\0';
	name = trim(line);
	value = trim(value);
	option = find(options, name);
	if (!option || !strcmp(name, "file"))
		return cli_usage(cli, "%s: \"%.40s\" is no option of a job", place, name);
	if (option->flag && set_flag(option, value) < 0)
		return cli_usage(cli, "%s: %s: \"%.40s\" is neither yes nor no", place, name,
				 value);
	if (option->list)
		cli_list_add(option->list, value);
	else if (option->value && !*option->value)
		*option->value = value;
	return CLI_OK;
}

int cli_job_file(const struct cli *cli, const struct cli_option *options, const char *path,
		 char **ret_text)
{
	_cleanup_free_ char *text = NULL;
	char *next, *line, place[300];
	unsigned int number = 0;
	size_t size;
	int r = path ? read_file_at(AT_FDCWD, path, FILE_MAX, &text, &size) : 0;

	if (!path)
		return CLI_OK;
	if (r < 0 || strlen(text) != size) {
		cli_complain(path, r < 0 ? strerror(-r) : "holds a NUL byte", NULL);
		return CLI_USAGE;
	}
	next = text;
	while ((line = strsep(&next, "\n"))) {
		number++;
		line = trim(line);
		if (!*line || *line == '#')
			continue;
		snprintf(place, sizeof(place), "%.280s:%u", path, number);
		r = take_line(cli, options, place, line);
		if (r != CLI_OK)
			return r;
	}
	*ret_text = text; /* the values lie in it */
	text = NULL;
	return CLI_OK;
}
