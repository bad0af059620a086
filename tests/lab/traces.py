#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a lab leaves in the machine, and how to find and remove it: cgroups, processes, namespaces,
mounts, links, directories. Everything of a lab bears its id."""

import os
import shutil
import signal
import time
from pathlib import Path

PREFIX = "decamp-lab-"
LEAST_SECONDS = 120
NAMESPACES = ("net", "mnt", "pid", "uts", "ipc", "cgroup")


class LabError(Exception):
    """Names the object, the reason and, where there is one, the next step."""


def cgroup2_root():
    """Mount point of the cgroup v2 tree; in a hybrid set-up it lies beside v1 controllers."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ")
        if right.split()[0] == "cgroup2":
            return Path(left.split()[4])
    raise LabError("no cgroup v2 tree is mounted: mount one with "
                   "'mount -t cgroup2 none /sys/fs/cgroup/unified'")


def base_root():
    """Directory on a real file system below which each lab has its own."""
    return Path(os.environ.get("DECAMP_LAB_DIR", "/var/tmp"))


def cgroups_of(top):
    """A cgroup and all below it. Some may go meanwhile: Path.glob() would fail then."""
    return [Path(folder) for folder, _, _ in os.walk(top)]


def texts_of(top, name):
    """What the files of this name say, in a cgroup and all below it that are still there."""
    found = []
    for folder in cgroups_of(top):
        try:
            found.append((folder / name).read_text())
        except OSError:
            pass
    return found


def pids_of(cgroup):
    """All processes in a cgroup and below it, by the machine's PIDs."""
    words = (word for text in texts_of(cgroup, "cgroup.procs") for word in text.split())
    return [int(word) for word in words if int(word)]


def set_patience(factor):
    """All waits of this process last so many times longer; for hosts that are slow."""
    wait_for.patience = factor


def wait_for(condition, seconds, what, interval=0.05):
    """The first true value of condition(), or a LabError after so many seconds. These only end a
    test that fails: few are as good as many, unless the machine has much else to do."""
    seconds = max(seconds, LEAST_SECONDS) * getattr(wait_for, "patience", 1)
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise LabError(f"{what}: not within {seconds} s")
        time.sleep(interval)


def kill_cgroup(cgroup):
    """End all processes of a cgroup and wait for it; frozen ones die as well."""
    if not cgroup.exists():
        return

    def empty():
        try:
            (cgroup / "cgroup.kill").write_text("1")
        except OSError:
            pass
        left = pids_of(cgroup)
        for pid in left:
            kill(pid, signal.SIGKILL)
        return not left

    wait_for(empty, 10, f"{cgroup}: end of its processes", 0.02)


def remove_cgroup(cgroup):
    if not cgroup.exists():
        return
    kill_cgroup(cgroup)
    for child in sorted(cgroups_of(cgroup), key=lambda path: -len(path.parts)):
        wait_for(lambda: removed(child), 5, f"{child}: removal")


def removed(cgroup):
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def namespace_of(pid, kind):
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return None


class Pins:
    """Namespaces of a lab, held open: as long as they are, no other can get their numbers."""

    def __init__(self):
        self.fds = {}

    def add(self, pid):
        """Those of a process that are not the machine's own."""
        for kind in NAMESPACES:
            inode = namespace_of(pid, kind)
            if inode == namespace_of("self", kind) or (kind, inode) in self.fds:
                continue
            self.fds[kind, inode] = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)

    def users(self):
        """Sentences: who is still in one of them."""
        found = []
        for pid in all_pids():
            if is_zombie(pid):
                continue
            found += [f"{kind} namespace of process {pid}: {command_of(pid)}"
                      for kind in NAMESPACES if (kind, namespace_of(pid, kind)) in self.fds]
        return found

    def release(self):
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}


def environment_of(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def command_of(pid):
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return line.decode(errors="replace")
    except OSError:
        return ""


def is_zombie(pid):
    """Ended, and only its parent can remove it: an orphan's is the machine's init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def traces(lab_id):
    """Everything of a lab that is still there: a list of sentences, empty if it left nothing."""
    found = []
    tag = f"DECAMP_LAB={lab_id}".encode()
    for pid in all_pids():
        if pid == os.getpid() or is_zombie(pid):
            continue
        if tag in environment_of(pid):
            found.append(f"process {pid}: {command_of(pid)}")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if lab_id in line:
            found.append(f"mount {line.split()[4]}")
    cgroup = cgroup2_root() / (PREFIX + lab_id)
    if cgroup.exists():
        found.append(f"cgroup {cgroup}")
    directory = base_root() / (PREFIX + lab_id)
    if directory.exists():
        found.append(f"directory {directory}")
    return found


def alive(directory):
    """True if the process that owns a lab runs: PID and start time, so that no other is taken. Of
    a lab that is half made, or half removed, there is only the PID that its id begins with."""
    try:
        pid, start = (directory / "owner").read_text().split()
    except (OSError, ValueError):
        pid = directory.name[len(PREFIX):].partition("-")[0]
        start = start_time(pid)
    return start is not None and start_time(pid) == start


def start_time(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


def sweep(lab_id):
    """Remove all of one lab, whoever made it."""
    remove_cgroup(cgroup2_root() / (PREFIX + lab_id))
    tag = f"DECAMP_LAB={lab_id}".encode()
    for pid in all_pids():
        if pid != os.getpid() and tag in environment_of(pid):
            kill(pid, signal.SIGKILL)
    shutil.rmtree(base_root() / (PREFIX + lab_id), ignore_errors=True)


def sweep_orphans():
    """Remove the labs whose owner was killed; return their ids."""
    swept = []
    for directory in base_root().glob(PREFIX + "*"):
        if not alive(directory):
            swept.append(directory.name[len(PREFIX):])
    for directory in cgroup2_root().glob(PREFIX + "*"):
        lab_id = directory.name[len(PREFIX):]
        if not (base_root() / directory.name).exists() and not alive(directory):
            swept.append(lab_id)
    for lab_id in swept:
        sweep(lab_id)
    return swept
