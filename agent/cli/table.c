// SPDX-License-Identifier: LGPL-2.1-or-later
#include <stdarg.h>
#include <string.h>

#include "agent/cli/cli.h"

enum { FLEXIBLE_MIN = 8, GAP = 2 };

void table_init(struct table *t, const struct table_column *columns, size_t count)
{
	*t = (struct table){ .columns = columns, .column_count = count };
	t->fill = count;
}

void table_row(struct table *t)
{
	bool *spans = realloc(t->spans, (t->row_count + 1) * sizeof(*spans));

	if (!spans)
		cli_out_of_memory();
	t->spans = spans;
	spans[t->row_count++] = false;
	t->fill = 0;
	if (t->row_count * t->column_count > t->room) {
		size_t room = 2 * t->room + 16 * t->column_count;
		struct table_cell *cells = realloc(t->cells, room * sizeof(*cells));

		if (!cells)
			cli_out_of_memory();
		t->cells = cells;
		t->room = room;
	}
	for (size_t i = 0; i < t->column_count; i++)
		t->cells[t->cell_count++] = (struct table_cell){ 0 };
}

static void fill_cell(struct table *t, enum cli_colour colour, const char *fmt, va_list ap)
{
	struct table_cell *cell = &t->cells[t->cell_count - t->column_count + t->fill];

	if (t->fill >= t->column_count)
		return;
	if (vasprintf(&cell->text, fmt, ap) < 0)
		cli_out_of_memory();
	text_clean(cell->text);
	cell->colour = colour;
	t->fill++;
}

void table_cell(struct table *t, enum cli_colour colour, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fill_cell(t, colour, fmt, ap);
	va_end(ap);
}

void table_span(struct table *t, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fill_cell(t, COLOUR_NONE, fmt, ap);
	va_end(ap);
	t->spans[t->row_count - 1] = true;
	t->fill = t->column_count;
}

/* The last filled cell of a row that ends with a span; else none. */
static size_t span_index(const struct table *t, size_t row)
{
	const struct table_cell *cells = &t->cells[row * t->column_count];
	size_t i = t->column_count;

	if (!t->spans[row])
		return t->column_count;
	while (i > 0 && !cells[i - 1].text)
		i--;
	return i > 0 ? i - 1 : 0;
}

static void measure(const struct table *t, const struct cli *cli, size_t *widths)
{
	size_t total = GAP * (t->column_count - 1);

	for (size_t c = 0; c < t->column_count; c++)
		widths[c] = text_columns(t->columns[c].title);
	for (size_t r = 0; r < t->row_count; r++) {
		size_t span = span_index(t, r);

		for (size_t c = 0; c < t->column_count && c != span; c++) {
			const char *text = t->cells[r * t->column_count + c].text;

			if (text && text_columns(text) > widths[c])
				widths[c] = text_columns(text);
		}
	}
	for (size_t c = 0; c < t->column_count; c++)
		total += widths[c];
	for (size_t c = t->column_count; c-- > 0 && cli->width > 0 && total > cli->width;) {
		size_t give = total - cli->width;

		if (!t->columns[c].flexible || widths[c] <= FLEXIBLE_MIN)
			continue;
		if (give > widths[c] - FLEXIBLE_MIN)
			give = widths[c] - FLEXIBLE_MIN;
		widths[c] -= give;
		total -= give;
	}
}

/* At most max columns of text; what is cut off shows as an ellipsis of three dots. */
static void put_text(const char *text, size_t max)
{
	size_t columns = 0, keep = text_columns(text) > max ? (max > 3 ? max - 3 : max) : max;
	const char *p = text;

	for (; *p; p++) {
		if (((unsigned char)*p & 0xc0) != 0x80 && columns++ == keep)
			break;
	}
	fwrite(text, 1, (size_t)(p - text), stdout);
	if (*p && max > 3)
		fputs("...", stdout);
}

static void pad(size_t count)
{
	printf("%*s", (int)count, "");
}

static void put_cell(const struct table *t, const struct cli *cli, const size_t *widths, size_t c,
		     const char *text, enum cli_colour colour, bool last)
{
	size_t columns = text_columns(text), width = widths[c];

	if (columns > width)
		columns = width;
	if (t->columns[c].right)
		pad(width - columns);
	fputs(colour_begin(cli, colour), stdout);
	put_text(text, width);
	fputs(colour_end(cli, colour), stdout);
	if (!t->columns[c].right && !last)
		pad(width - columns);
	if (!last)
		pad(GAP);
}

void table_print(const struct table *t, const struct cli *cli)
{
	size_t widths[TABLE_COLUMNS_MAX];

	measure(t, cli, widths);
	for (size_t c = 0; c < t->column_count; c++)
		put_cell(t, cli, widths, c, t->columns[c].title, COLOUR_BOLD,
			 c + 1 == t->column_count);
	putchar('\n');
	for (size_t r = 0; r < t->row_count; r++) {
		size_t span = span_index(t, r);

		for (size_t c = 0; c < t->column_count; c++) {
			const struct table_cell *cell = &t->cells[r * t->column_count + c];

			if (c == span) {
				fputs(cell->text ? cell->text : "", stdout);
				break;
			}
			put_cell(t, cli, widths, c, cell->text ? cell->text : "", cell->colour,
				 c + 1 == t->column_count);
		}
		putchar('\n');
	}
}

void table_deinit(struct table *t)
{
	for (size_t i = 0; i < t->cell_count; i++)
		free(t->cells[i].text);
	free(t->cells);
	free(t->spans);
}
