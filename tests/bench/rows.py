# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a benchmark measured: a line per row on the terminal, and build/bench/NAME.json.

    {"rows": [{"case": "1g-1t", "engine": "native", "metric": "pause", "unit": "us",
               "p50": 1072, "p99": 1304, "target": 1500, "holds": true}]}

"value" instead of p50 and p99 where there is one figure; target and holds are null where there is
no target. The engine is that of capture, or else whoever did it. Some rows have more: target_p99;
limit, what was reached beside it with all else left out, and of_limit, the share of it that was
reached here; breakdown, parts by their names. rows.c writes the same.
"""

import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BENCH = ROOT / os.environ.get("B", "build") / "bench"


def quantile(figures, percent):
    """Nearest rank: of 30, p99 is the largest."""
    return sorted(figures)[max(0, -(-len(figures) * percent // 100) - 1)]


class Rows:
    def __init__(self):
        self.rows = []
        print(f"{'case':24s} {'engine':10s} {'metric':24s} {'value or p50':>16s} {'p99':>16s} "
              f"{'unit':8s} {'target':>16s}", flush=True)

    def add(self, case, engine, metric, unit, figures, target=None, most=True, limit=None,
            target_p99=None, breakdown=None):
        """figures: one number, or a list; most: a target is what must not be passed."""
        def holds(figure, its_target):
            return its_target is None or (figure <= its_target if most else figure >= its_target)

        row = {"case": case, "engine": engine, "metric": metric, "unit": unit}
        if isinstance(figures, list):
            row["p50"] = value = quantile(figures, 50)
            row["p99"] = p99 = quantile(figures, 99)
        else:
            row["value"] = value = p99 = figures
        row["target"] = target
        row["holds"] = None if target is None else holds(value, target) and holds(p99, target_p99)
        if target_p99 is not None:
            row["target_p99"] = target_p99
        if limit:
            row["limit"], row["of_limit"] = limit, limit / value if most else value / limit
        if breakdown:
            row["breakdown"] = breakdown
        self.rows.append(row)
        targets = "/".join(f"{each:.12g}" for each in (target, target_p99) if each is not None)
        second = f"{p99:.3f}" if "p99" in row else ""
        verdict = {None: "", True: "holds", False: "MISSED"}[row["holds"]]
        if limit:
            verdict += f" {row['of_limit']:.2f} of {limit:.3f}"
        print(f"{case:24s} {engine:10s} {metric:24s} {value:16.3f} {second:>16s} {unit:8s} "
              f"{targets:>16s} {verdict}", flush=True)

    def missed(self):
        return sum(row["holds"] is False for row in self.rows)

    def write(self, name, keep=lambda row: False):
        """To NAME.json, behind those of its rows that are to be kept."""
        path = BENCH / f"{name}.json"
        BENCH.mkdir(parents=True, exist_ok=True)
        there = json.loads(path.read_text()) if path.exists() else []
        # A list is of an earlier form.
        kept = filter(keep, there["rows"]) if isinstance(there, dict) else ()
        path.write_text(json.dumps({"rows": [*kept, *self.rows]}, indent=1) + "\n")
