#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs of other run times: each survives ten checkpoints and two migrations, output identical.

The same sums in Go, Java, JavaScript, Rust and C with musl. A language that is not there and cannot
be installed is left out, and the test says so.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from common import (ROOT, Failed, Skipped, check, check_equal, main, make_folder, note, submit)

SOURCES = Path(__file__).resolve().parent / "languages"
STEPS = 1800
CHECKPOINTS = 10
# name: (command that builds in an empty folder, the job's command line)
LANGUAGES = {
    "go": (["go", "build", "-o", "work", "work.go"], ["./work"]),
    "java": (["javac", "-d", ".", "Work.java"],
             ["java", "-Xmx64m", "-XX:-UsePerfData", "-cp", ".", "Work"]),
    "node": (["node", "--check", "work.js"], ["node", "work.js"]),
    "rust": (["rustc", "-O", "-o", "work", "work.rs"], ["./work"]),
    "musl": (["musl-gcc", "-O2", "-static", "-o", "work", "work.c", "-lpthread"], ["./work"]),
}
FILES = {"go": "work.go", "java": "Work.java", "node": "work.js", "rust": "work.rs",
         "musl": "work.c"}


def expected(steps):
    """What out.txt holds after an undisturbed run."""
    mask, ring, total, lines = 0xffffffff, [None] * 64, 0, []
    for step in range(steps):
        first = total
        for worker in range(2):
            x = (first + step * 2 + worker) & mask
            for _ in range(2000):
                x = (x * 1664525 + 1013904223) & mask
            total = (total + x) & mask
        ring[step % 64] = total
        old = ring[step * 7 % 64]
        if old is not None:
            total ^= (old + step % 1000) & mask
        lines.append(f"{step} {total:08x}\n")
    return "".join(lines).encode()


def build(name, folder):
    """Why it cannot be built, or None."""
    command = LANGUAGES[name][0]
    program = shutil.which(command[0])
    if not program:
        return f"{command[0]} is not there and could not be installed"
    folder.mkdir()
    shutil.copy(SOURCES / FILES[name], folder)
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root"),
           "GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    done = subprocess.run([program, *command[1:]], cwd=folder, env=env, capture_output=True,
                          text=True, timeout=120, check=False)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    if done.returncode:
        return f"{' '.join(command)}: {done.stderr.strip()[-300:]}"
    return None


def command_line(name):
    program, *words = LANGUAGES[name][1]
    # The tool may come from a place that a job's PATH does not hold.
    program = program if "/" in program else shutil.which(program)
    return [program, *words, f"mark-{name}", str(STEPS)]


def start(lab, name, built):
    home = lab[1]
    cwd = make_folder(home, name, lab.user)
    folder = home.path(cwd)
    owner = folder.stat()
    for file in built.iterdir():
        copy = Path(shutil.copy(file, folder))
        os.chown(copy, owner.st_uid, owner.st_gid)
    return submit(lab, home, name, command_line(name), "--every", "3600", cwd=cwd)


def live(lab, job, errors):
    """Five checkpoints, a move, three, a move, two; then its end."""
    try:
        hosts = [lab[1], lab[2], lab[3]]
        taken = 0
        for turn, count in enumerate((5, 3, 2)):
            if turn:
                job.migrate(hosts[turn], at=hosts[turn - 1])
                job.wait_host([hosts[turn]])
            for _ in range(count):
                job.ask("ckpt", job.name, at=hosts[turn])
                taken += 1
                time.sleep(0.3)
        if taken != CHECKPOINTS:
            raise Failed(f"{taken} checkpoints")
    except Exception as error:  # pylint: disable=broad-exception-caught
        errors[job.name] = error


def test_languages(lab):
    """All at once, as a machine's users would run them."""
    with tempfile.TemporaryDirectory(prefix="languages-") as scratch:
        missing = {name: build(name, Path(scratch) / name) for name in LANGUAGES}
        jobs = [start(lab, name, Path(scratch) / name) for name, why in missing.items() if not why]
    for name, why in missing.items():
        if why:
            note(f"SKIPPED {name}: {why}")
    if not jobs:
        raise Skipped("no language is there: " + "; ".join(missing.values()))
    errors = {}
    threads = [threading.Thread(target=live, args=(lab, job, errors)) for job in jobs]
    for thread in threads:
        thread.start()
    wanted = expected(STEPS)
    for thread in threads:
        thread.join()
    if errors:
        raise Failed("; ".join(f"{name}: {error}" for name, error in errors.items()))
    native = subprocess.run([str(lab.build / "decamp-capture"), "probe"], check=False,
                            stdout=subprocess.DEVNULL).returncode == 0
    for job in jobs:
        finish(job, wanted, native)


def finish(job, wanted, native):
    history = job.history()  # asked once: the job may end meanwhile
    check(history["moves"], f"{job.name}: it has moved")
    check_equal([move["lost_ms"] for move in history["moves"]], [0, 0],
                f"{job.name}: two moves, nothing was lost")
    engines = Counter(point.get("engine", "?") for point in history["checkpoints"])
    note(f"{job.name}: captured by " + ", ".join(f"{k} {v} x" for k, v in engines.items())
         + f"; {job.show().get('detail', {}).get('fallback_reason', '')}".rstrip("; "))
    if native:
        check("criu" not in engines, f"{job.name}: the native engine covers all of it")
    shown = job.wait_collected(200)
    check(shown["seq"] >= CHECKPOINTS, f"{job.name}: {shown['seq']} checkpoints")
    folder = job.home.path(f"{'/root' if job.user == 'root' else '/home/' + job.user}/{job.name}")
    check((folder / "out.txt").read_bytes() == wanted,
          f"{job.name}: its output is identical to an undisturbed run")


if __name__ == "__main__":
    if not os.geteuid():
        subprocess.run([str(ROOT / "scripts/bootstrap"), "languages"], check=False,
                       stdout=sys.stderr)
    main(globals(), hosts=3)
