// SPDX-License-Identifier: LGPL-2.1-or-later
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <string.h>

#include "agent/cli/cli.h"

enum { OPTIONS_MAX = 20, LONG_BASE = 256 };

static void option_line(const struct cli_option *option)
{
	char left[64], letter[8] = "    ";

	if (option->letter)
		snprintf(letter, sizeof(letter), "-%c, ", option->letter);
	snprintf(left, sizeof(left), "%s--%s%s%s", letter, option->name, option->arg ? " " : "",
		 option->arg ? option->arg : "");
	printf("  %-26s %s\n", left, option->text);
}

static void print_help(const struct cli *cli, const struct cli_option *options, size_t count)
{
	const struct cli_verb *verb = cli->verb;

	printf("Usage: decamp %s [option]...%s%s\n\n%s\n\nOptions:\n", verb->name,
	       *verb->args ? " " : "", verb->args, verb->summary);
	for (size_t i = 0; i < count; i++)
		option_line(&options[i]);
	printf("\nExample:\n  %s\n", verb->example);
}

int cli_usage(const struct cli *cli, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "decamp: %s: ", cli->verb->name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n  Try \"decamp %s --help\".\n", cli->verb->name);
	return CLI_USAGE;
}

void cli_complain(const char *object, const char *reason, const char *next)
{
	_cleanup_free_ char *a = strdup(object), *b = strdup(reason), *c = strdup(next ? next : "");

	if (!a || !b || !c)
		cli_out_of_memory();
	text_clean(a);
	text_clean(b);
	text_clean(c);
	fprintf(stderr, "decamp: %s: %s\n", a, b);
	if (*c)
		fprintf(stderr, "  %s\n", c);
}

static void store(const struct cli_option *option, const char *value)
{
	if (option->flag) {
		*option->flag = true;
	} else if (option->value) {
		*option->value = value;
	} else {
		cli_list_add(option->list, value);
	}
}

static size_t merge(struct cli *cli, bool *help, const struct cli_option *options,
		    struct cli_option all[OPTIONS_MAX])
{
	const struct cli_option common[] = {
		{ "json", 0, NULL, "print decampd's answer as JSON", .flag = &cli->json },
		{ "socket", 0, "PATH", "decampd's control socket", .value = &cli->socket },
		{ "help", 'h', NULL, "print this text", .flag = help },
	};
	size_t count = 0;

	for (; options && options[count].name && count < OPTIONS_MAX - ARRAY_SIZE(common); count++)
		all[count] = options[count];
	for (size_t i = 0; i < ARRAY_SIZE(common); i++)
		all[count++] = common[i];
	return count;
}

static const struct cli_option *find_option(const struct cli_option *all, size_t count, int c)
{
	if (c >= LONG_BASE)
		return &all[c - LONG_BASE];
	for (size_t i = 0; i < count; i++) {
		if (all[i].letter && all[i].letter == c)
			return &all[i];
	}
	return NULL;
}

static int check_args(const struct cli *cli)
{
	const struct cli_verb *verb = cli->verb;

	if (cli->arg_count < verb->args_min)
		return cli_usage(cli, "%s is missing", verb->args);
	if (verb->args_max >= 0 && cli->arg_count > verb->args_max)
		return cli_usage(cli, "\"%s\" is too much", cli->args[verb->args_max]);
	return -1;
}

int cli_parse(struct cli *cli, const struct cli_option *options, int argc, char **argv)
{
	struct cli_option all[OPTIONS_MAX];
	struct option longs[OPTIONS_MAX + 1] = { 0 };
	char letters[2 * OPTIONS_MAX + 3], *p = letters;
	bool help = false;
	size_t count = merge(cli, &help, options, all);
	int c;

	if (cli->verb->options_before_args)
		*p++ = '+';
	*p++ = ':';
	for (size_t i = 0; i < count; i++) {
		longs[i] = (struct option){ all[i].name,
					    all[i].arg ? required_argument : no_argument, NULL,
					    LONG_BASE + (int)i };
		if (!all[i].letter)
			continue;
		*p++ = all[i].letter;
		if (all[i].arg)
			*p++ = ':';
	}
	*p = '\0';
	opterr = 0;
	optind = 0; /* the GNU way to begin anew */
	while ((c = getopt_long(argc, argv, letters, longs, NULL)) >= 0) {
		if (c == ':')
			return cli_usage(cli, "%s needs a value", argv[optind - 1]);
		if (c == '?' && optopt > 0 && optopt < LONG_BASE)
			return cli_usage(cli, "unknown option -%c", optopt);
		if (c == '?')
			return cli_usage(cli, "unknown option %s", argv[optind - 1]);
		store(find_option(all, count, c), optarg);
	}
	if (help) {
		print_help(cli, all, count);
		return CLI_OK;
	}
	cli->args = argv + optind;
	cli->arg_count = argc - optind;
	return check_args(cli);
}

int cli_number(const struct cli *cli, const char *what, const char *text, int64_t min, int64_t max,
	       int64_t *ret_value)
{
	long long value;
	char *end;

	if (!text)
		return CLI_OK;
	errno = 0;
	value = strtoll(text, &end, 10);
	if (errno || end == text || *end || value < min || value > max)
		return cli_usage(cli, "%s: \"%s\" is not a number from %lld to %lld", what, text,
				 (long long)min, (long long)max);
	*ret_value = value;
	return CLI_OK;
}

void cli_list_add(struct cli_list *list, const char *item)
{
	const char **items = reallocarray(list->items, list->count + 1, sizeof(*list->items));

	if (!items)
		cli_out_of_memory();
	items[list->count++] = item;
	list->items = items;
}

void cli_list_done(struct cli_list *list)
{
	free(list->items);
}

char *cli_absolute(const char *path)
{
	_cleanup_free_ char *here = NULL;
	char *absolute = NULL;

	if (*path == '/')
		absolute = strdup(path);
	else if ((here = getcwd(NULL, 0)) && strcmp(path, ".") == 0)
		absolute = strdup(here);
	else if (here && asprintf(&absolute, "%s/%s", here, path) < 0)
		absolute = NULL;
	if (here && !absolute)
		cli_out_of_memory();
	return absolute ? absolute : strdup(path);
}
