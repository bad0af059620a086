#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network splits: at most one incarnation computes, and the old one never writes again."""

import time

from common import (check, check_counter, check_equal, counter_argv, main, submit, wait_for)

STEPS = 380
LEASE_SECONDS = 4


def frozen(host):
    """By ground truth: some cgroup of a job on this host is frozen."""
    return any("frozen 1" in events.read_text()
               for events in host.cgroup.glob("**/cgroup.events"))


def test_owner_cut_off(lab):
    """The owner's cable is pulled: its job freezes with the lease, another host takes over, and
    after the mend the old incarnation is dead before it computes further."""
    owner = lab[1]
    job = submit(lab, owner, "cut", counter_argv("mark-1", STEPS, 0.05), "--every", "2")
    job.wait_seq(2)
    old = owner.pids("mark-1")
    start = time.monotonic()
    lab.cut(owner)
    wait_for(lambda: frozen(owner), LEASE_SECONDS + 3, "the lease's end")
    check(True, f"without a majority it is frozen after {time.monotonic() - start:.1f} s")
    host = job.wait_host(lab.hosts[1:], at=lab[2])
    check(time.monotonic() - start >= LEASE_SECONDS - 1, "nobody took it before the lease's end")
    check(frozen(owner) or not owner.pids("mark-1"), "the old one does not run beside the new one")
    lab.mend(owner)
    wait_for(lambda: not set(old) & set(owner.pids("mark-1")), 20, "end of the old incarnation")
    check(True, f"the old incarnation is gone, the new one runs on {host.name}")
    lab.wait_members()
    job.wait_collected()
    check_counter(job, STEPS)
    check(not lab.where("mark-1"), "no process is left anywhere")


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
