#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""An administrator empties a host."""

from common import (check, check_counter, check_equal, counter_argv, main, refused, submit,
                    wait_for)

STEPS = 350


def test_vacate(lab):
    """All jobs leave, none comes back, until the administrator undoes it."""
    home = lab[2]
    jobs = [submit(lab, home, f"vacate-{i}", counter_argv(f"mark-{i}", STEPS, 0.06),
                   "--every", "4") for i in range(2)]
    for job in jobs:
        job.wait_seq(1)
    refused(lambda: home.decamp("vacate", user="bob"), "root")
    answer = home.decamp("vacate")
    check_equal(answer["jobs_left"], [], "no job is left")
    check_equal(answer["moved"], 2, "both were moved")
    for i, job in enumerate(jobs):
        job.wait_host([host for host in lab.hosts if host is not home])
        wait_for(lambda mark=f"mark-{i}": not home.pids(mark), 20, "end of the old processes")
        check(True, f"{job.name}: no process is left on {home.name}")
    refused(lambda: jobs[0].ask_once("migrate", jobs[0].name, home.name), home.name)
    home.decamp("vacate", "--undo")
    wait_for(lambda: takes(home), 10, "that it takes jobs again")
    jobs[0].migrate(home)
    jobs[0].wait_host([home])
    check(True, "after --undo it takes jobs again")
    for job in jobs:
        job.wait_collected()
        check_counter(job, STEPS)


def takes(host):
    return any("takes" in flag for node in host.decamp("nodes")["nodes"] if node.get("self")
               for flag in node["flags"])


if __name__ == "__main__":
    main(globals())
