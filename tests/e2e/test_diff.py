#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same stopped process dumped by both engines: all images, field by field.

Every difference that is accepted is a rule below, with its reason; any other one is an error.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = Path(os.environ.get("DECAMP_BUILD", ROOT / "build"))
SKIP_CODE = 77
REST_SECONDS = 60

sys.path.insert(0, str(HERE / "diff"))
# pylint: disable=wrong-import-position
import images as diff_images                              # noqa: E402


def close_by(native, criu):
    return isinstance(native, int) and isinstance(criu, int) and abs(native - criu) < 3 * 10**9


def absent(native, criu):
    del criu
    return native is None


def unused(native, criu):
    return native is None and not any(criu.values())


def always(native, criu):
    del native, criu
    return True


# (pattern of the path, is this difference fine?, reason)
RULES = [
    (r".*/(file|cwd|root|exe|object|regf_id)/(mode|size)", absent,
     "a check of the restorer's; a job's files may grow and change before they are opened again"),
    (r".*/(exe|object|file)/build_id", absent,
     "a check of the restorer's; decamp compares whole files by their digests"),
    (r".*/fds/\d+/file/ns_id", absent, "the network namespace is not part of the image"),
    (r".*/fds/\d+/file/regf_id/pos", always, "a FIFO has no position"),
    (r"/inventory/network_lock_method", always, "there is no network to lock"),
    (r".*/mm/vmas/0xffffffffff600000", absent, "vsyscall: every process has it, none can lose it"),
    (r".*/xsave/cet", unused, "no shadow stack is in use (one that is would be refused)"),
    (r"/images/seccomp", absent, "no filters: CRIU writes an empty image"),
    (r"/\d+/tree/threads/0", lambda native, criu: criu == 0, "a zombie's thread is not looked at"),
    (r"/inventory/dump_criu_run_id", always, "a number of CRIU's own run"),
    (r"/images/stats", absent, "CRIU's statistics of its own run"),
    (r".*/vsec", close_by, "time that is left: the dumps are a moment apart"),
    (r"/time/0/(monotonic|boottime)/tv_sec", close_by, "clocks: the dumps are a moment apart"),
    (r".*/ghost/atim/tv_sec", close_by, "whoever reads the content first changes this"),
    (r".*/xsave/xstate_bv", lambda native, criu: (native ^ criu) & ~1 == 0,
     "x87 state: unused, or used and as after a reset"),
]


def explain(path, native, criu):
    for pattern, fine, reason in RULES:
        if re.fullmatch(pattern, path) and fine(native, criu):
            return reason
    return None


class Victim:
    """The program, built and started in a folder of its own and namespaces of its own."""

    def __init__(self, scratch):
        self.folder = Path(scratch)
        program = self.folder / "victim"
        subprocess.run(["cc", "-O1", "-D_GNU_SOURCE", "-pthread", "-o", program,
                        HERE / "diff/victim.c"], check=True)
        (self.folder / "work").mkdir()
        with (self.folder / "out").open("w") as out:
            self.process = subprocess.Popen([program], cwd=self.folder / "work", env={},
                                            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            start_new_session=False)
        end = time.monotonic() + REST_SECONDS
        while "ready" not in (self.folder / "out").read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "out").read_text() or "the victim is not ready")
            time.sleep(0.02)
        self.wait_still("SZ")

    def pids(self):
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            children = Path(f"/proc/{pid}/task/{pid}/children")
            queue += [int(word) for word in children.read_text().split()]
        return found

    def look(self):
        """The state of each thread, and how often it has run."""
        found = {}
        for pid in self.pids():
            for task in Path(f"/proc/{pid}/task").iterdir():
                status = dict(line.split(":\t", 1) for line in
                              (task / "status").read_text().splitlines() if ":\t" in line)
                found[task.name] = (status["State"][0], status["voluntary_ctxt_switches"],
                                    status["nonvoluntary_ctxt_switches"])
        return found

    def wait_still(self, states):
        """Until all threads are in such a state, and none has run between two looks."""
        end, before = time.monotonic() + REST_SECONDS, None
        while time.monotonic() < end:
            now = self.look()
            if now == before and all(each[0] in states for each in now.values()):
                return
            before = now
            time.sleep(0.1)
        raise RuntimeError(f"the victim does not come to rest: {before}")

    def signal(self, number):
        for pid in self.pids():
            os.kill(pid, number)

    def end(self):
        for pid in reversed(self.pids()) if self.process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def dump(program, victim, folder):
    folder.mkdir()
    done = subprocess.run([*program, "dump", "--tree", str(victim.process.pid), "--images-dir",
                           str(folder), "--log-file", "dump.log", "--leave-running",
                           "--file-locks"],
                          capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        log = folder / "dump.log"
        lines = [line for line in log.read_text().splitlines() if "Error" in line] \
            if log.exists() else []
        raise RuntimeError(f"{program[-1]} dump: {done.stderr.strip()} {lines[-3:]}")


def compare(victim, criu, scratch, name):
    """The number of accepted differences; prints the others."""
    native_folder, criu_folder = scratch / f"{name}-native", scratch / f"{name}-criu"
    # Native first: what CRIU does to blocking calls is seen by whoever comes after it.
    dump([str(BUILD / "decamp-capture")], victim, native_folder)
    dump([criu], victim, criu_folder)
    native = diff_images.Images(native_folder).whole()
    stock = diff_images.Images(criu_folder).whole()
    accepted, bad = {}, []
    for path, mine, theirs in diff_images.differences(native, stock):
        reason = explain(path, mine, theirs)
        if reason:
            accepted[reason] = accepted.get(reason, 0) + 1
        else:
            bad.append(f"{path}: native {mine!r:.120}, criu {theirs!r:.120}")
    for reason, count in sorted(accepted.items()):
        print(f"  {count:5} x {reason}")
    for line in bad:
        print(f"  DIFFERENT {line}")
    return bad


def skip(why):
    print(f"SKIP: {why}")
    sys.exit(SKIP_CODE)


def output(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def main():
    if os.geteuid():
        skip("needs root")
    if not (BUILD / "decamp-capture").exists():
        skip("decamp-capture is not built")
    criu, suite = output(str(ROOT / "scripts/criu")), output(str(ROOT / "scripts/zdtm"))
    if not criu or not suite:
        skip("CRIU or its sources cannot be had here")
    sys.path.insert(0, str(Path(suite).parent / "lib"))
    try:
        __import__("pycriu")
    except ImportError as error:
        skip(f"CRIU's python bindings do not load: {error}")
    scratch = Path(tempfile.mkdtemp(prefix="diff-"))
    victim, failed = None, []
    try:
        victim = Victim(scratch)
        for name, before in (("blocked", None), ("stopped", signal.SIGSTOP)):
            if before:
                victim.signal(before)
                victim.wait_still("TZ")
            print(f"{name}: a tree of {len(victim.pids())} processes")
            failed += compare(victim, criu, scratch, name)
    finally:
        if victim:
            victim.end()
        if os.environ.get("DECAMP_KEEP"):
            print(f"kept: {scratch}")
        else:
            shutil.rmtree(scratch)
    print("FAILED" if failed else "both engines say the same")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
