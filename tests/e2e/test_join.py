#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Twenty hosts: one founds the cluster, the others join it, and a job moves about."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import check, check_counter, counter_argv, main, note, submit, traces, wait_for

HOSTS = 20
STEPS = 120


def memory_mib(host):
    """Resident, of all processes of a host that are not just ending."""
    total = 0
    for pid in traces.pids_of(host.cgroup):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines()
                     if line.startswith("Pss:"))
    return total // 1024


def test_join(lab):
    """Nineteen hosts join, four at a time; all come to see each other."""
    first, *others = lab.hosts
    lab.start_daemons()
    first.decamp("cluster init", "--addr", first.addr)
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lab.admit, others))
    joined = time.monotonic()
    lab.wait_members(seconds=60)
    note(f"joined after {joined - start:.1f} s, all agree {time.monotonic() - joined:.1f} s later; "
         f"a host takes {memory_mib(lab[7])} MiB")
    wait_for(lambda: len(lab.alive_seen_by(lab[HOSTS])) == HOSTS, 60, f"{HOSTS} members")
    check(True, f"{HOSTS} hosts are members")
    lab.user = lab.job_user()


def test_move(lab):
    """A job of one of the last to join runs on others too and comes home."""
    job = submit(lab, lab[HOSTS], "far", counter_argv("mark-1", STEPS, 0.05), "--every", "2")
    job.wait_seq(1)
    job.migrate(lab[11])
    job.wait_host([lab[11]])
    job.wait_collected()
    check_counter(job, STEPS)


if __name__ == "__main__":
    main(globals(), hosts=HOSTS, cluster=False)
