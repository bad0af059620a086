#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Power cuts: of the host that runs a job, of one that stores its checkpoints, with and without
the disk coming back."""

from common import (check, check_counter, check_equal, counter_argv, home_of, is_counted, main,
                    submit, wait_for)

STEPS = 280


def others(lab, host):
    return [each for each in lab.hosts if each is not host and each.pid]


def three(names):
    return names if len(names) == 3 else None


def start_again(lab, host):
    host.start_daemon()
    host.wait_daemon()
    lab.wait_members()


def test_worker_dies(lab):
    """The worker loses power: another host goes on from the last committed checkpoint."""
    home = lab[1]
    job = submit(lab, home, "worker-dies", counter_argv("mark-1", STEPS, 0.05), "--every", "2")
    job.wait_seq(2)
    home.power_cut()
    host = job.wait_host(others(lab, home), at=lab[2])
    check(host.pids("mark-1"), f"it runs on {host.name}")
    home.boot()
    start_again(lab, home)
    job.wait_collected()
    check_counter(job, STEPS)
    move = job.history()["moves"][0]
    check_equal((move["from"], move["to"]), (home.name, host.name), "its history tells the move")
    check(0 <= move["lost_ms"] < 15000, f"the work lost is measured: {move['lost_ms']} ms")
    check(move["resume_ms"] > 0, f"the time to resume is measured: {move['resume_ms']} ms")
    check(not lab.where("mark-1"), "no process of it is left")


def test_holder_dies(lab):
    """A host that holds checkpoints dies, then the worker: the other copies serve."""
    home = lab[2]
    job = submit(lab, home, "holder-dies", counter_argv("mark-2", STEPS, 0.05), "--every", "2")
    job.wait_seq(2)
    # Two are enough for a checkpoint, if a third one does not answer for a moment.
    holders = wait_for(lambda: three(job.show()["detail"]["holders"]), 60,
                       "three hosts that hold the newest checkpoint")
    check(home.name not in holders, "the worker itself is not counted as a copy")
    victim = lab[holders[0]]
    victim.power_cut()
    seq = job.show()["seq"]
    job.wait_seq(seq + 1)
    check(True, "checkpoints go on without that holder")
    home.power_cut()
    alive = others(lab, home)
    job.wait_host(alive, at=alive[0])
    for host in (victim, home):
        host.boot()
        start_again(lab, host)
    job.wait_collected()
    check_counter(job, STEPS)


def test_disk_lost(lab):
    """The submitting host comes back with an empty disk: the results wait in the store."""
    home = lab[3]
    job = submit(lab, home, "disk-lost", counter_argv("mark-3", STEPS, 0.03), "--every", "2")
    job.wait_seq(1)
    home.power_cut()
    home.boot(wipe=True)
    asked = lab[1]
    job.wait_ended("done", at=asked)
    path = f"{home_of(lab.user)}/{job.name}/out.txt"
    out = job.read(path, asked)
    check(is_counted(out, STEPS), "the results can be read from any host")


if __name__ == "__main__":
    main(globals())
