#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Things break in the middle: daemons are killed, commands cross each other, packets are lost."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

from common import (CliError, LONG_LEASE, check, check_counter, check_equal, counter_argv, main,
                    note, submit, wait_for)

STEPS = 300
SEED = 11


def test_daemon_killed(lab):
    """decampd is killed at any moment of a checkpoint and started again: the job never notices."""
    host = lab[1]
    draw = random.Random(SEED)
    job = submit(lab, host, "killed", counter_argv("mark-1", 450, 0.05, 16), "--every", "1")
    job.wait_seq(1)
    pids = host.pids("mark-1")
    for _ in range(6):
        time.sleep(draw.uniform(0.05, 1.5))
        state = job.show().get("step") or "idle"
        host.kill_daemon()
        note(f"killed while {state}")
        time.sleep(draw.uniform(0, 1))
        host.start_daemon()
        host.wait_daemon()
        check_equal(host.pids("mark-1"), pids, "the same processes run on")
    seq = job.show()["seq"]
    job.wait_seq(seq + 1)
    check(True, "checkpoints go on")
    job.wait_collected()
    check_counter(job, 450, 16)


def test_killed_in_restore(lab):
    """decampd of the host that takes a job over is killed while it restores."""
    home = lab[2]
    job = submit(lab, home, "restoring", counter_argv("mark-2", STEPS, 0.05, 32), "--every", "2")
    job.wait_seq(2)
    home.power_cut()
    asked = lab[1]
    killed = 0
    end = time.monotonic() + 40
    while time.monotonic() < end and killed < 2:
        for host in lab.hosts:
            if host is home or host is asked:
                continue
            rows = [row for row in host.decamp("ps", user=lab.user)["jobs"]
                    if row["name"] == "restoring"]
            if rows and rows[0]["state"] == "restoring" and rows[0]["host"] == host.name:
                host.restart_daemon()
                killed += 1
        try:
            shown = job.glance(at=asked)
        except CliError:
            continue  # too many of its guardians are away
        if shown["state"] == "running" and lab.where("mark-2"):
            break
    note(f"decampd was killed {killed} times in a restore")
    job.wait_host([host for host in lab.hosts if host is not home], 60, at=asked)
    wait_for(lambda: len(lab.where("mark-2")) == 1, 30, "one incarnation")
    home.boot()
    home.start_daemon()
    home.wait_daemon()
    job.wait_collected()
    check_counter(job, STEPS, 32)


def test_two_clients(lab):
    """Two clients at once: each gets an answer or a clean error, and the job is whole."""
    job = submit(lab, lab[1], "two", counter_argv("mark-5", STEPS, 0.05), "--every", "30")
    job.wait_seq(1)

    def ask(words):
        try:
            return lab[words[0]].decamp(*words[1:], user=lab.user, timeout=500)
        except CliError as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [(1, "ckpt", "two"), (1, "ckpt", "two"), (2, "ckpt", "two"),
                                      (1, "migrate", "two", "host3"),
                                      (2, "migrate", "two", "host4"), (5, "ps")]))
    for answer in answers:
        check(isinstance(answer, dict) or answer.code in (1, 4, 6), f"an answer: {answer!s:.90}")
    wait_for(lambda: len(lab.where("mark-5")) == 1, 15, "one incarnation")
    job.wait_collected()
    check_counter(job, STEPS)


def test_packet_loss(lab):
    """Every tenth packet is lost: checkpoints are committed all the same."""
    lab.lose(10)
    try:
        job = submit(lab, lab[2], "lossy", counter_argv("mark-6", 700, 0.05), "--every", "2")
        job.wait_seq(3, 60)
        check(True, "three checkpoints are committed")
    finally:
        lab.lose(0)
    lab.wait_members()
    job.wait_collected()
    check_counter(job, 700)


if __name__ == "__main__":
    main(globals(), settings=LONG_LEASE)
