#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network splits: at most one incarnation computes, and the old one never writes again."""

import time
from pathlib import Path

from common import (UNTIL_TOLD, check, check_counter, check_equal, counter_argv, frozen, home_of,
                    main, note, submit, wait_for)

STEPS = 380


def test_owner_cut_off(lab):
    """The owner's cable is pulled: its job freezes with the lease, another host takes over, and
    after the mend the old incarnation is dead before it computes further."""
    owner = lab[1]
    job = submit(lab, owner, "cut", counter_argv("mark-1", STEPS, 0.05), "--every", "2")
    job.wait_seq(2)
    old = owner.pids("mark-1")
    start = time.monotonic()
    lab.cut(owner)
    wait_for(lambda: frozen(owner), 30, "the lease's end")
    note(f"without a majority it is frozen after {time.monotonic() - start:.1f} s")
    wait_for(lambda: set(lab.where("mark-1")) - {owner}, 60, "a process of it elsewhere")
    check(frozen(owner), "nobody took it before the lease's end")
    host = job.wait_host(lab.hosts[1:], at=lab[2])
    check(frozen(owner) or not owner.pids("mark-1"), "the old one does not run beside the new one")
    lab.mend(owner)
    wait_for(lambda: not set(old) & set(owner.pids("mark-1")), 20, "end of the old incarnation")
    check(True, f"the old incarnation is gone, the new one runs on {host.name}")
    lab.wait_members()
    job.wait_collected()
    check_counter(job, STEPS)
    check(not lab.where("mark-1"), "no process is left anywhere")


STAMPS = """\
import signal, time
told = []
signal.signal(signal.SIGURG, lambda number, _: told.append(number))
with open("stamps.txt", "a") as out:
    while not told:
        out.write(f"{time.time_ns()}\\n")
        out.flush()
        time.sleep(0.005)
"""


def stamps(host, marker):
    """What its process on this host has written so far, as it sees the file itself."""
    found = [Path(f"/proc/{pid}/cwd/stamps.txt") for pid in host.pids(marker)]
    lines = next(path for path in found if path.exists()).read_text().split("\n")
    return [int(line) for line in lines[:-1]]


def test_never_both(lab):
    """A job writes the time all along. Cut off, it has written its last when the new one begins."""
    owner = lab[4]
    job = submit(lab, owner, "stamps", ["/usr/bin/python3", "-c", STAMPS, "mark-4", UNTIL_TOLD],
                 "--every", "2")
    job.wait_seq(2)
    lab.cut(owner)
    others = [host for host in lab.hosts if host is not owner]
    host = job.wait_host(others, at=others[0])
    common = set(stamps(host, "mark-4"))
    wait_for(lambda: len(stamps(host, "mark-4")) > len(common) + 100, 10, "stamps of the new one")
    old, new = stamps(owner, "mark-4"), stamps(host, "mark-4")
    lost, won = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    check(lost and won, f"{len(lost)} stamps of the old one are lost, {len(won)} are new")
    gap_ms = (won[0] - old[-1]) / 1e6
    check(gap_ms > 0, f"the old one wrote its last {gap_ms:.0f} ms before the new one's first")
    check_equal(stamps(owner, "mark-4"), old, "the old one has written nothing meanwhile")
    lab.mend(owner)
    wait_for(lambda: not owner.pids("mark-4"), 20, "end of the old incarnation")
    lab.wait_members()
    job.wait_collected()
    text = owner.path(f"{home_of(job.user)}/{job.name}/stamps.txt").read_text()
    whole = [int(line) for line in text.split()]
    check(whole == sorted(whole) and not set(whole) & set(lost) and set(won) <= set(whole),
          "the results are those of one incarnation at a time")


def test_minority(lab):
    """Two of five hosts are cut off with a job: the majority goes on with it."""
    owner = lab[2]
    job = submit(lab, owner, "minority", counter_argv("mark-2", STEPS, 0.05), "--every", "2")
    job.wait_seq(2)
    lab.partition([lab[1], owner])
    majority = lab.hosts[2:]
    host = job.wait_host(majority, 40, at=majority[0])
    check(host in majority, f"the majority took it: {host.name}")
    check(frozen(owner) or not owner.pids("mark-2"), "the minority's incarnation does not run")
    lab.partition()
    wait_for(lambda: not owner.pids("mark-2") or host is owner, 20, "end of the old incarnation")
    lab.wait_members()
    job.wait_collected()
    check_counter(job, STEPS)


def test_short_cut(lab):
    """A cut that is shorter than the lease changes nothing."""
    owner = lab[3]
    job = submit(lab, owner, "short-cut", counter_argv("mark-3", 200, 0.05), "--every", "2")
    job.wait_seq(1)
    pids = owner.pids("mark-3")
    lab.cut(owner)
    time.sleep(1)
    lab.mend(owner)
    lab.wait_members()
    check_equal(owner.pids("mark-3"), pids, "the same processes run on")
    job.wait_collected()
    check_counter(job, 200)


if __name__ == "__main__":
    main(globals())
