#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/guarantees.md, what other files do not show: secrecy, measured figures, the keeper as warden."""

import os
import secrets
import signal
import subprocess
import sys
import time

from common import (UNTIL_TOLD, check, check_counter, check_equal, counter_argv, frozen, main, note,
                    submit, wait_for)
import traces  # the path to the lab is set by common

STEPS = 500
LEASE_SECONDS = 4
FREEZE_SPARE_SECONDS = 10

SNIFF = """\
import socket, sys
needles = [bytes.fromhex(each) for each in sys.argv[1:]]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.settimeout(0.5)
wire.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: it may have to wait
seen, size, tails, running = [0] * len(needles), 0, {}, True
print("ready", flush=True)
import select
while True:
    if select.select([sys.stdin], [], [], 0)[0]:
        break
    try:
        frame = wire.recv(65536)
    except TimeoutError:
        continue
    size += len(frame)
    for i, needle in enumerate(needles):
        seen[i] += needle in frame
print(size, *seen, flush=True)
"""

SECRET = """\
import os, signal, sys, time
told = []
signal.signal(signal.SIGURG, lambda number, _: told.append(number))
marker = os.environ["MARKER"]
memory = [marker + str(i) for i in range(20000)]
i = 0
while not told:
    with open("secret.txt", "a") as out:
        out.write(f"{i} {memory[i % len(memory)]}\\n")
    i += 1
    time.sleep(0.05)
print("done")
"""

GAPS = """\
import signal, time
gaps, told = [0], []
signal.signal(signal.SIGURG, lambda number, _: told.append(number))
ballast = bytearray(48 << 20)
for i in range(0, len(ballast), 4096):
    ballast[i] = 1
last = time.monotonic()
while not told:
    now = time.monotonic()
    if now - last > 0.004:
        gaps.append(now - last)
    last = now
with open("gaps.txt", "w") as out:
    out.write("\\n".join(f"{gap:.6f}" for gap in gaps))
"""


class Sniffer:
    """Counts needles in all frames that pass the switch."""

    def __init__(self, lab, *needles):
        self.popen = subprocess.Popen(
            ["nsenter", "-t", str(lab.switch.pid), "-n", sys.executable, "-c", SNIFF,
             *(needle.hex() for needle in needles)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.popen.stdout.readline()

    def stop(self):
        words = self.popen.communicate("\n", timeout=120)[0].split()
        return int(words[0]), [int(word) for word in words[1:]]


def daemon_halves(host):
    return [pid for pid in traces.pids_of(host.cgroup)
            if "decampd --config" in traces.command_of(pid)
            and not traces.command_of(pid).startswith(("sh ", "nsenter"))]


def files_with(folder, needle):
    found = []
    for top, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(top, name)
            try:
                with open(path, "rb") as each:
                    if needle in each.read():
                        found.append(path)
            except FileNotFoundError:
                pass  # its daemon is at work
    return found


def test_secrecy(lab):
    """G4: a marker in a job's memory, files and environment is on no wire and no peer's disk."""
    marker = secrets.token_hex(12)
    sniffer = Sniffer(lab, marker.encode(), b"secret.txt", b"decamp-canary")
    home = lab[1]
    # The sniffer sees what is sent in the clear: a canary over the same bridge.
    home.run(["python3", "-c", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
              f".sendto(b'decamp-canary', ('{lab[2].addr}', 9))"])
    job = submit(lab, home, "secret", ["/usr/bin/python3", "-c", SECRET, UNTIL_TOLD],
                 "--every", "2", "--env", f"MARKER={marker}")
    job.wait_seq(2)
    job.ask("migrate", job.name)
    job.wait_seq(4)
    job.wait_collected()
    size, (marked, named, canary) = sniffer.stop()
    check(canary > 0, "the sniffer sees what passes in the clear")
    check(size > 1 << 20, f"{size >> 10} KiB passed the switch")
    check_equal((marked, named), (0, 0), "neither the marker nor a file's name was among it")
    text = home.path(f"{'/root' if job.user == 'root' else '/home/' + job.user}/secret/secret.txt")
    check(marker in text.read_text(), "the marker is in the results at home")
    for host in lab.hosts:
        check_equal(files_with(host.state_dir / "overlay", marker.encode()), [],
                    f"{host.name}: it is in none of the files of the network half")


def test_network_half(lab):
    """G4: the network half is another user without capabilities, below a filter, in its own root."""
    host = lab[1]
    halves = [pid for pid in daemon_halves(host)
              if "\nUid:\t0\t" not in open(f"/proc/{pid}/status").read()]
    check_equal(len(halves), 1, "one of the two processes is not root")
    status = dict(line.split(":\t", 1) for line in
                  open(f"/proc/{halves[0]}/status").read().splitlines() if ":\t" in line)
    check_equal(int(status["CapEff"], 16) | int(status["CapPrm"], 16), 0, "it has no capability")
    check_equal(status["Seccomp"], "2", "it runs below a seccomp filter")
    check_equal(status["NoNewPrivs"], "1", "it can gain no privilege")
    root = os.listdir(f"/proc/{halves[0]}/root")
    check("jobs" not in root and "identity" not in root,
          f"its root holds only its own folders: {sorted(root)}")


def test_pause(lab):
    """G5: the pause that is shown agrees with the gap that the job itself sees."""
    home = lab[2]
    job = submit(lab, home, "gaps", ["/usr/bin/python3", "-c", GAPS, UNTIL_TOLD], "--every",
                 "3")
    job.wait_seq(3)
    job.wait_collected()
    folder = "/root" if job.user == "root" else f"/home/{job.user}"
    gaps = [float(line) for line in
            home.path(f"{folder}/gaps/gaps.txt").read_text().splitlines()]
    rows = [row for row in job.ask("history", job.name)["checkpoints"]
            if row["reason"] == "interval"]
    shown = [row["pause_us"] / 1e6 for row in rows]
    note(f"shown {[round(each, 3) for each in shown]}, "
         f"seen {[round(each, 3) for each in sorted(gaps)[-6:]]}")
    for pause in shown:
        near = min(gaps, key=lambda gap, pause=pause: abs(gap - pause))
        check(near <= pause * 1.5 + 0.05 and near >= pause * 0.4 - 0.02,
              f"a pause of {pause * 1000:.0f} ms was shown, the job saw {near * 1000:.0f} ms")


def test_warden(lab):
    """G3: decampd stands still as a whole; the job's keeper freezes it at the lease's end."""
    owner = lab[3]
    job = submit(lab, owner, "warden", counter_argv("mark-w", STEPS, 0.05), "--every", "2")
    job.wait_seq(2)
    halves = daemon_halves(owner)
    old = owner.pids("mark-w")
    start = time.monotonic()
    for pid in halves:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: frozen(owner), LEASE_SECONDS + FREEZE_SPARE_SECONDS,
                 "the keeper's freeze")
        check(True, f"frozen by its keeper after {time.monotonic() - start:.1f} s")
        host = job.wait_host([each for each in lab.hosts if each is not owner], at=lab[1])
        check(host is not owner, f"{host.name} took it over")
    finally:
        for pid in halves:
            os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not set(old) & set(owner.pids("mark-w")), 20, "end of the old incarnation")
    check(True, "awake again, it ended its old incarnation")
    job.wait_collected()
    check_counter(job, STEPS)


if __name__ == "__main__":
    main(globals())
