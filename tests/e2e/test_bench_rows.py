#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What benchmarks say has one form: rows.py and rows.c of tests/bench write the same."""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, check_equal, guarded

sys.path.insert(0, str(ROOT / "tests/bench"))
# pylint: disable=wrong-import-position
import rows                                               # noqa: E402

# What rows.add() is given beyond case, engine, metric, unit; and what has to be in the row then.
GIVEN = [
    ({"figures": [30.0 - i for i in range(30)], "target": 15, "target_p99": 29},
     {"p50": 15, "p99": 30, "target": 15, "holds": False, "target_p99": 29}),
    ({"figures": [3, 1, 2], "target": 2, "target_p99": 3},
     {"p50": 2, "p99": 3, "target": 2, "holds": True, "target_p99": 3}),
    ({"figures": [7.5]}, {"p50": 7.5, "p99": 7.5, "target": None, "holds": None}),
    ({"figures": list(range(200, 0, -1)), "target": 100},
     {"p50": 100, "p99": 198, "target": 100, "holds": True}),
    ({"figures": 0}, {"value": 0, "target": None, "holds": None}),
    ({"figures": 123456789012, "target": 1e9},
     {"value": 123456789012, "target": 1e9, "holds": False}),
    ({"figures": 40.0, "target": 50, "limit": 10},
     {"value": 40, "target": 50, "holds": True, "limit": 10, "of_limit": 0.25}),
    ({"figures": 40.0, "target": 50, "most": False, "limit": 80},
     {"value": 40, "target": 50, "holds": False, "limit": 80, "of_limit": 0.5}),
    ({"figures": [40, 60], "target": 40, "most": False, "breakdown": {"0 read": 1.5, "1 sent": 2}},
     {"p50": 40, "p99": 60, "target": 40, "holds": True,
      "breakdown": {"0 read": 1.5, "1 sent": 2}}),
]
NAMES = {"case": "1g-1t", "engine": "native", "metric": "pause", "unit": "us"}
MAIN = """\
#include "tests/bench/rows.h"
int main(int argc, char **argv)
{
	struct rows *rows = rows_open(argv[argc - 1]);
	%s
	return (int)rows_close(rows);
}
"""


def in_c(given):
    figures = given["figures"]
    several = isinstance(figures, list)
    fields = {"name": '"1g-1t"', "engine": '"native"', "metric": '"pause"', "unit": '"us"'}
    if several:
        fields["figures"] = f"(double[]){{ {', '.join(map(str, figures))} }}"
        fields["count"] = len(figures)
    else:
        fields["value"] = figures
    fields.update({key: given[key] for key in ("target", "target_p99", "limit") if key in given})
    fields["least"] = "false" if given.get("most", True) else "true"
    if "breakdown" in given:
        fields["breakdown"] = json.dumps(json.dumps(given["breakdown"]))
    members = ", ".join(f".{key} = {value}" for key, value in fields.items())
    return f"rows_add(rows, &(struct row){{ {members} }});"


def written_by_c(folder):
    """The rows, what was printed, and how many targets were missed."""
    (folder / "main.c").write_text(MAIN % "\n\t".join(in_c(given) for given, _ in GIVEN))
    subprocess.run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-I.", "-o",
                    folder / "main", folder / "main.c", "tests/bench/rows.c"], cwd=ROOT, check=True)
    done = subprocess.run([folder / "main", folder / "c.json"], stdout=subprocess.PIPE, text=True,
                          check=False)
    return json.loads((folder / "c.json").read_text()), done.stdout, done.returncode


def written_by_python(folder):
    rows.BENCH = folder
    with contextlib.redirect_stdout(io.StringIO()) as said:
        table = rows.Rows()
        for given, _ in GIVEN:
            table.add(*NAMES.values(), **given)
    table.write("python")
    return json.loads((folder / "python.json").read_text()), said.getvalue(), table.missed()


def one_form(folder):
    expected = {"rows": [{**NAMES, **row} for _, row in GIVEN]}
    missed = sum(row["holds"] is False for row in expected["rows"])
    written, said, count = written_by_python(folder)
    check_equal(written, expected, "rows.py writes the rows")
    check_equal(count, missed, "and counts the targets that were missed")
    check_equal(said.count("MISSED"), missed, "and names them on the terminal")
    check_equal(written_by_c(folder), (expected, said, missed),
                "rows.c writes the same and prints the same")


def rows_that_stay(folder):
    """Two benchmarks write to one file, and take the place of their own rows only."""
    rows.BENCH = folder
    for case, figure in (("theirs", 1), ("ours", 2), ("ours", 3)):
        with contextlib.redirect_stdout(io.StringIO()):
            table = rows.Rows()
            table.add(case, "decamp", "wall", "s", figure)
        table.write("shared", lambda row, case=case: row["case"] != case)
    found = json.loads((folder / "shared.json").read_text())["rows"]
    check_equal([(row["case"], row["value"]) for row in found], [("theirs", 1), ("ours", 3)],
                "rows of others stay, those of an earlier run do not")
    table.write("shared")
    check_equal(json.loads((folder / "shared.json").read_text())["rows"], table.rows,
                "without being asked to, none stay")


def run():
    for test in (one_form, rows_that_stay):
        with tempfile.TemporaryDirectory() as folder:
            test(Path(folder))


if __name__ == "__main__":
    sys.exit(guarded(run))
