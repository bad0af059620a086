#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The live view of a story: a block that is redrawn on a terminal, one line per event elsewhere."""

import shutil
import sys
import threading
import time

from traces import LabError

PERIOD_SECONDS = 0.5
COLOURS = {"running": "32", "checkpointing": "36", "moving": "33", "restoring": "33",
           "waiting": "31", "frozen": "33", "done": "34", "collected": "34", "lost": "31"}


def size(count):
    """Bytes for people."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(ms):
    if ms is None:
        return "-"
    if ms < 1000:
        return f"{ms:.1f} ms" if 0 < ms < 10 else f"{ms:.0f} ms"
    return f"{ms / 1000:.1f} s"


def table(rows):
    """Columns as wide as their widest cell; the first row is the head."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip()
             for row in rows]
    return [lines[0], "-" * len(lines[0])] + lines[1:]


class View:
    """Asks a live host for all jobs, twice a second, in a thread of its own. `jobs` is what it
    knows: {name: summary}, never older than a second while some host answers."""

    def __init__(self, lab, names, user, out=sys.stdout):
        self.lab = lab
        self.names = names
        self.user = user
        self.out = out
        self.tty = out.isatty()
        self.jobs = {}
        self.lock = threading.Lock()
        self.height = 0
        self.told = {}
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.start = time.monotonic()

    def __enter__(self):
        self.lab.listeners.append(self.say)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join(20)
        self.lab.listeners.remove(self.say)
        with self.lock:
            self.height = 0

    def say(self, text):
        """An event: it stays on the screen."""
        with self.lock:
            self._erase()
            self.out.write(f"{time.monotonic() - self.start:6.1f} s  {text}\n")
            self._draw()
            self.out.flush()

    def _run(self):
        while not self.stopping.wait(PERIOD_SECONDS):
            self._ask()
            if self.tty:
                with self.lock:
                    self._erase()
                    self._draw()
                    self.out.flush()

    def _ask(self):
        for host in self.lab.hosts:
            if not host.pid or not host.daemon:
                continue
            try:
                jobs = host.decamp("ps", "--all", user=self.user, timeout=10)["jobs"]
            except (LabError, OSError, KeyError, TypeError, ValueError):
                continue
            except Exception as error:                     # a time-out: ask the next host
                if type(error).__name__ != "TimeoutExpired":
                    raise
                continue
            self._learn(jobs)
            return

    def _learn(self, jobs):
        for job in jobs:
            if job["name"] not in self.names:
                continue
            self.jobs[job["name"]] = job
            state = "running" if job["state"] == "checkpointing" else job["state"]
            now = (state, job.get("host"))
            if self.told.get(job["name"]) != now:
                self.told[job["name"]] = now
                where = f" on {job['host']}" if job.get("host") else ""
                why = f": {job['message']}" if job.get("message") and state != "running" else ""
                self.say(f"{job['name']}: {state}{where}{why}")

    def _erase(self):
        if self.tty and self.height:
            self.out.write(f"\x1b[{self.height}A\x1b[J")
            self.height = 0

    def _draw(self):
        if not self.tty or self.stopping.is_set():
            return
        rows = [("JOB", "STATE", "HOST", "CKPT", "AGE", "WORK")]
        for name in self.names:
            job = self.jobs.get(name, {})
            step = job.get("step") or ""
            if step and job.get("step_total"):
                step += f" {100 * job['step_done'] // job['step_total']} %"
            rows.append((name, job.get("state", "-"), job.get("host") or "-", job.get("seq", 0),
                         duration(job.get("ckpt_age_ms")) if job.get("seq") else "-", step))
        hosts = "hosts: " + "  ".join(host.name + ("" if host.pid else " OFF")
                                      for host in self.lab.hosts)
        width = shutil.get_terminal_size().columns - 1
        lines = [line[:width] for line in ["", hosts, *table(rows)]]
        for i, line in enumerate(lines):
            state = rows[i - 3][1] if i >= 4 else None
            colour = COLOURS.get(state)
            self.out.write((f"\x1b[{colour}m{line}\x1b[0m" if colour else line) + "\n")
        self.height = len(lines)
