/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the verbs of decamp(1) share: options, requests to decampd, output for people.
 *
 * Model: main() picks a verb from a table; the verb's function parses its options with
 * cli_parse(), builds a request body, asks decampd with cli_call() and prints. Every function of a
 * verb returns the program's exit code. Out of memory ends the program: it holds nothing that
 * could be lost. Threading: one thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "agent/export/export.h"
#include "agent/util/cleanup.h"

#define CLI_VERSION "0.1.0"
#define CLI_SOCKET "/run/decamp/control.sock"

struct json_object;

/* Stable, see decamp(1). */
enum cli_exit {
	CLI_OK = 0,
	CLI_FAILED = 1,
	CLI_USAGE = 2,
	CLI_UNREACHABLE = 3,
	CLI_NO_JOB = 4,
	CLI_NOT_PERMITTED = 5,
	CLI_TIMED_OUT = 6,
	CLI_INTERRUPTED = 130,
};

struct cli {
	const char *socket;
	const struct cli_verb *verb;
	char **args; /* what is left after the options */
	int arg_count;
	bool json;
	bool out_tty, err_tty;
	bool colour;
	unsigned int width; /* of the terminal, in columns; 0: print lines of any length */
};

struct cli_verb {
	const char *name; /* one or two words */
	const char *args; /* for the usage line */
	const char *summary;
	const char *example;
	int args_min, args_max;	  /* args_max < 0: any number */
	bool options_before_args; /* the first word that is no option ends the options */
	int (*fn)(struct cli *cli, int argc, char **argv);
};

/* ---- options ---- */

struct cli_list {
	const char **items; /* borrowed from argv */
	size_t count;
};

/* A table of these ends with a NULL name. Exactly one of flag, value, list is set. */
struct cli_option {
	const char *name;
	char letter;	 /* 0: none */
	const char *arg; /* NULL for a flag */
	const char *text;
	bool *flag;
	const char **value;
	struct cli_list *list;
};

/* options may be NULL. Returns -1 to go on, or an exit code (--help was printed, wrong usage). */
int cli_parse(struct cli *cli, const struct cli_option *options, int argc,
	      char **argv) _must_check_;
/* Prints "decamp: VERB: reason" and returns CLI_USAGE. */
int cli_usage(const struct cli *cli, const char *fmt, ...) _printf_(2, 3);
/* A decimal number; CLI_USAGE (told) beyond the limits. text NULL leaves *ret_value as it is. */
int cli_number(const struct cli *cli, const char *what, const char *text, int64_t min, int64_t max,
	       int64_t *ret_value) _must_check_;
void cli_list_add(struct cli_list *list, const char *item);
/*
 * Options from a file of "name = value" lines, those of the command line first; path NULL: none.
 * The values lie in *ret_text, which the caller frees. CLI_USAGE (told) if it cannot be read.
 */
int cli_job_file(const struct cli *cli, const struct cli_option *options, const char *path,
		 char **ret_text) _must_check_;
void cli_list_done(struct cli_list *list);
/* The path as seen from the current folder, always absolute; the caller frees it. */
char *cli_absolute(const char *path);

/* Prints "decamp: object: reason" and, unless next is empty or NULL, "  next". */
void cli_complain(const char *object, const char *reason, const char *next);
void cli_out_of_memory(void) __attribute__((noreturn));

/* ---- requests ---- */

struct cli_request {
	const char *verb;
	struct json_object *body; /* borrowed */
	int timeout_s;		  /* 0: none */
	bool raw;		  /* a good answer's bytes go to stdout, or to: */
	void *bytes;		  /* not NULL: room for bytes_max of them */
	size_t bytes_max;
	int interrupt_fd;	 /* readable: give up waiting (CLI_INTERRUPTED); 0 or less: none */
	void (*tick)(void *ctx); /* about every CLI_TICK_MS while waiting; may be NULL */
	void *tick_ctx;
};

enum { CLI_TICK_MS = 300, CLI_TIMEOUT_S = 60, CLI_REPLY_MAX = 64 << 20 };

struct cli_reply {
	long status;		  /* HTTP; 0: no answer */
	struct json_object *json; /* of an answer that is not raw */
	uint64_t raw_size;	  /* bytes written to stdout */
	uint64_t next_offset;	  /* X-Decamp-Next */
	char state[32];		  /* X-Decamp-State */
	char reason[320];	  /* why there is no answer */
};

/* Asks and prints nothing; returns an exit code. */
int cli_send(const struct cli *cli, const struct cli_request *request,
	     struct cli_reply *reply) _must_check_;
/* Tells what went wrong with a reply: stderr, and the error's JSON on stdout with --json. */
void cli_tell(const struct cli *cli, const struct cli_reply *reply);
/* A short request: asks, tells errors, releases body. */
int cli_call(const struct cli *cli, const char *verb, struct json_object *body,
	     struct cli_reply *reply) _must_check_;
/*
 * A verb whose one argument is JOB, without options: parses, then asks. Returns -1 to go on with the
 * reply, or an exit code.
 */
int cli_call_job(struct cli *cli, const char *verb, int argc, char **argv,
		 struct cli_reply *reply) _must_check_;
/* Like cli_call() for one that may take minutes: progress on a terminal, Ctrl-C ends only us.
 * object: the job's name for people and for the progress; NULL: vacate. */
int cli_call_long(const struct cli *cli, const char *verb, struct json_object *body,
		  const char *object, struct cli_reply *reply) _must_check_;
void cli_reply_done(struct cli_reply *reply);
#define _cleanup_reply_ _cleanup_(cli_reply_done)

/* ---- a kept checkpoint, looked into through decampd ---- */

struct cli_checkpoint {
	const struct cli *cli;
	struct export_set set;
	bool of_folder; /* a version of a folder; job is its id */
	char job[33], manifest[65];
	char *name, *stdout_path, *stderr_path;
	char arch[32];
	int64_t seq, wall_ms;
	bool images_refused;
	struct cli_kept {
		int64_t seq, wall_ms;
		char manifest[65];
	} * kept; /* all of the job, newest first */
	size_t kept_count;
	struct cli_reply failure; /* of the last part that could not be read */
	int failed;		  /* its exit code, or 0 */
};

/* seq 0, manifest NULL: the newest. with_files: their list, too. Tells nothing; see reply. */
int checkpoint_open(const struct cli *cli, const char *job, int64_t seq, const char *manifest,
		    bool with_files, struct cli_checkpoint *ret_checkpoint,
		    struct cli_reply *reply) _must_check_;
/* A version of a folder, with its files. */
int checkpoint_open_version(const struct cli *cli, const char *folder, const char *manifest,
			    struct cli_checkpoint *ret_checkpoint,
			    struct cli_reply *reply) _must_check_;
void checkpoint_done(struct cli_checkpoint *c);
/* Ends "JOB@SEQ" at the "@"; returns SEQ's text, or NULL where there is none. */
char *cli_split_seq(char *job);

/* ---- JSON; names that are missing or of another type read as the default ---- */

struct json_object *js_new(void);
void js_put_text(struct json_object *object, const char *key, const char *text); /* NULL: skipped */
void js_put_int(struct json_object *object, const char *key, int64_t value);
void js_put_bool(struct json_object *object, const char *key, bool value);
void js_put_list(struct json_object *object, const char *key, const char *const *items,
		 size_t count);
bool js_has(struct json_object *object, const char *key); /* present and not null */
const char *js_text(struct json_object *object, const char *key, const char *absent);
int64_t js_int(struct json_object *object, const char *key, int64_t absent);
double js_double(struct json_object *object, const char *key, double absent);
bool js_bool(struct json_object *object, const char *key, bool absent);
struct json_object *js_member(struct json_object *object, const char *key); /* NULL if absent */
size_t js_length(struct json_object *array); /* 0 if it is no array */
struct json_object *js_item(struct json_object *array, size_t index);
/* "a, b, c" of an array of texts, or absent; the caller frees it. */
char *js_join(struct json_object *array, const char *absent);
/* One line on stdout. */
void js_print(struct json_object *value);

/* ---- text for people ---- */

struct cli_text {
	char s[64];
};

struct cli_text text_size(int64_t bytes);	   /* 3.2 MiB */
struct cli_text text_age(int64_t ms);		   /* 42 s, 5 min, 3 h, 2 d */
struct cli_text text_us(int64_t us);		   /* 3.2 ms */
struct cli_text text_when(int64_t wall_ms);	   /* 12:03:11 today, else with the date */
struct cli_text text_end(struct json_object *job); /* "exit code 3", "killed by SIGTERM" */
bool state_is_end(const char *state);
/* Copies with control characters made harmless: text comes from other people's jobs. */
void text_clean(char *text);
/* Columns that UTF-8 text takes, one per code point. */
size_t text_columns(const char *text);

enum cli_colour { COLOUR_NONE, COLOUR_GOOD, COLOUR_BUSY, COLOUR_BAD, COLOUR_DIM, COLOUR_BOLD };
enum cli_colour state_colour(const char *state);
const char *colour_begin(const struct cli *cli, enum cli_colour colour);
const char *colour_end(const struct cli *cli, enum cli_colour colour);

/* ---- tables ---- */

struct table_column {
	const char *title;
	bool right;    /* numbers */
	bool flexible; /* gives way when the terminal is narrow */
};

enum { TABLE_COLUMNS_MAX = 14 };

struct table_cell {
	char *text;
	enum cli_colour colour;
};

/* Rows are filled from left to right; a new one begins with table_row(). */
struct table {
	const struct table_column *columns;
	size_t column_count;
	struct table_cell *cells; /* row by row */
	size_t cell_count, room;
	size_t fill; /* columns filled in the last row */
	bool *spans; /* per row: its last text runs over the columns that follow */
	size_t row_count;
};

void table_init(struct table *t, const struct table_column *columns, size_t count);
void table_row(struct table *t);
void table_cell(struct table *t, enum cli_colour colour, const char *fmt, ...) _printf_(3, 4);
/* Text that runs on to the end of the row. */
void table_span(struct table *t, const char *fmt, ...) _printf_(2, 3);
void table_print(const struct table *t, const struct cli *cli);
void table_deinit(struct table *t);

/* ---- verbs ---- */

int wait_for_job(const struct cli *cli, const char *job, bool print_json);

int verb_run(struct cli *cli, int argc, char **argv);
int verb_adopt(struct cli *cli, int argc, char **argv);
int verb_ps(struct cli *cli, int argc, char **argv);
int verb_show(struct cli *cli, int argc, char **argv);
int verb_why(struct cli *cli, int argc, char **argv);
int verb_logs(struct cli *cli, int argc, char **argv);
int verb_history(struct cli *cli, int argc, char **argv);
int verb_recover(struct cli *cli, int argc, char **argv);
int verb_ckpt(struct cli *cli, int argc, char **argv);
int verb_restore(struct cli *cli, int argc, char **argv);
int verb_migrate(struct cli *cli, int argc, char **argv);
int verb_vacate(struct cli *cli, int argc, char **argv);
int verb_freeze(struct cli *cli, int argc, char **argv);
int verb_thaw(struct cli *cli, int argc, char **argv);
int verb_kill(struct cli *cli, int argc, char **argv);
int verb_wait(struct cli *cli, int argc, char **argv);
int verb_check(struct cli *cli, int argc, char **argv);
int verb_doctor(struct cli *cli, int argc, char **argv);
int verb_ls(struct cli *cli, int argc, char **argv);
int verb_cat(struct cli *cli, int argc, char **argv);
int verb_export(struct cli *cli, int argc, char **argv);
int verb_mount(struct cli *cli, int argc, char **argv);
int verb_folder(struct cli *cli, int argc, char **argv);
int verb_folder_create(struct cli *cli, int argc, char **argv);
int verb_folder_delete(struct cli *cli, int argc, char **argv);
int verb_nodes(struct cli *cli, int argc, char **argv);
int verb_cluster_init(struct cli *cli, int argc, char **argv);
int verb_cluster_invite(struct cli *cli, int argc, char **argv);
int verb_cluster_join(struct cli *cli, int argc, char **argv);
