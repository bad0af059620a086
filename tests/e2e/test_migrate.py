#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Moves at a user's word: migrate, restore, freeze, thaw, kill, wait."""

import time
from pathlib import Path

from common import (CliError, check, check_counter, check_equal, counter_argv, main, make_folder,
                    refused, submit, wait_for)

STEPS = 320


def test_migrate(lab):
    """To a named host, then to any; nothing is lost and nothing runs twice."""
    home = lab[1]
    job = submit(lab, home, "migrate", counter_argv("mark-1", STEPS, 0.05), "--every", "5")
    job.wait_seq(1)
    check_equal(job.migrate(lab[4])["host"], "host4", "migrate tells the host")
    job.wait_host([lab[4]])
    wait_for(lambda: lab.where("mark-1") == [lab[4]], 5, "exactly one incarnation")
    check(True, "it runs on host4 and nowhere else")
    host = job.ask("migrate", job.name, at=lab[4])["host"]
    check(host != "host4", f"without a name it goes somewhere else: {host}")
    job.wait_host([lab[host]])
    moves = job.history()["moves"]
    check_equal([move["lost_ms"] for move in moves], [0, 0], "nothing was lost")
    refused(lambda: job.ask_once("migrate", job.name, "host99"), "host99")
    job.wait_collected()
    check_counter(job, STEPS)


def written(host, marker):
    """How much a job's processes have written, as they see it themselves."""
    return [Path(f"/proc/{pid}/cwd/out.txt").stat().st_size for pid in host.pids(marker)]


def test_freeze_thaw(lab):
    """A frozen job does not compute; a thawed one goes on."""
    job = submit(lab, lab[2], "freeze", counter_argv("mark-2", 200, 0.05), "--every", "5")
    job.wait_seq(1)
    job.ask("freeze", job.name)
    check_equal(job.state(), "frozen", "it is frozen")
    before = written(lab[2], job.marker)
    check(len(before) == 1 and before[0] > 0, f"it had written {before} bytes")
    time.sleep(1)
    check_equal(written(lab[2], job.marker), before, "a frozen job writes nothing")
    job.ask("thaw", job.name)
    wait_for(lambda: written(lab[2], job.marker) > before, 20, "that it writes again")
    job.wait_collected()
    check_counter(job, 200)


def test_restore_older(lab):
    """restore JOB@N goes back to an older checkpoint, on the host that one names."""
    # None by itself: only the newest four are kept, and the oldest must not go now.
    job = submit(lab, lab[3], "restore", counter_argv("mark-3", STEPS, 0.05), "--every", "3600")
    job.wait_seq(1)
    while job.ask("ckpt", job.name)["seq"] < 3:
        pass
    points = [point for point in job.history()["checkpoints"]
              if point["restorable"]]
    oldest = min(point["seq"] for point in points)
    job.ask("restore", f"{job.name}@{oldest}", "--on", "host5")
    job.wait_host([lab[5]])
    wait_for(lambda: lab.where("mark-3") == [lab[5]], 5, "exactly one incarnation")
    job.wait_collected()
    check_counter(job, STEPS)


def test_wait_and_kill(lab):
    """wait exits with the job's code; kill ends a job wherever it runs."""
    home = lab[1]
    folder = make_folder(home, "code", lab.user)
    home.decamp("run", "--name", "code", "--cwd", folder, "--", "/bin/sh", "-c",
                "sleep 1; exit 7", user=lab.user)
    done = home.run([lab.build / "decamp", "wait", "code"], user=lab.user, timeout=240,
                    check=False)
    check_equal(done.returncode, 7, "wait exits with the job's exit code")
    job = submit(lab, home, "victim", counter_argv("mark-4", 5000, 0.05), "--every", "5")
    job.wait_seq(1)
    job.migrate(lab[2])
    job.ask("kill", job.name)
    wait_for(lambda: not lab.where("mark-4"), 10, "end of its processes")
    job.wait_state(("killed", "collected", "done"))
    check(True, "kill reaches a job on another host")
    try:
        job.ask("migrate", job.name)
    except CliError as error:
        check(error.code != 0, "an ended job cannot be moved")


if __name__ == "__main__":
    main(globals())
