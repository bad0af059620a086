#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The three programs of the story: real binaries, none relinked, none wrapped, all deterministic.

Each works in a folder of its own, on files that are made from nothing but a number. `scale` 1.0 is
about 25 s of work of one CPU each.
"""

import hashlib
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

NUMERIC = """\
# Coupled logistic maps: keeps all state in memory and tells one line per step.
import sys
from array import array

steps, cells = int(sys.argv[1]), int(sys.argv[2])
state = array("d", (((i * 7919) % 10007 + 1) / 10009 for i in range(cells)))
window = 20000
with open(sys.argv[3], "a") as result:
    for step in range(steps):
        start = (step * 12289) % (cells - window)
        total, left = 0.0, state[start - 1]
        for i in range(start, start + window):
            x = state[i]
            left = state[i] = 0.97 * 3.97 * x * (1.0 - x) + 0.03 * left
            total += left
        result.write(f"{step} {start} {total!r}\\n")
        result.flush()
        print("step", step, flush=True)
"""

PIPELINE = """\
#!/bin/sh
# One process generates, one filters, one keeps, one sums up.
awk -v n="$1" 'BEGIN {
	x = 42
	for (i = 1; i <= n; i++) {
		x = (x * 16807) % 2147483647
		print i, x
	}
}' | awk '{
	s = (s + $2 * sqrt($1)) % 1000003
	if ($2 % 97 == 0)
		printf "%d %d %.6f\\n", $1, $2, s
}' | tee kept.txt | sha256sum >sum.txt
"""


class Workload:
    """outputs: the files that have to come out the same, by path relative to the folder."""

    def __init__(self, name, title, argv, outputs):
        self.name = name
        self.title = title
        self.argv = argv
        self.outputs = outputs

    def prepare(self, folder):
        """Write the input files; the caller owns the folder."""
        raise NotImplementedError


class Numeric(Workload):
    def __init__(self, scale):
        steps = max(20, int(4000 * scale))
        super().__init__("numeric", "python3, numeric, 32 MB of state",
                         ["python3", "numeric.py", str(steps), "4000000", "result.txt"],
                         ["result.txt"])

    def prepare(self, folder):
        (folder / "numeric.py").write_text(NUMERIC)


class Compress(Workload):
    def __init__(self, scale):
        self.size = int(100e6 * scale)
        super().__init__("compress", f"xz -T2 over {self.size / 1e6:.0f} MB",
                         ["xz", "-T2", "-4", "-k", "data"], ["data.xz"])

    def prepare(self, folder):
        source = random.Random(20231)
        with (folder / "data").open("wb") as data:
            left = self.size
            while left > 0:
                # Each piece comes five times: some of it can be found again.
                piece = source.randbytes(60000).hex().encode() * 5
                data.write(piece[:left])
                left -= len(piece)


class Pipeline(Workload):
    def __init__(self, scale):
        super().__init__("pipeline", "sh: awk | awk | tee | sha256sum",
                         ["sh", "pipeline.sh", str(int(32e6 * scale))], ["kept.txt", "sum.txt"])

    def prepare(self, folder):
        (folder / "pipeline.sh").write_text(PIPELINE)


def the_three(scale):
    return [Numeric(scale), Compress(scale), Pipeline(scale)]


def prepare_at(workload, host, user, folder):
    """Make a host's folder for it, owned by the user."""
    path = host.path(folder)
    path.mkdir(parents=True)
    workload.prepare(path)
    owner = os.stat(path.parent)
    for each in (path, *path.iterdir()):
        os.chown(each, owner.st_uid if user != "root" else 0, owner.st_gid if user != "root" else 0)


class Reference:
    """Undisturbed runs of the same programs, outside of any host, side by side."""

    def __init__(self, workloads, directory):
        self.directory = Path(directory)
        self.running = {}
        self.seconds = {}  # that each took, of those that have ended
        self.started = time.monotonic()
        for workload in workloads:
            folder = self.directory / workload.name
            folder.mkdir(parents=True)
            workload.prepare(folder)
            self.running[workload] = subprocess.Popen(
                workload.argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})

    def results(self):
        """Wait for them: {workload name: {output: digest}}."""
        while len(self.seconds) < len(self.running):
            for workload, process in self.running.items():
                if workload.name not in self.seconds and process.poll() is not None:
                    self.seconds[workload.name] = time.monotonic() - self.started
            time.sleep(0.1)
        found = {}
        for workload, process in self.running.items():
            if process.returncode != 0:
                raise RuntimeError(f"{workload.name}: the undisturbed run failed")
            found[workload.name] = digests(workload, self.directory / workload.name)
        shutil.rmtree(self.directory)
        return found

    def stop(self):
        for process in self.running.values():
            process.kill()
            process.wait()


def digests(workload, folder):
    """SHA-256 of each output file; None for one that is not there."""
    found = {}
    for output in workload.outputs:
        path = Path(folder) / output
        if not path.exists():
            found[output] = None
            continue
        with path.open("rb") as file:
            found[output] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
